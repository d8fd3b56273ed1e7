"""Tests of the check of the declared symmetry against the log joint."""

from dataclasses import replace

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

from latentlab.data.dataset import Dataset
from latentlab.fit import fit
from latentlab.inference.arrays import tensors
from latentlab.inference.density import Density
from latentlab.inference.exact import Exact
from latentlab.inference.invariance import check_symmetry
from latentlab.inference.map import MAP
from latentlab.inference.nuts import NUTS
from latentlab.inference.svi import SVI
from latentlab.models.base import LatentModel, Position
from latentlab.models.gaussian_mixture import DPMixture, GaussianMixture
from latentlab.models.linear_vae import LinearVAE
from latentlab.models.ppca import PPCA
from latentlab.results.diagnostics import converged, diagnose
from latentlab.results.tree import build
from latentlab.seeds import Seeds
from latentlab.symmetry.groups import Euclidean, GeneralLinear, Identity, Orthogonal, Permutation, SignedPermutation


class Factors(LatentModel):
    r"""W_dk ~ N(0, s_k), z_n ~ N(0, I), x_n ~ N(W z_n, sigma): symmetric under rotations only where all s_k are equal."""

    name, position = "factors", Position("z")
    dims = {"W": ("feature", "latent"), "sigma": (), "z": ("unit", "latent")}
    methods = ("nuts", "chees", "svi", "map")

    def __init__(self, symmetry=None, scales=(1.0, 2.0)):
        self.symmetry, self.scales = symmetry or Orthogonal(), scales

    def model(self, x):
        s = torch.tensor(self.scales)
        W = pyro.sample("W", dist.Normal(0.0, s).expand([x.shape[1], len(s)]).to_event(2))
        sigma = pyro.sample("sigma", dist.HalfNormal(1.0))
        with pyro.plate("unit", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(s)), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ W.T, sigma).to_event(1), obs=x)


class TooLarge(PPCA):
    symmetry = GeneralLinear()


class TooSmall(PPCA):
    symmetry = SignedPermutation()


class MuchTooSmall(PPCA):
    symmetry = Identity()


class Translated(PPCA):
    symmetry = Euclidean()


class PositionsNotRotated(PPCA):
    """The positions are not rotated with the loadings."""

    def latents(self, arrays, **values):
        right = super().latents(arrays, **values)
        return dist.Normal(torch.zeros_like(right.mean) + torch.tensor([1.0, 0.0]), 1.0).to_event(1)


class Failing(PPCA):
    """A group that cannot act."""

    @property
    def symmetry(self):
        return Broken()


class Broken(Orthogonal):
    def random(self, rng, size, shape=()):
        raise KeyError("no element")


def data(n_features=4, scale=1.0, n_units=30):
    rng = np.random.default_rng(7)
    x = rng.normal(size=(n_units, 2)) @ rng.normal(size=(2, n_features)) + 0.3 * rng.normal(size=(n_units, n_features))
    return Dataset({"x": scale * (x - x.mean(0)) / x.std(0)}, dims={"x": ("unit", "feature")})


def rows(model, dataset, values, parameters=None):
    """The check's rows at draws `(chain, draw, *site)`."""
    density = Density(model, tensors(model, dataset), dataset.array_dims)
    attrs = check_symmetry(model, density, values, parameters or {}, Seeds(0))
    tree = build({"posterior": values}, dims={**model.dims}, attrs={"inference": "vi", **attrs})
    table = diagnose(tree, group=model.exchanges, dims=model.dims, position=model.position.site)
    return table[table["check"] == "symmetry"]


def draws(model, dataset, n=3):
    """Draws of all sites about a point of the right scale."""
    rng, x, q = np.random.default_rng(3), dataset.x, 2
    scale = float(np.abs(x).mean())
    q = len(model.scales) if isinstance(model, Factors) else q
    values = {"W": scale * rng.normal(size=(1, n, x.shape[1], q)), "z": rng.normal(size=(1, n, len(x), q))}
    values |= {"sigma": scale * rng.uniform(0.3, 0.5, size=(1, n))}
    return values | ({} if isinstance(model, Factors) else {"mu": scale * rng.normal(size=(1, n, x.shape[1]))})


