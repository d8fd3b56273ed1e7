"""Tests of normalising flows as prior and posterior of autoencoders: densities, moments, starts, bounds, graphs and errors."""

import logging
import math
import sys

import numpy as np
import pytest
import torch
from scipy import stats

from latentlab.data.dataset import Dataset
from latentlab.errors import ConfigError, MissingDependencyError, ModelError
from latentlab.fit import fit
from latentlab.inference import steps
from latentlab.inference.arrays import tensors
from latentlab.inference.svi import SVI
from latentlab.models import flows
from latentlab.models.flows import FlowDistribution, FlowSettings, flow_network, zuko
from latentlab.models.posteriors import POSTERIORS
from latentlab.models.priors import PRIORS, divergences
from latentlab.models.vae import VAE
from latentlab.seeds import double, forked, reseed
from latentlab.symmetry.groups import Identity, Orthogonal

QUICK = SVI(guide="model", n_steps=40, learning_rate=0.01, n_particles=2, batch_size=40, n_draws=20)
CASES = [(q, kind, part) for q in (1, 2, 3) for kind in ("spline", "affine") for part in ("prior", "posterior")]


def as_tensors(values):
    return {name: torch.tensor(np.asarray(value), dtype=torch.float64) for name, value in values.items()}


def flow_of(q, kind, part, rng, *, scale=0.5, n_units=1, hidden=(5,)):
    """A flow with random parameters; at scale 0 its start, with random locations and scales."""
    settings = FlowSettings(q, kind, 3, hidden, "tanh", 2)
    one = (PRIORS if part == "prior" else POSTERIORS)["flow"](settings)
    (network,) = one.networks.values()
    start = network.starts({})
    values = {name: start(name) + scale * torch.tensor(rng.normal(size=start(name).shape)) for name in network.dims}
    with double():
        if part == "prior":
            return one.distribution(values, None)
        sizes = [(n_units, one.sizes()[dim]) for dim in one.heads.values()]
        return one.distribution([torch.tensor(0.5 * rng.normal(size=size)) for size in sizes], values)


def positions_of(flow, noise):
    """Positions that the flow maps to standard normal noise `(n, latent)`."""
    return flow.loc + torch.exp(flow.log_scale) * flow._residuals(noise)


def by_jacobian(flow, noise, h=1e-6):
    """Positions of noise `(unit, latent)`, and their log density by central differences of this map."""
    q = noise.shape[-1]

    columns = [
        (positions_of(flow, noise + h * e) - positions_of(flow, noise - h * e)) / (2 * h)
        for e in torch.eye(q, dtype=torch.float64)
    ]
    log_slopes = torch.linalg.slogdet(torch.stack(columns, -1)).logabsdet
    return positions_of(flow, noise), stats.norm.logpdf(noise.numpy()).sum(-1) - log_slopes.numpy()


# -- densities


@pytest.mark.parametrize(("q", "kind", "part"), CASES)
def test_the_log_density_is_that_of_a_change_of_variables(q, kind, part, rng):
    """Draws are by the inverse, and densities by the flow, so that each checks the other."""
    flow = flow_of(q, kind, part, rng, n_units=6)
    z, expected = by_jacobian(flow, torch.tensor(rng.normal(size=(6, q))))
    np.testing.assert_allclose(flow.expand((6,)).log_prob(z).numpy(), expected, rtol=1e-6, atol=1e-6)
    assert flow.sample((3,)).shape == (3, *flow.batch_shape, q)


def axis_of(flow, kind, n):
    """Grid along a dimension that contains all but a negligible part of the distribution."""
    within = 6 * torch.exp(flow.log_scale) if kind == "spline" else 9 * torch.sqrt(flow.variance)
    edge = float((flow.loc.abs() + within.clamp(min=6)).max())
    return torch.linspace(-edge, edge, n, dtype=torch.float64)


def curve_of(flow):
    """Grid of positions that is dense where the density is large, and the density there, of a flow of one dimension."""
    z = positions_of(flow, torch.linspace(-7, 7, 300_001, dtype=torch.float64)[:, None])
    return z[:, 0], torch.exp(flow.log_prob(z[:, None, :])).flatten()


@pytest.mark.parametrize("kind", ["spline", "affine"])
@pytest.mark.parametrize("part", ["prior", "posterior"])
def test_densities_of_one_dimension_integrate_to_1(kind, part, rng):
    """The tolerance is 260 times the largest error seen in 480 flows."""
    flow = flow_of(1, kind, part, rng, scale=0.3)
    with torch.no_grad():
        z, density = curve_of(flow)
        total = float(torch.trapezoid(density, z))
    assert total == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("kind", ["spline", "affine"])
