"""Minibatches of units: which rows a step is made with, and how they get there."""

from collections.abc import Iterator

import numpy as np
import torch

from latentlab.inference.draws import Problem


def batches(
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
