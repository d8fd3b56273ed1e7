"""Deterministic autoencoder: the low-dimensional code from which a network reconstructs the data."""

import itertools
import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import numpy as np
from annotated_types import Ge, Gt

from latentlab.embeddings.entry import at_most
from latentlab.errors import ConfigError, InferenceError
from latentlab.seeds import Seeds, isolated, one_thread

MAX_ITER = 5000
"""Largest number of L-BFGS steps of the linear autoencoder, which converges much earlier."""
TOLERANCE = 1e-10
"""Largest gradient at which L-BFGS stops for the linear autoencoder, with the data scaled to mean variance 1."""
RANK = 1e-10
"""Share of the largest singular value below which a singular value counts as zero."""

Widths = list[Annotated[int, Ge(1)]] | tuple[Annotated[int, Ge(1)], ...]


def autoencoder(  # one keyword for each user option
    x: np.ndarray,
    n_latent: int,
    *,
    seed: int,
    notes: list[str],
    hidden: Widths = (64,),
    n_epochs: Annotated[int, Ge(1)] = 200,
    batch_size: Annotated[int, Ge(1)] = 128,
    learning_rate: Annotated[float, Gt(0)] = 1e-3,
    activation: Literal["relu", "tanh", "softplus", "elu"] = "relu",
) -> np.ndarray:
    r"""Code of an autoencoder: the `n_latent` numbers of the bottleneck layer for each unit.

    $\min_{f, g} \sum_n |x_n - g(f(x_n))|^2$ with an encoder network f and a decoder network g of mirrored architecture. The
    encoder has hidden layers of the widths `hidden`, the decoder the same in reverse order. An activation follows each hidden
    layer, but not the code. Columns are centred and scaled by one common factor, so that origin and unit do not matter. The
    optimiser is Adam with step size `learning_rate` on shuffled batches, in float64. It stops after `n_epochs` epochs without a
    test of convergence.

    Without hidden layers (`hidden: []`) the network is linear, and L-BFGS fits it to all units until convergence. The code then
    spans the subspace of the first `n_latent` principal components, with axes that are neither orthogonal nor ordered. In this
    case `n_epochs`, `batch_size`, `learning_rate` and `activation` have no effect.

    Args:
        x: Table `(unit, feature)`.
        n_latent: Number of columns, smaller than the numbers of features and units.
        seed: Seed of the initial weights and of the batches.
        notes: List to which a note is appended if the linear network did not converge.
        hidden: Widths of the encoder's layers between data and code.
        n_epochs: Number of passes over the data.
        batch_size: Number of units in a step.
        learning_rate: Step size of Adam.
        activation: Activation between the layers: `relu`, `tanh`, `softplus` or `elu`.

    References:
        Baldi & Hornik (1989), Neural networks and principal component analysis, Neural Networks 2:53. Hinton & Salakhutdinov
        (2006), Reducing the dimensionality of data with neural networks, Science 313:504.
    """
    import torch

    n_units, n_features = x.shape
    if n_features < 2:
        raise ConfigError("embedding 'autoencoder' needs at least 2 features; the data have 1. Leave out the embedding.")
    reason = f"there are {n_units} units of {n_features} features"
    at_most("autoencoder", "n_latent", n_latent, min(n_features, n_units) - 1, reason)
    centred = x - x.mean(axis=0)
    largest = np.abs(centred).max()
    scaled = centred / largest
    scaled /= np.sqrt((scaled**2).mean())
    with isolated(Seeds(seed)), one_thread(), torch.enable_grad():
        data = torch.from_numpy(scaled)
        inputs = data if hidden else torch.from_numpy(_whitened(scaled))
        widths = [*hidden, n_latent]
        encoder = _network([inputs.shape[1], *widths], activation)
        decoder = _network([*widths[::-1], n_features], activation)
        network = torch.nn.Sequential(encoder, decoder)
        if hidden:
            _adam(network, data, n_epochs, batch_size, learning_rate)
        else:
            _lbfgs(network, inputs, data, notes)
        with torch.no_grad():
            code = encoder(inputs).numpy()
    if not np.isfinite(code).all():
        raise InferenceError("embedding 'autoencoder': the code is not finite; set a smaller `learning_rate`.")
    return code


def _whitened(x: np.ndarray) -> np.ndarray:
    """Whiten the columns of `x`; linear encoders of them are linear encoders of `x`, and converge faster."""
    u, s, _ = np.linalg.svd(x, full_matrices=False)
    return u[:, s > RANK * s[0]] * np.sqrt(len(x))


def _network(widths: Sequence[int], activation: str) -> Any:
    import torch

    kinds = {"relu": torch.nn.ReLU, "tanh": torch.nn.Tanh, "softplus": torch.nn.Softplus, "elu": torch.nn.ELU}
    layers: list[Any] = []
    for n_in, n_out in itertools.pairwise(widths):
        layers += [torch.nn.Linear(n_in, n_out), kinds[activation]()]
    return torch.nn.Sequential(*layers[:-1])


def _adam(network: Any, data: Any, n_epochs: int, batch_size: int, learning_rate: float) -> None:
    import torch

    optimizer = torch.optim.Adam(network.parameters(), lr=learning_rate)
    for epoch in range(n_epochs):
        for batch in torch.randperm(len(data)).split(batch_size):
            rows = data[batch]
            optimizer.zero_grad()
            loss = ((network(rows) - rows) ** 2).sum(dim=1).mean()
            if not torch.isfinite(loss):
                raise InferenceError(
                    f"embedding 'autoencoder': the loss is {loss.item()} in epoch {epoch + 1} of {n_epochs}; "
                    "set a smaller `learning_rate`."
                )
            loss.backward()
            optimizer.step()


def _lbfgs(network: Any, inputs: Any, data: Any, notes: list[str]) -> None:
    import torch

    optimizer = torch.optim.LBFGS(
        network.parameters(),
        max_iter=MAX_ITER,
        max_eval=2 * MAX_ITER,
        tolerance_grad=TOLERANCE,
        tolerance_change=0.0,
        history_size=50,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Any:
        optimizer.zero_grad()
        loss = ((network(inputs) - data) ** 2).sum(dim=1).mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    closure()
    largest = max(parameter.grad.abs().max().item() for parameter in network.parameters())
    if not largest <= math.sqrt(TOLERANCE):
        notes.append(f"the linear autoencoder did not converge; the largest gradient is {largest:.2g}")
