"""Tests of emissions: drawn LKJ correlation factors and weighted maxima."""

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from scipy import stats

from latentlab.models.emissions.gaussian import Gaussian, _lkj_factor

N_DRAWS = 4000


def factors(n, concentration):
    rng = np.random.default_rng(5)
    return np.stack([_lkj_factor(rng, n, concentration) for _ in range(N_DRAWS)])


@pytest.mark.parametrize("concentration", [0.8, 1.0, 2.5])
@pytest.mark.parametrize("n", [2, 4])
def test_drawn_correlations_have_the_lkj_margins(n, concentration):
    """(r + 1) / 2 is Beta(b, b), b = concentration + (n - 2) / 2: Kolmogorov-Smirnov at 1e-6 each, below 1e-5 in all."""
    lower = factors(n, concentration)
    np.testing.assert_allclose((lower**2).sum(-1), 1, rtol=1e-12)
    r = lower @ lower.swapaxes(1, 2)
    b = concentration + (n - 2) / 2
    for i in range(n):
        for j in range(i):
            assert stats.kstest((r[:, i, j] + 1) / 2, stats.beta(b, b).cdf).pvalue > 1e-6, (i, j)


def test_drawn_factors_match_pyros_lkj_density():
    """E[p_b(L) / p_a(L)] = 1 over draws from p_a, both normalised: z-test at 1e-5; a factor drawn at b itself fails."""
    a, b = (dist.LKJCholesky(4, torch.tensor(eta, dtype=torch.float64)) for eta in (1.0, 2.5))

    def z(lower):
        lower = torch.from_numpy(lower)
        ratio = (b.log_prob(lower) - a.log_prob(lower)).exp().numpy()
        return (ratio.mean() - 1) / (ratio.std() / np.sqrt(len(ratio)))

    assert abs(z(factors(4, 1.0))) < stats.norm.isf(1e-5 / 2)
    assert abs(z(factors(4, 1.3))) > 5


def gaussian(covariance, **changes):
    given = {"mu_loc": 0.0, "mu_scale": 2.0, "sigma_prior": "log_normal", "sigma_scale": 0.5, "sigma_spread": 0.7}
    return Gaussian("Test", 2, covariance=covariance, corr_concentration=2.0, ordered=False, **{**given, **changes})


@pytest.mark.parametrize("covariance", ["spherical", "diagonal", "full", "tied"])
def test_the_weighted_maximum_matches_weighted_moments(covariance, rng):
    x, w = rng.standard_normal((30, 3)), rng.dirichlet(np.ones(2), 30)
    found = gaussian(covariance).maximum(torch.from_numpy(x), None, torch.from_numpy(w))
    mean = (w.T @ x) / w.sum(0)[:, None]
    scatter = np.stack([(w[:, k, None] * (x - mean[k])).T @ (x - mean[k]) for k in range(2)])
    np.testing.assert_allclose(found["mu"].numpy(), mean, rtol=1e-9)
    covariances = scatter / w.sum(0)[:, None, None]
    if covariance == "spherical":
        np.testing.assert_allclose(found["sigma"].numpy() ** 2, covariances.trace(axis1=1, axis2=2) / 3, rtol=1e-9)
    elif covariance == "diagonal":
        np.testing.assert_allclose(found["sigma"].numpy() ** 2, np.diagonal(covariances, axis1=1, axis2=2), rtol=1e-9)
    else:
        lower = (found["sigma"][..., None] * found["corr"]).numpy()
        expected = covariances if covariance == "full" else scatter.sum(0) / 30
        np.testing.assert_allclose(lower @ lower.swapaxes(-1, -2), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("covariance", ["spherical", "diagonal"])
def test_the_weighted_maximum_with_missing_entries(covariance, rng):
    x, w, seen = rng.standard_normal((30, 3)), rng.dirichlet(np.ones(2), 30), rng.random((30, 3)) < 0.7
    found = gaussian(covariance).maximum(torch.from_numpy(np.where(seen, x, 99.0)), torch.from_numpy(seen), torch.from_numpy(w))
    mean, square, total = np.zeros((2, 3)), np.zeros((2, 3)), np.zeros((2, 3))
    for k in range(2):
        for d in range(3):
            o = seen[:, d]
            total[k, d] = w[o, k].sum()
            mean[k, d] = (w[o, k] * x[o, d]).sum() / total[k, d]
            square[k, d] = (w[o, k] * (x[o, d] - mean[k, d]) ** 2).sum()
    np.testing.assert_allclose(found["mu"].numpy(), mean, rtol=1e-9)
    expected = square / total if covariance == "diagonal" else square.sum(1) / total.sum(1)
    np.testing.assert_allclose(found["sigma"].numpy() ** 2, expected, rtol=1e-9)


def test_a_component_without_weight_keeps_its_values(rng):
    x, w = torch.from_numpy(rng.standard_normal((20, 2))), torch.tensor([[1.0, 0.0]], dtype=torch.float64).expand(20, 2)
    for covariance in ("spherical", "diagonal", "full"):
        emission = gaussian(covariance)
        before = emission.maximum(x, None, torch.full((20, 2), 0.5, dtype=torch.float64))
        before = {name: value * 1.5 if name == "mu" else value for name, value in before.items()}
        after = emission.maximum(x, None, w, before)
        for name, value in after.items():
            assert np.isfinite(value.numpy()).all(), name
            np.testing.assert_array_equal(value[1].numpy(), before[name][1].numpy())


@pytest.mark.parametrize("covariance", ["diagonal", "full", "tied", "spherical"])
def test_a_fixed_standard_deviation_is_not_estimated(covariance, rng):
    x = torch.from_numpy(rng.standard_normal((20, 2)))
    emission = gaussian(covariance, sigma_scale=0.7, sigma_spread=0.0)
    assert emission.fixed_sites() == ("sigma",)
    found = emission.maximum(x, None, torch.full((20, 2), 0.5, dtype=torch.float64))
    assert (found["sigma"] == 0.7).all()
    assert gaussian(covariance).fixed_sites() == ()
