"""Tests that the claims about the GPLVM depend on its settings and fail for other embeddings."""

from dataclasses import replace

import numpy as np
import pytest
from patching import everywhere
from scipy.stats import multivariate_normal

from latentlab.correspondences import gplvm, maps, registry
from latentlab.data.dataset import Dataset
from latentlab.data.load import load_dataset
from latentlab.embeddings.embed import embed
from latentlab.registry import MODELS
from latentlab.study.starter import proposal

LINEAR = {"kernel": "linear"}


def test_the_exact_claims_require_a_linear_kernel():
    assert registry.find("pca", "gplvm", {}, LINEAR).grade == "exact"
    assert registry.find("pca", "gplvm", {}, {"kernel": "rbf"}).grade == "limit"
    assert registry.find("pca", "gplvm", {"whiten": True}, LINEAR) is None
    assert registry.find("mds", "gplvm", {"method": "classical"}, LINEAR).map is maps.dual_axes
    assert registry.find("mds", "gplvm", {"method": "classical"}, {"kernel": "rbf"}) is None
    assert registry.find("mds", "gplvm", {"method": "stress"}, LINEAR).grade == "none"
    assert registry.find("pca", "ppca", {}, {"n_latent": 2}).grade == "exact"


def test_proposed_embeddings_have_claims_for_the_proposed_kernel():
    proposed = {one["name"]: one for one in proposal("toy", "gplvm").config["embeddings"]}
    assert "mds" not in proposed
    assert proposed["pca"] == {"name": "pca"}
    assert {"isomap", "pca"} <= set(proposed)
    assert not {"tsne", "umap"} & set(proposed)


def test_the_closed_form_is_the_density_of_the_columns(rng):
    """SciPy's density at X = U (Lambda - sigma^2)^(1/2), with a rotation, and no higher value near it."""
    x = rng.standard_normal((9, 30)) * np.linspace(3, 1, 9)[:, None]
    x -= x.mean(axis=0)
    dataset = Dataset({"x": x}, dims={"x": ("unit", "feature")})
    best = gplvm.closed_form(dataset, 2)
    values, vectors = np.linalg.eigh(x @ x.T / 30)
    z = vectors[:, -2:] * np.sqrt(values[-2:] - best.sigma**2) @ np.array([[0.6, 0.8], [-0.8, 0.6]])

    def density(z, sigma):
        return multivariate_normal(np.zeros(9), z @ z.T + sigma**2 * np.eye(9)).logpdf(x.T).sum()

    assert best.value == pytest.approx(density(z, best.sigma), abs=1e-8)
    assert gplvm.likelihood(dataset, z, best.sigma, 1.0).value == pytest.approx(best.value, rel=1e-9)
    for _ in range(20):
        assert density(z + 0.1 * rng.standard_normal(z.shape), best.sigma * np.exp(0.1 * rng.standard_normal())) < best.value


def test_the_mode_with_a_normal_prior_is_a_maximum(rng):
    """Along random directions, the log joint density given sigma and the amplitude falls from the closed form."""
    dataset = load_dataset("wine")
    scores = embed("pca", dataset, n_latent=2).values
    assert gplvm._with_prior(scores, dataset) < 1e-12
    assert gplvm._with_prior(scores @ [[1.0, 0.1], [0.0, 1.0]], dataset) > 1e-5
    d, squares, sigma, a = 13, (scores**2).sum(0) / 13, 0.5, 1.5
    c = 0.5 * a**2 * (np.sqrt(d**2 + 4 * d * squares / a**2) - d)
    z = scores / np.linalg.norm(scores, axis=0) * np.sqrt(c - sigma**2) / a

    def joint(z):
        return gplvm.likelihood(dataset, z, sigma, a).value - 0.5 * (z**2).sum()

    best = joint(z)
    assert all(joint(z + 0.05 * rng.standard_normal(z.shape)) < best for _ in range(5))


