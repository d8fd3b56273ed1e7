"""Minibatches of units, from memory or from disk.

An epoch is a permutation of all units, cut into batches, so that each batch is a simple random sample. Data in memory and on disk
give the same rows in the same order. From disk, one window of batches is read at a time. Its rows are read in the order of the
file, mostly sequentially, by a thread that runs while the previous window is used.
"""

import itertools
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from latentlab.data.memory import BLOCK
from latentlab.data.stored import StoredDataset
from latentlab.inference.capture import sizes
from latentlab.inference.density import Density
from latentlab.inference.draws import Problem
from latentlab.inference.lift import draws_at_once, observed_size, over_draws
from latentlab.progress import tqdm

WINDOW = 2**27
"""Largest size in bytes, as in the file, of the window that is read ahead; another window of this size is in use."""

GROWTH = 8
"""Largest ratio of the numbers of batches in consecutive windows."""

THREAD = "latentlab-rows"
"""Prefix of the names of reading threads."""

MOST_DRAWS = 256
"""Largest number of draws whose densities are computed in one call."""

ROOM = 4 * BLOCK
"""Largest number of entries of an operation's result in such a call."""

SAMPLE_SIZE = 2**12
"""Largest number of rows on which the operations' sizes are measured."""


def batches(
    problem: Problem,
    batch_size: int | None,
    rng: np.random.Generator,
    units: np.ndarray | None = None,
    *,
    n_steps: int | None = None,
    skip: int = 0,
    shared: bool = False,
) -> Iterator[tuple[torch.Tensor, ...]]:
    """Yield minibatches of the arrays with a row for each point, epoch by epoch without replacement; `()` for all the data.

    Args:
        problem: The problem with the data.
        batch_size: Number of units in a batch; None for one batch of all units.
        rng: Random generator of the permutations.
        units: Numbers of the units to take batches from; None for all.
        n_steps: Approximate number of batches that will be used; no more than these are read ahead.
        skip: Number of batches to skip at the beginning, without reading them.
        shared: Whether to read only the rows of each batch that belong to this process.
    """
    density = problem.density
    share = problem.processes.share(batch_size) if shared and batch_size is not None else slice(batch_size)
    if problem.stored is not None and batch_size is not None:
        numbers = np.arange(density.n_points, dtype=np.int32 if density.n_points < 2**31 else np.int64)
        indices = (index[share] for index in itertools.islice(_epochs(numbers, batch_size, rng), skip, None))
        n_rows = share.stop - (share.start or 0)
        yield from _from_disk(problem, problem.stored, n_rows, indices, None if n_steps is None else n_steps - skip)
    chosen = np.arange(density.n_points) if units is None else units
    if batch_size is None:
        whole = () if units is None else tuple(density.arrays[name][chosen] for name in density.point_arrays())
        yield from itertools.repeat(whole)
    else:
        for index in map(torch.from_numpy, itertools.islice(_epochs(chosen, batch_size, rng), skip, None)):
            yield tuple(density.arrays[name][index[share]] for name in density.point_arrays())


