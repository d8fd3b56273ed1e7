"""Which columns of a file are features and which say something of the units; what a reader of files hands back."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from latentlab.data.convert import positions
from latentlab.errors import DataError


@dataclass(frozen=True)
class Wanted:
    """What the user asks of a file: names of the features (all others by default), and of what is said of the units.

    `texts` maps names for further columns of text to the names of these columns in the file.
    """

    columns: Sequence[Any] | None = None
    label: Any = None
    unit: Any = None
    sequence: Any = None
    time: Any = None
    texts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def others(self) -> dict[str, Any]:
        """Option -> name of its column, of the options that are given."""
        options = {"label": self.label, "unit": self.unit, "sequence": self.sequence, "time": self.time}
        options |= self.texts
        return {option: name for option, name in options.items() if name is not None}

    def without(self, options: Mapping[str, Any]) -> "Wanted":
        """The same, these options not given."""
        texts = {name: column for name, column in self.texts.items() if name not in options}
        return replace(self, texts=texts, **dict.fromkeys([name for name in options if name not in self.texts]))


@dataclass(frozen=True)
class Chosen:
    """Positions of the columns in a file: of the features, and of the others by option."""

    features: list[int]
    others: dict[str, int]

    @property
    def all(self) -> list[int]:
        return [*self.features, *self.others.values()]


@dataclass(frozen=True)
class Table:
    """A file's content: the features' names, `x` (unit, feature), and by option what is said of each unit."""

    features: list[str]
    x: Any
    others: dict[str, np.ndarray] = field(default_factory=dict)


def choose(names: Sequence[str], wanted: Wanted, what: str) -> Chosen:
    """Positions of the wanted columns among `names`.

    Example:
        >>> choose(["id", "a", "b", "kind"], Wanted(label="kind", unit="id"), "toy.csv")
        Chosen(features=[1, 2], others={'label': 3, 'unit': 0})
    """
    others = {option: positions([name], names, f"{what}: `{option}`")[0] for option, name in wanted.others.items()}
    if wanted.columns is None:
        features = [i for i in range(len(names)) if i not in others.values()]
        if not features:
            raise DataError(f"{what}: no column is left beside {' and '.join(others)}.")
        return Chosen(features, others)
    features = positions(wanted.columns, names, what) if len(wanted.columns) or not wanted.texts else []
    for option, position in others.items():
        if position in features:
            raise DataError(f"{what}: {names[position]!r} is among `columns` and is the `{option}` too.")
    return Chosen(features, others)
