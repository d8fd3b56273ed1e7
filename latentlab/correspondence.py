r"""The registry of claims that an embedding estimates a model's latent positions, each with a check that can fail.

To add a claim, write its function of evidence and one entry of `CORRESPONDENCES`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import numpy as np

from latentlab.compare.agreement import adjusted_rand, matched_accuracy
from latentlab.compare.align import principal_axes
from latentlab.compare.positions import Positions
from latentlab.compare.procrustes import procrustes_similarity
from latentlab.data.dataset import Dataset
from latentlab.data.load import load_dataset
from latentlab.data.markov import hidden_markov
from latentlab.data.mixtures import gaussian_mixture
from latentlab.data.simulators import linear_gaussian
from latentlab.embeddings.embedding import embed
from latentlab.models.base import LatentModel
from latentlab.registry import MODELS
from latentlab.seeds import Seeds, double, one_thread
from latentlab.symmetry.groups import SignedPermutation

Map = Callable[[np.ndarray, Dataset], np.ndarray]
"""Embedding coordinates `(unit, p)` of a dataset to the model's latent coordinates: a column for each label, where those are."""


@dataclass(frozen=True)
class Evidence:
    """What a check measured: the claim holds where `value` is on the right side of `threshold`."""

    passed: bool
    value: float
    threshold: float
    text: str


@dataclass(frozen=True)
class Correspondence:
    """A claim about an embedding and a model.

    Args:
        embedding: Entry of the table of embeddings.
        model: Entry of the table of models.
        grade: How strong: `exact`, `limit`, `asymptotic`, `approximate`, or `none` (a common reading that fails).
        claim: What holds.
        conditions: When.
        breaks: What breaks it.
        symmetry: What of the positions the embedding leaves open.
        citation: Source.
        check: Measures the claim.
        map: Carries embedding coordinates into latent coordinates, where the claim has such a map.
        options: Options of the embedding with which alone the claim is made.
    """

    embedding: str
    model: str
    grade: Literal["exact", "limit", "asymptotic", "approximate", "none"]
    claim: str
    conditions: str
    breaks: str
    symmetry: str
    citation: str
    check: Callable[[], Evidence]
    map: Map | None = None
    options: tuple[tuple[str, Any], ...] = ()


def find(embedding: str, model: str, options: Mapping[str, Any] | None = None) -> Correspondence | None:
    """The claim about an embedding (made with these options) and a model, if there is one."""
    # A list and a tuple of widths are the same option.
    made = {k: tuple(v) if isinstance(v, list) else v for k, v in (options or {}).items()}
    for entry in CORRESPONDENCES:
        if (entry.embedding, entry.model) == (embedding, model) and all(made.get(k) == v for k, v in entry.options):
            return entry
    return None


DEEP: Mapping[str, Any] = {"hidden": (16,), "activation": "tanh"}
"""Networks of the checks of a deep autoencoder and a deep VAE: the same for both."""


# -- maps


def shrunk_axes(values: np.ndarray, dataset: Dataset) -> np.ndarray:
    r"""PCA scores carried to PPCA's posterior mean at the maximum of the likelihood.

    $$ E[z_{nj} \mid x_n] = t_{nj} \sqrt{\lambda_j - \sigma^2} / \lambda_j, \quad
       \sigma^2 = \frac{1}{D - q} \Big( \mathrm{tr}\, S - \sum_{j \le q} \lambda_j \Big) $$
    with t the centred scores in principal axes and $\lambda_j$ their variances (ddof 0). Where entries are missing, tr S is
    that of the data with missing entries at their column's mean, as the scores are.

    Args:
        values: Scores `(unit, q)`, in any rotation.
        dataset: What they are scores of, with D > q columns.
    """
    scores = principal_axes(values)
    variances = scores.var(axis=0)
    x = np.where(np.isnan(dataset.x), np.nanmean(dataset.x, axis=0), dataset.x)
    q = scores.shape[1]
    noise = max(float(x.var(axis=0).sum() - variances.sum()), 0.0) / (x.shape[1] - q)
    safe = np.where(variances > 0, variances, 1.0)
    return scores * np.sqrt(np.maximum(variances - noise, 0.0)) / safe


def as_it_is(values: np.ndarray, dataset: Dataset) -> np.ndarray:
    """The coordinates themselves, centred."""
    return values - values.mean(axis=0)


def nearest(values: np.ndarray, dataset: Dataset) -> np.ndarray:
    """Distances to centres carried to labels: 1 for the nearest centre, of several the first, and 0 for the others."""
    return np.eye(values.shape[1])[values.argmin(axis=1)]


# -- checks


def _positions(model: LatentModel, dataset: Dataset, **values: Any) -> Any:
    """The distribution of the positions at these values of the other sites."""
    import torch

    from latentlab.inference.density import tensors

    with double(), one_thread():
        return model.latents(tensors(model, dataset), **{name: torch.as_tensor(value) for name, value in values.items()})


