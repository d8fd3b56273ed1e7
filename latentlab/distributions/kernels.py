r"""Log likelihoods of chains and mixtures with explicit gradients: one pass over the data, without an autograd graph.

By Fisher's identity the gradient of a log likelihood is the posterior expectation of the complete-data score,
$$ \nabla_\theta \log p(x) = E[\nabla_\theta \log p(x, z) \mid x]. $$
The forward-backward pass, or the responsibilities, therefore give value and gradient at once. The module `compiled` contains the
loops. This module makes them operations of torch, each a single node of a graph with this gradient. Under `torch.vmap` a batch is
one call with the memory of one member. Second derivatives are those of the same log likelihood written in operations of torch.

`available_for` returns False without Numba, and for tensors that are not float64 on the CPU.

References:
    Cappé, Moulines & Rydén (2005), Inference in Hidden Markov Models, chapter 10 (Fisher's identity).
"""

import functools
import inspect
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch

from latentlab.distributions import loops
from latentlab.seeds import n_threads

AT_ONCE = 4096
"""Number of units of a mixture per block, such that the work arrays stay in the processor's cache."""
SHARED = 1000
"""Smallest size of a batch member's arguments for which several threads share the members."""
UNROLLED = 6
"""Largest number of states of a chain for which a loop is compiled for this number."""

Arrays = tuple[np.ndarray, ...]


def compiled_loops(module: str = "compiled") -> Any:
    """Import a module of compiled loops of this folder; return None if there is no Numba."""
    return loops.load(f"distributions.{module}")


def available_for(*tensors: torch.Tensor) -> bool:
    """Check whether there are kernels for these tensors."""
    return all(one.dtype == torch.float64 and one.device.type == "cpu" for one in tensors) and compiled_loops() is not None


# -- value and gradients of one member of a batch: arrays in, gradients written into arrays


def hidden_markov(parameters: Arrays, data: Arrays, gradients: Arrays) -> float:
    """Log likelihood of a chain; parameters log_initial, log_transition, log_emission; data starts."""
    return compiled_loops().hidden_markov(unrolled(len(parameters[0])), *parameters, *data, *gradients)


def gaussian_hidden_markov(parameters: Arrays, data: Arrays, gradients: Arrays) -> float:
    """Log likelihood of a chain with Gaussian emissions.

    The parameters are log_initial, log_transition, mu, lower; the data are x `(feature, unit)` and starts.
    """
    return compiled_loops("compiled_gaussians").gaussian_hidden_markov(
        unrolled(len(parameters[0])), *parameters, *data, *gradients
    )


def gaussian_mixture(parameters: Arrays, data: Arrays, gradients: Arrays) -> float:
    """Log likelihood of a Gaussian mixture; parameters log_weights, mu, lower; data x `(feature, unit)`."""
    return compiled_loops("compiled_gaussians").gaussian_mixture(AT_ONCE, *parameters, *data, *gradients)


def unrolled(n_states: int) -> tuple[int, ...]:
    """Tuple that selects a loop compiled for the number of states, which takes half the time; empty for many states."""
    return (0,) * n_states if n_states <= UNROLLED else ()


def value_and_gradients(
    member: Callable[[Arrays, Arrays, Arrays], float],
    dims: tuple[int, ...],
    n_parameters: int,
    *arguments: torch.Tensor,
    batched: Callable[[Arrays, Arrays, Arrays, np.ndarray], None] | None = None,
) -> tuple[torch.Tensor, ...]:
    """Compute `of_arrays` for tensors."""
    arrays = ((one.detach() if one.requires_grad else one).numpy() for one in arguments)
    found = of_arrays(member, dims, n_parameters, *arrays, batched=batched)
    return tuple(torch.from_numpy(np.asarray(one)) for one in found)


