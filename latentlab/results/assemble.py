"""Assembly of a result from draws: positions, log likelihood, predictive draws, log prior, aligned sites."""

import json
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import xarray as xr

from latentlab.data.dataset import Dataset
from latentlab.data.memory import MEMORY, Place, n_not_finite, place_of, release, thinned
from latentlab.data.series import boundaries
from latentlab.errors import InferenceError
from latentlab.inference.arrays import parameter_tensors
from latentlab.inference.density import Density
from latentlab.inference.draws import Draws, Method, Problem
from latentlab.inference.encoder import activity, is_amortised, log_weights
from latentlab.inference.invariance import check_symmetry
from latentlab.inference.lift import draws_at_once, observed_size, over_draws
from latentlab.models.base import NOTHING, Caution, LatentModel
from latentlab.results.tree import GUIDE_PARAMETERS, LEFT_OUT, build
from latentlab.seeds import double
from latentlab.symmetry import consensus
from latentlab.symmetry.group import Aligned, Group
from latentlab.symmetry.groups import Orthogonal, SignedPermutation
from latentlab.symmetry.labels import indicators

N_PREDICTIVE = 100
"""Number of prior and posterior predictive draws that are kept; each is a whole data set."""
MOST_NUMBERS = 2**24
"""Largest number of label indicators used for alignment (128 MB); of more units, an evenly spaced subset is used."""


def outline(problem: Problem, dataset: Dataset) -> xr.DataTree:
    """Build a result with one placeholder draw, to detect before the fit names and coordinates that cannot be stored.

    Raises:
        ModelError: A coordinate or a name cannot be stored; the message names it.
    """
    density = problem.density
    sites = density.constrain(torch.zeros(density.size, dtype=torch.float64))
    return build(
        {"posterior": {name: value[None, None].numpy() for name, value in sites.items()}, **_data_groups(density, dataset)},
        dims={**density.observed, **{name: tuple(dims) for name, dims in problem.model.dims.items()}, **dataset.dims},
        coords=_coords(dataset),
        along=_along(dataset),
    )


def _coords(dataset: Dataset) -> dict[str, np.ndarray]:
    """Labels along the dims of a result."""
    dims = {dim for named in (*dataset.dims.values(), *dataset.truth_dims.values()) for dim in named}
    return {**{dim: names for dim, names in dataset.coords.items() if dim in dims}, **(dataset.kinds if dataset.index else {})}


def _along(dataset: Dataset) -> dict[str, dict[str, np.ndarray]]:
    """Further coordinates along the points: names of their units, and coordinates such as `time`."""
    dims = {dim for named in (*dataset.dims.values(), *dataset.truth_dims.values()) for dim in named}
    return {dataset.points: {**dataset.point_names(), **{n: v for n, v in dataset.coords.items() if n not in dims}}}


def _data_groups(density: Density, dataset: Dataset) -> dict[str, dict[str, np.ndarray]]:
    """Groups `observed_data` and `constant_data`, including observed sites that are not arrays of the dataset."""
    return {
        "observed_data": {
            dataset.observed: dataset.x,
            **{name: value for name, value in density.observations.items() if name not in dataset.arrays},
        },
        "constant_data": {name: a for name, a in dataset.arrays.items() if name != dataset.observed},
    }


