"""Tests of the page of autoencoders: active dimensions, reconstructions and latent traversals."""

import json
import tracemalloc

import numpy as np
import pytest
import torch
from patching import everywhere

from latentlab.data.memory import is_mapped
from latentlab.inference.encoder import ACTIVE
from latentlab.report import autoencoder
from latentlab.report.source import Source
from latentlab.store.read import Run
from latentlab.study.run import load_fit, run


def told(found):
    page = json.loads((found.path / "report.json").read_text(encoding="utf-8"))
    return [item for part in page["sections"] for item in part["items"]]


def named(found, kind):
    return {item["name"]: item for item in told(found) if item["kind"] == kind}


def words(found):
    return "\n".join(line for item in told(found) if item["kind"] == "text" for line in item["lines"])


def made(folder, name, model, dataset, inference):
    config = {"name": name, "dataset": dataset, "model": model, "inference": inference}
    return run(config, out=folder / name, progress=False)


SHORT = {"name": "svi", "guide": "model", "n_steps": 150, "n_draws": 40, "learning_rate": 0.01}


@pytest.fixture(scope="module")
def linear(tmp_path_factory):
    folder = tmp_path_factory.mktemp("linear")
    return made(folder, "linear", {"name": "linear_vae", "n_latent": 3, "sigma": 1.0}, {"name": "iris"}, {"name": "exact"})


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    model = {"name": "vae", "n_latent": 2, "hidden": [16]}
    dataset = {"name": "digits", "drop_constant": True}
    return made(tmp_path_factory.mktemp("digits"), "digits", model, dataset, SHORT)


def test_active_dimensions_are_listed_and_a_collapse_is_highlighted(linear):
    fit = load_fit(linear)
    rows = named(linear, "table")["active-dimensions"]["rows"]
    expected = fit.activity()
    np.testing.assert_allclose([row["activity"] for row in rows], expected["activity"], rtol=1e-9)
    assert [row["active"] for row in rows] == ["yes" if value > ACTIVE else "no" for value in expected["activity"]]
    collapsed = [row["dimension"] for row in rows if row["active"] == "no"]
    assert len(collapsed) == 2  # the noise is above all but the first eigenvalue
    assert "the posterior equals the prior (posterior collapse)" in words(linear)


def test_an_autoencoder_reads_its_draws_by_blocks(linear, monkeypatch):
    whole = autoencoder._Autoencoder(Source(linear), Source(linear).model)
    everywhere(monkeypatch, "latentlab", "BLOCK", 2**13)
    source = Source(Run(linear.path, linear.config, {**linear.info, "memory": 1000}))
    draws = source.tree["posterior"]["z"].values
    tracemalloc.start()
    try:
        found = autoencoder._Autoencoder(source, source.model)
        taken = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert is_mapped(draws)
    assert taken < 0.3 * draws.nbytes
    for name in ("mean", "sd", "decoded", "spread"):
        assert np.array_equal(getattr(found, name), getattr(whole, name))


def test_decoded_walks_match_the_decoder(linear):
    fitted = autoencoder._Autoencoder(Source(linear), Source(linear).model)
    W, mu = (torch.as_tensor(fitted.parameters[name]).numpy() for name in ("W", "mu"))
    z = linear.posterior["posterior"]["z"].values[0].mean(axis=0)
    np.testing.assert_allclose(fitted.mean, z)
    np.testing.assert_allclose(fitted.decode(z), z @ W.T + mu)
    raw = Source(linear).raw
    np.testing.assert_allclose(fitted.raw(fitted.x), raw.x, atol=1e-9)
    best, worst = autoencoder._chosen(fitted)
    assert fitted.error[best].max() == np.sort(fitted.error)[4]
    assert fitted.error[worst].min() == np.sort(fitted.error)[-5]


def test_images_are_assembled_from_pixels(digits):
    source = Source(digits)
    grid = autoencoder._grid(source.features)
    image = autoencoder._image(np.arange(len(source.features), dtype=float), grid)
    assert image.shape == (8, 8)
    assert image[0, 2] == source.features.index("pixel_0_2")
    assert np.isnan(image[0, 0])  # constant, and left out
    figures = named(digits, "figure")
    assert {"reconstructions", "traversals"} <= set(figures)
    assert "posterior standard deviations" in figures["traversals"]["caption"]
    assert autoencoder._grid(["pixel_0_1", "hue"]) is None


@pytest.mark.parametrize(
    ("model", "dataset"),
    [
        ({"name": "vae", "n_latent": 1, "hidden": [8], "conditional": True}, {"name": "iris"}),
        ({"name": "vae", "n_latent": 2, "hidden": [8]}, {"name": "iris", "missing": 0.1}),
    ],
    ids=["with labels", "with missing entries"],
)
def test_the_page_handles_labels_and_missing_entries(model, dataset, tmp_path):
    found = made(tmp_path, "other", model, dataset, SHORT)
    assert {"reconstructions", "traversals"} <= set(named(found, "figure"))


def test_other_models_have_no_autoencoder_section(tmp_path):
    found = made(tmp_path, "ppca", {"name": "ppca", "n_latent": 2}, {"name": "iris"}, {"name": "exact", "n_draws": 40})
    assert "active-dimensions" not in named(found, "table")
