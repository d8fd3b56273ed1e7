r"""Map from the reals to Cholesky factors of correlation matrices with few operations."""

import functools
import math

import numpy as np
import torch
from torch.distributions.transforms import CorrCholeskyTransform
from torch.nn.functional import logsigmoid

WIDE = 12
"""Number of rows above which the products with 0/1 matrices cost more than the scans of torch."""


class ToCorrelation(CorrCholeskyTransform):
    r"""Signed stick-breaking map of torch, on the log scale, for entries $u_{ij}$, $i > j$, in the order of the rows.

    With $s_{ij} = \log \text{sech}(u_{ij}) = \frac12 \log(1 - \tanh^2 u_{ij})$,
    $$ L_{ij} = \tanh(u_{ij}) \exp \sum_{k<j} s_{ik}, \quad L_{ii} = \exp \sum_{k<i} s_{ik}, \quad
       \log |J| = \sum_{i>j} (i - j + 1) s_{ij}. $$
    Torch computes cumulative products of $1 - \tanh^2$, whose derivatives take about fifty operations. It clips tanh at a
    distance of 2e-16 from 1; this class clips the logs of the products, at that of the smallest normal float (2e-308 in float64).

    References:
        Lewandowski, Kurowicka & Joe (2009), Generating random correlation matrices, J. Multivariate Analysis 100:1989. Stan
        Reference Manual, section on Cholesky factors of correlation matrices.

    Example:
        >>> ToCorrelation()(torch.zeros(1))
        tensor([[1., 0.],
                [0., 1.]])
    """

    def _call(self, x: torch.Tensor) -> torch.Tensor:
        n = self.forward_shape(x.shape)[-1]
        if n > WIDE:
            return super()._call(x)
        placed, before, _ = (torch.from_numpy(one).to(x) for one in _tables(n))
        logs = _product(_log_sech(x), before).clamp(min=math.log(torch.finfo(x.dtype).tiny))
        entries = _product(torch.tanh(x), placed) + torch.eye(n, dtype=x.dtype, device=x.device).reshape(-1)
        return (entries * torch.exp(logs)).reshape(*x.shape[:-1], n, n)

    def log_abs_det_jacobian(self, x: torch.Tensor, y: torch.Tensor, intermediates: None = None) -> torch.Tensor:
        return (_log_sech(x) * torch.from_numpy(_tables(y.shape[-1])[2]).to(x)).sum(-1)


def _product(x: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """Compute `x @ matrix.T`; unlike that of a matrix product, its last digit does not depend on the number of rows of x."""
    return (x[..., None, :] * matrix).sum(-1)


def _log_sech(x: torch.Tensor) -> torch.Tensor:
    return math.log(2) - x + logsigmoid(2 * x)


@functools.cache
def _tables(n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return 0/1 matrices `(n^2, entry)` and weights `(entry,)`.

    They map entries to their places in the flat matrix, and logs of entries to sums over the entries before each place. The
    weights are those of the log Jacobian.
    """
    rows, columns = np.tril_indices(n, -1)
    i, j = np.divmod(np.arange(n * n), n)
    same_row = rows[:, None] == i
    placed, before = same_row & (columns[:, None] == j), same_row & (columns[:, None] < j) & (j <= i)
    return placed.T.astype(float), before.T.astype(float), (rows - columns + 1).astype(float)
