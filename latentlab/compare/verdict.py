r"""Verdict on an embedding: test whether it is an estimate of the latent positions.

Draws are split by chain into the reference half B and the held-out half A. M is the Procrustes mean of B. V_i is the covariance
of unit i's aligned draws of B, shrunk to the pooled covariance with weight d + 2. Any positions Y are aligned with M
(`latentlab.compare.align`), a = align(Y), and their errors are whitened, $u_i = V_i^{-1/2} (a_i - M_i)$. Then

* **primary**: $D^2 = \sum_i |u_i|^2 / (n d)$. p_low is its lower rank among the draws of A. The effect size is
  $\delta = \sqrt{D^2(Y) / \mathrm{median}_A D^2}$: 0 for the posterior mean, 1 for a draw;
* **guard**: the largest z = (log statistic - median) / MAD, within A and Y, of D^2, of C = max |F^T u| / sd_B over functions
  F of M (`latentlab.compare.structure`) and columns of u, and of max_i |u_i|^2; p_guard is its upper rank;
* **gate**: shuffled means, the constant embedding and shuffled draws are tested in the same way, and must be rejected.

The label is determined as follows, with a = alpha / 2:

1. `undetermined` if the effective sample size of the held-out draws is below 2 / alpha - 1;
2. else `distinct` if p_guard <= a;
3. else `summary-like` if p_low <= a, provided that shuffled means and the constant are distinct, and `undetermined` if not;
4. else `draw-like`, provided that shuffled draws are distinct, and `undetermined` if not.

Ranks are computed as (1 + ESS f) / (1 + ESS), with f the share of A in the tail and ESS the effective sample size of the
statistic's series in A.

At most a share alpha of fresh draws, and of true positions under a true model, is `summary-like` or `distinct`. More of them
may be `undetermined` if the chains mix slowly. With sufficiently many units any fixed error is `distinct`, so delta should
always be reported with the label.
"""

import math
from collections.abc import Sequence

import numpy as np

from latentlab.compare.align import Alignment, aligner, mean_of, scales
from latentlab.compare.chains import ess, joined, leading_score, split
from latentlab.compare.coverage import Regions, blocks, inverse_root, positions, whitened
from latentlab.compare.judgement import Verdict, labelled, rank
from latentlab.compare.structure import structure
from latentlab.errors import DataError

SHUFFLED_MEANS = 40
SHUFFLED_DRAWS = 20
GATE_SHARE = 0.95
WARN_BELOW = 100.0
RECOMMENDED = 200
TWO_MODES_BELOW = 1.8
"""Kurtosis of the uniform distribution; two equal modes have a value near 1. 0.3% of samples of 40 Gaussian draws are below."""
N_WORST = 5
FLOOR = 1e-300
ROUND_OFF = 1e-6
"""Floor of the standard deviations of the structured errors, relative to the largest; the alignment fixes smaller ones."""


