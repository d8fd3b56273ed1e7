"""A convolutional autoencoder of images with 8 x 8 pixels, as a user would write it."""

import math

import pyro
import pyro.distributions as dist
import torch
from torch import nn

import latentlab as ll
from latentlab.symmetry.groups import Identity


class Convolutional(ll.LatentModel):
    """A network with convolutions decodes traits into images; another one encodes them."""

    name = "convolutional"
    dims = {"z": ("unit", "latent")}
    parameters = {"scale": ()}
    position = ll.Position("z")
    symmetry = Identity()
    methods = ("svi",)

    def __init__(self, n_latent: int = 2, channels: int = 3):
        self.n_latent, self.channels = n_latent, channels
        layers = nn.Conv2d(1, channels, 3, stride=2, padding=1), nn.GroupNorm(1, channels), nn.ReLU(), nn.Flatten()
        self.encoder = nn.Sequential(nn.Unflatten(-1, (1, 8, 8)), *layers, nn.Linear(16 * channels, 2 * n_latent))
        layers = nn.Linear(n_latent, 16 * channels), nn.ReLU(), nn.Unflatten(-1, (channels, 4, 4))
        self.decoder = nn.Sequential(*layers, nn.ConvTranspose2d(channels, 1, 2, stride=2), nn.Flatten())

    def model(self, x):
        pyro.module("decoder", self.decoder)
        scale = pyro.param("scale", torch.tensor(0.5), dist.constraints.positive)
        with pyro.plate("unit", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(self.n_latent), 1.0).to_event(1))
            pyro.sample("x", self.of_images(z, scale).to_event(1), obs=x)

    def guide(self, x):
        pyro.module("encoder", self.encoder)
        with pyro.plate("unit", len(x)):
            pyro.sample("z", self.latents({"x": x}))

    def of_images(self, z, scale):
        return dist.Normal(self.decoder(z), scale)

    def latents(self, arrays, **values):
        mean, log_scale = self.encoder(arrays["x"]).chunk(2, -1)
        return dist.Normal(mean, torch.exp(log_scale - math.log(2))).to_event(1)

    def imputation(self, arrays, *, z, **values):
        return self.of_images(z, values["scale"])
