"""Tests of classical scaling, Isomap, LLE, Laplacian eigenmaps and stress against formulas and on a known curve."""

import numpy as np
import pytest
from scipy.linalg import eigh
from scipy.spatial.distance import pdist, squareform
from sklearn.manifold import MDS, SpectralEmbedding

from latentlab.data.dataset import Dataset
from latentlab.embeddings.embed import embed
from latentlab.embeddings.linear import pca
from latentlab.embeddings.manifold import isomap, lle, mds, spectral
from latentlab.errors import ConfigError

IN_PIECES = pytest.mark.filterwarnings("ignore")
"""`embed` keeps these warnings to itself; the entries are called directly here."""


def up_to_sign(a, b, **tolerance):
    return np.allclose(a, b * np.sign((a * b).sum(axis=0)), **tolerance)


def nearest(x, k):
    """Indices of each unit's k nearest others, by sorting."""
    distances = squareform(pdist(x))
    np.fill_diagonal(distances, np.inf)
    return np.argsort(distances, axis=1, kind="stable")[:, :k]


def scaling_scores(distances, q):
    n = len(distances)
    centre = np.eye(n) - 1 / n
    values, vectors = np.linalg.eigh(-0.5 * centre @ distances**2 @ centre)
    return (vectors * np.sqrt(np.maximum(values, 0)))[:, ::-1][:, :q]


def arc(n=80):
    """Points on three quarters of a circle of radius 1, in space, and their distance along it."""
    angle = np.linspace(0, 1.5 * np.pi, n)
    turn = np.linalg.qr(np.random.default_rng(0).standard_normal((3, 3)))[0]
    return np.column_stack([np.cos(angle), np.sin(angle), np.zeros(n)]) @ turn, angle


def blobs(n_blobs=2, n_each=12):
    rng = np.random.default_rng(1)
    return np.concatenate([rng.standard_normal((n_each, 3)) + 100 * i for i in range(n_blobs)])


# -- distances


def test_classical_scaling_of_euclidean_distances_is_pca(wine):
    found = mds(wine, 3, method="classical", notes=[])
    assert up_to_sign(found, scaling_scores(squareform(pdist(wine)), 3), atol=1e-9)
    assert up_to_sign(found, pca(wine, 3), atol=1e-9)


def test_classical_scaling_reproduces_distances_with_enough_columns(wine):
    assert np.allclose(pdist(mds(wine, 13, method="classical", notes=[])), pdist(wine), atol=1e-8)
    assert np.allclose(mds(wine, 20, method="classical", notes=[])[:, 13:], 0, atol=1e-6), "no column more than the rank"


def shortest_paths(weights):
    distances = weights.copy()
    for k in range(len(distances)):
        distances = np.minimum(distances, distances[:, [k]] + distances[[k]])
    return distances


@pytest.mark.parametrize("k", [5, 12])
def test_isomap_is_classical_scaling_of_path_lengths(wine, k):
    distances, near = squareform(pdist(wine)), nearest(wine, k)
    weights = np.full_like(distances, np.inf)
    for i in range(len(wine)):
        weights[i, near[i]] = weights[near[i], i] = distances[i, near[i]]
    np.fill_diagonal(weights, 0)
    expected = scaling_scores(shortest_paths(weights), 2)
    notes = []
    assert up_to_sign(isomap(wine, 2, n_neighbors=k, notes=notes), expected, atol=1e-7)
    assert notes == []


def test_isomap_unrolls_an_arc_and_pca_does_not():
    x, along = arc()
    found = isomap(x, 1, n_neighbors=2, notes=[])[:, 0]
    assert abs(np.corrcoef(found, along)[0, 1]) > 0.99999
    assert np.ptp(found) == pytest.approx(np.ptp(along), rel=1e-3), "in the data's own units"
    assert abs(np.corrcoef(pca(x, 1)[:, 0], along)[0, 1]) < 0.96


def test_isomap_with_all_units_as_neighbours_is_pca(wine):
    assert up_to_sign(isomap(wine, 2, n_neighbors=177, notes=[]), pca(wine, 2), atol=1e-8)


# -- stress


def stress(y, x):
    return ((pdist(y) - pdist(x)) ** 2).sum()


