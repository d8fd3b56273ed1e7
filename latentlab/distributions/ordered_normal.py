r"""Normals restricted to increasing order, $\mu_1 < \dots < \mu_K$, with the density of independent normals, not renormalised."""

from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch.distributions import biject_to, constraints
from torch.distributions.transforms import Transform


class _Increasing(constraints.Constraint):
    """Constraint to matrices `(component, 1)` with increasing rows."""

    event_dim = 2

    def check(self, value: torch.Tensor) -> torch.Tensor:
        return (value[..., 1:, 0] > value[..., :-1, 0]).all(-1)


increasing = _Increasing()


class _Accumulated(Transform):
    """Map from the first coordinate and the logs of the increments to increasing rows."""

    domain = constraints.independent(constraints.real, 2)
    codomain = increasing
    bijective = True

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Accumulated)

    def _call(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x[..., :1, :], x[..., 1:, :].exp()], dim=-2).cumsum(-2)

    def _inverse(self, y: torch.Tensor) -> torch.Tensor:
        return torch.cat([y[..., :1, :], torch.log(y[..., 1:, :] - y[..., :-1, :])], dim=-2)

    def log_abs_det_jacobian(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return x[..., 1:, :].sum((-1, -2))


@biject_to.register(_Increasing)
def _to_increasing(constraint: constraints.Constraint) -> Transform:
    return _Accumulated()


class OrderedNormal(TorchDistribution):
    """Independent normals restricted to increasing order along the components.

    Args:
        loc: Means `(component, 1)`.
        scale: Standard deviations `(component, 1)`.
    """

    arg_constraints = {}
    support = increasing

    def __init__(self, loc: torch.Tensor, scale: torch.Tensor) -> None:
        self.loc, self.scale = loc, scale
        super().__init__(torch.Size(), loc.shape, validate_args=False)

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        return torch.distributions.Normal(self.loc, self.scale, validate_args=False).log_prob(value).sum((-1, -2))

    def sample(self, sample_shape: Any = ()) -> torch.Tensor:
        if len(tuple(sample_shape)):
            return torch.stack([self.sample(tuple(sample_shape)[1:]) for _ in range(sample_shape[0])])
        while True:
            draw = self.loc + self.scale * torch.randn(self.loc.shape, dtype=self.loc.dtype)
            if bool(increasing.check(draw)):
                return draw
