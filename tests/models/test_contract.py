"""Tests that every model keeps the contract and that false declarations are detected."""

import contract
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from latentlab.data.dataset import Dataset
from latentlab.distributions import kernels
from latentlab.errors import ModelError
from latentlab.inference.arrays import tensors
from latentlab.inference.capture import Plan
from latentlab.inference.density import Density
from latentlab.models.base import LatentModel
from latentlab.models.count_hmms import CategoricalHMM, PoissonHMM
from latentlab.models.count_mixtures import BernoulliMixture, PoissonMixture
from latentlab.models.factor_analysis import FactorAnalysis
from latentlab.models.gaussian_hmm import GaussianHMM
from latentlab.models.gaussian_mixture import DPMixture, GaussianMixture
from latentlab.models.gplvm import GPLVM
from latentlab.models.linear_vae import LinearVAE
from latentlab.models.matrix_factorization import MatrixFactorization
from latentlab.models.ppca import PPCA
from latentlab.models.random_dot_product import RandomDotProduct
from latentlab.models.sparse_gplvm import SparseGPLVM
from latentlab.models.state_space import LinearGaussianStateSpace
from latentlab.models.vae import VAE
from latentlab.registry import MODELS
from latentlab.seeds import forked, reseed
from latentlab.symmetry.groups import GeneralLinear, Identity, Permutation, SignedPermutation


def seeded(make):
    """Make a network with the same weights in every process; the names of the tests have a digest of them."""
    with forked():
        reseed(0)
        return make()


