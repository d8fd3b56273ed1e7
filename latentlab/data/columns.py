"""Which columns of a file are features, label and unit; what a reader of files hands back."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from latentlab.data.dataset import positions
from latentlab.errors import DataError


@dataclass(frozen=True)
class Wanted:
    """What the user asks of a file: names of the features (all others by default), of the label and of the unit."""

    columns: Sequence[Any] | None = None
    label: Any = None
    unit: Any = None


@dataclass(frozen=True)
class Chosen:
    """Positions of the columns in a file."""

    features: list[int]
    label: int | None
    unit: int | None


@dataclass(frozen=True)
class Table:
    """A file's content: the features' names, `x` (unit, feature), and a label and a name of each unit."""

    features: list[str]
    x: Any
    labels: np.ndarray | None = None
    units: np.ndarray | None = None


def choose(names: Sequence[str], wanted: Wanted, what: str) -> Chosen:
    """Positions of the wanted columns among `names`.

    Example:
        >>> choose(["id", "a", "b", "kind"], Wanted(label="kind", unit="id"), "toy.csv")
        Chosen(features=[1, 2], label=3, unit=0)
    """
    label, unit = (
        None if name is None else positions([name], names, f"{what}: `{option}`")[0]
        for option, name in (("label", wanted.label), ("unit", wanted.unit))
    )
    if wanted.columns is None:
        features = [i for i in range(len(names)) if i not in (label, unit)]
        if not features:
            raise DataError(f"{what}: no column is left beside label and unit.")
        return Chosen(features, label, unit)
    features = positions(wanted.columns, names, what)
    for option, position in (("label", label), ("unit", unit)):
        if position in features:
            raise DataError(f"{what}: {names[position]!r} is among `columns` and is the `{option}` too.")
    return Chosen(features, label, unit)
