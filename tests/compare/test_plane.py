"""Tests of neighbour search in the plane against all distances."""

import numpy as np
import pytest

from latentlab.compare import neighbors as module
from latentlab.compare.neighbors import MANY, neighbor_overlap, neighbors, overlap
from latentlab.compare.positions import Positions
from latentlab.distributions import loops

plane = pytest.importorskip("latentlab.compare.plane", reason="Numba is not installed", exc_type=ImportError)


def cloud(kind, n, rng):
    x = rng.standard_normal((n, 2))
    return {
        "round": x,
        "tall": x * [0.01, 5.0],
        "one column": x[:, :1],
        "a line": x * [1.0, 0.0],
        "two far groups": x + 1e6 * (np.arange(n) % 2)[:, None],
        "heavy tails": rng.standard_cauchy((n, 2)),
        "a grid": np.stack(np.divmod(np.arange(n), 17), axis=1).astype(float),
        "few places": np.round(x),
        "one place": np.zeros((n, 2)),
        "tiny": 1e-160 * x,
        "huge": 1e60 * x,
        "a spiral": np.linspace(1, 9, n)[:, None] * np.stack([np.cos(np.arange(n) / 9), np.sin(np.arange(n) / 9)], axis=1),
    }[kind]


KINDS = ["round", "tall", "one column", "a line", "two far groups", "heavy tails"]
KINDS += ["a grid", "few places", "one place", "tiny", "huge", "a spiral"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("n", "k"), [(300, 15), (301, 1), (40, 19), (5, 2), (4, 1), (997, 120)])
def test_nearest_neighbours_match_all_distances(kind, n, k, rng):
    x = cloud(kind, n, rng)
    found = plane.nearest(x, k)
    assert found.shape == (n, k)
    assert all(len({*row, i}) == k + 1 for i, row in enumerate(found.tolist()))
    squared = ((x[:, None] - x[None]) ** 2).sum(-1)
    np.fill_diagonal(squared, np.inf)
    np.testing.assert_array_equal(
        np.sort(np.take_along_axis(squared, found.astype(int), 1), axis=1), np.sort(squared, axis=1)[:, :k]
    )


def test_the_plane_search_is_used_for_many_units_and_equals_the_tree(rng, monkeypatch):
    x = rng.standard_normal((MANY, 2))
    y = x + 0.1 * rng.standard_normal(x.shape)
    asked = []
    nearest = plane.nearest
    monkeypatch.setattr(plane, "nearest", lambda rows, k: asked.append(rows.shape) or nearest(rows, k))
    score = neighbor_overlap(x, y, n_neighbors=10)
    assert asked == [(MANY, 2), (MANY, 2)]
    near = neighbors(Positions(x), 10)
    neighbors(Positions(x[:-1]), 10)
    neighbors(Positions(rng.standard_normal((MANY, 3))), 10)
    assert len(asked) == 3
    monkeypatch.setattr(loops, "load", lambda name: None)
    assert neighbor_overlap(x, y, n_neighbors=10) == score
    np.testing.assert_array_equal(np.sort(near, 1), np.sort(neighbors(Positions(x), 10), 1))


def test_counts_of_common_neighbours_match_sorting(rng, monkeypatch):
    first, second = (np.array([rng.permutation(MANY)[:40] for _ in range(MANY)], dtype=np.int32) for _ in range(2))
    counted = overlap(first, second)
    assert counted.std() > 0
    monkeypatch.setattr(module, "MANY", MANY + 1)
    np.testing.assert_array_equal(counted, overlap(first, second))
