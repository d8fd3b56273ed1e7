"""Section 7: provenance of the numbers."""

import shlex
from typing import Any

from latentlab.report.items import Item, Section, Table, Text, count, shown
from latentlab.report.source import Source

HALVES = {
    True: "Every second chain is held out",
    False: "The first draws are a reference and the last are held out, with a gap between where they depend on each other",
}
"""Description of the split of the draws; the key is whether there are several chains."""
TERMS = (
    (
        "Verdict",
        "{halves}; one half gives the posterior mean and each unit's covariance, the other half is ranked with the "
        "embedding. An embedding is distinct if it is more unusual than the held-out draws (in its overall distance, in an error that is "
        "a function of the positions, or in single units), summary-like if it lies nearer to the mean than draws do, and draw-like "
        "otherwise; undetermined if there are too few draws, or if shuffled positions would pass as well.",
    ),
    (
        "Delta",
        "The root of the embedding's mean squared distance from the posterior mean, in the posterior's own units, over that of a typical "
        "held-out draw. 0 is the posterior mean and 1 a draw; it does not grow with the number of units, as the verdict's power does.",
    ),
    (
        "Ceiling",
        "The same score between draws of different chains (in a single chain, between draws half of it apart). No embedding needs to be "
        "more like a draw than draws are like each other, though a posterior mean often is.",
    ),
    (
        "Floor",
        "The same score after the embedding's units were shuffled at random, against a random draw. It is what a score of this kind "
        "gives when there is nothing to find.",
    ),
    (
        "Coverage",
        "The share of units whose embedded point lies in the unit's credible ellipsoid, whose radius allows for the number of draws "
        "(Hotelling). Its yardstick is the same share of held-out draws.",
    ),
    (
        "Lost neighbours",
        "The share of a unit's nearest units in the draws that are not among its nearest units in the embedding.",
    ),
)
OF_LABELS = (
    (
        "Verdict",
        "{halves}; one half gives the share of draws in which each two units are together, the other half is ranked "
        "with the clustering. A clustering is distinct if it is more unusual than the held-out draws (in its expected loss, in what it puts "
        "together or apart, or in single units), summary-like if it lies nearer to all draws than draws do, and draw-like otherwise; "
        "undetermined if there are too few draws, or if shuffled labels would pass as well.",
    ),
    (
        "Delta",
        "The root of the clustering's expected Binder loss less that of the centre, over the same for a typical held-out draw. 0 is the "
        "centre, a partition of least expected loss, and 1 a draw.",
    ),
    (
        "Binder loss",
        "The share of pairs of units that two partitions see differently: together in one and not in the other.",
    ),
    *(term for term in TERMS if term[0] in ("Ceiling", "Floor")),
    (
        "Coverage",
        "The share of units whose cluster, matched to a label one to one, is among the unit's most probable labels that hold so much "
        "probability. Its yardstick is the same share of held-out draws.",
    ),
    (
        "Lost companions",
        "The share of the units that are together with a unit in the draws and are not in the clustering.",
    ),
)
"""`TERMS` if the positions are labels."""
LABEL_REFERENCES = (
    "Binder (1978), Bayesian cluster analysis, Biometrika 65:31.",
    "Wade & Ghahramani (2018), Bayesian cluster analysis: point estimation and credible balls, Bayesian Analysis 13:559.",
    "Stephens (2000), Dealing with label switching in mixture models, JRSS B 62:795.",
)
REFERENCES = (
    "Vehtari, Gelman, Simpson, Carpenter & Bürkner (2021), Rank-normalization, folding, and localization, Bayesian Analysis 16:667.",
    "Vehtari, Simpson, Gelman, Yao & Gabry (2024), Pareto smoothed importance sampling, JMLR 25(72).",
    "Vehtari, Gelman & Gabry (2017), Practical Bayesian model evaluation using leave-one-out cross-validation and WAIC, Statistics and "
    "Computing 27:1413.",
    "Kallioinen, Paananen, Bürkner & Vehtari (2023), Detecting and diagnosing prior and likelihood sensitivity with power-scaling, "
    "Statistics and Computing 34:57.",
    "Gower (1975), Generalized Procrustes analysis, Psychometrika 40:33.",
    "Hotelling (1931), The generalization of Student's ratio, Annals of Mathematical Statistics 2:360.",
)

OF_POSITIONS = ("Gower", "Hotelling")
"""Authors of references that a page about labels does not cite."""


def section(source: Source) -> Section:
    """Build the section: terms, versions, times, files, references."""
    info = source.run.info
    items: list[Item] = [
        Table("terms", "Terms", ("term", "meaning"), _terms(source)),
        *_reproduce(source),
    ]
    seconds = info.get("seconds", {})
    rows: list[dict[str, Any]] = [
        {"what": "run", "value": source.run.path.name},
        {"what": "status", "value": str(info["status"]).replace("_", " ")},
    ]
    rows += [{"what": key, "value": info.get(key)} for key in ("seed", "commit", "started") if info.get(key) is not None]
    rows += [{"what": f"seconds for {stage}", "value": float(value)} for stage, value in seconds.items()]
    rows += [{"what": f"version of {name}", "value": value} for name, value in info.get("versions", {}).items()]
    rows += [{"what": f"threads, {name}", "value": value} for name, value in info.get("threads", {}).items()]
    rows += [{"what": f"hardware, {name}", "value": value} for name, value in info.get("hardware", {}).items()]
    items.append(Table.of("circumstances", "Versions, times, hardware", rows, folded=True))
    hashes = [{"file": "data", "SHA-256": info["data"]["sha256"], "bytes": None}]
    hashes += [{"file": path, "SHA-256": value, "bytes": None} for path, value in info.get("plugins", {}).items()]
    rebuilt = ("run.log", "events.jsonl", "report.html", "report.json")
    files = {name: entry for name, entry in info["files"].items() if name not in rebuilt}
    hashes += [{"file": name, "SHA-256": entry["sha256"], "bytes": entry["bytes"]} for name, entry in sorted(files.items())]
    items.append(Table.of("hashes", "Hashes of the data and of the run's files", hashes, folded=True))
    if info.get("warnings"):
        items.append(Text(("Warnings while it ran:", *map(str, info["warnings"])), "list"))
    those = (*(r for r in REFERENCES if not r.startswith(OF_POSITIONS)), *LABEL_REFERENCES) if source.is_discrete else REFERENCES
    items.append(Text(those, "references"))
    return Section("provenance", "How were the numbers obtained?", tuple(items))


def _terms(source: Source) -> tuple[tuple[str, str], ...]:
    halves = HALVES[source.tree["posterior"].sizes["chain"] > 1]
    return tuple((term, meaning.format(halves=halves)) for term, meaning in (OF_LABELS if source.is_discrete else TERMS))


def _reproduce(source: Source) -> list[Item]:
    info = source.run.info
    command = shlex.join([str(part) for part in info.get("command", [])])
    total = sum(map(float, info.get("seconds", {}).values()))
    lines = [
        f"It took {shown(total)} seconds in {count(len(info.get('seconds', {})), 'stage')}. Every number on this page is in report.json "
        "beside it, and the draws and embeddings are in posterior.nc, embeddings.nc and comparison.nc.",
        "To have the same arrays again: latentlab run config.yaml --out ANOTHER, with the config.yaml of the run directory, the versions "
        "below and the same number of threads.",
    ]
    if command:
        lines.append(f"It was started as: {command}")
    return [Text(tuple(lines), "list")]
