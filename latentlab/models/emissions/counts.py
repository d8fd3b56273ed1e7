"""Bernoulli, Poisson and categorical emissions."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyro.distributions as dist
import torch

from latentlab.data.dataset import Dataset
from latentlab.distributions.components import BernoulliComponents, CategoricalComponents, PoissonComponents
from latentlab.models.emissions.base import FEW, LEAST, Emission, PerComponent, check_entries, per_component, weighted_means


class Bernoulli(Emission):
    r"""Bernoulli features, $p_{kd} \sim \mathrm{Beta}(a, a)$."""

    def __init__(self, n_components: int, *, concentration: float) -> None:
        self.n_components, self.exchangeable, self.concentration = n_components, True, concentration

    def dims(self, dim: str) -> dict[str, tuple[str, ...]]:
        return {"probability": (dim, "feature")}

    def components(self, values: Mapping[str, torch.Tensor]) -> BernoulliComponents:
        return BernoulliComponents(values["probability"])

    def entries(self, components: Any, labels: torch.Tensor) -> torch.distributions.Distribution:
        return dist.Bernoulli(components.probability[labels])

    def maximum(
        self,
        x: torch.Tensor,
        observed: torch.Tensor | None,
        weights: torch.Tensor,
        current: Mapping[str, torch.Tensor] | None = None,
        *,
        shrink: float = 0.0,
    ) -> dict[str, torch.Tensor]:
        mean = weighted_means(x, observed, weights, None if current is None else current["probability"], shrink)
        return {"probability": mean.clamp(LEAST, 1 - LEAST)}

    def draw(self, rng: np.random.Generator, n_features: int) -> dict[str, np.ndarray]:
        return {"probability": rng.beta(self.concentration, self.concentration, (self.n_components, n_features))}

    def check(self, what: str, dataset: Dataset) -> None:
        check_entries(what, dataset, (dataset.x != 0) & (dataset.x != 1), "must be 0 or 1, or missing")


class Poisson(Emission):
    r"""Poisson features, $\lambda_{kd} \sim \mathrm{Gamma}(a, a / m)$ with mean m."""

    def __init__(self, owner: str, n_components: int, *, shape: float, mean: PerComponent) -> None:
        self.n_components = n_components
        self.shape = shape
        self.mean = per_component(owner, "rate_mean", mean, n_components)
        self.exchangeable = self.mean.unique().numel() == 1

    def dims(self, dim: str) -> dict[str, tuple[str, ...]]:
        return {"rate": (dim, "feature")}

    def components(self, values: Mapping[str, torch.Tensor]) -> PoissonComponents:
        return PoissonComponents(values["rate"])

    def entries(self, components: Any, labels: torch.Tensor) -> torch.distributions.Distribution:
        return dist.Poisson(components.rate[labels])

    def maximum(
        self,
        x: torch.Tensor,
        observed: torch.Tensor | None,
        weights: torch.Tensor,
        current: Mapping[str, torch.Tensor] | None = None,
        *,
        shrink: float = 0.0,
    ) -> dict[str, torch.Tensor]:
        mean = weighted_means(x, observed, weights, None if current is None else current["rate"], shrink)
        return {"rate": mean.clamp(min=LEAST)}

    def draw(self, rng: np.random.Generator, n_features: int) -> dict[str, np.ndarray]:
        return {"rate": rng.gamma(self.shape, self.mean[:, None].numpy() / self.shape, (self.n_components, n_features))}

    def log_prior(self, values: Mapping[str, torch.Tensor]) -> torch.Tensor:
        prior = dist.Gamma(torch.tensor(self.shape, dtype=torch.float64), self.shape / self.mean[:, None])
        return prior.log_prob(values["rate"][:, None]).sum(-1)

    def check(self, what: str, dataset: Dataset) -> None:
        check_entries(
            what, dataset, (dataset.x < 0) | (dataset.x != np.floor(dataset.x)), "must be a count, a whole number from 0"
        )


class Categorical(Emission):
    r"""Categorical features, $p_{kd} \sim \mathrm{Dirichlet}(a, \dots, a)$ over C categories, coded 0 to C - 1."""

    def __init__(self, n_components: int, *, n_categories: int, concentration: float) -> None:
        self.n_components, self.exchangeable = n_components, True
        self.n_categories, self.concentration = n_categories, concentration

    def dims(self, dim: str) -> dict[str, tuple[str, ...]]:
        return {"probability": (dim, "feature", "category")}

    def components(self, values: Mapping[str, torch.Tensor]) -> CategoricalComponents:
        return CategoricalComponents(values["probability"])

    def entries(self, components: Any, labels: torch.Tensor) -> torch.distributions.Distribution:
        return dist.Categorical(components.probability[labels])

    def maximum(
        self,
        x: torch.Tensor,
        observed: torch.Tensor | None,
        weights: torch.Tensor,
        current: Mapping[str, torch.Tensor] | None = None,
        *,
        shrink: float = 0.0,
    ) -> dict[str, torch.Tensor]:
        indicator = (x[..., None] == torch.arange(self.n_categories, dtype=x.dtype)).to(x.dtype)
        if observed is not None:
            indicator = indicator * observed[..., None]
        counts = torch.einsum("nk,ndc->kdc", weights, indicator)
        counts = counts + shrink * counts.sum(0) / counts.sum(0).sum(-1, keepdim=True).clamp(min=FEW)
        total = counts.sum(-1, keepdim=True)
        even = torch.full_like(counts, 1 / self.n_categories) if current is None else current["probability"]
        probability = torch.where(total > FEW, counts / total.clamp(min=FEW), even).clamp(min=LEAST)
        return {"probability": probability / probability.sum(-1, keepdim=True)}

    def draw(self, rng: np.random.Generator, n_features: int) -> dict[str, np.ndarray]:
        a = np.full(self.n_categories, self.concentration)
        return {"probability": rng.dirichlet(a, (self.n_components, n_features))}

    def check(self, what: str, dataset: Dataset) -> None:
        last = self.n_categories - 1
        invalid = (dataset.x < 0) | (dataset.x > last) | (dataset.x != np.floor(dataset.x))
        check_entries(what, dataset, invalid, f"must be a category, a whole number from 0 to {last} (`n_categories` - 1)")
