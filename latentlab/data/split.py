"""Split of a dataset into training and held-out points."""

from typing import Any

import numpy as np

from latentlab.errors import DataError


def split(dataset: Any, fraction: float, rng: np.random.Generator, along: str | None = None) -> tuple[Any, Any]:
    """Split a dataset into training and held-out points; arguments and errors are those of `Dataset.split`."""
    if not isinstance(rng, np.random.Generator):
        raise DataError(f"split: `rng` must be a numpy Generator, such as `np.random.default_rng(0)`; got {rng!r:.60}.")
    if dataset.absent == "zero":
        return split(dataset.complete(), fraction, rng, along)
    groups, what = np.arange(dataset.n_points), f"{dataset.points}s"
    if "sequence" in dataset.coords:
        groups, what = np.asarray(dataset.coords["sequence"]), "sequences"
    if along not in (None, dataset.points):
        if along not in dataset.kinds:
            kinds = ", ".join(map(repr, dataset.kinds))
            raise DataError(f"{dataset.name}: `along` must be a kind of units ({kinds}) or {dataset.points!r}; got {along!r}.")
        groups, what = np.arange(dataset.sizes[along]), f"{along}s"
    names = np.array(list(dict.fromkeys(groups.tolist())), dtype=groups.dtype)
    n_held_out = round(fraction * len(names)) if 0 < fraction < 1 else 0
    held_out_groups = names[rng.permutation(len(names))[:n_held_out]]
    chosen = (
        _points_of(dataset, along, held_out_groups) if along not in (None, dataset.points) else np.isin(groups, held_out_groups)
    )
    if not 0 < n_held_out < len(names) or chosen.all() or not chosen.any():
        raise DataError(f"{dataset.name}: holding out {fraction} of {len(names)} {what} leaves one part empty.")
    raw = dataset.raw()
    training = raw.subset(~chosen)
    if dataset.transform is not None:
        training = training.standardize(ddof=dataset.transform.ddof, drop_constant=bool(dataset.dropped))
    held_out = training.align_features(raw.subset(chosen))
    return training, held_out.transformed(training.transform)


def _points_of(dataset: Any, kind: str | None, units: np.ndarray) -> np.ndarray:
    """Mask `(point,)` of the points that refer to any of these units of a kind."""
    return np.any([np.isin(one.values, units) for one in dataset.index.values() if one.kind == kind], axis=0)
