import mpmath
import numpy as np
import oracles
import pyro.distributions as dist
import pytest
import torch

from latentlab.distributions import low_rank_gaussian
from latentlab.distributions.low_rank_gaussian import LowRankGaussian, multivariate_normal


@pytest.fixture
def parts(rng):
    W, mu, x = rng.standard_normal((6, 2)), rng.standard_normal(6), rng.standard_normal((9, 6))
    psi = rng.uniform(0.2, 1.5, 6)
    mask = rng.random((9, 6)) < 0.7
    mask[0] = False  # a unit of which nothing was observed
    mask[1] = True
    return W, mu, psi, x, mask


def distribution(W, mu, psi, mask=None):
    return LowRankGaussian(
        *(torch.as_tensor(a, dtype=torch.float64) for a in (mu, W, psi)), None if mask is None else torch.as_tensor(mask)
    )


@pytest.mark.parametrize("one_scale", [True, False])
@pytest.mark.parametrize("masked", [True, False])
def test_density_and_conditional_match_the_dense_gaussian(parts, masked, one_scale):
    W, mu, psi, x, mask = parts
    psi = psi[0] if one_scale else psi
    found = distribution(W, mu, psi, mask if masked else None)
    seen = np.where(mask, x, np.nan) if masked else x
    dense = oracles.gaussian_log_density(seen, mu, W @ W.T + np.diag(np.broadcast_to(psi**2, 6)))
    np.testing.assert_allclose(found.log_prob(torch.from_numpy(x)).numpy(), dense, rtol=1e-12)
    z = found.conditional(torch.from_numpy(x))
    mean, covariance = oracles.positions_given(seen, mu, W, psi**2)
    np.testing.assert_allclose(z.mean.numpy(), mean, atol=1e-12)
    np.testing.assert_allclose(z.covariance_matrix.expand(9, 2, 2).numpy(), covariance, atol=1e-12)


def test_small_noise_of_a_low_rank_gaussian_is_accurate(parts):
    W, mu, _, _, _ = parts
    x = torch.tensor(np.ones((1, 2)) @ W.T + mu)
    found = float(distribution(W, mu, 1e-7).log_prob(x))
    # x lies on the plane, at z = (1, 1): the quadratic form is |z|^2 to first order; det(W W^T + s^2 I) is |W^T W| s^8
    expected = -0.5 * (6 * np.log(2 * np.pi) + 8 * np.log(1e-7) + np.linalg.slogdet(W.T @ W)[1] + 2)
    assert found == pytest.approx(expected, rel=1e-9)


def test_draws_have_the_right_mean_and_covariance(parts):
    W, mu, psi, _, _ = parts
    torch.manual_seed(0)
    draws = distribution(W, mu, psi).expand([40_000]).sample().numpy()
    C = W @ W.T + np.diag(psi**2)
    # Entries of the sample covariance have variance (C_ij^2 + C_ii C_jj) / n; 27 two-sided tests at 5.0 sd: 2e-5 false alarms.
    se = np.sqrt((C**2 + np.outer(np.diag(C), np.diag(C))) / 40_000)
    assert (np.abs(np.cov(draws.T) - C) < 5 * se).all()
    assert (np.abs(draws.mean(0) - mu) < 5 * np.sqrt(np.diag(C) / 40_000)).all()


def test_nan_in_one_batched_gaussian_does_not_affect_the_others(parts):
    W, mu, psi, x, _ = parts
    Ws = torch.stack([torch.from_numpy(W), torch.full((6, 2), torch.nan)])
    one = lambda w: LowRankGaussian(torch.from_numpy(mu), w, torch.from_numpy(psi)).log_prob(torch.from_numpy(x)).sum()  # noqa: E731
    values = torch.vmap(one)(Ws)
    assert torch.isfinite(values[0])
    assert torch.isnan(values[1])


