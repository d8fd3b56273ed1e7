"""Section 4: linked scatter plots of the posterior and the embeddings, with the same units marked in all panels.

The page's script draws the panels from these data:

* `units`, `labels` (or None), `classes` with `names`, `codes` (of each unit), `colors` and `markers`;
* `panels`: `title`, `note`, `aligned` and `raw`, each a list of columns, `disagreement` (of each unit), and, if the
  positions are labels, `codes`, the panel's own classes;
* `covariance`: covariance of each unit's position, `[k][l][unit]`, for the ellipses of marked units; None with many dimensions;
* `radius`: radius of the ellipse, in standard deviations; `spread` of each unit, and its name, `spread_name`.

If the positions are labels, every panel is the same map of the units, coloured by a clustering. An embedding that is not a
clustering is drawn in its own coordinates, coloured by the point estimate.
"""

from typing import Any

import numpy as np
from scipy.stats import chi2

from latentlab.report.co_assignment import matched_labels
from latentlab.report.figure import COLORS, MARKERS, Classes
from latentlab.report.items import Brush, Section, Text, shown
from latentlab.report.labels import plane
from latentlab.report.parts import Parts
from latentlab.report.rows import ALIGNMENTS, Row, matched
from latentlab.report.series import LEVEL
from latentlab.report.source import Source

MARKING = "Drag a rectangle in any panel to mark units. The same units are marked in every panel and listed below."
DIGITS = 4
"""Significant digits of coordinates; the error is below a pixel in a thousand."""
MOST_DIMENSIONS = 6


def section(source: Source) -> Section:
    """Build the section: the panels, and a text on their use."""
    title = "Embeddings next to the posterior"
    if source.is_discrete:
        return Section("panels", "Clusterings next to the posterior", (Text((_label_text(source),)), Brush(label_panels(source))))
    text = f"{MARKING} " + (
        "Embeddings are shown aligned to the posterior mean or in their raw coordinates."
        if source.compared
        else "No embedding was compared, so only the posterior is shown."
    )
    return Section("panels", title, (Text((text,)), Brush(panels(source))))


def panels(source: Source) -> dict[str, Any]:
    """Return the data of the page's script."""
    classes = Classes(source.labels, len(source.units))
    q = source.mean.shape[1]
    mean = columns(source.mean)
    found = [
        {
            "title": "posterior mean",
            "note": f"{LEVEL:.0%} credible regions of marked units",
            "aligned": mean,
            "raw": mean,
            "disagreement": None,
        }
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
        "spread_name": "posterior standard deviation",
    }


def _label_text(source: Source) -> str:
    text = MARKING
    if len(source.features) == 1:
        text += " The horizontal axis is the order of the units, and the vertical axis is the observed value."
    if not source.compared:
        return f"{text} No embedding was compared, so only the posterior is shown."
    text += (
        f" Colours and shapes show the {source.label_dim}s. Clusters are matched one to one with the {source.label_dim}s, and matched clusters "
        "have the same colour. Unmatched clusters have further colours."
    )
    if source.unjudged:
        text += " Embeddings that are not clusterings are shown in their own coordinates, with the colours of the point estimate."
    return text


