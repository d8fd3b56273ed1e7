r"""Stochastic variational inference: a guide $q(u)$ fitted by maximising the evidence lower bound.

$$ \mathrm{ELBO}(q) = \mathbb E_{q}[\log \tilde p(u) - \log q(u)] \le \log p(x), $$
with $u$ on the unconstrained scale. Gaussian guides are in `guides.py`. A guide defined by the model is a Pyro program; only with
it are a model's parameters estimated. If every site belongs to a unit, each unit n has its own importance weights
$w_{nk} = p(x_n, z_{nk}) / q(z_{nk} \mid x_n)$, and the objective can be the importance-weighted bound
$$ \sum_n \mathbb E_q\Big[\log \frac1K \sum_{k=1}^K w_{nk}\Big], $$
which is the ELBO for K = 1 and rises to $\log p(x)$ with K.
"""

import contextlib
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import pyro
import torch
from annotated_types import Ge, Lt
from pyro import poutine
from pyro.infer import Trace_ELBO

from latentlab.errors import ConfigError, DataError, ModelError
from latentlab.inference.adam import Adam, Descent, pack, unpack, whole_step
from latentlab.inference.advi import fit_restarts
from latentlab.inference.batches import batches, log_prob_of_draws
from latentlab.inference.capture import Plan, capture
from latentlab.inference.draws import Checkpointer, Draws, Problem, from_checkpoint, read_checkpoint
from latentlab.inference.encoder import is_amortised
from latentlab.inference.guide_average import guide_averaged, guide_draws, over_symmetry
from latentlab.inference.guides import GUIDES
from latentlab.inference.lift import constrain_draws, ends, over_draws
from latentlab.inference.nuts import CHECKPOINT_SECONDS
from latentlab.inference.svi_loss import (
    GuideParameters,
    check_guide,
    is_reparameterised,
    loss_of_globals,
    register_parameters,
    scaled_program,
    to_float32,
)
from latentlab.models.base import Fixed
from latentlab.seeds import forked, isolated, reseed, single
from latentlab.settings import Count, Positive, Whole, frozen_settings

PARAMETER = "parameter "
"""Prefix of the parameters' names among the arrays of a restart."""
N_HELD_OUT_DRAWS = 8
"""Number of draws of the guide for the loss of the held-out units; the random numbers are the same in each evaluation."""
GuideName = Literal["model", "mean_field", "full_rank", "low_rank"]
Objective = Literal["elbo", "iwae"]
Precision = Literal["double", "single"]


