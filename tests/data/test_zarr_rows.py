"""Tests that Zarr arrays on disk equal arrays in memory and that damaged ones are refused."""

import json
import os
import pickle
import shutil

import numpy as np
import pytest

from latentlab.data.file import file
from latentlab.errors import DataError, MissingDependencyError

zarr = pytest.importorskip("zarr")

KINDS = {
    "format 3": {"chunks": (13, 5)},
    "format 3, dots": {"chunks": (13, 5), "chunk_key_encoding": {"name": "default", "separator": "."}},
    "format 3, columns apart": {"chunks": (13, 2)},
    "format 3, shards": {"chunks": (5, 5), "shards": (20, 5)},
    "format 3, unpacked": {"chunks": (60, 5), "compressors": None},
    "format 2": {"chunks": (13, 5), "zarr_format": 2},
    "format 2, columns apart": {"chunks": (13, 2), "zarr_format": 2},
}


def table(dtype="<f4"):
    x = 10 * np.random.default_rng(0).standard_normal((60, 5))
    if np.dtype(dtype).kind == "f":
        x[3, 2] = np.nan
    return x.astype(dtype)


@pytest.fixture
def saved(tmp_path):
    """Saves a matrix as Zarr array and as NPY file and returns the paths."""

    def save(x=None, **options):
        x = table() if x is None else x
        path = tmp_path / "mine.zarr"
        shutil.rmtree(path, ignore_errors=True)
        zarr.create_array(path, data=x, **({"chunks": (13, 5)} | options))
        np.save(tmp_path / "mine.npy", x)
        return path

    return save


def opened(path, **options):
    return file(str(path), in_memory=False, **options)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_zarr_array_equals_the_table_in_memory(saved, kind):
    path = saved(**KINDS[kind])
    whole, lazy = file(str(path.with_suffix(".npy"))), opened(path)
    assert lazy.digest() == whole.digest()
    assert lazy.sample.digest() == whole.digest()
    index = np.array([59, 0, 13, 12, 3, 3, 25])
    np.testing.assert_array_equal(lazy.values(lazy.read(index)), whole.x[index])
    some = opened(path, columns=["4", "1"])
    np.testing.assert_array_equal(some.values(some.read(index)), whole.x[index][:, [4, 1]])


@pytest.mark.parametrize("kind", [">f8", "<f2", "<i4", "u1", "bool"])
@pytest.mark.parametrize("version", [2, 3])
def test_every_numeric_type_of_a_zarr_array_is_read(saved, kind, version):
    path = saved(table(kind), zarr_format=version)
    assert opened(path).digest() == file(str(path.with_suffix(".npy"))).digest()


def with_edited_metadata(path, change):
    """Changes the metadata of an array."""
    name = path / ("zarr.json" if (path / "zarr.json").exists() else ".zarray")
    about = json.loads(name.read_text())
    change(about)
    name.write_text(json.dumps(about))
    return path


class Bomb:
    def __init__(self, canary):
        self.canary = str(canary)

    def __reduce__(self):
        return os.mkdir, (self.canary,)


@pytest.mark.parametrize(
    ("options", "change", "said"),
    [
        (
            {},
            lambda a: a["codecs"].append({"name": "numcodecs.pickle", "configuration": {}}),
            "codec 'numcodecs.pickle' is not supported",
        ),
        (
            {"chunks": (5, 5), "shards": (20, 5)},
            lambda a: a["codecs"][0]["configuration"]["codecs"].append({"name": "own"}),
            "codec 'own'",
        ),
        (
            {"zarr_format": 2},
            lambda a: a.update(filters=[{"id": "pickle", "protocol": 5}]),
            r"the filters \['pickle'\] are not supported",
        ),
        ({"zarr_format": 2}, lambda a: a.update(compressor={"id": "pickle"}), "compressor 'pickle' is not supported"),
        ({"zarr_format": 2}, lambda a: a.update(dimension_separator="/../"), "dimension separator '/../' is not supported"),
        (
            {},
            lambda a: a["chunk_key_encoding"].update(configuration={"separator": "/../"}),
            "chunk key encoding .* is not supported",
        ),
        ({}, lambda a: a.update(storage_transformers=[{"name": "own"}]), "storage transformers"),
        ({}, lambda a: a.update(node_type="group"), "is a Zarr group"),
        ({}, lambda a: a.pop("codecs"), "does not describe a Zarr array"),
        ({}, lambda a: a["chunk_grid"].update(name="rectilinear"), "chunk grid 'rectilinear'"),
        ({}, lambda a: a.update(shape=[10**12, 5]), r"declares shape \(1000000000000, 5\) \(20\.0 TB .* contains 6 files"),
        ({}, lambda a: a.update(shape=[300]), "not a valid Zarr array|expected shape"),
        ({"zarr_format": 2}, lambda a: a.update(dtype="|O"), "not a valid Zarr array|Python objects"),
    ],
)
def test_zarr_metadata_are_checked_before_unpacking(saved, tmp_path, options, change, said):
    path = with_edited_metadata(saved(**options), change)
    for chunk in [found for found in path.rglob("*") if found.is_file() and "zarr" not in found.name and found.name[0] != "."]:
        chunk.write_bytes(pickle.dumps(Bomb(tmp_path / "canary")))
    with pytest.raises(DataError, match=said):
        opened(path)
    assert not (tmp_path / "canary").exists()


def test_a_missing_chunk_is_refused_not_read_as_zeros(saved):
    path = saved()
    (path / "c" / "2" / "0").unlink()
    with pytest.raises(DataError, match=r"the chunk c/2/0 is missing and would be read as the fill value 0\.0"):
        opened(path)


def test_a_damaged_chunk_is_named(saved):
    path = saved()
    chunk = path / "c" / "2" / "0"
    chunk.write_bytes(chunk.read_bytes()[:-7])
    with pytest.raises(DataError, match="units 26 to 38 cannot be decompressed"):
        opened(path)


def test_a_changed_chunk_is_refused(saved):
    path = saved()
    lazy = opened(path)
    os.utime(path / "c" / "2" / "0", ns=(0, 0))
    assert lazy.read(np.array([5])).shape == (1, 5)
    with pytest.raises(DataError, match="c/2/0 was changed after it was opened; load the data again"):
        lazy.read(np.array([5, 30]))
    os.utime(path / "zarr.json", ns=(0, 0))
    with pytest.raises(DataError, match=r"zarr\.json was changed"):
        lazy.read(np.array([5]))
    shutil.rmtree(path)
    with pytest.raises(DataError, match=r"not a valid Zarr array|cannot be read"):
        lazy.read(np.array([5]))


def test_chunks_too_large_for_memory_are_refused(saved):
    with pytest.raises(DataError, match="a row of chunks needs about 780 B of memory; `max_bytes` is 500 B"):
        opened(saved(), max_bytes=500)


def test_a_folder_without_a_zarr_array_is_refused(tmp_path, saved):
    (tmp_path / "empty.zarr").mkdir()
    with pytest.raises(DataError, match="the directory is not a Zarr array"):
        opened(tmp_path / "empty.zarr")
    with pytest.raises(DataError, match="For a Zarr array, set `in_memory: false`"):
        file(str(saved()))


def test_missing_zarr_is_reported_with_its_extra(saved, monkeypatch):
    import sys

    path = saved()
    monkeypatch.setitem(sys.modules, "zarr", None)
    with pytest.raises(MissingDependencyError, match=r"latentlab\[zarr\]"):
        opened(path)
