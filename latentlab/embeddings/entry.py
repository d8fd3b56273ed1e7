"""What an entry of the table of embeddings is, and what it checks of the data."""

from typing import Any, TypeVar

from latentlab.data.memory import Budget, size
from latentlab.errors import ConfigError, DataError
from latentlab.registry import EMBEDDINGS

T = TypeVar("T")
RANGE = 400
"""Powers of two, either way, that the spread of the data may have: squares of distances are then inside the range of float64."""
COPIES = 5
"""A table of all pairs of units is in memory so many times while its eigenvectors are found."""


def clustering(entry: T) -> T:
    """Marks an entry of the table that makes a clustering: its `n_latent` is the number of clusters."""
    entry.clustering = True  # type: ignore[attr-defined]
    return entry


def makes_clusters(name: str) -> bool:
    """Whether the entry is marked so.

    Example:
        >>> makes_clusters("kmeans"), makes_clusters("pca")
        (True, False)
    """
    return bool(getattr(EMBEDDINGS.load(name), "clustering", False))


def at_most(name: str, option: str, value: float, most: float, because: str) -> None:
    """Refuses an option that is too large for the data; the least that it may be is in the entry's signature.

    Raises:
        ConfigError: Names the embedding, the option, the most that it may be with its reason, and the value.
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
    """An option whose usual value is lowered, with a note, where the data are too few for it; a value asked for is refused.

    Raises:
        ConfigError: The value asked for is too large.
    """
    if given is not None:
        at_most(name, option, given, most, because)
        return given
    if most < usual:
        notes.append(f"{option} {usual:g} was lowered to {most:g}, {because}")
    return min(usual, most)


def all_pairs(name: str, n_units: int) -> None:
    """Refuses more units than memory holds a table of all pairs of.

    Raises:
        DataError: Names the units, the memory needed and the memory there is.
    """
    needed, free = 8 * COPIES * n_units**2, Budget.of(None).n_bytes
    if needed > free:
        raise DataError(
            f"embedding {name!r} works on all pairs of {n_units} units, which needs about {size(needed)} of memory; "
            f"half of the free memory is {size(free)}. Take fewer units, or pca, tsne or umap."
        )
