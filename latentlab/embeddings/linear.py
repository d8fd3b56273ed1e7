"""Linear embeddings, and PCA in a kernel's feature space."""

import numpy as np

from latentlab.embeddings.embedding import positive, whole
from latentlab.errors import DataError


def pca(x: np.ndarray, n_latent: int, *, whiten: bool = False) -> np.ndarray:
    r"""Principal component scores: the projection that keeps the most variance.

    $T = (X - \bar X) V_q = U_q S_q$ from the singular value decomposition $X - \bar X = U S V'$; whitened, each column is
    divided by its standard deviation (ddof 0).

    Args:
        x: Table `(unit, feature)`.
        n_latent: Columns q.
        whiten: Scale each column to variance 1.

    References:
        Jolliffe (2002), Principal Component Analysis, Springer.
    """
    _fewer("pca", x, n_latent)
    u, s, _ = np.linalg.svd(x - x.mean(axis=0), full_matrices=False)
    if whiten:
        if s[n_latent - 1] <= 1e-12 * s[0]:
            raise DataError(f"embedding 'pca': the data have rank below n_latent = {n_latent}; they cannot be whitened.")
        return u[:, :n_latent] * np.sqrt(len(x))
    return u[:, :n_latent] * s[:n_latent]


def factor_analysis(x: np.ndarray, n_latent: int, *, rotation: str | None = None) -> np.ndarray:
    r"""Factor scores by regression: the posterior mean of the factors at maximum likelihood.

    $E[z \mid x] = (I + W'\Psi^{-1}W)^{-1} W' \Psi^{-1} (x - \bar x)$, W and Psi from scikit-learn's EM.

    Args:
        x: Table `(unit, feature)`.
        n_latent: Factors.
        rotation: None, `varimax` or `quartimax`.

    References:
        Rubin & Thayer (1982), EM algorithms for ML factor analysis, Psychometrika 47:69.
    """
    from sklearn.decomposition import FactorAnalysis

    _fewer("factor_analysis", x, n_latent)
    if rotation not in (None, "varimax", "quartimax"):
        raise DataError(f"embedding 'factor_analysis': `rotation` must be none, varimax or quartimax; got {rotation!r}.")
    constant = np.flatnonzero(x.std(axis=0) == 0)
    if constant.size:
        raise DataError(f"embedding 'factor_analysis': column {constant[0]} is constant, so its noise has no estimate.")
    fitted = FactorAnalysis(n_latent, svd_method="lapack", tol=1e-8, max_iter=20_000, rotation=rotation).fit(x)
    return fitted.transform(x)


def kernel_pca(x: np.ndarray, n_latent: int, *, gamma: float | None = None) -> np.ndarray:
    r"""PCA in the feature space of a Gaussian kernel.

    The kernel is $k(x, y) = \exp(-\gamma |x - y|^2)$.

    Args:
        x: Table `(unit, feature)`.
        n_latent: Columns.
        gamma: Inverse squared width; 1 over the number of features where None.

    References:
        Schölkopf, Smola & Müller (1998), Nonlinear component analysis as a kernel eigenvalue problem, Neural
        Computation 10:1299.
    """
    from sklearn.decomposition import KernelPCA

    whole("kernel_pca", "n_latent", n_latent, 1, len(x) - 1, f" (fewer than the {len(x)} units)")
    if gamma is not None:
        positive("kernel_pca", "gamma", gamma)
    return KernelPCA(n_latent, kernel="rbf", gamma=gamma, eigen_solver="dense").fit_transform(x)


def _fewer(name: str, x: np.ndarray, n_latent: int) -> None:
    most = min(x.shape[1], len(x) - 1)
    whole(name, "n_latent", n_latent, 1, most, f" ({len(x)} units of {x.shape[1]} features)")
