"""A metric: a pure function of two arrays of positions, or of labels, with what it claims declared as data.

`metric(x, y, **options)` compares an embedding x `(unit, p)` with a draw of the latent positions y `(unit, q)`, units in the
same order; a metric `of` labels compares a clustering x `(unit,)` with a draw of the labels y `(unit,)`. A function becomes one
by the decorator `metric`, and is known to latentlab by its line in `latentlab.registry.METRICS`. Everything declared is tested
over that table, and so is that nothing undeclared holds.

What a metric may ignore (done to x, to y, or to both, each by its own):

| transformation | of positions z `(unit, q)` |
|---|---|
| `rotation` | z R, R orthogonal (reflections included) |
| `translation` | z + t |
| `scale` | b z, b > 0 |
| `linear` | z A, A invertible; holds `rotation` and `scale` |

Columns: the narrower of x and y counts as filled up with zeros. Where all units of x or of y are at one point there is nothing
to compare, and the score is `void` by definition.

A metric of labels may ignore `relabelling`, any renaming of the labels of x, of y, or of both. No partition is void.
"""

import inspect
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

from latentlab.compare.partition import Labels
from latentlab.compare.positions import Positions
from latentlab.errors import ConfigError, DataError, InferenceError, LatentLabError, unknown
from latentlab.symmetry.group import Group
from latentlab.symmetry.groups import Euclidean, GeneralLinear, Orthogonal

Direction = Literal["higher", "lower"]

Of = Literal["positions", "labels"]

TRANSFORMATIONS = {"positions": frozenset({"rotation", "translation", "scale", "linear"}), "labels": frozenset({"relabelling"})}
"""What a metric of each kind may ignore."""

ROUNDING = 1e-6
"""Relative excess over a bound of the range that is rounding, and removed."""


@dataclass(frozen=True, eq=False)
class Metric:
    """A function of two arrays of positions, or of labels, and what it declares.

    Attributes:
        name: Its name, the function's.
        of: What it compares, `positions` or `labels`.
        direction: Whether `higher` or `lower` values mean more alike.
        range: Smallest and largest value, infinite where there is none; the better end is the value of identical arguments.
        ignores: Transformations of either argument that leave the value as it is.
        symmetric: Whether x and y may be exchanged when they have equally many columns.
        void: The value, by definition, where there is nothing to compare: all units of an argument are at one point, or what
            else the metric says. NaN for metrics of labels, which have none.
        by_default: Whether it is taken where no metrics are named; slow ones are not.
        n_used: Of so many units, how many it looks at (or at whose neighbours); fewer where all would cost too much.
        function: The formula, of two `Positions` or two `Labels`.
    """

    name: str
    of: Of
    direction: Direction
    range: tuple[float, float]
    ignores: frozenset[str]
    symmetric: bool
    void: float
    by_default: bool
    n_used: Callable[[int], int]
    function: Callable[..., float]

    @property
    def best(self) -> float:
        """The value of identical arguments."""
        return self.range[self.direction == "higher"]

    @property
    def kind(self) -> type[Positions] | type[Labels]:
        """The class that checks an argument and keeps what metrics have in common."""
        return Labels if self.of == "labels" else Positions

    @property
    def options(self) -> Mapping[str, Any]:
        """Names and defaults of the options."""
        parameters = inspect.signature(self.function).parameters.values()
        return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}

    def bind(self, **options: Any) -> "Metric":
        """The metric with other defaults for its options.

        Raises:
            ConfigError: It has no such option.
        """
        for name in options:
            if name not in self.options:
                raise ConfigError(f"metric '{self.name}': {unknown('option', name, self.options)}")
        return replace(self, function=partial(self.function, **options))

    def __call__(self, x: Any, y: Any, **options: Any) -> float:
        r"""The score of x against y.

        Args:
            x: Positions of the embedding, `(unit, p)`, or `Positions`, which keep what metrics have in common; for a metric
                of labels those of the clustering, `(unit,)`, or `Labels`.
            y: Positions or labels drawn from the posterior, `(unit, q)` or `(unit,)`, likewise.
            options: The metric's own.

        Raises:
            DataError: Not positions or labels (see `Positions`, `Labels`), or not of equally many units.
            ConfigError: An option that the metric does not have, or that the positions do not allow.
            InferenceError: Its function failed, or its value is no number in its range; names the metric.
        """
        x = x if isinstance(x, self.kind) else self.kind(x, "x")
        y = y if isinstance(y, self.kind) else self.kind(y, "y")
        if x.n_units != y.n_units:
            raise DataError(f"metric '{self.name}' compares the same units; got {x.n_units} in x and {y.n_units} in y.")
        bound = self.bind(**options)
        if isinstance(x, Positions) and (x.is_constant or y.is_constant):
            return self.void
        try:
            value = float(bound.function(x, y))
        except LatentLabError:
            raise
        except Exception as error:
            why = " ".join(str(error).split())
            raise InferenceError(f"metric {self.name!r} failed: {type(error).__name__}: {why}") from error
        low, high = self.range
        if not low - ROUNDING * (1 + abs(low)) <= value <= high + ROUNDING * (1 + abs(high)):
            span = f"a number from {low:g} to {high:g}, its `range`"
            raise InferenceError(f"metric {self.name!r} must return {span}; got {value:g}.")
        return float(min(max(value, low), high))


