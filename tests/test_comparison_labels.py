"""Tests of the comparison of a mixture's labels with clusterings and other embeddings."""

import itertools
import sys
from dataclasses import replace

import numpy as np
import pytest
from patching import recorded_bars

from latentlab.compare.clustering import minimum_binder
from latentlab.comparison.choice import SOFT_METRICS, check_spread
from latentlab.comparison.compare import compare
from latentlab.comparison.scores import LABEL_METRICS
from latentlab.data.load import load_dataset
from latentlab.embeddings.embed import embed
from latentlab.embeddings.embedding import Embedding
from latentlab.errors import ConfigError
from latentlab.fit import fit
from latentlab.inference.exact import Exact
from latentlab.inference.nuts import NUTS
from latentlab.models.gaussian_mixture import GaussianMixture
from latentlab.models.ppca import PPCA

module_of_compare = sys.modules["latentlab.comparison.compare"]

WIDE = 6
"""Columns of the clusterings: the partition of least loss may have more clusters than the draws have."""
FEW = {"n_draws": 40, "n_pairs": 30, "n_permutations": 10, "progress": False}


@pytest.fixture(scope="module")
def dataset():
    return load_dataset("gaussian_mixture", n_units=120, separation=3.0)


@pytest.fixture(scope="module")
def result(dataset):
    """Draws of labels at the maximum likelihood estimate; units between the groups change cluster."""
    return fit(GaussianMixture(3, covariance="tied"), dataset, Exact(n_draws=1500), seed=1, progress=False)


@pytest.fixture(scope="module")
def planted_clusterings(result, dataset):
    """Clusterings with known verdicts, with reordered units and other names, and other embeddings."""
    rng = np.random.default_rng(0)
    z = result.latents().values[..., 0]
    draw, centre = z[0, -1].astype(int), minimum_binder(z)
    order = rng.permutation(120)

    def clustering(label, labels):
        return Embedding(label, np.eye(WIDE)[labels], units=dataset.units)

    return [
        embed("kmeans", dataset, n_latent=3),
        embed("kmeans", dataset, n_latent=3, output="distances", label="distances"),
        embed("pca", dataset, n_latent=1),
        clustering("draw", draw),
        Embedding("centre", np.eye(WIDE)[(centre + 1) % WIDE][order], units=dataset.units[order]),
        Embedding("one column", 10.0 * draw[:, None] + 3, units=dataset.units),
        clustering("shuffled", rng.permutation(centre)),
        clustering("one cluster", np.zeros(120, dtype=int)),
        Embedding("two seeds", np.stack([np.eye(WIDE)[centre], np.eye(WIDE)[draw]]), units=dataset.units, seeds=(5, 7)),
    ]


CLUSTERINGS = ["kmeans", "draw", "centre", "one column", "shuffled", "one cluster", "two seeds"]
OTHERS = ["distances", "pca"]


@pytest.fixture(scope="module")
def comparison(result, planted_clusterings):
    return compare(result, planted_clusterings, **FEW)


def of(array, name, carried="raw"):
    """Selects the rows of an embedding, for all its seeds."""
    return array.isel(embedding=np.flatnonzero((array["name"].values == name) & (array["map"].values == carried)))


def test_clusterings_get_verdicts_and_other_embeddings_scores_only(comparison):
    assert set(comparison.verdicts.query("map == 'raw'").embedding) == set(CLUSTERINGS)
    assert set(comparison.verdicts.alignment) == {"labels"}
    assert set(comparison.to_dataframe().embedding) == set(CLUSTERINGS) | set(OTHERS)
    metrics = comparison.to_dataframe().query("map == 'raw'").groupby("embedding").metric.agg(set)
    for name in OTHERS:
        assert metrics[name] == set(SOFT_METRICS)
    for name in CLUSTERINGS:
        assert set(LABEL_METRICS) | set(SOFT_METRICS) <= metrics[name]
    said = comparison.data["sentence"].sel(alignment="labels")
    assert all(set(of(said, name).values) == {""} for name in OTHERS)
    assert all("" not in of(said, name).values for name in CLUSTERINGS)
    words = comparison.sentences()
    assert "pca" not in words
    assert words["draw"].startswith("The clustering is not distinguishable from a posterior draw (p = ")


