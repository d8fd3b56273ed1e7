"""Settings as annotated fields: hyper-parameters of models and options of methods and functions, with validation.

```python
@settings
class PPCA(LatentModel):
    n_latent: Count
    W_scale: NonNegative = 1.0
```

The fields are the arguments of the constructor, in this order. Their types and ranges are checked before `__post_init__`. The
config schema, the command line and the documentation use the same fields.
"""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, dataclass_transform, get_args, get_origin, get_type_hints

import numpy as np
from annotated_types import BaseMetadata, Ge, Gt, Le, Lt
from pydantic import BeforeValidator, ConfigDict, TypeAdapter, ValidationError

from latentlab.errors import ConfigError

Count = Annotated[int, Ge(1)]
"""A whole number of at least 1."""
Several = Annotated[int, Ge(2)]
"""A whole number of at least 2."""
Whole = Annotated[int, Ge(0)]
"""A whole number of at least 0."""
Positive = Annotated[float, Gt(0)]
"""A finite number above 0."""
NonNegative = Annotated[float, Ge(0)]
"""A finite number of at least 0."""
Fraction = Annotated[float, Gt(0), Lt(1)]
"""A number between 0 and 1, both excluded."""
Sizes = Annotated[tuple[Count, ...], BeforeValidator(lambda value: tuple(value) if isinstance(value, list) else value)]
"""Whole numbers of at least 1."""
Numbers = Annotated[list[float], BeforeValidator(lambda value: list(value) if isinstance(value, tuple) else value)]
"""Finite numbers."""
PositiveNumbers = Annotated[list[Positive], BeforeValidator(lambda value: list(value) if isinstance(value, tuple) else value)]
"""Finite numbers above 0."""

STRICT = ConfigDict(strict=True, allow_inf_nan=False, arbitrary_types_allowed=True)
"""Strict validation: no conversion of text or booleans to numbers; NaN and infinity are refused."""

T = TypeVar("T")
NUMBERS = {int: ("a whole number", "whole numbers"), float: ("a finite number", "finite numbers")}
WORDS = {bool: "true or false", str: "text", NoneType: "null"}


@dataclass_transform(eq_default=False)
def settings(cls: type[T]) -> type[T]:
    """Make the annotated fields of a class the checked arguments of its constructor.

    Raises:
        ConfigError: Raised by the constructor; names the class, the field, the required type and the value.
    """
    return _as_dataclass(cls, frozen=False)


@dataclass_transform(eq_default=True, frozen_default=True)
def frozen_settings(cls: type[T]) -> type[T]:
    """Apply `settings` with immutable instances, which are equal if their fields are equal."""
    return _as_dataclass(cls, frozen=True)


def _as_dataclass(cls: type[T], *, frozen: bool) -> type[T]:
    original_post_init = getattr(cls, "__post_init__", None)

    def __post_init__(self: Any) -> None:
        types = field_types(self.__class__)
        for name, value in checked(type(self).__name__, types, {name: getattr(self, name) for name in types}).items():
            object.__setattr__(self, name, value)
        if original_post_init is not None:
            original_post_init(self)

    cls.__post_init__ = __post_init__  # type: ignore[attr-defined]
    return dataclass(eq=frozen, frozen=frozen, repr=frozen)(cls)


@cache
def field_types(cls: Any) -> Mapping[str, Any]:
    """The types of a class's fields, ranges included, in their order."""
    types = {field.name: field.type for field in fields(cls)}
    if any(isinstance(kind, str) for kind in types.values()):
        hints = get_type_hints(cls, include_extras=True)
        return {name: hints[name] for name in types}
    return types


def checked(owner: str, types: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Check values against types; whole numbers become floats for float types, and NumPy numbers become Python numbers.

    Args:
        owner: Name of the class or function of the settings, for messages.
        types: Type of each value, with its range as annotation.
        values: The values by name.

    Raises:
        ConfigError: Names the first value that is of another type or out of its range.

    Example:
        >>> checked("PPCA", {"n_latent": Count, "W_scale": Positive}, {"n_latent": 2, "W_scale": 1})
        {'n_latent': 2, 'W_scale': 1.0}
    """
    result = {}
    for name, value in values.items():
        kind = types[name]
        plain = value.tolist() if isinstance(value, np.generic | np.ndarray) else value
        try:
            result[name] = _adapter(kind).validate_python(plain)
        except ValidationError as error:
            raise ConfigError(f"{owner}: `{name}` must be {described(kind)}; got {value!r}.") from error
    return result


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind, config=STRICT)


def described(kind: Any, ranges: Iterable[Any] = ()) -> str:
    """Describe the values of a type in words.

    Args:
        kind: A type, with its range as annotation.
        ranges: Further bounds (`Ge`, `Gt`, `Le`, `Lt`).

    Example:
        >>> described(Count | None), described(Literal["full", "tied"])
        ('a whole number of at least 1, or null', 'one of full, tied')
    """
    return _description(kind, tuple(ranges), plural=False)


def _description(kind: Any, ranges: tuple[Any, ...], *, plural: bool) -> str:
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _description(inner[0], (*inner[1:], *ranges), plural=plural)
    if origin in (Union, UnionType):
        parts = [_description(one, ranges, plural=plural) for one in inner]
        return ", or ".join(dict.fromkeys(parts))
    if origin is Literal:
        return f"one of {', '.join(map(str, inner))}"
    if origin in (tuple, list, Sequence) or kind in (tuple, list):
        of = _description(inner[0], (), plural=True) if inner else ""
        return f"a list of {of}" if of and not of.startswith("a ") else "a list"
    if kind in NUMBERS:
        return NUMBERS[kind][plural] + _bounds(ranges)
    if kind in WORDS:
        return WORDS[kind]
    if kind is Any:
        return "any value"
    return f"a {getattr(kind, '__name__', kind)}"


def _bounds(ranges: Sequence[Any]) -> str:
    words = []
    for bound in (one for one in ranges if isinstance(one, BaseMetadata)):
        for of, word in ((Ge, "of at least"), (Gt, "above"), (Le, "of at most"), (Lt, "below")):
            if isinstance(bound, of):
                words.append(f"{word} {getattr(bound, of.__name__.lower()):g}")
    return "".join(f" {word}" if i == 0 else f" and {word}" for i, word in enumerate(words))


def keyword_types(function: Callable[..., Any]) -> Mapping[str, Any]:
    """The types of a function's keyword-only arguments, ranges included."""
    hints = get_type_hints(inspect.unwrap(function), include_extras=True)
    keywords = [name for name, one in inspect.signature(function).parameters.items() if one.kind is one.KEYWORD_ONLY]
    return {name: hints.get(name, Any) for name in keywords}
