"""The No-U-Turn transition: exact on known targets, by k Monte Carlo errors at a stated false-alarm rate."""

import numpy as np
import pytest
import torch
from pyro.infer.mcmc import MCMC
from pyro.infer.mcmc import NUTS as PyroNUTS

from latentlab.inference.nuts import drive
from latentlab.inference.trajectory import DualAveraging, State, Tree, Tuning, _join, _leaf, chain, transition, windows
from latentlab.results.convergence import ess_bulk, rhat
from latentlab.seeds import Seeds, isolated

Z_LIMIT = 4.9  # two-sided 1e-6 a comparison


def gaussian(mean, covariance):
    precision = np.linalg.inv(covariance)

    def value_and_grad(points):
        e = points - mean
        return -0.5 * np.einsum("ci,ij,cj->c", e, precision, e), -e @ precision

    return value_and_grad


def skewed(points):
    """Log density of the log of an Exp(1) variable, exp(u - exp(u)); its asymmetry shows sign errors."""
    return (points - np.exp(points)).sum(-1), 1 - np.exp(points)


def sample(value_and_grad, size, *, n_chains=4, n_warmup=300, n_draws=700, seed=0, **settings):
    rngs = [np.random.default_rng([seed, c]) for c in range(n_chains)]
    settings = {"target_accept": 0.8, "max_depth": 10, **settings}
    chains = [chain(r.normal(size=size), np.empty((n_draws, size)), n_warmup=n_warmup, rng=r, **settings) for r in rngs]
    return drive(chains, value_and_grad)


def assert_mean(x, truth, least_ess=200):
    """|mean - truth| within Z_LIMIT standard errors, with enough effective draws to mean something."""
    ess = float(ess_bulk(x))
    assert ess > least_ess, f"only {ess:.0f} effective draws"
    error = (x.mean() - truth) / (x.std(ddof=1) / np.sqrt(ess))
    assert abs(error) < Z_LIMIT, f"mean {x.mean():.4f}, truth {truth:.4f}, {error:.1f} standard errors, ESS {ess:.0f}"


def test_means_and_covariance_of_a_correlated_gaussian_are_correct():
    covariance = np.array([[1.0, 1.8, 0.0], [1.8, 4.0, 0.05], [0.0, 0.05, 0.01]])
    mean = np.array([1.0, -2.0, 0.5])
    u = np.stack([c.u for c in sample(gaussian(mean, covariance), 3)])
    assert float(np.max(rhat(u))) < 1.02
    for i in range(3):
        assert_mean(u[..., i], mean[i])
        for j in range(i, 3):
            assert_mean((u[..., i] - mean[i]) * (u[..., j] - mean[j]), covariance[i, j])


def test_moments_of_an_asymmetric_target_are_correct():
    u = np.stack([c.u for c in sample(skewed, 2, n_draws=6000)])
    assert_mean(u[..., 0], -np.euler_gamma)
    for i in range(2):  # a point of a subtree drawn with the wrong weight makes this 1.44
        assert_mean((u[..., i] + np.euler_gamma) ** 2, np.pi**2 / 6)
    assert_mean(np.exp(u[..., 1]), 1.0)
    assert_mean(np.exp(2 * u[..., 0]), 2.0)


def test_a_chain_does_not_depend_on_the_chains_beside_it():
    alone = sample(skewed, 2, n_chains=1, n_warmup=50, n_draws=50)[0]
    beside = sample(skewed, 2, n_chains=3, n_warmup=50, n_draws=50)[0]
    np.testing.assert_array_equal(alone.u, beside.u)


def test_a_short_chain_gives_the_first_draws_of_a_long_chain():
    short = sample(skewed, 2, n_warmup=60, n_draws=60)
    long = sample(skewed, 2, n_warmup=60, n_draws=120)
    for a, b in zip(short, long, strict=True):
        np.testing.assert_array_equal(a.u, b.u[:60])


def test_the_leapfrog_step_is_reversible():
    value_and_grad = gaussian(np.zeros(2), np.diag([1.0, 4.0]))
    tuning = Tuning(0.3, np.array([1.0, 2.0]))
    u, p = np.array([0.3, -1.0]), np.array([0.5, 0.2])
    value, gradient = value_and_grad(u[None])
    there = step(State(u, p, gradient[0], float(value[0])), 1, tuning, value_and_grad)
    back = step(there, -1, tuning, value_and_grad)
    np.testing.assert_allclose(back.u, u, atol=1e-13)
    np.testing.assert_allclose(back.p, p, atol=1e-13)


def step(state, direction, tuning, value_and_grad):
    leaf = _leaf(state, tuning.leap(forward=direction > 0), 0.0)
    value, gradient = value_and_grad(next(leaf)[None])
    with pytest.raises(StopIteration) as stop:
        leaf.send((float(value[0]), gradient[0]))
    return stop.value.value.proposal


def test_zero_density_is_reported_as_divergence():
    def walled(points):
        value, gradient = gaussian(np.zeros(1), np.eye(1))(points)
        outside = points[:, 0] < 0
        return np.where(outside, -np.inf, value), np.where(outside[:, None], np.nan, gradient)

    rng = np.random.default_rng(1)
    only = drive([chain(np.array([1.0]), np.empty((200, 1)), n_warmup=100, target_accept=0.8, max_depth=6, rng=rng)], walled)[0]
    assert (only.u > 0).all()
    assert np.isfinite(only.stats["lp"]).all()
    assert only.stats["diverging"].sum() > 0


def trajectory_piece(*momenta):
    """Returns a piece of trajectory with these momenta, in order of time."""
    states = [State(np.zeros(1), np.array([p]), np.zeros(1), 0.0) for p in momenta]
    rho = np.array([sum(momenta)])
    return Tree(states[0], states[-1], rho, 0.0, states[0], stop=False, diverging=False, accept=0.0, n_steps=len(momenta))


