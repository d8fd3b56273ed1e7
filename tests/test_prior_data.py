"""Tests of the check `prior and data`, which warns if prior and data differ in scale."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import norm

import latentlab as ll
from latentlab.inference.arrays import tensors
from latentlab.inference.density import Density
from latentlab.results.prior_data import LIMIT, _measured, _placed, prior_rows
from latentlab.results.tree import build
from latentlab.seeds import Seeds, isolated
from latentlab.study.config import load_config
from latentlab.symmetry.groups import Identity

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))
M = ll.models


def table(x, **more):
    return ll.Dataset({"x": np.asarray(x, dtype=float)}, dims={"x": ("unit", "feature")}, **more)


def two_groups(n_features):
    """100 units near 50 and 100 near 120."""
    noise = np.random.default_rng(0).normal(size=(200, n_features))
    return table(np.repeat([50.0, 120.0], 100)[:, None] + noise)


def checked(model, dataset, method="nuts"):
    """The check's row from draws of the prior predictive alone."""
    density = Density(model, tensors(model, dataset), dataset.array_dims)
    with isolated(Seeds(0)):
        rows = [density.predict(density.prior()) for _ in range(100)]
    prior = {name: np.stack([row[name].numpy() for row in rows])[None] for name in rows[0]}
    data = build(
        {"posterior": {"a": np.zeros((1, 100))}, "prior_predictive": prior, "observed_data": {dataset.observed: dataset.x}},
        dims={**density.observed, **dataset.dims, "a": ()},
        coords=dataset.coords,
        attrs={"inference": "mcmc", "method": method, "hyperparameters": ", ".join(model.hyperparameters())},
    )
    (row,) = prior_rows(data)
    return dict(zip(("check", "quantity", "value", "threshold", "verdict"), row, strict=True))


RAW = {
    "mixture": (M.GaussianMixture(2), 2, "mu_loc=85, mu_scale=35, sigma_scale=35"),
    "mixture of one column": (M.GaussianMixture(2, covariance="spherical"), 1, "mu_loc=85, mu_scale=35, sigma_scale=35"),
    "DP mixture": (M.DPMixture(5), 3, "mu_loc=85, mu_scale=35, sigma_scale=35"),
    "HMM": (M.GaussianHMM(2), 2, "mu_loc=85, mu_scale=35, sigma_scale=35"),
    "state space": (M.LinearGaussianStateSpace(1), 2, "mu_scale=85, C_scale=35, sigma_scale=35"),
    "state space, unstable a priori": (M.LinearGaussianStateSpace(2), 5, "mu_scale=85, C_scale=35, sigma_scale=35"),
    "PPCA": (M.PPCA(1), 2, "mu_scale=85, W_scale=35, sigma_scale=35"),
    "PPCA, positions kept": (M.PPCA(1, marginalize=False), 2, "mu_scale=85, W_scale=35, sigma_scale=35"),
    "PPCA, mean fixed": (M.PPCA(1, mu_scale=0.0), 2, "mu_scale=85, W_scale=35, sigma_scale=35"),
    "factor analysis": (M.FactorAnalysis(1), 4, "mu_scale=85, W_scale=35, psi_scale=35"),
}


@pytest.mark.parametrize("case", list(RAW))
def test_raw_data_with_a_prior_for_standardised_data_warn(case):
    model, n_features, values = RAW[case]
    dataset = two_groups(n_features)
    row = checked(model, dataset)
    assert (row["check"], row["verdict"]) == ("prior and data", "warn"), row
    assert row["value"] > LIMIT
    assert "standardize: true" in row["quantity"]
    named = row["quantity"].split("set approximately ")[1]
    # the values depend on the data alone, and are rounded to two digits
    assert [part.split("=")[0] for part in named.split(", ")] == [part.split("=")[0] for part in values.split(", ")]
    for found, expected in zip(named.split(", "), values.split(", "), strict=True):
        assert float(found.split("=")[1]) == pytest.approx(float(expected.split("=")[1]), rel=0.03)
    settings = {name: float(value) for name, value in (part.split("=") for part in named.split(", "))}
    assert checked(type(model)(**{**model.hyperparameters(), **settings}), dataset)["verdict"] == "pass"
    assert checked(model, dataset.standardize())["verdict"] == "pass"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_configs_do_not_warn(path):
    config = load_config(path)
    row = checked(config.build_model(), config.build_dataset())
    assert row["verdict"] == "pass", row
    assert row["value"] < 0.5 * LIMIT, row


@pytest.mark.parametrize("scale", [1e-4, 1e3], ids=["much narrower", "much wider"])
def test_the_spread_is_compared(rng, scale):
    x = rng.normal(size=(100, 3))
    row = checked(M.PPCA(1), table(scale * (x - x.mean(0))))
    assert row["verdict"] == "warn"
    assert row["quantity"].startswith("data standard deviation of column '")


def test_one_narrow_or_constant_column_does_not_warn(rng):
    x = rng.normal(size=(100, 5))
    x[:, 0] *= 1e-6
    x[:, 1] = 0.3
    assert checked(M.PPCA(1), table(x))["verdict"] == "pass"
    x[:, 0] *= 1e12
    assert "column '0'" in checked(M.PPCA(1), table(x))["quantity"]


