"""Models with fixed parameters."""

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from pyro import poutine

from latentlab.data.dataset import Dataset
from latentlab.errors import DataError, ModelError
from latentlab.models.base import Arrays, LatentModel
from latentlab.models.fixed import Fixed
from latentlab.models.networks import check_complete
from latentlab.symmetry.groups import Identity


class Frozen(LatentModel):
    """Model with fixed parameters (`LatentModel.frozen`): its positions are sites, without symmetry."""

    symmetry = Identity()
    methods = ("nuts", "chees", "svi", "map")

    def __init__(self, base: LatentModel, parameters: Mapping[str, Any], classes: np.ndarray | None = None) -> None:
        self.classes = classes
        self.name = base.name  # type: ignore[misc]
        self.dims, self.positions = base.dims, base.positions
        self.values = {name: torch.tensor(np.asarray(value), dtype=torch.float64) for name, value in parameters.items()}
        check_complete(base, self.values)
        self.base = base.with_parameters(self.values)
        self._check_values()

    def _check_values(self) -> None:
        """Reject values of declared parameters that are incomplete, or whose shapes do not agree.

        Raises:
            ModelError: Names the parameter, what its shape must be, and what it is.
        """
        sizes: dict[str, tuple[int, str]] = {}
        for name, dims in self.base.parameters.items():
            if name not in self.values:
                raise ModelError(f"the parameter {name!r} of {self.name!r} must have a value with dims {dims}; got none.")
            shape = tuple(self.values[name].shape)
            if len(shape) != len(dims):
                raise ModelError(
                    f"the parameter {name!r} of {self.name!r} must have an axis for each of {dims}; got shape {shape}."
                )
            for dim, size in zip(dims, shape, strict=True):
                expected, other = sizes.setdefault(dim, (size, name))
                if size != expected:
                    raise ModelError(
                        f"the parameter {name!r} of {self.name!r} must have size {expected} along {dim!r}, as {other!r}; got "
                        f"{size}."
                    )

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
