"""Metrics and alignments of a comparison, and the checks made before it starts."""

from collections.abc import Sequence

from latentlab.compare.align import ALIGNMENTS, Alignment
from latentlab.compare.metric import Metric, missing_invariances, required_invariances
from latentlab.compare.partition_verdict import LEAST
from latentlab.errors import ConfigError, ModelError, unknown
from latentlab.fit import Fit
from latentlab.inference.draws import Method
from latentlab.models.base import LatentModel
from latentlab.registry import METHODS, METRICS

SOFT_METRICS = ("cka", "distance_correlation", "procrustes_similarity")
"""Default metrics between an embedding and the probabilities of the labels."""


def _distinct(option: str, names: Sequence[str]) -> None:
    """Raises `ConfigError` if the names are not a list, or if it is empty or has a duplicate."""
    if isinstance(names, str):
        raise ConfigError(f"compare: `{option}` must be a list of names, such as [{names!r}]; got {names!r}.")
    twice = next((name for name in names if list(names).count(name) > 1), None)
    if not names or twice is not None:
        raise ConfigError(f"compare: `{option}` " + ("is empty." if twice is None else f"names {twice!r} twice."))


def metrics_of(names: Sequence[str] | None, fit: Fit) -> list[Metric]:
    """Metrics of these names; by default those that ignore the model's symmetry, but for slow ones.

    Raises:
        ConfigError: The list is empty, or a metric is unknown, repeated, or one of labels for positions that are none.
    """
    group, dims = fit.model.exchanges, fit.model.dims[fit.model.position.site]
    discrete = fit.model.is_discrete
    if names is None:
        every = [METRICS.load(name) for name in METRICS]
        kept = [m for m in every if m.by_default and not missing_invariances(m, group, dims)]
        return [m for m in kept if m.of == ("labels" if discrete else "positions") or (discrete and m.name in SOFT_METRICS)]
    _distinct("metrics", names)
    for name in names:
        if name not in METRICS:
            raise ConfigError(unknown("metric", name, METRICS))
    found = [METRICS.load(name) for name in names]
    for metric in found:
        if metric.of == "labels" and not discrete:
            raise ConfigError(f"metric {metric.name!r} compares labels; the positions of {fit.model.name!r} are not discrete.")
    return found


COVERED: dict[Alignment, frozenset[str]] = {
    "fixed": frozenset(),
    "orthogonal": frozenset({"rotation", "translation"}),
    "similarity": frozenset({"rotation", "translation", "scale"}),
    "affine": frozenset({"rotation", "translation", "scale", "linear"}),
}
"""Transformations that each alignment removes."""


def orientation_notes(chosen: Sequence[Metric], ways: Sequence[Alignment], model: LatentModel) -> list[str]:
    """A note on each metric and alignment that depends on the orientation of the draws, which the symmetry leaves free."""
    group, dims = model.exchanges, model.dims[model.position.site]
    free = required_invariances(group, dims)
    depends = {metric.name: missing_invariances(metric, group, dims) for metric in chosen}
    depends |= {f"alignment {way}": free - COVERED[way] for way in ways if not model.is_discrete}
    return [
        f"{name} depends on {' and '.join(sorted(on))} of the positions, which the model does not identify: its results are "
        "those of the orientation in which the draws were aligned"
        for name, on in depends.items()
        if on
    ]


def alignments_of(names: Sequence[str] | None, fit: Fit) -> tuple[Alignment, ...]:
    free = required_invariances(fit.model.exchanges, fit.model.dims[fit.model.position.site])
    if fit.model.is_discrete and names is not None:
        raise ConfigError(f"compare: `alignments` are of positions; those of {fit.model.name!r} are labels, which have none.")
    if names is None:
        return ("fixed",) if not free else ("affine",) if "linear" in free else ("orthogonal", "similarity")
    _distinct("alignments", names)
    for name in names:
        if name not in ALIGNMENTS:
            raise ConfigError(unknown("alignment", name, ALIGNMENTS))
    return tuple(way for way in ALIGNMENTS if way in names)


def check_spread(model: LatentModel, method: Method) -> None:
    """Raises an error if the positions have no posterior spread or too few draws.

    Raises:
        ModelError: The method gives point estimates of the positions; the message names model and method.
        ConfigError: A half may hold too few draws: the number of position columns + 2, or `LEAST` draws of labels.
    """
    n_chains, least = getattr(method, "n_chains", 1), LEAST if model.is_discrete else (model.position_columns() or 1) + 2
    half = n_chains // 2 * method.n_draws if n_chains > 1 else method.n_draws // 3
    if half < least:
        raise ConfigError(
            f"inference: {n_chains} x {method.n_draws} draws are too few to compare embeddings with: a half must hold at least "
            f"{least}, and for a verdict hundreds; raise `n_draws`."
        )
    if method.kind == "point" and "latents" not in model.offers:
        others = ", ".join(name for name in model.methods if METHODS.load(name).kind != "point")
        raise ModelError(
            f"method {method.name!r} gives the positions of {model.name!r} no spread (it has no `latents`), so that no embedding "
            f"can be compared with them; methods that do: {others or 'none'}."
        )
