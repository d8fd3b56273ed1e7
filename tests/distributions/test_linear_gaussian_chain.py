"""Tests of linear-Gaussian chains against the dense joint Gaussian of all states and rows."""

import numpy as np
import pytest
import torch
from scipy.stats import chi2, multivariate_normal, norm

from latentlab.distributions import kernels
from latentlab.distributions.linear_gaussian_chain import LinearGaussianChain
from latentlab.inference.capture import capture


def parameters(rng, q, lengths, n_features=4, *, masked=False):
    root = lambda: np.eye(q) + 0.3 * rng.standard_normal((q, q))  # noqa: E731
    A = rng.standard_normal((q, q))
    A *= 0.95 / np.abs(np.linalg.eigvals(A)).max()
    Q, P = (r @ r.T for r in (root(), root()))
    n_units = sum(lengths)
    starts = np.zeros(n_units, dtype=bool)
    starts[np.cumsum([0, *lengths[:-1]])] = True
    observed = None
    if masked:
        observed = rng.random((n_units, n_features)) < 0.7
        observed[n_units // 2] = False  # a time step of which nothing was observed
        observed[0] = False
    arrays = {
        "A": A,
        "Q": Q,
        "C": rng.standard_normal((n_features, q)),
        "loc": rng.standard_normal(n_features),
        "scale": rng.uniform(0.3, 1.5, n_features),
        "initial_mean": rng.standard_normal(q),
        "initial_covariance": P,
        "starts": starts,
        "observed": observed,
    }
    return arrays, 2 * rng.standard_normal((n_units, n_features))


def chain(arrays):
    return LinearGaussianChain(**{name: None if a is None else torch.tensor(a) for name, a in arrays.items()})


@pytest.fixture(params=["kernels", "scan"])
def sums(request, monkeypatch):
    """`log_prob_sum` by the kernel, and by the scan."""
    if request.param == "scan":
        monkeypatch.setattr(kernels, "available_for", lambda *tensors: False)
    else:
        pytest.importorskip("numba")


class Dense:
    """The joint Gaussian of every state and every row, as one mean and one covariance."""

    def __init__(self, A, Q, C, loc, scale, initial_mean, initial_covariance, starts, observed, x):
        n_units, n_features = x.shape
        q = len(A)
        self.q, self.n_units, self.sequence = q, n_units, np.cumsum(starts) - 1
        # States are a linear map of independent noise: z = S (start, noise).
        S, mean, noise = np.zeros((n_units * q, n_units * q)), np.zeros(n_units * q), np.zeros((n_units * q, n_units * q))
        for t in range(n_units):
            at = slice(t * q, t * q + q)
            S[at, at] = np.eye(q)
            noise[at, at] = initial_covariance if starts[t] else Q
            mean[at] = initial_mean if starts[t] else A @ mean[at.start - q : at.start]
            if not starts[t]:
                S[at] += A @ S[at.start - q : at.start]
        states = S @ noise @ S.T
        emit = np.kron(np.eye(n_units), C)
        seen = np.ones(x.shape, dtype=bool) if observed is None else observed
        self.rows = np.repeat(np.arange(n_units), n_features)[seen.ravel()]
        emit = emit[seen.ravel()]
        self.x = x.ravel()[seen.ravel()]
        self.mean = np.concatenate([mean, emit @ mean + np.tile(loc, n_units)[seen.ravel()]])
        noise_x = np.diag(np.tile(np.broadcast_to(scale, n_features) ** 2, n_units)[seen.ravel()])
        self.covariance = np.block([[states, states @ emit.T], [emit @ states, emit @ states @ emit.T + noise_x]])

    def log_prob(self, units):
        i = np.flatnonzero(np.isin(self.rows, units))
        if not len(i):
            return 0.0
        j = i + self.n_units * self.q
        return multivariate_normal(self.mean[j], self.covariance[np.ix_(j, j)]).logpdf(self.x[i])

    def units(self, t, upto=None):
        same = np.flatnonzero(self.sequence == self.sequence[t])
        return same if upto is None else same[same <= upto]

    def states(self, units):
        """Mean and covariance of all states given the rows of `units`."""
        n = self.n_units * self.q
        i = np.flatnonzero(np.isin(self.rows, units))
        cross, own = self.covariance[:n, n + i], self.covariance[np.ix_(n + i, n + i)]
        gain = np.linalg.solve(own, cross.T).T
        return self.mean[:n] + gain @ (self.x[i] - self.mean[n + i]), self.covariance[:n, :n] - gain @ cross.T

    def block(self, matrix, s, t):
        return matrix[s * self.q : (s + 1) * self.q, t * self.q : (t + 1) * self.q]


CASES = {
    "one state": (1, [7]),
    "two states": (2, [6]),
    "three states": (3, [5]),
    "one step": (2, [1]),
    "several sequences": (2, [1, 4, 3, 1]),
    "three states, several sequences": (3, [2, 4]),
}


@pytest.fixture(params=[(*case, masked) for case in CASES.values() for masked in (False, True)], ids=lambda p: f"{p}")
def parts(request, rng):
    q, lengths, masked = request.param
    return parameters(rng, q, lengths, masked=masked)


def test_densities_match_the_dense_gaussian(parts, sums):
    arrays, x = parts
    found, exact = chain(arrays), Dense(**arrays, x=x)
    value = torch.from_numpy(x)
    units = range(len(x))
    close = {"rtol": 1e-9, "atol": 1e-10}
    past = [exact.log_prob(exact.units(t, upto=t)) - exact.log_prob(exact.units(t, upto=t - 1)) for t in units]
    others = [exact.log_prob(exact.units(t)) - exact.log_prob(exact.units(t)[exact.units(t) != t]) for t in units]
    sequences = [exact.log_prob(np.flatnonzero(exact.sequence == s)) for s in range(exact.sequence[-1] + 1)]
    np.testing.assert_allclose(found.log_prob(value).numpy(), past, **close)
    np.testing.assert_allclose(found.leave_one_out(value).numpy(), others, **close)
    np.testing.assert_allclose(found.sequence_log_prob(value).numpy(), sequences, **close)
    np.testing.assert_allclose(float(found.log_prob_sum(value)), exact.log_prob(units), **close)


def test_smoothed_states_match_the_dense_gaussian(parts):
    arrays, x = parts
    value = torch.from_numpy(x)
    found, exact = chain(arrays), Dense(**arrays, x=x)
    path = found.conditional(value)
    mean, covariance = exact.states(range(len(x)))
    filtered_mean, filtered_covariance = found.filtered(value)
    close = {"rtol": 1e-9, "atol": 1e-10}
    np.testing.assert_allclose(path.mean.numpy(), mean.reshape(len(x), -1), **close)
    for t in range(len(x)):
        np.testing.assert_allclose(path.covariance_matrix[t].numpy(), exact.block(covariance, t, t), **close)
        np.testing.assert_allclose(path.variance[t].numpy(), np.diag(exact.block(covariance, t, t)), **close)
        lag = np.zeros((exact.q, exact.q)) if arrays["starts"][t] else exact.block(covariance, t - 1, t)
        np.testing.assert_allclose(path.lag_one_covariance[t].numpy(), lag, **close)
        past_mean, past_covariance = exact.states(exact.units(t, upto=t))
        np.testing.assert_allclose(filtered_mean[t].numpy(), past_mean.reshape(len(x), -1)[t], **close)
        np.testing.assert_allclose(filtered_covariance[t].numpy(), exact.block(past_covariance, t, t), **close)


def test_the_density_of_a_path_matches_the_dense_gaussian(parts, rng):
    arrays, x = parts
    path = chain(arrays).conditional(torch.from_numpy(x))
    mean, covariance = Dense(**arrays, x=x).states(range(len(x)))
    z = mean.reshape(len(x), -1) + rng.standard_normal((3, len(x), len(arrays["A"])))
    expected = multivariate_normal(mean, covariance).logpdf(z.reshape(3, -1))
    np.testing.assert_allclose(path.log_prob(torch.from_numpy(z)).numpy(), expected, rtol=1e-9)
    assert path.log_prob(torch.from_numpy(z[0])).shape == ()


def standardised(draws, mean, covariance):
    """Draws `(n, d)` whitened: independent standard normals if mean and covariance are theirs."""
    return np.linalg.solve(np.linalg.cholesky(covariance), (draws - mean).T).T


def assert_standard_normal(z):
    """Means, and second moments of all pairs, at a false alarm rate of 1e-6 in total (normal approximations, Bonferroni)."""
    n, d = z.shape
    limit = norm.isf(1e-6 / 2 / (d + d * (d + 1) / 2))
    assert np.abs(z.mean(0) * np.sqrt(n)).max() < limit
    second = np.sqrt(n) * (z.T @ z / n - np.eye(d)) / np.sqrt(1 + np.eye(d))
    assert np.abs(second).max() < limit


@pytest.mark.parametrize("batched", [False, True])
def test_sampled_paths_follow_the_dense_gaussian(rng, batched):
    arrays, x = parameters(rng, 2, [3, 2], masked=True)
    value, n = torch.from_numpy(x), 20_000
    torch.manual_seed(0)
    if batched:
        draw = torch.vmap(lambda v: chain(arrays).conditional(v).sample(), randomness="different")
        draws = draw(value.expand(n, -1, -1))
    else:
        draws = chain(arrays).conditional(value).sample((n,))
    assert draws.shape == (n, 5, 2)
    mean, covariance = Dense(**arrays, x=x).states(range(len(x)))
    assert_standard_normal(standardised(draws.reshape(n, -1).numpy(), mean, covariance))


def test_simulated_rows_follow_the_dense_gaussian(rng):
    arrays, x = parameters(rng, 2, [3, 1], n_features=2)
    torch.manual_seed(0)
    draws = chain(arrays).sample((20_000,))
    assert draws.shape == (20_000, 4, 2)
    exact, n_states = Dense(**arrays, x=x), 8
    z = standardised(draws.reshape(len(draws), -1).numpy(), exact.mean[n_states:], exact.covariance[n_states:, n_states:])
    assert_standard_normal(z)
    assert chi2.sf((z**2).sum(), z.size) > 1e-6
    assert chain(arrays).sample().shape == (4, 2)


def test_gradients_of_the_linear_gaussian_chain_match_differences(rng, sums):
    arrays, x = parameters(rng, 2, [3, 2], masked=True)
    names = [name for name in arrays if name not in ("starts", "observed")]
    given = tuple(torch.tensor(arrays[name], requires_grad=True) for name in names)
    value = torch.from_numpy(x)

    def build(*values):
        free = dict(zip(names, values, strict=True))
        free["Q"], free["initial_covariance"] = ((free[k] + free[k].mT) / 2 for k in ("Q", "initial_covariance"))
        return LinearGaussianChain(**free, starts=torch.tensor(arrays["starts"]), observed=torch.tensor(arrays["observed"]))

    assert torch.autograd.gradcheck(lambda *v: build(*v).log_prob_sum(value), given)
    assert torch.autograd.gradcheck(lambda *v: build(*v).log_prob(value), given)
    assert torch.autograd.gradcheck(lambda *v: build(*v).leave_one_out(value), given)


def test_batched_and_captured_linear_gaussian_chains_equal_the_plain_one(rng, sums):
    arrays, x = parameters(rng, 2, [5, 8], masked=True)
    value = torch.from_numpy(x)
    A = torch.tensor(arrays["A"]) + 0.1 * torch.from_numpy(rng.standard_normal((4, 2, 2)))

    def build(a):
        return LinearGaussianChain(a, **{k: torch.tensor(v) for k, v in arrays.items() if k != "A"})

    def value_and_gradient(a):
        gradient, level = torch.func.grad_and_value(lambda a: build(a).log_prob_sum(value))(a)
        return level, gradient

    def never(*_):
        raise AssertionError("not captured")

    plain = [value_and_gradient(a) for a in A]
    for function in (torch.vmap(value_and_gradient), capture(torch.vmap(value_and_gradient), A, otherwise=never)):
        levels, gradients = function(A)
        torch.testing.assert_close(levels, torch.stack([p[0] for p in plain]), rtol=1e-12, atol=0)
        torch.testing.assert_close(gradients, torch.stack([p[1] for p in plain]), rtol=1e-10, atol=1e-11)
    one = capture(value_and_gradient, A[0], otherwise=never)
    torch.testing.assert_close(one(A[1])[1], plain[1][1], rtol=1e-10, atol=1e-11)
    for name in ("log_prob", "leave_one_out", "sequence_log_prob", "filtered"):
        batched = torch.vmap(lambda a, n=name: getattr(build(a), n)(value))(A)
        for i, a in enumerate(A):
            own = getattr(build(a), name)(value)
            pairs = zip(batched, own, strict=True) if name == "filtered" else [(batched, own)]
            for found, expected in pairs:
                torch.testing.assert_close(found[i], expected, rtol=1e-10, atol=1e-11)


def test_nan_in_one_batched_chain_does_not_affect_the_others(rng, sums):
    arrays, x = parameters(rng, 2, [4])
    A = torch.stack([torch.tensor(arrays["A"]), torch.full((2, 2), torch.nan).double()])
    levels = torch.vmap(
        lambda a: LinearGaussianChain(
            a, **{k: None if v is None else torch.tensor(v) for k, v in arrays.items() if k != "A"}
        ).log_prob_sum(torch.from_numpy(x))
    )(A)
    assert torch.isfinite(levels[0])
    assert torch.isnan(levels[1])


@pytest.mark.parametrize("scale", [1e-5, 1e-6])
def test_small_noise_of_a_chain_is_accurate(rng, scale, sums):
    arrays, _ = parameters(rng, 2, [30, 20], n_features=5)
    arrays["loc"] = 10 * arrays["loc"]
    z = np.cumsum(rng.standard_normal((50, 2)), 0)
    x = torch.tensor(z @ arrays["C"].T + arrays["loc"])  # no noise at all: the states are known
    # As the noise vanishes, a step has density p(z) / |C'C|^(1/2), times that of the noise in the 3 dimensions off the plane.
    prior = 0.0
    for t in range(50):
        first = arrays["starts"][t]
        mean = arrays["initial_mean"] if first else arrays["A"] @ z[t - 1]
        prior += multivariate_normal(mean, arrays["initial_covariance"] if first else arrays["Q"]).logpdf(z[t])
    volume = 0.5 * np.linalg.slogdet(arrays["C"].T @ arrays["C"])[1]

    def off(scale):
        expected = prior - 50 * (volume + 3 * (0.5 * np.log(2 * np.pi) + np.log(scale)))
        found = chain({**arrays, "scale": np.full(5, scale)})
        assert float(found.log_prob_sum(x)) == pytest.approx(float(found.log_prob(x).sum()), rel=1e-11)
        return float(found.log_prob_sum(x)) - expected

    assert off(scale) == pytest.approx(off(1e-4) * (scale / 1e-4) ** 2, rel=0.1, abs=1e-7)  # the limit is reached quadratically


def test_many_steps_match_the_kalman_filter(rng, sums):
    lengths = [6000, 4000]
    arrays, x = parameters(rng, 2, lengths, n_features=3)
    A, Q, C = arrays["A"], arrays["Q"], arrays["C"]
    R, terms = np.diag(arrays["scale"] ** 2), []
    for t in range(len(x)):
        m, P = (arrays["initial_mean"], arrays["initial_covariance"]) if arrays["starts"][t] else (A @ m, A @ P @ A.T + Q)  # noqa: F821
        S, e = C @ P @ C.T + R, x[t] - arrays["loc"] - C @ m
        gain = np.linalg.solve(S, C @ P).T
        terms.append(-0.5 * (3 * np.log(2 * np.pi) + np.linalg.slogdet(S)[1] + e @ np.linalg.solve(S, e)))
        m, P = m + gain @ e, P - gain @ C @ P
    found, value = chain(arrays), torch.from_numpy(x)
    np.testing.assert_allclose(found.log_prob(value).numpy(), terms, rtol=1e-10, atol=1e-10)
    assert float(found.log_prob_sum(value)) == pytest.approx(sum(terms), rel=1e-12)
    path = found.conditional(value)
    assert torch.isfinite(path.log_prob(path.sample()))


def test_a_chain_cannot_be_expanded_to_another_number_of_steps(rng):
    arrays, _ = parameters(rng, 1, [4])
    found = chain(arrays)
    assert found.expand([4]) is found
    with pytest.raises(ValueError, match=r"the batch shape of a chain must be \(4,\), its number of steps; got \(5,\)"):
        found.expand([5])
