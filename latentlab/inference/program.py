"""A Pyro program run once: its sites, their densities, and what of them is refused."""

import contextlib
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.poutine.util import site_is_subsample

from latentlab.errors import ModelError
from latentlab.models.base import Arrays, Fixed, LatentModel
from latentlab.models.declaration import check_declaration
from latentlab.seeds import double, forked, reseed

Tensors = Mapping[str, torch.Tensor]


class Released(poutine.messenger.Messenger):
    """Draws the named sites although they were observed (Pyro's `uncondition` would draw deterministic ones too)."""

    def __init__(self, names: Collection[str]) -> None:
        super().__init__()
        self.names = names

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.names:
            msg["is_observed"], msg["value"], msg["done"] = False, None, False


@contextlib.contextmanager
def unchecked() -> Iterator[None]:
    """Densities without Pyro's checks of values, which branch on them, and with constants in float64."""
    with pyro.validation_enabled(False), double():
        yield


def site_log_prob(site: Mapping[str, Any]) -> torch.Tensor:
    term = site["fn"].log_prob(site["value"])
    if site["mask"] is not None:
        term = torch.where(torch.as_tensor(site["mask"]), term, torch.zeros_like(term))
    return term * site["scale"]


def site_log_prob_sum(site: Mapping[str, Any]) -> torch.Tensor:
    """The site's log density summed, by the distribution's own shorter way where it has one."""
    if site["is_observed"] and site["mask"] is None and hasattr(site["fn"], "log_prob_sum"):
        return site["fn"].log_prob_sum(site["value"]) * site["scale"]
    return site_log_prob(site).sum()


def points_of(dims: Mapping[str, tuple[str, ...]]) -> str:
    """The dim of the points: `unit` where the observed array, the first, has it (or nothing is known), else its first dim."""
    observed = next(iter(dims.values()), ("unit",))
    return "unit" if "unit" in observed else observed[0]


def per_point(site: Mapping[str, Any], points: str) -> torch.Tensor:
    """The site's log density with everything but the plate of the points summed."""
    term = site_log_prob(site)
    plate = next(frame.dim for frame in site["cond_indep_stack"] if frame.name == points) % term.dim()
    others = [d for d in range(term.dim()) if d != plate]
    return term.sum(others) if others else term


def is_deterministic(site: Mapping[str, Any]) -> bool:
    return bool(site["infer"].get("_deterministic", False))


def is_observed_site(site: Any) -> bool:
    return site["type"] == "sample" and site["is_observed"] and not site_is_subsample(site) and not is_deterministic(site)


def is_latent(site: Any) -> bool:
    return site["type"] == "sample" and not site["is_observed"] and not site_is_subsample(site)


def observed_dims(name: str, site: Any, points: str) -> tuple[str, ...]:
    """Dims of an observed site that no array of the dataset has the name of: the points' for its plate, numbered ones else."""
    shape = tuple(site["value"].shape)
    lead = (points,) if shape and in_plate(site, points) else ()
    return (*lead, *(f"{name}_dim_{i}" for i in range(len(shape) - len(lead))))


def in_plate(site: Mapping[str, Any], name: str) -> bool:
    return any(frame.name == name for frame in site["cond_indep_stack"])


def checked_trace(model: LatentModel, arrays: Arrays, parameters: Tensors, points: str) -> Any:
    """A trace of the program on its data, with the shapes of all sites checked; Pyro's store is left as it is."""
    try:
        with forked(), pyro.get_param_store().scope(), pyro.validation_enabled(True):
            reseed(0)
            with double(), Fixed(parameters):
                trace = poutine.trace(model.model).get_trace(**arrays)
                for name, site in trace.nodes.items():
                    if site["type"] == "sample" and not site_is_subsample(site) and not is_deterministic(site):
                        _check_site(name, site)
    except ModelError:
        raise
    except Exception as error:  # whatever a program raises
        said = _outside(model, arrays, parameters) or f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise ModelError(f"the model {model.name!r} does not run on this data: {said}") from error
    _check_dims(model, trace, points)
    return trace


def _outside(model: LatentModel, arrays: Arrays, parameters: Tensors) -> str | None:
    """The first observed value that its distribution gives no probability, if the program runs to the end without this check."""
    try:
        with forked(), pyro.get_param_store().scope(), pyro.validation_enabled(False), double(), Fixed(parameters):
            reseed(0)
            trace = poutine.trace(model.model).get_trace(**arrays)
        for name, site in trace.nodes.items():
            if site["type"] == "sample" and site["is_observed"] and not site_is_subsample(site):
                value: Any = site["value"]
                fn: Any = site["fn"]
                while hasattr(fn, "base_dist"):
                    fn = fn.base_dist
                bad = ~fn.support.check(value).expand(value.shape)
                if bad.any():
                    where = tuple(torch.nonzero(bad)[0].tolist())
                    return (
                        f"{name!r} is {value[where].item():.6g} at position {where}, outside of the support of its distribution, "
                        f"{type(fn).__name__} ({fn.support})."
                    )
    except Exception:  # then the first error is what is said
        return None
    return None


def _check_site(name: str, site: Mapping[str, Any]) -> None:
    frames = [f for f in site["cond_indep_stack"] if f.vectorized]
    expected = [1] * max((-f.dim for f in frames), default=0)
    for frame in frames:
        expected[frame.dim] = frame.size
    found = list(site["fn"].log_prob(site["value"]).shape)
    while found and found[0] == 1 and len(found) > len(expected):
        found.pop(0)
    if found != expected:
        raise ModelError(
            f"site {name!r} has a log density of shape {tuple(found)}, and its plates "
            f"({', '.join(f.name for f in frames) or 'none'}) say {tuple(expected)}; value {tuple(site['value'].shape)}: "
            "data of shape (N, 1) in a plate of N, or a missing `.to_event`."
        )
    if not site["is_observed"] and site["fn"].support.is_discrete:
        raise ModelError(f"site {name!r} is discrete and not summed out: sum over it (enumeration) in the model's density.")


def _check_dims(model: LatentModel, trace: Any, points: str) -> None:
    check_declaration(model)
    if not any(is_observed_site(site) and in_plate(site, points) for site in trace.nodes.values()):
        raise ModelError(f"{model.name!r} observes nothing inside a plate named {points!r}: the {points}s have no likelihood.")
    sizes: dict[str, tuple[int, str]] = {}
    for name, site in trace.nodes.items():
        parameter = site["type"] == "param"
        if not parameter and (site["type"] != "sample" or site_is_subsample(site) or is_observed_site(site)):
            continue
        kind, declared_dims = ("parameter", model.parameters) if parameter else ("site", model.dims)
        if name not in declared_dims:
            where = "parameters" if parameter else "dims"
            raise ModelError(
                f"{kind} {name!r} is not declared in the {where} of {model.name!r}: {', '.join(declared_dims) or 'none'}."
            )
        shape, dims = tuple(site["value"].shape), declared_dims[name]
        if len(shape) != len(dims):
            raise ModelError(f"{kind} {name!r} is declared with dims {dims}, and has shape {shape}.")
        for dim, size in zip(dims, shape, strict=True):
            if sizes.setdefault(dim, (size, name))[0] != size:
                raise ModelError(f"dim {dim!r} has size {sizes[dim][0]} in {sizes[dim][1]!r} and {size} in {name!r}.")
    declared = set(model.dims) - set(trace.nodes)
    absent = declared - ({model.position.site} if "latents" in model.offers else set())
    if absent:
        raise ModelError(f"{model.name!r} declares dims of {', '.join(sorted(absent))}, and its program has no such site.")
