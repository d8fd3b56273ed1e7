r"""Steps of the optimiser, of one process or of several, each of which has a share of the batch.

With $n_r$ of the B units of a batch in process r, and $\nabla_r$ the gradient on its share, in which each unit stands for
$N / n_r$ units,
$$ \nabla = \sum_r \frac{n_r}{B} \nabla_r. $$
Terms of single units thus count N / B times, and terms of global sites once, as on the whole batch. All processes have the same
random states. Noise of single units is drawn for the whole batch, of which a process uses its share. The result therefore
depends on the number of processes by rounding only.
"""

import contextlib
import itertools
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from pyro import poutine
from torch.overrides import TorchFunctionMode

from latentlab.errors import ModelError
from latentlab.inference.adam import EVERY, Shapes, Step, update_in_blocks, whole_step, with_slopes
from latentlab.inference.capture import capture
from latentlab.inference.draws import Problem
from latentlab.inference.program import in_plate, is_latent
from latentlab.processes import ALONE, Processes
from latentlab.seeds import forked, reseed

TOLERANCE = 1e-8
"""Largest difference between the loss or gradient of a batch and those of its shares, relative to the largest entry."""
TOLERANCE_SINGLE = 1e-3


class Settings(Protocol):
    """Settings of `SVI` that a step depends on."""

    @property
    def batch_size(self) -> int | None: ...
    @property
    def device(self) -> str: ...


def step_of(
    problem: Problem,
    losses: Callable[..., torch.Tensor],
    shapes: Shapes,
    rates: Sequence[float],
    settings: Settings,
    example: tuple[torch.Tensor, ...],
    *,
    is_captured: bool = True,
) -> Step:
    """Return a step of Adam as one graph; of several processes, by their mean gradient.

    Args:
        problem: The problem.
        losses: Losses on the batch, or on the share of this process.
        shapes: Shapes of the parameters of a fit.
        rates: Multiples of the learning rate, one for each parameter.
        settings: Settings of the method.
        example: Parameters, the factors of a step, and the other arguments of `losses`.
        is_captured: Whether the loss can be captured.
    """
    vectors, scale, *rest = (argument.to(settings.device) for argument in example)
    processes, plan = problem.processes, problem.density.plan
    if processes.size == 1:
        step = whole_step(losses, shapes, rates)
        return capture(step, vectors, vectors / 2, vectors**2, scale, *rest, plan=plan) if is_captured else step
    slopes_of, update, numbers = with_slopes(losses), update_in_blocks(shapes, rates), itertools.count(1)
    slopes_of = capture(slopes_of, vectors, *rest, plan=plan) if is_captured else slopes_of
    batch_size = settings.batch_size or 1

    def joint_step(vectors: torch.Tensor, m: torch.Tensor, v: torch.Tensor, scale: torch.Tensor, *rest: torch.Tensor) -> Any:
        values, slopes = processes.mean(batch_size, *slopes_of(vectors, *rest))
        sums, *after = update(vectors, m, v, scale, slopes)
        if next(numbers) % EVERY == 0:
            processes.check_equal(after[0])
        return values, sums, *after

    return joint_step


def check_shares(
    problem: Problem, size: int, evaluate: Callable[[Processes], tuple[torch.Tensor, ...]], *, single: bool = False
) -> None:
    """Raise an error unless loss and gradient of a batch are the weighted means of those of its shares.

    They differ if terms of different units are not independent, as with batch normalisation, or if noise cannot be drawn for the
    whole batch, as with dropout.

    Args:
        problem: The problem.
        size: Number of units of the batch.
        evaluate: Computes loss and gradient on the share of these processes.
        single: Whether they are in single precision.

    Raises:
        ModelError: Loss or gradient differ.
    """

    def at(processes: Processes) -> tuple[torch.Tensor, ...]:
        with forked(problem.density.plan.device):
            reseed(0, problem.density.plan.device)
            return evaluate(processes)

    n, tolerance = problem.processes.size, TOLERANCE_SINGLE if single else TOLERANCE
    shares = [(one.weight(size), at(one)) for one in (Processes(rank, n) for rank in range(n))]

    def agrees(i: int, whole: torch.Tensor) -> bool:
        gap = sum((weight * values[i] for weight, values in shares), -whole).abs().max()
        return bool(gap <= tolerance * whole.abs().max())

    if not all(agrees(i, whole) for i, whole in enumerate(at(ALONE))):
        raise ModelError(
            f"{problem.model.name!r} cannot be fitted by {n} processes: the loss of a batch is not a sum over its units, given "
            "the guide's noise. Remove batch normalisation, dropout and draws that are not normal, or use one process."
        )


def noise_of_batch(problem: Problem, batch_size: int | None) -> contextlib.AbstractContextManager[Any]:
    """Draw the noise of single units for the whole batch inside the block, and use the share of this process."""
    if problem.processes.size == 1 or batch_size is None:
        return contextlib.nullcontext()
    return _NoiseOfBatch(problem.density.points, batch_size, problem.processes.share(batch_size))


class _NoiseOfBatch(poutine.messenger.Messenger):
    """Draws latent sites in the points' plate by `_Share`."""

    def __init__(self, points: str, size: int, share: slice) -> None:
        super().__init__()
        self.points, self.size, self.share = points, size, share

    def _pyro_sample(self, msg: Any) -> None:
        if msg["done"] or msg["value"] is not None or not is_latent(msg) or not in_plate(msg, self.points):
            return
        plate = next(frame.dim for frame in msg["cond_indep_stack"] if frame.name == self.points)
        with _Share(plate - msg["fn"].event_dim, self.size, self.share):
            msg["value"] = msg["fn"](*msg["args"], **msg["kwargs"])
        msg["done"] = True


class _Share(TorchFunctionMode):
    """Replaces standard normal draws, whose axis `axis` has the size of a share, by the share of a larger draw."""

    def __init__(self, axis: int, size: int, share: slice) -> None:
        super().__init__()
        self.axis, self.size, self.share = axis, size, share

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        n = self.share.stop - self.share.start
        if func is not torch.Tensor.normal_ or args[1:] or kwargs or args[0].dim() < -self.axis or args[0].shape[self.axis] != n:
            return func(*args, **(kwargs or {}))
        shape = list(args[0].shape)
        shape[self.axis] = self.size
        drawn = torch.randn(shape, dtype=args[0].dtype, device=args[0].device)
        return drawn.narrow(self.axis, self.share.start, n)
