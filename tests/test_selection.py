"""Tests of model comparison by leave-one-out, against direct computation and enumeration."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.special import gammaln, logsumexp

from latentlab.comparison.selection import Candidate, bad_share, lenient_table, loo_table
from latentlab.data.dataset import Dataset
from latentlab.data.load import load_dataset
from latentlab.data.series import series
from latentlab.errors import ConfigError, DataError, ModelError
from latentlab.fit import fit
from latentlab.inference.exact import Exact
from latentlab.inference.nuts import NUTS
from latentlab.inference.svi import SVI
from latentlab.models.gaussian_hmm import GaussianHMM
from latentlab.models.gaussian_mixture import DPMixture, GaussianMixture
from latentlab.models.ppca import PPCA
from latentlab.results.loo import Loo, loo
from latentlab.results.tree import build

# -- results made up, so that everything is known


def made_up(log_likelihood, x=None, *, converged=True, held_out=None, coords=None, groups=None, **attrs):
    n = log_likelihood.shape[-1]
    x = np.arange(2.0 * n).reshape(n, 2) ** 1.5 if x is None else x
    data = build(
        {
            "posterior": {"mu": log_likelihood.sum(-1)},
            "log_likelihood": {"log_likelihood": log_likelihood},
            "observed_data": {"x": x},
            **(groups or {}),
        },
        dims={"mu": (), "log_likelihood": ("unit",), "x": ("unit", "feature"), "z": ("unit",), "log_p_left_out": ("left_out",)},
        coords=coords or {},
        attrs={"inference": "mcmc", **attrs},
    )
    return Candidate(data, converged, held_out or {})


def draws(rng, means, sd=0.1):
    return np.asarray(means) + sd * rng.standard_normal((2, 200, len(means)))


@pytest.fixture
def three_models(rng):
    """Three models with correlated pointwise values: 120 points with elpd between -12 and 0."""
    common = -(rng.standard_normal(120) ** 2) * 3
    shifts = {"middle": -0.3, "top": 0.0, "poor": -1.0}
    return {name: made_up(draws(rng, common + shift + 0.2 * rng.standard_normal(120))) for name, shift in shifts.items()}


def test_differences_and_errors_match_the_pointwise_values(three_models):
    table = loo_table(three_models).set_index("model")
    assert list(table.index) == ["top", "middle", "poor"]
    points = {name: loo(one.data).pointwise for name, one in three_models.items()}
    for name in three_models:
        d = points[name] - points["top"]
        assert table.elpd_loo[name] == pytest.approx(points[name].sum(), rel=1e-12)
        assert table.se[name] == pytest.approx(np.sqrt(120) * points[name].std(ddof=1), rel=1e-12)
        assert table.elpd_diff[name] == pytest.approx(table.elpd_loo[name] - table.elpd_loo["top"], abs=1e-9)
        assert table.se_diff[name] == pytest.approx(np.sqrt(120 * d.var(ddof=1)), abs=1e-12)
    assert table.elpd_diff.tolist() == sorted(table.elpd_diff, reverse=True)
    assert (table.elpd_diff <= 0).all()
    assert table.se_diff["poor"] < 0.2 * np.hypot(table.se["poor"], table.se["top"])  # the points are the same
    assert table.n_points.tolist() == [120] * 3
    assert table.bad_khat.tolist() == [0.0] * 3
    assert table.converged.all()
    assert table.note.tolist() == [""] * 3
    assert not {"n_clusters", "held_out"} & set(table.columns)


def test_the_ranking_ignores_the_order_of_arguments(three_models):
    other = loo_table(dict(reversed(three_models.items())))
    assert other.equals(loo_table(three_models))


def test_small_differences_and_few_points_are_noted(rng):
    common = rng.standard_normal(30)
    table = loo_table({"a": made_up(draws(rng, common)), "b": made_up(draws(rng, common - 0.01 * rng.random(30)))})
    assert "|elpd_diff| below 4: se_diff is unreliable" in table.note[1]
    assert "fewer than 100 points" in table.note[1]
    assert table.note[0] == ""
    common -= common.mean()
    wide = loo_table({"a": made_up(draws(rng, common)), "b": made_up(draws(rng, -common))})
    assert "|elpd_diff| below its standard error se_diff" in wide.note[1]


def test_problems_of_a_row_are_always_noted(rng):
    sound, wild = draws(rng, np.zeros(120)), draws(rng, np.full(120, -5.0))
    wild[..., :12] = -np.exp(3 * rng.standard_normal((2, 200, 12)))  # ratios without a mean: k-hat is large
    table = loo_table({"sound": made_up(sound, converged=False), "wild": made_up(wild)}).set_index("model")
    assert not table.converged["sound"]
    assert "not converged" in table.note["sound"]
    assert table.bad_khat["wild"] >= 0.05
    assert "Pareto k-hat too high for a share" in table.note["wild"]
    assert table.index[0] == "sound"


def test_dependent_points_are_noted(rng):
    """Steps of a series and ratings of one user: the standard error of independent differences is too small."""
    ll = draws(rng, np.zeros(120))
    series = {name: made_up(ll + shift, coords={"time": np.arange(120)}) for name, shift in (("a", 0.0), ("b", 0.1))}
    said = "steps of a series are dependent: standard errors tend to be too small"
    assert all(said in note for note in loo_table(series)["note"])
    table = {name: made_up(ll + shift) for name, shift in (("a", 0.0), ("b", 0.1))}
    assert not any("are dependent" in note for note in loo_table(table)["note"])


def test_an_unknown_khat_counts_as_too_high():
    x = np.zeros(4)
    score = Loo(elpd=0.0, se=0.0, p_loo=0.0, pointwise=x, khat=np.array([np.nan, 0.1, 0.7, 0.9]), limit=0.7, conditional=False)
    assert bad_share(score) == 0.75


def test_held_out_scores_and_occupied_components_have_columns(rng):
    z = np.zeros((2, 200, 120), dtype=int)
    z[:, ::2, :50], z[:, 1::2, :30], z[:, 1::2, 30:60] = 1, 1, 2  # 2 clusters in half of the draws, 3 in the others
    one = made_up(draws(rng, np.zeros(120)), groups={"latents": {"z": z}}, held_out={"elpd": -9.0, "se": 2.0, "n_units": 4.0})
    table = loo_table({"labels": one, "none": made_up(draws(rng, -np.ones(120)))}).set_index("model")
    assert table.loc["labels", ["n_clusters", "n_clusters_q05", "n_clusters_q95"]].tolist() == [2.5, 2.0, 3.0]
    assert table.loc["labels", ["held_out", "held_out_se"]].tolist() == [-9.0, 2.0]
    assert table.loc["none", ["n_clusters", "held_out"]].isna().all()


def test_densities_and_probabilities_are_not_compared(rng):
    x = rng.poisson(3.0, (120, 2)).astype(float)
    predicted = rng.poisson(3.0, (2, 200, 120, 2)).astype(float)
    ll = draws(rng, np.zeros(120))
    counts = made_up(ll, x, groups={"posterior_predictive": {"x": predicted}})
    density = made_up(ll - 1, x, groups={"posterior_predictive": {"x": predicted + 0.3}})
    notes = loo_table({"counts": counts, "density": density}).note
    assert "probabilities of whole numbers" in notes[0]
    assert "elpd is of densities" in notes[1]
    assert loo_table({"a": counts, "b": counts}).note.str.contains("whole").sum() == 0


# -- what is refused


def test_fits_to_different_data_are_refused(rng):
    ll, x = draws(rng, np.zeros(20)), rng.standard_normal((20, 2))
    one = made_up(ll, x)
    names = {"unit": [f"u{i}" for i in range(20)]}
    hidden = x.copy()
    hidden[3, 0] = np.nan
    moved = x.copy()
    moved[3, 0] += 1.0
    for other, said in (
        (made_up(ll[..., :19], x[:19]), r"shapes \(20, 2\) and \(19, 2\)"),
        (made_up(ll, moved), "1 of 40 values differ"),
        (made_up(ll, hidden), "missing in one fit are observed"),
        (made_up(ll, x, coords=names), "unit 0 is '0' in the first fit and 'u0' in the second"),
        (made_up(ll, (x - x.mean(0)) / x.std(0)), "the data are on different scales"),
        (made_up(ll, -3 * x), "the data are on different scales"),
    ):
        with pytest.raises(DataError, match=f"'one' and 'other' cannot be compared: .*{said}"):
            loo_table({"one": one, "other": other})
    assert len(loo_table({"one": one, "other": made_up(ll, x * (1 + 1e-15))})) == 2
    both = hidden.copy()
    both[5] += 1.0
    with pytest.raises(DataError, match="2 of 40 values differ"):
        loo_table({"one": made_up(ll, hidden), "other": made_up(ll, both)})


def test_fits_without_loo_are_refused(rng):
    ll = draws(rng, np.zeros(20))
    for other, said in (
        (
            made_up(ll, point_estimate=1, method="map"),
            r"'other': LOO needs posterior draws, but the fit is a point estimate \(map\).*nuts or svi",
        ),
        (
            made_up(ll, conditional_log_likelihood=1),
            "'other' and 'one' cannot be compared: elpd is conditional on the units' own positions",
        ),
        (made_up(ll[:, :5]), "'other': LOO requires at least 25 draws"),
    ):
        with pytest.raises(Exception, match=said):
            loo_table({"one": made_up(ll), "other": other})
    without = Candidate(made_up(ll).data.drop_nodes("log_likelihood"), True)
    with pytest.raises(ModelError, match=r"'vae': LOO is not available.*held_out"):
        loo_table({"one": made_up(ll), "vae": without})
    with pytest.raises(ConfigError, match="needs at least two fits; got 1"):
        loo_table({"one": made_up(ll)})


def test_fits_to_equal_data_with_other_names_are_compared(rng):
    """Scores depend on the data, not on their name, labels and true values."""
    x = rng.standard_normal((20, 2)) * [1, 5]
    raw = Dataset({"x": x}, dims={"x": ("unit", "feature")}, name="a")
    told = Dataset({"x": x}, dims={"x": ("unit", "feature")}, labels=["u"] * 20, name="b")
    svi = SVI(n_steps=20, n_draws=30)
    one, other = (fit(PPCA(1), dataset.standardize(), svi, progress=False) for dataset in (raw, told))
    table = loo_table({"a": one, "b": other})
    assert table.elpd_diff.tolist() == [0.0, 0.0]
    assert table.converged.tolist() == [one.converged, other.converged]
    with pytest.raises(ModelError, match=r"'ml': LOO needs posterior draws, but the fit is a point estimate \(exact\)"):
        loo_table({"svi": one, "ml": fit(PPCA(1), raw.standardize(), Exact(n_draws=50))})
    with pytest.raises(DataError, match="different scales"):
        loo_table({"svi": one, "raw": fit(PPCA(1), raw, svi, progress=False)})


def test_without_loo_fits_are_ranked_by_held_out_scores(rng):
    without = made_up(draws(rng, np.zeros(20))).data.drop_nodes("log_likelihood")
    scores = {"2": -50.0, "8": -30.0, "4": -40.0}
    table = lenient_table(
        {name: Candidate(without, True, {"bound": score, "se": 3.0, "n_units": 9.0}) for name, score in scores.items()},
        {"16": "failed: too many"},
    )
    assert table.model.tolist() == ["8", "4", "2", "16"]
    assert table.held_out.tolist()[:3] == [-30.0, -40.0, -50.0]
    assert table.elpd_diff.isna().all()
    assert table.note[0].endswith("held_out is a lower bound")
    assert "LOO is not available" in table.note[0]
    assert table.note[3] == "failed: too many"


# -- sequences


def test_unit_and_series_models_are_compared_by_sequences(rng):
    sequence = np.array(["a"] * 3 + ["b"] * 2 + ["c"] * 4)
    coords = {"sequence": sequence, "left_out": ["a", "b", "c"]}
    ll = draws(rng, np.zeros(9))
    of_series = made_up(ll, coords=coords, groups={"leave_one_out": {"log_p_left_out": draws(rng, np.full(3, -2.0))}})
    units = made_up(ll, coords={"sequence": sequence})
    table = loo_table({"series": of_series, "units": units}).set_index("model")
    assert table.n_points.tolist() == [3, 3]
    summed = np.stack([ll[..., sequence == name].sum(-1) for name in "abc"], axis=-1)
    assert table.elpd_loo["units"] == pytest.approx(loo(made_up(summed).data).elpd, rel=1e-12)
    with pytest.raises(DataError, match="LOO leaves out 3 sequences in the first and 9 units in the second"):
        loo_table({"series": of_series, "units": made_up(ll)})


# -- exact answers: 12 values, two components or states of known spread, all 4096 assignments summed

SIGMA, MU_SCALE = 0.7, 2.0
SETTINGS = {"sigma_scale": SIGMA, "sigma_spread": 0.0, "mu_scale": MU_SCALE, "covariance": "spherical"}
N = 12
PATHS = np.array(list(itertools.product([0, 1], repeat=N)))


def log_emissions(x, seen):
    """log p(x[seen] | z) of every assignment, the means integrated out."""
    total = np.zeros(len(PATHS))
    for k in (0, 1):
        own = np.equal(PATHS, k) & seen
        n, s, squares = own.sum(1), own @ x, own @ x**2
        spread = SIGMA**2 + n * MU_SCALE**2
        quadratic = (squares - MU_SCALE**2 * s**2 / spread) / SIGMA**2
        total += -0.5 * (n * np.log(2 * np.pi) + (n - 1) * np.log(SIGMA**2) + np.log(spread) + quadratic) * (n > 0)
    return total


def drawn_by_dirichlet(counts):
    """log probability of counts `(..., 2)` whose order is known, the probabilities integrated out of a uniform prior."""
    return gammaln(2) - gammaln(2 + counts.sum(-1)) + gammaln(1 + counts).sum(-1)


def log_assignments():
    return drawn_by_dirichlet(np.stack([np.equal(PATHS, k).sum(1) for k in (0, 1)], axis=-1))


def log_paths(first):
    """log p(path), `first` the steps at which sequences begin."""
    starts = np.isin(np.arange(N), first)
    total = drawn_by_dirichlet(np.stack([(PATHS[:, starts] == k).sum(1) for k in (0, 1)], axis=-1))
    before, after = PATHS[:, :-1][:, ~starts[1:]], PATHS[:, 1:][:, ~starts[1:]]
    for j in (0, 1):
        total += drawn_by_dirichlet(np.stack([((before == j) & (after == k)).sum(1) for k in (0, 1)], axis=-1))
    return total


def exact_loo(x, prior, points):
    """log p(point | the others) for points given as truth values over steps."""
    whole = logsumexp(prior + log_emissions(x, np.ones(N, dtype=bool)))
    return np.array([whole - logsumexp(prior + log_emissions(x, ~point)) for point in points])


def error_of_elpd(found):
    """The Monte Carlo error of a fit's elpd, from that of each of its 8 chains."""
    values = found.data["leave_one_out" if "leave_one_out" in found.data.children else "log_likelihood"]
    name = next(iter(values.data_vars))
    each = [loo(made_up(values[name].values[[c]]).data).elpd for c in range(values.sizes["chain"])]
    return np.std(each, ddof=1) / np.sqrt(len(each))


