r"""The registry of claims that an embedding estimates a model's latent positions, each with a check that can fail.

To add a claim, write its function of evidence and one entry of `CORRESPONDENCES`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from latentlab.data.dataset import Dataset

Map = Callable[[np.ndarray, Dataset], np.ndarray]
"""Embedding coordinates `(unit, p)` of a dataset to the model's latent coordinates: a column for each label, where those are."""


@dataclass(frozen=True)
class Evidence:
    """What a check measured: the claim holds where `value` is on the right side of `threshold`."""

    passed: bool
    value: float
    threshold: float
    text: str


@dataclass(frozen=True)
class Correspondence:
    """A claim about an embedding and a model.

    Args:
        embedding: Entry of the table of embeddings.
        model: Entry of the table of models.
        grade: How strong: `exact`, `limit`, `asymptotic`, `approximate`, or `none` (a common reading that fails).
        claim: What holds.
        conditions: When.
        breaks: What breaks it.
        symmetry: What of the positions the embedding leaves open.
        citation: Source.
        check: Measures the claim.
        map: Carries embedding coordinates into latent coordinates, where the claim has such a map.
        options: Options of the embedding with which alone the claim is made.
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


def below_limit(value: float, threshold: float, what: str) -> Evidence:
    return Evidence(value < threshold, value, threshold, f"{what}: {value:.3g} (holds below {threshold:g})")


def above_limit(value: float, threshold: float, what: str) -> Evidence:
    return Evidence(value > threshold, value, threshold, f"{what}: {value:.3g} (holds above {threshold:g})")
