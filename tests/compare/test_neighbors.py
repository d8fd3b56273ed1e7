"""Tests of neighbourhood metrics against scikit-learn and loops, with ties, subsamples and bounds."""

import sys

import numpy as np
import pytest
from sklearn.manifold import trustworthiness as sklearn_trustworthiness
from sklearn.neighbors import NearestNeighbors

from latentlab.compare.neighbors import (
    co_ranking,
    continuity,
    neighbor_overlap,
    neighbors,
    overlap,
    ranks,
    recall,
    trustworthiness,
)
from latentlab.compare.positions import Positions, ranked
from latentlab.data import memory
from latentlab.errors import ConfigError, MissingDependencyError


def rank_table(x):
    """Rank of j from i by a loop, self 0."""
    n = len(x)
    table = np.zeros((n, n), dtype=int)
    for i in range(n):
        others = sorted((j for j in range(n) if j != i), key=lambda j: ((x[i] - x[j]) ** 2).sum())
        for r, j in enumerate(others):
            table[i, j] = r + 1
    return table


@pytest.fixture
def data(rng):
    y = rng.normal(size=(50, 2))
    return y @ rng.normal(size=(2, 3)) + 0.6 * rng.normal(size=(50, 3)), y


@pytest.mark.parametrize("k", [1, 5, 15, 24])
def test_trustworthiness_and_continuity_match_scikit_learn(data, k):
    x, y = data
    assert trustworthiness(x, y, n_neighbors=k) == pytest.approx(sklearn_trustworthiness(y, x, n_neighbors=k), abs=1e-12)
    assert continuity(x, y, n_neighbors=k) == pytest.approx(sklearn_trustworthiness(x, y, n_neighbors=k), abs=1e-12)


@pytest.mark.parametrize("k", [1, 7, 24])
def test_overlap_is_the_share_of_common_neighbours(data, k):
    near = [rank_table(v) for v in data]
    shares = [
        len({j for j in range(50) if 0 < near[0][i, j] <= k} & {j for j in range(50) if 0 < near[1][i, j] <= k}) / k
        for i in range(50)
    ]
    assert neighbor_overlap(*data, n_neighbors=k) == pytest.approx(np.mean(shares), abs=1e-12)


def test_co_ranking_scores_match_the_co_ranking_matrix(data):
    n = 50
    first, second = (rank_table(v) for v in data)
    Q = np.zeros((n - 1, n - 1))
    for i in range(n):
        for j in range(n):
            if i != j:
                Q[first[i, j] - 1, second[i, j] - 1] += 1
    curve = []
    for K in range(1, n - 1):
        q_nx = Q[:K, :K].sum() / (K * n)
        curve.append(((n - 1) * q_nx - K) / (n - 1 - K))
    weights = 1 / np.arange(1, n - 1)
    assert co_ranking(*data) == pytest.approx((curve * weights).sum() / weights.sum(), abs=1e-12)


def test_trustworthiness_detects_gluing_and_continuity_tearing(rng):
    """Overlaying two distant groups lowers trustworthiness only; cutting a ring open lowers continuity only."""
    groups = rng.normal(size=(100, 2)) + np.repeat([[0.0, 0.0], [30.0, 0.0]], 50, axis=0)
    glued = groups - np.repeat([[0.0, 0.0], [30.0, 0.0]], 50, axis=0)
    assert trustworthiness(glued, groups) < continuity(glued, groups) - 0.1
    angle = np.linspace(0, 2 * np.pi, 100, endpoint=False)
    ring = np.column_stack([np.cos(angle), np.sin(angle)])
    assert continuity(angle[:, None], ring) < trustworthiness(angle[:, None], ring) - 0.01


@pytest.mark.chance(2e-4)
def test_independent_positions_have_the_documented_values(rng):
    """Mean over 100 permutations; 4 standard errors."""
    z = rng.normal(size=(120, 2))
    unranked = 1 - 104 * 105 / 119 / (2 * 120 - 3 * 15 - 1)  # a neighbour's rank beyond 15 is 104 * 105 / 2 / 119 in the mean
    for metric, expected in [(neighbor_overlap, 15 / 119), (co_ranking, 0.0), (trustworthiness, unranked)]:
        values = np.array([metric(rng.permutation(z), z) for _ in range(100)])
        assert abs(values.mean() - expected) < 4 * values.std() / 10


