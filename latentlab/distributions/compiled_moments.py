"""Expected sufficient statistics of Gaussian mixtures and hidden Markov models, the E step of EM, compiled by Numba."""

import math
from typing import Any

import numpy as np

from latentlab.distributions.compiled import chain_kernel
from latentlab.distributions.compiled_gaussians import (
    block_responsibilities,
    gaussian_log_density,
    inverses,
    standardise,
    sums,
)
from latentlab.distributions.loops import compiled


@compiled
def _add_sums(  # one argument for each array of a compiled loop
    columns: Any, mu: Any, inverse: Any, s: Any, gamma: Any, size: Any, first: Any, second: Any
) -> None:
    """Add the sums of `sums` of each component to `size`, `first` and `second`."""
    one, two = np.empty(mu.shape[1]), np.zeros(inverse.shape[1:])
    for k in range(len(mu)):
        standardise(columns, mu, inverse, k, s)
        size[k] += sums(gamma[k], s, one, two)
        first[k] += one
        second[k] += two


@compiled
def _to_moments(least: float, lower: Any, size: Any, first: Any, second: Any, mean: Any) -> None:
    r"""Convert sums of $s = L^{-1} (x - \mu)$ to those of x: `mean` is moved from $\mu$ to the weighted mean of the component.

    `second` becomes the weighted scatter about that mean, $L (\sum \gamma s s^T - m m^T / \sum \gamma) L^T$ with
    $m = \sum \gamma s$. A component with at most the weight `least` keeps its mean, and its scatter is 0.
    """
    n_features, width = lower.shape[1:]
    half = np.empty((n_features, n_features))
    for k in range(len(size)):
        if not size[k] > least:
            second[k] = 0.0
        elif width == 1:
            for d in range(n_features):
                mean[k, d] += lower[k, d, 0] * first[k, d] / size[k]
                square = second[k, d, 0] - first[k, d] * first[k, d] / size[k]
                second[k, d, 0] = max(square, 0.0) * lower[k, d, 0] * lower[k, d, 0]
        else:
            for d in range(n_features):
                for e in range(d + 1):
                    mean[k, d] += lower[k, d, e] * first[k, e] / size[k]
                    second[k, d, e] -= first[k, d] * first[k, e] / size[k]
                    second[k, e, d] = second[k, d, e]
            for d in range(n_features):
                for e in range(n_features):
                    half[d, e] = 0.0
                    for c in range(d + 1):
                        half[d, e] += lower[k, d, c] * second[k, c, e]
            for d in range(n_features):
                for e in range(d + 1):
                    total = 0.0
                    for c in range(e + 1):
                        total += half[d, c] * lower[k, e, c]
                    second[k, d, e] = total
                    second[k, e, d] = total


@compiled
def _to_shares(least: float, log_transition: Any, first_states: Any, rows: Any) -> None:
    """Divide expected counts by their sums, which are 0 if p(x) = 0."""
    n_sequences = first_states.sum()
    if n_sequences > 0:
        first_states /= n_sequences
    for i in range(len(rows)):
        departures = rows[i].sum()
        for j in range(len(rows)):
            rows[i, j] = rows[i, j] / departures if departures > least else np.exp(log_transition[i, j])


@compiled
def hidden_markov_moments(  # one argument for each array of a compiled loop
    states: Any,
    least: float,
    log_initial: Any,
    log_transition: Any,
    mu: Any,
    lower: Any,
    columns: Any,
    starts: Any,
    first_states: Any,
    rows: Any,
    size: Any,
    mean: Any,
    scatter: Any,
) -> float:
    """Log likelihood of a hidden Markov model with Gaussian emissions; fills the expected statistics of `gaussian_moments`.

    Args:
        states, log_initial, log_transition, mu, lower, columns, starts: As in `gaussian_hidden_markov`.
        least: Weight below which a state keeps its mean.
        first_states, rows: Outputs, zeros at the start: expected shares of the sequences that begin in each state, and of the
            transitions from each state. A state with at most the weight `least` of transitions keeps its probabilities.
        size, scatter: Outputs, zeros at the start.
        mean: Output, a copy of `mu` at the start.
    """
    inverse, work, first = np.zeros(lower.shape), np.empty(columns.shape), np.zeros(mu.shape)
    log_b, gamma = np.empty((len(mu), len(starts))), np.empty((len(mu), len(starts)))
    inverses(lower, inverse)
    gaussian_log_density(columns, mu, inverse, work, log_b)
    value = chain_kernel(states, log_initial, log_transition, log_b, starts, first_states, rows, gamma)
    _to_shares(least, log_transition, first_states, rows)
    _add_sums(columns, mu, inverse, work, gamma, size, first, scatter)
    _to_moments(least, lower, size, first, scatter, mean)
    return value


