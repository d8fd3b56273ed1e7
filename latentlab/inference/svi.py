r"""Stochastic variational inference: a guide $q(u)$ fitted by ascending the evidence lower bound.

$$ \mathrm{ELBO}(q) = \mathbb E_{q}[\log \tilde p(u) - \log q(u)] \le \log p(x), $$
with $u$ on the unconstrained scale. Gaussian guides live in `guides.py`; a model's own guide is Pyro's business, and only
with it are a model's parameters estimated. Where every site belongs to a unit, each unit n has importance weights
$w_{nk} = p(x_n, z_{nk}) / q(z_{nk} \mid x_n)$ of its own, and the objective may be the importance-weighted bound
$$ \sum_n \mathbb E_q\Big[\log \frac1K \sum_{k=1}^K w_{nk}\Big], $$
which is the ELBO for K = 1 and rises to $\log p(x)$ with K.
"""

import contextlib
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import pyro
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from tqdm.auto import tqdm

from latentlab.errors import ConfigError, InferenceError, ModelError
from latentlab.inference.density import Density, capture, constrain_draws, ends, non_finite_sites, over_draws, start
from latentlab.inference.draws import Draws, Problem, finished
from latentlab.inference.encoder import is_amortised
from latentlab.inference.guides import GUIDES, Frame, FullRank, GaussianGuide, MeanField
from latentlab.inference.nuts import require_whole
from latentlab.models.base import LatentModel
from latentlab.seeds import isolated
from latentlab.symmetry.average import log_average
from latentlab.symmetry.group import NEXT

N_CURVATURES = 8
"""Draws at which the curvature is looked at."""
N_NEWTON = 4
STEP = 1e-5
"""Of the central differences."""
LEAST_CURVATURE = 1e-4
EVERY = 50
"""Steps between two looks at the units that are held out."""
N_WATCHED = 8
"""Draws of the guide with which these are looked at, the same each time."""
PARAMETER = "parameter "
"""What the names of parameters begin with among the arrays of a restart."""

GuideName = Literal["model", "mean_field", "full_rank", "low_rank"]
Objective = Literal["elbo", "iwae"]


