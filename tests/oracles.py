"""Independent formulas: dense Gaussians, eigenvalues, and conditioning of a joint distribution."""

import numpy as np
from scipy.stats import multivariate_normal


def gaussian_log_density(x, mu, covariance):
    """log N(row; mu, covariance) over the entries that are not NaN, `(unit,)`."""
    rows = []
    for row in x:
        o = ~np.isnan(row)
        rows.append(multivariate_normal(mu[o], covariance[np.ix_(o, o)]).logpdf(row[o]) if o.any() else 0.0)
    return np.array(rows)


def positions_given(x, mu, W, noise_variance):
    """Mean and covariance of z given each row's observed entries, by conditioning the joint Gaussian of (z, x)."""
    q = W.shape[1]
    joint = np.block([[np.eye(q), W.T], [W, W @ W.T + np.diag(np.broadcast_to(noise_variance, len(W)))]])
    means, covariances = [], []
    for row in x:
        o = np.flatnonzero(~np.isnan(row))
        gain = joint[:q, q + o] @ np.linalg.inv(joint[np.ix_(q + o, q + o)])
        means.append(gain @ (row - mu)[o])
        covariances.append(np.eye(q) - gain @ joint[q + o, :q])
    return np.array(means), np.array(covariances)


def ppca_optimum(x, q):
    """Tipping and Bishop's closed form: log likelihood, sigma^2, W W^T, the mean of z in principal axes, its covariance."""
    n, d = x.shape
    S = np.cov(x.T, ddof=0)
    values, vectors = np.linalg.eigh(S)
    values, vectors = values[::-1], vectors[:, ::-1]
    s2 = values[q:].mean()
    log_likelihood = -n / 2 * (d * np.log(2 * np.pi) + np.log(values[:q]).sum() + (d - q) * np.log(s2) + d)
    WW = vectors[:, :q] @ np.diag(values[:q] - s2) @ vectors[:, :q].T
    scores = (x - x.mean(0)) @ vectors[:, :q]
    return log_likelihood, s2, WW, scores * np.sqrt(values[:q] - s2) / values[:q], np.diag(s2 / values[:q])
