"""Tests of variational autoencoders: densities, bound, encoder, labels, missing entries and errors."""

import itertools
import json
from dataclasses import replace

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from oracles import gaussian_log_density, positions_given
from pyro.distributions import constraints
from scipy import stats

from latentlab.data.dataset import Dataset
from latentlab.data.load import load_dataset
from latentlab.errors import ConfigError, DataError, ModelError
from latentlab.fit import fit
from latentlab.inference import model_guide, steps
from latentlab.inference.adam import Adam
from latentlab.inference.arrays import tensors
from latentlab.inference.density import Density
from latentlab.inference.joint import log_joint
from latentlab.inference.nuts import NUTS
from latentlab.inference.svi import SVI
from latentlab.models.base import LatentModel, Position
from latentlab.models.ppca import PPCA
from latentlab.models.vae import VAE
from latentlab.seeds import double
from latentlab.symmetry.groups import Identity

QUICK = SVI(guide="model", n_steps=60, learning_rate=0.01, n_particles=1, batch_size=40, n_draws=60)


def as_tensors(values):
    return {name: torch.tensor(np.asarray(value), dtype=torch.float64) for name, value in values.items()}


def random_encoder(model, sizes, rng):
    """Random parameters of the encoder, `sizes` by dim."""
    return {name: 0.5 * rng.normal(size=[sizes[d] for d in dims]) for name, dims in model.parameters.items() if "encoder" in name}


def hidden_outputs(inputs, values, side, n_layers, activation):
    """The output of the hidden layers, by numpy."""
    h = inputs
    for i in range(1, n_layers + 1):
        h = {"h": activation(sum(v @ values[f"{side}_{i}_{n}"] for n, v in h.items()) + values[f"{side}_{i}_b"])}
    return h


ACTIVATIONS = {"relu": lambda a: np.maximum(a, 0), "tanh": np.tanh, "softplus": lambda a: np.log1p(np.exp(a))}


# -- densities


@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
@pytest.mark.parametrize("likelihood", ["gaussian", "bernoulli", "poisson"])
@pytest.mark.parametrize("conditional", [False, True])
@pytest.mark.parametrize("hidden", [(), (4, 3)])
def test_the_log_joint_matches_numpy(rng, likelihood, activation, conditional, hidden):
    noise = "feature" if conditional else "shared"
    model = VAE(2, hidden, likelihood, activation, noise=noise, conditional=conditional)
    dataset = model.simulate(rng, 7, n_features=5)
    values = dataset.truth
    inputs = {"z": values["z"], **({"labels": np.eye(3)[dataset.labels.astype(int)]} if conditional else {})}
    h = hidden_outputs(inputs, values, "decoder", len(hidden), ACTIVATIONS[activation])
    last = f"decoder_{len(hidden) + 1}"
    out = sum(v @ values[f"{last}_{n}"] for n, v in h.items()) + values[f"{last}_b"]
    fit_of = {
        "gaussian": lambda: stats.norm(out, values["sigma"]).logpdf(dataset.x),
        "bernoulli": lambda: stats.bernoulli(1 / (1 + np.exp(-out))).logpmf(dataset.x),
        "poisson": lambda: stats.poisson(np.exp(out)).logpmf(dataset.x),
    }[likelihood]()
    expected = stats.norm.logpdf(values["z"]).sum() + fit_of.sum()
    assert log_joint(model, dataset, values) == pytest.approx(expected, rel=1e-10)
    hidden_entries = dataset.x.copy()
    hidden_entries[1, 2] = hidden_entries[4, 0] = np.nan
    missing = replace(dataset, arrays={"x": hidden_entries})
    assert log_joint(model, missing, values) == pytest.approx(expected - fit_of[1, 2] - fit_of[4, 0], rel=1e-10)


def test_the_score_of_the_parameters_has_mean_0():
    """E[d log p(x, z; theta) / d theta] = 0 at the truth of every simulated set: z-tests, Bonferroni at a total of 1e-5."""
    model, rng, rows = VAE(2, (3,), activation="tanh", noise="feature"), np.random.default_rng(3), []
    with double():
        for _ in range(300):
            dataset = model.simulate(rng, 6, n_features=3)
            values = as_tensors({n: v for n, v in dataset.truth.items() if n in model.parameters})
            density = Density(model, tensors(model, dataset), dataset.array_dims, values)
            z = {"z": torch.tensor(dataset.truth["z"])}
            gradients = torch.func.grad(lambda p, d=density, z=z: d.at(p).log_joint(z))(values)
            rows.append(np.concatenate([gradients[n].numpy().ravel() for n in sorted(gradients)]))
    rows = np.array(rows)
    z = np.sqrt(len(rows)) * rows.mean(0) / rows.std(0)
    assert np.abs(z).max() < stats.norm.isf(1e-5 / 2 / rows.shape[1])


