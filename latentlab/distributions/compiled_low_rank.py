"""Log density of complete rows of a Gaussian of low rank plus a diagonal, compiled by Numba."""

import math
from typing import Any

import numpy as np

from latentlab.distributions.compiled_exponentials import LOG_2PI
from latentlab.distributions.loops import compiled


@compiled
def _cholesky(matrix: Any) -> float:
    """Replace a symmetric matrix by its lower Cholesky factor; return the log determinant, NaN if it is not positive definite."""
    n, log_det = len(matrix), 0.0
    for j in range(n):
        for i in range(j, n):
            total = matrix[i, j]
            for k in range(j):
                total -= matrix[i, k] * matrix[j, k]
            if i == j:
                log_det += math.log(total) if total > 0 else np.nan
                matrix[j, j] = math.sqrt(total) if total > 0 else np.nan
            else:
                matrix[i, j] = total / matrix[j, j]
    return log_det


@compiled
def _solve(lower: Any, b: Any) -> None:
    """Replace b by the solution of L L^T z = b."""
    n = len(b)
    for i in range(n):
        for k in range(i):
            b[i] -= lower[i, k] * b[k]
        b[i] /= lower[i, i]
    for i in range(n - 1, -1, -1):
        for k in range(i + 1, n):
            b[i] -= lower[k, i] * b[k]
        b[i] /= lower[i, i]


@compiled
def _row(
    loc: Any, precision: Any, whitened: Any, lower: Any, row: Any, share: float, weight: float, r: Any, e: Any, z: Any, w: Any
) -> float:
    r"""Write r, $z = M^{-1} V^T r$ and $e = r - V z$ of one row; return $r^T C^{-1} r = e^T e + z^T z$; w is a work array.

    Where a variance is small, M is so ill-conditioned that z has few correct digits. The correction $w = M^{-1} (V^T e - z)$ is
    one step of iterative refinement. Without it, the gradient would not be that of the value, which is least at the exact z.
    """
    n_features, n_latent = whitened.shape
    z[:] = 0.0
    for d in range(n_features):
        r[d] = (row[d] - share * loc[d]) * weight * precision[d]
        for k in range(n_latent):
            z[k] += whitened[d, k] * r[d]
    _solve(lower, z)
    w[:] = -z
    for d in range(n_features):
        e[d] = r[d]
        for k in range(n_latent):
            e[d] -= whitened[d, k] * z[k]
        for k in range(n_latent):
            w[k] += whitened[d, k] * e[d]
    _solve(lower, w)
    quadratic = 0.0
    for k in range(n_latent):
        z[k] += w[k]
        quadratic += z[k] * z[k]
    for d in range(n_features):
        for k in range(n_latent):
            e[d] -= whitened[d, k] * w[k]
        quadratic += e[d] * e[d]
    return quadratic


@compiled
def low_rank_gaussian(  # one argument for each array of a compiled loop
    loc: Any, W: Any, scale: Any, rows: Any, share: Any, weight: Any, n_units: Any, d_loc: Any, d_W: Any, d_scale: Any
) -> float:
    r"""Log density of all units; adds its gradients to the last three arguments.

    With $\Psi = \text{diag}(\psi)^2$, the residuals $r$ of the rows divided by $\psi$, $V = \text{diag}(\psi)^{-1} W$,
    $M = I + V^T V$, $z = M^{-1} V^T r$ and $e = r - V z = (I + V V^T)^{-1} r$, the log density is
    $-\frac12 [N \sum_d (\log 2\pi + 2 \log \psi_d) + N \log|M| + \sum (e^T e + z^T z)]$. Its gradients are $-e$ for r and
    $\sum e z^T - N V M^{-1}$ for V.

    Args:
        loc, W, scale: Mean `(feature,)`, loadings `(feature, latent)` and standard deviations of the noise `(feature,)`.
        rows, share, weight: Rows `(row, feature)`; the residuals are `weight * (rows - share * loc)`.
        n_units: Number of units, `(1,)`.
        d_loc, d_W, d_scale: Gradients.
    """
    n_features, n_latent = W.shape
    n = n_units[0]
    precision, whitened, d_whitened = 1 / scale, np.empty((n_features, n_latent)), np.zeros((n_features, n_latent))
    M = np.eye(n_latent)
    for d in range(n_features):
        for k in range(n_latent):
            whitened[d, k] = W[d, k] * precision[d]
            for j in range(n_latent):
                M[k, j] += whitened[d, k] * W[d, j] * precision[d]
    value = n * _cholesky(M)
    r, e, z, w = np.empty(n_features), np.empty(n_features), np.empty(n_latent), np.empty(n_latent)
    for i in range(len(rows)):
        value += _row(loc, precision, whitened, M, rows[i], share[i], weight[i], r, e, z, w)
        for d in range(n_features):
            d_loc[d] += e[d] * precision[d] * weight[i] * share[i]
            d_scale[d] += precision[d] * e[d] * r[d]
            for k in range(n_latent):
                d_whitened[d, k] += e[d] * z[k]
    for d in range(n_features):
        value += n * (LOG_2PI + 2 * math.log(scale[d]))
        d_scale[d] -= n * precision[d]
        for k in range(n_latent):
            z[k] = whitened[d, k]
        _solve(M, z)
        for k in range(n_latent):
            d_whitened[d, k] -= n * z[k]
            d_W[d, k] += precision[d] * d_whitened[d, k]
            d_scale[d] -= precision[d] * whitened[d, k] * d_whitened[d, k]
    return -0.5 * value


@compiled
def low_rank_gaussians(  # one argument for each array of a compiled loop
    loc: Any, W: Any, scale: Any, rows: Any, share: Any, weight: Any, n_units: Any, d_loc: Any, d_W: Any, d_scale: Any, value: Any
) -> None:
    """Write `low_rank_gaussian` of each member of a batch of parameters to `value` `(batch,)`."""
    for b in range(len(value)):
        value[b] = low_rank_gaussian(loc[b], W[b], scale[b], rows, share, weight, n_units, d_loc[b], d_W[b], d_scale[b])
