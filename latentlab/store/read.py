"""Reading of run directories."""

import json
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
import yaml

from latentlab.data.dataset import Dataset
from latentlab.data.memory import n_not_finite
from latentlab.errors import DataError, StoreError
from latentlab.files import sha256
from latentlab.results.netcdf import load
from latentlab.results.tree import kinds
from latentlab.store.data import DATA, dataset_of
from latentlab.store.directory import COMPLETE, CONFIG, HELD_OUT, NOT_FINITE, REBUILT, REPORT, RUN_JSON, read_info

RENAMED = {"knew": "uncertainty_correlation", "knew_p": "uncertainty_correlation_p"}
"""Former names of variables in comparison.nc -> present ones."""
TEXT = ("metric", "embedding", "units", "seed", "map", "direction", "alignment", "verdict", "component", "worst_units")
"""Columns of the CSV files that are always read as text."""


@dataclass(frozen=True, repr=False)
class Run:
    """A run directory; each part is loaded at its first use.

    Args:
        path: The directory.
        config: The resolved config.
        info: `run.json`.
    """

    path: Path
    config: dict[str, Any]
    info: dict[str, Any]

    def __repr__(self) -> str:
        return "\n".join(self.summary())

    def summary(self) -> list[str]:
        """Return a few lines: convergence, failed checks, the verdict on each embedding, and the path of the page."""
        status = str(self.info["status"])
        state = {"done": "done, converged", "not_converged": "done, not converged"}.get(status, status)
        if status not in (*COMPLETE, "running"):
            state += f" at stage {self.info['stage']!r}"
        lines = [f"{self.path}: {state}"]
        if "diagnostics.json" in self.info["files"]:
            failed = self.diagnostics.query("verdict == 'fail'").groupby("check", sort=False)["quantity"].agg(list)
            lines += [f"  failed check: {check} ({_first(quantities)})" for check, quantities in failed.items()]
        if "verdicts.csv" in self.info["files"]:
            lines += [f"  {line}" for line in _verdict_lines(self.verdicts)]
        page = self.path / REPORT[0]
        return [*lines, f"  report: {page}" if page.is_file() else "  no report"]

    @cached_property
    def data(self) -> Dataset | None:
        """Fitted data set, with labels and hidden truth; None in an older run without data.nc."""
        if DATA not in self.info["files"]:
            return None
        path = self._part(DATA)
        tree = load(path, groups=())
        try:
            return dataset_of(tree)
        except (DataError, KeyError, TypeError, ValueError) as error:
            raise StoreError(f"{path}: not the data of a run: {type(error).__name__}: {error}") from error

    @cached_property
    def posterior(self) -> xr.DataTree:
        """Results of inference in ArviZ's schema."""
        path = self._part("posterior.nc")
        tree = load(path, groups=("posterior", "latents"), memory=self.info.get("memory"))
        for group in ("posterior", "latents"):
            for name, array in tree[group].data_vars.items():
                if n_not_finite(array.values):
                    raise StoreError(f"{path}, group {group!r}: {name!r} contains non-finite values.")
        return tree

    @cached_property
    def embeddings_by_kind(self) -> dict[str, xr.Dataset]:
        """Kind of units -> a variable for each embedding that places it, by its label; a table has the one kind `unit`."""
        return self._by_kind("embeddings.nc")

    @cached_property
    def comparison_by_kind(self) -> dict[str, xr.Dataset]:
        """Kind of units -> scores over draws, ceilings, floors, coverage and disagreement per unit."""
        return self._by_kind("comparison.nc")

    @property
    def embeddings(self) -> xr.Dataset:
        """Embeddings of the first kind of units."""
        return next(iter(self.embeddings_by_kind.values()))

    @property
    def comparison(self) -> xr.Dataset:
        """Comparison of the first kind of units."""
        return next(iter(self.comparison_by_kind.values()))

    def _by_kind(self, name: str) -> dict[str, xr.Dataset]:
        """Return the groups of a file by kind of units; its root if there is one kind."""
        tree = load(self._part(name), groups=())
        if not tree.children:
            written = str(tree.attrs.get("units", ""))  # older runs have none
            return {written or kinds(self.posterior)[0]: self._renamed(tree.to_dataset(), name)}
        return {str(kind): self._renamed(node.to_dataset(inherit=False), name) for kind, node in tree.children.items()}

    def _renamed(self, data: xr.Dataset, name: str) -> xr.Dataset:
        """Replace former names of variables, with a warning."""
        former = {old: new for old, new in RENAMED.items() if name == "comparison.nc" and old in data}
        if former:
            changes = ", ".join(f"{old!r} is now {new!r}" for old, new in former.items())
            warnings.warn(f"{self.path / name} has former names of variables: {changes}.", FutureWarning, stacklevel=4)
        return data.rename(former)

    @cached_property
    def scores(self) -> pd.DataFrame:
        """The table comparison.csv."""
        return _parsed(self._part("comparison.csv"), _read_table)

    @cached_property
    def verdicts(self) -> pd.DataFrame:
        """The table verdicts.csv."""
        return _parsed(self._part("verdicts.csv"), _read_table)

    @cached_property
    def diagnostics(self) -> pd.DataFrame:
        """Table with the columns check, quantity, value (a number or text), threshold, verdict."""
        return _parsed(self._part("diagnostics.json"), _read_diagnostics)

    @cached_property
    def held_out(self) -> pd.DataFrame:
        """The table held_out.csv; its last column is the score of each held-out unit, sequence or point."""
        return _parsed(self._part(HELD_OUT), pd.read_csv)

    @cached_property
    def params(self) -> dict[str, np.ndarray]:
        """Point estimate, or posterior means with the symmetry removed, by site."""
        from safetensors.numpy import load_file

        return _parsed(self._part("params/params.safetensors"), load_file)

    def _part(self, name: str) -> Path:
        if name not in self.info["files"]:
            if name == HELD_OUT and self.info["status"] in COMPLETE:
                raise StoreError(f"{self.path} has no {name}: no units were held out, or an older latentlab wrote the run.")
            if self.info["status"] in COMPLETE:
                raise StoreError(f"{self.path} has no {name}: the config has no embeddings.")
            state = f"{self.info['status']} at stage {self.info['stage']!r}"
            raise StoreError(f"{self.path} has no {name}: the run is {state}; --resume continues it.")
        return self.path / name


