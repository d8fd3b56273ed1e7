"""Tests of the map to Cholesky factors of correlations against torch, and of its accuracy at the boundary."""

import numpy as np
import pytest
import torch
from torch.distributions import constraints
from torch.distributions.transforms import CorrCholeskyTransform

from latentlab.distributions.correlation import WIDE, ToCorrelation
from latentlab.distributions.simplex import ToSimplex
from latentlab.distributions.transforms import transform_of


@pytest.mark.parametrize("n", [2, 3, 5, WIDE, WIDE + 1])
def test_map_jacobian_inverse_and_gradients_match_torch(rng, n):
    u = torch.from_numpy(0.5 * rng.standard_normal((4, n * (n - 1) // 2)))
    weights, found = torch.from_numpy(rng.standard_normal((n, n))), []
    for transform in (ToCorrelation(), CorrCholeskyTransform()):
        leaf = u.clone().requires_grad_()
        lower = transform(leaf)
        jacobian = transform.log_abs_det_jacobian(leaf, lower)
        (slope,) = torch.autograd.grad((lower * weights).sum() + jacobian.sum(), leaf)
        found.append([lower.detach(), jacobian.detach(), slope])
    for one, two in zip(*found, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-10)
    assert bool(constraints.corr_cholesky.check(found[0][0]).all())
    if n <= 5:
        torch.testing.assert_close(ToCorrelation().inv(found[0][0]), u, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("far", [-5000.0, -30.0, 30.0, 5000.0])
def test_correlations_near_one_are_accurate_and_finite(far):
    """torch clips tanh, so that the variance given the other features would be at least 4e-16, with derivatives of 0."""
    u = torch.tensor([far], dtype=torch.float64, requires_grad=True)
    lower = ToCorrelation()(u)
    log_diagonal = np.log(2) - abs(far) - np.log1p(np.exp(-2 * abs(far)))
    assert float(lower[1, 1].detach().log()) == pytest.approx(max(log_diagonal, np.log(np.finfo(float).tiny)), rel=1e-12)
    density = lower[1, 1].log() + ToCorrelation().log_abs_det_jacobian(u, lower)
    (slope,) = torch.autograd.grad(density, u)
    assert bool(torch.isfinite(density))
    assert float(slope[0]) * far < 0  # back to where there is mass


def test_sites_of_correlations_use_this_map():
    assert isinstance(transform_of(constraints.corr_cholesky), ToCorrelation)
    several = transform_of(constraints.independent(constraints.corr_cholesky, 1))
    assert isinstance(several.base_transform, ToCorrelation)
    assert several(torch.zeros(3, 1)).shape == (3, 2, 2)


@pytest.mark.parametrize("transform", [ToCorrelation(), ToSimplex()], ids=lambda one: type(one).__name__)
@pytest.mark.parametrize("n_draws", [1, 2, 3, 5, 7, 30])
def test_the_last_digit_does_not_depend_on_the_number_of_draws(transform, n_draws):
    """A short fit has the first draws of a long fit."""
    x = torch.randn(31, 6, dtype=torch.float64)
    batched = torch.vmap(transform)
    assert torch.equal(batched(x[:n_draws]), batched(x)[:n_draws])
    assert torch.equal(transform(x[:n_draws]), transform(x)[:n_draws])
