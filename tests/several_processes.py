"""Tests of fits by several processes, which agree with one process to rounding, write files once, and never hang."""

import copy
import json
import os
import signal
import time
from dataclasses import replace

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import memory_and_disk
from patching import everywhere
from ranks import in_processes
from torch.distributions import constraints

import latentlab as ll
import latentlab.study.run
from latentlab import cli, processes
from latentlab.data.rows import Rows
from latentlab.errors import ConfigError, ModelError
from latentlab.inference import advi
from latentlab.inference.adam import Adam
from latentlab.inference.draws import finished_draws
from latentlab.inference.guides import Frame
from latentlab.inference.steps import check_shares
from latentlab.models.base import LatentModel, Position
from latentlab.processes import Processes, together
from latentlab.results.prepare import prepared
from latentlab.seeds import one_thread
from latentlab.symmetry.groups import Identity

METHOD = ll.SVI(guide="mean_field", batch_size=33, n_steps=55, n_draws=10, n_particles=2, learning_rate=0.01)
ENCODED = replace(METHOD, guide="model")


class Levels(LatentModel):
    """Positions with an encoder and a common level, so that the guide has draws of both kinds."""

    name, position, symmetry, methods = "levels", Position("z"), Identity(), ("svi",)
    dims = {"level": (), "z": ("unit",)}

    def model(self, x, mask=None):
        level = pyro.sample("level", dist.Normal(torch.zeros(()), 2.0))
        with pyro.plate("unit", len(x)):
            z = pyro.sample("z", dist.Normal(level, 1.0))
            pyro.sample("x", dist.Normal(z[..., None], 0.5).expand(x.shape).to_event(1), obs=x)

    def guide(self, x, mask=None):
        loc, slope = pyro.param("loc", torch.zeros(())), pyro.param("slope", torch.tensor(0.3))
        scale = pyro.param("scale", torch.tensor(0.5), constraints.positive)
        pyro.sample("level", dist.Normal(loc, scale))
        with pyro.plate("unit", len(x)):
            pyro.sample("z", self.encoder(slope * x.mean(-1), scale))

    def encoder(self, loc, scale):
        return dist.Normal(loc, scale)


class WithNetwork(Levels):
    """Its encoder is a torch module."""

    def __init__(self, *layers):
        self.net = torch.nn.Sequential(torch.nn.Linear(6, 4), torch.nn.Tanh(), *layers, torch.nn.Linear(4, 1)).double()

    def guide(self, x, mask=None):
        pyro.module("net", self.net)
        pyro.sample("level", dist.Normal(pyro.param("loc", torch.zeros(())), 0.3))
        with pyro.plate("unit", len(x)):
            pyro.sample("z", dist.Normal(self.net(x)[..., 0], 0.5))


def network(*layers):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return WithNetwork(*layers)


class Laplacian(Levels):
    """Its guide draws from a distribution whose noise is not normal."""

    def encoder(self, loc, scale):
        return dist.Laplace(loc, scale)


class Discrete(Levels):
    """Its guide has draws that are not reparameterised."""

    def encoder(self, loc, scale):
        return dist.Normal(loc, scale).has_rsample_(False)


HELD_OUT = replace(ENCODED, objective="iwae", n_particles=3, kl_warmup=20, held_out=0.2, patience=1000)
FITS = {
    "factor analysis, restarts": (ll.models.FactorAnalysis(1), replace(METHOD, guide="low_rank", n_restarts=2), 0.0),
    "VAE, restarts, held-out units": (ll.models.VAE(2, hidden=(8,)), replace(HELD_OUT, n_restarts=2), 0.0),
    "linear VAE": (ll.models.LinearVAE(2), ENCODED, 0.0),
    "parameters of units": (ll.models.SparseGPLVM(2, 10), ENCODED, 0.0),
    "global and local sites": (Levels(), ENCODED, 0.0),
    "network": (network(), ENCODED, 0.0),
}
FROM_DISK = {
    "PPCA, full rank": (ll.models.PPCA(2), replace(METHOD, guide="full_rank")),
    "VAE": (ll.models.VAE(2, hidden=(8,)), ENCODED),
}


