r"""Verdict on a clustering: test whether it is an estimate of the latent labels.

The test is the same as in `latentlab.compare.verdict`, with partitions in place of positions. Draws are split by chain into the
reference half B and the held-out half A. B determines the co-assignment pi and the draw c* of least expected Binder loss, whose
clusters are called blocks. The centre is c* improved by moves of single units between its clusters. For any partition y of n
units let e_i(y) = sum_{j != i} |1[y_i = y_j] - pi_ij|. Then

* **primary**: the expected Binder loss T = sum_i e_i / (n (n - 1)), the mean share of pairs that are together in only one of
  y and a draw of B. p_low is the lower rank of T(y) among the draws of A. The effect size is
  $\delta = \sqrt{(T(y) - T(centre)) / \mathrm{mean}_A (T - T(centre))}$: 0 for the centre, 1 for a typical draw. It uses the
  mean over A, since most draws may equal the centre. If all draws do, it is 0 for the centre and infinite for other partitions;
* **guard**: the largest z = (statistic - median) / sd, within A and y, of five statistics; p_guard is its upper rank:
  - T;
  - C, the largest shortfall of co-assignment within a block, (mean_B - y) / sd_B, or excess between two blocks,
    (y - mean_B) / sd_B. C is one-sided, since the centre separates the blocks more clearly than draws do;
  - the worst unit, max_i e_i;
  - pieces, the share of all pairs that are in different clusters of y. In a draw, a unit that leaves its cluster joins another.
    A cluster cut in two is therefore no farther from pi than a draw, but has fewer pairs than any draw;
  - the surprise, log(1 + sum_i max(0, (e_i - mean_B) / sd_B)^2), which gives units of small posterior uncertainty more weight.
    sd_B is at least n / sqrt(draws of B), as if one draw had the unit in another cluster. The surprise is one-sided like C. The
    logarithm limits the effect of the few draws that have a unit in a very improbable cluster, which would mask other errors;
* **gate**: shuffled c*, a single cluster, singletons and shuffled draws are tested in the same way, and must be rejected.

Labels, levels, the correction for autocorrelated draws and `holm` are as for the verdict on positions. A fresh draw, and the
truth under a true model, are exchangeable with the held-out draws; at most a share alpha of them is `summary-like` or
`distinct`. More of them may be `undetermined` if the chains mix slowly. The number of clusters of y is not tested, and a small
cluster cut in two may pass the test. A note states the number if no draw has as many clusters.

The test uses Binder's loss. The variation of information may have its minimum at a partition that merges overlapping blocks,
although no draw merges them. Such an estimate could not be distinguished from wrongly merged clusters.
"""

from collections.abc import Sequence

import numpy as np

from latentlab.compare.chains import ess, halves, joined
from latentlab.compare.clustering import canonical, distances, improved, least_binder, misplaced, tables
from latentlab.compare.co_assignment import together
from latentlab.compare.judgement import Verdict, labelled, rank
from latentlab.compare.partition import Labels, pairs, partitions
from latentlab.compare.verdict import GATE_SHARE, N_WORST, RECOMMENDED, SHUFFLED_DRAWS, SHUFFLED_MEANS, WARN_BELOW
from latentlab.data.memory import by_quantity, by_row
from latentlab.errors import DataError

LEAST = 4
"""Fewest draws of a half."""
DECIMALS = 9
"""Decimals to which the statistics are rounded, so that equal partitions with different labels are ties."""
CANDIDATES = 100
"""Largest number of draws of a single chain from which its centre is chosen."""
SURPRISING = 3.0
"""Standard deviations of e_i above its mean beyond which a unit is named in the verdict."""
USUAL_LEVEL = 0.05
"""Level of the note that no estimate can be `summary-like`."""
FLOOR = 1e-300