def _epochs(units: np.ndarray, batch_size: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Yield the numbers of the units of each batch; an incomplete batch at the end of an epoch is dropped."""
    while True:
        order = rng.permutation(units)
        for first in range(0, len(order) - batch_size + 1, batch_size):
            yield order[first : first + batch_size]


def _from_disk(
    problem: Problem, stored: StoredDataset, batch_size: int, indices: Iterator[np.ndarray], n_steps: int | None
) -> Iterator[tuple[torch.Tensor, ...]]:
    """Yield the rows of each batch.

    If single rows can be read, the first window is one batch, so that a fit starts at once.
    """
    stopped = threading.Event()
    pool = ThreadPoolExecutor(1, thread_name_prefix=THREAD)

    def close() -> None:
        stopped.set()
        pool.shutdown(wait=True, cancel_futures=True)

    def window(n_batches: int) -> tuple[np.ndarray, np.ndarray]:
        numbers = np.concatenate(list(itertools.islice(indices, n_batches)))
        return numbers, stored.read(numbers, stopped.is_set)

    most = max(1, WINDOW // (batch_size * stored.rows.row_bytes))
    problem.resources.callback(close)
    try:
        reads_single_rows = stored.rows.reach < stored.rows.span
        size, n_read = 1 if reads_single_rows else max(1, min(most, n_steps or most)), 0
        ahead = pool.submit(window, size)
        while True:
            numbers, rows = ahead.result()
            n_read += size
            n_remaining = most if n_steps is None else n_steps - n_read
            size = max(1, min(GROWTH * size, most, n_remaining))
            next_window = pool.submit(window, size) if n_remaining > 0 else None
            for first in range(0, len(rows), batch_size):
                batch = slice(first, first + batch_size)
                yield row_tensors(problem.density, stored.values(rows[batch]), numbers[batch])
            ahead = next_window or pool.submit(window, size)
    finally:
        close()


def row_tensors(density: Density, x: np.ndarray, numbers: np.ndarray) -> tuple[torch.Tensor, ...]:
    """Convert rows of a table, and their numbers, to the tensors of `density.point_arrays`; missing entries are 0."""
    seen = ~np.isnan(x)
    found = {"mask": seen, "row": numbers.astype(np.int64)}
    complete = np.where(seen, x, 0.0) if "mask" in density.point_arrays() else x
    return tuple(torch.from_numpy(found.get(name, complete)) for name in density.point_arrays())


def log_prob_of_draws(problem: Problem, u: np.ndarray) -> np.ndarray:
    """Compute the flat log density `(draw,)` of flat vectors `(draw, size)` on all the data; rows on disk are read in blocks."""
    density, stored = problem.density, problem.stored
    if stored is None:
        block = draws_at_once(max(u.shape[1], observed_size(density.arrays)))
        return over_draws(lambda values: density.log_prob(values["u"]), {"u": u}, block=block)

    def log_other_terms(values: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return density.log_joint(density.constrain(values["u"]), point_scale=0.0) + density.log_jacobian(values["u"])

    total, other_terms, at_once, n_read = np.zeros(0), np.zeros(0), 0, 0
    for x in tqdm(stored.blocks(), desc="densities", disable=None if problem.progress else True, leave=False):
        rows, n_read = row_tensors(density, x, np.arange(n_read, n_read + len(x))), n_read + len(x)
        at_once = at_once or _at_once(density, rows, u)
        block_density = density.on(density.with_points(rows))

        def on_block(values: Mapping[str, torch.Tensor], block_density: Density = block_density) -> torch.Tensor:
            return block_density.log_prob(values["u"])

        block_sum = over_draws(on_block, {"u": u}, block=at_once)
        if not len(total):
            total = block_sum
            continue
        other_terms = other_terms if len(other_terms) else over_draws(log_other_terms, {"u": u})
        total = total + (block_sum - other_terms)
    return total


def _at_once(density: Density, rows: tuple[torch.Tensor, ...], u: np.ndarray) -> int:
    """Return the number of draws for one call, from the size that each draw adds to the largest operation."""
    spread = torch.linspace(0, len(rows[0]) - 1, min(SAMPLE_SIZE, len(rows[0]))).long()  # missing entries may come last
    sampled_rows = tuple(row[spread] for row in rows)
    block_density, draw = density.on(density.with_points(sampled_rows)), torch.from_numpy(u[:1])
    operation_sizes = [sizes(torch.vmap(block_density.log_prob), draw.repeat(n, 1)) for n in (1, 3)]
    if operation_sizes[0] is None or operation_sizes[1] is None:
        return 1
    added = (max(operation_sizes[1]) - max(operation_sizes[0])) / 2 * len(rows[0]) / len(sampled_rows[0])
    return int(min(MOST_DRAWS, max(1, ROOM // max(added, 1))))
