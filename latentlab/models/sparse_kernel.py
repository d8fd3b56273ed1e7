"""Covariance functions whose parameters are point estimates: names, dims, starts, and values at positions."""

from collections.abc import Mapping
from typing import Any

import torch

from latentlab.errors import ConfigError
from latentlab.models.covariances import KERNELS, covariance, variances

Tensors = Mapping[str, torch.Tensor]


class Kernel:
    """A kernel, or a sum of kernels; for sums, parameters are named by kernel, such as `amplitude_rbf`.

    Args:
        owner: Name of the model, for messages.
        text: Kernels joined by `+`.
        mean_scale: Standard deviation of the mean of each function.
        ard: Whether lengthscales have one value for each latent dimension. A linear kernel then has no
            amplitude.

    Raises:
        ConfigError: A kernel is unknown or repeated.
    """

    def __init__(self, owner: str, text: str, mean_scale: float, *, ard: bool) -> None:
        self.names, self.mean_scale, self.ard = text.replace(" ", "").split("+"), mean_scale, ard
        if not set(self.names) <= set(KERNELS) or len(set(self.names)) < len(self.names):
            raise ConfigError(f"{owner}: `kernel` must be a sum of different kernels of {', '.join(KERNELS)}; got {text!r}.")

    @property
    def dims(self) -> dict[str, tuple[str, ...]]:
        """Dims of the parameters by name, which are all positive."""
        found: dict[str, tuple[str, ...]] = {}
        for kernel in self.names:
            for parameter, name in self._of(kernel).items():
                found[name] = ("latent",) if self.ard and parameter == "lengthscale" else ()
        return found

    def _of(self, kernel: str) -> dict[str, str]:
        """Names of the parameters of a kernel, by role."""
        linear = ("lengthscale",) if self.ard else ("amplitude",)
        roles = {"linear": linear, "rational_quadratic": ("amplitude", "lengthscale", "shape")}
        ending = f"_{kernel}" if len(self.names) > 1 else ""
        return {role: role + ending for role in roles.get(kernel, ("amplitude", "lengthscale"))}

    def start(self, name: str, spreads: torch.Tensor, scale: float) -> torch.Tensor:
        """Starting value of a parameter: lengthscales that give the positions the spreads of the embedding where they start.

        Args:
            name: Name of the parameter.
            spreads: Spread of the embedding in each dimension, with mean square 1.
            scale: Root mean square of the data.
        """
        each = scale / len(self.names) ** 0.5
        if name.startswith("lengthscale"):
            is_linear = name.endswith("linear") or self.names == ["linear"]
            values = 1 / (spreads * (each if is_linear else 1.0))
            return values if self.ard else torch.sqrt(torch.tensor(float(len(spreads)))) / (each if is_linear else 1.0)
        return torch.tensor(1.0 if name.startswith("shape") else each)

    def covariance(self, one: torch.Tensor, other: torch.Tensor, values: Tensors) -> torch.Tensor:
        """Covariance of the functions at two sets of positions, `(n, m)`."""
        total: Any = self.mean_scale**2
        for kernel, a2, found in self._parts(values, one):
            total = total + a2 * covariance(kernel, one, other, found["lengthscale"], found.get("shape"))
        return total

    def variances(self, z: torch.Tensor, values: Tensors) -> torch.Tensor:
        """Prior variances of the functions at positions, `(n,)`."""
        total: Any = self.mean_scale**2
        for kernel, a2, found in self._parts(values, z):
            total = total + a2 * variances(kernel, z, found["lengthscale"])
        return total

    def _parts(self, values: Tensors, like: torch.Tensor) -> list[tuple[str, Any, dict[str, torch.Tensor]]]:
        """Name, squared amplitude and other parameters of each kernel."""
        parts = []
        for kernel in self.names:
            found = {role: values[name] for role, name in self._of(kernel).items()}
            found.setdefault("lengthscale", torch.ones((), dtype=like.dtype, device=like.device))
            parts.append((kernel, found["amplitude"] ** 2 if "amplitude" in found else 1.0, found))
        return parts
