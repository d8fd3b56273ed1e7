"""Tests that rounding of the data does not change positions, partitions or verdicts."""

from dataclasses import replace

import numpy as np
import pytest

from latentlab.comparison.compare import compare
from latentlab.data.load import load_dataset
from latentlab.embeddings.embed import embed
from latentlab.fit import fit
from latentlab.inference.exact import Exact
from latentlab.models.gaussian_hmm import GaussianHMM
from latentlab.models.gaussian_mixture import GaussianMixture
from latentlab.models.ppca import PPCA

CASES = {
    "wine": (PPCA(2), ("pca", "mds"), 400),
    "iris": (GaussianMixture(3, covariance="diagonal"), ("kmeans", "agglomerative"), 100),
    "nile": (GaussianHMM(2), ("kmeans",), 100),
}


@pytest.mark.parametrize("name", list(CASES))
def test_verdicts_are_stable_to_rounding_of_the_data(name, rng):
    """Relative perturbations of 1e-13; the optimum is found to 1e-8, so positions agree to 1e-6."""
    model, embeddings, n_draws = CASES[name]
    dataset = load_dataset(name)
    x = dataset.x * (1 + 1e-13 * rng.standard_normal(dataset.x.shape))
    found = []
    for one in (dataset, replace(dataset, arrays={**dataset.arrays, dataset.observed: x})):
        fitted = fit(model, one, Exact(n_draws=n_draws), seed=0, progress=False)
        compared = compare(
            fitted, [embed(e, one, n_latent=2) for e in embeddings], n_draws=10, n_pairs=5, n_permutations=2, progress=False
        )
        found.append((fitted.latents().values, compared))
    (latents, first), (again, second) = found
    np.testing.assert_allclose(again, latents, atol=1e-6)
    same = ["embedding", "seed", "map", "alignment", "verdict", "component", "worst_units"]
    assert first.verdicts[same].equals(second.verdicts[same])
    np.testing.assert_allclose(second.verdicts["delta"], first.verdicts["delta"], rtol=1e-4)
    assert first.notes == second.notes
    if "point_estimate" in first.data:
        np.testing.assert_array_equal(second.data["point_estimate"], first.data["point_estimate"])
