"""A user's network in a plugin: runs, kills, failures after the training, and loaded fits."""

import functools
import os
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from patching import everywhere

sys.path.append(str(Path(__file__).resolve().parents[2] / "experiments"))

import kills

from latentlab.data.load import load_dataset
from latentlab.errors import StoreError
from latentlab.inference import model_guide
from latentlab.registry import plugins
from latentlab.seeds import forked
from latentlab.store.directory import read_info
from latentlab.study.config import load_config
from latentlab.study.run import load_run, report, run

pytestmark = [pytest.mark.fixed, pytest.mark.filterwarnings("ignore")]

PLUGIN = Path(__file__).resolve().parents[1] / "plugins" / "convolutional.py"
CONFIG = {
    "name": "convolutional",
    "model": {"name": "convolutional", "n_latent": 2},
    "inference": {
        "name": "svi",
        "guide": "model",
        "n_steps": 12,
        "n_particles": 1,
        "n_draws": 20,
        "batch_size": 20,
        "n_restarts": 2,
    },
    "embeddings": [{"name": "pca"}],
    "compare": {"metrics": ["cka"], "n_draws": 10},
}


@pytest.fixture(scope="module")
def config_with(tmp_path_factory):
    """The config of a run with a plugin, on 60 images."""
    path = tmp_path_factory.mktemp("data") / "images.npy"
    np.save(path, load_dataset("digits", standardize=False).x[:60] / 16)
    dataset = {"name": "file", "path": str(path), "standardize": False}
    return lambda plugin: {**CONFIG, "dataset": dataset, "plugins": [str(plugin)]}


def killed_at_step(number):
    """Kill this process, once the state after this step of the second restart is saved."""
    write, seen = model_guide.Checkpointer._save, 0

    def counted(self):
        nonlocal seen
        write(self)
        seen += self._part == "restart-1-under-way"
        if seen == number:
            os.kill(os.getpid(), signal.SIGKILL)

    model_guide.Checkpointer._save = counted


