"""Tests of the comparison of a fit with embeddings: tables, rows and verdicts of planted embeddings."""

import sys

import numpy as np
import pandas as pd
import pytest
from patching import recorded_bars

from latentlab.compare import neighbors
from latentlab.comparison import scores as module
from latentlab.comparison.compare import compare
from latentlab.comparison.result import SCORE_COLUMNS, VERDICT_COLUMNS, Comparison
from latentlab.comparison.scores import subset_notes
from latentlab.correspondences.maps import shrunk_axes
from latentlab.data.dataset import Dataset
from latentlab.data.memory import thinned
from latentlab.embeddings.embed import embed
from latentlab.embeddings.embedding import Embedding
from latentlab.errors import ConfigError, DataError
from latentlab.fit import fit
from latentlab.inference.exact import Exact
from latentlab.inference.svi import SVI
from latentlab.models.ppca import PPCA
from latentlab.registry import METRICS

module_of_compare = sys.modules["latentlab.comparison.compare"]

COLUMNS = (
    "metric,embedding,units,seed,map,mean,sd,q05,q50,q95,ceiling_mean,ceiling_q05,ceiling_q95,floor_mean,floor_q05,floor_q95,direction",
    "embedding,units,seed,map,alignment,verdict,delta,p_low,p_guard,component,scale,coverage_50,coverage_80,coverage_95,"
    "draw_coverage_50,draw_coverage_80,draw_coverage_95,ess,worst_units",
)


@pytest.fixture(scope="module")
def result(wine):
    return fit(PPCA(2), wine, SVI(guide="full_rank", n_steps=1500, n_draws=3000), seed=0, progress=False)


@pytest.fixture(scope="module")
def planted(result, wine):
    """Embeddings whose verdicts are known: the posterior mean, shuffled, bent, with outliers, in other units' order."""
    rng = np.random.default_rng(0)
    mean = result.latents().values.mean((0, 1))
    bent = mean + 0.6 * np.column_stack([np.zeros(len(mean)), mean[:, 0] ** 2 - (mean[:, 0] ** 2).mean()])
    odd = mean.copy()
    odd[[3, 50, 90, 120, 170]] += 6 * mean.std()
    order = rng.permutation(len(mean))
    return [
        embed("pca", wine, n_latent=2),
        Embedding("mean", mean[order], units=wine.units[order]),
        Embedding("draw", result.latents().values[0, -1], units=wine.units),
        Embedding("shuffled", rng.permutation(mean), units=wine.units),
        Embedding("bent", bent, units=wine.units),
        Embedding("outliers", odd, units=wine.units),
        Embedding("constant", np.ones_like(mean), units=wine.units),
        Embedding("two seeds", np.stack([mean, -mean[:, ::-1]]), units=wine.units, seeds=(5, 7)),
    ]


@pytest.fixture(scope="module")
def comparison(result, planted):
    return compare(result, planted, n_draws=60, n_pairs=40, n_permutations=10, progress=False)


def verdict(comparison, name, way="orthogonal", carried="raw"):
    table = comparison.verdicts
    return table[(table.embedding == name) & (table.alignment == way) & (table["map"] == carried)].iloc[0]


def test_tables_have_the_documented_columns(comparison):
    assert ",".join(SCORE_COLUMNS) == COLUMNS[0]
    assert ",".join(VERDICT_COLUMNS) == COLUMNS[1]
    assert list(comparison.to_dataframe().columns) == list(SCORE_COLUMNS)
    assert list(comparison.verdicts.columns) == list(VERDICT_COLUMNS)
    assert comparison.to_dataframe().notna().all().all()
    assert list(comparison.verdicts.query("embedding == 'two seeds' and alignment == 'orthogonal'").seed) == ["5", "7"]


