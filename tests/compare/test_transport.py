"""Tests of the Gromov-Wasserstein distance against permutations of a few units and its bounds."""

import itertools
import sys

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from latentlab.compare.transport import gromov_wasserstein
from latentlab.errors import MissingDependencyError


def mismatch(x, y, order):
    d, e = cdist(x, x), cdist(y[list(order)], y[list(order)])
    return ((d - e) ** 2).mean() / (e**2).mean()


def test_gromov_wasserstein_is_at_most_the_best_permutation(rng):
    """The minimum over permutations is an upper bound; couplings that split units are only slightly lower."""
    y = rng.normal(size=(6, 2)) * [3.0, 1.0]
    x = y + 0.02 * rng.normal(size=y.shape)
    best = min(mismatch(x, y, order) for order in itertools.permutations(range(6)))
    assert gromov_wasserstein(x, y) == pytest.approx(best, rel=1e-6)


def test_gromov_wasserstein_is_at_most_the_identity_mismatch(rng):
    for noise in (0.1, 1.0, 10.0):
        y = rng.normal(size=(40, 2))
        x = y + noise * rng.normal(size=y.shape)
        assert 0 < gromov_wasserstein(x, y) <= mismatch(x, y, range(40)) + 1e-12


def test_the_value_for_a_stretch_of_two_points_matches_the_formula():
    """Four units at two places a distance 1 apart, and b apart: (b - 1)^2 of the pairs that differ."""
    y = np.array([[0.0], [1.0], [0.0], [1.0]])
    for b in (0.5, 2.0):
        assert gromov_wasserstein(b * y, y) == pytest.approx((b - 1) ** 2, abs=1e-12)


def test_permuted_units_cost_little_unlike_in_other_metrics(rng):
    z = rng.normal(size=(60, 2))
    shuffled = rng.permutation(z)
    assert gromov_wasserstein(shuffled, z) < 0.25 * mismatch(shuffled, z, range(60))


def test_a_cluster_and_a_ring_differ_in_shape(rng):
    """By the means of 8: 0.16 and 0.06, with standard errors of 0.010 and 0.004."""
    angle = rng.uniform(0, 2 * np.pi, (8, 60))
    rings = np.stack([np.cos(angle), np.sin(angle)], axis=-1)
    clumps, others = rng.normal(size=(2, 8, 60, 2)) / np.sqrt(2)
    apart, alike = (np.mean([gromov_wasserstein(*pair) for pair in zip(x, clumps, strict=True)]) for x in (rings, others))
    assert apart > 1.5 * alike


def test_missing_pot_is_reported_with_its_extra(rng, monkeypatch):
    monkeypatch.setitem(sys.modules, "ot.gromov", None)
    with pytest.raises(MissingDependencyError, match=r"'gromov_wasserstein' needs the package 'pot'.*latentlab\[metrics\]"):
        gromov_wasserstein(rng.normal(size=(9, 2)), rng.normal(size=(9, 2)))
