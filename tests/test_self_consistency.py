"""Tests of self-consistency checks (SBC, Geweke): correct models pass and planted faults are detected.

Faults that each check detects, in PPCA with 4 features (100 data sets of 10 units; 100 chains of 40 sweeps at 6 units; the
tests below take 50 data sets):

| fault                                               | SBC | by                     | Geweke | by                         |
|-----------------------------------------------------|-----|------------------------|--------|----------------------------|
| the likelihood is dropped                           | yes | log likelihood, z^T x  | yes    | mu x mean of x             |
| the likelihood counts twice                         | yes | log likelihood, sigma  | yes    | sigma                      |
| prior sds are doubled in the density alone          | yes | log prior              | yes    | mean of x^2                |
| the noise's sd is taken as its variance             | yes | sigma                  | yes    | mean of steps^2            |
| the Jacobian is missing                             | no  | (at 10 units)          | yes    | sigma, at 3 units          |
| only the first unit counts                          | yes | log likelihood, z^T x  | yes    | mu x mean of x, at 10      |
| positions are drawn without the data                | yes | z^T x                  | no     | (they are integrated out)  |

False alarms: tables are at 1 in 1000 each. A sound model that fails is checked once more from another seed: 4e-6 for two tables.
"""

import itertools
import random
import sys
from dataclasses import replace
from functools import wraps
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from patching import everywhere
from scipy.stats import binomtest, ttest_ind

from latentlab import cli
from latentlab.calibration.calibrate import calibrate
from latentlab.calibration.geweke import _compared, _sweeps, geweke
from latentlab.calibration.sbc import _by_chains, _most_added, added_variance, sbc
from latentlab.calibration.simulated import MOMENTS, stacked_truth
from latentlab.calibration.uniformity import ecdf_band, ecdf_p_value
from latentlab.data.dataset import Dataset
from latentlab.distributions.components import GaussianComponents
from latentlab.distributions.hidden_markov_series import HiddenMarkovSeries
from latentlab.distributions.low_rank_gaussian import LowRankGaussian
from latentlab.distributions.mixture import Mixture
from latentlab.errors import ConfigError, DataError, ModelError
from latentlab.inference.density import Density
from latentlab.inference.map import MAP
from latentlab.inference.nuts import NUTS
from latentlab.inference.replications import Replications
from latentlab.inference.svi import SVI
from latentlab.inference.trajectory import Tuning
from latentlab.models.base import LatentModel, Position
from latentlab.models.factor_analysis import FactorAnalysis
from latentlab.models.gaussian_hmm import GaussianHMM
from latentlab.models.gaussian_mixture import GaussianMixture
from latentlab.models.hidden_markov import begins
from latentlab.models.ppca import PPCA
from latentlab.seeds import Seeds
from latentlab.symmetry.groups import Permutation

SAMPLER = NUTS(n_warmup=60, max_tree_depth=5)
SHORT = NUTS(n_warmup=30, max_tree_depth=5)  # a fault shows whether the chains mix or not
SOUND = PPCA(n_latent=1, mu_scale=1.0)


# -- uniformity of ranks


def counts(ranks, n_ranks):
    return (ranks[:, None] < np.arange(1, n_ranks + 1)).sum(axis=0)


@pytest.mark.chance(3e-4)
def test_the_p_value_matches_simulated_uniform_ranks(rng):
    """P(p <= level) is at most the level, and close to it for nearly continuous statistics; binomial tests at 1e-4."""
    n, n_ranks = 80, 20
    p = np.array([ecdf_p_value(counts(rng.integers(0, n_ranks + 1, n), n_ranks), n) for _ in range(3000)])
    for level in (0.01, 0.1, 0.5):
        exact = p[p <= level].max(initial=0.0)  # the largest attainable p-value up to the level
        assert binomtest(int((p <= level).sum()), len(p), exact).pvalue > 1e-4
        assert exact > 0.9 * level


