"""Tests of user vectors from files, matched by unit."""

import numpy as np
import pandas as pd
import pytest

from latentlab.data.dataset import Dataset
from latentlab.data.load import load_dataset
from latentlab.embeddings.embed import embed
from latentlab.errors import DataError, StoreError

UNITS = ["a", "b", "c", "d"]


@pytest.fixture
def dataset():
    return Dataset({"x": np.eye(4)}, dims={"x": ("unit", "feature")}, coords={"unit": UNITS}, name="toy")


@pytest.fixture
def frame():
    """The units are in another order than in the data, with one extra unit."""
    return pd.DataFrame({"id": ["d", "b", "e", "a", "c"], "one": [3.0, 1.0, 9.0, 0.0, -2.0], "two": [7.0, 5.0, 9.0, 4.0, 6.0]})


EXPECTED = [[0, 4], [1, 5], [-2, 6], [3, 7]]


def write_file(frame, path):
    if path.suffix == ".parquet":
        frame.to_parquet(path, index=False)
    elif path.suffix == ".npz":
        np.savez(path, **{name: frame[name].to_numpy(dtype=str if name == "id" else float) for name in frame})
    else:
        frame.to_csv(path, index=False, sep="\t" if ".tsv" in path.name else ",")
    return path


@pytest.mark.parametrize("name", ["mine.csv", "mine.tsv", "mine.csv.gz", "mine.npz", "mine.parquet"])
def test_vectors_of_a_file_are_matched_by_unit_name(name, dataset, frame, tmp_path):
    made = embed("file", dataset, path=write_file(frame, tmp_path / name), unit="id")
    assert made.values.tolist() == EXPECTED
    assert made.units.tolist() == UNITS
    assert (made.name, made.seeds) == ("file", ())
    assert made.notes == ("1 of 5 rows does not match any unit of the data, and was removed: 'e'",)
    assert made.options == {"path": str(tmp_path / name), "unit": "id", "columns": None, "kind": None}


def test_selected_columns_keep_order_and_signs(dataset, frame, tmp_path):
    path = write_file(frame.assign(one=-frame["one"]), tmp_path / "mine.csv")
    made = embed("file", dataset, path=str(path), unit="id", columns=["two", "one"], label="own")
    assert made.values.tolist() == [[4, 0], [5, -1], [6, 2], [7, -3]]
    assert made.label == "own"
    assert embed("file", dataset, path=str(path), unit="id", columns=["one"]).values.shape == (4, 1)
    assert embed("file", dataset, path=str(path), unit="id").label == "mine"


def test_rows_without_names_match_units_by_number(tmp_path):
    wine = load_dataset("wine")
    vectors = np.random.default_rng(0).standard_normal((178, 3))
    np.save(tmp_path / "mine.npy", vectors)
    path = str(tmp_path / "mine.npy")
    assert (embed("file", wine, path=path).values == vectors).all()
    some = wine.subset([5, 170, 2])
    assert (embed("file", some, path=path).values == vectors[[5, 170, 2]]).all(), "units keep their numbers"
    np.save(tmp_path / "mine.npy", np.column_stack([np.arange(178)[::-1], vectors]))
    assert (embed("file", wine, path=path, unit="0").values == vectors[::-1]).all()


def test_rows_without_a_matching_unit_are_noted(dataset, frame, tmp_path):
    path = tmp_path / "mine.csv"
    write_file(frame[frame["id"] != "e"], path)
    assert embed("file", dataset, path=str(path), unit="id").notes == ()
    more = pd.DataFrame({"id": [f"f{i}" for i in range(7)], "one": 1.0, "two": 2.0})
    write_file(pd.concat([frame, more]), path)
    made = embed("file", dataset, path=str(path), unit="id")
    assert made.notes == (
        "8 of 12 rows do not match any unit of the data, and were removed: 'e', 'f0', 'f1', 'f2', 'f3' and 3 more",
    )
    frame.set_index("id").rename_axis(None).to_csv(path)
    assert embed("file", dataset, path=str(path)).values.tolist() == EXPECTED, "the index that pandas writes names the rows"


def test_units_without_vectors_are_named(dataset, frame, tmp_path):
    path = str(write_file(frame[frame["id"] != "b"], tmp_path / "mine.csv"))
    with pytest.raises(DataError, match=r"embedding 'mine' has no values for 1 of 4 units: 'b'"):
        embed("file", dataset, path=path, unit="id")
    with pytest.raises(DataError, match=r"no values for 4 of 4 units: 'a', 'b', 'c', 'd'. The names of its units are '0', '1'"):
        embed("file", dataset, path=path, columns=["one", "two"])


def test_numbers_and_text_name_the_same_unit(frame, tmp_path):
    numbered = Dataset({"x": np.eye(3)}, dims={"x": ("unit", "feature")}, coords={"unit": [12, 3, 7]})
    path = write_file(pd.DataFrame({"id": [3, 7, 12], "one": [0.3, 0.7, 1.2]}), tmp_path / "mine.csv")
    assert embed("file", numbered, path=path, unit="id").values.ravel().tolist() == [1.2, 0.3, 0.7]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.assign(one=[3.0, None, 9.0, 0.0, 2.0]), "1 values are missing"),
        (lambda f: f.assign(id=["d", "b", "b", "a", "c"]), "'b'"),
        (lambda f: f.assign(one=["x", "1", "2", "3", "4"]), "'one'"),
        (lambda f: f.assign(one=[np.inf, 1, 2, 3, 4]), "(?i)inf"),
        (lambda f: f.rename(columns={"id": "name"}), "unknown column 'id'"),
        (lambda f: f[["id"]], "no columns remain"),
        (lambda f: f.iloc[:0], "no rows"),
    ],
)
def test_a_file_without_an_embedding_is_refused(change, message, dataset, frame, tmp_path):
    with pytest.raises(DataError, match=message) as caught:
        embed("file", dataset, path=str(write_file(change(frame), tmp_path / "mine.csv")), unit="id")
    assert "mine" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_of_vectors_is_named(dataset, tmp_path):
    with pytest.raises((DataError, StoreError), match=r"nothing\.csv: no such file"):
        embed("file", dataset, path=str(tmp_path / "nothing.csv"))


def test_nothing_is_unpickled(dataset, tmp_path):
    np.save(tmp_path / "mine.npy", np.array([[{}, 1.0]] * 4, dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match="pickle"):
        embed("file", dataset, path=str(tmp_path / "mine.npy"))
