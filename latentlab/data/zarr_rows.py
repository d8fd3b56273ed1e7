"""Rows of a Zarr array that stays on disk: metadata are checked before anything is decompressed, and nothing is unpickled.

Zarr reads a missing chunk as the fill value, and does not detect a replaced chunk. Both are refused here.
"""

import contextlib
import itertools
import json
import math
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import CancelledError
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from latentlab.data.memory import COPIES, Budget, size
from latentlab.data.rows import Read, Rows, check_matrix
from latentlab.errors import DataError, MissingDependencyError

METADATA = {3: "zarr.json", 2: ".zarray"}
"""File with the metadata of an array, by version of the format."""

MOST_METADATA = 2**20
"""Largest number of bytes of a metadata file."""

CODECS = ("bytes", "transpose", "gzip", "zstd", "blosc", "crc32c", "sharding_indexed")
"""Codecs that are accepted in format 3; others would be loaded as libraries by name, and one of them unpickles."""

COMPRESSORS = ("blosc", "zstd", "zlib", "gzip", "lz4", "bz2", "lzma")
"""Compressors that are accepted in format 2."""

Files = Mapping[str, tuple[int, ...]]
"""Inode, size and modification time of each file, by its name inside the folder."""


@dataclass(frozen=True)
class ZarrRows(Rows):
    """Rows of a Zarr array.

    Args:
        chunks: Shape of the part of the array in one file, a chunk or a shard.
        separator: Separator of the numbers in the name of such a file.
        prefix: Prefix of the name.
        files: Files in the folder when it was opened.
    """

    chunks: tuple[int, int]
    separator: str
    prefix: str
    files: Files = field(repr=False)

    @property
    def span(self) -> int:
        return self.chunks[0]

    @property
    def reach(self) -> int:
        return self.chunks[0]  # a chunk is decompressed as a whole

    @contextlib.contextmanager
    def reading(self) -> Iterator[Read]:
        array = _opened(self.path)

        def read(start: int, stop: int) -> np.ndarray:
            names = [self._name(i, j) for i in range(start // self.span, -(-stop // self.span)) for j in range(self._across)]
            self._check(names)
            try:
                rows = np.asarray(array[start:stop])
            except (DataError, CancelledError, MemoryError):
                raise
            except Exception as error:  # codecs raise various errors for a damaged chunk
                message = " ".join(str(error).split())[:200]
                raise DataError(f"{self.path}: units {start} to {stop - 1} cannot be decompressed: {message}") from error
            self._check(names)
            return rows

        with self._explained():
            yield read

    @property
    def _across(self) -> int:
        return -(-self.shape[1] // self.chunks[1])

    def _name(self, *numbers: int) -> str:
        return self.prefix + self.separator.join(map(str, numbers))

    def _check(self, names: list[str]) -> None:
        with self._explained():
            for name in [METADATA[3] if self.prefix else METADATA[2], *names]:
                if _identity((self.path / name).stat()) != self.files[name]:
                    raise DataError(f"{self.path}: {name} was changed after it was opened; load the data again.")


def zarr_rows(path: Path, budget: Budget) -> ZarrRows:
    """Open the rows of a Zarr array; only its metadata are read.

    Raises:
        DataError: The array is not a plain matrix of numbers, its codec is not accepted, or a chunk is missing.
        MissingDependencyError: zarr is not installed.
    """
    version = next((version for version, name in METADATA.items() if (path / name).is_file()), None)
    if version is None:
        raise DataError(f"{path}: the directory is not a Zarr array; it contains neither {METADATA[3]} nor {METADATA[2]}.")
    files = {str(file.relative_to(path)): _identity(file.stat()) for file in _files(path)}
    about = _metadata(path / METADATA[version])
    chunks, separator, prefix = (_of_format_3 if version == 3 else _of_format_2)(about, path)
    array = _opened(path)
    check_matrix(path, array.shape, array.dtype)
    shape = (int(array.shape[0]), int(array.shape[1]))
    if len(chunks) != 2 or min(chunks) < 1:
        raise DataError(f"{path}: the array declares the invalid chunk shape {chunks}.")
    rows = ZarrRows(path, shape, array.dtype, tuple(range(shape[1])), chunks, separator, prefix, files)
    down = -(-shape[0] // chunks[0])
    if down * rows._across > len(files):
        declared = f"{size(math.prod(shape) * array.dtype.itemsize)} in {down * rows._across} chunks"
        raise DataError(f"{path}: the array declares shape {shape} ({declared}), but the folder contains {len(files)} files.")
    budget.need(COPIES * chunks[0] * shape[1] * array.dtype.itemsize, f"{path}: a row of chunks")
    names = (rows._name(*numbers) for numbers in itertools.product(range(down), range(rows._across)))
    absent = next((name for name in names if name not in files), None)
    if absent is not None:
        raise DataError(
            f"{path}: the chunk {absent} is missing and would be read as the fill value {array.fill_value}; if its values equal "
            "the fill value, write the array with `write_empty_chunks`."
        )
    return rows


def _opened(path: Path) -> Any:
    try:
        import zarr
    except ImportError as error:
        raise MissingDependencyError(f"reading {path}", "zarr", "zarr") from error
    try:
        return zarr.open_array(path, mode="r")
    except Exception as error:  # zarr raises various errors for invalid arrays
        raise DataError(f"{path}: the directory is not a valid Zarr array: {' '.join(str(error).split())[:200]}") from error


def _metadata(file: Path) -> dict[str, Any]:
    with file.open("rb") as stream:
        text = stream.read(MOST_METADATA + 1)
    try:
        metadata = json.loads(text) if len(text) <= MOST_METADATA else None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file}: the file is not valid JSON: {' '.join(str(error).split())[:200]}") from error
    if not isinstance(metadata, dict):
        raise DataError(f"{file}: the file does not describe a Zarr array.")
    return metadata


def _of_format_3(about: dict[str, Any], path: Path) -> tuple[tuple[int, ...], str, str]:
    """Shape of a chunk, and separator and prefix of the names of chunks, in format 3; unaccepted codecs are refused."""
    if about.get("node_type") != "array":
        raise DataError(f"{path}: the directory is a Zarr {about.get('node_type')}; set `path` to one of its arrays.")
    if about.get("storage_transformers"):
        raise DataError(f"{path}: the array has storage transformers, which are not supported.")
    try:
        for codec in _codecs(about["codecs"]):
            if codec not in CODECS:
                raise DataError(f"{path}: the codec {codec!r} is not supported; supported codecs: {', '.join(CODECS)}.")
        if about["chunk_grid"]["name"] != "regular":
            raise DataError(f"{path}: the chunk grid {about['chunk_grid']['name']!r} is not supported; only regular grids are.")
        encoding = about["chunk_key_encoding"]
        separator = encoding.get("configuration", {}).get("separator", "/")
        if encoding["name"] != "default" or separator not in ("/", "."):
            raise DataError(f"{path}: the chunk key encoding {encoding['name']!r} with separator {separator!r} is not supported.")
        return tuple(map(int, about["chunk_grid"]["configuration"]["chunk_shape"])), separator, f"c{separator}"
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: its {METADATA[3]} does not describe a Zarr array: {error!r}") from error


def _codecs(codecs: Any) -> Iterator[str]:
    """Yield the names of codecs, including those inside shards."""
    for codec in codecs:
        yield str(codec["name"])
        for inner in ("codecs", "index_codecs"):
            yield from _codecs((codec.get("configuration") or {}).get(inner, []))


def _of_format_2(about: dict[str, Any], path: Path) -> tuple[tuple[int, ...], str, str]:
    """Shape of a chunk, and separator and prefix of the names of chunks, in format 2; unaccepted compressors are refused."""
    try:
        if about.get("filters"):
            raise DataError(f"{path}: the filters {[one['id'] for one in about['filters']]} are not supported.")
        compressor = about.get("compressor")
        if compressor is not None and compressor["id"] not in COMPRESSORS:
            supported = ", ".join(COMPRESSORS)
            raise DataError(f"{path}: the compressor {compressor['id']!r} is not supported; supported compressors: {supported}.")
        separator = about.get("dimension_separator", ".")
        if separator not in ("/", "."):
            raise DataError(f"{path}: the dimension separator {separator!r} is not supported.")
        return tuple(map(int, about["chunks"])), separator, ""
    except (KeyError, TypeError) as error:
        raise DataError(f"{path}: its {METADATA[2]} does not describe a Zarr array: {error!r}") from error


def _files(folder: Path) -> Iterator[Path]:
    for parent, _, names in os.walk(folder):
        yield from (Path(parent) / name for name in names)


def _identity(status: os.stat_result) -> tuple[int, ...]:
    return status.st_ino, status.st_size, status.st_mtime_ns
