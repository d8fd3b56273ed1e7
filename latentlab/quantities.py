"""What can be compared across chains and restarts: what the symmetry leaves identified, with names."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from latentlab.posterior import is_constant
from latentlab.symmetry.group import Group
from latentlab.symmetry.invariants import directions

Labels = Mapping[str, Sequence[str]]
"""Site -> names of its rows."""


def identified(
    values: Mapping[str, np.ndarray], dims: Mapping[str, tuple[str, ...]], group: Group, position: str
) -> dict[str, np.ndarray]:
    """What can be compared across chains, `(chain, draw, ...)` by name: the group's invariants of the sites.

    A position of whole numbers is a set of labels, which only say who is with whom: in its place stand the sorted shares of
    the labels, and projections of the co-assignment matrix, rounded: ranks would see the labels in the last bits.
    """
    labels = position in values and values[position].dtype.kind in "iub"
    found = group.invariants({n: v for n, v in values.items() if not (labels and n == position)}, dims)
    return found | (_coassignment(position, values[position]) if labels else {})


def _coassignment(name: str, labels: np.ndarray) -> dict[str, np.ndarray]:
    flat = labels.reshape(*labels.shape[:2], -1)
    a, b = directions(flat.shape[-1])
    shares, pairs = counts(name)
    sizes, together = [], np.zeros((*flat.shape[:2], len(a)))
    for label in np.unique(flat):  # one at a time: memory does not grow with their number
        members = (flat == label).astype(np.float64)
        sizes.append(members.mean(axis=-1))
        together += (members @ a.T) * (members @ b.T)
    return {shares: np.sort(np.stack(sizes, axis=-1))[..., ::-1], pairs: together.round(9)}


def counts(name: str) -> tuple[str, str]:
    """What quantities of a set of labels are called."""
    return f"sorted shares {name}", f"{name} {name}' projected"


def labels_of(data: xr.DataTree, dims: Mapping[str, Sequence[str]], group: Group) -> Labels:
    """What the rows of each site are called: the coordinates of its one dim that the group does not act along."""
    found = {}
    for site, own in dims.items():
        rest = [dim for dim in own if group.is_trivial() or dim != group.dim]
        if len(rest) == 1 and rest[0] in data["posterior"].coords:
            found[site] = [str(label) for label in data["posterior"].coords[rest[0]].values]
    return found


def entry(name: str, index: tuple[int, ...], labels: Labels) -> str:
    """An entry of a quantity as text, by the names of the site's rows where it has one for each (or each pair, in X X').

    Example:
        >>> labels = {"W": ["ash", "hue", "proline"]}
        >>> entry("W W'", (4,), labels), entry("diag W W'", (1,), labels), entry("spectrum W", (1,), labels)
        ("W W'[hue, proline]", "diag W W'[hue]", 'spectrum W[1]')
    """
    for site, rows in labels.items():
        if len(index) == 1 and name == f"{site} {site}'":
            i, j = (int(side[index[0]]) for side in np.triu_indices(len(rows)))
            return f"{name}[{rows[i]}, {rows[j]}]"
        if len(index) == 1 and name in (site, f"diag {site} {site}'", f"|{site}|^2", f"sum {site}", f"sum {site}^3"):
            return f"{name}[{rows[index[0]]}]"
    return name + (f"[{', '.join(map(str, index))}]" if index else "")


def entries(quantities: Mapping[str, np.ndarray], labels: Labels, sizes: Mapping[Any, int]) -> tuple[list[str], np.ndarray]:
    """Names and draws `(chain, draw, n)` of all entries of the quantities but those that are constant throughout."""
    names: list[str] = []
    columns = [np.empty((sizes["chain"], sizes["draw"], 0))]
    for name, array in quantities.items():
        keep = ~is_constant(array)
        names += [entry(name, tuple(map(int, index)), labels) for index in np.argwhere(keep)]
        columns.append(array[:, :, keep] if array.ndim > 2 else array[:, :, None][..., keep[None]])
    return names, np.concatenate(columns, axis=-1)
