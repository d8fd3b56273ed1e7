"""Tests of kernels against log likelihoods in torch: values at 1e-10, gradients at 1e-9."""

import os
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from helpers import sequence_starts

from latentlab.distributions import hidden_markov as hm
from latentlab.distributions import kernels
from latentlab.distributions.components import BernoulliComponents, GaussianComponents
from latentlab.distributions.hidden_markov_series import HiddenMarkovSeries
from latentlab.distributions.mixture import Mixture
from latentlab.inference.capture import capture
from latentlab.seeds import one_thread

pytest.importorskip("numba")


def assert_values_close(found, expected, *, value=1e-10, gradient=1e-9):
    """Values relative; gradients relative to the largest entry of each."""
    assert float(found[0]) == pytest.approx(float(expected[0]), rel=value, abs=1e-12)
    for one, other in zip(found[1], expected[1], strict=True):
        torch.testing.assert_close(one, other, rtol=gradient, atol=gradient * max(1.0, float(other.abs().max())))


def value_and_grad(function, parameters):
    gradients, value = torch.func.grad_and_value(function, argnums=tuple(range(len(parameters))))(*parameters)
    return value, gradients


def no_kernels(monkeypatch):
    monkeypatch.setattr(kernels, "available_for", lambda *tensors: False)


def chain(rng, n_states, lengths, *, sharpness=1.5, kind="dense", missing=()):
    transition = rng.dirichlet(np.ones(n_states), size=n_states)
    initial = rng.dirichlet(np.ones(n_states))
    if kind == "sticky":
        transition = 0.999 * np.eye(n_states) + 0.001 * transition
    if kind == "left to right":
        transition = 0.9 * np.eye(n_states) + 0.1 * np.eye(n_states, k=1)
        transition[-1, -1] = 1
        initial = np.eye(n_states)[0]
    if kind == "forbidden":
        transition[0, 1] = transition[2, 0] = transition[2, 1] = 0
        transition /= transition.sum(1, keepdims=True)
    log_b = sharpness * rng.standard_normal((sum(lengths), n_states))
    log_b[list(missing)] = 0
    with np.errstate(divide="ignore"):
        return *(torch.from_numpy(a) for a in (np.log(initial), np.log(transition), log_b)), sequence_starts(lengths)


CHAINS = {
    "dense": {"n_states": 3, "lengths": [200]},
    "one state": {"n_states": 1, "lengths": [20]},
    "one step": {"n_states": 3, "lengths": [1]},
    "one state, one step": {"n_states": 1, "lengths": [1]},
    "ragged": {"n_states": 3, "lengths": [1, 40, 1, 1, 7, 90]},
    "all of length 1": {"n_states": 4, "lengths": [1] * 30},
    "missing steps": {"n_states": 3, "lengths": [20, 10], "missing": [0, 5, 6, 7, 19, 20, 29]},
    "sticky": {"n_states": 5, "lengths": [300, 30], "kind": "sticky"},
    "left to right": {"n_states": 4, "lengths": [60, 50], "kind": "left to right"},
    "forbidden": {"n_states": 3, "lengths": [60, 3], "kind": "forbidden"},
    "sharp": {"n_states": 4, "lengths": [100, 30], "sharpness": 300.0},
    "sharp, left to right": {"n_states": 4, "lengths": [100, 30], "sharpness": 300.0, "kind": "left to right"},
    "sharp, forbidden": {"n_states": 3, "lengths": [100, 30], "sharpness": 300.0, "kind": "forbidden"},
    "many states": {"n_states": 24, "lengths": [70]},
}


@pytest.mark.parametrize("case", CHAINS.values(), ids=list(CHAINS))
def test_kernel_of_a_hidden_markov_chain_equals_the_scan(case, rng):
    *parameters, starts = chain(rng, **case)
    found = value_and_grad(lambda *p: hm.log_likelihood(*p, starts), parameters)
    assert_values_close(found, value_and_grad(lambda *p: hm.log_likelihood_by_scan(*p, starts), parameters))
    initial, transition, smoothed = found[1]
    assert float(initial.sum()) == pytest.approx(int(starts.sum()))
    assert float(transition.sum()) == pytest.approx(int((~starts).sum()))
    torch.testing.assert_close(smoothed, hm.smoothed(*parameters, starts), rtol=1e-8, atol=1e-9)
    assert bool((transition[torch.isinf(parameters[1])] == 0).all())


