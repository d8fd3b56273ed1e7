"""Tests of series: sequences of unequal length, gaps, order, and series in files."""

import numpy as np
import pandas as pd
import pytest

from latentlab.data.dataset import Dataset
from latentlab.data.file import file
from latentlab.data.load import load_dataset
from latentlab.data.memory import Budget
from latentlab.data.series import boundaries, series
from latentlab.errors import DataError


def test_sequences_of_unequal_length_are_stacked(rng):
    parts = [rng.standard_normal((n, 2)) for n in (3, 1, 5)]
    dataset = series(parts, features=["a", "b"], name="toy")
    assert dataset.x.tolist() == np.concatenate(parts).tolist()
    assert dataset.units.tolist() == ["0:0", "0:1", "0:2", "1:0", *(f"2:{t}" for t in range(5))]
    assert dataset.coords["sequence"].tolist() == [0, 0, 0, 1, 2, 2, 2, 2, 2]
    assert dataset.coords["time"].tolist() == [0, 1, 2, 0, 0, 1, 2, 3, 4]
    assert boundaries(dataset).tolist() == [0, 0, 0, 1, 2, 2, 2, 2, 2]
    assert dataset.mask is None
    assert (dataset.features.tolist(), dataset.name) == (["a", "b"], "toy")


@pytest.mark.parametrize(
    "given", [np.arange(12.0).reshape(2, 6), np.arange(12.0).reshape(2, 6, 1), (list(range(6)), pd.Series(range(6, 12)))]
)
def test_arrays_of_sequences_and_vectors_are_accepted(given):
    dataset = series(given)
    assert dataset.x[:, 0].tolist() == list(range(12))
    assert np.bincount(boundaries(dataset)).tolist() == [6, 6]


def test_a_row_of_nan_is_a_step_without_an_observation():
    dataset = series([[[1.0, 2.0], [np.nan, np.nan], [3.0, np.nan]], np.ma.masked_equal([[5.0, 6.0]], 6.0)])
    assert dataset.n_units == 4
    assert dataset.mask.tolist() == [[True, True], [False, False], [True, False], [True, False]]


def test_gaps_in_integer_times_become_missing_rows():
    options = {"names": ["a", "b"], "times": [[1900, 1901, 1904], [-2, 0]]}
    dataset = series([[1.0, 2.0, 3.0], [4.0, 5.0]], **options)
    nan = np.nan
    np.testing.assert_array_equal(dataset.x[:, 0], [1, 2, nan, nan, 3, 4, nan, 5])
    assert dataset.units.tolist() == ["a:1900", "a:1901", "a:1902", "a:1903", "a:1904", "b:-2", "b:-1", "b:0"]
    assert dataset.coords["time"].tolist() == [1900, 1901, 1902, 1903, 1904, -2, -1, 0]
    assert dataset.coords["sequence"].tolist() == ["a"] * 5 + ["b"] * 3
    assert boundaries(dataset).tolist() == [0] * 5 + [1] * 3
    as_it_is = series([[1.0, 2.0, 3.0], [4.0, 5.0]], **options, fill_gaps=False)
    assert as_it_is.coords["time"].tolist() == [1900, 1901, 1904, -2, 0]
    assert as_it_is.mask is None


@pytest.mark.parametrize("times", [[0.0, 0.5, 2.0], ["Monday", "Tuesday", "Sunday"]])
def test_gaps_are_not_filled_when_times_are_not_dates(times):
    dataset = series([[1.0, 2.0, 3.0]], times=[times])
    assert dataset.x[:, 0].tolist() == [1, 2, 3]
    assert dataset.units.tolist() == [f"0:{t}" for t in np.asarray(times).astype(str)]


def test_labels_belong_to_sequences_or_steps():
    parts = [[1.0, 2.0], [3.0]]
    assert series(parts, labels=["x", "y"]).labels.tolist() == ["x", "x", "y"]
    assert series(parts, labels=[["x", "z"], ["y"]]).labels.tolist() == ["x", "z", "y"]
    gap = {"times": [[0, 2], [0]]}
    assert series(parts, labels=["x", "y"], **gap).labels.tolist() == ["x", "x", "x", "y"]
    with pytest.raises(DataError, match=r"rows added for omitted time steps would have no label.*fill_gaps"):
        series(parts, labels=[["x", "z"], ["y"]], **gap)


