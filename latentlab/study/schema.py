"""The sections of a config as pydantic models, derived from the signatures of their entries.

No option and no default is defined here. A section's fields are the arguments of the entry's constructor or function, with their
types and ranges. For data sets, embeddings and the comparison, they also include the keyword arguments of the common call.
Options that raise an error in the constructor are errors of the config.
"""

import inspect
import re
import warnings
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, create_model, model_validator
from pydantic.errors import PydanticSchemaGenerationError
from pydantic_core import PydanticCustomError

from latentlab.errors import ConfigError, MissingDependencyError
from latentlab.registry import DATASETS, EMBEDDINGS, METHODS, MODELS, TRACKERS, Table, plugin_line, resolve
from latentlab.study.signature import keyword_only

TABLES: dict[str, Table] = {
    "dataset": DATASETS,
    "model": MODELS,
    "inference": METHODS,
    "embeddings": EMBEDDINGS,
    "tracking": TRACKERS,
}
"""Section -> table of the entries that its `name` selects from."""

COMMON = {
    "dataset": "latentlab.data.load:load_dataset",
    "embeddings": "latentlab.embeddings.embed:embed",
    "compare": "latentlab.comparison.compare:compare",
}
"""Section -> common call, whose keyword arguments are options of every entry."""

OWN = {
    "dataset": "latentlab.data.load:dataset_options",
    "embeddings": "latentlab.embeddings.embed:embedding_options",
}
"""Section -> function that returns the options of an entry, if they are not the arguments of its constructor."""

NEEDED = {"embeddings": {"n_latent": "n_latent", "seed": "seed", "n_seeds": "seed", "impute": "x"}}
"""Options of the common call that an entry has only if its function has the given argument."""

NOT_SETTINGS = frozenset({"progress", "rng"})
"""Keyword arguments that do not affect the results, or that are set by the run itself."""

STRICT = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)
"""Strict settings of pydantic: no unknown key, no text as a number, no true as 1, no NaN."""


class Section(BaseModel):
    """A section of a config: `name` selects an entry of a table (`compare` has none), the other fields are its options."""

    model_config = STRICT
    build: ClassVar[Callable[..., Any] | None] = None

    def options(self) -> dict[str, Any]:
        """Return the options by name, including defaults."""
        return {key: value for key, value in self if key != "name"}

    @model_validator(mode="after")
    def _built(self) -> "Section":
        problems = type(self)._constructor_errors(self.options(), self.model_fields_set)
        if problems:
            raise PydanticCustomError("constructor_error", "error of the constructor", {"problems": problems})
        return self

    @classmethod
    def _constructor_errors(cls, options: Mapping[str, Any], given: set[str]) -> list[tuple[str, str]]:
        """Return the constructor's errors as (option, message): for all options, and for each given option alone."""
        if cls.build is None or (first := _constructor_error(cls.build, options)) is None:
            return []
        required = {key for key, field in cls.model_fields.items() if field.is_required()}
        alone = [{k: v for k, v in options.items() if k in required | {key}} for key in sorted(given - {"name"})]
        messages = dict.fromkeys([first, *(m for one in alone if (m := _constructor_error(cls.build, one)) is not None)])
        return [(_option_of(message, options), message) for message in messages]


def _constructor_error(build: Callable[..., Any], options: Mapping[str, Any]) -> str | None:
    try:
        build(**options)
    except (ConfigError, MissingDependencyError) as error:
        return str(error)
    except Exception as error:
        line = plugin_line(error)
        return f"{type(error).__name__}: {error}{f' ({line})' if line else ''}"
    return None


def _option_of(message: str, options: Mapping[str, Any]) -> str:
    """Return the option that occurs first in a message; empty if there is none."""
    named = re.findall(r"\w+", message)
    return next((word for word in named if word in options), "")


def section(key: str, name: str | None = None) -> type[Section]:
    """Return the pydantic model of the section `key` for the entry `name`.

    Example:
        >>> sorted(section("inference", "exact").model_fields)
        ['n_draws', 'n_restarts', 'name']
    """
    return _section(key, name, None if name is None else TABLES[key].load(name))


@cache
def _section(key: str, name: str | None, entry: Any) -> type[Section]:
    fields: dict[str, Any] = {} if name is None else {"name": (Literal[name], ...)}
    for option, parameter in _parameters(key, name, entry).items():
        fields.setdefault(option, _field(parameter))
    title = "".join(word.capitalize() for word in f"{key} {name or ''}".replace("_", " ").split())
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Field name .* shadows an attribute", UserWarning)
        made = create_model(title, __base__=Section, __doc__=_summary(key, name), **fields)
    if key in ("model", "inference", "tracking"):
        made.build = entry
    return made


def _parameters(key: str, name: str | None, entry: Any) -> dict[str, inspect.Parameter]:
    specific = {} if name is None else resolve(OWN[key])(name) if key in OWN else _signature(entry)
    shared = keyword_only(COMMON[key]) if key in COMMON else {}
    if key in NEEDED:
        arguments = inspect.signature(TABLES[key].load(str(name))).parameters
        shared = {
            option: p for option, p in shared.items() if NEEDED[key].get(option, option) in arguments or option not in NEEDED[key]
        }
    return {
        option: parameter
        for option, parameter in {**shared, **specific}.items()
        if parameter.kind not in (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
        and option not in NOT_SETTINGS
        and not option.startswith("_")
        and _writable(parameter.default)
    }


def _signature(function: Any) -> dict[str, inspect.Parameter]:
    try:
        return dict(inspect.signature(function, eval_str=True).parameters)
    except NameError:
        return dict(inspect.signature(function).parameters)


def _writable(default: Any) -> bool:
    """Whether a config can contain the value; an argument with any other default is not an option."""
    if isinstance(default, list | tuple):
        return all(map(_writable, default))
    if isinstance(default, dict):
        return all(map(_writable, default.values()))
    return default is inspect.Parameter.empty or default is None or isinstance(default, bool | int | float | str)


def _field(parameter: inspect.Parameter) -> tuple[Any, Any]:
    default = ... if parameter.default is inspect.Parameter.empty else parameter.default
    annotation = parameter.annotation
    if annotation is inspect.Parameter.empty or isinstance(annotation, str) or not _known(annotation):
        annotation = Any
    return annotation, default


def _known(annotation: Any) -> bool:
    try:
        create_model("Probe", probe=(annotation, ...))
    except PydanticSchemaGenerationError:
        return False
    return True


def _summary(key: str, name: str | None) -> str:
    return "Options of the comparison." if name is None else TABLES[key].describe(name)
