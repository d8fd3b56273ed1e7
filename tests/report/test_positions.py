"""Tests of the section on positions against independent formulas."""

import itertools

import numpy as np
import pytest

from latentlab.report.imputations import imputations
from latentlab.report.predictive import tail
from latentlab.report.source import Source
from latentlab.store.read import Run


def test_the_tail_p_is_exact_under_the_null():
    """With R replicates the observed value's rank is uniform over R + 1; p is uniform over 2/100, 4/100, ..."""
    n = 99
    again = np.arange(n, dtype=float)[:, None]
    p = np.array([tail(np.array([rank - 0.5]), again)[0] for rank in range(n + 1)])
    for level in (0.02, 0.04, 0.1, 0.5):
        assert np.mean(p <= level + 1e-12) == pytest.approx(level, abs=1e-9)
    assert tail(np.array([3.0]), np.full((9, 1), 3.0))[0] == 1.0, "equal values are no evidence"


def test_means_and_ellipses_match_the_draws(wide: Run):
    source = Source(wide)
    z = wide.posterior["latents"]["z"].values
    flat = z.reshape(-1, *z.shape[2:])
    assert np.allclose(source.mean, flat.mean(axis=0), rtol=0, atol=1e-12)
    for unit in (0, 17):
        assert np.allclose(source.covariance[unit], np.cov(flat[:, unit], rowvar=False), rtol=1e-10)
    assert source.spread[3] == pytest.approx(np.sqrt(flat[:, 3].var(axis=0, ddof=1).mean()), rel=1e-12)


def test_imputations_match_the_conditional_gaussian(bare: Run):
    """Given the point estimate, x is N(mu, W W^T + Psi): missing entries have the textbook conditional on those observed.

    400 draws of 20 entries: each mean is within 5.1 standard errors, each sd within 20% (5.7 of its own): 1e-5 false alarms.
    """
    source = Source(bare)
    x = source.observed.values
    where = np.argwhere(np.isnan(x))
    assert len(where) == 20
    sites = {name: bare.posterior["posterior"][name].values[0, 0] for name in ("W", "mu", "psi")}
    joint = sites["W"] @ sites["W"].T + np.diag(sites["psi"] ** 2)
    draws = imputations(source, source.model, where)
    assert draws.shape == (400, 20)
    for column, (unit, feature) in zip(draws.T, where, strict=True):
        seen = np.flatnonzero(~np.isnan(x[unit]))
        gain = np.linalg.solve(joint[np.ix_(seen, seen)], joint[seen, feature])
        mean = sites["mu"][feature] + gain @ (x[unit, seen] - sites["mu"][seen])
        sd = np.sqrt(joint[feature, feature] - gain @ joint[seen, feature])
        assert abs(column.mean() - mean) < 5.1 * sd / np.sqrt(400)
        assert 0.8 < column.std() / sd < 1.2


def test_imputations_are_compared_with_hidden_entries(bare: Run):
    source = Source(bare)
    assert source.raw is not None
    x, truth = source.observed.values, source.raw.truth["x"]
    seen = ~np.isnan(x)
    params = bare.params
    again = (truth - params["transform.loc"]) / params["transform.scale"]
    assert np.allclose(again[seen], x[seen], atol=1e-12)


@pytest.mark.parametrize("fixture", ["hostile", "wide"])
def test_mapped_and_raw_rows_reproduce_the_scores(fixture: str, request: pytest.FixtureRequest):
    """Recomputes the scores of the run from the rows, by an independent formula for procrustes_similarity."""
    found: Run = request.getfixturevalue(fixture)
    source, data = Source(found), found.comparison
    z = found.posterior["latents"]["z"].values
    n_draws = data.sizes["draw"]
    picked = np.unique(np.linspace(0, z.shape[1] - 1, n_draws).astype(int))
    for row, (chain, draw) in itertools.product(source.rows, [(0, 0), (z.shape[0] - 1, n_draws - 1)]):
        a, b = (v - v.mean(axis=0) for v in (row.values, z[chain, picked[draw]]))
        nuclear = np.linalg.svd(a.T @ b, compute_uv=False).sum()
        expected = 1 - nuclear**2 / ((a**2).sum() * (b**2).sum())
        score = data["scores"].sel(metric="procrustes_similarity", embedding=row.label)[chain, draw]
        assert float(score) == pytest.approx(expected, abs=1e-9), row.title
