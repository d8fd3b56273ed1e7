"""Dotted overrides of a config, such as `inference.n_draws=500`, and its conversion to absolute paths."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from latentlab.errors import ConfigError
from latentlab.study.schema import TABLES
from latentlab.study.yaml import parse

LISTS = ("embeddings", "tracking")
"""Sections that are lists, whose items have a name and options."""


def override(data: Mapping[str, Any], texts: Sequence[str]) -> dict[str, Any]:
    """Return a copy of `data` with `a.b=value` overrides applied in order; values are YAML.

    An override of the `name` of a section removes its other keys, except those set by earlier overrides.

    Raises:
        ConfigError: An override has no key, `=` or value, its value is not valid YAML, or its path enters a value without keys.

    Example:
        >>> override({"inference": {"name": "nuts", "n_chains": 2}}, ["inference.name=svi", "inference.n_steps=10"])
        {'inference': {'name': 'svi', 'n_steps': 10}}
        >>> override({"embeddings": [{"name": "pca"}]}, ["embeddings.0.label=axes"])
        {'embeddings': [{'name': 'pca', 'label': 'axes'}]}
    """
    result = _copy(data)
    overridden: set[tuple[str, ...]] = set()
    for text in texts:
        path, value = _split(text)
        holder = _holder(result, path, text)
        if path[-1] == "name" and (path[:-1] in {(key,) for key in TABLES} or (len(path) == 3 and path[0] in LISTS)):
            kept = {key: item for key, item in holder.items() if (*path[:-1], key) in overridden}
            holder.clear()
            holder.update(kept | {"name": value})
        elif isinstance(holder, list):
            holder[int(path[-1])] = value
        else:
            holder[path[-1]] = value
        overridden.add(path)
    return result


def overridden(texts: Sequence[str]) -> list[tuple[str, ...]]:
    """Return the path of each override.

    Example:
        >>> overridden(["inference.n_steps=10"])
        [('inference', 'n_steps')]
    """
    return [_split(text)[0] for text in texts]


def _copy(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _copy(item) for key, item in value.items()}
    return [_copy(item) for item in value] if isinstance(value, list | tuple) else value


def _split(text: str) -> tuple[tuple[str, ...], Any]:
    key, equals, value = text.partition("=")
    path = tuple(part.strip() for part in key.split("."))
    if not equals or not all(path):
        raise ConfigError(f"override {text!r}: expected KEY=VALUE, such as inference.n_draws=500.")
    if not value.strip():
        raise ConfigError(f"override {text!r}: the value is missing; write null for no value, '' for an empty text.")
    return path, parse(value, f"override {text!r}")


def _holder(data: dict[str, Any], path: tuple[str, ...], text: str) -> Any:
    """Return the mapping or list that contains the last part of the path; missing mappings are created."""
    node: Any = data
    for i, part in enumerate(path[:-1]):
        node = node[_index(node, part, path[:i], text)] if isinstance(node, list) else node.setdefault(part, {})
        if not isinstance(node, dict | list):
            raise ConfigError(f"override {text!r}: {'.'.join(path[: i + 1])} is {node!r} and has no keys.")
    if isinstance(node, list):
        _index(node, path[-1], path[:-1], text)
    return node


def _index(items: list[Any], part: str, path: tuple[str, ...], text: str) -> int:
    if not (part.isascii() and part.isdecimal()) or int(part) >= len(items):
        valid = f"has {len(items)} items, numbered from 0" if items else "has no items"
        raise ConfigError(f"override {text!r}: {'.'.join(path)} {valid}; got {part!r}.")
    return int(part)


def absolute(data: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return a copy of `data` in which `plugins` and the `path` of each section are absolute.

    `~` is expanded to the user's home; variables such as `$HOME` are not expanded.

    Raises:
        ConfigError: The home directory for a `~` cannot be determined.

    Example:
        >>> absolute({"dataset": {"name": "file", "path": "mine.csv"}}, Path("/data"))["dataset"]["path"]
        '/data/mine.csv'
    """
    result = _copy(data)
    lists = [item for key in LISTS if isinstance(result.get(key), list) for item in result[key]]
    for section in [*(result.get(key) for key in TABLES), *lists]:
        if isinstance(section, dict) and "path" in section:
            section["path"] = _absolute(section["path"], folder)
    if isinstance(result.get("plugins"), list):
        result["plugins"] = [_absolute(path, folder) for path in result["plugins"]]
    return result


def _absolute(path: Any, folder: Path) -> Any:
    if not isinstance(path, str) or not path.strip() or "\0" in path:
        return path
    try:
        return str(folder.absolute() / Path(path).expanduser())
    except RuntimeError as error:
        raise ConfigError(f"path {path!r}: the home directory for `~` cannot be determined.") from error
