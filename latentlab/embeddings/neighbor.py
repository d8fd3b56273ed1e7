"""Embeddings that preserve neighbourhoods, with random starts: t-SNE and UMAP."""

import contextlib
import functools
from typing import Annotated, Any, Literal

import numpy as np
from annotated_types import Ge, Le

from latentlab.embeddings.entry import at_most, at_most_by_data
from latentlab.embeddings.manifold import note_components
from latentlab.errors import ConfigError, MissingDependencyError
from latentlab.seeds import one_thread

PERPLEXITY = 30.0
"""Default perplexity, as in openTSNE and scikit-learn."""
N_NEIGHBORS = 15
"""Default number of neighbours of UMAP, including the unit itself."""
SPREAD = 1e-4
"""Standard deviation of the first column at the start; small, so that repulsion is negligible at first."""
NOISE = 0.1
"""Standard deviation of the noise added to the principal components, relative to `SPREAD`; it differs between seeds."""
ALL_PAIRS = 4096
"""Number of units below which neighbours are found exactly, as in UMAP's library."""
EXACT = 3000
"""Number of units below which repulsion is computed by a tree (Barnes-Hut); otherwise by a grid, which is then faster."""


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
    r"""t-SNE: a layout whose neighbour probabilities match those of the data.

    $\min_Y \mathrm{KL}(P \| Q)$ with $q_{ij} \propto 1 / (1 + |y_i - y_j|^2)$ and $p_{ij} = (p_{j|i} + p_{i|j}) / 2n$,
    $p_{j|i} \propto \exp(-|x_i - x_j|^2 / 2\sigma_i^2)$. Each $\sigma_i$ is such that the entropy of $p_{\cdot|i}$ is the log of
    the perplexity. It preserves near neighbours; distances between groups, their sizes and their densities are hardly
    interpretable. The implementation is openTSNE: 250 steps with exaggeration 12, then `n_iter` steps; exact neighbours.

    Args:
        x: Table `(unit, feature)`.
        n_latent: Number of columns, 1 or 2.
        seed: Seed of the noise at the start.
        notes: List to which a note is appended if the perplexity was lowered.
        perplexity: Effective number of neighbours, at most a third of the other units; by default 30, or that third if it is
            smaller.
        n_iter: Number of steps after the exaggeration.
        initialization: Start at the first principal components with little noise (`pca`), or at noise only (`random`).

    References:
        van der Maaten & Hinton (2008), JMLR 9:2579. Poličar, Stražar & Zupan (2024), openTSNE, J. Stat. Softw. 109(3).
    """
    try:
        import openTSNE
    except ImportError as error:
        raise MissingDependencyError("embedding 'tsne'", "openTSNE", "embed") from error

    at_most(
        "tsne",
        "n_latent",
        n_latent,
        min(2, x.shape[1]),
        f"openTSNE supports at most 2 columns, and not more than the {x.shape[1]} features",
    )
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


@one_thread()  # Numba changes the number of threads of torch, which uses the same library
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
    r"""UMAP: a layout of a weighted graph of nearest neighbours by attraction and repulsion.

    Edges to the nearest neighbours have weights $v_{j|i} = \exp(-\max(0, |x_i - x_j| - \rho_i) / \sigma_i)$, with $\rho_i$ the
    distance of the nearest neighbour, and are symmetrised to $v = v_{j|i} + v_{i|j} - v_{j|i} v_{i|j}$. The layout starts at the
    spectral layout of the graph with noise. Stochastic gradient steps lower the cross-entropy of v and
    $w = 1 / (1 + a |y_i - y_j|^{2b})$. It preserves near neighbours; distances between groups are hardly interpretable.

    Args:
        x: Table `(unit, feature)`.
        n_latent: Number of columns.
        seed: Seed of the noise at the start and of the sampling.
        notes: List to which a note is appended if the graph is not connected, or the number of neighbours was lowered.
        n_neighbors: Number of neighbours of each unit, including the unit itself, as in the library; by default 15, or the number
            of units minus 1 if it is smaller.
        min_dist: Smallest distance of neighbours in the layout, from 0 to 1; determines a and b.
        n_epochs: Number of passes over the edges; by default chosen by the library.

    References:
        McInnes, Healy & Melville (2018), arXiv:1802.03426.
    """
    try:
        import numba
        from umap import UMAP
    except ImportError as error:
        raise MissingDependencyError("embedding 'umap'", "umap-learn", "embed") from error

    reason = f"fewer than the {len(x)} units"
    n_neighbors = int(at_most_by_data("umap", "n_neighbors", n_neighbors, N_NEIGHBORS, len(x) - 1, reason, notes))
    at_most("umap", "n_latent", n_latent, len(x) - 2, f"at least 2 fewer than the {len(x)} units")
    note_components(x, n_neighbors - 1, notes)
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
    """Cache the compiled loops of the library on disk, since compilation takes seconds in each process."""
    from umap import layouts, umap_

    for module, name in (
        (umap_, "smooth_knn_dist"),
        (umap_, "compute_membership_strengths"),
        (layouts, "_nb_optimize_layout_euclidean_single_epoch"),
    ):
        with contextlib.suppress(AttributeError, RuntimeError):  # another version of the library, or no folder for the cache
            getattr(module, name).enable_caching()


def _nearest(x: np.ndarray, n_neighbors: int) -> tuple[np.ndarray, np.ndarray]:
    """Nearest units and their distances, bit-identical to those of UMAP, whose own search takes seconds to compile."""
    from latentlab.embeddings.pairs import distances

    found = distances(x.astype(np.float32))
    nearest = np.argsort(found, axis=1, kind="stable")[:, :n_neighbors].astype(np.int32)
    return nearest, np.take_along_axis(found, nearest, axis=1)


def _perplexity(perplexity: float | None, n_units: int, notes: list[str]) -> float:
    most = (n_units - 1) / 3
    if most < 1:
        raise ConfigError(f"embedding 'tsne' needs at least 4 units; got {n_units}.")
    reason = f"a third of the other {n_units - 1} units"
    return float(at_most_by_data("tsne", "perplexity", perplexity, PERPLEXITY, most, reason, notes))


def _start(x: np.ndarray, n_latent: int, rng: np.random.Generator, initialization: str) -> np.ndarray:
    noise = SPREAD * rng.standard_normal((len(x), n_latent))
    if initialization == "random":
        return noise
    u, s, _ = np.linalg.svd(x - x.mean(axis=0), full_matrices=False)
    scores = u[:, :n_latent] * s[:n_latent]
    return SPREAD * scores / scores[:, 0].std() + NOISE * noise
