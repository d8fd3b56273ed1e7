r"""Adam for one fit or several fits in one batch, with progress, log lines and errors that describe a failed fit.

With the gradient $g_t$ and the running means $m_t = \beta_1 m_{t-1} + (1 - \beta_1) g_t$ and
$v_t = \beta_2 v_{t-1} + (1 - \beta_2) g_t^2$,
$$ \theta_t = \theta_{t-1} - \frac{\eta_t}{1 - \beta_1^t} \, \frac{m_t}{\sqrt{v_t / (1 - \beta_2^t)} + \epsilon}. $$
The parameters of a fit are one vector, so that loss, gradient and update are one graph of operations (`whole_step`).

References:
    Kingma & Ba (2015), Adam: A Method for Stochastic Optimization, ICLR.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from latentlab.errors import InferenceError
from latentlab.inference.draws import Monitor
from latentlab.inference.recorder import on
from latentlab.progress import tqdm

EVERY = 50
"""Steps between two evaluations of the held-out loss and of the stopping rule (`stalled`)."""
BETA_1, BETA_2, EPSILON = 0.9, 0.999, 1e-8
BLOCK = 1 << 15
"""Number of entries that `update_in_blocks` updates at once."""

Shapes = Sequence[torch.Size]
Step = Callable[..., tuple[torch.Tensor, ...]]


def pack(parameters: Sequence[torch.Tensor]) -> torch.Tensor:
    """Concatenate the parameters of a fit into one vector."""
    return torch.cat([parameter.detach().reshape(-1) for parameter in parameters])


def unpack(vector: torch.Tensor, shapes: Shapes) -> tuple[torch.Tensor, ...]:
    """Split a vector into parameters of these shapes.

    Example:
        >>> [part.tolist() for part in unpack(torch.arange(3.0), [torch.Size([2]), torch.Size([])])]
        [[0.0, 1.0], 2.0]
    """
    parts = torch.split(vector, [shape.numel() for shape in shapes])
    return tuple(part.reshape(shape) for part, shape in zip(parts, shapes, strict=True))


def with_slopes(losses: Callable[..., torch.Tensor]) -> Step:
    """Return a function of vectors `(fit, size)` that computes their losses `(fit,)` and gradients."""

    @torch.enable_grad()
    def both(vectors: torch.Tensor, *rest: torch.Tensor) -> tuple[torch.Tensor, ...]:
        leaf = vectors.detach().requires_grad_()
        values = losses(leaf, *rest)
        (slopes,) = torch.autograd.grad(values.sum(), leaf)
        return values.detach(), slopes

    return both


def whole_step(losses: Callable[..., torch.Tensor], shapes: Shapes, rates: Sequence[float]) -> Step:
    """Return one step of Adam as a function that can be captured.

    It maps `(vectors, m, v, scale, *rest)` to the losses, the sums of the gradients, and the updated vectors, m and v.

    Args:
        losses: Function of vectors `(fit, size)` and `rest`; loss `i` of its result `(fit,)` depends on row `i` only.
        shapes: Shapes of the parameters of a fit.
        rates: Multiples of the learning rate, one for each parameter.
    """
    slopes_of, update = with_slopes(losses), update_of(shapes, rates)

    def step(vectors: torch.Tensor, m: torch.Tensor, v: torch.Tensor, scale: torch.Tensor, *rest: torch.Tensor) -> Any:
        values, slopes = slopes_of(vectors, *rest)
        return values, *update(vectors, m, v, scale, slopes)

    return step


def update_of(shapes: Shapes, rates: Sequence[float]) -> Step:
    """Return the update of Adam: `(vectors, m, v, scale, gradients)` -> sums of the gradients, updated vectors, m and v."""

    def update(vectors: torch.Tensor, m: torch.Tensor, v: torch.Tensor, scale: torch.Tensor, slopes: torch.Tensor) -> Any:
        m = BETA_1 * m + (1 - BETA_1) * slopes
        v = BETA_2 * v + (1 - BETA_2) * slopes * slopes
        rate = scale[0]
        if set(rates) != {1.0}:
            multiples = [torch.full((shape.numel(),), r, dtype=vectors.dtype) for shape, r in zip(shapes, rates, strict=True)]
            rate = rate * torch.cat(multiples)
        return slopes.sum(1), vectors - rate * m / (torch.sqrt(v) * scale[1] + EPSILON), m, v

    return update


def update_in_blocks(shapes: Shapes, rates: Sequence[float]) -> Step:
    """Return the update of `update_of`, equal to the bit, by blocks of entries whose intermediate results stay in the cache.

    It is for steps that are not one graph: for a network of two million weights it takes less than half of the time.
    """
    update = update_of(shapes, rates)
    if set(rates) != {1.0}:
        return update

    def in_blocks(*arguments: torch.Tensor) -> Any:
        vectors, m, v, scale, slopes = arguments
        after = [torch.empty_like(vectors) for _ in range(3)]
        for first in range(0, vectors.shape[1], BLOCK):
            block = slice(first, first + BLOCK)
            parts = update(vectors[:, block], m[:, block], v[:, block], scale, slopes[:, block])[1:]
            for whole, part in zip(after, parts, strict=True):
                whole[:, block] = part
        return slopes.sum(1), *after

    return in_blocks


@dataclass(frozen=True)
class Descent:
    """State of the fits between two steps; with their batches and random states, a fit is resumed bit for bit.

    Args:
        n_done: Number of completed steps.
        vectors: Parameters `(fit, size)`.
        m: Running means of the gradients.
        v: Running means of their squares.
        losses: Losses `(step, fit)`; rows from `n_done` on are not filled yet.
        stopped: Number of steps and final parameters of each fit that has stopped.
        least: Least loss returned by `watch`.
        at: Step of the least loss.
        best: Parameters at the least loss.
    """

    n_done: int
    vectors: torch.Tensor
    m: torch.Tensor
    v: torch.Tensor
    losses: np.ndarray
    stopped: Mapping[int, tuple[int, torch.Tensor]]
    least: float
    at: int
    best: torch.Tensor

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the whole state as arrays by name."""
        numbers = [self.n_done, self.at, *(self.stopped[k][0] if k in self.stopped else 0 for k in range(len(self.vectors)))]
        ends = torch.stack([self.stopped[k][1] if k in self.stopped else vector for k, vector in enumerate(self.vectors)])
        tensors = {"vectors": self.vectors, "m": self.m, "v": self.v, "best": self.best, "ends": ends}
        return {
            "numbers": np.array(numbers),
            "least": np.array(self.least),
            "losses": self.losses[: self.n_done],
            **{name: tensor.cpu().numpy() for name, tensor in tensors.items()},
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray], n_steps: int) -> "Descent":
        """Return the state saved in `arrays`, with room for the losses of all steps."""
        (n_done, at, *stops), ends = arrays["numbers"].tolist(), torch.tensor(arrays["ends"])
        losses = np.full((n_steps, len(ends)), np.nan)
        losses[:n_done] = arrays["losses"]
        vectors, m, v, best = (torch.tensor(arrays[name]) for name in ("vectors", "m", "v", "best"))
        stopped = {k: (n, ends[k].clone()) for k, n in enumerate(stops) if n}
        return cls(n_done, vectors, m, v, losses, stopped, float(arrays["least"]), at, best)

    def to(self, device: str) -> "Descent":
        """Return a copy with its tensors on a device."""
        moved = {name: getattr(self, name).to(device) for name in ("vectors", "m", "v", "best")}
        return replace(self, **moved, stopped={k: (n, end.to(device)) for k, (n, end) in self.stopped.items()})


