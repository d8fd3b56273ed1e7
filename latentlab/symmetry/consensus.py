r"""Consensus of draws modulo a group, independent of any reference draw.

Draws X_s `(m, q)`, s = 1..S, are transformed by elements g_s that minimise

    sum_s |X_s g_s - M|^2,    M = (1/S) sum_s X_s g_s.

For groups that preserve norms, this maximises |M|^2. Two steps alternate. Given M, each g_s is a function of the cross product
X_s^T M (`polar`, `assignment`). Given the g_s, M is the mean. The start of the iteration is an invariant of the group. For
rotations it consists of the leading eigenvectors of the mean Gram matrix (1/S) sum_s X_s X_s^T. For permutations several draws
are starts, chosen by an invariant, and the best result is kept. The result therefore depends neither on the orientation of each
draw nor on the order of the draws. One element common to all draws is arbitrary, and is fixed by `principal_axes` or `by_size`.

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
from latentlab.data.memory import is_mapped, release

Nearest = Callable[[np.ndarray], np.ndarray]
"""Function from cross products X^T M `(..., q, q)` to the elements `(..., q, q)` that bring X closest to M."""

TOLERANCE = 1e-10
TIE = 1e-9
"""Relative tolerance within which sizes are ties, so that rounding does not choose among them."""
MAX_ITERATIONS = 1000
KEPT = 2**27
"""Largest number of values for which the transposed blocks are cached between steps (1 GiB); otherwise they are recomputed."""
ENUMERATED = 6
"""Largest q for which all permutations are tried (6! = 720)."""


class Blocks:
    """Draws `(S, m, q)` as transposed blocks `(n q, m)`, for which a step consists of two matrix products.

    Args:
        x: Draws, `(S, m, q)`.
        prepare: Function applied to each block `(n, m, q)`, which avoids a second copy of the draws.
    """

    def __init__(self, x: np.ndarray, prepare: Callable[[np.ndarray], np.ndarray] = np.asarray) -> None:
        self.shape = x.shape
        self._x = x
        self._prepare = prepare
        self._slices = list(memory.blocks(x.shape[0], x.shape[1] * x.shape[2]))
        kept = x.size <= KEPT and not is_mapped(x)
        self._kept = [self._transposed(s) for s in self._slices] if kept else None

    def _transposed(self, s: slice) -> np.ndarray:
        return np.ascontiguousarray(self._prepare(self._x[s]).swapaxes(1, 2)).reshape(-1, self.shape[1])

    def __iter__(self) -> Iterator[np.ndarray]:
        if self._kept is not None:
            yield from self._kept
            return
        for s in self._slices:
            yield self._transposed(s)
            release()

    def elements(self, target: np.ndarray, nearest: Nearest) -> np.ndarray:
        """Compute the elements `(S, q, q)` that bring each draw closest to `target`."""
        q = self.shape[2]
        return np.concatenate([nearest((block @ target).reshape(-1, q, q)) for block in self])

    def mean(self, target: np.ndarray, nearest: Nearest) -> np.ndarray:
        """Compute the mean `(m, q)` of the draws after each is brought closest to `target`."""
        q = self.shape[2]
        total = np.zeros((self.shape[1], q))
        for block in self:
            total += block.T @ nearest((block @ target).reshape(-1, q, q)).reshape(-1, q)
        return total / self.shape[0]


def consensus(blocks: Blocks, start: np.ndarray, nearest: Nearest) -> np.ndarray:
    """Iterate from `start` to a fixed point `(m, q)`, for at most `MAX_ITERATIONS` steps."""
    mean = start
    for _ in range(MAX_ITERATIONS):
        before, mean = mean, blocks.mean(mean, nearest)
        if np.linalg.norm(mean - before) <= TOLERANCE * np.linalg.norm(mean):
            break
    return mean


def spectral_start(blocks: Blocks) -> np.ndarray:
    """Compute leading eigenvectors `(m, q)` of the mean Gram matrix, times the square roots of their eigenvalues.

    Subspace iteration from a fixed start avoids the m x m matrix. Its remaining error is a function of that matrix only, so that
    the result does not depend on the orientation of each draw.
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
    """Choose at most `n` draws at evenly spaced ranks of |X|^2, which is invariant under permutations and sign changes."""
    size = np.sort(np.einsum("smq,smq->sq", x, x), axis=1).sum(axis=1)
    ranks = np.unique(np.linspace(0, len(x) - 1, n + 2)[1:-1].round().astype(int))
    return [x[s] for s in np.argsort(size, kind="stable")[ranks]]


