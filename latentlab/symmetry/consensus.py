r"""A consensus of draws modulo a group that does not depend on any reference draw.

Draws X_s `(m, q)`, s = 1..S, are turned by elements g_s to minimise

    sum_s |X_s g_s - M|^2,    M = (1/S) sum_s X_s g_s,

which for groups that keep norms is to maximise |M|^2. The two halves alternate: given M each g_s depends on the
cross product X_s' M alone (`polar`, `assignment`), given the g_s the mean is M. The start of the iteration is a
function of what the group leaves as it is: for rotations the leading eigenvectors of the mean Gram matrix
(1/S) sum_s X_s X_s', for permutations whole draws that are chosen by an invariant, the best end counting. The outcome
is then the same, up to one element common to all draws, however each draw was turned before and in whatever order the
draws come; `principal_axes` and `by_size` fix that last element.

References:
    Gower (1975), Generalized Procrustes analysis, Psychometrika 40:33. Ten Berge (1977), Orthogonal Procrustes rotation
    for two or more matrices, Psychometrika 42:267. Stephens (2000), Dealing with label switching in mixture models,
    JRSS-B 62:795. Papastamoulis and Ntzoufras (2022), On the identifiability of Bayesian factor analytic models,
    Statistics and Computing 32:23.
"""

import functools
import itertools
import math
from collections.abc import Callable, Iterator

import numpy as np

from latentlab.data import memory

Nearest = Callable[[np.ndarray], np.ndarray]
"""Cross products X' M `(..., q, q)` to the elements `(..., q, q)` that bring X closest to M."""

TOLERANCE = 1e-10
TIE = 1e-9
"""Sizes that differ by less than this part of the largest are equal: rounding must not choose among them."""
MAX_ITERATIONS = 1000
KEPT = 2**27
"""Numbers up to which the transposed blocks are kept between steps (1 GiB); above, they are made anew."""
ENUMERATED = 6
"""Largest q whose permutations are tried one by one (6! = 720)."""


class Blocks:
    """Draws `(S, m, q)` as transposed blocks `(n q, m)`, on which a step is two plain matrix products.

    Args:
        x: The draws.
        prepare: Done to each block `(n, m, q)`, so that no second copy of the draws is made.
    """

    def __init__(self, x: np.ndarray, prepare: Callable[[np.ndarray], np.ndarray] = np.asarray) -> None:
        self.shape = x.shape
        self._x = x
        self._prepare = prepare
        self._slices = list(memory.blocks(x.shape[0], x.shape[1] * x.shape[2]))
        self._kept = [self._transposed(s) for s in self._slices] if x.size <= KEPT else None

    def _transposed(self, s: slice) -> np.ndarray:
        return np.ascontiguousarray(self._prepare(self._x[s]).swapaxes(1, 2)).reshape(-1, self.shape[1])

    def __iter__(self) -> Iterator[np.ndarray]:
        return iter(self._kept) if self._kept is not None else map(self._transposed, self._slices)

    def elements(self, target: np.ndarray, nearest: Nearest) -> np.ndarray:
        """The element `(S, q, q)` of each draw that brings it closest to `target`."""
        q = self.shape[2]
        return np.concatenate([nearest((block @ target).reshape(-1, q, q)) for block in self])

    def mean(self, target: np.ndarray, nearest: Nearest) -> np.ndarray:
        """The mean `(m, q)` of the draws after each was brought closest to `target`."""
        q = self.shape[2]
        total = np.zeros((self.shape[1], q))
        for block in self:
            total += block.T @ nearest((block @ target).reshape(-1, q, q)).reshape(-1, q)
        return total / self.shape[0]


def consensus(blocks: Blocks, start: np.ndarray, nearest: Nearest) -> np.ndarray:
    """The fixed point `(m, q)` that the alternation reaches from `start`."""
    mean = start
    for _ in range(MAX_ITERATIONS):
        before, mean = mean, blocks.mean(mean, nearest)
        if np.linalg.norm(mean - before) <= TOLERANCE * np.linalg.norm(mean):
            break
    return mean


