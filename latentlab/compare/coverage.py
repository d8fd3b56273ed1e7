r"""Do the posterior's credible regions cover an embedding, a known truth, or further draws?

The region of a unit at level p is the ellipsoid of positions a with

$$ (a - m_i)' S_i^{-1} (a - m_i) \le r^2, \quad r^2 = \frac{(S+1)(S-1)\,d}{S\,(S-d)}\, F_{d,\,S-d}(p) $$

with mean m_i and covariance S_i of the unit's S aligned draws (Hotelling): the radius counts that both are estimated, so
that a further draw of a Gaussian posterior is covered with probability p however small S is. Everything compared, the
draws, the embedding and a known truth, is carried to the posterior's mean by one function; aligning only the truth would
cover too much.

A deterministic embedding near the posterior mean is covered nearly everywhere, so its share is read beside that of
held-out draws, never against the level. A known truth is read against the level.

References:
    Hotelling (1931), The generalization of Student's ratio, Annals of Mathematical Statistics 2:360.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from scipy.stats import f as f_distribution

from latentlab.compare.align import aligner, mean_of
from latentlab.compare.chains import ess, split
from latentlab.data import memory
from latentlab.errors import DataError

LEVELS = (0.5, 0.8, 0.95)
N_SERIES = 100
"""Units whose draws tell how many effective ones there are."""


@dataclass(frozen=True)
class Coverage:
    """Shares of units inside their credible regions.

    Args:
        levels: Nominal levels.
        pointwise: Share of units whose position lies in its unit's region, by level.
        draws: The same share for held-out draws, on average.
        simultaneous: Whether all units lie at once in regions made large enough for that share of held-out draws, by level.
        distances: Mahalanobis distance of each unit's position from its mean, `(unit,)`.
    """

    levels: tuple[float, ...]
    pointwise: tuple[float, ...]
    draws: tuple[float, ...]
    simultaneous: tuple[bool, ...]
    distances: np.ndarray


class Regions:
    """Credible ellipsoids of each unit, from draws of the reference half, and how held-out draws lie in them.

    Args:
        reference: Draws `(chain, draw, unit, latent)` that make the regions.
        held_out: Draws `(chain, draw, unit, latent)` that are counted in them.
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
        self._radii = np.array([hotelling_radius(self.effective, d, level) for level in levels])
        inside, largest = np.zeros(len(levels)), []
        for block in blocks(held_out):
            distances = self._distances(block)
            inside += (distances[..., None] <= self._radii).mean(axis=1).sum(axis=0)
            largest.append(distances.max(axis=1))
        most = np.concatenate(largest)
        self._held_out = tuple(float(share) for share in inside / len(most))
        self._simultaneous = np.quantile(most, levels, method="inverted_cdf")

    def _errors(self, x: np.ndarray) -> np.ndarray:
        return whitened(self._whiten, self.align(x) - self.mean)

    def _distances(self, x: np.ndarray) -> np.ndarray:
        return np.sqrt((self._errors(x) ** 2).sum(axis=-1))

    def _effective(self, half: np.ndarray) -> float:
        """Effective draws of a unit's position, on average over units: one series alone would tell it too roughly."""
        few = np.unique(np.linspace(0, len(self.mean) - 1, N_SERIES).astype(int))
        return ess(np.concatenate([self._errors(block)[:, few] for block in blocks(half)]).reshape(*half.shape[:2], -1))

    def coverage(self, y: np.ndarray) -> Coverage:
        """How positions `(unit, p)` lie in the regions."""
        distances = self._distances(y)
        inside = (distances[:, None] <= self._radii).mean(axis=0)
        return Coverage(
            levels=self.levels,
            pointwise=tuple(float(share) for share in inside),
            draws=self._held_out,
            simultaneous=tuple(bool(distances.max() <= radius) for radius in self._simultaneous),
            distances=distances,
        )


