"""Tests of fits: groups of the result, new units, held-out scores, and both forms of a model."""

from dataclasses import replace

import numpy as np
import oracles
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import scipy.sparse
import torch
import xarray as xr
from scipy.special import logsumexp
from scipy.stats import norm

from latentlab.data.dataset import Dataset
from latentlab.data.load import load_dataset
from latentlab.data.memory import MEMORY
from latentlab.errors import DataError, ModelError
from latentlab.fit import Fit, fit
from latentlab.inference.arrays import tensors
from latentlab.inference.chees import ChEES
from latentlab.inference.density import Density
from latentlab.inference.exact import Exact
from latentlab.inference.map import MAP
from latentlab.inference.nuts import NUTS
from latentlab.inference.svi import SVI
from latentlab.models.base import LatentModel, Position
from latentlab.models.count_hmms import CategoricalHMM, PoissonHMM
from latentlab.models.count_mixtures import BernoulliMixture, PoissonMixture
from latentlab.models.factor_analysis import FactorAnalysis
from latentlab.models.gaussian_hmm import GaussianHMM
from latentlab.models.gaussian_mixture import GaussianMixture
from latentlab.models.ppca import PPCA
from latentlab.models.vae import VAE
from latentlab.results.assemble import N_PREDICTIVE, _predictives
from latentlab.results.convergence import ess_bulk, mcse_mean, mcse_sd
from latentlab.results.new_points import density_of_new
from latentlab.results.tree import build
from latentlab.seeds import Seeds, isolated
from latentlab.symmetry.groups import Identity


@pytest.fixture(scope="module")
def exact(wine):
    return fit(PPCA(2), wine, Exact(n_draws=400), seed=0)


def test_the_result_has_the_documented_groups(wine):
    result = fit(PPCA(2), wine, SVI(n_steps=60, n_draws=40), seed=0, progress=False)
    tree = result.data
    assert {"posterior", "latents", "log_likelihood", "log_prior", "sample_stats", "optimization"} <= set(tree.children)
    assert {"posterior_predictive", "prior_predictive", "observed_data"} <= set(tree.children)
    assert tree["posterior"]["z"].dims == ("chain", "draw", "unit", "latent")
    assert tree["posterior"]["W"].dims == ("chain", "draw", "feature", "latent")
    assert list(tree["posterior"].coords["feature"].values[:2]) == ["alcohol", "malic_acid"]
    assert tree["log_likelihood"]["log_likelihood"].dims == ("chain", "draw", "unit")
    assert set(tree["latents"].data_vars) == {"W", "z"}
    assert {"lp", "log_q", "log_q_averaged"} == set(tree["sample_stats"].data_vars)
    sites = {k: v[0, 7] for k, v in result.sites().items()}
    dense = oracles.gaussian_log_density(wine.x, sites["mu"], sites["W"] @ sites["W"].T + sites["sigma"] ** 2 * np.eye(13))
    np.testing.assert_allclose(tree["log_likelihood"]["log_likelihood"].values[0, 7], dense, rtol=1e-10)


def test_alignment_keeps_the_product_of_positions_and_loadings(exact):
    raw, turned = exact.sites(), {name: a.values for name, a in exact.data["latents"].data_vars.items()}
    np.testing.assert_allclose(turned["z"] @ turned["W"].swapaxes(-1, -2), raw["z"] @ raw["W"].swapaxes(-1, -2), atol=1e-10)


def test_sites_of_a_point_estimate_are_constant(exact):
    W = exact.data["latents"]["W"].values
    assert np.ptp(W, axis=1).max() < 1e-12
    z = exact.latents().values
    mean, covariance = oracles.positions_given(
        exact.dataset.x, exact.sites()["mu"][0, 0], W[0, 0], exact.sites()["sigma"][0, 0] ** 2
    )
    se = np.sqrt(covariance[0].diagonal() / 400)
    assert (np.abs(z[0].mean(0) - mean) < 5.6 * se).all()  # 356 comparisons: 1e-5 false alarms
    off = z[0].mean(0).T @ z[0].mean(0)
    assert abs(off[0, 1]) < 1e-6 * off[0, 0]  # the principal axes of the mean of all draws


