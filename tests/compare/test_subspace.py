"""Tests of CCA and principal angles against scipy, an eigenvalue problem and constructed angles."""

import numpy as np
import pytest
from scipy.linalg import eigh, subspace_angles

from latentlab.compare.subspace import cca, principal_angle


def test_principal_angle_matches_scipy(rng):
    for p, q in [(1, 1), (2, 2), (3, 3), (4, 2)]:
        x, y = rng.normal(size=(30, p)) + 4, rng.normal(size=(30, q)) - 4
        expected = np.degrees(subspace_angles(x - x.mean(0), y - y.mean(0)).max())
        assert principal_angle(x, y) == pytest.approx(expected, abs=1e-9)


def test_cca_matches_the_eigenvalue_problem(rng):
    """Squared canonical correlations: eigenvalues of S_yx S_xx^-1 S_xy relative to S_yy."""
    x = rng.normal(size=(50, 3))
    y = x[:, :2] + rng.normal(size=(50, 2))
    S = np.cov(np.hstack([x, y]).T)
    explained = S[3:, :3] @ np.linalg.solve(S[:3, :3], S[:3, 3:])
    assert cca(x, y) == pytest.approx(np.sqrt(eigh(explained, S[3:, 3:], eigvals_only=True)).mean(), abs=1e-12)


def test_cca_of_one_column_each_is_pearsons_correlation(rng):
    x, y = rng.normal(size=(2, 30))
    assert cca(x[:, None], y[:, None]) == pytest.approx(abs(np.corrcoef(x, y)[0, 1]))


@pytest.mark.parametrize("degrees", [1e-6, 0.01, 20.0, 89.9999, 90.0])
def test_a_constructed_angle_is_recovered(degrees, rng):
    a, b, c = np.linalg.qr(np.column_stack([np.ones(20), rng.normal(size=(20, 3))]))[0].T[1:]
    turned = np.cos(np.radians(degrees)) * b + np.sin(np.radians(degrees)) * c
    x, y = np.column_stack([a, b]), np.column_stack([a + turned, a - 2 * turned])
    assert principal_angle(x, y) == pytest.approx(degrees, rel=1e-7)
    assert cca(x, y) == pytest.approx((1 + np.cos(np.radians(degrees))) / 2)


def test_missing_dimensions_lower_the_score_and_extra_ones_do_not(rng):
    z = rng.normal(size=(50, 3))
    assert cca(z[:, :1], z[:, :2]) == pytest.approx(0.5)
    assert principal_angle(z[:, :1], z[:, :2]) == 90.0
    assert principal_angle(z[:, [0, 0]], z[:, :2]) == pytest.approx(90.0)
    assert cca(z, z[:, :2]) == pytest.approx(1.0)
    assert principal_angle(z, z[:, :2]) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("metric", [cca, principal_angle])
def test_too_many_dimensions_for_the_units_give_the_void_value(metric, rng):
    assert metric(rng.normal(size=(10, 5)), rng.normal(size=(10, 5))) == metric.void
    assert metric(rng.normal(size=(10, 5)), rng.normal(size=(10, 4))) != metric.void
