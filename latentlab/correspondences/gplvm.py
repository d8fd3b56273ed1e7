r"""Checks of the claims about embeddings and the GPLVM.

Spectral embeddings are the optimum of one objective. For a matrix S of second moments between units and positions X, the dual of
PPCA, a GPLVM with a linear kernel, maximises

$$ \ell(X, \sigma) = -\tfrac D2 \left( \log |C| + \mathrm{tr}\, C^{-1} S \right) + \text{const}, \quad C = X X^T + \sigma^2 I $$

with maximum $X = U_q (\Lambda_q - \sigma^2)^{1/2}$ in the leading eigenvectors of S. The methods differ in S only:

| method | S |
|---|---|
| PCA | $Y Y^T / D$ |
| kernel PCA | centred kernel of the data |
| Isomap | doubly centred squared path lengths |
| LLE, Laplacian eigenmaps | covariance of a Gaussian field on the graph of neighbours |

The checks pass features with these second moments to the program of the model.

References:
    Lawrence (2005), JMLR 6:1783. Lawrence (2012), A unifying probabilistic perspective for spectral dimensionality reduction,
    JMLR 13:1609. Ravuri, Vargas, Lalchand & Lawrence (2023), arXiv:2304.07658.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import minimize
from scipy.sparse.csgraph import dijkstra
from scipy.spatial.distance import cdist

from latentlab.compare.geodesic import neighbor_graph
from latentlab.compare.procrustes import procrustes_affine, procrustes_similarity
from latentlab.correspondences.claim import Evidence
from latentlab.correspondences.maps import dual_axes
from latentlab.data.dataset import Dataset
from latentlab.data.load import load_dataset
from latentlab.data.manifolds import s_curve
from latentlab.embeddings.embed import embed
from latentlab.registry import MODELS
from latentlab.seeds import Seeds, double, one_thread

N_NEIGHBORS = 8
RIDGE = 1e-3
"""Ridge of the reconstruction weights of LLE, relative to the trace of the local covariance."""
FIELD = 1e-3
"""Precision added to that of a Gaussian field, relative to its mean diagonal."""


class Point(NamedTuple):
    """The log likelihood of a GPLVM at a point, and its gradient."""

    value: float
    z: np.ndarray
    sigma: float


def likelihood(dataset: Dataset, z: np.ndarray, sigma: float, amplitude: float, kernel: str = "linear", **sites: float) -> Point:
    """Log likelihood of the program of the model, with its gradient for positions and noise; `sigma` includes the nugget."""
    import torch

    from latentlab.inference.arrays import tensors

    model = MODELS.load("gplvm")(n_latent=z.shape[1], kernel=kernel, nugget=1e-12)
    with double(), one_thread():
        values = {name: torch.tensor(value) for name, value in {"amplitude": amplitude, "z": z, "sigma": sigma, **sites}.items()}
        for name in ("z", "sigma"):
            values[name].requires_grad_()
        arrays = tensors(model, dataset)
        total = model.process(arrays, **values).log_prob_sum(arrays["x"])
        gradients = torch.autograd.grad(total, [values["z"], values["sigma"]])
        return Point(float(total.detach()), gradients[0].numpy(), float(gradients[1]))


class Optimum(NamedTuple):
    """Closed-form maximum of the likelihood of a linear GPLVM of centred features: its value and its noise."""

    value: float
    sigma: float


def closed_form(dataset: Dataset, n_latent: int) -> Optimum:
    x = dataset.x
    n, d = x.shape
    values = np.zeros(n)
    found = np.linalg.svd(x, compute_uv=False) ** 2 / d
    values[: len(found)] = found
    noise = values[n_latent:].mean()
    logs = np.log(values[:n_latent]).sum() + (n - n_latent) * np.log(noise)
    return Optimum(float(-0.5 * d * (n * np.log(2 * np.pi) + logs + n)), float(np.sqrt(noise)))


def relative_gradient(z: np.ndarray, gradient: np.ndarray, dataset: Dataset) -> float:
    """Largest change of the log likelihood for a relative change of the positions, for each entry of the data."""
    return float(np.linalg.norm(gradient) * np.linalg.norm(z) / dataset.x.size)


def _at_mapped(values: np.ndarray, dataset: Dataset, n_latent: int = 2) -> tuple[float, float]:
    """Relative gradient at mapped scores, and relative distance of their likelihood from the closed-form maximum."""
    best, z = closed_form(dataset, n_latent), dual_axes(values, dataset)
    spread = np.linalg.svd(dataset.x, compute_uv=False)[:n_latent] ** 2 / dataset.x.shape[1] - best.sigma**2
    amplitude = float(np.sqrt(spread.sum() / z.size))
    at = likelihood(dataset, z, best.sigma, amplitude)
    rest = abs(best.value - at.value) / abs(best.value)
    return relative_gradient(z, at.z, dataset) + abs(at.sigma) * best.sigma / dataset.x.size, rest


def _ascended(dataset: Dataset, n_latent: int = 2) -> float:
    """Highest log likelihood that L-BFGS finds from random positions."""
    shape = dataset.n_units, n_latent

    def objective(free: np.ndarray) -> tuple[float, np.ndarray]:
        at = likelihood(dataset, free[:-1].reshape(shape), float(np.exp(free[-1])), 1.0)
        return -at.value, -np.concatenate([at.z.ravel(), [at.sigma * np.exp(free[-1])]])

    start = np.concatenate([Seeds(0).child("correspondence").numpy().standard_normal(shape[0] * n_latent), [0.0]])
    options = {"maxiter": 3000, "maxfun": 4000, "ftol": 0, "gtol": 1e-6, "maxcor": 30}
    return float(-minimize(objective, start, jac=True, method="L-BFGS-B", options=options).fun)


def _with_prior(scores: np.ndarray, dataset: Dataset, sigma: float = 0.5, amplitude: float = 1.5) -> float:
    r"""Relative gradient of the log joint density at the mode given sigma and the amplitude a, with the prior N(0, I).

    The mode has the axes of the scores. An axis has variance $c_j - \sigma^2$ of $a z$, with $c^2 / a^2 + D c = D \lambda$.
    """
    axes = scores / np.linalg.norm(scores, axis=0)
    d, squares = dataset.x.shape[1], (scores**2).sum(axis=0) / dataset.x.shape[1]
    c = 0.5 * amplitude**2 * (np.sqrt(d**2 + 4 * d * squares / amplitude**2) - d)
    z = axes * np.sqrt(c - sigma**2) / amplitude
    return relative_gradient(z, likelihood(dataset, z, sigma, amplitude).z - z, dataset)


def _scores_are_the_dual(embedding: str, **options: Any) -> Evidence:
    dataset = load_dataset("wine")
    scores = embed(embedding, dataset, n_latent=2, **options).values
    gradient, rest = _at_mapped(scores, dataset)
    best = closed_form(dataset, 2).value
    climbed = abs(_ascended(dataset) - best) / abs(best)
    prior = _with_prior(scores, dataset)
    worst = max(gradient, rest, climbed, prior)
    text = (
        f"linear GPLVM of wine: gradient at the mapped scores {gradient:.2g}; distance of their log likelihood from the closed "
        f"form {rest:.2g}, of that found from random positions {climbed:.2g}; gradient at the mode with prior {prior:.2g} "
        "(relative; required: below 1e-8)"
    )
    return Evidence(worst < 1e-8, worst, 1e-8, text)


def pca_is_the_linear_gplvm() -> Evidence:
    return _scores_are_the_dual("pca")


def classical_mds_is_the_linear_gplvm() -> Evidence:
    return _scores_are_the_dual("mds", method="classical")


def long_lengthscales_make_pca() -> Evidence:
    dataset = load_dataset("wine")
    z, best = dual_axes(embed("pca", dataset, n_latent=2).values, dataset), closed_form(dataset, 2)
    spread = np.linalg.svd(dataset.x, compute_uv=False)[:2] ** 2 / dataset.x.shape[1] - best.sigma**2
    z = z * np.sqrt(spread.sum() / z.size)
    long, short = (
        relative_gradient(z, likelihood(dataset, z, best.sigma, scale, "rbf", lengthscale=scale).z, dataset)
        for scale in (100.0, 1.0)
    )
    text = (
        f"relative gradient of the likelihood at the mapped scores on wine, with lengthscale and amplitude of 100: {long:.2g} "
        f"(required: below 1e-3), of 1: {short:.2g} (required: above 0.01)"
    )
    return Evidence(long < 1e-3 and short > 0.01, long, 1e-3, text)


# -- spectral embeddings: features with the second moments S


def _features(moments: np.ndarray) -> Dataset:
    """Features `(unit, unit)` whose second moments between units are the positive part of S."""
    values, vectors = np.linalg.eigh(moments)
    x = vectors * np.sqrt(np.maximum(values, 0.0) * len(values))
    return Dataset({"x": x}, dims={"x": ("unit", "feature")}, name="features")


def _doubly_centred(squares: np.ndarray) -> np.ndarray:
    centred = -0.5 * (squares - squares.mean(axis=0))
    return np.asarray(centred - centred.mean(axis=1, keepdims=True))


def kernel_moments(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Centred Gaussian kernel of the data, as in kernel PCA, and the scale of each unit's positions, 1."""
    return _doubly_centred(-2 * np.exp(-cdist(x, x, "sqeuclidean") / x.shape[1])), np.ones(len(x))