@pytest.mark.parametrize(("n", "n_ranks"), [(3, 2), (4, 3)])
def test_the_p_value_matches_enumeration_of_ranks(n, n_ranks):
    every = np.stack(np.meshgrid(*[np.arange(n_ranks + 1)] * n), axis=-1).reshape(-1, n)
    p = np.array([ecdf_p_value(counts(ranks, n_ranks), n) for ranks in every])
    for value in np.unique(p.round(12)):
        assert (p <= value + 1e-9).mean() == pytest.approx(value, abs=1e-9)


@pytest.mark.chance(1e-4)
def test_the_band_covers_whole_ecdfs_at_its_level(rng):
    low, high = ecdf_band(80, 20, 0.1)
    inside = [((c >= low) & (c <= high)).all() for c in (counts(rng.integers(0, 21, 80), 20) for _ in range(3000))]
    assert 0.88 < np.mean(inside) < 0.93  # four standard errors; the level is attained within the steps of the ECDF


@pytest.mark.parametrize("shape", [(0.5, 0.5), (2.0, 2.0), (1.0, 1.6)], ids=["too narrow", "too wide", "biased"])
def test_non_uniform_ranks_are_detected(shape, rng):
    """With 600 ranks that are too wide, the largest p-value of 100 sets was 1e-9; with 200, a quarter was above 1e-4."""
    ranks = np.minimum((rng.beta(*shape, size=600) * 51).astype(int), 50)
    assert ecdf_p_value(counts(ranks, 50), 600) < 1e-4


@pytest.mark.chance(1e-3)
def test_dependence_of_draws_is_estimated_from_ranks(rng):
    """In normal AR(1) chains, the indicators that two draws of correlation r are below the truth have the correlation
    6 (1/4 + arcsin((1 + r) / 2) / (2 pi) - 1/3). The median of five is tested: one estimate is off by more in 3% of cases."""
    n, n_ranks = 16_000, 50
    for rho in (0.0, 0.5):
        found = []
        for _ in range(5):
            x = rng.normal(size=(n, n_ranks + 1))
            for i in range(1, n_ranks + 1):
                x[:, i] = rho * x[:, i - 1] + np.sqrt(1 - rho**2) * x[:, i]
            found.append(float(added_variance(rng.normal(size=(n, 1, 1)), x[:, 1:, None])[0]))
        below = 6 * (1 / 4 + np.arcsin((1 + rho ** np.arange(1, 50)) / 2) / (2 * np.pi) - 1 / 3)
        expected = 4 * below.sum() / n_ranks
        assert np.median(found) == pytest.approx(expected, abs=0.006)


def test_means_are_compared_by_welchs_test_at_the_table_level(rng, monkeypatch):
    """Compares means of chains and reference draws with SciPy; a quarter of the reference selects the functions."""
    everywhere(monkeypatch, "latentlab.calibration", "N_REFERENCE", 40)
    chains = 0.3 + rng.normal(size=(4, 6, 1)) + rng.normal(size=(4, 6, 5))
    columns = np.concatenate([rng.normal(size=(4, 40)), chains.reshape(4, 30)], axis=1)
    table = _compared(["g", *MOMENTS], columns, 6, 0.5).set_index("quantity")
    assert len(table) == 2 * 4 + 3
    center = np.median(columns[:, :10], axis=1, keepdims=True)
    v = (columns - center) / np.median(np.abs(columns[:, :10] - center), axis=1, keepdims=True)
    v = v / np.sqrt(1 + v**2)
    for name, values in (("g", v[0]), ("g, squared", v[0] ** 2), (f"g x {MOMENTS[1]}", v[0] * v[2])):
        expected = ttest_ind(values[40:].reshape(6, 5).mean(axis=1), values[10:40], equal_var=False)
        assert table.loc[name, ["z", "p"]].tolist() == pytest.approx([expected.statistic, expected.pvalue])
    assert (table.verdict == np.where(table.p < 0.5 / len(table), "fail", "pass")).all()
    assert ((table.p < 0.5) & (table.verdict == "pass")).any()


