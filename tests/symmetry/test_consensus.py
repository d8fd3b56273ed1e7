"""Tests that ties in a consensus are broken by its rows, not by rounding."""

import numpy as np
import pytest

from latentlab.symmetry import consensus
from latentlab.symmetry.groups import Orthogonal, Permutation, SignedPermutation

SQUARE = np.array([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0], [0.0, 0.0]])


def perturbed(x, rng, share=1e-13):
    """Perturbs each number by a relative rounding error."""
    return x * (1 + share * rng.standard_normal(x.shape))


@pytest.mark.parametrize("column", [[1.0, -1.0], [-1.0, 1.0], [0.5, -2.0, 2.0]])
def test_signs_with_tied_entries_follow_the_first_entry(column, rng):
    mean = np.array(column)[:, None]
    largest = next(value for value in column if abs(value) == np.abs(mean).max())
    for _ in range(20):
        assert consensus.signs(perturbed(mean, rng))[0] == np.sign(largest)


def test_axes_of_equal_variance_are_stable_to_rounding(rng):
    turn = consensus.principal_axes(SQUARE)
    np.testing.assert_allclose(turn.T @ turn, np.eye(2), atol=1e-12)
    np.testing.assert_allclose(SQUARE[0] @ turn, [np.sqrt(2), 0], atol=1e-12)  # the first of the largest rows
    for _ in range(20):
        np.testing.assert_allclose(consensus.principal_axes(perturbed(SQUARE, rng)), turn, atol=1e-9)


def test_axes_of_equal_variance_ignore_rotation_of_positions(rng):
    other = SQUARE @ Orthogonal().random(rng, 2)
    np.testing.assert_allclose(other @ consensus.principal_axes(other), SQUARE @ consensus.principal_axes(SQUARE), atol=1e-9)


def test_axes_of_distinct_variances_match_the_svd(rng):
    x = rng.normal(size=(30, 3)) * [3.0, 2.0, 1.0]
    values, vectors = np.linalg.eigh(x.T @ x)
    turn = consensus.principal_axes(x)
    np.testing.assert_allclose(np.abs(turn), np.abs(vectors[:, ::-1]), atol=1e-9)
    assert ((x @ turn) ** 2).sum(0) == pytest.approx(values[::-1])


@pytest.mark.parametrize("signed", [False, True])
def test_columns_of_equal_norm_are_ordered_by_their_rows(signed, rng):
    mean = np.array([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.5, 0.5, 0.5]])
    expected = mean[:, [1, 0, 2]]
    group = SignedPermutation() if signed else Permutation()
    for _ in range(20):
        other = perturbed(mean @ group.random(rng, 3), rng)
        np.testing.assert_allclose(other @ consensus.by_size(other, signed=signed), expected, atol=1e-9)


def test_larger_columns_come_first(rng):
    mean = np.array([[1.0, 2.0], [1.0, 2.0]])
    np.testing.assert_array_equal(mean @ consensus.by_size(mean, signed=False), [[2.0, 1.0], [2.0, 1.0]])