CASES = {
    "gaussian_mixture": [
        GaussianMixture(3),
        GaussianMixture(2, covariance="tied", corr_concentration=1.0),
        GaussianMixture(3, covariance="diagonal", mu_loc=[-1.0, 0.0, 1.0], weights_concentration=[1.0, 2.0, 3.0]),
        GaussianMixture(2, covariance="spherical", sigma_prior="half_normal"),
        GaussianMixture(1, covariance="diagonal"),
    ],
    "dp_mixture": [DPMixture(4), DPMixture(3, covariance="spherical", alpha_shape=0.0)],
    "gaussian_hmm": [
        GaussianHMM(2),
        GaussianHMM(3, covariance="spherical", sticky=2.0, initial_concentration=0.0),
        GaussianHMM(3, left_to_right=True),
        GaussianHMM(2, mu_loc=[3.0, 10.0], mu_scale=1.0, sigma_scale=1.0, sigma_spread=0.0),
        GaussianHMM(2, covariance="tied", ordered=False),
        GaussianHMM(2, ordered=True),
    ],
    "categorical_hmm": [CategoricalHMM(2, n_categories=3), CategoricalHMM(3, n_categories=2, left_to_right=True)],
    "poisson_hmm": [PoissonHMM(2), PoissonHMM(1)],
    "state_space": [
        LinearGaussianStateSpace(2),
        LinearGaussianStateSpace(1, A_scale=0.3, mu_scale=0, sigma_scale=0.5, initial_scale=2.0),
    ],
    "bernoulli_mixture": [BernoulliMixture(3)],
    "poisson_mixture": [PoissonMixture(2, rate_shape=2.0, rate_mean=[2.0, 6.0]), PoissonMixture(3)],
    "ppca": [PPCA(2), PPCA(2, marginalize=False), PPCA(1, W_scale=0.7, mu_scale=0, sigma_scale=0.4)],
    "vae": [
        VAE(2, hidden=(5,), activation="tanh"),
        VAE(2, hidden=(4, 3), noise="feature", encoder_hidden=(6,), activation="softplus"),
        VAE(3, hidden=(), likelihood="poisson"),
        VAE(1, hidden=(5,), likelihood="bernoulli", conditional=True, activation="tanh"),
        VAE(2, hidden=(4,), likelihood="continuous_bernoulli", activation="softplus", posterior="full"),
        VAE(2, hidden=(4,), likelihood="negative_binomial", noise="feature", activation="tanh"),
        VAE(2, hidden=(3,), likelihood="categorical", n_categories=3, activation="softplus", prior="mixture", n_components=3),
        VAE(2, hidden=(3,), likelihood="discretised_logistic", grid=[0, 16], noise="entry", activation="tanh"),
        VAE(2, hidden=(4,), noise="entry", activation="tanh", prior="vamp", n_components=3),
        VAE(1, hidden=(4,), activation="tanh", prior="vamp", n_components=3, posterior="full"),
        VAE(2, hidden=(4,), activation="tanh", prior="flow", flow_hidden=(5,), n_transforms=2),
        VAE(3, hidden=(4,), activation="tanh", prior="flow", flow="affine", flow_hidden=(), n_transforms=2, conditional=True),
        VAE(1, hidden=(4,), activation="tanh", prior="flow", posterior="flow", flow_hidden=(5,), n_transforms=1),
        VAE(2, hidden=(), prior="vamp", n_components=2, posterior="flow", flow="affine", flow_hidden=(), n_transforms=2),
        VAE(2, decoder={"name": "convolutional", "shape": [1, 2, 5], "channels": [3], "activation": "tanh"}),
        VAE(2, decoder={"name": "residual", "width": 5, "activation": "softplus"}, prior="mixture", conditional=True),
        VAE(2, decoder={"name": "recurrent", "width": 3}, likelihood="negative_binomial", noise="entry", prior="mixture"),
        VAE(2, decoder=seeded(lambda: nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 10)))),
        VAE(2, decoder=seeded(lambda: nn.Sequential(nn.Tanh(), nn.Linear(2, 10))), encoder=seeded(lambda: nn.Linear(10, 4))),
    ],
    "linear_vae": [LinearVAE(2), LinearVAE(3, sigma=0.5)],
    "factor_analysis": [FactorAnalysis(2), FactorAnalysis(3, marginalize=False), FactorAnalysis(1, mu_scale=0)],
    "matrix_factorization": [MatrixFactorization(2), MatrixFactorization(1, U_scale=0.5, V_scale=2.0, mu_scale=0)],
    "gplvm": [
        GPLVM(2),
        GPLVM(1, kernel="matern32", lengthscale_spread=0, mean_scale=1.0),
        GPLVM(2, kernel="rational_quadratic"),
        GPLVM(2, kernel="matern52+linear", amplitude_spread=0.5),
        GPLVM(2, kernel="linear", nugget=1e-4),
        GPLVM(2, ard=True),
        GPLVM(2, dynamics="matern52", nugget=1e-3),
        GPLVM(1, dynamics="rbf", timescale_median=2.0, timescale_spread=0, nugget=1e-2),
        GPLVM(2, kernel="matern32+linear", ard=True),
    ],
    "sparse_gplvm": [
        SparseGPLVM(2, 4),
        SparseGPLVM(2, 5, kernel="matern52+linear", ard=True, posterior="full", mean_scale=0.5),
        SparseGPLVM(1, 3, kernel="rational_quadratic", likelihood="bernoulli", encoder=(4,)),
        SparseGPLVM(2, 4, elbo="collapsed", posterior="point", nugget=1e-4),
        SparseGPLVM(3, 4, kernel="linear", ard=True, encoder=()),
    ],
    "random_dot_product": [RandomDotProduct(2), RandomDotProduct(3, alpha_scale=1.0, z_scale=0.5)],
}
MODELS_TO_CHECK = [pytest.param(m, id=repr(m)) for models in CASES.values() for m in models]


def simulated(model, n_units=12):
    options = {"n_features": 1 if getattr(model, "ordered", False) else 3} if "leave_one_out" in model.offers else {}
    return model.simulate(np.random.default_rng(contract.SEED), n_units, **options)


def test_every_registered_model_has_a_case():
    assert set(CASES) == set(MODELS)


def check_backend(model, plan):
    """Check value and gradient of a graph against the program, for one point and for two in a batch, to 1e-12."""
    dataset = simulated(model)
    density = Density(model, tensors(model, dataset), dataset.array_dims, contract.parameters_of(model, dataset), plan)
    points = np.random.default_rng(contract.SEED).uniform(-0.5, 0.5, (2, density.size))
    values, gradients = density.batch_value_and_grad(points)
    for u, *in_batch in zip(torch.from_numpy(points), values, gradients, strict=True):
        value, gradient = density.eager_value_and_grad(u)
        for level, slope in (density.value_and_grad(u), in_batch):
            np.testing.assert_allclose(level, value, rtol=1e-12)
            np.testing.assert_allclose(slope, gradient, rtol=1e-12, atol=1e-12 * float(gradient.abs().max()))


