r"""A Pyro program and a dataset as a flat log density of one unconstrained vector.

For sites $\theta_1, \dots, \theta_k$ with supports mapped from the reals by $T_i$, and $u$ the concatenation of the
flattened $u_i$,
$$ \log \tilde p(u) = \log p(T(u), x) + \sum_i \log |\det J_{T_i}(u_i)|. $$
The program is traced once into this function; its value and gradient are then captured as one graph of tensor operations
that runs without Python (`capture`). What cannot be captured runs as it stands, and the log says so once.
"""

import contextlib
import copy
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyro
import torch
from pyro import poutine
from pyro.poutine.util import site_is_subsample

from latentlab.data.dataset import Dataset
from latentlab.data.series import boundaries
from latentlab.distributions.simplex import transform_of
from latentlab.errors import DataError, InferenceError, ModelError, unknown
from latentlab.inference.capture import Plan, capture
from latentlab.models.base import NOTHING, Arrays, Fixed, LatentModel, check_declaration
from latentlab.seeds import double, forked, reseed

Tensors = Mapping[str, torch.Tensor]
Gradient = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


class _Released(poutine.messenger.Messenger):
    """Draws the named sites although they were observed (Pyro's `uncondition` would draw deterministic ones too)."""

    def __init__(self, names: Collection[str]) -> None:
        super().__init__()
        self.names = names

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.names:
            msg["is_observed"], msg["value"], msg["done"] = False, None, False


@dataclass(frozen=True)
class Site:
    """A latent site of the program: where it lies in the flat vector and how it gets there."""

    name: str
    shape: torch.Size
    unconstrained: torch.Size
    transform: Any
    start: int

    @property
    def stop(self) -> int:
        return self.start + self.unconstrained.numel()


def tensors(model: LatentModel, dataset: Dataset, classes: np.ndarray | None = None) -> dict[str, Any]:
    """The dataset as the keywords of `model.model`: float64 tensors, zeros where missing.

    The indices of points are whole numbers. And, if the program takes them, `n_KIND`, the number of units of a kind; `mask`;
    `sequence`, the number of the sequence that each unit is a step of; and `labels`.

    Args:
        model: The model.
        dataset: The data.
        classes: The labels that the columns of `labels` stand for; the model's own, or those of the dataset, where None.

    Raises:
        DataError: Entries are missing and the model has no `mask` argument; names columns and count. Or the model takes labels,
            and there are none, or one that is not among `classes`.
    """
    arrays: dict[str, Any] = {name: torch.tensor(np.nan_to_num(a, nan=0.0)) for name, a in dataset.arrays.items()}
    arrays |= {name: torch.tensor(one.values) for name, one in dataset.index.items()}
    arrays |= {f"n_{kind}": len(names) for kind, names in dataset.kinds.items() if model.takes(f"n_{kind}")}
    if model.takes("labels"):
        arrays["labels"] = torch.tensor(_one_hot(model, dataset, model.classes if classes is None else classes))
    if model.takes("sequence"):
        arrays["sequence"] = torch.tensor(boundaries(dataset))
    if model.takes("mask"):
        arrays["mask"] = None if dataset.mask is None else torch.tensor(dataset.mask)
    elif dataset.mask is not None:
        missing = ~dataset.mask
        dims = dataset.dims[dataset.observed]
        where = ""
        if len(dims) == 2:
            names = np.asarray(dataset.coords.get(dims[1], np.arange(missing.shape[1])))
            where = f" in {', '.join(map(str, names[missing.any(0)][:5]))}"
        raise DataError(
            f"{dataset.name}: {int(missing.sum())} missing entries{where}, and the model {model.name!r} takes none "
            "(its `model` has no argument `mask`)."
        )
    return arrays


