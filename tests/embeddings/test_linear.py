"""Tests of PCA, factor analysis and kernel PCA against closed forms, EM and scikit-learn."""

import re

import numpy as np
import pytest
from scipy.spatial.distance import pdist, squareform
from sklearn.decomposition import PCA, FactorAnalysis, KernelPCA

from latentlab.data.load import load_dataset
from latentlab.embeddings.linear import factor_analysis, kernel_pca, pca
from latentlab.embeddings.manifold import mds
from latentlab.errors import ConfigError, DataError


@pytest.fixture(scope="module")
def raw():
    return load_dataset("wine", standardize=False).x


def up_to_sign(a, b, **tolerance):
    signs = np.sign((a * b).sum(axis=0))
    return np.allclose(a, b * signs, **tolerance)


# -- PCA


@pytest.mark.parametrize("q", [1, 2, 5, 12])
def test_pca_matches_svd_classical_scaling_and_scikit_learn(raw, q):
    centred = raw - raw.mean(axis=0)
    u, s, vt = np.linalg.svd(centred, full_matrices=False)
    size = s[0]
    scores = pca(raw, q)
    assert up_to_sign(scores, u[:, :q] * s[:q], atol=1e-12 * size)
    assert up_to_sign(scores, centred @ vt[:q].T, atol=1e-11 * size)
    assert up_to_sign(scores, mds(raw, q, method="classical", notes=[]), atol=1e-7 * size)
    assert up_to_sign(scores, PCA(q, svd_solver="full").fit_transform(raw), atol=1e-11 * size)


def test_pca_scores_are_centred_with_the_largest_eigenvalues_as_variances(raw):
    scores = pca(raw, 4)
    covariance = scores.T @ scores / len(raw)
    values = np.linalg.eigvalsh(np.cov(raw.T, ddof=0))[::-1][:4]
    assert np.abs(scores.mean(axis=0)).max() < 1e-9 * np.abs(scores).max()
    assert np.allclose(np.diag(covariance), values, rtol=1e-8)
    assert np.abs(covariance - np.diag(np.diag(covariance))).max() < 1e-10 * values[0]


def test_whitened_scores_have_variance_1(wine):
    white = pca(wine, 3, whiten=True)
    assert np.allclose(white.T @ white / len(wine), np.eye(3), atol=1e-12)
    n = len(wine)
    theirs = PCA(3, whiten=True, svd_solver="full").fit_transform(wine)
    assert up_to_sign(white, theirs * np.sqrt(n / (n - 1)), atol=1e-10)


def test_data_of_low_rank_have_scores_but_cannot_be_whitened(wine):
    flat = wine[:, :2] @ np.ones((2, 5))
    assert np.abs(pca(flat, 3)[:, 1:]).max() < 1e-10
    with pytest.raises(DataError, match="the data have rank 1, so 3 columns cannot be whitened"):
        pca(flat, 3, whiten=True)


def test_a_large_offset_loses_only_its_own_digits(wine):
    assert up_to_sign(pca(wine + 1e8, 3), pca(wine, 3), atol=1e-5)


# -- factor analysis


def factor_analysis_em(x, q, n_steps=20_000):
    """Rubin & Thayer's EM on the covariance, from the principal axes: loadings and noise variances."""
    s = np.cov(x.T, ddof=0)
    values, vectors = np.linalg.eigh(s)
    w = vectors[:, -q:] * np.sqrt(values[-q:])
    psi = np.diag(s) / 2
    for _ in range(n_steps):
        beta = np.linalg.solve(w @ w.T + np.diag(psi), w).T
        moments = np.eye(q) - beta @ w + beta @ s @ beta.T
        new = s @ beta.T @ np.linalg.inv(moments)
        psi, step = np.diag(s - new @ beta @ s), np.abs(new - w).max()
        w = new
        if step < 1e-12:
            break
    return w, psi


@pytest.fixture(scope="module")
def fitted(wine):
    return factor_analysis_em(wine, 2)


def test_factor_scores_are_the_posterior_mean_at_maximum_likelihood(wine, fitted):
    w, psi = fitted
    c = w @ w.T + np.diag(psi)
    s = np.cov(wine.T, ddof=0)
    stationary = np.linalg.solve(c, (c - s) @ np.linalg.solve(c, w))
    assert np.abs(stationary).max() < 1e-9, "the oracle is at a maximum"
    mean = (wine - wine.mean(axis=0)) @ np.linalg.solve(c, w)
    found = factor_analysis(wine, 2, notes=[])
    u, _, vt = np.linalg.svd(mean.T @ found)
    assert np.abs(mean @ (u @ vt) - found).max() < 1e-3, "up to a rotation"
    assert np.allclose(found.mean(axis=0), 0, atol=1e-12)


