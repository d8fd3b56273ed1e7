"""Scripts that end in a table of a sweep, at a small size."""

import importlib.util
from pathlib import Path

import pandas as pd
import pytest
from patching import everywhere

import latentlab.study.run  # noqa: F401

pytestmark = [pytest.mark.fixed, pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

FOLDER = Path(__file__).resolve().parents[2] / "experiments"


@pytest.fixture
def script(tmp_path, monkeypatch):
    """Import a script by its name, in a temporary working folder, without pages."""
    monkeypatch.chdir(tmp_path)
    everywhere(monkeypatch, "latentlab.study", "write_page", lambda run, **_: run.path)

    def found(name):
        spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return found


def test_noise_and_dimension(script, tmp_path, capsys):
    arguments = ["--noises", "0.2", "2.0", "--dimensions", "1", "--n-datasets", "1", "--executor", "serial"]
    script("noise_and_dimension").main([*arguments, "--out", str(tmp_path / "figure.png")])
    table = pd.read_csv(tmp_path / "figure.csv")
    assert table["dataset.noise"].tolist() == [0.2, 2.0]
    assert (table["pca (mapped).orthogonal.delta"] < table["pca.similarity.delta"] + 0.05).all()
    assert (tmp_path / "figure.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert "pca (mapped).orthogonal.delta" in capsys.readouterr().out


def test_models_on_datasets(script, tmp_path):
    arguments = ["--datasets", "iris", "wine", "--method", "svi", "--n-draws", "50", "--executor", "serial"]
    module = script("models_on_datasets")
    module.MODELS = module.MODELS[:2]
    module.main([*arguments, "--out", str(tmp_path / "table.csv")])
    table = pd.read_csv(tmp_path / "table.csv")
    assert table.groupby("dataset").size().to_dict() == {"iris": 2, "wine": 2}
    best = table.groupby("dataset")["elpd_loo"].transform("max")
    assert (table["elpd_diff"] - (table["elpd_loo"] - best)).abs().max() < 0.01 * table["elpd_loo"].abs().max()


def test_dimensions_on_slurm(script, tmp_path):
    arguments = ["--dataset", "iris", "--dimensions", "1", "--n-seeds", "2", "--executor", "submitit:local", "--workers", "2"]
    script("dimensions_on_slurm").main([*arguments, "--out", str(tmp_path / "table.csv")])
    table = pd.read_csv(tmp_path / "table.csv", index_col=0)
    assert table.index.tolist() == [1]
    assert table["mean of differences"].tolist() == [0]
