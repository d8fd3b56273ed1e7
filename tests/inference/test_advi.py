"""Tests that batched restarts equal sequential ones, each with its own noise, failure and stopping time."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal

from latentlab.data.dataset import Dataset
from latentlab.errors import InferenceError
from latentlab.fit import fit
from latentlab.inference import advi, svi, whitening
from latentlab.inference.adam import pack
from latentlab.inference.advi import fit_restarts
from latentlab.inference.arrays import tensors
from latentlab.inference.capture import mean_size
from latentlab.inference.density import Density
from latentlab.inference.draws import Problem
from latentlab.inference.guides import FullRank, MeanField
from latentlab.inference.svi import SVI
from latentlab.models.ppca import PPCA
from latentlab.seeds import Seeds, double


def problem_of(model, dataset, checkpoint=None):
    arrays = tensors(model, dataset)
    return Problem(model, arrays, Density(model, arrays, dataset.array_dims), Seeds(0), progress=False, checkpoint=checkpoint)


@pytest.mark.parametrize(
    "settings",
    [
        {"guide": "full_rank"},
        {"guide": "mean_field", "batch_size": 40},
        {"guide": "low_rank"},
    ],
    ids=lambda one: one["guide"],
)
def test_batched_restarts_equal_sequential_ones(settings, iris, monkeypatch):
    method = SVI(n_steps=60, n_draws=8, n_restarts=3, **settings)
    sizes = []
    descend = advi._descend
    monkeypatch.setattr(advi, "_descend", lambda *a: sizes.append(len(a[2])) or descend(*a))
    together = fit_restarts(problem_of(PPCA(2), iris), method)
    assert set(sizes) == {3}
    monkeypatch.setattr(advi, "SMALL", 0)
    apart = fit_restarts(problem_of(PPCA(2), iris), method)
    assert set(sizes) == {1, 3}
    for one, two in zip(together, apart, strict=True):
        assert set(one) == set(two)
        for name, values in one.items():
            np.testing.assert_allclose(values, two[name], rtol=1e-7, atol=1e-9, err_msg=name)
    assert np.abs(together[0]["loc"] - together[1]["loc"]).max() > 0.01


def test_large_operations_are_not_batched():
    rows = np.random.default_rng(0).normal(size=(4000, 3))
    dataset = Dataset({"x": rows}, dims={"x": ("unit", "feature")}, name="rows")
    few = Dataset({"x": rows[:30]}, dims={"x": ("unit", "feature")}, name="few")
    method = SVI(guide="mean_field", n_restarts=2)
    with double():
        assert not advi._small(problem_of(PPCA(1, marginalize=False), dataset), method)
        assert advi._small(problem_of(PPCA(1, marginalize=False), few), method)


def test_mean_size_averages_over_operations():
    def function(x):
        return (x * 2 + 1).sum()

    assert mean_size(function, torch.ones(10)) == pytest.approx((10 + 10 + 1) / 3)
    assert mean_size(lambda x: x[: int(x.sum())] if float(x[0]) > 0 else x, torch.ones(3)) == np.inf


def test_each_restart_stops_when_its_loss_no_longer_decreases(iris):
    method = SVI(guide="mean_field", n_steps=3000, n_draws=4, n_restarts=3, patience=100, learning_rate=0.05)
    runs = fit_restarts(problem_of(PPCA(1), iris), method)
    lengths = [len(run["loss"]) for run in runs]
    assert len(set(lengths)) > 1
    assert max(lengths) < 3000
    assert lengths[0] < max(lengths)  # the first is stopped while others go on, and is as it would be alone
    alone = fit_restarts(problem_of(PPCA(1), iris), replace(method, n_restarts=1))
    assert len(alone[0]["loss"]) == lengths[0]
    np.testing.assert_allclose(alone[0]["loc"], runs[0]["loc"], rtol=1e-6, atol=1e-8)


def test_the_frame_of_a_normal_density_is_its_mean_and_covariance(monkeypatch):
    """From a distant guide, Newton's step finds the mean and covariance of a normal density."""
    covariance = torch.tensor([[1.0, 1.8, 0.0], [1.8, 4.0, 0.05], [0.0, 0.05, 0.01]], dtype=torch.float64)
    mean, precision = torch.tensor([3.0, -40.0, 0.5], dtype=torch.float64), torch.linalg.inv(covariance)
    monkeypatch.setattr(whitening, "log_p_of", lambda density, rows: lambda u: -0.5 * (u - mean) @ precision @ (u - mean))
    with double():
        frame = whitening.whitening_frame(None, MeanField(torch.zeros(3)), None, ())
    torch.testing.assert_close(frame.center, mean, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(frame.matrix @ frame.matrix.mT, covariance, rtol=1e-4, atol=1e-6)
    eigh = torch.linalg.eigh
    monkeypatch.setattr(torch.linalg, "eigh", lambda matrix: (eigh(matrix)[0], eigh(matrix)[1] * torch.tensor([1.0, -1.0, 1.0])))
    with double():
        other = whitening.whitening_frame(None, MeanField(torch.zeros(3)), None, ())
    torch.testing.assert_close(other.matrix, frame.matrix)  # does not depend on the signs of eigenvectors


def test_the_frame_of_many_coordinates_needs_few_gradients(monkeypatch):
    """Central differences at all draws would need 10 560 gradients in each of two rounds for 660 coordinates."""
    scale, n_points = torch.linspace(0.1, 10.0, 660, dtype=torch.float64), []
    monkeypatch.setattr(whitening, "log_p_of", lambda density, rows: lambda u: -0.5 * ((u - 3.0) / scale).square().sum())
    over_draws = whitening.over_draws

    def counted(function, values, **options):
        n_points.append(len(values["u"]))
        return over_draws(function, values, **options)

    monkeypatch.setattr(whitening, "over_draws", counted)
    with double():
        frame = whitening.whitening_frame(None, MeanField(torch.zeros(660)), None, ())
    assert sum(n_points) <= 2 * 10_560 / 5
    torch.testing.assert_close(frame.center, torch.full_like(scale, 3.0), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(frame.matrix @ frame.matrix.mT, torch.diag(scale**2), rtol=1e-3, atol=1e-3)


def test_the_density_includes_the_jacobian_and_scales_minibatches(iris):
    """Compares with the unconstrained density; the mean over the batches of an epoch is the full density."""
    density = problem_of(PPCA(2), iris).density
    u = torch.linspace(-1, 1, density.size, dtype=torch.float64)
    whole = float(advi.log_p_of(density, ())(u))
    assert whole == pytest.approx(float(density.log_prob(u)), rel=1e-12)
    assert abs(whole - float(density.log_joint(density.constrain(u)))) > 0.1
    rows = density.arrays["x"].split(50)
    parts = [float(advi.log_p_of(density, (part,))(u)) for part in rows]
    assert np.mean(parts) == pytest.approx(whole, rel=1e-12)


def test_the_loss_is_the_mean_of_log_q_minus_log_p_in_any_frame(monkeypatch):
    """Compares with SciPy's densities, for a normal density and a full-rank guide in a frame."""
    rng = np.random.default_rng(0)
    center, matrix, noise, lower = (rng.normal(size=size) for size in (2, (2, 2), (5, 2), (2, 2)))
    guide = FullRank.from_arrays({"loc": rng.normal(size=2), "log_scale": rng.normal(size=2), "lower": lower})
    monkeypatch.setattr(advi, "log_p_of", lambda density, rows: lambda u: -0.5 * (u * u).sum() - math.log(2 * math.pi))
    parts = (center, matrix, np.linalg.slogdet(matrix)[1])
    frame = [torch.tensor(part)[None] for part in parts]
    vector = pack(guide.parameters)[None]
    with double():
        found = advi._losses(None, guide, framed=True)(vector, torch.from_numpy(noise)[None], *frame)
    root = matrix @ np.diag(np.exp(guide.parameters[1].numpy())) @ (np.tril(lower, -1) + np.eye(2))
    loc = center + matrix @ guide.parameters[0].numpy()
    u = loc + noise @ root.T
    expected = multivariate_normal(loc, root @ root.T).logpdf(u) - multivariate_normal(np.zeros(2)).logpdf(u)
    assert float(found[0]) == pytest.approx(expected.mean(), rel=1e-9)


def test_the_restart_with_the_highest_elbo_is_the_result(iris, monkeypatch):
    monkeypatch.setattr(
        svi, "fit_restarts", lambda *a: sorted(fit_restarts(*a), key=lambda run: np.mean(run["lp"] - run["log_q"]))
    )
    found = fit(PPCA(1), iris, SVI(guide="mean_field", n_steps=20, n_draws=50, n_restarts=3), seed=0, progress=False).data
    bounds, stats = found["optimization"]["elbo"].values, found["sample_stats"]
    assert bounds.argmax() == 2
    assert float((stats["lp"] - stats["log_q"]).mean()) == pytest.approx(bounds.max())
    assert found.attrs["elbo"] == bounds.max()


def test_a_failing_restart_is_named(iris, monkeypatch):
    monkeypatch.setattr(advi, "non_finite_sites", lambda density, u: [f"'W' at {len(u)}"])
    losses = advi._losses

    def failing(density, guide, *, framed):
        plain = losses(density, guide, framed=framed)

        def planted(vectors, *rest):
            of_marked = (vectors[:, : guide.loc.numel()].sum(1) - marked).abs() < 1e-9
            return torch.where(of_marked, torch.nan, plain(vectors, *rest))

        return planted

    method = SVI(guide="mean_field", n_steps=5, n_draws=4, n_restarts=3)
    problem = problem_of(PPCA(1), iris)
    marked = advi._Restart(problem, method, 1).guide.loc.detach().sum()
    monkeypatch.setattr(advi, "_losses", failing)
    with pytest.raises(InferenceError, match=r"SVI, restart 1, step 0: the loss \(nan\) .*'W' at"):
        fit_restarts(problem, method)


def test_finished_restarts_are_read_from_checkpoints(iris, tmp_path, monkeypatch):
    method = SVI(guide="mean_field", n_steps=20, n_draws=4, n_restarts=2)
    before = fit_restarts(problem_of(PPCA(1), iris, tmp_path), method)
    assert [path.name for path in tmp_path.iterdir()] == ["restarts-0-to-1.safetensors"]
    monkeypatch.setattr(advi, "_fitted", None)
    for one, two in zip(before, fit_restarts(problem_of(PPCA(1), iris, tmp_path), method), strict=True):
        for name, values in one.items():
            assert values.tobytes() == two[name].tobytes(), name
