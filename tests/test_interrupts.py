"""Ctrl-C while workers compute: they save their state, the command ends with 130, and the same command continues.

A gradient of the model waits while a file exists, so that every moment is chosen.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from latentlab.executors.tasks import limited_threads
from latentlab.store.directory import read_info
from latentlab.study.run import run as run_config
from latentlab.sweeps.sweep import load_sweep, sweep

pytestmark = [pytest.mark.fixed, pytest.mark.filterwarnings("ignore")]

WAITING = """
import os, time
from pathlib import Path
import latentlab as ll
from latentlab.inference.density import Density

FLAG = Path(__file__).with_name("flag")

class Waiting(ll.models.PPCA):
    '''PPCA whose 40th gradient waits as long as there is a file.'''

    name = "waiting"

    def check(self, dataset):
        super().check(dataset)
        gradient, n = Density.batch_value_and_grad, 0

        def counted(density, points):
            nonlocal n
            n += 1
            here = FLAG.with_name("here")
            while n == 40:
                try:
                    if not FLAG.exists():
                        break
                    if not here.exists():
                        here.write_text(str(os.getpid()))
                    time.sleep(0.02)
                except KeyboardInterrupt:
                    if FLAG.read_text() != "ignore":
                        raise
            return gradient(density, points)

        if getattr(gradient, "__name__", "") != "counted" and FLAG.exists():
            Density.batch_value_and_grad = counted
"""
INFERENCE = {"name": "nuts", "n_chains": 2, "n_warmup": 12, "n_draws": 12, "max_tree_depth": 3}
CONFIG = {"name": "toy", "dataset": {"name": "iris"}, "model": {"name": "waiting", "n_latent": 1}, "inference": INFERENCE}
COMMANDS = {
    "sweep": ({"sweep": {"seeds": 2}}, ["--workers", "1", "--executor", "process"], "s/point-0000"),
    "run": ({"executor": "process"}, [], "s"),
}


@pytest.fixture
def files(tmp_path):
    (tmp_path / "waiting.py").write_text(WAITING)
    (tmp_path / "flag").write_text("wait")
    return tmp_path


def started(command, folder, *more):
    """Start the command in a process group of its own, as a terminal does, and wait until the gradient is reached."""
    extra, options, _ = COMMANDS[command]
    (folder / "toy.yaml").write_text(yaml.safe_dump({**CONFIG, **extra, "plugins": [str(folder / "waiting.py")]}))
    (folder / "here").unlink(missing_ok=True)
    arguments = ["-W", "ignore", "-m", "latentlab", command, str(folder / "toy.yaml"), "--out", str(folder / "s"), *options]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    process = subprocess.Popen([sys.executable, *arguments, *more], start_new_session=True, **pipes)
    while not (folder / "here").exists() or not (folder / "here").read_text():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.02)
    return process


@pytest.mark.parametrize("command", [pytest.param("run", marks=pytest.mark.slow), "sweep"])
def test_workers_save_their_state_at_an_interrupt(command, files):
    extra, _, place = COMMANDS[command]
    process = started(command, files)
    os.killpg(process.pid, signal.SIGINT)
    said = process.communicate(timeout=300)[0]
    assert process.returncode == 130, said
    with_resume = " with --resume" if command == "run" else ""
    assert f"interrupted; repeat the command{with_resume} to continue" in said
    assert read_info(files / place)["status"] == "interrupted"
    parts = {path.stem for path in (files / place / "checkpoints").glob("*.safetensors")}
    assert any(part.endswith("-under-way") for part in parts)
    (files / "flag").unlink()
    config = {**yaml.safe_load((files / "toy.yaml").read_text()), **extra}
    if command == "sweep":
        assert list(load_sweep(files / "s").to_dataframe()["status"]) == ["interrupted", "not run"]
        again, whole = (sweep(config, executor="serial", out=files / name, progress=False).run(0) for name in ("s", "whole"))
    else:
        with limited_threads(1):  # as in the command; libraries of other tests can change the number
            again, whole = (
                run_config({**config, "executor": "serial"}, out=files / name, resume=name == "s", progress=False)
                for name in ("s", "whole")
            )
    assert again.info["status"] in ("done", "not_converged")
    for name in ("posterior.nc", "diagnostics.json"):
        assert (again.path / name).read_bytes() == (whole.path / name).read_bytes(), name


@pytest.mark.slow
def test_a_second_interrupt_ends_command_and_workers_at_once(files):
    """The worker does not react to the first one."""
    (files / "flag").write_text("ignore")
    process = started("sweep", files)
    worker = int((files / "here").read_text())
    os.killpg(process.pid, signal.SIGINT)
    while "a second interrupt ends them at once" not in process.stdout.readline():
        assert process.poll() is None
    os.killpg(process.pid, signal.SIGINT)
    said = process.communicate(timeout=60)[0]
    assert process.returncode == 130, said
    assert "interrupted twice" in said
    while Path(f"/proc/{worker}").exists() and "Z" not in Path(f"/proc/{worker}/stat").read_text().split(")")[1]:
        time.sleep(0.05)
    assert json.loads((files / "s" / "point-0000" / "run.json").read_text())["status"] == "running"
