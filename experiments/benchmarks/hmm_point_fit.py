"""A Gaussian HMM's maximum likelihood: latentlab's `Exact` against hmmlearn, from the same start, to the same log likelihood.

Both fit diagonal covariances without priors: those of hmmlearn, which is not flat by default for variances, are switched off.
Hmmlearn climbs by EM alone, and is given the largest tolerance with which it comes within `SAME` nats of the same maximum.
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
TOLERANCES = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7)
SIZES = {"tiny": (200, 1), "small": (1000, 2), "full": (2000, 5)}


def own_fit(problem: Problem, seed: int) -> float:
    """The log likelihood that a single start ends at."""
    draws = ll.Exact(n_restarts=1, n_draws=1).run(replace(problem, seeds=Seeds(seed)))
    return float(draws.optimization["log_likelihood"][-1])


def hmmlearn_fit(problem: Problem, seed: int, tolerance: float) -> float:
    """The same, from latentlab's start: finding it, by k-means, is in the time of both."""
    from hmmlearn.hmm import GaussianHMM

    x = problem.arrays["x"]
    rng = Seeds(seed).child("restart", 0).child("start").numpy()
    start = {name: np.asarray(value) for name, value in problem.model.initialize(problem.arrays, rng).items()}
    options = {"covariance_type": "diag", "covars_prior": 0.0, "min_covar": 0.0, "n_iter": 10_000, "init_params": ""}
    model = GaussianHMM(N_STATES, tol=tolerance, **options)
    model.startprob_, model.transmat_ = start["initial"], start["transition"]
    model.means_, model.covars_ = start["mu"], start["sigma"] ** 2
    return float(model.fit(x.numpy()).score(x.numpy()))


def rows(size: str) -> list[Row]:
    n_steps, n_rounds = SIZES[size]
    name, side = f"HMM point fit, T = {n_steps:,}", "hmmlearn"
    if not is_here("hmmlearn"):
        return [absent(name, side, "hmmlearn")]
    problem = prepared(ll.models.GaussianHMM(N_STATES), series(n_steps), ll.Exact(), progress=False)
    with one_thread():
        ours = own_fit(problem, 0)
        gaps = {tolerance: abs(hmmlearn_fit(problem, 0, tolerance) - ours) for tolerance in TOLERANCES}
        tolerance = next((each for each, gap in gaps.items() if gap <= SAME), TOLERANCES[-1])
        found = [agreed(name, side, f"check: log likelihoods at the end, tol={tolerance:g}", gaps[tolerance], SAME, "nats")]
        sides = {
            "latentlab Exact": lambda i: timed(lambda: own_fit(problem, i)),
            side: lambda i: timed(lambda: hmmlearn_fit(problem, i, tolerance)),
        }
        return found + in_turn(name, "fit from one start, warm", "s", sides, n_rounds=n_rounds)
