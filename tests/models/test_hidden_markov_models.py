"""Tests of hidden Markov models against enumeration, hmmlearn and a reference."""

import itertools
import json
import re
import time
from dataclasses import replace

import hmmlearn.hmm
import numpy as np
import pytest
import torch
from scipy import stats
from scipy.special import gammaln, logsumexp

from latentlab.data.dataset import Dataset
from latentlab.distributions import hidden_markov as exact_chains
from latentlab.errors import ConfigError, DataError
from latentlab.fit import fit
from latentlab.inference.arrays import tensors
from latentlab.inference.density import Density
from latentlab.inference.exact import Exact
from latentlab.inference.joint import log_joint
from latentlab.inference.nuts import NUTS
from latentlab.models import hidden_markov
from latentlab.models.count_hmms import CategoricalHMM, PoissonHMM
from latentlab.models.gaussian_hmm import GaussianHMM
from latentlab.results.convergence import mcse_mean, mcse_sd
from latentlab.seeds import double

SEED = 20_240_229
FALSE_ALARM = 1e-5
"""False-alarm rate of one two-sided test against Monte Carlo, over all its quantities."""


def series(x, lengths=None):
    x = np.asarray(x, dtype=float)
    lengths = [len(x)] if lengths is None else lengths
    coords = {
        "sequence": np.repeat([f"s{i}" for i in range(len(lengths))], lengths),
        "time": np.concatenate([np.arange(n) for n in lengths]),
    }
    return Dataset({"x": x}, dims={"x": ("unit", "feature")}, coords=coords)


def limit(n):
    return stats.norm.isf(FALSE_ALARM / 2 / n)


def with_missing(dataset, rng, share=0.25, steps=(1,)):
    x = dataset.x.copy()
    x[rng.random(x.shape) < share] = np.nan
    x[list(steps)] = np.nan
    return replace(dataset, arrays={"x": x})


def log_emission(model, truth, x):
    """log p(observed entries of x_t | k) `(unit, state)` by scipy."""
    K = model.n_states
    found = np.zeros((len(x), K))
    for t, k in itertools.product(range(len(x)), range(K)):
        o = np.flatnonzero(~np.isnan(x[t]))
        if "rate" in truth:
            found[t, k] = stats.poisson(truth["rate"][k, o]).logpmf(x[t, o]).sum()
        elif "probability" in truth:
            found[t, k] = sum(np.log(truth["probability"][k, d, int(x[t, d])]) for d in o)
        elif len(o):
            tied = model.covariance == "tied"
            scale = np.broadcast_to(truth["sigma"] if tied else truth["sigma"][k], x.shape[1])
            lower = np.eye(x.shape[1]) if "corr" not in truth else truth["corr"] if tied else truth["corr"][k]
            covariance = np.outer(scale, scale) * (lower @ lower.T)
            found[t, k] = stats.multivariate_normal(truth["mu"][k][o], covariance[np.ix_(o, o)]).logpdf(x[t, o])
    return found


def log_prior(model, truth):
    """log prior of the sites by scipy (no correlations here)."""
    total = 0.0
    if model.left_to_right:
        total += (
            stats.beta(model.transition_concentration + model.sticky, model.transition_concentration).logpdf(truth["stay"]).sum()
        )
    elif model.n_states > 1:
        if model.initial_concentration:
            total += stats.dirichlet(np.full(model.n_states, model.initial_concentration)).logpdf(truth["initial"])
        for k, row in enumerate(truth["transition"]):
            counts = np.full(model.n_states, model.transition_concentration) + model.sticky * (np.arange(model.n_states) == k)
            constant = gammaln(counts.sum()) - gammaln(counts).sum()
            total += constant + ((counts - 1) * np.log(row)).sum()
    if "rate" in truth:
        return total + stats.gamma(model.rate_shape, scale=model.rate_mean / model.rate_shape).logpdf(truth["rate"]).sum()
    if "probability" in truth:
        a, C = model.probability_concentration, model.n_categories
        each = gammaln(C * a) - C * gammaln(a) + (a - 1) * np.log(truth["probability"]).sum(-1)
        return total + each.sum()
    loc = np.broadcast_to(model.mu_loc, model.n_states)[:, None]
    total += stats.norm(loc, model.mu_scale).logpdf(truth["mu"]).sum()
    if model.sigma_spread == 0:
        return total
    return total + stats.lognorm(model.sigma_spread, scale=model.sigma_scale).logpdf(truth["sigma"]).sum()


