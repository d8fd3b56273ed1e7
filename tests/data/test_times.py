"""Tests of time coordinates: sorting, filling of gaps, and ambiguous times."""

import numpy as np
import pandas as pd
import pytest

from latentlab.data.dataset import Dataset
from latentlab.data.file import file
from latentlab.data.series import boundaries, series
from latentlab.errors import DataError

NAN = np.nan


def series_at(times, **options):
    """A series whose rows hold 0, 1, 2, ... in the order given."""
    return series([np.arange(len(times), dtype=float)], times=[times], name="toy", **options)


@pytest.mark.parametrize(
    ("given", "written", "rows", "step"),
    [
        ([3, 1, 4, 6], [1, 3, 4, 6], "1 . 0 2 . 3", ""),
        ([1900.0, 1901.0, 1903.0], [1900, 1901, 1903], "0 1 . 2", ""),
        (["10", "9", "12"], [9, 10, 12], "1 0 . 2", ""),
        (["2020-01-01", "2020-01-02", "2020-01-05"], None, "0 1 . . 2", "1 day"),
        (["2020-01-02", "2020-01-01", "2020-01-04"], None, "1 0 . 2", "1 day"),
        (["2020/01/02", "2020/01/01", "2020/01/04"], ["2020-01-02", "2020-01-01", "2020-01-04"], "1 0 . 2", "1 day"),
        (["31/01/2020", "29/02/2020", "30/04/2020"], ["2020-01-31", "2020-02-29", "2020-04-30"], "0 1 . 2", "1 month"),
        (["01/31/2020", "02/01/2020", "02/03/2020"], ["2020-01-31", "2020-02-01", "2020-02-03"], "0 1 . 2", "1 day"),
        (["12.01.2020", "10.01.2020", "09.01.2020"], ["2020-01-12", "2020-01-10", "2020-01-09"], "2 1 . 0", "1 day"),
        (["2020-01", "2020-02", "2020-05"], None, "0 1 . . 2", "1 month"),
        (["1959Q4", "1959Q1", "1959Q2"], None, "1 2 . 0", "1 quarter"),
        (["1959-Q1", "1959-Q2", "1960-Q1"], None, "0 1 . . 2", "1 quarter"),
        (["Q1 2020", "Q2 2020", "Q4 2020"], ["2020Q1", "2020Q2", "2020Q4"], "0 1 . 2", "1 quarter"),
        (["2020-W02", "2020-W01", "2020-W04"], ["2020-W02", "2020-W01", "2020-W04"], "1 0 . 2", "1 week"),
        (["2020-1-9", "2020-1-10", "2020-1-12"], ["2020-01-09", "2020-01-10", "2020-01-12"], "0 1 . 2", "1 day"),
        (["31/01/2020 10:00", "01/02/2020 10:00"], ["2020-01-31T10:00:00", "2020-02-01T10:00:00"], "0 1", ""),
        (["2020-01-01T10", "2020-01-01T11", "2020-01-01T13"], ["2020-01-01T10:00:00"], "0 1 . 2", "1 hour"),
        (["1990 term 2", "1990 term 1", "1990 term 4"], ["1990 term 1"], "1 0 2", ""),
        (["2000-01-01", "2001-01-01", "2003-01-01"], None, "0 1 . 2", "1 year"),
        (["2020-01-15", "2020-02-15", "2020-04-15"], None, "0 1 . 2", "1 month"),
        (["2019-12-30", "2020-01-30", "2020-04-30"], None, "0 1 . . 2", "1 month"),
        (["2020-01-31", "2020-02-28", "2020-04-30"], None, "0 1 . 2", "1 month"),  # last working days
        (["2020-02-03", "2020-03-02", "2020-05-01"], None, "0 1 . 2", "1 month"),  # first working days
        (["2020-01-06", "2020-01-13", "2020-01-27"], None, "0 1 . 2", "1 week"),
        (["2020-01-02", "2020-01-03", "2020-01-06", "2020-01-08"], None, "0 1 2 . 3", "1 working day"),
        (["2020-01-01T06:00", "2020-01-01T12:00", "2020-01-02T00:00"], None, "0 1 . 2", "6 hours"),
        (["2020-01-01 00:15", "2020-01-01 00:00", "2020-01-01 00:45"], None, "1 0 . 2", "15 minutes"),
        (["2020-01-31T10:30", "2020-02-29T10:30", "2020-04-30T10:30"], None, "0 1 . 2", "1 month"),
        (["2020-01-01T01:00+01:00", "2020-01-01T02:00+01:00", "2020-01-01T04:00+01:00"], None, "0 1 . 2", "1 hour"),
        (["Jan 2020", "Mar 2020", "Feb 2020", "May 2020"], ["2020-01", "2020-03", "2020-02", "2020-05"], "0 2 1 . 3", "1 month"),
        (["1 Mar 2020", "28 Feb 2020", "29 Feb 2020"], ["2020-03-01", "2020-02-28", "2020-02-29"], "1 2 0", ""),
        ([20200131, 20200201, 20200203], None, "0 1 . 2", "1 day"),
        ([202011, 202012, 202102], None, "0 1 . 2", "1 month"),
        (np.array(["2000", "2001", "2003"], "M8[Y]"), [2000, 2001, 2003], "0 1 . 2", ""),
        (
            pd.DatetimeIndex(["2020-03-28", "2020-03-29", "2020-03-31"]),
            ["2020-03-28", "2020-03-29", "2020-03-31"],
            "0 1 . 2",
            "1 day",
        ),
        (
            pd.date_range("2020-03-28", periods=4, tz="Europe/Berlin").delete(2),
            ["2020-03-28", "2020-03-29", "2020-03-31"],
            "0 1 . 2",
            "1 day",
        ),
        (pd.period_range("2020-01", periods=4, freq="M").delete(2), ["2020-01", "2020-02", "2020-04"], "0 1 . 2", "1 month"),
        ([0.5, 2.5, 1.0], [0.5, 2.5, 1.0], "0 2 1", ""),
    ],
)
def test_rows_are_sorted_by_time_and_gaps_are_filled(given, written, rows, step):
    dataset = series_at(given)
    expected = [NAN if one == "." else float(one) for one in rows.split()]
    np.testing.assert_array_equal(dataset.x[:, 0], expected)
    times = dataset.coords["time"].tolist()
    if written is None and not isinstance(given[0], int):
        assert set(times) >= {one for one in given if "T" not in one and " " not in one}
    else:
        assert set(times) >= set(given if written is None else written)
    assert len(set(times)) == len(times)
    assert dataset.units.tolist() == [f"0:{time}" for time in times]
    assert boundaries(dataset).tolist() == [0] * len(times)
    notes = " ".join(dataset.notes())
    assert ("sorted" in notes) == (sorted(filter(str.isdigit, rows.split()), key=int) != list(filter(str.isdigit, rows.split())))
    assert (" of missing entries (`fill_gaps`)" in notes) == ("." in rows)
    assert (f"one step is {step}." in notes) == bool(step)
    # What a dataset keeps is read as the same times again.
    again = series([dataset.x], times=[times])
    assert again.coords["time"].tolist() == times
    assert again.preparation == tuple(one for one in again.preparation if "sorted" not in one and "fill_gaps" not in one)


