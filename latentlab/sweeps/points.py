"""Points of a sweep: the `sweep` block of a config, expanded to values of dotted keys, and one checked config for each point.

The block contains any of

* `grid`: key -> list of values; all combinations;
* `zip`: key -> list of values, all of the same length; the first values together, then the second values, and so on;
* `list`: a list of mappings key -> value;
* `random`: `n` points, `seed`, and `values`: key -> a distribution: `{uniform: [a, b]}`, `{log_uniform: [a, b]}`,
  `{integer: [a, b]}` (both ends included) or `{choice: [...]}`;
* `seeds`: a number n for n seeds from the config's own upwards, or a list of seeds;

or `search`: `n` points, which are proposed by their scores (`latentlab.sweeps.search`).

Several of them are combined as a product in which seeds vary slowest, so that added seeds do not renumber the points. A key
leads to an option (`inference.n_draws`), to the `name` of a section or to a whole section. Whole sections are set first, then
names, then options.
"""

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from latentlab.errors import ConfigError, LatentLabError, unknown
from latentlab.seeds import Seeds
from latentlab.study.config import NAME_LENGTH, SWEEP_KEYS, Config, content, load_config, run_name
from latentlab.study.overrides import absolute, override
from latentlab.study.rows import text_of
from latentlab.study.schema import TABLES
from latentlab.sweeps.distributions import Distribution, distribution_of
from latentlab.sweeps.search import Search, search_of

PARTS = tuple(key for key in SWEEP_KEYS if key != "search")
FIXED = ("name", "plugins", "sweep", "executor")
"""Keys of a config that have the same value in all points."""
MOST_POINTS = 100_000
MOST_SHOWN = 5
"""Number of invalid points in an error message."""
Values = dict[str, Any]


@dataclass(frozen=True)
class Point:
    """One run of a sweep.

    Attributes:
        name: Name of the run's directory, such as `point-0007`; the first point has number 0.
        values: Value of each swept key.
        config: The checked config of the run; None if a search proposed values for which it is invalid.
        error: The reason, if it is invalid.
    """

    name: str
    values: Values
    config: Config | None
    error: str = ""


@dataclass(frozen=True)
class Plan:
    """The points of a sweep.

    Attributes:
        name: Name of the sweep.
        points: The points; of a search, those that were proposed.
        executor: The executor that the config names; None for the default.
        config: The config without its `sweep` block.
        plugins: Further plugin files.
        search: The search that proposes the points; None if all are known.
    """

    name: str
    points: tuple[Point, ...]
    executor: str | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    plugins: tuple[str | Path, ...] = ()
    search: Search | None = None

    @property
    def n_points(self) -> int:
        """Number of points, those that a search has not proposed yet included."""
        return len(self.points) if self.search is None else self.search.n

    def point(self, number: int, values: Values, n_points: int | None = None) -> Point:
        """The point with these values.

        Raises:
            LatentLabError: Its config is invalid.
        """
        run = point_name(number, n_points or self.n_points)
        config = load_config(override(dict(self.config), texts_of(values)), plugins=self.plugins)
        return Point(run, values, config.model_copy(update={"name": f"{self.name[: NAME_LENGTH - len(run) - 1]}-{run}"}))

    def proposed(self, values: Sequence[Values]) -> "Plan":
        """The plan with further points, one of which may have an invalid config."""
        points = list(self.points)
        for number, one in enumerate(values, len(points)):
            try:
                points.append(self.point(number, one))
            except LatentLabError as error:
                points.append(Point(point_name(number, self.n_points), one, None, " ".join(str(error).split())))
        return replace(self, points=tuple(points))


def point_name(number: int, n_points: int) -> str:
    """Name of the directory of a point."""
    return f"point-{number:0{max(4, len(str(n_points - 1)))}d}"


