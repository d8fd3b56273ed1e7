"""Tests of the page of data that are codes of categories."""

import json

import numpy as np
import pytest
import torch

from latentlab.inference.arrays import parameter_tensors, tensors
from latentlab.report.predictive import shares
from latentlab.seeds import double
from latentlab.study.run import load_fit, run

N_CATEGORIES = 3


@pytest.fixture(scope="module")
def codes(tmp_path_factory):
    """A run of codes whose first column is 0 or 2, with hidden entries."""
    folder, rng = tmp_path_factory.mktemp("codes"), np.random.default_rng(0)
    x = rng.integers(0, N_CATEGORIES, size=(40, 3)).astype(float)
    x[:, 0] = rng.choice([0.0, 2.0], 40, p=[0.7, 0.3])
    np.save(folder / "codes.npy", x)
    config = {
        "name": "codes",
        "dataset": {"name": "file", "path": str(folder / "codes.npy"), "standardize": False, "missing": 0.1},
        "model": {"name": "vae", "n_latent": 1, "hidden": [4], "likelihood": "categorical", "n_categories": N_CATEGORIES},
        "inference": {"name": "svi", "guide": "model", "n_steps": 300, "n_draws": 60, "learning_rate": 0.03},
    }
    return run(config, out=folder / "run", progress=False)


@pytest.fixture(scope="module")
def items(codes):
    page = json.loads((codes.path / "report.json").read_text(encoding="utf-8"))
    return [item for part in page["sections"] for item in part["items"]]


def named(items, kind):
    return {item["name"]: item for item in items if item["kind"] == kind}


def test_means_of_codes_are_left_out_with_a_line(items):
    assert not {"reconstructions", "traversals", "imputed"} & set(named(items, "figure"))
    assert "active-dimensions" in named(items, "table")
    lines = [line for item in items if item["kind"] == "text" for line in item["lines"]]
    assert "The data are codes of categories. Reconstructions and latent traversals, which show means, are left out." in lines


def test_the_predictive_check_compares_shares_of_categories(codes, items):
    (row,) = named(items, "table")["predictive"]["rows"]
    assert (row["statistic"], row["number"]) == ("share of each level", 3 * N_CATEGORIES)
    name, _, code = row["largest deviation"].rpartition(" = ")
    x = load_fit(codes).dataset.x[:, int(name.removeprefix("feature "))]
    assert row["observed"] == pytest.approx((x == int(code)).sum() / np.isfinite(x).sum())
    x = np.array([[0.0, 1.0], [2.0, np.nan], [2.0, 1.0]])
    np.testing.assert_allclose(shares(x, 3), [1 / 3, 0, 2 / 3, 0, 1, 0])


def test_missing_entries_have_most_probable_categories(codes, items):
    """In the first column 1 does not occur, though the mean of the codes is near 1."""
    fit = load_fit(codes)
    rows = named(items, "table")["imputed"]["rows"]
    where = np.argwhere(np.isnan(fit.dataset.x))
    assert len(rows) == len(where)
    model, arrays, parameters = fit.model, tensors(fit.model, fit.dataset), parameter_tensors(fit.parameters)
    z = torch.tensor(fit.sites()["z"].reshape(-1, 40, 1))
    with double():
        p = model.imputation(arrays, z=z, **parameters).probabilities.mean(0).numpy()
    for row, (u, f) in zip(rows, where, strict=True):
        assert row["feature"] == str(f)
        assert row["true category"] in range(N_CATEGORIES)
        assert row["probability"] == pytest.approx(p[u, f, row["category"]], abs=5 * 0.5 / np.sqrt(60))
        assert row["category"] != 1 or f != 0
    right = np.mean([row["category"] == row["true category"] for row in rows])
    text = next(line for item in items if item["kind"] == "text" for line in item["lines"] if "true categories" in line)
    assert f"correct for {right:.0%} of the entries" in text
