"""Tests of label partitions: codes, sizes, contingency tables and errors."""

import numpy as np
import pytest

from latentlab.compare.partition import Labels, contingency, entropy, overlaps, pairs
from latentlab.errors import DataError


def test_codes_number_the_occurring_labels_from_0(rng):
    x = Labels([10, -3, 10, 4, 4, 4])
    np.testing.assert_array_equal(x.codes, [2, 0, 2, 1, 1, 1])
    np.testing.assert_array_equal(x.sizes, [1, 3, 2])
    assert (x.n_units, x.n_clusters, x.n_pairs) == (6, 3, 4)
    assert x.entropy == pytest.approx(np.log(6) - (3 * np.log(3) + 2 * np.log(2)) / 6)


def test_contingency_table_matches_a_loop(rng):
    x, y = rng.integers(3, size=50) - 1, rng.integers(4, size=50) * 5
    table = [[((x == k) & (y == m)).sum() for m in np.unique(y)] for k in np.unique(x)]
    np.testing.assert_array_equal(contingency(Labels(x), Labels(y)), table)
    assert sorted(overlaps(Labels(x), Labels(y))) == sorted(n for row in table for n in row if n > 0)
    assert pairs(Labels(x).sizes) == sum(x[i] == x[j] for i in range(50) for j in range(i))


def test_one_cluster_and_singletons():
    one, alone = Labels([5] * 6), Labels(range(6))
    assert (one.n_clusters, one.n_pairs, one.entropy) == (1, 15, 0)
    assert (alone.n_clusters, alone.n_pairs) == (6, 0)
    assert alone.entropy == pytest.approx(np.log(6))
    assert entropy(np.array([3])) == 0


def test_many_clusters_need_no_dense_table():
    """A dense table of 100 000 x 100 000 numbers would need 80 GB."""
    alone = Labels(np.arange(100_000))
    assert len(overlaps(alone, alone)) == 100_000


def test_derived_quantities_are_computed_once():
    calls = []
    x = Labels([0, 1, 1])

    def counted(labels, power):
        calls.append(power)
        return labels.sizes**power

    assert x.derived(counted, 2) is x.derived(counted, 2)
    x.derived(counted, 3)
    assert calls == [2, 3]


@pytest.mark.parametrize("values", [[True, False, True], [1.0, 0.0, 1.0], np.array([3, 2, 3], dtype=np.uint8)])
def test_integers_of_any_type_are_accepted_as_labels(values):
    np.testing.assert_array_equal(Labels(values).codes, [1, 0, 1])
    assert Labels(values).values.dtype == np.int64


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ([0, 1, 1.5], "clustering: labels must be whole numbers; got 1.5 for unit 2"),
        ([0, np.nan, 1], "whole numbers; got nan for unit 1"),
        ([0, np.inf, 1], "whole numbers; got inf for unit 1"),
        ([0, 1, 1e17], "whole numbers; got 1e\\+17 for unit 2"),
        (["a", "b"], "whole numbers; got <U1"),
        ([1 + 2j, 0], "whole numbers; got complex128"),
        ([0], "clustering: at least 2 units are needed; got 1"),
        ([[0, 1], [1, 0]], r"shape \(unit,\); got \(2, 2\)"),
        (3, r"shape \(unit,\); got \(\)"),
    ],
)
def test_invalid_labels_are_refused(values, says):
    with pytest.raises(DataError, match=says):
        Labels(values, "clustering")
