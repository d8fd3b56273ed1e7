r"""The square-root information filter of linear-Gaussian chains and its gradient, compiled by Numba.

`kernels` loads this module at the first call. With $Q = L L^T$, $P = L_0 L_0^T$, every log density of a chain contains the
squares of whitened rows,
$$ w_1 = L_0^{-1} (z_1 - m), \quad w_t = L^{-1} (z_t - A z_{t-1}), \quad
   \varepsilon_{td} = (x_{td} - \mu_d - C_d z_t) / \sigma_d, $$
over the observed entries. At each step, the rows that contain $z_t$ are rotated to a triangular system,
$$ R_t z_t + H_t z_{t+1} = f_t + \eta_t, \quad \eta_t \sim N(0, I), $$
and to rows without $z_t$. The latter describe $z_{t+1}$ given the past, or are residuals $\rho$ without states. Therefore
$$ \log p(x) = -\tfrac12 \sum \rho^2 - \sum_t \log |R_t| - \log |L_0| - (T - 1) \log |L|
   - \sum_{td} \log \sigma_d \sqrt{2 \pi}. $$
The rows of completely observed steps are first compressed to q rows, with the same triangle for every step, and residuals. States
are measured from a rough estimate, which avoids cancellation of large terms if the noise is small.
No covariance is computed, updated or inverted. Its condition number is the square of that of the factors; with small noise and a
diffuse prior, its smallest eigenvalues would be lost or become negative. Rows are rotated by Givens rotations, which are accurate
for rows of different magnitude; Householder reflections would lose the small rows.

In the backward pass, $z_t = R_t^{-1} (f_t + \eta_t - H_t z_{t+1})$ has the smoothed mean $R_t^{-1} (f_t - H_t E z_{t+1})$. With a
triangle $U_t^T U_t = I + H_t V_{t+1} H_t^T$ its variance is $V_t = R_t^{-1} U_t^T U_t R_t^{-T}$, again a sum of squares. The
gradients follow from Fisher's identity,
$$ \partial_A = L^{-T} \sum E[w_t z_{t-1}^T], \quad \partial_L = L^{-T} \sum (E[w_t w_t^T] - I), \quad
   \partial_m = L_0^{-T} E w_1, \quad \partial_{L_0} = L_0^{-T} (E[w_1 w_1^T] - I), $$
$$ \partial_{C_d} = \sum_t E[\varepsilon_{td} z_t] / \sigma_d, \quad \partial_{\mu_d} = \sum_t E \varepsilon_{td} / \sigma_d,
   \quad \partial_{\sigma_d} = \sum_t (E \varepsilon_{td}^2 - 1) / \sigma_d. $$

References:
    Bierman (1977), Factorization Methods for Discrete Sequential Estimation, chapters V and X. Kailath, Sayed & Hassibi (2000),
    Linear Estimation, chapter 12. Grewal & Andrews (2015), Kalman Filtering, 4th ed., chapter 7. Koopman & Shephard (1992),
    Exact score for time series models in state space form, Biometrika 79:823.
"""

import math
from typing import Any

import numpy as np

from latentlab.distributions.compiled import _end, _longest
from latentlab.distributions.compiled_exponentials import LOG_2PI, fill
from latentlab.distributions.compiled_matrices import (
    add_outer,
    add_product,
    log_determinant,
    rotate,
    solve_lower,
    solve_upper,
)
from latentlab.distributions.loops import compiled, summing

MOST_DETERMINANT, LEAST_DETERMINANT = 1e100, 1e-100


@compiled
def _compress(loadings: Any, columns: Any, triangle: Any, basis: Any, turned: Any) -> float:
    """Rotate rows that many steps share to a triangle, $\\Psi^{-1/2} C = B T$ with $B^T B = I$ if the triangle was 0 before.

    Args:
        loadings: The rows, `(feature, latent)`.
        columns: Scaled data, `(feature, unit)`; overwritten.
        triangle: Triangle before the rotation; replaced by T `(latent, latent)`.
        basis: Output B, `(feature, latent)`.
        turned: Output, B^T times the data, `(latent, unit)`.

    Returns:
        The residual sum of squares of the data.
    """
    (n_features, n), q = columns.shape, len(triangle)
    unit, row, left = np.empty(n_features), np.empty(q), 0.0
    fill(basis, 0.0)
    fill(turned, 0.0)
    for d in range(n_features):
        unit[:] = 0.0
        unit[d] = 1.0
        row[:] = loadings[d]
        for j in range(q):
            x, y = triangle[j, j], row[j]
            if y == 0.0:
                continue
            h = math.sqrt(x * x + y * y)
            c, s = x / h, y / h
            triangle[j, j] = h
            for k in range(j + 1, q):
                a, b = triangle[j, k], row[k]
                triangle[j, k], row[k] = c * a + s * b, c * b - s * a
            for k in range(d + 1):
                a, b = basis[k, j], unit[k]
                basis[k, j], unit[k] = c * a + s * b, c * b - s * a
            for t in range(n):
                a, b = turned[j, t], columns[d, t]
                turned[j, t], columns[d, t] = c * a + s * b, c * b - s * a
        for t in range(n):
            left += columns[d, t] * columns[d, t]
    return left


