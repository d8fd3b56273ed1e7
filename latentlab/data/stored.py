"""Tables that stay on disk: summaries of the columns are in memory, and rows are read on demand."""

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NoReturn

import numpy as np

from latentlab.data import convert
from latentlab.data.dataset import Dataset
from latentlab.data.digest import content, headed, plain_bytes
from latentlab.data.rows import Rows
from latentlab.data.transform import NOISE, Transform, moments
from latentlab.errors import DataError
from latentlab.seeds import Seeds

N_SAMPLE = 1000
"""Number of units whose positions, log likelihood and predictions are stored."""

DIMS = ("unit", "feature")


@dataclass(frozen=True)
class Columns:
    """Summary statistics of each column, `(feature,)`, from one pass over the rows."""

    n_seen: np.ndarray
    """Number of observed entries."""
    low: np.ndarray
    """Smallest observed entry."""
    high: np.ndarray
    """Largest observed entry."""
    loc: np.ndarray
    """Mean of the observed entries."""
    scale: np.ndarray
    """Standard deviation of the observed entries, ddof 0."""
    extreme_rows: np.ndarray
    """Distinct row numbers of each column's smallest, largest, first missing and first fractional entry."""

    @property
    def constant(self) -> np.ndarray:
        """Whether each column is constant up to rounding, as in `Dataset.standardize`."""
        largest = np.maximum(np.abs(self.low), np.abs(self.high))
        with np.errstate(invalid="ignore"):
            return np.asarray((self.scale == 0) | (self.scale / np.where(largest > 0, largest, 1.0) <= NOISE))

    def select(self, kept: np.ndarray) -> "Columns":
        """Select columns; the row numbers are unchanged."""
        parts = {name: getattr(self, name)[kept] for name in ("n_seen", "low", "high", "loc", "scale")}
        return replace(self, **parts)


