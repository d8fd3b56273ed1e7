"""Tests of reading images from IDX, NPY and NPZ files, and of refusing invalid ones unread."""

import gzip
import io
import struct
import tracemalloc

import numpy as np
import pytest

from latentlab.data.images import images
from latentlab.data.load import load_dataset
from latentlab.errors import DataError

CODES = {"u1": 8, "i1": 9, ">i2": 11, ">i4": 12, ">f4": 13, ">f8": 14}
PIXELS = np.arange(24).reshape(4, 2, 3)
KINDS = np.array([3, 0, 9, 3])


def idx(array, dtype="u1", shape=None):
    """Returns the bytes of an IDX file, by the specification."""
    shape = array.shape if shape is None else shape
    return struct.pack(f">HBB{len(shape)}I", 0, CODES[dtype], len(shape), *shape) + array.astype(dtype).tobytes()


def npy(array):
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def put(folder, name, content):
    path = folder / name
    path.write_bytes(content)
    return str(path)


FILES = {
    "train-images-idx3-ubyte": idx(PIXELS),
    "train-images.idx3-ubyte.gz": gzip.compress(idx(PIXELS), mtime=0),
    "mine.idx": idx(PIXELS, ">f4"),
    "mine.IDX.GZ": gzip.compress(idx(PIXELS, ">i2"), mtime=0),
    "mine.npy": npy(PIXELS.astype("u1")),
}


@pytest.mark.parametrize("name", FILES)
def test_image_formats_are_read(tmp_path, name):
    dataset = images(put(tmp_path, name, FILES[name]))
    assert dataset.x.tolist() == PIXELS.reshape(4, 6).tolist()
    assert dataset.features.tolist() == [f"pixel_{i}_{j}" for i in range(2) for j in range(3)]
    assert dataset.labels is None


@pytest.mark.parametrize("dtype", CODES)
def test_every_pixel_type_is_read(tmp_path, dtype):
    given = PIXELS if dtype == "u1" else PIXELS - 12
    assert images(put(tmp_path, "a.idx", idx(given, dtype))).x.tolist() == given.reshape(4, 6).tolist()


def test_labels_come_from_a_file_or_an_array(tmp_path):
    path = put(tmp_path, "images.idx", idx(PIXELS))
    for name, content in (
        ("l-ubyte", idx(KINDS)),
        ("l-ubyte.gz", gzip.compress(idx(KINDS), mtime=0)),
        ("l.npy", npy(KINDS)),
    ):
        assert images(path, labels=put(tmp_path, name, content)).labels.tolist() == [3, 0, 9, 3]
    np.savez(tmp_path / "both.npz", x_train=PIXELS, y_train=KINDS)
    assert images(str(tmp_path / "both.npz"), labels="y_train").labels.tolist() == [3, 0, 9, 3]
    assert images(str(tmp_path / "both.npz"), labels=str(tmp_path / "l.npy")).labels.tolist() == [3, 0, 9, 3]


def test_number_of_images_and_array_of_an_archive_are_selected(tmp_path):
    path = put(tmp_path, "images.idx", idx(PIXELS))
    some = images(path, labels=put(tmp_path, "l.idx", idx(KINDS)), n_units=2)
    assert some.x.tolist() == PIXELS[:2].reshape(2, 6).tolist()
    assert some.labels.tolist() == [3, 0]
    np.savez_compressed(tmp_path / "parts.npz", x_train=PIXELS, y_train=KINDS, x_test=PIXELS[:1])
    path = str(tmp_path / "parts.npz")
    assert images(path, member="x_test").n_units == 1
    assert images(path, member="x_train", labels="y_train", n_units=3).labels.tolist() == [3, 0, 9]
    with pytest.raises(DataError, match=r"several arrays have three dims \(x_test, x_train\).*Set `member`"):
        images(path)
    with pytest.raises(DataError, match="no array has the name 'x'; the file contains x_test, x_train, y_train"):
        images(path, member="x")
    assert load_dataset("images", path=path, member="x_train", standardize=True).sizes == {"unit": 4, "feature": 6}


