"""Tests of the verdict on embeddings: known cases, its level, its statistics and undetermined cases."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.linalg import sqrtm
from scipy.signal import lfilter
from scipy.stats import binom, kstest

from latentlab.compare.align import aligner, principal_axes, procrustes_mean, scales
from latentlab.compare.chains import ess, split
from latentlab.compare.judgement import holm
from latentlab.compare.structure import structure
from latentlab.compare.verdict import Reference, verdict
from latentlab.errors import ConfigError, DataError

N, D, SD = 100, 2, np.sqrt(0.2)


class Exact:
    """Positions of a linear-Gaussian model with known loadings, and its exact posterior N(mean_i, 0.2 I)."""

    def __init__(self, rng, n=N, d=D, variance=0.2):
        self.rng, self.sd = rng, np.sqrt(variance)
        self.truth = rng.normal(size=(n, d))
        self.mean = (1 - variance) * self.truth + np.sqrt(variance * (1 - variance)) * rng.normal(size=(n, d))

    def draw(self):
        return self.mean + self.sd * self.rng.normal(size=self.mean.shape)

    def chains(self, n_chains=4, n_draws=200, rho=0.0):
        """Returns independent draws, or AR(1) chains if rho is given; 2 chains of 100 rarely (1e-3) have an ESS below 39."""
        noise = self.rng.normal(size=(n_chains, n_draws, *self.mean.shape))
        noise[:, 1:] *= np.sqrt(1 - rho**2)
        return self.mean + self.sd * lfilter([1.0], [1.0, -rho], noise, axis=1)


@pytest.fixture
def case(rng):
    return Exact(rng)


def with_outliers(case):
    y = case.mean.copy()
    y[[3, 50, 77], 0] += 6 * case.sd
    return y


KNOWN = {
    "posterior mean": (lambda case: case.mean, "summary-like", "summary-like", "summary-like"),
    "mean turned": (lambda case: case.mean[:, ::-1] + 4, "summary-like", "summary-like", "summary-like"),
    "mean halved": (lambda case: case.mean / 2, "distinct", "summary-like", "summary-like"),
    "mean stretched by 2": (lambda case: case.mean * [2, 1], "distinct", "distinct", "summary-like"),
    "mean bent": (
        lambda case: case.mean + 0.6 * np.outer(case.mean[:, 0] ** 2, [0, 1]),
        "distinct",
        "distinct",
        "distinct",
    ),
    "outliers": (with_outliers, "distinct", "distinct", "distinct"),
    "shuffled": (lambda case: case.rng.permutation(case.mean), "distinct", "distinct", "distinct"),
    "shuffled draw": (lambda case: case.rng.permutation(case.draw()), "distinct", "distinct", "distinct"),
    "constant": (lambda case: np.full((N, D), 3.7), "distinct", "distinct", "distinct"),
    "noise": (lambda case: case.rng.normal(size=(N, D)), "distinct", "distinct", "distinct"),
    "one axis": (lambda case: case.mean[:, :1], "distinct", "distinct", "distinct"),
    "PCA raw": (lambda case: 3 * principal_axes(case.mean), "distinct", "summary-like", "summary-like"),
}


@pytest.mark.parametrize("k", [0, 1, 2], ids=["orthogonal", "similarity", "affine"])
def test_known_embeddings_get_their_verdicts(k, case):
    reference = Reference(case.chains(), ("orthogonal", "similarity", "affine")[k], case.rng)
    found = {name: reference.judge(embed(case)).verdict for name, (embed, *_) in KNOWN.items()}
    assert found == {name: labels[k] for name, (_, *labels) in KNOWN.items()}


def smooth_columns(rng, n_columns, length=15.0, n=200):
    """Gaussian processes over n steps."""
    t = np.arange(n)
    kernel = np.exp(-((t[:, None] - t) ** 2) / (2 * length**2)) + 1e-8 * np.eye(n)
    return np.linalg.cholesky(kernel) @ rng.normal(size=(n, n_columns))


def test_independent_smooth_columns_do_not_predict_a_series(rng):
    """With interleaved folds, 40 smooth columns interpolate any smooth series; contiguous folds prevent this."""
    z = smooth_columns(rng, 2)
    draws = z + 0.2 * rng.normal(size=(4, 200, 200, 2))
    reference = Reference(draws, "affine", rng, series=True)
    assert reference.judge(smooth_columns(rng, 40)).verdict == "distinct"
    assert reference.judge(z).verdict == "summary-like"
    wide = np.column_stack([z, 0.01 * rng.normal(size=(200, 3))])
    assert reference.judge(wide).verdict == "summary-like"


def test_units_displaced_from_the_other_kind_are_distinct(rng):
    """Half of the 200 units of a draw are shifted by one standard deviation; 1 of 20 draws is called distinct by chance."""
    z = rng.normal(size=(200, 2))
    draws = z + 0.3 * rng.normal(size=(4, 400, 200, 2))
    reference = Reference(draws, "orthogonal", rng, judged=slice(100, 200))
    moved = np.zeros((200, 2))
    moved[100:, 0] = 0.45
    found = reference.judge(z + moved)
    assert (found.verdict, "a shift of all units" in found.component) == ("distinct", True)
    assert reference.judge(z).verdict == "summary-like"


FIXED = {
    "posterior mean": (lambda case: case.mean, "summary-like"),
    "fresh draw": (lambda case: case.draw(), "draw-like"),
    "mean turned by a tenth of a radian": (
        lambda case: case.mean @ [[np.cos(0.1), np.sin(0.1)], [-np.sin(0.1), np.cos(0.1)]],
        "distinct",
    ),
    "mean mirrored": (lambda case: case.mean * [1, -1], "distinct"),
    "axes exchanged": (lambda case: case.mean[:, ::-1], "distinct"),
    "mean moved": (lambda case: case.mean + np.array([0.3, 0.0]), "distinct"),
    "mean halved": (lambda case: case.mean / 2, "distinct"),
    "constant": (lambda case: np.full((N, D), 3.7), "distinct"),
}


def test_without_symmetry_rotations_and_shifts_are_distinct():
    """Without symmetry, rotated or shifted positions are distinct; under `orthogonal` they are not.

    The generator is fixed, since a new draw is draw-like in only 95 of 100 cases.
    """
    case = Exact(np.random.default_rng(5))
    case.mean = case.mean + np.array([2.0, -1.0])  # nothing is centred, so that the place of the positions counts
    chains = case.chains()
    fixed, turned = (Reference(chains, way, np.random.default_rng(1)) for way in ("fixed", "orthogonal"))
    np.testing.assert_allclose(fixed.mean, split(chains)[0].mean((0, 1)))
    found = {name: fixed.judge(make(case)).verdict for name, (make, _) in FIXED.items()}
    assert found == {name: expected for name, (_, expected) in FIXED.items()}
    moved = fixed.judge(case.mean + np.array([0.3, 0.0]))
    assert moved.component == "error along axis 1, a shift of all units"
    assert fixed.judge(2 * (case.mean - case.mean.mean(0))).scale == pytest.approx(0.5, abs=0.05)
    for name in ("mean turned by a tenth of a radian", "mean moved"):
        assert turned.judge(FIXED[name][0](case)).verdict == "summary-like"


@pytest.mark.parametrize("alignment", ["orthogonal", "similarity", "affine"])
@pytest.mark.chance(2e-3)
def test_new_draws_and_true_positions_are_draw_like_at_the_level(alignment, rng):
    """The limit for 120 data sets is exceeded at a rate of 5% with probability 1e-3, 6e-3 over six rows."""
    most = binom.isf(1e-3, 120, 0.05)
    other = np.zeros(2)
    for _ in range(120):
        case = Exact(rng, n=40)
        reference = Reference(case.chains(n_draws=100), alignment, rng)
        other += [reference.judge(y).verdict != "draw-like" for y in (case.draw(), case.truth)]
    assert (other <= most).all(), other


@pytest.mark.chance(7e-4)
def test_new_draws_are_draw_like_for_slowly_mixing_chains(rng):
    """AR(1), rho 0.98: a quarter would fail if counted as independent. More than 7 of 40 have probability 7e-4."""
    labels = []
    for _ in range(40):
        case = Exact(rng, n=15)
        labels.append(Reference(case.chains(n_draws=3000, rho=0.98), "orthogonal", rng).judge(case.draw()).verdict)
    assert labels.count("undetermined") < 20
    assert labels.count("summary-like") + labels.count("distinct") <= 7, labels


@pytest.mark.chance(1e-3)
def test_the_truth_ranks_uniformly_among_draws(rng):
    """Kolmogorov-Smirnov test over 200 data sets at 1e-3; the posterior mean always has the lowest rank."""
    ranks = []
    for _ in range(200):
        case = Exact(rng, n=40)
        reference = Reference(case.chains(n_draws=100), "orthogonal", rng)
        ranks.append([reference.judge(y).p_low for y in (case.truth, case.mean)])
    ranks = np.array(ranks)
    assert kstest(ranks[:, 0], "uniform").pvalue > 1e-3
    assert ranks[:, 1].max() < 0.025


def whitening(aligned):
    """V_i^(-1/2) of each unit, by loops over units."""
    covariances = [np.cov(aligned[:, i].T) for i in range(aligned.shape[1])]
    pooled, n = np.mean(covariances, axis=0), len(aligned)
    return [np.linalg.inv(sqrtm((n * c + (D + 2) * pooled) / (n + D + 2))).real for c in covariances]


def test_verdict_statistics_match_loops(case):
    """D^2, the largest |u|^2 and p_low by plain loops over units and draws, independently of the code."""
    draws, y = case.chains(n_draws=40), case.draw()
    reference = Reference(draws, "similarity", np.random.default_rng(0))
    made, held_out = (half.reshape(-1, N, D) for half in split(draws))
    align = aligner("similarity", reference.mean)
    aligned = np.array([align(x) for x in made])
    roots = whitening(aligned)

    def squares(x):
        return np.array([np.sum((root @ (a - m)) ** 2) for root, a, m in zip(roots, align(x), reference.mean, strict=True)])

    of_draws = np.array([squares(x).mean() / D for x in held_out])
    found = reference.judge(y)
    assert found.delta == pytest.approx(np.sqrt(squares(y).mean() / D / np.median(of_draws)))
    effective = ess(np.log(of_draws).reshape(2, 40))
    share = (of_draws <= squares(y).mean() / D).mean()
    assert found.p_low == pytest.approx((1 + effective * share) / (1 + effective))
    assert found.worst_units[0] == str(squares(y).argmax())
    b = (reference.mean**2).sum() / np.linalg.svd((y - y.mean(axis=0)).T @ reference.mean, compute_uv=False).sum()
    assert found.scale == pytest.approx(b)


def test_the_guard_matches_loops():
    """Recomputes all parts of the guard by loops: C, robust z of logs, and the effective number of the largest z."""
    rng = np.random.default_rng(20_240_229)  # draws of middling ranks, so that another statistic would show
    case = Exact(rng, n=30)
    draws = case.chains(n_draws=80, rho=0.8)
    reference = Reference(draws, "orthogonal", np.random.default_rng(0))
    made, held_out = (half.reshape(-1, 30, D) for half in (draws[::2], draws[1::2]))
    np.testing.assert_allclose(reference.mean, procrustes_mean(made), atol=1e-9)  # of the reference half alone
    align, functions = aligner("orthogonal", reference.mean), structure(reference.mean, rng)[1]
    roots = whitening(np.array([align(x) for x in made]))

    def errors(x):
        return np.array([root @ (a - m) for root, a, m in zip(roots, align(x), reference.mean, strict=True)])

    spread = np.std([functions.T @ errors(x) for x in made], axis=0)

    def logs(x):
        u = errors(x)
        return np.log([(u**2).sum() / (30 * D), np.abs(functions.T @ u / spread).max(), (u**2).sum(axis=1).max()])

    def largest_z(pool):
        middle = np.median(pool, axis=0)
        return ((pool - middle) / np.median(np.abs(pool - middle), axis=0)).max(axis=1)

    of_draws = np.array([logs(x) for x in held_out])
    effective = ess(largest_z(of_draws).reshape(2, 80))
    assert effective != pytest.approx(reference.ess_low, rel=0.05)
    shares = []
    for y in (*(case.draw() for _ in range(8)), case.truth, case.mean):
        pool = largest_z(np.vstack([of_draws, logs(y)]))
        shares.append(np.mean(pool[:-1] >= pool[-1]))
        assert reference.judge(y).p_guard == pytest.approx((1 + effective * shares[-1]) / (1 + effective), rel=1e-9)
    y = case.draw()
    growth = [float(scales(x, reference.mean)) for x in (*held_out, y)]
    assert 0 < reference.judge(y).scale_rank < 1
    assert reference.judge(y).scale_rank == np.mean(np.array(growth[:-1]) < growth[-1])  # among those that are held out
    assert len({share for share in shares if 0 < share < 1}) >= 5, shares  # ranks that another statistic would change


def test_p_values_count_effective_draws(case):
    """No draw is closer than the mean, so that p_low is 1 / (1 + ESS), with an ESS below the number of correlated draws."""
    found = verdict(case.chains(n_draws=2000, rho=0.95), case.mean, rng=case.rng)
    assert 80 < found.ess < 1000
    reference = Reference(case.chains(n_draws=500, rho=0.95), "orthogonal", case.rng)
    assert reference.judge(case.mean).p_low == pytest.approx(1 / (1 + reference.ess_low))
    assert reference.judge(case.mean * 50).p_guard == pytest.approx(1 / (1 + reference.ess_guard))
    assert reference.ess_low < 500 < 1000


def test_delta_is_0_for_the_mean_and_1_for_a_draw(case):
    reference = Reference(case.chains(n_draws=400), "orthogonal", case.rng)
    assert reference.judge(case.mean).delta < 0.06
    assert np.mean([reference.judge(case.draw()).delta for _ in range(60)]) == pytest.approx(1, abs=0.05)  # 7 sd
    half_way = (case.mean + 0.5 * (case.draw() - case.mean) for _ in range(20))
    assert np.mean([reference.judge(y).delta for y in half_way]) == pytest.approx(0.5, abs=0.06)


def test_the_component_that_differs_is_named(case):
    reference = Reference(case.chains(), "orthogonal", case.rng)
    units = [f"wine-{i}" for i in range(N)]
    outliers = reference.judge(with_outliers(case), units=units)
    assert set(outliers.component.removeprefix("units ").split(", ")) == {"wine-3", "wine-50", "wine-77"}
    assert set(outliers.worst_units[:3]) == {"wine-3", "wine-50", "wine-77"}
    assert "units wine-" in outliers.sentence
    axes = reference.mean
    assert reference.judge(axes * [1.5, 1]).component == "error along axis 1, linear in axis 1"
    bent = axes + 0.25 * np.outer(axes[:, 1] ** 2, [1, 0])
    assert reference.judge(bent).component == "error along axis 1, quadratic in axis 2"
    assert reference.judge(case.mean + 3 * case.sd * case.rng.normal(size=(N, D))).component == "overall"


def test_the_scale_is_ranked_among_draws(case):
    reference = Reference(case.chains(), "orthogonal", case.rng)
    found = reference.judge(case.mean * 0.8)
    assert found.scale == pytest.approx(1.25, abs=0.03)
    assert found.scale_rank == 1.0
    assert reference.judge(case.mean * 1.2).scale_rank == 0.0
    assert reference.judge(np.zeros((N, D))).scale == np.inf


def test_coverage_is_reported_with_that_of_the_draws(case):
    """Shares of 1600 held-out draws have standard deviation 0.0013 at most; the limit is 7 of them."""
    found = verdict(case.chains(n_draws=800), case.mean, rng=case.rng)
    assert (found.coverage_50, found.coverage_80, found.coverage_95) == (1.0, 1.0, 1.0)
    draws = (found.draw_coverage_50, found.draw_coverage_80, found.draw_coverage_95)
    np.testing.assert_allclose(draws, [0.5, 0.8, 0.95], atol=0.01)


def test_the_verdict_is_invariant_to_rotations(case):
    draws, y = case.chains(), case.draw()
    turns = np.linalg.qr(case.rng.normal(size=(4, 200, D, D)))[0]
    found = Reference(draws, "orthogonal", np.random.default_rng(1)).judge(y)
    other = Reference(draws @ turns + 2, "orthogonal", np.random.default_rng(1)).judge(y @ turns[0, 0] - 1)
    assert other.verdict == found.verdict
    numbers = ("delta", "p_low", "p_guard", "scale", "coverage_80", "ess")
    assert [getattr(other, name) for name in numbers] == pytest.approx([getattr(found, name) for name in numbers], rel=1e-6)


def test_many_noise_columns_are_distinct_and_signal_columns_are_not(case):
    reference = Reference(case.chains(), "affine", case.rng)
    noise = reference.judge(case.rng.normal(size=(N, 80)))
    assert noise.verdict == "distinct"
    signal = reference.judge(case.mean @ case.rng.normal(size=(D, 6)) + 0.01 * case.rng.normal(size=(N, 6)))
    assert signal.verdict == "summary-like"
    assert "6 columns for 2" in signal.notes[0]


def test_too_few_draws_give_undetermined(case):
    """30 held-out draws cannot give a p-value of 0.025, but suffice at a larger level; 10 constant chains count as 10 draws."""
    reference = Reference(case.chains(n_chains=20, n_draws=3), "orthogonal", case.rng)
    for y in (case.mean, case.rng.permutation(case.mean)):
        found = reference.judge(y)
        assert (found.verdict, found.ess <= 30) == ("undetermined", True)
        assert "at least 39 is required" in found.reason
        assert found.reason in found.sentence
    assert "few draws" in found.notes[0]
    assert reference.judge(case.rng.permutation(case.mean), alpha=0.2).verdict == "distinct"


def test_an_uninformative_posterior_gives_undetermined(rng):
    """The posterior variance is 0.99 of the prior's: shuffled means and a constant cannot be distinguished from the mean."""
    case = Exact(rng, n=60, variance=0.99)
    reference = Reference(case.chains(), "orthogonal", rng)
    assert reference.gate_summary > 0.025
    assert reference.gate_draw > 0.025
    for y, label in ((case.mean, "summary-like"), (case.mean * 0, "summary-like"), (case.draw(), "draw-like")):
        found = reference.judge(y)
        assert found.verdict == "undetermined"
        assert f"the result would be {label}" in found.reason
    assert reference.judge(case.mean * 100).verdict == "distinct"


