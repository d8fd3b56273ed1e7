r"""Exact inference in linear-Gaussian chains, $z_1 \sim N(m, P)$, $z_t \sim N(A z_{t-1}, Q)$, $x_t \sim N(C z_t + \mu, \Psi)$.

The noise of the features is independent, $\Psi = \mathrm{diag}(\psi^2)$. Several sequences of unequal length are concatenated,
and entries may be missing. One step is a function of two states,
$$ \phi_t(a, b) = N(b; A a, Q) \, p(x_t \mid b) = \exp\left\{-\tfrac12 a^T J_{aa} a - a^T J_{ab} b - \tfrac12 b^T J_{bb} b
   + h_a^T a + h_b^T b + c\right\}, $$
and $N(b; m, P) \, p(x_t \mid b)$ where a sequence begins. The likelihood is the integral of their product over all states.
With $M = J_{bb} + \bar J_{aa}$ the state between two steps is marginalised out,
$$ \int \phi(a, s) \bar\phi(s, b) \, ds: \quad J_{aa} - J_{ab} M^{-1} J_{ba}, \quad -J_{ab} M^{-1} \bar J_{ab}, \quad
   \bar J_{bb} - \bar J_{ba} M^{-1} \bar J_{ab}, \quad \dots $$
which is again such a function. The order of integration is therefore arbitrary, and T steps need a graph of depth log T. This is
elimination in a positive definite matrix, with the same numerical stability. States are measured from a rough estimate, which
avoids cancellation of large terms if the noise is small.

The sum over all rows, the objective of fits, is computed by the square-root filter of `compiled_chain` if kernels exist. It is
also accurate for precision matrices of a condition number above about 1e8, for which the formulas above are not. Examples are
fewer features than states, or a feature nearly without noise, with a diffuse prior.

References:
    Särkkä & García-Fernández (2021), Temporal parallelization of Bayesian smoothers, IEEE Trans. Automat. Contr. 66:299.
    Rauch, Tung & Striebel (1965), Maximum likelihood estimates of linear dynamic systems, AIAA J. 3:1445.
"""

import math
from functools import cached_property
from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch.distributions import constraints

from latentlab.distributions import kernels
from latentlab.distributions.low_rank_gaussian import LowRankGaussian, cholesky_or_nan
from latentlab.distributions.scan import Elements, product, scan

LOG_2PI = math.log(2 * math.pi)