@dataclass(frozen=True, eq=False, repr=False)
class StoredDataset:
    """A table in a file, of which only the rows in use are in memory; it is fitted by SVI in minibatches.

    One pass at construction checks every entry and computes the mean and standard deviation of each column. Results refer to
    `sample`, since positions of 10 million units for each draw would need more memory than the data.

    Args:
        rows: The matrix in its file; NaN for missing entries.
        name: Name for messages, reports and files.
        features: Names of the columns; their numbers if not given.
        transform: Standardisation that is applied to rows when they are read, or None.
        dropped: Names of constant columns that were removed.
        columns: Summary statistics of the columns; computed by a pass over the rows if not given.

    Raises:
        DataError: An entry is invalid, or the file cannot be read; names it.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from latentlab.data.rows import npy_rows
        >>> where = Path(tempfile.mkdtemp()) / "toy.npy"
        >>> np.save(where, np.array([[1, 2], [3, np.nan], [5, 9]], dtype=np.float32))
        >>> dataset = StoredDataset(npy_rows(where), name="toy").standardize()
        >>> dataset
        StoredDataset('toy', unit: 3, feature: 2, 16.7% missing, standardised)
        >>> dataset.subset([2, 0]).x.round(3).tolist()
        [[1.225, 1.0], [-1.225, -1.0]]
    """

    rows: Rows
    name: str = field(default="data", kw_only=True)
    features: np.ndarray | None = field(default=None, kw_only=True)
    transform: Transform | None = field(default=None, kw_only=True)
    dropped: tuple[str, ...] = field(default=(), kw_only=True)
    columns: Columns | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        names = self.rows.columns if self.features is None else self.features
        object.__setattr__(self, "features", np.array([str(name) for name in names]))
        if self.columns is None:
            object.__setattr__(self, "columns", self._scanned())

    def __repr__(self) -> str:
        missing = f", {self.n_missing / (self.n_units * len(self._features)):.1%} missing" if self.n_missing else ""
        standardised = ", standardised" if self.transform is not None else ""
        return f"StoredDataset({self.name!r}, unit: {self.n_units}, feature: {len(self._features)}{missing}{standardised})"

    def __getattr__(self, attribute: str) -> NoReturn:
        if attribute.startswith("_") or (not hasattr(Dataset, attribute) and attribute not in ("arrays", "mask", "labels")):
            raise AttributeError(attribute)
        raise DataError(
            f"{self.name} stays on disk, but `{attribute}` requires data in memory. Load units by `subset`, use the `sample` of "
            "the results, or set `in_memory: true`."
        )

    @property
    def n_units(self) -> int:
        return len(self.rows)

    @property
    def n_points(self) -> int:
        """Number of rows, since the points of a table are its units."""
        return self.n_units

    @property
    def sizes(self) -> dict[str, int]:
        """Size of each dim."""
        return dict(zip(DIMS, (self.n_units, len(self._features)), strict=True))

    @property
    def n_missing(self) -> int:
        """Number of missing entries."""
        return int((self.n_units - self._columns.n_seen).sum())

    @cached_property
    def sample(self) -> Dataset:
        """Dataset in memory of the units that results refer to: `N_SAMPLE` random units, equal for equal numbers of units."""
        return self._numbered(self.sampled())

    @cached_property
    def extremes(self) -> Dataset:
        """Dataset for the checks of a model: the sample and the units with extreme entries.

        The added units contain each column's smallest, largest, first missing and first fractional entry.
        """
        if self.n_units <= N_SAMPLE:
            return self.sample
        return self._numbered(np.union1d(self.sampled(), self._columns.extreme_rows))

    def standardize(self, *, ddof: int = 0, drop_constant: bool = False) -> "StoredDataset":
        """Standardise the columns as `Dataset.standardize` does, by the moments of the first pass, when rows are read."""
        if self.transform is not None:
            raise DataError(f"{self.name}: the data are already standardised.")
        kept = self.drop_constant() if drop_constant else self
        kept._need_entries(ddof)
        columns = kept._columns
        if columns.constant.any():
            names = kept._features[columns.constant].tolist()
            others = f" (also constant: {convert.listed(names[1:])})" if names[1:] else ""
            raise DataError(
                f"{self.name}: column {names[0]!r} is constant over the observed units, so it cannot be standardised{others}; "
                "remove constant columns by `drop_constant: true`, or keep raw values by `standardize: false`."
            )
        scale = columns.scale * np.sqrt(columns.n_seen / (columns.n_seen - ddof)) if ddof else columns.scale
        return replace(kept, transform=Transform(columns.loc, scale, ddof))

    def drop_constant(self) -> "StoredDataset":
        """Remove constant columns; their names are kept in `dropped`."""
        self._need_entries(0)
        constant = self._columns.constant
        if not constant.any():
            return self
        if constant.all():
            raise DataError(f"{self.name}: all columns are constant over the {self.n_units} units.")
        kept = np.flatnonzero(~constant)
        return replace(
            self,
            rows=self.rows.select(kept),
            features=self._features[kept],
            dropped=self.dropped + tuple(self._features[constant].tolist()),
            columns=self._columns.select(kept),
        )

    def subset(self, index: np.ndarray | Sequence[int]) -> Dataset:
        """Load units into memory by their numbers, in the given order; the transform is unchanged."""
        chosen = np.asarray(index)
        if chosen.ndim != 1 or chosen.dtype.kind not in "iu" or not len(chosen):
            raise DataError(
                f"{self.name}: units must be selected by a nonempty vector of integers; "
                f"got {chosen.dtype} of shape {chosen.shape}."
            )
        if not (chosen.min() >= 0 and chosen.max() < self.n_units):
            raise DataError(f"{self.name}: units are numbered 0 to {self.n_units - 1}; got {chosen.min()} to {chosen.max()}.")
        return self._numbered(chosen)

    def read(self, index: np.ndarray, is_cancelled: Callable[[], bool] = lambda: False) -> np.ndarray:
        """Read rows by number, in the file's dtype; `values` converts them. Arguments and errors are those of `Rows.take`."""
        return self.rows.take(index, is_cancelled)

    def values(self, rows: np.ndarray) -> np.ndarray:
        """Convert rows of the file to float64, standardised if there is a transform; NaN for missing entries."""
        x = np.array(rows, dtype=np.float64, order="C")
        return x if self.transform is None else self.transform(x)

    def blocks(self) -> Iterator[np.ndarray]:
        """Iterate over the values of all rows in blocks."""
        return map(self.values, self.rows.blocks())

    def notes(self) -> list[str]:
        """Notes on the data for the report."""
        n_entries, n_units = self.n_units * len(self._features), self.n_units
        texts = [f"The data stay on disk, in {self.rows.path.name}, and were fitted in minibatches."]
        if n_units > N_SAMPLE:
            texts.append(
                f"Positions, log likelihood, predictions and embeddings refer to {N_SAMPLE} of the {n_units} units, drawn at "
                "random. The other sites were inferred from all units."
            )
        if self.n_missing:
            texts.append(f"{self.n_missing} of {n_entries} entries are missing ({self.n_missing / n_entries:.1%}).")
        return texts

    def digest(self) -> str:
        """SHA-256 digest, equal to that of the same table in memory; needs one more pass over the rows."""
        digest = hashlib.sha256()
        float64 = np.dtype(np.float64)
        shape = (self.n_units, len(self._features))
        digest.update(headed(f"array x {DIMS}", shape, float64, math.prod(shape) * float64.itemsize))
        for block in self.blocks():
            digest.update(plain_bytes(block))
        for key, array in content(replace(self.sample, units=None, coords={"feature": self._features})):
            if not key.startswith("array "):
                body = plain_bytes(array)
                digest.update(headed(key, array.shape, array.dtype, len(body)) + body)
        return digest.hexdigest()

    @property
    def _columns(self) -> Columns:
        return self.columns  # type: ignore[return-value]

    @property
    def _features(self) -> np.ndarray:
        return self.features  # type: ignore[return-value]

    def sampled(self) -> np.ndarray:
        """Return the numbers of the units of `sample`, in increasing order."""
        if self.n_units <= N_SAMPLE:
            return np.arange(self.n_units)
        rng = Seeds(0).child("sample").numpy()
        return np.sort(rng.choice(self.n_units, N_SAMPLE, replace=False))

    def _numbered(self, index: np.ndarray) -> Dataset:
        """Load units into memory; they are named by their numbers, unless they are all units in order."""
        whole = len(index) == self.n_units and bool((np.diff(index) > 0).all())
        coords: dict[str, Any] = {"feature": self._features, **({} if whole else {"unit": index})}
        x = self.values(self.read(index))
        return Dataset({"x": x}, dims={"x": DIMS}, coords=coords, name=self.name, transform=self.transform, dropped=self.dropped)

    def _need_entries(self, ddof: int) -> None:
        if isinstance(ddof, bool) or not isinstance(ddof, int) or ddof < 0:
            raise DataError(f"`ddof` must be a whole number of at least 0; got {ddof!r}.")
        if self.n_units < 2:
            raise DataError(f"{self.name}: standardising needs at least 2 units; got {self.n_units}.")
        few = self._columns.n_seen <= ddof
        if few.any():
            name, n = str(self._features[few][0]), int(self._columns.n_seen[few][0])
            if not n:
                raise DataError(f"{self.name}: column {name!r} has no observed entries; leave it out.")
            raise DataError(f"{self.name}, column {name!r}: {n} observed entries are too few for ddof = {ddof}.")

    def _scanned(self) -> Columns:
        """Check all entries and compute the summary statistics in one pass."""
        what, coords = f"{self.name}: array 'x'", {"feature": self._features}
        parts, at = [], 0
        for raw in self.rows.blocks():
            x = convert.numbers(raw, DIMS, coords, what)
            infinite = np.isinf(x)
            if infinite.any():
                column = convert.column(convert.first(infinite), DIMS, coords)
                raise DataError(f"{what}{column} has infinite values; the first is at unit {at + convert.first(infinite)[0]}.")
            parts.append(_scanned_block(x, at))
            at += len(x)
        found = _joined(parts)
        if not found.n_seen.any():
            raise DataError(f"{what} has no observed entries.")
        return found


