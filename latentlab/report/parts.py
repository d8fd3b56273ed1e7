"""Which components or states are drawn, and in what colours."""

import numpy as np

from latentlab.compare.clustering import n_clusters
from latentlab.report.figure import COLORS, MARKERS
from latentlab.report.source import Source

ALMOST_EMPTY = 0.5
"""Units that a label holds on average, below which it is left out."""
FAINT = 0.25
"""Opacity of a unit that may as well have another label."""


class Parts:
    """The labels that are shown, with names, colours and shapes.

    Args:
        source: The run.

    Attributes:
        kept: Labels that hold half a unit or more on average, or are in the point estimate.
        sizes: Units with each label in each draw, `(draw, label)`.
    """

    def __init__(self, source: Source) -> None:
        self.dim, self.n_labels = source.label_dim, source.n_labels
        flat = source.label_draws.reshape(-1, len(source.units))
        self.sizes = np.stack([(flat == k).sum(axis=1) for k in range(source.n_labels)], axis=1)
        used = (self.sizes.mean(axis=0) >= ALMOST_EMPTY) | np.isin(np.arange(source.n_labels), source.estimate)
        self.kept: list[int] = np.flatnonzero(used).tolist()

    def name(self, label: int) -> str:
        """`component 2`, say."""
        return f"{self.dim} {label}"

    def color(self, label: int) -> str:
        """Its colour in every drawing of the page."""
        return COLORS[self._rank(label) % len(COLORS)]

    def marker(self, label: int) -> str:
        """Its shape."""
        return MARKERS[self._rank(label) % len(MARKERS)]

    def _rank(self, label: int) -> int:
        """Its place among those shown; beyond them for others."""
        return self.kept.index(label) if label in self.kept else len(self.kept) + max(0, label - self.n_labels)


def occupied(source: Source) -> tuple[np.ndarray, np.ndarray]:
    """How many labels are in use, and in which share of the draws."""
    values, times = np.unique(n_clusters(source.label_draws), return_counts=True)
    return values, times / times.sum()


def opacity(certainty: np.ndarray) -> np.ndarray:
    """From faint, where another label is as probable, to full."""
    return FAINT + (0.9 - FAINT) * np.clip(2 * certainty - 1, 0, 1)


def rgba_of(color: str, alpha: np.ndarray) -> np.ndarray:
    red, green, blue = (int(color[i : i + 2], 16) / 255 for i in (1, 3, 5))
    return np.column_stack([np.full(len(alpha), red), np.full(len(alpha), green), np.full(len(alpha), blue), alpha])
