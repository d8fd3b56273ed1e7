"""Metrics lifted over draws: a score that is a posterior, with its ceiling and its floor.

* scores: the metric between an embedding and each draw;
* ceiling: the metric between draws of different chains, the posterior's similarity to itself; in a single chain, between draws
  half the chain apart or more;
* floor: the metric between the embedding with its units permuted and a draw, what chance gives.

Several metrics (and embeddings) are best lifted together, by the functions named `..._table`: the lists of neighbours and the
distances of a draw are then found once. Draws are read one at a time, `draws[chain, draw]`, so that anything which is indexed
like an array serves, a memory-mapped or Zarr array too, and memory does not grow with the number of draws.

Metrics of labels are lifted in the same way: embeddings `(unit,)`, draws `(chain, draw, unit)`.
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
    r"""The metric between an embedding and each draw.

    Args:
        metric: The metric.
        y: The embedding, `(unit, p)`.
        draws: Positions, `(chain, draw, unit, latent)`.
        options: The metric's own.

    Returns:
        `(chain, draw)`.

    Raises:
        DataError: Not positions, or not of the same units.
        ConfigError: An option that the metric does not have, or that the positions do not allow.
    """
    return score_table([metric], [y], draws, **options)[0, 0]


def ceiling(metric: Metric, draws: Any, rng: np.random.Generator, n_pairs: int = N_PAIRS, **options: Any) -> np.ndarray:
    """The metric between draws of different chains, `(pair,)`; arguments and errors as in `scores` and `draw_pairs`."""
    return ceiling_table([metric], draws, rng, n_pairs, **options)[0]


def floor(metric: Metric, y: Any, draws: Any, rng: np.random.Generator, n: int = N_PERMUTATIONS, **options: Any) -> np.ndarray:
    """The metric between the embedding with its units permuted and a random draw, `(n,)`; see `scores`."""
    return floor_table([metric], y, draws, rng, n, **options)[0]


def score_table(
    metrics: Sequence[Metric],
    embeddings: Sequence[Any],
    draws: Any,
    *,
    tick: Callable[[], object] | None = None,
    **options: Any,
) -> np.ndarray:
    r"""Several metrics between several embeddings and each draw.

    Args:
        metrics: The metrics.
        embeddings: Positions, `(unit, p)` each.
        draws: Positions, `(chain, draw, unit, latent)`.
        tick: Called after each draw, for a progress bar.
        options: Each goes to those metrics that have it.

    Returns:
        `(metric, embedding, chain, draw)`.

    Raises:
        DataError: Not positions, or not of the same units.
        ConfigError: An option that no metric has, or that the positions do not allow.
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
    """Several metrics between draws of different chains, `(metric, pair)`; see `score_table` and `draw_pairs`."""
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
    """Several metrics between the embedding with its units permuted and a random draw, `(metric, n)`; see `score_table`."""
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
    """Random pairs of draws that have as little to do with each other as the chains allow.

    Draws of two different chains; with one chain, draws n_draws // 2 steps apart or more.

    Returns:
        `(pair, 2, 2)`: for each of the two its chain and its draw.

    Raises:
        DataError: A single draw: there is no second one.

    Example:
        >>> pairs = draw_pairs(1, 100, np.random.default_rng(0), 500)
        >>> int(np.abs(pairs[:, 0, 1] - pairs[:, 1, 1]).min())
        50
    """
    if n_chains * n_draws < 2:
        raise DataError("a ceiling compares draws with each other: at least 2 are needed; got 1.")
    if n_chains > 1:
        first = rng.integers(n_chains, size=n_pairs)
        second = (first + rng.integers(1, n_chains, size=n_pairs)) % n_chains
        chains = np.stack([first, second], axis=1)
        return np.stack([chains, rng.integers(n_draws, size=(n_pairs, 2))], axis=2)
    gap = n_draws // 2
    early = rng.integers(n_draws - gap, size=n_pairs)
    late = rng.integers(early + gap, n_draws)
    found = rng.permuted(np.stack([early, late], axis=1), axis=1)
    return np.stack([np.zeros_like(found), found], axis=2)


def _bound(metrics: Sequence[Metric], options: dict[str, Any]) -> tuple[list[Metric], type[Positions] | type[Labels]]:
    """The metrics with their options, and the kind of thing that they compare."""
    known = {name for metric in metrics for name in metric.options}
    for name in options:
        if name not in known:
            raise ConfigError(f"metrics {', '.join(m.name for m in metrics)}: {unknown('option', name, known)}")
    kinds = {metric.of: metric.kind for metric in metrics}
    if len(kinds) > 1:
        raise ConfigError(f"metrics {', '.join(m.name for m in metrics)}: some compare positions, some labels; lift them apart.")
    bound = [metric.bind(**{name: v for name, v in options.items() if name in metric.options}) for metric in metrics]
    return bound, next(iter(kinds.values()), Positions)


def shape(draws: Any, kind: type[Positions] | type[Labels] = Positions) -> tuple[int, int]:
    """Numbers of chains and of draws.

    Raises:
        DataError: The draws are not `(chain, draw, unit, latent)`, or of labels `(chain, draw, unit)`.
    """
    dims = ("chain", "draw", *kind.dims)
    sizes = tuple(draws.shape) if hasattr(draws, "shape") else np.shape(draws)
    if len(sizes) != len(dims) or 0 in sizes:
        raise DataError(f"draws must have shape ({', '.join(dims)}), none of size 0; got {sizes}.")
    return sizes[0], sizes[1]


def draw_positions(draws: Any, chain: int, draw: int) -> Positions:
    """One draw."""
    return Positions(draws[chain, draw], _name(chain, draw))


def _name(chain: int, draw: int) -> str:
    return f"draw {draw} of chain {chain}"


def _call(tick: Callable[[], object] | None) -> None:
    if tick is not None:
        tick()
