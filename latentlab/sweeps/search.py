"""Search for the best setting of a model or a method: the block `search` of a sweep, whose points are proposed in batches.

The first points are drawn at random; the others are proposed by Optuna's tree-structured Parzen estimator. A batch depends only
on the block, on its number, and on the scores of the earlier batches, which are in the run directories. There is no further
storage. The points are therefore the same for every executor and number of workers, and after the search was interrupted.

References:
    Bergstra, Bardenet, Bengio & Kegl (2011), Algorithms for hyper-parameter optimization, NeurIPS. Akiba, Sano, Yanase, Ohta &
    Koyama (2019), Optuna, KDD.
"""

import importlib.util
import itertools
import json
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from latentlab.errors import ConfigError, MissingDependencyError, ModelError
from latentlab.registry import plugins as plugged
from latentlab.seeds import Seeds
from latentlab.study.config import Config
from latentlab.sweeps.distributions import Distribution, distribution_of

KEYS = ("n", "metric", "values", "batch", "seed")
METRICS = ("held_out", "elpd_loo")
"""Columns of the table of a sweep that can be maximised."""
VARIED = ("model", "inference")
"""Sections whose values can be compared; other sections change the data, or do not affect the score."""
MOST_POINTS = 10_000
MOST_CORNERS = 256
N_RANDOM = 10
"""Number of scored points before the first proposal by a model of the scores."""
MOST_REPEATS = 20
"""Number of proposals in place of one that was made before, until the new point is drawn from those that remain."""
Values = dict[str, Any]


@dataclass(frozen=True)
class Search:
    """A search: distribution of each key, and the score that is maximised.

    Args:
        n: Number of points.
        metric: `held_out` or `elpd_loo`.
        values: Key -> distribution of its values.
        batch: Number of points that are proposed at once, and can run at the same time.
        seed: Seed of the proposals.
    """

    n: int
    metric: str
    values: Mapping[str, Distribution]
    batch: int
    seed: int

    @property
    def size(self) -> int | None:
        """Number of different points; None if it is not finite."""
        sizes = [one.size for one in self.values.values() if one.size is not None]
        return math.prod(sizes) if len(sizes) == len(self.values) else None

    def to_dict(self) -> dict[str, Any]:
        """The block without the number of points, as plain values."""
        values = {key: {one.kind: list(one.given)} for key, one in self.values.items()}
        return {"metric": self.metric, "values": values, "batch": self.batch, "seed": self.seed}

    def corners(self) -> list[Values]:
        """Values at the ends of all ranges and at all choices: all combinations, or, of many, one key at a time."""
        ends = {key: list(one.given) for key, one in self.values.items()}
        if math.prod(map(len, ends.values())) <= MOST_CORNERS:
            return [dict(zip(ends, values, strict=True)) for values in itertools.product(*ends.values())]
        first = {key: values[0] for key, values in ends.items()}
        return [{**first, key: value} for key, values in ends.items() for value in values]

    def check(self, config: Config) -> None:
        """Check that the runs of a config have the score.

        Raises:
            ConfigError, ModelError: They do not have it.
        """
        if self.metric == "held_out" and not config.held_out:
            raise ConfigError("metric: held_out requires held-out units; set `held_out: 0.2` in the config.")
        if self.metric == "elpd_loo":
            with plugged(config.plugins):
                method = config.build_method()
            if method.kind == "point":
                raise ModelError(
                    f"metric: elpd_loo requires posterior draws, and {method.name!r} gives a point estimate; use held_out."
                )

    def proposals(self, number: int, earlier: Sequence[Values], scores: Sequence[float]) -> list[Values]:
        """Propose the points of a batch.

        Args:
            number: Number of the batch, from 0.
            earlier: The points of all earlier batches.
            scores: Their scores; NaN for a point that failed or has no score.
        """
        import optuna

        seeds = Seeds(self.seed).child("search", number)
        space = {key: _parameter(one) for key, one in self.values.items()}
        level = optuna.logging.get_verbosity()
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of options that are experimental in some versions
                sampler = optuna.samplers.TPESampler(
                    seed=seeds.integer(), n_startup_trials=N_RANDOM, multivariate=True, constant_liar=True
                )
                study = optuna.create_study(direction="maximize", sampler=sampler)
                study.add_trials([_trial(space, self._coded(one), score) for one, score in zip(earlier, scores, strict=True)])
                known, found = {_text(one) for one in earlier}, []
                for i in range(min(self.batch, self.n - len(earlier))):
                    point = self._new(study, space, known, seeds.child("rest", i))
                    known.add(_text(point))
                    found.append(point)
        finally:
            optuna.logging.set_verbosity(level)
        return found

    def _new(self, study: Any, space: Mapping[str, Any], known: set[str], seeds: Seeds) -> Values:
        """A point that is not among the known ones."""
        for _ in range(MOST_REPEATS):
            trial = study.ask(dict(space))
            point = self._decoded(trial.params)
            if _text(point) not in known:
                return point
            study.tell(trial, state=_failed())
        if self.size is None:
            return point
        rest = [point for point in self._all() if _text(point) not in known]
        return rest[int(seeds.numpy().integers(len(rest)))]

    def _all(self) -> Iterator[Values]:
        """All points of a finite space."""
        columns = [one.given if one.kind == "choice" else range(one.given[0], one.given[1] + 1) for one in self.values.values()]
        return (dict(zip(self.values, values, strict=True)) for values in itertools.product(*columns))

    def _coded(self, values: Values) -> Values:
        """Values as Optuna has them: a choice is its number, since it can be a list or a mapping."""
        return {
            key: [_text(each) for each in one.given].index(_text(values[key])) if one.kind == "choice" else values[key]
            for key, one in self.values.items()
        }

    def _decoded(self, coded: Mapping[str, Any]) -> Values:
        return {key: one.given[coded[key]] if one.kind == "choice" else coded[key] for key, one in self.values.items()}


