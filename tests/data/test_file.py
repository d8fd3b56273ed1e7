"""Tests of reading user files, and of errors that name line, column or declared size.

Faults of data that do not apply yet, since no model or loader has such data: sequences (ragged, of no length), graphs (loops,
duplicate edges), counts and ratings (negative, fractional, out of scale), HDF5 as a data file, categories unseen in training,
labels outside a range of classes. Files much larger than memory are refused from their size, not streamed.
"""

import contextlib
import decimal
import gzip
import io
import os
import zipfile

import numpy as np
import pandas as pd
import pytest

from latentlab.data.file import file
from latentlab.errors import DataError


def npy(array, **options):
    stream = io.BytesIO()
    np.save(stream, array, **options)
    return stream.getvalue()


def npz(**arrays):
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    return stream.getvalue()


def read(folder, name, content, **options):
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return file(str(path), **options)


PLAIN = [[1.0, 2.0], [3.0, 4.0]]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("comma.csv", "a,b\n1,2\n3,4\n"),
        ("semicolon.csv", "a;b\n1;2\n3;4\n"),
        ("tab.tsv", "a\tb\n1\t2\n3\t4\n"),
        ("windows.csv", b"\xef\xbb\xbfa,b\r\n1,2\r\n3,4\r\n"),
        ("quoted.csv", '"a","b"\n"1",2\n3,"4"\n'),
        ("packed.csv.gz", gzip.compress(b"a,b\n1,2\n3,4\n", mtime=0)),
        ("scientific.csv", "a,b\n1e0,2.0\n+3,4E0\n"),
    ],
)
def test_csv_dialects_are_read(tmp_path, name, content):
    dataset = read(tmp_path, name, content)
    assert dataset.x.tolist() == PLAIN
    assert dataset.features.tolist() == ["a", "b"]


def test_blanks_and_decimal_commas_are_read(tmp_path):
    assert read(tmp_path, "a.txt", "a   b\n1 2\n 3\t 4 \n").x.tolist() == PLAIN
    assert read(tmp_path, "a.txt", '"the a" b\n1 2\n3 4\n', delimiter="blank").features.tolist() == ["the a", "b"]
    assert read(tmp_path, "a.csv", "petal length\n1\n3\n").features.tolist() == ["petal length"]
    rows = read(tmp_path, "a.txt", '"a" "b"\n"u 1" 1 2\n"v" 3 4\n')  # as R writes them
    assert (rows.x.tolist(), rows.units.tolist()) == (PLAIN, ["u 1", "v"])
    for text in ("a;b\n1,0;2\n3,0;4e0\n", "a\tb\n1,0\t2\n3\t4\n", "a b\n1,0 2\n3 4\n"):
        assert read(tmp_path, "a.csv", text, decimal=",").x.tolist() == PLAIN
    np.testing.assert_array_equal(read(tmp_path, "a.csv", "a;b\n1,5;NA\n;2\n", decimal=",").x, [[1.5, np.nan], [np.nan, 2]])
    for content, options, message in (
        (
            "a;b\n1.000,5;2\n",
            {"decimal": ","},
            "line 2, column 'a': '1.000,5' is not a number; it looks like thousands separators",
        ),
        ("a;b\n1.5;2\n", {"decimal": ","}, "it has a decimal point, but `decimal` is ','"),
        ("a,b\n1,2\n", {"decimal": ",", "delimiter": ","}, "`delimiter` and `decimal` must differ; got ',' for both"),
        ("a;b\n1;2\n", {"decimal": "'"}, "`decimal` must be '.' or ','"),
        ("a,b\n1,2\n", {"decimal": ","}, "the header has commas, but `decimal` is ','; set `delimiter`"),
        ("a b\n1 2 3 4\n", {"delimiter": "blank"}, "line 2: 4 fields, but the header has 2"),
        ("a b\n1 2 3\n4 5\n", {}, "line 3: 2 fields, but the header has 3"),
        ("a;b\n1,5;2\n", {}, "decimal comma.*`decimal: ','`"),
    ):
        with pytest.raises(DataError, match=message):
            read(tmp_path, "a.csv", content, **options)


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_a_csv_written_by_pandas_keeps_its_index_as_units(tmp_path, form):
    frame = pd.DataFrame({"a": [1.5, 2.0, np.nan], "b": [4, 5, 6]}, index=["u", "v", "w"])

    def back(frame, **options):
        path = tmp_path / f"mine.{form}"
        getattr(frame, f"to_{form}")(path)
        return file(str(path), **options)

    dataset = back(frame)
    np.testing.assert_array_equal(dataset.x, frame.to_numpy())
    assert (dataset.features.tolist(), dataset.units.tolist()) == (["a", "b"], ["u", "v", "w"])
    counted = back(frame.reset_index(drop=True))
    assert (counted.features.tolist(), counted.units.tolist()) == (["a", "b"], [0, 1, 2])
    assert [str(unit) for unit in back(frame.set_axis([7, 5, 9])).units] == ["7", "5", "9"]
    days = pd.DatetimeIndex(["2020-03-28", "2020-03-29", "2020-03-30"])
    assert back(frame.set_axis(days)).units.tolist() == ["2020-03-28", "2020-03-29", "2020-03-30"]
    assert back(frame.assign(id=["k", "l", "m"]), unit="id", columns=["b"]).units.tolist() == ["k", "l", "m"]
    assert back(frame.assign(t=[3, 1, 2]), time="t").units.tolist() == ["v", "w", "u"]


