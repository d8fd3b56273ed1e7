"""Tests of the back ends of recorded graphs: networks and models give the numbers of the function itself."""

import math
import re
import warnings
import weakref
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.stateless import _reparametrize_module
from torch.utils._python_dispatch import TorchDispatchMode

import latentlab
from latentlab.data.dataset import Dataset
from latentlab.fit import fit
from latentlab.inference import capture as capture_module
from latentlab.inference import machine_code
from latentlab.inference.backends import BACKENDS
from latentlab.inference.capture import Plan, capture
from latentlab.inference.density import value_and_grad
from latentlab.inference.graph import RecordedGraph
from latentlab.inference.map import MAP
from latentlab.inference.nuts import NUTS
from latentlab.inference.python_code import source
from latentlab.models.base import LatentModel, Position
from latentlab.models.ppca import PPCA
from latentlab.seeds import double
from latentlab.symmetry.groups import Identity

TOLERANCE = {"rtol": 1e-12, "atol": 1e-12}


class Residual(nn.Module):
    """A block whose input is added to its output."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x):
        return x + self.second(torch.tanh(self.first(x)))


class Recurrent(nn.Module):
    """The last state of a recurrent layer."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x)[0][:, -1]


class Attention(nn.Module):
    """Scaled dot products of a sequence with itself."""

    def __init__(self):
        super().__init__()
        self.query, self.key, self.value = nn.Linear(6, 4), nn.Linear(6, 4), nn.Linear(6, 4)

    def forward(self, x):
        return F.scaled_dot_product_attention(self.query(x), self.key(x), self.value(x))


class Sparse(nn.Module):
    """Product of a constant sparse matrix with a linear map of the data."""

    def __init__(self, layout):
        super().__init__()
        adjacency = torch.eye(5, dtype=torch.float64) + torch.diag(torch.full((4,), 0.5, dtype=torch.float64), 1)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")  # of torch, once in a process
            self.adjacency = adjacency.to_sparse_csr() if layout == "csr" else adjacency.to_sparse_coo().coalesce()
        self.linear = nn.Linear(6, 3)

    def forward(self, x):
        return torch.sparse.mm(self.adjacency, self.linear(x))


class Embedded(nn.Module):
    """Rows of a table by index, interpolated and padded."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(7, 4)

    def forward(self, x):
        rows = self.table(x).transpose(1, 2)
        return F.pad(F.interpolate(rows, scale_factor=2.0, mode="linear"), (1, 2), mode="reflect")


def images(channels):
    return torch.linspace(-1.0, 1.0, 3 * channels * 64, dtype=torch.float64).sin().reshape(3, channels, 8, 8)


TABLE = torch.linspace(-1.0, 2.0, 30, dtype=torch.float64).reshape(5, 6)
SERIES = torch.linspace(-1.0, 2.0, 60, dtype=torch.float64).cos().reshape(2, 5, 6)
NETWORKS = {
    "multilayer": lambda: (nn.Sequential(nn.Linear(6, 8), nn.Softplus(), nn.Linear(8, 3), nn.GELU()), TABLE),
    "convolution": lambda: (
        nn.Sequential(nn.Conv2d(1, 2, 3, stride=2, padding=1), nn.ELU(), nn.Conv2d(2, 3, 2, groups=1)),
        images(1),
    ),
    "convolution 1d and 3d": lambda: (
        nn.Sequential(nn.Conv1d(5, 4, 3, padding=1, groups=1), nn.Tanh(), nn.Unflatten(2, (1, 2, 3)), nn.Conv3d(4, 2, (1, 2, 2))),
        SERIES,
    ),
    "transposed convolution": lambda: (
        nn.Sequential(nn.ConvTranspose2d(2, 3, 3, stride=2, padding=1, output_padding=1), nn.SiLU()),
        images(2),
    ),
    "layer norm": lambda: (nn.Sequential(nn.Linear(6, 4), nn.LayerNorm(4), nn.Sigmoid()), TABLE),
    "group and instance norm": lambda: (
        nn.Sequential(nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4), nn.LeakyReLU(), nn.InstanceNorm2d(4, affine=True)),
        images(2),
    ),
    "batch norm in eval mode": lambda: (nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Softmax(-1)), TABLE),
    "embedding": lambda: (Embedded(), torch.tensor([[0, 3, 6], [3, 3, 1]])),
    "residual": lambda: (Residual(), TABLE),
    "GRU": lambda: (Recurrent(nn.GRU(6, 3, batch_first=True)), SERIES),
    "LSTM": lambda: (Recurrent(nn.LSTM(6, 3, batch_first=True)), SERIES),
    "pooling": lambda: (
        nn.Sequential(
            nn.Conv2d(1, 2, 3, padding=1), nn.MaxPool2d(2), nn.AvgPool2d(2), nn.Conv2d(2, 2, 1), nn.AdaptiveAvgPool2d(1)
        ),
        images(1),
    ),
    "attention": lambda: (Attention(), SERIES),
    "sparse CSR product": lambda: (Sparse("csr"), TABLE),
    "sparse COO product": lambda: (Sparse("coo"), TABLE),
}


def network(name):
    """Return the value and gradient of a smooth function of a network's parameters, and their values."""
    module, x = NETWORKS[name]()
    module.double().eval()
    shapes = {key: value.shape for key, value in module.named_parameters()}
    u = torch.linspace(-1.0, 1.0, sum(map(math.prod, shapes.values())), dtype=torch.float64).mul(7).sin() / 2

    def loss(u):
        parts = torch.split(u, [math.prod(shape) for shape in shapes.values()])
        values = {key: part.reshape(shape) for (key, shape), part in zip(shapes.items(), parts, strict=True)}
        with _reparametrize_module(module, values):
            out = module(x)
        return (out * torch.linspace(0.5, 1.5, out.numel(), dtype=torch.float64).reshape(out.shape)).sum() + (out**2).mean()

    return value_and_grad(loss), u


