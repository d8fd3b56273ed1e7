"""Tests of the Viterbi path against enumeration, with missing steps and several sequences."""

import itertools

import numpy as np
import pytest
import torch
from scipy.stats import norm
from sklearn.metrics import adjusted_rand_score

from latentlab.data.dataset import Dataset
from latentlab.data.markov import hidden_markov
from latentlab.data.series import series
from latentlab.embeddings.embed import embed
from latentlab.embeddings.sequences import viterbi
from latentlab.errors import DataError
from latentlab.models.base import MaximumLikelihood
from latentlab.models.gaussian_hmm import GaussianHMM

INITIAL = np.array([0.7, 0.2, 0.1])
TRANSITION = np.array([[0.8, 0.15, 0.05], [0.1, 0.6, 0.3], [0.25, 0.05, 0.7]])
MU = np.array([[-1.0, 0.5], [0.5, 0.0], [1.0, -1.0]])
SIGMA = np.array([[1.0, 0.7], [0.8, 1.2], [0.9, 0.6]])


def fitted_at(values, level=0.0, notes=()):
    return MaximumLikelihood(values, "planted", 0.0, np.array([level]), notes)


@pytest.fixture
def fixed_maximum(monkeypatch):
    """Replaces the maximum likelihood estimate by fixed parameters."""
    values = {"initial": INITIAL, "transition": TRANSITION, "mu": MU, "sigma": SIGMA}
    monkeypatch.setattr(GaussianHMM, "maximum_likelihood", lambda *_: fitted_at(values))


def log_joint(path, x):
    seen = ~np.isnan(x)
    steps = np.log(INITIAL[path[0]]) + np.log(TRANSITION[path[:-1], path[1:]]).sum()
    return steps + norm.logpdf(x, MU[path], SIGMA[path])[seen].sum()


def best_path(x):
    return max((np.array(path) for path in itertools.product(range(3), repeat=len(x))), key=lambda path: log_joint(path, x))


def sequences(seed):
    rng = np.random.default_rng(seed)
    parts = [rng.standard_normal((n, 2)) * 1.5 for n in (6, 1, 4)]
    parts[0][2] = np.nan  # a step at which nothing was observed
    parts[2][1, 0] = np.nan
    return parts


def same_partition(made, path):
    return adjusted_rand_score(made.argmax(axis=1), path) == 1 and (made.sum(axis=1) == 1).all()


def agreements(parts, dataset):
    return same_partition(viterbi(dataset, 3, seed=0, notes=[], n_restarts=1), np.concatenate([best_path(p) for p in parts]))


def test_viterbi_is_the_best_of_all_paths_of_each_sequence(fixed_maximum):
    assert all(agreements(sequences(seed), series(sequences(seed))) for seed in range(8))


def test_joined_sequences_or_zeros_for_missing_entries_give_other_paths(fixed_maximum):
    """Shows that the test above can fail: for joined sequences and for zeros in place of missing entries."""
    joined = [agreements(sequences(seed), series([np.concatenate(sequences(seed))])) for seed in range(8)]
    filled = [agreements(sequences(seed), series([np.nan_to_num(p) for p in sequences(seed)])) for seed in range(8)]
    assert not all(joined)
    assert not all(filled)


def test_the_highest_regular_maximum_is_used(monkeypatch):
    left = {"initial": INITIAL[:2] / 0.9, "transition": np.full((2, 2), 0.5), "mu": MU[:2, :1], "sigma": SIGMA[:2, :1]}
    right = {**left, "mu": MU[:2, :1] + 100}
    runs = iter([fitted_at(left, 1.0), fitted_at(right, 2.0), fitted_at(left, 3.0, ("state 1 is at the lower bound",))])
    monkeypatch.setattr(GaussianHMM, "maximum_likelihood", lambda *_: next(runs))
    notes = []
    made = viterbi(series([[-1.0, -1.0, 0.5, 0.5]]), 2, seed=0, notes=notes, n_restarts=3)
    assert made.argmax(axis=1).tolist() == [0, 0, 0, 0]  # `left` would part the steps, as the last run does
    assert notes == []


def test_viterbi_finds_states_better_than_k_means():
    dataset = hidden_markov(n_sequences=2, n_steps=100, separation=2.0, stay=0.95, seed=3)
    path, steps = (embed(name, dataset, n_latent=3, n_seeds=1).values[0] for name in ("viterbi", "kmeans"))
    score = [adjusted_rand_score(dataset.truth["z"], one.argmax(axis=1)) for one in (path, steps)]
    assert score[0] > score[1] + 0.1
    assert (np.diff(path.sum(axis=0)) <= 0).all()


def test_viterbi_is_reproducible_and_changes_no_global_state():
    dataset = hidden_markov(n_sequences=2, n_steps=30, n_states=2, seed=1)
    before = torch.get_default_dtype(), torch.random.get_rng_state().clone(), np.random.get_state()[1].copy()
    made = [embed("viterbi", dataset, n_seeds=1, n_restarts=2, seed=5).values for _ in range(2)]
    assert made[0].tobytes() == made[1].tobytes()
    assert torch.get_default_dtype() == before[0]
    assert torch.equal(torch.random.get_rng_state(), before[1])
    assert (np.random.get_state()[1] == before[2]).all()


def test_a_state_at_the_variance_floor_is_noted():
    """One outlying step forms its own state, without variance."""
    x = np.zeros((20, 1))
    x[:, 0] = np.random.default_rng(0).standard_normal(20)
    x[10] = 1e4
    made = embed("viterbi", series([x]), n_seeds=1, n_restarts=2)
    assert any("is at the lower bound of the variances" in note for note in made.notes)
    assert made.values[0].sum(axis=0).tolist() == [19, 1]


def test_invalid_series_are_refused_by_viterbi():
    with pytest.raises(DataError, match="sequence 0 is not contiguous"):
        embed("viterbi", hidden_markov(n_sequences=2, n_steps=4).subset([0, 1, 4, 2, 3]))
    cube = Dataset({"x": np.zeros((3, 2, 2))}, dims={"x": ("unit", "row", "column")})
    with pytest.raises(DataError, match=r"must have an array 'x' with dims \(unit, feature\)"):
        embed("viterbi", cube)
