"""Linear embeddings, and PCA in the feature space of a kernel."""

from typing import Annotated, Literal

import numpy as np
from annotated_types import Gt
from scipy.spatial.distance import pdist, squareform

from latentlab.embeddings.entry import all_pairs, at_most
from latentlab.errors import ConfigError, DataError

HEYWOOD = 1e-3
"""Share of a feature's variance below which its noise variance counts as 0; EM approaches 0 slowly."""
KERNEL_ZERO = 18.0
"""Bound on gamma times the smallest squared distance; above it all kernel values of two units are below 2e-8 (rounding error)."""
KERNEL_ONE = 1e-12
"""Bound on gamma times the largest squared distance; below it all kernel values differ from 1 by less than this."""


def pca(x: np.ndarray, n_latent: int, *, whiten: bool = False) -> np.ndarray:
    r"""Principal component scores: the linear projection of maximal variance.

    $T = (X - \bar X) V_q = U_q S_q$ from the singular value decomposition $X - \bar X = U S V^T$. Columns are uncorrelated, in
    decreasing order of variance. Among linear projections it preserves distances between units best. Columns of the data are
    centred, but not scaled. If whitened, each column of T is divided by its standard deviation (ddof 0).

    Args:
        x: Table `(unit, feature)`.
        n_latent: Number of columns q, smaller than the numbers of features and units.
        whiten: Scale each column to variance 1.

    References:
        Jolliffe (2002), Principal Component Analysis, Springer.
    """
    _check_n_latent("pca", x, n_latent)
    u, s, _ = np.linalg.svd(x - x.mean(axis=0), full_matrices=False)
    if not whiten:
        return u[:, :n_latent] * s[:n_latent]
    if s[n_latent - 1] <= 1e-12 * s[0]:
        rank = int((s > 1e-12 * s[0]).sum())
        raise DataError(
            f"embedding 'pca': the data have rank {rank}, so {n_latent} columns cannot be whitened; lower `n_latent`."
        )
    return u[:, :n_latent] * np.sqrt(len(x))


def factor_analysis(
    x: np.ndarray, n_latent: int, *, rotation: Literal["varimax", "quartimax"] | None = None, notes: list[str]
) -> np.ndarray:
    r"""Factor scores by regression: the posterior mean of the factors at maximum likelihood.

    $E[z \mid x] = (I + W^T \Psi^{-1} W)^{-1} W^T \Psi^{-1} (x - \bar x)$ with loadings W and noise variances $\Psi$ of
    $x \sim N(\mu, W W^T + \Psi)$, from scikit-learn's EM. The loadings reproduce the covariances between features; the noise
    variances account for the remaining variances. Scaling a feature does not change the scores. Columns have mean 0 and variance
    below 1.

    Args:
        x: Table `(unit, feature)` without constant columns.
        n_latent: Number of factors, smaller than the numbers of features and units.
        rotation: Rotation to simple structure of the loadings (of features scaled to variance 1): None, `varimax`, `quartimax`.
        notes: List to which a note on noise variances of 0 (a Heywood case) is appended.

    References:
        Rubin & Thayer (1982), EM algorithms for ML factor analysis, Psychometrika 47:69.
    """
    from sklearn.decomposition import FactorAnalysis

    _check_n_latent("factor_analysis", x, n_latent)
    scale = x.std(axis=0)
    constant = np.flatnonzero(scale <= 1e-14 * np.abs(x).max(axis=0))
    if constant.size:
        where = f"column {constant[0]} (counting from 0) is constant"
        raise DataError(f"embedding 'factor_analysis': {where}, so its noise variance cannot be estimated; leave it out.")
    # The likelihood is invariant under scaling of features, but the point at which EM stops is not.
    scaled = (x - x.mean(axis=0)) / scale
    fitted = FactorAnalysis(n_latent, svd_method="lapack", tol=1e-8, max_iter=20_000, rotation=rotation).fit(scaled)
    n_zero = int((fitted.noise_variance_ < HEYWOOD).sum())
    if n_zero:
        notes.append(f"the noise variance of {n_zero} feature{'s' * (n_zero > 1)} was estimated as 0 (a Heywood case)")
    return fitted.transform(scaled)


def kernel_pca(x: np.ndarray, n_latent: int, *, gamma: Annotated[float, Gt(0)] | None = None) -> np.ndarray:
    r"""PCA in the feature space of a Gaussian kernel.

    The kernel is $k(x, y) = \exp(-\gamma |x - y|^2)$. The columns are the first eigenvectors of the centred kernel matrix
    $H K H$, each times the square root of its eigenvalue. It preserves the squared distances $2 - 2 k(x, y)$, which are nearly
    equal for all distant units. As $\gamma$ tends to 0, it becomes PCA up to scale.

    Args:
        x: Table `(unit, feature)`.
        n_latent: Number of columns, smaller than the number of units.
        gamma: Inverse squared width; by default 1 divided by the number of features.

    References:
        Schölkopf, Smola & Müller (1998), Nonlinear component analysis as a kernel eigenvalue problem, Neural
        Computation 10:1299.
    """
    from sklearn.decomposition import KernelPCA

    at_most("kernel_pca", "n_latent", n_latent, len(x) - 1, f"fewer than the {len(x)} units")
    all_pairs("kernel_pca", len(x))
    distances = pdist(x, "sqeuclidean")
    chosen = 1 / x.shape[1] if gamma is None else gamma
    if chosen * distances.min() > KERNEL_ZERO or chosen * distances.max() < KERNEL_ONE:
        limit = 1 if chosen * distances.max() < KERNEL_ONE else 0
        raise ConfigError(
            f"embedding 'kernel_pca': with `gamma` = {chosen:.3g} the kernel values of all pairs of units are nearly {limit}; "
            f"the median squared distance of the units is {np.median(distances):.3g}: set `gamma` to about its inverse."
        )
    kernel = squareform(np.exp(-chosen * distances)) + np.eye(len(x))
    return KernelPCA(n_latent, kernel="precomputed", eigen_solver="dense").fit_transform(kernel)


def _check_n_latent(name: str, x: np.ndarray, n_latent: int) -> None:
    n_units, n_features = x.shape
    if n_features < 2:
        raise ConfigError(f"embedding {name!r} needs at least 2 features; the data have 1. Leave out the embedding.")
    at_most(name, "n_latent", n_latent, min(n_features, n_units) - 1, f"there are {n_units} units of {n_features} features")