MODELS = [
    GaussianHMM(2, sticky=3.0, transition_concentration=0.7),
    GaussianHMM(3, covariance="spherical", initial_concentration=0.0),
    GaussianHMM(3, left_to_right=True, sticky=2.0),
    GaussianHMM(2, mu_loc=[-1.0, 1.0], mu_scale=0.5, sigma_scale=1.0, sigma_spread=0.0),
    CategoricalHMM(2, n_categories=3),
    CategoricalHMM(3, n_categories=2, left_to_right=True),
    PoissonHMM(2, rate_shape=2.0),
    PoissonHMM(1),
]


@pytest.mark.parametrize("model", MODELS, ids=repr)
@pytest.mark.parametrize("missing", [False, True])
def test_joint_of_path_and_data_and_its_sum_match_scipy(model, missing):
    """Two sequences of 4 and 2 steps; each begins with the initial probabilities."""
    dataset = model.simulate(np.random.default_rng(SEED), 6, n_features=2)
    assert dataset.coords["sequence"].tolist() == ["s0"] * 4 + ["s1"] * 2
    truth = dataset.truth
    dataset = with_missing(dataset, np.random.default_rng(1)) if missing else dataset
    emission = log_emission(model, truth, dataset.x)
    with np.errstate(divide="ignore"):
        pi, A = np.log(truth["initial"]), np.log(truth["transition"])

    def path_and_data(path):
        steps = [pi[z] if t in (0, 4) else A[path[t - 1], z] for t, z in enumerate(path)]
        return sum(steps) + sum(emission[t, z] for t, z in enumerate(path))

    given = {"initial", "transition"} if model.left_to_right or model.n_states == 1 else set()
    given |= {"initial"} if model.initial_concentration == 0 else set()
    given |= {"sigma"} if getattr(model, "sigma_spread", 1) == 0 else set()
    sites = {name: truth[name] for name in model.dims if name not in given | {"z"}}
    every = [path_and_data(path) for path in itertools.product(range(model.n_states), repeat=6)]
    np.testing.assert_allclose(log_joint(model, dataset, sites), log_prior(model, truth) + logsumexp(every), rtol=1e-9)
    z = np.asarray(truth["z"]).astype(int)
    expected = log_prior(model, truth) + path_and_data(z)
    np.testing.assert_allclose(log_joint(model, dataset, sites | {"z": z}), expected, rtol=1e-9)
    # units score by what came before them, and what is left out by all others of its sequence (by sequences here)
    arrays = tensors(model, dataset)
    values = {name: torch.tensor(np.array(truth[name])) for name in model.dims if name != "z"}
    parts = [paths_of(model.n_states, units) for units in (range(4), range(4, 6))]
    of = [logsumexp([sum_of(path, pi, A, emission) for path in paths]) for paths in parts]
    np.testing.assert_allclose(model.leave_one_out(arrays, **values).numpy(), of, rtol=1e-9, atol=1e-12)


def paths_of(n_states, units):
    return [list(zip(units, path, strict=True)) for path in itertools.product(range(n_states), repeat=len(units))]


def sum_of(steps, pi, A, emission):
    total, before = 0.0, None
    for t, z in steps:
        total += (pi[z] if before is None else A[before, z]) + emission[t, z]
        before = z
    return total