@dataclass(frozen=True)
class SVI:
    """Variational inference with a Gaussian guide on the unconstrained scale, or with the guide that the model brings.

    Adam, with a learning rate that is constant for the first half of the steps and then falls to a hundredth of itself. The
    full-rank guide begins as a mean-field one, for a quarter of the steps, and goes on in coordinates of equal curvature.

    Args:
        guide: `model` (the model's own), `mean_field`, `full_rank` or `low_rank`.
        n_steps: Steps of the optimiser.
        learning_rate: Of Adam, at the beginning.
        n_particles: Draws of the guide a step.
        batch_size: Units a step; all where None. Needs positions that are integrated out, or an amortised guide.
        n_restarts: Independent fits; all losses are kept, the best ELBO is the result.
        patience: Stop once the smoothed ELBO has not risen for this many steps; never where None.
        n_draws: Draws from the fitted guide, one chain.
        objective: `elbo`, or `iwae`: the importance-weighted bound with `n_particles` samples for each unit.
        kl_warmup: Steps over which the terms of the units' own sites grow to their full weight (with the model's own guide).
        held_out: Share of the units that are kept out of the steps: the best parameters by their ELBO are the result, and
            `patience` is about it (with the model's own guide).

    References:
        Kucukelbir et al. 2017, Automatic Differentiation Variational Inference, JMLR 18(14).
        Roeder, Wu & Duvenaud 2017, Sticking the Landing, NeurIPS.
        Burda, Grosse & Salakhutdinov 2016, Importance Weighted Autoencoders, ICLR.
    """

    guide: GuideName = "full_rank"
    n_steps: int = 4000
    learning_rate: float = 0.02
    n_particles: int = 8
    batch_size: int | None = None
    n_restarts: int = 1
    patience: int | None = None
    n_draws: int = 2000
    objective: Objective = "elbo"
    kl_warmup: int = 0
    held_out: float = 0.0

    name: ClassVar[str] = "svi"
    kind: ClassVar[str] = "vi"

    def __post_init__(self) -> None:
        if self.guide not in ("model", *GUIDES):
            raise ConfigError(f"SVI.guide must be one of model, {', '.join(GUIDES)}; got {self.guide!r}.")
        for field in ("n_steps", "n_particles", "n_restarts", "n_draws"):
            require_whole(f"SVI.{field}", getattr(self, field), 1)
        for field in ("batch_size", "patience"):
            if getattr(self, field) is not None:
                require_whole(f"SVI.{field}", getattr(self, field), 1)
        if not (isinstance(self.learning_rate, int | float) and 0 < self.learning_rate < math.inf):
            raise ConfigError(f"SVI.learning_rate must be a positive number; got {self.learning_rate!r}.")
        if self.objective not in ("elbo", "iwae"):
            raise ConfigError(f"SVI.objective must be elbo or iwae; got {self.objective!r}.")
        require_whole("SVI.kl_warmup", self.kl_warmup, 0)
        if isinstance(self.held_out, bool) or not (isinstance(self.held_out, int | float) and 0 <= self.held_out < 1):
            raise ConfigError(f"SVI.held_out must be a share from 0 and below 1; got {self.held_out!r}.")
        for field in ("objective", "kl_warmup", "held_out"):
            if self.guide != "model" and getattr(self, field) not in ("elbo", 0):
                raise ConfigError(f"SVI.{field} goes with guide='model' only; the guide is {self.guide!r}.")

    def run(self, problem: Problem) -> Draws:
        restart = self._pyro_restart if self.guide == "model" else self._gaussian_restart
        runs = [finished(problem, f"restart-{i}", lambda i=i: restart(problem, i)) for i in range(self.n_restarts)]  # type: ignore[misc]
        elbo = np.array([float(np.mean(run["lp"] - run["log_q"])) for run in runs])
        best = runs[int(np.argmax(elbo))]
        values = constrain_draws(problem.density, best["u"][None])
        parameters = {n.removeprefix(PARAMETER): best[n] for n in best if n.startswith(PARAMETER)}
        stats = {"lp": best["lp"][None], "log_q": best["log_q"][None]}
        stats["log_q_averaged"] = self._averaged(problem, best, values)[None]
        longest = max(len(run["loss"]) for run in runs)
        losses = np.stack([np.pad(run["loss"], (0, longest - len(run["loss"])), mode="edge") for run in runs])
        attrs = {"guide": self.guide, "elbo": float(elbo.max()), "averaged": int(self.guide != "model")}
        restarts = ends(problem.density, [run.get("loc", run["u"].mean(axis=0)) for run in runs])
        return Draws(values, stats, {"loss": losses, "elbo": elbo}, restarts, attrs, parameters)

    def check(self, problem: Problem) -> None:
        """Refuses a guide or a batch that does not go with the model and the data."""
        density = problem.density
        if self.guide == "model":
            if not problem.model.has_guide():
                raise ModelError(f"{problem.model.name!r} brings no guide; use {', '.join(GUIDES)}.")
            check_guide(problem)
            self._check_particles(problem)
        elif problem.model.parameters:
            raise ModelError(
                f"{problem.model.name!r} has parameters, estimated with guide='model' only; the guide is {self.guide!r}."
            )
        if self.objective == "iwae" and not is_amortised(density):
            others = [site.name for site in density.sites if site.name not in density.unit_sites]
            raise ModelError(
                f"objective 'iwae' needs a model whose sites all belong to units; {problem.model.name!r} has {', '.join(others)}."
            )
        if self.held_out:
            n_held_out = round(self.held_out * density.n_units)
            if not 0 < n_held_out < density.n_units:
                raise ConfigError(f"SVI.held_out: {self.held_out} of {density.n_units} units leaves one part empty.")
            if self.batch_size is not None and self.batch_size > density.n_units - n_held_out:
                raise ConfigError(
                    f"SVI.batch_size must be at most the {density.n_units - n_held_out} units that are not held out; "
                    f"got {self.batch_size}."
                )
        if self.batch_size is not None:
            if problem.model.is_series():
                raise ModelError(
                    f"batch_size does not go with {problem.model.name!r}: the steps of a series depend on each other."
                )
            if self.batch_size > density.n_units:
                raise ConfigError(f"SVI.batch_size must be at most the {density.n_units} units; got {self.batch_size}.")
            if density.unit_sites and self.guide != "model":
                raise ModelError(
                    f"batch_size needs a guide that is amortised over units: site {density.unit_sites[0]!r} has a value for "
                    f"each unit, and the guide {self.guide!r} would hold one parameter for each."
                )

    def _check_particles(self, problem: Problem) -> None:
        """Refuses a program that cannot take all particles at once, where this is how they are drawn."""
        if not is_amortised(problem.density) or (self.n_particles == 1 and not self.held_out):
            return
        rows = tuple(problem.density.arrays[name][:2] for name in problem.density.unit_arrays())
        try:
            with isolated(problem.seeds.child("check")), pyro.validation_enabled(False):
                self._pyro_loss(problem, problem.density.with_units(rows), 1.0, 1.0, 3)
        except Exception as error:  # whatever a program raises
            said = " ".join(str(error).split())[:200]
            raise ModelError(
                f"{problem.model.name!r} does not take a further leading axis, of several particles at once; write it with "
                f"`...`, or say n_particles=1 and no held_out: {type(error).__name__}: {said}"
            ) from error

    def _averaged(self, problem: Problem, best: dict[str, np.ndarray], values: dict[str, np.ndarray]) -> np.ndarray:
        """log q of the draws, averaged over the model's symmetry; log q itself where the guide is not Gaussian."""
        if self.guide == "model":
            return best["log_q"]
        density, model = problem.density, problem.model
        guide = GUIDES[self.guide].from_arrays(best)
        center = {k: v[0, 0] for k, v in constrain_draws(density, best["loc"][None, None]).items()}
        names = [s.name for s in density.sites]

        def flat(value: Any) -> dict[str, torch.Tensor]:
            u = density.unconstrain_fast(value)
            return {"u": u, "jacobian": density.log_jacobian(u)}

        def log_q(sites: dict[str, np.ndarray]) -> np.ndarray:
            at = over_draws(flat, {name: sites[name] for name in names}, block=4096)
            return guide.log_prob(torch.from_numpy(at["u"])).numpy() - at["jacobian"]

        draws = {name: values[name][0] for name in names}
        dims = {name: tuple(model.dims[name]) for name in names}
        # Sites with one axis of the symmetry's say which element an orbit is best looked at from; transitions have two.
        acted = [name for name in names if [dim.removeprefix(NEXT) for dim in dims[name]].count(model.symmetry.dim) == 1]
        if not acted:
            return best["log_q"]
        jacobian = over_draws(lambda v: density.log_jacobian(v["u"]), {"u": best["u"]}, block=4096)
        on = max(acted, key=lambda name: draws[name][0].size)
        rng = problem.seeds.child("average").numpy()
        return log_average(model.symmetry, log_q, draws, dims, on=on, center=center, rng=rng) + jacobian

    # -- Gaussian guides on the flat vector

    def _gaussian_restart(self, problem: Problem, restart: int) -> dict[str, np.ndarray]:
        seeds, density = problem.seeds.child("restart", restart), problem.density
        with isolated(seeds):
            u = start(density, seeds.child("start").numpy(), jitter=min(1.0, problem.model.jitter) if restart else 0.0)
            batches = _batches(problem, self.batch_size, seeds.child("batches").numpy())
            guide: GaussianGuide
            if self.guide == "full_rank":
                guide, losses = self._full_rank(problem, u, batches, restart)
            else:
                guide = GUIDES[self.guide](u)
                losses = self._fit(problem, guide, batches, restart, self.n_steps)
            draws = guide.sample(self.n_draws)
            log_q = guide.log_prob(draws).numpy()
            arrays = {name: tensor.detach().numpy() for name, tensor in guide.arrays().items()}
        lp = over_draws(lambda v: density.log_prob(v["u"]), {"u": draws.numpy()})
        return {"u": draws.numpy(), "lp": lp, "log_q": log_q, "loss": losses, **arrays}

    def _full_rank(self, problem: Problem, u: torch.Tensor, batches: Iterator[Any], restart: int) -> tuple[FullRank, np.ndarray]:
        """A mean-field guide for a quarter of the steps; the rest in coordinates that its mean curvature makes round.

        In the coordinates of the program the entries of a factor of the covariance are of very different sizes, and Adam, whose
        steps are of one size, can make it singular (seen with 184 coordinates). The family is the same in any coordinates.
        """
        n_rough = max(1, self.n_steps // 4)
        rough = MeanField(u)
        losses = self._fit(problem, rough, batches, restart, n_rough)
        frame = _round_frame(problem.density, rough, next(batches))
        guide = FullRank(torch.zeros_like(u))
        rest = self._fit(problem, guide, batches, restart, max(1, self.n_steps - n_rough), frame)
        return guide.moved(frame), np.concatenate([losses, rest])

    def _fit(
        self,
        problem: Problem,
        guide: GaussianGuide,
        batches: Iterator[Any],
        restart: int,
        n_steps: int,
        frame: Frame | None = None,
    ) -> np.ndarray:
        """Fits the guide's parameters in a frame (the program's own coordinates where None); the loss of each step."""
        step = self._gaussian_step(problem.density, guide, next(batches), frame)

        def location() -> torch.Tensor:
            return frame(guide.loc) if frame else guide.loc

        return self._descend(problem, guide.parameters, guide.rates, step, batches, location, restart, n_steps)

    def _gaussian_step(
        self, density: Density, guide: GaussianGuide, batch: Any, frame: Frame | None
    ) -> Callable[[Any], torch.Tensor]:
        """A function of a batch that fills the parameters' gradients and returns the loss.

        It is captured once for all restarts: what differs between them, the frame too, is an argument.
        """
        n_parameters = len(guide.parameters)
        fixed = (frame.center, frame.matrix, frame.log_det) if frame else ()
        n_fixed = len(fixed)

        def loss(parameters: tuple[torch.Tensor, ...], noise: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
            placed, rows = rest[:n_fixed], rest[n_fixed:]
            v = guide.transform(parameters, noise)
            frozen = tuple(p.detach() for p in parameters)
            log_q = guide.log_density(frozen, v)
            u = v
            if placed:
                center, matrix, log_det = placed
                u, log_q = center + v @ matrix.mT, log_q - log_det
            return (log_q - torch.vmap(_log_p(density, rows))(u)).mean()

        def flat(noise: torch.Tensor, *rest: torch.Tensor) -> Any:
            parameters, data = rest[:n_parameters], rest[n_parameters:]
            gradients, value = torch.func.grad_and_value(loss)(parameters, noise, *data)
            return (value, *gradients)

        key = (type(guide), self.n_particles, bool(frame))
        example = guide.noise(self.n_particles)  # drawn in every restart, so that each is the same alone as among others
        if key not in density.captured:
            density.captured[key] = capture(flat, example, *(p.detach() for p in guide.parameters), *fixed, *batch)
        fast = density.captured[key]

        def step(rest: Any) -> torch.Tensor:
            parameters = (p.detach() for p in guide.parameters)
            value, *gradients = fast(guide.noise(self.n_particles), *parameters, *fixed, *rest)
            for parameter, gradient in zip(guide.parameters, gradients, strict=True):
                parameter.grad = gradient.clone()
            return value

        return step

    # -- the model's own guide

    def _pyro_restart(self, problem: Problem, restart: int) -> dict[str, np.ndarray]:
        seeds, density, model = problem.seeds.child("restart", restart), problem.density, problem.model
        with isolated(seeds), pyro.validation_enabled(False):
            training, held_out = _divided(density.n_units, self.held_out, seeds.child("held_out").numpy())
            batches = _batches(problem, self.batch_size, seeds.child("batches").numpy(), training)
            first = next(batches)
            found = _started(model, density.with_units(first) if first else density.arrays)
            parameters = [value.unconstrained() for value in found.values()]
            n_training = density.n_units if training is None else len(training)
            count = itertools.count(1)

            def step(rest: Any) -> torch.Tensor:
                warm = min(1.0, next(count) / self.kl_warmup) if self.kl_warmup else 1.0
                now, scale = (density.with_units(rest), n_training / len(rest[0])) if rest else (density.arrays, 1.0)
                loss = self._pyro_loss(problem, now, scale, warm * model.kl_weight, self.n_particles)
                for parameter in parameters:
                    parameter.grad = None
                loss.backward()
                return loss.detach()

            watch = None
            if held_out is not None:
                aside = density.with_units(tuple(density.arrays[name][held_out] for name in density.unit_arrays()))

                def watch() -> float:
                    with torch.no_grad(), torch.random.fork_rng(devices=[]):
                        torch.manual_seed(0)
                        return float(self._pyro_loss(problem, aside, 1.0, model.kl_weight, N_WATCHED))

            rates = (1.0,) * len(parameters)
            losses = self._descend(problem, parameters, rates, step, batches, None, restart, self.n_steps, watch)
            own = {name: value.detach() for name, value in _values(found).items() if name in model.parameters}
            kept = {PARAMETER + name: value.numpy() for name, value in own.items()}
            return {"loss": losses, **kept, **_guide_draws(density.at(own), model.guide, self.n_draws)}  # type: ignore[attr-defined]

    def _pyro_loss(
        self, problem: Problem, arrays: Mapping[str, Any], scale: float, kl_weight: float, n_particles: int
    ) -> torch.Tensor:
        """Minus the objective: terms inside the plate `unit` times `scale`, those of latent sites there times `kl_weight` too.

        Where every site belongs to a unit, all particles are one call, in a plate of their own outside the units.
        """
        model = problem.model
        program, guide = (_scaled(f, scale, kl_weight) for f in (model.model, model.guide))  # type: ignore[attr-defined]
        if not is_amortised(problem.density):
            return Trace_ELBO(num_particles=n_particles).differentiable_loss(program, guide, **arrays)
        with pyro.plate("particle", n_particles, dim=-2) if n_particles > 1 else contextlib.nullcontext():
            drawn = poutine.trace(guide).get_trace(**arrays)
            whole = poutine.trace(poutine.replay(program, trace=drawn)).get_trace(**arrays)
        drawn.compute_log_prob()
        whole.compute_log_prob()
        terms = [[site["log_prob"] for site in trace.nodes.values() if "log_prob" in site] for trace in (whole, drawn)]
        log_w = torch.as_tensor(sum(terms[0]) - sum(terms[1])).reshape(n_particles, -1) / scale
        each = log_w.mean(0) if self.objective == "elbo" else torch.logsumexp(log_w, dim=0) - math.log(n_particles)
        return -scale * each.sum()

    # -- the loop that both share

    def _descend(
        self,
        problem: Problem,
        parameters: list[torch.Tensor],
        rates: Sequence[float],
        step: Callable[[Any], torch.Tensor],
        batches: Iterator[Any],
        location: Callable[[], torch.Tensor] | None,
        restart: int,
        n_steps: int,
        watch: Callable[[], float] | None = None,
    ) -> np.ndarray:
        """Adam's steps, and their losses; with `watch`, a loss that is looked at now and then, the best parameters are kept."""
        groups = [{"params": [p], "lr": self.learning_rate * rate} for p, rate in zip(parameters, rates, strict=True)]
        optimizer = torch.optim.Adam(groups)
        decay = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, n_steps))
        losses: list[float] = []
        least, at, best = math.inf, 0, [p.detach().clone() for p in parameters]
        bar = tqdm(
            range(n_steps),
            desc=f"SVI {restart + 1}/{self.n_restarts}",
            disable=None if problem.progress else True,
            leave=False,
        )
        for i in bar:
            loss = float(step(next(batches)))
            if not math.isfinite(loss) or not all(bool(torch.isfinite(p.grad).all()) for p in parameters if p.grad is not None):
                sites = ", ".join(non_finite_sites(problem.density, location().detach())) if location else ""
                raise InferenceError(
                    f"SVI, restart {restart}, step {i}: loss {loss:.4g} or its gradient is not finite"
                    f"{'; not finite: ' + sites if sites else ''}; last finite losses {[round(v, 3) for v in losses[-3:]]}; "
                    f"try a learning_rate below {self.learning_rate:g} or standardised data."
                )
            losses.append(loss)
            optimizer.step()
            decay.step()
            if i % 50 == 0:
                bar.set_postfix(elbo=f"{-np.mean(losses[-50:]):.2f}", refresh=False)
            if watch is None:
                if self.patience and _stalled(losses, self.patience):
                    break
            elif (i + 1) % EVERY == 0 or i + 1 == n_steps:
                seen = watch()
                if seen < least:
                    least, at, best = seen, i, [p.detach().clone() for p in parameters]
                if self.patience and i - max(at, self.kl_warmup) >= self.patience:
                    break
        if watch is not None:
            with torch.no_grad():
                for parameter, value in zip(parameters, best, strict=True):
                    parameter.copy_(value)
        return np.asarray(losses)


