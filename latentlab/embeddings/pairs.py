"""Distances between all units by compiled loops, with the same rounding as in UMAP's library."""

import numpy as np

from latentlab.distributions.loops import compiled


def distances(x: np.ndarray) -> np.ndarray:
    """Compute the Euclidean distances `(unit, unit)` of a table `(unit, feature)`."""
    found = np.zeros((len(x), len(x)), x.dtype)
    for i in range(len(x)):
        for j in range(i):
            total = 0.0
            for k in range(x.shape[1]):
                total += (x[i, k] - x[j, k]) ** 2
            found[i, j] = found[j, i] = np.sqrt(total)
    return found


distances = compiled(distances, fastmath=True)
