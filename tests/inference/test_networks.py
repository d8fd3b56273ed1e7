"""Tests of torch modules in programs and guides: they are trained as copies, or refused by name before the first step."""

import copy
import warnings

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats
from torch import nn
from torch.distributions import constraints

from latentlab.data.dataset import Dataset
from latentlab.errors import ModelError
from latentlab.fit import fit
from latentlab.inference.map import MAP
from latentlab.inference.nuts import NUTS
from latentlab.inference.parameters import register_parameters
from latentlab.inference.svi import SVI
from latentlab.models.base import LatentModel, Position
from latentlab.models.networks import networks, weights
from latentlab.results.prepare import prepared
from latentlab.seeds import Seeds, isolated
from latentlab.symmetry.groups import Identity

FEW = SVI(guide="model", n_steps=3, n_particles=1, n_draws=5)


def two_layers(n_inputs, n_outputs, *between):
    return nn.Sequential(nn.Linear(n_inputs, 6), *between, nn.Linear(6, n_outputs))


class Encoded(LatentModel):
    """x_n ~ N(f(z_n), 1/4) with networks as decoder and encoder."""

    name, position, symmetry, methods = "encoded", Position("z"), Identity(), ("svi", "nuts", "map")
    dims = {"z": ("unit", "latent")}

    def __init__(self):
        self.encoder, self.decoder = two_layers(4, 4, nn.Tanh()), two_layers(2, 4, nn.Tanh())

    @classmethod
    def of(cls, **changed):
        """A model with other networks."""
        model = cls()
        vars(model).update(changed)
        return model

    def model(self, x):
        pyro.module("decoder", self.decoder)
        with pyro.plate("unit", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(z), 0.5).to_event(1), obs=x)

    def guide(self, x):
        pyro.module("encoder", self.encoder)
        with pyro.plate("unit", len(x)):
            pyro.sample("z", self.latents({"x": x}))

    def latents(self, arrays, **values):
        mean, log_scale = self.encoder(arrays["x"]).chunk(2, -1)
        return dist.Normal(mean, log_scale.exp()).to_event(1)


def without_noise(shape, dtype, device):
    return torch.zeros(shape, dtype=dtype)


class Noisy(nn.Module):
    def forward(self, x):
        return torch.nn.functional.dropout(x, 0.1, self.training)


class Logarithm(nn.Module):
    def forward(self, x):
        return torch.log(x)


def with_nan():
    net = two_layers(4, 4)
    net[1].weight.data[0, 0] = float("nan")
    return net


def with_shared_memory():
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    net[1].weight = nn.Parameter(net[0].weight.data)
    return net