def graph_of(function, *example):
    with double():
        return RecordedGraph(function, example)


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_as_python_code_equal_eager(name):
    both, u = network(name)
    fast = capture(both, u)
    assert fast is not both
    for point in (u, u.flip(0), 0.3 * u - 0.1):
        for one, two in zip(fast(point), both(point), strict=True):
            np.testing.assert_allclose(one, two, **TOLERANCE)


SPARSE = [name for name in NETWORKS if "sparse" in name]


@pytest.mark.long
@pytest.mark.parametrize("name", [name for name in NETWORKS if name not in SPARSE])
def test_networks_as_machine_code_equal_eager(name):
    both, u = network(name)
    fast = capture(both, u, plan=Plan(compiled=True))  # a failure to compile is a warning, and an error here
    for point in (u, u.flip(0)):
        for one, two in zip(fast(point), both(point), strict=True):
            np.testing.assert_allclose(one, two, **TOLERANCE)


@pytest.mark.parametrize("name", SPARSE)
@pytest.mark.parametrize("compiled", [True, None])
def test_graphs_with_sparse_constants_are_not_compiled(name, compiled, monkeypatch):
    """They run as Python code; a request to compile gives one warning."""
    monkeypatch.setattr(machine_code, "compile_graph", lambda *_: pytest.fail("the graph is compiled"))
    both, u = network(name)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fast = capture(both, u, plan=Plan(10**9, compiled))
    reason = "it has a constant that is not a dense tensor, such as a sparse matrix"
    told = [str(one.message) for one in caught if "cannot be compiled" in str(one.message)]
    assert told == [f"the graph is run by Python code, since it cannot be compiled: {reason}"] * bool(compiled)
    for one, two in zip(fast(2 * u), both(2 * u), strict=True):
        np.testing.assert_allclose(one, two, **TOLERANCE)


def test_sparse_constants_are_neither_dense_nor_copied():
    both, u = network("sparse CSR product")
    graph = graph_of(both, u)
    held = [getattr(graph.root, node.target) for node in graph.graph.nodes if node.op == "get_attr"]
    assert any(tensor.layout is torch.sparse_csr for tensor in held)
    assert not [line for line in source(graph)[0].splitlines() if "to_dense" in line or "to_sparse" in line]


def test_python_code_is_the_same_text_in_two_captures():
    for name in ("convolution", "layer norm", "GRU"):
        first, second = (source(graph_of(*network(name)))[0] for _ in range(2))
        assert first == second
        assert first.startswith("def run(argument_0):")


