r"""Gaussian guides on the flat vector, fitted by maximising the evidence lower bound; several restarts in one batch.

The gradient of $\mathbb E_q[\log \tilde p(u) - \log q(u)]$ is the pathwise one: the score of q, whose mean is 0, is left out.
One step of one restart is a graph of tensor operations. If these are small, most of the time is overhead, and all restarts are
one batch: 8 restarts took half to a fifth of the time of separate runs. If they are large (mixtures of a few hundred units and
more), a batch is no faster, and the restarts run one after another.

References:
    Kucukelbir et al. 2017, Automatic Differentiation Variational Inference, JMLR 18(14).
    Roeder, Wu & Duvenaud 2017, Sticking the Landing, NeurIPS.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol

import numpy as np
import torch

from latentlab.data.memory import blocks
from latentlab.inference.adam import Adam, Descent, pack, unpack, with_slopes
from latentlab.inference.batches import batches, log_prob_of_draws
from latentlab.inference.capture import mean_size
from latentlab.inference.density import Density
from latentlab.inference.draws import Checkpointer, Problem, from_checkpoint, read_checkpoint
from latentlab.inference.guides import GUIDES, Frame, FullRank, GaussianGuide, MeanField
from latentlab.inference.nuts import CHECKPOINT_SECONDS
from latentlab.inference.start import non_finite_sites, start
from latentlab.inference.steps import check_shares, step_of
from latentlab.inference.whitening import log_p_of, whitening_frame
from latentlab.models.base import NOTHING
from latentlab.processes import Processes
from latentlab.seeds import double, isolated

SMALL = 2000
"""Mean number of entries of an operation's result below which the restarts are run in one batch."""
MAX_BATCHED = 64
"""Largest number of restarts in one batch."""
GROUP = 16
"""Number of draws whose noise torch generates together; in multiples of it, blocks have the noise of all draws at once."""
EXTRA_BATCHES = 3
"""Number of batches beyond one for each step: an example for each guide, and one for the curvature."""


class Settings(Protocol):
    """Settings of `SVI` that the Gaussian guides use."""

    @property
    def guide(self) -> str: ...
    @property
    def n_steps(self) -> int: ...
    @property
    def learning_rate(self) -> float: ...
    @property
    def patience(self) -> int | None: ...
    @property
    def n_particles(self) -> int: ...
    @property
    def batch_size(self) -> int | None: ...
    @property
    def n_restarts(self) -> int: ...
    @property
    def n_draws(self) -> int: ...
    @property
    def device(self) -> str: ...


class _Restart:
    """A guide with separate noise and minibatches, so that a restart's result does not depend on the other restarts."""

    def __init__(self, problem: Problem, settings: Settings, number: int) -> None:
        self.number, self._problem, self._settings = number, problem, settings
        seeds = problem.seeds.child("restart", number)
        with isolated(seeds):
            jitter = min(1.0, problem.model.jitter) if number else 0.0
            at = start(problem.density, seeds.child("start").numpy(), jitter=jitter, number=number)
            self.rough = settings.guide == "full_rank"
            self.guide: GaussianGuide = (MeanField if self.rough else GUIDES[settings.guide])(at)
            self.random = torch.Generator()
            self.random.set_state(torch.get_rng_state())
        self.frame: Frame | None = None
        self.n_batches = 0
        self._rows = self._batches()

    def _batches(self, *, shared: bool = True) -> Iterator[tuple[torch.Tensor, ...]]:
        rng = self._problem.seeds.child("restart", self.number).child("batches").numpy()
        n_steps = self._settings.n_steps + EXTRA_BATCHES
        return batches(self._problem, self._settings.batch_size, rng, n_steps=n_steps, skip=self.n_batches, shared=shared)

    def next_batch(self) -> tuple[torch.Tensor, ...]:
        """Return the next minibatch, or the share of this process; `()` stands for all the data."""
        self.n_batches += 1
        return next(self._rows)

    def whole_batch(self) -> tuple[torch.Tensor, ...]:
        """Return the next minibatch of all processes."""
        if self._problem.processes.size == 1:
            return self.next_batch()
        rows = next(self._batches(shared=False))
        self.n_batches += 1
        self._rows = self._batches()
        return rows

    def progress(self) -> tuple[int, torch.Tensor]:
        """Return the number of batches taken and the state of the random generator."""
        return self.n_batches, self.random.get_state()

    def resume(self, n_batches: int, random: np.ndarray) -> None:
        """Restore the position in the batches and the state of the random generator."""
        self.n_batches = n_batches
        self._rows = self._batches()
        self.random.set_state(torch.from_numpy(random))

    def location(self) -> torch.Tensor:
        """Return the guide's mean in the program's coordinates."""
        center = self.guide.loc.detach()
        return self.frame(center) if self.frame else center

    def fixed(self) -> tuple[torch.Tensor, ...]:
        """Return the frame as arguments of a step; `()` without a frame."""
        return (self.frame.center, self.frame.matrix, self.frame.log_det) if self.frame else ()


