"""Tests of the sparse Gaussian process latent variable model: bounds, statistics, rows of minibatches, new units, refusals."""

from dataclasses import replace

import contract
import numpy as np
import pytest
import torch
from helpers import memory_and_disk
from scipy.integrate import quad
from scipy.stats import multivariate_normal, norm

import latentlab as ll
from latentlab.data import stored
from latentlab.data.dataset import Dataset
from latentlab.distributions.sparse_process import SparseBits, SparseRows, divergence, optimal_inducing, weights_of
from latentlab.errors import ConfigError, DataError, InferenceError, ModelError
from latentlab.inference.arrays import tensors
from latentlab.inference.batches import batches
from latentlab.inference.model_guide import objective
from latentlab.inference.parameters import register_parameters
from latentlab.inference.row_starts import at_all_rows
from latentlab.models.fixed import Fixed
from latentlab.models.psi_statistics import collapsed_bound, psi_statistics
from latentlab.models.sparse_gplvm import SparseGPLVM
from latentlab.models.sparse_positions import SPREAD
from latentlab.results.prepare import prepared
from latentlab.seeds import Seeds, double, isolated

METHOD = ll.SVI(guide="model", n_steps=60, batch_size=30, n_particles=1, n_draws=20)


def simulated(model, n_units=12, **more):
    return model.simulate(np.random.default_rng(contract.SEED), n_units, **more)


def table(x):
    return Dataset({"x": x}, dims={"x": ("unit", "feature")})


def at_truth(model, n_units=12, **more):
    """Returns the data as tensors, the parameters and the positions that were simulated."""
    dataset = simulated(model, n_units, **more)
    values = {name: torch.tensor(np.asarray(value), dtype=torch.float64) for name, value in dataset.truth.items()}
    return tensors(model, dataset), values, values.pop("z")


def prior_covariance(model, z, values):
    at = {name: values[name] for name in values if name != "Z"}
    return model._kernel.covariance(z, z, at)


def exact(model, x, z, values):
    """Log marginal likelihood of rows at positions, by scipy."""
    covariance = prior_covariance(model, z, values) + values["sigma"] ** 2 * torch.eye(len(z), dtype=torch.float64)
    return multivariate_normal(cov=covariance.numpy()).logpdf(x.numpy().T).sum()


def stochastic(model, x, z, values):
    """Bound at positions for q(u) of `values`, without the prior of the positions."""
    return model._rows(z, None, values).log_prob(x).sum() - divergence(values["u_loc"], values["u_scale"])


def with_optimum(model, x, z, values):
    loc, scale = optimal_inducing(model._weights(z, values)[0], x, values["sigma"])
    return {**values, "u_loc": loc, "u_scale": scale}


def at_points(model, x, z, values):
    """Collapsed bound at positions, by the psi statistics."""
    q = z.shape[1]
    at = values.get("lengthscale", torch.ones(())), values.get("amplitude", torch.ones(()))
    psi = psi_statistics(model.kernel, z, torch.zeros(len(z), q, q), values["Z"], *at, model.mean_scale)
    return collapsed_bound(x, psi, model._inducing_covariance(values), values["sigma"])


# -- bounds


@pytest.mark.parametrize("kernel", ["rbf", "matern32", "rational_quadratic", "linear", "rbf+linear"])
@pytest.mark.parametrize("ard", [False, True])
def test_the_bound_is_below_the_exact_likelihood_and_equal_to_it_at_the_positions(kernel, ard):
    model = SparseGPLVM(2, 4, kernel=kernel, ard=ard, mean_scale=0.6, nugget=1e-12)
    arrays, values, z = at_truth(model)
    x = arrays["x"]
    level = exact(model, x, z, values)
    below = stochastic(model, x, z, with_optimum(model, x, z, values))
    assert float(below) <= level + 1e-6
    if kernel != "linear":
        assert float(below) < level - 0.1  # four inducing inputs are not enough
    at = {**values, "Z": z}
    if kernel == "linear":
        at["Z"] = z[:3]  # a linear kernel with a mean has rank 3
    assert float(stochastic(model, x, z, with_optimum(model, x, z, at))) == pytest.approx(level, abs=1e-6)


