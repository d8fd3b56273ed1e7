"""Tests of ChEES with many chains in one batch: correctness, tuning, resuming and failing chains."""

from dataclasses import replace

import numpy as np
import pytest
from helpers import all_arrays

from latentlab.errors import ConfigError
from latentlab.fit import fit
from latentlab.inference import chees as chees_module
from latentlab.inference import many_chains
from latentlab.inference.chees import ChEES
from latentlab.inference.density import Density
from latentlab.inference.many_chains import Moments, State, leapfrog, sample
from latentlab.models.ppca import PPCA
from latentlab.results.convergence import ess_bulk

MEAN = np.array([1.0, -2.0, 0.5])
FACTOR = np.array([[1.0, 0.0, 0.0], [0.9, 0.3, 0.0], [0.0, 0.02, 0.1]])
PRECISION = np.linalg.inv(FACTOR @ FACTOR.T)


def normal(points):
    e = points - MEAN
    pulled = e @ PRECISION
    return -0.5 * (e * pulled).sum(-1), -pulled


def run_chains(settings, density, starts, seed=0):
    state = State.at(starts, settings.target_accept)
    rows = [row for row in sample(state, density, np.random.default_rng(seed), settings) if row is not None]
    return state, {name: np.stack([row[name] for row in rows], axis=1) for name in rows[0]}


def test_moments_of_a_correlated_normal_are_correct(rng):
    """9 comparisons at 5 standard errors: 5e-6 false alarms."""
    settings = ChEES(n_chains=32, n_superchains=4, n_warmup=300, n_draws=300)
    state, arrays = run_chains(settings, normal, np.repeat(rng.normal(size=(4, 3)) * 3, 8, axis=0))
    e = np.linalg.solve(FACTOR, (arrays["u"] - MEAN).reshape(-1, 3).T).T.reshape(arrays["u"].shape)
    products = np.stack([e[..., i] * e[..., j] for i in range(3) for j in range(i)], axis=-1)
    for values, mean in ((e, 0.0), (e**2, 1.0), (products, 0.0)):
        error = values.std(axis=(0, 1)) / np.sqrt(ess_bulk(values))
        assert (np.abs(values.mean(axis=(0, 1)) - mean) < 5 * error).all()
    harmonic = 1 / (1 / np.maximum(arrays["acceptance_rate"], 0.01)).mean(axis=0)
    assert abs(harmonic.mean() - 0.8) < 0.08
    assert ess_bulk(e).min() > 0.3 * e[..., 0].size  # the metric has made it round, and few steps are enough
    assert arrays["n_steps"].mean() < 4
    assert 1.0 < state.length < 4.0


def test_wrongly_scaled_momenta_sample_slowly(rng, monkeypatch):
    settings = ChEES(n_chains=32, n_superchains=4, n_warmup=100, n_draws=200)
    monkeypatch.setattr(many_chains, "_momentum_change", lambda gradient, root: gradient)
    _, arrays = run_chains(settings, normal, np.repeat(rng.normal(size=(4, 3)), 8, axis=0))
    # wrong dynamics are still corrected by acceptance: it is slow, and not biased
    e = np.linalg.solve(FACTOR, (arrays["u"] - MEAN).reshape(-1, 3).T).T.reshape(arrays["u"].shape)
    assert ess_bulk(e).min() < 0.1 * e[..., 0].size


@pytest.mark.parametrize("dense", [True, False])
def test_leapfrog_is_reversible_and_conserves_energy(dense, rng):
    """For a normal density, leapfrog changes the energy by at most the share step^2 / 4 times the largest curvature."""
    state = State.at(rng.normal(size=(5, 3)) + MEAN, 0.8)
    state.lp, state.gradient = normal(state.u)
    state.root, state.step_size = (FACTOR if dense else np.diag(FACTOR).copy()), 0.05
    p = rng.normal(size=(5, 3))
    end, momentum, lp, gradient = leapfrog(state, p, 20, normal)
    energy = [0.5 * (q**2).sum(1) - level for q, level in ((p, state.lp), (momentum, lp))]
    root = FACTOR if dense else np.diag(state.root)
    curvature = np.linalg.eigvalsh(root.T @ PRECISION @ root).max()
    np.testing.assert_allclose(energy[0], energy[1], rtol=1.01 * 0.05**2 / 4 * curvature)
    back = replace(state, u=end, lp=lp, gradient=gradient)
    home, turned, _, _ = leapfrog(back, -momentum, 20, normal)
    np.testing.assert_allclose(home, state.u, atol=1e-10)
    np.testing.assert_allclose(turned, -p, atol=1e-10)


