"""The contract of a model: what a class declares and defines to be fitted, checked, compared and reported."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch

from latentlab.data.dataset import Dataset
from latentlab.symmetry.group import Group

Arrays = Mapping[str, Any]
"""The dataset's arrays by name as float64 tensors, and `mask` (bool, or None): what `model` takes as keywords."""


@dataclass(frozen=True)
class Position:
    """The site that is the latent position of a unit, and what kind of thing it is."""

    site: str
    kind: Literal["real", "discrete", "simplex"] = "real"


@dataclass(frozen=True)
class MaximumLikelihood:
    """A maximum of the likelihood: `values` by site, `how` it was found, and how well.

    `gradient` is the largest absolute derivative of the mean log likelihood per unit at the end; `trace` holds the log
    likelihood after each step (one value for a closed form).
    """

    values: dict[str, np.ndarray]
    how: str
    gradient: float
    trace: np.ndarray
    notes: tuple[str, ...] = ()


class LatentModel(ABC):
    """A latent-variable model as a Pyro program; subclasses are final and say the generative process in their docstring.

    A subclass's constructor arguments are its hyper-parameters; each is kept as an attribute of the same name.
    """

    name: ClassVar[str]
    dims: Mapping[str, tuple[str, ...]]
    position: Position
    symmetry: Group
    methods: tuple[str, ...]

    @abstractmethod
    def model(self, *args: Any, **arrays: Any) -> None:
        """The Pyro program: takes the dataset's arrays by name, and `mask` if it can do with missing entries."""

    def latents(self, arrays: Arrays, **values: torch.Tensor) -> torch.distributions.Distribution:
        """Distribution of the positions given one draw of the other sites, batch shape `(unit,)`."""
        raise NotImplementedError(f"{type(self).__name__} has no `latents`: its positions are the site itself.")

    def imputation(self, arrays: Arrays, **values: torch.Tensor) -> torch.distributions.Distribution:
        """Distribution of the observed array's missing entries given one draw of all sites, of the array's shape.

        Where entries were observed it may be anything.
        """
        raise NotImplementedError(f"{type(self).__name__} does not say what missing entries were.")

    def initialize(self, arrays: Arrays, rng: np.random.Generator) -> dict[str, Any]:
        """Starting values by site, on the constrained scale; sites left out start at a draw from the prior."""
        return {}

    def simulate(self, rng: np.random.Generator, n_units: int) -> Dataset:
        """A dataset drawn from the model, with the values it was drawn from as `truth`."""
        raise NotImplementedError(f"{type(self).__name__} cannot simulate.")

    def maximum_likelihood(self, arrays: Arrays, rng: np.random.Generator) -> MaximumLikelihood:
        """The maximum of the likelihood over all sites but the positions, for the method `exact`."""
        raise NotImplementedError(f"{type(self).__name__} has no exact maximum likelihood.")

    def marginal(self) -> "LatentModel":
        """The same model with its positions integrated out, where it can be written so; itself otherwise."""
        return self

    def check(self, dataset: Dataset) -> None:  # noqa: B027
        """Refuses data that the model has no sensible answer for, naming both numbers (`n_latent` and features, say)."""

    def position_columns(self) -> int | None:
        """Columns of the positions, where they are known before there are data: `n_latent`, or 1 where each is one number."""
        if tuple(self.dims[self.position.site]) == ("unit",):
            return 1
        n_latent = getattr(self, "n_latent", None)
        return int(n_latent) if n_latent is not None else None

    def hyperparameters(self) -> dict[str, Any]:
        """The constructor's arguments and their values."""
        return {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}

    def __repr__(self) -> str:
        arguments = ", ".join(f"{name}={value!r}" for name, value in self.hyperparameters().items())
        return f"{type(self).__name__}({arguments})"

    def takes_missing(self) -> bool:
        """Whether `model` has a `mask` argument."""
        return "mask" in inspect.signature(self.model).parameters

    def has_guide(self) -> bool:
        """Whether the model brings its own guide."""
        return callable(getattr(self, "guide", None))

    def integrates_positions(self) -> bool:
        """Whether the positions are given back by `latents` rather than read from a site of the program."""
        return type(self).latents is not LatentModel.latents

    def imputes(self) -> bool:
        """Whether the model says what missing entries were."""
        return type(self).imputation is not LatentModel.imputation
