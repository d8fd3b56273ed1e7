"""Entries hidden on purpose, so that what a model says of missing ones can be held against what they were."""

from dataclasses import replace

import numpy as np

from latentlab.data.dataset import Dataset
from latentlab.errors import DataError


def hide(dataset: Dataset, fraction: float, rng: np.random.Generator) -> Dataset:
    """The dataset with a share of its observed entries hidden, completely at random.

    What they were is kept in `truth`, under the name of the observed array (all of it; NaN where nobody knows).

    Args:
        dataset: Raw values: hiding comes before standardising, so that the transform does not know what is hidden.
        fraction: Share of the observed entries, from 0 to below 1; rounded to whole entries.
        rng: Source of randomness.

    Example:
        >>> whole = Dataset({"x": np.arange(20.0).reshape(5, 4)}, dims={"x": ("unit", "feature")})
        >>> hidden = hide(whole, 0.25, np.random.default_rng(0))
        >>> int(np.isnan(hidden.x).sum()), bool((hidden.truth["x"] == whole.x).all())
        (5, True)
    """
    if isinstance(fraction, bool) or not isinstance(fraction, int | float) or not 0 <= fraction < 1:
        raise DataError(f"{dataset.name}: the share of entries to hide must be from 0 to below 1; got {fraction!r}.")
    if dataset.index and fraction:
        raise DataError(
            f"{dataset.name}: `missing` hides entries of a table; {dataset.points}s are held out, by `held_out` in a config."
        )
    if dataset.transform is not None:
        raise DataError(f"{dataset.name}: hide entries before standardising.")
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
