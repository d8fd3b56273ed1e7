"""Functions of one draw, applied to many draws."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from latentlab.data.memory import MEMORY, Place, release
from latentlab.inference.density import Density
from latentlab.inference.program import Tensors

AT_ONCE = 256
"""Largest number of draws in a vectorised call."""
NUMBERS = 2**25
"""Largest size of an array `(draw, ...)` in a vectorised call (256 MB), if there is more than one draw."""


def draws_at_once(numbers: int, most: int = AT_ONCE) -> int:
    """Number of draws in a vectorised call whose arrays have so many numbers for each draw: a power of two, at most `most`."""
    n = most
    while n > 1 and n * numbers > NUMBERS:
        n //= 2
    return n


def observed_size(arrays: Mapping[str, Any]) -> int:
    """Number of values of the largest array of the data: those that a function of one draw allocates at least."""
    return max((array.numel() for array in arrays.values() if isinstance(array, torch.Tensor)), default=1)


def constrain_draws(density: Density, u: np.ndarray, place: Place = MEMORY) -> dict[str, np.ndarray]:
    """Map flat vectors `(chain, draw, size)` to the sites' constrained values: site -> `(chain, draw, *site)`."""
    block = draws_at_once(u.shape[-1])
    flat = over_draws(lambda values: density.constrain(values["u"]), {"u": u.reshape(-1, u.shape[-1])}, block=block, place=place)
    return {name: array.reshape(u.shape[:2] + array.shape[1:]) for name, array in flat.items()}


def ends(density: Density, points: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """Return the sites' values at the end of each restart, from flat vectors: site -> `(restart, *site)`."""
    return {name: array[0] for name, array in constrain_draws(density, np.stack(points)[None]).items()}


def over_draws(
    function: Callable[[Tensors], Any], values: Mapping[str, np.ndarray], *, block: int = AT_ONCE, place: Place = MEMORY
) -> Any:
    """Apply a function of one draw to all draws, in vectorised blocks, or draw by draw if it cannot be vectorised.

    Args:
        function: Values of one draw -> tensor or dict of tensors.
        values: Site -> `(draw, *site)`.
        block: Draws in a vectorised call.
        place: Place of the results.
    """
    n_draws = len(next(iter(values.values())))
    batched = torch.vmap(function, randomness="different")
    joined: dict[str, np.ndarray] = {}
    for start in range(0, n_draws, block):
        part = {name: torch.tensor(array[start : start + block], dtype=torch.float64) for name, array in values.items()}
        try:
            found = batched(part)
        except (RuntimeError, ValueError, NotImplementedError, TypeError):
            rows = [function({name: array[i] for name, array in part.items()}) for i in range(len(next(iter(part.values()))))]
            found = _stack(rows)
        for name, one in found.items() if isinstance(found, dict) else [("", found)]:
            results = one.numpy()
            if name not in joined:
                joined[name] = place.empty((n_draws, *results.shape[1:]), results.dtype)
            joined[name][start : start + block] = results
        release()
    return joined if isinstance(found, dict) else joined[""]


def _stack(rows: list[Any]) -> Any:
    if isinstance(rows[0], dict):
        return {name: torch.stack([torch.as_tensor(row[name]) for row in rows]) for name in rows[0]}
    return torch.stack(rows)
