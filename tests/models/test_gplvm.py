"""Tests of the Gaussian process latent variable model: densities, predictions, the linear kernel, starts and refusals."""

from dataclasses import replace

import contract
import numpy as np
import pytest
import torch
from scipy.linalg import block_diag
from scipy.stats import halfnorm, lognorm, multivariate_normal, norm
from sklearn.gaussian_process import kernels as oracle

import latentlab as ll
from latentlab.data.dataset import Dataset
from latentlab.data.manifolds import helix, s_curve, severed_sphere, swiss_roll, torus_patch
from latentlab.data.series import series
from latentlab.distributions.gaussian_process import GaussianProcess
from latentlab.errors import ConfigError, DataError
from latentlab.inference.arrays import tensors
from latentlab.inference.joint import log_joint
from latentlab.models.gplvm import GPLVM
from latentlab.models.gplvm_starts import STARTS, start
from latentlab.seeds import double
from latentlab.symmetry.groups import GeneralLinear, SignedPermutation

ORACLES = {
    "rbf": lambda shape: oracle.RBF(1.0),
    "matern32": lambda shape: oracle.Matern(1.0, nu=1.5),
    "matern52": lambda shape: oracle.Matern(1.0, nu=2.5),
    "rational_quadratic": lambda shape: oracle.RationalQuadratic(1.0, shape),
    "linear": lambda shape: oracle.DotProduct(0.0),
}


def simulated(model, n_units=12, **more):
    return model.simulate(np.random.default_rng(contract.SEED), n_units, **more)


def covariance_of(model, truth, one, other):
    """Covariance of the functions by scikit-learn's kernels."""
    names = model.kernel.split("+")
    total = np.full((len(one), len(other)), model.mean_scale**2)
    for name in names:
        ending = f"_{name}" if len(names) > 1 else ""
        length = truth.get("lengthscale" + ending, 1.0)
        kernel = ORACLES[name](float(truth.get("shape" + ending, 1.0)))
        total += float(truth.get("amplitude" + ending, 1.0)) ** 2 * kernel(one / length, other / length)
    return total


def noise_of(model, truth):
    scales = [float(value) ** 2 for site, value in truth.items() if site.startswith("amplitude")]
    if model.ard and "linear" in model.kernel:
        scales.append(np.mean(truth.get("lengthscale_linear", truth.get("lengthscale")) ** -2.0))
    return float(truth["sigma"]) ** 2 + model.nugget * sum(scales)


@pytest.mark.parametrize("ard", [False, True])
@pytest.mark.parametrize("kernel", [*ORACLES, "rbf+linear", "matern52+rational_quadratic"])
@pytest.mark.parametrize("is_missing", [False, True])
def test_the_log_joint_matches_scipy(kernel, is_missing, ard):
    model = GPLVM(2, kernel=kernel, ard=ard, nugget=1e-3, mean_scale=0.7, sigma_scale=0.8)
    dataset = simulated(model)
    x, truth = dataset.x.copy(), dataset.truth
    if is_missing:
        x[0, 0] = x[3, 0] = x[3, 2] = np.nan
    dataset = replace(dataset, arrays={"x": x})
    covariance = covariance_of(model, truth, truth["z"], truth["z"]) + noise_of(model, truth) * np.eye(len(x))
    expected = norm.logpdf(truth["z"]).sum() + halfnorm.logpdf(truth["sigma"], scale=0.8)
    expected += sum(lognorm.logpdf(value, 1.0).sum() for site, value in truth.items() if site not in ("z", "sigma"))
    for column in x.T:
        seen = np.isfinite(column)
        expected += multivariate_normal(cov=covariance[np.ix_(seen, seen)]).logpdf(column[seen])
    assert log_joint(model, dataset, truth) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("is_missing", [False, True])
