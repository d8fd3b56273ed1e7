"""Tests that interrupted fits resume to exactly the same result."""

import numpy as np
import pytest
import torch
from helpers import all_arrays
from safetensors.numpy import load, save

from latentlab.data.load import load_dataset
from latentlab.fit import fit
from latentlab.inference import adam, advi, nuts
from latentlab.inference.batches import batches
from latentlab.inference.density import Density
from latentlab.inference.draws import Draws, _packed, _unpacked
from latentlab.inference.nuts import NUTS, drive
from latentlab.inference.svi import SVI
from latentlab.inference.trajectory import Snapshot, chain
from latentlab.models.ppca import PPCA
from latentlab.models.sparse_gplvm import SparseGPLVM
from latentlab.models.vae import VAE
from latentlab.results.prepare import prepared

METHOD = NUTS(n_chains=3, n_warmup=40, n_draws=20, max_tree_depth=5)


def skewed(points):
    return (points - np.exp(points)).sum(-1), 1 - np.exp(points)


def chains(starts, rngs):
    settings = {"n_warmup": 160, "target_accept": 0.8, "max_depth": 6}
    return [chain(s, np.empty((30, 2)), rng=r, **settings) for s, r in zip(starts, rngs, strict=True)]


@pytest.mark.parametrize("stop", [1, 80, 100, 110, 159, 160, 161, 189])
def test_a_chain_resumes_from_a_snapshot_exactly(stop):
    """Snapshots: in and at the end of the first window, in the last window, at the end of warm-up, and while sampling."""
    starts = [np.array([0.1, -0.3]), np.array([1.0, 0.2])]
    whole = drive(chains(starts, [np.random.default_rng(i) for i in range(2)]), skewed)
    seen = {}

    def watch(i, snapshot):
        if snapshot.iteration == stop:
            seen[i] = {name: array.copy() for name, array in snapshot.arrays().items()}

    drive(chains(starts, [np.random.default_rng(i) for i in range(2)]), skewed, watch)
    kept = [Snapshot.from_arrays(seen[i]) for i in range(2)]
    again = drive(chains(kept, [np.random.default_rng(99) for _ in range(2)]), skewed)
    for one, two in zip(whole, again, strict=True):
        assert one.u.tobytes() == two.u.tobytes()
        for name, values in one.stats.items():
            assert values.tobytes() == two.stats[name].tobytes(), name


@pytest.fixture(scope="module")
def whole():
    return all_arrays(fit(PPCA(2), load_dataset("iris"), METHOD, seed=3, progress=False))


def fit_interrupted_after(monkeypatch, folder, n_calls, error=KeyboardInterrupt):
    """A fit that is stopped at the n-th gradient."""
    gradient, calls = Density.batch_value_and_grad, iter(range(n_calls))

    def stopped(self, points):
        if next(calls, None) is None:
            raise error
        return gradient(self, points)

    with monkeypatch.context() as patch:
        patch.setattr(Density, "batch_value_and_grad", stopped)
        with pytest.raises(error):
            fit(PPCA(2), load_dataset("iris"), METHOD, seed=3, progress=False, checkpoint=folder)


@pytest.mark.parametrize("n_calls", [300, 700, 1100])
def test_an_interrupted_fit_resumes_to_the_same_draws(whole, n_calls, tmp_path, monkeypatch):
    fit_interrupted_after(monkeypatch, tmp_path, n_calls)
    assert (tmp_path / "chains-under-way.safetensors").is_file()
    fit_interrupted_after(monkeypatch, tmp_path, 40)  # and is stopped once more, right after it went on
    again = all_arrays(fit(PPCA(2), load_dataset("iris"), METHOD, seed=3, progress=False, checkpoint=tmp_path))
    for name, array in whole.items():
        assert array.tobytes() == again[name].tobytes(), name


def test_a_killed_fit_resumes_from_periodic_checkpoints(whole, tmp_path, monkeypatch):
    monkeypatch.setattr(nuts, "CHECKPOINT_SECONDS", 0.0)
    fit_interrupted_after(monkeypatch, tmp_path, 900, error=MemoryError)  # nothing is written on the way out
    assert (tmp_path / "chains-under-way.safetensors").is_file()
    again = all_arrays(fit(PPCA(2), load_dataset("iris"), METHOD, seed=3, progress=False, checkpoint=tmp_path))
    for name, array in whole.items():
        assert array.tobytes() == again[name].tobytes(), name


def test_an_interrupt_before_the_first_iteration_leaves_no_checkpoint(tmp_path, monkeypatch):
    fit_interrupted_after(monkeypatch, tmp_path, 1)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "other",
    [
        {"method": SVI(n_steps=31, n_draws=20)},
        {"seed": 4},
        {"model": PPCA(2, W_scale=2.0)},
        {"dataset": load_dataset("iris").subset(range(100))},
    ],
    ids=lambda other: next(iter(other)),
)
def test_checkpoints_of_another_fit_are_not_used(other, tmp_path):
    small = {"model": PPCA(2), "dataset": load_dataset("iris"), "method": SVI(n_steps=30, n_draws=20), "seed": 3}
    fit(**small, progress=False, checkpoint=tmp_path)
    mine = {**small, **other}
    with pytest.warns(UserWarning, match=r"the checkpoint (draws|restart-0).safetensors is damaged or belongs to another fit"):
        found = all_arrays(fit(**mine, progress=False, checkpoint=tmp_path))
    for name, array in all_arrays(fit(**mine, progress=False)).items():
        assert array.tobytes() == found[name].tobytes(), name


