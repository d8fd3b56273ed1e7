"""Tests of encoders and decoders as torch modules: built-in architectures, settings, parameters, and errors."""

import math
import sys
from dataclasses import replace
from types import ModuleType

import numpy as np
import pyro
import pytest
import torch
from torch import nn

from latentlab.data.dataset import Dataset
from latentlab.data.load import load_dataset
from latentlab.errors import ConfigError, DataError, LatentLabError, ModelError
from latentlab.fit import fit
from latentlab.inference.arrays import tensors
from latentlab.inference.joint import log_joint
from latentlab.inference.parameters import register_parameters
from latentlab.inference.svi import SVI
from latentlab.inference.svi_loss import to_float32
from latentlab.models.architectures.built_in import convolutional, recurrent, residual
from latentlab.models.vae import VAE
from latentlab.registry import plugins
from latentlab.results.prepare import prepared
from latentlab.seeds import double, isolated, single
from latentlab.symmetry.groups import Identity, Orthogonal

QUICK = SVI(guide="model", n_steps=30, learning_rate=0.01, n_particles=2, batch_size=40, n_draws=20)


def own(n_inputs, n_outputs, width=5, offset=0.0):
    """A factory of two layers."""
    network = nn.Sequential(nn.Linear(n_inputs, width), nn.Tanh(), nn.Linear(width, n_outputs))
    network[2].bias.data += offset
    return network


def as_tensors(values):
    return {name: torch.tensor(np.asarray(value), dtype=torch.float64) for name, value in values.items()}


# -- built-in architectures


def mean_of(module, x):
    with torch.no_grad():
        return module.double()(torch.as_tensor(x)).numpy()


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("shape", [(1, 8, 8), (2, 5, 7), (1, 1, 6)])
def test_convolutions_map_images_to_images_of_the_same_shape(shape, stride, rng):
    n = math.prod(shape)
    options = {"shape": shape, "channels": (3, 4), "stride": stride, "n_features": n}
    encoder = convolutional(2 * n, 5, "encoder", **options)
    decoder = convolutional(2, 3 * n, "decoder", **options)
    assert mean_of(encoder, rng.normal(size=(6, 2 * n))).shape == (6, 5)
    assert mean_of(decoder, rng.normal(size=(6, 2))).shape == (6, 3 * n)
    assert [tuple(m.weight.shape)[:2] for m in encoder if isinstance(m, nn.Conv2d)] == [(3, 2 * shape[0]), (4, 3)]
    assert [tuple(m.weight.shape)[:2] for m in decoder if isinstance(m, nn.ConvTranspose2d)] == [(4, 3), (3, 3 * shape[0])]


def test_a_transposed_convolution_matches_loops(rng):
    """One layer, one channel: each pixel of the small image adds the kernel to the large one, `stride` pixels apart."""
    decoder = convolutional(2, 36, "decoder", 36, shape=(1, 6, 6), channels=(1,), activation="softplus").double()
    linear, layer = decoder[0], decoder[3]
    z = rng.normal(size=(1, 2))
    small = np.log1p(np.exp(z @ linear.weight.detach().numpy().T + linear.bias.detach().numpy())).reshape(3, 3)
    kernel, large = layer.weight.detach().numpy()[0, 0], np.zeros((8, 8))
    for i in range(3):
        for j in range(3):
            large[2 * i : 2 * i + 3, 2 * j : 2 * j + 3] += small[i, j] * kernel
    expected = large[1:7, 1:7] + layer.bias.item()
    np.testing.assert_allclose(mean_of(decoder, z), expected.reshape(1, 36), rtol=1e-10)


def test_a_residual_network_matches_numpy(rng):
    network = residual(3, 4, width=5, n_blocks=2, activation="tanh").double()
    x = rng.normal(size=(6, 3))

    def affine(layer, h):
        return h @ layer.weight.detach().numpy().T + layer.bias.detach().numpy()

    h = affine(network[0], x)
    for block in (network[1], network[2]):
        h = h + affine(block.inside[3], np.tanh(affine(block.inside[1], np.tanh(h))))
    np.testing.assert_allclose(mean_of(network, x), affine(network[4], np.tanh(h)), rtol=1e-10)


