"""Shared by all tests: a fixed random state, and nothing left behind."""

import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import numpy as np
import pytest

REFERENCES = Path(__file__).resolve().parents[2] / "shared" / "references"


@pytest.fixture(scope="session", autouse=True)
def _code(tmp_path_factory) -> None:
    """Machine code is made anew, and is not left in the user's folder."""
    os.environ["LATENTLAB_CACHE"] = str(tmp_path_factory.mktemp("code"))


@pytest.fixture(scope="session")
def references() -> Path:
    """The folder of posteriors with known answers."""
    if not REFERENCES.is_dir():
        pytest.skip(f"reference posteriors are not there: {REFERENCES.name} beside the checkout")
    return REFERENCES


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20_240_229)
