"""Tests of `select`, which runs a config for several values."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from patching import everywhere

import latentlab.study.run  # noqa: F401
import latentlab.study.select as selecting
from latentlab import cli
from latentlab.errors import ConfigError, DataError, InferenceError, ModelError, StoreError
from latentlab.results.loo import loo
from latentlab.study.run import load_run
from latentlab.study.select import n_compared, plotted, select, values_of

TOY = {
    "name": "toy",
    "dataset": {"name": "linear_gaussian", "n_units": 24, "n_features": 3, "n_latent": 1},
    "model": {"name": "ppca", "n_latent": 1},
    "inference": {"name": "svi", "n_steps": 30, "n_draws": 40},
    "embeddings": [{"name": "pca"}],
}


@pytest.fixture(autouse=True)
def _no_pages(monkeypatch):
    everywhere(monkeypatch, "latentlab.study", "write_page", lambda run, **_: run.path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Runs with `n_latent` 1, 2 and 3, of which 3 fails for 3 features; with held-out units."""
    out = tmp_path_factory.mktemp("select")
    with pytest.MonkeyPatch.context() as patch:
        everywhere(patch, "latentlab.study", "write_page", lambda run, **_: run.path)
        select(TOY, "model.n_latent", [1, 2, 7], overrides=["held_out=0.25"], out=out, progress=False)
    return out


@pytest.fixture(scope="module")
def table(folder):
    return pd.read_csv(folder / "selection.csv", dtype={"value": str}).set_index("value")


def test_the_selection_table_matches_the_runs(folder, table):
    assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == ["toy-n_latent-1", "toy-n_latent-2"]
    points = {value: loo(load_run(folder / f"toy-n_latent-{value}").posterior).pointwise for value in "12"}
    best = max(points, key=lambda value: points[value].sum())
    assert table.index[0] == best
    for value in "12":
        d = points[value] - points[best]
        assert table.elpd_loo[value] == pytest.approx(points[value].sum())
        assert (table.elpd_diff[value], table.se_diff[value]) == pytest.approx((d.sum(), np.sqrt(18) * d.std(ddof=1)))
        held_out = load_run(folder / f"toy-n_latent-{value}").info["held_out"]
        assert (table.held_out[value], table.held_out_se[value]) == pytest.approx((held_out["elpd"], held_out["se"]))
        assert table.run[value] == f"toy-n_latent-{value}"
    assert table.n_points.tolist() == [18, 18, 0]


def test_a_failing_value_becomes_a_row_and_the_others_run(table):
    assert table.index[-1] == "7"
    assert table.note["7"].startswith("failed: ")
    assert "7" in table.note["7"]
    assert np.isnan(table.elpd_loo["7"])
    assert not table.converged["7"]
    assert n_compared(table) == 2


def test_selection_skips_embeddings_and_writes_the_plot(folder):
    assert "embeddings.nc" not in load_run(folder / "toy-n_latent-1").info["files"]
    assert (folder / "selection.png").read_bytes().startswith(b"\x89PNG")


def test_existing_runs_are_reused_only_when_resumed(folder):
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("posterior.nc")}
    with pytest.raises(StoreError, match=r"toy-n_latent-1 exists already; --resume"):
        select(TOY, "model.n_latent", [1, 2], overrides=["held_out=0.25"], out=folder, progress=False)
    again = select(TOY, "model.n_latent", [2, 1], overrides=["held_out=0.25"], out=folder, resume=True, progress=False)
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("posterior.nc")}
    assert n_compared(again) == 2


@pytest.mark.parametrize(
    ("key", "values", "overrides", "error", "said"),
    [
        ("model.n_latent", [2], [], ConfigError, "must have at least two values; got 2"),
        ("model.n_latent", [2, 2], [], ConfigError, "must have different values; got 2 twice"),
        ("dataset.n_units", [20, 30], [], ConfigError, "changes the data"),
        ("held_out", [0.1, 0.2], [], ConfigError, "changes the data"),
        ("compare.alpha", [0.1, 0.2], [], ConfigError, "neither the model nor the inference"),
        ("model.n_lat", [1, 2], [], ConfigError, "did you mean 'n_latent'"),
        (
            "model.n_latent",
            [1, 2],
            ["inference.name=exact"],
            ModelError,
            "'exact' gives a point estimate.*LOO.*nuts or svi",
        ),
        ("seed", [1, 2], ["held_out=0.2"], ConfigError, "the seed also determines the held-out units"),
    ],
)
def test_values_that_cannot_be_compared_start_no_run(key, values, overrides, error, said, tmp_path):
    with pytest.raises(error, match=said):
        select(TOY, key, values, overrides=overrides, out=tmp_path / "x", progress=False)
    assert not (tmp_path / "x").exists()


