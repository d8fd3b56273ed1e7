"""Tests that every registered correspondence holds and that false ones fail."""

from dataclasses import replace

import numpy as np
import pytest
from patching import everywhere

from latentlab.compare.align import principal_axes
from latentlab.correspondences import clusters, estimates, linear, maps, networks, registry
from latentlab.data.load import load_dataset
from latentlab.embeddings.embed import embed
from latentlab.embeddings.embedding import Embedding
from latentlab.registry import EMBEDDINGS, MODELS

SLOW = {"pacmap", "umap", "tsne"}


@pytest.mark.parametrize(
    "entry",
    [
        pytest.param(
            e,
            id="-".join((e.embedding, e.model, *(str(v) for _, v in (*e.options, *e.settings)))),
            marks=pytest.mark.slow if e.embedding in SLOW else (),
        )
        for e in registry.CORRESPONDENCES
    ],
)
def test_each_correspondence_holds(entry):
    found = entry.check()
    assert found.passed, found.text
    assert np.isfinite(found.value)


def test_entries_are_registered_unique_and_complete():
    claimed = [(e.embedding, e.model, e.options, e.settings) for e in registry.CORRESPONDENCES]
    assert len(set(claimed)) == len(claimed)
    for entry in registry.CORRESPONDENCES:
        assert entry.embedding in EMBEDDINGS
        assert entry.model in MODELS
        assert all([entry.claim, entry.conditions, entry.breaks, entry.citation])


def test_raw_scores_and_a_wrong_map_fail(monkeypatch):
    entry = registry.find("pca", "ppca")
    everywhere(monkeypatch, "latentlab.correspondences", "shrunk_axes", maps.centred_values)
    assert not entry.check().passed  # raw scores are not the posterior mean
    everywhere(monkeypatch, "latentlab.correspondences", "shrunk_axes", lambda values, dataset: values / values.std(0))
    assert not entry.check().passed  # nor are whitened ones, at finite noise


def test_the_map_ignores_rotation_of_the_scores(rng):
    dataset = load_dataset("wine")
    scores = embed("pca", dataset, n_latent=3).values
    turn = np.linalg.qr(rng.standard_normal((3, 3)))[0]
    np.testing.assert_allclose(maps.shrunk_axes(scores @ turn + 5, dataset), maps.shrunk_axes(scores, dataset), atol=1e-9)


def test_the_exact_correspondence_fails_with_missing_entries():
    """With a fifth of the entries missing, mean-imputed PCA is no longer the posterior mean."""
    dataset = load_dataset("wine", missing=0.2)
    mean = estimates.posterior_mean("ppca", dataset, 2)
    mapped = maps.shrunk_axes(embed("pca", dataset, n_latent=2).values, dataset)
    assert estimates.rotated_residual(mapped, mean) > 0.05


def test_correspondence_of_classical_scaling_excludes_stress_mds():
    assert registry.find("mds", "ppca", {"method": "stress"}) is None
    assert registry.find("mds", "ppca", {"method": "classical"}).map is maps.shrunk_axes
    assert registry.find("pca", "nothing") is None


def test_whitened_scores_and_linear_codes_have_no_other_correspondence():
    """Whitened axes lack the variances that the map needs; a linear code does not correspond to a deep VAE."""
    assert registry.find("pca", "ppca", {"whiten": False}).grade == "exact"
    assert registry.find("pca", "ppca", {"whiten": True}) is None
    assert registry.find("pca", "linear_vae", {"whiten": True}) is None
    assert registry.find("autoencoder", "vae", {"hidden": (16,)}) is not None
    assert registry.find("autoencoder", "vae", {"hidden": ()}) is None
    assert registry.find("autoencoder", "vae", {"hidden": []}) is None  # as read from a file


def test_scores_of_all_features_are_not_shrunk():
    """With q = D there is no noise: the posterior mean is the scores, each divided by its standard deviation."""
    dataset = load_dataset("iris")
    left, sizes, _ = np.linalg.svd(dataset.x - dataset.x.mean(axis=0), full_matrices=False)
    scores = left * sizes
    found = maps.shrunk_axes(scores, dataset)
    np.testing.assert_allclose(np.abs(found), np.abs(scores / scores.std(axis=0)), atol=1e-6)


def test_a_false_correspondence_fails():
    wrong = replace(registry.find("pca", "ppca"), check=lambda: linear._mapped_scores_are_the_posterior_mean("isomap"))
    assert not wrong.check().passed


# -- labels


