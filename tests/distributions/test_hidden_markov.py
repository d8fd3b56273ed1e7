"""Tests of hidden Markov chains against enumeration of paths, hmmlearn and a scaled recursion."""

import itertools

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from scipy.stats import binom

from latentlab.distributions import hidden_markov as hm
from latentlab.inference.capture import capture


def chain(rng, n_states, lengths, *, missing=(), forbidden=(), sharpness=1.5):
    """The four tensors of a random chain; `forbidden` are transitions of probability 0."""
    pi = rng.dirichlet(np.ones(n_states))
    A = rng.dirichlet(np.ones(n_states), size=n_states)
    for i, j in forbidden:
        A[i, j] = 0
    A /= A.sum(1, keepdims=True)
    log_b = sharpness * rng.standard_normal((sum(lengths), n_states))
    log_b[list(missing)] = 0
    starts = np.zeros(sum(lengths), dtype=bool)
    starts[np.cumsum([0, *lengths[:-1]])] = True
    with np.errstate(divide="ignore"):
        return tuple(torch.from_numpy(a) for a in (np.log(pi), np.log(A), log_b, starts))


CASES = {
    "one sequence": {"n_states": 2, "lengths": [7]},
    "three states": {"n_states": 3, "lengths": [6]},
    "one step": {"n_states": 3, "lengths": [1]},
    "several sequences": {"n_states": 2, "lengths": [1, 4, 2]},
    "three states, several sequences": {"n_states": 3, "lengths": [3, 1, 2], "missing": [4]},
    "missing steps": {"n_states": 3, "lengths": [5], "missing": [0, 2, 4]},
    "forbidden transitions": {"n_states": 3, "lengths": [4, 3], "forbidden": [(1, 0), (2, 0), (2, 1), (0, 2)]},
}


@pytest.fixture(params=list(CASES.values()), ids=list(CASES))
def parts(request, rng):
    return chain(rng, **request.param)


class Enumerated:
    """Computes all quantities by sums over all K^T paths of all sequences."""

    def __init__(self, log_initial, log_transition, log_emission, starts):
        self.log_b, self.starts = log_emission.numpy(), starts.numpy()
        n_units, self.n_states = self.log_b.shape
        self.paths = np.array(list(itertools.product(range(self.n_states), repeat=n_units)))
        rows = []
        for path in self.paths:
            total = 0.0
            for t, z in enumerate(path):
                total += float(log_initial[z]) if self.starts[t] else float(log_transition[path[t - 1], z])
            rows.append(total)
        self.log_prior = np.array(rows)
        self.sequence = np.cumsum(self.starts) - 1

    def log_sum(self, units, where=True):
        """log of the sum over paths (those `where`) of prior times emissions of `units`."""
        joint = self.log_prior + sum((self.log_b[t, self.paths[:, t]] for t in units), np.zeros(len(self.paths)))
        return logsumexp(np.where(where, joint, -np.inf))

    def units(self, t, upto=None):
        return [s for s in range(len(self.starts)) if self.sequence[s] == self.sequence[t] and (upto is None or s <= upto)]

    def log_likelihood(self):
        return self.log_sum(range(len(self.starts)))

    def log_predictive(self):
        return np.array(
            [self.log_sum(self.units(t, upto=t)) - self.log_sum(self.units(t, upto=t - 1)) for t in range(len(self.starts))]
        )

    def leave_one_out(self):
        others = [[s for s in self.units(t) if s != t] for t in range(len(self.starts))]
        return np.array([self.log_sum(self.units(t)) - self.log_sum(others[t]) for t in range(len(self.starts))])

    def probability(self, units, where):
        return np.exp(self.log_sum(units, where) - self.log_sum(units))

    def probs(self, *, past_only):
        states = range(self.n_states)
        given = [self.units(t, upto=t if past_only else None) for t in range(len(self.starts))]
        return np.array([[self.probability(given[t], self.paths[:, t] == k) for k in states] for t in range(len(given))])

    def pairs(self):
        out = np.zeros((len(self.starts), self.n_states, self.n_states))
        for t, i, j in np.ndindex(*out.shape):
            if not self.starts[t]:
                out[t, i, j] = self.probability(self.units(t), (self.paths[:, t - 1] == i) & (self.paths[:, t] == j))
        return out

    def log_joint(self):
        return self.log_prior + self.log_b[np.arange(len(self.starts)), self.paths].sum(1)


