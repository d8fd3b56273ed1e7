"""Python code of a recorded graph: a function with one line for each operation. It needs no compiler.

The text depends only on the graph. Operations on small arrays are calls of NumPy, see `array_calls`. A result is released after
its last use, so that memory is that of the function itself. Tensors other than the outputs are inference tensors, for which torch
records neither versions nor views: a fifth of the time.
"""

import operator
from typing import Any

import numpy as np
import torch

from latentlab.inference.array_calls import ArrayCalls
from latentlab.inference.array_text import array_name
from latentlab.inference.exact_calls import Names, call_of
from latentlab.inference.graph import RecordedGraph, has_own_memory
from latentlab.inference.recorder import Function
from latentlab.seeds import double

NAME = "run"


def python_code(recorded: RecordedGraph, example: tuple[torch.Tensor, ...] = ()) -> Function:
    """Return the graph as a Python function; `example` is not needed.

    Raises:
        ValueError: An operation has an argument that cannot be written as text.
    """
    text, names = source(recorded)
    exec(compile(text, "<recorded graph>", "exec"), names.values)
    own = np.errstate(all="ignore")(names.values.pop(NAME))  # without the `pop`, a cycle of references keeps the constants
    is_enabled, enable = torch.is_grad_enabled, torch._C._set_grad_enabled

    def run(*arguments: torch.Tensor) -> Any:
        before = is_enabled()
        enable(False)  # `torch.no_grad` does the same in ten times the time
        try:
            return own(*arguments)
        finally:
            enable(before)

    def run_double(*arguments: torch.Tensor) -> Any:
        with double():
            return run(*arguments)

    return run_double if any(_depends_on_default(node) for node in recorded.graph.nodes) else run


def source(recorded: RecordedGraph) -> tuple[str, Names]:
    """Return the text of the function, and the names that it uses.

    Raises:
        ValueError: An operation has an argument that cannot be written as text.
    """
    names, nodes = Names(recorded.device), list(recorded.graph.nodes)
    arguments = [node.name for node in nodes if node.op == "placeholder"]
    n_drawn = len(recorded.noise)
    device = names.literal(torch.device(recorded.device)) if n_drawn else ""
    lines = _Lines(names, recorded)
    for name, (shape, dtype) in zip(arguments[len(arguments) - n_drawn :], recorded.noise, strict=True):
        randn = names.of("randn", torch.randn)
        lines.add(f"{name} = {randn}({names.literal(tuple(shape))}, dtype={names.literal(dtype)}, device={device})")
    outputs = [node for node in nodes[-1].args[0] if isinstance(node, torch.fx.Node)]
    is_changed = any(_changes_in_place(node) for node in nodes)  # such an output could be computed from what is changed later
    normal = [] if is_changed else [node for node in outputs if _can_be_last(node)]
    calls = [node for node in nodes if node.op == "call_function" and node not in normal]
    last = {used: node for node in [*calls, *normal, nodes[-1]] for used in node.all_input_nodes}
    for node in calls:
        lines.call(node)
        lines.release([used for used in node.all_input_nodes if last[used] is node and used.op != "get_attr"])
        lines.release([node] * (node not in last))
    inner = lines.texts
    lines.texts = []
    for node in normal:
        lines.call(node)
    for node in dict.fromkeys(outputs):
        if node in lines.arrays.held:
            lines.as_tensor(node, again=True)  # one from before is an inference tensor
        elif node not in normal:
            lines.add(f"{node.name} = {node.name}.clone()")
    mode = [f"    with {names.of('InferenceMode', torch._C._InferenceMode)}(True):"] if lines.uses_torch and inner else []
    indented = [f"{'        ' if mode else '    '}{text}" for text in inner]
    header = f"def {NAME}({', '.join(arguments[: len(arguments) - n_drawn])}):"
    after = [f"    {text}" for text in lines.texts]
    return "\n".join([header, *mode, *indented, *after, f"    return {names.literal(nodes[-1].args[0])}"]) + "\n", names


