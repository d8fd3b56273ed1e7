"""Tests of truncated SVD and the adjacency spectral embedding against their definitions, and of their errors."""

from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse

from latentlab.data.dataset import Dataset
from latentlab.data.load import load_dataset
from latentlab.data.points import grunfeld, karate
from latentlab.embeddings import spectral_factors
from latentlab.embeddings.embed import embed
from latentlab.embeddings.embedding import Embedding
from latentlab.errors import ConfigError, DataError


def test_truncated_svd_is_the_best_approximation_of_the_centred_matrix():
    ratings = grunfeld()
    table = ratings.matrix("user", "item").toarray()
    u, s, vt = np.linalg.svd(table - table.mean(), full_matrices=False)
    found = embed("truncated_svd", ratings, n_latent=3)
    assert found.kinds == ("user", "item")
    np.testing.assert_allclose(found.values["user"] @ found.values["item"].T, (u[:, :3] * s[:3]) @ vt[:3], atol=1e-10)
    for kind in found.kinds:
        np.testing.assert_allclose(found.values[kind].T @ found.values[kind], np.diag(s[:3]), atol=1e-9)
    both = np.concatenate(list(found.values.values()))
    assert (both[np.abs(both).argmax(axis=0), np.arange(3)] > 0).all()


def test_kinds_of_units_do_not_depend_on_order_and_names_of_indices():
    given = grunfeld()
    (user, item) = (given.index[name] for name in ("user", "item"))
    swapped = replace(given, index={"item": item, "user": user})
    found, expected = embed("truncated_svd", swapped), embed("truncated_svd", given)
    for kind in ("user", "item"):
        np.testing.assert_allclose(found.values[kind], expected.values[kind], atol=1e-10)
    renamed = Dataset(
        given.arrays,
        dims=given.dims,
        units={"firm": given.units["user"], "year": given.units["item"]},
        index={"firm": ("cell", user.values), "year": ("cell", item.values)},
    )
    np.testing.assert_allclose(embed("truncated_svd", renamed).values["firm"], expected.values["user"], atol=1e-10)


def test_unobserved_cells_are_imputed_by_the_mean_and_counted(rng):
    training, _ = grunfeld().split(0.25, rng)
    found = embed("truncated_svd", training)
    assert found.notes == ("55 of 220 cells were unobserved and were set to the mean",)
    plain = embed("truncated_svd", training, center=False)
    assert not np.allclose(plain.values["user"], found.values["user"])


def test_adjacency_embedding_is_the_scaled_leading_eigenvectors():
    a = karate().adjacency().toarray()
    values, vectors = np.linalg.eigh(a)
    order = np.argsort(-np.abs(values))[:3]
    found = embed("adjacency_spectral", karate(), n_latent=3)
    best = (vectors[:, order] * values[order]) @ vectors[:, order].T
    np.testing.assert_allclose(found.values @ np.diag(np.sign(values[order])) @ found.values.T, best, atol=1e-10)
    assert found.notes == ("1 of the 3 leading eigenvalues is negative, because edges connect dissimilar nodes",)
    assert found.units.tolist() == [str(i) for i in range(34)]


def test_missing_pairs_are_counted(rng):
    training, _ = karate().split(0.1, rng)
    assert "56 unobserved pairs of nodes were treated as unconnected" in embed("adjacency_spectral", training).notes
    values = karate().x.copy()
    values[[3, 5]] = np.nan
    hidden = replace(karate(), arrays={"edge": values})
    assert "2 unobserved pairs of nodes were treated as unconnected" in embed("adjacency_spectral", hidden).notes


def test_iterative_and_dense_decompositions_agree(monkeypatch, rng):
    whole = [embed("truncated_svd", grunfeld()), embed("adjacency_spectral", karate())]
    monkeypatch.setattr(spectral_factors, "DENSE", 1)
    iterated = [embed("truncated_svd", grunfeld()), embed("adjacency_spectral", karate())]
    for kind in ("user", "item"):
        np.testing.assert_allclose(iterated[0].values[kind], whole[0].values[kind], atol=1e-8)
    np.testing.assert_allclose(iterated[1].values, whole[1].values, atol=1e-8)


@pytest.mark.parametrize(
    ("name", "dataset", "message"),
    [
        ("truncated_svd", karate, "karate is a graph with the kinds of units 'node'"),
        ("truncated_svd", lambda: load_dataset("iris"), "iris is a table"),
        ("adjacency_spectral", grunfeld, "grunfeld is a list of cells with the kinds of units 'user', 'item'"),
        ("pca", karate, r"requires a table \(unit, feature\)"),
        ("umap", grunfeld, r"requires a table \(unit, feature\)"),
    ],
)
def test_data_of_another_kind_are_refused(name, dataset, message):
    with pytest.raises(DataError, match=message):
        embed(name, dataset())


def test_too_many_columns_and_asymmetric_graphs_are_refused():
    with pytest.raises(ConfigError, match="`n_latent` must be at most 10"):
        embed("truncated_svd", grunfeld(), n_latent=11)
    with pytest.raises(ConfigError, match="`n_latent` must be at most 33"):
        embed("adjacency_spectral", karate(), n_latent=34)
    one_way = Dataset(
        {"edge": [1.0, 1.0]},
        dims={"edge": ("pair",)},
        units={"node": 4},
        index={"source": ("pair", [0, 2], "node"), "target": ("pair", [1, 3], "node")},
        absent="zero",
        directed=True,
    )
    with pytest.raises(DataError, match="the graph is directed; expected an undirected graph"):
        embed("adjacency_spectral", one_way)
    with pytest.raises(DataError, match="the graph has no edges"):
        spectral_factors.adjacency_spectral(scipy.sparse.csr_array((3, 3)), 1, notes=[])
    same = Dataset(
        {"rating": [2.0, 2.0, 2.0, 2.0]},
        dims={"rating": ("cell",)},
        units={"user": 2, "item": 2},
        index={"user": ("cell", [0, 0, 1, 1]), "item": ("cell", [0, 1, 0, 1])},
    )
    with pytest.raises(DataError, match="all ratings are equal"):
        embed("truncated_svd", same, n_latent=1)


def test_each_kind_of_an_embedding_is_checked():
    users, items = [[0.0], [1.0]], [[2.0]]
    mine = Embedding("mine", {"user": users, "item": items}, {"user": ["a", "b"], "item": ["x"]})
    assert mine.reindexed({"user": ["b"], "item": ["x"]}).values["user"].tolist() == [[1.0]]
    assert mine.of("item").values.tolist() == [[2.0]]
    with pytest.raises(DataError, match="has no values for 1 of 1 units: 'c'"):
        mine.reindexed({"user": ["c"], "item": ["x"]})
    with pytest.raises(DataError, match=r"equal numbers of columns and runs; got the shapes user \(2, 1\) and item \(1, 2\)"):
        Embedding("mine", {"user": users, "item": [[1.0, 2.0]]}, {"user": ["a", "b"], "item": ["x"]})
    with pytest.raises(DataError, match="`units` must be a dict of names for the kinds of the values"):
        Embedding("mine", {"user": users}, ["a", "b"])
