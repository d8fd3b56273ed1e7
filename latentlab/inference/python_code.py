"""Python code of a recorded graph: a function with one line for each operation. It needs no compiler.

The text depends only on the graph. A result is released after its last use, so that memory is that of the function itself.
Results other than the outputs are inference tensors, for which torch records neither versions nor views: a fifth of the time.
"""

import operator
from typing import Any

import torch

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
    own = names.values.pop(NAME)  # no cycle of references would keep the constants in memory
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
    lines = [f"def {NAME}({', '.join(arguments[: len(arguments) - n_drawn])}):"]
    lines.append(f"    with {names.of('InferenceMode', torch._C._InferenceMode)}(True):")
    device = names.literal(torch.device(recorded.device)) if n_drawn else ""
    for name, (shape, dtype) in zip(arguments[len(arguments) - n_drawn :], recorded.noise, strict=True):
        randn = names.of("randn", torch.randn)
        lines.append(f"        {name} = {randn}({names.literal(tuple(shape))}, dtype={names.literal(dtype)}, device={device})")
    outputs = [node for node in nodes[-1].args[0] if isinstance(node, torch.fx.Node)]
    is_changed = any(_changes_in_place(node) for node in nodes)  # such an output could be computed from what is changed later
    normal = [] if is_changed else [node for node in outputs if _can_be_last(node)]
    calls = [node for node in nodes if node.op == "call_function" and node not in normal]
    last = {used: node for node in [*calls, *normal, nodes[-1]] for used in node.all_input_nodes}
    for node in nodes:
        if node.op == "get_attr":
            names.of(node.name, getattr(recorded.root, node.target))
    for node in calls:
        lines.append(f"        {node.name} = {call_of(node, names)}")
        done = [used.name for used in node.all_input_nodes if last[used] is node and used.op != "get_attr"]
        done += [node.name] * (node not in last)
        if done:
            lines.append(f"        del {', '.join(done)}")
    if lines[-1].endswith(":"):
        lines.append("        pass")
    lines += [f"    {node.name} = {call_of(node, names)}" for node in normal]
    lines += [f"    {node.name} = {node.name}.clone()" for node in dict.fromkeys(outputs) if node not in normal]
    return "\n".join([*lines, f"    return {names.literal(nodes[-1].args[0])}"]) + "\n", names


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