def within_error(found, exact, what):
    """The elpd of all chains within 5 standard errors of the exact one.

    With 7 degrees of freedom a sound sampler is 5 errors off in 2 of 1000.
    """
    error = error_of_elpd(found)
    assert error < 0.2, what
    assert abs(loo(found.data).elpd - exact) < 5 * error, (what, loo(found.data).elpd, exact, error)


NUTS_SETTINGS = NUTS(n_chains=8, n_warmup=100, n_draws=1000)
X = np.array([-1.6, -1.1, -2.0, -1.3, 1.2, 1.9, 0.8, 1.5, -1.2, -1.9, -0.9, 1.4])


@pytest.fixture(scope="module")
def steps():
    dataset = series([X], name="steps")
    found = {
        "hmm": fit(GaussianHMM(2, **SETTINGS), dataset, NUTS_SETTINGS, progress=False),
        "mixture": fit(GaussianMixture(2, **SETTINGS), dataset, NUTS_SETTINGS, progress=False),
    }
    alone = np.eye(N, dtype=bool)
    exact = {"hmm": exact_loo(X, log_paths([0]), alone), "mixture": exact_loo(X, log_assignments(), alone)}
    return SimpleNamespace(fits=found, exact=exact)


def test_enumerated_probabilities_sum_to_1():
    assert logsumexp(log_assignments()) == pytest.approx(0, abs=1e-10)
    assert logsumexp(log_paths([0])) == pytest.approx(0, abs=1e-10)
    assert logsumexp(log_paths([0, 4, 7])) == pytest.approx(0, abs=1e-10)
    grid = np.linspace(-14, 14, 4001)
    only = np.arange(N) == 3
    at = [logsumexp(log_assignments() + log_emissions(np.where(only, v, 0.0), only)) for v in grid[::20]]
    assert np.trapezoid(np.exp(at), grid[::20]) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("name", ["hmm", "mixture"])
