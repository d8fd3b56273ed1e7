r"""A function of tensors as one graph of operations, run without Python: by TorchScript, or as machine code.

The function runs once, and what torch does to its arguments is written down: derivatives and batches are taken apart by then.
What depends on no argument is a constant of the graph, and standard normal numbers become arguments, so that they are drawn
where the function would draw them, from the same random state. (`make_fx` of torch does much the same, and imports its compiler:
a second that every process would wait.)

TorchScript runs such a graph at once. Machine code, made by Inductor, needs a C++ compiler and some ten seconds; then a call
takes a quarter to a half of the time, as neighbouring operations become one loop. It is kept in a folder, so that the next
process has it within a second. Both are checked against the function before they are used, and differ from each other in the
last digits: which of them runs depends on nothing but settings and sizes, never on a clock or on what the folder holds.
"""

import contextlib
import hashlib
import logging
import math
import operator
import os
import platform
import tempfile
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from latentlab.seeds import double, forked, reseed

logger = logging.getLogger(__name__)

WORTH = 10_000_000
"""Operations, over all calls, from which machine code repays its ten seconds: it saves about 1 us on each."""
CACHE = "LATENTLAB_CACHE"
"""Environment variable with the folder for machine code."""
UNSEEN = ("numpy", "tolist", "__array__", "__dlpack__")
"""Methods of a tensor that hand out its numbers without an operation of torch."""
SMALL = 64
"""Numbers up to which a tensor that a graph holds is looked at."""
_aten = torch.ops.aten
SHAPED = (
    *(_aten.new_ones.default, _aten.new_zeros.default, _aten.new_full.default),
    *(_aten.ones_like.default, _aten.zeros_like.default, _aten.full_like.default),
)
"""Operations that take no more from a tensor than its shape."""
SAME = (_aten.detach.default, _aten.alias.default, _aten.view.default, _aten._unsafe_view.default, _aten.expand.default)
"""Operations that give their argument back where its shape is that of the result."""
NEUTRAL = {_aten.add.Tensor: 0, _aten.sub.Tensor: 0, _aten.mul.Tensor: 1, _aten.mul.Scalar: 1, _aten.div.Tensor: 1}
NEUTRAL[_aten.pow.Tensor_Scalar] = 1
"""The second argument with which an operation gives back the first."""

Function = Callable[..., Any]


@dataclass(frozen=True)
class Plan:
    """What a method intends with a graph.

    Args:
        n_calls: About how many calls it will make.
        compiled: Whether to make machine code of it; where None, if so many calls are worth it.
        single: Whether it computes in float32.
        device: Where its arguments are.
    """

    n_calls: float = 0
    compiled: bool | None = None
    single: bool = False
    device: str = "cpu"

    def is_compiled(self, n_operations: int) -> bool:
        """Whether a graph of so many operations is to be compiled."""
        return n_operations * self.n_calls >= WORTH if self.compiled is None else self.compiled


def capture(function: Function, *example: torch.Tensor, otherwise: Function | None = None, plan: Plan = Plan()) -> Function:
    """The function as one graph of tensor operations without Python in it; `otherwise`, or itself, where that fails.

    The graph is checked against the function at the example and beside it: a branch on a value would be frozen otherwise.

    Args:
        function: Of tensors; gives a tuple of tensors.
        example: Arguments of the shapes that it will be called with.
        otherwise: What runs in its place where it cannot be captured.
        plan: What for.
    """
    example = tuple(argument.clone() for argument in example)  # a tensor that is two arguments would be one in the graph
    try:
        with warnings.catch_warnings(), double():
            warnings.simplefilter("ignore")
            graph = _Graph(function, example, plan.device)
            script = graph.script(example)
        beside = tuple(e + 1e-2 if e.is_floating_point() else e for e in example)
        expected = [(example, graph.found), (beside, _numbers(function, beside, plan.device))]
        _check(script, expected, plan)
    except Exception as error:
        logger.warning("running the program as it stands, since it cannot be captured: %s", _said(error))
        return otherwise or function
    if plan.device == "cpu" and plan.is_compiled(graph.n_operations):
        try:
            code = graph.machine_code(example)
            _check(code, expected, plan)
        except Exception as error:
            logger.warning("running the graph by TorchScript, since it cannot be compiled: %s", _said(error))
        else:
            return code
    return script


def on(device: str) -> contextlib.AbstractContextManager[Any]:
    """Tensors are made on this device inside the block."""
    return contextlib.nullcontext() if device == "cpu" else torch.device(device)


def _said(error: Exception) -> str:
    return str(error).strip().split("\n")[0]


def mean_size(function: Function, *example: torch.Tensor) -> float:
    """How many numbers an operation of the function makes, in the mean; infinity where it cannot be captured."""
    made = sizes(function, *example)
    return math.inf if made is None else sum(made) / max(len(made), 1)


