r"""Check that a model's log joint density is invariant under its declared symmetry, and under no larger group.

Elements g of a group act on all sites at some draws of the fit and at one draw of the prior. If positions are integrated out,
they are included, and the log joint is $\log p(\theta, x) + \log p(z \mid \theta, x)$. It is computed on the constrained scale,
without Jacobians. A change counts if it exceeds the rounding error of the density,

    RELATIVE * (sum of the absolute log densities of the compared sites) + ROUNDING * (that sum for the observed sites)
    + NOISE * |log p(v g g^-1) - log p(v)|,

which grows with the scale of the data, as the density does. ROUNDING matters only for the positions: log p(z | theta, x) is a
difference of log likelihoods, and has their rounding error even if it is near 0. The draw of the prior matters if the scale of
the data is so small that the prior is flat over the posterior.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from latentlab.inference.density import Density
from latentlab.models.base import LatentModel
from latentlab.seeds import Seeds, isolated
from latentlab.symmetry.group import NEXT, Group, site_dims
from latentlab.symmetry.groups import GROUPS, GeneralLinear, Identity, Permutation, SignedPermutation, larger_groups
from latentlab.symmetry.labels import renamed

N_POINTS = 2
"""Number of draws of the fit at which the log joint is evaluated, in addition to one draw of the prior."""
RELATIVE = 1e-9
ROUNDING = 1e-13
NOISE = 1000.0
"""Factor on the rounding error after an element and its inverse have acted. All three such errors are below a thousandth of
their usual size in about one of 10^9 cases."""
DETECTABLE = 0.01
"""Size of a change, in nats, that must be detectable for a group to count as a symmetry."""
MOST_SIGNS = 8
"""Largest number of axes for which sign changes of single axes are tested."""

Sites = dict[str, np.ndarray]
Terms = dict[str, tuple[float, float]]


@dataclass(frozen=True)
class Change:
    """Largest change of the log joint under a group, in nats, with its tolerance and the site that changes most."""

    nats: float
    tolerance: float
    site: str

    @property
    def counts(self) -> bool:
        """Whether the change exceeds the rounding error."""
        return self.nats > self.tolerance


def check_symmetry(
    model: LatentModel, density: Density, values: Mapping[str, np.ndarray], parameters: Mapping[str, np.ndarray], seeds: Seeds
) -> dict[str, Any]:
    """Check the declared symmetry; return the attributes `symmetry_...` of the fit, which can be none.

    Args:
        model: The model.
        density: Its density with the fit's parameters.
        values: Draws of all sites, including positions, `(chain, draw, *site)`.
        parameters: The model's parameters.
        seeds: Seeds for the elements and the draw of the prior.
    """
    try:
        with isolated(seeds), torch.no_grad():
            return _checked(model, density, values, parameters, seeds.child("elements").numpy())
    except Exception as error:  # a program can raise any exception; a failed check must not lose the draws
        return {"symmetry_note": f"not checked: {type(error).__name__}: {' '.join(str(error).split())[:200]}"}


def _checked(
    model: LatentModel,
    density: Density,
    values: Mapping[str, np.ndarray],
    parameters: Mapping[str, np.ndarray],
    rng: np.random.Generator,
) -> dict[str, Any]:
    group = model.symmetry
    joint = _Joint(model, density, values, parameters)
    if not joint.acted(group):
        return _along_other_dim(joint, group, rng) if group.is_trivial() and joint.points else {}
    if not joint.points:
        return {"symmetry_note": "not checked: the log joint density is not finite at the draws"}
    found: dict[str, Any] = {"symmetry": type(group).__name__}
    if not group.is_trivial():
        change = joint.change(group, rng)
        found |= {"symmetry_change": change.nats, "symmetry_tolerance": change.tolerance, "symmetry_site": change.site}
        if change.counts:
            return found | {"symmetry_holds": _largest_that_holds(joint, group, rng)}
    return found | _larger(joint, group, rng)


def _along_other_dim(joint: "_Joint", group: Group, rng: np.random.Generator) -> dict[str, Any]:
    """Find a symmetry along another dim than the one of the declared trivial group; empty if there is none."""
    excluded = {*group.units, *(dim for dims_of_site in joint.density.dims.values() for dim in dims_of_site)}
    dims = [
        dim for dims_of_site in joint.dims.values() for dim in dims_of_site if dim not in excluded and not dim.startswith(NEXT)
    ]
    for dim in dict.fromkeys(dims):
        found = _larger(joint, Identity(dim, group.units), rng)
        if found:
            return {"symmetry": f"{type(group).__name__}({group.dim!r})", "symmetry_dim": dim} | found
    return {}


def _largest_that_holds(joint: "_Joint", group: Group, rng: np.random.Generator) -> str:
    """Return the name of the largest subgroup in `GROUPS` that leaves the log joint unchanged; `Identity` if there is none."""
    every = [entry(group.dim, group.units) for entry in GROUPS.values()]  # type: ignore[call-arg]
    smaller = [one for one in every if one in group and group not in one and not one.is_trivial()]
    return next((type(one).__name__ for one in reversed(smaller) if not joint.change(one, rng).counts), "Identity")


def _larger(joint: "_Joint", group: Group, rng: np.random.Generator) -> dict[str, Any]:
    """Return the largest group in `GROUPS` beyond the declared one that leaves the log joint unchanged.

    If there is none, return the axes whose sign can change alone.
    """
    size = joint.size(group)
    changed: list[Group] = []
    holds: tuple[Group, Change] | None = None
    for larger in larger_groups(group, joint.dims, size=size):
        if any(one in larger for one in changed):
            continue
        change = joint.change(larger, rng)
        if change.counts or not change.tolerance < DETECTABLE:
            changed.append(larger)
        elif holds is None or larger in larger_groups(holds[0], joint.dims, size=size):
            holds = larger, change
    if holds is not None:
        larger, change = holds
        return {"symmetry_larger": type(larger).__name__, "symmetry_larger_change": change.nats}
    signs = SignedPermutation(group.dim, group.units)
    axes = [] if signs in group or size > MOST_SIGNS else list(range(size))
    sign_axes = [axis for axis in axes if joint.holds(signs, np.diag(np.where(np.arange(size) == axis, -1.0, 1.0)))]
    return {"symmetry_signs": ", ".join(map(str, sign_axes))} if sign_axes else {}


class _Joint:
    """The log joint density of a model at a few values of all its sites.

    Attributes:
        points: Values at which it is finite.
        dims: Dims of all sites and parameters.
    """

    def __init__(
        self,
        model: LatentModel,
        density: Density,
        values: Mapping[str, np.ndarray],
        parameters: Mapping[str, np.ndarray],
    ) -> None:
        self.model, self.density = model, density
        self.parameters = {name: value for name, value in parameters.items() if name in model.parameters}
        self.names = [site.name for site in density.sites]
        self.position = model.position.site
        self.conditional = "latents" in model.offers and "bound" not in model.offers and self.position not in self.names
        declared = {**model.dims, **{name: model.parameters[name] for name in self.parameters}}
        self.dims = {name: tuple(dims_of_site) for name, dims_of_site in declared.items()}
        site_names = [*self.names, *([self.position] if self.conditional else [])]
        flat = {name: values[name].reshape(-1, *values[name].shape[2:]) for name in site_names}
        n = len(next(iter(flat.values()))) if flat else 1
        thinned_draws = np.unique(np.linspace(0, n - 1, N_POINTS).astype(int))
        every = [{**{name: array[i] for name, array in flat.items()}, **self.parameters} for i in thinned_draws]
        every += self._prior()
        self.points: list[Sites] = []
        self._terms: list[Terms] = []
        for point in every:
            terms = self._evaluated(point)
            if terms is not None and math.isfinite(_total(terms, terms)):
                self.points.append(point)
                self._terms.append(terms)

    def _prior(self) -> list[Sites]:
        """Draw the program's sites from the prior; empty if the prior cannot be sampled."""
        try:
            prior_draw = self.density.prior()
        except NotImplementedError:
            return []
        return [{**{name: value.numpy() for name, value in prior_draw.items()}, **self.parameters}]

    def acted(self, group: Group) -> list[str]:
        """Return the sites and parameters that a group acts on."""
        return [name for name, dims_of_site in self.dims.items() if group.dim in dims_of_site]

    def size(self, group: Group) -> int:
        """Return the size of the group's dim; 1 if no site has it."""
        for name, value in self.points[0].items():
            dims_of_site = site_dims(name, value, self.dims)
            if group.dim in dims_of_site:
                return int(value.shape[dims_of_site.index(group.dim)])
        return 1

    def change(self, group: Group, rng: np.random.Generator) -> Change:
        """Return a change of the log joint under elements of a group: the first that counts, or else the largest."""
        changes: list[Change] = []
        for point, before in zip(self.points, self._terms, strict=True):
            elements = self._elements(group, rng)
            back = self._after(group, elements[0], point, undone=True) if len(elements) else before
            for element in elements:
                after = self._after(group, element, point)
                for part in self._parts(group, before):
                    changes.append(self._compared(part, before, after, back))
                    if changes[-1].counts:
                        return changes[-1]
        return max(changes, key=lambda change: change.nats, default=Change(0.0, 0.0, ""))

    def _parts(self, group: Group, terms: Terms) -> list[list[str]]:
        """Return the sets of sites whose summed log density must be invariant: all sites, and integrated-out positions alone.

        A group that preserves volume changes neither the integral over the positions nor, therefore, their conditional density.
        """
        alone = self.conditional and self.position in terms and not isinstance(group, GeneralLinear)
        return [list(terms), *([[self.position]] if alone else [])]

    def _compared(self, part: list[str], before: Terms, after: Terms | None, back: Terms | None) -> Change:
        """Return the change of one part of the log joint; infinite if the log joint is undefined afterwards."""
        noise = 0.0 if back is None else abs(_total(back, part) - _total(before, part))
        size = RELATIVE * sum(before[name][1] for name in part)
        size += ROUNDING * sum(before[name][1] for name in before if name in self.density.observed)
        tolerance = size + NOISE * (noise if math.isfinite(noise) else 0.0)
        if after is None:
            return Change(math.inf, tolerance, part[0])
        each = {name: np.nan_to_num(abs(after[name][0] - before[name][0]), nan=np.inf) for name in part}
        nats = abs(_total(after, part) - _total(before, part))
        return Change(math.inf if math.isnan(nats) else nats, tolerance, max(each, key=lambda name: each[name]))

    def holds(self, group: Group, element: np.ndarray) -> bool:
        """Whether one element leaves the log joint unchanged at all points."""
        for point, before in zip(self.points, self._terms, strict=True):
            after = self._after(group, element, point)
            found = [self._compared(part, before, after, before) for part in self._parts(group, before)]
            if any(one.counts or not one.tolerance < DETECTABLE for one in found):
                return False
        return True

    def _elements(self, group: Group, rng: np.random.Generator) -> np.ndarray:
        """Return two random elements; for a finite group its generators (a cycle, a transposition, a sign) and a random one.

        The identity is left out.
        """
        size = self.size(group)
        elements = group.random(rng, size, (2,))
        if isinstance(group, Permutation | SignedPermutation):
            swapped = np.eye(size)[[1, 0, *range(2, size)]] if size > 1 else np.eye(1)
            generators = [np.roll(np.eye(size), 1, axis=1), swapped]
            if isinstance(group, SignedPermutation):
                generators.append(np.diag(np.where(np.arange(size) == 0, -1.0, 1.0)))
            elements = np.concatenate([generators, elements[1:]])
        unit = np.eye(elements.shape[-1])
        return elements[[not np.array_equal(element, unit) for element in elements]]

    def _after(self, group: Group, element: np.ndarray, point: Sites, *, undone: bool = False) -> Terms | None:
        moved = self._moved(group, element, point)
        return self._evaluated(self._moved(group, group.inverse(element), moved) if undone else moved)

    def _moved(self, group: Group, element: np.ndarray, point: Sites) -> Sites:
        """Return the values after an element has acted; discrete labels are permuted with their components."""
        moved = group.act(element, point, self.dims)
        if self.model.is_discrete and self.position in point and isinstance(group, Permutation):
            moved[self.position] = renamed(element, point[self.position])
        return moved

    def _evaluated(self, point: Sites) -> Terms | None:
        """Return the terms of the log joint; None outside the support of a site, or if the density cannot be computed."""
        tensors = {name: torch.tensor(np.asarray(value), dtype=torch.float64) for name, value in point.items()}
        for site in self.density.sites:
            value = tensors[site.name]
            back = site.transform(site.transform.inv(value))
            size = float(value.abs().max()) if value.numel() else 0.0
            if not bool(((back - value).abs() <= 1e-6 * size).all()):
                return None
        density = self.density.at({name: tensors[name] for name in self.parameters}) if self.parameters else self.density
        sites = {name: tensors[name] for name in self.names}
        try:
            terms = density.log_terms(sites)
            if self.conditional and self.position in point:
                others = {**sites, **density.deterministics(sites), **density.parameters}
                conditional: Any = density.bound.latents(density.arrays, **others)
                each = conditional.log_prob(tensors[self.position])
                terms[self.position] = float(each.sum()), float(each.abs().sum())
        except (RuntimeError, ValueError):
            return None
        return terms


def _total(terms: Terms, part: Iterable[str]) -> float:
    each = [terms[name][0] for name in part]
    return math.fsum(each) if all(map(math.isfinite, each)) else math.nan
