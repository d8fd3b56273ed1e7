"""Tests of the functions of positions that describe structured errors."""

import numpy as np

from latentlab.compare import structure as module
from latentlab.compare.structure import structure


def test_functions_are_named_centred_and_have_mean_square_1(rng):
    mean = rng.normal(size=(60, 3))
    names, values = structure(mean, rng)
    assert values.shape == (60, 3 + 6 + 8)
    np.testing.assert_allclose(values.mean(axis=0), 0, atol=1e-12)
    np.testing.assert_allclose((values**2).mean(axis=0), 1)
    at = dict(zip(names, values.T, strict=True))
    assert abs(np.corrcoef(at["linear in axis 2"], mean[:, 1])[0, 1]) > 1 - 1e-12
    assert abs(np.corrcoef(at["quadratic in axis 3"], mean[:, 2] ** 2)[0, 1]) > 1 - 1e-12
    assert abs(np.corrcoef(at["proportional to axis 1 x axis 2"], mean[:, 0] * mean[:, 1])[0, 1]) > 1 - 1e-12


def test_uncentred_positions_have_a_constant_function(rng):
    names, values = structure(rng.normal(size=(60, 2)) + 5, rng, shift=True)
    assert names[0] == "a shift of all units"
    np.testing.assert_array_equal(values[:, 0], 1.0)
    np.testing.assert_allclose(values[:, 1:].mean(axis=0), 0, atol=1e-12)


def test_smooth_functions_match_kernel_principal_components(rng):
    from sklearn.decomposition import KernelPCA
    from sklearn.metrics import pairwise_distances

    mean = rng.normal(size=(80, 2))
    width = np.median(pairwise_distances(mean)[np.triu_indices(80, 1)])
    scores = KernelPCA(8, kernel="rbf", gamma=1 / (2 * width**2)).fit_transform(mean)
    scores /= np.sqrt((scores**2).mean(axis=0))
    found = structure(mean, rng)[1][:, -8:]
    np.testing.assert_allclose(np.abs((found * scores).mean(axis=0)), 1, atol=1e-8)


def test_landmark_functions_approximate_those_of_all_units(rng, monkeypatch):
    mean = rng.normal(size=(600, 2)) * [2, 1]
    some = structure(mean, np.random.default_rng(0))[1][:, 5:8]
    monkeypatch.setattr(module, "LANDMARKS", 600)
    every = structure(mean, rng)[1][:, 5:8]
    angles = np.linalg.svd(np.linalg.qr(some)[0].T @ np.linalg.qr(every)[0])[1]
    assert angles.min() > 0.98


def test_a_zero_axis_has_no_functions(rng):
    names, values = structure(np.column_stack([rng.normal(size=50), np.zeros(50)]), rng)
    assert not any("axis 2" in name for name in names)
    assert np.isfinite(values).all()
