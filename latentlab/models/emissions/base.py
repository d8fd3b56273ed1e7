r"""Emissions of mixture components and hidden Markov states: densities, draws from the priors, and the M step of EM.

The sites of an emission have the dim of the components, `component` or `state`. Their priors are written in the models' programs.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch

from latentlab.data.dataset import Dataset
from latentlab.data.transform import NOISE
from latentlab.distributions.components import Components
from latentlab.errors import ConfigError, DataError
from latentlab.settings import Numbers, Positive, PositiveNumbers

Covariance = Literal["spherical", "diagonal", "full", "tied"]
SigmaPrior = Literal["log_normal", "half_normal"]
PerComponent = float | Numbers
"""One number for all components, or a list with one for each."""
PositivePerComponent = Positive | PositiveNumbers
"""One positive number for all components, or a list with one for each."""
FLOOR = 1e-10
"""Lower bound on the variances of a maximum likelihood estimate, in any direction, relative to those of the columns."""
LEAST = 1e-6
"""Lower bound on the probabilities and rates of a maximum likelihood estimate."""
SHRINK = 5.0
"""Pseudo-count of units by which a component's starting values are shrunk towards the pooled ones."""
FEW = 1e-8
"""Total weight, in units, below which a component keeps its values in an M step."""
NEAR = 1.01
"""Standard deviations below this multiple of their floor count as at the floor."""
FEW_VALUES, MANY = 5, 5
"""A column counts as discrete with at most `FEW_VALUES` distinct values, each observed at least `MANY` times on average."""
MOST_PAIRED, MOST_NOTES = 200, 4
"""Largest number of columns compared in pairs, and of notes on the data."""
N_HEAD = 500
"""Number of leading units that are examined before all units are, as a fast screen."""


