"""Section 4: posterior and embeddings side by side, the same units marked in all of them.

The page's script draws what is here. Its data:

* `units`, `labels` (None without), `classes` with `names`, `codes` (of each unit), `colors` and `markers`;
* `panels`: `title`, `note`, `aligned` and `raw`, each a list of columns, and `worst` (Mahalanobis distance of each unit);
* `covariance`: of each unit's position, `[k][l][unit]`, for the ellipses of marked units; None with many dimensions;
* `radius`: of the ellipse, in standard deviations; `spread` of each unit.
"""

from typing import Any

import numpy as np
from scipy.stats import chi2

from latentlab.report.figure import MARKERS, Classes
from latentlab.report.items import Brush, Section, Text, shown
from latentlab.report.positions import LEVEL
from latentlab.report.source import Row, Source

DIGITS = 4
"""Of coordinates: a pixel in a thousand."""
MOST_DIMENSIONS = 6


def section(source: Source) -> Section:
    """The panels, and how to read them."""
    title = "Embeddings beside the posterior"
    lines = ["Drag a rectangle in any panel to mark units: the same units are marked in every panel, and listed below."]
    if source.compared:
        lines[0] += " Embeddings are turned, moved and scaled onto the posterior mean, or shown in their raw coordinates."
    else:
        lines.append("No embedding was compared, so that only the posterior is shown.")
    return Section("beside", title, (Text((" ".join(lines),)), Brush(panels(source))))


def panels(source: Source) -> dict[str, Any]:
    """What the script needs."""
    classes = Classes(source.labels, len(source.units))
    q = source.mean.shape[1]
    mean = columns(source.mean)
    found = [
        {"title": "posterior mean", "note": f"{LEVEL:.0%} regions of marked units", "aligned": mean, "raw": mean, "worst": None}
    ]
    found += [_panel(source, row) for row in (source.first_rows if source.compared else [])]
    covariance = None
    if q <= MOST_DIMENSIONS:
        covariance = [[rounded(source.covariance[:, k, m]) for m in range(q)] for k in range(q)]
    return {
        "units": source.units,
        "labels": None if source.labels is None else source.labels.tolist(),
        "classes": {
            "names": classes.names,
            "codes": classes.codes.tolist(),
            "colors": [classes.color(i) for i in range(max(1, len(classes.names)))],
            "markers": [i % len(MARKERS) for i in range(max(1, len(classes.names)))],
        },
        "panels": found,
        "covariance": covariance,
        "radius": float(np.sqrt(chi2.ppf(LEVEL, min(q, 2)))),
        "spread": rounded(source.spread),
    }


def _panel(source: Source, row: Row) -> dict[str, Any]:
    data = source.run.comparison.sel(embedding=row.label)
    verdicts = zip(data["alignment"].values, data["verdict"].values, data["delta"].values, strict=True)
    notes = [f"{way}: {verdict}, delta {shown(float(delta))}" for way, verdict, delta in verdicts if verdict]
    return {
        "title": row.title,
        "note": "; ".join(notes),
        "aligned": columns(source.aligned(row.values)),
        "raw": columns(row.values[:, : max(2, source.mean.shape[1])]),
        "worst": rounded(data["mahalanobis"].values),
    }


def columns(values: np.ndarray) -> list[list[float]]:
    """Coordinates, a list for each column, with as many digits as a screen can show."""
    return [rounded(values[:, k]) for k in range(values.shape[1])]


def rounded(values: np.ndarray) -> list[float]:
    """Numbers with four significant digits of the largest; those that are not finite are 0.

    Example:
        >>> rounded(np.array([123.456, 0.0123456, float("nan")]))
        [123.5, 0.0, 0.0]
    """
    finite = np.where(np.isfinite(values), values, 0.0)
    largest = float(np.abs(finite).max(initial=0.0))
    digits = DIGITS - 1 - int(np.floor(np.log10(largest))) if largest > 0 else 0
    return [float(v) + 0.0 for v in np.round(finite, digits)]
