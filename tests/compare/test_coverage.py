"""Tests that credible regions cover new draws and true positions at the nominal rate."""

import numpy as np
import pytest
from scipy.linalg import orthogonal_procrustes
from scipy.stats import t

from latentlab.compare.coverage import LEVELS, coverage, hotelling_radius, inverse_root, positions
from latentlab.errors import DataError


def exact(rng, n, d, n_draws, signal=4.0):
    """True positions, and exact posterior draws `(4, n_draws / 4, n, d)`, of a linear-Gaussian model with known loadings."""
    variance = 1 / (1 + signal)
    truth = rng.normal(size=(n, d))
    mean = (1 - variance) * truth + np.sqrt(variance * (1 - variance)) * rng.normal(size=(n, d))
    draws = mean + np.sqrt(variance) * rng.normal(size=(4, n_draws // 4, n, d))
    return truth, mean, draws


@pytest.mark.parametrize("n_draws", [3, 10, 200])
@pytest.mark.parametrize("level", LEVELS)
def test_radius_in_one_column_is_the_student_t_prediction_interval(n_draws, level):
    expected = t.ppf((1 + level) / 2, n_draws - 1) * np.sqrt(1 + 1 / n_draws)
    assert hotelling_radius(n_draws, 1, level) == pytest.approx(expected, rel=1e-10)


def test_the_region_covers_a_new_draw_at_the_nominal_rate(rng):
    """In 3 columns from 8 draws, 40 000 times: sd 0.0025 at most, 5 sd allowed (a rate of 2e-6 over the levels)."""
    x = rng.normal(size=(40_000, 9, 3)) @ rng.normal(size=(3, 3))
    less = x[:, 8] - x[:, :8].mean(axis=1)
    centred = x[:, :8] - x[:, :8].mean(axis=1, keepdims=True)
    root = inverse_root(centred.swapaxes(1, 2) @ centred / 7)
    distance = np.linalg.norm((root @ less[..., None])[..., 0], axis=1)
    for level in LEVELS:
        assert (distance <= hotelling_radius(8, 3, level)).mean() == pytest.approx(level, abs=0.0125)


@pytest.mark.parametrize("alignment", ["orthogonal", "similarity"])
@pytest.mark.parametrize(("n", "d", "n_draws", "n_datasets"), [(20, 2, 400, 200), (100, 2, 60, 150), (100, 5, 200, 100)])
@pytest.mark.chance(6e-4)
def test_a_known_truth_is_covered_at_the_nominal_rate(alignment, n, d, n_draws, n_datasets, rng):
    """|mean - nominal| < 4 sd_between / sqrt(R): a false alarm in 6e-5 of cases a level, 6e-4 over the nine.

    Scaled draws are not exactly Gaussian, so that the limit is wider by 1%; for held-out draws the limit is 1%.
    """
    found = (
        coverage(draws, truth, alignment=alignment) for truth, _, draws in (exact(rng, n, d, n_draws) for _ in range(n_datasets))
    )
    shares = np.array([[each.pointwise, each.draws] for each in found])
    truth, draws = shares.mean(axis=0)
    tolerance = 4 * shares[:, 0].std(axis=0, ddof=1) / np.sqrt(n_datasets) + (0.01 if alignment == "similarity" else 0.0)
    assert (np.abs(truth - LEVELS) < tolerance).all(), truth
    assert (tolerance < [0.05, 0.045, 0.03]).all()
    assert (np.abs(draws - LEVELS) < 0.01).all(), draws


@pytest.mark.chance(2e-4)
def test_simultaneous_regions_cover_all_true_positions_at_once(rng):
    """For 300 data sets the binomial sd is 0.029 at most; the limit is 4 sd, a false alarm rate of 2e-4 over the levels."""
    found = np.array([coverage(draws, truth).simultaneous for truth, _, draws in (exact(rng, 30, 2, 400) for _ in range(300))])
    for level, share in zip(LEVELS, found.mean(axis=0), strict=True):
        assert share == pytest.approx(level, abs=4 * np.sqrt(level * (1 - level) / 300) + 1 / 200)


def test_coverage_is_full_for_the_mean_and_low_for_shuffled_units(rng):
    _, mean, draws = exact(rng, 100, 2, 400)
    assert coverage(draws, mean).pointwise == (1.0, 1.0, 1.0)
    assert all(coverage(draws, mean).simultaneous)
    shuffled = coverage(draws, rng.permutation(mean))
    assert (np.array(shuffled.pointwise) < [0.3, 0.5, 0.8]).all()
    assert not any(shuffled.simultaneous)


def test_coverage_counts_units_by_mahalanobis_distance(rng):
    """From 1000 draws the distance of a unit has a relative standard deviation below 0.03: 5 of them, 6e-7."""
    _, mean, draws = exact(rng, 60, 2, 2000)
    y = mean.copy()
    y[7] += 2.0
    centred, target = y - y.mean(axis=0), mean - mean.mean(axis=0)
    off = centred @ orthogonal_procrustes(centred, target)[0] - target
    distances = coverage(draws, y).distances
    assert distances.argmax() == 7
    assert distances[7] == pytest.approx(np.sqrt((off[7] ** 2).sum() / 0.2), rel=0.15)


def test_the_radius_uses_the_effective_number_of_draws(rng):
    """Repeating each draw ten times does not change the effective number, so that the radius remains the same."""
    _, _, draws = exact(rng, 200, 2, 80)
    once, ten = (coverage(x, draws[0, 0]) for x in (draws, np.repeat(draws, 10, axis=1)))
    np.testing.assert_allclose(ten.draws, once.draws, atol=0.02)


@pytest.mark.parametrize(("n_draws", "level"), [(2, 0.5), (30, 0.0), (30, 1.0)])
def test_radius_refuses_too_few_draws_and_invalid_levels(n_draws, level):
    with pytest.raises(DataError, match="draws; got 2" if n_draws == 2 else "between 0 and 1"):
        hotelling_radius(n_draws, 2, level)


def test_invalid_positions_and_draws_are_refused(rng):
    _, mean, draws = exact(rng, 10, 2, 40)
    with pytest.raises(DataError, match=r"shape \(unit, column\); got \(10,\)"):
        coverage(draws, mean[:, 0])
    bad = mean.copy()
    bad[[3, 5], 1] = np.inf
    with pytest.raises(DataError, match="non-finite values for units 3, 5"):
        positions(bad)
    with pytest.raises(DataError, match="draws of each unit must vary"):
        coverage(np.broadcast_to(mean, draws.shape), mean)
