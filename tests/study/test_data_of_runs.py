"""Tests that data.nc restores the fitted data set with its labels, truth and transform."""

import numpy as np
import pytest

from latentlab.data.dataset import Dataset
from latentlab.data.load import load_dataset
from latentlab.data.missing import hide
from latentlab.results.netcdf import load, save
from latentlab.store.data import data_tree, dataset_of

pytestmark = pytest.mark.fixed


def columns_first():
    """Returns a data set with features before units, boolean labels, times, and a dropped column."""
    x = np.random.default_rng(0).normal(size=(3, 8))
    x[1] = 2.0
    dataset = Dataset(
        {"x": x, "group": np.arange(8)},
        dims={"x": ("feature", "unit"), "group": ("unit",)},
        coords={"feature": ["a", "b", "c"], "time": np.arange("2020-01-01", "2020-01-09", dtype="M8[D]"), "sequence": [0] * 8},
        labels=np.arange(8) % 2 == 0,
        truth={"z": np.ones((8, 2)), "sigma": np.asarray(0.5), "W": np.zeros((3, 2))},
        name="turned",
        preparation=("sorted by time.",),
    )
    return dataset.standardize(ddof=1, drop_constant=True)


@pytest.mark.parametrize(
    "make",
    [
        lambda: load_dataset("wine"),
        lambda: hide(load_dataset("iris", standardize=False), 0.2, np.random.default_rng(0)).standardize(),
        lambda: load_dataset("hidden_markov"),
        lambda: load_dataset("nile", standardize=False),
        lambda: load_dataset("grunfeld"),
        lambda: load_dataset("karate", standardize=False),
        columns_first,
    ],
)
def test_fitted_data_are_restored_from_a_run(make, tmp_path):
    dataset = make()
    save(data_tree(dataset), tmp_path / "data.nc")
    found = dataset_of(load(tmp_path / "data.nc", groups=()))
    assert found.digest() == dataset.digest()
    for name in ("name", "dims", "truth_dims", "dropped", "preparation", "absent", "directed", "points", "observed"):
        assert getattr(found, name) == getattr(dataset, name), name
    np.testing.assert_array_equal(found.raw().x, dataset.raw().x)
    assert (found.transform is None) == (dataset.transform is None)
    assert found.transform is None or found.transform.ddof == dataset.transform.ddof
    for kind in dataset.kinds:
        np.testing.assert_array_equal(found.labels_of(kind), dataset.labels_of(kind))
        np.testing.assert_array_equal(found.kinds[kind], dataset.kinds[kind])
    for name, values in dataset.truth.items():
        np.testing.assert_array_equal(found.truth[name], values)


def test_true_values_with_repeated_or_unusual_dims_are_stored():
    """Transitions are `(state, state)`; warnings are errors here."""
    truth = {"A": np.eye(2), "B": np.ones(4), "C": np.ones(3)}
    dims = {"A": ("state", "state"), "B": ("C_axis_0",)}
    dataset = Dataset({"x": np.ones((3, 2)) * [1, 2]}, dims={"x": ("unit", "feature")}, truth=truth, truth_dims=dims)
    again = dataset_of(data_tree(dataset))
    assert again.digest() == dataset.digest()
    assert again.truth_dims["A"] == ("state", "state")
