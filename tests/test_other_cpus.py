"""Tests that shipped configs give the same results on CPUs with fewer vector instructions."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from agreement import disagreements

ROOT = Path(__file__).resolve().parents[1]
CPUS = ("avx2", "default")
CONFIGS = ("gaussian_hmm_nile", "gaussian_mixture_geyser", "linear_vae_wine", "ppca_wine", "state_space_macrodata")
"""Mixtures, states over time and positions; by many chains, by a variational approximation, and a point estimate."""


def finished(config, folder, *prefix):
    script = "import sys; from latentlab.study.run import run; run(sys.argv[1], out=sys.argv[2], progress=False)"
    command = [*prefix, sys.executable, "-W", "ignore", "-c", script, ROOT / "configs" / f"{config}.yaml", folder]
    caches = {"NUMBA_CACHE_DIR": str(folder.parent / "numba"), "LATENTLAB_CACHE": str(folder.parent / "code")}
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **caches}
    done = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.long
@pytest.mark.parametrize("config", CONFIGS)
def test_a_config_gives_the_same_results_on_other_cpus(config, tmp_path):
    """False alarms: below 1e-5 a comparison (`agreement.FALSE_ALARMS`), 1e-4 together."""
    here = finished(config, tmp_path / "here" / "run")
    for name in CPUS:
        there = finished(config, tmp_path / name / "run", ROOT / "tests" / "other_cpu.sh", name)
        assert not disagreements(here, there), name
