"""Tests of reproducibility with captured graphs, kernels and batched chains.

The same seed gives the same result in another process, with another number of threads, after an interrupt, and for a shorter
run. A failing chain does not affect others. Global state is restored after a fit.
"""

import hashlib
import os
import random
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import all_arrays

from latentlab.data.dataset import Dataset
from latentlab.data.load import load_dataset
from latentlab.errors import InferenceError, ModelError
from latentlab.fit import fit
from latentlab.inference.arrays import tensors
from latentlab.inference.chees import ChEES
from latentlab.inference.density import Density
from latentlab.inference.many_chains import State, sample
from latentlab.inference.nuts import NUTS, drive
from latentlab.inference.svi import SVI
from latentlab.inference.trajectory import chain
from latentlab.models.base import LatentModel, Position
from latentlab.models.gaussian_hmm import GaussianHMM
from latentlab.models.gaussian_mixture import GaussianMixture
from latentlab.models.ppca import PPCA
from latentlab.models.state_space import LinearGaussianStateSpace
from latentlab.symmetry.groups import Identity

METHODS = {
    "nuts": NUTS(n_chains=2, n_warmup=15, n_draws=10, max_tree_depth=3),
    "chees": ChEES(n_chains=4, n_superchains=2, n_warmup=15, n_draws=10, max_steps=8),
    "svi": SVI(guide="mean_field", n_steps=30, n_draws=10, n_restarts=2),
}
MODELS = {
    "ppca": lambda: PPCA(2),
    "gaussian_mixture": lambda: GaussianMixture(2),
    "gaussian_hmm": lambda: GaussianHMM(2),
    "state_space": lambda: LinearGaussianStateSpace(1),
}


def dataset_of(model):
    """60 rows of iris: for a chain, steps of one series."""
    iris = load_dataset("iris").subset(range(60))
    return Dataset({"x": iris.x}, dims={"x": ("unit", "feature")}, name="rows")


def fitted(model, method, **settings):
    one = MODELS[model]()
    return all_arrays(fit(one, dataset_of(one), replace(METHODS[method], **settings), seed=5, progress=False))


def digests():
    """Returns one line for each model and method, as printed by another process."""
    lines = []
    for model in MODELS:
        for method in METHODS:
            content = hashlib.sha256()
            for name, array in sorted(fitted(model, method).items()):
                content.update(name.encode() + (array if array.dtype.kind != "O" else array.astype(str)).tobytes())
            lines.append(f"{model} {method} {content.hexdigest()}")
    return lines


def in_a_new_process(threads, hash_seed):
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONHASHSEED": str(hash_seed)}
    code = f"import torch; torch.set_num_threads({threads}); import test_reproducible as t; print(*t.digests(), sep='\\n')"
    where = os.path.dirname(__file__)
    environment["PYTHONPATH"] = os.pathsep.join([where, *filter(None, sys.path)])
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split("\n")[:-1]


