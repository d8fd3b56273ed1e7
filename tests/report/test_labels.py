"""Tests of the page for labels: numbers against direct computations, and missing parts."""

import itertools
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from helpers import captions, items, table, words
from scipy.stats import chi2

from latentlab.report import co_assignment, components, parts, scores
from latentlab.report.components import location
from latentlab.report.contingency import items as contingency_tables
from latentlab.report.inference import modes
from latentlab.report.inference import section as inference_section
from latentlab.report.labels import plane
from latentlab.report.linked_panels import columns, label_panels
from latentlab.report.parts import Parts, opacity
from latentlab.report.rows import matched
from latentlab.report.source import Source
from latentlab.store.read import Run
from latentlab.study.run import run

CLUSTERINGS = {"kmeans, seed 1", "distances, seed 1 (mapped)", "agglomerative"}
"""Rows with labels, of the first seeds; the correspondence with the mixture maps distances to labels."""


def draws(found: Run) -> np.ndarray:
    z = found.posterior["latents"]["z"].values
    return z.reshape(-1, z.shape[-1])


def rand(a: np.ndarray, b: np.ndarray) -> float:
    """Adjusted Rand index by pairs; 1 if both partitions are trivial, which gives 0 / 0."""
    pairs = np.array(list(itertools.combinations(range(len(a)), 2)))
    x, y = (v[pairs[:, 0]] == v[pairs[:, 1]] for v in (a, b))
    chance = x.sum() * y.sum() / len(pairs)
    most = (x.sum() + y.sum()) / 2
    return 1.0 if most == chance else ((x & y).sum() - chance) / (most - chance)


def best_match(a: np.ndarray, b: np.ndarray, n: int) -> int:
    """Largest number of agreeing units over all one-to-one matchings of clusters."""
    return max(int((a == np.array(p)[b]).sum()) for p in itertools.permutations(range(n)))


# -- the point estimate and its probabilities


def test_label_probabilities_are_shares_of_draws_and_sum_to_1(mixture: Run):
    source, z = Source(mixture), draws(mixture)
    assert np.allclose(source.probabilities.sum(axis=1), 1, rtol=0, atol=1e-12)
    for unit, k in itertools.product((0, 7, 30), range(3)):
        assert source.probabilities[unit, k] == pytest.approx(np.mean(z[:, unit] == k), abs=1e-12)
    own = mixture.comparison["label_probability"].values
    assert np.allclose(source.probabilities, own, rtol=0, atol=1e-12)


def test_the_estimate_matches_the_comparison_with_aligned_labels(mixture: Run, answers: Run):
    source = Source(mixture)
    codes = mixture.comparison["point_estimate"].values
    assert len(set(codes.tolist())) == 3
    assert rand(source.estimate, codes) == pytest.approx(1, abs=1e-12)
    assert source.certainty.sum() == pytest.approx(
        max(sum(source.probabilities[i, p[c]] for i, c in enumerate(codes)) for p in itertools.permutations(range(3))), rel=1e-12
    )
    alone = Source(answers)
    together = (draws(answers)[:, :, None] == draws(answers)[:, None]).mean(axis=0)

    def loss(y: np.ndarray) -> float:
        return float(np.abs((y[:, None] == y[None]) - together).sum())

    assert loss(alone.estimate) <= min(loss(y) for y in draws(answers)) + 1e-9, "without a comparison it is found here"


def test_label_matching_is_one_to_one_and_optimal():
    rng = np.random.default_rng(5)
    for n_clusters in (2, 3, 4, 5):
        codes = np.concatenate([np.arange(n_clusters), rng.integers(0, n_clusters, 30)])
        p = rng.dirichlet(np.ones(4), len(codes))
        names = matched(codes, p)
        to = {c: set(names[codes == c].tolist()) for c in range(n_clusters)}
        assert all(len(v) == 1 for v in to.values())
        used = [v.pop() for v in to.values()]
        assert len(set(used)) == n_clusters
        assert sum(name >= 4 for name in used) == max(0, n_clusters - 4)
        inside = np.hstack([p, np.zeros((len(p), n_clusters))])
        total = inside[np.arange(len(p)), names].sum()
        slots = range(max(4, n_clusters))
        every = [inside[np.arange(len(p)), np.array(q)[codes]].sum() for q in itertools.permutations(slots, n_clusters)]
        assert total == pytest.approx(max(every), rel=1e-12)