def test_all_quantities_match_enumeration_of_paths(parts):
    exact = Enumerated(*parts)
    close = {"rtol": 1e-11, "atol": 1e-12}
    np.testing.assert_allclose(float(hm.log_likelihood(*parts)), exact.log_likelihood(), **close)
    np.testing.assert_allclose(hm.log_predictive(*parts).numpy(), exact.log_predictive(), **close)
    np.testing.assert_allclose(hm.filtered(*parts).numpy(), exact.probs(past_only=True), **close)
    np.testing.assert_allclose(hm.smoothed(*parts).numpy(), exact.probs(past_only=False), **close)
    np.testing.assert_allclose(hm.pair_marginals(*parts).numpy(), exact.pairs(), **close)
    np.testing.assert_allclose(hm.leave_one_out(*parts).numpy(), exact.leave_one_out(), **close)


def test_path_probabilities_and_viterbi_match_enumeration(parts):
    exact = Enumerated(*parts)
    joint = exact.log_joint()
    path, level = hm.viterbi(*parts)
    assert path.dtype == torch.int64
    np.testing.assert_array_equal(path.numpy(), exact.paths[joint.argmax()])
    assert float(level) == pytest.approx(joint.max(), rel=1e-12)
    hidden = hm.HiddenPath(*parts)
    np.testing.assert_array_equal(hidden.mode.numpy(), path.numpy())
    np.testing.assert_allclose(hidden.probs.numpy(), exact.probs(past_only=False), atol=1e-12)
    found = hidden.log_prob(torch.from_numpy(exact.paths))
    np.testing.assert_allclose(found.numpy(), joint - exact.log_likelihood(), rtol=1e-11, atol=1e-12)
    assert float(torch.logsumexp(found, 0)) == pytest.approx(0, abs=1e-12)
    assert hidden.log_prob(path.double()).shape == ()  # positions arrive as float64


def test_the_viterbi_path_of_a_sequence_ignores_the_next_sequence():
    # The first sequence ends in 0, more probably; the next begins in 1, and states stay: a step from 1 to 1 would be better.
    initial, transition = torch.tensor([0.5, 0.5]).double().log(), torch.tensor([[0.99, 0.01], [0.01, 0.99]]).double().log()
    emission = torch.tensor([[0.6, 0.4], [1e-6, 1.0]]).double().log()
    path, level = hm.viterbi(initial, transition, emission, torch.tensor([True, True]))
    assert path.tolist() == [0, 1]
    assert float(level) == pytest.approx(np.log(0.25 * 0.6))


def test_viterbi_returns_one_of_tied_best_paths():
    # Either state stays for good: (0, 0, 0) and (1, 1, 1) are equally probable, and no mixture of them is possible.
    half, never = np.log(0.5), -np.inf
    initial, transition = torch.tensor([half, half]).double(), torch.tensor([[0.0, never], [never, 0.0]]).double()
    path, level = hm.viterbi(initial, transition, torch.zeros(3, 2).double(), torch.tensor([True, False, False]))
    assert len(set(path.tolist())) == 1
    assert float(level) == pytest.approx(half)


def test_frequencies_of_sampled_paths_match_enumeration(rng):
    parts = chain(rng, 3, [3, 2], missing=[1], forbidden=[(2, 0)])
    exact = Enumerated(*parts)
    probability = np.exp(exact.log_joint() - exact.log_likelihood())
    torch.manual_seed(1)
    n = 40_000
    draws = hm.HiddenPath(*parts).sample((n,))
    assert draws.shape == (n, 5)
    batched = torch.vmap(lambda b: hm.HiddenPath(*parts[:2], b, parts[3]).sample(), randomness="different")
    for sampled in (draws, batched(parts[2].expand(n, -1, -1))):
        code = (sampled.numpy() @ 3 ** np.arange(5)[::-1]).astype(int)
        counts = np.bincount(code, minlength=3**5)
        # Exact two-sided binomial tests of 243 counts, Bonferroni at 1e-6 in total; what is impossible never comes.
        tail = np.minimum(binom.cdf(counts, n, probability), binom.sf(counts - 1, n, probability))
        assert tail.min() > 1e-6 / 2 / len(counts)
        assert counts[probability == 0].sum() == 0
        assert (probability == 0).any()


