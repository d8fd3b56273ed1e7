"""Gaussian densities of mixtures and hidden Markov models, compiled by Numba."""

import math
from typing import Any

import numpy as np

from latentlab.distributions.compiled import chain_kernel, plain_sum, responsibility_kernel
from latentlab.distributions.compiled_exponentials import LOG_2PI, dot
from latentlab.distributions.loops import compiled


@compiled
def inverses(lower: Any, out: Any) -> None:
    """Compute L^-1 of each component.

    Args:
        lower: Cholesky factors L, `(component, feature, feature)`; or standard deviations, `(component, feature, 1)`.
        out: Output, of the same shape; entries above the diagonal are not written.
    """
    width = lower.shape[2]
    for k in range(len(lower)):
        for d in range(lower.shape[1]):
            diagonal = d if width > 1 else 0
            out[k, d, diagonal] = 1 / lower[k, d, diagonal]
            for e in range(diagonal):
                total = 0.0
                for c in range(e, d):
                    total -= lower[k, d, c] * out[k, c, e]
                out[k, d, e] = total * out[k, d, d]


@compiled
def standardise(columns: Any, mu: Any, inverse: Any, k: int, s: Any) -> None:
    """Write L_k^-1 (x - mu_k) to `s` `(feature, unit)`."""
    for d in range(len(s)):
        diagonal = d if inverse.shape[2] > 1 else 0
        slope, shift = inverse[k, d, diagonal], mu[k, d]
        for t in range(s.shape[1]):
            s[d, t] = slope * (columns[d, t] - shift)
        for e in range(diagonal):
            slope, shift = inverse[k, d, e], mu[k, e]
            for t in range(s.shape[1]):
                s[d, t] += slope * (columns[e, t] - shift)


@compiled
def gaussian_log_density(columns: Any, mu: Any, inverse: Any, s: Any, out: Any) -> None:
    """Write log N(x | mu_k, L_k L_k^T) to `out` `(component, unit)`.

    Args:
        columns: Data x, `(feature, unit)`.
        mu: Means, `(component, feature)`.
        inverse: L^-1, from `inverses`.
        s: Work array of the shape of `columns`.
        out: Output.
    """
    n_features, n_units = s.shape
    for k in range(len(mu)):
        standardise(columns, mu, inverse, k, s)
        constant = -0.5 * LOG_2PI * n_features
        for d in range(n_features):
            constant += math.log(inverse[k, d, d if inverse.shape[2] > 1 else 0])
        row = out[k]
        row[:] = constant
        for d in range(n_features):
            scaled = s[d]
            for t in range(n_units):
                row[t] -= 0.5 * scaled[t] * scaled[t]


@compiled
def sums(share: Any, s: Any, first: Any, second: Any) -> float:
    r"""Return $\sum_n \gamma_n$; write $\sum_n \gamma_n s_n$ and the lower triangle of $\sum_n \gamma_n s_n s_n^T$.

    Args:
        share: Weights $\gamma$, `(unit,)`.
        s: Standardised data, `(feature, unit)`.
        first: Output, `(feature,)`.
        second: Output, `(feature, feature)`; or `(feature, 1)` for the diagonal only.
    """
    n_features, n_units = s.shape
    width = second.shape[1]
    shared = np.empty(n_units)
    for d in range(n_features):
        scaled = s[d]
        for t in range(n_units):
            shared[t] = share[t] * scaled[t]
        first[d] = plain_sum(shared)
        for e in range(d + 1 if width > 1 else 1):
            second[d, e] = dot(shared, s[e if width > 1 else d])
    return plain_sum(share)