# -- tables


def test_sizes_and_weights_match_the_draws(mixture: Run):
    z, rows = draws(mixture), table(mixture, "components")
    weights = mixture.posterior["latents"]["weights"].values.reshape(-1, 3)
    assert [row["component"] for row in rows] == [0, 1, 2]
    for row in rows:
        k = row["component"]
        size = (z == k).sum(axis=1)
        assert row["units, mean"] == pytest.approx(size.mean(), rel=1e-12)
        assert (row["units, q05"], row["units, q95"]) == pytest.approx(tuple(np.quantile(size, (0.05, 0.95))))
        assert row["units in the point estimate"] == (Source(mixture).estimate == k).sum()
        assert row["certain units"] == ((z == k).mean(axis=0) >= 0.95).sum()
        assert row["weight, mean"] == pytest.approx(weights[:, k].mean(), rel=1e-12)
        assert row["weight, q95"] == pytest.approx(np.quantile(weights[:, k], 0.95), rel=1e-12)


def test_component_profiles_are_in_data_units(mixture: Run):
    mu = mixture.posterior["latents"]["mu"].values.reshape(-1, 3, 3)
    own = mu * mixture.params["transform.scale"] + mixture.params["transform.loc"]
    rows = table(mixture, "profiles")
    assert len(rows) == 9
    for row in rows:
        values = own[:, row["component"], int(row["feature"])]
        assert row["mean"] == pytest.approx(values.mean(), rel=1e-10)
        assert row["q05"] == pytest.approx(np.quantile(values, 0.05), rel=1e-10)


def test_the_two_most_probable_labels_of_each_unit_are_listed(mixture: Run):
    rows, p = table(mixture, "positions"), Source(mixture).probabilities
    assert [row["unit"] for row in rows] == Source(mixture).units
    for row, own in zip(rows, p, strict=True):
        first, second = np.sort(own)[::-1][:2]
        assert (row["probability"], row["second probability"]) == pytest.approx((first, second), abs=1e-12)
        assert own[row["most probable component"]] == first
        assert "mean 1" not in row


def test_occupied_components_are_counted(mixture: Run):
    values, share = parts.occupied(Source(mixture))
    counts = np.array([len(set(y)) for y in draws(mixture).tolist()])
    assert values.tolist() == sorted(set(counts.tolist()))
    assert share.tolist() == pytest.approx([np.mean(counts == v) for v in values])
    assert share.sum() == pytest.approx(1)


def test_known_labels_are_cross_tabulated(mixture: Run):
    source, rows = Source(mixture), table(mixture, "known-labels")
    known = mixture_labels(mixture)
    for row in rows:
        for name in ("0", "1", "2"):
            assert row[name] == ((source.estimate == row["component"]) & (known == name)).sum()
    assert sum(v for row in rows for k, v in row.items() if k != "component") == len(known)


def mixture_labels(found: Run) -> np.ndarray:
    raw = Source(found).raw
    assert raw is not None
    assert raw.labels is not None
    return raw.labels.astype(str)


