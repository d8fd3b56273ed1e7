"""Gaussian process latent variable models of the digits: a minibatch step, time to a given score, and an exact gradient.

Five latent dimensions, 50 inducing points, batches of 100 in float64, and RBF kernels with a lengthscale for each dimension. The
models differ: GPyTorch has inducing points and a covariance of q(u) for each pixel, latentlab shares them. Pyro's GPLVM has no
minibatches: its sparse regression uses all units in a step, and its variational model the 100 units of one batch. All start at
principal components. The score is the leave-one-out error of the nearest neighbour's digit at the mean positions; the time is
that of the steps until the error is first at most `SCORE`, evaluated every 50 steps. The exact gradient is that of the log
marginal likelihood in positions, lengthscale, amplitude and noise of 1000 digits, by Cholesky factors on both sides.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch

import latentlab as ll
from experiments.benchmarks.harness import Row, absent, agreed, in_turn, is_here, seconds, timed
from latentlab.inference.density import Density
from latentlab.inference.draws import Problem
from latentlab.results.prepare import prepared
from latentlab.seeds import Seeds, isolated, one_thread

NAME = "GPLVM on digits"
N_LATENT, N_INDUCING, BATCH, RATE = 5, 50, 100, 0.01
SCORE = 0.1
SIZES = {"tiny": (2, 1, 50, 60), "small": (20, 2, 1000, 1000), "full": (40, 3, 3000, 1000)}
"""Steps timed, rounds, largest number of steps until the score, units of the exact gradient."""


def own_steps(problem: Problem, method: ll.SVI, n_steps: int) -> Callable[[int], float]:
    """Return a function that measures milliseconds of a step of latentlab, as the difference of a long and a short run."""
    short, long = replace(method, n_steps=1), replace(method, n_steps=1 + 10 * n_steps)
    short.run(problem)

    def measure(seed: int) -> float:
        seeded = replace(problem, seeds=Seeds(seed))
        return 100 * (timed(lambda: long.run(seeded)) - timed(lambda: short.run(seeded))) / n_steps

    return measure


def in_gpytorch(y: torch.Tensor, seed: int) -> tuple[Callable[[], None], Callable[[], np.ndarray]]:
    """Return a step of GPyTorch's Bayesian GPLVM, and its mean positions."""
    import gpytorch
    from gpytorch.models.gplvm.bayesian_gplvm import BayesianGPLVM
    from gpytorch.models.gplvm.latent_variable import VariationalLatentVariable

    n, d = y.shape
    batch, rng = torch.Size([d]), np.random.default_rng(seed)

    class Model(BayesianGPLVM):
        def __init__(self) -> None:
            q_u = gpytorch.variational.CholeskyVariationalDistribution(N_INDUCING, batch_shape=batch)
            inducing = torch.randn(d, N_INDUCING, N_LATENT)
            q_f = gpytorch.variational.VariationalStrategy(self, inducing, q_u, learn_inducing_locations=True)
            prior = gpytorch.priors.NormalPrior(torch.zeros(n, N_LATENT), torch.ones(n, N_LATENT))
            start = torch.nn.Parameter(principal(y))
            super().__init__(VariationalLatentVariable(n, d, N_LATENT, start, prior), q_f)
            self.mean_module = gpytorch.means.ZeroMean()
            self.covar_module = gpytorch.kernels.ScaleKernel(gpytorch.kernels.RBFKernel(ard_num_dims=N_LATENT))

        def forward(self, z: torch.Tensor) -> Any:
            return gpytorch.distributions.MultivariateNormal(self.mean_module(z), self.covar_module(z))

    model, likelihood = Model(), gpytorch.likelihoods.GaussianLikelihood(batch_shape=batch)
    bound = gpytorch.mlls.VariationalELBO(likelihood, model, num_data=n)
    optimizer = torch.optim.Adam([*model.parameters(), *likelihood.parameters()], lr=RATE)

    def step() -> None:
        rows = torch.from_numpy(rng.choice(n, BATCH, replace=False))
        optimizer.zero_grad()
        (-bound(model(model.sample_latent_variable()[rows]), y[rows].T).sum()).backward()
        optimizer.step()

    return step, lambda: model.X.q_mu.detach().numpy()


