"""Tests of comparing runs with each other: scores for shared data, positions for shared units."""

import shutil

import numpy as np
import pandas as pd
import pytest
from patching import everywhere

import latentlab.study.run  # noqa: F401
from latentlab import cli
from latentlab.compare.agreement import adjusted_rand
from latentlab.compare.clustering import minimum_binder
from latentlab.compare.procrustes import procrustes_similarity
from latentlab.errors import ConfigError, StoreError
from latentlab.store.points import Points, write_points
from latentlab.study import several
from latentlab.study.rows import row_of
from latentlab.study.run import load_run, run
from latentlab.study.several import compare_runs

DATA = {"name": "gaussian_mixture", "n_units": 30, "n_features": 3, "separation": 6.0}
SVI = {"name": "svi", "n_steps": 30, "n_draws": 40}

FAST = {"n_draws": 10, "n_pairs": 10, "n_permutations": 5, "metrics": ["cka"]}


def config(name, model, dataset=DATA, inference=SVI, **rest):
    return {"name": name, "dataset": dataset, "model": model, "inference": inference, **rest}


CONFIGS = {
    "one": config("one", {"name": "ppca", "n_latent": 1}),
    "two": config("two", {"name": "ppca", "n_latent": 2}, embeddings=[{"name": "pca"}], compare=FAST),
    "mixture": config("mixture", {"name": "gaussian_mixture", "n_components": 3, "covariance": "spherical"}),
    "pair": config("pair", {"name": "gaussian_mixture", "n_components": 2, "covariance": "spherical"}),
    "raw": config("raw", {"name": "ppca", "n_latent": 1}, {**DATA, "standardize": False}),
    "point": config("point", {"name": "ppca", "n_latent": 1}, inference={"name": "exact", "n_draws": 40}),
    "other": config("other", {"name": "ppca", "n_latent": 1}, {**DATA, "n_units": 20}),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        everywhere(patch, "latentlab.study", "write_page", lambda run, **_: run.path)
        for name, one in CONFIGS.items():
            run(one, out=folder / name, progress=False)
    return folder


@pytest.fixture(scope="module")
def found(runs):
    return compare_runs([runs / name for name in CONFIGS])


def test_runs_with_shared_data_are_compared_in_a_table(found):
    assert found.rows["run"].tolist() == list(CONFIGS)
    assert found.rows["model"][2] == "gaussian_mixture (n_components=3)"
    (table,) = found.loo
    assert set(table["model"]) == {"one", "two", "mixture", "pair"}
    said = "\n".join(found.notes)
    assert "'point': LOO needs posterior draws, but the fit is a point estimate (exact)" in said
    assert "and raw cannot be compared: the data are on different scales" in said
    assert "and other cannot be compared: different data: shapes (30, 3) and (20, 3)" in said


def test_the_table_has_a_row_with_results_and_times_for_each_run(found, runs):
    table = found.to_dataframe().set_index("run")
    assert table.index.tolist() == list(CONFIGS)
    for name in ("two", "point"):
        row = row_of(runs / name)
        for column, value in (row.results | row.times).items():
            np.testing.assert_equal(table.loc[name, column], value)
    assert table["ess_per_second"].isna().all()  # draws of a guide are independent
    assert (table["seconds"] > 0).all()
    assert np.isnan(table.loc["point", "elpd_loo"])
    (loo,) = found.loo
    assert loo.set_index("model")["elpd_loo"].to_dict() == table["elpd_loo"][["one", "two", "mixture", "pair"]].to_dict()


def test_a_sweep_stands_for_its_complete_points(runs, tmp_path, capsys):
    for name in ("one", "two"):
        shutil.copytree(runs / name, tmp_path / "sweep" / name)
    values = {name: {"model.n_latent": number} for number, name in enumerate(("one", "two", "three"), 1)}
    write_points(tmp_path / "sweep", Points("s", values, {}, {}))
    assert cli.main(["compare", str(tmp_path / "sweep"), str(runs / "pair"), "--out", str(tmp_path / "out")]) == 0
    out = capsys.readouterr().out
    assert f"{tmp_path / 'sweep'}: three omitted, since they are not complete" in out
    assert " ± " in out
    table = pd.read_csv(tmp_path / "out" / "runs.csv")
    assert table["run"].tolist() == ["one", "two", "pair"]
    numbers = ["elpd_loo", "elpd_loo_se", "held_out", "seconds"]
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "out" / "runs.parquet")[numbers], table[numbers], check_dtype=False)
    assert {"loo.csv", "positions.csv", "verdicts.csv", "notes.txt"} <= {path.name for path in (tmp_path / "out").iterdir()}
    with pytest.raises(StoreError, match="is a file, and a folder is needed"):
        compare_runs([tmp_path / "sweep"]).save(tmp_path / "out" / "runs.csv")


