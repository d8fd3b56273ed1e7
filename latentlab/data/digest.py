"""Byte content of a dataset for hashing; equal data give equal bytes in every process and on every machine."""

from collections.abc import Iterator
from typing import Any

import numpy as np


def content(dataset: Any) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the parts of a `Dataset` that define its data, each with a key; its name and notes are left out."""
    for name, array in dataset.arrays.items():
        yield f"array {name} {dataset.dims[name]}", array
    for name, (dim, values, kind) in sorted(dataset.index.items()):
        yield f"index {name} {dim} {kind}", values
    if dataset.index:
        yield from ((f"units {kind}", dataset.units[kind]) for kind in sorted(dataset.units))
        yield f"absent {dataset.absent} directed {dataset.directed}", np.zeros(0)
    for kind, values in (("coord", dataset.coords), ("truth", dataset.truth)):
        yield from ((f"{kind} {name}", values[name]) for name in sorted(values))
    if isinstance(dataset.labels, dict):
        yield from ((f"labels {kind}", dataset.labels[kind]) for kind in sorted(dataset.labels))
    elif dataset.labels is not None:
        yield "labels", dataset.labels
    if dataset.transform is not None:
        yield f"loc {dataset.transform.ddof}", dataset.transform.loc
        yield "scale", dataset.transform.scale


def headed(key: str, shape: tuple[int, ...], dtype: np.dtype, n_bytes: int) -> bytes:
    """Header that precedes an array's bytes in a digest."""
    return f"{key}{shape}{dtype.kind}{n_bytes}:".encode()


def plain_bytes(array: np.ndarray) -> bytes:
    """Bytes of an array; equal values give equal bytes."""
    if array.dtype.kind not in "biuf":
        return repr(array.astype(str).tolist()).encode()
    # NaN and zero have several bit patterns; each is mapped to one.
    plain = np.where(np.isnan(array), np.nan, array + 0.0) if array.dtype.kind == "f" else array
    return np.ascontiguousarray(plain, dtype=plain.dtype.newbyteorder("<")).tobytes()
