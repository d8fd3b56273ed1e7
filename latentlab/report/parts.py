"""Components or states that are drawn, and their colours."""

import numpy as np

from latentlab.compare.clustering import n_clusters
from latentlab.data.memory import by_row
from latentlab.report.figure import COLORS, MARKERS
from latentlab.report.source import Source

ALMOST_EMPTY = 0.5
"""Posterior mean of the number of units below which a label is left out."""
FAINT = 0.25
"""Opacity of a unit whose label has a probability of 0.5 or less."""


class Parts:
    """Labels that are shown, with names, colours and markers.

    Args:
        source: The run.

    Attributes:
        kept: Labels with half a unit or more in posterior mean, or present in the point estimate.
        sizes: Number of units with each label in each draw, `(draw, label)`.
    """

    def __init__(self, source: Source) -> None:
        self.dim, self.n_labels = source.label_dim, source.n_labels
        flat = source.label_draws.reshape(-1, len(source.units))
        self.sizes = by_row(lambda part: np.stack([(part == k).sum(axis=1) for k in range(source.n_labels)], axis=1), flat)
        used = (self.sizes.mean(axis=0) >= ALMOST_EMPTY) | np.isin(np.arange(source.n_labels), source.estimate)
        self.kept: list[int] = np.flatnonzero(used).tolist()

    def name(self, label: int) -> str:
        """Return the label's name, such as `component 2`."""
        return f"{self.dim} {label}"

    def color(self, label: int) -> str:
        """Return the label's colour, the same in all figures of the page."""
        return COLORS[self._rank(label) % len(COLORS)]

    def marker(self, label: int) -> str:
        """Return the label's marker."""
        return MARKERS[self._rank(label) % len(MARKERS)]

    def _rank(self, label: int) -> int:
        """Return the label's index among those shown; larger indices for all others."""
        return self.kept.index(label) if label in self.kept else len(self.kept) + max(0, label - self.n_labels)


def occupied(source: Source) -> tuple[np.ndarray, np.ndarray]:
    """Return the numbers of occupied labels that occur, and the share of draws with each."""
    values, times = np.unique(n_clusters(source.label_draws), return_counts=True)
    return values, times / times.sum()


def opacity(certainty: np.ndarray) -> np.ndarray:
    """Return opacities: `FAINT` at a certainty of 0.5 or less, rising linearly to 0.9 at 1."""
    return FAINT + (0.9 - FAINT) * np.clip(2 * certainty - 1, 0, 1)


def rgba_of(color: str, alpha: np.ndarray) -> np.ndarray:
    red, green, blue = (int(color[i : i + 2], 16) / 255 for i in (1, 3, 5))
    return np.column_stack([np.full(len(alpha), red), np.full(len(alpha), green), np.full(len(alpha), blue), alpha])
