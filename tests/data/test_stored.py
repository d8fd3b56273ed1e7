"""Tests that tables on disk equal tables in memory, including their errors."""

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from helpers import memory_and_disk

from latentlab.data import memory, rows, stored
from latentlab.data.load import load_dataset
from latentlab.data.rows import npy_rows
from latentlab.data.stored import StoredDataset
from latentlab.errors import DataError


def table(n_units=60, *, missing=0.0, seed=0):
    rng = np.random.default_rng(seed)
    x = (rng.standard_normal((n_units, 5)) * [1, 10, 0.1, 3, 2] + [0, 5, 1e3, -7, 2]).astype(np.float32)
    x[rng.random(x.shape) < missing] = np.nan
    return x


@pytest.fixture
def saved(tmp_path):
    """Saves a matrix and returns the path."""

    def save(x, name="mine.npy"):
        np.save(tmp_path / name, x)
        return str(tmp_path / name)

    return save


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(memory, "BLOCK", 5 * 7)
    monkeypatch.setattr(rows, "SPAN", 5 * 4 * 3)


# -- what is read


@pytest.mark.parametrize("missing", [0.0, 0.3])
@pytest.mark.parametrize("standardize", [True, False])
def test_a_table_on_disk_equals_the_table_in_memory(saved, missing, standardize):
    path = saved(table(missing=missing))
    whole, lazy = memory_and_disk(path, standardize=standardize)
    assert lazy.digest() == whole.digest()
    assert lazy.sizes == whole.sizes
    np.testing.assert_array_equal(lazy.features, whole.features)
    assert lazy.sample.digest() == whole.digest()
    index = np.array([59, 3, 3, 17])
    np.testing.assert_array_equal(lazy.subset(index[[0, 1, 3]]).x, whole.subset(index[[0, 1, 3]]).x)
    np.testing.assert_array_equal(lazy.values(lazy.read(index)), whole.x[index])
    assert lazy.n_missing == np.isnan(whole.x).sum()


@pytest.mark.parametrize(
    "kind",
    ["<f4", ">f8", "<f2", ">i4", "<i8", "u1", "?"],
    ids=["float32", "big endian", "float16", "int", "int64", "uint8", "bool"],
)
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.usefixtures("small_blocks")
def test_every_numeric_type_and_memory_order_is_read(saved, kind, order):
    x = np.random.default_rng(1).integers(0, 2 if kind == "?" else 100, (60, 5)).astype(kind)
    path = saved(np.asarray(x, order=order))
    whole, lazy = memory_and_disk(path, standardize=False)
    assert lazy.rows.fortran == (order == "F")
    assert lazy.digest() == whole.digest()
    index = np.random.default_rng(0).permutation(60)
    np.testing.assert_array_equal(lazy.values(lazy.read(index)), whole.x[index])


@pytest.mark.parametrize("missing", [0.0, 0.4])
@pytest.mark.usefixtures("small_blocks")
def test_blockwise_moments_equal_those_of_the_whole_table(saved, missing):
    x = table(missing=missing)
    x[:14, 2] = np.nan  # two blocks without any
    whole, lazy = memory_and_disk(saved(x))
    np.testing.assert_allclose(lazy.transform.loc, whole.transform.loc, rtol=1e-14)
    np.testing.assert_allclose(lazy.transform.scale, whole.transform.scale, rtol=1e-13)
    found = lazy.columns
    np.testing.assert_array_equal(found.n_seen, (~np.isnan(x)).sum(0))
    np.testing.assert_array_equal(found.low, np.nanmin(x, 0))
    np.testing.assert_array_equal(found.high, np.nanmax(x, 0))


@pytest.mark.parametrize("size", [1e300, 1e-300])
@pytest.mark.usefixtures("small_blocks")
def test_moments_of_extreme_values_do_not_overflow(saved, size):
    # a column whose mean is 10 000 sds loses 4 digits
    whole, lazy = memory_and_disk(saved(table().astype(np.float64) * size))
    np.testing.assert_allclose(lazy.transform.scale, whole.transform.scale, rtol=1e-12)


