"""Tests of the names of quantities that are compared across chains."""

import numpy as np
import pytest

from latentlab.results.quantities import entries, entry, identified, is_count
from latentlab.symmetry.groups import GeneralLinear, Orthogonal, Permutation

DIMS = {
    "weights": ("component",),
    "mu": ("component", "feature"),
    "transition": ("component", "next_component"),
    "z": ("unit",),
}
LABELS = {"mu": ["ash", "hue"]}


def names(group, values, dims, labels):
    quantities = identified(values, dims, group, "z")
    return entries(quantities, labels, {"chain": 2, "draw": 50})[0]


def test_quantities_of_a_mixture_are_sums_over_components(rng):
    values = {
        "weights": rng.dirichlet(np.ones(3), (2, 50)),
        "mu": rng.normal(size=(2, 50, 3, 2)),
        "transition": rng.dirichlet(np.ones(3), (2, 50, 3)),
        "z": rng.integers(0, 3, (2, 50, 20)),
    }
    found = names(Permutation("component"), values, DIMS, LABELS)
    expected = {
        "sum_k weights[k]^2",
        "sum_k weights[k]^4",
        "sum_k weights[k] mu[k, hue]",
        "mu mu^T[ash, hue]",
        "sum_k mu[k, ash]",
        "sum_k mu[k, ash]^3",
        "weights[k], rank 1",
        "|mu[k]|^2, rank 3",
        "|mu[j] - mu[k]|, rank 1 from the smallest",
        "tr transition^2",
        "share of z, rank 1",
        "co-assignment of z[0]",
    }
    assert expected <= set(found)
    assert not [name for name in found if "projected" in name or "sorted" in name or "weights weights" in name]
    assert len(set(found)) == len(found)
    assert [name for name in found if is_count(name, "z")] == [name for name in found if "z" in name]


@pytest.mark.parametrize("group", [Orthogonal(), GeneralLinear()])
def test_invariants_of_large_matrices_have_descriptive_names(group, rng):
    values = {"W": rng.normal(size=(2, 50, 40, 2)), "z": rng.normal(size=(2, 50, 60, 2))}
    dims = {"W": ("feature", "latent"), "z": ("unit", "latent")}
    found = names(group, values, dims, {"W": [f"f{i}" for i in range(40)], "z": [f"u{i}" for i in range(60)]})
    assert len(set(found)) == len(found)
    assert "random projection 1 of W z^T" in found or "random projection 1 of z W^T" in found
    if isinstance(group, Orthogonal):
        assert {"eigenvalue 1 of W W^T", "W W^T[f3, f3]", "|z[u7]|^2"} <= set(found)


def test_the_log_density_is_named():
    assert entry("lp", (), {}) == "log joint density"
    assert entry("sigma", (), {}) == "sigma"
    assert entry("mu", (1,), {"mu": ["ash", "hue"]}) == "mu[hue]"
    assert entry("mu", (1, 0), {}) == "mu[1, 0]"
