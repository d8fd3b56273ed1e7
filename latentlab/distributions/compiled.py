r"""The scaled forward-backward pass and the scores of Gaussian emissions, compiled by Numba.

The only module that imports Numba; `kernels` loads it at the first call. The log likelihood of a chain and its gradient by
Fisher's identity: the gradient is the posterior expectation of the complete-data score. With the filter
$\alpha_t(j) = p(z_t = j \mid x_{\le t})$, its prior $p_t = \alpha_{t-1} A$, the levels $c_t = \sum_j p_t(j) b_t(j)$, and
$w_t(j) = b_t(j) \beta_t(j) / c_t$,
$$ \log p(x) = \sum_t \log c_t, \quad \beta_{t-1}(i) = \sum_j A_{ij} w_t(j), \quad
   \gamma_t(j) = \alpha_t(j) \beta_t(j), \quad \xi_t(i, j) = \alpha_{t-1}(i) A_{ij} w_t(j) $$
are all that is needed: $\partial / \partial \log b_t(j) = \gamma_t(j)$, $\partial / \partial \log A_{ij} = \sum_t \xi_t(i, j)$
and $\partial / \partial \log \pi_j = \gamma_1(j)$. A mixture is the chain in which every unit begins a sequence: its $\gamma$
are the responsibilities.

Probabilities that are too small for a float are lost in the filter, an absolute error of less than 1e-303. It matters as much
as w says: while $w \le 10^{180}$ and $c \ge 10^{-100}$ the error is far below the last digit. A sequence that is outside of
these bounds (a path comes back from where the data had ruled it out) is done again in log space, several times slower.

All loops run in one thread and in a fixed order: the digits do not depend on the number of threads. The interpreter's lock is
released.

References:
    Rabiner (1989), A tutorial on hidden Markov models and selected applications in speech recognition, Proc. IEEE 77:257.
    Cappé, Moulines & Rydén (2005), Inference in Hidden Markov Models, chapters 3 (scaling) and 10 (Fisher's identity).
"""

import math
from collections.abc import Callable
from typing import Any

import numba
import numpy as np

LEAST_LEVEL, MOST_LEVEL, MOST_WEIGHT = 1e-100, 1e100, 1e180
LOG_2PI = math.log(2 * math.pi)
LEAST_EXPONENT = -700.0
LOG_2_E, ROUNDING = 1 / math.log(2.0), 1.5 * 2.0**52
LOG_2_HIGH, LOG_2_LOW = 6.93147180369123816490e-01, 1.90821492927058770002e-10
"""Their sum is log 2 to 80 bits; the first ends in zeros, so that its product with a whole number is exact."""
FACTORIALS = tuple(float(math.factorial(n)) for n in range(12, -1, -1))