@pytest.mark.parametrize("u", [0.0, 1 - 2.0**-53])
def test_sampling_with_extreme_uniform_numbers_gives_possible_states(rng, monkeypatch, u):
    never = -np.inf
    _, _, log_b, starts = chain(rng, 4, [30], missing=range(30))
    initial = torch.tensor([never, np.log(0.1), np.log(0.9), never]).double()
    transition = torch.from_numpy(np.log(rng.dirichlet(np.ones(4), size=4)))
    transition[:, [0, 3]] = never
    transition -= torch.logsumexp(transition, 1, keepdim=True)
    monkeypatch.setattr(torch, "rand", lambda *shape, dtype: torch.full(shape, u, dtype=dtype))
    hidden = hm.HiddenPath(initial, transition, log_b, starts)
    assert torch.isfinite(hidden.log_prob(hidden.sample()))


def test_long_sequences_match_hmmlearn(rng):
    hmmlearn = pytest.importorskip("hmmlearn.hmm")
    lengths = [1500, 1, 700, 2000]
    initial, transition, _, starts = chain(rng, 3, lengths)
    x = np.cumsum(rng.standard_normal((sum(lengths), 1)), 0) % 7
    theirs = hmmlearn.GaussianHMM(3, covariance_type="diag", implementation="log")
    theirs.startprob_, theirs.transmat_ = initial.exp().numpy(), transition.exp().numpy()
    theirs.means_, theirs.covars_ = np.array([[1.0], [3.0], [6.0]]), np.array([[1.0], [0.5], [2.0]])
    normal = torch.distributions.Normal(torch.from_numpy(theirs.means_[:, 0]), torch.tensor([1.0, 0.5, 2.0]).double().sqrt())
    parts = initial, transition, normal.log_prob(torch.from_numpy(x)), starts
    assert float(hm.log_likelihood(*parts)) == pytest.approx(theirs.score(x, lengths), rel=1e-12)
    np.testing.assert_allclose(hm.smoothed(*parts).numpy(), theirs.predict_proba(x, lengths), atol=1e-8)
    level, path = theirs.decode(x, lengths)
    np.testing.assert_array_equal(hm.viterbi(*parts)[0].numpy(), path)
    assert float(hm.viterbi(*parts)[1]) == pytest.approx(level, rel=1e-12)


def test_100000_steps_match_a_scaled_recursion(rng):
    parts = chain(rng, 3, [60_000, 40_000], sharpness=4.0)
    pi, A, b = (p.exp().numpy() for p in parts[:3])
    starts, terms, state = parts[3].numpy(), np.empty(100_000), None
    gamma = np.empty((100_000, 3))
    for t in range(100_000):
        state = (pi if starts[t] else state @ A) * b[t]
        terms[t] = np.log(state.sum())
        gamma[t] = state = state / state.sum()
    assert float(hm.log_likelihood(*parts)) == pytest.approx(terms.sum(), rel=1e-13)
    np.testing.assert_allclose(hm.log_predictive(*parts).numpy(), terms, rtol=0, atol=1e-13)
    np.testing.assert_allclose(hm.filtered(*parts).numpy(), gamma, rtol=0, atol=1e-13)
    hidden = hm.HiddenPath(*parts)
    assert torch.isfinite(hidden.log_prob(hidden.sample()))
    pairs = hm.pair_marginals(*parts)
    np.testing.assert_allclose(pairs[1:60_000].sum(1).numpy(), hidden.probs[1:60_000].numpy(), atol=1e-10)
    np.testing.assert_allclose(pairs[1:60_000].sum(2).numpy(), hidden.probs[: 60_000 - 1].numpy(), atol=1e-10)


