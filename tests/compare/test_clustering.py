"""Tests of summaries of posterior partitions against enumeration, loops and exact posteriors."""

import itertools
import math

import numpy as np
import pytest
from helpers import all_partitions

from latentlab.compare import clustering
from latentlab.compare.agreement import variation_of_information
from latentlab.compare.clustering import (
    credible_ball,
    distances,
    expected_loss,
    improved,
    least_binder,
    minimum_binder,
    minimum_vi,
    misplaced,
    n_clusters,
    n_clusters_probabilities,
    unsettled,
)
from latentlab.compare.co_assignment import co_assignment, together
from latentlab.errors import ConfigError, DataError


def binder(x, y):
    """Share of pairs that are together in only one of the two partitions, by a loop."""
    pairs = list(itertools.combinations(range(len(x)), 2))
    return sum((x[i] == x[j]) != (y[i] == y[j]) for i, j in pairs) / len(pairs)


def mixture(rng, n=40, n_chains=4, n_draws=50, overlap=1.0):
    """Draws of labels, independent by unit, of three clusters on a line; and the probabilities `(unit, cluster)`."""
    x = np.repeat([0.0, 3.0, 6.0], n // 3 + 1)[:n] + rng.normal(size=n)
    p = np.exp(-((x[:, None] - [0, 3, 6]) ** 2) / 2 / overlap)
    p /= p.sum(axis=1, keepdims=True)
    return (rng.random((n_chains, n_draws, n, 1)) > p.cumsum(axis=1)[:, :-1]).sum(axis=-1), p


def with_random_names(draws, rng):
    """Renames the clusters of each draw at random."""
    out = draws.copy()
    for index in np.ndindex(draws.shape[:2]):
        out[index] = (rng.permutation(int(draws.max()) + 1) * 3 - 4)[draws[index]]
    return out


def same_partition(x, y):
    return binder(x, y) == 0


def test_distances_match_loops(rng):
    codes = rng.integers(4, size=(20, 15))
    codes = np.array([np.unique(c, return_inverse=True)[1] for c in codes])
    for y in (codes[3], rng.integers(3, size=15), np.zeros(15, dtype=int), np.arange(15)):
        np.testing.assert_allclose(distances(y, codes, "binder"), [binder(y, c) for c in codes], atol=1e-14)
        np.testing.assert_allclose(distances(y, codes), [variation_of_information(y, c) for c in codes], atol=1e-12)


def test_dense_sparse_and_blockwise_tables_give_the_same_results(rng, monkeypatch):
    draws, _ = mixture(rng)
    codes = clustering.partitions(draws).reshape(-1, 40)
    y, mean = codes[7], together(codes)
    before = distances(y, codes), distances(y, codes, "binder"), misplaced(codes, mean), mean
    monkeypatch.setattr(clustering, "CELLS", 500)
    np.testing.assert_allclose(distances(y, codes), before[0], atol=1e-14)
    np.testing.assert_allclose(misplaced(codes, mean), before[2], atol=1e-12)
    np.testing.assert_allclose(together(codes), before[3], atol=1e-12)
    monkeypatch.setattr(clustering, "SPARSE", 0)
    np.testing.assert_allclose(distances(y, codes), before[0], atol=1e-14)
    np.testing.assert_allclose(distances(y, codes, "binder"), before[1], atol=1e-14)


def test_co_assignment_matches_a_loop_for_any_cluster_names(rng):
    draws, _ = mixture(rng, n=12, n_draws=17)
    found, again = co_assignment(draws), co_assignment(with_random_names(draws, rng))
    loop = np.mean([one[:, None] == one for one in draws.reshape(-1, 12)], axis=0)
    np.testing.assert_allclose(found.mean, loop, atol=1e-12)
    np.testing.assert_allclose(again.mean, loop, atol=1e-12)
    np.testing.assert_allclose(again.standard_error, found.standard_error, atol=1e-12)
    np.testing.assert_array_equal(np.diag(found.mean), 1)


def test_co_assignment_matches_an_enumerated_posterior(rng):
    """P(z_i = z_j) = sum over all 3^5 labels of their probability; draws of the same, within 5 standard errors."""
    p = rng.dirichlet(np.ones(3), size=5)
    exact = np.zeros((5, 5))
    for z in itertools.product(range(3), repeat=5):
        exact += np.prod(p[np.arange(5), z]) * (np.array(z)[:, None] == np.array(z))
    draws = (rng.random((8, 2000, 5, 1)) > p.cumsum(axis=1)[:, :-1]).sum(axis=-1)
    found = co_assignment(draws)
    off = ~np.eye(5, dtype=bool)
    assert (np.abs(found.mean - exact)[off] < 5 * found.standard_error[off]).all()
    plain = np.sqrt((exact * (1 - exact))[off] / 16_000)
    assert (found.standard_error[off] > 0.7 * plain).all()
    assert (found.standard_error[off] < 3 * plain).all()
    assert found.ess[off].min() > 16_000 / 9
    assert np.isnan(np.diag(found.ess)).all()


def test_standard_errors_grow_with_disagreeing_chains_and_repeated_draws(rng):
    """One of 4 chains samples random labels, so that the error is that of 4 chains, not of 800 draws."""
    draws, _ = mixture(rng, n_draws=200)
    before = co_assignment(draws)
    noisy = draws.copy()
    noisy[2] = rng.integers(3, size=noisy[2].shape)
    after = co_assignment(noisy)
    changing = (before.mean > 0.3) & (before.mean < 0.7)
    assert np.median(before.ess[changing]) > 200
    surely = (before.mean > 0.9) & ~np.eye(40, dtype=bool)
    assert np.median(after.ess[surely]) < 10
    assert np.median(after.standard_error[surely]) > 10 * np.median(before.standard_error[surely])
    repeated = co_assignment(np.repeat(draws[:, ::20], 20, axis=1))
    assert np.median(repeated.ess[changing]) < 100


def test_standard_errors_of_a_single_chain_and_a_single_draw(rng):
    draws, _ = mixture(rng, n_chains=1, n_draws=400)
    found = co_assignment(draws)
    changing = (found.mean > 0.3) & (found.mean < 0.7)
    assert 100 < np.median(found.ess[changing]) <= 400
    assert np.isnan(co_assignment(draws[:, :1]).standard_error).all()


def test_the_estimate_minimises_the_loss_over_all_partitions_of_5_units(rng):
    """Compares the estimate with the smallest expected loss over all 52 partitions, computed by loops."""
    every = all_partitions(5)
    for _ in range(4):
        weights = rng.dirichlet(np.full(52, 0.2))
        draws = every[rng.choice(52, size=(2, 100), p=weights)]
        flat = draws.reshape(-1, 5)
        losses = np.array([np.mean([binder(x, z) for z in flat]) for x in every])
        vi = np.array([np.mean([variation_of_information(x, z) for z in flat]) for x in every])
        pi = co_assignment(draws).mean
        for x, loss, info in zip(every, losses, vi, strict=True):
            assert expected_loss(x, draws, "binder") == pytest.approx(loss, abs=1e-12)
            assert expected_loss(x, draws) == pytest.approx(info, abs=1e-12)
            assert misplaced(x[None], pi).sum() / 20 == pytest.approx(loss, abs=1e-12)
        assert expected_loss(least_binder(draws, every), draws, "binder") == pytest.approx(losses.min(), abs=1e-12)
        drawn = [np.flatnonzero((every == z).all(axis=1))[0] for z in np.unique(flat, axis=0)]
        assert expected_loss(least_binder(draws), draws, "binder") == pytest.approx(losses[drawn].min(), abs=1e-12)
        assert vi.min() - 1e-12 <= expected_loss(minimum_vi(draws), draws) <= vi[drawn].min() + 1e-12
        assert losses.min() - 1e-12 <= expected_loss(minimum_binder(draws), draws, "binder") <= losses[drawn].min() + 1e-12


@pytest.mark.parametrize(("estimate", "distance"), [(minimum_vi, "vi"), (minimum_binder, "binder")])
def test_no_move_of_a_single_unit_improves_an_estimate(estimate, distance, rng):
    draws, _ = mixture(rng, n=25, overlap=4.0)
    y = estimate(draws)
    loss = expected_loss(y, draws, distance)
    assert loss < min(expected_loss(z, draws, distance) for z in draws.reshape(-1, 25))
    for i, k in itertools.product(range(25), range(y.max() + 1)):
        other = y.copy()
        other[i] = k
        assert expected_loss(other, draws, distance) >= loss - 1e-9
    assert expected_loss(estimate(draws, n_sweeps=0), draws, distance) > loss


def test_the_estimated_number_of_clusters_does_not_depend_on_one_draw(rng):
    """Two large groups and a pair; in each draw four units of the large groups are exchanged.

    The best single draw has no exchanged units but lacks the pair as cluster, and no move of one unit opens it again.
    """
    base = np.repeat([0, 1, 2], [12, 12, 2])
    draws = np.tile(base, (2, 100, 1))
    for draw in draws.reshape(-1, 26):
        astray = rng.choice(24, 4, replace=False)
        draw[astray] = 1 - draw[astray]
    draws[0, 0] = np.repeat([0, 1, 0], [12, 12, 2])
    every = draws.reshape(-1, 26)
    assert int(np.argmin([expected_loss(z, draws, "binder") for z in every])) == 0
    assert same_partition(minimum_binder(draws), base)


def test_estimates_do_not_depend_on_cluster_names(rng):
    draws, _ = mixture(rng)
    other = with_random_names(draws, rng)
    for estimate in (least_binder, minimum_vi, minimum_binder):
        assert same_partition(estimate(draws), estimate(other))
    ball, again = (credible_ball(d, least_binder(d)) for d in (draws, other))
    assert ball.radius == pytest.approx(again.radius)
    for bound in ("upper", "lower", "horizontal"):
        np.testing.assert_array_equal(getattr(ball, bound), getattr(again, bound))


def test_credible_ball_matches_its_definition(rng):
    """Wade and Ghahramani (2018), section 3: radius, and bounds by number of clusters and by distance, from loops."""
    draws, _ = mixture(rng, n=20, overlap=4.0)
    draws[:, ::5, :5] = 3
    centre = minimum_vi(draws)
    for level, distance, by_loop in [(0.95, "vi", variation_of_information), (0.5, "binder", binder), (1.0, "vi", None)]:
        away = np.array([(by_loop or variation_of_information)(centre, z) for z in draws.reshape(-1, 20)])
        ball = credible_ball(draws, centre, level, distance)
        assert (away <= ball.radius + 1e-9).mean() == pytest.approx(ball.mass)
        assert ball.mass >= level
        assert (away < ball.radius - 1e-9).mean() < level
        inside = draws.reshape(-1, 20)[away <= ball.radius + 1e-9]
        sizes = np.array([len(np.unique(z)) for z in inside])
        far = away[away <= ball.radius + 1e-9]
        for bound, those in [
            (ball.upper, sizes == sizes.min()),
            (ball.lower, sizes == sizes.max()),
            (ball.horizontal, sizes > 0),
        ]:
            expected = [z for z, d in zip(inside[those], far[those], strict=True) if d > far[those].max() - 1e-9]
            assert all(any(same_partition(z, b) for b in bound) for z in expected)
            assert all(any(same_partition(z, b) for z in expected) for b in bound)
            assert len(np.unique(bound, axis=0)) == len(bound)


def test_the_credible_ball_of_a_certain_posterior_has_radius_0():
    draws = np.tile([0, 0, 1, 2], (2, 10, 1))
    ball = credible_ball(draws, [5, 5, 1, 0])
    assert (ball.radius, ball.mass) == (0, 1)
    for bound in (ball.upper, ball.lower, ball.horizontal):
        np.testing.assert_array_equal(bound, [[0, 0, 1, 2]])


def test_distribution_of_the_number_of_clusters():
    draws = [[[0, 0, 9], [4, 4, 4]], [[1, 2, 3], [0, 0, 1]]]
    np.testing.assert_array_equal(n_clusters(draws), [[2, 1], [3, 2]])
    np.testing.assert_array_equal(n_clusters_probabilities(draws), [0, 0.25, 0.5, 0.25])


def test_draws_are_not_modified(rng):
    draws, _ = mixture(rng)
    before = draws.copy()
    minimum_vi(draws)
    credible_ball(draws, least_binder(draws))
    co_assignment(draws)
    np.testing.assert_array_equal(draws, before)


def test_memory_of_co_assignment_does_not_grow_with_the_number_of_draws(rng):
    import tracemalloc

    def peak(n_draws):
        draws = rng.integers(5, size=(2, n_draws, 300))
        tracemalloc.start()
        co_assignment(draws)
        top = tracemalloc.get_traced_memory()[1] - draws.nbytes * 3
        tracemalloc.stop()
        return top

    assert peak(1000) < 300**2 * 8 * 12 + 4 * clustering.CELLS * 8


@pytest.mark.parametrize(
    ("draws", "says"),
    [
        (np.zeros((4, 10)), r"shape \(chain, draw, unit\) with at least 2 units; got \(4, 10\)"),
        (np.zeros((4, 10, 1)), "with at least 2 units"),
        (np.zeros((4, 0, 5)), r"got \(4, 0, 5\)"),
        (np.full((2, 3, 4), 0.5), r"draws: labels must be whole numbers; got 0\.5 for \(0, 0, 0\)"),
        (np.full((2, 3, 4), np.nan), "whole numbers; got nan"),
        (np.full((2, 3, 4), "a"), "whole numbers; got <U1"),
    ],
)
def test_arrays_that_are_not_label_draws_are_refused(draws, says):
    for read in (co_assignment, least_binder, minimum_vi, n_clusters):
        with pytest.raises(DataError, match=says):
            read(draws)


def test_mismatched_units_and_invalid_options_are_refused(rng):
    draws, _ = mixture(rng)
    with pytest.raises(DataError, match="39 units in y and 40 in the draws"):
        expected_loss(draws[0, 0, :39], draws)
    with pytest.raises(DataError, match="must label the 40 units of the draws; got 39 labels"):
        credible_ball(draws, draws[0, 0, :39])
    for level in (0, 1.1, math.nan):
        with pytest.raises(ConfigError, match="`level`"):
            credible_ball(draws, draws[0, 0], level)
    with pytest.raises(ConfigError, match="unknown distance 'bindr'; did you mean 'binder'"):
        credible_ball(draws, draws[0, 0], distance="bindr")


def test_units_whose_cluster_differs_between_chains_are_unsettled():
    """Unit 4 is in one cluster in the first chain, in the other in the second; cluster names differ between chains."""
    first, second = np.array([0, 0, 1, 1, 0]), np.array([1, 1, 0, 0, 0])
    draws = np.stack([np.tile(first, (20, 1)), np.tile(second, (20, 1))])
    centre = minimum_binder(draws)
    assert unsettled(draws, centre).tolist() == [4]
    assert unsettled(draws[:1], first).tolist() == []
    one_chain = np.concatenate([draws[:1], draws[1:]], axis=1)
    assert unsettled(one_chain, centre).tolist() == [4]
    assert unsettled(draws, np.zeros(5, dtype=int)).tolist() == []


def test_between_chain_spread_makes_a_unit_unsettled():
    """Unit 4 is in the first cluster in three of four chains: a share of .75 with a standard error of .25."""
    first, second = np.array([0, 0, 1, 1, 0]), np.array([0, 0, 1, 1, 1])
    draws = np.stack([np.tile(own, (400, 1)) for own in (first, first, first, second)])
    assert unsettled(draws, minimum_binder(draws)).tolist() == [4]


@pytest.mark.parametrize(("n_beyond", "told"), [(50, True), (45, True), (20, False)])
def test_a_unit_is_unsettled_within_two_standard_errors(n_beyond, told):
    """Unit 6 is in the second cluster in the given number of 100 chains of one draw; the standard error of 50 is 5."""
    base = np.array([0, 0, 0, 1, 1, 1, 0])
    draws = np.tile(base, (100, 1, 1))
    draws[:n_beyond, 0, 6] = 1
    assert unsettled(draws, base).tolist() == ([6] if told else [])


def test_ties_between_clusters_go_to_the_first(rng):
    """A unit is equally often in two clusters, and rounding of the logarithmic loss would decide."""
    base = np.repeat([0, 1, 2], 7)
    for _ in range(5):
        order = rng.permutation(40)
        draws = np.tile(base, (40, 1))
        draws[:20, 0], draws[20:, 0] = 1, 2
        np.testing.assert_array_equal(improved(base, draws[order], "vi"), improved(base, draws, "vi"))