@pytest.mark.parametrize("part", ["prior", "posterior"])
def test_densities_of_two_dimensions_integrate_to_1(kind, part, rng):
    """The tolerance is 60 times the largest error seen, of a spline, the derivative of whose log density has jumps."""
    flow = flow_of(2, kind, part, rng, scale=0.2)
    with torch.no_grad():
        axis = axis_of(flow, kind, 801)
        blocks = torch.cartesian_prod(axis, axis).reshape(-1, 1, 2).split(20_000)
        total = sum(float(torch.exp(flow.log_prob(grid)).sum()) for grid in blocks) * float(axis[1] - axis[0]) ** 2
    assert total == pytest.approx(1.0, abs=2e-3)


@pytest.mark.parametrize("kind", ["spline", "affine"])
@pytest.mark.parametrize("part", ["prior", "posterior"])
def test_moments_match_integrals(kind, part, rng, monkeypatch):
    """With many points; those of 64 points have errors of up to 3% in nine of ten variances, and of a quarter in strange ones."""
    monkeypatch.setattr(flows, "N_POINTS", 2**14)
    monkeypatch.setattr(flows, "normal_points", flows.normal_points.__wrapped__)
    flow = flow_of(1, kind, part, rng, scale=0.3)
    with torch.no_grad():
        z, density = curve_of(flow)
        mean = torch.trapezoid(density * z, z)
        variance = torch.trapezoid(density * (z - mean) ** 2, z)
        sd = float(variance.sqrt())
        assert float(flow.mean.flatten()) == pytest.approx(float(mean), abs=0.005 * sd)
        assert float(flow.variance.flatten()) == pytest.approx(sd**2, rel=0.05)


