"""Operations that change a tensor in place, and the memory that results share."""

import operator
from typing import Any

import torch

from latentlab.inference.recorder import ATEN, SAME

ENTRYWISE = (
    *("add", "sub", "mul", "div", "clamp", "relu", "exp", "neg", "sigmoid", "tanh", "elu", "leaky_relu", "silu"),
    *("masked_fill", "fill", "zero", "copy", "index_put", "scatter"),
)
"""Operations whose form in place keeps the dtype of the first argument, if all numbers have the same."""
LOGICAL = ("logical_and", "logical_or", "logical_not", "bitwise_and", "bitwise_or", "bitwise_not", "masked_fill", "scatter")


RENAMED = {
    ATEN.transpose_.default: ATEN.transpose.int,
    ATEN.t_.default: ATEN.t.default,
    ATEN.unsqueeze_.default: ATEN.unsqueeze.default,
    ATEN.squeeze_.dim: ATEN.squeeze.dim,
}
"""Operations that change the shape of a tensor, but not its memory, and the views that they are."""
OVERLAPPING = (ATEN.unfold.default, ATEN.expand.default, ATEN.as_strided.default)
"""Views with several entries at one place in memory."""
UNSAFE = (ATEN.unsafe_split.Tensor, ATEN.unsafe_split_with_sizes.default)
"""Views whose schema does not say so."""


def without_changes(graph: Any) -> bool:
    """Replace operations in place by the same ones with a new result, where the changed memory has no other name later.

    Returns whether no operation in place is left.
    """
    order = {node: i for i, node in enumerate(graph.nodes)}
    owners: dict[Any, Any] = {}
    names: dict[Any, list[Any]] = {}
    parts: dict[Any, dict[Any, int]] = {}
    is_left = False
    for node in graph.nodes:
        node.target = RENAMED.get(node.target, node.target)
        if node.op == "call_function" and hasattr(node.target, "_schema") and node.target._schema.is_mutable:
            target = _out_of_place(node)
            known = names[owners[node.args[0]]] if target is not None else []
            alike = [one for one in known if not _are_disjoint(parts[one], parts[node.args[0]])]
            if target is None or any(order[user] > order[node] for one in alike for user in one.users):
                is_left = True
            else:
                node.target = target
        is_left |= node.target is ATEN.native_batch_norm.default and bool(node.args[5]) and node.args[3] is not None
        is_shared = node.op == "call_function" and _is_view(node.target)
        owners[node] = owners[node.args[0]] if is_shared else node
        parts[node] = dict(parts[node.args[0]]) if is_shared else {}
        if node.target is operator.getitem and not _overlaps(node.args[0]):
            parts[node][node.args[0]] = node.args[1]
        names.setdefault(owners[node], []).append(node)
    return not is_left


def _are_disjoint(first: dict[Any, int], second: dict[Any, int]) -> bool:
    """Whether two views are within different parts of a tensor that was split."""
    return any(second.get(whole, index) != index for whole, index in first.items())


def _overlaps(node: Any) -> bool:
    """Whether entries of a tensor, or of one that it is a view of, may share memory: windows, and expanded axes."""
    while node.op == "call_function" and _is_view(node.target):
        if node.target in OVERLAPPING:
            return True
        node = node.args[0]
    return False


def _out_of_place(node: Any) -> Any:
    """Return the operation with a new result that gives the same as an operation in place; None if there is none."""
    packet, _, overload = node.target.__name__.partition(".")
    name = packet.removesuffix("_")
    target = getattr(getattr(ATEN, name, None), overload, None) if node.target.namespace == "aten" and name != packet else None
    if target is None or not isinstance(node.args[0], torch.fx.Node):
        return None
    kind = node.args[0].meta.get("kind", (None, None))
    if kind[1] is torch.bool:
        return target if name in LOGICAL else None
    if kind[1] is None or name not in ENTRYWISE or kind[1].is_complex:
        return None
    if kind[1].is_floating_point:
        others = [one.meta.get("kind", (None, None))[1] for one in node.all_input_nodes]
        fits = all(other is kind[1] or other in (torch.bool, torch.int64) for other in others)
        return target if fits else None
    return target if name in ("relu", "masked_fill", "scatter") else None


def owner_of(node: Any) -> Any:
    """Return the node that created the memory of a node's result."""
    while node.op == "call_function" and _is_view(node.target):
        node = node.args[0]
    return node


def _is_view(target: Any) -> bool:
    """Whether an operation returns its first argument, changed in place or as a view, or an entry of it."""
    if target is operator.getitem or target in SAME or target in UNSAFE:
        return True
    return hasattr(target, "_schema") and any(one.alias_info is not None for one in target._schema.returns)