def test_ranks_match_a_loop(rng):
    x = rng.normal(size=(60, 2)) * [1.0, 1e-4] + 1e3
    anchors, others = ranked(60)
    np.testing.assert_array_equal(ranks(Positions(x)), rank_table(x)[np.ix_(anchors, others)])


def test_ties_do_not_depend_on_rounding_or_order(rng):
    x = np.repeat(np.eye(3), 20, axis=0)
    c, s = np.cos(0.4), np.sin(0.4)
    turned = x @ np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
    np.testing.assert_array_equal(ranks(Positions(x)), ranks(Positions(turned)))
    # With 60 units at one point and the first 20 alike in y, order of the data would give an overlap far above chance.
    crowd = np.concatenate([np.zeros((59, 1)), np.ones((1, 1))])
    line = np.arange(60.0)[:, None]
    for metric, chance in [(neighbor_overlap, 15 / 59), (co_ranking, 0.0)]:
        assert metric(crowd, line) == pytest.approx(chance, abs=0.08)


def test_neighbors_exclude_the_unit_itself_among_duplicates(rng):
    for x in (np.repeat([[0.0], [1.0]], 30, axis=0), rng.normal(size=(60, 20)), np.zeros((60, 2))):
        found = neighbors(Positions(x), 7)
        assert found.shape == (60, 7)
        assert (found != np.arange(60)[:, None]).all()
        assert all(len(set(row)) == 7 for row in found.tolist())
        distance = np.linalg.norm(x[:, None] - x, axis=2)
        nearest = np.sort(distance + np.diag(np.full(60, np.inf)), axis=1)[:, :7]
        np.testing.assert_allclose(np.sort(np.take_along_axis(distance, found, axis=1), axis=1), nearest, atol=1e-6)


def test_neighbours_of_many_units_use_the_documented_subsample(rng):
    n, k = 1300, 15
    y = rng.normal(size=(n, 2))
    x = y + 0.3 * rng.normal(size=y.shape)
    anchors, _ = ranked(n)
    assert len(anchors) == 806
    full = [np.argsort(np.argsort(np.linalg.norm(v[anchors][:, None] - v, axis=2), axis=1), axis=1) for v in (x, y)]
    penalty = np.maximum(full[1] - k, 0)[full[0] <= k].sum()
    expected = 1 - 2 * penalty / (len(anchors) * k * (2 * n - 3 * k - 1))
    assert trustworthiness(x, y) == pytest.approx(expected, abs=1e-12)
    assert trustworthiness(x, y) == pytest.approx(sklearn_trustworthiness(y, x, n_neighbors=k), abs=0.005)  # 5 sd
    lists = [np.argsort(np.linalg.norm(v[:, None] - v, axis=2), axis=1)[:, 1 : k + 1] for v in (x, y)]
    assert neighbor_overlap(x, y) == pytest.approx(overlap(*lists).mean(), abs=1e-12)


def test_co_ranking_of_many_units_uses_the_documented_subsample(rng):
    n = 1300
    y = rng.normal(size=(n, 2))
    x = y + 0.3 * rng.normal(size=y.shape)
    anchors, _ = ranked(n)
    first, second = (np.argsort(np.argsort(np.linalg.norm(v[anchors][:, None] - v, axis=2), axis=1), axis=1) for v in (x, y))
    worse = np.maximum(first, second)
    sizes = np.arange(1, n - 1)
    shares = np.array([((worse <= K) & (worse > 0)).sum() / (K * len(anchors)) for K in sizes])
    curve = ((n - 1) * shares - sizes) / (n - 1 - sizes)
    assert co_ranking(x, y) == pytest.approx((curve / sizes).sum() / (1 / sizes).sum(), abs=1e-12)


def test_overlap_matches_counting_all_pairs_of_entries(rng):
    first, second = (rng.permuted(np.tile(np.arange(40), (33, 1)), axis=1)[:, :6] for _ in range(2))
    pairs = (first[:, :, None] == second[:, None, :]).sum(axis=(1, 2)) / 6
    np.testing.assert_array_equal(overlap(first, second), pairs)


