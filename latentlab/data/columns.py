"""Choice of the columns of a file: features and attributes of the units; and the result of a file reader."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from latentlab.data.convert import positions
from latentlab.errors import DataError


@dataclass(frozen=True)
class Requested:
    """Requested columns of a file: names of the features (all other columns by default) and of attributes of the units.

    `texts` maps names of further text columns to their names in the file.
    """

    columns: Sequence[Any] | None = None
    label: Any = None
    unit: Any = None
    sequence: Any = None
    time: Any = None
    texts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def others(self) -> dict[str, Any]:
        """Name of the column of each given option."""
        options = {"label": self.label, "unit": self.unit, "sequence": self.sequence, "time": self.time}
        options |= self.texts
        return {option: name for option, name in options.items() if name is not None}

    def without(self, options: Mapping[str, Any]) -> "Requested":
        """Return a copy without these options."""
        texts = {name: column for name, column in self.texts.items() if name not in options}
        return replace(self, texts=texts, **dict.fromkeys([name for name in options if name not in self.texts]))


@dataclass(frozen=True)
class Chosen:
    """Positions of columns in a file: of the features, and of the other columns by option."""

    features: list[int]
    others: dict[str, int]

    @property
    def all(self) -> list[int]:
        return [*self.features, *self.others.values()]


@dataclass(frozen=True)
class Table:
    """Content of a file: names of the features, `x` (unit, feature), and attributes of the units by option."""

    features: list[str]
    x: Any
    others: dict[str, np.ndarray] = field(default_factory=dict)


def choose(names: Sequence[str], requested: Requested, what: str) -> Chosen:
    """Positions of the requested columns among `names`.

    Example:
        >>> choose(["id", "a", "b", "kind"], Requested(label="kind", unit="id"), "toy.csv")
        Chosen(features=[1, 2], others={'label': 3, 'unit': 0})
    """
    others = {option: positions([name], names, f"{what}: `{option}`")[0] for option, name in requested.others.items()}
    if requested.columns is None:
        features = [i for i in range(len(names)) if i not in others.values()]
        if not features:
            raise DataError(f"{what}: no columns remain for the features; all are used by {' and '.join(others)}.")
        return Chosen(features, others)
    features = positions(requested.columns, names, what) if len(requested.columns) or not requested.texts else []
    for option, position in others.items():
        if position in features:
            raise DataError(f"{what}: column {names[position]!r} is in `columns` and is also the `{option}`; remove it from one.")
    return Chosen(features, others)
