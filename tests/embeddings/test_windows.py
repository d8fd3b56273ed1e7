"""Tests of windows of series against a loop over steps."""

import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score

from latentlab.data.markov import hidden_markov
from latentlab.data.series import series
from latentlab.embeddings.clusters import kmeans
from latentlab.embeddings.embed import embed
from latentlab.embeddings.linear import pca
from latentlab.embeddings.windows import window_kmeans, window_pca
from latentlab.errors import DataError


def looped(sequences, window):
    """Computes the window of each step by its definition."""
    rows = []
    for sequence in sequences:
        last = len(sequence) - 1
        for t in range(len(sequence)):
            rows.append(np.concatenate([sequence[min(max(t + s, 0), last)] for s in range(-(window // 2), window // 2 + 1)]))
    return np.array(rows)


def up_to_sign(a, b, **tolerance):
    return np.allclose(a, b * np.sign((a * b).sum(axis=0)), **tolerance)


@pytest.fixture
def parts(rng):
    return [rng.standard_normal((n, 2)).cumsum(axis=0) for n in (12, 1, 3, 9)]


@pytest.mark.parametrize("window", [1, 3, 5, 11])
def test_windows_match_a_loop_within_each_sequence(parts, window):
    dataset = series(parts)
    q = 1 if window == 1 else 2
    assert up_to_sign(window_pca(dataset.x, dataset, q, window=window), pca(looped(parts, window), q), atol=1e-9)
    made = window_kmeans(dataset.x, dataset, 4, seed=3, window=window)
    assert (made == kmeans(looped(parts, window), 4, seed=3)).all()


def test_trailing_windows_and_joined_sequences_give_other_results(parts):
    """Shows that the test above can fail."""
    dataset = series(parts)
    made = window_pca(dataset.x, dataset, 2, window=5)
    joined = looped([np.concatenate(parts)], 5)
    trailing = np.concatenate([looped([np.concatenate([part[:1], part[:1], part])[:-2]], 5) for part in parts if len(part) > 2])
    assert not up_to_sign(made, pca(joined, 2), atol=1e-2)
    assert not up_to_sign(made[np.r_[:12, 13:25]], pca(trailing, 2), atol=1e-2)


def test_a_window_of_one_step_gives_pca(parts):
    dataset = series(parts)
    assert (window_pca(dataset.x, dataset, 1, window=1) == pca(dataset.x, 1)).all()
    assert (window_kmeans(dataset.x, dataset, 3, seed=0, window=1) == kmeans(dataset.x, 3, seed=0)).all()


def test_windows_depend_on_the_order_of_steps_not_of_sequences(parts):
    dataset = series(parts, names=list("abcd"))
    turned = series(parts[::-1], names=list("dcba"))
    there, back = embed("window_pca", dataset), embed("window_pca", turned).reindexed(dataset.units)
    np.testing.assert_allclose(there.values, back.values, atol=1e-9)
    mixed = series([part[::-1] if i == 0 else part for i, part in enumerate(parts)], names=list("abcd"))
    assert not np.allclose(np.abs(embed("window_pca", mixed).values), np.abs(there.values), atol=1e-2)


def test_a_table_without_sequences_is_treated_as_one_series(parts):
    one = np.concatenate(parts)
    dataset = series([one])
    bare = type(dataset)({"x": one}, dims={"x": ("unit", "feature")})
    np.testing.assert_array_equal(embed("window_pca", bare).values, embed("window_pca", dataset).values)


def test_windows_of_a_sine_wave_form_a_circle():
    """For sin(2 pi t / 12), two columns describe windows exactly and rotate by a twelfth of a turn each step."""
    wave = np.sin(2 * np.pi * np.arange(240) / 12)
    dataset = series([wave])
    inner = slice(10, -10)
    made = window_pca(dataset.x, dataset, 3, window=7)[inner]
    assert made[:, 2].std() < 0.02 * made[:, 0].std()
    circle = made[:, :2] / made[:, :2].std(axis=0)
    angles = np.unwrap(np.arctan2(circle[:, 1], circle[:, 0]))
    np.testing.assert_allclose(np.abs(np.diff(angles)), 2 * np.pi / 12, atol=0.02)


def test_missing_steps_are_imputed_by_column_means_and_noted():
    gap = series([[1.0, 2.0, 9.0, 4.0]], times=[[0, 1, 3, 4]])
    filled = series([[1.0, 2.0, 4.0, 9.0, 4.0]])
    made = embed("window_pca", gap, window=3)
    np.testing.assert_allclose(made.values, embed("window_pca", filled, window=3).values)
    assert made.notes == ("1 missing entries (20.0%) were imputed by the column mean",)
    with pytest.raises(DataError, match="1 entries are missing"):
        embed("window_pca", gap, window=3, impute="error")


def test_unordered_steps_are_refused():
    dataset = series([[1.0, 2.0, 3.0, 5.0], [4.0, 5.0]])
    for name in ("window_pca", "window_kmeans"):
        with pytest.raises(DataError, match="sequence 0 is not contiguous: unit '0:1'"):
            embed(name, dataset.subset([0, 4, 1, 2]), window=3)


def test_windows_find_persistent_states_better_than_single_steps():
    dataset = hidden_markov(n_sequences=5, n_steps=300, separation=2.0, stay=0.97)
    steps, windows = (
        np.mean([adjusted_rand_score(dataset.labels, made.argmax(axis=1)) for made in embed(name, dataset, n_latent=3).values])
        for name in ("kmeans", "window_kmeans")
    )
    assert windows > steps + 0.1
