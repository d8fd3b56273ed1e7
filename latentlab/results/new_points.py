"""Points that were not in the fit, and entries that were missing in it."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from latentlab.data.dataset import Dataset
from latentlab.errors import ModelError
from latentlab.inference.arrays import parameter_tensors, tensors
from latentlab.inference.density import Density
from latentlab.models.base import NOTHING, LatentModel
from latentlab.results.assemble import lifted
from latentlab.seeds import Seeds, isolated


def classes_of(model: LatentModel, dataset: Dataset) -> np.ndarray | None:
    """The labels that the columns of `labels` stand for in a fit to this dataset; None where the model takes none."""
    if not model.takes("labels") or dataset.labels is None:
        return None
    return np.unique(dataset.labels) if model.classes is None else model.classes


def tensors_of_new(model: LatentModel, dataset: Dataset, classes: np.ndarray | None = None) -> dict[str, Any]:
    """The arrays of units that were not in the fit, as `tensors` makes them.

    Raises:
        DataError: Values that the model cannot take; names column, unit and value.
    """
    model.check_new(dataset)
    return tensors(model, dataset, classes)


def density_of_new(
    model: LatentModel, dataset: Dataset, parameters: Mapping[str, np.ndarray] = NOTHING, classes: np.ndarray | None = None
) -> Density:
    """The density of units that were not in the fit, positions integrated out.

    Raises:
        DataError: Values that the model cannot take; names column, unit and value.
        ModelError: The model has a position for each unit that it does not integrate out.
    """
    given = tensors_of_new(model, dataset, classes)
    density = Density(model.marginal(), given, dataset.array_dims, parameter_tensors(parameters))
    if density.point_sites and "bound" not in model.offers:
        raise ModelError(
            f"held-out units: {model.name!r} has a parameter for each unit ({density.point_sites[0]!r}): none for new units."
        )
    return density


def impute(
    model: LatentModel,
    dataset: Dataset,
    values: Mapping[str, np.ndarray],
    seeds: Seeds,
    where: np.ndarray,
    parameters: Mapping[str, np.ndarray] = NOTHING,
) -> np.ndarray:
    """A draw of missing entries for each draw of all sites, in the scale of the fit: `(chain, draw, entry)`.

    Args:
        model: A model that says what missing entries were.
        dataset: The data that were fitted.
        values: Draws of all sites, positions included, `(chain, draw, *site)`.
        seeds: For the draws.
        where: Indices of the entries in the observed array, `(entry, axis)`.
        parameters: The model's.

    Raises:
        ModelError: The model does not say it.
    """
    if "imputation" not in model.offers:
        raise ModelError(f"{model.name!r} does not say what missing entries were: it has no `imputation`.")
    given, index = tensors(model, dataset), tuple(torch.from_numpy(where.T))
    fixed = parameter_tensors(parameters)

    def one(sites: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return model.imputation(given, **fixed, **sites).sample()[index]

    with isolated(seeds):
        return lifted(one, values)
