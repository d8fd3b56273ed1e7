"""Clusters of k-means as starting values of mixtures and hidden Markov models."""

import threading

import numpy as np

from latentlab.distributions import loops

MOST_STEPS = 300
TOLERANCE = 1e-4
"""Movement of the centres at which k-means ends, relative to the mean variance of the columns."""
HEAD = 256
"""Number of rows that are first searched for as many different ones as there are clusters."""
MOST_IN_LOOPS = 2**22
"""Number of products, unit x feature x cluster, above which scikit-learn's matrix products are faster than loops."""


def k_means_labels(x: np.ndarray, n_clusters: int, rng: np.random.Generator) -> np.ndarray:
    """Labels `(unit,)` of one run of k-means with k-means++ starts; at random with fewer distinct rows than clusters.

    Compiled loops give the same labels as scikit-learn from the same random numbers, up to ties in distance, without the
    overhead of its checks. Scikit-learn is used for large data, without Numba, and if a cluster becomes empty.
    """
    if _has_few_rows(x, n_clusters):
        return rng.permutation(np.arange(len(x)) % n_clusters)
    seed = int(rng.integers(2**31))
    kernels = loops.load("models.compiled_clusters") if x.size * n_clusters <= MOST_IN_LOOPS else None
    if kernels is not None:
        uniforms = _uniforms(seed, 1 + (n_clusters - 1) * (2 + int(np.log(n_clusters))))
        columns, labels = np.array(x.T, order="C"), np.full(len(x), -1, np.int32)
        centres = np.empty((n_clusters, x.shape[1]))
        if kernels.k_means(columns, uniforms, MOST_STEPS, TOLERANCE * columns.var(1).mean(), centres, labels):
            return labels
    from sklearn.cluster import KMeans

    return KMeans(n_clusters, n_init=1, max_iter=MOST_STEPS, tol=TOLERANCE, random_state=seed).fit(x).labels_


_stream, _lock = np.random.RandomState(0), threading.Lock()
"""A stream that is seeded before each use, since seeding takes a fortieth of the time of making a new one."""


def _uniforms(seed: int, n: int) -> np.ndarray:
    """Draw the numbers on [0, 1) that scikit-learn draws from this seed, `(n,)`."""
    with _lock:
        _stream.seed(seed)
        return _stream.random_sample(n)


def _has_few_rows(x: np.ndarray, n: int) -> bool:
    """Check whether there are fewer than n distinct rows."""
    if any(len(np.unique(column[:HEAD])) >= n for column in x.T):
        return False
    return len(np.unique(x, axis=0)) < n
