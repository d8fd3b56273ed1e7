"""Input, output and checkpoints of an inference method."""

import contextlib
import hashlib
import io
import json
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, Protocol

import numpy as np
import torch

from latentlab.data.memory import ALIGNMENT, MEMORY, Place, parts
from latentlab.data.stored import StoredDataset
from latentlab.errors import LostProcessError, StoreError
from latentlab.files import write
from latentlab.inference.density import Density
from latentlab.models.base import Arrays, LatentModel
from latentlab.processes import Processes, current
from latentlab.seeds import Seeds

HASH = hashlib.sha256().digest_size
"""Number of bytes of the hash at the beginning of a checkpoint."""
FORMAT = "2"
"""Version of the checkpoints' content; part of their hash."""
CODES = {"f8": "F64", "f4": "F32", "i8": "I64", "i4": "I32", "u1": "U8", "b1": "BOOL"}
"""Types of arrays in checkpoints -> their names in the format safetensors."""
DTYPES = {code: np.dtype(kind) for kind, code in CODES.items()}
DRAWS = "draws"
"""Name of the checkpoint with a method's result."""
START = "start"
"""Name of the checkpoint with hashes of the weights of modules at the start."""
MONITOR_SECONDS = 1.0
"""Shortest time between two calls of a monitor."""
MONITOR_SHARE = 0.05
"""Largest share of the time that the calls of a monitor take."""


@dataclass(frozen=True)
class Draws:
    """Draws of the program's sites, `(chain, draw, *site)`; a point estimate is one chain of equal draws.

    `restarts` contains the final values of each restart of an optimiser, `(restart, *site)`. `parameters` contains one value of
    each of the model's parameters.
    """

    values: dict[str, np.ndarray]
    stats: dict[str, np.ndarray] = field(default_factory=dict)
    optimization: dict[str, np.ndarray] = field(default_factory=dict)
    restarts: dict[str, np.ndarray] = field(default_factory=dict)
    attrs: dict[str, Any] = field(default_factory=dict)
    parameters: dict[str, np.ndarray] = field(default_factory=dict)


class Monitor:
    """Passes the state of a method to a function while it runs, about once a second.

    Args:
        send: Function of the number of completed steps, and of numbers by name.
    """

    def __init__(self, send: Callable[[int, Mapping[str, float]], object]) -> None:
        self._send, self._due = send, 0.0

    def __call__(self, live: Callable[[], tuple[int, Mapping[str, float]]], *, last: bool = False) -> None:
        """Send the result of `live` if it is due, or if it is the `last` one."""
        begin = time.monotonic()
        if begin >= self._due or last:
            self._send(*live())
            end = time.monotonic()
            self._due = end + max(MONITOR_SECONDS, (end - begin) / MONITOR_SHARE)


@dataclass(frozen=True)
class Problem:
    """A model with its data, ready for any method.

    `checkpoint` is the folder for checkpoints, if any; `identity` distinguishes the fit from others with checkpoints there. For
    data on disk (`stored`), arrays and density are those of a sample of units, but the density's `n_points` counts all units.
    `resources` are closed when the fit ends, with or without an error. `log` is called with each line for the log, and `monitor`
    after each step. If `separate`, chains or restarts are computed one by one instead of in a batch, so that results of tasks do
    not depend on their grouping. If several `processes` fit the model together, only the first one has a folder for checkpoints,
    and only its results are used. Large arrays of draws are kept in `place`.
    """

    model: LatentModel
    arrays: Arrays
    density: Density
    seeds: Seeds
    progress: bool = True
    checkpoint: Path | None = None
    identity: str = ""
    stored: StoredDataset | None = None
    resources: contextlib.ExitStack = field(default_factory=contextlib.ExitStack, compare=False)
    log: Callable[[str], object] | None = None
    monitor: Monitor | None = None
    separate: bool = False
    processes: Processes = field(default_factory=current, compare=False)
    place: Place = MEMORY


