r"""What a component of a mixture, or a state of a hidden Markov model, emits: sites with priors, starts, weighted maxima.

An emission is a part of a model: it adds its sites to the model's program, and knows their maximum likelihood estimate when each
unit counts for each component by a given weight (the M step of EM). Sites have the dim of the components, `component` or `state`.
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
"""A number for all components, or a list of one for each."""
PositivePerComponent = Positive | PositiveNumbers
"""The same, above 0."""
FLOOR = 1e-10
"""Least variance, in any direction, of a maximum likelihood estimate, relative to the variances of the columns."""
LEAST = 1e-6
"""Least probability, or rate, of a maximum likelihood estimate."""
SHRINK = 5.0
"""Units' worth of the pooled covariance that a component's starting covariance is given."""
FEW = 1e-8
"""Units' worth of weight below which a component keeps its values in an M step."""
NEAR = 1.01
"""Standard deviations below this multiple of their floor count as at the floor."""
FEW_VALUES, MANY = 5, 5
"""A column has few different values if there are so many at most, each so many times on average."""
MOST_PAIRED, MOST_NOTES = 200, 4
"""Columns that are compared in pairs, and notes on the data, at most."""
N_HEAD = 500
"""First units, in which a property of all units is looked for first."""


class Emission(ABC):
    """Densities and estimates of K components over D features; the priors of its sites stand in the models' programs."""

    n_components: int
    exchangeable: bool
    """Whether the priors of all components are alike."""

    @abstractmethod
    def dims(self, dim: str) -> dict[str, tuple[str, ...]]:
        """The dims of its sites, the components being along `dim`."""

    @abstractmethod
    def components(self, values: Mapping[str, torch.Tensor]) -> Components:
        """The components with these values of the sites."""

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
        """The sites' values of greatest likelihood where unit n counts for component k by `weights` `(unit, component)`.

        Args:
            x: Data `(unit, feature)`, anything where missing.
            observed: True where an entry was observed; None where all were.
            weights: How much each unit counts for each component.
            current: The values before, for what is missing and for components without weight; None at the start.
            shrink: Units' worth of what all components have in common that each is given, for a start inside the support.
        """

    @abstractmethod
    def draw(self, rng: np.random.Generator, n_features: int) -> dict[str, np.ndarray]:
        """Values of the sites from their priors."""

    def given(self) -> tuple[str, ...]:
        """Sites whose values are settings, not estimates."""
        return ()

    def units(self, x: torch.Tensor, observed: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Location and scale of each column, in which the maximum of the likelihood is sought; None: the data as they are."""
        return None

    def in_units(self, scale: torch.Tensor) -> "Emission":
        """The emission of data divided by `scale` `(feature,)`."""
        return self

    def at_floor(self, values: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Which entries of sites are held at the floor of the variances, of data in `units`."""
        return {}

    def unbounded(self, x: torch.Tensor, observed: torch.Tensor | None) -> bool:
        """Whether a component that holds just these units has a likelihood without bound."""
        return False

    def entries(self, components: Any, labels: torch.Tensor) -> torch.distributions.Distribution:
        """The distribution of single entries `(unit, feature)` given the labels, where features are independent."""
        raise NotImplementedError

    def check(self, what: str, dataset: Dataset) -> None:  # noqa: B027
        """Refuses data that components of this kind cannot emit; `what` names model and data."""

    def check_bound(self, what: str, dataset: Dataset) -> None:  # noqa: B027
        """Refuses data whose likelihood has no bound, whatever the values of the sites."""

    def cautions(self, dataset: Dataset) -> list[str]:
        """Properties of the data that such components describe badly."""
        return []

    def log_prior(self, values: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """log prior density of each component's values had each of the priors, `(component, prior)`; 0 where they are alike."""
        return torch.zeros(self.n_components, self.n_components, dtype=torch.float64)


def column_means(x: torch.Tensor, observed: torch.Tensor | None) -> torch.Tensor:
    """Of each feature over its observed entries."""
    if observed is None:
        return x.mean(0)
    seen = observed.to(x.dtype)
    return (x * seen).sum(0) / seen.sum(0).clamp(min=1)


def column_variance(x: torch.Tensor, observed: torch.Tensor | None) -> torch.Tensor:
    """Variance of each feature over its observed entries; of a constant one its square, or 1, so that it is positive."""
    mean = column_means(x, observed)
    found = column_means((x - mean) ** 2, observed)
    return torch.where(found > (NOISE * mean) ** 2, found, torch.where(mean == 0, torch.ones_like(mean), mean**2))


def n_distinct(column: np.ndarray) -> tuple[int, int]:
    """How many different values were observed, and how many in all."""
    seen = column[~np.isnan(column)]
    return len(np.unique(seen)), len(seen)


def dependent(x: np.ndarray) -> int | None:
    """The column of `(unit, feature)` that is most nearly a linear combination of the others, if it is one up to `FLOOR`."""
    centred = x - x.mean(0)
    centred = centred / np.sqrt((centred**2).mean(0)).clip(min=1e-300)
    values, vectors = np.linalg.eigh(centred.T @ centred / len(x))
    if values[0] > FLOOR:
        return None
    return int(np.flatnonzero(np.abs(vectors[:, 0]) > 0.1 * np.abs(vectors[:, 0]).max())[-1])


def weighted_means(
    x: torch.Tensor, observed: torch.Tensor | None, weights: torch.Tensor, current: torch.Tensor | None, shrink: float
) -> torch.Tensor:
    seen = torch.ones_like(x) if observed is None else observed.to(x.dtype)
    pooled = column_means(x, observed)
    total = weights.mT @ seen
    found = (weights.mT @ (x * seen) + shrink * pooled) / (total + shrink).clamp(min=FEW)
    return torch.where(total + shrink > FEW, found, pooled if current is None else current)


def refuse(what: str, dataset: Dataset, bad: np.ndarray, must: str) -> None:
    bad = bad & ~np.isnan(dataset.x)
    if bad.any():
        row, column = np.argwhere(bad)[0]
        hint = "; the data are standardised: load them with `standardize: false`" if dataset.transform is not None else ""
        raise DataError(
            f"{what}, column {str(dataset.features[column])!r}, unit {str(dataset.units[row])!r}: {must}; "
            f"got {dataset.x[row, column]:g} ({int(bad.sum())} such entries){hint}."
        )


def per_component(owner: str, name: str, value: PerComponent, n: int) -> torch.Tensor:
    """A number for each of n components `(component,)`, from one for all or a list.

    Raises:
        ConfigError: The list has another length.
    """
    if not isinstance(value, Sequence):
        return torch.full((n,), value, dtype=torch.float64)
    if len(value) != n:
        raise ConfigError(f"{owner}: `{name}` must be one number or a list of {n}, one for each; got {len(value)}.")
    return torch.tensor(value, dtype=torch.float64)
