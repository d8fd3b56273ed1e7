"""Checks of the claims about linear embeddings."""

from collections.abc import Callable
from typing import Any

import numpy as np

from latentlab.correspondences.claim import Evidence, above_limit, below_limit
from latentlab.correspondences.estimates import linear_residual, posterior_mean, rotated_residual
from latentlab.correspondences.maps import shrunk_axes
from latentlab.data.dataset import Dataset
from latentlab.data.load import load_dataset
from latentlab.data.simulators import linear_gaussian
from latentlab.embeddings.embed import embed
from latentlab.seeds import Seeds


def _mapped_scores_are_the_posterior_mean(embedding: str, **options: Any) -> Evidence:
    dataset = load_dataset("wine")
    y = embed(embedding, dataset, n_latent=2, **options).values
    residual = rotated_residual(shrunk_axes(y, dataset), posterior_mean("ppca", dataset, 2))
    return below_limit(residual, 1e-8, "relative distance between the mapped scores and PPCA's posterior mean on wine")


def pca_is_ppca() -> Evidence:
    return _mapped_scores_are_the_posterior_mean("pca")


def classical_mds_is_ppca() -> Evidence:
    return _mapped_scores_are_the_posterior_mean("mds", method="classical")


def scores_are_factor_analysis() -> Evidence:
    dataset = load_dataset("wine")
    y = embed("factor_analysis", dataset, n_latent=2).values
    residual = rotated_residual(y, posterior_mean("factor_analysis", dataset, 2))
    return below_limit(residual, 1e-3, "relative distance between the factor scores and the posterior mean on wine")


def unequal_noise_separates_pca_and_factor_analysis() -> Evidence:
    dataset = linear_gaussian(n_units=2000, n_features=8, n_latent=2, noise=0.3, seed=1)
    mean, x = posterior_mean("factor_analysis", dataset, 2), dataset.x
    equal = linear_residual(embed("pca", dataset, n_latent=2).values, mean)
    rng = Seeds(1).child("correspondence").numpy()
    noisy = x + rng.standard_normal(x.shape) * np.array([6.0, 0, 0, 0, 0, 0, 0, 0])
    unequal_data = Dataset({"x": noisy}, dims=dict(dataset.dims))
    unequal = linear_residual(embed("pca", unequal_data, n_latent=2).values, posterior_mean("factor_analysis", unequal_data, 2))
    passed = equal < 0.01 and unequal > 0.1
    text = (
        f"share of the variance of the factor positions that PCA does not explain: {equal:.2g} with equal noise (required: "
        f"below 0.01), {unequal:.2g} with one noisy feature (required: above 0.1)"
    )
    return Evidence(passed, unequal, 0.1, text)


def wide_kernel_is_pca() -> Evidence:
    dataset = load_dataset("wine")
    y = embed("kernel_pca", dataset, n_latent=2, gamma=1e-7).values
    residual = linear_residual(y, embed("pca", dataset, n_latent=2).values)
    return below_limit(
        residual, 1e-4, "share of the variance of the PCA scores on wine that kernel PCA with gamma 1e-7 does not explain"
    )


def all_neighbours_make_isomap_pca() -> Evidence:
    dataset = load_dataset("wine")
    y = embed("isomap", dataset, n_latent=2, n_neighbors=dataset.n_units - 1).values
    residual = rotated_residual(y, embed("pca", dataset, n_latent=2).values)
    return below_limit(residual, 1e-6, "relative distance between Isomap with all neighbours and PCA on wine")


def _unexplained_by_linear_maps(embedding: str) -> Evidence:
    dataset = linear_gaussian(n_units=200, n_features=10, n_latent=2, noise=0.3, seed=2)
    z = posterior_mean("ppca", dataset, 2)
    values = embed(embedding, dataset, n_latent=2).values
    y = values if values.ndim == 2 else values[0]
    residual = linear_residual(y, z)
    return above_limit(
        residual, 0.01, f"share of the variance of simulated linear positions that {embedding} does not explain linearly"
    )


def nonlinear_map(embedding: str) -> Callable[[], Evidence]:
    def check() -> Evidence:
        return _unexplained_by_linear_maps(embedding)

    return check