@pytest.fixture
def table(rng, tmp_path):
    """A function that writes a table of 100 units, three batches of 33 and one unit that is left out, and returns its path."""

    def write(missing):
        x = rng.standard_normal((100, 2)) @ rng.standard_normal((2, 6)) + rng.standard_normal((100, 6)) + 3
        x[rng.random(x.shape) < missing] = np.nan
        np.save(tmp_path / "mine.npy", x.astype(np.float32))
        return str(tmp_path / "mine.npy")

    return write


def draws_of(model, dataset, method):
    problem = prepared(model, dataset, method, progress=False)
    with problem.resources, one_thread():
        return method.run(problem)


def flat(draws):
    parts = {"values": draws.values, "stats": draws.stats, "optimization": draws.optimization, "parameters": draws.parameters}
    return {f"{part} {name}": np.asarray(value) for part, named in parts.items() for name, value in named.items()}


def fitted_by(n, folder, model, dataset, method):
    """Fits by n processes; returns the arrays of the first one, and the output of all."""

    def task(rank):
        with together() as found:
            found.meet({})
            arrays = flat(draws_of(model, dataset, method))
            np.savez(folder / f"rank-{rank}.npz", **arrays)

    codes, output = in_processes(n, task, folder)
    assert codes == [0] * n, output
    assert output == [""] * n
    assert all(not np.load(folder / f"rank-{rank}.npz").files for rank in range(1, n))
    with np.load(folder / "rank-0.npz") as found:
        return dict(found)


def check_agreement(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-10, atol=1e-10, err_msg=name)


# -- agreement


@pytest.mark.parametrize("name", FITS)
def test_two_processes_agree_with_one(name, table, tmp_path):
    """The share of a batch is 16 or 17 of 33 units, and the last unit of an epoch of 100 is left out."""
    model, method, missing = FITS[name]
    dataset, _ = memory_and_disk(table(missing))
    expected = flat(draws_of(copy.deepcopy(model), dataset, method))  # a fit changes a torch module
    check_agreement(fitted_by(2, tmp_path, model, dataset, method), expected)


@pytest.mark.parametrize("name", FROM_DISK)
def test_three_processes_read_their_shares_from_disk(name, table, tmp_path, monkeypatch):
    model, method = FROM_DISK[name]
    _, disk = memory_and_disk(table(missing=0.2))
    expected = flat(draws_of(model, disk, method))
    take, read = Rows.take, []
    monkeypatch.setattr(Rows, "take", lambda self, index, *rest: read.append(len(index)) or take(self, index, *rest))
    monkeypatch.setattr(processes.Processes, "finish", lambda self: (tmp_path / f"{self.rank}").write_text(str(sum(read))))
    check_agreement(fitted_by(3, tmp_path, model, disk, method), expected)
    for rank in range(3):
        assert 0 < int((tmp_path / str(rank)).read_text()) < 33 * METHOD.n_steps * 2 / 3


