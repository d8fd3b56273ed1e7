"""The config of a run: read, checked completely before any computation, and resolved to explicit values of all options.

A config is a YAML file or a mapping with these keys: `name` (of the run and its folder), `seed`, `dataset`, `model`,
`inference`, `embeddings` (a list), `compare`, `held_out` (fraction of the units that are held out of the fit and scored),
`executor` (of chains or restarts, as in `latentlab.fit`), `memory` (largest memory of the run, such as `2 GiB`), `tracking` (a
list of trackers) and `plugins` (files with the user's models, datasets, embeddings, metrics or trackers). The `name` of a section
determines its options (`schema.py`).

Paths. A `path` option and `plugins` are relative to the config file's folder; from an override, the command line or a mapping,
they are relative to the working directory. `~` is expanded to the user's home; variables such as `$HOME` are not expanded. The
resolved config has absolute paths.

Other defaults are resolved too. The default `label` of an embedding is its name, and its default `seed` is the seed of the run.
The default `n_latent` is the number of columns of continuous positions. If the positions are labels, the default of a clustering
is the number of labels.
"""

import json
import os
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Union

from pydantic import AfterValidator, BaseModel, Field, SerializeAsAny, ValidationError, create_model

from latentlab import registry
from latentlab.data.dataset import Dataset
from latentlab.data.memory import memory_bytes
from latentlab.data.stored import StoredDataset
from latentlab.embeddings.entry import makes_clusters
from latentlab.errors import ConfigError, DataError, LatentLabError, ModelError, unknown
from latentlab.seeds import Seeds, for_model
from latentlab.study.overrides import LISTS, absolute, override
from latentlab.study.problems import Problems, Where
from latentlab.study.schema import STRICT, TABLES, Section, section
from latentlab.study.yaml import dump, read

NAME_LENGTH = 100
SWEEP_KEYS = ("grid", "zip", "list", "random", "seeds", "search")
"""Keys of the block `sweep`, which `latentlab sweep` reads and a run has not."""
UNLESS_SET = ("executor", "memory", "tracking")
"""Keys that a resolved config has only if they are set."""
DIMS = {"unit", "latent", "chain", "draw", "metric", "embedding", "alignment"}
"""Dims of the files with embeddings and comparisons."""
_RESERVED = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.IGNORECASE)


def run_name(name: str) -> str:
    """Check the name of a run, which must be valid as a folder's name on every system.

    Raises:
        ConfigError: The name has characters other than ASCII letters, digits, dots, dashes and underscores, does not begin and
            end with a letter or digit, is too long, or is the name of a device.

    Example:
        >>> run_name("ppca-wine")
        'ppca-wine'
        >>> run_name("../elsewhere")
        Traceback (most recent call last):
        latentlab.errors.ConfigError: a run's name must consist of letters (a-z), digits, '.', '-' and '_', begin and end with \
a letter or digit, and have at most 100 characters; got '../elsewhere'.
    """
    if not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?", name) or len(name) > NAME_LENGTH:
        raise ConfigError(
            "a run's name must consist of letters (a-z), digits, '.', '-' and '_', begin and end with a letter or digit, "
            f"and have at most {NAME_LENGTH} characters; got {name[:120]!r}."
        )
    if _RESERVED.fullmatch(name):
        raise ConfigError(f"a run's name must not be {name!r}, which Windows reserves for a device.")
    return name


