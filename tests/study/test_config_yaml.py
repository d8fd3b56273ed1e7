"""Tests of strict YAML: accepted values, and errors with their position."""

import math
import random
import time
import tracemalloc

import pytest

from latentlab.errors import ConfigError
from latentlab.study import yaml


def refused(text, *parts):
    with pytest.raises(ConfigError) as caught:
        yaml.parse(text, "a.yaml")
    for part in ("a.yaml", *parts):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("-2.5E+3", -2500.0),
        ("1.", 1.0),
        (".5", 0.5),
        ("12", 12),
        ("+7", 7),
        ("-0", 0),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("ppca", "ppca"),
        ("'no'", "no"),
        ('"010"', "010"),
        ("'1e-3'", "1e-3"),
        (".inf", math.inf),
        ("y", "y"),
        ("nan", "nan"),
        ("=", "="),
    ],
)
def test_plain_values_are_read_as_expected(text, value):
    found = yaml.parse(f"a: {text}", "a.yaml")["a"]
    assert (found, type(found)) == (value, type(value))


def test_nested_structure_is_read():
    text = "# c\na: {b: [1, two, {c: 3}]}\nd:\n  - |\n    x\n    y\n  - ''\ne:\n"
    assert yaml.parse(text, "a.yaml") == {"a": {"b": [1, "two", {"c": 3}]}, "d": ["x\ny\n", ""], "e": None}
    assert yaml.parse("", "a.yaml") is None


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("a: [1, 2", ("line 1, column 9", "flow sequence")),
        ("a: 1\nb: c: d", ("line 2, column 5", "mapping values")),
        ("a:\n\tb: 1", ("line 2, column 1", "'\\t'")),
        ("a: 'x", ("line 1, column 6", "end of stream")),
    ],
)
def test_syntax_errors_state_line_and_column(text, parts):
    refused(text, "not valid YAML", *parts)


def test_duplicate_keys_are_refused_with_position():
    refused("a:\n  b: 1\n  c: 2\n  b: 3", "line 4, column 3", "a.b", "duplicate key", "first used in line 2")


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("no", "False"),
        ("No", "False"),
        ("on", "True"),
        ("OFF", "False"),
        ("yes", "True"),
        ("1:30", "90"),
        ("1:30.5", "90.5"),
        ("010", "8"),
        ("-010", "-8"),
        ("08", "'08'"),
        ("0o17", "'0o17'"),
        ("0x1F", "31"),
        ("0b11", "3"),
        ("1_000", "1000"),
        ("2024-01-01", "a date"),
        ("2024-13-45", "a date"),
        ("2001-12-14 21:59:43", "a date"),
    ],
)
def test_ambiguous_values_are_refused_with_their_yaml_reading(text, read):
    refused(f"x:\n  - key: {text}", "line 2, column 10", "x.0.key", f"`{text}` as {read}", f"'{text}' in quotes")


def test_ambiguous_values_are_reported_together():
    with pytest.raises(ConfigError) as caught:
        yaml.parse("a: no\nb: 010\na: 1:30", "a.yaml")
    assert [line.partition(", column")[0] for line in str(caught.value).split("\n")] == [
        "a.yaml, line 1", "a.yaml, line 2", "a.yaml, line 3", "a.yaml, line 3",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "tag", ["!!python/object/apply:os.system ['touch {}']", "!!python/name:os.system", "!!int '3'", "!x y", "! z"]
)
def test_tags_are_refused_and_not_executed(tag, tmp_path):
    canary = tmp_path / "canary"
    refused(f"a: {tag.format(canary)}", "line 1, column 4", "a: the tag", "not allowed")
    assert not canary.exists()


def test_a_tagged_key_is_refused():
    refused("!!python/name:os.system x: 1", "line 1", "plain text")


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("a: &x 1\nb: *x", "alias *x"),
        ("a: &x [*x]", "alias *x"),
        ("\n".join(["a0: &a0 [1]", *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 10))]), "alias *a0"),
        ("<<: {a: 1}", "merge key"),
        ("[" * 5000, "nested more than 50 levels deep"),
        ("{a: " * 5000, "nested more than 50 levels deep"),
        ("\n".join("  " * i + "a:" for i in range(5000)), "nested more than 50 levels deep"),
        ("- " * 5000, "nested more than 50 levels deep"),
        ("? [1]\n: 2", "a key must be plain text"),
        ("a: 1\n---\nb: 2", "must contain one document; a second one begins here"),
        ("a: \x07", "U+0007"),
    ],
)
def test_yaml_bombs_and_unusual_syntax_are_refused(text, part):
    start = time.process_time()
    refused(text, part)
    assert time.process_time() - start < 1


