r"""The square-root information filter of linear-Gaussian chains and its gradient, compiled by Numba.

`kernels` loads this module at the first call. With $Q = L L'$, $P = L_0 L_0'$, every density of a chain is a sum of squares
of whitened rows,
$$ w_1 = L_0^{-1} (z_1 - m), \quad w_t = L^{-1} (z_t - A z_{t-1}), \quad
   \varepsilon_{td} = (x_{td} - \mu_d - C_d z_t) / \sigma_d, $$
of what was observed. Step by step the rows that have $z_t$ in them are turned into a triangle,
$$ R_t z_t + H_t z_{t+1} = f_t + \eta_t, \quad \eta_t \sim N(0, I), $$
and rows without it, which are $z_{t+1}$ given the past, or numbers $\rho$ that no state can explain. Therefore
$$ \log p(x) = -\tfrac12 \sum \rho^2 - \sum_t \log |R_t| - \log |L_0| - (T - 1) \log |L| - \sum_{td} \log \sigma_d \sqrt{2 \pi}. $$
No covariance is made, updated or inverted: it would have the square of the factors' condition, and lose its smallest
directions, or its sign, where a small noise meets a diffuse prior. Rows are turned by Givens rotations, which keep small rows
beside large ones; reflections let the large ones swamp them.

Backward, by substitution, $z_t = R_t^{-1} (f_t + \eta_t - H_t z_{t+1})$ has the smoothed mean $R_t^{-1} (f_t - H_t E z_{t+1})$
and, with a triangle $U_t' U_t = I + H_t V_{t+1} H_t'$, the variance $V_t = R_t^{-1} U_t' U_t R_t'^{-1}$: again sums of squares.
Fisher's identity makes the gradient of them,
$$ \partial_A = L'^{-1} \sum E[w_t z_{t-1}'], \quad \partial_L = L'^{-1} \sum (E[w_t w_t'] - I), \quad
   \partial_m = L_0'^{-1} E w_1, \quad \partial_{L_0} = L_0'^{-1} (E[w_1 w_1'] - I), $$
$$ \partial_{C_d} = \sum_t E[\varepsilon_{td} z_t] / \sigma_d, \quad \partial_{\mu_d} = \sum_t E \varepsilon_{td} / \sigma_d, \quad
   \partial_{\sigma_d} = \sum_t (E \varepsilon_{td}^2 - 1) / \sigma_d. $$

References:
    Bierman (1977), Factorization Methods for Discrete Sequential Estimation, chapters V and X. Kailath, Sayed & Hassibi (2000),
    Linear Estimation, chapter 12. Grewal & Andrews (2015), Kalman Filtering, 4th ed., chapter 7. Koopman & Shephard (1992),
    Exact score for time series models in state space form, Biometrika 79:823.
"""

import math
from typing import Any

import numpy as np

from latentlab.distributions.compiled import LOG_2PI, _end, _fill, _longest, compiled

MOST_DETERMINANT, LEAST_DETERMINANT = 1e100, 1e-100


@compiled
def _rotate(upper: Any, row: Any, n: int) -> None:
    """Turns `row` into the triangle `upper`, so that its first n entries become 0; both may have further columns."""
    width = len(row)
    for j in range(n):
        y = row[j]
        if y == 0.0:
            continue
        x = upper[j, j]
        h = math.sqrt(x * x + y * y)
        c, s = x / h, y / h
        upper[j, j] = h
        for k in range(j + 1, width):
            a, b = upper[j, k], row[k]
            upper[j, k] = c * a + s * b
            row[k] = c * b - s * a


@compiled
def _solve_lower(lower: Any, b: Any) -> None:
    """`b` `(q, m)` becomes L^-1 b."""
    for i in range(len(lower)):
        for k in range(b.shape[1]):
            total = b[i, k]
            for j in range(i):
                total -= lower[i, j] * b[j, k]
            b[i, k] = total / lower[i, i]


@compiled
def _solve_lower_transposed(lower: Any, b: Any) -> None:
    """`b` `(q, m)` becomes L'^-1 b."""
    for i in range(len(lower) - 1, -1, -1):
        for k in range(b.shape[1]):
            total = b[i, k]
            for j in range(i + 1, len(lower)):
                total -= lower[j, i] * b[j, k]
            b[i, k] = total / lower[i, i]


