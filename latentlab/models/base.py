"""The contract of a model: what a class declares and defines to be fitted, checked, compared and reported."""

import hashlib
import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro import poutine

from latentlab.data.dataset import Dataset
from latentlab.data.notes import on_outliers
from latentlab.errors import DataError
from latentlab.symmetry.group import Group
from latentlab.symmetry.groups import Identity
from latentlab.symmetry.labels import renamed

Arrays = Mapping[str, Any]
"""The dataset's arrays by name as float64 tensors, and `mask` (bool, or None): what `model` takes as keywords.

A model with an argument `labels` gets the units' labels too, as `(unit, label)` of zeros and a one.
"""
NOTHING: Mapping[str, Any] = MappingProxyType({})
OPTIONAL = ("guide", "latents", "imputation", "replicated", "bound", "leave_one_out")
"""Optional methods of a model; `LatentModel.offers` lists those that it defines.

`guide` is a variational guide. `latents` is the distribution of positions that are marginalised or amortised. `imputation` is the
distribution of missing entries, and `replicated` draws whole data sets, both given the positions. `bound` is a lower bound on the
log likelihood where positions are amortised. `leave_one_out` is for series, whose units depend on each other given the sites.
"""


@dataclass(frozen=True)
class Position:
    """A site that holds the latent positions of units, and the type of its values; its first dim is the kind of units."""

    site: str
    kind: Literal["real", "discrete", "simplex"] = "real"


@dataclass(frozen=True)
class MaximumLikelihood:
    """A maximum of the likelihood: `values` by site, `how` it was found, and how well.

    `unique` says that other starts are of no use: a closed form, or the best of several starts. `gradient` is the largest
    absolute derivative of the mean log likelihood per unit at the end; `trace` holds the log likelihood after each step (one
    value for a closed form).
    """

    values: dict[str, np.ndarray]
    how: str
    gradient: float
    trace: np.ndarray
    notes: tuple[str, ...] = ()
    unique: bool = False


class Caution(NamedTuple):
    """A warning among the diagnostics: the row's check, quantity, value and threshold."""

    check: str
    quantity: str
    value: float
    threshold: str


