"""Shipped configs with the kernels of CPUs that have fewer vector instructions: nothing but rounding and chance may differ."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from agreement import disagreements

ROOT = Path(__file__).resolve().parents[1]
CPUS = {
    "haswell": {
        "ATEN_CPU_CAPABILITY": "avx2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "MKL_CBWR": "AVX2",
        "OPENBLAS_CORETYPE": "Haswell",
        "NUMBA_CPU_NAME": "haswell",
        "NPY_DISABLE_CPU_FEATURES": "X86_V4 AVX512_ICL AVX512_SPR",
    },
    "nehalem": {
        "ATEN_CPU_CAPABILITY": "default",
        "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
        "MKL_CBWR": "COMPATIBLE",
        "OPENBLAS_CORETYPE": "Nehalem",
        "NUMBA_CPU_NAME": "nehalem",
        "NPY_DISABLE_CPU_FEATURES": "X86_V3 X86_V4 AVX512_ICL AVX512_SPR",
    },
}
"""Environment under which torch, MKL, OpenBLAS, Numba and NumPy compute as on that CPU."""
CONFIGS = ("gaussian_hmm_nile", "gaussian_mixture_geyser", "linear_vae_wine", "ppca_wine", "state_space_macrodata")
"""Mixtures, states over time and positions; by many chains, by a variational approximation, and a point estimate."""


def finished(config, folder, environment):
    script = "import sys; from latentlab.study.run import run; run(sys.argv[1], out=sys.argv[2], progress=False)"
    command = [sys.executable, "-W", "ignore", "-c", script, ROOT / "configs" / f"{config}.yaml", folder]
    caches = {"NUMBA_CACHE_DIR": str(folder.parent / "numba"), "LATENTLAB_CACHE": str(folder.parent / "code")}
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **caches, **environment}
    done = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.long
@pytest.mark.parametrize("config", CONFIGS)
def test_a_config_gives_the_same_on_other_cpus(config, tmp_path):
    """False alarms: below 1e-5 a comparison (`agreement.FALSE_ALARMS`), 1e-4 together."""
    here = finished(config, tmp_path / "here" / "run", {})
    for name, environment in CPUS.items():
        there = finished(config, tmp_path / name / "run", environment)
        assert not disagreements(here, there), name
