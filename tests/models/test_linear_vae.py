"""Tests of the linear VAE against PPCA: ELBO, optimum, identification and collapse."""

import numpy as np
import pytest
import torch
from oracles import gaussian_log_density, ppca_optimum

from latentlab.data.dataset import Dataset
from latentlab.data.load import load_dataset
from latentlab.errors import ConfigError, DataError, InferenceError, ModelError
from latentlab.fit import fit
from latentlab.inference.arrays import tensors
from latentlab.inference.density import Density
from latentlab.inference.draws import Problem
from latentlab.inference.exact import Exact
from latentlab.inference.joint import log_joint
from latentlab.inference.model_guide import objective
from latentlab.inference.svi import SVI
from latentlab.models.fixed import Fixed
from latentlab.models.linear_vae import LinearVAE
from latentlab.models.ppca import PPCA
from latentlab.seeds import Seeds, double, isolated


@pytest.fixture(scope="module")
def fitted(wine):
    return fit(LinearVAE(3), wine, Exact(n_draws=400), seed=0)


def as_tensors(fit_or_values):
    values = fit_or_values.parameters if hasattr(fit_or_values, "parameters") else fit_or_values
    return {name: torch.tensor(np.asarray(value), dtype=torch.float64) for name, value in values.items()}


def non_optimal_parameters(rng, n_features, q):
    """Parameters far from any optimum."""
    return {
        "W": rng.normal(size=(n_features, q)),
        "mu": 0.3 * rng.normal(size=n_features),
        "sigma": np.array(0.7),
        "V": 0.3 * rng.normal(size=(q, n_features)),
        "D": rng.uniform(0.3, 1.5, q),
    }


def elbo_by_hand(x, values):
    """E_q[log p(x, z) - log q(z)], unit by unit, from the means and variances of Gaussians."""
    W, mu, sigma, V, D = (np.asarray(values[name]) for name in ("W", "mu", "sigma", "V", "D"))
    total = 0.0
    for row in x:
        m = V @ (row - mu)
        residual = row - mu - W @ m
        misfit = residual @ residual + (D * (W**2).sum(0)).sum()
        kl = 0.5 * (m @ m + D.sum() - len(D) - np.log(D).sum())
        total += -0.5 * misfit / sigma**2 - len(row) / 2 * np.log(2 * np.pi * sigma**2) - kl
    return total


def test_the_elbo_matches_the_formula(rng):
    x = rng.normal(size=(9, 4))
    values = non_optimal_parameters(rng, 4, 2)
    with double():
        found = float(LinearVAE(2).elbo({"x": torch.tensor(x)}, **as_tensors(values)))
    assert found == pytest.approx(elbo_by_hand(x, values), rel=1e-12)


def test_the_elbo_is_the_mean_of_log_joint_minus_log_guide(rng):
    """Compares with 20 000 draws of the SVI objective within 5 standard errors, also with a weighted KL term."""
    x = rng.normal(size=(9, 4))
    values = non_optimal_parameters(rng, 4, 2)
    model = LinearVAE(2)
    dataset = Dataset({"x": x}, dims={"x": ("unit", "feature")})
    arrays = tensors(model, dataset)
    problem = Problem(model, arrays, Density(model, arrays, dataset.array_dims), Seeds(0))
    with double():
        exact = float(model.elbo(arrays, **as_tensors(values)))
        q = model.latents(arrays, **as_tensors(values))
        kl = float(torch.distributions.kl_divergence(q.base_dist, torch.distributions.Normal(0.0, 1.0)).sum())
    for weight in (1.0, 10.0):
        draws = losses(problem, SVI(guide="model"), values, weight, n=40)
        error = draws.std(ddof=1) / np.sqrt(len(draws))
        assert abs(-draws.mean() - (exact + (1 - weight) * kl)) < 5 * error
    assert 9 * kl > 20 * error  # a weight that went nowhere would be seen


def test_the_importance_weighted_bound_approaches_the_likelihood(rng):
    x = rng.normal(size=(9, 4))
    values = non_optimal_parameters(rng, 4, 2)
    values["V"] = np.linalg.solve(values["W"].T @ values["W"] + 0.49 * np.eye(2), values["W"].T)
    model = LinearVAE(2)
    dataset = Dataset({"x": x}, dims={"x": ("unit", "feature")})
    arrays = tensors(model, dataset)
    problem = Problem(model, arrays, Density(model, arrays, dataset.array_dims), Seeds(0))
    covariance = values["W"] @ values["W"].T + 0.49 * np.eye(4)
    exact = gaussian_log_density(x, values["mu"], covariance).sum()
    with double():
        elbo = float(model.elbo(arrays, **as_tensors(values)))
    method = SVI(guide="model", objective="iwae")
    one, ten, many = (-losses(problem, method, values, 1.0, n=40, n_particles=k) for k in (1, 10, 5000))
    assert abs(one.mean() - elbo) < 5 * one.std() / np.sqrt(len(one))
    assert elbo < ten.mean() < many.mean()
    assert many.mean() == pytest.approx(exact, abs=0.05)
    assert exact - elbo > 1


