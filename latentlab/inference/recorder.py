"""Recording of the ATen operations of a function as one graph, after derivatives and batches have been expanded."""

import contextlib
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from latentlab.seeds import forked, reseed

Function = Callable[..., Any]


UNRECORDED = ("numpy", "tolist", "__array__", "__dlpack__")
"""Tensor methods that return its numbers without an operation of torch."""
ATEN = torch.ops.aten
SHAPED = (
    *(ATEN.new_ones.default, ATEN.new_zeros.default, ATEN.new_full.default),
    *(ATEN.ones_like.default, ATEN.zeros_like.default, ATEN.full_like.default),
)
"""Operations whose result depends on no values of their tensor, only on its shape."""
SAME = (ATEN.detach.default, ATEN.alias.default, ATEN.view.default, ATEN._unsafe_view.default, ATEN.expand.default)
"""Operations that are the identity if argument and result have the same shape."""
KEPT = 10_000
"""Largest number of entries of a tensor of equal numbers that becomes a constant."""
NEUTRAL = {ATEN.add.Tensor: 0, ATEN.sub.Tensor: 0, ATEN.mul.Tensor: 1, ATEN.mul.Scalar: 1, ATEN.div.Tensor: 1}
NEUTRAL[ATEN.pow.Tensor_Scalar] = 1
"""Neutral element of each operation: the second argument that makes it the identity in the first."""


