"""Tests of capturing functions as graphs, and of cached machine code."""

import hashlib
import logging
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from latentlab.data.load import load_dataset
from latentlab.distributions import kernels
from latentlab.distributions.low_rank_gaussian import LowRankGaussian
from latentlab.errors import ConfigError, ModelError
from latentlab.fit import fit
from latentlab.inference import machine_code
from latentlab.inference.arrays import tensors
from latentlab.inference.capture import WORTH, Plan, capture
from latentlab.inference.chees import ChEES
from latentlab.inference.density import Density
from latentlab.inference.graph import RecordedGraph, constants_as_arguments
from latentlab.inference.machine_code import CACHE, folder, graph_key
from latentlab.inference.nuts import NUTS
from latentlab.inference.svi import SVI
from latentlab.models.gaussian_hmm import GaussianHMM
from latentlab.models.gaussian_mixture import GaussianMixture
from latentlab.models.ppca import PPCA
from latentlab.models.vae import VAE
from latentlab.seeds import double

COMPILED = Plan(compiled=True)


@pytest.fixture
def code_folder(tmp_path, monkeypatch):
    """An empty folder for machine code."""
    monkeypatch.setenv(CACHE, str(tmp_path / "code"))
    return tmp_path / "code"


def small(x, y):
    mask = torch.arange(4) > 1
    weights = torch.exp(torch.linspace(0.0, 1.0, 4))
    return (x * weights + y)[mask].sum(), x * y


def operations(function, *example):
    with double():
        return [str(node.target) for node in RecordedGraph(function, example).graph.nodes if node.op == "call_function"]


# -- the graph


def test_operations_on_constants_are_folded():
    found = operations(small, torch.ones(4), torch.ones(4))
    assert not [name for name in found if "exp" in name or "linspace" in name or "gt" in name]
    assert "aten.index.Tensor" in found  # by numbers, of which there is a known number
    fast = capture(small, torch.ones(4), torch.ones(4))
    x, y = torch.randn(4), torch.randn(4)
    with double():
        for one, two in zip(fast(x, y), small(x, y), strict=True):
            torch.testing.assert_close(one, two)


def test_equal_operations_are_merged_and_no_ops_removed():
    """Outputs remain separate tensors, and in-place changes are kept."""

    def function(x):
        return torch.exp(torch.sin(x) * 1.0 + torch.sin(x).view(4) + 0.0), torch.cos(x), torch.cos(x)

    def changing(x):
        y, z = torch.sin(x), torch.sin(x)
        return (y.add_(1.0) * z,)

    x = torch.ones(4, dtype=torch.float64)
    assert operations(function, x) == [
        f"aten.{name}" for name in ("sin.default", "add.Tensor", "exp.default", *["cos.default"] * 2)
    ]
    for own in (function, changing):
        fast = capture(own, x)
        found = fast(2 * x)
        for one, two in zip(found, own(2 * x), strict=True):
            assert torch.equal(one, two)
        assert len({one.data_ptr() for one in found}) == len(found)


def test_constants_changed_in_place_are_not_folded():
    def function(x):
        total = torch.zeros(3)
        total.add_(x)
        return (total * torch.ones(3).mul_(2.0),)

    fast = capture(function, torch.ones(3, dtype=torch.float64))
    for value in (1.0, 5.0, 1.0):  # a constant would gather what it was given
        np.testing.assert_allclose(fast(torch.full((3,), value, dtype=torch.float64))[0], 2 * value)


def shape_only(x):
    n = x.new_ones(4).cumsum(0)
    empty = torch.zeros_like(x)
    half = empty[:2]
    half.copy_(x[2:])  # `empty` is no constant from here on
    return x * n.log().cumsum(0), empty + n


def test_operations_on_shapes_only_are_folded():
    found = operations(shape_only, torch.ones(4))
    assert not [name for name in found if "cumsum" in name or "log" in name]
    fast = capture(shape_only, torch.ones(4, dtype=torch.float64))
    assert fast is not shape_only
    for x in (torch.randn(4, dtype=torch.float64), torch.ones(4, dtype=torch.float64)):
        for one, two in zip(fast(x), shape_only(x), strict=True):
            torch.testing.assert_close(one, two)


