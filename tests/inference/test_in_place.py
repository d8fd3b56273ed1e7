"""Tests of recorded graphs of functions that change tensors in place."""

import pytest
import torch
from torch.nn import functional as F

from latentlab.inference.capture import capture
from latentlab.inference.graph import RecordedGraph
from latentlab.seeds import double


def test_changes_in_place_become_new_results():
    def function(x):
        y = torch.zeros_like(x)
        y[1:] = 0.0
        z = torch.relu_(x * 2).add_(1.0)
        z.masked_fill_(x > 2, -1.0)
        return (y + z, z)

    x = torch.tensor([-1.0, 1.0, 3.0], dtype=torch.float64)
    with double():
        graph = RecordedGraph(function, (x,))
    names = [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]
    assert not {"aten.relu_.default", "aten.add_.Tensor", "aten.masked_fill_.Scalar"} & set(names)
    fast = capture(function, x)
    for one, two in zip(fast(-x), function(-x), strict=True):
        assert torch.equal(one, two)


def test_a_changed_tensor_with_a_view_stays_changed():
    def function(x):
        y = x * 2
        part = y[1:]
        y.add_(1.0)
        return (part * 3, y)

    x = torch.ones(3, dtype=torch.float64)
    fast = capture(function, x)
    assert fast is not function
    for one, two in zip(fast(-x), function(-x), strict=True):
        assert torch.equal(one, two)


def changed_part(x):
    y = x * 2
    first, rest = y.split([1, 2])
    again = first.view(1)
    first.add_(1.0)
    return again.exp(), rest * 3


def changed_unsafe_part(x):
    y = torch.cat([x, x])
    first, _ = torch.unsafe_split(y, 3)
    first.add_(1.0)
    return (y.exp(),)


def changed_single(x):
    y = x.float() * 2
    y.add_(x)
    return y, y.double() / 3


def changed_integers(x):
    y = (x > 0).to(torch.int8)
    y.add_((x > 0.5).to(torch.int64))
    return y, y * x


def changed_truth(x):
    y = x > 0
    y.add_(x > 0.5).copy_(y * x)
    return y, y * x


def changed_twin(x):
    y, z = x.sin(), x.sin()
    part = y[1:]
    y.add_(1.0)
    return part * 3, z.exp()


def changed_means(x):
    one, two = (torch.zeros(3, dtype=x.dtype) for _ in range(2))
    table = torch.outer(x, x.exp())
    found = [F.batch_norm(by * table, own, torch.ones_like(own), training=True) for own, by in ((one, 1.0), (two, 2.0))]
    return one * 1.5, two.exp(), torch.stack(found)


def changed_after_an_output(x):
    y = x * 2
    found, again = y.exp(), y.view(-1)
    again.clamp_(max=2.0)
    return found, y.sum()


def changed_windows(x):
    first, second = (x * 1).unfold(0, 2, 1).unbind(0)
    first.clamp_(max=0.5)
    return (second * 3,)


def changed_expansion(x):
    first, second = (x * 1).expand(2, 3).unbind(0)
    first.clamp_(max=0.5)
    return (second * 3,)


CHANGES = [changed_part, changed_unsafe_part, changed_single, changed_integers, changed_truth, changed_twin, changed_means]
CHANGES += [changed_after_an_output, changed_windows, changed_expansion]


@pytest.mark.parametrize("function", CHANGES)
def test_changes_in_place_keep_dtype_and_other_names(function):
    x = torch.tensor([0.3, -1.7, 2.2], dtype=torch.float64)
    fast = capture(function, x)
    for point in (x, -x):
        for one, two in zip(fast(point), function(point), strict=True):
            assert one.dtype == two.dtype
            assert torch.equal(one, two)