@pytest.mark.parametrize("kind", ["spline", "affine"])
@pytest.mark.parametrize("q", [1, 3])
def test_flows_start_at_the_diagonal_posterior_and_the_normal_prior(q, kind, rng):
    prior, flow = flow_of(q, kind, "prior", rng, scale=0.0), flow_of(q, kind, "posterior", rng, scale=0.0, n_units=4)
    start = torch.distributions.Normal(flow.loc, torch.exp(flow.log_scale))
    z = torch.tensor(rng.normal(size=(4, q)))
    np.testing.assert_allclose(flow.log_prob(z), start.log_prob(z).sum(-1), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(prior.log_prob(z), stats.norm.logpdf(z).sum(-1), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(flow.mean, start.mean, atol=1e-12)
    np.testing.assert_allclose(flow.variance, start.variance, rtol=1e-12)
    with forked():
        reseed(0)
        drawn = flow.sample((2,))
        reseed(0)
        np.testing.assert_allclose(drawn, start.sample((2,)), rtol=1e-12, atol=1e-12)


def test_divergences_of_affine_flows_in_one_dimension_are_those_of_normal_distributions(rng):
    prior, q = flow_of(1, "affine", "prior", rng), flow_of(1, "affine", "posterior", rng, n_units=5)
    with torch.no_grad():
        normal = {one: torch.distributions.Normal(one.mean, torch.sqrt(one.variance)) for one in (prior, q)}
        z = torch.tensor(rng.normal(size=(5, 1)))
        for one, same in normal.items():
            np.testing.assert_allclose(one.log_prob(z), same.log_prob(z)[:, 0], rtol=1e-9)
        expected = torch.distributions.kl_divergence(normal[q], normal[prior])
        np.testing.assert_allclose(divergences(q, prior), expected, rtol=1e-9)
        standard = torch.distributions.kl_divergence(normal[q], torch.distributions.Normal(torch.zeros(1), 1.0))
        np.testing.assert_allclose(divergences(q, PRIORS["normal"](None)), standard, rtol=1e-6)


# -- bounds


def test_the_bound_of_an_affine_flow_with_the_exact_posterior_is_the_likelihood(rng):
    """Linear decoder, whose exact posterior has correlations: a coupling of two dimensions contains it."""
    W = np.array([[1.0, 0.9, 1.1], [0.8, 1.0, 0.9]])
    x = rng.normal(size=(50, 2)) @ W + 0.3 * rng.normal(size=(50, 3))
    dataset = Dataset({"x": x}, dims={"x": ("unit", "feature")})
    M = np.linalg.inv(W @ W.T / 0.09 + np.eye(2))
    L, V = np.linalg.cholesky(M), M @ W / 0.09
    exact = stats.multivariate_normal(np.zeros(3), W.T @ W + 0.09 * np.eye(3)).logpdf(x)

    def free(log_scale):
        """The number that zuko limits to this log scale."""
        return log_scale / (1 - abs(log_scale / math.log(1e-3)))

    model = VAE(2, (), encoder_hidden=(), posterior="flow", flow="affine", n_transforms=1, flow_hidden=(), n_context=1)
    weight = np.zeros((4, 3))  # shift and log scale of each dimension, from the two dimensions and the context
    weight[2, 0] = -L[1, 0] / (L[0, 0] * L[1, 1])
    encoder = {"loc_x": V.T, "scale_x": np.zeros((3, 2)), "context_x": rng.normal(size=(3, 1)), "loc_b": np.zeros(2)}
    encoder |= {"scale_b": np.zeros(2), "context_b": np.zeros(1)}
    encoder |= {f"{head}_missing": np.zeros((3, n)) for head, n in (("loc", 2), ("scale", 2), ("context", 1))}
    values = {
        "decoder_1_z": W, "decoder_1_b": np.zeros(3), "sigma": np.array(0.3),
        **{f"encoder_{name}": value for name, value in encoder.items()},
        "posterior_flow.0.hyper.0.weight": weight,
        "posterior_flow.0.hyper.0.bias": np.array([0.0, free(-math.log(L[0, 0])), 0.0, free(-math.log(L[1, 1]))]),
    }  # fmt: skip
    assert set(values) == set(model.parameters)
    with double(), forked():
        found = model.bound(tensors(model, dataset), 3, **as_tensors(values)).numpy()
    np.testing.assert_allclose(found, exact, rtol=1e-8)


def test_the_bound_of_a_flow_at_its_start_is_that_of_the_diagonal_posterior(iris):
    diagonal, flow = VAE(2, (4,)), VAE(2, (4,), posterior="flow", prior="flow")
    arrays = tensors(flow, iris)
    with forked(), double():
        reseed(0)
        values = as_tensors(fit(diagonal, iris, QUICK, seed=0, progress=False).parameters)
        more = {
            n: s(n)
            for one in (flow._prior, flow._posterior)
            for w in one.networks.values()
            for s in [w.starts({})]
            for n in w.dims
        }
        more |= {"encoder_context_h": torch.ones(4, 8), "encoder_context_b": torch.ones(8)}
        bounds = []
        for model, given in ((diagonal, values), (flow, {**values, **more})):
            reseed(1)
            bounds.append(model.bound(arrays, 4, **given).numpy())
    np.testing.assert_allclose(*bounds, rtol=1e-10)


@pytest.mark.chance(1e-6)
def test_a_flow_prior_beats_the_normal_prior_on_two_clusters(rng):
    """Held-out bounds, paired by unit: the mean difference is 5 standard errors above 0, which chance gives once in 3e6."""
    sides = np.where(rng.random(800) < 0.5, 1.5, -1.5)
    x = (sides + 0.2 * rng.normal(size=800))[:, None] * np.array([1.0, -1.0, 0.8, 1.2]) + 0.3 * rng.normal(size=(800, 4))
    whole = Dataset({"x": x}, dims={"x": ("unit", "feature")})
    method = SVI(guide="model", n_steps=600, learning_rate=0.01, n_particles=1, batch_size=100, n_draws=20)
    bounds = []
    for prior in ("normal", "flow"):
        model = VAE(1, (), encoder_hidden=(8,), activation="tanh", prior=prior)
        found = fit(model, whole.subset(range(400)), method, seed=0, progress=False)
        with double(), forked(), torch.no_grad():
            reseed(0)
            bounds.append(model.bound(tensors(model, whole.subset(range(400, 800))), 100, **as_tensors(found.parameters)).numpy())
    difference = bounds[1] - bounds[0]
    assert difference.mean() > 5 * difference.std() / math.sqrt(len(difference))


# -- fits


FITS = [
    VAE(2, (6,), activation="tanh", prior="flow", flow_hidden=(8,), n_transforms=2),
    VAE(3, (6,), activation="tanh", posterior="flow", flow="affine", flow_hidden=(8,), n_transforms=2),
    VAE(1, (6,), activation="tanh", prior="flow", posterior="flow", flow_hidden=(), n_transforms=1),
    VAE(2, (6,), prior="vamp", n_components=2, posterior="flow", flow="affine", flow_hidden=(8,), n_transforms=2),
]


@pytest.mark.parametrize("model", FITS, ids=["prior", "posterior", "both", "vamp"])
def test_steps_of_flows_are_recorded_and_equal_eager(model, iris, monkeypatch, caplog):
    """Noise is drawn from the same state; loss and updated parameters agree at 1e-12."""
    caplog.set_level(logging.WARNING)
    capture, compared = steps.capture, []

    def checked(function, *example, **options):
        graph = capture(function, *example, **options)
        assert graph is not function
        with forked(), double():
            results = []
            for one in (function, graph):
                reseed(3)
                results.append([np.asarray(value.detach()) for value in one(*example)])
        for found, expected in zip(results[1], results[0], strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)
        compared.append(len(results[0]))
        return graph

    monkeypatch.setattr(steps, "capture", checked)
    found = fit(model, iris, QUICK, seed=0, progress=False)
    assert compared
    assert not caplog.records
    assert set(found.parameters) == set(model.parameters)
    moved = [name for name in found.parameters if "flow" in name and np.abs(found.parameters[name]).max() > 0]
    assert len(moved) == sum("flow" in name for name in model.parameters)
    assert np.isfinite(found.held_out_score(iris.raw().subset(range(9)), n_samples=20)["bound"])
    assert np.isfinite(found.activity()[["activity", "kl"]].to_numpy()).all()
    assert np.isfinite(found.latents(iris.raw().subset(range(5))).values).all()
    assert found.frozen().name == "vae"


def test_single_precision_of_flows_follows_double_precision(iris, monkeypatch):
    def standard_normal(shape, dtype, device):
        return torch.from_numpy(np.random.default_rng(0).standard_normal(tuple(shape))).to(dtype)

    monkeypatch.setattr("torch.distributions.normal._standard_normal", standard_normal)
    model = VAE(2, (6,), activation="tanh", prior="flow", posterior="flow", flow_hidden=(8,), n_transforms=2)
    options = {"guide": "model", "n_steps": 30, "batch_size": 50, "n_draws": 5, "n_particles": 2}
    runs = [fit(model, iris, SVI(**options, precision=p), seed=0, progress=False) for p in ("double", "single")]
    losses = [one.data["optimization"]["loss"].values for one in runs]
    assert 1e-9 < np.abs(losses[1] / losses[0] - 1).max() < 1e-3


def test_the_declared_symmetry_is_trivial_for_a_flow_prior_only():
    assert VAE(2, prior="flow").symmetry == Identity()
    assert VAE(1, prior="flow").symmetry == Identity()
    assert VAE(2, posterior="flow").symmetry == Orthogonal()
    assert VAE(2, prior="mixture", posterior="flow").symmetry == Orthogonal()


def test_a_module_as_encoder_has_the_outputs_of_the_flow(iris):
    model = VAE(2, encoder=torch.nn.Linear(4, 4 + 8), posterior="flow", n_transforms=1)
    assert set(fit(model, iris, QUICK, seed=0, progress=False).parameters) == set(model.parameters)
    with pytest.raises(ModelError, match=r"`encoder` must have outputs \(2, 12\) for inputs \(2, 4\); got \(2, 4\)"):
        fit(VAE(2, encoder=torch.nn.Linear(4, 4), posterior="flow", n_transforms=1), iris, QUICK, progress=False)


# -- errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"flow": "planar"}, "`flow` must be one of spline, affine; got 'planar'"),
        ({"flow_hidden": [0]}, r"`flow_hidden` must be a list of whole numbers.*; got \[0\]"),
        ({"flow_hidden": 8}, "`flow_hidden` must be a list of whole numbers.*; got 8"),
        ({"n_transforms": 0}, "`n_transforms` must be a whole number of at least 1; got 0"),
        ({"n_transforms": "two"}, "`n_transforms` must be a whole number of at least 1; got 'two'"),
        ({"n_context": 0}, "`n_context` must be a whole number of at least 1; got 0"),
        ({"n_context": 1.5}, "`n_context` must be a whole number of at least 1; got 1.5"),
    ],
)
def test_settings_of_flows_that_are_not_possible_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        VAE(2, prior="flow", **options)


