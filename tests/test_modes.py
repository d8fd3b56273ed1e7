"""Tests of the detection of modes among chains and restarts."""

import numpy as np
import pytest
import torch

from latentlab.data.dataset import Dataset
from latentlab.fit import fit
from latentlab.inference.exact import Exact
from latentlab.inference.map import MAP
from latentlab.inference.svi import SVI
from latentlab.models.gaussian_mixture import GaussianMixture
from latentlab.results.diagnostics import diagnose
from latentlab.results.modes import COLUMNS, _modes, chain_modes, describe_modes, images, restart_modes
from latentlab.results.tree import build
from latentlab.symmetry.groups import Identity, Permutation

DIMS = {"mu": ("component",), "z": ("unit",)}


def chains(centres, rng, *, group=None, n_draws=400, levels=None, z=None):
    """Simulates chains with the given means `(chain, component)` and returns their modes."""
    centres = np.asarray(centres, dtype=float)
    mu = centres[:, None] + rng.standard_normal((len(centres), n_draws, centres.shape[1]))
    groups = {"posterior": {"mu": mu} | ({} if z is None else {"z": z})}
    if levels is not None:
        groups["sample_stats"] = {"lp": np.asarray(levels, dtype=float)[:, None] + 0.1 * rng.standard_normal((len(mu), n_draws))}
    data = build(groups, dims=DIMS, attrs={"inference": "mcmc"})
    return chain_modes(data, group=group or Identity("component"), dims=DIMS, position="z")


def test_two_planted_modes_are_found_and_ordered_by_level(rng):
    table = chains([[0, 0], [6, 0], [0.1, 0], [6, 0.1]], rng, levels=[-10, -5, -10, -5])
    assert tuple(table.columns) == COLUMNS
    assert table["members"].tolist() == ["1, 3", "0, 2"]
    assert table["n"].tolist() == [2, 2]
    assert table["share"].tolist() == [0.5, 0.5]
    assert table["log_density"].to_numpy() == pytest.approx([-5, -10], abs=0.1)
    assert table["differs in"].tolist() == ["", "mu[0]"]
    assert describe_modes(table, "chain", "lp") == "chains 1, 3: lp -5.0 | chains 0, 2: lp -10.0, differing in mu[0]"


@pytest.mark.parametrize(("off", "n_modes"), [(2.5, 1), (3.5, 2)])
def test_chains_three_sds_apart_are_different_modes(off, n_modes, rng):
    """With 2000 draws a chain the means are known to 0.03 sds."""
    assert len(chains([[0, 0], [off, 0]], rng, n_draws=2000)) == n_modes


def test_modes_are_found_by_single_linkage(rng):
    """Means 0 and 5 differ, but both are close to a chain between them."""
    assert len(chains([[0, 0], [5, 0]], rng)) == 2
    table = chains([[0, 0], [5, 0], [2.5, 0]], rng)
    assert table["members"].tolist() == ["0, 1, 2"]


def test_chains_with_permuted_labels_are_one_mode(rng):
    """Under permutations; without the symmetry they are two."""
    z = rng.integers(0, 2, (1, 400, 12))
    centres, labels = [[0, 6], [6, 0]], np.concatenate([z, 1 - z])
    assert len(chains(centres, rng, group=Permutation("component"), z=labels)) == 1
    assert len(chains(centres, rng, z=labels)) == 2


def test_chains_with_different_partitions_are_two_modes(rng):
    """Sites agree, and partitions differ."""
    one = (np.arange(12) < 6).astype(int)
    other = (np.arange(12) % 2).astype(int)
    z = np.stack([np.tile(row, (400, 1)) for row in (one, other)])
    flip = rng.random((2, 400, 12)) < 0.02
    table = chains([[0, 6], [0, 6]], rng, group=Permutation("component"), z=np.where(flip, 1 - z, z))
    assert len(table) == 2
    assert "co-assignment of z[" in table["differs in"].iloc[1]


def test_differing_sites_are_named_before_label_counts(rng):
    one, other = (np.arange(12) < 6).astype(int), (np.arange(12) < 2).astype(int)
    z = np.stack([np.tile(row, (400, 1)) for row in (one, other)])
    z = np.where(rng.random(z.shape) < 0.02, 1 - z, z)
    table = chains([[0, 6], [0, 12]], rng, group=Permutation("component"), z=z)
    assert "mu" in table["differs in"].iloc[1].split(", ")[0]


def test_one_chain_is_one_mode_without_level(rng):
    table = chains([[0, 0]], rng)
    assert table["members"].tolist() == ["0"]
    assert table["share"].tolist() == [1.0]
    assert np.isnan(table["log_density"]).all()


def test_non_finite_draws_join_no_mode(rng):
    """A non-finite chain is close to no other and does not link separate modes."""
    for group in (Identity("component"), Permutation("component")):
        table = chains([[np.nan, 0], [0, 0], [0, 0], [9, 0]], rng, group=group)
        assert set(table["members"]) == {"0", "1, 2", "3"}


