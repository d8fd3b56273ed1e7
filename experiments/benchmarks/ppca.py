r"""Density of the PPCA benchmarks for each library, with q latent positions marginalised.

$W_{dk} \sim N(0, 1)$, $\mu_d \sim N(0, 10)$, $\sigma \sim \text{HalfNormal}(1)$, $x_n \sim N(\mu, W W^T + \sigma^2 I)$. The
compared quantities are $W W^T$ and $\sigma$, which are invariant under rotations of W.
"""

from typing import Any

import numpy as np

import latentlab as ll
from experiments.benchmarks.own import Values

N_LATENT = 2
PRIORS = {"W_scale": 1.0, "mu_scale": 10.0, "sigma_scale": 1.0}


def own_model() -> ll.LatentModel:
    return ll.models.PPCA(N_LATENT, **PRIORS)


def wine() -> ll.Dataset:
    return ll.load_dataset("wine", drop_constant=True)


def numpyro_model(x: Any) -> None:
    """Define the NumPyro program with a dense covariance, which is faster here than NumPyro's low-rank Gaussian."""
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist

    n_features = x.shape[1]
    W = numpyro.sample("W", dist.Normal(0.0, PRIORS["W_scale"]).expand([n_features, N_LATENT]).to_event(2))
    mu = numpyro.sample("mu", dist.Normal(0.0, PRIORS["mu_scale"]).expand([n_features]).to_event(1))
    sigma = numpyro.sample("sigma", dist.HalfNormal(PRIORS["sigma_scale"]))
    numpyro.sample("x", dist.MultivariateNormal(mu, W @ W.T + sigma**2 * jnp.eye(n_features)), obs=x)


def pymc_model(x: np.ndarray) -> Any:
    """Return the PyMC model."""
    import pymc as pm

    n_features = x.shape[1]
    with pm.Model() as model:
        W = pm.Normal("W", 0.0, PRIORS["W_scale"], shape=(n_features, N_LATENT))
        mu = pm.Normal("mu", 0.0, PRIORS["mu_scale"], shape=n_features)
        sigma = pm.HalfNormal("sigma", PRIORS["sigma_scale"])
        pm.MvNormal("x", mu, cov=W @ W.T + sigma**2 * np.eye(n_features), observed=x)
    return model


def identified(values: Values) -> np.ndarray:
    """Return the entries of W W^T on and above the diagonal, and sigma, `(chain, draw, quantity)`."""
    W, sigma = values["W"], values["sigma"]
    gram = (W @ W.swapaxes(-1, -2))[..., *np.triu_indices(W.shape[-2])]
    return np.concatenate([gram, sigma[..., None]], axis=-1)