def _scanned_block(x: np.ndarray, at: int) -> tuple[Columns, np.ndarray]:
    """Summary statistics of a block whose rows are numbered from `at`, and the row numbers of four entries in each column.

    These are the smallest, largest, first missing and first fractional entry, `(4, feature)`; -1 for none.
    """
    missing = np.isnan(x)
    n_seen = len(x) - missing.sum(0)
    empty = n_seen == 0
    filled = np.where(empty, 0.0, x)  # columns without observed entries have weight 0 when blocks are joined
    loc, scale, _ = moments(filled, 0, 0)
    smallest, largest = (
        (np.argmin(np.where(missing, np.inf, x), axis=0), np.argmax(np.where(missing, -np.inf, x), axis=0))
        if missing.any()
        else (x.argmin(0), x.argmax(0))
    )
    each = np.arange(x.shape[1])
    low, high = np.where(empty, np.inf, x[smallest, each]), np.where(empty, -np.inf, x[largest, each])
    fractional = (x != np.floor(x)) & ~missing
    rows = [np.where(empty, -1, smallest + at), np.where(empty, -1, largest + at)]
    rows += [np.where(flags.any(0), flags.argmax(0) + at, -1) for flags in (missing, fractional)]
    return Columns(n_seen, low, high, loc, scale, np.zeros(0, dtype=int)), np.stack(rows)


def _joined(parts: Sequence[tuple[Columns, np.ndarray]]) -> Columns:
    r"""Combine blocks: mean $\sum_b n_b m_b / n$ and variance $\sum_b n_b (s_b^2 + (m_b - m)^2) / n$, scaled as in `moments`."""
    columns, rows = [part[0] for part in parts], np.stack([part[1] for part in parts])
    n_seen, low, high, loc, scale = (
        np.stack([getattr(one, name) for one in columns]) for name in ("n_seen", "low", "high", "loc", "scale")
    )
    which = np.arange(rows.shape[2])
    smallest, largest = rows[low.argmin(0), 0, which], rows[high.argmax(0), 1, which]
    first = [rows[(rows[:, kind] >= 0).argmax(0), kind, which] for kind in (2, 3)]
    extreme_rows = np.unique([smallest, largest, *first])
    found = Columns(n_seen.sum(0), low.min(0), high.max(0), loc[0], scale[0], extreme_rows[extreme_rows >= 0])
    if len(columns) == 1:
        return found
    exponent = np.frexp(np.maximum(np.abs(found.low), np.abs(found.high)))[1]
    m, s, n = np.ldexp(loc, -exponent), np.ldexp(scale, -exponent), np.maximum(found.n_seen, 1)
    mean = (n_seen * m).sum(0) / n
    variance = (n_seen * (s**2 + (m - mean) ** 2)).sum(0) / n
    return replace(found, loc=np.ldexp(mean, exponent), scale=np.ldexp(np.sqrt(variance), exponent))
