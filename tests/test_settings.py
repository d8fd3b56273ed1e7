"""Tests of settings as annotated fields, whose types and ranges are checked."""

import dataclasses
import inspect
from typing import Annotated, Literal

import numpy as np
import pytest
from annotated_types import Ge, Gt, Le

from latentlab.errors import ConfigError
from latentlab.registry import METHODS, MODELS
from latentlab.seeds import one_thread
from latentlab.settings import (
    Count,
    Fraction,
    NonNegative,
    Numbers,
    Positive,
    Several,
    Sizes,
    Whole,
    checked,
    described,
    frozen_settings,
    keyword_types,
    settings,
)


@settings
class Toy:
    n: Count
    scale: Positive | Numbers = 1.0
    kind: Literal["full", "tied"] = "full"
    sizes: Sizes = (8,)
    fixed: bool = False

    def __post_init__(self):
        self.twice = 2 * self.n


@frozen_settings
class Method:
    n: Whole = 0
    share: Fraction | None = None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"n": 0}, "Toy: `n` must be a whole number of at least 1; got 0."),
        ({"n": True}, "Toy: `n` must be a whole number of at least 1; got True."),
        ({"n": 2.0}, "Toy: `n` must be a whole number of at least 1; got 2.0."),
        ({"n": "2"}, "Toy: `n` must be a whole number of at least 1; got '2'."),
        ({"n": 2, "scale": 0}, "Toy: `scale` must be a finite number above 0, or a list of finite numbers; got 0."),
        ({"n": 2, "scale": np.nan}, "Toy: `scale` must be a finite number above 0, or a list of finite numbers; got nan."),
        ({"n": 2, "kind": "diagonal"}, "Toy: `kind` must be one of full, tied; got 'diagonal'."),
        ({"n": 2, "sizes": (3, 0)}, "Toy: `sizes` must be a list of whole numbers of at least 1; got (3, 0)."),
        ({"n": 2, "sizes": 3}, "Toy: `sizes` must be a list of whole numbers of at least 1; got 3."),
        ({"n": 2, "fixed": 1}, "Toy: `fixed` must be true or false; got 1."),
    ],
)
def test_values_of_wrong_type_or_range_are_refused_in_one_line(given, message):
    with pytest.raises(ConfigError) as caught:
        Toy(**given)
    assert str(caught.value) == message


def test_values_are_kept_as_python_numbers_of_their_type():
    toy = Toy(np.int64(3), np.float32(0.5), sizes=[4, 2])
    assert (toy.n, type(toy.n), toy.scale, type(toy.scale), toy.sizes, toy.twice) == (3, int, 0.5, float, (4, 2), 6)
    assert type(Toy(1, 2).scale) is float
    assert Toy(1, np.array([1.0, 2.0])).scale == Toy(1, (1, 2)).scale == [1.0, 2.0]


def test_messages_name_the_derived_class():
    class Derived(Toy):
        pass

    assert Derived(2).twice == 4
    with pytest.raises(ConfigError, match="Derived: `n` must be"):
        Derived(-1)


def test_frozen_settings_are_equal_by_value_and_cannot_be_changed():
    assert Method(1, 0.5) == Method(n=1, share=0.5) != Method(1)
    assert dataclasses.replace(Method(1), n=2) == Method(2)
    with pytest.raises(ConfigError, match="`share` must be a finite number above 0 and below 1, or null; got 1"):
        dataclasses.replace(Method(1), share=1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        Method().n = 3


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (Several, "a whole number of at least 2"),
        (NonNegative, "a finite number of at least 0"),
        (Annotated[float, Gt(0), Le(1)], "a finite number above 0 and of at most 1"),
        (Annotated[int, Ge(0)] | None, "a whole number of at least 0, or null"),
        (tuple[str, ...] | None, "a list of text, or null"),
        (list[dict], "a list"),
    ],
)
def test_descriptions_of_types(kind, words):
    assert described(kind) == words


def test_options_of_a_function_are_checked_by_its_annotations():
    @one_thread()
    def function(data, *, n: Count = 3, name: str = "x", plain=None):
        return data, n, name, plain

    assert checked("function", keyword_types(function), {"n": 4, "plain": set()}) == {"n": 4, "plain": set()}
    with pytest.raises(ConfigError, match="function: `n` must be a whole number of at least 1; got 0"):
        checked("function", keyword_types(function), {"n": 0, "name": "y"})


@pytest.mark.parametrize("table", [MODELS, METHODS], ids=lambda table: table.kind)
def test_models_and_methods_declare_settings_as_fields(table):
    for name in table:
        one = table.load(name)
        assert list(inspect.signature(one).parameters) == [field.name for field in dataclasses.fields(one)], name