@compiled
def _pulls(R: Any, upper: Any, rows: Any, out: Any) -> None:
    """Write B = C R^-1 U^T to `out`, with C = `rows`, by substitution: B B^T is C V C^T, and V is not computed."""
    q = len(upper)
    for d in range(len(rows)):
        for i in range(q):
            total = rows[d, i]
            for j in range(i):
                total -= R[j, i] * out[d, j]
            out[d, i] = total / R[i, i]
        for i in range(q):
            total = 0.0
            for j in range(i, q):
                total += upper[i, j] * out[d, j]
            out[d, i] = total


@compiled
def _rough(loadings: Any, scaled: Any, observed: Any, whole: Any) -> Any:
    """Estimate each state from the row of its step with prior variance I, `(latent, unit)`; densities do not depend on it."""
    (n_features, n_units), q = scaled.shape, loadings.shape[1]
    triangle, states, row = np.eye(q), np.empty((q, n_units)), np.empty(q + 1)
    _compress(loadings, scaled.copy(), triangle, np.empty((n_features, q)), states)
    solve_upper(triangle, states)
    system = np.empty((q, q + 1))
    for t in range(n_units):
        if whole[t]:
            continue
        fill(system, 0.0)
        for i in range(q):
            system[i, i] = 1.0
        for d in range(n_features):
            if observed[t, d]:
                row[:q], row[q] = loadings[d], scaled[d, t]
                rotate(system, row, q)
        states[:, t] = system[:, q]
        solve_upper(system, states[:, t : t + 1])
    return states


@compiled
def _filter(  # one argument for each array of a compiled loop
    into: Any,
    across: Any,
    first: Any,
    begins: Any,
    gaps: Any,
    loadings: Any,
    scaled: Any,
    observed: Any,
    whole: Any,
    compressed: Any,
    turned: Any,
    triangles: Any,
) -> float:
    """Filter one sequence: fill `triangles` `(unit, q, 2 q + 1)`, (R, H, f); return -sum rho^2 / 2 - sum log |R|.

    Args:
        into, across, first: L^-1, -L^-1 A, L_0^-1.
        begins, gaps: w_1 `(latent,)` and the other w_t `(latent, unit)` at the rough states.
        loadings, scaled, observed: Loadings, scaled data and observed entries, for steps with missing entries.
        whole: True for completely observed steps, `(unit,)`.
        compressed, turned: Rows of completely observed steps, from `_compress`.
        triangles: Output.
    """
    (n, n_features), q = observed.shape, len(begins)
    row, value, determinant = np.empty(2 * q + 1), 0.0, 1.0
    fill(triangles[0], 0.0)
    for i in range(q):
        row[:] = 0.0
        row[: i + 1], row[2 * q] = first[i, : i + 1], -begins[i]
        rotate(triangles[0], row, q)
    for t in range(n):
        upper = triangles[t]
        for d in range(q if whole[t] else n_features):
            if whole[t] or observed[t, d]:
                for j in range(q):
                    row[j], row[q + j] = compressed[d, j] if whole[t] else loadings[d, j], 0.0
                row[2 * q] = turned[d, t] if whole[t] else scaled[d, t]
                rotate(upper, row, q)
                value -= 0.5 * row[2 * q] * row[2 * q]
        if t < n - 1:
            after = triangles[t + 1]
            fill(after, 0.0)
            for i in range(q):
                for j in range(q):
                    row[j], row[q + j] = across[i, j], into[i, j]
                row[2 * q] = -gaps[i, t + 1]
                rotate(upper, row, q)
                for j in range(q):
                    row[j], row[q + j] = row[q + j], 0.0
                rotate(after, row, q)
        for j in range(q):
            determinant *= upper[j, j]
        if not LEAST_DETERMINANT < determinant < MOST_DETERMINANT:
            value -= math.log(determinant)
            determinant = 1.0
    return value - math.log(determinant)


