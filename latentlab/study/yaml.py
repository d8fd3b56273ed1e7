"""Strict YAML: mappings, lists, numbers, text, true, false and null, without ambiguous values.

Values that YAML 1.1 and 1.2 read differently, or that are rarely intended, are errors: `no` (False), `1:30` (90), `010` (8),
`1_000`, `0x1F`, dates. The message contains the value that YAML 1.1 reads. `1e-3` is a number. A repeated key, a tag, an alias, a
merge key, and more than `MAX_BYTES` or `MAX_DEPTH` are errors. A file is UTF-8, with or without a byte order mark.
"""

import codecs
import os
import re
from pathlib import Path
from typing import Any, cast

import yaml

from latentlab.errors import ConfigError

MAX_BYTES = 2**20
MAX_DEPTH = 50

_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]*)")
_FLOAT = re.compile(r"[-+]?([0-9]+\.[0-9]*|\.[0-9]+|[0-9]+)([eE][-+]?[0-9]+)?")
_LEADING_ZERO = re.compile(r"[-+]?0[0-9_o]+")
_WORDS = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **dict.fromkeys((".inf", ".Inf", ".INF", "+.inf"), float("inf")),
    **dict.fromkeys(("-.inf", "-.Inf", "-.INF"), float("-inf")),
    **dict.fromkeys((".nan", ".NaN", ".NAN"), float("nan")),
}
_MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}


def read(path: Path) -> Any:
    """Read a YAML file.

    Raises:
        ConfigError: The file is missing or not readable, is not text in UTF-8, or is not strict YAML; the message names the
            file, and the byte or line and column.
    """
    return parse(_decoded(_content(path), path), str(path))


def parse(text: str, what: str) -> Any:
    """Parse a YAML text; `what` is its name in messages.

    Raises:
        ConfigError: The text is not strict YAML; the message contains the line and column.

    Example:
        >>> parse("{rate: 1e-3, names: [a, 'no'], flag: true}", "example")
        {'rate': 0.001, 'names': ['a', 'no'], 'flag': True}
        >>> parse("name: no", "text")
        Traceback (most recent call last):
        latentlab.errors.ConfigError: text, line 1, column 7: name: YAML 1.1 reads `no` as False; write false, or 'no' in quotes.
    """
    try:
        reader = _Reader(text, what)
        value = reader.document()
    except yaml.reader.ReaderError as error:
        raise ConfigError(f"{what}: character U+{error.character:04X} at position {error.position} is not allowed.") from error
    except yaml.MarkedYAMLError as error:
        raise ConfigError(f"{what}{_place(error.problem_mark)}: not valid YAML: {_syntax(error)}.") from error
    if reader.problems:
        raise ConfigError("\n".join(reader.problems))
    return value


def dump(value: Any) -> str:
    """Convert a value to YAML that `parse` reads back as `value`.

    Example:
        >>> print(dump({"label": "1e-3", "rate": 1e-3, "sizes": (1, 2)}), end="")
        label: '1e-3'
        rate: 0.001
        sizes: [1, 2]
    """
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, default_flow_style=None, allow_unicode=True, width=120)


def inline(value: Any) -> str:
    """Convert a value to YAML on one line, such as the value of a key.

    Example:
        >>> inline("1e-3"), inline((1, 2)), inline(None)
        ("'1e-3'", '[1, 2]', 'null')
    """
    text = yaml.dump([value], Dumper=_Dumper, default_flow_style=True, allow_unicode=True, width=float("inf"))
    return text.strip()[1:-1]


# -- files


def _content(path: Path) -> bytes:
    try:
        if path.is_dir():
            raise ConfigError(f"{path}: is a directory; expected a YAML file.")
        if not path.exists():
            raise ConfigError(f"{path}: no such file (working directory {Path.cwd()}).")
        if not path.is_file():
            raise ConfigError(f"{path}: is not a regular file.")
        with path.open("rb") as stream:
            content = stream.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{str(path)!r}: cannot be read: {getattr(error, 'strerror', None) or error}.") from error
    if len(content) > MAX_BYTES:
        raise ConfigError(f"{path}: a config must have at most {MAX_BYTES} bytes; got {os.stat(path).st_size}.")
    return content


def _decoded(content: bytes, path: Path) -> str:
    for mark, encoding in _MARKS.items():
        if content.startswith(mark):
            raise ConfigError(f"{path}: byte offset 0: the file is in {encoding}; save it as UTF-8.")
    nul = content.find(b"\0")
    if nul >= 0:
        raise ConfigError(f"{path}: byte offset {nul}: NUL bytes are not valid in text; save the file as UTF-8.")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        offset = error.start + (len(codecs.BOM_UTF8) if content.startswith(codecs.BOM_UTF8) else 0)
        raise ConfigError(
            f"{path}: byte offset {offset}: byte 0x{content[offset]:02x} is not valid UTF-8; save the file as UTF-8."
        ) from error