SCALES = [1e-12, 1e-4, 1.0, 1e4, 1e12]


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("model", [PPCA(2), PPCA(2, marginalize=False), Factors(scales=(1.0, 1.0))], ids=lambda m: m.name)
def test_a_true_symmetry_passes_at_every_data_scale(model, scale):
    """On the largest scale, priors of order 1 give a log joint of 10^24 nats, whose rounding is noted."""
    found = rows(model, data(scale=scale), draws(model, data(scale=scale)))
    assert found["verdict"].tolist() == (["pass"] if scale < 1e12 else ["pass", "warn"])
    assert "Orthogonal" in found["quantity"].iloc[0]


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize(
    ("model", "site", "holds"),
    [
        (Factors(), "W", "Identity"),
        (TooLarge(2), "W", "Orthogonal"),
        (Translated(2), "z", "Orthogonal"),
        (PositionsNotRotated(2), "z", "Identity"),
        (Factors(SignedPermutation()), "W", "Identity"),
    ],
    ids=["unequal scales", "linear maps", "translations", "positions", "unequal scales exchanged"],
)
def test_a_false_symmetry_fails_and_names_the_site(model, site, holds, scale):
    """Fails at any data scale: if the prior is flat over the posterior, a prior draw still shows the change."""
    found = rows(model, data(scale=scale), draws(model, data(scale=scale)))
    assert found["verdict"].iloc[0] == "fail"
    assert re_site(found["quantity"].iloc[0]) in (site, *(["z"] if isinstance(model, TooLarge) else []))
    assert found["quantity"].iloc[0].endswith(f"declare {holds}")


def re_site(text):
    return text.partition("site ")[2].partition(";")[0]


def test_the_reported_change_is_that_of_the_log_joint():
    """A permutation of two axes with prior scales 1 and 2, by hand; the likelihood does not change."""
    model, dataset = Factors(Permutation()), data()
    values = draws(model, dataset, n=1)
    found = rows(model, dataset, values).iloc[0]
    W = values["W"][0, 0]
    before = -0.5 * (W**2 / np.array([1.0, 4.0])).sum()
    after = -0.5 * (W[:, ::-1] ** 2 / np.array([1.0, 4.0])).sum()
    assert found["value"] == pytest.approx(abs(after - before), rel=1e-9)


@pytest.mark.parametrize(
    ("model", "larger"),
    [
        (TooSmall(2), "Orthogonal"),
        (MuchTooSmall(2), "Orthogonal"),
        (Factors(Identity(), (1.0,)), "SignedPermutation"),
        (Factors(Permutation(), (1.0, 1.0)), "Orthogonal"),
    ],
    ids=["signed permutations of rotations", "none of rotations", "none of a sign", "permutations of rotations"],
)
def test_a_too_small_symmetry_warns(model, larger):
    found = rows(model, data(), draws(model, data()))
    row = found[found["verdict"] == "warn"].iloc[0]
    assert f"declare {larger} instead of" in row["quantity"]
    assert not (found["verdict"] == "fail").any()


def test_sign_flips_of_single_axes_are_named():
    found = rows(Factors(Identity()), data(), draws(Factors(), data()))
    assert found["verdict"].tolist() == ["warn"]
    assert "sign change of axis 0, 1" in found["quantity"].iloc[0]


def test_permuted_stick_breaking_components_pass(rng):
    """Draws of stick-breaking mixtures are compared modulo permutations, although these are no symmetry of the joint."""
    truth = DPMixture(3).simulate(rng, 40)
    values = {name: np.asarray(value)[None, None] for name, value in truth.truth.items() if name in DPMixture(3).dims}
    model = DPMixture(3)
    assert model.exchanges != model.symmetry
    assert not len(rows(model, truth, values))


def test_labels_must_be_permuted_with_their_components(rng):
    """The joint of a mixture is symmetric only if labels are permuted with the components."""
    model = GaussianMixture(3)
    truth = model.simulate(rng, 40)
    values = {name: np.asarray(value)[None, None] for name, value in truth.truth.items() if name in model.dims}
    values["z"] = values["z"].astype(np.int64)
    assert rows(model, truth, values)["verdict"].tolist() == ["pass"]
    alone = GaussianMixture(3, weights_concentration=[1.0, 2.0, 3.0])
    alone.symmetry = Permutation("component")
    found = rows(alone, truth, values).iloc[0]
    assert (found["verdict"], re_site(found["quantity"])) == ("fail", "weights")


