"""Graphs made shorter, and safe where a matrix has no decomposition."""

import math
import operator
from typing import Any

import numpy as np
import torch

from latentlab.inference.recorder import ATEN, NEUTRAL, SAME, graph_operations

SMALL = 64
"""Numbers up to which a tensor that a graph holds is looked at."""


def shorten(graph: Any) -> None:
    """Makes one of equal operations on the same arguments, and drops those that leave their argument as it is.

    Only of a graph that changes nothing in place; outputs stay tensors of their own.
    """
    known: dict[str, Any] = {}
    outputs = set(next(reversed(graph.nodes)).all_input_nodes)
    for node in graph_operations(graph):
        if torch.Tag.nondeterministic_seeded in node.target.tags or node in outputs:
            continue
        same = known.setdefault(repr((node.target, node.args, node.kwargs)), node)  # where 1, 1.0 and -0.0 differ
        if _changes_nothing(node):
            same = node.args[0]
        if same is not node:
            node.replace_all_uses_with(same)


def _changes_nothing(node: Any) -> bool:
    """Whether an operation gives its first argument back: a view of the same shape, or a number plus 0, times 1, or to the 1."""
    if not isinstance(node.args[0], torch.fx.Node) or node.meta.get("kind") != node.args[0].meta.get("kind", ()):
        return False
    if node.target in NEUTRAL:
        return not isinstance(node.args[1], torch.fx.Node) and node.args[1] == NEUTRAL[node.target]
    return node.target in SAME or (node.target is ATEN.permute.default and node.args[1] == sorted(node.args[1]))


def failures_as_nan(graph: Any) -> None:
    """Makes NaN of what comes from a matrix without a decomposition, where the program would raise.

    `torch.linalg.cholesky` and its like are the decomposition, a code `info` for each matrix of the batch, and a check that
    raises if a code is not 0. TorchScript drops the check, since nothing depends on it: a matrix that has no decomposition would
    go on as numbers without a meaning, and the density be finite where there is none.
    """
    for check in [node for node in graph.nodes if node.target is torch.ops.aten._linalg_check_errors.default]:
        info = check.args[0]
        if info.target is not operator.getitem:
            raise ValueError("it checks a decomposition in a way of its own")
        for result in [node for node in info.args[0].users if node is not info]:
            if not result.meta["is_number"] or not result.users:
                continue
            with graph.inserting_after(max(result, info)):
                masked = graph.call_function(_masked, (result, info, result.meta["n_dims"]))
            result.replace_all_uses_with(masked, delete_user_cb=lambda user, own=masked: user is not own)
        graph.erase_node(check)


def _masked(result: torch.Tensor, info: torch.Tensor, n_dims: int) -> torch.Tensor:
    """NaN in place of the results whose code is not 0."""
    return torch.where((info != 0)[(..., *[None] * (n_dims - info.dim()))], torch.nan, result)


def held_outside(module: Any, own: Any, *, numbers: bool = False) -> tuple[Any, list[torch.Tensor]]:
    """The graph with the tensors that it holds, single numbers apart, as arguments at the end; and these.

    Every argument takes its time in every call. Small tensors that are equal become one, and where `numbers` those full of one
    whole number, or an infinite one, an operation, of which a compiler makes a number in a loop.
    """
    graph = torch.fx.Graph()
    copies: dict[Any, Any] = {}
    held: list[torch.Tensor] = []
    known: dict[Any, Any] = {}
    full: dict[Any, tuple[torch.Tensor, float]] = {}
    nodes = list(own.nodes)
    for node in nodes:
        if node.op == "placeholder":
            copies[node] = graph.node_copy(node, lambda n: copies[n])
    for node in nodes:
        if node.op == "get_attr" and node.users and getattr(module, node.target).dim():
            tensor = getattr(module, node.target).detach().contiguous()
            number = _repeated(tensor) if numbers else None
            if number is not None:
                full[node] = tensor, number
                continue
            content = tensor.cpu().numpy().tobytes() if tensor.numel() <= SMALL else node
            key = tensor.shape, tensor.dtype, content
            if key not in known:
                known[key] = graph.placeholder(f"held_{len(held)}")
                held.append(tensor)
            copies[node] = known[key]
    for node, (tensor, number) in full.items():
        copies[node] = graph.call_function(ATEN.full.default, (list(tensor.shape), number), {"dtype": tensor.dtype})
    for node in nodes:
        if node not in copies and (node.users or node.op == "output" or node.is_impure()):
            copies[node] = graph.node_copy(node, lambda n: copies[n])
    return graph, held


def _repeated(tensor: torch.Tensor) -> float | None:
    """The number that a small tensor is full of, if it is whole or infinite; a number like 0.3 may be the data's own."""
    if tensor.dtype != torch.float64 or not 0 < tensor.numel() <= SMALL:
        return None
    number = float(tensor.flatten()[0])
    same = tensor.cpu().numpy().tobytes() == np.full(tensor.shape, number).tobytes()  # bytes tell 0.0 from -0.0
    return number if same and (math.isinf(number) or number.is_integer()) and number.hex() != (-0.0).hex() else None
