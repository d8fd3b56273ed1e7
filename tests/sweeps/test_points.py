"""Expansion of a `sweep` block, and the checks of all points before the first starts."""

import math

import numpy as np
import pytest
import yaml

from latentlab.errors import ConfigError
from latentlab.study.rows import text_of
from latentlab.sweeps.points import expand, plan_of

BASE = {
    "name": "toy",
    "dataset": {"name": "iris"},
    "model": {"name": "ppca", "n_latent": 2},
    "inference": {"name": "exact", "n_draws": 20},
}


def config(**sweep):
    return {**BASE, "sweep": sweep}


def test_a_grid_is_the_product_of_its_lists_in_order():
    assert expand({"grid": {"a": [1, 2], "b": ["x", "y"]}}, 0) == [
        {"a": 1, "b": "x"},
        {"a": 1, "b": "y"},
        {"a": 2, "b": "x"},
        {"a": 2, "b": "y"},
    ]


def test_parts_are_combined_and_seeds_vary_slowest():
    found = expand({"seeds": 2, "zip": {"a": [1, 2], "b": [3, 4]}, "list": [{"c": 5}, {"c": 6}]}, 10)
    assert len(found) == 8
    assert [one["seed"] for one in found] == [10] * 4 + [11] * 4
    assert {(one["a"], one["b"], one["c"]) for one in found} == {(1, 3, 5), (1, 3, 6), (2, 4, 5), (2, 4, 6)}
    assert expand({"seeds": 3, "grid": {"a": [1, 2]}}, 10)[:4] == expand({"seeds": 2, "grid": {"a": [1, 2]}}, 10)


def test_random_points_have_their_distributions():
    values = {
        "u": {"uniform": [2, 3]},
        "l": {"log_uniform": [1e-4, 1.0]},
        "i": {"integer": [1, 3]},
        "c": {"choice": ["a", "b"]},
    }
    n = 4000
    found = expand({"random": {"n": n, "seed": 5, "values": values}}, 0)
    u, log, i, c = ([one[key] for one in found] for key in values)
    assert all(2 <= one < 3 for one in u)
    assert all(1e-4 <= one < 1 for one in log)
    # means of 4000 values at six standard errors
    assert abs(sum(u) / n - 2.5) < 6 * math.sqrt(1 / 12 / n)
    assert abs(sum(map(math.log10, log)) / n + 2) < 6 * 4 * math.sqrt(1 / 12 / n)
    assert all(abs(i.count(k) / n - 1 / 3) < 6 * math.sqrt(2 / 9 / n) for k in (1, 2, 3))
    assert abs(c.count("a") / n - 0.5) < 6 * math.sqrt(1 / 4 / n)
    # keys are independent: a correlation has standard error n^-1/2
    assert abs(np.corrcoef(u, np.log(log))[0, 1]) < 6 / math.sqrt(n)
    few = expand({"random": {"n": 7, "seed": 5, "values": values}}, 0)
    assert few == found[:7]
    assert expand({"random": {"n": 7, "seed": 6, "values": values}}, 0) != few


