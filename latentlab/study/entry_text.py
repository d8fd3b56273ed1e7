"""Text about the entries of the tables for a terminal: all entries of a table with their arguments, or one entry in full."""

import textwrap
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from latentlab.correspondences.registry import CORRESPONDENCES
from latentlab.errors import LatentLabError
from latentlab.registry import EMBEDDINGS, METHODS, METRICS, MODELS, Table
from latentlab.report.docstrings import docs
from latentlab.study.entries import REQUIRED, Argument, arguments
from latentlab.study.formulas import displayed, plain
from latentlab.study.starter import built, proposal
from latentlab.study.yaml import dump, inline

WIDTH = 100
LONGEST_DEFAULT = 12
"""Characters of a default in a list of all entries."""


def table_text(table: Table) -> str:
    """All entries of a table: one sentence, and the name, default and values of each argument."""
    found = {name: arguments(table, name) for name in table}
    own = {name: [one for one in rows if not one.is_shared] for name, rows in found.items()}
    shared = {one.name: one for rows in found.values() for one in rows if one.is_shared}
    width = max((len(one.name) for rows in found.values() for one in rows), default=0)
    lines = []
    for name in table:
        lines += [*textwrap.wrap(f"{name}: {plain(table.describe(name))}", WIDTH, subsequent_indent="  ")]
        lines += _rows(own[name], width)
    if shared:
        lines += ["", f"Further arguments of {table.kind}s:", *_rows(list(shared.values()), width)]
    return "\n".join([*lines, "", f"One entry in full: latentlab list {table.kind}s NAME"])


def entry_text(table: Table, name: str) -> str:
    """One entry in full: sentence, formulas, arguments, relations to other entries, and an example for a model.

    Raises:
        ConfigError: The entry does not exist; names the closest one.
    """
    entry = table.load(name)
    about = docs(entry)
    parts = ["\n".join([f"{name} ({table.kind})", *textwrap.wrap(plain(about.summary), WIDTH)])]
    for paragraph in about.paragraphs:
        formulas = displayed(paragraph)
        parts.append("\n".join(f"    {line}" for line in formulas) if formulas else _wrapped(plain(paragraph)))
    rows = arguments(table, name)
    if rows:
        parts.append("\n".join(["arguments", *_details(rows)]))
    parts.append("\n".join(_fields(_relations(table, name, entry))))
    if about.references:
        parts.append("\n".join(_fields([("references", plain(about.references))])))
    if table is MODELS:
        parts.append(_example(name))
    return "\n\n".join(part for part in parts if part)


def _example(name: str) -> str:
    try:
        config = dump(proposal(name.replace("_", "-"), name).config)
    except LatentLabError as error:
        return _wrapped(f"no example: {error}")
    return f"an example of a config for `latentlab run`\n{textwrap.indent(config, '    ')}".rstrip()


def _rows(rows: Sequence[Argument], width: int) -> list[str]:
    lines = []
    for one in rows:
        default = textwrap.shorten(one.default, LONGEST_DEFAULT, placeholder="...")
        head = f"    {one.name.ljust(width)}  {default.ljust(LONGEST_DEFAULT)}  "
        lines += textwrap.wrap(one.values, WIDTH, initial_indent=head, subsequent_indent=" " * len(head), break_on_hyphens=False)
    return lines


def _details(rows: Sequence[Argument]) -> Iterator[str]:
    width = max(len(one.name) for one in rows)
    indent = " " * (width + 4)
    for one in rows:
        head = f"  {one.name.ljust(width)}  "
        text = one.values if one.default == REQUIRED else f"{one.values}; default {one.default}"
        yield from textwrap.wrap(text, WIDTH, initial_indent=head, subsequent_indent=indent, break_on_hyphens=False)
        yield from textwrap.wrap(plain(one.sentence), WIDTH, initial_indent=indent, subsequent_indent=indent)


def _relations(table: Table, name: str, entry: Any) -> list[tuple[str, str]]:
    if table is MODELS:
        return [*_of_model(name, entry), *_claims(lambda claim: claim.model == name, "embedding")]
    if table is METHODS:
        return [("models", ", ".join(one for one in MODELS if name in MODELS.load(one).methods))]
    if table is EMBEDDINGS:
        return _claims(lambda claim: claim.embedding == name, "model") or [("models", "no known correspondence")]
    if table is METRICS:
        invariances = ", ".join(sorted(entry.ignores)) or "none"
        return [
            ("better", entry.direction),
            ("range", " to ".join(f"{one:g}" for one in entry.range)),
            ("invariant", invariances),
        ]
    return []


def _of_model(name: str, entry: Any) -> Iterator[tuple[str, str]]:
    model = built(name)
    kind = {"discrete": "labels", "real": "real", "simplex": "points of a simplex"}
    where = [f"{one.site} ({', '.join(model.dims[one.site])}), {kind[one.kind]}" for one in model.positions]
    yield "positions", "; ".join(where)
    group = model.symmetry
    yield "symmetry", f"{type(group).__name__}: {plain(docs(type(group)).summary)}"
    yield "methods", ", ".join(entry.methods)
    yield "missing", "missing entries are allowed" if model.takes("mask") else "missing entries are refused"


def _claims(chosen: Any, other: str) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for claim in (one for one in CORRESPONDENCES if chosen(one)):
        options = "".join(f", {key}: {inline(value)}" for key, value in (*claim.options, *claim.settings))
        found.append(("" if found else f"{other}s", f"{getattr(claim, other)}{options} ({claim.grade}): {claim.claim}"))
    return found


def _fields(rows: Iterable[tuple[str, str]]) -> list[str]:
    lines: list[str] = []
    for label, text in rows:
        lines += textwrap.wrap(
            text,
            WIDTH,
            initial_indent=label.ljust(12),
            subsequent_indent=" " * 12,
            break_on_hyphens=False,
            break_long_words=False,
        )
    return lines


def _wrapped(text: str) -> str:
    return "\n".join(textwrap.wrap(text, WIDTH, break_on_hyphens=False))
