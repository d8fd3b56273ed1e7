"""Tests of simulated data against their true parameters, and that planted errors are detected.

Each check limits the largest of at most a few hundred standard scores to 5: a correct simulator fails with probability below
1e-4 for a random seed, and seeds are fixed.
"""

import sys
from dataclasses import replace

import numpy as np
import pytest
from scipy.spatial.distance import cdist
from scipy.stats import multivariate_normal, norm

from latentlab.data.history import macrodata, nile, sunspots
from latentlab.data.load import load_dataset
from latentlab.data.markov import hidden_markov
from latentlab.data.mixtures import gaussian_mixture, geyser, latent_classes, means, poisson_mixture
from latentlab.data.series import boundaries
from latentlab.data.simulators import linear_gaussian
from latentlab.data.tables import digits
from latentlab.errors import DataError, MissingDependencyError

LIMIT = 5.0
MIXTURES = (gaussian_mixture, geyser, poisson_mixture, latent_classes)
SIMULATORS = (linear_gaussian, *MIXTURES, hidden_markov)


def by_component(dataset):
    z = dataset.truth["z"].astype(int)
    return [dataset.x[z == k] for k in range(z.max() + 1)]


def share_scores(found, weights):
    n = found.sum()
    return (found - n * weights) / np.sqrt(np.maximum(n * weights * (1 - weights), 1e-9))


def score_shares(dataset):
    """Standard scores of the number of units in each component."""
    z, weights = dataset.truth["z"].astype(int), dataset.truth["weights"]
    return share_scores(np.bincount(z, minlength=len(weights)), weights)


def score_gaussians(dataset, states="mu"):
    """Standard scores of means, variances and correlations within components."""
    scores = []
    for part, mu, sigma, k in zip(
        by_component(dataset), dataset.truth[states], dataset.truth["sigma"], range(len(dataset.truth["sigma"])), strict=True
    ):
        e = (part - mu) / sigma
        n = len(e)
        scores += [e.mean(axis=0) * np.sqrt(n), ((e**2).mean(axis=0) - 1) * np.sqrt(n / 2)]
        if e.shape[1] > 1:
            rho = dataset.truth["correlation"][k] if "correlation" in dataset.truth else 0.0
            scores.append([(np.arctanh(np.corrcoef(e[:, :2].T)[0, 1]) - np.arctanh(rho)) * np.sqrt(n - 3)])
    return np.concatenate(scores)


def score_counts(dataset):
    scores = []
    for part, rate in zip(by_component(dataset), dataset.truth["rate"], strict=True):
        n = len(part)
        # A Poisson variable's squared deviation has variance 2 rate^2 + rate.
        spread = ((part - rate) ** 2).mean(axis=0) - rate
        scores += [(part.mean(axis=0) - rate) * np.sqrt(n / rate), spread * np.sqrt(n / (2 * rate**2 + rate))]
    return np.concatenate(scores)


def score_classes(dataset):
    scores = []
    for part, p in zip(by_component(dataset), dataset.truth["probability"], strict=True):
        e = (part - p) / np.sqrt(p * (1 - p))
        scores.append(e.mean(axis=0) * np.sqrt(len(e)))
        products = e.T @ e / np.sqrt(len(e))
        scores.append(products[np.triu_indices(len(p), 1)])
    return np.concatenate(scores)


def score_transitions(dataset):
    """Standard scores of initial states, transitions within sequences and noise autocorrelation."""
    z, codes = dataset.truth["z"].astype(int), boundaries(dataset)
    initial, transition = dataset.truth["initial"], dataset.truth["transition"]
    starts, same = np.r_[True, codes[1:] != codes[:-1]], codes[1:] == codes[:-1]
    moves = np.zeros(transition.shape)
    np.add.at(moves, (z[:-1][same], z[1:][same]), 1)
    scores = [share_scores(np.bincount(z[starts], minlength=len(initial)), initial)]
    scores += [share_scores(row, p) for row, p in zip(moves, transition, strict=True)]
    e = (dataset.x - dataset.truth["mu"][z]) / dataset.truth["sigma"][z]
    scores.append((e[1:] * e[:-1])[same].mean(axis=0) * np.sqrt(same.sum()))
    return np.concatenate(scores)


