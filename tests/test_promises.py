"""Tests of parts of a fit, each by a number that a plausible bug would change."""

import numpy as np
import oracles
import pyro
import pyro.distributions as dist
import pytest
from scipy import stats
from scipy.optimize import minimize_scalar

import latentlab as ll
from latentlab.compare.labels import label_agreement
from latentlab.comparison.compare import compare
from latentlab.data.dataset import Dataset
from latentlab.embeddings.embed import embed
from latentlab.fit import fit
from latentlab.inference import nuts
from latentlab.inference.nuts import drive
from latentlab.inference.trajectory import chain
from latentlab.results.prepare import prepared
from latentlab.symmetry.groups import Identity


@pytest.fixture(scope="module")
def nuts_fit(iris):
    """A NUTS fit of PPCA with two axes."""
    return fit(ll.models.PPCA(2), iris, ll.NUTS(n_chains=4, n_warmup=60, n_draws=60, max_tree_depth=5), seed=0, progress=False)


def dense(sites, x):
    W, noise = sites["W"], sites["sigma"]
    return oracles.gaussian_log_density(x, sites["mu"], W @ W.T + noise**2 * np.eye(len(W)))


def draw(result, chain, i):
    return {name: array[chain, i] for name, array in result.sites().items()}


def test_stored_densities_match_the_draws(nuts_fit, iris):
    for at in ((0, 0), (3, 59)):
        sites = draw(nuts_fit, *at)
        prior = {name: float(a.values[at]) for name, a in nuts_fit.data["log_prior"].data_vars.items()}
        expected = {
            "W": stats.norm(0, 1).logpdf(sites["W"]).sum(),
            "mu": stats.norm(0, 10).logpdf(sites["mu"]).sum(),
            "sigma": stats.halfnorm(0, 1).logpdf(sites["sigma"]),
        }
        assert prior == pytest.approx(expected, rel=1e-10)
        likelihood = nuts_fit.data["log_likelihood"]["log_likelihood"].values[at]
        np.testing.assert_allclose(likelihood, dense(sites, iris.x), rtol=1e-9)
        total = sum(expected.values()) + likelihood.sum() + np.log(sites["sigma"])
        assert float(nuts_fit.data["sample_stats"]["lp"].values[at]) == pytest.approx(total, rel=1e-10)


def test_the_explicit_form_is_scored_with_positions_integrated_out(iris):
    result = fit(
        ll.models.PPCA(2, marginalize=False), iris, ll.SVI(guide="model", n_steps=50, n_draws=20), seed=0, progress=False
    )
    sites = draw(result, 0, 7)
    np.testing.assert_allclose(result.data["log_likelihood"]["log_likelihood"].values[0, 7], dense(sites, iris.x), rtol=1e-9)
    few = iris.raw().subset(range(5))
    np.testing.assert_allclose(result.log_likelihood(few).values[0, 7], dense(sites, iris.x[:5]), rtol=1e-9)


def test_the_held_out_score_averages_densities_over_draws(nuts_fit, iris):
    few = iris.raw().subset(range(5))
    score = nuts_fit.held_out_score(few)["elpd"]
    each = np.array([dense(draw(nuts_fit, c, i), iris.x[:5]) for c in range(4) for i in range(60)])
    assert score == pytest.approx(np.log(np.exp(each).mean(0)).sum(), rel=1e-9)
    assert score > each.mean(0).sum() + 1e-3  # the mean of logs is lower


def test_new_units_are_aligned_with_their_draw(nuts_fit, iris):
    """Standardised residuals from the conditional given the aligned loadings have mean square 1."""
    new = nuts_fit.latents(iris.raw()).values
    W = nuts_fit.data["latents"]["W"].values
    squares = []
    for c in range(4):
        for i in range(0, 60, 6):
            sites = draw(nuts_fit, c, i)
            mean, covariance = oracles.positions_given(iris.x, sites["mu"], W[c, i], sites["sigma"] ** 2)
            off = np.linalg.solve(np.linalg.cholesky(covariance[0]), (new[c, i] - mean).T)
            squares.append((off**2).mean())
    assert np.mean(squares) == pytest.approx(1.0, abs=0.06)


def test_a_comparison_uses_the_aligned_draws(nuts_fit, iris):
    """Replacing the unaligned draws by noise changes nothing."""
    few = {"n_draws": 8, "n_pairs": 4, "n_permutations": 2, "progress": False}
    pca = embed("pca", iris)
    tree = nuts_fit.data.copy(deep=True)
    tree["posterior"]["z"].values[:] = np.random.default_rng(0).normal(size=tree["posterior"]["z"].shape)
    other = ll.Fit(nuts_fit.model, nuts_fit.dataset, nuts_fit.method, nuts_fit.seed, tree)
    one, two = compare(nuts_fit, [pca], **few), compare(other, [pca], **few)
    np.testing.assert_array_equal(one.scores["mean"], two.scores["mean"])
    agreement = label_agreement(nuts_fit.latents().values.mean((0, 1)), iris.labels, n_neighbors=15)
    assert float(one.data["label_agreement_posterior_mean"]) == pytest.approx(agreement, abs=1e-12)


