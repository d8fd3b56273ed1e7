r"""Alignment of draws, embeddings and known positions with the posterior mean of the positions.

The mean M of draws of positions is their centred generalised orthogonal Procrustes mean in principal axes
(`procrustes_mean`). Under the alignment `fixed`, for models without a symmetry, M is the arithmetic mean, and a = x. Under the
other alignments, positions x are centred and then transformed by an element of a group. The same function aligns draws,
embeddings and a known truth, so that alignment reduces the errors of all of them in the same way:

* `orthogonal`: a = x R, R = U V^T from the singular value decomposition U S V^T of x^T M;
* `similarity`: a = b x R, with the same R and $b = |M|^2 / \langle M, x R \rangle$;
* `affine`: $a = x C^{-1}$ with $C = (M^T M)^{-1} M^T x$.

Scale and affine map are from the regression of x on M, not of M on x. Regression of M on x would shrink each draw because of
its noise (attenuation), and a stretched mean could then not be distinguished from a draw.

References:
    Gower (1975), Generalized Procrustes analysis, Psychometrika 40:33.
"""

from collections.abc import Callable
from typing import Literal, get_args

import numpy as np

from latentlab.errors import ConfigError, DataError, unknown
from latentlab.symmetry import consensus

Alignment = Literal["fixed", "orthogonal", "similarity", "affine"]
ALIGNMENTS: tuple[Alignment, ...] = get_args(Alignment)

N_FOLDS = 5
ROUND_OFF = 1e-12
"""Largest deviation from the mean, relative to the largest value, up to which an array counts as constant."""


def procrustes_mean(draws: np.ndarray) -> np.ndarray:
    """Compute the generalised orthogonal Procrustes mean `(unit, latent)` of centred draws, in its principal axes.

    Args:
        draws: Positions, `(draw, unit, latent)`.

    Example:
        >>> turned = np.array([[[1.0, 0.0], [-1.0, 0.0]], [[0.0, 2.0], [0.0, -2.0]]])
        >>> procrustes_mean(turned).round(6) + 0.0
        array([[ 1.5,  0. ],
               [-1.5,  0. ]])
    """
    return consensus.rotation_consensus(draws, centred)[1]


def mean_of(draws: np.ndarray, alignment: str) -> np.ndarray:
    """Compute the mean position M `(unit, latent)` of draws `(draw, unit, latent)` for an alignment."""
    return draws.mean(axis=0) if alignment == "fixed" else procrustes_mean(draws)


def principal_axes(values: np.ndarray) -> np.ndarray:
    """Centre positions `(unit, p)` and rotate them to principal axes: largest variance first, largest entry positive."""
    x = centred(values)
    return x @ consensus.principal_axes(x)


def centred(x: np.ndarray) -> np.ndarray:
    """Subtract the mean over units from positions `(..., unit, p)`; exactly zero if they are constant up to round-off."""
    x = np.asarray(x, dtype=np.float64)
    deviation = x - x.mean(axis=-2, keepdims=True)
    deviation[_largest(deviation) <= ROUND_OFF * _largest(x)] = 0.0
    return deviation


def _largest(x: np.ndarray) -> np.ndarray:
    """Largest absolute value `(...,)` of each array `(..., unit, p)`."""
    return np.maximum(x.max(axis=(-2, -1)), -x.min(axis=(-2, -1)))


