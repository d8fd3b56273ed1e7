"""Tests of the unit tables of clusterings on a small example and against loops."""

import numpy as np
import pytest

from latentlab.compare.co_assignment import co_assignment
from latentlab.compare.label_units import UnitsOfLabels, as_labels

TINY = np.array([[[0, 0, 1], [0, 0, 1], [0, 1, 1], [0, 0, 1]]])
"""Four draws of three units: pi_01 = 3/4, pi_12 = 1/4, pi_02 = 0."""


def units_of(draws, n_labels=2):
    return UnitsOfLabels(draws, co_assignment(draws).mean, n_labels)


def test_disagreement_in_a_small_example():
    found = units_of(TINY).disagreement(np.array([5, 5, 5]))
    np.testing.assert_allclose(found.distance, [1.25 / 2, 1.0 / 2, 1.75 / 2])
    # of the draws: three with e = (1/4, 1/2, 1/4), one with e = (3/4, 3/2, 3/4)
    np.testing.assert_allclose(found.spread, [0.375 / 2, 0.75 / 2, 0.375 / 2])
    np.testing.assert_allclose(found.mahalanobis, [1.25 / 0.375, 1.0 / 0.75, 1.75 / 0.375])
    np.testing.assert_allclose(found.neighbors, [0, 0, 0])
    np.testing.assert_allclose(found.neighbors_own, [1 / 4, (3 * 0.25 + 0.75) / 4, 3 / 4])
    np.testing.assert_allclose(units_of(TINY).disagreement(np.array([0, 1, 2])).neighbors, [1, 1, 1])
    np.testing.assert_allclose(units_of(TINY).disagreement(np.array([1, 1, 0])).neighbors, [0, 1 / 4, 1])


def test_label_coverage_in_a_small_example():
    """Unit 1 has label 0 in 3 of 4 draws: its 50% set has label 0 only, its 80% set both labels."""
    reference = units_of(TINY)
    np.testing.assert_allclose(reference.probabilities, [[1, 0], [0.75, 0.25], [0, 1]])
    usual, odd = (reference.coverage(np.array(y)) for y in ([7, 7, 2], [2, 7, 7]))
    assert usual.pointwise == (1, 1, 1)
    assert odd.pointwise == pytest.approx((2 / 3, 1, 1))
    assert (usual.simultaneous, odd.simultaneous) == ((True, True, True), (False, True, True))
    assert usual.draws == odd.draws == pytest.approx(((3 + 2 / 3) / 4, 1, 1))


def test_cluster_names_are_ignored_and_extra_clusters_lie_outside():
    reference = units_of(np.tile(TINY, (1, 5, 1)))
    one, other = (reference.coverage(np.array(y)) for y in ([0, 0, 1], [1, 1, 0]))
    assert one.pointwise == other.pointwise
    alone = reference.coverage(np.array([0, 1, 2]))  # three clusters, two labels: one unit is in none of its posterior's
    assert alone.pointwise[2] == pytest.approx(2 / 3)
    assert not alone.simultaneous[2]


def test_rounding_does_not_enlarge_a_credible_set():
    """0.7 + 0.1 is below 0.8 in floating-point numbers; the 80% set still has these two labels only."""
    first = np.repeat([0, 1, 2, 3], [7, 1, 1, 1])
    draws = np.stack([first, np.full(10, 1), np.full(10, 2), np.full(10, 3)], -1)[None]
    reference = units_of(draws, 4)
    assert 0.7 + 0.1 < 0.8
    held = reference._shares(np.array([[k, 1, 2, 3] for k in range(4)]))[:, 1]
    np.testing.assert_allclose(held, [1, 1, 0.75, 0.75])


def test_disagreement_and_coverage_match_loops(rng):
    draws = rng.integers(0, 4, (2, 15, 9))
    y = rng.integers(0, 3, 9)
    found, flat = units_of(draws, 4).disagreement(y), draws.reshape(30, 9)
    pi = np.mean(flat[:, :, None] == flat[:, None, :], axis=0)

    def errors(labels):
        return np.array([sum(abs((labels[i] == labels[j]) - pi[i, j]) for j in range(9) if j != i) for i in range(9)])

    own = np.mean([errors(draw) for draw in flat], axis=0)
    np.testing.assert_allclose(found.distance, errors(y) / 8)
    np.testing.assert_allclose(found.spread, own / 8)
    np.testing.assert_allclose(found.mahalanobis, errors(y) / own)


def test_the_partition_of_a_certain_posterior_has_no_disagreement():
    draws = np.tile([0, 0, 1, 1, 2], (2, 10, 1))
    found = units_of(draws, 3).disagreement(np.array([4, 4, 9, 9, 1]))
    for array in (found.distance, found.mahalanobis, found.spread, found.neighbors, found.neighbors_own):
        np.testing.assert_allclose(array, 0, atol=1e-12)
    moved = units_of(draws, 3).disagreement(np.array([0, 0, 1, 0, 2]))
    assert moved.mahalanobis[3] > 1e6
    assert moved.mahalanobis[4] == 0
    assert np.isfinite(moved.mahalanobis).all()


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([[0.0, 1.0], [1.0, 0.0], [0.0, 1.0]], [1, 0, 1]),
        ([[3.0], [-1.0], [3.0]], [1, 0, 1]),
        ([[0.5], [2.0], [1.0]], None),
        ([[1.0, 1.0], [1.0, 0.0]], None),
        ([[0.0, 0.0], [1.0, 0.0]], None),
        ([[0.2, 0.8], [1.0, 0.0]], None),
    ],
)
def test_recognised_formats_of_clusterings(values, expected):
    found = as_labels(np.array(values))
    assert found is None if expected is None else found.tolist() == expected
