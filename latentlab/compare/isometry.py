r"""Local isometry: how nearly the map of each neighbourhood is a rotation with one scale that all neighbourhoods share.

With X_i and Y_i the centred positions `(k + 1, column)` of a unit and its k nearest units, in x and in y, the sum of squares that
one common scale c and a rotation or reflection R_i of each neighbourhood leave is

    min_{c, R_i} sum_i |c X_i R_i - Y_i|^2 = sum_i |Y_i|^2 - (sum_i t_i)^2 / sum_i |X_i|^2,

with t_i the sum of the singular values of X_i^T Y_i. The score is the share of sum_i |Y_i|^2 that is explained,

    local_isometry = (sum_i t_i)^2 / (sum_i |X_i|^2 sum_i |Y_i|^2).

It is 1 if every neighbourhood is mapped by an isometry times c, and less if the map stretches an axis, changes its scale from
place to place, folds or tears. It does not depend on how the neighbourhoods lie relative to each other, so that a sheet and its
rolled-up form have a score near 1. Neighbourhoods in x detect folds and those in y detect tears; the sums have both.

The residual of one neighbourhood is the local Procrustes statistic of Goldberg & Ritov, who give each neighbourhood its own scale
or none. The common scale makes changes of scale visible. Its variation is the relaxed distortion of Lee et al.

References:
    Goldberg & Ritov (2009), Local Procrustes for manifold embedding: a measure of embedding quality and embedding algorithms,
    Machine Learning 77:1.
    Lee, Yoon, Son & Park (2022), Regularized autoencoders for isometric representation learning, ICLR (distortion up to a common
    scale).
"""

import numpy as np

from latentlab.compare.metric import metric
from latentlab.compare.neighbors import nearest_to
from latentlab.compare.positions import EQUAL, Positions, n_paired, paired

N_NEIGHBORS = 10


@metric(
    direction="higher",
    range=(0.0, 1.0),
    ignores=("rotation", "translation", "scale"),
    void=0.0,
    by_default=False,
    n_used=n_paired,
)
def local_isometry(x: Positions, y: Positions, *, n_neighbors: int = N_NEIGHBORS) -> float:
    """Share of the neighbourhoods' sum of squares explained by rotating each, with one scale in common.

    Higher is closer, in [0, 1]; near 0 for unrelated positions of many units. It uses the neighbourhoods of at most 500 units. It
    is 0 if all neighbourhoods are single points on one side only. It is computed only if requested by name.

    Raises:
        ConfigError: `n_neighbors` is below 1, or not below half of the units.
    """
    units = np.concatenate([side.derived(_neighborhoods, n_neighbors) for side in (x, y)])
    first, second = (_centred(side, units) for side in (x, y))
    sizes = [np.einsum("nkp,nkp->", part, part) for part in (first, second)]
    flat = [size <= EQUAL * side.size for size, side in zip(sizes, (x, y), strict=True)]
    if any(flat):
        return float(all(flat))
    common = np.linalg.svd(first.swapaxes(1, 2) @ second, compute_uv=False).sum()
    return float(common**2 / (sizes[0] * sizes[1]))


def _neighborhoods(x: Positions, n_neighbors: int) -> np.ndarray:
    """Indices of the `paired` units and of their nearest units, `(unit, n_neighbors + 1)`."""
    units = paired(x.n_units)
    return np.column_stack([units, nearest_to(x, units, n_neighbors)])


def _centred(x: Positions, units: np.ndarray) -> np.ndarray:
    rows = x.centered[units]
    return np.asarray(rows - rows.mean(axis=1, keepdims=True))