def test_missing_entries_are_ignored(rng):
    x = rng.normal(size=(100, 3))
    x[rng.random(x.shape) < 0.3] = np.nan
    assert checked(M.PPCA(1), table(x))["verdict"] == "pass"
    assert checked(M.PPCA(1), table(x + 1e4))["verdict"] == "warn"


def test_overflowing_prior_draws_are_ignored(rng):
    """Three of ten draws of an unstable prior are infinite; the finite ones show that the data are far away."""
    y = rng.normal(size=(100, 50, 1))
    y[:30] = np.inf
    assert float(_measured(np.full((50, 1), 40.0) + rng.normal(size=(50, 1)), y)["location"][3][0]) > LIMIT
    assert float(_measured(rng.normal(size=(50, 1)), y)["location"][3][0]) == 0.0


def test_a_prior_that_mostly_overflows_warns(rng):
    x = rng.normal(size=(50, 1))
    for n_infinite, verdict in ((20, "pass"), (60, "warn")):
        y = rng.normal(size=(1, 100, 50, 1))
        y[0, :n_infinite, 3] = np.inf
        data = build(
            {"posterior": {"a": np.zeros((1, 100))}, "prior_predictive": {"x": y}, "observed_data": {"x": x}},
            dims={"x": ("unit", "feature"), "a": ()},
            attrs={"inference": "mcmc", "method": "nuts", "hyperparameters": "mu_scale"},
        )
        (row,) = prior_rows(data)
        assert row[4] == verdict
    assert row[1] == "60% of the prior predictive data sets contain non-finite values; choose narrower priors"


def test_counts_are_compared_by_their_mean_only(rng):
    assert checked(M.PoissonMixture(2), table(rng.poisson(4.0, size=(100, 2))))["verdict"] == "pass"
    row = checked(M.PoissonMixture(2), table(rng.poisson(5000.0, size=(100, 2))))
    assert row["verdict"] == "warn"
    assert "rate_mean=5e+03" in row["quantity"]
    assert "standardize" not in row["quantity"]
    sparse = np.zeros((500, 3))
    sparse[:3] = np.eye(3)
    assert checked(M.BernoulliMixture(2), table(sparse))["verdict"] == "pass"


def test_a_normal_quantity_warns_at_4_7_standard_deviations():
    draws = norm.ppf((np.arange(20_000) + 0.5) / 20_000)[:, None].repeat(2, 1)
    quartile = norm.ppf(0.75)
    at = quartile + LIMIT * 2 * quartile
    assert at == pytest.approx(4.72, abs=0.01)
    distance = _placed(np.array([at - 0.01, -at - 0.01]), draws)[3]
    assert distance[0] < LIMIT < distance[1]


def test_the_warning_does_not_affect_convergence():
    fitted = ll.fit(M.GaussianMixture(2), two_groups(2), ll.MAP(n_restarts=2), progress=False)
    row = fitted.diagnostics().set_index("check").loc["prior and data"]
    assert row["verdict"] == "warn"
    assert fitted.converged


def test_models_without_priors_are_not_checked():
    for model, method in ((M.PPCA(1), ll.Exact(n_draws=20)), (M.LinearVAE(1), ll.Exact(n_draws=20))):
        row = ll.fit(model, two_groups(3), method, progress=False).diagnostics().set_index("check").loc["prior and data"]
        assert row["verdict"] == "not applicable"


class Heights(ll.LatentModel):
    """A plugin model with one number for each unit, at a site that is not a data array."""

    name = "heights"
    dims = {"z": ("unit",)}
    position = ll.Position("z")
    symmetry = Identity()
    methods = ("svi",)

    def model(self, height):
        import pyro
        import pyro.distributions as dist
        import torch

        with pyro.plate("unit", len(height)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(height)), 1.0))
            pyro.sample("height", dist.Normal(z, 0.5), obs=height)


def test_plugin_models_are_checked(rng):
    dataset = ll.Dataset({"height": rng.normal(170.0, 10.0, size=60)}, dims={"height": ("unit",)})
    row = checked(Heights(), dataset)
    assert row["verdict"] == "warn"
    assert row["quantity"].endswith("standardise the data (`standardize: true`), or choose priors on the scale of the data")
    near = replace(dataset, arrays={"height": (dataset.arrays["height"] - 170) / 10})
    assert checked(Heights(), near)["verdict"] == "pass"


def test_observed_sites_that_are_no_data_arrays_are_compared(rng):
    from plugins.eight_schools import EightSchools

    x = np.c_[np.array([28.0, 8, -3, 7, -1, 1, 18, 12]) + 1e5, [15.0, 10, 16, 11, 9, 11, 10, 18]]
    fitted = ll.fit(EightSchools(), table(x), ll.MAP(n_restarts=1), progress=False)
    row = fitted.diagnostics().set_index("check").loc["prior and data"]
    assert row["verdict"] == "warn"
    assert row["quantity"].startswith("data mean 1e+05")
    assert fitted.data["observed_data"]["y"].values.tolist() == x[:, 0].tolist()
