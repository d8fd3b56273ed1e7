"""Collection of all problems of a config, each with its path and a message."""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from latentlab.errors import ConfigError, unknown
from latentlab.settings import described

Where = tuple[str | int, ...]
"""A path in a config: keys, and indices in lists."""

MAPPING = ("dict_type", "model_type", "model_attributes_type")
"""Error types of pydantic for a section that is not a mapping."""


class Problems:
    """Collects the problems of a config; pydantic's errors at a path with another problem are left out."""

    def __init__(self, data: Mapping[str, Any], config: type[BaseModel]) -> None:
        self._data = data
        self._valid: dict[Where, tuple[str, type[BaseModel]]] = {(): ("key", config)}
        self._found: dict[Where, list[str]] = {}

    def choose(self, where: Where, kind: str, section: type[BaseModel]) -> None:
        """Set the valid fields of the section at `where`; `kind` is the noun for a field in messages about unknown fields."""
        self._valid[where] = (kind, section)

    def add(self, where: Where, message: str) -> None:
        """Add a problem at a path."""
        messages = self._found.setdefault(where, [])
        if message not in messages:
            messages.append(message)

    def take(self, error: ValidationError) -> None:
        """Add pydantic's errors, except at paths that already have a problem."""
        known = set(self._found)
        for one in error.errors(include_url=False):
            where = self._where(one["loc"], missing=one["type"] == "missing")
            if any(where[: len(k)] == k or k[:-1] == where for k in known):
                continue
            if one["type"] == "constructor_error":
                for option, message in one["ctx"]["problems"]:
                    self.add((*where, option) if option else where, message)
            elif one["type"] in ("missing", "extra_forbidden", "value_error"):
                self.add(where, self._message(one, where))
            else:
                where, must = (where, "a mapping") if one["type"] in MAPPING else self._option(where)
                self.add(where, f"must be {must}; got {_shown(self._value(where))}.")

    def raise_all(self, what: str) -> None:
        """Raise one error with all problems, if there are any, in the order of the config's keys."""
        lines = [f"{'.'.join(map(str, where))}: {message}" for where, messages in self._ordered() for message in messages]
        if len(lines) == 1:
            raise ConfigError(f"{what}: {lines[0]}")
        if lines:
            raise ConfigError("\n  ".join([f"{what}: {len(lines)} problems.", *lines]))

    def _ordered(self) -> list[tuple[Where, list[str]]]:
        keys = list(self._valid[()][1].model_fields)
        return sorted(self._found.items(), key=lambda found: keys.index(str(found[0][0])) if found[0][0] in keys else len(keys))

    def _where(self, loc: Where, *, missing: bool) -> Where:
        """Remove the names of union members, which are not keys of the config, from pydantic's location."""
        node: Any = self._data
        where: Where = ()
        for i, part in enumerate(loc):
            inside = part in node if isinstance(node, dict) else isinstance(part, int) and isinstance(node, list)
            if inside:
                node = node[part]
            elif not (missing and i == len(loc) - 1):
                continue
            where = (*where, part)
        return where

    def _value(self, where: Where) -> Any:
        value: Any = self._data
        for part in where:
            value = value[part]
        return value

    def _option(self, where: Where) -> tuple[Where, str]:
        """Return the path of the option that contains a path, and a description of the option's valid values."""
        n = max(i for i in range(len(where)) if where[:i] in self._valid)
        field = self._valid[where[:n]][1].model_fields[str(where[n])]
        return where[: n + 1], described(field.annotation, field.metadata)

    def _message(self, one: Any, where: Where) -> str:
        if one["type"] == "missing":
            return "the key is missing."
        if one["type"] == "extra_forbidden":
            kind, section = self._valid[where[:-1]]
            homes = [home for home, (_, other) in self._valid.items() if home != where[:-1] and where[-1] in other.model_fields]
            if not homes:
                return unknown(kind, where[-1], list(section.model_fields))
            named = f"`{'.'.join(map(str, homes[0]))}`"
            home = named if homes[0] else f"the top level of the config, beside `{where[0]}`"
            return f"unknown {kind} {where[-1]!r}; move it to {home}."
        return str(one["ctx"]["error"])


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