def test_p_values_of_a_table_are_adjusted_for_all_quantities(monkeypatch):
    """A p-value of half the level fails no quantity where there are more than two."""
    everywhere(monkeypatch, "latentlab.calibration", "ecdf_p_value", lambda *_: 0.0005)
    everywhere(monkeypatch, "latentlab.calibration", "added_variance", lambda true, drawn: np.zeros(drawn.shape[-1]))
    found = sbc(SOUND, SAMPLER, n_replications=3, n_units=4, n_ranks=3, progress=False)
    assert len(found.table) > 2
    assert set(found.table.verdict) == {"pass"}


def test_ranked_draws_are_thinned_until_independent(monkeypatch):
    """Draws are numbered by iteration: every second is used at first, every fourth if these are too dependent."""
    everywhere(monkeypatch, "latentlab.calibration", "MOST_THIN", 4)
    chains = SimpleNamespace(draws=lambda n, **_: np.arange(float(n))[None, :, None])
    everywhere(monkeypatch, "latentlab.calibration", "Chains", lambda *_: chains)
    everywhere(monkeypatch, "latentlab.calibration", "constrain_draws", lambda density, u: u)
    everywhere(monkeypatch, "latentlab.calibration", "added_variance", lambda *_: np.ones(1))
    seen = []
    replications = type("One", (list,), {"density": None})([0])
    _by_chains(replications, SAMPLER, None, 5, lambda u: seen.append(u.ravel().tolist()) or ([], None, None), progress=False)
    assert seen == [[1, 3, 5, 7, 9], [3, 7, 11, 15, 19]]


def test_ties_are_broken_at_random(monkeypatch):
    """A truth that equals all 3 draws has each of the ranks 0 to 3: 60 of them miss one in 1e-7 of cases."""
    ties = ["constant"], np.zeros((60, 1, 1)), np.zeros((60, 3, 1))
    everywhere(monkeypatch, "latentlab.calibration", "_by_chains", lambda *_, **__: ties)
    found = sbc(SOUND, SAMPLER, n_replications=60, n_units=3, n_ranks=3, progress=False)
    assert set(found.ranks.ravel()) == {0, 1, 2, 3}


def test_geweke_draws_new_data_in_each_sweep():
    datasets = [SOUND.simulate(np.random.default_rng(i), 3) for i in range(4)]
    replications = Replications(SOUND, datasets)
    first = replications.data["x"].clone()
    tunings = [Tuning(0.1, np.ones(replications.density.size))]
    truth = stacked_truth(SOUND, datasets)
    _, s = _sweeps(replications, {"x": "x"}, truth, tunings, 2, 4, Seeds(0), progress=False)
    assert s.shape == (4, 2, len(MOMENTS))
    assert (s[:, 0] != s[:, 1]).all()  # and a pair is looked at before x is drawn
    assert bool((replications.data["x"] != first).all())


# -- sound models


def small_check(check, **sizes):
    """Returns the check with other default sizes and the same annotations."""
    return wraps(check)(lambda *args, **options: check(*args, **options, **sizes))


@pytest.mark.slow
@pytest.mark.parametrize("model", [SOUND, FactorAnalysis(n_latent=1, mu_scale=1.0)], ids=lambda m: m.name)
def test_a_sound_model_and_sampler_pass(model, monkeypatch):
    """Uses more data sets than the tests of planted faults, and about as many chains."""
    everywhere(monkeypatch, "latentlab.calibration", "geweke", small_check(geweke, n_chains=80, n_sweeps=40))
    n_replications = 60
    for seed in (0, 1):
        found = calibrate(model, SAMPLER, n_replications=n_replications, seed=seed, progress=False)
        if found.passed:
            break
    assert found.passed, str(found)
    assert (found.sbc.table.autocorrelation <= _most_added(n_replications)).all()
    assert "all passed (overall false-alarm rate: at most 0.002)" in str(found)


