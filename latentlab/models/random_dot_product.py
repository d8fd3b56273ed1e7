r"""Random dot product graph: the log-odds of an edge are an intercept plus the inner product of its nodes' positions."""

from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from scipy.special import expit

from latentlab.data.dataset import Dataset
from latentlab.errors import DataError
from latentlab.models.base import Arrays, LatentModel, Position
from latentlab.settings import Count, Positive, settings
from latentlab.symmetry.groups import Orthogonal


@settings
class RandomDotProduct(LatentModel):
    r"""Random dot product graph with a logit link: the inner product of positions raises the odds of an edge.

    $$ \alpha \sim N(0, \text{alpha\_scale}^2), \quad z_i \sim N(0, \text{z\_scale}^2 I_K), \quad
       y_{ij} \mid z \sim \text{Bernoulli}(\text{logit}^{-1}(\alpha + z_i^T z_j)) $$

    z (node, latent), alpha (); y_ij is 1 if the nodes i and j are joined, for each pair i < j (i != j in a directed graph).
    Scales are standard deviations. alpha and the products z z^T are identified; z is identified up to an orthogonal
    transformation. z z^T is positive semi-definite, so the model describes only assortative graphs, whose groups have
    many edges within them.

    Args:
        n_latent: Latent dimensions K.
        alpha_scale: Prior standard deviation of alpha, the log-odds of an edge between nodes at the origin.
        z_scale: Prior standard deviation of the positions.

    Raises:
        ConfigError: A setting is out of its range.

    References:
        Hoff (2007), Modeling homophily and stochastic equivalence in symmetric relational data, NIPS. Athreya et al. (2018),
        Statistical inference on random dot product graphs: a survey, JMLR 18(226).
    """

    name = "random_dot_product"
    dims = {"alpha": (), "z": ("node", "latent")}
    positions = (Position("z"),)
    symmetry = Orthogonal(units=("node",))
    methods = ("nuts", "chees", "svi", "map")

    n_latent: Count
    alpha_scale: Positive = 2.0
    z_scale: Positive = 1.0

    def model(self, edge: torch.Tensor, source: torch.Tensor, target: torch.Tensor, n_node: int) -> None:
        alpha = pyro.sample("alpha", dist.Normal(torch.zeros(()), self.alpha_scale))
        with pyro.plate("node", n_node):
            z = pyro.sample("z", dist.Normal(torch.zeros(self.n_latent), self.z_scale).to_event(1))
        with pyro.plate("pair", len(edge)):
            pyro.sample("edge", dist.Bernoulli(logits=alpha + (z[source] * z[target]).sum(-1)), obs=edge)

    def check(self, dataset: Dataset) -> None:
        """Reject data that are not a graph, or whose edges have values other than 0 and 1.

        Raises:
            DataError: Names the arrays and indices of the data, or the pair and its value.
        """
        what = f"{type(self).__name__}: {dataset.name}"
        if list(dataset.arrays) != ["edge"] or dataset.x.ndim != 1 or set(dataset.index) != {"source", "target"}:
            raise DataError(
                f"{what} must have one array 'edge' with dims ('pair',) and the indices 'source' and 'target' of nodes; got "
                f"{', '.join(map(repr, [*dataset.arrays, *dataset.index]))}; build such data by `edges`."
            )
        invalid = np.flatnonzero(~np.isin(dataset.x, (0, 1)))
        if len(invalid):
            pair = " and ".join(repr(str(names[invalid[0]])) for names in dataset.point_names().values())
            value = dataset.x[invalid[0]]
            raise DataError(f"{what}: edges must be 0 or 1; got {value:g} for {pair}. Weighted edges are not supported.")

    def initialize(self, arrays: Arrays, rng: np.random.Generator) -> dict[str, Any]:
        """Adjacency spectral embedding of the centred graph, randomly rotated or reflected; alpha fits the density of edges."""
        y, i, j, n, K = *(arrays[name].numpy() for name in ("edge", "source", "target")), arrays["n_node"], self.n_latent
        density = float(np.clip(y.mean(), 1 / (len(y) + 1), 1 - 1 / (len(y) + 1)))
        table, listed = np.zeros((n, n)), np.zeros((n, n))
        np.add.at(table, (i, j), y - density)
        np.add.at(listed, (i, j), 1.0)
        values, vectors = np.linalg.eigh((table + table.T) / np.maximum(listed + listed.T, 1.0))
        k = min(K, n)
        turn, _ = np.linalg.qr(rng.standard_normal((K, K)))
        z = np.zeros((n, K))
        z[:, :k] = vectors[:, ::-1][:, :k] * np.sqrt(np.maximum(values[::-1][:k], 0.0))
        return {"alpha": torch.tensor(np.log(density / (1 - density))), "z": torch.tensor(z @ turn)}

    def simulate(self, rng: np.random.Generator, n_units: int) -> Dataset:
        """Draw the sites from their priors, and an undirected graph of `n_units` nodes."""
        alpha = self.alpha_scale * rng.standard_normal()
        z = self.z_scale * rng.standard_normal((n_units, self.n_latent))
        i, j = np.triu_indices(n_units, 1)
        edge = (rng.random(len(i)) < expit(alpha + (z[i] * z[j]).sum(axis=1))).astype(np.float64)
        return Dataset(
            {"edge": edge},
            dims={"edge": ("pair",)},
            units={"node": n_units},
            index={"source": ("pair", i, "node"), "target": ("pair", j, "node")},
            truth={"alpha": np.asarray(alpha), "z": z},
            truth_dims=dict(self.dims),
            name=f"simulated {self.name}",
        )
