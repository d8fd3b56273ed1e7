"""Tests of ratings and graphs, from density to report."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr
import yaml
from scipy.special import expit
from scipy.stats import halfnorm, norm

import latentlab as ll
from latentlab.comparison.result import Comparison
from latentlab.comparison.same_data import data_difference
from latentlab.data.dataset import Dataset
from latentlab.data.points import grunfeld, karate
from latentlab.errors import ConfigError, DataError, InferenceError, ModelError
from latentlab.inference.arrays import tensors
from latentlab.inference.density import Density
from latentlab.inference.program import check_declaration
from latentlab.models.matrix_factorization import MatrixFactorization
from latentlab.models.random_dot_product import RandomDotProduct
from latentlab.results.assemble import align
from latentlab.results.convergence import ess_mean
from latentlab.results.sensitivity import power_sensitivity
from latentlab.store.read import read
from latentlab.study.several import compare_runs
from latentlab.symmetry.groups import Orthogonal

FALSE_ALARM = 1e-5
"""Family-wise error rate of each comparison of a posterior with its reference, by Bonferroni over its quantities."""
QUICK = ll.ChEES(n_chains=16, n_superchains=4, n_warmup=150, n_draws=50)


@pytest.fixture(scope="module")
def ratings():
    return grunfeld().standardize()


@pytest.fixture(scope="module")
def fitted(ratings):
    training, held_out = ratings.split(0.1, np.random.default_rng(0))
    return ll.fit(MatrixFactorization(2), training, QUICK, seed=0, progress=False), held_out


@pytest.fixture(scope="module")
def graph_fit():
    return ll.fit(RandomDotProduct(2), karate(), QUICK, seed=0, progress=False)


# -- densities


def test_the_density_of_ratings_factorises_over_cells(ratings, rng):
    model = MatrixFactorization(2, U_scale=0.7, V_scale=1.3, mu_scale=0.5, sigma_scale=2.0)
    U, V, mu, sigma = rng.normal(size=(11, 2)), rng.normal(size=(20, 2)), 0.3, 0.6
    i, j = (ratings.index[name].values for name in ("user", "item"))
    expected = norm.logpdf(ratings.x, mu + (U[i] * V[j]).sum(1), sigma).sum() + norm.logpdf(mu, 0, 0.5)
    expected += norm.logpdf(U, 0, 0.7).sum() + norm.logpdf(V, 0, 1.3).sum() + halfnorm.logpdf(sigma, scale=2.0)
    found = ll.log_joint(model, ratings, {"U": U, "V": V, "mu": mu, "sigma": sigma})
    assert found == pytest.approx(expected, rel=1e-12)


def test_the_density_of_a_graph_factorises_over_pairs(rng):
    z, alpha, graph = rng.normal(size=(34, 3)), -1.2, karate().complete()
    a = graph.adjacency().toarray()
    i, j = np.triu_indices(34, 1)
    p = expit(alpha + (z[i] * z[j]).sum(1))
    expected = np.log(np.where(a[i, j] == 1, p, 1 - p)).sum() + norm.logpdf(alpha, 0, 2).sum() + norm.logpdf(z).sum()
    assert ll.log_joint(RandomDotProduct(3), graph, {"alpha": alpha, "z": z}) == pytest.approx(expected, rel=1e-12)


def test_scaled_batches_of_cells_average_to_the_full_density(ratings, rng):
    """The mean of the scaled log joint over batches that partition the cells is the full log joint."""
    model, values = (
        MatrixFactorization(2),
        {"U": rng.normal(size=(11, 2)), "V": rng.normal(size=(20, 2)), "mu": 0.1, "sigma": 0.5},
    )
    density = Density(model, tensors(model, ratings), ratings.array_dims)
    assert (density.points, density.n_points, density.point_arrays()) == ("cell", 220, ("rating", "user", "item"))
    given = density.constrain(density.unconstrain(values))
    order = torch.from_numpy(rng.permutation(220))
    batches = [tuple(density.arrays[name][rows] for name in density.point_arrays()) for rows in order.split(44)]
    each = [float(density.log_joint(given, density.with_points(batch), point_scale=5.0)) for batch in batches]
    assert np.mean(each) == pytest.approx(float(density.log_joint(given)), rel=1e-10)


# -- posteriors


def gibbs(r, i, j, n, m, K, rng, n_sweeps):
    """Returns draws of U V^T, mu and sigma by Gibbs sampling; sigma, with a half-normal prior, is drawn on a grid."""
    U, V, mu, sigma = rng.normal(size=(n, K)), rng.normal(size=(m, K)), 0.0, 1.0
    grid = np.exp(np.linspace(np.log(0.02), np.log(5), 4000))
    kept = []
    for _ in range(n_sweeps):
        for own, other, mine, theirs in ((U, V, i, j), (V, U, j, i)):
            for k in range(len(own)):
                those = mine == k
                X = other[theirs[those]]
                precision = np.eye(K) + X.T @ X / sigma**2
                mean = np.linalg.solve(precision, X.T @ (r[those] - mu) / sigma**2)
                own[k] = mean + np.linalg.solve(np.linalg.cholesky(precision).T, rng.normal(size=K))
        left = r - (U[i] * V[j]).sum(1)
        precision = 1 + len(r) / sigma**2
        mu = left.sum() / sigma**2 / precision + rng.normal() / np.sqrt(precision)
        squares = ((left - mu) ** 2).sum()
        log_p = -(grid**2) / 2 - len(r) * np.log(grid) - squares / 2 / grid**2 + np.log(grid)  # Jacobian of the log-spaced grid
        p = np.exp(log_p - log_p.max())
        sigma = grid[np.searchsorted(np.cumsum(p) / p.sum(), rng.random())]
        kept.append([*(U @ V.T).ravel(), mu, sigma])
    return np.array(kept)


@pytest.mark.slow
def test_the_posterior_of_ratings_matches_gibbs_sampling(rng):
    """Compares the means of all products, mu and sigma by z-tests, with the Monte Carlo errors of both samplers."""
    model = MatrixFactorization(1)
    dataset = model.simulate(np.random.default_rng(5), 4, n_items=3, share=0.8)
    i, j = (dataset.index[name].values for name in ("user", "item"))
    exact = gibbs(dataset.x, i, j, 4, 3, 1, rng, 12_000)[1000:]
    found = ll.fit(model, dataset, ll.NUTS(n_chains=4, n_warmup=500, n_draws=1500), seed=int(rng.integers(2**31)), progress=False)
    sites = found.sites()
    products = np.einsum("cdik,cdjk->cdij", sites["U"], sites["V"]).reshape(4, 1500, -1)
    draws = np.concatenate([products, sites["mu"][..., None], sites["sigma"][..., None]], axis=-1)
    chains = exact.reshape(4, -1, exact.shape[1])
    variances = [x.var((0, 1)) / ess_mean(x) for x in (draws, chains)]
    z = (draws.mean((0, 1)) - exact.mean(0)) / np.sqrt(sum(variances))
    assert np.abs(z).max() < norm.isf(FALSE_ALARM / 2 / len(z))


def test_the_density_of_karate_matches_the_reference(references):
    folder = references / "latent_dot_karate"
    graph = karate().complete()
    np.testing.assert_array_equal(graph.adjacency().toarray(), json.loads((folder / "data.json").read_text())["A"])
    points = json.loads((folder / "log_density.json").read_text())["points"]
    for point in points:
        values = {"alpha": point["params"]["alpha"][0], "z": point["params"]["z"]}
        assert ll.log_joint(RandomDotProduct(2), graph, values) == pytest.approx(point["log_density"], abs=1e-8)


@pytest.mark.slow
def test_the_posterior_of_karate_matches_the_reference(references, rng):
    """Compares the means of alpha and all products by z-tests, with the Monte Carlo errors of both sides."""
    reference = json.loads((references / "latent_dot_karate" / "reference.json").read_text())["params"]
    method = ll.ChEES(n_chains=64, n_warmup=300, n_draws=120)
    found = ll.fit(RandomDotProduct(2), karate(), method, seed=int(rng.integers(2**31)), progress=False)
    assert found.converged, found.diagnostics().query("verdict == 'fail'")
    sites = found.sites()
    products = np.einsum("cdik,cdjk->cdij", sites["z"], sites["z"])
    scores = []
    for name, known in reference.items():
        at = [int(k) - 1 for k in name[2:-1].split(",")] if name != "alpha" else []
        draws = sites["alpha"] if name == "alpha" else products[:, :, at[0], at[1]]
        error = np.hypot(known["mcse_mean"], draws.std() / np.sqrt(float(ess_mean(draws))))
        scores.append((draws.mean() - known["mean"]) / error)
    assert len(scores) == 596
    assert np.abs(scores).max() < norm.isf(FALSE_ALARM / 2 / len(scores))


# -- results of a fit


def test_results_have_dims_of_points_and_kinds_of_units(fitted, graph_fit):
    fit, _ = fitted
    posterior, latents = (fit.data[group].to_dataset() for group in ("posterior", "latents"))
    assert posterior["U"].dims == latents["U"].dims == ("chain", "draw", "user", "latent")
    assert latents["V"].dims == ("chain", "draw", "item", "latent")
    assert latents["item"].values[:2].tolist() == ["1935", "1936"]
    likelihood = fit.data["log_likelihood"]["log_likelihood"]
    assert likelihood.dims == ("chain", "draw", "cell")
    assert likelihood["user"].values.tolist() == fit.dataset.point_names()["user"].tolist()
    assert fit.data["observed_data"]["rating"]["item"].dims == ("cell",)
    assert len(fit.loo().pointwise) == fit.dataset.n_points == 198
    assert fit.latents().dims == fit.latents("U").dims
    assert fit.latents("V").sizes["item"] == 20
    with pytest.raises(ModelError, match=r"unknown position of 'matrix_factorization' 'W'.* Valid: U, V"):
        fit.latents("W")
    assert graph_fit.data["log_likelihood"]["log_likelihood"].sizes["pair"] == 34 * 33 // 2
    assert graph_fit.latents().dims == ("chain", "draw", "node", "latent")


def test_all_kinds_of_units_are_aligned_by_one_element(fitted):
    """Alignment keeps the products of users and items, and reduces the spread of the draws of both kinds."""
    fit, _ = fitted
    U, V = (fit.latents(name).values for name in ("U", "V"))
    sites = fit.sites()
    np.testing.assert_allclose(
        np.einsum("cdik,cdjk->cdij", U, V), np.einsum("cdik,cdjk->cdij", sites["U"], sites["V"]), atol=1e-10
    )
    for aligned, raw in ((U, sites["U"]), (V, sites["V"])):
        assert aligned.std((0, 1)).mean() < raw.std((0, 1)).mean()


def test_draws_are_aligned_by_all_kinds_together(rng):
    """The items determine the rotation of a draw if the users carry no information on it."""
    angle = rng.uniform(0, 2 * np.pi, (2, 50))
    turn = np.stack([np.stack([np.cos(angle), np.sin(angle)], -1), np.stack([-np.sin(angle), np.cos(angle)], -1)], -1)
    values = {
        "U": 0.01 * rng.normal(size=(2, 50, 5, 2)),
        "V": (rng.normal(size=(8, 2)) + 0.01 * rng.normal(size=(2, 50, 8, 2))) @ turn,
    }
    found = align(MatrixFactorization(2), values).values["V"]
    assert found.std(axis=(0, 1)).max() < 0.05  # 0.02 is expected; about 1 if aligned by the users alone


def test_unlisted_pairs_of_new_data_count_as_zeros(graph_fit):
    """A list of edges is scored on all its pairs; unknown pairs are left out."""
    score = graph_fit.held_out_score(karate())
    assert score == graph_fit.held_out_score(karate().complete())
    assert score["n_points"] == 34 * 33 / 2
    few = ll.Dataset(
        {"edge": [1.0, np.nan]}, dims={"edge": ("pair",)}, units={"node": ["7", "3", "5"]}, absent="zero",
        index={"source": ("pair", [0, 0], "node"), "target": ("pair", [1, 2], "node")},
    )  # fmt: skip
    found = graph_fit.log_likelihood(few)
    pairs = set(zip(found["source"].values.tolist(), found["target"].values.tolist(), strict=True))
    assert pairs == {("7", "3"), ("3", "5")}
    sites = graph_fit.sites()
    logit = [(sites["alpha"] + (sites["z"][:, :, i] * sites["z"][:, :, j]).sum(-1)) for i, j in ((7, 3), (3, 5))]
    expected = np.stack([np.log(expit(logit[0])), np.log(expit(-logit[1]))], axis=-1)
    np.testing.assert_allclose(found.values, expected, rtol=1e-9)


def test_self_loops_are_not_predicted(graph_fit):
    assert graph_fit.predict(source=["0", "1"], target=["1", "0"], n_draws=16).shape == (16, 1, 2)
    with pytest.raises(DataError, match="pair 1 joins '3' with itself; the model has no self-loops"):
        graph_fit.predict(source=["0", "3"], target=["1", "3"])
    with pytest.raises(ConfigError, match="`n_draws` must be a whole number of at least 1; got 0"):
        graph_fit.predict(source=["0"], target=["1"], n_draws=0)


def test_power_scaling_excludes_priors_of_positions_of_all_kinds(fitted):
    fit, _ = fitted
    quantities = {"sigma": fit.sites()["sigma"]}
    found = power_sensitivity(fit.data, quantities)
    fewer = fit.data.copy()
    fewer["log_prior"] = xr.DataTree(fit.data["log_prior"].to_dataset().drop_vars(["U", "V"]))
    pd.testing.assert_frame_equal(found, power_sensitivity(fewer, quantities))


def test_held_out_point_scores_match_the_density(fitted):
    fit, held_out = fitted
    found = fit.log_likelihood(held_out)
    assert (found.dims, found.sizes["cell"]) == (("chain", "draw", "cell"), 22)
    assert found["user"].values.tolist() == held_out.point_names()["user"].tolist()
    sites, i, j = fit.sites(), *(held_out.index[name].values for name in ("user", "item"))
    mean = sites["mu"][..., None] + (sites["U"][:, :, i] * sites["V"][:, :, j]).sum(-1)
    np.testing.assert_allclose(found.values, norm.logpdf(held_out.x, mean, sites["sigma"][..., None]), atol=1e-9)
    score = fit.held_out_score(held_out)
    assert score["n_points"] == 22
    assert score["elpd"] == pytest.approx(np.log(np.exp(found.values).mean((0, 1))).sum(), rel=1e-9)
    strange = Dataset(
        {"rating": [1.0]}, dims={"rating": ("cell",)}, units={"user": ["Tesla"], "item": ["1940"]},
        index={"user": ("cell", [0]), "item": ("cell", [0])}, name="new cells",
    )  # fmt: skip
    with pytest.raises(DataError, match=r"1 units of the kind 'user' were not in the fit and have no positions: 'Tesla'"):
        fit.log_likelihood(strange)


def test_predictions_are_in_raw_units(fitted):
    fit, _ = fitted
    i, j = 3, 7
    names = {kind: fit.dataset.units[kind] for kind in ("user", "item")}
    found = fit.predict(user=[names["user"][i]] * 2, item=names["item"][[j, j + 1]], n_draws=800)
    assert (found.dims, found.sizes["cell"]) == (("chain", "draw", "cell"), 2)
    sites = fit.sites()
    mean = sites["mu"] + (sites["U"][:, :, i] * sites["V"][:, :, j]).sum(-1)
    raw, spread = fit.dataset.transform.inverse(mean), np.hypot(mean.std(), sites["sigma"].mean()) * fit.dataset.transform.scale
    assert abs(found.values[..., 0].mean() - raw.mean()) < 6 * spread / np.sqrt(found.values[..., 0].size)
    for wrong, message in (
        ({"user": ["Tesla"], "item": ["1940"]}, "user 'Tesla' is not a unit of the fit"),
        ({"user": ["IBM"]}, "the arguments must be user, item"),
        ({"user": [], "item": []}, "at least one cell is required"),
        ({"user": ["IBM"], "item": ["1940", "1941"]}, "all indices must have the same length; got user: 1, item: 2"),
    ):
        with pytest.raises(DataError, match=message):
            fit.predict(**wrong)
    table = ll.fit(ll.models.PPCA(2), ll.load_dataset("iris"), ll.Exact(n_draws=50), progress=False)
    with pytest.raises(DataError, match="must be points with an index of units, such as ratings; got the table 'iris'"):
        table.predict(unit=[0])


@pytest.mark.parametrize(
    "method", [ll.SVI(guide="mean_field", n_steps=300, batch_size=50, n_draws=50), ll.MAP(n_restarts=2, n_draws=50)]
)
def test_other_methods_fit_ratings(ratings, method):
    found = ll.fit(MatrixFactorization(2), ratings, method, seed=0, progress=False)
    table = found.diagnostics()
    assert np.isfinite(found.latents("V").values).all()
    assert (table["verdict"] != "fail").loc[table["check"] == "symmetry"].all()


# -- errors


@pytest.mark.parametrize(
    ("model", "dataset", "message"),
    [
        (MatrixFactorization(2), karate, "has positions for units of the kind 'user'; the data have units of the kind 'node'"),
        (
            RandomDotProduct(2),
            grunfeld,
            "has positions for units of the kind 'node'; the data have units of the kind 'user', 'item'",
        ),
        (
            ll.models.PPCA(2),
            grunfeld,
            "has positions for units of the kind 'unit'; the data have units of the kind 'user', 'item'",
        ),
        (MatrixFactorization(2), lambda: ll.load_dataset("iris"), "has positions for units of the kind 'user'"),
    ],
)
def test_models_refuse_other_kinds_of_units(model, dataset, message):
    with pytest.raises(DataError, match=message):
        ll.fit(model, dataset(), ll.MAP())


def test_ratings_may_name_items_first(rng):
    """The density does not depend on the order of the indices."""
    given = grunfeld().standardize()
    swapped = replace(given, index={name: given.index[name] for name in ("item", "user")})
    model = MatrixFactorization(2)
    model.check(swapped)
    densities = [Density(model, tensors(model, one), one.array_dims) for one in (given, swapped)]
    at = torch.from_numpy(rng.normal(size=densities[0].size))
    values = [float(density.eager_value_and_grad(at)[0]) for density in densities]
    assert values[0] == pytest.approx(values[1], abs=1e-9)


@pytest.mark.parametrize("directed", [False, True])
def test_graph_models_start_at_the_spectral_embedding(directed, rng):
    """Inner products at the start are the best positive semi-definite approximation of the adjacency less its density."""
    n = 12
    i, j = np.nonzero(~np.eye(n, dtype=bool)) if directed else np.triu_indices(n, 1)
    y = (rng.random(len(i)) < 0.4).astype(float)
    dims, index = {"edge": ("pair",)}, {"source": ("pair", i, "node"), "target": ("pair", j, "node")}
    graph = Dataset({"edge": y}, dims=dims, units={"node": n}, index=index, directed=directed)
    z = RandomDotProduct(n).initialize(tensors(RandomDotProduct(n), graph), rng)["z"].numpy()
    centred = np.zeros((n, n))
    centred[i, j] = y - y.mean()
    centred = (centred + centred.T) / (2 if directed else 1)
    values, vectors = np.linalg.eigh(centred)
    np.testing.assert_allclose(z @ z.T, (vectors * values.clip(min=0)) @ vectors.T, atol=1e-9)


def test_edges_must_be_0_or_1():
    weighted = Dataset(
        {"edge": [1.0, 2.0]},
        dims={"edge": ("pair",)},
        units={"node": ["a", "b", "c"]},
        index={"source": ("pair", [0, 1], "node"), "target": ("pair", [1, 2], "node")},
        absent="zero",
    )
    with pytest.raises(DataError, match="edges must be 0 or 1; got 2 for 'b' and 'c'"):
        ll.fit(RandomDotProduct(1), weighted, ll.MAP())


def test_a_symmetry_must_declare_the_kinds_of_units():
    class Forgetful(MatrixFactorization):
        symmetry = Orthogonal()

    with pytest.raises(ModelError, match=r"declare Orthogonal\('latent', units=\('user', 'item'\)\)"):
        check_declaration(Forgetful(2))


# -- comparison


def compared(fit, embedding):
    return ll.compare(fit, [embedding], progress=False, n_draws=8, n_pairs=4, n_permutations=2, n_neighbors=3)


def test_each_kind_has_scores_and_verdicts_under_one_alignment(fitted):
    """A rotation of both kinds leaves delta unchanged; a rotation of one kind does so only for that kind by itself."""
    fit, _ = fitted
    U, V = (fit.latents(name).values[0, 7] for name in ("U", "V"))
    units = {kind: fit.dataset.units[kind] for kind in ("user", "item")}
    turn = np.array([[0.0, 1.0], [-1.0, 0.0]])
    together = compared(fit, ll.Embedding("draw", {"user": U @ turn, "item": V @ turn}, units))
    table = together.verdicts.query("alignment == 'orthogonal'").set_index("units")
    assert table.index.tolist() == ["user", "item"]
    plain = compared(fit, ll.Embedding("draw", {"user": U, "item": V}, units)).verdicts.query("alignment == 'orthogonal'")
    np.testing.assert_allclose(table["delta"], plain["delta"], rtol=1e-6)
    apart = compared(fit, ll.Embedding("draw", {"user": U @ turn, "item": V}, units)).verdicts
    assert apart.query("alignment == 'orthogonal'")["delta"].max() > 2 * table["delta"].max()
    alone = [compared(fit, ll.Embedding("draw", {"user": one}, {"user": units["user"]})).verdicts for one in (U, U @ turn)]
    deltas = [one.query("alignment == 'orthogonal'")["delta"].item() for one in alone]
    assert deltas[1] == pytest.approx(deltas[0], rel=1e-6)
    data = together.to_dataset("item")
    assert data["mahalanobis"].dims == ("embedding", "item")
    assert set(together.to_dataframe()["units"]) == {"user", "item"}
    assert [name for name in together.sentences()] == ["draw, users", "draw, items"]
    with pytest.raises(ConfigError, match="unknown kind of units 'film'"):
        together.to_dataset("film")
    for of_one_kind in (Comparison.data.fget, Comparison.ceiling.fget, Comparison.coverage.fget, Comparison.to_dataset):
        with pytest.raises(ConfigError, match="several kinds of units were compared \\('user', 'item'\\); choose one"):
            of_one_kind(together)
    assert list(together.to_tree().children) == ["user", "item"]
    assert repr(together).startswith("Comparison(2 arrays")


def test_embeddings_of_other_kinds_or_units_are_refused(fitted):
    fit, _ = fitted
    units = {kind: fit.dataset.units[kind] for kind in ("user", "item")}
    U, V = (fit.latents(name).values[0, 0] for name in ("U", "V"))
    for embedding, message in (
        (ll.Embedding("mine", U, units["user"]), "has one array, but the model .* has positions of 'user', 'item'"),
        (
            ll.Embedding("mine", {"film": U}, {"film": units["user"]}),
            "has units of the kind 'film', but .* has positions of 'user', 'item' only",
        ),
        (
            ll.Embedding("mine", {"user": U[1:], "item": V}, {"user": units["user"][1:], "item": units["item"]}),
            "has no values for 1 of 11 units",
        ),
    ):
        with pytest.raises(DataError, match=message):
            compared(fit, embedding)


def test_labels_of_nodes_are_compared_with_positions(graph_fit):
    found = compared(graph_fit, ll.embed("adjacency_spectral", karate()))
    assert found.data["mahalanobis"].dims == ("embedding", "node")
    assert float(found.data["downstream_accuracy"].max()) > 0.8


# -- runs


def config(name, **changes):
    base = {
        "name": name,
        "inference": {"name": "chees", "n_chains": 8, "n_superchains": 4, "n_warmup": 60, "n_draws": 30},
        "compare": {"n_neighbors": 3, "n_draws": 8, "n_pairs": 4, "n_permutations": 2},
    }
    return {**base, **changes}


RATED = config(
    "rated",
    dataset={"name": "grunfeld"},
    model={"name": "matrix_factorization", "n_latent": 2},
    embeddings=[{"name": "truncated_svd"}],
    held_out=0.1,
)


def test_runs_of_ratings_store_and_show_all_kinds(tmp_path):
    done = ll.run(RATED, out=tmp_path / "rated", progress=False)
    assert set(done.verdicts["units"]) == {"user", "item"}
    assert done.embeddings_by_kind["item"]["truncated_svd"].dims == ("item", "latent")
    assert done.comparison_by_kind["user"]["mahalanobis"].dims == ("embedding", "user")
    page = (done.path / "report.html").read_text(encoding="utf-8")
    for title in (
        "Posterior of the positions (users)",
        "Posterior of the positions (items)",
        "Units with the largest disagreement (items)",
    ):
        assert title in page
    assert page.count('class="brush"') == 2
    assert "22 cells were held out of the fit" in page
    again = ll.load_run(done.path).fit
    xr.testing.assert_identical(again.latents("V"), done.fit.latents("V"))
    record = json.loads((done.path / "report.json").read_text())
    assert {one["units"] for one in record["verdicts"]} == {"user", "item"}
    assert any("truncated_svd, items" in line for line in done.summary())


def test_runs_of_ratings_resume_with_embeddings_of_all_kinds(tmp_path, monkeypatch):
    from latentlab.study import stages as module

    def broken(*_, **__):
        raise RuntimeError("the disk is gone")

    with monkeypatch.context() as patch:
        patch.setattr(module, "compare", broken)
        with pytest.raises(RuntimeError):
            ll.run(RATED, out=tmp_path / "rated", progress=False)
    done = ll.run(RATED, out=tmp_path / "rated", resume=True, progress=False)
    whole = ll.run(RATED, out=tmp_path / "whole", progress=False)
    for kind, data in whole.comparison_by_kind.items():
        xr.testing.assert_equal(data, done.comparison_by_kind[kind])


def test_a_run_of_a_graph_file_with_user_vectors(tmp_path):
    graph = karate()
    pairs = zip(*(names.tolist() for names in graph.point_names().values()), strict=True)
    (tmp_path / "friends.csv").write_text("source,target\n" + "".join(f"{a},{b}\n" for a, b in pairs))
    vectors = np.random.default_rng(0).normal(size=(34, 2))
    (tmp_path / "mine.csv").write_text("node,a,b\n" + "".join(f"{k},{x},{y}\n" for k, (x, y) in enumerate(vectors)))
    (tmp_path / "graph.yaml").write_text(
        yaml.safe_dump(
            config(
                "graph",
                dataset={"name": "edges", "path": "friends.csv", "standardize": False},
                model={"name": "random_dot_product", "n_latent": 2},
                embeddings=[{"name": "adjacency_spectral"}, {"name": "file", "path": "mine.csv", "unit": "node"}],
            )
        )
    )
    done = ll.run(tmp_path / "graph.yaml", out=tmp_path / "graph", progress=False)
    assert done.embeddings["adjacency_spectral"].dims == ("node", "latent")
    assert done.info["data"]["pair"] == 34 * 33 / 2  # all pairs, joined or not
    assert set(done.verdicts["units"]) == {"node"}
    assert read(done.path).comparison["mahalanobis"].dims == ("embedding", "node")
    (tmp_path / "mine.csv").write_text("node,a,b\n0,1,2\n")
    with pytest.raises(DataError, match=r"embeddings\.1: .*has no values for 33 of 34 units"):
        ll.run(tmp_path / "graph.yaml", out=tmp_path / "other", progress=False)


def few_items(rng, n_items):
    users, items = np.repeat(np.arange(8), n_items), np.tile(np.arange(n_items), 8)
    return ll.Dataset(
        {"rating": rng.normal(size=8 * n_items)},
        dims={"rating": ("cell",)},
        units={"user": [f"u{i}" for i in range(8)], "item": [f"i{i}" for i in range(n_items)]},
        index={"user": ("cell", users), "item": ("cell", items)},
    )


def test_kinds_of_too_few_units_are_left_out_of_a_comparison(rng):
    dataset = few_items(rng, 3)
    fit = ll.fit(MatrixFactorization(1), dataset, ll.ChEES(n_chains=8, n_superchains=2, n_warmup=40, n_draws=20), progress=False)
    found = compared(fit, ll.embed("truncated_svd", dataset, n_latent=1))
    assert list(found.parts) == ["user"]
    assert "items are not compared: there are 3, and 4 are needed" in found.parts["user"].attrs["notes"]
    alone = ll.Embedding("mine", {"item": np.ones((3, 1))}, {"item": ["i0", "i1", "i2"]})
    with pytest.raises(DataError, match="needs at least 4 units; there are 3 of the kind 'item'"):
        compared(fit, alone)


def test_runs_with_too_few_items_are_written_and_compared(tmp_path, rng):
    dataset = few_items(rng, 3)
    rows = zip(*(names.tolist() for names in dataset.point_names().values()), dataset.x.tolist(), strict=True)
    (tmp_path / "few.csv").write_text("user,item,rating\n" + "".join(f"{u},{i},{r}\n" for u, i, r in rows))
    given = {**RATED, "dataset": {"name": "ratings", "path": str(tmp_path / "few.csv")}, "held_out": 0.0}
    given["model"] = {"name": "matrix_factorization", "n_latent": 1}
    given["embeddings"] = [{"name": "truncated_svd"}]
    runs = [ll.run({**given, "seed": seed}, out=tmp_path / f"few-{seed}", progress=False) for seed in (0, 1)]
    assert set(runs[0].verdicts["units"]) == {"user"}
    page = (runs[0].path / "report.html").read_text(encoding="utf-8")
    assert "items are not compared: there are 3" in page
    assert "no embedding contains items, or there are too few items" in page
    found = compare_runs([run.path for run in runs])
    assert set(found.positions["units"]) == {"user"}
    assert any("have 3 items, too few to compare their positions" in note for note in found.notes)
    given["embeddings"] = [{"name": "truncated_svd", "label": "x"}]
    (tmp_path / "few.csv").write_text("user,item,rating\na,x,1\na,y,2\nb,x,3\nb,y,5\n")
    with pytest.raises(DataError, match=r"embeddings\.0: .*at least 4 units; there are 2 of the kind 'user'"):
        ll.run(given, out=tmp_path / "none", progress=False)
    assert not (tmp_path / "none").exists()


def test_too_few_ratings_for_the_parameters_are_noted(rng):
    """A matrix of rank K has K (n + m - K) free parameters: 3 (8 + 4 - 3) and the mean are 28, against 32 or 28 cells."""
    dataset, model = few_items(rng, 4), MatrixFactorization(3)
    assert model.cautions(dataset) == []
    (found,) = model.cautions(dataset.subset(np.arange(28)))
    assert (found.check, found.value, found.threshold[:4]) == ("identification", 28, "> 28")
    centred = MatrixFactorization(3, mu_scale=0)
    assert centred.cautions(dataset.subset(np.arange(28))) == []
    (found,) = centred.cautions(dataset.subset(np.arange(27)))
    assert found.threshold == "> 27 (K (n_user + n_item - K))"


def test_labels_equal_to_a_kind_of_units_are_refused(tmp_path):
    labelled = {**RATED, "embeddings": [{"name": "truncated_svd", "label": "user"}]}
    with pytest.raises(ConfigError, match=r"embeddings\.0\.label: 'user' is a dim of the data"):
        ll.run(labelled, out=tmp_path / "rated", progress=False)


def test_runs_of_ratings_are_compared_by_kinds_and_points(tmp_path):
    plain = {**RATED, "embeddings": []}
    part = ll.run(plain, out=tmp_path / "part", progress=False)
    whole = [ll.run({**plain, "seed": seed, "held_out": 0.0}, out=tmp_path / f"whole-{seed}", progress=False) for seed in (0, 1)]
    found = compare_runs([part.path, *(run.path for run in whole)])
    assert set(found.positions["units"]) == {"user", "item"}
    assert set(found.to_dataframe()["units"]) == {"11 users, 20 items"}
    assert any("different data: shapes" in note for note in found.notes)  # some cells were held out
    assert [len(table) for table in found.loo] == [2]


def test_embeddings_of_an_interrupted_run_can_be_loaded(tmp_path, monkeypatch):
    """The kind of units is read from the file itself, since there is no posterior yet."""

    def stopped(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("latentlab.study.stages.fit", stopped)
    graph = config(
        "graph",
        dataset={"name": "karate", "standardize": False},
        model={"name": "random_dot_product", "n_latent": 2},
        embeddings=[{"name": "adjacency_spectral"}],
    )
    table = config("table", dataset={"name": "wine"}, model={"name": "ppca", "n_latent": 2}, embeddings=[{"name": "pca"}])
    for given, kind in ((graph, "node"), (table, "unit")):
        with pytest.raises(KeyboardInterrupt):
            ll.run(given, out=tmp_path / kind, progress=False)
        assert list(read(tmp_path / kind).embeddings_by_kind) == [kind]
        assert read(tmp_path / kind).embeddings.sizes[kind] > 0


def test_a_comparison_of_items_only_is_noted(tmp_path):
    """Three users are too few to be compared; the only part is that of the second kind of units."""
    names = [f"i{j}" for j in range(8)]
    rows = [f"u{i},{name},{(3 * i + j) % 5 + j}" for i in range(3) for j, name in enumerate(names)]
    (tmp_path / "few.csv").write_text("\n".join(["user,item,rating", *rows]))
    dataset = {"name": "ratings", "path": str(tmp_path / "few.csv"), "standardize": False}
    given = {**RATED, "dataset": dataset, "model": {"name": "matrix_factorization", "n_latent": 1}, "held_out": 0.0}
    given["embeddings"] = [{"name": "truncated_svd", "n_latent": 1}]
    run = ll.run(given, out=tmp_path / "run", progress=False)
    assert list(read(run.path).comparison_by_kind) == ["item"]
    page = (run.path / "report.html").read_text(encoding="utf-8")
    assert "users are not compared: there are 3, and 4 are needed" in page
    assert "Units with the largest disagreement (items)" in page


class WithCovariate(MatrixFactorization):
    """A rating depends on its year, too."""

    name = "with_covariate"

    def model(self, rating, year, user, item, n_user, n_item, mask=None):
        super().model(rating - 0.1 * year, user, item, n_user, n_item)

    def check(self, dataset):
        pass


def test_prediction_with_covariates_is_refused(ratings, rng):
    """The year of a new cell is unknown, and the years in the fit belong to other cells."""
    dataset = replace(
        ratings, arrays={**ratings.arrays, "year": rng.normal(size=ratings.n_points)}, dims={**ratings.dims, "year": ("cell",)}
    )
    fit = ll.fit(WithCovariate(1), dataset, ll.MAP(n_restarts=1), seed=0, progress=False)
    with pytest.raises(ModelError, match="predict: 'with_covariate' requires 'year' of each cell, which is unknown for new ones"):
        fit.predict(user=[dataset.units["user"][0]], item=[dataset.units["item"][0]])


def test_results_include_coordinates_of_points(ratings):
    when = np.arange(1900, 1900 + ratings.n_points)
    fit = ll.fit(MatrixFactorization(1), replace(ratings, coords={"when": when}), ll.MAP(n_restarts=1), seed=0, progress=False)
    found = fit.data["observed_data"]["rating"].coords
    assert found["when"].dims == ("cell",)
    assert found["when"].values.tolist() == when.tolist()
    assert found["user"].dims == ("cell",)


def test_fits_with_different_indices_are_not_compared(fitted):
    fit, _ = fitted
    other = fit.data.copy()
    renamed = other["observed_data"].to_dataset().rename({"user": "person"})
    other["observed_data"] = xr.DataTree(renamed)
    other.attrs["index"] = json.dumps({"person": "person", "item": "item"})
    for a, b in ((fit.data, other), (other, fit.data)):
        assert "cells with the indices" in data_difference(a, b)
    assert data_difference(fit.data, fit.data) == ""


@pytest.mark.parametrize(("n", "ok"), [(2, True), (3, False)])
def test_matrix_embeddings_must_return_a_pair(n, ok, monkeypatch):
    def halves(matrix, n_latent):
        return [np.arange(2.0 * size).reshape(size, 2) for size in (*matrix.shape, 4)[:n]]

    monkeypatch.setattr("latentlab.registry.EMBEDDINGS.load", lambda _: halves)
    if ok:
        assert ll.embed("truncated_svd", grunfeld()).kinds == ("user", "item")
    else:
        with pytest.raises(InferenceError, match="must return a pair of arrays, of rows and of columns; got 3 arrays"):
            ll.embed("truncated_svd", grunfeld())


class Factors(ll.LatentModel):
    """Factor analysis whose latent dim has another name."""

    name, position, symmetry, methods = "factors", ll.Position("z"), Orthogonal("factor"), ("svi",)
    dims = {"W": ("feature", "factor"), "z": ("unit", "factor")}

    def model(self, x):
        W = pyro.sample("W", dist.Normal(torch.zeros(x.shape[1], 2), 1.0).to_event(2))
        with pyro.plate("unit", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ W.T, 0.5).to_event(1), obs=x)


def test_the_latent_dim_can_have_another_name():
    fit = ll.fit(Factors(), ll.load_dataset("iris"), ll.SVI(n_steps=300, n_draws=400), progress=False)
    assert fit.latents().dims == ("chain", "draw", "unit", "factor")
    assert set(compared(fit, ll.embed("pca", fit.dataset)).verdicts["alignment"]) == {"orthogonal", "similarity"}
