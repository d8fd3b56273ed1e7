"""Gaussian emissions with spherical, diagonal, full or tied covariances."""

import copy
import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyro.distributions as dist
import torch

from latentlab.data.dataset import Dataset
from latentlab.data.notes import on_outliers
from latentlab.data.transform import NOISE
from latentlab.distributions.components import GaussianComponents
from latentlab.distributions.gaussian_moments import Moments
from latentlab.errors import ConfigError, DataError
from latentlab.models.emissions.base import (
    FEW,
    FEW_VALUES,
    FLOOR,
    MANY,
    MOST_NOTES,
    MOST_PAIRED,
    N_HEAD,
    NEAR,
    Covariance,
    Emission,
    PerComponent,
    SigmaPrior,
    column_means,
    column_variance,
    dependent_column,
    n_distinct,
    per_component,
)
from latentlab.models.fixed import on_default_device


class Gaussian(Emission):
    r"""Gaussian features, $\mu_k \sim N(m_k, s_k^2)$; $\sigma$ log-normal or half-normal; LKJ correlations.

    The likelihood is unbounded if a component collapses onto one unit. The log-normal prior bounds the posterior density there;
    the half-normal prior does not, although its posterior is proper.
    """

    def __init__(  # one keyword for each hyper-parameter
        self,
        owner: str,
        n_components: int,
        *,
        covariance: Covariance,
        mu_loc: PerComponent,
        mu_scale: PerComponent,
        sigma_prior: SigmaPrior,
        sigma_scale: PerComponent,
        sigma_spread: float,
        corr_concentration: float,
        ordered: bool,
    ) -> None:
        self.n_components, self.covariance, self.ordered = n_components, covariance, ordered
        self.mu_loc = per_component(owner, "mu_loc", mu_loc, n_components)
        self.mu_scale = per_component(owner, "mu_scale", mu_scale, n_components)
        self.sigma_scale = per_component(owner, "sigma_scale", sigma_scale, n_components)
        self.sigma_spread = sigma_spread
        self.corr_concentration = corr_concentration
        self.sigma_prior = sigma_prior
        self.unit: float | torch.Tensor = 1.0
        if covariance == "tied" and self.sigma_scale.unique().numel() > 1:
            raise ConfigError(f"{owner}: `sigma_scale` must be one number if `covariance` is 'tied'; got {sigma_scale!r}.")
        equal_priors = all(one.unique().numel() == 1 for one in (self.mu_loc, self.mu_scale, self.sigma_scale))
        self.exchangeable = equal_priors and not ordered

    @property
    def _correlated(self) -> bool:
        return self.covariance in ("full", "tied")

    @property
    def _fixed(self) -> bool:
        return self.sigma_prior == "log_normal" and self.sigma_spread == 0

    def fixed_sites(self) -> tuple[str, ...]:
        return ("sigma",) if self._fixed else ()

    def units(self, x: torch.Tensor, observed: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor] | None:
        variance = column_variance(x, observed)
        if self.covariance == "spherical":
            variance = variance.mean().expand(variance.shape)
        return column_means(x, observed), torch.sqrt(variance)

    def scaled(self, scale: torch.Tensor) -> "Gaussian":
        emission = copy.copy(self)
        emission.unit = scale[0] if self.covariance == "spherical" else scale
        return emission

    def at_floor(self, values: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        if self._fixed:
            return {}
        if not self._correlated:
            return {"sigma": values["sigma"] < NEAR * FLOOR**0.5}
        lower = values["sigma"][..., None] * values["corr"]
        low = torch.linalg.svdvals(lower)[..., -1] < NEAR * FLOOR**0.5
        return {"sigma": low[..., None].expand(values["sigma"].shape), "corr": low[..., None, None].expand(lower.shape)}

    def unbounded(self, x: torch.Tensor, observed: torch.Tensor | None) -> bool:
        if self._fixed:
            return False
        observed_mask = torch.ones_like(x, dtype=torch.bool) if observed is None else observed
        count = observed_mask.sum(0).clamp(min=1)
        mean = (x * observed_mask).sum(0) / count
        spread = torch.sqrt(((x - mean) ** 2 * observed_mask).sum(0) / count)
        constant_columns = spread <= NOISE * torch.where(observed_mask, x.abs(), 0.0).amax(0)
        if self.covariance == "spherical":
            return bool(constant_columns.all())
        if not self._correlated or observed is not None or bool(constant_columns.any()):
            return bool(constant_columns.any())
        return dependent_column(x.numpy()) is not None

    def check_bound(self, what: str, dataset: Dataset) -> None:
        """Reject data with an unbounded likelihood: constant or linearly dependent columns, or too few units for the covariance.

        Raises:
            DataError: Names the column, or the numbers of units and columns.
        """
        if self._fixed:
            return
        x, names = dataset.x, [str(name) for name in dataset.features]
        low, high = np.nanmin(x, 0), np.nanmax(x, 0)
        constant_columns = high - low <= NOISE * np.maximum(np.abs(low), np.abs(high))
        remedy = "remove it, or use a method with a prior (`nuts`, `svi`, `map`)."
        if constant_columns.all() or (constant_columns.any() and self.covariance != "spherical"):
            raise DataError(
                f"{what}: column {names[int(constant_columns.argmax())]!r} is constant, so the likelihood is unbounded; {remedy}"
            )
        if not self._correlated or np.isnan(x).any():
            return
        if len(x) <= x.shape[1]:
            raise DataError(
                f"{what} has {len(x)} units and {x.shape[1]} columns. With covariance {self.covariance!r} the likelihood is "
                "unbounded unless there are more units than columns; use 'diagonal', fewer columns, or a method with a prior "
                "(`nuts`, `svi`, `map`)."
            )
        column = dependent_column(x)
        if column is not None:
            raise DataError(
                f"{what}: column {names[column]!r} is a linear combination of the others, so the likelihood with covariance "
                f"{self.covariance!r} is unbounded; {remedy}"
            )

    def cautions(self, dataset: Dataset) -> list[str]:
        x, head, constant, raw = dataset.x, dataset.x[:N_HEAD], False, dataset.raw()
        notes = on_outliers(raw.x, raw.units.tolist(), raw.features.tolist())
        names = [repr(str(name)) for name in dataset.features]
        for j, name in enumerate(names):
            if n_distinct(head[:, j])[0] > FEW_VALUES:
                continue
            n_values, n_seen = n_distinct(x[:, j])
            if n_values == 1 and len(x) > 1:
                constant = True
                notes.append(f"column {name} is constant: the variance of a component can shrink to 0")
            elif 1 < n_values <= FEW_VALUES and n_seen >= MANY * n_values:
                notes.append(
                    f"column {name} has {n_values} distinct values: a continuous density fits it poorly, "
                    "and components can collapse onto single values"
                )
        for i, j in itertools.combinations(range(min(x.shape[1], MOST_PAIRED)), 2):
            if np.array_equal(head[:, i], head[:, j], equal_nan=True) and np.array_equal(x[:, i], x[:, j], equal_nan=True):
                notes.append(f"columns {names[i]} and {names[j]} are identical")
        if self._correlated and len(x) <= x.shape[1]:
            notes.append(f"{len(x)} units for {x.shape[1]} columns: the covariances depend on the prior")
        elif not constant and self._correlated and not np.isnan(x).any() and (column := dependent_column(x)) is not None:
            notes.append(f"column {names[column]} is a linear combination of the others: the covariance is singular")
        return notes[:MOST_NOTES]

    def dims(self, dim: str) -> dict[str, tuple[str, ...]]:
        sigma = {"spherical": (dim,), "diagonal": (dim, "feature"), "full": (dim, "feature"), "tied": ("feature",)}[
            self.covariance
        ]
        dims: dict[str, tuple[str, ...]] = {"mu": (dim, "feature"), "sigma": sigma}
        if self._correlated:
            dims["corr"] = (*((dim,) if self.covariance == "full" else ()), "feature", "next_feature")
        return dims

    def _sigma_shape(self, n_features: int) -> tuple[int, ...]:
        return {"spherical": (self.n_components,), "tied": (n_features,)}.get(self.covariance, (self.n_components, n_features))

    def median(self, n_features: int) -> torch.Tensor:
        """Prior median of sigma (scale of the half-normal), in the shape of sigma."""
        shape = self._sigma_shape(n_features)
        if self.covariance == "tied":
            return on_default_device(self.sigma_scale)[0].expand(shape) / self.unit
        scale = on_default_device(self.sigma_scale)
        return (scale if len(shape) == 1 else scale[:, None]).expand(shape) / self.unit

    def components(self, values: Mapping[str, torch.Tensor]) -> GaussianComponents:
        sigma = values["sigma"]
        return GaussianComponents(values["mu"], sigma[:, None] if self.covariance == "spherical" else sigma, values.get("corr"))

    def entries(self, components: Any, labels: torch.Tensor) -> torch.distributions.Distribution:
        spread = torch.linalg.vector_norm(components.scale_tril(), dim=-1)
        return dist.Normal(components.mu[labels], spread.expand(components.mu.shape)[labels])

    def maximum(
        self,
        x: torch.Tensor,
        observed: torch.Tensor | None,
        weights: torch.Tensor,
        current: Mapping[str, torch.Tensor] | None = None,
        *,
        shrink: float = 0.0,
    ) -> dict[str, torch.Tensor]:
        fallback = column_means(x, observed) if current is None else current["mu"]
        if self._correlated and observed is not None:
            filled, extra = self._completed(x, observed, fallback, current)
        else:
            filled, extra = x.expand(self.n_components, *x.shape), None
        # (component, unit, feature): a missing entry has weight only if it was imputed
        each = weights.mT[..., None] * (1.0 if observed is None or self._correlated else observed.to(x.dtype))
        total = each.sum(1).expand(self.n_components, x.shape[1])
        mu = (each * filled).sum(1) / total.clamp(min=FEW)
        mu = torch.where(total > FEW, mu, fallback)
        residual = filled - mu[:, None]
        floor = FLOOR * column_variance(x, observed)
        if not self._correlated:
            return {"mu": mu, **self._variances((each * residual**2).sum(1), total, mu, current, shrink, floor)}
        scatter = torch.einsum("kn,knd,kne->kde", weights.mT, residual, residual)
        if extra is not None:
            scatter = scatter + torch.einsum("kn,knde->kde", weights.mT, extra)
        covariances = self._correlations if self._fixed else self._covariances
        return {"mu": mu, **covariances(scatter, weights.sum(0), current, shrink, floor)}

    def least_variances(self, variance: torch.Tensor) -> np.ndarray | None:
        """Lower bounds of the variances of independent features, one per feature, or one for all if spherical; None if fixed."""
        if self._correlated or self._fixed:
            return None
        return FLOOR * (variance.mean()[None] if self.covariance == "spherical" else variance).numpy()

    def at_moments(
        self, moments: Moments, variance: torch.Tensor, current: Mapping[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """Compute `maximum` for complete data from the statistics of each component, and the variances of the columns.

        Free variances of independent features are those of `gaussian_moments.maximum_of_chain` and `maximum_of_mixture`.
        """
        size, mu, scatter = moments
        if self._correlated:
            covariances = self._correlations if self._fixed else self._covariances
            return {"mu": mu, **covariances(scatter, size, current, 0.0, FLOOR * variance)}
        return {"mu": mu, "sigma": current["sigma"]}

    def _variances(
        self,
        squares: torch.Tensor,
        total: torch.Tensor,
        mu: torch.Tensor,
        current: Any,
        shrink: float,
        floor: torch.Tensor,
    ) -> dict[str, torch.Tensor]:
        if self._fixed:
            return {"sigma": self.median(mu.shape[1]).clone()}
        if self.covariance == "spherical":
            squares, total, floor = squares.sum(1), total.sum(1), floor.mean()
        pooled = squares.sum(0) / total.sum(0).clamp(min=FEW)
        variance = (squares + shrink * pooled) / (total + shrink).clamp(min=FEW)
        sigma = torch.sqrt(torch.maximum(variance, floor))
        fallback = torch.sqrt(torch.maximum(pooled, floor)) if current is None else current["sigma"]
        return {"sigma": torch.where(total > FEW, sigma, fallback)}

    def _covariances(
        self, scatter: torch.Tensor, total: torch.Tensor, current: Any, shrink: float, floor: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        pooled = scatter.sum(0) / total.sum()
        diagonal = torch.diag_embed(torch.maximum(torch.diagonal(pooled), floor))
        if self.covariance == "tied":
            covariance = (scatter.sum(0) + shrink * diagonal) / (total.sum() + shrink)
        else:
            covariance = (scatter + shrink * diagonal) / (total + shrink).clamp(min=FEW)[:, None, None]
        unit = torch.sqrt(floor / FLOOR)
        eigenvalues, vectors = torch.linalg.eigh(covariance / unit[:, None] / unit)
        covariance = (vectors * eigenvalues.clamp(min=FLOOR)[..., None, :]) @ vectors.mT * unit[:, None] * unit
        sigma = torch.sqrt(torch.diagonal(covariance, dim1=-2, dim2=-1))
        corr = torch.linalg.cholesky(covariance) / sigma[..., None]
        values = {"sigma": sigma, "corr": corr}
        if self.covariance == "full" and current is not None:
            occupied = total > FEW
            values = {n: torch.where(occupied.reshape(-1, *[1] * (v.dim() - 1)), v, current[n]) for n, v in values.items()}
        return values

    def _correlations(
        self, scatter: torch.Tensor, total: torch.Tensor, current: Any, shrink: float, floor: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Correlations at fixed standard deviations: the scatter's if they raise the expected log likelihood, else current."""
        sigma = self.median(scatter.shape[-1]).clone()
        corr = self._covariances(scatter, total, None, shrink, floor)["corr"]
        if current is None:
            return {"sigma": sigma, "corr": corr}
        if self.covariance == "tied":
            scatter, total = scatter.sum(0), total.sum()

        def level(corr: torch.Tensor) -> torch.Tensor:
            lower = sigma[..., None] * corr
            half = torch.linalg.solve_triangular(lower, scatter, upper=False)
            trace = torch.linalg.solve_triangular(lower, half.mT, upper=False).diagonal(dim1=-2, dim2=-1).sum(-1)
            return -total * torch.log(corr.diagonal(dim1=-2, dim2=-1)).sum(-1) - 0.5 * trace

        better = (level(corr) > level(current["corr"])) & (total > FEW)
        return {"sigma": sigma, "corr": torch.where(better[..., None, None], corr, current["corr"])}

    def _completed(
        self, x: torch.Tensor, observed: torch.Tensor, pooled_mean: torch.Tensor, current: Mapping[str, torch.Tensor] | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Conditional means `(component, unit, feature)` of x given its observed entries, and covariances (None at the start)."""
        if current is None:
            return torch.where(observed, x, pooled_mean).expand(self.n_components, *x.shape), None
        components = self.components(current)
        parts = [components.completed(torch.full((len(x),), k), x, observed) for k in range(self.n_components)]
        factors = torch.stack([factor for _, factor in parts])
        return torch.stack([mean for mean, _ in parts]), factors @ factors.mT

    def draw(self, rng: np.random.Generator, n_features: int) -> dict[str, np.ndarray]:
        shape = (self.n_components, n_features)
        loc, scale = self.mu_loc[:, None].numpy(), self.mu_scale[:, None].numpy()
        mu = loc + scale * rng.standard_normal(shape)
        while self.ordered and (np.diff(mu[:, 0]) <= 0).any():
            mu = loc + scale * rng.standard_normal(shape)
        sigma_scale = self.median(n_features).numpy()
        noise = rng.standard_normal(sigma_scale.shape)
        sigma = (
            np.abs(sigma_scale * noise) if self.sigma_prior == "half_normal" else sigma_scale * np.exp(self.sigma_spread * noise)
        )
        values = {"mu": mu, "sigma": sigma}
        if self._correlated:
            n = self.n_components if self.covariance == "full" else 1
            corr = np.stack([_lkj_factor(rng, n_features, self.corr_concentration) for _ in range(n)])
            values["corr"] = corr if self.covariance == "full" else corr[0]
        return values

    def log_prior(self, values: Mapping[str, torch.Tensor]) -> torch.Tensor:
        mu = values["mu"]
        return dist.Normal(self.mu_loc[:, None], self.mu_scale[:, None]).log_prob(mu[:, None]).sum(-1)

    def check(self, what: str, dataset: Dataset) -> None:
        n_features = dataset.x.shape[1]
        if self._correlated and n_features < 2:
            raise DataError(f"{what} has one feature; covariance {self.covariance!r} needs at least two; use 'diagonal'.")
        if self.ordered and n_features != 1:
            raise DataError(f"{what} has {n_features} features; `ordered` needs exactly one.")


def _lkj_factor(rng: np.random.Generator, n: int, concentration: float) -> np.ndarray:
    """Draw the Cholesky factor of an LKJ correlation matrix by the onion method (Lewandowski et al. 2009, section 3.2)."""
    lower = np.zeros((n, n))
    lower[0, 0] = 1.0
    for i in range(1, n):
        square = rng.beta(i / 2, concentration + (n - 1 - i) / 2)
        direction = rng.standard_normal(i)
        lower[i, :i] = np.sqrt(square) * direction / np.linalg.norm(direction)
        lower[i, i] = np.sqrt(1 - square)
    return lower
