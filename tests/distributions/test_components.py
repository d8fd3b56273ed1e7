"""Tests of emission densities against scipy, with and without missing entries, and of draws.

Tests of draws: two-sided z-tests of moments over 20 000 draws, Bonferroni at a total of 1e-5 a test.
"""

import numpy as np
import pytest
import torch
from scipy import stats

from latentlab.distributions.components import (
    BernoulliComponents,
    CategoricalComponents,
    GaussianComponents,
    PoissonComponents,
)
from latentlab.distributions.filled import Filled

N, K, D = 9, 3, 4
N_DRAWS = 20_000


def correlations(rng, *lead):
    """Cholesky factors of random correlation matrices."""
    a = rng.standard_normal((*lead, D, 2 * D))
    c = a @ a.swapaxes(-1, -2)
    scale = np.sqrt(np.diagonal(c, axis1=-2, axis2=-1))
    return np.linalg.cholesky(c / scale[..., :, None] / scale[..., None, :])


def gaussian(rng, form):
    """Components, and their means and covariances `(component, ...)` by numpy."""
    mu, sigma = rng.standard_normal((K, D)), np.exp(rng.standard_normal((K, D)))
    corr = None
    if form == "spherical":
        sigma = np.repeat(sigma[:, :1], D, axis=1)
    elif form == "tied":
        sigma, corr = sigma[0], correlations(rng)
    elif form == "full":
        corr = correlations(rng, K)
    within = np.eye(D) if corr is None else corr @ corr.swapaxes(-1, -2)
    covariance = np.broadcast_to(sigma[..., :, None] * within * sigma[..., None, :], (K, D, D))
    given = torch.from_numpy(sigma[:, :1] if form == "spherical" else sigma)
    return GaussianComponents(torch.from_numpy(mu), given, None if corr is None else torch.from_numpy(corr)), mu, covariance


def observed_mask(rng):
    """A mask of observed entries: none for one unit, all for another."""
    seen = rng.random((N, D)) < 0.6
    seen[0], seen[1] = False, True
    return seen


