"""Tests of `embed` for every registered embedding, and of user vectors."""

import hashlib
import inspect
import logging
import os
import random
import subprocess
import sys
import types
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from sklearn.exceptions import ConvergenceWarning

import latentlab as ll
from latentlab.data.dataset import Dataset
from latentlab.data.memory import Budget
from latentlab.embeddings import embed as embed_module
from latentlab.embeddings.embed import N_SEEDS, SUPPLIED, embed, embedding_options
from latentlab.embeddings.embedding import Embedding
from latentlab.errors import ConfigError, DataError, InferenceError
from latentlab.registry import EMBEDDINGS

UNORDERED = ("pca", "factor_analysis", "kernel_pca", "isomap", "lle", "spectral", "mds", "agglomerative")
"""Those that neither start at random nor take the order of the units for time."""
STILL = (*UNORDERED, "window_pca")
"""Those that do not start at random."""
CLUSTERS = ("kmeans", "spectral_clustering", "agglomerative", "window_kmeans")
"""Those whose columns are 0 and 1, and add up to 1."""
QUICK = (*STILL, "tsne", "kmeans", "spectral_clustering", "window_kmeans", "autoencoder")
"""All that compute something in a second; UMAP is compiled first, and is tested beside its file."""


def table(n_units=40, n_features=8, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n_units, 2)) @ rng.standard_normal((2, n_features)) + 0.4 * rng.standard_normal(
        (n_units, n_features)
    )
    return x * np.linspace(1, 3, n_features)


def dataset(x, **kwargs):
    return Dataset({"x": x}, dims={"x": ("unit", "feature")}, **kwargs)


@pytest.fixture(scope="module")
def toy():
    names = [f"u{i}" for i in np.random.default_rng(1).permutation(40)]
    return dataset(table(), coords={"unit": names}, name="toy")


def digest(embedding):
    return hashlib.sha256(embedding.values.tobytes()).hexdigest()


# -- one's own vectors


def test_user_vectors_are_copied_and_read_only():
    values, units = np.arange(6.0).reshape(3, 2), np.array(["a", "b", "c"])
    mine = ll.Embedding("mine", values, units)
    values[0, 0], units[0] = 99, "z"
    assert mine.values.tolist() == [[0, 1], [2, 3], [4, 5]]
    assert mine.units.tolist() == ["a", "b", "c"]
    assert (mine.label, mine.options, mine.seeds, mine.notes) == ("mine", {}, (), ())
    with pytest.raises(ValueError, match="read-only"):
        mine.values[0, 0] = 1
    assert repr(mine) == "Embedding('mine', unit: 3, latent: 2)"


@pytest.mark.parametrize(
    "values",
    [
        [[1, 2], [3, 4]],
        pd.DataFrame({"a": [1, 3], "b": [2, 4]}),
        torch.tensor([[1.0, 2.0], [3.0, 4.0]]),
        np.float32([[1, 2], [3, 4]]),
    ],
)
@pytest.mark.parametrize("units", [["a", "b"], (0, 1), pd.Index(["a", "b"]), range(2)])
def test_lists_frames_and_tensors_are_accepted(values, units):
    mine = Embedding("mine", values, units)
    assert mine.values.dtype == np.float64
    assert mine.values.tolist() == [[1, 2], [3, 4]]


def test_runs_are_numbered_if_no_seeds_are_given():
    values = np.arange(12.0).reshape(2, 3, 2)
    assert Embedding("mine", values, list("abc")).seeds == (0, 1)
    assert Embedding("mine", values, list("abc"), seeds=(5, 7)).seeds == (5, 7)