MIXTURE = GaussianMixture(2, "spherical", weights_concentration=2.0, mu_scale=1.5, sigma_scale=1.0, sigma_spread=0.3)
HMM = GaussianHMM(2, "spherical", initial_concentration=0.0, mu_scale=1.5, sigma_scale=0.7, sigma_spread=0.3)


@pytest.mark.long
@pytest.mark.parametrize(("model", "n_units"), [(MIXTURE, 8), (HMM, 10)], ids=["mixture", "hidden Markov model"])
def test_sound_label_models_pass(model, n_units, monkeypatch):
    everywhere(monkeypatch, "latentlab.calibration", "MOST_THIN", 64)  # states that are hardly visited return slowly
    sampler = NUTS(n_warmup=100, max_tree_depth=5)
    ranks = sbc(model, sampler, n_replications=200, n_units=n_units, n_ranks=20, progress=False)
    assert ranks.passed, ranks.table
    assert {"share of z, rank 1", "log likelihood"} <= set(ranks.table.quantity)
    moved = geweke(model, sampler, n_chains=100, n_sweeps=40, n_units=n_units, progress=False)
    assert moved.passed, moved.table


def spherical(model, n_features):
    """The sites of a spherical mixture, by their priors."""
    K = model.n_components
    weights = pyro.sample("weights", dist.Dirichlet(model.concentration))
    mu = pyro.sample("mu", dist.Normal(torch.zeros(K, n_features), model.mu_scale).to_event(2))
    sigma = pyro.sample("sigma", dist.LogNormal(torch.log(model.emission.median(n_features)), model.sigma_spread).to_event(1))
    return weights, mu, sigma


class WeightsIgnored(GaussianMixture):
    def model(self, x, mask=None):
        weights, mu, sigma = spherical(self, x.shape[1])
        components = self.emission.components({"mu": mu, "sigma": sigma})
        with pyro.plate("unit", len(x)):
            pyro.sample("x", Mixture(torch.log(torch.full_like(weights, 1 / len(weights))), components, mask), obs=x)


class SpreadSquared(GaussianMixture):
    def model(self, x, mask=None):
        weights, mu, sigma = spherical(self, x.shape[1])
        components = self.emission.components({"mu": mu, "sigma": sigma**2})
        with pyro.plate("unit", len(x)):
            pyro.sample("x", Mixture(torch.log(weights), components, mask), obs=x)


def spherical_chain(model, n_features):
    """The sites of a spherical hidden Markov model, by their priors."""
    K = model.n_states
    initial = pyro.deterministic("initial", torch.full((K,), 1 / K, dtype=torch.float64))
    transition = pyro.sample("transition", dist.Dirichlet(torch.ones(K, K, dtype=torch.float64)).to_event(1))
    mu = pyro.sample("mu", dist.Normal(torch.zeros(K, n_features), model.mu_scale).to_event(2))
    sigma = pyro.sample("sigma", dist.LogNormal(torch.log(model.emission.median(n_features)), model.sigma_spread).to_event(1))
    return initial, transition, mu, sigma


def series(initial, transition, mu, sigma, n_steps):
    starts = begins(None, n_steps)
    return HiddenMarkovSeries(torch.log(initial), torch.log(transition), GaussianComponents(mu, sigma[:, None]), starts, None)


class TransitionsIgnored(GaussianHMM):
    def model(self, x, mask=None, sequence=None):
        initial, transition, mu, sigma = spherical_chain(self, x.shape[1])
        with pyro.plate("unit", len(x)):
            pyro.sample("x", series(initial, torch.full_like(transition, 1 / self.n_states), mu, sigma, len(x)), obs=x)


class StatesSpreadSquared(GaussianHMM):
    def model(self, x, mask=None, sequence=None):
        initial, transition, mu, sigma = spherical_chain(self, x.shape[1])
        with pyro.plate("unit", len(x)):
            pyro.sample("x", series(initial, transition, mu, sigma**2, len(x)), obs=x)