# -- the encoder


def test_the_encoder_matches_numpy_and_ignores_missing_entries(rng):
    model = VAE(2, (4, 3), activation="tanh", encoder_hidden=(5,), conditional=True)
    dataset = model.simulate(rng, 8, n_features=6)
    x = dataset.x.copy()
    x[2, 3] = x[5, 0] = np.nan
    dataset = replace(dataset, arrays={"x": x})
    values = random_encoder(model, {"feature": 6, "label": 3, "encoder_1": 5, "latent": 2, "axis": 2}, rng)
    assert set(values) | {n for n in dataset.truth if n != "z"} == set(model.parameters)
    given = {"x": np.nan_to_num(x), "missing": np.isnan(x).astype(float), "labels": np.eye(3)[dataset.labels.astype(int)]}
    h = hidden_outputs(given, values, "encoder", 1, np.tanh)["h"]
    with double():
        found = model.latents(tensors(model, dataset), **as_tensors(values))
    np.testing.assert_allclose(found.mean, h @ values["encoder_loc_h"] + values["encoder_loc_b"], rtol=1e-12)
    np.testing.assert_allclose(found.stddev, np.exp(h @ values["encoder_scale_h"] + values["encoder_scale_b"]), rtol=1e-12)
    arrays = tensors(model, dataset)
    arrays["x"][2, 3] = 99.0
    with double():
        np.testing.assert_array_equal(model.latents(arrays, **as_tensors(values)).mean, found.mean)


def linear(rng, n_units=30, n_features=6, q=1):
    """Data and parameters of a linear decoder with one latent dimension, whose exact conditional is a linear encoder."""
    model = VAE(q, (), encoder_hidden=())
    dataset = model.simulate(rng, n_units, n_features)
    W, mu, s2 = dataset.truth["decoder_1_z"].T, dataset.truth["decoder_1_b"], dataset.truth["sigma"] ** 2
    V = np.linalg.solve(W.T @ W + s2 * np.eye(q), W.T)
    variance = s2 / np.diag(W.T @ W + s2 * np.eye(q))
    encoder = {
        "encoder_loc_x": V.T, "encoder_loc_missing": np.zeros_like(V.T), "encoder_loc_b": -V @ mu,
        "encoder_scale_x": np.zeros((n_features, q)), "encoder_scale_missing": np.zeros((n_features, q)),
        "encoder_scale_b": np.log(np.sqrt(variance)),
    }  # fmt: skip
    values = {name: value for name, value in dataset.truth.items() if name != "z"} | encoder
    assert set(values) == set(model.parameters)
    return model, dataset, values, gaussian_log_density(dataset.x, mu, W @ W.T + s2 * np.eye(n_features))


def bound(model, dataset, values, n_samples):
    with double():
        torch.manual_seed(0)
        return model.bound(tensors(model, dataset), n_samples, **as_tensors(values)).numpy()


def test_the_elbo_is_exact_with_the_exact_encoder(rng):
    model, dataset, values, exact = linear(rng)
    for n_samples in (1, 7):
        np.testing.assert_allclose(bound(model, dataset, values, n_samples), exact, rtol=1e-9)


def test_the_importance_weighted_bound_increases_to_the_likelihood(rng):
    """For an encoder with twice the sd and a shift, the gap is KL(q || p(z | x)) with one sample and vanishes with many."""
    model, dataset, values, exact = linear(rng, n_units=1600)
    sd = float(np.exp(values["encoder_scale_b"][0]))
    values["encoder_loc_b"] = values["encoder_loc_b"] + 0.5 * sd
    values["encoder_scale_b"] = values["encoder_scale_b"] + np.log(2)
    kl = 0.5 * (2**2 + 0.25 - 1) - np.log(2)
    gaps = {n: exact - bound(model, dataset, values, n) for n in (1, 5, 2000)}
    error = gaps[1].std() / np.sqrt(1600)
    assert abs(gaps[1].mean() - kl) < 4.5 * error  # two-sided, 7e-6
    assert kl > 10 * error
    assert gaps[1].mean() > gaps[5].mean() > gaps[2000].mean()
    assert abs(gaps[2000]).max() < 0.2
    # Blocks of samples are joined: what is drawn in two goes is the same bound.
    assert np.abs(bound(model, dataset.subset(range(3)), values, 20_000) - exact[:3]).max() < 0.05


