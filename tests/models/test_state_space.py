"""Tests of the state-space model: contract, joint density and maximum likelihood."""

from dataclasses import replace

import contract
import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal, norm

from latentlab.data.dataset import Dataset
from latentlab.errors import ConfigError, DataError, InferenceError
from latentlab.inference.arrays import tensors
from latentlab.inference.density import Density
from latentlab.inference.joint import log_joint
from latentlab.models import state_space_optimum
from latentlab.models.state_space import LinearGaussianStateSpace
from latentlab.models.state_space_optimum import Problem, climb, em_step, start
from latentlab.seeds import double
from latentlab.symmetry.groups import GeneralLinear, SignedPermutation

MODELS = [
    LinearGaussianStateSpace(2),
    LinearGaussianStateSpace(1, A_scale=0.3, mu_scale=0, sigma_scale=0.5, initial_scale=2.0),
    LinearGaussianStateSpace(3, A_scale=0, C_scale=0.5),
]


def simulated_dataset(model, n_units=12, seed=contract.SEED, **more):
    return model.simulate(np.random.default_rng(seed), n_units, **more)


@pytest.mark.parametrize("model", MODELS, ids=repr)
@pytest.mark.parametrize("n_sequences", [1, 3])
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
def test_the_state_space_model_keeps_the_contract(model, n_sequences, check):
    check(model, simulated_dataset(model, n_sequences=n_sequences))


@pytest.mark.parametrize("model", MODELS, ids=repr)
def test_simulated_state_space_data_match_the_density(model):
    contract.check_simulate(model)


def test_simulated_positions_follow_the_transition():
    # The score cannot tell A from its transpose, whose prior is the same: what is left of a step must not depend on the last one.
    dataset = stable_dataset(LinearGaussianStateSpace(2), 2, 4000, n_features=2, n_sequences=2)
    z, A = dataset.truth["z"], dataset.truth["A"]
    assert np.abs(A - A.T).max() > 0.3
    follows = np.flatnonzero(dataset.coords["sequence"][1:] == dataset.coords["sequence"][:-1]) + 1
    left, last = z[follows] - z[follows - 1] @ A.T, z[follows - 1]
    scores = np.concatenate([left[:, :, None] * last[:, None, :], left[:, :, None] * left[:, None, :] - np.eye(2)], 1).reshape(
        -1, 8
    )
    found = np.sqrt(len(scores)) * scores.mean(0) / scores.std(0)  # martingale differences: standard normal
    assert np.abs(found).max() < norm.isf(1e-6 / 2 / 8)


@pytest.mark.parametrize("group", [GeneralLinear(), SignedPermutation()], ids=repr)
def test_a_wrong_state_space_symmetry_is_detected(group):
    model = LinearGaussianStateSpace(2)
    model.symmetry = group
    with pytest.raises(AssertionError, match="is declared"):
        contract.check_symmetry(model, simulated_dataset(model))


# -- densities


def with_missing(dataset, rng, share=0.2):
    x = np.where(rng.random(dataset.x.shape) < share, np.nan, dataset.x)
    x[4] = np.nan
    return replace(dataset, arrays={**dataset.arrays, "x": x})


def joint(model, dataset, values):
    """log p(values, z, x), each step written out."""
    A, C, mu, sigma, z = (np.asarray(values[name]) for name in ("A", "C", "mu", "sigma", "z"))
    total = norm(0, model.A_scale).logpdf(A).sum() + norm(0, model.C_scale).logpdf(C).sum()
    total += norm(0, model.mu_scale).logpdf(mu).sum()
    total += (np.log(2) + norm(0, model.sigma_scale).logpdf(sigma)).sum()
    sequence = dataset.coords.get("sequence", np.zeros(len(z)))
    for t in range(len(z)):
        first = t == 0 or sequence[t] != sequence[t - 1]
        mean, scale = (0.0, model.initial_scale) if first else (A @ z[t - 1], 1.0)
        total += norm(mean, scale).logpdf(z[t]).sum()
        seen = ~np.isnan(dataset.x[t])
        total += norm(C @ z[t] + mu, sigma).logpdf(np.nan_to_num(dataset.x[t]))[seen].sum()
    return total


@pytest.mark.parametrize("n_sequences", [1, 3])
@pytest.mark.parametrize("missing", [False, True])
def test_the_joint_with_its_path_matches_the_written_out_process(rng, n_sequences, missing):
    model = LinearGaussianStateSpace(2, A_scale=0.4, C_scale=1.5, mu_scale=2.0, sigma_scale=0.7, initial_scale=1.7)
    dataset = simulated_dataset(model, 10, n_sequences=n_sequences)
    dataset = with_missing(dataset, rng) if missing else dataset
    values = dict(dataset.truth)
    for _ in range(3):
        assert log_joint(model, dataset, values) == pytest.approx(joint(model, dataset, values), rel=1e-10)
        values = {name: value * np.exp(0.1 * rng.standard_normal(value.shape)) for name, value in values.items()}