def test_the_recurrent_encoder_matches_torch(rng):
    """Compares with `torch.nn.GRU` of the same weights, in both directions; two blocks of features are further channels."""
    encoder = recurrent(2 * 6, 5, "encoder", 6, width=4, n_channels=2).double()
    reader = encoder[1]
    x = rng.normal(size=(7, 2, 3, 2))  # unit, block, step, channel
    steps = torch.tensor(x.transpose(0, 2, 3, 1).reshape(7, 3, 4))
    last = []
    for cells, series in ((reader.forwards, steps), (reader.backwards, steps.flip(1))):
        gru = nn.GRU(4, 4, batch_first=True).double()
        names = {"weight_ih_l0": cells.inputs.weight, "bias_ih_l0": cells.inputs.bias}
        gru.load_state_dict({**names, "weight_hh_l0": cells.states.weight, "bias_hh_l0": cells.states.bias})
        last.append(gru(series)[1][0])
    expected = encoder[2](torch.cat(last, -1)).detach().numpy()
    np.testing.assert_allclose(mean_of(encoder, x.reshape(7, 12)), expected, rtol=1e-10)


def test_the_recurrent_decoder_writes_blocks_of_series(rng):
    """Without states, each step has the same outputs: the same number for all steps of a channel and block."""
    decoder = recurrent(2, 3 * 6, "decoder", 6, width=4, n_channels=2).double()
    writer = decoder[2]
    nn.init.zeros_(writer.cells.states.weight)
    found = mean_of(decoder, rng.normal(size=(5, 2))).reshape(5, 3, 3, 2)  # unit, block, step, channel
    assert (np.ptp(found, axis=2)[:, :, :] > 0).any()  # the state still accumulates
    nn.init.constant_(writer.cells.states.bias[4:8], -50.0)  # no memory of the previous state
    nn.init.constant_(writer.cells.inputs.bias[4:8], -50.0)
    found = mean_of(decoder, rng.normal(size=(5, 2))).reshape(5, 3, 3, 2)
    np.testing.assert_allclose(np.ptp(found, axis=2), 0.0, atol=1e-12)
    assert np.ptp(found, axis=1).min() > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "convolutional"}, "10 features are no square image; set `shape` to channels, rows, columns"),
        ({"name": "convolutional", "shape": [1, 3, 3]}, r"whose product is the number of features, 10; got \[1, 3, 3\]"),
        ({"name": "convolutional", "shape": [1, 2, 5], "kernel_size": 2}, "`kernel_size` must be an odd number; got 2"),
        ({"name": "convolutional", "shape": [1, 2, 5], "channels": []}, "`channels` must have at least one number"),
        ({"name": "recurrent", "n_channels": 3}, "`n_channels` must divide the 10 features"),
    ],
)
def test_architectures_that_do_not_match_the_data_are_refused(options, message, rng):
    dataset = VAE(2).simulate(rng, 9)
    for side in ("encoder", "decoder"):
        with pytest.raises(ModelError, match=f"VAE: `{side}`: .*{message}"):
            fit(VAE(2, **{side: options}), dataset, QUICK)


# -- fits


def small(dataset, n=60):
    return dataset.subset(range(n))


@pytest.mark.parametrize(
    "options",
    [
        {side: {"name": "convolutional", "channels": [3]} for side in ("encoder", "decoder")},
        {side: {"name": "residual", "width": 6} for side in ("encoder", "decoder")},
        {side: {"name": "recurrent", "width": 4, "n_channels": 8} for side in ("encoder", "decoder")},
        {"encoder": "convolutional", "likelihood": "discretised_logistic", "grid": [0, 16], "noise": "entry"},
    ],
    ids=["convolutional", "residual", "recurrent", "mixed"],
)
def test_built_in_networks_are_fitted_and_used(options):
    raw = options.get("likelihood", "gaussian") != "gaussian"
    dataset = small(load_dataset("digits", dequantize=not raw, standardize=False))
    model = VAE(2, (4,), **options)
    found = fit(model, dataset, QUICK, seed=0, progress=False)
    assert set(found.parameters) == set(model.parameters)
    assert all(np.isfinite(value).all() for value in found.parameters.values())
    few = dataset.subset(range(5))
    assert found.latents(few).sizes["unit"] == 5
    assert np.isfinite(found.held_out_score(few, n_samples=20)["bound"])
    assert found.activity()["kl"].gt(0).all()
    again = VAE(**model.hyperparameters())  # as in a stored run
    with double():
        old, new = (m.latents(tensors(m, few), **as_tensors(found.parameters)).mean for m in (model, again))
    np.testing.assert_array_equal(old, new)