def test_ratings_are_shared(rng, tmp_path):
    model = ll.models.MatrixFactorization(2)
    dataset = model.simulate(rng, 12)
    method = replace(METHOD, batch_size=dataset.n_points // 2 - 1)
    expected = flat(draws_of(model, dataset, method))
    check_agreement(fitted_by(2, tmp_path, model, dataset, method), expected)


def test_shares_cover_a_batch_and_have_its_weights():
    for n in (3, 7, 8):
        shares = [Processes(rank, 3).share(n) for rank in range(3)]
        assert [i for share in shares for i in range(n)[share]] == list(range(n))
        assert sum(Processes(rank, 3).weight(n) for rank in range(3)) == pytest.approx(1)


@pytest.mark.fixed
def test_different_parameters_are_an_error(tmp_path):
    def task(rank):
        with together() as found:
            found.meet({})
            found.check_equal(torch.ones(3))
            found.check_equal(torch.ones(3) + 1e-16 * (rank == 1))  # rounds to the same numbers
            print("equal", flush=True)
            found.check_equal(torch.ones(3, dtype=torch.float64) + 1e-15 * (rank == 1))

    codes, output = in_processes(2, task, tmp_path)
    assert codes == [1, 1]
    assert "InferenceError: the parameters or random states of process 1 differ" in output[0]
    assert output[1] == ""


@pytest.mark.fixed
def test_processes_with_other_settings_are_refused(tmp_path):
    def task(rank):
        with together() as found:
            found.meet({"model": "PPCA(2)", "data": f"hash {rank}"})

    codes, output = in_processes(2, task, tmp_path)
    assert codes == [2, 0]
    assert output == ["ConfigError: `data` must be the same in all processes; got hash 0 and, in process 1, hash 1.\n", ""]


# -- what is refused


@pytest.fixture
def as_one_of_two():
    """Acts as the first of two processes, without a second one."""
    token = processes._current.set(Processes(0, 2))
    yield
    processes._current.reset(token)


@pytest.mark.fixed
@pytest.mark.parametrize(
    "method", [ll.NUTS(), ll.ChEES(), ll.Exact(), ll.MAP(), ll.SVI(), ll.SVI(guide="mean_field")], ids=lambda method: method.name
)
def test_methods_without_minibatches_are_refused(method, iris, as_one_of_two):
    with pytest.raises(ConfigError, match="must be `svi` with a `batch_size` for 2 processes"):
        prepared(ll.models.PPCA(2), iris, method)


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (network(torch.nn.BatchNorm1d(4)), "must treat units separately; got BatchNorm1d"),
        (network(torch.nn.Dropout(0.5)), "must be deterministic; got Dropout"),
        (Laplacian(), "not a sum over its units"),
        (Discrete(), "draws that are not reparameterised"),
    ],
    ids=["batch normalisation", "dropout", "other noise", "score function"],
)
def test_dependent_units_are_refused(model, why, table, as_one_of_two):
    dataset, _ = memory_and_disk(table(0.0))
    before = {name: value.clone() for name, value in getattr(model, "net", torch.nn.Identity()).state_dict().items()}
    with pytest.raises(ModelError, match=why):
        prepared(model, dataset, replace(ENCODED, n_particles=1))
    after = getattr(model, "net", torch.nn.Identity()).state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items() if "running" not in name and "num" not in name)


@pytest.mark.fixed
def test_shares_without_units_are_refused(iris, as_one_of_two):
    for method in (replace(ENCODED, batch_size=1), replace(ENCODED, held_out=1 / 150)):
        with pytest.raises(ConfigError, match="must be at least 2 for 2 processes"):
            prepared(ll.models.VAE(2, hidden=(4,)), iris, method)


