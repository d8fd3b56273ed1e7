"""Densities of points that were not in the fit, and imputation of missing entries."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch
import xarray as xr

from latentlab.data.dataset import Dataset
from latentlab.errors import ModelError
from latentlab.inference.arrays import parameter_tensors, tensors
from latentlab.inference.density import Density
from latentlab.inference.encoder import encoder_bound, is_amortised
from latentlab.models.base import NOTHING, LatentModel
from latentlab.results.assemble import per_draw, select
from latentlab.seeds import Seeds, isolated


def classes_of(model: LatentModel, dataset: Dataset) -> np.ndarray | None:
    """Labels of the columns of `labels` in a fit to this dataset; None if the model does not use labels or the data have none."""
    if not model.takes("labels") or dataset.labels is None:
        return None
    return np.unique(dataset.labels) if model.classes is None else model.classes


def tensors_of_new(model: LatentModel, dataset: Dataset, classes: np.ndarray | None = None) -> dict[str, Any]:
    """Tensors of points that were not in the fit, after a check of their values.

    Raises:
        DataError: Values are invalid for the model; names column, unit and value.
    """
    model.check_new(dataset)
    given = tensors(model, dataset, classes)
    return {**given, "row": None} if "row" in given else given


def tensors_of_fit(model: LatentModel, dataset: Dataset, data: xr.DataTree) -> dict[str, Any]:
    """Tensors of the units in a result; the sample of a table on disk has the units' numbers in the whole table."""
    given = tensors(model, dataset)
    if "row" in given and "n_units_fitted" in data.attrs:
        given["row"] = torch.tensor(np.asarray(dataset.units, dtype=np.int64))
    return given


def density_of_new(
    model: LatentModel, dataset: Dataset, parameters: Mapping[str, np.ndarray] = NOTHING, classes: np.ndarray | None = None
) -> Density:
    """Density of points that were not in the fit, with positions marginalised; if an encoder gives them, they are sites.

    Raises:
        DataError: Values are invalid for the model; names column, unit and value.
        ModelError: The model has a site for each unit that it does not marginalise.
    """
    given = tensors_of_new(model, dataset, classes)
    density = Density(model.marginal(), given, dataset.array_dims, parameter_tensors(parameters))
    if density.point_sites and "bound" not in model.offers and not ("latents" in model.offers and is_amortised(density)):
        raise ModelError(
            f"held-out units: {model.name!r} does not marginalise the site {density.point_sites[0]!r} of each unit, "
            "which is unknown for new units."
        )
    return density


def log_likelihood_of_new(
    model: LatentModel,
    dataset: Dataset,
    sites: Mapping[str, np.ndarray],
    parameters: Mapping[str, np.ndarray],
    classes: np.ndarray | None,
    n_samples: int,
) -> tuple[np.ndarray, str]:
    """log p(point | draw) of points that were not in the fit, `(chain, draw, point)`, and its name: `log_likelihood` or `bound`.

    Raises:
        DataError: Values are invalid for the model; names column, unit and value.
        ModelError: The model has a site for each unit that it does not marginalise.
    """
    if "bound" in model.offers:
        arrays, fixed = tensors_of_new(model, dataset, classes), parameter_tensors(parameters)
        with torch.no_grad():
            return model.with_parameters(fixed).bound(arrays, n_samples, **fixed).numpy()[None, None], "bound"
    density = density_of_new(model, dataset, parameters, classes)
    if density.point_sites:
        return encoder_bound(density, n_samples), "bound"
    return per_draw(density.log_likelihood, select(sites, [s.name for s in density.sites]), (1, 1)), "log_likelihood"


def impute(
    model: LatentModel,
    dataset: Dataset,
    values: Mapping[str, np.ndarray],
    seeds: Seeds,
    where: np.ndarray,
    parameters: Mapping[str, np.ndarray] = NOTHING,
) -> np.ndarray:
    """Draw the missing entries, once for each draw of all sites, on the scale of the fit: `(chain, draw, entry)`.

    Args:
        model: A model with `imputation`.
        dataset: The fitted data.
        values: Draws of all sites, positions included, `(chain, draw, *site)`.
        seeds: Seeds of the draws.
        where: Indices of the entries in the observed array, `(entry, axis)`.
        parameters: Values of the model's parameters.

    Raises:
        ModelError: The model has no `imputation`.
    """
    if "imputation" not in model.offers:
        raise ModelError(f"{model.name!r} cannot impute missing entries: it has no method `imputation`.")
    given, index = tensors(model, dataset), tuple(torch.from_numpy(where.T))
    fixed = parameter_tensors(parameters)

    bound = model.with_parameters(fixed)

    def one(sites: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return bound.imputation(given, **fixed, **sites).sample()[index]

    with isolated(seeds):
        return per_draw(one, values)


def summed(terms: pd.DataFrame, number: str) -> dict[str, float]:
    """Held-out score of the terms in the last column, with its standard error and the number of terms."""
    each = terms.iloc[:, -1].to_numpy()
    se = float(np.sqrt(len(each)) * each.std(ddof=1)) if len(each) > 1 else float("nan")
    return {str(terms.columns[-1]): float(each.sum()), "se": se, number: float(len(each))}
