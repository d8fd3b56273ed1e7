"""Parsing of the docstrings of models, metrics and embeddings into description, arguments and references."""

import inspect
import re
from dataclasses import dataclass
from typing import Any

_HEADINGS = ("Args", "Attributes", "Returns", "Raises", "References", "Example")
_HEADING = re.compile(rf"^({'|'.join(_HEADINGS)}):\s*$")
_ARGUMENT = re.compile(r"^(\w+):\s+(.*)$")


@dataclass(frozen=True)
class Docs:
    """Parts of a docstring.

    Args:
        summary: First paragraph, as plain text.
        paragraphs: Further paragraphs before the first heading, with formulas and backticks.
        arguments: Description of each argument, as plain text.
        references: References as one text.
    """

    summary: str
    paragraphs: tuple[str, ...]
    arguments: dict[str, str]
    references: str


def docs(documented: Any) -> Docs:
    """Parse an object's docstring in this package's format; text in other formats becomes paragraphs.

    Example:
        >>> def square(x):
        ...     '''The square.
        ...
        ...     Args:
        ...         x: A number.
        ...     '''
        >>> docs(square).summary, docs(square).arguments
        ('The square.', {'x': 'A number.'})
    """
    parts: dict[str, list[str]] = {"": []}
    part = ""
    for line in (inspect.getdoc(documented) or "").splitlines():
        heading = _HEADING.match(line)
        part = heading.group(1) if heading else part
        parts.setdefault(part, [])
        if not heading:
            parts[part].append(line)
    paragraphs = [" ".join(text.split()) for text in re.split(r"\n\s*\n", "\n".join(parts[""]).strip()) if text]
    references = " ".join(" ".join(parts.get("References", [])).split())
    arguments = {name: _plain(text) for name, text in _arguments(parts.get("Args", [])).items()}
    return Docs(_plain(paragraphs[0]) if paragraphs else "", tuple(paragraphs[1:]), arguments, references)


def _plain(text: str) -> str:
    """Remove the backticks from a text."""
    return text.replace("`", "")


def _arguments(lines: list[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    name = ""
    for line in inspect.cleandoc("\n".join(["", *lines])).splitlines():
        start = _ARGUMENT.match(line)
        if start:
            name, text = start.groups()
            found[name] = text
        elif name and line.strip():
            found[name] += f" {line.strip()}"
    return found