def test_the_elbo_integrates_out_missing_entries(rng):
    model, dataset, values, _ = linear(rng, n_units=12)
    x = dataset.x.copy()
    x[rng.uniform(size=x.shape) < 0.3] = np.nan
    hidden = replace(dataset, arrays={"x": x})
    W, mu, s2 = values["decoder_1_z"].T, values["decoder_1_b"], values["sigma"] ** 2
    values["encoder_scale_b"] = values["encoder_scale_b"] + np.log(4.0)
    exact = gaussian_log_density(x, mu, W @ W.T + s2 * np.eye(6))
    np.testing.assert_allclose(bound(model, hidden, values, 200_000), exact, atol=0.2)


# -- fits


@pytest.fixture(scope="module")
def fitted(iris):
    return fit(VAE(2, (16,), activation="tanh"), iris, QUICK, seed=0, progress=False)


def contents(result):
    return {f"{g.name}/{n}": a.values for g in result.data.children.values() for n, a in g.data_vars.items()}


def test_parameters_are_stored_once_and_positions_by_draw(fitted):
    assert set(fitted.parameters) == set(fitted.model.parameters)
    assert fitted.data["parameters"]["decoder_1_z"].dims == ("latent", "decoder_1")
    assert fitted.data["parameters"]["decoder_2_b"]["feature"].values[0] == "sepal length (cm)"
    assert fitted.latents().dims == ("chain", "draw", "unit", "latent")
    assert "log_likelihood" not in fitted.data.children
    with pytest.raises(ModelError, match="LOO requires draws of all parameters; here they are point estimates"):
        fitted.loo()


def test_draws_follow_the_encoder_and_densities_use_the_parameters(fitted, iris):
    z = fitted.sites()["z"]
    with double():
        q = fitted.model.latents(tensors(fitted.model, iris), **as_tensors(fitted.parameters))
        log_q = q.log_prob(torch.tensor(z)).numpy()
    # 60 draws: 300 means within 5 standard errors.
    assert (np.abs(z[0].mean(0) - q.mean.numpy()) < 5 * q.stddev.numpy() / np.sqrt(60)).all()
    np.testing.assert_allclose(fitted.data["sample_stats"]["log_q"].values, log_q.sum(-1), rtol=1e-10)
    joint = [log_joint(fitted.model, iris, {"z": z[0, i], **decoder(fitted)}) for i in (0, 59)]
    np.testing.assert_allclose(fitted.data["sample_stats"]["lp"].values[0, [0, 59]], joint, rtol=1e-10)
    weights = fitted.data["log_weights"]["log_weight"].values
    np.testing.assert_allclose(weights.sum(-1)[0, [0, 59]], joint - log_q.sum(-1)[0, [0, 59]], rtol=1e-9)


def decoder(result):
    return {name: value for name, value in result.parameters.items() if "encoder" not in name}


def test_vae_fits_are_reproducible_and_change_no_global_state(fitted, iris):
    pyro.clear_param_store()
    pyro.param("decoder_1_z", torch.tensor(2.0))
    again = contents(fit(VAE(2, (16,), activation="tanh"), iris, QUICK, seed=0, progress=False))
    assert {n: p.item() for n, p in pyro.get_param_store().named_parameters()} == {"decoder_1_z": 2.0}
    pyro.clear_param_store()
    for name, array in contents(fitted).items():
        assert array.tobytes() == again[name].tobytes(), name
    other = fit(VAE(2, (16,), activation="tanh"), iris, QUICK, seed=1, progress=False)
    assert other.parameters["decoder_1_z"].tobytes() != fitted.parameters["decoder_1_z"].tobytes()


