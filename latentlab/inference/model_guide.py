r"""Guides defined by the model, fitted by maximising the evidence lower bound or its importance-weighted version.

All random numbers of a restart are from torch's random state. The parameters of guide and program are one vector, and loss,
gradient and update are one graph of operations where they can be captured.
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import pyro
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO

from latentlab.errors import ModelError
from latentlab.inference import advi
from latentlab.inference.adam import Adam, Descent, pack, unpack, with_slopes
from latentlab.inference.batches import batches, log_prob_of_draws
from latentlab.inference.draws import Checkpointer, Problem, read_checkpoint
from latentlab.inference.encoder import is_amortised
from latentlab.inference.exact_bound import maximised
from latentlab.inference.guide_average import guide_averaged, guide_draws
from latentlab.inference.nuts import CHECKPOINT_SECONDS
from latentlab.inference.parameters import PARAMETER, GuideParameters, at_values, register_parameters
from latentlab.inference.program import in_plate
from latentlab.inference.row_starts import at_all_rows
from latentlab.inference.steps import check_shares, noise_of_batch, step_of
from latentlab.inference.svi_loss import is_reparameterised, loss_of_globals, scaled_program, to_float32
from latentlab.models.networks import weights
from latentlab.processes import Processes
from latentlab.seeds import forked, isolated, reseed, single

N_HELD_OUT_DRAWS = 8
"""Number of draws of the guide for the loss of the held-out units; the random numbers are the same in each evaluation."""


class Settings(advi.Settings, Protocol):
    """Settings of `SVI` that a guide defined by the model uses."""

    @property
    def objective(self) -> str: ...
    @property
    def kl_warmup(self) -> int: ...
    @property
    def held_out(self) -> float: ...
    @property
    def precision(self) -> str: ...


def fit_restart(  # long: objective, batches and checkpoints share the variables of one restart
    problem: Problem, settings: Settings, restart: int
) -> dict[str, np.ndarray]:
    """Fit the guide of one restart; return its losses, draws `u` with `lp` and `log_q`, and the model's parameters."""
    seeds, density, model, device = problem.seeds.child("restart", restart), problem.density, problem.model, settings.device
    part = f"restart-{restart}-under-way"
    checkpoint = read_checkpoint(problem, part)
    resumed = Descent.from_arrays(checkpoint, settings.n_steps) if checkpoint else None
    n_done = resumed.n_done if resumed else 0
    scope = isolated(seeds, device), pyro.validation_enabled(False)
    with scope[0], scope[1], Checkpointer(problem, part, CHECKPOINT_SECONDS) as checkpointer:
        training, held_out = _divided(density.n_points, settings.held_out, seeds.child("held_out").numpy())

        def rows_from(number: int, *, shared: bool) -> Iterator[tuple[torch.Tensor, ...]]:
            order, n_steps = seeds.child("batches").numpy(), settings.n_steps + 1
            return batches(problem, settings.batch_size, order, training, n_steps=n_steps, skip=number, shared=shared)

        rows = rows_from(0, shared=False)
        first = next(rows)
        started = density.with_points(first) if first and not model.takes("row") else density.arrays
        guide_parameters = at_all_rows(problem, register_parameters(model, started, fresh=restart > 0))
        if "exact_elbo" in model.offers:
            return finished(problem, settings, *maximised(problem, guide_parameters, settings.n_steps, restart))
        shapes = [leaf.shape for leaf in guide_parameters.leaves]
        vectors = pack(guide_parameters.leaves)[None]
        n_training = density.n_points if training is None else len(training)
        title = f"SVI {restart + 1}/{settings.n_restarts}"
        shown = title, problem.progress, device, problem.log, 0, 0, problem.monitor
        adam = Adam(settings.n_steps, settings.learning_rate, settings.patience, *shown)

        def arguments() -> Iterator[tuple[torch.Tensor, ...]]:
            for i, batch in enumerate(rows, n_done + 1):
                yield torch.tensor(min(1.0, i / settings.kl_warmup) if settings.kl_warmup else 1.0), *batch

        is_captured = guide_parameters.reparameterised
        key = (
            "guide",
            n_training,
            settings.n_particles,
            settings.objective,
            bool(settings.kl_warmup),
            settings.precision,
            device,
        )
        if not is_captured or key not in density.captured:
            losses_of_step = losses_of(problem, settings, guide_parameters, n_training, shapes)
            example = vectors, adam.scale(0), torch.tensor(1.0), *(row[problem.processes.share(len(row))] for row in first)
            density.captured[key] = step_of(
                problem, losses_of_step, shapes, (1.0,) * len(shapes), settings, example, is_captured=is_captured
            )
        step = density.captured[key]

        watch: Callable[[torch.Tensor], float] | None = None
        if held_out is not None:
            n_held_out, own = len(held_out), held_out[problem.processes.share(len(held_out))]
            own_arrays = density.with_points(tuple(density.arrays[name][own] for name in density.point_arrays()))

            def watch(vector: torch.Tensor) -> float:
                noise = noise_of_batch(problem, n_held_out)
                with torch.no_grad(), forked(), guide_parameters.at(unpack(vector, shapes)) as bound, noise:
                    reseed(0)
                    at = replace(problem, model=bound)
                    loss = objective(at, settings, own_arrays, n_held_out / len(own), model.kl_weight, N_HELD_OUT_DRAWS)
                return float(problem.processes.mean(n_held_out, loss)[0])

        def save(state: Descent) -> None:
            random = _random_states(device)
            checkpointer(lambda: {**state.arrays(), **random})

        if checkpoint or problem.processes.size > 1:
            rows = rows_from(n_done + 1, shared=True)
        if checkpoint:
            _set_random_states(checkpoint, device)
        (end,), (losses,) = adam.descend(
            vectors,
            step,
            arguments(),
            [restart],
            lambda *_: [],
            watch,
            settings.kl_warmup,
            resumed,
            save if problem.checkpoint else None,
        )
        problem.processes.check_equal(end)
        problem.processes.check_equal(torch.get_rng_state())
        if problem.processes.rank:
            return {}
        return finished(problem, settings, guide_parameters.constrained(unpack(end, shapes)), losses)


