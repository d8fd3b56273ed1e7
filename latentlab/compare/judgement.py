"""Statistics of one embedding, and its label after adjusting the p-values for multiple embeddings (Holm)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

Label = Literal["summary-like", "draw-like", "distinct", "undetermined"]
TRIVIAL = {
    "positions": "the posterior mean with permuted units or a constant embedding",
    "labels": "permuted labels, a single cluster or singletons",
}
"""Uninformative arrays that `summary-like` must exclude, by type of the positions."""
CLOSE_TO_REQUIRED = 1.05
"""Ratio of effective to required draws below which another sample of draws may be too small."""
NO_DRAWS_BEYOND = 0.25
"""Effective number of draws beyond a statistic at or below which the statistic counts as outside all draws."""


@dataclass(frozen=True)
class Verdict:
    """Statistics of one embedding under one alignment, and the resulting label.

    Attributes:
        verdict: `summary-like`, `draw-like`, `distinct` or `undetermined`.
        delta: Distance from the posterior mean, relative to that of a typical draw: 0 is the mean, 1 a draw.
        p_low: Share of held-out draws at least as near to the mean, as a p-value.
        p_guard: Share of held-out draws with an error at least as extreme, as a p-value.
        component: Component with the most extreme error: `overall`, a function of the positions, or units.
        scale: Factor b that scales the embedding to the mean; infinite for a constant embedding.
        scale_rank: Share of held-out draws with a smaller b.
        coverage_50: Share of units inside their 50% credible region; `coverage_80` and `coverage_95` likewise.
        draw_coverage_50: The same share for held-out draws; `draw_coverage_80` and `draw_coverage_95` likewise.
        ess: Effective sample size of the held-out draws: the smaller value of the two ranked statistics.
        gate_summary: 95% quantile of p_guard of shuffled means, or p_guard of the constant embedding if larger; `summary-like`
            requires at most alpha / 2.
        gate_draw: 95% quantile of p_guard of shuffled draws; `draw-like` requires at most alpha / 2.
        worst_units: Units farthest from the mean, the farthest first.
        notes: Remarks on the verdict.
        reason: Reason for `undetermined`; empty otherwise.
        alignment: `fixed`, `orthogonal`, `similarity` or `affine`; `labels` for a clustering, which has no scale and no coverage.
        alpha: Level of the test.
    """

    verdict: Label
    delta: float
    p_low: float
    p_guard: float
    component: str
    scale: float
    scale_rank: float
    coverage_50: float
    coverage_80: float
    coverage_95: float
    draw_coverage_50: float
    draw_coverage_80: float
    draw_coverage_95: float
    ess: float
    gate_summary: float
    gate_draw: float
    worst_units: tuple[str, ...]
    notes: tuple[str, ...]
    reason: str
    alignment: str
    alpha: float

    @property
    def sentence(self) -> str:
        """Verdict as a sentence, with delta and the p-value."""
        array, centre = ("clustering", "centre") if self.alignment == "labels" else ("embedding", "mean")
        size = f"delta = {self.delta:.2g}, where 0 is the posterior {centre} and 1 is a typical posterior draw"
        smallest = min(self.p_low, self.p_guard)
        return {
            "summary-like": f"The {array} is compatible with the posterior and closer to its {centre} than posterior draws are "
            f"(p = {self.p_low:.2g}; {size}).",
            "draw-like": f"The {array} is not distinguishable from a posterior draw (p = {smallest:.2g}; {size}).",
            "distinct": f"The {array} is not compatible with the posterior; largest deviation: {self.component} "
            f"(p = {self.p_guard:.2g}; {size}).",
            "undetermined": f"The verdict is undetermined: {self.reason} ({size}).",
        }[self.verdict]


def holm(verdicts: Sequence[Verdict]) -> list[Verdict]:
    """Label several verdicts so that the probability of any false alarm among them is at most alpha (Holm).

    In the result, p_low and p_guard are Holm's adjusted p-values over all verdicts. With n verdicts, 2 n / alpha - 1 effective
    draws are needed; with fewer, all are `undetermined`.

    Args:
        verdicts: Verdicts of one family, for example all embeddings under one alignment.
    """
    n = len(verdicts)
    low = _adjusted([v.p_low for v in verdicts])
    guard = _adjusted([v.p_guard for v in verdicts])
    result = []
    for v, p_low, p_guard in zip(verdicts, low, guard, strict=True):
        adjusted = labelled(replace(v, p_low=p_low, p_guard=p_guard), n)
        note = _borderline_note(v, adjusted, n)
        result.append(replace(adjusted, notes=(*adjusted.notes, note)) if note else adjusted)
    return result


def _borderline_note(v: Verdict, adjusted: Verdict, n: int) -> str:
    """Return a note if another sample of draws may change the label; an empty string otherwise.

    Args:
        v: The verdict with unadjusted p-values.
        adjusted: The verdict with p-values and label adjusted for n verdicts.
    """
    half = v.alpha / 2
    needed = n / half - 1
    if needed <= v.ess < CLOSE_TO_REQUIRED * needed:
        return f"borderline: the effective sample size of the held-out draws is {v.ess:.0f}, close to the required {needed:.0f}"
    if v.ess < needed:
        return ""
    decisive = [("p_guard", v.p_guard, adjusted.p_guard)]
    if adjusted.p_guard > half or _is_near(v.p_guard, _threshold(v.p_guard, adjusted.p_guard, half, n), v.ess):
        decisive.append(("p_low", v.p_low, adjusted.p_low))
    for name, p, after in decisive:
        if _is_near(p, _threshold(p, after, half, n), v.ess):
            return _borderline(f"{name} {after:.2g}", f"{half:g}")
    gates = {"summary-like": ("gate_summary", v.gate_summary), "draw-like": ("gate_draw", v.gate_draw)}
    if adjusted.verdict in gates:
        name, gate = gates[adjusted.verdict]
        if _is_near(gate, half / n, v.ess):
            return _borderline(f"{name} {gate:.2g}", f"{half / n:.2g}")
    return ""


def _borderline(value: str, threshold: str) -> str:
    return (
        f"borderline: {value} is within two Monte Carlo standard errors of the threshold {threshold}, and the verdict could "
        "change with other draws"
    )


def _threshold(p: float, adjusted: float, half: float, n: int) -> float:
    """Unadjusted p-value at which the label of a verdict changes."""
    return half / (adjusted / p if 0 < p <= adjusted < 1 else n)


def _is_near(p: float, threshold: float, effective: float) -> bool:
    """Whether the p-value of a rank is within two Monte Carlo standard errors of a threshold.

    The number of draws beyond the statistic is taken as Poisson. With no draws beyond, the result is False.
    """
    beyond, limit = (x * (1 + effective) - 1 for x in (p, threshold))
    return beyond > NO_DRAWS_BEYOND and abs(beyond - limit) <= 2 * math.sqrt(max(limit, 1.0))


def labelled(v: Verdict, n: int) -> Verdict:
    """Return the verdict with its label, given p-values adjusted for n verdicts."""
    half = v.alpha / 2
    needed = n / half - 1
    gates = {"summary-like": v.gate_summary * n, "draw-like": v.gate_draw * n}
    if v.ess < needed - 1e-9:
        return _undetermined(
            v,
            f"the effective sample size of the held-out draws is {v.ess:.0f}, and at least {needed:.0f} is required; take more "
            "draws",
        )
    if v.p_guard <= half:
        return replace(v, verdict="distinct", reason="")
    label: Label = "summary-like" if v.p_low <= half else "draw-like"
    if gates[label] > half:
        kind = "labels" if v.alignment == "labels" else "positions"
        uninformative = TRIVIAL[kind] if label == "summary-like" else "posterior draws with permuted units"
        return _undetermined(
            v,
            f"the result would be {label}, but {uninformative} could pass the same test; the posterior has too little "
            f"information about the {kind}",
        )
    return replace(v, verdict=label, reason="")


def _undetermined(v: Verdict, reason: str) -> Verdict:
    return replace(v, verdict="undetermined", reason=reason)


def _adjusted(p: list[float]) -> list[float]:
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(np.array(p)[order] * np.arange(len(p), 0, -1))
    out = np.empty(len(p))
    out[order] = np.minimum(stepped, 1.0)
    return [float(x) for x in out]


def rank(share: float, effective: float) -> float:
    return (1 + effective * share) / (1 + effective)
