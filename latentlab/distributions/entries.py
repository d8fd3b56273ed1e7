"""Distributions of single entries that torch lacks or has with lower accuracy: on [0, 1], of codes, and on a grid."""

from typing import Any, Self

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch.distributions import constraints
from torch.nn.functional import logsigmoid

SMALL = 0.1
"""Half logit below which series replace closed forms, whose terms cancel; the first omitted term is below 1e-16."""

LARGE = 1e3
"""Dispersion above which Stirling's series replaces log gamma functions, whose difference cancels."""


class _Entries(TorchDistribution):
    """Independent entries; the arguments are tensors with the batch shape, or with further axes after it."""

    arg_constraints = {}
    names: tuple[str, ...] = ()
    n_inner = 0
    """Number of axes of the first argument after those of the batch."""

    def __init__(self, *arguments: torch.Tensor, validate_args: bool | None = None) -> None:
        first = arguments[0].shape[: arguments[0].dim() - self.n_inner]
        shape = torch.broadcast_shapes(first, *(one.shape for one in arguments[1:]))
        for name, value in zip(self.names, arguments, strict=True):
            inner = value.shape[len(first) :] if name == self.names[0] else ()
            setattr(self, name, value.expand(shape + torch.Size(inner)))
        super().__init__(shape, validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Self:
        new: Any = self._get_checked_instance(type(self), _instance)
        new.__dict__.update(self.__dict__)
        inner = getattr(self, self.names[0]).shape[len(self.batch_shape) :]
        for i, name in enumerate(self.names):
            setattr(new, name, getattr(self, name).expand(torch.Size(batch_shape) + (inner if i == 0 else torch.Size())))
        TorchDistribution.__init__(new, torch.Size(batch_shape), validate_args=False)
        new._validate_args = self._validate_args
        return new

    def sample(self, sample_shape: Any = ()) -> torch.Tensor:
        shape = torch.Size(sample_shape) + self.batch_shape
        with torch.no_grad():
            return self.icdf(torch.rand(shape, dtype=getattr(self, self.names[0]).dtype))


class ContinuousBernoulli(_Entries):
    r"""Continuous Bernoulli on [0, 1] with logit $\ell$: $p(x) = e^{\ell x} \, \ell / (e^\ell - 1)$.

    With $h = \ell / 2$, $\log p(x) = \ell (x - \tfrac12) - \log(\sinh h / h)$. The last term is even in h, and a series near 0.

    References:
        Loaiza-Ganem & Cunningham (2019), The continuous Bernoulli: fixing a pervasive error in variational autoencoders, NeurIPS.
    """

    support = constraints.unit_interval
    names = ("logits",)
    logits: torch.Tensor

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        if self._validate_args:
            self._validate_sample(value)
        return self.logits * (value - 0.5) - _log_sinh_ratio(0.5 * self.logits)

    @property
    def mean(self) -> torch.Tensor:
        return 0.5 + 0.5 * _langevin(0.5 * self.logits)

    def icdf(self, value: torch.Tensor) -> torch.Tensor:
        size = self.logits.abs()
        safe = torch.where(size < 1e-6, torch.ones_like(size), size)
        u = torch.where(self.logits > 0, 1.0 - value, value)  # 1 - x has the opposite logit
        x = torch.where(size < 1e-6, u, -torch.log1p(u * torch.expm1(-safe)) / safe).clamp(0.0, 1.0)
        return torch.where(self.logits > 0, 1.0 - x, x)


class Codes(_Entries):
    """Codes 0, ..., K - 1 with probabilities softmax(logits), logits `(..., K)`; `mean` is the mean code."""

    names = ("logits",)
    n_inner = 1
    logits: torch.Tensor

    @property
    def support(self) -> Any:
        return constraints.integer_interval(0, self.logits.shape[-1] - 1)

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        if self._validate_args:
            self._validate_sample(value)
        codes = torch.arange(self.logits.shape[-1], dtype=self.logits.dtype, device=self.logits.device)
        observed = (value[..., None] == codes).to(self.logits.dtype)
        return (observed * torch.log_softmax(self.logits, -1)).sum(-1)

    @property
    def probabilities(self) -> torch.Tensor:
        """Probabilities of the codes `(..., K)`."""
        return torch.softmax(self.logits, -1)

    @property
    def mean(self) -> torch.Tensor:
        return self.probabilities @ torch.arange(self.logits.shape[-1], dtype=self.logits.dtype)

    def icdf(self, value: torch.Tensor) -> torch.Tensor:
        below = torch.cumsum(self.probabilities, -1)[..., :-1]
        return (value[..., None] > below).sum(-1).to(value.dtype)


class DiscretisedLogistic(_Entries):
    r"""Logistic variable rounded to the nearest value of a grid; the end values have the probabilities of the tails.

    With $b = (x + w/2 - m) / s$, $a = (x - w/2 - m) / s$ and bin width w,
    $\log [\sigma(b) - \sigma(a)] = \log \sigma(b) + \log \sigma(-a) + \log(1 - e^{-w/s})$, without cancellation.

    Args:
        loc: Location m.
        scale: Scale s, positive.
        grid: First and last value of the grid.
        width: Distance w between values.

    References:
        Salimans, Karpathy, Chen & Kingma (2017), PixelCNN++, ICLR.
    """

    support = constraints.real
    names = ("loc", "scale")
    loc: torch.Tensor
    scale: torch.Tensor

    def __init__(
        self,
        loc: torch.Tensor,
        scale: torch.Tensor,
        grid: tuple[float, float],
        width: float,
        *,
        validate_args: bool | None = None,
    ) -> None:
        self.grid, self.width = grid, width
        super().__init__(loc, scale, validate_args=validate_args)

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        above, below = ((value + half - self.loc) / self.scale for half in (0.5 * self.width, -0.5 * self.width))
        first, last = value < self.grid[0] + 0.5 * self.width, value > self.grid[1] - 0.5 * self.width  # also of rounded values
        zero = torch.zeros_like(above)
        inside = torch.log(-torch.expm1(-self.width / self.scale))
        log_p = torch.where(last, zero, logsigmoid(above)) + torch.where(first, zero, logsigmoid(-below))
        return log_p + torch.where(first | last, zero, inside)

    @property
    def _probabilities(self) -> tuple[torch.Tensor, torch.Tensor]:
        n = round((self.grid[1] - self.grid[0]) / self.width) + 1
        values = self.grid[0] + self.width * torch.arange(n, dtype=self.loc.dtype)
        one = DiscretisedLogistic(self.loc[..., None], self.scale[..., None], self.grid, self.width, validate_args=False)
        return values, torch.exp(one.log_prob(values))

    @property
    def mean(self) -> torch.Tensor:
        values, p = self._probabilities
        return p @ values

    def icdf(self, value: torch.Tensor) -> torch.Tensor:
        at = self.loc + self.scale * torch.logit(value, eps=1e-300 if value.dtype == torch.float64 else 1e-30)
        steps = torch.round((at.clamp(*self.grid) - self.grid[0]) / self.width)
        return self.grid[0] + self.width * steps


class NegativeBinomial(dist.NegativeBinomial):
    r"""Negative binomial distribution, accurate for all dispersions r, whose draws can be vectorised.

    With logits $\eta = \log m - \log r$ and the mean m,
    $\log p(x) = \log \Gamma(r + x) - \log \Gamma(r) - \log x! + \eta x - (r + x) \log(1 + e^\eta)$, in float64. The difference of
    the first two terms is that of Stirling's series for $r \geq$ `LARGE`, without cancellation.
    """

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        if self._validate_args:
            self._validate_sample(value)
        r, logits, x = (one.to(torch.float64) for one in (self.total_count, self.logits, value))
        is_large = r >= LARGE
        small, large = torch.where(is_large, LARGE, r), torch.where(is_large, r, LARGE)
        total = large + x
        series = (total - 0.5) * torch.log1p(x / large) + x * (torch.log(large) - 1.0) + _stirling(total) - _stirling(large)
        ratio = torch.where(is_large, series, torch.lgamma(small + x) - torch.lgamma(small))
        log_p = ratio - torch.lgamma(x + 1.0) + logits * x + (r + x) * logsigmoid(-logits)
        return log_p.to(self.logits.dtype)

    def sample(self, sample_shape: Any = ()) -> torch.Tensor:
        shape = self._extended_shape(torch.Size(sample_shape))
        with torch.no_grad():
            rate = torch._standard_gamma(self.total_count.expand(shape)) * torch.exp(self.logits.expand(shape))
            return torch.poisson(rate)


def _stirling(x: torch.Tensor) -> torch.Tensor:
    r"""Compute $\log \Gamma(x) - (x - \tfrac12) \log x + x - \tfrac12 \log 2 \pi$ for x of at least `LARGE`, to 1e-18."""
    return 1.0 / (12.0 * x) - 1.0 / (360.0 * x**3)


def _log_sinh_ratio(h: torch.Tensor) -> torch.Tensor:
    """Compute log(sinh(h) / h)."""
    small = h.abs() < SMALL
    safe = torch.where(small, torch.ones_like(h), h).abs()
    closed = safe + torch.log(-torch.expm1(-2.0 * safe)) - torch.log(2.0 * safe)
    series = h**2 / 6.0 - h**4 / 180.0 + h**6 / 2835.0 - h**8 / 37800.0 + h**10 / 467775.0
    return torch.where(small, series, closed)


def _langevin(h: torch.Tensor) -> torch.Tensor:
    """Compute coth(h) - 1 / h."""
    small = h.abs() < SMALL
    safe = torch.where(small, torch.ones_like(h), h)
    closed = 1.0 / torch.tanh(safe) - 1.0 / safe
    series = h / 3.0 - h**3 / 45.0 + 2.0 * h**5 / 945.0 - h**7 / 4725.0 + 2.0 * h**9 / 93555.0
    return torch.where(small, series, closed)


def inverse_softplus(value: torch.Tensor) -> torch.Tensor:
    """Compute the x at which log(1 + exp(x)) is this positive value."""
    return value + torch.log(-torch.expm1(-value))