def test_the_gate_includes_the_constant_embedding(rng):
    """For weak posteriors, shuffled means can be easier to distinguish than the constant."""
    for seed in range(5):
        case = Exact(np.random.default_rng(seed), n=60, variance=0.8)
        reference = Reference(case.chains(), "similarity", case.rng)
        assert reference.gate_summary >= reference.judge(0 * case.mean).p_guard


def test_few_effective_draws_and_two_modes_are_noted(rng):
    case = Exact(rng)
    side = rng.choice([-1.0, 1.0], (4, 1000, 1, 1))
    modes = case.chains(n_draws=1000) + side * np.outer(np.arange(N) % 2 - 0.5, [1.0, 0.0])
    notes = Reference(modes, "orthogonal", rng).notes
    assert len(notes) == 1
    assert notes[0].startswith("two modes: the first principal component score of the draws has kurtosis 1")
    assert Reference(case.chains(n_draws=1000), "orthogonal", rng).notes == ()
    assert "few draws: the effective sample size is " in Reference(case.chains(n_draws=40), "orthogonal", rng).notes[0]


def test_a_single_chain_is_enough(case):
    reference = Reference(case.chains(n_chains=1, n_draws=500), "orthogonal", case.rng)
    labels = [reference.judge(y).verdict for y in (case.mean, case.rng.permutation(case.mean))]
    assert labels == ["summary-like", "distinct"]