def in_pyro(y: torch.Tensor, kind: str) -> Callable[[], None]:
    """Return a step of Pyro's GPLVM: of all units by `SparseGPRegression`, or of one batch by `VariationalSparseGP`."""
    import pyro
    from pyro.contrib import gp

    store: dict[str, Any] = {"params": {}, "constraints": {}}
    y = y if kind == "SparseGPRegression" else y[:BATCH]
    z = principal(y)
    kernel, inducing = gp.kernels.RBF(N_LATENT, lengthscale=torch.ones(N_LATENT)), z[:N_INDUCING].clone()
    if kind == "SparseGPRegression":
        base = gp.models.SparseGPRegression(z, y.T, kernel, inducing, jitter=1e-6)
    else:
        shape, noise = torch.Size([y.shape[1]]), gp.likelihoods.Gaussian()
        base = gp.models.VariationalSparseGP(z, y.T, kernel, inducing, noise, latent_shape=shape, whiten=True, jitter=1e-6)
    model = gp.models.GPLVM(base)
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
    loss = pyro.infer.Trace_ELBO().differentiable_loss

    def step() -> None:
        with pyro.get_param_store().scope(store):  # both models have the same names
            optimizer.zero_grad()
            loss(model.model, model.guide).backward()
            optimizer.step()

    return step


def principal(y: torch.Tensor) -> torch.Tensor:
    """Principal component scores, scaled to variance 1."""
    scores = torch.linalg.svd(y - y.mean(0), full_matrices=False)[0][:, :N_LATENT]
    return scores / scores.std(0)


def error_of(z: np.ndarray, labels: np.ndarray) -> float:
    """Leave-one-out error of the nearest neighbour's label."""
    from sklearn.neighbors import NearestNeighbors

    nearest = NearestNeighbors(n_neighbors=2).fit(z).kneighbors(z, return_distance=False)[:, 1]
    return float((labels[nearest] != labels).mean())


def until_score(steps: Iterator[tuple[float, np.ndarray]], labels: np.ndarray) -> tuple[float, float]:
    """Seconds of the steps until the error is at most `SCORE` (NaN if it never is), and the least error."""
    total, least = 0.0, 1.0
    for spent, z in steps:
        total, least = total + spent, min(least, error_of(z, labels))
        if least <= SCORE:
            return total, least
    return math.nan, least


