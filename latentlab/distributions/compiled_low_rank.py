"""Log density of complete rows of a Gaussian of low rank plus a diagonal, compiled by Numba."""

import math
from typing import Any

import numpy as np

from latentlab.distributions.compiled_exponentials import LOG_2PI
from latentlab.distributions.loops import compiled, summing


@compiled
def _cholesky(matrix: Any) -> float:
    """Replace a symmetric matrix by its lower Cholesky factor, with the reciprocal of the diagonal; return the log determinant.

    Only the lower triangle is read. The log determinant is NaN if the matrix is not positive definite.
    """
    n, log_det = len(matrix), 0.0
    for j in range(n):
        for i in range(j, n):
            total = matrix[i, j]
            for k in range(j):
                total -= matrix[i, k] * matrix[j, k]
            if i == j:
                log_det += math.log(total) if total > 0 else np.nan
                matrix[j, j] = 1 / math.sqrt(total) if total > 0 else np.nan
            else:
                matrix[i, j] = total * matrix[j, j]
    return log_det


@compiled
def _solve(lower: Any, b: Any) -> None:
    """Replace b by the solution of L L^T z = b; the diagonal of `lower` has the reciprocals of that of L."""
    n = len(b)
    for i in range(n):
        for k in range(i):
            b[i] -= lower[i, k] * b[k]
        b[i] *= lower[i, i]
    for i in range(n - 1, -1, -1):
        for k in range(i + 1, n):
            b[i] -= lower[k, i] * b[k]
        b[i] *= lower[i, i]


@compiled
def _reflected(V: Any) -> Any:
    r"""Apply Householder reflections to the latent dimensions of V `(latent, feature)`; return their product H, V = H V before.

    The first reflection gives the feature with the longest column zeros from the second dimension on, and so on for the other
    dimensions. If a variance is tiny, its large column then has one entry, which enters only one entry of $V V^T$. The Cholesky
    factor of $I + V V^T$ does not lose the other columns to rounding.
    """
    n_latent, n_features = V.shape
    H = np.eye(n_latent)
    u = np.empty(n_latent)
    for k in range(n_latent - 1):
        most, at = 0.0, -1
        for d in range(n_features):
            total = 0.0
            for j in range(k, n_latent):
                total += V[j, d] ** 2
            if total > most:
                most, at = total, d
        if at < 0 or not np.isfinite(most):
            return H
        u[k:] = V[k:, at]
        u[k] += math.copysign(math.sqrt(most), u[k])
        length = 0.0
        for j in range(k, n_latent):
            length += u[j] ** 2
        for matrix in (V, H):
            for d in range(matrix.shape[1]):
                total = 0.0
                for j in range(k, n_latent):
                    total += u[j] * matrix[j, d]
                for j in range(k, n_latent):
                    matrix[j, d] -= 2 * total / length * u[j]
        V[k + 1 :, at] = 0.0
    return H


@summing
def _row(lower: Any, V: Any, r: Any, e: Any, z: Any, w: Any) -> float:
    r"""Write $z = M^{-1} V r$ and $e = r - V^T z$ for the residuals r of a row; return $e^T e + z^T z$; w is a work array.

    Where a variance is small, M is so ill-conditioned that z has few correct digits. The correction $w = M^{-1} (V e - z)$ is
    one step of iterative refinement. Without it, the gradient would not be that of the value, which is least at the exact z.
    """
    n_latent, n_features = V.shape
    e[:] = r
    for k in range(n_latent):
        total = 0.0
        for d in range(n_features):
            total += V[k, d] * r[d]
        z[k] = total
    _solve(lower, z)
    for k in range(n_latent):
        for d in range(n_features):
            e[d] -= V[k, d] * z[k]
    for k in range(n_latent):
        total = -z[k]
        for d in range(n_features):
            total += V[k, d] * e[d]
        w[k] = total
    _solve(lower, w)
    quadratic = 0.0
    for k in range(n_latent):
        for d in range(n_features):
            e[d] -= V[k, d] * w[k]
        z[k] += w[k]
        quadratic += z[k] * z[k]
    for d in range(n_features):
        quadratic += e[d] * e[d]
    return quadratic


@compiled
def low_rank_gaussian(  # one argument for each array of a compiled loop
    loc: Any, W: Any, scale: Any, rows: Any, share: Any, weight: Any, n_units: Any, d_loc: Any, d_W: Any, d_scale: Any
) -> float:
    r"""Log density of all units; adds its gradients to the last three arguments.

    With $\Psi = \text{diag}(\psi)^2$, the residuals $r$ of the rows divided by $\psi$, $V = W^T \text{diag}(\psi)^{-1}$,
    $M = I + V V^T$, $z = M^{-1} V r$ and $e = r - V^T z = (I + V^T V)^{-1} r$, the log density is
    $-\frac12 [N \sum_d (\log 2\pi + 2 \log \psi_d) + N \log|M| + \sum (e^T e + z^T z)]$. Its gradients are $-e$ for r and
    $\sum z e^T - N M^{-1} V$ for V.

    Args:
        loc, W, scale: Mean `(feature,)`, loadings `(feature, latent)` and standard deviations of the noise `(feature,)`.
        rows, share, weight: Rows `(row, feature)`; the residuals are `weight * (rows - share * loc)`.
        n_units: Number of units, `(1,)`.
        d_loc, d_W, d_scale: Gradients.
    """
    n_features, n_latent = W.shape
    n = n_units[0]
    precision, V, d_V = 1 / scale, np.empty((n_latent, n_features)), np.zeros((n_latent, n_features))
    M = np.eye(n_latent)
    for k in range(n_latent):
        for d in range(n_features):
            V[k, d] = W[d, k] * precision[d]
    H = _reflected(V)
    for k in range(n_latent):
        for j in range(k + 1):
            for d in range(n_features):
                M[k, j] += V[k, d] * V[j, d]
    value = n * _cholesky(M)
    r, e, z, w = np.empty(n_features), np.empty(n_features), np.empty(n_latent), np.empty(n_latent)
    for i in range(len(rows)):
        for d in range(n_features):
            r[d] = (rows[i, d] - share[i] * loc[d]) * (weight[i] * precision[d])
        value += _row(M, V, r, e, z, w)
        of_loc = weight[i] * share[i]
        for d in range(n_features):
            d_loc[d] += of_loc * precision[d] * e[d]
            d_scale[d] += precision[d] * e[d] * r[d]
        for k in range(n_latent):
            for d in range(n_features):
                d_V[k, d] += z[k] * e[d]
    for d in range(n_features):
        value += n * (LOG_2PI + 2 * math.log(scale[d]))
        z[:] = V[:, d]
        _solve(M, z)
        d_scale[d] -= n * precision[d]
        for k in range(n_latent):
            z[k] = precision[d] * (d_V[k, d] - n * z[k])
            d_scale[d] -= V[k, d] * z[k]
        for k in range(n_latent):
            for j in range(n_latent):
                d_W[d, j] += H[k, j] * z[k]
    return -0.5 * value


@compiled
def low_rank_gaussians(  # one argument for each array of a compiled loop
    loc: Any, W: Any, scale: Any, rows: Any, share: Any, weight: Any, n_units: Any, d_loc: Any, d_W: Any, d_scale: Any, value: Any
) -> None:
    """Write `low_rank_gaussian` of each member of a batch of parameters to `value` `(batch,)`."""
    for b in range(len(value)):
        value[b] = low_rank_gaussian(loc[b], W[b], scale[b], rows, share, weight, n_units, d_loc[b], d_W[b], d_scale[b])
