"""One row of a table of runs: convergence, predictive scores, and verdict and scores of each embedding.

Numbers that depend on the machine's speed are kept apart (`Row.times`), so that the other columns are the same for every
executor.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from latentlab.comparison.selection import loo_of
from latentlab.errors import LatentLabError, StoreError
from latentlab.files import write
from latentlab.store.directory import COMPLETE, RUN_JSON, SUMMARY, read_info
from latentlab.store.read import Run, read
from latentlab.study.select import candidate

RHAT = ("R-hat", "nested R-hat")
FORMAT = 1


@dataclass(frozen=True)
class Row:
    """Results and times of one run, each a mapping from column to value.

    Columns of `results`: `status`, `error`, `converged`, `failed_checks`, `rhat_max`, `ess_min` (the smallest bulk ESS),
    `elpd_loo` and `elpd_loo_se`, `held_out` and `held_out_se` (a lower bound if the model has only a bound), and for each
    compared array and alignment `ARRAY.ALIGNMENT.verdict` and `.delta`, and for each metric `ARRAY.METRIC`, `.q05` and `.q95`.
    Columns of `times`: `seconds` (all stages), `seconds_fit`, `ess_per_second` (the smallest bulk ESS per second of the fit).
    """

    results: dict[str, Any] = field(default_factory=dict)
    times: dict[str, float] = field(default_factory=dict)


def row_of(folder: Path) -> Row:
    """Return the row of a run directory, from `summary.json` if it is newer than the run's last change, else computed.

    A run that is not complete has its status, its error and no results.

    Raises:
        StoreError: The folder holds no run, or it is damaged.
    """
    info = read_info(folder)
    if info["status"] not in COMPLETE:
        return Row({"status": info["status"], "error": (info.get("error") or {}).get("message", "")}, {})
    stored = folder / SUMMARY
    if stored.is_file():
        try:
            found = json.loads(stored.read_text(encoding="utf-8"))
            if found.pop("format") == FORMAT and found.pop("finished") == info.get("finished"):
                return Row(**found)
        except (OSError, ValueError, TypeError, KeyError):
            pass  # a damaged summary is made anew
    row = computed(read(folder))
    content = {"format": FORMAT, "finished": info.get("finished"), **asdict(row)}
    write(stored, (json.dumps(_finite(content), indent=1, allow_nan=False) + "\n").encode())
    return row


def computed(run: Run) -> Row:
    """Compute the row of a complete run from its files."""
    table, info = run.diagnostics, run.info
    failed = list(dict.fromkeys(table.loc[table["verdict"] == "fail", "check"]))
    results: dict[str, Any] = {
        "status": info["status"],
        "error": "",
        "converged": info["status"] == "done",
        "failed_checks": ", ".join(failed),
        "rhat_max": _extreme(table, RHAT, max),
        "ess_min": _extreme(table, ("bulk ESS",), min),
        **_scores(run),
    }
    if "verdicts.csv" in info["files"]:
        results |= _of_embeddings(run.verdicts, run.scores)
    seconds = info["seconds"]
    times = {"seconds": float(sum(seconds.values())), "seconds_fit": float(seconds.get("fit", math.nan))}
    if results["ess_min"] is not None and times["seconds_fit"] > 0:
        times["ess_per_second"] = results["ess_min"] / times["seconds_fit"]
    return Row(_finite(results), _finite(times))


def _extreme(table: pd.DataFrame, checks: tuple[str, ...], choose: Any) -> float | None:
    chosen = table[table["check"].isin(checks) & (table["verdict"] != "not applicable")]["value"]
    values = [float(value) for value in chosen if isinstance(value, int | float) and value == value]
    return choose(values) if values else None


def _scores(run: Run) -> dict[str, Any]:
    """Predictive scores with standard errors, None where the run has none."""
    found: dict[str, Any] = dict.fromkeys(("elpd_loo", "elpd_loo_se", "held_out", "held_out_se"))
    try:
        loo = loo_of(run.path.name, candidate(run))
        found |= {"elpd_loo": loo.elpd, "elpd_loo_se": loo.se}
    except LatentLabError:
        pass  # a point estimate, or a bound only
    held_out: Mapping[str, float] = run.info.get("held_out") or {}
    name = next((name for name in ("elpd", "bound") if name in held_out), None)
    return found | ({"held_out": held_out[name], "held_out_se": held_out["se"]} if name else {})


def _of_embeddings(verdicts: pd.DataFrame, scores: pd.DataFrame) -> dict[str, Any]:
    several = verdicts["units"].nunique() > 1

    def name(row: Any) -> str:
        seed = f" #{row.seed}" if str(row.seed) else ""
        return f"{row.embedding}{seed}{' (mapped)' if row.map == 'mapped' else ''}{f', {row.units}s' if several else ''}"

    found: dict[str, Any] = {}
    for row in verdicts.itertuples():
        found |= {f"{name(row)}.{row.alignment}.verdict": row.verdict, f"{name(row)}.{row.alignment}.delta": row.delta}
    for row in scores.itertuples():
        key = f"{name(row)}.{row.metric}"
        found |= {key: row.mean, f"{key}.q05": row.q05, f"{key}.q95": row.q95}
    return found


def _finite(value: Any) -> Any:
    """Replace numbers that are not finite by None, as JSON has none."""
    if isinstance(value, Mapping):
        return {key: _finite(entry) for key, entry in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def is_run(folder: Path) -> bool:
    """Whether the folder has a readable `run.json`."""
    try:
        read_info(folder)
    except StoreError:
        return False
    return (folder / RUN_JSON).is_file()
