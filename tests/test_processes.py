"""Tests of fits by several processes, in a process of their own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_fits_by_several_processes(request: pytest.FixtureRequest):
    """Runs `several_processes.py`, whose tests fork, which is safe only without the threads that other tests start.

    A forked process can still inherit the lock of a thread, and wait for ever. If none of the processes has ended, the tests are
    run once more.
    """
    seed = str(request.config.getoption("--seed"))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--seed", seed, "tests/several_processes.py"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    for _ in range(2):
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1200)
        if "the others have the exit codes []" not in done.stdout:
            break
    assert done.returncode == 0, done.stdout[-8000:]
