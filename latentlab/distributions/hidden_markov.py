r"""Exact inference in hidden Markov chains, $z_1 \sim \pi$, $z_t \mid z_{t-1} \sim A_{z_{t-1}}$, $x_t \mid z_t \sim b_{z_t}$.

The first state of a sequence emits its first observation. Several sequences of unequal length are concatenated; the first state
of each has the distribution $\pi$. Emissions are given by their log densities at the data, so that any kind can be used.

With the matrices $E_t(i, j) = A_{ij} b_t(j)$, and $E_t(i, j) = \pi_j b_t(j)$ where a sequence begins, the likelihood of all
sequences is $\sum_j (E_1 E_2 \cdots E_T)_{ij}$ for any row i. All rows of the first matrix of a sequence are equal, so that its
states do not depend on earlier sequences. The likelihood of these remains a factor of the product. Matrix products are
associative, so that T steps need a graph of depth log T. The forward messages $e_1^T E_1 \cdots E_t$ for every t, and the
backward messages $E_{t+1} \cdots E_T 1$, cost at most twice as much. Sums are computed in log space, without underflow. A
forbidden transition (log 0) is represented by a very negative number, whose derivatives are zeros rather than NaN.

All functions have the same four arguments (float64):

    log_initial     $\log \pi$, `(state,)`
    log_transition  $\log A$, rows from, columns to, `(state, next_state)`
    log_emission    $\log b_t(k)$, `(unit, state)`; a row of zeros where the time step is missing
    starts          True where a sequence begins, `(unit,)`; the first unit always begins one

Entries may be -inf. The functions are differentiable, and work under `torch.vmap`. If the likelihood is 0, its log is -inf, and
conditional probabilities are undefined.

References:
    Rabiner (1989), A tutorial on hidden Markov models and selected applications in speech recognition, Proc. IEEE 77:257.
    Särkkä & García-Fernández (2021), Temporal parallelization of Bayesian smoothers, IEEE Trans. Automat. Contr. 66:299.
"""

from functools import cached_property
from typing import Any

import torch
from torch.distributions import constraints

from latentlab.distributions import kernels
from latentlab.distributions.scan import Elements, product, scan

LOG_ZERO = -1e30
"""Substitute for log 0: sums of finite log densities are far above it, and the sum of 10^5 such terms is finite."""


def log_likelihood(
    log_initial: torch.Tensor, log_transition: torch.Tensor, log_emission: torch.Tensor, starts: torch.Tensor
) -> torch.Tensor:
    r"""Compute $\log p(x)$ of all sequences jointly, a scalar.

    Its derivatives are expected counts. For $\log A$ they are the pair marginals summed over t, for $\log b$ the smoothed
    probabilities, and for $\log \pi$ the sum of these at the starts.

    Example:
        >>> log_half = torch.full((2,), 0.5, dtype=torch.float64).log()
        >>> fair = log_half.expand(2, 2)
        >>> round(log_likelihood(log_half, fair, fair[:1].expand(3, 2), torch.tensor([True, False, False])).exp().item(), 6)
        0.125
    """
    chain = (log_initial, log_transition, log_emission, starts)
    return _by_kernel(*chain) if kernels.available_for(*chain[:3]) else log_likelihood_by_scan(*chain)


def log_likelihood_by_scan(
    log_initial: torch.Tensor, log_transition: torch.Tensor, log_emission: torch.Tensor, starts: torch.Tensor
) -> torch.Tensor:
    """Compute `log_likelihood` by operations of torch in a graph of log depth, on any device and with all derivatives."""
    initial, transition, emission = _finite(log_initial, log_transition, log_emission)
    (whole,) = product(_compose, (_matrices(initial, transition, emission, _begins(starts)),))
    return _impossible_to_inf(torch.logsumexp(whole[0, 0], dim=-1))


_KERNEL = (kernels.hidden_markov, (1, 2, 2, 1), 3)
_by_kernel = kernels.operation(*_KERNEL, log_likelihood_by_scan)