def test_filled_rows_get_the_missing_dates():
    assert series_at(["2020-01-31", "2020-02-28", "2020-05-29"]).coords["time"].tolist() == [
        "2020-01-31",
        "2020-02-28",
        "2020-03-31",
        "2020-04-30",
        "2020-05-29",
    ]
    assert series_at(["2019-12-30", "2020-01-30", "2020-04-30"]).coords["time"].tolist()[2:4] == ["2020-02-29", "2020-03-30"]
    assert series_at(["1959Q1", "1959Q2", "1960Q1"]).coords["time"].tolist() == ["1959Q1", "1959Q2", "1959Q3", "1959Q4", "1960Q1"]
    assert series_at([202011, 202012, 202102]).coords["time"].tolist() == [202011, 202012, 202101, 202102]
    hours = series_at(["2020-01-01T01:00+01:00", "2020-01-01T02:00+01:00", "2020-01-01T04:00+01:00"])
    assert hours.coords["time"].tolist() == [f"2020-01-01T0{hour}:00:00Z" for hour in range(4)]


def test_the_time_step_is_common_to_all_sequences():
    dataset = series(
        [[1.0, 2.0], [3.0, 4.0, 5.0]], times=[["2020-01-02", "2020-01-04"], ["2020-01-01", "2020-01-03", "2020-01-04"]]
    )
    np.testing.assert_array_equal(dataset.x[:, 0], [1, NAN, 2, 3, NAN, 4, 5])
    two_days = series([[1.0, 2.0], [3.0, 4.0]], times=[["2020-01-02", "2020-01-04"], ["2020-01-01", "2020-01-03"]])
    assert two_days.n_units == 4


@pytest.mark.parametrize("given", [[0.5, 1.0, 2.5], ["2020-01-01T10:00:01", "2020-01-01T10:00:03", "2020-01-01T10:00:06"]])
def test_times_without_a_regular_step_are_noted(given):
    dataset = series_at(given)
    assert dataset.x[:, 0].tolist() == [0, 1, 2]
    assert any("no regular step" in note for note in dataset.notes())


def test_times_in_unordered_text_keep_their_order():
    dataset = series_at(["Monday", "Tuesday", "Friday"])
    assert dataset.x[:, 0].tolist() == [0, 1, 2]
    assert any("text of unknown order" in note for note in dataset.notes())


