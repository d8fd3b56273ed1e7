"""Reading of lines of a text file, plain or compressed, with strict decoding."""

import codecs
import gzip
import io
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from latentlab.data.memory import Budget
from latentlab.errors import DataError

LONGEST = 2**23
"""Largest number of characters of a line: enough for half a million columns; a file without line ends is refused early."""


class _Decompressed(io.BufferedIOBase):
    """Stream of the decompressed bytes of a compressed file; it raises an error if they exceed the budget."""

    def __init__(self, path: Path, budget: Budget) -> None:
        self._path, self._budget = path, budget
        self._raw = path.open("rb")
        self._source = gzip.GzipFile(fileobj=self._raw)
        self._n_bytes = 0

    def readable(self) -> bool:
        return True

    def read1(self, size: int = -1, /) -> bytes:
        try:
            chunk = self._source.read1(size)
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"{self._path}: the compressed file is damaged: {error}.") from error
        self._n_bytes += len(chunk)
        self._budget.decompress(self._raw.tell(), self._n_bytes, str(self._path))
        return chunk

    def read(self, size: int | None = -1, /) -> bytes:
        return self.read1(-1 if size is None else size)

    def close(self) -> None:
        self._source.close()
        self._raw.close()
        super().close()


def opened(path: Path, budget: Budget) -> Any:
    """Open a file as a stream of bytes, decompressed if its name ends in .gz."""
    return _Decompressed(path, budget) if path.suffix.lower() == ".gz" else path.open("rb")


def lines(path: Path, encoding: str, budget: Budget) -> Iterator[str]:
    """Yield the lines of a text file, plain or compressed, with strict decoding.

    Raises:
        DataError: A byte is invalid in the encoding (gives its offset) or NUL, the file is damaged or exceeds the budget, or a
            line is longer than `LONGEST`.
    """
    try:
        codec = codecs.lookup(encoding).name
        with (
            opened(path, budget) as stream,
            io.TextIOWrapper(stream, encoding="utf-8-sig" if codec == "utf-8" else codec, newline="") as decoded,
        ):
            for number, line in enumerate(iter(partial(decoded.readline, LONGEST + 1), ""), 1):
                if len(line) > LONGEST:
                    raise DataError(
                        f"{path}, line {number}: the line has more than {LONGEST} characters; save such a wide table as NPY or "
                        "Parquet."
                    )
                if "\0" in line:
                    raise DataError(f"{path}, line {number}: the line has a NUL byte; check whether `encoding` is utf-16.")
                yield line
    except LookupError as error:
        raise DataError(f"{path}: unknown text encoding {encoding!r}.") from error
    except UnicodeError as error:
        raise DataError(f"{path}: {_undecodable(path, encoding, budget)}") from error


def _undecodable(path: Path, encoding: str, budget: Budget) -> str:
    """Message on the first byte that is invalid in the encoding, which is found by a second pass."""
    decoder, offset = codecs.getincrementaldecoder(encoding)(), 0
    with opened(path, budget) as stream:
        while True:
            chunk = stream.read1(2**16)
            pending = decoder.getstate()[0]
            try:
                decoder.decode(chunk, final=not chunk)
            except UnicodeDecodeError as error:
                at = offset - len(pending) + error.start
                value = (pending + chunk)[error.start]
                guess = "utf-16" if at == 0 and chunk[:2] in (b"\xff\xfe", b"\xfe\xff") else "latin-1"
                return f"byte {at} (0x{value:02x}) is not valid {encoding}; set `encoding`, for example to {guess}."
            except UnicodeError as error:
                return f"the file is not valid {encoding} ({error}); set `encoding`."
            if not chunk:
                return f"the file is not valid {encoding}; set `encoding`."
            offset += len(chunk)