def test_distances_from_centres_are_mapped_to_the_nearest_cluster(comparison):
    table = comparison.verdicts.set_index("embedding")
    assert set(table.loc["distances", "map"]) == {"mapped"}
    np.testing.assert_array_equal(table.loc["distances", "delta"].values, table.loc["kmeans", "delta"].values)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("draw", "draw-like"), ("one column", "draw-like"), ("centre", "summary-like"), ("shuffled", "distinct")],
)
def test_verdicts_of_planted_clusterings(comparison, name, expected):
    row = comparison.verdicts[comparison.verdicts.embedding == name].iloc[0]
    assert row.verdict == expected
    assert comparison.verdicts[comparison.verdicts.embedding == "one cluster"].iloc[0].verdict == "distinct"


def test_p_values_are_adjusted_for_the_number_of_clusterings(result, planted_clusterings, comparison):
    """Holm's smallest p-value is n times the unadjusted one."""
    (shuffled,) = (one for one in planted_clusterings if one.label == "shuffled")
    alone = compare(result, [shuffled], metrics=("adjusted_rand",), **FEW).verdicts.iloc[0]
    among = comparison.verdicts[comparison.verdicts.embedding == "shuffled"].iloc[0]
    assert among.p_guard == comparison.verdicts.p_guard.min()
    assert among.p_guard == pytest.approx(len(comparison.verdicts) * alone.p_guard)


def test_undefined_values_are_nan_and_absent_from_tables(comparison):
    assert comparison.to_dataframe().notna().all().all()
    data = comparison.data
    for name in CLUSTERINGS + OTHERS:
        number = np.isfinite if name in CLUSTERINGS else np.isnan
        assert number(of(data["scores"], name).sel(metric="adjusted_rand")).all()
        assert np.isfinite(of(data["scores"], name).sel(metric="cka")).all()
        for array in ("mahalanobis", "distance", "lost_neighbors", "coverage", "delta"):
            assert number(of(data[array], name)).all(), (name, array)
    assert np.isfinite(data["spread"]).all()


def test_results_ignore_cluster_names_and_order_of_units(comparison):
    """A draw given as indicators and as one column of other numbers has the same scores and verdict."""
    table = comparison.to_dataframe().set_index(["embedding", "metric"])
    for metric in set(comparison.to_dataframe().metric):
        assert table.loc[("draw", metric), "mean"] == pytest.approx(table.loc[("one column", metric), "mean"]), metric
    both = comparison.verdicts.set_index("embedding")
    assert both.loc["draw", "delta"] == both.loc["one column", "delta"]
    centre, seed = both.loc["centre"], comparison.verdicts.query("embedding == 'two seeds' and seed == '5'").iloc[0]
    assert centre["delta"] == seed["delta"]
    assert (
        0 <= both.loc["centre", "delta"] < 0.1
    )  # both are found by search, from draws in another order: here and there one is better


def test_clustering_scores_lie_between_floor_and_ceiling(comparison):
    table = comparison.to_dataframe().query("metric == 'adjusted_rand'").set_index("embedding")
    assert table.loc["centre", "mean"] > table.loc["centre", "ceiling_mean"] > table.loc["centre", "floor_q95"]
    # a draw agrees with draws as they agree with each other; a shuffled clustering as units that were permuted
    assert table.loc["draw", "ceiling_q05"] < table.loc["draw", "mean"] < table.loc["draw", "ceiling_q95"]
    assert table.loc["shuffled", "mean"] < table.loc["shuffled", "floor_q95"] + 0.05
    assert abs(table.loc["centre", "floor_mean"]) < 0.03  # adjusted for chance
    assert table.loc["one cluster", "mean"] == pytest.approx(0, abs=1e-9)


def test_the_point_estimate_minimises_the_expected_loss(comparison, result):
    data, z = comparison.data, result.latents().values[..., 0]
    np.testing.assert_allclose(data["co_assignment"].values, (z[0, :, :, None] == z[0, :, None, :]).mean(0), atol=1e-12)
    shares = np.stack([(z[0] == k).mean(0) for k in range(3)], 1)
    np.testing.assert_allclose(data["label_probability"].values, shares)
    np.testing.assert_array_equal(data["point_estimate"].values, minimum_binder(z))
    assert set(np.unique(data["n_clusters"].values)) <= {1, 2, 3}
    assert float(data["ball_mass"]) >= 0.95
    # the exact responsibilities agree with the shares of draws: z-tests at 1e-5 over the entries
    p = result.probabilities().values[0, 0]
    off = (shares - p) / np.sqrt(np.maximum(p * (1 - p), 1e-12) / 1500)
    assert np.abs(off[p * (1 - p) > 0.01]).max() < 5.6


