"""Tests of t-SNE against its divergence and scikit-learn, and of UMAP against its library."""

import hashlib
import os
import subprocess
import sys
import warnings

import numpy as np
import pytest
from scipy.spatial.distance import pdist, squareform
from sklearn.manifold import TSNE, trustworthiness

from latentlab.data.dataset import Dataset
from latentlab.embeddings import neighbor
from latentlab.embeddings.embed import embed
from latentlab.embeddings.linear import pca
from latentlab.embeddings.neighbor import tsne
from latentlab.errors import ConfigError, MissingDependencyError


@pytest.fixture(scope="module")
def flowers(iris):
    """Sixty distinct flowers of three species."""
    return np.unique(iris.x, axis=0)[np.random.default_rng(0).permutation(147)[:60]]


def dataset(x):
    return Dataset({"x": x}, dims={"x": ("unit", "feature")})


def neighbour_probabilities(x, perplexity):
    """p_ij of all pairs, each unit's width found by bisection of the entropy."""
    squares = squareform(pdist(x, "sqeuclidean"))
    n = len(x)
    p = np.zeros((n, n))
    for i in range(n):
        others = np.arange(n) != i
        low, high = 1e-10, 1e10
        for _ in range(200):
            precision = np.sqrt(low * high)
            weights = np.exp(-precision * (squares[i, others] - squares[i, others].min()))
            chances = weights / weights.sum()
            entropy = -(chances * np.log(np.maximum(chances, 1e-300))).sum()
            low, high = (precision, high) if entropy > np.log(perplexity) else (low, precision)
        p[i, others] = chances
    return (p + p.T) / (2 * n)


def divergence(y, p):
    kernel = 1 / (1 + squareform(pdist(y, "sqeuclidean")))
    np.fill_diagonal(kernel, 0)
    q = kernel / kernel.sum()
    inside = p > 0
    return (p[inside] * np.log(p[inside] / q[inside])).sum()


# -- t-SNE


@pytest.mark.parametrize("perplexity", [5.0, 15.0])
def test_tsne_reaches_the_divergence_of_scikit_learn(flowers, perplexity):
    p = neighbour_probabilities(flowers, perplexity)
    ours = [divergence(tsne(flowers, 2, seed=s, notes=[], perplexity=perplexity), p) for s in range(3)]
    exact = TSNE(2, perplexity=perplexity, method="exact", init="pca", random_state=0).fit(flowers)
    assert divergence(exact.embedding_, p) == pytest.approx(exact.kl_divergence_, rel=1e-3), "the oracle is the library's"
    assert min(ours) < 1.05 * exact.kl_divergence_
    assert max(ours) < 1.3 * exact.kl_divergence_
    assert exact.kl_divergence_ < 0.5 * divergence(pca(flowers, 2), p)


def test_tsne_uses_the_given_perplexity(flowers):
    of = {k: tsne(flowers, 2, seed=0, notes=[], perplexity=k) for k in (4.0, 15.0)}
    for k, other in ((4.0, 15.0), (15.0, 4.0)):
        p = neighbour_probabilities(flowers, k)
        assert divergence(of[k], p) < 0.9 * divergence(of[other], p)


def test_tsne_separates_well_separated_groups(rng):
    labels = np.repeat([0, 1, 2], 30)
    x = rng.standard_normal((90, 10)) + 8 * np.eye(10)[labels]
    distances = squareform(pdist(tsne(x, 2, seed=1, notes=[])))
    np.fill_diagonal(distances, np.inf)
    assert (labels[distances.argmin(axis=1)] == labels).all()


@pytest.mark.parametrize("initialization", ["pca", "random"])
def test_the_seed_perturbs_the_start_slightly(flowers, initialization):
    starts = [neighbor._start(flowers, 2, np.random.default_rng(s), initialization) for s in (0, 0, 1)]
    assert (starts[0] == starts[1]).all()
    assert not (starts[0] == starts[2]).any()
    assert 0.9e-4 < starts[0][:, 0].std() < 1.2e-4
    similar = abs(np.corrcoef(starts[0][:, 0], pca(flowers, 2)[:, 0])[0, 1])
    assert similar > 0.98 if initialization == "pca" else similar < 0.5


def test_runs_from_random_starts_differ_more_than_runs_from_the_principal_components(flowers):
    def spread(initialization):
        runs = embed("tsne", dataset(flowers), n_seeds=3, initialization=initialization).values
        distances = [pdist(run) for run in runs]
        return np.mean([1 - np.corrcoef(distances[i], distances[j])[0, 1] for i, j in ((0, 1), (0, 2), (1, 2))])

    assert spread("random") > spread("pca") > 0


def test_a_too_large_default_perplexity_is_lowered_and_noted(flowers, iris):
    few = dataset(flowers[:31])
    made = embed("tsne", few, n_seeds=2)
    assert made.notes == ("perplexity was lowered from 30 to 10 (a third of the other 30 units)",)
    asked = embed("tsne", few, n_seeds=2, perplexity=10.0)
    assert asked.notes == ()
    assert (made.values == asked.values).all()
    assert embed("tsne", iris, n_seeds=1, n_iter=1).notes == ()
    with pytest.raises(ConfigError, match=r"`perplexity` must be at most 10\.0 .*30 units.*; got 10\.1"):
        embed("tsne", few, perplexity=10.1)


