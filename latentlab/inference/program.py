"""One trace of a Pyro program: its sites, their log densities, and the checks of both."""

import contextlib
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions import Unit
from pyro.poutine.util import site_is_subsample

from latentlab.errors import ModelError
from latentlab.models.base import Arrays, LatentModel, Position
from latentlab.models.fixed import Fixed
from latentlab.models.networks import start_values, weights
from latentlab.seeds import double, forked, reseed
from latentlab.symmetry.group import NEXT, Group

Tensors = Mapping[str, torch.Tensor]


class Released(poutine.messenger.Messenger):
    """Pyro handler that samples the named observed sites; Pyro's `uncondition` would sample deterministic sites too."""

    def __init__(self, names: Collection[str]) -> None:
        super().__init__()
        self.names = names

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.names:
            msg["is_observed"], msg["value"], msg["done"] = False, None, False


@contextlib.contextmanager
def unchecked() -> Iterator[None]:
    """Turn off Pyro's validation, which branches on values, and make float64 the default dtype within a `with` block."""
    with pyro.validation_enabled(False), double():
        yield


def site_log_prob(site: Mapping[str, Any]) -> torch.Tensor:
    term = site["fn"].log_prob(site["value"])
    if site["mask"] is not None:
        term = torch.where(torch.as_tensor(site["mask"]), term, torch.zeros_like(term))
    return term * site["scale"]


def site_log_prob_sum(site: Mapping[str, Any]) -> torch.Tensor:
    """Return the summed log density of a site, by the distribution's method `log_prob_sum` if it has one."""
    if site["is_observed"] and site["mask"] is None and hasattr(site["fn"], "log_prob_sum"):
        return site["fn"].log_prob_sum(site["value"]) * site["scale"]
    return site_log_prob(site).sum()


def points_of(dims: Mapping[str, tuple[str, ...]]) -> str:
    """Return the dim of the points, given the dims of the arrays, the observed array first.

    It is `unit` if the observed array has that dim, or if `dims` is empty; otherwise the first dim of the observed array.
    """
    observed = next(iter(dims.values()), ("unit",))
    return "unit" if "unit" in observed else observed[0]


def per_point(site: Mapping[str, Any], points: str) -> torch.Tensor:
    """Sum a site's log density over all dims except the plate of the points."""
    term = site_log_prob(site)
    plate = next(frame.dim for frame in site["cond_indep_stack"] if frame.name == points) % term.dim()
    others = [d for d in range(term.dim()) if d != plate]
    return term.sum(others) if others else term


def is_deterministic(site: Mapping[str, Any]) -> bool:
    return bool(site["infer"].get("_deterministic", False))


def has_density(site: Any) -> bool:
    """Whether a site is random, latent or observed: no subsample and no deterministic site."""
    return site["type"] == "sample" and not site_is_subsample(site) and not is_deterministic(site)


def is_factor(site: Any) -> bool:
    """Whether a site is a term of the log density without data (`pyro.factor`)."""
    return site["type"] == "sample" and isinstance(getattr(site["fn"], "base_dist", site["fn"]), Unit)


def is_observed_site(site: Any) -> bool:
    return has_density(site) and site["is_observed"] and not is_factor(site)


def is_latent(site: Any) -> bool:
    return site["type"] == "sample" and not site["is_observed"] and not site_is_subsample(site)


def observed_dims(name: str, site: Any, points: str) -> tuple[str, ...]:
    """Return dims for an observed site that is not an array: the dim of the points if in their plate, then numbered dims."""
    shape = tuple(site["value"].shape)
    leading = (points,) if shape and in_plate(site, points) else ()
    return (*leading, *(f"{name}_dim_{i}" for i in range(len(shape) - len(leading))))


def in_plate(site: Mapping[str, Any], name: str) -> bool:
    return any(frame.name == name for frame in site["cond_indep_stack"])