@pytest.mark.parametrize(
    ("name", "way", "carried", "expected"),
    [
        ("pca", "orthogonal", "raw", "distinct"),
        ("pca", "similarity", "raw", "summary-like"),
        ("pca", "orthogonal", "mapped", "summary-like"),
        ("mean", "orthogonal", "raw", "summary-like"),
        ("draw", "orthogonal", "raw", "draw-like"),
        ("shuffled", "orthogonal", "raw", "distinct"),
        ("shuffled", "similarity", "raw", "distinct"),
        ("bent", "similarity", "raw", "distinct"),
        ("outliers", "orthogonal", "raw", "distinct"),
        ("constant", "similarity", "raw", "distinct"),
        ("two seeds", "orthogonal", "raw", "summary-like"),
    ],
)
def test_verdicts_of_planted_embeddings(comparison, name, way, carried, expected):
    assert verdict(comparison, name, way, carried).verdict == expected


@pytest.mark.parametrize("way", ["orthogonal", "similarity"])
def test_p_values_are_adjusted_for_the_number_of_embeddings(result, planted, comparison, way):
    """Holm's smallest p-value is n times the unadjusted one."""
    (shuffled,) = (one for one in planted if one.label == "shuffled")
    alone = compare(result, [shuffled], alignments=(way,), metrics=("cka",), n_draws=20, progress=False).verdicts.iloc[0]
    judged = comparison.verdicts[comparison.verdicts.alignment == way]
    assert verdict(comparison, "shuffled", way).p_guard == judged.p_guard.min()
    assert judged.p_guard.min() == pytest.approx(len(judged) * alone.p_guard)


def test_tables_summarise_the_arrays(comparison):
    data = comparison.to_dataset()
    for name, row in comparison.to_dataframe().set_index(["metric", "embedding", "seed", "map"]).iterrows():
        at = (data["name"] == name[1]) & (data["seed"] == name[2]) & (data["map"] == name[3])
        one = data.sel(metric=name[0]).isel(embedding=int(np.flatnonzero(at)[0]))
        scores, ceiling, floor = (one[part].values.ravel() for part in ("scores", "ceiling", "floor"))
        expected = [scores.mean(), scores.std(ddof=1), *np.quantile(scores, (0.05, 0.5, 0.95))]
        for part in (ceiling, floor):
            expected += [part.mean(), *np.quantile(part, (0.05, 0.95))]
        assert row.drop(["direction", "units"]).tolist() == pytest.approx(expected), name
    labels = data["embedding"].values
    judged = comparison.verdicts[comparison.verdicts.alignment == "orthogonal"]
    levels = ["coverage_50", "coverage_80", "coverage_95"]
    np.testing.assert_array_equal(data["coverage"].values, judged[levels].values)
    np.testing.assert_array_equal(data["draw_coverage"].values, judged[[f"draw_{level}" for level in levels]].values)
    assert len(np.unique(data["coverage"].values, axis=0)) > 3
    turned = [label for label in labels if label.startswith("two seeds")]  # the mean, and the mean with its axes exchanged
    one, two = (comparison.units.sel(embedding=label) for label in turned)
    for name in ("mahalanobis", "distance", "lost_neighbors"):
        np.testing.assert_allclose(one[name].values, two[name].values, rtol=1e-6, atol=1e-9)


def test_the_effect_size_is_0_at_the_mean_and_1_at_a_draw(comparison):
    assert verdict(comparison, "mean").delta < 0.1
    assert 0.8 < verdict(comparison, "draw").delta < 1.2
    assert verdict(comparison, "pca", carried="mapped").delta < 0.2 < 1.5 < verdict(comparison, "pca").delta


def test_outliers_are_named(comparison):
    assert {"3", "50", "90", "120", "170"} == set(verdict(comparison, "outliers").worst_units.split())
    assert "units" in verdict(comparison, "outliers").component
    worst = comparison.units["mahalanobis"].sel(embedding="outliers").values.argsort()[-5:]
    assert set(worst) == {3, 50, 90, 120, 170}