def by_gpytorch(y: torch.Tensor, most: int) -> Iterator[tuple[float, np.ndarray]]:
    step, positions = in_gpytorch(y, 0)
    for _ in range(max(1, most // 4) // 50 + 1):  # a step takes over ten times as long
        yield timed(lambda: [step() for _ in range(50)]), positions()


def by_latentlab(problem: Problem, method: ll.SVI, most: int) -> Iterator[tuple[float, np.ndarray]]:
    """Runs of increasing length from the start, of which the additional time counts; the learning rate is near constant."""
    before = timed(lambda: replace(method, n_steps=1).run(problem))
    for n in range(50, most + 1, 50):
        fitted: list[Any] = []
        now = timed(lambda: fitted.append(replace(method, n_steps=n).run(problem)))  # noqa: B023
        yield max(0.0, now - before), fitted[0].parameters["z_loc"]
        before = now


def exact_gradients(n_units: int) -> tuple[dict[str, Callable[[int], float]], list[Row]]:
    """Milliseconds of a gradient of the exact model, by latentlab and by GPyTorch, and a check of the values."""
    dataset = ll.load_dataset("digits", drop_constant=True).subset(range(n_units))
    model = ll.models.GPLVM(N_LATENT, lengthscale_spread=1.0)
    keep = np.ptp(dataset.x, 0) > 1e-9
    data = ll.Dataset({"x": dataset.x[:, keep] - dataset.x[:, keep].mean(0)}, dims={"x": ("unit", "feature")})
    problem = prepared(model, data, ll.MAP(), progress=False)
    density: Density = problem.density
    x = problem.arrays["x"]
    values = {"z": principal(x), "sigma": torch.tensor(0.5), "amplitude": torch.tensor(1.0), "lengthscale": torch.tensor(1.5)}
    values = {name: value.double() for name, value in values.items()}
    u = density.unconstrain(values)
    sides = {"latentlab exact": lambda _: 1e3 * seconds(lambda: density.value_and_grad(u), least=1.0)}
    rows: list[Row] = []
    if is_here("gpytorch"):
        import gpytorch

        z = values["z"].clone().requires_grad_()
        raw = torch.log(torch.tensor([1.5, 1.0, 0.25], dtype=torch.float64)).requires_grad_()
        kernel = gpytorch.kernels.RBFKernel().double()

        def by_gpytorch() -> torch.Tensor:
            lengthscale, a, noise = torch.exp(raw).unbind()
            K = a * kernel.forward(z * kernel.lengthscale.detach() / lengthscale, z * kernel.lengthscale.detach() / lengthscale)
            eye = torch.eye(n_units, dtype=torch.float64)
            normal = gpytorch.distributions.MultivariateNormal(
                torch.zeros(n_units, dtype=torch.float64), K + (noise + 1e-6) * eye
            )
            with gpytorch.settings.fast_computations(False, False, False), gpytorch.settings.cholesky_max_tries(1):
                value = normal.log_prob(x.T).sum()
            value.backward()
            z.grad = raw.grad = None
            return value.detach()

        mine = float(model.process(problem.arrays, **values).log_prob(x).sum())
        rows.append(
            agreed(NAME, "gpytorch", "check: exact log likelihood, relative", abs(mine / float(by_gpytorch()) - 1), 1e-8, "")
        )
        sides["gpytorch exact, Cholesky"] = lambda _: 1e3 * seconds(by_gpytorch, least=1.0)
    return sides, rows


def rows(size: str) -> list[Row]:
    n_steps, n_rounds, most, n_exact = SIZES[size]
    dataset = ll.load_dataset("digits", drop_constant=True)
    y = torch.tensor(dataset.x)
    method = ll.SVI(guide="model", n_particles=1, batch_size=BATCH, n_draws=1, learning_rate=RATE)
    model = ll.models.SparseGPLVM(N_LATENT, N_INDUCING, ard=True)
    sides: dict[str, Callable[[int], float]] = {}
    found: list[Row] = []
    with one_thread(), isolated(Seeds(0)):
        for side, compiled in (("latentlab SVI", False), *([("latentlab SVI, compiled", True)] if size != "tiny" else [])):
            chosen = replace(method, compiled=compiled)
            sides[side] = own_steps(prepared(model, dataset, chosen, progress=False), chosen, n_steps)
        if is_here("gpytorch"):
            sides["gpytorch Bayesian GPLVM"] = steps_of(in_gpytorch(y, 0)[0], n_steps)
        else:
            found.append(absent(NAME, "gpytorch Bayesian GPLVM", "gpytorch"))
        for kind in ("SparseGPRegression", "VariationalSparseGP"):
            what = "all units" if kind == "SparseGPRegression" else "100 units only"
            sides[f"Pyro GPLVM, {kind}, {what}"] = steps_of(in_pyro(y, kind), n_steps)
        found += in_turn(NAME, "a step", "ms", sides, n_rounds=n_rounds)
        text = f"time until the nearest neighbour's digit is wrong in at most {SCORE:.0%}"
        problem = prepared(model, dataset, replace(method, compiled=False), progress=False)
        runs = {"latentlab SVI": by_latentlab(problem, replace(method, compiled=False), most)}
        runs |= {"gpytorch Bayesian GPLVM": by_gpytorch(y, most)} if is_here("gpytorch") else {}
        labels = np.asarray(dataset.labels)
        start = f"at principal components {error_of(principal(y).numpy(), labels):.3f}"
        for side, steps in runs.items():
            spent, least = until_score(steps, labels)
            found.append(Row(NAME, side, text, spent, "s", f"least error {least:.3f}; {start}"))
        exact, checks = exact_gradients(n_exact)
        return [*found, *checks, *in_turn(NAME, f"exact gradient, {n_exact} units", "ms", exact, n_rounds=n_rounds)]


def steps_of(step: Callable[[], None], n_steps: int) -> Callable[[int], float]:
    """Return a function that measures milliseconds of a step."""
    step()
    return lambda _: 1e3 * timed(lambda: [step() for _ in range(n_steps)]) / n_steps
