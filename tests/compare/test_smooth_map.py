"""Tests of the coverage of true coordinates after a smooth map."""

import numpy as np
import pytest

from latentlab.compare import smooth_map
from latentlab.compare.coverage import LEVELS, Regions
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
    """20 data sets: 4 standard errors of the mean share, 2e-4 over the levels, and 1% for the map."""
    found = [smooth_map_coverage(draws, t) for t, draws in (posterior(rng) for _ in range(20))]
    shares = np.array([each.coverage.pointwise for each in found])
    tolerance = 4 * shares.std(axis=0, ddof=1) / np.sqrt(20)
    assert 0 < np.mean([each.map_variance for each in found]) < 0.2
    lost = np.array(LEVELS) - shares.mean(axis=0)
    assert (np.abs(lost) < tolerance + 0.01).all()
    assert (tolerance < 0.05).all()
    errors = np.mean([each.standard_errors for each in found], axis=0)
    assert (np.abs(np.log(errors / shares.std(axis=0, ddof=1))) < np.log(2.5)).all(), "the stated error is that between data sets"
    assert errors[2] < 0.7 * errors[0]
    assert min(each.smooth_r2 for each in found) > 0.85
    assert min(each.smooth_r2 - each.similarity_r2 for each in found) > 0.01


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


def test_predictions_are_those_of_the_process_without_the_unit(rng):
    """A formula for one unit at a time, and a change of a unit's own position that does not move its prediction."""
    t, y = rng.normal(size=(40, 2)), rng.normal(size=40)
    kernel = smooth_map._fitted_kernel(t, y)
    new, (t, y) = t[:3], (t[3:], y[3:])
    mean, variance = smooth_map._predicted(kernel, t, y, new)
    linear = np.column_stack([np.ones(len(t)), t])
    slopes = np.linalg.solve(linear.T @ linear, linear.T @ y)
    residuals = y - linear @ slopes
    a2, lengthscales, noise = kernel.k1.k1.constant_value, kernel.k1.k2.length_scale, kernel.k2.noise_level
    for i, one in enumerate(new):
        cross = a2 * np.exp(-0.5 * (((one - t) / lengthscales) ** 2).sum(1))
        K = a2 * np.exp(-0.5 * (((t[:, None] - t) / lengthscales) ** 2).sum(-1)) + (noise + 1e-10) * np.eye(len(t))
        expected = slopes[0] + one @ slopes[1:] + cross @ np.linalg.solve(K, residuals)
        assert mean[i] == pytest.approx(expected, rel=1e-6, abs=1e-8)
        spread = residuals.std() ** 2 * (a2 - cross @ np.linalg.solve(K, cross))
        assert variance[i] == pytest.approx(spread, rel=1e-4, abs=1e-8)


def test_a_map_that_bends_along_one_coordinate_only_is_found(rng):
    """The spread of the predictions is small, as the other coordinate has a lengthscale of its own."""
    t = rng.uniform(size=(400, 2)) * [20, 1]
    errors = 0.05 * rng.normal(size=(2, 201, 400, 2))
    mean = np.column_stack([np.sin(t[:, 0]), t[:, 1]]) + errors[0, 0]
    found = smooth_map_coverage(mean + errors[:, 1:], t)
    assert found.smooth_r2 > 0.97
    assert found.map_variance < 0.3


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


def test_no_unit_is_in_the_fit_of_its_own_prediction(rng, monkeypatch):
    t, m = rng.uniform(size=(50, 2)), rng.normal(size=(50, 2))
    kernel = smooth_map._fitted_kernel(t, np.sin(3 * t[:, 0]) + 0.1 * m[:, 0])
    monkeypatch.setattr(smooth_map, "_fitted_kernel", lambda t, y: kernel)
    before, _ = smooth_map._cross_fitted(t, m)
    m[7] += 5
    after, _ = smooth_map._cross_fitted(t, m)
    np.testing.assert_array_equal(before[7], after[7])
    assert np.abs(before - after).max() > 0.01


def test_variances_of_the_mapped_coordinates_are_added_to_those_of_the_draws(rng):
    draws = rng.normal(size=(1, 400, 6, 2)) @ np.array([[1.0, 0.4], [0.0, 0.7]])
    y, variance = rng.normal(size=(6, 2)), rng.uniform(0.1, 2, size=(6, 2))
    regions = Regions(draws[:, :200], draws[:, 200:], lambda x: x)
    found = regions.coverage(y, variance)
    for n in range(6):
        each = draws[0, :200, n]
        error = y[n] - each.mean(0)
        expected = np.sqrt(error @ np.linalg.solve(np.cov(each.T) + np.diag(variance[n]), error))
        assert found.distances[n] == pytest.approx(expected, rel=0.01)
    assert (found.distances < regions.coverage(y).distances).all()