@pytest.mark.parametrize(
    ("block", "text"),
    [
        ([], "must be a mapping with any of grid, zip, list, random, seeds; got []"),
        ({"gird": {}}, "unknown key 'gird'; did you mean 'grid'?"),
        ({"grid": {"a": []}}, "sweep.grid: a: must be a list of values; got []"),
        ({"grid": {"a": 3}}, "sweep.grid: a: must be a list of values; got 3"),
        ({"grid": {"name": ["x"]}}, "must be keys of the config, such as model.n_latent, except name"),
        ({"zip": {"a": [1], "b": [1, 2]}}, "the lists must have the same length; got a: 1, b: 2"),
        ({"list": [{"a": 1}, {"b": 1}]}, "sweep.list.1: must have the same keys as"),
        ({"seeds": 0}, "sweep.seeds: must be the number of seeds, at least 1, or a list of seeds; got 0"),
        ({"seeds": True}, "must be the number of seeds, at least 1, or a list of seeds; got True"),
        ({"grid": {"a": [1]}, "zip": {"a": [1]}}, "the key 'a' is varied twice"),
        ({"grid": {"a": [1, 1]}}, "points 0 and 1 are equal (a=1)"),
        ({"random": {"n": 0, "values": {"a": {"uniform": [0, 1]}}}}, "sweep.random.n: must be a number of points from 1"),
        ({"random": {"n": 2, "values": {"a": {"uniform": [1, 0]}}}}, "a.uniform: must be two numbers, the smaller first"),
        ({"random": {"n": 2, "values": {"a": {"log_uniform": [0, 1]}}}}, "must be two positive numbers"),
        ({"random": {"n": 2, "values": {"a": {"normal": [0, 1]}}}}, "must be one of {uniform: [a, b]}"),
        ({"grid": {"a": list(range(400)), "b": list(range(400))}}, "at most 100000 points are allowed; got 160000"),
    ],
)
def test_invalid_blocks_are_refused_in_one_line(block, text):
    with pytest.raises(ConfigError) as error:
        expand(block, 0)
    assert text in str(error.value)
    assert "\n" not in str(error.value)


def test_each_point_has_a_checked_config_of_its_own():
    plan = plan_of(config(grid={"model.name": ["ppca", "factor_analysis"], "model.n_latent": [1, 2]}))
    assert [point.name for point in plan.points] == [f"point-000{i}" for i in range(4)]
    assert [(p.config.model.name, p.config.model.n_latent) for p in plan.points] == [
        ("ppca", 1),
        ("ppca", 2),
        ("factor_analysis", 1),
        ("factor_analysis", 2),
    ]
    assert plan.points[3].config.name == "toy-point-0003"


def test_whole_sections_come_first_then_names_then_options():
    sections = [{"name": "exact", "n_draws": 10}, {"name": "map", "n_draws": 10}]
    plan = plan_of(config(grid={"inference.n_draws": [30], "inference": sections}))
    assert [(p.config.inference.name, p.config.inference.n_draws) for p in plan.points] == [("exact", 30), ("map", 30)]
    assert text_of(plan.points[0].values) == "inference.n_draws=30, inference=exact(n_draws=10)"


def test_the_invalid_points_are_named_with_their_values():
    with pytest.raises(ConfigError) as error:
        plan_of(config(grid={"model.n_latent": [*range(1, 18), 0]}))
    assert "point 17 (model.n_latent=0)" in str(error.value)
    assert "n_latent" in str(error.value).partition(")")[2]
    with pytest.raises(ConfigError, match=r"point 0 \(model.n_laten=1\).*did you mean"):
        plan_of(config(grid={"model.n_laten": [1]}))


def test_overrides_change_the_sweep_or_all_points_but_no_swept_key():
    plan = plan_of(config(seeds=3), ["sweep.seeds=2", "inference.n_draws=7"])
    assert [(p.config.seed, p.config.inference.n_draws) for p in plan.points] == [(0, 7), (1, 7)]
    with pytest.raises(ConfigError, match=r"'seed=5': the sweep varies this key"):
        plan_of(config(seeds=3), ["seed=5"])


def test_paths_are_relative_to_the_config(tmp_path):
    (tmp_path / "a.csv").write_text("x,y\n1,2\n2,1\n3,5\n4,1\n")
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config(grid={"dataset": [{"name": "file", "path": "a.csv"}]})))
    (point,) = plan_of(tmp_path / "c.yaml").points
    assert point.config.dataset.path == str(tmp_path / "a.csv")


def test_a_config_without_a_sweep_and_a_run_of_one_with_it_are_refused():
    from latentlab.study.config import load_config

    with pytest.raises(ConfigError, match="the key `sweep` is missing; a config without it is run by `latentlab run`"):
        plan_of(BASE)
    with pytest.raises(ConfigError, match="the config has a `sweep`; run it by `latentlab sweep`"):
        load_config(config(seeds=2))
