"""Tests that credible regions of positions cover true positions drawn from the prior.

At 30 units of 4 features and one latent dimension. Coverage is a mean over units, and units of one data set are not independent,
so the tolerance is 4 standard errors of the mean over data sets (6e-5 two-sided, three levels: a false alarm in 5 000 runs).
"""

import numpy as np
import pytest

from latentlab.compare.coverage import coverage
from latentlab.fit import fit
from latentlab.inference.chees import ChEES
from latentlab.inference.exact import Exact
from latentlab.inference.nuts import NUTS
from latentlab.models.ppca import PPCA
from latentlab.seeds import Seeds

NOMINAL = np.array([0.5, 0.8, 0.95])
MODEL = PPCA(n_latent=1, W_scale=1.0, mu_scale=1.0, sigma_scale=1.0)


def coverage_by_level(method, n_sets, seed):
    """Share of true positions inside their 50%, 80% and 95% regions, `(data set, level)`."""
    shares = []
    for i in range(n_sets):
        dataset = MODEL.simulate(Seeds(seed).child("truth", i).numpy(), 30, n_features=4)
        draws = fit(MODEL, dataset, method, seed=i, progress=False).latents().values
        shares.append(coverage(draws, dataset.truth["z"]).pointwise)
    return np.array(shares)


def z_scores(shares):
    return (shares.mean(0) - NOMINAL) / (shares.std(0, ddof=1) / np.sqrt(len(shares)))


SAMPLERS = {
    "chees": (ChEES(n_chains=32, n_superchains=4, n_warmup=200, n_draws=50, compiled=True), 40),
    "nuts": (NUTS(n_chains=4, n_warmup=200, n_draws=200, compiled=True), 200),
}


@pytest.mark.long
@pytest.mark.parametrize("sampler", sorted(SAMPLERS))
def test_samplers_cover_the_true_positions_at_the_nominal_rate(sampler):
    """`test_self_consistency` has a faster check of the same model, by ranks of the truth."""
    method, n_sets = SAMPLERS[sampler]
    shares = coverage_by_level(method, n_sets, seed=2)
    assert (np.abs(z_scores(shares)) < 4).all(), (shares.mean(0), z_scores(shares))


@pytest.mark.slow
def test_exact_undercovers_since_its_parameters_are_fixed():
    shares = coverage_by_level(Exact(n_draws=400), 80, seed=3)
    np.testing.assert_allclose(shares.mean(0), [0.42, 0.69, 0.86], atol=0.06)
    assert (z_scores(shares) < -3).all(), (shares.mean(0), z_scores(shares))  # the check of the sampler would see this