def _at_maximum(model: LatentModel, dataset: Dataset, n_starts: int = 1) -> Any:
    """The same at the maximum of the likelihood: of several, the highest with nothing amiss."""
    from latentlab.inference.density import tensors

    arrays, seeds = tensors(model, dataset), Seeds(0)
    with double(), one_thread():
        runs = [model.maximum_likelihood(arrays, seeds.child("correspondence", i).numpy()) for i in range(n_starts)]
    return _positions(model, dataset, **max(runs, key=lambda run: (not run.notes, run.trace[-1])).values)


def _posterior_mean(model_name: str, dataset: Dataset, n_latent: int) -> np.ndarray:
    """The positions' posterior mean at the maximum of the likelihood `(unit, latent)`."""
    return _at_maximum(MODELS.load(model_name)(n_latent=n_latent), dataset).mean.numpy()


def _labels_at_maximum(model_name: str, dataset: Dataset, **options: Any) -> np.ndarray:
    """Each unit's most probable label at the maximum of the likelihood `(unit,)`."""
    return _at_maximum(MODELS.load(model_name)(**options), dataset, 3).probs.argmax(-1).numpy()


def _clusters(embedding: str, dataset: Dataset, n_clusters: int, **options: Any) -> np.ndarray:
    """Labels `(unit,)` of one run of a clustering."""
    values = embed(embedding, dataset, n_latent=n_clusters, **options).values
    return (values if values.ndim == 2 else values[0]).argmax(axis=1)


def _turned_residual(y: np.ndarray, z: np.ndarray) -> float:
    """Relative distance of z from y after the best rotation of y."""
    y, z = y - y.mean(axis=0), z - z.mean(axis=0)
    u, _, vt = np.linalg.svd(y.T @ z, full_matrices=False)
    return float(np.linalg.norm(y @ (u @ vt) - z) / np.linalg.norm(z))


def _linear_residual(y: np.ndarray, z: np.ndarray) -> float:
    """Share of z's variance that no affine function of y explains."""
    design = np.column_stack([y, np.ones(len(y))])
    rest = z - design @ np.linalg.lstsq(design, z, rcond=None)[0]
    return float((rest**2).sum() / ((z - z.mean(axis=0)) ** 2).sum())


def _below(value: float, threshold: float, what: str) -> Evidence:
    return Evidence(value < threshold, value, threshold, f"{what}: {value:.3g} (holds below {threshold:g})")


def _above(value: float, threshold: float, what: str) -> Evidence:
    return Evidence(value > threshold, value, threshold, f"{what}: {value:.3g} (holds above {threshold:g})")


def _mapped_scores_are_the_posterior_mean(embedding: str, **options: Any) -> Evidence:
    dataset = load_dataset("wine")
    y = embed(embedding, dataset, n_latent=2, **options).values
    residual = _turned_residual(shrunk_axes(y, dataset), _posterior_mean("ppca", dataset, 2))
    return _below(residual, 1e-8, "relative distance of the mapped scores from PPCA's posterior mean on wine")


def _pca_is_ppca() -> Evidence:
    return _mapped_scores_are_the_posterior_mean("pca")


def _classical_mds_is_ppca() -> Evidence:
    return _mapped_scores_are_the_posterior_mean("mds", method="classical")


def _scores_are_factor_analysis() -> Evidence:
    dataset = load_dataset("wine")
    y = embed("factor_analysis", dataset, n_latent=2).values
    residual = _turned_residual(y, _posterior_mean("factor_analysis", dataset, 2))
    return _below(residual, 1e-3, "relative distance of the factor scores from the posterior mean on wine")


def _unequal_noise_parts_pca_from_factor_analysis() -> Evidence:
    dataset = linear_gaussian(n_units=2000, n_features=8, n_latent=2, noise=0.3, seed=1)
    mean, x = _posterior_mean("factor_analysis", dataset, 2), dataset.x
    equal = _linear_residual(embed("pca", dataset, n_latent=2).values, mean)
    rng = Seeds(1).child("correspondence").numpy()
    noisy = x + rng.standard_normal(x.shape) * np.array([6.0, 0, 0, 0, 0, 0, 0, 0])
    unequal_data = Dataset({"x": noisy}, dims=dict(dataset.dims))
    unequal = _linear_residual(embed("pca", unequal_data, n_latent=2).values, _posterior_mean("factor_analysis", unequal_data, 2))
    passed = equal < 0.01 and unequal > 0.1
    text = (
        f"share of the factor positions' variance that PCA misses: {equal:.2g} with equal noise (holds below 0.01), "
        f"{unequal:.2g} with one noisy feature (holds above 0.1)"
    )
    return Evidence(passed, unequal, 0.1, text)


def _wide_kernel_is_pca() -> Evidence:
    dataset = load_dataset("wine")
    y = embed("kernel_pca", dataset, n_latent=2, gamma=1e-7).values
    residual = _linear_residual(y, embed("pca", dataset, n_latent=2).values)
    return _below(residual, 1e-4, "share of PCA's variance that kernel PCA with gamma 1e-7 misses on wine")


def _all_neighbours_make_isomap_pca() -> Evidence:
    dataset = load_dataset("wine")
    y = embed("isomap", dataset, n_latent=2, n_neighbors=dataset.n_units - 1).values
    residual = _turned_residual(y, embed("pca", dataset, n_latent=2).values)
    return _below(residual, 1e-6, "relative distance of Isomap with all neighbours from PCA on wine")


