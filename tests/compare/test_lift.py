"""Tests of scores, ceilings and floors against loops and known values."""

import itertools
import tracemalloc

import numpy as np
import pytest

from latentlab.compare import neighbors
from latentlab.compare.kernel import cka
from latentlab.compare.lift import ceiling, ceiling_table, draw_pairs, floor, floor_table, score_table, scores
from latentlab.compare.neighbors import co_ranking, continuity, neighbor_overlap, trustworthiness
from latentlab.compare.procrustes import displacement, procrustes_similarity
from latentlab.errors import ConfigError, DataError


class StoredDraws:
    """Imitates draws in a file: has a shape and creates one draw at a time when it is read."""

    def __init__(self, shape, seed=0):
        self.shape, self.seed, self.reads = shape, seed, []

    def __getitem__(self, index):
        chain, draw = index
        self.reads.append((int(chain), int(draw)))
        return np.random.default_rng([self.seed, chain, draw]).normal(size=self.shape[2:])


@pytest.fixture
def draws(rng):
    return rng.normal(size=(30, 2)) + 0.4 * rng.normal(size=(3, 7, 30, 2))


def test_scores_are_the_metric_of_each_draw(draws, rng):
    y = draws.mean(axis=(0, 1)) + 0.1 * rng.normal(size=(30, 2))
    for metric, options in [
        (procrustes_similarity, {}),
        (neighbor_overlap, {"n_neighbors": 4}),
        (trustworthiness, {"n_neighbors": 4}),
    ]:
        found = scores(metric, y, draws, **options)
        expected = [[metric(y, draws[c, s], **options) for s in range(7)] for c in range(3)]
        np.testing.assert_array_equal(found, expected)


def test_metrics_take_the_embedding_as_first_argument(draws):
    y = 2 * draws[0, 0]
    assert scores(trustworthiness, y, draws, n_neighbors=4)[1, 2] == trustworthiness(y, draws[1, 2], n_neighbors=4)
    assert trustworthiness(y, draws[1, 2], n_neighbors=4) != trustworthiness(draws[1, 2], y, n_neighbors=4)


def test_score_tables_equal_single_metrics(draws, rng):
    metrics = [cka, neighbor_overlap]
    ys = [rng.normal(size=(30, 3)), draws[0, 0], np.zeros((30, 2))]
    table = score_table(metrics, ys, draws, n_neighbors=4)
    assert table.shape == (2, 3, 3, 7)
    for j, y in enumerate(ys):
        np.testing.assert_array_equal(table[0, j], scores(cka, y, draws))
        np.testing.assert_array_equal(table[1, j], scores(neighbor_overlap, y, draws, n_neighbors=4))
    seed = np.random.default_rng
    np.testing.assert_array_equal(ceiling_table(metrics, draws, seed(1), 9, n_neighbors=4)[0], ceiling(cka, draws, seed(1), 9))
    np.testing.assert_array_equal(
        floor_table(metrics, ys[0], draws, seed(1), 9, n_neighbors=4)[0], floor(cka, ys[0], draws, seed(1), 9)
    )


def test_distances_of_posterior_mean_and_ceiling_match_theory(rng):
    """Errors of sd s about positions of sd 1: mean to draw s^2 / (1 + s^2), draw to draw twice that; 2% are 5 s.e.."""
    m, s = rng.normal(size=(4000, 2)), 0.5
    m = (m - m.mean(axis=0)) / m.std(axis=0)
    draws = m + s * rng.normal(size=(2, 10, 4000, 2))
    assert scores(displacement, m, draws).mean() == pytest.approx(s**2 / (1 + s**2), rel=0.02)
    assert ceiling(displacement, draws, rng, 50).mean() == pytest.approx(2 * s**2 / (1 + s**2), rel=0.02)
    assert floor(displacement, m, draws, rng, 50).mean() == pytest.approx(1 + 1 / (1 + s**2), rel=0.02)


def test_ceiling_compares_different_chains_only(rng):
    """Each chain is constant, so that pairs within a chain would have distance 0."""
    modes = rng.normal(size=(2, 20, 2))
    draws = np.repeat(modes[:, None], 5, axis=1)
    found = ceiling(displacement, draws, rng, 100)
    assert found.min() > 0.1
    assert len(np.unique(found.round(9))) == 2


@pytest.mark.parametrize("n_chains", [2, 3, 5])
@pytest.mark.chance(2e-3)
def test_pairs_of_different_chains_are_equally_frequent(n_chains, rng):
    """Each ordered pair of chains within 4 standard deviations of its share, each draw too."""
    n = 20_000
    pairs = draw_pairs(n_chains, 10, rng, n)
    assert pairs.shape == (n, 2, 2)
    counts = {p: 0 for p in itertools.permutations(range(n_chains), 2)}
    for a, b in pairs[:, :, 0].tolist():
        counts[a, b] += 1
    share = 1 / len(counts)
    assert all(abs(c - n * share) < 4 * np.sqrt(n * share * (1 - share)) + 1 for c in counts.values())
    drawn = np.bincount(pairs[:, :, 1].ravel(), minlength=10)
    assert abs(drawn - 2 * n / 10).max() < 4.5 * np.sqrt(2 * n * 0.09)


