"""Trackers: receivers of a run's settings, live values and results, beside the run directory, which remains the record.

A tracker is a class with the methods of `Tracker`, and its options are the arguments of its constructor, which starts nothing. If
a method raises an error, the run continues without this tracker.
"""

import importlib.util
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from latentlab.errors import MissingDependencyError


class Tracker:
    """Base class of trackers, whose methods do nothing."""

    def begin(self, folder: Path, config: Mapping[str, Any], info: Mapping[str, Any]) -> None:
        """Begin, or continue a resumed run.

        Args:
            folder: The run directory.
            config: The resolved config.
            info: Entries of `run.json`, such as `seed`, `versions`, `data`, and `resumed` if the run is resumed.
        """

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Receive live values of the inference method by name, about once a second, after `step` steps or iterations."""

    def end(self, results: Mapping[str, Any]) -> None:
        """End after the last file of the run.

        Args:
            results: Columns of `latentlab.study.rows.RunRow`, results and times; only `status` and `error` if the run failed.
        """


def require(what: str, extra: str, *packages: str) -> None:
    """Check that the packages of an extra are installed, without importing them.

    Raises:
        MissingDependencyError: Names the first missing package.
    """
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise MissingDependencyError(what, package, extra)


def flat(values: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the values of nested mappings and lists with their dotted keys.

    Example:
        >>> dict(flat({"model": {"name": "ppca"}, "embeddings": [{"name": "pca"}], "tracking": []}))
        {'model.name': 'ppca', 'embeddings.0.name': 'pca'}
    """
    if isinstance(values, Mapping | list):
        for key, value in values.items() if isinstance(values, Mapping) else enumerate(values):
            yield from flat(value, f"{prefix}{key}.")
    else:
        yield prefix.removesuffix("."), values


def numbers(results: Mapping[str, Any]) -> dict[str, float]:
    """Return the finite numbers among the results; true is 1.

    Example:
        >>> numbers({"converged": True, "status": "done", "ess_min": 400, "elpd_loo": float("nan")})
        {'converged': 1.0, 'ess_min': 400.0}
    """
    return {key: float(value) for key, value in results.items() if not isinstance(value, str) and math.isfinite(value)}
