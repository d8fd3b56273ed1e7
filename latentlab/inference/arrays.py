"""Conversion of data and parameters to a program's tensors."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from latentlab.data.dataset import Dataset
from latentlab.data.series import boundaries, elapsed
from latentlab.errors import DataError, ModelError
from latentlab.models.base import LatentModel


def tensors(model: LatentModel, dataset: Dataset, classes: np.ndarray | None = None) -> dict[str, Any]:
    """Return the dataset as keyword arguments of `model.model`: float64 tensors, with 0 for missing entries.

    Indices of points are integer tensors. Further arguments are added if the program has them: `n_KIND`, the number of units of
    a kind; `row`, the number of each unit; `mask`; `sequence`, the number of each unit's sequence; `time`, its time in the
    sequence; and `labels`, one-hot.

    Args:
        model: The model.
        dataset: The data.
        classes: Label of each column of `labels`; if None, `model.classes`, or else the labels of the dataset.

    Raises:
        DataError: Entries are missing and the model has no `mask` argument; names columns and count. Or the model takes labels,
            and the data have none, or one that is not in `classes`.
    """
    arrays: dict[str, Any] = {name: torch.tensor(np.nan_to_num(a, nan=0.0)) for name, a in dataset.arrays.items()}
    arrays |= {name: torch.tensor(one.values) for name, one in dataset.index.items()}
    arrays |= {f"n_{kind}": len(names) for kind, names in dataset.kinds.items() if model.takes(f"n_{kind}")}
    if model.takes("row"):
        arrays["row"] = torch.arange(dataset.n_units)
    if model.takes("labels"):
        arrays["labels"] = torch.tensor(_one_hot(model, dataset, model.classes if classes is None else classes))
    if model.takes("sequence"):
        arrays["sequence"] = torch.tensor(boundaries(dataset))
    if model.takes("time"):
        arrays["time"] = torch.tensor(elapsed(dataset))
    if model.takes("mask"):
        arrays["mask"] = None if dataset.mask is None else torch.tensor(dataset.mask)
    elif dataset.mask is not None:
        missing = ~dataset.mask
        dims = dataset.dims[dataset.observed]
        where = ""
        if len(dims) == 2:
            names = np.asarray(dataset.coords.get(dims[1], np.arange(missing.shape[1])))
            where = f" in {', '.join(map(str, names[missing.any(0)][:5]))}"
        raise DataError(
            f"{dataset.name} has {int(missing.sum())} missing entries{where}; the model {model.name!r} does not allow missing "
            "entries (its `model` has no argument `mask`)."
        )
    return arrays


def parameter_tensors(parameters: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Return the parameters as float64 tensors by name."""
    return {name: float64_tensor(value) for name, value in parameters.items()}


def _one_hot(model: LatentModel, dataset: Dataset, classes: np.ndarray | None) -> np.ndarray:
    """Return the labels one-hot encoded, `(unit, label)`."""
    if dataset.labels is None:
        raise DataError(f"{dataset.name}: the model {model.name!r} needs a label for each unit; the data have no labels.")
    labels = np.unique(dataset.labels) if classes is None else np.asarray(classes)
    indicators = dataset.labels[:, None] == labels
    if not indicators.any(1).all():
        unknown = dataset.labels[~indicators.any(1)][0]
        raise DataError(
            f"{dataset.name}: the label of unit {dataset.units[~indicators.any(1)][0]} must be a label of the fit, "
            f"{', '.join(map(str, labels[:20]))}; got {str(unknown)!r}."
        )
    return indicators.astype(np.float64)


def float64_tensor(value: Any) -> torch.Tensor:
    """Convert a value to a float64 tensor; NumPy arrays are copied, since torch warns about read-only ones.

    Raises:
        ModelError: The value is not numeric.
    """
    if not isinstance(value, torch.Tensor) and np.asarray(value).dtype.kind not in "biuf":
        raise ModelError(f"the value of a site must be numeric; got {value!r:.60}.")
    return value.to(torch.float64) if isinstance(value, torch.Tensor) else torch.tensor(np.asarray(value), dtype=torch.float64)