@pytest.mark.parametrize("drops", [[5000], [400, 303], [200, 200, 200, 103], [800], [60] * 12], ids=str)
def test_paths_with_tiny_probabilities_can_recover(drops):
    """State 0 has probability e^-701 at first, and states never change."""
    never = -torch.inf
    initial, transition = torch.tensor([0.5, 0.5]).double().log(), torch.tensor([[0.0, never], [never, 0.0]]).double()
    log_b = torch.tensor([[-701.0, 0.0], [0.0, 0.0], *[[0.0, -float(drop)] for drop in drops]]).double()
    starts = sequence_starts([len(log_b)])
    value, gradients = value_and_grad(lambda *p: hm.log_likelihood(*p, starts), (initial, transition, log_b))
    paths = np.array([-701.0, -float(sum(drops))])
    assert float(value) == pytest.approx(np.logaddexp(*paths) + np.log(0.5), rel=1e-13)
    probability = torch.from_numpy(np.exp(paths - np.logaddexp(*paths)))
    torch.testing.assert_close(gradients[2], probability.expand(len(log_b), 2), rtol=1e-11, atol=1e-12)


def test_products_that_overflow_are_computed_in_logs():
    """Each factor is representable, but their product in forward and backward pass is not."""
    never = -torch.inf
    initial = torch.tensor([0.5, 0.5, 0.0]).double().log()
    rows = [[0.0, -288.0, 0.0], [-216.0, -216.0, 0.0], [-216.0, -216.0, 0.0], [-190.0, -138.0, 0.0], [-144.0, 0.0, never]]
    log_b, transition = torch.tensor(rows).double(), torch.eye(3).double().log()
    value, gradients = value_and_grad(lambda *p: hm.log_likelihood(*p, sequence_starts([5])), (initial, transition, log_b))
    assert float(value) == pytest.approx(-766 + np.log(0.5), rel=1e-14)
    torch.testing.assert_close(gradients[1], torch.diag(torch.tensor([4.0, 0.0, 0.0])).double())
    torch.testing.assert_close(gradients[2], torch.tensor([1.0, 0.0, 0.0]).double().expand(5, 3))


def test_many_small_likelihoods_in_a_row_do_not_underflow():
    """At each step the only possible state has a likelihood e^-220 times that of another state."""
    never = -torch.inf
    initial, transition = torch.tensor([never, never, 0.0]).double(), torch.eye(3).double().log()
    log_b = torch.tensor([[0.0, -400.0, -220.0], [-400.0, 0.0, -220.0]] * 3).double()
    value, gradients = value_and_grad(lambda *p: hm.log_likelihood(*p, sequence_starts([6])), (initial, transition, log_b))
    assert float(value) == -220 * 6
    torch.testing.assert_close(gradients[2], torch.tensor([0.0, 0.0, 1.0]).double().expand(6, 3))


def test_the_exponential_is_accurate_to_the_last_digits():
    from latentlab.distributions import compiled_exponentials

    x = np.concatenate(
        [np.linspace(-700, 1, 100_001), np.linspace(-1e-3, 1e-3, 1001), [0.0, -0.0, np.nan, -np.inf, -701, -1e300]]
    )
    found = x.copy()
    compiled_exponentials.exp_all(found, len(x))
    assert np.isnan(found[-4])
    assert found[-3:].tolist() == [0, 0, 0]
    np.testing.assert_allclose(found[:-4], np.exp(x[:-4]), rtol=5e-16)


def test_impossible_data_give_minus_infinity_and_nan_stays_nan():
    never = -torch.inf
    *parameters, starts = chain(np.random.default_rng(0), 2, [4, 3])
    shut = parameters[2].clone()
    shut[2] = never
    value, gradients = value_and_grad(lambda *p: hm.log_likelihood(*p, starts), (*parameters[:2], shut))
    assert float(value) == never
    assert all(bool(torch.isfinite(g).all()) for g in gradients)
    for i in range(3):
        broken = [p.clone() for p in parameters]
        broken[i].view(-1)[1] = torch.nan
        assert torch.isnan(hm.log_likelihood(*broken, starts))


