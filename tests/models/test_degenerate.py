"""Tests of degenerate data and estimates, and of scale equivariance of maximum likelihood."""

import numpy as np
import pytest
import torch
from scipy.special import ndtri

from latentlab.data.dataset import Dataset
from latentlab.errors import DataError
from latentlab.fit import fit
from latentlab.inference.arrays import tensors
from latentlab.inference.exact import Exact
from latentlab.inference.map import MAP
from latentlab.inference.nuts import NUTS
from latentlab.models.count_hmms import PoissonHMM
from latentlab.models.count_mixtures import PoissonMixture
from latentlab.models.factor_analysis import FactorAnalysis
from latentlab.models.gaussian_hmm import GaussianHMM
from latentlab.models.gaussian_mixture import DPMixture, GaussianMixture
from latentlab.models.linear_vae import LinearVAE
from latentlab.models.ppca import PPCA
from latentlab.models.state_space import LinearGaussianStateSpace
from latentlab.models.vae import VAE

COVARIANCES = ("full", "diagonal", "spherical", "tied")
ONE_START = Exact(n_restarts=1, n_draws=4)


def table(x, **coords):
    return Dataset({"x": np.asarray(x, dtype=float)}, dims={"x": ("unit", "feature")}, coords=coords)


def two_groups(rng, n=60):
    z = rng.integers(2, size=n)
    return np.array([[0.0, 0.0], [4.0, 4.0]])[z] + rng.standard_normal((n, 2)) @ np.array([[1.0, 0.3], [0.0, 0.8]])


def maximum(model, x):
    dataset = table(x)
    model.check(dataset)
    model.check_maximum(dataset)
    return model.maximum_likelihood(tensors(model, dataset), np.random.default_rng(0))


def noted(found, check="estimate"):
    return found.diagnostics().query("check == @check")["quantity"].tolist()


def cautions(model, dataset):
    return [caution.quantity for caution in model.cautions(dataset)]


# -- scale


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("covariance", COVARIANCES)
@pytest.mark.parametrize("kind", [GaussianMixture, GaussianHMM])
def test_the_maximum_is_equivariant_to_scale_and_offset(kind, covariance, missing, rng):
    """The maximum for separated groups is found to 1e-9 in data units; a large offset loses its own digits."""
    x = two_groups(rng)
    if missing:
        x[::7, 0] = np.nan
    model = kind(2, covariance=covariance)
    plain = maximum(model, x)
    n_seen = (~np.isnan(x)).sum(0)
    columns = [(1e-6, 1e5)] if covariance != "spherical" else []
    for scale in [1e-12, 1e-5, 1e-3, 1e12, *columns]:
        for offset in (0.0, 1e3):
            unit = np.broadcast_to(scale, 2)
            found = maximum(model, (x + offset) * unit)
            assert found.notes == plain.notes == ()
            np.testing.assert_allclose(found.values["mu"] / unit - offset, plain.values["mu"], atol=1e-6)
            sigma = found.values["sigma"] / (unit[0] if covariance == "spherical" else unit)
            np.testing.assert_allclose(sigma, plain.values["sigma"], rtol=1e-6)
            for name in set(plain.values) - {"mu", "sigma"}:
                np.testing.assert_allclose(found.values[name], plain.values[name], atol=1e-6)
            assert found.trace[-1] + n_seen @ np.log(unit) == pytest.approx(plain.trace[-1], abs=1e-4)


def test_fixed_standard_deviations_are_in_data_units(rng):
    x = two_groups(rng)
    for covariance in COVARIANCES:
        plain = maximum(GaussianMixture(2, covariance=covariance, sigma_scale=0.9, sigma_spread=0.0), x)
        small = maximum(GaussianMixture(2, covariance=covariance, sigma_scale=0.9e-5, sigma_spread=0.0), x * 1e-5)
        assert (small.values["sigma"] == 0.9e-5).all()
        np.testing.assert_allclose(small.values["mu"] * 1e5, plain.values["mu"], rtol=1e-6)


