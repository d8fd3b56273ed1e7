"""Tests of the coverage of true coordinates after a smooth map."""

import numpy as np
import pytest

from latentlab.compare import smooth_map
from latentlab.compare.coverage import LEVELS
from latentlab.compare.smooth_map import smooth_map_coverage
from latentlab.errors import DataError


def bent(t):
    """A smooth map of the plane that no similarity transformation undoes."""
    return np.column_stack([t[:, 0] + 0.3 * np.sin(2 * t[:, 0]), t[:, 1] * (1 + 0.3 * t[:, 0])])


def posterior(rng, n=300, width=1.0, map=bent, n_draws=200):
    """True coordinates, and draws whose mean has errors of the draws' own spread if `width` is 1."""
    t = rng.uniform(size=(n, 2)) * [3, 1]
    spread = 0.1 * (1 + rng.uniform(size=(n, 1)))
    mean = map(t) + spread * rng.normal(size=(n, 2))
    return t, mean + width * spread * rng.normal(size=(4, n_draws // 4, n, 2))


@pytest.mark.chance(2e-4)
def test_coverage_is_nominal_for_a_calibrated_posterior(rng):
    """20 data sets: 4 standard errors of the mean share, 2e-4 over the levels, and the known error of the map."""
    found = [smooth_map_coverage(draws, t) for t, draws in (posterior(rng) for _ in range(20))]
    shares = np.array([each.coverage.pointwise for each in found])
    tolerance = 4 * shares.std(axis=0, ddof=1) / np.sqrt(20)
    variance = np.mean([each.map_variance for each in found])
    assert 0 < variance < 0.1
    lost = np.array(LEVELS) - shares.mean(axis=0)
    assert (-tolerance < lost).all()
    assert (lost < tolerance + variance * 0.5).all()
    assert (tolerance < 0.05).all()
    errors = np.mean([each.standard_errors for each in found], axis=0)
    assert (np.abs(np.log(errors / shares.std(axis=0, ddof=1))) < np.log(2.5)).all(), "the stated error is that between data sets"
    assert errors[2] < 0.7 * errors[0]
    assert min(each.smooth_r2 for each in found) > 0.9 > 0.88 > max(each.similarity_r2 for each in found)


def test_ellipses_half_or_twice_as_wide_are_detected(rng):
    for width, sign in ((0.5, -1), (2.0, 1)):
        t, draws = posterior(rng, width=width)
        found = smooth_map_coverage(draws, t)
        z = (np.array(found.coverage.pointwise) - LEVELS) / found.standard_errors
        assert (sign * z[:2] > 5).all()


def test_a_fold_is_no_smooth_map_of_the_coordinates(rng):
    """Positions in an order that is unrelated to the coordinates are not covered, and have an r2 of about 0."""
    t, draws = posterior(rng)
    found = smooth_map_coverage(draws, rng.permutation(t))
    assert found.smooth_r2 < 0.1
    assert found.coverage.pointwise[1] < 0.5


def test_turned_draws_are_aligned_first(rng):
    t, draws = posterior(rng)
    turns = np.linalg.qr(rng.normal(size=(4, 50, 2, 2)))[0]
    once, turned = smooth_map_coverage(draws, t), smooth_map_coverage(draws @ turns, t)
    assert once.coverage.pointwise == pytest.approx(turned.coverage.pointwise, abs=0.02)
    assert turned.smooth_r2 == pytest.approx(once.smooth_r2, abs=1e-3)
    fixed = smooth_map_coverage(draws @ turns, t, alignment="fixed").coverage.pointwise
    assert fixed[0] > 0.9 > once.coverage.pointwise[1], "the spread of rotations widens the regions"


def test_predictions_are_those_of_the_smoothing_spline(rng):
    """SciPy's smoothing spline with the same kernel and penalty."""
    from scipy.interpolate import RBFInterpolator

    t, new, m = rng.normal(size=(60, 2)), rng.normal(size=(7, 2)), rng.normal(size=(60, 2))
    found, weights = smooth_map._fits(t, new, m)
    distances = np.linalg.norm(t[:, None] - t, axis=-1) ** 3
    q = np.linalg.qr(np.column_stack([np.ones(60), t]), mode="complete")[0][:, 3:]
    scale = np.linalg.eigvalsh(q.T @ distances @ q)[-1]
    for i in (0, 10, 20):
        spline = RBFInterpolator(t, m, kernel="cubic", degree=1, smoothing=smooth_map.SMOOTHNESS[i] * scale)
        np.testing.assert_allclose(found[i], spline(new), atol=1e-6)
        each = np.stack([smooth_map._fits(t, new, np.eye(60)[:, [j]])[0][i][:, 0] for j in range(60)], axis=1)
        np.testing.assert_allclose(weights[i], (each**2).sum(axis=1), rtol=1e-8)


def test_no_unit_is_in_the_fit_of_its_own_prediction(rng):
    """A change of one unit's mean does not move its prediction at the same smoothness."""
    t, m = rng.uniform(size=(50, 2)), rng.normal(size=(50, 2))
    before = smooth_map._cross_fitted(t, m)
    m[7] += 1e-6
    after = smooth_map._cross_fitted(t, m)
    assert before[2] == after[2]
    np.testing.assert_array_equal(before[0][7], after[0][7])
    assert (before[0] != after[0]).any()


def test_many_units_are_thinned_for_the_fit(rng, monkeypatch):
    t, draws = posterior(rng, n=300)
    monkeypatch.setattr(smooth_map, "FITTED", 100)
    assert smooth_map_coverage(draws, t).smooth_r2 > 0.85


def test_data_without_a_map_are_refused(rng):
    t, draws = posterior(rng, n=40)
    with pytest.raises(DataError, match="`truth` must have the 40 units of the draws; got 39"):
        smooth_map_coverage(draws, t[1:])
    with pytest.raises(DataError, match="needs at least 20 units; got 19"):
        smooth_map_coverage(draws[:, :, :19], t[:19])
    with pytest.raises(DataError, match="`truth` must have 2 linearly independent columns"):
        smooth_map_coverage(draws, np.column_stack([t[:, 0], 0 * t[:, 0]]))
    with pytest.raises(DataError, match="finite"):
        smooth_map_coverage(draws, np.full_like(t, np.nan))
