"""Metrics and alignments of a comparison, and the checks made before it starts."""

from collections.abc import Sequence

from latentlab.compare.align import ALIGNMENTS, Alignment
from latentlab.compare.metric import Metric, check_symmetry, minds, needed
from latentlab.errors import ConfigError, ModelError, unknown
from latentlab.fit import Fit
from latentlab.inference.draws import Method
from latentlab.models.base import LatentModel
from latentlab.registry import METHODS, METRICS

SOFT_METRICS = ("cka", "distance_correlation", "procrustes_similarity")
"""Default metrics between an embedding and the probabilities of the labels."""


def _is_discrete(fit: Fit) -> bool:
    return fit.model.position.kind == "discrete"


def _distinct(option: str, names: Sequence[str]) -> None:
    """Raises `ConfigError` if the list of names is empty or has a duplicate."""
    twice = next((name for name in names if list(names).count(name) > 1), None)
    if not names or twice is not None:
        raise ConfigError(f"compare: `{option}` " + ("is empty." if twice is None else f"names {twice!r} twice."))


def metrics_of(names: Sequence[str] | None, fit: Fit) -> list[Metric]:
    group, dims = fit.model.exchanges, fit.model.dims[fit.model.position.site]
    discrete = _is_discrete(fit)
    if names is None:
        every = [METRICS.load(name) for name in METRICS]
        kept = [m for m in every if m.by_default and not minds(m, group, dims)]
        return [m for m in kept if m.of == ("labels" if discrete else "positions") or (discrete and m.name in SOFT_METRICS)]
    _distinct("metrics", names)
    for name in names:
        if name not in METRICS:
            raise ConfigError(unknown("metric", name, METRICS))
    found = [METRICS.load(name) for name in names]
    for metric in found:
        if metric.of == "labels" and not discrete:
            raise ConfigError(f"metric {metric.name!r} compares labels; the positions of {fit.model.name!r} are not discrete.")
        check_symmetry(metric, group, dims, by_name=True)
    return found


def alignments_of(names: Sequence[str] | None, fit: Fit) -> tuple[Alignment, ...]:
    free = needed(fit.model.exchanges, fit.model.dims[fit.model.position.site])
    if _is_discrete(fit) and names is not None:
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
        ConfigError: A half may hold fewer draws than the number of position columns + 2.
    """
    n_chains, columns = getattr(method, "n_chains", 1), model.position_columns() or 1
    half = n_chains // 2 * method.n_draws if n_chains > 1 else method.n_draws // 3
    if half < columns + 2:
        raise ConfigError(
            f"inference: {n_chains} x {method.n_draws} draws are too few to compare embeddings with: a half must hold at least "
            f"{columns + 2}, and for a verdict hundreds; raise `n_draws`."
        )
    if method.kind == "point" and "latents" not in model.offers:
        others = ", ".join(name for name in model.methods if METHODS.load(name).kind != "point")
        raise ModelError(
            f"method {method.name!r} gives the positions of {model.name!r} no spread (it has no `latents`), so that no embedding "
            f"can be compared with them; methods that do: {others or 'none'}."
        )
