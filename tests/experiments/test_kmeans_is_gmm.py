import importlib.util
from pathlib import Path

import numpy as np
import pytest

import latentlab as ll

SCRIPT = Path(__file__).resolve().parents[2] / "experiments" / "kmeans_is_gmm.py"


@pytest.fixture(scope="module")
def experiment():
    spec = importlib.util.spec_from_file_location("kmeans_is_gmm", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.METHODS["exact"] = ll.Exact(n_draws=400, n_restarts=2)
    return module


def test_distances_between_means_match_the_design(experiment):
    """The sd of 300 numbers is within a sixth of the true one with probability 1 - 1e-4 in each of three cases."""
    for case, (weights, widths) in experiment.CASES.items():
        dataset = experiment.simulate(case, 4.0, seed=1)
        z, mu = dataset.truth["z"].astype(int), dataset.truth["mu"]
        sides = np.linalg.norm(mu - np.roll(mu, 1, axis=0), axis=1)
        np.testing.assert_allclose(sides, experiment.SIDE)
        assert weights.sum() == pytest.approx(1)
        residual = (dataset.x - mu[z]) / widths[z, None]
        assert experiment.SIDE / residual.std() == pytest.approx(4.0, rel=1 / 6)


@pytest.mark.slow
def test_kmeans_is_gmm_prints_its_table_and_draws_its_figure(experiment, tmp_path, capsys):
    out = tmp_path / "figure.png"
    experiment.main(["--method", "exact", "--n-datasets", "2", "--separations", "3.0", "6.0", "--out", str(out)])
    assert "unequal widths" in capsys.readouterr().out
    assert out.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert out.with_suffix(".csv").is_file()


@pytest.mark.slow
def test_kmeans_matches_the_mixture_only_for_equal_variances(experiment):
    """Parameters are point estimates; the verdicts hold in all of three data sets."""
    rows = experiment.run(separations=(4.0,), n_datasets=3, method="exact")
    found = experiment.table(rows).set_index("case")
    assert found.loc["equal", "delta"] < 0.5
    assert found.loc["equal", "distinct"] == 0
    assert found.loc["unequal widths", "delta"] > 1
    assert found.loc["equal", "ari_draws"] > found.loc["equal", "ceiling"]