def plan_of(source: str | Path | Mapping[str, Any], overrides: Sequence[str] = (), plugins: Sequence[str | Path] = ()) -> Plan:
    """Read a config with a `sweep` block, and check the config of every point; no data are read.

    Of a search, the configs at the ends of all ranges are checked.

    Raises:
        ConfigError: The block or the config of a point is invalid; the message names the first invalid points with their values.
        MissingDependencyError: Optuna, which a search needs, is not installed.
    """
    data, what = content(source)
    data = override(data, overrides)
    executor, block = data.pop("executor", None), data.pop("sweep", None)
    if executor is not None and not isinstance(executor, str):
        raise ConfigError(f"{what}: executor: must be a name, such as process or dask:ADDRESS; got {executor!r}.")
    if block is None:
        raise ConfigError(f"{what}: the key `sweep` is missing; a config without it is run by `latentlab run`.")
    folder = Path(source).parent if isinstance(source, str | Path) else Path.cwd()
    search = _search(block, folder, what)
    if search is None:
        every = [_placed(values, folder) for values in expand(block, data.get("seed", 0), what)]
    else:
        every = search.corners()
    swept = {key for values in every for key in values}
    fixed = next((text for text in overrides if text.partition("=")[0].strip() in swept), None)
    if fixed is not None:
        raise ConfigError(f"override {fixed!r}: the sweep varies this key; change `sweep` instead.")
    plan = Plan(_name(data, what), (), executor, data, tuple(plugins), search)
    points, problems = [], []
    for number, values in enumerate(every):
        try:
            point = plan.point(number, values, len(every))
            if search is not None and point.config is not None:
                search.check(point.config)
            points.append(point)
        except LatentLabError as error:
            lines = [line for line in str(error).splitlines() if line.strip()]
            problems.append(f"{f'point {number}' if search is None else 'search'} ({text_of(values)}): {' '.join(lines)}")
    if problems:
        more = f"\n... and {len(problems) - MOST_SHOWN} more of {len(every)} points" if len(problems) > MOST_SHOWN else ""
        raise ConfigError(f"{what}: sweep: " + "\n".join(problems[:MOST_SHOWN]) + more)
    return replace(plan, points=tuple(points) if search is None else ())


def _search(block: Any, folder: Path, what: str) -> Search | None:
    """The search of a `sweep` block; None if it has none."""
    if not isinstance(block, Mapping) or "search" not in block:
        return None
    if len(block) > 1:
        other = next(key for key in block if key != "search")
        raise ConfigError(f"{what}: sweep: search must not be combined with other keys; got {other!r}. Use two sweeps.")
    found = search_of(block["search"], f"{what}: sweep.search")

    def placed(key: str, one: Distribution) -> Distribution:
        return replace(one, given=tuple(_placed({key: value}, folder)[key] for value in one.given))

    return replace(found, values={key: placed(key, one) for key, one in found.values.items()})


def _name(data: Mapping[str, Any], what: str) -> str:
    """Return the name of the sweep, which must be valid as the name of a run."""
    name = data.get("name")
    if not isinstance(name, str):
        raise ConfigError(f"{what}: name: must be the name of the sweep; got {'nothing' if name is None else repr(name)}.")
    return run_name(name)


def _placed(values: Values, folder: Path) -> Values:
    """Make paths among the values absolute; they are relative to the config's folder."""

    def placed(key: str, value: Any) -> Any:
        if key.endswith(".path"):
            return absolute({"dataset": {"path": value}}, folder)["dataset"]["path"]
        return absolute({key: value}, folder)[key] if key in TABLES else value

    return {key: placed(key, value) for key, value in values.items()}


def texts_of(values: Values) -> list[str]:
    """Overrides that set these values: whole sections first, then names of sections, then options."""
    order = sorted(values, key=lambda key: (key.partition(".")[2] != "", not key.endswith(".name")))
    return [f"{key}={json.dumps(values[key])}" for key in order]


# -- expansion


def expand(block: Any, seed: Any, what: str = "config") -> list[Values]:
    """Expand a `sweep` block to the values of its points, in order.

    Raises:
        ConfigError: The block is invalid, has no point, more than `MOST_POINTS`, or the same point twice.

    Example:
        >>> expand({"grid": {"model.n_latent": [1, 2]}, "seeds": 2}, 7)  # doctest: +NORMALIZE_WHITESPACE
        [{'model.n_latent': 1, 'seed': 7}, {'model.n_latent': 2, 'seed': 7},
         {'model.n_latent': 1, 'seed': 8}, {'model.n_latent': 2, 'seed': 8}]
    """
    where = f"{what}: sweep"
    if not isinstance(block, Mapping) or not block:
        raise ConfigError(f"{where}: must be a mapping with any of {', '.join(PARTS)}; got {block!r}.")
    strange = next((key for key in block if key not in PARTS), None)
    if strange is not None:
        raise ConfigError(f"{where}: {unknown('key', strange, (*PARTS, 'search'))}")
    factors = [_PART[part](block[part], seed, f"{where}.{part}") for part in reversed(PARTS) if part in block]
    keys = [key for factor in factors for key in dict.fromkeys(key for values in factor for key in values)]
    twice = next((key for key in keys if keys.count(key) > 1), None)
    if twice is not None:
        raise ConfigError(f"{where}: the key {twice!r} is varied twice; name it in one of {', '.join(PARTS)} only.")
    n_points = math.prod(map(len, factors))
    if n_points > MOST_POINTS:
        raise ConfigError(f"{where}: at most {MOST_POINTS} points are allowed; got {n_points}.")
    every = [
        {key: value for values in reversed(chosen) for key, value in values.items()} for chosen in itertools.product(*factors)
    ]
    seen: dict[str, int] = {}
    for number, values in enumerate(every):
        first = seen.setdefault(json.dumps(values, sort_keys=True), number)
        if first != number:
            raise ConfigError(f"{where}: points {first} and {number} are equal ({text_of(values)}); remove one of them.")
    return every


