r"""A variational log density averaged over a symmetry group.

A guide q concentrates near one of several orientations that are equally probable under the posterior. Therefore log p - log q
varies along the group even for a good guide. The density to compare with the posterior is the average over the compact group G,

    log qbar(v) = log integral q(g v) dHaar(g).

It is invariant under G, and invariants have the same distribution under it as under q. The integrand has sharp peaks, so that
simple Monte Carlo with draws from Haar measure is inefficient. Finite groups are summed. For O(q) each draw is first rotated to
the guide's centre, once with determinant +1 and once with -1. The integrals over the two components start there:

* q = 1: the sum over the two signs.
* q = 2: log q(angle) is smooth even for a narrow q (a trigonometric polynomial of degree 2 for a Gaussian guide). It is
  interpolated from 16 angles or more, until its Fourier coefficients are negligible. The exponential of the interpolant is
  summed on a grid finer than its peak.
* q >= 3: importance sampling of R exp(A), A antisymmetric, with a Student t proposal. Its centre is found by two Newton steps,
  its scale by the Hessian of log q. In these coordinates Haar measure has the density J(A) / V, with t_a the angles of A,

      J = prod_{a<b} s(t_a - t_b) s(t_a + t_b)  [ prod_a s(t_a) if q is odd ],   s(t) = (2 sin(t / 2) / t)^2,

  for A with all angles below pi; V is the product of the areas of the spheres S^1, ..., S^(q-1).

References:
    Helgason (1978), Differential Geometry, Lie Groups, and Symmetric Spaces, II.1.7 (J). Yao, Vehtari, Simpson and Gelman
    (2018), Yes, but did it work?, ICML, arXiv:1802.02538 (k-hat, the application of this density).
"""

import math
from collections.abc import Callable

import numpy as np

from latentlab.errors import InferenceError, ModelError
from latentlab.symmetry import consensus
from latentlab.symmetry.group import Dims, Group, Values, finite_rows
from latentlab.symmetry.groups import Euclidean, GeneralLinear, Identity, Orthogonal, Permutation, SignedPermutation

LogDensity = Callable[[dict[str, np.ndarray]], np.ndarray]
"""Function from sites with one leading axis `(n, ...)` to log densities `(n,)`."""
Evaluate = Callable[[np.ndarray, slice | np.ndarray], np.ndarray]
"""Function from elements `(b, n, q, q)` and the indices of the draws `(b,)` that they act on to log densities `(b, n)`."""

ENUMERATED = 720
"""Largest order of a finite group that is summed completely; for larger groups only elements near the aligning one are."""
NUMBERS = 2**22
"""Largest number of floating-point values per call of the density (32 MB)."""
ANGLES = (16, 32, 64, 128, 256, 512, 1024)
MOST_TOGETHER = 2048
"""Largest number of draws whose values at all angles are in memory at once."""
DEGREES_OF_FREEDOM = 8.0
"""Degrees of freedom of the Student t proposal; its tails are heavier than those of the density, which are Gaussian."""
STEP = 1e-3
"""Step of the central differences in radians; log q varies on the scale of a radian even for a narrow q."""
LEAST_CURVATURE = 0.4
"""Least curvature of the proposal: its scale is at most 1.6 radians, so that most of it is inside the coordinates' domain."""
SHARPEST = 1e12
"""Curvature of log q along a rotation, per square radian, above which the guide is close to singular, which is an error."""
FLAT = 1e-3
"""Curvature per square radian below which log q counts as constant."""


def compact(group: Group) -> Group:
    """Return the group, or its rotations if it has no finite invariant measure (translations, linear maps)."""
    return Orthogonal(group.dim, group.units) if isinstance(group, Euclidean | GeneralLinear) else group


