"""Tests of clusterings against enumeration, scipy and the limiting mixture of k-means."""

import itertools

import numpy as np
import pytest
import sklearn.cluster
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import cdist
from scipy.special import logsumexp
from sklearn.metrics import adjusted_rand_score
from threadpoolctl import threadpool_limits

from latentlab.data.dataset import Dataset
from latentlab.data.load import load_dataset
from latentlab.data.mixtures import gaussian_mixture
from latentlab.embeddings.clusters import agglomerative, kmeans, lloyd, one_hot, spectral_clustering
from latentlab.embeddings.embed import embed
from latentlab.errors import ConfigError

LINKAGES = ("ward", "average", "complete", "single")


def rings(n=60, seed=0):
    """Points on two concentric circles, and the circle of each point."""
    rng = np.random.default_rng(seed)
    angles = np.linspace(0, 2 * np.pi, n, endpoint=False)
    circle = np.column_stack([np.cos(angles), np.sin(angles)])
    x = np.concatenate([circle[::2], 3 * circle]) + 0.03 * rng.standard_normal((n + n // 2, 2))
    return x, np.repeat([0, 1], [n // 2, n])


def inertia(x, labels):
    return sum(((x[labels == k] - x[labels == k].mean(axis=0)) ** 2).sum() for k in np.unique(labels))


# -- zeros and ones


@pytest.mark.parametrize(
    "cluster", [lambda x, q: kmeans(x, q, seed=0), agglomerative, lambda x, q: spectral_clustering(x, q, seed=0, notes=[])]
)
@pytest.mark.parametrize("q", [1, 2, 3, 6])
def test_clusters_are_ordered_by_size(wine, cluster, q):
    made = cluster(wine, q)
    assert made.shape == (178, q)
    assert set(np.unique(made)) <= {0.0, 1.0}
    assert (made.sum(axis=1) == 1).all()
    sizes = made.sum(axis=0)
    assert (np.diff(sizes) <= 0).all()
    assert sizes.min() > 0


def test_clusters_of_equal_size_are_ordered_by_their_first_unit():
    assert one_hot(np.array([2, 1, 0, 0, 1, 2]), 3).argmax(axis=1).tolist() == [0, 1, 2, 2, 1, 0]
    assert one_hot(np.array([1, 0, 0]), 3).tolist() == [[0, 1, 0], [1, 0, 0], [1, 0, 0]]


def test_columns_do_not_depend_on_cluster_numbers_of_the_library(wine):
    labels = lloyd(wine, 4, 0, 5)[0]
    for order in itertools.permutations(range(4)):
        assert (one_hot(np.array(order)[labels], 4) == one_hot(labels, 4)).all()


@pytest.mark.parametrize("name", ["kmeans", "agglomerative", "spectral_clustering"])
def test_more_clusters_than_distinct_units_are_refused(name):
    x = np.repeat(np.random.default_rng(0).standard_normal((5, 2)), 4, axis=0)
    dataset = Dataset({"x": x}, dims={"x": ("unit", "feature")})
    with pytest.raises(ConfigError, match=r"`n_latent` must be at most 5 \(5 of the 20 units are distinct\); got 6"):
        embed(name, dataset, n_latent=6)
    if name != "spectral_clustering":
        assert np.sort(embed(name, dataset, n_latent=5).values.reshape(-1, 20, 5)[0].sum(axis=0)).tolist() == [4] * 5


# -- k-means


@pytest.mark.parametrize("seed", range(4))
def test_k_means_finds_the_best_of_all_partitions_of_a_few_units(seed):
    x = np.random.default_rng(seed).standard_normal((9, 2))
    best = min(inertia(x, np.array(labels)) for labels in itertools.product(range(3), repeat=9) if len(set(labels)) == 3)
    labels = kmeans(x, 3, seed=seed).argmax(axis=1)
    assert inertia(x, labels) == pytest.approx(best, rel=1e-12)


def test_k_means_solution_is_a_fixed_point_of_lloyds_algorithm(wine):
    labels, centres = lloyd(wine, 5, 0, 10)
    distances = kmeans(wine, 5, seed=0, output="distances")
    assert (kmeans(wine, 5, seed=0).argmax(axis=1) == labels).all()
    np.testing.assert_allclose(distances, cdist(wine, centres), atol=1e-12)
    assert (distances.argmin(axis=1) == labels).all()
    for k in range(5):
        np.testing.assert_allclose(centres[k], wine[labels == k].mean(axis=0), atol=1e-12)


def test_well_separated_clusters_are_found():
    dataset = gaussian_mixture(n_units=400, n_components=4, n_features=3, separation=12.0)
    for made in embed("kmeans", dataset, n_latent=4).values:
        assert adjusted_rand_score(dataset.labels, made.argmax(axis=1)) == 1
    # Neighbours 4 sds apart are confused by about Phi(-2) of their units.
    near = gaussian_mixture(n_units=2000, n_components=2, separation=4.0)
    wrong = (kmeans(near.x, 2, seed=0).argmax(axis=1) != near.truth["z"]).mean()
    assert 0.012 < wrong < 0.036


def test_k_means_does_not_depend_on_the_number_of_threads():
    x = np.random.default_rng(0).standard_normal((3000, 6))
    made = []
    for n_threads in (1, 2):
        with threadpool_limits(n_threads):
            made.append(kmeans(x, 8, seed=1, output="distances", n_init=2).tobytes())
    assert made[0] == made[1]


def em(x, centres, variance, n_steps=500):
    """EM for the means of a mixture of spherical Gaussians of equal weights and one given variance; the log likelihood too."""
    d = x.shape[1]
    for _ in range(n_steps):
        logits = -cdist(x, centres, "sqeuclidean") / (2 * variance)
        shares = np.exp(logits - logsumexp(logits, axis=1, keepdims=True))
        before, centres = centres, (shares.T @ x) / shares.sum(axis=0)[:, None]
        if np.abs(centres - before).max() < 1e-13:
            break
    logits = -cdist(x, centres, "sqeuclidean") / (2 * variance)
    constant = -d / 2 * np.log(2 * np.pi * variance) - np.log(len(centres))
    return centres, (logsumexp(logits, axis=1) + constant).sum()


def test_k_means_is_the_limit_of_a_mixture_of_spherical_gaussians(wine):
    """Kulis & Jordan (2012): same centres, and 2 v (-l - n (d/2 log 2 pi v + log K)) tends to the inertia."""
    labels, centres = lloyd(wine, 3, 0, 10)
    n, d = wine.shape
    apart, off = [], []
    for variance in (1.0, 0.1, 0.01, 1e-3):
        found, loglik = em(wine, centres, variance)
        apart.append(np.abs(found - centres).max())
        energy = 2 * variance * (-loglik - n * (d / 2 * np.log(2 * np.pi * variance) + np.log(3)))
        off.append(abs(energy / inertia(wine, labels) - 1))
    assert apart[0] > 0.02
    assert apart[0] > 5 * apart[1] > 25 * apart[2]
    assert apart[3] < 1e-10
    assert off[3] < 1e-8 < 1e-4 < off[0]


def test_a_mixture_with_unequal_variances_differs_from_k_means(wine):
    """The check can fail: with one variance ten times the others' the centres are others."""
    centres = lloyd(wine, 3, 0, 10)[1]
    scale = np.array([1.0, 1.0, 10.0])
    found = centres
    for _ in range(200):
        logits = -cdist(wine, found, "sqeuclidean") / (2e-3 * scale) - wine.shape[1] / 2 * np.log(scale)
        shares = np.exp(logits - logsumexp(logits, axis=1, keepdims=True))
        found = (shares.T @ wine) / np.maximum(shares.sum(axis=0)[:, None], 1e-12)
    assert np.abs(found - centres).max() > 0.1


# -- the others


@pytest.mark.parametrize("how", LINKAGES)
@pytest.mark.parametrize("q", [2, 3, 7])
def test_agglomerative_clustering_matches_scipy(wine, how, q):
    theirs = fcluster(linkage(wine, how), q, "maxclust") - 1
    assert (agglomerative(wine, q, linkage=how) == one_hot(theirs, q)).all()


def test_spectral_clustering_finds_rings_that_k_means_splits():
    x, which = rings()
    made = embed("spectral_clustering", Dataset({"x": x}, dims={"x": ("unit", "feature")}), n_neighbors=4)
    assert [adjusted_rand_score(which, run.argmax(axis=1)) for run in made.values] == [1, 1, 1]
    assert made.notes == ("the graph of 4 nearest neighbours has 2 connected components",)
    assert adjusted_rand_score(which, agglomerative(x, 2, linkage="single").argmax(axis=1)) == 1
    assert adjusted_rand_score(which, kmeans(x, 2, seed=0).argmax(axis=1)) < 0.2
    assert adjusted_rand_score(which, agglomerative(x, 2).argmax(axis=1)) < 0.5


def test_spectral_clustering_recovers_the_wine_classes(wine):
    notes = []
    labels = load_dataset("wine").labels
    assert adjusted_rand_score(labels, spectral_clustering(wine, 3, seed=0, notes=notes).argmax(axis=1)) > 0.85
    assert notes == []


def test_missing_clusters_are_noted(wine, monkeypatch):
    class Merged(sklearn.cluster.SpectralClustering):
        def fit(self, X, y=None):
            super().fit(X)
            self.labels_ = np.where(self.labels_ == 1, 0, self.labels_)
            return self

    monkeypatch.setattr(sklearn.cluster, "SpectralClustering", Merged)
    notes = []
    made = spectral_clustering(wine, 3, seed=0, notes=notes)
    assert notes == ["only 2 of 3 requested clusters were found; the other columns are 0"]
    assert made.shape == (178, 3)
    assert made[:, 2].sum() == 0
    assert (made.sum(axis=1) == 1).all()
