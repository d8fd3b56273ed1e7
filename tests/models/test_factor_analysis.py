"""Tests of factor analysis beyond the Ledermann bound, where the noise is not identified."""

import numpy as np
import pytest
from scipy.optimize import brentq

import latentlab as ll


def table(rng, n_features, n=60):
    x = rng.normal(size=(n, 1)) * rng.uniform(0.5, 1.0, n_features) + rng.normal(size=(n, n_features))
    return ll.Dataset({"x": x}, dims={"x": ("unit", "feature")})


@pytest.mark.parametrize(("n_features", "n_latent", "warns", "most"), [
    (2, 1, True, 0), (3, 1, False, 0), (3, 2, True, 1), (4, 1, False, 0), (4, 2, True, 1), (4, 3, True, 1), (5, 2, False, 0),
    (5, 3, True, 2), (6, 3, False, 0), (6, 4, True, 3), (13, 8, False, 0), (13, 9, True, 8),
])  # fmt: skip
def test_a_warning_is_given_beyond_the_ledermann_bound(rng, n_features, n_latent, warns, most):
    cautions = ll.models.FactorAnalysis(n_latent).cautions(table(rng, n_features))
    assert bool(cautions) == warns == ((n_features - n_latent) ** 2 < n_features + n_latent)
    if warns:
        remedy = {0: "use at least 3 features", 1: "use at most 1 factor"}.get(most, f"use at most {most} factors")
        assert cautions[0].quantity.endswith(f"; {remedy}")
    assert not ll.models.PPCA(n_latent).cautions(table(rng, n_features))


def test_noise_is_not_identified_beyond_the_ledermann_bound():
    """For 4 features and 3 factors, another diagonal noise leaves a positive semi-definite remainder of rank 3."""
    rng = np.random.default_rng(0)
    W, psi2 = rng.normal(size=(4, 3)), rng.uniform(0.5, 1.0, 4)
    covariance = W @ W.T + np.diag(psi2)

    def smallest(second):
        return np.linalg.eigvalsh(covariance - np.diag([0.95 * psi2[0], second, *psi2[2:]]))[0]

    second = brentq(smallest, psi2[1], 3 * psi2[1], xtol=1e-14)
    other = np.array([0.95 * psi2[0], second, *psi2[2:]])
    assert abs(second - psi2[1]) > 1e-3
    values, vectors = np.linalg.eigh(covariance - np.diag(other))
    np.testing.assert_allclose((vectors[:, 1:] * values[1:]) @ vectors[:, 1:].T + np.diag(other), covariance, atol=1e-10)
    assert (values[1:] > 0).all()


@pytest.mark.parametrize("method", [ll.MAP(n_restarts=1), ll.Exact(n_draws=10), ll.SVI("mean_field", n_steps=20, n_draws=20)])
def test_every_method_warns_beyond_the_ledermann_bound(rng, method):
    fitted = ll.fit(ll.models.FactorAnalysis(2), table(rng, 4), method, progress=False)
    row = fitted.diagnostics().set_index("check").loc["identification"]
    assert row["verdict"] == "warn"
    assert row["value"] == 4
    assert row["threshold"] == ">= 6 ((D - k)^2 >= D + k)"
    assert "not identified" in row["quantity"]
