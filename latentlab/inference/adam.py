"""Adam's steps for one fit or for several in one batch, with what both a user and a failing fit need to be told."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from latentlab.errors import InferenceError

EVERY = 50
"""Steps between two looks at the loss: at the units that are held out, and at whether it still falls."""


@dataclass(frozen=True)
class Adam:
    """How long and how fast to descend.

    Args:
        n_steps: Steps.
        learning_rate: At the beginning; constant for half of the steps, it then falls to a hundredth of itself.
        patience: Stop once the smoothed loss has not fallen for this many steps; never where None.
        title: Of the progress bar.
        progress: Show it.
    """

    n_steps: int
    learning_rate: float
    patience: int | None
    title: str
    progress: bool

    def rate(self, step: int) -> float:
        """Share of the learning rate at a step."""
        half = self.n_steps / 2
        return 1.0 if step < half else 0.01 ** ((step - half) / max(half, 1.0))

    def descend(
        self,
        parameters: Sequence[torch.Tensor],
        rates: Sequence[float],
        step: Callable[[Any], Sequence[torch.Tensor]],
        batches: Iterator[Any],
        numbers: Sequence[int],
        sites: Callable[[int], list[str]],
        watch: Callable[[], float] | None = None,
        patient_from: int = 0,
    ) -> list[np.ndarray]:
        """Changes the parameters in place; the losses of each fit.

        Args:
            parameters: Leaves, `(fit, ...)` where there are several fits, each with a row of its own.
            rates: Multiples of the learning rate, one for each parameter.
            step: Of a batch: the losses and the sums of all entries of the gradients, `(fit,)` each, and the gradients.
            batches: What `step` is given.
            numbers: The fits' numbers, to name one that fails.
            sites: What is not finite in the n-th of them.
            watch: A loss that is looked at now and then: the parameters at its least are the result. For a single fit.
            patient_from: First step from which `patience` counts, with `watch`.

        Raises:
            InferenceError: A loss or gradient is not finite; names the fit, the step and the sites.
        """
        groups = [
            {"params": [p for p, own in zip(parameters, rates, strict=True) if own == rate], "lr": self.learning_rate * rate}
            for rate in dict.fromkeys(rates)
        ]
        optimizer = torch.optim.Adam(groups, fused=True)
        decay = torch.optim.lr_scheduler.LambdaLR(optimizer, self.rate)
        history = np.full((self.n_steps, len(numbers)), np.nan)
        n_done = np.full(len(numbers), self.n_steps)
        stopped: dict[int, list[torch.Tensor]] = {}
        least, at, best = math.inf, 0, [p.detach().clone() for p in parameters]
        bar = tqdm(range(self.n_steps), desc=self.title, disable=None if self.progress else True, leave=False)
        for i in bar:
            losses, sums, *gradients = step(next(batches))
            history[i] = losses.numpy()
            if not bool(torch.isfinite(losses + sums).all()):
                self._check(i, history, gradients, numbers, sites, stopped)
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient
            optimizer.step()
            decay.step()
            if i % EVERY == 0:
                lately = history[max(0, i - EVERY) : i + 1].mean(0)
                bar.set_postfix(elbo=", ".join(f"{-loss:.2f}" for loss in lately[:4]), refresh=False)
            if watch is None:
                for k in range(len(numbers)):
                    if self.patience and k not in stopped and stalled(history[: i + 1, k], self.patience):
                        stopped[k] = [p.detach()[k].clone() for p in parameters] if len(numbers) > 1 else []
                        n_done[k] = i + 1
                if len(stopped) == len(numbers):
                    break
            elif (i + 1) % EVERY == 0 or i + 1 == self.n_steps:
                seen = watch()
                if seen < least:
                    least, at, best = seen, i, [p.detach().clone() for p in parameters]
                if self.patience and i - max(at, patient_from) >= self.patience:
                    n_done[:] = i + 1
                    break
        with torch.no_grad():
            for k, values in stopped.items():
                for parameter, value in zip(parameters, values, strict=False):
                    parameter[k].copy_(value)
            if watch is not None:
                for parameter, value in zip(parameters, best, strict=True):
                    parameter.copy_(value)
        return [history[:n, k] for k, n in enumerate(n_done)]

    def _check(
        self,
        step: int,
        history: np.ndarray,
        gradients: Sequence[torch.Tensor],
        numbers: Sequence[int],
        sites: Callable[[int], list[str]],
        stopped: dict[int, list[torch.Tensor]],
    ) -> None:
        """Refuses a fit that is not finite; the sum of finite gradients may be."""
        for k, number in enumerate(numbers):
            own = [g[k] if len(numbers) > 1 else g for g in gradients]
            if k in stopped or (math.isfinite(history[step, k]) and all(bool(torch.isfinite(g).all()) for g in own)):
                continue
            found = ", ".join(sites(k))
            raise InferenceError(
                f"SVI, restart {number}, step {step}: loss {history[step, k]:.4g} or its gradient is not finite"
                f"{'; not finite: ' + found if found else ''}; last finite losses "
                f"{[round(float(v), 3) for v in history[max(0, step - 3) : step, k]]}; "
                f"try a learning_rate below {self.learning_rate:g} or standardised data."
            )


def stalled(losses: np.ndarray, patience: int) -> bool:
    """Whether the mean loss of the last `patience` steps is no lower than that of the `patience` before."""
    if len(losses) < 2 * patience or len(losses) % EVERY:
        return False
    return bool(np.mean(losses[-patience:]) >= np.mean(losses[-2 * patience : -patience]))