def test_new_units_are_encoded_in_the_axes_of_the_fit(fitted, iris):
    few = iris.raw().subset([3, 77, 140])
    z = fitted.latents(few)
    assert z.sizes == {"chain": 1, "draw": 60, "unit": 3, "latent": 2}
    spread = fitted.latents().values.std((0, 1))[[3, 77, 140]]
    np.testing.assert_array_less(np.abs(z.values - fitted.latents().values[:, :, [3, 77, 140]]).mean((0, 1)), 4 * spread)
    np.testing.assert_array_less(
        np.abs(z.values.mean((0, 1)) - fitted.latents().values[:, :, [3, 77, 140]].mean((0, 1))), 5 * spread * np.sqrt(2 / 60)
    )


def test_held_out_units_are_scored_by_a_bound(fitted, iris):
    few = iris.raw().subset(range(0, 150, 10))
    score = fitted.held_out_score(few, n_samples=50)
    assert set(score) == {"bound", "se", "n_units"}
    assert fitted.log_likelihood(few, n_samples=50).name == "bound"
    assert score["bound"] == fitted.held_out_score(few, n_samples=50)["bound"]
    elbo = fitted.data["log_weights"]["log_weight"].values.mean((0, 1))[::10].sum()
    assert score["bound"] > elbo
    assert fitted.held_out_score(few, n_samples=2000)["bound"] > score["bound"] - 1


def test_a_stored_run_gives_the_same_latents(tmp_path):
    from latentlab.study.run import load_fit, run

    config = {
        "name": "v",
        "dataset": {"name": "iris"},
        "model": {"name": "vae", "n_latent": 2, "hidden": [8]},
        "inference": {
            "name": "svi", "guide": "model", "n_steps": 30, "n_particles": 1, "batch_size": 30, "n_draws": 30, "held_out": 0.1,
        },
        "held_out": 0.2,
    }  # fmt: skip
    done = run(config, out=tmp_path / "v", progress=False)
    assert {row["quantity"] for row in done.diagnostics.query("check == 'held_out_score'").to_dict("records")} == {"bound", "se"}
    result = load_fit(done)
    few = load_dataset("iris", standardize=False).subset(range(4))
    model = VAE(2, (8,))
    direct = fit(model, result.dataset, result.method, seed=0, progress=False)
    assert direct.latents(few).values.tobytes() == result.latents(few).values.tobytes()
    meaning = json.loads((tmp_path / "v" / "params" / "params.json").read_text())
    assert set(meaning["parameters"]) == set(model.parameters)
    assert meaning["dims"]["encoder_1_x"] == ["feature", "encoder_1"]
    import safetensors.numpy

    kept = safetensors.numpy.load_file(tmp_path / "v" / "params" / "params.safetensors")
    np.testing.assert_array_equal(kept["sigma"], result.parameters["sigma"])
    assert "A lower bound on the held-out log predictive density" in (tmp_path / "v" / "report.html").read_text()


def test_activity_matches_the_encoder_and_collapsed_dimensions_are_inactive(fitted, iris):
    values = dict(fitted.parameters)
    for name in ("encoder_loc_h", "encoder_scale_h"):
        values[name] = values[name].copy()
        values[name][:, 1] = 0.0
    values["encoder_loc_b"], values["encoder_scale_b"] = np.array([0.3, 0.0]), np.array([values["encoder_scale_b"][0], 0.0])
    from latentlab.inference.encoder import activity

    arrays = tensors(fitted.model, iris)
    table = activity(fitted.model, arrays, as_tensors(values))
    with double():
        q = fitted.model.latents(arrays, **as_tensors(values)).base_dist
        kl = torch.distributions.kl_divergence(q, torch.distributions.Normal(0.0, 1.0)).mean(0).numpy()
    np.testing.assert_allclose(table["kl"], kl, rtol=1e-10, atol=1e-14)
    np.testing.assert_allclose(table["activity"], q.mean.numpy().var(0), rtol=1e-10, atol=1e-14)
    assert table["active"].tolist() == [True, False]
    assert table["kl"][1] == pytest.approx(0.0, abs=1e-12)


