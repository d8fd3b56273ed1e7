"""Tests of trackers: what they receive, and that none of them can stop a run or change its results."""

import json
import logging
import os
import random
import sys
import warnings

import numpy as np
import pytest
import torch
import yaml

from latentlab.errors import ConfigError
from latentlab.fit import fit
from latentlab.inference import draws
from latentlab.inference.chees import ChEES
from latentlab.inference.draws import Monitor
from latentlab.inference.nuts import NUTS
from latentlab.inference.svi import SVI
from latentlab.models.ppca import PPCA
from latentlab.registry import TRACKERS
from latentlab.store.directory import ARRAYS, RunDirectory, read_info
from latentlab.study import stages
from latentlab.study.config import json_schema, load_config
from latentlab.study.rows import row_of
from latentlab.study.run import load_run, run
from latentlab.sweeps.sweep import sweep
from latentlab.tracking.mlflow import MLflow
from latentlab.tracking.tracker import Tracker, flat, numbers

TOY = {
    "name": "toy",
    "seed": 3,
    "dataset": {"name": "linear_gaussian", "n_units": 30, "n_features": 4, "n_latent": 1},
    "model": {"name": "ppca", "n_latent": 1},
    "inference": {"name": "svi", "guide": "mean_field", "n_steps": 60, "n_restarts": 2, "n_draws": 40},
    "embeddings": [{"name": "pca"}],
    "compare": {"metrics": ["cka"], "n_draws": 10, "n_pairs": 5, "n_permutations": 3},
}
EXACT = {**TOY, "inference": {"name": "exact", "n_draws": 12}, "embeddings": []}


@pytest.fixture(scope="module", autouse=True)
def _no_page():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stages, "write_page", lambda run, progress: run.path)
        yield


class Recorded(Tracker):
    """Tracker that keeps its calls."""

    calls = []

    def begin(self, folder, config, info):
        self.calls.append(("begin", folder, config["model"]["name"], info["seed"]))

    def log(self, step, values):
        self.calls.append(("log", step, dict(values)))

    def end(self, results):
        self.calls.append(("end", dict(results)))


@pytest.fixture
def recorded():
    Recorded.calls = []
    with TRACKERS.added({"recorded": Recorded}):
        yield Recorded.calls


# -- MLflow and TensorBoard


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """URI of a store in a folder that does not exist yet; its tables are created once for all tests."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/new/runs.db"


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A run without trackers."""
    return run(TOY, out=tmp_path_factory.mktemp("plain") / "run", progress=False)


@pytest.fixture(scope="module")
def tracked(store, plain, tmp_path_factory):
    """A run with both trackers, with the global state before and after it; `plain` has imported everything else."""
    trackers = [{"name": "mlflow", "uri": store, "experiment": "toys"}, {"name": "tensorboard"}]
    before = _state()
    done = run({**TOY, "tracking": trackers}, out=tmp_path_factory.mktemp("tracked") / "run", progress=False)
    return done, before, _state()


def _state():
    states = str(np.random.get_state()), str(random.getstate()), torch.get_rng_state().tolist(), torch.get_default_dtype()
    threads = torch.get_num_threads(), logging.root.manager.disable, logging.root.level, list(logging.root.handlers)
    return (*states, *threads, dict(os.environ), os.getcwd(), list(warnings.filters), warnings.showwarning)


def _results(found):
    """Hashes of the files with results."""
    return {name: entry for name, entry in found.info["files"].items() if name in ARRAYS}


def _records(store, experiment):
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=store)
    return client, client.search_runs([client.get_experiment_by_name(experiment).experiment_id])


@pytest.mark.fixed
def test_mlflow_receives_config_tags_results_and_live_losses(tracked, store):
    done = tracked[0]
    client, (found,) = _records(store, "toys")
    assert (found.info.status, found.info.run_name) == ("FINISHED", "toy")
    fixed = {key: value for key, value in done.config.items() if key != "tracking"}  # a run can be resumed with other trackers
    assert found.data.params == {key: str(value) for key, value in flat(fixed)}
    assert found.data.params["inference.n_steps"] == "60"
    row = row_of(done.path)
    tags = found.data.tags
    assert (tags["status"], tags["seed"], tags["path"]) == (done.info["status"], "3", str(done.path))
    assert tags["data.sha256"] == done.info["data"]["sha256"]
    assert tags["versions.torch"] == done.info["versions"]["torch"]
    assert tags["pca.orthogonal.verdict"] == row.results["pca.orthogonal.verdict"]
    metrics = found.data.metrics
    for key in ("converged", "elpd_loo", "elpd_loo_se", "pca.orthogonal.delta", "pca.cka"):
        assert metrics[key] == float(row.results[key]), key
    assert metrics["pca mapped.orthogonal.delta"] == row.results["pca (mapped).orthogonal.delta"]
    assert metrics["seconds"] == row.times["seconds"]
    losses = client.get_metric_history(found.info.run_id, "loss/restart-1")
    assert losses[-1].step == 60
    assert losses[-1].value == pytest.approx(done.posterior["optimization"]["loss"].values[1, -50:].mean())


