"""The run directory: written by one process at a time, each file atomically and with a checksum.

A file is written under a temporary name in the same folder, flushed to the disk, read back, compared, and then renamed.
`run.json` lists the finished files with the SHA-256 of each; files that it does not list are ignored. The writing process
holds the lock `.NAME.lock` beside the directory. A run that is replaced is kept as `.NAME.previous` until the new one is
complete, and is restored if the new one fails.
"""

import contextlib
import itertools
import json
import logging
import math
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from latentlab.errors import StoreError
from latentlab.files import Lock, append, explained, leftovers, now, sha256, write
from latentlab.results.netcdf import save

FORMAT = 1
"""Format version of the run directory; a newer version raises an error."""
COMPLETE = ("done", "not_converged")
"""States of a complete run; the others are running, failed and interrupted."""
RUN_JSON, CONFIG, LOG, EVENTS = "run.json", "config.yaml", "run.log", "events.jsonl"
CHECKPOINTS, PARAMS = "checkpoints", "params"
SUMMARY = "summary.json"
"""File with the row of the run in a table of runs; it is rebuilt if it is missing."""
TENSORBOARD = "tensorboard"
"""Folder of event files for TensorBoard; `run.json` does not list them, since they differ between equal runs."""
HELD_OUT = "held_out.csv"
"""File with the score of each held-out unit or point."""
REPORT = ("report.html", "report.json")
REBUILT = (LOG, EVENTS, *REPORT)
"""Files without a check on reading: they may be trimmed or rebuilt."""
ARRAYS = ("data.nc", "posterior.nc", "embeddings.nc", "comparison.nc", "comparison.csv", "verdicts.csv", "diagnostics.json")
"""Files with the results of a run."""
LOG_BYTES = 4_000_000
"""Largest size of `run.log`, and of the older part of the log, `run.log.1`."""
NOT_FINITE = {None: math.nan, "inf": math.inf, "-inf": -math.inf}
"""Encoding in JSON -> non-finite number."""


def place(name: str, root: str | Path = "runs") -> Path:
    """Return the directory `root/name`.

    Raises:
        StoreError: It is outside of `root`, by its name or by a link.

    Example:
        >>> place("ppca-wine").parts
        ('runs', 'ppca-wine')
    """
    path = Path(root) / name
    if path.resolve().parent != Path(root).resolve():
        raise StoreError(f"{path} must be inside of {root}/; got {path.resolve()}. Choose the directory by --out.")
    return path