def filled_constant(x):
    y = torch.zeros_like(x) + 1
    y[0] = x[0]
    return (x * y,)


def filled_diagonal(x):
    y = x.new_ones(4, 4).tril(-1)
    y.diagonal().copy_(x)
    return (y @ x,)


@pytest.mark.parametrize("function", [filled_constant, filled_diagonal])
def test_tensors_filled_in_place_are_captured(function):
    fast = capture(function, torch.ones(4, dtype=torch.float64))
    assert fast is not function
    x = torch.randn(4, dtype=torch.float64)
    torch.testing.assert_close(fast(x)[0], function(x)[0])


def test_random_numbers_are_drawn_anew_in_every_call():
    def function(x):
        return (x + torch.randn_like(torch.zeros_like(x)),)

    fast = capture(function, torch.ones(3, dtype=torch.float64))
    assert not torch.equal(fast(torch.zeros(3, dtype=torch.float64))[0], fast(torch.zeros(3, dtype=torch.float64))[0])


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="memory is read from /proc")
def test_unused_graphs_release_the_data():
    """Graphs have the data as constants."""
    code = """
import gc, torch
from latentlab.inference.capture import capture
def held():
    gc.collect()
    return int(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmRSS"))) / 1024
def use():
    data = torch.randn(1_000_000, dtype=torch.float64)
    one = torch.ones((), dtype=torch.float64)
    fast = capture(lambda x: ((data * x).sum(),), one)
    fast(one), fast(one)
use()
before = held()
for _ in range(12):
    use()
print(held() - before)
"""
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "1000000"}  # large blocks go back to the system at once
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 24  # of 96 MB


@pytest.mark.parametrize("part", [True, False], ids=["a part", "used before"])
def test_unsupported_in_place_changes_are_not_captured(part):
    """The function then runs without a graph, with the same result."""

    def function(x):
        total = torch.zeros(3, dtype=torch.float64)
        before = 0.0 * x if part else x + total
        (total[:2] if part else total).add_(x[:2] if part else x)
        return (before + 2 * total,)

    one = torch.ones(3, dtype=torch.float64)
    with pytest.warns(UserWarning, match="it changes a tensor in place that it also uses elsewhere"):
        fast = capture(function, one)
    np.testing.assert_allclose(fast(5 * one)[0], function(5 * one)[0])


def test_reading_a_number_from_a_tensor_is_not_captured():
    with pytest.warns(UserWarning, match="it reads a number from a tensor"):
        fast = capture(lambda x: (x * float(x.sum()),), torch.ones(3, dtype=torch.float64))
    np.testing.assert_allclose(fast(torch.full((3,), 2.0))[0], 12.0)


@pytest.mark.parametrize("look", [lambda x: x.numpy(), lambda x: x.tolist(), np.asarray], ids=["numpy", "list", "array"])
def test_conversion_to_numpy_or_lists_is_not_captured(look):
    """A branch on such numbers would be fixed in the graph, and the check at two points could miss it."""

    def function(x):
        return (x * (2.0 if max(look(x.detach())) > 2 else 1.0),)

    x = torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)
    with pytest.warns(UserWarning, match="it reads a number from a tensor"):
        fast = capture(function, x)
    np.testing.assert_allclose(fast(x / 4)[0], x / 4)


@pytest.mark.parametrize(
    "count",
    [
        lambda x: x[x > 0].numel(),
        lambda x: len(torch.nonzero(x > 0)),
        lambda x: len(torch.masked_select(x, x > 0)),
        lambda x: len(torch.unique(x > 0)),
    ],
    ids=["mask", "nonzero", "masked_select", "unique"],
)
def test_value_dependent_shapes_are_not_captured(count):
    x = torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)
    with pytest.warns(UserWarning, match="the shape of a result depends on values"):
        fast = capture(lambda x: (x * count(x),), x)
    other = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    np.testing.assert_allclose(fast(other)[0], other * count(other))


