"""Markers and data checks shared by the entries of the registry of embeddings."""

from typing import Any, TypeVar

from latentlab.data.memory import Budget, size
from latentlab.errors import ConfigError, DataError
from latentlab.registry import EMBEDDINGS

T = TypeVar("T")
RANGE = 400
"""Largest magnitude of the spread's binary exponent for which squared distances stay within the range of float64."""
COPIES = 5
"""Copies of the matrix of all pairs of units that an eigendecomposition holds in memory."""


def clustering(entry: T) -> T:
    """Mark an entry as a clustering, whose `n_latent` is the number of clusters."""
    entry.clustering = True  # type: ignore[attr-defined]
    return entry


def makes_clusters(name: str) -> bool:
    """Check whether the entry is marked as a clustering.

    Example:
        >>> makes_clusters("kmeans"), makes_clusters("pca")
        (True, False)
    """
    return bool(getattr(EMBEDDINGS.load(name), "clustering", False))


def at_most(name: str, option: str, value: float, most: float, reason: str) -> None:
    """Raise an error if an option is too large for the data; the entry's signature declares the lower bound.

    Raises:
        ConfigError: The value is too large; the message names embedding, option, upper bound with its reason, and value.
    """
    if most < 1 and option == "n_latent":
        raise ConfigError(
            f"embedding {name!r} cannot have even one column for these data ({reason}). "
            "Leave it out, or use more units or features."
        )
    if value > most:
        raise ConfigError(f"embedding {name!r}: `{option}` must be at most {round(most, 4)} ({reason}); got {value}.")


def at_most_by_data(
    name: str, option: str, value: float | None, default: float, most: float, reason: str, notes: list[str]
) -> Any:
    """Lower the default of an option, with a note, if it is too large for the data.

    Raises:
        ConfigError: A given value is too large.
    """
    if value is not None:
        at_most(name, option, value, most, reason)
        return value
    if most < default:
        notes.append(f"{option} was lowered from {default:g} to {most:g} ({reason})")
    return min(default, most)


def all_pairs(name: str, n_units: int) -> None:
    """Check that the matrix of all pairs of units fits into memory.

    Raises:
        DataError: The memory is too small; the message names the number of units, the memory needed and the memory allowed.
    """
    needed, free = 8 * COPIES * n_units**2, Budget.of(None).n_bytes
    if needed > free:
        raise DataError(
            f"embedding {name!r} uses all pairs of {n_units} units, which needs about {size(needed)} of memory; "
            f"half of the free memory is {size(free)}. Select fewer units, or use pca, tsne or umap."
        )
