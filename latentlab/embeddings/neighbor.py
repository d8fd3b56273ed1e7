"""Embeddings that keep neighbours and start at random: t-SNE and UMAP."""

import contextlib
import functools
from typing import Annotated, Any, Literal

import numpy as np
from annotated_types import Ge, Le

from latentlab.embeddings.entry import at_most, at_most_by_data
from latentlab.embeddings.manifold import note_pieces
from latentlab.errors import ConfigError, MissingDependencyError

PERPLEXITY = 30.0
"""Unless said; as in openTSNE and scikit-learn."""
N_NEIGHBORS = 15
"""Default number of neighbours of UMAP, the unit itself included."""
SPREAD = 1e-4
"""Standard deviation of the first column at the start: small, so that nothing repels yet."""
NOISE = 0.1
"""Of the spread, added to the principal components: what differs between seeds."""
ALL_PAIRS = 4096
"""Number of units below which neighbours are found exactly, as in UMAP's library."""
EXACT = 3000
"""Up to so many units repulsion is summed over a tree (Barnes-Hut), beyond over a grid, which is faster there."""


def tsne(
    x: np.ndarray,
    n_latent: int,
    *,
    seed: int,
    notes: list[str],
    perplexity: Annotated[float, Ge(1)] | None = None,
    n_iter: Annotated[int, Ge(1)] = 500,
    initialization: Literal["pca", "random"] = "pca",
) -> np.ndarray:
    r"""t-SNE: the chance of being neighbours is made alike in the data and in the layout.

    $\min_Y \mathrm{KL}(P \| Q)$ with $q_{ij} \propto 1 / (1 + |y_i - y_j|^2)$ and $p_{ij} = (p_{j|i} + p_{i|j}) / 2n$,
    $p_{j|i} \propto \exp(-|x_i - x_j|^2 / 2\sigma_i^2)$, each $\sigma_i$ such that the entropy of $p_{\cdot|i}$ is the log of
    the perplexity. It keeps near neighbours; distances between groups, their sizes and their densities mean little. By
    openTSNE: 250 steps of exaggeration 12, then `n_iter`; exact neighbours.

    Args:
        x: Table `(unit, feature)`.
        n_latent: Columns, 1 or 2.
        seed: Of the noise at the start.
        notes: Is told if the perplexity was lowered.
        perplexity: Effective number of neighbours, at most a third of the other units; 30, or that third where it is less, if
            None.
        n_iter: Steps after the exaggeration.
        initialization: Start at the first principal components and a little noise (`pca`), or at noise alone (`random`).

    References:
        van der Maaten & Hinton (2008), JMLR 9:2579. Poličar, Stražar & Zupan (2024), openTSNE, J. Stat. Softw. 109(3).
    """
    try:
        import openTSNE
    except ImportError as error:
        raise MissingDependencyError("embedding 'tsne'", "openTSNE", "embed") from error

    at_most("tsne", "n_latent", n_latent, min(2, x.shape[1]), f"of {x.shape[1]} features openTSNE makes no more")
    fitted = openTSNE.TSNE(
        n_components=n_latent,
        perplexity=_perplexity(perplexity, len(x), notes),
        n_iter=n_iter,
        initialization=_start(x, n_latent, np.random.default_rng(seed), initialization),
        neighbors="exact",
        negative_gradient_method="bh" if len(x) < EXACT else "fft",
        n_jobs=1,
        random_state=seed,
    ).fit(x)
    return np.asarray(fitted)