FORMS = ["spherical", "diagonal", "full", "tied"]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("missing", [False, True])
def test_gaussian_density_of_observed_entries_matches_scipy(form, missing, rng):
    components, mu, covariance = gaussian(rng, form)
    x, seen = 2 * rng.standard_normal((N, D)), observed_mask(rng) if missing else np.ones((N, D), dtype=bool)
    expected = np.zeros((N, K))
    for n in range(N):
        for k in range(K):
            o = np.flatnonzero(seen[n])
            if len(o):
                expected[n, k] = stats.multivariate_normal(mu[k][o], covariance[k][np.ix_(o, o)]).logpdf(x[n, o])
    observed = torch.from_numpy(seen) if missing else None
    found = components.log_prob(torch.from_numpy(np.where(seen, x, 0.0)), observed)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-9, atol=1e-9)
    # what stands in a missing entry does not count
    np.testing.assert_allclose(components.log_prob(torch.from_numpy(x), observed).numpy(), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("form", ["diagonal", "full", "tied"])
def test_masking_an_entry_integrates_it_out(form, rng):
    """The density with an entry missing is the integral over it, by quadrature."""
    components, _, covariance = gaussian(rng, form)
    x = torch.from_numpy(rng.standard_normal((N, D)))
    seen = torch.ones(N, D, dtype=torch.bool)
    seen[:, 2] = False
    width = 60 * np.sqrt(covariance[:, 2, 2].max())
    grid = torch.linspace(-width, width, 60_001, dtype=torch.float64)
    for n in (0, 5):
        rows = x[n].repeat(len(grid), 1)
        rows[:, 2] = grid
        density = components.log_prob(rows).exp()
        integral = torch.trapezoid(density, grid, dim=0)
        np.testing.assert_allclose(components.log_prob(x, seen)[n].exp().numpy(), integral.numpy(), rtol=1e-8)


@pytest.mark.parametrize("form", ["full", "tied"])
def test_conditional_of_missing_entries_matches_the_formula(form, rng):
    components, mu, covariance = gaussian(rng, form)
    x, seen, labels = rng.standard_normal((N, D)), observed_mask(rng), rng.integers(0, K, N)
    mean, factor = components.completed(torch.from_numpy(labels), torch.from_numpy(x), torch.from_numpy(seen))
    for n, k in enumerate(labels):
        o, m = np.flatnonzero(seen[n]), np.flatnonzero(~seen[n])
        gain = covariance[k][np.ix_(m, o)] @ np.linalg.pinv(covariance[k][np.ix_(o, o)])
        np.testing.assert_allclose(mean[n, o].numpy(), x[n, o], rtol=1e-12)
        np.testing.assert_allclose(mean[n, m].numpy(), mu[k][m] + gain @ (x[n, o] - mu[k][o]), rtol=1e-9, atol=1e-12)
        rest = covariance[k][np.ix_(m, m)] - gain @ covariance[k][np.ix_(o, m)]
        np.testing.assert_allclose((factor[n] @ factor[n].T).numpy()[np.ix_(m, m)], rest, rtol=1e-8, atol=1e-10)
        assert not factor[n].numpy()[o].any()
    torch.manual_seed(0)
    drawn = Filled(mean, factor).sample((N_DRAWS,)).numpy()
    assert (drawn[:, seen] == x[seen]).all()
    n, k = 0, labels[0]  # of which nothing was observed: a draw from the component
    assert_moments(drawn[:, n], mu[k], covariance[k])
    spread = np.linalg.norm(factor.numpy(), axis=-1)
    expected = stats.norm(mean.numpy()[~seen], spread[~seen]).logpdf(x[~seen])
    np.testing.assert_allclose(Filled(mean, factor).log_prob(torch.from_numpy(x)).numpy()[~seen], expected, rtol=1e-9)


def limit(n_tests):
    return stats.norm.isf(1e-5 / 2 / n_tests)


def assert_moments(drawn, mean, covariance):
    """Means and second moments of Gaussian draws `(draw, d)`, each by its own standard error."""
    d = len(mean)
    z = (drawn.mean(0) - mean) / np.sqrt(np.diag(covariance) / len(drawn))
    second = (drawn - mean)[:, :, None] * (drawn - mean)[:, None, :]
    zz = (second.mean(0) - covariance) / (second.std(0) / np.sqrt(len(drawn)))
    assert np.abs(z).max() < limit(d + d * d)
    assert np.abs(zz).max() < limit(d + d * d)


@pytest.mark.parametrize("form", FORMS)
def test_moments_of_gaussian_draws_match_their_component(form, rng):
    components, mu, covariance = gaussian(rng, form)
    torch.manual_seed(1)
    for k in range(K):
        assert_moments(components.sample(torch.full((N_DRAWS,), k)).numpy(), mu[k], covariance[k])


def counts_density(kind, rng):
    """Components, data, and log densities of single entries `(unit, component, feature)` by scipy."""
    if kind == "bernoulli":
        p, x = rng.uniform(0.05, 0.95, (K, D)), (rng.random((N, D)) < 0.5).astype(float)
        return BernoulliComponents(torch.from_numpy(p)), x, stats.bernoulli(p[None]).logpmf(x[:, None])
    if kind == "poisson":
        rate, x = rng.gamma(1.0, 5.0, (K, D)), rng.poisson(4.0, (N, D)).astype(float)
        return PoissonComponents(torch.from_numpy(rate)), x, stats.poisson(rate[None]).logpmf(x[:, None])
    p, x = rng.dirichlet(np.ones(5), (K, D)), rng.integers(0, 5, (N, D)).astype(float)
    each = np.log(p[np.arange(K)[None, :, None], np.arange(D)[None, None, :], x.astype(int)[:, None, :]])
    return CategoricalComponents(torch.from_numpy(p)), x, each


@pytest.mark.parametrize("kind", ["bernoulli", "poisson", "categorical"])
def test_densities_of_counts_and_symbols_match_scipy(kind, rng):
    components, x, each = counts_density(kind, rng)
    np.testing.assert_allclose(components.log_prob(torch.from_numpy(x)).numpy(), each.sum(-1), rtol=1e-9)
    seen = observed_mask(rng)
    for filling in (x, np.where(seen, x, 0.0)):
        found = components.log_prob(torch.from_numpy(filling), torch.from_numpy(seen)).numpy()
        np.testing.assert_allclose(found, (each * seen[:, None]).sum(-1), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", ["bernoulli", "poisson", "categorical"])
def test_frequencies_of_drawn_counts_and_symbols_match_the_density(kind, rng):
    components, _, _ = counts_density(kind, rng)
    torch.manual_seed(2)
    for k in range(K):
        drawn = components.sample(torch.full((N_DRAWS,), k)).numpy()
        values = np.arange(max(drawn.max() + 2, 5))
        share = (drawn[..., None] == values).mean(0)
        if kind == "bernoulli":
            expected = stats.bernoulli(components.probability[k].numpy()[:, None]).pmf(values)
        elif kind == "poisson":
            expected = stats.poisson(components.rate[k].numpy()[:, None]).pmf(values)
        else:
            expected = np.pad(components.probability[k].numpy(), ((0, 0), (0, len(values) - 5)))
        often = expected > 50 / N_DRAWS
        z = (share - expected)[often] / np.sqrt(expected * (1 - expected) / N_DRAWS)[often]
        assert np.abs(z).max() < limit(K * often.sum())
        assert (share[expected == 0] == 0).all()