@pytest.fixture(scope="module")
def whole(config_with, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "run"
    kills.start(config_with(PLUGIN), out).join()
    return out


def test_a_killed_training_resumes_to_the_same_bytes(whole, config_with, tmp_path):
    config, out = config_with(PLUGIN), tmp_path / "run"
    process = kills.start(config, out, functools.partial(killed_at_step, 5))
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert (read_info(out)["status"], read_info(out)["stage"]) == ("running", "fit")
    process = kills.start(config, out)
    process.join()
    assert process.exitcode == 0
    assert kills.results(out) == kills.results(whole)


def test_a_killed_training_of_flows_resumes_to_the_same_bytes(config_with, tmp_path):
    """The loaded run has the flows of the fit, whose parameters are called by transform and layer."""
    pytest.importorskip("zuko")
    flows = {"prior": "flow", "posterior": "flow", "flow_hidden": [4], "n_transforms": 1}
    config = {**config_with(PLUGIN), "model": {"name": "vae", "n_latent": 2, "hidden": [4], **flows}, "plugins": []}
    out, whole = tmp_path / "run", tmp_path / "whole"
    kills.start(config, whole).join()
    process = kills.start(config, out, functools.partial(killed_at_step, 5))
    process.join()
    assert process.exitcode == -signal.SIGKILL
    kills.start(config, out).join()
    assert kills.results(out) == kills.results(whole)
    fit = load_run(out).fit
    assert {"prior_flow.0.hyper.0.weight", "posterior_flow.0.hyper.2.bias", "encoder_context_h"} < set(fit.parameters)
    new = fit.dataset.subset(range(5))
    xr.testing.assert_identical(fit.latents(new), load_run(whole).fit.latents(new))
    assert fit.activity().equals(load_run(whole).fit.activity())


def test_a_failure_after_the_training_loses_nothing(whole, config_with, tmp_path, monkeypatch):
    """`latents` fails in the results only; after its repair the run is completed without a step."""
    plugin, out = tmp_path / "convolutional.py", tmp_path / "run"
    correct = PLUGIN.read_text()
    start = "        mean, log_scale = self.encoder"
    plugin.write_text(correct.replace(start, "        if values:\n            raise KeyError('a fault of the user')\n" + start))
    everywhere(monkeypatch, "latentlab.study", "write_page", lambda found, **_: found.path)
    with pytest.raises(KeyError, match="a fault of the user") as caught:
        run(config_with(plugin), out=out, progress=False)
    assert "--resume continues the run" in caught.value.__notes__[0]
    plugin.write_text(correct)
    with pytest.raises(StoreError, match="--resume --force continues anyway"):
        run(config_with(plugin), out=out, resume=True, progress=False)
    monkeypatch.setattr(model_guide.Adam, "descend", None)
    run(config_with(plugin), out=out, resume=True, force=True, progress=False)
    assert kills.results(out) == kills.results(whole)


def test_a_run_is_resumed_at_the_same_starting_weights_only(config_with, tmp_path, monkeypatch):
    """The plugin reads a weight from a file, which is changed after the run was interrupted."""
    plugin, out, weight = tmp_path / "convolutional.py", tmp_path / "run", tmp_path / "weight.npy"
    first, end = PLUGIN.read_text().split("    def model(self, x):\n", 1)
    read = f"        import numpy\n        self.decoder[0].bias.data.fill_(float(numpy.load({str(weight)!r})))\n\n"
    plugin.write_text(f"{first.rstrip()}\n{read}    def model(self, x):\n{end}")
    np.save(weight, 0.0)

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(model_guide, "guide_draws", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(config_with(plugin), out=out, progress=False)
    np.save(weight, 1.0)
    with pytest.raises(StoreError, match=r"these have changed: start: '\w+' -> '\w+'. --resume --force continues anyway"):
        run(config_with(plugin), out=out, resume=True, progress=False)
    np.save(weight, 0.0)
    everywhere(monkeypatch, "latentlab.study", "write_page", lambda found, **_: found.path)
    run(config_with(plugin), out=out, resume=True, progress=False)


def test_an_error_in_the_draws_loses_at_most_the_last_step(whole, config_with, tmp_path, monkeypatch):
    plugin, out = tmp_path / "convolutional.py", tmp_path / "run"
    plugin.write_text(PLUGIN.read_text())
    everywhere(monkeypatch, "latentlab.study", "write_page", lambda found, **_: found.path)

    def failing(*_, **__):
        raise ZeroDivisionError("a fault of the draws")

    with monkeypatch.context() as patch:
        patch.setattr(model_guide, "guide_draws", failing)
        with pytest.raises(ZeroDivisionError):
            run(config_with(plugin), out=out, progress=False)
    begun, descend = [], model_guide.Adam.descend

    def watched(self, *args):
        begun.append(args[-2].n_done if args[-2] else 0)
        return descend(self, *args)

    monkeypatch.setattr(model_guide.Adam, "descend", watched)
    run(config_with(plugin), out=out, resume=True, progress=False)
    assert begun == [CONFIG["inference"]["n_steps"] - 1, 0]
    assert kills.results(out) == kills.results(whole)


def test_a_loaded_run_has_the_network_of_the_fit(whole):
    found = load_run(whole)
    fit = found.fit
    names = {name for name in fit.parameters if name != "scale"}
    assert {name.partition(".")[0] for name in names} == {"encoder", "decoder"}
    assert "encoder.1.weight" in names
    assert not any("$" in name for name in names)
    assert set(fit.data["parameters"].data_vars) | set(fit.data["guide_parameters"].data_vars) == {*names, "scale"}
    assert set(found.params) >= {*names, "scale"}
    new = fit.dataset.subset(range(5))
    xr.testing.assert_identical(fit.latents(new), load_run(whole).fit.latents(new))
    close = fit.latents(new).mean(("chain", "draw")).values - fit.latents().mean(("chain", "draw")).values[:5]
    assert np.abs(close).max() < 5 * 0.6 / np.sqrt(fit.method.n_draws) * 2  # the encoder's standard deviation is about 0.5
    assert np.isfinite(fit.held_out_score(new)["bound"])


def test_the_weights_of_a_config_are_drawn_by_its_seed(config_with):
    def weight(seed):
        torch.rand(1)  # the state of the process has no influence
        config = load_config({**config_with(PLUGIN), "seed": seed})
        with plugins(config.plugins):
            return config.build_model().encoder[1].weight

    with forked():
        one, again, other = weight(0), weight(0), weight(1)
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_the_report_shows_decoded_units(whole):
    text = report(whole).read_text(encoding="utf-8")
    assert "Latent dimensions of the encoder" in text
    assert "are not shown" not in text