def parameter_tensors(parameters: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Parameters as float64 tensors of their own."""
    return {name: _as_tensor(value) for name, value in parameters.items()}


def _one_hot(model: LatentModel, dataset: Dataset, classes: np.ndarray | None) -> np.ndarray:
    """The labels as `(unit, label)` of zeros and a one."""
    if dataset.labels is None:
        raise DataError(f"{dataset.name}: the model {model.name!r} needs a label for each unit, and there are none.")
    known = np.unique(dataset.labels) if classes is None else np.asarray(classes)
    found = dataset.labels[:, None] == known
    if not found.any(1).all():
        strange = dataset.labels[~found.any(1)][0]
        raise DataError(
            f"{dataset.name}: unit {dataset.units[~found.any(1)][0]} has the label {str(strange)!r}, which no unit of the fit "
            f"had; those were {', '.join(map(str, known[:20]))}."
        )
    return found.astype(np.float64)


@contextlib.contextmanager
def _unchecked() -> Iterator[None]:
    """Densities without Pyro's checks of values, which branch on them, and with constants in float64."""
    with pyro.validation_enabled(False), double():
        yield


class Density:
    """The flat log density of a model on its data.

    Args:
        model: The model.
        arrays: Its data, from `tensors`.
        dims: Dims of the arrays, by name, the observed one first; a table's where None.
        parameters: Values of the model's parameters; those left out are what the program starts them with.
        plan: How often the method will ask for gradients, and whether machine code was asked for.
        n_points: Of the plate of the points, where the arrays hold a sample of them only; all that they hold where None.

    Raises:
        ModelError: A site's log density does not have the shape of its plates (data of shape (N, 1) in a plate of N would
            silently give a wrong posterior), a site is not declared in `model.dims`, or has another shape than declared.
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
        trace = _checked_trace(model, arrays, parameters, self.points)
        self.own_parameters = {n: s["value"].detach() for n, s in trace.nodes.items() if s["type"] == "param"}
        self.parameters: Tensors = {**self.own_parameters, **parameters}
        self.sites: list[Site] = []
        start = 0
        for name, site in trace.nodes.items():
            if _is_latent(site):
                transform = transform_of(site["fn"].support)
                unconstrained = transform.inv(site["value"]).shape
                self.sites.append(Site(name, site["value"].shape, unconstrained, transform, start))
                start += unconstrained.numel()
        self.size = start
        self._check_determined()
        self.deterministic = tuple(n for n, s in trace.nodes.items() if s["type"] == "sample" and _is_deterministic(s))
        self.point_sites = tuple(n for n, s in trace.nodes.items() if _is_latent(s) and _in_plate(s, self.points))
        self.observed = {n: _observed_dims(n, s, self.points) for n, s in trace.nodes.items() if _is_observed(s)}
        self.observations = {name: torch.as_tensor(trace.nodes[name]["value"]).detach().numpy() for name in self.observed}
        plates = (f.size for s in trace.nodes.values() for f in s.get("cond_indep_stack", ()) if f.name == self.points)
        self.n_points = next(plates, 0) if n_points is None else n_points
        self._forget()

    def _forget(self) -> None:
        """Begins without graphs: they hold the data and the parameters."""
        self._single: Gradient | None = None
        self._descent: Gradient | None = None
        self.captured: dict[Any, Callable[..., Any]] = {}  # what methods captured of this density, to be used by all restarts
        self._batched: dict[int, Gradient] = {}

    def _check_determined(self) -> None:
        """Refuses a program whose density is random: it draws something that is no site, or takes some of the units at random."""
        levels = []
        with forked():
            reseed(1)
            values = self.prior()
            for seed in (2, 3):
                reseed(seed)
                levels.append(float(self.log_joint(values)))
        if levels[0] != levels[1] and not math.isnan(levels[0]):
            raise ModelError(
                f"the program of {self.model.name!r} is random beyond its sites: the same values have log densities "
                f"{levels[0]:.6g} and {levels[1]:.6g}. It may draw no numbers of its own, nor a part of a plate "
                "(`subsample_size`); for minibatches use SVI's `batch_size`."
            )

    def at(self, parameters: Tensors) -> "Density":
        """The same density with these parameters."""
        other = copy.copy(self)
        other.parameters = {**self.parameters, **parameters}
        other._forget()
        return other

    # -- between the flat vector and the sites

    def constrain(self, u: torch.Tensor) -> dict[str, torch.Tensor]:
        """Sites' values of a flat vector `(size,)`."""
        return {s.name: s.transform(u[s.start : s.stop].reshape(s.unconstrained)) for s in self.sites}

    def unconstrain(self, values: Mapping[str, Any]) -> torch.Tensor:
        """The flat vector of the sites' values.

        Raises:
            ModelError: A site is missing, or has another shape.
        """
        parts = []
        for site in self.sites:
            if site.name not in values:
                raise ModelError(f"site {site.name!r} has no value; given: {', '.join(values)}.")
            value = _as_tensor(values[site.name])
            if value.shape != site.shape:
                raise ModelError(f"site {site.name!r} must have shape {tuple(site.shape)}; got {tuple(value.shape)}.")
            parts.append(site.transform.inv(value).reshape(-1))
        return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.float64)

    def unconstrain_fast(self, values: Tensors) -> torch.Tensor:
        """`unconstrain` without its checks, for values that come from `constrain`."""
        return torch.cat([site.transform.inv(values[site.name]).reshape(-1) for site in self.sites])

    def on(self, arrays: Arrays) -> "Density":
        """The density of the same model on other data of the same shapes, without the checks of a new one."""
        other = copy.copy(self)
        other.arrays = arrays
        other._forget()
        return other

    def placed(self, device: str) -> "Density":
        """The same density with data and parameters on a device; itself for the CPU."""
        if device == "cpu":
            return self
        other = self.on({n: a.to(device) if isinstance(a, torch.Tensor) else a for n, a in self.arrays.items()})
        other.parameters = {name: value.to(device) for name, value in self.parameters.items()}
        return other

    def point_arrays(self) -> tuple[str, ...]:
        """Names of the arrays that have a row for each point, mask and labels among them."""
        named = tuple(n for n, a in self.arrays.items() if a is not None and self.dims.get(n, ("",))[0] == self.points)
        return (*named, *(name for name in ("mask", "labels") if self.arrays.get(name) is not None and name not in named))

    def with_points(self, rows: tuple[torch.Tensor, ...]) -> dict[str, Any]:
        """The arrays with those of `point_arrays` replaced by a minibatch's."""
        return {**self.arrays, **dict(zip(self.point_arrays(), rows, strict=True))}

    def log_jacobian(self, u: torch.Tensor) -> torch.Tensor:
        """Sum of the log Jacobian determinants of the sites' transforms at `u`."""
        total = u.new_zeros(())
        for site in self.sites:
            part = u[site.start : site.stop].reshape(site.unconstrained)
            total = total + site.transform.log_abs_det_jacobian(part, site.transform(part)).sum()
        return total

    # -- densities

    @_unchecked()
    def log_joint(self, values: Tensors, arrays: Arrays | None = None, point_scale: float = 1.0) -> torch.Tensor:
        """log p(values, data) on the constrained scale, every constant kept, no Jacobian.

        `point_scale` multiplies the terms inside the plate of the points, for a minibatch of N / point_scale of them.
        """
        total: Any = 0.0
        for site in self._trace(values, arrays).nodes.values():
            if site["type"] == "sample" and not site_is_subsample(site) and not _is_deterministic(site):
                term = _site_log_prob_sum(site) if arrays is None else _site_log_prob(site).sum()
                total = total + (point_scale * term if _in_plate(site, self.points) else term)
        return total

    def log_prob(self, u: torch.Tensor, arrays: Arrays | None = None, *, jacobian: bool = True) -> torch.Tensor:
        """The flat log density at `u` `(size,)`; without the Jacobian it is the joint on the constrained scale."""
        value = self.log_joint(self.constrain(u), arrays)
        return value + self.log_jacobian(u) if jacobian else value

    @_unchecked()
    def log_prior(self, values: Tensors, arrays: Arrays | None = None) -> dict[str, torch.Tensor]:
        """log prior of each latent site, summed over the site."""
        nodes = self._trace(values, arrays).nodes
        return {site.name: _site_log_prob(nodes[site.name]).sum() for site in self.sites}

    @_unchecked()
    def log_terms(self, values: Tensors) -> dict[str, tuple[float, float]]:
        """The log density of each site, latent or observed: its sum, and the sum of the absolute values of its terms."""
        found = {}
        for name, site in self._trace(values).nodes.items():
            if site["type"] == "sample" and not site_is_subsample(site) and not _is_deterministic(site):
                term = _site_log_prob(site)
                found[name] = float(term.sum()), float(term.abs().sum())
        return found

    @_unchecked()
    def log_likelihood(self, values: Tensors, arrays: Arrays | None = None) -> torch.Tensor:
        """log p(a point | values), `(point,)`, for the sites observed inside the plate of the points."""
        nodes = self._trace(values, arrays).nodes
        total: Any = 0.0
        for name in self.observed:
            if _in_plate(nodes[name], self.points):
                total = total + _per_point(nodes[name], self.points)
        return total

    @_unchecked()
    def point_log_joint(self, values: Tensors) -> torch.Tensor:
        """log p(values, data) of each point, `(point,)`: the terms inside the plate of the points, without the others."""
        total: Any = 0.0
        for site in self._trace(values).nodes.values():
            own = site["type"] == "sample" and not site_is_subsample(site) and not _is_deterministic(site)
            if own and _in_plate(site, self.points):
                total = total + _per_point(site, self.points)
        return total

    @_unchecked()
    def deterministics(self, values: Tensors, arrays: Arrays | None = None) -> dict[str, torch.Tensor]:
        """The deterministic sites at `values`."""
        nodes = self._trace(values, arrays).nodes
        return {name: torch.as_tensor(nodes[name]["value"]) for name in self.deterministic}

    @_unchecked()
    def predict(self, values: Tensors, arrays: Arrays | None = None) -> dict[str, torch.Tensor]:
        """New data given the sites' values, by running the program with its observations released."""
        with _Released(self.observed):
            nodes = self._trace(values, arrays).nodes
        return {name: torch.as_tensor(nodes[name]["value"]) for name in self.observed}

    @_unchecked()
    def prior(self) -> dict[str, torch.Tensor]:
        """A draw of the sites from the prior (torch's random state is used)."""
        with Fixed(self.parameters):
            nodes = poutine.trace(self.model.model).get_trace(**self.arrays).nodes
        return {site.name: torch.as_tensor(nodes[site.name]["value"]) for site in self.sites}

    def _trace(self, values: Tensors, arrays: Arrays | None = None) -> Any:
        program = poutine.condition(self.model.model, data=dict(values))
        with Fixed(self.parameters):
            return poutine.trace(program).get_trace(**(self.arrays if arrays is None else arrays))

    # -- the fast path

    def value_and_grad(self, u: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """`log_prob(u)` and its gradient, by the captured graph where there is one."""
        if self._single is None:
            self._single = capture(self.eager_value_and_grad, u, plan=self.plan)
        return self._single(u)

    def batch_value_and_grad(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """`value_and_grad` of `(batch, size)` points in one call; of each in turn where the program cannot be batched.

        A point at which a decomposition fails has the value NaN, and takes no other with it: those have the numbers that they
        have in a batch without it.
        """
        u = torch.from_numpy(points)
        if len(u) not in self._batched:
            batched = value_and_grad(torch.vmap(self.log_prob))
            self._batched[len(u)] = capture(batched, u, otherwise=self._one_by_one, plan=self.plan)
        try:
            values, gradients = self._batched[len(u)](u)
        except RuntimeError as error:
            if not _is_decomposition(error):
                raise
            values, gradients = self._without_failures(u)
        return values.numpy(), gradients.numpy()

    def _without_failures(self, u: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The batch with another point in place of each at which a decomposition fails, whose numbers become NaN."""
        sound = torch.isfinite(self._one_by_one(u)[0])
        if not bool(sound.any()):
            return torch.full_like(u[:, 0], math.nan), torch.full_like(u, math.nan)
        values, gradients = self._batched[len(u)](torch.where(sound[:, None], u, u[sound][0]))
        return torch.where(sound, values, math.nan), torch.where(sound[:, None], gradients, math.nan)

    def descent(self, u: torch.Tensor) -> Gradient:
        """Minus the log joint on the constrained scale (no Jacobian) and its gradient, captured once for all restarts."""
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
        """`log_prob(u)` and its gradient, by running the program."""
        return value_and_grad(self.log_prob)(u)


def value_and_grad(function: Callable[[torch.Tensor], torch.Tensor]) -> Gradient:
    """The function and its gradient; where it gives several values, `(batch,)`, each of a row of its argument, of all of them.

    `torch.func` would import torch's compiler for this.
    """

    @torch.enable_grad()
    def both(u: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        leaf = u.detach().requires_grad_()
        value = function(leaf)
        (gradient,) = torch.autograd.grad(value.sum(), leaf)
        return value.detach(), gradient

    return both


def _is_decomposition(error: RuntimeError) -> bool:
    """Whether a matrix had no decomposition; the interpreter of captured graphs passes on the message only."""
    return isinstance(error, torch.linalg.LinAlgError) or "linalg." in str(error)


def constrain_draws(density: Density, u: np.ndarray) -> dict[str, np.ndarray]:
    """Sites of flat vectors `(chain, draw, size)`: site -> `(chain, draw, *site)`."""
    flat = over_draws(lambda values: density.constrain(values["u"]), {"u": u.reshape(-1, u.shape[-1])})
    return {name: array.reshape(u.shape[:2] + array.shape[1:]) for name, array in flat.items()}


def ends(density: Density, points: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """Sites at the flat vectors where restarts ended: site -> `(restart, *site)`."""
    return {name: array[0] for name, array in constrain_draws(density, np.stack(points)[None]).items()}


def over_draws(function: Callable[[Tensors], Any], values: Mapping[str, np.ndarray], *, block: int = 256) -> Any:
    """`function` of one draw's values, over draws stacked in front: vectorised in blocks, or one by one where it must.

    Args:
        function: Values of one draw -> tensor or dict of tensors.
        values: Site -> `(draw, *site)`.
    """
    draws = {name: torch.tensor(array, dtype=torch.float64) for name, array in values.items()}
    n_draws = len(next(iter(draws.values())))
    batched = torch.vmap(function, randomness="different")
    parts = []
    for start in range(0, n_draws, block):
        part = {name: array[start : start + block] for name, array in draws.items()}
        try:
            parts.append(batched(part))
        except (RuntimeError, ValueError, NotImplementedError, TypeError):
            rows = [function({name: array[i] for name, array in part.items()}) for i in range(len(next(iter(part.values()))))]
            parts.append(_stack(rows))
    return _concatenate(parts)


def _stack(rows: list[Any]) -> Any:
    if isinstance(rows[0], dict):
        return {name: torch.stack([torch.as_tensor(row[name]) for row in rows]) for name in rows[0]}
    return torch.stack(rows)


def _concatenate(parts: list[Any]) -> Any:
    if isinstance(parts[0], dict):
        return {name: torch.cat([part[name] for part in parts]).numpy() for name in parts[0]}
    return torch.cat(parts).numpy()


def log_joint(model: LatentModel, dataset: Dataset, values: Mapping[str, Any]) -> float:
    r"""$\log p(\text{values}, \text{data})$: constrained scale, no Jacobian, every constant kept, float64.

    Where the model integrates its positions out and `values` has them, $\log p(z \mid x, \text{values})$ is added, so that
    the result is the joint with the positions in either form of the model.

    Args:
        model: The model.
        dataset: Its data.
        values: Site or parameter of the program -> value; deterministic sites may be left out.

    Raises:
        DataError: Data that the model cannot take.
        ModelError: A site or parameter is missing, unknown, of another shape, or has a value that it cannot have.
    """
    model.check(dataset)
    arrays = tensors(model, dataset)
    strange = next((name for name in values if name not in model.dims and name not in model.parameters), None)
    if strange is not None:
        raise ModelError(unknown(f"site of {model.name!r}", strange, {**model.dims, **model.parameters}))
    parameters = {name: _as_tensor(value) for name, value in values.items() if name in model.parameters}
    density = Density(model, arrays, dataset.array_dims, parameters)
    absent = sorted(set(density.own_parameters) - set(parameters))
    if absent:
        raise ModelError(f"parameter {absent[0]!r} has no value; given: {', '.join(values)}.")
    u = density.unconstrain(values)
    for site in density.sites:
        if not bool(torch.isfinite(u[site.start : site.stop]).all()):
            raise ModelError(f"site {site.name!r} has a value that is not finite, or outside (or on the edge) of its support.")
    given = density.constrain(u)
    total = float(density.log_joint(given))
    position = model.position.site
    if position in values and model.integrates_positions() and position not in given:
        others = {**given, **density.deterministics(given), **parameters}
        z, conditional = _as_tensor(values[position]), model.latents(arrays, **others)
        shape = conditional.batch_shape + conditional.event_shape
        if z.shape != shape:
            raise ModelError(f"site {position!r} must have shape {tuple(shape)}; got {tuple(z.shape)}.")
        total += float(conditional.log_prob(z).sum())
    return total


def start(density: Density, rng: np.random.Generator, *, jitter: float, n_tries: int = 100) -> torch.Tensor:
    """A starting vector: the model's `initialize` (the prior where it is silent) plus Uniform(-jitter, jitter).

    Raises:
        InferenceError: No try has a finite density and gradient; names the sites that were not finite.
    """
    bad: list[str] = []
    for _ in range(n_tries):
        values: dict[str, Any] = density.prior()
        given = density.model.initialize(density.arrays, rng)
        strange = next((name for name in given if name not in density.model.dims and name not in values), None)
        if strange is not None:
            raise ModelError(f"`initialize` of {density.model.name!r}: {unknown('site', strange, values)}")
        values.update({k: v for k, v in given.items() if k in values})
        u = density.unconstrain(values)
        u = u + torch.tensor(rng.uniform(-jitter, jitter, density.size)) if jitter else u
        value, gradient = density.eager_value_and_grad(u)
        if math.isfinite(value) and bool(torch.isfinite(gradient).all()):
            return u
        bad = non_finite_sites(density, u)
    raise InferenceError(f"no finite starting point in {n_tries} tries; not finite: {', '.join(bad) or 'the gradient'}.")


def non_finite_sites(density: Density, u: torch.Tensor) -> list[str]:
    """Sites whose value or log density is not finite at `u`, with the range of their values."""
    values = density.constrain(u)
    found = []
    with _unchecked():
        nodes = density._trace(values).nodes
    for name, site in nodes.items():
        if site["type"] != "sample" or site_is_subsample(site) or _is_deterministic(site):
            continue
        value = torch.as_tensor(site["value"], dtype=torch.float64)
        try:
            finite = bool(torch.isfinite(_site_log_prob(site)).all())
        except ValueError:
            finite = False
        if not finite:
            span = f" (values {float(value.min()):.3g} to {float(value.max()):.3g})" if value.numel() else ""
            found.append(f"{name!r}{span}")
    return found


def _as_tensor(value: Any) -> torch.Tensor:
    """A float64 tensor; numpy arrays are copied, since torch warns of read-only ones."""
    if not isinstance(value, torch.Tensor) and np.asarray(value).dtype.kind not in "biuf":
        raise ModelError(f"a site's value must be numbers; got {value!r:.60}.")
    return value.to(torch.float64) if isinstance(value, torch.Tensor) else torch.tensor(np.asarray(value), dtype=torch.float64)


def _site_log_prob(site: Mapping[str, Any]) -> torch.Tensor:
    term = site["fn"].log_prob(site["value"])
    if site["mask"] is not None:
        term = torch.where(torch.as_tensor(site["mask"]), term, torch.zeros_like(term))
    return term * site["scale"]


def _site_log_prob_sum(site: Mapping[str, Any]) -> torch.Tensor:
    """The site's log density summed, by the distribution's own shorter way where it has one."""
    if site["is_observed"] and site["mask"] is None and hasattr(site["fn"], "log_prob_sum"):
        return site["fn"].log_prob_sum(site["value"]) * site["scale"]
    return _site_log_prob(site).sum()


def points_of(dims: Mapping[str, tuple[str, ...]]) -> str:
    """The dim of the points: `unit` where the observed array, the first, has it (or nothing is known), else its first dim."""
    observed = next(iter(dims.values()), ("unit",))
    return "unit" if "unit" in observed else observed[0]


def _per_point(site: Mapping[str, Any], points: str) -> torch.Tensor:
    """The site's log density with everything but the plate of the points summed."""
    term = _site_log_prob(site)
    plate = next(frame.dim for frame in site["cond_indep_stack"] if frame.name == points) % term.dim()
    others = [d for d in range(term.dim()) if d != plate]
    return term.sum(others) if others else term


def _is_deterministic(site: Mapping[str, Any]) -> bool:
    return bool(site["infer"].get("_deterministic", False))


def _is_observed(site: Any) -> bool:
    return site["type"] == "sample" and site["is_observed"] and not site_is_subsample(site) and not _is_deterministic(site)


def _is_latent(site: Any) -> bool:
    return site["type"] == "sample" and not site["is_observed"] and not site_is_subsample(site)


def _observed_dims(name: str, site: Any, points: str) -> tuple[str, ...]:
    """Dims of an observed site that no array of the dataset has the name of: the points' for its plate, numbered ones else."""
    shape = tuple(site["value"].shape)
    lead = (points,) if shape and _in_plate(site, points) else ()
    return (*lead, *(f"{name}_dim_{i}" for i in range(len(shape) - len(lead))))


def _in_plate(site: Mapping[str, Any], name: str) -> bool:
    return any(frame.name == name for frame in site["cond_indep_stack"])


def _checked_trace(model: LatentModel, arrays: Arrays, parameters: Tensors, points: str) -> Any:
    """A trace of the program on its data, with the shapes of all sites checked; Pyro's store is left as it is."""
    try:
        with forked(), pyro.get_param_store().scope(), pyro.validation_enabled(True):
            reseed(0)
            with double(), Fixed(parameters):
                trace = poutine.trace(model.model).get_trace(**arrays)
                for name, site in trace.nodes.items():
                    if site["type"] == "sample" and not site_is_subsample(site) and not _is_deterministic(site):
                        _check_site(name, site)
    except ModelError:
        raise
    except Exception as error:  # whatever a program raises
        said = _outside(model, arrays, parameters) or f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise ModelError(f"the model {model.name!r} does not run on this data: {said}") from error
    _check_dims(model, trace, points)
    return trace


def _outside(model: LatentModel, arrays: Arrays, parameters: Tensors) -> str | None:
    """The first observed value that its distribution gives no probability, if the program runs to the end without this check."""
    try:
        with forked(), pyro.get_param_store().scope(), pyro.validation_enabled(False), double(), Fixed(parameters):
            reseed(0)
            trace = poutine.trace(model.model).get_trace(**arrays)
        for name, site in trace.nodes.items():
            if site["type"] == "sample" and site["is_observed"] and not site_is_subsample(site):
                value: Any = site["value"]
                fn: Any = site["fn"]
                while hasattr(fn, "base_dist"):
                    fn = fn.base_dist
                bad = ~fn.support.check(value).expand(value.shape)
                if bad.any():
                    where = tuple(torch.nonzero(bad)[0].tolist())
                    return (
                        f"{name!r} is {value[where].item():.6g} at position {where}, outside of the support of its distribution, "
                        f"{type(fn).__name__} ({fn.support})."
                    )
    except Exception:  # then the first error is what is said
        return None
    return None


def _check_site(name: str, site: Mapping[str, Any]) -> None:
    frames = [f for f in site["cond_indep_stack"] if f.vectorized]
    expected = [1] * max((-f.dim for f in frames), default=0)
    for frame in frames:
        expected[frame.dim] = frame.size
    found = list(site["fn"].log_prob(site["value"]).shape)
    while found and found[0] == 1 and len(found) > len(expected):
        found.pop(0)
    if found != expected:
        raise ModelError(
            f"site {name!r} has a log density of shape {tuple(found)}, and its plates "
            f"({', '.join(f.name for f in frames) or 'none'}) say {tuple(expected)}; value {tuple(site['value'].shape)}: "
            "data of shape (N, 1) in a plate of N, or a missing `.to_event`."
        )
    if not site["is_observed"] and site["fn"].support.is_discrete:
        raise ModelError(f"site {name!r} is discrete and not summed out: sum over it (enumeration) in the model's density.")


def _check_dims(model: LatentModel, trace: Any, points: str) -> None:
    check_declaration(model)
    if not any(_is_observed(site) and _in_plate(site, points) for site in trace.nodes.values()):
        raise ModelError(f"{model.name!r} observes nothing inside a plate named {points!r}: the {points}s have no likelihood.")
    sizes: dict[str, tuple[int, str]] = {}
    for name, site in trace.nodes.items():
        parameter = site["type"] == "param"
        if not parameter and (site["type"] != "sample" or site_is_subsample(site) or _is_observed(site)):
            continue
        kind, declared_dims = ("parameter", model.parameters) if parameter else ("site", model.dims)
        if name not in declared_dims:
            where = "parameters" if parameter else "dims"
            raise ModelError(
                f"{kind} {name!r} is not declared in the {where} of {model.name!r}: {', '.join(declared_dims) or 'none'}."
            )
        shape, dims = tuple(site["value"].shape), declared_dims[name]
        if len(shape) != len(dims):
            raise ModelError(f"{kind} {name!r} is declared with dims {dims}, and has shape {shape}.")
        for dim, size in zip(dims, shape, strict=True):
            if sizes.setdefault(dim, (size, name))[0] != size:
                raise ModelError(f"dim {dim!r} has size {sizes[dim][0]} in {sizes[dim][1]!r} and {size} in {name!r}.")
    declared = set(model.dims) - set(trace.nodes)
    absent = declared - ({model.position.site} if model.integrates_positions() else set())
    if absent:
        raise ModelError(f"{model.name!r} declares dims of {', '.join(sorted(absent))}, and its program has no such site.")