@pytest.mark.parametrize(
    ("name", "content", "options", "message"),
    [
        ("a.png", b"x", {}, "the file format is unknown; the file name must end in one of .idx, ubyte"),
        ("a.idx", b"", {}, "not a valid IDX file; it contains 0 B"),
        ("a.idx", b"\x00\x00\x08", {}, "not a valid IDX file"),
        ("a.idx", b"\x89PNG" + bytes(40), {}, "not a valid IDX file; its first bytes are 89 50 4e 47"),
        ("a.idx", idx(PIXELS).replace(b"\x00\x00\x08", b"\x00\x00\x07", 1), {}, "first bytes are 00 00 07 03"),
        ("a.idx", idx(PIXELS)[:-1], {}, r"declares shape \(4, 2, 3\) \(24 B\), but contains 23 B"),
        ("a.idx", idx(PIXELS) + b"\x00", {}, r"declares shape \(4, 2, 3\) \(24 B\), but contains 25 B"),
        ("a.idx", idx(PIXELS, shape=(2**32 - 1, 2**32 - 1, 2**32 - 1)), {}, r"declares shape .*EB\), but contains 24 B"),
        ("a.idx.gz", gzip.compress(idx(PIXELS)[:-1], mtime=0), {}, r"declares shape \(4, 2, 3\) \(24 B\), but contains 23 B"),
        ("a.idx.gz", gzip.compress(idx(PIXELS) + b"\x00", mtime=0), {}, "but contains more data"),
        ("a.idx.gz", gzip.compress(idx(PIXELS), mtime=0)[:-12], {}, "damaged"),
        ("a.idx.gz", idx(PIXELS), {}, "damaged"),
        ("a.idx", idx(PIXELS[0]), {}, r"expected numbers of shape \(n_images, n_rows, n_columns\); got uint8 of shape \(2, 3\)"),
        ("a.idx", idx(PIXELS[:0]), {}, r"got uint8 of shape \(0, 2, 3\)"),
        ("a.npy", npy(PIXELS[0]), {}, r"got int64 of shape \(2, 3\)"),
        ("a.npy", npy(PIXELS.astype(complex)), {}, "got complex128"),
        (
            "a.npy",
            npy(PIXELS).replace(b"(4, 2, 3), }", b"(9, 9, 9), }"),
            {},
            r"declares shape \(9, 9, 9\) \(5.8 kB\), but contains only 192 B",
        ),
        ("a.npz", b"PK", {}, "not a valid NPZ file"),
        ("a.idx", idx(PIXELS), {"n_units": 5}, r"`n_units` must be at most 4, the number of images; got 5"),
        ("a.idx", idx(PIXELS), {"n_units": 0}, "`n_units` must be a whole number of at least 1; got 0"),
        ("a.idx", idx(PIXELS), {"member": "x"}, "`member` applies only to NPZ files"),
        ("a.idx", idx(PIXELS), {"labels": "nowhere.idx"}, "nowhere.idx: no such file"),
    ],
)
def test_files_that_hold_no_images_are_refused(tmp_path, name, content, options, message):
    with pytest.raises(DataError, match=message) as caught:
        images(put(tmp_path, name, content), **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (idx(KINDS[:3]), "3 labels for the 4 images of"),
        (idx(PIXELS), r"expected labels as integers of shape \(n_images,\); got uint8 of shape \(4, 2, 3\)"),
        (idx(KINDS, ">f4"), "expected labels as integers .*; got >f4"),
    ],
)
def test_labels_that_do_not_match_the_images_are_refused(tmp_path, labels, message):
    path = put(tmp_path, "images.idx", idx(PIXELS))
    with pytest.raises(DataError, match=message):
        images(path, labels=put(tmp_path, "labels.idx", labels))


def refused_without_reading(path, message, **options):
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=message):
            images(path, **options)
        assert tracemalloc.get_traced_memory()[1] < 20e6
    finally:
        tracemalloc.stop()


def test_images_too_large_for_memory_are_refused_unread(tmp_path):
    shape = (10_000, 100, 100)
    header = struct.pack(">HBB3I", 0, 8, 3, *shape)
    packed = put(tmp_path, "bomb.idx.gz", gzip.compress(header + bytes(100_000_000), compresslevel=1))
    refused_without_reading(packed, r"10000 images of 100 by 100 pixels needs about 2.5 GB", max_bytes=10**9)
    refused_without_reading(packed, r"100 images of 100 by 100 pixels needs about 124.0 MB", max_bytes=10**8, n_units=100)
    # The header is modest, what follows is not.
    liar = put(tmp_path, "liar.idx.gz", gzip.compress(struct.pack(">HBB3I", 0, 8, 3, 1, 2, 3) + bytes(10**8), compresslevel=1))
    refused_without_reading(liar, "but contains more data")


def test_compression_bombs_are_refused(tmp_path):
    shape = (1000, 1000, 100)
    content = gzip.compress(struct.pack(">HBB3I", 0, 8, 3, *shape) + bytes(100_000_000))
    with pytest.raises(DataError, match=r"decompression bomb|of memory; half of the free memory"):
        images(put(tmp_path, "zeros.idx.gz", content))


def test_objects_are_not_unpickled(tmp_path):
    objects = np.full((2, 2, 2), None, dtype=object)
    stream = io.BytesIO()
    np.save(stream, objects, allow_pickle=True)
    with pytest.raises(DataError, match="got object of"):
        images(put(tmp_path, "a.npy", stream.getvalue()))