class LinearGaussianChain(TorchDistribution):
    r"""Rows of one or several series with the states marginalised out, batch `(unit,)`, event `(feature,)`.

    Rows are dependent: `log_prob` of a row is conditional on the earlier rows of its sequence, so that the sum is the joint log
    density.

    Args:
        A: Transition matrix of $z_t = A z_{t-1} + \dots$, `(next_latent, latent)`.
        Q: Covariance of the state noise, positive definite `(latent, latent)`.
        C: Loadings `(feature, latent)`.
        loc: Mean of the rows at state 0, `(feature,)`.
        scale: Standard deviations of the noise of the rows, a scalar or `(feature,)`.
        initial_mean: Mean of the first state of a sequence `(latent,)`.
        initial_covariance: Covariance of the first state, positive definite `(latent, latent)`.
        starts: True where a sequence begins `(unit,)`; the first unit always begins one.
        observed: True where an entry was observed, `(unit, feature)`; None if all were. Missing entries are marginalised out.
    """

    arg_constraints = {
        "A": constraints.real,
        "C": constraints.real,
        "loc": constraints.real_vector,
        "scale": constraints.positive,
    }
    support = constraints.real_vector
    has_rsample = True

    def __init__(  # one argument for each parameter of the chain
        self,
        A: torch.Tensor,
        Q: torch.Tensor,
        C: torch.Tensor,
        loc: torch.Tensor,
        scale: torch.Tensor,
        initial_mean: torch.Tensor,
        initial_covariance: torch.Tensor,
        starts: torch.Tensor,
        observed: torch.Tensor | None = None,
    ) -> None:
        self.A, self.Q, self.C, self.loc = A, Q, C, loc
        self.scale = scale.expand(C.shape[:1])
        self.initial_mean, self.initial_covariance = initial_mean, initial_covariance
        self.starts = torch.cat([torch.ones_like(starts[:1]), starts[1:]])
        self.observed = observed
        super().__init__(starts.shape, C.shape[:1], validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "LinearGaussianChain":
        if torch.Size(batch_shape) != self.batch_shape:
            raise ValueError(
                f"the batch shape of a chain must be ({self.batch_shape[0]},), its number of steps; got {tuple(batch_shape)}."
            )
        return self

    # -- densities

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        """Compute log p(x_t | x_1 ... x_{t-1} of its sequence), `(unit,)`."""
        return self._log_density(value, *self._predicted(value))

    def log_prob_sum(self, value: torch.Tensor) -> torch.Tensor:
        """Compute `log_prob(value).sum()` with far fewer operations."""
        tensors = (self.A, self.C, self.loc, self.scale, self.initial_mean)
        if not kernels.available_for(value, *tensors):
            return self._log_prob_sum_by_scan(value)
        observed = torch.ones_like(value, dtype=torch.bool) if self.observed is None else self.observed
        A, C, loc, scale, mean = tensors
        root, initial_root = cholesky_or_nan(self.Q), cholesky_or_nan(self.initial_covariance)
        return _by_kernel(A, root, C, loc, scale, mean, initial_root, value, observed, self.starts)

    def _log_prob_sum_by_scan(self, value: torch.Tensor) -> torch.Tensor:
        """Compute `log_prob_sum` by operations of torch in a graph of log depth, without distributions of single states."""
        _, _, J, _, h, c = product(_compose, self._potentials(value))
        lower = cholesky_or_nan(J[0])
        root = torch.linalg.solve_triangular(lower, h[0][:, None], upper=False)
        return c[0] + 0.5 * (len(h[0]) * LOG_2PI + (root**2).sum()) - torch.log(torch.diagonal(lower)).sum()

    def sequence_log_prob(self, value: torch.Tensor) -> torch.Tensor:
        """Compute the log density of each sequence, `(sequence,)`."""
        terms = self.log_prob(value)
        return terms.new_zeros(int(self.starts.sum())).index_add(0, torch.cumsum(self.starts, 0) - 1, terms)

    def leave_one_out(self, value: torch.Tensor) -> torch.Tensor:
        """Compute log p(x_t | all other rows of its sequence), `(unit,)`."""
        mean, covariance = self._predicted(value)
        J, h = self._backward(value)
        lower = cholesky_or_nan(covariance)
        precision = torch.cholesky_inverse(lower)
        shift = torch.cholesky_solve((mean - self._rough(value))[..., None], lower)[..., 0]
        covariance, mean = _moments(precision + J, shift + h)
        return self._log_density(value, mean + self._rough(value), covariance)

    def _log_density(self, value: torch.Tensor, mean: torch.Tensor, covariance: torch.Tensor) -> torch.Tensor:
        """Log density log N(x; C m + mu, C V C^T + psi^2) of each row's observed entries by a sum of squares, `(unit,)`."""
        L = cholesky_or_nan(covariance)
        weights = self._weights()
        residual = self._residual(value, mean)
        M = torch.eye(L.shape[-1], dtype=L.dtype) + L.mT @ self._information() @ L
        lower = cholesky_or_nan(M)
        b = (L.mT @ ((residual * weights) @ self.C)[..., None])[..., 0]
        w = torch.cholesky_solve(b[..., None], lower)
        rest = residual - (L @ w)[..., 0] @ self.C.mT
        quadratic = (rest**2 * weights).sum(-1) + (w[..., 0] ** 2).sum(-1)
        log_det = 2 * torch.log(torch.diagonal(lower, dim1=-2, dim2=-1)).sum(-1)
        return -0.5 * (self._constants() + log_det + quadratic)

    # -- states

    def filtered(self, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute means `(unit, latent)` and covariances `(unit, latent, latent)` of z_t given its sequence up to t."""
        covariance, mean = _moments(*self._forward(value))
        return mean + self._rough(value), covariance

    def conditional(self, value: torch.Tensor) -> "LinearGaussianPath":
        """Return the distribution of all states given all rows."""
        return LinearGaussianPath(self, value)

    def rsample(self, sample_shape: Any = ()) -> torch.Tensor:
        shape = self._extended_shape(torch.Size(sample_shape))
        n = torch.Size(sample_shape).numel()
        (T, D), q = shape[-2:], self.A.shape[-1]
        noise = torch.randn(T, q, n, dtype=self.A.dtype)
        roots = torch.where(self.starts[:, None, None], cholesky_or_nan(self.initial_covariance), cholesky_or_nan(self.Q))
        begins = torch.where(self.starts[:, None], self.initial_mean, torch.zeros_like(self.initial_mean))
        A = torch.where(self.starts[:, None, None], torch.zeros_like(self.A), self.A)
        z = _affine_path(A, begins[..., None] + roots @ noise).permute(2, 0, 1)
        x = z @ self.C.mT + self.loc + self.scale * torch.randn(n, T, D, dtype=self.A.dtype)
        return x.reshape(shape)

    # -- parts of the potentials

    def _weights(self) -> torch.Tensor:
        """Precisions 1 / psi^2, 0 for missing entries: `(feature,)`, or `(unit, feature)` with a mask."""
        weights = self.scale**-2
        return weights if self.observed is None else self.observed * weights

    def _constants(self) -> torch.Tensor:
        constants = LOG_2PI + 2 * torch.log(self.scale)
        return constants.sum(-1) if self.observed is None else (self.observed * constants).sum(-1)

    def _information(self) -> torch.Tensor:
        """Information matrix C^T Psi^-1 C of observed entries, `(latent, latent)`, or `(unit, latent, latent)` with a mask."""
        scaled = self.C * (self.scale**-2)[:, None]
        if self.observed is None:
            return self.C.mT @ scaled
        outer = (self.C[:, :, None] * scaled[:, None, :]).reshape(len(self.C), -1)
        return (self.observed.to(self.C.dtype) @ outer).reshape(-1, *2 * self.C.shape[1:])

    def _residual(self, value: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        """Residuals x - mu - C z, `(unit, feature)`; 0 for missing entries."""
        residual = value - self.loc - states @ self.C.mT
        return residual if self.observed is None else torch.where(self.observed, residual, torch.zeros_like(residual))

    def _rough(self, value: torch.Tensor) -> torch.Tensor:
        """Estimate of each state from the row of its step: the origin of the deviations, on which no density depends."""
        return LowRankGaussian(self.loc, self.C, self.scale, self.observed).conditional(value).mean.detach()

    def _potentials(self, value: torch.Tensor) -> Elements:
        """Coefficients (J_aa, J_ab, J_bb, h_a, h_b, c) of every step, for deviations from the rough states."""
        rough, starts = self._rough(value), self.starts
        root, initial_root = cholesky_or_nan(self.Q), cholesky_or_nan(self.initial_covariance)
        precision, initial_precision = torch.cholesky_inverse(root), torch.cholesky_inverse(initial_root)
        gap = torch.where(starts[:, None], self.initial_mean, rough.roll(1, 0) @ self.A.mT) - rough
        pull = torch.where(starts[:, None], gap @ initial_precision, gap @ precision)
        zero, PA = torch.zeros_like(self.A), precision @ self.A
        J_aa = torch.where(starts[:, None, None], zero, self.A.mT @ PA)
        J_ab = torch.where(starts[:, None, None], zero, -PA.mT)
        J_bb = torch.where(starts[:, None, None], initial_precision, precision) + self._information()
        h_a = torch.where(starts[:, None], zero[0], -pull @ self.A)
        residual = self._residual(value, rough)
        weighted = residual * self._weights()
        log_det = torch.log(torch.diagonal(root)).sum()
        initial_log_det = torch.log(torch.diagonal(initial_root)).sum()
        c = -0.5 * ((gap * pull).sum(-1) + (residual * weighted).sum(-1) + self._constants() + len(zero) * LOG_2PI)
        return J_aa, J_ab, J_bb, h_a, pull + weighted @ self.C, c - torch.where(starts, initial_log_det, log_det)

    def _forward(self, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Precision J and shift h = J m of each state's deviation from the rough state, given past and present rows."""
        q = len(self.A)
        before = torch.eye(q, dtype=self.A.dtype), torch.zeros_like(self.A[0])
        J, h = scan(_compose, _apply, self._potentials(value), before)
        return J, h

    def _backward(self, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Precision and shift of the likelihood of later rows as a function of each state; zeros at the end of a sequence."""
        J_aa, J_ab, J_bb, h_a, h_b, c = (part[1:].flip(0) for part in self._potentials(value))
        after = torch.zeros_like(self.A), torch.zeros_like(self.A[0])
        found = scan(_compose, _apply, (J_bb, J_ab.mT, J_aa, h_b, h_a, c), after)
        J, h = (torch.cat([part.flip(0), last[None]]) for part, last in zip(found, after, strict=True))
        return J, h

    def _predicted(self, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Means and covariances of z_t given the earlier rows of its sequence."""
        mean, covariance = self.filtered(value)
        moved = self.A @ covariance.roll(1, 0) @ self.A.mT + self.Q
        return (
            torch.where(self.starts[:, None], self.initial_mean, mean.roll(1, 0) @ self.A.mT),
            torch.where(self.starts[:, None, None], self.initial_covariance, moved),
        )


def _in_torch(  # one argument for each parameter of the chain
    A: torch.Tensor,
    L: torch.Tensor,
    C: torch.Tensor,
    loc: torch.Tensor,
    scale: torch.Tensor,
    initial_mean: torch.Tensor,
    L_0: torch.Tensor,
    x: torch.Tensor,
    observed: torch.Tensor,
    starts: torch.Tensor,
) -> torch.Tensor:
    chain = LinearGaussianChain(A, L @ L.mT, C, loc, scale, initial_mean, L_0 @ L_0.mT, starts, observed)
    return chain._log_prob_sum_by_scan(x)


_by_kernel = kernels.operation(kernels.linear_gaussian, (2, 2, 2, 1, 1, 1, 2, 2, 2, 1), 7, _in_torch)


class LinearGaussianPath(torch.distributions.Distribution):
    r"""Posterior of the states of linear-Gaussian chains, with event shape `(unit, latent)`.

    It is a chain backward in time, $z_t \mid z_{t+1}, x \sim N(G_t z_{t+1} + k_t, V_t)$, with $G_t = 0$ where a sequence ends.

    Args:
        chain: The chain.
        value: Rows of the chain, `(unit, feature)`.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}
    support = constraints.independent(constraints.real, 2)

    def __init__(self, chain: LinearGaussianChain, value: torch.Tensor) -> None:
        self._chain, self._value = chain, value
        super().__init__(torch.Size(), torch.Size([len(value), chain.A.shape[0]]), validate_args=False)

    @cached_property
    def _reversed(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Slopes G, offsets k and Cholesky factors of V of the chain backward in time."""
        A = self._chain.A
        J, h = self._chain._forward(self._value)
        mean = self._chain._rough(self._value) + _moments(J, h)[1]
        ends = torch.cat([self._chain.starts[1:], self._chain.starts[:1]])
        PA = torch.cholesky_solve(A, cholesky_or_nan(self._chain.Q))
        onward = torch.where(ends[:, None, None], torch.zeros_like(A), A.mT @ PA)
        V = torch.cholesky_inverse(cholesky_or_nan(J + onward))
        G = torch.where(ends[:, None, None], torch.zeros_like(A), V @ PA.mT)
        return G, mean - (G @ (mean @ A.mT)[..., None])[..., 0], cholesky_or_nan(V)

    @cached_property
    def _smoothed(self) -> tuple[torch.Tensor, torch.Tensor]:
        (J, h), (J_after, h_after) = self._chain._forward(self._value), self._chain._backward(self._value)
        covariance, mean = _moments(J + J_after, h + h_after)
        return mean + self._chain._rough(self._value), covariance

    @property
    def mean(self) -> torch.Tensor:
        """Posterior means of the states, `(unit, latent)`."""
        return self._smoothed[0]

    @property
    def mode(self) -> torch.Tensor:
        """Posterior mode, equal to the mean."""
        return self.mean

    @property
    def variance(self) -> torch.Tensor:
        """Posterior variances of the states, `(unit, latent)`."""
        return torch.diagonal(self.covariance_matrix, dim1=-2, dim2=-1)

    @property
    def covariance_matrix(self) -> torch.Tensor:
        """Posterior covariance of each step's state, `(unit, latent, latent)`."""
        return self._smoothed[1]

    @property
    def lag_one_covariance(self) -> torch.Tensor:
        """Posterior covariances Cov(z_{t-1}, z_t), `(unit, latent, next_latent)`; zeros where a sequence begins."""
        return (self._reversed[0] @ self.covariance_matrix.roll(-1, 0)).roll(1, 0)

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        """Compute the log densities `(...)` of complete paths `(..., unit, latent)`."""
        G, k, root = self._reversed
        residual = value - k - (G @ value.roll(-1, -2)[..., None])[..., 0]
        scaled = torch.linalg.solve_triangular(root, residual[..., None], upper=False)[..., 0]
        log_det = torch.log(torch.diagonal(root, dim1=-2, dim2=-1)).sum()
        return -0.5 * ((scaled**2).sum((-2, -1)) + self.event_shape.numel() * LOG_2PI) - log_det

    def sample(self, sample_shape: Any = ()) -> torch.Tensor:
        """Draw paths `(*sample_shape, unit, latent)`, backward from their ends."""
        with torch.no_grad():
            G, k, root = self._reversed
            shape = torch.Size(sample_shape)
            noise = torch.randn(*k.shape, shape.numel(), dtype=k.dtype)
            path = _affine_path(G.flip(0), (k[..., None] + root @ noise).flip(0)).flip(0)
            return path.permute(2, 0, 1).reshape(self._extended_shape(shape))


# -- Gaussian potentials, and affine maps


def _compose(first: Elements, then: Elements) -> Elements:
    """Combine two steps by marginalising out the state between them."""
    J_aa, J_ab, J_bb, h_a, h_b, c = first
    K_aa, K_ab, K_bb, g_a, g_b, d = then
    q = J_bb.shape[-1]
    lower = cholesky_or_nan(J_bb + K_aa)
    right_side = torch.cat([J_ab.mT, K_ab, (h_b + g_a)[..., None]], dim=-1)
    root = torch.linalg.solve_triangular(lower, right_side, upper=False)
    gram = root.mT @ root
    log_det = torch.log(torch.diagonal(lower, dim1=-2, dim2=-1)).sum(-1)
    return (
        J_aa - gram[..., :q, :q],
        -gram[..., :q, q:-1],
        K_bb - gram[..., q:-1, q:-1],
        h_a - gram[..., :q, -1],
        g_b - gram[..., q:-1, -1],
        c + d + 0.5 * (gram[..., -1, -1] + q * LOG_2PI) - log_det,
    )


def _apply(state: Elements, step: Elements) -> Elements:
    """Propagate a Gaussian function (J, h) of the earlier state to one of the later state, up to a constant."""
    J, h = state
    K_aa, K_ab, K_bb, g_a, g_b, _ = step
    right_side = torch.cat([K_ab, (h + g_a)[..., None]], dim=-1)
    root = torch.linalg.solve_triangular(cholesky_or_nan(J + K_aa), right_side, upper=False)
    across = root[..., :-1].mT @ root
    return K_bb - across[..., :-1], g_b - across[..., -1]


def _moments(precision: torch.Tensor, shift: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Covariance and mean of the Gaussian proportional to exp(-z^T J z / 2 + h^T z)."""
    lower = cholesky_or_nan(precision)
    return torch.cholesky_inverse(lower), torch.cholesky_solve(shift[..., None], lower)[..., 0]


def _affine_path(slopes: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    """Path $y_t = G_t y_{t-1} + k_t$, `(n, q, m)`, from $y_0 = 0$, with slopes `(n, q, q)` and offsets `(n, q, m)`."""

    def compose(first: Elements, then: Elements) -> Elements:
        return then[0] @ first[0], then[0] @ first[1] + then[1]

    def apply(state: Elements, step: Elements) -> Elements:
        return (step[0] @ state[0] + step[1],)

    return scan(compose, apply, (slopes, offsets), (torch.zeros_like(offsets[0]),))[0]
