"""Tests of all methods: reproducibility, global state and errors.

Faults of inference that are tested elsewhere: guides with other sites (`models/test_contract.py`), starts without density
(`test_density.py`), a posterior with several modes (`test_known_answers.py`), divergences, stuck chains, NaN and tree depth
(`test_diagnostics.py`), status and exit codes of a run that did not converge (`study/test_run_whole.py`), forbidden transitions
(`models/test_hidden_markov_models.py`), empty components and label switching between chains (`models/test_mixtures.py`).
"""

import random

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import all_arrays
from scipy.stats import norm
from torch.distributions import constraints

from latentlab.data.dataset import Dataset
from latentlab.data.load import load_dataset
from latentlab.data.markov import hidden_markov
from latentlab.errors import ConfigError, InferenceError, ModelError
from latentlab.fit import fit
from latentlab.inference import map as map_module
from latentlab.inference import nuts
from latentlab.inference.chees import ChEES
from latentlab.inference.density import Density
from latentlab.inference.exact import Exact
from latentlab.inference.guide_average import guide_draws
from latentlab.inference.map import MAP
from latentlab.inference.nuts import NUTS
from latentlab.inference.svi import SVI
from latentlab.models.base import LatentModel, MaximumLikelihood, Position
from latentlab.models.factor_analysis import FactorAnalysis
from latentlab.models.gaussian_hmm import GaussianHMM
from latentlab.models.ppca import PPCA
from latentlab.registry import METHODS
from latentlab.seeds import Seeds, isolated
from latentlab.symmetry.groups import Identity

SMALL = [
    NUTS(n_chains=2, n_warmup=20, n_draws=15),
    ChEES(n_chains=8, n_superchains=2, n_warmup=20, n_draws=15),
    SVI(guide="full_rank", n_steps=60, n_draws=50),
    SVI(guide="mean_field", n_steps=60, n_draws=50, batch_size=40),
    SVI(guide="low_rank", n_steps=60, n_draws=50, n_restarts=2),
    SVI(guide="model", n_steps=40, n_draws=30),
    MAP(n_restarts=2, n_draws=10),
    Exact(n_draws=10),
]
IDS = [f"{m.name}-{getattr(m, 'guide', '')}" for m in SMALL]


def test_every_registered_method_is_tested():
    assert {m.name for m in SMALL} == set(METHODS)


@pytest.mark.parametrize("method", SMALL, ids=IDS)
def test_the_seed_determines_the_draws(method):
    iris = load_dataset("iris")
    one, two = (all_arrays(fit(PPCA(2), iris, method, seed=3, progress=False)) for _ in range(2))
    assert one.keys() == two.keys()
    for name, array in one.items():
        assert array.tobytes() == two[name].tobytes(), name
    other = all_arrays(fit(PPCA(2), iris, method, seed=4, progress=False))
    assert other["posterior/z"].tobytes() != one["posterior/z"].tobytes()


def test_chains_differ_in_starts_and_random_numbers(monkeypatch):
    seen = []

    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(nuts, "chain", lambda start, u, *, rng, **_: seen.append((start.sum(), rng.random())))
    monkeypatch.setattr(nuts, "drive", stopped)
    with pytest.raises(KeyboardInterrupt):
        fit(PPCA(1), load_dataset("iris"), NUTS(n_chains=3), progress=False)
    starts, numbers = zip(*seen, strict=True)
    assert len(set(starts)) == len(set(numbers)) == 3