@pytest.mark.parametrize("model", MODELS[:3], ids=repr)
def test_the_density_of_a_step_given_all_others_matches_enumeration(model):
    """p(x_t | x_-t) = p(x) / p(x without step t), by sums over paths; differs from the prediction given the past."""
    whole = model.simulate(np.random.default_rng(SEED), 5, n_features=2)
    truth = whole.truth
    emission = log_emission(model, truth, whole.x)
    with np.errstate(divide="ignore"):
        pi, A = np.log(truth["initial"]), np.log(truth["transition"])

    def level(emission):
        return logsumexp([sum_of(path, pi, A, emission) for path in paths_of(model.n_states, range(5))])

    def without(t):
        hidden = emission.copy()
        hidden[t] = 0
        return hidden

    values = {name: torch.tensor(np.array(truth[name])) for name in model.dims if name != "z"}
    arrays = tensors(model, whole)
    expected = [level(emission) - level(without(t)) for t in range(5)]
    found = model.leave_one_out(arrays, **values).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-10)
    past = model._series(arrays, values).log_prob(arrays["x"]).numpy()
    assert np.abs(past - found).max() > 1e-3
    np.testing.assert_allclose(past[-1], found[-1], rtol=1e-8)  # the last step has no others than those before it


# -- hmmlearn


def hmmlearn_twin(model, truth, n_iter=0):
    kind = {"gaussian_hmm": "GaussianHMM", "categorical_hmm": "CategoricalHMM", "poisson_hmm": "PoissonHMM"}[model.name]
    options = {}
    if kind == "GaussianHMM":
        theirs = {"diagonal": "diag", "full": "full", "tied": "tied", "spherical": "spherical"}[model.covariance]
        # its `fit` is a MAP unless these priors are taken away
        options = {"covariance_type": theirs, "covars_prior": 0.0, "covars_weight": 0.0, "min_covar": 0.0}
        options |= {"means_weight": 0.0}
    twin = getattr(hmmlearn.hmm, kind)(
        model.n_states, init_params="", n_iter=max(1, n_iter), tol=1e-11, implementation="log", **options
    )
    twin.startprob_, twin.transmat_ = np.array(truth["initial"]), np.array(truth["transition"])
    if kind == "CategoricalHMM":
        twin.emissionprob_ = np.array(truth["probability"][:, 0])
        twin.n_features = model.n_categories
    elif kind == "PoissonHMM":
        twin.lambdas_ = np.array(truth["rate"])
    else:
        twin.means_ = np.array(truth["mu"])
        sigma = np.array(truth["sigma"])
        if "corr" in truth:
            lower = sigma[..., None] * np.array(truth["corr"])
            twin.covars_ = lower @ lower.swapaxes(-1, -2)
        else:
            twin.covars_ = sigma**2
    return twin


TWINS = [
    (GaussianHMM(3), 2),
    (GaussianHMM(2, covariance="full"), 2),
    (GaussianHMM(2, covariance="tied"), 2),
    (CategoricalHMM(3, n_categories=4), 1),
    (PoissonHMM(2), 2),
]


@pytest.mark.parametrize(("model", "d"), TWINS, ids=repr)
def test_scores_smoothing_and_viterbi_match_hmmlearn(model, d):
    dataset = model.simulate(np.random.default_rng(2), 60, n_features=d)
    lengths = [40, 20]
    twin = hmmlearn_twin(model, dataset.truth)
    x = dataset.x if model.name == "gaussian_hmm" else dataset.x.astype(int)
    arrays = tensors(model, dataset)
    values = {name: torch.tensor(np.array(dataset.truth[name])) for name in model.dims if name != "z"}
    found = model._series(arrays, values)
    assert float(found.log_prob_sum(arrays["x"])) == pytest.approx(twin.score(x, lengths), rel=1e-8)
    one, two = twin.score(x[:40]), twin.score(x[40:])
    np.testing.assert_allclose(model.leave_one_out(arrays, **values).numpy(), [one, two], rtol=1e-8)
    path = model.latents(arrays, **values)
    np.testing.assert_allclose(path.probs.numpy(), twin.predict_proba(x, lengths), atol=1e-8)
    np.testing.assert_array_equal(path.mode.numpy(), twin.predict(x, lengths))
    # one series of 60 steps is something else
    assert abs(twin.score(x) - twin.score(x, lengths)) > 1e-3


