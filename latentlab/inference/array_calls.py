"""NumPy calls that run operations on small arrays: a call of NumPy takes a third of the time of one of torch, a view a tenth.

The results differ from torch's in the last digits only. Each rule maps a node of a recorded graph to the text of its call, or to
None for arguments that it does not know; torch then runs the operation. An array without dims is a NumPy scalar.
"""

import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from scipy import special

from latentlab.distributions.kernels import KERNELS
from latentlab.inference import array_functions as functions
from latentlab.inference import array_text as views
from latentlab.inference.array_text import ArrayText, Rule, shape_of
from latentlab.inference.exact_calls import Names
from latentlab.inference.graph import RecordedGraph, nan_if_failed
from latentlab.inference.recorder import ATEN

ENTRIES, FUNCTION_ENTRIES, PRODUCTS, VECTOR_PRODUCTS = 16_000, 1000, 32_000, 8000
"""Largest numbers for which NumPy is used: entries of an array, entries of the argument of a function such as `exp`, and
multiplications of a product of matrices, and of one with a vector. Torch is faster for more, and NumPy may use threads."""
KINDS = (torch.float64, torch.bool)
LOGICAL: dict[str, Any] = {name: getattr(np, name) for name in ("isnan", "logical_not", "logical_and", "logical_or")}
ARITHMETIC: dict[str, Any] = {name: getattr(np, name) for name in ("sqrt", "abs", "maximum", "minimum", "reciprocal")}
TRANSCENDENTAL: dict[str, Any] = {
    **{name: getattr(np, name) for name in ("exp", "expm1", "log", "log1p", "sin", "cos", "tanh")},
    **{"sigmoid": special.expit, "erf": special.erf, "erfinv": special.erfinv, "xlogy": special.xlogy},
    **{"lgamma": special.gammaln, "digamma": special.psi},
}
FUNCTIONS = {**LOGICAL, **ARITHMETIC, **TRANSCENDENTAL}
OPERATORS = {"add": "+", "sub": "-", "mul": "*", "div": "/", "eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
REDUCTIONS = {"sum": np.add.reduce, "amax": np.maximum.reduce, "amin": np.minimum.reduce, "prod": np.multiply.reduce}


class ArrayCalls(ArrayText):
    """Texts of NumPy calls; `held` are the nodes whose values are arrays, named as their node with `_a`."""

    def __init__(self, names: Names, recorded: RecordedGraph) -> None:
        super().__init__(names)
        nodes, root = list(recorded.graph.nodes), recorded.root
        self.sparse = {n for n in nodes if n.op == "get_attr" and getattr(root, n.target).layout is not torch.strided}
        operations = [node for node in nodes if node.op == "call_function"]
        is_changed = any(node.target._schema.is_mutable for node in operations if hasattr(node.target, "_schema"))
        self.is_on = names.device == "cpu" and not is_changed

    def call_of(self, node: Any) -> str | None:
        """Return the text of the NumPy call of a node; None if torch runs the node."""
        rule = _kernel if node.target in KERNELS else RULES.get(node.target)
        if not self.is_on or rule is None or not self._is_small(node) or self.sparse.intersection(node.all_input_nodes):
            return None
        text = rule(node, self)
        if text is not None:
            self.held.add(node)
            self.names.methods[ATEN.view.default] = "reshape"  # torch has no view of arrays with some strides
        return text

    def _is_small(self, node: Any) -> bool:
        if node.target in KERNELS or node.target in (operator.getitem, nan_if_failed):
            return True
        kinds = [used.meta.get("kind") for used in node.all_input_nodes]
        if "kind" in node.meta:
            if node.meta["kind"][1] is torch.bool and node.target not in _TRUE_OR_FALSE:
                return False
            kinds.append(node.meta["kind"])
        elif node.target not in _SEVERAL:
            return False
        most = FUNCTION_ENTRIES if node.target in _SLOW else ENTRIES
        known = (*KINDS, torch.int64) if node.target in _INDEXED else KINDS
        return all(kind is not None and kind[1] in known and math.prod(kind[0]) <= most for kind in kinds)


def _plain(node: Any, n: int) -> bool:
    return len(node.args) == n and not node.kwargs


def _function(name: str) -> Rule:
    def rule(node: Any, calls: ArrayText) -> str | None:
        if node.kwargs or any(one.meta["kind"][1] is torch.bool and name not in LOGICAL for one in node.all_input_nodes):
            return None
        function = calls.constant(name, FUNCTIONS[name])
        return f"{function}({', '.join(calls.of(argument, node) for argument in node.args)})"

    return rule


def _operator(name: str) -> Rule:
    def rule(node: Any, calls: ArrayText) -> str | None:
        if not _plain(node, 2) or not any(one.meta["kind"][1] is torch.float64 for one in node.all_input_nodes):
            return None
        return f" {OPERATORS[name]} ".join(calls.of(one, node) for one in node.args)

    return rule


def _subtracted_from(node: Any, calls: ArrayText) -> str | None:
    return f"{calls.of(node.args[1], node)} - {calls.of(node.args[0])}" if _plain(node, 2) else None


def _negative(node: Any, calls: ArrayText) -> str | None:
    return f"-{calls.of(node.args[0])}" if node.meta["kind"][1] is torch.float64 else None


def _reciprocal_root(node: Any, calls: ArrayText) -> str:
    root = f"{calls.constant('sqrt', np.sqrt)}({calls.of(node.args[0])})"
    return f"{calls.constant('reciprocal', np.reciprocal)}({root})"


def _power(node: Any, calls: ArrayText) -> str | None:
    if not _plain(node, 2) or node.all_input_nodes[0].meta["kind"][1] is not torch.float64:
        return None
    x, exponent = calls.of(node.args[0]), node.args[1]
    if exponent in (2, 3):
        return " * ".join([x] * exponent if isinstance(exponent, int) else [x] * int(exponent))
    if exponent in (0.5, -0.5):
        root = f"{calls.constant('sqrt', np.sqrt)}({x})"
        return root if exponent > 0 else f"{calls.constant('reciprocal', np.reciprocal)}({root})"
    if exponent == -1:
        return f"{calls.constant('reciprocal', np.reciprocal)}({x})"
    return f"{calls.constant('power', np.power)}({x}, {calls.of(exponent, node)})"


def _clamped(node: Any, calls: ArrayText) -> str | None:
    bounds: dict[str, Any] = dict(zip(("min", "max"), node.args[1:], strict=False)) | dict(node.kwargs)
    if node.target is ATEN.clamp_max.default:
        bounds = {"max": node.args[1]}
    text = calls.of(node.args[0])
    for name, function in (("min", "maximum"), ("max", "minimum")):
        if bounds.get(name) is not None:
            text = f"{calls.constant(function, FUNCTIONS[function])}({text}, {calls.of(bounds[name], node)})"
    return text


def _chosen(node: Any, calls: ArrayText) -> str:
    mask, first, second = (calls.of(one, node) for one in node.args)
    shapes = [shape_of(one) if isinstance(one, torch.fx.Node) else () for one in node.args]
    if not shapes[0] and shapes[1] == shapes[2] == shape_of(node):
        return f"{first} if {mask} else {second}"
    return f"{calls.constant('where', np.where)}({mask}, {first}, {second})"


def _filled(node: Any, calls: ArrayText) -> str:
    x, mask, value = node.args
    return f"{calls.constant('where', np.where)}({calls.of(mask)}, {calls.of(value, node)}, {calls.of(x)})"


def _reduced(name: str) -> Rule:
    def rule(node: Any, calls: ArrayText) -> str | None:
        x, *rest = node.args
        if node.kwargs or x.meta["kind"][1] is not torch.float64:
            return None
        axes, keep = (*rest, None, False)[:2] if len(rest) < 2 else rest[:2]
        if not shape_of(x):
            return calls.of(x)
        axis = None if axes is None or axes == [] else tuple(axes) if isinstance(axes, list | tuple) else axes
        if isinstance(axis, tuple) and len(axis) == 1:
            axis = axis[0]
        is_product = len(shape_of(x)) - len(shape_of(node)) == 1 and math.prod(shape_of(x)) <= VECTOR_PRODUCTS
        if name == "sum" and is_product and len(shape_of(x)) < 3:
            return _summed(x, axis, calls)
        reduce = calls.constant(f"{name}_reduce", REDUCTIONS[name])
        return f"{reduce}({calls.of(x)}, {axis}{', keepdims=True' if keep else ''})"

    return rule


def _summed(x: Any, axis: Any, calls: ArrayText) -> str:
    """Sum over one axis of a vector or matrix as a product with ones, which takes half the time of a sum."""
    shape = shape_of(x)
    at = 0 if axis is None else axis % len(shape)
    ones = calls.constant(f"ones_{shape[at]}", np.ones(shape[at]))
    return f"{ones}.dot({calls.of(x)})" if at == 0 else f"{calls.of(x)}.dot({ones})"


def _mean(node: Any, calls: ArrayText) -> str | None:
    text = _reduced("sum")(node, calls)
    n = math.prod(shape_of(node.args[0])) // max(math.prod(shape_of(node)), 1)
    return None if text is None or not n else f"{text} / {calls.of(n, node)}"


def _accumulated(node: Any, calls: ArrayText) -> str | None:
    x, axis = node.args[:2]
    if node.kwargs or not shape_of(x) or x.meta["kind"][1] is not torch.float64:
        return None
    return f"{calls.constant('cumsum', np.add.accumulate)}({calls.of(x)}, {axis})"


def _product(node: Any, calls: ArrayText) -> str | None:
    """Matrix product of the last two arguments, plus the first of three."""
    *added, left, right = node.args
    rows = math.prod(shape_of(left))
    n_columns = shape_of(right)[-1] if len(shape_of(right)) > 1 else 1
    most = PRODUCTS if len(shape_of(right)) > 1 else VECTOR_PRODUCTS
    if node.kwargs or rows * n_columns > most:
        return None
    a, b = calls.of(left), calls.of(right)
    text = f"{a}.dot({b})" if len(shape_of(left)) < 3 else f"{calls.constant('matmul', np.matmul)}({a}, {b})"
    return f"{calls.of(added[0])} + {text}" if added else text


def _called(function: Callable[..., Any], n_arrays: int = 1) -> Rule:
    """Call of a function with the arrays of a node, and the next argument, an axis."""

    def rule(node: Any, calls: ArrayText) -> str | None:
        arrays = ", ".join(calls.of(one) for one in node.args[:n_arrays])
        if not all(shape_of(one) for one in node.args[:n_arrays]):
            return None
        return f"{calls.constant(function.__name__, function)}({arrays}, {node.args[n_arrays]})"

    return rule


def _log_sigmoid(node: Any, calls: ArrayText) -> str:
    return f"{calls.constant('log_sigmoid', functions.log_sigmoid)}({calls.of(node.args[0])})"


def _log_sigmoid_backward(node: Any, calls: ArrayText) -> str:
    gradient, x = node.args[:2]
    return f"{calls.of(gradient)} * {calls.constant('sigmoid', special.expit)}(-{calls.of(x)})"


def _tanh_backward(node: Any, calls: ArrayText) -> str:
    gradient, y = (calls.of(one) for one in node.args)
    return f"{gradient} * ({calls.of(1.0, node)} - {y} * {y})"


def _sigmoid_backward(node: Any, calls: ArrayText) -> str:
    gradient, y = (calls.of(one) for one in node.args)
    return f"{gradient} * ({calls.of(1.0, node)} - {y}) * {y}"


def _log_softmax_backward(node: Any, calls: ArrayText) -> str | None:
    gradient, result, axis = node.args[:3]
    if not shape_of(result):
        return None
    exp, total = calls.constant("exp", np.exp), calls.constant("sum_reduce", np.add.reduce)
    return f"{calls.of(gradient)} - {exp}({calls.of(result)}) * {total}({calls.of(gradient)}, {axis}, keepdims=True)"


def _softmax_backward(node: Any, calls: ArrayText) -> str | None:
    gradient, result, axis = node.args[:3]
    if not shape_of(result):
        return None
    g, y, total = calls.of(gradient), calls.of(result), calls.constant("sum_reduce", np.add.reduce)
    return f"{y} * ({g} - {total}({g} * {y}, {axis}, keepdims=True))"


def _log_sum_exp(node: Any, calls: ArrayText) -> str | None:
    x, axes, keep = (*node.args, False)[:3]
    if not shape_of(x):
        return None
    return f"{calls.constant('log_sum_exp', functions.log_sum_exp)}({calls.of(x)}, {tuple(axes)}, keep={keep})"


def _cholesky(node: Any, calls: ArrayText) -> str | None:
    if len(shape_of(node.args[0])) != 2 or len(node.args) > 1 or any(node.kwargs.values()):
        return None
    return f"{calls.constant('cholesky', functions.cholesky)}({calls.of(node.args[0])})"


def _solved(node: Any, calls: ArrayText) -> str | None:
    """Solution of A X = B, or of X A = B by transposes, with a triangular matrix A."""
    a, b = node.args
    options = {"upper": False, "left": True, "unitriangular": False} | dict(node.kwargs)
    if len(shape_of(a)) != 2 or len(shape_of(b)) != 2 or 0 in (*shape_of(a), *shape_of(b)):
        return None
    solve, unit, lower = calls.constant("solved", functions.solved), int(options["unitriangular"]), int(not options["upper"])
    if options["left"]:
        return f"{solve}({calls.of(a)}, {calls.of(b)}, {lower}, 0, {unit})"
    return f"{solve}({calls.of(a)}, {calls.of(b)}.T, {lower}, 1, {unit}).T"


def _masked(node: Any, calls: ArrayText) -> str | None:
    result, info, _ = node.args
    if result not in calls.held or info not in calls.held:
        return None
    return f"{calls.constant('masked_array', functions.masked_array)}({calls.of(result)}, {calls.of(info)})"


def _kernel(node: Any, calls: ArrayText) -> str:
    return f"{calls.constant(node.target.__name__, KERNELS[node.target])}({', '.join(calls.of(one) for one in node.args)})"


RULES: Mapping[Any, Rule] = {
    **{getattr(ATEN, name).default: _function(name) for name in FUNCTIONS if name != "xlogy"},
    **{getattr(getattr(ATEN, name), kind): _operator(name) for name in OPERATORS for kind in ("Tensor", "Scalar")},
    **{getattr(ATEN, name).default: _reduced(name) for name in ("sum", "amax", "amin", "prod")},
    **{op: _product for op in (ATEN.mm.default, ATEN.bmm.default, ATEN.mv.default, ATEN.dot.default)},
    **{op: _product for op in (ATEN.addmm.default, ATEN.baddbmm.default, ATEN.addmv.default)},
    **{op: views.reshaped for op in (ATEN.view.default, ATEN._unsafe_view.default, ATEN.unsqueeze.default)},
    **{op: views.reshaped for op in (ATEN.squeeze.dim, ATEN.squeeze.default, ATEN.squeeze.dims)},
    **{op: views.same for op in (ATEN.unbind.int, ATEN.split.Tensor)},
    **{op: views.permuted for op in (ATEN.permute.default, ATEN.transpose.int, ATEN.t.default)},
    **{op: _clamped for op in (ATEN.clamp.default, ATEN.clamp_min.default, ATEN.clamp_max.default)},
    ATEN.split_with_sizes.default: views.same,
    ATEN.xlogy.Tensor: _function("xlogy"),
    ATEN.rsub.Scalar: _subtracted_from,
    ATEN.neg.default: _negative,
    ATEN.rsqrt.default: _reciprocal_root,
    ATEN.pow.Tensor_Scalar: _power,
    ATEN.where.self: _chosen,
    ATEN.masked_fill.Scalar: _filled,
    ATEN.sum.dim_IntList: _reduced("sum"),
    ATEN.prod.dim_int: _reduced("prod"),
    ATEN.mean.default: _mean,
    ATEN.mean.dim: _mean,
    ATEN.cumsum.default: _accumulated,
    ATEN.expand.default: views.expanded,
    ATEN.select.int: views.selected,
    ATEN.slice.Tensor: views.sliced,
    ATEN.diagonal.default: views.diagonal,
    ATEN.flip.default: views.flipped,
    operator.getitem: views.item,
    ATEN.slice_backward.default: views.slice_backward,
    ATEN.select_backward.default: views.select_backward,
    ATEN.diagonal_backward.default: views.diagonal_backward,
    ATEN.constant_pad_nd.default: views.padded,
    ATEN.cat.default: views.joined,
    ATEN.stack.default: views.stacked,
    ATEN.clone.default: views.copied,
    ATEN.index.Tensor: views.indexed,
    ATEN.index_select.default: views.taken,
    ATEN.tril.default: views.triangle(np.tril),
    ATEN.triu.default: views.triangle(np.triu),
    ATEN.log_sigmoid_forward.default: _log_sigmoid,
    ATEN.log_sigmoid_backward.default: _log_sigmoid_backward,
    ATEN.tanh_backward.default: _tanh_backward,
    ATEN.sigmoid_backward.default: _sigmoid_backward,
    ATEN._log_softmax.default: _called(functions.log_softmax),
    ATEN._softmax.default: _called(functions.softmax),
    ATEN._log_softmax_backward_data.default: _log_softmax_backward,
    ATEN._softmax_backward_data.default: _softmax_backward,
    ATEN.logsumexp.default: _log_sum_exp,
    ATEN.linalg_cholesky_ex.default: _cholesky,
    ATEN.linalg_solve_triangular.default: _solved,
    nan_if_failed: _masked,
}
_SLOW = {
    *(getattr(ATEN, name).default for name in TRANSCENDENTAL if name != "xlogy"),
    *(ATEN.xlogy.Tensor, ATEN.pow.Tensor_Scalar, ATEN.logsumexp.default, ATEN._softmax.default, ATEN._log_softmax.default),
    *(ATEN._log_softmax_backward_data.default, ATEN.log_sigmoid_forward.default, ATEN.log_sigmoid_backward.default),
}
"""Operations with exponentials and the like, for which `FUNCTION_ENTRIES` is the limit."""
_TRUE_OR_FALSE = {
    *(op for op, rule in RULES.items() if rule in (views.reshaped, views.permuted, views.selected, views.sliced, views.same)),
    *(getattr(ATEN, name).default for name in LOGICAL),
    *(getattr(getattr(ATEN, n), kind) for n in ("eq", "ne", "lt", "le", "gt", "ge") for kind in ("Tensor", "Scalar")),
}
"""Operations whose result may consist of truth values."""
_SEVERAL = {
    *(ATEN.unbind.int, ATEN.split.Tensor, ATEN.split_with_sizes.default),
    *(ATEN.log_sigmoid_forward.default, ATEN.linalg_cholesky_ex.default),
}
"""Operations with several results."""
_INDEXED = (ATEN.index.Tensor, ATEN.index_select.default)
"""Operations with whole numbers among their arguments."""