def test_draws_of_a_point_estimate_share_densities_not_positions(exact):
    sites = {name: value[0, 0] for name, value in exact.sites().items()}
    covariance = sites["W"] @ sites["W"].T + sites["sigma"] ** 2 * np.eye(13)
    dense = oracles.gaussian_log_density(exact.dataset.x, sites["mu"], covariance)
    found = exact.data["log_likelihood"]["log_likelihood"].values
    assert found.shape == (1, 400, 178)
    np.testing.assert_allclose(found[0], np.broadcast_to(dense, (400, 178)), rtol=1e-10)
    assert {prior.values.shape for prior in exact.data["log_prior"].data_vars.values()} == {(1, 400)}
    assert len(np.unique(exact.sites()["z"][0, :, 0, 0])) == 400


def test_new_data_are_accepted_in_every_form_and_matched_by_name(exact, wine):
    x, features = wine.raw().x[:4], wine.features
    wanted = exact.latents(Dataset({"x": x}, dims=wine.dims)).mean("draw").values
    score = exact.held_out_score(Dataset({"x": x}, dims=wine.dims))
    table = pd.DataFrame(x, columns=features, index=["a", "b", "c", "d"])
    turned = table[features[::-1]]
    array = xr.DataArray(x.T, dims=("feature", "unit"), coords={"feature": features})[::-1]
    for given in (x, x.tolist(), table, turned, array, scipy.sparse.csr_array(x)):
        assert exact.held_out_score(given) == pytest.approx(score, rel=1e-12)
        assert exact.log_likelihood(given).sizes["unit"] == 4
    np.testing.assert_array_equal(exact.latents(x).mean("draw").values, wanted)
    assert exact.latents(turned)["unit"].values.tolist() == ["a", "b", "c", "d"]
    np.testing.assert_array_equal(exact.latents(turned).values, exact.latents(table).values)
    assert exact.latents(x[:1]).sizes["unit"] == 1  # one new unit is placed
    for given, message in (("wine.csv", "new data must be .*got str"), (x[0], r"expected shape \(n_units, n_features\)")):
        for method in (exact.log_likelihood, exact.held_out_score, *([] if isinstance(given, str) else [exact.latents])):
            with pytest.raises(DataError, match=message):
                method(given)
    with pytest.raises(ModelError, match=r"unknown position of 'ppca' 'wine\.csv'"):
        exact.latents("wine.csv")
    with pytest.raises(DataError, match="missing 'alcohol'"):
        exact.latents(table.drop(columns="alcohol"))


def test_a_single_new_unit_is_placed(exact, wine, tmp_path):
    table = pd.DataFrame(wine.raw().x[:1], columns=wine.features)
    table.to_csv(tmp_path / "one.csv", index=False)
    one = load_dataset("file", path=str(tmp_path / "one.csv"))
    assert one.transform is None
    np.testing.assert_array_equal(exact.latents(one).values, exact.latents(table).values)
    with pytest.raises(DataError, match="has 1 units; n_latent = 2 needs at least 3"):
        fit(PPCA(2), one, Exact(), progress=False)


def test_mixtures_give_label_probabilities_of_new_data():
    iris = load_dataset("iris", columns=["petal length (cm)", "petal width (cm)"])
    result = fit(GaussianMixture(2), iris, Exact(n_draws=20), progress=False)
    table = pd.DataFrame(iris.raw().x[:3], columns=iris.features)
    expected = result.probabilities(Dataset({"x": table}, dims=iris.dims)).values
    for given in (table, table[iris.features[::-1]], table.to_numpy()):
        np.testing.assert_array_equal(result.probabilities(given).values, expected)