def test_very_unlikely_states_do_not_underflow():
    # State 0 is 10^-870 as likely as state 1 until t = 2, where it alone can have come from: a scaled recursion loses it.
    never = -np.inf
    log_emission = torch.tensor([[-2000.0, 0.0], [0.0, 0.0], [0.0, never]]).double()
    log_transition = torch.tensor([[0.0, never], [never, 0.0]]).double()
    initial, starts = torch.tensor([0.5, 0.5]).double().log(), torch.tensor([True, False, False])
    assert float(hm.log_likelihood(initial, log_transition, log_emission, starts)) == pytest.approx(-2000 + np.log(0.5))
    smooth = hm.smoothed(initial, log_transition, log_emission, starts)
    np.testing.assert_allclose(smooth.numpy(), [[1, 0]] * 3, atol=1e-12)


def test_sequences_are_independent_and_their_log_likelihoods_add_up(rng):
    lengths = [4, 1, 6]
    parts = chain(rng, 3, lengths)
    edges = np.cumsum([0, *lengths])
    apart = [float(hm.log_likelihood(*parts[:2], parts[2][a:b], parts[3][a:b])) for a, b in itertools.pairwise(edges)]
    np.testing.assert_allclose(hm.sequence_log_likelihood(*parts).numpy(), apart, rtol=1e-12)
    assert float(hm.log_likelihood(*parts)) == pytest.approx(sum(apart), rel=1e-12)
    together = torch.arange(11) == 0
    assert abs(float(hm.log_likelihood(*parts[:3], together)) - sum(apart)) > 1e-6  # of any size: rounding is 1e-12
    assert float(hm.log_likelihood(*parts[:3], torch.zeros(11, dtype=torch.bool))) == pytest.approx(
        float(hm.log_likelihood(*parts[:3], together)), rel=1e-14
    )


def test_impossible_data_have_minus_infinity_and_finite_gradients(rng):
    never = -np.inf
    initial, transition, log_b, starts = chain(rng, 2, [3, 3], forbidden=[(0, 1)])
    log_b[1, 1], log_b[2, 0] = never, never  # in 0 at t = 1, so never in 1 at t = 2
    parts = (initial, transition, log_b, starts)
    assert float(hm.log_likelihood(*parts)) == never
    assert float(hm.log_predictive(*parts).sum()) == never
    first, second = hm.sequence_log_likelihood(*parts).tolist()
    assert first == never
    assert second == pytest.approx(Enumerated(initial, transition, log_b[3:], starts[3:]).log_likelihood())
    for gradient in torch.func.grad(hm.log_likelihood, (0, 1, 2))(*parts):
        assert torch.isfinite(gradient).all()
    log_b[2] = never
    assert float(hm.log_likelihood(*parts)) == never


# -- gradients


def test_gradients_are_expected_counts(parts):
    of_initial, of_transition, of_emission = torch.func.grad(hm.log_likelihood, (0, 1, 2))(*parts)
    smooth = hm.smoothed(*parts)
    np.testing.assert_allclose(of_initial.numpy(), smooth[parts[3]].sum(0).numpy(), atol=1e-11)
    np.testing.assert_allclose(of_transition.numpy(), hm.pair_marginals(*parts).sum(0).numpy(), atol=1e-11)
    np.testing.assert_allclose(of_emission.numpy(), smooth.numpy(), atol=1e-11)


@pytest.mark.parametrize("by_kernel", [True, False], ids=["kernel", "scan"])
def test_expected_counts_are_sums_of_smoothed_probabilities(parts, monkeypatch, by_kernel):
    if not by_kernel:
        monkeypatch.setattr(hm.kernels, "available_for", lambda *tensors: False)
    exact = Enumerated(*parts)
    smoothed = exact.probs(past_only=False)
    with torch.no_grad():
        level, first, transitions, probs = hm.expected_counts(*parts)
    assert not any(one.requires_grad for one in (level, first, transitions, probs))
    assert float(level) == pytest.approx(exact.log_likelihood(), rel=1e-12)
    np.testing.assert_allclose(probs, smoothed, atol=1e-12)
    np.testing.assert_allclose(first, smoothed[parts[3].numpy()].sum(0), atol=1e-12)
    np.testing.assert_allclose(transitions, exact.pairs().sum(0), atol=1e-12)


