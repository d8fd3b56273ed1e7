r"""Gaussians whose covariance is of low rank plus a diagonal, $N(\mu, W W^T + \mathrm{diag}(\psi^2))$, with missing entries.

With $r = x - \mu$ over the observed entries o, $M = I + W_o^T \Psi_o^{-1} W_o$ and $\hat z = M^{-1} W_o^T \Psi_o^{-1} r_o$
(Woodbury identity and matrix determinant lemma),
$$ \log p(x_o) = -\tfrac12 \left[ |o| \log 2\pi + \log|\Psi_o| + \log|M|
   + (r_o - W_o \hat z)^T \Psi_o^{-1} (r_o - W_o \hat z) + \hat z^T \hat z \right], $$
and $z \mid x_o \sim N(\hat z, M^{-1})$. No matrix of size feature x feature is computed. The quadratic form is a sum of squares,
which avoids cancellation if the noise is small.

The sum over N units needs few such forms. Units with the same observed entries have the same M. For n such units with d observed
entries, let $X - 1 \bar x^T = QR$ be the QR decomposition. The d rows of R and $\sqrt n (\bar x - \mu)$ have the same sum of any
quadratic form as the n residuals. They replace the units if n > d + 1.
"""

import ctypes
import math
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from pyro.distributions import MultivariateNormal, TorchDistribution
from torch.distributions import constraints
from torch.utils.weak import WeakIdKeyDictionary

from latentlab.distributions import kernels


