r"""The scaled forward-backward pass and the scores of Gaussian emissions, compiled by Numba.

The log likelihood of a chain and its gradient by Fisher's identity: the gradient is the posterior expectation of the
complete-data score. With weights $w_t(j) \propto_j b_t(j)$, the largest of them 1, the filter
$\alpha_t(j) = p(z_t = j \mid x_{\le t})$, its levels $c_t = \sum_{ij} \alpha_{t-1}(i) A_{ij} w_t(j)$ and $\beta$, up to a
constant a step,
$$ \log p(x) = \sum_t [\log c_t + \max_j \log b_t(j)], \quad \beta_{t-1}(i) \propto \sum_j A_{ij} w_t(j) \beta_t(j), \quad
   \gamma_t(j) = \frac{\alpha_t(j) \beta_t(j)}{S_t}, \quad
   \xi_t(i, j) = \frac{\alpha_{t-1}(i) A_{ij} w_t(j) \beta_t(j)}{c_t S_t}, \quad S_t = \sum_j \alpha_t(j) \beta_t(j), $$
are all that is needed: $\partial / \partial \log b_t(j) = \gamma_t(j)$,
$\partial / \partial \log A_{ij} = \sum_t \xi_t(i, j)$ and $\partial / \partial \log \pi_j = \gamma_1(j)$. A mixture is the
chain in which every unit begins a sequence: its $\gamma$ are the responsibilities.

Probabilities that are too small for a float are lost in both passes, an error of less than 1e-303 beside sums of at least 1e-100.
It matters as much as the other pass says: while $S \ge 10^{-180}$ the error is far below the last digit. A sequence that is
outside of these bounds (a path comes back from where the data had ruled it out) is done again in log space, several times slower.

All loops run in one thread and in a fixed order: the digits do not depend on the number of threads. The interpreter's lock is
released.

References:
    Rabiner (1989), A tutorial on hidden Markov models and selected applications in speech recognition, Proc. IEEE 77:257.
    Cappé, Moulines & Rydén (2005), Inference in Hidden Markov Models, chapters 3 (scaling) and 10 (Fisher's identity).
"""

import math
from typing import Any

import numpy as np

from latentlab.distributions.compiled_exponentials import dot, exp_all, exponential, fill
from latentlab.distributions.loops import compiled, summing

LEAST_LEVEL, MOST_LEVEL, LEAST_SHARED = 1e-100, 1e100, 1e-180


@compiled
def _weights(log_b: Any, first: int, weight: Any) -> float:
    """exp of the n columns of `log_b` from `first`, each over its largest, into `weight` `(state, n)`; the largest's log sum."""
    n_states, n = weight.shape
    top = log_b[0][first : first + n].copy()
    for j in range(1, n_states):
        row = log_b[j][first : first + n]
        for t in range(n):
            top[t] = max(top[t], row[t])
    for j in range(n_states):
        row, own = log_b[j][first : first + n], weight[j]
        for t in range(n):
            own[t] = row[t] - top[t]
    exp_all(weight.reshape(-1), weight.size)
    value = 0.0
    for t in range(n):
        value += top[t]
    return value