@pytest.mark.long
@pytest.mark.parametrize(
    ("broken", "sound", "check"),
    [
        (WeightsIgnored, MIXTURE, geweke),
        (SpreadSquared, MIXTURE, sbc),
        (TransitionsIgnored, HMM, geweke),
        (StatesSpreadSquared, HMM, sbc),
    ],
    ids=lambda one: getattr(one, "__name__", ""),
)
def test_planted_faults_in_label_models_are_detected(broken, sound, check, monkeypatch):
    everywhere(monkeypatch, "latentlab.calibration", "MOST_THIN", 4)
    options = {"n_chains": 400, "n_sweeps": 40} if check is geweke else {"n_replications": 100, "n_ranks": 20}
    model = broken(**sound.hyperparameters())
    model.simulate = sound.simulate
    assert not check(model, NUTS(n_warmup=100, max_tree_depth=5), n_units=10, progress=False, **options).passed


@pytest.mark.long
@pytest.mark.parametrize(
    "model",
    [
        PPCA(n_latent=2, mu_scale=1.0),
        FactorAnalysis(n_latent=1, mu_scale=1.0),
        PPCA(n_latent=1, mu_scale=1.0, marginalize=False),
        MIXTURE,
        HMM,
    ],
    ids=["ppca", "factor_analysis", "explicit positions", "mixture", "hidden Markov model"],
)
def test_a_sound_model_and_sampler_pass_many_times(model):
    ranks = sbc(model, NUTS(n_warmup=300), n_replications=1000)
    assert ranks.passed, ranks.table
    moved = geweke(model, NUTS(n_warmup=300), n_chains=500, n_sweeps=100)
    assert moved.passed, moved.table


# -- planted faults

JOINT = Density.log_joint


def total(terms):
    return torch.stack([*terms.values()]).sum()


def likelihood_dropped(self, values, arrays=None, point_scale=1.0):
    return total(self.log_prior(values, arrays))


def likelihood_twice(self, values, arrays=None, point_scale=1.0):
    return JOINT(self, values, arrays, 2.0)


def first_unit_only(self, values, arrays=None, point_scale=1.0):
    if not hasattr(self, "observed"):  # while the density is being made
        return JOINT(self, values, arrays)
    return total(self.log_prior(values, arrays)) + self.log_likelihood(values, arrays)[0]


class VarianceForSd(PPCA):
    def model(self, x, mask=None):
        n, d = x.shape
        W = pyro.sample("W", dist.Normal(torch.zeros(d, 1), 1.0).to_event(2))
        mu = pyro.sample("mu", dist.Normal(torch.zeros(d), 1.0).to_event(1))
        sigma = pyro.sample("sigma", dist.HalfNormal(torch.ones(())))
        with pyro.plate("unit", n):
            pyro.sample("x", LowRankGaussian(mu, W, sigma.sqrt(), mask), obs=x)


def doubled():
    model = PPCA(n_latent=1, W_scale=2.0, mu_scale=2.0, sigma_scale=2.0)
    model.simulate = SOUND.simulate
    return model