@pytest.mark.parametrize("name", ["convolutional", "residual", "recurrent"])
def test_networks_run_in_single_precision(name):
    dataset = small(load_dataset("digits", dequantize=True, standardize=False))
    model = VAE(2, encoder=name, decoder=name, prior="mixture", n_components=2)
    found = fit(model, dataset, replace(QUICK, precision="single"), seed=0, progress=False)
    assert np.isfinite(found.data["optimization"]["loss"].values).all()
    arrays, values = tensors(model, dataset), as_tensors(found.parameters)
    with double():
        expected = model.latents(arrays, **values).mean
    with single():
        rounded = model.latents(to_float32(arrays), **to_float32(values)).mean
    assert rounded.dtype == torch.float32
    np.testing.assert_allclose(rounded, expected, atol=1e-4)


def test_modules_and_layers_give_the_same_density(rng):
    """Gives a module the weights of the layers `hidden`."""
    layers = VAE(2, (4,), activation="tanh")
    dataset = layers.simulate(rng, 8)
    t = dataset.truth
    network = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 10, bias=False))
    model = VAE(2, decoder=network)
    values = {
        "z": t["z"], "sigma": t["sigma"], "decoder.0.weight": t["decoder_1_z"].T, "decoder.0.bias": t["decoder_1_b"],
        "decoder.2.weight": t["decoder_2_h"].T, "decoder_b": t["decoder_2_b"],
    }  # fmt: skip
    assert log_joint(model, dataset, values) == pytest.approx(log_joint(layers, dataset, t), rel=1e-12)


def test_modules_are_not_changed_by_a_fit_and_start_at_their_values(iris):
    torch.manual_seed(0)
    network = own(2, 4, offset=3.0)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    model = VAE(2, decoder=network)
    found = fit(model, iris, SVI(guide="model", n_steps=1, learning_rate=1e-9, n_particles=1, n_draws=5), progress=False)
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name])
        np.testing.assert_allclose(found.parameters[f"decoder.{name}"], value, atol=1e-7)
    assert network[0].weight.dtype == torch.float32
    assert found.data["parameters"]["decoder.0.weight"].shape == (5, 2)


def test_restarts_of_a_factory_start_at_different_weights(iris):
    model = VAE(2, decoder={"name": "residual", "width": 3})
    method = SVI(guide="model", n_steps=2, learning_rate=1e-9, n_particles=1, n_draws=5)
    one, two = (fit(model, iris, method, seed=seed, progress=False).parameters["decoder.0.weight"] for seed in (0, 1))
    assert np.abs(one - two).min() > 0


@pytest.mark.parametrize("is_given", [True, False])
def test_a_module_begins_each_restart_at_its_weights_and_a_factory_at_new_ones(is_given, iris):
    decoder = nn.Linear(2, 4) if is_given else {"name": "residual", "width": 3}
    model = VAE(2, encoder=nn.Linear(4, 4), decoder=decoder)
    problem = prepared(model, iris, QUICK, progress=False)
    starts = []
    for restart in (0, 1):
        with isolated(problem.seeds.child("restart", restart)), pyro.validation_enabled(False):
            found = register_parameters(model, problem.arrays, fresh=restart > 0)
        starts.append(dict(zip(found.names, found.leaves, strict=True)))
    assert torch.equal(starts[0]["encoder.weight"], starts[1]["encoder.weight"])
    name = "decoder.weight" if is_given else "decoder.0.weight"
    assert torch.equal(starts[0][name], starts[1][name]) == is_given


def test_constant_parameters_and_buffers_are_not_trained(iris):
    network = nn.Sequential(nn.Linear(2, 5), nn.BatchNorm1d(5).eval(), nn.Linear(5, 4))
    network[0].weight.requires_grad_(False)
    model = VAE(2, decoder=network)
    found = fit(model, iris, QUICK, seed=0, progress=False)
    assert "decoder.0.weight" not in found.parameters
    assert "decoder.1.weight" in found.parameters
    assert np.isfinite(found.held_out_score(iris.raw().subset(range(4)), n_samples=5)["bound"])


