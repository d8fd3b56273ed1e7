"""Summaries of results in HTML for notebooks: a title, lines of text, and short tables, without external resources."""

from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

import pandas as pd

from latentlab.report.docstrings import docs
from latentlab.report.items import count, listed, shown

MOST_ROWS = 20
"""Largest number of rows of a table."""
FEW = 5
"""Largest number of rows and columns of an array of data."""
COLORS = {"pass": "#2e7d32", "warn": "#b26a00", "fail": "#c62828", "distinct": "#c62828"}
"""Colours of verdicts, legible on light and dark ground."""
VERDICTS = ["embedding", "units", "seed", "map", "alignment", "verdict", "delta"]
"""Columns of a comparison's table of verdicts."""
SCORES = ["status", "converged", "failed_checks", "rhat_max", "ess_min", "elpd_loo", "elpd_loo_se", "held_out", "held_out_se"]
"""Columns of a sweep's table after the swept values."""


def card(one: Any) -> str:
    """Return the summary of a dataset, model, fit, comparison, embedding or sweep."""
    return next(CARDS[base.__name__] for base in type(one).__mro__ if base.__name__ in CARDS)(one)


def _dataset(dataset: Any) -> str:
    sizes = listed([count(size, dim) for dim, size in dataset.sizes.items()])
    missing = 0.0 if dataset.mask is None else float(1 - dataset.mask.mean())
    lines = [f"{sizes}; {f'{missing:.1%} of the entries are missing' if missing else 'no entry is missing'}."]
    if dataset.transform is not None:
        lines.append("The columns are standardised.")
    for kind in dataset.kinds:
        if (labels := dataset.labels_of(kind)) is not None:
            lines.append(f"Labels of the {kind}s: {listed(list(dict.fromkeys(map(str, labels.tolist()))))}.")
    lines += dataset.notes()
    if dataset.index or dataset.x.ndim != 2 or dataset.point_axis:
        return _html(f"Dataset {dataset.name}", lines)
    head = pd.DataFrame(dataset.x[:FEW, :FEW], dataset.units[:FEW], list(map(str, dataset.features[:FEW])))
    return _html(f"Dataset {dataset.name}", lines, _numbered(head, dataset.x.shape[1]))


def _model(model: Any) -> str:
    from latentlab.report.formula import typeset  # imports matplotlib

    described = docs(type(model))
    rows = [
        {"hyper-parameter": name, "value": shown(value), "meaning": described.arguments.get(name, "")}
        for name, value in model.hyperparameters().items()
    ]
    paragraphs = "".join(f"<p>{typeset(paragraph)}</p>" for paragraph in described.paragraphs)
    position = ", ".join(f"{one.site} ({one.kind})" for one in model.positions)
    lines = [
        described.summary,
        f"Positions: {position}. Symmetry: {type(model.symmetry).__name__}. Methods: {listed(model.methods)}.",
    ]
    return _html(f"Model {model.name}", lines, paragraphs, _table(pd.DataFrame(rows)))


def _embedding(embedding: Any) -> str:
    lines = [f"{embedding!r}"]
    if embedding.options:
        lines.append("Options: " + ", ".join(f"{name} = {shown(value)}" for name, value in embedding.options.items()) + ".")
    tables = []
    for kind in embedding.kinds or ("unit",):
        part = embedding.of(kind)
        values = part.values[0] if part.values.ndim == 3 else part.values
        tables.append(_numbered(pd.DataFrame(values[:FEW, :FEW], part.units[:FEW]), values.shape[1]))
    return _html(f"Embedding {embedding.label}", [*lines, *embedding.notes], *tables)


def _fit(fit: Any) -> str:
    table, sizes = fit.diagnostics(), fit.data["posterior"].sizes
    lines = [
        f"{fit.dataset!r}",
        f"{fit.method!r}, seed {fit.seed}: {count(sizes['chain'], 'chain')} of {count(sizes['draw'], 'draw')}.",
    ]
    doubtful = table[table["verdict"].isin(["fail", "warn"])]
    passed = f"{count(int((table['verdict'] == 'pass').sum()), 'check')} passed"
    failed = f"{count(int((table['verdict'] == 'fail').sum()), 'check')} failed"
    lines.append(f"Converged; {passed}." if fit.converged else f"Not converged: {failed}, {passed}.")
    return _html(f"Fit of {fit.model.name} to {fit.dataset.name}", lines, _table(doubtful))


def _comparison(comparison: Any) -> str:
    verdicts = comparison.verdicts
    columns = [name for name in VERDICTS if name not in ("units", "seed") or verdicts[name].nunique() > 1]
    sentences = [f"{label}: {sentence}" for label, sentence in comparison.sentences().items()]
    return _html("Comparison", [], _table(verdicts[columns]), _list([*sentences, *comparison.notes]))


def _sweep(sweep: Any) -> str:
    table = sweep.to_dataframe()
    swept = [name for name in table if name in next(iter(sweep.points.values()), {})]
    columns = ["point", *swept, *(name for name in SCORES if name in table and not table[name].isna().all())]
    return _html(f"Sweep {sweep.name}", [f"{sweep!r}"], _table(table[columns]))


CARDS: Mapping[str, Callable[[Any], str]] = {
    "Dataset": _dataset,
    "LatentModel": _model,
    "Embedding": _embedding,
    "Fit": _fit,
    "Comparison": _comparison,
    "Sweep": _sweep,
}
"""Summary by the name of a class, so that a dataset is displayed without importing models."""


def _html(title: str, lines: Sequence[str], *parts: str) -> str:
    text = "".join(f"<div>{escape(line)}</div>" for line in lines if line)
    return f"<div><div><b>{escape(title)}</b></div>{text}{''.join(parts)}</div>"


def _list(lines: Sequence[str]) -> str:
    return f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul>" if lines else ""


def _numbered(head: pd.DataFrame, n_columns: int) -> str:
    """Table of the first rows and columns of an array; a last column stands for the columns that are left out."""
    more = pd.DataFrame({"…": "…"}, index=head.index) if n_columns > head.shape[1] else pd.DataFrame(index=head.index)
    return _table(pd.concat([head, more], axis=1).reset_index(names="unit"))


def _table(table: pd.DataFrame) -> str:
    """Table in HTML with coloured verdicts; empty without rows."""
    if table.empty:
        return ""
    header = "".join(f"<th>{escape(str(name))}</th>" for name in table.columns)
    rows = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in table.head(MOST_ROWS).itertuples(index=False, name=None))
    more = f"<div>and {count(len(table) - MOST_ROWS, 'more row')}</div>" if len(table) > MOST_ROWS else ""
    return f"<table><thead><tr>{header}</tr></thead><tbody>{rows}</tbody></table>{more}"


def _cell(value: Any) -> str:
    text = escape(shown(value))
    color = COLORS.get(value) if isinstance(value, str) else None
    return f'<td style="color: {color}">{text}</td>' if color else f"<td>{text}</td>"