def test_any_error_stops_only_its_own_value(monkeypatch, tmp_path):
    def run(config, **_):
        raise {"1": InferenceError("site 'W'"), "2": ZeroDivisionError("x"), "3": DataError("y")}[config.name[-1]]

    monkeypatch.setattr(selecting, "run", run)
    table = select(TOY, "model.n_latent", [1, 2, 3], out=tmp_path, progress=False)
    assert sorted(table.note) == ["failed: ZeroDivisionError: x", "failed: site 'W'", "failed: y"]
    assert n_compared(table) == 0
    assert not (tmp_path / "selection.png").exists()


def test_values_are_parsed_from_text():
    assert values_of("a.b=1,2") == ("a.b", [1, 2])
    assert values_of("a.b=[1, 2.5, x]") == ("a.b", [1, 2.5, "x"])
    assert values_of("a=-1:1") == ("a", [-1, 0, 1])
    assert values_of("a='1:2',b") == ("a", ["1:2", "b"])
    assert values_of("a=1") == ("a", [1])
    for text in ("a", "=1", "a=", "a=3:1", "a=[1", "a=no,1"):
        with pytest.raises(ConfigError):
            values_of(text)


def test_failed_and_unconverged_fits_are_hollow_points(monkeypatch):
    from matplotlib.axes import Axes

    faces, plot = [], Axes.plot

    def spy(self, *arguments, **options):
        faces.append((arguments[2], options.get("markerfacecolor")) if len(arguments) > 2 else None)
        return plot(self, *arguments, **options)

    monkeypatch.setattr(Axes, "plot", spy)
    rows = {"value": ["1", "2", "3"], "elpd_diff": [0.0, -2.0, np.nan], "se_diff": [0.0, 1.0, np.nan]}
    plotted(pd.DataFrame({**rows, "converged": [True, False, False]}), "k", ["1", "2", "3"])
    assert [face for face in faces if face] == [("o", "#0072B2"), ("o", "white"), ("x", None)]


# -- the command


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "toy.yaml"
    path.write_text(
        "name: toy\ndataset: {name: linear_gaussian, n_units: 24, n_features: 3, n_latent: 1}\n"
        "model: {name: ppca, n_latent: 1}\ninference: {name: svi, n_steps: 20, n_draws: 30}\nembeddings: [{name: pca}]\n"
    )
    return str(path)


def test_the_select_command_prints_the_table(config, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["select", config, "--quiet", "model.n_latent=1:2", "inference.n_draws=31"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:4] == ["value", "run", "elpd_loo", "se"]
    assert {line.split()[0] for line in lines[1:]} == {"1", "2"}
    assert Path("runs/toy-select/selection.csv").is_file()
    assert load_run("runs/toy-select/toy-n_latent-2").posterior["posterior"].sizes["draw"] == 31


def test_the_select_command_ends_with_1_if_nothing_is_compared(config, capsys, tmp_path):
    assert cli.main(["select", config, "model.n_latent=2,8,9", "--out", str(tmp_path / "x")]) == 1
    out = capsys.readouterr().out
    assert "embeddings are not computed" in out
    assert f"Written: {tmp_path / 'x' / 'selection.csv'}, and the run directories." in out.splitlines()
    assert out.count("failed: ") == 4  # as each happens, and in the table


def test_wrong_usage_of_the_select_command_ends_with_2(config, capsys):
    assert cli.main(["select", config, "model.n_latent=2"]) == 2
    assert "at least two values" in capsys.readouterr().err
    assert cli.main(["select", config, "model.n_latent"]) == 2
    assert "expected KEY=VALUES" in capsys.readouterr().err
