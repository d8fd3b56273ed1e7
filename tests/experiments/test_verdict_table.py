"""Tests of the table of verdicts on embeddings at a small size."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

PATH = Path(__file__).resolve().parents[2] / "experiments" / "verdict_table.py"


@pytest.fixture(scope="module")
def experiment():
    import sys

    spec = importlib.util.spec_from_file_location("verdict_table", PATH)
    module = importlib.util.module_from_spec(spec)
    sys.modules["verdict_table"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["verdict_table"]


SUMMARY = {"posterior mean", "PCA mapped", "mean, axis stretched 1.1", "posterior mean; chains rho 0.9"}
DRAW = {"fresh draw", "truth", "fresh draw; chains rho 0.9", "truth; chains rho 0.9"}
DISTINCT = {"shuffled", "constant", "mean, axis stretched 2", "mean bent by 0.6", "mean with 3% outliers"}
DISTINCT_UNLESS_SCALED = {"PCA raw", "mean x 0.5"}


def test_rows_of_the_verdict_table_have_the_expected_verdicts(experiment):
    """20 data sets. More than 5 of 20 draws at a rate of 5%: 3e-4 a row, 3e-3 over the eight; clear rows are 98% or more."""
    table = experiment.shares(experiment.simulate_verdicts(20, seed=1))
    for alignment in ("orthogonal", "similarity"):
        at = table.xs(alignment, level="alignment")
        scaled = alignment == "similarity"
        summary = SUMMARY | (DISTINCT_UNLESS_SCALED if scaled else set())
        distinct = DISTINCT | (set() if scaled else DISTINCT_UNLESS_SCALED)
        assert (at.loc[sorted(summary), "summary-like"] >= 85).all(), at
        assert (at.loc[sorted(DRAW), "draw-like"] >= 75).all(), at
        assert (at.loc[sorted(distinct), "distinct"] >= 85).all(), at
        few = [name for name in at.index if "too few" in name]
        assert (at.loc[few, "undetermined"] == 100).all()
    assert table.drop(columns="delta").sum(axis=1).to_numpy() == pytest.approx(100)


def test_mapped_scores_are_the_posterior_mean_at_maximum_likelihood(experiment):
    """E[z | x] = M^-1 W^T (x - mean), W = U (L - s2 I)^(1/2), M = W^T W + s2 I, from the eigenvectors of the covariance."""
    case = experiment.simulate(np.random.default_rng(0))
    x = case.x - case.x.mean(axis=0)
    values, vectors = np.linalg.eigh(x.T @ x / len(x))
    noise = values[:-2].mean()
    loadings = vectors[:, -2:] * np.sqrt(values[-2:] - noise)
    mean = x @ loadings @ np.linalg.inv(loadings.T @ loadings + noise * np.eye(2))
    np.testing.assert_allclose(np.abs(experiment.mapped_pca(case)), np.abs(mean[:, ::-1]), atol=1e-10)


def test_correlated_chains_are_stationary(experiment):
    """Variance of 4 x 1000 correlated draws of 200 numbers: worth about 100 x 200, so within 5% in all but 1e-6 of cases."""
    case = experiment.simulate(np.random.default_rng(0))
    error = (case.chains(1000, 0.9) - case.mean) / case.sd
    assert (error**2).mean() == pytest.approx(1, abs=0.05)
    assert (error[:, 1:] * error[:, :-1]).mean() == pytest.approx(0.9, abs=0.05)


def test_verdict_table_prints_its_table_with_the_settings(experiment, capsys):
    experiment.main(["--n-datasets", "2", "--seed", "5"])
    text = capsys.readouterr().out
    line = next(line for line in text.splitlines() if line.startswith("shuffled ") and "orthogonal" in line)
    assert line.split()[:3] == ["shuffled", "orthogonal", "0/0/100"]
    assert "0/0/100" in line.split()[4]
    assert "coverage of the truth, orthogonal" in text
