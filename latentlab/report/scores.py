"""Section 5: agreement of each embedding with the posterior."""

import textwrap
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.lines import Line2D

from latentlab.registry import METRICS
from latentlab.report import contingency
from latentlab.report.docstrings import docs
from latentlab.report.figure import BAND, BLUE, EDGE, GREY, INK, ORANGE, draw_figure, log_axis, panels, shortened
from latentlab.report.items import Figure, Item, Section, Table, Text, count, listed, shown
from latentlab.report.known_labels import HEIGHT, label_items
from latentlab.report.rows import ALIGNMENTS
from latentlab.report.source import Source

LEAST_DELTA = 1e-3
"""Left end of the logarithmic scale of deltas, which has no 0."""
WIDE = 50
"""Ratio of the largest to the smallest value above which a score is drawn on a log scale."""


def section(source: Source) -> Section:
    """Build the section: verdicts, scores with ceiling and floor, coverage, labels, and known correspondences."""
    if not source.compared:
        return Section("scores", "Agreement of each embedding with the posterior", (Text((no_comparison(source),)),))
    items: list[Item] = [Text(tuple(_alignment_text(source)))]
    if source.judged:
        items += [*_verdicts(source), _deltas(source), *_notes(source), _coverage(source)]
    if source.is_discrete:
        items += contingency.items(source)
    items += [*_claims(source), *_scores(source), *approximation_note(str(source.comparison.attrs.get("notes", "")))]
    ties = [part for part in str(source.comparison.attrs.get("ties", "")).split("; ") if part.startswith("tie: ")]
    items += [Text(tuple(f"{part[5:6].upper()}{part[6:]}." for part in ties))] if ties else []
    items += label_items(source)
    return Section("scores", "Agreement of each embedding with the posterior", tuple(items))


def no_comparison(source: Source) -> str:
    """Return a sentence with the reason for a missing comparison of these units."""
    reason = (
        f"no embedding contains {source.unit}s, or there are too few {source.unit}s"
        if source.config.get("embeddings")
        else "the configuration contains no embedding"
    )
    return f"No embedding was compared: {reason}."


def _alignment_text(source: Source) -> list[str]:
    if source.is_discrete:
        return _clustering_text(source)
    data = source.comparison
    names = [str(name) for name in data["alignment"].values]
    alignments = "; ".join(f"{ALIGNMENTS[name]} ({name})" for name in names)
    maps = source.ignored.replace("linear", "linear transformation").replace(", ", " and ")
    symmetry = "has no symmetry" if maps == "none" else f"is invariant under {maps} of the positions"
    return [
        f"Each embedding is aligned to the posterior mean before it is tested. Alignments: {alignments}. The model {symmetry}. "
        f"The p-values are adjusted over {count(data.sizes['embedding'], 'compared array')} by Holm's method. "
        f"The significance level is {shown(float(data.attrs['alpha']))}. In rows with “(mapped)”, a known correspondence maps the embedding to "
        "latent coordinates."
    ]


def _clustering_text(source: Source) -> list[str]:
    data, judged, others = source.comparison, source.judged, source.unjudged
    sentences = []
    if judged:
        sentences.append(
            "The verdict compares partitions and is invariant under relabelling of the clusters. A clustering may have any number of "
            f"clusters. The p-values are adjusted over {count(len(judged), 'clustering')} by Holm's method. The significance level is "
            f"{shown(float(data.attrs['alpha']))}."
        )
    if others:
        sentences.append(
            f"{listed(others, 8)} {'is not a clustering' if len(others) == 1 else 'are not clusterings'}. "
            f"{'It has' if len(others) == 1 else 'They have'} scores against the label probabilities, but no verdict."
        )
    return [" ".join(sentences)]


