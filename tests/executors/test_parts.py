"""Chains and restarts as tasks: the same arrays by every executor, workers that are killed, and what is refused."""

import os
import signal
import warnings
from pathlib import Path

import numpy as np
import pytest
from helpers import all_arrays

import latentlab as ll
from latentlab.errors import ConfigError, InferenceError, MissingDependencyError, StoreError
from latentlab.executors.engines import opened
from latentlab.executors.tasks import Carried
from latentlab.inference import nuts
from latentlab.inference.density import Density
from latentlab.registry import plugins
from latentlab.results import parts
from latentlab.results.parts import compute_part
from latentlab.results.prepare import prepared

pytestmark = [pytest.mark.fixed, pytest.mark.filterwarnings("ignore")]

NUTS = ll.NUTS(n_chains=2, n_warmup=12, n_draws=6, max_tree_depth=3)
SVI = ll.SVI(n_steps=12, n_restarts=2, n_draws=6)
MAP = ll.MAP(n_restarts=2, n_draws=6)
GUIDE = ll.SVI("model", n_steps=12, n_restarts=2, n_draws=6, batch_size=40)
CASES = {"nuts": (ll.models.PPCA(1), NUTS), "svi": (ll.models.PPCA(1), SVI), "map": (ll.models.PPCA(1), MAP)}
CASES["guide"] = (ll.models.VAE(1), GUIDE)


@pytest.fixture(scope="module")
def small():
    return ll.load_dataset("iris").subset(range(0, 150, 3))


def arrays(model, dataset, method, **options):
    return all_arrays(ll.fit(model, dataset, method, seed=5, progress=False, **options))


@pytest.fixture(scope="module")
def serial(small):
    return {name: arrays(model, small, method, executor="serial") for name, (model, method) in CASES.items()}


def differing(one, other):
    return [name for name, array in one.items() if array.tobytes() != other[name].tobytes()]


def test_processes_give_the_same_arrays(serial, small):
    model, method = CASES["nuts"]
    assert differing(serial["nuts"], arrays(model, small, method, executor="process", n_workers=1)) == []


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["process", "dask:local", "ray:local", "submitit:local"])
def test_every_executor_writes_the_same_parts(engine, serial, small, tmp_path):
    """Parts of all methods by processes, and of one method by the other engines, whose workers take long to start."""
    cases = CASES if engine == "process" else {"svi": CASES["svi"]}
    with opened(engine, tmp_path / "jobs", n_workers=2) as opened_engine:
        futures = {
            (name, i): opened_engine.executor.submit(compute_part, Carried(model, small, method), 5, str(tmp_path / name), i)
            for name, (model, method) in cases.items()
            for i in range(2)
        }
        assert {key: future.result(timeout=300)["status"] for key, future in futures.items()} == dict.fromkeys(futures, "done")
    for name, (model, method) in cases.items():
        found = arrays(model, small, method, executor="serial", checkpoint=tmp_path / name)
        assert differing(serial[name], found) == []


def test_restarts_are_those_of_a_fit_without_an_executor(serial, small):
    for name in ("map", "guide"):
        assert differing(serial[name], arrays(CASES[name][0], small, CASES[name][1])) == []


def test_chains_agree_with_those_of_a_batch_up_to_rounding(serial, small):
    """In a few iterations, rounding errors stay small."""
    model, method = CASES["nuts"]
    for name, array in arrays(model, small, method).items():
        if name.startswith("posterior"):
            np.testing.assert_allclose(serial["nuts"][name], array, rtol=1e-5, atol=1e-8, err_msg=name)


def test_finished_parts_are_not_computed_again(small, tmp_path, monkeypatch):
    model, method = CASES["map"]
    whole = arrays(model, small, method, executor="serial", checkpoint=tmp_path)
    assert {path.stem for path in tmp_path.glob("*.safetensors")} == {"restart-0", "restart-1", "draws"}
    for name in ("draws", "restart-1"):
        (tmp_path / f"{name}.safetensors").unlink()
    computed, restart, lines = [], ll.MAP._restart, []
    monkeypatch.setattr(ll.MAP, "_restart", lambda self, problem, i: computed.append(i) or restart(self, problem, i))
    assert differing(whole, arrays(model, small, method, executor="serial", checkpoint=tmp_path, log=lines.append)) == []
    assert (computed, lines) == ([1], ["restart-1 starts"])


class Fragile(ll.models.PPCA):
    """PPCA that, in a worker, saves each iteration, and kills the process once in the gradient with the number in a file."""

    name = "fragile"

    def __init__(self, folder: str = "", n_latent: int = 1) -> None:
        super().__init__(n_latent)
        self.folder = folder

    def check(self, dataset):
        super().check(dataset)
        flag, log = os.path.join(self.folder, "kill"), os.path.join(self.folder, "calls")
        if os.getpid() == int(Path(self.folder, "driver").read_text()):
            return
        nuts.CHECKPOINT_SECONDS = -1.0
        gradient, n = Density.batch_value_and_grad, 0

        def counted(self, points):
            nonlocal n
            n += 1
            if n == 40 and os.path.exists(flag):
                os.unlink(flag)
                os.kill(os.getpid(), signal.SIGKILL)
            with open(log, "a") as stream:
                stream.write(f"{os.getpid()}\n")
            return gradient(self, points)

        Density.batch_value_and_grad = counted