@pytest.mark.parametrize("one_scale", [True, False])
def test_the_density_from_moments_equals_the_sum_over_units(parts, rng, one_scale):
    W, mu, psi, _, _ = parts
    psi = psi[0] if one_scale else psi
    x = torch.from_numpy(1e3 + rng.standard_normal((500, 6)))  # far from mu: the mean's part counts
    found = distribution(W, mu, psi)
    assert float(found.log_prob_sum(x)) == pytest.approx(float(found.log_prob(x).sum()), rel=1e-12)
    few = x[:5]
    assert float(found.log_prob_sum(few)) == pytest.approx(float(found.log_prob(few).sum()), rel=1e-12)
    masked = distribution(W, mu, psi, np.arange(3000).reshape(500, 6) % 7 > 0)
    assert float(masked.log_prob_sum(x)) == pytest.approx(float(masked.log_prob(x).sum()), rel=1e-12)


@pytest.mark.parametrize("each", [False, True], ids=["one covariance", "one for each"])
def test_multivariate_normal_equals_torchs(rng, each):
    loc, root = torch.from_numpy(rng.normal(size=(5, 3))), torch.from_numpy(rng.normal(size=(5, 3, 3) if each else (3, 3)))
    root = torch.linalg.cholesky(root @ root.mT + torch.eye(3))
    made, expected = multivariate_normal(loc, root), dist.MultivariateNormal(loc, scale_tril=root)
    z = expected.sample((4,))
    torch.manual_seed(0)
    drawn = made.sample((4,))
    torch.manual_seed(0)
    assert torch.equal(drawn, expected.sample((4,)))
    assert (made.batch_shape, made.event_shape, made.support) == (expected.batch_shape, expected.event_shape, expected.support)
    for what in ("mean", "covariance_matrix", "scale_tril", "precision_matrix"):
        assert torch.equal(getattr(made, what), getattr(expected, what)), what
    assert torch.equal(made.log_prob(z), expected.log_prob(z))
    assert torch.equal(made.entropy(), expected.entropy())
    assert torch.equal(made.expand((2, 5)).log_prob(z[:2]), expected.log_prob(z[:2]))


def masks(rng, n, d):
    """Masks `(n, d)` by what is special about them."""
    random, few = rng.random((n, d)) < 0.6, np.ones((n, d), dtype=bool)
    few[: n // 3, 0] = few[n // 2 : n // 2 + 20, 1:3] = False
    one, absent = np.ones((n, d), dtype=bool), rng.random((n, d)) < 0.8
    one[3, 2] = False
    absent[[0, 5, n - 1]] = False
    own = (np.arange(1, 2**d)[:, None] >> np.arange(d) & 1).astype(bool)
    return {
        "random": random,
        "one missing cell": one,
        "three patterns": few,
        "whole rows missing": absent,
        "one row a pattern": rng.permutation(own),
        "one column never observed": np.ones((n, d), dtype=bool) & (np.arange(d) > 0),
        "nothing observed": np.zeros((n, d), dtype=bool),
    }


@pytest.mark.parametrize("q", [1, 2, 3, low_rank_gaussian.UNROLLED + 1])
@pytest.mark.parametrize("case", list(masks(np.random.default_rng(0), 90, 8)))
def test_the_density_by_missing_patterns_equals_the_sum_over_units(rng, case, q):
    mask = torch.from_numpy(masks(rng, 90, 8)[case])
    x = torch.from_numpy(5 + rng.standard_normal(mask.shape))
    x = torch.where(mask, x, 0.0)
    theta = [
        torch.from_numpy(a).requires_grad_() for a in (rng.normal(size=8), rng.normal(size=(8, q)), rng.uniform(0.2, 1.5, 8))
    ]
    by_patterns = LowRankGaussian(*theta, mask).log_prob_sum(x)
    dense = oracles.gaussian_log_density(
        np.where(mask, x, np.nan), *(a.detach().numpy() for a in (theta[0], theta[1] @ theta[1].T + torch.diag(theta[2] ** 2)))
    )
    assert by_patterns.item() == pytest.approx(float(dense.sum()), rel=1e-10)
    found = torch.autograd.grad(by_patterns, theta, allow_unused=True)
    expected = torch.autograd.grad(LowRankGaussian(*theta, mask).log_prob(x).sum(), theta, allow_unused=True)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-10 * float(other.abs().max()))