@pytest.mark.parametrize(("kernel", "ard"), [("rbf", False), ("rbf", True), ("linear", False), ("linear", True)])
def test_the_collapsed_bound_is_the_stochastic_bound_at_the_optimal_q(kernel, ard):
    model = SparseGPLVM(2, 4, kernel=kernel, ard=ard, mean_scale=0.5)
    arrays, values, z = at_truth(model)
    x = arrays["x"]
    best = with_optimum(model, x, z, values)
    expected = float(at_points(model, x, z, values))
    assert float(stochastic(model, x, z, best)) == pytest.approx(expected, abs=1e-8)
    other = {**best, "u_scale": 1.1 * best["u_scale"]}
    assert float(stochastic(model, x, z, other)) < expected - 1e-3
    other = {**best, "u_loc": best["u_loc"] + 0.1}
    assert float(stochastic(model, x, z, other)) < expected - 1e-3


def test_the_expected_log_density_and_the_divergence_match_independent_formulas(rng):
    mean, variance, x = rng.standard_normal((5, 3)), rng.uniform(0.1, 1, 5), rng.standard_normal((5, 3))
    observed = rng.random((5, 3)) < 0.6
    rows = SparseRows(torch.tensor(mean), torch.tensor(variance), torch.tensor(0.7, dtype=torch.float64), torch.tensor(observed))
    for n in range(5):
        each = [
            quad(lambda f: norm.logpdf(x[n, d], f, 0.7) * norm.pdf(f, mean[n, d], variance[n] ** 0.5), -12, 12, epsabs=1e-11)[0]  # noqa: B023
            for d in range(3)
            if observed[n, d]
        ]
        assert float(rows.log_prob(torch.tensor(x))[n]) == pytest.approx(sum(each), abs=1e-8)
    loc, scale = rng.standard_normal((4, 3)), np.tril(rng.uniform(0.2, 1, (4, 4)))
    one = torch.distributions.MultivariateNormal(torch.tensor(loc.T), scale_tril=torch.tensor(scale))
    prior = torch.distributions.MultivariateNormal(torch.zeros(4, dtype=torch.float64), torch.eye(4, dtype=torch.float64))
    expected = float(torch.distributions.kl_divergence(one, prior).sum())
    assert float(divergence(torch.tensor(loc), torch.tensor(scale))) == pytest.approx(expected, rel=1e-12)


def test_bernoulli_expectations_match_adaptive_quadrature(rng):
    mean, variance = 2 * rng.standard_normal((4, 2)), rng.uniform(0.05, 2, 4)
    x = (rng.random((4, 2)) < 0.5).astype(float)
    rows = SparseBits(torch.tensor(mean), torch.tensor(variance), torch.tensor(1.0))
    found, probs = rows.log_prob(torch.tensor(x)).numpy(), rows.predictive().probs.numpy()  # type: ignore[attr-defined]
    for n in range(4):
        log_lik = 0.0
        for d in range(2):
            density = norm(mean[n, d], variance[n] ** 0.5).pdf
            sign = 1 if x[n, d] else -1
            log_lik += quad(lambda f: -np.logaddexp(0, -sign * f) * density(f), -25, 25, epsabs=1e-11, limit=200)[0]  # noqa: B023
            p = quad(lambda f: density(f) / (1 + np.exp(-f)), -25, 25, epsabs=1e-11, limit=200)[0]  # noqa: B023
            assert probs[n, d] == pytest.approx(p, abs=1e-6)
        assert found[n] == pytest.approx(log_lik, abs=1e-6)


