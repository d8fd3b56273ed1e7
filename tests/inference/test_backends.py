"""Tests of the back ends of recorded graphs: networks and models give the numbers of the function itself."""

import math
import warnings
import weakref

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.stateless import _reparametrize_module
from torch.utils._python_dispatch import TorchDispatchMode

from latentlab.inference import machine_code
from latentlab.inference.backends import BACKENDS
from latentlab.inference.capture import Plan, capture
from latentlab.inference.density import value_and_grad
from latentlab.inference.graph import RecordedGraph
from latentlab.inference.python_code import source
from latentlab.seeds import double

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


@pytest.mark.usefixtures("by_torch")
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


@pytest.mark.usefixtures("by_torch")
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


@pytest.mark.usefixtures("by_torch")
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