def _rate(step: int, n_steps: int) -> float:
    """Share of the learning rate at a step: all of it for the first half, a hundredth at the end."""
    half = n_steps / 2
    return 1.0 if step < half else 0.01 ** ((step - half) / max(half, 1.0))


def _log_p(density: Density, rows: tuple[torch.Tensor, ...]) -> Callable[[torch.Tensor], torch.Tensor]:
    """The flat log density; with a minibatch's rows, its unbiased estimate from them."""
    arrays = density.with_units(rows) if rows else None
    scale = density.n_units / len(rows[0]) if rows else 1.0

    def log_p(u: torch.Tensor) -> torch.Tensor:
        return density.log_joint(density.constrain(u), arrays, scale) + density.log_jacobian(u)

    return log_p


def _round_frame(density: Density, guide: GaussianGuide, rows: tuple[torch.Tensor, ...]) -> Frame:
    r"""Coordinates about the guide in which $\mathbb E_q[-\nabla^2 \log \tilde p]$ is the identity, curvatures without sign.

    A curvature counts as at least 1e-4 of the median, so that directions that nothing holds, such as a symmetry's, are not much
    wider than the others. With all the data at hand the centre is first moved by Newton's steps, where they raise log p: what is
    near in the program's coordinates can be many sds away in these.
    """
    log_p = _log_p(density, rows)
    center, root = guide.loc.detach(), torch.eye(len(guide.loc), dtype=guide.loc.dtype)
    half = guide.sample(N_CURVATURES // 2) - center
    spread = torch.cat([half, -half])  # of mean 0: else Newton's step would undo a chance displacement of the draws
    for _ in range(1 if rows else N_NEWTON):
        gradient, curvature = _derivatives(log_p, center + spread)
        if not bool(torch.isfinite(curvature).all()):
            break
        values, vectors = torch.linalg.eigh(curvature)
        least = LEAST_CURVATURE * float(values.abs().median())
        root = vectors / torch.sqrt(torch.clamp(values.abs(), min=least))
        if rows:
            break
        step = root @ (root.mT @ gradient)
        tried = torch.stack([center + share * step for share in (0.0, 0.1, 0.3, 1.0)])
        level = torch.from_numpy(over_draws(lambda at: log_p(at["u"]), {"u": tried.numpy()})).nan_to_num(nan=-math.inf)
        center = tried[int(level.argmax())]
        if int(level.argmax()) == 0:
            break
    return Frame(center, root)


def _derivatives(log_p: Callable[[torch.Tensor], torch.Tensor], draws: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean gradient `(size,)` and mean curvature, minus the Hessian, `(size, size)`, by central differences of the gradient."""
    size = draws.shape[1]
    steps = STEP * torch.eye(size, dtype=draws.dtype)
    slope = torch.func.grad(log_p)
    gradient, curvature = torch.zeros_like(draws[0]), torch.zeros_like(steps)
    for draw in draws:
        points = torch.cat([draw + steps, draw - steps]).numpy()
        plus, minus = torch.from_numpy(over_draws(lambda at: slope(at["u"]), {"u": points})).split(size)
        gradient += (plus + minus).mean(0) / (2 * len(draws))
        curvature -= (plus - minus) / (2 * STEP * len(draws))
    return gradient, (curvature + curvature.mT) / 2


def _stalled(losses: list[float], patience: int) -> bool:
    """Whether the mean loss of the last `patience` steps is no lower than that of the `patience` before."""
    if len(losses) < 2 * patience or len(losses) % 50:
        return False
    return bool(np.mean(losses[-patience:]) >= np.mean(losses[-2 * patience : -patience]))


def _batches(
    problem: Problem, batch_size: int | None, rng: np.random.Generator, units: np.ndarray | None = None
) -> Iterator[tuple[torch.Tensor, ...]]:
    """Minibatches of the arrays that have the dim `unit`, epoch by epoch without replacement; `()` for all the data.

    Of `units` only, where they are given: then all of these are a batch without a size.
    """
    density = problem.density
    chosen = np.arange(density.n_units) if units is None else units
    whole = () if units is None else tuple(density.arrays[name][chosen] for name in density.unit_arrays())
    while True:
        if batch_size is None:
            yield whole
            continue
        order = torch.tensor(rng.permutation(chosen))
        for first in range(0, len(chosen) - batch_size + 1, batch_size):
            index = order[first : first + batch_size]
            yield tuple(density.arrays[name][index] for name in density.unit_arrays())


def _divided(n_units: int, share: float, rng: np.random.Generator) -> tuple[np.ndarray | None, np.ndarray | None]:
    """The numbers of the units that steps are made with, and of those that are kept out of them; None where none are."""
    if not share:
        return None, None
    order, n_held_out = rng.permutation(n_units), round(share * n_units)
    return np.sort(order[n_held_out:]), np.sort(order[:n_held_out])


def _started(model: LatentModel, arrays: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of guide and program in Pyro's store, by name, as they start."""
    with poutine.trace(param_only=True) as seen:
        model.guide(**arrays)  # type: ignore[attr-defined]
        if model.parameters:
            model.model(**arrays)
    found: Any = seen.trace.nodes
    return {name: site["value"] for name, site in found.items()}


def _values(names: Iterable[str]) -> dict[str, torch.Tensor]:
    """What Pyro's store holds under these names, constrained."""
    return {name: pyro.param(name) for name in names}


def _scaled(program: Callable[..., Any], scale: float, kl_weight: float) -> Callable[..., Any]:
    """The program with its terms inside the plate `unit` times `scale`, and those of latent sites times `kl_weight` too."""
    if scale == kl_weight == 1.0:
        return program

    def scaled(**arrays: Any) -> Any:
        with _ScaleUnits(scale, kl_weight):
            return program(**arrays)

    return scaled


class _ScaleUnits(poutine.messenger.Messenger):
    """Multiplies the scale of sites inside the plate `unit`, and that of latent ones by a weight of their own."""

    def __init__(self, scale: float, kl_weight: float) -> None:
        super().__init__()
        self.scale, self.kl_weight = scale, kl_weight

    def _pyro_sample(self, msg: Any) -> None:
        if any(frame.name == "unit" for frame in msg["cond_indep_stack"]):
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


def _guide_draws(density: Density, guide: Callable[..., Any], n_draws: int) -> dict[str, np.ndarray]:
    """Draws from a Pyro guide with lp and log q on the unconstrained scale."""
    rows, log_q, lp = [], [], []
    with torch.no_grad():
        for _ in range(n_draws):
            nodes: Any = poutine.trace(guide).get_trace(**density.arrays).nodes
            values = {site.name: nodes[site.name]["value"] for site in density.sites}
            u = density.unconstrain(values)
            jacobian = density.log_jacobian(u)
            rows.append(u)
            total = sum(nodes[s.name]["fn"].log_prob(nodes[s.name]["value"]).sum() for s in density.sites)
            log_q.append(total + jacobian)
            lp.append(density.log_joint(values) + jacobian)
    return {
        "u": torch.stack(rows).numpy(),
        "lp": torch.stack(lp).numpy(),
        "log_q": torch.stack(log_q).numpy(),
    }