class Config(BaseModel):
    """A checked and resolved config; its sections are attributes, and their options are the sections' attributes."""

    model_config = STRICT

    name: Annotated[str, AfterValidator(run_name)]
    seed: Annotated[int, AfterValidator(lambda seed: Seeds(seed).seed)] = 0
    dataset: SerializeAsAny[Section]
    model: SerializeAsAny[Section]
    inference: SerializeAsAny[Section]
    embeddings: tuple[SerializeAsAny[Section], ...] = ()
    compare: SerializeAsAny[Section]
    held_out: Annotated[float, Field(ge=0, lt=1)] = 0.0
    tracking: tuple[SerializeAsAny[Section], ...] = ()
    executor: str | None = None
    memory: Annotated[int | str | None, AfterValidator(memory_bytes)] = None
    plugins: tuple[str, ...] = ()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Config) and self.to_dict() == other.to_dict()

    def build_dataset(self) -> Dataset | StoredDataset:
        """Load the data set, or open it on disk, with entries hidden and standardised according to the config."""
        from latentlab.data.load import load_dataset

        dataset = load_dataset(**dict(self.dataset))
        if self.dataset.standardize and dataset.n_points < 2:  # type: ignore[attr-defined]
            raise DataError(f"{dataset.name}: standardising requires at least 2 {dataset.points}s; got {dataset.n_points}.")
        return dataset

    def build_model(self) -> Any:
        """Build the model; the weights of its networks are drawn by the config's seed."""
        with for_model(self.seed):
            return type(self.model).build(**self.model.options())  # type: ignore[misc]

    def build_method(self) -> Any:
        """Build the inference method."""
        return type(self.inference).build(**self.inference.options())  # type: ignore[misc]

    def to_dict(self) -> dict[str, Any]:
        """Convert the config to plain values, from which `load_config` restores it."""
        unset = {key for key in UNLESS_SET if not getattr(self, key)}
        return self.model_dump(mode="json", exclude=unset)

    def to_yaml(self) -> str:
        """Convert the config to YAML, from which `load_config` restores it."""
        return dump(self.to_dict())


def load_config(
    source: str | Path | Mapping[str, Any] | Config,
    overrides: Sequence[str] = (),
    plugins: Sequence[str | Path] = (),
    *,
    files: bool = True,
) -> Config:
    """Read a config from a file or mapping, apply overrides, check and resolve it; no data are read.

    Args:
        source: A YAML file, or its content as a mapping.
        overrides: `KEY=VALUE`, such as `inference.n_draws=500`, `embeddings.0.label=axes`, `inference.name=svi`.
        plugins: Files with the user's entries, in addition to the config's `plugins`.
        files: Whether the files named in the config must exist.

    Raises:
        ConfigError: The config is invalid. The message lists all problems, each with its path, the value and the valid values.

    Example:
        >>> config = load_config({"name": "toy", "dataset": {"name": "iris"}, "model": {"name": "ppca", "n_latent": 2},
        ...                       "inference": {"name": "exact"}}, ["inference.n_draws=10"])
        >>> config.inference.n_draws, config.dataset.standardize, config.build_model()
        (10, True, PPCA(n_latent=2, W_scale=1.0, mu_scale=10.0, sigma_scale=1.0, marginalize=True))
    """
    data, what = content(source)
    data = absolute(override(data, overrides), Path.cwd())
    if "sweep" in data:
        raise ConfigError(f"{what}: the config has a `sweep`; run it by `latentlab sweep`.")
    data["plugins"] = _plugins(data.get("plugins", []), plugins, what)
    with registry.plugins(data["plugins"]):
        return _resolved(_checked(data, what, files=files))


def json_schema(plugins: Sequence[str | Path] = ()) -> dict[str, Any]:
    """Return the JSON schema of a config, with every entry of every table, for completion and checks in editors."""
    with registry.plugins([str(path) for path in plugins]):
        schema = _model({key: tuple(section(key, name) for name in table) for key, table in TABLES.items()}).model_json_schema()
    schema["properties"]["sweep"] = {
        "type": "object",
        "description": "Points of a sweep; see docs/sweeps.md",
        "properties": {key: {} for key in SWEEP_KEYS},
        "additionalProperties": False,
    }
    return schema


# -- what is read


def content(source: str | Path | Mapping[str, Any] | Config) -> tuple[dict[str, Any], str]:
    """Return plain values with absolute paths, and their name in messages."""
    if isinstance(source, str | os.PathLike):
        if not str(source).strip():
            raise ConfigError("the path of the config must be a YAML file; got an empty path.")
        path = Path(source)
        data, what, folder = read(path), str(path), path.parent
    else:
        data, what, folder = _plain(source.to_dict() if isinstance(source, Config) else source), "config", Path.cwd()
    if not isinstance(data, dict):
        content = "no content" if data is None else "a list" if isinstance(data, list) else repr(data)[:80]
        raise ConfigError(f"{what}: must be a mapping with the keys {', '.join(Config.model_fields)}; got {content}.")
    return absolute(data, folder), what


