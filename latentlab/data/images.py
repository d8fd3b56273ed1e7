"""Reader of images in the formats of MNIST; each image becomes a row of pixels, and headers are checked before data are read."""

import math
import struct
from collections.abc import Callable
from pathlib import Path
from typing import IO

import numpy as np

from latentlab.data import binary, text
from latentlab.data.dataset import Dataset
from latentlab.data.file import existing_path
from latentlab.data.memory import COPIES, Budget, size
from latentlab.errors import DataError

TYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
"""Data type of the entries of an IDX file, by the third byte of the file."""
FORMATS = (".idx", "ubyte", ".idx.gz", "ubyte.gz", ".npy", ".npz")

Accept = Callable[[tuple[int, ...], np.dtype], None]


def images(
    path: str,
    labels: str | None = None,
    n_units: int | None = None,
    member: str | None = None,
    max_bytes: int | None = None,
) -> Dataset:
    """Images of one size in an IDX, NPY or NPZ file: a column `pixel_ROW_COLUMN` of unscaled values for each pixel.

    Files of MNIST and similar data sets are IDX, plain or compressed (train-images-idx3-ubyte.gz). Nothing is downloaded or
    unpickled. An NPY file, or an array of an NPZ file, has shape (n_images, n_rows, n_columns). Standardising requires
    `drop_constant` if a pixel is constant over all images.

    Args:
        path: Path of the file; its name ends in .idx, ubyte, .npy or .npz, or in .idx.gz or ubyte.gz.
        labels: A file of these formats with a whole number for each image; or, for an NPZ file, the name of one of its arrays.
        n_units: Number of images, from the first on; all if not given.
        member: Name of the array in an NPZ file; the only array of three dims if not given.
        max_bytes: Largest memory in bytes; half of the free memory if not given.

    Raises:
        DataError: The file is invalid, its size differs from the declared size, or the numbers of labels and images differ.

    Example:
        >>> import tempfile
        >>> where = Path(tempfile.mkdtemp()) / "two.idx"
        >>> _ = where.write_bytes(bytes([0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 3, 10, 20, 30, 40, 50, 60]))
        >>> images(str(where)).features.tolist(), images(str(where)).x.tolist()
        (['pixel_0_0', 'pixel_0_1', 'pixel_0_2'], [[10.0, 20.0, 30.0], [40.0, 50.0, 60.0]])
    """
    if n_units is not None and (isinstance(n_units, bool) or not isinstance(n_units, int) or n_units < 1):
        raise DataError(f"images: `n_units` must be a whole number of at least 1; got {n_units!r}.")
    where, budget = existing_path(path), Budget.of(max_bytes)
    if member is not None and _kind(where) != ".npz":
        raise DataError(f"{where}: `member` applies only to NPZ files; leave it out.")

    def accept(shape: tuple[int, ...], dtype: np.dtype) -> None:
        if len(shape) != 3 or 0 in shape or dtype.kind not in "buif":
            raise DataError(f"{where}: expected numbers of shape (n_images, n_rows, n_columns); got {dtype} of shape {shape}.")
        if n_units is not None and n_units > shape[0]:
            raise DataError(f"{where}: `n_units` must be at most {shape[0]}, the number of images; got {n_units}.")
        n_bytes = math.prod(shape[1:]) * ((n_units or shape[0]) * 8 * COPIES + shape[0] * dtype.itemsize)
        budget.need(n_bytes, f"{where}: {n_units or shape[0]} images of {shape[1]} by {shape[2]} pixels")

    try:
        pixels = _read(where, accept, budget, member)
        named = None if labels is None else _labels(labels, where, len(pixels), budget)
    except MemoryError as error:
        raise DataError(f"{where}: the images do not fit into memory; set a smaller `n_units`.") from error
    except OSError as error:
        raise DataError(f"{error.filename or where}: cannot be read: {error.strerror or error}.") from error
    pixels = pixels[:n_units]
    _, n_rows, n_columns = pixels.shape
    return Dataset(
        {"x": pixels.reshape(len(pixels), -1)},
        dims={"x": ("unit", "feature")},
        coords={"feature": [f"pixel_{row}_{column}" for row in range(n_rows) for column in range(n_columns)]},
        labels=None if named is None else named[:n_units],
        name=where.name.split(".")[0] or where.name,
    )


