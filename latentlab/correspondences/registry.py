"""The registry of correspondences: each claim with its conditions, its citation and its check."""

from collections.abc import Mapping
from typing import Any

from latentlab.correspondences.claim import Correspondence
from latentlab.correspondences.clusters import (
    distances_are_responsibilities,
    spectral_clustering_finds_rings,
    vanishing_variance_makes_kmeans,
    ward_is_a_greedy_mixture,
)
from latentlab.correspondences.gplvm_claims import GPLVM
from latentlab.correspondences.linear import (
    all_neighbours_make_isomap_pca,
    classical_mds_is_ppca,
    nonlinear_map,
    pca_is_ppca,
    scores_are_factor_analysis,
    unequal_noise_separates_pca_and_factor_analysis,
    wide_kernel_is_pca,
)
from latentlab.correspondences.maps import centred_values, nearest, shrunk_axes
from latentlab.correspondences.networks import (
    curvature_separates_pca_and_the_vae,
    deep_code_is_a_map_of_the_means,
    linear_code_spans_ppca,
    linear_code_spans_the_linear_vae,
    mapped_scores_are_the_encoders_mean,
)
from latentlab.correspondences.series import (
    kmeans_ignores_transitions,
    vanishing_noise_makes_pca_the_path,
    viterbi_is_the_best_path,
    windows_blur_changes,
    windows_smooth,
)


def find(
    embedding: str, model: str, options: Mapping[str, Any] | None = None, settings: Mapping[str, Any] | None = None
) -> Correspondence | None:
    """Returns the first claim about an embedding with these options and a model with these settings; None without one."""
    # Options read from a file have lists where claims have tuples.
    used = {k: tuple(v) if isinstance(v, list) else v for k, v in (options or {}).items()}
    for entry in CORRESPONDENCES:
        excluded = any(name in used and used[name] == value for name, value in entry.unless)
        required = all(used.get(name) == value for name, value in entry.options) and is_about(entry, settings or {})
        if (entry.embedding, entry.model) == (embedding, model) and required and not excluded:
            return entry
    return None


def is_about(claim: Correspondence, settings: Mapping[str, Any]) -> bool:
    """Whether a model with these settings meets the requirements of a claim."""
    return all(settings.get(name) == value for name, value in claim.settings)


_TIPPING = "Tipping & Bishop (1999), JRSS B 61:611"
_ROTATION = "rotation and reflection, O(q)"
_NAMES = "permutations of the clusters, S_K"
_STATES = "permutations of the states, S_K"
_SUBSPACE = "invertible linear maps, GL(q): only the subspace can be compared"
_LINEAR = "invertible linear maps, GL(q)"
_KULIS = "Kulis & Jordan (2012), Revisiting k-means, ICML"
_BALDI = "Baldi & Hornik (1989), Neural Networks 2:53"
_DAI = "Dai, Wang, Aston, Hua & Wipf (2018), Connections with Robust PCA, JMLR 19(41)"
_GHOSH = "Ghosh, Sajjadi, Vergari, Black & Schölkopf (2020), From Variational to Deterministic Autoencoders, ICLR"
_LUCAS = "Lucas, Tucker, Grosse & Norouzi (2019), Don't Blame the ELBO!, NeurIPS"


def _no_claim(embedding: str, title: str, citation: str) -> Correspondence:
    return Correspondence(
        embedding,
        "ppca",
        "none",
        claim=f"{title} is often read as an estimate of latent positions. It does not estimate PPCA's positions, even if PPCA is "
        "true.",
        conditions="none",
        breaks="it preserves neighbourhoods, but is not a linear map of the positions: large distances and axes have no meaning",
        symmetry="Euclidean motions and all maps that preserve neighbourhoods",
        citation=citation,
        check=nonlinear_map(embedding),
    )


