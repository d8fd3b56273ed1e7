"""Tests of the distributions of entries against scipy, quadrature and sums."""

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from latentlab.distributions.entries import Codes, ContinuousBernoulli, DiscretisedLogistic, NegativeBinomial, inverse_softplus
from latentlab.seeds import double

LOGITS = [0.0, 1e-9, -1e-4, 0.05, 0.1999, 0.2001, -0.2, 1.0, -3.0, 12.0, -40.0]


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


# -- continuous Bernoulli


@pytest.mark.parametrize("logit", LOGITS)
def test_the_continuous_bernoulli_matches_quadrature(logit):
    total, _ = integrate.quad(lambda t: np.exp(logit * t - max(logit, 0)), 0, 1, epsabs=1e-12, epsrel=1e-12)
    first, _ = integrate.quad(lambda t: t * np.exp(logit * t - max(logit, 0)), 0, 1, epsabs=1e-12, epsrel=1e-12)
    x = np.array([0.0, 0.3, 1.0])
    one = ContinuousBernoulli(tensor(logit))
    np.testing.assert_allclose(one.log_prob(tensor(x)), logit * x - max(logit, 0) - np.log(total), rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(one.mean, first / total, rtol=1e-10)


def test_the_continuous_bernoulli_is_smooth_between_series_and_closed_form():
    """First and second derivatives are those of mean and variance; both are continuous where the formula changes."""
    logits = tensor(np.array([-0.2, 0.2])[:, None] + np.array([-1e-7, 1e-7])).requires_grad_()
    one = ContinuousBernoulli(logits)
    (slope,) = torch.autograd.grad(one.log_prob(torch.full_like(logits, 0.7)).sum(), logits, create_graph=True)
    np.testing.assert_allclose(slope.detach(), 0.7 - one.mean.detach(), atol=1e-10)
    (curvature,) = torch.autograd.grad(slope.sum(), logits)
    np.testing.assert_allclose(curvature[:, 0], curvature[:, 1], rtol=1e-6)


@pytest.mark.parametrize("logit", LOGITS)
def test_the_inverse_distribution_function_of_the_continuous_bernoulli(logit):
    u = np.array([0.0, 0.01, 0.5, 0.99])
    x = ContinuousBernoulli(tensor(logit)).icdf(tensor(u)).numpy()
    small = u + logit * u * (1 - u) / 2 if logit else u  # the first order, for small logits
    expected = small if abs(logit) < 1e-6 else np.log1p(u * np.expm1(logit)) / logit
    np.testing.assert_allclose(x, expected, atol=1e-10)


# -- codes


def test_codes_match_scipy(rng):
    logits = rng.normal(size=(6, 3, 4))
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    one = Codes(tensor(logits))
    assert one.batch_shape == (6, 3)
    codes = rng.integers(4, size=(6, 3))
    np.testing.assert_allclose(one.log_prob(tensor(codes)), np.log(np.take_along_axis(p, codes[..., None], -1))[..., 0])
    np.testing.assert_allclose(one.mean, p @ np.arange(4.0), rtol=1e-12)
    every = torch.stack([one.log_prob(torch.full((6, 3), float(k), dtype=torch.float64)) for k in range(4)])
    np.testing.assert_allclose(torch.exp(every).sum(0), 1.0, rtol=1e-12)
    u = rng.uniform(size=(6, 3))
    np.testing.assert_array_equal(one.icdf(tensor(u)), (u[..., None] > np.cumsum(p, -1)[..., :-1]).sum(-1))


# -- values on a grid


@pytest.mark.parametrize("scale", [0.01, 0.7, 300.0])
@pytest.mark.parametrize("loc", [-4.0, 2.2, 5.0, 30.0])
def test_the_discretised_logistic_matches_scipy(loc, scale):
    grid = np.arange(0.0, 8.1, 0.5)
    one = DiscretisedLogistic(tensor(loc), tensor(scale), (0.0, 8.0), 0.5)
    log_p = one.log_prob(tensor(grid)).numpy()
    assert np.isfinite(log_p).all()
    edges = np.concatenate([[-np.inf], grid[:-1] + 0.25, [np.inf]])
    upper, lower = stats.logistic(loc, scale), stats.logistic(-loc, scale)
    above, below = upper.cdf(edges[1:]) - upper.cdf(edges[:-1]), lower.cdf(-edges[:-1]) - lower.cdf(-edges[1:])
    expected = np.where(upper.cdf(edges[:-1]) < 0.5, above, below)  # the difference with less cancellation
    sure = expected > 1e-5
    np.testing.assert_allclose(np.exp(log_p[sure]), expected[sure], rtol=1e-10)
    np.testing.assert_allclose(np.exp(log_p).sum(), 1.0, rtol=1e-12)
    np.testing.assert_allclose(one.mean, np.exp(log_p) @ grid, rtol=1e-12)


def test_rounded_values_at_the_ends_of_a_grid_have_the_tails():
    values = torch.arange(1, 10, dtype=torch.float32) / 10
    one = DiscretisedLogistic(tensor(0.4), tensor(0.3), (0.1, 0.9), 0.1)
    np.testing.assert_allclose(torch.exp(one.log_prob(values.double())).sum(), 1.0, rtol=1e-6)
    assert one.log_prob(tensor(0.1 * 9)) == one.log_prob(tensor(0.9))


def test_draws_on_a_grid_have_its_probabilities():
    one = DiscretisedLogistic(tensor(1.2), tensor(0.8), (0.0, 4.0), 1.0)
    u = (np.arange(200_000) + 0.5) / 200_000
    drawn = one.icdf(tensor(u)).numpy()
    shares = [(drawn == k).mean() for k in range(5)]
    np.testing.assert_allclose(shares, torch.exp(one.log_prob(torch.arange(5.0, dtype=torch.float64))), atol=1e-5)
    assert one.sample((7,)).shape == (7,)


# -- common


@pytest.mark.parametrize(
    "make",
    [
        lambda: ContinuousBernoulli(torch.zeros(3)),
        lambda: Codes(torch.zeros(3, 4)),
        lambda: DiscretisedLogistic(torch.zeros(3), torch.tensor(1.0), (0.0, 3.0), 1.0),
    ],
)
def test_entries_expand_and_are_drawn_in_any_shape(make):
    with double():
        one = make()
        many = one.expand((5, 3))
        assert many.batch_shape == many.sample().shape == (5, 3)
        assert one.sample((2,)).shape == (2, 3)
        x = many.sample()
        np.testing.assert_array_equal(many.log_prob(x), one.log_prob(x))
        assert many.mask(torch.ones(5, 3, dtype=torch.bool)).to_event(1).log_prob(x).shape == (5,)


def test_the_inverse_of_softplus():
    values = tensor([1e-8, 0.3, 5.0, 80.0])
    np.testing.assert_allclose(torch.logaddexp(inverse_softplus(values), torch.zeros(())), values, rtol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("r", [0.3, 10.0, 999.0, 1e3, 1e4, 1e5, 1e7])
def test_negative_binomial_densities_are_accurate_for_all_dispersions(r, dtype):
    """Relative to scipy at the rounded arguments, 1e-6; scipy itself loses digits at large r."""
    m, x = torch.meshgrid(
        torch.tensor([0.5, 20.0, 1e3], dtype=dtype), torch.tensor([0.0, 3.0, 50.0, 1e3], dtype=dtype), indexing="ij"
    )
    r = torch.tensor(r, dtype=dtype)
    own = NegativeBinomial(r, logits=torch.log(m) - torch.log(r))
    found = own.log_prob(x)
    assert found.dtype == dtype
    at = stats.nbinom.logpmf(x.double(), float(r), torch.sigmoid(-own.logits.double()))
    np.testing.assert_allclose(found, at, rtol=1e-6, atol=1e-7)


def test_negative_binomial_densities_approach_those_of_poisson():
    """The difference of the logs is ((x - m)^2 - x) / 2 r to first order."""
    r, m, x = torch.tensor(1e11).double(), torch.tensor([0.5, 20.0, 1e3]).double(), torch.tensor([3.0, 25.0, 980.0]).double()
    found = NegativeBinomial(r, logits=torch.log(m) - torch.log(r)).log_prob(x)
    np.testing.assert_allclose(found, stats.poisson.logpmf(x, m), rtol=1e-8)


@pytest.mark.parametrize("r", [5.0, 2e3, 1e6])
def test_derivatives_of_negative_binomial_densities_by_the_dispersion(r):
    """The difference of two digamma functions at r + x and r is a sum for whole x."""
    m, x = 20.0, 31
    log_r = tensor(np.log(r)).requires_grad_()
    NegativeBinomial(torch.exp(log_r), logits=np.log(m) - log_r).log_prob(tensor(float(x))).backward()
    expected = r * ((1 / (r + np.arange(x))).sum() + np.log1p(-m / (r + m)) + (m - x) / (r + m))
    assert float(log_r.grad) == pytest.approx(expected, rel=1e-7)
