"""Searches: the same points by every executor and after an interrupt, proposals, and the ranking with its uncertainty."""

import json
import math
import shutil

import numpy as np
import optuna
import pandas as pd
import pytest

from latentlab.errors import ConfigError, InferenceError, MissingDependencyError, ModelError, StoreError
from latentlab.store.read import read
from latentlab.study.rows import row_of, terms_of
from latentlab.sweeps import ranking
from latentlab.sweeps.points import plan_of
from latentlab.sweeps.search import N_RANDOM, search_of
from latentlab.sweeps.sweep import dry_run, load_sweep, sweep

pytestmark = [pytest.mark.fixed, pytest.mark.filterwarnings("ignore")]

SPACE = {"model.n_latent": {"integer": [1, 3]}, "inference.n_draws": {"choice": [20, 30]}, "model.mu_scale": {"uniform": [1, 9]}}
BLOCK = {"n": 5, "batch": 2, "values": SPACE}
BASE = {
    "name": "toy",
    "dataset": {"name": "linear_gaussian", "n_units": 30, "n_features": 4, "n_latent": 1},
    "model": {"name": "ppca", "n_latent": 1},
    "inference": {"name": "exact", "n_draws": 20},
    "held_out": 0.3,
}


def config(**changes):
    return {**BASE, "sweep": {"search": {**BLOCK, **changes}}}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return sweep(config(), executor="serial", out=tmp_path_factory.mktemp("search") / "toy", progress=False)


def files(folder):
    return {name: (folder / name).read_bytes() for name in ("sweep.csv", "sweep.parquet", "sweep.json")}


def begun(found, folder, *, n_proposed, n_run):
    """A copy of a search in the state in which some points have been proposed, and some of these have been run."""
    rest = [f"point-{number:04d}" for number in range(n_run, len(found.points))]
    shutil.copytree(found.path, folder, ignore=shutil.ignore_patterns("sweep.*", "times.csv", *rest))
    content = json.loads((found.path / "sweep.json").read_text())
    content["points"] = dict(list(content["points"].items())[:n_proposed])
    (folder / "sweep.json").write_text(json.dumps(content))
    return folder


def scored(search, n, score):
    """The first n points of a search whose scores are a function of the values."""
    points = []
    while len(points) < n:
        points += search.proposals(len(points) // search.batch, points, [score(one) for one in points])
    return points


def search(**changes):
    return search_of({**BLOCK, **changes}, "search")


# -- proposals


def test_proposals_improve_and_lie_in_the_ranges():
    space = {"model.a": {"log_uniform": [1e-4, 1.0]}, "model.b": {"choice": ["x", [1, 2], {"name": "y"}]}}
    points = scored(search(n=60, values=space, batch=4), 60, lambda one: -abs(math.log(one["model.a"] / 1e-2)))
    errors = np.array([abs(math.log(one["model.a"] / 1e-2)) for one in points])
    assert np.median(errors[-20:]) < 0.5 * np.median(errors[:N_RANDOM])
    assert all(1e-4 <= one["model.a"] <= 1 and one["model.b"] in ("x", [1, 2], {"name": "y"}) for one in points)


def test_proposals_depend_on_the_scores_the_seed_and_the_batch_only():
    def low(one):
        return -one["model.mu_scale"]

    few, more = search(n=13, batch=3), search(n=30, batch=3)
    assert scored(few, 13, low) == scored(more, 30, low)[:13]
    assert scored(more, 30, low)[:N_RANDOM] == scored(more, 30, lambda one: one["model.mu_scale"])[:N_RANDOM]
    assert scored(more, 30, low) != scored(more, 30, lambda one: one["model.mu_scale"])
    assert scored(search(n=3, seed=1), 3, low) != scored(search(n=3), 3, low)


def test_no_point_of_a_finite_space_is_proposed_twice_and_failed_points_are_allowed():
    space = {"model.a": {"integer": [1, 3]}, "model.b": {"choice": [[0], [1]]}}
    points = scored(search(n=6, values=space, batch=4), 6, lambda one: math.nan if one["model.a"] == 2 else one["model.a"])
    assert len({json.dumps(one) for one in points}) == 6


def test_proposals_leave_the_log_level_of_optuna():
    before = optuna.logging.get_verbosity()
    try:
        optuna.logging.set_verbosity(optuna.logging.INFO)
        search().proposals(0, [], [])
        assert optuna.logging.get_verbosity() == optuna.logging.INFO
    finally:
        optuna.logging.set_verbosity(before)


# -- the block


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"n": 0}, r"sweep.search.n: must be a number of points from 1 to 10000; got 0"),
        ({"batch": True}, r"sweep.search.batch: must be a number of points"),
        ({"metric": "rhat"}, r"sweep.search.metric: must be one of held_out, elpd_loo; got 'rhat'"),
        ({"values": {"dataset.n_units": {"integer": [9, 20]}}}, r"must be keys of model or inference, .*; got 'dataset.n_units'"),
        ({"values": {"model.n_latent": [1, 2]}}, r"sweep.search.values.model.n_latent: must be one of \{uniform"),
        ({"n": 9, "values": {"model.n_latent": {"integer": [1, 3]}}}, r"must be at most the 3 different points; got 9"),
        ({"n": 2, "values": {"model.n_latent": {"integer": [0, 3]}}}, r"sweep: search \(model.n_latent=0\): .*n_latent"),
        ({"n": 2, "values": {"inference.n_draws": {"choice": [9, "x"]}}}, r"sweep: search \(inference.n_draws=x\)"),
        ({"speed": 1}, r"sweep.search: must be a mapping with the keys n, values"),
    ],
)
def test_invalid_searches_are_refused_before_the_start(changes, text):
    with pytest.raises(ConfigError, match=text):
        plan_of(config(**changes))


