"""Tests of the square-root filter of linear-Gaussian chains against the dense Gaussian of all rows."""

import itertools

import mpmath
import numpy as np
import pytest
import torch
from helpers import sequence_starts

from latentlab.distributions.linear_gaussian_chain import LinearGaussianChain, _in_torch
from latentlab.inference.capture import capture

pytest.importorskip("numba")

NAMES = ("A", "Q", "C", "loc", "scale", "initial_mean", "initial_covariance")
ALL = tuple(range(len(NAMES)))


def parameters(rng, q, n_features):
    A = rng.standard_normal((q, q))
    roots = [np.tril(0.5 * rng.standard_normal((q, q)), -1) + np.diag(rng.uniform(0.5, 1.5, q)) for _ in range(2)]
    values = (
        0.9 * A / np.abs(np.linalg.eigvals(A)).max(),
        roots[0] @ roots[0].T,
        rng.standard_normal((n_features, q)),
        rng.standard_normal(n_features),
        rng.uniform(0.3, 1.5, n_features),
        rng.standard_normal(q),
        roots[1] @ roots[1].T,
    )
    return tuple(map(torch.from_numpy, values))


def symmetric(values):
    """Q and the initial covariance as functions of all their entries."""
    A, Q, C, loc, scale, mean, P = values
    return A, (Q + Q.mT) / 2, C, loc, scale, mean, (P + P.mT) / 2


def by_kernel(x, starts, observed=None):
    return lambda *values: LinearGaussianChain(*symmetric(values), starts, observed).log_prob_sum(x)


def dense(x, starts, observed=None):
    """Log density of the observed entries by torch, from the dense mean and covariance of each sequence."""
    seen = torch.ones_like(x, dtype=torch.bool) if observed is None else observed
    edges = [*torch.nonzero(starts)[:, 0].tolist(), len(x)]

    def log_density(*values):
        A, Q, C, loc, scale, mean, P = symmetric(values)
        total = x.new_zeros(())
        for begin, end in itertools.pairwise(edges):
            means, blocks = [mean], [[P]]
            for _ in range(1, end - begin):
                means.append(A @ means[-1])
                row = [A @ block for block in blocks[-1]]
                blocks.append([*row, row[-1] @ A.mT + Q])
            n = end - begin
            covariance = torch.cat(
                [torch.cat([C @ (blocks[s][t] if t <= s else blocks[t][s].mT) @ C.mT for t in range(n)], 1) for s in range(n)]
            )
            covariance = covariance + torch.diag((scale**2).repeat(n))
            keep = torch.nonzero(seen[begin:end].reshape(-1))[:, 0]
            if len(keep):
                centre = torch.cat([C @ m + loc for m in means])[keep]
                own = torch.distributions.MultivariateNormal(centre, covariance[keep][:, keep], validate_args=False)
                total = total + own.log_prob(x[begin:end].reshape(-1)[keep])
        return total

    return log_density


def value_and_grad(function, values):
    gradients, value = torch.func.grad_and_value(function, argnums=ALL)(*values)
    return value, gradients


def assert_close(found, expected, *, value=1e-11, gradient=1e-9):
    """Values relative, gradients to the largest entry of any."""
    assert float(found[0]) == pytest.approx(float(expected[0]), rel=value, abs=1e-12)
    largest = max(1.0, *(float(g.abs().max()) for g in expected[1]))
    for name, one, other in zip(NAMES, found[1], expected[1], strict=True):
        torch.testing.assert_close(one, other, rtol=gradient, atol=gradient * largest, msg=lambda m, n=name: f"{n}: {m}")


CASES = {
    "one state": {"q": 1, "n_features": 3, "lengths": [12]},
    "one state, one feature": {"q": 1, "n_features": 1, "lengths": [9, 1]},
    "two states": {"q": 2, "n_features": 4, "lengths": [10]},
    "more states than features": {"q": 3, "n_features": 1, "lengths": [8, 3]},
    "as many states as features": {"q": 3, "n_features": 3, "lengths": [6]},
    "one step": {"q": 2, "n_features": 3, "lengths": [1]},
    "ragged": {"q": 2, "n_features": 3, "lengths": [1, 7, 1, 1, 4]},
    "all of one step": {"q": 2, "n_features": 2, "lengths": [1] * 6},
    "five states": {"q": 5, "n_features": 7, "lengths": [9, 2]},
}


