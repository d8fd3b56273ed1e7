"""Access to the installed ArviZ, of a version before 1.0 or from 1.0 on."""

import contextlib
import importlib.util
import tempfile
import warnings
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import xarray as xr


@cache
def installed_arviz() -> Any:
    """Return the installed ArviZ; its import leaves the user's folders unchanged and gives no warning."""
    with warnings.catch_warnings(), _temporary_cache_folder():
        warnings.simplefilter("ignore")  # the last releases before 1.0 warn of coming changes
        import arviz
    return arviz


@contextlib.contextmanager
def _temporary_cache_folder() -> Iterator[None]:
    """Replace the user's cache folder by a temporary one within a `with` block.

    ArviZ 0.23 writes the date there when it is imported. It fails if the folder is read-only or another process writes there.
    """
    if importlib.util.find_spec("platformdirs") is None:
        yield
        return
    platformdirs = importlib.import_module("platformdirs")
    before = platformdirs.user_cache_dir
    with tempfile.TemporaryDirectory() as folder:
        platformdirs.user_cache_dir = lambda *_, **__: folder  # type: ignore[attr-defined]
        try:
            yield
        finally:
            platformdirs.user_cache_dir = before  # type: ignore[attr-defined]


def _is_old() -> bool:
    return int(installed_arviz().__version__.split(".")[0]) < 1


def to_arviz(tree: xr.DataTree) -> Any:
    """Return the tree in the installed ArviZ's format: `InferenceData` before 1.0, the tree itself from 1.0 on."""
    if not _is_old():
        return tree
    groups = {str(name): node.to_dataset(inherit=False) for name, node in tree.children.items()}
    return installed_arviz().InferenceData(attrs=dict(tree.attrs), **groups)


def psis(log_ratios: np.ndarray, reff: float) -> tuple[np.ndarray, float]:
    """Compute Pareto-smoothed log weights `(draw,)` and k-hat of log ratios `(draw,)`; `reff` is their relative efficiency."""
    with np.errstate(all="ignore"):
        if _is_old():
            weights, k = installed_arviz().psislw(log_ratios, reff=reff)
        else:
            from arviz_stats.base import array_stats  # type: ignore[import-not-found, unused-ignore]

            weights, k = array_stats.psislw(-log_ratios, r_eff=reff)
    return weights, float(k)