def path_moments(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Doubly centred squared path lengths, as in Isomap."""
    return _doubly_centred(dijkstra(neighbor_graph(cdist(x, x), N_NEIGHBORS)) ** 2), np.ones(len(x))


def weight_moments(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Covariance of the Gaussian field with precision (I - W)^T (I - W), W the reconstruction weights of LLE."""
    distances, weights = cdist(x, x) + np.diag(np.full(len(x), np.inf)), np.eye(len(x))
    for i, near in enumerate(np.argsort(distances, axis=1)[:, :N_NEIGHBORS]):
        gram = (x[near] - x[i]) @ (x[near] - x[i]).T
        found = np.linalg.solve(gram + RIDGE * np.trace(gram) * np.eye(len(near)), np.ones(len(near)))
        weights[i, near] -= found / found.sum()
    return _field(weights.T @ weights, np.ones(len(x)))


def laplacian_moments(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Covariance of the Gaussian field whose precision is the normalised graph Laplacian; positions times root degrees."""
    nearest = np.argsort(cdist(x, x) + np.diag(np.full(len(x), np.inf)), axis=1)[:, :N_NEIGHBORS]
    graph = np.zeros((len(x), len(x)))
    np.put_along_axis(graph, nearest, 0.5, axis=1)
    graph += graph.T
    roots = np.sqrt(graph.sum(axis=1))
    return _field(np.eye(len(x)) - graph / roots[:, None] / roots, roots)


def _field(precision: np.ndarray, constant: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Covariance of a Gaussian field without its constant mode, and the scale of each unit's positions."""
    unit = constant / np.linalg.norm(constant)
    field = np.linalg.inv(precision + FIELD * np.trace(precision) / len(unit) * np.eye(len(unit)))
    without = np.eye(len(unit)) - np.outer(unit, unit)
    return without @ field @ without, constant


def _dual_of(
    moments: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]], embedding: str, **options: Any
) -> tuple[float, float]:
    """Relative gradient of the dual of S in the axes of an embedding of wine, and distance from its maximum."""
    x = load_dataset("wine").x
    S, scale = moments(x)
    features = _features(S)
    values = embed(embedding, load_dataset("wine"), n_latent=2, **options).values * scale[:, None]
    best, axes = closed_form(features, 2), values / np.linalg.norm(values, axis=0)
    spread = np.maximum(np.einsum("nj,nm,mj->j", axes, S, axes) - best.sigma**2, 0.0)
    z = axes * np.sqrt(spread)
    at = likelihood(features, z, best.sigma, 1.0)
    return relative_gradient(z, at.z, features), abs(best.value - at.value) / abs(best.value)


