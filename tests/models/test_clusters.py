"""Starting clusters of mixtures and hidden Markov models against scikit-learn."""

import numpy as np
import pytest
from sklearn.cluster import KMeans

from latentlab.distributions import loops
from latentlab.models import clusters
from latentlab.models.clusters import k_means_labels

SHAPES = [(40, 1, 2), (300, 3, 5), (5000, 2, 3), (200, 30, 9), (60, 4, 8), (25, 2, 1)]
"""Units, features, clusters; with more units than one block of the loops."""


@pytest.mark.parametrize(("n_units", "n_features", "n_clusters"), SHAPES)
@pytest.mark.parametrize("apart", [0.0, 4.0])
def test_labels_are_those_of_scikit_learn(rng, n_units, n_features, n_clusters, apart):
    centres = apart * rng.standard_normal((3, n_features))
    x = 50 + rng.standard_normal((n_units, n_features)) * rng.uniform(0.1, 5, n_features) + centres[rng.integers(3, size=n_units)]
    seed = int(rng.integers(1000))
    found = k_means_labels(x, n_clusters, np.random.default_rng(seed))
    drawn = int(np.random.default_rng(seed).integers(2**31))
    expected = KMeans(n_clusters, n_init=1, random_state=drawn).fit(x).labels_
    np.testing.assert_array_equal(found, expected)


def test_scikit_learn_is_used_without_compiled_loops_and_for_large_data(rng, monkeypatch):
    x = rng.standard_normal((200, 2))
    by_loops = k_means_labels(x, 3, np.random.default_rng(0))
    with monkeypatch.context() as patch:
        patch.setattr(loops, "load", lambda module: None)
        np.testing.assert_array_equal(k_means_labels(x, 3, np.random.default_rng(0)), by_loops)
    used = []
    monkeypatch.setattr(clusters, "MOST_IN_LOOPS", x.size * 3 - 1)
    monkeypatch.setattr(KMeans, "fit", lambda self, x, fit=KMeans.fit: used.append(len(x)) or fit(self, x))
    np.testing.assert_array_equal(k_means_labels(x, 3, np.random.default_rng(0)), by_loops)
    assert used == [200]


def test_an_empty_cluster_is_left_to_scikit_learn():
    """From centres at 0, 0 and 1 the second cluster is empty."""
    kernels = loops.load("models.compiled_clusters")
    columns, centres, labels = np.array([[0.0, 0.0, 1.0]]), np.empty((3, 1)), np.full(3, -1, np.int32)
    first, same, other = 0.1, 0.0, 0.9
    assert not kernels.k_means(columns, np.array([first, same, other]), 10, 0.0, centres, labels)


def test_random_numbers_do_not_change_between_calls(rng):
    x = rng.standard_normal((60, 2))
    first = k_means_labels(x, 3, np.random.default_rng(1))
    k_means_labels(x, 4, np.random.default_rng(2))
    np.testing.assert_array_equal(k_means_labels(x, 3, np.random.default_rng(1)), first)
