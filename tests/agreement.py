"""Compares two runs of one config: `python tests/agreement.py runs/a runs/b` prints the differences.

Data, embeddings without seeds and point estimates must agree to 1e-8 of their spread. Posterior means of identified quantities
must agree within their Monte Carlo errors. Verdicts, failed checks and partitions must be equal, except verdicts that either
run reports as borderline. Layouts of t-SNE and UMAP are not compared, since they amplify rounding errors; their verdicts are.
"""

import sys
from pathlib import Path

import numpy as np
from scipy.stats import norm

from latentlab.report.chains import invariants
from latentlab.report.source import Source
from latentlab.results.convergence import is_constant, mcse_mean
from latentlab.study.run import load_run

EXACTLY = 1e-8
"""Largest difference, as a share of the spread, of what is not random."""
FALSE_ALARMS = 1e-5
"""Probability that any of a run's means differs, if both runs sample the same posterior (normal errors, Bonferroni)."""
KEY = ["embedding", "seed", "map", "alignment"]


def disagreements(first: Path, second: Path) -> list[str]:
    """Returns the differences between two runs, one line each."""
    a, b = Source(load_run(first)), Source(load_run(second))
    if _data(a, b):
        return _data(a, b)
    return [*_checks(a, b), *_embeddings(a, b), *_posterior(a, b), *_partition(a, b), *_verdicts(a, b)]


def _data(a: Source, b: Source) -> list[str]:
    """Compares the fitted data; simulated data may differ by rounding."""
    x, y = a.fitted.x, b.fitted.x
    if x.shape != y.shape or (np.isnan(x) != np.isnan(y)).any():
        return ["the data differ in shape, or in what is missing"]
    apart = np.nanmax(np.abs(x - y), initial=0.0) / (np.nanstd(x) or 1.0)
    return [] if apart <= EXACTLY else [f"the data differ by {apart:.1g} of their spread"]


def _checks(a: Source, b: Source) -> list[str]:
    found = [set(s.run.diagnostics.query("verdict == 'fail'")["check"]) for s in (a, b)]
    return [f"failed in one run alone: check {check}" for check in sorted(found[0] ^ found[1])]


def _embeddings(a: Source, b: Source) -> list[str]:
    lines = []
    for name, array in a.run.embeddings.data_vars.items():
        x, y = array.values, b.run.embeddings[name].values
        if x.ndim == 2:
            y = y * np.where((x * y).sum(axis=0) < 0, -1.0, 1.0)  # an axis has no sign
            apart = np.abs(x - y).max() / x.std()
            lines += [f"embedding {name}: differs by {apart:.1g} of its spread"] if not apart <= EXACTLY else []
    return lines


def _posterior(a: Source, b: Source) -> list[str]:
    lines, means = [], []
    theirs = invariants(b)
    for name, x in invariants(a).items():
        x, y = (array.astype(np.float64).reshape(*array.shape[:2], -1) for array in (x, theirs[name]))
        fixed = is_constant(x) & is_constant(y)
        apart = np.abs(x[0, 0] - y[0, 0])[fixed] / max(np.abs(x[0, 0]).max(), np.finfo(float).tiny)
        lines += [f"{name}: differs by {apart.max():.1g}"] if apart.size and not apart.max() <= EXACTLY else []
        error = np.hypot(mcse_mean(x[..., ~fixed]), mcse_mean(y[..., ~fixed]))
        means += [(name, d) for d in (np.abs(x.mean(axis=(0, 1)) - y.mean(axis=(0, 1)))[~fixed] / error).tolist()]
    limit = norm.isf(FALSE_ALARMS / 2 / max(len(means), 1))
    return lines + [f"mean of {name}: {d:.1f} Monte Carlo errors apart, limit {limit:.1f}" for name, d in means if not d <= limit]


def _partition(a: Source, b: Source) -> list[str]:
    if not (a.is_discrete and a.compared):
        return []
    x, y = (s.run.comparison["point_estimate"].values for s in (a, b))
    apart = int(((x[:, None] == x) != (y[:, None] == y)).sum()) // 2
    return [f"partition: {apart} of {len(x) * (len(x) - 1) // 2} pairs of units"] if apart else []


def _label(embedding: str, seed: str, way: str, alignment: str) -> str:
    """Returns the name of a verdict in a note of `ties`."""
    return f"{embedding}{f' #{seed}' if seed else ''}{' (mapped)' if way == 'mapped' else ''}, {alignment}"


def _verdicts(a: Source, b: Source) -> list[str]:
    if not a.compared:
        return []
    x, y = (s.run.verdicts.astype({c: str for c in KEY}).set_index(KEY) for s in (a, b))
    both = x.join(y.add_suffix("_b"), how="outer")
    other = both[both["verdict"] != both["verdict_b"]]
    ties = [str(data.attrs.get("ties", "")) for s in (a, b) for data in s.run.comparison_by_kind.values()]
    known = [any(f"{_label(*row.Index)}: borderline" in text for text in ties) for row in other.itertuples()]
    other = other[~np.array(known, dtype=bool)]
    return [
        f"verdict of {', '.join(filter(None, row.Index))}: {row.verdict} (delta {row.delta:.3f}, p {row.p_low:.2g}) and "
        f"{row.verdict_b} (delta {row.delta_b:.3f}, p {row.p_low_b:.2g})"
        for row in other.itertuples()
    ]


if __name__ == "__main__":
    found = disagreements(*map(Path, sys.argv[1:3]))
    print("\n".join(found) or "they agree")
    sys.exit(bool(found))
