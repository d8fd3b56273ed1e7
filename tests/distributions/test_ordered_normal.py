"""Tests of ordered normals: density, map from the reals, Jacobian and draws."""

import numpy as np
import torch
from scipy import stats
from torch.distributions import biject_to

from latentlab.distributions.ordered_normal import OrderedNormal, increasing

LOC, SCALE = torch.tensor([[0.3], [-0.5], [1.0]], dtype=torch.float64), torch.tensor([[1.0], [2.0], [0.7]], dtype=torch.float64)


def test_density_is_the_product_of_the_normal_densities():
    x = torch.tensor([[-1.0], [0.2], [0.9]], dtype=torch.float64)
    expected = stats.norm(LOC.numpy(), SCALE.numpy()).logpdf(x.numpy()).sum()
    np.testing.assert_allclose(float(OrderedNormal(LOC, SCALE).log_prob(x)), expected, rtol=1e-12)


def test_the_map_is_invertible_and_its_jacobian_is_correct(rng):
    transform = biject_to(increasing)
    u = torch.from_numpy(rng.standard_normal((4, 1)))
    x = transform(u)
    assert bool(increasing.check(x))
    np.testing.assert_allclose(transform.inv(x).numpy(), u.numpy(), rtol=1e-10)
    jacobian = torch.autograd.functional.jacobian(transform, u).reshape(4, 4)
    np.testing.assert_allclose(float(transform.log_abs_det_jacobian(u, x)), float(torch.linalg.slogdet(jacobian)[1]), rtol=1e-10)


def test_the_unconstrained_density_integrates_to_the_probability_of_the_order():
    """For two normals the integral of density times Jacobian is P(x1 < x2), since the prior is not renormalised."""
    transform, prior = biject_to(increasing), OrderedNormal(LOC[:2], SCALE[:2])
    a, b = torch.meshgrid(torch.linspace(-9, 9, 700), torch.linspace(-14, 4, 700), indexing="ij")
    u = torch.stack([a, b], -1).double()[..., None]
    x = transform(u)
    value = (prior.log_prob(x) + transform.log_abs_det_jacobian(u, x)).exp().numpy()
    step = (18 / 699) ** 2
    np.testing.assert_allclose(value.sum() * step, stats.norm.cdf(-0.8 / np.sqrt(5)), rtol=1e-4)


def test_draws_are_ordered_and_follow_the_restricted_normals():
    """The smaller of two standard normals: Kolmogorov-Smirnov at 1e-5."""
    torch.manual_seed(0)
    drawn = OrderedNormal(torch.zeros(2, 1).double(), torch.ones(2, 1).double()).sample((3000,)).numpy()
    assert drawn.shape == (3000, 2, 1)
    assert (np.diff(drawn[..., 0], axis=-1) > 0).all()
    assert stats.kstest(drawn[:, 0, 0], lambda v: 1 - stats.norm.sf(v) ** 2).pvalue > 1e-5
