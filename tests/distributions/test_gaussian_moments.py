"""Expected sufficient statistics of Gaussian components against sums over units in NumPy."""

import numpy as np
import pytest
import torch

from latentlab.distributions import gaussian_moments, hidden_markov
from latentlab.distributions.components import GaussianComponents
from latentlab.models.emissions.base import FLOOR
from latentlab.models.emissions.gaussian import Gaussian

K, D = 3, 2


def components(rng: np.random.Generator, *, correlated: bool) -> GaussianComponents:
    corr = None
    if correlated:
        lower = np.tril(rng.standard_normal((K, D, D)), -1) + np.eye(D)
        corr = torch.from_numpy(lower / np.linalg.norm(lower, axis=-1, keepdims=True))
    mu, sigma = rng.standard_normal((K, D)), np.exp(rng.standard_normal((K, D)))
    return GaussianComponents(torch.from_numpy(mu), torch.from_numpy(sigma), corr)


def expected(x: np.ndarray, share: np.ndarray, *, correlated: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weights, means and scatters of the components by their definition."""
    size = share.sum(0)
    mean = (share.T @ x) / size[:, None]
    residual = x - mean[:, None]
    scatter = np.einsum("nk,knd,kne->kde", share, residual, residual)
    return size, mean, scatter if correlated else np.diagonal(scatter, axis1=1, axis2=2)[..., None]


def simplex(rng: np.random.Generator, *shape: int) -> torch.Tensor:
    return torch.from_numpy(rng.dirichlet(np.ones(K), shape)).log()


@pytest.mark.parametrize("correlated", [False, True])
def test_statistics_of_a_mixture(rng, correlated):
    x = 3 * rng.standard_normal((5000, D)) + 1  # more than one block of the kernel
    some, log_weights = components(rng, correlated=correlated), simplex(rng)
    columns = torch.from_numpy(x).mT.contiguous()
    level, found = gaussian_moments.of_mixture(log_weights, some, columns, 1e-8)
    joint = log_weights + some.log_prob(torch.from_numpy(x))
    np.testing.assert_allclose(level, float(torch.logsumexp(joint, -1).sum()), rtol=1e-12)
    for one, other in zip(found, expected(x, torch.softmax(joint, -1).numpy(), correlated=correlated), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("correlated", [False, True])
def test_statistics_of_chains(rng, correlated):
    """Two sequences and a forbidden transition; without a transition from a state its row is kept."""
    x = 3 * rng.standard_normal((200, D))
    starts = torch.zeros(200, dtype=torch.bool)
    starts[[0, 70]] = True
    some, log_initial, log_transition = components(rng, correlated=correlated), simplex(rng), simplex(rng, K)
    log_transition[0] = torch.tensor([-np.inf, np.log(0.3), np.log(0.7)])
    columns = torch.from_numpy(x).mT.contiguous()
    level, first, rows, found = gaussian_moments.of_chain(log_initial, log_transition, some, columns, starts, 1e-8)
    chain = (log_initial, log_transition, some.log_prob(torch.from_numpy(x)), starts)
    value, counts, pairs, probs = hidden_markov.expected_counts(*chain)
    np.testing.assert_allclose(level, float(value), rtol=1e-12)
    np.testing.assert_allclose(first, counts / 2, atol=1e-12)
    np.testing.assert_allclose(rows, pairs / pairs.sum(-1, keepdim=True), atol=1e-12)
    for one, other in zip(found, expected(x, probs.numpy(), correlated=correlated), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-9)
    alone = torch.ones(200, dtype=torch.bool)
    np.testing.assert_allclose(
        gaussian_moments.of_chain(log_initial, log_transition, some, columns, alone, 1e-8)[2], log_transition.exp(), atol=1e-15
    )


@pytest.mark.parametrize("correlated", [False, True])
def test_a_component_without_weight_keeps_its_mean(rng, correlated):
    x, some = rng.standard_normal((50, D)), components(rng, correlated=correlated)
    log_weights = torch.tensor([-np.inf, 0.0, -np.inf])
    _, (size, mean, scatter) = gaussian_moments.of_mixture(log_weights, some, torch.from_numpy(x).mT.contiguous(), 1e-8)
    np.testing.assert_allclose(size, [0, 50, 0])
    np.testing.assert_array_equal(mean[[0, 2]], some.mu[[0, 2]])
    np.testing.assert_array_equal(scatter[[0, 2]], 0.0)
    np.testing.assert_allclose(mean[1], x.mean(0), rtol=1e-10)


def emission(covariance: str) -> Gaussian:
    spread = {"sigma_prior": "log_normal", "sigma_scale": 1.0, "sigma_spread": 1.0, "corr_concentration": 1.0}
    return Gaussian("test", K, covariance=covariance, mu_loc=0.0, mu_scale=1.0, **spread, ordered=False)


@pytest.mark.parametrize("covariance", ["diagonal", "spherical"])
@pytest.mark.parametrize("empty", [False, True])
def test_steps_of_em_are_those_of_the_emission(rng, covariance, empty):
    """The maximum given the weights is that of `Gaussian.maximum`, also at the floor and for a component without units."""
    x = torch.from_numpy(3 * rng.standard_normal((300, D)))
    x[:, 0] = x[:, 0].sign() if covariance == "diagonal" else x[:, 0]
    model, variance = emission(covariance), x.var(0, correction=0)
    sigma = torch.from_numpy(np.exp(rng.standard_normal((K, D) if covariance == "diagonal" else K)))
    current = {"mu": torch.from_numpy(rng.standard_normal((K, D))), "sigma": sigma}
    if covariance == "diagonal":
        current["mu"][0, 0], current["sigma"][0, 0] = 1.0, 1e-2  # all units of component 0 are at 1
    weights, transition, initial = simplex(rng).exp(), simplex(rng, K).exp(), simplex(rng).exp()
    if empty:
        weights, initial = torch.tensor([0.6, 0.4, 0.0]), torch.tensor([0.6, 0.4, 0.0])
        transition = torch.tensor([[0.6, 0.4, 0.0], [0.3, 0.7, 0.0], [0.2, 0.2, 0.6]])
        weights, transition, initial = (one.to(torch.float64) for one in (weights, transition, initial))
    least = model.least_variances(variance)
    columns, starts = x.mT.contiguous(), torch.zeros(len(x), dtype=torch.bool)
    starts[[0, 100]] = True
    some = model.components(current)
    joint = torch.log(weights) + some.log_prob(x)
    level, found = gaussian_moments.maximum_of_mixture(weights, *current.values(), columns, least, 1e-8)
    shares = torch.softmax(joint, -1)
    np.testing.assert_allclose(level, float(torch.logsumexp(joint, -1).sum()), rtol=1e-12)
    expected = {"weights": shares.mean(0), **model.maximum(x, None, shares, current)}
    assert list(found) == list(expected)
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-9, atol=1e-12, err_msg=name)
    chain = (torch.log(initial), torch.log(transition), some.log_prob(x), starts)
    value, counts, pairs, probs = hidden_markov.expected_counts(*chain)
    level, found = gaussian_moments.maximum_of_chain(initial, transition, *current.values(), columns, starts, least, 1e-8)
    np.testing.assert_allclose(level, float(value), rtol=1e-12)
    leaves = pairs.sum(-1, keepdim=True)
    rows = torch.where(leaves > 1e-8, pairs / leaves.clamp(min=1e-8), transition)
    expected = {"initial": counts / 2, "transition": rows, **model.maximum(x, None, probs, current)}
    assert list(found) == list(expected)
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-9, atol=1e-12, err_msg=name)


def test_fixed_or_correlated_variances_have_no_lower_bounds():
    variance = torch.tensor([1.0, 4.0])
    np.testing.assert_allclose(emission("diagonal").least_variances(variance), [FLOOR, 4 * FLOOR])
    np.testing.assert_allclose(emission("spherical").least_variances(variance), [2.5 * FLOOR])
    assert emission("full").least_variances(variance) is None
    assert emission("tied").least_variances(variance) is None
