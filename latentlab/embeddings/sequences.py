"""Hard assignments of the steps of series that use their order: the most probable path of a hidden Markov model."""

from typing import Annotated, Literal

import numpy as np
from annotated_types import Ge

from latentlab.data.dataset import Dataset
from latentlab.data.series import boundaries
from latentlab.embeddings.clusters import one_hot
from latentlab.embeddings.entry import at_most, clustering
from latentlab.seeds import Seeds, isolated, one_thread


@clustering
def viterbi(
    dataset: Dataset,
    n_latent: int,
    *,
    seed: int,
    notes: list[str],
    covariance: Literal["diagonal", "full", "spherical", "tied"] = "diagonal",
    n_restarts: Annotated[int, Ge(1)] = 5,
) -> np.ndarray:
    r"""Viterbi path of a Gaussian hidden Markov model at the maximum of its likelihood, as 0 and 1.

    $\arg\max_z p(z_1, ..., z_T \mid x, \hat\theta)$ with $\hat\theta$ the highest of `n_restarts` local maxima of the likelihood.
    Maxima without problems (a state at the variance floor, or hardly visited) are preferred if there are any. The path is the
    most probable sequence of states jointly, not the most probable state of each step, and has no measure of uncertainty.
    Missing entries are marginalised out of the likelihood, not imputed.

    Args:
        dataset: Table `(unit, feature)` whose units are time steps, with the sequence of each step.
        n_latent: Number of states, at most the number of steps.
        seed: Seed of the restarts.
        notes: List to which problems of the maximum are appended.
        covariance: Covariance of the emissions, as in `gaussian_hmm`.
        n_restarts: Number of restarts, initialised by k-means.

    References:
        Viterbi (1967), IEEE Trans. Inf. Theory 13:260. Rabiner (1989), Proc. IEEE 77:257. Juang & Rabiner (1990), The segmental
        k-means algorithm, IEEE Trans. ASSP 38:1639.
    """
    import torch
    from threadpoolctl import threadpool_limits

    from latentlab.models.gaussian_hmm import GaussianHMM

    at_most("viterbi", "n_latent", n_latent, dataset.n_units, f"there are {dataset.n_units} steps")
    model = GaussianHMM(n_states=n_latent, covariance=covariance)
    model.check(dataset)
    mask = None if dataset.mask is None else torch.tensor(dataset.mask)
    arrays = {"x": torch.tensor(np.nan_to_num(dataset.x)), "mask": mask, "sequence": torch.tensor(boundaries(dataset))}
    seeds, runs = Seeds(seed), []
    with one_thread(), threadpool_limits(1):
        for i in range(n_restarts):
            with isolated(seeds.child("restart", i)):
                runs.append(model.maximum_likelihood(arrays, seeds.child("restart", i).numpy()))
        best = max(runs, key=lambda run: (not run.notes, run.trace[-1]))
        with isolated(seeds), torch.no_grad():
            path = model.latents(arrays, **{name: torch.as_tensor(value) for name, value in best.values.items()}).mode
    notes += best.notes
    return one_hot(path.numpy(), n_latent)