def draw_positions(
    model: LatentModel,
    arrays: Any,
    values: Mapping[str, np.ndarray],
    parameters: Mapping[str, np.ndarray] = NOTHING,
    shape: tuple[int, ...] = (1, 1),
    *,
    equal: bool = False,
    place: Place = MEMORY,
) -> np.ndarray:
    """Draw all positions from their conditional, once for each draw of the other sites: `(chain, draw, unit, ...)`.

    Without other sites, or if their draws are all `equal`, `shape` gives the numbers of chains and draws.
    """
    fixed = parameter_tensors(parameters)
    if equal or not values:
        fixed |= parameter_tensors({name: array[0, 0] for name, array in values.items()})
        n_chains, n_draws = shape
        with torch.no_grad():
            conditional = model.with_parameters(fixed).latents(arrays, **fixed)
            at_once = draws_at_once(n_chains * (conditional.batch_shape + conditional.event_shape).numel())
            positions: np.ndarray | None = None
            for begin in range(0, n_draws, at_once):
                part = conditional.sample(torch.Size((n_chains, min(at_once, n_draws - begin)))).numpy()
                if positions is None:
                    positions = place.empty((n_chains, n_draws, *part.shape[2:]), part.dtype)
                positions[:, begin : begin + at_once] = part
                release()
            return np.empty((n_chains, 0)) if positions is None else positions

    bound = model.with_parameters(fixed)

    def one(sites: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return bound.latents(arrays, **fixed, **sites).sample()

    return per_draw(one, values, place=place, numbers=observed_size(arrays))


def thinned_sites(sites: Mapping[str, np.ndarray], n_draws: int) -> dict[str, np.ndarray]:
    """Select the same draws of every site, as `thinned` does."""
    return {name: thinned(array, n_draws) for name, array in sites.items()}


def assemble(  # long: builds each group of the result in turn
    problem: Problem, dataset: Dataset, method: Method, draws: Draws, seed: int
) -> xr.DataTree:
    place = problem.place
    model, density = problem.model, problem.density.at(parameter_tensors(draws.parameters))
    site, point = model.position.site, method.kind == "point"
    values = dict(draws.values)
    if density.deterministic:
        names = [s.name for s in density.sites]
        values.update(per_draw(density.deterministics, select(values, names), equal=point))
    if site not in values or (point and "latents" in model.offers):
        others = {name: array for name, array in values.items() if name != site}
        values[site] = draw_positions(
            model, problem.arrays, others, draws.parameters, (1, method.n_draws), equal=point, place=place
        )
    for kind, group in (("site", values), ("parameter", draws.parameters)):
        for name, array in group.items():
            if n_bad := n_not_finite(array):
                raise InferenceError(f"{kind} {name!r}: {n_bad} of {array.size} values are not finite.")
    of_program = {n: a for n, a in draws.parameters.items() if n in model.parameters or n in density.own_parameters}
    of_guide = {name: array for name, array in draws.parameters.items() if name not in of_program}
    encodes = bool(draws.parameters) and "latents" in model.offers and is_amortised(density)
    marginal = model.marginal()
    likelihood = density if marginal is model else Density(marginal, problem.arrays, density.dims, density.parameters)
    aligned = align(model, values, point=one_orientation(method, of_program))
    acted = [n for n in values if n == site or model.exchanges.dim in model.dims[n]]
    groups: dict[str, dict[str, np.ndarray]] = {
        "posterior": values,
        "latents": {name: aligned.values[name] for name in acted},
        "log_likelihood": {} if "bound" in model.offers else _pointwise(likelihood, values, equal=point, place=place),
        "log_weights": {"log_weight": log_weights(density, values[site], place)} if encodes and method.kind == "vi" else {},
        "parameters": of_program,
        GUIDE_PARAMETERS: of_guide,
        "leave_one_out": _left_out(density, values, equal=point, place=place),
        "log_prior": per_draw(density.log_prior, select(values, [s.name for s in density.sites]), equal=point),
        "sample_stats": dict(draws.stats),
        **_predictives(density, values, place),
        **_data_groups(density, dataset),
        "optimization": dict(draws.optimization),
        "restarts": dict(draws.restarts),
    }
    attrs = {
        "model": model.name,
        "method": method.name,
        "inference": method.kind,
        "seed": seed,
        "dataset": dataset.name,
        "point_estimate": int(point),
        "hyperparameters": ", ".join(model.hyperparameters()),
        "cautions": json.dumps([*model.cautions(dataset), *_untrained(draws)]),
        "deterministic": ", ".join(density.deterministic),
        "conditional_log_likelihood": int(bool(likelihood.point_sites)),
        **{name: value for name, value in draws.attrs.items() if name != "unused"},
    }
    attrs |= check_symmetry(model, density, values, draws.parameters, problem.seeds.child("symmetry"))
    if dataset.index:
        index = json.dumps({name: one.kind for name, one in dataset.index.items()})
        attrs |= {"points": dataset.points, "units": ", ".join(dataset.kinds), "index": index}
    if problem.stored is not None:
        attrs["n_units_fitted"] = density.n_points
    if encodes:
        attrs["n_active"] = int(activity(model, problem.arrays, density.parameters)["active"].sum())
    left_out = next((array.shape[-1] for array in groups["leave_one_out"].values()), 0)
    several = {} if left_out in (0, dataset.n_points) else {"left_out": _sequence_names(dataset)}
    return build(
        {name: group for name, group in groups.items() if group},
        dims={
            **density.observed,
            **{name: numbered(name, array.ndim) for name, array in draws.parameters.items()},
            **{name: tuple(dims) for name, dims in {**model.dims, **model.parameters}.items()},
            **dataset.dims,
            **dict.fromkeys(("log_likelihood", "log_weight"), (dataset.points,)),
            LEFT_OUT: ("left_out",) if several else (dataset.points,),
        },
        coords={**_coords(dataset), **several},
        along=_along(dataset),
        attrs=attrs,
    )


def _untrained(draws: Draws) -> list[Caution]:
    """Warning on parameters that were not changed by the fit, since the objective does not depend on them."""
    names = str(draws.attrs.get("unused", ""))
    text = f"the objective does not depend on {names}, which kept its start"
    return [Caution("parameters", text, len(names.split(", ")), "0")] if names else []


def numbered(name: str, n_dims: int) -> tuple[str, ...]:
    """Return the dims of a parameter of a module: `encoder.0.weight_dim_0` and so on."""
    return tuple(f"{name}_dim_{i}" for i in range(n_dims))


def _pointwise(likelihood: Density, values: Mapping[str, np.ndarray], *, equal: bool, place: Place) -> dict[str, np.ndarray]:
    """Pointwise log likelihood under the density `likelihood`, `(chain, draw, point)`."""
    sites, shape = select(values, [s.name for s in likelihood.sites]), next(iter(values.values())).shape[:2]
    options: Any = {"equal": equal, "place": place, "numbers": observed_size(likelihood.arrays)}
    return {"log_likelihood": per_draw(likelihood.log_likelihood, sites, shape, **options)}


def _left_out(density: Density, values: Mapping[str, np.ndarray], *, equal: bool, place: Place) -> dict[str, np.ndarray]:
    """log p(unit or sequence | all others, draw); empty unless units depend on each other given the sites.

    Positions that the program marginalises are not given.
    """
    model, arrays = density.model, density.arrays
    if "leave_one_out" not in model.offers:
        return {}
    is_given = {model.position.site} <= {site.name for site in density.sites}
    others = {name: array for name, array in values.items() if is_given or name != model.position.site}
    options: Any = {"equal": equal, "place": place, "numbers": observed_size(arrays)}
    return {LEFT_OUT: per_draw(lambda sites: model.leave_one_out(arrays, **sites), others, **options)}


def _sequence_names(dataset: Dataset) -> np.ndarray:
    first = np.unique(boundaries(dataset), return_index=True)[1]
    return np.asarray(dataset.coords["sequence"])[first]


def _predictives(density: Density, values: Mapping[str, np.ndarray], place: Place) -> dict[str, dict[str, np.ndarray]]:
    """Draws from the prior predictive, and from the posterior predictive of the same units given their positions.

    Positions that the program marginalises are passed to `LatentModel.replicated`; without it, new positions are drawn.
    """
    model, names = density.model, [s.name for s in density.sites]
    replicates = model.position.site not in names and model.position.site in values and "replicated" in model.offers
    thinned_draws = thinned_sites(values if replicates else select(values, names), N_PREDICTIVE)
    shape = next(iter(thinned_draws.values())).shape[:2]

    def replicated(sites: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        with double():
            return dict.fromkeys(density.observed, density.bound.replicated(density.arrays, **density.parameters, **sites))

    try:
        numbers = observed_size(density.arrays)
        posterior_draws = per_draw(replicated if replicates else density.predict, thinned_draws, place=place, numbers=numbers)
        prior: dict[str, np.ndarray] = {}
        for i in range(shape[0] * shape[1]):
            for name, row in density.predict(density.prior()).items():
                if name not in prior:
                    prior[name] = place.empty((*shape, *row.shape), row.numpy().dtype)
                prior[name][divmod(i, shape[1])] = row.numpy()
    except NotImplementedError as error:
        warnings.warn(f"predictive draws are left out: {error}", stacklevel=2)
        return {}
    return {"posterior_predictive": posterior_draws, "prior_predictive": prior}


def select(values: Mapping[str, np.ndarray], names: list[str]) -> dict[str, np.ndarray]:
    return {name: values[name] for name in names}


def per_draw(
    function: Any,
    values: Mapping[str, np.ndarray],
    shape: tuple[int, ...] = (1, 1),
    *,
    equal: bool = False,
    place: Place = MEMORY,
    numbers: int = 1,
) -> Any:
    """Evaluate a function of one draw at every `(chain, draw)`.

    Without values the function is constant, and its result is repeated over the leading dims, of shape `shape`.
    If all draws are `equal`, as at a point estimate, it is evaluated once.

    Args:
        function: Values of one draw -> tensor or dict of tensors.
        values: Site -> `(chain, draw, *site)`.
        shape: Numbers of chains and draws if there are no values.
        equal: Whether all draws are equal.
        place: Place of the results.
        numbers: Size of the arrays that the function allocates for a draw; with more, fewer draws are evaluated at once.
    """

    def repeated(array: np.ndarray) -> np.ndarray:
        everywhere = place.empty((*shape, *array.shape), array.dtype)
        everywhere[...] = array
        return everywhere

    if not values:
        return repeated(function({}).numpy())
    shape = next(iter(values.values())).shape[:2]
    flat = {name: array.reshape(-1, *array.shape[2:])[: 1 if equal else None] for name, array in values.items()}
    found = over_draws(function, flat, block=draws_at_once(numbers), place=MEMORY if equal else place)

    def unflattened(array: np.ndarray) -> np.ndarray:
        return repeated(array[0]) if equal else array.reshape(*shape, *array.shape[1:])

    return {name: unflattened(array) for name, array in found.items()} if isinstance(found, dict) else unflattened(found)


def one_orientation(method: Method, parameters: Mapping[str, Any]) -> bool:
    """Whether all draws have the same coordinate system, because sites or these parameters of the program are point estimates."""
    return method.kind == "point" or bool(parameters)


def align(model: LatentModel, values: Mapping[str, np.ndarray], *, point: bool = False) -> Aligned:
    """Align draws modulo the model's symmetry, by the position site; labels by their indicators `(unit, label)`.

    At a point estimate, all draws are transformed by the same group element. Separate elements would add the noise of the
    positions to the constant sites.
    """
    group, site = model.exchanges, model.position.site
    dims = {name: tuple(model.dims[name]) for name in values}
    on, on_dims = np.asarray(values[site]), dims[site]
    others = [position.site for position in model.positions[1:] if dims[position.site][1:] == on_dims[1:] == (group.dim,)]
    if others:
        joint = [on, *(np.asarray(values[other]) for other in others)]
        n_units = sum(one.shape[2] for one in joint)
        on = np.concatenate(joint, axis=2, out=place_of(*joint).empty((*on.shape[:2], n_units, *on.shape[3:]), on.dtype))
    if model.is_discrete and not group.is_trivial():
        n_units = max(1, MOST_NUMBERS // (on[..., 0].size * model.n_labels()))
        units = np.unique(np.linspace(0, on.shape[-1] - 1, min(n_units, on.shape[-1])).astype(int))
        on, on_dims = indicators(on[..., units], model.n_labels()), (*on_dims, group.dim)
    if point:
        on = on.mean(axis=(0, 1), keepdims=True)
    found = group.align({site: on}, {site: on_dims}, on=site)
    elements = np.broadcast_to(found.elements, (*values[site].shape[:2], *found.elements.shape[2:]))
    mirror = _mirror(group, elements, values, dims)
    if mirror is None:
        return Aligned(model.act(elements, values), elements, found.reference)
    elements = group.compose(elements, mirror)
    return Aligned(group.act(elements, values, dims), elements, found.reference @ mirror)


def _mirror(
    group: Group, elements: np.ndarray, values: Mapping[str, np.ndarray], dims: Mapping[str, tuple[str, ...]]
) -> np.ndarray | None:
    """Return the element that makes the largest mean loading of each axis positive; None without sign changes or loadings."""
    candidates = (name for name, d in dims.items() if len(d) == 2 and d[1] == group.dim and d[0] not in group.units)
    loadings = next(candidates, None)
    if loadings is None or SignedPermutation(group.dim) not in group or not isinstance(group, Orthogonal | SignedPermutation):
        return None
    aligned = group.act(elements, {loadings: values[loadings]}, dims)[loadings]
    return np.diag(consensus.signs(aligned.mean(axis=(0, 1))))
