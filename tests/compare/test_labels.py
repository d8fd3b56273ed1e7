"""Tests of label scores against scikit-learn and loops, and of cross-validation folds."""

from functools import partial

import numpy as np
import pytest
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.metrics import silhouette_samples, silhouette_score
from sklearn.model_selection import PredefinedSplit, cross_val_predict
from sklearn.neighbors import KNeighborsClassifier

from latentlab.compare.labels import downstream_accuracy, folds, label_agreement, label_scores, largest_class, silhouette
from latentlab.compare.positions import ranked
from latentlab.errors import ConfigError, DataError


@pytest.fixture
def data(rng):
    labels = np.repeat(["b", "a", "c"], [40, 25, 15])
    centres = {"a": [0.0, 0.0], "b": [2.2, 0.0], "c": [0.0, 3.0]}
    return np.array([centres[label] for label in labels]) + rng.normal(size=(80, 2)), labels


def test_label_agreement_matches_a_loop(data):
    x, labels = data
    shares = []
    for i in range(80):
        nearest = sorted((j for j in range(80) if j != i), key=lambda j: ((x[i] - x[j]) ** 2).sum())[:7]
        shares.append(np.mean([labels[j] == labels[i] for j in nearest]))
    assert label_agreement(x, labels, n_neighbors=7) == pytest.approx(np.mean(shares))


@pytest.mark.chance(1e-4)
def test_label_agreement_by_chance_is_the_sum_of_squared_shares(data, rng):
    """Mean of 200 permutations; 4 standard errors; a unit is not its own neighbour."""
    x, labels = data
    sizes = np.array([40, 25, 15])
    values = np.array([label_agreement(x, rng.permutation(labels)) for _ in range(200)])
    assert abs(values.mean() - (sizes * (sizes - 1)).sum() / (80 * 79)) < 4 * values.std() / np.sqrt(200)


def test_silhouette_matches_scikit_learn(data):
    assert silhouette(*data) == pytest.approx(silhouette_score(*data), abs=1e-12)


def test_silhouette_of_classes_of_one_unit(data):
    x, labels = data
    alone = labels.copy()
    alone[0] = "alone"
    assert silhouette(x, alone) == pytest.approx(silhouette_score(x, alone), abs=1e-12)
    assert silhouette(x, np.arange(80)) == 0.0


def test_silhouette_of_many_units_uses_the_documented_subsample(rng):
    x = rng.normal(size=(1300, 2))
    labels = (x[:, 0] + 0.5 * rng.normal(size=1300) > 0).astype(int)
    anchors, _ = ranked(1300)
    assert silhouette(x, labels) == pytest.approx(silhouette_samples(x, labels)[anchors].mean(), abs=1e-12)


def test_scores_of_a_constant_embedding_are_at_chance_level(data):
    _, labels = data
    point = np.zeros((80, 2))
    assert silhouette(point, labels) == 0.0
    assert downstream_accuracy(point, labels, folds(labels, np.random.default_rng(0)), classifier="linear") == 0.5
    assert 0 < label_agreement(point, labels) < 0.6


@pytest.mark.parametrize("n_folds", [2, 3, 5, 80])
def test_folds_are_balanced_in_size_and_classes(data, n_folds, rng):
    _, labels = data
    found = folds(labels, rng, n_folds)
    sizes = np.bincount(found, minlength=n_folds)
    assert sizes.max() - sizes.min() <= 1
    for label in "abc":
        within = np.bincount(found[labels == label], minlength=n_folds)
        assert within.max() - within.min() <= 1