def test_clusterings_are_compared_with_the_estimate(mixture: Run):
    source = Source(mixture)
    rows = {row["embedding"]: row for row in table(mixture, "matched")}
    assert set(rows) == CLUSTERINGS, "the first seed of each clustering, and no other embedding"
    for row in source.judged_rows:
        y = row.labels
        assert rows[row.title]["clusters"] == len(set(y.tolist()))
        assert rows[row.title]["adjusted Rand"] == pytest.approx(rand(y, source.estimate), abs=1e-12)
    y = next(row.labels for row in source.judged_rows if row.title == "kmeans, seed 1")
    assert rows["kmeans, seed 1"]["units that differ"] >= len(y) - best_match(source.estimate, y, 3)
    for one, row in zip(contingency_tables(source)[1:], source.judged_rows, strict=True):
        record = one.record()["rows"]
        assert sum(v for r in record for key, v in r.items() if key != "component") == len(source.units)
        for r in record:
            for c in np.unique(row.labels).tolist():
                assert r[f"cluster {c}"] == ((source.estimate == r["component"]) & (row.labels == c)).sum()


# -- drawings


def test_the_map_shows_the_first_two_principal_components(mixture: Run):
    source = Source(mixture)
    at, centre, axes, names = plane(source)
    x = source.observed.values
    filled = np.where(np.isnan(x), np.nanmean(x, axis=0), x)
    assert np.isnan(x).any()
    assert np.allclose(at, (filled - centre) @ axes.T, atol=1e-12)
    assert np.allclose(axes @ axes.T, np.eye(2), atol=1e-12)
    values = np.linalg.eigvalsh(np.cov(filled, rowvar=False))[::-1]
    assert at.var(axis=0, ddof=1).tolist() == pytest.approx(values[:2].tolist(), rel=1e-10)
    assert f"{values[0] / values.sum():.0%}" in names[0]


def test_ellipses_contain_their_nominal_share(mixture: Run):
    """80% of projected draws of a component lie inside, within 5 standard errors (one false alarm in a million)."""
    source = Source(mixture)
    means, covariances = components.gaussians(source)
    tree = source.tree["latents"]
    own = {name: tree[name].values.reshape(-1, *tree[name].shape[2:]) for name in ("mu", "sigma", "corr")}
    for k in range(3):
        pairs = zip(own["sigma"][:, k], own["corr"][:, k], strict=True)
        expected = np.mean([np.diag(s) @ c @ c.T @ np.diag(s) for s, c in pairs], axis=0)
        assert np.allclose(covariances[k], expected, rtol=1e-10, atol=1e-14)
        assert np.allclose(means[k], own["mu"][:, k].mean(axis=0), rtol=1e-12)
    axes = plane(source)[2]
    flat = axes @ covariances[0] @ axes.T
    rng = np.random.default_rng(0)
    z = rng.multivariate_normal(np.zeros(2), flat, 20_000)
    inside = np.mean(np.einsum("ni,ij,nj->n", z, np.linalg.inv(flat), z) <= chi2.ppf(components.LEVEL, 2))
    assert abs(inside - 0.8) < 5 * np.sqrt(0.16 / 20_000)


def test_tied_and_spherical_covariances_are_supported(tmp_path):
    for covariance in ("spherical", "tied"):
        config = {
            "name": covariance,
            "dataset": {"name": "gaussian_mixture", "n_units": 30},
            "model": {"name": "gaussian_mixture", "n_components": 2, "covariance": covariance},
            "inference": {"name": "exact", "n_draws": 20},
        }
        source = Source(run(config, out=tmp_path / covariance, progress=False))
        _, found = components.gaussians(source)
        assert found.shape == (2, 2, 2)
        sigma = source.tree["posterior"]["sigma"].values[0, 0]
        if covariance == "spherical":
            order = np.sort(source.tree["latents"]["sigma"].values[0, 0] ** 2)
            assert np.allclose(np.sort(found[:, 0, 0]), order, rtol=1e-10)
            assert np.allclose(found[:, 0, 1], 0)
        else:
            assert np.allclose(np.diagonal(found[0]), sigma**2, rtol=1e-10)
            assert np.allclose(found[0], found[1])


