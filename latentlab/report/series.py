"""Section 3 if the units are steps in time: states or positions over time, and transitions between states."""

from typing import Any

import numpy as np

from latentlab.data.memory import by_quantity
from latentlab.report.components import draws_of, location
from latentlab.report.figure import COLORS, GREY, HEAVY, INK, draw_figure, feature, shortened
from latentlab.report.items import Figure, Item, Table, listed
from latentlab.report.parts import Parts
from latentlab.report.source import POINT, Source

LEVEL = 0.8
"""Probability content of the credible intervals and ellipses of positions."""
MOST_SEQUENCES = 4
MOST_FEATURES = 6
MOST_PANELS = 12
"""Largest number of panels of features over all sequences; each sequence has at least one."""
MOST_AXES = 4
MOST_NUMBERED = 12
"""Largest number of states for which the figure of the transitions contains numbers."""
MOST_TICKS = 8


def interval(source: Source) -> tuple[np.ndarray, np.ndarray]:
    """Return the ends of each position's credible interval of content `LEVEL`, `(unit, latent)` each."""
    z, ends = source.positions.values, ((1 - LEVEL) / 2, (1 + LEVEL) / 2)
    flat = z.reshape(*z.shape[:2], -1)
    low, high = by_quantity(lambda part: np.quantile(part, ends, axis=(0, 1)), flat).reshape(2, *z.shape[2:])
    return low, high


def course_of_states(source: Source, parts: Parts) -> list[Item]:
    """Return a figure of the series above the probabilities of the states; empty if the data are not a table of a series."""
    return [_ribbon(source, parts)] if source.sequences is not None and source.is_table else []


def course_of_positions(source: Source) -> list[Item]:
    """Return a figure of each latent axis over time with bands; empty if the data are not a series."""
    return [] if source.sequences is None else [_course(source)]


def transitions(source: Source, parts: Parts) -> list[Item]:
    """Return transition probabilities, durations of states and initial states; empty for a model without transitions."""
    draws = draws_of(source, "transition")
    if draws is None or draws.ndim != 3:
        return []
    return [_transitions(source, parts, draws), *_durations(source, parts, draws)]


# -- over time


def _shown_sequences(source: Source) -> tuple[list[np.ndarray], str]:
    """Return the sequences that are shown, and a sentence on the selection."""
    sequences = source.sequences or []
    if len(sequences) <= MOST_SEQUENCES:
        return sequences, ""
    return sequences[:MOST_SEQUENCES], f" The first {MOST_SEQUENCES} of {len(sequences)} sequences are shown."


def _name(source: Source, steps: np.ndarray) -> str:
    coords = source.observed.coords
    return f"sequence {coords['sequence'].values[steps[0]]}" if "sequence" in coords else ""


def _clock(source: Source, steps: np.ndarray) -> tuple[np.ndarray, list[str] | None]:
    """Return the coordinates of the steps on the time axis, and their names if times are not numbers."""
    if "time" not in source.observed.coords:
        return np.arange(len(steps)), None
    time = source.observed["time"].values[steps]
    if time.dtype.kind in "iuf":
        return time.astype(np.float64), None
    return np.arange(len(steps)), [str(one)[:10] for one in time]


def _ticks(axes: Any, names: list[str] | None) -> None:
    if names is not None:
        at = np.unique(np.linspace(0, len(names) - 1, min(len(names), MOST_TICKS)).astype(int))
        axes.set_xticks(at, [shortened(names[i], 12) for i in at])


def _edges(x: np.ndarray) -> np.ndarray:
    """Return the beginning of each step and the end of the last one."""
    if len(x) == 1:
        return np.array([x[0] - 0.5, x[0] + 0.5])
    middle = (x[1:] + x[:-1]) / 2
    return np.concatenate([[2 * x[0] - middle[0]], middle, [2 * x[-1] - middle[-1]]])


