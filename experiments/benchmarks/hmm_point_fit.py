"""Maximum likelihood of a Gaussian HMM: latentlab's `Exact` against hmmlearn, from the same start, to the same log likelihood.

Both fit diagonal covariances without priors; the default priors of hmmlearn on variances are switched off. Latentlab stops at a
derivative of 0 up to 1e-9. Hmmlearn uses EM until a step gains less than its tolerance. Its tolerance is the largest one that
reaches the maximum to within `SAME` nats; the two values correspond to a typical accuracy and to converged estimates. The time
of latentlab with its defaults, from ten starts, has a separate row.
"""

from dataclasses import replace

import numpy as np

import latentlab as ll
from experiments.benchmarks.harness import Row, absent, agreed, in_turn, is_here, timed
from experiments.benchmarks.hmm_sampling import N_STATES, series
from latentlab.inference.draws import Problem
from latentlab.results.prepare import prepared
from latentlab.seeds import Seeds, one_thread

SAME = (1e-3, 1e-6)
"""Nats."""
TOLERANCES = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8)
SIZES = {"tiny": (200, 1), "small": (1000, 2), "full": (2000, 5)}


def own_fit(problem: Problem, seed: int, n_restarts: int = 1) -> float:
    """Return the log likelihood reached from the best of the starts."""
    draws = ll.Exact(n_restarts=n_restarts, n_draws=1).run(replace(problem, seeds=Seeds(seed)))
    return float(draws.optimization["log_likelihood"][-1])


def hmmlearn_fit(problem: Problem, seed: int, tolerance: float) -> float:
    """Fit hmmlearn from the start of latentlab; the k-means that finds it is included in both times."""
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
        found = []
        sides = {
            "latentlab Exact, 1 start": lambda i: timed(lambda: own_fit(problem, i)),
            "latentlab Exact, 10 starts, the default": lambda i: timed(lambda: own_fit(problem, i, ll.Exact().n_restarts)),
        }
        for same in SAME:
            tolerance = next((each for each, gap in gaps.items() if gap <= same), TOLERANCES[-1])
            at = f"{side}, 1 start, tol={tolerance:g}"
            found.append(agreed(name, at, "check: log likelihoods at the end", gaps[tolerance], same, "nats"))
            sides[at] = lambda i, tolerance=tolerance: timed(lambda: hmmlearn_fit(problem, i, tolerance))
        return found + in_turn(name, "fit, warm", "s", sides, n_rounds=n_rounds)
