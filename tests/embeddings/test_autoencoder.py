"""Tests of the autoencoder: linear ones span the principal components, others follow curves."""

import math

import numpy as np
import pytest
import torch
from scipy.linalg import subspace_angles
from scipy.stats import spearmanr

from latentlab.data.dataset import Dataset
from latentlab.data.load import load_dataset
from latentlab.embeddings import autoencoder as module
from latentlab.embeddings.autoencoder import autoencoder
from latentlab.embeddings.embed import embed
from latentlab.embeddings.linear import pca
from latentlab.errors import InferenceError


def linear_residual(x, code):
    """Returns the squared residual of the best linear map from code to data."""
    x, code = x - x.mean(axis=0), code - code.mean(axis=0)
    return ((x - code @ np.linalg.lstsq(code, x, rcond=None)[0]) ** 2).sum()


def arc(n=80, seed=0):
    """Points on three quarters of a circle, and their arc lengths."""
    t = np.random.default_rng(seed).permutation(np.linspace(0, 1.5 * np.pi, n))
    return np.column_stack([np.cos(t), np.sin(t)]), t


# -- without hidden layers


@pytest.mark.parametrize("q", [1, 2, 5, 12])
def test_a_linear_autoencoder_spans_the_principal_components(wine, q):
    """Baldi & Hornik (1989): the only minimum is the principal subspace; the error there is that of PCA."""
    notes = []
    for seed in (0, 1):
        code = autoencoder(wine, q, seed=seed, hidden=(), notes=notes)
        centred = code - code.mean(axis=0)
        assert subspace_angles(centred, pca(wine, q)).max() < 1e-5
        assert linear_residual(wine, code) == pytest.approx(linear_residual(wine, pca(wine, q)), rel=1e-10)
    assert notes == []


def test_axes_of_a_linear_autoencoder_differ_from_pca_and_between_seeds(wine):
    one, two = (autoencoder(wine, 2, seed=seed, hidden=(), notes=[]) for seed in (0, 1))
    assert abs(np.corrcoef(one.T)[0, 1]) > 0.01
    assert not np.allclose(one, two, atol=0.01)


def test_columns_of_very_different_scales_converge():
    raw = load_dataset("breast_cancer", standardize=False).x
    notes = []
    code = autoencoder(raw, 3, seed=0, hidden=(), notes=notes)
    assert notes == []
    assert subspace_angles(code - code.mean(axis=0), pca(raw, 3)).max() < 1e-4


def test_low_rank_data_are_reconstructed(wine):
    flat = wine[:, :2] @ np.random.default_rng(0).standard_normal((2, 6))
    assert linear_residual(flat, autoencoder(flat, 2, seed=0, hidden=(), notes=[])) < 1e-16 * (flat**2).sum()


def test_early_stopping_is_noted_and_differs_from_pca(wine, monkeypatch):
    """The comparison with PCA can fail."""
    monkeypatch.setattr(module, "MAX_ITER", 3)
    notes = []
    code = autoencoder(wine, 2, seed=0, hidden=(), notes=notes)
    assert len(notes) == 1
    assert notes[0].startswith("the linear autoencoder did not converge; the largest gradient is ")
    assert linear_residual(wine, code) > 1.001 * linear_residual(wine, pca(wine, 2))


def test_no_hidden_layers_can_be_given_as_a_list():
    dataset = load_dataset("iris")
    runs = [embed("autoencoder", dataset, hidden=hidden, n_seeds=1).values.tobytes() for hidden in ((), [])]
    assert runs[0] == runs[1]


# -- with hidden layers


def test_a_nonlinear_autoencoder_follows_a_curve():
    x, t = arc()
    code = autoencoder(
        x, 1, seed=0, hidden=(32, 32), activation="tanh", n_epochs=600, learning_rate=3e-3, batch_size=20, notes=[]
    )
    assert abs(spearmanr(code[:, 0], t).statistic) > 0.99
    assert abs(spearmanr(pca(x, 1)[:, 0], t).statistic) < 0.95


def test_more_training_lowers_the_reconstruction_error(wine):
    short, long = (autoencoder(wine, 2, seed=0, n_epochs=n, notes=[]) for n in (1, 150))
    assert linear_residual(wine, long) < 0.9 * linear_residual(wine, short)
    assert linear_residual(wine, long) > linear_residual(wine, pca(wine, 2))  # no code does better by a linear map back


@pytest.mark.parametrize("activation", ["relu", "tanh", "softplus", "elu"])
def test_the_decoder_mirrors_the_encoder(activation):
    encoder, decoder = module._network([9, 7, 5, 2], activation), module._network([2, 5, 7, 9], activation)
    shapes = [[tuple(p.shape) for p in net.parameters() if p.ndim == 2] for net in (encoder, decoder)]
    assert shapes == [[(7, 9), (5, 7), (2, 5)], [(5, 2), (7, 5), (9, 7)]]
    for net in (encoder, decoder):
        assert [type(layer).__name__.lower() for layer in net] == ["linear", activation] * 2 + ["linear"]


def test_every_training_option_changes_the_code(wine):
    made = [
        autoencoder(wine, 2, seed=0, notes=[], **{"n_epochs": 3, **options}).tobytes()
        for options in (
            *({}, {"hidden": (8,)}, {"hidden": (8, 4)}, {"n_epochs": 4}, {"batch_size": 32}, {"learning_rate": 1e-2}),
            *({"activation": "tanh"}, {"activation": "softplus"}, {"activation": "elu"}),
        )
    ]
    assert len(set(made)) == len(made)


def test_the_code_ignores_origin_and_unit_of_measurement(wine):
    code = autoencoder(wine, 2, seed=0, n_epochs=5, notes=[])
    assert autoencoder(2.0**40 * wine, 2, seed=0, n_epochs=5, notes=[]).tobytes() == code.tobytes()
    np.testing.assert_allclose(autoencoder(wine + 3.0, 2, seed=0, n_epochs=5, notes=[]), code, atol=1e-8)


def test_the_code_depends_on_the_seed_only(wine):
    code = autoencoder(wine, 2, seed=0, n_epochs=3, notes=[])
    threads = torch.get_num_threads()
    try:
        torch.manual_seed(123)
        torch.set_num_threads(2)
        with torch.no_grad():
            assert autoencoder(wine, 2, seed=0, n_epochs=3, notes=[]).tobytes() == code.tobytes()
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert code.dtype == np.float64
    assert torch.get_default_dtype() == torch.float32
    assert autoencoder(wine, 2, seed=1, n_epochs=3, notes=[]).tobytes() != code.tobytes()


def test_a_too_large_learning_rate_raises_an_error():
    dataset = Dataset({"x": np.random.default_rng(0).standard_normal((20, 4))}, dims={"x": ("unit", "feature")})
    with pytest.raises(InferenceError, match=r"the loss is (inf|nan) in epoch \d+ of 200; set a smaller `learning_rate`"):
        embed("autoencoder", dataset, learning_rate=1e200)


def test_a_batch_larger_than_the_data_is_accepted(wine):
    assert math.isfinite(autoencoder(wine[:5], 2, seed=0, n_epochs=2, batch_size=10**6, notes=[]).sum())