REFUSED = {
    "batch norm": (
        lambda: {"encoder": two_layers(4, 4, nn.BatchNorm1d(6))},
        r"layer 'encoder.1' of 'encoded' must treat units separately; got BatchNorm1d.* call `.eval\(\)` on it",
    ),
    "batch norm without running statistics": (
        lambda: {"encoder": two_layers(4, 4, nn.BatchNorm1d(6, track_running_stats=False)).eval()},
        r"layer 'encoder.1' of 'encoded' must treat units separately; got BatchNorm1d.*: replace it",
    ),
    "dropout": (
        lambda: {"decoder": two_layers(2, 4, nn.Dropout(0.1))},
        r"layer 'decoder.1' of 'encoded' must be deterministic; got Dropout",
    ),
    "function dropout": (
        lambda: {"encoder": two_layers(4, 4, Noisy())},
        r"layer 'encoder.1' of 'encoded' must be deterministic; got Noisy",
    ),
    "running statistics": (
        lambda: {"encoder": nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4))},
        r"layer 'encoder.parametrizations.weight.0' of 'encoded' must not change in a step; .* updates its buffer '_u'",
    ),
    "wrong inputs": (
        lambda: {"encoder": nn.Linear(3, 4)},
        r"layer 'encoder' of 'encoded', Linear, fails on inputs of shape \(150, 4\)",
    ),
    "wrong outputs of the encoder": (
        lambda: {"encoder": nn.Linear(4, 10)},
        r"the guide of 'encoded' must draw site 'z' of shape \(150, 2\), as the program; got \(150, 5\)",
    ),
    "odd outputs of the encoder": (lambda: {"encoder": nn.Linear(4, 5)}, "the guide of 'encoded' fails on these data: .*3.*2"),
    "wrong outputs of the decoder": (lambda: {"decoder": nn.Linear(2, 5)}, "the program of the model 'encoded' fails on these"),
    "no shape": (lambda: {"encoder": nn.LazyLinear(4)}, "layer 'encoder' of 'encoded' must be initialised; got LazyLinear"),
    "device": (lambda: {"encoder": nn.Linear(4, 4, device="meta")}, "'encoder.weight' must be on the CPU.*; got .*'meta'"),
    "half": (lambda: {"decoder": nn.Linear(2, 4).half()}, "'decoder.weight' must be float32 or float64; got float16"),
    "bfloat16": (lambda: {"decoder": nn.Linear(2, 4).bfloat16()}, "'decoder.weight' must be float32 or float64; got bfloat16"),
    "nan": (lambda: {"encoder": with_nan()}, "'encoder.1.weight' must be finite at the start; got 1 of 24 entries"),
    "nan from a layer": (
        lambda: {"decoder": two_layers(2, 4, Logarithm())},
        "the output of layer 'decoder.1' of 'encoded', Logarithm, must be finite at the start; got",
    ),
    "shared memory": (
        lambda: {"encoder": with_shared_memory()},
        "the parameters 'encoder.0.weight' and 'encoder.1.weight' of 'encoded' must not share memory",
    ),
    "scripted": (
        lambda: {"encoder": torch.jit.trace(nn.Linear(4, 4), torch.zeros(3, 4))},
        "layer 'encoder' of 'encoded' must be a torch module in Python; got a scripted one",
    ),
    "not registered": (
        lambda: {"third": nn.Linear(2, 2)},
        r'the parameter \'third.weight\' of \'encoded\' must be registered.* Add `pyro.module\("third", self.third\)`',
    ),
}


@pytest.mark.filterwarnings("ignore:.*is deprecated", "ignore:Lazy modules")
@pytest.mark.parametrize("case", REFUSED)
def test_networks_that_cannot_be_right_are_refused_by_name_before_the_first_step(case, iris):
    change, message = REFUSED[case]
    with pytest.raises(ModelError, match=message) as caught:
        prepared(Encoded.of(**change()), iris, FEW, progress=False)
    assert "\n" not in str(caught.value)


def test_a_module_that_is_no_attribute_is_refused(iris):
    net = nn.Linear(2, 4)

    class Outside(Encoded):
        def model(self, x):
            pyro.module("outside", net)
            super().model(x)

    with pytest.raises(ModelError, match="the module 'outside' must be an attribute of the model; its parameter 'weight'"):
        prepared(Outside(), iris, FEW, progress=False)


def test_a_program_with_parameters_is_refused_where_they_cannot_be_estimated(iris):
    with pytest.raises(ModelError, match=r"the parameter 'decoder.0.weight' of 'encoded' has no prior, so 'nuts' cannot draw it"):
        prepared(Encoded(), iris, NUTS(), progress=False)
    with pytest.raises(ModelError, match="has parameters, which are estimated with guide='model' only; got guide='mean_field'"):
        prepared(Encoded(), iris, SVI(guide="mean_field"), progress=False)


def test_layers_in_evaluation_mode_are_constants(iris):
    """Running statistics are constants of the fit, and neither weights nor statistics of the user's module change."""
    layers = nn.BatchNorm1d(6), nn.Dropout(0.5), nn.utils.parametrizations.weight_norm(nn.Linear(6, 6))
    model = Encoded.of(encoder=two_layers(4, 4, *layers))
    model.encoder[1].running_mean += 1.0
    model.encoder.eval()
    before = copy.deepcopy(model.encoder.state_dict())
    found = fit(model, iris, FEW, progress=False)
    after = model.encoder.state_dict()
    assert all(torch.equal(before[name], after[name]) and before[name].dtype == after[name].dtype for name in before)
    trained = {name.removeprefix("encoder."): value for name, value in found.parameters.items() if name.startswith("encoder.")}
    assert set(trained) == {name for name, _ in model.encoder.named_parameters()}
    assert all(np.abs(value - before[name].numpy()).max() > 1e-3 for name, value in trained.items())
    layers[0].running_mean.zero_()
    other = fit(model, iris, FEW, progress=False)
    assert abs(other.data["optimization"]["loss"] - found.data["optimization"]["loss"])[0, 0] > 1e-3


