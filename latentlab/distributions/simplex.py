r"""Map from the reals to the simplex with few operations."""

import math

import torch
from torch.distributions.transforms import StickBreakingTransform
from torch.nn.functional import logsigmoid, pad

WIDE = 32
"""Number of entries above which partial sums use `cumsum` instead of a product with a triangular matrix."""


class ToSimplex(StickBreakingTransform):
    r"""Stick-breaking map of torch, on the log scale; $v_k$ is the share of the remaining stick that part k takes.

    With $a_k = u_k - \log(K - k)$, $k < K$,
    $$ \log v_k = -\log(1 + e^{-a_k}), \quad \log(1 - v_k) = \log v_k - a_k, \quad
       \log w_k = \log v_k + \sum_{j<k} \log(1 - v_j), \quad \log |J| = \sum_{k<K} [\log w_k + \log(1 - v_k)], $$
    and $v_K = 1$. Products of $1 - v_k$ would need a scan, and their derivatives two further scans, each slower than all other
    operations. If v is near 1, 1 - v has no significant digits, and torch therefore clips it. This class clips w only, at the
    smallest normal float (2e-308 in float64), so that its log is finite.

    Example:
        >>> ToSimplex()(torch.zeros(3))
        tensor([0.2500, 0.2500, 0.2500, 0.2500])
    """

    def _call(self, x: torch.Tensor) -> torch.Tensor:
        log_share, log_remaining = _shares(x)
        return torch.exp((pad(log_share, [0, 1]) + _before(log_remaining)).clamp(min=math.log(torch.finfo(x.dtype).tiny)))

    def _inverse(self, y: torch.Tensor) -> torch.Tensor:
        after = y.flip(-1).cumsum(-1).flip(-1)[..., 1:]  # summed from the last, usually small, entries
        entries, rest = (part.clamp(min=torch.finfo(y.dtype).tiny).log() for part in (y[..., :-1], after))
        return entries - rest + _offset(after)

    def log_abs_det_jacobian(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        log_share, log_remaining = _shares(x)
        return (log_share + _before(log_remaining)[..., :-1] + log_remaining).sum(-1)


def _offset(x: torch.Tensor) -> torch.Tensor:
    """Offsets log(K - k), for which all parts are equal at u = 0."""
    n = x.shape[-1]
    return torch.arange(n, 0, -1, dtype=x.dtype, device=x.device).log()


def _shares(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Logs log v and log(1 - v)."""
    a = x - _offset(x)
    log_share = logsigmoid(a)  # unlike that of `softplus`, its last digit does not depend on the place in a batch
    return log_share, log_share - a


def _before(log_remaining: torch.Tensor) -> torch.Tensor:
    """Sums of the entries before each part, `(..., K)`, from entries `(..., K - 1)`."""
    n = log_remaining.shape[-1]
    if n > WIDE:
        return pad(log_remaining.cumsum(-1), [1, 0])
    triangle = torch.ones(n + 1, n, dtype=log_remaining.dtype, device=log_remaining.device).tril(-1)
    return (log_remaining[..., None, :] * triangle).sum(-1)