def umap(
    x: np.ndarray,
    n_latent: int,
    *,
    seed: int,
    notes: list[str],
    n_neighbors: Annotated[int, Ge(2)] | None = None,
    min_dist: Annotated[float, Ge(0), Le(1)] = 0.1,
    n_epochs: Annotated[int, Ge(1)] | None = None,
) -> np.ndarray:
    r"""UMAP: a fuzzy graph of neighbours laid out by attraction and repulsion.

    Edges $v_{j|i} = \exp(-\max(0, |x_i - x_j| - \rho_i) / \sigma_i)$ to the nearest neighbours, $\rho_i$ the distance of the
    nearest one, joined to $v = v_{j|i} + v_{i|j} - v_{j|i} v_{i|j}$; the layout lowers the cross-entropy of v and
    $w = 1 / (1 + a |y_i - y_j|^{2b})$ by sampled steps, from the graph's spectral layout and noise. It keeps near neighbours;
    distances between groups mean little.

    Args:
        x: Table `(unit, feature)`.
        n_latent: Columns.
        seed: Of the noise at the start and of the sampling.
        notes: Is told if the graph is in pieces.
        n_neighbors: Neighbours of each unit, the unit itself counted, as in the library; 15, or one less than the units where
            they are fewer, if None.
        min_dist: How near the layout packs neighbours, from 0 to 1; sets a and b.
        n_epochs: Passes over the edges; the library's choice where None.

    References:
        McInnes, Healy & Melville (2018), arXiv:1802.03426.
    """
    try:
        import numba
        from umap import UMAP
    except ImportError as error:
        raise MissingDependencyError("embedding 'umap'", "umap-learn", "embed") from error

    because = f"fewer than the {len(x)} units"
    n_neighbors = int(at_most_by_data("umap", "n_neighbors", n_neighbors, N_NEIGHBORS, len(x) - 1, because, notes))
    at_most("umap", "n_latent", n_latent, len(x) - 2, f"fewer than the {len(x)} units, less one")
    note_pieces(x, n_neighbors - 1, notes)
    settings: dict[str, Any] = {"n_neighbors": n_neighbors, "min_dist": min_dist, "n_epochs": n_epochs}
    if len(x) < ALL_PAIRS:
        settings["precomputed_knn"] = _nearest(x, n_neighbors)
    n_threads = numba.get_num_threads()
    _cache_machine_code()
    try:
        fitted = UMAP(n_components=n_latent, random_state=seed, n_jobs=1, **settings).fit(np.ascontiguousarray(x))
    finally:
        numba.set_num_threads(n_threads)
    return fitted.embedding_


@functools.cache
def _cache_machine_code() -> None:
    """Keeps the library's loops between runs, as its own `cache=True` would: compiling them takes seconds in each process."""
    from umap import layouts, umap_

    for module, name in (
        (umap_, "smooth_knn_dist"),
        (umap_, "compute_membership_strengths"),
        (layouts, "_nb_optimize_layout_euclidean_single_epoch"),
    ):
        with contextlib.suppress(AttributeError, RuntimeError):  # another version's loops, or no folder for the cache
            getattr(module, name).enable_caching()


def _nearest(x: np.ndarray, n_neighbors: int) -> tuple[np.ndarray, np.ndarray]:
    """Nearest units and their distances, bit for bit as UMAP finds them: its own search takes seconds to compile."""
    from latentlab.embeddings.pairs import distances

    found = distances(x.astype(np.float32))
    nearest = np.argsort(found, axis=1, kind="stable")[:, :n_neighbors].astype(np.int32)
    return nearest, np.take_along_axis(found, nearest, axis=1)


def _perplexity(perplexity: float | None, n_units: int, notes: list[str]) -> float:
    most = (n_units - 1) / 3
    if most < 1:
        raise ConfigError(f"embedding 'tsne' needs at least 4 units; got {n_units}.")
    because = f"a third of the other {n_units - 1} units"
    return float(at_most_by_data("tsne", "perplexity", perplexity, PERPLEXITY, most, because, notes))


def _start(x: np.ndarray, n_latent: int, rng: np.random.Generator, initialization: str) -> np.ndarray:
    noise = SPREAD * rng.standard_normal((len(x), n_latent))
    if initialization == "random":
        return noise
    u, s, _ = np.linalg.svd(x - x.mean(axis=0), full_matrices=False)
    scores = u[:, :n_latent] * s[:n_latent]
    return SPREAD * scores / scores[:, 0].std() + NOISE * noise
