"""Rows of tables of runs: numbers that are missing or not finite."""

import math

import numpy as np
import pandas as pd

from latentlab.study.rows import RHAT, RunRow, _extreme, row_of
from latentlab.study.run import run

COLUMNS = ["check", "quantity", "value", "threshold", "verdict"]


def worst(*rows):
    return _extreme(pd.DataFrame([(*row[:1], "", row[1], "", row[2]) for row in rows], columns=COLUMNS), RHAT, np.max)


def test_the_largest_rhat_is_not_that_of_the_finite_ones():
    assert worst(("R-hat", 1.1, "fail"), ("nested R-hat", 1.2, "fail"), ("bulk ESS", 3.0, "fail")) == 1.2
    assert math.isnan(worst(("R-hat", 1.001, "pass"), ("R-hat", math.nan, "fail")))
    assert worst(("R-hat", 1.001, "pass"), ("R-hat", math.inf, "fail")) == math.inf
    assert math.isnan(worst(("R-hat", "a point estimate has no posterior draws", "not applicable")))


def test_a_stored_row_is_the_computed_one(tmp_path):
    config = {"name": "a", "dataset": {"name": "iris"}, "model": {"name": "ppca", "n_latent": 1}, "held_out": 0.2}
    done = run({**config, "inference": {"name": "exact", "n_draws": 20}}, out=tmp_path / "a", progress=False)
    first = row_of(done.path)
    assert first.results["held_out"] == done.info["held_out"]["elpd"]
    assert math.isnan(first.results["elpd_loo"])
    again = row_of(done.path)
    assert isinstance(again, RunRow)
    np.testing.assert_equal(again.results, first.results)
    np.testing.assert_equal(again.times, first.times)
    (done.path / "summary.json").write_text('{"format": 1, "finished": "at another time", "results": {}, "times": {}}')
    np.testing.assert_equal(row_of(done.path).results, first.results)
