r"""Expected sufficient statistics of Gaussian components given the data, the E step of EM, by one pass of a compiled kernel.

The weights $\gamma_{nk}$ are the responsibilities of a mixture, or the smoothed probabilities of a hidden Markov chain. The
statistics are $N_k = \sum_n \gamma_{nk}$, $m_k = \sum_n \gamma_{nk} x_n / N_k$ and
$S_k = \sum_n \gamma_{nk} (x_n - m_k)(x_n - m_k)^T$. They are accumulated for data standardised by the current component, which
limits cancellation. No array of size unit x component leaves the kernel.

References:
    Dempster, Laird & Rubin (1977), Maximum likelihood from incomplete data via the EM algorithm, JRSS B 39:1.
"""

from typing import NamedTuple

import numpy as np
import torch

from latentlab.distributions import kernels
from latentlab.distributions.components import Components, GaussianComponents


class Moments(NamedTuple):
    """Statistics of K Gaussian components; a component of weight 0 has its current mean and no scatter."""

    size: torch.Tensor
    """Expected number of units, `(component,)`."""
    mean: torch.Tensor
    """Weighted means, `(component, feature)`."""
    scatter: torch.Tensor
    """Weighted scatter about the mean, `(component, feature, feature)`; or its diagonal, `(component, feature, 1)`."""


def available_for(components: Components, x: torch.Tensor, observed: torch.Tensor | None) -> bool:
    """Check whether there is a kernel for these components and data."""
    return isinstance(components, GaussianComponents) and observed is None and kernels.available_for(components.mu, x)


def of_mixture(
    log_weights: torch.Tensor, components: GaussianComponents, columns: torch.Tensor, least: float
) -> tuple[float, Moments]:
    """Compute the log likelihood of a mixture and the expected statistics of its components.

    Args:
        log_weights: Log mixing weights, `(component,)`.
        components: Components, without autograd.
        columns: Data, `(feature, unit)`, contiguous.
        least: Weight up to which a component keeps its mean.
    """
    moments, mu, lower = _start(components)
    kernel = kernels.compiled_loops("compiled_moments").mixture_moments
    level = kernel(kernels.AT_ONCE, least, log_weights.numpy(), mu, lower, columns.numpy(), *moments)
    return level, Moments(*map(torch.from_numpy, moments))


def of_chain(
    log_initial: torch.Tensor,
    log_transition: torch.Tensor,
    components: GaussianComponents,
    columns: torch.Tensor,
    starts: torch.Tensor,
    least: float,
) -> tuple[float, torch.Tensor, torch.Tensor, Moments]:
    """Compute the log likelihood of a chain, the M step of its initial and transition probabilities, and the expected statistics.

    Args:
        log_initial, log_transition, starts: As in `hidden_markov`.
        components, columns, least: As in `of_mixture`; a row of transitions of at most the weight `least` is kept as well.
    """
    moments, mu, lower = _start(components)
    initial, transition = log_initial.contiguous().numpy(), log_transition.contiguous().numpy()
    shares, rows = np.zeros(initial.shape), np.zeros(transition.shape)
    data = (columns.numpy(), starts.numpy())
    kernel = kernels.compiled_loops("compiled_moments").hidden_markov_moments
    level = kernel(kernels.unrolled(len(initial)), least, initial, transition, mu, lower, *data, shares, rows, *moments)
    return level, torch.from_numpy(shares), torch.from_numpy(rows), Moments(*map(torch.from_numpy, moments))


def maximum_of_mixture(
    weights: torch.Tensor, mu: torch.Tensor, sigma: torch.Tensor, columns: torch.Tensor, floor: np.ndarray, least: float
) -> tuple[float, dict[str, torch.Tensor]]:
    """Compute the log likelihood of a mixture with independent features, and the values after one step of EM.

    Args:
        weights: Mixing weights, `(component,)`.
        mu: Means, `(component, feature)`.
        sigma: Standard deviations, `(component, feature)`, or `(component,)` if the features share one.
        columns, least: As in `of_mixture`.
        floor: Lower bounds of the variances, `(feature,)` or `(1,)`.
    """
    means, deviations = mu.contiguous().numpy(), sigma.numpy().reshape(len(mu), -1)
    size, mean, out = np.zeros(len(means)), means.copy(), np.empty(deviations.shape)
    kernel, data = kernels.compiled_loops("compiled_moments").mixture_maximum, columns.numpy()
    level = kernel(kernels.AT_ONCE, least, floor, weights.numpy(), means, deviations, data, size, mean, out)
    values = {"weights": size / columns.shape[1], "mu": mean, "sigma": out.reshape(sigma.shape)}
    return level, {name: torch.from_numpy(value) for name, value in values.items()}


def maximum_of_chain(  # one argument for each part of the chain
    initial: torch.Tensor,
    transition: torch.Tensor,
    mu: torch.Tensor,
    sigma: torch.Tensor,
    columns: torch.Tensor,
    starts: torch.Tensor,
    floor: np.ndarray,
    least: float,
) -> tuple[float, dict[str, torch.Tensor]]:
    """Compute the log likelihood of a chain with independent features, and the values after one step of EM.

    Args:
        initial, transition: Probabilities of the first states and of the transitions.
        mu, sigma, floor: As in `maximum_of_mixture`.
        columns, starts, least: As in `of_chain`.
    """
    means, deviations = mu.contiguous().numpy(), sigma.numpy().reshape(len(mu), -1)
    probabilities = initial.contiguous().numpy(), transition.contiguous().numpy()
    n_states = len(means)
    first, rows = np.zeros(n_states), np.zeros((n_states, n_states))
    mean, out = means.copy(), np.empty(deviations.shape)
    data = (columns.numpy(), starts.numpy())
    kernel = kernels.compiled_loops("compiled_moments").hidden_markov_maximum
    states = kernels.unrolled(n_states)
    level = kernel(states, least, floor, *probabilities, means, deviations, *data, first, rows, mean, out)
    values = {"initial": first, "transition": rows, "mu": mean, "sigma": out.reshape(sigma.shape)}
    return level, {name: torch.from_numpy(value) for name, value in values.items()}


def _start(components: GaussianComponents) -> tuple[tuple[np.ndarray, np.ndarray, np.ndarray], np.ndarray, np.ndarray]:
    """Return the outputs of a kernel before its call, the means, and the factors of the covariances."""
    mu, lower = components.mu.contiguous().numpy(), components.factor().contiguous().numpy()
    return (np.zeros(len(mu)), mu.copy(), np.zeros(lower.shape)), mu, lower