def test_holm_adjusts_p_values_and_updates_verdicts(case):
    """Holm's example: p = 0.01, 0.04, 0.03, 0.005 become 0.03, 0.06, 0.06, 0.02."""
    judged = Reference(case.chains(), "orthogonal", case.rng).judge(case.draw())
    open_gates = {"ess": 400.0, "gate_summary": 0.0, "gate_draw": 0.0}
    one = replace(judged, verdict="draw-like", p_low=0.5, p_guard=0.5, reason="", **open_gates)
    guards = [0.01, 0.04, 0.03, 0.005]
    found = holm([replace(one, p_guard=p) for p in guards])
    np.testing.assert_allclose([v.p_guard for v in found], [0.03, 0.06, 0.06, 0.02])
    assert [v.verdict for v in found] == ["draw-like", "draw-like", "draw-like", "distinct"]
    lows = holm([replace(one, p_low=p) for p in (0.006, 0.02)])
    assert [(v.verdict, v.p_low) for v in lows] == [("summary-like", 0.012), ("summary-like", 0.02)]
    assert holm([one]) == [one]


def test_holm_needs_more_draws_for_more_embeddings(case):
    """5 verdicts at 5% need 199 effective draws; 20 chains of 19 leave at most 190 held out."""
    reference = Reference(case.chains(n_chains=20, n_draws=19), "orthogonal", case.rng)
    judged = [reference.judge(case.mean)] * 5
    assert judged[0].verdict == "summary-like"
    for v in holm(judged):
        assert v.verdict == "undetermined"
        assert "at least 199 is required" in v.reason