def fit_restarts(problem: Problem, settings: Settings) -> list[dict[str, np.ndarray]]:
    """Fit all restarts; return each one's guide parameters, draws `u` with `lp` and `log_q`, and losses."""
    with double():
        together = settings.n_restarts > 1 and _small(problem, settings)
    size = MAX_BATCHED if together else 1
    firsts = range(0, settings.n_restarts, size)
    groups = [range(first, min(first + size, settings.n_restarts)) for first in firsts]
    return [run for numbers in groups for run in fit_group(problem, settings, numbers)]


def fit_group(problem: Problem, settings: Settings, numbers: range) -> list[dict[str, np.ndarray]]:
    """Fit restarts in one batch, or read their checkpoint; return the arrays of each."""
    name = f"restart-{numbers[0]}" if len(numbers) == 1 else f"restarts-{numbers[0]}-to-{numbers[-1]}"
    arrays = from_checkpoint(problem, name, lambda: _fitted(problem, settings, numbers, name))
    if problem.processes.rank:
        return [{} for _ in numbers]
    runs = ({name: array[k] for name, array in arrays.items()} for k in range(len(numbers)))
    return [{**run, "loss": run["loss"][np.isfinite(run["loss"])]} for run in runs]


def check_gaussian_guide(problem: Problem, settings: Settings) -> None:
    """Raise an error if loss and gradient of a batch are not those of its shares, for several processes."""
    density = problem.density
    if problem.processes.size == 1 or settings.batch_size is None:
        return
    with double():
        restart = _Restart(problem, settings, 0)
        vectors, noise = pack(restart.guide.parameters)[None], restart.guide.noise(settings.n_particles, restart.random)[None]
        rows = tuple(density.arrays[name][: settings.batch_size] for name in density.point_arrays())

        def evaluate(processes: Processes) -> tuple[torch.Tensor, ...]:
            own = (row[processes.share(len(row))][None] for row in rows)
            return with_slopes(_losses(density, restart.guide, framed=False))(vectors, noise, *own)

        check_shares(problem, len(rows[0]), evaluate)


def _small(problem: Problem, settings: Settings) -> bool:
    """Whether the operations of one restart's step are so small that overhead takes most of the time.

    False for data on disk, since each restart reads a separate window of rows.
    """
    if problem.stored is not None:
        return False
    restart = _Restart(problem, settings, 0)
    slopes = with_slopes(_losses(problem.density, restart.guide, framed=False))
    noise = restart.guide.noise(settings.n_particles, restart.random)
    arguments = pack(restart.guide.parameters), noise, *restart.whole_batch()
    return mean_size(slopes, *(argument[None] for argument in arguments)) < SMALL