@pytest.mark.parametrize("kernel", ["rbf", "linear"])
@pytest.mark.parametrize("is_full", [False, True])
def test_psi_statistics_match_quadrature(kernel, is_full, rng, monkeypatch):
    """Gauss-Hermite quadrature on a grid of 40 x 40 nodes for each unit; blocks of one unit give the same sums."""
    n, q = 3, 2
    mean, Z, lengthscale = rng.standard_normal((n, q)), rng.standard_normal((4, q)), np.array([0.8, 1.7])
    roots = np.tril(rng.uniform(0.2, 0.7, (n, q, q))) if is_full else rng.uniform(0.2, 0.7, (n, 1, q)) * np.eye(q)
    nodes, weights = np.polynomial.hermite_e.hermegauss(40)
    grid = np.stack(np.meshgrid(nodes, nodes, indexing="ij"), -1).reshape(-1, 2)
    mass = np.outer(weights, weights).reshape(-1) / weights.sum() ** 2
    zero, one, two = 0.0, np.zeros((n, 4)), np.zeros((4, 4))
    for i in range(n):
        z = mean[i] + grid @ roots[i].T
        scaled, inducing = z / lengthscale, Z / lengthscale
        inner = scaled @ inducing.T
        k = 1.3**2 * (inner if kernel == "linear" else np.exp(-0.5 * ((scaled[:, None] - inducing) ** 2).sum(-1))) + 0.4**2
        zero += mass @ (1.3**2 * ((scaled**2).sum(-1) if kernel == "linear" else np.ones(len(z))) + 0.4**2)
        one[i], two = mass @ k, two + k.T @ (mass[:, None] * k)
    given = [torch.tensor(a) for a in (mean, roots @ roots.transpose(0, 2, 1), Z, lengthscale)]
    for block in (2**17, 1):
        monkeypatch.setattr("latentlab.models.psi_statistics.BLOCK", block)
        found = psi_statistics(kernel, *given, torch.tensor(1.3, dtype=torch.float64), 0.4)
        for value, expected in zip(found, (zero, one, two), strict=True):
            np.testing.assert_allclose(value, expected, rtol=1e-9)


def of_units(posterior, z, sd):
    """Parameters of the posteriors of units at positions, with the same standard deviation."""
    log_sd = torch.full_like(z, np.log(sd))
    if posterior == "full":
        return {"z_loc": z, "z_cholesky": torch.cat([log_sd, torch.zeros(len(z), 1, dtype=z.dtype)], 1)}
    return {"z_loc": z, "z_log_scale": log_sd} if posterior == "diagonal" else {"z_loc": z}


@pytest.mark.parametrize("posterior", ["diagonal", "full"])
def test_the_collapsed_bound_of_normal_positions_is_below_its_expectation_at_draws(posterior):
    """The optimal q(u) at each draw of the positions is better than one for all draws; at points both are equal."""
    model = SparseGPLVM(2, 4, elbo="collapsed", posterior=posterior)
    arrays, values, z = at_truth(model)
    x = arrays["x"]
    normal = torch.distributions.Normal(z, 0.2), torch.distributions.Normal(torch.zeros_like(z), 1.0)
    bound = float(
        model.exact_elbo(arrays, **values, **of_units(posterior, z, 0.2)) + torch.distributions.kl_divergence(*normal).sum()
    )
    draws = z + 0.2 * torch.from_numpy(np.random.default_rng(0).standard_normal((2000, *z.shape)))
    levels = np.array([float(at_points(model, x, one, values)) for one in draws])
    assert bound < levels.mean() + 4 * levels.std() / 2000**0.5
    point = SparseGPLVM(2, 4, elbo="collapsed", posterior="point")
    expected = float(at_points(model, x, z, values)) + norm.logpdf(z).sum()
    assert float(point.exact_elbo(arrays, **values, z_loc=z)) == pytest.approx(expected, abs=1e-8)


