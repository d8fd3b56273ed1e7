"""Tests of `agreement`, which compares two runs."""

import pytest
from agreement import disagreements

from latentlab.study.run import run

pytestmark = pytest.mark.long  # as what it serves, tests/test_other_cpus.py

SMALL = {"n_draws": 20, "n_pairs": 10, "n_permutations": 4, "n_neighbors": 5}


def run_of(folder, *, seed=0, n_units=40, scale=1.0, method=None, data_seed=0):
    config = {
        "name": "small",
        "seed": seed,
        "dataset": {"name": "linear_gaussian", "n_units": n_units, "n_features": 4, "n_latent": 2, "seed": data_seed},
        "model": {"name": "ppca", "n_latent": 2, "sigma_scale": scale},
        "inference": method or {"name": "svi", "guide": "full_rank", "n_steps": 300, "n_draws": 400},
        "embeddings": [{"name": "pca"}],
        "compare": SMALL,
    }
    run(config, out=folder, progress=False)
    return folder


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    return run_of(tmp_path_factory.mktemp("first") / "run")


def test_a_run_agrees_with_itself(first):
    assert disagreements(first, first) == []


def test_a_run_with_another_posterior_disagrees(first, tmp_path):
    """A prior with sigma near 0 changes means by many Monte Carlo errors."""
    found = disagreements(first, run_of(tmp_path / "run", scale=0.01))
    assert any(line.startswith("mean of sigma") for line in found)


def test_changed_data_are_named(first, tmp_path):
    assert disagreements(first, run_of(tmp_path / "run", n_units=41)) == ["the data differ in shape, or in what is missing"]
    other = run_of(tmp_path / "other", data_seed=1)
    assert [line.split(" by ")[0] for line in disagreements(first, other)] == ["the data differ"]


def test_point_estimates_must_agree_to_rounding(tmp_path):
    exact = {"name": "exact", "n_draws": 400}
    one, same = (run_of(tmp_path / name, method=exact) for name in "ab")
    assert disagreements(one, same) == []
