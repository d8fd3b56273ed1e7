"""Graph of a function's operations, from which redundant operations are removed."""

import math
import operator
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from latentlab.inference.in_place import owner_of, without_changes
from latentlab.inference.recorder import ATEN, Function, graph_operations, recorded
from latentlab.inference.simplify import SMALL, simplify


class RecordedGraph:
    """Graph of a function's operations, with its results at the example in `found`.

    `noise` has shape and dtype of each tensor of standard normal numbers that the function draws.
    """

    def __init__(self, function: Function, example: tuple[torch.Tensor, ...], device: str = "cpu") -> None:
        try:
            recorder, results = recorded(function, example, device, folds=True)
        except ValueError:  # a folded constant is changed in place later
            recorder, results = recorded(function, example, device, folds=False)
        outputs = results if isinstance(results, tuple) else (results,)
        self.found = [one.detach().cpu().numpy() for one in outputs]
        recorder.graph.output(tuple(recorder.in_graph(one) for one in outputs))
        failures_as_nan(recorder.graph)
        if without_changes(recorder.graph):
            simplify(recorder.graph, recorder.module)
        separate_outputs(recorder.graph)
        recorder.graph.eliminate_dead_code()
        self.root, self.graph = recorder.module, recorder.graph
        self.noise, self.sizes, self.device = recorder.noise, recorder.sizes, device
        self.n_operations = len(graph_operations(self.graph))

    def noise_tensors(self) -> Iterator[torch.Tensor]:
        """Draw the graph's standard normal numbers from torch's random state."""
        return (torch.randn(shape, dtype=dtype, device=self.device) for shape, dtype in self.noise)


def separate_outputs(graph: Any) -> None:
    """Copy outputs that share memory with arguments, constants or other outputs."""
    output = next(reversed(graph.nodes))
    taken = set()
    own = []
    for node in output.args[0]:
        if isinstance(node, torch.fx.Node):
            owner = owner_of(node)
            if owner in taken or owner.op != "call_function":
                with graph.inserting_before(output):
                    copied = graph.call_function(ATEN.clone.default, (node,))
                copied.meta.update(node.meta)
                node = copied
            taken.add(owner)
        own.append(node)
    output.args = (tuple(own),)


def has_own_memory(node: Any) -> bool:
    """Whether the result of a node does not share its memory with an earlier one."""
    return owner_of(node) is node


def failures_as_nan(graph: Any) -> None:
    """Replace the results of failed matrix decompositions by NaN, where the program would raise an error.

    `torch.linalg.cholesky` and similar functions compute the decomposition and a code `info` for each matrix of the batch. A
    separate operation raises if a code is not 0, and a graph drops it, since no result depends on it. The density could
    then be finite where it is undefined.

    Raises:
        ValueError: A decomposition is checked in an unknown way.
    """
    for check in [node for node in graph.nodes if node.target is torch.ops.aten._linalg_check_errors.default]:
        info = check.args[0]
        if info.target is not operator.getitem:
            raise ValueError("it checks a matrix decomposition in an unknown way")
        for result in [node for node in info.args[0].users if node is not info]:
            if not result.meta["is_number"] or not result.users:
                continue
            with graph.inserting_after(max(result, info)):
                valid = graph.call_function(nan_if_failed, (result, info, result.meta["n_dims"]))
            valid.meta["kind"] = result.meta["kind"]
            result.replace_all_uses_with(valid, delete_user_cb=lambda user, valid=valid: user is not valid)
        graph.erase_node(check)


def nan_if_failed(result: torch.Tensor, info: torch.Tensor, n_dims: int) -> torch.Tensor:
    """Replace results whose code `info` is not 0 by NaN."""
    return torch.where((info != 0)[(..., *[None] * (n_dims - info.dim()))], torch.nan, result)


def constants_as_arguments(module: Any, original: Any, *, numbers: bool = False) -> tuple[Any, list[torch.Tensor]]:
    """Return the graph with its constant tensors, except scalars, as its last arguments, and the list of these tensors.

    Each argument costs time in every call, so equal small tensors share one. With `numbers`, small tensors filled with one
    whole or infinite number become an operation instead, which a compiler reduces to a number, and other small tensors of
    float64 are parts of one argument.
    """
    graph = torch.fx.Graph()
    copies: dict[Any, Any] = {}
    constants: list[torch.Tensor] = []
    known: dict[Any, Any] = {}
    small: dict[Any, torch.Tensor] = {}
    nodes = list(original.nodes)
    for node in nodes:
        if node.op == "placeholder":
            copies[node] = graph.node_copy(node, lambda n: copies[n])
    held = {node: getattr(module, node.target) for node in nodes if node.op == "get_attr" and node.users}
    held = {node: tensor.detach().contiguous() for node, tensor in held.items() if tensor.dim()}
    filled = {node: number for node, tensor in held.items() if numbers and (number := _repeated(tensor)) is not None}
    for node, tensor in held.items():
        if node in filled:
            continue
        content = tensor.cpu().numpy().tobytes() if tensor.numel() <= SMALL else node
        key = tensor.shape, tensor.dtype, content
        if key in known:
            copies[node] = known[key]
        elif numbers and tensor.numel() <= SMALL and tensor.dtype == torch.float64:
            small[node] = tensor
            known[key] = node
            copies[node] = node
        else:
            copies[node] = known[key] = graph.placeholder(f"held_{len(constants)}")
            constants.append(tensor)
    if small:
        parts = _parts(graph, graph.placeholder(f"held_{len(constants)}"), small)
        constants.append(torch.cat([tensor.flatten() for tensor in small.values()]))
        copies |= {node: parts[copy] for node, copy in copies.items() if copy in parts}
    for node, number in filled.items():
        copies[node] = graph.call_function(ATEN.full.default, (list(held[node].shape), number), {"dtype": held[node].dtype})
    for node in nodes:
        if node not in copies and (node.users or node.op == "output" or node.is_impure()):
            copies[node] = graph.node_copy(node, lambda n: copies[n])
    return graph, constants


def _parts(graph: Any, whole: Any, tensors: dict[Any, torch.Tensor]) -> dict[Any, Any]:
    """Return the node of each tensor as a part of the concatenation of all."""
    found, begin = {}, 0
    for node, tensor in tensors.items():
        end = begin + tensor.numel()
        part = graph.call_function(ATEN.slice.Tensor, (whole, 0, begin, end))
        found[node] = graph.call_function(ATEN.view.default, (part, list(tensor.shape)))
        begin = end
    return found


def _repeated(tensor: torch.Tensor) -> float | None:
    """Return the whole or infinite number that fills a small tensor; None otherwise, since other numbers may be data."""
    if tensor.dtype != torch.float64 or not 0 < tensor.numel() <= SMALL:
        return None
    number = float(tensor.flatten()[0])
    same = tensor.cpu().numpy().tobytes() == np.full(tensor.shape, number).tobytes()  # the bytes of 0.0 and -0.0 differ
    return number if same and (math.isinf(number) or number.is_integer()) and number.hex() != (-0.0).hex() else None
