"""Tests of the verdict on clusterings: exact mixture posteriors, statistics by loops, gates and planted bugs."""

import itertools
import math

import numpy as np
import pytest
from scipy.stats import binom

from latentlab.compare import partition_verdict
from latentlab.compare.chains import ess, halves
from latentlab.compare.clustering import canonical, least_binder, minimum_binder
from latentlab.compare.judgement import holm
from latentlab.compare.partition_verdict import PartitionReference
from latentlab.errors import DataError

N, K = 150, 3


class Exact:
    """A mixture of three Gaussians on a line with known means: labels are independent given the data."""

    def __init__(self, rng, n=N, apart=3.0):
        self.rng, means = rng, apart * np.arange(K)
        self.truth = rng.integers(K, size=n)
        self.x = means[self.truth] + rng.normal(size=n)
        p = np.exp(-((self.x[:, None] - means) ** 2) / 2)
        self.p = p / p.sum(axis=1, keepdims=True)
        self.best = self.p.argmax(axis=1)

    def draw(self, *shape):
        return (self.rng.random((*shape, len(self.p), 1)) > self.p.cumsum(axis=1)[:, :-1]).sum(axis=-1)

    def chains(self, n_chains=4, n_draws=200, stay=0.0):
        """Returns correlated draws with the same distribution; each unit keeps its label with probability `stay`."""
        draws = self.draw(n_chains, n_draws)
        for t in range(1, n_draws):
            kept = self.rng.random((n_chains, len(self.p))) < stay
            draws[:, t] = np.where(kept, draws[:, t - 1], draws[:, t])
        return draws


@pytest.fixture
def case(rng):
    return Exact(rng)


def merge_clusters(y):
    return np.where(y == 1, 0, y)


