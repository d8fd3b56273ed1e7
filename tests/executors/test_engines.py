"""Executors: the same results by each, workers that die, and names that are refused."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import wait

import pytest
from joblib.externals.loky.process_executor import BrokenProcessPool, ProcessPoolExecutor

from latentlab.errors import ConfigError, MissingDependencyError
from latentlab.executors.engines import opened, parsed

ENGINES = ("serial", "process", "dask:local", "ray:local", "submitit:local")

pytestmark = [pytest.mark.fixed, pytest.mark.filterwarnings("ignore")]


def square(x):
    return x * x


def fails(x):
    raise ValueError(f"no result for {x}")


def pid_after(seconds):
    time.sleep(seconds)
    return os.getpid()


def dies_once(path):
    """Kill the worker at the first call; return at the second."""
    if not os.path.exists(path):
        with open(path, "w") as stream:
            stream.write("x")
        os.kill(os.getpid(), signal.SIGKILL)
    return "alive"


@pytest.mark.parametrize("name", ENGINES)
def test_every_engine_returns_results_and_errors(name, tmp_path):
    handler = signal.getsignal(signal.SIGTERM)
    with opened(name, tmp_path, n_workers=2) as engine:
        assert signal.getsignal(signal.SIGTERM) is handler
        results = [engine.executor.submit(square, x) for x in range(5)]
        error = engine.executor.submit(fails, 3)
        assert [one.result(timeout=120) for one in results] == [0, 1, 4, 9, 16]
        with pytest.raises(Exception, match="no result for 3"):
            error.result(timeout=120)


def test_a_worker_that_dies_harms_no_other_task(tmp_path):
    with opened("process", tmp_path, n_workers=2) as engine:
        slow = engine.executor.submit(pid_after, 3.0)
        lost = engine.executor.submit(dies_once, str(tmp_path / "flag"))
        with pytest.raises(Exception, match="terminated"):
            lost.result(timeout=60)
        assert engine.executor.submit(dies_once, str(tmp_path / "flag")).result(timeout=60) == "alive"
        assert slow.result(timeout=60) != os.getpid()


def test_workers_with_progress_bars_leave_no_warning(tmp_path):
    """A warning of leaked semaphores is written after the end of the process."""
    code = f"""
from pathlib import Path
from latentlab.executors.engines import opened
from latentlab.progress import tqdm
with opened("process", Path({str(tmp_path)!r}), n_workers=1) as engine:
    print(engine.executor.submit(lambda: bool(tqdm.get_lock())).result(timeout=120))
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=180)
    assert ended.stdout == "True\n"
    assert "leaked" not in ended.stderr


def test_tasks_of_processes_run_at_the_same_time(tmp_path):
    with opened("process", tmp_path, n_workers=2) as engine:
        futures = [engine.executor.submit(pid_after, 1.0) for _ in range(2)]
        wait(futures)
        assert len({future.result() for future in futures}) == 2


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("procces", "executor: must be one of serial, process"),
        ("dask", "executor: must be one of serial, process"),
        ("serial:2", "executor: must be one of serial, process"),
        ("submitit:remote", "executor: must be one of .*; got 'submitit:remote'"),
        ("submitit", "submitit requires Slurm, but the command sbatch was not found; use submitit:local"),
    ],
)
def test_unknown_executors_are_refused(name, text, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ConfigError, match=text):
        parsed(name)


def test_the_number_of_workers_and_a_missing_engine_are_refused(monkeypatch):
    with pytest.raises(ConfigError, match="n_workers: must be at least 1; got 0"):
        parsed("process", 0)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"executor 'dask:local' needs the package 'distributed'.*latentlab\[dask\]"):
        parsed("dask:local")


def test_an_address_without_a_scheduler_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("latentlab.executors.engines.SECONDS_TO_CONNECT", 1)
    with (
        pytest.raises(ConfigError, match=r"executor dask:tcp://127.0.0.1:9: no scheduler answers at"),
        opened("dask:tcp://127.0.0.1:9", tmp_path),
    ):
        pass


def test_an_interrupt_before_a_worker_has_started_is_kept(tmp_path):
    with opened("process", tmp_path, n_workers=1) as engine:
        engine.interrupt()
        with pytest.raises(KeyboardInterrupt):
            engine.executor.submit(pid_after, 60.0).result(timeout=30)


def test_an_interrupt_while_a_worker_is_started_is_kept(tmp_path, monkeypatch):
    begin = ProcessPoolExecutor.__init__
    with opened("process", tmp_path, n_workers=1) as engine:

        def interrupted(*arguments, **options):
            begin(*arguments, **options)
            engine.interrupt()

        monkeypatch.setattr(ProcessPoolExecutor, "__init__", interrupted)
        with pytest.raises((KeyboardInterrupt, BrokenProcessPool)):
            engine.executor.submit(pid_after, 60.0).result(timeout=30)
