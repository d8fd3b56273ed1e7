"""Completion of names and overrides in a shell, by argcomplete."""

import argparse
from collections.abc import Callable, Iterable
from typing import Any

from latentlab.errors import LatentLabError
from latentlab.registry import KINDS, plugins

Completer = Callable[..., list[str]]
COMPARE = "compare"
PLAIN = ("name=", "seed=", "held_out=", "executor=", "memory=")
"""Keys of a config that are no sections."""


def names(kind: str | None = None) -> Completer:
    """Completer for the names of the entries of a kind: the given one, or that of the argument `kind`, or all kinds."""

    def complete(prefix: str, parsed_args: argparse.Namespace, **_: Any) -> list[str]:
        chosen = kind or getattr(parsed_args, "kind", None)
        with plugins(parsed_args.plugin or ()):
            tables = [KINDS[chosen]] if chosen else KINDS.values()
            commands = [] if hasattr(parsed_args, "kind") or kind else getattr(parsed_args, "commands", {})
            return _beginning(prefix, {*commands, *(name for table in tables for name in table)})

    return complete


def overrides(prefix: str, parsed_args: argparse.Namespace, **_: Any) -> list[str]:
    """Complete an override: keys of a config, then the arguments of the section's entry, then the names of entries."""
    from latentlab.study.overrides import LISTS
    from latentlab.study.schema import TABLES

    key, dot, _option = prefix.partition(".")
    named = [one for one in TABLES if one not in LISTS]
    if not dot:
        return _beginning(prefix, [f"{one}.name=" for one in named] + [f"{one}." for one in (*TABLES, COMPARE)] + list(PLAIN))
    if prefix.startswith(f"{key}.name=") and key in named:
        return _beginning(prefix, [f"{key}.name={name}" for name in TABLES[key]])
    try:
        options = _options(key, parsed_args) if key in (*named, COMPARE) else ()
    except LatentLabError:  # an invalid config has no completions
        return []
    return _beginning(prefix, [f"{key}.{option}=" for option in options])


def _options(key: str, parsed_args: argparse.Namespace) -> Iterable[str]:
    """Options of a section, whose entry an override or the config names."""
    from latentlab.study.config import content
    from latentlab.study.overrides import override
    from latentlab.study.schema import section

    if key == COMPARE:
        return section(key).model_fields
    data = override(content(parsed_args.config)[0], parsed_args.overrides or ())
    with plugins([*data.get("plugins", ()), *(parsed_args.plugin or ())]):
        return section(key, data[key]["name"]).model_fields


def _beginning(prefix: str, candidates: Iterable[str]) -> list[str]:
    return sorted(one for one in candidates if one.startswith(prefix))