def test_many_pairs_of_positions_are_omitted_with_a_note(runs, monkeypatch):
    monkeypatch.setattr(several, "MOST_PAIRS", 2)
    found = compare_runs([runs / "one", runs / "two", runs / "raw"])
    assert found.positions.empty
    assert "positions: 3 runs have 3 pairs, more than 2; compare fewer runs" in found.notes


def test_positions_are_compared_with_the_ceilings_of_the_runs(found, runs):
    table = found.positions.set_index(["run", "other", "metric"])
    means = [load_run(runs / name).posterior["latents"]["z"].values.mean((0, 1)) for name in ("one", "two")]
    row = table.loc[("one", "two", "procrustes_similarity")]
    assert row["of_points"] == pytest.approx(procrustes_similarity(*means))
    assert 0 <= row["within_run"] < row["of_draws"] <= 1  # lower is closer: one is nearer to itself than to the other
    assert ("one", "two", "cka") in table.index
    assert ("one", "other") not in table.index.droplevel("metric")
    assert any("one and other have different units (30 and 20" in note for note in found.notes)
    assert [metric for a, b, metric in table.index if (a, b) == ("one", "mixture")] == ["cka"]


def test_partitions_are_compared_for_any_label_names(found, runs):
    table = found.positions.set_index(["run", "other", "metric"])
    draws = [load_run(runs / name).posterior["latents"]["z"].values for name in ("mixture", "pair")]
    row = table.loc[("mixture", "pair", "adjusted_rand")]
    assert row["of_points"] == pytest.approx(adjusted_rand(*(minimum_binder(one) for one in draws)))
    every = np.mean([adjusted_rand(a, b) for a in draws[0][0] for b in draws[1][0]])
    assert row["of_draws"] == pytest.approx(every, abs=0.1)
    assert row["of_draws"] <= max(row["within_run"], row["within_other"])


def test_verdicts_of_all_runs_are_listed(found, runs):
    own = load_run(runs / "two").verdicts
    assert found.verdicts["run"].tolist() == ["two"] * len(own)
    assert found.verdicts["verdict"].tolist() == own["verdict"].tolist()
    assert any(note.startswith("verdicts: no embedding was compared in one, mixture") for note in found.notes)


def test_units_in_another_order_are_matched_by_name(runs, tmp_path):
    names = [f"u{i}" for i in range(20)]
    x = np.random.default_rng(0).standard_normal((20, 3)) @ np.diag([5, 1, 1])
    found = {}
    for name, order in (("a", np.arange(20)), ("b", np.arange(20)[::-1])):
        path = tmp_path / f"{name}.csv"
        path.write_text("unit,p,q,r\n" + "".join(f"{names[i]},{','.join(map(str, x[i]))}\n" for i in order))
        one = config(
            name,
            {"name": "ppca", "n_latent": 1},
            {"name": "file", "path": str(path), "unit": "unit"},
            CONFIGS["point"]["inference"],
        )
        with pytest.MonkeyPatch.context() as patch:
            everywhere(patch, "latentlab.study", "write_page", lambda run, **_: run.path)
            found[name] = run(one, out=tmp_path / name, progress=False)
    both = compare_runs([tmp_path / "a", tmp_path / "b"])
    assert both.positions.set_index("metric").of_points["procrustes_similarity"] < 0.2


def test_incomplete_or_single_runs_are_refused(runs, tmp_path):
    with pytest.raises(ConfigError, match="at least two different runs"):
        compare_runs([runs / "one", runs / "one"])
    with pytest.raises(StoreError, match="is not a run directory"):
        compare_runs([runs / "one", tmp_path])
    shutil.copytree(runs / "one", tmp_path / "copy")
    text = (tmp_path / "copy" / "run.json").read_text()
    (tmp_path / "copy" / "run.json").write_text(text.replace('"status": "not_converged"', '"status": "failed"'))
    with pytest.raises(ConfigError, match="copy: the run is failed"):
        compare_runs([runs / "one", tmp_path / "copy"])


def test_the_compare_command_prints_the_available_comparisons(runs, capsys):
    assert cli.main(["compare", str(runs / "one"), str(runs / "two"), str(runs / "raw")]) == 0
    out = capsys.readouterr().out
    for part in (
        "runs\n",
        "leave-one-out\n",
        "agreement of positions\n",
        "verdicts on embeddings\n",
        "notes\n",
    ):
        assert part in out
    assert cli.main(["compare", str(runs / "one")]) == 2
    assert "at least two different runs" in capsys.readouterr().err
