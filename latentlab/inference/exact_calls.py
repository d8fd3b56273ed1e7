"""The fastest Python call that runs exactly a given ATEN operation.

A call of `torch.ops.aten` costs about twice as much as one of a function of torch or a method of a tensor, since it matches its
arguments to a schema. Only operations whose arguments have the same order and form in both are listed. All others are called by
their ATEN overload.
"""

import math
import operator
from collections.abc import Callable
from typing import Any

import torch

from latentlab.inference.recorder import ATEN, KEPT

FLOAT64 = torch.float64
_BINARY = ("add.Tensor", "sub.Tensor", "mul.Tensor", "div.Tensor")
_FUNCTIONS = (
    *_BINARY,
    *(f"{name}.Scalar" for name in ("add", "sub", "mul", "div")),
    *(f"{name}.{kind}" for name in ("eq", "ne", "lt", "le", "gt", "ge") for kind in ("Scalar", "Tensor")),
    *("neg", "abs", "sign", "exp", "expm1", "log", "log1p", "sqrt", "rsqrt", "reciprocal", "sin", "cos", "tanh", "sigmoid"),
    *("erf", "erfinv", "lgamma", "digamma", "relu", "isfinite", "isnan", "logical_not", "logical_and", "logical_or"),
    *("bitwise_not", "bitwise_and.Tensor", "bitwise_or.Tensor", "maximum", "minimum", "xlogy.Tensor"),
    *("pow.Tensor_Scalar", "pow.Tensor_Tensor", "pow.Scalar", "clamp", "clamp_min", "clamp_max"),
    *("sum", "sum.dim_IntList", "mean", "mean.dim", "amax", "amin", "logsumexp", "cumsum", "prod", "prod.dim_int"),
    *("mm", "bmm", "mv", "dot", "addmm", "baddbmm", "addmv", "stack", "cat", "where.self", "gather", "index_select"),
    *("tril", "triu", "flip", "roll", "_softmax", "_log_softmax", "convolution", "native_layer_norm", "native_group_norm"),
    *("embedding", "constant_pad_nd", "addcmul", "addcdiv", "lerp.Scalar", "masked_fill.Scalar", "clone", "_sparse_mm"),
    *("zeros_like", "ones_like", "cholesky_inverse", "linalg_cross"),
)
_METHODS = (
    *("view", "expand", "permute", "unsqueeze", "squeeze", "squeeze.dim", "select.int", "transpose.int", "t", "detach"),
    *("unbind.int", "diagonal", "split.Tensor", "split_with_sizes", "alias"),
)
_UNPACKED = ("view", "reshape", "expand", "permute")
"""Methods that take the entries of their list as separate arguments, which is faster than a list."""


def _overload(name: str) -> Any:
    """Return the ATEN overload of a name such as 'add.Tensor'; the default overload has no second part."""
    packet, _, kind = name.partition(".")
    return getattr(getattr(ATEN, packet), kind or "default")


FUNCTIONS: dict[Any, Any] = {
    _overload(name): getattr(torch, name.partition(".")[0]) for name in _FUNCTIONS if hasattr(torch, name.partition(".")[0])
}
METHODS: dict[Any, str] = {
    _overload(name): name.partition(".")[0] for name in _METHODS if hasattr(torch.Tensor, name.partition(".")[0])
}


class Names:
    """Names of the values that generated code uses, `values`: functions, constants and numbers."""

    def __init__(self, device: str = "cpu") -> None:
        self.device = device
        self.methods = dict(METHODS)
        self.values: dict[str, Any] = {"inf": math.inf, "nan": math.nan}
        self._numbers: dict[str, str] = {}

    def of(self, name: str, value: Any) -> str:
        """Return the name, which stands for this value."""
        self.values[name] = value
        return name

    def number(self, value: float) -> str:
        """Return the name of a number as a tensor without dims: torch would make this tensor in every call."""
        key = float(value).hex()
        if key not in self._numbers:
            self._numbers[key] = self.of(f"number_{len(self._numbers)}", torch.tensor(float(value), dtype=FLOAT64))
        return self._numbers[key]

    def literal(self, value: Any, *, as_list: bool = False) -> str:
        """Return the text of an argument; a list becomes a tuple, unless `as_list`."""
        if isinstance(value, torch.fx.Node):
            return value.name
        if isinstance(value, list | tuple):
            items = [self.literal(item, as_list=as_list) for item in value]
            return f"[{', '.join(items)}]" if as_list else f"({', '.join(items)}{',' * (len(items) == 1)})"
        if isinstance(value, torch.device):
            return self.of(f"device_{str(value).replace(':', '_')}", value)
        if isinstance(value, torch.dtype | torch.layout | torch.memory_format):
            return self.of(str(value).removeprefix("torch."), value)
        if value is None or isinstance(value, bool | int | float | complex | str):
            return repr(value)
        raise ValueError(f"it has an argument of type {type(value).__name__}")


