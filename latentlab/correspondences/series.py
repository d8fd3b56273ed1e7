"""Checks of the claims about series."""

from functools import cache
from typing import Any

import numpy as np

from latentlab.compare.agreement import matched_accuracy
from latentlab.correspondences.claim import Evidence
from latentlab.correspondences.estimates import cluster_labels, labels_at_maximum, latent_positions, linear_residual
from latentlab.data.dataset import Dataset
from latentlab.data.markov import hidden_markov
from latentlab.embeddings.embed import embed
from latentlab.registry import MODELS
from latentlab.seeds import Seeds


@cache
def _hidden_states(separation: float) -> tuple[Dataset, np.ndarray]:
    """Simulated series of 400 steps, and the most probable state of each step at the maximum of the likelihood."""
    dataset = hidden_markov(n_sequences=1, n_steps=400, n_states=2, separation=separation, seed=2)
    return dataset, labels_at_maximum("gaussian_hmm", dataset, n_states=2)


def _steps_in_the_same_state(embedding: str, separation: float) -> float:
    """Matched accuracy between a clustering of the steps and their most probable states."""
    dataset, states = _hidden_states(separation)
    return float(matched_accuracy(cluster_labels(embedding, dataset, 2, n_seeds=1), states))


def _accuracy_by_separation(embedding: str, weak_below: float) -> Evidence:
    strong, weak = _steps_in_the_same_state(embedding, 6.0), _steps_in_the_same_state(embedding, 1.0)
    text = (
        f"share of steps in their most probable state: {strong:.3g} for means 6 standard deviations apart (required: above "
        f"0.999), {weak:.3g} for 1 standard deviation (required: below {weak_below:g})"
    )
    return Evidence(strong > 0.999 and weak < weak_below, strong, 0.999, text)


def viterbi_is_the_best_path() -> Evidence:
    return _accuracy_by_separation("viterbi", 0.99)


def kmeans_ignores_transitions() -> Evidence:
    return _accuracy_by_separation("kmeans", 0.85)


def windows_blur_changes() -> Evidence:
    weak, strong = _steps_in_the_same_state("window_kmeans", 1.0), _steps_in_the_same_state("window_kmeans", 10.0)
    passed = strong < 0.99 and weak > _steps_in_the_same_state("kmeans", 1.0)
    text = (
        f"share of steps in their most probable state: {strong:.3g} for means 10 standard deviations apart (required: below "
        f"0.99), {weak:.3g} for 1 standard deviation (required: above the share of k-means)"
    )
    return Evidence(passed, strong, 0.99, text)


def _path_on_a_plane(noise: float) -> tuple[Dataset, np.ndarray]:
    """Simulated path of 300 steps, and its posterior mean at the true parameters.

    The path is a first-order autoregression in a plane that rotates with a period of 40 steps. It is observed through 6
    features with this noise sd.
    """
    rng = Seeds(1).child("correspondence").numpy()
    angle = 2 * np.pi / 40
    A = 0.98 * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    C, z = rng.standard_normal((6, 2)), rng.standard_normal((300, 2))
    for t in range(1, len(z)):
        z[t] += A @ z[t - 1]
    x = z @ C.T + noise * rng.standard_normal((len(z), 6))
    dataset = Dataset({"x": x}, dims={"x": ("unit", "feature")}, name="a path on a plane")
    sites = {"A": A, "C": C, "mu": np.zeros(6), "sigma": np.full(6, noise)}
    return dataset, latent_positions(MODELS.load("state_space")(n_latent=2), dataset, **sites).mean.numpy()


def _unexplained_variance(embedding: str, noise: float, **options: Any) -> float:
    dataset, mean = _path_on_a_plane(noise)
    return linear_residual(embed(embedding, dataset, n_latent=2, **options).values, mean)


def vanishing_noise_makes_pca_the_path() -> Evidence:
    small, large = _unexplained_variance("pca", 0.1), _unexplained_variance("pca", 10.0)
    text = (
        f"share of the variance of smoothed positions that PCA does not explain: {small:.2g} with noise 0.1 (required: below "
        f"0.001), {large:.2g} with noise 10 (required: above 0.2)"
    )
    return Evidence(small < 1e-3 and large > 0.2, small, 1e-3, text)


def windows_smooth() -> Evidence:
    large, small = (_unexplained_variance("window_pca", noise, window=9) for noise in (10.0, 0.1))
    without = _unexplained_variance("pca", 10.0)
    text = (
        f"share of the variance of smoothed positions that PCA of windows of 9 steps does not explain: {large:.2g} with noise 10 "
        f"(required: below 0.25, and below {without:.2g} of PCA), {small:.2g} with noise 0.1 (required: above 0.01)"
    )
    return Evidence(large < 0.25 < without and small > 0.01, large, 0.25, text)
