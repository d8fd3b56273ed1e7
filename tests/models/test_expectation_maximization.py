"""Tests of EM with extrapolated steps."""

import numpy as np
import pytest
import torch
from torch.distributions import MixtureSameFamily, Normal, biject_to

from latentlab.data.dataset import Dataset
from latentlab.inference.arrays import tensors
from latentlab.models import expectation_maximization as em
from latentlab.models.gaussian_hmm import GaussianHMM
from latentlab.models.gaussian_mixture import GaussianMixture
from latentlab.seeds import double


def linear(rates, top):
    """A quadratic and a linear map that converges to its maximum at these rates."""
    top = torch.tensor([top], dtype=torch.float64)

    def log_likelihood(values):
        return -1e-4 * ((values["mu"] - top) ** 2).sum() - 1e4

    def step(values):
        return float(log_likelihood(values)), {"mu": top + torch.tensor(rates, dtype=torch.float64) * (values["mu"] - top)}

    return step, log_likelihood, {"mu": torch.zeros_like(top)}, top


def test_a_linear_map_is_solved_in_one_step_for_each_dimension():
    step, log_likelihood, start, top = linear([0.99, 0.9, 0.5], [1.0, -2.0, 0.5])
    found = em.climb(step, log_likelihood, start, 1)
    np.testing.assert_allclose(found.values["mu"], top.numpy(), atol=1e-6)
    assert found.gradient <= em.GRADIENT
    n_extrapolated = int(found.how.split(" and ")[1].split()[0])
    assert 3 <= n_extrapolated <= 6
    assert "L-BFGS" not in found.how
    assert len(found.trace) == 1 + int(found.how.split()[1]) + n_extrapolated


def test_small_steps_do_not_end_the_climb():
    step, log_likelihood, start, top = linear([1 - 1e-7], [1e-3])
    assert abs(float(step(start)[1]["mu"])) <= em.STILL
    found = em.climb(step, log_likelihood, start, 1)
    assert found.gradient <= em.GRADIENT
    assert "L-BFGS" not in found.how
    np.testing.assert_allclose(found.values["mu"], top.numpy(), atol=1e-5)


def test_steps_are_not_extrapolated_to_the_edge():
    """Extrapolated steps would lead to a standard deviation below the floor."""
    met = []

    def log_likelihood(values):
        return -1e-12 * (torch.log(values["sigma"]) ** 2).sum() - 1e4

    def step(values):
        met.append(float(values["sigma"]))
        return float(log_likelihood(values)), {"sigma": values["sigma"] ** 0.9 * 1e-4**0.1}

    def edge(values):
        return {"sigma": values["sigma"] < 2e-3}

    found = em.climb(step, log_likelihood, {"sigma": torch.tensor([1.0], dtype=torch.float64)}, 1, at_bound=edge)
    assert min(met) > 2e-3
    assert found.values["sigma"] > em.LEAST


def test_extrapolations_that_lose_likelihood_are_rejected():
    """Extrapolation overshoots the maximum, beyond which the likelihood drops sharply."""
    levels = []

    def log_likelihood(values):
        mu = values["mu"]
        return -(1e-5 * torch.where(mu > 0, 1e6 * mu**2, mu**2)).sum() - 1e4

    def step(values):
        levels.append(float(log_likelihood(values)))
        mu = values["mu"]
        return levels[-1], {"mu": torch.where(mu < -0.5, mu + 0.1 * torch.sqrt(mu.abs()), 0.5 * mu)}

    found = em.climb(step, log_likelihood, {"mu": torch.tensor([[-8.0]], dtype=torch.float64)}, 1)
    assert min(np.diff(levels)) < 0  # it was tried
    assert (np.diff(found.trace) >= 0).all()
    assert abs(found.values["mu"]) < 1e-3
    assert "L-BFGS" not in found.how


def overlapping(rng):
    """Two components 2 sd apart, where plain EM takes thousands of steps."""
    x = torch.from_numpy(np.where(rng.random((600, 1)) < 0.4, -1.0, 1.0) + rng.standard_normal((600, 1)))
    model = GaussianMixture(2, covariance="diagonal")
    return model, tensors(model, Dataset({"x": x.numpy()}, dims={"x": ("unit", "feature")}))


