"""Tests of per-unit disagreement against loops and known distributions."""

import numpy as np
import pytest
from scipy.stats import rankdata

from latentlab.compare import units
from latentlab.compare.lift import draw_pairs
from latentlab.compare.neighbors import neighbors, overlap
from latentlab.compare.positions import Positions
from latentlab.compare.units import UnitsOfPositions, disagreement, rank_correlation
from latentlab.errors import ConfigError, DataError


def posterior(rng, n=60, d=2, scale=None, shape=(2, 50)):
    """Returns true positions and posterior draws whose means deviate from the truth by a posterior sd."""
    z = 2 * rng.normal(size=(n, d))
    scale = np.ones(n) if scale is None else scale
    mean = z + scale[:, None] * rng.normal(size=(n, d))
    return z, mean + scale[:, None] * rng.normal(size=(*shape, n, d))


def test_unit_distances_match_loops(rng):
    y, draws = posterior(rng, n=20, d=3, shape=(2, 8))
    found = disagreement(y, draws, rng, n_neighbors=4)
    flat = draws.reshape(16, 20, 3)
    covariances = [np.cov(flat[:, i].T) for i in range(20)]
    pooled = sum(covariances) / 20
    for i in range(20):
        off = y[i] - flat[:, i].mean(axis=0)
        size = np.trace(np.linalg.inv(pooled) @ covariances[i]) / 3
        shrunk = (15 * covariances[i] + 5 * size * pooled) / 20
        assert found.mahalanobis[i] == pytest.approx(np.sqrt(off @ np.linalg.inv(shrunk) @ off / 3))
        assert found.distance[i] == pytest.approx(np.sqrt((off**2).sum()))
        assert found.spread[i] == pytest.approx(np.sqrt(np.trace(covariances[i]) / 3))


def test_lost_neighbours_match_loops(rng):
    y, draws = posterior(rng, n=20, shape=(2, 3))

    def near(x):
        return [set(np.argsort(((x - row) ** 2).sum(axis=1))[1:5].tolist()) for row in x]

    lists = [[near(draws[c, s]) for s in range(3)] for c in range(2)]
    found = disagreement(y, draws, rng, n_neighbors=4, n_pairs=400)
    own = near(y)
    flat = [lists[c][s] for c in range(2) for s in range(3)]
    for i in range(20):
        assert found.neighbors[i] == pytest.approx(1 - np.mean([len(own[i] & one[i]) / 4 for one in flat]))
        across = [1 - len(a[i] & b[i]) / 4 for a in lists[0] for b in lists[1]]
        # 400 random pairs out of 9: standard error below 0.5 / 20; 5 of them.
        assert found.neighbors_own[i] == pytest.approx(np.mean(across), abs=0.125)


def test_mahalanobis_is_0_at_the_mean_and_1_on_average_at_draws(rng):
    scale = np.exp(rng.normal(size=500))
    _, draws = posterior(rng, n=500, scale=scale, shape=(2, 100))
    assert disagreement(draws.mean(axis=(0, 1)), draws, rng).mahalanobis.max() < 1e-9
    noise = rng.normal(size=(500, 2))
    fresh = draws.mean(axis=(0, 1)) + scale[:, None] * noise / np.sqrt((noise**2).mean())
    # 200 draws estimate a unit's covariance to 10%, so that their standard error over 500 units is 0.01, and move it by 0.02
    assert (disagreement(fresh, draws, rng).mahalanobis ** 2).mean() == pytest.approx(1.0, abs=0.1)


def test_mahalanobis_is_invariant_to_linear_maps(rng):
    y, draws = posterior(rng)
    A = np.array([[2.0, 1.0], [0.0, 0.3]])
    first, second = disagreement(y, draws, rng), disagreement(y @ A + 5, draws @ A + 5, rng)
    np.testing.assert_allclose(first.mahalanobis, second.mahalanobis)
    assert np.abs(first.distance / second.distance - 1).max() > 0.1


def test_a_moved_unit_is_detected(rng):
    """A large shift is detected by distance; a shift that is large relative to the posterior sd, by Mahalanobis distance."""
    scale = np.where(np.arange(60) < 30, 0.1, 2.0)
    _, draws = posterior(rng, scale=scale)
    y = draws.mean(axis=(0, 1)) + scale[:, None] * rng.normal(size=(60, 2)) * 0.5
    y[7] += [1.0, 0.0]
    found = disagreement(y, draws, rng)
    assert found.mahalanobis.argmax() == 7
    assert found.distance.argmax() != 7


def test_lost_neighbours_identify_moved_units(rng):
    z = rng.normal(size=(100, 2))
    draws = z + 0.05 * rng.normal(size=(2, 20, 100, 2))
    y = z.copy()
    y[:5] = -2.0 * z[:5] + [3.0, 0.0]
    found = disagreement(y, draws, rng, n_neighbors=8)
    excess = found.neighbors - found.neighbors_own
    assert excess[:5].min() > np.quantile(excess[5:], 0.95)


def test_uncertainty_correlates_with_disagreement(rng):
    y, draws = posterior(rng, n=200, scale=np.exp(rng.normal(size=200)))
    found = disagreement(y, draws, rng)
    assert found.uncertainty_correlation.value > 0.5
    assert found.uncertainty_correlation.p < 1e-6


