r"""Variational autoencoders: one network maps positions to data, and another maps data to positions."""

import math
from collections.abc import Collection, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch.distributions import constraints

from latentlab.data.dataset import Dataset
from latentlab.errors import ConfigError
from latentlab.models.architectures.pair import MULTILAYER, Pair
from latentlab.models.base import Arrays, Caution, LatentModel, Position, outliers
from latentlab.models.flows import FlowSettings
from latentlab.models.likelihoods import LIKELIHOODS
from latentlab.models.posteriors import POSTERIORS
from latentlab.models.priors import PRIORS, divergences
from latentlab.models.vae_data import check_columns, check_values, checked_grid, simulated_parameters
from latentlab.seeds import forked, reseed
from latentlab.settings import Count, Numbers, Positive, Several, Sizes, settings
from latentlab.symmetry.group import Group
from latentlab.symmetry.groups import Identity, Orthogonal, SignedPermutation

Tensors = Mapping[str, torch.Tensor]

BLOCK = 20_000
"""Number of positions decoded at once, which limits the memory of a bound with many samples."""
N_CLASSES = 3
"""Largest number of labels in simulated data."""


@settings
class VAE(LatentModel):
    r"""Variational autoencoder: a network decodes each position into the distribution of the unit's data.

    $$ z_n \sim N(0, I_q), \quad x_n \mid z_n \sim p(x \mid f(z_n)) $$

    f is a network with the hidden layers `hidden`, or the network `decoder`; p is the `likelihood`, such as
    $N(f(z_n), \sigma^2 I)$ (`gaussian`), Bernoulli with logits $f(z_n)$, or Poisson with log rates $f(z_n)$. z (unit, latent) are
    the positions. The weights of both networks and sigma are parameters with point estimates. The encoder is the guide,
    $q(z_n \mid x_n) = N(m(x_n), \text{diag}\, s(x_n)^2)$. Its input contains 0 for a missing entry; that of the layers `hidden`
    also contains an indicator of missing entries. With `conditional` the units' labels are further inputs of both networks, so
    that the positions need not encode the labels. `prior` and `posterior` replace the two normal distributions of z.

    With a `normal` or a `mixture` prior, the joint density of z and the parameters is invariant under common rotations and
    reflections, O(q), of the positions, the mixture and the decoder's first layer. This layer is known for the layers `hidden`,
    for a built-in `decoder`, and for a `torch.nn.Sequential` that begins with `torch.nn.Linear`. For another decoder, for labels
    as inputs of one, and for a `vamp` or `flow` prior, the declared symmetry is trivial: any rotations that a network can absorb
    are not known by name. In addition, a flexible decoder can invert any smooth map that preserves the prior. Positions and the
    distances between them are therefore not identified. A flow that is the prior can itself absorb smooth maps. The encoder's
    distribution favours some of these maps, but only through the bound. The distribution of x is identified, as is how well units
    can be distinguished. Dimensions whose encoder distribution equals the prior contain no information (`Fit.activity`).

    Any other network is a `torch.nn.Module` that maps `(unit, input)` to `(unit, output)`. It must not depend on other units
    or on random numbers. The decoder's outputs are blocks of one number for each feature, to which a parameter `decoder_b` is
    added; `latentlab/models/likelihoods.py` lists the blocks. The encoder's outputs are the means, and the entries of the
    posterior's scale (`latentlab/models/posteriors.py`).

    Args:
        n_latent: Latent dimensions q.
        hidden: Sizes of the decoder's hidden layers; without any the decoder is linear.
        likelihood: `gaussian`, `bernoulli` (zeros and ones), `continuous_bernoulli` (numbers from 0 to 1), `poisson` or
            `negative_binomial` (counts), `categorical` (codes from 0) or `discretised_logistic` (values on a grid).
        activation: `relu`, `tanh` or `softplus`.
        beta: Weight of the Kullback-Leibler term in the objective; 1 gives the evidence lower bound.
        encoder_hidden: Sizes of the encoder's hidden layers; those of the decoder in reverse order if None.
        noise: Whether the scale of the noise (of `gaussian`, `negative_binomial` and `discretised_logistic`) is `shared` by all
            features, has one value for each `feature`, or is an output of the decoder for each `entry`.
        conditional: Whether the units' labels are inputs of both networks.
        encoder: `multilayer` (the layers `encoder_hidden`), another architecture by name or as `{name: ..., ...}` with its
            arguments, a function as `{factory: "package.module:function", ...}`, or a `torch.nn.Module`.
        decoder: `multilayer` (the layers `hidden`), or as `encoder`.
        prior: `normal`, a `mixture` of Gaussians, `vamp`, a mixture of the encoder's distributions of learnt inputs, or `flow`, a
            normalising flow.
        n_components: Number of components of the prior, for `mixture` and `vamp`.
        posterior: The encoder's distribution: normal with a `diagonal` or `full` covariance, or a normalising `flow`, which is
            `diagonal` at the start.
        flow: Transforms of the flows: a `spline` or an `affine` map of each dimension (`latentlab/models/flows.py`).
        n_transforms: Number of transforms of each flow.
        flow_hidden: Sizes of the hidden layers of each transform's network.
        n_context: Number of outputs of the encoder that are inputs of the posterior's flow.
        n_categories: Number of codes, for the likelihood `categorical`.
        grid: First and last value, for the likelihood `discretised_logistic`.
        bin_width: Distance between values, for the likelihood `discretised_logistic`.
        noise_floor: Lower bound on a Gaussian's standard deviation with noise `entry`, in the units of the data.

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
    likelihood: Literal[
        "gaussian", "bernoulli", "continuous_bernoulli", "poisson", "negative_binomial", "categorical", "discretised_logistic"
    ] = "gaussian"
    activation: Literal["relu", "tanh", "softplus"] = "relu"
    beta: Positive = 1.0
    encoder_hidden: Sizes | None = None
    noise: Literal["shared", "feature", "entry"] = "shared"
    conditional: bool = False
    encoder: Any = MULTILAYER
    decoder: Any = MULTILAYER
    prior: Literal["normal", "mixture", "vamp", "flow"] = "normal"
    n_components: Several = 10
    posterior: Literal["diagonal", "full", "flow"] = "diagonal"
    flow: Literal["spline", "affine"] = "spline"
    n_transforms: Count = 3
    flow_hidden: Sizes = (64, 64)
    n_context: Count = 8
    n_categories: Several | None = None
    grid: Numbers | None = None
    bin_width: Positive = 1.0
    noise_floor: Positive = 0.01

    def __post_init__(self) -> None:
        self.kl_weight = self.beta
        self._entries = LIKELIHOODS[self.likelihood](
            self.noise, self.noise_floor, self.n_categories or 2, checked_grid(self.likelihood, self.grid, self.bin_width),
            self.bin_width,
        )  # fmt: skip
        if (self.n_categories is None) == (self.likelihood == "categorical"):
            raise ConfigError(
                "VAE: `n_categories` must be set for the likelihood 'categorical', and only for it; got "
                f"n_categories={self.n_categories} with the likelihood {self.likelihood!r}."
            )
        if self.prior == "vamp" and self.conditional:
            raise ConfigError(
                "VAE: `prior` must be normal, mixture or flow with `conditional`, since learnt inputs have no label; got 'vamp'."
            )
        flows = FlowSettings(self.n_latent, self.flow, self.n_transforms, self.flow_hidden, self.activation, self.n_context)
        self._prior, self._posterior = PRIORS[self.prior](flows), POSTERIORS[self.posterior](flows)
        self._pair = Pair(
            n_latent=self.n_latent,
            widths={"decoder": self.hidden, "encoder": self.hidden[::-1] if self.encoder_hidden is None else self.encoder_hidden},
            activation=self.activation,
            conditional=self.conditional,
            n_codes=self._entries.n_inputs,
            n_blocks=self._entries.n_outputs,
            posterior=self._posterior,
            settings={"decoder": self.decoder, "encoder": self.encoder},
        )
        self.decoder, self.encoder = (self._pair.settings[side] for side in ("decoder", "encoder"))
        self.symmetry = self._symmetry()  # type: ignore[assignment]

    def _symmetry(self) -> Group:
        if self._prior.uses_encoder:  # the scales have the encoder's axes; the only axis can be reversed together with z
            return SignedPermutation() if self.n_latent == 1 and not self._pair.own else Identity()
        return Orthogonal() if self._prior.is_rotatable and self._pair.absorbs_rotations() else Identity()

    @property
    def parameters(self) -> Mapping[str, tuple[str, ...]]:  # type: ignore[override]
        """Dims of the parameters; those of torch modules are included once the size of the data is known."""
        return {**self._program_dims(), **self._guide_dims()}

    def _program_dims(self) -> dict[str, tuple[str, ...]]:
        """Dims of the parameters of the program: of the decoder, the noise and the prior."""
        encoder = self._guide_dims() if self._prior.uses_encoder else {}
        return {**self._pair.dims("decoder"), **self._entries.dims, **self._prior.dims, **encoder}

    def _guide_dims(self) -> dict[str, tuple[str, ...]]:
        """Dims of the parameters of the guide: of the encoder, and of the posterior's flow."""
        flows = [network.dims for network in self._posterior.networks.values()]
        return {name: names for dims in (self._pair.dims("encoder"), *flows) for name, names in dims.items()}

    # -- the program

    def model(self, x: torch.Tensor, mask: torch.Tensor | None = None, labels: torch.Tensor | None = None) -> None:
        self._pair.build(x.shape[1], labels)
        values = self._registered(self._program_dims(), x, mask, labels)
        with pyro.plate("unit", len(x)):
            z = pyro.sample("z", self._prior_of(x, values))
            distribution = self._data_distribution(z, labels, values)
            pyro.sample("x", (distribution if mask is None else distribution.mask(mask)).to_event(1), obs=x)

    def guide(self, x: torch.Tensor, mask: torch.Tensor | None = None, labels: torch.Tensor | None = None) -> None:
        """Sample the positions from the encoder."""
        self._pair.build(x.shape[1], labels)
        values = self._registered(self._guide_dims(), x, mask, labels)
        with pyro.plate("unit", len(x)):
            pyro.sample("z", self.latents({"x": x, "mask": mask, "labels": labels}, **values))

    def _registered(
        self, dims: Mapping[str, tuple[str, ...]], x: torch.Tensor, mask: torch.Tensor | None, labels: torch.Tensor | None
    ) -> dict[str, torch.Tensor]:
        """Register Pyro parameters; weights start at random, the decoder's last offset and the noise at moments of the data."""
        sizes = {**self._pair.sizes(x.shape[1], labels), "component": self.n_components}
        networks = {**self._pair.build(x.shape[1], labels), **self._prior.networks, **self._posterior.networks}
        starts = [(network.dims, network.starts(sizes)) for network in networks.values()]

        def start(name: str) -> torch.Tensor:
            if name == self._entries.parameter:
                return self._entries.start(x, mask)
            if name == self._pair.offset:
                return self._entries.offsets(x, mask)
            for names, start_of in starts:
                if name in names:
                    return start_of(name)
            return self._prior.start(name, tuple(sizes[dim] for dim in dims[name]), self._encoder_inputs(x, mask)["x"])

        bounds = {self._entries.parameter: constraints.positive}
        return {name: pyro.param(name, partial(start, name), bounds.get(name, constraints.real)) for name in dims}

    def _prior_of(self, x: torch.Tensor, values: Tensors) -> dist.TorchDistribution:
        def encode(inputs: torch.Tensor) -> dist.TorchDistribution:
            return self._posterior.distribution(self._pair.build(x.shape[1], None)["encoder"]({"x": inputs}, values), values)

        return self._prior.distribution(values, encode)

    def _data_distribution(self, z: torch.Tensor, labels: torch.Tensor | None, values: Tensors) -> dist.TorchDistribution:
        """Distribution of the data given positions and labels; the features are independent."""
        inputs: dict[str, torch.Tensor] = {"z": z, **({} if labels is None or not self.conditional else {"labels": labels})}
        (out,) = self._pair.built("decoder")(inputs, values)
        return self._entries.distribution(out + values["decoder_b"] if "decoder" in self._pair.own else out, values)

    # -- the encoder

    def latents(self, arrays: Arrays, **values: torch.Tensor) -> dist.TorchDistribution:
        """Encoder distribution of each unit, of the training data or new; its mean is m(x)."""
        x, mask, labels = arrays["x"], arrays.get("mask"), arrays.get("labels")
        inputs = self._encoder_inputs(x, mask)
        if self.conditional:
            inputs["labels"] = arrays["labels"]
        return self._posterior.distribution(self._pair.build(x.shape[1], labels)["encoder"](inputs, values), values)

    def _encoder_inputs(self, x: torch.Tensor, mask: torch.Tensor | None) -> dict[str, torch.Tensor]:
        """Transformed data, with 0 for missing entries, and an indicator of these for `multilayer`."""
        inputs = self._entries.inputs(x)
        if mask is None:
            return {"x": inputs}
        observed = mask.repeat(1, self._entries.n_inputs)
        missing = {} if "encoder" in self._pair.own else {"missing": (~mask).to(x.dtype)}
        return {"x": torch.where(observed, inputs, 0.0), **missing}

    def bound(self, arrays: Arrays, n_samples: int, **values: torch.Tensor) -> torch.Tensor:
        r"""Importance-weighted bound $\log \frac1S \sum_s p(x_n, z_{ns}) / q(z_{ns} \mid x_n)$, $z_{ns} \sim q$, `(unit,)`.

        Its expectation is at most log p(x_n), and increases with the number of samples.
        """
        x, mask, labels = arrays["x"], arrays.get("mask"), arrays.get("labels")
        q, prior = self.latents(arrays, **values), self._prior_of(x, values)
        block, parts = max(1, BLOCK // len(x)), []
        for first in range(0, n_samples, block):
            z = q.sample((min(block, n_samples - first),))
            distribution = self._data_distribution(z, labels, values)
            fit = (distribution if mask is None else distribution.mask(mask)).to_event(1).log_prob(x)
            parts.append(fit + prior.log_prob(z) - q.log_prob(z))
        return torch.logsumexp(torch.cat(parts), dim=0) - math.log(n_samples)

    def divergences(self, arrays: Arrays, **values: torch.Tensor) -> torch.Tensor:
        """Divergence of the encoder's distribution from the prior in each dimension, `(unit, latent)`."""
        return divergences(self.latents(arrays, **values), self._prior_of(arrays["x"], values))

    def imputation(self, arrays: Arrays, **values: torch.Tensor) -> dist.TorchDistribution:
        """Distribution of x given z; the features are independent given z, so the observed entries do not enter."""
        self._pair.build(arrays["x"].shape[1], arrays.get("labels"))
        return self._data_distribution(values["z"], arrays.get("labels"), values)

    # -- data

    def takes(self, argument: str) -> bool:
        """Whether the program has an argument of this name; `labels` only with `conditional`."""
        return super().takes(argument) and (argument != "labels" or self.conditional)

    def inactive(self, arrays: Arrays) -> Collection[str]:
        """Weights of the indicators of missing entries, if there are none."""
        return () if arrays.get("mask") is not None else [name for name in self.parameters if name.endswith("_missing")]

    def cautions(self, dataset: Dataset) -> list[Caution]:
        return outliers(dataset) if self.likelihood == "gaussian" else []

    def check(self, dataset: Dataset) -> None:
        """Reject data that are not a table, values outside the support, constant columns that make the noise zero, and networks
        whose outputs are not of the required form.

        Raises:
            DataError: Names the entry, or what is needed instead.
            ModelError: Names the network, and what it must be.
        """
        self.check_new(dataset)
        check_columns(dataset, self._entries, conditional=self.conditional)
        labels = np.unique([] if dataset.labels is None else dataset.labels) if self.classes is None else self.classes
        self._pair.build(dataset.x.shape[1], torch.zeros(1, len(labels)))

    def check_new(self, dataset: Dataset) -> None:
        """Reject data that are not a table, and values outside the support of the likelihood.

        Raises:
            DataError: Names the entry.
        """
        check_values(dataset, self.likelihood, self._entries)

    def simulate(self, rng: np.random.Generator, n_units: int, n_features: int = 10) -> Dataset:
        """Draw data from a decoder with random weights; the truth contains the positions and the program's parameters."""
        classes = np.arange(min(N_CLASSES, n_units))
        one_hot = torch.eye(len(classes), dtype=torch.float64) if self.conditional else None
        sizes = {**self._pair.sizes(n_features, torch.eye(len(classes))), "component": self.n_components}
        networks = self._pair.build(n_features, one_hot)
        modules = {side: networks[side] for side in self._pair.own}
        flows = {**self._prior.networks, **self._posterior.networks}
        values = simulated_parameters(rng, self._program_dims(), sizes, modules, flows, self._entries.parameter)
        tensors = {name: torch.tensor(value) for name, value in values.items()}
        z = self._simulated_positions(rng, n_units, n_features, tensors)
        which = rng.permutation(np.arange(n_units) % len(classes))
        labels = None if one_hot is None else one_hot[torch.from_numpy(which)]
        with torch.no_grad():
            x = self._entries.draw(self._data_distribution(torch.tensor(z), labels, tensors), rng)
        dataset = Dataset(
            {"x": x}, dims={"x": ("unit", "feature")}, name="simulated vae", labels=which if self.conditional else None
        )
        return replace(dataset, truth={"z": z, **values}, truth_dims={"z": ("unit", "latent"), **self._program_dims()})

    def _simulated_positions(self, rng: np.random.Generator, n_units: int, n_features: int, values: Tensors) -> np.ndarray:
        if self.prior == "normal":
            return rng.standard_normal((n_units, self.n_latent))
        with forked(), torch.no_grad():
            reseed(int(rng.integers(2**31)))
            return np.asarray(self._prior_of(torch.zeros(1, n_features), values).sample((n_units,)).numpy())