def compiled(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """The function in machine code, kept in a cache between runs where a folder can be written."""
    options |= {"nogil": True, "error_model": "numpy"}
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:  # no folder for the cache
        return numba.njit(**options)(function)


def summing(function: Callable[..., Any]) -> Callable[..., Any]:
    """`compiled`, and its sums may be taken in the order that the processor likes: always the same one."""
    return compiled(function, fastmath={"reassoc"})


# -- one sequence


@compiled
def _exp(x: float) -> float:
    """exp(x), and 0 below e^-700: at the edge of what a float can be, it takes far longer than elsewhere."""
    return 0.0 if x < LEAST_EXPONENT else math.exp(x)


@compiled
def exp_all(x: Any, n: int) -> None:
    r"""The first n of x, none above 700, become their exponentials, and 0 below e^-700; to 1e-15, and several at once.

    $e^x = 2^m e^r$ with m whole and $|r| \le \log(2) / 2$, and the Taylor series of $e^r$. A float of 2^52 and more has no
    digits after the point: adding ROUNDING rounds to m, and leaves it in the last bits, from where it goes to the exponent.
    """
    for i in range(n):
        small = x[i] < LEAST_EXPONENT
        y = 0.0 if small else x[i]
        rounded = y * LOG_2_E + ROUNDING
        m = rounded - ROUNDING
        r = (y - m * LOG_2_HIGH) - m * LOG_2_LOW
        series = 1.0 / 6227020800.0
        for factorial in FACTORIALS:
            series = series * r + 1.0 / factorial
        power = (np.float64(rounded).view(np.int64) + 1023) << 52
        x[i] = 0.0 if small else series * np.int64(power).view(np.float64)


@compiled
def _fill(matrix: Any, value: float) -> None:
    for i in range(matrix.shape[0]):
        for j in range(matrix.shape[1]):
            matrix[i, j] = value


@compiled
def _scaled(
    initial: Any, transition: Any, log_b: Any, n: int, alpha: Any, weight: Any, beta: Any, gamma: Any, pairs: Any
) -> tuple[float, bool]:
    """Log likelihood of the first n rows of `log_b`, and whether it is exact; fills `gamma`, and `pairs` but for the factor A."""
    n_states = len(initial)
    value = 0.0
    for t in range(n):
        top = log_b[t, 0]
        for j in range(1, n_states):
            top = max(top, log_b[t, j])
        for j in range(n_states):
            weight[t, j] = log_b[t, j] - top
        value += top
    exp_all(weight.reshape(-1), n * n_states)
    levels = 1.0
    for t in range(n):
        level = 0.0
        for j in range(n_states):
            prior = initial[j]
            if t > 0:
                prior = 0.0
                for i in range(n_states):
                    prior += alpha[t - 1, i] * transition[i, j]
            alpha[t, j] = prior * weight[t, j]
            level += alpha[t, j]
        if not LEAST_LEVEL <= level <= MOST_LEVEL:
            return value, False
        scale = 1 / level
        for j in range(n_states):
            alpha[t, j] *= scale
            weight[t, j] *= scale
        levels *= level
        if not LEAST_LEVEL <= levels <= MOST_LEVEL:
            value += math.log(levels)
            levels = 1.0
    value += math.log(levels)
    _fill(pairs, 0.0)
    for j in range(n_states):
        beta[j] = 1.0
    for t in range(n - 1, -1, -1):
        for j in range(n_states):
            gamma[t, j] = alpha[t, j] * beta[j]
        if t == 0:
            break
        for j in range(n_states):
            weight[t, j] *= beta[j]
            if not weight[t, j] <= MOST_WEIGHT:
                return value, False
        for i in range(n_states):
            total = 0.0
            for j in range(n_states):
                total += transition[i, j] * weight[t, j]
                pairs[i, j] += alpha[t - 1, i] * weight[t, j]
            beta[i] = total
    for i in range(n_states):
        for j in range(n_states):
            pairs[i, j] *= transition[i, j]
    return value, True


@compiled
def _log_sum(terms: Any) -> float:
    top = -np.inf
    for term in terms:
        if term > top or term != term:
            top = term
    if top == -np.inf:
        return top
    total = 0.0
    for term in terms:
        total += _exp(term - top)
    return top + math.log(total)


@compiled
def _in_logs(
    log_initial: Any, log_transition: Any, log_b: Any, n: int, alpha: Any, weight: Any, beta: Any, gamma: Any, pairs: Any
) -> float:
    """What `_scaled` does, with alpha, weight and beta as logs: exact always. Zeros in gamma and pairs if x is impossible."""
    n_states = len(log_initial)
    terms = np.empty(n_states)
    _fill(pairs, 0.0)
    value = 0.0
    for t in range(n):
        for j in range(n_states):
            prior = log_initial[j]
            if t > 0:
                for i in range(n_states):
                    terms[i] = alpha[t - 1, i] + log_transition[i, j]
                prior = _log_sum(terms)
            alpha[t, j] = prior + log_b[t, j]
        for j in range(n_states):
            terms[j] = alpha[t, j]
        level = _log_sum(terms)
        value += level
        if level == -np.inf:
            for s in range(n):
                for j in range(n_states):
                    gamma[s, j] = 0.0
            return value
        for j in range(n_states):
            alpha[t, j] -= level
            weight[t, j] = log_b[t, j] - level
    for j in range(n_states):
        beta[j] = 0.0
    for t in range(n - 1, -1, -1):
        for j in range(n_states):
            gamma[t, j] = _exp(alpha[t, j] + beta[j])
        if t == 0:
            break
        for j in range(n_states):
            weight[t, j] += beta[j]
        for i in range(n_states):
            for j in range(n_states):
                terms[j] = log_transition[i, j] + weight[t, j]
                pairs[i, j] += _exp(alpha[t - 1, i] + terms[j])
            beta[i] = _log_sum(terms)
    return value


# -- chains of several sequences


@compiled
def _longest(starts: Any) -> int:
    longest, since = 0, 0
    for t in range(len(starts)):
        since = 1 if starts[t] else since + 1
        longest = max(longest, since)
    return longest


@compiled
def _end(starts: Any, first: int) -> int:
    """Where the sequence that begins in `first` has ended."""
    end = first + 1
    while end < len(starts) and not starts[end]:
        end += 1
    return end


@compiled
def hidden_markov(
    log_initial: Any,
    log_transition: Any,
    log_emission: Any,
    starts: Any,
    d_initial: Any,
    d_transition: Any,
    d_emission: Any,
) -> float:
    """Log likelihood; its gradients for the first three arguments are written into the last three.

    Args:
        log_initial: `(state,)`.
        log_transition: `(state, next_state)`.
        log_emission: `(unit, state)`.
        starts: `(unit,)`.
        d_initial, d_transition, d_emission: Of the same shapes.
    """
    n_units, n_states = log_emission.shape
    longest = _longest(starts)
    alpha, weight = np.empty((longest, n_states)), np.empty((longest, n_states))
    beta, pairs = np.empty(n_states), np.empty((n_states, n_states))
    initial, transition = np.empty(n_states), np.empty((n_states, n_states))
    for i in range(n_states):
        initial[i], d_initial[i] = math.exp(log_initial[i]), 0.0
        for j in range(n_states):
            transition[i, j], d_transition[i, j] = math.exp(log_transition[i, j]), 0.0
    value = 0.0
    first = 0
    while first < n_units:
        end = _end(starts, first)
        n = end - first
        log_b, gamma = log_emission[first:end], d_emission[first:end]
        part, exact = _scaled(initial, transition, log_b, n, alpha, weight, beta, gamma, pairs)
        if not exact:
            part = _in_logs(log_initial, log_transition, log_b, n, alpha, weight, beta, gamma, pairs)
        value += part
        for i in range(n_states):
            d_initial[i] += gamma[0, i]
            for j in range(n_states):
                d_transition[i, j] += pairs[i, j]
        first = end
    return value


# -- mixtures and Gaussian emissions


@compiled
def responsibilities(log_weights: Any, joint: Any, d_weights: Any) -> float:
    """Log likelihood of a mixture; `joint`, the log densities `(unit, component)`, becomes the responsibilities.

    Their sums are added to `d_weights`. Units that are impossible have responsibilities of 0.
    """
    value = 0.0
    for t in range(len(joint)):
        top = -np.inf
        for k in range(len(log_weights)):
            joint[t, k] += log_weights[k]
            if joint[t, k] > top or joint[t, k] != joint[t, k]:
                top = joint[t, k]
        value += top
        for k in range(len(log_weights)):
            joint[t, k] = joint[t, k] - top if top != -np.inf else -np.inf
    exp_all(joint.reshape(-1), joint.size)
    for t in range(len(joint)):
        total = 0.0
        for k in range(len(log_weights)):
            total += joint[t, k]
        scale = 1 / total if total != 0 else 0.0
        if total != 0:
            value += math.log(total)
        for k in range(len(log_weights)):
            joint[t, k] *= scale
            d_weights[k] += joint[t, k]
    return value


@compiled
def inverses(lower: Any, out: Any) -> None:
    """L^-1 of each component.

    Args:
        lower: L, `(component, feature, feature)`; or `(component, feature, 1)`, standard deviations.
        out: Of the same shape; zeros above the diagonal are left as they are.
    """
    width = lower.shape[2]
    for k in range(len(lower)):
        for d in range(lower.shape[1]):
            own = d if width > 1 else 0
            out[k, d, own] = 1 / lower[k, d, own]
            for e in range(own):
                total = 0.0
                for c in range(e, d):
                    total -= lower[k, d, c] * out[k, c, e]
                out[k, d, e] = total * out[k, d, d]


@compiled
def _standardise(columns: Any, mu: Any, inverse: Any, k: int, s: Any) -> None:
    """`s` = L_k^-1 (x - mu_k), `(feature, unit)`."""
    for d in range(len(s)):
        own = d if inverse.shape[2] > 1 else 0
        slope, shift = inverse[k, d, own], mu[k, d]
        for t in range(s.shape[1]):
            s[d, t] = slope * (columns[d, t] - shift)
        for e in range(own):
            slope, shift = inverse[k, d, e], mu[k, e]
            for t in range(s.shape[1]):
                s[d, t] += slope * (columns[e, t] - shift)


@compiled
def gaussian_log_density(columns: Any, mu: Any, inverse: Any, s: Any, out: Any) -> None:
    """log N(x | mu_k, L_k L_k') into `out` `(unit, component)`.

    Args:
        columns: x, `(feature, unit)`.
        mu: `(component, feature)`.
        inverse: L^-1, from `inverses`.
        s: Of the shape of `columns`, to work in.
        out: The result.
    """
    n_features, n_units = s.shape
    for k in range(len(mu)):
        _standardise(columns, mu, inverse, k, s)
        constant = -0.5 * LOG_2PI * n_features
        for d in range(n_features):
            constant += math.log(inverse[k, d, d if inverse.shape[2] > 1 else 0])
        for t in range(n_units):
            out[t, k] = constant
        for d in range(n_features):
            for t in range(n_units):
                out[t, k] -= 0.5 * s[d, t] * s[d, t]


@summing
def gaussian_score(columns: Any, mu: Any, inverse: Any, s: Any, gamma: Any, d_mu: Any, d_lower: Any) -> None:
    r"""Gradients of $\sum_{nk} \gamma_{nk} \log N(x_n \mid \mu_k, L_k L_k')$ for mu and L, added to the last two.

    With $s = L_k^{-1} (x - \mu_k)$ the scores are $L_k'^{-1} s$ for $\mu_k$, and for $L_k$ the lower triangle of
    $L_k'^{-1} s s' - \text{diag}(1 / L_{k,dd})$: the sums of $\gamma$, $\gamma s$ and $\gamma s s'$ are all that is needed.
    """
    n_features, n_units = s.shape
    width = inverse.shape[2]
    share = np.empty(n_units)
    first, second = np.empty(n_features), np.empty((n_features, width))
    for k in range(len(mu)):
        _standardise(columns, mu, inverse, k, s)
        size = 0.0
        for t in range(n_units):
            share[t] = gamma[t, k]
            size += share[t]
        for d in range(n_features):
            total = 0.0
            for t in range(n_units):
                total += share[t] * s[d, t]
            first[d] = total
            for e in range(width):
                other = e if width > 1 else d
                total = 0.0
                if other <= d:
                    for t in range(n_units):
                        total += share[t] * s[d, t] * s[other, t]
                second[d, e] = total
        for d in range(n_features):
            if width == 1:
                d_mu[k, d] += inverse[k, d, 0] * first[d]
                d_lower[k, d, 0] += inverse[k, d, 0] * (second[d, 0] - size)
            else:
                for c in range(d, n_features):  # L'^-1 from the left
                    d_mu[k, d] += inverse[k, c, d] * first[c]
                    for e in range(d + 1):
                        d_lower[k, d, e] += inverse[k, c, d] * second[c, e]
                d_lower[k, d, d] -= size * inverse[k, d, d]