def spectral_start(blocks: Blocks) -> np.ndarray:
    """Leading eigenvectors `(m, q)` of the mean Gram matrix, times the root of their eigenvalues.

    By subspace iteration from a fixed start: the m x m matrix is never formed, and what is left of the error depends on
    that matrix only, so that the result stays independent of how each draw is turned.
    """
    n_draws, m, q = blocks.shape
    basis = np.linalg.qr(np.random.default_rng(0).normal(size=(m, min(m, q + 8))))[0]
    values = np.zeros(basis.shape[1])
    for _ in range(50):
        product = sum((block.T @ (block @ basis) for block in blocks), np.zeros_like(basis)) / n_draws
        before, (values, vectors) = values, np.linalg.eigh(basis.T @ product)
        if np.linalg.norm((values - before)[-q:]) <= 1e-8 * np.linalg.norm(values):
            break
        basis = np.linalg.qr(product)[0]
    top = (basis @ vectors[:, ::-1])[:, :q] * np.sqrt(np.maximum(values[::-1][:q], 0.0))
    return np.pad(top, ((0, 0), (0, q - top.shape[1])))


def typical_draws(x: np.ndarray, n: int = 5) -> list[np.ndarray]:
    """`n` draws at evenly spaced ranks of their size |X|^2, which no permutation or change of sign alters."""
    size = np.sort(np.einsum("smq,smq->sq", x, x), axis=1).sum(axis=1)
    ranks = np.unique(np.linspace(0, len(x) - 1, n + 2)[1:-1].round().astype(int))
    return [x[s] for s in np.argsort(size, kind="stable")[ranks]]


def rotation_consensus(x: np.ndarray, prepare: Callable[[np.ndarray], np.ndarray] = np.asarray) -> tuple[np.ndarray, np.ndarray]:
    """Orthogonal elements `(S, q, q)` of prepared draws `(S, m, q)` and their consensus `(m, q)`, in its principal axes."""
    blocks = Blocks(x, prepare)
    mean = consensus(blocks, spectral_start(blocks), polar)
    turn = principal_axes(mean)
    return blocks.elements(mean, polar) @ turn, mean @ turn


def matching_consensus(x: np.ndarray, nearest: Nearest) -> tuple[np.ndarray, np.ndarray]:
    """Permutations (with signs where `nearest` gives signs) `(S, q, q)` of draws `(S, m, q)`, and their consensus."""
    blocks = Blocks(x)
    means = [consensus(blocks, start, nearest) for start in typical_draws(x)]
    norms = np.array([np.linalg.norm(one) for one in means])
    mean = means[int((norms >= (1 - TIE) * norms.max()).argmax())]
    turn = by_size(mean, signed=nearest is signed_assignment)
    return blocks.elements(mean, nearest) @ turn, mean @ turn


def polar(cross: np.ndarray) -> np.ndarray:
    """The orthogonal R `(..., q, q)` that maximises tr(R' C)."""
    u, _, vt = np.linalg.svd(cross)
    return u @ vt


def assignment(cross: np.ndarray) -> np.ndarray:
    """The permutation matrix P `(..., q, q)` that maximises tr(P' C)."""
    q = cross.shape[-1]
    flat = cross.reshape(-1, q, q)
    matrices = permutation_matrices(q)[_best(flat)] if q <= ENUMERATED else np.stack([_hungarian(c) for c in flat])
    return matrices.reshape(cross.shape)


def signed_assignment(cross: np.ndarray) -> np.ndarray:
    """The signed permutation matrix P `(..., q, q)` that maximises tr(P' C)."""
    return assignment(np.abs(cross)) * np.where(cross < 0, -1.0, 1.0)