CORRESPONDENCES: tuple[Correspondence, ...] = (
    Correspondence(
        "pca",
        "ppca",
        "exact",
        claim="PCA scores, with each axis multiplied by sqrt(lambda - sigma^2) / lambda, are PPCA's posterior mean at the "
        "maximum of the likelihood.",
        conditions="no missing entries; W, mu and sigma at the maximum of the likelihood (flat priors, many units)",
        breaks="raw scores, which have variances lambda, unlike the positions; missing entries; strong priors; unequal noise "
        "variances",
        symmetry=_ROTATION,
        citation=_TIPPING,
        check=pca_is_ppca,
        map=shrunk_axes,
        unless=(("whiten", True),),
    ),
    Correspondence(
        "mds",
        "ppca",
        "exact",
        claim="Classical MDS of Euclidean distances gives the PCA scores. The same map as for PCA therefore gives PPCA's "
        "posterior mean.",
        conditions='method="classical"; Euclidean distances between the same columns; the conditions for PCA',
        breaks="metric MDS by stress (SMACOF); other distances; all failures of the claim for PCA",
        symmetry=_ROTATION,
        citation="Gower (1966), Biometrika 53:325; " + _TIPPING,
        check=classical_mds_is_ppca,
        map=shrunk_axes,
        options=(("method", "classical"),),
    ),
    Correspondence(
        "factor_analysis",
        "factor_analysis",
        "exact",
        claim="Factor scores (regression method) are the posterior mean of the positions at the maximum of the likelihood.",
        conditions="no missing entries; loadings and noise at the maximum of the likelihood; the same local maximum",
        breaks="Bartlett scores, which are not shrunk; Heywood cases; several maxima of the likelihood",
        symmetry=_ROTATION,
        citation="Rubin & Thayer (1982), Psychometrika 47:69",
        check=scores_are_factor_analysis,
        map=centred_values,
    ),
    Correspondence(
        "pca",
        "factor_analysis",
        "limit",
        claim="As the noise variances become equal, PCA scores tend to the factor positions, up to a linear map.",
        conditions="equal noise variances psi of all features",
        breaks="unequal noise variances: a feature with large noise determines a principal axis",
        symmetry=_LINEAR,
        citation=_TIPPING,
        check=unequal_noise_separates_pca_and_factor_analysis,
    ),
    Correspondence(
        "kernel_pca",
        "ppca",
        "limit",
        claim="As the width of its Gaussian kernel increases, kernel PCA tends to PCA, up to the scale of the axes.",
        conditions="gamma times the largest squared distance tends to 0",
        breaks="kernels about as wide as the data, the usual choice: the map is nonlinear",
        symmetry=_LINEAR,
        citation="Schölkopf, Smola & Müller (1998), Neural Computation 10:1299",
        check=wide_kernel_is_pca,
    ),
    Correspondence(
        "isomap",
        "ppca",
        "limit",
        claim="Isomap with all units as neighbours is classical MDS, and therefore PCA.",
        conditions="n_neighbors = number of units - 1",
        breaks="few neighbours: paths through noisy points are longer than the Euclidean distances",
        symmetry=_ROTATION,
        citation="Tenenbaum, de Silva & Langford (2000), Science 290:2319",
        check=all_neighbours_make_isomap_pca,
    ),
    _no_claim("spectral", "A Laplacian eigenmap", "Belkin & Niyogi (2003), Neural Computation 15:1373"),
    _no_claim("lle", "Locally linear embedding", "Roweis & Saul (2000), Science 290:2323"),
    _no_claim("tsne", "t-SNE", "van der Maaten & Hinton (2008), JMLR 9:2579"),
    _no_claim("umap", "UMAP", "McInnes, Healy & Melville (2018), arXiv:1802.03426"),
    Correspondence(
        "kmeans",
        "gaussian_mixture",
        "exact",
        claim="For distances d to the centres, exp(-d^2 / 2 sigma^2), normalised to a sum of 1, are the responsibilities of a "
        "mixture with these means. The nearest centre is the most probable label.",
        conditions='output="distances"; equal weights, one spherical covariance, means at the centres of k-means',
        breaks="unequal weights or covariances; overlapping clusters, whose centres by k-means are farther apart than the "
        "mixture's means",
        symmetry=_NAMES,
        citation="MacKay (2003), Information Theory, Inference, and Learning Algorithms, ch. 20 and 22",
        check=distances_are_responsibilities,
        map=nearest,
        options=(("output", "distances"),),
    ),
    Correspondence(
        "kmeans",
        "gaussian_mixture",
        "limit",
        claim="As the variance tends to 0, the maximum-likelihood means and labels of the mixture tend to those of k-means.",
        conditions="equal weights and one spherical covariance, fixed as the variance tends to 0; the best of sufficiently many "
        "starts",
        breaks="unequal weights or covariances, if k-means splits a wide cluster; overlap, as k-means gives no label "
        "probabilities",
        symmetry=_NAMES,
        citation=_KULIS,
        check=vanishing_variance_makes_kmeans,
    ),
    Correspondence(
        "agglomerative",
        "gaussian_mixture",
        "approximate",
        claim="Ward's method greedily estimates the clusters of a mixture with equal weights and one spherical covariance.",
        conditions='linkage="ward"; well-separated clusters',
        breaks="overlapping clusters, as mergers are final; unequal covariances; other linkages, which may form chains",
        symmetry=_NAMES,
        citation="Fraley & Raftery (2002), JASA 97:611",
        check=ward_is_a_greedy_mixture,
        options=(("linkage", "ward"),),
    ),
    Correspondence(
        "spectral_clustering",
        "gaussian_mixture",
        "none",
        claim="Spectral clusters are often read as mixture components. They are connected groups of any shape and do not "
        "estimate the components.",
        conditions="none; agreement only for clusters so well separated that every method finds them",
        breaks="clusters that are not Gaussian: it finds two concentric rings, which two Gaussian components cannot represent",
        symmetry=_NAMES,
        citation="von Luxburg (2007), A tutorial on spectral clustering, Stat. Comput. 17:395",
        check=spectral_clustering_finds_rings,
    ),
    Correspondence(
        "viterbi",
        "gaussian_hmm",
        "limit",
        claim="The Viterbi path is the most probable sequence of states. As the states separate, it tends to the most probable "
        "state of each step.",
        conditions="parameters at the maximum of the likelihood; states many standard deviations apart",
        breaks="overlapping states: the most probable path has a low probability and differs from the most probable state of "
        "each step",
        symmetry=_STATES,
        citation="Rabiner (1989), Proc. IEEE 77:257",
        check=viterbi_is_the_best_path,
    ),
    Correspondence(
        "kmeans",
        "gaussian_hmm",
        "limit",
        claim="As the states separate, the clusters by k-means of single steps tend to the states: each observation determines "
        "its state.",
        conditions="states many standard deviations apart, all visited often",
        breaks="overlapping states, if neighbouring steps are informative about a state; states with unequal variances",
        symmetry=_STATES,
        citation=_KULIS,
        check=kmeans_ignores_transitions,
    ),
    Correspondence(
        "window_kmeans",
        "gaussian_hmm",
        "none",
        claim="Clusters of windows are often read as states. Windows around a change of state mix two states, at any separation.",
        conditions="none; for overlapping, persistent states it may be more accurate than k-means of single steps",
        breaks="a change of state within the window, which then belongs to neither state",
        symmetry=_STATES,
        citation="Keogh & Lin (2005), Clustering of time-series subsequences is meaningless, Knowl. Inf. Syst. 8:154",
        check=windows_blur_changes,
    ),
    Correspondence(
        "pca",
        "state_space",
        "limit",
        claim="As the noise tends to 0, PCA of single steps spans the positions for any dynamics.",
        conditions="noise small relative to C z; at least as many features as latent dimensions",
        breaks="noise, as the posterior smooths over time and PCA does not; fewer features than latent dimensions",
        symmetry=_LINEAR,
        citation=_TIPPING,
        check=vanishing_noise_makes_pca_the_path,
    ),
    Correspondence(
        "window_pca",
        "state_space",
        "approximate",
        claim="For slow dynamics and large noise, PCA of windows is approximately a linear map of the smoothed positions.",
        conditions="windows about as long as the time over which the model smooths",
        breaks="small noise, for which it smooths too much; fast dynamics; the ends of a series, where the model smooths less",
        symmetry=_LINEAR,
        citation="Broomhead & King (1986), Physica D 20:217",
        check=windows_smooth,
    ),
    Correspondence(
        "autoencoder",
        "ppca",
        "exact",
        claim="The code of a linear autoencoder spans the PCA scores. An affine map of it is therefore PPCA's posterior mean.",
        conditions="no hidden layers; converged; no missing entries; PPCA at the maximum of the likelihood",
        breaks="axes, angles and distances of the code, which differ from those of the positions after any rotation and scaling",
        symmetry=_SUBSPACE,
        citation=_BALDI,
        check=linear_code_spans_ppca,
        options=(("hidden", ()),),
    ),
    Correspondence(
        "autoencoder",
        "linear_vae",
        "exact",
        claim="The code of a linear autoencoder and the encoder means of a linear VAE span the same space as the PCA scores.",
        conditions="no hidden layers; converged; no missing entries; the ELBO at its maximum; no posterior collapse of an axis",
        breaks="axes, angles and distances of the code, which only the VAE's prior and diagonal encoder determine; posterior "
        "collapse",
        symmetry=_SUBSPACE,
        citation=_BALDI + "; " + _LUCAS,
        check=linear_code_spans_the_linear_vae,
        options=(("hidden", ()),),
    ),
    Correspondence(
        "pca",
        "linear_vae",
        "exact",
        claim="PCA scores, with each axis multiplied by sqrt(lambda - sigma^2) / lambda, are the encoder means at the maximum of "
        "the ELBO, which equals the maximum of PPCA's likelihood.",
        conditions="no missing entries; all parameters, including sigma, at the maximum of the ELBO",
        breaks="sigma^2 fixed above an eigenvalue, which collapses that axis; raw scores, which have variances lambda; an ELBO "
        "below its maximum",
        symmetry="order and signs of the axes: a diagonal encoder determines the rotation at the maximum of the ELBO",
        citation=_LUCAS,
        check=mapped_scores_are_the_encoders_mean,
        map=shrunk_axes,
        unless=(("whiten", True),),
    ),
    Correspondence(
        "autoencoder",
        "vae",
        "limit",
        claim="As 2 beta sigma^2, the weight of the KL divergence relative to the squared error, tends to 0, the VAE minimises "
        "the reconstruction error, like the autoencoder. The code is then a smooth invertible map of the encoder means.",
        conditions="the same networks, with hidden layers and too small to fit the noise; Gaussian noise with one variance for "
        "all features; both trained to a good optimum",
        breaks="a large weight through large noise or beta, which collapses dimensions; optima with a discontinuous or folded "
        "code; axes, angles and distances of the code, which only the VAE's prior determines",
        symmetry="smooth invertible maps: only reconstructions can be compared, and neighbourhoods approximately",
        citation=_GHOSH,
        check=deep_code_is_a_map_of_the_means,
        unless=(("hidden", ()),),
    ),
    Correspondence(
        "pca",
        "vae",
        "approximate",
        claim="If the projection of the data manifold onto the principal plane is one-to-one, the PCA scores are approximately a "
        "smooth invertible map of a deep VAE's encoder means.",
        conditions="data near a manifold with the dimension of the positions and small curvature; noise small relative to it",
        breaks="a manifold with large curvature, whose projection overlaps itself or omits a direction; distances, even on a "
        "flat manifold, as the decoder may stretch it to fit the prior",
        symmetry="smooth invertible maps; linear maps if the decoder is linear",
        citation=_DAI,
        check=curvature_separates_pca_and_the_vae,
    ),
    *GPLVM,
)
