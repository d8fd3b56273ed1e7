"""Minibatches: which rows, in which order, from memory and from disk."""

import numpy as np
import pytest

from latentlab.data.dataset import Dataset
from latentlab.data.load import load_dataset
from latentlab.fit import prepared
from latentlab.inference.batches import batches
from latentlab.inference.svi import SVI
from latentlab.models.ppca import PPCA


@pytest.fixture(scope="module")
def iris() -> Dataset:
    return load_dataset("iris")


def test_an_incomplete_last_batch_is_left_for_the_next_epoch(iris):
    problem = prepared(PPCA(2), iris, SVI(), progress=False)
    found = batches(problem, 149, np.random.default_rng(0))
    sizes = [len(next(found)[0]) for _ in range(4)]
    assert sizes == [149] * 4  # never a batch of one
    third = batches(problem, 50, np.random.default_rng(0))
    seen = np.concatenate([next(third)[0].numpy() for _ in range(3)])
    np.testing.assert_array_equal(np.sort(seen, axis=0), np.sort(iris.arrays["x"], axis=0))
