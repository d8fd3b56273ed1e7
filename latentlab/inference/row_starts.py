"""Starts of the parameters of each unit, for units on disk that are not in the sample on which a model starts."""

from dataclasses import replace

import numpy as np
import torch

from latentlab.inference.draws import Problem
from latentlab.inference.parameters import GuideParameters

RIDGE = 1e-3
"""Ridge of the regression, as a share of the mean square of a column."""


def at_all_rows(problem: Problem, found: GuideParameters) -> GuideParameters:
    """Start parameters with the dim `row` at linear functions of the data, fitted by ridge regression to the sample's starts.

    It changes nothing for data in memory, all of whose units have a start. Rows are read once, in blocks.
    """
    stored, dims = problem.stored, problem.model.parameters
    names = [name for name in found.names if "row" in dims.get(name, ())[:1]]
    if stored is None or not names:
        return found
    rows, x = problem.arrays["row"], problem.arrays["x"].numpy()
    centre = x.mean(0)
    gram = (x - centre).T @ (x - centre)
    ridge = RIDGE * max(float(np.trace(gram)) / len(gram), 1e-300) * np.eye(len(gram))
    leaves = {name: leaf.detach() for name, leaf in zip(found.names, found.leaves, strict=True)}
    starts = {name: leaves[name][rows].numpy() for name in names}
    slopes = {name: np.linalg.solve(gram + ridge, (x - centre).T @ (start - start.mean(0))) for name, start in starts.items()}
    filled: dict[str, list[np.ndarray]] = {name: [] for name in names}
    for block in stored.blocks():
        centred = np.nan_to_num(block - centre)  # a missing entry has the mean of its column
        for name in names:
            filled[name].append(starts[name].mean(0) + centred @ slopes[name])
    values = {
        name: torch.from_numpy(np.concatenate(parts)).index_copy(0, rows, leaves[name][rows]) for name, parts in filled.items()
    }
    return replace(found, leaves=tuple(values.get(name, leaf) for name, leaf in leaves.items()))