def log_average(  # one argument each for the density, its draws and the group's action
    group: Group,
    log_q: LogDensity,
    values: Values,
    dims: Dims,
    *,
    on: str,
    center: Values,
    rng: np.random.Generator,
    n: int = 512,
) -> np.ndarray:
    r"""Compute the log of the average of q over the group's Haar measure, at each draw.

    The result is at most the largest log q on the orbit, and equal to log q if q is invariant.

    Args:
        group: A compact group: `Identity`, `Permutation`, `SignedPermutation` or `Orthogonal`.
        log_q: Log density, for sites with one leading axis.
        values: Draws, `(m, *site)`.
        dims: Dims of each site, without leading axes.
        on: Site by which draws are aligned with the centre.
        center: Centre of q: sites by name, without leading axes; only `on` is used.
        rng: Random generator for the importance samples, which are the same for all draws (q >= 3).
        n: Number of importance samples per draw and component (q >= 3), rounded up to a power of two.

    Returns:
        Log densities, `(m,)`.

    Raises:
        ModelError: The group has no finite Haar measure (`Euclidean`, `GeneralLinear`), or `on` lacks its dim.
        InferenceError: `log_q` is NaN or +inf at a point of the orbit.

    Example:
        >>> density = lambda v: -((v["z"] - 3.0) ** 2).sum(axis=1) / 2  # one mode, at +3
        >>> draws, dims = {"z": np.array([[3.0], [-3.0]])}, {"z": ("latent",)}
        >>> args = {"on": "z", "center": {"z": np.array([3.0])}, "rng": np.random.default_rng(0)}
        >>> log_average(Orthogonal(), density, draws, dims, **args).round(4)  # log 1/2 at both
        array([-0.6931, -0.6931])
    """
    sites = {site: np.asarray(value, dtype=np.float64) for site, value in values.items()}
    evaluate = _evaluator(group, log_q, sites, dims)
    if isinstance(group, Identity):
        return _checked(log_q(sites), next(iter(sites.values())).shape[0])
    if not isinstance(group, Permutation | SignedPermutation | Orthogonal):
        raise ModelError(f"log q cannot be averaged over {type(group).__name__}: it has no finite invariant measure.")
    x = finite_rows(on, sites, dims, group.dim)
    target = finite_rows(on, {on: np.asarray(center[on])}, {on: dims[on]}, group.dim)
    cross = x.swapaxes(-1, -2) @ target
    if isinstance(group, Orthogonal) and cross.shape[-1] > 1:
        integrate = _circle if cross.shape[-1] == 2 else _lie_algebra(cross.shape[-1], rng, n)
        parts = [integrate(evaluate, polar_with_determinant(cross, sign)) for sign in (1.0, -1.0)]
        return np.logaddexp(*parts) - math.log(2.0)
    return _finite(group, evaluate, cross)


