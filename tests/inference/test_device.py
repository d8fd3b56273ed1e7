"""Tests of steps on another device, by meta tensors, and on a GPU if available."""

import contextlib
import logging

import numpy as np
import pyro
import pytest
import torch

from latentlab.errors import ConfigError
from latentlab.fit import fit
from latentlab.inference.adam import Adam, pack, whole_step
from latentlab.inference.advi import _losses
from latentlab.inference.guides import GUIDES, FullRank
from latentlab.inference.model_guide import losses_of
from latentlab.inference.parameters import register_parameters
from latentlab.inference.recorder import on
from latentlab.inference.svi import SVI
from latentlab.models.factor_analysis import FactorAnalysis
from latentlab.models.gaussian_mixture import GaussianMixture
from latentlab.models.ppca import PPCA
from latentlab.models.vae import VAE
from latentlab.results.prepare import prepared
from latentlab.seeds import double

CUDA = torch.cuda.is_available()


def on_the_device(step, example, inside=on):
    """Runs a step on the meta device, which raises an error if tensors are on different devices."""
    with double(), torch.no_grad(), pyro.validation_enabled(False), inside("meta"):
        return step(*(one.to("meta") for one in example))


def gaussian(problem, name, *, framed):
    """Returns a step of a Gaussian guide for another device, with its arguments on the CPU."""
    density = problem.density
    start = torch.zeros(density.size, dtype=torch.float64)
    with double():
        guide = FullRank(start) if framed else GUIDES[name](start)
        vectors, noise = pack(guide.parameters)[None], guide.noise(2, torch.Generator())[None]
    frame = (start[None], torch.eye(len(start), dtype=torch.float64)[None], torch.zeros(1, dtype=torch.float64)) if framed else ()
    rows = tuple(density.arrays[n][:20][None] for n in density.point_arrays())
    scale = Adam(1, 0.1, None, "", progress=False).scale(0)

    def step(*arguments):
        losses = _losses(density.placed("meta"), guide, framed=framed)
        return whole_step(losses, [p.shape for p in guide.parameters], guide.rates)(*arguments)

    return step, (vectors, vectors, vectors, scale, noise, *frame, *rows)


@pytest.mark.parametrize("model", [PPCA(2), FactorAnalysis(2), GaussianMixture(3, "diagonal")], ids=lambda m: m.name)
@pytest.mark.parametrize(("guide", "framed"), [("mean_field", False), ("full_rank", True), ("low_rank", False)])
def test_a_step_of_a_gaussian_guide_is_on_its_device(iris, model, guide, framed):
    problem = prepared(model, iris, SVI(guide=guide), progress=False)
    step, example = gaussian(problem, guide, framed=framed)
    assert {one.device.type for one in on_the_device(step, example)} == {"meta"}
    with pytest.raises(Exception, match="device"):
        on_the_device(step, example, inside=lambda _: contextlib.nullcontext())


RESIDUAL = {"name": "residual", "width": 4}
VAES = [
    VAE(2),
    VAE(2, encoder="convolutional", decoder="convolutional", prior="mixture", noise="entry"),
    VAE(2, encoder=RESIDUAL, decoder=RESIDUAL, prior="vamp", posterior="full"),
    VAE(2, encoder={"name": "recurrent", "width": 3}, decoder={"name": "recurrent", "width": 3}),
    VAE(2, prior="flow", posterior="flow"),
]


@pytest.mark.parametrize("precision", ["double", "single"])
@pytest.mark.parametrize(("model", "kl_warmup"), [(VAES[0], 0), *((model, 10) for model in VAES)])
def test_a_step_of_a_vae_is_on_its_device(iris, model, precision, kl_warmup):
    method = SVI(guide="model", batch_size=20, precision=precision, kl_warmup=kl_warmup, n_particles=2)
    problem = prepared(model, iris, method, progress=False)
    with double(), pyro.get_param_store().scope():
        found = register_parameters(problem.model, problem.arrays)
    shapes = [leaf.shape for leaf in found.leaves]
    vectors = pack(found.leaves)[None]
    object.__setattr__(method, "device", "meta")

    def step(*arguments):
        return whole_step(losses_of(problem, method, found, 150, shapes), shapes, (1.0,) * len(shapes))(*arguments)

    rows = tuple(problem.arrays[n][:20] for n in problem.density.point_arrays())
    scale = Adam(1, 0.1, None, "", progress=False).scale(0)
    example = (vectors, vectors, vectors, scale, torch.tensor(1.0, dtype=torch.float64), *rows)
    found_there = on_the_device(step, example)
    assert {one.device.type for one in found_there} == {"meta"}
    assert {one.dtype for one in found_there} == {torch.float64}


def test_moving_a_density_moves_its_data_and_parameters(iris):
    density = prepared(PPCA(1), iris, SVI(), progress=False).density
    assert density.placed("cpu") is density
    moved = density.placed("meta")
    assert {a.device.type for a in moved.arrays.values() if isinstance(a, torch.Tensor)} == {"meta"}
    assert {a.device.type for a in density.arrays.values() if isinstance(a, torch.Tensor)} == {"cpu"}
    assert moved.captured is not density.captured


@pytest.mark.parametrize("device", ["gpu", "cuda:", "mps", 0, ""])
def test_an_unsupported_device_is_refused(device):
    with pytest.raises(ConfigError, match=r"SVI: `device` must be (cpu, cuda, or cuda:N with|text)"):
        SVI(device=device)


def test_machine_code_is_refused_on_other_devices(iris):
    with pytest.raises(ConfigError, match="SVI: `compiled` must be false or null if `device` is 'cuda'"):
        SVI(device="cuda", compiled=True)


@pytest.mark.parametrize("device", ["cuda:99", *([] if CUDA else ["cuda"])])
def test_a_missing_device_is_refused_before_the_fit(iris, device):
    with pytest.raises(
        ConfigError, match=f"`device` '{device}' does not exist; torch finds {torch.cuda.device_count()} CUDA devices"
    ):
        fit(PPCA(1), iris, SVI(device=device), progress=False)


@pytest.mark.skipif(not CUDA, reason="no GPU")
@pytest.mark.parametrize(
    ("model", "guide"),
    [(PPCA(2), "full_rank"), (VAE(2), "model"), (VAES[1], "model"), (VAES[-1], "model")],
    ids=["ppca", "vae", "networks", "flows"],
)
def test_fits_on_gpu_and_cpu_agree(iris, model, guide, caplog):
    caplog.set_level(logging.WARNING)
    settings = {"guide": guide, "n_steps": 400, "batch_size": 50}
    before = torch.cuda.get_rng_state()
    results = [fit(model, iris, SVI(**settings, device=device), seed=0, progress=False) for device in ("cpu", "cuda")]
    assert not caplog.text
    assert torch.equal(before, torch.cuda.get_rng_state())
    ends = [result.data.attrs["elbo"] for result in results]
    assert ends[1] == pytest.approx(ends[0], rel=0.02)
    assert all(np.isfinite(result.latents().values).all() for result in results)
