r"""The registry of claims that an embedding estimates a model's latent positions, each with a check that can fail.

To add a claim, write its function of evidence and one entry of `CORRESPONDENCES`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from latentlab.compare.align import principal_axes
from latentlab.data.dataset import Dataset
from latentlab.data.load import load_dataset
from latentlab.data.simulators import linear_gaussian
from latentlab.embeddings.embedding import embed
from latentlab.registry import MODELS
from latentlab.seeds import Seeds, double

Map = Callable[[np.ndarray, Dataset], np.ndarray]
"""Embedding coordinates `(unit, p)` of a dataset to the model's latent coordinates."""


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
    made = dict(options or {})
    for entry in CORRESPONDENCES:
        if (entry.embedding, entry.model) == (embedding, model) and all(made.get(k) == v for k, v in entry.options):
            return entry
    return None


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


# -- checks


def _posterior_mean(model_name: str, dataset: Dataset, n_latent: int) -> np.ndarray:
    """The positions' posterior mean at the maximum of the likelihood `(unit, latent)`."""
    import torch

    from latentlab.inference.density import tensors

    model = MODELS.load(model_name)(n_latent=n_latent)
    arrays = tensors(model, dataset)
    with double():
        found = model.maximum_likelihood(arrays, Seeds(0).child("correspondence").numpy())
        values = {name: torch.as_tensor(value) for name, value in found.values.items()}
        return model.latents(arrays, **values).mean.numpy()


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


_TIPPING = "Tipping & Bishop (1999), JRSS B 61:611"
_ROTATION = "rotation and reflection, O(q)"


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
)
