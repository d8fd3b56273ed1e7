"""Functions that several test files use."""

import json
from typing import Any

import numpy as np
import torch

from latentlab.data.load import load_dataset
from latentlab.store.read import Run


def all_partitions(n):
    """Returns all partitions of n units, as labels in order of first appearance."""
    found = [(0,)]
    for _ in range(n - 1):
        found = [(*p, k) for p in found for k in range(max(p) + 2)]
    return np.array(found)


def sequence_starts(lengths):
    """Returns a mask of the first steps of sequences with these lengths."""
    starts = torch.zeros(sum(lengths), dtype=torch.bool)
    starts[np.cumsum([0, *lengths[:-1]])] = True
    return starts


def all_arrays(result):
    """Returns all arrays of a fit by group and name."""
    return {f"{group.name}/{name}": a.values for group in result.data.children.values() for name, a in group.data_vars.items()}


def memory_and_disk(path, **options):
    """Loads a file twice: into memory, and to stay on disk."""
    return load_dataset("file", path=path, **options), load_dataset("file", path=path, in_memory=False, **options)


# -- parts of the page of a run, by report.json


def items(found: Run, kind: str) -> list[dict[str, Any]]:
    page = json.loads((found.path / "report.json").read_text(encoding="utf-8"))
    return [item for part in [page["summary"], *page["sections"]] for item in part["items"] if item["kind"] == kind]


def table(found: Run, name: str) -> list[dict[str, Any]]:
    return next(item["rows"] for item in items(found, "table") if item["name"] == name)


def words(found: Run) -> str:
    return "\n".join(line for item in items(found, "text") for line in item["lines"])


def captions(found: Run) -> dict[str, str]:
    return {item["name"]: item["caption"] for item in items(found, "figure")}