def of_arrays(
    member: Callable[[Arrays, Arrays, Arrays], float],
    dims: tuple[int, ...],
    n_parameters: int,
    *arguments: np.ndarray,
    batched: Callable[[Arrays, Arrays, Arrays, np.ndarray], None] | None = None,
) -> Arrays:
    """Compute the value of a kernel and its gradient for each parameter; arguments as in `operation`.

    A batch of parameters with the same data is one call of `batched`, if there is one. Otherwise, several threads share the
    members if these are large. One thread computes each member completely.
    """
    arrays = [np.ascontiguousarray(one) if np.ndim(one) else one for one in arguments]
    gradients = [np.zeros(array.shape) for array in arrays[:n_parameters]]
    if arrays[0].ndim == dims[0]:
        level = member(tuple(arrays[:n_parameters]), tuple(arrays[n_parameters:]), tuple(gradients))
        return (np.array(level)[()], *gradients)
    batch = arrays[0].shape[: arrays[0].ndim - dims[0]]
    value = np.empty(batch)
    if batched is not None and all(array.ndim == d for array, d in zip(arrays[n_parameters:], dims[n_parameters:], strict=True)):
        flat = [array.reshape(-1, *array.shape[len(batch) :]) for array in (*arrays[:n_parameters], *gradients)]
        batched(tuple(flat[:n_parameters]), tuple(arrays[n_parameters:]), tuple(flat[n_parameters:]), value.reshape(-1))
        return (value, *gradients)

    def evaluate(indices: Sequence[tuple[int, ...]]) -> None:
        for index in indices:
            rows = tuple(array[index] if array.ndim > d else array for array, d in zip(arrays, dims, strict=True))
            value[index] = member(rows[:n_parameters], rows[n_parameters:], tuple(gradient[index] for gradient in gradients))

    members = list(np.ndindex(*batch))
    n_workers = min(len(members), n_threads())
    sizes = (array.size // (len(members) if array.ndim > d else 1) for array, d in zip(arrays, dims, strict=True))
    if n_workers > 1 and sum(sizes) >= SHARED:
        others = [_threads(os.getpid(), n_workers).submit(evaluate, members[i::n_workers]) for i in range(1, n_workers)]
        evaluate(members[::n_workers])
        for other in others:
            other.result()
    else:
        evaluate(members)
    return (value, *gradients)


@functools.cache
def _threads(process: int, n: int) -> ThreadPoolExecutor:
    """Threads for kernels in this process; a forked process cannot use those of its parent."""
    return ThreadPoolExecutor(n - 1, thread_name_prefix="latentlab")


def low_rank_gaussian(parameters: Arrays, data: Arrays, gradients: Arrays) -> float:
    """Log density of complete rows; parameters loc, W, scale; data rows, share, weight and number of units."""
    return compiled_loops("compiled_low_rank").low_rank_gaussian(*parameters, *data, *gradients)


def low_rank_gaussians(parameters: Arrays, data: Arrays, gradients: Arrays, value: np.ndarray) -> None:
    """Log densities for a batch of parameters, written to `value`; all members are small, and share one call."""
    compiled_loops("compiled_low_rank").low_rank_gaussians(*parameters, *data, *gradients, value)


def linear_gaussian(parameters: Arrays, data: Arrays, gradients: Arrays) -> float:
    """Log density of a linear-Gaussian chain.

    The parameters are A, L, C, loc, scale, initial_mean, L_0; the data are the rows, their observed entries, and starts.
    """
    return compiled_loops("compiled_chain").linear_gaussian(*parameters, *data, *gradients)


# -- as operations of torch


FORMULAS: dict[Any, Callable[..., tuple[torch.Tensor, ...]]] = {}
"""Small operations -> the same in operations of torch, which cost less than a call of the kernel once they are compiled."""
_library = torch.library.Library("latentlab", "FRAGMENT")
KERNELS: dict[Any, Callable[..., Arrays]] = {}
"""The kernels as functions of arrays, by their operation of torch: arguments to value and gradients."""


def operation(  # the implementation, shapes, gradients and batching of one operation, which torch registers separately
    member: Callable[[Arrays, Arrays, Arrays], float],
    dims: tuple[int, ...],
    n_parameters: int,
    plain: Callable[..., torch.Tensor],
    batched: Callable[[Arrays, Arrays, Arrays, np.ndarray], None] | None = None,
    formula: Callable[..., tuple[torch.Tensor, ...]] | None = None,
) -> Callable[..., torch.Tensor]:
    """Return a kernel as a function of tensors, parameters first and then data.

    All parameters may have the same leading batch dims; each of the data may have them or not.

    Args:
        member: Kernel of one member of a batch; adds gradients for the parameters to zeros, and returns the value.
        dims: Number of dims of each argument, without those of the batch.
        n_parameters: Number of arguments that are parameters.
        plain: The same function of one member in operations of torch, used for second derivatives.
        batched: Kernel of a batch of parameters with the same data, in one call; writes the values to its last argument.
        formula: Value and gradients in operations of torch, with any batch dims, for `FORMULAS`.
    """

    def evaluate(*arguments: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return value_and_gradients(member, dims, n_parameters, *arguments, batched=batched)

    name, inputs = member.__name__, ", ".join(f"Tensor argument_{i}" for i in range(len(dims)))
    _library.define(f"{name}({inputs}) -> ({', '.join(['Tensor'] * (n_parameters + 1))})")
    _library.impl(name, evaluate, "CPU")

    def shapes(*arguments: torch.Tensor) -> tuple[torch.Tensor, ...]:
        value = arguments[0].new_empty(arguments[0].shape[: arguments[0].dim() - dims[0]])
        return (value, *(argument.new_empty(argument.shape) for argument in arguments[:n_parameters]))

    torch.library.register_fake(f"latentlab::{name}", shapes, lib=_library)
    node = getattr(torch.ops.latentlab, name).default
    KERNELS[node] = functools.partial(of_arrays, member, dims, n_parameters, batched=batched)

    if formula is not None:
        FORMULAS[node] = formula

    class Exact(torch.autograd.Function):
        @staticmethod
        def forward(*arguments: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return node(*arguments)

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[torch.Tensor, ...], output: tuple[torch.Tensor, ...]) -> None:
            ctx.set_materialize_grads(False)
            ctx.save_for_backward(*inputs, *output[1:])

        @staticmethod
        def backward(ctx: Any, of_value: torch.Tensor | None, *of_gradients: torch.Tensor | None) -> tuple[Any, ...]:
            arguments, gradients = ctx.saved_tensors[: len(dims)], ctx.saved_tensors[len(dims) :]
            if any(ctx.needs_input_grad[n_parameters:]):
                raise NotImplementedError(f"{name}: derivatives with respect to the data are not implemented.")
            derivatives: list[Any] = [None] * len(dims)
            if of_value is not None:
                derivatives[:n_parameters] = [of_value[(..., *[None] * d)] * g for g, d in zip(gradients, dims, strict=False)]
            if any(along is not None for along in of_gradients):
                second_order = _curvature(plain, dims, arguments, of_gradients)
                derivatives[:n_parameters] = [c if f is None else f + c for f, c in zip(derivatives, second_order, strict=False)]
            return tuple(derivatives)

        @staticmethod
        def vmap(info: Any, in_dims: tuple[int | None, ...], *arguments: torch.Tensor) -> tuple[Any, Any]:
            moved: list[torch.Tensor] = []
            for i, (argument, dim) in enumerate(zip(arguments, in_dims, strict=True)):
                unbatched = i >= n_parameters and argument.dim() == dims[i]
                if dim is not None:
                    argument = argument.movedim(dim, 0)
                elif not unbatched:
                    argument = argument.expand(info.batch_size, *argument.shape)
                if i >= n_parameters and argument.dim() > dims[i]:
                    batch = moved[0].shape[: moved[0].dim() - dims[0]]
                    shape = argument.shape[argument.dim() - dims[i] :]
                    between = [1] * (len(batch) + dims[i] - argument.dim())
                    argument = argument.reshape(info.batch_size, *between, *argument.shape[1:]).expand(*batch, *shape)
                moved.append(argument)
            return Exact.apply(*moved), (0,) * (n_parameters + 1)

    Exact.forward.__signature__ = inspect.signature(Exact.forward)  # type: ignore[attr-defined]  # torch derives it in each call

    def function(*arguments: torch.Tensor) -> torch.Tensor:
        return Exact.apply(*arguments)[0]

    return function


def _curvature(
    plain: Callable[..., torch.Tensor],
    dims: tuple[int, ...],
    arguments: tuple[torch.Tensor, ...],
    along: tuple[torch.Tensor | None, ...],
) -> tuple[torch.Tensor, ...]:
    """Product of the second derivatives of `plain` for the parameters with `along`, a tensor or None for each parameter."""
    n_parameters = len(along)
    in_dims = tuple(0 if argument.dim() > d else None for argument, d in zip(arguments, dims, strict=True))
    for _ in range(arguments[0].dim() - dims[0]):
        plain = torch.vmap(plain, in_dims=in_dims)

    def slope(*parameters: torch.Tensor) -> torch.Tensor:
        def total(*inner: torch.Tensor) -> torch.Tensor:
            return plain(*inner, *arguments[n_parameters:]).sum()

        gradients = torch.func.grad(total, argnums=tuple(range(n_parameters)))(*parameters)
        return torch.stack([(g * a).sum() for g, a in zip(gradients, along, strict=True) if a is not None]).sum()

    return torch.func.grad(slope, argnums=tuple(range(n_parameters)))(*arguments[:n_parameters])
