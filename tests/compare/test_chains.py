"""Tests of effective sample sizes and of the split of draws into independent halves."""

import tracemalloc

import numpy as np
import pytest
from scipy.signal import lfilter

from latentlab.compare import chains
from latentlab.compare.align import aligner, procrustes_mean
from latentlab.compare.chains import ess, leading_score, split
from latentlab.data import memory
from latentlab.errors import DataError
from latentlab.results.arviz import installed_arviz
from latentlab.symmetry import consensus


def autoregressive(rng, rho, *shape):
    """Stationary AR(1) series along axis 1 of `shape`, of variance 1."""
    noise = rng.normal(size=shape)
    noise[:, 1:] *= np.sqrt(1 - rho**2)
    return lfilter([1.0], [1.0, -rho], noise, axis=1)


@pytest.mark.parametrize("rho", [0.0, 0.5, 0.9])
def test_ess_of_an_autoregression_matches_the_formula(rho, rng):
    """tau = (1 + rho) / (1 - rho). The estimate's sd is about 4% here: 20% is 5 sd."""
    found = ess(autoregressive(rng, rho, 4, 20_000))
    assert found == pytest.approx(80_000 * (1 - rho) / (1 + rho), rel=0.2)


def test_ess_is_close_to_arviz(rng):
    for rho in (0.0, 0.3, 0.8):
        x = autoregressive(rng, rho, 4, 2000)
        assert ess(x) == pytest.approx(float(installed_arviz().ess(x, method="mean")), rel=0.15)


def test_ess_of_several_series_is_more_precise_than_of_one(rng):
    """For 40 independent draws, the mean estimate is 35 from one series and 40 from 200 series together.

    The mean of 500 has standard error 0.4; that of 50 series of an autoregression 2% of the known number.
    """
    every = [rng.normal(size=(2, 20, 200)) for _ in range(50)]
    assert np.mean([ess(x[..., j]) for x in every for j in range(10)]) < 38
    assert min(ess(x) for x in every) > 36
    assert ess(autoregressive(rng, 0.9, 4, 4000, 50)) == pytest.approx(16_000 / 19, rel=0.15)


def test_ess_is_low_for_disagreeing_chains_and_constant_series(rng):
    assert ess(rng.normal(size=(4, 5000))) > 16_000  # about seven standard errors
    x = rng.normal(size=(4, 500))
    assert ess(x + np.array([[0], [3], [0], [3]])) < 10
    assert ess(np.full((4, 500), 2.5)) == 1
    assert ess(-(0.9 ** np.arange(500)[None]) * np.array([1, -1] * 250)) <= 500


def test_whole_chains_are_held_out(rng):
    draws = rng.normal(size=(5, 20, 6, 2))
    reference, held_out = split(draws)
    np.testing.assert_array_equal(reference, draws[[0, 2, 4]])
    np.testing.assert_array_equal(held_out, draws[[1, 3]])


def test_a_single_chain_is_split_with_a_gap_of_five_autocorrelation_times(rng):
    """tau is 19 at rho 0.9, so the gap about 95 draws; its estimate from 12 000 draws is right to a sixth or so."""
    position = np.arange(12_000.0)
    draws = rng.normal(size=(8, 2)) + 0.1 * autoregressive(rng, 0.9, 1, 12_000, 8, 2)
    draws[0, :, 0, 0] += 1e-9 * position
    reference, held_out = split(draws)
    gap = 12_000 - reference.shape[1] - held_out.shape[1]
    assert 40 < gap < 250
    np.testing.assert_array_equal(reference[0], draws[0, : reference.shape[1]])
    np.testing.assert_array_equal(held_out[0], draws[0, -held_out.shape[1] :])
    independent = split(rng.normal(size=(8, 2)) + 0.1 * rng.normal(size=(1, 3000, 8, 2)))
    assert 3000 - sum(half.shape[1] for half in independent) < 15


def test_large_halves_are_thinned_evenly_over_chains(rng, monkeypatch):
    monkeypatch.setattr(chains, "NUMBERS", 1)
    draws = rng.normal(size=(4, 1000, 5, 2))
    reference, held_out = split(draws)
    np.testing.assert_array_equal(reference, draws[::2, ::5])
    np.testing.assert_array_equal(held_out, draws[1::2, ::5])


def test_leading_score_separates_two_modes(rng):
    side = rng.choice([-1.0, 1.0], 600)
    x = rng.normal(size=(600, 30, 2))
    x[:, :10, 0] += 2 * side[:, None]
    assert abs(np.corrcoef(leading_score(x), side)[0, 1]) > 0.95


@pytest.mark.parametrize(
    ("draws", "message"),
    [
        (np.zeros((4, 10, 5)), r"shape \(chain, draw, unit, latent\); got \(4, 10, 5\)"),
        (np.zeros((4, 10, 2, 2)), "more units than latent dimensions; got 2 units"),
        (np.full((4, 10, 5, 2), np.nan), "finite; got 400 non-finite values"),
        (np.ones((2, 3, 5, 2)), "the held-out half need at least 4 draws each; got 2 chain"),
    ],
)
def test_draws_that_cannot_be_split_are_refused(draws, message):
    with pytest.raises(DataError, match=message):
        split(draws)


def test_blockwise_series_equal_series_from_all_errors_at_once(rng, monkeypatch):
    chain = rng.normal(size=(8, 2)) + 0.1 * rng.normal(size=(900, 8, 2)) + rng.normal(size=(900, 1, 2))
    mean = procrustes_mean(chain)
    error = aligner("orthogonal", mean)(chain) - mean
    for block in (memory.BLOCK, 100):
        monkeypatch.setattr(memory, "BLOCK", block)
        distance, score = chains._series(chain)
        np.testing.assert_allclose(distance, (error**2).sum(axis=(1, 2)), rtol=1e-10)
        np.testing.assert_allclose(np.abs(score), np.abs(leading_score(error)), rtol=0, atol=1e-10 * np.abs(score).max())


def test_memory_of_splitting_draws_is_that_of_the_kept_blocks(rng, monkeypatch):
    """Splitting 16 MB of draws keeps blocks of 2 MB, and 400 draws for the leading direction."""
    monkeypatch.setattr(memory, "BLOCK", 2**15)
    monkeypatch.setattr(consensus, "KEPT", 0)
    draws = rng.normal(size=(500, 2)) + 0.1 * rng.normal(size=(1, 2000, 500, 2))
    tracemalloc.start()
    split(draws)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < draws.nbytes