def _first(names: Sequence[str], most: int = 3) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _verdict_lines(table: pd.DataFrame) -> list[str]:
    """Return a line for each embedding, raw or mapped: verdict and delta under each alignment, over its seeds."""
    lines = []
    several = table["units"].nunique() > 1
    for (label, units, kind_of_map), rows in table.groupby(["embedding", "units", "map"], sort=False):
        by_verdict: dict[str, list[str]] = {}
        for alignment, seeds in rows.groupby("alignment", sort=False):
            low, high = (f"{delta:.3g}" for delta in (seeds["delta"].min(), seeds["delta"].max()))
            verdict = " / ".join(dict.fromkeys(seeds["verdict"]))
            by_verdict.setdefault(f"{verdict}, delta {low if low == high else f'{low} to {high}'}", []).append(str(alignment))
        same = len(by_verdict) == 1
        summary = "; ".join(line if same else f"{line} ({' and '.join(names)})" for line, names in by_verdict.items())
        lines.append(f"{label}{f', {units}s' if several else ''}{' (mapped)' if kind_of_map == 'mapped' else ''}: {summary}")
    return lines


def read(path: str | Path) -> Run:
    """Read a run directory, complete or not, and checks every file that it lists.

    Raises:
        StoreError: The path contains no run, or a run of a newer latentlab, or a file is missing or changed; names the file.
    """
    folder = Path(path)
    info = read_info(folder)
    for name, entry in info["files"].items():
        file = folder / name
        if name in REBUILT:
            continue
        if not file.is_file():
            raise StoreError(
                f"{file} is missing, although {RUN_JSON} lists it; `latentlab run` recreates it with --resume, and the whole run "
                "with --overwrite."
            )
        if (digest := sha256(file)) != entry["sha256"]:
            sizes = f"{file.stat().st_size} bytes instead of {entry['bytes']}"
            raise StoreError(
                f"{file} is damaged: its SHA-256 is {digest[:12]}..., {RUN_JSON} lists {entry['sha256'][:12]}... ({sizes}); "
                "`latentlab run` recreates it with --resume, and the whole run with --overwrite."
            )
    return Run(folder, read_config(folder) if CONFIG in info["files"] else {}, info)


def read_config(folder: Path) -> dict[str, Any]:
    """Read `config.yaml` as plain values."""
    try:
        config = yaml.safe_load((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise StoreError(f"{folder / CONFIG}: cannot be read: {' '.join(str(error).split())[:200]}") from error
    if not isinstance(config, dict):
        raise StoreError(f"{folder / CONFIG}: must be a mapping; got {type(config).__name__}.")
    return config


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Return the differences between two nested mappings, a line for each key: `inference.n_draws: 500 -> 1000`.

    Example:
        >>> differences({"a": {"b": 1, "c": 2}}, {"a": {"b": 3, "c": 2}, "d": 4})
        ['a.b: 1 -> 3', 'd: not set -> 4']
    """
    lines = []
    for key in [*old, *(key for key in new if key not in old)]:
        a, b = old.get(key), new.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            lines += differences(a, b, f"{prefix}{key}.")
        elif a != b or (key in old) != (key in new):
            before, after = (repr(side[key]) if key in side else "not set" for side in (old, new))
            lines.append(f"{prefix}{key}: {before} -> {after}")
    return lines


def _parsed(path: Path, reader: Callable[[Path], Any]) -> Any:
    try:
        return reader(path)
    except Exception as error:  # libraries raise many types for malformed files
        raise StoreError(f"{path}: cannot be read: {type(error).__name__}: {' '.join(str(error).split())[:200]}") from error


def _read_diagnostics(path: Path) -> pd.DataFrame:
    records = json.loads(path.read_text(encoding="utf-8"))
    table = pd.DataFrame(records, columns=["check", "quantity", "value", "threshold", "verdict"])
    table["value"] = [NOT_FINITE.get(value, value) for value in table["value"]]
    return table


def _read_table(path: Path) -> pd.DataFrame:
    """Read a CSV file with exact numbers; an empty cell is NaN in a column of numbers."""
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    table = table if "units" in table else table.assign(units="unit")  # older runs have no such column
    return table.assign(**{name: _numbers(table[name]) for name in table.columns if name not in TEXT})


def _numbers(column: pd.Series) -> pd.Series:
    try:
        return column.map(int)
    except ValueError:
        return column.map(lambda cell: float(cell) if cell else math.nan)