def test_folds_are_random_and_reproducible(data):
    _, labels = data
    first, again, other = (folds(labels, np.random.default_rng(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).mean() > 0.5
    assert len(set(first[:5].tolist())) > 1 or len(set(other[:5].tolist())) > 1


@pytest.mark.parametrize(
    ("name", "model"), [("neighbors", KNeighborsClassifier(15)), ("linear", LinearDiscriminantAnalysis(solver="svd"))]
)
def test_accuracy_matches_scikit_learns_cross_validation(data, name, model, rng):
    x, labels = data
    fold = folds(labels, rng)
    predicted = cross_val_predict(model, x, labels, cv=PredefinedSplit(fold))
    assert downstream_accuracy(x, labels, fold, classifier=name) == pytest.approx((predicted == labels).mean())
    assert 0.6 < downstream_accuracy(x, labels, fold, classifier=name) < 1


def test_a_units_own_label_does_not_enter_its_prediction(rng):
    """Labels are independent of positions; a leak would give accuracy 1. Limits: 4 sd of the binomial with 1/2."""
    x, labels = rng.normal(size=(400, 2)), rng.integers(0, 2, size=400)
    found = downstream_accuracy(x, labels, folds(labels, rng), n_neighbors=1)
    assert abs(found - 0.5) < 4 * np.sqrt(0.25 / 400)


def test_linear_accuracy_ignores_affine_maps_and_neighbour_accuracy_similarities(data, rng):
    x, labels = data
    fold = folds(labels, rng)
    A = np.array([[3.0, 1.0], [0.0, 0.01]])
    c, s = np.cos(1.0), np.sin(1.0)
    assert downstream_accuracy(x @ A + 7, labels, fold, classifier="linear") == downstream_accuracy(
        x, labels, fold, classifier="linear"
    )
    assert downstream_accuracy(3 * x @ np.array([[c, -s], [s, c]]) + 7, labels, fold) == downstream_accuracy(x, labels, fold)
    assert downstream_accuracy(x @ A, labels, fold) != downstream_accuracy(x, labels, fold)


def test_a_class_that_is_missing_from_training_counts_as_wrong():
    x = np.r_[np.zeros((9, 1)), [[5.0]]] + np.arange(10)[:, None] * 1e-3
    labels = np.array([0] * 9 + [1])
    halves = np.array([0] * 5 + [1] * 5)
    assert downstream_accuracy(x, labels, halves, n_neighbors=1) == pytest.approx(0.9)
    assert downstream_accuracy(x, labels, halves, classifier="linear") == pytest.approx(0.9)
    assert downstream_accuracy(x, labels, labels, n_neighbors=1) == 0.0


def test_classes_that_are_single_points_are_classified_perfectly(rng):
    labels = np.repeat([0, 1, 2], 20)
    for x in (np.eye(3)[labels], labels[:, None]):
        assert downstream_accuracy(x, labels, folds(labels, rng), classifier="linear") == 1.0


def test_collinear_columns_do_not_change_accuracy(data, rng):
    x, labels = data
    fold = folds(labels, rng)
    twice = np.hstack([x, x])
    found = downstream_accuracy(x, labels, fold, classifier="linear")
    assert downstream_accuracy(twice, labels, fold, classifier="linear") == found


def test_label_scores_cover_embedding_mean_and_draws(data, rng):
    x, labels = data
    draws = x + 2.0 * rng.normal(size=(2, 6, 80, 2))
    score = partial(downstream_accuracy, labels=labels, folds=folds(labels, rng))
    found = label_scores(score, draws[1, 3], draws)
    assert found.embedding == found.draws[1, 3] == score(draws[1, 3])
    assert found.posterior_mean == score(draws.mean(axis=(0, 1)))
    assert found.draws.shape == (2, 6)
    assert found.draws[0, 5] == score(draws[0, 5])
    # The noise of single draws costs accuracy that their mean has.
    assert found.draws.mean() < found.posterior_mean - 0.05
    assert found.posterior_mean > largest_class(labels) == 0.5


def test_invalid_class_labels_are_refused(data, rng):
    x, labels = data
    for score in (label_agreement, silhouette, lambda x, y: downstream_accuracy(x, y, folds(y, rng))):
        with pytest.raises(DataError, match="80 labels that are all a"):
            score(x, ["a"] * 80)
        with pytest.raises(DataError, match="labels must be finite; got a non-finite label for unit 3"):
            score(x, np.where(np.arange(80) == 3, np.nan, np.arange(80) % 2))
    with pytest.raises(DataError, match=r"labels must have shape \(80,\); got \(79,\)"):
        silhouette(x, labels[1:])
    assert label_agreement(x, labels.astype(object)) == label_agreement(x, labels)
    assert label_agreement(x, labels == "a") > 0.5


def test_invalid_folds_and_classifiers_are_refused(data, rng):
    x, labels = data
    for n_folds in (1, 81):
        with pytest.raises(ConfigError, match=f"`n_folds` must be from 2 to the 80 units; got {n_folds}"):
            folds(labels, rng, n_folds)
    for wrong in (np.zeros(80), np.zeros(79)):
        with pytest.raises(DataError, match=r"`folds` must have shape \(80,\) with at least 2 different values; got shape"):
            downstream_accuracy(x, labels, wrong)
    with pytest.raises(DataError, match="`n_neighbors` must be at most the number of units outside a fold, 64; got 70"):
        downstream_accuracy(x, labels, folds(labels, rng), n_neighbors=70)
    with pytest.raises(ConfigError, match="unknown classifier 'lda'"):
        downstream_accuracy(x, labels, folds(labels, rng), classifier="lda")
