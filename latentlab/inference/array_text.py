"""Text of NumPy calls for nodes of a recorded graph: arguments and constants, views, and arrays from parts."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from latentlab.inference.array_functions import placed
from latentlab.inference.exact_calls import Names
from latentlab.inference.recorder import ATEN


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


# -- views


def reshaped(node: Any, calls: ArrayText) -> str:
    return calls.shaped(calls.of(node.args[0]), shape_of(node.args[0]), shape_of(node))


def same(node: Any, calls: ArrayText) -> str:
    return calls.of(node.args[0])


def expanded(node: Any, calls: ArrayText) -> str | None:
    """An array times ones is the same numbers in the larger shape."""
    shape = shape_of(node)
    if node.meta["kind"][1] is not torch.float64 or node.kwargs:
        return None
    if shape == shape_of(node.args[0]):
        return calls.of(node.args[0])
    return f"{calls.of(node.args[0])} * {calls.constant(f'ones_{shape}', np.ones(shape))}"


def permuted(node: Any, calls: ArrayText) -> str:
    x, *axes = node.args
    if node.target is ATEN.t.default:
        return f"{calls.of(x)}.T"
    if node.target is ATEN.transpose.int:
        return f"{calls.of(x)}.swapaxes({axes[0]}, {axes[1]})" if shape_of(x) else calls.of(x)
    return f"{calls.of(x)}.transpose({tuple(axes[0])})"


def _part(text: str, n_dims: int, axis: int, index: str) -> str:
    return f"{text}[{':, ' * (axis % n_dims)}{index}]"


def selected(node: Any, calls: ArrayText) -> str:
    x, axis, index = node.args
    return _part(calls.of(x), len(shape_of(x)), axis, str(index))


def sliced(node: Any, calls: ArrayText) -> str:
    x, axis, begin, end, step = (*node.args, *(0, None, None, 1)[len(node.args) - 1 :])[:5]
    bounds = [":".join("" if bound is None else str(bound) for bound in (begin, end))]
    return _part(calls.of(x), len(shape_of(x)), axis, ":".join([*bounds, str(step)] if step != 1 else bounds))


def diagonal(node: Any, calls: ArrayText) -> str:
    x, offset, first, second = (*node.args, *(0, 0, 1)[len(node.args) - 1 :])[:4]
    return f"{calls.of(x)}.diagonal({offset}, {first}, {second}).copy()"  # torch warns about NumPy's view, which is read-only


def flipped(node: Any, calls: ArrayText) -> str:
    n_dims = len(shape_of(node))
    axes = {axis % n_dims for axis in node.args[1]}
    return f"{calls.of(node.args[0])}[{', '.join('::-1' if axis in axes else ':' for axis in range(n_dims))}]"


def item(node: Any, calls: ArrayText) -> str | None:
    """Part of a result of several arrays; `unbind` and `split` return the whole array."""
    owner, i = node.args
    if owner not in calls.held:
        return None
    text = calls.of(owner)
    if owner.target is ATEN.unbind.int:
        return _part(text, len(shape_of(owner.args[0])), (*owner.args, 0)[1], str(i))
    if owner.target not in (ATEN.split.Tensor, ATEN.split_with_sizes.default):
        return f"{text}[{i}]"
    x, size, axis = (*owner.args, 0)[:3]
    n_before = i * size if isinstance(size, int) else sum(size[:i])
    n_dims = len(shape_of(x))
    return _part(text, n_dims, axis, f"{n_before}:{n_before + shape_of(node)[axis % n_dims]}")


# -- arrays from parts


def _placed(node: Any, calls: ArrayText, part: str, shape: tuple[int, ...], index: Any) -> str:
    where = calls.constant(f"index_{node.name}", index)
    return f"{calls.constant('placed', placed)}({part}, {shape}, {where})"


def slice_backward(node: Any, calls: ArrayText) -> str:
    part, shape, axis, begin, end, step = node.args
    index = (slice(None),) * (axis % len(shape)) + (slice(begin, end, step),)
    return _placed(node, calls, calls.of(part), tuple(shape), index)


def select_backward(node: Any, calls: ArrayText) -> str:
    part, shape, axis, i = node.args
    return _placed(node, calls, calls.of(part), tuple(shape), (slice(None),) * (axis % len(shape)) + (i,))


def diagonal_backward(node: Any, calls: ArrayText) -> str:
    part, shape, offset, first, second = node.args
    positions = np.arange(math.prod(shape)).reshape(shape).diagonal(offset, first, second)
    return f"{_placed(node, calls, calls.of(part), (math.prod(shape),), positions)}.reshape({tuple(shape)})"


def padded(node: Any, calls: ArrayText) -> str | None:
    x, pads, *fill = node.args
    if any(fill) or len(pads) > 2 * len(shape_of(x)):
        return None
    before, after = shape_of(x), shape_of(node)
    inner: list[slice] = [slice(None)] * len(after)
    outer: list[slice] = [slice(None)] * len(after)
    for i in range(len(pads) // 2):
        axis, begin, end = len(after) - 1 - i, pads[2 * i], pads[2 * i + 1]
        inner[axis] = slice(max(-begin, 0), before[axis] - max(-end, 0))
        outer[axis] = slice(max(begin, 0), after[axis] - max(end, 0))
    part = f"{calls.of(x)}[{calls.constant(f'inner_{node.name}', tuple(inner))}]"
    return part if all(pad <= 0 for pad in pads) else _placed(node, calls, part, after, tuple(outer))


def joined(node: Any, calls: ArrayText) -> str | None:
    parts, axis = (*node.args, 0)[:2]
    texts = "".join(f"{calls.of(part)}, " for part in parts if math.prod(shape_of(part)) or len(shape_of(part)) > 1)
    if not texts:
        return None
    return f"{calls.constant('concatenate', np.concatenate)}(({texts}), {axis})"


def stacked(node: Any, calls: ArrayText) -> str:
    parts, axis = (*node.args, 0)[:2]
    shape = shape_of(parts[0])
    if not shape:
        return f"{calls.constant('array', np.array)}(({''.join(f'{calls.of(part)}, ' for part in parts)}))"
    at = axis % (len(shape) + 1)
    new = (*shape[:at], 1, *shape[at:])
    return f"{calls.constant('concatenate', np.concatenate)}(({''.join(f'{calls.of(p)}.reshape({new}), ' for p in parts)}), {at})"


def copied(node: Any, calls: ArrayText) -> str:
    return f"{calls.of(node.args[0])}.copy()" if shape_of(node) else calls.of(node.args[0])


def indexed(node: Any, calls: ArrayText) -> str | None:
    x, indices = node.args
    if any(one is not None and one.op != "get_attr" for one in indices):
        return None
    return f"{calls.of(x)}[{', '.join(':' if one is None else calls.of(one) for one in indices)}]"


def taken(node: Any, calls: ArrayText) -> str | None:
    x, axis, index = node.args
    return f"{calls.of(x)}.take({calls.of(index)}, {axis})" if index.op == "get_attr" and shape_of(x) else None


def triangle(function: Callable[..., np.ndarray]) -> Rule:
    def rule(node: Any, calls: ArrayText) -> str:
        mask = calls.constant(f"mask_{node.name}", function(np.ones(shape_of(node), dtype=bool), *node.args[1:]))
        return f"{calls.constant('where', np.where)}({mask}, {calls.of(node.args[0])}, {calls.of(0.0, node)})"

    return rule
