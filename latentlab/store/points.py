"""The points of a sweep in its directory: `sweep.json` with their values, and `failed.json` with the errors of failed ones."""

import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latentlab.errors import StoreError
from latentlab.files import write

SWEEP_JSON = "sweep.json"
FAILED = "failed.json"
"""File with the error of each point that failed, by its name; a point can fail before its directory exists."""
FORMAT = 1


@dataclass(frozen=True)
class Points:
    """Content of `sweep.json`.

    Args:
        name: Name of the sweep.
        values: Values of the swept keys by name of the point.
        config: The config without its `sweep` block; empty in older sweeps.
        search: The block `sweep.search` without its number of points; empty if all points were known before the start.
    """

    name: str
    values: Mapping[str, dict[str, Any]]
    config: Mapping[str, Any]
    search: Mapping[str, Any]


def is_sweep(path: str | Path) -> bool:
    """Whether the folder holds a sweep."""
    return (Path(path) / SWEEP_JSON).is_file()


def read_points(folder: Path) -> Points:
    """Read `sweep.json`.

    Raises:
        StoreError: There is no sweep, a newer latentlab wrote it, or the file is damaged.
    """
    path = folder / SWEEP_JSON
    if not path.is_file():
        raise StoreError(f"{folder} contains no sweep: {SWEEP_JSON} is missing.")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        version = int(found["format"])
        points = Points(str(found["name"]), dict(found["points"]), dict(found.get("config", {})), dict(found.get("search", {})))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreError(
            f"{path} is damaged: {' '.join(str(error).split())[:200]}; remove it, and call the sweep again."
        ) from error
    if version > FORMAT:
        raise StoreError(f"{path} has format {version}; this latentlab reads up to {FORMAT}. Use a newer one.")
    return points


def write_points(folder: Path, points: Points) -> None:
    """Write `sweep.json`."""
    content: dict[str, Any] = {"format": FORMAT, "name": points.name, "points": points.values}
    content |= {key: value for key, value in (("config", points.config), ("search", points.search)) if value}
    write(folder / SWEEP_JSON, (json.dumps(content, indent=1, default=str) + "\n").encode())


def failures(folder: Path) -> dict[str, str]:
    """Errors of the failed points by name."""
    with contextlib.suppress(FileNotFoundError, ValueError):  # without the file, a failed point is run again
        return dict(json.loads((folder / FAILED).read_text(encoding="utf-8")))
    return {}


def record_failure(folder: Path, name: str, error: str | None) -> None:
    """Record the error of a point, or that it has none."""
    found = failures(folder)
    if found.pop(name, None) != error:
        content = found if error is None else {**found, name: error}
        write(folder / FAILED, (json.dumps(content, indent=1) + "\n").encode())
