r"""Base class of mixture models: $z_n \sim w$, $x_n \mid z_n = k \sim p_k$, with the assignments marginalised.

The distribution of the assignments given the other sites is exact, also with missing entries. Its probabilities are the
responsibilities $r_{nk} = w_k p_k(x_n) / \sum_j w_j p_j(x_n)$.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from latentlab.data.dataset import Dataset
from latentlab.distributions import gaussian_moments
from latentlab.distributions.components import GaussianComponents
from latentlab.distributions.filled import Filled
from latentlab.distributions.mixture import Labels, Mixture
from latentlab.errors import DataError
from latentlab.models.base import Arrays, Caution, LatentModel, MaximumLikelihood, Position, require_table
from latentlab.models.clusters import k_means_labels
from latentlab.models.emissions.base import FEW, FLOOR, NEAR, SHRINK, Emission, column_variance
from latentlab.models.expectation_maximization import climb
from latentlab.seeds import forked, reseed
from latentlab.symmetry.groups import Identity, Permutation

LEAST_WEIGHT = 1e-3
"""Weight added to each component at the start, before normalisation."""
N_STARTS = 4
"""Number of runs of k-means, of which the most likely one is the start; one run often splits a wide or merges two clusters."""
COINCIDE = 0.01
"""Components coincide if the log densities of every unit differ by less than this, in nats."""


class MixtureModel(LatentModel):
    """Base class of mixtures; a subclass defines the program and the emission."""

    positions = (Position("z", kind="discrete"),)
    methods: tuple[str, ...] = ("nuts", "chees", "svi", "map", "exact")
    jitter = 0.5
    n_components: int
    emission: Any
    concentration: torch.Tensor

    def _settings(self, emission: Emission, concentration: torch.Tensor) -> None:
        self.emission, self.concentration = emission, concentration
        self.dims = {"weights": ("component",), **emission.dims("component"), "z": ("unit",)}
        exchangeable = emission.exchangeable and concentration.unique().numel() == 1
        self.symmetry = Permutation("component") if exchangeable else Identity("component")

    def n_labels(self) -> int:
        return self.n_components

    # -- exact conditional distributions

    def _mixture(self, arrays: Arrays, values: Mapping[str, torch.Tensor]) -> Mixture:
        return Mixture(torch.log(values["weights"]), self.emission.components(values), arrays.get("mask"))

    def latents(self, arrays: Arrays, **values: torch.Tensor) -> Labels:
        """Distribution of z given x and the other sites: independent labels, whose `probs` are the responsibilities."""
        return self._mixture(arrays, values).conditional(arrays["x"])

    def imputation(self, arrays: Arrays, **values: torch.Tensor) -> torch.distributions.Distribution:
        """Distribution of x given z, the other sites and the observed entries of the unit."""
        return imputed(self.emission, arrays, values)

    def replicated(self, arrays: Arrays, **values: torch.Tensor) -> torch.Tensor:
        return self.emission.components(values).sample(values["z"].long())

    def maximum_likelihood(self, arrays: Arrays, rng: np.random.Generator) -> MaximumLikelihood:
        units = Units.of(self.emission, arrays)
        emission, x, observed = units.emission, units.arrays["x"], arrays.get("mask")
        columns, variance = x.mT.contiguous(), column_variance(x, observed)

        def step(values: Mapping[str, torch.Tensor]) -> tuple[float, dict[str, torch.Tensor]]:
            if least is not None:
                each = values["weights"], values["mu"], values["sigma"]
                return gaussian_moments.maximum_of_mixture(*each, columns, least, FEW)
            components, log_weights = emission.components(values), torch.log(values["weights"])
            if by_kernel:
                total, moments = gaussian_moments.of_mixture(log_weights, components, columns, FEW)
                return total, {"weights": moments.size / len(x), **emission.at_moments(moments, variance, values)}
            joint = log_weights + components.log_prob(x, observed)
            level = torch.logsumexp(joint, -1)
            responsibilities = torch.exp(joint - level[:, None])
            maximum = emission.maximum(x, observed, responsibilities, values)
            return float(level.sum()), {"weights": responsibilities.mean(0), **maximum}

        def log_likelihood(values: Mapping[str, torch.Tensor]) -> torch.Tensor:
            return Mixture(torch.log(values["weights"]), emission.components(values), observed).log_prob_sum(x)

        start = {name: torch.as_tensor(value) for name, value in self.initialize(arrays, rng).items() if name != "z"}
        by_kernel = gaussian_moments.available_for(emission.components(start), x, observed)
        least = emission.least_variances(variance) if by_kernel else None
        maximum = climb(
            step, log_likelihood, units.to_standardized(start), len(x), fixed=emission.fixed_sites(), at_bound=emission.at_floor
        )
        maximum = units.to_original(maximum)
        return replace(maximum, notes=(*maximum.notes, *self.remarks(arrays, maximum.values)))

    def remarks(self, arrays: Arrays, values: Mapping[str, np.ndarray]) -> list[str]:
        units = Units.of(self.emission, arrays)
        tensors = units.to_standardized({name: torch.as_tensor(value) for name, value in values.items()})
        density = units.emission.components(tensors).log_prob(units.arrays["x"], units.arrays.get("mask"))
        probs = torch.softmax(torch.log(tensors["weights"]) + density, -1)
        sizes = probs.sum(0).numpy()
        notes = [f"component {k} is empty: {size:.2g} expected units" for k, size in enumerate(sizes) if size < 1]
        notes += degenerate(units, tensors, probs, "component")
        groups = coinciding(density, np.flatnonzero(sizes >= 1))
        return notes + [f"components {joined(group)} coincide: their weights are not identified" for group in groups]

    # -- data

    def check(self, dataset: Dataset) -> None:
        """Reject data that are not a table, have fewer distinct units than components, or cannot be emitted.

        Raises:
            DataError: Names both numbers, or the column.
        """
        what = f"{type(self).__name__}: {dataset.name}"
        check_table(what, dataset)
        n_units = len(dataset.x)
        if n_units < self.n_components:
            raise DataError(f"{what} has {n_units} units; n_components = {self.n_components} needs at least {self.n_components}.")
        n_distinct = len(np.unique(np.nan_to_num(dataset.x, nan=np.inf), axis=0))
        if n_distinct < self.n_components:
            raise DataError(
                f"{what} has {n_distinct} distinct units; n_components = {self.n_components} needs at least {self.n_components}."
            )
        self.emission.check(what, dataset)

    def check_maximum(self, dataset: Dataset) -> None:
        """Reject data for which the likelihood of every component is unbounded.

        Raises:
            DataError: Names the columns.
        """
        self.emission.check_bound(f"{type(self).__name__}: {dataset.name}", dataset)

    def cautions(self, dataset: Dataset) -> list[Caution]:
        return [Caution("data", note, 1.0, "no note") for note in self.emission.cautions(dataset)]

    def check_new(self, dataset: Dataset) -> None:
        """Reject values that the components cannot emit.

        Raises:
            DataError: Names column, unit and value.
        """
        check_new_table(f"{type(self).__name__}: {dataset.name}", dataset, self.emission)

    def initialize(self, arrays: Arrays, rng: np.random.Generator) -> dict[str, Any]:
        """Start from the cluster shares, means and spreads of the k-means run of highest likelihood among `N_STARTS`."""
        units = Units.of(self.emission, arrays).arrays
        starts = [self._from_labels(arrays, k_means(units, self.n_components, rng)) for _ in range(N_STARTS)]
        return max(starts, key=lambda start: self._level(arrays, start))

    def _level(self, arrays: Arrays, values: Mapping[str, Any]) -> float:
        """Log likelihood rounded to 1e-6, so that rounding errors do not decide between identical starts."""
        tensors = {name: torch.as_tensor(value) for name, value in values.items()}
        return round(float(self._mixture(arrays, tensors).log_prob_sum(arrays["x"])), 6)

    def _from_labels(self, arrays: Arrays, labels: np.ndarray) -> dict[str, Any]:
        indicators = torch.eye(self.n_components, dtype=torch.float64)[torch.from_numpy(labels)]
        values = self.emission.maximum(arrays["x"], arrays.get("mask"), indicators, shrink=SHRINK)
        if not self.emission.exchangeable:
            indicators = indicators[:, matching_order(self.emission, values)]
            values = self.emission.maximum(arrays["x"], arrays.get("mask"), indicators, shrink=SHRINK)
        weights = (indicators.mean(0) + LEAST_WEIGHT) / (1 + LEAST_WEIGHT * self.n_components)
        return {"weights": weights, **values, "z": indicators.argmax(-1)}

    def simulate(self, rng: np.random.Generator, n_units: int, n_features: int = 2) -> Dataset:
        """Draw the sites from their priors, and the data from the model."""
        weights = self._draw_weights(rng)
        values = self.emission.draw(rng, n_features)
        z = rng.choice(self.n_components, size=n_units, p=weights["weights"] / weights["weights"].sum())
        x = sample_data(self.emission, values, z, rng)
        dataset = Dataset({"x": x}, dims={"x": ("unit", "feature")}, name=f"simulated {self.name}")
        return replace(dataset, truth={**weights, **values, "z": z}, truth_dims=dict(self.dims))

    def _draw_weights(self, rng: np.random.Generator) -> dict[str, np.ndarray]:
        return {"weights": rng.dirichlet(self.concentration.numpy())}


# -- functions of mixtures and hidden Markov models


def check_table(what: str, dataset: Dataset) -> None:
    """Reject data without an array `x` of dims (unit, feature), or with a column without observed entries.

    Raises:
        DataError: Names the array, or the column.
    """
    require_table(what, dataset)
    observed = ~np.isnan(dataset.x)
    if not observed.any(0).all():
        raise DataError(f"{what}: column {str(dataset.features[~observed.any(0)][0])!r} has no observed entry; remove it.")


def check_new_table(what: str, dataset: Dataset, emission: Emission) -> None:
    """Reject new units with values that no component can emit.

    Raises:
        DataError: Names the array, or column, unit and value.
    """
    require_table(what, dataset)
    emission.check(what, dataset)


def k_means(arrays: Arrays, n_clusters: int, rng: np.random.Generator) -> np.ndarray:
    """Labels `(unit,)` of one run of k-means (k-means++ starts), with missing entries at their column's mean.

    With fewer distinct rows than clusters the labels are random, as for symbols whose states differ only in their transitions.
    """
    x, mask = arrays["x"].numpy(), arrays.get("mask")
    if mask is not None:
        observed = mask.numpy()
        x = np.where(observed, x, (x * observed).sum(0) / np.maximum(observed.sum(0), 1))
    return k_means_labels(x, n_clusters, rng)


def matching_order(emission: Emission, values: Mapping[str, torch.Tensor]) -> np.ndarray:
    """Order of the components `(component,)` with the highest prior density; by the mean of the first feature if `ordered`."""
    from scipy.optimize import linear_sum_assignment

    if getattr(emission, "ordered", False):
        return np.argsort(values["mu"][:, 0].numpy(), kind="stable")
    rows, columns = linear_sum_assignment(emission.log_prior(values).numpy(), maximize=True)
    return rows[np.argsort(columns)]


def imputed(emission: Emission, arrays: Arrays, values: Mapping[str, torch.Tensor]) -> torch.distributions.Distribution:
    """Distribution of x given z, the other sites and the observed entries of the unit."""
    components = emission.components(values)
    labels = values["z"].long()
    if isinstance(components, GaussianComponents) and components.corr is not None and arrays.get("mask") is not None:
        mean, factor = components.completed(labels, arrays["x"], arrays["mask"])
        return Filled(mean, factor)
    return emission.entries(components, labels)


@dataclass(frozen=True)
class Units:
    """Data standardised by column for maximum likelihood, so that floors and tolerances are relative to the data.

    `emission` is the emission for standardised data. `log_volume` is the log Jacobian, which is subtracted from the log
    likelihood of standardised data to obtain that of the original data.
    """

    emission: Any
    arrays: Arrays
    loc: torch.Tensor | None = None
    scale: torch.Tensor | None = None
    log_volume: float = 0.0

    @staticmethod
    def of(emission: Emission, arrays: Arrays) -> "Units":
        x, observed = arrays["x"], arrays.get("mask")
        units = emission.units(x, observed)
        if units is None:
            return Units(emission, arrays)
        loc, scale = units
        count = torch.full_like(scale, len(x)) if observed is None else observed.sum(0)
        volume = float((count * torch.log(scale)).sum())
        return Units(emission.scaled(scale), {**arrays, "x": (x - loc) / scale}, loc, scale, volume)

    def to_standardized(self, values: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Convert values of the sites to standardised data."""
        if self.loc is None or self.scale is None:
            return dict(values)
        standardized = {**values, "mu": (values["mu"] - self.loc) / self.scale}
        standardized["sigma"] = values["sigma"] / self._scale_of(values["sigma"])
        return standardized

    def to_original(self, maximum: MaximumLikelihood) -> MaximumLikelihood:
        """Convert a maximum from standardised to original data."""
        if self.loc is None or self.scale is None:
            return maximum
        mu, sigma = (torch.as_tensor(maximum.values[name]) for name in ("mu", "sigma"))
        values = {"mu": (mu * self.scale + self.loc).numpy(), "sigma": (sigma * self._scale_of(sigma)).numpy()}
        return replace(maximum, values={**maximum.values, **values}, trace=maximum.trace - self.log_volume)

    def _scale_of(self, sigma: torch.Tensor) -> torch.Tensor:
        scale: Any = self.scale
        return scale if sigma.shape[-1:] == scale.shape else scale[0]  # all scales are equal for a spherical covariance