@pytest.mark.fixed
def test_tensorboard_files_lie_in_the_run_directory_and_are_not_listed(tracked):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    done = tracked[0]
    found = EventAccumulator(str(done.path / "tensorboard"))
    found.Reload()
    assert found.Scalars("loss/restart-0")[-1].step == 60
    deltas = found.Scalars("results/pca.orthogonal.delta")
    assert deltas[0].value == pytest.approx(row_of(done.path).results["pca.orthogonal.delta"], rel=1e-6)
    assert not [name for name in done.info["files"] if "tensorboard" in name]


@pytest.mark.fixed
def test_trackers_change_neither_results_nor_state(tracked, plain):
    done, before, after = tracked
    assert before == after
    assert _results(done) == _results(plain)
    assert done.info["warnings"] == plain.info["warnings"]


@pytest.mark.fixed
def test_a_tracked_run_is_read_without_the_packages_of_its_trackers(tracked, monkeypatch):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    done = load_run(tracked[0].path)
    assert done.fit.latents().shape == tracked[0].fit.latents().shape


@pytest.mark.fixed
def test_a_resumed_run_continues_its_record(store, tmp_path):
    info = {"name": "long", "seed": 0, "started": "now", "versions": {}, "data": {"sha256": ""}}
    first, again, other = (MLflow(uri=store, experiment="resumed") for _ in range(3))
    first.begin(tmp_path / "it's", {"a": 1}, info)
    first.log(1, {"loss/restart-0": 2.0})
    first.end({"status": "interrupted", "error": ""})
    assert _records(store, "resumed")[1][0].info.status == "KILLED"
    again.begin(tmp_path / "it's", {"a": 1}, {**info, "resumed": "later"})
    again.end({"status": "done", "error": "", "converged": True})
    (found,) = _records(store, "resumed")[1]
    assert (found.info.status, found.data.metrics) == ("FINISHED", {"loss/restart-0": 2.0, "converged": 1.0})
    other.begin(tmp_path / "other", {}, info)
    assert len(_records(store, "resumed")[1]) == 2


@pytest.mark.fixed
def test_each_point_of_a_sweep_is_tracked(store, tmp_path):
    tracking = [{"name": "mlflow", "uri": store, "experiment": "sweep"}]
    plan = {**EXACT, "tracking": tracking, "sweep": {"grid": {"model.n_latent": [1, 2]}}}
    assert sweep(plan, executor="serial", out=tmp_path / "sweep", progress=False).is_complete()
    found = _records(store, "sweep")[1]
    assert sorted(r.data.tags["sweep.values.model.n_latent"] for r in found) == ["1", "2"]
    assert {r.data.tags["sweep.name"] for r in found} == {"toy"}
    assert {r.info.status for r in found} == {"FINISHED"}


@pytest.mark.slow
@pytest.mark.fixed
def test_processes_write_to_one_new_store(tmp_path):
    """The workers create the tables and the experiment at the same time."""
    uri = f"sqlite:///{tmp_path}/new.db"
    plan = {**EXACT, "tracking": [{"name": "mlflow", "uri": uri}], "sweep": {"seeds": 4}}
    found = sweep(plan, executor="process", n_workers=2, out=tmp_path / "sweep", progress=False)
    assert found.is_complete()
    assert [found.run(i).info["warnings"] for i in range(4)] == [[]] * 4
    assert {r.info.status for r in _records(uri, "latentlab")[1]} == {"FINISHED"}


@pytest.mark.fixed
def test_a_dead_address_costs_one_warning(tmp_path):
    done = run({**EXACT, "tracking": [{"name": "mlflow", "uri": "http://127.0.0.1:9"}]}, out=tmp_path / "run", progress=False)
    (text,) = done.info["warnings"]
    assert text.startswith("tracking.0: the run is not tracked there from now on: ")
    assert (done.path / "run.log").read_text(encoding="utf-8").count("not tracked") == 1
    assert done.info["status"] == "done"


# -- trackers that fail


class Broken(Tracker):
    """Tracker that raises an error in one of its methods, and changes global state before."""

    built = 0

    def __init__(self, at: str = "") -> None:
        self.at = at
        Broken.built += 1
        if Broken.built > 1:  # the first is built when the config is checked
            self._raise("construction")

    def _raise(self, method):
        if method == self.at:
            torch.manual_seed(1)
            np.random.seed(1)
            random.seed(1)
            os.environ["LATENTLAB_TEST"] = "1"
            warnings.warn("not an error of the run", stacklevel=1)
            raise SystemExit("no such disk") if method == "log" else OSError("no such\ndisk")

    def begin(self, folder, config, info):
        self._raise("begin")

    def log(self, step, values):
        self._raise("log")

    def end(self, results):
        self._raise("end")