def test_units_of_one_missing_pattern_share_one_factorisation(rng):
    mask = np.ones((500, 6), dtype=bool)
    mask[:100, 1], mask[100:102, 2], mask[102] = False, False, False
    few = low_rank_gaussian._summary(torch.from_numpy(rng.standard_normal((500, 6))), torch.from_numpy(mask))
    assert few.patterns.shape == (3, 6)
    assert sorted(few.n_units.tolist()) == [2, 100, 397]
    assert len(few.rows) == 7 + 6 + 2  # R and a mean of the two large patterns, the two units of the small one
    assert few.n_observed.tolist() == [499, 399, 497, 499, 499, 499]


def test_stored_moments_depend_on_the_mask(rng):
    W, mu, x = (torch.from_numpy(rng.standard_normal(shape)) for shape in ((4, 1), (4,), (20, 4)))
    for observed in (None, torch.from_numpy(rng.random((20, 4)) < 0.5), torch.ones(20, 4, dtype=torch.bool)):
        own = LowRankGaussian(mu, W, torch.tensor(0.5, dtype=torch.float64), observed)
        assert float(own.log_prob_sum(x)) == pytest.approx(float(own.log_prob(x).sum()), rel=1e-12)


def test_data_or_a_mask_that_are_changed_in_place_have_another_density(rng):
    W, mu, array = (rng.standard_normal(shape) for shape in ((4, 1), (4,), (20, 4)))
    x, observed = torch.from_numpy(array), torch.from_numpy(rng.random((20, 4)) < 0.8)
    own = LowRankGaussian(torch.from_numpy(mu), torch.from_numpy(W), torch.tensor(0.5, dtype=torch.float64), observed)

    def density():
        dense = oracles.gaussian_log_density(np.where(observed, x, np.nan), mu, W @ W.T + 0.25 * np.eye(4))
        assert float(own.log_prob_sum(x)) == pytest.approx(float(dense.sum()), rel=1e-10)
        return float(own.log_prob_sum(x))

    observed[0, 0] = True
    found = [density()]
    x[0, 0] += 1.0
    found.append(density())
    array[0, 0] += 1.0  # torch does not notice changes of the memory by NumPy
    found.append(density())
    observed[0, 0] = False
    found.append(density())
    assert len(set(found)) == 4


@pytest.mark.parametrize("n", [1, 3, low_rank_gaussian.UNROLLED])
def test_small_cholesky_factors_match_lapack_or_are_nan(rng, n):
    root = torch.from_numpy(rng.standard_normal((5, n, n)))
    matrix = root @ root.mT + torch.eye(n)
    lower = low_rank_gaussian._cholesky(matrix)
    np.testing.assert_allclose(lower, torch.linalg.cholesky(matrix), rtol=1e-10, atol=1e-12)
    b = torch.from_numpy(rng.standard_normal((5, n)))
    np.testing.assert_allclose(
        low_rank_gaussian._cholesky_solve(b, lower), torch.linalg.solve(matrix, b[..., None])[..., 0], rtol=1e-9, atol=1e-12
    )
    matrix[0, n - 1, n - 1] = -1.0
    broken = low_rank_gaussian._cholesky(matrix)
    assert torch.isnan(low_rank_gaussian._log_det(broken)[0])
    assert torch.isfinite(broken[1:]).all()


