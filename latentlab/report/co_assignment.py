"""Co-assignment: the share of draws in which two units have the same label."""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np

from latentlab.compare.co_assignment import co_assignment
from latentlab.data.memory import by_draw
from latentlab.report.figure import GREY, Classes, draw_figure, shortened
from latentlab.report.items import Figure, Item, Table, shown
from latentlab.report.parts import Parts, rgba_of
from latentlab.report.rows import matched
from latentlab.report.source import Source

MOST_PAIRED = 400
"""Largest number of units in the heat map of the co-assignment."""


def ordered(source: Source) -> np.ndarray:
    """Return units sorted by label in the point estimate, then by falling certainty; evenly thinned to `MOST_PAIRED`."""
    order = np.lexsort((-source.certainty, source.estimate))
    return order[np.unique(np.linspace(0, len(order) - 1, min(len(order), MOST_PAIRED)).astype(int))]


def pair_figure(source: Source, parts: Parts) -> Figure:
    order = ordered(source)
    found = co_assignment(by_draw(lambda draws: draws[..., order], source.label_draws))
    estimate = source.estimate[order]
    cuts = np.flatnonzero(np.diff(estimate)) + 0.5
    strips: list[tuple[str, list[str], Mapping[str, str]]] = [
        (parts.dim, [str(k) for k in estimate], {str(k): parts.color(k) for k in parts.kept})
    ]
    classes = Classes(source.labels, len(source.units))
    if source.labels is not None:
        colors = {classes.names[i]: parts.color(k) for i, k in matched_labels(source, classes).items()}
        strips.append(("label", [classes.names[i] for i in classes.codes[order]], colors))

    def draw(canvas: Any) -> None:
        grid = canvas.add_gridspec(1, len(strips) + 1, width_ratios=[*[0.035] * len(strips), 1], wspace=0.02)
        axes = canvas.add_subplot(grid[0, len(strips)])
        drawing = axes.imshow(found.mean, cmap="Blues", vmin=0, vmax=1, interpolation="nearest", aspect="auto")
        for cut in cuts:
            axes.axhline(cut, color=GREY, lw=0.7)
            axes.axvline(cut, color=GREY, lw=0.7)
        axes.set_yticks([])
        ends = [-0.5, *cuts, len(order) - 0.5]
        middle = [(a + b) / 2 for a, b in pairwise(ends)]
        axes.set_xticks(middle, [str(estimate[int(np.ceil(a))]) for a in ends[:-1]])
        axes.set_xlabel(f"units, by {parts.dim}")
        canvas.colorbar(drawing, ax=axes, label="co-assignment probability", shrink=0.75)
        for i, (name, values, colors) in enumerate(strips):
            strip = canvas.add_subplot(grid[0, i])
            picture = np.array([rgba_of(colors[value], np.ones(1))[0] for value in values])[:, None]
            strip.imshow(picture, aspect="auto", interpolation="nearest")
            strip.set_xticks([0], [name], rotation=60, ha="right")
            strip.set_yticks([])
        if source.labels is not None:
            marks = [_patch(color, name) for name, color in strips[1][2].items()]
            canvas.legend(handles=marks, loc="outside right upper", title="label")

    label_text = (
        f" The second strip shows the known label, in the colour of the matched {parts.dim}. The model did not use the labels."
        if source.labels is not None
        else ""
    )
    n, n_shown = len(source.units), len(order)
    selection = "" if n_shown == n else f" {n_shown} of {n} units are shown, evenly spaced in this order."
    error = found.standard_error
    off = ~np.eye(len(error), dtype=bool)
    precision = (
        f" The Monte Carlo standard error is {shown(float(error[off].mean()), 2)} on average and {shown(float(error[off].max()), 2)} at most."
        if len(order) > 1 and np.isfinite(error).all()
        else ""
    )
    caption = (
        f"Co-assignment probabilities: the share of draws in which two units are in the same {parts.dim}. Units are ordered by their {parts.dim} in "
        f"the point estimate (coloured strip, lines), and by decreasing certainty within each {parts.dim}. Dark blocks are pairs with a "
        f"probability near 1.{label_text}{selection}{precision}"
    )
    return draw_figure(
        "co-assignment", caption, f"Heat map of the co-assignment of {len(order)} units.", (7.6 + 0.9 * len(strips), 6.2), draw
    )


def matched_labels(source: Source, classes: Classes) -> dict[int, int]:
    """Match classes of known labels one to one with the model's labels; surplus classes get further numbers."""
    names = matched(classes.codes, source.probabilities)
    return {code: int(names[classes.codes == code][0]) for code in np.unique(classes.codes).tolist()}


def _patch(color: str, name: str) -> Any:
    from matplotlib.patches import Patch

    return Patch(color=color, label=shortened(name))


def known_label_items(source: Source, parts: Parts) -> list[Item]:
    """Return the contingency table of the point estimate and the known labels, if there are any."""
    if source.labels is None:
        return []
    classes = Classes(source.labels, len(source.units))
    records = [
        {parts.dim: k}
        | {name: int(((source.estimate == k) & (classes.codes == i)).sum()) for i, name in enumerate(classes.names)}
        for k in parts.kept
    ]
    return [
        Table.of(
            "known-labels",
            f"Number of units by {parts.dim} in the point estimate and by known label. The model did not use the labels",
            records,
        )
    ]