def test_p_is_uniform_when_disagreement_is_unrelated_to_spread(rng):
    """Disagreement is independent of the posterior spread, so that p is uniform."""
    _, draws = posterior(rng, n=200, scale=np.exp(rng.normal(size=200)), shape=(2, 200))
    off = np.zeros((200, 2))
    off[rng.permutation(200)[:100]] = 20.0
    found = disagreement(draws.mean(axis=(0, 1)) + off + 1e-6 * rng.normal(size=(200, 2)), draws, rng)
    assert found.uncertainty_correlation.p > 1e-5


def test_equal_spreads_give_no_correlation(rng):
    z = rng.normal(size=(50, 2))
    shifts = np.concatenate([rng.normal(size=(1, 10, 1, 2)), rng.normal(size=(1, 10, 1, 2))])
    found = disagreement(z + rng.normal(size=(50, 2)), z + shifts, rng)
    assert np.ptp(found.spread) < 1e-9
    assert (found.uncertainty_correlation.value, found.uncertainty_correlation.p) == (0.0, 1.0)


def test_rank_correlation_matches_its_formula(rng):
    a, b = rng.normal(size=(2, 30))
    b = b + 0.5 * a
    gaps = rankdata(a) - rankdata(b)
    found = rank_correlation(a, b)
    assert found.value == pytest.approx(1 - 6 * (gaps**2).sum() / (30 * (30**2 - 1)))
    permuted = np.array([rank_correlation(a, rng.permutation(b)).value for _ in range(2000)])
    share = (permuted >= found.value).mean()
    assert found.p == pytest.approx(share, abs=5 * np.sqrt(share * (1 - share) / 2000) + 1e-3)


@pytest.mark.chance(1e-4)
def test_false_alarm_rate_of_the_uncertainty_correlation(rng):
    """Disagreement without relation to the spread, 1000 times: 5% of p below 0.05, within 4 binomial standard deviations."""
    p = np.array([rank_correlation(rng.gamma(3, size=40), rng.gamma(2, size=40)).p for _ in range(1000)])
    assert abs((p < 0.05).mean() - 0.05) < 4 * np.sqrt(0.05 * 0.95 / 1000)
    assert rank_correlation(np.arange(20.0), -np.arange(20.0)).p > 0.99


def test_invalid_embeddings_and_draws_are_refused(rng):
    y, draws = posterior(rng, n=20)
    with pytest.raises(DataError, match=r"shape of the draws, \(unit, latent\) = \(20, 2\); got \(20, 3\)"):
        disagreement(np.zeros((20, 3)), draws, rng, n_neighbors=5)
    with pytest.raises(DataError, match=r"shape of the draws, \(unit, latent\) = \(20, 2\); got \(19, 2\)"):
        disagreement(y[1:], draws, rng, n_neighbors=5)
    with pytest.raises(DataError, match="needs at least 2 draws; got 1"):
        disagreement(y, draws[:1, :1], rng, n_neighbors=5)
    with pytest.raises(DataError, match="draws of each unit must vary"):
        disagreement(y, np.repeat(draws[:, :1], 4, axis=1)[:1], rng, n_neighbors=5)
    with pytest.raises(DataError, match="draws of each unit must vary"):
        disagreement(y, draws * [1.0, 0.0], rng, n_neighbors=5)
    with pytest.raises(ConfigError, match="`n_neighbors` must be at least 1 and below half of the 20 units; got 10"):
        disagreement(y, draws, rng, n_neighbors=10)
    spoilt = draws.copy()
    spoilt[0, 1] = np.nan
    with pytest.raises(DataError, match="draw 1 of chain 0: positions must be finite"):
        disagreement(y, spoilt, rng, n_neighbors=5)


@pytest.mark.parametrize("kept", [units.MOST_CACHED, 0])
def test_units_of_many_embeddings_equal_those_of_each(kept, rng, monkeypatch):
    monkeypatch.setattr(units, "MOST_CACHED", kept)
    y, draws = posterior(rng, n=40, shape=(2, 5))
    common = UnitsOfPositions(draws, np.random.default_rng(1), n_neighbors=6, n_pairs=9)
    near = [[neighbors(Positions(draw), 6) for draw in chain] for chain in draws]
    pairs = draw_pairs(2, 5, np.random.default_rng(1), 9)
    own = sum(overlap(near[a][s], near[b][t]) for (a, s), (b, t) in pairs) / 9
    for x in (y, draws[1, 2], rng.permutation(y)):
        found = common.disagreement(x)
        shared = np.mean([overlap(neighbors(Positions(x), 6), one) for chain in near for one in chain], axis=0)
        np.testing.assert_allclose(found.neighbors, 1 - shared, atol=1e-10)
        np.testing.assert_allclose(found.neighbors_own, 1 - own, atol=1e-10)
        alone = disagreement(x, draws, np.random.default_rng(1), n_neighbors=6, n_pairs=9)
        np.testing.assert_array_equal(found.mahalanobis, alone.mahalanobis)
