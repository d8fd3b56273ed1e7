"""Arrays compared with the draws: each embedding, raw or mapped, as one row for each kind of units and each seed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from latentlab.compare.label_units import as_labels
from latentlab.compare.partition import MIN_UNITS as LABELLED
from latentlab.compare.positions import MIN_UNITS
from latentlab.correspondences.registry import find
from latentlab.embeddings.embedding import Embedding
from latentlab.errors import ConfigError, DataError
from latentlab.fit import Fit
from latentlab.models.base import LatentModel
from latentlab.symmetry.labels import indicators


@dataclass(frozen=True)
class Row:
    """One compared array of positions: an embedding, one of its seeds, raw or after the map of a correspondence.

    Attributes:
        embedding: Label of the embedding.
        units: Kind of the units in `values`.
        seed: Seed of the run, as text; empty for an embedding without seeds.
        map: `raw`, or `mapped` by a correspondence.
        values: Positions of the units, `(unit, p)`.
        whole: Positions of all kinds of units in the embedding, concatenated `(unit, p)`; they are aligned jointly.
        kinds: Kinds of units in `whole`, in its order.
    """

    embedding: str
    units: str
    seed: str
    map: str
    values: np.ndarray
    whole: np.ndarray
    kinds: tuple[str, ...]

    @property
    def labels(self) -> np.ndarray | None:
        """Labels `(unit,)` of a clustering; None for other rows."""
        return as_labels(self.values)

    @property
    def columns(self) -> np.ndarray:
        """The values; for a clustering in one column the indicators `(unit, cluster)`, since labels are nominal."""
        labels = self.labels if self.values.shape[1] == 1 else None
        return self.values if labels is None else indicators(labels, int(labels.max()) + 1)

    @property
    def label(self) -> str:
        """Name in tables and plots."""
        return array_label(self.embedding, self.seed, self.map)


def array_label(embedding: str, seed: str, map: str) -> str:
    """Name of a compared array in tables and plots.

    Example:
        >>> array_label("tsne", "3", "mapped")
        'tsne #3 (mapped)'
    """
    return f"{embedding}{f' #{seed}' if seed else ''}{' (mapped)' if map == 'mapped' else ''}"


def rows_of(fit: Fit, embeddings: Sequence[Embedding]) -> list[Row]:
    """Returns the rows of the embeddings, joined with the fit by unit.

    Raises:
        ConfigError: Two compared arrays have the same name in tables.
        DataError: An embedding lacks units of the fit, or has a kind of units that the model does not have.
    """
    units = {kind: names for kind, names in fit.dataset.kinds.items() if kind in fit.model.kinds}
    rows: list[Row] = []
    for embedding in embeddings:
        arrays = joined(embedding, units, fit.model)
        claim = find(embedding.name, fit.model.name, embedding.options, fit.model.hyperparameters()) if len(units) == 1 else None
        for i, seed in enumerate([str(seed) for seed in embedding.seeds] or [""]):
            each = {kind: array[i] if array.ndim == 3 else array for kind, array in arrays.items()}
            rows += _of_kinds(embedding.label, seed, "raw", each)
            if claim is not None and claim.map is not None:
                rows += _of_kinds(embedding.label, seed, "mapped", {k: claim.map(v, fit.dataset) for k, v in each.items()})
    names = [(row.label, row.units) for row in rows]
    duplicate = next((label for label, kind in names if names.count((label, kind)) > 1), None)
    if duplicate is not None:
        raise ConfigError(f"two compared arrays have the name {duplicate!r}; give each embedding a different `label`.")
    return rows


def _of_kinds(label: str, seed: str, mapping: str, arrays: Mapping[str, np.ndarray]) -> list[Row]:
    whole = np.concatenate(list(arrays.values())) if len(arrays) > 1 else next(iter(arrays.values()))
    return [Row(label, kind, seed, mapping, values, whole, tuple(arrays)) for kind, values in arrays.items()]


def fewest_units(model: LatentModel) -> int:
    """Smallest number of units of a kind that can be compared."""
    return LABELLED if model.is_discrete else MIN_UNITS


def joined(embedding: Embedding, units: Mapping[str, np.ndarray], model: LatentModel) -> dict[str, np.ndarray]:
    """Returns the embedding's array for each kind of units, in the order of `units`; kinds with too few units are left out.

    Args:
        embedding: The embedding.
        units: Kind -> names of the units that have positions in the model.
        model: The model.

    Raises:
        DataError: The embedding lacks units, has a kind that the model does not have, has one array for several kinds, or has
            only kinds with too few units.
    """
    unknown_kind = next((kind for kind in embedding.kinds if kind not in units), None)
    known = ", ".join(map(repr, units))
    if unknown_kind is not None:
        raise DataError(
            f"embedding {embedding.label!r} has units of the kind {unknown_kind!r}, but the model {model.name!r} has positions "
            f"of {known} only."
        )
    if not embedding.kinds and len(units) > 1:
        example = ", ".join(f"{kind!r}: ..." for kind in units)
        raise DataError(
            f"embedding {embedding.label!r} has one array, but the model {model.name!r} has positions of {known}. Give one array "
            f"for each kind, {{{example}}}; for a file, set its option `kind`."
        )
    kinds = [kind for kind in units if kind in embedding.kinds] or list(units)
    enough = [kind for kind in kinds if len(units[kind]) >= fewest_units(model)]
    if not enough:
        raise DataError(
            f"embedding {embedding.label!r}: a comparison needs at least {fewest_units(model)} units; there "
            f"{'is' if len(units[kinds[0]]) == 1 else 'are'} {len(units[kinds[0]])} of the kind {kinds[0]!r}."
        )
    return {kind: embedding.of(kind).reindexed(units[kind]).values for kind in enough}


def is_wide(row: Row, n_latent: int) -> bool:
    """Whether a row has more columns than the positions, so that only a linear map can align it."""
    return bool(row.values.shape[1] > n_latent)