@compiled
def _gaussian_score(columns: Any, mu: Any, inverse: Any, s: Any, gamma: Any, d_mu: Any, d_lower: Any) -> None:
    r"""Add the gradients of $\sum_{nk} \gamma_{nk} \log N(x_n \mid \mu_k, L_k L_k^T)$ to `d_mu` and `d_lower`.

    With $s = L_k^{-1} (x - \mu_k)$ the score for $\mu_k$ is $L_k^{-T} s$. The score for $L_k$ is the lower triangle of
    $L_k^{-T} s s^T - \text{diag}(1 / L_{k,dd})$. The sums of $\gamma$, $\gamma s$ and $\gamma s s^T$ over units are sufficient.
    """
    n_features, width = mu.shape[1], inverse.shape[2]
    first, second = np.empty(n_features), np.zeros((n_features, width))
    for k in range(len(mu)):
        standardise(columns, mu, inverse, k, s)
        size = sums(gamma[k], s, first, second)
        for d in range(n_features):
            if width == 1:
                d_mu[k, d] += inverse[k, d, 0] * first[d]
                d_lower[k, d, 0] += inverse[k, d, 0] * (second[d, 0] - size)
            else:
                for c in range(d, n_features):  # multiplies by L^-T from the left
                    d_mu[k, d] += inverse[k, c, d] * first[c]
                    for e in range(d + 1):
                        d_lower[k, d, e] += inverse[k, c, d] * second[c, e]
                d_lower[k, d, d] -= size * inverse[k, d, d]


@compiled
def gaussian_hidden_markov(  # one argument for each array of a compiled loop
    states: Any,
    log_initial: Any,
    log_transition: Any,
    mu: Any,
    lower: Any,
    columns: Any,
    starts: Any,
    d_initial: Any,
    d_transition: Any,
    d_mu: Any,
    d_lower: Any,
) -> float:
    """Log likelihood of a hidden Markov model with Gaussian emissions; adds its gradients to the last four arguments.

    Args:
        states, log_initial, log_transition, starts: As in `compiled.hidden_markov`.
        mu: Means, `(state, feature)`.
        lower: Cholesky factors L, as in `inverses`.
        columns: Data x, `(feature, unit)`.
        d_initial, d_transition, d_mu, d_lower: Gradients, of the shapes of the corresponding arguments.
    """
    inverse, work = np.zeros(lower.shape), np.empty(columns.shape)
    log_b, gamma = np.empty((len(mu), len(starts))), np.empty((len(mu), len(starts)))
    inverses(lower, inverse)
    gaussian_log_density(columns, mu, inverse, work, log_b)
    value = chain_kernel(states, log_initial, log_transition, log_b, starts, d_initial, d_transition, gamma)
    _gaussian_score(columns, mu, inverse, work, gamma, d_mu, d_lower)
    return value


@compiled
def block_responsibilities(columns: Any, log_weights: Any, mu: Any, inverse: Any, d_weights: Any) -> tuple[float, Any, Any, Any]:
    """Compute the responsibilities in a Gaussian mixture for a block of units; their sums are added to `d_weights`.

    Returns:
        The log likelihood of the block, its data `(feature, unit)`, a work array of the same shape, and the responsibilities
        `(component, unit)`.
    """
    block, work, joint = np.empty(columns.shape), np.empty(columns.shape), np.empty((len(mu), columns.shape[1]))
    for d in range(len(columns)):
        block[d] = columns[d]
    gaussian_log_density(block, mu, inverse, work, joint)
    return responsibility_kernel(log_weights, joint, d_weights), block, work, joint


@compiled
def gaussian_mixture(  # one argument for each array of a compiled loop
    at_once: int, log_weights: Any, mu: Any, lower: Any, columns: Any, d_weights: Any, d_mu: Any, d_lower: Any
) -> float:
    """Log likelihood of a Gaussian mixture; adds its gradients to the last three arguments.

    Args:
        at_once: Units per block.
        log_weights: Log weights, `(component,)`.
        mu, lower, columns: As in `gaussian_hidden_markov`.
        d_weights, d_mu, d_lower: Gradients for `log_weights`, `mu` and `lower`, of the same shapes.
    """
    inverse = np.zeros(lower.shape)
    inverses(lower, inverse)
    value = 0.0
    for first in range(0, columns.shape[1], at_once):
        level, block, work, joint = block_responsibilities(
            columns[:, first : first + at_once], log_weights, mu, inverse, d_weights
        )
        value += level
        _gaussian_score(block, mu, inverse, work, joint, d_mu, d_lower)
    return value
