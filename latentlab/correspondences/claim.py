r"""Claims that an embedding estimates a model's latent positions, each with a numerical check that can fail.

To add a claim, write its check, which returns `Evidence`, and add an entry to `registry.CORRESPONDENCES`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from latentlab.data.dataset import Dataset

Map = Callable[[np.ndarray, Dataset], np.ndarray]
"""Maps embedding coordinates `(unit, p)` of a dataset to the model's latent coordinates: one column per label if discrete."""


@dataclass(frozen=True)
class Evidence:
    """Result of a check: its verdict, its main statistic with threshold, and a text with all statistics and thresholds."""

    passed: bool
    value: float
    threshold: float
    text: str


@dataclass(frozen=True)
class Correspondence:
    """A claim about an embedding and a model.

    Args:
        embedding: Name of the embedding.
        model: Name of the model.
        grade: Strength of the claim: `exact`, `limit`, `asymptotic`, `approximate`, or `none` (a common reading that fails).
        claim: The statement itself.
        conditions: Conditions under which the claim holds.
        breaks: Conditions under which the claim fails.
        symmetry: Transformations up to which the embedding determines the positions.
        citation: Source.
        check: Tests the claim numerically.
        map: Maps embedding coordinates to latent coordinates, if the claim has such a map.
        options: Names and values of the embedding's options that the claim requires.
        unless: Names and values of the embedding's options under which the claim does not hold.
        settings: Names and values of the model's settings that the claim requires.
    """

    embedding: str
    model: str
    grade: Literal["exact", "limit", "asymptotic", "approximate", "none"]
    claim: str
    conditions: str
    breaks: str
    symmetry: str
    citation: str
    check: Callable[[], Evidence]
    map: Map | None = None
    options: tuple[tuple[str, Any], ...] = ()
    unless: tuple[tuple[str, Any], ...] = ()
    settings: tuple[tuple[str, Any], ...] = ()


def below_limit(value: float, threshold: float, what: str) -> Evidence:
    return Evidence(value < threshold, value, threshold, f"{what}: {value:.3g} (required: below {threshold:g})")


def above_limit(value: float, threshold: float, what: str) -> Evidence:
    return Evidence(value > threshold, value, threshold, f"{what}: {value:.3g} (required: above {threshold:g})")
