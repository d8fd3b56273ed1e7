"""Starting points of chains and optimisers."""

import math
from typing import Any

import numpy as np
import torch

from latentlab.errors import InferenceError, ModelError, unknown
from latentlab.inference.density import Density
from latentlab.inference.program import has_density, site_log_prob, unchecked


def start(density: Density, rng: np.random.Generator, *, jitter: float, number: int = 0, n_tries: int = 100) -> torch.Tensor:
    """Return a starting vector: the model's `initialize`, or the prior for sites left out, plus Uniform(-jitter, jitter).

    A model with `start_names` starts at each of them in turn, by the `number` of the restart.

    Raises:
        ModelError: `initialize` returns a site that the model does not have.
        InferenceError: No try has a finite density and gradient; names the sites that were not finite.
    """
    not_finite: list[str] = []
    names = density.model.start_names
    for _ in range(n_tries):
        values: dict[str, Any] = density.prior()
        initialize: Any = density.model.initialize
        initial = initialize(density.arrays, rng, **({"name": names[number % len(names)]} if names else {}))
        unknown_site = next((name for name in initial if name not in density.model.dims and name not in values), None)
        if unknown_site is not None:
            raise ModelError(f"`initialize` of {density.model.name!r}: {unknown('site', unknown_site, values)}")
        values.update({k: v for k, v in initial.items() if k in values})
        u = density.unconstrain(values)
        u = u + torch.tensor(rng.uniform(-jitter, jitter, density.size)) if jitter else u
        value, gradient = density.eager_value_and_grad(u)
        if math.isfinite(value) and bool(torch.isfinite(gradient).all()):
            return u
        not_finite = non_finite_sites(density, u)
    raise InferenceError(
        f"no starting point with finite density and gradient in {n_tries} tries; not finite: "
        f"{', '.join(not_finite) or 'the gradient'}."
    )


def non_finite_sites(density: Density, u: torch.Tensor) -> list[str]:
    """List the sites whose log density is not finite at `u`, with the range of their values."""
    values = density.constrain(u)
    descriptions = []
    with unchecked():
        nodes = density._trace(values).nodes
    for name, site in nodes.items():
        if not has_density(site):
            continue
        value = torch.as_tensor(site["value"], dtype=torch.float64)
        try:
            finite = bool(torch.isfinite(site_log_prob(site)).all())
        except ValueError:
            finite = False
        if not finite:
            span = f" (values {float(value.min()):.3g} to {float(value.max()):.3g})" if value.numel() else ""
            descriptions.append(f"{name!r}{span}")
    return descriptions