def test_two_volatilities_of_small_returns_are_found(rng):
    """Standard deviations of 2e-4 and 8e-4 in long spells, from a start between them."""

    class Planted(GaussianHMM):
        def initialize(self, arrays, rng):
            values = {
                "initial": [0.5, 0.5],
                "transition": [[0.9, 0.1], [0.1, 0.9]],
                "mu": [[0.0], [0.0]],
                "sigma": [[4e-4], [6e-4]],
            }
            return {name: torch.tensor(value, dtype=torch.float64) for name, value in values.items()}

    calm = (np.arange(600) // 100) % 2 == 0
    x = np.where(calm, 2e-4, 8e-4) * rng.standard_normal(600)
    found = fit(Planted(2), table(x[:, None]), ONE_START, seed=0, progress=False)
    sigma = found.sites()["sigma"][0, 0, :, 0]
    np.testing.assert_allclose(sigma, [2e-4, 8e-4], rtol=5 / np.sqrt(2 * 300) + 0.05)  # 6e-7 each; a few steps are misplaced
    assert noted(found) == []
    share = np.mean(found.probabilities().values[0, 0].argmax(-1) == calm)  # labels are aligned: in either order
    assert max(share, 1 - share) > 0.95


@pytest.mark.parametrize("covariance", ["full", "diagonal"])
def test_a_narrow_group_is_not_reported_as_collapse(covariance, rng):
    narrow, wide = 1e-4 * rng.standard_normal((30, 2)), 5 + rng.standard_normal((30, 2))
    found = maximum(GaussianMixture(2, covariance=covariance), np.vstack([narrow, wide]))
    assert found.notes == ()
    k = int(np.argmin(found.values["sigma"][:, 0]))
    np.testing.assert_allclose(found.values["sigma"][k], narrow.std(0), rtol=1e-6)


def test_a_group_narrower_than_the_floor_is_not_reported_as_unbounded(rng):
    x = np.vstack([1e-8 * rng.standard_normal((30, 2)), 5 + rng.standard_normal((30, 2))])
    (note,) = maximum(GaussianMixture(2, covariance="diagonal"), x).notes
    assert "(30 units) is at the lower bound of the variances, a standard deviation of 1e-05 times that of the data" in note


@pytest.mark.parametrize("covariance", COVARIANCES[:3])
def test_equal_units_are_reported_as_unbounded_at_any_scale(covariance, rng):
    x = np.vstack([np.full((30, 2), 3.0), 50 + rng.standard_normal((30, 2))])
    for scale in (1e-9, 1.0):
        (note,) = maximum(GaussianMixture(2, covariance=covariance), x * scale).notes
        assert "(30 units) is at the lower bound of the variances: the likelihood is unbounded there" in note


# -- what the data leave arbitrary


def test_coinciding_components_are_named():
    """Counts that vary less than a Poisson's: the best mixture is one Poisson, however many components it has."""
    x = np.array([0.0] + [1.0] * 8 + [2.0])[:, None].repeat(4, 0)
    x = np.concatenate([x, x])
    found = fit(PoissonMixture(3), table(x), ONE_START, seed=0, progress=False)
    assert noted(found) == ["components 0, 1, 2 coincide: their weights are not identified"]
    assert (found.diagnostics().query("check == 'estimate'")["verdict"] == "warn").all()
    apart = np.repeat([[1.0], [40.0], [300.0]], 20, axis=0)
    assert not any("coincide" in note for note in noted(fit(PoissonMixture(3), table(apart), ONE_START, seed=0, progress=False)))


@pytest.mark.parametrize("method", [ONE_START, MAP(n_restarts=1, n_draws=4)])
def test_coinciding_states_are_named(method):
    found = fit(PoissonHMM(2), table(np.zeros((30, 1))), method, seed=0, progress=False)
    assert "states 0, 1 coincide: only their transitions can differ" in noted(found)


def test_a_state_visited_only_last_has_no_transitions():
    x = np.concatenate([np.zeros(20), np.full(1, 50.0)])
    found = fit(PoissonHMM(2), table(x[:, None]), ONE_START, seed=0, progress=False)
    assert any("no transition from state" in note and "is not identified" in note for note in noted(found))


@pytest.mark.parametrize("method", [ONE_START, NUTS(n_chains=1, n_warmup=5, n_draws=5, max_tree_depth=2)])
def test_sequences_of_one_step_are_noted(method, rng):
    x = np.concatenate([rng.standard_normal(10), 8 + rng.standard_normal(10)])[:, None]
    found = fit(GaussianHMM(2), table(x, sequence=np.arange(20)), method, seed=0, progress=False)
    assert noted(found, "data") == ["no transition was observed: every sequence has one step"]
    pairs = table(x, sequence=np.arange(20) // 2)
    assert cautions(GaussianHMM(2), pairs) == []


# -- data that a density describes badly


def test_data_on_which_every_start_collapses_are_refused(rng):
    x = rng.standard_normal((100, 2))
    method = Exact(n_draws=4)
    total = np.column_stack([x, x.sum(1)])
    for model in (GaussianMixture(2), GaussianMixture(2, covariance="tied"), GaussianHMM(2, covariance="full")):
        for data in (total, total * [1e-9, 1.0, 1e9], np.column_stack([x, x[:, 0]])):
            with pytest.raises(DataError, match=r"column '2' is a linear combination of the others.*unbounded"):
                fit(model, table(data), method)
        with pytest.raises(DataError, match=r"has 20 units and 30 columns. With covariance '.*' the likelihood is unbounded"):
            fit(model, table(rng.standard_normal((20, 30))), method)
    constant = np.column_stack([x, np.full(100, 7.0)])
    with pytest.raises(DataError, match="column '2' is constant, so the likelihood is unbounded"):
        fit(GaussianMixture(2, covariance="diagonal"), table(constant), method)
    GaussianMixture(2, covariance="diagonal").check_maximum(table(total))
    GaussianMixture(2, covariance="spherical").check_maximum(table(constant))
    GaussianMixture(2, covariance="diagonal", sigma_spread=0.0).check_maximum(table(constant))


def test_em_stops_soon_after_a_collapse(rng):
    """With many columns every component is singular; variances stop at their floor and no long descent follows."""
    found = maximum(GaussianMixture(3), rng.standard_normal((40, 30)))
    assert any("the likelihood is unbounded there" in note for note in found.notes)
    assert len(found.trace) < 200


def test_data_notes_appear_in_the_diagnostics_of_every_method(rng):
    x = np.column_stack([rng.integers(2, size=40), rng.standard_normal(40)])
    model = GaussianMixture(2, covariance="diagonal")
    expected = [
        "column '0' has 2 distinct values: a continuous density fits it poorly, and components can collapse onto single values"
    ]
    for method in (ONE_START, MAP(n_restarts=1, n_draws=4), NUTS(n_chains=1, n_warmup=3, n_draws=4, max_tree_depth=1)):
        found = fit(model, table(x), method, seed=0, progress=False)
        assert noted(found, "data") == expected
    assert "components can collapse onto single values" in cautions(GaussianHMM(2), table(x))[0]
    assert "components can collapse onto single values" in cautions(DPMixture(4), table(x))[0]


def test_each_kind_of_degenerate_data_has_its_note(rng):
    x, model = rng.standard_normal((40, 2)), GaussianMixture(2)
    assert cautions(model, table(x)) == []
    assert cautions(model, table(np.column_stack([x, x.sum(1)]))) == [
        "column '2' is a linear combination of the others: the covariance is singular"
    ]
    assert cautions(model, table(np.column_stack([x, x[:, 1]])))[0] == "columns '1' and '2' are identical"
    assert "column '2' is constant" in cautions(model, table(np.column_stack([x, np.ones(40)])))[0]
    assert "2 units for 3 columns: the covariances depend on the prior" in cautions(model, table(rng.standard_normal((2, 3))))[0]
    assert cautions(PoissonMixture(2), table(np.arange(40)[:, None] % 2)) == []


@pytest.mark.parametrize(
    "model", [PPCA(1), FactorAnalysis(1), GaussianMixture(2), GaussianHMM(2), LinearGaussianStateSpace(1), VAE(1), LinearVAE(1)]
)
def test_an_outlier_in_a_column_warns(model):
    x = ndtri((np.arange(1, 41)[:, None] * [7, 11, 13] % 41) / 41)  # quantiles of the normal distribution, in three orders
    odd = x.copy()
    odd[7, 1] = -999
    for scale, data in ((1, table(odd)), (1e9, table(1e9 * odd)), (1, table(odd).standardize())):
        found = [note for note in cautions(model, data) if "standard deviations" in note]
        assert len(found) == 1
        assert found[0].startswith(f"column '1', unit '7': the value {-999 * scale:g} is 1.0")
    assert not [note for note in cautions(model, table(x)) if "standard deviations" in note]


def test_an_outlier_appears_in_the_diagnostics(rng):
    x = rng.standard_normal((40, 3))
    x[7, 1] = 1e12
    rows = fit(PPCA(1), table(x).standardize(), Exact(n_draws=10), seed=0, progress=False).diagnostics()
    row = rows[rows.check == "data"].iloc[0]
    assert (row.verdict, row.quantity.split(" is ")[0]) == ("warn", "column '1', unit '7': the value 1e+12")
