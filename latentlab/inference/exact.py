"""Maximum likelihood by the model's algorithm: a closed form, or EM."""

from typing import ClassVar

import numpy as np

from latentlab.errors import ModelError
from latentlab.inference.draws import Draws, Problem
from latentlab.models.base import LatentModel, MaximumLikelihood
from latentlab.progress import tqdm
from latentlab.seeds import isolated
from latentlab.settings import Count, frozen_settings

TIE = 1e-6
"""Difference of two log likelihoods, in nats, below which restarts tie; 1e-10 of the log likelihood is added."""


@frozen_settings
class Exact:
    """Maximum likelihood in closed form or by EM, with draws of the positions from their exact conditional.

    All draws of the sites equal the estimate. The positions are drawn given the estimate, so that their uncertainty does not
    include that of the estimate.

    Without a closed form, EM runs from several starts, and the end of each is kept. The best run is the estimate; runs with a
    component that is empty or at the variance floor are used only if all runs have one. Among tied runs the first is taken. Data
    for which the likelihood is unbounded raise an error, such as a column that is the sum of others under full covariances.

    Args:
        n_restarts: Number of starts.
        n_draws: Number of draws of the positions.
    """

    n_restarts: Count = 10
    n_draws: Count = 2000

    name: ClassVar[str] = "exact"
    kind: ClassVar[str] = "point"
    maximizes_likelihood: ClassVar[bool] = True

    @staticmethod
    def _best(runs: list[MaximumLikelihood]) -> MaximumLikelihood:
        """Return the first run at the highest maximum, so that rounding does not choose among runs that tie."""
        regular = [run for run in runs if not run.notes] or runs
        highest = max(run.trace[-1] for run in regular)
        least = highest - TIE - 1e-10 * abs(highest)
        return next(run for run in regular if run.trace[-1] >= least)

    def run(self, problem: Problem) -> Draws:
        model = problem.model
        if type(model).maximum_likelihood is LatentModel.maximum_likelihood:
            raise ModelError(
                f"'exact' needs `maximum_likelihood`, which {model.name!r} does not define; use {', '.join(model.methods)}."
            )
        runs: list[MaximumLikelihood] = []
        numbers = range(self.n_restarts)
        for i in tqdm(numbers, desc="exact", disable=None, leave=False) if problem.progress else numbers:
            seeds = problem.seeds.child("restart", i)
            with isolated(seeds):
                runs.append(model.maximum_likelihood(problem.arrays, seeds.child("start").numpy()))
            if runs[-1].unique:
                break
        best = self._best(runs)
        leading = (1, self.n_draws)
        sites = {name: value for name, value in best.values.items() if name not in model.parameters}
        values = {name: np.broadcast_to(value, leading + np.shape(value)).copy() for name, value in sites.items()}
        return Draws(
            values,
            optimization={"log_likelihood": best.trace, "maxima": np.array([run.trace[-1] for run in runs])},
            restarts={name: np.stack([run.values[name] for run in runs]) for name in best.values},
            attrs={"how": best.how, "gradient": float(best.gradient), "notes": "; ".join(best.notes)},
            parameters={name: np.asarray(value) for name, value in best.values.items() if name in model.parameters},
        )
