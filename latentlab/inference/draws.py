"""What an inference method is given, and what it gives back."""

import hashlib
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
from safetensors.numpy import load, save

from latentlab.files import write
from latentlab.inference.density import Density
from latentlab.models.base import Arrays, LatentModel
from latentlab.seeds import Seeds

HASH = hashlib.sha256().digest_size
"""A checkpoint begins with the hash of the rest."""


@dataclass(frozen=True)
class Draws:
    """Draws of the program's sites, `(chain, draw, *site)`; a point estimate is one chain of equal draws."""

    values: dict[str, np.ndarray]
    stats: dict[str, np.ndarray] = field(default_factory=dict)
    optimization: dict[str, np.ndarray] = field(default_factory=dict)
    attrs: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Problem:
    """A model with its data, ready for any method; `checkpoint` is a folder for what is finished, if one is wanted."""

    model: LatentModel
    arrays: Arrays
    density: Density
    seeds: Seeds
    progress: bool = True
    checkpoint: Path | None = None


class Method(Protocol):
    """A frozen dataclass of settings with a name, and one function."""

    name: ClassVar[str]
    kind: ClassVar[str]

    def run(self, problem: Problem) -> Draws:
        """Draws from (an approximation of) the posterior."""
        ...


def finished(problem: Problem, part: str, compute: Callable[[], Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The arrays of `part` (a chain, a restart): read back where an earlier run finished it, computed and kept otherwise."""
    path = problem.checkpoint / f"{part}.safetensors" if problem.checkpoint else None
    kept = _read(path) if path is not None and path.is_file() else None
    if kept is not None:
        return kept
    arrays = {name: np.array(array, order="C") for name, array in compute().items()}
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        content = save(arrays)
        write(path, hashlib.sha256(content).digest() + content)
    return arrays


def _read(path: Path) -> dict[str, np.ndarray] | None:
    """The arrays that a checkpoint holds; None, and a warning, where it is not as it was written."""
    content = path.read_bytes()
    if hashlib.sha256(content[HASH:]).digest() != content[:HASH]:
        warnings.warn(f"{path.name} is damaged: what it held is computed again.", stacklevel=3)
        return None
    return load(content[HASH:])