def degenerate(units: Units, values: Mapping[str, torch.Tensor], probs: torch.Tensor, what: str) -> list[str]:
    """Notes on the components at the floor of the variances, and on whether the likelihood is unbounded there.

    Args:
        units: The standardised data.
        values: Values of the sites for these.
        probs: Probabilities of the components for each unit.
        what: Noun for a component.
    """
    components = units.emission.components(values)
    if not isinstance(components, GaussianComponents) or units.emission.fixed_sites():
        return []
    x, observed, labels = units.arrays["x"], units.arrays.get("mask"), probs.argmax(-1)
    low = components.smallest_scale() < NEAR * FLOOR**0.5
    if low.dim() == 0:
        if not bool(low):
            return []
        reason = _floor_reason(units.emission, x - components.mu[labels], observed)
        return [f"the covariance shared by all {what}s is at the lower bound of the variances{reason}"]
    notes = []
    for k in torch.nonzero(low)[:, 0].tolist():
        members = labels == k
        reason = _floor_reason(units.emission, x[members], None if observed is None else observed[members])
        notes.append(f"{what} {k} ({float(probs[:, k].sum()):.3g} units) is at the lower bound of the variances{reason}")
    return notes


def _floor_reason(emission: Emission, x: torch.Tensor, observed: torch.Tensor | None) -> str:
    if len(x) and emission.unbounded(x, observed):
        return ": the likelihood is unbounded there"
    return f", a standard deviation of {FLOOR**0.5:.0e} times that of the data"


def coinciding(density: torch.Tensor, which: np.ndarray) -> list[list[int]]:
    """Groups of coinciding components among `which`: log densities `(unit, component)` differ by less than `COINCIDE`."""
    groups: list[list[int]] = []
    for k in which.tolist():
        for group in groups:
            if float((density[:, k] - density[:, group[0]]).abs().max()) < COINCIDE:
                group.append(k)
                break
        else:
            groups.append([k])
    return [group for group in groups if len(group) > 1]


def joined(numbers: list[int]) -> str:
    """Join numbers by commas.

    Example:
        >>> joined([0, 1, 2])
        '0, 1, 2'
    """
    return ", ".join(map(str, numbers))


def sample_data(emission: Emission, values: Mapping[str, np.ndarray], labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw data `(unit, feature)` from the components given by the labels."""
    components = emission.components({name: torch.as_tensor(value) for name, value in values.items()})
    with forked():
        reseed(int(rng.integers(2**63)))
        return components.sample(torch.from_numpy(labels)).numpy()