def test_missing_entries_are_imputed_and_the_encoder_is_trained_with_them():
    missing = load_dataset("iris", missing=0.2)
    result = fit(VAE(2, (16,), activation="tanh"), missing, replace(QUICK, n_steps=400), seed=0, progress=False)
    filled = result.imputations(n_draws=50)
    truth = missing.transform.inverse(missing.truth["x"])[np.isnan(missing.x)]
    crude = np.broadcast_to(missing.transform.loc, missing.x.shape)[np.isnan(missing.x)]
    assert np.abs(filled.values.mean((0, 1)) - truth).mean() < 0.7 * np.abs(crude - truth).mean()
    assert np.abs(result.parameters["encoder_1_missing"]).max() > 0.01


# -- labels


def test_labels_enter_both_networks_with_fixed_columns(iris):
    model = VAE(2, (8,), conditional=True, activation="tanh")
    result = fit(model, iris, QUICK, seed=0, progress=False)
    assert result.parameters["decoder_1_labels"].shape == (3, 8)
    few = iris.raw().subset([60, 140])  # two species of three
    given = tensors(model, few, np.unique(iris.labels))["labels"]
    np.testing.assert_array_equal(given, [[0, 1, 0], [0, 0, 1]])
    means = result.latents(few).values.mean((0, 1))
    spread = result.latents().values.std((0, 1))[[60, 140]]
    np.testing.assert_array_less(
        np.abs(means - result.latents().values[:, :, [60, 140]].mean((0, 1))), 5 * spread * np.sqrt(2 / 60)
    )
    assert result.frozen().classes.tolist() == np.unique(iris.labels).tolist()
    assert tensors(result.frozen(), few)["labels"].shape == (2, 3)


def test_labels_that_are_missing_or_new_are_refused(iris):
    model = VAE(2, (8,), conditional=True)
    bare = replace(iris, labels=None)
    with pytest.raises(DataError, match="`conditional` needs a label for each unit; the data have no labels"):
        fit(model, bare, QUICK)
    result = fit(model, iris, QUICK, seed=0, progress=False)
    strange = replace(iris.raw().subset([0, 60]), labels=np.array(["setosa", "rosa"]))
    with pytest.raises(DataError, match=r"the label of unit 60 must be a label of the fit, setosa.*; got 'rosa'"):
        result.latents(strange)
    with pytest.raises(DataError, match="needs a label for each unit"):
        result.latents(bare.raw())


# -- the objective


def test_the_kl_weight_increases_to_beta(iris, monkeypatch):
    weights = []
    plain = model_guide.objective

    def seen(problem, settings, arrays, scale, kl_weight, n_particles):
        weights.append(float(kl_weight))
        return plain(problem, settings, arrays, scale, kl_weight, n_particles)

    monkeypatch.setattr(model_guide, "objective", seen)
    monkeypatch.setattr(steps, "capture", lambda function, *_, **__: function)  # else the program runs once, for the graph
    fit(VAE(2, (4,), beta=0.5), iris, replace(QUICK, n_steps=30, kl_warmup=20, n_draws=5), seed=0, progress=False)
    np.testing.assert_allclose(weights[:30], 0.5 * np.minimum(1, np.arange(1, 31) / 20))


def test_a_larger_beta_lowers_the_kl_divergence(iris):
    kl = [
        fit(VAE(2, (8,), beta=beta), iris, replace(QUICK, n_steps=400), seed=0, progress=False).activity()["kl"].sum()
        for beta in (0.2, 5.0)
    ]
    assert kl[0] > 1.5 * kl[1]


def test_held_out_units_stop_an_overfitting_vae():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 12))
    dataset = Dataset({"x": x}, dims={"x": ("unit", "feature")})
    fresh = Dataset({"x": rng.normal(size=(500, 12))}, dims={"x": ("unit", "feature")})
    model, long = VAE(3, (64,)), replace(QUICK, n_steps=1500, batch_size=30)
    stopped, through = (
        fit(model, dataset, method, seed=0, progress=False) for method in (replace(long, held_out=0.3, patience=200), long)
    )
    assert stopped.data["optimization"].sizes["step"] < 1500
    assert stopped.held_out_score(fresh, n_samples=100)["bound"] > through.held_out_score(fresh, n_samples=100)["bound"] + 500


