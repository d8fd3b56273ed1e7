"""What an inference method is given, and what it gives back."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np

from latentlab.inference.density import Density
from latentlab.models.base import Arrays, LatentModel
from latentlab.seeds import Seeds


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
    from safetensors.numpy import load_file, save

    path = problem.checkpoint / f"{part}.safetensors" if problem.checkpoint else None
    if path is not None and path.is_file():
        return load_file(path)
    arrays = {name: np.array(array, order="C") for name, array in compute().items()}
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp")
        temporary.write_bytes(save(arrays))
        temporary.replace(path)
    return arrays