@pytest.mark.slow
def test_fits_are_equal_in_another_process_and_with_other_threads():
    """One thread here and two in the other process, whose hash seed differs; all models and methods."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        here = digests()
    finally:
        torch.set_num_threads(before)
    assert here == in_a_new_process(threads=2, hash_seed=1)
    assert len(set(here)) == len(MODELS) * len(METHODS)


@pytest.mark.parametrize("method", METHODS)
def test_fits_do_not_depend_on_the_number_of_threads(method):
    before, found = torch.get_num_threads(), []
    try:
        for n in (1, 2):
            torch.set_num_threads(n)
            found.append(fitted("state_space", method))
            assert torch.get_num_threads() == n
    finally:
        torch.set_num_threads(before)
    for name, array in found[0].items():
        assert array.tobytes() == found[1][name].tobytes(), name


@pytest.mark.parametrize("method", ["nuts", "chees"])
@pytest.mark.parametrize("model", ["state_space", "gaussian_hmm"])
def test_a_short_fit_gives_the_first_draws_of_a_long_fit(model, method):
    long, short = (fitted(model, method, n_draws=n) for n in (12, 6))
    for name in (n for n in long if n.startswith(("posterior/", "sample_stats/"))):
        if long[name].shape[:2] == (long[name].shape[0], 12) and name != "posterior/z":  # z is drawn anew, given the others
            assert short[name].tobytes() == np.ascontiguousarray(long[name][:, :6]).tobytes(), name


@pytest.mark.parametrize("method", ["nuts", "chees"])
@pytest.mark.parametrize("model", ["state_space", "gaussian_hmm"])
def test_interrupted_fits_of_all_models_resume_to_the_same_draws(model, method, tmp_path, monkeypatch):
    whole, gradient, calls = fitted(model, method), Density.batch_value_and_grad, iter(range(60))

    def stopped(self, points):
        if next(calls, None) is None:
            raise KeyboardInterrupt
        return gradient(self, points)

    one = MODELS[model]()
    again = {"model": one, "dataset": dataset_of(one), "method": METHODS[method], "seed": 5, "progress": False}
    with monkeypatch.context() as patch:
        patch.setattr(Density, "batch_value_and_grad", stopped)
        with pytest.raises(KeyboardInterrupt):
            fit(**again, checkpoint=tmp_path)
    assert (tmp_path / "chains-under-way.safetensors").is_file()
    for name, array in all_arrays(fit(**again, checkpoint=tmp_path)).items():
        assert array.tobytes() == whole[name].tobytes(), name


# -- one chain's fault


class Correlated(LatentModel):
    """A covariance [[1, r], [r, 1]] with unbounded r: positive definite for |r| < 1 only; torch raises an error otherwise.

    Args:
        how: `density` uses the density with the root L, whose diagonal shows a failure; `mean` multiplies by L, where it
            is not visible; `singular values` raises an error while it computes, in a captured graph as well.
    """

    name, position, symmetry = "correlated", Position("z"), Identity()
    methods = ("nuts", "chees", "svi", "map")
    dims = {"r": (), "z": ("unit",)}
    jitter = 0.1

    def __init__(self, how="density"):
        self.how = how

    def model(self, x):
        r = pyro.sample("r", dist.Normal(0.0, 0.3))
        eye = torch.eye(2, dtype=x.dtype)
        covariance = eye + r * (1 - eye)
        if self.how == "singular values":  # whose sum is 2
            covariance = torch.where(r.abs() < 1, covariance, torch.nan)
            covariance = covariance * torch.linalg.svdvals(covariance).sum() / 2
        lower = torch.linalg.cholesky(covariance)
        with pyro.plate("unit", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            around = z[:, None] * x.new_ones(2) + (lower @ x.new_ones(2) if self.how == "mean" else 0.0)
            root = eye if self.how == "mean" else lower
            pyro.sample("x", dist.MultivariateNormal(around, scale_tril=root, validate_args=False), obs=x)

    def initialize(self, arrays, rng):
        return {"r": 0.0, "z": np.zeros(len(arrays["x"]))}


@pytest.fixture(scope="module")
def correlated():
    x = np.random.default_rng(2).standard_normal((5, 2))
    dataset = Dataset({"x": x}, dims={"x": ("unit", "feature")}, name="pairs")
    return Density(Correlated(), tensors(Correlated(), dataset), dataset.array_dims), dataset


@pytest.mark.parametrize("how", ["density", "mean", "singular values"])
@pytest.mark.parametrize("captured", [True, False])
def test_a_failed_decomposition_affects_only_its_own_point(correlated, captured, how, rng, monkeypatch, caplog):
    density = Density(Correlated(how), correlated[0].arrays, correlated[0].dims)
    if not captured:
        monkeypatch.setattr(
            "latentlab.inference.density.capture", lambda function, *_, otherwise=None, **__: otherwise or function
        )
    points = 0.1 * rng.standard_normal((4, density.size))
    values, gradients = density.batch_value_and_grad(points)
    bad = points.copy()
    at = next(s.start for s in density.sites if s.name == "r")
    bad[2, at] = 1.5
    found, slopes = density.batch_value_and_grad(bad)
    others = [0, 1, 3]
    assert "cannot be captured" not in caplog.text
    assert np.isnan(found[2])
    assert found[others].tobytes() == values[others].tobytes()
    assert slopes[others].tobytes() == gradients[others].tobytes()
    bad[:, at] = -2.0
    assert np.isnan(density.batch_value_and_grad(bad)[0]).all()


def test_other_errors_are_raised(correlated):
    density = Density(correlated[0].model, correlated[0].arrays, correlated[0].dims)

    def exhausted(u):
        raise RuntimeError("not enough memory")

    density._batched[2] = exhausted
    with pytest.raises(RuntimeError, match="not enough memory"):
        density.batch_value_and_grad(np.zeros((2, density.size)))


def nuts_chains(density, starts, n):
    settings = {"n_warmup": n, "target_accept": 0.8, "max_depth": 4}
    chains = [chain(s, np.empty((n, len(s))), rng=np.random.default_rng(i), **settings) for i, s in enumerate(starts)]
    return drive(chains, density)


@pytest.mark.parametrize("fault", ["cholesky", "nan"])
def test_a_diverging_nuts_chain_does_not_affect_the_others(correlated, fault, rng):
    """Chain 1 starts next to the wall, and only it diverges."""
    density, _ = correlated
    at = next(s.start for s in density.sites if s.name == "r")
    starts = 0.1 * rng.standard_normal((3, density.size))

    def function(points):
        if fault == "cholesky":
            return density.batch_value_and_grad(points)
        beyond = np.abs(points[:, at]) >= 1
        values, gradients = density.batch_value_and_grad(np.where(beyond[:, None], 0.0, points))
        return np.where(beyond, np.nan, values), np.where(beyond[:, None], np.nan, gradients)

    calm = nuts_chains(function, starts, 30)
    starts[1, at] = 0.9999
    found = nuts_chains(function, starts, 30)
    for i in (0, 2):
        assert found[i].u.tobytes() == calm[i].u.tobytes()
    assert np.isfinite(found[1].u).all()


@pytest.mark.parametrize("fault", ["cholesky", "nan"])
def test_a_diverging_chees_proposal_is_rejected_and_reported(correlated, fault, rng, monkeypatch):
    """With a fixed step size, one chain crosses the wall at the third draw; the others are not affected."""
    density, _ = correlated
    at = next(s.start for s in density.sites if s.name == "r")
    starts = 0.1 * rng.standard_normal((4, density.size))
    settings = ChEES(n_chains=4, n_superchains=1, n_warmup=0, n_draws=8, max_steps=4)

    def draws(thrown):
        calls = iter(range(10_000))
        state = State.at(starts, 0.8)
        state.lp, state.gradient = density.batch_value_and_grad(starts)
        state.step_size, state.length = 0.1, 0.2

        def function(points):
            if thrown and next(calls) >= 4:
                points = points.copy()
                points[1, at] = 3.0
                if fault == "nan":
                    values, gradients = density.batch_value_and_grad(np.where(np.arange(4)[:, None] == 1, 0.0, points))
                    values[1], gradients[1] = np.nan, np.nan
                    return values, gradients
            return density.batch_value_and_grad(points)

        return [row for row in sample(state, function, np.random.default_rng(0), settings) if row is not None]

    calm, found = draws(False), draws(True)
    others = [0, 2, 3]
    for one, two in zip(calm, found, strict=True):
        assert one["u"][others].tobytes() == two["u"][others].tobytes()
    last = found[-1]
    assert last["diverging"].tolist() == [0, 1, 0, 0]
    assert np.isfinite(last["u"]).all()
    np.testing.assert_array_equal(last["u"][1], found[-2]["u"][1])


@pytest.mark.parametrize("method", [METHODS["nuts"], METHODS["chees"]], ids=["nuts", "chees"])
def test_fits_with_failing_decompositions_finish(correlated, method):
    """The first step size is so large that proposals cross the wall; they are rejected."""
    dataset = correlated[1]
    met = []

    gradient = Density.batch_value_and_grad

    def watched(self, points):
        values, slopes = gradient(self, points)
        met.append(int(np.isnan(values).sum()))
        return values, slopes

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Density, "batch_value_and_grad", watched)
        result = fit(Correlated(), dataset, method, seed=1, progress=False)
    assert sum(met) > 0
    assert (np.abs(result.data["posterior"]["r"].values) < 1).all()


# -- what was set before


def state_of_the_process():
    return (
        torch.get_rng_state().numpy().tobytes(),
        str(np.random.get_state()),
        random.getstate(),
        torch.get_default_dtype(),
        torch.get_num_threads(),
        torch.distributions.Distribution._validate_args,
        torch.is_grad_enabled(),
        {name: float(value.detach()) for name, value in pyro.get_param_store().named_parameters()},
    )


class Doomed(LinearGaussianStateSpace):
    """Uses the kernels; has NaN density from the second call on."""

    name, calls = "doomed", 0

    def model(self, x, mask=None, sequence=None):
        self.calls += 1
        super().model(x, mask, sequence)
        if self.calls > 1:
            pyro.factor("wall", torch.tensor(torch.nan))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("breaks", [False, True])
def test_failing_fits_with_kernels_leave_no_global_state(method, breaks):
    model = Doomed(1) if breaks else LinearGaussianStateSpace(1)
    pyro.param("mine", torch.tensor(2.0))
    try:
        before = state_of_the_process()
        if breaks:
            with pytest.raises((InferenceError, ModelError)):
                fit(model, dataset_of(model), METHODS[method], seed=0, progress=False)
        else:
            fit(model, dataset_of(model), METHODS[method], seed=0, progress=False)
        assert state_of_the_process() == before
    finally:
        pyro.clear_param_store()