def _plain(mapping: Any) -> Any:
    """Convert a Python mapping to plain values as from YAML: paths to text, tuples to lists, NumPy numbers to numbers."""

    def plain(value: Any) -> Any:
        if isinstance(value, os.PathLike):
            return os.fspath(value)
        if isinstance(value, Mapping):
            return dict(value)
        if callable(getattr(value, "item", None)) and getattr(value, "ndim", None) == 0:
            return value.item()
        raise ConfigError(f"config: {value!r} of type {type(value).__name__} cannot be serialised to YAML.")

    try:
        return json.loads(json.dumps(mapping, default=plain))
    except (TypeError, ValueError, RecursionError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"config: {error or type(error).__name__}.") from error


def _plugins(listed: Any, given: Sequence[str | Path], what: str) -> list[str]:
    if not isinstance(listed, list) or not all(isinstance(path, str) for path in listed):
        raise ConfigError(f"{what}: plugins: must be a list of files; got {listed!r}.")
    extra = absolute({"plugins": [str(path) for path in given]}, Path.cwd())["plugins"]
    return list(dict.fromkeys([*listed, *extra]))


# -- what is checked


def _checked(data: dict[str, Any], what: str, *, files: bool) -> Config:
    problems = Problems(data, Config)
    chosen: dict[str, list[type[Section]]] = {key: [] for key in TABLES}
    for key in TABLES:
        for where, one in _sections(data, key):
            made = _chosen(problems, key, where, one)
            chosen[key] += [made] if made else []
    problems.choose(("compare",), "option of compare", section("compare"))
    model = _model({key: tuple(dict.fromkeys(sections)) for key, sections in chosen.items()})
    try:
        config = model.model_validate_json(json.dumps(data))
    except ValidationError as error:
        problems.take(error)
        config = None
    _check_pair(problems, data, chosen)
    _check_labels(problems, data)
    _check_metrics(problems, data)
    if files:
        _check_files(problems, data)
    problems.raise_all(what)
    return config  # type: ignore[return-value]


def _sections(data: dict[str, Any], key: str) -> list[tuple[Where, Any]]:
    if key not in data:
        return []
    if key not in LISTS:
        return [((key,), data[key])]
    return [((key, i), one) for i, one in enumerate(data[key])] if isinstance(data[key], list) else []


def _chosen(problems: Problems, key: str, where: Where, one: Any) -> type[Section] | None:
    table = TABLES[key]
    valid = f"Valid: {', '.join(table)}."
    if not isinstance(one, dict):
        problems.add(where, f"must be a mapping with a `name`; got {one!r}. {valid}")
    elif "name" not in one:
        problems.add((*where, "name"), f"the key is missing. {valid}")
    elif not isinstance(one["name"], str):
        problems.add((*where, "name"), f"must be the name of a {table.kind}; got {one['name']!r}. {valid}")
    elif one["name"] not in table:
        problems.add((*where, "name"), unknown(table.kind, one["name"], table))
    else:
        made = section(key, one["name"])
        problems.choose(where, f"option of the {table.kind} {one['name']!r}", made)
        return made
    return None


@cache
def _one_of(sections: tuple[type[Section], ...]) -> Any:
    """Return the type of a section that is one of these, distinguished by `name`.

    Without any, it is `Any`; a problem has been recorded in this case.
    """
    if len(sections) < 2:
        return sections[0] if sections else Any
    return Annotated[Union[sections], Field(discriminator="name")]  # noqa: UP007


def _model(chosen: Mapping[str, tuple[type[Section], ...]]) -> type[Config]:
    """Return the pydantic model of a config whose sections are among the chosen ones."""
    return _model_of(tuple(chosen.items()), section("compare"))