def test_slow_em_and_l_bfgs_reach_the_same_maximum(rng, monkeypatch):
    model, arrays = overlapping(rng)
    with double():
        found = model.maximum_likelihood(arrays, np.random.default_rng(0))
        monkeypatch.setattr(em, "EXTRAPOLATED", 0)
        descended = model.maximum_likelihood(arrays, np.random.default_rng(0))
    assert found.gradient <= em.GRADIENT
    assert "accelerated" in found.how
    assert "L-BFGS" not in found.how
    assert "accelerated" not in descended.how
    assert "L-BFGS" in descended.how
    assert found.trace[-1] == pytest.approx(descended.trace[-1], rel=1e-11)
    for name, value in found.values.items():
        np.testing.assert_allclose(value, descended.values[name], rtol=1e-4, atol=1e-5)
    density = MixtureSameFamily(
        torch.distributions.Categorical(torch.from_numpy(found.values["weights"])),
        Normal(torch.from_numpy(found.values["mu"][:, 0]), torch.from_numpy(found.values["sigma"][:, 0])),
    )
    assert float(density.log_prob(arrays["x"][:, 0]).sum()) == pytest.approx(found.trace[-1], rel=1e-12)


@pytest.mark.parametrize("missing", [False, True])
def test_em_without_kernels_gives_the_same_result(rng, monkeypatch, missing):
    pytest.importorskip("numba")
    z = np.cumsum(rng.random(300) < 0.1) % 3
    x = 2.0 * z[:, None] + rng.standard_normal((300, 2))
    if missing:
        x[rng.random(x.shape) < 0.2] = np.nan
    data = Dataset({"x": x}, dims={"x": ("unit", "feature")}, coords={"sequence": np.repeat(["a", "b"], [200, 100])})
    model = GaussianHMM(3)
    arrays = tensors(model, data)
    with double():
        found = model.maximum_likelihood(arrays, np.random.default_rng(0))
        monkeypatch.setattr("latentlab.distributions.kernels.available_for", lambda *tensors: False)
        slow = model.maximum_likelihood(arrays, np.random.default_rng(0))
    assert len(found.trace) == len(slow.trace)
    np.testing.assert_allclose(found.trace, slow.trace, rtol=1e-11)
    assert max(found.gradient, slow.gradient) <= em.GRADIENT
    for name, value in found.values.items():
        np.testing.assert_allclose(value, slow.values[name], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", ["mu", "sigma", "weights", "corr"])
def test_points_are_the_same_with_and_without_derivatives(rng, name):
    """Values are also those of independent transforms, whether or not all rows of a site are free."""
    factor = np.linalg.cholesky(np.array([[1.0, 0.3, 0.1], [0.3, 1.0, -0.5], [0.1, -0.5, 1.0]]))
    start = {"mu": rng.standard_normal((2, 3)), "sigma": np.exp(rng.standard_normal((2, 3)))}
    start |= {"weights": rng.dirichlet(np.ones(3), 2), "corr": np.stack([factor, factor])}
    value = {name: torch.from_numpy(start[name])}
    for low in ([False, False], [False, True]):
        mask = torch.tensor(low).reshape(2, *[1] * (value[name].dim() - 1)).expand(value[name].shape)
        free = em._Free.of(value, (), lambda values, mask=mask: {name: mask})
        n_free = 2 - sum(low)
        if name == "weights":  # logs of ratios to the last probability
            ratios = np.log(start[name][:n_free, :2] / start[name][:n_free, 2:])
            moved = ratios + 30 * rng.standard_normal(ratios.shape)
            expected = torch.softmax(torch.from_numpy(np.pad(moved, ((0, 0), (0, 1)))), -1)
        else:
            transform = biject_to(em.SUPPORTS[name])
            ratios = transform.inv(value[name][:n_free]).numpy()
            moved = ratios + 0.1
            expected = transform(torch.from_numpy(moved))
        np.testing.assert_allclose(free.vector(value), ratios.flatten(), atol=1e-13)
        point, derived = free.point(moved.flatten())[name], free.at(torch.from_numpy(moved.flatten()))[name]
        np.testing.assert_allclose(point, derived, rtol=1e-13, atol=1e-300)
        np.testing.assert_allclose(point[:n_free], expected, rtol=1e-12, atol=1e-14)
        np.testing.assert_array_equal(point[n_free:], value[name][n_free:])
