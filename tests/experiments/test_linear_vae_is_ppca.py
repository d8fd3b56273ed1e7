import importlib.util
from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "experiments" / "linear_vae_is_ppca.py"


@pytest.fixture(scope="module")
def experiment():
    spec = importlib.util.spec_from_file_location("linear_vae_is_ppca", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_linear_vae_is_ppca_prints_its_result_and_draws_its_figure(experiment, tmp_path, capsys):
    out = tmp_path / "figure.png"
    experiment.main(["--datasets", "iris", "--n-starts", "3", "--n-noises", "3", "--out", str(out)])
    said = capsys.readouterr().out
    assert "iris: 3 of 3 starts reach PPCA's maximum" in said
    assert "at 5 of 5 noise variances, the active dimensions are as many as the eigenvalues above it" in said
    assert out.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert out.with_suffix(".csv").is_file()


def test_the_distance_ignores_order_and_sign_but_not_rotation(experiment):
    W = np.array([[3.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    assert experiment.distance(W[:, ::-1] * [-1, 1], W) < 1e-12
    turn = np.array([[np.cos(0.5), -np.sin(0.5)], [np.sin(0.5), np.cos(0.5)]])
    assert experiment.distance(W @ turn, W) > 0.3
