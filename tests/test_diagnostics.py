"""Tests that correct fits pass the diagnostics and that each planted fault fails its check."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from latentlab.data.dataset import Dataset
from latentlab.fit import Fit
from latentlab.inference.arrays import tensors
from latentlab.inference.density import Density
from latentlab.inference.lift import over_draws
from latentlab.inference.nuts import NUTS
from latentlab.models.gaussian_mixture import DPMixture
from latentlab.results.chain_checks import LEVEL, equal_means_p_value
from latentlab.results.convergence import ess_mean
from latentlab.results.diagnostics import converged, diagnose
from latentlab.results.loo import khat
from latentlab.results.quantities import identified
from latentlab.results.tree import build
from latentlab.results.variational_checks import elbo_drift
from latentlab.symmetry.groups import Identity, Orthogonal, Permutation

DIMS = {"W": ("feature", "latent"), "z": ("unit", "latent"), "sigma": (), "mu": ("feature",), "log_likelihood": ("unit",)}


def sampler_result(rng, n_chains=4, n_draws=1000, *, attrs=None, **changes):
    """Result of a correct sampler: PPCA-like loadings, with a random rotation of each draw."""
    lead = (n_chains, n_draws)
    W = np.array([[2.0, 0], [1, 1], [0, -1]]) + 0.1 * rng.normal(size=(*lead, 3, 2))
    angle = np.linspace(0, 3, n_chains)[:, None] + 0.1 * rng.normal(size=lead)
    turn = np.stack([np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)], axis=-1).reshape(*lead, 2, 2)
    values = {"W": W @ turn, "z": rng.normal(size=(*lead, 8, 2)) @ turn, "sigma": rng.gamma(9, size=lead)}
    lp = -rng.gamma(5, size=lead)
    lp += lp.mean() - lp.mean(axis=1, keepdims=True)  # chains of one level: its test must not fail by chance
    result = {
        "posterior": values,
        "sample_stats": {
            "lp": lp,
            "energy": -lp + rng.gamma(5, size=lead),
            "diverging": np.zeros(lead, bool),
            "tree_depth": rng.integers(2, 6, lead),
        },
        "log_likelihood": {"log_likelihood": -1 + 0.1 * rng.normal(size=(*lead, 8))},
    }
    for key, value in changes.items():
        group, _, name = key.partition("__")
        result[group][name] = value(result[group][name])
    return build(result, dims=DIMS, attrs={"inference": "mcmc", "max_tree_depth": 10, **(attrs or {})})


def diagnosed(data, group=None, dims=None):
    return diagnose(data, group=group or Orthogonal(), dims=dims or DIMS, position="z")


def row(table, check, quantity=""):
    found = table[(table["check"] == check) & table["quantity"].str.contains(quantity, regex=False)]
    return found.iloc[0]


def edited(function):
    """Applies an in-place change to a copy."""

    def change(array):
        copy = array.copy()
        function(copy)
        return copy

    return change


# -- MCMC


def test_rotated_chains_pass_by_invariants(rng):
    table = diagnosed(sampler_result(rng))
    raw = row(table, "R-hat", "W (raw coordinates)")
    assert raw["value"] > 1.5
    assert raw["verdict"] == "not applicable"
    assert row(table, "R-hat")["value"] < 1.01
    assert converged(table), table
    assert table.columns.tolist() == ["check", "quantity", "value", "threshold", "verdict"]
    assert set(table["verdict"]) == {"pass", "not applicable"}


def test_rotated_chains_fail_without_the_symmetry(rng):
    table = diagnosed(sampler_result(rng), group=Identity())
    assert row(table, "R-hat")["verdict"] == "fail"
    assert not table["quantity"].str.contains("raw coordinates").any()
    assert not converged(table)


def shifted(W):
    W[2] += 0.15


def frozen(array):
    array[1] = array[1, :1]


UNSOUND = {
    "a chain elsewhere": ({"posterior__W": edited(shifted)}, "R-hat", "W W^T"),
    "a frozen chain": ({"posterior__W": edited(frozen)}, "R-hat", "W (constant in chain 1)"),
    "one frozen entry": (
        {"posterior__z": edited(lambda z: z[:, :, 3, 1].__setitem__(slice(None), 0.7))},
        "R-hat",
        "z (constant in chain 0)",
    ),
    "all chains frozen alike": ({"posterior__sigma": lambda s: np.full_like(s, 2.0)}, "R-hat", "sigma (constant in chain 0)"),
    "chains frozen apart": ({"posterior__sigma": lambda s: s[:, :1] + 0 * s}, "bulk ESS", "sigma"),
    "frozen density": ({"sample_stats__lp": edited(frozen)}, "R-hat", "lp (constant in chain 1)"),
    "NaN in a site": ({"posterior__z": edited(lambda z: z.put(11, np.nan))}, "finite", "posterior: z"),
    "inf in a site": ({"posterior__sigma": edited(lambda s: s.put(11, np.inf))}, "R-hat", "sigma (non-finite draws)"),
    "NaN in lp": ({"sample_stats__lp": edited(lambda lp: lp.put(11, np.nan))}, "finite", "sample_stats: lp"),
    "NaN log likelihood": ({"log_likelihood__log_likelihood": edited(lambda a: a.put(3, np.nan))}, "LOO k-hat", "finite"),
    "a divergence": ({"sample_stats__diverging": edited(lambda d: d.put(5, True))}, "divergences", "among 4000"),
    "slow energy": ({"sample_stats__energy": lambda e: np.cumsum(e - e.mean(), axis=1)}, "E-BFMI", "chain"),
    "constant energy": ({"sample_stats__energy": np.ones_like}, "E-BFMI", "chain 0"),
    "full trees": (
        {"sample_stats__tree_depth": lambda d: np.where(d > 4, 10, d)},
        "tree depth",
        "share of draws at maximum depth 10",
    ),
    "slow mixing": ({"posterior__sigma": lambda s: np.repeat(s[:, ::50], 50, axis=1)}, "tail ESS", "sigma"),
    "another level": (
        {"sample_stats__lp": edited(lambda lp: np.add(lp[3], 0.6, out=lp[3]))},
        "equal mean log density",
        "chain 3",
    ),
}


@pytest.mark.parametrize("case", UNSOUND)
def test_each_planted_fault_fails_its_check(rng, case):
    changes, check, quantity = UNSOUND[case]
    table = diagnosed(sampler_result(rng, **changes))
    assert row(table, check, quantity)["verdict"] == "fail", table
    assert not converged(table)


def test_ebfmi_uses_the_mean_of_each_chain(rng):
    """Computes E-BFMI by its formula for chains at different levels; the smallest is shown."""
    energy = rng.normal(size=(4, 1000)) + 5.0 * np.arange(4)[:, None]
    energy[2] = 10 + np.convolve(rng.normal(size=1009), np.ones(10) / 10, mode="valid")
    found = row(diagnosed(sampler_result(rng, sample_stats__energy=lambda _: energy)), "E-BFMI")
    each = [np.sum((e[1:] - e[:-1]) ** 2) / np.sum((e - np.mean(e)) ** 2) for e in energy]
    assert found["value"] == pytest.approx(each[2])
    assert (found["quantity"], found["verdict"]) == ("chain 2", "fail")


def test_a_few_full_trees_only_warn(rng):
    table = diagnosed(sampler_result(rng, sample_stats__tree_depth=edited(lambda d: d.put(7, 10))))
    assert row(table, "tree depth")["verdict"] == "warn"
    assert converged(table)


def test_a_declared_deterministic_site_may_be_constant(rng):
    def with_mu(**attrs):
        data = sampler_result(rng, attrs=attrs)
        groups = {name: {n: v.values for n, v in node.data_vars.items()} for name, node in data.children.items()}
        groups["posterior"]["mu"] = np.zeros((4, 1000, 3))
        return build(groups, dims=DIMS, attrs=data.attrs)

    assert converged(diagnosed(with_mu(deterministic="mu, nu")))
    table = diagnosed(with_mu())
    assert row(table, "R-hat")["quantity"] == "mu (constant in chain 0)"
    assert math.isnan(row(table, "R-hat")["value"])
    assert not converged(table)


def test_an_invariant_that_is_constant_by_construction_is_left_out(rng):
    dims = {"weights": ("component",), "mu": ("component", "feature")}
    weights = rng.dirichlet([5, 5, 5], size=(4, 1000))
    values = {"weights": weights, "mu": np.array([-3.0, 0, 3])[:, None] + 0.1 * rng.normal(size=(4, 1000, 3, 2))}
    data = build({"posterior": values}, dims=dims)
    table = diagnose(data, group=Permutation("component"), dims=dims, position="mu")
    assert converged(table), table


def test_label_switching_passes_and_another_clustering_fails(rng):
    dims = {"mu": ("component",), "z": ("unit",)}
    labels = (np.arange(12) // 4)[None, None] * np.ones((4, 1000, 1), int)
    labels = np.where(rng.random(labels.shape) < 0.05, rng.integers(0, 3, labels.shape), labels)
    mu = np.array([-3.0, 0, 3]) + 0.1 * rng.normal(size=(4, 1000, 3))
    order = np.array([[0, 1, 2], [1, 2, 0], [2, 0, 1], [0, 2, 1]])
    switched = {"mu": np.stack([m[:, np.argsort(o)] for m, o in zip(mu, order, strict=True)])}
    switched["z"] = np.stack([o[z] for z, o in zip(labels, order, strict=True)])
    group = Permutation("component")
    table = diagnose(build({"posterior": switched}, dims=dims), group=group, dims=dims, position="z")
    assert row(table, "R-hat", "mu (raw coordinates)")["value"] > 1.5
    assert converged(table), table
    other = switched | {"z": np.concatenate([switched["z"][:3], np.roll(switched["z"][3:], 2, axis=-1)])}
    table = diagnose(build({"posterior": other}, dims=dims), group=group, dims=dims, position="z")
    assert row(table, "R-hat")["verdict"] == "fail"
    assert "z" in row(table, "R-hat")["quantity"]


def test_co_assignment_quantities_ignore_label_names(rng):
    z = rng.integers(0, 3, (2, 20, 9))
    dims = {"z": ("unit",)}
    found, again = (identified({"z": labels}, dims, Identity(), "z") for labels in (z, np.array([7, 4, 5])[z]))
    assert set(found) == set(again)
    assert "z" not in found
    for name, array in found.items():
        assert again[name] == pytest.approx(array, abs=1e-12)


def test_rhat_of_one_chain_is_not_applicable(rng):
    table = diagnosed(sampler_result(rng, n_chains=1, n_draws=4000))
    for check in ("R-hat", "equal mean log density"):
        assert row(table, check)["verdict"] == "not applicable"
        assert "at least two chains" in row(table, check)["value"]
    assert row(table, "bulk ESS")["verdict"] == "pass"
    assert converged(table)


@pytest.mark.parametrize("n_draws", [1, 2, 3, 40])
def test_too_few_draws_fail(rng, n_draws):
    table = diagnosed(sampler_result(rng, n_draws=n_draws))
    assert row(table, "bulk ESS")["verdict"] == "fail"
    assert not converged(table)


# -- level of the log density


def test_a_lower_density_level_missed_by_rhat_is_detected(rng):
    lp = rng.normal(size=(4, 4000))
    lp[2] += 0.15
    table = diagnosed(sampler_result(rng, n_draws=4000, sample_stats__lp=lambda _: lp))
    assert row(table, "R-hat")["verdict"] == "pass"
    assert row(table, "equal mean log density", "chain 2")["verdict"] == "fail"
    assert not converged(table)


def test_the_density_level_detects_exchanged_sticks(rng):
    """Chains have the same draws in different orders; in one, exchanged sticks change the density level."""
    model, shape = DPMixture(3, alpha_shape=0.0), (4, 300)
    mu = np.array([-3.0, 0.0, 3.0])[:, None] + 0.02 * rng.standard_normal((300, 3, 1))
    values = {"weights": rng.dirichlet([600, 200, 50], 300), "mu": mu, "sigma": np.exp(0.02 * rng.standard_normal((300, 3, 1)))}
    orders = np.stack([rng.permutation(300) for _ in range(4)])
    values = {name: array[orders] for name, array in values.items()}
    for array in values.values():
        array[3] = array[3][:, [1, 0, 2]]
    dataset = Dataset({"x": rng.standard_normal((20, 1))}, dims={"x": ("unit", "feature")})
    density = Density(model, tensors(model, dataset), dataset.array_dims)
    flat = {name: array.reshape(-1, *array.shape[2:]) for name, array in values.items()}
    lp = over_draws(density.log_joint, flat).reshape(shape)
    pointwise = over_draws(density.log_likelihood, flat).reshape(*shape, 20)
    assert equal_means_p_value(lp) < LEVEL
    groups = {"posterior": values, "sample_stats": {"lp": lp}, "log_likelihood": {"log_likelihood": pointwise}}
    data = build(groups, dims={**model.dims, "log_likelihood": ("unit",)})
    table = Fit(model, dataset, NUTS(), 0, data).diagnostics()
    assert row(table, "equal mean log density", "for the log likelihood")["verdict"] == "pass"
    assert converged(table), table
    moved = groups | {"log_likelihood": {"log_likelihood": pointwise + 0.5 * (np.arange(4) == 2)[:, None, None]}}
    table = Fit(model, dataset, NUTS(), 0, build(moved, dims={**model.dims, "log_likelihood": ("unit",)})).diagnostics()
    assert row(table, "equal mean log density", "chain 2")["verdict"] == "fail"


def test_equal_means_p_value_is_welchs_test_with_effective_sample_sizes(rng):
    """For antithetic chains the effective size is limited to the number of draws, as in scipy."""
    lp = (-1.0) ** np.arange(12) * (1 + 0.3 * rng.normal(size=(5, 12))) * np.arange(1, 6)[:, None]
    lp[2] += 3
    assert (ess_mean(lp.T[None]) > 12).all()
    assert equal_means_p_value(lp) == pytest.approx(stats.f_oneway(*lp, equal_var=False).pvalue, rel=1e-9)
    slow = np.repeat(rng.normal(size=(2, 60)), 20, axis=1)
    size = ess_mean(slow.T[None])
    assert (size < 200).all()
    moments = [part for chain, n in zip(slow, size, strict=True) for part in (chain.mean(), chain.std(ddof=1), n)]
    assert equal_means_p_value(slow) == pytest.approx(stats.ttest_ind_from_stats(*moments, equal_var=False).pvalue, rel=1e-9)


def test_the_false_alarm_rate_matches_the_level(rng):
    """600 sound fits, autocorrelated gamma levels: at 5% nominal 12 to 54 alarms (central 1 - 1e-5 at 3 to 7%)."""
    noise = rng.normal(size=(600, 4, 500))
    for t in range(1, 500):
        noise[..., t] = 0.5 * noise[..., t - 1] + math.sqrt(0.75) * noise[..., t]
    p = np.array([equal_means_p_value(-stats.gamma(3).ppf(stats.norm.cdf(fit))) for fit in noise])
    assert 12 < (p < 0.05).sum() < 54
    assert (p < 0.001).sum() <= 6


def test_equal_means_p_value_of_a_frozen_chain_is_nan(rng):
    lp = rng.normal(size=(3, 100))
    lp[1] = 0.5
    assert math.isnan(equal_means_p_value(lp))


# -- variational


def variational_result(rng, rho, n_pairs=1, *, loss=None, shift=0.0):
    """The independent normals nearest to normal pairs with correlation rho, as SVI leaves them."""
    u = rng.normal(size=(20_000, n_pairs, 2)) * np.sqrt(1 - rho**2)
    lp = stats.multivariate_normal(cov=[[1, rho], [rho, 1]]).logpdf(u).reshape(20_000, n_pairs).sum(axis=1)
    log_q = stats.norm(scale=np.sqrt(1 - rho**2)).logpdf(u).sum(axis=(1, 2))
    steps = loss if loss is not None else np.r_[np.geomspace(50, 1, 1000), 1 + 0.5 * rng.normal(size=3000)]
    result = {
        "posterior": {"mu": u[None, :, 0]},
        "sample_stats": {"lp": lp[None], "log_q": log_q[None] + shift * u[None, :, 0, 0] ** 2, "log_q_averaged": log_q[None]},
        "optimization": {"loss": np.stack([steps + np.linspace(500, 5, len(steps)), steps]), "elbo": np.array([-6.0, -1.0])},
    }
    return build(result, dims=DIMS, attrs={"inference": "vi"})


def test_mean_field_fits_fail_for_strong_correlation_only(rng):
    """Heavy-tailed weights can understate the gap; the median of 11 fails with probability 2e-6."""
    table = diagnosed(variational_result(rng, 0.0))
    assert row(table, "k-hat")["value"] == 0.0
    assert converged(table), table
    table = diagnosed(variational_result(rng, 0.99))
    assert row(table, "k-hat", "q averaged")["verdict"] == "fail"
    assert row(table, "k-hat", "q averaged")["value"] > 0.7
    assert not converged(table)
    gaps = [row(diagnosed(variational_result(rng, 0.99)), "ELBO gap")["value"] for _ in range(11)]
    assert 0.3 < np.median(gaps) < -np.log(1 - 0.99**2) / 2


def test_khat_is_the_mean_over_blocks_of_2000_draws(rng):
    data = variational_result(rng, 0.8)
    ratios = (data["sample_stats"]["lp"] - data["sample_stats"]["log_q_averaged"]).values[0]
    each = [khat(block) for block in ratios.reshape(10, 2000)]
    found = row(diagnosed(data), "k-hat", "mean over 10 blocks")["value"]
    assert found == pytest.approx(np.mean(each))
    assert abs(found - khat(ratios)) > 1e-3


def test_raw_khat_is_shown_without_verdict(rng):
    table = diagnosed(variational_result(rng, 0.0, shift=-0.47))
    assert row(table, "k-hat", "q without averaging over the symmetry")["value"] > 0.7
    assert row(table, "k-hat", "q without averaging over the symmetry")["verdict"] == "not applicable"
    assert converged(table)
    assert row(table, "R-hat")["verdict"] == "not applicable"


def test_the_elbo_gap_is_the_kl_divergence(rng):
    """KL(q || p) = -log(1 - rho^2) / 2; a nat or more of it warns. Weights have finite variance where rho < 1/2.

    Standard errors are 0.003 and, of 30 pairs, 0.05.
    """
    table = diagnosed(variational_result(rng, 0.3))
    assert row(table, "ELBO gap")["value"] == pytest.approx(-np.log(1 - 0.09) / 2, abs=0.02)
    assert row(table, "ELBO gap")["verdict"] == "pass"
    table = diagnosed(variational_result(rng, 0.3, n_pairs=30))
    assert row(table, "ELBO gap")["value"] == pytest.approx(-15 * np.log(1 - 0.09), abs=0.3)
    assert row(table, "ELBO gap")["verdict"] == "warn"


def test_khat_and_gap_of_an_encoder_are_means_over_units(rng):
    """The encoder is shifted by d sds: KL(q || p) = d^2 / 2 for each unit, within 5 Monte Carlo errors."""
    d, u = np.array([0.0, 0.5, 1.0]), rng.normal(size=(4000, 3))
    log_weights = stats.norm(d).logpdf(u) - stats.norm.logpdf(u) - 7.0  # p is not normalised
    groups = {"posterior": {"mu": u[None]}, "log_weights": {"log_weight": log_weights[None]}}
    data = build(groups, dims={**DIMS, "log_weight": ("unit",)}, attrs={"inference": "vi"})
    table = diagnosed(data)
    each = np.log(np.mean(np.exp(log_weights), axis=0)) - log_weights.mean(axis=0)
    assert row(table, "ELBO gap")["value"] == pytest.approx(each.mean())
    assert row(table, "ELBO gap")["value"] == pytest.approx((d**2).mean() / 2, abs=0.07)
    assert row(table, "k-hat")["value"] == pytest.approx(np.mean([khat(unit) for unit in log_weights.T]))


def trendless(rng, t):
    """Noise without any slope over the last quarter of its steps."""
    noise, last = rng.normal(size=len(t)), t[-len(t) // 4 :]
    noise[-len(last) :] -= np.polyval(np.polyfit(last, noise[-len(last) :], 1), last)
    return noise


@pytest.mark.parametrize(
    ("loss", "verdict"),
    [
        (lambda rng, t: 100 * np.exp(-t / 100) + rng.normal(size=4000), "pass"),
        (lambda rng, t: -0.004 * t + rng.normal(size=4000), "fail"),  # rises by 4 nats
        (lambda rng, t: 0.004 * t + rng.normal(size=4000), "fail"),
        (lambda rng, t: -0.0008 * t + 2 * trendless(rng, t), "warn"),  # by 0.8, +- 0.7
        (lambda rng, t: 30 * trendless(rng, t), "warn"),  # noise hides it
        (lambda rng, t: t[:8] * 0 + rng.normal(size=8), "fail"),  # 2 steps to look at
    ],
)
def test_a_drifting_elbo_does_not_pass(rng, loss, verdict):
    table = diagnosed(variational_result(rng, 0.0, loss=loss(rng, np.arange(4000.0))))
    assert row(table, "ELBO drift")["verdict"] == verdict, table
    assert converged(table) == (verdict != "fail")


def test_drift_and_its_error_match_replications(rng):
    found = np.array([elbo_drift(-0.002 * np.arange(800) + rng.normal(size=800))[:2] for _ in range(1200)])
    assert found[:, 0].mean() == pytest.approx(0.4, abs=0.05)  # 7 standard errors; below, 7 too
    assert found[:, 1].mean() == pytest.approx(found[:, 0].std(), rel=0.15)


def test_padding_of_early_stopped_restarts_is_ignored(rng):
    rising = -0.1 * np.arange(400) + rng.normal(size=400)
    padded = np.r_[rising, np.full(3600, rising[-1])]
    assert elbo_drift(padded) == elbo_drift(rising)
    assert elbo_drift(rising)[0] > 5


# -- point estimates


@pytest.mark.parametrize(("gradient", "verdict"), [(1e-9, "pass"), (0.1, "fail"), (math.nan, "fail")])
def test_point_estimates_have_a_gradient_check_and_no_rhat(rng, gradient, verdict):
    values = {"posterior": {"mu": np.ones((1, 50, 3)), "z": rng.normal(size=(1, 50, 8, 2))}}
    values["log_likelihood"] = {"log_likelihood": np.full((1, 50, 8), -1.0)}
    attrs = {"inference": "point", "point_estimate": 1, "gradient": gradient, "how": "EM", "notes": "Heywood case: x; y"}
    table = diagnosed(build(values, dims=DIMS, attrs=attrs))
    for check in ("R-hat", "bulk ESS", "tail ESS", "LOO k-hat"):
        assert row(table, check)["verdict"] == "not applicable"
        assert "no posterior draws" in row(table, check)["value"]
    assert row(table, "gradient")["verdict"] == verdict
    assert table[table["check"] == "estimate"]["verdict"].tolist() == ["warn", "warn"]
    assert converged(table) == (verdict == "pass")


# -- LOO and the table


def test_loo_khat_warns_and_notes_conditional_likelihoods(rng):
    wide = edited(lambda a: np.multiply(a[..., 2], 60, out=a[..., 2]))
    table = diagnosed(sampler_result(rng, attrs={"conditional_log_likelihood": 1}, log_likelihood__log_likelihood=wide))
    found = row(table, "LOO k-hat", "given its own position")
    assert found["value"] == 1 / 8
    assert found["verdict"] == "warn"
    assert converged(table)


@pytest.mark.parametrize(
    ("value", "verdict", "expected"),
    [(1.0, "pass", True), (1.0, "warn", True), (1.0, "fail", False), (math.nan, "pass", False), (1.0, "unsure", False)],
)
def test_converged_is_false_for_failures_and_nan(value, verdict, expected):
    table = pd.DataFrame([("a", "", value, "", verdict), ("b", "", "why", "", "not applicable")])
    table.columns = ["check", "quantity", "value", "threshold", "verdict"]
    assert converged(table) is expected
    assert converged(table.iloc[1:]) is False
