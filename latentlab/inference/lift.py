"""Functions of one draw, applied to many draws."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from latentlab.inference.density import Density
from latentlab.inference.program import Tensors


def constrain_draws(density: Density, u: np.ndarray) -> dict[str, np.ndarray]:
    """Map flat vectors `(chain, draw, size)` to the sites' constrained values: site -> `(chain, draw, *site)`."""
    flat = over_draws(lambda values: density.constrain(values["u"]), {"u": u.reshape(-1, u.shape[-1])})
    return {name: array.reshape(u.shape[:2] + array.shape[1:]) for name, array in flat.items()}


def ends(density: Density, points: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """Return the sites' values at the end of each restart, from flat vectors: site -> `(restart, *site)`."""
    return {name: array[0] for name, array in constrain_draws(density, np.stack(points)[None]).items()}


def over_draws(function: Callable[[Tensors], Any], values: Mapping[str, np.ndarray], *, block: int = 256) -> Any:
    """Apply a function of one draw to all draws, in vectorised blocks, or draw by draw if it cannot be vectorised.

    Args:
        function: Values of one draw -> tensor or dict of tensors.
        values: Site -> `(draw, *site)`.
        block: Draws in a vectorised call.
    """
    draws = {name: torch.tensor(array, dtype=torch.float64) for name, array in values.items()}
    n_draws = len(next(iter(draws.values())))
    batched = torch.vmap(function, randomness="different")
    parts = []
    for start in range(0, n_draws, block):
        part = {name: array[start : start + block] for name, array in draws.items()}
        try:
            parts.append(batched(part))
        except (RuntimeError, ValueError, NotImplementedError, TypeError):
            rows = [function({name: array[i] for name, array in part.items()}) for i in range(len(next(iter(part.values()))))]
            parts.append(_stack(rows))
    return _concatenate(parts)


def _stack(rows: list[Any]) -> Any:
    if isinstance(rows[0], dict):
        return {name: torch.stack([torch.as_tensor(row[name]) for row in rows]) for name in rows[0]}
    return torch.stack(rows)


def _concatenate(parts: list[Any]) -> Any:
    if isinstance(parts[0], dict):
        return {name: torch.cat([part[name] for part in parts]).numpy() for name in parts[0]}
    return torch.cat(parts).numpy()
