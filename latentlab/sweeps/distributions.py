"""Distributions of swept values, in the blocks `random` and `search` of a sweep."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from latentlab.errors import ConfigError

KINDS = ("uniform", "log_uniform", "integer", "choice")


@dataclass(frozen=True)
class Distribution:
    """Distribution of the values of one key.

    Args:
        kind: `uniform`, `log_uniform`, `integer` (both ends included) or `choice`.
        given: The two ends; of `choice`, the values.
    """

    kind: str
    given: tuple[Any, ...]

    @property
    def size(self) -> int | None:
        """Number of different values; None if it is not finite."""
        if self.kind == "integer":
            return int(self.given[1] - self.given[0] + 1)
        return len(self.given) if self.kind == "choice" else None

    def drawn(self, n: int, rng: np.random.Generator) -> list[Any]:
        """Draw n values; the first k of n and of k draws are equal."""
        u = rng.random(n)
        if self.kind == "choice":
            return [self.given[int(i)] for i in (u * len(self.given)).astype(int)]
        low, high = self.given
        if self.kind == "integer":
            return [int(low + math.floor(x * (high - low + 1))) for x in u]
        if self.kind == "log_uniform":
            return [float(math.exp(math.log(low) + x * (math.log(high) - math.log(low)))) for x in u]
        return [float(low + x * (high - low)) for x in u]


def distribution_of(found: Any, where: str) -> Distribution:
    """Read a distribution, such as `{uniform: [0, 1]}`.

    Raises:
        ConfigError: It is invalid; the message begins with `where`.
    """
    kind = next(iter(found), None) if isinstance(found, Mapping) and len(found) == 1 else None
    if kind not in KINDS or not isinstance(found[kind], list) or not found[kind]:
        raise ConfigError(f"{where}: must be one of {{uniform: [a, b]}}, {{log_uniform: [a, b]}}, {{integer: [a, b]}}, "
                          f"{{choice: [...]}}; got {found!r}.")  # fmt: skip
    given = found[kind]
    if kind != "choice":
        whole = kind == "integer"
        numbers = all(isinstance(end, int if whole else int | float) and not isinstance(end, bool) for end in given)
        if len(given) != 2 or not numbers or not given[0] < given[1] or (kind == "log_uniform" and given[0] <= 0):
            what = "two whole numbers" if whole else "two positive numbers" if kind == "log_uniform" else "two numbers"
            raise ConfigError(f"{where}.{kind}: must be {what}, the smaller first; got {given!r}.")
    if kind in ("uniform", "log_uniform"):
        given = [float(end) for end in given]
    return Distribution(kind, tuple(given))
