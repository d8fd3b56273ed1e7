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


def at_most(name: str, option: str, value: float, most: float, because: str) -> None:
    """Refuse an option that is too large for the data; the entry's signature declares its lower bound.

    Raises:
        ConfigError: The value is too large; the message names embedding, option, upper bound with its reason, and value.
    """
    if most < 1 and option == "n_latent":
        raise ConfigError(
            f"embedding {name!r} has no column left to give ({because}); leave it out, or take more units or features."
        )
    if value > most:
        raise ConfigError(f"embedding {name!r}: `{option}` must be at most {round(most, 4)} ({because}); got {value}.")


def at_most_by_data(
    name: str, option: str, given: float | None, usual: float, most: float, because: str, notes: list[str]
) -> Any:
    """Lower the default of an option if it is too large for the data, with a note, and refuse a given value that is.

    Raises:
        ConfigError: The given value is too large.
    """
    if given is not None:
        at_most(name, option, given, most, because)
        return given
    if most < usual:
        notes.append(f"{option} {usual:g} was lowered to {most:g}, {because}")
    return min(usual, most)


def all_pairs(name: str, n_units: int) -> None:
    """Refuse data whose matrix of all pairs of units does not fit into memory.

    Raises:
        DataError: The memory is too small; the message names the number of units, the memory needed and the memory allowed.
    """
    needed, free = 8 * COPIES * n_units**2, Budget.of(None).n_bytes
    if needed > free:
        raise DataError(
            f"embedding {name!r} works on all pairs of {n_units} units, which needs about {size(needed)} of memory; "
            f"half of the free memory is {size(free)}. Take fewer units, or pca, tsne or umap."
        )
