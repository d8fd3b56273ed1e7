"""Monkeypatching of a name in all modules of a package, since each module keeps its own reference to an import."""

import io
import sys

from tqdm import tqdm


def everywhere(patch, package, name, value):
    """Sets `name` to `value` in all loaded modules of `package` that have it; at least one must."""
    modules = [module for key, module in sys.modules.items() if f"{key}.".startswith(f"{package}.") and hasattr(module, name)]
    assert modules, f"no module of {package} has {name}"
    for module in modules:
        patch.setattr(module, name, value)


def recorded_bars(patch, module):
    """Replaces the progress bar of a module by one that writes to memory; returns the list of bars that are made."""
    bars = []

    class Bar(tqdm):
        def __init__(self, *args, **options):
            super().__init__(*args, **{**options, "disable": False, "file": io.StringIO()})
            bars.append(self)

    patch.setattr(module, "tqdm", Bar)
    return bars