def coverage(draws: np.ndarray, y: np.ndarray, *, alignment: str = "orthogonal", levels: tuple[float, ...] = LEVELS) -> Coverage:
    """How positions lie in the credible regions that half of the draws make, beside the other half of the draws.

    Args:
        draws: Posterior draws, `(chain, draw, unit, latent)`.
        y: An embedding or known positions, `(unit, p)`.
        alignment: What may be done to both: `fixed` (nothing), `orthogonal`, `similarity` or `affine`.
        levels: Nominal levels, between 0 and 1.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> z, noise = rng.normal(size=(200, 2)), 0.3 * rng.normal(size=(4, 100, 200, 2))
        >>> found = coverage(z + noise, z)
        >>> found.pointwise, tuple(round(share, 2) for share in found.draws)
        ((1.0, 1.0, 1.0), (0.5, 0.8, 0.95))
    """
    reference, held_out = split(draws)
    mean = mean_of(reference.reshape(-1, *reference.shape[2:]), alignment)
    return Regions(reference, held_out, aligner(alignment, mean), levels).coverage(positions(y))


def hotelling_radius(n_draws: float, d: int, level: float) -> float:
    """Mahalanobis radius r of the region that covers a further draw with probability `level`.

    Args:
        n_draws: Draws (or effective draws) S from which mean and covariance are estimated, more than d.
        d: Latent columns.
        level: Probability, above 0 and below 1.

    Raises:
        DataError: A level or a number of draws outside these.

    Example:
        >>> round(hotelling_radius(30, 2, 0.95), 4), round(hotelling_radius(10**9, 2, 0.95), 4)
        (2.674, 2.4477)
    """
    if not 0 < level < 1:
        raise DataError(f"`level` must lie between 0 and 1; got {level!r}.")
    if n_draws <= d:
        raise DataError(f"an ellipsoid in {d} columns needs more than {d} draws; got {n_draws:g}.")
    factor = (n_draws + 1) * (n_draws - 1) * d / (n_draws * (n_draws - d))
    return float(np.sqrt(factor * f_distribution.ppf(level, d, n_draws - d)))


def positions(y: np.ndarray) -> np.ndarray:
    """An embedding's values as float64 `(unit, p)`.

    Raises:
        DataError: Another number of axes, or values that are not finite.
    """
    y = np.asarray(y, dtype=np.float64)
    if y.ndim != 2 or not y.size:
        raise DataError(f"positions to compare must have shape (unit, column); got {y.shape}.")
    if not np.isfinite(y).all():
        raise DataError(f"positions to compare must be finite; units {_first(~np.isfinite(y).all(axis=1))} are not.")
    return y


def _first(bad: np.ndarray) -> str:
    rows = np.flatnonzero(bad)
    return ", ".join(str(row) for row in rows[:5]) + (", ..." if len(rows) > 5 else "")


def blocks(half: np.ndarray) -> Iterator[np.ndarray]:
    """The draws of `(chain, draw, unit, latent)` chain after chain, as blocks `(draw, unit, latent)` of some 16 MB."""
    for chain in half:
        for part in memory.blocks(len(chain), chain[0].size):
            yield chain[part]


def moments(half: np.ndarray, align: Callable[[np.ndarray], np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Mean `(unit, latent)` and covariance (ddof 1) `(unit, latent, latent)` of aligned draws."""
    n_draws, total, square = half.shape[0] * half.shape[1], np.zeros(()), np.zeros(())
    for block in blocks(half):
        total = total + align(block).sum(axis=0)
    mean = total / n_draws
    for block in blocks(half):
        less = (align(block) - mean).transpose(1, 2, 0)
        square = square + less @ less.swapaxes(1, 2)
    return mean, square / (n_draws - 1)


def inverse_root(covariance: np.ndarray) -> np.ndarray:
    """Symmetric V^(-1/2) of covariances `(unit, d, d)`.

    Raises:
        DataError: A unit does not vary.
    """
    values, vectors = np.linalg.eigh(covariance)
    least = values[:, 0]
    if (least <= 1e-14 * np.maximum(values[:, -1], np.finfo(float).tiny)).any():
        raise DataError(
            f"draws must vary at each unit in all latent columns; units {_first(least <= 1e-14 * values[:, -1])} do not."
        )
    return (vectors / np.sqrt(values)[:, None, :]) @ vectors.swapaxes(1, 2)


def whitened(root: np.ndarray, errors: np.ndarray) -> np.ndarray:
    """V_i^(-1/2) e_i for errors `(..., unit, d)`."""
    return np.einsum("nij,...nj->...ni", root, errors)
