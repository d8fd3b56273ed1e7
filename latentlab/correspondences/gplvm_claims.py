"""Claims about embeddings and the positions of a GPLVM."""

from latentlab.correspondences.claim import Correspondence
from latentlab.correspondences.gplvm import (
    a_laplacian_makes_a_gaussian_field,
    classical_mds_is_the_linear_gplvm,
    kernels_of_data_make_a_dual,
    layout_ignores_spreads,
    long_lengthscales_make_pca,
    path_lengths_unroll_a_sheet,
    pca_is_the_linear_gplvm,
    stress_keeps_a_sheet_rolled,
    weights_make_a_gaussian_field,
)
from latentlab.correspondences.maps import dual_axes

_LAWRENCE = "Lawrence (2005), JMLR 6:1783"
_FIELDS = "Lawrence (2012), JMLR 13:1609"
_PROBDR = "Ravuri, Vargas, Lalchand & Lawrence (2023), arXiv:2304.07658"
_ROTATION = "rotation and reflection, O(q)"
_SIMILARITY = "rotation, reflection, translation and scale"
_LINEAR = (("kernel", "linear"),)


def _layout(embedding: str, title: str, reading: str, citation: str) -> Correspondence:
    return Correspondence(
        embedding,
        "gplvm",
        "none",
        claim=f"{title} is often read as an estimate of latent positions. {reading} It does not maximise the likelihood of a "
        "GPLVM: only neighbourhoods correspond.",
        conditions="none for distances; units that are neighbours in the features for neighbourhoods",
        breaks="groups of different spread, which get equal spreads; distances between groups; sheets, which may be torn",
        symmetry="Euclidean motions and all maps that preserve neighbourhoods",
        citation=citation,
        check=layout_ignores_spreads(embedding),
    )


