"""Tests of mixtures against enumeration, quadrature, scikit-learn and references.

A model's exact posterior over seven units and two components, spread known, is known from the sum over all 128 assignments.
"""

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.special import gammaln, logsumexp, softmax
from sklearn.mixture import GaussianMixture as Sklearn

from latentlab.data.dataset import Dataset
from latentlab.data.load import load_dataset
from latentlab.errors import DataError
from latentlab.fit import fit
from latentlab.inference.arrays import tensors
from latentlab.inference.density import Density
from latentlab.inference.exact import Exact
from latentlab.inference.joint import log_joint
from latentlab.inference.lift import over_draws
from latentlab.inference.map import MAP
from latentlab.inference.nuts import NUTS
from latentlab.models import mixture
from latentlab.models.count_mixtures import BernoulliMixture, PoissonMixture
from latentlab.models.gaussian_mixture import DPMixture, GaussianMixture
from latentlab.models.mixture import N_STARTS, k_means
from latentlab.results.convergence import mcse_mean, mcse_sd, rhat
from latentlab.symmetry.groups import Identity, Permutation

SEED = 20_240_229
FALSE_ALARM = 1e-5
"""False-alarm rate of one two-sided test against Monte Carlo, over all its quantities."""


def data(x, **more):
    return Dataset({"x": np.asarray(x, dtype=float)}, dims={"x": ("unit", "feature")}, **more)


def two_groups(rng, n=60, d=2, apart=4.0):
    z = np.arange(n) % 2
    return data(apart * z[:, None] * np.eye(d)[0] + rng.standard_normal((n, d)))


def with_missing(rng, dataset, share=0.2):
    x = dataset.x.copy()
    x[rng.random(x.shape) < share] = np.nan
    return data(x)


def limit(n):
    return stats.norm.isf(FALSE_ALARM / 2 / n)


# -- starts


def test_the_start_is_the_most_likely_of_several_k_means_runs(rng, monkeypatch):
    """The k-means run that finds the two groups is used, regardless of the order of the runs."""
    model, groups = GaussianMixture(2, covariance="spherical"), np.arange(60) % 2
    arrays = tensors(model, two_groups(rng, apart=8.0))
    for at in range(N_STARTS):
        runs = iter([groups if i == at else rng.permutation(groups) for i in range(N_STARTS)])
        monkeypatch.setattr(mixture, "k_means", lambda x, n, own, runs=runs: next(runs) if own is rng else None)
        z = model.initialize(arrays, rng)["z"].numpy()
        assert (z == groups).all() or (z == 1 - groups).all()
        assert next(runs, None) is None


def test_columns_with_few_distinct_values_have_starting_clusters():
    patterns = np.repeat(np.array([[0, 0, 1], [0, 1, 0], [1, 1, 1]]), 20, axis=0)
    arrays = {"x": torch.from_numpy(patterns.astype(float))}
    labels = k_means(arrays, 3, np.random.default_rng(0))
    assert sorted(np.bincount(labels)) == [20, 20, 20]
    assert all(len(set(labels[i : i + 20])) == 1 for i in (0, 20, 40))
    shuffled = k_means({"x": arrays["x"][:40]}, 3, np.random.default_rng(0))  # two different rows: at random
    assert len(set(shuffled[:20])) > 1


# -- densities


MODELS = [
    GaussianMixture(3),
    GaussianMixture(2, covariance="tied"),
    GaussianMixture(3, covariance="diagonal", mu_loc=[-1.0, 0.0, 1.0], weights_concentration=[1.0, 2.0, 3.0]),
    GaussianMixture(2, covariance="spherical", sigma_prior="half_normal"),
    DPMixture(3),
    DPMixture(3, alpha_shape=0.0),
    BernoulliMixture(2),
    PoissonMixture(2, rate_shape=2.5, rate_mean=[2.0, 6.0]),
]


def log_emission(model, truth, x):
    """log p(observed entries of x_n | k) `(unit, component)` by scipy."""
    K = model.n_components
    found = np.zeros((len(x), K))
    for n, k in itertools.product(range(len(x)), range(K)):
        o = np.flatnonzero(~np.isnan(x[n]))
        if "probability" in truth:
            found[n, k] = stats.bernoulli(truth["probability"][k, o]).logpmf(x[n, o]).sum()
        elif "rate" in truth:
            found[n, k] = stats.poisson(truth["rate"][k, o]).logpmf(x[n, o]).sum()
        elif len(o):
            covariance = covariance_of(model, truth, k, x.shape[1])[np.ix_(o, o)]
            found[n, k] = stats.multivariate_normal(truth["mu"][k][o], covariance).logpdf(x[n, o])
    return found


