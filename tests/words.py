"""Check of texts, which `make lint` runs: first words of docstrings, messages, sentences of documents, and labels.

    python tests/words.py

prints each offence with its place, and exits with 1 if there is any. CONTRIBUTING.md has the rules.
"""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = ("README.md", "CONTRIBUTING.md", "docs/*.md", "experiments/README.md", "experiments/benchmarks/README.md")
MOST_WORDS = 25
"""Largest number of words in a sentence of a document."""
FIRST = ("Of", "Likewise", "Same", "As", "The same", "Also", "Where", "Because", "For", "That")
"""Words that make no complete noun phrase or sentence at the beginning of a docstring."""
LABELS = re.compile(
    r"\b(knew|knows nothing|knows of|minds|likes|the chip|in \w+'s hands|as it pays|a priori unknown|one's own|price of|doing of"
    r"|witness(es)?|beforehand|whatever)\b"
)
"""Home-made labels, and things that act like persons."""


def docstrings(path: Path) -> Iterator[tuple[int, str]]:
    """Line and text of each docstring, and of each string below an assignment."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        for one in getattr(node, "body", []) if isinstance(getattr(node, "body", None), list) else []:
            if isinstance(one, ast.Expr) and isinstance(one.value, ast.Constant) and isinstance(one.value.value, str):
                yield one.lineno, one.value.value


def messages(path: Path) -> Iterator[tuple[int, str]]:
    """Line and text of each message of an error of ours that is one string; `{}` stands for a value."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args:
            said = node.exc.args[0]
            parts = said.values if isinstance(said, ast.JoinedStr) else [said]
            if all(isinstance(part, ast.Constant | ast.FormattedValue) for part in parts):
                yield node.lineno, "".join(str(p.value) if isinstance(p, ast.Constant) else "{}" for p in parts)


def sentences(text: str) -> Iterator[str]:
    """Sentences of a document in Markdown, without code, tables, headings and targets of links."""
    text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    text = re.sub(r"!?\[(.*?)\]\([^)]*\)", r"\1", text, flags=re.DOTALL)
    text = re.sub(r"`[^`]*`", "CODE", text)
    lines = ["" if re.match(r"\s*(\||#)", line) else re.sub(r"^\s*([*-]|\d+\.) ", "\n\n", line) for line in text.splitlines()]
    for paragraph in re.split(r"\n\s*\n", "\n".join(lines)):
        plain = " ".join(paragraph.replace("*", "").split())
        yield from filter(None, re.split(r"(?<=[.:?!;])\s+(?=[A-Z`(0-9]|CODE)", plain))


def offences() -> Iterator[str]:
    for path in sorted(path for folder in ("latentlab", "experiments", "tests") for path in ROOT.glob(f"{folder}/**/*.py")):
        where = path.relative_to(ROOT)
        allowed = ("For",) if where.parts[0] == "tests" else ()  # a case may begin with its conditions
        for line, text in docstrings(path):
            first = next((one for one in FIRST if one not in allowed and text.lstrip().startswith(one + " ")), None)
            if first is not None:
                yield f"{where}:{line}: a docstring begins with {first!r}: {text.strip().splitlines()[0][:80]}"
            if (found := LABELS.search(text)) is not None:
                yield f"{where}:{line}: {found.group(0)!r} in a docstring"
        for line, text in messages(path):
            if " must be " in text and "got " not in text and "{}" not in text.partition(" must be ")[2]:
                yield f"{where}:{line}: a message says what must be, and not what it got: {text[:80]}"
    for path in sorted(path for pattern in DOCUMENTS for path in ROOT.glob(pattern)):
        where, text = path.relative_to(ROOT), path.read_text(encoding="utf-8")
        for sentence in sentences(text):
            if len(sentence.split()) > MOST_WORDS:
                yield f"{where}: a sentence of {len(sentence.split())} words: {sentence[:90]}"
        if (found := LABELS.search(text)) is not None:
            yield f"{where}: {found.group(0)!r}"


def main() -> int:
    found = list(offences())
    print("\n".join(found) or "words: no offence")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