@pytest.mark.chance(1e-4)
@pytest.mark.parametrize("posterior", ["point", "diagonal", "full"])
def test_the_collapsed_bound_is_the_mean_bound_of_the_program_with_the_completed_q(posterior):
    """The tolerance is 4 standard errors of 4000 draws of the positions."""
    model = SparseGPLVM(2, 4, elbo="collapsed", posterior=posterior, mean_scale=0.3)
    arrays, values, z = at_truth(model)
    values |= of_units(posterior, z, 0.3)
    best = model.completed(arrays, values)
    expected = float(model.exact_elbo(arrays, **values))
    assert float(model.exact_elbo(arrays, **best)) == pytest.approx(expected, rel=1e-12)
    q = model.latents(arrays, **values)
    with isolated(Seeds(0)):
        draws = q.sample((1 if posterior == "point" else 4000,))
    each = torch.stack([stochastic(model, arrays["x"], one, best) + torch.as_tensor(norm.logpdf(one).sum()) for one in draws])
    each = each if posterior == "point" else each - q.log_prob(draws).sum(-1)
    se = 0.0 if posterior == "point" else float(each.std()) / len(each) ** 0.5
    assert float(each.mean()) == pytest.approx(expected, abs=4 * se + 1e-8)


def test_gradients_match_finite_differences():
    model = SparseGPLVM(2, 4, kernel="rbf+linear", ard=True, mean_scale=0.3)
    arrays, values, z = at_truth(model, n_features=2)
    names = [name for name in values if values[name].numel()]

    def bound(*given):
        return stochastic(model, arrays["x"], given[-1], {**values, **dict(zip(names, given, strict=False))})

    inputs = tuple(one.clone().requires_grad_() for one in (*(values[name] for name in names), z))
    assert torch.autograd.gradcheck(bound, inputs, eps=1e-6, atol=1e-4)


def test_the_optimal_q_is_a_stationary_point_with_the_right_curvature():
    """The negative Hessian of the bound in m is the inverse of S."""
    model = SparseGPLVM(2, 4)
    arrays, values, z = at_truth(model, n_features=1)
    best = with_optimum(model, arrays["x"], z, values)

    def bound(loc):
        return stochastic(model, arrays["x"], z, {**best, "u_loc": loc})

    curvature = torch.autograd.functional.hessian(bound, best["u_loc"]).reshape(4, 4)
    covariance = best["u_scale"] @ best["u_scale"].mT
    np.testing.assert_allclose(torch.linalg.inv(-curvature), covariance, rtol=1e-8, atol=1e-12)


def test_weights_are_those_of_conditional_gaussians(rng):
    root = rng.standard_normal((7, 7))
    whole = torch.tensor(root @ root.T + np.eye(7))
    weights = weights_of(whole[:4, :4], whole[4:, :4])
    np.testing.assert_allclose(weights @ weights.mT, whole[4:, :4] @ torch.linalg.solve(whole[:4, :4], whole[:4, 4:]), rtol=1e-10)


# -- minibatches


def loss_of(problem, method, arrays, scale, normals):
    """Loss of the objective with given noise, as in a step."""
    values = {name: value for name, value in normals.items()}
    with Fixed(values), double():
        return float(objective(problem, method, arrays, scale, 1.0, 1))


@pytest.mark.parametrize("posterior", ["point", "diagonal", "full"])
def test_the_mean_loss_of_the_batches_of_an_epoch_is_the_loss_of_all_units(posterior):
    """For point estimates exactly; normal posteriors have nearly no spread here, so that noise does not matter."""
    model = SparseGPLVM(2, 4, posterior=posterior)
    dataset = simulated(model, 40)
    problem = prepared(model, dataset, METHOD, progress=False)
    values = {name: torch.tensor(np.asarray(value)) for name, value in dataset.truth.items() if name != "z"}
    values["z_loc"] = torch.tensor(dataset.truth["z"])
    tiny = -16.0
    if posterior == "diagonal":
        values["z_log_scale"] = torch.full((40, 2), tiny).double()
    if posterior == "full":
        values["z_cholesky"] = torch.cat([torch.full((40, 2), tiny), torch.zeros(40, 1)], 1).double()
    given = batches(problem, 10, np.random.default_rng(0))
    with isolated(Seeds(0)):
        whole = loss_of(problem, METHOD, problem.arrays, 1.0, values)
        parts = [loss_of(problem, METHOD, problem.density.with_points(next(given)), 4.0, values) for _ in range(4)]
        order = torch.arange(40).roll(1)
        wrong = loss_of(problem, METHOD, {**problem.arrays, "row": order}, 1.0, values)
    spread = 0.0 if posterior == "point" else 2.0  # log q of the draws has a standard deviation of one for each coordinate / 40
    assert np.mean(parts) == pytest.approx(whole, rel=1e-10, abs=20 * spread)
    assert abs(wrong - whole) > 100, "positions of other units do not fit"
    if posterior == "point":
        z = values["z_loc"]
        level = float(stochastic(model, problem.arrays["x"], z, values)) + norm.logpdf(z).sum()
        assert -whole == pytest.approx(level, rel=1e-10)


