"""Tests of Gaussian guides against scipy and an exact Gaussian posterior."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy.stats import multivariate_normal

from latentlab.data.dataset import Dataset
from latentlab.fit import fit
from latentlab.inference.guides import GUIDES, Frame, FullRank
from latentlab.inference.svi import SVI
from latentlab.models.base import LatentModel, Position
from latentlab.seeds import double
from latentlab.symmetry.groups import Identity


def jittered(name, rng, size=5):
    with double():
        guide = GUIDES[name](torch.tensor(rng.normal(size=size)))
        for parameter in guide.parameters:
            parameter.data += 0.3 * torch.tensor(rng.normal(size=parameter.shape))
    return guide


def moments(guide, n=200_000):
    """Exact mean and covariance of a guide, since draws are linear in the noise."""
    with torch.no_grad():
        parameters = tuple(guide.parameters)
        k = guide.noise(1).shape[1]
        at_zero = guide.transform(parameters, torch.zeros(1, k, dtype=torch.float64))
        root = guide.transform(parameters, torch.eye(k, dtype=torch.float64)) - at_zero
    return at_zero[0].numpy(), (root.mT @ root).numpy()


@pytest.mark.parametrize("name", sorted(GUIDES))
def test_guide_density_matches_scipy(name, rng):
    with double():
        guide = jittered(name, rng)
        mean, covariance = moments(guide)
        u = rng.normal(size=(7, 5))
        found = guide.log_prob(torch.tensor(u)).numpy()
    np.testing.assert_allclose(found, multivariate_normal(mean, covariance).logpdf(u), rtol=1e-10)


def test_a_full_rank_guide_is_the_same_in_any_frame(rng):
    with double():
        guide = jittered("full_rank", rng)
        frame = Frame(torch.tensor(rng.normal(size=5)), torch.tensor(rng.normal(size=(5, 5))))
        mean, covariance = moments(guide)
        moved_mean, moved_covariance = moments(guide.moved(frame))
        A = frame.matrix.numpy()
        np.testing.assert_allclose(moved_mean, frame.center.numpy() + A @ mean, rtol=1e-12)
        np.testing.assert_allclose(moved_covariance, A @ covariance @ A.T, rtol=1e-10)
        v = torch.tensor(rng.normal(size=(4, 5)))
        np.testing.assert_allclose(guide.moved(frame).log_prob(frame(v)), guide.log_prob(v) - frame.log_det, rtol=1e-10)


class Regression(LatentModel):
    """Weights w ~ N(0, 1) of nearly collinear columns, y ~ N(X w, 0.1): the posterior is Gaussian and known."""

    name, position, symmetry, methods = "regression", Position("w"), Identity(), ("svi",)
    dims = {"w": ("feature",)}

    def model(self, y, X):
        w = pyro.sample("w", dist.Normal(torch.zeros(X.shape[1]), 1.0).to_event(1))
        with pyro.plate("unit", len(y)):
            pyro.sample("y", dist.Normal(X @ w, 0.1), obs=y)


@pytest.mark.slow
def test_a_full_rank_guide_of_many_coordinates_matches_the_posterior(rng):
    """The posterior sds of 150 weights along principal axes differ by a factor of 1000. In the coordinates of the program Adam
    makes the factor singular, and the ELBO increases without bound."""
    n, d = 400, 150
    common = rng.normal(size=(n, 3)) @ rng.normal(size=(3, d))
    X = common + 0.1 * rng.normal(size=(n, d))
    y = X @ rng.normal(size=d) + 0.1 * rng.normal(size=n)
    dataset = Dataset({"y": y, "X": X}, dims={"y": ("unit",), "X": ("unit", "feature")})
    precision = np.eye(d) + X.T @ X / 0.01
    covariance = np.linalg.inv(precision)
    mean = covariance @ X.T @ y / 0.01
    assert np.linalg.cond(covariance) > 1e4
    result = fit(Regression(), dataset, SVI(guide="full_rank", n_draws=4000), seed=0, progress=False)
    w = result.sites()["w"][0]
    evidence = multivariate_normal(np.zeros(n), X @ X.T + 0.01 * np.eye(n)).logpdf(y)
    assert evidence - 3 < result.data.attrs["elbo"] < evidence + 1  # Monte Carlo error of 4000 draws: 0.3 at most
    whitened = (w - mean) @ np.linalg.cholesky(precision)
    np.testing.assert_allclose(whitened.std(0), 1.0, atol=0.2)
    np.testing.assert_allclose(whitened.mean(0), 0.0, atol=0.3)
    assert result.diagnostics().query("check == 'k-hat' and verdict == 'pass'").shape[0] == 1


def test_the_learning_rate_decreases_for_long_factor_rows():
    with double():
        assert FullRank(torch.zeros(16)).rates == (1.0, 1.0, 0.25)
        assert GUIDES["mean_field"](torch.zeros(16)).rates == (1.0, 1.0)