def finished(
    problem: Problem, settings: Settings, values: Mapping[str, torch.Tensor], losses: np.ndarray
) -> dict[str, np.ndarray]:
    """Draw from the guide at the end of a restart; return the losses, the draws with their densities, and the parameters."""
    model, density = problem.model, problem.density
    with torch.no_grad():
        values = model.completed(density.arrays, values)
    kept = {**model.parameters, **weights(model)}
    estimated = {PARAMETER + name: value.numpy() for name, value in values.items() if name in kept}
    with at_values(model, values) as bound:
        draws = guide_draws(density.at(values), bound.guide, settings.n_draws, problem.place)  # type: ignore[attr-defined]
        averaged = guide_averaged(problem, bound.guide, draws)  # type: ignore[attr-defined]
        draws |= {} if averaged is None else {"log_q_averaged": averaged}
        if problem.stored is not None and not density.point_sites:
            draws["lp"] = log_prob_of_draws(problem, draws["u"])
    return {"loss": losses, **estimated, **draws}


def losses_of(
    problem: Problem, settings: Settings, guide_parameters: GuideParameters, n_training: int, shapes: Sequence[torch.Size]
) -> Callable[..., torch.Tensor]:
    """Return a function of unconstrained parameters `(1, size)`, the KL weight and a batch that computes the loss `(1,)`."""
    density = problem.density.placed(settings.device)

    def losses(vectors: torch.Tensor, warmup: torch.Tensor, *batch: torch.Tensor) -> torch.Tensor:
        arrays, scale = (density.with_points(batch), n_training / len(batch[0])) if batch else (density.arrays, 1.0)
        weight = warmup * problem.model.kl_weight if settings.kl_warmup else problem.model.kl_weight
        values = guide_parameters.constrained(unpack(vectors[0], shapes))
        noise, is_single = noise_of_batch(problem, settings.batch_size), settings.precision == "single"
        values, arrays = (to_float32(values), to_float32(arrays)) if is_single else (values, arrays)
        with noise, single() if is_single else contextlib.nullcontext(), at_values(problem.model, values) as bound:
            loss = objective(replace(problem, model=bound), settings, arrays, scale, weight, settings.n_particles)
        return loss[None].double()

    return losses


