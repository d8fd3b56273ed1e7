"""Removal of redundant operations from a recorded graph.

Results remain the same numbers, but for the sign of zeros, and the last digits of sums of products.
"""

import math
from collections.abc import Callable
from typing import Any

import torch

from latentlab.inference.recorder import ATEN, NEUTRAL, SAME, SHAPED, graph_operations

SMALL = 64
"""Largest number of entries of a constant tensor whose values are compared."""


NEUTRAL_CONSTANTS = {
    ATEN.add.Tensor: (0.0, True),
    ATEN.sub.Tensor: (0.0, False),
    ATEN.mul.Tensor: (1.0, True),
    ATEN.div.Tensor: (1.0, False),
}
"""Number in a constant tensor that makes an operation the identity, and whether it may be the first argument."""


def simplify(graph: Any, root: Any) -> None:
    """Merge equal operations on the same arguments (common subexpressions), remove identities, and apply `RULES`.

    The graph must not change tensors in place. Operations that are outputs are kept, so that no two outputs share memory.
    """
    known: dict[str, Any] = {}
    output = next(reversed(graph.nodes))
    _bare_outputs(output)
    for node in graph_operations(graph):
        if node.target in SHAPED and node not in output.all_input_nodes:
            _to_constant(node, root)
    _share_constants(graph, root)
    for node in graph_operations(graph):
        if torch.Tag.nondeterministic_seeded in node.target.tags:
            continue
        if node.target in RULES:
            RULES[node.target](node, root)
        if node in output.all_input_nodes:
            continue
        same = known.setdefault(repr((node.target, node.args, node.kwargs)), node)  # in `repr`, 1, 1.0 and -0.0 differ
        if _changes_nothing(node):
            same = node.args[0]
        elif node.target in NEUTRAL_CONSTANTS and not node.kwargs and len(node.args) == 2:
            same = _kept(node, root) or same
        if same is not node:
            node.replace_all_uses_with(same)
            graph.erase_node(node)


def _share_constants(graph: Any, root: Any) -> None:
    """Merge small constants with equal content."""
    known: dict[Any, Any] = {}
    for node in [node for node in graph.nodes if node.op == "get_attr"]:
        tensor = getattr(root, node.target)
        if tensor.layout is torch.strided and tensor.numel() <= SMALL:
            same = known.setdefault((tensor.shape, tensor.dtype, tensor.cpu().numpy().tobytes()), node)
            if same is not node:
                node.replace_all_uses_with(same)
                graph.erase_node(node)


def _bare_outputs(output: Any) -> None:
    """Replace outputs that are only other names of a result used nowhere else among the outputs."""
    found: list[Any] = []
    for node in output.args[0]:
        bare: Any = node
        while isinstance(bare, torch.fx.Node) and bare.target is ATEN.detach.default and _is_result(bare.args[0]):
            bare = bare.args[0]
        found.append(node if bare in output.args[0] or bare in found else bare)
    output.args = (tuple(found),)


def _is_result(value: Any) -> bool:
    """Whether an argument of an operation is the result of another one."""
    return isinstance(value, torch.fx.Node) and value.op == "call_function"


def _changes_nothing(node: Any) -> bool:
    """Whether an operation returns its first argument: a view of the same shape, or x + 0, x - 0, x * 1, x / 1 or x ** 1.

    The sum of a tensor without dims is the tensor.
    """
    if not isinstance(node.args[0], torch.fx.Node) or node.meta.get("kind") != node.args[0].meta.get("kind", ()):
        return False
    if node.target in NEUTRAL:
        return not isinstance(node.args[1], torch.fx.Node) and node.args[1] == NEUTRAL[node.target] and not node.kwargs
    if node.target is ATEN.constant_pad_nd.default:
        return not any(node.args[1])
    if node.target is ATEN.sum.default:
        return not node.meta["kind"][0]
    return node.target in SAME or (node.target is ATEN.permute.default and list(node.args[1]) == list(range(len(node.args[1]))))


def _kept(node: Any, root: Any) -> Any:
    """Return x for x + 0, 0 + x, x - 0, x * 1, 1 * x and x / 1 with a constant tensor of zeros or ones; else None."""
    number, is_symmetric = NEUTRAL_CONSTANTS[node.target]
    constant: Any
    other: Any
    for other, constant in (node.args, node.args[::-1])[: 1 + is_symmetric]:
        if not isinstance(constant, torch.fx.Node) or constant.op != "get_attr" or not isinstance(other, torch.fx.Node):
            continue
        tensor = getattr(root, str(constant.target))
        if tensor.layout is torch.strided and other.meta.get("kind") == node.meta["kind"] and bool((tensor == number).all()):
            return other
    return None


