"""Hiding of observed entries, so that imputations can be compared with the true values."""

from dataclasses import replace

import numpy as np

from latentlab.data.dataset import Dataset
from latentlab.errors import DataError


def hide(dataset: Dataset, fraction: float, rng: np.random.Generator) -> Dataset:
    """Hide a share of the observed entries completely at random.

    `truth` keeps the whole observed array under its name, with NaN for entries that were missing before.

    Args:
        dataset: Dataset with raw values; it is standardised later, so that the transform does not depend on hidden entries.
        fraction: Share of the observed entries, from 0 to below 1; rounded to whole entries.
        rng: Random generator.

    Example:
        >>> whole = Dataset({"x": np.arange(20.0).reshape(5, 4)}, dims={"x": ("unit", "feature")})
        >>> hidden = hide(whole, 0.25, np.random.default_rng(0))
        >>> int(np.isnan(hidden.x).sum()), bool((hidden.truth["x"] == whole.x).all())
        (5, True)
    """
    if isinstance(fraction, bool) or not isinstance(fraction, int | float) or not 0 <= fraction < 1:
        raise DataError(
            f"{dataset.name}: the share of entries to hide (`missing`) must be at least 0 and below 1; got {fraction!r}."
        )
    if dataset.index and fraction:
        raise DataError(
            f"{dataset.name}: `missing` applies only to tables; hold out {dataset.points}s by `held_out` in a config."
        )
    if dataset.transform is not None:
        raise DataError(f"{dataset.name}: the data are standardised; hide entries before standardising.")
    observed = np.flatnonzero(~np.isnan(dataset.x))
    hidden = rng.choice(observed, size=round(fraction * len(observed)), replace=False)
    x = dataset.x.copy()
    x.flat[hidden] = np.nan
    return replace(
        dataset,
        arrays={**dataset.arrays, dataset.observed: x},
        mask=None,
        truth={dataset.observed: dataset.x, **dataset.truth},
    )