ITERATED = [
    (PPCA(2), SVI(n_steps=40, n_draws=20, n_restarts=3), "restarts-0-to-2", (4, 9, 12, 38)),
    (PPCA(2), SVI("mean_field", n_steps=120, n_draws=20, n_restarts=2, batch_size=40, patience=25), "restarts-0-to-1", (30, 70)),
    (
        VAE(2),
        SVI("model", n_steps=120, n_draws=20, n_restarts=2, batch_size=40, held_out=0.1, kl_warmup=20),
        "restart-1",
        (160, 190),
    ),
    (
        SparseGPLVM(2, 10),
        SVI("model", n_steps=120, n_draws=20, n_restarts=2, batch_size=40, n_particles=1),
        "restart-1",
        (160, 190),
    ),
]


@pytest.mark.parametrize(
    ("model", "method", "part", "stops"), ITERATED, ids=["full rank", "mean field", "model", "parameters of units"]
)
def test_interrupted_restarts_resume_to_the_same_result(model, method, part, stops, tmp_path, monkeypatch):
    """Single and batched restarts, interrupted in either half of a full-rank fit or between minibatches."""
    iris = load_dataset("iris")
    expected = all_arrays(fit(model, iris, method, seed=3, progress=False))
    on, n_calls = adam.on, 0

    def stopped(device):
        nonlocal n_calls
        n_calls += 1
        if n_calls in stops:
            raise KeyboardInterrupt
        return on(device)

    with monkeypatch.context() as patch:
        patch.setattr(adam, "on", stopped)
        for _ in stops:
            with pytest.raises(KeyboardInterrupt):
                fit(model, iris, method, seed=3, progress=False, checkpoint=tmp_path)
            assert (tmp_path / f"{part}-under-way.safetensors").is_file()
        again = all_arrays(fit(model, iris, method, seed=3, progress=False, checkpoint=tmp_path))
    steps = method.n_steps * (1 if "to" in part else method.n_restarts)
    assert n_calls <= steps + len(stops), "no step but the interrupted ones is made twice"
    for name, array in expected.items():
        assert array.tobytes() == again[name].tobytes(), name


def test_killed_restarts_resume_from_periodic_checkpoints(tmp_path, monkeypatch):
    model, method, _, _ = ITERATED[0]
    iris, on, calls = load_dataset("iris"), adam.on, iter(range(20))

    def killed(device):
        if next(calls, None) is None:
            raise MemoryError  # nothing is written on the way out
        return on(device)

    monkeypatch.setattr(advi, "CHECKPOINT_SECONDS", 0.0)
    with monkeypatch.context() as patch:
        patch.setattr(adam, "on", killed)
        with pytest.raises(MemoryError):
            fit(model, iris, method, seed=3, progress=False, checkpoint=tmp_path)
    assert (tmp_path / "restarts-0-to-2-under-way.safetensors").is_file()
    expected = all_arrays(fit(model, iris, method, seed=3, progress=False))
    again = all_arrays(fit(model, iris, method, seed=3, progress=False, checkpoint=tmp_path))
    for name, array in expected.items():
        assert array.tobytes() == again[name].tobytes(), name


def test_skipping_batches_gives_the_remaining_sequence(tmp_path):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).standard_normal((90, 3)))
    for dataset in (load_dataset("iris"), load_dataset("file", path=str(tmp_path / "x.npy"), in_memory=False)):
        problem = prepared(PPCA(1), dataset, SVI(batch_size=20, n_steps=30))
        with problem.resources:
            whole = batches(problem, 20, np.random.default_rng(1), n_steps=12)
            rest = batches(problem, 20, np.random.default_rng(1), n_steps=12, skip=7)
            for _ in range(7):
                next(whole)
            for _ in range(5):
                assert all(torch.equal(one, other) for one, other in zip(next(whole), next(rest), strict=True))


def test_draws_survive_saving_and_loading():
    given = Draws(
        values={"z": np.arange(6.0).reshape(1, 3, 2).transpose(0, 2, 1), "a": np.ones((1, 2))},
        stats={"diverging": np.array([[True, False]])},
        optimization={"loss": np.array([[1.0, np.nan, np.inf]])},
        attrs={"how": "L-BFGS", "elbo": -0.1, "n": np.int64(3), "notes": ""},
        parameters={"log_sigma": np.array(0.3), "b": np.zeros((0, 2))},
    )
    again = _unpacked(load(save(_packed(given))))
    assert list(_unpacked(_packed(given)).values) == ["z", "a"]
    assert again.attrs == given.attrs
    for part in ("values", "stats", "optimization", "restarts", "parameters"):
        mine, others = getattr(given, part), getattr(again, part)
        assert set(mine) == set(others)
        for name, array in mine.items():
            np.testing.assert_array_equal(others[name], array)
            assert others[name].dtype == array.dtype