# -- sheets: what the positions of a GPLVM with a smooth kernel would be


def _sheet_r2(embedding: str, noise: float = 0.02, **options: Any) -> tuple[float, float]:
    """R^2 of the true coordinates of an S-shaped sheet after a similarity and after an affine map of the embedding."""
    dataset = s_curve(400, noise=noise, seed=1)
    y, z = embed(embedding, dataset, n_latent=2, **options).values, dataset.truth["z"]
    return 1 - procrustes_similarity(y, z), 1 - procrustes_affine(y, z)


def path_lengths_unroll_a_sheet() -> Evidence:
    gradient, rest = _dual_of(path_moments, "isomap", n_neighbors=N_NEIGHBORS)
    quiet, _ = _sheet_r2("isomap", n_neighbors=N_NEIGHBORS)
    noisy, _ = _sheet_r2("isomap", noise=0.3, n_neighbors=N_NEIGHBORS)
    text = (
        f"dual of the squared path lengths of wine: relative gradient {gradient:.2g}, distance from the maximum {rest:.2g} "
        f"(required: below 1e-6); R^2 of a sheet's coordinates up to similarity {quiet:.3g} (required: above 0.95), with noise "
        f"0.3 {noisy:.3g} (required: below 0.85)"
    )
    return Evidence(max(gradient, rest) < 1e-6 and quiet > 0.95 and noisy < 0.85, quiet, 0.95, text)


