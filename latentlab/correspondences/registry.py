"""The registry of correspondences: each claim with its conditions, its citation and its check."""

from collections.abc import Mapping
from typing import Any

from latentlab.correspondences.claim import Correspondence
from latentlab.correspondences.clusters import (
    distances_are_responsibilities,
    rings_part_spectral_clustering_from_the_mixture,
    vanishing_variance_makes_kmeans,
    ward_is_a_greedy_mixture,
)
from latentlab.correspondences.linear import (
    all_neighbours_make_isomap_pca,
    bent_positions,
    classical_mds_is_ppca,
    pca_is_ppca,
    scores_are_factor_analysis,
    unequal_noise_parts_pca_from_factor_analysis,
    wide_kernel_is_pca,
)
from latentlab.correspondences.maps import as_it_is, nearest, shrunk_axes
from latentlab.correspondences.networks import (
    bent_sheet_parts_pca_from_the_vae,
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


def find(embedding: str, model: str, options: Mapping[str, Any] | None = None) -> Correspondence | None:
    """Returns the first claim about an embedding with these options and a model, or None if there is none."""
    # Options read from a file have lists where claims have tuples.
    made = {k: tuple(v) if isinstance(v, list) else v for k, v in (options or {}).items()}
    for entry in CORRESPONDENCES:
        excluded = any(name in made and made[name] == value for name, value in entry.unless)
        required = all(made.get(name) == value for name, value in entry.options)
        if (entry.embedding, entry.model) == (embedding, model) and required and not excluded:
            return entry
    return None


_TIPPING = "Tipping & Bishop (1999), JRSS B 61:611"
_ROTATION = "rotation and reflection, O(q)"
_NAMES = "the names of the clusters, S_K"
_STATES = "the names of the states, S_K"
_SUBSPACE = "linear maps, GL(q): only the subspace is comparable"
_LINEAR = "linear maps, GL(q)"
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
        claim=f"{title} is read as a picture of latent positions; it is not an estimate of PPCA's, even where PPCA is true.",
        conditions="none",
        breaks="it keeps neighbours, not a linear map of the positions: distances between far units, and axes, have no meaning",
        symmetry="Euclidean motions, and any change of distances that keeps neighbours",
        citation=citation,
        check=bent_positions(embedding),
    )