def test_certain_labels_pass_the_symmetry_check():
    """log p(z | theta, x) is near 0 and changes by the rounding error of two joint densities."""
    model = GaussianMixture(3)
    for seed in range(600, 640):
        truth = model.simulate(np.random.default_rng(seed), 40)
        values = {name: np.asarray(value)[None, None] for name, value in truth.truth.items() if name in model.dims}
        values["z"] = values["z"].astype(np.int64)
        assert rows(model, truth, values)["verdict"].tolist() == ["pass"], seed


class Named(Factors):
    """The dim of the loadings is `factor`; the declared group acts along `latent`, which no site has."""

    dims = {"W": ("feature", "factor"), "sigma": (), "z": ("unit", "factor")}


def test_a_symmetry_along_an_undeclared_dim_is_found():
    found = rows(Named(Identity(), (1.0, 1.0)), data(), draws(Factors(), data()))
    assert found["verdict"].tolist() == ["warn"]
    assert "declare Orthogonal('factor') instead of Identity('latent')" in found["quantity"].iloc[0]


class Ring(LatentModel):
    """A density that is invariant to cyclic shifts of three components but not to transpositions."""

    name, dims, position, methods = "ring", {"mu": ("component",), "z": ("unit", "component")}, Position("z"), ("nuts",)
    symmetry = Permutation("component")

    def model(self, x):
        mu = pyro.sample("mu", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        pyro.factor("ring", 0.1 * (mu * mu.roll(-1) ** 2).sum())
        with pyro.plate("unit", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.sum(-1, keepdim=True), 1.0).expand(x.shape).to_event(1), obs=x)


def test_a_cyclic_symmetry_is_not_reported_as_permutation(rng):
    model, dataset = Ring(), data()
    density = Density(model, tensors(model, dataset), dataset.array_dims)
    values = {"mu": rng.normal(size=(1, 50, 3)), "z": rng.normal(size=(1, 50, 30, 3))}
    for seed in range(20):
        assert "symmetry_holds" in check_symmetry(model, density, values, {}, Seeds(seed)), seed


def test_a_large_rounding_tolerance_warns():
    """Rounding of a log joint of 10^12 nats hides a change of a few."""
    values = draws(Factors(), data())  # of data a billion times smaller
    found = rows(Factors(), data(scale=1e9), values)
    assert "fail" not in set(found["verdict"])
    assert any("cannot be distinguished from rounding error" in text for text in found["quantity"])


def test_a_symmetry_that_cannot_be_checked_warns(rng):
    model = Failing(2)
    found = rows(model, data(), draws(model, data()))
    assert found["verdict"].tolist() == ["warn"]
    assert "not checked: KeyError" in found["quantity"].iloc[0]


METHODS = {
    "map": MAP(n_draws=20),
    "exact": Exact(n_draws=20),
    "svi": SVI(guide="mean_field", n_steps=20, n_draws=20),
    "nuts": NUTS(n_chains=1, n_warmup=10, n_draws=10),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("method", list(METHODS))
def test_every_method_checks_the_symmetry_and_keeps_the_draws(method):
    found = fit(TooLarge(2), data(), METHODS[method], progress=False)
    table = found.diagnostics()
    row = table[table["check"] == "symmetry"].iloc[0]
    assert row["verdict"] == "fail"
    assert "GeneralLinear" in row["quantity"]
    assert not converged(table)
    assert np.isfinite(found.latents().values).all()


def test_the_symmetry_check_includes_encoder_parameters(rng):
    model = LinearVAE(2, sigma=0.5)
    dataset = replace(data(), truth={}, truth_dims={})
    found = fit(model, dataset, SVI(guide="model", n_steps=20, n_draws=20), progress=False)
    assert found.diagnostics().query("check == 'symmetry'")["verdict"].tolist() == ["pass"]


class ParametersNotRotated(LinearVAE):
    symmetry = GeneralLinear()


def test_a_false_symmetry_of_parameters_fails():
    found = fit(ParametersNotRotated(2, sigma=0.5), data(), SVI(guide="model", n_steps=20, n_draws=20), progress=False)
    assert found.diagnostics().query("check == 'symmetry'")["verdict"].tolist() == ["fail"]
