r"""The scaled forward-backward pass and the scores of Gaussian emissions, compiled by Numba.

The gradient of the log likelihood of a chain is the posterior expectation of the complete-data score (Fisher's identity). It is
computed from weights $w_t(j) \propto_j b_t(j)$ with maximum 1, the filter $\alpha_t(j) = p(z_t = j \mid x_{\le t})$, its
normalising constants ("levels") $c_t = \sum_{ij} \alpha_{t-1}(i) A_{ij} w_t(j)$, and $\beta$, up to a constant per step:
$$ \log p(x) = \sum_t [\log c_t + \max_j \log b_t(j)], \quad \beta_{t-1}(i) \propto \sum_j A_{ij} w_t(j) \beta_t(j), \quad
   \gamma_t(j) = \frac{\alpha_t(j) \beta_t(j)}{S_t}, \quad
   \xi_t(i, j) = \frac{\alpha_{t-1}(i) A_{ij} w_t(j) \beta_t(j)}{c_t S_t}, \quad S_t = \sum_j \alpha_t(j) \beta_t(j). $$
The gradients are $\partial / \partial \log b_t(j) = \gamma_t(j)$, $\partial / \partial \log A_{ij} = \sum_t \xi_t(i, j)$ and
$\partial / \partial \log \pi_j = \gamma_1(j)$. A mixture is a chain in which every unit begins a sequence; its $\gamma$ are the
responsibilities.

Underflow in the passes causes errors below 1e-303 in sums of at least 1e-100. If $S \ge 10^{-180}$, these errors are far below
the last digit of the results. A sequence outside these bounds is recomputed in log space, several times slower. An example is a
path through states that earlier data had excluded.

All loops run in one thread and in a fixed order, so that results do not depend on the number of threads. They release the
interpreter's lock.

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
    """Write exp(log b_t(j) - max_j log b_t(j)) of n steps from `first` to `weight` `(state, n)`; return the sum of the maxima."""
    n_states, n = weight.shape
    top = log_b[0][first : first + n].copy()
    for j in range(1, n_states):
        row = log_b[j][first : first + n]
        for t in range(n):
            top[t] = max(top[t], row[t])
    for j in range(n_states):
        row, out = log_b[j][first : first + n], weight[j]
        for t in range(n):
            out[t] = row[t] - top[t]
    exp_all(weight.reshape(-1), weight.size)
    value = 0.0
    for t in range(n):
        value += top[t]
    return value


@compiled
def _recursions(  # one argument for each array of a compiled loop
    states: Any, initial: Any, transition: Any, weight: Any, a: Any, b: Any, v: Any, inverse_level: Any
) -> tuple[float, bool]:
    """Run both passes; return the sum of log c and whether all levels are within bounds; fill a, b, v `(state, n)` and 1 / c.

    The two passes are independent and run in the same loop, so that the processor can execute both at once. Each step divides by
    the level of the previous step, so that it need not wait for the sum over its states. Therefore a is c alpha, not alpha.
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
    """Fill n columns of `gamma` from `first`, and `pairs`; overwrite a; return whether S and all divisors are within bounds."""
    n_states, n = a.shape
    share = np.zeros(n)
    for j in range(n_states):
        left, right, out = a[j], b[j], gamma[j][first : first + n]
        for t in range(n):
            out[t] = left[t] * right[t]
            share[t] += left[t] * right[t]
    n_sound = 0
    for t in range(n):
        n_sound += share[t] * inverse_level[t] >= LEAST_SHARED
        share[t] = 1 / share[t]
    if n_sound < n:
        return False
    for j in range(n_states):
        out = gamma[j][first : first + n]
        for t in range(n):
            out[t] *= share[t]
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
    """Log likelihood in log space, without underflow; fills the outputs of `_expectations`, with zeros if p(x) = 0."""
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
    """Length of the longest sequence."""
    longest, since = 0, 0
    for t in range(len(starts)):
        since = 1 if starts[t] else since + 1
        longest = max(longest, since)
    return longest


@compiled
def _end(starts: Any, first: int) -> int:
    """Index after the last step of the sequence that begins at `first`."""
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
    """Compute `hidden_markov` with the log densities of the emissions, and gamma, as `(state, unit)`."""
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
    """Log likelihood of a hidden Markov model; adds its gradients to the last three arguments.

    Args:
        states: Tuple with one number per state, for a loop compiled for this number of states; or an empty tuple.
        log_initial: Log probabilities of the first states, `(state,)`.
        log_transition: Log transition probabilities, `(state, next_state)`.
        log_emission: Log densities of the emissions, `(unit, state)`.
        starts: True where a sequence begins, `(unit,)`.
        d_initial, d_transition, d_emission: Gradients, of the shapes of the corresponding arguments.
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
    """Log likelihood of a mixture; replaces the log densities `joint` `(component, unit)` by the responsibilities.

    The sums of the responsibilities are added to `d_weights`. Units of density 0 have responsibilities of 0.
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