@pytest.mark.parametrize(
    ("earlier", "later", "turns"),
    [
        ((1.0, 1.0), (1.0, 1.0), False),
        ((1.0, 1.0), (-3.0, 5.0), True),  # the earlier piece with the first point of the later one
        ((5.0, -3.0), (1.0, 1.0), True),  # the last point of the earlier piece with the later one
        ((1.0, -3.0), (1.0, 0.5), True),  # the whole
    ],
)
def test_u_turns_are_checked_across_subtrees(earlier, later, turns):
    for forward, pieces in ((True, (earlier, later)), (False, (later, earlier))):
        near, far = (trajectory_piece(*momenta) for momenta in pieces)
        assert _join(near, far, near.proposal, 0.0, forward=forward).stop == turns


def test_a_trajectory_does_not_retrace_a_circle():
    """A step is 1 / 3.7 of a period: four points close the circle, which the end points alone do not show."""
    value_and_grad, rng = gaussian(np.zeros(2), np.eye(2)), np.random.default_rng(0)
    tuning = Tuning(np.sqrt(2 - 2 * np.cos(2 * np.pi / 3.7)), np.ones(2))
    most = 0
    for u in rng.normal(size=(100, 2)):
        value, gradient = value_and_grad(u[None])
        (end,) = drive([transition(State(u, 0 * u, gradient[0], float(value[0])), tuning, 10, rng)], value_and_grad)
        most = max(most, end.n_steps)
    assert most <= 7


@pytest.mark.parametrize("target", [0.6, 0.95])
def test_acceptance_is_slightly_above_the_target(target):
    found = sample(gaussian(np.zeros(20), np.eye(20)), 20, target_accept=target, n_warmup=800)
    assert -0.03 < np.mean([c.stats["acceptance_rate"].mean() for c in found]) - target < 0.15


def test_the_step_size_matches_pyros_nuts():
    """Compares with Pyro's NUTS; its acceptance is slightly above the target, too.

    The log step of a chain has a standard deviation of 0.08 about its mean: 5 of those of the difference of 8 and 4 chains.
    """
    own = sample(gaussian(np.zeros(20), np.eye(20)), 20, n_chains=8, n_warmup=800)
    assert -0.03 < np.mean([c.stats["acceptance_rate"].mean() for c in own]) - 0.8 < 0.15
    theirs = []
    for seed in range(4):
        with isolated(Seeds(seed)):
            kernel = PyroNUTS(potential_fn=lambda z: 0.5 * (z["u"] ** 2).sum(), target_accept_prob=0.8)
            start = {"u": torch.randn(20)}
            MCMC(kernel, num_samples=1, warmup_steps=500, initial_params=start, disable_progbar=True).run()
        theirs.append(np.log(kernel.step_size))
    gap = np.mean([np.log(c.stats["step_size"][0]) for c in own]) - np.mean(theirs)
    assert abs(gap) < 5 * 0.08 * np.sqrt(1 / 8 + 1 / 4)


def test_metric_windows_double_and_fill_the_warm_up():
    assert windows(1000) == [100, 150, 250, 450, 950]
    assert windows(100) == [90]
    assert windows(10) == []


def test_warm_up_step_size_and_metric_match_their_formulas():
    """The metric uses the draws of each window; the step size is averaged, with a restart after each window."""
    size, n_warmup = 3, 200
    rng, snapshots = np.random.default_rng(0), {}
    made = chain(np.zeros(size), np.empty((2, size)), n_warmup=n_warmup, target_accept=0.8, max_depth=6, rng=rng)
    scale = np.array([0.3, 1.0, 5.0])
    (found,) = drive([made], gaussian(np.zeros(size), np.diag(scale**2)), lambda _, at: snapshots.update({at.iteration: at}))
    assert windows(n_warmup) == [100, 150]
    for begin, end in ((75, 100), (100, 150)):
        n, u = end - begin, np.stack([snapshots[i + 1].state.u for i in range(begin, end)])
        shrunk = np.var(u, axis=0, ddof=1) * n / (n + 5) + 1e-3 * 5 / (n + 5)
        np.testing.assert_allclose(snapshots[end].tuning.variance, shrunk, rtol=1e-12)
        assert snapshots[end].averaging.numbers()[2] == 0
    np.testing.assert_array_equal(snapshots[99].tuning.variance, np.ones(size))
    np.testing.assert_array_equal(snapshots[n_warmup + 2].tuning.variance, snapshots[150].tuning.variance)
    kept = snapshots[n_warmup].averaging.final
    assert found.stats["step_size"].tolist() == [kept, kept]
    assert kept != snapshots[n_warmup].tuning.step_size


def test_dual_averaging_matches_hoffman_and_gelman(rng):
    """Their algorithm 5 with gamma 0.05, t0 10, kappa 0.75, mu = log(10 epsilon): sums over all steps so far, by loops."""
    averaging, accepted = DualAveraging(0.8, 0.25), rng.uniform(size=30)
    errors, logs = [0.0], []
    for m, accept in enumerate(accepted, 1):
        errors.append((1 - 1 / (m + 10)) * errors[-1] + (0.8 - accept) / (m + 10))
        logs.append(np.log(2.5) - np.sqrt(m) / 0.05 * errors[-1])
        assert averaging.update(accept) == pytest.approx(np.exp(logs[-1]))
    mean = 0.0
    for m, log in enumerate(logs, 1):
        mean = m**-0.75 * log + (1 - m**-0.75) * mean
    assert averaging.final == pytest.approx(np.exp(mean))


def test_dual_averaging_without_updates_keeps_the_step_size():
    assert DualAveraging(0.8, 0.25).final == 0.25
