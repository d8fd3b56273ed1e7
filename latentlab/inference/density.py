r"""Flat log density of a Pyro program and a dataset: a function of one unconstrained vector.

For sites $\theta_1, \dots, \theta_k$ with supports mapped from the reals by $T_i$, and $u$ the concatenation of the
flattened $u_i$,
$$ \log \tilde p(u) = \log p(T(u), x) + \sum_i \log |\det J_{T_i}(u_i)|. $$
Value and gradient of this function are captured as one graph of tensor operations that runs without Python (`capture`). If this
fails, the program itself is run, and one warning tells the reason.
"""

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from pyro import poutine

from latentlab.distributions.transforms import transform_of
from latentlab.errors import ModelError
from latentlab.inference.arrays import float64_tensor
from latentlab.inference.capture import Plan, capture
from latentlab.inference.program import (
    Released,
    Tensors,
    checked_trace,
    has_density,
    in_plate,
    is_deterministic,
    is_latent,
    is_observed_site,
    observed_dims,
    per_point,
    points_of,
    site_log_prob,
    site_log_prob_sum,
    unchecked,
)
from latentlab.models.base import NOTHING, Arrays, LatentModel
from latentlab.models.fixed import Fixed
from latentlab.seeds import forked, reseed

Gradient = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True)
class Site:
    """A latent site of the program, with its position in the flat vector and the transform from there to its support."""

    name: str
    shape: torch.Size
    unconstrained: torch.Size
    transform: Any
    start: int

    @property
    def stop(self) -> int:
        return self.start + self.unconstrained.numel()


