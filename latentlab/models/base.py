"""Base class of the models: the attributes and methods that fits, checks, comparisons and reports use."""

import copy
import hashlib
import inspect
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from pyro import poutine

from latentlab.data.dataset import Dataset
from latentlab.data.memory import by_draw
from latentlab.data.notes import on_outliers
from latentlab.errors import DataError
from latentlab.models.fixed import Fixed
from latentlab.models.networks import check_declared, with_parameters
from latentlab.notebook import Displayed
from latentlab.symmetry.group import Group
from latentlab.symmetry.groups import Identity
from latentlab.symmetry.labels import renamed

Arrays = Mapping[str, Any]
"""Keyword arguments of `model`: the dataset's arrays by name as float64 tensors, and `mask` (bool, or None).

A model with an argument `labels` also receives the units' labels, one-hot encoded `(unit, label)`. A model with an argument `row`
receives the number of each unit in the fit, `(unit,)`, also in a minibatch; it is None for units that were not in the fit.
"""
NOTHING: Mapping[str, Any] = MappingProxyType({})
OPTIONAL = ("guide", "latents", "imputation", "replicated", "bound", "exact_elbo", "leave_one_out", "roots")
"""Optional methods of a model; `LatentModel.offers` lists those that it defines.

`guide` is a variational guide. `latents` is the distribution of positions that are marginalised or amortised. `imputation` is the
distribution of missing entries, and `replicated` draws whole data sets, both given the positions. `bound` is a lower bound on the
log likelihood for amortised positions. `exact_elbo` is the evidence lower bound of the guide in closed form.
`leave_one_out` is for series, whose units are dependent given the sites. `roots` are coordinates for maximisation.
"""


@dataclass(frozen=True)
class Position:
    """A site of latent positions and the type of its values; the first dim of the site is the kind of units."""

    site: str
    kind: Literal["real", "discrete", "simplex"] = "real"


@dataclass(frozen=True)
class MaximumLikelihood:
    """A maximum of the likelihood: `values` by site, the algorithm `how`, and measures of convergence.

    `gradient` is the largest absolute derivative of the mean log likelihood per unit at the end. `trace` holds the log likelihood
    after each step (one value for a closed form). `unique` is True if restarts are unnecessary: for a closed form, or for the
    best of several starts.
    """

    values: dict[str, np.ndarray]
    how: str
    gradient: float
    trace: np.ndarray
    notes: tuple[str, ...] = ()
    unique: bool = False


class Caution(NamedTuple):
    """A warning in the table of diagnostics: check, quantity, value and threshold of its row."""

    check: str
    quantity: str
    value: float
    threshold: str


