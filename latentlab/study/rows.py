"""One row of a table of runs: convergence, predictive scores, and verdict and scores of each embedding.

Numbers that depend on the machine's speed are kept apart (`RunRow.times`), so that the other columns are the same for every
executor.
"""

import contextlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from latentlab.comparison.rows import array_label
from latentlab.comparison.selection import Candidate, bad_share, loo_of
from latentlab.errors import LatentLabError, StoreError
from latentlab.files import write
from latentlab.store.directory import COMPLETE, NOT_FINITE, SUMMARY, plain, read_info
from latentlab.store.read import Run, read

RHAT = ("R-hat", "nested R-hat")
FORMAT = 1


@dataclass(frozen=True)
class RunRow:
    """Results and times of one run, each a mapping from column to value.

    Columns of `results`: `status`, `error`, `converged`, `failed_checks`, `rhat_max`, `ess_min` (the smallest bulk ESS),
    `elpd_loo`, `elpd_loo_se` and `bad_khat` (the share of points whose k-hat is too high), `held_out` and `held_out_se` (a lower
    bound if the model has only a bound). Each compared array and alignment has `ARRAY.ALIGNMENT.verdict` and `.delta`, and each
    metric has `ARRAY.METRIC` (the posterior mean), `.q05` and `.q95`. A result that the run does not have is NaN.
    Columns of `times`: `seconds` (all stages), `seconds_fit`, `ess_per_second` (the smallest bulk ESS per second of the fit).
    """

    results: dict[str, Any] = field(default_factory=dict)
    times: dict[str, float] = field(default_factory=dict)


def row_of(folder: Path) -> RunRow:
    """Return the row of a run directory: from `summary.json` if it belongs to the present run, otherwise computed and written.

    A run that is not complete has its status, its error and no results.

    Raises:
        StoreError: The folder does not contain a run, or the run is damaged.
    """
    info = read_info(folder)
    if info["status"] not in COMPLETE:
        return RunRow({"status": info["status"], "error": (info.get("error") or {}).get("message", "")}, {})
    stored = folder / SUMMARY
    if stored.is_file():
        try:
            found = json.loads(stored.read_text(encoding="utf-8"))
            if found.pop("format") == FORMAT and found.pop("finished") == info.get("finished"):
                return RunRow(_decoded(found["results"]), _decoded(found["times"]))
        except (OSError, ValueError, TypeError, KeyError):
            pass  # a damaged summary is computed again
    row = computed(read(folder))
    content = {"format": FORMAT, "finished": info.get("finished"), **asdict(row)}
    with contextlib.suppress(StoreError):  # a directory that is read-only has no summary
        write(stored, (json.dumps(plain(content), indent=1, allow_nan=False) + "\n").encode())
    return row


def computed(run: Run) -> RunRow:
    """Compute the row of a complete run from its files."""
    table, info = run.diagnostics, run.info
    failed = list(dict.fromkeys(table.loc[table["verdict"] == "fail", "check"]))
    results: dict[str, Any] = {
        "status": info["status"],
        "error": "",
        "converged": info["status"] == "done",
        "failed_checks": ", ".join(failed),
        "rhat_max": _extreme(table, RHAT, np.max),
        "ess_min": _extreme(table, ("bulk ESS",), np.min),
        **_scores(run),
    }
    if "verdicts.csv" in info["files"]:
        results |= _of_embeddings(run.verdicts, run.scores)
    seconds = info["seconds"]
    times = {"seconds": float(sum(seconds.values())), "seconds_fit": float(seconds.get("fit", math.nan))}
    if times["seconds_fit"] > 0:
        times["ess_per_second"] = results["ess_min"] / times["seconds_fit"]
    return RunRow(results, times)


def _extreme(table: pd.DataFrame, checks: tuple[str, ...], choose: Callable[[np.ndarray], float]) -> float:
    """Largest or smallest value of these checks: NaN if one of them is NaN, or if none of them is applicable."""
    values = table[table["check"].isin(checks) & (table["verdict"] != "not applicable")]["value"]
    return float(choose(values.to_numpy(float))) if len(values) else math.nan