@pytest.mark.parametrize("method", SMALL, ids=IDS)
@pytest.mark.parametrize("breaks", [False, True])
def test_failing_fits_leave_no_global_state(method, breaks, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(7)
    np.random.seed(7)
    random.seed(7)
    pyro.param("mine", torch.tensor(2.0))
    before = (torch.get_rng_state().numpy().tobytes(), str(np.random.get_state()), random.getstate(), torch.get_default_dtype())
    threads, validation = torch.get_num_threads(), torch.distributions.Distribution._validate_args
    iris = load_dataset("iris")
    if breaks:
        with pytest.raises((InferenceError, ModelError)):
            fit(Broken(2), iris, method, seed=0, progress=False)
    else:
        fit(PPCA(2), iris, method, seed=0, progress=False)
    after = (torch.get_rng_state().numpy().tobytes(), str(np.random.get_state()), random.getstate(), torch.get_default_dtype())
    assert after == before
    assert torch.get_num_threads() == threads
    assert torch.distributions.Distribution._validate_args == validation
    assert dict(pyro.get_param_store().named_parameters()).keys() == {"mine"}
    assert list(tmp_path.iterdir()) == []
    pyro.clear_param_store()


class Broken(PPCA):
    """Has NaN density from the second call on."""

    calls = 0

    def model(self, x, mask=None):
        type(self).calls += 1
        super().model(x, mask)
        if self.calls > 1:
            pyro.factor("wall", torch.tensor(torch.nan))

    def maximum_likelihood(self, arrays, rng):
        raise InferenceError("broken")


def test_a_parameter_store_with_the_same_names_does_not_leak():
    iris, wine = load_dataset("iris"), load_dataset("wine")
    method = SVI(guide="model", n_steps=30, n_draws=20)
    alone = all_arrays(fit(FactorAnalysis(2), iris, method, seed=0, progress=False))
    fit(PPCA(2), wine, method, seed=1, progress=False)
    after = all_arrays(fit(FactorAnalysis(2), iris, method, seed=0, progress=False))
    assert alone["posterior/W"].tobytes() == after["posterior/W"].tobytes()


class Scalar(LatentModel):
    """One number for each unit: a column (N, 1) in its plate of N would broadcast to N x N."""

    name, position, symmetry = "scalar", Position("z"), Identity()
    methods = ("nuts", "chees", "svi", "map", "exact")
    dims = {"z": ("unit",)}

    def model(self, x):
        with pyro.plate("unit", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)


@pytest.mark.parametrize("method", SMALL, ids=IDS)
def test_columns_that_broadcast_in_a_plate_are_refused_by_every_method(method):
    column = Dataset({"x": np.random.default_rng(0).normal(size=(9, 1))}, dims={"x": ("unit", "feature")})
    with pytest.raises(ModelError, match=r"the log density of site 'x' must have the shape .*; got \(9, 9\)"):
        fit(Scalar(), column, method, seed=0, progress=False)


def test_every_sampler_matches_a_conjugate_gaussian_posterior():
    """z ~ N(0, 1), x ~ N(z, 1): z | x ~ N(x / 2, 1 / 2)."""
    x = np.array([-1.0, 0.2, 3.0])
    dataset = Dataset({"x": x}, dims={"x": ("unit",)})
    for method in (NUTS(n_chains=4, n_warmup=300, n_draws=1000), SVI(guide="full_rank", n_steps=3000, n_draws=4000)):
        z = fit(Scalar(), dataset, method, seed=0, progress=False).sites()["z"].reshape(-1, 3)
        # At least 1000 effective draws: 6 comparisons at 5 standard errors, 4e-6 false alarms.
        np.testing.assert_allclose(z.mean(0), x / 2, atol=5 * np.sqrt(0.5 / 1000))
        np.testing.assert_allclose(z.var(0), 0.5, atol=5 * 0.5 * np.sqrt(2 / 1000))


class Positive(LatentModel):
    """s ~ LogNormal(0, 1), independent of the data."""

    name, position, symmetry, methods = "positive", Position("s"), Identity(), ("map", "svi")
    dims = {"s": ()}

    def guide(self, x):
        pyro.sample("s", dist.LogNormal(torch.tensor(0.3), 0.5))

    def model(self, x):
        pyro.sample("s", dist.LogNormal(torch.tensor(0.0), 1.0))
        with pyro.plate("unit", len(x)):
            pyro.sample("x", dist.Normal(torch.tensor(0.0), 1.0), obs=x)


def test_map_is_the_mode_on_the_constrained_scale():
    """exp(-1); with the Jacobian of the logarithm it would be 1."""
    dataset = Dataset({"x": np.array([-1.0, 0.2, 3.0])}, dims={"x": ("unit",)})
    found = fit(Positive(), dataset, MAP(n_restarts=2, n_draws=1), seed=0, progress=False).sites()["s"]
    assert found.item() == pytest.approx(np.exp(-1), rel=1e-5)


def test_map_restarts_begin_at_or_around_the_models_start(monkeypatch):
    def seen(density, rng, *, jitter, number):
        jitters.append(jitter)
        return start(density, rng, jitter=jitter, number=number)

    jitters, start = [], map_module.start
    monkeypatch.setattr(map_module, "start", seen)
    dataset = Dataset({"x": np.array([-1.0, 0.2, 3.0])}, dims={"x": ("unit",)})
    fit(Positive(), dataset, MAP(n_restarts=3, n_draws=1), seed=0, progress=False)
    assert jitters == [0.0, Positive.jitter, Positive.jitter]


class Climbing(Positive):
    """Restarts with given log likelihoods and notes; the estimate of each is its number."""

    name, methods = "climbing", ("exact",)

    def __init__(self, ends):
        self.ends, self.calls = ends, 0

    def maximum_likelihood(self, arrays, rng):
        level, note = self.ends[self.calls]
        self.calls += 1
        return MaximumLikelihood({"s": np.array(float(self.calls))}, "EM", 0.0, np.array([level]), (note,) if note else ())


@pytest.mark.parametrize(
    ("ends", "best"),
    [
        ([(-7.0, ""), (-5.0 - 1e-9, ""), (-5.0, "")], 2),
        ([(-7.0, ""), (-5.0 - 1e-3, ""), (-5.0, "")], 3),
        ([(-1.0, "collapsed"), (-5.0, ""), (-6.0, "")], 2),
        ([(-1e9 - 0.05, ""), (-1e9, "")], 1),
    ],
    ids=["tie", "no tie", "collapsed", "rounding of a large one"],
)
def test_the_first_of_tied_restarts_is_the_estimate(ends, best):
    """Rounding, which differs between CPUs, must not decide."""
    dataset = Dataset({"x": np.array([-1.0, 0.2, 3.0])}, dims={"x": ("unit",)})
    found = fit(Climbing(ends), dataset, Exact(n_restarts=len(ends), n_draws=2), seed=0, progress=False)
    assert found.sites()["s"].flat[0] == best


def test_densities_of_the_models_guide_are_on_the_unconstrained_scale():
    """log s is normal under both."""
    arrays = {"x": torch.tensor([-1.0, 0.2, 3.0], dtype=torch.float64)}
    with isolated(Seeds(0)):
        found = guide_draws(Density(Positive(), arrays), Positive().guide, 5)
    u = found["u"][:, 0]
    np.testing.assert_allclose(found["log_q"], norm(0.3, 0.5).logpdf(u))
    np.testing.assert_allclose(found["lp"], norm.logpdf(u) + norm.logpdf([-1.0, 0.2, 3.0]).sum())


class Pair(LatentModel):
    """Two correlated normal positions with sd 1, independent of the data."""

    name, position, symmetry, methods = "pair", Position("z"), Identity(), ("svi",)
    dims = {"z": ("unit",)}

    def __init__(self, correlation=0.0):
        self.correlation = correlation

    def model(self, x):
        covariance = torch.tensor([[1.0, self.correlation], [self.correlation, 1.0]])
        pyro.sample("z", dist.MultivariateNormal(torch.zeros(2), covariance))
        with pyro.plate("unit", len(x)):
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)


