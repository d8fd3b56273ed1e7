"""Tests of SVI with the model's guide against Pyro, for guides with parameters of all kinds."""

import itertools
import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from pyro.nn import PyroModule, PyroParam
from scipy.special import i0, i1
from torch.distributions import constraints

from latentlab.data.dataset import Dataset
from latentlab.errors import DataError, ModelError
from latentlab.fit import fit
from latentlab.inference.adam import pack, with_slopes
from latentlab.inference.capture import capture
from latentlab.inference.encoder import is_amortised
from latentlab.inference.model_guide import losses_of
from latentlab.inference.parameters import register_parameters
from latentlab.inference.svi import SVI
from latentlab.models.base import LatentModel, Position
from latentlab.models.linear_vae import LinearVAE
from latentlab.models.networks import weights
from latentlab.models.ppca import PPCA
from latentlab.models.vae import VAE
from latentlab.results.prepare import prepared
from latentlab.seeds import isolated
from latentlab.symmetry.groups import Identity, Orthogonal

START = 0.1 * torch.arange(8, dtype=torch.float64).reshape(2, 4)


class Encoded(LatentModel):
    """x_n ~ N((z_n, z_n), I / 4) with a linear encoder for z_n, which the subclasses write in their own ways."""

    name, position, symmetry, methods = "encoded", Position("z"), Identity(), ("svi",)
    dims = {"z": ("unit", "latent")}

    def model(self, x):
        with pyro.plate("unit", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(torch.cat([z, z], -1), 0.5).to_event(1), obs=x)

    def guide(self, x):
        weight, offset = pyro.param("weight", START), pyro.param("offset", torch.zeros(2))
        scale = pyro.param("scale", torch.full((2,), 0.5), constraints.positive)
        with pyro.plate("unit", len(x)):
            pyro.sample("z", dist.Normal(x @ weight.mT + offset, scale).to_event(1))


class Constrained(Encoded):
    """Has constrained and unused parameters."""

    def guide(self, x):
        pyro.param("unused", torch.tensor(3.0), constraints.positive)
        share = pyro.param("share", torch.tensor([0.2, 0.3, 0.5]), constraints.simplex)
        root = pyro.param("root", torch.tensor([[0.5, 0.0], [0.1, 0.4]]), constraints.lower_cholesky)
        slope = pyro.param("slope", torch.tensor(0.3), constraints.interval(-1.0, 2.0))
        with pyro.plate("unit", len(x)):
            pyro.sample("z", dist.MultivariateNormal(slope * (x @ START.mT) + share[:2] - share[2], scale_tril=root))


class DeclaredTwice(Encoded):
    """Declares a parameter twice, the second time without its constraint."""

    def guide(self, x):
        weight, offset = pyro.param("weight", START), pyro.param("offset", torch.zeros(2))
        pyro.param("scale", torch.full((2,), 0.5), constraints.positive)
        with pyro.plate("unit", len(x)):
            pyro.sample("z", dist.Normal(x @ weight.mT + offset, pyro.param("scale")).to_event(1))


def linear(kind):
    net = kind(4, 2).double()
    with torch.no_grad():
        net.weight.copy_(START)
        net.bias.zero_()
    return net


class WithModule(Encoded):
    """Has a torch module as encoder."""

    def __init__(self):
        self.net = linear(torch.nn.Linear)

    def guide(self, x):
        pyro.module("net", self.net)
        scale = pyro.param("scale", torch.full((2,), 0.5), constraints.positive)
        with pyro.plate("unit", len(x)):
            pyro.sample("z", dist.Normal(self.net(x), scale).to_event(1))


class Encoder(PyroModule):
    def __init__(self):
        super().__init__()
        self.net = linear(PyroModule[torch.nn.Linear])
        self.scale = PyroParam(torch.full((2,), 0.5, dtype=torch.float64), constraints.positive)

    def forward(self, x):
        with pyro.plate("unit", len(x)):
            pyro.sample("z", dist.Normal(self.net(x), self.scale).to_event(1))


