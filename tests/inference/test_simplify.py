"""Tests of simplified graphs: the numbers are those of the recorded operations."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from latentlab.inference.capture import capture
from latentlab.inference.density import value_and_grad
from latentlab.inference.graph import RecordedGraph
from latentlab.seeds import double

TENTHS, THIRDS = torch.full((3,), 0.1, dtype=torch.float64), torch.full((3,), 1 / 3, dtype=torch.float64)


def outer(x):
    return torch.outer(x, x)


SIMPLIFIED = {
    "negation": lambda x: ((-x) * TENTHS, x + (-torch.sin(x)), (-torch.sin(x)) + x, -torch.cos(x) / THIRDS),
    "factors": lambda x: ((x * -0.5) * THIRDS, (x * 0.5) / THIRDS, (x * 0.3) * THIRDS, x**2, x.pow(2.0) + x**3),
    "transposes": lambda x: (torch.outer(x, x).T.mT @ x, torch.outer(x, 2 * x).T.mT.T.sum(0)),
    "transposes of three axes": lambda x: (
        (x[:, None, None] * x.exp()[:, None] * x.sin()).transpose(0, 1).transpose(1, 2).clone(),
        torch.outer(x, x.exp())[None].transpose(1, 2).transpose(-1, -2).clone(),
    ),
    "sums in other shapes": lambda x: (
        torch.outer(x, x.exp()).sum(1, keepdim=True).view(1, 3) * 2,
        torch.outer(x, x.exp())[None].sum(2, keepdim=True).squeeze(0) * 2,
        torch.outer(x, x.exp())[None].sum(2, keepdim=True).squeeze(2) * 2,
    ),
    "neutral constants of other shapes": lambda x: ((x + torch.zeros(2, 3)).exp(), (torch.ones(3) * x[:1]).exp()),
    "named arguments": lambda x: (
        torch.add(x, x.sin(), alpha=2).exp(),
        torch.add(x, x.sin()).exp(),
        torch.div(x, 0.3, rounding_mode="floor").exp(),
        torch.div(x, 0.3).exp(),
        torch.div(x, 1, rounding_mode="floor").exp(),
    ),
    "close numbers": lambda x: (x * 0.1, x * (0.1 + 1e-15), (x * 0.0).reciprocal(), (x * -0.0).reciprocal()),
    "sums": lambda x: (x.view(-1).sum(-1).sum() * THIRDS, x[:, None].expand(3, 2).sum(1, keepdim=True).squeeze(1)),
    "sums over added axes": lambda x: (
        x[:, None].sum(-1) * THIRDS,
        torch.outer(x, x).sum(0, keepdim=True).view(3),
        x[None].sum(-1) + x,
    ),
    "shapes": lambda x: (torch.ones_like(x) * x.cos(), torch.full_like(x, 3.0) + x, torch.zeros_like(x[:2]) + x[1:]),
    "paddings": lambda x: (
        F.pad(x, (1, 2)),
        F.pad(x, (0, 2), value=0.1),
        F.pad(x.exp(), (0, 2)),
        F.pad(x * 2, (-1, 1)),
        F.pad(x[None], (1, 1, 0, 1)),
    ),
    "negative axes": lambda x: (torch.outer(x, x.exp()).permute(-1, 0).clone(), torch.outer(x, x.exp()).permute(0, 1) * 2),
    "factors at the limits": lambda x: ((x * 1e250 * 2.0**-100) * (TENTHS * 1e-299), (x * 2.0**-1000) / (TENTHS * 1e300)),
    "sums over no axis": lambda x: (torch.outer(x, x).sum(None, keepdim=True).squeeze(0), (x * 2).sum(None)),
    "whole numbers": lambda x: (-(x > 0).to(torch.int64) + 1, (x > 0).to(torch.int64) ** 2, 1 - x, 2 / x, x // 1),
}


@pytest.mark.usefixtures("by_torch")
@pytest.mark.parametrize("function", SIMPLIFIED.values(), ids=SIMPLIFIED)
def test_simplified_operations_give_the_same_numbers(function):
    x = torch.tensor([-0.7, 1.3, 2.9], dtype=torch.float64)
    fast = capture(function, x)
    for point in (x, x.flip(0), -3 * x):
        with double():
            expected = function(point)
        for one, two in zip(fast(point), expected, strict=True):
            assert one.dtype == two.dtype
            assert torch.equal(one, two)


@pytest.mark.parametrize("cuts", [(2, 5), (0, 2, 5), (5,), (2, 2)], ids=str)
def test_gradients_of_parts_of_a_vector_are_joined(cuts):
    u = torch.linspace(-1.0, 1.0, 7, dtype=torch.float64)

    def loss(u):
        parts = torch.tensor_split(u, cuts)
        return sum((part.exp() * (i + 1)).sum() for i, part in enumerate(parts)) + u[3] ** 2 + 3 * u.sum() + u[:2].sin().sum()

    both = value_and_grad(loss)
    fast = capture(both, u)
    for one, two in zip(fast(2 * u), both(2 * u), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-15, atol=1e-15)


PARTS = {
    "rows": lambda x: x[1:3],
    "columns": lambda x: x[:, 2:],
    "but the last": lambda x: x[:, :-1],
    "row": lambda x: x[2],
    "last column": lambda x: x[:, -1],
    "every other": lambda x: x[::2],
    "last row": lambda x: x[-1:],
    "every other row, and all": lambda x: torch.cat([x[::2], x]),
    "halves, and all": lambda x: torch.cat([x[:2], x[2:], 2 * x]),
}


@pytest.mark.usefixtures("by_torch")
@pytest.mark.parametrize("part", PARTS.values(), ids=PARTS)
def test_gradients_of_parts_of_a_matrix_have_zeros_around(part):
    u = torch.linspace(-1.0, 1.0, 20, dtype=torch.float64)
    both = value_and_grad(lambda u: part(u.reshape(4, 5)).exp().sum())
    for one, two in zip(capture(both, u)(2 * u), both(2 * u), strict=True):
        assert torch.equal(one, two)


def test_the_gradient_of_disjoint_parts_is_one_concatenation():
    both = value_and_grad(lambda u: u[:2].exp().sum() + u[2:].sin().sum())
    with double():
        graph = RecordedGraph(both, (torch.linspace(-1.0, 1.0, 7, dtype=torch.float64),))
    names = [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]
    assert "aten.cat.default" in names
    assert "aten.slice_backward.default" not in names
