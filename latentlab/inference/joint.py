"""The log joint density of a model at given values."""

from collections.abc import Mapping
from typing import Any

import torch

from latentlab.data.dataset import Dataset
from latentlab.errors import ModelError, unknown
from latentlab.inference.arrays import float64_tensor, tensors
from latentlab.inference.density import Density
from latentlab.models.base import LatentModel
from latentlab.models.networks import check_complete, weights


def log_joint(model: LatentModel, dataset: Dataset, values: Mapping[str, Any]) -> float:
    r"""Compute $\log p(\text{values}, \text{data})$ on the constrained scale, without Jacobian, with all constants, in float64.

    If the model integrates its positions out and `values` has them, $\log p(z \mid x, \text{values})$ is added. The result is
    then the joint density with the positions, in either form of the model.

    Args:
        model: The model.
        dataset: The data.
        values: Site or parameter of the program -> value; deterministic sites may be left out.

    Raises:
        DataError: The data do not fit the model.
        ModelError: A site or parameter is missing, unknown or of another shape, or a value is outside of its support.
    """
    model.check(dataset)
    arrays, declared = tensors(model, dataset), {**model.parameters, **weights(model)}
    unknown_site = next((name for name in values if name not in model.dims and name not in declared), None)
    if unknown_site is not None:
        raise ModelError(unknown(f"site of {model.name!r}", unknown_site, {**model.dims, **declared}))
    parameters = {name: float64_tensor(value) for name, value in values.items() if name in declared}
    density = Density(model, arrays, dataset.array_dims, parameters)
    missing = sorted(set(density.own_parameters) - set(parameters))
    if missing:
        raise ModelError(f"parameter {missing[0]!r} has no value; got values of {', '.join(values) or 'no parameter'}.")
    u = density.unconstrain(values)
    for site in density.sites:
        if not bool(torch.isfinite(u[site.start : site.stop]).all()):
            raise ModelError(f"site {site.name!r} has a value that is not finite, or not in the interior of its support.")
    constrained = density.constrain(u)
    total = float(density.log_joint(constrained))
    position = model.position.site
    if position in values and "latents" in model.offers and position not in constrained:
        check_complete(model, parameters)
        others = {**constrained, **density.deterministics(constrained), **parameters}
        z, conditional = float64_tensor(values[position]), density.bound.latents(arrays, **others)
        shape = conditional.batch_shape + conditional.event_shape
        if z.shape != shape:
            raise ModelError(f"site {position!r} must have shape {tuple(shape)}; got {tuple(z.shape)}.")
        total += float(conditional.log_prob(z).sum())
    return total