@pytest.mark.parametrize("missing", [0.0, 0.3, 0.9, 1.0])
@pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))
def test_value_and_gradient_match_the_dense_gaussian(case, missing, rng):
    q, n_features, lengths = case.values()
    values, starts = parameters(rng, q, n_features), sequence_starts(lengths)
    x = torch.from_numpy(2 * rng.standard_normal((len(starts), n_features)))
    observed = torch.from_numpy(rng.random(x.shape) >= missing) if missing else None
    if missing:
        observed[0], observed[-1] = False, missing < 1  # a step with nothing, and a whole one
    expected = dense(x, starts, observed)
    assert_close(value_and_grad(by_kernel(x, starts, observed), values), value_and_grad(expected, values))


def test_values_of_missing_entries_are_ignored(rng):
    values, starts = parameters(rng, 2, 3), sequence_starts([5, 4])
    x = torch.from_numpy(rng.standard_normal((9, 3)))
    observed = torch.from_numpy(rng.random(x.shape) < 0.6)
    found = value_and_grad(by_kernel(x, starts, observed), values)
    for other in (0.0, 1e300, torch.nan):
        again = value_and_grad(by_kernel(torch.where(observed, x, torch.full_like(x, other)), starts, observed), values)
        assert torch.equal(again[0], found[0])
        assert all(torch.equal(a, b) for a, b in zip(again[1], found[1], strict=True))


@pytest.mark.parametrize("which", ["A", "C", "both", "a column of C"])
def test_derivatives_are_correct_for_zero_transitions_and_loadings(which, rng):
    values, starts = list(parameters(rng, 2, 3)), sequence_starts([6])
    x = torch.from_numpy(rng.standard_normal((6, 3)))
    for i, name in ((0, "A"), (2, "C")):
        if which in (name, "both"):
            values[i] = torch.zeros_like(values[i])
    if which == "a column of C":
        values[2] = values[2] * torch.tensor([1.0, 0.0]).double()
    assert_close(value_and_grad(by_kernel(x, starts), values), value_and_grad(dense(x, starts), values))