def test_scores_lie_between_floor_and_best(comparison):
    table = comparison.to_dataframe().query("embedding == 'mean'").set_index("metric")
    for metric, row in table.iterrows():
        sign = 1 if row.direction == "higher" else -1
        assert sign * row["mean"] > sign * row.ceiling_mean, metric  # the mean is closer to draws than draws are to each other
        assert sign * row.ceiling_mean > sign * row.floor_mean, metric
    low = comparison.to_dataframe().query("embedding == 'shuffled'").set_index("metric")
    near = (low["mean"] - low.floor_mean).abs() < 0.35 * (low.ceiling_mean - low.floor_mean).abs()
    assert near.mean() > 0.7


def test_labels_are_scored_with_posterior_and_chance_levels(comparison, wine):
    data = comparison.to_dataset()
    assert float(data["largest_class"]) == pytest.approx(71 / 178)
    assert float(data["downstream_accuracy"].sel(embedding="mean")) > 0.9
    assert float(data["downstream_accuracy"].sel(embedding="shuffled")) < 0.6
    assert data["downstream_accuracy_draws"].values.mean() < float(data["downstream_accuracy_posterior_mean"])
    assert float(data["label_agreement"].sel(embedding="constant")) < 0.9


def test_the_seed_determines_the_comparison(result, planted):
    one, two = (compare(result, planted[:2], n_draws=20, n_pairs=10, n_permutations=5, progress=False) for _ in range(2))
    pd.testing.assert_frame_equal(one.to_dataframe(), two.to_dataframe())
    pd.testing.assert_frame_equal(one.verdicts, two.verdicts)


def test_missing_units_of_a_compared_embedding_are_refused(result, wine):
    lacking = Embedding("mine", np.zeros((177, 2)), units=wine.units[1:])
    with pytest.raises(DataError, match="'mine' has no values for 1 of 178 units: '0'"):
        compare(result, [lacking], progress=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metrics": ("procrustes",)}, "unknown metric 'procrustes'; did you mean"),
        ({"alignments": ("rigid",)}, "unknown alignment 'rigid'"),
        ({"alpha": 1.5}, "`alpha`.*1.5"),
        ({"n_draws": 1}, "`n_draws`"),
        ({"n_neighbors": 0}, "`n_neighbors`"),
        ({"metrics": "cka"}, r"`metrics` must be a list of names, such as \['cka'\]; got 'cka'"),
        ({"alignments": "affine"}, "`alignments` must be a list of names"),
    ],
)
def test_invalid_comparison_options_are_refused(result, planted, options, message):
    with pytest.raises(ConfigError, match=message):
        compare(result, planted[:1], progress=False, **options)


def test_rotation_dependent_metrics_are_used_on_request_only(result, planted, comparison):
    assert "displacement" not in set(comparison.to_dataframe().metric)
    asked = compare(result, planted[:1], metrics=("displacement",), n_draws=4, n_pairs=4, n_permutations=2, progress=False)
    assert set(asked.to_dataframe().metric) == {"displacement"}
    assert any("metric displacement is not invariant under rotation of the positions" in note for note in asked.notes)
    assert not any("is not invariant" in note for note in comparison.notes)


def test_an_alignment_smaller_than_the_symmetry_is_noted(result, planted):
    few = {"n_draws": 4, "n_pairs": 4, "n_permutations": 2, "metrics": ("cka",), "progress": False}
    found = compare(result, planted[1:2], alignments=("fixed", "orthogonal"), **few)
    assert [note for note in found.notes if "is not invariant" in note] == [
        "alignment fixed is not invariant under rotation of the positions, which the model does not identify: its results hold "
        "for the orientation of the aligned draws only"
    ]


