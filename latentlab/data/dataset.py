"""What is observed: arrays by name with every dim named, and what else is known of the units."""

import difflib
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np

from latentlab.data import check, convert, notes, times
from latentlab.errors import DataError, unknown

SHOWN = 40
"""A message lists so many names at most."""

NOISE = 16 * np.finfo(np.float64).eps
"""A column whose sd is below this share of its largest magnitude holds rounding noise, not variation."""


@dataclass(frozen=True)
class Transform:
    """Column-wise `(x - loc) / scale`, as fitted on the training data (`scale` with ddof 0 unless said)."""

    loc: np.ndarray
    scale: np.ndarray
    ddof: int = 0

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return (x - self.loc) / self.scale

    def inverse(self, x: np.ndarray) -> np.ndarray:
        return x * self.scale + self.loc


@dataclass(frozen=True, eq=False)
class Dataset:
    """Observed arrays by name, every dim named; the things that get positions are always on dim `unit`.

    Everything is checked and copied to read-only numpy arrays; numbers are float64.

    Args:
        arrays: Name -> array. A table's is `x`, `(unit, feature)`. The first is the observed one; `mask` is about it. A pandas
            DataFrame gives units and features their names, an xarray DataArray is taken by its own dims.
        dims: Name -> dims, e.g. `{"x": ("unit", "feature")}`: those of a DataFrame unless said. A DataArray has its own.
        coords: Dim, or a further coordinate along `unit` (`time`, `sequence`) -> labels. Counting from 0 without any.
        mask: True where the first array was observed; None where it was throughout. NaN in it is taken as missing.
        labels: A label for each unit, `(unit,)`.
        truth: True values of sites (from a simulator), e.g. `z`, `W`; under the first array's name, its hidden values.
        truth_dims: Dims of what is in `truth`. Known without it: `z` is `(unit, latent)`, and the names of the arrays.
        name: Used in messages, reports and files.
        transform: What standardised the first array, if anything did.
        dropped: Columns left out because they were constant.
        preparation: What was done to the rows before, such as sorting them by time; the first of the `notes`.

    Raises:
        DataError: A shape, a type or a value that cannot be used; names the array and the column.

    Example:
        >>> dataset = Dataset({"x": [[1, 2], [3, float("nan")], [5, 9]]}, dims={"x": ("unit", "feature")},
        ...                   coords={"feature": ["a", "b"]}, labels=["u", "v", "u"], name="toy")
        >>> dataset.sizes, dataset.mask.tolist()
        ({'unit': 3, 'feature': 2}, [[True, True], [True, False], [True, True]])
        >>> dataset.standardize().x.round(3).tolist()
        [[-1.225, -1.0], [0.0, nan], [1.225, 1.0]]
    """

    arrays: Mapping[str, np.ndarray]
    dims: Mapping[str, tuple[str, ...]] = field(default_factory=dict, kw_only=True)
    coords: Mapping[str, Any] = field(default_factory=dict, kw_only=True)
    mask: np.ndarray | None = field(default=None, kw_only=True)
    labels: np.ndarray | None = field(default=None, kw_only=True)
    truth: Mapping[str, np.ndarray] = field(default_factory=dict, kw_only=True)
    truth_dims: Mapping[str, tuple[str, ...]] = field(default_factory=dict, kw_only=True)
    name: str = field(default="data", kw_only=True)
    transform: Transform | None = field(default=None, kw_only=True)
    dropped: tuple[str, ...] = field(default=(), kw_only=True)
    preparation: tuple[str, ...] = field(default=(), kw_only=True)

    def __post_init__(self) -> None:
        unchecked = ("transform", "preparation")
        given = {field.name: getattr(self, field.name) for field in fields(self) if field.name not in unchecked}
        for attribute, value in check.checked(**given).items():
            object.__setattr__(self, attribute, value)

    def __repr__(self) -> str:
        sizes = ", ".join(f"{dim}: {size}" for dim, size in self.sizes.items())
        missing = "" if self.mask is None else f", {1 - self.mask.mean():.1%} missing"
        return f"Dataset({self.name!r}, {sizes}{missing}{', standardised' if self.transform is not None else ''})"

    @property
    def observed(self) -> str:
        """Name of the first array, the one that may have missing entries."""
        return next(iter(self.arrays))

    @property
    def x(self) -> np.ndarray:
        """The observed array; NaN where missing."""
        return self.arrays[self.observed]

    @property
    def sizes(self) -> dict[str, int]:
        """Dim -> size, over all arrays."""
        return {d: n for name, dims in self.dims.items() for d, n in zip(dims, self.arrays[name].shape, strict=True)}

    @property
    def n_units(self) -> int:
        return self.sizes["unit"]

    @property
    def units(self) -> np.ndarray:
        """The units' names, or their numbers."""
        return np.asarray(self.coords.get("unit", np.arange(self.n_units)))

    @property
    def features(self) -> np.ndarray:
        """The columns' names, or their numbers; of a table only."""
        return np.asarray(self.coords.get(self._feature_dim(), np.arange(self.x.shape[1 - self._unit_axis])))

    def standardize(self, *, ddof: int = 0, drop_constant: bool = False) -> "Dataset":
        """Each column centred and scaled to standard deviation 1 over its observed entries; the transform is kept.

        Args:
            ddof: The sum of squares is divided by the number of observed entries minus `ddof`.
            drop_constant: Leave constant columns out; without it they are an error.

        Raises:
            DataError: A column is constant, or nothing of it was observed; names it.
        """
        if self.transform is not None:
            raise DataError(f"{self.name}: already standardised.")
        kept = self.drop_constant() if drop_constant else self
        kept._need_entries(ddof)
        constant = kept._constant()
        if constant.any():
            raise DataError(kept._constant_message(constant))
        loc, scale, _ = moments(kept.x, kept._unit_axis, ddof)
        return kept.transformed(Transform(loc, scale, ddof))

    def drop_constant(self) -> "Dataset":
        """The dataset without the columns that are constant, whose names are kept in `dropped`."""
        self._need_entries(0)
        constant = self._constant()
        if not constant.any():
            return self
        self._feature_dim()
        if constant.all():
            raise DataError(f"{self.name}: every column is constant over the {self.n_units} units: nothing varies.")
        kept = self.select_features(self.features[~constant])
        return replace(kept, dropped=self.dropped + tuple(str(name) for name in self.features[constant]))

    def raw(self) -> "Dataset":
        """The dataset before it was standardised."""
        if self.transform is None:
            return self
        return self._mapped(self.transform.inverse, None)

    def transformed(self, transform: Transform | None) -> "Dataset":
        """The dataset with its raw values put through `transform`."""
        raw = self.raw()
        return raw if transform is None else raw._mapped(transform, transform)

    def subset(self, index: np.ndarray | Sequence[int] | Sequence[bool]) -> "Dataset":
        """Some of the units, in the order given: by their numbers, or by a True for each unit that stays.

        The units keep their names (or numbers), and the transform stays that of the whole.
        """
        chosen = np.asarray(index)
        if chosen.ndim != 1 or chosen.dtype.kind not in "biu":
            raise DataError(f"{self.name}: units are chosen by whole numbers or truth values; got {chosen.dtype}.")
        if chosen.dtype.kind == "b":
            if len(chosen) != self.n_units:
                raise DataError(f"{self.name}: {len(chosen)} truth values to choose from {self.n_units} units.")
            chosen = np.flatnonzero(chosen)
        elif len(chosen) and not (chosen.min() >= 0 and chosen.max() < self.n_units):
            raise DataError(f"{self.name}: units are numbered 0 to {self.n_units - 1}; got {chosen.min()} to {chosen.max()}.")
        return self._take("unit", chosen)

    def split(self, fraction: float, rng: np.random.Generator) -> tuple["Dataset", "Dataset"]:
        """Training and held-out units, drawn at random; `fraction` of the units is held out.

        Of series (a coordinate `sequence`) whole sequences are held out, about so large a share of them. If the dataset is
        standardised, the transform is fitted anew on the training units and applied to both.

        Example:
            >>> x = np.arange(20.0).reshape(10, 2)
            >>> dataset = Dataset({"x": x}, dims={"x": ("unit", "feature")}).standardize()
            >>> training, held_out = dataset.split(0.3, np.random.default_rng(0))
            >>> training.n_units, held_out.n_units, float(abs(training.x.mean()).round(12))
            (7, 3, 0.0)
        """
        groups = np.asarray(self.coords.get("sequence", np.arange(self.n_units)))
        names = np.array(list(dict.fromkeys(groups.tolist())), dtype=groups.dtype)
        n_held_out = round(fraction * len(names)) if 0 < fraction < 1 else 0
        if not 0 < n_held_out < len(names):
            what = "sequences" if "sequence" in self.coords else "units"
            raise DataError(f"{self.name}: holding out {fraction} of {len(names)} {what} leaves one part empty.")
        chosen = np.isin(groups, names[rng.permutation(len(names))[:n_held_out]])
        raw = self.raw()
        training = raw.subset(~chosen)
        if self.transform is not None:
            training = training.standardize(ddof=self.transform.ddof, drop_constant=bool(self.dropped))
        held_out = training.align_features(raw.subset(chosen))
        return training, held_out.transformed(training.transform)

    def select_features(self, columns: Sequence[Any] | np.ndarray) -> "Dataset":
        """Some of the columns, by name (by number where they have no names), in the order given.

        Raises:
            DataError: No such column, with the closest one; or a column is asked for twice.
        """
        dim = self._feature_dim()
        if self.transform is not None:
            raise DataError(f"{self.name}: choose columns before standardising.")
        return self._take(dim, np.array(positions(columns, self.features.tolist(), self.name)))

    def align_features(self, other: "Dataset") -> "Dataset":
        """`other` in raw values, with this dataset's columns in this dataset's order, matched by name.

        `training.align_features(new).transformed(training.transform)` is new data as a fit on `training` takes them.
        Columns that this dataset dropped as constant are left out.

        Raises:
            DataError: `other` lacks a column, or has one too many; names them.
        """
        raw = other.raw()
        if self.x.ndim == 1 and raw.x.ndim == 1:
            return raw
        ours, theirs = self.features.tolist(), raw.features.tolist()
        unnamed = self._feature_dim() not in self.coords or raw._feature_dim() not in raw.coords
        if unnamed and len(ours) != len(theirs):
            raise DataError(f"{raw.name}: {len(theirs)} columns where {self.name} has {len(ours)}; give them names.")
        if unnamed and {*map(str, ours)} != {*map(str, theirs)}:  # else names that are numbers
            return raw
        known, there = {*map(str, ours), *self.dropped}, {*map(str, theirs)}
        missing, extra = [n for n in ours if str(n) not in there], [n for n in theirs if str(n) not in known]
        if missing or extra:
            lacks = f"lacks {convert.listed(missing)}" if missing else ""
            has = f"has also {convert.listed(extra)}" if extra else ""
            said = " and ".join(filter(None, (lacks, has)))
            raise DataError(f"{raw.name}: its columns are not those of {self.name}: it {said}.")
        return raw if ours == theirs else raw.select_features(ours)

    def conform(self, data: Any) -> "Dataset":
        """New data in the form of this dataset: its columns in its order, matched by name, and its transform applied.

        Args:
            data: A Dataset; or raw values with this dataset's dims, as a DataFrame, a DataArray or an array.

        Raises:
            DataError: Something else, or other columns; names them.

        Example:
            >>> dataset = Dataset({"x": [[0, 1], [2, 5]]}, dims={"x": ("unit", "feature")}).standardize()
            >>> dataset.conform([[3, 3]]).x.tolist()
            [[2.0, 0.0]]
        """
        if not isinstance(data, Dataset):
            dims = self.dims[self.observed]
            is_array = any(hasattr(data, one) for one in ("__array__", "toarray", "to_pandas")) or isinstance(data, list | tuple)
            if not is_array:
                getattr(data, "raw", None)  # data that stay on disk refuse by themselves
                shape = ", ".join(f"n_{dim}s" for dim in dims)
                raise DataError(
                    f"new data must be a `Dataset`, a DataFrame, a DataArray or an array ({shape}) of raw values; "
                    f"got {type(data).__name__}."
                )
            if len(self.arrays) > 1:
                others = ", ".join(self.arrays)
                raise DataError(f"new data must be a `Dataset` with the arrays {others}; got {type(data).__name__}.")
            if len(dims) == 2 and getattr(data, "ndim", 2) == 1 and hasattr(data, "to_frame"):
                data = data.to_frame().T  # one unit, as a row of a DataFrame is
            data = Dataset({self.observed: data}, dims={self.observed: dims}, name="new data")
        return self.align_features(data).transformed(self.transform)

    def notes(self) -> list[str]:
        """Notes on the data for readers of results: identical columns and rows, unusual labels, missing entries."""
        columns = self.features.tolist() if self.x.ndim == 2 else None
        x = np.moveaxis(self.x, self._unit_axis, 0)
        return [
            *self.preparation,
            *self._time_notes(),
            *notes.on_values(x, self.units.tolist(), columns),
            *notes.on_labels(self.labels),
        ]

    def digest(self) -> str:
        """SHA-256 over all but the name: the same for equal data in every process and on every machine."""
        digest = hashlib.sha256()
        for key, array in content(self):
            body = plain_bytes(array)
            digest.update(headed(key, array.shape, array.dtype, len(body)) + body)
        return digest.hexdigest()

    @property
    def sample(self) -> "Dataset":
        """The units that results are about: all of them."""
        return self

    @property
    def _unit_axis(self) -> int:
        return self.dims[self.observed].index("unit")

    def _time_notes(self) -> list[str]:
        """Notes on the time steps of a series: gaps, or times without a regular step."""
        if "time" not in self.coords:
            return []
        sequence, time = self.coords.get("sequence"), np.asarray(self.coords["time"])
        new = np.zeros(self.n_units, bool) if sequence is None else np.r_[False, sequence[1:] != sequence[:-1]]
        return times.on_gaps(times.read(time, f"{self.name}: coordinate 'time'"), np.cumsum(new))

    def _feature_dim(self) -> str:
        others = [dim for dim in self.dims[self.observed] if dim != "unit"]
        if len(others) != 1:
            raise DataError(f"{self.name}: not a table: {self.observed!r} has dims {self.dims[self.observed]}.")
        return others[0]

    def _constant(self) -> np.ndarray:
        _, scale, relative = moments(self.x, self._unit_axis, 0)
        return np.atleast_1d((relative <= NOISE) | (scale == 0))

    def _need_entries(self, ddof: int) -> None:
        if isinstance(ddof, bool) or not isinstance(ddof, int) or ddof < 0:
            raise DataError(f"`ddof` must be a whole number of at least 0; got {ddof!r}.")
        if self.n_units < 2:
            raise DataError(f"{self.name}: standardising needs at least 2 units; got {self.n_units}.")
        counts = np.atleast_1d((~np.isnan(self.x)).sum(self._unit_axis))
        if counts.min() == 0:
            raise DataError(f"{self.name}: nothing was observed{self._column(counts == 0)}; leave it out.")
        if counts.min() <= ddof:
            few = self._column(counts <= ddof)
            raise DataError(f"{self.name}{few}: {counts.min()} observed entries are too few for ddof = {ddof}.")

    def _column(self, flags: np.ndarray) -> str:
        dims = [dim for dim in self.dims[self.observed] if dim != "unit"]
        return convert.column(convert.first(flags.reshape(flags.shape[: len(dims)])), dims, self.coords) if dims else ""

    def _constant_message(self, constant: np.ndarray) -> str:
        column, n_constant = self._column(constant).removeprefix(", ") or "the array", int(constant.sum())
        loose = bool((np.nanmin(self.x, self._unit_axis) < np.nanmax(self.x, self._unit_axis))[constant].any())
        others, rounded = "", " up to rounding" if loose else ""
        if n_constant > 1 and constant.ndim == 1:
            others = f" (likewise {convert.listed([str(name) for name in self.features[constant][1:]])})"
        return (
            f"{self.name}: {column} is constant over the observed units{rounded}, so it cannot be standardised{others}; "
            "leave such columns out by `drop_constant: true`, or keep raw values by `standardize: false`."
        )

    def _mapped(self, function: Any, transform: Transform | None) -> "Dataset":
        arrays = {**self.arrays, self.observed: function(self.x)}
        truth = {**self.truth}
        if self.observed in truth:
            truth[self.observed] = function(truth[self.observed])
        return replace(self, arrays=arrays, truth=truth, transform=transform)

    def _take(self, dim: str, index: np.ndarray) -> "Dataset":
        def along(array: np.ndarray, dims: Sequence[str]) -> np.ndarray:
            return np.take(array, index, axis=list(dims).index(dim)) if dim in dims else array

        dims = {d for named in [*self.dims.values(), *self.truth_dims.values()] for d in named}
        names, units = (self.units, True) if dim == "unit" else (self.features, False)
        coords = {key: value[index] if units and key not in dims else value for key, value in self.coords.items()}
        return replace(
            self,
            arrays={name: along(array, self.dims[name]) for name, array in self.arrays.items()},
            coords={**coords, dim: names[index]},
            mask=None if self.mask is None else along(self.mask, self.dims[self.observed]),
            labels=self.labels[index] if units and self.labels is not None else self.labels,
            truth={name: along(value, self.truth_dims.get(name, ())) for name, value in self.truth.items()},
        )