def checked_trace(model: LatentModel, arrays: Arrays, parameters: Tensors, points: str) -> Any:
    """Trace the program on its data and check the shapes of all sites; Pyro's parameter store is left unchanged.

    Parameters of modules without a value have their present values.

    Raises:
        ModelError: The program does not run on the data, or a site has a wrong shape or is not declared.
    """
    parameters = {**start_values(model), **parameters}
    model = model.with_parameters(parameters)
    try:
        with forked(), pyro.get_param_store().scope(), pyro.validation_enabled(True):
            reseed(0)
            with double(), Fixed(parameters):
                trace = poutine.trace(model.model).get_trace(**arrays)
                for name, site in trace.nodes.items():
                    if has_density(site):
                        _check_site(name, site)
    except ModelError:
        raise
    except Exception as error:  # a program can raise any exception
        reason = _outside(model, arrays, parameters) or f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise ModelError(f"the program of the model {model.name!r} fails on these data: {reason}") from error
    _check_dims(model, trace, points)
    return trace


def _outside(model: LatentModel, arrays: Arrays, parameters: Tensors) -> str | None:
    """Describe the first observed value outside the support of its distribution.

    None if there is no such value, or if the program fails even without validation.
    """
    try:
        with forked(), pyro.get_param_store().scope(), pyro.validation_enabled(False), double(), Fixed(parameters):
            reseed(0)
            trace = poutine.trace(model.model).get_trace(**arrays)
        for name, site in trace.nodes.items():
            if is_observed_site(site):
                value: Any = site["value"]
                fn: Any = site["fn"]
                while hasattr(fn, "base_dist"):
                    fn = fn.base_dist
                outside = ~fn.support.check(value)  # of rows, if the distribution is multivariate
                if outside.any():
                    where = tuple(torch.nonzero(outside)[0].tolist())
                    text = "[" + ", ".join(f"{v:.6g}" for v in value[where].reshape(-1)) + "]"
                    return (
                        f"{name!r} is {text if outside.dim() < value.dim() else text[1:-1]} at position {where}, outside of the "
                        f"support of its distribution, {type(fn).__name__} ({fn.support})."
                    )
    except Exception:  # the caller then reports the original error
        return None
    return None


def _check_site(name: str, site: Mapping[str, Any]) -> None:
    frames = [f for f in site["cond_indep_stack"] if f.vectorized]
    expected = [1] * max((-f.dim for f in frames), default=0)
    for frame in frames:
        expected[frame.dim] = frame.size
    shape = list(site["fn"].log_prob(site["value"]).shape)
    while shape and shape[0] == 1 and len(shape) > len(expected):
        shape.pop(0)
    if shape != expected:
        raise ModelError(
            f"the log density of site {name!r} must have the shape {tuple(expected)} of its plates "
            f"({', '.join(f.name for f in frames) or 'none'}); got {tuple(shape)} for a value of shape "
            f"{tuple(site['value'].shape)}. Look for data of shape (N, 1) in a plate of N, or a missing `.to_event`."
        )
    if not site["is_observed"] and site["fn"].support.is_discrete:
        raise ModelError(f"site {name!r} is latent and discrete; marginalise it in the program.")