GOOD = [[0.0, 1.0], [2.0, 3.0]]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"values": [1.0, 2.0]}, r"must have shape \(unit, p\) or \(seed, unit, p\); got \(2,\)"),
        ({"values": np.zeros((2, 0))}, r"got \(2, 0\)"),
        ({"values": [[1.0], [1.0, 2.0]]}, "is ragged; all rows must have the same length"),
        ({"values": [[1.0, 2.0]]}, "`values` has 1 units, but `units` has 2 names"),
        ({"values": [["1", "2"], ["3", "4"]]}, "expected real numbers"),
        ({"values": [[1j, 2], [3, 4]]}, "complex128; expected real numbers"),
        ({"values": [[0.0, np.nan], [2.0, 3.0]]}, "1 units have values that are not finite: 'a'"),
        ({"values": [[0.0, 1.0], [2.0, -np.inf]]}, "1 units have values that are not finite: 'b'"),
        ({"values": [[[0.0], [1.0]], [[2.0], [np.nan]]]}, "1 units have values that are not finite: 'b'"),
        ({"values": np.ma.masked_equal(GOOD, 2.0)}, "1 units have values that are not finite: 'b'"),
        ({"units": ["a", "a"]}, "unit 'a' occurs more than once"),
        ({"units": [["a", "b"]]}, "`units` must be one-dimensional"),
        ({"units": ["a", 1]}, "`units` has values of several types"),
        ({"units": [0.0, np.nan]}, "1 missing or infinite"),
        ({"name": ""}, "`name` of an embedding must be nonempty text; got ''"),
        ({"label": 3}, "`label` of an embedding must be nonempty text; got 3"),
        ({"seeds": (1,)}, r"1 seeds for values of shape \(2, 2\)"),
        ({"values": [GOOD, GOOD], "seeds": (1,)}, r"1 seeds for values of shape \(2, 2, 2\)"),
    ],
)
def test_invalid_embeddings_are_refused_by_name(given, message):
    with pytest.raises(DataError, match=message) as caught:
        Embedding(**{"name": "mine", "values": GOOD, "units": ["a", "b"], **given})
    assert "\n" not in str(caught.value)


def test_units_are_matched_by_name_not_by_position():
    mine = Embedding("mine", [[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]], ["7", "11", "3"], label="own", options={"a": 1})
    joined = mine.reindexed([3, 7])  # numbers and text of the same name are the same unit
    assert joined.values.tolist() == [[4, 5], [0, 1]]
    assert joined.units.tolist() == [3, 7]
    assert (joined.name, joined.label, joined.options) == ("mine", "own", {"a": 1})
    runs = Embedding("mine", np.arange(12.0).reshape(2, 3, 2), list("abc"), seeds=(5, 6)).reindexed(["c", "a"])
    assert runs.values.tolist() == [[[4, 5], [0, 1]], [[10, 11], [6, 7]]]
    assert runs.seeds == (5, 6)


def test_missing_units_of_an_embedding_are_named():
    mine = Embedding("mine", np.zeros((3, 2)), list("abc"))
    with pytest.raises(DataError, match=r"no values for 2 of 3 units: 'x', 'y'. The names of its units are 'a', 'b' and 1 more"):
        mine.reindexed(["a", "x", "y"])
    with pytest.raises(DataError, match="no values for 3 of 3 units"):
        mine.reindexed([0, 1, 2])
    with pytest.raises(DataError, match="unit 'a' occurs more than once"):
        mine.reindexed(["a", "a"])


# -- what every entry gives


@pytest.mark.parametrize("name", QUICK)
def test_an_embedding_is_finite_oriented_and_documented(name, toy):
    made = embed(name, toy, n_latent=2)
    shape = (40, 2) if name in STILL else (N_SEEDS, 40, 2)
    assert (made.name, made.label, made.values.shape, made.values.dtype) == (name, name, shape, np.float64)
    assert made.units.tolist() == toy.units.tolist()
    assert made.options == {key: parameter.default for key, parameter in embedding_options(name).items()}
    assert len(made.seeds) == (0 if name in STILL else N_SEEDS)
    for values in made.values.reshape(-1, 40, 2):
        assert np.linalg.matrix_rank(values - values.mean(axis=0)) == (1 if name in CLUSTERS else 2)
        assert (values.max(axis=0) > -values.min(axis=0)).all(), "the largest entry of each column is positive"
    assert embed(name, toy, n_latent=1, label="other").label == "other"
    assert embed(name, toy, n_latent=1).values.shape[-1] == 1


@pytest.mark.parametrize("name", UNORDERED)
def test_embeddings_do_not_depend_on_the_order_of_units(name, toy):
    order = np.random.default_rng(3).permutation(40)
    there, back = embed(name, toy), embed(name, toy.subset(order)).reindexed(toy.units)
    assert np.allclose(there.values, back.values, atol=1e-6 * np.abs(there.values).max())


@pytest.mark.parametrize("name", STILL)
def test_embeddings_do_not_depend_on_the_origin(name):
    x = table()
    moved = embed(name, dataset(x + np.array([5.0, -3, 0, 20, 1, 0, 0, -7])))
    assert np.allclose(embed(name, dataset(x)).values, moved.values, atol=1e-6)