def test_constant_chains_at_different_values_are_different_modes():
    """Constant chains are infinitely far apart if their values differ, and equal otherwise."""
    mu = np.zeros((3, 50, 1))
    mu[2] = 1.0
    data = build({"posterior": {"mu": mu}}, dims=DIMS, attrs={"inference": "mcmc"})
    table = chain_modes(data, group=Identity("component"), dims=DIMS, position="z")
    assert sorted(table["members"]) == ["0, 1", "2"]


# -- restarts


def restarts(mu, levels, *, group=None, kind="point", **more):
    mu = np.asarray(mu, dtype=float)
    data = build(
        {
            "posterior": {"mu": more.get("posterior", np.broadcast_to(mu[0], (1, 5, mu.shape[1])))},
            "restarts": {"mu": mu},
            "optimization": {"elbo" if kind == "vi" else "log_joint": np.asarray(levels, dtype=float)},
        },
        dims=DIMS,
        attrs={"inference": kind},
    )
    return restart_modes(data, group=group or Identity("component"), dims=DIMS, position="z")


def test_restarts_differ_by_level_but_not_by_permutation():
    mu = [[0.0, 6.0], [6.0, 0.0], [3.0, 3.5], [6.0 + 1e-4, 0.0]]
    table = restarts(mu, [-10, -10, -14, -10], group=Permutation("component"))
    assert table["members"].tolist() == ["0, 1, 3", "2"]
    assert table["share"].tolist() == [0.75, 0.25]
    assert table["log_density"].tolist() == [-10, -14]
    assert "mu" in table["differs in"].iloc[1]
    assert len(restarts(mu, [-10, -10, -14, -10])) == 3


def test_point_estimates_differ_by_level_or_by_position():
    assert len(restarts([[1.0, 2.0], [1.0, 2.0]], [-10, -10.5])) == 2
    assert len(restarts([[1.0, 2.0], [1.0, 2.0]], [-10, -10.005])) == 1
    assert len(restarts([[1.0, 2.0], [1.2, 2.0]], [-10, -10])) == 2
    assert len(restarts([[1.0, 2.0], [1.01, 2.0]], [-10, -10])) == 1


def test_approximations_are_compared_by_their_sds(rng):
    posterior = np.array([0.0, 6.0]) + 0.1 * rng.standard_normal((1, 4000, 2))
    table = restarts([[0.0, 6.0], [0.2, 6.0], [0.5, 6.0]], [-10, -10.3, -11], kind="vi", posterior=posterior)
    assert table["members"].tolist() == ["0, 1", "2"] or table["members"].tolist() == ["0, 1, 2"]
    # 0.5 - 0.2 is 3.0 sds: move it away for good
    table = restarts([[0.0, 6.0], [0.2, 6.0], [0.7, 6.0]], [-10, -10.3, -11], kind="vi", posterior=posterior)
    assert table["members"].tolist() == ["0, 1", "2"]


def test_a_non_finite_restart_is_a_separate_mode():
    mean = np.array([[0.0], [np.nan], [5.0]])
    table = _modes(mean, np.ones((3, 3, 1)), 3.0, np.array([-1.0, np.nan, -2.0]), ["mu[0]"])
    assert table["members"].tolist() == ["0", "2", "1"]


@pytest.fixture(scope="module")
def groups():
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.standard_normal((30, 1)) - 5, rng.standard_normal((20, 1)), rng.standard_normal((10, 1)) + 5])
    return Dataset({"x": x}, dims={"x": ("unit", "feature")})


@pytest.mark.parametrize(
    ("method", "level"),
    [
        (MAP(n_restarts=4, n_draws=5), "log_joint"),
        (Exact(n_restarts=4, n_draws=5), "maxima"),
        (SVI(guide="mean_field", n_steps=800, n_restarts=3, n_draws=400), "elbo"),
    ],
    ids=["map", "exact", "svi"],
)
def test_every_method_stores_all_restarts_with_their_levels(method, level, groups):
    """Two components for three groups have several optima; all restarts are stored and the best is the estimate."""
    found = fit(GaussianMixture(2, covariance="diagonal"), groups, method, seed=1, progress=False)
    kept, levels = found.data["restarts"], found.data["optimization"][level].values
    assert levels.shape == (method.n_restarts,)
    for name in ("weights", "mu", "sigma"):
        assert kept[name].dims[0] == "restart"
        assert kept[name].shape == (method.n_restarts, *found.sites()[name].shape[2:])
    np.testing.assert_allclose(kept["weights"].values.sum(-1), 1, rtol=1e-6)
    table = found.modes()
    assert table["n"].sum() == method.n_restarts
    assert table["log_density"].iloc[0] == pytest.approx(levels.max())
    if found.method.kind == "point":
        best = int(table["members"].iloc[0].split(", ")[0])
        at = np.sort(kept["mu"].values[best].ravel())
        np.testing.assert_allclose(at, np.sort(found.sites()["mu"][0, 0].ravel()), atol=0.05)
    rows = found.diagnostics().query("check == 'modes'")
    assert len(rows) == 1
    assert rows["quantity"].str.contains(rf"^\d of {method.n_restarts} restarts ended in the best mode(?:;|$)").all()


