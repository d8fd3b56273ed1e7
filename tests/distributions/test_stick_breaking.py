"""Tests of stick-breaking weights: density by change of variables and quadrature, and draws."""

import numpy as np
import pytest
import torch
from scipy import stats

from latentlab.distributions.stick_breaking import StickBreaking


def weights_of(v):
    """Weights of sticks `(..., K - 1)`."""
    left = torch.cumprod(1 - v, -1)
    before = torch.cat([torch.ones_like(v[..., :1]), left[..., :-1]], -1)
    return torch.cat([v * before, left[..., -1:]], -1)


@pytest.mark.parametrize("alpha", [0.4, 1.0, 3.5])
@pytest.mark.parametrize("n_components", [2, 3, 6])
def test_density_matches_the_betas_by_change_of_variables(alpha, n_components, rng):
    """The Jacobian by differentiating the map from sticks to the first K - 1 weights."""
    v = torch.from_numpy(rng.beta(1, alpha, n_components - 1))
    jacobian = torch.autograd.functional.jacobian(lambda u: weights_of(u)[:-1], v)
    expected = stats.beta(1, alpha).logpdf(v.numpy()).sum() - float(torch.linalg.slogdet(jacobian)[1])
    found = StickBreaking(torch.tensor(alpha, dtype=torch.float64), n_components).log_prob(weights_of(v))
    np.testing.assert_allclose(float(found), expected, rtol=1e-9)


@pytest.mark.parametrize("alpha", [1.0, 2.0, 5.0])
def test_density_integrates_to_one_over_three_weights(alpha):
    """Gauss-Legendre on the triangle w1 + w2 < 1."""
    node, weight = np.polynomial.legendre.leggauss(80)
    node, weight = (node + 1) / 2, weight / 2
    w1, share = np.meshgrid(node, node, indexing="ij")
    w2 = (1 - w1) * share
    w = torch.from_numpy(np.stack([w1, w2, 1 - w1 - w2], -1))
    density = StickBreaking(torch.tensor(alpha, dtype=torch.float64), 3).log_prob(w).exp().numpy()
    assert (density * (1 - w1) * np.outer(weight, weight)).sum() == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("alpha", [0.5, 2.0])
def test_sticks_of_drawn_weights_follow_beta_distributions(alpha):
    """Kolmogorov-Smirnov for each of 3 sticks, at 1e-5 each; sticks are uncorrelated, at 1e-5."""
    torch.manual_seed(0)
    w = StickBreaking(torch.tensor(alpha, dtype=torch.float64), 4).sample((5000,)).numpy()
    np.testing.assert_allclose(w.sum(-1), 1, rtol=1e-12)
    assert (w >= 0).all()
    rest = 1 - np.concatenate([np.zeros((5000, 1)), w[:, :-1].cumsum(-1)], -1)
    sticks = w[:, :3] / rest[:, :3]
    for v in sticks.T:
        assert stats.kstest(v, stats.beta(1, alpha).cdf).pvalue > 1e-5
    assert abs(np.corrcoef(sticks[:, 0], sticks[:, 1])[0, 1]) < stats.norm.isf(1e-5 / 2) / np.sqrt(5000)


def test_small_weights_are_accurate():
    """The remaining stick is summed from the small end, which avoids 1 - (1 - 1e-20)."""
    w = torch.tensor([1.0, 1e-20, 1e-30], dtype=torch.float64)
    found = float(StickBreaking(torch.tensor(2.0, dtype=torch.float64), 3).log_prob(w))
    # sum of log alpha + (alpha - 1) log(1 - v) - log r: v1 = 1 - 1e-20, r2 = 1e-20, 1 - v2 = 1e-10
    assert found == pytest.approx(2 * np.log(2) + np.log(1e-20) + np.log(1e-10) - np.log(1e-20), rel=1e-9)