def test_p_values_are_adjusted_by_holm_over_the_rows(nuts_fit, iris):
    few = {"n_draws": 8, "n_pairs": 4, "n_permutations": 2, "progress": False, "alignments": ("similarity",)}
    pca, rng = embed("pca", iris), np.random.default_rng(0)
    others = [ll.Embedding(f"noise-{i}", rng.normal(size=(150, 2)), units=iris.units) for i in range(4)]
    alone, among = (compare(nuts_fit, [pca, *more], **few).verdicts.set_index(["embedding", "map"]) for more in ([], others))
    single, family = alone.loc[("pca", "mapped"), "p_low"], among.loc[("pca", "mapped"), "p_low"]
    assert family == pytest.approx(6 / 2 * single, rel=1e-9)  # the smallest of 6, and of 2, that are equal but for noise


def test_chains_have_different_starts_and_random_numbers(iris, monkeypatch):
    begun = []

    def watched(start, u, *, rng, **settings):
        begun.append((start.copy(), rng.bit_generator.state["state"]["state"]))
        return chain(start, u, rng=rng, **settings)

    monkeypatch.setattr(nuts, "chain", watched)
    fit(ll.models.PPCA(1), iris, ll.NUTS(n_chains=4, n_warmup=2, n_draws=2), seed=0, progress=False)
    starts = np.array([start for start, _ in begun])
    assert (starts.std(0) > 0.1).all()
    assert len({state for _, state in begun}) == 4


def test_the_best_of_different_restarts_is_the_result(iris):
    method = ll.SVI(guide="mean_field", n_steps=40, n_draws=300, n_restarts=4)
    result = fit(ll.models.PPCA(2), iris, method, seed=1, progress=False)
    elbo = result.data["optimization"]["elbo"].values
    stats_ = result.data["sample_stats"]
    assert np.ptp(elbo) > 1
    assert float((stats_["lp"] - stats_["log_q"]).mean()) == pytest.approx(elbo.max(), rel=1e-12)
    assert len(set(result.data["optimization"]["loss"].values[:, 0].round(6))) == 4
    found = fit(ll.models.FactorAnalysis(2), iris, ll.MAP(n_restarts=6, n_draws=5), seed=0, progress=False)
    levels = found.data["optimization"]["log_joint"].values
    sites = draw(found, 0, 0)
    at = ll.log_joint(found.model, iris, {name: sites[name] for name in ("W", "mu", "psi")})
    assert at == pytest.approx(levels.max(), rel=1e-8)


class Scale(ll.LatentModel):
    """x ~ N(0, s), s ~ HalfNormal(1): the mode of s has no closed form that a Jacobian would not move."""

    name, position, symmetry, methods = "scale", ll.Position("s"), Identity(), ("map", "svi")
    dims = {"s": ()}

    def model(self, x):
        s = pyro.sample("s", dist.HalfNormal(1.0))
        with pyro.plate("unit", len(x)):
            pyro.sample("x", dist.Normal(0.0, s), obs=x)


def test_the_mode_is_on_the_constrained_scale():
    x = np.array([0.5, -1.0, 0.3])
    problem = prepared(Scale(), Dataset({"x": x}, dims={"x": ("unit",)}), ll.MAP(n_restarts=1))
    found = float(ll.MAP(n_restarts=1).run(problem).values["s"][0, 0])

    def minus(s):
        return -(stats.norm(0, s).logpdf(x).sum() + stats.halfnorm(0, 1).logpdf(s))

    mode = minimize_scalar(minus, bounds=(0.05, 3), method="bounded", options={"xatol": 1e-10}).x
    with_jacobian = minimize_scalar(lambda s: minus(s) - np.log(s), bounds=(0.05, 3), method="bounded").x
    assert found == pytest.approx(mode, abs=1e-5)
    assert abs(with_jacobian - mode) > 0.05


@pytest.mark.parametrize("batch_size", [None, 10])
def test_a_guide_of_one_scale_matches_quadrature(batch_size):
    """Posterior of log s for 40 numbers; without Jacobian or minibatch scale, mean or sd would be wrong."""
    x = stats.norm(0, 0.7).rvs(40, random_state=3)
    dataset = Dataset({"x": x}, dims={"x": ("unit",)})
    problem = prepared(Scale(), dataset, ll.SVI(guide="mean_field", batch_size=batch_size))
    method = ll.SVI(guide="mean_field", n_steps=3000, n_particles=16, batch_size=batch_size, n_draws=8000)
    u = np.log(method.run(problem).values["s"].ravel())
    grid = np.linspace(-1.5, 0.8, 4001)
    log_p = np.array([stats.norm(0, np.exp(v)).logpdf(x).sum() + stats.halfnorm(0, 1).logpdf(np.exp(v)) + v for v in grid])
    p = np.exp(log_p - log_p.max())
    p /= p.sum()
    mean, sd = p @ grid, np.sqrt(p @ grid**2 - (p @ grid) ** 2)
    assert abs(u.mean() - mean) < 0.15 * sd
    assert u.std() == pytest.approx(sd, rel=0.12)


def test_the_metric_is_the_window_variance_regularised_as_in_stan():
    """For a warm-up of 100 the window is iterations 15 to 89; the metric follows Stan's rule."""
    seen = {}

    def watch(_, snapshot):
        seen[snapshot.iteration] = snapshot

    one = chain(np.zeros(2), np.empty((1, 2)), n_warmup=100, target_accept=0.8, max_depth=6, rng=np.random.default_rng(0))
    drive([one], lambda u: (-0.5 * (u**2).sum(-1), -u), watch)
    window = np.array([seen[i].state.u for i in range(16, 91)])
    n = len(window)
    np.testing.assert_allclose(seen[90].tuning.variance, window.var(0, ddof=1) * n / (n + 5) + 1e-3 * 5 / (n + 5), rtol=1e-12)
    np.testing.assert_array_equal(seen[89].tuning.variance, 1.0)