class PartitionReference:
    """Reference quantities shared by the verdicts on many clusterings of one fit.

    Args:
        draws: Posterior draws of the labels, `(chain, draw, unit)`.
        rng: Random generator for the shuffled partitions.

    Example:
        >>> rng = np.random.default_rng(1)
        >>> x = np.sort(rng.normal(size=100))
        >>> sure = 1 / (1 + np.exp(-4 * x))
        >>> draws = (rng.random((4, 100, 100)) < sure).astype(int)
        >>> reference = PartitionReference(draws, rng)
        >>> fresh = (rng.random(100) < sure).astype(int)
        >>> [reference.judge(y).verdict for y in (sure > 0.5, fresh, sure > 0.999)]
        ['summary-like', 'draw-like', 'distinct']
    """

    def __init__(self, draws: np.ndarray, rng: np.random.Generator) -> None:
        reference, held_out = halves(partitions(draws), _series, LEAST, "draws of labels")
        self._reference, self._chains = joined(reference), held_out.shape[:2]
        flat_held_out = joined(held_out)
        self.co_assignment = together(self._reference)
        self.blocks = canonical(least_binder(self._reference[None]))
        self.centre = improved(self.blocks, self._reference, "binder")
        self._sizes = np.bincount(self.blocks)
        within_blocks = self._shares(self._reference)
        self._mean_share, self._sd = within_blocks.mean(axis=0), np.maximum(within_blocks.std(axis=0), self._least_sd())
        by_unit = misplaced(self._reference, self.co_assignment)
        self._mean_by_unit, spread = by_quantity(lambda part: np.stack([part.mean(axis=0), part.std(axis=0)]), by_unit)
        self._sd_by_unit = np.maximum(spread, len(self.blocks) / np.sqrt(len(self._reference)))
        sizes = [by_row(lambda part: part.max(axis=1), half) for half in (self._reference, flat_held_out)]
        self.n_clusters = (
            int(min(largest.min() for largest in sizes)) + 1,
            int(max(largest.max() for largest in sizes)) + 1,
        )
        self._statistics = by_row(self._statistics_of, flat_held_out)
        self._least = float(self._statistics_of(self.centre[None])[0, 0])
        self.ess_low = _effective(self._statistics[:, 0].reshape(self._chains))
        self.ess_guard = _effective(_largest_z(self._statistics).reshape(self._chains))
        self.gate_summary, self.gate_draw = self._gates(flat_held_out, rng)
        self.notes = self._draw_notes()

    @property
    def _diagonal(self) -> np.ndarray:
        """Mask `(block, block)` of the entries within a block."""
        return np.eye(len(self._sizes), dtype=bool)

    def _shares(self, codes: np.ndarray) -> np.ndarray:
        """Share of the pairs within a block, or between two blocks, that are in the same cluster, `(draw, block, block)`."""
        joined = []
        for y in codes:
            counts = tables(self.blocks, y[None], len(self._sizes), int(y.max()) + 1)[0].astype(np.float64)
            joined.append(counts @ counts.T)
        possible = np.outer(self._sizes, self._sizes) - np.diag(self._sizes)
        return (np.array(joined) - np.diag(self._sizes)) / np.maximum(possible, 1)

    def _least_sd(self) -> np.ndarray:
        """Least standard deviation of the shares `(block, block)`, as if one draw had one unit in another cluster."""
        step = 1 / np.maximum(self._sizes[:, None], self._sizes)
        return np.where(self._diagonal, 2 * step, step) / np.sqrt(len(self._reference))

    def _errors(self, codes: np.ndarray) -> np.ndarray:
        """Standardised shortfall within blocks and excess between them, `(draw, block, block)`."""
        excess = (self._shares(codes) - self._mean_share) / self._sd
        return np.where(self._diagonal, -excess, excess)

    def _surprises(self, by_unit: np.ndarray) -> np.ndarray:
        """Excess of each unit's e_i over its mean, in its standard deviations, `(draw, unit)`; 0 if it is below the mean."""
        return np.maximum((by_unit - self._mean_by_unit) / self._sd_by_unit, 0.0)

    def _statistics_of(self, codes: np.ndarray) -> np.ndarray:
        """Statistics T, C, worst unit, share of pairs in different clusters, and surprise, `(draw, 5)`."""
        by_unit = misplaced(codes, self.co_assignment)
        n = by_unit.shape[1]
        structured = self._errors(codes).max(axis=(1, 2))
        loss, worst = by_unit.sum(axis=1) / (n * (n - 1)), by_unit.max(axis=1)
        apart = np.array([1 - pairs(np.bincount(y)) / (n * (n - 1) / 2) for y in codes])
        surprise = np.log1p((self._surprises(by_unit) ** 2).sum(axis=1))
        return np.round(np.stack([loss, structured, worst, apart, surprise], axis=1), DECIMALS)

    def _p_guard(self, statistics: np.ndarray) -> float:
        pool = _largest_z(np.vstack([self._statistics, statistics]))
        return rank(float((pool[:-1] >= pool[-1]).mean()), self.ess_guard)

    def _gates(self, held_out: np.ndarray, rng: np.random.Generator) -> tuple[float, float]:
        n = len(self.blocks)
        selected = np.linspace(0, len(held_out) - 1, SHUFFLED_DRAWS).astype(int)
        shuffled = np.array([rng.permutation(self.blocks) for _ in range(SHUFFLED_MEANS)])
        draws = np.array([rng.permutation(held_out[s]) for s in selected])
        trivial = [self._statistics_of(y[None])[0] for y in (np.zeros(n, dtype=np.int64), np.arange(n))]
        limit, draw_limit = (
            float(np.quantile([self._p_guard(s) for s in self._statistics_of(y)], GATE_SHARE, method="inverted_cdf"))
            for y in (shuffled, draws)
        )
        return max(limit, *(self._p_guard(s) for s in trivial)), draw_limit

    def _draw_notes(self) -> tuple[str, ...]:
        notes = []
        held_out_ess = min(self.ess_low, self.ess_guard)
        if held_out_ess < WARN_BELOW:
            notes.append(
                f"few draws: the effective sample size is {held_out_ess:.0f} in the held-out half (recommended: {RECOMMENDED} "
                "in each half), and a borderline verdict could change with other draws"
            )
        if np.ptp(self._statistics[:, 0]) == 0:
            notes.append(
                "all held-out draws have the same expected loss: either the posterior is concentrated on one partition, or the "
                "chains do not move"
            )
        elif rank(self._share_below(self._least), self.ess_low) > USUAL_LEVEL / 2:
            share = self._share_below(self._least)
            notes.append(
                f"{share:.0%} of the held-out draws do not have a larger expected loss than the centre, and no clustering can be "
                f"summary-like at level {USUAL_LEVEL:g}"
            )
        return tuple(notes)

    def _share_below(self, loss: float) -> float:
        return float((self._statistics[:, 0] <= loss).mean())

    def judge(self, y: np.ndarray, *, alpha: float = 0.05, units: Sequence[str] | None = None) -> Verdict:
        """Return the verdict on a clustering.

        Args:
            y: Labels, `(unit,)`.
            alpha: Level of the test.
            units: Names of the units; by default their numbers.

        Raises:
            DataError: y does not contain labels of the draws' units, or alpha is outside (0, 1).
        """
        if not 0 < alpha < 1:
            raise DataError(f"`alpha` must be between 0 and 1; got {alpha!r}.")
        codes = Labels(y, "the clustering").codes
        n = len(self.blocks)
        if len(codes) != n:
            raise DataError(f"a clustering must label the {n} units of the draws; got {len(codes)} labels.")
        names = [str(unit) for unit in (range(n) if units is None else units)]
        if len(names) != n:
            raise DataError(f"`units` must contain the names of the {n} units of the draws; got {len(names)} names.")
        statistics = self._statistics_of(codes[None])[0]
        worst = np.argsort(-misplaced(codes[None], self.co_assignment)[0], kind="stable")[:N_WORST]
        k, (low, high) = int(codes.max()) + 1, self.n_clusters
        notes = [*self.notes]
        if not low <= k <= high:
            notes.append(f"the clustering has {k} clusters, but the draws have {low if low == high else f'{low} to {high}'}")
        undefined = float("nan")
        unlabelled = Verdict(
            verdict="undetermined",
            delta=self._delta(statistics[0]),
            p_low=rank(self._share_below(statistics[0]), self.ess_low),
            p_guard=self._p_guard(statistics),
            component=self._component(statistics, codes, names),
            **dict.fromkeys(NOT_OF_LABELS, undefined),
            ess=min(self.ess_low, self.ess_guard),
            gate_summary=self.gate_summary,
            gate_draw=self.gate_draw,
            worst_units=tuple(names[i] for i in worst),
            notes=tuple(notes),
            reason="",
            alignment="labels",
            alpha=alpha,
        )
        return labelled(unlabelled, 1)

    def _delta(self, loss: float) -> float:
        above = max(float(loss) - self._least, 0.0)
        typical = float(self._statistics[:, 0].mean()) - self._least
        if typical <= 10.0**-DECIMALS:
            return 0.0 if above == 0 else float("inf")
        return float(np.sqrt(above / typical))

    def _component(self, statistics: np.ndarray, codes: np.ndarray, names: list[str]) -> str:
        largest = int(_z(np.vstack([self._statistics, statistics]))[-1].argmax())
        if largest == 0:
            return "overall"
        if largest == 1:
            errors = self._errors(codes[None])[0]
            k, m = np.unravel_index(errors.argmax(), errors.shape)
            if k == m:
                return f"too few pairs in the same cluster among {_described(np.flatnonzero(self.blocks == k), names)}"
            blocks = (_described(np.flatnonzero(self.blocks == block), names) for block in (k, m))
            return "too many pairs in the same cluster between " + " and ".join(blocks)
        if largest == 3:
            median = 1 - np.median(self._statistics[:, 3])
            return (
                f"fragmented clusters, with {1 - statistics[3]:.0%} of the pairs in the same cluster (median draw: {median:.0%})"
            )
        by_unit = misplaced(codes[None], self.co_assignment)[0]
        if largest == 4:
            surprises = self._surprises(by_unit)
            outlying = np.argsort(-surprises, kind="stable")[: max(1, int((surprises > SURPRISING).sum()))]
            return f"units in improbable clusters ({_listed(outlying, names)})"
        beyond = np.flatnonzero(by_unit > np.quantile(self._statistics[:, 2], GATE_SHARE))
        outlying = beyond[np.argsort(-by_unit[beyond], kind="stable")] if beyond.size else by_unit.argmax()[None]
        return "units " + _listed(outlying, names)


