"""Metrics over posterior draws: the posterior distribution of a score, with its ceiling and its floor.

* scores: the metric between an embedding and each draw;
* ceiling: the metric between draws of different chains, the posterior's similarity to itself; in a single chain, between draws
  at least half the chain apart;
* floor: the metric between the embedding with permuted units and a draw, the chance level.

For several metrics or embeddings, the functions named `..._table` are faster: they compute neighbour lists and distances of a
draw once. Draws are read one at a time, `draws[chain, draw]`. Any object that is indexed like an array can be used, including
memory-mapped and Zarr arrays, and memory does not grow with the number of draws.

Metrics of labels use embeddings `(unit,)` and draws `(chain, draw, unit)`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from latentlab.compare.metric import Metric
from latentlab.compare.partition import Labels
from latentlab.compare.positions import Positions
from latentlab.errors import ConfigError, DataError, unknown

N_PAIRS = 200
N_PERMUTATIONS = 100


def scores(metric: Metric, y: Any, draws: Any, **options: Any) -> np.ndarray:
    r"""Compute the metric between an embedding and each draw.

    Args:
        metric: The metric.
        y: Embedding, `(unit, p)`.
        draws: Positions, `(chain, draw, unit, latent)`.
        options: Options of the metric.

    Returns:
        Scores, `(chain, draw)`.

    Raises:
        DataError: The embedding or a draw is not an array of positions, or the numbers of units differ.
        ConfigError: The metric does not have the option, or the positions do not allow its value.
    """
    return score_table([metric], [y], draws, **options)[0, 0]


def ceiling(metric: Metric, draws: Any, rng: np.random.Generator, n_pairs: int = N_PAIRS, **options: Any) -> np.ndarray:
    """Compute the metric between draws of different chains, `(pair,)`; arguments and errors as in `scores` and `draw_pairs`."""
    return ceiling_table([metric], draws, rng, n_pairs, **options)[0]


def floor(metric: Metric, y: Any, draws: Any, rng: np.random.Generator, n: int = N_PERMUTATIONS, **options: Any) -> np.ndarray:
    """Compute the metric between the embedding with permuted units and a random draw, `(n,)`; see `scores`."""
    return floor_table([metric], y, draws, rng, n, **options)[0]


def score_table(
    metrics: Sequence[Metric],
    embeddings: Sequence[Any],
    draws: Any,
    *,
    tick: Callable[[], object] | None = None,
    **options: Any,
) -> np.ndarray:
    r"""Compute several metrics between several embeddings and each draw.

    Args:
        metrics: The metrics.
        embeddings: Positions, `(unit, p)` each.
        draws: Positions, `(chain, draw, unit, latent)`.
        tick: Function called after each draw, for a progress bar.
        options: Options; each is passed to the metrics that have it.

    Returns:
        Scores, `(metric, embedding, chain, draw)`.

    Raises:
        DataError: An embedding or a draw is not an array of positions, or the numbers of units differ.
        ConfigError: No metric has the option, or the positions do not allow its value.
    """
    bound, kind = _bound(metrics, options)
    n_chains, n_draws = shape(draws, kind)
    left = [kind(y, "the embedding") for y in embeddings]
    table = np.empty((len(bound), len(left), n_chains, n_draws))
    for chain, draw in np.ndindex(n_chains, n_draws):
        right = kind(draws[chain, draw], _name(chain, draw))
        for i, metric in enumerate(bound):
            table[i, :, chain, draw] = [metric(x, right) for x in left]
        _call(tick)
    return table


def ceiling_table(
    metrics: Sequence[Metric],
    draws: Any,
    rng: np.random.Generator,
    n_pairs: int = N_PAIRS,
    *,
    tick: Callable[[], object] | None = None,
    **options: Any,
) -> np.ndarray:
    """Compute several metrics between draws of different chains, `(metric, pair)`; see `score_table` and `draw_pairs`."""
    bound, kind = _bound(metrics, options)
    table = np.empty((len(bound), n_pairs))
    for j, pair in enumerate(draw_pairs(*shape(draws, kind), rng, n_pairs)):
        left, right = (kind(draws[chain, draw], _name(chain, draw)) for chain, draw in pair)
        table[:, j] = [metric(left, right) for metric in bound]
        _call(tick)
    return table


def floor_table(
    metrics: Sequence[Metric],
    y: Any,
    draws: Any,
    rng: np.random.Generator,
    n: int = N_PERMUTATIONS,
    *,
    tick: Callable[[], object] | None = None,
    **options: Any,
) -> np.ndarray:
    """Compute several metrics between the embedding with permuted units and a random draw, `(metric, n)`; see `score_table`."""
    bound, kind = _bound(metrics, options)
    n_chains, n_draws = shape(draws, kind)
    embedding = kind(y, "the embedding")
    table = np.empty((len(bound), n))
    for j in range(n):
        left = kind(rng.permutation(embedding.values))
        chain, draw = int(rng.integers(n_chains)), int(rng.integers(n_draws))
        right = kind(draws[chain, draw], _name(chain, draw))
        table[:, j] = [metric(left, right) for metric in bound]
        _call(tick)
    return table


def draw_pairs(n_chains: int, n_draws: int, rng: np.random.Generator, n_pairs: int) -> np.ndarray:
    """Draw random pairs of draws with as little dependence as the chains allow.

    The two draws are from different chains; with one chain, they are at least n_draws // 2 steps apart.

    Returns:
        Chain and draw of both members of each pair, `(pair, 2, 2)`.

    Raises:
        DataError: There is only one draw.

    Example:
        >>> pairs = draw_pairs(1, 100, np.random.default_rng(0), 500)
        >>> int(np.abs(pairs[:, 0, 1] - pairs[:, 1, 1]).min())
        50
    """
    if n_chains * n_draws < 2:
        raise DataError("a ceiling compares pairs of draws and needs at least 2 draws; got 1.")
    if n_chains > 1:
        first = rng.integers(n_chains, size=n_pairs)
        second = (first + rng.integers(1, n_chains, size=n_pairs)) % n_chains
        chains = np.stack([first, second], axis=1)
        return np.stack([chains, rng.integers(n_draws, size=(n_pairs, 2))], axis=2)
    gap = n_draws // 2
    early = rng.integers(n_draws - gap, size=n_pairs)
    late = rng.integers(early + gap, n_draws)
    draws = rng.permuted(np.stack([early, late], axis=1), axis=1)
    return np.stack([np.zeros_like(draws), draws], axis=2)


def _bound(metrics: Sequence[Metric], options: dict[str, Any]) -> tuple[list[Metric], type[Positions] | type[Labels]]:
    """Return the metrics with their options, and the class of their arguments."""
    known = {name for metric in metrics for name in metric.options}
    for name in options:
        if name not in known:
            raise ConfigError(f"metrics {', '.join(m.name for m in metrics)}: {unknown('option', name, known)}")
    kinds = {metric.of: metric.kind for metric in metrics}
    if len(kinds) > 1:
        raise ConfigError(
            f"metrics {', '.join(m.name for m in metrics)}: all must compare positions, or all labels; compute the two types in "
            "separate calls."
        )
    bound = [metric.bind(**{name: v for name, v in options.items() if name in metric.options}) for metric in metrics]
    return bound, next(iter(kinds.values()), Positions)


def shape(draws: Any, kind: type[Positions] | type[Labels] = Positions) -> tuple[int, int]:
    """Return the number of chains and of draws per chain.

    Raises:
        DataError: The draws do not have the shape `(chain, draw, unit, latent)`, or `(chain, draw, unit)` for labels.
    """
    dims = ("chain", "draw", *kind.dims)
    sizes = tuple(draws.shape) if hasattr(draws, "shape") else np.shape(draws)
    if len(sizes) != len(dims) or 0 in sizes:
        raise DataError(f"draws must have shape ({', '.join(dims)}), without dimensions of size 0; got {sizes}.")
    return sizes[0], sizes[1]


def draw_positions(draws: Any, chain: int, draw: int) -> Positions:
    """Return one draw as `Positions`."""
    return Positions(draws[chain, draw], _name(chain, draw))


def _name(chain: int, draw: int) -> str:
    return f"draw {draw} of chain {chain}"


def _call(tick: Callable[[], object] | None) -> None:
    if tick is not None:
        tick()
