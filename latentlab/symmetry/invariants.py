r"""Invariants of draws under a group, for which R-hat, ESS and MCSE are meaningful.

A site is a matrix of rows X `(*lead, m, q)`, with q the size of the group's dim. A product such as X X^T with up to `MAX_ENTRIES`
entries is returned completely (the upper triangle, row by row). Larger products are summarised by their spectrum, their diagonal
and `N_PROJECTIONS` numbers a^T X X^T b. The directions a and b are standard normal divided by sqrt(m), from a generator of fixed
seed, so that every fit has the same invariants. All invariants have the leading axes and one further axis.

Invariants of each group:

| group | invariants of X (and of pairs X, Y) |
|---|---|
| `GeneralLinear` | projector X (X^T X)^-1 X^T; z W^T |
| `Orthogonal` | X X^T, its spectrum; X Y^T |
| `Euclidean` | those of `Orthogonal`, with centred positions |
| `SignedPermutation` | those of `Orthogonal`; sum_k x_ik^4; sorted squared column norms; sum_k x_ik^2 s_jk of an unsigned S |
| `Permutation` | those of `SignedPermutation`; sum_k x_ik, sum_k x_ik^3; sorted distances between columns |
"""

import itertools

import numpy as np

Invariants = dict[str, np.ndarray]

MAX_ENTRIES = 300
"""Largest number of entries of a product for which each entry is a separate invariant."""
N_PROJECTIONS = 16
_SEED = 20_070_415


def directions(m: int) -> np.ndarray:
    """Return the fixed directions `(2, N_PROJECTIONS, m)` on which large products are projected."""
    return np.random.default_rng(_SEED).normal(size=(2, N_PROJECTIONS, m)) / np.sqrt(m)


def is_small(x: np.ndarray, y: np.ndarray | None = None) -> bool:
    """Check whether X X^T (its upper triangle), or X Y^T, has at most `MAX_ENTRIES` entries."""
    m = x.shape[-2]
    return (m * (m + 1) // 2 if y is None else m * y.shape[-2]) <= MAX_ENTRIES


def gram(name: str, x: np.ndarray, *, positions: bool) -> Invariants:
    """Compute invariants of X X^T: all entries if it is small and X is not a position; else spectrum, diagonal and projections.

    The spectrum of positions is divided by m.
    """
    m = x.shape[-2]
    if is_small(x) and not positions:
        return {f"{name} {name}^T": (x @ x.swapaxes(-1, -2))[..., *np.triu_indices(m)]}
    spectrum = np.linalg.eigvalsh(x.swapaxes(-1, -2) @ x)[..., ::-1]
    a, b = directions(m)
    return {
        f"spectrum {name}": spectrum / m if positions else spectrum,
        f"|{name}|^2" if positions else f"diag {name} {name}^T": np.einsum("...mq,...mq->...m", x, x),
        f"{name} {name}^T projected": np.einsum("...pq,...pq->...p", a @ x, b @ x),
    }


def cross(name: str, x: np.ndarray, other: str, y: np.ndarray, *, positions: bool) -> Invariants:
    """Compute invariants of X Y^T: all entries if it is small and neither site is a position; else projections."""
    if is_small(x, y) and not positions:
        product = x @ y.swapaxes(-1, -2)
        return {f"{name} {other}^T": product.reshape(*product.shape[:-2], -1)}
    a, b = directions(x.shape[-2])[0], directions(y.shape[-2])[1]
    return {f"{name} {other}^T projected": np.einsum("...pq,...pq->...p", a @ x, b @ y)}


def crosses(sites: dict[str, np.ndarray], positions: set[str]) -> Invariants:
    """Compute the invariants X Y^T of every pair of sites."""
    found: Invariants = {}
    for (name, x), (other, y) in itertools.combinations(sites.items(), 2):
        found |= cross(name, x, other, y, positions=bool(positions & {name, other}))
    return found


def power_sums(name: str, x: np.ndarray, power: int, *, positions: bool) -> Invariants:
    """Compute sum_k x_ik^p for every row i; for many rows, or positions, for fixed linear combinations of rows."""
    label = f"sum {name}" if power == 1 else f"sum {name}^{power}"
    if positions or x.shape[-2] > MAX_ENTRIES:
        return {f"{label} projected": ((directions(x.shape[-2])[0] @ x) ** power).sum(axis=-1)}
    return {label: (x**power).sum(axis=-1)}


def sorted_norms(name: str, x: np.ndarray) -> Invariants:
    """Compute the squared norms of the columns, largest first."""
    return {f"sorted |{name}|^2": np.sort((x**2).sum(axis=-2))[..., ::-1]}


def sorted_columns(name: str, x: np.ndarray) -> Invariants:
    """Compute the distances between columns, smallest first; for a site of one row return its values, largest first."""
    m, q = x.shape[-2:]
    if m == 1:
        return {f"sorted {name}": np.sort(x[..., 0, :])[..., ::-1]}
    if q == 1:
        return {}
    product = x.swapaxes(-1, -2) @ x
    norms = np.diagonal(product, axis1=-2, axis2=-1)
    squared = norms[..., :, None] + norms[..., None, :] - 2 * product
    return {f"sorted distances {name}": np.sort(np.sqrt(np.maximum(squared[..., *np.triu_indices(q, 1)], 0.0)))}


def projector(name: str, x: np.ndarray, *, positions: bool) -> Invariants:
    """Compute invariants of the projector X (X^T X)^-1 X^T on the column space; none if m <= q."""
    m, q = x.shape[-2:]
    if m <= q:
        return {}
    basis = np.linalg.qr(x)[0]
    found = gram("P", basis, positions=positions)
    names = {"P P^T": f"projector {name}", "diag P P^T": f"diag projector {name}", "|P|^2": f"diag projector {name}"}
    names["P P^T projected"] = f"projector {name} projected"
    return {names[key]: value for key, value in found.items() if not key.startswith("spectrum")}


def traces(name: str, value: np.ndarray) -> Invariants:
    """Compute tr(X^p), p = 1..q, `(*lead, m q)`, of sites `(*lead, m, q, q)` with the group acting on both last axes."""
    q = value.shape[-1]
    powers = list(itertools.accumulate([value] * q, np.matmul))
    found = np.stack([np.trace(power, axis1=-2, axis2=-1) for power in powers], axis=-1)
    return {f"traces {name}": found.reshape(*found.shape[:-2], -1)}