class WithPyroModule(Encoded):
    """Has a Pyro module as guide."""

    def __init__(self):
        self.encoder = Encoder()

    def guide(self, x):
        self.encoder(x)


class Spread(Encoded):
    """Has a guide with one scale for all units, whose draws cannot be batched."""

    dims, position = {"s": ()}, Position("s")

    def model(self, x):
        s = pyro.sample("s", dist.Exponential(1.0))
        with pyro.plate("unit", len(x)):
            pyro.sample("x", dist.Normal(0.0, 0.5 + s).expand([4]).to_event(1), obs=x)

    def guide(self, x):
        pyro.sample("s", dist.Exponential(pyro.param("rate", torch.tensor(2.0), constraints.positive)))


class Angles(Encoded):
    """Has positions without reparameterised draws."""

    dims = {"z": ("unit",)}

    def model(self, x):
        with pyro.plate("unit", len(x)):
            z = pyro.sample("z", dist.VonMises(torch.zeros(()), 0.1))
            pyro.sample("x", dist.VonMises(z, 5.0), obs=x)

    def guide(self, x):
        with pyro.plate("unit", len(x)):
            pyro.sample("z", dist.VonMises(x + pyro.param("shift", torch.tensor(0.5)), 4.0))


@pytest.mark.parametrize("n_particles", [1, 3])
@pytest.mark.parametrize(
    "make",
    [
        lambda: LinearVAE(2),
        lambda: VAE(2, (8,)),
        lambda: PPCA(2),
        lambda: PPCA(2, marginalize=False),
        Spread,
        Constrained,
        DeclaredTwice,
        WithModule,
        WithPyroModule,
    ],
    ids=["linear_vae", "vae", "ppca", "ppca with positions", "spread", "constrained", "asked again", "module", "pyro module"],
)
def test_elbo_and_gradients_match_pyro(make, n_particles, iris, monkeypatch):
    """Uses the same noise, drawn site by site for all particles, with and without a captured graph."""
    noise, calls = [], itertools.count()

    def of_a_particle(shape, dtype, device):
        particle, site = divmod(next(calls), len(problem.density.sites))
        if particle == 0:
            noise.append(torch.randn(n_particles, *shape, dtype=dtype))
        return noise[site][particle]

    model = make()
    method = SVI(guide="model", n_particles=n_particles)
    problem = prepared(model, iris, method, seed=0, progress=False)
    arrays, weight = problem.density.arrays, torch.tensor(1.0, dtype=torch.float64)
    with isolated(problem.seeds), pyro.validation_enabled(False):
        found = register_parameters(model, arrays)
        vectors = pack(found.leaves)[None]
        losses = with_slopes(losses_of(problem, method, found, len(iris.x), [leaf.shape for leaf in found.leaves]))
        step = capture(losses, vectors, weight)
        assert step is not losses
        torch.manual_seed(1)
        (value,), (slopes,) = step(vectors, weight)
        torch.manual_seed(1)
        if not is_amortised(problem.density):
            for kind in ("normal", "multivariate_normal"):
                monkeypatch.setattr(f"torch.distributions.{kind}._standard_normal", of_a_particle)
        bound = Trace_ELBO(n_particles, max_plate_nesting=1, vectorize_particles=is_amortised(problem.density))
        expected = bound.differentiable_loss(model.model, model.guide, **arrays)
        own = weights(model)
        leaves = [own[n].tensor if n in own else leaf for n, leaf in zip(found.names, found.leaves, strict=True)]
        gradients = torch.autograd.grad(expected, leaves, allow_unused=True)
    flat = [torch.zeros_like(leaf) if g is None else g for leaf, g in zip(leaves, gradients, strict=True)]
    assert float(value) == pytest.approx(float(expected.detach()), rel=1e-12)
    np.testing.assert_allclose(slopes, pack(flat), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("make", [DeclaredTwice, WithModule, WithPyroModule])
def test_fits_do_not_depend_on_how_a_guide_stores_parameters(make, iris):
    method = SVI(guide="model", n_steps=60, n_particles=2, n_draws=5, held_out=0.2)
    plain, other = (fit(model, iris, method, progress=False).data["optimization"] for model in (Encoded(), make()))
    np.testing.assert_allclose(other["loss"], plain["loss"], rtol=1e-9)
    np.testing.assert_allclose(other["elbo"], plain["elbo"], rtol=1e-9)


def test_a_fit_trains_a_copy_of_a_module(iris):
    model = WithModule()
    found = fit(model, iris, SVI(guide="model", n_steps=400, n_particles=1, n_draws=5, learning_rate=0.05), progress=False)
    best = torch.cat([torch.eye(2), torch.eye(2)], 1) * 4 / (1 + 2 * 4)  # of z given x
    np.testing.assert_allclose(found.parameters["net.weight"], best, atol=0.1)  # START is 0.5 away
    assert torch.equal(model.net.weight, START)


def test_draws_without_reparameterisation_use_score_gradients():
    data = Dataset({"x": np.random.default_rng(0).uniform(-3, 3, 50)}, dims={"x": ("unit",)})
    method = SVI(guide="model", n_particles=2)
    problem = prepared(Angles(), data, method, seed=0, progress=False)
    shift = torch.tensor([[0.5]], dtype=torch.float64)
    with isolated(problem.seeds), pyro.validation_enabled(False):
        found = register_parameters(problem.model, problem.arrays)
        step = with_slopes(losses_of(problem, method, found, 50, [torch.Size([])]))
        slopes = torch.cat([step(shift, torch.tensor(1.0))[1][0] for _ in range(100)])
    ratio = i1(4.0) / i0(4.0)  # of the mean resultant length; the shift is against the observations alone, but for 0.1
    expected = 50 * 5.0 * ratio * math.sin(0.5)
    assert float(slopes.mean()) == pytest.approx(expected, rel=0.2)
    with pytest.raises(ModelError, match="objective 'iwae' needs reparameterised draws"):
        fit(Angles(), data, SVI(guide="model", n_steps=5, objective="iwae"), progress=False)


class Walk(Encoded):
    """Steps of a series."""

    dims = {"z": ("unit",)}

    def model(self, x, sequence):
        with pyro.plate("unit", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(self, x, sequence):
        with pyro.plate("unit", len(x)):
            pyro.sample("z", dist.Normal(pyro.param("slope", torch.tensor(0.5)) * x, 0.7))


@pytest.mark.parametrize("field", ["held_out", "batch_size"])
def test_minibatches_of_a_series_are_refused(field):
    data = Dataset({"x": np.arange(20.0)}, dims={"x": ("unit",)})
    with pytest.raises(ModelError, match=f"`{field}` is not available for 'encoded': the steps of a series"):
        fit(Walk(), data, SVI(guide="model", **{field: 0.5 if field == "held_out" else 5}), progress=False)


class Columns(LatentModel):
    """Units are the columns of x: N(z_n, 1) for each unit n and row."""

    name, position, symmetry, methods = "columns", Position("z"), Identity(), ("svi",)
    dims = {"z": ("unit",)}

    def model(self, x):
        with pyro.plate("unit", x.shape[1]):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z[..., None], torch.ones(len(x))).to_event(1), obs=x.T)

    def guide(self, x):
        with pyro.plate("unit", x.shape[1]):
            pyro.sample("z", dist.Normal(pyro.param("slope", torch.tensor(0.5)) * x.mean(0), 0.7))


