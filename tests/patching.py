"""Names replaced in every module of a package that has them, since a module keeps what it imported under its own name."""

import sys


def everywhere(patch, package, name, value):
    """Puts `value` under `name` in all loaded modules of `package`; at least one must have it."""
    modules = [module for key, module in sys.modules.items() if f"{key}.".startswith(f"{package}.") and hasattr(module, name)]
    assert modules, f"no module of {package} has {name}"
    for module in modules:
        patch.setattr(module, name, value)