def test_loo_matches_exact_leave_one_out(steps, name):
    """In the series, each step is left out given all other steps."""
    within_error(steps.fits[name], steps.exact[name].sum(), name)
    np.testing.assert_allclose(steps.fits[name].loo().pointwise, steps.exact[name], atol=0.15)


def test_the_difference_of_two_models_is_exact(steps):
    table = loo_table(steps.fits).set_index("model")
    d = steps.exact["mixture"] - steps.exact["hmm"]
    assert table.index[0] == ("hmm" if d.sum() < 0 else "mixture")
    sign = 1 if d.sum() < 0 else -1
    error = np.hypot(*(error_of_elpd(found) for found in steps.fits.values()))
    assert error < 0.2
    assert table.elpd_diff.iloc[1] == pytest.approx(sign * d.sum(), abs=8 * error)
    assert table.se_diff.iloc[1] == pytest.approx(np.sqrt(N) * d.std(ddof=1), rel=0.15)
    assert table.n_clusters.between(1, 2).all()


def test_with_several_sequences_each_sequence_is_a_point():
    first = [0, 4, 7]
    parts = np.split(X, first[1:])
    dataset = series(parts, names=list("abc"), name="parts")
    found = {
        "hmm": fit(GaussianHMM(2, **SETTINGS), dataset, NUTS_SETTINGS, progress=False),
        "mixture": fit(GaussianMixture(2, **SETTINGS), dataset, NUTS_SETTINGS, progress=False),
    }
    points = np.repeat(np.arange(3), [len(part) for part in parts]) == np.arange(3)[:, None]
    exact = {"hmm": exact_loo(X, log_paths(first), points), "mixture": exact_loo(X, log_assignments(), points)}
    table = loo_table(found).set_index("model")
    assert table.n_points.tolist() == [3, 3]
    for name in found:
        assert table.elpd_loo[name] == pytest.approx(exact[name].sum(), abs=0.5), name
    within_error(found["hmm"], exact["hmm"].sum(), "hmm")


