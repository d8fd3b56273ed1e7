"""One model on many data sets of one shape, with their densities in one captured graph and their chains in lock step.

The data are arguments of the graph, which is batched over replications, so that a further data set adds only arithmetic.
Other replications change a replication's result only in the last digits of batched sums.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from latentlab.data.dataset import Dataset
from latentlab.errors import DataError
from latentlab.inference.arrays import tensors
from latentlab.inference.capture import capture
from latentlab.inference.density import Density
from latentlab.inference.lift import over_draws
from latentlab.inference.nuts import NUTS, drive_active, starting_point
from latentlab.inference.trajectory import Snapshot, chain
from latentlab.models.base import LatentModel
from latentlab.progress import tqdm
from latentlab.seeds import Seeds

WIDE = 64
"""Number of data sets from which a second, narrower graph is captured, for use when few chains are still running."""
NARROWER = 8
"""Ratio of the widths of the two graphs."""


class Replications:
    """The flat densities of a model on data sets of equal shapes.

    Args:
        model: The model.
        datasets: Data sets, at least one. If one has missing entries, all get a mask.

    Attributes:
        density: The density on the first data set.
        likelihood: Density on the first data set with the positions integrated out; `density` if the model has no such form.
        data: Arrays of all data sets by name, `(replication, *array)`; they can be replaced between calls.

    Raises:
        DataError: The data sets have different arrays or shapes.
    """

    def __init__(self, model: LatentModel, datasets: Sequence[Dataset]) -> None:
        arrays = [tensors(model, dataset) for dataset in datasets]
        if any(a.get("mask") is not None for a in arrays):
            for a, dataset in zip(arrays, datasets, strict=True):
                a["mask"] = torch.ones(dataset.x.shape, dtype=torch.bool) if a["mask"] is None else a["mask"]
        shapes = [{n: tuple(t.shape) if isinstance(t, torch.Tensor) else t for n, t in a.items()} for a in arrays]
        other = next((s for s in shapes if s != shapes[0]), None)
        if other is not None:
            raise DataError(f"data sets of one batch must have equal shapes; got {shapes[0]} and {other}.")
        stacked = [name for name, value in arrays[0].items() if isinstance(value, torch.Tensor)]
        self.data = {name: torch.stack([a[name] for a in arrays]) for name in stacked}
        self._rest = {name: value for name, value in arrays[0].items() if not isinstance(value, torch.Tensor)}
        self.density = Density(model, arrays[0], datasets[0].array_dims)
        marginal = model.marginal()
        self.likelihood = self.density if marginal is model else Density(marginal, arrays[0], datasets[0].array_dims)
        self._widths = [len(datasets)] if len(datasets) < WIDE else [-(-len(datasets) // NARROWER), len(datasets)]
        self._batched: dict[int, Callable[..., Any]] = {}
        self._single: Callable[..., Any] | None = None

    def __len__(self) -> int:
        return len(next(iter(self.data.values())))

    def arrays(self, replication: int) -> dict[str, Any]:
        """Return the arrays of one data set."""
        return self._named([array[replication] for array in self.data.values()])

    def _named(self, rows: Sequence[torch.Tensor]) -> dict[str, Any]:
        return {**self._rest, **dict(zip(self.data, rows, strict=True))}

    def value_and_grad(self, points: np.ndarray, which: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Compute log densities `(n,)` and gradients `(n, size)` of the replications `which` `(n,)` at `points` `(n, size)`."""
        n = len(which)
        width = next(w for w in self._widths if w >= n)
        fill = np.resize(np.arange(n), width)
        index = torch.from_numpy(which[fill])
        arguments = (torch.from_numpy(points[fill]), *(array[index] for array in self.data.values()))
        if width not in self._batched:
            batched = torch.vmap(self._value_and_grad)
            is_told = self._one_by_one in self._batched.values()
            self._batched[width] = capture(batched, *arguments, otherwise=self._one_by_one, is_told=is_told)
        values, gradients = self._batched[width](*arguments)
        return values[:n].numpy(), gradients[:n].numpy()

    def _value_and_grad(self, u: torch.Tensor, *rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        gradient, value = torch.func.grad_and_value(self.density.log_prob)(u, self._named(rows))
        return value, gradient

    def _one_by_one(self, *arguments: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if self._single is None:
            self._single = capture(self._value_and_grad, *(a[0] for a in arguments), is_told=True)  # by the batch
        values, gradients = zip(*(self._single(*rows) for rows in zip(*arguments, strict=True)), strict=True)
        return torch.stack(values), torch.stack(gradients)

    def lifted(self, function: Callable[[dict[str, torch.Tensor], dict[str, Any]], Any], values: Mapping[str, np.ndarray]) -> Any:
        """Apply a function of one draw's values and its data set's arrays to values `(replication, draw, *site)`."""
        leading = next(iter(values.values())).shape[:2]
        flat = {("site", n): v.reshape(-1, *v.shape[2:]) for n, v in values.items()}
        flat |= {("data", n): np.repeat(a.numpy(), leading[1], axis=0) for n, a in self.data.items()}

        def one(both: Mapping[Any, torch.Tensor]) -> Any:
            sites = {name: value for (kind, name), value in both.items() if kind == "site"}
            return function(sites, self._named([both["data", n].to(a.dtype) for n, a in self.data.items()]))

        results = over_draws(one, flat, block=1024)  # type: ignore[arg-type]
        if isinstance(results, dict):
            return {name: array.reshape(*leading, *array.shape[1:]) for name, array in results.items()}
        return results.reshape(*leading, *results.shape[1:])


class Chains:
    """A NUTS chain for each replication, with the starts and adaptation of the method, that can be extended.

    Args:
        replications: The densities.
        method: Method whose warm-up, target acceptance and tree depth are used.
        seeds: Seeds, with a branch for each replication.
    """

    def __init__(self, replications: Replications, method: NUTS, seeds: Seeds) -> None:
        self.replications, self.method = replications, method
        self._seeds = [seeds.child("replication", i) for i in range(len(replications))]
        self.latest: dict[int, Snapshot] = {}

    def draws(self, n_draws: int, *, what: str, progress: bool) -> np.ndarray:
        """Return the first `n_draws` draws of each chain, `(replication, draw, size)`; existing draws are reused."""
        replications, method = self.replications, self.method
        bar = tqdm(
            total=len(replications) * (method.n_warmup + n_draws),
            initial=sum(snapshot.iteration for snapshot in self.latest.values()),
            desc=what,
            disable=None if progress else True,
            leave=False,
        )

        def watch(i: int, snapshot: Snapshot) -> None:
            self.latest[i] = snapshot
            bar.update()

        u = np.empty((len(replications), n_draws, replications.density.size))
        coroutines = [
            chain(
                self.latest[i] if i in self.latest else starting_point(replications.density.on(replications.arrays(i)), seed),
                u[i],
                n_warmup=method.n_warmup,
                target_accept=method.target_accept,
                max_depth=method.max_tree_depth,
                rng=seed.child("trajectory").numpy(),
            )
            for i, seed in enumerate(self._seeds)
        ]
        with bar:
            drive_active(coroutines, replications.value_and_grad, watch)
        return u