def test_left_out_rows_and_predictions_match_conditional_gaussians(is_missing, rng):
    n, d = 7, 3
    root = rng.standard_normal((n + 2, n + 2))
    whole = root @ root.T + np.eye(n + 2)
    x = rng.standard_normal((n, d))
    observed = rng.random((n, d)) < 0.7 if is_missing else np.ones((n, d), dtype=bool)
    observed[np.arange(d), np.arange(d)] = True
    process = GaussianProcess(torch.tensor(whole[:n, :n]), d, torch.tensor(observed) if is_missing else None)
    cross, prior = torch.tensor(whole[n:, :n]), torch.tensor(np.diag(whole)[n:])
    mean, variance = process.predicted(torch.tensor(np.where(observed, x, 0.0)), cross, prior)
    left_out = process.leave_one_out(torch.tensor(np.where(observed, x, 0.0)))
    in_order = process.log_prob(torch.tensor(np.where(observed, x, 0.0)))
    expected, expected_in_order = np.zeros(n), np.zeros(n)

    def conditional(i, given, column):
        weights = np.linalg.solve(whole[np.ix_(given, given)], whole[given, i]) if len(given) else np.zeros(0)
        return weights @ column[given], whole[i, i] - weights @ whole[given, i]

    for k in range(d):
        seen = np.flatnonzero(observed[:, k])
        for i in seen:
            for total, given in ((expected, seen[seen != i]), (expected_in_order, seen[seen < i])):
                centre, spread = conditional(i, given, x[:, k])
                total[i] += norm.logpdf(x[i, k], centre, np.sqrt(spread))
        for j in range(2):
            centre, spread = conditional(n + j, seen, x[:, k])
            assert float(mean[j, k]) == pytest.approx(centre, rel=1e-9, abs=1e-9)
            assert float(variance[j, k]) == pytest.approx(spread, rel=1e-9)
    np.testing.assert_allclose(left_out, expected, rtol=1e-9)
    np.testing.assert_allclose(in_order, expected_in_order, rtol=1e-9)


@pytest.mark.parametrize("is_missing", [False, True])
def test_gradients_and_second_derivatives_match_automatic_ones(is_missing, rng):
    root = torch.tensor(rng.standard_normal((6, 6)))
    x = torch.tensor(rng.standard_normal((6, 2)))
    observed = torch.tensor(rng.random((6, 2)) < 0.7) if is_missing else None
    shift = torch.tensor(rng.standard_normal((6, 6)))

    def by_sum(root, x):
        return GaussianProcess(root @ root.mT + torch.eye(6), 2, observed).log_prob_sum(x)

    def by_rows(root, x):
        return GaussianProcess(root @ root.mT + torch.eye(6), 2, observed).log_prob(x).sum()

    with double():
        theta = [root.requires_grad_(), x.requires_grad_()]
        first = [torch.autograd.grad(f(*theta), theta, create_graph=True) for f in (by_sum, by_rows)]
        second = [torch.autograd.grad((g[0] * shift).sum() + g[1].sin().sum(), theta) for g in first]
    for pair in (*zip(*first, strict=True), *zip(*second, strict=True)):
        np.testing.assert_allclose(pair[0].detach(), pair[1].detach(), rtol=1e-9, atol=1e-9)


def test_a_matrix_that_is_not_positive_definite_gives_nan():
    assert torch.isnan(GaussianProcess(-torch.eye(3, dtype=torch.float64), 2).log_prob_sum(torch.ones(3, 2, dtype=torch.float64)))


def test_the_linear_kernel_has_the_optimum_of_dual_ppca(rng):
    r"""The closed form: $Z = U_q (\Lambda_q - \sigma^2)^{1/2}$ of the eigenvectors of $X X^T / D$ (Lawrence 2005)."""
    n, d, q = 15, 40, 2
    x = rng.standard_normal((n, q)) @ rng.standard_normal((q, d)) + 0.3 * rng.standard_normal((n, d))
    eigenvalues, vectors = np.linalg.eigh(x @ x.T / d)
    eigenvalues, vectors = eigenvalues[::-1], vectors[:, ::-1]
    variance = eigenvalues[q:].mean()
    z = torch.tensor(vectors[:, :q] * np.sqrt(eigenvalues[:q] - variance), requires_grad=True)
    sigma2 = torch.tensor(variance, requires_grad=True)
    model = GPLVM(q, kernel="linear")
    with double():
        K = model.covariance(z, z, amplitude=torch.ones(())) + sigma2 * torch.eye(n)
        value = GaussianProcess(K, d).log_prob_sum(torch.tensor(x))
    expected = -d / 2 * (n * np.log(2 * np.pi) + np.log(eigenvalues[:q]).sum() + (n - q) * np.log(variance) + n)
    assert float(value.detach()) == pytest.approx(expected, rel=1e-10)
    for slope in torch.autograd.grad(value, (z, sigma2)):
        assert float(slope.abs().max()) < 1e-8 * n * d


