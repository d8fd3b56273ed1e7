"""The objective of a model's own guide, and its parameters."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from torch.distributions import transform_to
from torch.overrides import TorchFunctionMode

from latentlab.errors import ModelError
from latentlab.inference.draws import Problem
from latentlab.models.base import Fixed, LatentModel
from latentlab.seeds import isolated


def in_single(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """The arrays with those of numbers in float32."""
    numbers = {n for n, array in arrays.items() if isinstance(array, torch.Tensor) and array.is_floating_point()}
    return {name: array.float() if name in numbers else array for name, array in arrays.items()}


class _Scored(Exception):
    """A draw of the guide has no derivative."""


class _Batched(TorchFunctionMode):
    """Standard normal numbers are made and not filled in, so that `torch.vmap` draws some for each of a batch."""

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.normal_ and not args[1:] and not kwargs:
            return torch.randn(args[0].shape, dtype=args[0].dtype, device=args[0].device)
        return func(*args, **(kwargs or {}))


def loss_of_globals(program: Callable[..., Any], guide: Callable[..., Any], arrays: Mapping[str, Any], n: int) -> torch.Tensor:
    """Minus the mean of log p - log q over `n` draws of the guide, all at once where the programs can be batched.

    Where a draw has no derivative, the loss is Pyro's, with its scores.
    """

    def one(_: Any) -> torch.Tensor:
        drawn: Any = poutine.trace(guide).get_trace(**arrays)
        if not is_reparameterised(drawn):
            raise _Scored
        whole = poutine.trace(poutine.replay(program, trace=drawn)).get_trace(**arrays)
        return drawn.log_prob_sum() - whole.log_prob_sum()

    try:
        if n == 1:
            return one(0)
        try:
            with _Batched():
                return torch.vmap(one, randomness="different")(torch.zeros(n)).mean()
        except (RuntimeError, ValueError, NotImplementedError, TypeError):  # whatever a program that cannot be batched raises
            return torch.stack([one(i) for i in range(n)]).mean()
    except _Scored:
        return Trace_ELBO(num_particles=n).differentiable_loss(program, guide, **arrays)


def is_reparameterised(trace: Any) -> bool:
    """Whether all draws of a guide have a derivative for its parameters."""
    return all(site["fn"].has_rsample for site in trace.nodes.values() if is_drawn(site))


def is_drawn(site: Any) -> bool:
    return site["type"] == "sample" and not site["is_observed"] and not poutine.util.site_is_subsample(site)


@dataclass(frozen=True)
class GuideParameters:
    """The parameters of guide and program.

    A program has most of them from `pyro.param`, and is given values by answering for it. Those of modules of torch, which
    `pyro.module` only makes known to Pyro, the program reads itself: values are written into them, and no graph is captured.

    Args:
        names: Of the parameters.
        leaves: The tensors in Pyro's store, unconstrained, as they start.
        constraints: Of their values.
        reparameterised: Whether all draws of the guide have a derivative.
        in_modules: Whether some are the parameters of modules.
    """

    names: tuple[str, ...]
    leaves: tuple[torch.Tensor, ...]
    constraints: tuple[Any, ...]
    reparameterised: bool
    in_modules: bool

    def constrained(self, unconstrained: Iterable[torch.Tensor]) -> dict[str, torch.Tensor]:
        """Values of the parameters by name."""
        given = zip(self.names, self.constraints, unconstrained, strict=True)
        return {name: transform_to(constraint)(value) for name, constraint, value in given}

    @contextlib.contextmanager
    def at(self, unconstrained: Sequence[torch.Tensor]) -> Iterator[None]:
        """Programs have these parameters inside the block."""
        if self.in_modules:
            self.write(unconstrained)
            yield
        else:
            with Fixed(self.constrained(unconstrained)):
                yield

    @torch.no_grad()
    def write(self, unconstrained: Sequence[torch.Tensor]) -> None:
        """Writes them into the leaves."""
        for leaf, value in zip(self.leaves, unconstrained, strict=True):
            leaf.copy_(value)

    def attached(self, loss: torch.Tensor, unconstrained: Sequence[torch.Tensor]) -> torch.Tensor:
        """A loss of the leaves as one of the parameters that were written into them: the same value and gradient."""
        slopes = torch.autograd.grad(loss, self.leaves, allow_unused=True)
        pairs = [(value, slope) for value, slope in zip(unconstrained, slopes, strict=True) if slope is not None]
        return loss.detach() + sum(((value - value.detach()) * slope).sum() for value, slope in pairs)


def started(model: LatentModel, arrays: Mapping[str, Any]) -> GuideParameters:
    """The parameters, put into Pyro's store by running guide and program."""
    with poutine.trace() as seen:
        model.guide(**arrays)  # type: ignore[attr-defined]
    with poutine.trace(param_only=True) as own:
        if model.parameters:
            model.model(**arrays)
    names = dict.fromkeys(n for trace in (seen.trace, own.trace) for n, s in trace.nodes.items() if s["type"] == "param")
    store = pyro.get_param_store().get_state()  # a site's own constraint is the default's where the program asks for it again
    leaves = tuple(store["params"][name] for name in names)
    in_modules = any(isinstance(leaf, torch.nn.Parameter) for leaf in leaves)
    constraints = tuple(store["constraints"][name] for name in names)
    return GuideParameters(tuple(names), leaves, constraints, is_reparameterised(seen.trace), in_modules)


