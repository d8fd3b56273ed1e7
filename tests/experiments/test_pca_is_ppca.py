import importlib.util
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "experiments" / "pca_is_ppca.py"


@pytest.fixture(scope="module")
def experiment():
    spec = importlib.util.spec_from_file_location("pca_is_ppca", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_pca_is_ppca_prints_its_table_and_draws_its_figure(experiment, tmp_path, capsys):
    out = tmp_path / "figure.png"
    arguments = ["--method", "exact", "--n-datasets", "3", "--noises", "0.3", "2.0", "--sizes", "60", "--out", str(out)]
    experiment.main(arguments)
    assert "summary-like" in capsys.readouterr().out
    assert out.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert out.with_suffix(".csv").is_file()


@pytest.mark.slow
def test_mapped_scores_are_summary_like_and_raw_ones_distinct(experiment):
    found = experiment.table(experiment.run(noises=(1.0,), sizes=(100,), n_datasets=3, method="svi")).set_index(
        ["positions", "alignment"]
    )
    assert found.loc[("PCA, mapped", "orthogonal"), "summary-like"] == 1
    assert found.loc[("PCA", "orthogonal"), "distinct"] == 1
    assert found.loc[("truth", "orthogonal"), "draw-like"] >= 2 / 3
    assert found.loc[("PCA, mapped", "orthogonal"), "delta"] < 0.3 < found.loc[("PCA", "orthogonal"), "delta"]