@pytest.mark.parametrize("at", ["construction", "begin", "log", "end"])
@pytest.mark.fixed
def test_a_tracker_that_fails_costs_one_warning(at, plain, recorded, tmp_path, caplog):
    before = _state()
    Broken.built = 0
    with TRACKERS.added({"broken": Broken, "recorded": Recorded}):
        trackers = [{"name": "broken", "at": at}, {"name": "recorded"}]
        done = run({**TOY, "tracking": trackers}, out=tmp_path / "run", progress=False)
    assert _state() == before
    assert _results(done) == _results(plain)
    kind = "SystemExit" if at == "log" else "OSError"
    expected = f"tracking.0: the run is not tracked there from now on: {kind}: no such disk"
    assert done.info["warnings"] == [expected]
    assert read_info(done.path)["status"] == plain.info["status"]
    assert (done.path / "run.log").read_text(encoding="utf-8").count(expected) == 1
    assert [record.message for record in caplog.records if "tracked" in record.message] == [expected]
    assert recorded[0] == ("begin", done.path, "ppca", 3)  # the other tracker goes on
    assert recorded[-1][1]["status"] == done.info["status"]


@pytest.mark.fixed
def test_an_unwritable_log_does_not_turn_a_warning_into_an_error(tmp_path, monkeypatch):
    Broken.built = 0
    listing = RunDirectory.list

    def full(self, *names):
        if names == ("run.log",):
            raise OSError("full")
        listing(self, *names)

    monkeypatch.setattr(RunDirectory, "list", full)
    with TRACKERS.added({"broken": Broken}):
        config = load_config({**EXACT, "tracking": [{"name": "broken", "at": "end"}]})
        done = run(config, out=tmp_path / "run", progress=False)
    assert done.info["status"] == "done"


