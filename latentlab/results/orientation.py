"""Alignment of draws modulo the model's symmetry."""

from collections.abc import Mapping

import numpy as np

from latentlab.inference.draws import Method
from latentlab.models.base import LatentModel
from latentlab.symmetry import consensus
from latentlab.symmetry.group import Aligned, Group
from latentlab.symmetry.groups import Orthogonal, SignedPermutation
from latentlab.symmetry.labels import indicators

MOST_NUMBERS = 2**24
"""Largest number of label indicators used for alignment (128 MB); of more units, an evenly spaced subset is used."""


def one_orientation(model: LatentModel, method: Method) -> bool:
    """Whether all draws lie in the same coordinates: sites or parameters are point estimates."""
    return method.kind == "point" or bool(model.parameters)


def align(model: LatentModel, values: Mapping[str, np.ndarray], *, point: bool = False) -> Aligned:
    """Aligns draws modulo the model's symmetry, by the position site; labels by their indicators `(unit, label)`.

    At a point estimate all draws get the same group element. Separate elements would move the constant sites with the noise in
    the positions.
    """
    group, site = model.exchanges, model.position.site
    dims = {name: tuple(model.dims[name]) for name in values}
    on, on_dims = np.asarray(values[site]), dims[site]
    others = [position.site for position in model.positions[1:] if dims[position.site][1:] == on_dims[1:] == (group.dim,)]
    on = np.concatenate([on, *(values[other] for other in others)], axis=2) if others else on
    if model.is_discrete and not group.is_trivial():
        few = max(1, MOST_NUMBERS // (on[..., 0].size * model.n_labels()))
        some = np.unique(np.linspace(0, on.shape[-1] - 1, min(few, on.shape[-1])).astype(int))
        on, on_dims = indicators(on[..., some], model.n_labels()), (*on_dims, group.dim)
    if point:
        on = on.mean(axis=(0, 1), keepdims=True)
    found = group.align({site: on}, {site: on_dims}, on=site)
    elements = np.broadcast_to(found.elements, (*values[site].shape[:2], *found.elements.shape[2:]))
    return _signed(group, Aligned(model.act(elements, values), elements, found.reference), values, dims)


def _signed(group: Group, aligned: Aligned, values: Mapping[str, np.ndarray], dims: Mapping[str, tuple[str, ...]]) -> Aligned:
    """Makes each axis's largest mean loading positive, if the group contains sign changes and there are loadings."""
    rows = (name for name, own in dims.items() if len(own) == 2 and own[1] == group.dim and own[0] not in group.units)
    loadings = next(rows, None)
    if loadings is None or SignedPermutation(group.dim) not in group or not isinstance(group, Orthogonal | SignedPermutation):
        return aligned
    mean = aligned.values[loadings].mean(axis=(0, 1))
    mirror = np.diag(consensus.signs(mean))
    elements = group.compose(aligned.elements, mirror)
    return Aligned(group.act(elements, values, dims), elements, aligned.reference @ mirror)