def call_of(node: torch.fx.Node, names: Names) -> str:
    """Return the text of the fastest call that runs exactly the operation of a node.

    Raises:
        ValueError: An argument has no text.
    """
    target: Any = node.target
    rule = _RULES.get(target)
    text = rule(node, names) if rule else None
    if text is not None:
        return text
    if target in METHODS and isinstance(node.args[0], torch.fx.Node):
        return _method(node, names)
    exact = target in FUNCTIONS
    schema = getattr(target, "_schema", None)
    if exact:
        name = names.of(target.__name__.partition(".")[0], FUNCTIONS[target])
    elif schema is None:
        name = names.of(f"function_{target.__name__}", target)
    else:
        name = names.of(str(target).replace(".", "_"), getattr(target, "_op", target))
    given = [names.literal(argument, as_list=not exact) for argument in node.args]
    named = [f"{key}={names.literal(value, as_list=not exact)}" for key, value in node.kwargs.items()]
    return f"{name}({', '.join([*given, *named])})"


def _method(node: Any, names: Names) -> str:
    name = names.methods[node.target]
    owner, *rest = node.args
    if name in _UNPACKED and rest and rest[0] and not node.kwargs:
        given = [names.literal(item) for item in rest[0]]
    else:
        given = [names.literal(argument) for argument in rest]
    named = [f"{key}={names.literal(value)}" for key, value in node.kwargs.items()]
    return f"{owner.name}.{name}({', '.join([*given, *named])})"


def is_float64(value: Any) -> bool:
    """Whether an argument is a tensor of dtype float64."""
    return isinstance(value, torch.fx.Node) and value.meta.get("kind", (None, None))[1] is FLOAT64


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and (isinstance(value, float) or abs(value) < 2**53)


def _with_number(node: Any, names: Names) -> str | None:
    """Call with a number: torch would convert it to a tensor in every call."""
    if len(node.args) != 2 or node.kwargs or not is_float64(node.args[0]) or not _is_number(node.args[1]):
        return None
    name = node.target.__name__.partition(".")[0]
    return f"{names.of(name, getattr(torch, name))}({node.args[0].name}, {names.number(node.args[1])})"


def _number_minus(node: Any, names: Names) -> str | None:
    if len(node.args) != 2 or node.kwargs or not is_float64(node.args[0]) or not _is_number(node.args[1]):
        return None
    return f"{names.of('sub', torch.sub)}({names.number(node.args[1])}, {node.args[0].name})"


def _between(node: Any, names: Names, part: str, axis: int, begin: int, end: int, fill: float = 0.0) -> str | None:
    """Write a part of a tensor of equal numbers as a concatenation, which is faster than filling a new tensor."""
    shape, dtype = node.meta.get("kind", ((), None))
    if math.prod(shape) > KEPT or not shape:
        return None
    axis %= len(shape)

    def block(n: int) -> list[str]:
        own = (*shape[:axis], n, *shape[axis + 1 :])
        name = f"full_{'_'.join(map(str, own))}_{str(dtype).removeprefix('torch.')}_{names.number(fill)}"
        return [names.of(name, torch.full(own, fill, dtype=dtype, device=names.device))] if n else []

    parts = [*block(begin), part, *block(shape[axis] - end)]
    return f"{names.of('cat', torch.cat)}(({', '.join(parts)},), {axis})"


def _slice_backward(node: Any, names: Names) -> str | None:
    gradient, sizes, axis, begin, end, step = node.args
    n = sizes[axis]
    begin, end = (min(bound + n if bound < 0 else bound, n) for bound in (begin, end))
    return _between(node, names, gradient.name, axis, begin, end) if step == 1 and 0 <= begin < end else None


def _select_backward(node: Any, names: Names) -> str | None:
    gradient, sizes, axis, index = node.args
    axis, index = axis % len(sizes), index % sizes[axis]
    return _between(node, names, f"{gradient.name}.unsqueeze({axis})", axis, index, index + 1)


def _padded(node: Any, names: Names) -> str | None:
    x, pads, *fill = node.args
    if len(pads) != 2 or min(pads) < 0 or not any(pads) or "kind" not in node.meta:
        return None
    n = node.meta["kind"][0][-1]
    return _between(node, names, x.name, -1, pads[0], n - pads[1], float(*fill))


def _item(node: Any, names: Names) -> str:
    return f"{node.args[0].name}[{node.args[1]}]"


def _slice(node: Any, names: Names) -> str | None:
    """Call of `slice` by indexing."""
    owner, axis, begin, end, *step = (*node.args, *(0, None, None)[len(node.args) - 1 :])[:5]
    if not isinstance(owner, torch.fx.Node) or step not in ([], [1]) or node.kwargs or "kind" not in owner.meta:
        return None
    n_dims = len(owner.meta["kind"][0])
    before = ":, " * (axis % n_dims)
    begin_, end_ = ("" if bound is None else str(bound) for bound in (begin, end))
    return f"{owner.name}[{before}{begin_}:{end_}]"


_RULES: dict[Any, Callable[[Any, Names], str | None]] = {
    **{_overload(name): _with_number for name in _BINARY},
    **{_overload(f"{name}.Scalar"): _with_number for name in ("add", "sub", "mul", "div", "eq", "ne", "lt", "le", "gt", "ge")},
    ATEN.rsub.Scalar: _number_minus,
    ATEN.slice.Tensor: _slice,
    ATEN.slice_backward.default: _slice_backward,
    ATEN.select_backward.default: _select_backward,
    ATEN.constant_pad_nd.default: _padded,
    operator.getitem: _item,
}