GPLVM: tuple[Correspondence, ...] = (
    Correspondence(
        "pca",
        "gplvm",
        "exact",
        claim="PCA scores t, with each axis multiplied by sqrt(lambda - sigma^2) / |t|, lambda = |t|^2 / D, maximise "
        "the likelihood of a GPLVM with a linear kernel, up to a common scale. This model is the dual of PPCA.",
        conditions="kernel linear; centred features; no missing entries; flat prior of the positions. With the prior N(0, I), "
        "given sigma and the amplitude a, the axes remain and lambda becomes c with c^2 / a^2 + D c = D lambda",
        breaks="nonlinear kernels; raw scores, which have variances of their own; strong priors; few features",
        symmetry=_ROTATION,
        citation=_LAWRENCE,
        check=pca_is_the_linear_gplvm,
        map=dual_axes,
        unless=(("whiten", True),),
        settings=_LINEAR,
    ),
    Correspondence(
        "mds",
        "gplvm",
        "exact",
        claim="Classical MDS of Euclidean distances gives the PCA scores. The same map as for PCA therefore gives the "
        "maximum of the likelihood of a GPLVM with a linear kernel, up to a common scale.",
        conditions='method="classical"; Euclidean distances between the same columns; the conditions for PCA',
        breaks="metric MDS by stress (SMACOF); other distances; all failures of the claim for PCA",
        symmetry=_ROTATION,
        citation="Gower (1966), Biometrika 53:325; " + _LAWRENCE,
        check=classical_mds_is_the_linear_gplvm,
        map=dual_axes,
        options=(("method", "classical"),),
        settings=_LINEAR,
    ),
    Correspondence(
        "pca",
        "gplvm",
        "limit",
        claim="As lengthscale and amplitude increase together, a GPLVM with a smooth kernel tends to one with a linear kernel. "
        "The mapped PCA scores tend to a maximum of its likelihood.",
        conditions="a kernel that is smooth at 0, such as rbf; lengthscale = amplitude, both large; centred features",
        breaks="curved manifolds, for which the likelihood prefers short lengthscales",
        symmetry=_ROTATION,
        citation=_LAWRENCE,
        check=long_lengthscales_make_pca,
        unless=(("whiten", True),),
    ),
    Correspondence(
        "kernel_pca",
        "gplvm",
        "approximate",
        claim="Kernel PCA minimises KL(N(0, S) || N(0, Z Z^T + sigma^2 I)) over Z, with S the centred kernel of the "
        "data. With S = X X^T / D this is the objective of a GPLVM with a linear kernel. A nonlinear GPLVM has its kernel on the "
        "positions.",
        conditions="a linear kernel of the positions and features whose inner products are the kernel of the data: then exact",
        breaks="a nonlinear kernel of the positions: kernel PCA is a start, at which the gradient is not 0",
        symmetry="rotation, reflection and scale of each axis",
        citation=_LAWRENCE + "; Schölkopf, Smola & Müller (1998), Neural Computation 10:1299",
        check=kernels_of_data_make_a_dual,
    ),
    Correspondence(
        "isomap",
        "gplvm",
        "approximate",
        claim="Isomap maximises the likelihood of a GPLVM with a linear kernel whose second moments are the doubly centred "
        "squared path lengths. On a flat sheet these are the sheet's coordinates, which a GPLVM with a smooth kernel estimates.",
        conditions="a sheet that is isometric to a convex region, densely sampled; noise small relative to the gaps of the sheet",
        breaks="noise or too many neighbours, which shorten paths across gaps; holes; curvature that no flat map "
        "preserves; the negative eigenvalues of the path lengths, which are left out",
        symmetry=_SIMILARITY,
        citation="Tenenbaum, de Silva & Langford (2000), Science 290:2319; " + _FIELDS + "; " + _PROBDR,
        check=path_lengths_unroll_a_sheet,
    ),
    Correspondence(
        "lle",
        "gplvm",
        "approximate",
        claim="LLE maximises the likelihood of a GPLVM with a linear kernel whose second moments are the covariance of a "
        "Gaussian field with precision (I - W)^T (I - W), up to the scale of each axis.",
        conditions="W the reconstruction weights of the data; the constant mode left out; a sheet without boundary effects",
        breaks="scales of the axes, which are set to 1; distances; noise, for which the weights are unstable",
        symmetry="linear maps, approximately",
        citation=_FIELDS + "; " + _PROBDR + "; Roweis & Saul (2000), Science 290:2323",
        check=weights_make_a_gaussian_field,
    ),
    Correspondence(
        "spectral",
        "gplvm",
        "approximate",
        claim="Laplacian eigenmaps maximise the likelihood of a GPLVM with a linear kernel whose second moments are the "
        "covariance of a Gaussian field on the neighbour graph, up to the scale of each axis and of each unit.",
        conditions="the normalised Laplacian as precision; the constant mode left out",
        breaks="distances, as coordinates of a sheet become cosines; long sheets, whose second axis is a function of "
        "the first; scales of the axes, which are set to 1",
        symmetry="linear maps, approximately",
        citation=_FIELDS + "; " + _PROBDR + "; Belkin & Niyogi (2003), Neural Computation 15:1373",
        check=a_laplacian_makes_a_gaussian_field,
    ),
    Correspondence(
        "mds",
        "gplvm",
        "none",
        claim="MDS by stress fits Euclidean distances of the features, large ones best. A GPLVM with a smooth kernel "
        "fits features, whose distances saturate. On a curved sheet their positions differ.",
        conditions="none; agreement on nearly linear data only",
        breaks="a curved sheet, which stays rolled up; Bayesian MDS is the model whose likelihood the stress is",
        symmetry=_SIMILARITY,
        citation="Oh & Raftery (2001), JASA 96:1031; Borg & Groenen (2005), Modern Multidimensional Scaling, Springer",
        check=stress_keeps_a_sheet_rolled,
        options=(("method", "stress"),),
    ),
    _layout(
        "tsne",
        "t-SNE",
        "The literature reads it approximately as MAP of positions in a Wishart model of the graph Laplacian.",
        "van der Maaten & Hinton (2008), JMLR 9:2579; Ravuri & Lawrence (2024), arXiv:2405.17412",
    ),
    _layout(
        "umap",
        "UMAP",
        "The literature reads it approximately as MAP of positions in a Wishart model of the graph Laplacian.",
        "McInnes, Healy & Melville (2018), arXiv:1802.03426; Ravuri & Lawrence (2024), arXiv:2405.17412",
    ),
    _layout(
        "pacmap",
        "PaCMAP",
        "No likelihood is known of which its loss is a limit.",
        "Wang, Huang, Rudin & Shaposhnik (2021), JMLR 22(201)",
    ),
)