def test_distances_are_mapped_to_labels_and_labels_are_unchanged():
    dataset = load_dataset("wine")
    made = embed("kmeans", dataset, n_latent=3, n_seeds=1, output="distances")
    claim = registry.find("kmeans", "gaussian_mixture", made.options)
    labels = embed("kmeans", dataset, n_latent=3, n_seeds=1)
    assert (claim.map(made.values[0], dataset) == labels.values[0]).all()
    assert registry.find("kmeans", "gaussian_mixture", labels.options).map is None
    assert registry.find("kmeans", "gaussian_mixture").grade == "limit"
    assert registry.find("agglomerative", "gaussian_mixture", {"linkage": "single"}) is None


def test_other_soft_assignments_and_farthest_centres_fail(monkeypatch):
    claim = registry.find("kmeans", "gaussian_mixture", {"output": "distances"})
    soft = maps.soft_assignments
    everywhere(
        monkeypatch, "latentlab.correspondences", "soft_assignments", lambda distances, sigma: soft(np.sqrt(distances), sigma)
    )
    assert not claim.check().passed
    everywhere(monkeypatch, "latentlab.correspondences", "soft_assignments", soft)
    everywhere(
        monkeypatch,
        "latentlab.correspondences",
        "nearest",
        lambda values, dataset: np.eye(values.shape[1])[values.argmax(axis=1)],
    )
    assert not claim.check().passed


def test_k_means_is_a_limit_of_the_mixture():
    """Centres differ for a finite variance and converge as it vanishes."""
    dataset = load_dataset("wine")
    centres = clusters._centres(dataset, estimates.cluster_labels("kmeans", dataset, 3))
    away = [clusters._distance_of_centres(clusters._mixture_centres(dataset, 3, sigma), centres) for sigma in (1.0, 0.5, 0.3)]
    assert away[0] > 0.01
    assert away[0] > away[1] > away[2] > 1e-6


def test_other_clusterings_fail(monkeypatch):
    clusters = estimates.cluster_labels

    def substitute(name, **options):
        everywhere(
            monkeypatch, "latentlab.correspondences", "cluster_labels", lambda _, *given, **__: clusters(name, *given, **options)
        )

    substitute("kmeans", n_seeds=1)
    assert not registry.find("spectral_clustering", "gaussian_mixture").check().passed
    assert not registry.find("window_kmeans", "gaussian_hmm").check().passed
    substitute("window_kmeans", n_seeds=1, window=9)
    assert not registry.find("viterbi", "gaussian_hmm").check().passed
    assert not registry.find("kmeans", "gaussian_hmm").check().passed
    substitute("agglomerative", linkage="single")
    assert not registry.find("kmeans", "gaussian_mixture").check().passed


def test_unsmoothed_paths_fail_as_windows(monkeypatch):
    embedded = embed
    everywhere(
        monkeypatch,
        "latentlab.correspondences",
        "embed",
        lambda name, *given, window=None, **options: embedded("pca", *given, **options),
    )
    assert not registry.find("window_pca", "state_space").check().passed
    everywhere(
        monkeypatch,
        "latentlab.correspondences",
        "embed",
        lambda name, *given, **options: embedded("window_pca", *given, window=9, **options),
    )
    assert not registry.find("pca", "state_space").check().passed


# -- autoencoders


def test_hidden_widths_match_as_list_or_tuple_and_deep_is_not_linear():
    for hidden in ([], ()):
        assert registry.find("autoencoder", "ppca", {"hidden": hidden}).grade == "exact"
    assert registry.find("autoencoder", "ppca", {"hidden": [64]}) is None
    assert registry.find("autoencoder", "linear_vae") is None


def test_other_codes_fail_as_linear_autoencoder(monkeypatch):
    embedded = embed
    claims = [registry.find("autoencoder", model, {"hidden": ()}) for model in ("ppca", "linear_vae")]

    def substitute(code):
        everywhere(
            monkeypatch,
            "latentlab.correspondences",
            "embed",
            lambda _, dataset, **__: replace(embedded("pca", dataset), values=code[None], seeds=(0,)),
        )
        assert not any(claim.check().passed for claim in claims)

    dataset = load_dataset("wine")
    substitute(embedded("isomap", dataset).values)  # it bends the plane
    substitute(3 * estimates.posterior_mean("ppca", dataset, 2))  # the positions themselves, but for scale: nothing is left open


@pytest.mark.parametrize("power", [0.5, 1.5])
def test_a_wrong_power_of_eigenvalues_fails_as_encoder_mean(monkeypatch, power):
    right = maps.shrunk_axes

    def wrong(values, dataset):
        return right(values, dataset) * principal_axes(values).var(axis=0) ** (1 - power)

    everywhere(monkeypatch, "latentlab.correspondences", "shrunk_axes", wrong)
    assert not registry.find("pca", "linear_vae").check().passed


