"""Points as tasks of an executor: workers that die, and failures that end the work; the tasks themselves do nothing."""

import pytest
from sweep_tasks import dies, done, fails_or_runs_on

from latentlab.errors import InferenceError
from latentlab.executors.engines import opened
from latentlab.sweeps import work as module
from latentlab.sweeps.display import Display
from latentlab.sweeps.points import plan_of

pytestmark = pytest.mark.fixed

CONFIG = {"name": "toy", "dataset": {"name": "iris"}, "model": {"name": "ppca", "n_latent": 1}, "inference": {"name": "exact"}}


def worked(task, engine, folder, monkeypatch, *, max_failures=None):
    plan = plan_of({**CONFIG, "sweep": {"seeds": 3}})
    monkeypatch.setattr(module, "run_point", task)
    shown = Display(plan, dict.fromkeys([point.name for point in plan.points], "not run"), folder, progress=False)
    with opened(engine, folder / "jobs", n_workers=2) as found:
        module.Work(found, folder, "toy", shown, 1, max_failures).run(plan.points)
    return shown


def test_a_point_is_a_task_whose_result_is_shown(tmp_path, monkeypatch):
    shown = worked(done, "serial", tmp_path, monkeypatch)
    assert shown.headlines["point-0002"] == "2, 1 threads"
    assert set(shown.states.values()) == {"done"}


def test_a_point_whose_worker_dies_twice_has_failed(tmp_path, monkeypatch):
    shown = worked(dies, "process", tmp_path, monkeypatch)
    assert list(shown.states.values()) == ["done", "failed", "done"]
    assert "the worker died 2 times" in (tmp_path / "failed.json").read_text()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("engine", ["process", "dask:local"])
def test_too_many_failures_end_engines_with_running_points(engine, tmp_path, monkeypatch):
    with pytest.raises(InferenceError, match=r"1 points failed, as many as .* 2 points are unfinished.*point-0000: no reason"):
        worked(fails_or_runs_on, engine, tmp_path, monkeypatch, max_failures=1)
    assert not list(tmp_path.glob("point-*"))


def test_a_point_with_an_invalid_config_fails_without_a_task(tmp_path, monkeypatch):
    space = {"inference.n_draws": {"choice": [10, 20]}}
    plan = plan_of({**CONFIG, "held_out": 0.1, "sweep": {"search": {"n": 2, "values": space}}})
    plan = plan.proposed([{"inference.n_draws": -1}, {"inference.n_draws": 10}])
    shown = Display(plan, {}, tmp_path, progress=False)
    monkeypatch.setattr(module, "run_point", lambda *_: {"status": "done", "error": "", "headline": ""})
    with opened("serial", tmp_path) as found:
        module.Work(found, tmp_path, "toy", shown, 1, None).run(plan.points)
    assert shown.states == {"point-0000": "failed", "point-0001": "done"}
    assert "inference.n_draws" in (tmp_path / "failed.json").read_text()
