"""Records the ATen operations of a function, after derivatives and batches have been expanded, as one graph."""

import contextlib
import logging
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from latentlab.seeds import forked, reseed

logger = logging.getLogger(__name__)

Function = Callable[..., Any]


UNSEEN = ("numpy", "tolist", "__array__", "__dlpack__")
"""Methods of a tensor that hand out its numbers without an operation of torch."""
ATEN = torch.ops.aten
SHAPED = (
    *(ATEN.new_ones.default, ATEN.new_zeros.default, ATEN.new_full.default),
    *(ATEN.ones_like.default, ATEN.zeros_like.default, ATEN.full_like.default),
)
"""Operations that take no more from a tensor than its shape."""
SAME = (ATEN.detach.default, ATEN.alias.default, ATEN.view.default, ATEN._unsafe_view.default, ATEN.expand.default)
"""Operations that give their argument back where its shape is that of the result."""
NEUTRAL = {ATEN.add.Tensor: 0, ATEN.sub.Tensor: 0, ATEN.mul.Tensor: 1, ATEN.mul.Scalar: 1, ATEN.div.Tensor: 1}
NEUTRAL[ATEN.pow.Tensor_Scalar] = 1
"""The second argument with which an operation gives back the first."""


class _Recorder(TorchDispatchMode):
    """Writes down what is done to tensors that depend on the arguments.

    Tensors are known by their identity, and so are held until the end. A tensor that is no node is what it is for good, unless
    it is changed in place, which the places of memory tell: those of `memory` are constants of the graph, those of `changed` were
    made nodes by a change, those of `made` came into being in this call, and those of `shaped` are nodes of which the arguments
    told no more than the shape. What is refused, with a ValueError, is what a graph would get wrong without `capture`
    seeing it.
    """

    def __init__(self, arguments: Sequence[torch.Tensor], *, folds: bool) -> None:
        super().__init__()
        self.folds = folds
        self.graph = torch.fx.Graph()
        self.module = torch.nn.Module()
        self.nodes: dict[int, Any] = {}
        self.constants: dict[int, Any] = {}
        self.held: list[torch.Tensor] = []
        self.memory: set[int] = set()
        self.changed: set[int] = set()
        self.made: set[int] = set()
        self.shaped: set[int] = set()
        self.writes = False
        self.noise: list[tuple[torch.Size, torch.dtype]] = []
        self.sizes: list[int] = []
        for i, argument in enumerate(arguments):
            self.last = self.graph.placeholder(f"argument_{i}")
            self.know(argument, self.last)

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Asked by torch, which else imports its compiler to keep it away from here."""
        return False

    def know(self, tensor: torch.Tensor, node: Any) -> None:
        """The tensor is what the node gives."""
        self.nodes[id(tensor)] = node
        self.held.append(tensor)

    def apart(self, func: Any, args: Any, kwargs: Any, given: list[torch.Tensor]) -> Any:
        """What the function finds where no argument takes part; it is held where its memory is new."""
        found = func(*args, **kwargs)
        before = set() if func is torch.ops.aten.lift_fresh.default else {_memory(tensor) for tensor in given}
        for one in tree_leaves(found):
            if isinstance(one, torch.Tensor) and _memory(one) not in before:
                self.made.add(_memory(one))
                self.held.append(one)
        return found

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        unknown = [tensor for tensor in given if id(tensor) not in self.nodes]
        if self.changed and any(_memory(tensor) in self.changed for tensor in unknown):
            raise ValueError("it changes a tensor in place that it also uses in another place")
        written = _written(func, args, kwargs)
        if any(id(tensor) not in self.nodes and _memory(tensor) not in self.made for tensor in written):
            raise ValueError(f"it changes a tensor that is there after the call too ({func})")
        if torch.Tag.nondeterministic_seeded in func.tags:
            if func is ATEN.randn.default:
                found = func(*args, **kwargs)
                self._noise(found)
                return found
            if func is torch.ops.aten.normal_.default and unknown and tuple(args[1:]) in ((), (0.0, 1.0)):
                self._noise(args[0])
                return func(*args, **kwargs)
        elif len(unknown) == len(given) or (not written and self._is_constant(func, given)):
            return self.apart(func, args, kwargs, given)
        if func in (torch.ops.aten.index.Tensor, torch.ops.aten.index_put.default):
            args = (args[0], self._counted(args[1]), *args[2:])
        if torch.Tag.dynamic_output_shape in func.tags and not _is_sized(func, args):
            raise ValueError(f"the shape of what it makes depends on values ({func})")
        self.shaped.difference_update(_memory(tensor) for tensor in written)
        self.writes |= bool(written)
        changed = {id(tensor) for tensor in written}
        mapped = tree_map(lambda leaf: self.in_graph(leaf, changed=id(leaf) in changed), (args, kwargs))
        node = self.graph.call_function(func, *mapped)
        found = func(*args, **kwargs)
        if func is torch.ops.aten._linalg_check_errors.default:
            return found
        if not any(isinstance(one, torch.Tensor) for one in tree_leaves(found)):
            raise ValueError(f"it takes a number out of a tensor ({func})")
        if isinstance(found, torch.Tensor):
            self._known(found, node)
            if func in SHAPED:
                self.shaped.add(_memory(found))
        else:
            for i, one in enumerate(found):
                if isinstance(one, torch.Tensor):
                    self._known(one, self.graph.call_function(operator.getitem, (node, i)))
        return found

    def _is_constant(self, func: Any, given: list[torch.Tensor]) -> bool:
        """Whether no more than the shapes of the arguments tells what a function makes; a view may be written to later."""
        if not self.folds or func in SHAPED or any(one.alias_info is not None for one in func._schema.returns):
            return False
        return all(id(tensor) not in self.nodes or _memory(tensor) in self.shaped for tensor in given)

    def _known(self, tensor: torch.Tensor, node: Any) -> None:
        node.meta["n_dims"], node.meta["is_number"] = tensor.dim(), tensor.is_floating_point()
        node.meta["kind"] = tensor.shape, tensor.dtype
        self.sizes.append(tensor.numel())
        self.know(tensor, node)

    def _noise(self, tensor: torch.Tensor) -> None:
        """Makes an argument of a tensor of standard normal numbers."""
        with self.graph.inserting_after(self.last):
            self.last = self.graph.placeholder(f"noise_{len(self.noise)}")
        self.noise.append((tensor.shape, tensor.dtype))
        self.know(tensor, self.last)

    def in_graph(self, leaf: Any, *, changed: bool = False) -> Any:
        """The node of a tensor, or of a constant: of a copy of it, where it is about to be changed in place."""
        if not isinstance(leaf, torch.Tensor):
            return leaf
        if id(leaf) in self.nodes:
            return self.nodes[id(leaf)]
        memory = _memory(leaf)
        if changed and memory in self.memory:
            raise ValueError("it changes a tensor in place that it also uses in another place")
        if id(leaf) in self.constants:
            return self.constants[id(leaf)]
        name = f"constant_{len(self.held)}"
        self.module.register_buffer(name, leaf.detach().clone() if changed else leaf.detach())
        node = self.graph.get_attr(name)
        if changed:
            self.changed.add(memory)
            node = self.graph.call_function(torch.ops.aten.clone.default, (node,))
            self.know(leaf, node)
        else:
            self.memory.add(memory)
            self.constants[id(leaf)] = node
            self.held.append(leaf)
        return node

    def _counted(self, where: Sequence[Any]) -> list[Any]:
        """Indices with the masks that are constants replaced by the numbers of their entries, so that it is known how many."""
        found: list[Any] = []
        for index in where:
            mask = index is not None and index.dtype == torch.bool and id(index) not in self.nodes
            found.extend(index.nonzero(as_tuple=True) if mask else [index])
        return found


class _Watch(TorchFunctionMode):
    """Refuses what would take numbers out of a tensor that the recorder knows, unseen by it."""

    def __init__(self, recorder: _Recorder) -> None:
        super().__init__()
        self.recorder = recorder

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in UNSEEN and args and id(args[0]) in self.recorder.nodes:
            raise ValueError(f"it takes a number out of a tensor ({func.__name__})")
        return func(*args, **(kwargs or {}))


def _memory(tensor: torch.Tensor) -> int:
    """Where a tensor's numbers are, the same for all views of it."""
    return tensor.untyped_storage().data_ptr() if tensor.layout is torch.strided else id(tensor)


