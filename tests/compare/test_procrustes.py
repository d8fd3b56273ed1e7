"""Tests of Procrustes distances against scipy, an optimiser over rotations and least squares."""

import itertools

import numpy as np
import pytest
from scipy.optimize import minimize, minimize_scalar
from scipy.spatial import procrustes
from scipy.stats import special_ortho_group

from latentlab.compare.procrustes import displacement, procrustes_affine, procrustes_orthogonal, procrustes_similarity


@pytest.fixture
def data(rng):
    y = rng.normal(size=(40, 2)) * [2.0, 0.7] + 3
    return 1.7 * (y + 0.5 * rng.normal(size=y.shape)) @ np.array([[0.0, -1.0], [1.0, 0.3]]) - 1, y


def left(fitted, y):
    return ((fitted - y) ** 2).sum() / ((y - y.mean(0)) ** 2).sum()


def test_displacement_matches_a_loop(data):
    x, y = data
    far = sum((a - b) ** 2 for row, other in zip(x, y, strict=True) for a, b in zip(row, other, strict=True))
    spread = sum((a - m) ** 2 for column, m in zip(y.T, y.mean(axis=0), strict=True) for a in column)
    assert displacement(x, y) == pytest.approx(far / spread)


def test_orthogonal_distance_is_the_minimum_over_rotations_and_reflections(data):
    x, y = data
    x0, y0 = x - x.mean(0), y - y.mean(0)

    def at(angle, sign):
        c, s = np.cos(angle), np.sin(angle)
        return left(x0 @ np.array([[c, -s], [s, c]]) * [1, sign], y0)

    starts = np.linspace(0, 2 * np.pi, 9)
    best = min(
        minimize_scalar(at, args=(sign,), bounds=(a, b), method="bounded", options={"xatol": 1e-10}).fun
        for sign in (1, -1)
        for a, b in itertools.pairwise(starts)
    )
    assert procrustes_orthogonal(x, y) == pytest.approx(best, abs=1e-9)


def test_similarity_distance_matches_scipys_disparity(data):
    assert procrustes_similarity(*data) == pytest.approx(procrustes(*data)[2], abs=1e-12)


def test_similarity_is_the_minimum_over_scales_of_the_orthogonal_distance(data):
    x, y = data
    found = minimize(lambda b: procrustes_orthogonal(b[0] * x, y), [0.5], method="Nelder-Mead", options={"xatol": 1e-9})
    assert procrustes_similarity(x, y) == pytest.approx(found.fun, abs=1e-8)


def test_affine_distance_is_one_minus_r_squared(data):
    x, y = data
    design = np.column_stack([np.ones(len(x)), x])
    assert procrustes_affine(x, y) == pytest.approx(left(design @ np.linalg.lstsq(design, y, rcond=None)[0], y), abs=1e-12)


def test_affine_distance_ignores_linear_maps_of_the_embedding_only(data, rng):
    x, y = data
    A = np.array([[1.0, 5.0], [0.0, 0.1]])
    assert procrustes_affine(x @ A, y) == pytest.approx(procrustes_affine(x, y), abs=1e-10)
    assert abs(procrustes_affine(x, y @ A) - procrustes_affine(x, y)) > 1e-3


def test_procrustes_distances_are_nested(rng):
    for _ in range(50):
        x, y = rng.normal(size=(15, 3)) @ rng.normal(size=(3, 2)), rng.normal(size=(15, 3))
        values = [m(x, y) for m in (procrustes_affine, procrustes_similarity, procrustes_orthogonal, displacement)]
        assert values == sorted(values)


def test_distances_between_transformed_squares():
    square = np.array([[1.0, 1.0], [1.0, -1.0], [-1.0, -1.0], [-1.0, 1.0]])
    assert displacement(square + np.array([3.0, 4.0]), square) == pytest.approx(25 * 4 / 8)
    assert procrustes_orthogonal(2 * square, square) == pytest.approx(1.0)
    assert procrustes_orthogonal(square[:, :1], square) == pytest.approx(0.5)
    turned = square @ special_ortho_group.rvs(2, random_state=1) * 7 + 1
    assert procrustes_similarity(turned, square) == pytest.approx(0.0, abs=1e-12)


def test_the_distance_of_an_axis_aligned_stretch_matches_the_formula():
    """x = y with one of two uncorrelated axes stretched by b: orthogonal (b - 1)^2 share, affine none."""
    y = np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]] * 3)
    assert procrustes_orthogonal(y * [1.5, 1.0], y) == pytest.approx(0.25 / 2)
    assert procrustes_affine(y * [1.5, 1.0], y) == pytest.approx(0.0, abs=1e-12)


def test_affine_distance_is_1_when_any_embedding_would_fit(rng):
    x, y = rng.normal(size=(10, 8)), rng.normal(size=(10, 2))
    assert procrustes_affine(x, y) == 1.0
    assert 0 < procrustes_affine(x[:, :7], y) < 1