def test_the_parameters_with_the_best_held_out_loss_are_the_result():
    """A parameter changes by the learning rate at each step; the held-out loss is lowest at 0.7."""
    seen = []

    def step(p, m, v, scale):
        return torch.zeros(1), torch.zeros(1), p + 0.01, m, v

    def watch(p):
        seen.append(p.item())
        return abs(p.item() - 0.7)

    adam = Adam(n_steps=400, learning_rate=0.01, patience=150, title="", progress=False)
    ends, (losses,) = adam.descend(torch.zeros(1, 1), step, itertools.repeat(()), [0], lambda *_: [], watch)
    best = min(seen, key=lambda value: abs(value - 0.7))
    assert ends.item() == best
    assert abs(best - 0.7) < 0.3
    assert len(losses) < 400  # and it does not go on for long after it


def test_held_out_units_do_not_affect_training(iris):
    """Changing the values of held-out units does not change the steps."""
    from latentlab.inference.model_guide import _divided
    from latentlab.seeds import Seeds

    seeds = Seeds(0).child("svi").child("restart", 0).child("held_out").numpy()
    training, aside = _divided(150, 0.2, seeds)
    assert sorted([*training, *aside]) == list(range(150))
    assert len(aside) == 30
    x = iris.x.copy()
    x[aside] = 50.0
    losses = [
        fit(VAE(2, (8,)), data, replace(QUICK, held_out=0.2), seed=0, progress=False).data["optimization"]["loss"].values
        for data in (iris, replace(iris, arrays={"x": x}, transform=None))
    ]
    assert losses[0].tobytes() == losses[1].tobytes()


def test_iwae_equals_the_elbo_with_one_particle_and_is_higher_with_more(iris):
    one, iwae = (
        fit(VAE(2, (8,)), iris, replace(QUICK, objective=o), seed=0, progress=False).data["optimization"]["loss"].values
        for o in ("elbo", "iwae")
    )
    np.testing.assert_allclose(one, iwae, rtol=1e-9)
    more = replace(QUICK, objective="iwae", n_particles=10)
    loss = fit(VAE(2, (8,)), iris, more, seed=0, progress=False).data["optimization"]["loss"].values
    assert loss[0, -10:].mean() < one[0, -10:].mean()


# -- frozen parameters


def test_positions_of_frozen_models_are_sampled_from_the_exact_posterior(rng):
    model, dataset, values, _ = linear(rng, n_units=5, q=2)
    few = model.frozen(values)
    result = fit(few, dataset, NUTS(n_chains=4, n_warmup=300, n_draws=500), seed=0, progress=False)
    z = result.sites()["z"].reshape(-1, 5, 2)
    mean, covariance = positions_given(dataset.x, values["decoder_1_b"], values["decoder_1_z"].T, values["sigma"] ** 2)
    # At least 400 effective draws: 10 means at 5 standard errors, 6e-6; variances likewise.
    sd = np.sqrt(np.diagonal(covariance, axis1=1, axis2=2))
    assert (np.abs(z.mean(0) - mean) < 5 * sd / np.sqrt(400)).all()
    np.testing.assert_allclose(z.var(0), sd**2, rtol=5 * np.sqrt(2 / 400))
    assert result.parameters == {}


def test_frozen_models_differ_by_their_parameters(fitted):
    values = dict(fitted.parameters)
    one = repr(fitted.frozen())
    values["sigma"] = values["sigma"] * 1.01
    assert one == repr(fitted.frozen())
    assert one != repr(fitted.model.frozen(values))
    assert one.startswith("VAE(n_latent=2")


# -- parameters beside sites, in models of one's own


class Shifted(LatentModel):
    """x_n ~ N(z_n + a + b, 1), z ~ N(0, 1), b ~ N(0, 0.1): a is a parameter, b a site of all units."""

    name, position, symmetry, methods = "shifted", Position("z"), Identity(), ("svi", "nuts")
    dims = {"z": ("unit",), "b": ()}
    parameters = {"a": ()}

    def model(self, x):
        a = pyro.param("a", torch.tensor(0.0))
        b = pyro.sample("b", dist.Normal(0.0, 0.1))
        with pyro.plate("unit", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z + a + b, 1.0), obs=x)

    def guide(self, x):
        pyro.sample(
            "b", dist.Normal(pyro.param("loc", torch.tensor(0.0)), pyro.param("s", torch.tensor(0.1), constraints.positive))
        )
        with pyro.plate("unit", len(x)):
            pyro.sample("z", dist.Normal(pyro.param("slope", torch.tensor(0.5)) * x - pyro.param("c", torch.tensor(0.0)), 0.7))


