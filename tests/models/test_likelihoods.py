"""Tests of likelihoods: densities against scipy, starting values, encoder inputs, draws, and fits of data of each kind."""

import numpy as np
import pytest
import torch
from scipy import stats

from latentlab.data.dataset import Dataset
from latentlab.errors import ConfigError, DataError
from latentlab.fit import fit
from latentlab.inference.arrays import tensors
from latentlab.inference.svi import SVI
from latentlab.models.likelihoods import LIKELIHOODS
from latentlab.models.vae import VAE
from latentlab.seeds import double

OPTIONS = {"categorical": {"n_categories": 3}, "discretised_logistic": {"grid": (0.0, 8.0), "bin_width": 0.5}}
SCALED = ("gaussian", "negative_binomial", "discretised_logistic")
CASES = [(name, noise) for name in LIKELIHOODS for noise in (("shared", "feature", "entry") if name in SCALED else ("shared",))]
SETTINGS = {**OPTIONS, "discretised_logistic": {"grid": [0.0, 8.0], "bin_width": 0.5}}
QUICK = SVI(guide="model", n_steps=40, learning_rate=0.01, n_particles=2, batch_size=20, n_draws=20)


def expit(x):
    return 1 / (1 + np.exp(-x))


def by_scipy(name, noise, out, scale, x):
    """Log density of entries `x` (5, 4), by scipy; `out` are the outputs in blocks."""
    blocks = out.reshape(len(out), -1, 4)
    if noise == "entry":
        scale = {"gaussian": lambda o: 0.01 + np.log1p(np.exp(o))}.get(name, np.exp)(blocks[:, 1])
    first = blocks[:, 0]
    if name == "gaussian":
        return stats.norm(first, scale).logpdf(x)
    if name == "bernoulli":
        return stats.bernoulli(expit(first)).logpmf(x)
    if name == "continuous_bernoulli":
        return first * x - np.log(np.expm1(first) / first)
    if name == "poisson":
        return stats.poisson(np.exp(first)).logpmf(x)
    if name == "negative_binomial":
        return stats.nbinom(scale, scale / (scale + np.exp(first))).logpmf(x)
    if name == "categorical":
        p = np.exp(blocks) / np.exp(blocks).sum(1, keepdims=True)
        return np.log(np.take_along_axis(p, x[:, None].astype(int), 1)[:, 0])
    of_bin = stats.logistic(first, scale)
    upper = np.where(x == 8, 1.0, of_bin.cdf(x + 0.25))
    return np.log(upper - np.where(x == 0, 0.0, of_bin.cdf(x - 0.25)))


def drawn(name, noise, rng, n=5):
    """A likelihood, outputs, a scale, and data drawn from them."""
    one = LIKELIHOODS[name](noise=noise, **OPTIONS.get(name, {}))
    out = rng.normal(size=(n, one.n_outputs * 4)) + (4.0 if name == "discretised_logistic" else 0.0)
    scale = rng.uniform(0.5, 2.0, size=() if noise == "shared" else (4,))
    values = {one.parameter: torch.tensor(scale)} if one.dims else {}
    distribution = one.distribution(torch.tensor(out), values)
    return one, out, scale, distribution, one.draw(distribution, rng)


@pytest.mark.parametrize(("name", "noise"), CASES)
def test_log_densities_match_scipy(name, noise, rng):
    one, out, scale, distribution, x = drawn(name, noise, rng)
    assert distribution.batch_shape == (5, 4)
    assert not one.invalid(x).any()
    np.testing.assert_allclose(
        distribution.log_prob(torch.tensor(x)), by_scipy(name, noise, out, scale, x), rtol=1e-10, atol=1e-10
    )
    assert set(one.dims) == ({one.parameter} if one.parameter and noise != "entry" else set())


@pytest.mark.parametrize(("name", "noise"), CASES)
def test_draws_have_the_mean_of_the_distribution(name, noise, rng):
    """z-tests of 4 columns of 4000 draws, each at 5 standard errors: 2e-6 in total."""
    one, out, scale, _, _ = drawn(name, noise, rng, n=1)
    values = {one.parameter: torch.tensor(scale)} if one.dims else {}
    distribution = one.distribution(torch.tensor(out).expand(4000, -1), values)
    for x in (one.draw(distribution, rng), distribution.sample().numpy()):
        error = x.std(0) / np.sqrt(4000)
        assert (np.abs(x.mean(0) - distribution.mean.numpy()[0]) < 5 * error).all()


