r"""One run of k-means, compiled by Numba: greedy k-means++ for the first centres, then Lloyd's algorithm.

References:
    Arthur & Vassilvitskii (2007), k-means++: the advantages of careful seeding, SODA 2007. Lloyd (1982), Least squares
    quantization in PCM, IEEE Trans. Inf. Theory 28:129.
"""

from typing import Any

import numpy as np

from latentlab.distributions.loops import compiled, summing

AT_ONCE = 2048
"""Number of units per block, such that a block stays in the processor's cache."""


@summing
def _distances(block: Any, centre: Any, out: Any) -> float:
    """Write squared distances of the units of `block` `(feature, unit)` from one centre to `out`; return their sum."""
    out[:] = 0.0
    for d in range(len(block)):
        column, at = block[d], centre[d]
        for n in range(len(out)):
            out[n] += (column[n] - at) * (column[n] - at)
    total = 0.0
    for n in range(len(out)):
        total += out[n]
    return total


@compiled
def _first_centres(columns: Any, uniforms: Any, centres: Any) -> None:
    """Draw centres among the units with probability proportional to the squared distance from the nearest earlier centre.

    For each centre the best of several candidates is taken.

    Args:
        columns: Data, `(feature, unit)`.
        uniforms: Uniform numbers on [0, 1), one for the first centre and `(centre - 1, candidate)` for the others, flattened.
        centres: Output, `(cluster, feature)`.
    """
    n_clusters, n_units = len(centres), columns.shape[1]
    n_candidates = (len(uniforms) - 1) // max(n_clusters - 1, 1)
    nearest, closer, best = np.empty(n_units), np.empty(n_units), np.empty(n_units)
    centres[0] = columns[:, min(int(uniforms[0] * n_units), n_units - 1)]
    total = _distances(columns, centres[0], nearest)
    for k in range(1, n_clusters):
        cumulative = np.cumsum(nearest)
        least = np.inf
        for i in range(n_candidates):
            threshold = uniforms[1 + (k - 1) * n_candidates + i] * total
            unit = min(int(np.searchsorted(cumulative, threshold)), n_units - 1)
            candidate = columns[:, unit].copy()
            _distances(columns, candidate, closer)
            level = 0.0
            for n in range(n_units):
                closer[n] = min(closer[n], nearest[n])
                level += closer[n]
            if level < least:
                least = level
                centres[k] = candidate
                best, closer = closer, best
        total = least
        nearest, best = best, nearest


@compiled
def _assign(columns: Any, centres: Any, labels: Any) -> bool:
    """Write the nearest centre of each unit to `labels`; return whether a label has changed."""
    n_units = len(labels)
    changed = False
    for start in range(0, n_units, AT_ONCE):
        end = min(start + AT_ONCE, n_units)
        least, out, nearest = np.full(end - start, np.inf), np.empty(end - start), np.zeros(end - start, np.int32)
        for k in range(len(centres)):
            _distances(columns[:, start:end], centres[k], out)
            for n in range(end - start):
                nearest[n] = k if out[n] < least[n] else nearest[n]
                least[n] = min(out[n], least[n])
        for n in range(end - start):
            changed |= labels[start + n] != nearest[n]
            labels[start + n] = nearest[n]
    return changed


@compiled
def k_means(columns: Any, uniforms: Any, most_steps: int, tolerance: float, centres: Any, labels: Any) -> bool:
    """Run k-means; return False if a cluster became empty, which leaves it unfinished.

    Args:
        columns, uniforms: As in `_first_centres`.
        most_steps: Largest number of steps of Lloyd's algorithm.
        tolerance: Sum over centres of their squared movement at which the algorithm ends.
        centres: Output, `(cluster, feature)`.
        labels: Output, `(unit,)`, with -1 at the start.
    """
    _first_centres(columns, uniforms, centres)
    for _ in range(most_steps):
        if not _assign(columns, centres, labels):
            return True
        total, size = np.zeros(centres.shape), np.zeros(len(centres))
        for n in range(len(labels)):
            size[labels[n]] += 1.0
        for d in range(len(columns)):
            column = columns[d]
            for n in range(len(labels)):
                total[labels[n], d] += column[n]
        moved = 0.0
        for k in range(len(centres)):
            if size[k] == 0.0:
                return False
            for d in range(len(columns)):
                mean = total[k, d] / size[k]
                moved += (mean - centres[k, d]) ** 2
                centres[k, d] = mean
        if moved <= tolerance:
            break
    _assign(columns, centres, labels)
    return True