class Counts(LatentModel):
    """$w_d, z_n \\sim N(0, 1)$, $x_{nd}$ Poisson of rate $e^{w_d z_n}$, or Bernoulli of those log odds."""

    name = "counts"
    dims = {"w": ("feature",), "z": ("unit",)}
    position = Position("z")
    symmetry = Identity()
    methods = ("map", "nuts", "svi")
    likelihood = dist.Poisson

    def model(self, x):
        w = pyro.sample("w", dist.Normal(torch.zeros(x.shape[1]), 1.0).to_event(1))
        with pyro.plate("unit", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            log = z[:, None] * w
            given = {"rate": log.exp()} if self.likelihood is dist.Poisson else {"logits": log}
            pyro.sample("x", self.likelihood(**given).to_event(1), obs=x)


class Bits(Counts):
    name = "bits"
    likelihood = dist.Bernoulli


class Compositions(LatentModel):
    """Rows of whole numbers that sum to 4: Multinomial(4, softmax(z)) of each unit."""

    name = "compositions"
    dims = {"z": ("unit", "latent")}
    position = Position("z")
    symmetry = Identity()
    methods = ("map",)

    def model(self, x):
        with pyro.plate("unit", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(x.shape[1]), 1.0).to_event(1))
            pyro.sample("x", dist.Multinomial(4, logits=z, validate_args=None), obs=x)


def test_rows_outside_a_multivariate_support_are_named():
    dataset = Dataset({"x": [[1, 3], [2, 2], [0, 5]]}, dims={"x": ("unit", "feature")})
    with pytest.raises(ModelError, match=r"'x' is \[0, 5\] at position \(2,\), outside of the support of .*Multinomial"):
        fit(Compositions(), dataset, MAP(), progress=False)


@pytest.mark.parametrize(("model", "what"), [(Counts(), "Poisson"), (Bits(), "Bernoulli")])
def test_standardised_counts_are_refused_with_advice(model, what):
    dataset = Dataset({"x": [[0, 1], [1, 0], [1, 1]]}, dims={"x": ("unit", "feature")})
    message = (
        rf"'x' is -1\.41421 at position \(0, 0\), outside of the support of its distribution, {what} .*dataset.standardize=false`"
    )
    for method in (NUTS(n_chains=1, n_warmup=2, n_draws=2), SVI(n_steps=2, n_draws=2)):
        with pytest.raises(ModelError, match=message):
            fit(model, dataset.standardize(), method, progress=False)
    fit(model, dataset, SVI(n_steps=2, n_draws=2), progress=False)
    if what == "Bernoulli":
        with pytest.raises(ModelError, match=r"'x' is 2 at position \(0, 1\).*Bernoulli \(Boolean\(\)\)\.$"):
            fit(model, Dataset({"x": [[0, 2], [1, 0]]}, dims=dataset.dims), SVI(n_steps=2, n_draws=2), progress=False)


def test_new_units_match_the_exact_conditional_in_the_training_transform(exact, wine):
    raw = wine.raw()
    order = [12, *range(12)]
    some = Dataset(
        {"x": raw.x[:5][:, order]},
        dims={"x": ("unit", "feature")},
        coords={"feature": raw.features[order], "unit": list("abcde")},
    )
    new = exact.latents(some)  # raw values, columns in another order
    assert new.dims == ("chain", "draw", "unit", "latent")
    assert list(new.coords["unit"].values) == list("abcde")
    old = exact.latents().values[:, :, :5]
    se = np.sqrt((new.values.var(1) + old.var(1)) / 400)
    assert (np.abs(new.values.mean(1) - old.mean(1)) < 5 * se).all()
    np.testing.assert_array_equal(exact.latents(some).values, new.values)  # the same units, the same draws