def _verdicts(source: Source) -> list[Item]:
    data = source.comparison
    tables = []
    for alignment in data["alignment"].values:
        selected = data.sel(alignment=alignment)
        records = [
            {
                "embedding": source.titles[str(label)],
                "verdict": str(selected["verdict"].values[i]),
                "delta": float(selected["delta"].values[i]),
                "largest deviation": str(selected["component"].values[i]),
                "p (nearer than draws)": float(selected["p_low"].values[i]),
                "p (at least as unusual as draws)": float(selected["p_guard"].values[i]),
                **({} if source.is_discrete else {"scale": float(selected["scale"].values[i])}),
                "effective draws": float(selected["ess"].values[i]),
                **({"remark": source.unconverged} if source.unconverged else {}),
            }
            for i, label in enumerate(data["embedding"].values)
            if selected["verdict"].values[i]
        ]
        caption = (
            "Verdicts on the clusterings"
            if source.is_discrete
            else f"Verdicts for the alignment “{alignment}” ({ALIGNMENTS[str(alignment)]})"
        )
        tables.append(Table.of(f"verdicts-{alignment}", caption, records))
    gates = [float(data[name].isel(alignment=0).max()) for name in ("gate_summary", "gate_draw")]
    text = (
        "Delta is the square root of the excess expected Binder loss over the centre, relative to the excess of a typical posterior draw. It is 0 "
        "at the centre and 1 at a typical draw. If all draws equal the centre, delta is ∞ for any other partition. With many units, a few "
        "misplaced units suffice for the verdict “distinct”, so interpret the verdict together with delta. As a check of power, the test was "
        f"applied to centres and draws with permuted units. The largest p-values are {shown(gates[0])} and {shown(gates[1])}; small values "
        "show that the test has power."
        if source.is_discrete
        else "Delta is the distance from the posterior mean, relative to the distance of a typical posterior draw. It is 0 at the posterior mean "
        "and 1 at a typical draw. With many units, a small systematic error suffices for the verdict “distinct”, so interpret the verdict "
        "together with delta. Scale is the factor that fits the embedding to the posterior mean. As a check of power, the test was applied "
        f"to posterior means and draws with permuted units. The largest p-values are {shown(gates[0])} and {shown(gates[1])}; small values "
        "show that the test has power."
    )
    return [*tables, Text((text,))]


def first_aligned(data: xr.Dataset, name: str) -> np.ndarray:
    """Return a quantity of each compared array, under the first alignment that applies to it."""
    first = (data["verdict"].values != "").argmax(axis=0)
    return np.asarray(data[name].values[first, np.arange(len(first))])


def _deltas(source: Source) -> Figure:
    data = source.comparison
    data = data.isel(embedding=np.flatnonzero((data["verdict"].values != "").any(axis=0)))
    labels = [source.titles[str(label)] for label in data["embedding"].values]
    finite = data["delta"].values[np.isfinite(data["delta"].values)]
    colors = {"summary-like": BLUE, "draw-like": BLUE, "distinct": ORANGE, "undetermined": GREY}
    noun, centre = ("clustering", "centre") if source.is_discrete else ("embedding", "posterior mean")
    shapes = {"summary-like": "o", "draw-like": "s", "distinct": "X", "undetermined": "D"}
    least, most = max(float(finite.min(initial=1.0)), LEAST_DELTA), 2 * max(2.0, float(finite.max(initial=1.0)))

    def draw(canvas: Any) -> None:
        names = data["alignment"].values.tolist()
        for axes, alignment in zip(panels(canvas, len(names), 3, sharey=True), names, strict=True):
            selected = data.sel(alignment=alignment)
            y = np.arange(len(labels))[::-1]
            for i, label in enumerate(selected["verdict"].values.astype(str)):
                if label:
                    delta = float(selected["delta"].values[i])
                    axes.plot(np.clip(delta, LEAST_DELTA, most), y[i], shapes[label], color=colors[label], ms=7)
                    if np.isinf(delta):
                        axes.annotate("∞", (most, y[i]), xytext=(6, -4), textcoords="offset points")
            axes.axvline(1, color=INK, lw=0.9)
            axes.annotate(
                "typical draw", (1, 1), xycoords=("data", "axes fraction"), xytext=(3, 2), textcoords="offset points", fontsize=8
            )
            axes.set_xscale("log")
            log_axis(axes.xaxis)
            if (selected["delta"].values <= LEAST_DELTA).any():  # clipped to the end of the scale
                axes.xaxis.set_major_formatter(lambda value, _: f"≤ {value:g}" if value <= 1.01 * LEAST_DELTA else f"{value:g}")
            axes.set_xlim(min(0.03, 0.7 * least), None)
            axes.set_yticks(y, [shortened(label) for label in labels])
            axes.set_ylim(-0.7, len(labels) - 0.3)
            axes.set_xlabel(f"delta (0 at the {centre})")
            words = textwrap.fill(ALIGNMENTS[str(alignment)], 24)
            axes.set_title("\n" if source.is_discrete else f"{words}\n")
            axes.grid()
        seen = [label for label in shapes if (data["verdict"].values == label).any()]
        marks = [Line2D([], [], ls="", marker=shapes[label], color=colors[label], ms=7) for label in seen]
        canvas.legend(marks, seen, loc="outside lower center", ncols=len(seen))

    caption = (
        f"Delta of each {noun} on a log scale. The shape of a mark shows the verdict. At delta 1, the distance from the {centre} equals the "
        "distance of a typical posterior draw."
    )
    caption += f" Interpret with caution: {source.unconverged}." if source.unconverged else ""
    alt = "Dot plot of delta: " + "; ".join(
        f"{n} {shown(float(d))}" for n, d in zip(labels, first_aligned(data, "delta"), strict=True)
    )
    return draw_figure("deltas", caption, alt, (10, 1.8 + 0.27 * len(labels)), draw)


