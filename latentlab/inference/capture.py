r"""Capture of a tensor function as one graph of operations, which runs without the program: as Python code or as machine code.

The function runs once, and its torch operations are recorded after derivatives and batches have been expanded. Results that
depend on no argument are constants of the graph. Standard normal numbers become arguments, drawn in the same order and from the
same random state as in the function. Torch's `make_fx` is similar, but it imports torch's compiler, which takes a second in
every process.

A graph is run by one of the back ends in `backends`. Python code needs no compilation. It runs operations on small arrays by
NumPy, and others by torch. Machine code needs a C++ compiler and about twelve seconds. A call then takes a third to a half of
the time, since neighbouring operations are fused into one loop. The code is cached in a folder, from which a later process loads
it at once. Both differ from the function in the last digits, and are checked against it before use. The choice between them
depends only on settings and sizes, never on timing or on the content of the cache.
"""

import logging
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from latentlab.inference.backends import BACKENDS
from latentlab.inference.graph import RecordedGraph
from latentlab.inference.recorder import Function, on
from latentlab.seeds import double, forked, reseed

logger = logging.getLogger(__name__)
WORTH = 30_000_000
"""Smallest number of operations over all calls for which compilation takes less time (12 s) than it saves (0.4 us on each)."""
ROUNDINGS = 100
"""Largest difference of a graph from its function, in changes of the function by one unit of rounding of its arguments."""
DIRECTLY = "the program is run directly, since it"
ONE_BY_ONE = "members of a batch are computed one by one, since the batch"
"""Beginnings of the warnings that a function, or a batch of its values, is not one graph."""


@dataclass(frozen=True)
class Plan:
    """Intended use of a graph.

    Args:
        n_calls: Approximate number of calls.
        compiled: Whether to compile to machine code; if None, when the number of calls makes it worthwhile.
        single: Whether the computation is in float32.
        device: Device of the arguments.
    """

    n_calls: float = 0
    compiled: bool | None = None
    single: bool = False
    device: str = "cpu"

    def is_compiled(self, n_operations: int) -> bool:
        """Whether a graph with this number of operations is compiled."""
        return n_operations * self.n_calls >= WORTH if self.compiled is None else self.compiled


def capture(
    function: Function,
    *example: torch.Tensor,
    otherwise: Function | None = None,
    plan: Plan = Plan(),
    is_told: bool = False,
) -> Function:
    """Return the function as one graph of tensor operations; if this fails, return `otherwise` or the function itself.

    A failure is a warning with the reason. So is that of a compilation on request. A fit shows equal warnings of its parts once.

    The graph is checked against the function at the example and at a second point near it. This detects a branch on a value,
    which the graph would freeze.

    Args:
        function: Maps tensors to a tuple of tensors.
        example: Example arguments; later calls have the same shapes.
        otherwise: Replacement if the function cannot be captured.
        plan: Intended use of the graph.
        is_told: Whether there was a warning that the same program cannot be captured.
    """
    example = tuple(argument.clone() for argument in example)  # a tensor passed twice would be one argument of the graph
    try:
        with double():
            graph = RecordedGraph(function, example, plan.device)
        plain = BACKENDS["Python code"](graph, example)
        second_point = tuple(e + 1e-2 if e.is_floating_point() else e for e in example)
        expected = [(example, graph.found), (second_point, _numbers(function, second_point, plan.device))]
        _check(plain, function, expected, plan)
    except Exception as error:
        what = ONE_BY_ONE if otherwise else DIRECTLY
        text = f"{what} cannot be captured as a graph: {_first_line(error)}"
        if not is_told:
            warnings.warn(text, stacklevel=2)
        return otherwise or function
    if plan.device == "cpu" and plan.is_compiled(graph.n_operations):
        try:
            code = BACKENDS["machine code"](graph, example)
            _check(code, function, expected, plan)
        except Exception as error:
            text = f"the graph is run by Python code, since it cannot be compiled: {_first_line(error)}"
            if plan.compiled:
                warnings.warn(text, stacklevel=2)
            else:
                logger.info(text)
        else:
            return code
    return plain


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]


def mean_size(function: Function, *example: torch.Tensor) -> float:
    """Return the mean number of entries of the function's operations; infinity if it cannot be captured."""
    entries = sizes(function, *example)
    return math.inf if entries is None else sum(entries) / max(len(entries), 1)


def sizes(function: Function, *example: torch.Tensor) -> list[int] | None:
    """Return the number of entries of each operation's result; None if the function cannot be captured."""
    try:
        with double():
            return RecordedGraph(function, example).sizes
    except Exception:  # a program can raise any exception, and `capture` logs it
        return None


def _numbers(function: Function, arguments: Sequence[torch.Tensor], device: str) -> list[np.ndarray]:
    """Return the results of a function, run with the random seed of the recording."""
    with torch.no_grad(), double(), forked(device), on(device):
        reseed(0, device)
        return [result.cpu().numpy() for result in function(*arguments)]


def _check(
    fast: Function, function: Function, expected: Sequence[tuple[Sequence[torch.Tensor], list[np.ndarray]]], plan: Plan
) -> None:
    """Compare results of `fast` with those of `function`, given pairs of arguments and results.

    Rounding depends on the order of summation. The tolerance is therefore relative to the largest entry of the tensor, too. For
    ill-conditioned results, such as those of a nearly singular matrix, it is a multiple of the change by rounded arguments.

    Raises:
        AssertionError: The results differ.
    """
    for arguments, results in expected:
        changed: list[np.ndarray] = []
        for i, (value, reference) in enumerate(zip(_numbers(fast, arguments, plan.device), results, strict=True)):
            largest = float(np.abs(np.nan_to_num(reference)).max(initial=1.0))
            atol, rtol = (1e-4 * largest, 1e-4) if plan.single else (1e-10 + 1e-14 * largest, 1e-11)
            if not np.allclose(value, reference, rtol=rtol, atol=atol, equal_nan=True):
                again = _numbers(function, arguments, plan.device)[i]
                np.testing.assert_allclose(again, reference, rtol=rtol, atol=atol)  # the function has no other inputs
                changed = changed or _numbers(function, [_rounded(argument) for argument in arguments], plan.device)
                atol += ROUNDINGS * float(np.abs(np.nan_to_num(changed[i] - reference)).max(initial=0.0))
            np.testing.assert_allclose(value, reference, rtol=rtol, atol=atol)  # NaN is NaN


def _rounded(argument: torch.Tensor) -> torch.Tensor:
    """Change each entry by one unit of rounding, up and down in turn."""
    if not argument.is_floating_point():
        return argument
    signs = 1 - 2 * (torch.arange(argument.numel()) % 2).reshape(argument.shape)
    return argument * (1 + signs * torch.finfo(argument.dtype).eps)