def rotation_consensus(x: np.ndarray, prepare: Callable[[np.ndarray], np.ndarray] = np.asarray) -> tuple[np.ndarray, np.ndarray]:
    """Compute orthogonal elements `(S, q, q)` of prepared draws `(S, m, q)` and their consensus `(m, q)` in principal axes."""
    blocks = Blocks(x, prepare)
    mean = consensus(blocks, spectral_start(blocks), polar)
    rotation = principal_axes(mean)
    return blocks.elements(mean, polar) @ rotation, mean @ rotation


def matching_consensus(x: np.ndarray, nearest: Nearest) -> tuple[np.ndarray, np.ndarray]:
    """Compute the permutations (or signed permutations) `(S, q, q)` of draws `(S, m, q)` and their consensus `(m, q)`."""
    blocks = Blocks(x)
    means = [consensus(blocks, start, nearest) for start in typical_draws(x)]
    norms = np.array([np.linalg.norm(one) for one in means])
    mean = means[int((norms >= (1 - TIE) * norms.max()).argmax())]
    permutation = by_size(mean, signed=nearest is signed_assignment)
    return blocks.elements(mean, nearest) @ permutation, mean @ permutation


def polar(cross: np.ndarray) -> np.ndarray:
    """Compute the orthogonal R `(..., q, q)` that maximises tr(R^T C)."""
    u, _, vt = np.linalg.svd(cross)
    return u @ vt


def assignment(cross: np.ndarray) -> np.ndarray:
    """Compute the permutation matrix P `(..., q, q)` that maximises tr(P^T C)."""
    q = cross.shape[-1]
    flat = cross.reshape(-1, q, q)
    matrices = permutation_matrices(q)[_best(flat)] if q <= ENUMERATED else np.stack([_hungarian(c) for c in flat])
    return matrices.reshape(cross.shape)


def signed_assignment(cross: np.ndarray) -> np.ndarray:
    """Compute the signed permutation matrix P `(..., q, q)` that maximises tr(P^T C)."""
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
    """Return all q! permutation matrices, `(q!, q, q)`."""
    return np.eye(q)[np.array(list(itertools.permutations(range(q))), dtype=int).reshape(math.factorial(q), q)]


def principal_axes(mean: np.ndarray) -> np.ndarray:
    """Compute the orthogonal matrix `(q, q)` that rotates a consensus to its principal axes; largest entries are positive.

    Axes of equal variance (up to a relative `TIE`) are determined by the rows, so that rounding does not rotate them. The largest
    row is along the first of these axes, the residual of the next largest along the second, and so on.
    """
    rotation, values, _ = np.linalg.svd(mean.T @ mean)
    for start, stop in _tied(values[values > TIE * values[:1].max(initial=0.0)]):
        rotation[:, start:stop] = rotation[:, start:stop] @ _by_rows(mean @ rotation[:, start:stop])
    return rotation * signs(mean @ rotation)


def by_size(mean: np.ndarray, *, signed: bool) -> np.ndarray:
    """Compute the permutation matrix that orders the columns of a consensus by decreasing norm.

    If `signed`, the largest entry of each column is also made positive. Columns of equal norm (up to a relative `TIE`) are
    ordered by their entries in the first row in which they differ.
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
    permutation = np.eye(mean.shape[1])[:, order]
    return permutation * signs(mean @ permutation) if signed else permutation


def signs(mean: np.ndarray) -> np.ndarray:
    """Return the sign `(q,)` of each column's entry of largest magnitude; of the first one in case of ties (relative `TIE`)."""
    size = np.abs(mean)
    first = (size >= (1 - TIE) * size.max(axis=0)).argmax(axis=0)
    return np.where(np.take_along_axis(mean, first[None], axis=0)[0] < 0, -1.0, 1.0)


def _tied(values: np.ndarray) -> list[tuple[int, int]]:
    """Runs `start:stop` of two or more consecutive values, sorted in decreasing order, that are ties (relative `TIE`)."""
    breaks = np.flatnonzero(values[:-1] - values[1:] > TIE * values[:1].max(initial=0.0)) + 1
    edges = [0, *breaks.tolist(), len(values)]
    return [(start, stop) for start, stop in itertools.pairwise(edges) if stop - start > 1]


def _by_rows(x: np.ndarray) -> np.ndarray:
    """Orthogonal matrix `(g, g)` that rotates rows `(m, g)`: the largest to the first axis, and so on by Gram-Schmidt."""
    g = x.shape[1]
    axes = np.zeros((g, 0))
    for _ in range(g):
        residual = x - x @ axes @ axes.T
        size = np.linalg.norm(residual, axis=1)
        row = int((size >= (1 - TIE) * size.max()).argmax())
        if size[row] <= TIE * np.linalg.norm(x):
            return np.linalg.qr(np.column_stack([axes, np.eye(g)]))[0][:, :g] if axes.shape[1] else np.eye(g)
        axes = np.column_stack([axes, residual[row] / size[row]])
    return np.linalg.qr(axes)[0]
