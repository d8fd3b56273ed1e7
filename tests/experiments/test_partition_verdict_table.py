"""Tests of the table of verdicts on clusterings at a small size, and of its posteriors."""

import importlib.util
import itertools
from pathlib import Path

import numpy as np
import pytest

PATH = Path(__file__).resolve().parents[2] / "experiments" / "partition_verdict_table.py"


@pytest.fixture(scope="module")
def experiment():
    import sys

    spec = importlib.util.spec_from_file_location("partition_verdict_table", PATH)
    module = importlib.util.module_from_spec(spec)
    sys.modules["partition_verdict_table"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["partition_verdict_table"]


def test_rows_of_the_clustering_table_have_the_expected_verdicts(experiment):
    """5 data sets of two designs. More than 2 of 5 draws at a rate of 5%: 1e-3 a row; clear rows are 92% or more."""
    designs = [experiment.DESIGNS[1], experiment.DESIGNS[4]]
    table = experiment.shares(experiment.simulate_verdicts(5, seed=3, designs=designs))
    for design in designs:
        at = table.loc[design.name]
        for row in experiment.ROWS:
            if row.stated:
                assert at.loc[row.name, row.stated] >= 60, (design, row.name)
    assert table[list(experiment.LABELS)].sum(axis=1).to_numpy() == pytest.approx(100)


def test_the_surprise_detects_moves_of_certain_units(experiment, monkeypatch):
    """Detection rates are 42% with the surprise and 2% without; for 20 data sets the limit fails in 3 of 10 000 runs."""

    def n_seen():
        table = experiment.shares(experiment.simulate_verdicts(20, seed=0, designs=[experiment.DESIGNS[2]]))
        return table.loc[(experiment.DESIGNS[2].name, "c*, 3% certain moved"), "distinct"] / 5

    with_it = n_seen()
    monkeypatch.setattr(experiment.PartitionReference, "_surprises", lambda self, by_unit: np.zeros_like(by_unit))
    assert with_it >= n_seen() + 2


def test_gibbs_sampler_matches_enumeration(experiment):
    """Six units: co-assignment by enumeration of 3^6 labels, means integrated out. 20 000 draws err by 0.01 or so; 0.05 is 5."""
    rng = np.random.default_rng(0)
    x = np.array([[-2.0], [-1.5], [0.0], [0.4], [2.2], [3.0]])
    exact, total = np.zeros((6, 6)), 0.0
    for z in itertools.product(range(3), repeat=6):
        member = np.eye(3)[list(z)]
        covariance = np.eye(6) + experiment.PRIOR_SD**2 * member @ member.T
        density = np.exp(-0.5 * x[:, 0] @ np.linalg.solve(covariance, x[:, 0])) / np.sqrt(np.linalg.det(covariance))
        exact += density * (member @ member.T)
        total += density
    labels, _ = experiment.gibbs(x, rng, 20_000)
    found = np.mean([z[:, None] == z for z in labels], axis=0)
    np.testing.assert_allclose(found, exact / total, atol=0.05)


def test_the_most_probable_labels_match_enumeration(experiment):
    x = np.array([[-3.0], [-2.5], [0.0], [0.4], [3.2], [4.0]])

    def density(z):
        member = np.eye(3)[list(z)]
        covariance = np.eye(6) + experiment.PRIOR_SD**2 * member @ member.T
        return -0.5 * x[:, 0] @ np.linalg.solve(covariance, x[:, 0]) - 0.5 * np.linalg.slogdet(covariance)[1]

    best = max(itertools.product(range(3), repeat=6), key=density)
    found = experiment.most_probable(x, np.array([[0, 1, 1, 1, 2, 2]]))
    assert density(found) == pytest.approx(density(best))


def test_frequencies_of_exact_draws_match_their_probabilities(experiment):
    """100 000 draws: a standard error of 0.0016 at most; 5 of them."""
    rng = np.random.default_rng(0)
    p = experiment.probabilities(rng.normal(size=(4, 2)), experiment.DESIGNS[2].means)
    found = np.stack([(experiment.draw_labels(p, rng, 100_000) == k).mean(axis=0) for k in range(3)], axis=1)
    np.testing.assert_allclose(found, p, atol=0.008)
    sides = np.linalg.norm(experiment.DESIGNS[2].means[:, None] - experiment.DESIGNS[2].means, axis=2)
    assert sides[np.triu_indices(3, 1)] == pytest.approx(2.5)


def test_partition_verdict_table_prints_its_table_and_saves_its_figure(experiment, capsys, tmp_path):
    experiment.main(["--n-datasets", "1", "--seed", "5", "--out", str(tmp_path / "made" / "table.png")])
    text = capsys.readouterr().out
    line = next(line for line in text.splitlines() if "c* shuffled" in line)
    assert "0/0/100" in line
    assert (tmp_path / "made" / "table.png").stat().st_size > 10_000
