"""Estimates of positions, and distances between them, for the checks of claims."""

from typing import Any

import numpy as np

from latentlab.data.dataset import Dataset
from latentlab.embeddings.embed import embed
from latentlab.models.base import LatentModel
from latentlab.registry import MODELS
from latentlab.seeds import Seeds, double, one_thread
from latentlab.symmetry.groups import SignedPermutation


def latent_positions(model: LatentModel, dataset: Dataset, **values: Any) -> Any:
    """Conditional distribution of the positions given these values of the other sites."""
    import torch

    from latentlab.inference.arrays import tensors

    with double(), one_thread():
        return model.latents(tensors(model, dataset), **{name: torch.as_tensor(value) for name, value in values.items()})


def at_maximum(model: LatentModel, dataset: Dataset, n_starts: int = 1) -> Any:
    """Conditional distribution of the positions at the maximum of the likelihood.

    Of `n_starts` restarts, the one with the highest likelihood among those without notes is used, or among all if each has notes.
    """
    from latentlab.inference.arrays import tensors

    arrays, seeds = tensors(model, dataset), Seeds(0)
    with double(), one_thread():
        runs = [model.maximum_likelihood(arrays, seeds.child("correspondence", i).numpy()) for i in range(n_starts)]
    return latent_positions(model, dataset, **max(runs, key=lambda run: (not run.notes, run.trace[-1])).values)


def posterior_mean(model_name: str, dataset: Dataset, n_latent: int) -> np.ndarray:
    """Posterior mean of the positions at the maximum of the likelihood, `(unit, latent)`."""
    return at_maximum(MODELS.load(model_name)(n_latent=n_latent), dataset).mean.numpy()


def labels_at_maximum(model_name: str, dataset: Dataset, **options: Any) -> np.ndarray:
    """Most probable label of each unit at the maximum of the likelihood, `(unit,)`."""
    return at_maximum(MODELS.load(model_name)(**options), dataset, 3).probs.argmax(-1).numpy()


def cluster_labels(embedding: str, dataset: Dataset, n_clusters: int, **options: Any) -> np.ndarray:
    """Labels `(unit,)` from the first run of a clustering."""
    values = embed(embedding, dataset, n_latent=n_clusters, **options).values
    return (values if values.ndim == 2 else values[0]).argmax(axis=1)


def rotated_residual(y: np.ndarray, z: np.ndarray) -> float:
    """Relative distance of z from y after centring both and the best rotation or reflection of y."""
    y, z = y - y.mean(axis=0), z - z.mean(axis=0)
    u, _, vt = np.linalg.svd(y.T @ z, full_matrices=False)
    return float(np.linalg.norm(y @ (u @ vt) - z) / np.linalg.norm(z))


def linear_residual(y: np.ndarray, z: np.ndarray) -> float:
    """Fraction of the variance of z that an affine regression on y leaves unexplained."""
    design = np.column_stack([y, np.ones(len(y))])
    residual = z - design @ np.linalg.lstsq(design, z, rcond=None)[0]
    return float((residual**2).sum() / ((z - z.mean(axis=0)) ** 2).sum())


def distance_of_axes(y: np.ndarray, z: np.ndarray) -> float:
    """Relative distance of z from y after centring both and the best signed permutation of the axes of y."""
    y, z = y - y.mean(axis=0), z - z.mean(axis=0)
    elements = SignedPermutation().elements(y.shape[1])
    return float(np.linalg.norm(y @ elements - z, axis=(1, 2)).min() / np.linalg.norm(z))


def highest_log_likelihood(model_name: str, dataset: Dataset, n_latent: int) -> float:
    """Maximum of the log likelihood; for a model with an encoder, maximum of the evidence lower bound."""
    from latentlab.inference.arrays import tensors

    model = MODELS.load(model_name)(n_latent=n_latent)
    with double(), one_thread():
        optimum = model.maximum_likelihood(tensors(model, dataset), Seeds(0).child("correspondence").numpy())
    return float(optimum.trace[-1])