def _field_modes_span_a_sheet(
    moments: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]], embedding: str, name: str
) -> Evidence:
    gradient, rest = _dual_of(moments, embedding, n_neighbors=N_NEIGHBORS)
    similar, affine = _sheet_r2(embedding, n_neighbors=N_NEIGHBORS)
    text = (
        f"dual of the Gaussian field of {name} on wine: relative gradient {gradient:.2g}, distance from the maximum {rest:.2g} "
        f"(required: below 1e-6); R^2 of a sheet's coordinates up to affine maps {affine:.3g} (required: above 0.85), up to "
        f"similarity {similar:.3g} (required: below 0.8)"
    )
    return Evidence(max(gradient, rest) < 1e-6 and affine > 0.85 and similar < 0.8, affine, 0.85, text)


def weights_make_a_gaussian_field() -> Evidence:
    return _field_modes_span_a_sheet(weight_moments, "lle", "the reconstruction weights")


def a_laplacian_makes_a_gaussian_field() -> Evidence:
    return _field_modes_span_a_sheet(laplacian_moments, "spectral", "the normalised Laplacian")


def kernels_of_data_make_a_dual() -> Evidence:
    gradient, rest = _dual_of(kernel_moments, "kernel_pca")
    dataset = load_dataset("wine")
    z, best = dual_axes(embed("kernel_pca", dataset, n_latent=2).values, dataset), closed_form(dataset, 2)
    start = relative_gradient(z, likelihood(dataset, z, best.sigma, 1.0, "rbf", lengthscale=1.0).z, dataset)
    text = (
        f"dual of the kernel of wine: relative gradient at kernel PCA {gradient:.2g}, distance from the maximum {rest:.2g} "
        f"(required: below 1e-8); relative gradient of a GPLVM with kernel rbf there {start:.2g} (required: above 0.01)"
    )
    return Evidence(max(gradient, rest) < 1e-8 and start > 0.01, gradient, 1e-8, text)


def stress_keeps_a_sheet_rolled() -> Evidence:
    stress, _ = _sheet_r2("mds")
    paths, _ = _sheet_r2("isomap", n_neighbors=N_NEIGHBORS)
    text = (
        f"R^2 of a sheet's coordinates up to similarity: MDS by stress {stress:.3g} (required: below 0.85), Isomap {paths:.3g} "
        "(required: above 0.95)"
    )
    return Evidence(stress < 0.85 and paths > 0.95, stress, 0.85, text)


# -- layouts of neighbour graphs


def _two_groups() -> tuple[Dataset, np.ndarray]:
    """Simulated positions in two groups of 100 units with standard deviations 1 and 10, and 8 linear features."""
    rng = Seeds(3).child("correspondence").numpy()
    z = np.concatenate([rng.standard_normal((100, 2)), [100.0, 0.0] + 10 * rng.standard_normal((100, 2))])
    x = z @ rng.standard_normal((2, 8)) + 0.1 * rng.standard_normal((200, 8))
    return Dataset({"x": x - x.mean(axis=0)}, dims={"x": ("unit", "feature")}, name="two groups"), z


def _ratio_of_spreads(z: np.ndarray) -> float:
    """Spread of the second group of 100 units relative to that of the first."""
    first, second = (float(np.sqrt(part.var(axis=0).sum())) for part in (z[:100], z[100:]))
    return second / first


def layout_ignores_spreads(embedding: str) -> Callable[[], Evidence]:
    def check() -> Evidence:
        dataset, z = _two_groups()
        layout = _ratio_of_spreads(embed(embedding, dataset, n_latent=2, n_seeds=1).values[0])
        model = _ratio_of_spreads(dual_axes(embed("pca", dataset, n_latent=2).values, dataset))
        truth = _ratio_of_spreads(z)
        passed = layout < 0.5 * truth and abs(np.log(model / truth)) < np.log(1.2)
        text = (
            f"spread of a wide group relative to a narrow one: {embedding} {layout:.3g} (required: below {0.5 * truth:.3g}), "
            f"linear GPLVM {model:.3g} (required: within 20% of the true {truth:.3g})"
        )
        return Evidence(bool(passed), layout, 0.5 * truth, text)

    return check
