"""Tests of mixtures with labels summed out, and of drawn labels."""

import numpy as np
import torch
from scipy import stats
from scipy.special import logsumexp, softmax

from latentlab.distributions.components import GaussianComponents
from latentlab.distributions.mixture import Labels, Mixture


def mixture(rng, observed=None):
    w, mu, sigma = rng.dirichlet(np.ones(3)), rng.standard_normal((3, 2)), np.exp(rng.standard_normal((3, 2)))
    components = GaussianComponents(torch.from_numpy(mu), torch.from_numpy(sigma))
    return Mixture(torch.log(torch.from_numpy(w)), components, observed), w, mu, sigma


def test_density_and_responsibilities_match_scipy(rng):
    x, seen = rng.standard_normal((6, 2)), rng.random((6, 2)) < 0.7
    seen[3] = False
    found, w, mu, sigma = mixture(rng, torch.from_numpy(seen))
    joint = np.log(w) + (stats.norm(mu, sigma).logpdf(x[:, None]) * seen[:, None]).sum(-1)
    np.testing.assert_allclose(found.log_prob(torch.from_numpy(x)).numpy(), logsumexp(joint, 1), rtol=1e-9, atol=1e-12)
    labels = found.conditional(torch.from_numpy(x))
    np.testing.assert_allclose(labels.probs.numpy(), softmax(joint, 1), rtol=1e-9)
    np.testing.assert_allclose(labels.probs.numpy()[3], w, rtol=1e-9)  # nothing was observed: the weights
    z = torch.from_numpy(rng.integers(0, 3, (4, 6)))
    expected = np.take_along_axis(np.log(softmax(joint, 1))[None].repeat(4, 0), z.numpy()[..., None], -1)[..., 0]
    np.testing.assert_allclose(labels.log_prob(z).numpy(), expected, rtol=1e-9, atol=1e-13)


def test_labels_are_drawn_with_their_probabilities():
    """z-tests at a total of 1e-5; labels of probability 0 are never drawn."""
    p = np.array([[0.2, 0.0, 0.5, 0.3], [0.0, 1.0, 0.0, 0.0], [0.97, 0.01, 0.01, 0.01]])
    with np.errstate(divide="ignore"):
        labels = Labels(torch.from_numpy(np.log(p) + 3.0))
    torch.manual_seed(0)
    drawn = labels.sample((40_000,)).numpy()
    share = (drawn[..., None] == np.arange(4)).mean(0)
    z = (share - p)[p * (1 - p) > 0] / np.sqrt(p * (1 - p) / 40_000)[p * (1 - p) > 0]
    assert np.abs(z).max() < stats.norm.isf(1e-5 / 2 / 8)
    assert (share[p == 0] == 0).all()


def test_draws_follow_the_density(rng):
    """Kolmogorov-Smirnov test of one feature at 1e-5."""
    found, w, mu, sigma = mixture(rng)
    torch.manual_seed(0)
    drawn = found.expand((20_000,)).sample().numpy()
    assert drawn.shape == (20_000, 2)
    assert stats.kstest(drawn[:, 0], lambda v: stats.norm(mu[:, 0], sigma[:, 0]).cdf(np.asarray(v)[:, None]) @ w).pvalue > 1e-5
    product = (drawn[:, 0] * drawn[:, 1]) - (w * mu[:, 0] * mu[:, 1]).sum()  # one label for both features
    assert abs(product.mean()) < stats.norm.isf(1e-5 / 2) * product.std() / np.sqrt(20_000)
