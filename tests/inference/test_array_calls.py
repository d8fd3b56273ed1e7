"""Tests of NumPy calls on small arrays: each rule against torch, limits of sizes and kinds, and values that are not finite."""

import math
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from latentlab.inference import array_calls
from latentlab.inference.array_calls import RULES, ArrayCalls
from latentlab.inference.backends import BACKENDS
from latentlab.inference.capture import capture
from latentlab.inference.density import value_and_grad
from latentlab.inference.graph import RecordedGraph
from latentlab.inference.python_code import source
from latentlab.seeds import double


def matrix(x):
    """Matrix `(4, 3)` of the first twelve entries."""
    return x[:12].view(4, 3)


def square(x):
    return x[:9].view(3, 3)


def positive_definite(x):
    return square(x) @ square(x).T + torch.eye(3)


def triangle(x):
    return torch.linalg.cholesky(positive_definite(x))


def gradient(function):
    """Gradient of the sum of sines of the results, whose operations include the backward rules."""
    return value_and_grad(lambda x: function(x).sin().sum())


FUNCTIONS = {
    "arithmetic": lambda x: (x + 2, x - 0.5, 3 - x, x * x.exp(), x / 7, 2 / x, -x, x.reciprocal(), x.rsqrt(), x.sqrt(), x.sign()),
    "functions": lambda x: (x.exp(), x.expm1(), x.log(), x.log1p(), x.sin(), x.cos(), x.tanh(), x.abs(), x.sigmoid(), x.erf()),
    "special functions": lambda x: (x.abs().lgamma(), x.abs().digamma(), (x / 10).erfinv(), torch.xlogy(x.abs(), x.abs() * 2)),
    "scalars": lambda x: (x[0] * x[1] + 2, x[3].exp() - x[2] / 3, torch.where(x[0] > 0, x[1], x[2]), x.sum() * x, x[:1].view(())),
    "scalars as arrays": lambda x: (x[0].expand(3) * 1.5, x[0][None, None] + matrix(x), torch.stack([x[0], x[1] * 2]) @ x[:2]),
    "powers": lambda x: (x**2, x**3, x.abs() ** 0.5, x.abs() ** -0.5, x**-1, x**-2, x.abs() ** 1.7, x**4, x**3.0, 2.0 - x**2),
    "bounds": lambda x: (x.clamp(-0.5, 0.5), x.clamp(min=0.1), x.clamp(max=0.3), x.clamp_min(0.0), x.clamp_max(1.0)),
    "comparisons": lambda x: (
        torch.where((x > 0) & ~(x >= 1) | (x < -1), x, -x),
        torch.where(x[:6] <= x[6:12], 1.0, x[:6]),
        torch.where((x == x[0]) | (x != x[1]), x, 0.0),
        x.masked_fill(x > 0.2, -math.inf),
        torch.where(torch.isfinite(x.log()) & ~torch.isnan(x.sqrt()), x, 2.0),
        torch.maximum(x, x.flip(0)) + torch.minimum(x, x.sin()),
        torch.where(torch.logical_or(torch.logical_and(x > 0, x < 1), torch.logical_not(x < -1)), x, x.exp()),
    ),
    "truth values": lambda x: (F.pad(x > 0, (1, 2)), (x > 0).view(4, 4).T[1:].clone(), torch.stack([x > 0, x > 1])),
    "sums of exponentials without weight": lambda x: (torch.where(matrix(x) > 1e9, 1.0, -math.inf).logsumexp(1), matrix(x) * 2),
    "sums": lambda x: (x.sum(), matrix(x).sum(0), matrix(x).sum(1), matrix(x).sum(-1, keepdim=True), matrix(x).sum(), x.sum(0)),
    "sums of three axes": lambda x: (x.view(2, 2, 4).sum(1), x.view(2, 2, 4).sum((0, 2)), x.view(2, 2, 4).sum((0, 1, 2))),
    "reductions": lambda x: (matrix(x).amax(1), matrix(x).amin((0, 1)), matrix(x).prod(0), x.prod(), matrix(x).mean(1), x.mean()),
    "more reductions": lambda x: (matrix(x).cumsum(0), matrix(x).logsumexp(1), matrix(x).logsumexp((0, 1)), x.logsumexp(0, True)),
    "products": lambda x: (
        matrix(x) @ square(x),
        matrix(x).T @ matrix(x),
        square(x) @ x[:3],
        x[:3] @ x[3:6],
        torch.addmm(square(x), square(x), square(x)),
        torch.addmv(x[:3], square(x), x[3:6]),
        torch.baddbmm(x.view(2, 4, 2), x.view(2, 4, 2), x[:8].view(2, 2, 2)),
        x.view(2, 2, 4) @ x.view(2, 4, 2),
    ),
    "shapes": lambda x: (
        (matrix(x) * 2).T.exp(),
        (x.view(2, 2, 4) * 2).permute(2, 0, 1).exp(),
        (x.view(2, 2, 4) * 2).transpose(0, -1).reshape(16) * 3,
        matrix(x)[:, None].squeeze(1) * 2,
        (x * 2).view(1, 16, 1).squeeze() + 1,
        x[:3].expand(4, 3) * matrix(x),
        x[:1].view(1, 1).squeeze((0, 1)) * 2,
        (x * 2).detach() + 1,
    ),
    "parts": lambda x: (
        *(part * 2 for part in matrix(x).unbind(1)),
        *(part + 1 for part in x.split([3, 6, 7])),
        *(part - 1 for part in matrix(x).split(3, 0)),
        matrix(x)[1] * 2,
        matrix(x)[:, -1] * 2,
        matrix(x)[1:, ::2] * 2,
        matrix(x)[-2:] * 2,
        square(x).diagonal() * 2,
        x.view(2, 2, 4).diagonal(1, -1, 0) * 2,
        matrix(x).flip(0) * 2,
        matrix(x)[:, [2, 0]] * 2,
        matrix(x)[[1, 1, 3]] * 2,
        matrix(x).index_select(1, torch.tensor([2, 0])) * 2,
    ),
    "joined": lambda x: (
        torch.cat([matrix(x), matrix(x).exp()], 1),
        torch.cat([x.exp(), torch.zeros(0), x[:0]]),
        torch.stack([x[:3], x[3:6] * 2], -1),
        torch.stack([square(x), square(x).exp()], 1),
        F.pad(matrix(x), (1, 0, 2, 1)),
        F.pad(matrix(x), (-1, 0)) * 2,
        F.pad(matrix(x), (-1, 1)) * 2,
        square(x).tril(-1) + square(x).triu(),
        (x * 2).clone(),
    ),
    "softmax": lambda x: (matrix(x).softmax(1), matrix(x).log_softmax(0), F.logsigmoid(x * 3), F.logsigmoid(x * 1000)),
    "triangular systems": lambda x: (
        torch.linalg.solve_triangular(triangle(x), matrix(x).T, upper=False),
        torch.linalg.solve_triangular(triangle(x).T, matrix(x).T, upper=True),
        torch.linalg.solve_triangular(triangle(x), matrix(x), upper=False, left=False),
        torch.linalg.solve_triangular(triangle(x).T, matrix(x), upper=True, left=False, unitriangular=True),
    ),
    "gradients of parts": gradient(
        lambda x: torch.cat([
            matrix(x)[1:3].flatten(), matrix(x)[:, 1], square(x).diagonal(), x[::3], x.view(2, 2, 4).diagonal(1, 0, 2).flatten()
        ])
    ),
    "gradients of functions": gradient(
        lambda x: x.tanh() + x.sigmoid() * F.logsigmoid(x) + x.softmax(0) - matrix(x).log_softmax(1).sum()
    ),
    "gradients of sums of exponentials": gradient(lambda x: matrix(x).logsumexp(0)),
    "gradients of decompositions": gradient(
        lambda x: torch.linalg.solve_triangular(triangle(x), x[:3, None], upper=False).sum() + triangle(x).diagonal().log().sum()
    ),
    "gradients of paddings": gradient(lambda x: F.pad(x, (1, 2)) * 2 + F.pad(x, (-1, 4)).exp()),
}  # fmt: skip