def test_ddof_is_applied_as_for_a_table_in_memory(saved):
    whole, lazy = memory_and_disk(saved(table()), standardize=False)
    np.testing.assert_allclose(lazy.standardize(ddof=1).transform.scale, whole.standardize(ddof=1).transform.scale, rtol=1e-15)


def test_columns_on_disk_are_selected_by_name_in_order(saved):
    path = saved(table())
    whole, lazy = memory_and_disk(path, columns=["3", "0"])
    assert lazy.features.tolist() == ["3", "0"]
    assert lazy.digest() == whole.digest()
    np.testing.assert_array_equal(lazy.subset([5, 2]).x, whole.subset([5, 2]).x)


def test_constant_columns_on_disk_are_reported_or_dropped(saved):
    x = table()
    x[:, 1] = 4.0
    path = saved(x)
    with pytest.raises(DataError, match=r"column '1' is constant .*drop_constant"):
        load_dataset("file", path=path, in_memory=False)
    for columns in (None, ["3", "1", "0"]):
        whole, lazy = memory_and_disk(path, drop_constant=True, columns=columns)
        assert lazy.dropped == whole.dropped == ("1",)
        assert lazy.digest() == whole.digest()


# -- the sample and the extremes


def test_the_sample_is_a_sorted_subset_of_units(saved, monkeypatch):
    monkeypatch.setattr(stored, "N_SAMPLE", 20)
    whole, lazy = memory_and_disk(saved(table()))
    assert lazy.sample.n_units == 20
    assert (np.diff(lazy.sample.units) > 0).all()
    np.testing.assert_array_equal(lazy.sample.x, whole.subset(lazy.sample.units).x)
    np.testing.assert_array_equal(lazy.sample.transform.loc, lazy.transform.loc)
    assert "20 of the 60 units" in " ".join(lazy.notes())


@pytest.mark.usefixtures("small_blocks")
def test_extreme_rows_include_extremes_missing_and_fractional_entries(saved, monkeypatch):
    monkeypatch.setattr(stored, "N_SAMPLE", 2)
    x = np.zeros((60, 5))
    x[41, 0], x[33, 1], x[27, 2], x[50, 3] = 1.0, -1.0, np.nan, 0.5
    lazy = StoredDataset(npy_rows(Path(saved(x))))
    assert {41, 33, 27, 50} <= set(lazy.extremes.units.tolist())
    assert lazy.extremes.n_units <= 2 + 4 * 5


def test_operations_that_need_the_table_in_memory_are_refused(saved):
    lazy = load_dataset("file", path=saved(table()), in_memory=False)
    for attribute in ("x", "split", "raw", "arrays", "mask", "labels", "align_features"):
        with pytest.raises(DataError, match=f"mine stays on disk, but `{attribute}` requires data in memory.*subset"):
            getattr(lazy, attribute)
    assert not hasattr(lazy, "nonsense")
    with pytest.raises(DataError, match="`missing` requires data in memory"):
        load_dataset("file", path=saved(table()), in_memory=False, missing=0.1)
    with pytest.raises(DataError, match="numbered 0 to 59; got 3 to 60"):
        lazy.subset([3, 60])
    anew = load_dataset("file", path=saved(table()), in_memory=False)
    assert pickle.loads(pickle.dumps(anew)).digest() == anew.digest()


# -- faults


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda x: x.__setitem__((31, 2), np.inf), "column '2' has infinite values; the first is at unit 31"),
        (lambda x: x.fill(np.nan), "no observed entries"),
        (lambda x: x.__setitem__((slice(None), 3), np.nan), "column '3' has no observed entries"),
    ],
    ids=["infinite", "all missing", "a column missing"],
)
def test_invalid_entries_on_disk_are_refused(saved, change, said):
    x = table()
    change(x)
    with pytest.raises(DataError, match=said):
        load_dataset("file", path=saved(x), in_memory=False)


