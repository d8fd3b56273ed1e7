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

import logging
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from latentlab.inference.graph import RecordedGraph
from latentlab.inference.recorder import Function, on
from latentlab.seeds import double, forked, reseed

logger = logging.getLogger(__name__)
WORTH = 10_000_000
"""Operations, over all calls, from which machine code repays its ten seconds: it saves about 1 us on each."""


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
            graph = RecordedGraph(function, example, plan.device)
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
            return RecordedGraph(function, example).sizes
    except Exception:  # whatever a program raises: `capture` says what
        return None


def _numbers(function: Function, arguments: Sequence[torch.Tensor], device: str) -> list[np.ndarray]:
    """Returns the results of a function, run with the random seed of the recording."""
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