def _fitted(problem: Problem, settings: Settings, numbers: Sequence[int], name: str) -> dict[str, np.ndarray]:
    """Fit restarts in one batch; return their arrays `(restart, ...)`, losses padded with NaN.

    An interrupted fit is resumed from its checkpoint.
    """
    checkpoint = read_checkpoint(problem, f"{name}-under-way") or {}
    with double(), Checkpointer(problem, f"{name}-under-way", CHECKPOINT_SECONDS) as checkpointer:
        restarts = [_Restart(problem, settings, number) for number in numbers]
        n_steps, before = settings.n_steps, 0
        losses: list[list[np.ndarray]] = []
        extra: dict[str, np.ndarray] = {}
        if settings.guide == "full_rank":
            # A mean-field fit for a quarter of the steps gives whitened coordinates for the rest. Without them the entries of the
            # covariance factor differ in scale, and Adam's equal steps can make it singular (observed with 184 coordinates).
            before = max(1, n_steps // 4)
            n_steps = max(1, n_steps - before)
            if "rough" not in checkpoint:
                rough = _descend(problem, settings, restarts, before, checkpointer, checkpoint)
                checkpoint = {}
                for restart in restarts:
                    restart.frame = whitening_frame(problem.density, restart.guide, restart.random, restart.whole_batch())
                extra = {
                    "rough": np.stack([np.pad(one, (0, before - len(one)), constant_values=np.nan) for one in rough]),
                    "centers": np.stack([restart.frame.center.numpy() for restart in restarts if restart.frame]),
                    "matrices": np.stack([restart.frame.matrix.numpy() for restart in restarts if restart.frame]),
                }
            else:
                extra = {name: checkpoint[name] for name in ("rough", "centers", "matrices")}
                for restart, center, matrix in zip(restarts, extra["centers"], extra["matrices"], strict=True):
                    restart.frame = Frame(torch.tensor(center), torch.tensor(matrix))
            losses.append([row[np.isfinite(row)] for row in extra["rough"]])
            for restart in restarts:
                restart.guide = FullRank(torch.zeros_like(restart.guide.loc))
        losses.append(_descend(problem, settings, restarts, n_steps, checkpointer, checkpoint, before, extra))
        parts = []
        if problem.processes.rank:
            return {}
        u = problem.place.empty((len(restarts), settings.n_draws, problem.density.size))
        for k, restart in enumerate(restarts):
            guide = restart.guide
            if isinstance(guide, FullRank) and restart.frame:
                guide = guide.moved(restart.frame)
            log_q = _draw(guide, restart.random, u[k])
            loss = np.concatenate([part[k] for part in losses])
            loss = np.pad(loss, (0, settings.n_steps + 1 - len(loss)), constant_values=np.nan)
            arrays = {name: tensor.detach().numpy() for name, tensor in guide.arrays().items()}
            parts.append({"log_q": log_q, "loss": loss, **arrays})
    stacked = {name: np.stack([part[name] for part in parts]) for name in parts[0]}
    lp = log_prob_of_draws(problem, u.reshape(-1, u.shape[-1]))
    return {"u": u, **stacked, "lp": lp.reshape(stacked["log_q"].shape)}


def _draw(guide: GaussianGuide, random: torch.Generator, u: np.ndarray) -> np.ndarray:
    """Fill `u` `(draw, size)` with draws from a guide, block by block; return log q of the draws."""
    n_draws, size = u.shape
    log_q = np.empty(n_draws)
    for groups in blocks(-(-n_draws // GROUP), GROUP * size):
        block = slice(GROUP * groups.start, min(GROUP * groups.stop, n_draws))
        draws = guide.sample(block.stop - block.start, random)
        u[block], log_q[block] = draws.numpy(), guide.log_prob(draws).numpy()
    return log_q


def _descend(  # long: objective, batches and checkpoints share the variables of one descent
    problem: Problem,
    settings: Settings,
    restarts: Sequence[_Restart],
    n_steps: int,
    checkpointer: Checkpointer,
    checkpoint: Mapping[str, np.ndarray],
    before: int = 0,
    extra: Mapping[str, np.ndarray] = NOTHING,
) -> list[np.ndarray]:
    """Fit the restarts' guides, each in its frame; return the losses of each.

    The step is captured once for all batches with the same number of restarts.

    Args:
        problem: The problem.
        settings: Settings of the method.
        restarts: The restarts.
        n_steps: Number of steps.
        checkpointer: Writer of the fits' checkpoints.
        checkpoint: Arrays of a checkpoint to resume from; empty for a new fit.
        before: Number of steps of the preceding descent.
        extra: Further arrays of the checkpoint.
    """
    density, device, first = problem.density, settings.device, restarts[0]
    n, framed = settings.n_particles, first.frame is not None
    shapes = [p.shape for p in first.guide.parameters]
    vectors = torch.stack([pack(r.guide.parameters) for r in restarts])
    fixed = [torch.stack(parts) for parts in zip(*(r.fixed() for r in restarts), strict=True)]

    def joint_batches() -> Iterator[list[torch.Tensor]]:
        while True:
            yield [torch.stack(arrays) for arrays in zip(*(r.next_batch() for r in restarts), strict=True)]

    for parts in fixed:
        problem.processes.check_equal(parts)
    rows = joint_batches()

    def noise() -> torch.Tensor:
        return torch.stack([r.guide.noise(n, r.random) for r in restarts])

    def arguments() -> Iterator[tuple[torch.Tensor, ...]]:
        for batch in rows:
            yield noise(), *fixed, *batch

    title, total = _title(restarts, settings), settings.n_steps if before else 0
    if settings.guide == "full_rank" and not before:
        total = settings.n_steps
    shown = title, problem.progress, device, problem.log, before, total, problem.monitor
    adam = Adam(n_steps, settings.learning_rate, settings.patience, *shown)
    key = (type(first.guide), n, framed, len(restarts), device)
    # drawn in every group, so that results do not depend on the grouping
    example = vectors, adam.scale(0), noise(), *fixed, *next(rows)
    if key not in density.captured:
        losses_of_step = _losses(density.placed(device), first.guide, framed=framed)
        density.captured[key] = step_of(problem, losses_of_step, shapes, first.guide.rates, settings, example)

    def set_parameters(k: int, vector: torch.Tensor) -> None:
        restarts[k].guide.parameters = [p.clone() for p in unpack(vector, shapes)]

    def sites(k: int, vector: torch.Tensor) -> list[str]:
        set_parameters(k, vector)
        return non_finite_sites(density, restarts[k].location())

    def save(state: Descent) -> None:
        counts, randoms = zip(*(restart.progress() for restart in restarts), strict=True)
        checkpointer(
            lambda: {
                **state.arrays(),
                **extra,
                "n_batches": np.array(counts),
                "random": torch.stack(randoms).numpy(),
            }
        )

    resumed = Descent.from_arrays(checkpoint, n_steps) if checkpoint else None
    if checkpoint:
        for restart, n_batches, random in zip(restarts, checkpoint["n_batches"].tolist(), checkpoint["random"], strict=True):
            restart.resume(n_batches, random)
    numbers = [restart.number for restart in restarts]
    captured = density.captured[key]
    ends, losses = adam.descend(
        vectors, captured, arguments(), numbers, sites, resumed=resumed, save=save if problem.checkpoint else None
    )
    problem.processes.check_equal(ends)
    problem.processes.check_equal(torch.stack([restart.random.get_state() for restart in restarts]))
    for k, vector in enumerate(ends):
        set_parameters(k, vector)
    return losses


def _title(restarts: Sequence[_Restart], settings: Settings) -> str:
    first, last = restarts[0].number + 1, restarts[-1].number + 1
    return f"SVI {first if first == last else f'{first}-{last}'}/{settings.n_restarts}"


def _losses(density: Density, guide: GaussianGuide, *, framed: bool) -> Callable[..., torch.Tensor]:
    """Return a function of parameter vectors, noise, frames and batches, a row for each restart, that computes their losses."""
    n_fixed, shapes = 3 if framed else 0, [p.shape for p in guide.parameters]

    def loss(vector: torch.Tensor, noise: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        parameters, frame, rows = unpack(vector, shapes), rest[:n_fixed], rest[n_fixed:]
        v = guide.transform(parameters, noise)
        log_q = guide.log_density(tuple(p.detach() for p in parameters), v)
        u = v
        if frame:
            center, matrix, log_det = frame
            u, log_q = center + v @ matrix.mT, log_q - log_det
        return (log_q - torch.vmap(log_p_of(density, rows))(u)).mean()

    return torch.vmap(loss)