@pytest.mark.parametrize(
    ("given", "options", "message"),
    [
        ([], {}, "has no sequences; expected at least one"),
        ([[1.0], []], {"names": ["a", "b"]}, "sequence 'b' has no time steps; leave it out"),
        ([np.zeros((0, 2))], {}, "sequence 0 has no time steps"),
        ([np.zeros((2, 0))], {}, "sequence 0 has no columns"),
        ([np.zeros((2, 2)), np.zeros((2, 3))], {}, "sequence 1 has 3 columns, but the first sequence has 2"),
        ([np.zeros((2, 2, 2))], {}, r"sequence 0 must have shape .*; got \(2, 2, 2\)"),
        ([[[1.0, 2.0], [3.0]]], {}, "sequence 0 is ragged"),
        ([["a", "b"]], {}, "sequence 0 has dtype <U1; expected real numbers"),
        (np.arange(4.0), {}, r"must be a list of arrays, one for each sequence; got one array of shape \(4,\)"),
        ([1.0, 2.0], {}, "got a list of single values"),
        ({"a": [1.0]}, {}, "got dict"),
        ([[1.0], [2.0]], {"names": ["a"]}, "`names` has 1 entries for 2 sequences"),
        ([[1.0], [2.0]], {"names": ["a", "a"]}, "two sequences have the name 'a'"),
        ([[1.0], [2.0]], {"times": [[1]]}, "`times` has 1 entries for 2 sequences"),
        ([[1.0, 2.0]], {"times": [[1]]}, "sequence 0: 1 times for 2 time steps"),
        ([[1.0], [2.0]], {"times": [[1], ["x"]]}, "`times` have several types"),
        ([[1.0, 2.0]], {"labels": [["x"]]}, "sequence 0: 1 labels for 2 time steps"),
        ([[1.0, 2.0]], {"times": [[3, 3]]}, "the time '3' of sequence 0 occurs twice, the second time in unit '0:3'"),
        ([[1.0, 2.0]], {"times": [["Monday", "Monday"]]}, "the time 'Monday' of sequence 0 occurs twice"),
        ([[np.nan], [np.nan]], {}, "has no observed entries"),
        ([[1.0, np.inf]], {}, "infinite"),
    ],
)
def test_invalid_series_are_refused_with_the_sequence(given, options, message):
    with pytest.raises(DataError, match=message) as caught:
        series(given, **options)
    assert "\n" not in str(caught.value)


def test_times_in_unordered_text_are_accepted():
    assert series([[1.0, 2.0, 3.0]], times=[["Tuesday", "Monday", "Friday"]]).n_units == 3
    assert series([[1.0, 2.0]], times=[["9:00", "10:00"]]).n_units == 2
    assert boundaries(series([[1.0], [2.0]], times=[["Monday"], ["Monday"]])).tolist() == [0, 1]


def test_a_gap_too_large_for_memory_is_refused():
    with pytest.raises(DataError, match=r"a row for each of 1000000000000001 time steps, 2 of them in the data.*needs about"):
        series([[1.0, 2.0]], times=[[0, 10**15]])
    assert series([[1.0, 2.0]], times=[[0, 10**15]], fill_gaps=False).n_units == 2


def steps(n, **coords):
    return Dataset({"x": np.arange(float(n))[:, None]}, dims={"x": ("unit", "feature")}, coords=coords, name="toy")


def test_boundaries_number_contiguous_sequences():
    assert boundaries(steps(3)).tolist() == [0, 0, 0]
    assert boundaries(steps(4, sequence=["b", "b", "a", "c"])).tolist() == [0, 0, 1, 2]
    assert boundaries(steps(4, sequence=[7, 7, 3, 3], time=[5, 6, 1, 9])).tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize(
    ("coords", "message"),
    [
        ({"sequence": ["a", "b", "a"]}, "toy: sequence 'a' is not contiguous: unit 2 belongs to it"),
        ({"sequence": [1, 2, 1], "unit": ["u", "v", "w"]}, "sequence 1 is not contiguous: unit 'w'"),
        (
            {"sequence": ["a", "a", "b"], "time": [2, 1, 0]},
            "the times of sequence 'a' do not increase: unit 1 has time '1' after '2'",
        ),
        ({"time": [0, 1, 1]}, "the time '1' occurs twice, the second time in unit 2"),
        ({"time": [0.5, 1.5, 0.7]}, "the times do not increase: unit 2 has time '0.7' after '1.5'"),
    ],
)
def test_steps_out_of_order_are_named(coords, message):
    with pytest.raises(DataError, match=message):
        boundaries(steps(3, **coords))


def test_reordered_units_are_detected():
    dataset = series([[1.0, 2.0, 3.0], [4.0, 5.0]])
    assert boundaries(dataset.subset([3, 4, 0, 1, 2])).tolist() == [0, 0, 1, 1, 1]
    with pytest.raises(DataError, match="do not increase: unit '0:0'"):
        boundaries(dataset.subset([1, 0, 2]))
    with pytest.raises(DataError, match="not contiguous: unit '0:1'"):
        boundaries(dataset.subset([0, 3, 1]))


# -- series in files