class Density:
    """The flat log density of a model on its data.

    Args:
        model: The model.
        arrays: Its data, from `tensors`.
        dims: Dims of the arrays by name, the observed array first; if None, the points are the units of a table.
        parameters: Values of the model's parameters; others have the program's initial values.
        plan: Approximate number of gradients, and whether to compile to machine code.
        n_points: Number of points, if the arrays have only a sample of them; if None, the size of the points' plate.

    Attributes:
        bound: The model with the density's parameters in its modules.

    Raises:
        ModelError: A site's log density does not have the shape of its plates (data of shape (N, 1) in a plate of N would
            silently give a wrong posterior). A site is not declared in `model.dims`, or has another shape than declared. The
            density is random at fixed values of the sites.
    """

    def __init__(
        self,
        model: LatentModel,
        arrays: Arrays,
        dims: Mapping[str, tuple[str, ...]] | None = None,
        parameters: Tensors = NOTHING,
        plan: Plan = Plan(),  # noqa: B008
        n_points: int | None = None,
    ) -> None:
        self.model = model
        self.plan = plan
        self.arrays = arrays
        self.dims = dims or {}
        self.points = points_of(self.dims)
        trace = checked_trace(model, arrays, parameters, self.points)
        self.own_parameters = {n: s["value"].detach() for n, s in trace.nodes.items() if s["type"] == "param"}
        self.parameters: Tensors = {**self.own_parameters, **parameters}
        self.bound = model.with_parameters(self.parameters)
        self.sites: list[Site] = []
        start = 0
        for name, site in trace.nodes.items():
            if is_latent(site):
                transform = transform_of(site["fn"].support)
                unconstrained = transform.inv(site["value"]).shape
                self.sites.append(Site(name, site["value"].shape, unconstrained, transform, start))
                start += unconstrained.numel()
        self.size = start
        self._check_determined()
        self.deterministic = tuple(n for n, s in trace.nodes.items() if s["type"] == "sample" and is_deterministic(s))
        self.point_sites = tuple(n for n, s in trace.nodes.items() if is_latent(s) and in_plate(s, self.points))
        self.observed = {n: observed_dims(n, s, self.points) for n, s in trace.nodes.items() if is_observed_site(s)}
        self.observations = {name: torch.as_tensor(trace.nodes[name]["value"]).detach().numpy() for name in self.observed}
        plates = (f.size for s in trace.nodes.values() for f in s.get("cond_indep_stack", ()) if f.name == self.points)
        self.n_points = next(plates, 0) if n_points is None else n_points
        self._clear_graphs()

    def _clear_graphs(self) -> None:
        """Discard the captured graphs, which contain data and parameters as constants."""
        self._single: Gradient | None = None
        self._descent: Gradient | None = None
        self.captured: dict[Any, Callable[..., Any]] = {}  # graphs that a method's restarts share
        self._batched: dict[int, Gradient] = {}

    @torch.no_grad()
    def _check_determined(self) -> None:
        """Raise an error if the density is random at fixed sites: other random draws, or a subsampled plate."""
        levels = []
        with forked():
            reseed(1)
            values = self.prior()
            for seed in (2, 3):
                reseed(seed)
                levels.append(float(self.log_joint(values)))
        if levels[0] != levels[1] and not math.isnan(levels[0]):
            raise ModelError(
                f"the log density of {self.model.name!r} is random: {levels[0]:.6g} and {levels[1]:.6g} at the same values. "
                "Remove random numbers that are not sites, and `subsample_size` of plates; for minibatches use `batch_size` "
                "of SVI."
            )

    def at(self, parameters: Tensors) -> "Density":
        """Return a copy of the density with these parameters."""
        other = copy.copy(self)
        other.parameters = {**self.parameters, **parameters}
        other.bound = self.model.with_parameters(other.parameters)
        other._clear_graphs()
        return other

    # -- between the flat vector and the sites

    def constrain(self, u: torch.Tensor) -> dict[str, torch.Tensor]:
        """Map a flat vector `(size,)` to the sites' values."""
        return {s.name: s.transform(u[s.start : s.stop].reshape(s.unconstrained)) for s in self.sites}

    def unconstrain(self, values: Mapping[str, Any]) -> torch.Tensor:
        """Map the sites' values to the flat vector `(size,)`.

        Raises:
            ModelError: A site is missing, or has another shape.
        """
        parts = []
        for site in self.sites:
            if site.name not in values:
                raise ModelError(f"site {site.name!r} has no value; got values of {', '.join(values) or 'no site'}.")
            value = float64_tensor(values[site.name])
            if value.shape != site.shape:
                raise ModelError(f"site {site.name!r} must have shape {tuple(site.shape)}; got {tuple(value.shape)}.")
            parts.append(site.transform.inv(value).reshape(-1))
        return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.float64)

    def unconstrain_fast(self, values: Tensors) -> torch.Tensor:
        """Map the sites' values to the flat vector without checks, for values from `constrain`."""
        return torch.cat([site.transform.inv(values[site.name]).reshape(-1) for site in self.sites])

    def on(self, arrays: Arrays) -> "Density":
        """Return the density of the same model on other data of the same shapes, without the checks of a new density."""
        other = copy.copy(self)
        other.arrays = arrays
        other._clear_graphs()
        return other

    def placed(self, device: str) -> "Density":
        """Return a copy with data and parameters on a device; for the CPU, the density itself."""
        if device == "cpu":
            return self
        other = self.on({n: a.to(device) if isinstance(a, torch.Tensor) else a for n, a in self.arrays.items()})
        other.parameters = {name: value.to(device) for name, value in self.parameters.items()}
        other.bound = self.model.with_parameters(other.parameters)
        return other

    def point_arrays(self) -> tuple[str, ...]:
        """Return the names of the arrays with a row for each point, including mask, labels and the units' numbers."""
        named = tuple(n for n, a in self.arrays.items() if a is not None and self.dims.get(n, ("",))[0] == self.points)
        return (*named, *(name for name in ("mask", "labels", "row") if self.arrays.get(name) is not None and name not in named))

    def with_points(self, rows: tuple[torch.Tensor, ...]) -> dict[str, Any]:
        """Return the arrays with those of `point_arrays` replaced by the rows of a minibatch."""
        return {**self.arrays, **dict(zip(self.point_arrays(), rows, strict=True))}

    def log_jacobian(self, u: torch.Tensor) -> torch.Tensor:
        """Compute the sum of the log Jacobian determinants of the sites' transforms at `u`."""
        total = u.new_zeros(())
        for site in self.sites:
            part = u[site.start : site.stop].reshape(site.unconstrained)
            total = total + site.transform.log_abs_det_jacobian(part, site.transform(part)).sum()
        return total

    # -- densities

    @unchecked()
    def log_joint(self, values: Tensors, arrays: Arrays | None = None, point_scale: float = 1.0) -> torch.Tensor:
        """Compute log p(values, data) on the constrained scale, with all constants and without Jacobian.

        `point_scale` multiplies the terms inside the points' plate: N / n for a minibatch of n of N points.
        """
        total: Any = 0.0
        for site in self._trace(values, arrays).nodes.values():
            if has_density(site):
                term = site_log_prob_sum(site) if arrays is None else site_log_prob(site).sum()
                total = total + (point_scale * term if in_plate(site, self.points) else term)
        return total

    def log_prob(self, u: torch.Tensor, arrays: Arrays | None = None, *, jacobian: bool = True) -> torch.Tensor:
        """Compute the flat log density at `u` `(size,)`; without the Jacobian it is the log joint on the constrained scale."""
        value = self.log_joint(self.constrain(u), arrays)
        return value + self.log_jacobian(u) if jacobian else value

    @unchecked()
    def log_prior(self, values: Tensors, arrays: Arrays | None = None) -> dict[str, torch.Tensor]:
        """Compute the log prior of each latent site, summed over the site."""
        nodes = self._trace(values, arrays).nodes
        return {site.name: site_log_prob(nodes[site.name]).sum() for site in self.sites}

    @unchecked()
    def log_terms(self, values: Tensors) -> dict[str, tuple[float, float]]:
        """Compute, for each latent or observed site, the sum of its log density and the sum of the terms' absolute values."""
        terms = {}
        for name, site in self._trace(values).nodes.items():
            if has_density(site):
                term = site_log_prob(site)
                terms[name] = float(term.sum()), float(term.abs().sum())
        return terms

    @unchecked()
    def log_likelihood(self, values: Tensors, arrays: Arrays | None = None) -> torch.Tensor:
        """Compute log p(point | values) of each point, `(point,)`, for the sites observed inside the points' plate."""
        nodes = self._trace(values, arrays).nodes
        total: Any = 0.0
        for name in self.observed:
            if in_plate(nodes[name], self.points):
                total = total + per_point(nodes[name], self.points)
        return total

    @unchecked()
    def point_log_joint(self, values: Tensors) -> torch.Tensor:
        """Compute each point's share of log p(values, data), `(point,)`: the terms inside the points' plate."""
        total: Any = 0.0
        for site in self._trace(values).nodes.values():
            if has_density(site) and in_plate(site, self.points):
                total = total + per_point(site, self.points)
        return total

    @unchecked()
    def deterministics(self, values: Tensors, arrays: Arrays | None = None) -> dict[str, torch.Tensor]:
        """Compute the deterministic sites at `values`."""
        nodes = self._trace(values, arrays).nodes
        return {name: torch.as_tensor(nodes[name]["value"]) for name in self.deterministic}

    @unchecked()
    def predict(self, values: Tensors, arrays: Arrays | None = None) -> dict[str, torch.Tensor]:
        """Draw new data given the sites' values, by running the program with its observed sites sampled."""
        with Released(self.observed):
            nodes = self._trace(values, arrays).nodes
        return {name: torch.as_tensor(nodes[name]["value"]) for name in self.observed}

    @unchecked()
    def prior(self) -> dict[str, torch.Tensor]:
        """Draw the sites from the prior, with torch's random state."""
        with Fixed(self.parameters):
            nodes = poutine.trace(self.bound.model).get_trace(**self.arrays).nodes
        return {site.name: torch.as_tensor(nodes[site.name]["value"]) for site in self.sites}

    def _trace(self, values: Tensors, arrays: Arrays | None = None) -> Any:
        program = poutine.condition(self.bound.model, data=dict(values))
        with Fixed(self.parameters):
            return poutine.trace(program).get_trace(**(self.arrays if arrays is None else arrays))

    # -- the fast path

    def value_and_grad(self, u: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute `log_prob(u)` and its gradient by the captured graph; by the program if it cannot be captured."""
        if self._single is None:
            self._single = capture(self.eager_value_and_grad, u, plan=self.plan, is_told=self._is_uncaptured())
        return self._single(u)

    def batch_value_and_grad(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Compute `value_and_grad` of points `(batch, size)` in one call; one by one if the program cannot be batched.

        A point at which a matrix decomposition fails has value and gradient NaN, and does not change the results of the others.
        """
        u = torch.from_numpy(points)
        if len(u) not in self._batched:
            batched = value_and_grad(torch.vmap(self.log_prob))
            is_told = self._is_uncaptured()
            self._batched[len(u)] = capture(batched, u, otherwise=self._one_by_one, plan=self.plan, is_told=is_told)
        try:
            values, gradients = self._batched[len(u)](u)
        except RuntimeError as error:
            if not _is_decomposition(error):
                raise
            values, gradients = self._without_failures(u)
        return values.numpy(), gradients.numpy()

    def _is_uncaptured(self) -> bool:
        """Whether a batch could not be captured."""
        return self._one_by_one in self._batched.values()

    def _without_failures(self, u: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Evaluate a batch with each point at which a decomposition fails replaced by a valid one, and its results by NaN."""
        valid = torch.isfinite(self._one_by_one(u)[0])
        if not bool(valid.any()):
            return torch.full_like(u[:, 0], math.nan), torch.full_like(u, math.nan)
        values, gradients = self._batched[len(u)](torch.where(valid[:, None], u, u[valid][0]))
        return torch.where(valid, values, math.nan), torch.where(valid[:, None], gradients, math.nan)

    def descent(self, u: torch.Tensor) -> Gradient:
        """Return minus the log joint on the constrained scale and its gradient as a function, captured once for all restarts."""
        if self._descent is None:
            self._descent = capture(value_and_grad(lambda v: -self.log_prob(v, jacobian=False)), u, plan=self.plan)
        return self._descent

    def _one_by_one(self, u: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        values, gradients = zip(*(self._value_and_grad_or_nan(row) for row in u), strict=True)
        return torch.stack(values), torch.stack(gradients)

    def _value_and_grad_or_nan(self, u: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        try:
            return self.value_and_grad(u)
        except RuntimeError as error:
            if not _is_decomposition(error):
                raise
            return u.new_tensor(math.nan), torch.full_like(u, math.nan)

    def eager_value_and_grad(self, u: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute `log_prob(u)` and its gradient by running the program."""
        return value_and_grad(self.log_prob)(u)


def value_and_grad(function: Callable[[torch.Tensor], torch.Tensor]) -> Gradient:
    """Return a function that computes the value of `function` and its gradient.

    For a batch, value `i` of the result `(batch,)` depends on row `i` of the argument only, and the gradient has a row for each.
    `torch.func` is not used here, since it would import torch's compiler.
    """

    @torch.enable_grad()
    def both(u: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        leaf = u.detach().requires_grad_()
        value = function(leaf)
        (gradient,) = torch.autograd.grad(value.sum(), leaf)
        return value.detach(), gradient

    return both


def _is_decomposition(error: RuntimeError) -> bool:
    """Whether an error is a failed matrix decomposition; from captured graphs only its message is available."""
    return isinstance(error, torch.linalg.LinAlgError) or "linalg." in str(error)