def test_custom_checks_of_decompositions_are_not_captured():
    """Otherwise it is unknown which members of a batch must become NaN."""

    def function(x):
        root, info = torch.linalg.cholesky_ex(x)
        torch.ops.aten._linalg_check_errors(info.reshape(-1), "cholesky", is_matrix=False)
        return (root,)

    with pytest.warns(UserWarning, match="it checks a matrix decomposition in an unknown way"):
        capture(function, torch.eye(2, dtype=torch.float64)[None])


def test_functions_with_internal_state_are_not_captured():
    """A graph would not update running means, counters and output tensors."""
    x = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    calls, means, place = torch.zeros(()), torch.nn.BatchNorm1d(3, affine=False).double(), torch.zeros_like(x)
    functions = (
        lambda x: (calls.add_(1), x * 2)[1:],
        lambda x: (torch.nn.functional.batch_norm(x, means.running_mean, means.running_var, training=True),),
        lambda x: (torch.add(x, 1.0, out=place).clone(),),
    )
    for function in functions:
        with pytest.warns(UserWarning, match="it changes a tensor that exists outside of the call"):
            fast = capture(function, x)
        fast(x)
    assert calls == 1
    np.testing.assert_allclose(means.running_mean, 0.1 * x.mean(0))
    np.testing.assert_allclose(place, x + 1)


def test_out_arguments_made_by_the_function_are_captured():
    def function(x):
        place, given = torch.zeros(3, dtype=torch.float64), torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
        return torch.mul(torch.add(x, x, out=place), x, out=place), given.add_(x)

    fast = capture(function, torch.ones(3, dtype=torch.float64))
    assert fast is not function
    points = [torch.full((3,), value, dtype=torch.float64) for value in (1.0, 5.0, 1.0)]
    for found, x in zip([fast(x) for x in points], points, strict=True):  # a later call leaves the earlier results alone
        for one, two in zip(found, function(x), strict=True):
            np.testing.assert_allclose(one, two)


def test_one_tensor_passed_twice_remains_two_arguments():
    same = torch.ones(3)
    fast = capture(lambda x, y: (x - 2 * y,), same, same)
    np.testing.assert_allclose(fast(torch.tensor([5.0]).expand(3), same)[0], 3.0)


def test_normal_numbers_are_drawn_in_the_original_order():
    def function(x):
        first = torch.empty(4).normal_()
        return x * first, torch.empty(2, 3).normal_()

    x = torch.ones(4, dtype=torch.float64)
    fast = capture(function, x)
    graph = RecordedGraph(function, (x,))
    assert [tuple(shape) for shape, _ in graph.noise] == [(4,), (2, 3)]
    torch.manual_seed(3)
    with double():
        plain, after = function(x), torch.randn(1)
    torch.manual_seed(3)
    for one, two in zip(fast(x), plain, strict=True):
        assert one.numpy().tobytes() == two.numpy().tobytes()
    with double():
        assert torch.randn(1) == after  # and the random state is where the function would leave it


def test_capturing_does_not_change_the_random_state():
    before = torch.get_rng_state()
    capture(lambda x: (x * torch.empty(4).normal_(),), torch.ones(4))
    assert torch.equal(torch.get_rng_state(), before)


def test_machine_code_is_used_on_request_or_for_long_runs():
    assert Plan(compiled=True).is_compiled(1)
    assert not Plan(WORTH, compiled=False).is_compiled(100)
    assert Plan(WORTH / 100).is_compiled(100)
    assert not Plan(WORTH / 100 - 1).is_compiled(100)
    assert not Plan().is_compiled(10**6)


@pytest.mark.parametrize("method", [SVI, NUTS, ChEES])
def test_methods_have_a_compiled_option(method):
    assert method(compiled=True).plan().compiled is True
    assert method().plan().compiled is None
    assert method().plan().n_calls > 0
    with pytest.raises(Exception, match="`compiled` must be true or false, or null"):
        method(compiled="yes")