@pytest.mark.parametrize("field", ["held_out", "batch_size"])
def test_minibatches_need_units_as_first_dim(field, rng):
    """Batches are rows, so that features would be mistaken for units."""
    data = Dataset({"x": rng.normal(size=(3, 20))}, dims={"x": ("feature", "unit")})
    with pytest.raises(DataError, match=rf"`{field}` needs 'unit' as the first dim of 'x'; got \('feature', 'unit'\)"):
        fit(Columns(), data, SVI(guide="model", **{field: 0.5 if field == "held_out" else 5}), progress=False)


LOADINGS = torch.tensor([[1.0, 0.2], [-0.3, 0.8], [0.5, -0.5]], dtype=torch.float64)


class RotatedLoadings(LatentModel):
    """Loadings without a preferred orientation, and a guide about one orientation: W ~ N(LOADINGS, 0.4)."""

    name, position, symmetry, methods = "turned", Position("z"), Orthogonal(), ("svi",)
    dims = {"W": ("feature", "latent"), "sigma": (), "z": ("unit", "latent")}

    def model(self, x):
        W = pyro.sample("W", dist.Normal(torch.zeros(3, 2), 1.0).to_event(2))
        sigma = pyro.sample("sigma", dist.LogNormal(0.0, 1.0))
        with pyro.plate("unit", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ W.T, sigma).to_event(1), obs=x)

    def guide(self, x):
        pyro.sample("W", dist.Normal(LOADINGS, 0.4).to_event(2))
        pyro.sample("sigma", dist.LogNormal(pyro.param("level", torch.tensor(0.1)), 0.3))
        with pyro.plate("unit", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))