def covariance_of(model, truth, k, d):
    sigma, tied = truth["sigma"], model.covariance == "tied"
    scale = np.broadcast_to(sigma if tied else sigma[k], d)
    lower = np.eye(d) if "corr" not in truth else truth["corr"] if tied else truth["corr"][k]
    return np.outer(scale, scale) * (lower @ lower.T)


def log_prior(model, truth):
    """log prior of the sites by scipy; LKJ's up to its normalising constant, which is pyro's."""
    w, total = truth["weights"], 0.0
    if isinstance(model, DPMixture):
        if model.alpha_shape:
            total += stats.gamma(model.alpha_shape, scale=1 / model.alpha_rate).logpdf(truth["alpha"])
        rest = np.append(1.0, 1 - np.cumsum(w)[:-2])
        total += stats.beta(1, truth["alpha"]).logpdf(w[:-1] / rest).sum() - np.log(rest).sum()
    else:
        concentration = np.broadcast_to(model.weights_concentration, len(w))
        total += stats.dirichlet(concentration).logpdf(w / w.sum())
    if "probability" in truth:
        a = model.probability_concentration
        return total + stats.beta(a, a).logpdf(truth["probability"]).sum()
    if "rate" in truth:
        mean = np.broadcast_to(model.rate_mean, len(w))[:, None]
        return total + stats.gamma(model.rate_shape, scale=mean / model.rate_shape).logpdf(truth["rate"]).sum()
    loc, scale = (np.broadcast_to(a, len(w))[:, None] for a in (model.mu_loc, model.mu_scale))
    total += stats.norm(loc, scale).logpdf(truth["mu"]).sum()
    if getattr(model, "sigma_prior", "log_normal") == "half_normal":
        return total + stats.halfnorm(scale=model.sigma_scale).logpdf(truth["sigma"]).sum()
    return total + stats.lognorm(model.sigma_spread, scale=model.sigma_scale).logpdf(truth["sigma"]).sum()


def log_lkj(corr, concentration):
    """LKJ log density of factors `(..., d, d)` by the onion method: squared norms of rows are beta, directions uniform."""
    d, total = corr.shape[-1], 0.0
    for lower in np.reshape(corr, (-1, d, d)):
        for i in range(1, d):
            square = (lower[i, :i] ** 2).sum()
            sphere = np.log(2) + i / 2 * np.log(np.pi) - gammaln(i / 2)
            total += stats.beta(i / 2, concentration + (d - 1 - i) / 2).logpdf(square)
            total += np.log(2 * np.sqrt(square)) - sphere - (i - 1) / 2 * np.log(square)
    return total


@pytest.mark.parametrize("model", MODELS, ids=repr)
@pytest.mark.parametrize("missing", [False, True])
def test_the_joint_matches_the_sum_over_all_assignments(model, missing, rng):
    """Five units: the sum over K^5 assignments of prior, weights and emissions by scipy."""
    whole = model.simulate(np.random.default_rng(SEED), 5, n_features=3)
    dataset = replace(whole, arrays={"x": with_missing(rng, whole, 0.3).x}) if missing else whole
    truth, x = whole.truth, dataset.x
    each = np.log(truth["weights"]) + log_emission(model, truth, x)
    paths = itertools.product(range(model.n_components), repeat=5)
    total = logsumexp([each[np.arange(5), list(path)].sum() for path in paths])
    prior = log_prior(model, truth) + (log_lkj(truth["corr"], model.corr_concentration) if "corr" in truth else 0.0)
    sites = {name: truth[name] for name in model.dims if name != "z" and not (name == "alpha" and model.alpha_shape == 0)}
    np.testing.assert_allclose(log_joint(model, dataset, sites), prior + total, rtol=1e-9)
    # with the labels: their own term of the sum, and the responsibilities are its shares
    z = np.asarray(truth["z"]).astype(int)
    np.testing.assert_allclose(log_joint(model, dataset, sites | {"z": z}), prior + each[np.arange(5), z].sum(), rtol=1e-9)
    given = {name: torch.tensor(np.array(truth[name])) for name in model.dims if name != "z"}
    np.testing.assert_allclose(model.latents(tensors(model, dataset), **given).probs.numpy(), softmax(each, 1), rtol=1e-8)