def test_a_killed_worker_resumes_its_chain_from_the_checkpoint(small, tmp_path, monkeypatch):
    (tmp_path / "driver").write_text(str(os.getpid()))
    gradient, calls = Density.batch_value_and_grad, []
    monkeypatch.setattr(Density, "batch_value_and_grad", lambda self, u: calls.append(1) or gradient(self, u))
    model, lines = Fragile(str(tmp_path)), []
    method = ll.NUTS(n_chains=1, n_warmup=12, n_draws=6, max_tree_depth=3)
    whole = arrays(model, small, method, executor="serial")
    (tmp_path / "kill").touch()
    found = arrays(model, small, method, executor="process", n_workers=1, checkpoint=tmp_path / "c", log=lines.append)
    assert differing(whole, found) == []
    assert lines == ["chain-0 starts", "chain-0: its worker died; it is started once more", "chain-0 starts"]
    pids = (tmp_path / "calls").read_text().split()
    first, second = (pids.count(pid) for pid in dict.fromkeys(pids))
    assert first == 39
    assert first + second <= len(calls) + 2**3, "no iteration but the interrupted one is made twice"


class Loud(ll.models.PPCA):
    """PPCA that warns, or fails, when it is fitted."""

    name = "loud"

    def __init__(self, n_latent: int = 1, text: str = "") -> None:
        super().__init__(n_latent)
        self.text = text

    def initialize(self, *arguments):
        if self.text == "fail":
            raise ZeroDivisionError("no start")
        warnings.warn("a rough start", stacklevel=2)
        return super().initialize(*arguments)


@pytest.mark.filterwarnings("default")
def test_warnings_and_errors_of_tasks_reach_the_caller(small):
    with pytest.warns(UserWarning, match="a rough start") as caught:
        ll.fit(Loud(), small, MAP, executor="serial", progress=False)
    assert sum("a rough start" in str(one.message) for one in caught) == 1
    with pytest.raises(InferenceError, match="restart-0: ZeroDivisionError: no start"):
        ll.fit(Loud(text="fail"), small, MAP, executor="serial", progress=False)


def test_models_of_plugins_travel_to_workers(small, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("import latentlab as ll\n\n\nclass Mine(ll.models.PPCA):\n    name = 'mine'\n")
    config = {
        "name": "mine",
        "dataset": {"name": "iris"},
        "model": {"name": "mine", "n_latent": 1},
        "inference": {"name": "map", "n_restarts": 1, "n_draws": 5},
        "executor": "process",
        "plugins": [str(path)],
    }
    found = ll.run(config, out=tmp_path / "run", progress=False)
    assert found.config["executor"] == "process"
    assert "restart-0 starts" in (tmp_path / "run" / "run.log").read_text()
    again = ll.run({**config, "executor": "serial"}, out=tmp_path / "run", resume=True, progress=False)
    assert again.info["status"] == found.info["status"]
    with plugins([str(path)]):
        pass


def test_networks_of_plugins_travel_to_workers(small, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "import torch\n\n\ndef narrow(n_inputs, n_outputs):\n    return torch.nn.Linear(n_inputs, n_outputs)\n\n\n"
        "networks = {'narrow': narrow}\n"
    )
    with plugins([str(path)]):
        model = ll.models.VAE(1, decoder="narrow")
    method = ll.SVI("model", n_steps=2, n_restarts=2, n_draws=6)
    assert differing(*(arrays(model, small, method, executor=name) for name in ("serial", "process"))) == []


@pytest.mark.parametrize(
    ("method", "executor", "options", "text"),
    [
        (ll.ChEES(), "process", {}, "must be nuts, svi or map.*; got chees, whose chains are adapted jointly"),
        (ll.Exact(), "process", {}, "must be nuts, svi or map, which have independent chains or restarts; got exact"),
        (NUTS, "procces", {}, "executor: must be one of"),
        (NUTS, "process", {"n_workers": 0}, "n_workers: must be at least 1"),
        (NUTS, "dask:tcp://host:8786", {}, "set `checkpoint` to a folder that all machines share"),
    ],
)
def test_what_cannot_be_parallel_is_refused(method, executor, options, text, small):
    with pytest.raises(ConfigError, match=text):
        ll.fit(ll.models.PPCA(1), small, method, executor=executor, progress=False, **options)


def test_a_config_with_a_method_without_parts_starts_nothing(tmp_path):
    config = {"name": "x", "dataset": {"name": "iris"}, "model": {"name": "ppca", "n_latent": 1}}
    with pytest.raises(ConfigError, match="got chees, whose chains are adapted jointly"):
        ll.run({**config, "inference": {"name": "chees"}, "executor": "process"}, out=tmp_path / "x", progress=False)
    assert not (tmp_path / "x").exists()


def test_results_that_are_not_visible_are_an_error(small, monkeypatch):
    """Tasks of machines that do not share the folder are not computed again in this process."""
    monkeypatch.setattr(parts, "work", lambda *_: None)
    monkeypatch.setattr(parts, "SECONDS_TO_APPEAR", 0.0)
    with pytest.raises(StoreError, match="the task restart-0 has ended, but its result is not there"):
        ll.fit(ll.models.PPCA(1), small, MAP, executor="serial", progress=False)


def test_a_monitor_receives_the_number_of_finished_tasks(small):
    calls = []
    ll.fit(ll.models.PPCA(1), small, MAP, executor="serial", progress=False, monitor=lambda *call: calls.append(call))
    assert calls == [(1, {"finished_tasks": 1.0}), (2, {"finished_tasks": 2.0})]


def test_an_error_of_a_task_keeps_its_type(small):
    progress = parts._Progress(prepared(ll.models.PPCA(1), small, MAP), None)
    with pytest.raises(MissingDependencyError, match="restart-0: zarr is missing"):
        progress.finish("restart-0", {"status": "failed", "type": "MissingDependencyError", "error": "zarr is missing"})
