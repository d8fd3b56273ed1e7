"""Tests of PaCMAP: its pairs, reproducibility, the state that it restores, and data that it cannot embed."""

import logging
import sys
import warnings

import numpy as np
import pytest
from scipy.spatial.distance import cdist
from sklearn.manifold import trustworthiness

from latentlab.data.dataset import Dataset
from latentlab.embeddings import pacmap as module
from latentlab.embeddings.embed import embed
from latentlab.errors import ConfigError, MissingDependencyError


def dataset(x):
    return Dataset({"x": x}, dims={"x": ("unit", "feature")})


def test_pairs_are_nearest_by_scaled_distance(rng):
    """The definition by plain loops."""
    x = rng.standard_normal((80, 3))
    distances = cdist(x, x)
    sigma = np.sort(distances, axis=1)[:, 4:7].mean(axis=1)
    found = module._pairs(x, 6)
    assert found.dtype == np.int32
    for i in range(80):
        near = np.argsort(distances[i])[1:57]
        scaled = distances[i, near] ** 2 / sigma[i] / sigma[near]
        assert set(found[found[:, 0] == i, 1]) == set(near[np.argsort(scaled)[:6]])


def test_a_missing_package_is_named_with_its_extra(iris, monkeypatch):
    monkeypatch.setitem(sys.modules, "pacmap", None)
    with pytest.raises(MissingDependencyError, match=r"'pacmap' needs the package 'pacmap': .*latentlab\[embed\]"):
        embed("pacmap", iris)


@pytest.fixture(scope="module")
def layout(iris):
    return embed("pacmap", iris, n_seeds=2, seed=5)


@pytest.mark.slow
def test_the_layout_preserves_neighbours_and_differs_by_seed(iris, layout):
    assert layout.values.shape == (2, 150, 2)
    assert layout.options == {"n_neighbors": None, "mid_near": 0.5, "far": 2.0}
    assert min(trustworthiness(iris.x, values, n_neighbors=10) for values in layout.values) > 0.95
    assert not np.allclose(*layout.values, atol=0.1)
    assert embed("pacmap", iris, n_seeds=1, n_latent=3, n_neighbors=5).values.shape == (1, 150, 3)


@pytest.mark.slow
def test_the_layout_is_that_of_the_library_with_the_same_pairs(iris, layout):
    from pacmap import PaCMAP

    scaled = iris.x - iris.x.mean(axis=0)
    scaled /= np.abs(scaled).max()
    theirs = PaCMAP(pair_neighbors=module._pairs(scaled, 10), n_neighbors=10, random_state=layout.seeds[0] % module.SEEDS)
    with module._quiet():
        found = theirs.fit_transform(scaled, init="pca")
    np.testing.assert_array_equal(np.abs(found), np.abs(layout.values[0]))
    sys.modules["pacmap.pacmap"]._RANDOM_STATE = None


@pytest.mark.slow
def test_threads_random_state_logger_and_global_seed_are_restored(iris, layout, capfd, monkeypatch):
    import numba
    import pacmap
    import torch

    library, logger = sys.modules["pacmap.pacmap"], logging.getLogger("pacmap.pacmap")

    def state():
        kind, keys, *rest = np.random.get_state()
        kept = numba.get_num_threads(), torch.get_num_threads(), list(warnings.filters), logger.disabled, library._RANDOM_STATE
        return kind, keys.tobytes(), *rest, *kept

    threads = numba.get_num_threads()
    try:
        for n_threads in (1, min(2, numba.config.NUMBA_NUM_THREADS)):
            numba.set_num_threads(n_threads)
            before = state()
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                again = embed("pacmap", iris, n_seeds=2, seed=5)
            assert state() == before
            assert (again.values == layout.values).all(), "whatever the threads"
            assert not caught
            assert capfd.readouterr() == ("", "")

        def fails(*_, **__):
            raise ValueError("no layout")

        monkeypatch.setattr(pacmap.PaCMAP, "fit", fails)
        with pytest.raises(RuntimeError, match="'pacmap' failed: no layout"):
            embed("pacmap", iris)
        assert state() == before
    finally:
        numba.set_num_threads(threads)


@pytest.mark.slow
def test_few_units_duplicates_and_disconnected_graphs(rng):
    few = embed("pacmap", dataset(rng.standard_normal((9, 3))), n_seeds=1)
    assert few.notes[0] == "n_neighbors was lowered from 10 to 2 (a quarter of the other 8 units)"
    repeated = embed("pacmap", dataset(np.repeat(rng.standard_normal((10, 3)), 5, axis=0)), n_seeds=1)
    apart = embed("pacmap", dataset(np.concatenate([rng.standard_normal((25, 3)) + 100 * i for i in range(2)])), n_seeds=1)
    assert apart.notes == ("the graph of 10 nearest neighbours has 2 connected components",)
    assert all(np.isfinite(made.values).all() for made in (few, repeated, apart))


@pytest.mark.slow
def test_units_and_options_that_have_no_layout_are_refused(iris, rng):
    with pytest.raises(ConfigError, match="'pacmap' needs at least 9 units; got 8"):
        embed("pacmap", dataset(rng.standard_normal((8, 3))))
    with pytest.raises(ConfigError, match="`n_latent` must be at most 4"):
        embed("pacmap", iris, n_latent=5)
    with pytest.raises(ConfigError, match=r"`n_neighbors` must be at most 37 .*a quarter of the other 149 units.*; got 38"):
        embed("pacmap", iris, n_neighbors=38)
    with pytest.raises(ConfigError, match=r"fewer pairs than there are units \(150\); got 215"):
        embed("pacmap", iris, far=20.0)