@pytest.mark.parametrize("ways", [None, ("orthogonal", "similarity", "affine")])
def test_the_progress_bar_counts_all_steps(result, planted, wine, ways, monkeypatch):
    bars = recorded_bars(monkeypatch, module_of_compare)
    few = {"n_draws": 6, "n_pairs": 2, "n_permutations": 2}
    wide = embed("pca", wine, n_latent=3, label="wide")
    compare(result, (one for one in [planted[0], planted[-1], wide]), alignments=ways, **few)  # a generator will do
    assert [bar.n for bar in bars] == [bar.total for bar in bars] != [0]


def test_slow_metrics_are_used_on_request(result, planted, comparison):
    assert "gromov_wasserstein" not in set(comparison.to_dataframe().metric)
    few = {"n_draws": 4, "n_pairs": 4, "n_permutations": 2, "progress": False}
    asked = compare(result, planted[:1], metrics=("gromov_wasserstein", "cka"), **few).to_dataframe()
    assert set(asked.metric) == {"gromov_wasserstein", "cka"}
    assert (asked["mean"] >= 0).all()


def test_duplicate_embedding_labels_are_refused(result, planted):
    with pytest.raises(ConfigError, match="two compared arrays have the name 'pca'"):
        compare(result, [planted[0], planted[0]], progress=False)


def test_a_label_equal_to_a_mapped_embeddings_label_is_refused(result, wine):
    """PCA is compared raw and mapped, and the second is called `pca (mapped)`."""
    with pytest.raises(ConfigError, match=r"two compared arrays have the name 'pca \(mapped\)'"):
        compare(result, [embed("pca", wine), embed("isomap", wine, label="pca (mapped)")], progress=False)


def test_wider_embeddings_are_aligned_by_an_affine_map(result, wine):
    wide = compare(
        result, [embed("pca", wine, n_latent=5, label="pca-5")], n_draws=10, n_pairs=5, n_permutations=2, progress=False
    )
    raw = wide.verdicts[wide.verdicts["map"] == "raw"]
    assert set(raw.alignment) == {"affine"}
    assert set(raw.verdict) == {"summary-like"}


def test_wide_embeddings_of_a_series_are_mapped_with_contiguous_folds():
    """Smooth columns are independent of the data; with interleaved folds a map could interpolate between neighbours in time.

    The data are fixed: delta is above 6 for 25 of 25 such data sets, and 1.2 with interleaved folds.
    """
    rng = np.random.default_rng(1)
    t = np.arange(160)
    root = np.linalg.cholesky(np.exp(-((t[:, None] - t) ** 2) / (2 * 12.0**2)) + 1e-8 * np.eye(160))
    x = root @ rng.normal(size=(160, 2)) @ rng.normal(size=(2, 6)) + 0.2 * rng.normal(size=(160, 6))
    series = Dataset({"x": x}, dims={"x": ("unit", "feature")}, coords={"time": t}).standardize()
    fitted = fit(PPCA(2), series, Exact(n_draws=1500), progress=False)
    wide = Embedding("smooth", root @ rng.normal(size=(160, 30)), units=series.units)
    found = compare(fitted, [wide], metrics=("cka",), n_draws=4, n_pairs=4, n_permutations=2, progress=False)
    assert found.verdicts["verdict"].tolist() == ["distinct"]
    assert found.verdicts["delta"].item() > 2.5


def test_few_units_and_one_dimension_can_be_compared(rng):
    x = rng.standard_normal((8, 1)) @ np.ones((1, 4)) + 0.3 * rng.standard_normal((8, 4))
    dataset = Dataset({"x": x}, dims={"x": ("unit", "feature")})
    small = fit(PPCA(1), dataset, Exact(n_draws=400), seed=0)
    found = compare(small, [embed("pca", dataset, n_latent=1)], progress=False)
    assert found.to_dataset().attrs["n_neighbors"] == 3
    mapped = shrunk_axes(embed("pca", dataset, n_latent=1).values, dataset)
    assert np.corrcoef(mapped[:, 0], small.latents().values.mean((0, 1))[:, 0])[0, 1] ** 2 > 0.99