# -- text


class _Reader:
    """Builds plain values from the parser's events, so that depth, aliases and tags are checked before values are built."""

    def __init__(self, text: str, what: str) -> None:
        self._what = what
        self._events = yaml.parse(text, yaml.SafeLoader)
        self.problems: list[str] = []

    def document(self) -> Any:
        next(self._events)
        if isinstance(next(self._events), yaml.StreamEndEvent):
            return None
        value = self._value(next(self._events), ())
        next(self._events)
        after = next(self._events)
        if not isinstance(after, yaml.StreamEndEvent):
            raise self._error(after, (), "the file must contain one document; a second one begins here.")
        return value

    def _value(self, event: Any, path: tuple[str, ...]) -> Any:
        if isinstance(event, yaml.AliasEvent):
            raise self._error(event, path, f"the alias *{event.anchor} is not allowed; write the value in full.")
        if event.tag is not None:
            raise self._error(event, path, f"the tag {event.tag!r} is not allowed; use a plain value.")
        if isinstance(event, yaml.ScalarEvent):
            return self._scalar(event, path)
        if len(path) >= MAX_DEPTH:
            raise self._error(event, path[:3], f"nested more than {MAX_DEPTH} levels deep.")
        return self._sequence(path) if isinstance(event, yaml.SequenceStartEvent) else self._mapping(path)

    def _sequence(self, path: tuple[str, ...]) -> list[Any]:
        items: list[Any] = []
        while not isinstance(event := next(self._events), yaml.SequenceEndEvent):
            items.append(self._value(event, (*path, str(len(items)))))
        return items

    def _mapping(self, path: tuple[str, ...]) -> dict[str, Any]:
        items: dict[str, Any] = {}
        lines: dict[str, int] = {}
        while not isinstance(event := next(self._events), yaml.MappingEndEvent):
            if not isinstance(event, yaml.ScalarEvent) or event.tag is not None:
                raise self._error(event, path, "a key must be plain text.")
            key, mark = event.value, cast(yaml.Mark, event.start_mark)
            if key == "<<" and event.implicit[0]:
                raise self._error(event, path, "the merge key << is not allowed; write the keys in full.")
            if key in items:
                self._note(event, (*path, key), f"duplicate key, first used in line {lines[key]}.")
            lines.setdefault(key, mark.line + 1)
            items[key] = self._value(next(self._events), (*path, key))
        return items

    def _scalar(self, event: Any, path: tuple[str, ...]) -> Any:
        if not event.implicit[0]:
            return event.value
        try:
            return plain(event.value)
        except ValueError as error:
            self._note(event, path, str(error))
            return event.value

    def _note(self, event: Any, path: tuple[str, ...], message: str) -> None:
        self.problems.append(str(self._error(event, path, message)))

    def _error(self, event: Any, path: tuple[str, ...], message: str) -> ConfigError:
        where = f"{self._what}{_place(event.start_mark)}"
        return ConfigError(f"{where}: {'.'.join(path)}: {message}" if path else f"{where}: {message}")


def plain(text: str) -> Any:
    """Return the value of a scalar without quotes.

    Raises:
        ValueError: Versions of YAML read it differently.

    Example:
        >>> plain("1e-3"), plain("12"), plain("true"), plain("ppca"), plain("~")
        (0.001, 12, True, 'ppca', None)
    """
    if text in _WORDS:
        return _WORDS[text]
    if _INTEGER.fullmatch(text):
        return int(text) if len(text) < 400 else text
    tag, zero = _old_tag(text), _LEADING_ZERO.fullmatch(text)
    if _FLOAT.fullmatch(text) and not zero:
        return float(text)
    if tag not in ("bool", "int", "float", "timestamp") and not zero:
        return text
    if tag == "timestamp":
        raise ValueError(f"YAML 1.1 reads `{text}` as a date; write '{text}' in quotes.")
    old = yaml.safe_load(text)
    instead = "it without the leading 0" if zero else str(old).lower()
    raise ValueError(f"YAML 1.1 reads `{text}` as {old!r}; write {instead}, or '{text}' in quotes.")


def _old_tag(text: str) -> str:
    """Return the type that PyYAML assigns to a plain scalar: str, int, bool, ..."""
    return str(yaml.resolver.Resolver().resolve(yaml.ScalarNode, text, (True, False))).rpartition(":")[2]


def _place(mark: Any) -> str:
    return f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""


def _syntax(error: yaml.MarkedYAMLError) -> str:
    return " ".join(part for part in (error.context, error.problem) if part)


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    try:
        safe = plain(value) == value
    except ValueError:
        safe = False
    quotes = "'" if value.isprintable() else '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=None if safe and value.isprintable() else quotes)


_Dumper.add_representer(str, _text)
