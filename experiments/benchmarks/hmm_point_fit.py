"""A Gaussian HMM's maximum likelihood: latentlab's `Exact` against hmmlearn, from k-means, to the same log likelihood.

Both fit diagonal covariances without priors. hmmlearn is told to stop at a gain that brings it within `SAME` nats of the same
maximum; its priors, which are not flat by default for variances, are switched off.
"""

from dataclasses import replace

import numpy as np

import latentlab as ll
from experiments.benchmarks.harness import Row, absent, agreed, in_turn, is_here, timed
from experiments.benchmarks.hmm_sampling import N_STATES, series
from latentlab.fit import prepared
from latentlab.inference.draws import Problem
from latentlab.seeds import Seeds, one_thread

SAME = 1e-3
"""Nats."""
SIZES = {"tiny": (200, 1), "small": (1000, 2), "full": (2000, 5)}


def own_fit(problem: Problem, seed: int) -> float:
    """The log likelihood that a single start ends at."""
    draws = ll.Exact(n_restarts=1, n_draws=1).run(replace(problem, seeds=Seeds(seed)))
    return float(draws.optimization["log_likelihood"][-1])


def hmmlearn_fit(x: np.ndarray, seed: int) -> float:
    from hmmlearn.hmm import GaussianHMM

    model = GaussianHMM(N_STATES, covariance_type="diag", covars_prior=0.0, min_covar=0.0, n_iter=5000, tol=1e-6, random_state=seed)
    return float(model.fit(x).score(x))


def rows(size: str) -> list[Row]:
    n_steps, n_rounds = SIZES[size]
    name, side = f"HMM point fit, T = {n_steps:,}", "hmmlearn"
    if not is_here("hmmlearn"):
        return [absent(name, side, "hmmlearn")]
    dataset = series(n_steps)
    problem = prepared(ll.models.GaussianHMM(N_STATES), dataset, ll.Exact(), progress=False)
    with one_thread():
        ends = [own_fit(problem, 0), hmmlearn_fit(dataset.x, 0)]
        found = [agreed(name, side, "check: log likelihoods at the end", abs(ends[0] - ends[1]), SAME, "nats")]
        sides = {
            "latentlab Exact": lambda i: timed(lambda: own_fit(problem, i)),
            side: lambda i: timed(lambda: hmmlearn_fit(dataset.x, i)),
        }
        return found + in_turn(name, "fit from one start, warm", "s", sides, n_rounds=n_rounds)