def _best(cross: np.ndarray) -> np.ndarray:
    q = cross.shape[-1]
    candidates = permutation_matrices(q).reshape(-1, q * q)
    return np.argmax(cross.reshape(-1, q * q) @ candidates.T, axis=1)


def _hungarian(cross: np.ndarray) -> np.ndarray:
    from scipy.optimize import linear_sum_assignment

    matrix = np.zeros_like(cross)
    matrix[linear_sum_assignment(cross, maximize=True)] = 1.0
    return matrix


def permutation_matrices(q: int) -> np.ndarray:
    """All q! permutation matrices `(q!, q, q)`."""
    return np.eye(q)[np.array(list(itertools.permutations(range(q))), dtype=int).reshape(math.factorial(q), q)]


def principal_axes(mean: np.ndarray) -> np.ndarray:
    """The orthogonal matrix that turns a consensus to its principal axes, each axis's largest entry positive.

    Among axes of equal variance (to a relative `TIE`) the rows decide: the largest row lies along the first of them, what is left
    of the next largest along the second, so that rounding never turns them.
    """
    turn, values, _ = np.linalg.svd(mean.T @ mean)
    for start, stop in _tied(values[values > TIE * values[:1].max(initial=0.0)]):
        turn[:, start:stop] = turn[:, start:stop] @ _by_rows(mean @ turn[:, start:stop])
    return turn * signs(mean @ turn)


def by_size(mean: np.ndarray, *, signed: bool) -> np.ndarray:
    """The permutation that orders a consensus's columns by decreasing norm; `signed`: their largest entry positive.

    Columns of equal norm (to a relative `TIE`) are ordered by their entries, the first row in which they differ deciding.
    """
    norms = np.linalg.norm(mean, axis=0)
    order = np.argsort(-norms, kind="stable")
    entries = mean * signs(mean) if signed else mean
    size = np.abs(entries).max(initial=0.0)

    def earlier(a: int, b: int) -> int:
        differ = np.flatnonzero(np.abs(entries[:, a] - entries[:, b]) > TIE * size)
        return 0 if not differ.size else -1 if entries[differ[0], a] > entries[differ[0], b] else 1

    for start, stop in _tied(norms[order]):
        order[start:stop] = sorted(order[start:stop], key=functools.cmp_to_key(earlier))
    turn = np.eye(mean.shape[1])[:, order]
    return turn * signs(mean @ turn) if signed else turn


def signs(mean: np.ndarray) -> np.ndarray:
    """The sign `(q,)` of each column's largest entry: of the first of those that are equal in size to a relative `TIE`."""
    size = np.abs(mean)
    first = (size >= (1 - TIE) * size.max(axis=0)).argmax(axis=0)
    return np.where(np.take_along_axis(mean, first[None], axis=0)[0] < 0, -1.0, 1.0)


def _tied(values: np.ndarray) -> list[tuple[int, int]]:
    """Runs `start:stop` of two and more values, in decreasing order, that are equal to a `TIE` of the largest."""
    breaks = np.flatnonzero(values[:-1] - values[1:] > TIE * values[:1].max(initial=0.0)) + 1
    edges = [0, *breaks.tolist(), len(values)]
    return [(start, stop) for start, stop in itertools.pairwise(edges) if stop - start > 1]


def _by_rows(x: np.ndarray) -> np.ndarray:
    """The orthogonal matrix that turns rows `(m, g)` so that the largest lies along the first axis, and so on."""
    g = x.shape[1]
    axes = np.zeros((g, 0))
    for _ in range(g):
        left = x - x @ axes @ axes.T
        size = np.linalg.norm(left, axis=1)
        row = int((size >= (1 - TIE) * size.max()).argmax())
        if size[row] <= TIE * np.linalg.norm(x):
            return np.linalg.qr(np.column_stack([axes, np.eye(g)]))[0][:, :g] if axes.shape[1] else np.eye(g)
        axes = np.column_stack([axes, left[row] / size[row]])
    return np.linalg.qr(axes)[0]
