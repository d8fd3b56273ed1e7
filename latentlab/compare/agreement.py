r"""Agreement of two partitions of the same units, whatever their clusters are called.

With n_kl units in cluster k of x and l of y, sizes n_k. and n_.l, pairs P = sum C(n, 2) over counts n, entropies
H = -sum n/N log n/N in nats, and mutual information I = H(x) + H(y) - H(x, y):

| metric | formula | range |
|---|---|---|
| `adjusted_rand` | (P(x, y) - E) / ((P(x) + P(y)) / 2 - E), E = P(x) P(y) / C(N, 2) | [-1/2, 1] |
| `normalized_mutual_information` | 2 I / (H(x) + H(y)) | [0, 1] |
| `variation_of_information` | H(x) + H(y) - 2 I | [0, log N] |
| `matched_accuracy` | largest sum_k n_{k, m(k)} / N over one-to-one m | (0, 1] |

All units in one cluster, and each unit alone, are partitions like others: the formulas hold for them, and only 0 / 0, which
identical partitions of these two kinds give, is 1 by definition. So there is no value for "nothing to compare".

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
    """Adjusted Rand index: pairs that are together in both, beyond chance; 1 identical, 0 in the mean by chance.

    1 by definition where both put all units into one cluster, or each alone.
    """
    together = pairs(overlaps(x, y))
    expected = x.n_pairs * y.n_pairs / (x.n_units * (x.n_units - 1) / 2)
    most = (x.n_pairs + y.n_pairs) / 2
    return 1.0 if most == expected else (together - expected) / (most - expected)


@metric(of="labels", direction="higher", range=(0.0, 1.0), ignores={"relabelling"})
def normalized_mutual_information(x: Labels, y: Labels) -> float:
    """Mutual information over the mean of the entropies; above 0 by chance, the more so the more clusters there are.

    1 by definition where both put all units into one cluster.
    """
    total = x.entropy + y.entropy
    return 1.0 if total == 0 else 2 * (total - entropy(overlaps(x, y))) / total


@metric(of="labels", direction="lower", range=(0.0, math.inf), ignores={"relabelling"})
def variation_of_information(x: Labels, y: Labels) -> float:
    """Variation of information in nats: what one partition leaves open about the other, both ways; a distance, at most log n."""
    return 2 * entropy(overlaps(x, y)) - x.entropy - y.entropy


@metric(of="labels", direction="higher", range=(0.0, 1.0), ignores={"relabelling"})
def matched_accuracy(x: Labels, y: Labels) -> float:
    """Share of units with the same label under the best one-to-one matching of labels; clusters left over count as wrong."""
    table = contingency(x, y)
    return float(table[linear_sum_assignment(table, maximize=True)].sum() / x.n_units)