def test_non_finite_proposals_of_a_chain_do_not_affect_others(rng):
    def walled(points):
        value, gradient = normal(points)
        return np.where(points[:, 0] > 1e3, np.nan, value), np.where(points[:, :1] > 1e3, np.nan, gradient)

    settings = ChEES(n_chains=4, n_superchains=4, n_warmup=0, n_draws=5)
    starts = rng.normal(size=(4, 3)) + MEAN
    lost = starts.copy()
    lost[2, 0] = 1e9
    apart = []
    for begin in (starts, lost):
        state = State.at(begin, 0.8)
        state.step_size = 0.05
        state.lp, state.gradient = walled(begin)
        rows = [row for row in sample(state, walled, np.random.default_rng(0), settings) if row is not None]
        apart.append(np.stack([row["u"] for row in rows], axis=1))
    assert (apart[1][2] == lost[2]).all()
    np.testing.assert_array_equal(apart[0][[0, 1, 3]], apart[1][[0, 1, 3]])


def quartic(points):
    return -0.25 * (points**4).sum(-1), -(points**3)


@pytest.mark.parametrize("harmonic", [True, False])
def test_chains_with_distant_starts_converge(harmonic, rng, monkeypatch):
    if not harmonic:  # the mean of all is high enough where seven superchains are well, and the eighth never moves
        monkeypatch.setattr(many_chains, "_mean", lambda accept: float(np.mean(accept)))
    starts = rng.normal(size=(8, 4))
    starts[3] = 300.0
    settings = ChEES(n_chains=32, n_superchains=8, n_warmup=200, n_draws=20)
    _, arrays = run_chains(settings, quartic, np.repeat(starts, 4, axis=0))
    assert bool((np.abs(arrays["u"]) < 5).all()) == harmonic


def test_the_variance_is_about_each_chains_own_mean(rng):
    points = rng.normal(size=(40, 6, 3)) @ FACTOR.T + 100 * rng.normal(size=(6, 3))  # six modes, far apart
    moments = Moments((6, 3))
    for at in points:
        moments.add(at)
    centered = points - points.mean(axis=0)
    np.testing.assert_allclose(moments.scatter, np.einsum("tci,tcj->ij", centered, centered), rtol=1e-8)
    root = moments.root()
    np.testing.assert_allclose(np.diag(root @ root.T), (np.diag(moments.scatter) + 5e-3) / (6 * 39 + 5), rtol=1e-12)


def test_trajectory_lengths_vary(rng):
    """Lengths are varied by Halton's sequence, since a constant length can resonate with the density."""
    state = State.at(rng.normal(size=(2, 3)) + MEAN, 0.8)
    state.lp, state.gradient = normal(state.u)
    state.step_size, state.length = 0.013, 2.0
    rows = sample(state, normal, rng, ChEES(n_chains=2, n_superchains=1, n_warmup=0, n_draws=5))
    assert [row["n_steps"].tolist() for row in rows] == [
        [n, n] for n in (77, 39, 116, 20, 97)
    ]  # 1/2, 1/4, 3/4, 1/8, 5/8 of 153.8


def test_the_trajectory_length_is_reset_with_each_metric(rng, monkeypatch):
    """Without the reset, an early metric can lead to 230 steps an iteration for PPCA instead of 10."""
    monkeypatch.setattr(many_chains, "_adapt_length", lambda state, *_, **__: setattr(state, "length", 6.0))
    state = State.at(rng.normal(size=(4, 3)), 0.8)
    rows = sample(state, normal, rng, ChEES(n_chains=4, n_superchains=1, n_warmup=100, n_draws=1))
    begun = [i for i, row in enumerate(rows, 1) if row is None and state.length == many_chains.FIRST_LENGTH]
    assert begun == [10, 20, 40, 70]


def test_chains_of_a_superchain_are_adjacent_and_share_a_start(iris, monkeypatch):
    seen = []

    def stopped(state, *_):
        seen.append(state.u)
        raise KeyboardInterrupt

    monkeypatch.setattr(chees_module, "sample", stopped)
    with pytest.raises(KeyboardInterrupt):
        fit(PPCA(2), iris, ChEES(n_chains=6, n_superchains=3), progress=False)
    u = seen[0].reshape(3, 2, -1)
    assert (u == u[:, :1]).all()
    assert len(np.unique(u[:, 0, 0])) == 3


def test_metrics_of_many_coordinates_are_diagonal(monkeypatch, rng):
    monkeypatch.setattr(many_chains, "DENSE", 2)
    settings = ChEES(n_chains=16, n_superchains=2, n_warmup=200, n_draws=50)
    state, arrays = run_chains(settings, normal, np.repeat(rng.normal(size=(2, 3)), 8, axis=0))
    assert state.root.shape == (3,)
    assert np.abs(arrays["u"].mean(axis=(0, 1)) - MEAN).max() < 0.3