def test_block_size_does_not_change_ranks(rng, monkeypatch):
    x = rng.normal(size=(45, 2))
    whole = ranks(Positions(x))
    monkeypatch.setattr(memory, "BLOCK", 100)
    np.testing.assert_array_equal(ranks(Positions(x)), whole)


@pytest.mark.parametrize("metric", [neighbor_overlap, trustworthiness, continuity])
@pytest.mark.parametrize("k", [0, -1, 10, 25])
def test_too_many_neighbours_are_refused(metric, k, rng):
    x, y = rng.normal(size=(2, 20, 2))
    with pytest.raises(ConfigError, match=f"`n_neighbors` must be at least 1 and below half of the 20 units; got {k}"):
        metric(x, y, n_neighbors=k)
    assert 0 <= metric(x, y, n_neighbors=9) <= 1


@pytest.mark.parametrize("d", [1, 2, 6, 7, 10, 20])
def test_tree_and_exhaustive_neighbours_match_scikit_learn(d, rng):
    x = rng.normal(size=(700, d)) + 5.0
    expected = NearestNeighbors(n_neighbors=10, algorithm="ball_tree").fit(x).kneighbors(return_distance=False)
    np.testing.assert_array_equal(np.sort(neighbors(Positions(x), 10), axis=1), np.sort(expected, axis=1))


def test_an_unknown_neighbour_search_is_refused(rng):
    with pytest.raises(ConfigError, match=r"unknown neighbor search 'aproximate'; did you mean 'approximate'\?"):
        neighbor_overlap(*rng.normal(size=(2, 20, 2)), n_neighbors=5, neighbor_search="aproximate")


def test_missing_pynndescent_is_reported_with_its_extra(rng, monkeypatch):
    monkeypatch.setitem(sys.modules, "pynndescent", None)
    with pytest.raises(MissingDependencyError, match=r"needs the package 'pynndescent'.*latentlab\[embed\]"):
        neighbor_overlap(*rng.normal(size=(2, 20, 2)), n_neighbors=5, neighbor_search="approximate")


class InexactDescent:
    """Replaces pynndescent: exact neighbours, with the last few of each list wrong or missing."""

    def __init__(self, rows, n_neighbors, random_state, n_jobs):
        found = NearestNeighbors(n_neighbors=n_neighbors + 2).fit(rows).kneighbors(rows, return_distance=False)
        found[:, n_neighbors - 2 : n_neighbors] = found[:, n_neighbors:]
        found[::7, n_neighbors - 1] = -1
        self.neighbor_graph = (found[:, :n_neighbors], None)


def test_recall_is_the_share_of_true_neighbours_found(rng, monkeypatch):
    """Two of ten neighbours are wrong in each list; lists with missing entries (one in seven) are recomputed exactly."""
    monkeypatch.setitem(sys.modules, "pynndescent", type("module", (), {"NNDescent": InexactDescent}))
    x = Positions(rng.normal(size=(350, 2)))
    near = neighbors(x, 10, "approximate")
    assert (near >= 0).all()
    assert (near != np.arange(350)[:, None]).all()
    assert recall(x, 10) == pytest.approx((1 + 6 * 0.8) / 7)
    shift = overlap(neighbors(x, 10), near).mean()
    assert neighbor_overlap(x.values, x.values) == 1
    assert shift == pytest.approx(recall(x, 10))


@pytest.mark.slow
@pytest.mark.fixed
def test_the_approximate_search_finds_nearly_all_neighbours(rng):
    """Slow because of compilation, which takes longer on emulated CPUs."""
    pytest.importorskip("pynndescent")
    x = rng.normal(size=(2000, 10))
    y = x + 0.5 * rng.normal(size=x.shape)
    near = neighbors(Positions(x), 15, "approximate")
    assert near.shape == (2000, 15)
    assert all(len({*row, i}) == 16 for i, row in enumerate(near.tolist()))
    assert 0.9 < recall(Positions(x), 15) <= 1
    assert overlap(near, neighbors(Positions(x), 15)).mean() == pytest.approx(recall(Positions(x), 15), abs=0.02)
    exact, approximate = (neighbor_overlap(x, y, neighbor_search=search) for search in ("exact", "approximate"))
    assert approximate == pytest.approx(exact, abs=0.02)
