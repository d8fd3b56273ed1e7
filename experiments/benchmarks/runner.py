"""Speed of single parts of the inference runner relative to Pyro, measured in the same run.

* gradient: Pyro's program traced and differentiated at each point, against the recorded graph, for one point and for a batch;
* sum over units by moments, against a sum by unit;
* NUTS: seconds per effective draw of W W^T and sigma, Pyro's kernel on the same recorded potential against chains in lock step.

    python experiments/benchmarks/runner.py --dataset wine
"""

import argparse
import time
from collections.abc import Callable

import numpy as np
import pyro
import torch
from pyro.infer.mcmc import MCMC
from pyro.infer.mcmc import NUTS as PyroNUTS

import latentlab as ll
from latentlab.inference.arrays import tensors
from latentlab.inference.density import Density
from latentlab.inference.lift import constrain_draws
from latentlab.results.convergence import ess_bulk
from latentlab.seeds import Seeds, double, isolated, one_thread


def seconds(function: Callable[[], object], least: float = 0.5) -> float:
    """Measure the median time of one call over five rounds, each at least `least / 5` seconds long."""
    function()
    rounds = []
    for _ in range(5):
        begin, calls = time.perf_counter(), 0
        while time.perf_counter() - begin < least / 5:
            function()
            calls += 1
        rounds.append((time.perf_counter() - begin) / calls)
    return float(np.median(rounds))


def gradients(density: Density) -> dict[str, float]:
    """Measure the seconds of one value and gradient, per point if there are several points in a batch."""
    points = 0.1 * np.random.default_rng(0).standard_normal((64, density.size))
    one = torch.from_numpy(points[0])
    by_units = Density(density.model, {**density.arrays, "mask": torch.ones_like(density.arrays["x"], dtype=torch.bool)})
    return {
        "Pyro": seconds(lambda: density.eager_value_and_grad(one)),
        "recorded": seconds(lambda: density.value_and_grad(one)),
        "recorded, sum by unit": seconds(lambda: by_units.value_and_grad(one)),
        "recorded, batch of 4": seconds(lambda: density.batch_value_and_grad(points[:4])) / 4,
        "recorded, batch of 64": seconds(lambda: density.batch_value_and_grad(points)) / 64,
    }


def least_ess(values: dict[str, np.ndarray]) -> float:
    """Compute the smallest effective sample size over W W^T and sigma."""
    W = values["W"]
    gram = (W @ W.swapaxes(-1, -2))[..., *np.triu_indices(W.shape[-2])]
    return float(min(ess_bulk(gram).min(), ess_bulk(values["sigma"])))


def own_nuts(model: ll.LatentModel, dataset: ll.Dataset, n_warmup: int, n_draws: int) -> tuple[float, float]:
    """Measure the seconds and the smallest ESS of four chains in lock step."""
    begin = time.perf_counter()
    fit = ll.fit(model, dataset, ll.NUTS(n_chains=4, n_warmup=n_warmup, n_draws=n_draws), seed=0, progress=False)
    return time.perf_counter() - begin, least_ess(fit.sites())


def pyro_nuts(density: Density, n_warmup: int, n_draws: int) -> tuple[float, float]:
    """Measure the seconds and the smallest ESS of four sequential chains of Pyro's kernel on the recorded gradient."""

    class Potential(torch.autograd.Function):
        @staticmethod
        def forward(ctx, u):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN205
            value, gradient = density.value_and_grad(u.detach())
            ctx.save_for_backward(gradient)
            return -value

        @staticmethod
        def backward(ctx, by):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN205
            return -by * ctx.saved_tensors[0]

    begin, chains = time.perf_counter(), []
    for chain in range(4):
        with isolated(Seeds(0).child("chain", chain)), double():
            start = 0.5 * torch.randn(density.size)
            kernel = PyroNUTS(potential_fn=lambda z: Potential.apply(z["u"]))
            sampler = MCMC(kernel, n_draws, warmup_steps=n_warmup, initial_params={"u": start}, disable_progbar=True)
            sampler.run()
            chains.append(sampler.get_samples()["u"].numpy())
    return time.perf_counter() - begin, least_ess(constrain_draws(density, np.stack(chains)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--dataset", default="wine")
    parser.add_argument("--n-latent", type=int, default=2)
    parser.add_argument("--n-warmup", type=int, default=300)
    parser.add_argument("--n-draws", type=int, default=300)
    parser.add_argument("--gradients-only", action="store_true")
    options = parser.parse_args()
    dataset = ll.load_dataset(options.dataset, drop_constant=True)
    model = ll.models.PPCA(n_latent=options.n_latent)
    pyro.enable_validation(False)
    with one_thread():
        density = Density(model, tensors(model, dataset), dataset.array_dims)
        found = gradients(density)
        reference = found["Pyro"]
        print(f"{dataset.name}, {dataset.x.shape}, {density.size} parameters; value and gradient:")
        for name, each in found.items():
            print(f"  {name:28s}{1e6 * each:10.0f} us   {reference / each:6.1f} x")
        if options.gradients_only:
            return
        print("NUTS, four chains:")
        for name, (spent, ess) in {
            "Pyro's kernel, recorded": pyro_nuts(density, options.n_warmup, options.n_draws),
            "in lock step": own_nuts(model, dataset, options.n_warmup, options.n_draws),
        }.items():
            print(f"  {name:28s}{spent:10.1f} s, smallest ESS {ess:6.0f}: {1e3 * spent / ess:8.1f} ms per effective draw")


if __name__ == "__main__":
    main()