def checked_key(key: Any, where: str) -> str:
    if not isinstance(key, str) or not key.strip() or key.split(".")[0] in FIXED:
        raise ConfigError(f"{where}: must be keys of the config, such as model.n_latent, except {', '.join(FIXED)}; got {key!r}.")
    return key


def _columns(found: Any, where: str) -> dict[str, list[Any]]:
    if not isinstance(found, Mapping) or not found:
        raise ConfigError(f"{where}: must be a mapping of keys to lists of values; got {found!r}.")
    for key, values in found.items():
        checked_key(key, where)
        if not isinstance(values, list) or not values:
            raise ConfigError(f"{where}: {key}: must be a list of values; got {values!r}.")
    return dict(found)


def _grid(found: Any, seed: Any, where: str) -> list[Values]:
    columns = _columns(found, where)
    return [dict(zip(columns, values, strict=True)) for values in itertools.product(*columns.values())]


def _zip(found: Any, seed: Any, where: str) -> list[Values]:
    columns = _columns(found, where)
    sizes = {key: len(values) for key, values in columns.items()}
    if len(set(sizes.values())) > 1:
        lengths = ", ".join(f"{key}: {size}" for key, size in sizes.items())
        raise ConfigError(f"{where}: the lists must have the same length; got {lengths}.")
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _list(found: Any, seed: Any, where: str) -> list[Values]:
    if not isinstance(found, list) or not found or not all(isinstance(one, Mapping) and one for one in found):
        raise ConfigError(f"{where}: must be a list of mappings of keys to values; got {found!r}.")
    for i, one in enumerate(found):
        for key in one:
            checked_key(key, f"{where}.{i}")
        if set(one) != set(found[0]):
            raise ConfigError(f"{where}.{i}: must have the same keys as {where}.0, {', '.join(found[0])}; got {', '.join(one)}.")
    return [dict(one) for one in found]


def _seeds(found: Any, seed: Any, where: str) -> list[Values]:
    if isinstance(found, int) and not isinstance(found, bool) and found >= 1 and isinstance(seed, int):
        return [{"seed": seed + i} for i in range(found)]
    if isinstance(found, list) and found and all(isinstance(one, int) and not isinstance(one, bool) for one in found):
        return [{"seed": one} for one in found]
    raise ConfigError(f"{where}: must be the number of seeds, at least 1, or a list of seeds; got {found!r}.")


def _random(found: Any, seed: Any, where: str) -> list[Values]:
    keys = ("n", "seed", "values")
    if not isinstance(found, Mapping) or not {"n", "values"} <= set(found) <= set(keys):
        raise ConfigError(f"{where}: must be a mapping with the keys n, values and, if needed, seed; got {found!r}.")
    n, values = found["n"], found["values"]
    if not isinstance(n, int) or isinstance(n, bool) or not 1 <= n <= MOST_POINTS:
        raise ConfigError(f"{where}.n: must be a number of points from 1 to {MOST_POINTS}; got {n!r}.")
    if not isinstance(values, Mapping) or not values:
        raise ConfigError(f"{where}.values: must be a mapping of keys to distributions; got {values!r}.")
    seeds = Seeds(found.get("seed", 0)).child("sweep")
    columns = {
        checked_key(key, f"{where}.values"): distribution_of(one, f"{where}.values.{key}").drawn(n, seeds.child(key).numpy())
        for key, one in values.items()
    }
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


_PART = {"grid": _grid, "zip": _zip, "list": _list, "random": _random, "seeds": _seeds}