def test_new_units_with_missing_entries_are_placed(exact, wine):
    x = wine.raw().x[:4].copy()
    x[0, :] = np.nan
    x[1, 3:] = np.nan
    some = Dataset({"x": x}, dims={"x": ("unit", "feature")}, coords={"feature": wine.features})
    z = exact.latents(some).values[0]
    assert (np.abs(z[:, 0].mean(0)) < 5 / np.sqrt(400)).all()  # nothing observed: the prior N(0, I)
    assert z[:, 1].std(0).sum() > 1.2 * z[:, 2].std(0).sum()


def test_new_units_with_other_columns_are_refused(exact, wine):
    other = Dataset({"x": wine.raw().x[:3, :12]}, dims={"x": ("unit", "feature")}, coords={"feature": wine.features[:12]})
    with pytest.raises(DataError, match=r"missing 'proline'"):
        exact.latents(other)


def test_imputations_are_in_raw_units():
    """Given the point estimate the conditional is the textbook's: 463 means of 2000 draws at 5.6 standard errors (1e-5)."""
    hidden = load_dataset("wine", missing=0.2)
    result = fit(FactorAnalysis(2), hidden, Exact(n_draws=2000), seed=0)
    found = result.imputations(n_draws=2000)
    assert found.dims == ("chain", "draw", "entry")
    assert found.shape[:2] == (1, 2000)
    assert result.imputations(n_draws=50).sizes["draw"] == 50
    sites = {name: array[0, 0] for name, array in result.sites().items()}
    joint = sites["W"] @ sites["W"].T + np.diag(sites["psi"] ** 2)
    for k, (unit, feature) in enumerate(np.argwhere(np.isnan(hidden.x))):
        assert (found["unit"].values[k], found["feature"].values[k]) == (hidden.units[unit], hidden.features[feature])
        o = np.flatnonzero(~np.isnan(hidden.x[unit]))
        gain = np.linalg.solve(joint[np.ix_(o, o)], joint[o, feature])
        mean = sites["mu"][feature] + gain @ (hidden.x[unit, o] - sites["mu"][o])
        sd = np.sqrt(joint[feature, feature] - gain @ joint[o, feature])
        scale, loc = hidden.transform.scale[feature], hidden.transform.loc[feature]
        drawn = found.values[0, :, k]
        assert abs(drawn.mean() - (mean * scale + loc)) < 5.6 * sd * scale / np.sqrt(2000)
        assert 0.85 < drawn.std() / (sd * scale) < 1.15


def test_sensitivity_names_the_affected_quantities(wine):
    """A prior that the data contradict moves the loadings; loadings are named by their features."""
    result = fit(PPCA(1, W_scale=0.02, mu_scale=0), wine, SVI(n_steps=800, n_draws=1000), seed=0, progress=False)
    table = result.sensitivity()
    assert table.columns.tolist() == ["quantity", "prior", "likelihood", "diagnosis"]
    assert table["quantity"].str.fullmatch(r"W W\^T\[\w.*, \w.*\]|sigma").all()
    assert "W W^T[flavanoids, flavanoids]" in set(table["quantity"])
    assert table["prior"].is_monotonic_decreasing
    assert table["prior"].iloc[0] > 0.05
    wide = fit(PPCA(1, W_scale=20.0, mu_scale=0), wine, SVI(n_steps=800, n_draws=1000), seed=0, progress=False)
    assert wide.sensitivity()["prior"].iloc[0] < 0.3 * table["prior"].iloc[0]
    assert np.isfinite(result.loo().elpd)


def test_a_point_estimate_has_neither_sensitivity_nor_loo(exact):
    for asked in (exact.sensitivity, exact.loo):
        with pytest.raises(ModelError, match="point estimate"):
            asked()


def test_imputations_are_refused_without_missing_entries(exact):
    with pytest.raises(DataError, match="no entry is missing"):
        exact.imputations()