@compiled
def mixture_moments(  # one argument for each array of a compiled loop
    at_once: int, least: float, log_weights: Any, mu: Any, lower: Any, columns: Any, size: Any, mean: Any, scatter: Any
) -> float:
    """Log likelihood of a Gaussian mixture; fills the expected statistics, with arguments as in `hidden_markov_moments`."""
    inverse, first, by_kernel = np.zeros(lower.shape), np.zeros(mu.shape), np.zeros(len(mu))
    inverses(lower, inverse)
    value = 0.0
    for start in range(0, columns.shape[1], at_once):
        level, block, work, joint = block_responsibilities(
            columns[:, start : start + at_once], log_weights, mu, inverse, by_kernel
        )
        value += level
        _add_sums(block, mu, inverse, work, joint, size, first, scatter)
    _to_moments(least, lower, size, first, scatter, mean)
    return value


@compiled
def _to_deviations(least: float, floor: Any, size: Any, scatter: Any, sigma: Any, out: Any) -> None:
    """Compute deviations from the scatters of independent features; a component of at most the weight `least` keeps its own.

    Args:
        least: Weight of a component, summed over the features that share a deviation.
        floor: Lower bounds of the variances, `(feature,)`; or `(1,)` if the features share a deviation.
        size, scatter: Statistics, `(component,)` and `(component, feature, 1)`.
        sigma: Current deviations, `(component, feature)` or `(component, 1)`.
        out: Output, of the shape of `sigma`.
    """
    n_features, width = scatter.shape[1], sigma.shape[1]
    for k in range(len(sigma)):
        for w in range(width):
            square, count = 0.0, size[k] * (n_features // width)
            for d in range(w, n_features, width):
                square += scatter[k, d, 0]
            out[k, w] = math.sqrt(max(square / count, floor[w])) if count > least else sigma[k, w]


@compiled
def _as_factors(sigma: Any, n_features: int) -> Any:
    """Copy deviations `(component, feature)` or `(component, 1)` to `(component, feature, 1)`."""
    out = np.empty((len(sigma), n_features, 1))
    for k in range(len(sigma)):
        for d in range(n_features):
            out[k, d, 0] = sigma[k, d % sigma.shape[1]]
    return out


@compiled
def hidden_markov_maximum(  # one argument for each array of a compiled loop
    states: Any,
    least: float,
    floor: Any,
    initial: Any,
    transition: Any,
    mu: Any,
    sigma: Any,
    columns: Any,
    starts: Any,
    first_states: Any,
    rows: Any,
    mean: Any,
    out: Any,
) -> float:
    """Log likelihood of a hidden Markov model with independent features; fills the result of one step of EM.

    Args:
        states, least, mu, columns, starts, first_states, rows, mean: As in `hidden_markov_moments`.
        initial, transition: Probabilities.
        floor, sigma, out: As in `_to_deviations`.
    """
    lower = _as_factors(sigma, len(columns))
    size, scatter = np.zeros(len(mu)), np.zeros(lower.shape)
    logs = np.log(initial), np.log(transition)
    value = hidden_markov_moments(
        states, least, logs[0], logs[1], mu, lower, columns, starts, first_states, rows, size, mean, scatter
    )
    _to_deviations(least, floor, size, scatter, sigma, out)
    return value


@compiled
def mixture_maximum(  # one argument for each array of a compiled loop
    at_once: int, least: float, floor: Any, weights: Any, mu: Any, sigma: Any, columns: Any, size: Any, mean: Any, out: Any
) -> float:
    """Log likelihood of a mixture with independent features; fills the result of one step of EM.

    Arguments are as in `mixture_moments` and `_to_deviations`; `weights` are probabilities.
    """
    lower = _as_factors(sigma, len(columns))
    scatter = np.zeros(lower.shape)
    value = mixture_moments(at_once, least, np.log(weights), mu, lower, columns, size, mean, scatter)
    _to_deviations(least, floor, size, scatter, sigma, out)
    return value
