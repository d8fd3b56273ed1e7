"""Checks of the claims about clusterings and mixtures."""

import numpy as np

from latentlab.compare.agreement import adjusted_rand, matched_accuracy
from latentlab.correspondences.claim import Evidence, below_limit
from latentlab.correspondences.estimates import cluster_labels, labels_at_maximum, latent_positions
from latentlab.correspondences.maps import nearest, soft_assignments
from latentlab.data.dataset import Dataset
from latentlab.data.load import load_dataset
from latentlab.data.mixtures import gaussian_mixture
from latentlab.embeddings.embed import embed
from latentlab.registry import MODELS
from latentlab.seeds import Seeds


def _mixture_centres(dataset: Dataset, n_components: int, sigma: float, n_starts: int = 10) -> np.ndarray:
    """Maximum-likelihood means of a mixture with equal weights and common fixed sigma, by EM from `n_starts` random starts."""
    x, rng = dataset.x, Seeds(0).child("correspondence").numpy()
    model = MODELS.load("gaussian_mixture")(n_components=n_components, covariance="spherical")
    fixed = {"weights": np.full(n_components, 1 / n_components), "sigma": np.full(n_components, sigma)}
    optima = []
    for _ in range(n_starts):
        mu = x[rng.choice(len(x), n_components, replace=False)]
        previous = np.full_like(mu, np.inf)
        while np.abs(mu - previous).max() > 1e-12:
            previous = mu
            responsibilities = latent_positions(model, dataset, mu=mu, **fixed).probs.numpy()
            mu = responsibilities.T @ x / responsibilities.sum(axis=0)[:, None]
        squares = ((x[:, None] - mu) ** 2).sum(axis=2) / (2 * sigma**2)
        optima.append((np.logaddexp.reduce(-squares, axis=1).sum(), mu))
    return max(optima, key=lambda optimum: optimum[0])[1]


def _centres(dataset: Dataset, labels: np.ndarray) -> np.ndarray:
    return np.stack([dataset.x[labels == k].mean(axis=0) for k in range(labels.max() + 1)])


def _distance_of_centres(a: np.ndarray, b: np.ndarray) -> float:
    """Relative distance |a - b| / |b| of two sets of centres after optimal one-to-one matching."""
    from scipy.optimize import linear_sum_assignment

    squares = ((a[:, None] - b) ** 2).sum(axis=2)
    return float(np.sqrt(squares[linear_sum_assignment(squares)].sum()) / np.linalg.norm(b))


def _round_and_unequal() -> Dataset:
    """Simulated data: a cluster of 340 units with sd 4, and one of 60 units with sd 1."""
    rng = Seeds(1).child("correspondence").numpy()
    wide = 4.0 * rng.standard_normal((340, 2))
    narrow = np.array([6.0, 0.0]) + rng.standard_normal((60, 2))
    return Dataset({"x": np.concatenate([wide, narrow])}, dims={"x": ("unit", "feature")}, name="unequal clusters")


def vanishing_variance_makes_kmeans() -> Evidence:
    dataset, unequal = load_dataset("wine"), _round_and_unequal()
    centres = _centres(dataset, cluster_labels("kmeans", dataset, 3))
    distance = _distance_of_centres(_mixture_centres(dataset, 3, sigma=0.1), centres)
    labels = labels_at_maximum("gaussian_mixture", unequal, n_components=2, covariance="spherical")
    misassigned = 1 - matched_accuracy(cluster_labels("kmeans", unequal, 2), labels)
    text = (
        f"relative distance between the centres of k-means and of a mixture with sigma 0.1 on wine: {distance:.2g} (required: "
        f"below 1e-6); share of units with different labels for clusters of unequal size and variance: {misassigned:.2g} "
        "(required: above 0.2)"
    )
    return Evidence(distance < 1e-6 and misassigned > 0.2, distance, 1e-6, text)


def distances_are_responsibilities() -> Evidence:
    dataset = load_dataset("wine")
    distances = embed("kmeans", dataset, n_latent=3, n_seeds=1, output="distances").values[0]
    labels = nearest(distances, dataset).argmax(axis=1)
    model = MODELS.load("gaussian_mixture")(n_components=3, covariance="spherical")
    worst = 0.0
    for sigma in (0.3, 1.0, 3.0):
        sites = {"weights": np.full(3, 1 / 3), "mu": _centres(dataset, labels), "sigma": np.full(3, sigma)}
        exact = latent_positions(model, dataset, **sites).probs.numpy()
        worst = max(worst, float(np.abs(soft_assignments(distances, sigma) - exact).max()))
        worst = max(worst, float((exact.argmax(axis=1) != labels).mean()))
    return below_limit(
        worst, 1e-8, "largest difference between soft assignments and responsibilities for equal spherical covariances on wine"
    )


def _clusters_far_apart_and_near(embedding: str) -> tuple[float, float]:
    """Matched accuracy between a clustering and the maximum-likelihood mixture, at separations of 6 and 2 standard deviations."""
    accuracies = []
    for separation in (6.0, 2.0):
        dataset = gaussian_mixture(n_units=300, separation=separation)
        labels = labels_at_maximum("gaussian_mixture", dataset, n_components=3, covariance="spherical")
        accuracies.append(float(matched_accuracy(cluster_labels(embedding, dataset, 3), labels)))
    return accuracies[0], accuracies[1]


def ward_is_a_greedy_mixture() -> Evidence:
    far, near = _clusters_far_apart_and_near("agglomerative")
    text = (
        f"share of units with the label of the mixture: {far:.3g} for means 6 standard deviations apart (required: above 0.99), "
        f"{near:.3g} for 2 standard deviations (required: below 0.9)"
    )
    return Evidence(far > 0.99 and near < 0.9, far, 0.99, text)


def spectral_clustering_finds_rings() -> Evidence:
    rng = Seeds(0).child("correspondence").numpy()
    angles = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    circle = np.column_stack([np.cos(angles), np.sin(angles)])
    x = np.concatenate([circle[::2], 3 * circle]) + 0.03 * rng.standard_normal((90, 2))
    dataset, ring = Dataset({"x": x}, dims={"x": ("unit", "feature")}, name="rings"), np.repeat([0, 1], [30, 60])
    labels = cluster_labels("spectral_clustering", dataset, 2)
    with_mixture = float(adjusted_rand(labels, labels_at_maximum("gaussian_mixture", dataset, n_components=2, covariance="full")))
    with_rings = float(adjusted_rand(labels, ring))
    text = (
        f"adjusted Rand index of spectral clustering on two rings: {with_mixture:.2g} with the mixture (required: below 0.5), "
        f"{with_rings:.2g} with the rings (required: above 0.9)"
    )
    return Evidence(with_mixture < 0.5 and with_rings > 0.9, with_mixture, 0.5, text)