def test_a_search_requires_the_score_optuna_and_a_block_of_its_own(monkeypatch):
    with pytest.raises(ConfigError, match="metric: held_out requires held-out units"):
        plan_of({key: value for key, value in config().items() if key != "held_out"})
    with pytest.raises((ConfigError, ModelError), match="elpd_loo requires posterior draws, and 'exact' gives a point estimate"):
        plan_of(config(metric="elpd_loo"))
    with pytest.raises(ConfigError, match="search must not be combined with other keys; got 'seeds'"):
        plan_of({**BASE, "sweep": {"search": BLOCK, "seeds": 2}})
    with pytest.raises(ConfigError, match="the sweep varies this key"):
        plan_of(config(), ["model.n_latent=2"])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"a search needs the package 'optuna'.*latentlab\[search\]"):
        plan_of(config())


# -- the runs


def test_the_best_point_is_ranked_with_paired_standard_errors(found):
    table = found.ranking()
    assert table["held_out"].is_monotonic_decreasing
    best, last = (read(found.path / table["point"].iloc[i]) for i in (0, -1))
    d = terms_of(last, "held_out") - terms_of(best, "held_out")
    assert len(d) == 9
    assert table["difference"].iloc[-1] == pytest.approx(d.sum())
    assert table["difference_se"].iloc[-1] == pytest.approx(3 * d.std())
    assert d.sum() == pytest.approx(last.info["held_out"]["elpd"] - best.info["held_out"]["elpd"])
    assert table["near_best"].iloc[0]
    near = table["difference"] >= -2 * table["difference_se"]
    assert table["near_best"].tolist() == near.tolist()
    whole = found.to_dataframe().set_index("point")
    pd.testing.assert_series_equal(whole.loc[table["point"], "difference"].reset_index(drop=True), table["difference"])
    text = repr(found)
    assert f"best held_out: {table['point'][0]} (model.n_latent=" in text
    assert f"{near.sum() - 1} other" in text
    assert "the best of 5 scores is optimistic" in text


def test_a_search_is_the_same_after_an_interrupt(found, tmp_path):
    folder = begun(found, tmp_path / "toy", n_proposed=4, n_run=3)
    table, cost = dry_run(plan_of(config()), folder)
    assert table["status"].tolist() == ["done"] * 3 + ["not run"]
    assert "5 points, of which 3 are complete" in cost
    sweep(config(), executor="serial", out=folder, progress=False)
    assert files(folder) == files(found.path)
    with pytest.raises(StoreError, match="contains a sweep of 5 points, and now there are 4"):
        sweep(config(n=4), executor="serial", out=folder, progress=False)
    with pytest.raises(StoreError, match=r"settings differ: search.seed: 0 -> 1"):
        sweep(config(seed=1), executor="serial", out=folder, progress=False)


def test_more_points_extend_a_search_whose_last_batch_was_not_full(found, tmp_path):
    folder = begun(found, tmp_path / "toy", n_proposed=3, n_run=3)
    sweep(config(), executor="serial", out=folder, progress=False)
    assert files(folder) == files(found.path)


@pytest.mark.slow
def test_a_search_is_the_same_by_processes(found, tmp_path):
    begun(found, tmp_path / "toy", n_proposed=2, n_run=2)
    sweep(config(), executor="process", n_workers=2, out=tmp_path / "toy", progress=False)
    assert files(tmp_path / "toy") == files(found.path)


def test_invalid_and_failed_points_have_rows_and_the_search_goes_on(tmp_path):
    """The number of chains must be a multiple of four here, which the ends of its range are."""
    values = {"inference.n_chains": {"integer": [4, 8]}}
    chees = {"name": "chees", "n_superchains": 4, "n_warmup": 3, "n_draws": 4, "n_chains": 4, "compiled": False}
    plan = plan_of({**BASE, "inference": chees, "sweep": {"search": {"n": 5, "values": values}}})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("latentlab.sweeps.work.run_point", lambda *_: {"status": "failed", "error": "no", "headline": ""})
        found = sweep(plan, executor="serial", out=tmp_path / "toy", progress=False)
    table = found.to_dataframe()
    assert table["status"].tolist() == ["failed"] * 5
    odd = table["inference.n_chains"] % 4 != 0
    assert odd.sum() == 3
    assert all("n_superchains" in text for text in table["error"][odd])
    assert (table["error"][~odd] == "no").all()
    assert found.best() == []