def _bends(embedding: str) -> Evidence:
    dataset = linear_gaussian(n_units=200, n_features=10, n_latent=2, noise=0.3, seed=2)
    z = _posterior_mean("ppca", dataset, 2)
    values = embed(embedding, dataset, n_latent=2).values
    y = values if values.ndim == 2 else values[0]
    residual = _linear_residual(y, z)
    return _above(residual, 0.01, f"share of the variance of simulated linear positions that {embedding} bends away")


def _bent(embedding: str) -> Callable[[], Evidence]:
    def check() -> Evidence:
        return _bends(embedding)

    return check


def _mixture_centres(dataset: Dataset, n_components: int, sigma: float, n_starts: int = 10) -> np.ndarray:
    """Means at the highest likelihood of a mixture with equal weights and this sigma for all, by EM from random units."""
    x, rng = dataset.x, Seeds(0).child("correspondence").numpy()
    model = MODELS.load("gaussian_mixture")(n_components=n_components, covariance="spherical")
    fixed = {"weights": np.full(n_components, 1 / n_components), "sigma": np.full(n_components, sigma)}
    found = []
    for _ in range(n_starts):
        mu = x[rng.choice(len(x), n_components, replace=False)]
        before = np.full_like(mu, np.inf)
        while np.abs(mu - before).max() > 1e-12:
            before = mu
            responsibilities = _positions(model, dataset, mu=mu, **fixed).probs.numpy()
            mu = responsibilities.T @ x / responsibilities.sum(axis=0)[:, None]
        squares = ((x[:, None] - mu) ** 2).sum(axis=2) / (2 * sigma**2)
        found.append((np.logaddexp.reduce(-squares, axis=1).sum(), mu))
    return max(found, key=lambda one: one[0])[1]


def _centres(dataset: Dataset, labels: np.ndarray) -> np.ndarray:
    return np.stack([dataset.x[labels == k].mean(axis=0) for k in range(labels.max() + 1)])


def _distance_of_centres(a: np.ndarray, b: np.ndarray) -> float:
    """Relative distance of the centres b from a, matched one to one."""
    from scipy.optimize import linear_sum_assignment

    squares = ((a[:, None] - b) ** 2).sum(axis=2)
    return float(np.sqrt(squares[linear_sum_assignment(squares)].sum()) / np.linalg.norm(b))


def _round_and_unequal() -> Dataset:
    """A wide cluster of 340 units beside a narrow one of 60."""
    rng = Seeds(1).child("correspondence").numpy()
    wide = 4.0 * rng.standard_normal((340, 2))
    narrow = np.array([6.0, 0.0]) + rng.standard_normal((60, 2))
    return Dataset({"x": np.concatenate([wide, narrow])}, dims={"x": ("unit", "feature")}, name="unequal clusters")


def _vanishing_variance_makes_kmeans() -> Evidence:
    dataset, unequal = load_dataset("wine"), _round_and_unequal()
    centres = _centres(dataset, _clusters("kmeans", dataset, 3))
    distance = _distance_of_centres(_mixture_centres(dataset, 3, sigma=0.1), centres)
    labels = _labels_at_maximum("gaussian_mixture", unequal, n_components=2, covariance="spherical")
    parted = 1 - matched_accuracy(_clusters("kmeans", unequal, 2), labels)
    text = (
        f"relative distance of k-means' centres from a mixture's with sigma 0.1 on wine: {distance:.2g} (holds below 1e-6); "
        f"share of units labelled otherwise where clusters are of unequal size and width: {parted:.2g} (holds above 0.2)"
    )
    return Evidence(distance < 1e-6 and parted > 0.2, distance, 1e-6, text)


def soft_assignments(distances: np.ndarray, sigma: float) -> np.ndarray:
    r"""$\exp(-d_{nk}^2 / 2 \sigma^2)$ of distances to centres `(unit, k)`, each row divided by its sum."""
    logs = -(distances**2) / (2 * sigma**2)
    return np.exp(logs - np.logaddexp.reduce(logs, axis=1)[:, None])


def _distances_are_responsibilities() -> Evidence:
    dataset = load_dataset("wine")
    distances = embed("kmeans", dataset, n_latent=3, n_seeds=1, output="distances").values[0]
    labels = nearest(distances, dataset).argmax(axis=1)
    model = MODELS.load("gaussian_mixture")(n_components=3, covariance="spherical")
    worst = 0.0
    for sigma in (0.3, 1.0, 3.0):
        sites = {"weights": np.full(3, 1 / 3), "mu": _centres(dataset, labels), "sigma": np.full(3, sigma)}
        exact = _positions(model, dataset, **sites).probs.numpy()
        worst = max(worst, float(np.abs(soft_assignments(distances, sigma) - exact).max()))
        worst = max(worst, float((exact.argmax(axis=1) != labels).mean()))
    return _below(
        worst, 1e-8, "largest difference of soft assignments from responsibilities at equal spherical variances on wine"
    )


