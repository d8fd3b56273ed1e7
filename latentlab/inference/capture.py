r"""A function of tensors as one graph of operations, run without Python: by TorchScript, or as machine code.

`make_fx` runs the function once and writes down its operations. What depends on no argument is computed there and then, and
standard normal numbers become arguments, so that they are drawn where the function would draw them, from the same random state.
TorchScript runs such a graph at once. Machine code, made by Inductor, needs a C++ compiler and some ten seconds; then a call
takes a quarter to a half of the time, as neighbouring operations become one loop. It is kept in a folder, so that the next
process has it within a second. Both are checked against the function before they are used, and differ from each other in the
last digits: which of them runs depends on nothing but settings and sizes, never on a clock or on what the folder holds.
"""

import contextlib
import hashlib
import logging
import math
import os
import platform
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from latentlab.seeds import double

logger = logging.getLogger(__name__)

MOST_FOLDED = 2**20
"""Numbers of a constant that is computed beforehand, at most."""
WORTH = 10_000_000
"""Operations, over all calls, from which machine code repays its ten seconds: it saves about 1 us on each."""
CACHE = "LATENTLAB_CACHE"
"""Environment variable with the folder for machine code."""

Function = Callable[..., Any]


@dataclass(frozen=True)
class Plan:
    """What a method intends with a graph.

    Args:
        n_calls: About how many calls it will make.
        compiled: Whether to make machine code of it; where None, if so many calls are worth it.
    """

    n_calls: float = 0
    compiled: bool | None = None

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
            graph = _Graph(function, example)
            script = graph.script(example)
        _check(script, function, example)
    except Exception as error:
        logger.warning("running the program as it stands, since it cannot be captured: %s", str(error).split("\n")[0])
        return otherwise or function
    if plan.is_compiled(graph.n_operations):
        try:
            code = graph.machine_code(example)
            _check(code, function, example)
        except Exception as error:
            logger.warning("running the graph by TorchScript, since it cannot be compiled: %s", str(error).split("\n")[0])
        else:
            return code
    return script


def mean_size(function: Function, *example: torch.Tensor) -> float:
    """How many numbers an operation of the function makes, in the mean; infinity where it cannot be captured."""
    from torch.fx.experimental.proxy_tensor import make_fx

    try:
        with double():
            nodes = make_fx(lambda *arguments: function(*arguments))(*example).graph.nodes
    except Exception:  # whatever a program raises: `capture` says what
        return math.inf
    made = [node.meta.get("val") for node in nodes if node.op == "call_function"]
    sizes = [value.numel() for value in made if isinstance(value, torch.Tensor)]
    return sum(sizes) / max(len(sizes), 1)


class _Graph:
    """What a function does with its arguments; `noise` has the shapes of the standard normal numbers that it draws."""

    def __init__(self, function: Function, example: tuple[torch.Tensor, ...]) -> None:
        from torch.fx.experimental.proxy_tensor import make_fx

        with torch.random.fork_rng(devices=[]):
            self.module = make_fx(lambda *arguments: function(*arguments))(*example)
        self.noise = _draw_outside(self.module)
        _fold(self.module)
        self.n_operations = sum(node.op == "call_function" for node in self.module.graph.nodes)

    def drawn(self) -> Iterator[torch.Tensor]:
        """Standard normal numbers, from torch's random state."""
        return (torch.randn(shape, dtype=dtype) for shape, dtype in self.noise)

    def script(self, example: tuple[torch.Tensor, ...]) -> Function:
        """The graph run by TorchScript."""
        with torch.random.fork_rng(devices=[]):
            arguments = (*example, *self.drawn())
        script = torch.jit.freeze(torch.jit.trace(self.module, arguments, check_trace=False).eval())

        def run(*arguments: torch.Tensor) -> Any:
            with torch.no_grad(), double():  # a constant in the graph takes its dtype from the default
                return script(*arguments, *self.drawn())

        return run

    def machine_code(self, example: tuple[torch.Tensor, ...]) -> Function:
        """The graph compiled, or read back where an earlier process compiled it. The time that it takes is logged.

        Tensors that the graph holds are arguments of the code, which then serves other data of the same shapes too.
        """
        begin = time.perf_counter()
        if any(_is_random(node) for node in _operations(self.module)):
            raise ValueError("it draws random numbers that are not standard normal")
        module, held = _held_outside(self.module)
        with torch.random.fork_rng(devices=[]):
            arguments = (*example, *self.drawn(), *held)
        path = folder() / f"{_key(module, arguments)}.pt2"
        found = path.is_file()
        if not found:
            _compile(module, arguments, path)
        loaded = _load(path)
        if loaded is None and found:
            _compile(module, arguments, path)
            loaded = _load(path)
        if loaded is None:
            raise ValueError(f"what the compiler made cannot be loaded ({path})")
        spent = time.perf_counter() - begin
        logger.info("machine code of %d operations %s in %.1f s", self.n_operations, "read" if found else "compiled", spent)
        run_all = loaded.loader.run

        def run(*arguments: torch.Tensor) -> Any:
            with torch.no_grad():
                return tuple(run_all([*(a.contiguous() for a in arguments), *self.drawn(), *held]))

        return run