LARGE = {
    "gaussian_mixture": (gaussian_mixture(n_units=20_000, n_components=4, n_features=3), (score_shares, score_gaussians)),
    "close": (gaussian_mixture(n_units=20_000, n_features=1, separation=0.5, seed=1), (score_shares, score_gaussians)),
    "geyser": (geyser(n_units=20_000), (score_shares, score_gaussians)),
    "poisson_mixture": (poisson_mixture(n_units=20_000, n_features=3), (score_shares, score_counts)),
    "latent_classes": (latent_classes(n_units=20_000), (score_shares, score_classes)),
    "hidden_markov": (hidden_markov(n_sequences=2000, n_steps=20, n_features=2), (score_transitions, score_gaussians)),
}


@pytest.mark.parametrize("name", LARGE)
def test_shares_and_moments_match_the_true_parameters(name):
    dataset, checks = LARGE[name]
    for check in checks:
        assert np.abs(check(dataset)).max() < LIMIT, check.__name__


SLIPS = [
    ("gaussian_mixture", "weights", lambda t: np.full(4, 0.25), score_shares),
    ("gaussian_mixture", "sigma", lambda t: 1.1 * t["sigma"], score_gaussians),
    ("gaussian_mixture", "mu", lambda t: t["mu"] + 0.1, score_gaussians),
    ("gaussian_mixture", "z", lambda t: np.r_[t["z"][1:], t["z"][:1]], score_gaussians),
    ("close", "z", lambda t: np.r_[t["z"][1:], t["z"][:1]], score_gaussians),
    ("geyser", "correlation", lambda t: t["correlation"][::-1], score_gaussians),
    ("geyser", "mu", lambda t: t["mu"][::-1], score_gaussians),
    ("geyser", "sigma", lambda t: t["sigma"][::-1], score_gaussians),
    ("poisson_mixture", "rate", lambda t: 1.05 * t["rate"], score_counts),
    ("poisson_mixture", "rate", lambda t: t["rate"][:, ::-1], score_counts),
    ("latent_classes", "probability", lambda t: t["probability"][::-1], score_classes),
    ("latent_classes", "z", lambda t: np.r_[t["z"][1:], t["z"][:1]], score_classes),
    ("hidden_markov", "transition", lambda t: t["transition"].T, score_transitions),
    ("hidden_markov", "initial", lambda t: np.full(3, 1 / 3), score_transitions),
    ("hidden_markov", "z", lambda t: np.r_[t["z"][1:], t["z"][:1]], score_gaussians),
]


@pytest.mark.parametrize(("name", "key", "slip", "check"), SLIPS)
def test_a_planted_error_in_the_true_parameters_is_detected(name, key, slip, check):
    dataset = LARGE[name][0]
    wrong = replace(dataset, truth={**dataset.truth, key: slip(dataset.truth)})
    assert np.abs(check(wrong)).max() > 2 * LIMIT


@pytest.mark.parametrize("separation", [0.5, 1.0, 2.0, 4.0])
def test_separation_determines_the_bayes_error(separation):
    dataset = gaussian_mixture(n_units=50_000, n_components=2, n_features=3, separation=separation)
    weights, mu, sigma = dataset.truth["weights"], dataset.truth["mu"], dataset.truth["sigma"]
    densities = [w * multivariate_normal(m, np.diag(s**2)).pdf(dataset.x) for w, m, s in zip(weights, mu, sigma, strict=True)]
    wrong = (np.argmax(densities, axis=0) != dataset.truth["z"]).mean()
    shift = np.log(weights[0] / weights[1]) / separation
    expected = weights @ norm.cdf([-separation / 2 - shift, -separation / 2 + shift])
    assert abs(wrong - expected) < LIMIT * np.sqrt(expected * (1 - expected) / 50_000)