@pytest.mark.parametrize("model", MODELS_TO_CHECK)
def test_models_as_python_code_equal_eager(model):
    check_backend(model, Plan(compiled=False))


@pytest.mark.long
@pytest.mark.parametrize("model", [pytest.param(models[0], id=name) for name, models in CASES.items()])
def test_models_as_machine_code_equal_eager(model):
    check_backend(model, Plan(compiled=True))


@pytest.mark.parametrize("model", MODELS_TO_CHECK)
@pytest.mark.parametrize(
    "check",
    [
        contract.check_dims,
        contract.check_symmetry,
        contract.check_guide_sites,
        contract.check_start,
        contract.check_conditional,
        contract.check_imputation,
    ],
    ids=lambda check: check.__name__,
)
def test_models_keep_the_contract(model, check):
    check(model, simulated(model))


WITH_KERNELS = ("gaussian_mixture", "dp_mixture", "gaussian_hmm", "categorical_hmm", "poisson_hmm", "state_space")


def one_case_of_each(names):
    """Cases of these models; all but the first of each model are marked long."""
    cases = [(m, i) for name in names for i, m in enumerate(CASES[name])]
    return [pytest.param(m, id=repr(m), marks=[pytest.mark.long] if i else []) for m, i in cases]


SERVED = one_case_of_each(WITH_KERNELS)


@pytest.fixture
def no_kernels(monkeypatch):
    monkeypatch.setattr(kernels, "available_for", lambda *tensors: False)


def check_paths(model, missing):
    if missing and not model.takes("mask"):
        pytest.skip("takes no mask")
    dataset = simulated(model)
    contract.check_paths(model, contract.with_missing(dataset) if missing else dataset)


@pytest.mark.parametrize("model", MODELS_TO_CHECK)
def test_density_matches_pyro(model):
    check_paths(model, missing=False)


@pytest.mark.parametrize("model", one_case_of_each(CASES))
def test_density_with_missing_entries_matches_pyro(model):
    check_paths(model, missing=True)


@pytest.mark.parametrize("model", SERVED)
@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.usefixtures("no_kernels")
def test_density_without_kernels_matches_pyro(model, missing):
    check_paths(model, missing)


@pytest.mark.slow
@pytest.mark.parametrize("model", SERVED)
@pytest.mark.usefixtures("no_kernels")
@pytest.mark.parametrize("check", [contract.check_symmetry, contract.check_start, contract.check_conditional])
def test_models_keep_the_contract_without_kernels(model, check):
    check(model, simulated(model))


@pytest.mark.parametrize("model", MODELS_TO_CHECK)
def test_simulated_data_match_the_density(model):
    contract.check_simulate(model)


@pytest.mark.parametrize("name", sorted(MODELS))
def test_docstrings_state_process_and_identifiability(name):
    doc = MODELS.load(name).__doc__
    assert r"\sim" in doc
    assert "dentified" in doc
    assert "References:" in doc


# -- false declarations


class TooLarge(PPCA):
    symmetry = GeneralLinear()


class TooSmall(PPCA):
    symmetry = SignedPermutation()


class MuchTooSmall(PPCA):
    symmetry = Identity()


class PermutationDeclared(FactorAnalysis):
    symmetry = Permutation()


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (TooLarge(2), r"GeneralLinear.* is declared and changes the log joint"),
        (TooSmall(2), r"the larger Orthogonal.* leaves the log joint as it is too"),
        (MuchTooSmall(2), r"the larger .* leaves the log joint as it is too"),
        (PermutationDeclared(2), r"the larger .* leaves the log joint as it is too"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_wrong_symmetry_is_detected(model, message):
    with pytest.raises(AssertionError, match=message):
        contract.check_symmetry(model, simulated(model))


class WrongDims(PPCA):
    def __init__(self, n_latent):
        super().__init__(n_latent)
        self.dims = {**self.dims, "W": ("latent", "feature")}


class UndeclaredSite(PPCA):
    def model(self, x, mask=None):
        pyro.sample("extra", dist.Normal(0.0, 1.0))
        super().model(x, mask)


@pytest.mark.parametrize("model", [WrongDims(2), UndeclaredSite(2)], ids=lambda m: type(m).__name__)
def test_wrong_dims_are_detected(model):
    with pytest.raises(ModelError, match=r"dim '(latent|feature)' has size|'extra' is not declared"):
        contract.check_dims(model, simulated(PPCA(2)))


class GuideWithMissingSite(PPCA):
    def guide(self, x, mask=None):
        with pyro.poutine.block(hide=["mu"]):
            super().guide(x, mask)


class GuideWithExtraSite(PPCA):
    def guide(self, x, mask=None):
        super().guide(x, mask)
        pyro.sample("extra", dist.Normal(0.0, 1.0))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (GuideWithMissingSite(2), r"must have the latent sites of the model.* \(missing: mu\)"),
        (GuideWithExtraSite(2), r"must have the latent sites of the model.* \(not in the model: extra\)"),
    ],
)
def test_a_guide_with_other_sites_is_detected(model, message):
    with pytest.raises(ModelError, match=message):
        contract.check_guide_sites(model, simulated(model))