@pytest.mark.parametrize("part", ["prior", "posterior"])
def test_a_missing_zuko_is_named_with_its_extra(part, monkeypatch):
    monkeypatch.setitem(sys.modules, "zuko", None)
    with pytest.raises(MissingDependencyError, match=r"prior or posterior 'flow' needs the package 'zuko'.*latentlab\[flows\]"):
        VAE(2, **{part: "flow"})
    assert VAE(2).prior == "normal"


def test_the_import_of_zuko_leaves_the_defaults_of_distributions(monkeypatch):
    own = torch.distributions.Distribution
    before = own._validate_args, own.__dict__["arg_constraints"]
    for name in [name for name in sys.modules if name.partition(".")[0] == "zuko"]:
        monkeypatch.delitem(sys.modules, name)
    assert zuko().__name__ == "zuko"
    assert (own._validate_args, own.__dict__["arg_constraints"]) == before


def test_a_flow_has_the_dtype_of_its_inputs(rng):
    network = flow_network("prior_flow", FlowSettings(2, "spline", 1, (4,), "tanh", 1), 0, is_coupling=False)
    start = network.starts({})
    values = {name: start(name).float() for name in network.dims}
    flow = FlowDistribution(network, values, torch.zeros(2), torch.zeros(2))
    z = flow.sample((5,))
    assert z.dtype == flow.log_prob(z).dtype == flow.mean.dtype == flow.variance.dtype == torch.float32