def test_stress_is_a_minimum_below_other_configurations(wine):
    notes = []
    found = mds(wine, 2, max_iter=3000, notes=notes)
    assert notes == []
    least = stress(found, wine)
    assert least < 0.9 * stress(mds(wine, 2, method="classical", notes=[]), wine)
    rng = np.random.default_rng(2)
    for size in (0.1, 0.3):
        assert all(stress(found + size * rng.standard_normal(found.shape), wine) > least for _ in range(20))
    random = MDS(2, n_init=1, init="random", normalized_stress=False, max_iter=1000)
    for seed in range(4):
        assert least < stress(random.set_params(random_state=seed).fit_transform(wine), wine)


def test_stress_of_planar_data_is_0(rng):
    x = rng.standard_normal((30, 2)) @ rng.standard_normal((2, 6))
    assert stress(mds(x, 2, notes=[]), x) < 1e-20


def test_stopped_majorisation_is_noted(wine):
    notes = []
    mds(wine, 2, max_iter=3, notes=notes)
    assert notes == ["majorisation stopped after 3 steps, before the stress converged"]


# -- graphs


@pytest.mark.parametrize("k", [5, 12, 20])
def test_lle_preserves_reconstruction_weights(wine, k):
    n, near = len(wine), nearest(wine, k)
    weights = np.zeros((n, n))
    for i in range(n):
        away = wine[near[i]] - wine[i]
        gram = away @ away.T
        w = np.linalg.solve(gram + 1e-3 * np.trace(gram) * np.eye(k), np.ones(k))
        weights[i, near[i]] = w / w.sum()
    rest = np.eye(n) - weights
    vectors = np.linalg.eigh(rest.T @ rest)[1]
    notes = []
    found = lle(wine, 2, n_neighbors=k, notes=notes)
    assert up_to_sign(found, vectors[:, 1:3] * np.sqrt(n), atol=1e-5)
    assert np.allclose(found.T @ found / n, np.eye(2), atol=1e-9)
    assert np.allclose(found.mean(axis=0), 0, atol=1e-6)
    assert notes == []


@pytest.mark.parametrize("k", [4, 12])
def test_laplacian_eigenmaps_solve_the_generalised_eigenproblem(wine, k):
    n, near = len(wine), nearest(wine, k)
    weights = np.zeros((n, n))
    for i in range(n):
        weights[i, near[i]] += 0.5
        weights[near[i], i] += 0.5
    degrees = weights.sum(axis=1)
    vectors = eigh(np.diag(degrees) - weights, np.diag(degrees))[1][:, 1:4]
    found = spectral(wine, 3, n_neighbors=k, notes=[])
    assert up_to_sign(found, vectors * np.sqrt(degrees.sum()), atol=1e-7)
    share = degrees / degrees.mean()
    assert np.allclose(found.T @ (share[:, None] * found), n * np.eye(3), atol=1e-7)
    theirs = SpectralEmbedding(3, affinity="nearest_neighbors", n_neighbors=k + 1, random_state=0).fit_transform(wine)
    assert np.allclose(np.abs(np.corrcoef(found.T, theirs.T)[:3, 3:]).diagonal(), 1, atol=1e-9), "theirs counts the unit itself"


@pytest.mark.parametrize(("embedding", "n_neighbors"), [(lle, 4), (spectral, 3)])
def test_graph_embeddings_order_an_arc(embedding, n_neighbors):
    x, along = arc()
    found = embedding(x, 1, n_neighbors=n_neighbors, notes=[])[:, 0]
    assert (np.diff(found * np.sign(found[-1] - found[0])) > 0).mean() > 0.95
    assert np.ptp(found[along < 0.1]) < 0.2 * np.ptp(found)


@pytest.mark.parametrize("name", ["isomap", "lle", "spectral"])
def test_a_disconnected_graph_is_embedded_and_noted(name):
    for n_blobs in (2, 3):
        data = Dataset({"x": blobs(n_blobs)}, dims={"x": ("unit", "feature")})
        made = embed(name, data, n_latent=2, n_neighbors=5)
        done = "they were joined at their nearest units" if name == "isomap" else "the first columns only separate them"
        assert made.notes == (f"the graph of 5 nearest neighbours has {n_blobs} connected components; {done}",)
        assert np.isfinite(made.values).all()


