"""Posteriors of positions with parameters for each unit, and positions of new units by optimisation with the map fixed."""

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pyro.distributions as dist
import torch

from latentlab.errors import ModelError
from latentlab.models.architectures.multilayer import Multilayer
from latentlab.models.gplvm_starts import embedding
from latentlab.models.posteriors import POSTERIORS, Diagonal, Tensors

N_CANDIDATES = 3
"""Number of starting positions of a new unit."""
N_STEPS = 150
"""Number of steps of each of the two optimisations of a new unit: of its position, and then of its posterior."""
LEARNING_RATE = 0.05
N_NORMALS = 16
"""Smallest number of fixed normal draws for expectations under the posterior of a new unit; at least 4 for each dimension."""
MOST_ROWS = 5_000
"""Largest number of units for starts other than `pca`, which need all distances."""
SPREAD = 0.1
"""Initial standard deviation of a position at its start; units without a start have 1."""

NAMES = {"encoder_loc": "z_loc", "encoder_scale": "z_log_scale", "encoder_cholesky": "z_cholesky"}
"""Parameters of each unit by the output of an encoder that they replace; a Cholesky factor has the logs of its diagonal first."""

NO_NUMBERS = "SparseGPLVM: positions without an encoder need the numbers of their units, `row`."

LogJoint = Callable[[torch.Tensor], torch.Tensor]


class Point(Diagonal):
    """Point estimate: all probability at one position."""

    heads: Mapping[str, str] = {"encoder_loc": "latent"}

    def distribution(self, outputs: Sequence[torch.Tensor], values: Tensors) -> dist.TorchDistribution:
        """Distribution of the positions, batch shape `(..., unit)`."""
        return dist.Delta(outputs[0]).to_event(1)


SHAPES: Mapping[str, type[Diagonal]] = {"point": Point, "diagonal": POSTERIORS["diagonal"], "full": POSTERIORS["full"]}


class Guide:
    """Posteriors of the positions: parameters for each unit of the fit, or a network from rows to parameters.

    Args:
        shape: The posterior, one of `SHAPES`.
        widths: Sizes of the hidden layers of the encoder; None for parameters of each unit.
    """

    def __init__(self, shape: Diagonal, widths: Sequence[int] | None) -> None:
        self.shape, self.sizes = shape, shape.sizes()
        self.names = {head: NAMES[head] for head in shape.heads}
        self.encoder: Multilayer | None = None
        self.dims: dict[str, tuple[str, ...]] = {name: ("row", shape.heads[head]) for head, name in self.names.items()}
        if widths is not None:
            inputs = {"x": "feature", "missing": "feature"}
            self.encoder = Multilayer("encoder", inputs, dict(shape.heads), widths, "tanh")
            self.dims = self.encoder.dims

    def starts(
        self, x: torch.Tensor, z: torch.Tensor, row: torch.Tensor | None, n_unit: int | None
    ) -> Callable[[str], torch.Tensor]:
        """Return a function that computes the start of a parameter, given the rows and their starting positions z."""
        if self.encoder is not None:
            return self.encoder.starts({**self.sizes, **self.encoder.sizes, "feature": x.shape[1]})
        if row is None or n_unit is None:
            raise ModelError(NO_NUMBERS)

        def of_units(name: str) -> torch.Tensor:
            if name == "z_loc":
                return torch.zeros(n_unit, z.shape[1], dtype=torch.float64).index_copy(0, row, z)
            value = torch.zeros(n_unit, self.sizes[self.dims[name][1]], dtype=torch.float64)
            value[row, : z.shape[1]] = math.log(SPREAD)
            return value

        return of_units

    def distribution(
        self, x: torch.Tensor, mask: torch.Tensor | None, row: torch.Tensor | None, values: Tensors
    ) -> dist.TorchDistribution:
        """Posterior of the units with these rows: numbers `row` of units of the fit, or data x for an encoder."""
        if self.encoder is None:
            if row is None:
                raise ModelError(NO_NUMBERS)
            return self.shape.distribution([torch.index_select(values[name], 0, row) for name in self.names.values()], values)
        inputs = {"x": x} if mask is None else {"x": torch.where(mask, x, 0.0), "missing": (~mask).to(x.dtype)}
        return self.shape.distribution(self.encoder(inputs, values), values)