def test_gradients_of_the_hidden_markov_chain_match_differences(rng):
    *logs, starts = chain(rng, 3, [4, 1, 3], missing=[2])
    logs = tuple(log.requires_grad_() for log in logs)
    for function in (hm.log_likelihood, hm.log_predictive, hm.leave_one_out, hm.smoothed, hm.pair_marginals):
        assert torch.autograd.gradcheck(lambda *three, f=function: f(*three, starts), logs)


def test_a_left_to_right_chain_has_finite_gradients(rng):
    never = -np.inf
    transition = torch.tensor([[0.5, 0.5, 0.0], [0.0, 0.5, 0.5], [0.0, 0.0, 1.0]]).double().log()
    initial = torch.tensor([0.0, never, never]).double()
    log_b = torch.from_numpy(rng.standard_normal((40, 3)))
    log_b[7, 2] = never
    starts = torch.arange(40) % 20 == 0
    for function in (hm.log_likelihood, hm.log_predictive, hm.leave_one_out, hm.smoothed, hm.filtered, hm.pair_marginals):
        weights = [torch.from_numpy(rng.standard_normal(function(initial, transition, log_b, starts).shape))]
        summed = lambda *three, f=function, w=weights: (w[0] * f(*three, starts)).sum()  # noqa: E731
        for gradient in torch.func.grad(summed, (0, 1, 2))(initial, transition, log_b):
            assert torch.isfinite(gradient).all(), function.__name__
    assert float(hm.log_likelihood(initial, transition, log_b, starts)) == pytest.approx(
        float(hm.sequence_log_likelihood(initial, transition, log_b, starts).sum()), rel=1e-12
    )


# -- transformations of functions


def test_batched_and_captured_hidden_markov_chains_equal_the_plain_one(rng):
    initial, transition, log_b, starts = chain(rng, 3, [5, 8], forbidden=[(0, 1)])
    shifts = torch.from_numpy(rng.standard_normal((4, 13, 3)))

    def value_and_gradient(b):
        gradient, value = torch.func.grad_and_value(hm.log_likelihood, 2)(initial, transition, b, starts)
        return value, gradient

    def never(*_):
        raise AssertionError("not captured")

    plain = [value_and_gradient(log_b + shift) for shift in shifts]
    for function in (torch.vmap(value_and_gradient), capture(torch.vmap(value_and_gradient), log_b + shifts, otherwise=never)):
        values, gradients = function(log_b + shifts)
        torch.testing.assert_close(values, torch.stack([p[0] for p in plain]), rtol=1e-13, atol=0)
        torch.testing.assert_close(gradients, torch.stack([p[1] for p in plain]), rtol=1e-11, atol=1e-13)
    one = capture(value_and_gradient, log_b, otherwise=never)
    torch.testing.assert_close(one(log_b + shifts[0])[1], plain[0][1], rtol=1e-11, atol=1e-13)
    functions = (hm.log_predictive, hm.filtered, hm.smoothed, hm.pair_marginals, hm.leave_one_out, hm.sequence_log_likelihood)
    for function in functions:
        batched = torch.vmap(lambda b, f=function: f(initial, transition, b, starts))(log_b + shifts)
        for found, shift in zip(batched, shifts, strict=True):
            torch.testing.assert_close(found, function(initial, transition, log_b + shift, starts), rtol=1e-11, atol=1e-12)
    paths, levels = torch.vmap(lambda b: hm.viterbi(initial, transition, b, starts))(log_b + shifts)
    for path, level, shift in zip(paths, levels, shifts, strict=True):
        own = hm.viterbi(initial, transition, log_b + shift, starts)
        assert torch.equal(path, own[0])
        assert float(level) == pytest.approx(float(own[1]))
    of_paths = torch.vmap(lambda z, b: hm.HiddenPath(initial, transition, b, starts).log_prob(z))(paths, log_b + shifts)
    assert torch.isfinite(of_paths).all()