def label_panels(source: Source) -> dict[str, Any]:
    """Return the data of the page's script for positions that are labels: a map of the units for each clustering."""
    parts = Parts(source)
    at = _map(source)
    rows = source.first_rows if source.compared else []
    clusters = {row.label: matched(labels, source.probabilities) for row in rows if (labels := row.labels) is not None}
    used = [*parts.kept, *sorted({int(k) for names in clusters.values() for k in names} - set(parts.kept))]
    codes = {label: [used.index(int(k)) for k in names] for label, names in clusters.items()}
    estimate = [used.index(int(k)) for k in source.estimate]
    found = [{"title": "point estimate", "note": "", "aligned": at, "raw": at, "disagreement": None, "codes": estimate}]
    if source.labels is not None:
        classes = Classes(source.labels, len(source.units))
        matched_codes = _known_label_codes(source, classes, used)
        note = f"colours of the matched {source.label_dim}s"
        found.append(
            {"title": "known labels", "note": note, "aligned": at, "raw": at, "disagreement": None, "codes": matched_codes}
        )
    for row in rows:
        panel = _panel(source, row, coordinates=at if row.label in clusters else columns(row.values))
        found.append(panel | {"codes": codes.get(row.label, estimate)})
    beyond = [len(parts.kept) + i for i in range(len(used) - len(parts.kept))]
    return {
        "units": source.units,
        "labels": None if source.labels is None else source.labels.tolist(),
        "classes": {
            "names": [parts.name(k) for k in parts.kept] + [f"unmatched cluster {i + 1}" for i in range(len(beyond))],
            "codes": estimate,
            "colors": [COLORS[i % len(COLORS)] for i in range(len(used))],
            "markers": [i % len(MARKERS) for i in range(len(used))],
        },
        "panels": found,
        "covariance": None,
        "radius": 0.0,
        "spread": rounded(source.certainty),
        "spread_name": f"probability of the {source.label_dim}",
    }


def _known_label_codes(source: Source, classes: Classes, used: list[int]) -> list[int]:
    """Return codes of the known labels: the codes of matched components, and new codes for surplus labels."""
    names = matched_labels(source, classes)
    for name in sorted(set(names.values()) - set(used)):
        used.append(name)
    return [used.index(names[code]) for code in classes.codes.tolist()]


def _map(source: Source) -> list[list[float]]:
    """Return the coordinates of the units: the map of section 3, or the single feature by order, or the order alone.

    Features are scaled to the same width; principal axes are not.
    """
    found = plane(source)
    if found is not None:
        return columns(found[0] if len(source.features) > 2 else _rescaled(found[0]))
    order = np.arange(len(source.units), dtype=np.float64)
    if not source.is_table:
        return columns(order[:, None])
    x = source.observed.values[:, 0]
    values = np.where(np.isnan(x), np.nanmean(x), x)
    return columns(_rescaled(np.column_stack([order, values])))


def _rescaled(values: np.ndarray) -> np.ndarray:
    width = np.ptp(values, axis=0)
    return np.asarray((values - values.min(axis=0)) / np.where(width > 0, width, 1.0))


def _panel(source: Source, row: Row, coordinates: list[list[float]] | None = None) -> dict[str, Any]:
    data = source.comparison.sel(embedding=row.label)
    verdicts = zip(data["alignment"].values, data["verdict"].values, data["delta"].values, strict=True)
    notes = [
        f"{'' if alignment == 'labels' else f'{ALIGNMENTS[alignment]}: '}{verdict}, delta {shown(float(delta))}"
        for alignment, verdict, delta in verdicts
        if verdict
    ]
    disagreement = data["mahalanobis"].values
    return {
        "title": row.title,
        "note": "; ".join([*notes, *([source.unconverged] if notes and source.unconverged else [])]),
        "aligned": columns(source.aligned(row.values)) if coordinates is None else coordinates,
        "raw": columns(row.values[:, : max(2, source.mean.shape[1])]) if coordinates is None else coordinates,
        "disagreement": None if np.isnan(disagreement).all() else rounded(disagreement),
    }


def columns(values: np.ndarray) -> list[list[float]]:
    """Return coordinates as one list for each column, rounded to the resolution of a screen."""
    return [rounded(values[:, k]) for k in range(values.shape[1])]


def rounded(values: np.ndarray) -> list[float]:
    """Round numbers to four significant digits of the largest; replace numbers that are not finite by 0.

    Example:
        >>> rounded(np.array([123.456, 0.0123456, float("nan")]))
        [123.5, 0.0, 0.0]
    """
    finite = np.where(np.isfinite(values), values, 0.0)
    largest = float(np.abs(finite).max(initial=0.0))
    digits = DIGITS - 1 - int(np.floor(np.log10(largest))) if largest > 0 else 0
    return [float(v) + 0.0 for v in np.round(finite, digits)]