class _Lines:
    """Lines of the function. A value is held as a tensor, as an array, or as both, which share their memory."""

    def __init__(self, names: Names, recorded: RecordedGraph) -> None:
        self.names, self.root = names, recorded.root
        self.arrays = ArrayCalls(names, recorded)
        self.texts: list[str] = []
        self.uses_torch = bool(recorded.noise)
        self._tensors: set[Any] = set()
        self._others: set[Any] = set()

    def add(self, text: str) -> None:
        """Add a line."""
        self.texts.append(text)

    def call(self, node: Any) -> None:
        """Add the call of a node by NumPy or by torch, after the conversions of its arguments."""
        text = self.arrays.call_of(node)
        if text is not None:
            for used in node.all_input_nodes:
                self._as_array(used)
            self.add(f"{array_name(node)} = {text}")
            return
        self.uses_torch = True
        for used in node.all_input_nodes:
            self.as_tensor(used)
        self.add(f"{node.name} = {call_of(node, self.names)}")
        self._tensors.add(node)

    def as_tensor(self, node: Any, *, again: bool = False) -> None:
        """Add the conversion of an array to a tensor."""
        if node.op == "get_attr":
            self.names.of(node.name, getattr(self.root, node.target))
        elif node in self.arrays.held and (again or node not in self._tensors):
            array = array_name(node)
            array = array if node.meta.get("kind", ((0,),))[0] else f"{self.names.of('asarray', np.asarray)}({array})"
            self.add(f"{node.name} = {self.names.of('from_numpy', torch.from_numpy)}({array})")
            self._tensors.add(node)

    def _as_array(self, node: Any) -> None:
        """Add the conversion of a tensor to an array."""
        if node in self.arrays.held or node in self._others:
            return
        is_single = not node.meta["kind"][0]
        if node.op == "get_attr":
            array = getattr(self.root, node.target).numpy()
            self.names.of(array_name(node), array[()] if is_single else array)
            self.names.of(f"{array_name(node)}_0", array)
        else:
            text = f"{node.name}.detach().numpy()" if node.op == "placeholder" else f"{node.name}.numpy()"
            self.add(f"{array_name(node)} = {text}{'[()]' if is_single else ''}")
        self._others.add(node)

    def release(self, nodes: list[Any]) -> None:
        """Add the deletion of the values of nodes."""
        tensors = [node.name for node in nodes if node in self._tensors or node.op == "placeholder"]
        arrays = [array_name(node) for node in nodes if node in self.arrays.held or node in self._others]
        if tensors or arrays:
            self.add(f"del {', '.join([*tensors, *arrays])}")


def _changes_in_place(node: torch.fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None) if node.op == "call_function" else None
    return schema is not None and schema.is_mutable


def _can_be_last(node: torch.fx.Node) -> bool:
    """Whether an output can be computed after all other results, as a tensor that is no inference tensor."""
    target: Any = node.target
    if node.op != "call_function" or target is operator.getitem or not has_own_memory(node) or len(node.users) > 1:
        return False
    schema = getattr(target, "_schema", None)
    is_plain = schema is not None and target.namespace == "aten" and not schema.is_mutable
    return is_plain and torch.Tag.nondeterministic_seeded not in target.tags


def _depends_on_default(node: Any) -> bool:
    """Whether the dtype of a result may depend on torch's default: numbers from operations on other than numbers."""
    if node.op != "call_function" or not node.meta.get("is_number") or node.kwargs.get("dtype") is not None:
        return False
    if not hasattr(node.target, "_schema"):
        return False
    if node.target.namespace != "aten":
        return True
    kinds = [used.meta.get("kind") for used in node.all_input_nodes]
    return not any(kind is None or kind[1].is_floating_point or kind[1].is_complex for kind in kinds)
