"""Tests of weights of a model's own modules: values that are given, and encoders and parameters that are refused."""

import copy
import shutil

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.distributions import constraints

from latentlab.errors import ModelError
from latentlab.fit import fit
from latentlab.inference import model_guide
from latentlab.inference.joint import log_joint
from latentlab.inference.svi import SVI
from latentlab.models.base import LatentModel, Position
from latentlab.models.vae import VAE
from latentlab.results.prepare import prepared
from latentlab.symmetry.groups import Identity

FEW = SVI(guide="model", n_steps=3, n_particles=1, n_draws=5)


class Line(LatentModel):
    """x_n ~ N(f(z_n), s^2) with one position for each unit, and linear layers."""

    name, position, symmetry, methods = "line", Position("z"), Identity(), ("svi",)
    dims = {"z": ("unit", "latent")}
    parameters = {"s": ("feature",)}

    def __init__(self, n_event=1):
        self.n_event = n_event
        self.encoder, self.decoder = nn.Linear(4, 2), nn.Linear(1, 4)

    @classmethod
    def of(cls, **attributes):
        """A model with other attributes."""
        model = cls()
        vars(model).update(attributes)
        return model

    def model(self, x):
        pyro.module("decoder", self.decoder)
        s = pyro.param("s", torch.ones(4), constraints.positive)
        with pyro.plate("unit", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(z), s).to_event(1), obs=x)

    def guide(self, x):
        pyro.module("encoder", self.encoder)
        mean, log_scale = self.encoder(x).chunk(2, -1)
        with pyro.plate("unit", len(x)):
            pyro.sample("z", dist.Normal(mean, log_scale.exp()).to_event(1))

    def latents(self, arrays, **values):
        mean, log_scale = self.encoder(arrays["x"]).chunk(2, -1)
        return dist.Normal(mean, log_scale.exp()).to_event(self.n_event)


def values(**changed):
    found = {
        "s": np.ones(4),
        "encoder.weight": np.ones((2, 4)),
        "encoder.bias": np.zeros(2),
        "decoder.weight": np.ones((4, 1)),
        "decoder.bias": np.zeros(4),
    }
    return {name: value for name, value in {**found, **changed}.items() if value is not None}


INVALID = {
    "no weight": ({"encoder.bias": None}, r"the parameter 'encoder.bias' of 'line' must have a value of shape \(2,\); got none"),
    "a bias for all": (
        {"decoder.bias": np.zeros(1)},
        r"the parameter 'decoder.bias' of 'line' must have shape \(4,\); got \(1,\)",
    ),
    "transposed": (
        {"decoder.weight": np.ones((1, 4))},
        r"the parameter 'decoder.weight' of 'line' must have shape \(4, 1\); got \(1, 4\)",
    ),
}
DECLARED = {
    "no parameter": ({"s": None}, r"the parameter 's' of 'line' must have a value with dims \('feature',\); got none"),
    "a scalar": ({"s": np.ones(())}, r"the parameter 's' of 'line' must have an axis for each of \('feature',\); got shape \(\)"),
}


@pytest.mark.parametrize("case", {**INVALID, **DECLARED})
def test_a_model_is_frozen_at_complete_parameters_only(case):
    changed, message = {**INVALID, **DECLARED}[case]
    Line().frozen(values())
    with pytest.raises(ModelError, match=message) as caught:
        Line().frozen(values(**changed))
    assert "\n" not in str(caught.value)


def test_sizes_of_frozen_parameters_agree(iris):
    model = VAE(2, hidden=(3,))
    found = dict(fit(model, iris, FEW, progress=False).parameters)
    model.frozen(found)
    with pytest.raises(ModelError, match="'decoder_1_b' of 'vae' must have size 3 along 'decoder_1', as 'decoder_1_z'; got 1"):
        model.frozen({**found, "decoder_1_b": np.zeros(1)})


@pytest.mark.parametrize("case", [name for name in INVALID if name != "no weight"])
def test_the_log_joint_needs_weights_of_the_right_shapes(case, iris):
    changed, message = INVALID[case]
    given = {**values(**changed), "z": np.zeros((150, 1))}
    with pytest.raises(ModelError, match=message):
        log_joint(Line(), iris, given)


def test_an_encoder_without_an_event_axis_is_refused(iris):
    """At q = 1 its densities (150, 1) would broadcast against those of the units, (150,)."""
    prepared(Line(), iris, FEW, progress=False)
    with pytest.raises(ModelError) as caught:
        prepared(Line(n_event=0), iris, FEW, progress=False)
    assert str(caught.value) == (
        "`latents` of 'line' must have batch shape (150,) and event shape (1,); got (150, 1) and (). Add `.to_event(1)`."
    )


@pytest.mark.parametrize("place", ["scale", "items.1", "named.a"])
def test_a_parameter_outside_of_modules_is_refused(place, iris):
    lone = nn.Parameter(torch.ones(3))
    attributes = {"scale": {"scale": lone}, "items.1": {"items": [2, lone]}, "named.a": {"named": {"a": lone}}}
    with pytest.raises(ModelError, match=rf"`{place}` of 'line' must be in a torch module .*; got Parameter of shape \(3,\)"):
        prepared(Line.of(**attributes[place]), iris, FEW, progress=False)
    prepared(Line.of(scale=torch.ones(3)), iris, FEW, progress=False)


@pytest.mark.filterwarnings("ignore:.*weight_norm")
@pytest.mark.parametrize("model", [lambda layer: Line.of(encoder=layer), lambda layer: VAE(2, encoder=nn.Sequential(layer))])
def test_layers_that_cannot_be_copied_are_refused_by_name(model, iris):
    layer = nn.utils.weight_norm(nn.Linear(4, 2 if model(nn.Linear(4, 2)).name == "line" else 4))
    path = "encoder" if model(layer).name == "line" else "encoder.0"
    with pytest.raises(ModelError, match=rf"layer '{path}' of .* got Linear with 'weight' computed before.*parametrizations"):
        prepared(model(layer), iris, FEW, progress=False)


def test_other_starting_weights_than_those_of_a_checkpoint_are_noticed(iris, tmp_path, monkeypatch):
    """The interrupted fit continues, so that nothing is lost, with a warning that names the first weight."""
    model, folder = Line(), tmp_path / "fit"
    prepared(model, iris, FEW, progress=False, checkpoint=folder)
    prepared(Line(), iris, FEW, progress=False, checkpoint=folder)  # nothing was computed: the start is another one
    model = Line()

    def failing(*_, **__):
        raise ZeroDivisionError("a fault of the draws")

    with monkeypatch.context() as patch:
        patch.setattr(model_guide, "guide_draws", failing)
        with pytest.raises(ZeroDivisionError):
            fit(model, iris, FEW, progress=False, checkpoint=folder)
    shutil.copytree(folder, tmp_path / "copy")
    whole = fit(model, iris, FEW, progress=False, checkpoint=folder)
    other = copy.deepcopy(model)
    other.decoder.bias.data += 1.0
    with pytest.warns(UserWarning, match="which began at another 'decoder.bias' than the model has now"):
        found = fit(other, iris, FEW, progress=False, checkpoint=tmp_path / "copy")
    for name, value in whole.parameters.items():
        np.testing.assert_array_equal(found.parameters[name], value)