def with_start(model, **values):
    """Returns the model with given starting values."""

    class FixedStart(type(model)):
        def initialize(self, arrays, rng):
            return {name: torch.from_numpy(np.array(value)) for name, value in values.items()}

    return FixedStart(**model.hyperparameters())


@pytest.mark.parametrize(("model", "d"), TWINS, ids=repr)
def test_baum_welch_reaches_hmmlearns_likelihood(model, d):
    """Both begin at the same start; the likelihood never decreases."""
    dataset = model.simulate(np.random.default_rng(2), 150, n_features=d)
    truth = {name: dataset.truth[name] for name in model.dims if name != "z"}
    ours = with_start(model, **truth).maximum_likelihood(tensors(model, dataset), np.random.default_rng(0))
    assert np.diff(ours.trace).min() > -1e-9 * abs(ours.trace[-1])
    assert ours.gradient < 1e-5
    x = dataset.x if model.name == "gaussian_hmm" else dataset.x.astype(int)
    twin = hmmlearn_twin(model, truth, n_iter=3000)
    twin.fit(x, [100, 50])
    assert ours.trace[-1] / 150 == pytest.approx(twin.score(x, [100, 50]) / 150, abs=2e-6)


@pytest.mark.parametrize("model", [GaussianHMM(2), GaussianHMM(2, covariance="full"), PoissonHMM(2), CategoricalHMM(2, 3)])
def test_baum_welch_with_missing_entries_never_decreases_likelihood(model):
    dataset = with_missing(model.simulate(np.random.default_rng(5), 80, n_features=3), np.random.default_rng(1), steps=(0, 7, 53))
    found = model.maximum_likelihood(tensors(model, dataset), np.random.default_rng(0))
    assert np.diff(found.trace).min() > -1e-9 * abs(found.trace[-1])
    assert found.gradient < 1e-5
    again = model._series(tensors(model, dataset), {n: torch.from_numpy(v) for n, v in found.values.items()})
    assert float(again.log_prob_sum(torch.tensor(np.nan_to_num(dataset.x)))) == pytest.approx(found.trace[-1], rel=1e-9)


def test_a_baum_welch_step_matches_expected_counts(monkeypatch):
    """Compares initial probabilities, transitions and means with expected counts over two sequences."""

    def captured_step(step, *_, **__):
        steps.append(step)
        raise KeyboardInterrupt

    steps, model = [], GaussianHMM(2)
    dataset = model.simulate(np.random.default_rng(0), 12)
    arrays = tensors(model, dataset)
    monkeypatch.setattr(hidden_markov, "climb", captured_step)
    with pytest.raises(KeyboardInterrupt):
        model.maximum_likelihood(arrays, np.random.default_rng(0))
    values = {name: torch.tensor(dataset.truth[name]) for name in ("initial", "transition", "mu", "sigma")}
    x = arrays["x"]
    loc, scale = x.mean(0), x.std(0, correction=0)  # the step is taken in units of the columns' spread
    level, after = steps[0]({**values, "mu": (values["mu"] - loc) / scale, "sigma": values["sigma"] / scale})
    chain = model._series(arrays, values).chain(arrays["x"])
    smoothed, pairs = exact_chains.smoothed(*chain), exact_chains.pair_marginals(*chain).sum(0)
    assert level - len(x) * float(torch.log(scale).sum()) == pytest.approx(float(exact_chains.log_likelihood(*chain)))
    torch.testing.assert_close(after["initial"], smoothed[[0, 8]].mean(0))
    torch.testing.assert_close(after["transition"], pairs / pairs.sum(1, keepdim=True))
    torch.testing.assert_close(after["mu"] * scale + loc, smoothed.mT @ x / smoothed.sum(0)[:, None])


def test_starting_transitions_are_counted_from_rows_to_columns():
    """Two sequences of well separated cyclic states, with 8 and 3 transitions and pseudo-counts of 0.1."""
    x = np.r_[np.tile([0.0, 10.0, 20.0], 3), [10.0, 20.0, 0.0, 10.0]][:, None]
    dataset = series(x, [9, 4])
    model = GaussianHMM(3)
    start = model.initialize(tensors(model, dataset), np.random.default_rng(0))
    low, middle, high = np.argsort(start["mu"][:, 0].numpy())
    counts = np.full((3, 3), 0.1)
    counts[[low, middle, high], [middle, high, low]] += [4, 4, 3]
    np.testing.assert_allclose(start["transition"], counts / counts.sum(axis=1, keepdims=True))