def test_the_code_folder_is_the_given_one_or_the_users_cache(tmp_path, monkeypatch):
    monkeypatch.setenv(CACHE, str(tmp_path / "mine"))
    assert folder() == tmp_path / "mine"
    monkeypatch.delenv(CACHE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "all"))
    assert folder() == tmp_path / "all" / "latentlab"
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert folder().is_dir()  # a place for caches that cannot be used is no reason to stop
    assert tmp_path not in folder().parents


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="files have no modes")
def test_folders_writable_by_others_are_not_used_for_machine_code(tmp_path, monkeypatch):
    """Anyone can create a folder of a known name in the temporary directory."""
    (tmp_path / "file").write_text("")
    monkeypatch.delenv(CACHE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    path = folder()
    assert path.parent == tmp_path
    path.chmod(0o777)
    with pytest.raises(PermissionError, match=f"other users can write to .*; set {CACHE} to a folder"):
        folder()
    path.chmod(0o700)
    another = os.getuid() + 1
    monkeypatch.setattr("os.getuid", lambda: another)
    path.rename(path.with_name(f"latentlab-{another}"))
    with pytest.raises(PermissionError):
        folder()


def test_in_place_changes_through_views_are_kept():
    """The node has no users, but changes a tensor through a view."""
    by = torch.tensor([2.0, 3.0], dtype=torch.float64)

    def function(x):
        y = x * 2
        y[1:].mul_(by)
        return (y,)

    x = torch.ones(3, dtype=torch.float64)
    graph = RecordedGraph(function, (x,))
    outside, held = constants_as_arguments(graph.root, graph.graph)
    assert len(held) == 1
    np.testing.assert_allclose(torch.fx.Interpreter(graph.root, graph=outside).run(x, *held)[0], [2.0, 4.0, 6.0])


# -- machine code


def test_small_constants_become_one_argument_and_integers_none():
    """Each argument costs time. Large tensors are data, which are passed as arguments so that other data use the same code."""
    numbers = [[0.5, 1.5], [0.5, 1.5], [0.5, 0.5], [2.0, 2.0], [0.0, 0.0], [-0.0, -0.0], [-torch.inf, -torch.inf], [0.0, -0.0]]
    tensors_held = [torch.tensor(own, dtype=torch.float64) for own in numbers]
    large = torch.ones(1000, dtype=torch.float64)

    def function(x):
        found = [x.add(own) for own in tensors_held]
        return (*found, *(x / tensors_held[i] for i in (4, 5, 7)), large + x[0])

    x = torch.tensor([3.0, -4.0], dtype=torch.float64)
    graph = RecordedGraph(function, (x,))
    outside, held = constants_as_arguments(graph.root, graph.graph, numbers=True)
    assert [own.numel() for own in held] == [1000, 8]
    assert held[1].tolist() == [0.5, 1.5, 0.5, 0.5, 0.0, 0.0, 0.0, 0.0]
    assert torch.signbit(held[1][4:]).tolist() == [True, True, False, True]
    for one, two in zip(torch.fx.Interpreter(graph.root, graph=outside).run(x, *held), function(x), strict=True):
        assert torch.equal(one, two)


def test_compilation_failures_fall_back_to_the_graph(code_folder, monkeypatch):
    def refuse(*_):
        raise RuntimeError("no C++ compiler")

    monkeypatch.setattr(machine_code, "compile_graph", refuse)
    x = torch.ones(4, dtype=torch.float64)
    with pytest.warns(UserWarning, match="the graph is run by Python code, since it cannot be compiled: no C\\+\\+ compiler"):
        fast = capture(small, x, x, plan=COMPILED)
    with double():
        torch.testing.assert_close(fast(2 * x, x)[0], small(2 * x, x)[0])
    assert not list(code_folder.iterdir())


def test_non_normal_random_numbers_stay_in_the_graph(code_folder):
    def function(x):
        return (x * torch.empty(4).exponential_(),)

    x = torch.ones(4, dtype=torch.float64)
    with pytest.warns(UserWarning, match="random numbers that are not standard normal"):
        fast = capture(function, x, plan=COMPILED)
    assert not torch.equal(fast(x)[0], fast(x)[0])


@pytest.mark.slow
def test_another_formula_of_a_kernel_has_another_key(monkeypatch):
    """Machine code has the formula in place of the kernel, so that kept code must not serve a changed formula."""
    x, u = torch.ones(4, 2, dtype=torch.float64), torch.tensor([0.1, 0.2, 1.0, -1.0, 0.3], dtype=torch.float64)

    def function(u):
        return (LowRankGaussian(u[:2], u[2:4, None], u[4]).log_prob_sum(x),)

    graph = RecordedGraph(function, (u,))
    outside, held = constants_as_arguments(graph.root, graph.graph, numbers=True)
    module, kernel = torch.fx.GraphModule(graph.root, outside), torch.ops.latentlab.low_rank_gaussian.default
    assert kernel in {node.target for node in outside.nodes}
    before = graph_key(module, (u, *held))
    assert graph_key(module, (u, *held)) == before
    monkeypatch.setitem(kernels.FORMULAS, kernel, function)
    assert graph_key(module, (u, *held)) != before


def test_machine_code_is_cached_and_reused(code_folder, caplog, monkeypatch):
    """Cached code is reused for other constants of the same shapes, and compiled again if it is damaged."""
    caplog.set_level(logging.INFO)
    x = torch.linspace(-1.0, 1.0, 4, dtype=torch.float64)

    def scaled(by):
        constant = by * torch.arange(4.0, dtype=torch.float64)
        return lambda y: (torch.exp(y * constant).sum() + torch.sin(y).sum(), y * constant)

    first = capture(scaled(1.0), x, plan=COMPILED)
    assert "compiled in" in caplog.text
    (path,) = code_folder.iterdir()
    caplog.clear()
    monkeypatch.setattr(machine_code, "compile_graph", None)
    second = capture(scaled(2.0), x, plan=COMPILED)
    assert "read in" in caplog.text
    for fast, by in ((first, 1.0), (second, 2.0)):
        for one, two in zip(fast(2 * x), scaled(by)(2 * x), strict=True):
            torch.testing.assert_close(one, two, rtol=1e-14, atol=1e-14)
    whole = path.read_bytes()
    half = len(whole) // 2
    for damaged in (whole[:1000], whole[:half] + bytes(5000) + whole[half + 5000 :]):  # the latter torch would run
        path.write_bytes(damaged)
        monkeypatch.setattr(machine_code, "compile_graph", lambda *_: path.write_bytes(whole))
        again = capture(scaled(1.0), x, plan=COMPILED)
        torch.testing.assert_close(again(x)[1], scaled(1.0)(x)[1])
        assert path.read_bytes() == whole
    for other in (torch.ones(5, dtype=torch.float64), x.float()):  # whose memory the code would read as it is
        with pytest.raises(ValueError, match="the arguments of the machine code must be"):
            first(other)
    assert [one.name for one in code_folder.iterdir()] == [path.name]  # and nothing else is left


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "name", "n_points"),
    [
        (PPCA(2, mu_scale=0), "iris", 4),
        pytest.param(GaussianMixture(2), "iris", 1, marks=pytest.mark.long),
        pytest.param(GaussianHMM(2), "nile", 3, marks=pytest.mark.long),
    ],
    ids=["ppca", "mixture", "hmm"],
)
def test_compiled_density_equals_the_density(model, name, n_points, rng, caplog):
    """Compiled once in a run of the tests: PPCA's is the code of four chains of NUTS in `test_reference`."""
    caplog.set_level(logging.INFO)
    dataset = load_dataset(name)
    density = Density(model, tensors(model, dataset), dataset.array_dims, plan=COMPILED)
    points = 0.3 * rng.standard_normal((n_points, density.size))
    values, gradients = density.batch_value_and_grad(points)
    assert "machine code of" in caplog.text
    for point, value, gradient in zip(torch.from_numpy(points), values, gradients, strict=True):
        plain_value, plain_gradient = density.eager_value_and_grad(point)
        np.testing.assert_allclose(value, plain_value, rtol=1e-11)
        np.testing.assert_allclose(gradient, plain_gradient, rtol=1e-9, atol=1e-9)


