"""Summary at the top of the page, in words."""

import re
from typing import Any

import numpy as np

from latentlab.report import inference, overview
from latentlab.report.items import Item, Section, Table, Text, count, listed, shown
from latentlab.report.rows import ALIGNMENTS
from latentlab.report.source import POINT, Source

MEANING = {
    "summary-like": "nearer to the posterior mean than draws are, like a point estimate",
    "draw-like": "as far from the posterior mean as a typical draw",
    "distinct, near": "nearer to the posterior mean than a typical draw, but with an error outside the range of the draws",
    "distinct": "not an estimate of these positions",
    "undetermined": "no verdict is possible",
}
OF_LABELS = {
    "summary-like": "nearer to the centre than draws are, like a point estimate",
    "draw-like": "as far from the centre as a typical draw",
    "distinct, near": "nearer to the centre than a typical draw, but with an error outside the range of the draws",
    "distinct": "not an estimate of these labels",
    "undetermined": "no verdict is possible",
}
"""`MEANING` if the positions are labels."""


def section(source: Source) -> Section:
    """Build the section: data, model and method, convergence, and a verdict for each embedding."""
    model = source.config["model"]
    sizes = {"n_latent": "latent dimension", "n_components": "component", "n_states": "state"}
    latent = next((f" with {count(int(model[key]), noun)}" for key, noun in sizes.items() if key in model), "")
    lines = [overview.data_sentence(source), f"The model is {model['name']}{latent}. {overview.method_sentence(source)}"]
    items: list[Item] = [Text((*lines, inference.sentence(source)))]
    if source.kind == POINT:
        items.append(
            Text(
                ("The parameters are point estimates. Intervals are too narrow, and the verdict “distinct” is too frequent.",),
                "caution",
            )
        )
    compared = [part for part in map(source.of, source.kinds) if part.compared]
    if not compared:
        items.append(Text(("No embedding was compared.",)))
    for part in compared:
        several = len(source.kinds) > 1
        items += [Text((f"Verdicts on the {part.unit}s:",))] if several else []
        items.append(Text(tuple(_verdict_lines(part)), "list"))
        name, suffix = (f"verdicts-{part.unit}", f" of the {part.unit}s") if several else ("verdicts", "")
        items += [Table.of(name, f"Verdict and delta of each embedding{suffix}", _verdict_rows(part))] if part.judged else []
    return Section("summary", "Summary", tuple(items))


def every_verdict(source: Source) -> list[dict[str, Any]]:
    """Return the verdict records of all kinds of units; each has its kind if there are several."""
    compared = [part for part in map(source.of, source.kinds) if part.compared]
    if len(source.kinds) == 1:
        return [record for part in compared for record in verdict_records(part)]
    return [{"units": part.unit, **record} for part in compared for record in verdict_records(part)]


def verdict_records(source: Source) -> list[dict[str, Any]]:
    """Return verdict, delta and sentence of each embedding under each alignment, with its seeds combined."""
    data = source.comparison
    pairs = dict.fromkeys(zip(data["name"].values.astype(str).tolist(), data["map"].values.astype(str).tolist(), strict=True))
    records = []
    for name, map_name in pairs:
        chosen = np.flatnonzero((data["name"].values == name) & (data["map"].values == map_name))
        for alignment in data["alignment"].values.astype(str).tolist():
            selected = data.sel(alignment=alignment).isel(embedding=chosen)
            words, deltas = selected["verdict"].values.astype(str).tolist(), selected["delta"].values
            if not words[0]:
                continue  # this alignment does not apply
            records.append(
                {
                    "embedding": name if map_name == "raw" else f"{name} (mapped)",
                    "alignment": alignment,
                    "verdict": words[0] if len(set(words)) == 1 else " / ".join(dict.fromkeys(words)),
                    "delta": [float(deltas.min()), float(deltas.max())],
                    "n_seeds": len(chosen),
                    "sentence": str(selected["sentence"].values[0]),
                }
            )
    return records


def _verdict_lines(source: Source) -> list[str]:
    lines, remark = [], f"; {source.unconverged}" if source.unconverged else ""
    for alignment in source.comparison["alignment"].values.astype(str).tolist():
        by: dict[str, list[str]] = {}
        for record in verdict_records(source):
            if record["alignment"] == alignment:
                near = ", near" if record["verdict"] == "distinct" and record["delta"][1] < 1 else ""
                named = f"{record['embedding']} (delta {_range(record['delta'])})"
                by.setdefault(record["verdict"] + near, []).append(named)
        meanings = OF_LABELS if source.is_discrete else MEANING
        for key, names in sorted(by.items(), key=lambda entry: [*meanings, entry[0]].index(entry[0])):
            word, meaning = key.partition(",")[0], meanings.get(key, "the verdict depends on the seed")
            if word == "undetermined":
                reasons = [record["sentence"] for record in verdict_records(source) if record["alignment"] == alignment]
                meaning = next(filter(None, map(_reason, reasons)), meaning)
            lines.append(
                f"{_invariance(alignment)}: {listed(names, 20)} {'is' if len(names) == 1 else 'are'} {word} ({meaning}{remark})."
            )
    if source.is_discrete and source.unjudged:
        n = len(source.unjudged)
        predicate = "is not a clustering: it has" if n == 1 else "are not clusterings: they have"
        lines.append(f"{listed(source.unjudged, 20)} {predicate} scores but no verdict.")
    if not source.judged:
        return lines
    return [
        *lines,
        f"Delta is 0 at the {'centre' if source.is_discrete else 'posterior mean'} and 1 at a typical posterior draw.",
    ]


def _reason(sentence: str) -> str:
    """Extract from its sentence the reason why a verdict is undetermined; empty for other verdicts."""
    match = re.match(r"(?:The verdict is undetermined|Nothing can be said): (.*) \(delta", sentence)
    return match.group(1) if match else ""


def _range(delta: list[float]) -> str:
    low, high = (shown(float(d)) for d in delta)
    return low if low == high else f"{low} to {high}"


def _invariance(alignment: str) -> str:
    """Transformations under which a verdict is invariant, with the name of the alignment in tables."""
    if alignment in ("labels", "fixed"):
        return "Up to relabelling" if alignment == "labels" else "Without transformation (fixed)"
    return f"Up to {'an ' * (alignment == 'affine')}{ALIGNMENTS[alignment]} ({alignment})"


def _suffix(alignment: str) -> str:
    return "" if alignment == "labels" else f", {alignment}"


def _verdict_rows(source: Source) -> list[dict[str, Any]]:
    rows: dict[str, dict[str, Any]] = {}
    alignments = source.comparison["alignment"].values.astype(str).tolist()
    empty = {f"{what}{_suffix(alignment)}": "" for alignment in alignments for what in ("verdict", "delta")}
    for record in verdict_records(source):
        seeds = f", {record['n_seeds']} seeds" if record["n_seeds"] > 1 else ""
        row = rows.setdefault(record["embedding"], {"embedding": record["embedding"] + seeds, **empty})
        row |= {
            f"verdict{_suffix(record['alignment'])}": record["verdict"],
            f"delta{_suffix(record['alignment'])}": _range(record["delta"]),
        }
    remark = {"remark": source.unconverged} if source.unconverged else {}
    return [row | remark for row in rows.values()]