FEW = {"n_draws": 8, "n_pairs": 4, "n_permutations": 2, "progress": False}


def test_subsampling_of_units_is_noted(result, planted):
    assert compare(result, planted[:1], **FEW).notes == ()
    names = ("cka", "rsa", "cka_rbf", "trustworthiness", "neighbor_overlap")
    chosen = [METRICS.load(name) for name in names]
    assert subset_notes(chosen, 10_000) == [
        "trustworthiness: computed on 104 of 10000 units",
        "rsa, cka_rbf: computed on 500 of 10000 units",
    ]
    assert subset_notes(chosen, 500) == []


def test_approximate_neighbours_are_reported_with_their_recall(result, planted, monkeypatch):
    """A search in the first column only finds some of the neighbours."""
    monkeypatch.setattr(neighbors, "_approximate", lambda rows, k: neighbors._nearest(rows[:, :1], rows[:, :1], k))
    exact, rough = (compare(result, planted[:2], neighbor_search=search, **FEW) for search in ("exact", "approximate"))
    assert "neighbor_recall" not in exact.data
    of_rows, of_draws = rough.data["neighbor_recall"], rough.data["neighbor_recall_draws"]
    assert dict(of_rows.sizes) == {"embedding": exact.data.sizes["embedding"]}
    assert of_draws.shape == (5,)
    assert 0 < float(of_rows.min()) <= float(of_rows.max()) < 0.9
    (note,) = rough.notes
    shares = f"{float(of_rows.mean()):.3f} in embeddings, {float(of_draws.mean()):.3f} in draws"
    assert note == f"approximate neighbours: recall {shares} (computed on 178 units)"
    scores = [one.to_dataframe().set_index(["metric", "embedding", "map"])["mean"] for one in (exact, rough)]
    changed = (scores[0] != scores[1]).groupby("metric").any()
    assert changed[changed].index.tolist() == ["neighbor_overlap"]
    assert not np.array_equal(exact.data["lost_neighbors"], rough.data["lost_neighbors"])


def test_unknown_neighbour_searches_are_refused(result, planted):
    with pytest.raises(ConfigError, match=r"compare: `neighbor_search` must be one of exact, approximate; got 'fast'"):
        compare(result, planted[:1], neighbor_search="fast", progress=False)


def test_the_requested_number_of_draws_is_used(result, planted, monkeypatch):
    monkeypatch.setattr(module, "MOST_NUMBERS", 1)
    assert compare(result, planted[:1], **FEW).data.sizes["draw"] == 8


def test_scored_draws_are_spread_over_chains_and_iterations():
    draws = np.arange(3 * 100).reshape(3, 100, 1, 1)
    found = thinned(draws, 15)[..., 0, 0]
    np.testing.assert_array_equal(found, np.array([0, 24, 49, 74, 99]) + np.array([[0], [100], [200]]))


def test_a_comparison_notes_failed_convergence(comparison, result):
    failed = result.diagnostics().query("verdict == 'fail'")["check"].unique()
    assert comparison.data.attrs["failed_checks"] == ", ".join(failed)
    data = comparison.data.copy()
    data.attrs = {**data.attrs, "failed_checks": "R-hat, modes"}
    doubted = Comparison(comparison.scores, comparison.verdicts, {"unit": data})
    expected = (
        "The fit did not converge (failed checks: R-hat, modes): the draws may not represent the posterior, and the verdicts may "
        "be wrong."
    )
    assert doubted.notes[0] == expected
    assert all(sentence.endswith(expected) for sentence in doubted.sentences().values())
    assert "the fit did not converge" in repr(doubted)
    data.attrs["failed_checks"] = ""
    assert "converge" not in repr(doubted) + " ".join(doubted.sentences().values())
    assert not any("converge" in note for note in doubted.notes)
