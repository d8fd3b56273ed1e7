"""Maximum likelihood without sampling or descent: closed form, or EM, as the model knows it."""

from typing import ClassVar

import numpy as np
from tqdm.auto import tqdm

from latentlab.errors import ModelError
from latentlab.inference.draws import Draws, Problem
from latentlab.models.base import LatentModel, MaximumLikelihood
from latentlab.seeds import isolated
from latentlab.settings import Count, frozen_settings

TIE = 1e-6
"""Difference of two log likelihoods, in nats, below which two restarts count as the same maximum."""


@frozen_settings
class Exact:
    """The maximum of the likelihood, with draws of the positions from their exact conditional.

    The sites have no spread here, so positions are given the estimate: their uncertainty is too small by what the estimate
    itself is uncertain.

    Where there is no closed form the climb begins at several starts; where each ended is kept, and the best is the estimate, of
    those with nothing amiss (no component at the floor of the variances, none that is empty) if there are any. Of starts that
    tie the first is the estimate. Data on which every start collapses, such as a column that is the sum of others under full
    covariances, are refused.

    Args:
        n_restarts: Starts.
        n_draws: Draws of the positions.
    """

    n_restarts: Count = 10
    n_draws: Count = 2000

    name: ClassVar[str] = "exact"
    kind: ClassVar[str] = "point"
    maximizes_likelihood: ClassVar[bool] = True

    @staticmethod
    def _best(runs: list[MaximumLikelihood]) -> MaximumLikelihood:
        """Return the first run at the highest maximum, so that rounding does not choose among runs that tie."""
        sound = [run for run in runs if not run.notes] or runs
        highest = max(run.trace[-1] for run in sound)
        least = highest - TIE - 1e-10 * abs(highest)
        return next(run for run in sound if run.trace[-1] >= least)

    def run(self, problem: Problem) -> Draws:
        model = problem.model
        if type(model).maximum_likelihood is LatentModel.maximum_likelihood:
            raise ModelError(f"{model.name!r} has no exact maximum likelihood; methods: {', '.join(model.methods)}.")
        runs: list[MaximumLikelihood] = []
        bar = tqdm(range(self.n_restarts), desc="exact", disable=None if problem.progress else True, leave=False)
        for i in bar:
            seeds = problem.seeds.child("restart", i)
            with isolated(seeds):
                runs.append(model.maximum_likelihood(problem.arrays, seeds.child("start").numpy()))
            if runs[-1].unique:
                break
        found = self._best(runs)
        lead = (1, self.n_draws)
        sites = {name: value for name, value in found.values.items() if name not in model.parameters}
        values = {name: np.broadcast_to(value, lead + np.shape(value)).copy() for name, value in sites.items()}
        return Draws(
            values,
            optimization={"log_likelihood": found.trace, "maxima": np.array([run.trace[-1] for run in runs])},
            restarts={name: np.stack([run.values[name] for run in runs]) for name in found.values},
            attrs={"how": found.how, "gradient": float(found.gradient), "notes": "; ".join(found.notes)},
            parameters={name: np.asarray(value) for name, value in found.values.items() if name in model.parameters},
        )
