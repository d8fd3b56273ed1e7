import numpy as np
import oracles
import pytest
import torch
from sklearn.decomposition import FactorAnalysis as SklearnFactorAnalysis

from latentlab.data.dataset import Dataset
from latentlab.data.load import load_dataset
from latentlab.errors import InferenceError
from latentlab.fit import fit
from latentlab.inference.arrays import tensors
from latentlab.inference.exact import Exact
from latentlab.models.factor_analysis import FactorAnalysis
from latentlab.models.linear_gaussian import _encoder
from latentlab.models.ppca import PPCA
from latentlab.seeds import double


def optimum(model, dataset):
    with double():
        return model.maximum_likelihood(tensors(model, dataset), np.random.default_rng(0))


def mean_gradient(x, mask, W, mu, variance, own_noise):
    """Derivatives of the mean log likelihood by the dense formula, with torch's own multivariate normal, row by row."""
    W, mu, log_variance = (torch.tensor(a, requires_grad=True) for a in (W, mu, np.log(variance)))
    total = 0.0
    for row, o in zip(torch.tensor(x), torch.tensor(mask), strict=True):
        C = (W @ W.T + torch.diag(log_variance.exp().expand(len(mu))))[o][:, o]
        total = total + torch.distributions.MultivariateNormal(mu[o], C).log_prob(row[o])
    return max(float(g.abs().max()) for g in torch.autograd.grad(total / len(x), (W, mu, log_variance)))


@pytest.mark.parametrize("name", ["wine", "breast_cancer", "digits"])
def test_ppca_maximum_matches_the_closed_form(name):
    dataset = load_dataset(name, drop_constant=True)
    result = fit(PPCA(n_latent=3), dataset, Exact(n_draws=2), seed=0)
    log_likelihood, s2, WW, mean, covariance = oracles.ppca_optimum(dataset.x, 3)
    sites = {k: v[0, 0] for k, v in result.sites().items()}
    W = sites["W"]
    assert float(result.data["log_likelihood"]["log_likelihood"].values[0, 0].sum()) == pytest.approx(log_likelihood, rel=1e-8)
    assert sites["sigma"] ** 2 == pytest.approx(s2, rel=1e-8)
    np.testing.assert_allclose(W @ W.T, WW, atol=1e-8 * np.abs(WW).max())
    model = result.model
    values = {k: torch.from_numpy(np.asarray(v)) for k, v in sites.items() if k != "z"}
    z = model.latents(tensors(model, dataset), **values)
    turn = np.linalg.lstsq(z.mean.numpy(), mean, rcond=None)[0]
    np.testing.assert_allclose(np.abs(turn), np.eye(3), atol=1e-8)  # principal axes: signs only
    np.testing.assert_allclose(z.mean.numpy() @ turn, mean, atol=1e-8 * np.abs(mean).max())
    np.testing.assert_allclose(z.covariance_matrix.expand(len(mean), 3, 3)[0].numpy(), covariance, atol=1e-8)


@pytest.mark.parametrize("model", [PPCA(2), FactorAnalysis(2)], ids=["ppca", "factor_analysis"])
def test_maximum_with_missing_entries_is_stationary_with_exact_conditional(model):
    dataset = load_dataset("wine", missing=0.2)
    found = optimum(model, dataset)
    W, mu, noise = found.values["W"], found.values["mu"], found.values[model.noise]
    assert "EM" in found.how
    assert found.gradient < 1e-8
    assert mean_gradient(np.nan_to_num(dataset.x), dataset.mask, W, mu, noise**2, own_noise=noise.ndim > 0) < 1e-8
    assert (np.diff(found.trace) > -1e-9 * abs(found.trace[-1])).all()  # EM never loses
    values = {k: torch.from_numpy(np.asarray(v)) for k, v in found.values.items()}
    z = model.latents(tensors(model, dataset), **values)
    mean, covariance = oracles.positions_given(dataset.x, mu, W, noise**2)
    np.testing.assert_allclose(z.mean.numpy(), mean, atol=1e-9)
    np.testing.assert_allclose(z.covariance_matrix.numpy(), covariance, atol=1e-9)


