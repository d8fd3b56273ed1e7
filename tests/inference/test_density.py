"""Tests of the unconstrained density against independent formulas, and of its batched and captured versions."""

import contextlib
import json

import numpy as np
import oracles
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats

from latentlab.data.dataset import Dataset
from latentlab.data.load import load_dataset
from latentlab.errors import DataError, ModelError
from latentlab.inference.arrays import tensors
from latentlab.inference.density import Density
from latentlab.inference.draws import Problem
from latentlab.inference.joint import log_joint
from latentlab.inference.start import start
from latentlab.inference.svi import SVI
from latentlab.models.base import LatentModel, Position
from latentlab.models.factor_analysis import FactorAnalysis
from latentlab.models.ppca import PPCA
from latentlab.seeds import Seeds, isolated
from latentlab.symmetry.groups import Identity


def test_log_joint_matches_reference_values(references):
    folder = references / "bppca_iris_q2"
    points = json.loads((folder / "log_density.json").read_text())["points"]
    dataset, model = load_dataset("iris"), PPCA(2, mu_scale=0)
    for point in points:
        values = {"W": np.array(point["params"]["W"]), "sigma": np.array(point["params"]["sigma"][0])}
        assert log_joint(model, dataset, values) == pytest.approx(point["log_density"], rel=1e-6)
        assert log_joint(model, dataset, values) == pytest.approx(point["log_density"], rel=1e-10)
        wrong = {**values, "sigma": values["sigma"] ** 2}  # variance for sd: the check would see it
        assert log_joint(model, dataset, wrong) != pytest.approx(point["log_density"], rel=1e-6)


@pytest.mark.parametrize("missing", [0.0, 0.2])
def test_log_joint_is_the_sum_of_priors_and_dense_gaussians(rng, missing):
    dataset = load_dataset("wine", missing=missing)
    W, mu, psi, z = (
        rng.standard_normal((13, 2)),
        rng.standard_normal(13),
        rng.uniform(0.5, 1.5, 13),
        rng.standard_normal((178, 2)),
    )
    priors = stats.norm(0, 0.9).logpdf(W).sum() + stats.norm(0, 3).logpdf(mu).sum() + stats.halfnorm(0, 2).logpdf(psi).sum()
    values = {"W": W, "mu": mu, "psi": psi}
    model = FactorAnalysis(2, W_scale=0.9, mu_scale=3, psi_scale=2)
    dense = oracles.gaussian_log_density(dataset.x, mu, W @ W.T + np.diag(psi**2)).sum()
    assert log_joint(model, dataset, values) == pytest.approx(priors + dense, rel=1e-10)
    noise = np.nansum(stats.norm(z @ W.T + mu, psi).logpdf(dataset.x))
    with_z = priors + stats.norm(0, 1).logpdf(z).sum() + noise
    explicit = FactorAnalysis(2, W_scale=0.9, mu_scale=3, psi_scale=2, marginalize=False)
    assert log_joint(explicit, dataset, {**values, "z": z}) == pytest.approx(with_z, rel=1e-10)
    assert log_joint(model, dataset, {**values, "z": z}) == pytest.approx(with_z, rel=1e-10)


def test_missing_values_and_wrong_shapes_are_refused():
    dataset, model = load_dataset("iris"), PPCA(2)
    values = {"W": np.zeros((4, 2)), "mu": np.zeros(4), "sigma": np.array(1.0)}
    with pytest.raises(ModelError, match=r"'W' must have shape \(4, 2\); got \(2, 4\)"):
        log_joint(model, dataset, {**values, "W": np.zeros((2, 4))})
    with pytest.raises(ModelError, match="'mu' has no value"):
        log_joint(model, dataset, {"W": values["W"], "sigma": values["sigma"]})


def flat(model, dataset):
    return Density(model, tensors(model, dataset), dataset.array_dims)