@compiled
def _recursions(  # one argument for each array of a compiled loop
    states: Any, initial: Any, transition: Any, weight: Any, a: Any, b: Any, v: Any, inverse_level: Any
) -> tuple[float, bool]:
    """The sum of log c, and whether all levels are within bounds; fills a, b, v `(state, n)` and 1 / c.

    The two passes need nothing of each other, and the processor works on both at once. Each divides by the level of the step
    before, which then need not be waited for: a is that of its own step too large, c alpha.
    """
    n_states = len(states) if len(states) > 0 else len(initial)
    n = weight.shape[1]
    value, levels, exact = 0.0, 1.0, True
    level, total = 0.0, float(n_states)
    for j in range(n_states):
        a[j, 0] = initial[j] * weight[j, 0]
        level += a[j, 0]
        b[j, n - 1] = 1.0
    for s in range(1, n):
        exact &= LEAST_LEVEL <= level <= MOST_LEVEL and total >= LEAST_LEVEL
        forth, back = 1 / level, 1 / total
        inverse_level[s - 1] = forth
        levels *= level
        if not LEAST_LEVEL <= levels <= MOST_LEVEL:
            value += math.log(levels)
            levels = 1.0
        level, total = 0.0, 0.0
        for j in range(n_states):
            prior = 0.0
            for i in range(n_states):
                prior += a[i, s - 1] * transition[i, j]
            prior *= weight[j, s] * forth
            a[j, s] = prior
            level += prior
        t = n - s
        for j in range(n_states):
            v[j, t] = weight[j, t] * b[j, t]
        for i in range(n_states):
            after = 0.0
            for j in range(n_states):
                after += transition[i, j] * v[j, t]
            after *= back
            b[i, t - 1] = after
            total += after
    exact &= LEAST_LEVEL <= level <= MOST_LEVEL
    inverse_level[n - 1] = 1 / level
    return value + math.log(levels) + math.log(level), exact


@compiled
def _expectations(  # one argument for each array of a compiled loop
    a: Any, b: Any, v: Any, inverse_level: Any, transition: Any, gamma: Any, first: int, pairs: Any
) -> bool:
    """Whether S is within bounds, and all divisors; fills the n columns of `gamma` from `first`, and `pairs`; destroys a."""
    n_states, n = a.shape
    share = np.zeros(n)
    for j in range(n_states):
        left, right, own = a[j], b[j], gamma[j][first : first + n]
        for t in range(n):
            own[t] = left[t] * right[t]
            share[t] += left[t] * right[t]
    n_sound = 0
    for t in range(n):
        n_sound += share[t] * inverse_level[t] >= LEAST_SHARED
        share[t] = 1 / share[t]
    if n_sound < n:
        return False
    for j in range(n_states):
        own = gamma[j][first : first + n]
        for t in range(n):
            own[t] *= share[t]
    before, after = inverse_level[: n - 1], share[1:]
    n_finite = 1
    for t in range(n - 1):
        before[t] *= after[t]
        n_finite += before[t] < np.inf
    if n_finite < n:
        return False
    for i in range(n_states):
        left = a[i][: n - 1]
        for t in range(n - 1):
            left[t] *= before[t]
        for j in range(n_states):
            pairs[i, j] = transition[i, j] * dot(left, v[j][1:])
    return True


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
        total += exponential(term - top)
    return top + math.log(total)


@compiled
def _in_logs(  # one argument for each array of a compiled loop
    log_initial: Any, log_transition: Any, log_b: Any, first: int, alpha: Any, weight: Any, gamma: Any, pairs: Any
) -> float:
    """The log likelihood, with all as logs: exact always. Fills what `_expectations` does, with zeros if x is impossible."""
    n_states, n = alpha.shape
    terms, beta = np.empty(n_states), np.zeros(n_states)
    fill(pairs, 0.0)
    value = 0.0
    for t in range(n):
        for j in range(n_states):
            prior = log_initial[j]
            if t > 0:
                for i in range(n_states):
                    terms[i] = alpha[i, t - 1] + log_transition[i, j]
                prior = _log_sum(terms)
            alpha[j, t] = prior + log_b[j, first + t]
        for j in range(n_states):
            terms[j] = alpha[j, t]
        level = _log_sum(terms)
        value += level
        if level == -np.inf:
            for j in range(n_states):
                gamma[j][first : first + n] = 0.0
            return value
        for j in range(n_states):
            alpha[j, t] -= level
            weight[j, t] = log_b[j, first + t] - level
    for t in range(n - 1, -1, -1):
        for j in range(n_states):
            gamma[j, first + t] = exponential(alpha[j, t] + beta[j])
        if t == 0:
            break
        for j in range(n_states):
            weight[j, t] += beta[j]
        for i in range(n_states):
            for j in range(n_states):
                terms[j] = log_transition[i, j] + weight[j, t]
                pairs[i, j] += exponential(alpha[i, t - 1] + terms[j])
            beta[i] = _log_sum(terms)
    return value


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
def chain_kernel(  # one argument for each array of a compiled loop
    states: Any,
    log_initial: Any,
    log_transition: Any,
    log_b: Any,
    starts: Any,
    d_initial: Any,
    d_transition: Any,
    gamma: Any,
) -> float:
    """`hidden_markov` with the emissions' log densities, and gamma, as `(state, unit)`."""
    n_states, n_units = log_b.shape
    initial, transition, pairs = np.exp(log_initial), np.exp(log_transition), np.empty((n_states, n_states))
    size = n_states * _longest(starts)
    work = np.empty((4, size))
    value = 0.0
    first = 0
    while first < n_units:
        end = _end(starts, first)
        n = end - first
        weight, a = work[0][: n_states * n].reshape(n_states, n), work[1][: n_states * n].reshape(n_states, n)
        b, v = work[2][: n_states * n].reshape(n_states, n), work[3][: n_states * n].reshape(n_states, n)
        inverse_level = np.empty(n)
        tops = _weights(log_b, first, weight)
        part, exact = _recursions(states, initial, transition, weight, a, b, v, inverse_level)
        part += tops
        if exact:
            exact = _expectations(a, b, v, inverse_level, transition, gamma, first, pairs)
        if not exact:
            part = _in_logs(log_initial, log_transition, log_b, first, a, weight, gamma, pairs)
        value += part
        for i in range(n_states):
            d_initial[i] += gamma[i, first]
            for j in range(n_states):
                d_transition[i, j] += pairs[i, j]
        first = end
    return value


