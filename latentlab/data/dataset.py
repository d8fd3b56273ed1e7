"""What is observed: arrays by name with every dim named, and what else is known of the units."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from latentlab.errors import DataError


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

    Args:
        arrays: Name -> array. A table's is `x`, `(unit, feature)`. The first one is the observed array that `mask` is about.
        dims: Name -> dims, e.g. `{"x": ("unit", "feature")}`.
        coords: Dim (or a further coordinate along it) -> labels. Counting from 0 where none are given.
        mask: True where the first array was observed. NaN in it is taken as missing.
        labels: A label for each unit, `(unit,)`.
        truth: True values of sites (from a simulator), e.g. `z`, `W`.
        name: Used in messages, reports and files.
        transform: What standardised the first array, if anything did.
    """

    arrays: Mapping[str, np.ndarray]
    dims: Mapping[str, tuple[str, ...]] = field(kw_only=True)
    coords: Mapping[str, Any] = field(default_factory=dict, kw_only=True)
    mask: np.ndarray | None = field(default=None, kw_only=True)
    labels: np.ndarray | None = field(default=None, kw_only=True)
    truth: Mapping[str, np.ndarray] = field(default_factory=dict, kw_only=True)
    name: str = field(default="data", kw_only=True)
    transform: Transform | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        observed = next(iter(self.arrays))
        x = self.arrays[observed]
        if self.mask is None and np.isnan(x).any():
            object.__setattr__(self, "mask", ~np.isnan(x))

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

    def standardize(self, *, ddof: int = 0) -> "Dataset":
        """Each column centred and scaled to standard deviation 1 over its observed entries; the transform is kept."""
        if self.transform is not None:
            raise DataError(f"{self.name}: already standardised.")
        x = self.x
        return self.transformed(Transform(np.nanmean(x, axis=0), np.nanstd(x, axis=0, ddof=ddof), ddof))

    def raw(self) -> "Dataset":
        """The dataset before it was standardised."""
        if self.transform is None:
            return self
        return replace(
            self, arrays={**self.arrays, self.observed: self.transform.inverse(self.x)}, transform=None
        )

    def transformed(self, transform: Transform | None) -> "Dataset":
        """The dataset with its raw values put through `transform`."""
        raw = self.raw()
        if transform is None:
            return raw
        return replace(raw, arrays={**raw.arrays, self.observed: transform(raw.x)}, transform=transform)

    def digest(self) -> str:
        """SHA-256 over arrays, dims and mask."""
        digest = hashlib.sha256()
        for name, array in self.arrays.items():
            digest.update(f"{name}{self.dims[name]}{array.shape}{array.dtype}".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
        if self.mask is not None:
            digest.update(np.packbits(self.mask).tobytes())
        return digest.hexdigest()