def fitted(*, compiled):
    method = SVI(guide="model", n_steps=30, batch_size=50, n_draws=5, n_particles=1, compiled=compiled)
    result = fit(VAE(2, (8,)), load_dataset("iris"), method, progress=False)
    return result.data["optimization"]["loss"].values, result.sites()["z"]


def digest(arrays):
    return hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()


FITTED = """
import logging, sys
logging.basicConfig(level=logging.INFO, stream=sys.stderr)
import test_capture as t
print(t.digest(t.fitted(compiled=True)))
"""


@pytest.mark.slow
def test_compiled_fits_are_reproducible_and_match_the_graph(code_folder, caplog):
    """Another process compiles and this one loads the code; both give the same draws."""
    caplog.set_level(logging.INFO)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([os.path.dirname(__file__), *filter(None, sys.path)])}
    command = [sys.executable, "-W", "ignore", "-c", FITTED]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "compiled in" in done.stderr
    here = fitted(compiled=True)
    assert "read in" in caplog.text
    assert "compiled in" not in caplog.text
    assert done.stdout.strip() == digest(here)
    np.testing.assert_allclose(here[0], fitted(compiled=False)[0], rtol=1e-9)


def test_steps_of_a_guide_are_equal_with_and_without_a_graph(iris, monkeypatch):
    """Noise, batches and optimiser are the same; particles, a growing weight and held-out units are included."""
    from latentlab.inference import steps

    method = SVI(guide="model", n_steps=60, batch_size=40, n_draws=5, n_particles=3, kl_warmup=30, held_out=0.2)
    with_graph = fit(VAE(2, (8,)), iris, method, progress=False)
    monkeypatch.setattr(steps, "capture", lambda function, *_, **__: function)
    without = fit(VAE(2, (8,)), iris, method, progress=False)
    for fitted in ("optimization", "parameters"):
        for name, values in with_graph.data[fitted].data_vars.items():
            np.testing.assert_allclose(values, without.data[fitted][name], rtol=1e-8, atol=1e-10, err_msg=str(name))


