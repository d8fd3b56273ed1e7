"""Tests that many data sets in one graph give the results of each data set alone."""

import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch

from latentlab.calibration.simulated import simulated
from latentlab.data.dataset import Dataset
from latentlab.errors import DataError
from latentlab.inference import replications
from latentlab.inference.arrays import tensors
from latentlab.inference.density import Density
from latentlab.inference.nuts import NUTS
from latentlab.inference.replications import Chains, Replications
from latentlab.models.ppca import PPCA
from latentlab.models.random_dot_product import RandomDotProduct
from latentlab.seeds import Seeds, isolated

MODEL = PPCA(n_latent=1, mu_scale=1.0)


def datasets(n, n_missing=0):
    found = simulated(MODEL, n, 6, Seeds(3))
    x = found[1].x.copy()
    x[0, :n_missing] = np.nan
    return [found[0], replace(found[1], arrays={"x": x}, mask=None), *found[2:]]


@pytest.mark.parametrize("n_missing", [0, 2])
@pytest.mark.parametrize("which", [np.arange(9), np.array([1]), np.array([8, 1, 3])])
def test_batched_densities_and_gradients_equal_those_of_each_data_set(n_missing, which, rng, monkeypatch):
    """Tests the whole batch and parts of it, with a mask if one data set has missing entries."""
    monkeypatch.setattr(replications, "WIDE", 2)
    sets = datasets(9, n_missing)
    together = Replications(MODEL, sets)
    points = rng.normal(size=(len(which), together.density.size))
    values, gradients = together.value_and_grad(points, which)
    for i, u, value, gradient in zip(which, points, values, gradients, strict=True):
        alone = Density(MODEL, tensors(MODEL, sets[i]), sets[i].array_dims)
        expected = alone.eager_value_and_grad(torch.from_numpy(u))
        np.testing.assert_allclose(value, expected[0].numpy(), rtol=1e-10)
        np.testing.assert_allclose(gradient, expected[1].numpy(), rtol=1e-8, atol=1e-8)


class Branching(PPCA):
    """A program that cannot be batched over data, since it branches on a value."""

    def model(self, x, mask=None):
        super().model(x if float(x[0, 0]) < 1e9 else -x, mask)


def test_programs_that_cannot_be_batched_run_row_by_row(rng):
    sets = datasets(3)
    points = rng.normal(size=(3, Replications(MODEL, sets).density.size))
    plain = Replications(MODEL, sets).value_and_grad(points, np.arange(3))
    with pytest.warns(UserWarning, match="cannot be captured"):
        slow = Replications(Branching(n_latent=1, mu_scale=1.0), sets).value_and_grad(points, np.arange(3))
    for a, b in zip(plain, slow, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10)


def test_programs_that_cannot_be_batched_give_one_warning(rng, monkeypatch):
    """There are two widths of a batch and a graph of one row."""
    monkeypatch.setattr(replications, "WIDE", 2)
    together = Replications(Branching(n_latent=1, mu_scale=1.0), datasets(9))
    points = rng.normal(size=(9, together.density.size))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for n in (9, 1):
            together.value_and_grad(points[:n], np.arange(n))
    assert ["cannot be captured" in str(one.message) for one in caught] == [True]


def test_functions_of_draws_use_the_data_set_of_the_draw(rng):
    together = Replications(MODEL, datasets(3, n_missing=1))
    with isolated(Seeds(0)):
        prior = [[together.density.prior() for _ in range(2)] for _ in range(3)]
    values = {name: np.array([[one[name].numpy() for one in row] for row in prior]) for name in prior[0][0]}
    found = together.lifted(lambda sites, arrays: together.density.log_likelihood(sites, arrays), values)
    for i in range(3):
        alone = together.density.on(together.arrays(i))
        for k in range(2):
            expected = alone.log_likelihood({n: torch.from_numpy(np.asarray(v[i, k])) for n, v in values.items()})
            np.testing.assert_allclose(found[i, k], expected.numpy(), rtol=1e-10)


def test_chains_continue_from_their_last_state():
    sets = datasets(4)
    method = NUTS(n_warmup=20, max_tree_depth=4)
    longer = Chains(Replications(MODEL, sets), method, Seeds(1))
    first = longer.draws(5, what="", progress=False)
    again = longer.draws(10, what="", progress=False)
    np.testing.assert_array_equal(first, again[:, :5])
    once = Chains(Replications(MODEL, sets), method, Seeds(1)).draws(10, what="", progress=False)
    np.testing.assert_allclose(once, again, rtol=1e-6)


def test_replications_with_different_shapes_are_refused():
    with pytest.raises(DataError, match=r"equal shapes; got .*6, 4.*5, 4"):
        Replications(MODEL, [*simulated(MODEL, 1, 6, Seeds(0)), *simulated(MODEL, 1, 5, Seeds(0))])


def test_graphs_with_different_numbers_of_nodes_are_refused():
    """The numbers of pairs agree and those of nodes differ: arguments that are not tensors are compared as well."""
    pair = np.array([0, 1, 2])
    sets = [
        Dataset(
            {"edge": [1.0, 0.0, 1.0]},
            dims={"edge": ("pair",)},
            units={"node": n},
            index={"source": ("pair", pair, "node"), "target": ("pair", pair + 1, "node")},
        )
        for n in (4, 5)
    ]
    with pytest.raises(DataError, match=r"equal shapes; got .*'n_node': 4.*'n_node': 5"):
        Replications(RandomDotProduct(1), sets)
