"""Tests of the distribution of series of a hidden Markov chain."""

import itertools

import numpy as np
import torch
from scipy import stats
from scipy.special import logsumexp

from latentlab.distributions.components import CategoricalComponents, GaussianComponents
from latentlab.distributions.hidden_markov_series import HiddenMarkovSeries

STARTS = np.array([True, False, False, True, False])


def series(rng, components, observed=None, starts=STARTS):
    pi, A = rng.dirichlet(np.ones(2)), rng.dirichlet(np.ones(2), 2)
    logs = torch.from_numpy(np.log(pi)), torch.from_numpy(np.log(A))
    return HiddenMarkovSeries(*logs, components, torch.from_numpy(starts), observed), pi, A


def test_density_with_missing_entries_matches_enumeration(rng):
    mu, sigma = rng.standard_normal((2, 3)), np.exp(rng.standard_normal((2, 3)))
    x, seen = rng.standard_normal((5, 3)), rng.random((5, 3)) < 0.7
    seen[1] = False
    components = GaussianComponents(torch.from_numpy(mu), torch.from_numpy(sigma))
    found, pi, A = series(rng, components, torch.from_numpy(seen))
    emission = (stats.norm(mu, sigma).logpdf(x[:, None]) * seen[:, None]).sum(-1)
    total = []
    for path in itertools.product(range(2), repeat=5):
        steps = [np.log(pi[z]) if STARTS[t] else np.log(A[path[t - 1], z]) for t, z in enumerate(path)]
        total.append(sum(steps) + emission[np.arange(5), path].sum())
    value = torch.from_numpy(x)
    np.testing.assert_allclose(float(found.log_prob(value).sum()), logsumexp(total), rtol=1e-9)
    np.testing.assert_allclose(float(found.log_prob_sum(value)), logsumexp(total), rtol=1e-9)
    np.testing.assert_allclose(float(found.log_prob(value)[1]), 0.0, atol=1e-12)  # nothing observed, nothing said
    paths = torch.from_numpy(np.array(list(itertools.product(range(2), repeat=5))))
    np.testing.assert_allclose(found.conditional(value).log_prob(paths).numpy(), total - logsumexp(total), rtol=1e-8, atol=1e-9)


def test_frequencies_of_drawn_series_match_the_density(rng):
    """All 32 series of 5 symbols of two kinds: chi-squared at 1e-5."""
    p = np.array([[[0.9, 0.1]], [[0.3, 0.7]]])
    found, _, _ = series(rng, CategoricalComponents(torch.from_numpy(p)))
    every = np.array(list(itertools.product([0.0, 1.0], repeat=5)))
    expected = np.array([float(found.log_prob_sum(torch.from_numpy(row[:, None])).exp()) for row in every])
    np.testing.assert_allclose(expected.sum(), 1, rtol=1e-9)
    torch.manual_seed(0)
    drawn = found.sample((20_000,)).numpy()[..., 0] @ 2 ** np.arange(4, -1, -1)
    observed = np.bincount(drawn.astype(int), minlength=32)
    assert stats.chisquare(observed, 20_000 * expected / expected.sum()).pvalue > 1e-5