def test_fixed_and_tied_parameters(iris):
    model = Encoded.of(encoder=nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)))
    model.encoder[1].weight = model.encoder[0].weight
    model.encoder[2].requires_grad_(False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # Pyro warns about parameters without a gradient
        found = fit(model, iris, FEW, progress=False)
    assert [n for n in found.parameters if "encoder" in n] == ["encoder.0.weight", "encoder.0.bias", "encoder.1.bias"]
    bound = model.with_parameters({name: torch.tensor(value) for name, value in found.parameters.items()})
    assert bound.encoder[1].weight is bound.encoder[0].weight
    assert torch.equal(bound.encoder[2].weight, model.encoder[2].weight.double())
    x = torch.tensor(iris.x)
    mean = x
    for layer in bound.encoder:
        mean = mean @ layer.weight.mT + layer.bias
    np.testing.assert_allclose(bound.latents({"x": x}).mean, mean[:, :2].detach(), atol=1e-12)


def test_a_layer_that_the_objective_does_not_use_gives_a_warning(iris):
    class Unused(Encoded):
        def guide(self, x):
            pyro.module("third", self.third)
            super().guide(x)

    rows = fit(Unused.of(third=nn.Linear(2, 2)), iris, FEW, progress=False).diagnostics().query("check == 'parameters'")
    assert rows["verdict"].tolist() == ["warn"]
    assert "does not depend on third.weight, third.bias" in rows["quantity"].iloc[0]
    third = nn.Linear(2, 2).requires_grad_(False)
    assert fit(Unused.of(third=third), iris, FEW, progress=False).diagnostics().query("check == 'parameters'").empty


def test_restarts_begin_at_the_present_weights_and_then_at_new_ones(iris, monkeypatch):
    model = Encoded()
    model.encoder[0].requires_grad_(False)
    problem = prepared(model, iris, FEW, progress=False)

    def leaves(seed, *, fresh):
        with isolated(Seeds(seed)), pyro.validation_enabled(False):
            found = register_parameters(model, problem.arrays, fresh=fresh)
        return dict(zip(found.names, found.leaves, strict=True))

    own, first, again, other = (leaves(seed, fresh=fresh) for seed, fresh in ((0, False), (0, True), (0, True), (1, True)))
    assert set(own) == set(weights(model)) == set(first)
    for name, weight in weights(model).items():
        assert torch.equal(own[name], weight.tensor.double())
        assert torch.equal(first[name], again[name])
        assert not torch.equal(first[name], own[name])
        assert not torch.equal(first[name], other[name])
    monkeypatch.setattr("torch.distributions.normal._standard_normal", without_noise)
    several = SVI(guide="model", n_steps=3, n_particles=1, n_draws=5, n_restarts=2)
    one, two = fit(model, iris, several, progress=False).data["optimization"]["loss"].values
    np.testing.assert_array_equal(one, fit(model, iris, FEW, progress=False).data["optimization"]["loss"].values[0])
    assert abs(two[0] - one[0]) > 1e-3


def test_checkpoints_belong_to_the_layers_and_constants_but_not_to_the_start(iris, tmp_path):
    torch.manual_seed(0)

    def identity(change=lambda model: None, between=nn.Tanh):
        model = Encoded.of(encoder=two_layers(4, 4, between(), nn.BatchNorm1d(6)))
        model.encoder.eval()
        change(model)
        return prepared(model, iris, FEW, progress=False, checkpoint=tmp_path).identity

    assert identity() == identity()
    changes = (
        lambda model: model.encoder[2].running_mean.add_(1.0),
        lambda model: model.encoder[0].requires_grad_(False),
        lambda model: model.decoder.append(nn.Linear(4, 4)),
    )
    assert len({identity(), identity(between=nn.ReLU), *map(identity, changes)}) == 5


def test_single_precision_follows_double_precision(iris, monkeypatch):
    """Without noise, which differs between the precisions."""
    monkeypatch.setattr(
        "torch.distributions.normal._standard_normal", lambda shape, dtype, device: torch.zeros(shape, dtype=dtype)
    )
    model, losses = Encoded(), []
    for precision in ("double", "single"):
        method = SVI(guide="model", n_steps=30, n_particles=1, n_draws=5, precision=precision, held_out=0.2)
        losses.append(fit(model, iris, method, progress=False).data["optimization"]["loss"].values)
    assert np.abs(losses[1] - losses[0]).max() > 0
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-4)