class LowRankGaussian(TorchDistribution):
    r"""Rows $x_n = W z_n + \mu + \psi \varepsilon_n$, with $z_n$ and $\varepsilon_n$ standard normal and z marginalised out.

    Args:
        loc: Mean `(feature,)`.
        W: Loadings `(feature, latent)`.
        scale: Standard deviations of the noise, a scalar or `(feature,)`.
        observed: True where an entry was observed, `(unit, feature)`; None if all were. Missing entries are marginalised out.
        batch: Batch shape, broadcast with that of `observed`.
    """

    arg_constraints = {"loc": constraints.real_vector, "W": constraints.real, "scale": constraints.positive}
    support = constraints.real_vector
    has_rsample = True

    def __init__(
        self,
        loc: torch.Tensor,
        W: torch.Tensor,
        scale: torch.Tensor,
        observed: torch.Tensor | None = None,
        *,
        batch: tuple[int, ...] = (),
    ) -> None:
        self.loc, self.W = loc, W
        self.scale = scale.expand(W.shape[:-1])
        self._precision = 1 / self.scale
        self._whitened = W * self._precision[..., None]
        self.observed = observed
        batch = batch if observed is None else np.broadcast_shapes(batch, observed.shape[:-1])
        super().__init__(torch.Size(batch), W.shape[-2:-1], validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "LowRankGaussian":
        return LowRankGaussian(self.loc, self.W, self.scale, self.observed, batch=tuple(batch_shape))

    def rsample(self, sample_shape: Any = ()) -> torch.Tensor:
        shape = self._extended_shape(torch.Size(sample_shape))
        z = torch.randn(*shape[:-1], self.W.shape[-1], dtype=self.W.dtype)
        return self.loc + z @ self.W.mT + self.scale * torch.randn(shape, dtype=self.W.dtype)

    def _factor(self, observed: torch.Tensor | None) -> torch.Tensor:
        """Cholesky factor of M, `(latent, latent)`, or one for each row of `observed`."""
        whitened = self._whitened
        if observed is None:
            M = whitened.mT @ whitened
        else:
            outer = (whitened[:, :, None] * whitened[:, None, :]).reshape(whitened.shape[0], -1)
            M = (observed.to(outer.dtype) @ outer).reshape(*observed.shape[:-1], *2 * whitened.shape[-1:])
        return _cholesky(M + torch.eye(M.shape[-1], dtype=M.dtype))

    def _quadratic(
        self, residual: torch.Tensor, lower: torch.Tensor, observed: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Quadratic form of each row of residuals (0 for missing entries), and conditional means of z `(unit, latent)`."""
        whitened, rows = self._whitened, residual * self._precision
        mean = _cholesky_solve(rows @ whitened, lower)
        fitted = mean @ whitened.mT
        rest = rows - (fitted if observed is None else torch.where(observed, fitted, 0.0))
        return (rest**2).sum(-1) + (mean**2).sum(-1), mean

    def _residual(self, value: torch.Tensor) -> torch.Tensor:
        residual = value - self.loc
        return residual if self.observed is None else torch.where(self.observed, residual, 0.0)

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        lower = self._factor(self.observed)
        quadratic, _ = self._quadratic(self._residual(value), lower, self.observed)
        constants = math.log(2 * math.pi) + 2 * torch.log(self.scale)
        constants = constants.sum(-1) if self.observed is None else (self.observed * constants).sum(-1)
        return -0.5 * (constants + _log_det(lower) + quadratic)

    def log_prob_sum(self, value: torch.Tensor) -> torch.Tensor:
        """Compute `log_prob(value).sum()` by pattern of missing entries; the time does not grow with the units of a pattern."""
        summary = _summary(value, self.observed)
        parameters = (self.loc, self.W, self.scale)
        has_gradient = torch.is_grad_enabled()  # for values alone, Numba is not worth its import
        if summary.patterns is None and has_gradient and kernels.available_for(*parameters, summary.rows):
            data = (summary.rows, summary.share[:, 0], summary.weight[:, 0], summary.n_units)
            return _by_kernel(*parameters, *data)
        return self._log_prob_sum(summary)

    def _log_prob_sum(self, summary: "_Summary") -> torch.Tensor:
        """Compute `log_prob_sum` by operations of torch, on any device and with all derivatives."""
        lower = self._factor(summary.patterns)
        residual = (summary.rows - summary.share * self.loc) * summary.weight
        if summary.observed is not None:
            residual = torch.where(summary.observed, residual, 0.0)
        quadratic, _ = self._quadratic(residual, lower if summary.pattern is None else lower[summary.pattern], summary.observed)
        constants = (summary.n_observed * (math.log(2 * math.pi) + 2 * torch.log(self.scale))).sum()
        return -0.5 * (constants + (summary.n_units * _log_det(lower)).sum() + quadratic.sum())

    def conditional(self, value: torch.Tensor) -> MultivariateNormal:
        """Return the distribution of z given the observed entries of `value`, with batch `(unit,)` and event `(latent,)`."""
        lower = self._factor(self.observed)
        _, mean = self._quadratic(self._residual(value), lower, self.observed)
        return multivariate_normal(mean, torch.linalg.cholesky_ex(torch.cholesky_inverse(lower))[0])


class _MultivariateNormal(MultivariateNormal):
    """Pyro's multivariate normal distribution with an `rsample` that works under `torch.vmap`; the draws are the same."""

    def rsample(self, sample_shape: Any = ()) -> torch.Tensor:
        noise = torch.randn(self._extended_shape(torch.Size(sample_shape)), dtype=self.loc.dtype)
        return self.loc + (self._unbroadcasted_scale_tril @ noise[..., None])[..., 0]


def multivariate_normal(loc: torch.Tensor, scale_tril: torch.Tensor) -> MultivariateNormal:
    """Return Pyro's distribution without a call of its constructor, which imports SymPy and takes half a second.

    Args:
        loc: Means, `(*batch, event)`.
        scale_tril: Cholesky factor, `(event, event)`, or one for each member of the batch.

    Example:
        >>> multivariate_normal(torch.zeros(5, 2), torch.eye(2)).sample((3,)).shape
        torch.Size([3, 5, 2])
    """
    result = _MultivariateNormal.__new__(_MultivariateNormal)
    result.loc, result._unbroadcasted_scale_tril = loc, scale_tril
    torch.distributions.Distribution.__init__(result, loc.shape[:-1], loc.shape[-1:], validate_args=False)
    return result


@dataclass(frozen=True)
class _Summary:
    """Rows with the same sum of quadratic forms as the residuals of the data, and counts for the log density.

    Args:
        rows: Rows `(row, feature)`; the residuals are `weight * (rows - share * loc)` over the observed entries.
        share: 1 for a unit or a mean of units, 0 for a row of R; `(row, 1)`.
        weight: Weight of each row, `(row, 1)`.
        observed: Observed entries of each row; None if nothing is missing.
        pattern: Index of each row's pattern; None if nothing is missing, or if row i has pattern i.
        patterns: Observed entries of each pattern; None if nothing is missing.
        n_units: Number of units of each pattern.
        n_observed: Number of units in which each feature was observed.
    """

    rows: torch.Tensor
    share: torch.Tensor
    weight: torch.Tensor
    observed: torch.Tensor | None
    pattern: torch.Tensor | None
    patterns: torch.Tensor | None
    n_units: torch.Tensor
    n_observed: torch.Tensor


def _in_torch(
    loc: torch.Tensor,
    W: torch.Tensor,
    scale: torch.Tensor,
    rows: torch.Tensor,
    share: torch.Tensor,
    weight: torch.Tensor,
    n_units: torch.Tensor,
) -> torch.Tensor:
    summary = _Summary(rows, share[:, None], weight[:, None], None, None, None, n_units, n_units.expand(rows.shape[-1]))
    return LowRankGaussian(loc, W, scale)._log_prob_sum(summary)


def _formula(
    loc: torch.Tensor,
    W: torch.Tensor,
    scale: torch.Tensor,
    rows: torch.Tensor,
    share: torch.Tensor,
    weight: torch.Tensor,
    n_units: torch.Tensor,
) -> tuple[torch.Tensor, ...]:
    """Compute value and gradients of the kernel by operations of torch, which a compiler can fuse; with any batch dims.

    Without the kernel's reflections, gradients lose digits where a standard deviation is below 1e-5 of the loadings (1% at 1e-7).
    The value is NaN below about 1e-8, which a fit reports.
    """
    precision = 1 / scale
    V = W * precision[..., None]
    lower = _cholesky(V.mT @ V + torch.eye(W.shape[-1], dtype=W.dtype))
    r = (rows - share[:, None] * loc[..., None, :]) * weight[:, None] * precision[..., None, :]
    z = _solved_rows(r @ V, lower)
    e = r - z @ V.mT
    w = _solved_rows(e @ V - z, lower)  # one step of iterative refinement, as in the kernel
    z, e = z + w, e - w @ V.mT
    squares = (e**2).sum((-2, -1)) + (z**2).sum((-2, -1))
    constants = (math.log(2 * math.pi) + 2 * torch.log(scale)).sum(-1) + _log_det(lower)
    of_V = e.mT @ z - n_units * _solved_rows(V, lower)
    of_scale = precision * ((e * r).sum(-2) - (V * of_V).sum(-1) - n_units)
    of_loc = precision * (e * (weight * share)[:, None]).sum(-2)
    return -0.5 * (n_units[0] * constants + squares), of_loc, precision[..., None] * of_V, of_scale


def _solved_rows(b: torch.Tensor, lower: torch.Tensor) -> torch.Tensor:
    """Solve for the rows of b `(..., row, n)` with the matrix of one factor `(..., n, n)` for all rows."""
    if lower.shape[-1] > UNROLLED:
        return torch.cholesky_solve(b.mT, lower).mT
    return _cholesky_solve(b, lower[..., None, :, :])


_by_kernel = kernels.operation(
    kernels.low_rank_gaussian,
    (1, 2, 1, 2, 1, 1, 1),
    3,
    _in_torch,
    batched=kernels.low_rank_gaussians,
    formula=_formula,
)
_SUMMARIES = WeakIdKeyDictionary()
"""Cache by data tensor, for as long as the tensor exists: checksums of the values and of the mask, and the summary."""


def _summary(x: torch.Tensor, observed: torch.Tensor | None) -> _Summary:
    """Return the cached summary of x `(unit, feature)`; units without observed entries are omitted.

    A tensor that was changed in place has another summary.
    """
    key = _checksum(x), None if observed is None else _checksum(observed)
    cached = _SUMMARIES.get(x)
    if cached is None or cached[0] != key:
        cached = _SUMMARIES[x] = (key, _summarised(x, observed))
    return cached[1]


def _checksum(values: torch.Tensor) -> int:
    """Return a checksum of the memory of a tensor; `values.numpy()` is an operation, whose result is empty within `vmap`."""
    if values.device.type != "cpu" or not values.is_contiguous():
        return zlib.crc32(values.detach().cpu().contiguous().numpy().data)
    n_bytes = values.numel() * values.element_size()
    return zlib.crc32((ctypes.c_ubyte * n_bytes).from_address(values.data_ptr())) if n_bytes else 0


def _summarised(x: torch.Tensor, observed: torch.Tensor | None) -> _Summary:
    """Compute the summary: rows of R and the mean for patterns with many units, the units for other patterns."""
    values = x.detach().cpu().numpy()
    seen = np.ones(values.shape, dtype=bool) if observed is None else observed.cpu().numpy().astype(bool)
    units = np.flatnonzero(seen.any(1))
    codes, pattern, counts = np.unique(np.packbits(seen[units], axis=1), axis=0, return_inverse=True, return_counts=True)
    patterns = np.unpackbits(codes, axis=1, count=values.shape[1]).astype(bool)
    pattern = pattern.reshape(-1)
    compressed = counts > patterns.sum(1) + 1
    order, first = np.argsort(pattern, kind="stable"), np.cumsum(counts) - counts
    single = order[~compressed[pattern[order]]]
    parts = [(values[units[single]], np.ones(len(single)), np.ones(len(single)), pattern[single])]
    for number in np.flatnonzero(compressed):
        group = values[units[order[first[number] : first[number] + counts[number]]]]
        where = np.flatnonzero(patterns[number])
        mean = group.mean(0)
        rows = np.zeros((len(where) + 1, values.shape[1]))
        rows[:-1, where] = np.linalg.qr((group - mean)[:, where], mode="r")
        rows[-1] = mean
        last = np.r_[np.zeros(len(where)), 1.0]
        parts.append((rows, last, np.where(last, np.sqrt(counts[number]), 1.0), np.full(len(rows), number)))
    rows, share, weight, numbers = (np.concatenate(column) for column in zip(*parts, strict=True))
    whole = len(patterns) == 1 and bool(patterns.all())
    row_is_pattern = len(patterns) == len(numbers) and bool((numbers == np.arange(len(numbers))).all())

    def tensor(array: np.ndarray) -> torch.Tensor:
        result = torch.from_numpy(np.ascontiguousarray(array))
        return result.to(x.device, x.dtype) if result.is_floating_point() else result.to(x.device)

    return _Summary(
        tensor(rows),
        tensor(share[:, None]),
        tensor(weight[:, None]),
        None if whole else tensor(patterns[numbers]),
        None if whole or row_is_pattern else tensor(numbers),
        None if whole else tensor(patterns),
        tensor(counts.astype(np.float64)),
        tensor(seen.sum(0).astype(np.float64)),
    )


UNROLLED = 6
"""Largest number of latent dimensions for entrywise factorisation of a complete batch; LAPACK processes matrices one by one."""


def _cholesky(matrix: torch.Tensor) -> torch.Tensor:
    """Lower Cholesky factor; NaN if the matrix is not positive definite."""
    n = matrix.shape[-1]
    if n > UNROLLED:
        return cholesky_or_nan(matrix)
    columns: list[torch.Tensor] = []
    for j, whole in enumerate(matrix.unbind(-1)):
        column = whole[..., j:]
        for k, before in enumerate(columns):
            column = column - before[..., j - k :] * before[..., j - k, None]
        columns.append(column * torch.rsqrt(column[..., :1]))
    return torch.stack([torch.nn.functional.pad(column, (j, 0)) for j, column in enumerate(columns)], -1)


def _cholesky_solve(b: torch.Tensor, lower: torch.Tensor) -> torch.Tensor:
    """Solve for rows of b `(row, n)` with the matrix of the Cholesky factor, or with one matrix per row."""
    n = lower.shape[-1]
    if n > UNROLLED:
        per_row = lower.dim() > 2
        return torch.cholesky_solve(b[..., None], lower)[..., 0] if per_row else torch.cholesky_solve(b.mT, lower).mT
    entries = [row.unbind(-1) for row in lower.unbind(-2)]
    inverse = [1 / row[j] for j, row in enumerate(entries)]
    y: list[torch.Tensor] = []
    for j, rest in enumerate(b.unbind(-1)):
        for k in range(j):
            rest = rest - entries[j][k] * y[k]
        y.append(rest * inverse[j])
    z: list[torch.Tensor] = []
    for j in reversed(range(n)):
        rest = y[j]
        for k, after in zip(range(n - 1, j, -1), z, strict=True):
            rest = rest - entries[k][j] * after
        z.append(rest * inverse[j])
    return torch.stack(z[::-1], -1)


def _log_det(lower: torch.Tensor) -> torch.Tensor:
    """Log determinant of the matrix with this Cholesky factor."""
    return 2 * torch.log(torch.diagonal(lower, dim1=-2, dim2=-1)).sum(-1)


def cholesky_or_nan(matrix: torch.Tensor) -> torch.Tensor:
    """Compute the lower Cholesky factor; NaN for matrices of a batch that are not positive definite, for which torch raises."""
    lower, info = torch.linalg.cholesky_ex(matrix)
    return torch.where((info > 0)[..., None, None], torch.full_like(lower, math.nan), lower)