class LatentModel(ABC):
    """A latent-variable model as a Pyro program; subclasses are final and say the generative process in their docstring.

    `positions` holds one `Position` for each kind of units that the model embeds; a model with only one may declare it as
    `position`. The plate of the likelihood is named after the points of the data: `unit` in a table, `cell` or `pair` elsewhere.

    A subclass's constructor arguments are its hyper-parameters; each is kept as an attribute of the same name. With the decorator
    `latentlab.settings.settings` they are annotated fields, whose types and ranges are checked.

    Parameters are arrays that are estimated as points and have no posterior, such as the weights of a network: program and guide
    declare them by `pyro.param`, the attribute `parameters` gives their dims, and `latents`, `imputation` and `bound` take them
    beside the sites.
    """

    name: ClassVar[str]
    dims: Mapping[str, tuple[str, ...]]
    positions: tuple[Position, ...]
    symmetry: Group
    methods: tuple[str, ...]
    parameters: Mapping[str, tuple[str, ...]] = NOTHING
    kl_weight: float = 1.0
    """What a variational objective multiplies the positions' Kullback-Leibler term by; the density does not know of it."""
    classes: np.ndarray | None = None
    """The labels that the columns of `labels` stand for; those of the dataset where None."""
    jitter: float = 2.0
    """Half width of the noise about `initialize`, in each unconstrained coordinate, at which MCMC's chains start."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        own = cls.__dict__.get("position")
        if own is not None and not isinstance(own, property):
            cls.positions = (own,)
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
        """Position of each kind of units, by kind; a table has the one kind `unit`."""
        return {next(iter(self.dims[position.site]), ""): position for position in self.positions}

    @property
    def exchanges(self) -> Group:
        """The group modulo which draws are aligned and chains compared: the symmetry, unless parts are told apart by their
        prior alone and change places all the same (a stick-breaking mixture)."""
        return self.symmetry

    @abstractmethod
    def model(self, *args: Any, **arrays: Any) -> None:
        """The Pyro program; its arguments are the dataset's arrays and indices by name, and `mask` if it allows missing entries.

        An argument `n_KIND`, such as `n_user`, is the number of units of a kind.
        """

    def latents(self, arrays: Arrays, **values: torch.Tensor) -> torch.distributions.Distribution:
        """Distribution of the positions given one draw of the other sites, batch shape `(unit,)`.

        Exact, or an encoder's where the model has a `bound`.
        """
        raise NotImplementedError(f"{type(self).__name__} has no `latents`: its positions are the site itself.")

    def imputation(self, arrays: Arrays, **values: torch.Tensor) -> torch.distributions.Distribution:
        """Distribution of the observed array's missing entries given one draw of all sites, of the array's shape.

        Where entries were observed it may be anything.
        """
        raise NotImplementedError(f"{type(self).__name__} does not say what missing entries were.")

    def replicated(self, arrays: Arrays, **values: torch.Tensor) -> torch.Tensor:
        """A new observed array of the same units, drawn given one draw of all sites, positions included.

        The posterior predictive is made of these: it is the same whether the program has the positions or integrates them out.
        """
        raise NotImplementedError(f"{type(self).__name__} does not draw data given positions.")

    def bound(self, arrays: Arrays, n_samples: int, **values: torch.Tensor) -> torch.Tensor:
        """Lower bound on log p(unit | values), `(unit,)`, in expectation, where positions cannot be integrated out exactly."""
        raise NotImplementedError(f"{type(self).__name__} has no bound on its log likelihood.")

    def leave_one_out(self, arrays: Arrays, **values: torch.Tensor) -> torch.Tensor:
        """log p(x_n | all the other data, values) where units depend on each other given the sites: `(unit,)`, or `(sequence,)`
        where there are several sequences, which are then what is left out."""
        raise NotImplementedError(f"{type(self).__name__}'s units do not depend on each other given the other sites.")

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

    def frozen(self, parameters: Mapping[str, Any], classes: np.ndarray | None = None) -> "LatentModel":
        """The same program with its parameters fixed at these values: what is left are sites, which any sampler can draw.

        Args:
            parameters: Name -> value, as `Fit.parameters` has them.
            classes: The labels of the data that they were fitted to, for a model that takes labels.
        """
        return Frozen(self, parameters, classes)

    def check(self, dataset: Dataset) -> None:  # noqa: B027
        """Refuses data that the model has no sensible answer for, naming both numbers (`n_latent` and features, say)."""

    def check_maximum(self, dataset: Dataset) -> None:  # noqa: B027
        """Refuses data whose likelihood has no maximum, from whatever start, for the method `exact`."""

    def remarks(self, arrays: Arrays, values: Mapping[str, np.ndarray]) -> list[str]:
        """What is arbitrary, or without bound, at a point estimate of the sites: notes for the diagnostics."""
        return []

    def check_new(self, dataset: Dataset) -> None:
        """Refuses units that were not in the fit and whose values the density cannot take.

        As strict as `check` unless overridden, which a model does where units need less than a fit (one unit will do).
        """
        self.check(dataset)

    def cautions(self, dataset: Dataset) -> list[Caution]:
        """Warnings that every fit to these data shows among its diagnostics, such as that the model is not identified."""
        return []

    def n_labels(self) -> int:
        """How many values a discrete position can have."""
        raise NotImplementedError(f"{type(self).__name__} does not say how many values its positions can have.")

    def act(self, elements: np.ndarray, values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The sites `(..., *site)` after elements `(..., k, k)` of `exchanges` have acted; labels go with what they name."""
        site, group = self.position.site, self.exchanges
        dims = {**self.dims, **self.parameters}
        turned = group.act(elements, {n: v for n, v in values.items()}, {n: tuple(dims[n]) for n in values})
        if self.is_discrete and site in values and not group.is_trivial():
            turned[site] = renamed(elements, values[site])
        return {name: turned[name] for name in values}

    def position_columns(self) -> int | None:
        """Columns of embeddings like the positions, where they are known before there are data: `n_latent`, a column for each
        value of a discrete position, or 1 where each is one number."""
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
    """A warning for models of Gaussian noise: a value far from all others of its column moves every estimate."""
    raw = dataset.raw()
    found = on_outliers(raw.x, raw.units.tolist(), raw.features.tolist())
    return [Caution("data", note, 1.0, "no note") for note in found]


def require_table(what: str, dataset: Dataset, hint: str = "") -> None:
    """Refuses data without an array `x` of dims (unit, feature).

    Raises:
        DataError: Names the array that there is.
    """
    if dataset.observed != "x" or dataset.dims["x"] != ("unit", "feature"):
        raise DataError(
            f"{what} must have an array 'x' with dims (unit, feature){hint}; its first array is {dataset.observed!r} "
            f"with dims {tuple(dataset.dims[dataset.observed])}, shape {dataset.x.shape}; rename or transpose its dims."
        )