@pytest.mark.parametrize("missing", [0.0, 0.2])
def test_batches_have_the_numbers_of_their_rows_in_memory_and_from_disk(missing, tmp_path, monkeypatch):
    monkeypatch.setattr(stored, "N_SAMPLE", 50)
    x = np.random.default_rng(0).standard_normal((300, 4))
    x[np.random.default_rng(1).random(x.shape) < missing] = np.nan
    np.save(tmp_path / "x.npy", x)
    for data in memory_and_disk(str(tmp_path / "x.npy"), standardize=False):
        problem = prepared(SparseGPLVM(2, 5), data, METHOD, progress=False)
        names = problem.density.point_arrays()
        np.testing.assert_array_equal(
            x[problem.arrays["row"]], problem.density.observations["x"] if not missing else data.sample.x
        )
        found = batches(problem, 32, np.random.default_rng(5), skip=3)
        for _ in range(12):
            batch = dict(zip(names, next(found), strict=True))
            np.testing.assert_array_equal(batch["x"], np.nan_to_num(x[batch["row"]]))
        found.close()


def test_positions_of_the_fit_are_those_of_its_units_on_disk(tmp_path, monkeypatch):
    """The positions that the result gives for the sample explain the sampled rows."""
    monkeypatch.setattr(stored, "N_SAMPLE", 60)
    rng = np.random.default_rng(0)
    z = rng.standard_normal((200, 1))
    x = np.concatenate([np.sin(z), np.cos(z), z], 1) + 0.05 * rng.standard_normal((200, 3))
    np.save(tmp_path / "x.npy", x)
    lazy = memory_and_disk(str(tmp_path / "x.npy"), standardize=False)[1]
    fit = ll.fit(SparseGPLVM(1, 10), lazy, replace(METHOD, n_steps=1500, batch_size=50), progress=False)
    mean = fit.data["posterior"]["z"].values.mean((0, 1))
    numbers = lazy.sampled()
    assert abs(np.corrcoef(mean[:, 0], z[numbers, 0])[0, 1]) > 0.97
    assert fit.parameters["z_loc"].shape == (200, 1)
    spread = fit.parameters["z_loc"][numbers].var(axis=0)
    np.testing.assert_allclose(fit.activity()["activity"], spread, rtol=1e-10)


@pytest.mark.parametrize("posterior", ["diagonal", "full"])
def test_units_on_disk_outside_of_the_sample_start_where_units_like_them_do(posterior, tmp_path, monkeypatch, rng):
    """Scores of principal components are linear in the data, so that the start is that of all units in memory but for noise."""
    monkeypatch.setattr(stored, "N_SAMPLE", 60)
    x = rng.standard_normal((300, 2)) @ rng.standard_normal((2, 5)) + 0.01 * rng.standard_normal((300, 5))
    np.save(tmp_path / "x.npy", x)
    model = SparseGPLVM(2, 10, posterior=posterior)
    data = memory_and_disk(str(tmp_path / "x.npy"), standardize=False)[1]
    problem = prepared(model, data, METHOD, progress=False)
    with isolated(Seeds(0)), double():
        registered = register_parameters(model, problem.arrays)
    found = at_all_rows(problem, registered)
    before, after = (
        {name: leaf.detach() for name, leaf in zip(one.names, one.leaves, strict=True)} for one in (registered, found)
    )
    np.testing.assert_array_equal(after["z_loc"][problem.arrays["row"]], before["z_loc"][problem.arrays["row"]])
    basis = np.column_stack([np.ones(300), x @ np.linalg.svd(x, full_matrices=False)[2][:2].T])
    z = after["z_loc"].numpy()
    residual = z - basis @ np.linalg.lstsq(basis, z, rcond=None)[0]
    assert float(residual.std()) < 0.03
    assert (z.std(0) > 0.7).all()
    spread = after["z_log_scale" if posterior == "diagonal" else "z_cholesky"][:, :2]
    np.testing.assert_allclose(spread, np.log(SPREAD), rtol=1e-9)


