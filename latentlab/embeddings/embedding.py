"""Vectors of units, computed from the data or supplied by the user."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from latentlab.data import convert, labelled
from latentlab.errors import DataError
from latentlab.notebook import Displayed


@dataclass(frozen=True, eq=False)
class Embedding(Displayed):
    """Vectors of units, computed from the data or supplied by the user.

    Args:
        name: Entry of the registry that computed it, or a name chosen by the user.
        values: Values `(unit, p)`, or `(seed, unit, p)` for an algorithm with random starts. A dict with an array for each
            embedded kind of units if the data have several kinds.
        units: Names of the units, in the order of the values; by default those of a DataFrame's index or a DataArray. A dict by
            kind if the values are one.
        label: Name in tables and plots; `name` by default.
        options: Options with which it was computed, defaults included.
        seeds: Seed of each run, if there are several.
        notes: Remarks for the reader, such as imputed missing entries, a lowered parameter, or an unconnected graph.

    Raises:
        DataError: A value is not a finite number, the shape is wrong, or the units are not all different.

    Example:
        >>> mine = Embedding("mine", [[0.0, 1.0], [2.0, 3.0]], units=["a", "b"])
        >>> mine, mine.reindexed(["b"]).values.tolist()
        (Embedding('mine', unit: 2, latent: 2), [[2.0, 3.0]])
        >>> Embedding("svd", {"user": [[1.0], [2.0]], "item": [[3.0]]}, {"user": ["ann", "bob"], "item": ["alien"]})
        Embedding('svd', user: 2, item: 1, latent: 1)
    """

    name: str
    values: Any
    units: Any = None
    label: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    seeds: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for what, text in (("name", self.name), ("label", self.label or self.name)):
            if not isinstance(text, str) or not text.strip():
                raise DataError(f"`{what}` of an embedding must be nonempty text; got {text!r}.")
        label = self.label or self.name
        if isinstance(self.values, Mapping):
            self._set_kinds(label)
            return
        raw, units = _named(self.values, self.units, f"embedding {label!r}")
        values = _values(raw, f"embedding {label!r}")
        units = convert.names(np.arange(values.shape[-2]) if units is None else units, f"embedding {label!r}: `units`")
        _check_units(values, units, f"embedding {label!r}")
        n_runs = len(values) if values.ndim == 3 else 0
        seeds = tuple(int(seed) for seed in self.seeds) or tuple(range(n_runs))
        if len(seeds) != n_runs:
            raise DataError(f"embedding {label!r}: {len(seeds)} seeds for values of shape {values.shape}.")
        checked = {"values": values, "units": units, "label": label, "options": dict(self.options), "seeds": seeds}
        for attribute, value in {**checked, "notes": tuple(self.notes)}.items():
            object.__setattr__(self, attribute, value)

    def _set_kinds(self, label: str) -> None:
        """Check the array of each kind as an embedding, and that all have the same numbers of columns and runs."""
        units = {} if self.units is None else self.units
        if not self.values or not isinstance(units, Mapping) or not set(units) <= set(self.values):
            kinds = ", ".join(map(repr, self.values)) or "none"
            if not self.values:
                raise DataError(
                    f"embedding {label!r}: `values` is an empty dict; expected an array for each embedded kind of units."
                )
            raise DataError(
                f"embedding {label!r}: `units` must be a dict of names for the kinds of the values ({kinds}); "
                f"got {str(units)[:60]}."
            )
        parts = {}
        for kind, array in self.values.items():
            try:
                parts[str(kind)] = Embedding(self.name, array, units.get(kind), label, self.options, self.seeds, self.notes)
            except DataError as error:
                raise DataError(f"kind {kind!r} of {error}") from error
        first, *others = parts.values()
        for part in others:
            expected, actual = ((*one.values.shape[:-2], one.values.shape[-1]) for one in (first, part))
            if expected != actual:
                shapes = " and ".join(f"{one} {part.values.shape}" for one, part in parts.items())
                raise DataError(
                    f"embedding {label!r}: all kinds must have equal numbers of columns and runs; got the shapes {shapes}."
                )
        found = {"values": {k: part.values for k, part in parts.items()}, "units": {k: part.units for k, part in parts.items()}}
        for attribute, value in {
            **found,
            "label": label,
            **{n: getattr(first, n) for n in ("options", "seeds", "notes")},
        }.items():
            object.__setattr__(self, attribute, value)

    @property
    def kinds(self) -> tuple[str, ...]:
        """Names of the embedded kinds of units; empty if there is one array, for the data's only kind."""
        return tuple(self.values) if isinstance(self.values, dict) else ()

    def of(self, kind: str) -> "Embedding":
        """Return the embedding of one kind of units; `self` if there is only one array."""
        if not self.kinds:
            return self
        return replace(self, values=self.values[kind], units=self.units[kind])

    def __repr__(self) -> str:
        if self.kinds:
            sizes = [f"{kind}: {array.shape[-2]}" for kind, array in self.values.items()]
            return f"Embedding({self.label!r}, {', '.join(sizes)}, latent: {next(iter(self.values.values())).shape[-1]})"
        dims = ("seed", "unit", "latent")[-self.values.ndim :]
        return f"Embedding({self.label!r}, {', '.join(f'{d}: {n}' for d, n in zip(dims, self.values.shape, strict=True))})"

    def reindexed(self, units: Any) -> "Embedding":
        """Return the embedding of these units in this order, matched by name and not by position.

        Args:
            units: Names of the units; a dict by kind if the embedding has kinds.

        Raises:
            DataError: Units are missing; the message names them.
        """
        if self.kinds:
            parts = {kind: self.of(kind).reindexed(units[kind]) for kind in self.kinds}
            values, names = ({kind: getattr(part, n) for kind, part in parts.items()} for n in ("values", "units"))
            return replace(self, values=values, units=names)
        where = {name: i for i, name in enumerate(self.units.astype(str).tolist())}
        wanted = convert.names(units, f"embedding {self.label!r}: the requested units")
        names = wanted.astype(str).tolist()
        missing = [name for name in names if name not in where]
        if missing:
            raise DataError(
                f"embedding {self.label!r} has no values for {len(missing)} of {len(names)} units: {convert.listed(missing)}. "
                f"The names of its units are {convert.listed(list(where), 2)}."
            )
        return replace(self, values=self.values[..., [where[name] for name in names], :], units=wanted)