class Undeclared(Shifted):
    parameters = {}


class MissingParameter(Shifted):
    parameters = {"a": (), "never": ()}


class OneParticleOnly(Shifted):
    """A program that supports only one particle."""

    dims = {"z": ("unit",)}

    def model(self, x):
        a = pyro.param("a", torch.tensor(0.0))
        with pyro.plate("unit", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(torch.stack([z[i] for i in range(len(x))]) + a, 1.0), obs=x)

    def guide(self, x):
        with pyro.plate("unit", len(x)):
            pyro.sample("z", dist.Normal(pyro.param("slope", torch.tensor(0.5)) * x, 0.7))


def column(n=400):
    return Dataset({"x": 3.0 + np.sqrt(2) * np.random.default_rng(0).normal(size=n)}, dims={"x": ("unit",)})


def test_program_parameters_are_fitted_with_sites():
    data = column()
    method = SVI(guide="model", n_steps=1500, learning_rate=0.02, n_particles=2, n_draws=200)
    result = fit(Shifted(), data, method, seed=0, progress=False)
    assert result.parameters["a"] + result.sites()["b"].mean() == pytest.approx(data.x.mean(), abs=0.1)
    assert set(result.parameters) == {"a"}
    joint = log_joint(Shifted(), data, {**{n: v[0, 3] for n, v in result.sites().items()}, **result.parameters})
    assert result.data["sample_stats"]["lp"].values[0, 3] == pytest.approx(joint, rel=1e-12)


def test_undeclared_and_missing_parameters_are_refused():
    method = SVI(guide="model", n_steps=5, n_draws=5, n_particles=1)
    with pytest.raises(ModelError, match="parameter 'a' is not declared in `parameters` of 'shifted'; declared: none"):
        fit(Undeclared(), column(9), method)
    with pytest.raises(ModelError, match="declares the parameter 'never', which is in neither program nor guide"):
        fit(MissingParameter(), column(9), method)
    with pytest.raises(
        ModelError, match="'shifted' has parameters, which are estimated with guide='model' only; got guide='full_rank'"
    ):
        fit(Shifted(), column(9), SVI(n_steps=5))
    with pytest.raises(ModelError, match="objective 'iwae' needs a model whose sites all belong to units; 'shifted' also has b"):
        fit(Shifted(), column(9), replace(method, objective="iwae"))


def test_programs_limited_to_one_particle_are_refused_with_several():
    method = SVI(guide="model", n_steps=5, n_draws=5)
    with pytest.raises(ModelError, match=r"'shifted' cannot be evaluated with a leading axis of particles.*n_particles=1"):
        fit(OneParticleOnly(), column(9), method)
    fit(OneParticleOnly(), column(9), replace(method, n_particles=1), progress=False)


def test_parameters_without_a_prior_cannot_be_calibrated():
    from latentlab.calibration.calibrate import calibrate

    with pytest.raises(ModelError, match="parameters of 'vae' without a prior: decoder_1_z"):
        calibrate(VAE(2, (4,)), QUICK, n_replications=5)


# -- what is refused


def table(x):
    return Dataset({"x": np.asarray(x, dtype=float)}, dims={"x": ("unit", "feature")}, name="toy")


@pytest.mark.parametrize(
    ("likelihood", "x", "message"),
    [
        (
            "poisson",
            [[1, 2], [3, -1], [0, 2]],
            "column '1', unit '1' must be counts .whole numbers from 0. for the likelihood 'poisson'; got -1",
        ),
        ("poisson", [[1, 2], [0.5, 1], [0, 2]], "column '0', unit '1' must be .*; got 0.5 "),
        (
            "bernoulli",
            [[1, 0], [0, 1.2], [0, 1]],
            "column '1', unit '1' must be 0 or 1 for the likelihood 'bernoulli'; got 1.2",
        ),
        ("bernoulli", [[1, 0], [0, 0.5], [0, 1]], "column '1', unit '1' must be .*; got 0.5 "),
        ("gaussian", np.ones((4, 3)), "column '0' is constant"),
    ],
)
def test_values_outside_the_support_of_the_likelihood_are_refused(likelihood, x, message):
    with pytest.raises(DataError, match=message):
        fit(VAE(2, (4,), likelihood), table(x), SVI(guide="model", n_steps=2))