def test_positions_in_units_of_lengthscales_start_with_the_spreads_of_the_embedding(rng):
    x = rng.standard_normal((200, 2)) * [3.0, 0.5] @ np.linalg.qr(rng.standard_normal((4, 2)))[0].T
    model = SparseGPLVM(2, 5, ard=True)
    problem = prepared(model, table(x), METHOD, progress=False)
    with isolated(Seeds(0)), double():
        found = register_parameters(model, problem.arrays)
        values = found.constrained(leaf.detach() for leaf in found.leaves)
    spreads = (values["z_loc"] / values["lengthscale"]).std(0)
    assert float(spreads[0] / spreads[1]) == pytest.approx(np.divide(*np.linalg.svd(x - x.mean(0))[1][:2]), rel=0.02)


# -- fits


@pytest.fixture(scope="module")
def sheet():
    """Ten smooth functions of two coordinates, with noise of standard deviation 0.1."""
    rng = np.random.default_rng(0)
    z = rng.standard_normal((150, 2))
    x = np.sin(z @ rng.standard_normal((2, 10)) + rng.uniform(0, 6, 10)) + 0.1 * rng.standard_normal((150, 10))
    return replace(table(x - x.mean(0)), truth={"z": z}, truth_dims={"z": ("unit", "latent")})


def mean_squared_error(fit, dataset):
    values = {name: torch.tensor(value) for name, value in fit.parameters.items()}
    z = torch.tensor(fit.data["posterior"]["z"].values.mean((0, 1)))
    mean, _ = fit.model.map_at({}, z, **values)
    return float(((mean.numpy() - dataset.x) ** 2).mean())


@pytest.mark.parametrize(
    "model",
    [
        SparseGPLVM(2, 15, start="isomap"),
        SparseGPLVM(2, 20, posterior="full", ard=True, start="isomap"),
        SparseGPLVM(2, 20, posterior="point", start="isomap"),
        SparseGPLVM(2, 20, encoder=(16,)),
    ],
    ids=["diagonal", "full", "point", "encoder"],
)
def test_positions_of_a_sheet_are_recovered(model, sheet):
    """The map explains the rows, and distances between positions follow those on the sheet."""
    fit = ll.fit(model, sheet, replace(METHOD, n_steps=800, batch_size=50), seed=0, progress=False)
    assert mean_squared_error(fit, sheet) < 0.1, "the functions have a variance of about 0.3"
    new = fit.held_out_score(sheet.subset(range(20)), n_samples=50)
    assert np.isfinite(new["bound"])
    z, y = fit.data["posterior"]["z"].values.mean((0, 1)), fit.latents(sheet.subset(range(20))).values.mean((0, 1))
    aligned = fit.data["latents"]["z"].values.mean((0, 1))[:20]
    if model.encoder is None:
        apart = np.linalg.norm(z - z.mean(0), axis=1).mean()
        assert np.median(np.linalg.norm(y - aligned, axis=1)) < 0.3 * apart, "rows of the fit are placed where the fit has them"