@pytest.mark.parametrize("n_features", [1, 2, 3, 50])
@pytest.mark.parametrize("n_components", [1, 2, 3, 4, 7, 10, 30])
def test_the_distance_between_nearest_means_is_the_separation(n_components, n_features, rng):
    mu = means(n_components, n_features, 1.5, rng)
    assert mu.shape == (n_components, n_features)
    if n_components > 1:
        distances = cdist(mu, mu) + 1e9 * np.eye(n_components)
        np.testing.assert_allclose(distances.min(axis=0), 1.5, rtol=1e-9)


@pytest.mark.parametrize("simulator", SIMULATORS)
def test_a_seed_determines_the_dataset(simulator):
    assert simulator(seed=3).digest() == simulator(seed=3).digest()
    assert simulator(seed=3).digest() != simulator(seed=4).digest()


@pytest.mark.parametrize("simulator", [*MIXTURES, hidden_markov])
def test_labels_are_component_names_and_true_values_have_dims(simulator):
    dataset = simulator()
    assert dataset.labels.tolist() == [str(int(k)) for k in dataset.truth["z"]]
    assert set(dataset.truth_dims) == set(dataset.truth)
    assert dataset.truth_dims["z"] == ("unit",)
    first = dataset.subset([0, 1])
    assert first.truth["z"].tolist() == dataset.truth["z"][:2].tolist()


def test_a_single_component_and_a_single_unit_are_accepted():
    assert gaussian_mixture(n_units=1, n_components=1, n_features=1).truth["weights"].tolist() == [1.0]
    assert poisson_mixture(n_units=2, n_components=1).truth["rate"].tolist() == [[2.0, 2.0]]
    assert latent_classes(n_units=1, n_components=1, n_features=1).x.shape == (1, 1)
    alone = hidden_markov(n_sequences=1, n_steps=1, n_states=1)
    assert alone.truth["transition"].tolist() == [[1.0]]
    assert alone.units.tolist() == ["0:0"]


def test_sequences_have_the_requested_lengths():
    dataset = hidden_markov(n_sequences=5, n_steps=9)
    assert np.bincount(boundaries(dataset)).tolist() == [9, 8, 7, 6, 5]
    assert np.bincount(boundaries(hidden_markov(n_sequences=3, n_steps=7, unequal=False))).tolist() == [7, 7, 7]
    assert dataset.coords["time"][:10].tolist() == [*range(9), 0]