def scaled_program(program: Callable[..., Any], points: str, scale: float, kl_weight: Any) -> Callable[..., Any]:
    """The program with its terms inside the points' plate times `scale`, and those of latent sites times `kl_weight` too."""
    if not isinstance(kl_weight, torch.Tensor) and scale == kl_weight == 1.0:
        return program

    def scaled(**arrays: Any) -> Any:
        with _ScalePoints(points, scale, kl_weight):
            return program(**arrays)

    return scaled


class _ScalePoints(poutine.messenger.Messenger):
    """Multiplies the scale of sites inside the plate of the points, and that of latent ones by a weight of their own."""

    def __init__(self, points: str, scale: float, kl_weight: Any) -> None:
        super().__init__()
        self.points = points
        self.scale, self.kl_weight = scale, kl_weight

    def _pyro_sample(self, msg: Any) -> None:
        if any(frame.name == self.points for frame in msg["cond_indep_stack"]):
            msg["scale"] = msg["scale"] * self.scale * (1.0 if msg["is_observed"] else self.kl_weight)


def check_guide(problem: Problem) -> None:
    """Refuses a guide whose latent sites are not exactly the model's.

    Raises:
        ModelError: Names the sites that the guide lacks or has too many.
    """
    with isolated(problem.seeds.child("check")), pyro.validation_enabled(False):
        nodes: Any = poutine.trace(problem.model.guide).get_trace(**problem.arrays).nodes  # type: ignore[attr-defined]
    parameters = {n for n, s in nodes.items() if s["type"] == "param"} | set(problem.density.own_parameters)
    absent = sorted(set(problem.model.parameters) - parameters)
    if absent:
        raise ModelError(f"{problem.model.name!r} declares the parameter {absent[0]!r}, which neither program nor guide has.")
    has = {n for n, s in nodes.items() if s["type"] == "sample" and not poutine.util.site_is_subsample(s)}
    has = {n for n in has if not nodes[n]["infer"].get("is_auxiliary")}
    needs = {s.name for s in problem.density.sites}
    if has != needs:
        lacks, extra = ", ".join(sorted(needs - has)), ", ".join(sorted(has - needs))
        raise ModelError(
            f"the guide of {problem.model.name!r} "
            + " and ".join(
                filter(None, [f"lacks the site {lacks}" if lacks else "", f"has the extra site {extra}" if extra else ""])
            )
            + f"; the model's latent sites are {', '.join(sorted(needs))}."
        )