class LatentModel(Displayed, ABC):
    """A latent-variable model as a Pyro program; subclasses are final and state the generative process in their docstring.

    `positions` holds one `Position` for each kind of units that the model embeds; a model with only one may declare it as
    `position`. The plate of the likelihood is named after the points of the data: `unit` in a table, `cell` or `pair` elsewhere.

    A subclass's constructor arguments are its hyper-parameters; each is kept as an attribute of the same name. With the decorator
    `latentlab.settings.settings` they are annotated fields, whose types and ranges are checked.

    Parameters are arrays with point estimates and no posterior, such as the weights of a network. The program and the guide
    declare them by `pyro.param`, and the attribute `parameters` gives their dims. `latents`, `imputation` and `bound` take them
    in addition to the sites.

    A torch module is an attribute that the program or the guide registers by `pyro.module`. Its parameters are called by
    attribute and layer, such as `encoder.0.weight`, and need no dims. Every method of the model is called with the fit's values
    in its modules (`with_parameters`).
    """

    name: ClassVar[str]
    dims: Mapping[str, tuple[str, ...]]
    positions: tuple[Position, ...]
    symmetry: Group
    methods: tuple[str, ...]
    parameters: Mapping[str, tuple[str, ...]] = NOTHING
    kl_weight: float = 1.0
    """Weight of the positions' Kullback-Leibler term in a variational objective; it does not affect the log joint density."""
    joint_is_bound: ClassVar[bool] = False
    """Whether the program's log density is a lower bound on log p(sites, data), with terms by `pyro.factor`."""
    start_names: tuple[str, ...] = ()
    """Names of the starts that restarts use in turn; `initialize` then takes one as its argument `name`."""
    classes: np.ndarray | None = None
    """Label of each column of `labels`; those of the dataset if None."""
    jitter: float = 2.0
    """Half width of the noise added to `initialize` for the starts of MCMC chains, in each unconstrained coordinate."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        position = cls.__dict__.get("position")
        if position is not None and not isinstance(position, property):
            cls.positions = (position,)
            del cls.position

    @property
    def position(self) -> Position:
        """The first of `positions`."""
        return self.positions[0]

    @position.setter
    def position(self, position: Position) -> None:
        self.positions = (position,)

    @property
    def is_discrete(self) -> bool:
        """Whether the positions are labels."""
        return self.position.kind == "discrete"

    @property
    def kinds(self) -> dict[str, Position]:
        """Position of each kind of units, by kind; the only kind of a table is `unit`."""
        return {next(iter(self.dims[position.site]), ""): position for position in self.positions}

    @property
    def exchanges(self) -> Group:
        """Group modulo which draws are aligned and chains compared.

        It is the symmetry, unless chains exchange components that differ only in their prior (a stick-breaking mixture).
        """
        return self.symmetry

    @abstractmethod
    def model(self, *args: Any, **arrays: Any) -> None:
        """Pyro program of the model.

        Its arguments are the dataset's arrays and indices by name, and `mask` if it allows missing entries. An argument `n_KIND`,
        such as `n_user`, is the number of units of a kind.
        """

    def latents(self, arrays: Arrays, **values: torch.Tensor) -> torch.distributions.Distribution:
        """Distribution of the positions given one draw of the other sites, batch shape `(unit,)`.

        It is exact, or that of the encoder if the model has a `bound`.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define `latents`; its positions are a site of the program.")

    def imputation(self, arrays: Arrays, **values: torch.Tensor) -> torch.distributions.Distribution:
        """Distribution of the missing entries given one draw of all sites, in the shape of the observed array.

        Its values at observed entries are not used.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define `imputation`; missing entries cannot be imputed.")

    def replicated(self, arrays: Arrays, **values: torch.Tensor) -> torch.Tensor:
        """Draw a new observed array of the same units given one draw of all sites, including the positions.

        These draws form the posterior predictive. It is the same whether the program samples the positions or marginalises them.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define `replicated`, draws of data given the positions.")

    def bound(self, arrays: Arrays, n_samples: int, **values: torch.Tensor) -> torch.Tensor:
        """Lower bound in expectation on log p(unit | values), `(unit,)`, for positions that cannot be marginalised exactly."""
        raise NotImplementedError(f"{type(self).__name__} does not define `bound`, a lower bound on its log likelihood.")

    def exact_elbo(self, arrays: Arrays, **values: torch.Tensor) -> torch.Tensor:
        """Evidence lower bound of the guide at values of all parameters, without random numbers; SVI maximises it by L-BFGS."""
        raise NotImplementedError(f"{type(self).__name__} does not define `exact_elbo`, its bound in closed form.")

    def divergences(self, arrays: Arrays, **values: torch.Tensor) -> torch.Tensor:
        """Kullback-Leibler divergence of `latents` from the prior, here N(0, 1), in each dimension, `(unit, latent)`, in nats."""
        q = self.latents(arrays, **values)
        mean, variance = q.mean, q.variance
        return (mean**2 + variance - 1.0 - torch.log(variance)) / 2

    def leave_one_out(self, arrays: Arrays, **values: torch.Tensor) -> torch.Tensor:
        """log p(x_n | all other data, values) for units that are dependent given the sites, `(unit,)`.

        With several sequences, whole sequences are left out: `(sequence,)`.
        """
        raise NotImplementedError(
            f"{type(self).__name__} does not define `leave_one_out`; its units are conditionally independent."
        )

    def roots(self, arrays: Arrays, **values: torch.Tensor) -> tuple[str, torch.Tensor, str]:
        """Coordinates for maximisation by MAP, which do not change the maximum (`latentlab.inference.roots`).

        Returns:
            A site without constraint; a square root `(n, n)` of its approximate posterior covariance along its first dim at these
            values; and a site of positive scales that it follows, or an empty name.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define `roots`.")

    def initialize(self, arrays: Arrays, rng: np.random.Generator) -> dict[str, Any]:
        """Starting values by site, on the constrained scale; other sites start at a draw from the prior."""
        return {}

    def simulate(self, rng: np.random.Generator, n_units: int) -> Dataset:
        """Draw a dataset from the model; its `truth` holds the values of the sites."""
        raise NotImplementedError(f"{type(self).__name__} does not define `simulate`; data cannot be simulated.")

    def maximum_likelihood(self, arrays: Arrays, rng: np.random.Generator) -> MaximumLikelihood:
        """Maximise the likelihood over all sites except the positions, for the method `exact`."""
        raise NotImplementedError(f"{type(self).__name__} does not define `maximum_likelihood`.")

    def marginal(self) -> "LatentModel":
        """Return the model with its positions marginalised, or the model itself if that is not possible."""
        return self

    def inactive(self, arrays: Arrays) -> Collection[str]:
        """Names of the parameters that have no effect on the density of these arrays, such as weights of missing entries."""
        return ()

    def with_parameters(self, parameters: Mapping[str, torch.Tensor]) -> "LatentModel":
        """Return a copy whose torch modules have these values of their parameters; the model itself if it has no module."""
        return with_parameters(self, parameters)

    def completed(self, arrays: Arrays, values: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return the parameters at the end of a fit, with those that the objective replaces by functions of the others."""
        return dict(values)

    def frozen(self, parameters: Mapping[str, Any], classes: np.ndarray | None = None) -> "LatentModel":
        """Return the program with its parameters fixed at these values; only sites remain, which any sampler can draw.

        Args:
            parameters: Name -> value, as in `Fit.parameters`.
            classes: Labels of the training data, for a model that takes labels.
        """
        return Frozen(self, parameters, classes)

    def check(self, dataset: Dataset) -> None:
        """Reject data that the model cannot be fitted to; the message names both numbers (such as `n_latent` and features)."""

    def check_maximum(self, dataset: Dataset) -> None:
        """Reject data whose likelihood has no maximum from any start, for the method `exact`."""

    def remarks(self, arrays: Arrays, values: Mapping[str, np.ndarray]) -> list[str]:
        """Notes for the diagnostics on arbitrary values or an unbounded likelihood at a point estimate of the sites."""
        return []

    def check_new(self, dataset: Dataset) -> None:
        """Reject new units whose values are outside the support of the density.

        The default is `check`; a model overrides it if new units have weaker requirements than a fit, such as one unit only.
        """
        self.check(dataset)

    def cautions(self, dataset: Dataset) -> list[Caution]:
        """Warnings for the diagnostics of every fit to these data, such as an unidentified model."""
        return []

    def n_labels(self) -> int:
        """Number of values of a discrete position."""
        raise NotImplementedError(f"{type(self).__name__} does not define `n_labels`, the number of values of its positions.")

    def act(self, elements: np.ndarray, values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Apply elements `(..., k, k)` of `exchanges` to the sites `(..., *site)`; labels are renamed with their components."""
        site, group = self.position.site, self.exchanges
        dims = {**self.dims, **self.parameters}
        transformed = group.act(elements, {n: v for n, v in values.items()}, {n: tuple(dims[n]) for n in values})
        if self.is_discrete and site in values and not group.is_trivial():
            transformed[site] = by_draw(renamed, np.asarray(elements), np.asarray(values[site]))
        return {name: transformed[name] for name in values}

    def position_columns(self) -> int | None:
        """Number of columns of the positions as an embedding; None if it depends on the data.

        It is the number of values of a discrete position, 1 for scalar positions, and `n_latent` otherwise.
        """
        if self.is_discrete:
            return self.n_labels()
        if len(self.dims[self.position.site]) == 1:
            return 1
        n_latent = getattr(self, "n_latent", None)
        return int(n_latent) if n_latent is not None else None

    def hyperparameters(self) -> dict[str, Any]:
        """The constructor's arguments and their values."""
        return {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}

    def __repr__(self) -> str:
        arguments = ", ".join(f"{name}={value!r}" for name, value in self.hyperparameters().items())
        return f"{type(self).__name__}({arguments})"

    def takes(self, argument: str) -> bool:
        """Whether the program has an argument of this name."""
        return argument in inspect.signature(self.model).parameters

    @property
    def offers(self) -> frozenset[str]:
        """Names in `OPTIONAL` of the methods that the model defines."""
        base = LatentModel
        return frozenset(name for name in OPTIONAL if getattr(type(self), name, None) is not getattr(base, name, None))


def outliers(dataset: Dataset) -> list[Caution]:
    """Cautions about outliers, for models with Gaussian noise: a value far from others of its column affects all estimates."""
    units, columns = dataset.units.tolist(), dataset.features.tolist()
    if not on_outliers(dataset.x, units, columns):  # distances in standard deviations are the same for raw values
        return []
    return [Caution("data", note, 1.0, "no note") for note in on_outliers(dataset.raw().x, units, columns)]


def require_table(what: str, dataset: Dataset, hint: str = "") -> None:
    """Reject data without an array `x` of dims (unit, feature).

    Raises:
        DataError: Names the first array and its dims.
    """
    if dataset.observed != "x" or dataset.dims["x"] != ("unit", "feature"):
        raise DataError(
            f"{what} must have an array 'x' with dims (unit, feature){hint}; got the array {dataset.observed!r} with dims "
            f"{tuple(dataset.dims[dataset.observed])} and shape {dataset.x.shape}; rename or transpose its dims."
        )


class Frozen(LatentModel):
    """Model with fixed parameters (`LatentModel.frozen`): its positions are sites, without symmetry."""

    symmetry = Identity()
    methods = ("nuts", "chees", "svi", "map")

    def __init__(self, base: LatentModel, parameters: Mapping[str, Any], classes: np.ndarray | None = None) -> None:
        self.name, self.dims, self.positions = base.name, base.dims, base.positions  # type: ignore[misc]
        self.values = {name: torch.tensor(np.asarray(value), dtype=torch.float64) for name, value in parameters.items()}
        check_declared(base, self.values)
        self.base = copy.copy(base.with_parameters(self.values))
        self.base.classes = self.classes = classes

    def model(self, *args: Any, **arrays: Any) -> None:
        with poutine.block(hide_types=["param"]), Fixed(self.values):
            self.base.model(*args, **arrays)

    def imputation(self, arrays: Arrays, **values: torch.Tensor) -> torch.distributions.Distribution:
        return self.base.imputation(arrays, **self.values, **values)

    def initialize(self, arrays: Arrays, rng: np.random.Generator) -> dict[str, Any]:
        """Start the positions at the encoder's means, or at the start of the base model if it has no encoder."""
        if "latents" not in self.base.offers:
            return self.base.initialize(arrays, rng)
        with torch.no_grad():
            return {self.position.site: self.base.latents(arrays, **self.values).mean}

    def check(self, dataset: Dataset) -> None:
        """Reject data that the base model rejects, or whose size does not match the parameters.

        Raises:
            DataError: Names both sizes.
        """
        self.base.check(dataset)
        for name, dims in self.base.parameters.items():
            for dim, size in zip(dims, self.values[name].shape if name in self.values else (), strict=False):
                if (n := dataset.sizes.get(dim, size)) != size:
                    raise DataError(f"{dataset.name}: dim {dim!r} must have size {size}, as in the parameter {name!r}; got {n}.")

    def check_new(self, dataset: Dataset) -> None:
        """Reject the new units that the base model rejects."""
        self.base.check_new(dataset)

    def position_columns(self) -> int | None:
        """Number of columns of the base model's positions."""
        return self.base.position_columns()

    def takes(self, argument: str) -> bool:
        """Whether the base model's program has an argument of this name."""
        return self.base.takes(argument)

    @property
    def offers(self) -> frozenset[str]:
        """Only `imputation`, if the base model offers it: the positions are sites of the frozen program."""
        return self.base.offers & {"imputation"}

    def hyperparameters(self) -> dict[str, Any]:
        """The base model's constructor arguments and their values."""
        return self.base.hyperparameters()

    def __repr__(self) -> str:
        digest = hashlib.sha256()
        for name, value in sorted(self.values.items()):
            digest.update(name.encode() + value.numpy().tobytes())
        return f"{self.base!r}.frozen({digest.hexdigest()[:12]})"