def test_factor_scores_match_scikit_learn_and_are_scale_invariant(wine, raw):
    theirs = FactorAnalysis(2, svd_method="lapack", tol=1e-8, max_iter=20_000).fit_transform(wine)
    ours = factor_analysis(wine, 2, notes=[])
    assert up_to_sign(ours, theirs, atol=1e-10)
    for scales in (np.ones(13), np.geomspace(1e-9, 1e9, 13)):
        assert up_to_sign(factor_analysis(raw * scales, 2, notes=[]), ours, atol=1e-7)


def test_varimax_rotates_towards_simple_loadings(wine, fitted):
    plain = factor_analysis(wine, 2, notes=[])
    rotated = factor_analysis(wine, 2, rotation="varimax", notes=[])
    turn = np.linalg.lstsq(plain, rotated, rcond=None)[0]
    assert np.allclose(turn @ turn.T, np.eye(2), atol=1e-6)
    assert np.abs(turn).max() < 0.999, "it is turned"

    def varimax(loadings):
        return (loadings**2).var(axis=0).sum()

    # E[z z^T] = I at the maximum, so that loadings are cov(x, z), z being the scores and their posterior's spread.
    w, psi = fitted
    inner = np.eye(2) + w.T @ (w / psi[:, None])
    spread = np.linalg.inv(inner)
    loadings = (
        wine.T @ plain / len(wine) @ np.linalg.inv(plain.T @ plain / len(wine) + rotated_covariance(spread, wine, plain, fitted))
    )
    best = max(
        varimax(loadings @ np.array([[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]])) for a in np.linspace(0, np.pi, 1801)
    )
    assert varimax(loadings @ turn) == pytest.approx(best, rel=1e-4)
    assert varimax(loadings) < varimax(loadings @ turn) - 1e-4


def rotated_covariance(spread, x, scores, fitted):
    """The posterior covariance in the rotation of the scores."""
    w, psi = fitted
    mean = x @ np.linalg.solve(w @ w.T + np.diag(psi), w)
    u, _, vt = np.linalg.svd(mean.T @ scores)
    return (u @ vt).T @ spread @ (u @ vt)


def test_factor_analysis_refuses_a_constant_column(wine):
    x = wine.copy()
    x[:, 4] = 0.1
    with pytest.raises(DataError, match=r"column 4 \(counting from 0\) is constant"):
        factor_analysis(x, 2, notes=[])


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_a_heywood_case_is_noted(rng):
    """Correlations of .8, .8 and .5 imply a noise variance of 1 - .8 .8 / .5 < 0 for the first feature."""
    correlations = np.array([[1.0, 0.8, 0.8], [0.8, 1.0, 0.5], [0.8, 0.5, 1.0]])
    e = rng.standard_normal((100, 3))
    white = (e - e.mean(axis=0)) @ np.linalg.inv(np.linalg.cholesky(np.cov(e.T))).T
    x = white @ np.linalg.cholesky(correlations).T
    notes = []
    scores = factor_analysis(x, 1, notes=notes)
    assert notes == ["the noise variance of 1 feature was estimated as 0 (a Heywood case)"]
    assert abs(np.corrcoef(scores[:, 0], x[:, 0])[0, 1]) > 0.9999
    z = rng.standard_normal((100, 1))
    factor_analysis(z + rng.standard_normal((100, 5)), 1, notes=notes)
    assert len(notes) == 1


# -- kernel PCA


@pytest.mark.parametrize("gamma", [None, 0.02, 0.3])
def test_kernel_pca_matches_the_centred_kernel_and_scikit_learn(wine, gamma):
    n = len(wine)
    width = 1 / wine.shape[1] if gamma is None else gamma
    kernel = np.exp(-width * squareform(pdist(wine)) ** 2)
    centre = np.eye(n) - 1 / n
    values, vectors = np.linalg.eigh(centre @ kernel @ centre)
    found = kernel_pca(wine, 3, gamma=gamma)
    assert up_to_sign(found, (vectors * np.sqrt(np.maximum(values, 0)))[:, ::-1][:, :3], atol=1e-9)
    assert up_to_sign(found, KernelPCA(3, kernel="rbf", gamma=gamma, eigen_solver="dense").fit_transform(wine), atol=1e-9)


def test_kernel_pca_with_a_wide_kernel_approximates_scaled_pca(wine):
    gamma = 1e-8
    assert up_to_sign(kernel_pca(wine, 2, gamma=gamma) / np.sqrt(2 * gamma), pca(wine, 2), atol=1e-4)
    assert not up_to_sign(kernel_pca(wine, 2), pca(wine, 2) * np.sqrt(2 / 13), atol=0.1)


@pytest.mark.parametrize(("gamma", "limit"), [(1e3, 0), (1e-16, 1)])
def test_a_degenerate_kernel_width_is_refused_with_a_suggestion(wine, gamma, limit):
    with pytest.raises(ConfigError, match=rf"with `gamma` = {re.escape(format(gamma, '.3g'))} the .* nearly {limit}; .* is 2\d"):
        kernel_pca(wine, 2, gamma=gamma)