def test_opacity_shows_certainty():
    assert opacity(np.array([1.0]))[0] == pytest.approx(0.9)
    assert opacity(np.array([0.1, 0.5])).tolist() == [parts.FAINT] * 2
    assert np.all(np.diff(opacity(np.linspace(0.5, 1, 9))) > 0)


def test_co_assignment_units_are_ordered_by_cluster(mixture: Run):
    source = Source(mixture)
    order = co_assignment.ordered(source)
    assert sorted(order.tolist()) == list(range(len(source.units)))
    keys = [(source.estimate[i], -source.certainty[i]) for i in order]
    assert keys == sorted(keys)
    error = re.search(r"standard error is ([\d.]+) on average and ([\d.]+) at most", captions(mixture)["co-assignment"])
    assert error, "the drawing says how precise it is"
    own = mixture.comparison["co_assignment_se"].values
    off = ~np.eye(len(own), dtype=bool)
    assert float(error.group(1)) == pytest.approx(own[off].mean(), rel=0.06)
    assert float(error.group(2)) == pytest.approx(own[off].max(), rel=0.06)


def test_many_units_are_thinned_and_noted(mixture: Run, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(co_assignment, "MOST_PAIRED", 20)
    source = Source(mixture)
    assert len(co_assignment.ordered(source)) == 20
    assert set(source.estimate[co_assignment.ordered(source)].tolist()) == set(source.estimate.tolist())
    assert f"20 of {len(source.units)} units are shown" in co_assignment.pair_figure(source, Parts(source)).caption


def test_many_features_are_shown_as_a_heat_map_of_the_most_different(mixture: Run, monkeypatch: pytest.MonkeyPatch):
    source = Source(mixture)
    monkeypatch.setattr(components, "MOST_INTERVALS", 3)
    monkeypatch.setattr(components, "MOST_ROWS", 2)
    figure, rows = components.profiles(source, Parts(source))
    assert "the 2 of 3 features with the largest differences" in figure.caption
    assert figure.alt.startswith("Heat map")
    mean = location(source)[1].mean(axis=0)
    told, _ = components._comparable(source, "mu", location(source)[1])
    spread = np.ptp(told.mean(axis=0), axis=0)
    assert {row["feature"] for row in rows.record()["rows"]} == {source.features[i] for i in np.argsort(-spread)[:2]}
    assert mean.shape == (3, 3)


# -- linked panels


def test_panels_show_the_map_coloured_by_each_clustering(mixture: Run):
    source = Source(mixture)
    data = label_panels(source)
    panel = {one["title"]: one for one in data["panels"]}
    first = ["kmeans, seed 1", "distances, seed 1", "distances, seed 1 (mapped)", "agglomerative", "pca"]
    assert list(panel) == ["point estimate", "known labels", *first]
    for title in ("known labels", *CLUSTERINGS):
        assert panel[title]["aligned"] == panel["point estimate"]["aligned"]
    own = next(row.values for row in source.first_rows if row.title == "pca")
    assert panel["pca"]["aligned"] == columns(own), "its own coordinates"
    assert panel["pca"]["aligned"] != panel["point estimate"]["aligned"]
    assert panel["pca"]["codes"] == data["classes"]["codes"] == panel["point estimate"]["codes"]
    assert panel["pca"]["disagreement"] is None, "only clusterings have a disagreement"
    assert panel["kmeans, seed 1"]["disagreement"] is not None
    assert "labels:" not in panel["kmeans, seed 1"]["note"]
    for one in panel.values():
        assert max(one["codes"]) < len(data["classes"]["colors"])
    for title in ("kmeans, seed 1", "agglomerative"):
        y = next(row.labels for row in source.judged_rows if row.title == title)
        assert rand(np.array(panel[title]["codes"]), y) == pytest.approx(1), "one colour a cluster"
    assert len(set(panel["agglomerative"]["codes"])) == 5
    assert sum(name.startswith("unmatched cluster") for name in data["classes"]["names"]) == 2
    agree = np.mean(np.array(panel["kmeans, seed 1"]["codes"]) == np.array(data["classes"]["codes"]))
    y = next(row.labels for row in source.judged_rows if row.title == "kmeans, seed 1")
    assert agree <= best_match(source.estimate, y, 3) / len(y) + 1e-12


# -- scores, units, summary


def test_other_embeddings_have_scores_without_verdict(mixture: Run):
    rows = table(mixture, "verdicts-labels")
    mapped = ["distances, seed 1 (mapped)", "distances, seed 2 (mapped)"]
    assert [row["embedding"] for row in rows] == ["kmeans, seed 1", "kmeans, seed 2", *mapped, "agglomerative"]
    assert all("scale" not in row for row in rows)
    of = mixture.comparison.sel(alignment="labels")
    assert [row["delta"] for row in rows] == pytest.approx(of["delta"].values[of["verdict"].values != ""], rel=1e-12)
    assert {row["embedding"] for row in table(mixture, "coverage")} == {row["embedding"] for row in rows}
    said = words(mixture)
    assert "distances and pca are not clusterings: they have scores but no verdict" in said
    told = [row["embedding"] for row in table(mixture, "verdicts")]
    assert told == ["kmeans, 2 seeds", "distances (mapped), 2 seeds", "agglomerative"]
    assert list(table(mixture, "verdicts")[0]) == ["embedding", "verdict", "delta", "remark"]  # its checks failed
    scored = {row["embedding"] for row in table(mixture, "scores") if row["metric"] == "cka"}
    assert scored == {"kmeans", "distances", "agglomerative", "pca"}
    partitions = {
        row["embedding"] for row in table(mixture, "scores") if row["metric"] == "adjusted_rand" and row["map"] == "raw"
    }
    assert partitions == {
        "kmeans",
        "agglomerative",
    }


def test_unit_tables_contain_clusterings_only(mixture: Run):
    worst = table(mixture, "worst-units")[0]
    assert set(worst) >= CLUSTERINGS
    assert not {"pca", "distances, seed 1"} & set(worst)
    assert {row["embedding"] for row in table(mixture, "uncertainty")} == CLUSTERINGS
    first = table(mixture, "units-by-embedding")[0]
    own = mixture.comparison["mahalanobis"].values[0]
    assert first["disagreement"] == pytest.approx(own.max(), rel=1e-12)
    assert all(value is not None for row in table(mixture, "worst-units") for value in row.values())


def test_scores_by_labels_use_partition_metrics(mixture: Run):
    known = np.unique(mixture_labels(mixture), return_inverse=True)[1]
    source = Source(mixture)
    rows = table(mixture, "labels")
    others = {"kmeans, seed 2", "distances, seed 2 (mapped)"}
    assert {row["embedding"] for row in rows} == CLUSTERINGS | others
    for row in rows:
        if "Rand" in row["score"]:
            assert row["point estimate"] == pytest.approx(rand(source.estimate, known), abs=1e-12)
    kmeans = next(row.labels for row in source.judged_rows if row.title == "kmeans, seed 1")
    assert rows[0]["value"] == pytest.approx(rand(kmeans, known), abs=1e-12)


def test_the_text_uses_terms_for_labels(mixture: Run, answers: Run):
    for found in (mixture, answers):
        said = words(found) + " ".join(captions(found).values())
        assert "latent axis" not in said
        assert "aligned to the posterior mean" not in said
        assert "posterior mean of each unit" not in said
        assert "symmetry group Permutation" in said
    terms = {row["term"] for row in table(mixture, "terms")}
    assert {"Binder loss", "Lost companions"} <= terms
    assert "Hotelling" not in words(mixture)
    assert "Only the labels have a posterior distribution" in words(answers)
    assert "positions" not in captions(mixture)
    assert {"map", "profiles", "co-assignment"} <= set(captions(mixture))


def test_the_page_of_a_point_estimate_without_labels_or_embeddings(answers: Run):
    assert "known-labels" not in {item["name"] for item in items(answers, "table")}
    row = table(answers, "components")[0]
    assert "weight, mean" in row
    assert "weight, q05" not in row
    assert all("q05" not in row for row in table(answers, "profiles"))
    assert "second strip" not in captions(answers)["co-assignment"]
    assert "No embedding was compared" in words(answers)


def test_a_delta_of_0_is_drawn_at_the_marked_end_of_the_scale(mixture: Run):
    other = replace(mixture)
    other.__dict__["comparison"] = mixture.comparison.copy(deep=True)
    other.comparison["delta"].values[...] = 0.5
    assert "≤ 0.001" not in scores._deltas(Source(other)).svg
    other.comparison["delta"].values[0, 0] = 0.0
    assert "≤ 0.001" in scores._deltas(Source(other)).svg


# -- modes


def test_the_page_handles_tiny_weights(mixture: Run):
    tree = Source(mixture).tree.copy(deep=True)
    tree["posterior"]["weights"].values[1] = np.random.default_rng(0).dirichlet([1, 1, 1], 60)[: len(tree["posterior"].draw)] * [
        1,
        1,
        1e-160,
    ]
    tiny = Source(mixture)
    object.__setattr__(tiny, "run", replace_posterior(mixture, tree))
    said = [line for item in inference_section(tiny).items for line in getattr(item, "lines", ())]
    assert any("Trace and rank plots are not available" in line for line in said)


def test_chains_in_different_modes_are_reported(mixture: Run):
    """One chain's means are moved far away: the page says that its chains sit in two modes, and which."""
    source = Source(mixture)
    tree = source.tree.copy(deep=True)
    tree["posterior"]["mu"].values[1] += 50.0
    moved = Source(mixture)
    object.__setattr__(moved, "run", replace_posterior(mixture, tree))
    table_of = modes(moved)
    assert table_of["members"].tolist() in (["0", "1"], ["1", "0"])
    found = inference_section(moved)
    cautions = [line for item in found.items if getattr(item, "kind", "") == "caution" for line in item.lines]
    assert any("2 chains are in 2 different modes" in line for line in cautions)
    rows = next(item.record()["rows"] for item in found.items if getattr(item, "name", "") == "modes")
    assert "mu" in rows[1]["difference from the first mode"]
    assert [row["share"] for row in rows] == [0.5, 0.5]


def replace_posterior(found: Run, tree: Any) -> Run:
    other = replace(found)
    other.__dict__["posterior"] = tree
    return other


def test_restarts_are_listed_by_mode(answers: Run):
    rows = table(answers, "modes")
    sites = answers.posterior["restarts"].to_dataset()
    assert sum(row["number"] for row in rows) == sites["weights"].shape[0]
    assert sum(row["share"] for row in rows) == pytest.approx(1)


# -- none of the embeddings is a clustering; many labels


def test_the_page_without_clusterings(tmp_path):
    config = {
        "name": "geyser",
        "dataset": {"name": "geyser", "n_units": 40},
        "model": {"name": "dp_mixture", "n_components": 6},
        "inference": {"name": "svi", "n_steps": 60, "n_draws": 60},
        "embeddings": [{"name": "pca", "n_latent": 1}],
        "compare": {"n_draws": 8, "n_pairs": 4, "n_permutations": 2},
    }
    found = run(config, out=tmp_path / "run", progress=False)
    said = words(found)
    assert "pca is not a clustering: it has scores but no verdict" in said
    assert "No clustering was compared" in said
    assert "dp_mixture with 6 components" in said
    assert not {"deltas", "disagreement"} & set(captions(found))
    values, share = parts.occupied(Source(found))
    if len(values) > 1:
        rows = table(found, "occupied")
        assert [row["probability"] for row in rows] == pytest.approx(share.tolist())
