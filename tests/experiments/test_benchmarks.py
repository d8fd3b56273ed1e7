"""Tests that the benchmarks run at a small size, check their results and report missing peers."""

import importlib
import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import latentlab as ll

pytestmark = pytest.mark.fixed

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def part(monkeypatch):
    """Imports a module of the benchmarks by name."""
    monkeypatch.syspath_prepend(ROOT)
    return lambda name: importlib.import_module(f"experiments.benchmarks.{name}")


@pytest.fixture
def without_peers(part, monkeypatch):
    """Simulates an environment without the benchmark peers."""
    peers = {"numpyro", "dynamax", "pymc", "nutpie"}
    here = part("harness").is_here
    for name in ("harness", "sampling", "ppca_converged"):
        monkeypatch.setattr(part(name), "is_here", lambda *modules: not peers & set(modules) and here(*modules))


# -- the harness


def test_ratios_compare_the_same_round_and_exceed_1_if_latentlab_is_faster(part):
    times = {
        "latentlab NUTS": np.array([1.0, 4.0, 2.0]),
        "latentlab ChEES": np.array([2.0, 2.0, 4.0]),
        "peer": np.array([3, 4, 8.0]),
    }
    own, other, peer = part("harness").compared("b", "time", "s", times)
    assert (own.value, peer.value, peer.ratio) == (2.0, 4.0, 3.0)  # of 3 / 1, 4 / 2 and 8 / 2 per round: median 3
    assert math.isnan(own.ratio)
    assert math.isnan(other.ratio)
    assert peer.spread == "3 to 8"
    *_, peer = part("harness").compared("b", "ESS per second", "1/s", times, better="more")
    assert peer.ratio == 2 / 3  # the best of latentlab's by round 2, 4, 4: of 2 / 3, 4 / 4 and 4 / 8 the median is 2 / 3


def test_programs_are_timed_alternately(part):
    seen = []
    sides = {name: (lambda i, name=name: float(seen.append((name, i)) or 1.0)) for name in ("latentlab", "peer")}
    part("harness").in_turn("b", "time", "s", sides, n_rounds=2)
    assert seen == [("latentlab", 0), ("peer", 0), ("latentlab", 1), ("peer", 1)]


def test_programs_with_different_results_are_refused(part):
    harness = part("harness")
    row = harness.same_up_to_a_constant("b", "peer", [1.0, 2.0, 3.0], [11.0, 12.0, 13.0])
    assert row.value == 0.0
    with pytest.raises(harness.DisagreementError, match="b, peer"):
        harness.same_up_to_a_constant("b", "peer", [1.0, 2.0, 3.0], [11.0, 12.0, 13.001])
    with pytest.raises(harness.DisagreementError):
        harness.agreed("b", "peer", "what", math.nan, 1.0, "nats")


def test_posterior_means_that_differ_are_refused(part):
    # 6 quantities of independent draws: a gap above 5 MCSE has a chance of 4e-6
    rng = np.random.default_rng(0)
    ours, theirs = rng.standard_normal((2, 4, 500, 6))
    harness = part("harness")
    assert harness.same_means("b", "peer", ours, theirs).value < 5
    theirs[..., 3] += 0.3
    with pytest.raises(harness.DisagreementError, match="posterior means"):
        harness.same_means("b", "peer", ours, theirs)