def losses(problem, method, values, weight, *, n, n_particles=500):
    with isolated(Seeds(1)), Fixed(as_tensors(values)), torch.no_grad():
        return np.array([float(objective(problem, method, problem.arrays, 1.0, weight, n_particles)) for _ in range(n)])


def test_every_start_reaches_ppcas_maximum(wine):
    """All of eight random starts reach PPCA's log likelihood and W up to order and signs of columns."""
    expected, s2, WW, _, _ = ppca_optimum(wine.x, 3)
    columns = None
    for seed in range(8):
        found = LinearVAE(3).maximum_likelihood(tensors(LinearVAE(3), wine), np.random.default_rng(seed))
        assert found.trace[-1] == pytest.approx(expected, abs=1e-6)
        W = found.values["W"]
        np.testing.assert_allclose(W @ W.T, WW, atol=1e-5)
        assert found.values["sigma"] ** 2 == pytest.approx(s2, rel=1e-6)
        ordered = np.abs(W[:, np.argsort((W**2).sum(0))])
        if columns is not None:
            np.testing.assert_allclose(ordered, columns, atol=1e-4)
        columns = ordered
    M = W.T @ W + s2 * np.eye(3)
    np.testing.assert_allclose(M - np.diag(np.diag(M)), 0.0, atol=1e-5)
    np.testing.assert_allclose(found.values["V"], np.linalg.solve(M, W.T), atol=1e-5)
    np.testing.assert_allclose(found.values["D"], s2 / np.diag(M), rtol=1e-5)


def test_rescaling_data_shifts_the_likelihood_only():
    raw = load_dataset("iris", standardize=False)
    tenfold = Dataset({"x": 10 * raw.x + 3}, dims={"x": ("unit", "feature")})
    for dataset in (raw, tenfold):
        found = LinearVAE(2).maximum_likelihood(tensors(LinearVAE(2), dataset), np.random.default_rng(0))
        expected, _, WW, _, _ = ppca_optimum(dataset.x, 2)
        assert found.trace[-1] == pytest.approx(expected, abs=1e-6)
        np.testing.assert_allclose(found.values["W"] @ found.values["W"].T, WW, atol=1e-5 * WW.max())
        with double():
            elbo = float(LinearVAE(2).elbo(tensors(LinearVAE(2), dataset), **as_tensors(found.values)))
        assert elbo == pytest.approx(expected, abs=1e-6)


def test_a_rotated_decoder_lowers_the_elbo_by_the_divergence(wine, fitted):
    """A rotation keeps the likelihood and lowers the best ELBO by N KL(q || p(z | x)), since q is diagonal."""
    values = {name: np.asarray(value) for name, value in fitted.parameters.items()}
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    W = values["W"] @ turn
    M = W.T @ W + values["sigma"] ** 2 * np.eye(3)
    turned = {**values, "W": W, "V": np.linalg.solve(M, W.T), "D": values["sigma"] ** 2 / np.diag(M)}
    gap = 178 * 0.5 * (np.log(np.diag(M)).sum() - np.linalg.slogdet(M)[1])
    model, arrays = LinearVAE(3), tensors(LinearVAE(3), wine)
    best, found = (float(model.elbo(arrays, **as_tensors(v))) for v in (values, turned))
    assert best - found == pytest.approx(gap, rel=1e-6)
    assert gap > 1


def test_collapsed_dimensions_are_those_of_the_likelihood(wine):
    """With fixed sigma, active dimensions are the eigenvalues above sigma^2, for the ELBO as for the likelihood."""
    S = np.cov(wine.x.T, ddof=0)
    eigenvalues, vectors = np.linalg.eigh(S)
    eigenvalues, vectors = eigenvalues[::-1], vectors[:, ::-1]
    for sigma2, n_active in ((1.0, 3), (2.0, 2), (3.0, 1), (6.0, 0)):
        result = fit(LinearVAE(4, sigma=float(np.sqrt(sigma2))), wine, Exact(n_draws=300), seed=1)
        assert (eigenvalues > sigma2).sum() == n_active
        assert result.activity()["active"].sum() == n_active
        row = result.diagnostics().set_index("check").loc["active units"]
        assert (row["value"], row["verdict"]) == (n_active, "warn" if n_active else "fail")
        W = vectors[:, :4] * np.sqrt(np.maximum(eigenvalues[:4] - sigma2, 0))
        best = gaussian_log_density(wine.x, wine.x.mean(0), W @ W.T + sigma2 * np.eye(13)).sum()
        assert result.data["optimization"]["log_likelihood"].values[-1] == pytest.approx(best, abs=1e-5)