def split_cluster(case):
    """Splits the largest cluster in two."""
    y = case.best.copy()
    units = np.flatnonzero(y == np.bincount(y).argmax())
    y[units[np.argsort(case.x[units])][: len(units) // 2]] = K
    return y


def move_units(case, n):
    y = case.best.copy()
    sure = np.argsort(-case.p.max(axis=1))[:n]
    y[sure] = (y[sure] + 1) % K
    return y


KNOWN = {
    "MAP": (lambda case: case.best, "summary-like"),
    "MAP renamed": (lambda case: 7 - 3 * case.best, "summary-like"),
    "one cluster": (lambda case: np.zeros(N), "distinct"),
    "singletons": (lambda case: np.arange(N), "distinct"),
    "merged": (lambda case: merge_clusters(case.best), "distinct"),
    "split": (split_cluster, "distinct"),
    "fifteen sure units moved": (lambda case: move_units(case, 15), "distinct"),
    "shuffled": (lambda case: case.rng.permutation(case.best), "distinct"),
    "shuffled draw": (lambda case: case.rng.permutation(case.draw()), "distinct"),
    "noise": (lambda case: case.rng.integers(K, size=N), "distinct"),
}


def test_known_clusterings_get_their_verdicts(rng):
    """Verdicts hold in most of 7 data sets. One differs with probability 1%, 4 of 7 with less than 1e-6 a row."""
    called = {name: 0 for name in KNOWN} | {"centre": 0}
    for _ in range(7):
        case = Exact(rng)
        reference = PartitionReference(case.chains(), rng)
        for name, (make, label) in KNOWN.items():
            called[name] += reference.judge(make(case)).verdict == label
        called["centre"] += reference.judge(reference.centre).verdict == "summary-like"
        assert reference.judge(reference.blocks).verdict in ("draw-like", "summary-like")
    assert min(called.values()) >= 4, called


def false_alarms(rng, n, stay=0.0, n_draws=100):
    """Numbers of data sets in which the verdict on a new draw, and on the truth, is wrong; at most half are undetermined."""
    found = []
    for _ in range(n):
        case = Exact(rng, n=40)
        reference = PartitionReference(case.chains(n_draws=n_draws, stay=stay), rng)
        found.append([reference.judge(y).verdict for y in (case.draw(), case.truth)])
    labels = np.array(found)
    assert ((labels == "undetermined").sum(axis=0) < n / 2).all()
    return np.isin(labels, ["summary-like", "distinct"]).sum(axis=0)


@pytest.mark.chance(2e-3)
def test_new_draws_and_true_labels_are_draw_like_at_the_level(rng):
    """The limit for 60 data sets is exceeded at a rate of 5% with probability 1e-3, 2e-3 over both rows."""
    assert (false_alarms(rng, 60) <= binom.isf(1e-3, 60, 0.05)).all()


@pytest.mark.chance(2e-3)
def test_new_draws_are_draw_like_for_slowly_mixing_chains_of_labels(rng):
    """Units keep their labels with probability 0.9. The limit of 20 is exceeded at a rate of 5% with probability 1e-3 a row.

    A verdict is undetermined in 1% of the data sets (20% with 500 draws), and in half of 20 with probability below 1e-14.
    """
    assert (false_alarms(rng, 20, stay=0.9, n_draws=1000) <= binom.isf(1e-3, 20, 0.05)).all()


def test_clustering_statistics_match_loops(rng):
    """All five statistics, p_low, p_guard and delta by loops over draws and pairs, independently of the code."""
    n, case = 60, Exact(rng, n=60)
    draws, y = case.chains(n_draws=30), case.draw()
    reference = PartitionReference(draws, np.random.default_rng(0))
    b, a = draws[::2].reshape(-1, n), draws[1::2].reshape(-1, n)
    pi = np.mean([z[:, None] == z for z in b], axis=0)
    blocks = [np.flatnonzero(reference.blocks == k) for k in range(reference.blocks.max() + 1)]
    assert any(np.array_equal(z[:, None] == z, reference.blocks[:, None] == reference.blocks) for z in b)

    def shares(z):
        found = []
        for k, m in itertools.combinations_with_replacement(range(len(blocks)), 2):
            pairs = itertools.combinations(blocks[k], 2) if k == m else itertools.product(blocks[k], blocks[m])
            found.append(np.mean([z[i] == z[j] for i, j in pairs]))
        return np.array(found)

    within = np.array([k == m for k, m in itertools.combinations_with_replacement(range(len(blocks)), 2)])
    sizes = [max(len(blocks[k]), len(blocks[m])) for k, m in itertools.combinations_with_replacement(range(len(blocks)), 2)]
    of_b = np.array([shares(z) for z in b])
    sd = np.maximum(of_b.std(axis=0), np.where(within, 2, 1) / np.array(sizes) / np.sqrt(len(b)))

    def misplaced(z):
        return np.array([sum(abs(float(z[i] == z[j]) - pi[i, j]) for j in range(n) if j != i) for i in range(n)])

    usual = np.array([misplaced(z) for z in b])
    own_sd = np.maximum(usual.std(axis=0), n / np.sqrt(len(b)))

    def statistics(z):
        by_unit = misplaced(z)
        surprise = math.log1p(sum(max(0.0, v) ** 2 for v in (by_unit - usual.mean(axis=0)) / own_sd))
        errors = (shares(z) - of_b.mean(axis=0)) / sd
        apart = np.mean([z[i] != z[j] for i, j in itertools.combinations(range(n), 2)])
        return sum(by_unit) / n / (n - 1), np.where(within, -errors, errors).max(), max(by_unit), apart, surprise

    pool = np.array([statistics(z) for z in [*a, y]])
    np.testing.assert_allclose(reference._statistics_of(np.stack([y]))[0], pool[-1], atol=1e-8)
    z = ((pool - np.median(pool, axis=0)) / pool.std(axis=0)).max(axis=1)
    found = reference.judge(y)
    share = (pool[:-1, 0] <= pool[-1, 0] + 1e-9).mean()
    effective = ess(pool[:-1, 0].reshape(2, 30))
    assert found.p_low == pytest.approx((1 + effective * share) / (1 + effective), rel=1e-6)
    share = (z[:-1] >= z[-1]).mean()
    assert found.p_guard == pytest.approx((1 + reference.ess_guard * share) / (1 + reference.ess_guard), rel=1e-6)
    least = statistics(reference.centre)[0]
    assert found.delta == pytest.approx(math.sqrt((pool[-1, 0] - least) / (pool[:-1, 0].mean() - least)), rel=1e-6)


def test_the_verdict_ignores_cluster_names(case):
    """Renaming clusters of the draws or of the clustering changes nothing in the verdict."""
    draws = case.chains()
    other = draws.copy()
    for index in np.ndindex(draws.shape[:2]):
        other[index] = case.rng.permutation(K)[draws[index]] * 4 - 1
    reference, again = (PartitionReference(x, np.random.default_rng(3)) for x in (draws, other))
    for y in (case.draw(), merge_clusters(case.best)):
        assert str(reference.judge(y)) == str(again.judge(5 - 2 * y))
    assert reference.judge(merge_clusters(case.best)).component.startswith("too many pairs in the same cluster between the ")


def test_delta_is_0_for_the_point_estimate_and_1_for_a_draw(case):
    reference = PartitionReference(case.chains(), case.rng)
    assert reference.judge(reference.centre).delta == 0
    assert np.mean([reference.judge(case.draw()).delta ** 2 for _ in range(100)]) == pytest.approx(1, abs=0.2)  # 5 sd
    assert reference.judge(case.rng.permutation(case.best)).delta > 2


def test_only_the_partition_of_a_certain_posterior_is_draw_like(rng):
    """All draws are equal, so that their partition is draw-like with delta 0 and all others are distinct."""
    truth = np.arange(30) % 3
    reference = PartitionReference(np.tile(truth, (2, 60, 1)), rng)
    same, other = reference.judge(2 - truth), reference.judge(np.where(np.arange(30) == 4, 2, truth))
    assert (same.verdict, same.delta) == ("draw-like", 0)
    assert (other.verdict, other.delta) == ("distinct", math.inf)
    assert "either the posterior is concentrated on one partition, or the chains do not move" in same.notes[-1]
    nearly = np.tile(truth, (4, 100, 1))
    nearly[:, ::10, 4] = 0
    found = PartitionReference(nearly, rng).judge(truth)
    assert found.verdict == "draw-like"
    assert "90% of the held-out draws do not have a larger expected loss than the centre" in found.notes[-1]


def test_an_uninformative_posterior_of_labels_gives_undetermined(rng):
    """The posterior labels are uniform, so that no clustering can be distinguished from another.

    Of 40 new draws more than 9 are distinct, or closer than draws, with probability below 1e-6 (rates of 0.025).
    """
    reference = PartitionReference(rng.integers(2, size=(4, 1000, 30)), rng)
    assert reference.gate_draw > 0.025
    judged = [reference.judge(rng.integers(2, size=30)) for _ in range(40)]
    assert {v.verdict for v in judged} <= {"undetermined", "distinct"}
    reasons = [v.reason for v in judged if v.verdict == "undetermined"]
    assert len(reasons) > 30
    expected = "posterior draws with permuted units could pass the same test; the posterior has too little information about the"
    assert sum(f"{expected} labels" in reason for reason in reasons) > 20
    found = reference.judge(reference.centre)
    assert found.verdict != "summary-like"


def test_too_few_draws_of_labels_give_undetermined(case):
    found = PartitionReference(case.chains(n_draws=15), case.rng).judge(case.best)
    assert found.verdict == "undetermined"
    assert "take more draws" in found.reason
    assert found.notes[0].startswith("few draws: the effective sample size is ")


def test_a_different_number_of_clusters_is_noted(case):
    reference = PartitionReference(case.chains(), case.rng)
    assert reference.judge(split_cluster(case)).notes == ("the clustering has 4 clusters, but the draws have 3",)
    assert reference.judge(case.best).notes == ()
    draws = case.chains()
    draws[:, ::9] = merge_clusters(draws[:, ::9])
    assert (
        "the clustering has 4 clusters, but the draws have 2 to 3"
        in PartitionReference(draws, case.rng).judge(split_cluster(case)).notes
    )


def test_the_component_and_the_worst_units_are_named(case):
    reference = PartitionReference(case.chains(), case.rng)
    names = [f"u{i}" for i in range(N)]
    found = reference.judge(merge_clusters(case.best), units=names)
    assert found.component.startswith("too many pairs in the same cluster between the ")
    assert found.component.count(" units u") == 2
    assert "The clustering is not compatible with the posterior; largest deviation: too many pairs in the same" in found.sentence
    pieces = reference.judge(split_cluster(case), units=names)
    assert pieces.component.startswith("fragmented clusters, with ")
    torn = reference.judge(np.where((case.best == 1) & (np.arange(N) % 2 == 0), 2, case.best), units=names)
    assert torn.verdict == "distinct"
    assert torn.component.startswith(
        ("too few pairs in the same cluster among the ", "too many pairs in the same cluster between the ")
    )
    odd = reference.judge(move_units(case, 1), units=names)
    sure = names[np.argmax(case.p.max(axis=1))]
    assert odd.worst_units[0] == sure
    assert len(odd.worst_units) == 5
    assert odd.alignment == "labels"
    assert math.isnan(odd.scale)
    assert math.isnan(odd.coverage_95)


def test_label_noise_in_one_chain_lowers_the_effective_draws(case):
    draws = case.chains()
    before = PartitionReference(draws, case.rng)
    draws[3] = case.rng.integers(K, size=draws[3].shape)
    after = PartitionReference(draws, case.rng)
    assert after.ess_low < 10 < 100 < before.ess_low
    assert after.judge(case.best).verdict == "undetermined"


def test_p_values_of_several_clusterings_are_adjusted_by_holm(case):
    reference = PartitionReference(case.chains(n_draws=200), case.rng)
    usual = max((reference.judge(case.draw()) for _ in range(9)), key=lambda one: min(one.p_low, one.p_guard))
    judged = [reference.judge(case.best), usual, reference.judge(merge_clusters(case.best))]
    adjusted = holm(judged)
    assert [v.verdict for v in adjusted] == ["summary-like", "draw-like", "distinct"]
    assert adjusted[0].p_low == pytest.approx(3 * judged[0].p_low)


def test_a_single_chain_is_split_with_a_gap(case):
    draws = case.chains(n_chains=1, n_draws=2000, stay=0.8)
    reference, held_out = halves(draws, partition_verdict._series, 4, "draws")
    assert 10 < 2000 - reference.shape[1] - held_out.shape[1] < 400
    found = PartitionReference(draws, case.rng)
    assert [found.judge(y).verdict for y in (case.best, merge_clusters(case.best))] == ["summary-like", "distinct"]


def test_the_clustering_verdict_depends_on_the_seed_only(case):
    draws = case.chains()
    before = draws.copy()
    first, again = (str(PartitionReference(draws, np.random.default_rng(5)).judge(case.best)) for _ in range(2))
    assert first == again
    np.testing.assert_array_equal(draws, before)


def test_invalid_clusterings_and_options_are_refused(case):
    reference = PartitionReference(case.chains(), case.rng)
    for y, options, says in [
        (case.best[1:], {}, "must label the 150 units of the draws; got 149 labels"),
        (np.full(N, 0.5), {}, r"the clustering: labels must be whole numbers; got 0\.5 for unit 0"),
        (case.best, {"alpha": 1.0}, "`alpha` must be between 0 and 1"),
        (case.best, {"units": ["a"]}, "must contain the names of the 150 units of the draws; got 1 names"),
    ]:
        with pytest.raises(DataError, match=says):
            reference.judge(y, **options)
    with pytest.raises(DataError, match="draws of labels: the reference half and the held-out half need at least 4 draws each"):
        PartitionReference(case.chains(n_draws=1), case.rng)
    with pytest.raises(DataError, match=r"shape \(chain, draw, unit\)"):
        PartitionReference(case.draw(5), case.rng)


class TwoSided(PartitionReference):
    """A planted bug: the guard is two-sided, so that agreement above that of draws counts as unusual."""

    def _errors(self, codes):
        return np.abs((self._shares(codes) - self._mean_share) / self._sd)


class Unguarded(PartitionReference):
    """A planted bug: no guard, only the distance is tested."""

    def _statistics_of(self, codes):
        return super()._statistics_of(codes)[:, [0, 0, 0, 0]]


def test_a_two_sided_guard_would_flag_the_point_estimate(rng):
    labels = {PartitionReference: [], TwoSided: []}
    for _ in range(12):
        case = Exact(rng, n=150, apart=2.0)
        draws = case.chains()
        for kind, found in labels.items():
            reference = kind(draws, rng)
            found += [reference.judge(y).p_guard for y in (case.best, reference.centre)]
    assert np.median(labels[PartitionReference]) > 0.5
    assert np.median(labels[TwoSided]) < 0.1


def test_without_the_guard_split_clusters_and_moved_units_pass(rng):
    passed = dict.fromkeys((PartitionReference, Unguarded), 0)
    for _ in range(6):
        case = Exact(rng, n=100, apart=2.0)
        draws = case.chains()
        for kind in passed:
            reference = kind(draws, rng)
            passed[kind] += sum(reference.judge(y).verdict != "distinct" for y in (split_cluster(case), move_units(case, 3)))
    assert passed[Unguarded] >= 11
    assert passed[PartitionReference] <= 5


@pytest.mark.chance(1e-3)
def test_ranked_draws_must_be_independent_of_the_reference(rng, monkeypatch):
    """A planted bug: all draws are in both halves, so that they are closer to the reference than new draws.

    The mean rank of 80 new draws has a standard error of 0.032; the limits are 4 of them.
    """

    def ranks(n):
        found = []
        for _ in range(n):
            case = Exact(rng, n=40, apart=2.0)
            found.append(PartitionReference(case.chains(n_draws=8), rng).judge(case.draw()).p_low)
        return np.mean(found)

    honest = ranks(80)
    monkeypatch.setattr(partition_verdict, "halves", lambda draws, *_: (draws[1::2], draws[1::2]))
    assert abs(honest - 0.5) < 0.13
    assert ranks(80) > 0.66


def test_the_reference_uses_the_first_half_of_the_draws(case):
    draws = case.chains()
    reference = PartitionReference(draws, case.rng)
    made = draws[::2]
    np.testing.assert_array_equal(reference.blocks, canonical(least_binder(made)))
    np.testing.assert_array_equal(canonical(reference.centre), canonical(minimum_binder(made)))
    loop = np.mean([z[:, None] == z for z in made.reshape(-1, N)], axis=0)
    np.testing.assert_allclose(reference.co_assignment, loop, atol=1e-12)