class Method(Protocol):
    """An inference method: a frozen dataclass of settings with a name and one function.

    A method with independent chains or restarts has two more: `parts()` returns their names, and `part(problem, i)` the arrays of
    one, from its checkpoint or computed.
    """

    name: ClassVar[str]
    kind: ClassVar[str]
    n_draws: int

    def run(self, problem: Problem) -> Draws:
        """Return draws from the posterior or an approximation of it."""
        ...


def from_checkpoint(problem: Problem, part: str, compute: Callable[[], Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Return the arrays of `part` (the chains, a restart): from its checkpoint, or else computed and saved.

    Processes other than the first one do not use finished parts; they get no arrays from a checkpoint.
    """
    checkpoint = read_checkpoint(problem, part, for_all=False)
    if checkpoint is not None:
        return checkpoint
    arrays = {name: aligned(array) for name, array in compute().items()}
    write_checkpoint(problem, part, arrays)
    return arrays


def finished_draws(problem: Problem, method: Method) -> Draws:
    """Return the draws of a method, saved before results are assembled, so that a later failure does not require another fit."""
    arrays = read_checkpoint(problem, DRAWS, for_all=False)
    if arrays is None:
        arrays = _packed(method.run(problem))
        write_checkpoint(problem, DRAWS, arrays)
    if problem.processes.size > 1:
        problem.processes.finish()
    return Draws({}) if problem.processes.rank else _unpacked(arrays)


def _packed(draws: Draws) -> dict[str, np.ndarray]:
    """Return the draws as arrays by name, with the attributes as JSON."""
    groups = {one.name: getattr(draws, one.name) for one in fields(draws)}
    attrs = json.dumps(groups.pop("attrs"), default=lambda value: value.tolist())
    arrays = {f"{part}/{name}": aligned(array) for part, named in groups.items() for name, array in named.items()}
    return {**arrays, "attrs": np.frombuffer(attrs.encode(), dtype=np.uint8)}


def _unpacked(arrays: dict[str, np.ndarray]) -> Draws:
    attrs = json.loads(arrays.pop("attrs").tobytes())
    groups: dict[str, dict[str, np.ndarray]] = {}
    for key, array in arrays.items():
        part, _, name = key.partition("/")
        groups.setdefault(part, {})[name] = array
    return Draws(**{"values": {}, **groups}, attrs=attrs)


def write_checkpoint(problem: Problem, part: str, arrays: Mapping[str, np.ndarray]) -> None:
    """Write the arrays of `part` into the problem's folder for checkpoints, if it has one."""
    if problem.checkpoint is not None:
        problem.checkpoint.mkdir(parents=True, exist_ok=True)
        path = _path(problem, part)

        def fill(stream: BinaryIO) -> None:
            digest = _hash(problem)
            stream.write(bytes(HASH))
            for block in _content(arrays):
                stream.write(block)
                digest.update(block)
            stream.seek(0)
            stream.write(digest.digest())

        def check(written: Path) -> None:
            if not _is_intact(problem, written):
                raise StoreError(f"{path}: the written file reads back differently; the disk may be faulty.")

        write(path, fill, check)


def _content(arrays: Mapping[str, np.ndarray]) -> Iterator[bytes]:
    """Yields the arrays in the format of safetensors, block by block; names are numbered, since the format has no order."""
    header, end = {}, 0
    for i, (name, array) in enumerate(arrays.items()):
        begin, end = end, end + array.nbytes
        header[f"{i} {name}"] = {"dtype": CODES[array.dtype.str[1:]], "shape": list(array.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for array in arrays.values():
        yield from (block.tobytes() for block in parts(array))


class Checkpointer:
    """Writer of checkpoints: saves the latest state of a part at intervals, and on an interrupt or an error.

    Args:
        problem: The problem, with the folder for checkpoints.
        part: Name of the part.
        every: Seconds between two checkpoints.
    """

    def __init__(self, problem: Problem, part: str, every: float) -> None:
        self._problem, self._part, self._every = problem, part, every
        self._latest: Callable[[], Mapping[str, np.ndarray]] | None = None
        self._saved = time.monotonic()

    def __call__(self, arrays: Callable[[], Mapping[str, np.ndarray]]) -> None:
        """Record the state of the part; its arrays are evaluated when they are written."""
        self._latest = arrays
        if time.monotonic() - self._saved > self._every:
            self._save()

    def _save(self) -> None:
        if self._latest is not None:
            write_checkpoint(self._problem, self._part, self._latest())
        self._saved = time.monotonic()

    def __enter__(self) -> "Checkpointer":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None or issubclass(kind, MemoryError):
            return
        if issubclass(kind, KeyboardInterrupt | LostProcessError):
            self._save()
        else:
            with contextlib.suppress(OSError):  # the error that is raised has its own reason, such as a full disk
                self._save()


def read_checkpoint(problem: Problem, part: str, *, for_all: bool = True) -> dict[str, np.ndarray] | None:
    """Read the arrays written by `write_checkpoint`, in their order; None if there are none.

    A checkpoint that is damaged or of another fit also gives None, with a warning. All processes of a fit get the arrays that the
    first one reads. Unless they are `for_all`, the others get an empty dict instead, and the file is not sent to them.
    """
    path = _intact_file(problem, part)
    if problem.processes.size > 1:
        content = problem.processes.from_first(None if path is None else path.read_bytes() if for_all else b"")
        if content is None:
            return None
        if for_all:
            return _read_arrays(problem, io.BytesIO(content))
        if problem.processes.rank:
            return {}
    return None if path is None else read_own(problem, part)


def read_own(problem: Problem, part: str) -> dict[str, np.ndarray]:
    """Read the arrays of a valid checkpoint in this process."""
    with _path(problem, part).open("rb") as stream:
        return _read_arrays(problem, stream)


def _path(problem: Problem, part: str) -> Path:
    """Return the file of a checkpoint."""
    return (problem.checkpoint or Path()) / f"{part}.safetensors"


def _intact_file(problem: Problem, part: str) -> Path | None:
    """Return the file of a checkpoint; None if there is none, or, with a warning, if it is damaged or of another fit."""
    path = _path(problem, part)
    if problem.checkpoint is None or not path.is_file():
        return None
    if not _is_intact(problem, path):
        warnings.warn(
            f"the checkpoint {path.name} is damaged or belongs to another fit; its results are computed again.", stacklevel=4
        )
        return None
    return path


def _read_arrays(problem: Problem, stream: BinaryIO) -> dict[str, np.ndarray]:
    """Read the arrays of a checkpoint into the place of draws, by blocks."""
    stream.seek(HASH)
    header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
    first, arrays = stream.tell(), {}
    for key in sorted(header, key=lambda key: int(key.partition(" ")[0])):
        array = problem.place.empty(tuple(header[key]["shape"]), DTYPES[header[key]["dtype"]])
        stream.seek(first + header[key]["data_offsets"][0])
        for block in parts(array):
            buffer: Any = block.reshape(-1).view(np.uint8)
            stream.readinto(buffer)  # type: ignore[attr-defined]
        arrays[key.partition(" ")[2]] = array
    return arrays


def has_checkpoint(problem: Problem, part: str) -> bool:
    """Whether there is a valid checkpoint of `part`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _intact_file(problem, part) is not None


def aligned(array: np.ndarray) -> np.ndarray:
    """Return the array in C order and aligned to 64 bytes, like torch's tensors; the last digits of products depend on it."""
    rows = np.asarray(array, order="C")
    if rows.ctypes.data % ALIGNMENT == 0 and rows.flags.writeable:
        return rows
    return torch.from_numpy(rows.copy()).clone().numpy()


def _hash(problem: Problem) -> Any:
    """Begins the hash of a checkpoint: its format, and the fit that it is a part of, followed by its content."""
    return hashlib.sha256(f"{FORMAT} {problem.identity}".encode())


def _is_intact(problem: Problem, path: Path) -> bool:
    """Whether a checkpoint begins with the hash of its content and of this fit."""
    digest = _hash(problem)
    with path.open("rb") as stream:
        expected = stream.read(HASH)
        while block := stream.read(2**24):
            digest.update(block)
    return bool(digest.digest() == expected)
