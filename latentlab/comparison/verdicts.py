"""Verdict on each row, and its disagreement with the draws by unit."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from latentlab.compare.align import ALIGNMENTS, Alignment
from latentlab.compare.chains import split
from latentlab.compare.coverage import Coverage
from latentlab.compare.judgement import Verdict, holm
from latentlab.compare.label_units import UnitsOfLabels
from latentlab.compare.partition_verdict import PartitionReference
from latentlab.compare.units import Disagreement, UnitsOfPositions
from latentlab.compare.verdict import Reference
from latentlab.comparison.rows import Row, is_wide
from latentlab.data.memory import thinned
from latentlab.seeds import Seeds

N_UNIT_DRAWS = 100
"""Draws used for the disagreement by unit."""
N_NAMED = 5
"""Largest number of units named in a note."""

Key = tuple[str, str, tuple[str, ...]]
"""Alignment, kind of units of the verdict, and kinds that are aligned jointly."""


@dataclass(frozen=True)
class Judged:
    """Results for the rows, in their order: verdicts by alignment, coverage, disagreement by unit."""

    verdicts: Mapping[str, list[Verdict | None]]
    regions: list[Coverage | None]
    units: list[Disagreement | None]

    def only(self, which: Sequence[int]) -> "Judged":
        """Returns the results for some rows; drops alignments without a verdict on them, unless that drops all."""
        verdicts = {alignment: [judged[i] for i in which] for alignment, judged in self.verdicts.items()}
        kept = {alignment: judged for alignment, judged in verdicts.items() if any(v is not None for v in judged)}
        return Judged(kept or verdicts, [self.regions[i] for i in which], [self.units[i] for i in which])


def judged_positions(  # one argument for each input of a verdict
    rows: Sequence[Row],
    draws: Mapping[str, np.ndarray],
    thinned_draws: Mapping[str, np.ndarray],
    names: Mapping[str, list[str]],
    alignments: tuple[Alignment, ...],
    alpha: float,
    seeds: Seeds,
    bar: Any,
    *,
    neighbor_options: Mapping[str, dict[str, Any]],
    series: bool,
) -> Judged:
    """Returns verdicts, coverage and disagreement of rows of positions.

    Args:
        rows: The rows.
        draws: Kind of units -> aligned draws `(chain, draw, unit, latent)`.
        thinned_draws: Kind of units -> the subset of these draws that scores use.
        names: Kind of units -> names of its units.
        alignments: Alignments.
        alpha: Level of the verdicts.
        seeds: Seeds of the shuffled positions and of the pairs of draws.
        bar: Progress bar, updated after each step.
        neighbor_options: Kind of units -> options of the neighbour search.
        series: Whether the units are in the order of time.
    """
    references, verdicts = _verdicts(rows, draws, names, alignments, alpha, seeds, bar, series=series)
    disagreements = _disagreements(rows, references, thinned_draws, neighbor_options, seeds, bar)
    regions: list[Coverage | None] = []
    for i, row in enumerate(rows):
        first = next(alignment for alignment in verdicts if verdicts[alignment][i] is not None)
        regions.append(references[first, row.units, row.kinds].regions.coverage(row.whole))
    return Judged(verdicts, regions, list(disagreements))


def judged_labels(
    rows: Sequence[Row], draws: np.ndarray, names: list[str], common: UnitsOfLabels, alpha: float, seeds: Seeds, bar: Any
) -> Judged:
    """Returns verdicts, coverage and disagreement of clusterings against draws of labels `(chain, draw, unit)`.

    The entries of other rows are None.
    """
    reference = PartitionReference(draws, seeds.child("verdict", "labels").numpy())
    judged = [None if row.labels is None else reference.judge(row.labels, alpha=alpha, units=names) for row in rows]
    adjusted = iter(holm([v for v in judged if v is not None]))
    verdicts = {"labels": [None if v is None else next(adjusted) for v in judged]}
    disagreements: list[Disagreement | None] = []
    regions: list[Coverage | None] = []
    for row in rows:
        disagreements.append(None if row.labels is None else common.disagreement(row.labels))
        regions.append(None if row.labels is None else common.coverage(row.labels))
        bar.update()
    return Judged(verdicts, regions, disagreements)


def n_verdicts(rows: Sequence[Row], draws: Mapping[str, np.ndarray], alignments: tuple[Alignment, ...]) -> int:
    """Number of verdicts on rows of positions: one for each alignment, or one for a row that only `affine` can align."""
    return sum(1 if is_wide(row, draws[row.units].shape[3]) else len(alignments) for row in rows)


def borderline(rows: Sequence[Row], verdicts: Mapping[str, list[Verdict | None]]) -> list[str]:
    """Returns a note for each verdict that could change with another sample of draws."""
    return [
        f"{row.label}, {alignment}: {note}"
        for alignment, judged in verdicts.items()
        for row, v in zip(rows, judged, strict=True)
        for note in (() if v is None else v.notes)
        if note.startswith("borderline")
    ]


def _whole(draws: Mapping[str, np.ndarray], kinds: tuple[str, ...]) -> np.ndarray:
    """Returns the draws of several kinds of units, concatenated along the units."""
    return draws[kinds[0]] if len(kinds) == 1 else np.concatenate([draws[kind] for kind in kinds], axis=2)


def _slice_of(draws: Mapping[str, np.ndarray], kinds: tuple[str, ...], kind: str) -> slice:
    """Slice of a kind among the concatenated units of several kinds."""
    before = sum(draws[one].shape[2] for one in kinds[: kinds.index(kind)])
    return slice(before, before + draws[kind].shape[2])


def _verdicts(  # one argument for each input of a verdict
    rows: Sequence[Row],
    draws: Mapping[str, np.ndarray],
    names: Mapping[str, list[str]],
    alignments: tuple[Alignment, ...],
    alpha: float,
    seeds: Seeds,
    bar: Any,
    *,
    series: bool,
) -> tuple[dict[Key, Reference], dict[str, list[Verdict | None]]]:
    """Returns the references, and by alignment the rows' verdicts with Holm's adjustment; None for rows without this alignment.

    Rows with more columns than the positions have only `affine`, even if `alignments` does not include it.
    """
    references: dict[Key, Reference] = {}
    verdicts: dict[str, list[Verdict | None]] = {}
    whole = {kinds: _whole(draws, kinds) for kinds in dict.fromkeys(row.kinds for row in rows)}
    halves = {kinds: split(one) for kinds, one in whole.items()}
    for alignment in ALIGNMENTS:
        applies = [alignment == "affine" if is_wide(row, draws[row.units].shape[3]) else alignment in alignments for row in rows]
        if not any(applies):
            continue
        judged = []
        for row, is_used in zip(rows, applies, strict=True):
            if not is_used:
                continue
            key = (alignment, row.units, row.kinds)
            if key not in references:
                path = ("verdict", alignment) if len(draws) == 1 else ("verdict", alignment, row.units)
                units = _slice_of(draws, row.kinds, row.units)
                options: dict[str, Any] = {"halves": halves[row.kinds], "judged": units, "series": series}
                references[key] = Reference(whole[row.kinds], alignment, seeds.child(*path).numpy(), **options)
            judged.append(references[key].judge(row.whole, alpha=alpha, units=names[row.units]))
            bar.update()
        adjusted = iter(holm(judged))
        verdicts[alignment] = [next(adjusted) if is_used else None for is_used in applies]
    return references, verdicts


def _disagreements(
    rows: Sequence[Row],
    references: Mapping[Key, Reference],
    draws: Mapping[str, np.ndarray],
    neighbor_options: Mapping[str, dict[str, Any]],
    seeds: Seeds,
    bar: Any,
) -> list[Disagreement]:
    """Returns the disagreement of each row with the draws by unit, both under one alignment.

    This is the first available of `similarity`, `orthogonal`, `affine`, `fixed`; for rows with more columns than the positions
    it is `affine`. `similarity` comes first because without a scale the disagreement grows with the distance from the centre.
    """
    unit_draws = {kind: thinned(values, N_UNIT_DRAWS) for kind, values in draws.items()}
    common: dict[Key, UnitsOfPositions] = {}
    disagreements = []
    for row in rows:
        wide = is_wide(row, draws[row.units].shape[3])
        usable: tuple[Alignment, ...] = ("affine",) if wide else ("similarity", "orthogonal", "affine", "fixed")
        key = next(key for alignment in usable if (key := (alignment, row.units, row.kinds)) in references)
        align = references[key].align
        if key not in common:
            aligned, rng = align(_whole(unit_draws, row.kinds)), seeds.child("units").numpy()
            common[key] = UnitsOfPositions(aligned, rng, **neighbor_options[row.units])
        disagreements.append(common[key].disagreement(align(row.whole)))
        bar.update()
    return disagreements