def test_the_kernel_is_accurate_for_100000_steps(rng):
    *parameters, starts = chain(rng, 3, [100_000], sharpness=3.0)
    found = value_and_grad(lambda *p: hm.log_likelihood(*p, starts), parameters)
    assert_values_close(found, value_and_grad(lambda *p: hm.log_likelihood_by_scan(*p, starts), parameters))


# -- Gaussian emissions


COVARIANCES = ["spherical", "diagonal", "full", "tied"]


def components(rng, covariance, n_components, n_features, spread=2.0):
    """Means, standard deviations and, where there are some, factors of the correlations."""
    mu = spread * rng.standard_normal((n_components, n_features))
    sigma = np.exp(0.3 * rng.standard_normal({"spherical": (n_components, 1)}.get(covariance, (n_components, n_features))))
    if covariance == "tied":
        sigma = sigma[0]
    parameters = [torch.from_numpy(mu), torch.from_numpy(sigma)]
    if covariance in ("full", "tied"):
        shape = (n_components, n_features, n_features) if covariance == "full" else (n_features, n_features)
        corr = np.tril(rng.standard_normal(shape), -1) + 2 * np.eye(n_features)
        parameters.append(torch.from_numpy(corr / np.linalg.norm(corr, axis=-1, keepdims=True)))
    return parameters


def weights(rng, *shape):
    return torch.from_numpy(np.log(rng.dirichlet(np.ones(shape[-1]), size=shape[:-1])))


@pytest.mark.parametrize("covariance", COVARIANCES)
@pytest.mark.parametrize(("n_components", "n_features", "n_units"), [(3, 2, 50), (1, 1, 1), (4, 1, 30), (2, 5, 40)])
def test_kernel_of_a_gaussian_mixture_equals_the_sum_over_units(covariance, n_components, n_features, n_units, rng, monkeypatch):
    monkeypatch.setattr(kernels, "AT_ONCE", 13)
    x = torch.from_numpy(3 * rng.standard_normal((n_units, n_features)))
    parameters = [weights(rng, n_components), *components(rng, covariance, n_components, n_features)]

    def by_units(log_weights, *emission):
        return Mixture(log_weights, GaussianComponents(*emission)).log_prob(x).sum()

    def in_one_pass(log_weights, *emission):
        return Mixture(log_weights, GaussianComponents(*emission)).log_prob_sum(x)

    found = value_and_grad(in_one_pass, parameters)
    assert_values_close(found, value_and_grad(by_units, parameters))
    assert float(found[1][0].sum()) == pytest.approx(n_units)


@pytest.mark.parametrize("covariance", COVARIANCES)
@pytest.mark.parametrize("lengths", [[40], [1, 20, 1, 9]], ids=str)
def test_kernel_of_a_gaussian_hidden_markov_chain_equals_the_scan(covariance, lengths, rng, monkeypatch):
    x, starts = torch.from_numpy(3 * rng.standard_normal((sum(lengths), 2))), sequence_starts(lengths)
    parameters = [weights(rng, 3), weights(rng, 3, 3), *components(rng, covariance, 3, 2)]

    def series(initial, transition, *emission):
        return HiddenMarkovSeries(initial, transition, GaussianComponents(*emission), starts).log_prob_sum(x)

    found = value_and_grad(series, parameters)
    no_kernels(monkeypatch)
    assert_values_close(found, value_and_grad(series, parameters))


def test_missing_entries_and_other_emissions_do_not_use_the_kernel(rng):
    x = torch.from_numpy(rng.standard_normal((30, 2)))
    observed = torch.from_numpy(rng.random((30, 2)) < 0.7)
    gaussian = GaussianComponents(*components(rng, "full", 3, 2))
    yes = (x > 0).double()
    bernoulli = BernoulliComponents(torch.from_numpy(rng.uniform(0.1, 0.9, (3, 2))))
    initial, transition, starts = weights(rng, 3), weights(rng, 3, 3), sequence_starts([20, 10])
    for data, emission, seen in ((x, gaussian, observed), (yes, bernoulli, None), (yes, bernoulli, observed)):
        mixture = Mixture(initial, emission, seen)
        assert float(mixture.log_prob_sum(data)) == pytest.approx(float(mixture.log_prob(data).sum()), rel=1e-12)
        series = HiddenMarkovSeries(initial, transition, emission, starts, seen)
        assert float(series.log_prob_sum(data)) == pytest.approx(float(series.log_prob(data).sum()), rel=1e-12)


