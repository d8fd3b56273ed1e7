import importlib.util
from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "experiments" / "swiss_roll.py"


@pytest.fixture(scope="module")
def experiment():
    spec = importlib.util.spec_from_file_location("swiss_roll", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_the_table_has_a_row_for_each_start_and_embedding_and_the_figure_is_drawn(experiment, tmp_path, capsys):
    options = ["--n-units", "60", "--n-inducing", "10", "--n-steps", "20", "--seeds", "0", "--out", str(tmp_path)]
    experiment.main(options)
    assert "covered_80" in capsys.readouterr().out
    rows = experiment.pd.read_csv(tmp_path / "swiss_roll.csv")
    names = [f"GPLVM from {start}" for start in experiment.STARTS] + ["GPLVM", *experiment.EMBEDDINGS]
    assert list(rows["positions"]) == names * 2
    of_cell = rows[rows["noise"] == 0.05].set_index("positions")
    starts = of_cell.loc[names[: len(experiment.STARTS)]]
    assert of_cell.loc["GPLVM", "bound"] == starts["bound"].max(), "the best start is the result"
    assert of_cell.loc["GPLVM", "similarity"] == starts.loc[starts["bound"].idxmax(), "similarity"]
    assert of_cell.loc[list(experiment.EMBEDDINGS), "verdict"].notna().all()
    assert (tmp_path / "swiss_roll.png").stat().st_size > 50_000


def test_the_true_sheet_has_the_best_scores_and_a_folded_one_is_no_map(experiment, rng):
    truth = rng.uniform(size=(200, 2)) * [3, 1]
    turn = np.array([[0.6, -0.8], [0.8, 0.6]])
    best = experiment.scores(5 * truth @ turn, truth)
    assert all(value == pytest.approx(1.0, abs=1e-4) for value in best.values())
    folded = truth.copy()
    folded[:, 0] = np.abs(folded[:, 0] - 1.5)
    assert experiment.scores(folded, truth)["smooth"] < 0.6
    bent = np.column_stack([truth[:, 0] ** 2, truth[:, 1]])
    found = experiment.scores(bent, truth)
    assert found["smooth"] > 0.99 > found["similarity"] + 0.01
    turned, matrix = experiment._turned(5 * truth @ turn, truth)
    np.testing.assert_allclose(turned, 5 * (truth - truth.mean(0)), atol=1e-9)
    np.testing.assert_allclose(matrix, turn.T, atol=1e-9)