def test_unit_likelihoods_and_the_encoder_are_exact(wine, fitted):
    ppca = fit(PPCA(3), wine, Exact(n_draws=400), seed=0)
    pointwise = fitted.data["log_likelihood"]["log_likelihood"].values
    assert pointwise.shape == (1, 400, 178)
    np.testing.assert_allclose(pointwise[0, 7], ppca.data["log_likelihood"]["log_likelihood"].values[0, 0], atol=1e-6)
    few = wine.subset(range(5))
    np.testing.assert_allclose(fitted.log_likelihood(few).values, ppca.log_likelihood(few).values[:, :1], atol=1e-5)
    # 400 draws, both turned to principal axes: 15 means of sd at most 0.7 within 5 standard errors of their difference.
    z, exact = (f.latents().values[0, :, :5].mean(0) for f in (fitted, ppca))
    signs = np.sign((z * exact).sum(0))
    np.testing.assert_allclose(z * signs, exact, atol=5 * 0.7 * np.sqrt(2 / 400))


def test_positions_of_new_units_match_the_fit(wine, fitted):
    again = fitted.latents(wine)
    assert again.sizes == fitted.latents().sizes
    np.testing.assert_allclose(again.values.mean((0, 1)), fitted.latents().values.mean((0, 1)), atol=5 * 0.7 * np.sqrt(2 / 400))


def test_a_point_estimate_with_parameters_has_no_loo_and_passes(fitted):
    assert fitted.converged
    with pytest.raises(ModelError, match="LOO requires posterior draws; this fit is a point estimate"):
        fitted.loo()


def test_svi_approaches_the_maximum(wine):
    method = SVI(guide="model", n_steps=1500, learning_rate=0.02, n_particles=4, n_draws=200)
    result = fit(LinearVAE(2), wine, method, seed=0, progress=False)
    expected = ppca_optimum(wine.x, 2)[0]
    with double():
        elbo = float(LinearVAE(2).elbo(tensors(LinearVAE(2), wine), **as_tensors(result)))
    assert expected - 3 < elbo < expected
    table = result.diagnostics().set_index("check")
    assert table.loc["LOO k-hat", "verdict"] == "not applicable"
    assert result.data["log_weights"]["log_weight"].dims == ("chain", "draw", "unit")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LinearVAE(0), "`n_latent` must be a whole number of at least 1; got 0"),
        (lambda: LinearVAE(2, sigma=0.0), "`sigma` must be a finite number above 0"),
        (lambda: LinearVAE(2, sigma=True), "`sigma` must be a finite number"),
    ],
)
def test_settings_of_the_linear_vae_out_of_range_are_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_unsuitable_data_are_refused_by_the_linear_vae(wine):
    with pytest.raises(DataError, match="n_latent must be below the number of features, 13; got 13"):
        fit(LinearVAE(13), wine, Exact())
    with pytest.raises(DataError, match="does not allow missing entries"):
        fit(LinearVAE(2), load_dataset("wine", missing=0.1), Exact())
    flat = Dataset({"x": np.outer(np.arange(9.0), np.ones(4))}, dims={"x": ("unit", "feature")})
    with pytest.raises(InferenceError, match="lie exactly in 1 dimensions"):
        fit(LinearVAE(1), flat, Exact())
    with pytest.raises(DataError, match="all 9 rows are identical"):
        fit(LinearVAE(1), Dataset({"x": np.ones((9, 4))}, dims={"x": ("unit", "feature")}), Exact())


def test_the_log_joint_needs_the_decoder_parameters_only(rng):
    model = LinearVAE(2)
    dataset = model.simulate(rng, 8)
    values = {name: dataset.truth[name] for name in ("z", "W", "mu", "sigma")}
    z, W, mu, sigma = values.values()
    expected = gaussian_log_density(z, np.zeros(2), np.eye(2)).sum()
    expected += sum(
        gaussian_log_density(row[None], W @ own + mu, sigma**2 * np.eye(10))[0] for row, own in zip(dataset.x, z, strict=True)
    )
    assert log_joint(model, dataset, values) == pytest.approx(expected, rel=1e-12)
    del values["mu"]
    with pytest.raises(ModelError, match="parameter 'mu' has no value"):
        log_joint(model, dataset, values)