def _clusters_far_apart_and_near(embedding: str) -> tuple[float, float]:
    """Share of units labelled as the mixture at its maximum labels them, 6 and 2 standard deviations apart."""
    found = []
    for separation in (6.0, 2.0):
        dataset = gaussian_mixture(n_units=300, separation=separation)
        labels = _labels_at_maximum("gaussian_mixture", dataset, n_components=3, covariance="spherical")
        found.append(float(matched_accuracy(_clusters(embedding, dataset, 3), labels)))
    return found[0], found[1]


def _ward_is_a_greedy_mixture() -> Evidence:
    far, near = _clusters_far_apart_and_near("agglomerative")
    text = (
        f"share of units labelled as by the mixture: {far:.3g} with means 6 standard deviations apart (holds above 0.99), "
        f"{near:.3g} with 2 (holds below 0.9)"
    )
    return Evidence(far > 0.99 and near < 0.9, far, 0.99, text)


def _rings_part_spectral_clustering_from_the_mixture() -> Evidence:
    rng = Seeds(0).child("correspondence").numpy()
    angles = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    circle = np.column_stack([np.cos(angles), np.sin(angles)])
    x = np.concatenate([circle[::2], 3 * circle]) + 0.03 * rng.standard_normal((90, 2))
    dataset, ring = Dataset({"x": x}, dims={"x": ("unit", "feature")}, name="rings"), np.repeat([0, 1], [30, 60])
    labels = _clusters("spectral_clustering", dataset, 2)
    found = float(adjusted_rand(labels, _labels_at_maximum("gaussian_mixture", dataset, n_components=2, covariance="full")))
    rings = float(adjusted_rand(labels, ring))
    text = (
        f"adjusted Rand index of spectral clustering on two rings: {found:.2g} with the mixture (holds below 0.5), "
        f"{rings:.2g} with the rings (holds above 0.9)"
    )
    return Evidence(found < 0.5 and rings > 0.9, found, 0.5, text)


@cache
def _hidden_states(separation: float) -> tuple[Dataset, np.ndarray]:
    """400 steps, and the most probable state of each at the maximum of the likelihood."""
    dataset = hidden_markov(n_sequences=1, n_steps=400, n_states=2, separation=separation, seed=2)
    return dataset, _labels_at_maximum("gaussian_hmm", dataset, n_states=2)


def _steps_in_the_same_state(embedding: str, separation: float) -> float:
    """Share of steps that a clustering puts into their most probable state."""
    dataset, states = _hidden_states(separation)
    return float(matched_accuracy(_clusters(embedding, dataset, 2, n_seeds=1), states))


def _strong_signal_makes_it_the_states(embedding: str, weak_below: float) -> Evidence:
    strong, weak = _steps_in_the_same_state(embedding, 6.0), _steps_in_the_same_state(embedding, 1.0)
    text = (
        f"share of steps in their most probable state: {strong:.3g} with means 6 standard deviations apart (holds above 0.999), "
        f"{weak:.3g} with 1 (holds below {weak_below:g})"
    )
    return Evidence(strong > 0.999 and weak < weak_below, strong, 0.999, text)


def _viterbi_is_the_best_path() -> Evidence:
    return _strong_signal_makes_it_the_states("viterbi", 0.99)


def _kmeans_ignores_transitions() -> Evidence:
    return _strong_signal_makes_it_the_states("kmeans", 0.85)


def _windows_blur_changes() -> Evidence:
    weak, strong = _steps_in_the_same_state("window_kmeans", 1.0), _steps_in_the_same_state("window_kmeans", 10.0)
    passed = strong < 0.99 and weak > _steps_in_the_same_state("kmeans", 1.0)
    text = (
        f"share of steps in their most probable state with means 10 standard deviations apart: {strong:.3g} (holds below 0.99); "
        f"with 1, {weak:.3g} (holds above that of k-means)"
    )
    return Evidence(passed, strong, 0.99, text)


def _path_on_a_plane(noise: float) -> tuple[Dataset, np.ndarray]:
    """300 steps that turn in a plane once in 40 steps, seen by 6 features, and their posterior mean at the true parameters."""
    rng = Seeds(1).child("correspondence").numpy()
    angle = 2 * np.pi / 40
    A = 0.98 * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    C, z = rng.standard_normal((6, 2)), rng.standard_normal((300, 2))
    for t in range(1, len(z)):
        z[t] += A @ z[t - 1]
    x = z @ C.T + noise * rng.standard_normal((len(z), 6))
    dataset = Dataset({"x": x}, dims={"x": ("unit", "feature")}, name="a path on a plane")
    sites = {"A": A, "C": C, "mu": np.zeros(6), "sigma": np.full(6, noise)}
    return dataset, _positions(MODELS.load("state_space")(n_latent=2), dataset, **sites).mean.numpy()


def _share_of_path_missed(embedding: str, noise: float, **options: Any) -> float:
    dataset, mean = _path_on_a_plane(noise)
    return _linear_residual(embed(embedding, dataset, n_latent=2, **options).values, mean)


def _vanishing_noise_makes_pca_the_path() -> Evidence:
    small, large = _share_of_path_missed("pca", 0.1), _share_of_path_missed("pca", 10.0)
    text = (
        f"share of the variance of smoothed positions that PCA misses: {small:.2g} with noise 0.1 (holds below 0.001), "
        f"{large:.2g} with noise 10 (holds above 0.2)"
    )
    return Evidence(small < 1e-3 and large > 0.2, small, 1e-3, text)


