"""Embeddings of sparse matrices by their leading singular vectors and eigenvectors."""

from typing import Any

import numpy as np
import scipy.sparse

from latentlab.embeddings.entry import at_most
from latentlab.errors import DataError

DENSE = 2000
"""Smaller dimension up to which a matrix is decomposed densely; larger ones use an iterative solver."""


def truncated_svd(matrix: Any, n_latent: int, *, center: bool = True, notes: list[str]) -> tuple[np.ndarray, np.ndarray]:
    r"""Truncated singular value decomposition of a matrix of ratings.

    Let $R - \bar r = A S B^T$, with unobserved cells set to 0 after the mean of the observed ratings is subtracted. Users (the
    rows of R) are at the rows of $A_q S_q^{1/2}$, and items (its columns) at the rows of $B_q S_q^{1/2}$. Their inner products
    are the best rank-q approximation of $R - \bar r$. Setting unobserved cells to the mean shrinks positions with few
    observations towards 0.

    Args:
        matrix: Sparse matrix of ratings `(user, item)`.
        n_latent: Number of columns q, smaller than the numbers of users and items.
        center: Subtract the mean of the observed ratings first.
        notes: List to which the number of unobserved cells is appended.

    References:
        Koren, Bell & Volinsky (2009), Matrix factorization techniques for recommender systems, Computer 42:30.
    """
    n, m = matrix.shape
    at_most("truncated_svd", "n_latent", n_latent, min(n, m) - 1, f"there are {n} rows and {m} columns")
    centred = scipy.sparse.csr_array(matrix, copy=True)
    centred.data = centred.data - (centred.data.mean() if center else 0.0)
    if not np.abs(centred.data).max() > 0:
        raise DataError("embedding 'truncated_svd': all ratings are equal.")
    unobserved = n * m - centred.nnz
    if unobserved:
        notes.append(f"{unobserved} of {n * m} cells were unobserved and were set to {'the mean' if center else '0'}")
    if min(n, m) <= DENSE:
        u, s, vt = np.linalg.svd(centred.toarray(), full_matrices=False)
    else:
        from scipy.sparse.linalg import svds

        u, s, vt = svds(centred, k=n_latent, v0=np.ones(min(n, m)), tol=1e-12)
        u, s, vt = u[:, ::-1], s[::-1], vt[::-1]
    root = np.sqrt(s[:n_latent])
    return u[:, :n_latent] * root, vt[:n_latent].T * root


def adjacency_spectral(adjacency: Any, n_latent: int, *, notes: list[str]) -> np.ndarray:
    r"""Adjacency spectral embedding of an undirected graph.

    Let $A = X \Lambda X^T$ be the adjacency matrix and $\Lambda_q$ its q eigenvalues of largest magnitude. Nodes are the rows of
    $X_q |\Lambda_q|^{1/2}$. If these eigenvalues are positive, inner products of nodes are the best rank-q approximation of A,
    which estimates the edge probabilities of a random dot product graph.

    Args:
        adjacency: Sparse symmetric matrix `(node, node)`.
        n_latent: Number of columns q, smaller than the number of nodes.
        notes: List to which the number of negative eigenvalues among the q is appended.

    References:
        Sussman, Tang, Fishkind & Priebe (2012), A consistent adjacency spectral embedding for stochastic blockmodel graphs, JASA
        107:1119.
    """
    n = adjacency.shape[0]
    at_most("adjacency_spectral", "n_latent", n_latent, n - 1, f"fewer than the {n} nodes")
    if not adjacency.nnz:
        raise DataError("embedding 'adjacency_spectral': the graph has no edges.")
    if abs(adjacency - adjacency.T).max() > 0:
        raise DataError(
            "embedding 'adjacency_spectral': the graph is directed; expected an undirected graph, whose matrix is symmetric."
        )
    if n <= DENSE:
        values, vectors = np.linalg.eigh(adjacency.toarray())
    else:
        from scipy.sparse.linalg import eigsh

        values, vectors = eigsh(adjacency, k=n_latent, which="LM", v0=np.ones(n), tol=1e-12)
    order = np.argsort(-np.abs(values), kind="stable")[:n_latent]
    negative = int((values[order] < 0).sum())
    if negative:
        notes.append(
            f"{negative} of the {n_latent} leading eigenvalues {'is' if negative == 1 else 'are'} negative, "
            "because edges connect dissimilar nodes"
        )
    return np.asarray(vectors[:, order] * np.sqrt(np.abs(values[order])))
