"""Section 2: diagnostics of the inference."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd

from latentlab.errors import InferenceError, ModelError
from latentlab.report.asked import method_name
from latentlab.report.chains import chain_items
from latentlab.report.figure import BLUE, GREY, HEAVY, RED, drawn
from latentlab.report.items import Item, Section, Table, Text, count, listed, shown
from latentlab.report.optimization import LEVELS, level_name, optimization_items
from latentlab.report.source import POINT, Source
from latentlab.results.loo import loo
from latentlab.results.modes import chain_modes, restart_modes

NEAR = 0.06
"""Distance of two units, as a share of all, below which their names are on different sides."""


def section(source: Source) -> Section:
    """Build the section: diagnostics, modes, plots of chains and optimisers, and LOO."""
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
            items += chain_items(source)
        except OverflowError:  # from ArviZ's density estimate of numbers close to 0
            items.append(
                Text(("The chains are not drawn: some of their values are too small for an estimate of their density.",))
            )
    items += optimization_items(source)
    items += _loo(source)
    return Section("inference", "Did inference work?", tuple(items))


def sentence(source: Source) -> str:
    """Summarise the diagnostics in one sentence."""
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


def modes(source: Source) -> pd.DataFrame | None:
    """Return the modes of the chains or restarts; None with a single mode, or without the model."""
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
    level = "mean log density" if what == "chain" else LEVELS.get(level_name(source), "level")
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
    """Returns names and noun of the left-out observations: points (units in a table), or sequences if there are several."""
    group = source.group("leave_one_out")
    array = None if group is None else next(iter(group.data_vars.values()))
    if array is None or array.dims[-1] == source.points or array.shape[-1] != n:
        return source.point_names, source.points
    return [str(name) for name in array[array.dims[-1]].values], "sequence"


def places(chosen: Sequence[int], n: int) -> list[tuple[tuple[int, int], Literal["left", "right"]]]:
    """Return offset and alignment of the names of up to three of n units, so that names of neighbours do not overlap.

    Example:
        >>> places([10, 11, 70], 100)
        [((4, 2), 'left'), ((-4, 2), 'right'), ((4, 2), 'left')]
    """
    free: list[tuple[tuple[int, int], Literal["left", "right"]]] = [((4, 2), "left"), ((-4, 2), "right"), ((4, -9), "left")]
    return [free[sum(abs(i - j) < NEAR * n for j in chosen[:rank])] for rank, i in enumerate(chosen)]