def _evaluator(group: Group, log_q: LogDensity, sites: dict[str, np.ndarray], dims: Dims) -> Evaluate:
    """Return a function that evaluates `log_q` at transformed draws, in blocks of at most `NUMBERS` values."""
    shapes = {site: value.shape[1:] for site, value in sites.items()}
    per_draw = sum(math.prod(shape) for shape in shapes.values())

    def block(elements: np.ndarray, draws: dict[str, np.ndarray]) -> np.ndarray:
        leading = elements.shape[:2]
        transformed = group.act(elements, {site: value[:, None] for site, value in draws.items()}, dims)
        flat = {s: np.broadcast_to(v, (*leading, *shapes[s])).reshape(-1, *shapes[s]) for s, v in transformed.items()}
        return _checked(log_q(flat), leading[0] * leading[1]).reshape(leading)

    def evaluate(elements: np.ndarray, draws: slice | np.ndarray) -> np.ndarray:
        chosen = np.arange(len(next(iter(sites.values()))))[draws]
        b, n = elements.shape[:2]
        n_at_once = max(1, NUMBERS // max(1, per_draw))
        across, step = min(n, n_at_once), max(1, n_at_once // n)
        out = np.empty((b, n))
        for i in range(0, b, step):
            part = {site: value[chosen[i : i + step]] for site, value in sites.items()}
            for j in range(0, n, across):
                out[i : i + step, j : j + across] = block(elements[i : i + step, j : j + across], part)
        return out

    return evaluate


def _checked(log_density: np.ndarray, size: int) -> np.ndarray:
    values = np.asarray(log_density, dtype=np.float64)
    if values.shape != (size,):
        raise ModelError(f"`log_q` must return shape ({size},); got {values.shape}.")
    if np.isnan(values).any() or (values == np.inf).any():
        raise InferenceError("log q is NaN or +inf on the orbit of a draw; it cannot be averaged over the group.")
    return values


def _finite(group: Permutation | SignedPermutation | Orthogonal, evaluate: Evaluate, cross: np.ndarray) -> np.ndarray:
    """Log of the average of q over all elements; for large groups only elements near the aligning one enter the sum."""
    m, q = cross.shape[:2]
    signed = not isinstance(group, Permutation)
    order = math.factorial(q) * (2**q if signed else 1)
    if order <= ENUMERATED:
        elements = (SignedPermutation() if signed else Permutation()).elements(q)
        found = evaluate(np.broadcast_to(elements, (m, *elements.shape)), slice(None))
    else:
        nearest = (consensus.signed_assignment if signed else consensus.assignment)(cross)
        found = evaluate(nearest[:, None] @ _short_products(q, signed=signed), slice(None))
    return _log_sum(found) - math.log(order)


def _short_products(q: int, *, signed: bool) -> np.ndarray:
    """Distinct products of up to two transpositions of axes (or sign changes), `(n, q, q)`."""
    transpositions = [np.eye(q)[[j if k == i else i if k == j else k for k in range(q)]] for j in range(q) for i in range(j)]
    sign_changes = [np.diag(np.where(np.arange(q) == k, -1.0, 1.0)) for k in range(q)] if signed else []
    generators = np.stack([np.eye(q), *transpositions, *sign_changes])
    return np.unique((generators[:, None] @ generators).reshape(-1, q * q), axis=0).reshape(-1, q, q)


def _log_sum(x: np.ndarray) -> np.ndarray:
    top = x.max(axis=-1)
    shift = np.where(np.isfinite(top), top, 0.0)
    with np.errstate(divide="ignore"):
        return np.log(np.exp(x - shift[..., None]).sum(axis=-1)) + shift


def polar_with_determinant(cross: np.ndarray, sign: float) -> np.ndarray:
    """Compute the orthogonal R `(..., q, q)` with determinant `sign` that maximises tr(R^T C)."""
    u, _, vt = np.linalg.svd(cross)
    flip = np.where(np.linalg.det(u @ vt) * sign < 0, -1.0, 1.0)
    u[..., :, -1] *= flip[..., None]
    return u @ vt


def _circle(evaluate: Evaluate, start: np.ndarray) -> np.ndarray:
    """Log of the mean of q over R exp(A), q = 2, for starts R `(m, 2, 2)`."""
    parts = np.array_split(np.arange(len(start)), range(MOST_TOGETHER, len(start), MOST_TOGETHER))
    return np.concatenate([_circle_of(evaluate, start[part], part) for part in parts])


def _circle_of(evaluate: Evaluate, start: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """Log of the mean of q over R exp(A) for some of the draws, by their indices, with starts R."""
    result, remaining = np.empty(len(draws)), np.arange(len(draws))
    for n in ANGLES:
        angle = 2 * math.pi * np.arange(n) / n
        rotations = np.stack([np.cos(angle), np.sin(angle), -np.sin(angle), np.cos(angle)], axis=-1).reshape(n, 2, 2)
        found = evaluate(start[remaining, None] @ rotations, draws[remaining])
        if n == ANGLES[-1]:
            result[remaining] = _log_sum(found) - math.log(n)
            break
        finite = np.asarray(np.isfinite(found).all(axis=1))
        coefficients = np.fft.rfft(np.where(finite[:, None], found, 0.0), axis=1) / n
        size = np.abs(coefficients)
        done = finite & (size[:, n // 4 :].sum(axis=1) <= 1e-8 + 1e-12 * size.max(axis=1))
        result[remaining[done]] = _log_mean_exp_of_series(coefficients[done, : n // 4])
        remaining = remaining[~done]
        if not remaining.size:
            break
    return result


def _log_mean_exp_of_series(coefficients: np.ndarray) -> np.ndarray:
    """Log of the mean over the circle of exp(f), `(m,)`; f is a real Fourier series with coefficients of e^(ikt), k >= 0."""
    curvature = 2 * (np.abs(coefficients) * np.arange(coefficients.shape[1]) ** 2).sum(axis=1)
    if curvature.max(initial=0.0) > SHARPEST:
        change = np.abs(coefficients[:, 1:]).max()
        raise InferenceError(
            f"log q changes by {change:.3g} within one rotation: the guide's covariance is close to singular, and its average "
            "over rotations cannot be computed; use fewer latent dimensions or another guide."
        )
    need = np.maximum(64, 2 ** np.ceil(np.log2(4 * math.pi * np.sqrt(curvature) + 1))).astype(int)
    result = np.empty(len(coefficients))
    for n in np.unique(need):
        members = np.flatnonzero(need == n)
        for part in np.array_split(members, max(1, len(members) * n // NUMBERS)):
            result[part] = _log_sum(np.fft.irfft(coefficients[part] * n, n=n, axis=1)) - math.log(n)
    return result


def _lie_algebra(q: int, rng: np.random.Generator, n: int) -> Callable[[Evaluate, np.ndarray], np.ndarray]:
    """Return a function for the log of the mean of q over R exp(A) by importance sampling, for starts R `(m, q, q)`."""
    base, tail = _student_points(q * (q - 1) // 2, rng, n)

    def integrate(evaluate: Evaluate, start: np.ndarray) -> np.ndarray:
        step = max(1, NUMBERS // (8 * base.shape[0] * q * q))
        parts = [slice(i, min(i + step, len(start))) for i in range(0, len(start), step)]
        return np.concatenate([_importance(evaluate, start[part], part, base, tail) for part in parts])

    return integrate


def _student_points(k: int, rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Standard Student t points `(n, k)` from a scrambled Sobol sequence, and their log densities."""
    from scipy.special import gammaln, ndtri
    from scipy.stats import chi2, qmc

    nu = DEGREES_OF_FREEDOM
    uniform = qmc.Sobol(k + 1, rng=rng).random_base2(max(1, math.ceil(math.log2(n))))
    uniform = np.clip(uniform, 1e-12, 1 - 1e-12)
    base = ndtri(uniform[:, :k]) / np.sqrt(chi2.ppf(uniform[:, k], nu) / nu)[:, None]
    constant = gammaln((nu + k) / 2) - gammaln(nu / 2) - k / 2 * math.log(nu * math.pi)
    return base, constant - (nu + k) / 2 * np.log1p((base**2).sum(axis=1) / nu)


def _importance(evaluate: Evaluate, start: np.ndarray, draws: slice, base: np.ndarray, log_base: np.ndarray) -> np.ndarray:
    q = start.shape[-1]
    start, scale, flat = _laplace(evaluate, start, draws)
    coordinates = np.einsum("pk,mlk->mpl", base, scale)
    angles, rotations = _exponential(antisymmetric(coordinates, q))
    log_weight = log_haar(angles, q) - log_base + np.log(np.abs(np.linalg.det(scale)))[:, None]
    # The average of a constant q must be exact, so weights are normalised by their mean if log q is flat.
    log_mean_weight = np.where(flat, _log_sum(log_weight) - math.log(len(base)), 0.0)
    return _log_sum(evaluate(start[:, None] @ rotations, draws) + log_weight) - math.log(len(base)) - log_mean_weight


def _laplace(evaluate: Evaluate, start: np.ndarray, draws: slice) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Centre `(m, q, q)` of the proposal after two Newton steps, its scale `(m, k, k)`, and whether log q is flat `(m,)`."""
    q = start.shape[-1]
    for _ in range(2):
        gradient, hessian = _derivatives(evaluate, start, draws)
        curvature, axes = np.linalg.eigh(-hessian)
        bounded = np.maximum(np.abs(curvature), LEAST_CURVATURE)
        step = (axes @ ((gradient[:, None] @ axes)[:, 0] / bounded)[..., None])[..., 0]
        step *= np.minimum(1.0, 1.0 / np.maximum(np.linalg.norm(step, axis=1), 1e-300))[:, None]
        steps = np.array([0.0, 0.25, 0.5, 1.0])[:, None] * step[:, None]
        candidates = start[:, None] @ _exponential(antisymmetric(steps, q))[1]
        start = candidates[np.arange(len(start)), evaluate(candidates, draws).argmax(axis=1)]
    _, hessian = _derivatives(evaluate, start, draws)
    curvature, axes = np.linalg.eigh(-hessian)
    scale = axes / np.sqrt(np.maximum(np.abs(curvature), LEAST_CURVATURE))[:, None]
    return start, scale, np.abs(curvature).max(axis=1) < FLAT


def _derivatives(evaluate: Evaluate, start: np.ndarray, draws: slice) -> tuple[np.ndarray, np.ndarray]:
    """Gradient `(m, k)` and Hessian `(m, k, k)` of log q along R exp(A) at A = 0, by central differences."""
    q = start.shape[-1]
    k = q * (q - 1) // 2
    i, j = np.triu_indices(k, 1)
    single = STEP * np.eye(k)
    points = np.concatenate([np.zeros((1, k)), single, -single, single[i] + single[j], -single[i] - single[j]])
    rotations = _exponential(antisymmetric(points, q))[1]
    found = evaluate(start[:, None] @ rotations, draws)
    if not np.isfinite(found).all():
        raise InferenceError("log q is -inf near a draw; its average over rotations of 3 or more axes is not defined.")
    middle, plus, minus, both_plus, both_minus = np.split(found, np.cumsum([1, k, k, len(i)]), axis=1)
    second = plus + minus - 2 * middle
    hessian = np.zeros((len(start), k, k))
    hessian[:, i, j] = hessian[:, j, i] = (both_plus + both_minus - 2 * middle - second[:, i] - second[:, j]) / 2
    hessian[:, np.arange(k), np.arange(k)] = second
    return (plus - minus) / (2 * STEP), hessian / STEP**2


def antisymmetric(coordinates: np.ndarray, q: int) -> np.ndarray:
    """Build antisymmetric matrices `(..., q, q)` from their entries above the diagonal `(..., q (q - 1) / 2)`."""
    a = np.zeros((*coordinates.shape[:-1], q, q))
    a[..., *np.triu_indices(q, 1)] = coordinates
    return a - a.swapaxes(-1, -2)


def _exponential(a: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Angles `(..., q)` of antisymmetric matrices, in pairs of opposite sign, and their exponentials `(..., q, q)`."""
    angles, vectors = np.linalg.eigh(1j * a)
    rotations = (vectors * np.exp(-1j * angles)[..., None, :]) @ vectors.conj().swapaxes(-1, -2)
    return angles, rotations.real


def log_haar(angles: np.ndarray, q: int) -> np.ndarray:
    """Compute the log density of Haar measure on SO(q) at exp(A), with respect to the entries of A above the diagonal.

    It is -inf if an angle is pi or more.

    Args:
        angles: The q eigenvalues `(..., q)` of iA in ascending order.
        q: Size of the matrices.
    """
    from scipy.special import gammaln

    log_volume = sum(math.log(2) + d / 2 * math.log(math.pi) - gammaln(d / 2) for d in range(2, q + 1))
    # The roots of so(q) are sums and differences of angles. As eigenvalues of iA are +t and -t, pairs of eigenvalues contain each
    # root twice, and the pairs +t, -t must be excluded.
    first, second = np.triu_indices(q, 1)
    keep = first + second != q - 1
    difference = angles[..., first[keep]] - angles[..., second[keep]]
    log_jacobian = np.log(np.sinc(difference / (2 * math.pi)) ** 2 + 1e-300).sum(axis=-1) / 2
    return np.where(np.abs(angles).max(axis=-1) < math.pi, log_jacobian, -np.inf) - log_volume
