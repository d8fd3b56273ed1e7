"""One alignment for draws, embedding and truth: it undoes its group, regresses the right way, and treats all alike."""

import numpy as np
import pytest
from scipy.linalg import orthogonal_procrustes
from sklearn.linear_model import LinearRegression
from sklearn.model_selection import PredefinedSplit, cross_val_predict

from latentlab.compare.align import ALIGNMENTS, aligner, centred, principal_axes, procrustes_mean, scales
from latentlab.data import memory
from latentlab.errors import ConfigError, DataError
from latentlab.symmetry import consensus


def turns(rng, *shape, size):
    return np.linalg.qr(rng.normal(size=(*shape, size, size)))[0]


@pytest.fixture
def mean(rng):
    return principal_axes(rng.normal(size=(40, 3)) * [2.0, 1.0, 0.5])


def moved(alignment, mean, rng):
    """The mean after an element of the alignment's group and a shift."""
    if alignment == "fixed":
        return mean
    element = {
        "orthogonal": turns(rng, size=3),
        "similarity": 0.2 * turns(rng, size=3),
        "affine": rng.normal(size=(3, 3)),
    }[alignment]
    return mean @ element + rng.normal(size=3)


@pytest.mark.parametrize("alignment", ALIGNMENTS)
def test_alignment_undoes_its_group_and_no_larger_one(alignment, mean, rng):
    for k, other in enumerate(ALIGNMENTS):
        error = np.abs(aligner(alignment, mean)(moved(other, mean, rng)) - mean).max()
        if k <= ALIGNMENTS.index(alignment):
            assert error < 1e-10
        else:
            assert error > 0.05


def test_orthogonal_alignment_is_scipys(mean, rng):
    y = rng.normal(size=mean.shape)
    y -= y.mean(axis=0)
    np.testing.assert_allclose(aligner("orthogonal", mean)(y + 3), y @ orthogonal_procrustes(y, mean)[0], atol=1e-12)


def test_scale_and_affine_map_are_those_of_the_regression_on_the_mean(mean, rng):
    noisy = mean + rng.normal(size=mean.shape)
    size = (mean**2).sum()
    assert (mean * aligner("similarity", mean)(noisy)).sum() == pytest.approx(size)
    np.testing.assert_allclose(mean.T @ aligner("affine", mean)(noisy), mean.T @ mean, atol=1e-9 * size)


def test_draws_do_not_shrink_when_they_are_scaled(rng):
    """The mean of scaled draws has the size of M; a least-squares scale would leave 1 / (1 + noise) of it."""
    mean = principal_axes(rng.normal(size=(500, 2)))
    draws = mean + rng.normal(size=(50, 500, 2))
    for alignment in ("similarity", "affine"):
        aligned = aligner(alignment, mean)(draws).mean(axis=0)
        assert (aligned * mean).sum() / (mean**2).sum() == pytest.approx(1.0, abs=1e-9)


@pytest.mark.parametrize("alignment", ALIGNMENTS)
def test_a_stack_of_draws_is_aligned_as_each_alone(alignment, mean, rng):
    draws = mean + 0.3 * rng.normal(size=(2, 5, *mean.shape))
    align = aligner(alignment, mean)
    each = np.array([[align(draw) for draw in chain] for chain in draws])
    np.testing.assert_allclose(align(draws), each, atol=1e-10)


@pytest.mark.parametrize("alignment", ALIGNMENTS)
def test_fewer_columns_are_filled_up_with_zeros(alignment, mean, rng):
    y = rng.normal(size=(len(mean), 2))
    align = aligner(alignment, mean)
    np.testing.assert_allclose(align(y), align(np.column_stack([y, np.zeros(len(y))])), atol=1e-12)
    assert np.linalg.matrix_rank(align(y), tol=1e-8) == 2


@pytest.mark.parametrize("alignment", [way for way in ALIGNMENTS if way != "fixed"])
@pytest.mark.parametrize("value", [0.0, 3.7, -1e9])
def test_a_constant_goes_to_the_origin(alignment, value, mean, rng):
    rounded = value * (1 + 1e-15 * rng.normal(size=mean.shape))
    for y in (np.full_like(mean, value), rounded):
        assert (aligner(alignment, mean)(y) == 0).all()