@pytest.mark.parametrize(("name", "noise"), CASES)
def test_the_start_has_the_means_of_the_columns(name, noise, rng):
    one, _, _, _, x = drawn(name, noise, rng, n=400)
    mask = rng.random(x.shape) > 0.2
    filled = torch.tensor(np.where(mask, x, 0.0))
    with double():
        offsets = one.offsets(filled, torch.tensor(mask))
        values = {one.parameter: one.start(filled, torch.tensor(mask))} if one.dims else {}
        found = one.distribution(offsets, values)
    means = np.array([x[mask[:, j], j].mean() for j in range(4)])
    inexact = {"categorical": 0.02, "discretised_logistic": 0.3}.get(name, 1e-6)
    np.testing.assert_allclose(found.mean, means, atol=inexact, rtol=1e-6)
    if name in SCALED[:2] and noise != "shared":  # the tails of a grid change the variance
        sd = np.array([x[mask[:, j], j].std() for j in range(4)])
        at = found.sample((20_000,)).std(0).numpy()
        np.testing.assert_allclose(at, sd, rtol=0.15)


def test_encoder_inputs():
    x = torch.tensor([[0.0, 2.0], [1.0, 1.0]], dtype=torch.float64)
    three = LIKELIHOODS["categorical"](n_categories=3).inputs(x)
    np.testing.assert_array_equal(three, [[1, 0, 0, 0, 0, 1], [0, 0, 1, 1, 0, 0]])  # blocks of features, one for each code
    np.testing.assert_array_equal(LIKELIHOODS["discretised_logistic"](grid=(0.0, 4.0)).inputs(x), x / 2 - 1)
    np.testing.assert_allclose(LIKELIHOODS["negative_binomial"]().inputs(x), np.log1p(x.numpy()))


def test_a_density_with_noise_for_each_entry_is_bounded(rng):
    one = LIKELIHOODS["gaussian"](noise="entry", noise_floor=0.2)
    out = torch.tensor(np.concatenate([np.ones((3, 2)), -1e4 * np.ones((3, 2))], 1))
    log_p = one.distribution(out, {}).log_prob(torch.ones(3, 2, dtype=torch.float64))
    np.testing.assert_allclose(log_p, stats.norm(0, 0.2).logpdf(0))


@pytest.mark.parametrize(("name", "noise"), CASES)
def test_a_vae_with_missing_entries_is_fitted(name, noise, rng):
    model = VAE(2, (5,), name, noise=noise, activation="tanh", **SETTINGS.get(name, {}))
    whole = model.simulate(rng, 60, n_features=4)
    x = whole.x.copy()
    x[rng.random(x.shape) < 0.2] = np.nan
    found = fit(model, Dataset({"x": x}, dims=whole.dims), QUICK, seed=0, progress=False)
    assert set(found.parameters) == set(model.parameters)
    assert np.isfinite(found.data["optimization"]["loss"].values).all()
    filled = found.imputations(n_draws=5).values
    assert not model._entries.invalid(filled).any()
    with double():
        assert model.imputation(tensors(model, whole), z=torch.zeros(60, 2), **to_tensors(found.parameters)).mean.shape == (60, 4)


def to_tensors(values):
    return {name: torch.tensor(np.asarray(value)) for name, value in values.items()}


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (
            "continuous_bernoulli",
            1.2,
            "unit '1' must be numbers from 0 to 1 for the likelihood .*; got 1.2",
        ),
        ("negative_binomial", 0.5, "must be counts"),
        ("categorical", 3.0, r"must be codes \(whole numbers from 0 to 2\) for the likelihood 'categorical'; got 3"),
        ("categorical", -1.0, "column '0', unit '1' must be .*; got -1 "),
        ("discretised_logistic", 0.3, r"must be values 0, 0.5, \.\.\., 8 for the likelihood"),
        ("discretised_logistic", 8.5, "unit '1' must be .*; got 8.5 "),
    ],
)
def test_values_outside_the_support_are_refused(name, value, message):
    x = np.array([[0.0, 1.0], [value, 0.0], [1.0, 1.0]])
    with pytest.raises(DataError, match=message):
        fit(VAE(2, (4,), name, **SETTINGS.get(name, {})), Dataset({"x": x}, dims={"x": ("unit", "feature")}), QUICK)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"likelihood": "categorical"}, "`n_categories` must be set for the likelihood 'categorical'"),
        ({"n_categories": 3}, "got n_categories=3 with the likelihood 'gaussian'"),
        ({"likelihood": "discretised_logistic"}, "`grid` must be the first and the last value of the data.*got None"),
        ({"likelihood": "discretised_logistic", "grid": [0, 1.5]}, r"a whole number of steps.*got \[0.0, 1.5\] and bin_width=1"),
        ({"likelihood": "discretised_logistic", "grid": [3, 1]}, "`grid` must be"),
        ({"grid": [0, 1]}, "`grid` is for the likelihood 'discretised_logistic' only; got 'gaussian'"),
    ],
)
def test_settings_of_likelihoods_that_do_not_match_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        VAE(2, **options)


def test_a_floor_of_the_noise_above_the_spread_of_the_data_is_refused(iris):
    with pytest.raises(DataError, match="`noise_floor` must be below the largest standard deviation of a column, 1; got 2"):
        fit(VAE(2, noise="entry", noise_floor=2.0), iris, QUICK)
