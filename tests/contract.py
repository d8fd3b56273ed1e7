"""Checks of the contract of models; `models/test_contract.py` applies them to all models."""

from dataclasses import replace

import numpy as np
import pyro
import torch
from pyro.infer.autoguide import init_to_sample
from pyro.infer.mcmc.util import initialize_model

from latentlab.errors import ModelError
from latentlab.inference.arrays import tensors
from latentlab.inference.density import Density
from latentlab.inference.draws import Problem
from latentlab.inference.joint import log_joint
from latentlab.inference.start import start
from latentlab.inference.svi_loss import check_guide
from latentlab.models.base import LatentModel
from latentlab.models.fixed import Fixed
from latentlab.seeds import Seeds, double, isolated
from latentlab.symmetry.groups import larger_groups
from latentlab.symmetry.labels import renamed

SEED = 20_240_229


def density_of(model, dataset):
    """The density at the true parameters, where the model has any."""
    return Density(model, tensors(model, dataset), dataset.array_dims, parameters_of(model, dataset))


def parameters_of(model, dataset):
    return {name: torch.tensor(value) for name, value in dataset.truth.items() if name in model.parameters}


def truth_of(model, dataset):
    """Returns the true values of all sites, positions and parameters; labels as integers."""
    found = {name: np.asarray(value) for name, value in dataset.truth.items() if name in dims_of(model)}
    if model.position.kind == "discrete":
        found[model.position.site] = found[model.position.site].astype(np.int64)
    return found


def dims_of(model):
    """Returns the dims of sites and parameters, on which the symmetry acts."""
    return {**model.dims, **model.parameters}


def check_dims(model, dataset):
    """Sites have the declared dims (refused otherwise by the density), and `simulate` gives a true value for each."""
    own = {*model.dims, *density_of(model, dataset).own_parameters}
    assert own <= set(truth_of(model, dataset)), f"simulate gives no truth for {own - set(dataset.truth)}"
    for site in truth_of(model, dataset):
        dims = dims_of(model)[site]
        assert np.ndim(dataset.truth[site]) == len(dims), f"truth of {site} does not have dims {dims}"
        assert tuple(dataset.truth_dims[site]) == tuple(dims), f"truth_dims of {site} is not {dims}"


def joint_along(model, dataset, group, n):
    """The log joint at the truth, and after n random elements of the group have acted on it."""
    rng = np.random.default_rng(SEED)
    values, dims = truth_of(model, dataset), dims_of(model)
    at = log_joint(model, dataset, values)
    axes = [values[s].shape[dims[s].index(group.dim)] for s in values if group.dim in dims[s]]
    if not axes:
        return at, np.full(n, at)
    turned = (acted(model, group, group.random(rng, axes[0]), values) for _ in range(n))
    return at, np.array([joint_or_nothing(model, dataset, each) for each in turned])


def acted(model, group, element, values):
    """Applies a group element to the sites; discrete positions are only permuted."""
    found = group.act(element, values, dims_of(model))
    if model.position.kind == "discrete" and type(group).__name__ == "Permutation":
        found[model.position.site] = renamed(element, values[model.position.site])
    return found


def joint_or_nothing(model, dataset, values):
    """Returns the log joint; minus infinity outside the support (for example for rotated weights)."""
    try:
        return log_joint(model, dataset, values)
    except ModelError as error:
        if "not in the interior of its support" in str(error):
            return -np.inf
        raise


def check_symmetry(model, dataset):
    """Checks that the declared group leaves the log joint invariant and that every larger group changes it."""
    at, moved = joint_along(model, dataset, model.symmetry, 5)
    worst = np.abs(moved - at).max()
    assert worst < 1e-8 * abs(at), f"{model.symmetry} is declared and changes the log joint by {worst:.3g}"
    dims, truth = dims_of(model), truth_of(model, dataset)
    size = next((truth[s].shape[dims[s].index(model.symmetry.dim)] for s in truth if model.symmetry.dim in dims[s]), 1)
    for group in larger_groups(model.symmetry, dims, size=size):
        at, moved = joint_along(model, dataset, group, 5)
        most = np.abs(moved - at).max()
        assert most > 1e-4 * abs(at), f"{model.symmetry} is declared, and the larger {group} leaves the log joint as it is too"


def check_guide_sites(model, dataset):
    """Checks that guide and program have the same sites."""
    if "guide" in model.offers:
        arrays = tensors(model, dataset)
        check_guide(Problem(model, arrays, density_of(model, dataset), Seeds(SEED), progress=False))


def check_start(model, dataset):
    """Checks that the density at the start is finite and its gradient matches central differences."""
    density = density_of(model, dataset)
    with isolated(Seeds(SEED)):
        u = start(density, np.random.default_rng(SEED), jitter=0.5)
    value, gradient = density.eager_value_and_grad(u)
    fast_value, fast_gradient = density.value_and_grad(u)
    np.testing.assert_allclose(fast_value.numpy(), value.numpy(), rtol=1e-10, err_msg="captured value")
    np.testing.assert_allclose(fast_gradient.numpy(), gradient.numpy(), rtol=1e-8, atol=1e-8, err_msg="captured gradient")
    for i in np.random.default_rng(SEED).choice(density.size, size=min(8, density.size), replace=False):
        h = 1e-6 * max(1.0, abs(float(u[i])))
        step = torch.zeros_like(u)
        step[i] = h
        difference = float(density.log_prob(u + step) - density.log_prob(u - step)) / (2 * h)
        np.testing.assert_allclose(float(gradient[i]), difference, rtol=1e-4, atol=1e-3, err_msg="gradient")


