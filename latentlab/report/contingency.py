"""Contingency tables of clusterings and the point estimate of the labels."""

from typing import Any

import numpy as np

from latentlab.compare.agreement import adjusted_rand
from latentlab.report.items import Item, Table, listed
from latentlab.report.labels import CERTAIN
from latentlab.report.parts import Parts
from latentlab.report.rows import Row, matched
from latentlab.report.source import Source

MOST_CLUSTERS = 20
"""Largest number of columns of a table; if there are more clusters, the largest are shown."""


def items(source: Source) -> list[Item]:
    """Return a table of the match of clusters with labels, and a contingency table of each clustering's first seed."""
    rows = [(row, row.labels) for row in source.judged_rows]
    found = [(row, labels) for row, labels in rows if labels is not None]
    if not found:
        return []
    parts = Parts(source)
    overview = [_matched(source, row, labels) for row, labels in found]
    caption = (
        f"Clusterings compared with the point estimate: adjusted Rand index, and number of units whose matched cluster differs from their "
        f"{parts.dim} in the point estimate. A unit is certain if the probability of its {parts.dim} is {CERTAIN:g} or more"
    )
    tables: list[Item] = [Table.of("matched", caption, overview)]
    for i, (row, labels) in enumerate(found):
        tables.append(_table(source, parts, f"contingency-{i}", row, labels))
    return tables


def _matched(source: Source, row: Row, labels: np.ndarray) -> dict[str, Any]:
    names = matched(labels, source.probabilities)
    wrong = np.flatnonzero(names != source.estimate)
    most_certain = wrong[np.argsort(-source.certainty[wrong], kind="stable")]
    return {
        "embedding": row.title,
        "clusters": len(np.unique(labels)),
        "adjusted Rand": float(adjusted_rand(labels, source.estimate)),
        "units that differ": len(wrong),
        "certain units that differ": int((source.certainty[wrong] >= CERTAIN).sum()),
        "most certain of them": listed([source.units[i] for i in most_certain[:3]], 3) if len(most_certain) else "",
    }


def _table(source: Source, parts: Parts, name: str, row: Row, labels: np.ndarray) -> Table:
    names = matched(labels, source.probabilities)
    clusters = sorted(np.unique(labels).tolist(), key=lambda c: (int(names[labels == c][0]), c))
    selection = ""
    if len(clusters) > MOST_CLUSTERS:
        largest = set(np.argsort(-np.bincount(labels), kind="stable")[:MOST_CLUSTERS].tolist())
        selection = f" (the {MOST_CLUSTERS} largest of {len(clusters)} clusters)"
        clusters = [c for c in clusters if c in largest]
    records = [
        {parts.dim: int(k)} | {f"cluster {c}": int(((source.estimate == k) & (labels == c)).sum()) for c in clusters}
        for k in np.unique(source.estimate)
    ]
    return Table.of(
        name,
        f"Number of units by {parts.dim} in the point estimate and by cluster of {row.title}{selection}",
        records,
        folded=True,
    )
