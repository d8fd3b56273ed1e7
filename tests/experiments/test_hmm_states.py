import importlib.util
from pathlib import Path

import pytest

import latentlab as ll

SCRIPT = Path(__file__).resolve().parents[2] / "experiments" / "hmm_states.py"


@pytest.fixture(scope="module")
def experiment():
    spec = importlib.util.spec_from_file_location("hmm_states", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.METHODS["exact"] = ll.Exact(n_draws=400, n_restarts=2)
    return module


@pytest.fixture(scope="module")
def table_and_figure(experiment, tmp_path_factory):
    """The table and figure for one data set with strong and one with weak signal, by maximum likelihood."""
    out = tmp_path_factory.mktemp("hmm_states") / "figure.png"
    rows = experiment.run(separations=(2.0, 6.0), n_datasets=1, method="exact")
    table = experiment.table(rows)
    experiment.figure(table, out)
    return table.set_index(["labels", "separation"]), out


@pytest.mark.slow
def test_hmm_states_has_a_figure_and_a_row_for_each_clustering(experiment, table_and_figure):
    table, out = table_and_figure
    assert out.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert set(table.index.get_level_values("labels")) == set(experiment.STYLES)


@pytest.mark.slow
def test_viterbi_recovers_the_path_better_than_windows_and_steps(table_and_figure):
    table, _ = table_and_figure
    path, steps, windows = (table.loc[name, "ari_truth"] for name in ("viterbi", "k-means", "window k-means"))
    assert path[6.0] > 0.98
    assert steps[6.0] > 0.95
    assert windows[6.0] < 0.95
    assert path[2.0] > steps[2.0]
    assert table.loc[("window k-means", 6.0), "distinct"] == 1


@pytest.mark.slow
def test_hmm_states_prints_its_table(experiment, tmp_path, capsys):
    out = tmp_path / "figure.png"
    experiment.main(["--method", "exact", "--n-datasets", "1", "--separations", "6.0", "--out", str(out)])
    assert "window PCA, k-means" in capsys.readouterr().out
    assert out.with_suffix(".csv").is_file()
