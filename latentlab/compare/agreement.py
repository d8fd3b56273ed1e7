r"""Agreement of two partitions of the same units, invariant under relabelling of their clusters.

With n_kl units in cluster k of x and l of y, sizes n_k. and n_.l, pairs P = sum C(n, 2) over counts n, entropies
H = -sum n/N log n/N in nats, and mutual information I = H(x) + H(y) - H(x, y):

| metric | formula | range |
|---|---|---|
| `adjusted_rand` | (P(x, y) - E) / ((P(x) + P(y)) / 2 - E), E = P(x) P(y) / C(N, 2) | [-1/2, 1] |
| `normalized_mutual_information` | 2 I / (H(x) + H(y)) | [0, 1] |
| `variation_of_information` | H(x) + H(y) - 2 I | [0, log N] |
| `matched_accuracy` | largest sum_k n_{k, m(k)} / N over one-to-one m | (0, 1] |

The partition into one cluster and the partition into single units are ordinary partitions, for which the formulas hold. Identical
partitions of these two kinds give 0 / 0, which is 1 by definition. Metrics of labels therefore have no void value.

References:
    Hubert and Arabie (1985), Comparing partitions, Journal of Classification 2:193. Chacon and Rastrojo (2023), Minimum
    adjusted Rand index for two clusterings of a given size, Advances in Data Analysis and Classification 17:125. Meila
    (2007), Comparing clusterings: an information based distance, Journal of Multivariate Analysis 98:873. Kuhn (1955), The
    Hungarian method for the assignment problem, Naval Research Logistics Quarterly 2:83.
"""

import math

from scipy.optimize import linear_sum_assignment

from latentlab.compare.metric import metric
from latentlab.compare.partition import Labels, contingency, entropy, overlaps, pairs


@metric(of="labels", direction="higher", range=(-0.5, 1.0), ignores={"relabelling"})
def adjusted_rand(x: Labels, y: Labels) -> float:
    """Adjusted Rand index: pairs of units together in both partitions, corrected for chance.

    1 for identical partitions, 0 on average for random ones. 1 by definition if both have one cluster, or only single units.
    """
    together = pairs(overlaps(x, y))
    expected = x.n_pairs * y.n_pairs / (x.n_units * (x.n_units - 1) / 2)
    most = (x.n_pairs + y.n_pairs) / 2
    return 1.0 if most == expected else (together - expected) / (most - expected)


@metric(of="labels", direction="higher", range=(0.0, 1.0), ignores={"relabelling"})
def normalized_mutual_information(x: Labels, y: Labels) -> float:
    """Mutual information divided by the mean of the entropies, in [0, 1].

    The expected value of unrelated partitions is above 0 and grows with the number of clusters. 1 by definition if both have
    one cluster.
    """
    total = x.entropy + y.entropy
    return 1.0 if total == 0 else 2 * (total - entropy(overlaps(x, y))) / total


@metric(of="labels", direction="lower", range=(0.0, math.inf), ignores={"relabelling"})
def variation_of_information(x: Labels, y: Labels) -> float:
    """Variation of information in nats: the sum of the two conditional entropies; a distance, at most log n."""
    return 2 * entropy(overlaps(x, y)) - x.entropy - y.entropy


@metric(of="labels", direction="higher", range=(0.0, 1.0), ignores={"relabelling"})
def matched_accuracy(x: Labels, y: Labels) -> float:
    """Share of units with the same label under the best one-to-one matching of labels; unmatched clusters count as errors."""
    table = contingency(x, y)
    return float(table[linear_sum_assignment(table, maximize=True)].sum() / x.n_units)