def _scores(run: Run) -> dict[str, Any]:
    """Predictive scores with standard errors; NaN for scores that the run does not have."""
    scores: dict[str, Any] = dict.fromkeys(("elpd_loo", "elpd_loo_se", "bad_khat", "held_out", "held_out_se"), math.nan)
    try:
        loo = loo_of(run.path.name, candidate(run))
        scores |= {"elpd_loo": loo.elpd, "elpd_loo_se": loo.se, "bad_khat": bad_share(loo)}
    except LatentLabError:
        pass  # a point estimate, or a bound only
    held_out = _decoded(run.info.get("held_out") or {})
    name = next((name for name in ("elpd", "bound") if name in held_out), None)
    return scores | ({"held_out": held_out[name], "held_out_se": held_out["se"]} if name else {})


def _of_embeddings(verdicts: pd.DataFrame, scores: pd.DataFrame) -> dict[str, Any]:
    several = verdicts["units"].nunique() > 1

    def name(row: Any) -> str:
        return array_label(row.embedding, str(row.seed), row.map) + (f", {row.units}s" if several else "")

    columns: dict[str, Any] = {}
    for row in verdicts.itertuples():
        columns |= {f"{name(row)}.{row.alignment}.verdict": row.verdict, f"{name(row)}.{row.alignment}.delta": row.delta}
    for row in scores.itertuples():
        key = f"{name(row)}.{row.metric}"
        columns |= {key: row.mean, f"{key}.q05": row.q05, f"{key}.q95": row.q95}
    return columns


def _decoded(values: Mapping[str, Any]) -> dict[str, Any]:
    """Restore numbers that are not finite, which JSON cannot represent."""
    return {key: NOT_FINITE.get(value, value) for key, value in values.items()}


def text_of(values: Mapping[str, Any]) -> str:
    """Format the swept values of a run for messages and tables."""
    return ", ".join(f"{key}={value_text(value)}" for key, value in values.items()) or "no swept key"


def value_text(value: Any) -> str:
    """Format one value: texts without quotes, a section by its name and options."""
    if isinstance(value, Mapping):
        options = ", ".join(f"{k}={value_text(v)}" for k, v in value.items() if k != "name")
        return f"{value.get('name', '')}({options})" if "name" in value else json.dumps(value)
    return value if isinstance(value, str) else json.dumps(value)


def cells(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values of the swept keys as cells of a table: numbers and truth values as they are, all else as text."""
    return {key: value if isinstance(value, int | float) else value_text(value) for key, value in values.items()}


def frame(rows: Mapping[str, Mapping[str, Any]], name: str = "point") -> pd.DataFrame:
    """Table of rows by the name of a run, with the columns of all rows; a missing value is NaN."""
    columns = [name, *dict.fromkeys(key for row in rows.values() for key in row)]
    found = pd.DataFrame([{name: label, **row} for label, row in rows.items()], columns=columns)
    return found.replace({None: np.nan}).infer_objects()


def csv(table: pd.DataFrame) -> bytes:
    """CSV with exact numbers."""
    return table.to_csv(index=False, lineterminator="\n").encode()


def write_table(path: Path, table: pd.DataFrame) -> list[Path]:
    """Write a table as CSV, and as Parquet beside it if pyarrow is installed; return the paths."""
    write(path, csv(table))
    try:
        data = table.to_parquet(index=False)
    except ImportError:
        return [path]
    write(path.with_suffix(".parquet"), data)
    return [path, path.with_suffix(".parquet")]


def terms_of(done: Run, metric: str) -> pd.Series:
    """Terms of the score `held_out` or `elpd_loo` of a run, one for each unit or point.

    The name is `elpd`; `bound` if it is a lower bound; `conditional elpd` if it is given the units' own positions.

    Raises:
        LatentLabError: The run does not have it.
    """
    if metric == "elpd_loo":
        loo = loo_of(done.path.name, candidate(done))
        return pd.Series(loo.pointwise, name="conditional elpd" if loo.conditional else "elpd")
    table = done.held_out
    names = table.iloc[:, :-1].astype(str).agg(", ".join, axis=1)
    return pd.Series(table.iloc[:, -1].to_numpy(), index=names, name=str(table.columns[-1]))


def candidate(done: Run) -> Candidate:
    """Return the parts of a run that are compared."""
    return Candidate(done.posterior, done.info["status"] == "done", done.info.get("held_out") or {})
