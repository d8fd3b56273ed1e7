"""A recorded graph as a function: run by TorchScript's interpreter, or as machine code."""

import logging
import time
from collections.abc import Iterator
from typing import Any

import torch

from latentlab.inference.machine_code import compile_graph, folder, graph_key, load_code
from latentlab.inference.recorder import Function, graph_operations, recorded
from latentlab.inference.shorten import failures_as_nan, held_outside, shorten
from latentlab.seeds import double, forked

logger = logging.getLogger(__name__)


class RecordedGraph:
    """Graph of a function's operations, with its results at the example in `found`.

    `noise` has shape and dtype of each tensor of standard normal numbers that the function draws.
    """

    def __init__(self, function: Function, example: tuple[torch.Tensor, ...], device: str = "cpu") -> None:
        try:
            recorder, found = recorded(function, example, device, folds=True)
        except ValueError:  # a folded constant is changed in place later
            recorder, found = recorded(function, example, device, folds=False)
        outputs = found if isinstance(found, tuple) else (found,)
        self.found = [one.detach().cpu().numpy() for one in outputs]
        recorder.graph.output(tuple(recorder.in_graph(one) for one in outputs))
        failures_as_nan(recorder.graph)
        if not recorder.writes:
            shorten(recorder.graph)
        recorder.graph.eliminate_dead_code()
        self.root, self.graph = recorder.module, recorder.graph
        self.noise, self.sizes, self.device = recorder.noise, recorder.sizes, device
        self.n_operations = len(graph_operations(self.graph))

    def drawn(self) -> Iterator[torch.Tensor]:
        """Draws the graph's standard normal numbers from torch's random state."""
        return (torch.randn(shape, dtype=dtype, device=self.device) for shape, dtype in self.noise)

    def script(self, example: tuple[torch.Tensor, ...]) -> Function:
        """Returns a function that runs the graph by TorchScript's interpreter.

        TorchScript never frees a graph, so constant tensors are passed as arguments. Its optimiser is turned off: it takes as
        long as some hundred calls, and does not make them faster.
        """
        graph, held = held_outside(self.root, self.graph)
        with forked(self.device):
            arguments = (*example, *self.drawn(), *held)
        script = torch.jit.freeze(torch.jit.trace(_Interpreted(self.root, graph), arguments, check_trace=False).eval())

        def run(*arguments: torch.Tensor) -> Any:
            # A constant in the graph takes its dtype from the default.
            with torch.no_grad(), double(), torch.jit.optimized_execution(False):
                return script(*arguments, *self.drawn(), *held)

        return run

    def machine_code(self, example: tuple[torch.Tensor, ...]) -> Function:
        """Returns the graph as machine code, compiled now or read from the cache; the time taken is logged.

        Constant tensors are passed as arguments, so that the code also serves other data of the same shapes.

        Raises:
            ValueError: The graph draws random numbers that are not standard normal, or the code cannot be loaded.
        """
        begin = time.perf_counter()
        if any(torch.Tag.nondeterministic_seeded in node.target.tags for node in graph_operations(self.graph)):
            raise ValueError("it draws random numbers that are not standard normal")
        graph, held = held_outside(self.root, self.graph, numbers=True)
        module = torch.fx.GraphModule(self.root, graph)
        with forked(self.device):
            arguments = tuple(argument.contiguous() for argument in (*example, *self.drawn(), *held))
        path = folder() / f"{graph_key(module, arguments)}.pt2"
        loaded = load_code(path) if path.is_file() else None
        found = loaded is not None
        if loaded is None:
            compile_graph(module, arguments, path)
            loaded = load_code(path)
        if loaded is None:
            raise ValueError(f"what the compiler made cannot be loaded ({path})")
        spent = time.perf_counter() - begin
        logger.info("machine code of %d operations %s in %.1f s", self.n_operations, "read" if found else "compiled", spent)
        run_all = loaded.loader.run
        expected = [(argument.shape, argument.dtype) for argument in example]

        def run(*arguments: torch.Tensor) -> Any:
            if [(argument.shape, argument.dtype) for argument in arguments] != expected:  # compiled code does not check it
                raise ValueError(f"the machine code is for {expected}; got {[(a.shape, a.dtype) for a in arguments]}")
            with torch.no_grad():
                return tuple(run_all([*(a.contiguous() for a in arguments), *self.drawn(), *held]))

        return run


class _Interpreted(torch.nn.Module):
    """Module that runs a graph node by node, without generating Python code."""

    def __init__(self, root: torch.nn.Module, graph: torch.fx.Graph) -> None:
        super().__init__()
        self._run = torch.fx.Interpreter(root, graph=graph).run

    def forward(self, *arguments: torch.Tensor) -> Any:
        return self._run(*arguments)
