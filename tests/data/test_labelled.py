"""Tests of labelled arrays: names are kept and matched, and numeric columns of every type are accepted."""

import datetime
import decimal
import warnings

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import scipy.sparse
import xarray as xr

from latentlab.data.dataset import Dataset
from latentlab.data.load import load_dataset
from latentlab.data.memory import Budget
from latentlab.errors import ConfigError, DataError
from latentlab.results.netcdf import load, save
from latentlab.results.tree import build

TABLE = {"x": ("unit", "feature")}
BIG = 2**53 + 1


def table(x, **options):
    return Dataset({"x": x}, dims=TABLE, **options)


def frame():
    return pd.DataFrame({"a": [1.0, 2.0, 4.0], "b": [5, 6, 9]}, index=["u", "v", "w"])


# -- names


def test_names_of_a_data_frame_are_used():
    dataset = table(frame())
    assert (dataset.units.tolist(), dataset.features.tolist()) == (["u", "v", "w"], ["a", "b"])
    assert dataset.x.tolist() == [[1, 5], [2, 6], [4, 9]]
    numbered = table(frame().reset_index(drop=True))
    assert "unit" not in numbered.coords
    assert numbered.units.tolist() == [0, 1, 2]
    assert table(frame().loc[["w", "u"]].reset_index(drop=True).set_axis([7, 5])).units.tolist() == [7, 5]


def test_a_transposed_array_is_ordered_by_its_dims():
    x = frame().to_numpy()
    array = xr.DataArray(
        x.T,
        dims=("feature", "unit"),
        coords={"feature": ["a", "b"], "unit": ["u", "v", "w"], "time": ("unit", [3, 4, 5]), "scale": ("feature", [1, 2])},
    )
    dataset = table(array)
    assert dataset.x.tolist() == x.tolist()
    assert (dataset.units.tolist(), dataset.features.tolist()) == (["u", "v", "w"], ["a", "b"])
    assert dataset.coords["time"].tolist() == [3, 4, 5]
    assert set(dataset.coords) == {"unit", "feature", "time"}
    assert table(xr.DataArray(x)).x.tolist() == x.tolist()
    turned = frame().T.rename_axis(index="feature", columns="unit")
    assert table(turned).x.tolist() == x.tolist()
    with pytest.raises(
        DataError, match=r"has dims \(row, column\); expected \(unit, feature\), in any order; rename them by `.rename`"
    ):
        table(xr.DataArray(x, dims=("row", "column")))
    with pytest.raises(DataError, match=r"must be a DataArray; got an xarray Dataset. Select one of its arrays"):
        table(xr.Dataset({"x": array}))


def test_an_index_read_as_a_data_column_is_refused(tmp_path):
    frame().reset_index(drop=True).to_csv(tmp_path / "mine.csv")
    read = pd.read_csv(tmp_path / "mine.csv")
    with pytest.raises(DataError, match=r"column 'Unnamed: 0' has the row numbers.*Leave the column out.*index_col=0"):
        table(read)
    assert table(pd.read_csv(tmp_path / "mine.csv", index_col=0)).features.tolist() == ["a", "b"]
    assert table(read.assign(**{"Unnamed: 0": [4, 1, 1]})).features.tolist() == ["Unnamed: 0", "a", "b"]


def test_dims_of_a_data_array_are_used():
    dataset = Dataset({"x": frame(), "weight": xr.DataArray([1.0, 2, 3], dims="unit")}, name="toy")
    assert dict(dataset.dims) == {"x": ("unit", "feature"), "weight": ("unit",)}
    by_day = xr.DataArray(np.arange(6.0).reshape(2, 3), dims=("day", "unit"), coords={"day": ["a", "b"]})
    assert (Dataset({"x": by_day}).dims["x"], Dataset({"x": by_day}).features.tolist()) == (("day", "unit"), ["a", "b"])
    assert table(by_day.rename(day="feature")).x.shape == (3, 2)
    with pytest.raises(DataError, match="`dims` must list the dims of each array"):
        Dataset({"x": np.eye(2)})


def test_index_levels_define_sequence_and_time():
    index = pd.MultiIndex.from_tuples([("p", 1), ("p", 2), ("q", 1)], names=["sequence", "time"])
    for given in (frame().set_axis(index), xr.DataArray(frame().set_axis(index), dims=("unit", "feature"))):
        dataset = table(given)
        assert dataset.units.tolist() == ["p:1", "p:2", "q:1"]
        assert dataset.coords["sequence"].tolist() == ["p", "p", "q"]
        assert dataset.coords["time"].tolist() == [1, 2, 1]