@pytest.mark.parametrize("posterior", ["point", "diagonal", "full"])
def test_a_collapsed_fit_ends_at_a_maximum_with_the_optimal_q(posterior, sheet):
    model = SparseGPLVM(2, 15, elbo="collapsed", posterior=posterior, start="isomap")
    fit = ll.fit(model, sheet, replace(METHOD, n_steps=200, batch_size=None, n_draws=200), seed=0, progress=False)
    arrays = tensors(model, sheet)
    values = {name: torch.tensor(value) for name, value in fit.parameters.items()}
    best = model.completed(arrays, values)
    np.testing.assert_allclose(values["u_loc"], best["u_loc"], rtol=1e-6, atol=1e-8)
    bound, losses = float(model.exact_elbo(arrays, **values)), fit.data["optimization"]["loss"].values[0]
    assert losses[-1] == pytest.approx(-bound, rel=1e-9)
    assert (np.diff(losses) <= 1e-9 * abs(bound)).all()
    draws = fit.data["sample_stats"]
    each = draws["lp"].values - (0.0 if posterior == "point" else draws["log_q"].values)
    assert each.mean() == pytest.approx(bound, abs=5 * each.std() / 200**0.5 + 1e-6)
    for step in (0.9, 1.1):
        assert float(model.exact_elbo(arrays, **{**values, "sigma": step * values["sigma"]})) < bound
    assert 0.02 < float(values["sigma"]) < 0.3, "the noise of the data is 0.1, and their spread 0.7"


def test_a_bound_that_is_not_finite_at_the_start_stops_the_fit(sheet, monkeypatch):
    monkeypatch.setattr(SparseGPLVM, "exact_elbo", lambda self, arrays, **values: values["sigma"] * float("nan"))
    with pytest.raises(InferenceError, match="bound of 'sparse_gplvm' is not finite at the start; raise `nugget`"):
        ll.fit(SparseGPLVM(2, 5, elbo="collapsed"), sheet, replace(METHOD, batch_size=None), progress=False)


def test_new_units_are_placed_without_random_numbers_and_independently():
    model = SparseGPLVM(2, 8)
    arrays, values, _ = at_truth(model, 30)
    new = {"x": arrays["x"][:6], "mask": None, "row": None}
    one = model.latents(new, **values)
    torch.manual_seed(5)
    two = model.latents({**new, "x": new["x"][:2]}, **values)
    np.testing.assert_allclose(two.mean, one.mean[:2], rtol=1e-6, atol=1e-8)


def test_the_posterior_of_a_new_unit_of_a_linear_map_is_exact():
    """With a linear kernel, many inducing inputs and certain u, the posterior is that of a linear Gaussian model."""
    model = SparseGPLVM(2, 4, kernel="linear", posterior="full", nugget=1e-8)
    arrays, values, _ = at_truth(model, 30, n_features=6)
    values["u_scale"] = 1e-6 * torch.eye(4)
    x = arrays["x"][:5]
    q = model.latents({"x": x, "mask": None, "row": None}, **values)
    basis, _ = model.map_at({}, torch.eye(2, dtype=torch.float64), **values)
    precision = torch.eye(2) + basis @ basis.mT / values["sigma"] ** 2
    expected = torch.linalg.solve(precision, basis @ x.mT / values["sigma"] ** 2).mT
    sd = torch.sqrt(torch.diagonal(torch.linalg.inv(precision)))
    assert float(((q.mean - expected) / sd).abs().max()) < 0.3
    np.testing.assert_allclose(q.variance.sqrt(), sd.expand(5, 2), rtol=0.15)


def test_the_bound_of_new_units_rises_to_the_log_likelihood():
    """Importance weights from the posterior of each unit; the reference is a sum over a grid of positions."""
    model = SparseGPLVM(1, 6)
    arrays, values, _ = at_truth(model, 20)
    new = {"x": arrays["x"][:4], "mask": None, "row": None}
    grid = torch.linspace(-6, 6, 4001, dtype=torch.float64)
    each = torch.stack([model._rows(z.expand(4, 1), None, values).predictive().log_prob(new["x"]).sum(-1) for z in grid])
    expected = torch.logsumexp(each + torch.tensor(norm.logpdf(grid))[:, None] + np.log(12 / 4000), 0)
    with isolated(Seeds(0)):
        found = model.bound(new, 4000, **values)
        low = torch.stack([model.bound(new, 1, **values) for _ in range(5)]).mean(0)
    np.testing.assert_allclose(found, expected, atol=0.25)
    assert bool((low < expected + 0.3).all())