def _named(raw: Any, units: Any, what: str) -> tuple[Any, Any]:
    """Separate values from the names of units; names in the values are used if `units` is None."""
    dims = ("seed", "unit", "latent") if getattr(raw, "ndim", 2) == 3 else ("unit", "latent")
    values, names, _ = labelled.opened(raw, dims, what)
    if "unit" not in names:
        if units is None and values is raw:
            raise DataError(f"{what}: `units` is missing; pass the names of the units, in the order of the values.")
        return values, units
    if units is None:
        return values, names["unit"]
    requested = convert.names(units, f"{what}: `units`").astype(str).tolist()
    if requested != names["unit"].astype(str).tolist():
        raise DataError(
            f"{what}: `units` differs from the names of units in the values, or has another order; leave out `units`."
        )
    return values, units


def _values(values: Any, what: str) -> np.ndarray:
    """Convert values to a read-only float64 array of two or three dims."""
    array = convert.as_array(values, ("unit", "latent"), what)
    if array.ndim not in (2, 3) or not array.size:
        raise DataError(f"{what}: `values` must have shape (unit, p) or (seed, unit, p); got {array.shape}.")
    return convert.sealed(convert.numbers(array, ("seed", "unit", "latent")[-array.ndim :], {}, what))


def _check_units(values: np.ndarray, units: np.ndarray, what: str) -> None:
    if len(units) != values.shape[-2]:
        raise DataError(f"{what}: `values` has {values.shape[-2]} units, but `units` has {len(units)} names.")
    duplicate = convert.first_duplicate(units.astype(str).tolist())
    if duplicate is not None:
        raise DataError(f"{what}: unit {duplicate!r} occurs more than once; give each unit a unique name.")
    bad = ~np.isfinite(values).all(axis=-1).reshape(-1, len(units)).all(axis=0)
    if bad.any():
        raise DataError(f"{what}: {bad.sum()} units have values that are not finite: {convert.listed(units[bad])}.")
