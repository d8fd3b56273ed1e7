"""Identified quantities, which can be compared across chains and restarts, and their names."""

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from latentlab.data.memory import blocks, by_draw, parts, place_of
from latentlab.results.convergence import is_constant
from latentlab.symmetry.group import Group
from latentlab.symmetry.invariants import directions

Labels = Mapping[str, Sequence[str]]
"""Site -> names of its rows."""


CHAIN_BLOCK = 2**24
"""Largest number of labels of a chain that are compared with a label at once."""


def identified(
    values: Mapping[str, np.ndarray], dims: Mapping[str, tuple[str, ...]], group: Group, position: str
) -> dict[str, np.ndarray]:
    """Invariants of the sites under the group, `(chain, draw, ...)` by name: quantities that can be compared across chains.

    Labels (an integer position) are identified up to renaming only. They are replaced by the sorted shares of the labels and by
    projections of the co-assignment matrix. The projections are rounded, since their last bits depend on the labels, which would
    affect ranks.
    """
    labels = position in values and values[position].dtype.kind in "iub"
    sites = {n: v for n, v in values.items() if not (labels and n == position)}

    def invariants(*arrays: np.ndarray) -> dict[str, np.ndarray]:
        return group.invariants(dict(zip(sites, arrays, strict=True)), dims)

    found = by_draw(invariants, *sites.values()) if sites and not group.is_trivial() else invariants(*sites.values())
    return found | (_coassignment(position, values[position]) if labels else {})


