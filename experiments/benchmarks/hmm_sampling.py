"""Gaussian HMM of three states on one long series: gradient, and effective draws of label-invariant quantities per second.

The density is that of `ll.models.GaussianHMM` with its defaults, with the paths marginalised. The NumPyro program is the
forward algorithm by `lax.scan`, as in the examples of NumPyro. The dynamax programs have the same priors and the log likelihood
of `hmm_smoother`, or of `hmm_filter`, which gives the same number without the backward pass.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

import latentlab as ll
from experiments.benchmarks.harness import Row
from experiments.benchmarks.own import Values
from experiments.benchmarks.sampling import effective, gradients
from latentlab.data.markov import hidden_markov

N_STATES = 3
PRIORS = {"mu_scale": 2.0, "sigma_scale": 0.5, "sigma_spread": 0.7}
SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"n_steps": 60, "n_warmup": 5, "n_draws": 10, "n_chains": (2,), "n_many": 2, "n_rounds": 1},
    "small": {"n_steps": 500, "n_warmup": 10, "n_draws": 20, "n_chains": (2,), "n_many": 2, "n_rounds": 1},
    "full": {"n_steps": 2000, "n_warmup": 200, "n_draws": 200, "n_chains": (4,), "n_many": 64, "n_rounds": 2},
}


def series(n_steps: int) -> ll.Dataset:
    return hidden_markov(n_sequences=1, n_steps=n_steps, n_states=N_STATES, separation=3.0)


def by_scan(initial: Any, transition: Any, emitted: Any) -> Any:
    """Compute the log likelihood by the forward algorithm on the log scale."""
    import jax
    from jax.scipy.special import logsumexp

    log_transition = jax.numpy.log(transition)

    def step(alpha: Any, at: Any) -> tuple[Any, None]:
        return logsumexp(alpha[:, None] + log_transition, axis=0) + at, None

    return logsumexp(jax.lax.scan(step, jax.numpy.log(initial) + emitted[0], emitted[1:])[0])


def by_filter(initial: Any, transition: Any, emitted: Any) -> Any:
    from dynamax.hidden_markov_model import hmm_filter

    return hmm_filter(initial, transition, emitted).marginal_loglik


def by_smoother(initial: Any, transition: Any, emitted: Any) -> Any:
    from dynamax.hidden_markov_model import hmm_smoother

    return hmm_smoother(initial, transition, emitted).marginal_loglik


def program(log_likelihood: Callable[[Any, Any, Any], Any]) -> Callable[..., None]:
    """NumPyro program with the sum over paths by this algorithm."""

    def model(x: Any) -> None:
        import jax.numpy as jnp
        import numpyro
        import numpyro.distributions as dist

        shape = (N_STATES, x.shape[1])
        initial = numpyro.sample("initial", dist.Dirichlet(jnp.ones(N_STATES)))
        transition = numpyro.sample("transition", dist.Dirichlet(jnp.ones((N_STATES, N_STATES))).to_event(1))
        mu = numpyro.sample("mu", dist.Normal(0.0, PRIORS["mu_scale"]).expand(shape).to_event(2))
        scale = dist.LogNormal(jnp.log(PRIORS["sigma_scale"]), PRIORS["sigma_spread"])
        sigma = numpyro.sample("sigma", scale.expand(shape).to_event(2))
        emitted = dist.Normal(mu, sigma).to_event(1).log_prob(x[:, None, :])
        numpyro.factor("x", log_likelihood(initial, transition, emitted))

    return model


def label_free(values: Values) -> np.ndarray:
    """Return means, sds and self-transition probabilities, in the order of the means `(chain, draw, quantity)`."""
    mu, sigma = values["mu"][..., 0], values["sigma"][..., 0]
    stay = np.diagonal(values["transition"], axis1=-2, axis2=-1)
    order = np.argsort(mu, axis=-1)
    return np.concatenate([np.take_along_axis(part, order, -1) for part in (mu, sigma, stay)], axis=-1)


def rows(size: str) -> list[Row]:
    options = dict(SIZES[size])
    n_steps = options.pop("n_steps")
    name, dataset = f"Gaussian HMM, T = {n_steps:,}", series(n_steps)
    model = ll.models.GaussianHMM(N_STATES, **PRIORS)
    programs = {
        "NumPyro scan": (program(by_scan), ("numpyro",)),
        "dynamax hmm_smoother": (program(by_smoother), ("numpyro", "dynamax")),
        "dynamax hmm_filter": (program(by_filter), ("numpyro", "dynamax")),
    }
    found = gradients(name, model, dataset, programs, n_rounds=5, compiled=size != "tiny")
    return found + effective(
        name, model, dataset, programs["NumPyro scan"][0], label_free, what="sorted states", check_means=size == "full", **options
    )