def objective(  # one argument for each factor of the loss
    problem: Problem, settings: Settings, arrays: Mapping[str, Any], scale: float, kl_weight: Any, n_particles: int
) -> torch.Tensor:
    """Compute minus the objective: terms in the points' plate times `scale`, of latent sites there times `kl_weight` too.

    If every site belongs to a unit, all particles are one call, in a plate outside that of the units. If a draw is not
    reparameterised, the loss is Pyro's, with score-function gradients.

    Raises:
        ModelError: A draw is not reparameterised, and the objective is `iwae`.
    """
    model = problem.model
    points = problem.density.points
    program, guide = (scaled_program(f, points, scale, kl_weight) for f in (model.model, model.guide))  # type: ignore[attr-defined]
    if not is_amortised(problem.density):
        return loss_of_globals(program, guide, arrays, n_particles)
    with pyro.plate("particle", n_particles, dim=-2) if n_particles > 1 else contextlib.nullcontext():
        guide_trace = poutine.trace(guide).get_trace(**arrays)
        program_trace = poutine.trace(poutine.replay(program, trace=guide_trace)).get_trace(**arrays)
    if not is_reparameterised(guide_trace):
        if settings.objective == "iwae":
            raise ModelError(f"objective 'iwae' needs reparameterised draws; a site in the guide of {model.name!r} has none.")
        return Trace_ELBO(num_particles=n_particles).differentiable_loss(program, guide, **arrays)
    guide_trace.compute_log_prob()
    program_trace.compute_log_prob()
    sites = [[site for site in trace.nodes.values() if "log_prob" in site] for trace in (program_trace, guide_trace)]
    terms = [[site["log_prob"] for site in each if in_plate(site, points)] for each in sites]
    log_w = torch.as_tensor(sum(terms[0]) - sum(terms[1])).reshape(n_particles, -1) / scale
    each = log_w.mean(0) if settings.objective == "elbo" else torch.logsumexp(log_w, dim=0) - math.log(n_particles)
    others = [site["log_prob"].mean() for site in sites[0] if not in_plate(site, points)]  # `pyro.factor`; one a particle
    return -scale * each.sum() - sum(others)


def _random_states(device: str) -> dict[str, np.ndarray]:
    """Return torch's random states of the CPU and of this device."""
    states = {"random": torch.get_rng_state()}
    if device != "cpu":
        states["random of device"] = torch.cuda.get_rng_state(device)
    return {name: state.numpy() for name, state in states.items()}


def _set_random_states(states: Mapping[str, np.ndarray], device: str) -> None:
    torch.set_rng_state(torch.from_numpy(states["random"]))
    if device != "cpu":
        torch.cuda.set_rng_state(torch.from_numpy(states["random of device"]), device)


def _divided(n_units: int, share: float, rng: np.random.Generator) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Split the units at random into training and held-out ones; return their sorted numbers, or two None without a split."""
    if not share:
        return None, None
    order, n_held_out = rng.permutation(n_units), round(share * n_units)
    return np.sort(order[n_held_out:]), np.sort(order[:n_held_out])


def unused_parameters(problem: Problem, settings: Settings) -> list[str]:
    """Return the names of the parameters on which the objective does not depend."""
    density = problem.density
    with isolated(problem.seeds.child("check")), pyro.validation_enabled(False):
        arrays = density.arrays
        if settings.batch_size is not None:
            arrays = density.with_points(tuple(arrays[name][: settings.batch_size] for name in density.point_arrays()))
        found = register_parameters(problem.model, arrays)
        leaves = [leaf.detach().requires_grad_() for leaf in found.leaves]
        with torch.enable_grad(), found.at(leaves) as bound:
            loss = objective(replace(problem, model=bound), settings, arrays, 1.0, 1.0, 1)
        if not loss.requires_grad:
            return list(found.names)
        slopes = torch.autograd.grad(loss, leaves, allow_unused=True)
    inactive = problem.model.inactive(density.arrays)
    return [name for name, slope in zip(found.names, slopes, strict=True) if slope is None and name not in inactive]


def check_model_guide(problem: Problem, settings: Settings) -> None:
    """Raise an error if loss and gradient of a batch are not those of its shares, for several processes."""
    if problem.processes.size == 1 or settings.batch_size is None:
        return
    density = problem.density
    rows = tuple(density.arrays[name][: settings.batch_size] for name in density.point_arrays())
    settings = replace(settings, batch_size=len(rows[0]))  # type: ignore[type-var]
    with isolated(problem.seeds.child("check")), pyro.validation_enabled(False):
        guide_parameters = register_parameters(problem.model, density.with_points(rows))
        if not guide_parameters.reparameterised:
            raise ModelError(
                f"{problem.model.name!r} cannot be fitted by several processes: its guide has draws that are not reparameterised."
            )
        shapes, start = [leaf.shape for leaf in guide_parameters.leaves], pack(guide_parameters.leaves)
        vectors = (start + 0.01 * torch.randn(len(start)))[None]

        def evaluate(processes: Processes) -> tuple[torch.Tensor, ...]:
            own = (row[processes.share(len(row))] for row in rows)
            losses = losses_of(replace(problem, processes=processes), settings, guide_parameters, density.n_points, shapes)
            return with_slopes(losses)(vectors, torch.tensor(1.0), *own)

        check_shares(problem, len(rows[0]), evaluate, single=settings.precision == "single")