def _check_dims(model: LatentModel, trace: Any, points: str) -> None:
    check_declaration(model)
    if not any(is_observed_site(site) and in_plate(site, points) for site in trace.nodes.values()):
        raise ModelError(f"{model.name!r} has no observed site in a plate named {points!r}, so the {points}s have no likelihood.")
    sizes: dict[str, tuple[int, str]] = {}
    of_modules = weights(model)
    for name, site in trace.nodes.items():
        parameter = site["type"] == "param"
        if not parameter and (site["type"] != "sample" or site_is_subsample(site) or is_observed_site(site) or is_factor(site)):
            continue
        if parameter and name in of_modules and name not in model.parameters:
            continue
        kind, declared_dims = ("parameter", model.parameters) if parameter else ("site", model.dims)
        if name not in declared_dims:
            where = "parameters" if parameter else "dims"
            raise ModelError(
                f"{kind} {name!r} is not declared in `{where}` of {model.name!r}; declared: {', '.join(declared_dims) or 'none'}."
            )
        shape, dims = tuple(site["value"].shape), declared_dims[name]
        if len(shape) != len(dims):
            raise ModelError(f"{kind} {name!r} must have an axis for each of its dims {dims}; got shape {shape}.")
        for dim, size in zip(dims, shape, strict=True):
            if sizes.setdefault(dim, (size, name))[0] != size:
                raise ModelError(f"dim {dim!r} has size {sizes[dim][0]} in {sizes[dim][1]!r} and {size} in {name!r}.")
    declared = set(model.dims) - set(trace.nodes)
    missing = declared - ({model.position.site} if "latents" in model.offers else set())
    if missing:
        raise ModelError(f"{model.name!r} declares dims of {', '.join(sorted(missing))}; its program has no such site.")


def check_declaration(model: LatentModel) -> None:
    """Raise an error if attributes of a model are missing, of a wrong type, or inconsistent with each other.

    Raises:
        ModelError: Names the attribute, what it must be, and its value.
    """
    for attribute, kind, what in (
        ("dims", Mapping, 'a dict of site and dims, such as {"z": ("unit", "latent")}'),
        ("positions", tuple | list, 'a tuple of `Position`s, such as (Position("z"),)'),
        ("symmetry", Group, "a group, such as Identity()"),
        ("methods", tuple | list, 'a tuple of names, such as ("nuts", "svi")'),
    ):
        value = getattr(model, attribute, None)
        if not isinstance(value, kind):
            raise ModelError(f"{model.name!r}: `{attribute}` must be {what}; got {'nothing' if value is None else repr(value)}.")
    for site, dims in model.dims.items():
        if not isinstance(dims, tuple | list) or not all(isinstance(dim, str) for dim in dims):
            raise ModelError(f"{model.name!r}: the dims of {site!r} must be a tuple of names, such as ('unit',); got {dims!r}.")
    group = model.exchanges
    if not model.positions:
        raise ModelError(f'{model.name!r}: `positions` must have at least one `Position`, such as Position("z"); got none.')
    invalid = next((position for position in model.positions if not isinstance(position, Position)), None)
    if invalid is not None:
        raise ModelError(f'{model.name!r}: `position` must be a `Position`, such as Position("z"); got {invalid!r}.')
    for position in model.positions:
        if position.site not in model.dims:
            sites = ", ".join(model.dims)
            raise ModelError(f"{model.name!r}: the position {position.site!r} must be one of the sites in `dims`: {sites}.")
    kinds = [next(iter(model.dims[position.site]), "") for position in model.positions]
    if len(set(kinds)) < len(kinds):
        raise ModelError(f"{model.name!r}: each of `positions` must have a different kind of units; got {', '.join(kinds)}.")
    position = model.position
    if group.is_trivial():
        return
    other = next((kind for kind in kinds if kind and kind not in group.units), None)
    if other is not None:
        text = ", ".join(map(repr, kinds)) + ("," if len(kinds) == 1 else "")
        raise ModelError(
            f"{model.name!r}: `symmetry` must name the kinds of units that have positions; declare "
            f"{type(group).__name__}({group.dim!r}, units=({text}))."
        )
    along = [site for site, dims in model.dims.items() if group.dim in [str(dim).removeprefix(NEXT) for dim in dims]]
    if not along or (position.kind != "discrete" and position.site not in along):
        lacks = f"the position {position.site!r} does not have" if along else "no site has"
        raise ModelError(
            f"{model.name!r}: {type(group).__name__}({group.dim!r}) acts on the dim {group.dim!r}, which {lacks}; "
            "name another dim, or declare Identity()."
        )
