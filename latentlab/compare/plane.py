r"""Exact nearest neighbours of all points in the plane, compiled by Numba.

The points are divided into strips of m points by their first coordinate, and sorted by the second within a strip. Points nearer
than r to a point are in an interval of its own strip, and of the neighbouring strips whose edge is nearer than r. With about
sqrt(nk / 3) points per strip, the intervals are short and the strips few. The search takes about n k steps of a few operations,
and n^(3/2) if the points of a strip have nearly equal second coordinates.

The search for a point starts with the neighbours of the previous point in its strip. Most of them are also its own neighbours, so
that r is small from the start and few candidates are inserted.
"""

import math
from typing import Any

import numpy as np

from latentlab.distributions.loops import compiled


def nearest(rows: np.ndarray, k: int) -> np.ndarray:
    """Find the k rows nearest to each row, without the row itself, `(unit, k)`, in arbitrary order.

    Ties are broken arbitrarily.

    Args:
        rows: Centred points, `(unit, 1)` or `(unit, 2)`.
        k: Number of neighbours, below the number of rows.
    """
    n = len(rows)
    if rows.shape[1] == 1:
        x, y, m = rows[:, 0], np.zeros(n), k
    else:
        (x, y), m = rows.T, max(k, math.isqrt(n * k // 3))
    if y @ y > x @ x:
        x, y = y, x
    n_strips = -(-n // m)
    starts = np.minimum(np.arange(n_strips + 1) * m, n)
    order = np.argsort(x)
    padded = np.full((n_strips, m), np.inf)
    padded.reshape(-1)[:n] = y[order]
    within = padded.argsort(axis=1)
    within += starts[:-1, None]
    edges = x[order[starts[:-1]]], x[order[starts[1:] - 1]]
    order = order[within.reshape(-1)[:n]]
    found, out = np.empty((n, k), dtype=np.int32), np.empty((n, k), dtype=np.int32)
    _nearest(x[order], y[order], starts, *edges, found)
    _named(found, order, out)
    return out


@compiled
def _sweep(  # a compiled loop takes each array and index as an argument
    x: Any, y: Any, q: int, middle: int, first: int, end: int, near: Any, indices: Any, seen: Any, worst: int
) -> int:
    """Search the points from `first` to `end` outwards from `middle`; return the index of the farthest neighbour of q."""
    limit = near[worst]
    for step in (1, -1):
        j = middle if step == 1 else middle - 1
        while first <= j < end:
            i = np.uintp(j)  # unsigned, so that no check for negative indices is compiled
            across = y[i] - y[q]
            squared = across * across
            if squared >= limit:
                break
            along = x[i] - x[q]
            squared += along * along
            if (squared < limit) & (seen[i] != q):  # one branch is predicted better than two
                near[worst], indices[worst] = squared, j
                limit, worst = near[0], 0
                for other in range(1, len(near)):
                    farther = near[other] > limit
                    limit = near[other] if farther else limit
                    worst = other if farther else worst
            j += step
    return worst


@compiled
def _nearest(x: Any, y: Any, starts: Any, lowest: Any, highest: Any, found: Any) -> None:
    """Write the neighbours of each point into `found` `(point, k)`, as indices in the order of the strips.

    Args:
        x: First coordinate of the points, strip after strip.
        y: Second coordinate, ascending within a strip.
        starts: Index of the first point of each strip, and the number of points.
        lowest: Smallest x of each strip.
        highest: Largest x of each strip.
        found: Output array.
    """
    n_strips, k = len(lowest), found.shape[1]
    near, seen, level = np.empty(k), np.full(len(x), -1, np.int32), np.empty(n_strips, np.int64)
    before, head = -1, -1
    for s in range(n_strips):
        level[:] = starts[:-1]  # first point of each strip whose y is not below that of the current point
        for q in range(starts[s], starts[s + 1]):
            if q == starts[s]:
                before, head = head, q
            indices = found[q]
            seen[q] = q
            farthest, worst = -1.0, 0
            for i in range(k):
                j = found[before, i] if before >= 0 else q + 1 + i
                j = before if j == q else j
                indices[i] = j
                seen[j] = q
                near[i] = (x[j] - x[q]) ** 2 + (y[j] - y[q]) ** 2
                farther = near[i] > farthest
                farthest = near[i] if farther else farthest
                worst = i if farther else worst
            before = q
            worst = _sweep(x, y, q, q, starts[s], starts[s + 1], near, indices, seen, worst)
            for side in (1, -1):
                t = s + side
                while 0 <= t < n_strips:
                    gap = lowest[t] - x[q] if side == 1 else x[q] - highest[t]
                    if gap * gap >= near[worst]:
                        break
                    while level[t] < starts[t + 1] and y[level[t]] < y[q]:
                        level[t] += 1
                    worst = _sweep(x, y, q, level[t], starts[t], starts[t + 1], near, indices, seen, worst)
                    t += side


@compiled
def _named(found: Any, order: Any, out: Any) -> None:
    for q in range(len(found)):
        for i in range(found.shape[1]):
            out[order[q], i] = order[found[q, i]]


@compiled
def shared(first: Any, second: Any, out: Any) -> None:
    """Write the number of common entries of two lists of neighbours `(unit, k)` into `out` `(unit,)`."""
    owner = np.full(len(first), -1)
    for unit in range(len(first)):
        for j in first[unit]:
            owner[j] = unit
        out[unit] = 0
        for j in second[unit]:
            out[unit] += owner[j] == unit