def _without_negation(node: Any, root: Any) -> None:
    """Write a + (-b) and (-a) + b as a - b and b - a."""
    if len(node.args) != 2 or node.kwargs or not all(isinstance(one, torch.fx.Node) for one in node.args):
        return
    first: Any
    second: Any
    first, second = node.args
    if second.target is ATEN.neg.default:
        node.target, node.args = ATEN.sub.Tensor, (first, second.args[0])
    elif first.target is ATEN.neg.default:
        node.target, node.args = ATEN.sub.Tensor, (second, first.args[0])


def _power(node: Any, root: Any) -> None:
    """Write a square as a product."""
    if node.args[1] == 2 and node.meta["is_number"]:
        node.target, node.args = ATEN.mul.Tensor, (node.args[0], node.args[0])


def _unswapped(node: Any, root: Any) -> None:
    """Write a transpose of a transpose as the matrix."""
    owner = node.args[0]
    if _is_swap(node) and isinstance(owner, torch.fx.Node) and _is_swap(owner):
        node.target, node.args = ATEN.alias.default, (owner.args[0],)


def _is_swap(node: Any) -> bool:
    """Whether an operation transposes a matrix."""
    if len(node.meta.get("kind", ((), None))[0]) != 2:
        return False
    if node.target is ATEN.transpose.int:
        return (node.args[1] - node.args[2]) % 2 == 1
    return node.target is ATEN.t.default


def _squeezed_sum(node: Any, root: Any) -> None:
    """Write the sum over an axis that is kept, and then removed, as the sum that removes it."""
    owner = node.args[0]
    if owner.target is not ATEN.sum.dim_IntList or len(owner.args) != 3 or owner.kwargs:
        return
    x, axes, is_kept = owner.args
    if is_kept and axes is not None and len(axes) == 1 and (node.args[1] - axes[0]) % len(owner.meta["kind"][0]) == 0:
        node.target, node.args = owner.target, (x, axes)


def _seen_sum(node: Any, root: Any) -> None:
    """Write the sum over an axis that is kept, seen in the shape without it, as the sum that removes it."""
    owner: Any = node.args[0]
    if not hasattr(owner, "meta") or owner.target is not ATEN.sum.dim_IntList or len(owner.args) != 3 or owner.kwargs:
        return
    x, axes, is_kept = owner.args
    if not is_kept or axes is None or len(axes) != 1 or "kind" not in owner.meta:
        return
    shape = list(owner.meta["kind"][0])
    del shape[axes[0]]
    if shape == list(node.meta["kind"][0]):
        node.target, node.args = owner.target, (x, axes)


def _whole_sum(node: Any, root: Any) -> None:
    """Write the sum over the only axis, also of a matrix seen as a vector, as the sum of all entries.

    The sum over an axis added before is the tensor.
    """
    owner: Any = node.args[0]
    if node.args[1] is None:
        return
    if owner.target is ATEN.unsqueeze.default and len(node.args) == 2 and not node.kwargs:
        n_dims = len(owner.meta["kind"][0])
        if len(node.args[1]) == 1 and (node.args[1][0] - owner.args[1]) % n_dims == 0 and node.meta["is_number"]:
            node.target, node.args = ATEN.alias.default, (owner.args[0],)
            return
    if not isinstance(owner, torch.fx.Node) or len(owner.meta.get("kind", ((), None))[0]) != 1 or node.kwargs:
        return
    if node.meta["kind"][0] or len(node.args[1]) != 1:
        return
    if owner.target is ATEN.view.default:
        owner = owner.args[0]
    node.target, node.args = ATEN.sum.default, (owner,)


def _inner_product(node: Any, root: Any) -> None:
    """Write the sum of the products of two vectors as one operation."""
    owner: Any = node.args[0]
    kind = owner.meta.get("kind", ((), None))
    if owner.target is not ATEN.mul.Tensor or len(owner.users) > 1 or owner.kwargs or node.kwargs or len(kind[0]) != 1:
        return
    if (
        all(isinstance(one, torch.fx.Node) and one.meta.get("kind") == kind for one in owner.args)
        and node.meta["kind"][1] == kind[1]
    ):
        node.target, node.args = ATEN.dot.default, owner.args