def aligner(alignment: str, reference: np.ndarray, *, series: bool = False) -> Callable[[np.ndarray], np.ndarray]:
    """Return the function that aligns positions `(..., unit, p)` with a reference, `(..., unit, latent)`.

    If the positions have fewer columns than the reference, p < d, columns of zeros are added. p > d is possible for `affine`
    only: the columns are first mapped to d columns by linear regression with 5-fold cross-fitting.

    Args:
        alignment: `fixed`, `orthogonal`, `similarity` or `affine`.
        reference: Mean position M, `(unit, latent)`.
        series: Whether units are in the order of time. The folds are then contiguous, since neighbouring units are similar: a
            map fitted to both neighbours of a unit would predict it from any smooth columns.

    Raises:
        ConfigError: The alignment does not exist.
        DataError: Raised by the returned function if the number of units differs, or p > d is not possible.

    Example:
        >>> square = np.array([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
        >>> aligner("similarity", square)(3 * square[:, ::-1] + 5).round(6) + 0.0
        array([[ 1.,  1.],
               [ 1., -1.],
               [-1.,  1.],
               [-1., -1.]])
    """
    if alignment not in ALIGNMENTS:
        raise ConfigError(unknown("alignment", alignment, ALIGNMENTS))
    if alignment == "fixed":
        return lambda x: _with_columns(x, reference, alignment, series=series)
    mean = centred(reference)
    transform = {"orthogonal": _rotated, "similarity": _scaled, "affine": _regressed}[alignment]

    def align(x: np.ndarray) -> np.ndarray:
        return transform(centred(_with_columns(x, mean, alignment, series=series)), mean)

    return align


def scales(x: np.ndarray, reference: np.ndarray, alignment: str = "similarity", *, series: bool = False) -> np.ndarray:
    r"""Compute the factor $b = |M|^2 / \langle M, x R \rangle$ `(...,)` that scales positions to the reference.

    The factor is infinite for constant positions.

    Args:
        x: Positions, `(..., unit, p)`; columns are added or mapped as in `aligner`.
        reference: Mean position M, `(unit, latent)`.
        alignment: Alignment; under `fixed`, R is the identity.
        series: Whether units are in the order of time, as in `aligner`.
    """
    mean = centred(reference)
    return _factor(centred(_with_columns(x, mean, "affine", series=series)), mean, rotate=alignment != "fixed")


def _rotated(x: np.ndarray, mean: np.ndarray) -> np.ndarray:
    return x @ consensus.polar(x.swapaxes(-1, -2) @ mean)


def _scaled(x: np.ndarray, mean: np.ndarray) -> np.ndarray:
    factor = _factor(x, mean)[..., None, None]
    return _rotated(x, mean) * np.where(np.isfinite(factor), factor, 0.0)


def _factor(x: np.ndarray, mean: np.ndarray, *, rotate: bool = True) -> np.ndarray:
    cross = x.swapaxes(-1, -2) @ mean
    common = np.linalg.svd(cross, compute_uv=False).sum(axis=-1) if rotate else np.trace(cross, axis1=-2, axis2=-1)
    size = (mean**2).sum()
    is_zero = common <= ROUND_OFF * np.sqrt(size * (x**2).sum(axis=(-2, -1)))
    return np.where(is_zero, np.inf, size / np.where(is_zero, 1.0, common))


def _regressed(x: np.ndarray, mean: np.ndarray) -> np.ndarray:
    return x @ np.linalg.pinv(np.linalg.pinv(mean) @ x, rcond=1e-10)


def _with_columns(x: np.ndarray, mean: np.ndarray, alignment: str, *, series: bool) -> np.ndarray:
    x = np.asarray(x, dtype=np.float64)
    (n, d), p = mean.shape, x.shape[-1]
    if x.ndim < 2 or x.shape[-2] != n:
        raise DataError(f"positions to align must have shape (..., {n} units, columns), like the reference; got {x.shape}.")
    if p < d:
        return np.concatenate([x, np.zeros((*x.shape[:-1], d - p))], axis=-1)
    if p == d:
        return x
    if alignment != "affine" or x.ndim > 2:
        raise DataError(
            f"`alignment` must be 'affine' for an embedding with {p} columns and {d} latent dimensions; got {alignment!r}."
        )
    return _cross_fitted(x, mean, series=series)


def _cross_fitted(x: np.ndarray, mean: np.ndarray, *, series: bool) -> np.ndarray:
    """Cross-fitted least-squares predictions `(unit, d)` of the mean from x `(unit, p)`: each fold from the other folds."""
    design = np.column_stack([x, np.ones(len(x))])
    fold = np.arange(len(x)) * N_FOLDS // len(x) if series else np.arange(len(x)) % N_FOLDS
    out = np.empty_like(mean)
    for k in range(N_FOLDS):
        training = fold != k
        out[~training] = design[~training] @ np.linalg.lstsq(design[training], mean[training], rcond=None)[0]
    return out