@dataclass(frozen=True)
class Adam:
    """Settings of a descent.

    Args:
        n_steps: Number of steps.
        learning_rate: Initial learning rate; constant for half of the steps, then it falls to a hundredth of this value.
        patience: Stop once the smoothed loss has not fallen for this many steps; None never stops early.
        title: Title of the progress bar.
        progress: Whether to show the progress bar.
        device: Device of the computation.
        log: Called with a line for each fit at every tenth of all steps.
        before: Number of steps of the preceding descent.
        total: Number of steps of all descents; `n_steps` if 0.
        monitor: Called after each step.
    """

    n_steps: int
    learning_rate: float
    patience: int | None
    title: str
    progress: bool
    device: str = "cpu"
    log: Callable[[str], object] | None = None
    before: int = 0
    total: int = 0
    monitor: Monitor | None = None

    def rate(self, step: int) -> float:
        """Return the learning rate at a step, as a fraction of the initial one."""
        half = self.n_steps / 2
        return 1.0 if step < half else 0.01 ** ((step - half) / max(half, 1.0))

    def scale(self, step: int) -> torch.Tensor:
        """Return the factors of m and of the root of v at a step, counted from 0."""
        first = self.learning_rate * self.rate(step) / (1 - BETA_1 ** (step + 1))
        return torch.tensor([first, 1 / math.sqrt(1 - BETA_2 ** (step + 1))], dtype=torch.float64)

    def descend(  # one argument for each setting of a descent
        self,
        vectors: torch.Tensor,
        step: Step,
        batches: Iterator[Any],
        numbers: Sequence[int],
        sites: Callable[[int, torch.Tensor], list[str]],
        watch: Callable[[torch.Tensor], float] | None = None,
        patient_from: int = 0,
        resumed: Descent | None = None,
        save: Callable[[Descent], object] | None = None,
    ) -> tuple[torch.Tensor, list[np.ndarray]]:
        """Run the steps; return the final parameters `(fit, size)` and the losses of each fit.

        Args:
            vectors: Initial parameters, `(fit, size)`.
            step: Result of `whole_step`; its last arguments are a batch.
            batches: Batches, one for each step.
            numbers: Numbers of the fits, for error messages.
            sites: Sites that are not finite in the n-th fit, given its vector.
            watch: Loss evaluated every `EVERY` steps; the parameters at its least value are the result. For a single fit.
            patient_from: With `watch`, first step from which `patience` counts.
            resumed: State to resume from, instead of `vectors`.
            save: Called with the state after each step.

        Raises:
            InferenceError: A loss or gradient is not finite; names the fit, the step and the sites.
        """
        zeros, losses = torch.zeros_like(vectors), np.full((self.n_steps, len(numbers)), np.nan)
        state = resumed or Descent(0, vectors, zeros, zeros, losses, {}, math.inf, 0, vectors)
        state = state.to(self.device)
        vectors, m, v, history, stopped = state.vectors, state.m, state.v, state.losses, dict(state.stopped)
        least, at, best, n_run = state.least, state.at, state.best, self.n_steps
        bar = tqdm(
            range(state.n_done, self.n_steps),
            initial=state.n_done,
            total=self.n_steps,
            desc=self.title,
            disable=None if self.progress else True,
            leave=False,
        )
        for i in bar:
            arguments = [argument.to(self.device) for argument in (self.scale(i), *next(batches))]
            with on(self.device):
                loss, sums, *after = step(vectors, m, v, *arguments)
            loss, sums = loss.cpu(), sums.cpu()
            history[i] = loss.numpy()
            if not math.isfinite(float((loss + sums).sum())):
                self._check(i, history, sums, after[1].cpu(), vectors.cpu(), numbers, sites, stopped)
            vectors, m, v = after
            if i % EVERY == 0:
                recent = history[max(0, i - EVERY) : i + 1].mean(0)
                bar.set_postfix(elbo=", ".join(f"{-loss:.2f}" for loss in recent[:4]), refresh=False)
            if watch is None:
                for k in range(len(numbers)):
                    if self.patience and k not in stopped and stalled(history[: i + 1, k], self.patience):
                        stopped[k] = (i + 1, vectors[k])
            elif (i + 1) % EVERY == 0 or i + 1 == self.n_steps:
                watched_loss = watch(vectors[0].cpu())
                if watched_loss < least:
                    least, at, best = watched_loss, i, vectors
                if self.patience and i - max(at, patient_from) >= self.patience:
                    n_run = i + 1
            finished = n_run == i + 1 or len(stopped) == len(numbers)
            self._report(i + 1, history, numbers, early=finished and i + 1 < self.n_steps)
            if finished:
                break
            if save is not None:
                save(Descent(i + 1, vectors, m, v, history, dict(stopped), least, at, best))
        if watch is not None:
            vectors = best
        each = [stopped.get(k, (n_run, vectors[k])) for k in range(len(numbers))]
        return torch.stack([end for _, end in each]).cpu(), [history[:n, k] for k, (n, _) in enumerate(each)]

    def _report(self, n_done: int, history: np.ndarray, numbers: Sequence[int], *, early: bool) -> None:
        """Pass the mean loss of each fit to the monitor, and to the log at every tenth of all steps and at an early end."""
        total, done = self.total or self.n_steps, self.before + n_done

        def recent() -> dict[int, float]:
            return dict(zip(numbers, history[max(0, n_done - EVERY) : n_done].mean(0).tolist(), strict=True))

        if self.monitor is not None:
            named = lambda: (done, {f"loss/restart-{number}": loss for number, loss in recent().items()})  # noqa: E731
            self.monitor(named, last=early or n_done == self.n_steps)
        if self.log is not None and (early or done * 10 // total > (done - 1) * 10 // total):
            for number, loss in recent().items():
                self.log(f"restart {number}, step {done} of {total}: elbo {-loss:.2f}")

    def _check(  # one argument for each part of the state
        self,
        step: int,
        history: np.ndarray,
        sums: torch.Tensor,
        m: torch.Tensor,
        vectors: torch.Tensor,
        numbers: Sequence[int],
        sites: Callable[[int, torch.Tensor], list[str]],
        stopped: Mapping[int, object],
    ) -> None:
        """Raise an error if the loss or the gradient of a fit is not finite.

        The sum of a finite gradient can overflow. The running mean `m` is therefore checked too: it is not finite if an entry
        of the gradient is not.
        """
        for k, number in enumerate(numbers):
            finite = math.isfinite(history[step, k]) and (math.isfinite(sums[k]) or bool(torch.isfinite(m[k]).all()))
            if k in stopped or finite:
                continue
            sites_text = ", ".join(sites(k, vectors[k]))
            raise InferenceError(
                f"SVI, restart {number}, step {step}: the loss ({history[step, k]:.4g}) or its gradient is not finite"
                f"{'; not finite: ' + sites_text if sites_text else ''}; last losses: "
                f"{[round(float(v), 3) for v in history[max(0, step - 3) : step, k]]}; "
                f"use a learning_rate below {self.learning_rate:g}, or standardise the data."
            )


def stalled(losses: np.ndarray, patience: int) -> bool:
    """Whether the mean loss of the last `patience` steps is no lower than that of the `patience` before."""
    if len(losses) < 2 * patience or len(losses) % EVERY:
        return False
    return bool(np.mean(losses[-patience:]) >= np.mean(losses[-2 * patience : -patience]))