def _joined(node: Any, root: Any) -> None:
    """Write a sum of gradients of the parts of a tensor along an axis as the parts one after the other, plus other terms."""
    parts: list[Any] = []
    others: list[Any] = []
    rest = [node]
    while rest:
        one = rest.pop()
        if one.target is ATEN.add.Tensor and (one is node or len(one.users) == 1) and len(one.args) == 2 and not one.kwargs:
            if not all(isinstance(term, torch.fx.Node) for term in one.args) or one.meta.get("kind") != node.meta["kind"]:
                return
            rest.extend(one.args)
        elif one.target is ATEN.slice_backward.default and one.args[5] == 1 and list(one.args[1]) == list(node.meta["kind"][0]):
            parts.append(one)
        else:
            others.append(one)
    axes = {part.args[2] for part in parts}
    if len(axes) != 1 or len(others) > 1 or any(one.meta.get("kind") != node.meta["kind"] for one in others):
        return
    axis = axes.pop()
    n = node.meta["kind"][0][axis]
    terms: dict[tuple[int, int], list[Any]] = {}
    for part in reversed(parts):
        terms.setdefault((part.args[3], min(part.args[4], n)), []).append(part.args[0])
    bounds = sorted(terms)
    if any(not 0 <= begin < end for begin, end in bounds) or [b for b, _ in bounds] + [n] != [0] + [e for _, e in bounds]:
        return

    def added(target: Any, *arguments: Any, kind: Any) -> Any:
        with node.graph.inserting_before(node):
            new = node.graph.call_function(target, arguments)
        new.meta.update({**node.meta, "kind": kind})
        return new

    def total(first: Any, *rest: Any) -> Any:
        for one in rest:
            first = added(ATEN.add.Tensor, first, one, kind=one.meta["kind"])
        return first

    joined = [total(*terms[bound]) for bound in bounds], axis
    if others:
        node.args = (others[0], added(ATEN.cat.default, *joined, kind=node.meta["kind"]))
    else:
        node.target, node.args = ATEN.cat.default, joined


def _sum_of_two(node: Any, root: Any) -> None:
    _without_negation(node, root)
    if node.target is ATEN.add.Tensor:
        _joined(node, root)


def _product(node: Any, root: Any) -> None:
    """Write (-x) c, (-x) / c and (s x) c with a constant c and a power s of two by one operation on x."""
    if len(node.args) != 2 or node.kwargs or not all(isinstance(one, torch.fx.Node) for one in node.args):
        return
    pairs = [node.args] if node.target is ATEN.div.Tensor else [node.args, node.args[::-1]]
    for own, constant in pairs:
        if constant.op != "get_attr" or getattr(root, constant.target).dtype not in (torch.float64, torch.float32):
            continue
        factor = _factor(own)
        if factor is None or own.meta.get("kind") != own.args[0].meta.get("kind"):
            continue
        value = getattr(root, constant.target)
        by, back = (torch.mul, torch.div) if node.target is ATEN.mul.Tensor else (torch.div, torch.mul)
        scaled = by(value, factor)
        if factor != -1.0 and not torch.equal(back(scaled, factor), value):  # it would overflow or underflow
            continue
        name = f"{constant.target}_by_{node.name}"
        root.register_buffer(name, scaled)
        with node.graph.inserting_before(node):
            new = node.graph.get_attr(name)
        new.meta["kind"] = constant.meta["kind"]
        node.args = (own.args[0], new)
        return


def _negation(node: Any, root: Any) -> None:
    """Write -(x c) and -(x / c) with a constant c as the product or ratio with -c."""
    owner = node.args[0]
    if owner.target not in (ATEN.mul.Tensor, ATEN.div.Tensor) or owner.kwargs or owner.meta.get("kind") != node.meta["kind"]:
        return
    x, constant = owner.args
    if not isinstance(constant, torch.fx.Node) or constant.op != "get_attr" or not isinstance(x, torch.fx.Node):
        return
    name = f"{constant.target}_of_{node.name}"
    root.register_buffer(name, -getattr(root, str(constant.target)))
    with node.graph.inserting_before(node):
        negative = node.graph.get_attr(name)
    negative.meta["kind"] = constant.meta["kind"]
    node.target, node.args = owner.target, (x, negative)


def _factor(node: Any) -> float | None:
    """Return the power of two, or -1, by which an operation multiplies its argument; None for other operations."""
    if node.target is ATEN.neg.default:
        return -1.0
    if node.target in (ATEN.mul.Scalar, ATEN.mul.Tensor) and isinstance(node.args[1], float) and node.args[1]:
        return node.args[1] if abs(math.frexp(node.args[1])[0]) == 0.5 else None
    return None


def _to_constant(node: Any, root: Any) -> None:
    """Replace a tensor of equal numbers by a constant."""
    if "value" not in node.meta:
        return
    name = f"constant_{node.name}"
    root.register_buffer(name, node.meta["value"])
    with node.graph.inserting_before(node):
        constant = node.graph.get_attr(name)
    constant.meta["kind"] = node.meta["kind"]
    node.replace_all_uses_with(constant)


RULES: dict[Any, Callable[[Any, Any], None]] = {
    ATEN.add.Tensor: _sum_of_two,
    ATEN.neg.default: _negation,
    ATEN.pow.Tensor_Scalar: _power,
    ATEN.mul.Tensor: _product,
    ATEN.div.Tensor: _product,
    ATEN.t.default: _unswapped,
    ATEN.transpose.int: _unswapped,
    ATEN.squeeze.dim: _squeezed_sum,
    ATEN.view.default: _seen_sum,
    ATEN.sum.default: _inner_product,
    ATEN.sum.dim_IntList: _whole_sum,
}