def test_further_arrays_are_reordered_to_the_first():
    weight = pd.Series([30.0, 10.0, 20.0], index=["w", "u", "v"])
    labels = pd.Series(["z", "x", "y"], index=["w", "u", "v"], dtype="category")
    mask = pd.DataFrame({"b": [True, False, True], "a": [True, True, True]}, index=["w", "v", "u"])
    dataset = Dataset(
        {"x": frame(), "weight": weight}, dims={**TABLE, "weight": ("unit",)}, labels=labels, mask=mask.convert_dtypes()
    )
    assert dataset.arrays["weight"].tolist() == [10, 20, 30]
    assert dataset.labels.tolist() == ["x", "y", "z"]
    np.testing.assert_array_equal(dataset.x, [[1, 5], [2, np.nan], [4, 9]])
    by_number = Dataset({"x": frame().to_numpy()}, dims=TABLE, labels=pd.Series(["z", "x", "y"], index=[2, 0, 1]))
    assert by_number.labels.tolist() == ["x", "y", "z"]
    assert table(frame(), labels=pd.Series(["x", "y", "z"])).labels.tolist() == ["x", "y", "z"]  # no names of its own
    with pytest.raises(DataError, match=r"`labels`: its units \('w', 'u', 'k'\) differ from those of the arrays before it"):
        table(frame(), labels=labels.set_axis(["w", "u", "k"]))


def test_contradictory_names_are_refused():
    assert table(frame(), coords={"feature": ["a", "b"]}).features.tolist() == ["a", "b"]
    with pytest.raises(DataError, match=r"features \('a', 'b'\) differ from those in `coords` \('b', 'a'\); leave 'feature' out"):
        table(frame(), coords={"feature": ["b", "a"]})
    with pytest.raises(DataError, match=r"units \(.*\) differ from those in `coords`"):
        table(frame(), coords={"unit": [1, 2, 3]})
    array = xr.DataArray(np.eye(2), dims=("unit", "feature"), coords={"time": ("unit", [1, 2])})
    with pytest.raises(DataError, match="its coordinate 'time' differs from the one in `coords`"):
        table(array, coords={"time": [2, 1]})
    with pytest.raises(DataError, match=r"unit 0 occurs 2 times.*reset_index"):
        table(frame().set_axis([0, 0, 1]))


def test_columns_of_new_data_are_matched_by_name():
    training = table(frame()).standardize()
    turned = frame()[["b", "a"]]
    np.testing.assert_array_equal(training.conform(turned).x, training.x)
    assert training.conform(turned).units.tolist() == ["u", "v", "w"]
    np.testing.assert_array_equal(
        training.conform(turned.to_xarray().to_dataarray("feature", "x").rename(index="unit")).x, training.x
    )
    np.testing.assert_array_equal(training.conform(frame().to_numpy()).x, training.x)
    np.testing.assert_array_equal(training.conform(frame().to_numpy().tolist()).x, training.x)
    np.testing.assert_array_equal(training.conform(scipy.sparse.csr_array(frame().to_numpy())).x, training.x)
    one = training.conform(turned.loc["v"])
    assert (one.x.tolist(), one.units.tolist()) == ([training.x[1].tolist()], ["v"])
    with pytest.raises(DataError, match="unexpected 'c'"):
        training.conform(frame().assign(c=1))
    # names that are numbers, where the training columns only are numbered
    numbered = table(frame().to_numpy()).standardize()
    np.testing.assert_array_equal(numbered.conform(frame().set_axis([0, 1], axis=1)[[1, 0]]).x, numbered.x)


@pytest.mark.parametrize("given", ["x.csv", None, 3, {"x": [[1.0, 2.0]]}, {1, 2}, object()])
def test_invalid_new_data_are_refused_in_one_line(given):
    with pytest.raises(
        DataError, match=rf"new data must be .*\(n_units, n_features\).*; got {type(given).__name__}\.$"
    ) as caught:
        table(frame()).conform(given)
    assert "\n" not in str(caught.value)


def test_data_frames_given_as_names_are_refused_in_one_line():
    for given in (frame(), frame().to_numpy(), None):
        with pytest.raises(ConfigError, match=f"a dataset's name; got {type(given).__name__}.*Dataset.*standardize"):
            load_dataset(given)
        with pytest.raises(DataError, match=f"`path` must be the path of a file; got {type(given).__name__}"):
            load_dataset("file", path=given)


# -- types of columns