class Reference:
    """Reference quantities shared by the verdicts on many embeddings of one fit under one alignment.

    Args:
        draws: Posterior draws of the positions, `(chain, draw, unit, latent)`.
        alignment: Transformation applied to an embedding: `fixed` (none), `orthogonal`, `similarity` or `affine`.
        rng: Random generator for the shuffled means and draws, and for landmarks if there are many units.
        halves: Reference and held-out draws if `split` has already made them; they are the same under every alignment.
        judged: Units that the verdicts are about; the alignment uses all units.
        series: Whether units are in the order of time (`align.aligner`).
    """

    def __init__(
        self,
        draws: np.ndarray,
        alignment: Alignment,
        rng: np.random.Generator,
        *,
        halves: tuple[np.ndarray, np.ndarray] | None = None,
        judged: slice = slice(None),
        series: bool = False,
    ) -> None:
        reference, held_out = split(draws) if halves is None else halves
        self.alignment = alignment
        self._judged, self._series = judged, series
        self._whole = mean_of(joined(reference), alignment)
        self._aligner = aligner(alignment, self._whole, series=series)
        self.mean = self._whole[judged]
        self.regions = Regions(reference, held_out, self.align)
        self._whiten = inverse_root(_shrunk(self.regions.covariance, self.regions.n_draws))
        shift = alignment == "fixed" or len(self.mean) < len(self._whole)  # positions that are not centred by the alignment
        self._functions, self._values = structure(self.mean, rng, shift=shift)
        self._sd = _floored(self._sums(reference).std(axis=0))
        self._chains = held_out.shape[:2]
        self._statistics = np.concatenate([self._statistics_of(self._errors(block)) for block in blocks(held_out)])
        self._scales = np.concatenate([scales(block, self._whole, alignment, series=series) for block in blocks(held_out)])
        overall = self._statistics[:, 0]
        self.ess_low = ess(np.log(overall).reshape(self._chains))
        self.ess_guard = ess(_largest_z(self._statistics).reshape(self._chains))
        self.gate_summary, self.gate_draw = self._gates(held_out, rng)
        self.notes = self._draw_notes(reference, held_out)

    def align(self, x: np.ndarray) -> np.ndarray:
        """Align positions of all units `(..., unit, p)` with the mean; return the judged units `(..., unit, latent)`."""
        return self._aligner(x)[..., self._judged, :]

    def _errors(self, x: np.ndarray) -> np.ndarray:
        """Whitened errors u `(..., unit, latent)` of positions `(..., unit, p)`."""
        return whitened(self._whiten, self.align(x) - self.mean)

    def _sums(self, half: np.ndarray) -> np.ndarray:
        return np.concatenate([self._values.T @ self._errors(block) for block in blocks(half)])

    def _statistics_of(self, errors: np.ndarray) -> np.ndarray:
        """Statistics D^2, C and the largest |u_i|^2, `(..., 3)`."""
        square = (errors**2).sum(axis=-1)
        structured = (np.abs(self._values.T @ errors) / self._sd).max(axis=(-2, -1))
        statistics = np.stack([square.sum(axis=-1) / errors[0].size, structured, square.max(axis=-1)], axis=-1)
        return np.maximum(statistics, FLOOR)

    def _p_guard(self, statistics: np.ndarray) -> float:
        pool = _largest_z(np.vstack([self._statistics, statistics]))
        return rank(float((pool[:-1] >= pool[-1]).mean()), self.ess_guard)

    def _gates(self, held_out: np.ndarray, rng: np.random.Generator) -> tuple[float, float]:
        def p(x: np.ndarray) -> float:
            return self._p_guard(self._statistics_of(self._errors(x)[None])[0])

        n_draws = held_out.shape[1]
        selected = np.linspace(0, len(held_out) * n_draws - 1, SHUFFLED_DRAWS).astype(int)

        def replaced(x: np.ndarray, judged: np.ndarray) -> np.ndarray:
            copy = x.copy()
            copy[self._judged] = judged
            return copy

        means = [p(replaced(self._whole, rng.permutation(self.mean))) for _ in range(SHUFFLED_MEANS)]
        chosen = [held_out[divmod(s, n_draws)] for s in selected.tolist()]
        draws = [p(replaced(draw, rng.permutation(draw[self._judged]))) for draw in chosen]
        limit, draw_limit = (float(np.quantile(x, GATE_SHARE, method="inverted_cdf")) for x in (means, draws))
        return max(limit, p(replaced(self._whole, self.mean.mean(axis=0)))), draw_limit

    def _draw_notes(self, reference: np.ndarray, held_out: np.ndarray) -> tuple[str, ...]:
        notes = []
        held_out_ess = min(self.ess_low, self.ess_guard)
        if min(held_out_ess, self.regions.effective) < WARN_BELOW:
            notes.append(
                f"few draws: the effective sample size is {self.regions.effective:.0f} in the reference half and "
                f"{held_out_ess:.0f} in the held-out half (recommended: {RECOMMENDED} in each), and a borderline verdict could "
                "change with other draws"
            )
        errors = np.concatenate([self._errors(_thinned(half)) for half in (reference, held_out)])
        score = leading_score(errors)
        kurtosis = float((score**4).mean() / (score**2).mean() ** 2)
        if kurtosis < TWO_MODES_BELOW:
            notes.append(
                f"two modes: the first principal component score of the draws has kurtosis {kurtosis:.2g} (3 for a Gaussian "
                "distribution, 1 for two points)"
            )
        return tuple(notes)

    def judge(self, y: np.ndarray, *, alpha: float = 0.05, units: Sequence[str] | None = None) -> Verdict:
        """Return the verdict on an embedding.

        Args:
            y: Embedding of all units, `(unit, p)`; p may exceed the number of latent columns under `affine` only.
            alpha: Level of the test.
            units: Names of the judged units; by default their numbers.

        Raises:
            DataError: The shape is wrong, a value is not finite, or alpha is outside (0, 1).
        """
        if not 0 < alpha < 1:
            raise DataError(f"`alpha` must be between 0 and 1; got {alpha!r}.")
        y = positions(y)
        names = [str(unit) for unit in (range(len(self.mean)) if units is None else units)]
        if len(names) != len(self.mean):
            raise DataError(f"`units` must contain the names of the {len(self.mean)} tested units; got {len(names)} names.")
        errors = self._errors(y)
        statistics = self._statistics_of(errors[None])[0]
        below = float((self._statistics[:, 0] <= statistics[0]).mean())
        scale = float(scales(y, self._whole, self.alignment, series=self._series))
        coverage = self.regions.coverage(y)
        worst = np.argsort(-(errors**2).sum(axis=1), kind="stable")[:N_WORST]
        p, d = y.shape[1], self.mean.shape[1]
        notes = [*self.notes]
        if p < d:
            notes.append(f"the embedding has {p} of the {d} latent dimensions, and columns of zeros were added")
        if p > d:
            notes.append(
                f"the embedding has {p} columns for {d} latent dimensions and was mapped to these by 5-fold cross-fitted "
                "linear regression"
            )
        unlabelled = Verdict(
            verdict="undetermined",
            delta=math.sqrt(float(statistics[0] / np.median(self._statistics[:, 0]))),
            p_low=rank(below, self.ess_low),
            p_guard=self._p_guard(statistics),
            component=self._component(statistics, errors, names),
            scale=scale,
            scale_rank=float((self._scales < scale).mean()),
            coverage_50=coverage.pointwise[0],
            coverage_80=coverage.pointwise[1],
            coverage_95=coverage.pointwise[2],
            draw_coverage_50=coverage.draws[0],
            draw_coverage_80=coverage.draws[1],
            draw_coverage_95=coverage.draws[2],
            ess=min(self.ess_low, self.ess_guard),
            gate_summary=self.gate_summary,
            gate_draw=self.gate_draw,
            worst_units=tuple(names[i] for i in worst),
            notes=tuple(notes),
            reason="",
            alignment=self.alignment,
            alpha=alpha,
        )
        return labelled(unlabelled, 1)

    def _component(self, statistics: np.ndarray, errors: np.ndarray, names: list[str]) -> str:
        pool = np.vstack([self._statistics, statistics])
        largest = int(_z(pool)[-1].argmax())
        if largest == 0:
            return "overall"
        if largest == 1:
            standardised = np.abs(self._values.T @ errors) / self._sd
            function, column = np.unravel_index(standardised.argmax(), standardised.shape)
            return f"error along axis {column + 1}, {self._functions[function]}"
        square = (errors**2).sum(axis=1)
        beyond = np.flatnonzero(square > np.quantile(self._statistics[:, 2], GATE_SHARE))
        outlying = beyond[np.argsort(-square[beyond], kind="stable")] if beyond.size else [square.argmax()]
        return "units " + ", ".join(names[i] for i in outlying[:N_WORST]) + (", ..." if len(outlying) > N_WORST else "")


