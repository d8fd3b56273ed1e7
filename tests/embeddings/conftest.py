"""Shared by the tests of embeddings."""

import numpy as np
import pytest

from latentlab.data.load import load_dataset


@pytest.fixture(scope="session")
def wine() -> np.ndarray:
    return load_dataset("wine").x
