"""Tests of the agreement of partitions against scikit-learn, plain loops and known values."""

import itertools
import math

import numpy as np
import pytest
from helpers import all_partitions
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

from latentlab.compare.agreement import (
    adjusted_rand,
    matched_accuracy,
    normalized_mutual_information,
    variation_of_information,
)
from latentlab.compare.lift import ceiling, floor, score_table, scores
from latentlab.compare.procrustes import displacement
from latentlab.errors import ConfigError, DataError

METRICS = (adjusted_rand, normalized_mutual_information, variation_of_information, matched_accuracy)


def random_pairs(rng, n=40):
    for k, m, noise in itertools.product((1, 2, 5, n), (1, 3, n), (0.0, 0.3, 1.0)):
        y = rng.integers(m, size=n)
        yield np.where(rng.random(n) < noise, rng.integers(k, size=n), y), y


def test_agreement_metrics_match_scikit_learn(rng):
    for x, y in random_pairs(rng):
        assert adjusted_rand(x, y) == pytest.approx(adjusted_rand_score(y, x), abs=1e-12)
        assert normalized_mutual_information(x, y) == pytest.approx(normalized_mutual_info_score(y, x), abs=1e-10)


def test_adjusted_rand_matches_loops_over_pairs(rng):
    """(index - expected) / (max - expected), all from pairs of units."""
    x, y = next(itertools.islice(random_pairs(rng), 20, None))
    both = [(x[i] == x[j], y[i] == y[j]) for i, j in itertools.combinations(range(len(x)), 2)]
    index, in_x, in_y = (sum(f(*b) for b in both) for f in (lambda a, b: a and b, lambda a, b: a, lambda a, b: b))
    expected = in_x * in_y / len(both)
    assert adjusted_rand(x, y) == pytest.approx((index - expected) / ((in_x + in_y) / 2 - expected), abs=1e-12)


def test_information_metrics_match_sums_over_the_joint_distribution(rng):
    for x, y in random_pairs(rng):
        p = np.array([[np.mean((x == k) & (y == m)) for m in np.unique(y)] for k in np.unique(x)])
        px, py = p.sum(axis=1), p.sum(axis=0)
        mutual = sum(p[k, m] * math.log(p[k, m] / px[k] / py[m]) for k, m in np.argwhere(p > 0))
        hx, hy = -(px * np.log(px)).sum(), -(py * np.log(py)).sum()
        assert variation_of_information(x, y) == pytest.approx(hx + hy - 2 * mutual, abs=1e-12)
        if hx + hy > 0:
            assert normalized_mutual_information(x, y) == pytest.approx(2 * mutual / (hx + hy), abs=1e-12)


def test_matched_accuracy_is_the_best_over_all_matchings(rng):
    for _ in range(20):
        x, y = rng.integers(3, size=12), rng.integers(4, size=12)
        best = max(np.mean(np.array(names)[x] == y) for names in itertools.permutations(range(4), 3))
        assert matched_accuracy(x, y) == matched_accuracy(y, x) == pytest.approx(best)


def test_metric_properties_over_all_pairs_of_partitions_of_5_units():
    """Only identical partitions have the best value; VI is a distance; all values are in range."""
    every = all_partitions(5)
    assert len(every) == 52
    tables = {m.name: np.array([[m(x, y) for y in every] for x in every]) for m in METRICS}
    for m in METRICS:
        table = tables[m.name]
        np.testing.assert_array_equal(np.isclose(table, m.best, atol=1e-9), np.eye(52, dtype=bool))
        np.testing.assert_allclose(table, table.T, atol=1e-12)
        formula = [m.function(m.kind(x), m.kind(y)) for x in every[::3] for y in every]
        assert min(formula) >= m.range[0] - 1e-12
        assert max(formula) <= m.range[1] + 1e-12
    vi = tables["variation_of_information"]
    assert (vi[:, None, :] <= vi[:, :, None] + vi[None, :, :] + 1e-12).all()
    assert vi.max() == pytest.approx(math.log(5))


