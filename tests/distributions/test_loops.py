"""Tests of Numba's cache of compiled functions."""

import subprocess
import sys

import pytest

pytest.importorskip("numba")

OUTER = """
from compiled_inner import inner
from latentlab.distributions.loops import compiled

@compiled
def outer(x):
    return 10.0 * inner(x)

print(outer(1.0), sum(outer.stats.cache_hits.values()))
"""
INNER = """
from latentlab.distributions.loops import compiled

@compiled
def inner(x):
    return x + {added}.0
"""


def test_cached_code_belongs_to_all_files_of_kernels(tmp_path):
    """The file of the outer function is unchanged, and Numba alone would read its cached code."""
    (tmp_path / "compiled_outer.py").write_text(OUTER)

    def run(added):
        (tmp_path / "compiled_inner.py").write_text(INNER.format(added=added))
        done = subprocess.run(
            [sys.executable, "-B", "compiled_outer.py"], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        return tuple(map(float, done.stdout.split()))

    assert [run(1), run(1), run(2)] == [(20.0, 0), (20.0, 1), (30.0, 0)]
