r"""Coverage of an embedding, of known positions, or of further draws by the posterior's credible regions.

The credible region of a unit at level p is the ellipsoid of positions a with

$$ (a - m_i)^T S_i^{-1} (a - m_i) \le r^2, \quad r^2 = \frac{(S+1)(S-1)\,d}{S\,(S-d)}\, F_{d,\,S-d}(p) $$

with mean m_i and covariance S_i of the unit's S aligned draws (Hotelling). The radius accounts for the estimation of both, so
that a further draw of a Gaussian posterior is covered with probability p for every S. Draws, embedding and known positions are
aligned with the posterior mean by the same function; aligning only the known positions would make their coverage too high.

A deterministic embedding near the posterior mean is covered at nearly all units. Its coverage should therefore be compared with
that of held-out draws, and not with the level. The coverage of known positions should be compared with the level.

References:
    Hotelling (1931), The generalization of Student's ratio, Annals of Mathematical Statistics 2:360.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from scipy.stats import f as f_distribution

from latentlab.compare.align import aligner, mean_of
from latentlab.compare.chains import ess, joined, split
from latentlab.data import memory
from latentlab.errors import DataError

LEVELS = (0.5, 0.8, 0.95)
N_SERIES = 100
"""Largest number of units from whose draws the effective sample size is estimated."""


@dataclass(frozen=True)
class Coverage:
    """Shares of units inside their credible regions.

    Attributes:
        levels: Nominal levels.
        pointwise: Share of units whose position is in the unit's region, by level.
        draws: The same share for held-out draws, averaged over draws.
        simultaneous: Whether all units are in simultaneous regions, by level. The simultaneous regions contain all units of a
            held-out draw with the probability of the level.
        distances: Mahalanobis distance of each unit's position from its mean, `(unit,)`.
    """

    levels: tuple[float, ...]
    pointwise: tuple[float, ...]
    draws: tuple[float, ...]
    simultaneous: tuple[bool, ...]
    distances: np.ndarray


class Regions:
    """Credible ellipsoids of each unit from the reference half of the draws, with their coverage of held-out draws.

    Args:
        reference: Draws `(chain, draw, unit, latent)` from which the regions are computed.
        held_out: Draws `(chain, draw, unit, latent)` whose coverage is computed.
        align: Aligns positions `(..., unit, p)` with the mean `(..., unit, latent)`; may return a subset of the units.
        levels: Nominal levels.
    """

    def __init__(
        self,
        reference: np.ndarray,
        held_out: np.ndarray,
        align: Callable[[np.ndarray], np.ndarray],
        levels: tuple[float, ...] = LEVELS,
    ) -> None:
        self.align = align
        self.levels = levels
        self.n_draws = reference.shape[0] * reference.shape[1]
        self.mean, self.covariance = moments(reference, align)
        self._whiten = inverse_root(self.covariance)
        d = reference.shape[3]
        self.effective = max(self._effective(reference), d + 1.0)
        self.radii = np.array([hotelling_radius(self.effective, d, level) for level in levels])
        inside, largest = np.zeros(len(levels)), []
        for block in blocks(held_out):
            distances = self._distances(block)
            inside += (distances[..., None] <= self.radii).mean(axis=1).sum(axis=0)
            largest.append(distances.max(axis=1))
        most = np.concatenate(largest)
        self._held_out = tuple(float(share) for share in inside / len(most))
        self._simultaneous = np.quantile(most, levels, method="inverted_cdf")

    def _errors(self, x: np.ndarray) -> np.ndarray:
        return whitened(self._whiten, self.align(x) - self.mean)

    def _distances(self, x: np.ndarray) -> np.ndarray:
        return np.sqrt((self._errors(x) ** 2).sum(axis=-1))

    def _effective(self, half: np.ndarray) -> float:
        """Effective sample size of a unit's position, jointly over up to `N_SERIES` units; one series would be too noisy."""
        units = np.unique(np.linspace(0, len(self.mean) - 1, N_SERIES).astype(int))
        return ess(np.concatenate([self._errors(block)[:, units] for block in blocks(half)]).reshape(*half.shape[:2], -1))

    def coverage(self, y: np.ndarray, variance: np.ndarray | None = None) -> Coverage:
        """Compute the coverage of positions `(unit, p)` by the regions.

        Args:
            y: The positions.
            variance: Variances of their errors, `(unit, latent)`, which are added to the covariances of the regions.
        """
        distances = self._distances(y)
        if variance is not None:
            wider = inverse_root(self.covariance + variance[:, :, None] * np.eye(variance.shape[1]))
            distances = np.sqrt((whitened(wider, self.align(y) - self.mean) ** 2).sum(axis=-1))
        inside = (distances[:, None] <= self.radii).mean(axis=0)
        return Coverage(
            levels=self.levels,
            pointwise=tuple(float(share) for share in inside),
            draws=self._held_out,
            simultaneous=tuple(bool(distances.max() <= radius) for radius in self._simultaneous),
            distances=distances,
        )


