"""Tests of geodesic distance correlation and local isometry on sheets and curves with known lengths."""

import numpy as np
import pytest
from scipy.sparse.csgraph import dijkstra
from scipy.spatial.distance import cdist, squareform

from latentlab.compare import geodesic, isometry
from latentlab.compare.geodesic import geodesic_distance_correlation, neighbor_graph, path_lengths
from latentlab.compare.isometry import local_isometry
from latentlab.compare.positions import Positions
from latentlab.data.manifolds import helix, swiss_roll
from latentlab.errors import ConfigError


def grid(rows=12, columns=30):
    """A slightly irregular grid on a sheet, so that no distances tie."""
    at = np.stack(np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij"), axis=-1).reshape(-1, 2)
    return at + 0.1 * np.random.default_rng(0).uniform(-1, 1, at.shape)


def rolled(z, radius=6.0):
    """The sheet, rolled up along its second axis; distances on the sheet are unchanged."""
    return np.column_stack([z[:, 0], radius * np.cos(z[:, 1] / radius), radius * np.sin(z[:, 1] / radius)])


# -- path lengths


def test_path_lengths_are_shortest_paths_of_the_neighbor_graph(rng):
    """Floyd's algorithm by plain loops over the same graph."""
    x = rng.normal(size=(40, 2))
    distances = cdist(x, x)
    lengths = np.full((40, 40), np.inf)
    for i in range(40):
        for j in np.argsort(distances[i])[1:6]:
            lengths[i, j] = lengths[j, i] = distances[i, j]
        lengths[i, i] = 0
    for k in range(40):
        lengths = np.minimum(lengths, lengths[:, [k]] + lengths[[k]])
    assert np.isfinite(lengths).all(), "connected"
    np.testing.assert_allclose(dijkstra(neighbor_graph(distances, 5)), lengths, atol=1e-12)
    found = Positions(x)
    np.testing.assert_allclose(
        np.sort(path_lengths(found, 5)) * np.sqrt(found.size / 40), np.sort(squareform(lengths, checks=False)), atol=1e-12
    )


def test_components_are_joined_by_their_shortest_edges():
    """Three groups on a line, gaps of 10 and 20: the path from first to last crosses both gaps and no longer edge."""
    line = np.concatenate([np.arange(6.0), 15 + np.arange(6.0), 40 + np.arange(6.0)])[:, None]
    graph = neighbor_graph(cdist(line, line), 2)
    edges = np.argwhere(graph.toarray() > 9)
    assert {tuple(sorted(edge)) for edge in edges.tolist()} == {(5, 6), (11, 12)}
    np.testing.assert_allclose(dijkstra(graph)[0], line[:, 0])
    each = neighbor_graph(cdist(line[:6], line[:6]), 2).nnz
    assert graph.nnz == 3 * each + 4, "no further edges within a group"
    joined = geodesic_distance_correlation(line, np.column_stack([line, 0 * line]), n_neighbors=2)
    assert joined == pytest.approx(1)


def test_duplicate_units_are_at_distance_0():
    x = np.repeat(np.arange(8.0), 4)[:, None]
    lengths = dijkstra(neighbor_graph(cdist(x, x), 3))
    np.testing.assert_allclose(lengths, cdist(x, x))


def test_a_sheet_and_its_roll_agree_although_euclidean_distances_do_not():
    z = grid()
    x = rolled(z)
    assert geodesic_distance_correlation(x, z, n_neighbors=8) > 0.999
    assert np.corrcoef(cdist(x, x).ravel(), cdist(z, z).ravel())[0, 1] < 0.9


def test_a_monotone_stretch_lowers_the_correlation_and_not_the_order(rng):
    along = np.sort(rng.uniform(size=200))[:, None]
    assert geodesic_distance_correlation(along, np.exp(4 * along)) < 0.9
    assert geodesic_distance_correlation(along, 7 * along + 1) == pytest.approx(1, abs=1e-12)


def test_at_a_hole_lengths_follow_the_sheet():
    """Around the hole, both sides have detours; Euclidean distances of the coordinates do not."""
    z = swiss_roll(600, noise=0.0, hole=0.7, seed=1).truth["z"]
    x = swiss_roll(600, noise=0.0, hole=0.7, seed=1).x
    found = geodesic_distance_correlation(x, z, n_neighbors=6)
    paths = path_lengths(Positions(x), 6)
    units = geodesic.shuffled(600)[:1000]
    straight = cdist(z[units], z[units])[:100][np.arange(600) > np.arange(100)[:, None]]
    assert found > 0.99 > np.corrcoef(paths, straight)[0, 1]


# -- local isometry


def by_loops(x, y, k):
    """The definition, by a loop over neighbourhoods and a grid of common scales."""
    parts = []
    for side in (x, y):
        for i in range(len(x)):
            units = np.argsort(cdist(side[[i]], side)[0], kind="stable")[: k + 1]
            parts.append((x[units] - x[units].mean(axis=0), y[units] - y[units].mean(axis=0)))

    def rest(c):
        total = 0.0
        for a, b in parts:
            u, _, vt = np.linalg.svd(a.T @ b, full_matrices=False)
            total += ((c * a @ (u @ vt) - b) ** 2).sum()
        return total

    whole = sum((b**2).sum() for _, b in parts)
    scales = np.linspace(0, 3, 3001)
    values = [rest(c) for c in scales]
    return 1 - min(values) / whole


def test_local_isometry_is_the_share_explained_by_rotations_and_one_scale(rng):
    y = rng.normal(size=(15, 2))
    x = 0.8 * y + 0.4 * rng.normal(size=y.shape)
    assert local_isometry(x, y, n_neighbors=4) == pytest.approx(by_loops(x, y, 4), abs=1e-5)


def test_a_roll_is_locally_isometric_and_globally_not():
    z = grid()
    assert local_isometry(3 * rolled(z), z, n_neighbors=8) > 0.99


def test_curves_of_known_length_are_isometric_to_their_coordinate():
    dataset = helix(n_units=800, noise=0.0, turns=2.0, pitch=4.0)
    assert local_isometry(dataset.x, dataset.truth["z"], n_neighbors=6) > 0.999
    assert geodesic_distance_correlation(dataset.x, dataset.truth["z"], n_neighbors=6) > 0.9999


def test_a_stretch_by_place_or_by_axis_a_fold_and_a_tear_are_detected():
    z = grid()
    stretched = z * [1.0, 3.0]
    uneven = np.column_stack([z[:, 0], 30 * (z[:, 1] / 30) ** 3])
    folded = np.column_stack([z[:, 0], np.abs(z[:, 1] - 15)])
    torn = z + np.where(z[:, 1:] > 15, 60.0, 0.0) * [0, 1]
    for x in (stretched, uneven, folded, torn):
        for pair in ((x, z), (z, x)):
            assert local_isometry(*pair, n_neighbors=8) < 0.9


def test_a_stretched_axis_has_the_value_of_its_singular_values(rng):
    """For isotropic neighbourhoods of the embedding and the draw: (a + b)^2 / 2 (a^2 + b^2) in either's neighbourhoods."""
    z = rng.uniform(size=(4000, 2))
    found = local_isometry(z * [1.0, 1.5], z, n_neighbors=30)
    assert found == pytest.approx((1 + 1.5) ** 2 / (2 * (1 + 1.5**2)), abs=0.01)


@pytest.mark.parametrize("metric", [geodesic_distance_correlation, local_isometry])
def test_both_are_undefined_for_too_many_neighbors(metric, rng):
    x = rng.normal(size=(12, 2))
    for k in (0, 6):
        with pytest.raises(ConfigError, match=rf"`n_neighbors` must be at least 1 and below half of the 12 units; got {k}"):
            metric(x, x, n_neighbors=k)


@pytest.mark.parametrize("metric", [geodesic_distance_correlation, local_isometry])
def test_many_units_are_subsampled(metric, rng):
    z = rng.uniform(size=(3000, 2))
    assert metric.n_used(3000) == {"geodesic_distance_correlation": geodesic.GRAPH, "local_isometry": 500}[metric.name]
    assert metric(z @ [[0.6, 0.8], [-0.8, 0.6]], z) == pytest.approx(1)
    assert metric(rng.permutation(z), z) < 0.1
    assert not metric.by_default
    assert isometry.N_NEIGHBORS == geodesic.N_NEIGHBORS


@pytest.mark.parametrize("metric", [geodesic_distance_correlation, local_isometry])
def test_collapsed_neighborhoods_are_best_only_on_both_sides(metric):
    """Two points with 20 units each: within a neighbourhood of either all units coincide."""
    two = np.repeat([[0.0, 0.0], [1.0, 0.0]], 20, axis=0)
    assert metric(two, two, n_neighbors=5) == pytest.approx(1)
    assert metric(two, np.eye(40)[:, :39], n_neighbors=5) < 0.9
