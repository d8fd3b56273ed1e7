"""Section 7: definitions, and the settings and files that reproduce the numbers."""

import shlex
from typing import Any

from latentlab.report.items import Item, Section, Table, Text, count, shown
from latentlab.report.source import Source

HALVES = {
    True: "Every second chain is held out; the other chains are the reference half",
    False: "The first draws are the reference half and the last draws are held out, with a gap if the draws are autocorrelated",
}
"""Description of the split of the draws; the key is whether there are several chains."""
TERMS = (
    (
        "Verdict",
        "{halves}. The reference half gives the posterior mean and the covariance of each unit. An embedding is distinct if its "
        "error is more extreme than those of the held-out draws: in overall distance, in an error that depends on the positions, or in single "
        "units. An embedding that is not distinct is summary-like if it is nearer to the posterior mean than the draws, and "
        "draw-like otherwise. The verdict is undetermined if there are too few draws, or if positions with permuted units pass the same test.",
    ),
    (
        "Delta",
        "The root mean squared Mahalanobis distance of the embedding from the posterior mean, relative to the distance of a typical held-out draw. "
        "It is 0 at the posterior mean and 1 at a typical draw. Unlike the power of the verdict, delta does not increase with the number "
        "of units.",
    ),
    (
        "Ceiling",
        "The score of one posterior draw against another, from a different chain (or half a chain apart in a single chain). A posterior "
        "mean often exceeds the ceiling.",
    ),
    (
        "Floor",
        "The score of the embedding with randomly permuted units against a random draw: the value of the score without agreement.",
    ),
    (
        "Coverage",
        "The share of units whose embedded point is in the unit's credible ellipsoid. The radius accounts for the number of draws "
        "(Hotelling). The reference value is the same share for held-out draws.",
    ),
    (
        "Lost neighbours",
        "The share of a unit's nearest neighbours in a draw that are not among its nearest neighbours in the embedding.",
    ),
)
OF_LABELS = (
    (
        "Verdict",
        "{halves}. The reference half gives the co-assignment probability of each pair of units. A clustering is distinct if its "
        "error is more extreme than those of the held-out draws: in expected loss, in the pairs that it joins or separates, or in single "
        "units. A clustering that is not distinct is summary-like if its expected loss is smaller than the loss of the draws, and draw-like "
        "otherwise. The verdict is undetermined if there are too few draws, or if labels with permuted units pass the same test.",
    ),
    (
        "Delta",
        "The square root of the excess of the clustering's expected Binder loss over the loss of the centre, relative to a typical held-out draw. "
        "The centre is the partition with the smallest expected loss. Delta is 0 at the centre and 1 at a typical draw.",
    ),
    (
        "Binder loss",
        "The share of pairs of units that are in the same cluster in one of two partitions and not in the other.",
    ),
    *(term for term in TERMS if term[0] in ("Ceiling", "Floor")),
    (
        "Coverage",
        "The share of units whose cluster, matched one to one with a label, is in the unit's credible set of labels. The reference value is "
        "the same share for held-out draws.",
    ),
    (
        "Lost companions",
        "Of the units that are in the same cluster as a given unit in a draw, the share that the clustering places in another cluster.",
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
        Table("terms", "Definitions", ("term", "meaning"), _terms(source)),
        *_reproduce(source),
    ]
    seconds = info.get("seconds", {})
    rows: list[dict[str, Any]] = [
        {"quantity": "run", "value": source.run.path.name},
        {"quantity": "status", "value": str(info["status"]).replace("_", " ")},
    ]
    rows += [{"quantity": key, "value": info.get(key)} for key in ("seed", "commit", "started") if info.get(key) is not None]
    rows += [{"quantity": f"seconds for {stage}", "value": float(value)} for stage, value in seconds.items()]
    rows += [{"quantity": f"version of {name}", "value": value} for name, value in info.get("versions", {}).items()]
    rows += [{"quantity": f"threads, {name}", "value": value} for name, value in info.get("threads", {}).items()]
    rows += [{"quantity": f"hardware, {name}", "value": value} for name, value in info.get("hardware", {}).items()]
    items.append(Table.of("circumstances", "Versions, times and hardware", rows, folded=True))
    hashes = [{"file": "data", "SHA-256": info["data"]["sha256"], "bytes": None}]
    hashes += [{"file": path, "SHA-256": value, "bytes": None} for path, value in info.get("plugins", {}).items()]
    rebuilt = ("run.log", "events.jsonl", "report.html", "report.json")
    files = {name: entry for name, entry in info["files"].items() if name not in rebuilt and "command" in info}
    hashes += [{"file": name, "SHA-256": entry["sha256"], "bytes": entry["bytes"]} for name, entry in sorted(files.items())]
    items.append(Table.of("hashes", "Hashes of the data and of the files of the run", hashes, folded=True))
    if info.get("warnings"):
        items.append(Text(("Warnings during the run:", *map(str, info["warnings"])), "list"))
    references = (
        (*(r for r in REFERENCES if not r.startswith(OF_POSITIONS)), *LABEL_REFERENCES) if source.is_discrete else REFERENCES
    )
    items.append(Text(references, "references"))
    return Section("provenance", "Reproducibility", tuple(items))


def _terms(source: Source) -> tuple[tuple[str, str], ...]:
    halves = HALVES[source.tree["posterior"].sizes["chain"] > 1]
    return tuple((term, meaning.format(halves=halves)) for term, meaning in (OF_LABELS if source.is_discrete else TERMS))


def _reproduce(source: Source) -> list[Item]:
    info = source.run.info
    if "command" not in info:
        return [Text(("The fit is from a Python session and has no run directory.",))]
    command = shlex.join([str(part) for part in info.get("command", [])])
    total = sum(map(float, info.get("seconds", {}).values()))
    lines = [
        f"The run took {shown(total)} seconds in {count(len(info.get('seconds', {})), 'stage')}. The file report.json contains all numbers of "
        "this page. The files posterior.nc, embeddings.nc and comparison.nc contain the draws, embeddings and scores.",
        "The command latentlab run config.yaml --out DIRECTORY, with the config.yaml of the run directory, reproduces the arrays. It requires "
        "the versions listed below and the same number of threads.",
    ]
    if command:
        lines.append(f"Command of this run: {command}")
    return [Text(tuple(lines), "list")]