def test_a_failed_run_ends_its_records(recorded, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("no draws")

    monkeypatch.setattr(stages, "fit", fail)
    with pytest.raises(RuntimeError, match="no draws"):
        run({**EXACT, "tracking": [{"name": "recorded"}]}, out=tmp_path / "run", progress=False)
    assert recorded[-1] == ("end", {"status": "failed", "error": "no draws"})


def test_an_interrupted_run_is_resumed_with_other_trackers(recorded, tmp_path, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    config = {**EXACT, "tracking": [{"name": "recorded"}]}
    with monkeypatch.context() as patch:
        patch.setattr(stages, "fit", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(config, out=tmp_path / "run", progress=False)
    assert recorded[-1][1]["status"] == "interrupted"
    assert run(EXACT, out=tmp_path / "run", resume=True, progress=False).info["status"] == "done"


@pytest.mark.fixed
def test_a_record_is_continued_with_other_trackers(store, tmp_path, monkeypatch):
    """MLflow does not allow a parameter to change."""
    mlflow = {"name": "mlflow", "uri": store, "experiment": "resumed with others"}

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(stages, "fit", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run({**EXACT, "tracking": [mlflow]}, out=tmp_path / "run", progress=False)
    done = run({**EXACT, "tracking": [{"name": "tensorboard"}, mlflow]}, out=tmp_path / "run", resume=True, progress=False)
    assert done.info["warnings"] == []
    _, (found,) = _records(store, "resumed with others")
    assert found.info.status == "FINISHED"


def test_an_error_is_recorded_before_the_trackers_end(recorded, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise MemoryError("no more")

    def interrupt(self, results):
        raise KeyboardInterrupt

    monkeypatch.setattr(stages, "fit", fail)
    monkeypatch.setattr(Recorded, "end", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run({**EXACT, "tracking": [{"name": "recorded"}]}, out=tmp_path / "run", progress=False)
    info = read_info(tmp_path / "run")
    assert (info["status"], info["error"]["message"]) == ("failed", "no more")


# -- the config


def test_a_missing_package_is_an_error_of_the_config(monkeypatch):
    for package, tracker in (("alembic", "mlflow"), ("tensorboard", "tensorboard")):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(
            ConfigError, match=rf"tracking\.1: the tracker '{tracker}' needs the package '{package}'.*latentlab\[{tracker}\]"
        ):
            load_config({**TOY, "tracking": [{"name": "recorded_not"}, {"name": tracker}]})


def test_trackers_are_checked_like_other_sections():
    for tracking, message in (
        ([{"name": "mflow"}], "tracking.0.name: unknown tracker 'mflow'; did you mean 'mlflow'"),
        ([{"name": "mlflow", "url": "x"}], "tracking.0.url: unknown option of the tracker 'mlflow' 'url'; did you mean 'uri'"),
        ([{"name": "mlflow", "uri": 3}], "tracking.0.uri: must be text; got 3"),
        (["mlflow"], "tracking.0: must be a mapping with a `name`; got 'mlflow'"),
        ({"name": "mlflow"}, "tracking: must be a list"),
    ):
        with pytest.raises(ConfigError) as error:
            load_config({**TOY, "tracking": tracking})
        assert message in str(error.value)
    config = load_config(
        {**TOY, "tracking": [{"name": "tensorboard"}]}, ["tracking.0.name=mlflow", "tracking.0.uri=sqlite:///a.db"]
    )
    assert load_config(yaml.safe_load(config.to_yaml())) == config
    assert config.to_dict()["tracking"] == [{"name": "mlflow", "uri": "sqlite:///a.db", "experiment": "latentlab"}]
    assert "TrackingMlflow" in json.dumps(json_schema())


def test_a_plugin_may_define_trackers(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "from latentlab.tracking.tracker import Tracker\n"
        "class Lines(Tracker):\n"
        "    def __init__(self, file: str) -> None:\n"
        "        self.file = file\n"
        "    def end(self, results):\n"
        "        open(self.file, 'w').write(results['status'])\n"
        "trackers = {'lines': Lines}\n"
    )
    lines = tmp_path / "lines.txt"
    config = {**EXACT, "plugins": [str(path)], "tracking": [{"name": "lines", "file": str(lines)}]}
    run(config, out=tmp_path / "run", progress=False)
    assert lines.read_text() == "done"


# -- live values


def test_a_monitor_is_called_once_a_second_and_at_the_end(monkeypatch):
    now, sent, evaluated = [0.0], [], []
    monkeypatch.setattr(draws.time, "monotonic", lambda: now[0])

    def send(step, values):
        sent.append((step, values))
        now[0] += 0.3  # at most 5% of the time: the next call is due after 6 seconds

    monitor = Monitor(send)
    for step in range(1, 101):
        monitor(lambda step=step: evaluated.append(step) or (step, {"a": 1.0}), last=step == 100)
        now[0] += 0.1
    assert [step for step, _ in sent] == evaluated == [1, 62, 100]
    quick = Monitor(lambda step, values: sent.append((step, values)))
    sent.clear()
    for step in range(1, 31):
        quick(lambda step=step: (step, {}))
        now[0] += 0.25
    assert [step for step, _ in sent] == [1, 5, 9, 13, 17, 21, 25, 29]


def _monitored(method, monkeypatch, dataset):
    """Return a fit and its live values, of every step."""
    monkeypatch.setattr(draws, "MONITOR_SECONDS", 0.0)
    monkeypatch.setattr(draws, "MONITOR_SHARE", float("inf"))
    seen = []
    found = fit(PPCA(1), dataset, method, progress=False, monitor=lambda step, values: seen.append((step, dict(values))))
    return found, seen


@pytest.mark.parametrize(
    "method",
    [NUTS(n_chains=2, n_warmup=30, n_draws=70, compiled=False), ChEES(n_chains=4, n_superchains=2, n_warmup=30, n_draws=70)],
)
def test_live_values_of_chains(method, monkeypatch, iris):
    found, seen = _monitored(method, monkeypatch, iris)
    steps = [step for step, _ in seen]
    assert steps == sorted(steps)
    assert (steps[0] <= 1, steps[-1]) == (True, 100)
    assert all(0 < values["acceptance_rate"] <= 1 and values["step_size"] > 0 for _, values in seen)
    stats, last = found.data["sample_stats"], seen[-1][1]
    assert last["divergences"] == stats["diverging"].values.sum()
    assert last["acceptance_rate"] == pytest.approx(stats["acceptance_rate"].values[:, -50:].mean())
    assert last["step_size"] == pytest.approx(stats["step_size"].values[:, -1].mean())
    assert np.std([values["acceptance_rate"] for step, values in seen if step < 30]) > 0


def test_live_losses_of_svi(monkeypatch, iris):
    found, seen = _monitored(SVI("mean_field", n_steps=120, n_restarts=2, n_draws=20), monkeypatch, iris)
    assert seen[-1][0] == 120
    assert set(seen[-1][1]) == {"loss/restart-0", "loss/restart-1"}
    plain = fit(PPCA(1), iris, SVI("mean_field", n_steps=120, n_restarts=2, n_draws=20), progress=False)
    np.testing.assert_array_equal(found.sites()["mu"], plain.sites()["mu"])


def test_numbers_of_results_are_finite():
    assert numbers({"a": np.int64(2), "b": np.inf, "c": np.bool_(False), "d": "x", "e": 0.5}) == {"a": 2.0, "c": 0.0, "e": 0.5}