@pytest.mark.parametrize("name", STILL)
def test_only_factor_analysis_is_scale_invariant_and_not_rotation_invariant(name):
    rng = np.random.default_rng(4)
    x, turn = table(), np.linalg.qr(rng.standard_normal((8, 8)))[0]
    plain = embed(name, dataset(x)).values
    turned, scaled = embed(name, dataset(x @ turn)).values, embed(name, dataset(x * [1, 5, 0.1, 1, 2, 1, 1, 1])).values
    size = np.abs(plain).max()
    assert np.allclose(plain, turned, atol=1e-6 * size) == (name != "factor_analysis")
    assert np.allclose(plain, scaled, atol=1e-6 * size) == (name == "factor_analysis")


def test_the_sign_does_not_depend_on_rounding():
    x = np.array([[1.0, 0.5], [-1.0, -0.5], [0.2, -0.1], [-0.2, 0.1]])
    for wobble in (1e-15, -1e-15, 1e-13, -1e-13):
        y = embed("pca", dataset(x + wobble * np.array([[0, 0], [1, 0], [0, 0], [0, 0]])), n_latent=1).values[:, 0]
        assert y[0] > 0
    assert embed_module._oriented(np.array([[0.0, -3.0], [0.0, 2.0]])).tolist() == [[0, 3], [0, -2]]


# -- seeds


def test_the_seed_determines_the_embedding(toy):
    first = embed("tsne", toy, n_seeds=2, n_iter=50, seed=3)
    assert digest(first) == digest(embed("tsne", toy, n_seeds=2, n_iter=50, seed=3))
    other = embed("tsne", toy, n_seeds=2, n_iter=50, seed=4)
    runs = [*first.values, *other.values]
    assert len({values.tobytes() for values in runs}) == 4
    assert len({*first.seeds, *other.seeds}) == 4


def test_a_run_does_not_depend_on_the_number_of_runs(toy):
    few, many = (embed("tsne", toy, n_seeds=n, n_iter=20) for n in (1, 3))
    assert few.seeds == many.seeds[:1]
    assert few.values[0].tobytes() == many.values[0].tobytes()


def test_different_embeddings_use_different_seeds(toy):
    def noise(x: np.ndarray, n_latent: int, *, seed: int) -> np.ndarray:
        return np.random.default_rng(seed).standard_normal((len(x), n_latent))

    with EMBEDDINGS.added({"one": noise, "two": noise}):
        one, two = embed("one", toy), embed("two", toy)
    assert not {*one.seeds} & {*two.seeds}
    expected = np.random.default_rng(one.seeds[1]).standard_normal((40, 2))
    assert np.allclose(np.abs(one.values[1]), np.abs(expected), atol=0)


PROGRAM = """
import sys
sys.path.insert(0, {folder!r})
from test_embedding import QUICK, dataset, digest, table
from latentlab.embeddings.embed import embed
print(*(digest(embed(name, dataset(table()))) for name in QUICK))
"""