# -- how many


def test_three_clear_clusters_are_selected():
    """60 units in three clusters 8 standard deviations apart: 1 and 2 components fit badly, a fourth does not help."""
    dataset = load_dataset("gaussian_mixture", n_units=60, separation=8.0)
    method = NUTS(n_chains=4, n_warmup=80, n_draws=60, max_tree_depth=5)
    fits = {str(k): fit(GaussianMixture(k, covariance="spherical"), dataset, method, progress=False) for k in (1, 2, 3, 4)}
    table = loo_table(fits).set_index("model")
    assert set(table.index[:2]) == {"3", "4"}
    for few in ("1", "2"):
        assert table.elpd_diff["3"] - table.elpd_diff[few] > 4 * table.se_diff[few] > 0
    assert abs(table.elpd_diff["4"] - table.elpd_diff["3"]) < max(4.0, 2 * max(table.se_diff["3"], table.se_diff["4"]))
    assert table.n_clusters[["1", "2", "3"]].tolist() == pytest.approx([1, 2, 3], abs=0.01)


def test_stick_breaking_mixtures_report_occupied_components():
    dataset = load_dataset("gaussian_mixture", n_units=40, separation=8.0)
    method = NUTS(n_chains=2, n_warmup=60, n_draws=60, max_tree_depth=5)
    one = fit(DPMixture(6, covariance="spherical"), dataset, method, progress=False)
    table = loo_table({"dp": one, "again": one})
    assert 2.5 < table.n_clusters[0] <= 6
    assert table.n_clusters_q05[0] <= table.n_clusters[0] <= table.n_clusters_q95[0]
