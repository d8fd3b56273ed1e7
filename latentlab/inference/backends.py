"""Back ends: ways to run a recorded graph. All give the results of the recorded function to rounding."""

from collections.abc import Callable

import torch

from latentlab.inference.graph import RecordedGraph
from latentlab.inference.machine_code import machine_code
from latentlab.inference.python_code import python_code
from latentlab.inference.recorder import Function

BACKENDS: dict[str, Callable[[RecordedGraph, tuple[torch.Tensor, ...]], Function]] = {
    "Python code": python_code,
    "machine code": machine_code,
}
"""Functions of a graph and example arguments that return the graph as a function, by the name of the back end."""