# -- left to right


def test_forbidden_transitions_stay_forbidden_with_finite_gradients():
    model = GaussianHMM(3, left_to_right=True)
    dataset = model.simulate(np.random.default_rng(3), 30, n_features=1)
    density = Density(model, tensors(model, dataset), dataset.array_dims)
    for seed in range(5):
        u = torch.randn(density.size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * 2
        value, gradient = density.eager_value_and_grad(u)
        assert torch.isfinite(value)
        assert torch.isfinite(gradient).all()
    found = fit(model, dataset, NUTS(n_chains=2, n_warmup=60, n_draws=40), seed=0, progress=False)
    A, z = found.sites()["transition"], found.sites()["z"]
    forbidden = np.array([[False, False, True], [True, False, False], [True, True, False]])
    assert (A[..., forbidden] == 0).all()
    assert (A[..., 2, 2] == 1).all()
    np.testing.assert_allclose(A.sum(-1), 1, rtol=1e-12)
    starts = np.flatnonzero(dataset.coords["time"] == 0)
    assert (z[..., starts] == 0).all()
    steps = np.diff(z, axis=-1)[..., np.setdiff1d(np.arange(29), starts - 1)]
    assert set(np.unique(steps)) <= {0, 1}
    exact = model.maximum_likelihood(tensors(model, dataset), np.random.default_rng(0))
    assert (exact.values["transition"][forbidden] == 0).all()
    np.testing.assert_array_equal(np.diagonal(exact.values["transition"])[:-1], exact.values["stay"])


# -- the reference


@pytest.fixture(scope="module")
def hmm_example(references):
    folder = references / "hmm_example"
    read = {name: json.loads((folder / f"{name}.json").read_text()) for name in ("data", "log_density", "reference")}
    return series(np.array(read["data"]["y"])[:, None]), read["log_density"]["points"], read["reference"]["params"]


EXAMPLE = {"mu_loc": [3.0, 10.0], "mu_scale": 1.0, "sigma_scale": 1.0, "sigma_spread": 0.0, "initial_concentration": 0.0}


def test_hmm_log_densities_match_the_reference_up_to_a_constant(hmm_example):
    """The constant is log 2: the reference gives each first state weight 1, and the model probability 1/2."""
    dataset, points, _ = hmm_example
    off = []
    for point in points:
        p = point["params"]
        sites = {"transition": np.array([p["theta1"], p["theta2"]]), "mu": np.array(p["mu"])[:, None]}
        off.append(log_joint(GaussianHMM(2, **EXAMPLE), dataset, sites) - point["log_density"])
    assert np.ptp(off) < 1e-6
    assert off[0] == pytest.approx(-np.log(2), abs=1e-6)


@pytest.mark.slow
def test_hmm_by_nuts_matches_the_reference(hmm_example):
    """Means and sds, each within its Monte Carlo error, two-sided at 1e-4 over all twelve."""
    dataset, _, reference = hmm_example
    found = fit(GaussianHMM(2, **EXAMPLE), dataset, NUTS(n_chains=4, n_warmup=300, n_draws=750), seed=1, progress=False)
    assert found.converged, found.diagnostics().query("verdict == 'fail'")
    sites = found.sites()
    of = {f"mu[{k + 1}]": sites["mu"][..., k, 0] for k in range(2)}
    of |= {f"theta{k + 1}[{j + 1}]": sites["transition"][..., k, j] for k in range(2) for j in range(2)}
    assert set(of) == set(reference)
    for name, x in of.items():
        ref = reference[name]
        assert abs(x.mean() - ref["mean"]) < limit(12) * np.hypot(mcse_mean(x), ref["mcse_mean"]), name
        assert abs(x.std(ddof=1) - ref["sd"]) < limit(12) * np.hypot(mcse_sd(x), ref["sd"] / np.sqrt(20_000)), name


# -- wrong modes


def test_chains_in_different_modes_are_flagged_and_not_averaged():
    """Three groups and two states with fixed sd: either 0 and 5 or -5 and 0 are merged."""
    rng = np.random.default_rng(6)
    level = np.repeat(np.tile([-6.0, 0.0, 6.0], 4), 5)
    dataset = series(level[:, None] + 0.3 * rng.standard_normal((60, 1)))

    class SeparateModes(GaussianHMM):
        jitter = 0.05

        def initialize(self, arrays, rng):
            merged = int(rng.integers(2))
            z = torch.from_numpy((level > -3) if merged else (level > 3)).long()
            mu = torch.stack([arrays["x"][z == k].mean(0) for k in range(2)])
            even = torch.full((2,), 0.5, dtype=torch.float64)
            return {"mu": mu, "transition": torch.tensor([[0.8, 0.2], [0.2, 0.8]], dtype=torch.float64), "initial": even, "z": z}

    model = SeparateModes(2, mu_scale=5.0, sigma_scale=0.8, sigma_spread=0.0)
    found = fit(model, dataset, NUTS(n_chains=4, n_warmup=100, n_draws=150), seed=3, progress=False)
    rows = found.diagnostics().query("verdict != 'not applicable'").set_index("check")
    assert not found.converged
    assert rows.loc["modes", "verdict"] == "fail"
    assert re.search(r"differing in [^|]*\bmu\b", rows.loc["modes", "quantity"])
    assert float(rows.loc["R-hat", "value"]) > 1.5
    table = found.modes()
    assert len(table) == 2
    members = [set(map(int, row.split(", "))) for row in table["members"]]
    assert set.union(*members) == {0, 1, 2, 3}
    mu = found.sites()["mu"][..., 0].mean(1)
    for chains in members:  # the chains of a mode have the same means, up to names
        inside = np.sort(mu[sorted(chains)], axis=1)
        assert np.ptp(inside, axis=0).max() < 0.5


# -- odd series


def test_an_unvisited_state_is_flagged():
    x = np.concatenate([np.zeros(30), np.ones(30)])[:, None] * 8 + np.random.default_rng(0).standard_normal((60, 1)) * 0.5
    base = GaussianHMM(3).initialize(tensors(GaussianHMM(3), series(x)), np.random.default_rng(0))
    far = {name: value.numpy() for name, value in base.items() if name != "z"}
    far |= {"mu": np.array([[0.0], [8.0], [1e3]]), "sigma": np.full((3, 1), 0.5)}
    model = with_start(GaussianHMM(3), **far)
    found = fit(model, series(x), Exact(n_restarts=1, n_draws=3), seed=0, progress=False)
    notes = found.diagnostics().query("check == 'estimate'")["quantity"].tolist()
    assert any(note.startswith("state 2 is almost never visited") for note in notes)
    assert all(np.isfinite(a).all() for a in found.sites().values())
    np.testing.assert_allclose(found.sites()["transition"].sum(-1), 1, rtol=1e-9)


@pytest.mark.parametrize("lengths", [[1], [1, 1, 1], [4, 1]])
def test_sequences_of_one_step_can_be_fitted(lengths):
    model = GaussianHMM(1) if sum(lengths) == 1 else GaussianHMM(2)
    x = np.random.default_rng(0).standard_normal((sum(lengths), 1))
    found = fit(model, series(x, lengths), NUTS(n_chains=2, n_warmup=10, n_draws=30), seed=0, progress=False)
    assert all(np.isfinite(a).all() for a in found.sites().values())
    new = found.probabilities(replace(series(x[:1]), coords={**series(x[:1]).coords, "feature": found.dataset.features}))
    np.testing.assert_allclose(new.values.sum(-1), 1, rtol=1e-9)


@pytest.mark.parametrize(
    ("x", "model", "message"),
    [
        (np.zeros((1, 1)), GaussianHMM(2), "has 1 steps; n_states = 2 needs at least 2"),
        (np.array([[0.0], [-1.0], [2.0]]), PoissonHMM(2), "must be a count, a whole number from 0; got -1"),
        (np.array([[0.0], [0.5], [2.0]]), PoissonHMM(2), "must be a count.*got 0.5"),
        (np.array([[0.0], [5.0], [2.0]]), CategoricalHMM(2, 3), r"a whole number from 0 to 2 \(`n_categories` - 1\); got 5"),
        (np.array([[0.0], [1.0], [2.0]]), GaussianHMM(2, covariance="full"), "has one feature; covariance 'full'"),
    ],
)
def test_invalid_series_are_refused_by_hidden_markov_models(x, model, message):
    with pytest.raises(DataError, match=message):
        fit(model, series(x), NUTS(n_chains=2, n_warmup=5, n_draws=5), seed=0, progress=False)


def test_invalid_settings_of_hidden_markov_models_are_refused():
    for make, message in (
        (lambda: GaussianHMM(1, left_to_right=True), "`left_to_right` needs at least 2 states"),
        (lambda: GaussianHMM(2, sticky=-1.0), "`sticky` must be a finite number of at least 0"),
        (lambda: GaussianHMM(2, transition_concentration=0.0), "`transition_concentration` must be a finite number above 0"),
        (lambda: GaussianHMM(0), "`n_states` must be a whole number of at least 1"),
    ):
        with pytest.raises(ConfigError, match=message):
            make()


def test_100000_steps_are_finite_and_take_linear_time():
    """Four times the steps take less than eight times the time (linear: four; quadratic: sixteen)."""
    model, took = GaussianHMM(2), {}
    rng = np.random.default_rng(0)
    truth = {"initial": [0.5, 0.5], "transition": [[0.99, 0.01], [0.02, 0.98]], "mu": [[0.0], [3.0]], "sigma": [[1.0], [1.0]]}
    values = {name: torch.tensor(value, dtype=torch.float64) for name, value in truth.items()}
    for n in (25_000, 100_000):
        z = (rng.random(n) < 0.4).astype(int)
        arrays = tensors(model, series(3.0 * z[:, None] + rng.standard_normal((n, 1))))
        best = np.inf
        for _ in range(3):
            begun = time.process_time()
            found = model._series(arrays, {**values, "mu": values["mu"].clone().requires_grad_()}).log_prob_sum(arrays["x"])
            found.backward()
            best = min(best, time.process_time() - begun)
        assert torch.isfinite(found)
        took[n] = best
    assert took[100_000] < 8 * took[25_000] + 0.1
    assert took[100_000] < 20
    twin = hmmlearn_twin(model, truth)
    assert float(found.detach()) == pytest.approx(twin.score(arrays["x"].numpy()), rel=1e-9)


def test_the_initial_probabilities_are_optimised_with_many_sequences(monkeypatch):
    """EM is limited to one step from a poor start, so that the descent must optimise the initial probabilities."""
    rng = np.random.default_rng(0)
    model = GaussianHMM(2, sigma_scale=1.0, sigma_spread=0.0)
    z = rng.integers(2, size=(30, 4))
    x = np.where(z == 0, -2.0, 2.0) + rng.standard_normal(z.shape)
    names = np.repeat([f"s{i}" for i in range(30)], 4)
    data = Dataset({"x": x.reshape(-1, 1)}, dims={"x": ("unit", "feature")}, coords={"sequence": names})
    arrays = tensors(model, data)
    monkeypatch.setattr("latentlab.models.expectation_maximization.MOST_STEPS", 1)
    with double():
        found = model.maximum_likelihood(arrays, np.random.default_rng(0))
        values = {name: torch.tensor(value, requires_grad=name == "initial") for name, value in found.values.items()}
        values["log initial"] = torch.log(values["initial"].detach()).requires_grad_()
        given = {**values, "initial": torch.softmax(values["log initial"], 0)}
        model._series(arrays, given).log_prob_sum(arrays["x"]).backward()
    assert values["log initial"].grad.abs().max() / len(data.x) < 1e-6
    assert found.gradient < 1e-6