@compiled
def hidden_markov(  # one argument for each array of a compiled loop
    states: Any,
    log_initial: Any,
    log_transition: Any,
    log_emission: Any,
    starts: Any,
    d_initial: Any,
    d_transition: Any,
    d_emission: Any,
) -> float:
    """Log likelihood; its gradients for three arguments are added to the last three.

    Args:
        states: A tuple of as many numbers as there are states, for a loop of their own; or an empty one.
        log_initial: `(state,)`.
        log_transition: `(state, next_state)`.
        log_emission: `(unit, state)`.
        starts: `(unit,)`.
        d_initial, d_transition, d_emission: Of the same shapes.
    """
    gamma = np.empty(log_emission.T.shape)
    log_b = np.ascontiguousarray(log_emission.T)
    value = chain_kernel(states, log_initial, log_transition, log_b, starts, d_initial, d_transition, gamma)
    for j in range(len(gamma)):
        for t in range(gamma.shape[1]):
            d_emission[t, j] += gamma[j, t]
    return value


@compiled
def responsibility_kernel(log_weights: Any, joint: Any, d_weights: Any) -> float:
    """Log likelihood of a mixture; `joint`, the log densities `(component, unit)`, becomes the responsibilities.

    Their sums are added to `d_weights`. Units that are impossible have responsibilities of 0.
    """
    n_components, n_units = joint.shape
    top, total = np.full(n_units, -np.inf), np.zeros(n_units)
    for k in range(n_components):
        row = joint[k]
        for t in range(n_units):
            row[t] += log_weights[k]
            top[t] = row[t] if row[t] > top[t] or row[t] != row[t] else top[t]
    for k in range(n_components):
        row = joint[k]
        for t in range(n_units):
            row[t] = row[t] - top[t] if top[t] != -np.inf else -np.inf
    exp_all(joint.reshape(-1), joint.size)
    for k in range(n_components):
        row = joint[k]
        for t in range(n_units):
            total[t] += row[t]
    value, levels = 0.0, 1.0
    for t in range(n_units):
        value += top[t]
        if total[t] != 0:
            levels *= total[t]  # from 1 to the number of components
            total[t] = 1 / total[t]
        if not levels <= MOST_LEVEL:
            value += math.log(levels)
            levels = 1.0
    value += math.log(levels)
    for k in range(n_components):
        row = joint[k]
        for t in range(n_units):
            row[t] *= total[t]
        d_weights[k] += plain_sum(row)
    return value


@summing
def plain_sum(x: Any) -> float:
    total = 0.0
    for t in range(len(x)):
        total += x[t]
    return total
