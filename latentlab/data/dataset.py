"""Datasets: observed arrays with named dims, and the names, coordinates and labels of the units."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

import numpy as np

from latentlab.data import check, convert, notes, relation, times
from latentlab.data.digest import content, headed, plain_bytes
from latentlab.data.relation import Index
from latentlab.data.split import split
from latentlab.data.transform import Transform, constant_columns, constant_message, moments, need_entries
from latentlab.errors import DataError
from latentlab.notebook import Displayed


@dataclass(frozen=True, eq=False)
class Dataset(Displayed):
    """Observed arrays with named dims, and the units whose positions are inferred.

    In a table or a series the units are along the dim `unit` of the observed array. Ratings and graphs have named kinds of units
    instead; their points (cells, pairs of nodes) refer to units by `index`. All values are validated and copied to read-only
    NumPy arrays; numbers are float64.

    Args:
        arrays: Name -> array. The array of a table is `x`, `(unit, feature)`. The first array is the observed one, to which
            `mask` refers. Names of units and features are taken from a pandas DataFrame, and dims from an xarray DataArray.
        dims: Name -> dims, such as `{"x": ("unit", "feature")}`, the default for a DataFrame; not needed for a DataArray.
        units: Names of a table's units, equivalent to the coordinate `unit`. With an `index`: kind of units -> their names,
            or their number.
        index: Name -> (dim of the points, number of each point's unit, kind of units). The kind defaults to the name of the
            index. The first dim of the observed array must be the dim of the points.
        coords: Dim, or a further coordinate along the points (`time`, `sequence`) -> labels. Numbers from 0 by default.
        mask: True for observed entries of the first array; None if all are observed. NaN entries are missing.
        labels: A label for each unit, `(unit,)`; by kind if there are several kinds of units.
        truth: True values of sites from a simulator, such as `z`, `W`; under the first array's name, its values before hiding.
        truth_dims: Dims of the arrays in `truth`. The defaults are `(unit, latent)` for `z`, and the dims of observed arrays.
        name: Name for messages, reports and files.
        transform: Standardisation that was applied to the first array, or None.
        dropped: Names of constant columns that were removed.
        preparation: Notes on changes of the rows, such as sorting by time; they precede the other `notes`.
        absent: Meaning of a point that is not listed: `unobserved` (ratings), or `zero` (graphs, counts).
        directed: Whether the pairs of a graph have a direction; if not, each pair is listed once, in either order.

    Raises:
        DataError: A shape, a type or a value is invalid; names the array and the column.

    Example:
        >>> dataset = Dataset({"x": [[1, 2], [3, float("nan")], [5, 9]]}, dims={"x": ("unit", "feature")},
        ...                   coords={"feature": ["a", "b"]}, labels=["u", "v", "u"], name="toy")
        >>> dataset.sizes, dataset.mask.tolist()
        ({'unit': 3, 'feature': 2}, [[True, True], [True, False], [True, True]])
        >>> dataset.standardize().x.round(3).tolist()
        [[-1.225, -1.0], [0.0, nan], [1.225, 1.0]]
        >>> ratings = Dataset({"rating": [5, 3, 1]}, dims={"rating": ("cell",)}, units={"user": ["ann", "bob"], "item": 2},
        ...                   index={"user": ("cell", [0, 1, 1]), "item": ("cell", [0, 0, 1])})
        >>> ratings, ratings.matrix("user", "item").toarray().tolist()
        (Dataset('data', cell: 3, user: 2, item: 2), [[5.0, 0.0], [3.0, 1.0]])
    """

    arrays: Mapping[str, np.ndarray]
    dims: Mapping[str, tuple[str, ...]] = field(default_factory=dict, kw_only=True)
    units: Any = field(default=None, kw_only=True)
    index: Mapping[str, Any] = field(default_factory=dict, kw_only=True)
    coords: Mapping[str, Any] = field(default_factory=dict, kw_only=True)
    mask: np.ndarray | None = field(default=None, kw_only=True)
    labels: Any = field(default=None, kw_only=True)
    truth: Mapping[str, np.ndarray] = field(default_factory=dict, kw_only=True)
    truth_dims: Mapping[str, tuple[str, ...]] = field(default_factory=dict, kw_only=True)
    name: str = field(default="data", kw_only=True)
    transform: Transform | None = field(default=None, kw_only=True)
    dropped: tuple[str, ...] = field(default=(), kw_only=True)
    preparation: tuple[str, ...] = field(default=(), kw_only=True)
    absent: Literal["unobserved", "zero"] = field(default="unobserved", kw_only=True)
    directed: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        unchecked = ("transform", "preparation")
        parts = {field.name: getattr(self, field.name) for field in fields(self) if field.name not in unchecked}
        for attribute, value in check.checked(**parts).items():
            object.__setattr__(self, attribute, value)

    def __repr__(self) -> str:
        sizes = ", ".join(f"{dim}: {size}" for dim, size in self.sizes.items())
        missing = "" if self.mask is None else f", {1 - self.mask.mean():.1%} missing"
        return f"Dataset({self.name!r}, {sizes}{missing}{', standardised' if self.transform is not None else ''})"

    @property
    def observed(self) -> str:
        """Name of the first array, which may have missing entries."""
        return next(iter(self.arrays))

    @property
    def x(self) -> np.ndarray:
        """The observed array; NaN for missing entries."""
        return self.arrays[self.observed]

    @property
    def sizes(self) -> dict[str, int]:
        """Size of each dim of all arrays, and number of units of each kind."""
        sizes = {d: n for name, dims in self.dims.items() for d, n in zip(dims, self.arrays[name].shape, strict=True)}
        return sizes | {kind: len(names) for kind, names in self.kinds.items()}

    @property
    def points(self) -> str:
        """Dim of the observations (factors of the likelihood): `unit` in a table, otherwise the dim of the index."""
        return self.dims[self.observed][0] if self.index else "unit"

    @property
    def n_points(self) -> int:
        return int(self.x.shape[self.point_axis])

    @property
    def kinds(self) -> dict[str, np.ndarray]:
        """Names (or numbers) of the units of each kind; the only kind of a table is `unit`."""
        return dict(self.units) if self.index else {"unit": self.units}

    @property
    def n_units(self) -> int:
        """Number of units of a table.

        Raises:
            DataError: The data are not a table, but have an `index`.
        """
        if self.index:
            kinds = ", ".join(self.kinds)
            raise DataError(f"{self.name}: `n_units` is defined only for tables; use `n_points`, or `sizes` of kinds ({kinds}).")
        return self.n_points

    @property
    def features(self) -> np.ndarray:
        """Names of a table's columns, or their numbers."""
        return np.asarray(self.coords.get(self._feature_dim(), np.arange(self.x.shape[1 - self.point_axis])))

    @property
    def array_dims(self) -> dict[str, tuple[str, ...]]:
        """Dims of the arrays and of the indices."""
        return {**self.dims, **{name: (one.dim,) for name, one in self.index.items()}}

    def labels_of(self, kind: str) -> np.ndarray | None:
        """Label of each unit of a kind; None if there are none."""
        return (self.labels or {}).get(kind) if self.index else self.labels

    def point_names(self) -> dict[str, np.ndarray]:
        """Name of each point's unit `(point,)`, by index; empty for a table."""
        return {name: self.units[one.kind][one.values] for name, one in self.index.items()}

    def standardize(self, *, ddof: int = 0, drop_constant: bool = False) -> "Dataset":
        """Centre each column and scale it to standard deviation 1 over its observed entries; the transform is kept.

        Args:
            ddof: The sum of squares is divided by the number of observed entries minus `ddof`.
            drop_constant: Remove constant columns instead of raising an error.

        Raises:
            DataError: A column is constant or has too few observed entries (names it), `absent` is `zero`, or the data are
                standardised already.
        """
        if self.transform is not None:
            raise DataError(f"{self.name}: the data are already standardised.")
        if self.absent == "zero":
            raise DataError(relation.not_standardised(self))
        kept = self.drop_constant() if drop_constant else self
        need_entries(kept, ddof)
        constant = constant_columns(kept)
        if constant.any():
            raise DataError(constant_message(kept, constant))
        loc, scale, _ = moments(kept.x, kept.point_axis, ddof)
        return kept.transformed(Transform(loc, scale, ddof))

    def drop_constant(self) -> "Dataset":
        """Remove constant columns; their names are kept in `dropped`."""
        need_entries(self, 0)
        constant = constant_columns(self)
        if not constant.any():
            return self
        self._feature_dim()
        if constant.all():
            raise DataError(f"{self.name}: all columns are constant over the {self.n_points} {self.points}s.")
        kept = self.select_features(self.features[~constant])
        return replace(kept, dropped=self.dropped + tuple(str(name) for name in self.features[constant]))

    def raw(self) -> "Dataset":
        """Return the dataset with raw values, as before standardisation."""
        if self.transform is None:
            return self
        return self._mapped(self.transform.inverse, None)

    def transformed(self, transform: Transform | None) -> "Dataset":
        """Apply `transform` to the raw values."""
        raw = self.raw()
        return raw if transform is None else raw._mapped(transform, transform)

    def subset(self, index: np.ndarray | Sequence[int] | Sequence[bool]) -> "Dataset":
        """Select points (units of a table) by number, in the given order, or by a boolean mask.

        The units keep their names (or numbers), and the transform is unchanged.

        Raises:
            DataError: A point does not exist, or `absent` is `zero`, so that omitted points would mean 0.
        """
        if self.absent == "zero":
            raise DataError(
                f"{self.name}: {self.points}s that are left out would count as 0; list all {self.points}s by `complete()` first."
            )
        chosen, what = np.asarray(index), f"{self.points}s"
        if chosen.ndim != 1 or chosen.dtype.kind not in "biu":
            raise DataError(f"{self.name}: {what} must be selected by integers or booleans; got {chosen.dtype}.")
        if chosen.dtype.kind == "b":
            if len(chosen) != self.n_points:
                raise DataError(f"{self.name}: a mask of the {what} must have length {self.n_points}; got {len(chosen)}.")
            chosen = np.flatnonzero(chosen)
        elif len(chosen) and not (chosen.min() >= 0 and chosen.max() < self.n_points):
            raise DataError(f"{self.name}: {what} are numbered 0 to {self.n_points - 1}; got {chosen.min()} to {chosen.max()}.")
        return self._take(self.points, chosen)

    def complete(self) -> "Dataset":
        """List all possible points except missing ones if `absent` is `zero`; return `self` otherwise.

        Raises:
            DataError: The points do not fit into memory, or there are other arrays or coordinates.
        """
        if self.absent != "zero":
            return self
        values, index = relation.completed(self)
        return replace(self, arrays={self.observed: values}, index=index, mask=None, absent="unobserved")

    def matrix(self, rows: str, columns: str) -> Any:
        """Sparse matrix of observed values (`scipy.sparse.csr_array`): units of the index `rows` by those of `columns`.

        Raises:
            DataError: An index does not exist.
        """
        return relation.matrix(self, rows, columns)

    def adjacency(self) -> Any:
        """Sparse adjacency matrix of a graph `(node, node)` without zeros, symmetric if the graph is undirected.

        Raises:
            DataError: The points are not pairs of units of one kind.
        """
        if not relation.is_graph(self.index):
            raise DataError(f"{self.name} has no adjacency matrix, because its points are not pairs of units of one kind.")
        matrix = self.matrix(*self.index)
        matrix.eliminate_zeros()
        return matrix if self.directed else matrix + matrix.T

    def split(self, fraction: float, rng: np.random.Generator, along: str | None = None) -> tuple["Dataset", "Dataset"]:
        """Split the points (units of a table) at random into training and held-out points; `fraction` is held out.

        Series (with a coordinate `sequence`) are split by whole sequences. With a kind of units as `along`, units are drawn and
        all their points are held out. For a standardised dataset the transform is refitted to the training points.

        Raises:
            DataError: A part would be empty, or the kind does not exist.

        Example:
            >>> x = np.arange(20.0).reshape(10, 2)
            >>> dataset = Dataset({"x": x}, dims={"x": ("unit", "feature")}).standardize()
            >>> training, held_out = dataset.split(0.3, np.random.default_rng(0))
            >>> training.n_units, held_out.n_units, float(abs(training.x.mean()).round(12))
            (7, 3, 0.0)
        """
        return split(self, fraction, rng, along)

    def select_features(self, columns: Sequence[Any] | np.ndarray) -> "Dataset":
        """Select columns by name (by number if they have no names), in the given order.

        Raises:
            DataError: A column does not exist (names the closest one), is requested twice, or the data are standardised.
        """
        dim = self._feature_dim()
        if self.transform is not None:
            raise DataError(f"{self.name}: the data are standardised; select columns before standardising.")
        return self._take(dim, np.array(convert.positions(columns, self.features.tolist(), self.name)))

    def align_features(self, other: "Dataset") -> "Dataset":
        """Return raw values of `other` with this dataset's columns in this dataset's order, matched by name.

        `training.align_features(new).transformed(training.transform)` prepares new data for a fit to `training`.
        Columns in `dropped` are removed. If `other.absent` is `zero`, all its points are listed.

        Raises:
            DataError: `other` lacks a column, or has additional columns; names them.
        """
        raw = other.raw().complete()
        if self.index:
            units, labels = self.units, self.labels
            return replace(raw, index=relation.recoded(raw, self), units=units, labels=labels)
        if self.x.ndim == 1 and raw.x.ndim == 1:
            return raw
        columns, new_columns = self.features.tolist(), raw.features.tolist()
        unnamed = self._feature_dim() not in self.coords or raw._feature_dim() not in raw.coords
        if unnamed and len(columns) != len(new_columns):
            raise DataError(f"{raw.name} has {len(new_columns)} columns, but {self.name} has {len(columns)}; name the columns.")
        if unnamed and {*map(str, columns)} != {*map(str, new_columns)}:  # equal names are numbers, and can be matched
            return raw
        known, present = {*map(str, columns), *self.dropped}, {*map(str, new_columns)}
        missing, extra = [n for n in columns if str(n) not in present], [n for n in new_columns if str(n) not in known]
        if missing or extra:
            parts = (("missing", missing), ("unexpected", extra))
            differences = "; ".join(f"{what} {convert.listed(names)}" for what, names in parts if names)
            raise DataError(f"{raw.name}: the columns differ from those of {self.name}: {differences}.")
        return raw if columns == new_columns else raw.select_features(columns)

    def conform(self, data: Any) -> "Dataset":
        """Convert new data to the columns, their order and the transform of this dataset; columns are matched by name.

        Args:
            data: A Dataset, or raw values with this dataset's dims as a DataFrame, a DataArray or an array.

        Raises:
            DataError: The type or the columns of the data are different; names them.

        Example:
            >>> dataset = Dataset({"x": [[0, 1], [2, 5]]}, dims={"x": ("unit", "feature")}).standardize()
            >>> dataset.conform([[3, 3]]).x.tolist()
            [[2.0, 0.0]]
        """
        if not isinstance(data, Dataset):
            data = Dataset(check.like(self, data), dims={self.observed: self.dims[self.observed]}, name="new data")
        return self.align_features(data).transformed(self.transform)

    def notes(self) -> list[str]:
        """Notes for the report, such as on identical columns and rows, unusual labels and missing entries."""
        if self.index:
            labels = [note for kind in self.kinds for note in notes.on_labels(self.labels_of(kind))]
            return [*self.preparation, *relation.notes(self), *labels]
        columns = self.features.tolist() if self.x.ndim == 2 else None
        x = np.moveaxis(self.x, self.point_axis, 0)
        return [
            *self.preparation,
            *self._time_notes(),
            *notes.on_values(x, self.units.tolist(), columns),
            *notes.on_labels(self.labels),
        ]

    def digest(self) -> str:
        """SHA-256 digest of the data, names, labels, truth and transform; equal data have equal digests on every machine."""
        digest = hashlib.sha256()
        for key, array in content(self):
            body = plain_bytes(array)
            digest.update(headed(key, array.shape, array.dtype, len(body)) + body)
        return digest.hexdigest()

    @property
    def sample(self) -> "Dataset":
        """Dataset of the units that results refer to: all units."""
        return self

    @property
    def point_axis(self) -> int:
        """Axis of the points in the observed array."""
        return self.dims[self.observed].index(self.points)

    def _time_notes(self) -> list[str]:
        """Notes on the time steps of a series: gaps, or times without a regular step."""
        if "time" not in self.coords:
            return []
        sequence, time = self.coords.get("sequence"), np.asarray(self.coords["time"])
        new = np.zeros(self.n_points, bool) if sequence is None else np.r_[False, sequence[1:] != sequence[:-1]]
        return times.on_gaps(times.read(time, f"{self.name}: coordinate 'time'"), np.cumsum(new))

    def _feature_dim(self) -> str:
        others = [dim for dim in self.dims[self.observed] if dim != self.points]
        if len(others) != 1:
            raise DataError(f"{self.name} is not a table: array {self.observed!r} has dims {self.dims[self.observed]}.")
        return others[0]

    def _mapped(self, function: Any, transform: Transform | None) -> "Dataset":
        arrays = {**self.arrays, self.observed: function(self.x)}
        truth = {**self.truth}
        if self.observed in truth:
            truth[self.observed] = function(truth[self.observed])
        return replace(self, arrays=arrays, truth=truth, transform=transform)

    def _take(self, dim: str, index: np.ndarray) -> "Dataset":
        def along(array: np.ndarray, dims: Sequence[str]) -> np.ndarray:
            return np.take(array, index, axis=list(dims).index(dim)) if dim in dims else array

        dims = {d for named in [*self.dims.values(), *self.truth_dims.values()] for d in named} | set(self.kinds)
        points = dim == self.points
        coords = {key: value[index] if points and key not in dims else value for key, value in self.coords.items()}
        if not self.index:
            coords[dim] = (self.units if points else self.features)[index]
        elif dim in coords:
            coords[dim] = coords[dim][index]
        selects_labels = points and not self.index and self.labels is not None
        return replace(
            self,
            arrays={name: along(array, self.dims[name]) for name, array in self.arrays.items()},
            units=self.units if self.index else None,
            index={name: Index(one.dim, one.values[index], one.kind) for name, one in self.index.items()},
            coords=coords,
            mask=None if self.mask is None else along(self.mask, self.dims[self.observed]),
            labels=self.labels[index] if selects_labels else self.labels,
            truth={name: along(value, self.truth_dims.get(name, ())) for name, value in self.truth.items()},
        )