def test_an_unnamed_first_column_is_read_as_index(tmp_path):
    for text in (",a,b\n0,1,2\n1,3,4\n", "Unnamed: 0,a,b\n0,1,2\n1,3,4\n"):
        dataset = read(tmp_path, "a.csv", text)
        assert (dataset.features.tolist(), dataset.x.tolist(), dataset.units.tolist()) == (["a", "b"], PLAIN, [0, 1])
    assert read(tmp_path, "a.csv", "Unnamed: 0,a\n7,1\n5,3\n").units.tolist() == ["7", "5"]
    assert read(tmp_path, "a.csv", ",Unnamed: 0,a\nu,0,1\nv,1,3\n").features.tolist() == ["a"]
    kept = read(tmp_path, "a.csv", "Unnamed: 0,a,k\n7,1,x\n7,3,y\n", label="k")
    assert (kept.features.tolist(), kept.x.tolist()) == (["Unnamed: 0", "a"], [[7, 1], [7, 3]])
    asked = read(tmp_path, "a.csv", "Unnamed: 0,a\n0,1\n1,3\n", columns=["Unnamed: 0", "a"])
    assert asked.x.tolist() == [[0, 1], [1, 3]]
    with pytest.raises(DataError, match=r"line 1: column 1 of 2 has no name. .* units' names either, because '7' occurs more"):
        read(tmp_path, "a.csv", ",a\n7,1\n7,3\n")
    with pytest.raises(DataError, match="line 1: column 2 of 2 has no name"):
        read(tmp_path, "a.csv", "a,\n7,1\n7,3\n")


BIG = 2**53 + 1


def parquet(**columns):
    stream = io.BytesIO()
    pd.DataFrame(columns).to_parquet(stream)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", f"a,b\n{BIG},0.5\n"),
        ("a.csv", f"a,b\n-0{BIG} ,0.5\n"),
        ("a.csv", f"a;b\n{BIG};0,5\n"),
        ("a.npy", npy(np.array([[BIG, 1]]))),
        ("a.npy", npy(np.array([[BIG, 1]], np.uint64))),
        ("a.npz", npz(a=np.array([BIG]), b=np.array([0.5]))),
        ("a.npz", npz(x=np.array([[-BIG, 1]]))),
        ("a.parquet", parquet(a=[BIG], b=[0.5])),
        ("a.parquet", parquet(a=pd.array([BIG, None], dtype="Int64"))),
        ("a.parquet", parquet(a=[decimal.Decimal(BIG)])),
        ("a.parquet", parquet(a=np.array([2**64 - 1], np.uint64))),
    ],
)
def test_integers_that_would_lose_digits_are_refused_by_every_reader(tmp_path, name, content):
    with pytest.raises(DataError, match=r"whole number.* exceeds 2\*\*53"):
        read(tmp_path, name, content, **({"decimal": ","} if isinstance(content, str) and ";" in content else {}))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", f"a\n{BIG - 1}\n-{BIG - 1}\n"),
        ("a.npy", npy(np.array([[BIG - 1], [1 - BIG]]))),
        ("a.parquet", parquet(a=[BIG - 1, 1 - BIG])),
    ],
)
def test_the_largest_exact_integer_of_float64_is_accepted(tmp_path, name, content):
    assert read(tmp_path, name, content).x[:, 0].tolist() == [2.0**53, -(2.0**53)]


def test_numeric_parquet_columns_are_accepted(tmp_path):
    content = parquet(
        a=pd.array([1, None], dtype="Int8"),
        b=pd.array([True, None], dtype="boolean"),
        c=pd.Categorical([5, None]),
        d=[decimal.Decimal("1.5"), None],
        e=[None, None],
        kind=pd.Categorical(["x", "y"]),
    )
    dataset = read(tmp_path, "a.parquet", content, label="kind")
    np.testing.assert_array_equal(dataset.x, [[1, 1, 5, 1.5, np.nan], [np.nan] * 5])
    assert dataset.labels.tolist() == ["x", "y"]