class RunDirectory:
    """A run directory that is locked for this process inside a `with` block.

    Args:
        path: The directory; created by `begin`.

    Raises:
        StoreError: The directory cannot be written, or another process holds its lock.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).resolve()
        self.previous = self.path.with_name(f".{self.path.name}.previous")
        self.info: dict[str, Any] = {}
        self.lock = Lock(self.path.with_name(f".{self.path.name}.lock"))
        self.logger = logging.Logger("latentlab.run")
        self._handler = _LogFile(self.path / LOG)
        self.logger.addHandler(self._handler)

    def __enter__(self) -> "RunDirectory":
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise explained(self.path, error) from error
        self.lock.__enter__()
        try:
            self._finish_replacement()
        except BaseException:
            self.lock.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.lock.__exit__()

    def existing(self, *, overwrite: bool = False, resume: bool = False) -> dict[str, Any] | None:
        """Return `run.json` of the run to resume; None if a new run begins.

        Raises:
            StoreError: The path contains a run, without `overwrite` or `resume`; or it contains anything else.
        """
        if not self.path.exists():
            return None
        if not self.path.is_dir():
            raise StoreError(f"{self.path} is a file; choose a directory by --out.")
        names = sorted({entry.name for entry in self.path.iterdir()} - {entry.name for entry in leftovers(self.path)})
        if not names:
            return None
        if RUN_JSON not in names:
            raise StoreError(f"{self.path} contains {names[0]!r} but no run; choose another directory by --out.")
        if not is_run(self.path):
            raise StoreError(f"{self.path} contains a {RUN_JSON} not written by latentlab; choose another directory by --out.")
        if overwrite:
            return None
        info = read_info(self.path)
        if resume:
            return info
        state = "running, but its process has ended" if info["status"] == "running" else info["status"]
        raise StoreError(f"{self.path} contains a run ({state}); --overwrite replaces it, --resume continues it.")

    def begin(self, info: Mapping[str, Any], config: str, *, old: Mapping[str, Any] | None = None) -> None:
        """Begin the run: write `run.json`, `config.yaml` and the first event.

        Args:
            info: Entries of `run.json`.
            config: The resolved config as YAML.
            old: `run.json` of the run to resume, whose finished files are kept; None for a new run.
        """
        replaces = old is None and (self.path / RUN_JSON).exists()
        if replaces and self.previous.exists():
            _remove(self.path)  # left by an unfinished overwrite; the earlier run is still in .previous
        elif replaces:
            self.path.rename(self.previous)
        try:
            self._begin(info, config, old)
        except BaseException as error:
            if replaces:
                _remove(self.path)
                self.previous.rename(self.path)
            raise explained(self.path, error) if isinstance(error, OSError) else error from error.__cause__

    def _begin(self, info: Mapping[str, Any], config: str, old: Mapping[str, Any] | None) -> None:
        self.path.mkdir(exist_ok=True)
        for folder in (self.path / CHECKPOINTS, self.path / PARAMS):
            if folder.is_symlink():
                raise StoreError(f"{folder} is a link; a run writes only inside its directory, so remove the link.")
            folder.mkdir(exist_ok=True)
        for folder in (self.path, self.path / CHECKPOINTS, self.path / PARAMS):
            for path in leftovers(folder):
                path.unlink()
        listed = {} if old is None else {name: entry for name, entry in old["files"].items() if name not in REBUILT}
        kept = {name: entry for name, entry in listed.items() if self._intact(name, entry)}
        self.info = {"format": FORMAT, "status": "running", "stage": "start", "error": None, **info, "files": kept}
        self._save_info()
        if CONFIG not in kept:
            self.write(CONFIG, config.encode())
        self.event("start" if old is None else "resume")
        for name in sorted(set(listed) - set(kept)):
            self.logger.warning("%s is missing or damaged; it will be recreated", name)
        if self.lock.taken_over:
            self.logger.warning("took over the lock of process %s, which has ended", self.lock.taken_over.get("pid"))

    def is_intact(self, info: Mapping[str, Any]) -> bool:
        """Whether a run is complete, and its files are unchanged, except those of `REBUILT`."""
        files = ((name, entry) for name, entry in info["files"].items() if name not in REBUILT)
        return info["status"] in COMPLETE and all(self._intact(name, entry) for name, entry in files)

    def has(self, name: str) -> bool:
        """Whether the file `name` is finished."""
        return name in self.info["files"]

    def write(self, name: str, data: bytes) -> None:
        """Write the file `name` and list it as finished."""
        write(self.path / name, data)
        self._list(name)

    def write_json(self, name: str, content: Any) -> None:
        """Write a JSON file; NaN becomes null, an infinity text."""
        self.write(name, (json.dumps(plain(content), indent=1, allow_nan=False) + "\n").encode())

    def write_table(self, name: str, table: pd.DataFrame) -> None:
        """Write a CSV file whose numbers are read back exactly."""
        self.write(name, table.to_csv(index=False, lineterminator="\n").encode())

    def write_tree(self, name: str, tree: xr.DataTree | xr.Dataset) -> None:
        """Write a netCDF file."""
        save(tree if isinstance(tree, xr.DataTree) else xr.DataTree(tree), self.path / name)
        self._list(name)

    def stage(self, stage: str) -> None:
        """Record the next stage in `run.json`, log and events."""
        self.info["stage"] = stage
        self._save_info()
        self.event("stage", stage=stage)
        self.logger.info("%s", stage)

    def event(self, event: str, **fields: Any) -> None:
        """Append a line to `events.jsonl`."""
        line = json.dumps(plain({"time": now(), "event": event, **fields}), allow_nan=False) + "\n"
        append(self.path / EVENTS, line.encode())

    def finish(self, status: str) -> None:
        """Complete the run: remove checkpoints, list the last files, and remove the run that it replaced."""
        self.info.update(stage="end", finished=now())
        self.logger.info("end: %s", status)
        self.event("end", status=status)
        _remove(self.path / CHECKPOINTS)
        self.list(*REBUILT)
        self.info["status"] = status
        self._save_info()
        _remove(self.previous)

    def stop(self, status: str, error: BaseException) -> Path:
        """End the run early: record the error, keep finished files, and after a failure restore the replaced run.

        Returns:
            The directory of the finished files.
        """
        message = str(error) or type(error).__name__
        self.info.update(status=status, finished=now())
        self.info["error"] = {"type": type(error).__name__, "message": message, "stage": self.info["stage"]}
        self.logger.error("%s at stage %s: %s", status, self.info["stage"], message)
        self.event("error", status=status, stage=self.info["stage"], error=type(error).__name__, message=message)
        self._save_info()
        if status != "failed" or not self.previous.is_dir():
            return self.path
        failed = next(p for p in self._names_of_failed() if not p.exists() or is_run(p))
        _remove(failed)
        self.path.rename(failed)
        self.previous.rename(self.path)
        return failed

    def _names_of_failed(self) -> Iterator[Path]:
        yield self.path.with_name(f"{self.path.name}.failed")
        yield from (self.path.with_name(f"{self.path.name}.failed-{i}") for i in itertools.count(2))

    def discard(self) -> None:
        """Remove the new run, and restore the run that it should replace."""
        _remove(self.path)
        if self.previous.is_dir():
            self.previous.rename(self.path)

    def list(self, *names: str) -> None:
        """List the existing ones of these files, with their present checksums."""
        for name in names:
            if (self.path / name).is_file():
                self._list(name, save=False)
        self._save_info()

    def _list(self, name: str, *, save: bool = True) -> None:
        path = self.path / name
        self.info["files"][name] = {"sha256": sha256(path), "bytes": path.stat().st_size}
        if save:
            self._save_info()

    def _save_info(self) -> None:
        write(self.path / RUN_JSON, (json.dumps(plain(self.info), indent=1, allow_nan=False) + "\n").encode())

    def _intact(self, name: str, entry: Mapping[str, Any]) -> bool:
        path = self.path / name
        return path.is_file() and not path.is_symlink() and sha256(path) == entry["sha256"]

    def _finish_replacement(self) -> None:
        """Complete or undo the replacement of a run that a killed process left unfinished."""
        if not self.previous.is_dir():
            return
        if not is_run(self.previous):
            raise StoreError(f"{self.previous} is not a run of latentlab; move it to another folder.")
        if not self.path.exists():
            self.previous.rename(self.path)
        elif (self.path / RUN_JSON).is_file() and read_info(self.path)["status"] in COMPLETE:
            _remove(self.previous)


class _LogFile(logging.Handler):
    """Handler that opens its file for each line, so that the log can be deleted, and is rotated when full."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path
        formatter = logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%dT%H:%M:%SZ")
        formatter.converter = time.gmtime
        self.setFormatter(formatter)

    def emit(self, record: logging.LogRecord) -> None:
        line = (self.format(record) + "\n").encode(errors="replace")[:LOG_BYTES]
        with contextlib.suppress(FileNotFoundError):
            if self._path.lstat().st_size + len(line) > LOG_BYTES:
                self._path.replace(self._path.with_name(f"{LOG}.1"))
        append(self._path, line)


