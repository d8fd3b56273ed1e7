"""Tests of the alignment of draws, embeddings and true positions to the posterior mean."""

import numpy as np
import pytest
from scipy.linalg import orthogonal_procrustes
from sklearn.linear_model import LinearRegression
from sklearn.model_selection import PredefinedSplit, cross_val_predict

from latentlab.compare.align import ALIGNMENTS, aligner, centred, principal_axes, procrustes_mean, scales
from latentlab.data import memory
from latentlab.errors import ConfigError, DataError
from latentlab.symmetry import consensus


def rotation(rng, *shape, size):
    return np.linalg.qr(rng.normal(size=(*shape, size, size)))[0]


@pytest.fixture
def mean(rng):
    return principal_axes(rng.normal(size=(40, 3)) * [2.0, 1.0, 0.5])


def transformed_mean(alignment, mean, rng):
    """Transforms the mean by an element of the alignment's group and a shift."""
    if alignment == "fixed":
        return mean
    element = {
        "orthogonal": rotation(rng, size=3),
        "similarity": 0.2 * rotation(rng, size=3),
        "affine": rng.normal(size=(3, 3)),
    }[alignment]
    return mean @ element + rng.normal(size=3)


@pytest.mark.parametrize("alignment", ALIGNMENTS)
def test_alignment_undoes_its_own_group_only(alignment, mean, rng):
    for k, other in enumerate(ALIGNMENTS):
        error = np.abs(aligner(alignment, mean)(transformed_mean(other, mean, rng)) - mean).max()
        if k <= ALIGNMENTS.index(alignment):
            assert error < 1e-10
        else:
            assert error > 0.05


def test_orthogonal_alignment_matches_scipy(mean, rng):
    y = rng.normal(size=mean.shape)
    y -= y.mean(axis=0)
    np.testing.assert_allclose(aligner("orthogonal", mean)(y + 3), y @ orthogonal_procrustes(y, mean)[0], atol=1e-12)


def test_scale_and_affine_map_come_from_the_regression_on_the_mean(mean, rng):
    noisy = mean + rng.normal(size=mean.shape)
    size = (mean**2).sum()
    assert (mean * aligner("similarity", mean)(noisy)).sum() == pytest.approx(size)
    np.testing.assert_allclose(mean.T @ aligner("affine", mean)(noisy), mean.T @ mean, atol=1e-9 * size)


def test_scaled_draws_have_the_size_of_the_mean(rng):
    """The mean of scaled draws has the size of M; a least-squares scale would leave 1 / (1 + noise) of it."""
    mean = principal_axes(rng.normal(size=(500, 2)))
    draws = mean + rng.normal(size=(50, 500, 2))
    for alignment in ("similarity", "affine"):
        aligned = aligner(alignment, mean)(draws).mean(axis=0)
        assert (aligned * mean).sum() / (mean**2).sum() == pytest.approx(1.0, abs=1e-9)


@pytest.mark.parametrize("alignment", ALIGNMENTS)
def test_aligning_many_draws_at_once_equals_aligning_each(alignment, mean, rng):
    draws = mean + 0.3 * rng.normal(size=(2, 5, *mean.shape))
    align = aligner(alignment, mean)
    each = np.array([[align(draw) for draw in chain] for chain in draws])
    np.testing.assert_allclose(align(draws), each, atol=1e-10)


@pytest.mark.parametrize("alignment", ALIGNMENTS)
def test_missing_columns_are_filled_with_zeros(alignment, mean, rng):
    y = rng.normal(size=(len(mean), 2))
    align = aligner(alignment, mean)
    np.testing.assert_allclose(align(y), align(np.column_stack([y, np.zeros(len(y))])), atol=1e-12)
    assert np.linalg.matrix_rank(align(y), tol=1e-8) == 2


@pytest.mark.parametrize("alignment", [way for way in ALIGNMENTS if way != "fixed"])
@pytest.mark.parametrize("value", [0.0, 3.7, -1e9])
def test_a_constant_embedding_is_aligned_to_the_origin(alignment, value, mean, rng):
    rounded = value * (1 + 1e-15 * rng.normal(size=mean.shape))
    for y in (np.full_like(mean, value), rounded):
        assert (aligner(alignment, mean)(y) == 0).all()


def test_affine_alignment_maps_extra_columns_linearly(mean, rng):
    np.testing.assert_allclose(aligner("affine", mean)(mean @ rng.normal(size=(3, 7)) + 1), mean, atol=1e-8)
    for alignment in ("orthogonal", "similarity"):
        with pytest.raises(DataError, match="must be 'affine' for an embedding with 7 columns and 3 latent dimensions"):
            aligner(alignment, mean)(rng.normal(size=(40, 7)))


def test_the_affine_map_of_extra_columns_is_cross_fitted(rng):
    mean = principal_axes(rng.normal(size=(100, 2)))
    noise = rng.normal(size=(100, 60))
    folds = PredefinedSplit(np.arange(100) % 5)
    predicted = cross_val_predict(LinearRegression(), noise, mean, cv=folds)
    align = aligner("affine", mean)
    np.testing.assert_allclose(align(noise), align(predicted), atol=1e-6)
    assert ((align(noise) - mean) ** 2).sum() > 10 * (mean**2).sum()


def test_scales_are_the_factors_that_match_the_mean(mean, rng):
    y = np.stack([mean @ rotation(rng, size=3) * factor + 1 for factor in (0.5, 1.0, 4.0)])
    np.testing.assert_allclose(scales(y, mean), [2.0, 1.0, 0.25])
    assert scales(np.full_like(mean, 2.0), mean) == np.inf
    assert scales(mean @ rng.normal(size=(3, 5)), mean) == pytest.approx(1.0)


def test_procrustes_mean_ignores_rotation_and_order_of_draws(rng):
    truth = rng.normal(size=(30, 2)) * [2.0, 1.0]
    draws = truth + 0.3 * rng.normal(size=(50, 30, 2))
    mean = procrustes_mean(draws)
    other = procrustes_mean(rng.permutation(draws) @ rotation(rng, 50, size=2) + rng.normal(size=(50, 1, 2)))
    np.testing.assert_allclose(other, mean, atol=1e-7)
    np.testing.assert_allclose(aligner("orthogonal", mean)(draws).mean(axis=0), mean, atol=1e-7)


def test_principal_axes_are_uncorrelated_and_ordered(rng):
    scores = principal_axes(rng.normal(size=(50, 4)) @ rng.normal(size=(4, 4)) + 5)
    np.testing.assert_allclose(scores.mean(axis=0), 0, atol=1e-12)
    covariance = scores.T @ scores
    np.testing.assert_allclose(covariance, np.diag(np.sort(np.diag(covariance))[::-1]), atol=1e-9)
    assert (np.take_along_axis(scores, np.abs(scores).argmax(axis=0)[None], 0) > 0).all()


def test_invalid_alignments_and_shapes_are_refused(mean):
    with pytest.raises(ConfigError, match="unknown alignment 'afine'; did you mean 'affine'"):
        aligner("afine", mean)
    with pytest.raises(DataError, match=r"\(\.\.\., 40 units, columns\).*got \(39, 3\)"):
        aligner("orthogonal", mean)(mean[1:])


def test_the_mean_of_draws_equals_the_mean_of_centred_copies(rng, monkeypatch):
    """Compares with centred copies, also in blocks of one draw; draws constant up to rounding become 0."""
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