def test_single_precision_affects_the_steps_only(iris, monkeypatch, caplog):
    """With the same noise, losses match float64 to single precision, and results are float64."""

    def standard_normal(shape, dtype, device):
        return torch.from_numpy(np.random.default_rng(0).standard_normal(tuple(shape))).to(dtype)

    monkeypatch.setattr("torch.distributions.normal._standard_normal", standard_normal)
    method = SVI(guide="model", n_steps=40, batch_size=50, n_draws=5, n_particles=2, kl_warmup=10)
    double_, single_ = (fit(VAE(2, (8,)), iris, replace(method, precision=p), progress=False) for p in ("double", "single"))
    assert not caplog.records
    losses = [one.data["optimization"]["loss"].values for one in (double_, single_)]
    assert losses[0].dtype == losses[1].dtype == np.float64
    assert 1e-9 < np.abs(losses[1] / losses[0] - 1).max() < 1e-4
    for array in single_.parameters.values():
        assert array.dtype == np.float64
    assert np.abs(single_.parameters["decoder_1_z"] / np.float32(single_.parameters["decoder_1_z"]) - 1).max() > 1e-9
    assert torch.get_default_dtype() == torch.float32


def test_single_precision_is_refused_where_unsafe(iris):
    with pytest.raises(ConfigError, match="`precision` must be one of double, single"):
        SVI(guide="model", precision="half")
    with pytest.raises(ConfigError, match="`precision` is available with guide='model' only"):
        SVI(guide="mean_field", precision="single")
    with pytest.raises(ModelError, match="precision 'single' needs a model whose sites all belong to units; 'ppca' also has W"):
        fit(PPCA(2), iris, SVI(guide="model", precision="single"), progress=False)


def test_the_code_folder_belongs_to_its_user(code_folder):
    assert os.stat(folder()).st_mode & 0o077 == 0  # machine code that others could change is not to be run