class Emission(ABC):
    """Densities and weighted maximum likelihood of K components over D features."""

    n_components: int
    exchangeable: bool
    """Whether the prior is invariant under permutations of the components."""

    @abstractmethod
    def dims(self, dim: str) -> dict[str, tuple[str, ...]]:
        """Dims of each site; `dim` is that of the components."""

    @abstractmethod
    def components(self, values: Mapping[str, torch.Tensor]) -> Components:
        """Component distributions at these values of the sites."""

    @abstractmethod
    def maximum(
        self,
        x: torch.Tensor,
        observed: torch.Tensor | None,
        weights: torch.Tensor,
        current: Mapping[str, torch.Tensor] | None = None,
        *,
        shrink: float = 0.0,
    ) -> dict[str, torch.Tensor]:
        """Weighted maximum likelihood estimate of the sites, as in the M step of EM.

        Args:
            x: Data `(unit, feature)`; missing entries may hold any value.
            observed: True for observed entries; None if all were observed.
            weights: Weight of each unit in each component, `(unit, component)`, such as responsibilities.
            current: Current values, used to impute missing entries and for components without weight; None at the start.
            shrink: Pseudo-count of units with the pooled estimate in each component, for a start inside the support.
        """

    @abstractmethod
    def draw(self, rng: np.random.Generator, n_features: int) -> dict[str, np.ndarray]:
        """Draw values of the sites from their priors."""

    def fixed_sites(self) -> tuple[str, ...]:
        """Sites that are fixed by settings, not estimated."""
        return ()

    def units(self, x: torch.Tensor, observed: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Location and scale `(feature,)` that standardise data before the likelihood is maximised; None for raw data."""
        return None

    def scaled(self, scale: torch.Tensor) -> "Emission":
        """The emission for data divided by `scale` `(feature,)`."""
        return self

    def at_floor(self, values: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Masks of the entries of sites at the floor of the variances, for data standardised by `units`."""
        return {}

    def unbounded(self, x: torch.Tensor, observed: torch.Tensor | None) -> bool:
        """Whether the likelihood of a component that holds exactly these units is unbounded."""
        return False

    def entries(self, components: Any, labels: torch.Tensor) -> torch.distributions.Distribution:
        """Marginal distribution of each entry `(unit, feature)` given the labels."""
        raise NotImplementedError

    def check(self, what: str, dataset: Dataset) -> None:  # noqa: B027
        """Reject data that the emission cannot generate; `what` names the model and the data in messages."""

    def check_bound(self, what: str, dataset: Dataset) -> None:  # noqa: B027
        """Reject data for which the likelihood is unbounded."""

    def cautions(self, dataset: Dataset) -> list[str]:
        """Notes on properties of the data for which the emission is a poor model."""
        return []

    def log_prior(self, values: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Log density of each component's values under each component's prior, `(component, prior)`; 0 for equal priors."""
        return torch.zeros(self.n_components, self.n_components, dtype=torch.float64)


def column_means(x: torch.Tensor, observed: torch.Tensor | None) -> torch.Tensor:
    """Mean of each feature over its observed entries, `(feature,)`."""
    if observed is None:
        return x.mean(0)
    weights = observed.to(x.dtype)
    return (x * weights).sum(0) / weights.sum(0).clamp(min=1)


def column_variance(x: torch.Tensor, observed: torch.Tensor | None) -> torch.Tensor:
    """Variance of each feature over its observed entries; for a constant feature its squared mean, or 1 if the mean is 0."""
    mean = column_means(x, observed)
    variance = column_means((x - mean) ** 2, observed)
    return torch.where(variance > (NOISE * mean) ** 2, variance, torch.where(mean == 0, torch.ones_like(mean), mean**2))


def n_distinct(column: np.ndarray) -> tuple[int, int]:
    """Number of distinct observed values, and number of observed values."""
    observed = column[~np.isnan(column)]
    return len(np.unique(observed)), len(observed)


def dependent_column(x: np.ndarray) -> int | None:
    """Index of a column that is a linear combination of the others up to `FLOOR`; None if there is none."""
    centred = x - x.mean(0)
    centred = centred / np.sqrt((centred**2).mean(0)).clip(min=1e-300)
    values, vectors = np.linalg.eigh(centred.T @ centred / len(x))
    if values[0] > FLOOR:
        return None
    return int(np.flatnonzero(np.abs(vectors[:, 0]) > 0.1 * np.abs(vectors[:, 0]).max())[-1])


def weighted_means(
    x: torch.Tensor, observed: torch.Tensor | None, weights: torch.Tensor, current: torch.Tensor | None, shrink: float
) -> torch.Tensor:
    indicator = torch.ones_like(x) if observed is None else observed.to(x.dtype)
    pooled = column_means(x, observed)
    total = weights.mT @ indicator
    means = (weights.mT @ (x * indicator) + shrink * pooled) / (total + shrink).clamp(min=FEW)
    return torch.where(total + shrink > FEW, means, pooled if current is None else current)


def check_entries(what: str, dataset: Dataset, invalid: np.ndarray, requirement: str) -> None:
    """Raise an error for the first observed entry that is marked as invalid; `requirement` begins with "must be".

    Raises:
        DataError: Names the column, the unit, the value and the number of invalid entries.
    """
    invalid = invalid & ~np.isnan(dataset.x)
    if invalid.any():
        row, column = np.argwhere(invalid)[0]
        hint = "; the data are standardised: load them with `standardize: false`" if dataset.transform is not None else ""
        raise DataError(
            f"{what}: column {str(dataset.features[column])!r}, unit {str(dataset.units[row])!r} {requirement}; "
            f"got {dataset.x[row, column]:g} (invalid entries: {int(invalid.sum())}){hint}."
        )


def per_component(owner: str, name: str, value: PerComponent, n: int) -> torch.Tensor:
    """Expand one number, or a list of n, to `(component,)`.

    Raises:
        ConfigError: The length of the list is not n.
    """
    if not isinstance(value, Sequence):
        return torch.full((n,), value, dtype=torch.float64)
    if len(value) != n:
        raise ConfigError(f"{owner}: `{name}` must be one number or a list of {n} numbers; got a list of {len(value)}.")
    return torch.tensor(value, dtype=torch.float64)