def test_extreme_units_of_measurement_do_not_overflow(rng):
    """Rescaling rows by 1e-60 or 1e60 changes the log density by the log volume."""
    values, starts = parameters(rng, 2, 3), sequence_starts([40])
    x = torch.from_numpy(rng.standard_normal((40, 3)))
    A, Q, C, loc, scale, mean, P = values
    level, gradients = value_and_grad(by_kernel(x, starts), values)
    for unit in (1e-60, 1e60):
        moved, slopes = value_and_grad(by_kernel(unit * x, starts), (A, Q, unit * C, unit * loc, unit * scale, mean, P))
        assert float(moved) == pytest.approx(float(level) - 120 * np.log(unit), rel=1e-13)
        torch.testing.assert_close(unit * slopes[2], gradients[2], rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(slopes[0], gradients[0], rtol=1e-10, atol=1e-10)


# -- where covariances give way


def exact_log_density(x, values):
    """The log density of one sequence with 100 digits, from the dense covariance."""
    with mpmath.workdps(100):
        A, Q, C, P = (mpmath.matrix(values[i].tolist()) for i in (0, 1, 2, 6))
        loc, scale, mean = (mpmath.matrix(values[i].tolist()) for i in (3, 4, 5))
        n, n_features = x.shape
        covariance, residual = mpmath.zeros(n * n_features), mpmath.zeros(n * n_features, 1)
        V = P
        for s in range(n):
            block = V
            for t in range(s, n):
                rows = C * block * C.T
                for i in range(n_features):
                    for j in range(n_features):
                        covariance[t * n_features + i, s * n_features + j] = rows[i, j]
                        covariance[s * n_features + j, t * n_features + i] = rows[i, j]
                block = A * block
            centre = C * mean + loc
            for i in range(n_features):
                covariance[s * n_features + i, s * n_features + i] += scale[i] ** 2
                residual[s * n_features + i] = mpmath.mpf(float(x[s, i])) - centre[i]
            V, mean = A * V * A.T + Q, A * mean
        lower = mpmath.cholesky(covariance)
        root = mpmath.lu_solve(lower, residual)
        log_det = 2 * sum(mpmath.log(lower[i, i]) for i in range(n * n_features))
        return float(-(n * n_features * mpmath.log(2 * mpmath.pi) + log_det + sum(r**2 for r in root)) / 2)


def by_covariances(x, values):
    """Log density by the standard Kalman filter, and the smallest eigenvalue of its covariances."""
    A, Q, C, loc, scale, mean, P = (value.numpy() for value in values)
    level, least = 0.0, np.inf
    for t, row in enumerate(x.numpy()):
        if t:
            mean, P = A @ mean, A @ P @ A.T + Q
        S, e = C @ P @ C.T + np.diag(scale**2), row - loc - C @ mean
        gain = np.linalg.solve(S, C @ P).T
        level -= 0.5 * (len(e) * np.log(2 * np.pi) + np.linalg.slogdet(S)[1] + e @ np.linalg.solve(S, e))
        mean, P = mean + gain @ e, P - gain @ C @ P
        least = min(least, np.linalg.eigvalsh((P + P.T) / 2)[0])
    return level, least


def diffuse_case(rng, n_features, scale, initial_scale, noise):
    """Draws data with two states, one precise feature, and other features with noise 1."""
    A, Q, C, loc, _, mean, _ = parameters(rng, 2, n_features)
    scale = torch.tensor([scale, *[1.0] * (n_features - 1)]).double()
    Q, P = noise**2 * Q, initial_scale**2 * torch.eye(2).double()
    z = [mean + torch.from_numpy(rng.standard_normal(2))]
    for _ in range(5):
        z.append(A @ z[-1] + torch.linalg.cholesky(Q) @ torch.from_numpy(rng.standard_normal(2)))
    x = torch.stack(z) @ C.mT + loc + scale * torch.from_numpy(rng.standard_normal((6, n_features)))
    return x, (A, Q, C, loc, scale, mean, P)


@pytest.mark.parametrize("n_features", [1, 3])
@pytest.mark.parametrize(("scale", "initial_scale", "noise"), [(1e-8, 1e8, 1.0), (1e-6, 1e6, 1e-6), (1e-8, 1e8, 1e-6)])
def test_small_noise_with_a_diffuse_prior_is_accurate(n_features, scale, initial_scale, noise, rng):
    """At condition numbers of 1e24 to 1e32 the standard filter is wrong by more than 0.01 or not positive definite."""
    x, values = diffuse_case(rng, n_features, scale, initial_scale, noise)
    expected, starts = exact_log_density(x, values), sequence_starts([6])
    found = float(by_kernel(x, starts)(*values))
    # states rounded to 1e-15 are 1e-9 of the noise; a log density near 0 has no relative accuracy
    assert found == pytest.approx(expected, rel=0, abs=1e-7)
    try:
        level, least = by_covariances(x, values)
    except np.linalg.LinAlgError:  # a covariance that is singular has lost its digits too
        level, least = np.nan, 0.0
    assert least <= 0 or abs(level - expected) > 1e-2
    masked = torch.ones_like(x, dtype=torch.bool)
    masked[3, 0] = False
    assert float(by_kernel(x, starts, masked)(*values)) < np.inf


@pytest.mark.parametrize("n_features", [1, 3])
def test_gradients_with_small_noise_are_accurate(n_features, rng):
    """Compares with differences of the log density in 100 digits, up to the rounding of the data."""
    x, values = diffuse_case(rng, n_features, 1e-6, 1e6, 1.0)
    _, gradients = value_and_grad(by_kernel(x, sequence_starts([6])), values)
    for i, name in enumerate(NAMES):
        if name in ("Q", "initial_covariance"):
            continue
        direction = torch.from_numpy(rng.standard_normal(values[i].shape)) * values[i].abs()
        step = 1e-9 if name in ("A", "initial_mean", "scale") else 1e-14
        sides = []
        for sign in (1, -1):
            moved = list(values)
            moved[i] = values[i] + sign * step * direction
            sides.append((moved[i], exact_log_density(x, moved)))
        change = ((sides[0][0] - sides[1][0]) * gradients[i]).sum()
        assert sides[0][1] - sides[1][1] == pytest.approx(float(change), rel=2e-3, abs=1e-10), name


# -- in torch


def test_batched_chains_equal_single_ones_captured_or_not(rng):
    starts = sequence_starts([7, 4])
    x = torch.from_numpy(rng.standard_normal((3, 11, 3)))
    observed = torch.from_numpy(rng.random((11, 3)) < 0.8)
    batch = [torch.stack(each) for each in zip(*[parameters(rng, 2, 3) for _ in range(3)], strict=True)]
    C = batch[2]

    def log_density(data, *values):
        return by_kernel(data, starts, observed)(*values)

    argnums = tuple(range(1, 8))
    gradients, levels = torch.vmap(torch.func.grad_and_value(log_density, argnums))(x, *batch)
    for i in range(3):
        own, level = torch.func.grad_and_value(log_density, argnums)(x[i], *[p[i] for p in batch])
        assert torch.equal(levels[i], level)
        assert all(torch.equal(g[i], o) for g, o in zip(gradients, own, strict=True))

    def of_loadings(c):
        gradient, level = torch.func.grad_and_value(lambda c: log_density(x[0], *[p[0] for p in batch[:2]], c, *fixed))(c)
        return level, gradient

    def never(*_):
        raise AssertionError("not captured")

    fixed = [p[0] for p in batch[3:]]
    plain = [of_loadings(c) for c in C]
    for function in (torch.vmap(of_loadings), capture(torch.vmap(of_loadings), C, otherwise=never)):
        levels, gradients = function(C)
        torch.testing.assert_close(levels, torch.stack([p[0] for p in plain]), rtol=1e-13, atol=0)
        torch.testing.assert_close(gradients, torch.stack([p[1] for p in plain]), rtol=1e-12, atol=1e-12)


def test_second_derivatives_match_the_dense_gaussian(rng):
    starts = sequence_starts([4, 2])
    x = torch.from_numpy(rng.standard_normal((6, 2)))
    observed = torch.from_numpy(rng.random((6, 2)) < 0.8)
    values = parameters(rng, 2, 2)
    sizes = [value.numel() for value in values]
    flat = torch.cat([value.reshape(-1) for value in values])

    def of(function):
        return lambda u: function(*[p.reshape(v.shape) for p, v in zip(torch.split(u, sizes), values, strict=True)])

    found, expected = (torch.func.jacrev(torch.func.grad(of(f(x, starts, observed))))(flat) for f in (by_kernel, dense))
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8 * float(expected.abs().max()))