def _windows_smooth() -> Evidence:
    large, small = (_share_of_path_missed("window_pca", noise, window=9) for noise in (10.0, 0.1))
    without = _share_of_path_missed("pca", 10.0)
    text = (
        f"share of the variance of smoothed positions that PCA of windows of 9 misses: {large:.2g} with noise 10 (holds below "
        f"0.25; PCA misses {without:.2g}), {small:.2g} with noise 0.1 (holds above 0.01)"
    )
    return Evidence(large < 0.25 < without and small > 0.01, large, 0.25, text)


# -- checks of autoencoders


def _linear_code_spans_the_positions(model_name: str) -> Evidence:
    dataset = load_dataset("wine")
    code = embed("autoencoder", dataset, n_latent=2, n_seeds=1, hidden=()).values[0]
    mean = _posterior_mean(model_name, dataset, 2)
    missed = _linear_residual(code, mean)
    left = procrustes_similarity(Positions(code), Positions(mean))
    text = (
        f"share of the variance of the posterior mean on wine that a linear autoencoder's code misses: {missed:.2g} after an "
        f"affine map (holds below 1e-6), {left:.2g} after a rotation and a scale (holds above 0.001)"
    )
    return Evidence(missed < 1e-6 and left > 1e-3, missed, 1e-6, text)


def _linear_code_spans_ppca() -> Evidence:
    return _linear_code_spans_the_positions("ppca")


def _linear_code_spans_the_linear_vae() -> Evidence:
    return _linear_code_spans_the_positions("linear_vae")


def _distance_of_axes(y: np.ndarray, z: np.ndarray) -> float:
    """Relative distance of z from y after the best exchange of the axes of y and of their signs: no other rotation."""
    y, z = y - y.mean(axis=0), z - z.mean(axis=0)
    elements = SignedPermutation().elements(y.shape[1])
    return float(np.linalg.norm(y @ elements - z, axis=(1, 2)).min() / np.linalg.norm(z))


def _highest_log_likelihood(model_name: str, dataset: Dataset, n_latent: int) -> float:
    """The log likelihood at its maximum; of a model with an encoder, the evidence lower bound at its own."""
    from latentlab.inference.density import tensors

    model = MODELS.load(model_name)(n_latent=n_latent)
    with double(), one_thread():
        found = model.maximum_likelihood(tensors(model, dataset), Seeds(0).child("correspondence").numpy())
    return float(found.trace[-1])


def _mapped_scores_are_the_encoders_mean() -> Evidence:
    dataset = load_dataset("wine")
    y = embed("pca", dataset, n_latent=2).values
    distance = _distance_of_axes(shrunk_axes(y, dataset), _posterior_mean("linear_vae", dataset, 2))
    gap = abs(_highest_log_likelihood("linear_vae", dataset, 2) - _highest_log_likelihood("ppca", dataset, 2))
    # A noise of sd 2 lies above the second eigenvalue of wine, 2.5, and below the first, 4.7.
    fixed = _at_maximum(MODELS.load("linear_vae")(n_latent=2, sigma=2.0), dataset).mean.numpy()
    collapsed = float(np.sort(fixed.var(axis=0))[0])
    text = (
        f"on wine, relative distance of the mapped scores from the encoder's mean, but for order and signs of the axes: "
        f"{distance:.2g} (holds below 1e-4); difference of the best bound from PPCA's log likelihood: {gap:.2g} (holds below "
        f"1e-6); variance of the weaker axis with sigma fixed above its eigenvalue: {collapsed:.2g} (holds below 1e-6)"
    )
    return Evidence(distance < 1e-4 and gap < 1e-6 and collapsed < 1e-6, distance, 1e-4, text)


# -- checks of deep networks


def _sheet(degrees: float, seed: int) -> Dataset:
    """150 units on a sheet, wide by 2, that is bent along a part of a unit circle: in 6 features, with noise of sd 0.05."""
    rng = Seeds(seed).child("correspondence").numpy()
    along, across = rng.uniform(-0.5, 0.5, (2, 150))
    angle = np.deg2rad(degrees) * along
    frame = np.linalg.qr(rng.standard_normal((6, 3)))[0]
    x = np.column_stack([np.sin(angle), np.cos(angle), 2 * across]) @ frame.T + 0.05 * rng.standard_normal((150, 6))
    return Dataset({"x": x}, dims={"x": ("unit", "feature")}, name="a bent sheet")


@cache
def _means_on_a_sheet(degrees: float, beta: float, seed: int) -> np.ndarray:
    """The encoder's means `(unit, 2)` of a deep VAE, trained on the sheet with this weight of the Kullback-Leibler term."""
    from latentlab.fit import fit
    from latentlab.inference.svi import SVI

    dataset, model = _sheet(degrees, seed), MODELS.load("vae")(n_latent=2, **DEEP, beta=beta)
    method: Any = SVI(guide="model", n_steps=1000, learning_rate=0.01, n_particles=1, n_draws=2)
    values = fit(model, dataset, method, seed=seed).parameters
    return _positions(model, dataset, **{name: np.array(value) for name, value in values.items()}).mean.numpy()


