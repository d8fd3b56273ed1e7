"""Section 2: did inference work."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
import xarray as xr

from latentlab.errors import InferenceError, ModelError
from latentlab.report.asked import method_name
from latentlab.report.figure import BLUE, COLORS, GREY, HEAVY, RED, drawn, log_axis, style, svg
from latentlab.report.items import Figure, Item, Section, Table, Text, count, listed, shown
from latentlab.report.source import POINT, Source
from latentlab.results.arviz import installed_arviz, to_arviz
from latentlab.results.convergence import rhat
from latentlab.results.loo import loo
from latentlab.results.modes import chain_modes, restart_modes
from latentlab.results.quantities import Labels, entries, identified, labels_of
from latentlab.results.tree import build

SHOWN = 4
"""Invariants whose chains are drawn."""
MOST_POINTS = 2000
"""Steps of a curve that are drawn."""
NEAR = 0.06
"""Units so near to each other, as a share of all, have their names on different sides."""


def section(source: Source) -> Section:
    """The diagnostics, and what chains, steps and units look like."""
    table = source.run.diagnostics
    items: list[Item] = [Text((sentence(source),)), *_caveats(source)]
    counted = table[table["verdict"] != "not applicable"]
    items.append(
        Table.of("diagnostics", "Checks, on what the model's symmetry leaves identified", counted.to_dict("records"), digits=4)
    )
    rest = table[table["verdict"] == "not applicable"]
    if len(rest):
        records = rest[["check", "quantity", "value"]].to_dict("records")
        items.append(Table.of("not-applicable", "Shown without a verdict, and checks that do not apply", records, folded=True))
    items += _modes(source)
    if source.kind == "mcmc":
        try:
            items += _chains(source)
        except OverflowError:  # ArviZ's density of numbers that are hardly above 0
            items.append(
                Text(("The chains are not drawn: some of their values are too small for an estimate of their density.",))
            )
    items += _optimization(source)
    items += _loo(source)
    return Section("inference", "Did inference work?", tuple(items))


def sentence(source: Source) -> str:
    """The diagnostics in a sentence."""
    table = source.run.diagnostics
    by = {verdict: table[table["verdict"] == verdict] for verdict in ("pass", "warn", "fail")}
    n = sum(map(len, by.values()))
    named = {v: listed([f"{c} ({q})" if q else c for c, q in zip(t["check"], t["quantity"], strict=True)]) for v, t in by.items()}
    if len(by["fail"]):
        return f"Inference did not pass: {len(by['fail'])} of {count(n, 'check')} failed, {named['fail']}. Read on with care."
    if len(by["warn"]):
        return f"No check failed; {count(len(by['warn']), 'warning')} of {count(n, 'check')}: {named['warn']}."
    which = {1: "the one check was", 2: "both checks were"}.get(n, f"all {n} checks were")
    return f"Inference passed: {which} fulfilled."


def _caveats(source: Source) -> list[Item]:
    if source.kind == POINT:
        how = source.tree.attrs.get("how", "")
        lines = [
            f"{method_name(source)} gives a point estimate{f' ({how})' if how else ''}: the model's other parameters are fixed at it, and only "
            f"the {source.called} have a spread, given that estimate.",
            "What the estimate itself is uncertain of is missing from every interval below, so that the intervals are too narrow, "
            "and an embedding is called distinct sooner than by the full posterior.",
            "R-hat, effective sample sizes, LOO and the sensitivity to the prior need a posterior, and are not given.",
        ]
        return [Text(tuple(lines), "caution")]
    if source.kind == "vi":
        text = (
            "A variational approximation has no chains to compare; k-hat says how far its draws can be corrected to the posterior "
            "by importance weights."
        )
        if source.tree.attrs.get("averaged", 1):
            text += " It is averaged over the model's symmetry, whose copies of one answer a single optimum cannot know."
        if "parameters" in source.tree.children:
            text += (
                " The model's parameters are points, fitted to these units: only positions have a spread, given the parameters, and "
                "what the parameters themselves are uncertain of is missing from it."
            )
        return [Text((text,))]
    return []


# -- modes


def modes(source: Source) -> pd.DataFrame | None:
    """The modes that chains or restarts sit in; None with a single one, or without the model."""
    if source.model is None:
        return None
    if source.kind == "mcmc":
        several = source.tree["posterior"].sizes["chain"] > 1
    else:
        group = source.group("restarts")
        several = group is not None and group.sizes.get("restart", next(iter(group.sizes.values()), 0)) > 1
    if not several:
        return None
    find = chain_modes if source.kind == "mcmc" else restart_modes
    return find(source.tree, group=source.model.exchanges, dims=source.model.dims, position=source.site)


def _modes(source: Source) -> list[Item]:
    table = modes(source)
    if table is None or not len(table):
        return []
    what = "chain" if source.kind == "mcmc" else "restart"
    n = int(table["n"].sum())
    level = "mean log density" if what == "chain" else LEVELS.get(_level(source), "level")
    if len(table) == 1:
        lines, kind = f"The {n} {what}s found the same mode.", "plain"
    elif what == "chain":
        lines, kind = (
            f"The {n} chains sit in {len(table)} different modes: no chain went from one to another, so that the draws do not say how "
            "much each of them weighs, and what is averaged over all chains below is an average over modes in arbitrary shares.",
            "caution",
        )
    else:
        best = float(table["share"].iloc[0])
        lines, kind = (
            f"The {n} restarts ended in {len(table)} different modes; what follows is from the best one, which {best:.0%} of them found.",
            "plain",
        )
    records = [
        {
            "mode": int(row["mode"]) + 1,
            f"{what}s": str(row["members"]),
            "how many": int(row["n"]),
            "share": float(row["share"]),
            level: float(row["level"]),
            "how it differs from the first": str(row["differs in"]),
        }
        for row in table.to_dict("records")
    ]
    caption = f"Modes, up to what the model leaves open: sets of {what}s that found the same"
    caption += (
        "; a share of chains says nothing of a mode's mass"
        if what == "chain"
        else "; a share is that of a mode's basin, not its mass"
    )
    return [Text((lines,), kind), Table.of("modes", caption, records, folded=len(table) == 1, digits=4)]


LEVELS = {"elbo": "ELBO", "log_joint": "log density", "maxima": "log likelihood"}
"""What of the optimisation says how good a restart is."""


def _level(source: Source) -> str:
    found = source.group("optimization")
    return next((name for name in LEVELS if found is not None and name in found), "")


# -- chains

MANY_CHAINS = 8
"""Above so many chains a legend has no line for each."""


def invariants(source: Source) -> dict[str, np.ndarray]:
    """What chains can be compared by, `(chain, draw, ...)` by name; the sites without a group where the model is not known."""
    model = source.model
    if model is None:
        return {}
    values = {str(n): a.values for n, a in source.tree["posterior"].data_vars.items() if n in model.dims}
    return identified(values, {n: tuple(model.dims[n]) for n in values}, model.exchanges, source.site)


def row_labels(source: Source) -> Labels:
    """What the rows of the model's sites are called."""
    return {} if source.model is None else labels_of(source.tree, source.model.dims, source.model.exchanges)


