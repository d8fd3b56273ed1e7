"""Tests of minibatches from memory and disk, and of fits of tables on disk."""

import os
import threading
from concurrent.futures import CancelledError
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import memory_and_disk

import latentlab as ll
from latentlab.data import memory, rows, stored
from latentlab.data.dataset import Dataset
from latentlab.data.load import load_dataset
from latentlab.data.rows import Rows
from latentlab.errors import ConfigError, DataError, ModelError
from latentlab.fit import fit
from latentlab.inference import batches as module
from latentlab.inference.batches import THREAD, batches, log_prob_of_draws
from latentlab.inference.lift import over_draws
from latentlab.inference.svi import SVI
from latentlab.models.gaussian_mixture import GaussianMixture
from latentlab.models.ppca import PPCA
from latentlab.models.sparse_gplvm import SparseGPLVM
from latentlab.models.vae import VAE
from latentlab.results.prepare import prepared

METHOD = SVI(guide="mean_field", batch_size=32, n_steps=40, n_draws=30)
FITS = {
    "ppca": (PPCA(2), METHOD),
    "ppca, full rank": (PPCA(2), replace(METHOD, guide="full_rank")),
    "factor analysis": (ll.models.FactorAnalysis(2), replace(METHOD, guide="low_rank")),
    "mixture": (GaussianMixture(2), METHOD),
    "vae": (VAE(2, hidden=(8,)), replace(METHOD, guide="model", n_particles=2)),
    "sparse gplvm": (SparseGPLVM(2, 8), replace(METHOD, guide="model", n_particles=2)),
}


@pytest.fixture
def saved(tmp_path):
    """A table of 300 units in a file."""

    def save(missing=0.0):
        rng = np.random.default_rng(0)
        x = rng.standard_normal((300, 2)) @ rng.standard_normal((2, 6)) + 0.5 * rng.standard_normal((300, 6)) + 3
        x[rng.random(x.shape) < missing] = np.nan
        np.save(tmp_path / "mine.npy", x.astype(np.float32))
        return str(tmp_path / "mine.npy")

    return save


def reading():
    return [thread.name for thread in threading.enumerate() if thread.name.startswith(THREAD)]


# -- which rows, in which order


def test_incomplete_last_batches_are_skipped(iris):
    problem = prepared(PPCA(2), iris, SVI(), progress=False)
    found = batches(problem, 149, np.random.default_rng(0))
    sizes = [len(next(found)[0]) for _ in range(4)]
    assert sizes == [149] * 4  # never a batch of one
    third = batches(problem, 50, np.random.default_rng(0))
    seen = np.concatenate([next(third)[0].numpy() for _ in range(3)])
    np.testing.assert_array_equal(np.sort(seen, axis=0), np.sort(iris.arrays["x"], axis=0))


def test_each_epoch_is_shuffled_anew(iris):
    found = batches(prepared(PPCA(2), iris, SVI(), progress=False), 50, np.random.default_rng(0))
    one, two = (torch.cat([next(found)[0] for _ in range(3)]) for _ in range(2))
    assert not torch.equal(one, two)
    np.testing.assert_array_equal(one.sort(0).values, two.sort(0).values)


@pytest.mark.parametrize("window", [1, 6 * 4 * 50, 2**27], ids=["a batch", "few batches", "epochs"])
@pytest.mark.parametrize("reach", [1, 10**6], ids=["row by row", "block by block"])
@pytest.mark.parametrize("missing", [0.0, 0.2])
@pytest.mark.parametrize("n_steps", [None, 7])
def test_batches_from_disk_equal_those_from_memory(saved, window, reach, missing, n_steps, monkeypatch):
    monkeypatch.setattr(module, "WINDOW", window)
    monkeypatch.setattr(rows, "REACH", reach)
    monkeypatch.setattr(rows, "SPAN", 6 * 4 * 37)
    problems = [prepared(PPCA(2), data, METHOD, progress=False) for data in memory_and_disk(saved(missing))]
    one, two = (batches(p, 32, np.random.default_rng(5), n_steps=n_steps) for p in problems)
    for _ in range(25):  # nine batches an epoch
        for a, b in zip(next(one), next(two), strict=True):
            assert a.dtype == b.dtype
            assert torch.equal(a, b)
    two.close()
    assert not reading()