def expected_counts(
    log_initial: torch.Tensor, log_transition: torch.Tensor, log_emission: torch.Tensor, starts: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    r"""Compute `log_likelihood` and its derivatives by one forward-backward pass, the E step of EM.

    Returns:
        $\log p(x)$; the expected numbers given x of sequences that begin in each state `(state,)` and of transitions
        `(state, next_state)`; the smoothed probabilities `(unit, state)`.
    """
    chain = (log_initial, log_transition, log_emission, starts)
    if kernels.available_for(*chain[:3]):
        value, first, transitions, probs = kernels.value_and_gradients(*_KERNEL, *chain)
        return value, first, transitions, probs
    with torch.enable_grad():
        initial, transition, emission = (log.detach().requires_grad_() for log in chain[:3])
        value = log_likelihood_by_scan(initial, transition, emission, starts)
        first, transitions, probs = torch.autograd.grad(value, (initial, transition, emission))
    return value.detach(), first, transitions, probs


def log_predictive(
    log_initial: torch.Tensor, log_transition: torch.Tensor, log_emission: torch.Tensor, starts: torch.Tensor
) -> torch.Tensor:
    r"""Compute $\log p(x_t \mid x_{<t})$ given the earlier steps of its sequence, `(unit,)`; the sum is `log_likelihood`."""
    prior, _ = _forward(log_initial, log_transition, log_emission, starts)
    return _impossible_to_inf(torch.logsumexp(prior + torch.clamp(log_emission, min=LOG_ZERO), dim=-1))


def sequence_log_likelihood(
    log_initial: torch.Tensor, log_transition: torch.Tensor, log_emission: torch.Tensor, starts: torch.Tensor
) -> torch.Tensor:
    r"""Compute $\log p(x)$ of each sequence, `(sequence,)`."""
    terms = log_predictive(log_initial, log_transition, log_emission, starts)
    begins = _begins(starts)
    return terms.new_zeros(int(begins.sum())).index_add(0, torch.cumsum(begins, 0) - 1, terms)


def filtered(
    log_initial: torch.Tensor, log_transition: torch.Tensor, log_emission: torch.Tensor, starts: torch.Tensor
) -> torch.Tensor:
    r"""Compute $p(z_t = k \mid x_{\le t})$ given the steps of its sequence up to t, `(unit, state)`."""
    return torch.exp(_forward(log_initial, log_transition, log_emission, starts)[1])


def smoothed(
    log_initial: torch.Tensor, log_transition: torch.Tensor, log_emission: torch.Tensor, starts: torch.Tensor
) -> torch.Tensor:
    r"""Compute $p(z_t = k \mid x)$ given its complete sequence, `(unit, state)`."""
    _, forward = _forward(log_initial, log_transition, log_emission, starts)
    return torch.softmax(forward + _backward(log_initial, log_transition, log_emission, starts), dim=-1)


def pair_marginals(
    log_initial: torch.Tensor, log_transition: torch.Tensor, log_emission: torch.Tensor, starts: torch.Tensor
) -> torch.Tensor:
    r"""Compute $p(z_{t-1} = i, z_t = j \mid x)$, `(unit, state, next_state)`; zeros where a sequence begins."""
    _, forward = _forward(log_initial, log_transition, log_emission, starts)
    _, transition, emission = _finite(log_initial, log_transition, log_emission)
    onward = emission + _backward(log_initial, log_transition, log_emission, starts)
    joint = forward.roll(1, 0)[:, :, None] + transition + onward[:, None, :]
    pairs = torch.softmax(joint.flatten(1), dim=-1).reshape(joint.shape)
    return torch.where(_begins(starts)[:, None, None], torch.zeros_like(pairs), pairs)


def leave_one_out(
    log_initial: torch.Tensor, log_transition: torch.Tensor, log_emission: torch.Tensor, starts: torch.Tensor
) -> torch.Tensor:
    r"""Compute $\log p(x_t \mid x_{-t})$ given all other steps of its sequence, `(unit,)`."""
    prior, _ = _forward(log_initial, log_transition, log_emission, starts)
    others = prior + _backward(log_initial, log_transition, log_emission, starts)
    with_own = torch.logsumexp(others + torch.clamp(log_emission, min=LOG_ZERO), dim=-1)
    return _impossible_to_inf(with_own - torch.logsumexp(others, dim=-1))


def viterbi(
    log_initial: torch.Tensor, log_transition: torch.Tensor, log_emission: torch.Tensor, starts: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    r"""Compute the most probable path of all sequences, `(unit,)`, and its log joint density $\log p(z, x)$, a scalar.

    If several paths are equally probable, one of them is returned.
    """
    initial, transition, emission = _finite(log_initial, log_transition, log_emission)
    begins = _begins(starts)
    best = _messages(_matrices(initial, transition, emission, begins), begins, initial, torch.amax)
    origins = torch.argmax(best.roll(1, 0)[:, :, None] + _steps(initial, transition, begins), dim=1)
    path = _trace_back(origins[1:], torch.argmax(best[-1], dim=-1))
    return path, _log_joint(log_initial, log_transition, log_emission, starts, path)


class HiddenPath(torch.distributions.Distribution):
    r"""Posterior of the states of hidden Markov chains, $p(z_1, \dots, z_T \mid x)$, with event shape `(unit,)`.

    Args:
        log_initial: Log probabilities of the first states `(state,)`.
        log_transition: Log probabilities of the transitions `(state, next_state)`.
        log_emission: Log densities of the data in each state `(unit, state)`, zeros where a time step is missing.
        starts: True where a sequence begins `(unit,)`.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}

    def __init__(
        self, log_initial: torch.Tensor, log_transition: torch.Tensor, log_emission: torch.Tensor, starts: torch.Tensor
    ) -> None:
        self._chain = (log_initial, log_transition, log_emission, starts)
        super().__init__(torch.Size(), log_emission.shape[:1], validate_args=False)

    @property
    def support(self) -> constraints.Constraint:
        return constraints.independent(constraints.integer_interval(0, len(self._chain[0]) - 1), 1)

    @cached_property
    def probs(self) -> torch.Tensor:
        """Smoothed probabilities of each step's state, `(unit, state)`."""
        return smoothed(*self._chain)

    @property
    def mode(self) -> torch.Tensor:
        """Most probable path, `(unit,)`."""
        return viterbi(*self._chain)[0]

    @cached_property
    def _log_likelihood(self) -> torch.Tensor:
        return log_likelihood(*self._chain)

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        """Compute the log probabilities `(...)` of complete paths `(..., unit)`, of any number type."""
        return _log_joint(*self._chain, value.long()) - self._log_likelihood

    def sample(self, sample_shape: Any = ()) -> torch.Tensor:
        """Draw paths `(*sample_shape, unit)` by forward filtering and backward sampling.

        A uniform number per step determines the previous state for every possible next state; these maps are then composed.
        """
        log_initial, log_transition, log_emission, starts = self._chain
        initial, transition, _ = _finite(log_initial, log_transition, log_emission)
        _, forward = _forward(*self._chain)
        back = forward.roll(1, 0)[:, :, None] + _steps(initial, transition, _begins(starts))
        shape = torch.Size(sample_shape)
        uniform = torch.rand(shape.numel(), len(forward), dtype=forward.dtype).T
        last = _quantile(torch.softmax(forward[-1], 0)[None, :, None], uniform[-1:])[0, :, 0]
        origins = _quantile(torch.softmax(back[1:], 1), uniform[:-1])
        return _trace_back(origins, last).T.reshape(self._extended_shape(shape))


# -- messages


def _finite(*logs: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return tuple(torch.clamp(log, min=LOG_ZERO) for log in logs)


def _impossible_to_inf(value: torch.Tensor) -> torch.Tensor:
    return torch.where(value < 0.1 * LOG_ZERO, torch.full_like(value, -torch.inf), value)


def _begins(starts: torch.Tensor) -> torch.Tensor:
    return torch.cat([torch.ones_like(starts[:1]), starts[1:]])


def _steps(initial: torch.Tensor, transition: torch.Tensor, begins: torch.Tensor) -> torch.Tensor:
    """Log probabilities of z_t given z_{t-1}, or of the first state of a sequence, `(unit, state, next_state)`."""
    return torch.where(begins[:, None, None], initial, transition)


def _matrices(initial: torch.Tensor, transition: torch.Tensor, emission: torch.Tensor, begins: torch.Tensor) -> torch.Tensor:
    """Log matrices log E_t, `(unit, state, next_state)`."""
    return _steps(initial, transition, begins) + emission[:, None, :]


def _compose(first: Elements, then: Elements, reduce: Any = torch.logsumexp) -> Elements:
    """Products of log matrices `(n, k, k)`, or of log row vectors `(n, 1, k)` with log matrices."""
    return (reduce(first[0][..., :, :, None] + then[0][..., None, :, :], dim=-2),)


def _messages(matrices: torch.Tensor, resets: torch.Tensor, before: torch.Tensor, reduce: Any = torch.logsumexp) -> torch.Tensor:
    r"""Row vectors $v^T E_1 \cdots E_t$ for every t, each up to a constant, `(n, state)`, with $v$ = `before`.

    A matrix that is a reset has equal rows. Earlier factors are omitted, since they only change the constant unless they are 0.
    """

    def compose(first: Elements, then: Elements) -> Elements:
        (matrix,) = _compose(first[:1], then[:1], reduce)
        matrix = torch.where(then[1][:, None, None], then[0], matrix)
        # Subtraction of the maximum preserves the digits of the differences if levels are near 10^6.
        return matrix - matrix.amax((-2, -1), keepdim=True).detach(), first[1] | then[1]

    def apply(state: Elements, step: Elements) -> Elements:
        (moved,) = _compose((state[0][:, None, :],), step[:1], reduce)
        return (torch.where(step[1][:, None], step[0][:, 0], moved[:, 0]),)

    return scan(compose, apply, (matrices, resets), (before,))[0]


def _forward(
    log_initial: torch.Tensor, log_transition: torch.Tensor, log_emission: torch.Tensor, starts: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log probabilities of each state given the past of its sequence, and given past and present, `(unit, state)` each."""
    initial, transition, emission = _finite(log_initial, log_transition, log_emission)
    begins = _begins(starts)
    messages = torch.log_softmax(_messages(_matrices(initial, transition, emission, begins), begins, initial), dim=-1)
    (moved,) = _compose((messages.roll(1, 0)[:, None, :],), (transition,))
    return torch.where(begins[:, None], initial, moved[:, 0]), messages


def _backward(
    log_initial: torch.Tensor, log_transition: torch.Tensor, log_emission: torch.Tensor, starts: torch.Tensor
) -> torch.Tensor:
    """Log densities of the later steps of the sequence given each state, up to a constant per step, `(unit, state)`."""
    _, transition, emission = _finite(log_initial, log_transition, log_emission)
    resets = starts[1:].flip(0)
    onward = (transition + emission[1:, None, :]).mT.flip(0)
    onward = torch.where(resets[:, None, None], torch.zeros_like(onward), onward)  # last step of a sequence
    last = torch.zeros_like(transition[0])
    return torch.cat([_messages(onward, resets, last).flip(0), last[None]])


# -- paths


def _trace_back(origins: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
    """Path `(n + 1, ...)` that ends in `last` `(...)`; its state at t is `origins[t, ..., j]` if its state at t + 1 is j."""

    def compose(first: Elements, then: Elements) -> Elements:
        return (torch.gather(then[0], -1, first[0]),)

    def apply(state: Elements, step: Elements) -> Elements:
        return (torch.gather(step[0], -1, state[0][..., None])[..., 0],)

    return torch.cat([scan(compose, apply, (origins.flip(0),), (last,))[0].flip(0), last[None]])


def _quantile(probabilities: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """Indices `(n, m, k)` by inversion of the distribution over dim 1 of `(n, state, k)` at `(n, m)` numbers in [0, 1).

    The cumulative sum is divided by its last value and ends in exactly 1, so that no state of probability 0 is drawn.
    """
    cumulative = torch.cumsum(probabilities, 1)
    cumulative = cumulative / cumulative[:, -1:]
    return (cumulative[:, None] <= uniform[:, :, None, None]).sum(2)


def _log_joint(
    log_initial: torch.Tensor,
    log_transition: torch.Tensor,
    log_emission: torch.Tensor,
    starts: torch.Tensor,
    path: torch.Tensor,
) -> torch.Tensor:
    """Log joint densities log p(z, x) of paths `(..., unit)`, `(...)`."""
    came_from = log_transition[path.roll(1, -1), path]
    steps = torch.where(_begins(starts), log_initial[path], came_from)
    emitted = torch.gather(log_emission.expand(*path.shape, -1), -1, path[..., None])[..., 0]
    return (steps + emitted).sum(-1)