@pytest.mark.parametrize("stay", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("n_states", [1, 2, 3, 5])
def test_transition_rows_are_distributions(n_states, stay):
    A = hidden_markov(n_sequences=1, n_steps=3, n_states=n_states, stay=stay).truth["transition"]
    np.testing.assert_allclose(A.sum(axis=1), 1)
    if n_states > 1:
        np.testing.assert_allclose(np.diag(A), stay)
    if n_states > 2:
        np.testing.assert_allclose(A[0, 1], 2 * A[0, 2])


@pytest.mark.parametrize(
    ("simulator", "options", "message"),
    [
        (gaussian_mixture, {"n_components": 0}, "`n_components` must be a whole number of at least 1; got 0"),
        (gaussian_mixture, {"separation": -1}, "`separation` must be a finite number from 0; got -1"),
        (gaussian_mixture, {"separation": float("nan")}, "`separation` must be a finite number from 0; got nan"),
        (geyser, {"n_units": 2.5}, "`n_units` must be a whole number of at least 1; got 2.5"),
        (poisson_mixture, {"ratio": 0.5}, "`ratio` must be a finite number from 1; got 0.5"),
        (poisson_mixture, {"ratio": 100, "n_components": 20}, "rates up to 2e.38 are beyond"),
        (latent_classes, {"certainty": 0.4}, "`certainty` must be a finite number from 0.5 to 1; got 0.4"),
        (hidden_markov, {"n_states": True}, "`n_states` must be a whole number of at least 1; got True"),
        (hidden_markov, {"stay": 1.1}, "`stay` must be a finite number from 0 to 1; got 1.1"),
        (hidden_markov, {"unequal": 1}, "`unequal` must be true or false; got 1"),
    ],
)
def test_invalid_simulator_options_are_refused(simulator, options, message):
    with pytest.raises(DataError, match=f"^{simulator.__name__}: {message}"):
        simulator(**options)


# -- what is real


def test_the_bundled_series_match_published_values():
    flow = nile()
    assert (flow.n_units, flow.x.mean().round(2), flow.coords["time"][[0, -1]].tolist()) == (100, 919.35, [1871, 1970])
    spots = sunspots()
    assert (spots.n_units, spots.coords["time"][[0, -1]].tolist(), spots.x.max()) == (309, [1700, 2008], 190.2)
    assert boundaries(spots).tolist() == [0] * 309
    assert load_dataset("nile").x.std().round(12) == 1


def test_sunspot_levels_are_ordered_and_of_similar_size():
    levels, spots = sunspots(n_levels=4).x[:, 0].astype(int), sunspots().x[:, 0]
    assert np.bincount(levels).tolist() == [77, 76, 78, 78]
    assert all(spots[levels == k].max() < spots[levels == k + 1].min() for k in range(3))
    for options, message in (
        ({"n_levels": 1}, "from 2 to 20"),
        ({"n_levels": 2.5}, "whole"),
        ({"n_levels": 4, "whole": True}, "cannot be combined"),
    ):
        with pytest.raises(DataError, match=f"^sunspots: .*{message}"):
            sunspots(**options)


def test_missing_statsmodels_is_reported_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "statsmodels.datasets.nile", None)
    with pytest.raises(MissingDependencyError, match=r"the dataset 'nile' needs the package 'statsmodels'.*latentlab\[stats\]"):
        nile()


def test_macroeconomic_growth_rates_match_the_levels():
    levels, grown = macrodata(growth=False), macrodata(["cpi", "infl", "m1", "unemp"])
    assert (levels.n_units, grown.n_units) == (203, 202)
    assert (levels.units[0], grown.units[0], grown.coords["time"][-1]) == ("1959Q1", "1959Q2", "2009Q3")
    m1 = levels.x[:, levels.features.tolist().index("m1")]
    np.testing.assert_allclose(grown.x[:, 2], 400 * np.log(m1[1:] / m1[:-1]))
    # Inflation is published to two digits: it is the growth of the price index.
    assert np.abs(grown.x[:, 0] - grown.x[:, 1]).max() < 0.02
    assert grown.x[:, 3].tolist() == levels.x[1:, levels.features.tolist().index("unemp")].tolist()
    assert macrodata().sizes == {"unit": 202, "feature": 9}
    assert boundaries(macrodata()).max() == 0
    with pytest.raises(DataError, match=r"unknown column 'gdp'; did you mean 'realgdp'\?"):
        macrodata(["gdp"])


def test_dequantised_pixels_are_uniform_within_each_integer():
    whole, soft = digits(), digits(dequantize=True)
    assert (np.floor(17 * soft.x) == whole.x).all()
    u = np.sort((17 * soft.x - whole.x).ravel())
    # Kolmogorov's distance: beyond 2.4 / sqrt(n) with a chance of 2e-5.
    assert np.abs(u - (np.arange(u.size) + 0.5) / u.size).max() < 2.4 / np.sqrt(u.size)
    assert digits(dequantize=True, seed=1).digest() != soft.digest() == digits(dequantize=True).digest()
    column = digits(["pixel_3_4"], dequantize=True)
    assert column.x[:, 0].tolist() == soft.x[:, soft.features.tolist().index("pixel_3_4")].tolist()
    assert load_dataset("digits", dequantize=True).dropped == ()
    with pytest.raises(DataError, match="`dequantize` must be true or false; got 1"):
        digits(dequantize=1)