def _ribbon(source: Source, parts: Parts) -> Figure:
    sequences, selection = _shown_sequences(source)
    n_drawn = min(len(source.features), MOST_FEATURES, max(1, MOST_PANELS // len(sequences)))
    x, found = source.observed.values, location(source)
    levels = (
        None if found is None or len(found[2]) != len(source.features) or found[0] == "probability" else found[1].mean(axis=0)
    )
    block = n_drawn + 1
    heights = ([1.0] * n_drawn + [0.42]) * len(sequences)

    def draw(canvas: Any) -> None:
        grid = canvas.subplots(block * len(sequences), 1, squeeze=False, height_ratios=heights)[:, 0]
        for s, steps in enumerate(sequences):
            at, names = _clock(source, steps)
            edges, estimate = _edges(at), source.estimate[steps]
            for d in range(n_drawn):
                axes = grid[s * block + d]
                axes.plot(at, x[steps, d], color=GREY, lw=0.8, alpha=0.8, rasterized=len(at) > HEAVY)
                if levels is not None and estimate.max() < len(levels):
                    axes.stairs(levels[estimate, d], edges, baseline=None, color=INK, lw=1.1)
                for k in parts.kept:
                    chosen = estimate == k
                    axes.plot(
                        *(at[chosen], x[steps[chosen], d], parts.marker(k)),
                        **{"color": parts.color(k), "ms": 3, "mew": 0, "label": parts.name(k)},
                        rasterized=len(at) > HEAVY,
                    )
                axes.set_ylabel(feature(source.features[d], 14))
                axes.set_xlim(edges[0], edges[-1])
                axes.tick_params(labelbottom=False)
                axes.grid(axis="y")
            grid[s * block].set_title(_name(source, steps))
            band = grid[s * block + n_drawn]
            base = np.zeros(len(steps))
            for k in parts.kept:
                top = base + source.probabilities[steps, k]
                band.stairs(top, edges, baseline=base, fill=True, color=parts.color(k), lw=0)
                base = top
            band.stairs(np.full(len(steps), 1.0), edges, baseline=None, color=GREY, lw=0.6)
            band.set_xlim(edges[0], edges[-1])
            band.set_ylim(0, 1)
            band.set_yticks([])
            band.set_ylabel("probability", fontsize=8, rotation=0, ha="right", va="center")
            _ticks(band, names)
        grid[-1].set_xlabel("time" if "time" in source.observed.coords else "step")
        canvas.legend(*grid[0].get_legend_handles_labels(), loc="outside right upper", markerscale=2)

    state = f"the {parts.dim} of the point estimate"
    line = "" if levels is None else f" The black line is the posterior mean of the feature's level in {state}."
    few = "" if n_drawn == len(source.features) else f" The first {n_drawn} of {len(source.features)} features are shown."
    caption = (
        f"Data and {parts.dim}s over time. The upper panels show the data, with the colour and shape of the {parts.dim} in the point "
        f"estimate.{line} The lowest panel shows the posterior probability of each {parts.dim} at each step. Several colours at a step "
        f"mean that the {parts.dim} is uncertain.{selection}{few}"
    )
    alt = f"Series of {len(source.units)} steps with the probabilities of {len(parts.kept)} {parts.dim}s."
    height = sum(heights) * (1.05 if n_drawn > 1 or len(sequences) > 1 else 1.7) + 0.9
    return draw_figure("course", caption, alt, (10, height), draw)


def _course(source: Source) -> Figure:
    sequences, selection = _shown_sequences(source)
    n_axes = source.positions.shape[3]
    q, (low, high) = min(n_axes, MOST_AXES), interval(source)

    def draw(canvas: Any) -> None:
        grid = canvas.subplots(len(sequences), 1, squeeze=False)[:, 0]
        for axes, steps in zip(grid, sequences, strict=True):
            at, names = _clock(source, steps)
            for k in range(q):
                axes.fill_between(at, low[steps, k], high[steps, k], color=COLORS[k], alpha=0.22, lw=0)
                axes.plot(at, source.mean[steps, k], color=COLORS[k], lw=1.4, label=f"latent axis {k + 1}")
            axes.set_title(_name(source, steps))
            axes.set_ylabel("position")
            axes.grid()
            axes.margins(x=0.01)
            _ticks(axes, names)
        grid[-1].set_xlabel("time" if "time" in source.observed.coords else "step")
        canvas.legend(*grid[0].get_legend_handles_labels(), loc="outside right upper")

    few = "" if q == n_axes else f" The first {q} of {n_axes} axes are shown."
    caption = (
        f"Positions over time: posterior mean of each latent axis with its pointwise {LEVEL:.0%} credible band. "
        f"Interpret only quantities that are invariant under the model's symmetry.{selection}{few}"
    )
    alt = f"Lines of {q} latent axes over {len(source.units)} steps."
    return draw_figure("course", caption, alt, (10, 0.8 + (2.0 if len(sequences) > 1 else 2.8) * len(sequences)), draw)


# -- transitions


def _transitions(source: Source, parts: Parts, draws: np.ndarray) -> Figure:
    kept = parts.kept
    draws = draws[:, kept][:, :, kept]
    mean, (low, high) = draws.mean(axis=0), np.quantile(draws, (0.05, 0.95), axis=0)

    def draw(canvas: Any) -> None:
        axes = canvas.subplots()
        drawing = axes.imshow(mean, cmap="Blues", vmin=0, vmax=1)
        if len(kept) <= MOST_NUMBERED:
            for i, j in np.ndindex(mean.shape):
                interval = "" if source.kind == POINT else f"\n{low[i, j]:.2f}–{high[i, j]:.2f}"
                color = "white" if mean[i, j] > 0.55 else INK
                axes.text(j, i, f"{mean[i, j]:.2f}{interval}", ha="center", va="center", fontsize=8, color=color)
        axes.set_xticks(np.arange(len(kept)), kept)
        axes.set_yticks(np.arange(len(kept)), kept)
        axes.set_xlabel(f"to {parts.dim}")
        axes.set_ylabel(f"from {parts.dim}")
        canvas.colorbar(drawing, ax=axes, label="probability", shrink=0.8)

    estimate = "at the point estimate" if source.kind == POINT else "posterior mean and 90% credible interval"
    caption = f"Transition probabilities between {parts.dim}s from one step to the next: {estimate}."
    side = min(7.0, 1.6 + 0.85 * len(kept))
    alt = "Heat map of transition probabilities; diagonal: " + listed([f"{k} {mean[i, i]:.2f}" for i, k in enumerate(kept)], 12)
    return draw_figure("transitions", caption, alt, (side + 1.4, side), draw)


def _durations(source: Source, parts: Parts, draws: np.ndarray) -> list[Item]:
    first = draws_of(source, "initial")
    fixed = first is None or not np.ptp(first, axis=0).any()
    has_initial = first is not None and (not fixed or source.kind == POINT)
    records, moves = [], []
    for k in parts.kept:
        with np.errstate(divide="ignore"):
            stay = 1 / (1 - draws[:, k, k])
        record: dict[str, Any] = {parts.dim: k, "duration in steps, median": float(np.median(stay))}
        if source.kind != POINT:
            low, high = np.quantile(stay, (0.05, 0.95), method="nearest")
            record |= {"q05": float(low), "q95": float(high)}
        if has_initial and first is not None:
            record["initial, mean"] = float(first[:, k].mean())
            if not fixed:
                low, high = np.quantile(first[:, k], (0.05, 0.95))
                record |= {"initial, q05": float(low), "initial, q95": float(high)}
        records.append(record)
        for m in parts.kept:
            move = {"from": k, "to": m, "mean": float(draws[:, k, m].mean())}
            if source.kind != POINT:
                low, high = np.quantile(draws[:, k, m], (0.05, 0.95))
                move |= {"q05": float(low), "q95": float(high)}
            moves.append(move)
    caption = f"Expected duration of each {parts.dim} in steps, 1 / (1 − probability of remaining in it)"
    caption += ", with 90% credible intervals" if source.kind != POINT else ""
    caption += ". The initial probability is the probability of the state at the first step of a sequence" if has_initial else ""
    return [
        Table.of("durations", caption, records),
        Table.of("transitions", "Transition probabilities", moves, folded=True),
    ]