def test_weight_gradients_are_expected_minus_prior_counts(rng):
    """Fisher's identity: d log p(x) / d logit_k = N_k - N w_k."""
    model, dataset = GaussianMixture(3, covariance="diagonal"), two_groups(rng)
    truth = model.simulate(rng, 5).truth
    values = {name: torch.tensor(truth[name]) for name in ("mu", "sigma")}
    logits = torch.randn(3, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    arrays = tensors(model, dataset)
    weights = torch.softmax(logits, 0)
    model._mixture(arrays, {**values, "weights": weights}).log_prob(arrays["x"]).sum().backward()
    w = weights.detach()
    counts = model.latents(arrays, weights=w, **values).probs.sum(0)
    np.testing.assert_allclose(logits.grad.numpy(), (counts - len(dataset.x) * w).numpy(), rtol=1e-8, atol=1e-9)


# -- the tiny exact posterior


TINY = np.array([-2.1, -1.7, -2.4, 1.6, 2.2, 1.9, 0.1])
TINY_MODEL = GaussianMixture(2, covariance="diagonal", mu_scale=3.0, sigma_scale=0.7, sigma_spread=0.0)
EVIDENCE, WITH_FIRST, WITH_FOURTH = -16.01861202, 0.25183980, 0.74837156


def test_the_reference_answer_matches_the_sum_over_assignments():
    """Weights integrated out, p(z) = n_1! n_2! / (N + 1)!; means integrated out, each cluster's units are jointly normal."""
    terms = {}
    for z in itertools.product(range(2), repeat=7):
        groups = [TINY[np.array(z) == k] for k in range(2)]
        n = [len(g) for g in groups]
        log_p = gammaln(n[0] + 1) + gammaln(n[1] + 1) - gammaln(9)
        for g in groups:
            if len(g):
                log_p += stats.multivariate_normal(np.zeros(len(g)), 0.49 * np.eye(len(g)) + 9.0).logpdf(g)
        terms[z] = log_p
    evidence = logsumexp(list(terms.values()))
    assert evidence == pytest.approx(EVIDENCE, abs=1e-8)
    for i, expected in ((0, WITH_FIRST), (3, WITH_FOURTH)):
        assert sum(np.exp(v - evidence) for z, v in terms.items() if z[6] == z[i]) == pytest.approx(expected, abs=1e-8)


def test_the_density_integrates_to_the_exact_evidence():
    """Quadrature of the model's own joint: a polynomial of degree 7 in the weight, trapezoids in the means."""
    dataset = data(TINY[:, None])
    density = Density(TINY_MODEL, tensors(TINY_MODEL, dataset), dataset.array_dims)
    node, share = np.polynomial.legendre.leggauss(6)
    node, share = (node + 1) / 2, share / 2
    mu = np.arange(-13.0, 13.01, 0.25)
    w, a, b = (grid.ravel() for grid in np.meshgrid(node, mu, mu, indexing="ij"))
    values = {"weights": np.stack([w, 1 - w], -1), "mu": np.stack([a, b], -1)[..., None]}
    joint = over_draws(density.log_joint, values, block=len(w))
    weight = np.broadcast_to(share[:, None, None], (6, len(mu), len(mu))).ravel() * 0.25**2
    assert logsumexp(joint, b=weight) == pytest.approx(EVIDENCE, abs=1e-6)


@pytest.fixture(scope="module")
def tiny():
    return fit(TINY_MODEL, data(TINY[:, None]), NUTS(n_chains=4, n_warmup=300, n_draws=1000), seed=2, progress=False)


def test_co_assignment_by_nuts_is_exact(tiny):
    """By the labels drawn, and by their probabilities given each draw; z-tests at 1e-5 over all."""
    z, p = tiny.sites()["z"], tiny.probabilities(n_draws=4000).values
    for i, expected in ((0, WITH_FIRST), (3, WITH_FOURTH)):
        for together in ((z[..., 6] == z[..., i]).astype(float), (p[..., 6, :] * p[..., i, :]).sum(-1)):
            assert abs(together.mean() - expected) < limit(4) * mcse_mean(together)
    assert mcse_mean((p[..., 6, :] * p[..., 0, :]).sum(-1)) < 0.02
    assert len(tiny.modes()) == 1


def test_labels_are_aligned_across_draws(tiny):
    """Draws are aligned: after it unit 0 has one label, as often as its companions are with it."""
    raw, z = tiny.sites()["z"], tiny.latents().values[..., 0]
    np.testing.assert_array_equal(raw[..., :, None] == raw[..., None, :], z[..., :, None] == z[..., None, :])
    apart = (z[..., 0] == z[..., 4]).mean()
    assert max((z[..., 0] == k).mean() for k in range(2)) > 1 - apart - 0.02
    mu, sites = tiny.data["latents"]["mu"].values[..., 0], tiny.sites()
    np.testing.assert_array_equal(np.sort(mu, -1), np.sort(sites["mu"][..., 0], -1))
    # a unit has the mean that its label names, before and after
    np.testing.assert_array_equal(
        np.take_along_axis(mu, z, -1), np.take_along_axis(sites["mu"][..., 0], sites["z"].astype(int), -1)
    )


# -- maximum likelihood


def test_em_reaches_the_best_known_likelihood_of_wine():
    found = fit(GaussianMixture(3), load_dataset("wine"), Exact(n_draws=4), seed=0, progress=False)
    maxima = found.data["optimization"]["maxima"].values / 178
    assert maxima.max() >= -11.6191
    assert float(found.data.attrs["gradient"]) < 1e-6
    assert found.converged


class FixedStart(GaussianMixture):
    """Has a fixed start."""

    def initialize(self, arrays, rng):
        return {name: torch.from_numpy(value) for name, value in self.given.items()}


SKLEARN = {"full": "full", "tied": "tied", "diagonal": "diag", "spherical": "spherical"}


@pytest.mark.parametrize("covariance", sorted(SKLEARN))
def test_the_optimum_matches_scikit_learn(covariance):
    """Started at scikit-learn's solution, EM stays there with an equal likelihood."""
    x = load_dataset("iris").x
    theirs = Sklearn(3, covariance_type=SKLEARN[covariance], tol=1e-12, max_iter=10_000, reg_covar=0.0, random_state=0).fit(x)
    model = FixedStart(3, covariance=covariance)
    c = theirs.covariances_
    model.given = {"weights": theirs.weights_, "mu": theirs.means_, "sigma": np.sqrt(c)}
    if covariance in ("full", "tied"):
        sd = np.sqrt(np.diagonal(c, axis1=-2, axis2=-1))
        lower = np.linalg.cholesky(c)
        model.given |= {"sigma": sd, "corr": lower / sd[..., None]}
    dataset = data(x)
    arrays = tensors(model, dataset)
    values = {name: torch.from_numpy(value) for name, value in model.given.items()}
    at = model._mixture(arrays, values).log_prob(arrays["x"])
    np.testing.assert_allclose(at.numpy(), theirs.score_samples(x), rtol=1e-9)
    np.testing.assert_allclose(model.latents(arrays, **values).probs.numpy(), theirs.predict_proba(x), atol=1e-9)
    found = model.maximum_likelihood(arrays, np.random.default_rng(0))
    assert found.trace[-1] / 150 == pytest.approx(theirs.score(x), abs=1e-7)
    assert found.gradient < 1e-6
    np.testing.assert_allclose(found.values["mu"], theirs.means_, atol=1e-3)


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize(
    "model",
    [
        *(GaussianMixture(2, covariance=c) for c in ("full", "tied", "diagonal", "spherical")),
        GaussianMixture(2, covariance="full", sigma_scale=0.7, sigma_spread=0.0),
        GaussianMixture(2, covariance="tied", sigma_scale=1.3, sigma_spread=0.0),
        GaussianMixture(2, covariance="diagonal", sigma_scale=0.7, sigma_spread=0.0),
    ],
    ids=repr,
)
def test_em_increases_likelihood_to_a_stationary_point(model, missing, rng):
    dataset = two_groups(rng, d=3)
    dataset = with_missing(rng, dataset) if missing else dataset
    found = model.maximum_likelihood(tensors(model, dataset), np.random.default_rng(1))
    assert len(found.trace) > 3
    assert np.diff(found.trace).min() > -1e-9 * abs(found.trace[-1])
    assert found.gradient < 1e-6
    assert not found.notes
    if getattr(model, "sigma_spread", 1) == 0:
        np.testing.assert_allclose(found.values["sigma"], model.sigma_scale, rtol=1e-12)

    # the level is that of the values by scipy, and no coordinate of the means, by central differences, leads higher
    def level(values):
        return logsumexp(np.log(values["weights"]) + log_emission(model, values, dataset.x), axis=1).sum()

    assert level(found.values) == pytest.approx(found.trace[-1], rel=1e-9)
    for index in ((0, 0), (1, 2)):
        step = np.zeros((2, 3))
        step[index] = 1e-5
        up, down = (level({**found.values, "mu": found.values["mu"] + s}) for s in (step, -step))
        assert abs(up - down) / 2e-5 / len(dataset.x) < 1e-5


@pytest.mark.parametrize("model", [BernoulliMixture(2), PoissonMixture(2)], ids=repr)
@pytest.mark.parametrize("missing", [False, True])
def test_em_of_counts_never_decreases_likelihood(model, missing, rng):
    whole = model.simulate(np.random.default_rng(3), 80, n_features=5)
    dataset = with_missing(rng, whole) if missing else whole
    found = model.maximum_likelihood(tensors(model, dataset), np.random.default_rng(1))
    assert np.diff(found.trace).min() > -1e-9 * abs(found.trace[-1])
    assert found.gradient < 1e-6
    level = logsumexp(np.log(found.values["weights"]) + log_emission(model, found.values, dataset.x), axis=1).sum()
    assert level == pytest.approx(found.trace[-1], rel=1e-9)


# -- labels: names, alignment, new units


class PermutedStarts(GaussianMixture):
    """Starts each chain with a different order of the components."""

    jitter = 0.1

    def initialize(self, arrays, rng):
        values = super().initialize(arrays, rng)
        order = torch.from_numpy(np.argsort(values["mu"][:, 0].numpy())[:: rng.choice([-1, 1])].copy())
        return {name: value[order] if name in ("weights", "mu", "sigma") else value for name, value in values.items()}


@pytest.fixture(scope="module")
def switched_fit():
    rng = np.random.default_rng(4)
    z = (np.arange(60) % 3 == 0).astype(int)
    x = data(np.column_stack([5.0 * z, np.zeros(60)]) + rng.standard_normal((60, 2)))
    return fit(PermutedStarts(2, covariance="diagonal"), x, NUTS(n_chains=4, n_warmup=200, n_draws=400), seed=0, progress=False)


def test_switched_labels_are_aligned_across_chains(switched_fit):
    """Raw means differ between converged chains; aligned means, labels, weights and scales agree."""
    raw, aligned = switched_fit.sites(), switched_fit.data["latents"]
    assert rhat(raw["mu"])[:, 0].min() > 1.5, "no chain was switched: the seed plants nothing"
    assert {"mu", "weights", "sigma", "z"} <= set(aligned.data_vars)
    for name in ("mu", "weights", "sigma"):
        assert rhat(aligned[name].values).max() < 1.02, name
    z = aligned["z"].values
    share = (z == 1).mean(axis=1)  # (chain, unit), of 400 draws that are almost independent: standard error .025 at most
    assert np.ptp(share, axis=0).max() < 0.25
    own = np.take_along_axis(aligned["mu"].values[..., 0], z[..., :1], -1)
    np.testing.assert_array_equal(own, np.take_along_axis(raw["mu"][..., 0], raw["z"].astype(int)[..., :1], -1))
    table = switched_fit.diagnostics()
    rows = table.query("verdict != 'not applicable'").set_index("check")
    assert float(rows.loc["R-hat", "value"]) < 1.03  # of what does not depend on names: 400 draws a chain are few
    assert (rows.loc[["modes", "equal mean log density"], "verdict"] == "pass").all()
    assert len(switched_fit.modes()) == 1
    shown = table[table["verdict"] == "not applicable"]
    assert shown["quantity"].str.contains("raw coordinates").any()  # shown, without a verdict


def test_new_units_of_a_mixture_match_the_exact_conditional(switched_fit):
    """From the aligned sites by scipy, for each draw; with an entry missing too. Draws by z-tests at 1e-5."""
    rng = np.random.default_rng(8)
    x = np.column_stack([rng.uniform(-1, 6, 12), rng.standard_normal(12)])
    x[3, 0], x[4, 1], x[5] = np.nan, np.nan, np.nan
    new = data(x, coords={"feature": switched_fit.dataset.features})
    p = switched_fit.probabilities(new, n_draws=10**6)
    sites = {name: switched_fit.data["latents"][name].values for name in ("weights", "mu", "sigma")}
    each = stats.norm(sites["mu"][:, :, None], sites["sigma"][:, :, None]).logpdf(np.nan_to_num(x)[:, None])
    joint = np.log(sites["weights"])[:, :, None] + (each * ~np.isnan(x)[:, None]).sum(-1)
    np.testing.assert_allclose(p.values, softmax(joint, -1), rtol=1e-8, atol=1e-12)
    assert p.dims == ("chain", "draw", "unit", "component")
    z = switched_fit.latents(new).values[..., 0]
    expected = softmax(joint, -1)[..., 1]
    off = ((z == 1) - expected).sum((0, 1)) / np.sqrt((expected * (1 - expected)).sum((0, 1)))
    assert np.abs(off).max() < limit(12)
    np.testing.assert_allclose(switched_fit.log_likelihood(new).values, logsumexp(joint, -1), rtol=1e-9, atol=1e-12)


def test_components_with_different_priors_are_not_permuted(rng):
    model = GaussianMixture(2, covariance="diagonal", mu_loc=[0.0, 4.0], mu_scale=2.0)
    assert model.symmetry == Identity("component")
    assert GaussianMixture(2).symmetry == Permutation("component")
    found = fit(model, two_groups(rng, apart=8.0), NUTS(n_chains=2, n_warmup=100, n_draws=60), seed=0, progress=False)
    z = found.sites()["z"]
    np.testing.assert_array_equal(found.latents().values[..., 0], z)
    assert found.sites()["mu"][..., 0, 0].mean() < 1.0 < 3.0 < found.sites()["mu"][..., 1, 0].mean()


def test_stick_breaking_mixtures_are_aligned(rng):
    model = DPMixture(3)
    assert (model.symmetry, model.exchanges) == (Identity("component"), Permutation("component"))
    method = NUTS(n_chains=2, n_warmup=150, n_draws=240, max_tree_depth=6)
    found = fit(model, two_groups(rng, apart=8.0), method, seed=0, progress=False)  # nearer, a unit lies between the two
    z = found.latents().values[..., 0]
    share = (z[..., None] == np.arange(3)).mean((0, 1))
    orders = np.array(list(itertools.permutations(range(3))))  # no other names of a draw's labels suit the others better
    suits = np.stack([share[np.arange(z.shape[-1]), order[z.astype(int)]].sum(-1) for order in orders])
    assert suits[0].mean() > 0.99 * suits.max(0).mean()
    raw = np.stack([share[np.arange(z.shape[-1]), order[found.sites()["z"].astype(int)]].sum(-1) for order in orders])
    assert raw.max(0).mean() > 0.99 * suits.max(0).mean()
    assert set(share.argmax(-1)[::2]).isdisjoint(share.argmax(-1)[1::2])
    mu, raw = found.data["latents"]["mu"].values[..., 0], found.sites()
    np.testing.assert_array_equal(np.take_along_axis(mu, z, -1), np.take_along_axis(raw["mu"][..., 0], raw["z"].astype(int), -1))


# -- references


@pytest.fixture(scope="module")
def low_dim(references):
    folder = references / "low_dim_gauss_mix"
    read = {name: json.loads((folder / f"{name}.json").read_text()) for name in ("data", "log_density", "reference")}
    return read["data"]["y"], read["log_density"]["points"], read["reference"]["params"]


LOW_DIM = GaussianMixture(
    2,
    covariance="diagonal",
    weights_concentration=5.0,
    mu_scale=2.0,
    sigma_prior="half_normal",
    sigma_scale=2.0,
    ordered=True,
)


def test_mixture_log_densities_match_the_reference_up_to_a_constant(low_dim):
    y, points, _ = low_dim
    dataset = data(np.array(y)[:, None])
    off = []
    for point in points:
        theta, p = point["params"]["theta"][0], point["params"]
        sites = {"weights": [theta, 1 - theta], "mu": np.array(p["mu"])[:, None], "sigma": np.array(p["sigma"])[:, None]}
        off.append(log_joint(LOW_DIM, dataset, sites) - point["log_density"])
    assert np.ptp(off) < 1e-6
    assert abs(off[0]) < 1e-6  # and here the constant is 0: both keep all of theirs


@pytest.mark.slow
def test_mixture_by_nuts_matches_the_reference(low_dim):
    """Means and sds, each within its Monte Carlo error, two-sided at 1e-4 over all ten."""
    y, _, reference = low_dim
    found = fit(LOW_DIM, data(np.array(y)[:, None]), NUTS(n_chains=4, n_warmup=300, n_draws=750), seed=1, progress=False)
    assert found.converged, found.diagnostics().query("verdict == 'fail'")
    sites = found.sites()
    of = {"theta": sites["weights"][..., 0]}
    of |= {f"{n}[{k + 1}]": sites[n][..., k, 0] for n in ("mu", "sigma") for k in range(2)}
    assert set(of) == set(reference)
    for name, x in of.items():
        ref = reference[name]
        assert abs(x.mean() - ref["mean"]) < limit(10) * np.hypot(mcse_mean(x), ref["mcse_mean"]), name
        assert abs(x.std(ddof=1) - ref["sd"]) < limit(10) * np.hypot(mcse_sd(x), ref["sd"] / np.sqrt(2 * 10_000)), name


# -- what is odd


def notes(found):
    return found.diagnostics().query("check == 'estimate'")["quantity"].tolist()


def test_a_component_on_one_unit_is_flagged(rng):
    """The likelihood is unbounded there: the standard deviation stops at its floor and the component is named."""
    dataset = data(np.vstack([rng.standard_normal((40, 2)), [[30.0, 30.0]]]))
    found = fit(GaussianMixture(2, covariance="diagonal"), dataset, Exact(n_restarts=1, n_draws=4), seed=0, progress=False)
    assert any("(1 units) is at the lower bound of the variances" in note for note in notes(found))
    assert all(np.isfinite(array).all() for array in found.sites().values())


@pytest.mark.parametrize("starts", ["collapsed, sound", "sound, collapsed"])
def test_restarts_without_collapse_are_preferred(starts, rng):
    """The likelihood is unbounded at fifteen equal units, so that the collapsed restart has the higher value."""
    x = np.vstack([np.full((15, 1), 0.3), rng.standard_normal((25, 1)), rng.standard_normal((40, 1)) + 6])
    places = iter({"collapsed": (0.3, 0.01), "sound": (0.0, 1.0)}[start] for start in starts.split(", "))

    class Planted(GaussianMixture):
        def initialize(self, arrays, rng):
            mean, sd = next(places)
            values = {"weights": [0.2, 0.8], "mu": [[mean], [6.0]], "sigma": [[sd], [3.0 if sd < 1 else 1.0]]}
            return {name: torch.tensor(value, dtype=torch.float64) for name, value in values.items()}

    found = fit(Planted(2, covariance="diagonal"), data(x), Exact(n_restarts=2, n_draws=4), seed=0, progress=False)
    maxima = dict(zip(starts.split(", "), found.data["optimization"]["maxima"].values, strict=True))
    assert maxima["collapsed"] > maxima["sound"] + 10
    assert not notes(found)
    assert found.sites()["sigma"].min() > 0.5


def test_log_normal_prior_prevents_collapse_and_half_normal_does_not(rng):
    """On n equal units the mode is at sigma_scale exp(-sigma_spread^2 (n + 1))."""
    x = rng.standard_normal((40, 1))
    x[:8] = 6.0  # so far from the others that no start divides them otherwise
    sound = fit(GaussianMixture(2, covariance="diagonal"), data(x), MAP(n_draws=4), seed=0, progress=False)
    assert sound.sites()["sigma"].min() == pytest.approx(0.5 * np.exp(-0.49 * 9), rel=0.01)
    assert not notes(sound)
    loose = GaussianMixture(2, covariance="diagonal", sigma_prior="half_normal")
    collapsed = fit(loose, data(x), MAP(n_draws=4), seed=0, progress=False)
    assert any("'sigma' converged to the boundary of its support" in note for note in notes(collapsed))


class Empty(BernoulliMixture):
    """Starts with an empty class."""

    def initialize(self, arrays, rng):
        values = super().initialize(arrays, rng)
        p = torch.full((2, 4), 0.5, dtype=torch.float64)
        p[1] = 1e-6
        return {**values, "weights": torch.tensor([1 - 1e-12, 1e-12], dtype=torch.float64), "probability": p}


def test_an_empty_component_is_flagged(rng):
    x = data((rng.random((50, 4)) < 0.5).astype(float) + 0.0)
    x = data(np.where(x.x.sum(1, keepdims=True) == 0, 1.0, x.x))
    found = fit(Empty(2), x, Exact(n_restarts=1, n_draws=4), seed=0, progress=False)
    assert any(note.startswith("component 1 is empty") for note in notes(found))
    assert all(np.isfinite(array).all() for array in found.sites().values())


@pytest.mark.parametrize(
    ("x", "model", "message"),
    [
        (np.eye(3), GaussianMixture(4), "has 3 units; n_components = 4 needs at least 4"),
        (np.repeat(np.eye(3), 4, axis=0), GaussianMixture(4), "has 3 distinct units; n_components = 4 needs at least 4"),
        (np.ones((5, 1)), GaussianMixture(1), "has one feature; covariance 'full' needs at least two; use 'diagonal'"),
        (np.ones((5, 1)) * np.arange(5)[:, None] - 1, PoissonMixture(2), "must be a count, a whole number from 0; got -1"),
        (np.ones((5, 1)) * np.arange(5)[:, None] + 0.5, PoissonMixture(2), "must be a count, .* got 0.5 .invalid entries: 5."),
        (np.array([[0.0], [1.0], [2.0]]), BernoulliMixture(2), r"must be 0 or 1, or missing; got 2 \(invalid entries: 1\)"),
        (np.array([[0.0, np.nan], [1.0, np.nan]]), BernoulliMixture(2), "column .* has no observed entry"),
        (np.random.default_rng(0).normal(size=(9, 2)), GaussianMixture(2, ordered=True), "one"),
    ],
)
def test_invalid_data_are_refused_by_mixtures(x, model, message):
    with pytest.raises(DataError, match=message):
        fit(model, data(x), MAP(), seed=0, progress=False)


@pytest.mark.parametrize("model", [PoissonMixture(2), BernoulliMixture(2)])
def test_standardised_counts_are_refused_by_mixtures_with_advice(model, rng):
    x = data((rng.random((20, 2)) < 0.5).astype(float)).standardize()
    with pytest.raises(DataError, match="the data are standardised: load them with `standardize: false`"):
        fit(model, x, MAP(), seed=0, progress=False)


@pytest.mark.parametrize(
    "model",
    [GaussianMixture(2), GaussianMixture(2, covariance="tied"), GaussianMixture(2, covariance="diagonal"), DPMixture(4)],
    ids=repr,
)
def test_degenerate_data_give_finite_results(model, rng):
    """A constant column, duplicate columns, duplicate rows, and a row without observations."""
    x = two_groups(rng, n=30, d=2).x
    x = np.column_stack([x, x[:, 0], np.ones(30)])
    x[10:15] = x[5]
    x[3] = np.nan
    found = fit(model, data(x), NUTS(n_chains=2, n_warmup=15, n_draws=8, max_tree_depth=3), seed=0, progress=False)
    assert all(np.isfinite(array).all() for array in found.sites().values())
    p = found.probabilities().values[..., 3, :]
    np.testing.assert_allclose(p, found.data["latents"]["weights"].values, rtol=1e-9)  # of that row: the weights
    if "exact" in model.methods:
        maximum = model.maximum_likelihood(tensors(model, data(x)), np.random.default_rng(0))
        assert all(np.isfinite(array).all() for array in maximum.values.values())
        assert any("lower bound of the variances" in note for note in maximum.notes)


def test_one_component_equals_a_gaussian(rng):
    """The maximum has the moments of the sample, and all units have one label."""
    dataset = two_groups(rng, n=50)
    found = fit(GaussianMixture(1), dataset, Exact(n_draws=3), seed=0, progress=False)
    sites = found.sites()
    np.testing.assert_allclose(sites["mu"][0, 0, 0], dataset.x.mean(0), atol=1e-6)
    lower = sites["sigma"][0, 0, 0][:, None] * sites["corr"][0, 0, 0]
    np.testing.assert_allclose(lower @ lower.T, np.cov(dataset.x.T, ddof=0), atol=1e-6)
    assert (sites["z"] == 0).all()
    assert (sites["weights"] == 1).all()


@pytest.mark.parametrize("constant", [1, 4])
def test_gradient_check_ignores_probabilities_at_the_edge(constant):
    """Constant features have probabilities at the edge and are ignored; without other features the gradient is NaN."""
    x = np.random.default_rng(0).integers(2, size=(40, 4)).astype(float)
    x[:, :constant] = 0
    data = Dataset({"x": x}, dims={"x": ("unit", "feature")})
    found = fit(BernoulliMixture(1), data, Exact(n_draws=5), seed=0, progress=False)
    row = found.diagnostics().query("check == 'gradient'").iloc[0]
    assert "; values of probability on the boundary are fixed" in row["quantity"]
    if constant == 4:
        assert np.isnan(row["value"])
        assert row["verdict"] == "fail"
    else:
        assert 0 < row["value"] < 1e-6
        np.testing.assert_allclose(found.sites()["probability"][0, 0, 0, 1:], x[:, 1:].mean(0), atol=1e-7)