def test_embeddings_are_reproducible_in_another_process():
    program = PROGRAM.format(folder=str(Path(__file__).parent))
    environment = {**os.environ, "PYTHONHASHSEED": "77", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.split() == [digest(embed(name, dataset(table()))) for name in QUICK]
    assert not done.stderr


# -- nothing left behind


def state():
    import threadpoolctl

    numpy_state = np.random.get_state()
    return {
        "numpy": (numpy_state[0], numpy_state[1].tobytes(), *numpy_state[2:]),
        "python": random.getstate(),
        "torch": torch.get_rng_state().numpy().tobytes(),
        "filters": list(warnings.filters),
        "threads": sorted((pool["filepath"], pool["num_threads"]) for pool in threadpoolctl.threadpool_info()),
        "torch threads": torch.get_num_threads(),
        "numpy errors": np.geterr(),
        "environment": dict(os.environ),
        "folder": os.getcwd(),
    }


@pytest.mark.parametrize("name", QUICK)
def test_embed_changes_no_global_state_and_prints_nothing(name, toy, caplog, capfd):
    embed(name, toy)  # libraries are loaded
    before = state()
    with warnings.catch_warnings(record=True) as caught, caplog.at_level(logging.WARNING):
        warnings.simplefilter("always")
        inside = state()
        embed(name, toy)
        assert state() == inside
    assert state() == before
    assert not caught
    assert not caplog.records
    assert capfd.readouterr() == ("", "")


def test_convergence_warnings_of_libraries_become_notes(toy):
    def careless(x: np.ndarray, n_latent: int, *, seed: int) -> np.ndarray:
        np.random.seed(seed)
        warnings.simplefilter("ignore")
        warnings.warn("an argument will be renamed", FutureWarning, stacklevel=1)
        return x[:, :n_latent]

    def unfinished(x: np.ndarray, n_latent: int) -> np.ndarray:
        warnings.warn("did not converge\n after 3 steps", ConvergenceWarning, stacklevel=1)
        return x[:, :n_latent]

    before = state()
    with EMBEDDINGS.added({"careless": careless, "unfinished": unfinished}):
        assert embed("careless", toy).notes == ()
        assert embed("unfinished", toy).notes == ("did not converge after 3 steps",)
    assert state() == before


@pytest.mark.parametrize(
    ("raised", "expected", "message"),
    [
        (ValueError("singular\nmatrix"), InferenceError, "embedding 'broken' failed: singular matrix"),
        (np.linalg.LinAlgError("no convergence"), InferenceError, "failed: no convergence"),
        (RuntimeError(), InferenceError, "failed: RuntimeError"),
        (MemoryError(), DataError, "does not fit into memory"),
        (DataError("column 3"), DataError, "^column 3$"),
    ],
)
def test_a_failure_raises_one_line_and_restores_the_random_state(toy, raised, expected, message):
    def broken(x: np.ndarray, n_latent: int) -> np.ndarray:
        np.random.seed(0)
        raise raised

    before = state()
    with EMBEDDINGS.added({"broken": broken}), pytest.raises(expected, match=message) as caught:
        embed("broken", toy)
    assert "\n" not in str(caught.value)
    assert state() == before


# -- missing entries


def test_missing_entries_are_imputed_by_column_means_and_noted():
    x = table()
    x[3, 1] = x[4, 1] = x[7, 0] = np.nan
    filled = np.where(np.isnan(x), np.nanmean(x, axis=0), x)
    made = embed("pca", dataset(x))
    assert np.allclose(made.values, embed("pca", dataset(filled)).values, atol=1e-12)
    assert made.notes == ("3 missing entries (0.9%) were imputed by the column mean",)
    assert embed("pca", dataset(filled)).notes == ()


def test_missing_entries_can_be_refused():
    x = table()
    x[3, 1] = np.nan
    named = dataset(x, coords={"feature": list("abcdefgh")})
    with pytest.raises(DataError, match=r"1 entries are missing, in 'b'; set `impute: mean`"):
        embed("isomap", named, impute="error")
    assert embed("pca", dataset(table()), impute="error").values.shape == (40, 2)


def test_a_column_without_observations_is_refused_by_name():
    x = table()
    x[:, 2] = np.nan
    with pytest.raises(DataError, match="no entries of 'c' were observed; leave out"):
        embed("pca", dataset(x, coords={"feature": list("abcdefgh")}))


# -- what cannot be embedded


@pytest.mark.parametrize("name", QUICK)
def test_identical_units_are_refused(name):
    with pytest.raises(DataError, match="all 9 units of data are identical"):
        embed(name, dataset(np.full((9, 3), 0.1)))


def test_fewer_than_three_units_and_non_tables_are_refused():
    with pytest.raises(DataError, match="at least 3 units; data has 2"):
        embed("pca", dataset(np.eye(2)))
    series = Dataset({"x": np.zeros(9)}, dims={"x": ("unit",)}, name="series")
    with pytest.raises(DataError, match=r"a table \(unit, feature\); series has dims \(unit\)"):
        embed("pca", series)


@pytest.mark.parametrize("name", ["kernel_pca", "isomap", "lle", "mds", "agglomerative"])
def test_a_distance_matrix_too_large_for_memory_is_refused(name, toy, monkeypatch):
    monkeypatch.setattr(Budget, "of", classmethod(lambda cls, _: cls(8 * 5 * 40**2 - 1, set_by_user=False)))
    with pytest.raises(DataError, match=r"all pairs of 40 units, which needs about 64.0 kB of memory"):
        embed(name, toy)


TYPOS = [
    ("pcaa", {}, r"unknown embedding 'pcaa'; did you mean 'pca'\?"),
    ("isomap", {"n_neighbours": 3}, r"unknown option of the embedding 'isomap' 'n_neighbours'; did you mean 'n_neighbors'\?"),
    ("pca", {"n_laten": 3}, r"did you mean 'n_latent'\?"),
    ("file", {}, "embedding 'file' requires the option `path`"),
]
RANGES = [
    ("pca", {"n_latent": 0}, "`n_latent` must be a whole number of at least 1; got 0"),
    ("pca", {"n_latent": 8}, "`n_latent` must be at most 7 .*40 units of 8 features.*; got 8"),
    ("factor_analysis", {"n_latent": 8}, "`n_latent` must be at most 7 .*40 units of 8 features.*; got 8"),
    ("pca", {"n_latent": 2.0}, r"`n_latent` must be a whole number of at least 1; got 2\.0"),
    ("pca", {"n_latent": True}, "`n_latent` must be a whole number of at least 1; got True"),
    ("pca", {"whiten": 1}, "`whiten` must be true or false; got 1"),
    ("pca", {"label": 7}, "`label` must be text, or null; got 7"),
    ("pca", {"impute": "median"}, "`impute` must be one of mean, error; got 'median'"),
    ("pca", {"seed": -1}, r"`seed` must be a whole number .*; got -1"),
    ("pca", {"n_seeds": 2}, "'pca' has no random starts; leave out `n_seeds` = 2"),
    ("tsne", {"n_seeds": 0}, r"`n_seeds` must be a \w+ number of at least 1.*; got 0"),
    ("factor_analysis", {"rotation": "promax"}, "`rotation` must be one of varimax, quartimax, or null; got 'promax'"),
    ("kernel_pca", {"n_latent": 40}, "`n_latent` must be at most 39 .*40 units.*; got 40"),
    ("kernel_pca", {"gamma": 0.0}, r"`gamma` must be a \w+ number above 0.*; got 0\.0"),
    ("kernel_pca", {"gamma": float("nan")}, "`gamma` must be a finite number.*; got nan"),
    ("isomap", {"n_neighbors": 0}, r"`n_neighbors` must be a \w+ number of at least 1.*; got 0"),
    ("isomap", {"n_neighbors": 40}, "`n_neighbors` must be at most 39 .*40 units.*; got 40"),
    ("spectral", {"n_latent": 39}, "`n_latent` must be at most 38 .*40 units.*; got 39"),
    ("lle", {"n_latent": 4, "n_neighbors": 4}, "`n_latent` must be at most 3 .*4 neighbours.*; got 4"),
    ("mds", {"method": "metric"}, "`method` must be one of stress, classical; got 'metric'"),
    ("mds", {"max_iter": 0}, r"`max_iter` must be a \w+ number of at least 1.*; got 0"),
    ("tsne", {"perplexity": 20.0}, r"`perplexity` must be at most 13\.0 .*a third of the other 39 units.*; got 20\.0"),
    ("tsne", {"perplexity": 0.5}, r"`perplexity` must be a \w+ number of at least 1.*; got 0\.5"),
    ("tsne", {"n_latent": 3}, "`n_latent` must be at most 2 .*; got 3"),
    ("tsne", {"initialization": "spectral"}, "`initialization` must be one of pca, random; got 'spectral'"),
    ("umap", {"n_neighbors": 1}, r"`n_neighbors` must be a \w+ number of at least 2.*; got 1"),
    ("umap", {"min_dist": 1.5}, r"`min_dist` must be a \w+ number .*of at most 1.*; got 1\.5"),
    ("kmeans", {"n_latent": 41}, r"`n_latent` must be at most 40 \(40 of the 40 units are distinct\); got 41"),
    ("kmeans", {"output": "centres"}, "`output` must be one of labels, distances; got 'centres'"),
    ("kmeans", {"n_init": 0}, r"`n_init` must be a \w+ number of at least 1.*; got 0"),
    ("spectral_clustering", {"n_neighbors": 40}, "`n_neighbors` must be at most 39 .*40 units.*; got 40"),
    ("spectral_clustering", {"n_latent": 39}, "`n_latent` must be at most 38 .*40 units.*; got 39"),
    ("agglomerative", {"n_latent": 41}, r"`n_latent` must be at most 40 \(40 of the 40 units are distinct\); got 41"),
    ("agglomerative", {"linkage": "median"}, "`linkage` must be one of ward, average, complete, single; got 'median'"),
    ("agglomerative", {"n_seeds": 2}, "'agglomerative' has no random starts; leave out `n_seeds` = 2"),
    ("window_pca", {"window": 4}, "`window` must be odd, since it is centred on its step; got 4"),
    ("window_pca", {"window": 41}, r"`window` must be at most 40 \(the longest sequence has 40 steps\); got 41"),
    ("window_pca", {"window": 3, "n_latent": 24}, "`n_latent` must be at most 23 .*40 units and windows of 24 entries.*; got 24"),
    ("window_kmeans", {"n_latent": 41}, r"`n_latent` must be at most 40 \(40 of the 40 windows are distinct\); got 41"),
    ("window_kmeans", {"window": 0}, r"`window` must be a \w+ number of at least 1.*; got 0"),
    ("viterbi", {"n_latent": 41}, r"`n_latent` must be at most 40 \(there are 40 steps\); got 41"),
    ("viterbi", {"covariance": "round"}, "`covariance` must be one of diagonal, full, spherical, tied; got 'round'"),
    ("autoencoder", {"n_latent": 8}, "`n_latent` must be at most 7 .*40 units of 8 features.*; got 8"),
    ("autoencoder", {"hidden": (0,)}, r"`hidden` must be a list of whole numbers of at least 1.*; got \(0,\)"),
    ("autoencoder", {"hidden": 64}, "`hidden` must be a list.*; got 64"),
    ("autoencoder", {"learning_rate": 0.0}, r"`learning_rate` must be a \w+ number above 0.*; got 0\.0"),
    ("autoencoder", {"activation": "gelu"}, "`activation` must be one of relu, tanh, softplus, elu; got 'gelu'"),
    ("autoencoder", {"n_epochs": 2.5}, "`n_epochs` must be a whole number of at least 1; got 2.5"),
    ("file", {"path": 3}, "`path` must be text.*; got 3"),
    ("file", {"path": "x.csv", "columns": "a"}, "`columns` must be a list of text, or null; got 'a'"),
]


@pytest.mark.parametrize(("name", "options", "message"), [*TYPOS, *RANGES])
def test_invalid_options_of_an_embedding_are_refused_by_name(name, options, message, toy):
    with pytest.raises(ConfigError, match=message) as caught:
        embed(name, toy, **options)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("name", ["pca", "factor_analysis", "autoencoder"])
def test_embedding_a_single_column_is_refused(name):
    one = Dataset({"x": np.arange(9.0)[:, None]}, dims={"x": ("unit", "feature")}, name="one")
    with pytest.raises(ConfigError, match=f"embedding '{name}' needs at least 2 features; the data have 1") as caught:
        embed(name, one, n_latent=1)
    assert "\n" not in str(caught.value)


def test_user_vectors_keep_their_unit_names():
    frame = pd.DataFrame([[0.0, 1.0], [2.0, 3.0]], index=["b", "a"])
    mine = Embedding("mine", frame)
    assert mine.units.tolist() == ["b", "a"]
    assert mine.reindexed(["a", "b"]).values.tolist() == [[2.0, 3.0], [0.0, 1.0]]
    turned = frame.to_numpy().T
    array = xr.DataArray(turned, dims=("latent", "unit"), coords={"unit": ["b", "a"]})
    np.testing.assert_array_equal(Embedding("mine", array).reindexed(["b", "a"]).values, mine.values)
    assert Embedding("mine", frame.reset_index(drop=True)).units.tolist() == [0, 1]
    assert Embedding("mine", frame, ["b", "a"]).units.tolist() == ["b", "a"]
    with pytest.raises(DataError, match="`units` differs from the names of units in the values, or has another order; leave out"):
        Embedding("mine", frame, ["a", "b"])
    with pytest.raises(DataError, match="`units` is missing; pass the names of the units"):
        Embedding("mine", frame.to_numpy())


def test_an_embedding_without_columns_is_refused():
    one = Dataset({"x": np.arange(9.0)[:, None]}, dims={"x": ("unit", "feature")}, name="one")
    with pytest.raises(
        ConfigError, match=r"embedding 'window_pca' cannot have even one column for these data \(.*1 entries.*\)\. Leave it out"
    ):
        embed("window_pca", one, n_latent=1, window=1)


FEW = {"isomap": (10, "n_neighbors"), "lle": (10, "n_neighbors"), "spectral": (10, "n_neighbors")}
FEW |= {"spectral_clustering": (10, "n_neighbors"), "umap": (15, "n_neighbors"), "tsne": (30, "perplexity")}


@pytest.mark.parametrize("name", FEW)
def test_few_units_lower_defaults_and_refuse_given_options(name, rng, monkeypatch):
    class UMAP:  # its own is compiled for most of a minute
        def __init__(self, **settings):
            self.settings = settings

        def fit(self, x):
            self.embedding_ = np.full((len(x), 2), float(self.settings["n_neighbors"]))
            return self

    distances = types.SimpleNamespace(euclidean="euclidean")
    monkeypatch.setitem(sys.modules, "umap", types.SimpleNamespace(UMAP=UMAP, distances=distances, layouts=None, umap_=None))
    monkeypatch.setitem(sys.modules, "umap.distances", distances)
    usual, option = FEW[name]
    few = Dataset({"x": rng.standard_normal((7, 3))}, dims={"x": ("unit", "feature")}, name="few")
    most = 2 if name == "tsne" else 6
    once = {} if name in ("isomap", "lle", "spectral") else {"n_seeds": 1}
    made = embed(name, few, **once)
    assert any(note.startswith(f"{option} was lowered from {usual} to {most} (") for note in made.notes)
    asked = embed(name, few, **{option: most}, **once)
    assert not any("lowered" in note for note in asked.notes)
    np.testing.assert_array_equal(made.values, asked.values)
    with pytest.raises(ConfigError, match=rf"`{option}` must be at most {most}"):
        embed(name, few, **{option: most + 1}, **once)


@pytest.mark.parametrize("scale", [1e-200, 1e-310, 1e200, 1e308])
@pytest.mark.parametrize("name", ["tsne", "umap", "isomap", "mds", "kmeans", "kernel_pca"])
def test_a_spread_whose_square_overflows_is_refused(name, scale, toy):
    extreme = Dataset({"x": toy.x / np.abs(toy.x).max() * scale}, dims=toy.dims, name="toy")
    with pytest.raises(DataError, match=f"embedding '{name}': the largest range of a column of toy is .*standardise") as caught:
        embed(name, extreme)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("given", [np.eye(3), pd.DataFrame(np.eye(3)), None])
def test_an_argument_that_is_not_a_dataset_is_refused_in_one_line(given):
    with pytest.raises(DataError, match=rf"embedding 'pca': `dataset` must be a Dataset, .*; got {type(given).__name__}\.$"):
        embed("pca", given)


def test_the_largest_allowed_numbers_are_accepted(toy):
    assert embed("pca", toy, n_latent=7).values.shape == (40, 7)
    assert embed("kernel_pca", toy, n_latent=39).values.shape == (40, 39)
    assert embed("isomap", toy, n_neighbors=39, n_latent=38).values.shape == (40, 38)
    assert embed("spectral", toy, n_latent=38, n_neighbors=39).values.shape == (40, 38)
    assert embed("lle", toy, n_neighbors=4, n_latent=3).values.shape == (40, 3)
    assert embed("kmeans", toy, n_latent=40, n_seeds=1).values[0].sum(axis=0).tolist() == [1] * 40
    assert embed("spectral_clustering", toy, n_latent=38, n_neighbors=39, n_seeds=1).values.shape == (1, 40, 38)
    assert embed("agglomerative", toy, n_latent=40).values.sum(axis=0).tolist() == [1] * 40
    assert embed("window_pca", toy, n_latent=39, window=39).values.shape == (40, 39)
    assert embed("autoencoder", toy, n_latent=7, n_seeds=1, n_epochs=1, batch_size=1000).values.shape == (1, 40, 7)
    assert embed("tsne", toy, perplexity=13, n_seeds=1, n_iter=5).options["perplexity"] == 13


def test_numpy_numbers_are_accepted_as_options(toy):
    made = embed("isomap", toy, n_latent=np.int64(3), n_neighbors=np.int32(7), seed=np.int64(2))
    assert made.values.shape == (40, 3)
    assert type(made.options["n_neighbors"]) is int


def test_every_option_is_typed_and_has_a_default():
    empty = inspect.Parameter.empty
    for name in EMBEDDINGS:
        options = embedding_options(name)
        assert not {*options} & {*SUPPLIED}
        assert all(p.annotation not in (empty, object) and not isinstance(p.annotation, str) for p in options.values())
        assert [key for key, p in options.items() if p.default is empty] == (["path"] if name == "file" else [])
