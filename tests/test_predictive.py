"""Tests that posterior predictive draws use the positions of the units, in both forms of a model."""

import numpy as np
import pytest

import latentlab as ll

M = ll.models


def table(rng, n=40):
    z = rng.normal(size=(n, 1))
    x = z * np.array([2.0, -1.5, 1.0, 0.5]) + 0.6 * rng.normal(size=(n, 4)) + 1.0
    return ll.Dataset({"x": x}, dims={"x": ("unit", "feature")})


def on_plane(loadings, noise):
    def standardised(x, sites):
        mean = sites["z"] @ np.swapaxes(sites[loadings], -1, -2) + sites["mu"][..., None, :]
        scale = sites[noise]
        return (x - mean) / (scale[..., None, None] if scale.ndim == 2 else scale[..., None, :])

    return standardised


def of_components(x, sites):
    z = sites["z"].astype(int)
    chain, draw = np.ogrid[: z.shape[0], : z.shape[1]]
    at = (chain[..., None], draw[..., None], z)
    return (x - sites["mu"][at]) / sites["sigma"][at]


CASES = {
    "PPCA, integrated": (M.PPCA(1), on_plane("W", "sigma")),
    "PPCA, positions kept": (M.PPCA(1, marginalize=False), on_plane("W", "sigma")),
    "PPCA, mean fixed": (M.PPCA(1, mu_scale=0.0), on_plane("W", "sigma")),
    "factor analysis, integrated": (M.FactorAnalysis(1), on_plane("W", "psi")),
    "factor analysis, positions kept": (M.FactorAnalysis(1, marginalize=False), on_plane("W", "psi")),
    "state space": (M.LinearGaussianStateSpace(1), on_plane("C", "sigma")),
    "mixture": (M.GaussianMixture(2, covariance="diagonal"), of_components),
    "HMM": (M.GaussianHMM(2, covariance="diagonal"), of_components),
}


@pytest.mark.parametrize("case", list(CASES))
def test_replicated_data_use_the_positions_of_the_units(case):
    """The standardised residuals of x given positions and parameters are standard normal.

    100 draws of 40 units and 4 features: 16 000 numbers, whose mean has sd 0.0079 and whose mean square has sd 0.0112, and 160
    means over draws of sd 0.1. At 5, 5 and 6 sd a false alarm has a chance below 2e-6. Positions drawn anew leave a variance
    above 2.
    """
    model, standardised = CASES[case]
    fitted = ll.fit(model, table(np.random.default_rng(0)), ll.MAP(n_restarts=1, n_draws=100), progress=False)
    x = fitted.data["posterior_predictive"]["x"].values
    assert x.shape == (1, 100, 40, 4)
    rest = standardised(x, fitted.sites())
    assert abs(rest.mean()) < 5 * 0.0079
    assert abs((rest**2).mean() - 1) < 5 * 0.0112
    assert np.abs(rest.mean((0, 1))).max() < 0.6


def test_predictives_of_both_forms_match_the_exact_conditional(rng):
    """Given W, mu and sigma, x_rep has mean W m + mu and covariance W C W^T + sigma^2 I, with z | x ~ N(m, C), in both forms."""
    dataset, found = table(rng, 20), {}
    for marginalize in (True, False):
        fitted = ll.fit(M.PPCA(1, marginalize=marginalize), dataset, ll.Exact(n_draws=100), progress=False)
        sites = {name: array[0, 0] for name, array in fitted.sites().items()}
        M_ = sites["W"].T @ sites["W"] + sites["sigma"] ** 2 * np.eye(1)
        mean = (dataset.x - sites["mu"]) @ sites["W"] @ np.linalg.inv(M_)
        covariance = sites["sigma"] ** 2 * (sites["W"] @ np.linalg.inv(M_) @ sites["W"].T + np.eye(4))
        x = fitted.data["posterior_predictive"]["x"].values[0]
        white = np.linalg.solve(np.linalg.cholesky(covariance), (x - mean @ sites["W"].T - sites["mu"])[..., None])[..., 0]
        # 2000 rows: second moments of sd 0.022 (on the diagonal 0.032) and means of sd 0.022; 26 numbers at 6 sd: 1e-7
        np.testing.assert_allclose(np.einsum("snd,sne->de", white, white) / 2000, np.eye(4), atol=6 * 0.032)
        np.testing.assert_allclose(white.mean((0, 1)), 0, atol=6 * 0.0224)
        found[marginalize] = mean
    np.testing.assert_allclose(found[True], found[False], atol=1e-6)


class NewPositions(M.PPCA):
    """A model that marginalises positions and does not draw data given them."""

    replicated = ll.LatentModel.replicated


def test_models_without_the_hook_draw_new_positions(rng):
    fitted = ll.fit(NewPositions(1), table(rng), ll.MAP(n_restarts=1, n_draws=100), progress=False)
    rest = on_plane("W", "sigma")(fitted.data["posterior_predictive"]["x"].values, fitted.sites())
    assert (rest**2).mean() > 2