def metric(  # one keyword for each declared property
    *,
    direction: Direction,
    range: tuple[float, float],
    ignores: Collection[str],
    void: float = math.nan,
    of: Of = "positions",
    symmetric: bool = True,
    by_default: bool = True,
    n_used: Callable[[int], int] = int,
) -> Callable[[Callable[..., float]], Metric]:
    """Decorator: makes a `Metric` of a function of two `Positions` (or two `Labels`) and keyword-only options.

    Example:
        >>> @metric(direction="lower", range=(0.0, float("inf")), ignores={"rotation", "translation"}, void=1.0)
        ... def spread_ratio(x: Positions, y: Positions) -> float:
        ...     "Ratio of the spreads, less 1."
        ...     return abs(x.size / y.size - 1.0)
        >>> square = [[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]
        >>> spread_ratio(square, square), spread_ratio.best, sorted(spread_ratio.ignores)
        (0.0, 0.0, ['rotation', 'translation'])
    """
    for name in ignores:
        if name not in TRANSFORMATIONS[of]:
            raise ConfigError(unknown("transformation", name, TRANSFORMATIONS[of]))
    if of == "positions" and math.isnan(void):
        raise ConfigError("a metric of positions must say its value for units that are all at one point: state `void`.")
    implied = {"rotation", "scale"} if "linear" in ignores else set()

    def decorate(function: Callable[..., float]) -> Metric:
        kept = frozenset(ignores) | implied
        made = Metric(function.__name__, of, direction, range, kept, symmetric, void, by_default, n_used, function)
        vars(made).update(__doc__=function.__doc__, __module__=function.__module__, __wrapped__=function)
        return made

    return decorate


def needed(group: Group, dims: tuple[str, ...] = ("unit", "latent")) -> frozenset[str]:
    """What a metric must ignore so that the choice of an element of the model's symmetry does not change it.

    Args:
        group: The model's symmetry.
        dims: The dims of the model's positions; a group along another dim leaves positions as they are.

    Example:
        >>> from latentlab.symmetry.groups import Identity, SignedPermutation
        >>> [sorted(needed(g)) for g in (Identity(), SignedPermutation(), Euclidean(), GeneralLinear())]
        [[], ['rotation'], ['rotation', 'translation'], ['linear']]
    """
    if group.is_trivial() or group.dim not in dims:
        return frozenset()
    if group in Orthogonal(group.dim):
        return frozenset({"rotation"})
    if group in Euclidean(group.dim):
        return frozenset({"rotation", "translation"})
    if group in GeneralLinear(group.dim):
        return frozenset({"linear"})
    return frozenset({"linear", "translation"})


def minds(metric: Metric, group: Group, dims: tuple[str, ...] = ("unit", "latent")) -> frozenset[str]:
    """The transformations that the model's symmetry leaves free and the metric does not ignore; none: it may be used.

    Rotations hold every (signed) permutation, so a metric that ignores rotation is enough for those groups.
    """
    return needed(group, dims) - metric.ignores
