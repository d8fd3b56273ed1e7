"""Text of calls of NumPy for nodes of a recorded graph, and the names of arrays and constants in it."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from latentlab.inference.exact_calls import Names


class ArrayText:
    """Text of arguments; `held` are the nodes whose values are arrays."""

    def __init__(self, names: Names) -> None:
        self.names = names
        self.held: set[Any] = set()
        self.numbers: dict[str, str] = {}

    def of(self, value: Any, node: Any = None) -> str:
        """Return the text of an argument; a number in a call with an array result is an array without dims."""
        if isinstance(value, torch.fx.Node):
            is_number = value.op == "get_attr" and node is not None and shape_of(node) and not shape_of(value)
            return f"{array_name(value)}_0" if is_number else array_name(value)
        if isinstance(value, int | float) and not isinstance(value, bool):
            if node is None or not shape_of(node):
                return repr(float(value)) if math.isfinite(value) else f"({float(value)!r})"
            key = float(value).hex()
            name = self.numbers.setdefault(key, f"number_{len(self.numbers)}")
            return self.constant(name, np.array(float(value)))
        raise ValueError(f"{value!r} is not an array")

    def constant(self, name: str, value: Any) -> str:
        """Return the name of a constant of the calls."""
        return self.names.of("np_" + "".join(c if c.isalnum() else "_" for c in name), value)

    def shaped(self, text: str, before: tuple[int, ...], after: tuple[int, ...]) -> str:
        """Return the text of an array in another shape."""
        if before == after:
            return text
        return f"{text}.reshape({after})" if after else f"{text}[{', '.join('0' * len(before))}]"


Rule = Callable[[Any, ArrayText], str | None]


def array_name(node: Any) -> str:
    """Return the name of the array of a node."""
    return f"{node.name}_a"


def shape_of(node: Any) -> tuple[int, ...]:
    """Return the shape of a node's result."""
    return tuple(node.meta["kind"][0])
