"""Tests of subsamples of units, cached quantities and constant positions."""

import numpy as np
import pytest

from latentlab.compare.positions import Positions, paired, ranked, squared_distances


def test_all_units_are_used_below_the_limits():
    assert sorted(paired(500)) == list(range(500))
    anchors, others = ranked(1024)
    assert sorted(anchors) == sorted(others) == list(range(1024))


@pytest.mark.parametrize("n", [1025, 30_000, 200_000])
def test_subsamples_are_distinct_and_reproducible(n):
    anchors, others = ranked(n)
    assert len(set(paired(n).tolist())) == 500
    assert len(set(others.tolist())) == len(others) == min(n, 2**16)
    assert 100 <= len(anchors) <= 1024
    np.testing.assert_array_equal(anchors, others[: len(anchors)])
    np.testing.assert_array_equal(ranked(n)[1], others)


def test_subsamples_cover_the_data_evenly():
    """The mean index of 500 of 5000 units has standard error 61; the limit is 4 of them."""
    assert abs(paired(5000).mean() - 2499.5) < 4 * 61
    assert (np.diff(ranked(200)[1]) < 0).any()


def test_a_quantity_is_computed_once():
    calls = []

    def counted(x, times):
        calls.append(times)
        return x.n_units * times

    x = Positions(np.zeros((5, 2)))
    assert [x.derived(counted, 2), x.derived(counted, 2), x.derived(counted, 3)] == [10, 10, 15]
    assert calls == [2, 3]


def test_constants_are_recognised_up_to_rounding(rng):
    noise = rng.normal(size=(20, 2))
    assert Positions(np.full((20, 2), 0.1)).is_constant
    assert Positions(np.full((20, 2), 1e-200) * (1 + noise)).is_constant
    assert not Positions(1e8 + noise).is_constant
    assert not Positions(1e-30 * noise).is_constant


def test_size_and_distances_match_loops(rng):
    x = Positions(rng.normal(size=(7, 3)) + 5)
    mean = x.values.mean(axis=0)
    assert x.size == pytest.approx(sum(((row - mean) ** 2).sum() for row in x.values))
    rows = x.values[paired(7)]
    np.testing.assert_allclose(squared_distances(x), [[((a - b) ** 2).sum() for b in rows] for a in rows])