def _check(fast: Function, function: Function, example: tuple[torch.Tensor, ...]) -> None:
    """Compares the two at the example and beside it, with the same random numbers.

    Raises:
        AssertionError: They differ.
    """
    for shift in (0.0, 1e-2):
        arguments = [e + shift if e.is_floating_point() else e for e in example]
        found = []
        for one in (fast, function):
            with torch.no_grad(), double(), torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                found.append(one(*arguments))
        for quick, plain in zip(*found, strict=True):
            torch.testing.assert_close(quick, plain, rtol=1e-11, atol=1e-10, equal_nan=True)


# -- what is done to a graph


def _operations(module: Any) -> list[Any]:
    """The nodes that call an operation of torch."""
    nodes: Any = module.graph.nodes
    return [node for node in nodes if node.op == "call_function" and hasattr(node.target, "_schema")]


def _is_random(node: Any) -> bool:
    return torch.Tag.nondeterministic_seeded in node.target.tags


def _draw_outside(module: Any) -> list[tuple[torch.Size, torch.dtype]]:
    """Makes new arguments, at the end, of the standard normal numbers that the graph draws; their shapes and types."""
    graph: Any = module.graph
    found: list[tuple[torch.Size, torch.dtype]] = []
    last = [node for node in graph.nodes if node.op == "placeholder"][-1]
    for node in _operations(module):
        made: Any = node.args[0] if node.args else None
        aten = torch.ops.aten
        fills = node.target is aten.normal_.default and made.target is aten.empty.memory_format
        if not fills or tuple(node.args[1:]) not in ((), (0.0, 1.0)) or any(user is not node for user in made.users):
            continue
        value = node.meta["val"]
        found.append((value.shape, value.dtype))
        with graph.inserting_after(last):
            last = graph.placeholder(f"noise_{len(found)}")
        last.meta["val"] = value
        node.replace_all_uses_with(last)
        graph.erase_node(node)
        graph.erase_node(made)
    module.recompile()
    return found


def _fold(module: Any) -> None:
    """Computes what depends on no argument. Masks among the constants become indices, whose number is then known."""
    graph, aten = module.graph, torch.ops.aten
    known: dict[Any, torch.Tensor] = {}
    changed = {node.args[0] for node in _operations(module) if node.target._schema.is_mutable}
    for node in reversed(graph.nodes):  # what a changed tensor is made of may be the same memory
        if node in changed:
            changed.update(node.all_input_nodes)

    def value_of(argument: Any) -> Any:
        return torch.fx.node.map_arg(argument, lambda node: known[node])

    for node in list(graph.nodes):
        if node.op == "get_attr" and node not in changed:
            known[node] = getattr(module, node.target)
            continue
        plain = node.op == "call_function" and node not in changed and isinstance(node.meta.get("val"), torch.Tensor)
        if not plain or not hasattr(node.target, "_schema") or node.target._schema.is_mutable:
            continue
        if node.target in (aten.index.Tensor, aten.index_put.default):
            _count(graph, node, known)
        if (
            not _is_random(node)
            and node.meta["val"].numel() <= MOST_FOLDED
            and all(source in known for source in node.all_input_nodes)
        ):
            with torch.no_grad():
                known[node] = node.target(*value_of(node.args), **value_of(node.kwargs)).clone()
    for node, value in known.items():
        if node.op == "call_function" and any(user not in known for user in node.users):
            _hold(module, node, value)
    graph.eliminate_dead_code()
    module.delete_all_unused_submodules()
    module.recompile()


