"""Every claim of the registry is measured, and a claim that is false is seen to fail."""

from dataclasses import replace

import numpy as np
import pytest

from latentlab import correspondence as registry
from latentlab.data.load import load_dataset
from latentlab.embeddings.embedding import embed
from latentlab.registry import EMBEDDINGS, MODELS

SLOW = {"umap", "tsne"}


@pytest.mark.parametrize(
    "entry",
    [
        pytest.param(e, id=f"{e.embedding}-{e.model}", marks=pytest.mark.slow if e.embedding in SLOW else ())
        for e in registry.CORRESPONDENCES
    ],
)
def test_the_claim_holds(entry):
    found = entry.check()
    assert found.passed, found.text
    assert np.isfinite(found.value)


def test_entries_name_what_is_in_the_tables_and_say_what_breaks_them():
    pairs = [(e.embedding, e.model) for e in registry.CORRESPONDENCES]
    assert len(set(pairs)) == len(pairs)
    for entry in registry.CORRESPONDENCES:
        assert entry.embedding in EMBEDDINGS
        assert entry.model in MODELS
        assert all([entry.claim, entry.conditions, entry.breaks, entry.citation])


def test_raw_scores_and_a_wrong_map_do_not_pass(monkeypatch):
    entry = registry.find("pca", "ppca")
    monkeypatch.setattr(registry, "shrunk_axes", registry.as_it_is)
    assert not entry.check().passed  # raw scores are not the posterior mean
    monkeypatch.setattr(registry, "shrunk_axes", lambda values, dataset: values / values.std(0))
    assert not entry.check().passed  # nor are whitened ones, at finite noise


def test_the_map_does_not_depend_on_the_scores_rotation(rng):
    dataset = load_dataset("wine")
    scores = embed("pca", dataset, n_latent=3).values
    turn = np.linalg.qr(rng.standard_normal((3, 3)))[0]
    np.testing.assert_allclose(registry.shrunk_axes(scores @ turn + 5, dataset), registry.shrunk_axes(scores, dataset), atol=1e-9)


def test_missing_entries_break_the_exact_claim():
    """The catch of the entry: with a fifth missing, mean-imputed PCA is no longer the posterior mean."""
    dataset = load_dataset("wine", missing=0.2)
    mean = registry._posterior_mean("ppca", dataset, 2)
    mapped = registry.shrunk_axes(embed("pca", dataset, n_latent=2).values, dataset)
    assert registry._turned_residual(mapped, mean) > 0.05


def test_metric_mds_is_not_taken_for_classical():
    assert registry.find("mds", "ppca", {"method": "stress"}) is None
    assert registry.find("mds", "ppca", {"method": "classical"}).map is registry.shrunk_axes
    assert registry.find("pca", "nothing") is None


def test_a_claim_that_is_false_fails():
    wrong = replace(registry.find("pca", "ppca"), check=lambda: registry._mapped_scores_are_the_posterior_mean("isomap"))
    assert not wrong.check().passed