@IN_PIECES
def test_components_are_counted_without_self_neighbours():
    x = blobs(2, n_each=3)  # with 2 others each it falls apart, with 3 it holds
    for embedding in (isomap, spectral):
        apart, whole = [], []
        embedding(x, 1, n_neighbors=2, notes=apart)
        embedding(x, 1, n_neighbors=3, notes=whole)
        assert [note.partition(";")[0] for note in apart] == ["the graph of 2 nearest neighbours has 2 connected components"]
        assert whole == []


@IN_PIECES
def test_the_first_column_separates_two_graph_components():
    first = spectral(blobs(), 1, n_neighbors=5, notes=[])[:, 0]
    assert np.ptp(first[:12]) < 1e-3 * np.ptp(first)
    assert np.ptp(first[12:]) < 1e-3 * np.ptp(first)


@IN_PIECES
def test_isomap_keeps_joined_components_far_apart():
    found = isomap(blobs(), 1, n_neighbors=5, notes=[])[:, 0]
    assert abs(found[:12].mean() - found[12:].mean()) > 100


@IN_PIECES
@pytest.mark.parametrize(
    ("embedding", "n_blobs", "n_latent"), [(e, *c) for e in (lle, spectral) for c in ((2, 3), (3, 2), (5, 2))]
)
def test_the_columns_of_a_disconnected_graph_are_those_of_its_eigenproblem(embedding, n_blobs, n_latent):
    """Null vectors are constant on each component, without the constant; they do not depend on the solver's choice."""
    x = blobs(n_blobs)
    found, component = embedding(x, n_latent, n_neighbors=5, notes=[]), np.repeat(np.arange(n_blobs), 12)
    n_null = min(n_blobs - 1, n_latent)
    assert all(np.ptp(found[component == k, :n_null], axis=0).max() < 1e-9 for k in range(n_blobs))
    assert np.linalg.matrix_rank(found, tol=1e-6) == n_latent
    near = nearest(x, 5)
    shares = np.ones(len(x))
    if embedding is spectral:
        for i in range(len(x)):
            shares[i] = 0.5 * (5 + (near == i).sum())
        shares /= shares.mean()
    np.testing.assert_allclose(found.T @ (shares[:, None] * found) / len(x), np.eye(n_latent), atol=1e-6)
    np.testing.assert_allclose(shares @ found / len(x), 0, atol=1e-6)
    if n_null < n_latent:
        assert max(np.ptp(found[component == k, -1]) for k in range(n_blobs)) > 0.1


# -- bad input


def as_dataset(x):
    return Dataset({"x": x}, dims={"x": ("unit", "feature")})


@pytest.mark.parametrize("name", ["isomap", "lle", "spectral", "mds"])
def test_duplicated_rows_are_at_one_point_or_finite(name, rng):
    x = np.repeat(rng.standard_normal((20, 4)), 3, axis=0)
    made = embed(name, as_dataset(x))
    assert np.isfinite(made.values).all()
    heavy = np.concatenate([np.repeat(x[:1], 30, axis=0), x[::3]])  # more units at one point than neighbours
    assert np.isfinite(embed(name, as_dataset(heavy)).values).all()
    if name in ("isomap", "mds"):
        assert np.ptp(made.values.reshape(20, 3, 2), axis=1).max() < 1e-3 * np.ptp(made.values)


@pytest.mark.parametrize("name", ["isomap", "lle", "spectral", "mds", "pca"])
def test_a_constant_column_does_not_change_an_embedding_of_distances(name, rng):
    x = rng.standard_normal((40, 4))
    made = embed(name, as_dataset(np.column_stack([x, np.full(40, 3.0)])))
    assert np.allclose(made.values, embed(name, as_dataset(x)).values, atol=1e-6)


@pytest.mark.parametrize("name", ["isomap", "lle", "spectral"])
def test_three_units_have_one_column_of_a_graph(name, rng):
    three = as_dataset(rng.standard_normal((3, 4)))
    made = embed(name, three, n_latent=1)
    assert made.notes == ("n_neighbors was lowered from 10 to 2 (fewer than the 3 units)",)
    assert np.isfinite(made.values).all()
    with pytest.raises(ConfigError, match=f"embedding '{name}': `n_latent` must be at most 1 .*3 units.*; got 2"):
        embed(name, three)


def test_three_units_have_two_columns_of_distances(rng):
    x = rng.standard_normal((3, 4))
    for options in ({}, {"method": "classical"}):
        assert np.allclose(pdist(embed("mds", as_dataset(x), **options).values), pdist(x), atol=1e-6)