def _written(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[torch.Tensor]:
    """The tensors among the arguments that an operation changes."""
    if func is torch.ops.aten.native_batch_norm.default:  # which does not declare its running means
        return [tensor for tensor in args[3:5] if tensor is not None and args[5]]
    if not func._schema.is_mutable:
        return []
    places = [(i, one.name) for i, one in enumerate(func._schema.arguments) if one.is_write]
    values = [args[i] if i < len(args) else kwargs.get(name) for i, name in places]
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, torch.Tensor)]


def _is_sized(func: Any, args: tuple[Any, ...]) -> bool:
    """Whether an operation that can make tensors of any size makes one of the size that it is asked for: no mask is an index."""
    masks = (torch.bool, torch.uint8)
    return func is torch.ops.aten.index.Tensor and not any(one is not None and one.dtype in masks for one in args[1])


def recorded(function: Function, example: tuple[torch.Tensor, ...], device: str, *, folds: bool) -> tuple[_Recorder, Any]:
    """What a function does, and what it finds; where `folds`, what only the arguments' shapes tell is a constant."""
    recorder = _Recorder(example, folds=folds)
    with forked(device), on(device), _Watch(recorder), recorder:
        reseed(0, device)
        return recorder, function(*example)


def on(device: str) -> contextlib.AbstractContextManager[Any]:
    """Tensors are made on this device inside the block."""
    return contextlib.nullcontext() if device == "cpu" else torch.device(device)


def graph_operations(graph: Any) -> list[Any]:
    """The nodes that call an operation of torch."""
    return [node for node in graph.nodes if node.op == "call_function" and hasattr(node.target, "_schema")]