def local_level(x, sigma, scale, initial_scale):
    """Dense log density of scaled random walks with unit steps and noise, sequence by sequence."""
    n = len(x)
    walk = initial_scale**2 + np.minimum.outer(np.arange(n), np.arange(n))
    return multivariate_normal(np.zeros(n), scale**2 * walk + sigma**2 * np.eye(n)).logpdf(x)


def test_the_local_level_model_matches_a_dense_gaussian(rng):
    model = LinearGaussianStateSpace(1, mu_scale=0, initial_scale=3.0)
    x = np.cumsum(rng.standard_normal((30, 1)), 0)
    coords = {"sequence": np.repeat(["a", "b"], [20, 10])}
    values = {"A": np.ones((1, 1)), "C": np.full((1, 1), 0.8), "sigma": np.array([0.6])}
    given = {name: torch.tensor(value) for name, value in {**values, "mu": np.zeros(1)}.items()}
    one = Dataset({"x": x}, dims={"x": ("unit", "feature")})
    several = replace(one, coords=coords)
    priors = norm(0, 0.5).logpdf(1) + norm(0, 1).logpdf(0.8) + np.log(2) + norm(0, 1).logpdf(0.6)
    parts = {"one": [x[:, 0]], "several": [x[:20, 0], x[20:, 0]]}
    for dataset, name in ((one, "one"), (several, "several")):
        exact = np.array([local_level(part, 0.6, 0.8, 3.0) for part in parts[name]])
        assert log_joint(model, dataset, values) == pytest.approx(exact.sum() + priors, rel=1e-11)
        arrays = tensors(model, dataset)
        density = Density(model, arrays, dataset.array_dims)
        assert float(density.log_likelihood(given).sum()) == pytest.approx(exact.sum(), rel=1e-11)
        left_out = model.leave_one_out(arrays, **given).numpy()
        if name == "several":
            np.testing.assert_allclose(left_out, exact, rtol=1e-11)
    hidden = replace(one, arrays={"x": np.where(np.arange(30)[:, None] == 7, np.nan, x)})
    without = log_joint(model, hidden, values) - priors
    left_out = model.leave_one_out(tensors(model, one), **given)
    assert float(left_out[7]) == pytest.approx(local_level(x[:, 0], 0.6, 0.8, 3.0) - without, abs=1e-10)


# -- maximum likelihood


def stable_dataset(model, seed, n_units, **more):
    """Simulates the first dataset with a stable transition of large eigenvalues."""
    rng = np.random.default_rng(seed)
    while True:
        dataset = model.simulate(rng, n_units, **more)
        if 0.5 < np.abs(np.linalg.eigvals(dataset.truth["A"])).max() < 0.95:
            return dataset


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("fixed", [(), ("mu",), ("A",)])
def test_em_of_the_state_space_model_never_decreases_likelihood(rng, missing, fixed):
    model = LinearGaussianStateSpace(2)
    dataset = stable_dataset(model, 1, 60, n_features=4, n_sequences=2)
    arrays = tensors(model, with_missing(dataset, rng) if missing else dataset)
    starts = torch.arange(60) % 30 == 0
    problem = Problem(arrays["x"], arrays["mask"], starts, 1.0, fixed)
    with double():
        values = start(problem.x, problem.mask, starts, 2, rng, jitter=0.5)
        values.update({name: torch.zeros_like(values[name]) for name in fixed})
        _, trace = climb(problem, values, 40)
    assert (np.diff(trace) > -1e-9 * np.abs(trace[-1])).all()
    assert trace[-1] > trace[0] + 1
    for name in fixed:
        assert not values[name].any()


def test_loo_of_state_space_models_leaves_out_whole_sequences():
    model = LinearGaussianStateSpace(1)
    dataset = model.simulate(np.random.default_rng(0), 9, n_features=2, n_sequences=2)
    arrays = tensors(model, dataset)
    values = {name: torch.tensor(value) for name, value in dataset.truth.items() if name != "z"}
    rows = model._chain(arrays, **values).log_prob(arrays["x"])
    found = model.leave_one_out(arrays, **values)
    torch.testing.assert_close(found, torch.stack([rows[:5].sum(), rows[5:].sum()]))


def test_em_steps_vanish_at_stationary_points(rng):
    model = LinearGaussianStateSpace(2, mu_scale=1.0)
    dataset = stable_dataset(model, 3, 80, n_features=4, n_sequences=2)
    arrays = tensors(model, dataset)
    with double():
        found = model.maximum_likelihood(arrays, rng)
        values = {name: torch.tensor(value) for name, value in found.values.items()}
        problem = Problem(arrays["x"], None, torch.arange(80) % 40 == 0, 1.0)
        after = em_step(problem, values)
    assert found.gradient < 1e-8
    for name, value in values.items():
        np.testing.assert_allclose(after[name].numpy(), value.numpy(), atol=1e-6)