@pytest.mark.parametrize("model", [PPCA(2), PPCA(2, marginalize=False), FactorAnalysis(2)], ids=repr)
@pytest.mark.parametrize("missing", [0.0, 0.2])
def test_batched_and_captured_densities_equal_the_plain_one(rng, model, missing):
    density = flat(model, load_dataset("iris", missing=missing))
    points = 0.3 * rng.standard_normal((5, density.size))
    values, gradients = density.batch_value_and_grad(points)
    for point, value, gradient in zip(torch.from_numpy(points), values, gradients, strict=True):
        plain_value, plain_gradient = density.eager_value_and_grad(point)
        np.testing.assert_allclose(value, plain_value, rtol=1e-11)
        np.testing.assert_allclose(gradient, plain_gradient, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(density.value_and_grad(point)[0], plain_value, rtol=1e-11)


def test_the_density_on_other_data_uses_its_own_graph():
    """A graph contains the data, and SBC runs one method on many data sets."""
    model, iris = PPCA(2), load_dataset("iris")
    arrays = tensors(model, iris)
    density = Density(model, arrays, iris.array_dims)
    u = torch.linspace(-0.5, 0.5, density.size, dtype=torch.float64)
    method = SVI(n_steps=30, n_draws=5, guide="mean_field")

    def found(of):
        problem = Problem(model, of.arrays, of, Seeds(0), progress=False)
        return (
            of.value_and_grad(u)[0],
            of.descent(u)(u)[0],
            of.batch_value_and_grad(u[None].numpy())[0],
            method.run(problem).stats["lp"],
        )

    found(density)
    moved = {**arrays, "x": arrays["x"] + 1.0}
    for one, two in zip(found(density.on(moved)), found(Density(model, moved, iris.array_dims)), strict=True):
        np.testing.assert_array_equal(one, two)


def test_constants_of_a_model_are_float64_in_the_captured_graph():
    """0.7 is not exact in float32: under another default dtype a graph would give log 0.7 to 1e-8 only."""
    density = flat(PPCA(1, W_scale=0.7, sigma_scale=0.3), load_dataset("iris"))
    assert torch.get_default_dtype() == torch.float32
    u = torch.zeros(density.size, dtype=torch.float64)
    expected = log_joint(density.model, load_dataset("iris"), {"W": np.zeros((4, 1)), "mu": np.zeros(4), "sigma": np.array(1.0)})
    assert float(density.value_and_grad(u)[0]) == pytest.approx(expected, rel=1e-14)


def test_the_density_includes_the_jacobian():
    density = flat(PPCA(1), load_dataset("iris"))
    u = torch.zeros(density.size, dtype=torch.float64) + 0.4
    assert float(density.log_prob(u) - density.log_prob(u, jacobian=False)) == pytest.approx(0.4)  # sigma = exp(u)


TOLD = "members of a batch are computed one by one, since the batch cannot be captured as a graph: "


class Branching(LatentModel):
    """A model that branches on a value and cannot be captured."""

    name, position, symmetry, methods = "branching", Position("z"), Identity(), ("nuts",)
    dims = {"z": ("unit",)}

    def model(self, x):
        with pyro.plate("unit", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z if float(z.detach().sum()) > 0 else 2 * z, 1.0), obs=x)


def test_a_program_with_branches_runs_without_capture():
    x = np.array([0.5, -0.2, 1.0])
    density = flat(Branching(), Dataset({"x": x}, dims={"x": ("unit",)}))
    for sign in (1.0, -1.0):
        u = sign * np.array([[0.3, 0.1, 0.2]])
        with pytest.warns(UserWarning, match=TOLD) if sign > 0 else contextlib.nullcontext():
            value, _ = density.batch_value_and_grad(u)
        z = u[0] * (1 if sign > 0 else 2)
        assert value[0] == pytest.approx(stats.norm(0, 1).logpdf(u).sum() + stats.norm(z, 1).logpdf(x).sum())


def test_missing_entries_in_a_model_without_a_mask_are_refused():
    x = np.array([0.5, np.nan, 1.0])
    with pytest.raises(DataError, match=r"1 missing entries.*'branching' does not allow missing"):
        flat(Branching(), Dataset({"x": x}, dims={"x": ("unit",)}))


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.ones((5, 1)), "below the number of features, 1; got 2"),
        (np.ones(5), r"must have an array 'x' with dims \(unit, feature\)"),
        (np.random.default_rng(0).normal(size=(2, 5)), "2 units; n_latent = 2 needs at least 3"),
        (np.ones((5, 4)), "all 5 rows are identical"),
        (np.random.default_rng(0).normal(size=(6, 2)), "below the number of features, 2; got 2"),
    ],
)
def test_too_few_units_or_features_for_ppca_are_refused(x, message):
    dims = ("unit", "feature")[: x.ndim]
    with pytest.raises(DataError, match=message):
        PPCA(2).check(Dataset({"x": x}, dims={"x": dims}))


def test_constant_columns_are_refused_by_factor_analysis_only(rng):
    x = rng.standard_normal((9, 4))
    x[:, 2] = 3.0
    dataset = Dataset({"x": x}, dims={"x": ("unit", "feature")}, coords={"feature": ["a", "b", "c", "d"]})
    PPCA(2).check(dataset)
    with pytest.raises(DataError, match="column 'c' is constant"):
        FactorAnalysis(2).check(dataset)


def test_starting_values_are_finite_and_over_dispersed():
    density = flat(PPCA(2), load_dataset("wine"))
    with isolated(Seeds(0)):
        starts = torch.stack([start(density, np.random.default_rng(i), jitter=2.0) for i in range(6)])
    assert bool(torch.isfinite(starts).all())
    assert float(starts[:, -1].std()) > 0.3  # log sigma


class Impossible(Branching):
    def model(self, x):
        with pyro.plate("unit", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0).mask(torch.tensor(True)), obs=x)
            pyro.factor("wall", torch.where(z > -1e9, -torch.inf, 0.0))


def test_a_start_without_density_names_the_site():
    from latentlab.errors import InferenceError

    density = flat(Impossible(), Dataset({"x": np.array([0.5, 1.0])}, dims={"x": ("unit",)}))
    with (
        isolated(Seeds(0)),
        pytest.raises(
            InferenceError, match="no starting point with finite density and gradient in 100 tries; not finite: 'wall'"
        ),
    ):
        start(density, np.random.default_rng(0), jitter=1.0)