NAN = np.nan


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (pd.array([1, None, 3], dtype="Int64"), [1, NAN, 3]),
        (pd.array([1, None, 3], dtype="UInt8"), [1, NAN, 3]),
        (pd.array([1.5, None, NAN], dtype="Float64"), [1.5, NAN, NAN]),
        (pd.array([True, None, False], dtype="boolean"), [1, NAN, 0]),
        (np.array([True, False, True]), [1, 0, 1]),
        (pd.array([1, None, 3], dtype="int64[pyarrow]"), [1, NAN, 3]),
        (pd.array([1.5, None, 3], dtype="float[pyarrow]"), [1.5, NAN, 3]),
        (pd.array([True, None, False], dtype="bool[pyarrow]"), [1, NAN, 0]),
        (pd.array([decimal.Decimal("1.5"), None, 2], dtype=pd.ArrowDtype(pa.decimal128(10, 2))), [1.5, NAN, 2]),
        (pd.Categorical([3, 1, None], categories=[1, 2, 3]), [3, 1, NAN]),
        (pd.arrays.SparseArray([0.0, 1.0, NAN]), [0, 1, NAN]),
        (np.array([1, None, pd.NA], dtype=object), [1, NAN, NAN]),
        (np.array([True, 2.5, decimal.Decimal("0.5")], dtype=object), [1, 2.5, 0.5]),
        (np.array([2**53, pd.NaT, 0], dtype=object), [2**53, NAN, 0]),
    ],
)
def test_numeric_columns_are_accepted(column, expected):
    given = pd.DataFrame({"k": [1, 2, 3], "c": column})
    np.testing.assert_array_equal(table(given).x[:, 1], expected)
    np.testing.assert_array_equal(Dataset({"y": given["c"]}, dims={"y": ("unit",)}).x, expected)


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (["1", "2"], "dtype .*; expected numbers. .*to_numeric"),
        (pd.array(["1", "2"], dtype="string"), "dtype string; expected numbers. .*to_numeric"),
        (
            pd.Categorical(["m", "f"]),
            "column 'c' .its categories. has dtype .*; expected numbers. .*one 0/1 column for each category",
        ),
        (pd.to_datetime(["2020-01-01", "2020-01-02"]), r"dtype datetime64.*; expected numbers"),
        (pd.array([datetime.date(2020, 1, 1), None], dtype="date32[pyarrow]"), "dtype date32.*; expected numbers"),
        (np.array([1j, 2]), "dtype complex128; expected numbers"),
        (np.array([1, "x"], dtype=object), "'x' is of type str; expected a number. .*labels"),
        (np.array([1, [2]], dtype=object), r"'\[2\]' is of type list; expected a number"),
        ([BIG, 1], rf"whole number {BIG}, whose magnitude exceeds 2\*\*53"),
        (pd.array([BIG, None], dtype="Int64"), f"whole number {BIG}"),
        (pd.array([-BIG, None], dtype="int64[pyarrow]"), f"whole number -{BIG}"),
        (pd.array([2**64 - 1, 1], dtype="UInt64"), f"whole number {2**64 - 1}"),
        (np.array([BIG, 0.5], dtype=object), f"whole number {BIG}"),
        (np.array([10**400, 0.5], dtype=object), "whole number of 401 digits"),
        (np.array([decimal.Decimal(BIG), None], dtype=object), f"whole number {BIG}"),
        (pd.Categorical([BIG, 1]), f"whole number {BIG}"),
    ],
)
def test_non_numeric_columns_are_refused_by_name_and_type(column, message):
    with pytest.raises(DataError, match=message) as caught:
        table(pd.DataFrame({"k": [0.5, 2], "c": column}))
    assert "column 'c'" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_integers_in_mixed_columns_keep_their_digits_or_are_refused():
    for given in ([[BIG, 0.5]], np.ma.masked_equal([[BIG, 3]], 3), pa.table({"a": [BIG], "b": [0.5]})):
        with pytest.raises(DataError, match=f"column .* has the whole number {BIG}"):
            table(given)
    np.testing.assert_array_equal(table([[2**53, 0.5], [None, 1e300]]).x, [[2**53, 0.5], [NAN, 1e300]])
    np.testing.assert_array_equal(table(np.ma.masked_equal([[2**53, 3]], 3)).x, [[2**53, NAN]])


def test_a_frame_without_columns_is_refused():
    with pytest.raises(DataError, match="has no features"):
        table(pd.DataFrame(index=["u", "v"]))


def test_sparse_arrays_are_accepted_if_their_dense_form_fits_memory(monkeypatch):
    x = np.array([[0.0, 2.0], [3.0, 0.0]])
    for given in (scipy.sparse.csr_matrix(x), scipy.sparse.coo_array(x)):
        assert table(given).x.tolist() == x.tolist()
    monkeypatch.setattr(Budget, "of", classmethod(lambda cls, _: cls(10**9, set_by_user=False)))
    with pytest.raises(
        DataError, match=r"is a sparse array of shape \(100000, 100000\). As a dense array it needs about 240.0 GB.*TruncatedSVD"
    ):
        table(scipy.sparse.coo_array(([1.0], ([0], [0])), shape=(100_000, 100_000)))


# -- names of every kind, up to the file


DAYS = ["2020-03-28", "2020-03-29", "2020-03-30"]