CORRESPONDENCES: tuple[Correspondence, ...] = (
    Correspondence(
        "pca",
        "ppca",
        "exact",
        claim="PCA scores, each axis times sqrt(lambda - sigma^2) / lambda, are PPCA's posterior mean at maximum likelihood.",
        conditions="no missing entries; W, mu and sigma at the maximum of the likelihood (flat priors, many units)",
        breaks="raw scores carry sqrt(lambda), which the positions do not; missing entries; strong priors; noise of unequal size",
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
        claim="Classical MDS on Euclidean distances gives the PCA scores, so the same map leads to PPCA's posterior mean.",
        conditions='method="classical", Euclidean distances between the same columns; as for PCA',
        breaks="metric MDS by stress (SMACOF), other distances; and what breaks it for PCA",
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
        claim="Factor scores (regression method) are the posterior mean of the positions at maximum likelihood.",
        conditions="no missing entries; loadings and noise at the maximum of the likelihood; the same local maximum",
        breaks="Bartlett scores (not shrunk); a Heywood case; a likelihood with several maxima",
        symmetry=_ROTATION,
        citation="Rubin & Thayer (1982), Psychometrika 47:69",
        check=scores_are_factor_analysis,
        map=as_it_is,
    ),
    Correspondence(
        "pca",
        "factor_analysis",
        "limit",
        claim="PCA finds the factor positions, up to a linear map, as the noise of all features becomes equal.",
        conditions="equal psi in all features",
        breaks="unequal noise: a feature with large noise draws a principal axis to itself",
        symmetry=_LINEAR,
        citation=_TIPPING,
        check=unequal_noise_parts_pca_from_factor_analysis,
    ),
    Correspondence(
        "kernel_pca",
        "ppca",
        "limit",
        claim="Kernel PCA with a Gaussian kernel tends to PCA, up to the scale of its axes, as the kernel becomes wide.",
        conditions="gamma times the largest squared distance tends to 0",
        breaks="any kernel of the width of the data, the usual choice: the positions are bent",
        symmetry=_LINEAR,
        citation="Schölkopf, Smola & Müller (1998), Neural Computation 10:1299",
        check=wide_kernel_is_pca,
    ),
    Correspondence(
        "isomap",
        "ppca",
        "limit",
        claim="Isomap with all units as neighbours is classical MDS, and so PCA.",
        conditions="n_neighbors = number of units - 1",
        breaks="few neighbours: paths along the noise are longer than the distances",
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
        claim="exp(-d^2 / 2 sigma^2) of the distances to the centres, made to sum to 1, are the responsibilities of a mixture "
        "around these centres; the nearest centre is the most probable label.",
        conditions='output="distances"; equal weights, one spherical covariance, means at the centres of k-means',
        breaks="unequal weights or covariances; the mixture's own means, which k-means pulls apart where clusters overlap",
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
        claim="As the variance tends to 0, maximum likelihood has the centres and the labels of k-means.",
        conditions="equal weights, one spherical covariance, both kept so as the variance tends to 0; the best of enough starts",
        breaks="unequal weights or covariances: k-means cuts a wide cluster in two; overlap: it says nothing of who is unsure",
        symmetry=_NAMES,
        citation=_KULIS,
        check=vanishing_variance_makes_kmeans,
    ),
    Correspondence(
        "agglomerative",
        "gaussian_mixture",
        "approximate",
        claim="Ward's clusters are a greedy estimate of those of a mixture with equal weights and one spherical covariance.",
        conditions='linkage="ward"; clusters far apart',
        breaks="overlap, as what was joined is never parted; unequal covariances; other linkages, which follow chains",
        symmetry=_NAMES,
        citation="Fraley & Raftery (2002), JASA 97:611",
        check=ward_is_a_greedy_mixture,
        options=(("linkage", "ward"),),
    ),
    Correspondence(
        "spectral_clustering",
        "gaussian_mixture",
        "none",
        claim="Spectral clusters are read as components; they are connected groups of any shape, and no estimate of components.",
        conditions="none; clusters so far apart that every method finds them",
        breaks="groups that are no clouds: it finds two rings, which no two Gaussians do",
        symmetry=_NAMES,
        citation="von Luxburg (2007), A tutorial on spectral clustering, Stat. Comput. 17:395",
        check=rings_part_spectral_clustering_from_the_mixture,
    ),
    Correspondence(
        "viterbi",
        "gaussian_hmm",
        "limit",
        claim="The Viterbi path is the most probable path; as the states move apart it is every step's most probable state too.",
        conditions="parameters at the maximum of the likelihood; states many standard deviations apart",
        breaks="weak signal: the most probable path is one of very many, and not made of the steps' most probable states",
        symmetry=_STATES,
        citation="Rabiner (1989), Proc. IEEE 77:257",
        check=viterbi_is_the_best_path,
    ),
    Correspondence(
        "kmeans",
        "gaussian_hmm",
        "limit",
        claim="As the states move apart, k-means of single steps finds them: the step alone says its state.",
        conditions="states many standard deviations apart, all of them visited often",
        breaks="weak signal, where the steps before and after say more of a state than the step; states that differ in spread",
        symmetry=_STATES,
        citation=_KULIS,
        check=kmeans_ignores_transitions,
    ),
    Correspondence(
        "window_kmeans",
        "gaussian_hmm",
        "none",
        claim="Clusters of windows are read as states; about every change they mix two of them, however strong the signal.",
        conditions="none; it may well be nearer than k-means of single steps where the signal is weak and states last",
        breaks="a change within the window: its steps are those of neither state",
        symmetry=_STATES,
        citation="Keogh & Lin (2005), Clustering of time-series subsequences is meaningless, Knowl. Inf. Syst. 8:154",
        check=windows_blur_changes,
    ),
    Correspondence(
        "pca",
        "state_space",
        "limit",
        claim="As the noise vanishes, PCA of single steps spans the positions, whatever moves them.",
        conditions="noise small beside C z; at least as many features as latent dimensions",
        breaks="noise: the positions are smoothed over time, PCA is not; fewer features than latent dimensions",
        symmetry=_LINEAR,
        citation=_TIPPING,
        check=vanishing_noise_makes_pca_the_path,
    ),
    Correspondence(
        "window_pca",
        "state_space",
        "approximate",
        claim="PCA of windows is nearly a linear map of the smoothed positions where these move slowly and noise is large.",
        conditions="windows of about the time over which the model smooths",
        breaks="little noise, where it blurs; fast motion; the ends of a series; it gives all steps of a window a fixed weight",
        symmetry=_LINEAR,
        citation="Broomhead & King (1986), Physica D 20:217",
        check=windows_smooth,
    ),
    Correspondence(
        "autoencoder",
        "ppca",
        "exact",
        claim="The code of a linear autoencoder spans PCA's scores, and so an affine map of it is PPCA's posterior mean.",
        conditions="no hidden layers; converged; no missing entries; PPCA at the maximum of the likelihood",
        breaks="axes, angles and distances of the code: they are not those of the positions, in any rotation and scale",
        symmetry=_SUBSPACE,
        citation=_BALDI,
        check=linear_code_spans_ppca,
        options=(("hidden", ()),),
    ),
    Correspondence(
        "autoencoder",
        "linear_vae",
        "exact",
        claim="The code of a linear autoencoder spans the means of a linear VAE's encoder: both span PCA's scores.",
        conditions="no hidden layers; converged; no missing entries; the bound at its maximum, no axis collapsed",
        breaks="axes, angles and distances of the code, which only the VAE's prior and diagonal encoder fix; a collapsed axis",
        symmetry=_SUBSPACE,
        citation=_BALDI + "; " + _LUCAS,
        check=linear_code_spans_the_linear_vae,
        options=(("hidden", ()),),
    ),
    Correspondence(
        "pca",
        "linear_vae",
        "exact",
        claim="PCA scores, each axis times sqrt(lambda - sigma^2) / lambda, are the encoder's mean at the maximum of the bound, "
        "which is PPCA's maximum of the likelihood.",
        conditions="no missing entries; all parameters at the maximum of the bound, sigma too",
        breaks="sigma fixed above an eigenvalue collapses that axis; raw scores carry sqrt(lambda); a bound not at its maximum",
        symmetry="order and signs of the axes: a diagonal encoder fixes the rotation at the maximum of the bound",
        citation=_LUCAS,
        check=mapped_scores_are_the_encoders_mean,
        map=shrunk_axes,
        unless=(("whiten", True),),
    ),
    Correspondence(
        "autoencoder",
        "vae",
        "limit",
        claim="As 2 beta sigma^2, the weight of the Kullback-Leibler term beside the squared error, tends to 0, the bound asks "
        "for the least error of reconstruction, as the autoencoder does: its code is a smooth invertible map of the means.",
        conditions="the same networks, with hidden layers and too small to fit the noise; Gaussian noise of one size for all "
        "features; both trained to a good optimum",
        breaks="a large weight, by much noise or a large beta: dimensions collapse; training that tears or folds the code; axes, "
        "angles and distances of the code, of which only the VAE's prior says anything",
        symmetry="smooth invertible maps: only what is decoded is comparable, near neighbours roughly",
        citation=_GHOSH,
        check=deep_code_is_a_map_of_the_means,
        unless=(("hidden", ()),),
    ),
    Correspondence(
        "pca",
        "vae",
        "approximate",
        claim="Where the principal plane sees each point of a sheet once, PCA's scores are nearly a smooth invertible map of the "
        "means of a deep VAE's encoder.",
        conditions="data near a sheet of the dimension of the positions, which bends little; noise small beside it",
        breaks="a sheet that bends back: the plane folds it, so that far units meet, or leaves a direction out; distances, even "
        "on a flat sheet, which the decoder may stretch to fit the prior",
        symmetry="smooth invertible maps; linear ones where the decoder is linear",
        citation=_DAI,
        check=bent_sheet_parts_pca_from_the_vae,
    ),
)
