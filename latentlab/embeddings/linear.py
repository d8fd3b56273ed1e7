"""Linear embeddings, and PCA in a kernel's feature space."""

from typing import Literal

import numpy as np

from latentlab.embeddings.embedding import all_pairs, whole
from latentlab.errors import ConfigError, DataError


def pca(x: np.ndarray, n_latent: int, *, whiten: bool = False) -> np.ndarray:
    r"""Principal component scores: the projection that keeps the most variance.

    $T = (X - \bar X) V_q = U_q S_q$ from the singular value decomposition $X - \bar X = U S V'$: columns are uncorrelated, the
    first has the largest variance, and distances between units are kept as well as a projection can. Columns are centred,
    and not scaled unless whitened: then each is divided by its standard deviation (ddof 0).

    Args:
        x: Table `(unit, feature)`.
        n_latent: Columns q, fewer than features.
        whiten: Scale each column to variance 1.

    References:
        Jolliffe (2002), Principal Component Analysis, Springer.
    """
    _fewer("pca", x, n_latent)
    u, s, _ = np.linalg.svd(x - x.mean(axis=0), full_matrices=False)
    if not whiten:
        return u[:, :n_latent] * s[:n_latent]
    if s[n_latent - 1] <= 1e-12 * s[0]:
        rank = int((s > 1e-12 * s[0]).sum())
        raise DataError(f"embedding 'pca': the data have rank {rank}; {n_latent} columns of them cannot be whitened.")
    return u[:, :n_latent] * np.sqrt(len(x))


def factor_analysis(
    x: np.ndarray, n_latent: int, *, rotation: Literal["varimax", "quartimax"] | None = None, notes: list[str]
) -> np.ndarray:
    r"""Factor scores by regression: the posterior mean of the factors at maximum likelihood.

    $E[z \mid x] = (I + W'\Psi^{-1}W)^{-1} W' \Psi^{-1} (x - \bar x)$ with loadings W and noise variances $\Psi$ of
    $x \sim N(\mu, W W' + \Psi)$, from scikit-learn's EM. It keeps what the features have in common, whatever the noise of
    each; scaling a feature does not change the scores. Columns are centred, their variances below 1.

    Args:
        x: Table `(unit, feature)`, no column constant.
        n_latent: Factors, fewer than features.
        rotation: Towards loadings (of features scaled to variance 1) that are large or small: None, `varimax`, `quartimax`.
        notes: Is told of noise variances at 0 (a Heywood case).

    References:
        Rubin & Thayer (1982), EM algorithms for ML factor analysis, Psychometrika 47:69.
    """
    from sklearn.decomposition import FactorAnalysis

    _fewer("factor_analysis", x, n_latent)
    scale = x.std(axis=0)
    constant = np.flatnonzero(scale <= 1e-14 * np.abs(x).max(axis=0))
    if constant.size:
        where = f"column {constant[0]} (counting from 0) is constant"
        raise DataError(f"embedding 'factor_analysis': {where}, so its noise has no estimate; leave it out.")
    # The likelihood does not depend on the features' scales; where EM stands when it stops does.
    scaled = (x - x.mean(axis=0)) / scale
    fitted = FactorAnalysis(n_latent, svd_method="lapack", tol=1e-8, max_iter=20_000, rotation=rotation).fit(scaled)
    n_zero = int((fitted.noise_variance_ < 1e-6).sum())
    if n_zero:
        notes.append(f"the noise of {n_zero} features is estimated at 0 (a Heywood case)")
    return fitted.transform(scaled)


def kernel_pca(x: np.ndarray, n_latent: int, *, gamma: float | None = None) -> np.ndarray:
    r"""PCA in the feature space of a Gaussian kernel.

    The kernel is $k(x, y) = \exp(-\gamma |x - y|^2)$; the columns are the first eigenvectors of the centred kernel matrix
    $H K H$, each times the root of its eigenvalue. It keeps the distances $2 - 2 k(x, y)$, in which all units far apart are
    equally far; as $\gamma$ tends to 0 it becomes PCA, scaled.

    Args:
        x: Table `(unit, feature)`.
        n_latent: Columns, fewer than units.
        gamma: Inverse squared width; 1 over the number of features where None.

    References:
        Schölkopf, Smola & Müller (1998), Nonlinear component analysis as a kernel eigenvalue problem, Neural
        Computation 10:1299.
    """
    from sklearn.decomposition import KernelPCA

    whole("kernel_pca", "n_latent", n_latent, 1, len(x) - 1, f" (fewer than the {len(x)} units)")
    if gamma is not None and not 0 < gamma < np.inf:
        raise ConfigError(f"embedding 'kernel_pca': `gamma` must be a finite number above 0; got {gamma!r}.")
    all_pairs("kernel_pca", len(x))
    return KernelPCA(n_latent, kernel="rbf", gamma=gamma, eigen_solver="dense").fit_transform(x)


def _fewer(name: str, x: np.ndarray, n_latent: int) -> None:
    n_units, n_features = x.shape
    whole(name, "n_latent", n_latent, 1, min(n_features, n_units) - 1, f" ({n_units} units of {n_features} features)")
