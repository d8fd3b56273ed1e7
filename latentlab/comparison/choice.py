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


def _check_names(option: str, names: Sequence[str]) -> None:
    """Raises `ConfigError` if the names are not a list, or if it is empty or has a duplicate."""
    if isinstance(names, str):
        raise ConfigError(f"compare: `{option}` must be a list of names, such as [{names!r}]; got {names!r}.")
    if not names:
        raise ConfigError(f"compare: `{option}` must contain at least one name; got an empty list.")
    duplicate = next((name for name in names if list(names).count(name) > 1), None)
    if duplicate is not None:
        raise ConfigError(f"compare: `{option}` must not repeat a name; got {duplicate!r} more than once.")


def metrics_of(names: Sequence[str] | None, fit: Fit) -> list[Metric]:
    """Metrics with these names; by default all that are invariant under the model's symmetry, except slow metrics.

    Raises:
        ConfigError: The list is empty; or a metric is unknown, repeated, or compares labels of a model without labels.
    """
    group, dims = fit.model.exchanges, fit.model.dims[fit.model.position.site]
    discrete = fit.model.is_discrete
    if names is None:
        loaded = [METRICS.load(name) for name in METRICS]
        kept = [m for m in loaded if m.by_default and not missing_invariances(m, group, dims)]
        return [m for m in kept if m.of == ("labels" if discrete else "positions") or (discrete and m.name in SOFT_METRICS)]
    _check_names("metrics", names)
    for name in names:
        if name not in METRICS:
            raise ConfigError(unknown("metric", name, METRICS))
    chosen = [METRICS.load(name) for name in names]
    for metric in chosen:
        if metric.of == "labels" and not discrete:
            raise ConfigError(
                f"metric {metric.name!r} compares labels, but the positions of {fit.model.name!r} are continuous; choose a "
                "metric of positions."
            )
    return chosen


COVERED: dict[Alignment, frozenset[str]] = {
    "fixed": frozenset(),
    "orthogonal": frozenset({"rotation", "translation"}),
    "similarity": frozenset({"rotation", "translation", "scale"}),
    "affine": frozenset({"rotation", "translation", "scale", "linear"}),
}
"""Transformations that each alignment removes."""


def orientation_notes(chosen: Sequence[Metric], alignments: Sequence[Alignment], model: LatentModel) -> list[str]:
    """A note on each metric and alignment that depends on the orientation of the draws, which the model does not identify."""
    group, dims = model.exchanges, model.dims[model.position.site]
    required = required_invariances(group, dims)
    missing = {f"metric {metric.name}": missing_invariances(metric, group, dims) for metric in chosen}
    missing |= {f"alignment {name}": required - COVERED[name] for name in alignments if not model.is_discrete}
    return [
        f"{name} is not invariant under {' and '.join(sorted(names)).replace('linear', 'linear transformation')} of the "
        "positions, which the model does not identify: its results hold for the orientation of the aligned draws only"
        for name, names in missing.items()
        if names
    ]


def alignments_of(names: Sequence[str] | None, fit: Fit) -> tuple[Alignment, ...]:
    required = required_invariances(fit.model.exchanges, fit.model.dims[fit.model.position.site])
    if fit.model.is_discrete and names is not None:
        raise ConfigError(
            f"compare: `alignments` apply to continuous positions, but the positions of {fit.model.name!r} are labels; leave out "
            "`alignments`."
        )
    if names is None:
        return ("fixed",) if not required else ("affine",) if "linear" in required else ("orthogonal", "similarity")
    _check_names("alignments", names)
    for name in names:
        if name not in ALIGNMENTS:
            raise ConfigError(unknown("alignment", name, ALIGNMENTS))
    return tuple(alignment for alignment in ALIGNMENTS if alignment in names)


def check_spread(model: LatentModel, method: Method) -> None:
    """Raises an error if the positions have no posterior spread or too few draws.

    Raises:
        ModelError: The method gives point estimates of the positions; the message names the model and the method.
        ConfigError: A half may have fewer draws than the number of position columns + 2, or than `LEAST` for labels.
    """
    n_chains, least = getattr(method, "n_chains", 1), LEAST if model.is_discrete else (model.position_columns() or 1) + 2
    half = n_chains // 2 * method.n_draws if n_chains > 1 else method.n_draws // 3
    if half < least:
        raise ConfigError(
            f"inference: {n_chains} chain(s) of {method.n_draws} draws are too few for a comparison: each half needs at least "
            f"{least} draws, and a verdict needs hundreds. Increase `n_draws`."
        )
    if method.kind == "point" and "latents" not in model.offers:
        others = ", ".join(name for name in model.methods if METHODS.load(name).kind != "point")
        raise ModelError(
            f"method {method.name!r} gives point estimates of the positions of {model.name!r}, which has no `latents`. "
            f"A comparison needs their posterior distribution; methods that give it: {others or 'none'}."
        )