def of_both(function, x):
    with double():
        graph = RecordedGraph(function, (x,))
    return graph, BACKENDS["Python code"](graph, (x,))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_array_calls_equal_torch(name, rng):
    function = FUNCTIONS[name]
    x = torch.from_numpy(rng.uniform(0.3, 2.0, 16) * rng.choice([-1, 1], 16))
    graph, fast = of_both(function, x)
    assert ".numpy()" in source(graph)[0]
    for point in (x, x.abs(), x.flip(0), torch.full((16,), math.nan, dtype=torch.float64), torch.zeros(16, dtype=torch.float64)):
        try:
            with double():
                expected = function(point)
        except torch.linalg.LinAlgError:
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = fast(point)
        for one, two in zip(found, expected, strict=True):
            assert one.dtype == two.dtype
            assert one.shape == two.shape
            np.testing.assert_allclose(one, two.detach(), rtol=1e-12, atol=1e-13)


def test_every_rule_is_tested():
    held = set()
    for function in FUNCTIONS.values():
        graph, _ = of_both(function, torch.linspace(0.3, 2.0, 16, dtype=torch.float64))
        calls = ArrayCalls(source(graph)[1], graph)
        nodes = [node for node in graph.graph.nodes if node.op == "call_function"]
        held |= {node.target for node in nodes if calls.call_of(node) is not None}
    packets = [{str(getattr(target, "overloadpacket", target)) for target in targets} for targets in (RULES, held)]
    missing = packets[0] - packets[1]
    assert missing == set(), "; ".join(sorted(missing))


def test_failed_decompositions_and_singular_systems_are_not_numbers():
    def function(x):
        lower = torch.linalg.cholesky(x.view(2, 2))
        return lower, torch.linalg.solve_triangular(x.view(2, 2).tril(), x[:2, None], upper=False)

    _, fast = of_both(function, torch.tensor([2.0, 0.5, 0.5, 2.0], dtype=torch.float64))
    assert fast(torch.tensor([1.0, 2.0, 2.0, 1.0], dtype=torch.float64))[0].isnan().all()
    assert not fast(torch.tensor([1.0, 0.5, 0.5, 0.0], dtype=torch.float64))[1].isfinite().all()


def test_parts_become_tensors_without_warnings():
    """Torch warns about arrays that are read-only, such as NumPy's diagonals; float32 makes torch run the operation."""
    x = torch.arange(9.0, dtype=torch.float64).view(3, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = capture(lambda x: ((x * 2).diagonal().to(torch.float32), (x * 2)[0].to(torch.float32)), x)(x)
    assert found[0].tolist() == [0.0, 8.0, 16.0]


def test_large_arrays_and_other_kinds_are_left_to_torch():
    n = array_calls.ENTRIES + 1
    for function, x in (
        (lambda x: (x * 2,), torch.ones(n, dtype=torch.float64)),
        (lambda x: (x.exp(),), torch.ones(array_calls.FUNCTION_ENTRIES + 1, dtype=torch.float64)),
        (lambda x: (x @ x,), torch.ones(33, 33, dtype=torch.float64)),
        (lambda x: (x * 2,), torch.ones(3, dtype=torch.float32)),
        (lambda x: (x + 1,), torch.ones(3, dtype=torch.int64)),
    ):
        graph = RecordedGraph(function, (x,))
        assert "_a" not in source(graph)[0], function