def test_gaps_can_be_left_unfilled():
    dataset = series_at(["2020-01-04", "2020-01-01", "2020-01-02"], fill_gaps=False)
    assert dataset.x[:, 0].tolist() == [1, 2, 0]
    assert any(
        "1 time step is omitted (one step is 1 day); the steps before and after a gap are treated as consecutive" in one
        for one in dataset.notes()
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["01/01/2020", "01/02/2020"], r"'01/02/2020' may be day/month/year or month/day/year; write dates as 2020-01-31"),
        (["3-4-2020", "5-6-2020"], "'3-4-2020' may be"),
        (["13/01/20", "14/01/20"], "the order of day, month and year in '13/01/20' is ambiguous"),
        (["2020-02-30", "2020-03-01"], "'2020-02-30' is not a valid date"),
        (["13/13/2020", "14/13/2020"], "is not a valid date"),
        (["2020-01-01", "soon"], "'soon' is not a date in the form of '2020-01-01'"),
        (["2020-01-01", "02/01/2020"], "'02/01/2020' is not a date in the form of '2020-01-01'; write all dates as 2020-01-31"),
        (["2020Q1", "2020-04-01"], "'2020-04-01' is not a date in the form of '2020Q1'"),
        (["2020-01-01", "2020-02"], "the dates have several forms"),
        (["2020-01-01T00:00Z", "2020-01-01T01:00"], "the dates have several forms"),
        (["2020-01-01", "2020-01-01"], "the time '2020-01-01' of sequence 0 occurs twice"),
        ([2, 1, 2], "the time '2' of sequence 0 occurs twice"),
        (["Monday", "Monday"], "the time 'Monday' of sequence 0 occurs twice"),
    ],
)
def test_ambiguous_and_duplicate_times_are_refused(given, message):
    with pytest.raises(DataError, match=message) as caught:
        series_at(given)
    assert "\n" not in str(caught.value)


def test_times_of_a_dataset_follow_the_same_rules():
    def dataset(times):
        return Dataset({"x": np.arange(2.0)[:, None]}, dims={"x": ("unit", "feature")}, coords={"time": times})

    assert boundaries(dataset(["31/01/2020", "01/02/2020"])).tolist() == [0, 0]
    with pytest.raises(DataError, match="do not increase: unit 1 has time '31/01/2020' after '01/02/2020'"):
        boundaries(dataset(["01/02/2020", "31/01/2020"]))
    with pytest.raises(DataError, match="may be day/month/year"):
        boundaries(dataset(["01/02/2020", "01/03/2020"]))
    with pytest.raises(DataError, match="do not increase"):
        boundaries(dataset(pd.DatetimeIndex(["2020-01-02", "2020-01-01"])))


def test_gaps_between_the_rows_of_a_frame_are_noted():
    days = pd.DatetimeIndex(["2020-01-01", "2020-01-02", "2020-01-05"])
    dataset = Dataset({"x": pd.DataFrame({"a": [1.0, 2.0, 3.0]}, index=days)})
    assert dataset.coords["time"].tolist() == dataset.units.tolist() == ["2020-01-01", "2020-01-02", "2020-01-05"]
    assert dataset.notes()[0].startswith("2 time steps are omitted (one step is 1 day)")
    assert boundaries(dataset).tolist() == [0, 0, 0]
    with pytest.raises(DataError, match="do not increase: unit '2020-01-02'"):
        boundaries(dataset.subset([2, 1, 0]))
    numbered = Dataset({"x": pd.DataFrame({"a": [1.0, 2.0, 3.0]}, index=days)}, coords={"time": [1, 2, 3]})
    assert numbered.coords["time"].tolist() == [1, 2, 3]
    assert not any("omitted" in note for note in numbered.notes())


def test_rows_of_a_file_are_sorted_by_sequence_and_time(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text("s,t,a,kind,id\nq,2020-01-02,4,y,d\np,2020-01-03,2,x,b\nq,2020-01-01,3,y,c\np,2020-01-01,1,x,a\n")
    dataset = file(str(path), sequence="s", time="t", label="kind", unit="id")
    np.testing.assert_array_equal(dataset.x[:, 0], [3, 4, 1, NAN, 2])
    assert dataset.units.tolist() == ["c", "d", "a", "p:2020-01-02", "b"]
    assert dataset.labels.tolist() == ["y", "y", "x", "x", "x"]
    assert dataset.coords["sequence"].tolist() == ["q", "q", "p", "p", "p"]
    assert boundaries(dataset.standardize()).tolist() == [0, 0, 1, 1, 1]
    assert any("sorted by sequence and time" in note for note in dataset.standardize().notes())
