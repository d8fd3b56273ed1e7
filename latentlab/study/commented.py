"""YAML with a comment on each line."""

import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from latentlab.study.yaml import inline

WIDTH = 100
COLUMN = 34
"""Column of the comments."""

Keys = tuple[str | int, ...]


class Line(NamedTuple):
    """A line of YAML and its comment."""

    text: str
    comment: str = ""


def lines_of(value: Mapping[str, Any], comment: Callable[[Keys], str], keys: Keys = ()) -> Iterator[Line]:
    """Lines of a config: a line for each option of a section; `comment` is called with its keys.

    Example:
        >>> print(layout(lines_of({"name": "toy", "model": {"name": "ppca"}}, lambda keys: ".".join(keys))), end="")
        name: toy                         # name
        model:
          name: ppca                      # model.name
    """
    indent = "  " * len(keys)
    for key, one in value.items():
        where = (*keys, key)
        if isinstance(one, dict) and one and not keys:
            yield Line(f"{key}:")
            yield from lines_of(one, comment, where)
        elif isinstance(one, list) and one and all(isinstance(item, dict) and item for item in one):
            yield Line(f"{indent}{key}:")
            for i, item in enumerate(one):
                for j, (option, entry) in enumerate(item.items()):
                    yield Line(f"{indent}  {'  ' if j else '- '}{option}: {inline(entry)}", comment((*where, i, option)))
        else:
            yield Line(f"{indent}{key}: {inline(one)}", comment(where))


def layout(lines: Iterable[Line]) -> str:
    """Join lines, with comments in one column; long comments continue in the next lines."""
    found: list[str] = []
    for text, comment in lines:
        if not comment:
            found.append(text)
            continue
        column = max(COLUMN, len(text) + 2)
        wrapped = textwrap.wrap(comment, max(WIDTH - column - 2, 40), break_long_words=False, break_on_hyphens=False)
        found += [f"{(text if i == 0 else '').ljust(column)}# {part}" for i, part in enumerate(wrapped)]
    return "\n".join(found) + "\n"