def _count(graph: Any, node: Any, known: dict[Any, torch.Tensor]) -> None:
    """Replaces known masks of one dim in an indexing by the numbers of their entries."""
    where = list(node.args[1])
    for i, index in enumerate(where):
        if index in known and known[index].dtype == torch.bool and known[index].dim() == 1:
            with graph.inserting_before(node):
                where[i] = graph.call_function(torch.ops.aten.nonzero.default, (index,))
                known[where[i]] = known[index].nonzero()
                where[i] = graph.call_function(torch.ops.aten.squeeze.dim, (where[i], 1))
                known[where[i]] = known[index].nonzero().squeeze(1)
    node.args = (node.args[0], where, *node.args[2:])


def _hold(module: Any, node: Any, value: torch.Tensor) -> None:
    """Puts a constant in the place of a node."""
    name = f"_constant_{node.name}"
    module.register_buffer(name, value)
    with module.graph.inserting_before(node):
        constant = module.graph.get_attr(name)
    constant.meta["val"] = value
    node.replace_all_uses_with(constant)


def _held_outside(module: Any) -> tuple[Any, list[torch.Tensor]]:
    """The graph with the tensors that it holds, single numbers apart, as arguments at the end; and these."""
    graph = torch.fx.Graph()
    copies: dict[Any, Any] = {}
    held: list[torch.Tensor] = []
    nodes = list(module.graph.nodes)
    for node in nodes:
        if node.op == "placeholder":
            copies[node] = graph.node_copy(node, lambda n: copies[n])
    for node in nodes:
        if node.op == "get_attr" and node.users and getattr(module, node.target).dim():
            copies[node] = graph.placeholder(f"held_{len(held)}")
            held.append(getattr(module, node.target).detach().contiguous())
    for node in nodes:
        if node not in copies and (node.users or node.op == "output"):
            copies[node] = graph.node_copy(node, lambda n: copies[n])
    return torch.fx.GraphModule(module, graph), held


# -- machine code


def folder() -> Path:
    """Where machine code is kept: `LATENTLAB_CACHE`, or `latentlab` in the user's folder for caches; made if it is not there."""
    given = os.environ.get(CACHE)
    try:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        path = Path(given) if given else home / "latentlab"
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # no home, or one that cannot be written to
        path = Path(tempfile.gettempdir()) / f"latentlab-{os.getuid() if hasattr(os, 'getuid') else 'cache'}"
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    return path


def _key(module: Any, arguments: tuple[torch.Tensor, ...]) -> str:
    """Of what the code depends on: the operations, the arguments' shapes, torch, and the processor."""
    single = [(name, value.dtype, value.item()) for name, value in module.named_buffers() if not value.dim()]
    attributes = [(n.target, getattr(module, n.target)) for n in module.graph.nodes if n.op == "get_attr"]
    single += [(name, value.dtype, value.item()) for name, value in attributes]
    shapes = [(a.shape, a.stride(), a.dtype) for a in arguments]
    where = (torch.__version__, platform.machine(), torch.backends.cpu.get_cpu_capability(), _processor())
    return hashlib.sha256(repr((module.code, single, shapes, where)).encode()).hexdigest()


def _processor() -> str:
    """The processor's name, for which the code is made."""
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line for line in lines if line.startswith("model name"))
    return platform.processor()


def _compile(module: Any, arguments: tuple[torch.Tensor, ...], path: Path) -> None:
    """Compiles the graph into a package; it is there whole or not at all."""
    import torch._inductor

    with tempfile.TemporaryDirectory(dir=path.parent) as work:
        made = Path(work) / "made.pt2"
        with warnings.catch_warnings(), torch.no_grad(), double(), torch.random.fork_rng(devices=[]):
            warnings.simplefilter("ignore")
            program = torch.export.export(module, tuple(arguments))
            torch._inductor.aoti_compile_and_package(program, package_path=str(made))
        os.replace(made, path)


def _load(path: Path) -> Any:
    """The code in a package; None, and no package, where it is damaged."""
    import torch._inductor

    try:
        return torch._inductor.aoti_load_package(str(path))
    except Exception:  # whatever a truncated file leads to
        path.unlink(missing_ok=True)
        return None
