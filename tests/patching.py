"""Monkeypatching of a name in all modules of a package, since each module keeps its own reference to an import."""

import sys


def everywhere(patch, package, name, value):
    """Sets `name` to `value` in all loaded modules of `package` that have it; at least one must."""
    modules = [module for key, module in sys.modules.items() if f"{key}.".startswith(f"{package}.") and hasattr(module, name)]
    assert modules, f"no module of {package} has {name}"
    for module in modules:
        patch.setattr(module, name, value)
