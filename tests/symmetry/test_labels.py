"""Tests of permutations of labels."""

import numpy as np
import pytest

from latentlab.models.gaussian_hmm import GaussianHMM
from latentlab.models.gaussian_mixture import GaussianMixture
from latentlab.symmetry.groups import Permutation
from latentlab.symmetry.labels import indicators, renamed


def test_label_indicators_and_names(rng):
    labels = rng.integers(0, 4, (2, 3, 10))
    one_hot = indicators(labels, 4)
    assert one_hot.shape == (2, 3, 10, 4)
    np.testing.assert_array_equal(one_hot.argmax(-1), labels)
    np.testing.assert_array_equal(one_hot.sum(-1), 1)


@pytest.mark.parametrize(
    ("model", "sites"), [(GaussianMixture(4), ("weights", "mu")), (GaussianHMM(4), ("initial", "mu"))], ids=["mixture", "hmm"]
)
def test_permutations_move_labels_with_their_components(model, sites, rng):
    """Four labels, so that permutations differ from their inverses; renaming equals permuting indicator columns."""
    dim = model.symmetry.dim
    draws = [model.simulate(np.random.default_rng(i), 9).truth for i in range(6)]
    values = {name: np.stack([draw[name] for draw in draws])[None] for name in (*sites, "z")}
    group = Permutation(dim)
    elements = np.stack([group.random(rng, 4) for _ in range(6)])[None]
    assert any((element @ element != np.eye(4)).any() for element in elements[0]), "all are their own inverses"
    acted = model.act(elements, values)
    for name in sites:
        each = []
        for of in (values, acted):
            z = of["z"].astype(int).reshape(1, 6, 9, *[1] * (of[name].ndim - 3))
            each.append(np.take_along_axis(of[name], z, 2))
        np.testing.assert_array_equal(*each)
    turned = group.act(elements, {"z": indicators(values["z"], 4)}, {"z": ("unit", dim)})["z"]
    np.testing.assert_array_equal(indicators(acted["z"], 4), turned)
    np.testing.assert_array_equal(acted["z"], renamed(elements, values["z"]))
    if "transition" in model.dims:  # rows and columns alike: the transitions of a path keep their probabilities
        A = np.stack([draw["transition"] for draw in draws])[None]
        moved = model.act(elements, {**values, "transition": A})["transition"]
        for s in range(6):
            z, new = values["z"][0, s].astype(int), acted["z"][0, s]
            np.testing.assert_array_equal(A[0, s][z[:-1], z[1:]], moved[0, s][new[:-1], new[1:]])