@summing
def _add_residuals(  # one argument for each array of a compiled loop
    loadings: Any, scaled: Any, observed: Any, scale: Any, rough: Any, states: Any, d_C: Any, d_loc: Any, d_scale: Any
) -> None:
    """Add the terms of the residuals at the means `rough` + `states` `(latent, unit)` to the gradients.

    `scaled` contains the residuals at `rough`.
    """
    residual = np.empty(states.shape[1])
    for d in range(len(loadings)):
        residual[:] = scaled[d]
        for i in range(len(states)):
            for t in range(len(residual)):
                residual[t] -= loadings[d, i] * states[i, t]
        count = 0
        for t in range(len(residual)):
            count += observed[t, d]
            residual[t] = residual[t] if observed[t, d] else 0.0
        total, squares = 0.0, 0.0
        for t in range(len(residual)):
            total += residual[t]
            squares += residual[t] * residual[t]
        d_loc[d] += total / scale[d]
        d_scale[d] += (squares - count) / scale[d]
        for i in range(len(states)):
            total = 0.0
            for t in range(len(residual)):
                total += residual[t] * (rough[i, t] + states[i, t])
            d_C[d, i] += total / scale[d]


@compiled
def linear_gaussian(  # one argument for each array, and a loop whose parts share work arrays
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
    """Log density of the rows; adds its gradients for the first seven arguments to the last seven, which are zeros.

    Args:
        A: Transition matrix, `(next_latent, latent)`.
        L: Lower factor of the covariance of the state noise, `(latent, latent)`.
        C: Loadings, `(feature, latent)`.
        loc, scale: Mean of the rows at state 0 and standard deviations of their noise, `(feature,)`.
        mean, L_0: Mean of the first state of a sequence, `(latent,)`, and lower factor of its covariance, `(latent, latent)`.
        x, observed: Rows and whether their entries were observed, `(unit, feature)`.
        starts: True where a sequence begins, `(unit,)`; the first unit always begins one.
        d_A, d_L, d_C, d_loc, d_scale, d_mean, d_L_0: Gradients, of the shapes of the first seven arguments.
    """
    (n_units, n_features), q = x.shape, len(A)
    into, first, across = np.eye(q), np.eye(q), np.zeros((q, q))
    solve_lower(L, into)
    solve_lower(L_0, first)
    add_product(into, A, -1.0, across)
    scaled, columns, loadings = np.zeros((n_features, n_units)), np.zeros((n_features, n_units)), np.empty(C.shape)
    whole, value = np.ones(n_units, dtype=np.bool_), 0.0
    for t in range(n_units):
        for d in range(n_features):
            whole[t] &= observed[t, d]
    for d in range(n_features):
        weight, count = 1 / scale[d], 0
        for i in range(q):
            loadings[d, i] = weight * C[d, i]
        for t in range(n_units):
            if observed[t, d]:
                count += 1
                scaled[d, t] = weight * (x[t, d] - loc[d])
        value -= count * (math.log(scale[d]) + 0.5 * LOG_2PI)
    compressed, basis, turned = np.zeros((q, q)), np.empty((n_features, q)), np.empty((q, n_units))
    rough = _rough(loadings, scaled, observed, whole)
    gaps = np.zeros((q, n_units))
    add_product(across, rough[:, :-1], 1.0, gaps[:, 1:])
    add_product(into, rough, 1.0, gaps)
    add_product(loadings, rough, -1.0, scaled)
    for d in range(n_features):
        for t in range(n_units):
            columns[d, t] = scaled[d, t] if whole[t] else 0.0
    value -= 0.5 * _compress(loadings, columns, compressed, basis, turned)

    triangles = np.empty((_longest(starts), q, 2 * q + 1))
    state, root, upper = np.empty((q, 1)), np.empty((q, q)), np.empty((q, q))  # mean and factor of deviations; U
    place = np.empty((q, 1))  # mean of the state
    after, after_root = np.empty((q, 1)), np.empty((q, q))  # mean and factor of the next step
    noise, noise_root = np.empty((q, 1)), np.empty((q, 2 * q))  # mean and factor of w
    deviations, moved, row, pull = np.empty((q, 2 * q)), np.empty((q, q)), np.empty(q), np.empty((q, q))
    of_A, of_L, of_L_0 = np.zeros((q, q)), np.zeros((q, q)), np.zeros((q, q))
    shares, reaches = np.zeros((q, q)), np.zeros((q, q))  # sums of T V_t T^T and V_t T^T over whole rows
    states, begin, n_moves = np.empty((q, n_units)), 0, 0
    while begin < n_units:
        end = _end(starts, begin)
        steps, n = slice(begin, end), end - begin
        value -= log_determinant(L_0) + (n - 1) * log_determinant(L)
        begins = rough[:, begin : begin + 1] - mean.reshape(-1, 1)
        solve_lower(L_0, begins)
        value += _filter(
            into,
            across,
            first,
            begins[:, 0],
            gaps[:, steps],
            loadings,
            scaled[:, steps],
            observed[steps],
            whole[steps],
            compressed,
            turned[:, steps],
            triangles,
        )
        for t in range(n - 1, -1, -1):
            R, H, last = triangles[t], triangles[t, :, q : 2 * q], t == n - 1
            fill(upper, 0.0)
            for i in range(q):
                upper[i, i] = 1.0
                state[i, 0] = R[i, 2 * q]
            if not last:
                fill(moved, 0.0)
                add_product(H, after_root, 1.0, moved)
                add_product(H, after, -1.0, state)
                for j in range(q):
                    for i in range(q):
                        row[i] = moved[i, j]
                    rotate(upper, row, q)
            solve_upper(R, state)
            for i in range(q):
                for j in range(q):
                    root[i, j] = upper[j, i]
            solve_upper(R, root)
            if not last:  # w = L^-1 z_{t+1} - L^-1 A z_t, with deviations of z_t by eta and by z_{t+1}
                n_moves += 1
                noise[:, 0] = gaps[:, begin + t + 1]
                fill(noise_root, 0.0)
                for i in range(q):
                    for j in range(q):
                        deviations[i, j], deviations[i, q + j] = 1.0 if i == j else 0.0, -moved[i, j]
                solve_upper(R, deviations)
                add_product(into, after_root, 1.0, noise_root[:, q:])
                add_product(across, deviations, 1.0, noise_root)
                add_product(into, after, 1.0, noise)
                add_product(across, state, 1.0, noise)
                place[:, 0] = rough[:, begin + t] + state[:, 0]
                add_outer(noise, place, of_A)
                add_outer(noise_root, deviations, of_A)
                add_outer(noise, noise, of_L)
                add_outer(noise_root, noise_root, of_L)
            if whole[begin + t]:
                _pulls(R, upper, compressed, pull)
                add_outer(pull, pull, shares)
                add_outer(root, pull, reaches)
            else:
                for d in range(n_features):
                    if observed[begin + t, d]:
                        _pulls(R, upper, loadings[d : d + 1], pull[:1])
                        for j in range(q):
                            d_scale[d] += pull[0, j] * pull[0, j] / scale[d]
                            for i in range(q):
                                d_C[d, i] -= root[i, j] * pull[0, j] / scale[d]
            states[:, begin + t] = state[:, 0]
            after[:], after_root[:] = state, root
        solve_lower(L_0, state)
        solve_lower(L_0, root)
        noise[:] = begins + state
        add_outer(noise, noise, of_L_0)
        add_outer(root, root, of_L_0)
        solve_upper(L_0.T, noise)
        for i in range(q):
            of_L_0[i, i] -= 1.0
            d_mean[i] += noise[i, 0]
        begin = end
    for d in range(n_features):
        for i in range(q):
            for j in range(q):
                d_scale[d] += basis[d, i] * shares[i, j] * basis[d, j] / scale[d]
                d_C[d, i] -= reaches[i, j] * basis[d, j] / scale[d]
    _add_residuals(loadings, scaled, observed, scale, rough, states, d_C, d_loc, d_scale)
    for i in range(q):
        of_L[i, i] -= n_moves
    solve_upper(L.T, of_A)
    solve_upper(L.T, of_L)
    solve_upper(L_0.T, of_L_0)
    for i in range(q):
        for j in range(q):
            d_A[i, j] += of_A[i, j]
            if j <= i:
                d_L[i, j] += of_L[i, j]
                d_L_0[i, j] += of_L_0[i, j]
    return value