def normal(site: str, scale: float, shape: tuple[int, ...]) -> torch.Tensor:
    """Sample a site of independent N(0, scale) entries; it is fixed at 0 where the scale is 0."""
    if scale == 0:
        return pyro.deterministic(site, torch.zeros(shape))
    return pyro.sample(site, dist.Normal(torch.zeros(shape), scale).to_event(len(shape)))


def log_normal(site: str, median: torch.Tensor, spread: float) -> torch.Tensor:
    """Sample a site of independent entries, their logs N(log median, spread); it is fixed at the median where the spread is 0."""
    if spread == 0:
        return pyro.deterministic(site, median.clone())
    return pyro.sample(site, dist.LogNormal(torch.log(median), spread).to_event(median.dim()))


def dirichlet(site: str, concentration: torch.Tensor) -> torch.Tensor:
    """Sample a site of probabilities, a row for each row of the concentrations; they are fixed at 1 where a row has one entry."""
    if concentration.shape[-1] == 1:
        return pyro.deterministic(site, torch.ones_like(concentration))
    return pyro.sample(site, dist.Dirichlet(concentration).to_event(concentration.dim() - 1))


def here(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor that a model keeps, where tensors are made now: steps may be computed on another device."""
    return tensor.to(torch.get_default_device())


class Fixed(poutine.messenger.Messenger):
    """Gives the parameters of a program these values; Pyro's store is neither read nor written for them."""

    def __init__(self, parameters: Mapping[str, torch.Tensor]) -> None:
        super().__init__()
        self.parameters = parameters

    def _pyro_param(self, msg: Any) -> None:
        if msg["name"] in self.parameters:
            msg["value"], msg["done"] = self.parameters[msg["name"]], True


class Frozen(LatentModel):
    """A model whose parameters are fixed (`LatentModel.frozen`): its positions are sites, without any symmetry."""

    symmetry = Identity()
    methods = ("nuts", "chees", "svi", "map")

    def __init__(self, base: LatentModel, parameters: Mapping[str, Any], classes: np.ndarray | None = None) -> None:
        self.base, self.classes = base, classes
        self.name = base.name  # type: ignore[misc]
        self.dims, self.positions = base.dims, base.positions
        self.values = {name: torch.tensor(np.asarray(value), dtype=torch.float64) for name, value in parameters.items()}

    def model(self, *args: Any, **arrays: Any) -> None:
        with poutine.block(hide_types=["param"]), Fixed(self.values):
            self.base.model(*args, **arrays)

    def imputation(self, arrays: Arrays, **values: torch.Tensor) -> torch.distributions.Distribution:
        return self.base.imputation(arrays, **self.values, **values)

    def initialize(self, arrays: Arrays, rng: np.random.Generator) -> dict[str, Any]:
        """Where an encoder has the positions, if there is one."""
        if "latents" not in self.base.offers:
            return self.base.initialize(arrays, rng)
        with torch.no_grad():
            return {self.position.site: self.base.latents(arrays, **self.values).mean}

    def check(self, dataset: Dataset) -> None:
        """As the model that it was made from; and data of the size that the parameters are made for.

        Raises:
            DataError: Names both sizes.
        """
        self.base.check(dataset)
        for name, dims in self.base.parameters.items():
            for dim, size in zip(dims, self.values[name].shape if name in self.values else (), strict=False):
                if dataset.sizes.get(dim, size) != size:
                    raise DataError(
                        f"{dataset.name} has {dataset.sizes[dim]} along {dim!r}; the parameters are of {size} ({name!r})."
                    )

    def check_new(self, dataset: Dataset) -> None:
        """As the model that it was made from."""
        self.base.check_new(dataset)

    def position_columns(self) -> int | None:
        """As the model that it was made from."""
        return self.base.position_columns()

    def takes(self, argument: str) -> bool:
        """As the model that it was made from."""
        return self.base.takes(argument)

    @property
    def offers(self) -> frozenset[str]:
        """Only `imputation`, if the base model offers it: the positions are sites of the frozen program."""
        return self.base.offers & {"imputation"}

    def hyperparameters(self) -> dict[str, Any]:
        """Those of the model that it was made from."""
        return self.base.hyperparameters()

    def __repr__(self) -> str:
        digest = hashlib.sha256()
        for name, value in sorted(self.values.items()):
            digest.update(name.encode() + value.numpy().tobytes())
        return f"{self.base!r}.frozen({digest.hexdigest()[:12]})"
