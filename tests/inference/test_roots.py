"""Tests of the coordinates for maximisation: gradients, and the point that they leave unchanged."""

import numpy as np
import pytest
from scipy.optimize import approx_fprime

from latentlab.inference.roots import Rooted


@pytest.mark.parametrize("scale", [None, slice(0, 1), slice(0, 2)], ids=["none", "common", "of each column"])
def test_gradients_match_differences(scale, rng):
    rooted = Rooted(rng.standard_normal(9), slice(3, 9), rng.standard_normal((3, 3)), scale)
    weights, v = rng.standard_normal(9), 0.3 * rng.standard_normal(9)

    def function(u):
        return float(np.sin(u) @ weights), np.cos(u) * weights

    value, gradient = rooted.objective(function)(v)
    assert value == function(rooted.point(v))[0]
    np.testing.assert_allclose(gradient, approx_fprime(v, lambda v: rooted.objective(function)(v)[0], 1e-7), atol=1e-5)
    np.testing.assert_array_equal(rooted.point(np.zeros(9)), rooted.center)


def test_positions_follow_their_scale(rng):
    """A change of the log scale alone leaves the ratio of the positions and the scale unchanged."""
    rooted = Rooted(rng.standard_normal(9), slice(3, 9), np.eye(3), slice(0, 1))
    v = np.zeros(9)
    v[0] = 0.7
    moved = rooted.point(v)
    np.testing.assert_allclose(moved[3:] * np.exp(-moved[0]), rooted.center[3:] * np.exp(-rooted.center[0]), rtol=1e-12)