def test_depth_up_to_the_limit_is_read():
    assert yaml.parse("[" * 50 + "]" * 50, "a.yaml")
    refused("[" * 51 + "]" * 51, "deep")


# -- files


def test_too_large_files_are_refused_unread(tmp_path):
    path = tmp_path / "large.yaml"
    with path.open("wb") as stream:
        stream.write(b"a: 1\n#")
        stream.truncate(50_000_000)
    tracemalloc.start()
    start = time.process_time()
    with pytest.raises(ConfigError, match=r"large\.yaml: a config must have at most 1048576 bytes; got 50000000"):
        yaml.read(path)
    assert time.process_time() - start < 1
    assert tracemalloc.get_traced_memory()[1] < 2e7
    tracemalloc.stop()


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ("a: 'é'".encode("latin-1"), ("byte offset 4", "0xe9", "UTF-8")),
        (b"\xef\xbb\xbfa: \xff", ("byte offset 6", "0xff")),
        ("a: 1".encode("utf-16"), ("byte offset 0", "UTF-16")),
        ("a: 1".encode("utf-16-be"), ("byte offset 0", "NUL")),
        ("a: 1".encode("utf-16-le"), ("byte offset 1", "NUL")),
        ("a: 1".encode("utf-32"), ("byte offset 0", "UTF-32")),
        (b"a: 1\0", ("byte offset 4", "NUL")),
    ],
)
def test_non_utf8_files_are_refused_with_encoding_and_offset(content, parts, tmp_path):
    path = tmp_path / "a.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        yaml.read(path)
    for part in (str(path), *parts):
        assert part in str(caught.value)


def test_byte_order_marks_and_other_line_endings_are_read(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_bytes(b"\xef\xbb\xbfa: \xc3\xa9\r\nb: 2\r\n")
    assert yaml.read(path) == {"a": "é", "b": 2}


def test_unreadable_files_are_refused_by_path(tmp_path):
    for path, part in ((tmp_path / "none.yaml", "no such file"), (tmp_path, "is a directory")):
        with pytest.raises(ConfigError, match=part) as caught:
            yaml.read(path)
        assert str(path) in str(caught.value)
    with pytest.raises(ConfigError, match="cannot be read"):
        yaml.read(tmp_path / ("x" * 5000))


def test_a_file_without_permission_is_refused_by_its_path(tmp_path, monkeypatch):
    path = tmp_path / "a.yaml"
    path.write_text("a: 1")

    def denied(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(type(path), "open", denied)  # root may read any file, so the system's refusal is imitated
    with pytest.raises(ConfigError, match=r"a\.yaml'?: cannot be read: Permission denied"):
        yaml.read(path)


# -- writing


def test_written_text_is_read_back():
    """20 special and 3000 random texts, as values and as keys."""
    rng = random.Random(0)
    pool = "ab01eE.:-+_ \n\t'\"#[]{},&*!|>%@`~nofyes\x85\u2028é😀\x07"
    texts = [
        "1e-3",
        "no",
        "010",
        "",
        "~",
        "1:30",
        "=",
        "<<",
        "null",
        "2024-01-01",
        ".inf",
        "!x",
        "*a",
        "true",
        "0x1F",
        "1_0",
        " x ",
    ]
    texts += ["".join(rng.choice(pool) for _ in range(rng.randint(0, 8))) for _ in range(3000)]
    for text in texts:
        value = {"k": text, text: [text, {"z": text}]}
        assert yaml.parse(yaml.dump(value), "dump") == value


@pytest.mark.parametrize("value", [1e-3, 1e300, 5e-324, 0.1, -0.0, 2**64, True, None, [], {}, [[1, [2.0]]], {"a": {"b": []}}])
def test_numbers_and_structure_are_read_back(value):
    assert repr(yaml.parse(yaml.dump({"k": value}), "dump")["k"]) == repr(value)
