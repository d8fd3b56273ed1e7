"""Tests of priors and posteriors of autoencoders against scipy, and of the fits that use them."""

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from latentlab.errors import ConfigError
from latentlab.fit import fit
from latentlab.inference.arrays import tensors
from latentlab.inference.encoder import activity
from latentlab.inference.joint import log_joint
from latentlab.inference.svi import SVI
from latentlab.models.flows import FlowSettings
from latentlab.models.posteriors import POSTERIORS
from latentlab.models.priors import LEAST_VARIANCE, divergences
from latentlab.models.vae import VAE
from latentlab.seeds import double

QUICK = SVI(guide="model", n_steps=40, learning_rate=0.01, n_particles=2, batch_size=40, n_draws=20)


def as_tensors(values):
    return {name: torch.tensor(np.asarray(value), dtype=torch.float64) for name, value in values.items()}


def full(loc, out):
    """The full Gaussian of these means and other outputs of an encoder."""
    settings = FlowSettings(loc.shape[-1], "spline", 1, (4,), "tanh", 1)
    return POSTERIORS["full"](settings).distribution([torch.tensor(loc), torch.tensor(out)], {})


def mixture_density(z, logits, means, covariances):
    weights = np.exp(logits) / np.exp(logits).sum()
    each = [w * stats.multivariate_normal(m, c).pdf(z) for w, m, c in zip(weights, means, covariances, strict=True)]
    return np.log(np.sum(each, axis=0))


# -- densities


def test_the_density_of_a_mixture_prior_matches_scipy(rng):
    model, normal = (VAE(2, (3,), activation="tanh", prior=prior, n_components=3) for prior in ("mixture", "normal"))
    dataset = model.simulate(rng, 9, n_features=4)
    t = dataset.truth
    covariances = [root @ root.T + LEAST_VARIANCE * np.eye(2) for root in t["prior_root"]]
    expected = mixture_density(t["z"], t["prior_logits"], t["prior_loc"], covariances) - stats.norm.logpdf(t["z"]).sum(-1)
    without = {name: value for name, value in t.items() if not name.startswith("prior")}
    assert log_joint(model, dataset, t) == pytest.approx(log_joint(normal, dataset, without) + expected.sum(), rel=1e-10)


@pytest.mark.parametrize("posterior", ["diagonal", "full"])
def test_the_density_of_a_vamp_prior_matches_scipy(posterior, rng):
    options = {"activation": "tanh", "posterior": posterior, "encoder_hidden": ()}
    model = VAE(2, (3,), prior="vamp", n_components=3, **options)
    dataset = model.simulate(rng, 9, n_features=4)
    t = dataset.truth
    u = t["prior_inputs"]
    means = u @ t["encoder_loc_x"] + t["encoder_loc_b"]
    name = "scale" if posterior == "diagonal" else "cholesky"
    out = u @ t[f"encoder_{name}_x"] + t[f"encoder_{name}_b"]
    roots = [np.diag(np.exp(one[:2])) + (np.array([[0, 0], [one[2], 0]]) if len(one) == 3 else 0) for one in out]
    expected = mixture_density(t["z"], np.zeros(3), means, [root @ root.T for root in roots])
    decoder = {n: v for n, v in t.items() if n.startswith("decoder") or n in ("z", "sigma")}
    plain = log_joint(VAE(2, (3,), **options), dataset, decoder) - stats.norm.logpdf(t["z"]).sum()
    assert log_joint(model, dataset, t) == pytest.approx(plain + expected.sum(), rel=1e-10)


def test_a_full_posterior_matches_scipy(rng):
    loc, out = rng.normal(size=(5, 3)), 0.5 * rng.normal(size=(5, 6))
    one = full(loc, out)
    z = rng.normal(size=(5, 3))
    for n in range(5):
        L = np.diag(np.exp(out[n, :3]))
        L[1, 0], L[2, 0], L[2, 1] = out[n, 3:]
        assert one.log_prob(torch.tensor(z))[n] == pytest.approx(
            stats.multivariate_normal(loc[n], L @ L.T).logpdf(z[n]), rel=1e-10
        )
        np.testing.assert_allclose(one.variance[n], np.diag(L @ L.T), rtol=1e-12)


def test_divergences_from_a_mixture_match_quadrature(rng):
    model = VAE(2, (3,), activation="tanh", prior="mixture", n_components=3, posterior="full")
    dataset = model.simulate(rng, 4, n_features=4)
    values = as_tensors({n: v for n, v in dataset.truth.items() if n != "z"})
    with double():
        prior = model._prior_of(torch.zeros(1, 4), values)
        q = full(rng.normal(size=(4, 2)), 0.3 * rng.normal(size=(4, 3)))
        found = divergences(q, prior).numpy()
    t, weights = dataset.truth, np.exp(dataset.truth["prior_logits"])
    sd = np.sqrt([np.diag(root @ root.T) + LEAST_VARIANCE for root in t["prior_root"]])
    for n in range(4):
        for k in range(2):
            of_q = stats.norm(q.mean[n, k].item(), q.variance[n, k].sqrt().item())

            def excess(z, of_q=of_q, k=k):
                p = (weights / weights.sum() * stats.norm(t["prior_loc"][:, k], sd[:, k]).pdf(z)).sum()
                return of_q.pdf(z) * (of_q.logpdf(z) - np.log(p))

            expected, _ = integrate.quad(excess, of_q.mean() - 9 * of_q.std(), of_q.mean() + 9 * of_q.std(), limit=200)
            assert found[n, k] == pytest.approx(expected, abs=1e-6)