class Constant(LatentModel):
    """x_n ~ N(w t + b, s^2) with t ~ N(0, 1) and a linear layer."""

    name, position, symmetry, methods = "constant", Position("t"), Identity(), ("map",)
    dims = {"t": ()}
    parameters = {"s": ()}

    def __init__(self):
        self.layer = nn.Linear(1, 1)

    def model(self, x):
        pyro.module("layer", self.layer)
        s = pyro.param("s", torch.tensor(1.0), constraints.positive)
        t = pyro.sample("t", dist.Normal(0.0, 1.0))
        with pyro.plate("unit", len(x)):
            pyro.sample("x", dist.Normal(self.layer(t[..., None])[..., 0], s), obs=x)


@pytest.mark.filterwarnings("ignore:.*")
def test_the_joint_mode_of_sites_and_parameters(rng):
    """At the maximum t = 0, b is the mean and s the standard deviation of the data."""
    x = rng.normal(3.0, 2.0, 40)
    found = fit(Constant(), Dataset({"x": x}, dims={"x": ("unit",)}), MAP(n_restarts=2), progress=False)
    assert found.sites()["t"][0, 0] == pytest.approx(0.0, abs=1e-5)
    assert found.parameters["layer.bias"] == pytest.approx(x.mean(), abs=1e-5)
    assert found.parameters["s"] == pytest.approx(x.std(), abs=1e-5)
    log_joint = stats.norm.logpdf(0.0) + stats.norm.logpdf(x, x.mean(), x.std()).sum()
    np.testing.assert_allclose(found.data["optimization"]["log_joint"], log_joint, rtol=1e-9)


def test_the_bound_of_an_exact_encoder_is_the_log_likelihood(rng):
    """x ~ N(W z, s^2 I) with q(z | x) = p(z | x), set by hand: then all importance weights of a unit are equal.

    The units have independent features, so that the posterior is a diagonal Gaussian.
    """
    W, s = np.array([[1.5, 0.0], [0.0, -0.7]]), 0.5
    encoder, decoder = nn.Linear(2, 4).double(), nn.Linear(2, 2).double()
    precision = 1.0 + np.diag(W) ** 2 / s**2
    with torch.no_grad():
        decoder.weight.copy_(torch.tensor(W))
        decoder.bias.zero_()
        encoder.weight.copy_(torch.tensor(np.vstack([np.diag(np.diag(W) / s**2 / precision), np.zeros((2, 2))])))
        encoder.bias.copy_(torch.tensor([0.0, 0.0, *(-np.log(precision) / 2)]))
    x = rng.normal(size=(30, 2))
    dataset = Dataset({"x": x}, dims={"x": ("unit", "feature")})
    model = Encoded.of(encoder=encoder, decoder=decoder)
    found = fit(model, dataset, SVI(guide="model", n_steps=1, n_particles=1, n_draws=5, learning_rate=1e-13), progress=False)
    new = rng.normal(size=(7, 2))
    expected = stats.multivariate_normal.logpdf(new, np.zeros(2), W @ W.T + s**2 * np.eye(2))
    score = found.held_out_terms(new, n_samples=3)
    np.testing.assert_allclose(score["bound"], expected, atol=1e-6)
    means = found.latents(new).mean("chain").values
    assert means.shape == (5, 7, 2)
    frozen = found.frozen()
    np.testing.assert_array_equal(frozen.base.decoder.weight, found.parameters["decoder.weight"])


def test_networks_in_lists_and_dicts_are_found():
    model = Encoded.of(layers=[nn.Linear(1, 1), (nn.Linear(1, 2),)], named={"a": nn.Linear(1, 1)}, number=3)
    assert set(networks(model)) == {"encoder", "decoder", "layers.0", "layers.1.0", "named.a"}
    values = {"layers.1.0.weight": torch.ones(2, 1, dtype=torch.float64)}
    bound = model.with_parameters(values)
    assert bound.layers[1][0].weight is values["layers.1.0.weight"]
    assert bound.named["a"].weight.dtype == torch.float64
    assert model.named["a"].weight.dtype == torch.float32
