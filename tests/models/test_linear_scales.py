"""Tests that linear-Gaussian models are equivariant to scale and offset of the data."""

import numpy as np
import pytest
import torch

import latentlab as ll
from latentlab.data.simulators import linear_gaussian
from latentlab.inference.arrays import tensors

M = ll.models
COLUMNS = np.array([1e-12, 1.0, 1e12, 1e3])


def data(missing, n=60):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, 1)) * np.array([2.0, -1.5, 1.0, 0.5]) + 0.6 * rng.normal(size=(n, 4))
    x -= x.mean(0)
    if missing:
        x[3, 1] = x[7, 2] = np.nan
    return x


def table(x):
    return ll.Dataset({"x": x}, dims={"x": ("unit", "feature")})


def identified_parameters(sites, scale):
    """W W^T and the noise, in units of the columns."""
    loadings, noise = (next(sites[n] for n in names if n in sites) for names in (("W", "C"), ("psi", "sigma")))
    scale = np.broadcast_to(scale, 4)
    return loadings @ loadings.T / np.outer(scale, scale), np.broadcast_to(noise, 4) / scale


MODELS = {
    "PPCA": (M.PPCA(1), False),
    "PPCA, missing": (M.PPCA(1), True),
    "PPCA, mean fixed": (M.PPCA(1, mu_scale=0.0), False),
    "factor analysis": (M.FactorAnalysis(1), False),
    "factor analysis, missing": (M.FactorAnalysis(1), True),
    "linear VAE": (M.LinearVAE(1), False),
    "state space": (M.LinearGaussianStateSpace(1), False),
}


@pytest.mark.parametrize("case", list(MODELS))
def test_the_maximum_is_equivariant_to_rescaling(case):
    model, missing = MODELS[case]
    x = data(missing, 12 if case == "state space" else 60)

    def fitted(scale, offset):
        fit = ll.fit(model, table(scale * x + offset), ll.Exact(n_restarts=1, n_draws=2), progress=False)
        assert fit.converged
        return identified_parameters({name: a[0, 0] for name, a in fit.sites().items()} | dict(fit.parameters), scale)

    expected = fitted(1.0, 0.0)
    noise_per_feature = "factor" in case or case == "state space"
    scales = [(1e-12, 0.0), (1e12, 0.0), (1.0, 1e6)] + [(COLUMNS, 0.0)] * noise_per_feature
    for scale, offset in scales[-1:] if case == "state space" else scales:
        if offset and "fixed" in case:
            continue
        for found, one in zip(fitted(scale, offset), expected, strict=True):
            np.testing.assert_allclose(found, one, atol=1e-6, err_msg=f"{scale}, {offset}")


@pytest.mark.parametrize("scale", [1e-12, 1e12, "columns"])
@pytest.mark.parametrize("case", [name for name in MODELS if name != "linear VAE"])
def test_starting_values_are_equivariant_to_rescaling(case, scale):
    model, missing = MODELS[case]
    if scale == "columns" and case.startswith("PPCA"):
        pytest.skip("one noise for all columns")
    scale, x = COLUMNS if scale == "columns" else scale, data(missing)
    values = []
    for by in (1.0, scale):
        found = model.initialize(tensors(model, table(by * x)), np.random.default_rng(0))
        values.append(identified_parameters({name: torch.as_tensor(value).numpy() for name, value in found.items()}, by))
    for found, one in zip(values[1], values[0], strict=True):
        np.testing.assert_allclose(found, one, rtol=1e-6, atol=1e-9)


def test_small_noise_ends_em_at_rounding_without_failure():
    """At the floor of the noise, the rounding error of the derivative exceeds the tolerance, which is no failure."""
    x = linear_gaussian(n_units=2200, n_features=8, n_latent=2, noise=0.5, seed=2).x[:200]
    fitted = ll.fit(M.FactorAnalysis(3), table(x).standardize(), ll.Exact(n_draws=2), progress=False)
    assert fitted.converged
    assert "Heywood case" in str(fitted.data.attrs["notes"])
