r"""Are a model and a method consistent with themselves: simulation-based calibration, and Geweke's joint-distribution test.

Both need no answer from elsewhere. `simulate` draws $(\theta, x)$ from the joint density; the method draws $\theta \mid x$ by the
program's density. Where the two do not belong together, or the method is wrong, one of these fails.

*Simulation-based calibration.* Given x, the truth $\theta$ and L independent draws of the posterior are exchangeable, so that the
rank of any $f(\theta, x)$ among those of the draws is uniform on 0, ..., L; ties are broken at random. What is ranked: entries
of what the model's symmetry leaves identified, positions included (raw coordinates are not); the log prior; the log
likelihood, positions integrated out; entries whose order is turned round where a moment of the data is below its median; and
$|Z' X|^2$ of positions and centred data. The last three see a posterior that ignores the data, as no function of $\theta$
alone does.

Draws of a chain are thinned until their dependence could not be seen. With $\tau$ the autocorrelation time of whether a thinned
draw is below the truth, the variance of uniform ranks grows by $2 (\tau - 1) / L$ of itself, and the variance of R ranks has a
standard error of $\sqrt{0.8 / R}$ of itself: chains are made longer until the first is below half of the second, up to
`MOST_THIN`, and a quantity does not pass where it is then above all of it. The p-value of a quantity is exact:
the statistic is the smallest two-sided binomial tail of the ranks' ECDF over its L inner points, and the ECDF is a Markov chain.

*Geweke's test.* Chains that start at $(\theta, x)$ from `simulate`, and in turn move $\theta$ by NUTS with fixed tuning and
draw x by the program's predictive, keep the joint density. Their means of test functions, over independent chains, are
compared with those of fresh draws of `simulate`. A pair is looked at after $\theta$ has moved and before x is drawn anew: a
cross moment then sees whether $\theta$ heeds x. Test functions are g, g^2, s, s^2 and g s of identified entries g and moments s
of the data, each mapped to (-1, 1) by $v / \sqrt{1 + v^2}$ with v in units of its spread: the prior needs no moments.

Bonferroni over the quantities holds the false-alarm rate of each table at `LEVEL`.

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

from latentlab.calibration.geweke import Geweke, geweke
from latentlab.calibration.sbc import SBC, sbc
from latentlab.files import write
from latentlab.inference.draws import Method
from latentlab.inference.nuts import NUTS
from latentlab.models.base import LatentModel


@dataclass(frozen=True)
class Calibration:
    """Both checks of a model with a method; Geweke's is None where the method is no sampler."""

    sbc: SBC
    geweke: Geweke | None

    @property
    def passed(self) -> bool:
        """Whether all passed."""
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
            parts.append("Geweke's joint-distribution test is for nuts: left out.")
        else:
            parts += [
                f"Geweke's joint-distribution test (false-alarm rate of the table: {self.geweke.level:g})",
                _text(self.geweke.table),
                "",
            ]
        total = level + (self.geweke.level if self.geweke else 0.0)
        verdict = "all passed" if self.passed else "FAILED: model, simulation and method do not belong together"
        return "\n".join([*parts, f"{verdict} (false-alarm rate of the whole: at most {total:g})"])

    def save(self, folder: str | Path) -> None:
        """Writes `calibration.csv`, both tables, and `calibration.png`, the figure of the ranks.

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
    n_units: int = 10,
    seed: int = 0,
    progress: bool = True,
) -> Calibration:
    """Both checks; Geweke's for `NUTS` only, on data sets of half as many units, whose chains move faster.

    Args:
        model: The model.
        method: The method.
        n_replications: Data sets of the first check; where None, 200 with `NUTS`, 40 with methods that are run on one at a time.
        n_units: Units of each.
        seed: Root of the seed tree.
        progress: Bars on a terminal.

    Raises:
        ModelError, ConfigError, DataError, InferenceError: As of `sbc` and `geweke`.
    """
    n_sets = n_replications if n_replications is not None else 200 if isinstance(method, NUTS) else 40
    ranks = sbc(model, method, n_replications=n_sets, n_units=n_units, seed=seed, progress=progress)
    if not isinstance(method, NUTS):
        return Calibration(ranks, None)
    return Calibration(ranks, geweke(model, method, n_units=max(n_units // 2, 1), seed=seed, progress=progress))


def _text(table: pd.DataFrame) -> str:
    formats: dict[str, Callable[[float], str]] = {"p": "{:.2g}".format, "z": "{:.1f}".format}
    return str(table.to_string(index=False, formatters=formats, float_format="{:.3g}".format))