@frozen_settings
class SVI:
    """Variational inference with a Gaussian guide on the unconstrained scale, or with a guide defined by the model.

    The optimiser is Adam. Its learning rate is constant for the first half of the steps, and then falls to a hundredth. The
    full-rank guide is a mean-field one for the first quarter of the steps, and is then fitted in coordinates of equal curvature.

    Args:
        guide: `model` (defined by the model), `mean_field`, `full_rank` or `low_rank`.
        n_steps: Number of steps of the optimiser.
        learning_rate: Initial learning rate of Adam.
        n_particles: Number of draws of the guide in a step.
        batch_size: Number of units in a step; all if None. Needs positions that are integrated out, or an amortised guide.
        n_restarts: Number of independent fits, in one batch if that is faster. All losses are kept; the best ELBO is the result.
        patience: Stop once the smoothed ELBO has not risen for this many steps; None never stops early.
        n_draws: Number of draws from the fitted guide, in one chain.
        objective: `elbo`, or `iwae`: the importance-weighted bound with `n_particles` samples for each unit.
        kl_warmup: Number of steps in which the weight of the units' latent sites grows to its full value (`guide="model"` only).
        held_out: Fraction of the units that are held out of the steps (`guide="model"` only). The result has the parameters with
            the best ELBO of these units, to which `patience` then applies.
        compiled: Whether to compile the step to machine code. This takes about ten seconds the first time, is cached for later
            processes, and changes the last digits. If None, the step is compiled when the run is long enough.
        precision: Precision of the loss and its gradient in a step. `single` (float32) needs `guide="model"`, and a model whose
            sites all belong to units: minibatch noise is then far larger than rounding errors. Parameters and results stay in
            float64.
        device: Device of the steps: `cpu`, `cuda` or a numbered one such as `cuda:1`; machine code runs on the CPU only. All
            other computations and the results are on the CPU.

    References:
        Kucukelbir et al. 2017, Automatic Differentiation Variational Inference, JMLR 18(14).
        Roeder, Wu & Duvenaud 2017, Sticking the Landing, NeurIPS.
        Burda, Grosse & Salakhutdinov 2016, Importance Weighted Autoencoders, ICLR.
    """

    guide: GuideName = "full_rank"
    n_steps: Count = 4000
    learning_rate: Positive = 0.02
    n_particles: Count = 8
    batch_size: Count | None = None
    n_restarts: Count = 1
    patience: Count | None = None
    n_draws: Count = 2000
    objective: Objective = "elbo"
    kl_warmup: Whole = 0
    held_out: Annotated[float, Ge(0), Lt(1)] = 0.0
    compiled: bool | None = None
    precision: Precision = "double"
    device: str = "cpu"

    name: ClassVar[str] = "svi"
    kind: ClassVar[str] = "vi"

    def __post_init__(self) -> None:
        if not re.fullmatch(r"cpu|cuda(:\d+)?", self.device):
            raise ConfigError(f"SVI: `device` must be cpu, cuda, or cuda:N with a device number N; got {self.device!r}.")
        if self.compiled and self.device != "cpu":
            raise ConfigError(
                f"SVI: `compiled` must be false or null if `device` is {self.device!r}; machine code runs on the CPU only."
            )
        for field in ("objective", "kl_warmup", "held_out", "precision"):
            if self.guide != "model" and getattr(self, field) not in ("elbo", 0, "double"):
                raise ConfigError(f"SVI: `{field}` is available with guide='model' only; got guide={self.guide!r}.")

    def plan(self) -> Plan:
        """Return the intended use of the graph of a step."""
        return Plan(self.n_steps * self.n_restarts, self.compiled, single=self.precision == "single", device=self.device)

    def run(self, problem: Problem) -> Draws:
        if self.guide == "model":
            numbers = range(self.n_restarts)
            runs = [from_checkpoint(problem, f"restart-{i}", lambda i=i: self._pyro_restart(problem, i)) for i in numbers]  # type: ignore[misc]
        else:
            runs = fit_restarts(problem, self)
        elbo = np.array([float(np.mean(run["lp"] - run["log_q"])) for run in runs])
        best = runs[int(np.argmax(elbo))]
        values = constrain_draws(problem.density, best["u"][None], problem.place)
        parameters = {n.removeprefix(PARAMETER): best[n] for n in best if n.startswith(PARAMETER)}
        stats = {"lp": best["lp"][None], "log_q": best["log_q"][None]}
        averaged = self._averaged(problem, best, values)
        stats["log_q_averaged"] = best["log_q"][None] if averaged is None else averaged[None]
        longest = max(len(run["loss"]) for run in runs)
        losses = np.stack([np.pad(run["loss"], (0, longest - len(run["loss"])), mode="edge") for run in runs])
        attrs = {"guide": self.guide, "elbo": float(elbo.max()), "averaged": int(averaged is not None)}
        restarts = ends(problem.density, [run.get("loc", run["u"].mean(axis=0)) for run in runs])
        return Draws(values, stats, {"loss": losses, "elbo": elbo}, restarts, attrs, parameters)

    def check(self, problem: Problem) -> None:
        """Raise an error if the settings are not possible with the model, the data or the available devices."""
        density = problem.density
        number = int(self.device.partition(":")[2] or 0)
        if self.device != "cpu" and number >= (n_devices := torch.cuda.device_count()):
            raise ConfigError(f"SVI: `device` {self.device!r} does not exist; torch finds {n_devices} CUDA devices.")
        if self.guide == "model":
            if "guide" not in problem.model.offers:
                raise ModelError(
                    f"guide='model' needs a model that defines `guide`; {problem.model.name!r} has none: use {', '.join(GUIDES)}."
                )
            check_guide(problem)
            self._check_particles(problem)
        elif problem.model.parameters:
            raise ModelError(
                f"{problem.model.name!r} has parameters, which are estimated with guide='model' only; got guide={self.guide!r}."
            )
        for selected, what in (
            (self.objective == "iwae", "objective 'iwae'"),
            (self.precision == "single", "precision 'single'"),
        ):
            if selected and not is_amortised(density):
                others = [site.name for site in density.sites if site.name not in density.point_sites]
                raise ModelError(
                    f"{what} needs a model whose sites all belong to units; {problem.model.name!r} has also {', '.join(others)}."
                )
        split = "held_out" if self.held_out else "batch_size"
        transposed = next((n for n in density.arrays if density.points in density.dims.get(n, ())[1:]), None)
        if transposed is not None and (self.held_out or self.batch_size is not None):
            raise DataError(
                f"SVI: `{split}` needs {density.points!r} as the first dim of {transposed!r}; got {density.dims[transposed]}."
            )
        if (self.held_out or self.batch_size is not None) and (
            "leave_one_out" in problem.model.offers or problem.model.takes("sequence")
        ):
            raise ModelError(f"SVI: `{split}` is not available for {problem.model.name!r}: the steps of a series are dependent.")
        if self.held_out:
            n_held_out = round(self.held_out * density.n_points)
            if not 0 < n_held_out < density.n_points:
                raise ConfigError(
                    f"SVI: `held_out` must leave a {density.points} in each part; got {self.held_out} of {density.n_points}."
                )
            if self.batch_size is not None and self.batch_size > density.n_points - n_held_out:
                raise ConfigError(
                    f"SVI: `batch_size` must be at most the {density.n_points - n_held_out} {density.points}s that are not held "
                    f"out; got {self.batch_size}."
                )
        if self.batch_size is not None:
            if self.batch_size > density.n_points:
                raise ConfigError(
                    f"SVI: `batch_size` must be at most the {density.n_points} {density.points}s; got {self.batch_size}."
                )
            if density.point_sites and self.guide != "model":
                raise ModelError(
                    f"SVI: `batch_size` needs a guide that is amortised over units, since site {density.point_sites[0]!r} has a "
                    f"value for each unit; the guide {self.guide!r} is not. Marginalise the site, or use guide='model'."
                )

    def _check_particles(self, problem: Problem) -> None:
        """Raise an error if a program cannot be vectorised over particles, if particles are drawn in one batch."""
        if not is_amortised(problem.density) or (self.n_particles == 1 and not self.held_out):
            return
        rows = tuple(problem.density.arrays[name][:2] for name in problem.density.point_arrays())
        try:
            with isolated(problem.seeds.child("check")), pyro.validation_enabled(False):
                self._pyro_loss(problem, problem.density.with_points(rows), 1.0, 1.0, 3)
        except Exception as error:  # a program can raise any exception
            reason = " ".join(str(error).split())[:200]
            raise ModelError(
                f"{problem.model.name!r} cannot be evaluated with a leading axis of particles; index with `...`, or set "
                f"n_particles=1 and held_out=0: {type(error).__name__}: {reason}"
            ) from error

    def _averaged(self, problem: Problem, best: dict[str, np.ndarray], values: dict[str, np.ndarray]) -> np.ndarray | None:
        """Compute log q of the draws, averaged over the model's symmetry; None if this is impossible."""
        if self.guide == "model":
            return best.get("log_q_averaged")
        density = problem.density
        guide = GUIDES[self.guide].from_arrays(best)
        center = {k: v[0, 0] for k, v in constrain_draws(density, best["loc"][None, None]).items()}

        def flat(value: Any) -> dict[str, torch.Tensor]:
            u = density.unconstrain_fast(value)
            return {"u": u, "jacobian": density.log_jacobian(u)}

        def log_q(sites: dict[str, np.ndarray]) -> np.ndarray:
            at = over_draws(flat, sites, block=4096)
            return guide.log_prob(torch.from_numpy(at["u"])).numpy() - at["jacobian"]

        draws = {site.name: values[site.name][0] for site in density.sites}
        return over_symmetry(problem, log_q, draws, best["u"], best["log_q"], center)

    # -- a guide defined by the model

    def _pyro_restart(  # long: objective, batches and checkpoints share the variables of one restart
        self, problem: Problem, restart: int
    ) -> dict[str, np.ndarray]:
        seeds, density, model = problem.seeds.child("restart", restart), problem.density, problem.model
        part = f"restart-{restart}-under-way"
        checkpoint = read_checkpoint(problem, part)
        resumed = Descent.from_arrays(checkpoint, self.n_steps) if checkpoint else None
        n_done = resumed.n_done if resumed else 0
        scope = isolated(seeds, self.device), pyro.validation_enabled(False)
        with scope[0], scope[1], Checkpointer(problem, part, CHECKPOINT_SECONDS) as checkpointer:
            training, held_out = _divided(density.n_points, self.held_out, seeds.child("held_out").numpy())

            def order() -> np.random.Generator:
                return seeds.child("batches").numpy()

            rows = batches(problem, self.batch_size, order(), training, n_steps=self.n_steps + 1)
            first = next(rows)
            guide_parameters = register_parameters(model, density.with_points(first) if first else density.arrays)
            shapes = [leaf.shape for leaf in guide_parameters.leaves]
            vectors = pack(guide_parameters.leaves)[None]
            n_training = density.n_points if training is None else len(training)
            title = f"SVI {restart + 1}/{self.n_restarts}"
            adam = Adam(self.n_steps, self.learning_rate, self.patience, title, problem.progress, self.device, problem.log)

            def arguments() -> Iterator[tuple[torch.Tensor, ...]]:
                for i, batch in enumerate(rows, n_done + 1):
                    yield torch.tensor(min(1.0, i / self.kl_warmup) if self.kl_warmup else 1.0), *batch

            step = whole_step(self._losses(problem, guide_parameters, n_training, shapes), shapes, (1.0,) * len(shapes))
            for selected, what in ((self.precision == "single", "precision 'single'"), (self.device != "cpu", "another device")):
                if guide_parameters.in_modules and selected:
                    raise ModelError(
                        f"{what} is not available for {problem.model.name!r}, whose parameters belong to torch modules."
                    )
            if guide_parameters.reparameterised and not guide_parameters.in_modules:
                key = ("guide", n_training, self.n_particles, self.objective, bool(self.kl_warmup), self.precision, self.device)
                if key not in density.captured:
                    example = vectors, vectors / 2, vectors**2, adam.scale(0), torch.tensor(1.0), *first
                    density.captured[key] = capture(step, *(one.to(self.device) for one in example), plan=density.plan)
                step = density.captured[key]

            watch: Callable[[torch.Tensor], float] | None = None
            if held_out is not None:
                held_out_arrays = density.with_points(tuple(density.arrays[name][held_out] for name in density.point_arrays()))

                def watch(vector: torch.Tensor) -> float:
                    with torch.no_grad(), forked(), guide_parameters.at(unpack(vector, shapes)):
                        reseed(0)
                        return float(self._pyro_loss(problem, held_out_arrays, 1.0, model.kl_weight, N_HELD_OUT_DRAWS))

            def save(state: Descent) -> None:
                random = _random_states(self.device)
                checkpointer(lambda: {**state.arrays(), **random})

            if checkpoint:
                rows = batches(problem, self.batch_size, order(), training, n_steps=self.n_steps + 1, skip=n_done + 1)
                _set_random_states(checkpoint, self.device)
            (end,), (losses,) = adam.descend(
                vectors,
                step,
                arguments(),
                [restart],
                lambda *_: [],
                watch,
                self.kl_warmup,
                resumed,
                save if problem.checkpoint else None,
            )
            values = guide_parameters.constrained(unpack(end, shapes))
            parameters = {name: value for name, value in values.items() if name in model.parameters}
            estimated = {PARAMETER + name: value.numpy() for name, value in parameters.items()}
            with guide_parameters.at(unpack(end, shapes)):
                draws = guide_draws(density.at(parameters), model.guide, self.n_draws)  # type: ignore[attr-defined]
                averaged = guide_averaged(problem, model.guide, draws)  # type: ignore[attr-defined]
                draws |= {} if averaged is None else {"log_q_averaged": averaged}
                if problem.stored is not None and not density.point_sites:
                    draws["lp"] = log_prob_of_draws(problem, draws["u"])
            if restart + 1 < self.n_restarts:  # reset modules, so that the next restart does not begin at this end
                guide_parameters.write(unpack(vectors[0], shapes))
            return {"loss": losses, **estimated, **draws}

    def _losses(
        self, problem: Problem, guide_parameters: "GuideParameters", n_training: int, shapes: Sequence[torch.Size]
    ) -> Callable[..., torch.Tensor]:
        """Return a function of unconstrained parameters `(1, size)`, the KL weight and a batch that computes the loss `(1,)`."""
        density = problem.density.placed(self.device)

        def losses(vectors: torch.Tensor, warmup: torch.Tensor, *batch: torch.Tensor) -> torch.Tensor:
            arrays, scale = (density.with_points(batch), n_training / len(batch[0])) if batch else (density.arrays, 1.0)
            weight = warmup * problem.model.kl_weight if self.kl_warmup else problem.model.kl_weight
            parts = unpack(vectors[0], shapes)
            if self.precision == "single":
                with single(), Fixed(to_float32(guide_parameters.constrained(parts))):
                    return self._pyro_loss(problem, to_float32(arrays), scale, weight, self.n_particles)[None].double()
            with guide_parameters.at(parts):
                loss = self._pyro_loss(problem, arrays, scale, weight, self.n_particles)
            return (guide_parameters.attached(loss, parts) if guide_parameters.in_modules else loss)[None]

        return losses

    def _pyro_loss(
        self, problem: Problem, arrays: Mapping[str, Any], scale: float, kl_weight: Any, n_particles: int
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
            if self.objective == "iwae":
                raise ModelError(f"objective 'iwae' needs reparameterised draws; a site in the guide of {model.name!r} has none.")
            return Trace_ELBO(num_particles=n_particles).differentiable_loss(program, guide, **arrays)
        guide_trace.compute_log_prob()
        program_trace.compute_log_prob()
        terms = [
            [site["log_prob"] for site in trace.nodes.values() if "log_prob" in site] for trace in (program_trace, guide_trace)
        ]
        log_w = torch.as_tensor(sum(terms[0]) - sum(terms[1])).reshape(n_particles, -1) / scale
        each = log_w.mean(0) if self.objective == "elbo" else torch.logsumexp(log_w, dim=0) - math.log(n_particles)
        return -scale * each.sum()


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