def test_a_layer_that_is_used_twice_is_trained(iris):
    """The densities of the fitted model and of a new one are equal, also in later calls."""
    twice = nn.Linear(3, 3)
    start = twice.weight.detach().clone()
    network = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), twice, nn.Tanh(), twice, nn.Linear(3, 4))
    found = fit(VAE(2, decoder=network), iris, QUICK, seed=0, progress=False)
    assert np.abs(found.parameters["decoder.2.weight"] - start.numpy()).min() > 1e-3
    assert "decoder.4.weight" not in found.parameters
    values = as_tensors(found.parameters)
    values["z"] = torch.ones(len(iris.x), 2, dtype=torch.float64)
    levels = [log_joint(model, iris, values) for model in (found.model, found.model, VAE(2, decoder=network))]
    assert levels == [levels[0]] * 3


def test_parameters_in_both_networks_are_refused():
    shared = nn.Linear(4, 4)
    with pytest.raises(ConfigError, match=r"`encoder` and `decoder` must not share parameters; got 1.weight in both"):
        VAE(2, encoder=shared, decoder=nn.Sequential(nn.Linear(2, 4), shared))


@pytest.mark.parametrize("n_missing", [0, 5])
def test_weights_of_missing_entries_are_no_unused_parameters(n_missing, iris):
    x = iris.x.copy()
    x[:n_missing, 1] = np.nan
    dataset = Dataset({"x": x}, dims={"x": ("unit", "feature")})
    table = fit(VAE(2, hidden=(4,)), dataset, QUICK, seed=0, progress=False).diagnostics()
    assert not table.to_string().count("does not depend on")


class Constant(nn.Module):
    """A linear layer and a constant."""

    def __init__(self, value):
        super().__init__()
        self.layer = nn.Linear(2, 4)
        self.register_buffer("value", torch.as_tensor(value))

    def forward(self, z):
        return self.layer(z) + self.value


def test_constants_of_a_factory_are_the_same_in_a_loaded_model(iris, module):
    """They are not saved, so that those of a loaded model are drawn again."""
    module.seeded = lambda n_inputs, n_outputs: Constant(np.random.standard_normal(4))
    z = torch.zeros(3, 2, dtype=torch.float64)
    outputs = []
    for _ in range(2):
        model = VAE(2, decoder={"factory": "networks_for_test:seeded"})
        model.check(iris)
        values = {n: torch.zeros(v.shape, dtype=torch.float64) for n, v in Constant(0.0).named_parameters()}
        outputs += model._pair.built("decoder")({"z": z}, {f"decoder.{n}": v for n, v in values.items()})
    assert torch.equal(*outputs)
    module.random = lambda n_inputs, n_outputs: Constant(np.random.default_rng().normal(size=4))
    with pytest.raises(ModelError, match="the constant 'value' must be the same in each call of the factory; got two"):
        VAE(2, decoder={"factory": "networks_for_test:random"}).check(iris)


def test_labels_and_missing_entries_reach_modules(iris):
    x = iris.x.copy()
    x[::7, 1] = np.nan
    missing = Dataset({"x": x}, dims={"x": ("unit", "feature")}, labels=iris.labels)
    options = {"name": "residual", "width": 4}
    model = VAE(2, encoder=options, decoder=options, conditional=True)
    found = fit(model, missing, QUICK, seed=0, progress=False)
    assert found.parameters["decoder.0.weight"].shape == (4, 5)
    assert found.parameters["encoder.0.weight"].shape == (4, 7)
    arrays = tensors(model, missing)
    arrays["x"][0, 1] = 77.0
    with double():
        means = [model.latents(a, **as_tensors(found.parameters)).mean for a in (arrays, tensors(model, missing))]
    np.testing.assert_array_equal(*means)


class Shifted(nn.Sequential):
    """A sequence of layers whose first one is not linear in the inputs."""

    def forward(self, x):
        return super().forward(x**2)


TWICE = nn.Linear(2, 2)


@pytest.mark.parametrize(
    ("decoder", "group"),
    [
        (nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4)), Orthogonal()),
        (nn.Sequential(nn.Tanh(), nn.Linear(2, 4)), Identity()),
        (nn.Linear(2, 4), Identity()),
        (Shifted(nn.Linear(2, 4)), Identity()),
        (nn.Sequential(TWICE, nn.Tanh(), TWICE, nn.Linear(2, 4)), Identity()),
        ("residual", Orthogonal()),
        ({"name": "recurrent", "width": 3}, Orthogonal()),
        ({"factory": "networks_for_test:own"}, Identity()),
    ],
)
def test_the_symmetry_of_the_decoder_is_declared(decoder, group, module):
    assert VAE(2, decoder=decoder).symmetry == group
    assert VAE(2, decoder=decoder, conditional=True).symmetry == Identity()
    assert VAE(2, decoder=decoder, prior="vamp").symmetry == Identity()