class _Recorder(TorchDispatchMode):
    """Recorder of the operations on tensors that depend on the arguments.

    Tensors are identified by `id`, and are therefore kept alive until the end. A tensor without a node is a constant, unless it
    is changed in place. Changes are detected by storage addresses, of which there are four sets: `memory`, constants of the
    graph; `changed`, tensors that became nodes by a change; `created`, tensors created in this call; and `shaped`, nodes that
    depend on the arguments only by their shapes.

    Raises:
        ValueError: A graph of the operations would be wrong, and the checks of `capture` would not detect it.
    """

    def __init__(self, arguments: Sequence[torch.Tensor], *, folds: bool) -> None:
        super().__init__()
        self.folds = folds
        self.graph = torch.fx.Graph()
        self.module = torch.nn.Module()
        self.nodes: dict[int, Any] = {}
        self.constants: dict[int, Any] = {}
        self.kept_alive: list[torch.Tensor] = []
        self.memory: set[int] = set()
        self.changed: set[int] = set()
        self.created: set[int] = set()
        self.shaped: set[int] = set()
        self.writes = False
        self.noise: list[tuple[torch.Size, torch.dtype]] = []
        self.sizes: list[int] = []
        for i, argument in enumerate(arguments):
            self.last = self.graph.placeholder(f"argument_{i}")
            self.register(argument, self.last)

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Return False; without this method torch would import its compiler."""
        return False

    def register(self, tensor: torch.Tensor, node: Any) -> None:
        """Register a tensor as the result of a node."""
        node.meta["kind"] = tensor.shape, tensor.dtype
        self.nodes[id(tensor)] = node
        self.kept_alive.append(tensor)

    def constant_result(self, func: Any, args: Any, kwargs: Any, tensors: list[torch.Tensor]) -> Any:
        """Call an operation whose result is a constant; results with new storage are added to `created` and kept alive."""
        result = func(*args, **kwargs)
        before = set() if func is torch.ops.aten.lift_fresh.default else {_memory(tensor) for tensor in tensors}
        for one in tree_leaves(result):
            if isinstance(one, torch.Tensor) and _memory(one) not in before:
                self.created.add(_memory(one))
                self.kept_alive.append(one)
        return result

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        unknown = [tensor for tensor in tensors if id(tensor) not in self.nodes]
        if self.changed and any(_memory(tensor) in self.changed for tensor in unknown):
            raise ValueError("it changes a tensor in place that it also uses elsewhere")
        written = _written(func, args, kwargs)
        if any(id(tensor) not in self.nodes and _memory(tensor) not in self.created for tensor in written):
            raise ValueError(f"it changes a tensor that exists outside of the call ({func})")
        if torch.Tag.nondeterministic_seeded in func.tags:
            if func is ATEN.randn.default:
                result = func(*args, **kwargs)
                self._noise(result)
                return result
            if func is torch.ops.aten.normal_.default and unknown and tuple(args[1:]) in ((), (0.0, 1.0)):
                self._noise(args[0])
                return func(*args, **kwargs)
        elif len(unknown) == len(tensors) or (not written and self._is_constant(func, tensors)):
            return self.constant_result(func, args, kwargs, tensors)
        if func in (torch.ops.aten.index.Tensor, torch.ops.aten.index_put.default):
            args = (args[0], self._with_positions(args[1]), *args[2:])
        if torch.Tag.dynamic_output_shape in func.tags and not _is_sized(func, args):
            raise ValueError(f"the shape of a result depends on values ({func})")
        self.shaped.difference_update(_memory(tensor) for tensor in written)
        self.writes |= bool(written)
        changed = {id(tensor) for tensor in written}
        mapped = tree_map(lambda leaf: self.in_graph(leaf, changed=id(leaf) in changed), (args, kwargs))
        node = self.graph.call_function(func, *mapped)
        result = func(*args, **kwargs)
        if func is torch.ops.aten._linalg_check_errors.default:
            return result
        if not any(isinstance(one, torch.Tensor) for one in tree_leaves(result)):
            raise ValueError(f"it reads a number from a tensor ({func})")
        if isinstance(result, torch.Tensor):
            self._register_result(result, node)
            if func in SHAPED:
                self.shaped.add(_memory(result))
                if result.numel() <= KEPT:
                    node.meta["value"] = result.detach().clone()
        else:
            for i, one in enumerate(result):
                if isinstance(one, torch.Tensor):
                    self._register_result(one, self.graph.call_function(operator.getitem, (node, i)))
        return result

    def _is_constant(self, func: Any, tensors: list[torch.Tensor]) -> bool:
        """Whether the result depends on the arguments only by their shapes; never for views, which may be written to later."""
        if not self.folds or func in SHAPED or any(one.alias_info is not None for one in func._schema.returns):
            return False
        return all(id(tensor) not in self.nodes or _memory(tensor) in self.shaped for tensor in tensors)

    def _register_result(self, tensor: torch.Tensor, node: Any) -> None:
        node.meta["n_dims"], node.meta["is_number"] = tensor.dim(), tensor.is_floating_point()
        self.sizes.append(tensor.numel())
        self.register(tensor, node)

    def _noise(self, tensor: torch.Tensor) -> None:
        """Turn a tensor of standard normal numbers into an argument of the graph."""
        with self.graph.inserting_after(self.last):
            self.last = self.graph.placeholder(f"noise_{len(self.noise)}")
        self.noise.append((tensor.shape, tensor.dtype))
        self.register(tensor, self.last)

    def in_graph(self, leaf: Any, *, changed: bool = False) -> Any:
        """Return the node of a tensor. A constant gets a node, and is copied if it is about to be changed in place."""
        if not isinstance(leaf, torch.Tensor):
            return leaf
        if id(leaf) in self.nodes:
            return self.nodes[id(leaf)]
        memory = _memory(leaf)
        if changed and memory in self.memory:
            raise ValueError("it changes a tensor in place that it also uses elsewhere")
        if id(leaf) in self.constants:
            return self.constants[id(leaf)]
        name = f"constant_{len(self.kept_alive)}"
        self.module.register_buffer(name, leaf.detach().clone() if changed else leaf.detach())
        node = self.graph.get_attr(name)
        node.meta["kind"] = leaf.shape, leaf.dtype
        if changed:
            self.changed.add(memory)
            node = self.graph.call_function(torch.ops.aten.clone.default, (node,))
            self.register(leaf, node)
        else:
            self.memory.add(memory)
            self.constants[id(leaf)] = node
            self.kept_alive.append(leaf)
        return node

    def _with_positions(self, where: Sequence[Any]) -> list[Any]:
        """Replace constant boolean masks among indices by the positions of their true entries, whose number is then fixed."""
        indices: list[Any] = []
        for index in where:
            mask = index is not None and index.dtype == torch.bool and id(index) not in self.nodes
            indices.extend(index.nonzero(as_tuple=True) if mask else [index])
        return indices


class _Watch(TorchFunctionMode):
    """Mode that raises an error if a call would read numbers from a recorded tensor without a recorded operation."""

    def __init__(self, recorder: _Recorder) -> None:
        super().__init__()
        self.recorder = recorder

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in UNRECORDED and args and id(args[0]) in self.recorder.nodes:
            raise ValueError(f"it reads a number from a tensor ({func.__name__})")
        return func(*args, **(kwargs or {}))


def _memory(tensor: torch.Tensor) -> int:
    """Return the storage address of a tensor, which all its views share."""
    return tensor.untyped_storage().data_ptr() if tensor.layout is torch.strided else id(tensor)


def _written(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[torch.Tensor]:
    """Return the arguments that an operation changes in place."""
    if func is torch.ops.aten.native_batch_norm.default:  # its schema does not declare the running means as changed
        return [tensor for tensor in args[3:5] if tensor is not None and args[5]]
    if not func._schema.is_mutable:
        return []
    places = [(i, one.name) for i, one in enumerate(func._schema.arguments) if one.is_write]
    values = [args[i] if i < len(args) else kwargs.get(name) for i, name in places]
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, torch.Tensor)]


def _is_sized(func: Any, args: tuple[Any, ...]) -> bool:
    """Whether the result's size depends on no values, although the operation is tagged so: indexing without masks."""
    masks = (torch.bool, torch.uint8)
    return func is torch.ops.aten.index.Tensor and not any(one is not None and one.dtype in masks for one in args[1])


def recorded(function: Function, example: tuple[torch.Tensor, ...], device: str, *, folds: bool) -> tuple[_Recorder, Any]:
    """Run a function and record it; return the recorder and the function's results.

    With `folds`, tensors that depend on the arguments only by their shapes become constants.
    """
    recorder = _Recorder(example, folds=folds)
    with forked(device), on(device), _Watch(recorder), recorder:
        reseed(0, device)
        return recorder, function(*example)


def on(device: str) -> contextlib.AbstractContextManager[Any]:
    """Make a device the default for new tensors within a `with` block."""
    return contextlib.nullcontext() if device == "cpu" else torch.device(device)


def graph_operations(graph: Any) -> list[Any]:
    """Return the nodes that call an operation of torch."""
    return [node for node in graph.nodes if node.op == "call_function" and hasattr(node.target, "_schema")]