def test_the_torch_version_equals_the_kernel(rng):
    A, Q, C, loc, scale, mean, P = values = parameters(rng, 3, 4)
    starts = sequence_starts([5, 2])
    x = torch.from_numpy(rng.standard_normal((7, 4)))
    roots = [torch.linalg.cholesky(one) for one in (Q, P)]
    seen = torch.ones_like(x, dtype=torch.bool)
    found = _in_torch(A, roots[0], C, loc, scale, mean, roots[1], x, seen, starts)
    assert float(found) == pytest.approx(float(by_kernel(x, starts)(*values)), rel=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_nan_parameters_give_nan(name, rng):
    values, starts = list(parameters(rng, 2, 3)), sequence_starts([4, 2])
    x = torch.from_numpy(rng.standard_normal((6, 3)))
    i = NAMES.index(name)
    broken = torch.stack([values[i], torch.full_like(values[i], torch.nan)])
    levels = torch.vmap(lambda v: by_kernel(x, starts)(*values[:i], v, *values[i + 1 :]))(broken)
    assert torch.isfinite(levels[0])
    assert torch.isnan(levels[1])


def test_a_chain_of_100000_steps_is_accurate(rng):
    """Many sequences; gradients match those of the scan."""
    values, starts = parameters(rng, 1, 2), torch.from_numpy(rng.random(100_000) < 0.01)
    x = torch.from_numpy(rng.standard_normal((100_000, 2)))
    scan = lambda *v: LinearGaussianChain(*symmetric(v), starts)._log_prob_sum_by_scan(x)  # noqa: E731
    assert_close(value_and_grad(by_kernel(x, starts), values), value_and_grad(scan, values))
