import importlib.util
from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "experiments" / "networks_of_vae.py"


@pytest.fixture(scope="module")
def experiment():
    spec = importlib.util.spec_from_file_location("networks_of_vae", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_bounds_are_compared_within_each_seed(experiment, tmp_path, capsys):
    out = tmp_path / "table.csv"
    options = ["--networks", "multilayer", "residual", "--seeds", "0", "1", "--n-steps", "30", "--n-samples", "10"]
    experiment.main([*options, "--out", str(out)])
    assert "difference_se" in capsys.readouterr().out
    table = experiment.pd.read_csv(out).set_index(["network", "seed"])
    for seed in (0, 1):
        difference = table.loc[("residual", seed), "bound"] - table.loc[("multilayer", seed), "bound"]
        assert table.loc[("residual", seed), "difference"] == pytest.approx(difference, abs=1e-3)
    found = experiment.summary(table.reset_index()).set_index("network")
    each = table.loc["residual", "difference"]
    assert found.loc["residual", "difference_se"] == pytest.approx(abs(each[0] - each[1]) / 2, rel=1e-6)
    assert found.loc["multilayer", "difference"] == 0.0
    assert np.isfinite(found).all(axis=None)
