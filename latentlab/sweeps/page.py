"""Page of a sweep: any result against any swept value, and a table of all runs with links to their pages."""

from pathlib import Path

from latentlab.files import write as write_file
from latentlab.report.page import template, text
from latentlab.store.directory import REPORT, plain
from latentlab.sweeps.sweep import Sweep

PAGE = "sweep.html"
FIRST = ("held_out", "elpd_loo", "rhat_max", "ess_min")
"""Results that are offered first, if the runs have them."""
MOST_FAILED = 5


def write(sweep: Sweep) -> Path:
    """Write `sweep.html` into the sweep's directory; it is self-contained, and works offline.

    Raises:
        MissingDependencyError: jinja2 is not installed.
        StoreError: The page cannot be written.
    """
    results, times = sweep.to_dataframe(), sweep.times()
    swept = list(dict.fromkeys(key for values in sweep.points.values() for key in values))
    table = results.merge(times.drop(columns=swept, errors="ignore"), on="point")
    intervals = [name for name in table if str(name).endswith(("_se", ".q05", ".q95"))]
    numeric = [name for name in table.select_dtypes("number") if name not in swept]
    shown = [name for name in table if name not in intervals or str(name).endswith("_se")]
    choices = [name for name in (*FIRST, *numeric) if name in numeric and name not in intervals and table[name].notna().any()]
    statuses = table["status"].value_counts(sort=False)
    failed = table[table["status"].isin(("failed", "damaged"))]
    lines = [f"{row['point']} {row['status']}: {row['error']}" for row in failed.head(MOST_FAILED).to_dict("records")]
    page = template("sweep.html").render(
        name=sweep.name,
        status=", ".join(f"{n} {str(status).replace('_', ' ')}" for status, n in statuses.items()),
        n_points=len(table),
        swept=", ".join(swept),
        best=[f"{line[0].upper()}{line[1:]}." for line in sweep.best()],
        failed=lines + ([f"{len(failed) - MOST_FAILED} more runs failed or are damaged."] if len(failed) > MOST_FAILED else []),
        columns=[{"name": name, "numeric": name in numeric} for name in shown],
        rows=[
            {"cells": [plain(row[name]) for name in shown], "link": _link(sweep.path, str(row["point"]))}
            for row in table.to_dict("records")
        ],
        data={
            "columns": [{"name": name} for name in table],
            "rows": [list(row) for row in table.itertuples(index=False)],
            "swept": swept or ["point"],
            "results": list(dict.fromkeys(choices)),
        },
        css=text("page.css"),
        script=text("sweep.js"),
    )
    write_file(sweep.path / PAGE, page.encode(errors="replace"))
    return sweep.path / PAGE


def _link(folder: Path, point: str) -> str:
    return f"{point}/{REPORT[0]}" if (folder / point / REPORT[0]).is_file() else ""
