"""Entries of the tables and their arguments, read from constructors, annotations and docstrings."""

import inspect
from collections.abc import Mapping
from typing import Any, NamedTuple

from latentlab.registry import Table, resolve
from latentlab.report.docstrings import docs
from latentlab.settings import described, keyword_types
from latentlab.study.schema import COMMON, TABLES, section
from latentlab.study.signature import keyword_only
from latentlab.study.yaml import inline

REQUIRED = "required"


class Argument(NamedTuple):
    """An argument of an entry: its values in words, its default as YAML, and its sentence.

    `is_shared` is true for an argument of every entry of the table, such as `standardize` of a data set.
    """

    name: str
    values: str
    default: str
    sentence: str
    is_shared: bool = False


def arguments(table: Table, name: str) -> list[Argument]:
    """Arguments of an entry, its own before those that all entries of the table share.

    Example:
        >>> from latentlab.registry import METHODS
        >>> [(one.name, one.values) for one in arguments(METHODS, "exact")]
        [('n_restarts', 'a whole number of at least 1'), ('n_draws', 'a whole number of at least 1')]
    """
    entry = table.load(name)
    own = docs(entry).arguments
    key = next((key for key, one in TABLES.items() if one is table), None)
    if key is None:
        return _of_function(entry, own)
    shared = {} if key not in COMMON else {one: text for one, text in _shared(key).items() if one not in own}
    found = [
        Argument(option, described(field.annotation, field.metadata), _default(field), {**shared, **own}.get(option, ""))
        for option, field in section(key, name).model_fields.items()
        if option != "name"
    ]
    marked = [one._replace(is_shared=one.name in shared) for one in found]
    return sorted(marked, key=lambda one: one.is_shared)


def compare_arguments() -> list[Argument]:
    """Options of the section `compare` of a config."""
    texts = _shared("compare")
    return [
        Argument(option, described(field.annotation, field.metadata), _default(field), texts.get(option, ""))
        for option, field in section("compare").model_fields.items()
    ]


def _shared(key: str) -> dict[str, str]:
    """Sentence of each keyword argument of a section's common call."""
    texts = docs(resolve(COMMON[key])).arguments
    return {name: texts.get(name, "") for name in keyword_only(COMMON[key])}


def _of_function(entry: Any, texts: Mapping[str, str]) -> list[Argument]:
    types, parameters = keyword_types(entry), inspect.signature(entry).parameters
    return [
        Argument(name, described(kind), inline(parameters[name].default), texts.get(name, "")) for name, kind in types.items()
    ]


def _default(field: Any) -> str:
    return REQUIRED if field.is_required() else inline(field.get_default(call_default_factory=True))