def starting_positions(x: torch.Tensor, mask: torch.Tensor | None, n_latent: int, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Start at an embedding: positions `(unit, latent)` with variance 1, and the embedding's spreads `(latent,)`.

    The mean square of the spreads is 1. Missing entries are at the mean of their column. Columns that the data do not determine
    are random.
    """
    rng = np.random.default_rng(int(torch.randint(2**31, ())))
    rows, observed = x.detach().double().numpy(), np.ones(x.shape, bool) if mask is None else mask.numpy()
    centred = np.where(observed, rows - np.where(observed, rows, 0.0).sum(0) / np.maximum(observed.sum(0), 1), 0.0)
    z = embedding(name, centred, n_latent, rng)
    z = z - z.mean(0)
    spread = np.maximum(z.std(0), 1e-3 * max(float(z.std()), 1e-12))
    z = z / spread + 0.01 * rng.standard_normal(z.shape)
    return torch.from_numpy(z), torch.from_numpy(spread / np.sqrt((spread**2).mean()))


def spread_out(z: torch.Tensor, n: int) -> torch.Tensor:
    """Return n of the positions by the seeding of k-means++; random ones are added if there are fewer."""
    from sklearn.cluster import kmeans_plusplus

    seed = int(torch.randint(2**31, ()))
    rng = np.random.default_rng(seed)
    chosen = z.detach().numpy()
    if len(chosen) > MOST_ROWS:
        chosen = chosen[rng.choice(len(chosen), MOST_ROWS, replace=False)]
    found = kmeans_plusplus(chosen, min(n, len(chosen)), random_state=seed)[0]
    more = rng.standard_normal((n - len(found), z.shape[1]))
    return torch.from_numpy(np.concatenate([found, more]))


def placed(log_joint: LogJoint, candidates: torch.Tensor, n_units: int, shape: Diagonal) -> dist.TorchDistribution:
    """Posterior of new units that maximises the lower bound with the map fixed; deterministic, each unit on its own.

    The positions with the largest joint density start a search for its maximum. The best maximum of a unit starts that of its
    posterior, whose expectation is over fixed draws.

    Args:
        log_joint: Positions `(draw, unit, latent)` -> log p(x_n, z_n), `(draw, unit)`.
        candidates: Possible starts, `(candidate, latent)`.
        n_units: Number of units n.
        shape: The posterior.
    """
    q = candidates.shape[1]
    with torch.no_grad():
        levels = torch.cat([log_joint(z.expand(1, n_units, q)) for z in candidates])
        best = torch.topk(levels, min(N_CANDIDATES, len(candidates)), dim=0).indices
    z = _descended([candidates[best]], lambda z: -log_joint(z).sum())[0]
    with torch.no_grad():
        which = log_joint(z).argmax(0)
        z = z[which, torch.arange(n_units)]
    if isinstance(shape, Point):
        return shape.distribution([z], {})
    width = sum(shape.sizes()[dim] for dim in shape.heads.values()) - q
    entries = torch.zeros(n_units, width, dtype=z.dtype)
    entries[:, :q] = math.log(SPREAD)
    normals = _normals(q)

    def loss(loc: torch.Tensor, entries: torch.Tensor) -> torch.Tensor:
        posterior = shape.distribution([loc, entries], {})
        is_full = isinstance(posterior, dist.MultivariateNormal)
        factor = posterior.scale_tril if is_full else torch.diag_embed(posterior.stddev)
        draws = loc + torch.einsum("nij,sj->sni", factor, normals)
        return -(log_joint(draws).mean(0) + torch.log(torch.diagonal(factor, dim1=-2, dim2=-1)).sum(-1)).sum()

    return shape.distribution(_descended([z, entries], loss), {})


@torch.enable_grad()
def _descended(values: Sequence[torch.Tensor], loss: Callable[..., torch.Tensor]) -> list[torch.Tensor]:
    """Minimise a sum over units by Adam, whose steps for a unit do not depend on the other units."""
    leaves = [value.detach().clone().requires_grad_() for value in values]
    optimiser = torch.optim.Adam(leaves, lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, N_STEPS)
    for _ in range(N_STEPS):
        gradients = torch.autograd.grad(loss(*leaves), leaves)
        for leaf, gradient in zip(leaves, gradients, strict=True):
            leaf.grad = gradient
        optimiser.step()
        schedule.step()
    return [leaf.detach() for leaf in leaves]


def _normals(n_latent: int) -> torch.Tensor:
    """Fixed draws of N(0, I), in pairs of opposite sign, whose covariance is I: the mean of quadratic functions is exact."""
    half = np.random.default_rng(0).standard_normal((max(N_NORMALS, 4 * n_latent) // 2, n_latent))
    half = np.linalg.qr(half)[0] * np.sqrt(len(half))
    return torch.from_numpy(np.concatenate([half, -half]))