def sizes(function: Function, *example: torch.Tensor) -> list[int] | None:
    """How many numbers each operation of the function makes; None where it cannot be captured."""
    try:
        with double():
            return _Graph(function, example).sizes
    except Exception:  # whatever a program raises: `capture` says what
        return None


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
            if func is _aten.randn.default:
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


def _recorded(function: Function, example: tuple[torch.Tensor, ...], device: str, *, folds: bool) -> tuple[_Recorder, Any]:
    """What a function does, and what it finds; where `folds`, what only the arguments' shapes tell is a constant."""
    recorder = _Recorder(example, folds=folds)
    with forked(device), on(device), _Watch(recorder), recorder:
        reseed(0, device)
        return recorder, function(*example)


class _Graph:
    """The operations of a function on its arguments, and its results at the example.

    `noise` has the shapes of the standard normal numbers that it draws.
    """

    def __init__(self, function: Function, example: tuple[torch.Tensor, ...], device: str = "cpu") -> None:
        try:
            recorder, found = _recorded(function, example, device, folds=True)
        except ValueError:  # what is no constant after all: it is changed in place later
            recorder, found = _recorded(function, example, device, folds=False)
        outputs = found if isinstance(found, tuple) else (found,)
        self.found = [one.detach().cpu().numpy() for one in outputs]
        recorder.graph.output(tuple(recorder.in_graph(one) for one in outputs))
        _failures_as_nan(recorder.graph)
        if not recorder.writes:
            _shorten(recorder.graph)
        recorder.graph.eliminate_dead_code()
        self.root, self.graph = recorder.module, recorder.graph
        self.noise, self.sizes, self.device = recorder.noise, recorder.sizes, device
        self.n_operations = len(_operations(self.graph))

    def drawn(self) -> Iterator[torch.Tensor]:
        """Standard normal numbers, from torch's random state."""
        return (torch.randn(shape, dtype=dtype, device=self.device) for shape, dtype in self.noise)

    def script(self, example: tuple[torch.Tensor, ...]) -> Function:
        """The graph run by TorchScript, which never forgets a graph: the tensors that this one holds are arguments.

        It runs as it is: TorchScript's optimiser would take as long as some hundred calls, and gain nothing in them.
        """
        graph, held = _held_outside(self.root, self.graph)
        with forked(self.device):
            arguments = (*example, *self.drawn(), *held)
        script = torch.jit.freeze(torch.jit.trace(_Interpreted(self.root, graph), arguments, check_trace=False).eval())

        def run(*arguments: torch.Tensor) -> Any:
            # A constant in the graph takes its dtype from the default.
            with torch.no_grad(), double(), torch.jit.optimized_execution(False):
                return script(*arguments, *self.drawn(), *held)

        return run

    def machine_code(self, example: tuple[torch.Tensor, ...]) -> Function:
        """The graph compiled, or read back where an earlier process compiled it. The time that it takes is logged.

        Tensors that the graph holds are arguments of the code, which then serves other data of the same shapes too.
        """
        begin = time.perf_counter()
        if any(torch.Tag.nondeterministic_seeded in node.target.tags for node in _operations(self.graph)):
            raise ValueError("it draws random numbers that are not standard normal")
        graph, held = _held_outside(self.root, self.graph, numbers=True)
        module = torch.fx.GraphModule(self.root, graph)
        with forked(self.device):
            arguments = tuple(argument.contiguous() for argument in (*example, *self.drawn(), *held))
        path = folder() / f"{_key(module, arguments)}.pt2"
        loaded = _load(path) if path.is_file() else None
        found = loaded is not None
        if loaded is None:
            _compile(module, arguments, path)
            loaded = _load(path)
        if loaded is None:
            raise ValueError(f"what the compiler made cannot be loaded ({path})")
        spent = time.perf_counter() - begin
        logger.info("machine code of %d operations %s in %.1f s", self.n_operations, "read" if found else "compiled", spent)
        run_all = loaded.loader.run
        expected = [(argument.shape, argument.dtype) for argument in example]

        def run(*arguments: torch.Tensor) -> Any:
            if [(argument.shape, argument.dtype) for argument in arguments] != expected:  # the code itself would not look
                raise ValueError(f"the machine code is for {expected}; got {[(a.shape, a.dtype) for a in arguments]}")
            with torch.no_grad():
                return tuple(run_all([*(a.contiguous() for a in arguments), *self.drawn(), *held]))

        return run


def _numbers(function: Function, arguments: Sequence[torch.Tensor], device: str) -> list[np.ndarray]:
    """Results of a function, drawn with the random numbers that recording used."""
    with torch.no_grad(), double(), forked(device), on(device):
        reseed(0, device)
        return [result.cpu().numpy() for result in function(*arguments)]


