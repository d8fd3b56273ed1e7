r"""Gromov-Wasserstein distance: agreement of the distances between units under the best coupling of the units.

$$ \min_G \sum_{ijkl} (d_{ij} - e_{kl})^2 \, G_{ik} G_{jl} \Big/ \frac{1}{m^2} \sum_{kl} e_{kl}^2, \qquad
   \sum_k G_{ik} = \sum_i G_{ik} = 1/m, $$

with d the distances between m units in x and e those in y. 0 means equal shapes; 1 is the value of a single point. The coupling
G may exchange units, so that permuting the units hardly changes the value. The floor of this metric is therefore at its better
end, and the metric compares shapes only. The problem is not convex. Conditional gradient descent starts at the coupling of each
unit with itself and finds a local minimum, which is at most the mean squared difference of the distances.

References:
    Mémoli (2011), Gromov-Wasserstein distances and the metric approach to object matching, Foundations of Computational
    Mathematics 11:417. Vayer, Chapel, Flamary, Tavenard & Courty (2020), Fused Gromov-Wasserstein distance for structured
    objects, Algorithms 13:212 (the conditional gradient). Flamary et al. (2021), POT: Python Optimal Transport, JMLR 22(78).
"""

import math

import numpy as np
from scipy.spatial.distance import cdist

from latentlab.compare.metric import metric
from latentlab.compare.positions import Positions, paired
from latentlab.errors import MissingDependencyError

MATCHED = 100
"""Largest number of units that are coupled; the time grows with its cube."""


@metric(
    direction="lower",
    range=(0.0, math.inf),
    ignores=("rotation", "translation"),
    void=1.0,
    symmetric=False,
    by_default=False,
    n_used=lambda n_units: min(n_units, MATCHED),
)
def gromov_wasserstein(x: Positions, y: Positions) -> float:
    """Squared Gromov-Wasserstein distance between embedding and draw, relative to the draw's mean squared distance of units.

    Lower is closer, in [0, inf). It compares shapes, not units: any unit may be matched with any other. It uses at most 100
    units. As it is slow, it is computed only if requested by name.

    Raises:
        MissingDependencyError: POT is not installed.
    """
    try:
        from ot.gromov import gromov_wasserstein2
    except ImportError as error:
        raise MissingDependencyError("metric 'gromov_wasserstein'", "pot", "metrics") from error
    d, e = x.derived(_matched_distances), y.derived(_matched_distances)
    share = np.full(len(d), 1.0 / len(d))
    unit = math.sqrt(float((e**2).mean()))
    coupling = np.diag(share)
    return float(gromov_wasserstein2(d / unit, e / unit, share, share, "square_loss", G0=coupling, symmetric=True))


def _matched_distances(x: Positions) -> np.ndarray:
    rows = x.centered[paired(x.n_units)[:MATCHED]]
    return cdist(rows, rows)