def positions(asked: Sequence[Any] | np.ndarray, names: Sequence[Any], what: str) -> list[int]:
    """Where the asked-for columns are in `names`, which are compared as text.

    Raises:
        DataError: No such column, with the closest one; or a column is asked for twice, or none is.

    Example:
        >>> positions(["b", "a"], ["a", "b", "c"], "toy")
        [1, 0]
    """
    if isinstance(asked, str) or not isinstance(asked, Sequence | np.ndarray) or not len(asked):
        raise DataError(f"{what}: `columns` must be a list of column names; got {asked!r}.")
    where = {str(name): i for i, name in enumerate(names)}
    wanted = [str(name) for name in asked]
    for name in wanted:
        if name not in where:
            valid = where if len(where) <= SHOWN else difflib.get_close_matches(name, where, n=SHOWN)
            raise DataError(f"{what}: {unknown('column', name, valid)}")
    twice = convert.repeated(wanted)
    if twice is not None:
        raise DataError(f"{what}: column {twice!r} is asked for twice.")
    return [where[name] for name in wanted]


def moments(x: np.ndarray, axis: int, ddof: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean and sd over the units, and the sd relative to the largest magnitude.

    Computed on values scaled by a power of two, which changes no digit, so that neither 1e300 nor 1e-300 is squared
    out of range.
    """
    keep = axis != 0
    largest = np.nanmax(np.abs(x), axis=axis, keepdims=True)
    exponent = np.frexp(largest)[1]
    scaled = np.ldexp(x, -exponent)
    loc = np.ldexp(np.nanmean(scaled, axis=axis, keepdims=True), exponent)
    sd = np.nanstd(scaled, axis=axis, ddof=ddof, keepdims=True)
    relative = sd / np.where(largest > 0, np.ldexp(largest, -exponent), 1.0)
    parts = (loc, np.ldexp(sd, exponent), relative)
    return tuple(part if keep else part[0] for part in parts)


def content(dataset: Dataset) -> Iterator[tuple[str, np.ndarray]]:
    """All but the name, by what it is."""
    for name, array in dataset.arrays.items():
        yield f"array {name} {dataset.dims[name]}", array
    for kind, values in (("coord", dataset.coords), ("truth", dataset.truth)):
        yield from ((f"{kind} {name}", values[name]) for name in sorted(values))
    if dataset.labels is not None:
        yield "labels", dataset.labels
    if dataset.transform is not None:
        yield f"loc {dataset.transform.ddof}", dataset.transform.loc
        yield "scale", dataset.transform.scale


def headed(key: str, shape: tuple[int, ...], dtype: np.dtype, n_bytes: int) -> bytes:
    """What a digest is given before an array's own bytes."""
    return f"{key}{shape}{dtype.kind}{n_bytes}:".encode()


def plain_bytes(array: np.ndarray) -> bytes:
    """The bytes of an array, the same for values that are equal."""
    if array.dtype.kind not in "biuf":
        return repr(array.astype(str).tolist()).encode()
    # One NaN and one zero: both have several bit patterns that compare alike.
    plain = np.where(np.isnan(array), np.nan, array + 0.0) if array.dtype.kind == "f" else array
    return np.ascontiguousarray(plain, dtype=plain.dtype.newbyteorder("<")).tobytes()