def test_maximum_likelihood_exceeds_the_truth_and_uses_principal_axes(rng):
    model = LinearGaussianStateSpace(2)
    dataset = stable_dataset(model, 5, 100, n_features=4)
    arrays = tensors(model, dataset)
    with double():
        found = model.maximum_likelihood(arrays, rng)
    assert set(found.values) == {"A", "C", "mu", "sigma"}
    assert found.gradient < 1e-8
    assert found.how.startswith("EM")
    density = Density(model, arrays, dataset.array_dims)
    level = lambda values: float(density.log_likelihood({k: torch.tensor(v) for k, v in values.items() if k != "z"}).sum())  # noqa: E731
    assert level(found.values) == pytest.approx(found.trace[-1], rel=1e-10)
    assert level(found.values) > level(dataset.truth)
    assert (np.diff(found.trace) > -1e-7).all()
    C = found.values["C"]
    assert abs(C[:, 0] @ C[:, 1]) < 1e-9 * (C**2).sum()
    assert (C**2).sum(0)[0] > (C**2).sum(0)[1]
    # In other units nothing changes but the units.
    scaled = {**arrays, "x": arrays["x"] * 100 + 7}
    with double():
        other = model.maximum_likelihood(scaled, np.random.default_rng(0))
    np.testing.assert_allclose(other.values["A"], found.values["A"], atol=1e-5)
    np.testing.assert_allclose(other.values["C"], 100 * C, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(other.values["mu"], 100 * found.values["mu"] + 7, rtol=1e-4)
    assert other.trace[-1] == pytest.approx(found.trace[-1] - arrays["x"].numel() * np.log(100), rel=1e-9)


def test_parameters_with_prior_scale_0_stay_0(rng):
    model = LinearGaussianStateSpace(1, A_scale=0, mu_scale=0)
    dataset = simulated_dataset(LinearGaussianStateSpace(1, mu_scale=0), 40, n_features=4)
    with double():
        found = model.maximum_likelihood(tensors(model, dataset), rng)
    assert not found.values["A"].any()
    assert not found.values["mu"].any()
    # Without movement it is factor analysis without a mean: rows are independent, N(0, C C^T + sigma^2).
    C, sigma = found.values["C"], found.values["sigma"]
    level = multivariate_normal(np.zeros(4), C @ C.T + np.diag(sigma**2)).logpdf(dataset.x).sum()
    assert found.trace[-1] == pytest.approx(level, rel=1e-10)


# -- refusals


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_latent": 0}, r"LinearGaussianStateSpace: `n_latent` must be a whole number of at least 1; got 0"),
        ({"n_latent": 2, "C_scale": 0}, r"`C_scale` must be a finite number above 0; got 0"),
        ({"n_latent": 2, "A_scale": -1.0}, r"`A_scale` must be a finite number of at least 0; got -1"),
        ({"n_latent": 2, "initial_scale": np.inf}, r"`initial_scale` must be a finite number above 0; got inf"),
    ],
)
def test_settings_of_the_state_space_model_out_of_range_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        LinearGaussianStateSpace(**settings)


def test_unsuitable_data_are_refused_by_the_state_space_model(rng):
    model = LinearGaussianStateSpace(1)
    x = rng.standard_normal((2, 3))
    with pytest.raises(DataError, match="must have at least 3 time steps; got 2"):
        model.check(Dataset({"x": x}, dims={"x": ("unit", "feature")}))
    x = np.column_stack([rng.standard_normal(9), np.ones(9)])
    with pytest.raises(DataError, match="column 'b' is constant"):
        model.check(Dataset({"x": x}, dims={"x": ("unit", "feature")}, coords={"feature": ["a", "b"]}))


def test_an_unbounded_likelihood_is_reported(monkeypatch):
    monkeypatch.setattr(state_space_optimum, "N_STARTS", 1)
    # Two features of one AR(2) process: the second dimension is the first a step before, and moves without noise of its own.
    rng, model = np.random.default_rng(4), LinearGaussianStateSpace(2)
    z = np.zeros((82, 1))
    for t in range(2, 82):
        z[t] = 1.2 * z[t - 1] - 0.6 * z[t - 2] + rng.standard_normal()
    x = z[2:] * [1.0, 0.5] + 0.3 * rng.standard_normal((80, 2))
    with double(), pytest.raises(InferenceError, match=r"did not converge.*an entry of A has absolute value .*: A diverges"):
        model.maximum_likelihood(tensors(model, Dataset({"x": x}, dims={"x": ("unit", "feature")})), rng)