def test_the_held_out_score_is_the_log_of_the_mean_density(wine):
    training, held_out = wine.split(0.2, np.random.default_rng(0))
    result = fit(PPCA(2), training, Exact(n_draws=3), seed=0)
    score = result.held_out_score(held_out.raw())
    sites = {k: v[0, 0] for k, v in result.sites().items()}
    C = sites["W"] @ sites["W"].T + sites["sigma"] ** 2 * np.eye(13)
    each = oracles.gaussian_log_density(held_out.x, sites["mu"], C)
    assert score["elpd"] == pytest.approx(each.sum(), rel=1e-9)
    assert score["se"] == pytest.approx(np.sqrt(len(each)) * each.std(ddof=1), rel=1e-9)
    better = fit(FactorAnalysis(3), training, Exact(n_draws=3), seed=0).held_out_score(held_out)["elpd"]
    assert better > score["elpd"]


def test_held_out_sequences_are_scored_as_wholes(rng):
    """Recomputes the scores of two held-out sequences by the forward recursion, for three draws."""
    model = GaussianHMM(2)
    dataset = model.simulate(rng, 12)
    truths = [model.simulate(rng, 6).truth for _ in range(3)]
    names = ("initial", "transition", "mu", "sigma")
    values = {name: np.stack([truth[name] for truth in truths])[None] for name in names}
    result = Fit(model, dataset, NUTS(n_chains=1), 0, build({"posterior": values}, dims=model.dims))
    each = np.empty((3, 2))
    for draw, (initial, transition, mu, sigma) in enumerate(zip(*(values[name][0] for name in names), strict=True)):
        for k, name in enumerate(("s0", "s1")):
            x, forward = dataset.x[dataset.coords["sequence"] == name], np.log(initial)
            for t, row in enumerate(x):
                before = forward if t == 0 else logsumexp(forward[:, None] + np.log(transition), axis=0)
                forward = before + norm.logpdf(row, mu, sigma)[:, 0]
            each[draw, k] = logsumexp(forward)
    terms = logsumexp(each, axis=0) - np.log(3)
    score = result.held_out_score(dataset)
    assert score == pytest.approx({"elpd": terms.sum(), "se": np.sqrt(2) * terms.std(ddof=1), "n_units": 2.0})


def test_predictive_draws_resemble_the_data(exact, wine):
    replicated = exact.data["posterior_predictive"]["x"].values[0]
    assert replicated.shape == (100, 178, 13)
    np.testing.assert_allclose(replicated.mean((0, 1)), 0, atol=0.05)
    np.testing.assert_allclose(replicated.std((0, 1)), 1, atol=0.3)
    assert exact.data["prior_predictive"]["x"].values.std() > 5  # mu_scale is 10


def test_prior_predictive_draws_use_different_prior_draws(wine):
    """Means of prior predictive draws have the prior's spread: a ratio of variances outside 0.4 to 2.2 has a chance of 1e-8."""
    model = PPCA(2)
    density = Density(model, tensors(model, wine), wine.array_dims)
    mu = 1000.0 * np.arange(2 * N_PREDICTIVE)
    values = {"W": np.zeros((1, len(mu), 13, 2)), "mu": np.tile(mu[None, :, None], (1, 1, 13)), "sigma": np.ones((1, len(mu)))}
    with isolated(Seeds(0)):
        found = _predictives(density, values, MEMORY)
    means = found["posterior_predictive"]["x"].mean(axis=2)
    assert means.shape == (1, N_PREDICTIVE, 13)
    kept = np.linspace(0, len(mu) - 1, N_PREDICTIVE).astype(int)
    np.testing.assert_allclose(means[0], np.tile(mu[kept, None], (1, 13)), atol=1)  # 13 standard errors
    prior = found["prior_predictive"]["x"].mean(axis=2)[0]
    ratio = prior.var(axis=0, ddof=1) / (model.mu_scale**2 + (2 * model.W_scale**2 + model.sigma_scale**2) / 178)
    assert (ratio > 0.4).all()
    assert (ratio < 2.2).all()


