r"""Variational autoencoders: one network maps positions to data, and another maps data to positions."""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Literal

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch.distributions import constraints

from latentlab.data.dataset import Dataset
from latentlab.errors import DataError
from latentlab.models.base import Arrays, Caution, LatentModel, Position, outliers, require_table
from latentlab.settings import Count, Positive, Sizes, settings
from latentlab.symmetry.groups import Orthogonal

Tensors = Mapping[str, torch.Tensor]

ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "relu": torch.relu,
    "tanh": torch.tanh,
    "softplus": torch.nn.functional.softplus,
}

BLOCK = 20_000
"""Number of positions decoded at once, which limits the memory of a bound with many samples."""
LEAST = 1e-2
"""Lower bound at the start: on the noise, as a share of the data's standard deviation; on rates; on probabilities and 1 - p."""
N_CLASSES = 3
"""Largest number of labels in simulated data."""


@settings
class VAE(LatentModel):
    r"""Variational autoencoder: a network decodes each position into the distribution of the unit's data.

    $$ z_n \sim N(0, I_q), \quad x_n \mid z_n \sim p(x \mid f(z_n)) $$

    f is a network with the hidden layers `hidden`; p is $N(f(z_n), \sigma^2 I)$ (`gaussian`), Bernoulli with logits $f(z_n)$,
    or Poisson with log rates $f(z_n)$. z (unit, latent) are the positions. The weights of both networks and sigma are parameters
    with point estimates. The encoder is the guide, $q(z_n \mid x_n) = N(m(x_n), \text{diag}\, s(x_n)^2)$. Its input contains 0
    for a missing entry and an indicator of missing entries. With `conditional` the units' labels are further inputs of both
    networks, so that the positions need not encode the labels.

    The joint density of z and the parameters is invariant under common rotations and reflections, O(q), of the positions and the
    decoder's first layer. In addition, a flexible decoder can invert any smooth map that preserves N(0, I). Positions and the
    distances between them are therefore not identified. The encoder's diagonal covariance favours some of these maps, but only
    through the bound. The distribution of x is identified, as is how well units can be distinguished. Dimensions whose encoder
    distribution equals the prior contain no information (`Fit.activity`).

    Args:
        n_latent: Latent dimensions q.
        hidden: Sizes of the decoder's hidden layers; without any the decoder is linear.
        likelihood: `gaussian`, `bernoulli` (zeros and ones) or `poisson` (counts).
        activation: `relu`, `tanh` or `softplus`.
        beta: Weight of the Kullback-Leibler term in the objective; 1 gives the evidence lower bound.
        encoder_hidden: Sizes of the encoder's hidden layers; those of the decoder in reverse order if None.
        noise: Standard deviation of the Gaussian noise: one `shared` by all features, or one for each `feature`.
        conditional: Whether the units' labels are inputs of both networks.

    Raises:
        ConfigError: A setting is out of its range.

    References:
        Kingma & Welling (2014), Auto-Encoding Variational Bayes, ICLR.
        Rezende, Mohamed & Wierstra (2014), Stochastic Backpropagation and Approximate Inference in Deep Generative Models, ICML.
        Higgins et al. (2017), beta-VAE, ICLR. Burda, Grosse & Salakhutdinov (2016), Importance Weighted Autoencoders, ICLR.
        Sohn, Lee & Yan (2015), Learning Structured Output Representation using Deep Conditional Generative Models, NeurIPS.

    Example:
        >>> model = VAE(2, hidden=(32,))
        >>> model.parameters["decoder_1_z"], model.parameters["decoder_2_h"]
        (('latent', 'decoder_1'), ('decoder_1', 'feature'))
    """

    name = "vae"
    dims = {"z": ("unit", "latent")}
    positions = (Position("z"),)
    symmetry = Orthogonal()
    methods = ("svi",)

    n_latent: Count
    hidden: Sizes = (128,)
    likelihood: Literal["gaussian", "bernoulli", "poisson"] = "gaussian"
    activation: Literal["relu", "tanh", "softplus"] = "relu"
    beta: Positive = 1.0
    encoder_hidden: Sizes | None = None
    noise: Literal["shared", "feature"] = "shared"
    conditional: bool = False

    def __post_init__(self) -> None:
        self.kl_weight = self.beta
        self.parameters = {**self._decoder_dims(), **self._encoder_dims()}

    # -- names of the layers: `LAYER_INPUT` are weights, `LAYER_b` offsets

    def _decoder_dims(self) -> dict[str, tuple[str, ...]]:
        inputs = {"z": "latent", **({"labels": "label"} if self.conditional else {})}
        layer_dims, last = _layers("decoder", inputs, len(self.hidden))
        layer_dims |= _layer(f"decoder_{len(self.hidden) + 1}", last, "feature")
        if self.likelihood == "gaussian":
            layer_dims["sigma"] = ("feature",) if self.noise == "feature" else ()
        return layer_dims

    def _encoder_dims(self) -> dict[str, tuple[str, ...]]:
        inputs = {"x": "feature", "missing": "feature", **({"labels": "label"} if self.conditional else {})}
        layer_dims, last = _layers("encoder", inputs, len(self._encoder_sizes()))
        return layer_dims | _layer("encoder_loc", last, "latent") | _layer("encoder_scale", last, "axis")

    def _encoder_sizes(self) -> tuple[int, ...]:
        return self.hidden[::-1] if self.encoder_hidden is None else self.encoder_hidden

    def _dim_sizes(self, n_features: int, n_labels: int) -> dict[str, int]:
        layers = {"decoder": self.hidden, "encoder": self._encoder_sizes()}
        sizes = {f"{side}_{i}": size for side, widths in layers.items() for i, size in enumerate(widths, 1)}
        return {**sizes, "latent": self.n_latent, "axis": self.n_latent, "feature": n_features, "label": n_labels}

    # -- the program

    def model(self, x: torch.Tensor, mask: torch.Tensor | None = None, labels: torch.Tensor | None = None) -> None:
        values = self._registered(self._decoder_dims(), x, mask, labels)
        with pyro.plate("unit", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(self.n_latent), 1.0).to_event(1))
            distribution = self._data_distribution(z, labels, values)
            pyro.sample("x", (distribution if mask is None else distribution.mask(mask)).to_event(1), obs=x)

    def guide(self, x: torch.Tensor, mask: torch.Tensor | None = None, labels: torch.Tensor | None = None) -> None:
        """Sample the positions from the encoder."""
        values = self._registered(self._encoder_dims(), x, mask, labels)
        with pyro.plate("unit", len(x)):
            pyro.sample("z", self.latents({"x": x, "mask": mask, "labels": labels}, **values))

    def _registered(
        self, dims: Mapping[str, tuple[str, ...]], x: torch.Tensor, mask: torch.Tensor | None, labels: torch.Tensor | None
    ) -> dict[str, torch.Tensor]:
        """Register Pyro parameters; weights start at random, the decoder's last offset and sigma at moments of the data."""
        sizes = self._dim_sizes(x.shape[1], 0 if labels is None else labels.shape[1])
        last = f"decoder_{len(self.hidden) + 1}_b"

        def start(name: str) -> torch.Tensor:
            shape = tuple(sizes[dim] for dim in dims[name])
            if name == "sigma":
                return _variance(x, mask).mean().sqrt() if not shape else _variance(x, mask).sqrt()
            if name == last:
                return _link(self.likelihood, _mean(x, mask))
            if len(shape) == 1 or name.endswith("_missing"):
                return torch.zeros(shape)
            return torch.randn(shape) * math.sqrt(2.0 / sum(shape))

        bounds = {"sigma": constraints.positive}
        return {name: pyro.param(name, partial(start, name), bounds.get(name, constraints.real)) for name in dims}

    def _data_distribution(self, z: torch.Tensor, labels: torch.Tensor | None, values: Tensors) -> dist.TorchDistribution:
        """Distribution of the data given positions and labels; the features are independent."""
        h: dict[str, torch.Tensor] = {"z": z, **({} if labels is None or not self.conditional else {"labels": labels})}
        h = self._hidden_output("decoder", h, len(self.hidden), values)
        out = _affine(f"decoder_{len(self.hidden) + 1}", h, values)
        if self.likelihood == "gaussian":
            return dist.Normal(out, values["sigma"])
        return dist.Bernoulli(logits=out) if self.likelihood == "bernoulli" else dist.Poisson(torch.exp(out))

    def _hidden_output(self, side: str, h: dict[str, torch.Tensor], n_layers: int, values: Tensors) -> dict[str, torch.Tensor]:
        for i in range(1, n_layers + 1):
            h = {"h": ACTIVATIONS[self.activation](_affine(f"{side}_{i}", h, values))}
        return h

    # -- the encoder

    def latents(self, arrays: Arrays, **values: torch.Tensor) -> dist.Independent:
        """Encoder distribution N(m(x), diag s(x)^2) of each unit, of the training data or new."""
        x, mask, labels = arrays["x"], arrays.get("mask"), arrays.get("labels")
        inputs = torch.log1p(x) if self.likelihood == "poisson" else x
        h = {"x": inputs} if mask is None else {"x": torch.where(mask, inputs, 0.0), "missing": (~mask).to(x.dtype)}
        if self.conditional:
            h["labels"] = labels
        h = self._hidden_output("encoder", h, len(self._encoder_sizes()), values)
        loc, log_scale = _affine("encoder_loc", h, values), _affine("encoder_scale", h, values)
        return dist.Normal(loc, torch.exp(log_scale)).to_event(1)

    def bound(self, arrays: Arrays, n_samples: int, **values: torch.Tensor) -> torch.Tensor:
        r"""Importance-weighted bound $\log \frac1S \sum_s p(x_n, z_{ns}) / q(z_{ns} \mid x_n)$, $z_{ns} \sim q$, `(unit,)`.

        Its expectation is at most log p(x_n), and increases with the number of samples.
        """
        x, mask, labels = arrays["x"], arrays.get("mask"), arrays.get("labels")
        q, prior = self.latents(arrays, **values), dist.Normal(torch.zeros(self.n_latent), 1.0).to_event(1)
        block, parts = max(1, BLOCK // len(x)), []
        for first in range(0, n_samples, block):
            z = q.sample((min(block, n_samples - first),))
            distribution = self._data_distribution(z, labels, values)
            fit = (distribution if mask is None else distribution.mask(mask)).to_event(1).log_prob(x)
            parts.append(fit + prior.log_prob(z) - q.log_prob(z))
        return torch.logsumexp(torch.cat(parts), dim=0) - math.log(n_samples)

    def imputation(self, arrays: Arrays, **values: torch.Tensor) -> dist.TorchDistribution:
        """Distribution of x given z; the features are independent given z, so the observed entries do not enter."""
        return self._data_distribution(values["z"], arrays.get("labels"), values)

    # -- data

    def takes(self, argument: str) -> bool:
        """Whether the program has an argument of this name; `labels` only with `conditional`."""
        return super().takes(argument) and (argument != "labels" or self.conditional)

    def cautions(self, dataset: Dataset) -> list[Caution]:
        return outliers(dataset) if self.likelihood == "gaussian" else []

    def check(self, dataset: Dataset) -> None:
        """Reject data that are not a table, values outside the support, and constant columns that make the noise zero.

        Raises:
            DataError: Names the entry, or what is needed instead.
        """
        self.check_new(dataset)
        what, x = f"VAE: {dataset.name}", dataset.x
        observed = ~np.isnan(x)
        if not observed.any(0).all():
            raise DataError(f"{what}: column {str(dataset.features[~observed.any(0)][0])!r} has no observed entry; remove it.")
        if self.conditional and dataset.labels is None:
            raise DataError(f"{what}: `conditional` needs a label for each unit; the data have no labels.")
        constant = (np.nanmin(x, 0) == np.nanmax(x, 0)) & (self.likelihood == "gaussian" and dataset.n_units > 1)
        if constant.all() or (self.noise == "feature" and constant.any()):
            name = str(dataset.features[constant][0])
            raise DataError(
                f"{what}: column {name!r} is constant, so its noise variance cannot be estimated; "
                "drop constant columns by `drop_constant: true`."
            )

    def check_new(self, dataset: Dataset) -> None:
        """Reject data that are not a table, and values outside the support of the likelihood.

        Raises:
            DataError: Names the entry.
        """
        what, x = f"VAE: {dataset.name}", dataset.x
        require_table(what, dataset, hint=", an image as one row")
        observed = ~np.isnan(x)
        support, invalid = {
            "gaussian": ("numbers", np.zeros_like(observed)),
            "bernoulli": ("0 or 1", observed & (x != 0) & (x != 1)),
            "poisson": ("counts (whole numbers from 0)", observed & ((x < 0) | (x != np.round(x)))),
        }[self.likelihood]
        if invalid.any():
            i, j = np.argwhere(invalid)[0]
            hint = "; load the data with `standardize: false`" if dataset.transform is not None else ""
            raise DataError(
                f"{what}: values must be {support} for the likelihood {self.likelihood!r}; got {x[i, j]:.6g} for unit "
                f"{dataset.units[i]}, column {str(dataset.features[j])!r}{hint}."
            )

    def simulate(self, rng: np.random.Generator, n_units: int, n_features: int = 10) -> Dataset:
        """Draw data from a decoder with random weights; the truth contains the positions and the decoder's parameters."""
        classes = np.arange(min(N_CLASSES, n_units))
        sizes = self._dim_sizes(n_features, len(classes))
        dims = self._decoder_dims()
        values = {}
        for name, names in dims.items():
            shape = tuple(sizes[dim] for dim in names)
            fan_in = shape[0] if len(shape) == 2 and not name.endswith(("_z", "_labels")) else 1
            values[name] = rng.uniform(0.2, 0.6, shape) if name == "sigma" else rng.standard_normal(shape) / math.sqrt(fan_in)
        z = rng.standard_normal((n_units, self.n_latent))
        which = rng.permutation(np.arange(n_units) % len(classes))
        tensors = {name: torch.tensor(value) for name, value in values.items()}
        labels = torch.tensor((which[:, None] == classes).astype(np.float64)) if self.conditional else None
        distribution = self._data_distribution(torch.tensor(z), labels, tensors)
        if self.likelihood == "gaussian":
            x = distribution.mean.numpy() + values["sigma"] * rng.standard_normal((n_units, n_features))
        else:
            mean = distribution.mean.numpy()
            x = (rng.binomial(1, mean) if self.likelihood == "bernoulli" else rng.poisson(mean)).astype(np.float64)
        dataset = Dataset(
            {"x": x}, dims={"x": ("unit", "feature")}, name="simulated vae", labels=which if self.conditional else None
        )
        return replace(dataset, truth={"z": z, **values}, truth_dims={"z": ("unit", "latent"), **dims})


def _layer(name: str, inputs: Mapping[str, str], size: str) -> dict[str, tuple[str, ...]]:
    """Dims of a layer's weights, one matrix for each input, and of its offsets."""
    return {**{f"{name}_{source}": (dim, size) for source, dim in inputs.items()}, f"{name}_b": (size,)}


def _layers(side: str, inputs: Mapping[str, str], n_layers: int) -> tuple[dict[str, tuple[str, ...]], Mapping[str, str]]:
    """Dims of the hidden layers of the encoder or decoder, and the inputs of the layer after them."""
    found: dict[str, tuple[str, ...]] = {}
    for i in range(1, n_layers + 1):
        found |= _layer(f"{side}_{i}", inputs, f"{side}_{i}")
        inputs = {"h": f"{side}_{i}"}
    return found, inputs


def _affine(layer: str, inputs: Tensors, values: Tensors) -> torch.Tensor:
    out = values[f"{layer}_b"]
    for name, value in inputs.items():
        out = out + value @ values[f"{layer}_{name}"]
    return out


def _mean(x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    observed = torch.ones_like(x) if mask is None else mask.to(x.dtype)
    return (observed * x).sum(0) / observed.sum(0).clamp(min=1.0)


def _variance(x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Variance of each feature, at least `LEAST`^2 of the mean variance."""
    variance = _mean((x - _mean(x, mask)) ** 2, mask)
    return torch.maximum(variance, LEAST**2 * variance.mean()) + 1e-300


def _link(likelihood: str, mean: torch.Tensor) -> torch.Tensor:
    """Decoder output at which the data have this mean, clipped to the interior of the support."""
    if likelihood == "bernoulli":
        return torch.logit(mean.clamp(LEAST, 1.0 - LEAST))
    return torch.log(mean.clamp(min=LEAST)) if likelihood == "poisson" else mean.clone()