@pytest.mark.parametrize("n_units", [4, 40], ids=["units", "moments"])
@pytest.mark.parametrize("q", [1, 2, low_rank_gaussian.UNROLLED + 1])
def test_kernel_and_formula_equal_the_torch_graph(rng, q, n_units):
    """Value and gradients, for one member and for a batch; second derivatives of the kernel."""
    x = torch.from_numpy(3 + rng.standard_normal((n_units, 9)))
    summary = low_rank_gaussian._summary(x, None)
    data = (summary.rows, summary.share[:, 0], summary.weight[:, 0], summary.n_units)
    batch = [torch.from_numpy(a) for a in (rng.normal(size=(3, 9)), rng.normal(size=(3, 9, q)), rng.uniform(0.2, 1.5, (3, 9)))]
    by_kernel = torch.ops.latentlab.low_rank_gaussian(*batch, *data)
    by_formula = low_rank_gaussian._formula(*batch, *data)
    for i in range(3):
        theta = [part[i].clone().requires_grad_() for part in batch]
        value = low_rank_gaussian._in_torch(*theta, *data)
        slopes = torch.autograd.grad(value, theta, create_graph=True)
        alone = LowRankGaussian(*theta).log_prob_sum(x)
        found = torch.autograd.grad(alone, theta, create_graph=True)
        formula = low_rank_gaussian._formula(*(part[i] for part in batch), *data)
        for j, expected in enumerate((value, *slopes)):
            tolerance = {"rtol": 1e-10, "atol": 1e-10 * float(expected.detach().abs().max())}
            for one in (by_kernel[j][i], by_formula[j][i], formula[j], (alone, *found)[j].detach()):
                np.testing.assert_allclose(one, expected.detach(), **tolerance)
        curvature = [torch.autograd.grad(sum((s**2).sum() for s in each), theta) for each in (slopes, found)]
        for one, other in zip(*curvature, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-9 * float(one.abs().max()))


def exact_gradients(rows, loc, W, scale):
    """Gradients of the log density of rows for mean, loadings and standard deviations, with 60 digits."""
    with mpmath.workdps(60):
        loc, W, scale = (mpmath.matrix(part.tolist()) for part in (loc, W, scale))
        p = len(loc)
        C = W * W.T + mpmath.diag([s**2 for s in scale])
        inverse, of_C, of_loc = C**-1, mpmath.zeros(p), mpmath.zeros(p, 1)
        for row in rows.tolist():
            a = inverse * (mpmath.matrix(row) - loc)
            of_C += (a * a.T - inverse) / 2
            of_loc += a
        of_W = 2 * of_C * W
        of_scale = [2 * of_C[d, d] * scale[d] for d in range(p)]
        return [np.array(part.tolist() if hasattr(part, "tolist") else part, dtype=float) for part in (of_loc, of_W, of_scale)]


@pytest.mark.parametrize("least", [0.1, 1e-4, 1e-7, 1e-9])
def test_gradients_where_a_variance_is_small(rng, least):
    """Against 60 digits. The condition number of M is about `least**-2`, for which only the kernel is made."""
    loc, W, scale = rng.normal(size=6), rng.normal(size=(6, 3)), rng.uniform(0.3, 1.0, 6)
    scale[1] = least
    rows = loc + rng.normal(size=(8, 3)) @ W.T + scale * rng.normal(size=(8, 6))
    ones = torch.ones(8, dtype=torch.float64)
    theta = [torch.from_numpy(part) for part in (loc, W, scale)]
    data = (torch.from_numpy(rows), ones, ones, torch.tensor([8.0], dtype=torch.float64))
    found = {(1e-10, 1e-10, 1e-13 / least): torch.ops.latentlab.low_rank_gaussian(*theta, *data)[1:]}
    if least > 1e-5:
        found[1e-10, 1e-6, 1e-6] = low_rank_gaussian._formula(*theta, *data)[1:]
    expected = exact_gradients(rows, loc, W, scale)
    for tolerances, slopes in found.items():
        for one, exact, tolerance in zip(slopes, expected, tolerances, strict=True):
            limit = max(tolerance, 1e-10)
            np.testing.assert_allclose(one.reshape(-1), exact.reshape(-1), rtol=limit, atol=limit * np.abs(exact).max())
