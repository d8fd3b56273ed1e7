import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

from latentlab.errors import LatentLabError

SCRIPT = Path(__file__).resolve().parents[2] / "experiments" / "benchmarks" / "metrics_at_scale.py"


@pytest.fixture(scope="module")
def experiment():
    spec = importlib.util.spec_from_file_location("metrics_at_scale", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["metrics_at_scale"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["metrics_at_scale"]


@pytest.fixture
def without_descent(monkeypatch):
    """Compilation of pynndescent takes longer than the rest of the tests."""
    monkeypatch.setitem(sys.modules, "pynndescent", None)


def test_loops_and_metrics_give_the_same_values(experiment):
    embedding, draws = experiment.posterior(150, 6, 3)
    ours = experiment.lifted(embedding, draws)
    assert ours.shape == (2, 6)
    for cka_of in (experiment.textbook_cka, experiment.columns_cka):
        np.testing.assert_allclose(experiment.loop(embedding, draws[0], cka_of), ours, rtol=0, atol=1e-10)


def test_metrics_with_different_values_are_not_timed(experiment, monkeypatch):
    monkeypatch.setattr(experiment, "columns_cka", lambda x, y: experiment.textbook_cka(x, y) + 1e-9)
    with pytest.raises(LatentLabError, match=r"differ by 1\.0e-09"):
        experiment.scores(experiment.SIZES["small"])


def test_metrics_at_scale_prints_times_and_memory(experiment, without_descent, capsys):
    experiment.main(["--size", "small"])
    printed = capsys.readouterr().out
    assert "latentlab, all 20 draws" in printed
    assert "recall nan" in printed
    assert "ll.compare, 200 units, 150 draws of 2 columns" in printed
    assert "MB additional memory" in printed