def test_divergences_from_the_standard_normal_are_exact(rng):
    q = torch.distributions.Normal(torch.tensor(rng.normal(size=(4, 2))), torch.tensor(rng.uniform(0.2, 2, (4, 2))))
    prior = torch.distributions.Normal(torch.zeros(2), 1.0)
    found = divergences(q, prior)
    np.testing.assert_allclose(found, torch.distributions.kl_divergence(q, prior), rtol=1e-7, atol=1e-10)


# -- fits


CASES = [("normal", "full"), ("mixture", "diagonal"), ("mixture", "full"), ("vamp", "diagonal"), ("vamp", "full")]
CASES += [("flow", "diagonal"), ("normal", "flow")]


@pytest.mark.parametrize(("prior", "posterior"), CASES)
def test_priors_and_posteriors_are_fitted_and_used(prior, posterior, iris):
    model = VAE(2, (6,), activation="tanh", prior=prior, posterior=posterior, n_components=3)
    found = fit(model, iris, QUICK, seed=0, progress=False)
    assert set(found.parameters) == set(model.parameters)
    assert np.isfinite(found.held_out_score(iris.raw().subset(range(9)), n_samples=20)["bound"])
    table = found.activity()
    assert np.isfinite(table["kl"]).all()
    z = found.sites()["z"][0, [0, 7]]
    program = {name: found.parameters[name] for name in model._program_dims()}
    joint = [log_joint(model, iris, {"z": one, **program}) for one in z]
    np.testing.assert_allclose(found.data["sample_stats"]["lp"].values[0, [0, 7]], joint, rtol=1e-9)
    assert found.frozen().name == "vae"


def test_a_full_posterior_is_closer_to_the_exact_one_than_a_diagonal_one(rng):
    """Linear decoder, whose exact posterior has correlations: the bound of a full Gaussian reaches the likelihood."""
    truth = VAE(2, ()).simulate(rng, 200, n_features=3)
    W = np.array([[1.0, 0.9, 1.1], [0.8, 1.0, 0.9]])
    x = truth.truth["z"] @ W + 0.3 * rng.normal(size=(200, 3))
    dataset = type(truth)({"x": x}, dims=truth.dims)
    values = {"decoder_1_z": W, "decoder_1_b": np.zeros(3), "sigma": np.array(0.3)}
    M = np.linalg.inv(W @ W.T / 0.09 + np.eye(2))
    L, V = np.linalg.cholesky(M), M @ W / 0.09
    exact = stats.multivariate_normal(np.zeros(3), W.T @ W + 0.09 * np.eye(3)).logpdf(x)
    zeros = {"encoder_loc_missing": np.zeros((3, 2)), "encoder_loc_b": np.zeros(2), "encoder_loc_x": V.T}
    full = {
        **zeros, "encoder_cholesky_x": np.zeros((3, 3)), "encoder_cholesky_missing": np.zeros((3, 3)),
        "encoder_cholesky_b": np.array([np.log(L[0, 0]), np.log(L[1, 1]), L[1, 0]]),
    }  # fmt: skip
    model = VAE(2, (), encoder_hidden=(), posterior="full")
    assert set(values) | set(full) == set(model.parameters)
    with double():
        torch.manual_seed(0)
        bound = model.bound(tensors(model, dataset), 3, **as_tensors({**values, **full})).numpy()
    np.testing.assert_allclose(bound, exact, rtol=1e-8)


def test_a_mixture_prior_finds_groups(rng):
    """Two far groups of units: the mixture's bound is higher than that of the normal prior."""
    x = rng.normal(size=(200, 4)) * 0.1 + np.where(np.arange(200) < 100, 3.0, -3.0)[:, None]
    dataset = type(VAE(1).simulate(rng, 3))({"x": x}, dims={"x": ("unit", "feature")})
    method = SVI(guide="model", n_steps=800, learning_rate=0.01, n_particles=1, n_draws=20)
    bounds = [
        fit(VAE(1, (8,), activation="tanh", prior=prior, n_components=2), dataset, method, seed=0, progress=False).held_out_score(
            dataset, n_samples=50
        )["bound"]
        for prior in ("normal", "mixture")
    ]
    assert bounds[1] > bounds[0] + 20


def test_activity_uses_the_prior_of_the_model(iris):
    model = VAE(2, (6,), activation="tanh", prior="mixture", n_components=3)
    found = fit(model, iris, QUICK, seed=0, progress=False)
    values = as_tensors(found.parameters)
    far = {**values, "prior_loc": values["prior_loc"] + 10.0}
    arrays = tensors(model, iris)
    assert (activity(model, arrays, far)["kl"] > activity(model, arrays, values)["kl"] + 10).all()


def test_priors_that_are_not_possible_are_refused():
    with pytest.raises(ConfigError, match="`prior` must be one of normal, mixture, vamp, flow; got 'cauchy'"):
        VAE(2, prior="cauchy")
    with pytest.raises(ConfigError, match="`prior` must be normal, mixture or flow with `conditional`"):
        VAE(2, prior="vamp", conditional=True)
    with pytest.raises(ConfigError, match="`posterior` must be one of diagonal, full, flow; got 'laplace'"):
        VAE(2, posterior="laplace")