@pytest.mark.parametrize(
    "model",
    [
        GPLVM(2),
        GPLVM(1, kernel="matern32+linear", mean_scale=1.0),
        GPLVM(2, kernel="rbf+linear", ard=True),
        GPLVM(1, dynamics="matern52", timescale_median=3.0, nugget=1e-2),
    ],
    ids=repr,
)
def test_simulated_data_match_the_density(model):
    contract.check_simulate(model)


@pytest.mark.parametrize("dynamics", ["rbf", "matern52"])
def test_positions_of_series_have_a_smooth_prior(dynamics):
    """The joint of two sequences with times in steps of different lengths; a sequence does not depend on the other."""
    model = GPLVM(2, dynamics=dynamics, nugget=0.01, timescale_median=3.0)
    truth = simulated(model, 9).truth
    x = np.random.default_rng(1).standard_normal((9, 3))
    times = [[0.0, 1.0, 2.5, 4.0, 5.0], [7.0, 8.0, 9.0, 11.0]]
    dataset = series([x[:5], x[5:]], times=times, fill_gaps=False)
    prior = block_diag(*[ORACLES[dynamics](1.0)(np.array(t)[:, None] / truth["timescale"]) for t in times])
    covariance = covariance_of(model, truth, truth["z"], truth["z"]) + noise_of(model, truth) * np.eye(9)
    expected = sum(multivariate_normal(cov=0.99 * prior + 0.01 * np.eye(9)).logpdf(column) for column in truth["z"].T)
    expected += sum(multivariate_normal(cov=covariance).logpdf(column) for column in x.T)
    expected += halfnorm.logpdf(truth["sigma"]) + lognorm.logpdf(truth["timescale"], 1.0, scale=3.0)
    expected += sum(lognorm.logpdf(truth[site], 1.0) for site in ("amplitude", "lengthscale"))
    assert log_joint(model, dataset, truth) == pytest.approx(expected, rel=1e-10)


def test_times_have_no_effect_without_dynamics():
    """Neither the order of the sequences nor repeated times matter to units that are independent."""
    x = np.random.default_rng(1).standard_normal((6, 2))
    coords = {"sequence": list("abacbc"), "time": [1, 1, 2, 3, 3, 3]}
    model, dataset = GPLVM(1), Dataset({"x": x}, dims={"x": ("unit", "feature")}, coords=coords)
    assert "sequence" not in tensors(model, dataset)
    with pytest.raises(DataError, match="is not contiguous"):
        tensors(GPLVM(1, dynamics="rbf"), dataset)


def test_lengthscales_of_the_axes_are_permuted_without_signs():
    """The joint is invariant under signed permutations, and changed by rotated positions and by permuted lengthscales alone."""
    model = GPLVM(2, kernel="rbf+linear", ard=True)
    dataset = simulated(model)
    truth, swap = dataset.truth, np.array([[0.0, -1.0], [1.0, 0.0]])
    before = log_joint(model, dataset, truth)
    moved = model.symmetry.act(swap, truth, model.dims)
    assert log_joint(model, dataset, moved) == pytest.approx(before, rel=1e-12)
    assert all((moved[site] > 0).all() for site in ("lengthscale_rbf", "lengthscale_linear"))
    turn = np.array([[np.cos(0.5), np.sin(0.5)], [-np.sin(0.5), np.cos(0.5)]])
    for other in ({"z": truth["z"] @ turn}, {"lengthscale_rbf": truth["lengthscale_rbf"][::-1].copy()}):
        assert abs(log_joint(model, dataset, {**truth, **other}) - before) > 1e-3