def _labels(labels: str, images: Path, n_images: int, budget: Budget) -> np.ndarray:
    """Read a label for each image, from a file or from another array of an NPZ file."""
    member, where = None, images
    if not (_kind(images) == ".npz" and isinstance(labels, str) and not Path(labels).exists()):
        where = existing_path(labels)
    else:
        member = labels

    def accept(shape: tuple[int, ...], dtype: np.dtype) -> None:
        if len(shape) != 1 or dtype.kind not in "bui":
            raise DataError(f"{where}: expected labels as integers of shape (n_images,); got {dtype} of shape {shape}.")
        if shape[0] != n_images:
            raise DataError(f"{where}: {shape[0]} labels for the {n_images} images of {images}; expected one for each.")

    return _read(where, accept, budget, member).astype(np.int64)


def _kind(path: Path) -> str:
    name = path.name.lower()
    kind = next((ending for ending in FORMATS if name.endswith(ending)), None)
    if kind is None:
        raise DataError(f"{path}: the file format is unknown; the file name must end in one of {', '.join(FORMATS)}.")
    return kind


def _read(path: Path, accept: Accept, budget: Budget, member: str | None) -> np.ndarray:
    kind = _kind(path)
    if kind == ".npy":
        return binary.array(path, accept, budget)
    if kind == ".npz":
        return _member(path, accept, budget, member)
    with text.opened(path, budget) as stream:
        return _idx(stream, path, accept, compressed=kind.endswith(".gz"))


def _member(path: Path, accept: Accept, budget: Budget, member: str | None) -> np.ndarray:
    with binary.opened(path, budget) as members:
        names = [name for name, (shape, _) in members.headers.items() if len(shape) == 3]
        if member is None and len(names) != 1:
            what = f"several arrays have three dims ({', '.join(sorted(names))})" if names else "no array has three dims"
            present = ", ".join(sorted(members.headers))
            raise DataError(f"{path}: {what}; the file contains {present}. Set `member` to the array of images.")
        chosen = names[0] if member is None else member
        if chosen not in members.headers:
            raise DataError(f"{path}: no array has the name {chosen!r}; the file contains {', '.join(sorted(members.headers))}.")
        accept(*members.headers[chosen])
        return members.read(chosen)


def _idx(stream: IO[bytes], path: Path, accept: Accept, *, compressed: bool) -> np.ndarray:
    """Read the array of an IDX file: two zeros, type, number of dims, sizes (32-bit big-endian), entries."""
    zeros, kind, n_dims = struct.unpack(">HBB", _exactly(stream, 4, path))
    if zeros or kind not in TYPES:
        first_bytes = struct.pack(">HBB", zeros, kind, n_dims).hex(" ")
        raise DataError(f"{path}: the file is not a valid IDX file; its first bytes are {first_bytes}.")
    shape = struct.unpack(f">{n_dims}I", _exactly(stream, 4 * n_dims, path))
    dtype = np.dtype(TYPES[kind])
    n_bytes = math.prod(shape) * dtype.itemsize
    declared = f"the file declares shape {shape} ({size(n_bytes)})"
    if not compressed and n_bytes != (n_present := path.stat().st_size - 4 - 4 * n_dims):
        raise DataError(f"{path}: {declared}, but contains {size(n_present)}.")
    accept(shape, dtype)
    content = _exactly(stream, n_bytes, path, f"{declared}, but")
    if stream.read(1):
        raise DataError(f"{path}: {declared}, but contains more data.")
    return np.frombuffer(content, dtype).reshape(shape)


def _exactly(stream: IO[bytes], n_bytes: int, path: Path, problem: str = "the file is not a valid IDX file; it") -> bytes:
    parts, left = [], n_bytes
    while left and (part := stream.read(min(left, 2**20))):
        parts.append(part)
        left -= len(part)
    if left:
        raise DataError(f"{path}: {problem} contains {size(n_bytes - left)}.")
    return b"".join(parts)
