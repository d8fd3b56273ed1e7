r"""Self-consistency of a model and a method: simulation-based calibration, and Geweke's joint-distribution test.

Neither check needs a reference posterior. `simulate` draws $(\theta, x)$ from the joint density. The method draws
$\theta \mid x$ by the density of the program. If the two densities differ, or the method is wrong, one of the checks fails.

*Simulation-based calibration.* Given x, the truth $\theta$ and L independent posterior draws are exchangeable. The rank of any
$f(\theta, x)$ of the truth among those of the draws is therefore uniform on 0, ..., L; ties are broken at random.
The ranked quantities are:

* identified entries: entries of invariants of the model's symmetry, positions included (raw coordinates are not ranked);
* the log prior;
* the log likelihood with the positions marginalised;
* identified entries with their sign reversed in the data sets where a moment of the data is below its median;
* $|Z^T X|^2$ of positions Z and centred data X.

The last three can detect a posterior that ignores the data. No function of $\theta$ alone can do so.

Draws of a chain are thinned until the effect of their autocorrelation is small beside the sampling error of the ranks' variance.
Let $\tau$ be the autocorrelation time of the indicator that a thinned draw is below the truth. Autocorrelation increases
the variance of uniform ranks by the fraction $2 (\tau - 1) / L$. The variance of R ranks has a relative standard error of
$\sqrt{0.8 / R}$. Chains are extended, with thinning up to `MOST_THIN`, until the increase is at most half of this standard
error. A quantity does not pass if the increase still exceeds the standard error.

The p-value of a quantity is exact. Its statistic is the smallest two-sided binomial tail of the ranks' ECDF over the L inner
points. The distribution of the statistic follows from the ECDF of uniform ranks being a Markov chain.

*Geweke's test.* Chains start at $(\theta, x)$ from `simulate`. In each sweep NUTS with fixed tuning moves $\theta$, and then x is
drawn from the program's predictive distribution. These transitions leave the joint density invariant. The means of test
functions over independent chains are compared with those of independent draws of `simulate`. A pair is recorded after $\theta$
has moved and before x is redrawn, so that cross moments show whether $\theta$ depends on x. The test functions are g, g^2, s,
s^2 and g s of identified entries g and moments s of the data. Each g and s is first mapped to (-1, 1) by $v / \sqrt{1 + v^2}$
with v in units of its spread, so that the prior needs no moments.

A Bonferroni correction over the quantities bounds the false-alarm rate of each table by `LEVEL`.

References:
    Talts, Betancourt, Simpson, Vehtari & Gelman (2018), Validating Bayesian inference algorithms with simulation-based
    calibration, arXiv:1804.06788. Modrák et al. (2023), Simulation-based calibration checking for Bayesian computation: the
    choice of test quantities shapes sensitivity, Bayesian Analysis. Säilynoja, Bürkner & Vehtari (2022), Graphical test for
    discrete uniformity and its applications, Statistics and Computing 32:32. Geweke (2004), Getting it right: joint
    distribution tests of posterior simulators, JASA 99:799.
"""

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from latentlab.calibration.geweke import Geweke, geweke, observed_arrays
from latentlab.calibration.sbc import SBC, sbc
from latentlab.calibration.simulated import check_simulated, simulated
from latentlab.files import write
from latentlab.inference.draws import Method
from latentlab.inference.nuts import NUTS
from latentlab.inference.replications import Replications
from latentlab.models.base import LatentModel
from latentlab.seeds import Seeds
from latentlab.settings import Count, checked


@dataclass(frozen=True)
class Calibration:
    """Results of both checks of a model with a method; `geweke` is None unless the method is `NUTS`."""

    sbc: SBC
    geweke: Geweke | None

    @property
    def passed(self) -> bool:
        """Whether every check passed."""
        return self.sbc.passed and (self.geweke is None or self.geweke.passed)

    def __str__(self) -> str:
        n, level = len(self.sbc.ranks), self.sbc.level
        parts = [
            f"Simulation-based calibration: {n} data sets, ranks among {self.sbc.n_ranks} draws "
            f"(false-alarm rate of the table: {level:g})",
            _text(self.sbc.table),
            "",
        ]
        if self.geweke is None:
            parts.append("Geweke's joint-distribution test was not run: it requires the method nuts.")
        else:
            parts += [
                f"Geweke's joint-distribution test (false-alarm rate of the table: {self.geweke.level:g})",
                _text(self.geweke.table),
                "",
            ]
        total = level + (self.geweke.level if self.geweke else 0.0)
        verdict = "all passed" if self.passed else "FAILED: model, `simulate` and method are inconsistent"
        return "\n".join([*parts, f"{verdict} (overall false-alarm rate: at most {total:g})"])

    def save(self, folder: str | Path) -> None:
        """Writes the tables to `calibration.csv` and the figure of the ranks to `calibration.png`.

        Raises:
            StoreError: The folder cannot be written.
        """
        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        tables = {"sbc": self.sbc.table} | ({"geweke": self.geweke.table} if self.geweke else {})
        both = pd.concat([table.assign(check=name) for name, table in tables.items()], ignore_index=True)
        write(path / "calibration.csv", both.set_index("check").to_csv().encode())
        image = io.BytesIO()
        self.sbc.figure().savefig(image, format="png", dpi=130, metadata={"Software": None})
        write(path / "calibration.png", image.getvalue())


def calibrate(
    model: LatentModel,
    method: Method,
    *,
    n_replications: int | None = None,
    n_units: Count = 10,
    seed: int = 0,
    progress: bool = True,
) -> Calibration:
    """Runs simulation-based calibration and, for `NUTS`, Geweke's test.

    Geweke's test uses data sets of half as many units: its chains then move faster.

    Args:
        model: The model.
        method: The method.
        n_replications: Data sets of simulation-based calibration; None for 200 with `NUTS` and 40 with other methods.
        n_units: Units of each data set.
        seed: Root of the seed tree.
        progress: Whether to show progress bars on a terminal.

    Raises:
        ModelError, ConfigError, DataError, InferenceError: Under the conditions given in `sbc` and `geweke`.
    """
    checked("calibrate", {"n_units": Count}, {"n_units": n_units})
    n_sets = n_replications if n_replications is not None else 200 if isinstance(method, NUTS) else 40
    if isinstance(method, NUTS):  # an error must not come after the first check, whose result would be lost
        check_simulated(model, method)
        one = simulated(model, 1, n_units, Seeds(seed))
        observed_arrays(Replications(model, one), one[0])
    ranks = sbc(model, method, n_replications=n_sets, n_units=n_units, seed=seed, progress=progress)
    if not isinstance(method, NUTS):
        return Calibration(ranks, None)
    return Calibration(ranks, geweke(model, method, n_units=max(n_units // 2, 1), seed=seed, progress=progress))


def _text(table: pd.DataFrame) -> str:
    formats: dict[str, Callable[[float], str]] = {"p": "{:.2g}".format, "z": "{:.1f}".format}
    return str(table.to_string(index=False, formatters=formats, float_format="{:.3g}".format))
