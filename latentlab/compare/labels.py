r"""Agreement of positions with labels that the models did not use, and classification accuracy.

| score | formula | range |
|---|---|---|
| `label_agreement` | share of the k nearest units that have the unit's own label, mean over units | [0, 1] |
| `silhouette` | mean of (b - a) / max(a, b); a, b: mean distance to the own and to the nearest other class | [-1, 1] |
| `downstream_accuracy` | share of units whose label is predicted by a classifier trained on the other folds | [0, 1] |

Higher is better for all three. `label_scores` computes one of them for the embedding, the posterior mean and each draw. The folds
are drawn once (`folds`), so that differences between scores are not due to the folds. The chance level of the accuracy is
`largest_class`.

References:
    Rousseeuw (1987), Silhouettes, Journal of Computational and Applied Mathematics 20:53.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from scipy.spatial.distance import cdist
from sklearn.neighbors import KNeighborsClassifier

from latentlab.compare.lift import draw_positions, shape
from latentlab.compare.neighbors import N_NEIGHBORS, neighbors
from latentlab.compare.positions import Positions, ranked
from latentlab.compare.subspace import RANK
from latentlab.errors import ConfigError, DataError, unknown

Classifier = Literal["neighbors", "linear"]

N_FOLDS = 5
RIDGE = 1e-9
"""Ridge on the covariance within classes, relative to the total; classes without variance remain separable."""


@dataclass(frozen=True)
class LabelScores:
    """Score of an embedding, of the posterior mean and of each draw.

    Attributes:
        embedding: Score of the embedding.
        posterior_mean: Score of the mean of the draws.
        draws: Score of each draw, `(chain, draw)`.
    """

    embedding: float
    posterior_mean: float
    draws: np.ndarray


def label_scores(score: Callable[[Any], float], y: Any, draws: Any) -> LabelScores:
    r"""Compute a score of positions for an embedding, the posterior mean and each draw.

    Args:
        score: Function of positions, with labels and folds bound: `partial(downstream_accuracy, labels=labels, folds=fixed)`.
        y: Embedding, `(unit, p)`.
        draws: Aligned positions, `(chain, draw, unit, latent)`; the mean of unaligned draws is meaningless.

    Raises:
        DataError: The embedding or the draws are not positions.
    """
    n_chains, n_draws = shape(draws)
    of_draws, mean = np.empty((n_chains, n_draws)), np.zeros(np.shape(draws[0, 0]))
    for chain, draw in np.ndindex(n_chains, n_draws):
        positions = draw_positions(draws, chain, draw)
        of_draws[chain, draw] = score(positions)
        mean += positions.values / of_draws.size
    return LabelScores(score(Positions(y, "the embedding")), score(Positions(mean)), of_draws)


def label_agreement(x: Any, labels: Any, *, n_neighbors: int = N_NEIGHBORS) -> float:
    """Compute the mean share of a unit's nearest units that have its label, in [0, 1].

    The chance level is the sum of the squared class shares.

    Args:
        x: Positions, `(unit, p)`.
        labels: Labels, `(unit,)`, at least two different.
        n_neighbors: Number of nearest units.

    Raises:
        DataError: x is not an array of positions, or the labels do not fit them.
        ConfigError: `n_neighbors` is below 1, or not below half of the units.
    """
    x = _positions(x)
    codes = _codes(labels, x.n_units)
    return float((codes[x.derived(neighbors, n_neighbors)] == codes[:, None]).mean())


def silhouette(x: Any, labels: Any) -> float:
    """Compute the mean silhouette of the labels as clusters, in [-1, 1].

    A unit that is alone in its class has silhouette 0, as does a unit with distance 0 to its own and to the nearest other class.
    Above 1024 units the mean is over a subsample, with distances to all units up to 65 536
    (`latentlab.compare.positions.ranked`).

    Args:
        x: Positions, `(unit, p)`.
        labels: Labels, `(unit,)`, at least two different.

    Raises:
        DataError: x is not an array of positions, or the labels do not fit them.
    """
    x = _positions(x)
    anchors, others = ranked(x.n_units)
    codes = _codes(labels, x.n_units)[others]
    member = np.eye(codes.max() + 1)[codes]
    sums = cdist(x.centered[anchors], x.centered[others]) @ member
    size, own = member.sum(axis=0), (np.arange(len(anchors)), codes[: len(anchors)])
    within = sums[own] / np.maximum(size[own[1]] - 1, 1)
    between = np.divide(sums, size, out=np.full_like(sums, np.inf), where=size > 0)
    between[own] = np.inf
    nearest = between.min(axis=1)
    widest = np.maximum(within, nearest)
    counts = (size[own[1]] > 1) & (widest > 0) & np.isfinite(nearest)
    return float(np.divide(nearest - within, widest, out=np.zeros(len(anchors)), where=counts).mean())


def folds(labels: Any, rng: np.random.Generator, n_folds: int = N_FOLDS) -> np.ndarray:
    """Draw stratified folds: the fold in which each unit is held out, `(unit,)` from 0, balanced within each class.

    Raises:
        DataError: The labels are not one-dimensional and finite, or there is only one class.
        ConfigError: `n_folds` is not from 2 to the number of units.

    Example:
        >>> found = folds(["a"] * 6 + ["b"] * 3, np.random.default_rng(0), 3)
        >>> np.bincount(found[:6]), np.bincount(found[6:])
        (array([2, 2, 2]), array([1, 1, 1]))
    """
    codes = _codes(labels, len(labels))
    if not 2 <= n_folds <= len(codes):
        raise ConfigError(f"`n_folds` must be from 2 to the {len(codes)} units; got {n_folds}.")
    shuffled = rng.permutation(len(codes))
    by_class = shuffled[np.argsort(codes[shuffled], kind="stable")]
    fold = np.empty(len(codes), dtype=np.int64)
    fold[by_class] = np.arange(len(codes)) % n_folds
    return fold


def downstream_accuracy(
    x: Any, labels: Any, folds: np.ndarray, *, classifier: Classifier = "neighbors", n_neighbors: int = N_NEIGHBORS
) -> float:
    """Compute the share of units whose label is predicted by a classifier trained on the other folds, in [0, 1].

    Args:
        x: Positions, `(unit, p)`.
        labels: Labels, `(unit,)`, at least two different.
        folds: Fold of each unit, `(unit,)`, for example from `folds`.
        classifier: `neighbors`, the majority label of the nearest units (invariant under rotation, translation, scale), or
            `linear`, linear discriminant analysis (invariant under affine maps).
        n_neighbors: Number of nearest units that vote.

    Raises:
        DataError: x is not an array of positions, labels or folds do not fit it, or fewer than `n_neighbors` units are outside a
            fold.
        ConfigError: The classifier does not exist.
    """
    x = _positions(x)
    codes = _codes(labels, x.n_units)
    folds = np.asarray(folds)
    if folds.shape != codes.shape or len(np.unique(folds)) < 2:
        raise DataError(
            f"`folds` must have shape ({x.n_units},) with at least 2 different values; got shape {folds.shape} with "
            f"{len(np.unique(folds))}."
        )
    n_correct = 0
    for fold in np.unique(folds):
        held_out = folds == fold
        predict = _trained(classifier, x.centered[~held_out], codes[~held_out], n_neighbors)
        n_correct += int((predict(x.centered[held_out]) == codes[held_out]).sum())
    return n_correct / x.n_units


def largest_class(labels: Any) -> float:
    """Compute the share of the most frequent label: the accuracy of a classifier that does not use the positions."""
    return float(np.bincount(_codes(labels, len(labels))).max() / len(labels))


def _trained(name: str, rows: np.ndarray, codes: np.ndarray, n_neighbors: int) -> Callable[[np.ndarray], np.ndarray]:
    if len(np.unique(codes)) == 1:
        return lambda new: np.full(len(new), codes[0])
    if name not in get_args(Classifier):
        raise ConfigError(unknown("classifier", name, get_args(Classifier)))
    if name == "linear":
        return _linear(rows, codes)
    if n_neighbors > len(rows):
        raise DataError(f"`n_neighbors` must be at most the number of units outside a fold, {len(rows)}; got {n_neighbors}.")
    return KNeighborsClassifier(n_neighbors=n_neighbors).fit(rows, codes).predict


def _linear(rows: np.ndarray, codes: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Linear discriminant analysis in whitened coordinates; collinear columns and zero variances are allowed."""
    classes, counts = np.unique(codes, return_counts=True)
    mean = rows.mean(axis=0)
    _, size, vt = np.linalg.svd(rows - mean, full_matrices=False)
    kept = size > RANK * max(size[0], np.finfo(float).tiny)
    whitening = vt[kept].T / size[kept] * np.sqrt(len(rows))
    white = (rows - mean) @ whitening
    centres = np.stack([white[codes == c].mean(axis=0) for c in classes])
    residual = white - centres[np.searchsorted(classes, codes)]
    weights = np.linalg.solve(residual.T @ residual / len(rows) + RIDGE * np.eye(kept.sum()), centres.T)
    constant = np.log(counts / len(rows)) - 0.5 * np.einsum("ck,kc->c", centres, weights)
    return lambda new: classes[np.argmax((new - mean) @ whitening @ weights + constant, axis=1)]


def _positions(x: Any) -> Positions:
    return x if isinstance(x, Positions) else Positions(x)


def _codes(labels: Any, n_units: int) -> np.ndarray:
    """Return labels as numbers from 0, in their sorted order, `(unit,)`."""
    values = np.asarray(labels)
    if values.shape != (n_units,):
        raise DataError(f"labels must have shape ({n_units},); got {values.shape}.")
    if values.dtype.kind == "O":
        values = values.astype(str)
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise DataError(f"labels must be finite; got a non-finite label for unit {int(np.argmin(np.isfinite(values)))}.")
    classes, codes = np.unique(values, return_inverse=True)
    if len(classes) < 2:
        raise DataError(f"labels must have at least two classes; got {n_units} labels that are all {classes[0]}.")
    return codes