# -- factories


@pytest.fixture
def module(monkeypatch):
    """A module with factories, as in a user's package."""
    found = ModuleType("networks_for_test")

    def fails(n_inputs, n_outputs):
        raise RuntimeError("no weights\nfor you")

    def nothing(n_inputs, n_outputs):
        return None

    def without_arguments():
        return nn.Linear(2, 2)

    found.own, found.fails, found.nothing, found.without_arguments, found.number = own, fails, nothing, without_arguments, 3
    monkeypatch.setitem(sys.modules, "networks_for_test", found)
    return found


@pytest.mark.usefixtures("module")
def test_a_factory_is_called_with_sizes_and_arguments(iris):
    model = VAE(2, decoder={"factory": "networks_for_test:own", "width": 7}, encoder={"factory": "networks_for_test:own"})
    found = fit(model, iris, QUICK, seed=0, progress=False)
    assert found.parameters["decoder.0.weight"].shape == (7, 2)
    assert found.parameters["encoder.2.weight"].shape == (4, 5)
    assert "factory" in repr(model)


PLUGIN = """
import torch


def narrow(n_inputs, n_outputs, width=3):
    \"\"\"Two layers.\"\"\"
    return torch.nn.Sequential(torch.nn.Linear(n_inputs, width), torch.nn.Tanh(), torch.nn.Linear(width, n_outputs))


def broken(n_inputs, n_outputs):
    return 1 / 0


networks = {"narrow": narrow, "broken": broken}
"""


def test_a_plugin_has_networks(tmp_path, iris):
    path = tmp_path / "plugin.py"
    path.write_text(PLUGIN)
    with plugins([path]):
        model = VAE(2, decoder={"name": "narrow", "width": 4}, encoder="narrow")
        broken = VAE(2, decoder="broken")
    assert fit(model, iris, QUICK, seed=0, progress=False).parameters["decoder.0.weight"].shape == (4, 2)
    with pytest.raises(
        ModelError, match=r"the factory 'broken' raised ZeroDivisionError: division by zero \(.*plugin.py, line 11"
    ):
        fit(broken, iris, QUICK)
    with pytest.raises(ConfigError, match="narrow"):
        VAE(2, decoder="narrow")


@pytest.mark.usefixtures("module")
@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"factory": "networks_for_test:missing"}, "`factory` must be an importable function; got .*AttributeError"),
        ({"factory": "no_such_package.part:own"}, "`factory` must be an importable function; got .*ModuleNotFoundError"),
        ({"factory": "own"}, "`factory` must be text of the form package.module:function; got 'own'"),
        ({"factory": "networks_for_test:number"}, "`factory` must be a function; got 'networks_for_test:number', which is int"),
        ({"factory": "networks_for_test:own", "depth": 2}, "'networks_for_test:own' must accept n_inputs, n_outputs, depth"),
        (
            {"factory": "networks_for_test:without_arguments"},
            "must accept n_inputs, n_outputs as keywords; got: got an unexpected",
        ),
        ({"factory": "networks_for_test:own", "n_inputs": 2}, "the argument `n_inputs` is set by the model; remove it"),
        ({"name": "residual", "factory": "networks_for_test:own"}, "must have one of the keys `name` and `factory`"),
        ({"name": "residual", "width": 0}, "residual: `width` must be a whole number of at least 1; got 0"),
        ({"name": "convolutional", "channels": ["8"]}, r"`channels` must be a list of whole numbers of at least 1; got \['8'\]"),
        ({"width": 3}, "must have one of the keys `name` and `factory`"),
        ("residul", "residual"),
        (
            {"name": "multilayer", "width": 3},
            "'multilayer' must have no arguments; got 'width'. Set its layers by `(encoder_)?hidden`",
        ),
        (3, "must be the name of an architecture, a mapping with `name` or `factory`, or a torch.nn.Module; got 3"),
        ({"name": "residual", "width": 3, "depth": 3}, "'residual' must accept n_inputs, n_outputs, width, depth"),
    ],
)
def test_settings_of_networks_that_are_not_valid_are_refused(setting, message):
    for side in ("encoder", "decoder"):
        with pytest.raises(ConfigError, match=message):
            VAE(2, **{side: setting})


