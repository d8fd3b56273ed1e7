"""Tests of the map to the simplex against torch, and of its accuracy at the boundary."""

import numpy as np
import pytest
import torch
from scipy.special import expit
from torch.distributions import biject_to, constraints
from torch.distributions.transforms import IndependentTransform, StickBreakingTransform

from latentlab.distributions.simplex import WIDE, ToSimplex
from latentlab.distributions.transforms import transform_of


@pytest.mark.parametrize("shape", [(1,), (2,), (4, 5), (2, 3, 7), (WIDE + 3,)], ids=str)
def test_map_jacobian_inverse_and_gradients_match_torch(shape):
    u = 2 * torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = []
    for transform in (ToSimplex(), StickBreakingTransform()):
        leaf = u.clone().requires_grad_()
        w = transform(leaf)
        jacobian = transform.log_abs_det_jacobian(leaf, w)
        (slope,) = torch.autograd.grad((w * torch.arange(w.shape[-1])).sum() + jacobian.sum(), leaf)
        found.append([w.detach(), jacobian.detach(), slope, transform.inv(w.detach())])
    for one, two in zip(*found, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found[0][3], u, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(found[0][0].sum(-1), torch.ones(shape[:-1], dtype=torch.float64))


@pytest.mark.parametrize("far", [38.0, 300.0, -300.0])
def test_small_shares_are_accurate(far):
    """torch clips the first share to 1 - 2e-16, which makes the others inaccurate."""
    u = torch.tensor([far, 0.5], dtype=torch.float64, requires_grad=True)
    w = ToSimplex()(u)
    first, second = far - np.log(2), 0.5
    expected = [expit(first), expit(-first) * expit(second), expit(-first) * expit(-second)]
    np.testing.assert_allclose(w.detach(), expected, rtol=1e-13)
    jacobian = ToSimplex().log_abs_det_jacobian(u, w)
    rest = -np.logaddexp(0.0, first)
    assert float(jacobian.detach()) == pytest.approx(
        -np.logaddexp(0.0, -first) + 2 * rest - np.logaddexp(0.0, -second) - np.logaddexp(0.0, second), rel=1e-13
    )
    np.testing.assert_allclose(ToSimplex().inv(w.detach()), u.detach(), rtol=1e-12)
    (slope,) = torch.autograd.grad(jacobian + w.log().sum(), u)
    assert bool(torch.isfinite(slope).all())


@pytest.mark.parametrize("far", [-720.0, -5000.0, 720.0, 5000.0])
@pytest.mark.parametrize("concentration", [0.01, 1.0, 2.0])
def test_the_density_is_finite_for_extreme_values(far, concentration):
    """Without a bound shares would be 0, the Dirichlet density infinite and its gradient NaN."""
    u = torch.tensor([far, 0.5], dtype=torch.float64, requires_grad=True)
    w = ToSimplex()(u)
    prior = torch.distributions.Dirichlet(torch.full((3,), concentration, dtype=torch.float64), validate_args=False)
    density = prior.log_prob(w) + ToSimplex().log_abs_det_jacobian(u, w)
    (slope,) = torch.autograd.grad(density, u)
    assert bool(torch.isfinite(density))
    assert bool(torch.isfinite(slope).all())
    assert float(slope[0]) * far < 0  # back to where there is mass


@pytest.mark.parametrize("parts", [[1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.5, 0.5, 0.0], [0.0, 1.0, 0.0]])
def test_zero_shares_have_finite_preimages(parts):
    """Draws of a stick-breaking prior can have shares of 0."""
    w = torch.tensor(parts, dtype=torch.float64)
    u = ToSimplex().inv(w)
    assert bool(torch.isfinite(u).all())
    assert bool(torch.isfinite(ToSimplex().log_abs_det_jacobian(u, w)).all())
    torch.testing.assert_close(ToSimplex()(u), w)


def test_other_supports_use_torchs_map():
    assert isinstance(transform_of(constraints.simplex), ToSimplex)
    rows = transform_of(constraints.independent(constraints.simplex, 1))
    assert isinstance(rows, IndependentTransform)
    assert isinstance(rows.base_transform, ToSimplex)
    assert rows.log_abs_det_jacobian(torch.zeros(3, 2), rows(torch.zeros(3, 2))).shape == ()
    for support in (constraints.positive, constraints.unit_interval, constraints.interval(0.0, 2.0)):
        assert type(transform_of(support)) is type(biject_to(support))