def test_raw_scores_and_wrong_powers_are_no_optimum(monkeypatch):
    claims = [registry.find("pca", "gplvm", {}, LINEAR), registry.find("mds", "gplvm", {"method": "classical"}, LINEAR)]
    right = maps.dual_axes

    def fail(wrong):
        everywhere(monkeypatch, "latentlab.correspondences", "dual_axes", wrong)
        assert not any(claim.check().passed for claim in claims)

    monkeypatch.setattr(gplvm, "_ascended", lambda dataset: gplvm.closed_form(dataset, 2).value)  # tested by the check itself
    fail(lambda values, dataset: values * np.sqrt(1 / (values**2).mean()))
    fail(lambda values, dataset: right(values, dataset) * [1.0, 1.01])
    fail(lambda values, dataset: right(values, dataset) @ [[1.0, 0.01], [0.0, 1.0]])
    everywhere(monkeypatch, "latentlab.correspondences", "dual_axes", right)
    assert all(claim.check().passed for claim in claims)


def test_the_map_ignores_rotation_and_scale_of_the_scores(rng):
    dataset = load_dataset("wine")
    scores = embed("pca", dataset, n_latent=3).values
    turn = np.linalg.qr(rng.standard_normal((3, 3)))[0]
    found = maps.dual_axes(scores, dataset)
    np.testing.assert_allclose(maps.dual_axes(scores @ turn + 5, dataset), found, atol=1e-9)
    assert (found**2).mean() == pytest.approx(1)


def test_other_embeddings_fail_as_spectral_optimum(monkeypatch):
    """Each check requires the eigenvectors of its own second moments: an embedding of another kind is no maximum."""
    embedded = embed
    for name in ("isomap", "lle", "spectral", "kernel_pca"):
        everywhere(
            monkeypatch,
            "latentlab.correspondences",
            "embed",
            lambda _, dataset, **__: embedded("pca", dataset, n_latent=2),
        )
        assert not registry.find(name, "gplvm").check().passed


@pytest.mark.parametrize("name", ["isomap", "lle", "spectral"])
def test_other_axes_of_the_same_field_are_stationary_but_no_maximum(name):
    """Axes 2 and 3 instead of 1 and 2 have a gradient of 0, so that the gradient alone is no evidence."""
    moments = {"isomap": gplvm.path_moments, "lle": gplvm.weight_moments, "spectral": gplvm.laplacian_moments}[name]
    embedded = embed

    def later(one, dataset, *, n_latent, **options):
        made = embedded(one, dataset, n_latent=3, **options)
        return replace(made, values=made.values[:, 1:])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gplvm, "embed", later)
        gradient, rest = gplvm._dual_of(moments, name, n_neighbors=gplvm.N_NEIGHBORS)
    assert gradient < 1e-6 < 1e-4 < rest


def test_sheets_and_spreads_are_found_by_other_embeddings(monkeypatch):
    embedded = embed

    def scores(name, dataset, **_):
        made = embedded("pca", dataset, n_latent=2)
        return made if name == "pca" else replace(made, values=made.values[None], seeds=(0,))

    everywhere(monkeypatch, "latentlab.correspondences", "embed", scores)
    for layout in ("tsne", "umap"):
        assert not registry.find(layout, "gplvm").check().passed, "PCA keeps the spreads"
    everywhere(
        monkeypatch, "latentlab.correspondences", "embed", lambda _, dataset, **__: embedded("isomap", dataset, n_neighbors=8)
    )
    assert not registry.find("mds", "gplvm", {"method": "stress"}).check().passed, "Isomap unrolls the sheet"


def test_a_short_lengthscale_fails_as_limit(monkeypatch):
    claim, right = registry.find("pca", "gplvm"), gplvm.likelihood
    assert claim.grade == "limit"
    monkeypatch.setattr(gplvm, "likelihood", lambda *given, lengthscale: right(*given, lengthscale=min(lengthscale, 5.0)))
    assert not claim.check().passed


def test_the_claims_hold_for_the_model_of_the_registry():
    assert MODELS.load("gplvm")(n_latent=2, kernel="linear").hyperparameters()["kernel"] == "linear"
    assert {e.embedding for e in registry.CORRESPONDENCES if e.model == "gplvm"} >= {
        "pca",
        "mds",
        "kernel_pca",
        "isomap",
        "lle",
        "spectral",
    }