def test_a_score_that_is_never_finite_ends_the_search(found, tmp_path):
    begun(found, tmp_path / "toy", n_proposed=2, n_run=2)
    for name in ("point-0000", "point-0001"):
        path = tmp_path / "toy" / name / "summary.json"
        summary = json.loads(path.read_text())
        summary["results"]["held_out"] = None
        path.write_text(json.dumps(summary))
    with pytest.raises(InferenceError, match="none of the 2 first points has a finite held_out"):
        sweep(config(), executor="serial", out=tmp_path / "toy", progress=False)


def test_points_of_other_data_are_not_ranked(found, tmp_path):
    with pytest.raises(ConfigError, match="metric: must be one of held_out, elpd_loo; got 'seconds'"):
        found.ranking("seconds")
    shutil.copytree(found.path, tmp_path / "toy")
    path = tmp_path / "toy" / "point-0001" / "run.json"
    info = json.loads(path.read_text())
    info["data"]["sha256"] = "0" * 64
    path.write_text(json.dumps(info))
    with pytest.raises(ConfigError, match="point-0000 and point-0001 were scored on different data"):
        load_sweep(tmp_path / "toy").ranking()
    assert load_sweep(tmp_path / "toy").best()[0].startswith("no ranking: point-0000 and point-0001")
    assert len(load_sweep(tmp_path / "toy").to_dataframe()) == 5


def test_the_sentences_state_a_single_score_and_a_best_run_that_has_not_converged():
    table = pd.DataFrame({"point": ["a", "b"], "held_out": [1.0, math.nan], "held_out_se": [0.5, math.nan]})
    table = table.assign(converged=[False, None], difference=[0.0, math.nan], near_best=[True, None])
    first, second = ranking.text_of_best(table, {"a": "x=1", "b": "x=2"}, "held_out")
    assert first == "best held_out: a (x=1), 1.0 ± 0.5; it has not converged"
    assert second == "no other differs from it by at most 2 standard errors"


# -- scores that cannot be compared


def rows_of(found):
    return {name: row_of(found.path / name) for name in found.points}


def test_a_bound_is_not_ranked_against_an_exact_score(found, monkeypatch):
    last = list(found.points)[-1]
    read_terms = ranking.terms_of
    monkeypatch.setattr(
        ranking, "terms_of", lambda run, metric: read_terms(run, metric).rename("bound" if run.path.name == last else "elpd")
    )
    with pytest.raises(ConfigError, match=f"the score of point-0000 is elpd and that of {last} is bound"):
        ranking.differences(found.path, rows_of(found), "held_out")


def test_without_a_standard_error_only_the_best_is_near(found, monkeypatch):
    read_terms = ranking.terms_of
    monkeypatch.setattr(ranking, "terms_of", lambda run, metric: read_terms(run, metric)[:1])
    values = ranking.differences(found.path, rows_of(found), "held_out")
    assert all(math.isnan(one["difference_se"]) for one in values.values())
    assert sum(one["near_best"] for one in values.values()) == 1


def test_leave_one_out_of_other_units_is_not_ranked(tmp_path):
    """The training units differ between seeds, if units are held out, and their numbers are equal."""
    svi = {"name": "svi", "guide": "full_rank", "n_steps": 300, "n_draws": 200}
    seeds = sweep({**BASE, "inference": svi, "sweep": {"seeds": 2}}, executor="serial", out=tmp_path / "toy", progress=False)
    assert seeds.to_dataframe()["elpd_loo"].notna().all()
    with pytest.raises(ConfigError, match="point-0000 and point-0001 were scored on different data"):
        seeds.ranking("elpd_loo")


def test_a_single_held_out_unit_has_a_score_without_a_standard_error(tmp_path):
    single = {**BASE, "held_out": 0.034, "sweep": {"seeds": 1}}
    found = sweep(single, executor="serial", out=tmp_path / "toy", progress=False)
    row = found.to_dataframe().iloc[0]
    assert not (found.path / "failed.json").is_file()
    assert row["status"] in ("done", "not_converged")
    assert math.isfinite(row["held_out"])
    assert math.isnan(row["held_out_se"])
    table = found.to_dataframe().assign(difference=0.0, near_best=True)
    (only,) = ranking.text_of_best(table, {"point-0000": "seed=0"}, "held_out")
    assert ", without a standard error" in only


def test_ranges_of_real_numbers_are_checked_as_such():
    with pytest.raises(ConfigError, match="n_latent"):
        plan_of(config(values={"model.n_latent": {"uniform": [1, 3]}}))
    with pytest.raises(ConfigError, match=r"choice: the values must differ; got \[1, 1\]"):
        plan_of(config(values={"model.n_latent": {"choice": [1, 1]}}))