def test_true_labels_are_scored_with_the_posterior(comparison, result, dataset):
    data, known = comparison.data, np.unique(dataset.labels, return_inverse=True)[1]
    assert float(data["largest_class"]) == pytest.approx(np.bincount(known).max() / 120)
    for name in LABEL_METRICS:
        found = data[f"label_{name}"]
        assert np.isnan([one for other in OTHERS for one in of(found, other).values]).all()
        draws, centre = data[f"label_{name}_draws"].values, float(data[f"label_{name}_posterior_mean"])
        assert float(found.sel(embedding="centre")) == pytest.approx(centre)
        assert draws.min() <= float(found.sel(embedding="draw")) <= draws.max()
        assert float(found.sel(embedding="shuffled")) < draws.min()
        assert centre > draws.mean()
    centre = data["point_estimate"].values
    n = max(centre.max(), known.max()) + 1
    matched = max(np.mean(np.array(order)[centre] == known) for order in itertools.permutations(range(n)))
    assert float(data["label_matched_accuracy_posterior_mean"]) == pytest.approx(matched)


def test_moved_units_are_the_worst(result, dataset):
    z = result.latents().values[..., 0]
    centre = minimum_binder(z)
    sure = np.flatnonzero((z[0] == z[0, 0]).mean(0) > 0.999)[:3]
    moved = centre.copy()
    moved[sure] = (moved[sure] + 1) % 3
    found = compare(result, [Embedding("moved", np.eye(WIDE)[moved], units=dataset.units)], **FEW)
    assert set(found.verdicts.iloc[0].worst_units.split()) >= {str(dataset.units[i]) for i in sure}
    assert set(np.argsort(found.data["mahalanobis"].values[0])[-3:]) == set(sure)


def test_without_labels_there_are_no_label_scores(result, dataset, planted_clusterings):
    bare = replace(result, dataset=replace(dataset, labels=None))
    found = compare(bare, planted_clusterings[:1], **FEW)
    assert "largest_class" not in found.data


def test_metrics_and_alignments_of_positions_are_refused_for_labels(result, planted_clusterings, dataset):
    with pytest.raises(
        ConfigError, match="`alignments` apply to continuous positions, but the positions of 'gaussian_mixture' are labels"
    ):
        compare(result, planted_clusterings[:1], alignments=("orthogonal",), **FEW)
    rotated = fit(PPCA(1), dataset, Exact(n_draws=60), seed=0, progress=False)
    with pytest.raises(ConfigError, match="'adjusted_rand' compares labels, but the positions of 'ppca' are continuous"):
        compare(rotated, planted_clusterings[:1], metrics=("adjusted_rand",), **FEW)


def test_the_seed_determines_the_comparison_of_labels(result, planted_clusterings, comparison):
    again = compare(result, planted_clusterings, **FEW)
    assert again.to_dataframe().equals(comparison.to_dataframe())
    assert again.verdicts.equals(comparison.verdicts)


def test_the_progress_bar_for_labels_counts_all_steps(result, planted_clusterings, monkeypatch):
    bars = recorded_bars(monkeypatch, module_of_compare)
    compare(result, planted_clusterings[:3], n_draws=6, n_pairs=2, n_permutations=2)
    compare(result, planted_clusterings[:3], metrics=("cka",), n_draws=6, n_pairs=2, n_permutations=2)
    assert [bar.n for bar in bars] == [bar.total for bar in bars]


def test_each_half_needs_four_draws_of_labels():
    """Positions in q columns need q + 2 draws in a half, labels four, regardless of the number of components."""
    model = GaussianMixture(12)
    check_spread(model, NUTS(n_chains=2, n_draws=4))
    with pytest.raises(ConfigError, match="each half needs at least 4 draws"):
        check_spread(GaussianMixture(1), NUTS(n_chains=2, n_draws=3))