def _smooth_residual(y: np.ndarray, z: np.ndarray) -> float:
    """Share of variance that no polynomial of degree 5 explains: of z by y, or of y by z, whichever is more."""
    from sklearn.preprocessing import PolynomialFeatures

    def missed(a: np.ndarray, b: np.ndarray) -> float:
        white = np.linalg.svd(a - a.mean(axis=0), full_matrices=False)[0] * np.sqrt(len(a))
        return _linear_residual(PolynomialFeatures(5, include_bias=False).fit_transform(white), b)

    return max(missed(y, z), missed(z, y))


def _deep_code_is_a_map_of_the_means(seed: int = 0) -> Evidence:
    # Seeds 0 to 19 of data and networks: 0.0003 to 0.0011 with beta 0.1, 0.2 to 0.84 with 20; 0.03 to 0.12 after a rotation.
    settings: dict[str, Any] = {"n_epochs": 400, "batch_size": 50, "learning_rate": 0.01}
    code = embed("autoencoder", _sheet(240.0, seed), n_latent=2, n_seeds=1, seed=seed, **DEEP, **settings).values[0]
    small, large = (_means_on_a_sheet(240.0, beta, seed) for beta in (0.1, 20.0))
    missed, far = _smooth_residual(code, small), _smooth_residual(code, large)
    left = procrustes_similarity(Positions(code), Positions(small))
    text = (
        f"share of variance on a bent sheet that no smooth map between code and means explains: {missed:.2g} with beta 0.1 "
        f"(holds below 0.005), {far:.2g} with beta 20 (holds above 0.05); {left:.2g} after a rotation and a scale with beta 0.1 "
        f"(holds above 0.01)"
    )
    return Evidence(missed < 0.005 and far > 0.05 and left > 0.01, missed, 0.005, text)


def _bent_sheet_parts_pca_from_the_vae(seed: int = 0) -> Evidence:
    # Seeds 0 to 19 of data and networks: 0.0001 to 0.0005 where it bends gently, 0.032 to 0.069 where it folds.
    gentle, strong = (
        _smooth_residual(embed("pca", _sheet(degrees, seed), n_latent=2).values, _means_on_a_sheet(degrees, 1.0, seed))
        for degrees in (60.0, 240.0)
    )
    text = (
        f"share of variance that no smooth map between PCA's scores and a deep VAE's means explains: {gentle:.2g} on a sheet "
        f"bent by 60 degrees (holds below 0.003), {strong:.2g} by 240, which the plane folds (holds above 0.01)"
    )
    return Evidence(gentle < 0.003 and strong > 0.01, gentle, 0.003, text)


_TIPPING = "Tipping & Bishop (1999), JRSS B 61:611"
_ROTATION = "rotation and reflection, O(q)"
_NAMES = "the names of the clusters, S_K"
_KULIS = "Kulis & Jordan (2012), Revisiting k-means, ICML"
_BALDI = "Baldi & Hornik (1989), Neural Networks 2:53"
_DAI = "Dai, Wang, Aston, Hua & Wipf (2018), Connections with Robust PCA, JMLR 19(41)"
_GHOSH = "Ghosh, Sajjadi, Vergari, Black & Schölkopf (2020), From Variational to Deterministic Autoencoders, ICLR"
_LUCAS = "Lucas, Tucker, Grosse & Norouzi (2019), Don't Blame the ELBO!, NeurIPS"


def _no_claim(embedding: str, title: str, citation: str) -> Correspondence:
    return Correspondence(
        embedding,
        "ppca",
        "none",
        claim=f"{title} is read as a picture of latent positions; it is not an estimate of PPCA's, even where PPCA is true.",
        conditions="none",
        breaks="it keeps neighbours, not a linear map of the positions: distances between far units, and axes, have no meaning",
        symmetry="Euclidean motions, and any change of distances that keeps neighbours",
        citation=citation,
        check=_bent(embedding),
    )