@compiled
def _solve_upper(upper: Any, b: Any) -> None:
    """`b` `(q, m)` becomes R^-1 b, R the first q columns of `upper`."""
    for i in range(len(upper) - 1, -1, -1):
        for k in range(b.shape[1]):
            total = b[i, k]
            for j in range(i + 1, len(upper)):
                total -= upper[i, j] * b[j, k]
            b[i, k] = total / upper[i, i]


@compiled
def _add_product(a: Any, b: Any, factor: float, out: Any) -> None:
    """`out` += factor a b."""
    for i in range(a.shape[0]):
        for j in range(a.shape[1]):
            scaled = factor * a[i, j]
            for k in range(b.shape[1]):
                out[i, k] += scaled * b[j, k]


@compiled
def _add_outer(a: Any, b: Any, out: Any) -> None:
    """`out` += a b'."""
    for i in range(a.shape[0]):
        for k in range(b.shape[0]):
            total = 0.0
            for j in range(a.shape[1]):
                total += a[i, j] * b[k, j]
            out[i, k] += total


@compiled
def _log_determinant(lower: Any) -> float:
    total = 0.0
    for i in range(len(lower)):
        total += math.log(lower[i, i])
    return total


@compiled
def _filter(
    into: Any, across: Any, mean: Any, first: Any, C: Any, loc: Any, scale: Any, x: Any, observed: Any, triangles: Any
) -> float:
    """Of one sequence: fills `triangles` `(unit, q, 2 q + 1)`, (R, H, f); returns -sum rho^2 / 2 - sum log |R|.

    Args:
        into, across: L^-1 and -L^-1 A.
        mean, first: m and L_0^-1.
    """
    n, q = len(x), len(mean)
    row, n_features = np.empty(2 * q + 1), len(loc)
    value, determinant = 0.0, 1.0
    _fill(triangles[0], 0.0)
    for i in range(q):
        row[:] = 0.0
        for j in range(q):
            row[j] = first[i, j]
            row[2 * q] += first[i, j] * mean[j]
        _rotate(triangles[0], row, q)
    for t in range(n):
        upper = triangles[t]
        for d in range(n_features):
            if observed[t, d]:
                weight = 1 / scale[d]
                for j in range(q):
                    row[j], row[q + j] = weight * C[d, j], 0.0
                row[2 * q] = weight * (x[t, d] - loc[d])
                _rotate(upper, row, q)
                value -= 0.5 * row[2 * q] * row[2 * q]
        if t < n - 1:
            after = triangles[t + 1]
            _fill(after, 0.0)
            for i in range(q):
                for j in range(q):
                    row[j], row[q + j] = across[i, j], into[i, j]
                row[2 * q] = 0.0
                _rotate(upper, row, q)
                for j in range(q):
                    row[j], row[q + j] = row[q + j], 0.0
                _rotate(after, row, q)
        for j in range(q):
            determinant *= upper[j, j]
            if not LEAST_DETERMINANT < determinant < MOST_DETERMINANT:
                value -= math.log(determinant)
                determinant = 1.0
    return value - math.log(determinant)