def test_holm_adjusts_the_gate_for_the_number_of_verdicts(case):
    """A gate p-value of 0.02 passes for one verdict and fails for two, since it is adjusted as well."""
    one = replace(Reference(case.chains(), "orthogonal", case.rng).judge(case.mean), ess=400.0, p_guard=0.9)
    for p_low, gates, label in ((1e-4, (0.02, 0.0), "summary-like"), (0.5, (0.0, 0.02), "draw-like")):
        judged = replace(one, p_low=p_low, gate_summary=gates[0], gate_draw=gates[1])
        assert holm([judged])[0].verdict == label
        for v in holm([judged, judged]):
            assert v.verdict == "undetermined"
            assert f"the result would be {label}" in v.reason


def test_the_verdict_depends_on_the_generator_only(case):
    draws, y = case.chains(), case.mean
    before = np.random.get_state()[1].copy()
    one, two = (verdict(draws, y, rng=np.random.default_rng(3)) for _ in range(2))
    assert one == two
    np.testing.assert_array_equal(np.random.get_state()[1], before)


def test_invalid_arguments_of_a_verdict_are_refused(case):
    draws = case.chains(n_draws=30)
    with pytest.raises(ConfigError, match="unknown alignment 'procrustes'"):
        Reference(draws, "procrustes", case.rng)
    reference = Reference(draws, "orthogonal", case.rng)
    with pytest.raises(DataError, match="`alpha` must be between 0 and 1; got 5"):
        reference.judge(case.mean, alpha=5)
    with pytest.raises(DataError, match="contain the names of the 100 tested units; got 2 names"):
        reference.judge(case.mean, units=["a", "b"])
    with pytest.raises(DataError, match="100 units"):
        reference.judge(case.mean[1:])
    with pytest.raises(DataError, match="finite; got non-finite values for units 4"):
        reference.judge(np.where(np.arange(N)[:, None] == 4, np.nan, case.mean))
    with pytest.raises(DataError, match="draws of each unit must vary"):
        Reference(np.broadcast_to(case.mean, draws.shape), "orthogonal", case.rng)


