"""Embeddings that keep neighbours and start at random: t-SNE and UMAP."""

from typing import Literal

import numpy as np

from latentlab.embeddings.embedding import positive, whole
from latentlab.errors import ConfigError, MissingDependencyError


def tsne(
    x: np.ndarray,
    n_latent: int,
    *,
    seed: int,
    notes: list[str],
    perplexity: float = 30.0,
    n_iter: int = 500,
    initialization: Literal["pca", "random"] = "pca",
) -> np.ndarray:
    """t-SNE: neighbour probabilities in the data and in the plane are made alike.

    Starts at the first principal components plus a little noise, or at noise alone; its seed is what differs between runs.

    Args:
        x: Table `(unit, feature)`.
        n_latent: Columns, 1 or 2.
        seed: Of the noise at the start.
        notes: Is told if the perplexity was lowered.
        perplexity: Effective number of neighbours; at most a third of the other units is taken.
        n_iter: Steps after the early exaggeration.
        initialization: `pca` or `random`.

    References:
        van der Maaten & Hinton (2008), JMLR 9:2579. Poličar, Stražar & Zupan (2024), openTSNE, J. Stat. Softw. 109(3).
    """
    try:
        import openTSNE
    except ImportError as error:
        raise MissingDependencyError("embedding 'tsne'", "openTSNE", "embed") from error

    whole("tsne", "n_latent", n_latent, 1, 2, " (openTSNE)")
    whole("tsne", "n_iter", n_iter, 1)
    positive("tsne", "perplexity", perplexity)
    if initialization not in ("pca", "random"):
        raise ConfigError(f"embedding 'tsne': `initialization` must be pca or random; got {initialization!r}.")
    most = (len(x) - 1) / 3
    if most < 1:
        raise ConfigError(f"embedding 'tsne' needs at least 4 units; got {len(x)}.")
    if perplexity > most:
        notes.append(f"perplexity {perplexity:g} was lowered to {most:g}, a third of the other units")
    rng = np.random.default_rng(seed)
    u, s, _ = np.linalg.svd(x - x.mean(axis=0), full_matrices=False)
    start = u[:, :n_latent] * s[:n_latent]
    start = start / start[:, 0].std() if initialization == "pca" else np.zeros_like(start)
    start = 1e-4 * start + (1e-5 if initialization == "pca" else 1e-4) * rng.standard_normal(start.shape)
    fitted = openTSNE.TSNE(
        n_components=n_latent,
        perplexity=min(perplexity, most),
        n_iter=n_iter,
        initialization=start,
        neighbors="exact",
        negative_gradient_method="bh" if len(x) < 3000 or n_latent == 1 else "fft",
        n_jobs=1,
        random_state=seed,
    ).fit(x)
    return np.asarray(fitted)


def umap(
    x: np.ndarray, n_latent: int, *, seed: int, n_neighbors: int = 15, min_dist: float = 0.1, n_epochs: int | None = None
) -> np.ndarray:
    """UMAP: a fuzzy graph of neighbours laid out by attraction and repulsion.

    Args:
        x: Table `(unit, feature)`.
        n_latent: Columns.
        seed: Of its start and its sampling.
        n_neighbors: Neighbours in the graph.
        min_dist: Least distance of neighbours in the layout.
        n_epochs: Passes of the layout; the library's choice where None.

    References:
        McInnes, Healy & Melville (2018), arXiv:1802.03426.
    """
    try:
        from umap import UMAP
    except ImportError as error:
        raise MissingDependencyError("embedding 'umap'", "umap-learn", "embed") from error

    whole("umap", "n_neighbors", n_neighbors, 2, len(x) - 1, f" (fewer than the {len(x)} units)")
    whole("umap", "n_latent", n_latent, 1, len(x) - 2, f" ({len(x)} units)")
    if not isinstance(min_dist, int | float) or not 0 <= min_dist <= 1:
        raise ConfigError(f"embedding 'umap': `min_dist` must be from 0 to 1; got {min_dist!r}.")
    fitted = UMAP(
        n_components=n_latent, n_neighbors=n_neighbors, min_dist=min_dist, n_epochs=n_epochs, random_state=seed, n_jobs=1
    )
    return fitted.fit_transform(np.ascontiguousarray(x))
