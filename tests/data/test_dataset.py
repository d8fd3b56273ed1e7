"""Tests of datasets: checks, standardising, splits, matching by name, hashes and notes."""

import subprocess
import sys

import numpy as np
import pytest
import sklearn.datasets

from latentlab.data.dataset import Dataset
from latentlab.data.load import load_dataset
from latentlab.data.missing import hide
from latentlab.data.simulators import linear_gaussian
from latentlab.errors import ConfigError, DataError

TABLE = {"x": ("unit", "feature")}


def table(x, **options):
    return Dataset({"x": x}, dims=TABLE, **options)


@pytest.mark.parametrize(
    ("x", "options", "message"),
    [
        (np.zeros((0, 2)), {}, "has no units"),
        (np.ones(3), {}, r"expected shape \(n_units, n_features\); got 1-d shape \(3,\)"),
        (np.ones((3, 2, 2)), {}, "got 3-d shape"),
        ([[1, np.inf], [2, 3]], {}, "column 1 has infinite values"),
        (np.ones((3, 2)), {"labels": ["a", "b"]}, "2 labels for 3 units"),
        (np.ones((3, 2)), {"coords": {"unit": ["a", "a", "b"]}}, "unit 'a' occurs 2 times"),
        (np.ones((3, 2)), {"coords": {"feature": ["a"]}}, "1 values for 2 features"),
        (np.ones((3, 2)), {"coords": {"feature": ["a", "a"]}}, "column 'a' occurs 2 times.*; give each column a unique name"),
        (np.ones((3, 2)), {"coords": {"units": ["a", "b", "c"]}}, "'units': no array has this dim; did you mean 'unit'"),
        (np.ones((3, 2)), {"coords": {"Feature": ["a", "b", "c"]}}, "did you mean 'feature'"),
        (
            np.ones((3, 2)),
            {"labels": {"kind": ["a", "b", "c"]}},
            "`labels` must be a sequence of one label for each unit; got dict",
        ),
        (np.ones((3, 2), complex), {}, "complex128"),
        ([["a", "b"], ["c", "d"]], {}, "expected real numbers"),
        (np.ones((3, 2)), {"mask": np.ones((2, 2), bool)}, r"shape \(3, 2\); got \(2, 2\)"),
        ([[2**60 + 1, 1], [2, 3]], {}, "exceeds 2..53"),
        ([[1, 2], [3]], {}, "ragged"),
    ],
)
def test_invalid_arrays_and_options_are_refused(x, options, message):
    with pytest.raises(DataError, match=message):
        table(x, **options)


def test_arrays_are_copied_and_read_only():
    x = np.ones((3, 2))
    dataset = table(x)
    x[0, 0] = 7
    assert dataset.x[0, 0] == 1
    with pytest.raises(ValueError, match="read-only"):
        dataset.x[0, 0] = 2


@pytest.mark.parametrize("ddof", [0, 1])
def test_standardising_matches_numpy_with_the_given_ddof(rng, ddof):
    x = rng.standard_normal((20, 3)) * [1, 1e12, 1e-12] + [1e8, 0, 0]
    x[3, 1] = np.nan
    dataset = table(x).standardize(ddof=ddof)
    np.testing.assert_allclose(dataset.x, (x - np.nanmean(x, 0)) / np.nanstd(x, 0, ddof=ddof), rtol=1e-6)
    np.testing.assert_allclose(dataset.raw().x, x, rtol=1e-12)
    assert dataset.transform.ddof == ddof


def test_constant_and_empty_columns_are_reported_or_dropped():
    x = np.column_stack([np.arange(4.0), np.full(4, 5.0), np.arange(4.0) ** 2])
    dataset = table(x, coords={"feature": ["a", "b", "c"]})
    with pytest.raises(DataError, match=r"column 'b' is constant.*drop_constant"):
        dataset.standardize()
    kept = dataset.standardize(drop_constant=True)
    assert kept.features.tolist() == ["a", "c"]
    assert kept.dropped == ("b",)
    with pytest.raises(DataError, match="column 1 has no observed entries; leave it out"):
        table([[1, np.nan], [2, np.nan], [3, np.nan]]).standardize()
    with pytest.raises(DataError, match="at least 2 units; got 1"):
        table([[1.0, 2.0]]).standardize()


def test_shapes_of_the_bundled_tables():
    shapes = {"wine": (178, 13, 3), "iris": (150, 4, 3), "breast_cancer": (569, 30, 2), "digits": (1797, 61, 10)}
    for name, (n, d, k) in shapes.items():
        dataset = load_dataset(name, drop_constant=True)
        assert dataset.x.shape == (n, d), name
        assert len(np.unique(dataset.labels)) == k, name
        np.testing.assert_allclose(dataset.x.std(0), 1, rtol=1e-10)
    assert load_dataset("digits", drop_constant=True).dropped == ("pixel_0_0", "pixel_4_0", "pixel_4_7")
    with pytest.raises(DataError, match="'pixel_0_0' is constant"):
        load_dataset("digits")


@pytest.mark.parametrize("name", ["wine", "iris", "breast_cancer", "digits"])
def test_the_bundled_tables_equal_those_of_scikit_learn(name):
    loaded = getattr(sklearn.datasets, f"load_{name}")()
    dataset = load_dataset(name, standardize=False)
    np.testing.assert_array_equal(dataset.x, loaded.data)
    assert dataset.features.tolist() == list(loaded.feature_names)
    np.testing.assert_array_equal(dataset.labels, np.asarray(loaded.target_names)[loaded.target])