def test_the_smallest_data_set_has_perplexity_1(rng):
    with pytest.raises(ConfigError, match="needs at least 4 units; got 3"):
        embed("tsne", dataset(rng.standard_normal((3, 2))))
    assert embed("tsne", dataset(rng.standard_normal((4, 2))), n_seeds=1).values.shape == (1, 4, 2)


def test_one_column_and_duplicate_units_are_accepted(iris, rng):
    assert embed("tsne", iris, n_latent=1, n_seeds=1, n_iter=50).values.shape == (1, 150, 1)
    repeated = dataset(np.repeat(rng.standard_normal((10, 3)), 5, axis=0))
    assert np.isfinite(embed("tsne", repeated, n_seeds=1).values).all()


def test_grid_approximation_reaches_the_same_divergence(flowers, monkeypatch):
    p = neighbour_probabilities(flowers, 15.0)
    tree = divergence(tsne(flowers, 2, seed=0, notes=[], perplexity=15.0), p)
    monkeypatch.setattr(neighbor, "EXACT", 10)
    grid = divergence(tsne(flowers, 2, seed=0, notes=[], perplexity=15.0), p)
    assert grid == pytest.approx(tree, rel=0.1)


@pytest.mark.parametrize(("name", "module", "package"), [("tsne", "openTSNE", "openTSNE"), ("umap", "umap", "umap-learn")])
def test_a_missing_package_is_named_with_its_extra(name, module, package, iris, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingDependencyError, match=rf"'{name}' needs the package '{package}': .*latentlab\[embed\]"):
        embed(name, iris)


# -- UMAP, which numba compiles first


@pytest.fixture(scope="module")
def layout(iris):
    return embed("umap", iris, n_seeds=2, seed=5, n_neighbors=12, min_dist=0.2)


@pytest.mark.slow
def test_umap_matches_the_library_with_the_recorded_seed(iris, layout):
    from umap import UMAP

    assert layout.values.shape == (2, 150, 2)
    assert layout.options == {"n_neighbors": 12, "min_dist": 0.2, "n_epochs": None}
    for seed, values in zip(layout.seeds, layout.values, strict=True):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            theirs = UMAP(n_neighbors=12, min_dist=0.2, random_state=seed, n_jobs=1).fit_transform(iris.x)
        assert (np.abs(values) == np.abs(theirs.astype(np.float64))).all()
        assert (values.max(axis=0) >= -values.min(axis=0)).all()


@pytest.mark.slow
def test_umap_preserves_neighbours_and_uses_its_options(iris, layout):
    assert min(trustworthiness(iris.x, values, n_neighbors=10) for values in layout.values) > 0.95
    packed, loose = (embed("umap", iris, n_seeds=1, min_dist=d).values[0] for d in (0.0, 1.0))
    nearest = [np.median(np.partition(squareform(pdist(y)) + 1e9 * np.eye(150), 0, axis=1)[:, 0]) for y in (packed, loose)]
    assert nearest[0] < 0.5 * nearest[1]
    assert embed("umap", iris, n_seeds=1, n_latent=3, n_epochs=5).values.shape == (1, 150, 3)


@pytest.mark.slow
def test_umap_restores_threads_random_state_and_warnings(iris, layout, capfd, monkeypatch):
    import numba
    import umap

    def state():
        kind, keys, *rest = np.random.get_state()
        return kind, keys.tobytes(), *rest, numba.get_num_threads(), list(warnings.filters)

    threads = numba.get_num_threads()
    try:
        numba.set_num_threads(min(2, numba.config.NUMBA_NUM_THREADS))
        before = state()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            again = embed("umap", iris, n_seeds=2, seed=5, n_neighbors=12, min_dist=0.2)
        assert state() == before
        assert (again.values == layout.values).all(), "whatever the threads"
        assert not caught
        assert capfd.readouterr() == ("", "")

        def fails(*_, **__):
            numba.set_num_threads(1)
            raise ValueError("no layout")

        monkeypatch.setattr(umap.UMAP, "fit", fails)
        with pytest.raises(RuntimeError, match="'umap' failed: no layout"):
            embed("umap", iris)
        assert state() == before
    finally:
        numba.set_num_threads(threads)


@pytest.mark.slow
def test_umap_notes_a_disconnected_graph(rng):
    x = np.concatenate([rng.standard_normal((25, 3)), 100 + rng.standard_normal((25, 3))])
    made = embed("umap", dataset(x), n_seeds=1, n_neighbors=6)
    assert made.notes == ("the graph of 5 nearest neighbours has 2 connected components",)
    for number in (50, 1):
        with pytest.raises(ConfigError, match="`n_neighbors` must be"):
            embed("umap", dataset(x), n_neighbors=number)


PROGRAM = """
import hashlib
from latentlab.data.load import load_dataset
from latentlab.embeddings.embed import embed
made = embed("umap", load_dataset("iris"), n_seeds=2, seed=5, n_neighbors=12, min_dist=0.2)
print(hashlib.sha256(made.values.tobytes()).hexdigest())
"""


@pytest.mark.slow
def test_umap_is_reproducible_in_another_process(layout):
    environment = {**os.environ, "PYTHONHASHSEED": "77"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, timeout=300, check=True
    )
    assert done.stdout.strip() == hashlib.sha256(layout.values.tobytes()).hexdigest()


@pytest.mark.slow
def test_umap_runs_differ_between_seeds(layout):
    assert len({*layout.seeds}) == 2
    assert not np.allclose(*layout.values, atol=0.1)