@cache
def _model_of(chosen: tuple[tuple[str, tuple[type[Section], ...]], ...], compare: type[Section]) -> type[Config]:
    fields: dict[str, Any] = {key: (_one_of(sections), ...) for key, sections in chosen if key not in LISTS}
    fields |= {key: (tuple[_one_of(sections), ...], ()) for key, sections in chosen if key in LISTS}  # type: ignore[misc]
    fields["compare"] = (compare, Field(default_factory=compare))
    return create_model("Config", __base__=Config, **fields)


def _check_pair(problems: Problems, data: dict[str, Any], chosen: Mapping[str, list[type[Section]]]) -> None:
    """Add a problem if the model does not support the method, also if other sections have problems."""
    try:
        model, method = (
            type(one).build(**one.options())  # type: ignore[misc]
            for key in ("model", "inference")
            for one in [chosen[key][0].model_validate_json(json.dumps(data[key]))]
        )
    except (ValidationError, IndexError):
        return
    from latentlab.inference.program import check_declaration

    try:
        check_declaration(model)
    except ModelError as error:
        problems.add(("model",), str(error))
        return
    if method.name not in model.methods:
        valid = ", ".join(model.methods)
        problems.add(("inference", "name"), f"the model {model.name!r} does not support {method.name!r}; supported: {valid}.")


def _check_labels(problems: Problems, data: dict[str, Any]) -> None:
    first_index: dict[str, int] = {}
    for (_, i), one in _sections(data, "embeddings"):
        label = (one.get("label") or one.get("name")) if isinstance(one, dict) else None
        if isinstance(label, str) and (label in DIMS or not label.strip() or set(label) & set("/\n\0")):
            names = ", ".join(sorted(DIMS))
            problems.add(("embeddings", i, "label"), f"must not be blank, contain '/', or be one of {names}; got {label!r}.")
        elif isinstance(label, str) and label in first_index:
            other = f"embeddings.{first_index[label]}"
            problems.add(("embeddings", i, "label"), f"{label!r} is also the label of {other}; set a different `label`.")
        elif isinstance(label, str):
            first_index[label] = int(i)


def _check_metrics(problems: Problems, data: dict[str, Any]) -> None:
    compare = data.get("compare")
    for option in ("metrics", "alignments"):
        names = compare.get(option) if isinstance(compare, dict) else None
        if not isinstance(names, list):
            continue
        if not names:
            problems.add(("compare", option), "the list must not be empty; remove the key to use the default.")
        for i, name in enumerate(names):
            if option == "metrics" and isinstance(name, str) and name not in registry.METRICS:
                problems.add(("compare", option, i), unknown("metric", name, registry.METRICS))
            if name in names[:i]:
                problems.add(("compare", option, i), f"{name!r} is listed twice.")


def _check_files(problems: Problems, data: dict[str, Any]) -> None:
    for key in TABLES:
        for where, one in _sections(data, key):
            path = one.get("path") if isinstance(one, dict) else None
            if isinstance(path, str) and not os.path.isfile(path):
                kind = "is a directory" if os.path.isdir(path) else "no such file"
                hint = "; `~` is expanded, but variables such as $HOME are not" if "$" in path else ""
                problems.add((*where, "path"), f"{path!r}: {kind}{hint}.")


# -- what is resolved


def _resolved(config: Config) -> Config:
    try:
        model = config.build_model()
        n_latent, of_labels = model.position_columns(), model.is_discrete
    except LatentLabError:  # the error is reported when the model is built for use
        n_latent, of_labels = None, False
    filled = []
    for one in config.embeddings:
        fits = n_latent is not None and (not of_labels or makes_clusters(one.name))  # type: ignore[attr-defined]
        known = {"label": one.name, "seed": config.seed}  # type: ignore[attr-defined]
        filled.append(_with(one, {**known, **({"n_latent": n_latent} if fits else {})}))
    return config.model_copy(update={"embeddings": tuple(filled), "compare": _with(config.compare, {"seed": config.seed})})


def _with(one: Section, values: Mapping[str, Any]) -> Section:
    """Return the section with these values for options that the config does not set, or sets to null."""
    fields = type(one).model_fields
    update = {k: v for k, v in values.items() if k in fields and (k not in one.model_fields_set or getattr(one, k) is None)}
    return one.model_copy(update=update)