def test_a_benchmark_writes_table_csv_and_plot_and_reports_failures(part, tmp_path, monkeypatch, capsys):
    main, harness = part("__main__"), part("harness")
    row = harness.Row("one", "peer", "time", 2.0, "s", "1 to 3", 4.0)
    failed = harness.Row("two", "", "failed: no reason", math.nan, "")
    monkeypatch.setattr(main, "measured", lambda name, size: [row if name == "startup" else failed])
    with pytest.raises(SystemExit):
        main.main(["--only", "startup", "svi_vae", "--out", str(tmp_path)])
    assert "| one | peer | time | 2 | s | 1 to 3 | 4 |" in capsys.readouterr().out
    assert (tmp_path / "results.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert "torch 2" in (tmp_path / "results.md").read_text()
    assert pd.read_csv(tmp_path / "results.csv").columns.tolist() == list(harness.COLUMNS)


@pytest.mark.slow
def test_each_benchmark_runs_in_its_own_process(part, tmp_path):
    (row, *_) = rows = part("__main__").measured("ppca_many_rows", "tiny")
    assert row.what.startswith("check")
    assert math.isfinite(rows[-1].value)
    out = tmp_path / "rows.json"
    part("__main__").main(["--here", "ppca_many_rows", "--size", "tiny", "--out", str(out)])
    assert len(json.loads(out.read_text())) == len(rows)


# -- the benchmarks


@pytest.mark.slow
def test_a_table_on_disk_is_compared_with_a_small_one(part):
    found = {row.what: row.value for row in part("minibatches_on_disk").rows("tiny")}
    assert found["check: batches from disk and from memory"] <= 1e-12
    for side in ("2,000 rows on disk", "20,000 rows on disk", "2,000 rows in memory"):
        assert found[f"a step, CPU, {side}"] > 0
    assert 0.1 < found["peak memory with 20,000 rows"] < 1.5
    assert found["a step with 20,000 rows over one with 2,000, cpu"] > 0


@pytest.mark.slow
def test_an_epoch_is_timed_by_one_and_by_two_processes(part):
    check, one, two, ratio, *cpu = part("svi_processes").rows("tiny")
    assert check.what.startswith("check")
    assert one.value > 0
    assert ratio.value == pytest.approx(one.value / two.value)  # of one round
    assert [row.value > 0 for row in cpu] == [True] * 3


@pytest.mark.slow
def test_draws_on_disk_are_those_in_memory(part):
    found = {row.what: row.value for row in part("draws_on_disk").rows("tiny")}
    assert found["check: bytes of the results with and without a limit"] == 0
    assert all(value > 0 for what, value in found.items() if not what.startswith("check"))


@pytest.mark.parametrize("name", ["svi_mixture", "svi_vae", "hmm_point_fit"])
def test_benchmarks_run_with_the_installed_peers(part, name):
    rows = part(name).rows("tiny")
    assert any(row.what.startswith("check") for row in rows)
    assert any(row.side.startswith("latentlab") and np.isfinite(row.value) for row in rows)
    assert any(np.isfinite(row.ratio) for row in rows), "a difference of two times can be negative on a busy machine"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ppca_sampling", "mixture_sampling", "hmm_sampling"])
def test_benchmarks_run_without_peers(part, without_peers, name):
    rows = part(name).rows("tiny")
    assert any(row.what == "not measured: numpyro is not installed" for row in rows)
    assert any(row.what.endswith("warm-up and sampling") and row.value > 0 for row in rows)


@pytest.mark.slow
def test_a_whole_process_is_timed_and_its_draws_are_checked(part, without_peers):
    rows = {(row.side, row.what): row for row in part("ppca_converged").rows("tiny")}
    assert ("PyMC with nutpie", "not measured: pymc, nutpie is not installed") in rows
    assert rows["latentlab NUTS", "criterion not met with 5 draws per chain"].value > 0


def test_the_criterion_requires_mixing_and_enough_effective_draws(part):
    rng = np.random.default_rng(0)
    values = {"W": 3 + rng.standard_normal((4, 500, 5, 2)), "sigma": rng.uniform(1, 2, (4, 500))}
    assert part("ppca_converged").is_enough(values)
    assert not part("ppca_converged").is_enough({name: value[:, :80] for name, value in values.items()})
    values["sigma"][0] += 1
    assert not part("ppca_converged").is_enough(values)


def test_compared_quantities_are_label_free(part):
    rng = np.random.default_rng(0)
    values = {
        "weights": rng.dirichlet([1, 1, 1], (2, 4)),
        "mu": rng.standard_normal((2, 4, 3, 2)),
        "sigma": rng.random((2, 4, 3, 2)),
    }
    other = {name: value[:, :, [2, 0, 1]] for name, value in values.items()}
    np.testing.assert_array_equal(part("mixture_sampling").label_free(values), part("mixture_sampling").label_free(other))
    states = {"transition": rng.dirichlet([1, 1, 1], (2, 4, 3)), "mu": values["mu"][..., :1], "sigma": values["sigma"][..., :1]}
    other = {name: value[:, :, [2, 0, 1]] for name, value in states.items()}
    other["transition"] = other["transition"][..., [2, 0, 1]]
    np.testing.assert_array_equal(part("hmm_sampling").label_free(states), part("hmm_sampling").label_free(other))


def test_the_closed_form_loss_equals_the_mean_over_draws(part):
    # 2000 draws: a gap above 5 standard errors has a chance of 6e-7
    vae = part("svi_vae")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module, x = vae.ByHand(6).double(), torch.randn(20, 6, dtype=torch.float64)
        noise = torch.randn(2000, 20, vae.N_LATENT, dtype=torch.float64)
    with torch.no_grad():
        gaps = np.array([float(module.loss(x, e, closed=False) - module.loss(x, e)) for e in noise])
    assert abs(gaps.mean()) < 5 * gaps.std() / np.sqrt(len(gaps))


def test_chains_are_timed_with_and_without_warm_up(part):
    own, ppca = part("own"), part("ppca")
    chains = own.Chains(ppca.own_model(), ppca.wine(), ll.NUTS(n_chains=2, n_warmup=3, n_draws=5))
    first, again = chains.sample(1), chains.sample(1)
    assert first.whole > 0
    assert not first.sampling > first.whole
    np.testing.assert_array_equal(first.values["W"], again.values["W"])


@pytest.mark.slow
def test_missing_and_complete_data_are_timed(part):
    rows = part("ppca_missing").rows("tiny")
    assert sum(row.what.startswith("check") for row in rows) == 4
    ratios = [row.value for row in rows if row.unit == "times"]
    assert len(ratios) == 8
    assert np.isfinite(ratios).all()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_costs_of_sweeps_are_measured(part):
    rows = part("sweeps").rows("tiny")
    assert len(rows) == 5
    assert all(row.value > 0 for row in rows)
