"""Ranking of the points of a sweep by a predictive score, with the standard errors of the differences from the best."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from latentlab.comparison.same_data import data_difference
from latentlab.errors import ConfigError
from latentlab.store.directory import COMPLETE
from latentlab.store.read import read
from latentlab.study.rows import RunRow, terms_of

COLUMNS = ("difference", "difference_se", "near_best")
N_SE = 2
"""Number of standard errors within which a difference from the best is not clear."""


def differences(folder: Path, rows: Mapping[str, RunRow], metric: str) -> dict[str, dict[str, Any]]:
    r"""Compare each point with the best on the same held-out units or points.

    With the terms $d_i$ of the difference of two scores, its standard error is $\sqrt{n} \, \mathrm{sd}(d)$.

    Args:
        folder: The sweep's directory.
        rows: Rows of the points by name.
        metric: `held_out` or `elpd_loo`.

    Returns:
        Values of `COLUMNS` for each point with a score. `near_best`: the difference is at most `N_SE` standard errors.

    Raises:
        ConfigError: The points were scored on different data, or by different scores, such as elpd and a bound of it.
        StoreError: A run is damaged.
    """
    scores = {name: float(row.results.get(metric, math.nan)) for name, row in rows.items() if row.results["status"] in COMPLETE}
    scores = {name: score for name, score in scores.items() if math.isfinite(score)}
    if not scores:
        return {}
    terms: dict[str, pd.Series] = {}
    first, first_run = next(iter(scores)), read(folder / next(iter(scores)))
    for name in scores:
        run = first_run if name == first else read(folder / name)
        terms[name] = terms_of(run, metric)
        same = run.info["data"]["sha256"] == first_run.info["data"]["sha256"] and terms[name].index.equals(terms[first].index)
        if not same or (metric == "elpd_loo" and data_difference(first_run.posterior, run.posterior)):
            raise ConfigError(f"{first} and {name} were scored on different data; compare points of the same data.")
        kinds = terms[first].name, terms[name].name
        if kinds[0] != kinds[1]:
            raise ConfigError(f"the score of {first} is {kinds[0]} and that of {name} is {kinds[1]}, which cannot be compared.")
    best = max(scores, key=lambda name: scores[name])
    found = {}
    for name, one in terms.items():
        each = one.to_numpy() - terms[best].to_numpy()
        difference = float(each.sum())
        se = float(np.sqrt(len(each)) * each.std(ddof=1)) if len(each) > 1 else math.nan
        near = name == best or difference >= -N_SE * se  # without a standard error, only the best is near
        found[name] = dict(zip(COLUMNS, (difference, se, near), strict=True))
    return found


def text_of_best(table: pd.DataFrame, values: Mapping[str, str], metric: str) -> list[str]:
    """Sentences about the best point of a table with `COLUMNS`, and its uncertainty; none without a score."""
    scored = table[table["difference"].notna()] if "difference" in table else table[:0]
    if not len(scored):
        return []
    best = scored.iloc[int(scored[metric].to_numpy().argmax())]
    n_near = int(scored["near_best"].astype(bool).sum()) - 1
    others = "no other differs" if not n_near else "1 other differs" if n_near == 1 else f"{n_near} others differ"
    se = f" ± {best[f'{metric}_se']:.1f}" if pd.notna(best[f"{metric}_se"]) else ", without a standard error"
    lines = [
        f"best {metric}: {best['point']} ({values[best['point']]}), {best[metric]:.1f}{se}"
        + ("" if best["converged"] else "; it has not converged"),
        *([f"{others} from it by at most {N_SE} standard errors"] if pd.notna(best[f"{metric}_se"]) else []),
    ]
    if len(scored) > 1:
        lines.append(f"the best of {len(scored)} scores is optimistic: confirm it on other data or seeds")
    return lines