def test_no_rows_beyond_the_number_of_steps_are_read(saved, monkeypatch):
    asked = []
    take = Rows.take

    def seen(self, index, *rest):
        asked.append(len(index) // 32)
        return take(self, index, *rest)

    monkeypatch.setattr(Rows, "take", seen)
    problem = prepared(PPCA(2), memory_and_disk(saved())[1], METHOD, progress=False)
    asked.clear()
    found = batches(problem, 32, np.random.default_rng(0), n_steps=20)
    for _ in range(20):
        next(found)
    found.close()
    assert asked == [1, 8, 11]


def test_rows_of_large_chunks_are_read_in_large_windows(saved, monkeypatch):
    monkeypatch.setattr(rows, "REACH", 10**9)
    asked, take = [], Rows.take
    problem = prepared(PPCA(2), memory_and_disk(saved())[1], METHOD, progress=False)
    monkeypatch.setattr(Rows, "take", lambda self, index, *rest: asked.append(len(index) // 32) or take(self, index, *rest))
    found = batches(problem, 32, np.random.default_rng(0), n_steps=20)
    for _ in range(21):
        next(found)
    found.close()
    assert asked == [20, 1]


# -- fits


@pytest.mark.parametrize("missing", [0.0, 0.2])
@pytest.mark.parametrize("name", sorted(FITS))
def test_a_fit_from_disk_equals_the_fit_from_memory(saved, name, missing):
    model, method = FITS[name]
    one, two = (fit(model, data, method, seed=3, progress=False).data for data in memory_and_disk(saved(missing)))
    assert set(one.children) == set(two.children)
    for group in one.children:
        for site, array in one[group].data_vars.items():
            assert array.values.tobytes() == two[group][site].values.tobytes(), (group, site)
    assert two.attrs["n_units_fitted"] == 300


@pytest.mark.parametrize("missing", [0.0, 0.2])
def test_a_fit_from_zarr_equals_the_fit_from_memory(saved, missing):
    zarr = pytest.importorskip("zarr")
    path = Path(saved(missing))
    zarr.create_array(path.with_suffix(".zarr"), data=np.load(path), chunks=(47, 6))
    lazy = load_dataset("file", path=str(path.with_suffix(".zarr")), in_memory=False)
    one, two = (fit(PPCA(2), data, METHOD, progress=False).data for data in (load_dataset("file", path=str(path)), lazy))
    for group in one.children:
        for site, array in one[group].data_vars.items():
            assert array.values.tobytes() == two[group][site].values.tobytes(), (group, site)
    assert not reading()


def test_ppca_from_disk_with_the_models_guide_and_restarts(saved):
    method = replace(METHOD, guide="model", n_restarts=2)
    one, two = (fit(PPCA(2), data, method, progress=False).data for data in memory_and_disk(saved()))
    for name in ("W", "mu", "sigma"):
        assert one["posterior"][name].values.tobytes() == two["posterior"][name].values.tobytes()
    np.testing.assert_allclose(one["sample_stats"]["lp"], two["sample_stats"]["lp"], rtol=1e-12)


@pytest.mark.parametrize("model", [PPCA(2), GaussianMixture(3)], ids=["ppca", "mixture"])
@pytest.mark.parametrize("missing", [0.0, 0.2])
def test_blockwise_densities_equal_those_of_all_units(saved, model, missing, monkeypatch):
    monkeypatch.setattr(stored, "N_SAMPLE", 40)
    monkeypatch.setattr(memory, "BLOCK", 6 * 70)
    whole, lazy = (prepared(model, data, METHOD, progress=False) for data in memory_and_disk(saved(missing), standardize=False))
    u = np.random.default_rng(0).normal(size=(9, whole.density.size)) / 3
    expected = over_draws(lambda v: whole.density.log_prob(v["u"]), {"u": u})
    np.testing.assert_allclose(log_prob_of_draws(lazy, u), expected, rtol=1e-12)
    monkeypatch.setattr(module, "ROOM", 1)
    np.testing.assert_allclose(log_prob_of_draws(lazy, u), expected, rtol=1e-12)


@pytest.mark.parametrize(("missing", "at_once"), [("none", module.MOST_DRAWS), ("one", module.MOST_DRAWS), ("many", 10)])
def test_draws_are_computed_in_batches_that_fit_into_memory(missing, at_once, monkeypatch):
    """PPCA needs only the moments of rows with the same missing entries, for any number of draws."""
    x = np.random.default_rng(0).normal(size=(8192, 20))
    if missing == "one":
        x[0, 0] = np.nan
    if missing == "many":  # the later rows have patterns of their own
        x[4096:][np.random.default_rng(1).random((4096, 20)) < 0.5] = np.nan
    monkeypatch.setattr(module, "ROOM", 4150 * 20 * 10)
    problem = prepared(PPCA(1), Dataset({"x": x}, dims={"x": ("unit", "feature")}), METHOD, progress=False)
    rows = tuple(problem.arrays[name] for name in problem.density.point_arrays())
    assert module._at_once(problem.density, rows, np.zeros((1, problem.density.size))) == at_once


def test_latents_cover_the_sample_and_parameters_use_all_units(saved, monkeypatch):
    monkeypatch.setattr(stored, "N_SAMPLE", 50)
    whole, lazy = memory_and_disk(saved(), standardize=False)
    method = replace(METHOD, n_steps=1500, n_draws=200)
    one, two = (fit(PPCA(2), data, method, progress=False) for data in (whole, lazy))
    assert two.dataset is lazy.sample
    assert dict(two.data["latents"].sizes)["unit"] == two.data["log_likelihood"].sizes["unit"] == 50
    np.testing.assert_array_equal(two.data["observed_data"]["unit"], lazy.sample.units)
    sd = one.data["posterior"]["mu"].std(("chain", "draw"))
    gap = abs(one.data["posterior"]["mu"].mean(("chain", "draw")) - two.data["posterior"]["mu"].mean(("chain", "draw"))) / sd
    assert float(gap.max()) < 1.0  # sds of the posterior of 300 units; 50 units alone give others
    np.testing.assert_allclose(two.data["sample_stats"]["lp"].mean(), one.data["sample_stats"]["lp"].mean(), rtol=0.02)
    new = lazy.subset([7, 250])
    assert two.latents(new).sizes["unit"] == 2
    assert len(two.loo().pointwise) == 50
    with pytest.raises(ModelError, match="log likelihood of all 300 units; it is stored for 50"):
        two.sensitivity()
    assert len(one.sensitivity())


def test_elbo_drift_is_per_unit_of_the_whole_table(saved, monkeypatch):
    monkeypatch.setattr(stored, "N_SAMPLE", 50)
    model, method = FITS["vae"]
    found = fit(model, memory_and_disk(saved())[1], replace(method, n_steps=400), progress=False)
    loss = found.data["optimization"]["loss"].values[0]
    from latentlab.results.variational_checks import elbo_drift

    row = found.diagnostics().set_index("check").loc["ELBO drift"]
    assert row["value"] == pytest.approx(elbo_drift(loss)[0] / 300)


def test_methods_that_need_all_units_in_memory_are_refused(saved, monkeypatch):
    lazy = memory_and_disk(saved())[1]
    for method in (ll.NUTS(), ll.MAP(), ll.Exact(), SVI(guide="mean_field")):
        with pytest.raises(ConfigError, match="mine is on disk, so the method must be `SVI` with a `batch_size`; got"):
            fit(PPCA(2), lazy, method, progress=False)
    with pytest.raises(ConfigError, match="keep held-out units in a separate file"):
        fit(FITS["vae"][0], lazy, replace(FITS["vae"][1], held_out=0.1), progress=False)
    with pytest.raises(ModelError, match="has both global sites and the site 'z' of each unit"):
        fit(PPCA(2, marginalize=False), lazy, replace(METHOD, guide="model"), progress=False)
    with pytest.raises(ConfigError, match="at most the 300 units; got 301"):
        fit(PPCA(2), lazy, replace(METHOD, batch_size=301), progress=False)
    with pytest.raises(DataError, match="mine stays on disk, but `x` requires data in memory"):
        ll.embed("pca", lazy)


def test_invalid_values_outside_the_sample_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(stored, "N_SAMPLE", 20)
    x = np.random.default_rng(0).integers(0, 2, (300, 4)).astype(np.float32)
    model, method = VAE(1, hidden=(4,), likelihood="bernoulli"), replace(FITS["vae"][1], batch_size=20)
    for value in (2.0, 0.5, -1.0):
        x[123, 2] = value
        np.save(tmp_path / "bits.npy", x)
        lazy = load_dataset("file", path=str(tmp_path / "bits.npy"), in_memory=False, standardize=False)
        assert 123 not in lazy.sample.units
        with pytest.raises(DataError, match=r"column '2', unit '123' must be 0 or 1 for the likelihood 'bernoulli'; got "):
            prepared(model, lazy, method, progress=False)


def test_missing_entries_outside_the_sample_are_masked(tmp_path, monkeypatch):
    monkeypatch.setattr(stored, "N_SAMPLE", 20)
    x = np.random.default_rng(0).standard_normal((300, 4)).astype(np.float32)
    x[123, 2] = np.nan
    np.save(tmp_path / "one.npy", x)
    lazy = load_dataset("file", path=str(tmp_path / "one.npy"), in_memory=False)
    assert lazy.sample.mask is None
    problem = prepared(PPCA(1), lazy, METHOD, progress=False)
    found = batches(problem, 100, np.random.default_rng(0))
    masks = torch.cat([next(found)[1] for _ in range(3)])
    assert int((~masks).sum()) == 1
    assert bool((~masks)[:, 2].any())
    assert np.isfinite(fit(PPCA(1), lazy, METHOD, progress=False).data["sample_stats"]["lp"]).all()


# -- the thread


def test_the_reading_thread_ends_with_the_fit(saved):
    fit(PPCA(2), memory_and_disk(saved())[1], METHOD, progress=False)
    assert not reading()


@pytest.mark.parametrize("stop", [KeyboardInterrupt, RuntimeError])
def test_the_reading_thread_ends_when_the_fit_is_stopped(saved, stop, monkeypatch):
    from latentlab.inference import adam

    plain = adam.Adam.scale

    def failing(self, step):
        if step == 3:
            assert reading()
            raise stop
        return plain(self, step)

    monkeypatch.setattr(adam.Adam, "scale", failing)
    kept = None
    try:
        fit(PPCA(2), memory_and_disk(saved())[1], METHOD, progress=False)
    except stop as error:
        kept = error  # its traceback holds the generator of the batches
    assert kept is not None
    assert not reading()


def test_errors_in_the_reading_thread_are_raised_by_the_fit(saved, monkeypatch):
    path = saved()
    lazy = memory_and_disk(path)[1]
    monkeypatch.setattr(module, "WINDOW", 1)
    prepared_fit = prepared(PPCA(2), lazy, METHOD, progress=False)
    found = batches(prepared_fit, 32, np.random.default_rng(0))
    next(found)
    os.utime(path, ns=(0, 0))
    with pytest.raises(DataError, match="was changed after it was opened"):
        [next(found) for _ in range(3)]
    assert not reading()


def test_a_cancelled_read_stops_early(saved):
    lazy = memory_and_disk(saved())[1]
    calls = []
    with pytest.raises(CancelledError):
        lazy.read(np.arange(0, 300, 2), lambda: bool(calls.append(1)) or len(calls) > 0)
    assert len(calls) == 1