def with_missing(dataset, share=0.25):
    """Returns the dataset with a share of its entries missing."""
    x = dataset.x.astype(np.float64)
    x[np.random.default_rng(SEED).random(x.shape) < share] = np.nan
    return replace(dataset, arrays={**dataset.arrays, dataset.observed: x}, mask=None)


def pyros_own(density):
    """Returns value and gradient of the unconstrained density by the potential of Pyro's samplers."""

    def program(**arrays):
        with Fixed(density.parameters):
            return density.model.model(**arrays)

    first = {site.name: torch.zeros(site.unconstrained, dtype=torch.float64) for site in density.sites}
    with isolated(Seeds(SEED)), pyro.validation_enabled(False):
        potential = initialize_model(program, model_kwargs=density.arrays, initial_params=first, init_strategy=init_to_sample)[1]

    def value_and_grad(u):
        free = u.clone().requires_grad_()
        given = {s.name: free[s.start : s.stop].reshape(s.unconstrained) for s in density.sites}
        with double(), pyro.validation_enabled(False):
            value = -potential(given)
        return value.detach(), torch.autograd.grad(value, free)[0]

    return value_and_grad


def check_paths(model, dataset, n_points=2):
    """Checks value and gradient of the unconstrained density against Pyro, for single and batched points, captured or not."""
    density = density_of(model, dataset)
    with isolated(Seeds(SEED)):
        rng = np.random.default_rng(SEED)
        points = torch.stack([start(density, rng, jitter=0.3) for _ in range(n_points)])
    expected = [pyros_own(density)(u) for u in points]
    values, gradients = density.batch_value_and_grad(points.numpy())
    for i, (u, (value, gradient)) in enumerate(zip(points, expected, strict=True)):
        scale = max(1.0, float(gradient.abs().max()))
        found = {"one": density.value_and_grad(u), "batch": (values[i], gradients[i]), "eager": density.eager_value_and_grad(u)}
        for name, (level, slope) in found.items():
            np.testing.assert_allclose(float(level), float(value), rtol=1e-10, err_msg=f"value, {name}")
            np.testing.assert_allclose(slope, gradient, rtol=1e-10, atol=1e-10 * scale, err_msg=f"gradient, {name}")


def check_conditional(model, dataset):
    """p(z | x, rest) p(x | rest) from the integrated form is p(x, z | rest) from the explicit one, where both exist."""
    marginal = model.marginal()
    if marginal is model:
        return
    values = truth_of(model, dataset)
    explicit, integrated = log_joint(model, dataset, values), log_joint(marginal, dataset, values)
    np.testing.assert_allclose(integrated, explicit, rtol=1e-10, err_msg="integrated and explicit form")


def check_imputation(model, dataset):
    """The density of an entry given all else is the joint with it over the joint without it, for a few entries hidden in turn.

    A joint that is a lower bound has no such ratio; the tests of its model have their own check.
    """
    if "imputation" not in model.offers or model.joint_is_bound:
        return
    values = truth_of(model, dataset)
    given = {name: torch.tensor(value, dtype=torch.float64) for name, value in values.items()}
    whole = log_joint(model, dataset, values)
    last = dataset.x.shape[1] - 1
    for entry in [(0, 0), (3, min(1, last)), (5, last)]:
        x = dataset.x.copy()
        x[entry] = np.nan
        hidden = replace(dataset, arrays={**dataset.arrays, dataset.observed: x})
        with double():
            found = float(model.imputation(tensors(model, hidden), **given).log_prob(torch.tensor(dataset.x))[entry])
        np.testing.assert_allclose(found, whole - log_joint(model, hidden, values), atol=1e-8, err_msg="imputation")


def scores_of(model, datasets):
    """Returns the gradient of the unconstrained joint at the true values of each dataset, `(dataset, coordinate)`."""
    density = density_of(model, datasets[0])
    points = torch.stack([density.unconstrain({s.name: np.asarray(d.truth[s.name]) for s in density.sites}) for d in datasets])
    arrays, parameters = stacked([tensors(model, d) for d in datasets]), stacked([parameters_of(model, d) for d in datasets])

    def log_prob(u, arrays, parameters):
        return density.at(parameters).log_prob(u, {**common, **arrays})

    common = tensors(model, datasets[0])
    free = points.requires_grad_()
    values = torch.vmap(log_prob)(free, arrays, parameters)
    return torch.autograd.grad(values.sum(), free)[0].numpy()


def stacked(each):
    """What differs between the datasets, stacked by name."""
    names = [name for name, value in each[0].items() if isinstance(value, torch.Tensor)]
    return {n: torch.stack([one[n] for one in each]) for n in names if any(not torch.equal(one[n], each[0][n]) for one in each)}


def check_simulate(make: "type[LatentModel] | object", n_sets=400, n_units=6):
    """Checks that `simulate` draws from the density: the score at the true values has mean 0 in every coordinate.

    E[d log p(u, x) / du] = 0 under the joint. Two-sided z-tests of each coordinate's mean over data sets, Bonferroni at a
    total of 1e-5.
    """
    from scipy.stats import norm

    rng = np.random.default_rng(SEED)
    with isolated(Seeds(SEED)), pyro.validation_enabled(False), double():
        scores = scores_of(make, [make.simulate(rng, n_units) for _ in range(n_sets)])
    z = np.sqrt(n_sets) * scores.mean(0) / scores.std(0)
    limit = norm.isf(1e-5 / 2 / scores.shape[1])
    assert np.abs(z).max() < limit, (
        f"simulate does not agree with the density: score of coordinate {np.abs(z).argmax()} has z = {z[np.abs(z).argmax()]:.1f}"
    )