@pytest.mark.parametrize(
    ("p_low", "p_guard", "n", "borderline"),
    [
        (1 / 401, 0.5, 1, ""),
        (0.5, 1 / 401, 1, ""),
        (0.5, 0.5, 1, ""),
        (0.5, 0.03, 1, "p_guard 0.03"),
        (0.5, 0.02, 1, "p_guard 0.02"),
        (0.03, 0.5, 1, "p_low 0.03"),
        (0.03, 1 / 401, 1, ""),
        (0.5, 0.012, 2, "p_guard 0.024"),
        (0.5, 0.06, 2, ""),
    ],
)
def test_a_borderline_verdict_is_noted(p_low, p_guard, n, borderline, case):
    """With 400 effective draws, 0.025 corresponds to nine draws with a standard error of three."""
    v = replace(Reference(case.chains(), "orthogonal", case.rng).judge(case.mean), p_low=p_low, p_guard=p_guard, ess=400.0)
    v = replace(v, gate_summary=1 / 401, gate_draw=1 / 401, notes=())
    others = [replace(v, p_low=0.9, p_guard=0.9)] * (n - 1)
    notes = holm([v, *others])[0].notes
    assert len(notes) == bool(borderline)
    assert not borderline or notes[0].startswith(
        f"borderline: {borderline} is within two Monte Carlo standard errors of the threshold 0.025"
    )


def test_a_borderline_gate_and_barely_enough_draws_are_noted(case):
    v = replace(Reference(case.chains(), "orthogonal", case.rng).judge(case.mean), p_low=0.5, p_guard=0.5, ess=400.0, notes=())
    assert (
        "borderline: gate_draw 0.02 is within two Monte Carlo standard errors of the threshold 0.025"
        in holm([replace(v, gate_draw=0.02)])[0].notes[0]
    )
    assert holm([replace(v, gate_draw=1 / 401)])[0].notes == ()
    assert "close to the required 39" in holm([replace(v, gate_draw=1 / 401, ess=39.5)])[0].notes[0]
