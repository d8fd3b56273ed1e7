"""Simulated sequences from a hidden Markov model, with their hidden states."""

import numpy as np

from latentlab.data.dataset import Dataset
from latentlab.data.mixtures import SIGMA, means
from latentlab.data.mixtures import unequal as unequal_shares
from latentlab.data.simulators import counts, number
from latentlab.errors import DataError
from latentlab.seeds import Seeds


def hidden_markov(  # one keyword for each user option
    n_sequences: int = 4,
    n_steps: int = 100,
    n_states: int = 3,
    n_features: int = 1,
    separation: float = 2.0,
    stay: float = 0.9,
    seed: int = 0,
    *,
    unequal: bool = True,
) -> Dataset:
    r"""Simulated sequences from a hidden Markov model with Gaussian emissions and persistent states.

    $$z_1 \sim \mathrm{Categorical}(\rho), \; z_t \sim \mathrm{Categorical}(A_{z_{t-1}}), \; x_t \sim N(\mu_{z_t}, \sigma^2 I)$$

    A self-transition has probability `stay`. A transition to the next state (from the last to the first) is twice as probable as
    one to each other state. Initial probabilities are in the ratio K, K - 1, ..., 1. The means are those of `gaussian_mixture`:
    the distance of every mean to the nearest other mean is exactly `separation` standard deviations (sigma = 0.5).

    Units are time steps with the names `SEQUENCE:TIME` and the coordinates `sequence` and `time`. `truth` contains `z` (unit,),
    `initial` (state,), `transition` (state, next_state), `mu` and `sigma` (state, feature), on the scale of the raw values.
    `labels` are the states as text.

    Args:
        n_sequences: Number of sequences, each with an independent initial state.
        n_steps: Length of the longest sequence.
        n_states: Number of states K.
        n_features: Number of columns.
        separation: Distance of neighbouring means in standard deviations within a state, at least 0.
        stay: Probability of a self-transition, from 0 to 1.
        seed: Random seed.
        unequal: Whether lengths decrease evenly to half of `n_steps`; all are `n_steps` otherwise.

    Example:
        >>> dataset = hidden_markov(n_sequences=3, n_steps=4)
        >>> dataset.units.tolist()
        ['0:0', '0:1', '0:2', '0:3', '1:0', '1:1', '1:2', '2:0', '2:1']
        >>> dataset.truth["transition"].round(4).tolist()
        [[0.9, 0.0667, 0.0333], [0.0333, 0.9, 0.0667], [0.0667, 0.0333, 0.9]]
    """
    name = "hidden_markov"
    counts(name, n_sequences=n_sequences, n_steps=n_steps, n_states=n_states, n_features=n_features)
    number(name, "separation", separation, 0, np.inf)
    number(name, "stay", stay, 0, 1)
    if not isinstance(unequal, bool):
        raise DataError(f"{name}: `unequal` must be true or false; got {unequal!r}.")
    rng = Seeds(seed).child(name).numpy()
    initial, transition = unequal_shares(n_states), _transition(n_states, float(stay))
    mu = means(n_states, n_features, separation * SIGMA, rng)
    lengths = np.ceil(np.linspace(n_steps, n_steps / 2 if unequal else n_steps, n_sequences)).astype(int)
    z = np.concatenate([_path(initial, transition, length, rng) for length in lengths])
    sequence = np.repeat(np.arange(n_sequences), lengths)
    time = np.concatenate([np.arange(length) for length in lengths])
    return Dataset(
        {"x": mu[z] + SIGMA * rng.standard_normal((len(z), n_features))},
        dims={"x": ("unit", "feature")},
        coords={"unit": [f"{s}:{t}" for s, t in zip(sequence, time, strict=True)], "sequence": sequence, "time": time},
        labels=z.astype(str),
        truth={"z": z, "initial": initial, "transition": transition, "mu": mu, "sigma": np.full(mu.shape, SIGMA)},
        truth_dims={
            "z": ("unit",),
            "initial": ("state",),
            "transition": ("state", "next_state"),
            "mu": ("state", "feature"),
            "sigma": ("state", "feature"),
        },
        name=name,
    )


def _transition(n_states: int, stay: float) -> np.ndarray:
    if n_states == 1:
        return np.ones((1, 1))
    steps = np.ones(n_states)
    steps[0], steps[1] = 0.0, 2.0 if n_states > 2 else 1.0
    moves = np.stack([np.roll(steps, state) for state in range(n_states)])
    return stay * np.eye(n_states) + (1 - stay) * moves / moves.sum(axis=1, keepdims=True)


def _path(initial: np.ndarray, transition: np.ndarray, n_steps: int, rng: np.random.Generator) -> np.ndarray:
    """Draw the states of a sequence, from one uniform number each."""
    first, rest = np.cumsum(initial), np.cumsum(transition, axis=1)
    last = len(initial) - 1
    path = np.empty(n_steps, dtype=int)
    for t, u in enumerate(rng.random(n_steps).tolist()):
        path[t] = min(int(np.searchsorted(first if t == 0 else rest[path[t - 1]], u, side="right")), last)
    return path
