"""NumPyro programs of the sampling benchmarks: the same densities, sampled by NUTS with vectorised chains in float64.

Log densities are in float64 as in latentlab. JAX's default, float32, has a separate row in the benchmark of whole processes.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from experiments.benchmarks.harness import timed
from experiments.benchmarks.own import Sampled, Values


def double() -> None:
    """Switch JAX to float64; for use in the process of a benchmark only."""
    import jax

    jax.config.update("jax_enable_x64", True)


def array(x: np.ndarray) -> Any:
    """Convert the data to JAX arrays."""
    import jax.numpy as jnp

    return jnp.asarray(x)


def log_joint(model: Callable[..., None], data: tuple[Any, ...], values: Values) -> float:
    """Compute log p(values, data) on the constrained scale."""
    from numpyro.infer.util import log_density

    return float(log_density(model, data, {}, dict(values))[0])


def gradient(model: Callable[..., None], data: tuple[Any, ...], values: Values) -> Callable[[], object]:
    """Return a compiled function for one value and gradient of the potential on the unconstrained scale."""
    import jax
    from numpyro.infer.util import potential_energy, unconstrain_fn

    at = unconstrain_fn(model, data, {}, dict(values))
    # the data are arguments, not constants of the graph, which XLA would fold at compile time
    function = jax.jit(jax.value_and_grad(lambda u, given: potential_energy(model, given, {}, u)))
    return lambda: jax.block_until_ready(function(at, data))


class Chains:
    """NUTS with vectorised chains and given starts, compiled once for all rounds."""

    def __init__(
        self, model: Callable[..., None], data: tuple[Any, ...], starts: Sequence[Values], n_warmup: int, n_draws: int
    ) -> None:
        import jax
        from numpyro.infer import MCMC, NUTS
        from numpyro.infer.util import unconstrain_fn

        kernel = NUTS(model)
        self.data, n = data, len(starts)
        self.mcmc = MCMC(
            kernel, num_warmup=n_warmup, num_samples=n_draws, num_chains=n, chain_method="vectorized", progress_bar=False
        )
        unconstrained = [unconstrain_fn(model, data, {}, dict(values)) for values in starts]
        stacked = jax.tree.map(lambda *leaves: jax.numpy.stack(leaves), *unconstrained)
        self.starts = stacked if n > 1 else jax.tree.map(lambda leaf: leaf[0], stacked)
        self._compile()

    def _compile(self) -> None:
        self._whole(0)
        self._continue(0)

    def _whole(self, seed: int) -> None:
        import jax

        self.mcmc.post_warmup_state = None
        self.mcmc.run(jax.random.PRNGKey(seed), *self.data, init_params=self.starts)
        jax.block_until_ready(self.mcmc.get_samples())

    def _continue(self, seed: int) -> None:
        import jax

        self.mcmc.post_warmup_state = self.mcmc.last_state
        self.mcmc.run(self.mcmc.post_warmup_state.rng_key, *self.data)
        jax.block_until_ready(self.mcmc.get_samples())

    def sample(self, seed: int) -> Sampled:
        """Time warm-up and draws together, then time the same number of further draws, which are the result."""
        whole = timed(lambda: self._whole(seed))
        sampling = timed(lambda: self._continue(seed))
        draws: Mapping[str, Any] = self.mcmc.get_samples(group_by_chain=True)
        return Sampled({name: np.asarray(value) for name, value in draws.items()}, sampling, whole)
