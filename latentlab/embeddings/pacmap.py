"""PaCMAP: a layout of near, mid-near and far pairs of units."""

import contextlib
import logging
import sys
from collections.abc import Iterator
from typing import Annotated, Any

import numpy as np
from annotated_types import Ge

from latentlab.embeddings.entry import at_most, at_most_by_data
from latentlab.embeddings.manifold import note_components
from latentlab.errors import ConfigError, MissingDependencyError
from latentlab.seeds import one_thread

N_NEIGHBORS = 10
"""Default number of neighbours, as in the library for up to 10 000 units."""
FEWEST = 9
"""Fewest units for which the library finds enough mid-near and far pairs."""
SEEDS = 2**30
"""Bound on the library's seeds, to which it adds numbers of units in 32 bits."""
EXTRA = 50
"""Number of further nearest units among which the neighbours are chosen by scaled distance, as in the library."""


@one_thread()  # Numba changes the number of threads of torch, which uses the same library
def pacmap(
    x: np.ndarray,
    n_latent: int,
    *,
    seed: int,
    notes: list[str],
    n_neighbors: Annotated[int, Ge(1)] | None = None,
    mid_near: Annotated[float, Ge(0)] = 0.5,
    far: Annotated[float, Ge(0.5)] = 2.0,
) -> np.ndarray:
    r"""PaCMAP: a layout that attracts neighbours and mid-near pairs, and repels far pairs.

    With $d_{ij} = 1 + |y_i - y_j|^2$, Adam lowers in 450 steps
    $$ w_n \sum_{near} \frac{d_{ij}}{10 + d_{ij}} + w_m \sum_{mid} \frac{d_{ij}}{10000 + d_{ij}}
       + w_f \sum_{far} \frac{1}{1 + d_{ij}} $$
    with weights that change from mid-near to near pairs. Mid-near pairs are the second nearest of 6 random units, far pairs are
    random. Neighbours have the least $|x_i - x_j|^2 / \sigma_i \sigma_j$, with $\sigma_i$ the mean distance of the fourth to
    sixth nearest units. The layout starts at the principal components. Neighbours are exact; the library's search is approximate.

    Args:
        x: Table `(unit, feature)`.
        n_latent: Number of columns, not more than the number of features.
        seed: Seed of the mid-near and far pairs.
        notes: List to which a note is appended if the graph is not connected, or the number of neighbours was lowered.
        n_neighbors: Number of neighbours of each unit, without the unit itself; by default 10, or a quarter of the other units.
        mid_near: Number of mid-near pairs of each unit, relative to its neighbours.
        far: Number of far pairs of each unit, relative to its neighbours.

    References:
        Wang, Huang, Rudin & Shaposhnik (2021), Understanding how dimension reduction tools work, JMLR 22(201).
    """
    try:
        import numba
        from pacmap import PaCMAP
    except ImportError as error:
        raise MissingDependencyError("embedding 'pacmap'", "pacmap", "embed") from error

    if len(x) < FEWEST:
        raise ConfigError(f"embedding 'pacmap' needs at least {FEWEST} units; got {len(x)}.")
    at_most("pacmap", "n_latent", n_latent, min(x.shape), f"not more than the {x.shape[1]} features and {len(x)} units")
    most = (len(x) - 1) // 4
    reason = f"a quarter of the other {len(x) - 1} units"
    n_neighbors = int(at_most_by_data("pacmap", "n_neighbors", n_neighbors, N_NEIGHBORS, most, reason, notes))
    n_pairs = n_neighbors + round(n_neighbors * mid_near) + round(n_neighbors * far)
    if n_pairs >= len(x):
        raise ConfigError(
            f"embedding 'pacmap': `n_neighbors`, `mid_near` and `far` must give each unit fewer pairs than there are units "
            f"({len(x)}); got {n_pairs}."
        )
    note_components(x, n_neighbors, notes)
    centred = x - x.mean(axis=0)
    scaled = centred / np.abs(centred).max()
    n_threads = numba.get_num_threads()
    numba.set_num_threads(1)  # the loops are short: waiting for other threads takes longer
    try:
        with _quiet():
            fitted = PaCMAP(
                n_components=n_latent,
                n_neighbors=n_neighbors,
                MN_ratio=mid_near,
                FP_ratio=far,
                pair_neighbors=_pairs(scaled, n_neighbors),
                random_state=seed % SEEDS,
            ).fit(scaled, init="pca", save_pairs=False)
    finally:
        numba.set_num_threads(n_threads)
    return np.asarray(fitted.embedding_, dtype=np.float64)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the library's log, and restore its global seed."""
    library: Any = sys.modules["pacmap.pacmap"]
    logger, seed = logging.getLogger(library.__name__), library._RANDOM_STATE
    disabled, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled, library._RANDOM_STATE = disabled, seed


def _pairs(x: np.ndarray, n_neighbors: int) -> np.ndarray:
    """Pairs of each unit with its neighbours by scaled distance, `(unit * n_neighbors, 2)`."""
    from sklearn.neighbors import NearestNeighbors

    k = min(n_neighbors + EXTRA, len(x) - 1)
    distances, nearest = NearestNeighbors(n_neighbors=k).fit(x).kneighbors()
    sigma = np.maximum(distances[:, 3:6].mean(axis=1), 1e-10)
    scaled = distances**2 / sigma[:, None] / sigma[nearest]
    chosen = np.argsort(scaled, axis=1, kind="stable")[:, :n_neighbors]
    found = np.take_along_axis(nearest, chosen, axis=1)
    return np.column_stack([np.repeat(np.arange(len(x)), n_neighbors), found.ravel()]).astype(np.int32)