class VarianceForSd(PPCA):
    """Simulates with the noise variance in place of its standard deviation."""

    def simulate(self, rng, n_units, n_features=10):
        dataset = super().simulate(rng, n_units, n_features)
        truth = dict(dataset.truth)
        truth["sigma"] = np.sqrt(truth["sigma"])
        return type(dataset)(dict(dataset.arrays), dims=dict(dataset.dims), truth=truth, truth_dims=dict(dataset.truth_dims))


class ShiftedMean(FactorAnalysis):
    def simulate(self, rng, n_units, n_features=10):
        dataset = super().simulate(rng, n_units, n_features)
        return type(dataset)(
            {"x": dataset.x + 0.1}, dims=dict(dataset.dims), truth=dict(dataset.truth), truth_dims=dict(dataset.truth_dims)
        )


@pytest.mark.parametrize("model", [VarianceForSd(2), ShiftedMean(2, psi_scale=0.2)], ids=lambda m: type(m).__name__)
def test_a_wrong_simulator_is_detected(model):
    with pytest.raises(AssertionError, match="simulate does not agree"):
        contract.check_simulate(model)


class WrongConditional(PPCA):
    def latents(self, arrays, **values):
        exact = super().latents(arrays, **values)
        return torch.distributions.MultivariateNormal(exact.mean, covariance_matrix=exact.covariance_matrix * 1.1)


def test_a_wrong_conditional_is_detected():
    with pytest.raises(AssertionError, match="integrated and explicit form"):
        contract.check_conditional(WrongConditional(2, marginalize=False), simulated(PPCA(2)))


class WrongImputation(FactorAnalysis):
    def imputation(self, arrays, **values):
        found = super().imputation(arrays, **values)
        return torch.distributions.Normal(found.mean, found.variance)


def test_a_wrong_imputation_is_detected():
    with pytest.raises(AssertionError, match="imputation"):
        contract.check_imputation(WrongImputation(2), simulated(FactorAnalysis(2)))


# -- data of the wrong shape


class Scalar(PPCA):
    """Has one number for each unit, and is given a column (N, 1)."""

    def model(self, x, mask=None):
        mu = pyro.sample("mu", dist.Normal(torch.zeros(1), 1.0).to_event(1))
        with pyro.plate("unit", len(x)):
            pyro.sample("x", dist.Normal(mu[0], 1.0), obs=x)


def test_a_column_that_broadcasts_in_a_plate_is_refused():
    dataset = PPCA(1).simulate(np.random.default_rng(0), 7, n_features=2).raw()
    column = type(dataset)({"x": dataset.x[:, :1]}, dims={"x": ("unit", "feature")})
    model = Scalar(1)
    model.dims = {"mu": ("feature",)}
    with pytest.raises(ModelError, match=r"the log density of site 'x' must have the shape \(7,\).*got \(7, 7\).*\(N, 1\)"):
        Density(model, tensors(model, column), column.array_dims)


@pytest.mark.parametrize("model", MODELS_TO_CHECK)
def test_a_single_new_unit_with_a_missing_entry_is_accepted(model):
    many = model.simulate(np.random.default_rng(0), 40)
    assert many.index or type(model).check_new is not LatentModel.check_new
    one = many.subset(np.array([3]))
    if not one.index and one.x.shape[1] > 1 and model.takes("mask"):
        x = one.x.copy()
        x[0, 0] = np.nan
        one = Dataset({"x": x}, dims=one.dims, coords=one.coords, labels=one.labels)
    model.check_new(one)