@pytest.mark.parametrize("group", [GeneralLinear(), SignedPermutation()], ids=repr)
def test_a_wrong_symmetry_is_detected(group):
    model = GPLVM(2)
    model.symmetry = group
    with pytest.raises(AssertionError, match="is declared"):
        contract.check_symmetry(model, simulated(model))


def test_entries_are_predicted_from_the_other_units(rng):
    """Means of the map at the positions of the units, and at a new position, against scikit-learn's regression."""
    from sklearn.gaussian_process import GaussianProcessRegressor

    model = GPLVM(2, kernel="matern52")
    dataset = simulated(model, 20)
    values = {site: torch.tensor(value) for site, value in dataset.truth.items()}
    new = rng.standard_normal((4, 2))
    with double():
        mean, variance = model.map_at(tensors(model, dataset), torch.tensor(new), **values)
    kernel = oracle.ConstantKernel(float(dataset.truth["amplitude"]) ** 2) * oracle.Matern(
        float(dataset.truth["lengthscale"]), nu=2.5
    )
    fitted = GaussianProcessRegressor(kernel, alpha=noise_of(model, dataset.truth), optimizer=None).fit(
        dataset.truth["z"], dataset.x
    )
    expected, sd = fitted.predict(new, return_std=True)
    np.testing.assert_allclose(mean, expected, rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(variance, sd.reshape(4, -1) ** 2, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", STARTS)
def test_starts_have_the_spread_of_the_prior(name, rng):
    dataset = s_curve(n_units=60)
    z = start(dataset.x, None, 2, (name,), rng)
    np.testing.assert_allclose(np.cov(z.T, ddof=0), np.eye(2), atol=0.35 if name == "random" else 0.02)


MANIFOLDS = {
    "swiss_roll": (swiss_roll, 2),
    "s_curve": (s_curve, 2),
    "severed_sphere": (severed_sphere, 2),
    "torus_patch": (torus_patch, 2),
    "helix": (helix, 1),
}


@pytest.mark.parametrize("name", ["swiss_roll", "s_curve", "helix"])
def test_coordinates_of_flat_sheets_and_curves_are_lengths(name):
    """Distances of near neighbours in space are those of their coordinates."""
    make, q = MANIFOLDS[name]
    dataset = make(n_units=3000, noise=0.0, seed=3)
    z, x = dataset.truth["z"], dataset.x
    for i in range(0, 300, 10):
        away = np.linalg.norm(z - z[i], axis=1)
        near = np.argsort(away)[1:4]
        near = near[away[near] < 0.05 * np.ptp(z)]
        np.testing.assert_allclose(np.linalg.norm(x[near] - x[i], axis=1), away[near], rtol=0.03)
    assert z.shape == (3000, q)


@pytest.mark.parametrize("name", ["swiss_roll", "s_curve"])
def test_holes_have_no_units(name):
    make, _ = MANIFOLDS[name]
    whole, cut = make(n_units=2000).truth["z"], make(n_units=2000, hole=0.4).truth["z"]
    share = np.abs((cut - (whole.max(0) + whole.min(0)) / 2) / np.ptp(whole, axis=0)).max(1) * 2
    assert len(cut) == 2000
    assert share.min() > 0.39


def test_units_of_the_curved_surfaces_are_uniform():
    """Heights of the sphere, and the tube of the torus by its area, in four equal parts; a share differs with chance 1e-6."""
    n = 4000
    height = np.cos(severed_sphere(n_units=n, noise=0.0).truth["z"][:, 1])
    counts = [np.histogram(height, bins=4, range=(-np.cos(np.pi / 8), np.cos(np.pi / 8)))[0]]
    v = torus_patch(n_units=n, noise=0.0, ratio=2.0).truth["z"][:, 1]
    counts.append(np.histogram((2 * (v + np.pi / 2) + np.sin(v) + 1) / (2 * np.pi + 2), bins=4, range=(0, 1))[0])
    limit = norm.isf(1e-6 / 16) * np.sqrt(n * 0.25 * 0.75)
    for of_each in counts:
        assert of_each.sum() == n
        assert np.abs(of_each - n / 4).max() < limit


REFUSED = {
    "`kernel` must be a sum of different kernels": lambda: GPLVM(2, kernel="cosine"),
    "got 'rbf\\+rbf'": lambda: GPLVM(2, kernel="rbf+rbf"),
    "`starts` must have at least one": lambda: GPLVM(2, starts=[]),
    "must have from 4 to 3000 units; got 3": lambda: GPLVM(2).check(simulated(GPLVM(2), 3)),
    "column 'x' is constant": lambda: GPLVM(2).check(
        Dataset(
            {"x": np.column_stack([np.ones(9), np.arange(9.0)])}, dims={"x": ("unit", "feature")}, coords={"feature": ["x", "y"]}
        )
    ),
    "`hole` must be a finite number from 0 to": lambda: swiss_roll(hole=1.0),
    "`density` must be 'sheet' or 'angle'": lambda: swiss_roll(density="even"),
    "`ratio` must be a finite number": lambda: torus_patch(ratio=1.0),
    "`turns` must be a finite number": lambda: helix(turns=0.0),
    "`noise` must be a finite number": lambda: s_curve(noise=-1.0),
    "`n_units` must be a whole number": lambda: severed_sphere(n_units=0),
}


@pytest.mark.parametrize("message", REFUSED)
def test_bad_input_is_refused_in_one_line(message):
    with pytest.raises((ConfigError, DataError), match=message):
        REFUSED[message]()


def test_restarts_begin_at_the_embeddings_in_turn():
    model = GPLVM(1, starts=["spectral", "pca"], nugget=1e-2)
    fit = ll.fit(model, simulated(model), ll.MAP(n_restarts=3, n_draws=2), seed=0, progress=False)
    assert fit.data.attrs["starts"] == "spectral, pca, spectral"
    assert "restarts began at spectral, pca, spectral" in " ".join(fit.diagnostics()["quantity"])


def test_a_graph_in_parts_is_a_caution(rng):
    x = rng.standard_normal((40, 3))
    apart = Dataset({"x": x + 100.0 * (np.arange(40) % 2)[:, None]}, dims={"x": ("unit", "feature")})
    assert "has 2 components" in str(GPLVM(1).cautions(apart))
    assert "components" not in str(GPLVM(1, starts=["pca"]).cautions(apart))
    assert "components" not in str(GPLVM(1).cautions(replace(apart, arrays={"x": x})))


@pytest.mark.parametrize(
    ("sites", "text"),
    [
        ({"lengthscale": 1e-4}, "the largest correlation of two units is"),
        ({"lengthscale": 1e4}, "the smallest correlation of two units is"),
        ({"sigma": 1e-6}, "`nugget` is 100% of the noise variance"),
        ({}, ""),
    ],
)
def test_a_collapsed_kernel_is_a_remark(sites, text):
    model = GPLVM(2)
    dataset = simulated(model)
    values = {**dataset.truth, "amplitude": 1.0, "lengthscale": 1.0, "sigma": 0.1, **sites}
    notes = model.remarks(tensors(model, dataset), values)
    assert len(notes) == bool(text)
    assert text in "".join(notes)


def test_a_bent_sheet_is_flattened():
    """Distances of the positions are those on the sheet; those of the data are not."""
    dataset = s_curve(n_units=150, noise=0.02, seed=1)
    model = GPLVM(2, starts=["isomap"], sigma_scale=0.3)
    fit = ll.fit(model, dataset, ll.MAP(n_restarts=2), seed=0, progress=False)
    z, truth = fit.latents().values[0, 0], dataset.truth["z"]
    i, j = np.triu_indices(len(z), 1)

    def correlation(y):
        return np.corrcoef(np.linalg.norm(y[i] - y[j], axis=1), np.linalg.norm(truth[i] - truth[j], axis=1))[0, 1]

    assert correlation(z) > 0.95
    assert correlation(z) > correlation(dataset.x) + 0.1