CORRESPONDENCES: tuple[Correspondence, ...] = (
    Correspondence(
        "pca",
        "ppca",
        "exact",
        claim="PCA scores, each axis times sqrt(lambda - sigma^2) / lambda, are PPCA's posterior mean at maximum likelihood.",
        conditions="no missing entries; W, mu and sigma at the maximum of the likelihood (flat priors, many units)",
        breaks="raw scores carry sqrt(lambda), which the positions do not; missing entries; strong priors; noise of unequal size",
        symmetry=_ROTATION,
        citation=_TIPPING,
        check=_pca_is_ppca,
        map=shrunk_axes,
    ),
    Correspondence(
        "mds",
        "ppca",
        "exact",
        claim="Classical MDS on Euclidean distances gives the PCA scores, so the same map leads to PPCA's posterior mean.",
        conditions='method="classical", Euclidean distances between the same columns; as for PCA',
        breaks="metric MDS by stress (SMACOF), other distances; and what breaks it for PCA",
        symmetry=_ROTATION,
        citation="Gower (1966), Biometrika 53:325; " + _TIPPING,
        check=_classical_mds_is_ppca,
        map=shrunk_axes,
        options=(("method", "classical"),),
    ),
    Correspondence(
        "factor_analysis",
        "factor_analysis",
        "exact",
        claim="Factor scores (regression method) are the posterior mean of the positions at maximum likelihood.",
        conditions="no missing entries; loadings and noise at the maximum of the likelihood; the same local maximum",
        breaks="Bartlett scores (not shrunk); a Heywood case; a likelihood with several maxima",
        symmetry=_ROTATION,
        citation="Rubin & Thayer (1982), Psychometrika 47:69",
        check=_scores_are_factor_analysis,
        map=as_it_is,
    ),
    Correspondence(
        "pca",
        "factor_analysis",
        "limit",
        claim="PCA finds the factor positions, up to a linear map, as the noise of all features becomes equal.",
        conditions="equal psi in all features",
        breaks="unequal noise: a feature with large noise draws a principal axis to itself",
        symmetry="linear maps, GL(q)",
        citation=_TIPPING,
        check=_unequal_noise_parts_pca_from_factor_analysis,
    ),
    Correspondence(
        "kernel_pca",
        "ppca",
        "limit",
        claim="Kernel PCA with a Gaussian kernel tends to PCA, up to the scale of its axes, as the kernel becomes wide.",
        conditions="gamma times the largest squared distance tends to 0",
        breaks="any kernel of the width of the data, the usual choice: the positions are bent",
        symmetry="linear maps, GL(q)",
        citation="Schölkopf, Smola & Müller (1998), Neural Computation 10:1299",
        check=_wide_kernel_is_pca,
    ),
    Correspondence(
        "isomap",
        "ppca",
        "limit",
        claim="Isomap with all units as neighbours is classical MDS, and so PCA.",
        conditions="n_neighbors = number of units - 1",
        breaks="few neighbours: paths along the noise are longer than the distances",
        symmetry=_ROTATION,
        citation="Tenenbaum, de Silva & Langford (2000), Science 290:2319",
        check=_all_neighbours_make_isomap_pca,
    ),
    _no_claim("spectral", "A Laplacian eigenmap", "Belkin & Niyogi (2003), Neural Computation 15:1373"),
    _no_claim("lle", "Locally linear embedding", "Roweis & Saul (2000), Science 290:2323"),
    _no_claim("tsne", "t-SNE", "van der Maaten & Hinton (2008), JMLR 9:2579"),
    _no_claim("umap", "UMAP", "McInnes, Healy & Melville (2018), arXiv:1802.03426"),
    Correspondence(
        "kmeans",
        "gaussian_mixture",
        "exact",
        claim="exp(-d^2 / 2 sigma^2) of the distances to the centres, made to sum to 1, are the responsibilities of a mixture "
        "around these centres; the nearest centre is the most probable label.",
        conditions='output="distances"; equal weights, one spherical covariance, means at the centres of k-means',
        breaks="unequal weights or covariances; the mixture's own means, which k-means pulls apart where clusters overlap",
        symmetry=_NAMES,
        citation="MacKay (2003), Information Theory, Inference, and Learning Algorithms, ch. 20 and 22",
        check=_distances_are_responsibilities,
        map=nearest,
        options=(("output", "distances"),),
    ),
    Correspondence(
        "kmeans",
        "gaussian_mixture",
        "limit",
        claim="As the variance tends to 0, maximum likelihood has the centres and the labels of k-means.",
        conditions="equal weights, one spherical covariance, both kept so as the variance tends to 0; the best of enough starts",
        breaks="unequal weights or covariances: k-means cuts a wide cluster in two; overlap: it says nothing of who is unsure",
        symmetry=_NAMES,
        citation=_KULIS,
        check=_vanishing_variance_makes_kmeans,
    ),
    Correspondence(
        "agglomerative",
        "gaussian_mixture",
        "approximate",
        claim="Ward's clusters are a greedy estimate of those of a mixture with equal weights and one spherical covariance.",
        conditions='linkage="ward"; clusters far apart',
        breaks="overlap, as what was joined is never parted; unequal covariances; other linkages, which follow chains",
        symmetry=_NAMES,
        citation="Fraley & Raftery (2002), JASA 97:611",
        check=_ward_is_a_greedy_mixture,
        options=(("linkage", "ward"),),
    ),
    Correspondence(
        "spectral_clustering",
        "gaussian_mixture",
        "none",
        claim="Spectral clusters are read as components; they are connected groups of any shape, and no estimate of components.",
        conditions="none; clusters so far apart that every method finds them",
        breaks="groups that are no clouds: it finds two rings, which no two Gaussians do",
        symmetry=_NAMES,
        citation="von Luxburg (2007), A tutorial on spectral clustering, Stat. Comput. 17:395",
        check=_rings_part_spectral_clustering_from_the_mixture,
    ),
    Correspondence(
        "viterbi",
        "gaussian_hmm",
        "limit",
        claim="The Viterbi path is the most probable path; as the states move apart it is every step's most probable state too.",
        conditions="parameters at the maximum of the likelihood; states many standard deviations apart",
        breaks="weak signal: the most probable path is one of very many, and not made of the steps' most probable states",
        symmetry="the names of the states, S_K",
        citation="Rabiner (1989), Proc. IEEE 77:257",
        check=_viterbi_is_the_best_path,
    ),
    Correspondence(
        "kmeans",
        "gaussian_hmm",
        "limit",
        claim="As the states move apart, k-means of single steps finds them: the step alone says its state.",
        conditions="states many standard deviations apart, all of them visited often",
        breaks="weak signal, where the steps before and after say more of a state than the step; states that differ in spread",
        symmetry="the names of the states, S_K",
        citation=_KULIS,
        check=_kmeans_ignores_transitions,
    ),
    Correspondence(
        "window_kmeans",
        "gaussian_hmm",
        "none",
        claim="Clusters of windows are read as states; about every change they mix two of them, however strong the signal.",
        conditions="none; it may well be nearer than k-means of single steps where the signal is weak and states last",
        breaks="a change within the window: its steps are those of neither state",
        symmetry="the names of the states, S_K",
        citation="Keogh & Lin (2005), Clustering of time-series subsequences is meaningless, Knowl. Inf. Syst. 8:154",
        check=_windows_blur_changes,
    ),
    Correspondence(
        "pca",
        "state_space",
        "limit",
        claim="As the noise vanishes, PCA of single steps spans the positions, whatever moves them.",
        conditions="noise small beside C z; at least as many features as latent dimensions",
        breaks="noise: the positions are smoothed over time, PCA is not; fewer features than latent dimensions",
        symmetry="linear maps, GL(q)",
        citation=_TIPPING,
        check=_vanishing_noise_makes_pca_the_path,
    ),
    Correspondence(
        "window_pca",
        "state_space",
        "approximate",
        claim="PCA of windows is nearly a linear map of the smoothed positions where these move slowly and noise is large.",
        conditions="windows of about the time over which the model smooths",
        breaks="little noise, where it blurs; fast motion; the ends of a series; it gives all steps of a window a fixed weight",
        symmetry="linear maps, GL(q)",
        citation="Broomhead & King (1986), Physica D 20:217",
        check=_windows_smooth,
    ),
    Correspondence(
        "autoencoder",
        "ppca",
        "exact",
        claim="The code of a linear autoencoder spans PCA's scores, and so an affine map of it is PPCA's posterior mean.",
        conditions="no hidden layers; converged; no missing entries; PPCA at the maximum of the likelihood",
        breaks="axes, angles and distances of the code: they are not those of the positions, in any rotation and scale",
        symmetry="linear maps, GL(q): only the subspace is comparable",
        citation=_BALDI,
        check=_linear_code_spans_ppca,
        options=(("hidden", ()),),
    ),
    Correspondence(
        "autoencoder",
        "linear_vae",
        "exact",
        claim="The code of a linear autoencoder spans the means of a linear VAE's encoder: both span PCA's scores.",
        conditions="no hidden layers; converged; no missing entries; the bound at its maximum, no axis collapsed",
        breaks="axes, angles and distances of the code, which only the VAE's prior and diagonal encoder fix; a collapsed axis",
        symmetry="linear maps, GL(q): only the subspace is comparable",
        citation=_BALDI + "; " + _LUCAS,
        check=_linear_code_spans_the_linear_vae,
        options=(("hidden", ()),),
    ),
    Correspondence(
        "pca",
        "linear_vae",
        "exact",
        claim="PCA scores, each axis times sqrt(lambda - sigma^2) / lambda, are the encoder's mean at the maximum of the bound, "
        "which is PPCA's maximum of the likelihood.",
        conditions="no missing entries; all parameters at the maximum of the bound, sigma too",
        breaks="sigma fixed above an eigenvalue collapses that axis; raw scores carry sqrt(lambda); a bound not at its maximum",
        symmetry="order and signs of the axes: a diagonal encoder fixes the rotation at the maximum of the bound",
        citation=_LUCAS,
        check=_mapped_scores_are_the_encoders_mean,
        map=shrunk_axes,
    ),
    Correspondence(
        "autoencoder",
        "vae",
        "limit",
        claim="As 2 beta sigma^2, the weight of the Kullback-Leibler term beside the squared error, tends to 0, the bound asks "
        "for the least error of reconstruction, as the autoencoder does: its code is a smooth invertible map of the means.",
        conditions="the same networks, with hidden layers and too small to fit the noise; Gaussian noise of one size for all "
        "features; both trained to a good optimum",
        breaks="a large weight, by much noise or a large beta: dimensions collapse; training that tears or folds the code; axes, "
        "angles and distances of the code, of which only the VAE's prior says anything",
        symmetry="smooth invertible maps: only what is decoded is comparable, near neighbours roughly",
        citation=_GHOSH,
        check=_deep_code_is_a_map_of_the_means,
    ),
    Correspondence(
        "pca",
        "vae",
        "approximate",
        claim="Where the principal plane sees each point of a sheet once, PCA's scores are nearly a smooth invertible map of the "
        "means of a deep VAE's encoder.",
        conditions="data near a sheet of the dimension of the positions, which bends little; noise small beside it",
        breaks="a sheet that bends back: the plane folds it, so that far units meet, or leaves a direction out; distances, even "
        "on a flat sheet, which the decoder may stretch to fit the prior",
        symmetry="smooth invertible maps; linear ones where the decoder is linear",
        citation=_DAI,
        check=_bent_sheet_parts_pca_from_the_vae,
    ),
)