@pytest.mark.parametrize("n_draws", [2, 3, 10, 101])
def test_pairs_within_a_single_chain_are_far_apart(n_draws, rng):
    pairs = draw_pairs(1, n_draws, rng, 3000)
    gaps = np.abs(pairs[:, 0, 1] - pairs[:, 1, 1])
    assert (pairs[:, :, 0] == 0).all()
    assert pairs[:, :, 1].min() == 0
    assert pairs[:, :, 1].max() == n_draws - 1
    assert gaps.min() == n_draws // 2
    assert 0.9 * (n_draws - 1) < gaps.max() <= n_draws - 1
    earlier_first = (pairs[:, 0, 1] < pairs[:, 1, 1]).mean()
    assert 0.45 < earlier_first < 0.55


@pytest.mark.chance(1e-4)
def test_floor_is_the_chance_level(draws, rng):
    """The embedding is a draw: its unpermuted overlap with that draw would be 1. Limit: 4 standard errors."""
    found = floor(neighbor_overlap, draws[0, 0], draws[:1, :1], rng, 200, n_neighbors=5)
    assert abs(found.mean() - 5 / 29) < 4 * found.std() / np.sqrt(200)
    assert found.max() < 1


def test_floor_uses_all_draws(rng):
    stored = StoredDraws((3, 4, 30, 2))
    floor(cka, rng.normal(size=(30, 2)), stored, rng, 200)
    assert set(stored.reads) == set(itertools.product(range(3), range(4)))


def test_ceiling_and_floor_depend_on_the_generator_only(draws):
    np.random.seed(3)
    state = np.random.get_state()[1].copy()
    y = draws[0, 0]
    for lifted in (lambda r: ceiling(cka, draws, r, 20), lambda r: floor(cka, y, draws, r, 20)):
        np.testing.assert_array_equal(lifted(np.random.default_rng(4)), lifted(np.random.default_rng(4)))
        assert (lifted(np.random.default_rng(4)) != lifted(np.random.default_rng(5))).any()
    np.testing.assert_array_equal(np.random.get_state()[1], state)


def test_each_draw_is_read_and_ranked_once(monkeypatch, rng):
    ranked = []
    original = neighbors.ranks

    def counted(x):
        ranked.append(x)
        return original(x)

    monkeypatch.setattr(neighbors, "ranks", counted)
    stored = StoredDraws((2, 5, 40, 2))
    ys = [rng.normal(size=(40, 2)), rng.normal(size=(40, 3))]
    score_table([trustworthiness, continuity, co_ranking], ys, stored)
    assert stored.reads == list(itertools.product(range(2), range(5)))
    assert len(ranked) == 2 + 10


def test_memory_does_not_grow_with_the_number_of_draws(rng):
    def peak(n_draws):
        y = np.zeros((400, 2)) + rng.normal(size=(400, 2))
        tracemalloc.start()
        score_table([cka, co_ranking, neighbor_overlap], [y], StoredDraws((1, n_draws, 400, 2)))
        top = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return top

    peak(2)
    assert peak(40) < 1.2 * peak(5)


def test_progress_is_reported_for_each_step(draws):
    ticks = []
    tick = lambda: ticks.append(1)  # noqa: E731
    score_table([cka], [draws[0, 0]], draws, tick=tick)
    ceiling_table([cka], draws, np.random.default_rng(0), 11, tick=tick)
    floor_table([cka], draws[0, 0], draws, np.random.default_rng(0), 13, tick=tick)
    assert len(ticks) == 21 + 11 + 13


def test_invalid_positions_and_draws_are_refused_by_scores(draws, rng):
    y = draws[0, 0]
    for wrong in (draws[0], draws[:, :0], np.zeros((2, 2))):
        with pytest.raises(DataError, match=r"draws must have shape \(chain, draw, unit, latent\)"):
            scores(cka, y, wrong)
    with pytest.raises(DataError, match="got 29 units in x and 30 in y"):
        scores(cka, y[1:], draws)
    with pytest.raises(DataError, match="the embedding: positions must be finite"):
        scores(cka, y * np.nan, draws)
    spoilt = draws.copy()
    spoilt[2, 5, 11, 1] = np.nan
    with pytest.raises(DataError, match=r"draw 5 of chain 2: positions must be finite.*unit 11, column 1"):
        scores(cka, y, spoilt)
    with pytest.raises(DataError, match="needs at least 2 draws; got 1"):
        ceiling(cka, draws[:1, :1], rng)
    with pytest.raises(ConfigError, match=r"metrics cka: unknown option 'n_neighbors'. Valid: none"):
        scores(cka, y, draws, n_neighbors=5)
    with pytest.raises(ConfigError, match="unknown option 'n_neighbours'; did you mean 'n_neighbors'"):
        score_table([cka, neighbor_overlap], [y], draws, n_neighbours=5)