def test_the_density_of_the_models_guide_is_averaged_over_the_symmetry(rng):
    """Compares with the mean over 4000 angles of rotations and reflections of the loadings."""
    dataset = Dataset({"x": rng.normal(size=(5, 3))}, dims={"x": ("unit", "feature")})
    found = fit(RotatedLoadings(), dataset, SVI(guide="model", n_steps=3, n_draws=20), progress=False)
    W, stats = found.sites()["W"][0], found.data["sample_stats"]
    angle = np.linspace(0, 2 * np.pi, 4000, endpoint=False)
    turns = np.stack([np.cos(angle), np.sin(angle), -np.sin(angle), np.cos(angle)], -1).reshape(-1, 2, 2)
    every = np.concatenate([turns, turns * [1.0, -1.0]])
    log_q = -((W[:, None] @ every - LOADINGS.numpy()) ** 2).sum((-2, -1)) / (2 * 0.4**2)
    own = -((W - LOADINGS.numpy()) ** 2).sum((-2, -1)) / (2 * 0.4**2)
    expected = np.log(np.exp(log_q).mean(1)) - own
    np.testing.assert_allclose((stats["log_q_averaged"] - stats["log_q"]).values[0], expected, atol=1e-8)
    rows = found.diagnostics().query("check == 'k-hat'")
    assert "q averaged over the symmetry" in rows["quantity"].iloc[0]


class PointGuide(RotatedLoadings):
    """Has a point mass for the loadings, without density along the orbit."""

    dims = {"W": ("feature", "latent"), "sigma": (), "z": ("unit", "latent")}

    def __init__(self, n_latent=3):
        self.n_latent = n_latent

    def model(self, x):
        W = pyro.sample("W", dist.Normal(torch.zeros(3, self.n_latent), 1.0).to_event(2))
        sigma = pyro.sample("sigma", dist.LogNormal(0.0, 1.0))
        with pyro.plate("unit", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(self.n_latent), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ W.T, sigma).to_event(1), obs=x)

    def guide(self, x):
        pyro.sample("W", dist.Delta(pyro.param("W_at", 0.5 * torch.eye(3)), event_dim=2))
        pyro.sample("sigma", dist.LogNormal(0.0, 0.3))
        with pyro.plate("unit", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(self.n_latent), 1.0).to_event(1))


def test_draws_are_kept_if_the_guide_density_cannot_be_averaged(rng):
    dataset = Dataset({"x": rng.normal(size=(5, 3))}, dims={"x": ("unit", "feature")})
    found = fit(PointGuide(), dataset, SVI(guide="model", n_steps=3, n_draws=20), progress=False)
    stats = found.data["sample_stats"]
    np.testing.assert_array_equal(stats["log_q_averaged"], stats["log_q"])
    assert "averaged" not in found.diagnostics().query("check == 'k-hat'")["quantity"].iloc[0]