def test_more_columns_are_mapped_linearly_when_affine(mean, rng):
    np.testing.assert_allclose(aligner("affine", mean)(mean @ rng.normal(size=(3, 7)) + 1), mean, atol=1e-8)
    for alignment in ("orthogonal", "similarity"):
        with pytest.raises(DataError, match="must be 'affine' for an embedding with 7 columns and 3 latent dimensions"):
            aligner(alignment, mean)(rng.normal(size=(40, 7)))


def test_the_map_of_more_columns_is_fitted_to_other_units(rng):
    mean = principal_axes(rng.normal(size=(100, 2)))
    noise = rng.normal(size=(100, 60))
    folds = PredefinedSplit(np.arange(100) % 5)
    predicted = cross_val_predict(LinearRegression(), noise, mean, cv=folds)
    align = aligner("affine", mean)
    np.testing.assert_allclose(align(noise), align(predicted), atol=1e-6)
    assert ((align(noise) - mean) ** 2).sum() > 10 * (mean**2).sum()


def test_scales_are_the_growth_that_is_needed(mean, rng):
    y = np.stack([mean @ turns(rng, size=3) * factor + 1 for factor in (0.5, 1.0, 4.0)])
    np.testing.assert_allclose(scales(y, mean), [2.0, 1.0, 0.25])
    assert scales(np.full_like(mean, 2.0), mean) == np.inf
    assert scales(mean @ rng.normal(size=(3, 5)), mean) == pytest.approx(1.0)


def test_procrustes_mean_does_not_depend_on_how_draws_are_turned_or_ordered(rng):
    truth = rng.normal(size=(30, 2)) * [2.0, 1.0]
    draws = truth + 0.3 * rng.normal(size=(50, 30, 2))
    mean = procrustes_mean(draws)
    other = procrustes_mean(rng.permutation(draws) @ turns(rng, 50, size=2) + rng.normal(size=(50, 1, 2)))
    np.testing.assert_allclose(other, mean, atol=1e-7)
    np.testing.assert_allclose(aligner("orthogonal", mean)(draws).mean(axis=0), mean, atol=1e-7)


def test_principal_axes_are_uncorrelated_and_ordered(rng):
    scores = principal_axes(rng.normal(size=(50, 4)) @ rng.normal(size=(4, 4)) + 5)
    np.testing.assert_allclose(scores.mean(axis=0), 0, atol=1e-12)
    covariance = scores.T @ scores
    np.testing.assert_allclose(covariance, np.diag(np.sort(np.diag(covariance))[::-1]), atol=1e-9)
    assert (np.take_along_axis(scores, np.abs(scores).argmax(axis=0)[None], 0) > 0).all()


def test_errors_name_what_is_wrong(mean):
    with pytest.raises(ConfigError, match="unknown alignment 'afine'; did you mean 'affine'"):
        aligner("afine", mean)
    with pytest.raises(DataError, match=r"\(\.\.\., 40 units, columns\).*got \(39, 3\)"):
        aligner("orthogonal", mean)(mean[1:])


def test_the_mean_of_draws_is_that_of_centred_ones(rng, monkeypatch):
    """By the formula with copies, and in blocks of one draw; draws at one point but for round-off count as nothing."""
    draws = 1e3 + rng.normal(size=(30, 12, 3)) + 5 * rng.normal(size=(12, 3))
    draws[4] = 0.1 + 1e-15 * rng.normal(size=(12, 3))
    less = draws - draws.mean(axis=1, keepdims=True)
    flat = np.abs(less).max(axis=(1, 2), keepdims=True) <= 1e-12 * np.abs(draws).max(axis=(1, 2), keepdims=True)
    expected = np.where(flat, 0.0, less)
    assert not expected[4].any()
    np.testing.assert_array_equal(centred(draws), expected)
    np.testing.assert_array_equal(centred(draws[4]), 0.0)
    whole = consensus.rotation_consensus(expected)[1]
    np.testing.assert_allclose(procrustes_mean(draws), whole, rtol=0, atol=1e-10)
    monkeypatch.setattr(memory, "BLOCK", 1)
    monkeypatch.setattr(consensus, "KEPT", 0)
    np.testing.assert_allclose(procrustes_mean(draws), whole, rtol=0, atol=1e-10)
