"""Tests that standardising makes equal noise unequal, so that PPCA selects too many dimensions."""

import numpy as np
import pytest

import latentlab as ll
from latentlab.comparison.selection import loo_table
from latentlab.data.simulators import linear_gaussian

M = ll.models


def divergence(covariance, q):
    """Kullback-Leibler divergence from N(0, covariance) to the closest PPCA with q dimensions (closed form): nats a unit."""
    values = np.linalg.eigvalsh(covariance)[::-1]
    rest = values[q:]
    return 0.5 * (len(rest) * np.log(rest.mean()) - np.log(rest).sum())


def test_standardised_data_do_not_follow_ppca_with_two_dimensions():
    rng = np.random.default_rng(0)
    W, noise = rng.normal(size=(8, 2)), 0.5
    covariance = W @ W.T + noise**2 * np.eye(8)
    scale = np.sqrt(np.diag(covariance))
    standardised = covariance / np.outer(scale, scale)
    assert divergence(covariance, 2) == pytest.approx(0, abs=1e-12)
    lost = [divergence(standardised, q) for q in range(2, 7)]
    assert lost[0] > 0.2
    assert (np.diff(lost) < -0.02).all()  # every further dimension gains: for hundreds of units, many nats
    # factor analysis has the noise of each column, so two dimensions are enough on either scale
    rest = standardised - np.diag(noise**2 / scale**2)
    assert np.linalg.matrix_rank(rest, tol=1e-10) == 2


def test_raw_data_and_factor_analysis_select_two():
    """200 units for the fit, 2000 held out: differences are of tens to thousands of nats."""
    x = linear_gaussian(n_units=2200, n_features=8, n_latent=2, noise=0.5, seed=0).x
    train, held_out = (ll.Dataset({"x": part}, dims={"x": ("unit", "feature")}) for part in (x[:200], x[200:]))

    def best(model, dataset, numbers):
        fits = [ll.fit(model(q), dataset, ll.Exact(n_draws=2), progress=False) for q in numbers]
        return numbers[int(np.argmax([fit.held_out_score(held_out)["elpd"] for fit in fits]))]

    assert best(M.PPCA, train, (1, 2, 3, 4)) == 2
    assert best(M.PPCA, train.standardize(), (1, 2, 3, 4)) == 4
    assert best(M.FactorAnalysis, train.standardize(), (1, 2, 3)) == 2


@pytest.mark.parametrize("standardised", [True, False])
def test_the_selection_table_shows_more_dimensions_for_standardised_data(standardised):
    dataset = linear_gaussian(n_units=40, n_features=4, n_latent=1)
    dataset = dataset.standardize() if standardised else dataset
    method = ll.SVI("mean_field", n_steps=20, n_draws=100)
    fits = {f"ppca {q}": ll.fit(M.PPCA(q), dataset, method, progress=False) for q in (1, 2)}
    table = loo_table(fits)
    assert table["note"].str.contains("standardised columns have unequal noise variances").all() == standardised
    assert table["note"].str.contains("standardised").any() == standardised
    only = fits | {"factor analysis": ll.fit(M.FactorAnalysis(1), dataset, method, progress=False)}
    notes = loo_table({name: only[name] for name in ("ppca 1", "factor analysis")}).set_index("model")["note"]
    assert not notes.str.contains("unequal").any()  # no number of dimensions is chosen