FAULTS = {
    "likelihood dropped": (SOUND, {"log_joint": likelihood_dropped}, "log likelihood", "mu[0] x mean of x"),
    "likelihood twice": (SOUND, {"log_joint": likelihood_twice}, "log likelihood", "sigma"),
    "prior sds doubled": (doubled(), {}, "log prior", "mean of x^2"),
    "variance for sd": (VarianceForSd(n_latent=1, mu_scale=1.0), {}, "sigma", "mean of steps^2, squared"),
    "no Jacobian": (SOUND, {"log_jacobian": lambda self, u: u.new_zeros(())}, "", "sigma"),
    "first unit only": (SOUND, {"log_joint": first_unit_only}, "log likelihood", "mu[0] x mean of x"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_detected(fault, monkeypatch):
    model, patches, by_ranks, by_moves = FAULTS[fault]
    everywhere(monkeypatch, "latentlab.calibration", "MOST_THIN", 4)
    for name, function in patches.items():
        monkeypatch.setattr(Density, name, function)
    if by_ranks:
        ranks = sbc(model, SHORT, n_replications=50, n_ranks=20, progress=False)
        assert not ranks.passed
        assert verdict(ranks.table, by_ranks) == "fail"
    n_units = {"no Jacobian": 3, "first unit only": 10}.get(fault, 6)
    moved = geweke(model, SHORT, n_chains=100, n_sweeps=40, n_units=n_units, progress=False)
    assert not moved.passed
    assert verdict(moved.table, by_moves) == "fail"


def test_positions_drawn_without_the_data_are_detected(monkeypatch):
    def blind(self, arrays, **values):
        return dist.Normal(torch.zeros(len(arrays["x"]), self.n_latent), 1.0).to_event(1)

    monkeypatch.setattr(PPCA, "latents", blind)
    everywhere(monkeypatch, "latentlab.calibration", "MOST_THIN", 4)
    ranks = sbc(SOUND, SHORT, n_replications=50, n_ranks=20, progress=False)
    assert ranks.table.set_index("quantity").verdict.drop("|z^T x|^2").ne("fail").sum() > 5
    assert verdict(ranks.table, "|z^T x|^2") == "fail"


def verdict(table, quantity):
    return table.set_index("quantity").verdict[quantity]


def test_a_slowly_mixing_chain_is_reported_as_too_dependent(monkeypatch):
    everywhere(monkeypatch, "latentlab.calibration", "MOST_THIN", 4)
    ranks = sbc(SOUND, NUTS(n_warmup=40, max_tree_depth=1), n_replications=60, progress=False)
    assert not ranks.passed
    assert "autocorrelated" in set(ranks.table.verdict)


# -- labels, and other methods


class TwoGroups(LatentModel):
    """Two groups of equal weight on the line: c_k ~ N(0, 2), z_n in {0, 1}, x_n ~ N(c_{z_n}, 0.5)."""

    name = "two_groups"
    dims = {"c": ("component",), "z": ("unit",)}
    position = Position("z", kind="discrete")
    symmetry = Permutation("component")
    methods = ("nuts", "svi", "map")

    def model(self, x):
        c = pyro.sample("c", dist.Normal(torch.zeros(2), 2.0).to_event(1))
        with pyro.plate("unit", len(x)):
            groups = dist.Normal(c, 0.5).expand([len(x), 2])
            mixed = dist.MixtureSameFamily(dist.Categorical(torch.full((len(x), 2), 0.5)), groups)
            pyro.sample("x", mixed, obs=x[:, 0])

    def latents(self, arrays, **values):
        return dist.Categorical(logits=dist.Normal(values["c"], 0.5).log_prob(arrays["x"]))

    def simulate(self, rng, n_units):
        c, z = 2.0 * rng.standard_normal(2), rng.integers(0, 2, n_units)
        x = (c[z] + 0.5 * rng.standard_normal(n_units))[:, None]
        dataset = Dataset({"x": x}, dims={"x": ("unit", "feature")}, name="two groups")
        return replace(dataset, truth={"c": c, "z": z}, truth_dims=dict(self.dims))


class WrongLabels(TwoGroups):
    def latents(self, arrays, **values):
        return dist.Categorical(logits=torch.zeros(len(arrays["x"]), 2))


def test_labels_are_ranked_by_label_free_quantities():
    ranks = sbc(TwoGroups(), SAMPLER, n_replications=60, n_units=8, n_ranks=20, progress=False)
    assert {"share of z, rank 1", "|z^T x|^2"} <= set(ranks.table.quantity)
    assert ranks.passed, ranks.table
    wrong = sbc(WrongLabels(), SAMPLER, n_replications=60, n_units=8, n_ranks=20, progress=False)
    assert verdict(wrong.table, "|z^T x|^2") == "fail"
    assert verdict(wrong.table, "log likelihood") != "fail"
    moved = geweke(TwoGroups(), SAMPLER, n_chains=60, n_sweeps=30, progress=False)  # whose data are a column of the array
    assert moved.passed, moved.table


def test_other_methods_run_on_one_data_set_at_a_time():
    """A guide after two steps is far from the posterior, so that the checks fail."""
    few_steps = SVI(guide="mean_field", n_steps=2, n_draws=60)
    found = calibrate(TwoGroups(), few_steps, n_replications=20, n_units=8, progress=False)
    assert found.geweke is None
    assert not found.passed
    assert "joint-distribution test was not run: it requires the method nuts" in str(found)


def test_unsupported_models_are_refused_by_the_checks(monkeypatch):
    with pytest.raises(ModelError, match="got 'map', which gives a point estimate"):
        sbc(SOUND, MAP())
    with pytest.raises(ModelError, match="`method` must be NUTS"):
        geweke(SOUND, SVI())
    with pytest.raises(ConfigError, match="`n_replications` must be a whole number of at least 2; got 1"):
        sbc(SOUND, SAMPLER, n_replications=1)
    with pytest.raises(ModelError, match="must be at least 50, the number of draws for each rank; got 40"):
        sbc(TwoGroups(), SVI(guide="mean_field", n_steps=2, n_draws=40), n_replications=2)
    bare = PPCA(n_latent=1)
    bare.simulate = lambda rng, n_units: replace(SOUND.simulate(rng, n_units), truth={"W": np.zeros((10, 1))}, truth_dims={})
    with pytest.raises(ModelError, match="must return true values of all sites; missing: mu, sigma, z"):
        sbc(bare, SAMPLER)
    monkeypatch.setattr(PPCA, "simulate", LatentModel.simulate)
    with pytest.raises(ModelError, match="it has no `simulate`"):
        sbc(SOUND, SAMPLER)


@pytest.mark.parametrize("level", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("check", [sbc, geweke])
def test_levels_outside_0_to_1_are_refused(check, level):
    with pytest.raises(ConfigError, match="`level` must be a finite number above 0 and below 1"):
        check(SOUND, SAMPLER, level=level)


@pytest.mark.parametrize("n_units", [0, -1, 2.5, "a", True])
def test_calibrate_checks_the_number_of_units_first(n_units):
    with pytest.raises(ConfigError, match="`n_units` must be a whole number of at least 1"):
        calibrate(SOUND, SAMPLER, n_units=n_units)


def test_data_sets_of_different_shapes_are_refused():
    class Growing(TwoGroups):
        sizes = itertools.count(6)

        def simulate(self, rng, n_units):
            return super().simulate(rng, next(self.sizes))

    with pytest.raises(DataError, match="must return data sets of the same shape; got"):
        sbc(Growing(), SAMPLER, n_replications=2, n_units=6)


def test_calibrate_checks_gewekes_requirements_first(monkeypatch):
    class Renamed(TwoGroups):
        def model(self, x):
            c = pyro.sample("c", dist.Normal(torch.zeros(2), 2.0).to_event(1))
            with pyro.plate("unit", len(x)):
                pyro.sample("y", dist.Normal(c.sum(), 1.0), obs=x[:, 0])

    monkeypatch.setattr(sys.modules["latentlab.calibration.calibrate"], "sbc", lambda *_, **__: pytest.fail("it ran"))
    with pytest.raises(ModelError, match="must have the name of an array"):
        calibrate(Renamed(), SAMPLER, n_units=8, progress=False)


def test_geweke_refuses_sites_that_are_not_data_arrays():
    class Renamed(TwoGroups):
        def model(self, x):
            c = pyro.sample("c", dist.Normal(torch.zeros(2), 2.0).to_event(1))
            with pyro.plate("unit", len(x)):
                pyro.sample("y", dist.Normal(c.sum(), 1.0), obs=x[:, 0])

    class Half(TwoGroups):
        def model(self, x):
            super().model(x[: len(x) // 2])

    with pytest.raises(ModelError, match="must have the name of an array"):
        geweke(Renamed(), SAMPLER, n_chains=2)
    with pytest.raises(ModelError, match=r"the site 'x' must have the shape \(4, 1\) of its array; got \(2,\)"):
        geweke(Half(), SAMPLER, n_chains=3, n_units=4)


# -- the same again, nothing left behind, and the command


def test_calibration_tables_are_reproducible(monkeypatch):
    everywhere(monkeypatch, "latentlab.calibration", "N_REFERENCE", 100)
    everywhere(monkeypatch, "latentlab.calibration", "MOST_THIN", 2)
    state = torch.get_rng_state(), str(np.random.get_state()), random.getstate(), torch.get_default_dtype()
    a, b = (sbc(SOUND, SAMPLER, n_replications=6, n_units=4, n_ranks=5, seed=5, progress=False) for _ in range(2))
    pd.testing.assert_frame_equal(a.table, b.table)
    a, b = (geweke(SOUND, SAMPLER, n_chains=5, n_sweeps=4, seed=5, progress=False) for _ in range(2))
    pd.testing.assert_frame_equal(a.table, b.table)
    after = torch.get_rng_state(), str(np.random.get_state()), random.getstate(), torch.get_default_dtype()
    assert torch.equal(state[0], after[0])
    assert state[1:] == after[1:]


CONFIG = """\
name: toy
dataset: {name: iris}
model: {name: ppca, n_latent: 1, mu_scale: 1.0}
inference: {name: nuts, n_warmup: 60, max_tree_depth: 5}
"""


def test_the_command_prints_both_tables_and_sets_its_exit_code(tmp_path, capsys, monkeypatch):
    (tmp_path / "toy.yaml").write_text(CONFIG)
    monkeypatch.chdir(tmp_path)
    everywhere(monkeypatch, "latentlab.calibration", "sbc", small_check(sbc, n_ranks=10))
    everywhere(monkeypatch, "latentlab.calibration", "geweke", small_check(geweke, n_chains=20, n_sweeps=10))
    command = ["calibrate", "toy.yaml", "seed=3", "--n-replications", "12", "--n-units", "4", "--quiet"]
    assert cli.main(command) == 0
    printed = capsys.readouterr().out
    assert "12 data sets" in printed
    assert "Geweke" in printed
    assert "overall false-alarm rate: at most 0.002" in printed
    assert [path.name for path in tmp_path.iterdir()] == ["toy.yaml"]
    monkeypatch.setattr(Density, "log_joint", likelihood_dropped)
    everywhere(monkeypatch, "latentlab.calibration", "MOST_THIN", 2)
    assert cli.main([*command, "--out", "found"]) == 1
    assert "FAILED" in capsys.readouterr().out
    table = pd.read_csv(tmp_path / "found" / "calibration.csv")
    assert set(table.check) == {"sbc", "geweke"}
    assert (tmp_path / "found" / "calibration.png").read_bytes()[:4] == b"\x89PNG"


def test_the_command_refuses_unsuitable_configs_in_one_line(tmp_path, capsys):
    (tmp_path / "toy.yaml").write_text(CONFIG)
    assert cli.main(["calibrate", str(tmp_path / "toy.yaml"), "inference={name: map}"]) == 2
    assert "gives a point" in capsys.readouterr().err
    for word, message in (
        (
            "executor=process",
            "executor: must be null for calibrate, which fits in one process; got 'process'; append executor=null.",
        ),
        ("memory=2GB", "memory: must be null for calibrate, which fits in one process; got 2000000000; append memory=null."),
    ):
        assert cli.main(["calibrate", str(tmp_path / "toy.yaml"), word]) == 2
        assert capsys.readouterr().err == f"latentlab: error: {message}\n"
    (tmp_path / "toy.yaml").write_text(f"{CONFIG}executor: process\n")
    words = ["calibrate", str(tmp_path / "toy.yaml"), "executor=null", "inference={name: map}"]
    assert cli.main(words) == 2
    assert "gives a point" in capsys.readouterr().err