class Operations(TorchDispatchMode):
    """Names of the operations that run."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", NETWORKS)
def test_python_code_runs_exactly_the_recorded_operations(name):
    """Numbers are given as tensors without dims, which torch makes of numbers, too; zeros are put around a part by `cat`."""
    both, u = network(name)
    graph = graph_of(both, u)
    fast = BACKENDS["Python code"](graph, (u,))
    with Operations() as ran:
        fast(u)
    targets = [str(node.target) for node in graph.graph.nodes if node.op == "call_function" and hasattr(node.target, "_schema")]
    by_tensor = {f"aten.{n}.Scalar": f"aten.{n}.Tensor" for n in ("add", "sub", "mul", "div", "eq", "ne", "lt", "le", "gt", "ge")}
    by_tensor["aten.rsub.Scalar"] = "aten.sub.Tensor"
    by_tensor |= {f"aten.{n}.default": "aten.cat.default" for n in ("slice_backward", "select_backward", "constant_pad_nd")}
    targets += ["aten.unsqueeze.default"] * targets.count("aten.select_backward.default")
    assert sorted(by_tensor.get(n, n) for n in ran.names) == sorted(by_tensor.get(n, n) for n in targets)


class Alive(TorchDispatchMode):
    """Number of results of earlier operations that exist when an operation begins, and whether each is an inference tensor."""

    def __init__(self):
        super().__init__()
        self.results, self.numbers, self.is_inference = [], [], []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.numbers.append(sum(one() is not None for one in self.results))
        result = func(*args, **(kwargs or {}))
        self.results.append(weakref.ref(result))
        self.is_inference.append(result.is_inference())
        return result


def test_results_are_inference_tensors_and_released_after_their_last_use():
    def function(x):
        for _ in range(20):
            x = torch.sin(x) + torch.cos(x)
        return (x.exp(),)

    x = torch.ones(3, dtype=torch.float64)
    fast = capture(function, x)
    with Alive() as found:
        fast(x)
    assert len(found.numbers) == 61
    assert max(found.numbers) == 2
    assert found.is_inference == [True] * 60 + [False]  # the output


def test_draws_are_not_merged_and_come_in_order():
    """Nor are draws of other than normal numbers, which are operations of the graph."""

    def function(x):
        first, second, third = torch.rand_like(x), torch.rand_like(x), torch.rand_like(x)
        return (first, (second - third) * x)

    x = torch.ones(4, dtype=torch.float64)
    fast = capture(function, x)
    torch.manual_seed(2)
    found = fast(x)
    torch.manual_seed(2)
    for one, two in zip(found, function(x), strict=True):
        assert torch.equal(one, two)
    assert found[1].abs().min() > 0


def test_outputs_share_no_memory_with_arguments_and_constants():
    held = torch.arange(3.0, dtype=torch.float64)

    def function(x):
        y = x * 2
        return x, x.view(3, 1), held, held[1:], y, y.view(3, 1), y.detach()

    x = torch.ones(3, dtype=torch.float64)
    fast = capture(function, x)
    first = [one.clone() for one in fast(x)]
    for one in fast(x):
        one.add_(10.0)  # also possible, since no output is an inference tensor
    assert x.tolist() == [1.0] * 3
    for one, two in zip(fast(x), first, strict=True):
        assert torch.equal(one, two)


def test_outputs_can_be_differentiated():
    fast = capture(lambda x: (x * 2, x.sin().view(3, 1)), torch.ones(3, dtype=torch.float64))
    for one in fast(torch.ones(3, dtype=torch.float64)):
        leaf = one.requires_grad_()
        (leaf**2).sum().backward()
        assert torch.equal(leaf.grad, 2 * leaf.detach())


def test_the_dtype_of_results_does_not_depend_on_the_default():
    def function(x):
        return (torch.arange(3) / 2 * x, (x > 0) * 0.5, (x > 0).sum() / 3)

    x = torch.ones(3, dtype=torch.float64)
    fast = capture(function, x)
    assert torch.get_default_dtype() == torch.float32
    assert [one.dtype for one in fast(x)] == [torch.float64] * 3


def test_gradients_are_off_within_a_graph_and_as_before_after_it():
    fast = capture(lambda x: (x * 2,), torch.ones(3, dtype=torch.float64))
    leaf = torch.ones(3, dtype=torch.float64, requires_grad=True)
    with torch.enable_grad():
        assert not fast(leaf)[0].requires_grad
        assert torch.is_grad_enabled()
    with pytest.raises(TypeError):
        fast("no tensor")
    assert torch.is_grad_enabled()


def test_arguments_remain_differentiable_after_a_call():
    """A view of an argument in inference mode leaves the argument as it was."""
    fast = capture(lambda x: ((x[:2] * x[1:]).sum(),), torch.ones(3, dtype=torch.float64))
    leaf = torch.ones(3, dtype=torch.float64, requires_grad=True)
    fast(leaf)
    (leaf**2).sum().backward()
    assert torch.equal(leaf.grad, torch.full((3,), 2.0, dtype=torch.float64))


def test_changes_in_place_become_new_results():
    def function(x):
        y = torch.zeros_like(x)
        y[1:] = 0.0
        z = torch.relu_(x * 2).add_(1.0)
        z.masked_fill_(x > 2, -1.0)
        return (y + z, z)

    x = torch.tensor([-1.0, 1.0, 3.0], dtype=torch.float64)
    graph = graph_of(function, x)
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


def test_a_function_with_other_results_at_another_point_is_not_captured():
    calls = []

    def function(x):
        calls.append(x)
        return (x * len(calls),)

    with pytest.warns(UserWarning, match="cannot be captured"):
        assert capture(function, torch.ones(3, dtype=torch.float64)) is function


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


@pytest.mark.parametrize("part", PARTS.values(), ids=PARTS)
def test_gradients_of_parts_of_a_matrix_have_zeros_around(part):
    u = torch.linspace(-1.0, 1.0, 20, dtype=torch.float64)
    both = value_and_grad(lambda u: part(u.reshape(4, 5)).exp().sum())
    for one, two in zip(capture(both, u)(2 * u), both(2 * u), strict=True):
        assert torch.equal(one, two)


def test_the_gradient_of_disjoint_parts_is_one_concatenation():
    both = value_and_grad(lambda u: u[:2].exp().sum() + u[2:].sin().sum())
    graph = graph_of(both, torch.linspace(-1.0, 1.0, 7, dtype=torch.float64))
    names = [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]
    assert "aten.cat.default" in names
    assert "aten.slice_backward.default" not in names


def test_deprecations_of_torch_are_visible_while_a_function_is_captured():
    def function(x):
        warnings.warn("`torch.part` is deprecated", FutureWarning, stacklevel=2)
        return (x * 2,)

    x = torch.ones(3)
    with pytest.warns(FutureWarning, match="is deprecated"):
        assert capture(function, x) is not function


class Branching(LatentModel):
    """A program that branches on a value, and is not recorded."""

    name, position, symmetry, methods = "branching", Position("z"), Identity(), ("nuts", "map")
    dims = {"z": ("unit",)}

    def model(self, x):
        with pyro.plate("unit", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z if float(z.detach().sum()) > 0 else 2 * z, 1.0), obs=x)


@pytest.mark.parametrize(
    ("method", "text"),
    [
        (NUTS(n_chains=3, n_warmup=5, n_draws=5), "members of a batch are computed one by one"),
        (MAP(n_restarts=3, n_draws=2), "the program is run directly"),
    ],
    ids=["nuts", "map"],
)
def test_a_fit_without_a_graph_gives_one_warning(method, text):
    data = Dataset({"x": np.array([0.5, -0.2, 1.0])}, dims={"x": ("unit",)})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(Branching(), data, method, progress=False)
    told = [str(one.message) for one in caught if "cannot be captured" in str(one.message)]
    assert len(told) == 1
    assert text in told[0]


@pytest.mark.parametrize("compiled", [True, None])
def test_a_fit_that_cannot_compile_on_request_gives_one_warning(compiled, iris, monkeypatch, tmp_path):
    def refuse(*_):
        raise RuntimeError("no C++ compiler")

    monkeypatch.setattr(machine_code, "compile_graph", refuse)
    monkeypatch.setattr(capture_module, "WORTH", 1)
    monkeypatch.setenv(machine_code.CACHE, str(tmp_path))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(PPCA(1), iris, NUTS(n_chains=2, n_warmup=5, n_draws=5, compiled=compiled), progress=False)
    told = [str(one.message) for one in caught if "no C++ compiler" in str(one.message)]
    assert len(told) == (1 if compiled else 0)


def script(source):
    """Lines of a module that use TorchScript."""
    return [line for line in source.splitlines() if re.search(r"torch\.(_C\.)?_?jit|from torch import .*\bjit\b", line)]


def test_no_module_uses_torch_script():
    """It is deprecated; modules of a user that were scripted are refused."""
    found = [
        (path.name, line) for path in Path(latentlab.__file__).parent.rglob("*.py") for line in script(path.read_text("utf-8"))
    ]
    allowed = (
        "script_method` is deprecated",
        "isinstance(layer, torch.jit.ScriptModule)",
        "Use the module before `torch.jit.script`",
    )
    assert [(name, line) for name, line in found if not any(text in line for text in allowed)] == []
    for planted in (
        "torch.jit.script(run)",
        "import torch.jit",
        "from torch import fx, jit",
        "torch._C._jit_set_profiling(True)",
    ):
        assert script(planted)


def test_graphs_run_without_warnings_as_python_code():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fast = capture(lambda x: (x.sin(),), torch.ones(3))
    assert fast.__module__ == "latentlab.inference.python_code"


def test_only_known_warnings_are_ignored_during_compilation():
    """Torch's compiler calls deprecated functions of torch itself."""
    raised = [
        (DeprecationWarning, "`torch.jit.script_method` is deprecated. Please switch", "torch.jit._script", False),
        (FutureWarning, "`isinstance(treespec, LeafSpec)` is deprecated, use", "copyreg", False),
        (FutureWarning, "`torch._prims_common.check` is deprecated", "torch._inductor.lowering", False),
        (FutureWarning, "`torch.export.export` is deprecated", "latentlab.inference.machine_code", True),
        (DeprecationWarning, "`aoti_compile_and_package` is deprecated", "torch._inductor", True),
        (UserWarning, "the results may be wrong", "torch._inductor.lowering", True),
    ]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with machine_code._quiet("torch._inductor"):
            for category, message, module, _ in raised:
                warnings.warn_explicit(message, category, "file.py", 1, module)
    assert [str(one.message) for one in caught] == [message for _, message, _, is_shown in raised if is_shown]