def test_an_overlong_line_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("latentlab.data.text.LONGEST", 1000)
    with pytest.raises(DataError, match=r"line 2: the line has more than 1000 characters; .*NPY or Parquet"):
        read(tmp_path, "a.csv", "a,b\n" + "1," * 2000)
    assert read(tmp_path, "a.csv", "a" * 999 + "\n1\n").x.tolist() == [[1.0]]


def test_units_labels_and_missing_markers_are_read(tmp_path):
    text = "id,a,b,kind\nu,NA,1,None\nv,3,,null\nw,?,2,x\n"
    dataset = read(tmp_path, "mine.csv", text, unit="id", label="kind")
    np.testing.assert_array_equal(dataset.x, [[np.nan, 1], [3, np.nan], [np.nan, 2]])
    assert dataset.units.tolist() == ["u", "v", "w"]
    assert dataset.labels.tolist() == ["None", "null", "x"]  # categories, not missing values
    assert dataset.mask.tolist() == [[False, True], [True, False], [False, True]]
    own = read(tmp_path, "mine.csv", "a,b\n-9,1\n2,3\n", missing_values=("-9",))
    assert np.isnan(own.x[0, 0])


def test_columns_of_a_file_are_selected_and_ordered_by_name(tmp_path):
    dataset = read(tmp_path, "mine.csv", "a,b,c\n1,x,3\n4,y,6\n", columns=["c", "a"])
    assert dataset.x.tolist() == [[3.0, 1.0], [6.0, 4.0]]


def test_npy_npz_and_parquet_files_are_read(tmp_path):
    x = np.arange(6.0).reshape(3, 2)
    assert read(tmp_path, "x.npy", npy(x)).x.tolist() == x.tolist()
    assert read(tmp_path, "v.npz", npz(a=x[:, 0], b=x[:, 1])).features.tolist() == ["a", "b"]
    assert read(tmp_path, "m.npz", npz(x=x, feature=np.array(["p", "q"]))).features.tolist() == ["p", "q"]
    frame = pd.DataFrame({"id": ["u", "v", "w"], "a": x[:, 0], "b": x[:, 1]})
    frame.to_parquet(tmp_path / "t.parquet")
    assert file(str(tmp_path / "t.parquet"), unit="id").x.tolist() == x.tolist()