NAMES = [
    (np.array(DAYS, "M8[D]"), DAYS),
    (np.array(DAYS, "M8[ns]"), DAYS),
    (pd.DatetimeIndex(DAYS), DAYS),
    ([datetime.date(2020, 3, 28), datetime.date(2020, 3, 29), datetime.date(2020, 3, 30)], DAYS),
    (pd.DatetimeIndex(DAYS).tz_localize("Europe/Berlin"), DAYS),  # midnight there, across a change of its clocks
    (
        pd.DatetimeIndex(["2020-03-28 12:00", "2020-03-29 12:00", "2020-03-30 12:00:01"]).tz_localize("Europe/Berlin"),
        ["2020-03-28T11:00:00Z", "2020-03-29T10:00:00Z", "2020-03-30T10:00:01Z"],
    ),
    (pd.DatetimeIndex(DAYS) + pd.Timedelta("90min"), [f"{day}T01:30:00" for day in DAYS]),
    (np.array(["1500", "1501", "1502"], "M8[Y]"), ["1500", "1501", "1502"]),
    (pd.period_range("2020Q1", periods=3, freq="Q"), ["2020Q1", "2020Q2", "2020Q3"]),
    (pd.CategoricalIndex(["b", "a", "é"]), ["b", "a", "é"]),
    (pd.Categorical([3, 1, 2]), [3, 1, 2]),
    (pd.interval_range(0, 3), ["(0, 1]", "(1, 2]", "(2, 3]"]),
    (pd.array([3, 1, 2], dtype="Int64"), [3, 1, 2]),
    (pd.array(["u", "v", "w"], dtype="string[pyarrow]"), ["u", "v", "w"]),
    (np.array([0.5, 1.5, 2.5], np.float16), [0.5, 1.5, 2.5]),
]


def test_names_of_every_type_are_restored_from_the_file(tmp_path):
    coords = {f"c{i}": given for i, (given, _) in enumerate(NAMES)}
    dataset = table(np.eye(3), coords={**coords, "unit": NAMES[4][0], "feature": NAMES[2][0]}, labels=NAMES[0][0])
    dims = {"z": ("unit", "latent"), "W": ("feature", "latent")}
    draws = {"z": np.zeros((1, 2, 3, 1)), "W": np.zeros((1, 2, 3, 1))}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save(build({"posterior": draws}, dims=dims, coords=dataset.coords), tmp_path / "posterior.nc")
        back = load(tmp_path / "posterior.nc")["posterior"]
    for i, (_, expected) in enumerate(NAMES):
        assert dataset.coords[f"c{i}"].tolist() == expected
        assert back[f"c{i}"].values.tolist() == expected
    assert back["unit"].values.tolist() == back["feature"].values.tolist() == dataset.labels.tolist() == DAYS


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (pd.to_timedelta([1, 2, 3], unit="s"), "got dtype timedelta64.*; convert it to a number of seconds or days"),
        (np.array([b"a", b"b", b"c"]), "must be text, numbers or dates; got dtype |S1"),
        ([("a", 1), ("b", 2), ("c", 3)], "must be one-dimensional|must be text"),
        (np.array([frozenset(), frozenset({1}), None], dtype=object), "1 missing or infinite values; the first is at position 2"),
        (np.array([object(), object(), object()]), "must be text, numbers or dates; got object"),
        (["a", None, "b"], "1 missing or infinite values; the first is at position 1"),
        (pd.DatetimeIndex(["2020", None, "2021"]), "1 missing"),
        (["a", 1, "b"], r"values of several types \(number, text\)"),
        (np.array([True, 1, 0], dtype=object), r"values of several types \(boolean, number\)"),
        (["a", "\ud800", "b"], "not valid Unicode"),
        ([1j, 2, 3], "got dtype complex128"),
    ],
)
def test_names_that_cannot_be_stored_are_refused(given, message):
    with pytest.raises(DataError, match=message) as caught:
        table(np.eye(3), coords={"unit": given})
    assert "coordinate 'unit'" in str(caught.value)


@pytest.mark.parametrize("name", ["a/b", "a\0b", ".", "..", " a", "-a", ""])
def test_invalid_names_of_arrays_and_dims_are_refused(tmp_path, name):
    with pytest.raises(DataError):
        Dataset({name: np.eye(2)}, dims={name: ("unit", "feature")})
    with pytest.raises(DataError):
        Dataset({"x": np.eye(2)}, dims={"x": ("unit", name)})
    with pytest.raises(DataError, match=r"its name must begin with a letter.*; got"):
        Dataset({"x": np.eye(2)}, dims=TABLE, coords={name: [1, 2]})


def test_a_missing_column_name_is_reported():
    with pytest.raises(DataError, match="array 'x': the row of column names has 1 missing"):
        Dataset({"x": pd.DataFrame(np.eye(2), columns=["a", None])})