def _drawn_series(source: Source) -> dict[str, np.ndarray]:
    """Log density, and of a few invariants the entry that mixes worst."""
    stats = source.group("sample_stats")
    series = {} if stats is None or "lp" not in stats else {"log density": stats["lp"].values}
    found = {}
    for quantity, array in invariants(source).items():
        names, flat = entries({quantity: array}, row_labels(source), source.tree["posterior"].sizes)
        if names:
            mixing = np.nan_to_num(rhat(flat))
            worst = int(np.argmax(mixing))
            found[names[worst]] = (float(mixing[worst]), flat[..., worst])
    for name in sorted(found, key=lambda n: -found[n][0])[:SHOWN]:
        series[name] = found[name][1]
    return series


def _chains(source: Source) -> list[Item]:
    series = _drawn_series(source)
    if not series:
        return [Text(("There is nothing here whose chains could be drawn.",))]
    what = listed(list(series), most=9)
    n = source.tree["posterior"].sizes["chain"]
    n_superchains = int(source.tree.attrs.get("n_superchains", 1))
    grouped = 1 < n_superchains < n
    n_shown = n_superchains if grouped else n
    first = f"of the first chain of each of {n_superchains} superchains" if grouped else "of each chain"
    by = f"superchain, each with {n // n_superchains} of the {n} chains" if grouped else "chain"
    items: list[Item] = [
        arviz_figure(
            *("trace", "plot_trace", _tree({name: x[:: n // n_shown] for name, x in series.items()})),
            caption=f"Draws {first} in order, for {what} (of each invariant the entry with the largest R-hat). Chains that "
            "have found the same distribution lie over each other and show no trend.",
            alt=f"Trace plots of {n_shown} chains for {what}.",
        ),
        arviz_figure(
            *("rank", "plot_rank", _tree({name: x.reshape(n_shown, -1) for name, x in series.items()})),
            caption=f"Ranks of the draws by {by}. Sound chains have even ranks: level bars, or curves inside their envelope.",
            alt=f"Rank plots of {n_shown} {'superchains' if grouped else 'chains'} for {what}.",
        ),
    ]
    stats = source.group("sample_stats")
    if stats is not None and "energy" in stats:
        items.append(
            arviz_figure(
                *("energy", "plot_energy", source.tree),
                caption="Energy of the Hamiltonian and its change from draw to draw. Where the change is much narrower than the energy "
                "itself, the tails are explored slowly (E-BFMI below 0.3).",
                alt="Distributions of the sampler's energy and of its transitions.",
                most=3.2,
            )
        )
    return items


def _tree(series: Mapping[str, np.ndarray]) -> xr.DataTree:
    """A tree of scalar quantities `(chain, draw)` by name."""
    names = {f"q{i}": name for i, name in enumerate(series)}
    tree = build({"posterior": {k: series[v] for k, v in names.items()}}, dims={k: () for k in names})
    tree["posterior"] = xr.DataTree(tree["posterior"].to_dataset().rename({k: _variable(v) for k, v in names.items()}))
    return tree


def _variable(name: str) -> str:
    """A name that a variable of a tree can have: no dim's, and no path."""
    return "dim " + name if name in ("chain", "draw") else name.replace("/", "\u2215")


def _without_long_legend(axes: Any) -> None:
    """Leaves a line for each of many chains out of a legend; the smallest E-BFMI is in the table of checks."""
    handles, names = axes.get_legend_handles_labels()
    kept = [(handle, name) for handle, name in zip(handles, names, strict=True) if not name.startswith("chain ")]
    if axes.get_legend() is not None and len(names) - len(kept) > MANY_CHAINS:
        axes.legend(*zip(*kept, strict=True))


def arviz_figure(name: str, function: str, tree: xr.DataTree, *, caption: str, alt: str, most: float = 9.0) -> Figure:
    """A drawing by ArviZ's function of that name, in whichever line of ArviZ is installed, at most so many inches high."""
    from matplotlib import pyplot

    before = pyplot.get_fignums()
    with style(), pyplot.ioff():
        try:
            made: Any = getattr(installed_arviz(), function)(to_arviz(tree))
            canvas = made.viz["figure"].item() if hasattr(made, "viz") else np.ravel(made)[0].figure
            width, height = canvas.get_size_inches()
            canvas.set_size_inches(10, min(most, max(2.5, 10 * height / width)))
            if canvas.get_layout_engine() is None:
                canvas.set_layout_engine("constrained")
            for axes in canvas.axes:
                _without_long_legend(axes)
                for mark in (*axes.lines, *axes.collections):
                    mark.set_rasterized(_heavy(mark))
            return Figure(name, caption, alt, svg(canvas, name, alt))
        finally:
            for number in set(pyplot.get_fignums()) - set(before):
                pyplot.close(number)


def _heavy(mark: Any) -> bool:
    return len(mark.get_xdata() if hasattr(mark, "get_xdata") else mark.get_offsets()) > HEAVY // 2


# -- optimisation


def _optimization(source: Source) -> list[Item]:
    found = source.group("optimization")
    if found is None:
        return []
    if "loss" in found:
        return [_elbo(-found["loss"].values)]
    if "log_likelihood" in found and found["log_likelihood"].size > 1:
        return [_climb(found["log_likelihood"].values)]
    restarts = found.get("log_joint")
    if restarts is not None and restarts.size > 1:
        best = float(restarts.max())
        same = int((restarts > best - 0.1).sum())
        return [
            Text((f"{same} of {count(restarts.size, 'start')} ended within 0.1 nats of the best log density, {shown(best)}.",))
        ]
    return []


def _elbo(elbo: np.ndarray) -> Figure:
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
        whole.set_title("whole course")
        end.set_title("last quarter")
        if len(elbo) > 1:
            whole.legend()

    caption = (
        "Evidence lower bound by step, noisy values pale and their running mean drawn over them; the first steps may lie below "
        "the frame. It should have stopped rising."
    )
    return drawn("elbo", caption, f"Curve of the ELBO over {n_steps} steps.", (10, 3.0), draw)


def _climb(values: np.ndarray) -> Figure:
    def draw(canvas: Any) -> None:
        axes = canvas.subplots()
        gap = np.maximum(values[-1] - values[:-1], 1e-16)
        axes.semilogy(np.arange(len(gap)), gap, color=BLUE, lw=1.8)
        axes.set_xlabel("step")
        log_axis(axes.yaxis)
        axes.set_ylabel("nats below the end")
        axes.grid(axis="y")

    caption = f"Log likelihood that was still to be gained at each step; it ended at {shown(float(values[-1]))}."
    return drawn("climb", caption, f"Convergence of the likelihood over {len(values)} steps.", (10, 2.6), draw)


# -- leave-one-out


def _loo(source: Source) -> list[Item]:
    if source.kind == POINT:
        return []
    try:
        found = loo(source.tree)
    except (ModelError, InferenceError) as error:
        return [Text((f"There is no leave-one-out score: {error}",))]
    bad = found.khat >= found.limit
    names, noun = _left_out(source, len(bad))
    said = (
        f"Leave-one-out predictive score: {shown(found.elpd)} nats with standard error {shown(found.se)}; "
        f"{shown(found.p_loo)} effective parameters; {int(bad.sum())} of {count(len(bad), noun)} with k-hat of "
        f"{found.limit:.2f} or more."
    )
    if found.conditional:
        said += " Units were scored given their own positions, so that the score is too high."
    worst = np.argsort(-found.khat, kind="stable")[:3]

    def draw(canvas: Any) -> None:
        axes = canvas.subplots()
        x = np.arange(len(bad))
        for chosen, color, marker in ((~bad, BLUE, "o"), (bad, RED, "X")):
            options: Mapping[str, Any] = {"s": 12, "color": color, "marker": marker, "lw": 0, "rasterized": len(bad) > HEAVY}
            axes.scatter(x[chosen], found.khat[chosen], **options)
        axes.axhline(found.limit, color=GREY, ls="--", lw=1)
        beside = axes.get_yaxis_transform()
        axes.text(1.005, found.limit, f"{found.limit:.2f}", va="center", ha="left", color=GREY, transform=beside)
        for i, (offset, side) in zip(worst, places(worst.tolist(), len(bad)), strict=True):
            axes.annotate(names[i], (i, found.khat[i]), xytext=offset, ha=side, textcoords="offset points", fontsize=8)
        axes.set_xlabel(f"{noun}, in the order of the data")
        axes.set_ylabel("Pareto k-hat")

    caption = (
        f"How much the posterior changes when a {noun} is left out. Above the dashed line the {noun}'s own score is not to be relied on: "
        "it is one that the model did not expect. The three largest are named."
    )
    return [Text((said,)), drawn("khat", caption, f"Pareto k-hat of each of {len(bad)} {noun}s.", (10, 2.8), draw)]


def _left_out(source: Source, n: int) -> tuple[list[str], str]:
    """Names and noun of what is left out: points (in a table: units), or the sequences where there are several."""
    group = source.group("leave_one_out")
    array = None if group is None else next(iter(group.data_vars.values()))
    if array is None or array.dims[-1] == source.points or array.shape[-1] != n:
        return source.point_names, source.points
    return [str(name) for name in array[array.dims[-1]].values], "sequence"


def places(chosen: Sequence[int], n: int) -> list[tuple[tuple[int, int], Literal["left", "right"]]]:
    """Where the names of up to three of n units stand, so that neighbours' do not lie on each other: offset and alignment.

    Example:
        >>> places([10, 11, 70], 100)
        [((4, 2), 'left'), ((-4, 2), 'right'), ((4, 2), 'left')]
    """
    free: list[tuple[tuple[int, int], Literal["left", "right"]]] = [((4, 2), "left"), ((-4, 2), "right"), ((4, -9), "left")]
    return [free[sum(abs(i - j) < NEAR * n for j in chosen[:rank])] for rank, i in enumerate(chosen)]