@pytest.mark.parametrize(
    ("name", "content", "options", "message"),
    [
        ("a.csv", "a,a\n1,2\n", {}, "line 1: 2 columns have the name 'a', such as columns 1 and 2"),
        ("a.csv", "a,b\n1,2,3\n3,4\n", {}, "line 2: 3 fields, but the header has 2"),
        ("a.csv", "a,b,c\n1,2,3\n3,4\n", {}, "line 3: 2 fields, but the header has 3"),
        ("a.csv", "", {}, "the file is empty"),
        ("a.csv", "a,b\n", {}, "a header, but no rows"),
        ("a.csv", "1.5,2.5\n3,4\n", {}, "look like data, not column names; add a header"),
        ("a.csv", "a;b\n1,5;2\n", {}, "line 2, column 'a': '1,5'.*decimal comma"),
        ("a.csv", "a;b\n1.000,5;2\n", {}, "line 2, column 'a'.*thousands separators"),
        ("a.csv", "a,b\n1,x\n", {}, "line 2, column 'b': 'x' is neither a number nor one of `missing_values`"),
        ("a.csv", "a,b\n1,inf\n", {}, "line 2, column 'b': 'inf' is infinite"),
        (
            "a.csv",
            "a,b\nkg,m\n1,2\n",
            {},
            "line 2, column 'a': 'kg' is neither a number .* or delete the line if it is not a row of data",
        ),
        ("a.csv", "a,b\n1,2\n# end\n", {}, "line 3: 1 field, but the header has 2; delete the line if it is not a row of data"),
        ("a.csv", "a,b,\n1,2,\n", {}, "line 1: column 3 of 3 has no name .*with no delimiter at its end"),
        (
            "a.csv",
            "a;b\n1.000,5;2\n",
            {"decimal": ","},
            r"'1.000,5' is not a number; it looks like thousands separators \(write 1234,5\)",
        ),
        ("a.csv", "a,b\n1,12.5%\n", {}, "'12.5%' is not a number; it looks like a percentage"),
        ("a.csv", "a,b\n1,$2.50\n", {}, "an amount of money"),
        ("a.csv", "a,b\n1,3 \u20ac\n", {}, "an amount of money"),
        ("a.csv", "a,b\n1,\u22122.5\n", {}, "a typographic minus sign"),
        ("a.csv", b"a,b\n1,\xe9\n", {}, "byte 6 .0xe9. is not valid utf-8"),
        ("a.csv", b"a,b\n1,\x00\n", {}, "line 2: the line has a NUL byte"),
        ("a.csv", b"a,k\n1,x\n2,\x00y\n", {"label": "k"}, "line 3: the line has a NUL byte"),
        ("a.csv", "a,b\n1,2\n\n3,4\n", {}, "line 3 is blank, but rows follow it"),
        ("a.csv", "a\n1\n\n3\n", {}, "line 3 is blank, but rows follow it; delete the line, or write NA for missing entries"),
        ("a.csv", 'a,b\n1,2\n3,"4\n', {}, "line 3: .*unclosed quote"),
        ("a.csv", 'a,b\n1,2\n"3"4,5\n', {}, "line 3: ',' expected after '\"'"),
        (
            "a.csv",
            'id,a\n"u\nv",1\nw,x\n',
            {"unit": "id"},
            "line 4, column 'a': 'x' is neither a number nor one of `missing_values`",
        ),
        ("a.csv", "a,b\n1,2\n3,1_000\n", {}, "line 3, column 'b': '1_000' is neither a number"),
        ("a.csv", "id,a\nu,1\nu,3\n", {"unit": "id"}, "unit 'u' occurs 2 times"),
        ("a.csv", "a,b\n1,2\n", {"columns": ["a", "c"]}, "unknown column 'c'"),
        ("a.csv", "a,b\n1,2\n", {"label": "kind"}, "`label`: unknown column 'kind'"),
        ("a.npy", npy(np.ones((3, 2, 2))), {}, r"expected shape \(n_units, n_features\); got \(3, 2, 2\)"),
        ("a.npy", npy(np.ones((3, 2), complex)), {}, "complex128; expected real numbers"),
        (
            "a.npy",
            npy(np.zeros(1)).replace(b"(1,), }", b"(999999999999,), }"),
            {},
            r"declares shape .* \(8.0 TB\), but contains only",
        ),
        ("a.xyz", "1", {}, "the file format is unknown"),
    ],
)
def test_unreadable_entries_are_refused_with_their_position(tmp_path, name, content, options, message):
    with pytest.raises(DataError, match=message):
        read(tmp_path, name, content, **options)


def test_missing_files_and_directories_are_refused(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        file(str(tmp_path / "none.csv"))
    with pytest.raises(DataError, match="is a directory"):
        file(str(tmp_path))


class Canary:
    def __reduce__(self):
        return (os.system, ("touch canary",))


@pytest.mark.parametrize("form", ["npy", "npz"])
def test_pickles_are_refused_and_not_executed(tmp_path, monkeypatch, form):
    monkeypatch.chdir(tmp_path)
    objects = np.array([[Canary(), 1], [2, 3]], dtype=object)
    content = npy(objects, allow_pickle=True) if form == "npy" else npz(x=objects)
    with pytest.raises(DataError, match=r"object|pickle"):
        read(tmp_path, f"a.{form}", content)
    assert not (tmp_path / "canary").exists()


def test_a_table_too_large_for_memory_is_refused_unread(tmp_path):
    with pytest.raises(DataError, match=r"needs about .* MB of memory; `max_bytes` is 10.0 MB"):
        read(tmp_path, "bomb.csv.gz", gzip.compress(b"a,b\n" + b"1,2\n" * 2_000_000), max_bytes=10_000_000)


def test_an_array_with_a_false_declared_size_is_refused(tmp_path):
    lying = npy(np.zeros(1)).replace(b"(1,), }", b"(99999999999,), }")
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", lying)
    with pytest.raises(DataError, match="declares shape"):
        read(tmp_path, "a.npz", stream.getvalue())


def test_archive_members_outside_the_folder_are_not_written(tmp_path):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("../../escaped.npy", npy(np.ones(3)))
        archive.writestr("b.npy", npy(np.ones(3)))
    before = set(tmp_path.parent.iterdir())
    with contextlib.suppress(DataError):
        read(tmp_path, "a.npz", stream.getvalue())
    assert set(tmp_path.parent.iterdir()) == before


def test_files_with_many_columns_are_read(tmp_path):
    names = ",".join(f"c{i}" for i in range(30_000))
    values = ",".join("1" for _ in range(30_000))
    assert len(names) > 131_072, "more than Python's csv takes for one field"
    assert read(tmp_path, "wide.csv", f"{names}\n{values}\n{values}\n").x.shape == (2, 30_000)
    with pytest.raises(DataError, match=r"line 1: .*very long field"):
        read(tmp_path, "wide.csv", "a" * 200_000 + "\n1\n")