def test_far_outliers_and_extreme_scales_give_finite_values(rng):
    x = torch.tensor([[1e6, 0.0], [0.0, 1.0], [-2e6, 3.0]]).double()  # no two whose derivatives cancel
    parameters = [weights(rng, 3), *components(rng, "full", 3, 2)]
    parameters[2] = parameters[2] * torch.tensor([1e-3, 1.0]).double()
    found = value_and_grad(lambda w, *e: Mixture(w, GaussianComponents(*e)).log_prob_sum(x), parameters)
    assert_values_close(found, value_and_grad(lambda w, *e: Mixture(w, GaussianComponents(*e)).log_prob(x).sum(), parameters))


# -- in torch


def mixture_of(x):
    return lambda w, mu, sigma, corr: Mixture(w, GaussianComponents(mu, sigma, corr)).log_prob_sum(x)


def batch_of(rng, n):
    one = [[weights(rng, 3), *components(rng, "full", 3, 2)] for _ in range(n)]
    return [torch.stack(each) for each in zip(*one, strict=True)]


def test_a_batched_kernel_equals_single_calls_for_any_order_of_transforms(rng):
    x = torch.from_numpy(rng.standard_normal((6, 20, 2)))
    parameters = batch_of(rng, 6)
    argnums = (0, 1, 2, 3)
    single = [value_and_grad(mixture_of(x[i]), [p[i] for p in parameters]) for i in range(6)]
    same = [value_and_grad(mixture_of(x[0]), [p[i] for p in parameters]) for i in range(6)]

    def check(values, gradients, expected):
        for i, (value, gradient) in enumerate(expected):
            assert torch.equal(values.reshape(-1)[i], value)
            for g, e in zip(gradients, gradient, strict=True):
                assert torch.equal(g.reshape(6, *e.shape)[i], e)

    gradients, values = torch.vmap(torch.func.grad_and_value(mixture_of(x[0]), argnums))(*parameters)
    check(values, gradients, same)
    both = torch.func.grad_and_value(lambda data, *p: mixture_of(data)(*p), (1, 2, 3, 4))
    gradients, values = torch.vmap(both)(x, *parameters)
    check(values, gradients, single)
    # vmap of vmap, the data with the outer batch only, the inner only, and both
    pairs = [p.reshape(2, 3, *p.shape[1:]) for p in parameters]
    gradients, values = torch.vmap(torch.vmap(both))(x.reshape(2, 3, 20, 2), *pairs)
    check(values, gradients, single)
    for in_dims, data in (((0, None), x[:2]), ((None, 0), x[:3])):
        inner = torch.vmap(both, in_dims=(in_dims[1], 0, 0, 0, 0))
        gradients, values = torch.vmap(inner, in_dims=(in_dims[0], 0, 0, 0, 0))(data, *pairs)
        of = [data[i // 3 if in_dims[0] == 0 else i % 3] for i in range(6)]
        check(values, gradients, [value_and_grad(mixture_of(of[i]), [p[i] for p in parameters]) for i in range(6)])
    # the gradient of a sum over a batch, and some parameters without a batch
    total = torch.func.grad(lambda *p: torch.vmap(mixture_of(x[0]))(*p).sum(), argnums)(*parameters)
    check(torch.stack([s[0] for s in same]), total, same)
    found = torch.vmap(mixture_of(x[0]), in_dims=(0, None, None, None))(parameters[0], *[p[1] for p in parameters[1:]])
    expected = [mixture_of(x[0])(parameters[0][i], *[p[1] for p in parameters[1:]]) for i in range(6)]
    assert torch.equal(found, torch.stack(expected))


def test_second_derivatives_match_the_torch_graph(rng, monkeypatch):
    x, starts = torch.from_numpy(rng.standard_normal((12, 2))), sequence_starts([8, 4])
    sizes = (3, 9, 6, 6)
    flat = torch.cat([p.reshape(-1) for p in (weights(rng, 3), weights(rng, 3, 3), *components(rng, "diagonal", 3, 2))])

    def parts(u):
        initial, transition, mu, sigma = torch.split(u, sizes)
        return initial, transition.reshape(3, 3), GaussianComponents(mu.reshape(3, 2), sigma.reshape(3, 2))

    def series(u):
        initial, transition, emission = parts(u)
        return HiddenMarkovSeries(initial, transition, emission, starts).log_prob_sum(x) ** 2

    def chain_of(u):
        initial, transition, emission = parts(u)
        return hm.log_likelihood(initial, transition, emission.log_prob(x), starts).exp()

    def mixture(u):
        initial, _, emission = parts(u)
        return Mixture(initial, emission).log_prob_sum(x)

    def both(u):
        return torch.vmap(series)(torch.stack([u, 0.9 * u])).sum()

    functions = (series, chain_of, mixture, both)
    found = [torch.func.jacrev(torch.func.grad(f))(flat) for f in functions]
    plain = [torch.autograd.functional.hessian(f, flat) for f in functions[:3]]
    batched = torch.vmap(torch.func.jacrev(torch.func.grad(series)))(torch.stack([flat, 0.9 * flat]))
    no_kernels(monkeypatch)
    for f, hessian in zip(functions, found, strict=True):
        expected = torch.func.jacrev(torch.func.grad(f))(flat)
        torch.testing.assert_close(hessian, expected, rtol=1e-8, atol=1e-8 * float(expected.abs().max()))
    for hessian, other in zip(found, plain, strict=False):
        torch.testing.assert_close(hessian, other, rtol=1e-10, atol=1e-10 * float(other.abs().max()))
    torch.testing.assert_close(batched[0], found[0], rtol=1e-10, atol=1e-10)


def test_a_captured_graph_contains_the_kernel_as_one_node(rng, caplog):
    from torch.fx.experimental.proxy_tensor import make_fx

    x = torch.from_numpy(rng.standard_normal((50, 2)))
    parameters = batch_of(rng, 4)

    def slopes(*p):
        gradients, values = torch.vmap(torch.func.grad_and_value(mixture_of(x), (0, 1, 2, 3)))(*p)
        return values, *gradients

    fast = capture(slopes, *parameters)
    assert not caplog.records  # nothing was said of not being captured
    for one, other in zip(fast(*parameters), slopes(*parameters), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-13, atol=1e-13)
    targets = [str(node.target) for node in make_fx(slopes)(*parameters).graph.nodes]
    assert sum("gaussian_mixture" in target for target in targets) == 1
    assert not any("logsumexp" in target for target in targets)


def test_derivatives_with_respect_to_the_data_are_refused(rng):
    x = torch.from_numpy(rng.standard_normal((10, 2)))
    parameters = [p[0] for p in batch_of(rng, 1)]
    with pytest.raises(NotImplementedError, match="derivatives with respect to the data are not implemented"):
        torch.func.grad(lambda data: mixture_of(data)(*parameters))(x)


def test_kernels_support_float64_on_the_cpu_only(monkeypatch):
    assert kernels.available_for(torch.zeros(1, dtype=torch.float64))
    assert not kernels.available_for(torch.zeros(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float32))
    assert not kernels.available_for(torch.zeros(1, dtype=torch.float64, device="meta"))
    monkeypatch.setattr(kernels, "compiled_loops", lambda: None)
    assert not kernels.available_for(torch.zeros(1, dtype=torch.float64))


def in_a_new_process(code, **environment):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_numba_is_imported_at_the_first_call_only():
    code = """
import sys, torch
import latentlab.distributions.hidden_markov as hm, latentlab.distributions.mixture, latentlab.models.gaussian_hmm
print("numba" in sys.modules)
half = torch.full((2, 2), 0.5, dtype=torch.float64).log()
print(float(hm.log_likelihood(half[0], half, half, torch.tensor([True, False]))), "numba" in sys.modules)
"""
    first, value, second = in_a_new_process(code)
    assert (first, second) == ("False", "True")
    assert float(value) == pytest.approx(np.log(0.25))


def test_without_numba_the_scan_is_used():
    code = """
import sys, torch
sys.modules["numba"] = None
import latentlab.distributions.hidden_markov as hm
half = torch.full((2, 2), 0.5, dtype=torch.float64).log()
print(float(hm.log_likelihood(half[0], half, half, torch.tensor([True, False]))))
"""
    assert float(in_a_new_process(code)[0]) == pytest.approx(np.log(0.25))


def test_kernels_work_without_a_writable_cache():
    """No folder for the cache of compiled code is writable."""
    code = """
import numba.core.caching as caching
caching._CacheLocator.ensure_cache_path = lambda self: (_ for _ in ()).throw(OSError("read-only"))
import numpy as np
from latentlab.distributions import compiled_exponentials
from latentlab.distributions import compiled_gaussians
out = np.zeros((1, 1, 1))
compiled_gaussians.inverses(np.full((1, 1, 1), 4.0), out)
print(out[0, 0, 0])
"""
    assert in_a_new_process(code) == ["0.25"]


def test_kernel_results_do_not_depend_on_the_number_of_threads(rng):
    *parameters, starts = chain(rng, 3, [500, 200])
    x = torch.from_numpy(rng.standard_normal((9000, 2)))
    mixture = [p[0] for p in batch_of(rng, 1)]
    before = torch.get_num_threads()
    found = []
    try:
        for n in (1, 2):
            torch.set_num_threads(n)
            found.append([value_and_grad(lambda *p: hm.log_likelihood(*p, starts), parameters)])
            found[-1].append(value_and_grad(mixture_of(x), mixture))
    finally:
        torch.set_num_threads(before)
    for one, other in zip(*found, strict=True):
        assert torch.equal(one[0], other[0])
        assert all(torch.equal(a, b) for a, b in zip(one[1], other[1], strict=True))


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("n_data", [10, kernels.SHARED])
def test_large_batches_are_divided_among_threads(n_data):
    seen = {}

    def member(parameters, data, gradients):
        number = int(parameters[0][0])
        seen[number] = threading.current_thread().name
        gradients[0][:] = 2.0 * number
        return number + data[0].sum()

    numbers = torch.arange(6, dtype=torch.float64).reshape(2, 3, 1)
    value, gradient = kernels.value_and_gradients(member, (1, 1), 1, numbers, torch.ones(n_data, dtype=torch.float64))
    assert torch.equal(value, numbers[..., 0] + n_data)
    assert torch.equal(gradient, 2 * numbers)
    names = [seen[number] for number in range(6)]
    here = threading.current_thread().name
    assert names == [here] * 6 if n_data == 10 else names[::2] == [here] * 3 and here not in names[1::2]


@pytest.mark.usefixtures("two_threads")
def test_an_error_in_a_thread_is_raised_by_the_call():
    caller = threading.current_thread()

    def member(parameters, data, gradients):
        if threading.current_thread() is not caller:
            raise FloatingPointError("a member")
        return 0.0

    with pytest.raises(FloatingPointError, match="a member"):
        kernels.value_and_gradients(member, (1, 1), 1, torch.zeros(4, 1), torch.zeros(kernels.SHARED))


def test_batch_results_do_not_depend_on_the_number_of_threads(rng, monkeypatch):
    """The number of threads is that of torch outside `one_thread`, in which every fit runs."""
    *parameters, starts = chain(rng, 3, [500, 200])
    shifts = 0.1 * torch.from_numpy(rng.standard_normal((5, 1, 1)))
    before, found, asked = torch.get_num_threads(), [], []
    threads = kernels._threads
    monkeypatch.setattr(kernels, "_threads", lambda process, n: asked.append(n) or threads(process, n))
    try:
        for n in (1, 2):
            torch.set_num_threads(n)
            batch = torch.vmap(lambda shift: hm.log_likelihood(parameters[0], parameters[1], parameters[2] * (1 + shift), starts))
            with one_thread():
                found.append(value_and_grad(lambda s, batch=batch: batch(s).sum(), [shifts]))
            assert set(asked) == ({2} if n == 2 else set())
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1][0], found[1][1][0])