@pytest.mark.parametrize(("correlation", "passes"), [(0.0, True), (0.99, False)])
def test_khat_flags_a_too_narrow_mean_field_guide(correlation, passes):
    """The best independent normals have sd sqrt(1 - rho^2) = 0.14 for a posterior sd of 1, which k-hat detects."""
    dataset = Dataset({"x": np.zeros(2)}, dims={"x": ("unit",)})
    method = SVI(guide="mean_field", n_steps=2000, n_draws=20_000)
    result = fit(Pair(correlation), dataset, method, seed=0, progress=False)
    khat = result.diagnostics().query("check == 'k-hat' and quantity != 'q without averaging over the symmetry'").iloc[0]
    assert (khat["verdict"] == "pass") is passes, khat
    assert result.converged is passes
    z = result.sites()["z"]
    assert np.abs(z.mean((0, 1))).max() < 0.1
    np.testing.assert_allclose(z.std((0, 1)), np.sqrt(1 - correlation**2), rtol=0.1)


def test_the_minibatch_log_joint_is_unbiased():
    """The exact mean over all minibatches of the scaled log joint is the full log joint."""
    from latentlab.inference.arrays import tensors
    from latentlab.inference.density import Density

    iris = load_dataset("iris", missing=0.1)
    model = PPCA(2)
    density = Density(model, tensors(model, iris), iris.array_dims)
    values = density.constrain(torch.full((density.size,), 0.3, dtype=torch.float64))
    full = float(density.log_joint(values))
    parts = []
    for first in range(0, 150, 30):
        rows = tuple(density.arrays[name][first : first + 30] for name in density.point_arrays())
        parts.append(float(density.log_joint(values, density.with_points(rows), 150 / 30)))
    assert np.mean(parts) == pytest.approx(full, rel=1e-12)
    assert parts[0] != pytest.approx(full, rel=1e-6)