def _coassignment(name: str, labels: np.ndarray) -> dict[str, np.ndarray]:
    flat = labels.reshape(*labels.shape[:2], -1)
    a, b = directions(flat.shape[-1])
    shares, pairs = counts(name)
    sizes, together = [], np.zeros((*flat.shape[:2], len(a)))
    step = max(1, CHAIN_BLOCK // max(1, flat.shape[-1]))
    for label in np.unique(np.concatenate([np.unique(part) for part in parts(flat)])):  # one at a time, to save memory
        share = np.empty(flat.shape[:2])
        for chain in range(len(flat)):
            for first in range(0, flat.shape[1], step):
                s = (chain, slice(first, first + step))
                members = (flat[s] == label).astype(np.float64)
                share[s] = members.mean(axis=-1)
                together[s] += (members @ a.T) * (members @ b.T)
        sizes.append(share)
    return {shares: np.sort(np.stack(sizes, axis=-1))[..., ::-1], pairs: together.round(9)}


def counts(name: str) -> tuple[str, str]:
    """Names of the quantities derived from a set of labels."""
    return f"sorted shares {name}", f"co-assignment of {name}"


def is_count(text: str, name: str) -> bool:
    """Whether an entry is a quantity derived from a set of labels, by its formula."""
    return text.startswith((f"share of {name}, rank ", f"co-assignment of {name}["))


def labels_of(data: xr.DataTree, dims: Mapping[str, Sequence[str]], group: Group) -> Labels:
    """Row names of each site: the coordinates of its only dim that the group does not act on."""
    found = {}
    for site, names in dims.items():
        rest = [dim for dim in names if group.is_trivial() or dim != group.dim]
        if len(rest) == 1 and rest[0] in data["posterior"].coords:
            found[site] = [str(label) for label in data["posterior"].coords[rest[0]].values]
    return found


def entry(name: str, index: tuple[int, ...], labels: Labels, single: Collection[str] = ()) -> str:
    """Formula of an entry of a quantity, with the names of the site's rows, or of pairs of rows in X X^T, if rows have names.

    k indexes the components, states or axes that the group acts on.

    Args:
        name: The quantity's name, as `symmetry.invariants` gives it.
        index: Index of the entry in the quantity.
        labels: Names of the sites' rows.
        single: Sites with a single row, such as the weights of a mixture.

    Example:
        >>> labels = {"W": ["ash", "hue", "proline"], "sigma": ["ash", "hue", "proline"]}
        >>> entry("W W^T", (4,), labels), entry("diag W W^T", (1,), labels), entry("spectrum W", (1,), labels)
        ('W W^T[hue, proline]', 'W W^T[hue, hue]', 'eigenvalue 2 of W W^T')
        >>> entry("sum sigma^4", (0,), labels), entry("w w^T", (0,), labels, ["w"]), entry("w sigma^T", (1,), labels, ["w"])
        ('sum_k sigma[k, ash]^4', 'sum_k w[k]^2', 'sum_k w[k] sigma[k, hue]')
    """
    number = f"[{', '.join(map(str, index))}]" if index else ""
    if len(index) != 1:
        return FORMULAS.get(name, name) + number
    (at,) = index

    def row(site: str) -> str:
        return labels[site][at] if site in labels else str(at)

    def of(site: str) -> str:
        return f"{site}[k]" if site in single else f"{site}[k, {row(site)}]"

    for pattern, text in PATTERNS:
        if found := re.fullmatch(pattern, name):
            parts = found.groupdict()
            return text.format(**parts, at=at, rank=at + 1)
    if found := re.fullmatch(r"sum (?P<site>.+?)(?P<power>\^\d)?", name):
        return f"sum_k {of(found['site'])}{found['power'] or ''}"
    if found := re.fullmatch(r"(?P<site>.+) (?P<other>.+)\^T", name):
        site, other = found["site"], found["other"]
        if site == other and site in single:
            return f"sum_k {site}[k]^2"
        if site in single or other in single:
            return f"sum_k {of(site)} {of(other)}"
        if site == other and site in labels:
            i, j = (int(side[at]) for side in np.triu_indices(len(labels[site])))
            return f"{name}[{labels[site][i]}, {labels[site][j]}]"
    if found := re.fullmatch(r"diag (?P<site>.+) (?P=site)\^T", name):
        return f"{found['site']} {found['site']}^T[{row(found['site'])}, {row(found['site'])}]"
    if name.startswith("|"):
        site = name.removeprefix("|").removesuffix("|^2")
        return f"|{site}[{row(site)}]|^2"
    return f"{name}[{row(name)}]"


FORMULAS = {"lp": "log joint density"}
PATTERNS = (
    (r"spectrum (?P<x>.+)", "eigenvalue {rank} of {x} {x}^T"),
    (r"sum (?P<x>.+) projected", "random projection {rank} of sum_k {x}[k]"),
    (r"(?P<x>.+) projected", "random projection {rank} of {x}"),
    (r"sorted \|(?P<x>.+)\|\^2", "|{x}[k]|^2, rank {rank}"),
    (r"sorted distances (?P<x>.+)", "|{x}[j] - {x}[k]|, rank {rank} from the smallest"),
    (r"sorted shares (?P<x>.+)", "share of {x}, rank {rank}"),
    (r"sorted (?P<x>.+)", "{x}[k], rank {rank}"),
    (r"traces (?P<x>.+)", "tr {x}^{rank}"),
)
"""Patterns of the names of quantities without rows, and the formulas of their entries; the largest has rank 1."""


def entries(quantities: Mapping[str, np.ndarray], labels: Labels, sizes: Mapping[Any, int]) -> tuple[list[str], np.ndarray]:
    """Names and draws `(chain, draw, n)` of all entries of the quantities that are not constant."""
    names: list[str] = []
    single = [name.split(" ")[0] for name, array in quantities.items() if _is_single(name, array)]
    kept: list[tuple[np.ndarray, np.ndarray]] = []
    for name, array in quantities.items():
        keep = ~is_constant(array)
        names += [entry(name, tuple(map(int, index)), labels, single) for index in np.argwhere(keep)]
        kept.append((array.reshape(*array.shape[:2], -1), keep.reshape(-1)))
    flat = place_of(*quantities.values()).empty((sizes["chain"], sizes["draw"], len(names)))
    first = 0
    for array, keep in kept:
        last = first + int(keep.sum())
        for chain in range(len(array)):
            for s in blocks(array.shape[1], array.shape[2]):
                flat[chain, s, first:last] = array[chain, s][:, keep]
        first = last
    return names, flat


def _is_single(name: str, array: np.ndarray) -> bool:
    """Whether a quantity is x x^T for a site x with a single row."""
    site = name.partition(" ")[0]
    return name == f"{site} {site}^T" and array.ndim == 3 and array.shape[-1] == 1
