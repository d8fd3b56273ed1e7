"""What a dataset's hash is made of: the same for equal data in every process and on every machine."""

from collections.abc import Iterator
from typing import Any

import numpy as np


def content(dataset: Any) -> Iterator[tuple[str, np.ndarray]]:
    """All parts of a `Dataset` but its name, each with a text that says what it is."""
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
    """What a digest is given before an array's own bytes."""
    return f"{key}{shape}{dtype.kind}{n_bytes}:".encode()


def plain_bytes(array: np.ndarray) -> bytes:
    """The bytes of an array, the same for values that are equal."""
    if array.dtype.kind not in "biuf":
        return repr(array.astype(str).tolist()).encode()
    # One NaN and one zero: both have several bit patterns that compare alike.
    plain = np.where(np.isnan(array), np.nan, array + 0.0) if array.dtype.kind == "f" else array
    return np.ascontiguousarray(plain, dtype=plain.dtype.newbyteorder("<")).tobytes()