class ShuffledStarts(GaussianMixture):
    """Starts with the clusters in a new random order each time."""

    jitter = 0.0

    def initialize(self, arrays, rng):
        values = super().initialize(arrays, rng)
        order = rng.permutation(self.n_components)
        return {name: value[order] if name != "z" else value for name, value in values.items() if name != "z"}


@pytest.mark.parametrize("method", [MAP(n_restarts=4, n_draws=5), Exact(n_restarts=4, n_draws=5)], ids=["map", "exact"])
def test_restarts_with_permuted_labels_are_one_mode(method, groups):
    found = fit(ShuffledStarts(3, covariance="diagonal"), groups, method, seed=0, progress=False)
    ends = found.data["restarts"]["mu"].values[..., 0]
    assert len(np.unique(ends.argsort(-1), axis=0)) > 1, "no restart was permuted: the seed plants nothing"
    table = found.modes()
    assert table["n"].tolist() == [4]
    row = found.diagnostics().query("check == 'modes'").iloc[0]
    assert row["verdict"] == "pass"
    assert row["quantity"] == "4 of 4 restarts ended in the best mode"


@pytest.mark.parametrize(("starts", "verdict"), [("good, bad, bad", "warn"), ("good, bad, good", "pass")])
def test_a_best_optimum_found_only_once_warns(starts, verdict, rng):
    """With sd 1, either the groups of 20 and 10 or those of 30 and 20 are merged; the first is better."""
    x = np.repeat([-6.0, 0.0, 6.0], [30, 20, 10])[:, None] + 0.3 * rng.standard_normal((60, 1))
    groups = Dataset({"x": x}, dims={"x": ("unit", "feature")})
    means = iter({"good": [-6.0, 2.0], "bad": [-3.6, 6.0]}[start] for start in starts.split(", "))

    class Planted(GaussianMixture):
        def initialize(self, arrays, rng):
            values = super().initialize(arrays, rng)
            return {**{k: values[k] for k in ("weights", "sigma")}, "mu": torch.tensor(next(means)).double()[:, None]}

    model = Planted(2, covariance="diagonal", sigma_scale=1.0, sigma_spread=0.0)
    found = fit(model, groups, Exact(n_restarts=3, n_draws=5), seed=0, progress=False)
    row = found.diagnostics().query("check == 'modes'").iloc[0]
    assert row["verdict"] == verdict
    assert row["value"] == 2
    assert "mu" in row["quantity"]
    assert found.sites()["mu"][0, 0].max() == pytest.approx(2.0, abs=0.5)  # the estimate is the better one


@pytest.mark.parametrize(
    ("centres", "levels", "expected"),
    [
        ([[0, 6], [6, 0]], [-5, -5], "modes 0, 1 are images of one another under Permutation"),
        ([[4, 6], [-4, 6]], [-5, -5], "modes 0, 1 are images of one another under SignedPermutation"),
        ([[5, 0], [3, 4]], [-5, -5], "modes 0, 1 are images of one another under Orthogonal"),
        ([[0, 6], [6, 0]], [-5, -9], ""),
        ([[0, 6], [0, 12]], [-5, -5], ""),
    ],
    ids=["permuted", "mirrored", "rotated", "at other levels", "elsewhere"],
)
def test_symmetric_images_of_modes_are_noted(centres, levels, expected, rng):
    """Chains of 400 draws with sd 0.1 about two points that are equivalent only under a larger group than declared."""
    mu = np.asarray(centres, dtype=float)[:, None] + 0.1 * rng.standard_normal((2, 400, 2))
    lp = np.asarray(levels, dtype=float)[:, None] + 0.1 * rng.standard_normal((2, 400))
    groups = {"posterior": {"mu": mu}, "sample_stats": {"lp": lp}}
    data = build(groups, dims=DIMS, attrs={"inference": "mcmc"})
    declared = {"group": Identity("component"), "dims": DIMS, "position": "z"}
    table = chain_modes(data, **declared)
    assert len(table) == 2
    assert images(data, table, **declared) == expected
    row = diagnose(data, **declared).query("check == 'modes'").iloc[0]
    assert row["verdict"] == "fail"
    assert ("images of one another" in row["quantity"]) == bool(expected)


def test_constant_chains_are_not_reported_as_one_mode():
    data = build({"posterior": {"mu": np.ones((4, 50))}}, dims={"mu": ()}, attrs={"inference": "mcmc"})
    assert not len(chain_modes(data, group=Identity(), dims={"mu": ()}, position="mu"))
    row = diagnose(data, group=Identity(), dims={"mu": ()}, position="mu").query("check == 'modes'").iloc[0]
    assert np.isnan(row["value"])
    assert row["verdict"] == "fail"


def test_modes_of_equal_level_are_ordered_by_members(rng):
    for _ in range(10):
        level = -105.0 * (1 + 1e-13 * rng.standard_normal(2))
        table = _modes(np.array([[0.0], [9.0]]), np.ones((2, 2, 1)), 3.0, level, ["mu"])
        assert table["members"].tolist() == ["0", "1"]