class OwnGuide(LatentModel):
    """x_n ~ N(mu, 1), mu ~ N(0, 10), with a normal guide of its own."""

    name, position, symmetry, methods = "own_guide", Position("mu"), Identity(), ("svi",)
    dims = {"mu": ()}

    def model(self, x):
        mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
        with pyro.plate("unit", len(x)):
            pyro.sample("x", dist.Normal(mu, 1.0), obs=x)

    def guide(self, x):
        loc, scale = pyro.param("loc", torch.tensor(0.0)), pyro.param("scale", torch.tensor(0.1), constraints.positive)
        pyro.sample("mu", dist.Normal(loc, scale))


def test_minibatches_are_scaled_with_the_models_guide():
    """The posterior sd is 1 / sqrt(400) = 0.05; without scaling, a batch of 20 would give 0.22."""
    dataset = Dataset({"x": np.random.default_rng(0).normal(size=400)}, dims={"x": ("unit",)})
    method = SVI(guide="model", n_steps=3000, learning_rate=0.01, batch_size=20, n_draws=2000)
    mu = fit(OwnGuide(), dataset, method, seed=0, progress=False).sites()["mu"]
    assert mu.std() == pytest.approx(0.05, rel=0.2)
    assert mu.mean() == pytest.approx(dataset.x.mean(), abs=0.03)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: NUTS(n_draws=0), "NUTS: `n_draws` must be a whole number of at least 1; got 0"),
        (lambda: NUTS(n_chains=True), "NUTS: `n_chains` must be a whole number"),
        (lambda: NUTS(n_warmup=-1), "NUTS: `n_warmup` must be a whole number of at least 0; got -1"),
        (lambda: NUTS(target_accept=1.0), "NUTS: `target_accept` must be a finite number above 0 and below 1"),
        (lambda: SVI(guide="full"), "SVI: `guide` must be one of model, mean_field, full_rank, low_rank"),
        (lambda: SVI(learning_rate=float("nan")), "SVI: `learning_rate` must be a finite number above 0"),
        (lambda: MAP(n_restarts=2.5), "MAP: `n_restarts` must be a whole number"),
        (lambda: Exact(n_draws=0), "Exact: `n_draws` must be a whole number of at least 1; got 0"),
        (lambda: PPCA(0), "`n_latent` must be a whole number of at least 1"),
        (lambda: PPCA(2, sigma_scale=0), "`sigma_scale` must be a finite number above 0"),
        (lambda: PPCA(2, W_scale=-1.0), "`W_scale` must be a finite number of at least 0"),
        (lambda: FactorAnalysis(2, psi_scale=float("inf")), "`psi_scale`"),
        (lambda: PPCA(2, marginalize=1), "`marginalize` must be true or false"),
    ],
)
def test_settings_of_methods_out_of_range_are_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_a_batch_larger_than_the_data_is_refused():
    with pytest.raises(ConfigError, match="`batch_size` must be at most the 150 units; got 151"):
        fit(PPCA(2), load_dataset("iris"), SVI(batch_size=151), seed=0)