def test_missing_entries_are_left_out_and_imputed(sheet):
    x = sheet.x.copy()
    hidden = np.random.default_rng(0).random(x.shape) < 0.1
    x[hidden] = np.nan
    model = SparseGPLVM(2, 15, start="isomap")
    fit = ll.fit(model, table(x), replace(METHOD, n_steps=800, batch_size=50), seed=0, progress=False)
    found = fit.imputations(n_draws=20).values.mean((0, 1))
    error, spread = np.sqrt(np.mean((found - sheet.x[hidden]) ** 2)), np.sqrt(np.mean(sheet.x[hidden] ** 2))
    assert error < 0.95 * spread


# -- refusals


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kernel": "cubic"}, "`kernel` must be a sum of different kernels"),
        ({"elbo": "collapsed", "likelihood": "bernoulli"}, "`elbo` must be stochastic"),
        ({"elbo": "collapsed", "kernel": "matern32"}, "`elbo` must be stochastic"),
        ({"posterior": "flow"}, "posterior"),
        ({"n_inducing": 0}, "n_inducing"),
        ({"nugget": 0.0}, "nugget"),
    ],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(ConfigError, match=message):
        SparseGPLVM(2, **settings)


@pytest.mark.parametrize(
    ("settings", "change", "message"),
    [
        ({"n_inducing": 50}, None, "`n_inducing` must be at most the number of units, 12; got 50"),
        ({}, "constant", "is constant"),
        ({}, "few", "at least 4 units; got 3"),
        ({"likelihood": "bernoulli"}, None, "must be 0 or 1"),
        ({"elbo": "collapsed"}, "missing", "no missing entries"),
    ],
)
def test_data_are_checked(settings, change, message, rng):
    x = rng.standard_normal((12, 3))
    if change == "constant":
        x[:, 1] = 2.0
    if change == "few":
        x = x[:3]
    if change == "missing":
        x[0, 0] = np.nan
    with pytest.raises(DataError, match=message):
        ll.fit(SparseGPLVM(2, **{"n_inducing": 3, **settings}), table(x), METHOD, progress=False)


def test_units_held_out_need_an_encoder(sheet):
    with pytest.raises(ModelError, match="`held_out` needs a guide that is amortised"):
        ll.fit(SparseGPLVM(2, 5), sheet, replace(METHOD, held_out=0.1), progress=False)
    fit = ll.fit(SparseGPLVM(2, 5, encoder=(4,)), sheet, replace(METHOD, held_out=0.1), progress=False)
    assert np.isfinite(fit.data["optimization"]["loss"].values).all()


@pytest.mark.parametrize(
    ("name", "value"), [("batch_size", 20), ("held_out", 0.1), ("objective", "iwae"), ("precision", "single")]
)
def test_the_collapsed_bound_refuses_settings_of_stochastic_steps(name, value, sheet):
    with pytest.raises(ConfigError, match=f"`{name}` must be .* whose bound is in closed form"):
        ll.fit(SparseGPLVM(2, 5, elbo="collapsed"), sheet, replace(METHOD, **{"batch_size": None, name: value}), progress=False)


def test_duplicated_rows_are_fitted(rng):
    x = np.repeat(rng.standard_normal((6, 3)), 5, axis=0)
    fit = ll.fit(SparseGPLVM(2, 10), table(x), replace(METHOD, batch_size=15), progress=False)
    assert np.isfinite(fit.data["posterior"]["z"].values).all()


def test_a_nugget_that_is_too_small_stops_the_fit(rng):
    x = np.repeat(rng.standard_normal((3, 3)), 10, axis=0)
    with pytest.raises(ModelError, match="`nugget` must be larger"):
        ll.fit(SparseGPLVM(1, 25, nugget=1e-300), table(x), replace(METHOD, batch_size=15), progress=False)