@pytest.mark.parametrize("n_warmup", [0, 1, 7, 20])
def test_a_short_warm_up_gives_finite_draws(n_warmup, rng):
    settings = ChEES(n_chains=4, n_superchains=2, n_warmup=n_warmup, n_draws=30)
    state, arrays = run_chains(settings, normal, np.repeat(MEAN + rng.normal(size=(2, 3)) @ FACTOR.T, 2, axis=0))
    assert np.isfinite(arrays["u"]).all()
    assert np.isfinite([state.length, state.step_size]).all()
    if n_warmup in (0, 20):  # after the first iterations dual averaging tries ten times the step, and no chain need move
        assert (arrays["u"][:, 0] != arrays["u"][:, -1]).any()


def test_the_metric_of_constant_chains_is_positive():
    moments = Moments((4, 3))
    for _ in range(10):
        moments.add(np.ones((4, 3)))
    assert (np.diag(moments.root()) > 1e-3).all()


METHOD = ChEES(n_chains=8, n_superchains=2, n_warmup=40, n_draws=20)


@pytest.fixture(scope="module")
def whole(iris):
    return fit(PPCA(2), iris, METHOD, seed=3, progress=False)


@pytest.mark.parametrize("n_calls", [60, 500])
def test_an_interrupted_chees_fit_resumes_to_the_same_draws(whole, n_calls, iris, tmp_path, monkeypatch):
    gradient = Density.batch_value_and_grad

    def interrupted(after):
        calls = iter(range(after))

        def stopped(self, points):
            if next(calls, None) is None:
                raise KeyboardInterrupt
            return gradient(self, points)

        with monkeypatch.context() as patch:
            patch.setattr(Density, "batch_value_and_grad", stopped)
            patch.setattr(chees_module, "CHECKPOINT_SECONDS", 0.0)
            with pytest.raises(KeyboardInterrupt):
                fit(PPCA(2), iris, METHOD, seed=3, progress=False, checkpoint=tmp_path)

    interrupted(n_calls)
    assert (tmp_path / "chains-under-way.safetensors").is_file()
    interrupted(30)  # and is stopped once more, right after it went on
    again = all_arrays(fit(PPCA(2), iris, METHOD, seed=3, progress=False, checkpoint=tmp_path))
    for name, array in all_arrays(whole).items():
        assert array.tobytes() == again[name].tobytes(), name


def test_a_short_run_gives_the_first_draws_of_a_long_run(whole, iris):
    short = fit(PPCA(2), iris, replace(METHOD, n_draws=7), seed=3, progress=False)
    for name in ("W", "sigma"):
        np.testing.assert_array_equal(short.data["posterior"][name], whole.data["posterior"][name][:, :7])


def test_the_result_has_the_required_statistics(whole):
    stats = whole.data["sample_stats"]
    assert {"lp", "diverging", "energy", "n_steps", "step_size", "acceptance_rate"} <= set(stats.data_vars)
    assert stats["diverging"].dtype == bool
    assert whole.data["posterior"].sizes["chain"] == 8
    table = whole.diagnostics().set_index("check")
    assert table.loc["nested R-hat", "threshold"] == "< 1.01"


@pytest.mark.slow
def test_ppca_sampled_by_chees_matches_nuts(iris):
    """With one axis, for which NUTS is fast; two axes are compared with a reference in `test_reference`."""
    from latentlab.inference.nuts import NUTS

    many = fit(PPCA(1), iris, ChEES(n_chains=32, n_superchains=4, n_draws=150), seed=0, progress=False)
    one = fit(PPCA(1), iris, NUTS(n_chains=4, n_warmup=300, n_draws=400), seed=0, progress=False)
    assert many.converged, many.diagnostics()
    for f in (
        lambda v: v["sigma"],
        lambda v: np.einsum("cdij,cdkj->cdik", v["W"], v["W"])[..., np.tril_indices(4)[0], np.tril_indices(4)[1]],
    ):
        means, errors = [], []
        for result in (many, one):
            values = f({name: result.data["posterior"][name].values for name in ("W", "sigma")})
            values = values.reshape(*values.shape[:2], -1)
            means.append(values.mean(axis=(0, 1)))
            errors.append(values.std(axis=(0, 1)) / np.sqrt(ess_bulk(values)))
        limit = 5.5 * np.hypot(*errors)  # 11 comparisons: 4e-7
        assert (np.abs(means[0] - means[1]) < limit).all()
        assert (limit < 0.3 * values.std(axis=(0, 1))).all()  # a mean that is off by a third of an sd would be seen


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: ChEES(n_chains=10, n_superchains=4), "ChEES: `n_chains` must be a multiple of `n_superchains`; got 10 and 4"),
        (lambda: ChEES(target_accept=1.0), "ChEES: `target_accept` must be a finite number above 0 and below 1"),
        (lambda: ChEES(n_draws=0), "ChEES: `n_draws` must be a whole number of at least 1"),
    ],
)
def test_invalid_chees_settings_are_refused(make, said):
    with pytest.raises(ConfigError, match=said):
        make()