def coverage(draws: np.ndarray, y: np.ndarray, *, alignment: str = "orthogonal", levels: tuple[float, ...] = LEVELS) -> Coverage:
    """Compute the coverage of positions by credible regions from half of the draws, and the coverage of the other half.

    Args:
        draws: Posterior draws, `(chain, draw, unit, latent)`.
        y: An embedding or known positions, `(unit, p)`.
        alignment: Transformation applied to both: `fixed` (none), `orthogonal`, `similarity` or `affine`.
        levels: Nominal levels, between 0 and 1.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> z, noise = rng.normal(size=(200, 2)), 0.3 * rng.normal(size=(4, 100, 200, 2))
        >>> found = coverage(z + noise, z)
        >>> found.pointwise, tuple(round(share, 2) for share in found.draws)
        ((1.0, 1.0, 1.0), (0.5, 0.8, 0.95))
    """
    reference, held_out = split(draws)
    mean = mean_of(joined(reference), alignment)
    return Regions(reference, held_out, aligner(alignment, mean), levels).coverage(positions(y))


def hotelling_radius(n_draws: float, d: int, level: float) -> float:
    """Compute the Mahalanobis radius r of the region that covers a further draw with probability `level`.

    Args:
        n_draws: Number S of draws (or effective draws) from which mean and covariance are estimated, more than d.
        d: Number of latent columns.
        level: Probability, above 0 and below 1.

    Raises:
        DataError: The level or the number of draws is out of its range.

    Example:
        >>> round(hotelling_radius(30, 2, 0.95), 4), round(hotelling_radius(10**9, 2, 0.95), 4)
        (2.674, 2.4477)
    """
    if not 0 < level < 1:
        raise DataError(f"`level` must be between 0 and 1; got {level!r}.")
    if n_draws <= d:
        raise DataError(f"a credible region in {d} dimensions needs more than {d} draws; got {n_draws:g}.")
    factor = (n_draws + 1) * (n_draws - 1) * d / (n_draws * (n_draws - d))
    return float(np.sqrt(factor * f_distribution.ppf(level, d, n_draws - d)))


def positions(y: np.ndarray) -> np.ndarray:
    """Return the values of an embedding as float64 `(unit, p)`.

    Raises:
        DataError: The array does not have two axes, is empty, or has values that are not finite.
    """
    y = np.asarray(y, dtype=np.float64)
    if y.ndim != 2 or not y.size:
        raise DataError(f"positions to compare must have shape (unit, column); got {y.shape}.")
    if not np.isfinite(y).all():
        raise DataError(
            f"positions to compare must be finite; got non-finite values for units {_first(~np.isfinite(y).all(axis=1))}."
        )
    return y


def _first(mask: np.ndarray) -> str:
    rows = np.flatnonzero(mask)
    return ", ".join(str(row) for row in rows[:5]) + (", ..." if len(rows) > 5 else "")


def blocks(half: np.ndarray) -> Iterator[np.ndarray]:
    """Yield draws `(chain, draw, unit, latent)` chain after chain, as blocks `(draw, unit, latent)` of about 16 MB."""
    for chain in half:
        for part in memory.blocks(len(chain), chain[0].size):
            yield chain[part]


def moments(half: np.ndarray, align: Callable[[np.ndarray], np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Compute mean `(unit, latent)` and covariance (ddof 1) `(unit, latent, latent)` of the draws after alignment."""
    n_draws, total, square = half.shape[0] * half.shape[1], np.zeros(()), np.zeros(())
    for block in blocks(half):
        total = total + align(block).sum(axis=0)
    mean = total / n_draws
    for block in blocks(half):
        deviation = (align(block) - mean).transpose(1, 2, 0)
        square = square + deviation @ deviation.swapaxes(1, 2)
    return mean, square / (n_draws - 1)


def inverse_root(covariance: np.ndarray) -> np.ndarray:
    """Compute the symmetric inverse square roots V^(-1/2) of covariances `(unit, d, d)`.

    Raises:
        DataError: A covariance is singular: the draws of a unit do not vary in all latent columns.
    """
    values, vectors = np.linalg.eigh(covariance)
    least = values[:, 0]
    if (least <= 1e-14 * np.maximum(values[:, -1], np.finfo(float).tiny)).any():
        raise DataError(
            f"draws of each unit must vary in all latent dimensions; the covariance is singular for units "
            f"{_first(least <= 1e-14 * values[:, -1])}."
        )
    return (vectors / np.sqrt(values)[:, None, :]) @ vectors.swapaxes(1, 2)


def whitened(root: np.ndarray, errors: np.ndarray) -> np.ndarray:
    """Compute whitened errors V_i^(-1/2) e_i, `(..., unit, d)`, from errors of this shape."""
    return np.einsum("nij,...nj->...ni", root, errors)