def test_unknown_names_are_refused_with_a_suggestion():
    with pytest.raises(ConfigError, match="did you mean 'wine'"):
        load_dataset("wines")
    with pytest.raises(ConfigError, match="did you mean 'columns'"):
        load_dataset("wine", column=["alcohol"])
    with pytest.raises(DataError, match="did you mean 'alcohol'"):
        load_dataset("wine", columns=["alcohl"])


def test_columns_are_matched_by_name_not_by_position():
    wine = load_dataset("wine", standardize=False)
    order = np.random.default_rng(0).permutation(13)
    turned = table(wine.x[:5][:, order], coords={"feature": wine.features[order]})
    np.testing.assert_array_equal(wine.align_features(turned).x, wine.x[:5])
    other = table(np.ones((3, 13)), coords={"feature": [*wine.features[:12], "zz"]})
    with pytest.raises(DataError, match="missing 'proline'; unexpected 'zz'"):
        wine.align_features(other)


def test_a_split_fits_the_transform_on_training_units_only():
    wine = load_dataset("wine")
    training, held_out = wine.split(0.25, np.random.default_rng(0))
    assert training.n_units + held_out.n_units == 178
    assert not set(training.units.tolist()) & set(held_out.units.tolist())
    np.testing.assert_allclose(training.x.mean(0), 0, atol=1e-12)
    assert np.abs(held_out.x.mean(0)).max() > 0.01
    np.testing.assert_allclose(held_out.transform.loc, training.raw().x.mean(0))
    for fraction in (0.0, 1.0, 1e-9):
        with pytest.raises(DataError, match="leaves one part empty"):
            wine.split(fraction, np.random.default_rng(0))


def test_hidden_entries_are_kept_as_true_values(rng):
    wine = load_dataset("wine", standardize=False)
    hidden = hide(wine, 0.2, rng)
    assert np.isnan(hidden.x).sum() == round(0.2 * wine.x.size)
    np.testing.assert_array_equal(hidden.truth["x"], wine.x)
    np.testing.assert_array_equal(hidden.x[hidden.mask], wine.x[hidden.mask])
    for fraction in (1.0, -0.1, True):
        with pytest.raises(DataError, match=r"share of entries to hide .* must be at least 0 and below 1; got"):
            hide(wine, fraction, rng)


def test_the_digest_is_reproducible_and_covers_every_part():
    code = "from latentlab.data.load import load_dataset; print(load_dataset('iris').digest())"
    own = load_dataset("iris").digest()
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == own
    base = {"coords": {"feature": ["a", "b"]}, "labels": ["u", "v"]}
    x = np.array([[1.0, 2.0], [3.0, 5.0]])
    others = [
        table(x, **base),
        table(np.nextafter(x, 9.0), **base),
        table(x, **{**base, "coords": {"feature": ["a", "c"]}}),
        table(x, **{**base, "labels": ["u", "w"]}),
        table(x, **base, truth={"sigma": np.array(1.0)}, truth_dims={"sigma": ()}),
        table(x, **base).standardize(),
    ]
    assert len({dataset.digest() for dataset in others}) == len(others)
    assert table(x, **base, name="other").digest() == others[0].digest()


def test_unusual_data_are_noted():
    x = np.array([[1.0, 2, 1], [3, 2, 3], [1, 2, 1]])
    notes = table(x, coords={"feature": ["a", "b", "c"]}, labels=["k", "k", "k"]).notes()
    assert "Column 'b' is constant." in notes
    assert "Columns 'a' and 'c' are identical." in notes
    assert any("have identical rows" in note for note in notes)
    assert any("so there is only one class" in note for note in notes)


def test_the_simulator_returns_its_true_parameters():
    dataset = linear_gaussian(n_units=4000, n_features=5, n_latent=2, noise=0.5, seed=3)
    rest = dataset.x - dataset.truth["z"] @ dataset.truth["W"].T - dataset.truth["mu"]
    assert rest.std() == pytest.approx(0.5, rel=0.03)  # 20 000 entries: 6 standard errors
    assert np.abs(rest.mean(0)).max() < 5 * 0.5 / np.sqrt(4000)
    assert linear_gaussian(seed=3).digest() == linear_gaussian(seed=3).digest() != linear_gaussian(seed=4).digest()
    with pytest.raises(DataError, match="`noise` must be"):
        linear_gaussian(noise=-1)


def test_units_are_selected_by_index_or_boolean_mask():
    iris = load_dataset("iris")
    np.testing.assert_array_equal(iris.subset([5, 2]).x, iris.x[[5, 2]])
    assert iris.subset([5, 2]).units.tolist() == [5, 2]
    assert iris.subset(iris.labels == "setosa").n_units == 50
    with pytest.raises(DataError, match="numbered 0 to 149"):
        iris.subset([150])


def test_columns_that_vary_by_rounding_are_reported_as_constant():
    x = np.array([[1.0, 1e9], [2.0, 1e9 + 2e-7], [4.0, 1e9]])
    with pytest.raises(DataError, match="column 1 is constant over the observed units up to rounding, so it cannot"):
        table(x).standardize()
    with pytest.raises(DataError, match="column 1 is constant over the observed units, so it cannot"):
        table(np.round(x)).standardize()
