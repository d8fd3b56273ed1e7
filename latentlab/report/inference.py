"""Section 2: convergence of the inference."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd

from latentlab.errors import InferenceError, ModelError
from latentlab.report.chains import chain_items
from latentlab.report.figure import BLUE, GREY, HEAVY, RED, draw_figure
from latentlab.report.items import Item, Section, Table, Text, count, listed, shown
from latentlab.report.optimization import LEVELS, level_name, optimization_items
from latentlab.report.overview import method_name
from latentlab.report.source import POINT, Source
from latentlab.results.loo import loo
from latentlab.results.modes import chain_modes, restart_modes

NEIGHBORING = 0.06
"""Difference of two indices, as a share of the number of units, below which their names are placed on different sides."""
CHECKS = {
    "finite": (
        "All draws and densities are finite numbers.",
        "Look for overflow in the model, and use tighter priors or standardised data.",
    ),
    "R-hat": (
        "The largest ratio of the total to the within-chain standard deviation (rank-normalised) is close to 1.",
        "Run longer chains with more warm-up, or reparameterise the model.",
    ),
    "nested R-hat": (
        "The largest R-hat between groups of chains with a common start is close to 1.",
        "Increase the warm-up, or the number of draws of each chain.",
    ),
    "bulk ESS": (
        "The smallest effective sample size for the centre of a distribution is large enough.",
        "Take more draws, or reparameterise the model to reduce the autocorrelation.",
    ),
    "tail ESS": (
        "The smallest effective sample size for the 5% and 95% quantiles is large enough.",
        "Take more draws; the ends of intervals are less accurate than means.",
    ),
    "MCSE of the mean / sd": (
        "The largest Monte Carlo standard error of a posterior mean, relative to the posterior standard deviation, is small.",
        "Take more draws; the error decreases with the square root of the effective sample size.",
    ),
    "MCSE of the sd / sd": (
        "The largest Monte Carlo standard error of a posterior standard deviation, relative to that standard deviation, is small.",
        "Take more draws; the error decreases with the square root of the effective sample size.",
    ),
    "equal mean log density": (
        "The chains have the same mean log density (p-value of Welch's analysis of variance).",
        "Compare the modes, run longer chains, or use other starting values.",
    ),
    "modes": (
        "All chains are in one mode up to the model's symmetry, or several restarts ended in the best mode.",
        "Run longer chains or more restarts, and compare the modes in their table.",
    ),
    "divergences": (
        "No trajectory of Hamiltonian Monte Carlo diverged.",
        "Increase the target acceptance rate, or reparameterise the model; the draws may be biased.",
    ),
    "E-BFMI": (
        "In every chain, the energy varies sufficiently between draws (estimated Bayesian fraction of missing information).",
        "Reparameterise the model, or use priors with lighter tails; the tails are explored slowly.",
    ),
    "tree depth": (
        "No trajectory of NUTS was stopped at the maximum tree depth.",
        "Increase the maximum tree depth, or rescale the parameters; the draws are valid but less efficient.",
    ),
    "active units": (
        "Every latent dimension of the encoder varies over the units.",
        "Use fewer latent dimensions, or a longer warm-up of the KL term; inactive dimensions are at the prior.",
    ),
    "symmetry": (
        "The log joint density is invariant under the declared symmetry, and under no larger group that was tested.",
        "Correct the symmetry that the model declares; alignment and verdicts depend on it.",
    ),
    "gradient": (
        "The largest derivative at the point estimate is close to 0.",
        "Run more steps or restarts; the estimate is not at an optimum.",
    ),
    "estimate": (
        "The estimation algorithm reported no problem.",
        "Read the note, and change the model or the data accordingly.",
    ),
    "identification": (
        "The number of parameters does not exceed the number of moments or observations that identify them.",
        "Use fewer latent dimensions, or interpret only the identified quantities.",
    ),
    "data": (
        "No property of the data is known to impair inference for this model.",
        "Read the note, and correct or transform the data.",
    ),
    "prior and data": (
        "Location and scale of the data agree with the prior predictive distribution.",
        "Standardise the data, or set the prior scales as the row suggests.",
    ),
    "LOO k-hat": (
        "Importance sampling is reliable for every left-out observation.",
        "Examine the observations with a large k-hat, or use held-out data instead of LOO.",
    ),
    "k-hat": (
        "Importance weights can correct the approximation to the posterior (shape of the Pareto tail of the weights).",
        "Use a more flexible guide or MCMC; means and intervals may be biased.",
    ),
    "ELBO gap": (
        "The importance-weighted bound on the marginal likelihood is close to the ELBO.",
        "Use a more flexible guide or MCMC; the approximation differs from the posterior.",
    ),
    "ELBO drift": (
        "The ELBO did not change over the last quarter of the steps.",
        "Run more steps, or use a smaller learning rate.",
    ),
    "held_out_score": (
        "The log predictive density of the held-out observations. It has no verdict.",
        "Compare it with the score of another model for the same observations.",
    ),
}
"""Name of a check in the diagnostics -> statement that is true if it passes, and what to do if it fails or warns."""


def section(source: Source) -> Section:
    """Build the section: diagnostics, modes, plots of chains and optimisers, and LOO."""
    table = source.run.diagnostics
    items: list[Item] = [Text((sentence(source),)), *_caveats(source)]
    counted = table[table["verdict"] != "not applicable"]
    items.append(Table.of("diagnostics", "Convergence checks, for identified quantities", counted.to_dict("records"), digits=4))
    rest = table[table["verdict"] == "not applicable"]
    if len(rest):
        records = rest[["check", "quantity", "value"]].to_dict("records")
        items.append(
            Table.of("not-applicable", "Values without a verdict, and checks that are not applicable", records, folded=True)
        )
    meanings = check_meanings(table["check"].tolist())
    items += [Table.of("check-meanings", "Meaning of the checks", meanings, folded=True)] if meanings else []
    items += _modes(source)
    if source.kind == "mcmc":
        try:
            items += chain_items(source)
        except OverflowError:  # from ArviZ's density estimate of numbers close to 0
            items.append(Text(("Trace and rank plots are not available: some values are too small for a density estimate.",)))
    items += optimization_items(source)
    items += _loo(source)
    return Section("inference", "Convergence of the inference", tuple(items))


def check_meanings(checks: Sequence[str]) -> list[dict[str, str]]:
    """Return meaning and remedy of each check, in the order of first occurrence; checks of plugins have none.

    Example:
        >>> [record["check"] for record in check_meanings(["k-hat", "finite", "k-hat", "own check"])]
        ['k-hat', 'finite']
    """
    known = [check for check in dict.fromkeys(checks) if check in CHECKS]
    return [{"check": check, "meaning": CHECKS[check][0], "if it fails or warns": CHECKS[check][1]} for check in known]


def sentence(source: Source) -> str:
    """Summarise the diagnostics: number and names of the checks that failed or warned."""
    table = source.run.diagnostics
    by = {verdict: table[table["verdict"] == verdict] for verdict in ("pass", "warn", "fail")}
    n = sum(map(len, by.values()))
    named = {v: listed([f"{c} ({q})" if q else c for c, q in zip(t["check"], t["quantity"], strict=True)]) for v, t in by.items()}
    if len(by["fail"]):
        return f"{len(by['fail'])} of {count(n, 'check')} failed: {named['fail']}. Interpret all results with caution."
    if len(by["warn"]):
        return f"No check failed, and {len(by['warn'])} of {count(n, 'check')} gave a warning: {named['warn']}."
    return f"{ {1: 'The only check', 2: 'Both checks'}.get(n, f'All {n} checks') } passed."


def _caveats(source: Source) -> list[Item]:
    if source.kind == POINT:
        algorithm = source.tree.attrs.get("how", "")
        lines = [
            f"{method_name(source)} gives a point estimate{f' ({algorithm})' if algorithm else ''}. Only the {source.position_noun} have a posterior "
            "distribution, conditional on this estimate.",
            "The intervals omit the uncertainty of the point estimate and are too narrow. The verdict “distinct” is therefore more "
            "frequent than under the full posterior.",
            "R-hat, effective sample sizes, LOO and prior sensitivity require a full posterior and are not reported.",
        ]
        return [Text(tuple(lines), "caution")]
    if source.kind == "vi":
        text = (
            "A variational approximation has no chains to compare. The diagnostic k-hat assesses whether importance weighting can "
            "correct the approximation."
        )
        if source.tree.attrs.get("averaged", 1):
            text += " The approximation is averaged over the model's symmetry group, because a single optimum covers only one of the equivalent modes."
        if "parameters" in source.tree.children:
            text += (
                " The model's parameters are point estimates. Only the positions have a posterior distribution, conditional on the "
                "parameters. It omits the uncertainty of the parameters."
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
    noun = "chain" if source.kind == "mcmc" else "restart"
    n = int(table["n"].sum())
    level = "mean log density" if noun == "chain" else LEVELS.get(level_name(source), "level")
    if len(table) == 1:
        lines, kind = f"All {n} {noun}s are in the same mode.", "plain"
    elif noun == "chain":
        lines, kind = (
            f"The {n} chains are in {len(table)} different modes. No chain moved between modes, so the draws do not estimate the posterior "
            "mass of each mode. Averages over chains on this page weight the modes arbitrarily.",
            "caution",
        )
    else:
        best = float(table["share"].iloc[0])
        lines, kind = (
            f"The {n} restarts converged to {len(table)} different modes. The results are from the best mode, which {best:.0%} of the "
            "restarts reached.",
            "plain",
        )
    records = [
        {
            "mode": int(row["mode"]) + 1,
            f"{noun}s": str(row["members"]),
            "number": int(row["n"]),
            "share": float(row["share"]),
            level: float(row["log_density"]),
            "difference from the first mode": str(row["differs in"]),
        }
        for row in table.to_dict("records")
    ]
    caption = f"Modes of the {noun}s, up to the model's symmetry. "
    caption += (
        "The share of chains does not estimate the posterior mass of a mode"
        if noun == "chain"
        else "The share of restarts reflects the basin of attraction of a mode, not its posterior mass"
    )
    return [Text((lines,), kind), Table.of("modes", caption, records, folded=len(table) == 1, digits=4)]


def _loo(source: Source) -> list[Item]:
    if source.kind == POINT:
        return []
    try:
        score = loo(source.tree)
    except (ModelError, InferenceError) as error:
        return [Text((f"The leave-one-out score is not available: {error}",))]
    unreliable = score.khat >= score.limit
    names, noun = _left_out(source, len(unreliable))
    text = (
        f"The expected log predictive density (leave-one-out) is {shown(score.elpd)} nats (standard error {shown(score.se)}), with "
        f"{shown(score.p_loo)} effective parameters. The diagnostic k-hat is {score.limit:.2f} or more for {int(unreliable.sum())} of "
        f"{count(len(unreliable), noun)}."
    )
    if score.conditional:
        text += " Each unit was scored conditional on its own position, so the score is too high."
    worst = np.argsort(-score.khat, kind="stable")[:3]

    def draw(canvas: Any) -> None:
        axes = canvas.subplots()
        x = np.arange(len(unreliable))
        for chosen, color, marker in ((~unreliable, BLUE, "o"), (unreliable, RED, "X")):
            options: Mapping[str, Any] = {
                "s": 12,
                "color": color,
                "marker": marker,
                "lw": 0,
                "rasterized": len(unreliable) > HEAVY,
            }
            axes.scatter(x[chosen], score.khat[chosen], **options)
        axes.axhline(score.limit, color=GREY, ls="--", lw=1)
        margin = axes.get_yaxis_transform()
        axes.text(1.005, score.limit, f"{score.limit:.2f}", va="center", ha="left", color=GREY, transform=margin)
        for i, (offset, side) in zip(worst, places(worst.tolist(), len(unreliable)), strict=True):
            axes.annotate(names[i], (i, score.khat[i]), xytext=offset, ha=side, textcoords="offset points", fontsize=8)
        axes.set_xlabel(f"{noun} (order of the data)")
        axes.set_ylabel("Pareto k-hat")

    caption = (
        f"Pareto k-hat of each {noun}: a large value means that the posterior changes strongly if the {noun} is left out. Above the dashed "
        f"line, the leave-one-out score of the {noun} is unreliable. The three largest values are labelled."
    )
    return [Text((text,)), draw_figure("khat", caption, f"Pareto k-hat of each of {len(unreliable)} {noun}s.", (10, 2.8), draw)]


def _left_out(source: Source, n: int) -> tuple[list[str], str]:
    """Return names and noun of the left-out observations: points (units in a table), or sequences if there are several."""
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
    return [free[sum(abs(i - j) < NEIGHBORING * n for j in chosen[:rank])] for rank, i in enumerate(chosen)]