@pytest.mark.slow
def test_raw_coordinates_have_no_verdict_and_stuck_chains_fail():
    """The machine code is that of `test_reference`."""
    method = NUTS(n_chains=4, n_warmup=400, n_draws=800, target_accept=0.9, compiled=True)
    result = fit(PPCA(2, mu_scale=0), load_dataset("iris"), method, seed=1, progress=False)
    table = result.diagnostics()
    raw = table[table["quantity"].str.contains("raw") & (table["check"] == "R-hat")]
    assert float(raw["value"].max()) > 1.01  # each chain turns W as it likes: by the raw coordinates it would have failed
    assert set(raw["verdict"]) == {"not applicable"}
    assert result.converged, table.query("verdict == 'fail'")
    for planted in ("offset", "frozen"):
        tree = result.data.copy(deep=True)
        for name in ("W", "z"):
            array = tree["posterior"][name].values
            array[3] = 1.3 * array[3] if planted == "offset" else array[3, :1]
        stuck = replace(result, data=tree)
        assert not stuck.converged, planted
        assert "R-hat" in stuck.diagnostics().query("verdict == 'fail'")["check"].tolist(), planted


@pytest.mark.slow
def test_explicit_and_marginalised_forms_agree():
    """W W^T, sigma and the positions' moments by both: z-tests of means and sds, Bonferroni at a total of 1e-5.

    Draws with sds smaller by an eighth would be detected.
    """
    rng = np.random.default_rng(5)
    z, W = rng.standard_normal((25, 1)), np.array([[1.5, -1.0, 0.8, 0.5]])
    dataset = Dataset({"x": z @ W + 0.5 * rng.standard_normal((25, 4))}, dims={"x": ("unit", "feature")})
    method = ChEES(n_warmup=400, n_draws=150)
    found = []
    for marginalize in (True, False):
        result = fit(PPCA(1, mu_scale=2.0, marginalize=marginalize), dataset, method, seed=3, progress=False)
        sites = result.sites()
        W_, z_ = sites["W"][..., 0], sites["z"][..., 0]
        quantities = [*np.moveaxis(W_**2, -1, 0), W_[..., 0] * W_[..., 1], sites["sigma"], *np.moveaxis(sites["mu"], -1, 0)]
        quantities += [z_[..., 0] * W_[..., 0], z_[..., 7] ** 2, (z_**2).mean(-1)]
        found.append(quantities)
        assert min(float(ess_bulk(q)) for q in quantities) > 1000

    def worst(narrower=1.0):
        """The largest z if the draws of the explicit form are narrowed by this factor."""
        means = [(x.mean() - y.mean()) / np.hypot(mcse_mean(x), mcse_mean(y)) for x, y in zip(*found, strict=True)]
        sds = [(x.std() - narrower * y.std()) / np.hypot(mcse_sd(x), mcse_sd(y)) for x, y in zip(*found, strict=True)]
        return np.abs([*means, *sds]).max()

    assert worst() < 5.1
    assert worst(narrower=7 / 8) > 5.1


def test_elbos_of_the_guides_have_the_expected_order(wine):
    """The ELBO of the explicit form is below that of the marginalised form, and both are below the full-rank guide's."""
    method = SVI(guide="model", n_steps=1500, n_draws=500)
    integrated = fit(PPCA(2), wine, method, seed=0, progress=False).data.attrs["elbo"]
    explicit = fit(PPCA(2, marginalize=False), wine, method, seed=0, progress=False).data.attrs["elbo"]
    full = fit(PPCA(2), wine, SVI(guide="full_rank", n_steps=1500, n_draws=500), seed=0, progress=False).data.attrs["elbo"]
    assert explicit < integrated < full
    assert full - explicit < 40  # of 178 units: the encoder is close to the exact conditional