def _remove(path: Path) -> None:
    if path.is_symlink():
        path.unlink()
    elif path.is_dir():
        shutil.rmtree(path)


def plain(value: Any) -> Any:
    """Convert a value for JSON: NaN becomes null, an infinity the text `inf` or `-inf`.

    Example:
        >>> plain([np.float64(0.5), float("nan"), np.inf, np.array([1, 2])])
        [0.5, None, 'inf', [1, 2]]
    """
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [plain(entry) for entry in value]
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def is_run(folder: Path) -> bool:
    """Whether the folder contains a run: `run.json` is valid, or it is damaged and all other files are files of a run."""
    if not (folder / RUN_JSON).is_file():
        return False
    try:
        read_info(folder)
    except StoreError:
        run_files = {RUN_JSON, CONFIG, *REBUILT, f"{LOG}.1", CHECKPOINTS, PARAMS, SUMMARY, TENSORBOARD, HELD_OUT, *ARRAYS}
        return {entry.name for entry in folder.iterdir()} - {entry.name for entry in leftovers(folder)} <= run_files
    return True


def read_info(folder: Path) -> dict[str, Any]:
    """Read `run.json` of a run directory.

    Raises:
        StoreError: It is missing or damaged, or a newer latentlab wrote it.
    """
    path = folder / RUN_JSON
    if not path.is_file():
        raise StoreError(f"{folder} is not a run directory: {RUN_JSON} is missing.")
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise StoreError(f"{path} is damaged: {' '.join(str(error).split())[:200]}; --overwrite starts the run again.") from error
    version = info.get("format") if isinstance(info, dict) else None
    if isinstance(version, int) and version > FORMAT:
        raise StoreError(f"{path} has format {version}, and this version of latentlab reads up to {FORMAT}; use a newer version.")
    files = info.get("files") if isinstance(info, dict) else None
    listed = isinstance(files, dict) and all(isinstance(e, dict) and {"sha256", "bytes"} <= set(e) for e in files.values())
    if not isinstance(version, int) or not listed or not {"status", "stage"} <= set(info):
        raise StoreError(
            f"{path} is damaged: format, status, stage, or files with hashes are missing; --overwrite starts the run again."
        )
    return info
