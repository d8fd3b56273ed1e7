"""Objective of a guide defined by the model."""

from collections.abc import Callable, Mapping
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from torch.overrides import TorchFunctionMode

from latentlab.errors import ModelError
from latentlab.inference.draws import Problem
from latentlab.inference.layers import check_forward, check_registered
from latentlab.inference.program import is_latent
from latentlab.models.fixed import Fixed
from latentlab.models.networks import start_values
from latentlab.seeds import isolated


def to_float32(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arrays with floating-point tensors converted to float32."""
    numbers = {n for n, array in arrays.items() if isinstance(array, torch.Tensor) and array.is_floating_point()}
    return {name: array.float() if name in numbers else array for name, array in arrays.items()}


class _NotReparameterised(Exception):
    """Raised if a draw of the guide is not reparameterised."""


class _Batched(TorchFunctionMode):
    """Mode that replaces in-place standard normal draws by `torch.randn`, for separate draws along the batch of `torch.vmap`."""

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.normal_ and not args[1:] and not kwargs:
            return torch.randn(args[0].shape, dtype=args[0].dtype, device=args[0].device)
        return func(*args, **(kwargs or {}))


def loss_of_globals(program: Callable[..., Any], guide: Callable[..., Any], arrays: Mapping[str, Any], n: int) -> torch.Tensor:
    """Estimate minus the ELBO by `n` draws of the guide, in one batch if the programs can be vectorised.

    If a draw is not reparameterised, the loss is Pyro's, with score-function gradients.
    """

    def one(_: Any) -> torch.Tensor:
        guide_trace: Any = poutine.trace(guide).get_trace(**arrays)
        if not is_reparameterised(guide_trace):
            raise _NotReparameterised
        program_trace = poutine.trace(poutine.replay(program, trace=guide_trace)).get_trace(**arrays)
        return guide_trace.log_prob_sum() - program_trace.log_prob_sum()

    try:
        if n == 1:
            return one(0)
        try:
            with _Batched():
                return torch.vmap(one, randomness="different")(torch.zeros(n)).mean()
        except (RuntimeError, ValueError, NotImplementedError, TypeError):  # raised by programs that cannot be vectorised
            return torch.stack([one(i) for i in range(n)]).mean()
    except _NotReparameterised:
        return Trace_ELBO(num_particles=n).differentiable_loss(program, guide, **arrays)


def is_reparameterised(trace: Any) -> bool:
    """Whether all draws of a guide are reparameterised: differentiable in its parameters."""
    return all(site["fn"].has_rsample for site in trace.nodes.values() if is_latent(site))


def scaled_program(program: Callable[..., Any], points: str, scale: float, kl_weight: Any) -> Callable[..., Any]:
    """Return the program with the terms in the points' plate times `scale`, and those of latent sites times `kl_weight` too."""
    if not isinstance(kl_weight, torch.Tensor) and scale == kl_weight == 1.0:
        return program

    def scaled(**arrays: Any) -> Any:
        with _ScalePoints(points, scale, kl_weight):
            return program(**arrays)

    return scaled


class _ScalePoints(poutine.messenger.Messenger):
    """Handler that multiplies the scale of sites in the points' plate by `scale`, and of latent sites by `kl_weight` too."""

    def __init__(self, points: str, scale: float, kl_weight: Any) -> None:
        super().__init__()
        self.points = points
        self.scale, self.kl_weight = scale, kl_weight

    def _pyro_sample(self, msg: Any) -> None:
        if any(frame.name == self.points for frame in msg["cond_indep_stack"]):
            msg["scale"] = msg["scale"] * self.scale * (1.0 if msg["is_observed"] else self.kl_weight)


def check_guide(problem: Problem) -> None:
    """Raise an error if the guide's latent sites are not exactly the model's.

    Raises:
        ModelError: The guide fails, lacks a latent site or has an extra one, or a declared or registered parameter is missing.
    """
    check_forward(problem.model, "guide", problem.arrays)
    starts = start_values(problem.model)
    with isolated(problem.seeds.child("check")), pyro.validation_enabled(False), Fixed(starts):
        guide = problem.model.with_parameters(starts).guide  # type: ignore[attr-defined]
        try:
            nodes: Any = poutine.trace(guide).get_trace(**problem.arrays).nodes
        except ModelError:
            raise
        except Exception as error:  # a guide can raise any exception
            reason = str(error).strip().partition("\n")[0][:300]
            text = f"the guide of {problem.model.name!r} fails on these data: {type(error).__name__}: {reason}"
            raise ModelError(text) from error
    parameters = {n for n, s in nodes.items() if s["type"] == "param"} | set(problem.density.own_parameters)
    check_registered(problem.model, parameters)
    missing = sorted(set(problem.model.parameters) - parameters)
    if missing:
        raise ModelError(f"{problem.model.name!r} declares the parameter {missing[0]!r}, which is in neither program nor guide.")
    sampled = {n for n, s in nodes.items() if s["type"] == "sample" and not poutine.util.site_is_subsample(s)}
    for site in problem.density.sites:
        if site.name in sampled and (shape := nodes[site.name]["value"].shape) != site.shape:
            raise ModelError(
                f"the guide of {problem.model.name!r} must draw site {site.name!r} of shape {tuple(site.shape)}, as the program; "
                f"got {tuple(shape)}. Look at the number of outputs of its network."
            )
    sampled = {n for n in sampled if not nodes[n]["infer"].get("is_auxiliary")}
    latent = {s.name for s in problem.density.sites}
    if sampled != latent:
        differences = {"missing": latent - sampled, "not in the model": sampled - latent}
        text = "; ".join(f"{label}: {', '.join(sorted(sites))}" for label, sites in differences.items() if sites)
        raise ModelError(
            f"the guide of {problem.model.name!r} must have the latent sites of the model, {', '.join(sorted(latent))}; got "
            f"{', '.join(sorted(sampled)) or 'none'} ({text})."
        )
