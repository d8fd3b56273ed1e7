"""Tests of kernel and distance metrics against sums over index quadruples, explicit U-centring and scipy."""

import itertools

import numpy as np
import pytest
from scipy.spatial.distance import cdist, pdist
from scipy.stats import rankdata, spearmanr

from latentlab.compare.kernel import average_ranks, cka, cka_rbf, distance_correlation, rsa
from latentlab.compare.positions import paired


def u_centred(K):
    """K_ij - row_i / (n-2) - column_j / (n-2) + all / ((n-1)(n-2)) off the diagonal, which is 0 before and after."""
    n = len(K)
    K = K.astype(float).copy()
    np.fill_diagonal(K, 0.0)
    out = np.zeros_like(K)
    for i, j in itertools.permutations(range(n), 2):
        out[i, j] = K[i, j] - (K[i].sum() + K[:, j].sum()) / (n - 2) + K.sum() / ((n - 1) * (n - 2))
    return out


def correlation(K, L):
    A, B = u_centred(K), u_centred(L)
    return (A * B).sum() / np.sqrt((A * A).sum() * (B * B).sum())


def hsic_by_quadruples(K, L):
    """The U-statistic: mean over ordered quadruples of distinct units of K_ij (L_ij + L_qr - 2 L_iq)."""
    terms = [K[i, j] * (L[i, j] + L[q, r] - 2 * L[i, q]) for i, j, q, r in itertools.permutations(range(len(K)), 4)]
    return np.mean(terms)


@pytest.fixture
def data(rng):
    x = rng.normal(size=(25, 3)) + 2
    return x, x[:, :2] + rng.normal(size=(25, 2)) - 5


def test_cka_matches_u_centring(data):
    x, y = data
    assert cka(x, y) == pytest.approx(correlation(x @ x.T, y @ y.T), abs=1e-12)


def test_cka_matches_the_u_statistic_over_all_quadruples(rng):
    x, y = rng.normal(size=(2, 7, 2))
    K, L = x @ x.T, y @ y.T
    expected = hsic_by_quadruples(K, L) / np.sqrt(hsic_by_quadruples(K, K) * hsic_by_quadruples(L, L))
    assert cka(x, y) == pytest.approx(expected, abs=1e-12)


def test_rbf_cka_matches_u_centring(data):
    kernels = [np.exp(-(cdist(v, v) ** 2) / (2 * np.median(pdist(v)) ** 2)) for v in data]
    assert cka_rbf(*data) == pytest.approx(correlation(*kernels), abs=1e-3)
    # The median of an even number of squares is not the square of the median; with an odd number it is exact.
    x, y = (v[:22] for v in data)
    kernels = [np.exp(-(cdist(v, v) ** 2) / (2 * np.median(pdist(v)) ** 2)) for v in (x, y)]
    assert len(pdist(x)) % 2 == 1
    assert cka_rbf(x, y) == pytest.approx(correlation(*kernels), abs=1e-12)


def test_distance_correlation_matches_u_centring(data):
    x, y = data
    assert distance_correlation(x, y) == pytest.approx(correlation(cdist(x, x), cdist(y, y)), abs=1e-12)


def test_rsa_matches_scipys_spearman_correlation(data):
    x, y = data
    assert rsa(x, y) == pytest.approx(spearmanr(pdist(x), pdist(y)).statistic, abs=1e-12)


def test_rsa_gives_ties_their_average_rank(rng):
    x = rng.integers(0, 3, size=(30, 2)).astype(float)
    y = rng.normal(size=(30, 2))
    assert rsa(x, y) == pytest.approx(spearmanr(np.rint(pdist(x) ** 2), pdist(y)).statistic, abs=1e-12)
    c, s = np.cos(0.7), np.sin(0.7)
    assert rsa(x @ np.array([[c, -s], [s, c]]), y) == pytest.approx(rsa(x, y), abs=1e-12)


def test_average_ranks_match_scipy(rng):
    for values in (rng.normal(size=50), rng.integers(0, 5, size=50).astype(float), np.zeros(3), np.array([2.0])):
        np.testing.assert_array_equal(average_ranks(values), rankdata(values) - 1)


@pytest.mark.parametrize("metric", [cka, cka_rbf, distance_correlation])
@pytest.mark.chance(1e-4)
def test_metrics_of_independent_positions_have_mean_0(metric, rng):
    """20 units, 15 columns: the biased CKA is 0.43 in the mean. Means of 400: within 4 standard errors of 0 (rate 6e-5)."""
    x, y = rng.normal(size=(2, 400, 20, 15))
    values = np.array([metric(*pair) for pair in zip(x, y, strict=True)])
    assert abs(values.mean()) < 4 * values.std() / 20
    x, y = x - x.mean(1, keepdims=True), y - y.mean(1, keepdims=True)
    shared, own_x, own_y = (np.linalg.norm(a.mT @ b, axis=(1, 2)) for a, b in ((x, y), (x, x), (y, y)))
    assert (shared**2 / own_x / own_y).mean() > 0.4  # 0.002 is its standard error


@pytest.mark.parametrize("metric", [cka_rbf, distance_correlation, rsa])
def test_many_units_are_compared_by_the_documented_subsample(metric, rng):
    y = rng.normal(size=(800, 2))
    x = y + 0.5 * rng.normal(size=y.shape)
    chosen = paired(800)
    assert len(chosen) == 500
    assert metric(x, y) == pytest.approx(metric(x[chosen], y[chosen]), abs=1e-9)


def test_cka_uses_all_units(rng):
    y = rng.normal(size=(800, 2))
    x = y + 0.5 * rng.normal(size=y.shape)
    changed = y.copy()
    changed[np.setdiff1d(np.arange(800), paired(800))[0]] += 50
    assert abs(cka(x, changed) - cka(x, y)) > 0.01


@pytest.mark.parametrize("metric", [cka, cka_rbf, distance_correlation, rsa])
def test_equidistant_units_give_0(metric, rng):
    """The distances between vertices of a simplex have no variance, so that correlations are defined as 0."""
    turned = 3.3 * np.eye(12) @ np.linalg.qr(rng.normal(size=(12, 12)))[0] + 1
    for simplex in (np.eye(12), turned):
        assert metric(simplex, rng.normal(size=(12, 2))) == pytest.approx(0.0, abs=1e-12)
        assert metric(simplex, simplex) == 0.0