def approximation_note(notes: str) -> list[Item]:
    """Return a note on metrics that were computed on a subset or approximately; empty without such metrics.

    Example:
        >>> approximation_note("rsa: computed on 500 of 1797 units")[0].record()["lines"]
        ['Metrics computed on a subset or approximately: rsa: computed on 500 of 1797 units.']
    """
    return [Text((f"Metrics computed on a subset or approximately: {notes}.",))] if notes else []


def _notes(source: Source) -> list[Item]:
    data = source.comparison
    notes: dict[str, list[str]] = {}
    for alignment in data["alignment"].values.astype(str).tolist():
        texts = data["notes"].sel(alignment=alignment).values.astype(str)
        for label, text in zip(data["embedding"].values.astype(str), texts, strict=True):
            if text:
                key = text if source.is_discrete else f"{ALIGNMENTS[alignment]}: {text}"
                notes.setdefault(key, []).append(source.titles[str(label)])
    lines = [f"{listed(titles, 4)}{':' if source.is_discrete else ','} {text}." for text, titles in notes.items()]
    return [Text(tuple(lines), "list")] if lines else []


def _coverage(source: Source) -> Table:
    data = source.comparison
    region = "set" if source.is_discrete else "region"
    records = []
    for i, label in enumerate(data["embedding"].values):
        if np.isnan(data["coverage"].values[i]).all():
            continue
        record: dict[str, Any] = {"embedding": source.titles[str(label)]}
        for j, level in enumerate(data["level"].values.tolist()):
            record[f"{level:.0%} {region}"] = float(data["coverage"].values[i, j])
            record[f"draws, {level:.0%}"] = float(data["draw_coverage"].values[i, j])
        records.append(record | {"all units, simultaneous 95%": bool(data["simultaneous"].values[i, -1])})
    caption = (
        "Coverage of the credible sets: share of units whose cluster, matched to a label, is in the unit's credible set. A credible set "
        "contains the most probable labels of a unit up to the given probability. Compare each share with that of held-out draws"
        if source.is_discrete
        else "Coverage of the credible regions: share of units whose embedded point is in the unit's credible region. Compare each share "
        "with that of held-out draws, not with the nominal level. A posterior mean is covered for almost all units"
    )
    return Table.of("coverage", caption, records)


def _claims(source: Source) -> list[Item]:
    records = []
    for name in dict.fromkeys(row.embedding for row in source.rows):
        claim = source.claim(name)
        if claim is not None:
            texts = {"conditions": claim.conditions, "fails if": claim.breaks, "source": claim.citation}
            records.append({"embedding": name, "grade": claim.grade, "claim": claim.claim} | texts)
    if not records:
        return [Text(("No correspondence between these embeddings and this model is registered.",))]
    return [
        Table.of("claims", f"Known correspondences of the embeddings with {source.config['model']['name']}", records, folded=True)
    ]


def _scores(source: Source) -> list[Item]:
    data = source.comparison
    table = source.scores
    n_draws, n_pairs = data.sizes["chain"] * data.sizes["draw"], data.sizes["pair"]
    metrics = [str(name) for name in data["metric"].values]
    text = (
        f"Scores are descriptive and have no verdict. Each score is computed for the embedding and each of {count(n_draws, 'posterior draw')}, "
        f"which gives a distribution. The ceiling is the same score for {count(n_pairs, 'pair')} of posterior draws. The floor is the score of "
        "the embedding with permuted units."
    )
    if source.is_discrete:
        text += (
            " Scores of partitions, such as the adjusted Rand index, compare a clustering with draws of the labels. The other "
            "scores compare an embedding with the label probabilities of each draw."
        )
    else:
        text += f" Neighbourhood scores use the {data.attrs['n_neighbors']} nearest neighbours."
    records = table.to_dict("records")
    meanings = [
        {"metric": name, "better": str(data["direction"].values[i]), "description": _meaning(name)}
        for i, name in enumerate(metrics)
    ]
    return [
        Text((text,)),
        _score_figure(source),
        *_seeds(source),
        Table.of("metrics", "Metrics, and the direction of better agreement", meanings, folded=True),
        Table.of(
            "scores",
            "All scores: mean, standard deviation and quantiles over posterior draws, ceiling and floor",
            records,
            folded=True,
        ),
    ]