def test_em_matches_the_closed_form_without_missing_entries():
    dataset = load_dataset("wine")
    masked = {"x": torch.from_numpy(dataset.x.copy()), "mask": torch.ones(dataset.x.shape, dtype=torch.bool)}
    with double():
        found = PPCA(2).maximum_likelihood(masked, np.random.default_rng(0))
    assert found.trace[-1] == pytest.approx(oracles.ppca_optimum(dataset.x, 2)[0], rel=1e-10)


@pytest.mark.parametrize("q", [2, 3])
def test_factor_analysis_reaches_the_optimum_of_scikit_learn(q):
    dataset = load_dataset("wine")
    found = optimum(FactorAnalysis(q), dataset)
    theirs = SklearnFactorAnalysis(q, tol=1e-12, svd_method="lapack", max_iter=100_000).fit(dataset.x)
    assert found.trace[-1] / dataset.n_units == pytest.approx(theirs.score(dataset.x), rel=1e-6)
    W, psi = found.values["W"], found.values["psi"]
    C, S = W @ W.T + np.diag(psi**2), np.cov(dataset.x.T, ddof=0)
    np.testing.assert_allclose(np.diag(C), np.diag(S), atol=1e-7)
    inverse = np.linalg.inv(C)
    np.testing.assert_allclose(inverse @ (C - S) @ inverse @ W, 0, atol=1e-7)
    np.testing.assert_allclose(C, theirs.get_covariance(), atol=1e-4)


def test_only_factor_analysis_is_equivariant_to_column_scales():
    dataset = load_dataset("wine", standardize=False)
    scale = np.ones(13)
    scale[0], scale[12] = 1e12, 1e-9  # whose product is not 1: the log likelihood is that of the data as they are
    plain = load_dataset("wine")
    stretched = Dataset({"x": plain.x * scale}, dims=dict(plain.dims))
    small, large = optimum(FactorAnalysis(2), plain), optimum(FactorAnalysis(2), stretched)
    np.testing.assert_allclose(
        large.values["W"] @ large.values["W"].T, np.outer(scale, scale) * (small.values["W"] @ small.values["W"].T), rtol=1e-4
    )
    assert large.trace[-1] == pytest.approx(small.trace[-1] - 178 * np.log(scale).sum(), rel=1e-7)
    raw = optimum(PPCA(2), dataset)
    assert raw.trace[-1] == pytest.approx(oracles.ppca_optimum(dataset.x, 2)[0], rel=1e-8)
    own = load_dataset("wine", standardize=False).x.std(0)
    standard = optimum(PPCA(2), plain)
    assert not np.allclose(
        raw.values["W"] @ raw.values["W"].T, np.outer(own, own) * (standard.values["W"] @ standard.values["W"].T), rtol=0.1
    )


def test_the_encoder_of_the_guide_starts_at_the_exact_conditional():
    rng = np.random.default_rng(0)
    W, mu, noise, x = (torch.from_numpy(rng.normal(size=size)) for size in ((5, 2), 5, 5, (7, 5)))
    slope, offset, root = _encoder(W, mu, noise.abs())
    mean, covariance = oracles.positions_given(x.numpy(), mu.numpy(), W.numpy(), noise.numpy() ** 2)
    np.testing.assert_allclose(x @ slope + offset, mean, atol=1e-12)
    np.testing.assert_allclose(root @ root.mT, covariance[0], atol=1e-12)


def test_a_heywood_case_of_the_model_is_noted():
    found = optimum(FactorAnalysis(1), load_dataset("iris"))
    assert any("Heywood case: the noise variance of feature 2" in note for note in found.notes)


def test_data_without_noise_are_refused(rng):
    x = rng.standard_normal((20, 2)) @ rng.standard_normal((2, 5))
    with pytest.raises(InferenceError, match="lie exactly in 2 dimensions"):
        optimum(PPCA(2), Dataset({"x": x}, dims={"x": ("unit", "feature")}))
