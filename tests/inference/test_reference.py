"""Tests of methods against a reference: Bayesian PPCA of iris, sampled by another program."""

import json

import numpy as np
import pytest
from scipy.stats import norm

from latentlab.fit import fit
from latentlab.inference.chees import ChEES
from latentlab.inference.nuts import NUTS
from latentlab.inference.svi import SVI
from latentlab.models.ppca import PPCA
from latentlab.results.convergence import ess_bulk, ess_tail, mcse_mean, mcse_sd, rhat

FALSE_ALARM = 1e-5  # of one test, over all its quantities


@pytest.fixture(scope="module")
def reference(references):
    return json.loads((references / "bppca_iris_q2" / "reference.json").read_text())["params"]


def quantities(sites, names):
    """The reported quantities `(chain, draw)` by name; eigenvalues of W W^T ascending."""
    W, sigma = sites["W"], sites["sigma"]
    C = W @ W.swapaxes(-1, -2) + sigma[..., None, None] ** 2 * np.eye(4)
    eigenvalues = np.linalg.eigvalsh(W.swapaxes(-1, -2) @ W)
    found = {}
    for name in names:
        if name.startswith("C["):
            i, j = (int(k) - 1 for k in name[2:-1].split(","))
            found[name] = C[..., i, j]
        else:
            found[name] = sigma if name == "sigma" else eigenvalues[..., int(name.split("[")[1][:-1]) - 1]
    return found


def assert_agrees(found, reference):
    """Means and sds within their joint Monte Carlo error, two-sided, Bonferroni over all of them."""
    limit = norm.isf(FALSE_ALARM / 2 / (2 * len(found)))
    for name, x in found.items():
        ref = reference[name]
        z = (x.mean() - ref["mean"]) / np.hypot(mcse_mean(x), ref["mcse_mean"])
        assert abs(z) < limit, f"mean of {name}: {x.mean():.4f}, reference {ref['mean']:.4f}, z = {z:.1f}"
        z = (x.std(ddof=1) - ref["sd"]) / np.hypot(mcse_sd(x), ref["mcse_sd"])
        assert abs(z) < limit, f"sd of {name}: {x.std():.4f}, reference {ref['sd']:.4f}, z = {z:.1f}"


@pytest.mark.slow
def test_ppca_by_nuts_matches_the_reference(iris, reference):
    """Uses machine code; ChEES below uses the captured graph. Draws with 10% too small sds would be detected."""
    method = NUTS(n_chains=4, n_warmup=500, n_draws=1500, target_accept=0.9, compiled=True)
    result = fit(PPCA(2, mu_scale=0), iris, method, seed=1, progress=False)
    found = quantities(result.sites(), reference)
    assert_agrees(found, reference)
    for name, x in found.items():
        assert rhat(x) < 1.01, name
        assert min(ess_bulk(x), ess_tail(x)) > 1000, name
    assert result.converged, result.diagnostics().query("verdict == 'fail'")
    assert_detects_errors(found, reference, narrower=0.9)


def assert_detects_errors(found, reference, narrower):
    """Checks that wrong posteriors are detected: sigma^2 in place of sigma, and narrower draws."""
    with pytest.raises(AssertionError, match="mean of"):
        assert_agrees({"sigma": found["sigma"] ** 2}, reference)
    narrow = {name: x.mean() + narrower * (x - x.mean()) for name, x in found.items()}
    with pytest.raises(AssertionError, match="sd of"):
        assert_agrees(narrow, reference)


@pytest.mark.slow
def test_ppca_by_chees_matches_the_reference(iris, reference):
    """Draws with 10% too small sds would be detected."""
    result = fit(PPCA(2, mu_scale=0), iris, ChEES(), seed=1, progress=False)
    found = quantities(result.sites(), reference)
    assert_agrees(found, reference)
    assert min(ess_bulk(x) for x in found.values()) > 2500  # of 12 800 draws
    assert result.converged, result.diagnostics().query("verdict == 'fail'")
    assert_detects_errors(found, reference, narrower=0.9)


def sd_ratios(result, reference):
    found = quantities(result.sites(), reference)
    return {name: x.std(ddof=1) / reference[name]["sd"] for name, x in found.items()}


@pytest.mark.slow
def test_full_rank_svi_matches_the_reference_sds_and_mean_field_does_not(iris, reference):
    fits = {
        guide: fit(PPCA(2, mu_scale=0), iris, SVI(guide=guide, n_steps=3000, n_draws=20_000), seed=0, progress=False)
        for guide in ("full_rank", "mean_field", "low_rank")
    }
    ratios = {guide: sd_ratios(result, reference) for guide, result in fits.items()}
    assert all(0.8 < r < 1.25 for r in ratios["full_rank"].values()), ratios["full_rank"]
    assert not all(0.8 < r < 1.25 for r in ratios["mean_field"].values()), ratios["mean_field"]
    for name, x in quantities(fits["mean_field"].sites(), reference).items():  # its means do not show it
        assert abs(x.mean() - reference[name]["mean"]) < 0.5 * reference[name]["sd"], name
    khat = {guide: _khat(result) for guide, result in fits.items()}
    assert khat["full_rank"] < 0.7 < khat["mean_field"], khat
    assert khat["low_rank"] < khat["mean_field"], khat


def _khat(result):
    table = result.diagnostics()
    row = table[table["check"].str.contains("k-hat") & table["quantity"].str.contains("averaged")]
    assert len(row) == 1, table
    return float(row["value"].iloc[0])
