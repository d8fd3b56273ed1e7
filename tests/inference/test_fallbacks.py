"""Tests of what is reported if a program is not recorded or compiled, and of warnings of torch."""

import re
import warnings
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

import latentlab
from latentlab.data.dataset import Dataset
from latentlab.fit import fit
from latentlab.inference import capture as capture_module
from latentlab.inference import machine_code
from latentlab.inference.capture import capture
from latentlab.inference.map import MAP
from latentlab.inference.nuts import NUTS
from latentlab.models.base import LatentModel, Position
from latentlab.models.ppca import PPCA
from latentlab.symmetry.groups import Identity


def test_a_function_with_other_results_at_another_point_is_not_captured():
    calls = []

    def function(x):
        calls.append(x)
        return (x * len(calls),)

    with pytest.warns(UserWarning, match="cannot be captured"):
        assert capture(function, torch.ones(3, dtype=torch.float64)) is function


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
