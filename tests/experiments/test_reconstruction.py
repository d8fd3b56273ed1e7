import importlib.util
from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "experiments" / "reconstruction.py"


@pytest.fixture(scope="module")
def experiment():
    spec = importlib.util.spec_from_file_location("reconstruction", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_every_method_has_its_scores(experiment, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(experiment.DATA, "three_phase_flow", lambda seed: experiment.three_phase_flow(n_units=200, seed=seed))
    out = tmp_path / "table.csv"
    experiment.main(["--data", "three_phase_flow", "--seeds", "0", "1", "--n-steps", "300", "--out", str(out)])
    assert "label error" in capsys.readouterr().out
    found = experiment.summary(experiment.pd.read_csv(out)).set_index("method")
    assert list(found.index) == ["PCA", "GPLVM", "VAE", "isomap", "umap"]
    with_map = found.loc[["PCA", "GPLVM", "VAE"], "reconstruction"]
    assert (with_map < 1.0).all(), "the standard deviation of the data is 1"
    assert found.loc[["isomap", "umap"], "reconstruction"].isna().all()
    assert (found["label error"] < 2 / 3).all()


def test_errors_of_principal_components_are_those_of_the_projection(experiment, rng):
    dataset = experiment.scaled(experiment.three_phase_flow(n_units=80))
    assert dataset.x.std() == pytest.approx(1.0)
    training, held_out = dataset.split(0.25, rng)
    z, error = experiment.of_pca(training, held_out)
    basis = np.column_stack([training.x.T @ z[:, k] for k in range(2)])
    centred = held_out.x - training.x.mean(0)
    residual = centred - centred @ basis @ np.linalg.pinv(basis)
    assert error == pytest.approx(np.sqrt((residual**2).mean()), rel=1e-9)