def test_the_smallest_adjusted_rand_is_minus_one_half():
    """Two crossed pairings of 4 units have (0 - 2/3) / (2 - 2/3), the minimum over partitions of up to 6 units."""
    assert adjusted_rand([0, 0, 1, 1], [0, 1, 0, 1]) == pytest.approx(-0.5)
    for n in (2, 3, 4, 5, 6):
        every = [adjusted_rand.kind(p) for p in all_partitions(n)]
        assert min(adjusted_rand.function(x, y) for x in every for y in every) >= -0.5 - 1e-12


def test_values_for_one_cluster_and_for_singletons():
    y, one, alone = [0, 0, 0, 1, 1, 2], [4] * 6, list(range(6))
    h = -(3 * math.log(1 / 2) + 2 * math.log(1 / 3) + math.log(1 / 6)) / 6
    for trivial in (one, alone):
        assert [m(trivial, trivial) for m in METRICS] == [1, 1, 0, 1]
        assert adjusted_rand(trivial, y) == 0
    assert [m(one, alone) for m in METRICS] == pytest.approx([0, 0, math.log(6), 1 / 6])
    assert normalized_mutual_information(one, y) == pytest.approx(0)
    assert normalized_mutual_information(alone, y) == pytest.approx(2 * h / (h + math.log(6)))
    assert variation_of_information(one, y) == pytest.approx(h)
    assert variation_of_information(alone, y) == pytest.approx(math.log(6) - h)
    assert matched_accuracy(one, y) == 1 / 2
    assert matched_accuracy(alone, y) == 3 / 6


def test_mean_adjusted_rand_of_random_permutations_is_0(rng):
    """1000 permutations: the mean's standard error is about 1e-3; 5 of them."""
    x, y = rng.integers(3, size=60), rng.integers(4, size=60)
    found = [adjusted_rand(rng.permutation(x), y) for _ in range(1000)]
    assert abs(np.mean(found)) < 5 * np.std(found) / np.sqrt(1000)
    assert np.mean([normalized_mutual_information(rng.permutation(x), y) for _ in range(50)]) > 0.02


def test_label_metrics_are_evaluated_on_every_draw(rng):
    y = rng.integers(3, size=30)
    draws = np.where(rng.random((2, 5, 30)) < 0.2, rng.integers(3, size=(2, 5, 30)), y)
    table = score_table(METRICS, [y, rng.permutation(y)], draws)
    assert table.shape == (4, 2, 2, 5)
    for i, m in enumerate(METRICS):
        np.testing.assert_array_equal(table[i, 0], [[m(y, draws[c, s]) for s in range(5)] for c in range(2)])
        np.testing.assert_allclose(table[i, 0], scores(m, y + 3, 7 - 2 * draws), atol=1e-14)
    own = ceiling(adjusted_rand, draws, rng, 20)
    values = {round(adjusted_rand(a, b), 12) for a in draws[0] for b in draws[1]}
    assert {round(v, 12) for v in own} <= values
    by_chance = floor(adjusted_rand, y, draws, rng, 200)
    assert abs(by_chance.mean()) < 0.05 < own.mean() < table[0, 0].mean()


def test_invalid_labels_and_draws_of_labels_are_refused(rng):
    y, draws = rng.integers(3, size=30), rng.integers(3, size=(2, 5, 30))
    with pytest.raises(ConfigError, match="adjusted_rand, displacement: all must compare positions, or all labels"):
        score_table([adjusted_rand, displacement], [y], draws)
    with pytest.raises(
        DataError, match=r"draws must have shape \(chain, draw, unit\), without dimensions of size 0; got \(5, 30\)"
    ):
        scores(adjusted_rand, y, draws[0])
    with pytest.raises(DataError, match=r"the embedding: labels must be whole numbers; got 0\.5"):
        scores(adjusted_rand, np.where(y == 1, 0.5, y), draws)
    spoilt = draws.astype(float)
    spoilt[1, 3, 2] = np.nan
    with pytest.raises(DataError, match="draw 3 of chain 1: labels must be whole"):
        scores(adjusted_rand, y, spoilt)
    with pytest.raises(DataError, match="x and y must have the same units; got 29 units in x and 30 in y"):
        scores(adjusted_rand, y[1:], draws)
