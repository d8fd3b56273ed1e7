"""Runs that are killed, interrupted or fail at chosen moments end, when resumed, with the bytes of an uninterrupted run."""

import errno
import functools
import os
import signal
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[1] / "experiments"))

import kills

from latentlab.store.directory import read_info

pytestmark = pytest.mark.fixed

SMALL = {
    "svi": {"n_steps": 24, "n_restarts": 2, "n_draws": 20},
    "nuts": {"n_chains": 2, "n_warmup": 12, "n_draws": 12, "max_tree_depth": 3},
    "chees": {"n_chains": 4, "n_superchains": 2, "n_warmup": 12, "n_draws": 12},
}


def config_of(method):
    return {**kills.config_of(method), "inference": {"name": method, **SMALL[method]}}


def stop_at(how, number):
    """Stop this process at the writing of the checkpoint with this number."""
    fsync, seen = os.fsync, 0

    def stopping(descriptor):
        nonlocal seen
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        in_file = path.parent.name == "checkpoints" and path.name.endswith(".tmp")
        seen += in_file
        if seen < number or in_file == (how == "renamed"):
            return fsync(descriptor)
        if how == "half written":
            os.ftruncate(descriptor, os.fstat(descriptor).st_size // 2)
        if how in ("half written", "not renamed", "renamed"):
            os.kill(os.getpid(), signal.SIGKILL)
        os.fsync = fsync
        if how == "full disk":
            raise OSError(errno.ENOSPC, "no space left on device")
        if how == "crash":
            raise ZeroDivisionError("a fault of the program")
        os.kill(os.getpid(), signal.SIGINT)
        return fsync(descriptor)

    os.fsync = stopping


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")

    @functools.cache
    def results(method):
        kills.start(config_of(method), folder / method).join()
        return kills.results(folder / method)

    return results


KILLS = {"half written": "running", "renamed": "running", "not renamed": "running"}
OTHERS = {"interrupt": "interrupted", "full disk": "failed", "crash": "failed"}


@pytest.mark.parametrize(("method", "stops"), [("svi", KILLS | OTHERS), ("nuts", KILLS), ("chees", KILLS)], ids=SMALL)
def test_stopped_runs_resume_to_the_same_bytes(method, stops, whole, tmp_path):
    """Stops one after another: while a checkpoint is written, right after, before its file gets its name, and by errors."""
    config, out = config_of(method), tmp_path / "run"
    for how, status in stops.items():
        process = kills.start(config, out, functools.partial(stop_at, how, 3))
        process.join()
        assert process.exitcode == (-signal.SIGKILL if status == "running" else 1)
        info = read_info(out)
        assert (info["status"], info["stage"]) == (status, "fit")
        assert bool(list((out / "checkpoints").glob(".*.tmp"))) == (how in ("half written", "not renamed"))
        assert list((out / "checkpoints").glob("*.safetensors"))
    process = kills.start(config, out)
    process.join()
    assert process.exitcode == 0
    assert kills.results(out) == whole(method)


@pytest.mark.slow
def test_the_experiment_kills_at_random_moments_and_compares(capsys, monkeypatch):
    monkeypatch.setitem(kills.METHODS, "svi", SMALL["svi"])
    table = kills.main(["--methods", "svi", "--n-kills", "1"])
    assert table["equal"].all()
    assert "After 1 of 1 kills the run ends with the same bytes" in capsys.readouterr().out