def _meaning(name: str) -> str:
    return docs(METRICS.load(name)).summary if name in METRICS else ""


def _score_figure(source: Source) -> Figure:
    data = source.comparison
    labels = list(source.titles.values())
    used = np.flatnonzero(~np.isnan(data["scores"].values).all(axis=(1, 2, 3)))
    data = data.isel(metric=used)
    metrics = [str(name) for name in data["metric"].values]
    across = 3
    height = (0.75 + HEIGHT * len(labels)) * -(-len(metrics) // across) + 0.3

    def draw(canvas: Any) -> None:
        y = np.arange(len(labels))[::-1]
        for i, axes in enumerate(panels(canvas, len(metrics), across, sharey=True)):
            scores = data["scores"].values[i].reshape(len(labels), -1)
            is_scored = ~np.isnan(scores).all(axis=1)
            low, middle, high = np.quantile(scores[is_scored], (0.05, 0.5, 0.95), axis=1)
            ceiling = np.quantile(data["ceiling"].values[i], (0.05, 0.95))
            floor = np.quantile(data["floor"].values[i][is_scored], (0.05, 0.95), axis=1)
            axes.axvspan(*ceiling, facecolor=BAND, edgecolor=EDGE, lw=0.8)
            axes.hlines(y[is_scored], floor[0], floor[1], color=GREY, lw=5, alpha=0.35)
            axes.hlines(y[is_scored], low, high, color=BLUE, lw=1.8)
            axes.plot(middle, y[is_scored], "o", color=BLUE, ms=4)
            arrow = "better →" if str(data["direction"].values[i]) == "higher" else "← better"
            axes.set_title(metrics[i].replace("_", " "))
            ends = np.concatenate([low, high, ceiling, floor.ravel()])
            if ends.min() > 0 and ends.max() > WIDE * ends.min():
                axes.set_xscale("log")
                log_axis(axes.xaxis)
                arrow += ", log scale"
            axes.set_xlabel(arrow)
            axes.set_yticks(y, [shortened(label) for label in labels])
            axes.set_ylim(-0.6, len(labels) - 0.4)
            axes.grid(axis="x")

    caption = (
        "Scores by metric: median over posterior draws (dot) and 90% interval (blue line, which may be narrower than the dot). The pale "
        "blue band is the central 90% of the ceiling. The thick grey line is the central 90% of the floor. Within the band, an "
        "embedding agrees with a draw as well as two draws agree with each other."
    )
    if source.is_discrete and source.unjudged:
        caption += " Embeddings that are not clusterings have no scores for partitions."
    return draw_figure(
        "scores", caption, f"Interval plots of {len(metrics)} scores of {len(labels)} compared arrays.", (10, height), draw
    )


def _seeds(source: Source) -> list[Item]:
    table = source.scores
    seeded = table[table["seed"] != ""]
    several = seeded.groupby(["metric", "embedding", "map"], sort=False).filter(lambda g: len(g) > 1)
    if not len(several):
        return []
    data = source.comparison
    records = []
    for (name, map_name), group in several.groupby(["embedding", "map"], sort=False):
        chosen = (data["name"].values == name) & (data["map"].values == map_name)
        deltas = first_aligned(data, "delta")[chosen]
        verdicts = dict.fromkeys(first_aligned(data, "verdict")[chosen].astype(str))
        spread = group.groupby("metric", sort=False)["mean"].std(ddof=1) / group.groupby("metric", sort=False)["sd"].mean()
        records.append(
            {
                "embedding": name if map_name == "raw" else f"{name} (mapped)",
                "seeds": int(chosen.sum()),
                "verdicts": listed(list(verdicts)) if any(verdicts) else "none",
                "smallest delta": float(deltas.min()),
                "largest delta": float(deltas.max()),
                "sd over seeds / sd over draws": float(spread.median()),
            }
        )
    caption = (
        "Variation over seeds of embeddings with a random start. The last column is the standard deviation of a score over seeds, "
        "divided by the standard deviation over draws (median over metrics)"
    )
    return [Table.of("seeds", caption, records)]
