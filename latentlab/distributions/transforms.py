"""Maps from the reals to supports: those of torch, except for maps with far more operations than necessary."""

from typing import Any

from torch.distributions import biject_to
from torch.distributions.transforms import CorrCholeskyTransform, IndependentTransform, StickBreakingTransform, Transform

from latentlab.distributions.correlation import ToCorrelation
from latentlab.distributions.simplex import ToSimplex

FASTER: dict[type[Transform], type[Transform]] = {StickBreakingTransform: ToSimplex, CorrCholeskyTransform: ToCorrelation}
"""Map of torch -> the same map with fewer operations."""


def transform_of(support: Any) -> Transform:
    """Return the map from the reals to a support."""
    found = biject_to(support)
    if isinstance(found, IndependentTransform) and type(found.base_transform) in FASTER:
        return IndependentTransform(FASTER[type(found.base_transform)](), found.reinterpreted_batch_ndims)
    return FASTER[type(found)]() if type(found) in FASTER else found