NOT_OF_LABELS = (
    *("scale", "scale_rank", "coverage_50", "coverage_80", "coverage_95"),
    *("draw_coverage_50", "draw_coverage_80", "draw_coverage_95"),
)
"""Fields of a verdict that are defined for positions only; NaN for labels."""


def _described(units: np.ndarray, names: list[str]) -> str:
    return f"the {len(units)} units {_listed(units, names)}" if len(units) > 1 else f"unit {names[units[0]]}"


def _listed(units: np.ndarray, names: list[str]) -> str:
    return ", ".join(names[i] for i in units[:N_WORST]) + (", ..." if len(units) > N_WORST else "")


def _series(chain: np.ndarray) -> tuple[np.ndarray, ...]:
    """Distances of the draws of a chain `(draw, unit)` from its first draw, its last draw, and its centre."""
    candidates = chain[np.unique(np.linspace(0, len(chain) - 1, min(len(chain), CANDIDATES)).astype(int))]
    centre = least_binder(candidates[None])
    return distances(chain[0], chain)[1:], distances(chain[-1], chain)[:-1], distances(centre, chain)


def _effective(series: np.ndarray) -> float:
    """Effective sample size of a statistic `(chain, draw)`; the number of draws if it is constant."""
    return float(series.size) if np.ptp(series) == 0 else ess(series)


def _z(pool: np.ndarray) -> np.ndarray:
    """Standardise each statistic `(S, 5)` within its pool: (statistic - median) / sd."""
    deviation = pool - np.median(pool, axis=0)
    return deviation / np.maximum(pool.std(axis=0), FLOOR)


def _largest_z(pool: np.ndarray) -> np.ndarray:
    return _z(pool).max(axis=1)