def test_minibatches_with_unit_specific_parameters_are_refused():
    with pytest.raises(ModelError, match="'z' has a value for each unit"):
        fit(PPCA(2, marginalize=False), load_dataset("iris"), SVI(guide="mean_field", batch_size=10), seed=0)


class Discrete(Scalar):
    def model(self, x):
        with pyro.plate("unit", len(x)):
            z = pyro.sample("z", dist.Bernoulli(0.5))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)


@pytest.mark.parametrize("method", SMALL, ids=IDS)
def test_discrete_sites_are_refused_by_every_method(method):
    with pytest.raises(ModelError, match=r"site 'z' is latent and discrete; marginalise it"):
        fit(Discrete(), Dataset({"x": np.array([0.1, 0.9, 1.0])}, dims={"x": ("unit",)}), method, seed=0)


def test_a_diverging_fit_stops_and_names_step_and_site():
    with pytest.raises(InferenceError, match=r"SVI, restart 0, step \d+.*learning_rate below 1000"):
        fit(PPCA(2), load_dataset("iris"), SVI(guide="mean_field", n_steps=200, learning_rate=1000.0), seed=0, progress=False)


def test_an_unsupported_method_of_a_model_is_refused():
    model = PPCA(2)
    model.methods = ("nuts",)
    with pytest.raises(ModelError, match="model 'ppca' does not support the method 'svi'; supported: nuts"):
        fit(model, load_dataset("iris"), SVI(), seed=0)


@pytest.mark.parametrize(("n_chains", "n_warmup", "n_draws"), [(1, 0, 1), (1, 5, 2), (2, 0, 3)])
def test_few_draws_give_a_result_without_convergence(n_chains, n_warmup, n_draws):
    method = NUTS(n_chains=n_chains, n_warmup=n_warmup, n_draws=n_draws, max_tree_depth=3)
    result = fit(PPCA(1), load_dataset("iris"), method, seed=0, progress=False)
    assert result.data["posterior"].sizes["draw"] == n_draws
    assert not result.converged


@pytest.mark.parametrize("seed", [0, 2**32 - 1, 2**63])
def test_seeds_of_any_size_are_accepted(seed):
    fit(PPCA(1), load_dataset("iris"), Exact(n_draws=2), seed=seed)


@pytest.mark.parametrize("seed", [-1, 1.5, True])
def test_invalid_seeds_are_refused(seed):
    with pytest.raises(ConfigError, match="`seed` must be a whole number"):
        fit(PPCA(1), load_dataset("iris"), Exact(n_draws=2), seed=seed)


def test_missing_checkpoints_are_recomputed_and_others_reused(tmp_path):
    iris, method = load_dataset("iris"), SVI(guide="model", n_steps=50, n_draws=20, n_restarts=2)
    whole = all_arrays(fit(PPCA(2), iris, method, seed=0, progress=False, checkpoint=tmp_path))
    assert {p.name for p in tmp_path.iterdir()} == {"restart-0.safetensors", "restart-1.safetensors", "draws.safetensors"}
    (tmp_path / "draws.safetensors").unlink()
    (tmp_path / "restart-1.safetensors").unlink()
    again = all_arrays(fit(PPCA(2), iris, method, seed=0, progress=False, checkpoint=tmp_path))
    for name, array in whole.items():
        assert array.tobytes() == again[name].tobytes(), name


def test_a_guide_is_averaged_over_permutations_of_states():
    """For two states of one feature, the largest site is the 2 x 2 transition matrix, which has two state axes."""
    dataset = hidden_markov(1, 40, 2, 1, 4.0)
    found = fit(GaussianHMM(2), dataset, SVI(guide="full_rank", n_steps=200, n_draws=100), progress=False)
    stats = found.data["sample_stats"]
    # One mode of two that are alike: averaged over both, the density is half of the guide's own.
    np.testing.assert_allclose(stats["log_q_averaged"] - stats["log_q"], -np.log(2), atol=1e-3)