def test_models_without_positions_cannot_place_new_units():
    from pathlib import Path

    from latentlab.registry import MODELS, plugins

    schools = Dataset({"x": [[28.0, 15], [8, 10], [-3, 16]]}, dims={"x": ("unit", "feature")})
    with plugins([Path(__file__).parent / "plugins" / "eight_schools.py"]):
        model = MODELS.load("eight_schools")()
    result = fit(model, schools, NUTS(n_chains=2, n_warmup=30, n_draws=20), seed=0, progress=False)
    with pytest.raises(ModelError, match="'eight_schools' has no `latents`"):
        result.latents(schools)


# -- values that the model cannot emit, in units that were not in the fit


def _table(x, **coords):
    return Dataset({"x": np.asarray(x, dtype=float)}, dims={"x": ("unit", "feature")}, coords=coords)


CODES = _table(np.arange(24)[:, None] % 4)
YES_OR_NO = _table([[0, 1, 1], [1, 0, 0], [1, 1, 0], [0, 0, 1]] * 4)
COUNTS = _table([[0, 3, 1], [2, 0, 0], [5, 1, 0], [0, 0, 7]] * 4)
FEW_STEPS = SVI(guide="model", n_steps=2, n_draws=8)
ONE_START = Exact(n_restarts=1, n_draws=8)
IMPOSSIBLE = {
    "categorical HMM": (CategoricalHMM(2, n_categories=4), CODES, ONE_START, [[4], [7], [-1], [1.5]]),
    "Bernoulli mixture": (BernoulliMixture(2), YES_OR_NO, ONE_START, [[2, 1, 1], [100, 1, 0], [0.5, 1, 0], [-1, 0, 0]]),
    "Poisson mixture": (PoissonMixture(2), COUNTS, ONE_START, [[-3, 1, 1], [0.5, 2.5, 0.5]]),
    "Poisson HMM": (PoissonHMM(2), COUNTS, ONE_START, [[-3, 1, 1], [0.5, 2.5, 0.5]]),
    "Bernoulli VAE": (VAE(1, hidden=(2,), likelihood="bernoulli"), YES_OR_NO, FEW_STEPS, [[2, 1, 1], [0.5, 1, 1]]),
    "Poisson VAE": (VAE(1, hidden=(2,), likelihood="poisson"), COUNTS, FEW_STEPS, [[-3, 1, 1], [0.5, 2.5, 0.5]]),
}


@pytest.mark.parametrize("case", IMPOSSIBLE)
def test_impossible_values_of_new_units_are_refused(case):
    model, dataset, method, rows = IMPOSSIBLE[case]
    result = fit(model, dataset, method, seed=0, progress=False)
    ways = [result.latents, result.log_likelihood, result.held_out_score]
    ways += [result.probabilities] if model.position.kind == "discrete" else []
    for row in rows:
        good = np.where(np.arange(len(row)) == 0, 1.0, 0.0)
        new = _table([good, row], unit=["fine", "bad one"])
        for way in ways:
            with pytest.raises(DataError, match=f"(?s)(?=.*bad one)(?=.*'0')(?=.*{row[0]:g})"):
                way(new)
    for way in ways:
        way(_table([good]))


def test_impossible_values_of_held_out_units_are_refused_before_the_fit():
    with pytest.raises(DataError, match=r"unit '1' must be 0 or 1, or missing; got 2"):
        density_of_new(BernoulliMixture(2), _table([[0, 1, 1], [2, 1, 1]]))


def test_the_check_of_a_model_applies_to_new_units():
    class CheckedModel(PPCA):
        check_new = LatentModel.check_new

        def check(self, dataset):
            if (dataset.x > 9).any():
                raise DataError(f"{dataset.name}: above 9.")

    rng = np.random.default_rng(0)
    result = fit(CheckedModel(1), _table(rng.normal(size=(20, 3))), ONE_START, progress=False)
    with pytest.raises(DataError, match="above 9"):
        result.latents(_table([[0, 1, 10]]))
