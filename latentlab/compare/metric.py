"""Metrics: pure functions of two arrays of positions, or of labels, with declared properties.

`metric(x, y, **options)` compares an embedding x `(unit, p)` with a draw of the latent positions y `(unit, q)`. Both have the
units in the same order. A metric `of` labels compares a clustering x `(unit,)` with a draw of the labels y `(unit,)`. The
decorator `metric` makes a metric of a function; a line in `latentlab.registry.METRICS` registers it. The tests check that every
registered metric has the declared properties, and that it has no undeclared ones.

Transformations that a metric may ignore, applied to x, to y, or to both with different elements:

| transformation | of positions z `(unit, q)` |
|---|---|
| `rotation` | z R, R orthogonal (reflections included) |
| `translation` | z + t |
| `scale` | b z, b > 0 |
| `linear` | z A, A invertible; includes `rotation` and `scale` |

If x and y have different numbers of columns, the narrower array is treated as padded with zeros. If all units of x or of y are
at one point, the score is `void` by definition.

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
"""Transformations that a metric of each kind may ignore."""

ROUNDING = 1e-6
"""Largest relative excess over a bound of the range that counts as rounding error; the value is clipped to the range."""


@dataclass(frozen=True, eq=False)
class Metric:
    """A function of two arrays of positions, or of labels, with its declared properties.

    Attributes:
        name: Name of the function.
        of: Type of the arguments, `positions` or `labels`.
        direction: Whether `higher` or `lower` values mean more similar arguments.
        range: Smallest and largest possible value, infinite if unbounded; the better end is the value of identical arguments.
        ignores: Transformations of either argument under which the value is invariant.
        symmetric: Whether x and y may be exchanged when they have equally many columns.
        void: Value by definition if all units of an argument are at one point; metrics may define further void cases. NaN for
            metrics of labels, which have no void case.
        by_default: Whether the metric is computed if no metrics are named; False for slow ones.
        n_used: Maps the number of units to the number that the metric uses (or whose neighbours it uses); smaller if all units
            would cost too much.
        function: The formula, a function of two `Positions` or two `Labels`.
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
        """Value of identical arguments."""
        return self.range[self.direction == "higher"]

    @property
    def kind(self) -> type[Positions] | type[Labels]:
        """Class that checks an argument and caches the quantities that several metrics use."""
        return Labels if self.of == "labels" else Positions

    @property
    def options(self) -> Mapping[str, Any]:
        """Names and defaults of the options."""
        parameters = inspect.signature(self.function).parameters.values()
        return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}

    def bind(self, **options: Any) -> "Metric":
        """Return the metric with other defaults for its options.

        Raises:
            ConfigError: The metric has no such option.
        """
        for name in options:
            if name not in self.options:
                raise ConfigError(f"metric '{self.name}': {unknown('option', name, self.options)}")
        return replace(self, function=partial(self.function, **options))

    def __call__(self, x: Any, y: Any, **options: Any) -> float:
        r"""Compute the score of x against y.

        Args:
            x: Positions of the embedding, `(unit, p)`, or a `Positions` object, which caches shared quantities. For a metric of
                labels: labels of the clustering, `(unit,)`, or a `Labels` object.
            y: Posterior draw of the positions, `(unit, q)`, or of the labels, `(unit,)`; a `Positions` or `Labels` object too.
            options: Options of the metric.

        Raises:
            DataError: x or y is not an array of positions or labels (see `Positions`, `Labels`), or the numbers of units differ.
            ConfigError: The metric does not have the option, or the positions do not allow its value.
            InferenceError: The function failed, or its value is not a number in the range; the message names the metric.
        """
        x = x if isinstance(x, self.kind) else self.kind(x, "x")
        y = y if isinstance(y, self.kind) else self.kind(y, "y")
        if x.n_units != y.n_units:
            raise DataError(
                f"metric '{self.name}': x and y must have the same units; got {x.n_units} units in x and {y.n_units} in y."
            )
        bound = self.bind(**options)
        if isinstance(x, Positions) and (x.is_constant or y.is_constant):
            return self.void
        try:
            value = float(bound.function(x, y))
        except LatentLabError:
            raise
        except Exception as error:
            reason = " ".join(str(error).split())
            raise InferenceError(f"metric {self.name!r} failed: {type(error).__name__}: {reason}") from error
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
    """Return a decorator that makes a `Metric` of a function of two `Positions` (or two `Labels`) and keyword-only options.

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
        raise ConfigError(
            f"`void` of a metric of positions must be a number, its value if all units are at one point; got {void}."
        )
    implied = {"rotation", "scale"} if "linear" in ignores else set()

    def decorate(function: Callable[..., float]) -> Metric:
        kept = frozenset(ignores) | implied
        made = Metric(function.__name__, of, direction, range, kept, symmetric, void, by_default, n_used, function)
        vars(made).update(__doc__=function.__doc__, __module__=function.__module__, __wrapped__=function)
        return made

    return decorate


def required_invariances(group: Group, dims: tuple[str, ...] = ("unit", "latent")) -> frozenset[str]:
    """Return the transformations that a metric must ignore to be invariant under the model's symmetry group.

    Args:
        group: Symmetry group of the model.
        dims: Dims of the model's positions; a group along another dim does not change positions.

    Example:
        >>> from latentlab.symmetry.groups import Identity, SignedPermutation
        >>> [sorted(required_invariances(g)) for g in (Identity(), SignedPermutation(), Euclidean(), GeneralLinear())]
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


def missing_invariances(metric: Metric, group: Group, dims: tuple[str, ...] = ("unit", "latent")) -> frozenset[str]:
    """Return the transformations of the model's symmetry under which the metric is not invariant.

    An empty set means that the metric may be used. Rotations include all (signed) permutations, so a metric that is invariant
    under rotation is sufficient for groups of permutations.
    """
    return required_invariances(group, dims) - metric.ignores