@pytest.mark.fixed
def test_each_process_needs_a_gpu_of_its_own(iris, as_one_of_two, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    for device, why in (("cuda:0", "must be cpu or cuda for 2 processes"), ("cuda", "2 processes and 1 GPUs")):
        with pytest.raises(ConfigError, match=why):
            prepared(ll.models.PPCA(2), iris, replace(METHOD, device=device))


@pytest.mark.fixed
def test_an_executor_is_refused(iris, as_one_of_two):
    with pytest.raises(ConfigError, match="2 processes of torchrun already share the fit; got 'serial'"):
        ll.fit(ll.models.PPCA(2), iris, METHOD, executor="serial", progress=False)


def test_loss_and_gradient_are_compared_separately(iris):
    """The gradient of the shares is twice that of the batch, and much smaller than the loss."""
    problem = replace(prepared(ll.models.PPCA(2), iris, METHOD), processes=Processes(0, 2))
    loss, gradient = torch.tensor([1e9], dtype=torch.float64), torch.ones(1, 3, dtype=torch.float64)
    check_shares(problem, 33, lambda _: (loss, gradient))
    with pytest.raises(ModelError, match="not a sum over its units"):
        check_shares(problem, 33, lambda found: (loss, gradient * found.size))


@pytest.mark.fixed
def test_other_coordinates_in_one_process_are_an_error(table, tmp_path, monkeypatch):
    """Both frames whiten, but steps in them have other meanings; the parameters alone do not differ."""
    whiten = advi.whitening_frame

    def rotated(*arguments):
        frame = whiten(*arguments)
        return Frame(frame.center, -frame.matrix) if os.environ.get("RANK") == "1" else frame

    monkeypatch.setattr(advi, "whitening_frame", rotated)
    dataset, _ = memory_and_disk(table(0.0))

    def task(rank):
        with together() as found:
            found.meet({})
            draws_of(ll.models.PPCA(2), dataset, replace(METHOD, guide="full_rank"))

    codes, output = in_processes(2, task, tmp_path)
    assert codes == [1, 1]
    assert "the parameters or random states of process 1 differ" in output[0]


# -- runs

CONFIG = {
    "name": "two",
    "dataset": {"name": "iris"},
    "model": {"name": "vae", "n_latent": 2, "hidden": [4]},
    "inference": {"name": "svi", "guide": "model", "n_steps": 60, "batch_size": 33, "n_draws": 20, "n_particles": 1},
}


def without_page(monkeypatch):
    everywhere(monkeypatch, "latentlab.study", "write_page", lambda found, **_: found.path)


@pytest.mark.fixed
@pytest.mark.parametrize(
    "arguments", [["run", "inference.name=nuts"], ["run", "model.n_latent=0"], ["select", "model.n_latent=1,2"]]
)
def test_one_process_prints_one_line(arguments, tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text(json.dumps({**CONFIG, "model": {"name": "ppca", "n_latent": 1}}))
    words = [arguments[0], str(config), *arguments[1:], "--out", str(tmp_path / "run")]
    codes, output = in_processes(2, lambda _: cli.main(words), tmp_path)
    assert codes == [2, 2]
    assert output[0].startswith("latentlab: error: ")
    assert output[0].count("\n") == 1
    assert output[1] == ""
    assert not (tmp_path / "run").exists()


def failing(error, n_done):
    """Replaces the learning rate by a function that fails in the second process after some steps."""
    scale = Adam.scale

    def fails(self, step):
        if step == n_done and os.environ.get("RANK") == "1":
            error()
        return scale(self, step)

    return fails


def error_of_process():
    raise RuntimeError("no more\nmemory")


def killed():
    os.kill(os.getpid(), signal.SIGKILL)


def hanging():
    time.sleep(60)


def counted(descend, folder):
    """Replaces the descent by one that writes the number of steps from which it resumes."""

    def counts(self, *args, **options):
        if "RANK" in os.environ:
            (folder / f"resumed-{os.environ['RANK']}").write_text(str(args[7].n_done))
        return descend(self, *args, **options)

    return counts


def interrupted():
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(5)


@pytest.mark.fixed
@pytest.mark.parametrize(
    ("error", "codes", "status", "message"),
    [
        (error_of_process, [1, 1], "failed", "process 1 of 2 failed: RuntimeError: no more\nmemory"),
        (hanging, [1, 1], "failed", "another process of the fit ended, or did not answer for 3 s"),
        (interrupted, [99, 1], "interrupted", "SIGTERM"),
    ],
    ids=["error", "hangs", "interrupted"],
)
def test_a_lost_process_ends_the_run(error, codes, status, message, tmp_path, monkeypatch):
    monkeypatch.setattr(Adam, "scale", failing(error, 40))
    monkeypatch.setattr(processes, "TIMEOUT", 3.0 if error is hanging else 60.0)
    monkeypatch.setattr(processes, "GRACE", 0.1 if error is hanging else 60.0)
    found, output = in_processes(2, lambda _: ll.run(CONFIG, out=tmp_path / "run", progress=False) and None, tmp_path)
    assert found == codes, output
    assert output[1] == ""
    info = json.loads((tmp_path / "run" / "run.json").read_text())
    assert info["status"] == status
    assert message in info["error"]["message"]
    assert (tmp_path / "run" / "checkpoints" / "restart-0-under-way.safetensors").is_file()


@pytest.mark.fixed
@pytest.mark.parametrize("guide", ["model", "mean_field"])
def test_results_are_sent_to_no_other_process(guide, table, tmp_path, monkeypatch):
    """The state of an interrupted descent is sent to all; finished restarts and draws are read by the first process only."""
    dataset, _ = memory_and_disk(table(0.0))
    model, method = (ll.models.VAE(2, hidden=(4,)) if guide == "model" else ll.models.PPCA(2)), replace(METHOD, guide=guide)
    send = Processes.from_first

    def fitted(folder):
        sent = []

        def sends(self, content):
            found = send(self, content)
            sent.append(None if found is None else len(found))
            return found

        def task(rank):
            with together() as found, monkeypatch.context() as patch:
                found.meet({})
                patch.setattr(Processes, "from_first", sends)
                problem = prepared(model, dataset, method, progress=False, checkpoint=folder if rank == 0 else None)
                with problem.resources, one_thread():
                    draws = finished_draws(problem, method)
            print(len(flat(draws)), sent, flush=True)
            np.savez(tmp_path / f"rank-{rank}.npz", **flat(draws))

        codes, output = in_processes(2, task, tmp_path)
        assert codes == [0, 0], output
        with np.load(tmp_path / "rank-0.npz") as arrays:
            return dict(arrays), output

    folder = tmp_path / "checkpoints"
    first, output = fitted(folder)
    assert output == [f"{len(first)} [None, None, None]\n", "0 [None, None, None]\n"]
    again, output = fitted(folder)
    assert output == [f"{len(first)} [0]\n", "0 [0]\n"]
    (folder / "draws.safetensors").unlink()
    from_restart, output = fitted(folder)
    assert output == [f"{len(first)} [None, 0]\n", "0 [None, 0]\n"]
    for found in (again, from_restart):
        assert {name: array.tobytes() for name, array in found.items()} == {name: a.tobytes() for name, a in first.items()}


@pytest.mark.fixed
def test_a_run_is_resumed_after_the_death_of_a_process(tmp_path, monkeypatch):
    (tmp_path / "config.yaml").write_text(json.dumps(CONFIG))
    words = ["run", "config.yaml", "--out", "run"]
    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(Adam, "scale", failing(killed, 40))
        (first, second), output = in_processes(2, lambda _: cli.main(words), tmp_path)
    info = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (first, info["status"]) in ((1, "failed"), (130, "interrupted")), output
    assert (second, output[1]) == (-signal.SIGKILL, "")

    without_page(monkeypatch)
    monkeypatch.setattr(Adam, "descend", counted(Adam.descend, tmp_path))
    codes, output = in_processes(2, lambda _: cli.main([*words, "--resume"]), tmp_path)
    assert codes == [0, 0], output
    assert [(tmp_path / f"resumed-{rank}").read_text() for rank in range(2)] == ["40", "40"]
    run = ll.load_run(tmp_path / "run")
    expected = ll.fit(ll.models.VAE(2, hidden=(4,)), ll.load_dataset("iris"), run.fit.method, progress=False)
    for name, value in expected.parameters.items():
        np.testing.assert_allclose(run.fit.parameters[name], value, rtol=1e-10, atol=1e-10)
    log = (tmp_path / "run" / "run.log").read_text()
    assert log.count("step 60 of 60") == 1
    assert "2 processes, 2 of them on this machine" in log
    assert run.info["threads"]["processes"] == 2
    assert {path.name for path in tmp_path.iterdir()} - {"run"} == {
        *("config.yaml", "output-0", "output-1", "resumed-0", "resumed-1")
    }
