r"""Base class of hidden Markov models, with the states marginalised.

$$ z_1 \sim \pi, \quad z_t \mid z_{t-1} \sim A_{z_{t-1}}, \quad x_t \mid z_t = k \sim p_k $$
The units are time steps. The coordinate `sequence` assigns each step to a sequence. Each sequence starts from the initial
probabilities, and its first state emits its first observation. The distribution of the paths given the other sites is exact.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from latentlab.data.dataset import Dataset
from latentlab.data.series import boundaries
from latentlab.distributions import gaussian_moments
from latentlab.distributions import hidden_markov as chains
from latentlab.distributions.hidden_markov_series import HiddenMarkovSeries
from latentlab.errors import ConfigError, DataError
from latentlab.models.base import Arrays, Caution, LatentModel, MaximumLikelihood, Position
from latentlab.models.emissions.base import FEW, SHRINK, Emission, column_variance
from latentlab.models.expectation_maximization import climb
from latentlab.models.mixture import (
    Units,
    check_new_table,
    check_table,
    coinciding,
    degenerate,
    imputed,
    joined,
    k_means,
    matching_order,
    sample_data,
)
from latentlab.symmetry.groups import Identity, Permutation

LEAST_COUNT = 0.1
"""Pseudo-count of each transition at the start, unless `left_to_right` forbids it."""
FEW_MOVES = 1e-3
"""Expected number of transitions from a state below which its row of `transition` counts as unobserved."""


class HiddenMarkovModel(LatentModel):
    """Base class of hidden Markov models; a subclass defines the program and the emission."""

    positions = (Position("z", kind="discrete"),)
    methods: tuple[str, ...] = ("nuts", "chees", "svi", "map", "exact")
    jitter = 0.5
    n_states: int
    initial_concentration: float
    transition_concentration: float
    sticky: float
    left_to_right: bool
    emission: Any

    def _settings(self, emission: Emission) -> None:
        self.emission = emission
        if self.left_to_right and self.n_states < 2:
            raise ConfigError(f"{type(self).__name__}: `left_to_right` needs at least 2 states; got n_states = {self.n_states}.")
        stay = {"stay": ("step",)} if self.left_to_right else {}
        self.dims = {
            "initial": ("state",),
            **stay,
            "transition": ("state", "next_state"),
            **emission.dims("state"),
            "z": ("unit",),
        }
        exchangeable = emission.exchangeable and not self.left_to_right
        self.symmetry = Permutation("state") if exchangeable else Identity("state")

    def n_labels(self) -> int:
        return self.n_states

    # -- exact conditional distributions

    def _series(self, arrays: Arrays, values: Mapping[str, torch.Tensor]) -> HiddenMarkovSeries:
        starts = begins(arrays.get("sequence"), len(arrays["x"]))
        initial, transition = log_probability(values["initial"]), log_probability(values["transition"])
        return HiddenMarkovSeries(initial, transition, self.emission.components(values), starts, arrays.get("mask"))

    def latents(self, arrays: Arrays, **values: torch.Tensor) -> chains.HiddenPath:
        """Distribution of the paths given x and the other sites; `probs` are smoothed probabilities, `mode` the Viterbi path."""
        return self._series(arrays, values).conditional(arrays["x"])

    def filtered(self, arrays: Arrays, **values: torch.Tensor) -> torch.Tensor:
        """Filtered probabilities `(unit, state)`: of each step's state given the data up to and including this step."""
        return chains.filtered(*self._series(arrays, values).chain(arrays["x"]))

    def leave_one_out(self, arrays: Arrays, **values: torch.Tensor) -> torch.Tensor:
        """log p of each step given all others `(unit,)`; for several sequences, log p of each sequence `(sequence,)`."""
        chain = self._series(arrays, values).chain(arrays["x"])
        several = arrays.get("sequence") is not None and int(arrays["sequence"].max()) > 0
        return chains.sequence_log_likelihood(*chain) if several else chains.leave_one_out(*chain)

    def imputation(self, arrays: Arrays, **values: torch.Tensor) -> torch.distributions.Distribution:
        """Distribution of x given z, the other sites and the observed entries of the step."""
        return imputed(self.emission, arrays, values)

    def replicated(self, arrays: Arrays, **values: torch.Tensor) -> torch.Tensor:
        return self.emission.components(values).sample(values["z"].long())

    def maximum_likelihood(self, arrays: Arrays, rng: np.random.Generator) -> MaximumLikelihood:
        units = Units.of(self.emission, arrays)
        emission, x, observed = units.emission, units.arrays["x"], arrays.get("mask")
        starts = begins(arrays.get("sequence"), len(x))
        initial_fixed = self.left_to_right or self.n_states == 1 or self.initial_concentration == 0

        columns, variance = x.mT.contiguous(), column_variance(x, observed)

        def step(values: Mapping[str, torch.Tensor]) -> tuple[float, dict[str, torch.Tensor]]:
            if least is not None:
                probabilities, each = (values["initial"], values["transition"]), (values["mu"], values["sigma"])
                level, maximum = gaussian_moments.maximum_of_chain(*probabilities, *each, columns, starts, least, FEW)
                if initial_fixed:
                    del maximum["initial"]
                return level, maximum
            components = emission.components(values)
            initial, transition = torch.log(values["initial"]), torch.log(values["transition"])
            if by_kernel:
                level, first, rows, moments = gaussian_moments.of_chain(initial, transition, components, columns, starts, FEW)
                maximum = emission.at_moments(moments, variance, values)
            else:
                density = components.log_prob(x, observed)
                value, counts, pairs, probs = chains.expected_counts(initial, transition, density, starts)
                level, maximum = float(value), emission.maximum(x, observed, probs, values)
                departures, first = pairs.sum(-1, keepdim=True), counts / starts.sum()
                rows = torch.where(departures > FEW, pairs / departures.clamp(min=FEW), values["transition"])
            if not initial_fixed:
                maximum["initial"] = first
            return level, maximum | {"transition": rows}

        def log_likelihood(values: Mapping[str, torch.Tensor]) -> torch.Tensor:
            initial, transition = torch.log(values["initial"]), torch.log(values["transition"])  # probabilities of 0 are fixed
            return HiddenMarkovSeries(initial, transition, emission.components(values), starts, observed).log_prob_sum(x)

        start = {
            name: torch.as_tensor(value) for name, value in self.initialize(arrays, rng).items() if name not in ("z", "stay")
        }
        by_kernel = gaussian_moments.available_for(emission.components(start), x, observed)
        least = emission.least_variances(variance) if by_kernel else None
        fixed = (*(("initial",) if initial_fixed else ()), *emission.fixed_sites())
        found = climb(step, log_likelihood, units.to_standardized(start), len(x), fixed=fixed, at_bound=emission.at_floor)
        notes = self._remarks(units, {name: torch.from_numpy(value) for name, value in found.values.items()})
        maximum = units.to_original(found)
        values = dict(maximum.values)
        if self.left_to_right:
            values["stay"] = np.diagonal(maximum.values["transition"])[:-1].copy()
        return replace(maximum, values=values, notes=(*maximum.notes, *notes))

    def remarks(self, arrays: Arrays, values: Mapping[str, np.ndarray]) -> list[str]:
        units, tensors = Units.of(self.emission, arrays), {name: torch.as_tensor(value) for name, value in values.items()}
        return self._remarks(units, units.to_standardized(tensors))

    def _remarks(self, units: Units, values: Mapping[str, torch.Tensor]) -> list[str]:
        """Remarks on values for standardised data."""
        density = units.emission.components(values).log_prob(units.arrays["x"], units.arrays.get("mask"))
        initial, transition = torch.log(values["initial"]), torch.log(values["transition"])
        starts = begins(units.arrays.get("sequence"), len(density))
        _, _, pairs, probs = chains.expected_counts(initial, transition, density, starts)
        sizes, moves = probs.sum(0).numpy(), pairs.sum(-1).numpy()
        notes = [f"state {k} is almost never visited: {size:.2g} expected steps" for k, size in enumerate(sizes) if size < 1]
        if moves.sum() > FEW_MOVES:
            unknown = [k for k in np.flatnonzero(moves < FEW_MOVES).tolist() if sizes[k] >= 1]
            notes += [f"no transition from state {k} was observed: its row of `transition` is not identified" for k in unknown]
        notes += degenerate(units, values, probs, "state")
        groups = coinciding(density, np.flatnonzero(sizes >= 1))
        return notes + [f"states {joined(group)} coincide: only their transitions can differ" for group in groups]

    # -- data

    def check(self, dataset: Dataset) -> None:
        """Reject data that are not a series, have fewer steps than states, or cannot be emitted.

        Raises:
            DataError: Names both numbers, the column or the sequence.
        """
        what = f"{type(self).__name__}: {dataset.name}"
        check_table(what, dataset)
        boundaries(dataset)
        if len(dataset.x) < self.n_states:
            raise DataError(f"{what} has {len(dataset.x)} steps; n_states = {self.n_states} needs at least {self.n_states}.")
        self.emission.check(what, dataset)

    def check_maximum(self, dataset: Dataset) -> None:
        """Reject data for which the likelihood of every state is unbounded.

        Raises:
            DataError: Names the columns.
        """
        self.emission.check_bound(f"{type(self).__name__}: {dataset.name}", dataset)

    def cautions(self, dataset: Dataset) -> list[Caution]:
        starts = np.diff(boundaries(dataset), prepend=-1) != 0
        notes = ["no transition was observed: every sequence has one step"] if starts.all() and self.n_states > 1 else []
        return [Caution("data", note, 1.0, "no note") for note in notes + self.emission.cautions(dataset)]

    def check_new(self, dataset: Dataset) -> None:
        """Reject values that the states cannot emit.

        Raises:
            DataError: Names column, unit and value.
        """
        check_new_table(f"{type(self).__name__}: {dataset.name}", dataset, self.emission)

    def initialize(self, arrays: Arrays, rng: np.random.Generator) -> dict[str, Any]:
        """Start from the clusters of k-means as states, or from equal parts of each sequence if `left_to_right`."""
        starts = begins(arrays.get("sequence"), len(arrays["x"])).numpy()
        standardized = Units.of(self.emission, arrays).arrays
        labels = _parts(starts, self.n_states) if self.left_to_right else k_means(standardized, self.n_states, rng)
        indicators = torch.eye(self.n_states, dtype=torch.float64)[torch.from_numpy(labels)]
        values = self.emission.maximum(arrays["x"], arrays.get("mask"), indicators, shrink=SHRINK)
        if not self.left_to_right and not self.emission.exchangeable:
            indicators = indicators[:, matching_order(self.emission, values)]
            labels = indicators.argmax(-1).numpy()
            values = self.emission.maximum(arrays["x"], arrays.get("mask"), indicators, shrink=SHRINK)
        counts = np.full((self.n_states, self.n_states), LEAST_COUNT)
        np.add.at(counts, (labels[:-1][~starts[1:]], labels[1:][~starts[1:]]), 1.0)
        if self.left_to_right:
            inside = np.diagonal(counts)[:-1] + 1, np.diagonal(counts, 1) + 1
            values["stay"] = torch.from_numpy(inside[0] / (inside[0] + inside[1]))
            values["transition"] = forward(values["stay"])
            values["initial"] = torch.eye(self.n_states, dtype=torch.float64)[0]
        else:
            values["transition"] = torch.from_numpy(counts / counts.sum(1, keepdims=True))
            first = np.bincount(labels[starts], minlength=self.n_states) + 1.0
            even = self.initial_concentration == 0
            values["initial"] = torch.from_numpy(np.full(self.n_states, 1 / self.n_states) if even else first / first.sum())
        return {**values, "z": torch.from_numpy(labels)}

    def simulate(self, rng: np.random.Generator, n_units: int, n_features: int | None = None) -> Dataset:
        """Draw the sites from their priors, and the data from the model: two sequences if there are at least 6 steps.

        The second sequence has a third of the steps. `n_features` None means one feature, or two if features are correlated.
        """
        K = self.n_states
        n_features = (2 if "corr" in self.dims else 1) if n_features is None else n_features
        initial = np.eye(K)[0] if self.left_to_right or K == 1 else np.full(K, 1 / K)
        if not (self.left_to_right or K == 1 or self.initial_concentration == 0):
            initial = rng.dirichlet(np.full(K, self.initial_concentration))
        rows = self.transition_concentration + self.sticky * np.eye(K)
        truth: dict[str, np.ndarray] = {}
        if self.left_to_right:
            truth["stay"] = rng.beta(rows[0, 0], rows[0, 1], K - 1)
            transition = forward(torch.from_numpy(truth["stay"])).numpy()
        else:
            transition = np.stack([rng.dirichlet(row) for row in rows])
        lengths = [n_units] if n_units < 6 else [n_units - n_units // 3, n_units // 3]
        z = np.concatenate([_path(initial, transition, n, rng) for n in lengths])
        values = self.emission.draw(rng, n_features)
        x = sample_data(self.emission, values, z, rng)
        coords = {
            "sequence": np.repeat([f"s{i}" for i in range(len(lengths))], lengths),
            "time": np.concatenate([np.arange(n) for n in lengths]),
        }
        dataset = Dataset({"x": x}, dims={"x": ("unit", "feature")}, coords=coords, name=f"simulated {self.name}")
        truth |= {"initial": initial, "transition": transition, **values, "z": z}
        return replace(dataset, truth=truth, truth_dims=dict(self.dims))


def begins(sequence: torch.Tensor | None, n_units: int) -> torch.Tensor:
    """True where a sequence begins `(unit,)`."""
    first = torch.ones(1, dtype=torch.bool)
    if sequence is None:
        return torch.cat([first, torch.zeros(n_units - 1, dtype=torch.bool)])
    return torch.cat([first, sequence[1:] != sequence[:-1]])


def log_probability(p: torch.Tensor) -> torch.Tensor:
    """log p, or -inf if p is 0, with finite derivatives everywhere."""
    possible = p > 0
    return torch.where(possible, torch.log(torch.where(possible, p, torch.ones_like(p))), torch.full_like(p, -torch.inf))


def forward(stay: torch.Tensor) -> torch.Tensor:
    """Transitions `(state, next_state)`: a state stays with probability `stay`, else the next follows; the last is absorbing."""
    one, none = torch.ones_like(stay[..., :1]), torch.zeros_like(stay[..., :1])
    stays, leaves = torch.cat([stay, one], -1), torch.cat([1 - stay, none], -1)
    up = torch.diag_embed(torch.ones(len(stay), dtype=stay.dtype), offset=1)
    return torch.diag_embed(stays) + leaves[..., None] * up


def _parts(starts: np.ndarray, n_states: int) -> np.ndarray:
    """Labels `(unit,)` of equal parts of each sequence, one part for each state."""
    lengths = np.diff(np.append(np.flatnonzero(starts), len(starts)))
    return np.concatenate([np.arange(n) * n_states // n for n in lengths])


def _path(initial: np.ndarray, transition: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    z = [int(rng.choice(len(initial), p=initial))]
    while len(z) < n:
        z.append(int(rng.choice(len(initial), p=transition[z[-1]])))
    return np.array(z)
