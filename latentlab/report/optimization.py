"""Convergence of optimisers."""

from typing import Any

import numpy as np

from latentlab.report.figure import BLUE, COLORS, HEAVY, draw_figure, log_axis
from latentlab.report.items import Figure, Item, Text, count, shown
from latentlab.report.source import Source

MOST_POINTS = 2000
"""Largest number of plotted steps of a curve."""
LEVELS = {"elbo": "ELBO", "log_joint": "log density", "maxima": "log likelihood"}
"""Variable of the group `optimization` with the objective of each restart -> its name on the page."""


def level_name(source: Source) -> str:
    found = source.group("optimization")
    return next((name for name in LEVELS if found is not None and name in found), "")


def optimization_items(source: Source) -> list[Item]:
    found = source.group("optimization")
    if found is None:
        return []
    if "loss" in found:
        return [_elbo_figure(-found["loss"].values)]
    if "log_likelihood" in found and found["log_likelihood"].size > 1:
        return [_likelihood_figure(found["log_likelihood"].values)]
    restarts = found.get("log_joint")
    if restarts is not None and restarts.size > 1:
        best = float(restarts.max())
        same = int((restarts > best - 0.1).sum())
        return [
            Text(
                (
                    f"{same} of {count(restarts.size, 'restart')} converged to within 0.1 nats of the largest log density, {shown(best)}.",
                )
            )
        ]
    return []


def _elbo_figure(elbo: np.ndarray) -> Figure:
    n_steps = elbo.shape[1]
    keep = np.unique(np.linspace(0, n_steps - 1, min(n_steps, MOST_POINTS)).astype(int))

    def draw(canvas: Any) -> None:
        whole, end = canvas.subplots(1, 2)
        for axes, first in ((whole, 0), (end, n_steps - max(2, n_steps // 4))):
            for i, curve in enumerate(elbo):
                steps = keep[keep >= first]
                axes.plot(steps, curve[steps], color=COLORS[i % len(COLORS)], lw=0.8, alpha=0.5, rasterized=len(steps) > HEAVY)
                if len(steps) > 50:
                    window = max(1, n_steps // 60)
                    smooth = np.convolve(curve, np.ones(window) / window, mode="valid")[max(0, first - window // 2) :]
                    x = np.arange(len(smooth)) + first + window // 2
                    axes.plot(x, smooth, color=COLORS[i % len(COLORS)], lw=1.8, label=f"restart {i}")
            axes.set_xlabel("step")
            axes.ticklabel_format(style="plain", useOffset=False)
            axes.grid(axis="y")
        low = np.quantile(elbo[:, n_steps // 20 :], 0.02)
        whole.set_ylim(low - 0.1 * (elbo.max() - low), elbo.max() + 0.05 * (elbo.max() - low))
        whole.set_ylabel("ELBO, nats")
        whole.set_title("all steps")
        end.set_title("last quarter")
        if len(elbo) > 1:
            whole.legend()

    caption = (
        "Evidence lower bound (ELBO) by step. Pale lines are stochastic estimates, and dark lines are running means. The first steps may be "
        "below the frame. A curve that has converged is level at the end."
    )
    return draw_figure("elbo", caption, f"Curve of the ELBO over {n_steps} steps.", (10, 3.0), draw)


def _likelihood_figure(values: np.ndarray) -> Figure:
    def draw(canvas: Any) -> None:
        axes = canvas.subplots()
        gap = np.maximum(values[-1] - values[:-1], 1e-16)
        axes.semilogy(np.arange(len(gap)), gap, color=BLUE, lw=1.8)
        axes.set_xlabel("step")
        log_axis(axes.yaxis)
        axes.set_ylabel("nats below the final log likelihood")
        axes.grid(axis="y")

    caption = f"Difference of the log likelihood at each step from its final value, {shown(float(values[-1]))}."
    return draw_figure("log-likelihood", caption, f"Convergence of the log likelihood over {len(values)} steps.", (10, 2.6), draw)