def search_of(found: Any, where: str) -> Search:
    """Read the block `search`.

    Raises:
        ConfigError: It is invalid; the message begins with `where`.
        MissingDependencyError: Optuna is not installed.
    """
    if not isinstance(found, Mapping) or not {"n", "values"} <= set(found) <= set(KEYS):
        raise ConfigError(
            f"{where}: must be a mapping with the keys n, values and, if needed, metric, batch, seed; got {found!r}."
        )
    for key, most in (("n", MOST_POINTS), ("batch", MOST_POINTS)):
        number = found.get(key, 1)
        if not isinstance(number, int) or isinstance(number, bool) or not 1 <= number <= most:
            raise ConfigError(f"{where}.{key}: must be a number of points from 1 to {most}; got {number!r}.")
    metric, seed = found.get("metric", METRICS[0]), found.get("seed", 0)
    if metric not in METRICS:
        raise ConfigError(f"{where}.metric: must be one of {', '.join(METRICS)}; got {metric!r}.")
    Seeds(seed)
    if not isinstance(found["values"], Mapping) or not found["values"]:
        raise ConfigError(f"{where}.values: must be a mapping of keys to distributions; got {found['values']!r}.")
    other = next((key for key in found["values"] if not isinstance(key, str) or key.split(".")[0] not in VARIED), None)
    if other is not None:
        raise ConfigError(
            f"{where}.values: must be keys of model or inference, since scores on other data cannot be compared; got {other!r}."
        )
    values = {key: distribution_of(one, f"{where}.values.{key}") for key, one in found["values"].items()}
    for key, one in values.items():
        if one.kind == "choice" and len(set(map(_text, one.given))) < len(one.given):
            raise ConfigError(f"{where}.values.{key}.choice: the values must differ; got {list(one.given)!r}.")
    search = Search(found["n"], metric, values, found.get("batch", 4), seed)
    if search.size is not None and search.n > search.size:
        raise ConfigError(f"{where}.n: must be at most the {search.size} different points; got {search.n}. Use `grid` for all.")
    if importlib.util.find_spec("optuna") is None:
        raise MissingDependencyError("a search", "optuna", "search")
    return search


def _parameter(one: Distribution) -> Any:
    import optuna.distributions as of

    if one.kind == "choice":
        return of.CategoricalDistribution(range(len(one.given)))
    if one.kind == "integer":
        return of.IntDistribution(*one.given)
    low, high = one.given
    return of.FloatDistribution(float(low), float(high), log=one.kind == "log_uniform")


def _trial(space: Mapping[str, Any], coded: Values, score: float) -> Any:
    from optuna.trial import create_trial

    if math.isfinite(score):
        return create_trial(params=coded, distributions=dict(space), value=score)
    return create_trial(params=coded, distributions=dict(space), state=_failed())


def _failed() -> Any:
    from optuna.trial import TrialState

    return TrialState.FAIL


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True)