def verdict(
    draws: np.ndarray,
    y: np.ndarray,
    *,
    alignment: Alignment = "orthogonal",
    alpha: float = 0.05,
    rng: np.random.Generator,
    units: Sequence[str] | None = None,
) -> Verdict:
    """Return the verdict on one embedding.

    For several embeddings of one fit, make a `Reference`, call `judge` for each, and adjust the verdicts with `holm`.

    Args:
        draws: Posterior draws of the positions, `(chain, draw, unit, latent)`.
        y: Embedding, `(unit, p)`.
        alignment: Transformation applied to the embedding: `fixed` (none), `orthogonal`, `similarity` or `affine`.
        alpha: Level of the test: an upper bound on the probability that a fresh draw is `summary-like` or `distinct`.
        rng: Random generator for the shuffled means and draws.
        units: Names of the units; by default their numbers.

    Example:
        >>> rng = np.random.default_rng(1)
        >>> z = rng.normal(size=(100, 2))
        >>> draws = z + 0.3 * rng.normal(size=(4, 100, 100, 2))
        >>> [verdict(draws, y, rng=rng).verdict for y in (z, z + 0.3 * rng.normal(size=(100, 2)), z * [2, 1])]
        ['summary-like', 'draw-like', 'distinct']
    """
    return Reference(draws, alignment, rng).judge(y, alpha=alpha, units=units)


def _z(pool: np.ndarray) -> np.ndarray:
    """Standardise each statistic `(S, 3)` within its pool: (log statistic - median) / MAD."""
    logs = np.log(pool)
    deviation = logs - np.median(logs, axis=0)
    return deviation / np.maximum(np.median(np.abs(deviation), axis=0), FLOOR)


def _largest_z(pool: np.ndarray) -> np.ndarray:
    return _z(pool).max(axis=1)


def _shrunk(covariance: np.ndarray, n_draws: int) -> np.ndarray:
    """Covariance of each unit, shrunk to the pooled covariance with weight d + 2, `(unit, d, d)`."""
    weight = covariance.shape[-1] + 2
    return (n_draws * covariance + weight * covariance.mean(axis=0)) / (n_draws + weight)


def _floored(sd: np.ndarray) -> np.ndarray:
    return np.maximum(sd, ROUND_OFF * sd.max())


def _thinned(half: np.ndarray) -> np.ndarray:
    """At most 200 draws `(draw, unit, latent)` of a half, evenly spaced."""
    n = half.shape[0] * half.shape[1]
    return half[np.divmod(np.arange(0, n, math.ceil(n / RECOMMENDED)), half.shape[1])]
