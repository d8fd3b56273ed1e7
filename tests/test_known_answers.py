"""Tests of fits with known results: eight schools as a plugin, and a factor analysis with three modes."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import norm

import latentlab as ll
from latentlab.data.dataset import Dataset
from latentlab.registry import MODELS, plugins
from latentlab.results.convergence import ess_bulk, mcse_mean, mcse_sd

PLUGIN = Path(__file__).parent / "plugins" / "eight_schools.py"
FALSE_ALARM = 1e-5


@pytest.fixture(scope="module")
def schools(references):
    folder = references / "eight_schools_noncentered"
    data = json.loads((folder / "data.json").read_text())
    dataset = Dataset(
        {"x": np.column_stack([data["y"], data["sigma"]])},
        dims={"x": ("unit", "feature")},
        coords={"unit": list("ABCDEFGH"), "feature": ["effect", "error"]},
        name="eight schools",
    )
    with plugins([PLUGIN]):
        model = MODELS.load("eight_schools")()
    return model, dataset, folder


def test_the_density_of_the_plugin_matches_the_reference(schools):
    model, dataset, folder = schools
    for point in json.loads((folder / "log_density.json").read_text())["points"]:
        mu, tau = (np.array(point["params"][name][0]) for name in ("mu", "tau"))
        e = (np.array(point["params"]["theta"]) - mu) / tau
        found = ll.log_joint(model, dataset, {"mu": mu, "tau": tau, "e": e})
        assert found - 8 * np.log(tau) == pytest.approx(point["log_density"], abs=1e-9)  # theta = mu + tau e


@pytest.mark.slow
def test_eight_schools_matches_the_reference_posterior(schools):
    model, dataset, folder = schools
    exact = json.loads((folder / "exact.json").read_text())["params"]
    result = ll.fit(model, dataset, ll.NUTS(n_chains=4, n_warmup=400, n_draws=1200, target_accept=0.95), seed=0, progress=False)
    sites = result.sites()
    found = {"mu": sites["mu"], "tau": sites["tau"], **{f"theta[{j + 1}]": sites["theta"][..., j] for j in range(8)}}
    limit = norm.isf(FALSE_ALARM / 2 / (2 * len(exact)))
    for name, truth in exact.items():
        x = found[name]
        assert ess_bulk(x) > 1000, name
        assert abs(x.mean() - truth["mean"]) < limit * mcse_mean(x), name
        assert abs(x.std(ddof=1) - truth["sd"]) < limit * mcse_sd(x), name
    with pytest.raises(AssertionError):  # the test would see a mean that is off by a seventh of an sd
        assert abs(found["mu"].mean() + exact["mu"]["sd"] / 7 - exact["mu"]["mean"]) < limit * mcse_mean(found["mu"])
    mine = ll.Embedding("mine", result.latents().values.mean((0, 1)), units=list("ABCDEFGH"))
    comparison = ll.compare(result, [mine], progress=False)
    assert set(comparison.verdicts["verdict"]) <= {"summary-like", "undetermined"}
    assert comparison.verdicts["delta"].max() < 0.3


@pytest.mark.slow
def test_three_modes_are_flagged_and_not_averaged():
    columns = ["ash", "alcalinity_of_ash", "proanthocyanins", "color_intensity", "hue", "proline"]
    dataset = ll.load_dataset("wine", columns=columns)
    method = ll.NUTS(n_chains=8, n_warmup=150, n_draws=150)
    result = ll.fit(ll.models.FactorAnalysis(n_latent=1, mu_scale=0), dataset, method, seed=1, progress=False)
    assert not result.converged
    failed = result.diagnostics().query("verdict == 'fail'")["check"].tolist()
    assert "R-hat" in failed, failed
    rhat = float(result.diagnostics().query("check == 'R-hat' and verdict == 'fail'")["value"].iloc[0])
    assert rhat > 1.3