def test_a_rotated_map_matches_ppca_but_not_the_encoder(monkeypatch):
    """The linear VAE identifies axes, which PPCA does not."""
    right, turn = maps.shrunk_axes, np.array([[0.8, 0.6], [-0.6, 0.8]])
    everywhere(monkeypatch, "latentlab.correspondences", "shrunk_axes", lambda values, dataset: right(values, dataset) @ turn)
    assert registry.find("pca", "ppca").check().passed
    assert not registry.find("pca", "linear_vae").check().passed


def test_a_loose_bound_or_an_active_axis_fails(monkeypatch):
    claim, highest = registry.find("pca", "linear_vae"), estimates.highest_log_likelihood
    everywhere(
        monkeypatch,
        "latentlab.correspondences",
        "highest_log_likelihood",
        lambda name, *given: highest(name, *given) - 1e-5 * (name == "ppca"),
    )
    assert not claim.check().passed
    everywhere(monkeypatch, "latentlab.correspondences", "highest_log_likelihood", highest)
    at_maximum = estimates.at_maximum
    everywhere(
        monkeypatch,
        "latentlab.correspondences",
        "at_maximum",
        lambda model, dataset: at_maximum(type(model)(n_latent=2), dataset),
    )
    assert not claim.check().passed


# -- deep networks


def code(values):
    """Returns an embedding with one seed, as from `embed`."""
    return Embedding("autoencoder", values[None], units=np.arange(len(values)))


def test_residuals_are_small_for_smooth_maps_only(rng):
    z = rng.uniform(-0.5, 0.5, (150, 2))
    a, b = z.T
    warped = np.column_stack([np.exp(a) + 0.3 * b, np.arctan(2 * b) - 0.2 * a])
    assert networks._smooth_residual(warped, z) < 1e-3 < estimates.linear_residual(warped, z)
    folded = np.column_stack([np.abs(a), b])
    assert networks._smooth_residual(folded, z) > 0.1  # whichever comes first: a fold is a function, and has no inverse
    assert networks._smooth_residual(z, folded) == pytest.approx(networks._smooth_residual(folded, z))
    assert networks._smooth_residual(z[:, :1], z) > 0.1


def test_deep_autoencoder_codes_need_the_same_units_and_dimensions(monkeypatch, rng):
    claim, embedded = registry.find("autoencoder", "vae"), embed

    def passes(made):
        everywhere(monkeypatch, "latentlab.correspondences", "embed", made)
        return claim.check().passed

    assert passes(embedded)
    assert not passes(lambda *given, **options: embedded(*given, **{**options, "n_epochs": 1}))
    assert not passes(lambda *given, **options: embedded(*given, **{**options, "n_latent": 1}))
    assert not passes(lambda _, dataset, **__: code(embedded("pca", dataset).values))  # it folds
    assert not passes(lambda *given, **options: code(rng.permutation(embedded(*given, **options).values[0])))
    # The means themselves, turned and scaled: nothing is left open.
    turn = np.array([[0.8, 0.6], [-0.6, 0.8]])
    assert not passes(lambda *_, **__: code(3 * networks._means_on_a_sheet(240.0, 0.1, 0) @ turn))


def test_the_autoencoder_is_a_limit_of_the_deep_vae(monkeypatch):
    """With a large weight the means are no function of the code, so that the check must fail."""
    claim, means = registry.find("autoencoder", "vae"), networks._means_on_a_sheet
    assert claim.grade == "limit"
    for beta in (0.1, 20.0):
        everywhere(
            monkeypatch,
            "latentlab.correspondences",
            "_means_on_a_sheet",
            lambda degrees, _, seed, beta=beta: means(degrees, beta, seed),
        )
        assert not claim.check().passed


def test_pca_corresponds_to_a_deep_vae_only_without_folds(monkeypatch, rng):
    claim, sheet, means, embedded = registry.find("pca", "vae"), networks._sheet, networks._means_on_a_sheet, embed
    assert claim.grade == "approximate"
    everywhere(
        monkeypatch,
        "latentlab.correspondences",
        "embed",
        lambda _, dataset, **options: embedded("isomap", dataset, n_neighbors=8, **options),
    )
    assert not claim.check().passed  # it unrolls both sheets
    everywhere(monkeypatch, "latentlab.correspondences", "embed", embedded)
    for degrees in (60.0, 240.0):
        everywhere(monkeypatch, "latentlab.correspondences", "_sheet", lambda _, seed, degrees=degrees: sheet(degrees, seed))
        everywhere(
            monkeypatch,
            "latentlab.correspondences",
            "_means_on_a_sheet",
            lambda _, *given, degrees=degrees: means(degrees, *given),
        )
        assert not claim.check().passed
    everywhere(monkeypatch, "latentlab.correspondences", "_sheet", sheet)
    everywhere(monkeypatch, "latentlab.correspondences", "_means_on_a_sheet", lambda *given: rng.permutation(means(*given)))
    assert not claim.check().passed  # units in another order