def _check(fast: Function, expected: Sequence[tuple[Sequence[torch.Tensor], list[np.ndarray]]], plan: Plan) -> None:
    """Compares what `fast` finds with what is expected, given arguments and results.

    In single precision sums lose digits by the order of their terms: entries are then compared by the largest of their tensor.

    Raises:
        AssertionError: They differ.
    """
    for arguments, results in expected:
        for quick, plain in zip(_numbers(fast, arguments, plan.device), results, strict=True):
            atol = 1e-4 * float(np.abs(np.nan_to_num(plain)).max(initial=1.0)) if plan.single else 1e-10
            np.testing.assert_allclose(quick, plain, rtol=1e-4 if plan.single else 1e-11, atol=atol)  # NaN is NaN


# -- what is done to a graph


class _Interpreted(torch.nn.Module):
    """A graph that is run node by node: no code of Python's is made of it."""

    def __init__(self, root: torch.nn.Module, graph: torch.fx.Graph) -> None:
        super().__init__()
        self._run = torch.fx.Interpreter(root, graph=graph).run

    def forward(self, *arguments: torch.Tensor) -> Any:
        return self._run(*arguments)


def _operations(graph: Any) -> list[Any]:
    """The nodes that call an operation of torch."""
    return [node for node in graph.nodes if node.op == "call_function" and hasattr(node.target, "_schema")]


def _shorten(graph: Any) -> None:
    """Makes one of equal operations on the same arguments, and drops those that leave their argument as it is.

    Only of a graph that changes nothing in place; outputs stay tensors of their own.
    """
    known: dict[str, Any] = {}
    outputs = set(next(reversed(graph.nodes)).all_input_nodes)
    for node in _operations(graph):
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
    return node.target in SAME or (node.target is _aten.permute.default and node.args[1] == sorted(node.args[1]))


def _failures_as_nan(graph: Any) -> None:
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


def _held_outside(module: Any, own: Any, *, numbers: bool = False) -> tuple[Any, list[torch.Tensor]]:
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
        copies[node] = graph.call_function(_aten.full.default, (list(tensor.shape), number), {"dtype": tensor.dtype})
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


# -- machine code


def folder() -> Path:
    """Where machine code is kept: `LATENTLAB_CACHE`, or `latentlab` in the user's folder for caches; made if it is not there.

    Where there is no such folder, one among the temporary files, which anyone can have made: it must be the user's alone.

    Raises:
        PermissionError: It is not.
    """
    given = os.environ.get(CACHE)
    try:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        path = Path(given) if given else home / "latentlab"
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # no home, or one that cannot be written to
        path = Path(tempfile.gettempdir()) / f"latentlab-{os.getuid() if hasattr(os, 'getuid') else 'cache'}"
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = path.lstat()
        if hasattr(os, "getuid") and (found.st_uid != os.getuid() or found.st_mode & 0o022 or path.is_symlink()):
            raise PermissionError(f"{path} can be written to by others; set {CACHE} to a folder of your own") from None
    return path


def _key(module: Any, arguments: tuple[torch.Tensor, ...]) -> str:
    """Of what the code depends on: the operations, the arguments' shapes, torch, the threads, and the processor."""
    single = [(name, value.dtype, value.item()) for name, value in module.named_buffers() if not value.dim()]
    attributes = [(n.target, getattr(module, n.target)) for n in module.graph.nodes if n.op == "get_attr"]
    single += [(name, value.dtype, value.item()) for name, value in attributes]
    shapes = [(a.shape, a.stride(), a.dtype) for a in arguments]
    where = (torch.__version__, torch.get_num_threads(), torch.backends.cpu.get_cpu_capability(), _processor())
    return hashlib.sha256(repr((module.code, single, shapes, where)).encode()).hexdigest()


def _processor() -> str:
    """The processor's name, and the instructions that it knows where they are told: the code is made for it."""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")[0].splitlines()
        told = [line for line in lines if line.startswith(("model name", "flags", "CPU", "Features"))]
        return "\n".join([platform.machine(), *told])
    return f"{platform.machine()} {platform.processor()}"


def _compile(module: Any, arguments: tuple[torch.Tensor, ...], path: Path) -> None:
    """Compiles the graph into a package; it is there whole or not at all."""
    import torch._inductor

    with tempfile.TemporaryDirectory(dir=path.parent) as work, _quiet("torch._inductor"):
        made = Path(work) / "made.pt2"
        with torch.no_grad(), double(), forked():
            program = torch.export.export(module, tuple(arguments))
            torch._inductor.aoti_compile_and_package(program, package_path=str(made))
        os.replace(made, path)


@contextlib.contextmanager
def _quiet(name: str) -> Iterator[None]:
    """A logger says errors only inside the block, and nothing warns."""
    own = logging.getLogger(name)
    before = own.level
    own.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        own.setLevel(before)


def _load(path: Path) -> Any:
    """The code in a package; None, and no package, where it is damaged."""
    import torch._inductor

    try:
        with zipfile.ZipFile(path) as package:
            if package.testzip():  # torch does not look, and would run what is there
                raise ValueError("a part is not what was written")
        return torch._inductor.aoti_load_package(str(path))
    except Exception:  # whatever a truncated file leads to
        path.unlink(missing_ok=True)
        return None