def test_the_layers_of_the_model_can_be_named_in_a_mapping():
    named = VAE(2, (3,), encoder={"name": "multilayer"}, decoder={"name": "multilayer"})
    assert repr(named) == repr(VAE(2, (3,)))


class Transposed(nn.Linear):
    """A layer with an error."""

    def forward(self, x):
        return super().forward(x.T)


class NotFinite(nn.Linear):
    def forward(self, x):
        return super().forward(x) / 0.0


class Normalised(nn.Linear):
    """Subtracts the mean over units."""

    def forward(self, x):
        out = super().forward(x)
        return out - out.mean(0)


class Noisy(nn.Linear):
    def forward(self, x):
        return super().forward(x) + torch.randn(())


@pytest.mark.usefixtures("module")
@pytest.mark.parametrize(
    ("side", "setting", "message"),
    [
        ("encoder", nn.Linear(4, 3), r"`encoder` must have outputs \(2, 4\) for inputs \(2, 4\); got \(2, 3\)"),
        ("decoder", nn.Linear(2, 5), r"`decoder` must have outputs \(2, 4\) for inputs \(2, 2\); got \(2, 5\)"),
        ("decoder", nn.GRU(2, 4), r"`decoder` must have outputs \(2, 4\).*; got tuple"),
        ("encoder", nn.Linear(5, 4), r"`encoder` cannot be evaluated for inputs \(2, 4\): RuntimeError: mat1 and mat2"),
        ("decoder", nn.Identity(), "`decoder` must have parameters to estimate; got a module without any"),
        ("decoder", nn.Linear(2, 4).requires_grad_(False), "`decoder` must have parameters to estimate"),
        ("encoder", nn.Linear(4, 4).half(), "'encoder.weight' must be float32 or float64; got float16"),
        ("decoder", nn.Linear(2, 4, device="meta"), "'decoder.weight' must be on the CPU.*; got a tensor on 'meta'"),
        ("decoder", NotFinite(2, 4), "`decoder` must have finite outputs for random inputs; got (inf|-inf|nan)"),
        ("decoder", Normalised(2, 4), "for a unit must not depend on other units or on random numbers; got a difference of"),
        ("encoder", Noisy(4, 4), "for a unit must not depend on other units or on random numbers; got a difference of"),
        ("encoder", nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 4)), "layer 'encoder.0' of 'vae' must treat units separately"),
        (
            "decoder",
            nn.Sequential(nn.Linear(2, 4), nn.Dropout(0.1)),
            "layer 'decoder.1' of 'vae' must be .*; got Dropout.* call `.eval",
        ),
        ("decoder", Transposed(2, 3), r"`decoder` (must have outputs|cannot be evaluated)"),
        ("decoder", {"factory": "networks_for_test:fails"}, "'networks_for_test:fails' raised RuntimeError: no weights for you"),
        ("decoder", {"factory": "networks_for_test:nothing"}, "must return a torch.nn.Module; got NoneType"),
    ],
)
def test_networks_that_cannot_be_right_are_refused_before_the_first_step(side, setting, message, iris):
    with pytest.raises(LatentLabError, match=message) as raised:
        fit(VAE(2, **{side: setting}), iris, QUICK)
    assert "\n" not in str(raised.value)
    assert isinstance(raised.value, ConfigError | ModelError | DataError)


def test_the_text_of_a_module_depends_on_its_parameters():
    one, two = nn.Linear(2, 4), nn.Linear(2, 4)
    assert repr(VAE(2, decoder=one)) == repr(VAE(2, decoder=one))
    assert repr(VAE(2, decoder=one)) != repr(VAE(2, decoder=two))
    fixed = nn.Linear(2, 4)
    fixed.load_state_dict(one.state_dict())
    assert repr(VAE(2, decoder=nn.Sequential(one))) == repr(VAE(2, decoder=nn.Sequential(fixed)))
    fixed.bias.requires_grad_(False)
    assert repr(VAE(2, decoder=nn.Sequential(one))) != repr(VAE(2, decoder=nn.Sequential(fixed)))
    one.power, two = 2, nn.Linear(2, 4)
    two.load_state_dict(one.state_dict())
    assert repr(VAE(2, decoder=one)) != repr(VAE(2, decoder=two))