@compiled
def linear_gaussian(
    A: Any,
    L: Any,
    C: Any,
    loc: Any,
    scale: Any,
    mean: Any,
    L_0: Any,
    x: Any,
    observed: Any,
    starts: Any,
    d_A: Any,
    d_L: Any,
    d_C: Any,
    d_loc: Any,
    d_scale: Any,
    d_mean: Any,
    d_L_0: Any,
) -> float:
    """Log density of rows; its gradients for the first seven arguments are added to the last seven.

    Args:
        A: `(next_latent, latent)`.
        L: The lower factor of the noise's covariance `(latent, latent)`.
        C: `(feature, latent)`.
        loc, scale: `(feature,)`.
        mean, L_0: Of the first state of a sequence, `(latent,)`, and the lower factor of its covariance.
        x, observed: `(unit, feature)`.
        starts: `(unit,)`; the first is taken to be true.
        d_A, d_L, d_C, d_loc, d_scale, d_mean, d_L_0: Of the shapes of the first seven.
    """
    (n_units, n_features), q = x.shape, len(A)
    into, first, across = np.eye(q), np.eye(q), np.zeros((q, q))
    _solve_lower(L, into)
    _solve_lower(L_0, first)
    _add_product(into, A, -1.0, across)
    triangles = np.empty((_longest(starts), q, 2 * q + 1))
    # Of the smoothed state: its mean, a factor, and the triangle U; of the step after it: mean and factor.
    state, root, upper = np.empty((q, 1)), np.empty((q, q)), np.empty((q, q))
    after, after_root, row = np.empty((q, 1)), np.empty((q, q)), np.empty(q)
    noise, noise_root, known, lag_root = np.empty((q, 1)), np.empty((q, 2 * q)), np.empty((q, q)), np.empty((q, 2 * q))
    leverage, pull = np.empty((q, 1)), np.empty((q, 1))
    of_A, of_L, of_L_0 = np.zeros((q, q)), np.zeros((q, q)), np.zeros((q, q))
    value, begin, n_moves = 0.0, 0, 0
    while begin < n_units:
        end = _end(starts, begin)
        n = end - begin
        value += _filter(into, across, mean, first, C, loc, scale, x[begin:end], observed[begin:end], triangles)
        value -= _log_determinant(L_0) + (n - 1) * _log_determinant(L)
        for t in range(n - 1, -1, -1):
            R, last = triangles[t], t == n - 1
            # z_t = R^-1 (f + eta - H z_{t+1})
            _fill(upper, 0.0)
            for i in range(q):
                upper[i, i] = 1.0
                state[i, 0] = R[i, 2 * q]
            if not last:
                _fill(known, 0.0)
                _add_product(R[:, q : 2 * q], after_root, 1.0, known)
                _add_product(R[:, q : 2 * q], after, -1.0, state)
                for j in range(q):
                    for i in range(q):
                        row[i] = known[i, j]
                    _rotate(upper, row, q)
            _solve_upper(R, state)
            for i in range(q):
                for j in range(q):
                    root[i, j] = upper[j, i]
            _solve_upper(R, root)
            if not last:
                # dev z_t = R^-1 eta - R^-1 H dev z_{t+1},  dev w_{t+1} = L^-1 dev z_{t+1} - L^-1 A dev z_t
                n_moves += 1
                for i in range(q):
                    noise[i, 0] = 0.0
                    for j in range(q):
                        lag_root[i, j] = 1.0 if i == j else 0.0
                        lag_root[i, q + j] = -known[i, j]
                _solve_upper(R, lag_root)
                _fill(noise_root, 0.0)
                _add_product(into, after_root, 1.0, noise_root[:, q:])
                _add_product(across, lag_root, 1.0, noise_root)
                _add_product(into, after, 1.0, noise)
                _add_product(across, state, 1.0, noise)
                _add_outer(noise, state, of_A)
                _add_outer(noise_root, lag_root, of_A)
                _add_outer(noise, noise, of_L)
                _add_outer(noise_root, noise_root, of_L)
            for d in range(n_features):
                if observed[begin + t, d]:
                    weight = 1 / scale[d]
                    residual, spread = x[begin + t, d] - loc[d], 0.0
                    # leverage: U R'^-1 C_d / sigma_d, the factor of the row's own variance
                    for i in range(q):
                        residual -= C[d, i] * state[i, 0]
                        total = weight * C[d, i]
                        for j in range(i):
                            total -= R[j, i] * pull[j, 0]
                        pull[i, 0] = total / R[i, i]
                    residual *= weight
                    for i in range(q):
                        total = 0.0
                        for j in range(i, q):
                            total += upper[i, j] * pull[j, 0]
                        leverage[i, 0] = total
                        spread += total * total
                    d_loc[d] += weight * residual
                    d_scale[d] += weight * (residual * residual + spread - 1)
                    for i in range(q):
                        total = residual * state[i, 0]
                        for j in range(q):
                            total -= root[i, j] * leverage[j, 0]
                        d_C[d, i] += weight * total
                    value -= math.log(scale[d]) + 0.5 * LOG_2PI
            after[:], after_root[:] = state, root
        for i in range(q):
            noise[i, 0] = state[i, 0] - mean[i]
        _solve_lower(L_0, noise)
        _solve_lower(L_0, root)
        _add_outer(noise, noise, of_L_0)
        _add_outer(root, root, of_L_0)
        _solve_lower_transposed(L_0, noise)
        for i in range(q):
            of_L_0[i, i] -= 1.0
            d_mean[i] += noise[i, 0]
        begin = end
    for i in range(q):
        of_L[i, i] -= n_moves
    _solve_lower_transposed(L, of_A)
    _solve_lower_transposed(L, of_L)
    _solve_lower_transposed(L_0, of_L_0)
    for i in range(q):
        for j in range(q):
            d_A[i, j] += of_A[i, j]
            if j <= i:
                d_L[i, j] += of_L[i, j]
                d_L_0[i, j] += of_L_0[i, j]
    return value