@pytest.mark.parametrize(
    ("x", "said"),
    [
        (np.array([[1, {}], [2, 3]], dtype=object), "Python objects"),
        (np.ones((3, 2), complex), "dtype complex128; expected real numbers"),
        (np.array([["a", "b"]]), "expected real numbers"),
        (np.ones(7), r"expected shape \(n_units, n_features\); got \(7,\)"),
        (np.ones((2, 3, 4)), "expected shape"),
        (np.ones((0, 3)), "has no units"),
        (np.ones((3, 0)), "has no features"),
        (np.array([[2**53 + 1, 1], [2, 3]]), r"exceeds 2\*\*53"),
    ],
    ids=["pickle", "complex", "text", "vector", "cube", "no units", "no features", "large whole number"],
)
def test_arrays_that_are_not_numeric_matrices_are_refused(tmp_path, x, said):
    np.save(tmp_path / "odd.npy", x, allow_pickle=True)
    with pytest.raises(DataError, match=said):
        load_dataset("file", path=str(tmp_path / "odd.npy"), in_memory=False)


def test_a_pickle_is_not_executed(tmp_path):
    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "canary"),)

    np.save(tmp_path / "bomb.npy", np.array([[Bomb(), 1]], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match="never loaded"):
        load_dataset("file", path=str(tmp_path / "bomb.npy"), in_memory=False)
    assert not (tmp_path / "canary").exists()


def test_a_truncated_file_is_refused_before_and_after_opening(saved):
    path = saved(table())
    lazy = load_dataset("file", path=path, in_memory=False)
    size = os.path.getsize(path)
    os.truncate(path, size - 9)
    with pytest.raises(DataError, match="was changed after it was opened"):
        lazy.subset([0, 59])
    with pytest.raises(DataError, match=r"declares shape .* but contains"):
        load_dataset("file", path=path, in_memory=False)


def test_a_changed_file_is_refused(saved):
    path = saved(table())
    lazy = load_dataset("file", path=path, in_memory=False)
    saved(table(seed=1))  # of the same size
    os.utime(path, ns=(0, 0))
    with pytest.raises(DataError, match="was changed after it was opened; load the data again"):
        lazy.subset([0])
    with pytest.raises(DataError, match="was changed after it was opened; load the data again"):
        lazy.digest()
    os.unlink(path)
    with pytest.raises(DataError, match="cannot be read: No such file"):
        lazy.subset([0])


@pytest.mark.parametrize(
    ("change", "said"),
    [(lambda path: os.utime(path, ns=(0, 0)), "was changed"), (lambda path: os.truncate(path, 800), "is truncated")],
    ids=["written to", "cut short"],
)
def test_a_file_changed_during_reading_is_refused(saved, change, said, monkeypatch):
    monkeypatch.setattr(rows, "REACH", 1)
    path = saved(table())
    lazy = load_dataset("file", path=path, in_memory=False)
    read = []

    def after_the_first() -> bool:
        if read:
            change(path)
        return bool(read.append(1))

    with pytest.raises(DataError, match=said):
        lazy.read(np.array([0, 59]), after_the_first)


def test_options_for_tables_in_memory_are_refused_on_disk(saved, tmp_path):
    path = saved(table())
    for option in ("label", "unit", "sequence", "time", "delimiter"):
        with pytest.raises(DataError, match=f"`{option}` cannot be combined with `in_memory: false`"):
            load_dataset("file", path=path, in_memory=False, **{option: "1"})
    (tmp_path / "mine.csv").write_text("a,b\n1,2\n3,5\n")
    with pytest.raises(DataError, match=r"only \.npy and \.zarr data can stay on disk"):
        load_dataset("file", path=str(tmp_path / "mine.csv"), in_memory=False)
    with pytest.raises(DataError, match="unknown column '9'"):
        load_dataset("file", path=path, in_memory=False, columns=["9"])