TEXT = "who,when,a,b,kind\np,1,1.5,2,x\np,2,NA,3,x\np,4,5,6,x\nq,1,7,8,y\n"


def write_file(folder, text, name="mine.csv"):
    path = folder / name
    path.write_text(text)
    return str(path)


def test_sequences_and_times_are_read_from_file_columns(tmp_path):
    path = write_file(tmp_path, TEXT)
    dataset = file(path, label="kind", sequence="who", time="when")
    assert dataset.features.tolist() == ["a", "b"]
    np.testing.assert_array_equal(dataset.x[:, 0], [1.5, np.nan, np.nan, 5, 7])
    assert dataset.units.tolist() == ["p:1", "p:2", "p:3", "p:4", "q:1"]
    assert dataset.coords["time"].tolist() == [1, 2, 3, 4, 1]
    assert dataset.labels.tolist() == ["x", "x", "x", "x", "y"]
    assert boundaries(dataset).tolist() == [0, 0, 0, 0, 1]
    assert load_dataset("file", path=path, label="kind", sequence="who", time="when").n_units == 5
    assert file(path, label="kind", sequence="who", time="when", fill_gaps=False).n_units == 4
    assert file(path, columns=["a"], sequence="who").coords["sequence"].tolist() == ["p", "p", "p", "q"]


def test_units_keep_their_names_and_filled_rows_get_names(tmp_path):
    path = write_file(tmp_path, "id,when,a\nu,1,1\nv,3,2\n")
    assert file(path, unit="id", time="when").units.tolist() == ["u", "2", "v"]
    assert file(path, columns=["a"]).units.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("cells", "times"), [("7 8", [7, 8]), ("7 7.5", [7.0, 7.5]), ("1999-01 1999-02", ["1999-01", "1999-02"]), ("b a", ["b", "a"])]
)
def test_times_in_text_are_read_as_numbers_if_all_are_numeric(tmp_path, cells, times):
    first, second = cells.split()
    assert file(write_file(tmp_path, f"t,a\n{first},1\n{second},2\n"), time="t").coords["time"].tolist() == times


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("s,t,a\np,1,1\nq,1,2\np,1,3\n", "the time '1' of sequence 'p' occurs twice"),
        ("s,t,a\np,b,1\nq,b,2\np,a,3\n", "sequence 'p' is not contiguous: unit 'p:a'"),
        ("s,t,a\np,,1\n", "line 2, column 't': the time is missing"),
        ("s,a\np,1\n", "`time`: unknown column 't'"),
    ],
)
def test_a_file_with_unsorted_sequences_is_refused(tmp_path, text, message):
    with pytest.raises(DataError, match=message):
        file(write_file(tmp_path, text), sequence="s", time="t")


def test_sequences_and_times_are_read_from_npz_and_parquet(tmp_path):
    frame = pd.DataFrame({"s": ["p", "p", "q"], "t": [1, 2, 1], "a": [1.0, 2.0, 3.0]})
    frame.to_parquet(tmp_path / "t.parquet")
    np.savez(tmp_path / "v.npz", s=np.array(["p", "p", "q"]), t=np.array([1, 2, 1]), a=np.array([1.0, 2, 3]))
    np.savez(tmp_path / "m.npz", x=np.array([[1.0], [2], [3]]), s=np.array(["p", "p", "q"]), t=np.array([1, 2, 1]))
    for name in ("t.parquet", "v.npz", "m.npz"):
        dataset = file(str(tmp_path / name), sequence="s", time="t")
        assert dataset.units.tolist() == ["p:1", "p:2", "q:1"]
        assert dataset.x[:, 0].tolist() == [1, 2, 3]
    np.save(tmp_path / "m.npy", np.array([[0, 1, 5.0], [0, 2, 6], [1, 1, 7]]))
    assert file(str(tmp_path / "m.npy"), sequence="0", time="1").units.tolist() == ["0:1", "0:2", "1:1"]
    frame.assign(t=pd.to_datetime(["2000-01-01", "2000-01-02", "2000-01-01"])).to_parquet(tmp_path / "d.parquet")
    dates = file(str(tmp_path / "d.parquet"), sequence="s", time="t")
    assert dates.coords["time"].tolist() == ["2000-01-01", "2000-01-02", "2000-01-01"]
    assert dates.units[0] == "p:2000-01-01"


def test_memory_is_estimated_for_the_filled_series(monkeypatch):
    monkeypatch.setattr(Budget, "of", classmethod(lambda cls, _: cls(100, set_by_user=False)))
    assert series([[1.0, 2.0]], times=[[0, 1]]).n_units == 2
    with pytest.raises(DataError, match="needs about 144 B of memory"):
        series([[1.0, 2.0]], times=[[0, 2]])
