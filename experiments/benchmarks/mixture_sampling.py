"""Mixture of three Gaussians in the plane: gradient, and effective draws of label-invariant quantities per second.

The density is that of `ll.models.GaussianMixture` with its defaults and full covariances, with the assignments marginalised.
The quantities are weights, means and standard deviations of the components in the order of their first mean coordinate. The
clusters are well separated, so this order is certain, and label switching is not mistaken for poor mixing.
"""

from typing import Any

import numpy as np

import latentlab as ll
from experiments.benchmarks.harness import Row
from experiments.benchmarks.own import Values
from experiments.benchmarks.sampling import effective, gradients
from latentlab.data.mixtures import gaussian_mixture

N_COMPONENTS = 3
PRIORS = {"mu_scale": 2.0, "sigma_scale": 0.5, "sigma_spread": 0.7, "corr_concentration": 2.0}
SIZES: dict[str, list[dict[str, Any]]] = {
    "tiny": [{"n_units": 50, "n_warmup": 5, "n_draws": 10, "n_chains": (2,), "n_many": 2, "n_rounds": 1}],
    "small": [{"n_units": 1000, "n_warmup": 10, "n_draws": 20, "n_chains": (2,), "n_many": 2, "n_rounds": 1}],
    "full": [
        {"n_units": 1000, "n_warmup": 300, "n_draws": 300, "n_chains": (4,), "n_many": 64, "n_rounds": 2},
        {"n_units": 100_000, "n_warmup": 100, "n_draws": 50, "n_chains": (4,), "n_many": 16, "n_rounds": 1},
    ],
}


def numpyro_model(x: Any) -> None:
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist

    shape = (N_COMPONENTS, x.shape[1])
    weights = numpyro.sample("weights", dist.Dirichlet(jnp.ones(N_COMPONENTS)))
    mu = numpyro.sample("mu", dist.Normal(0.0, PRIORS["mu_scale"]).expand(shape).to_event(2))
    scale = dist.LogNormal(jnp.log(PRIORS["sigma_scale"]), PRIORS["sigma_spread"])
    sigma = numpyro.sample("sigma", scale.expand(shape).to_event(2))
    lkj = dist.LKJCholesky(x.shape[1], PRIORS["corr_concentration"])
    corr = numpyro.sample("corr", lkj.expand([N_COMPONENTS]).to_event(1))
    components = dist.MultivariateNormal(mu, scale_tril=sigma[..., None] * corr)
    numpyro.sample("x", dist.MixtureSameFamily(dist.Categorical(probs=weights), components), obs=x)


def label_free(values: Values) -> np.ndarray:
    """Return weights, means and sds in the order of the first coordinate of the means `(chain, draw, quantity)`."""
    order = np.argsort(values["mu"][..., 0], axis=-1)
    parts = [np.take_along_axis(values["weights"], order, -1)]
    parts += [np.take_along_axis(values[name], order[..., None], -2) for name in ("mu", "sigma")]
    return np.concatenate([part.reshape(*order.shape[:2], -1) for part in parts], axis=-1)


def rows(size: str) -> list[Row]:
    found: list[Row] = []
    for given in SIZES[size]:
        options = dict(given)
        n_units = options.pop("n_units")
        name, dataset = f"Gaussian mixture, N = {n_units:,}", gaussian_mixture(n_units=n_units)
        model = ll.models.GaussianMixture(N_COMPONENTS, **PRIORS)
        found += gradients(name, model, dataset, {"NumPyro": (numpyro_model, ("numpyro",))}, n_rounds=5, compiled=size != "tiny")
        found += effective(
            name,
            model,
            dataset,
            numpyro_model,
            label_free,
            what="sorted components",
            check_means=size == "full" and n_units < 10_000,
            **options,
        )
    return found
