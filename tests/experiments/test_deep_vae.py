import importlib.util
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "experiments" / "deep_vae.py"


@pytest.fixture(scope="module")
def experiment():
    spec = importlib.util.spec_from_file_location("deep_vae", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_deep_decoder_and_more_samples_improve_the_bound(experiment, tmp_path, capsys):
    """Differences at a small size are many standard errors."""
    out = tmp_path / "figure.png"
    experiment.main(["--n-latent", "2", "--n-steps", "1500", "--hidden", "64", "--n-samples", "100", "--out", str(out)])
    assert "difference" in capsys.readouterr().out
    assert out.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    table = experiment.pd.read_csv(out.with_suffix(".csv"))
    assert (table["difference"] > 5 * table["difference se"]).all()
    assert (table["vae"] > table["vae, one sample"]).all()