def test_data_of_the_wrong_form_are_refused_by_vaes(fitted, iris):
    images = Dataset({"x": np.zeros((5, 4, 4))}, dims={"x": ("unit", "row", "column")})
    with pytest.raises(DataError, match=r"an image as one row; .*\('unit', 'row', 'column'\) and shape \(5, 4, 4\)"):
        fit(VAE(2), images, QUICK)
    with pytest.raises(DataError, match=r"has 5 columns, but|columns differ from those"):
        fitted.latents(table(np.zeros((3, 5))))
    with pytest.raises(DataError, match="load them with `standardize: false`"):
        fit(VAE(2, likelihood="poisson"), iris, QUICK)
    constant = np.random.default_rng(0).normal(size=(9, 3))
    constant[:, 1] = 2.0
    with pytest.raises(DataError, match="column '1' is constant"):
        fit(VAE(2, (4,), noise="feature"), table(constant), QUICK)
    fit(VAE(2, (4,)), table(constant), replace(QUICK, n_steps=3, batch_size=None, n_draws=30), progress=False)


def test_images_that_do_not_match_the_network_are_refused(fitted):
    with pytest.raises(DataError, match=r"dim 'feature' must have size 4, as in the parameter '\w+'; got 5"):
        fit(fitted.frozen(), table(np.random.default_rng(0).normal(size=(3, 5))), NUTS(n_chains=1, n_warmup=5, n_draws=5))
    with pytest.raises(ModelError, match="model 'vae' does not support the method 'nuts'"):
        fit(VAE(2), table(np.eye(5)), NUTS())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: VAE(0), "`n_latent` must be a whole number of at least 1; got 0"),
        (lambda: VAE(2, (0,)), r"`hidden` must be a list of whole numbers of at least 1; got \(0,\)"),
        (lambda: VAE(2, 128), "`hidden` must be a list of whole numbers of at least 1; got 128"),
        (lambda: VAE(2, likelihood="normal"), "`likelihood` must be one of gaussian, bernoulli, .*; got 'normal'"),
        (lambda: VAE(2, activation="gelu"), "`activation` must be one of"),
        (lambda: VAE(2, beta=0), "`beta` must be a finite number above 0; got 0"),
        (lambda: VAE(2, noise="unit"), "`noise` must be one of shared, feature"),
        (lambda: VAE(2, conditional=1), "`conditional` must be true or false"),
        (lambda: SVI(guide="model", objective="vimco"), "SVI: `objective` must be one of elbo, iwae; got 'vimco'"),
        (lambda: SVI(guide="model", kl_warmup=-1), "SVI: `kl_warmup` must be a whole number of at least 0"),
        (lambda: SVI(guide="model", held_out=1.0), "SVI: `held_out` must be a finite number of at least 0 and below 1; got 1.0"),
        (lambda: SVI(held_out=0.1), "SVI: `held_out` is available with guide='model' only; got guide='full_rank'"),
        (lambda: SVI(objective="iwae"), "SVI: `objective` is available with guide='model' only"),
    ],
)
def test_settings_of_vaes_out_of_range_are_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_held_out_shares_and_batches_that_leave_no_units_are_refused(iris):
    with pytest.raises(ConfigError, match=r"SVI: `held_out` must leave a unit in each part; got 0.001 of 150"):
        fit(VAE(2), iris, replace(QUICK, held_out=0.001))
    with pytest.raises(ConfigError, match="`batch_size` must be at most the 30 units that are not held out; got 40"):
        fit(VAE(2), iris, replace(QUICK, held_out=0.8))


# -- and it is worth its while


@pytest.mark.slow
def test_a_deep_decoder_beats_ppca_on_held_out_images():
    digits = load_dataset("digits", standardize=False, dequantize=True)
    training, held_out = digits.split(0.1, np.random.default_rng(1))
    method = SVI(guide="model", n_steps=1500, learning_rate=0.005, n_particles=1, batch_size=128, n_draws=100)
    vae = fit(VAE(2), training, method, seed=0, progress=False)
    from latentlab.inference.exact import Exact

    ppca = fit(PPCA(2), training, Exact(n_draws=10), seed=0)
    ours, theirs = vae.held_out_score(held_out), ppca.held_out_score(held_out)
    assert ours["bound"] > theirs["elpd"] + 5 * (ours["se"] + theirs["se"])
