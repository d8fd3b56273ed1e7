r"""Scale of the data against that of the prior: location and spread of each column against the prior predictive.

With $q_p$ the quantiles of a quantity under the prior predictive and $w = q_{.75} - q_{.25}$, a column's value v lies
$\max(q_{.25} - v,\; v - q_{.75},\; 0) / w$ outside, which warns from `LIMIT` on: at 4.7 standard deviations of a normal quantity.
Quartiles are robust to extreme prior draws (an unstable state space).
The location is the column's mean, compared with single values of the prior predictive. The spread is the logarithm of the
column's standard deviation, compared with that of whole data sets; there w is at least log 2. A single narrow column does not
indicate a wrong scale: the distance of a spread that is too small is at most the distance of the median column. Counts and labels
have no unit of measurement, so only their location is compared.

A prior far from the data can give a misleading posterior although the sampler works without problems. An example is a mixture
whose prior keeps the component means near 0 although the data are near 100.
"""

import math
import warnings
from collections.abc import Mapping, Sequence

import numpy as np
import xarray as xr

from latentlab.results.tree import SAMPLE_DIMS, arrays

CHECK = "prior and data"
LOW, HIGH = 0.25, 0.75
LIMIT = 3.0
LEAST_WIDTH = math.log(2.0)
"""Smallest width of the interval of the log spread."""
MOST_INFINITE = 0.25
"""Share of prior predictive data sets with values that are not finite, above which quartiles are not computed."""
MOST = 2**21
"""Largest number of prior predictive values used; of more units, an evenly spaced subset is used."""

Row = tuple[str, str, float | str, str, str]


def prior_rows(data: xr.DataTree) -> list[Row]:
    """Row of the diagnostics: distance of the data from the prior predictive, at the worst column.

    Args:
        data: The result of a fit, with the groups `prior_predictive` and `observed_data`.
    """
    if data.attrs.get("method") == "exact":
        return [_not_applicable("maximum likelihood does not use the prior")]
    if "parameters" in data.children:
        return [_not_applicable("parameters are point estimates without a prior")]
    observed, predicted = (_variables(data, group) for group in ("observed_data", "prior_predictive"))
    names = [n for n, array in predicted.items() if n in observed and array.dims == (*SAMPLE_DIMS, *observed[n].dims)]
    if not names:
        return [_not_applicable("no prior predictive draws are stored")]
    hyperparameters = str(data.attrs.get("hyperparameters", "")).split(", ")
    points = str(data.attrs.get("points", "unit"))
    return [max((_compared(observed[n], predicted[n], points, hyperparameters) for n in names), key=lambda row: float(row[2]))]


def _variables(data: xr.DataTree, group: str) -> dict[str, xr.DataArray]:
    return {name: data[group].to_dataset()[name] for name in arrays(data, group)}


def _compared(observed: xr.DataArray, predicted: xr.DataArray, points: str, hyperparameters: Sequence[str]) -> Row:
    """Row of one observed variable."""
    names = [str(dim) for dim in observed.dims if dim != points]
    x = observed.transpose(points, ..., missing_dims="ignore").values.astype(np.float64)
    y = predicted.transpose(*SAMPLE_DIMS, points, ..., missing_dims="ignore").values.astype(np.float64)
    x, y = x.reshape(len(x), -1), y.reshape(y.shape[0] * y.shape[1], len(x), -1)
    overflow = float((~np.isfinite(y[:, ~np.isnan(x)])).any(axis=1).mean())
    if overflow > MOST_INFINITE:
        text = f"{overflow:.0%} of the prior predictive data sets contain non-finite values; choose narrower priors"
        return CHECK, text, overflow, f"<= {MOST_INFINITE:g}", "warn"
    n_used = max(2, min(len(x), MOST // max(1, y[:, 0].size)))
    y = y[:, np.unique(np.linspace(0, len(x) - 1, n_used).astype(int))]
    several = len(names) == 1 and names[0] in observed.coords
    labels = [str(label) for label in observed[names[0]].values] if several else [str(i) for i in range(x.shape[1])]
    return _row(_measured(x, y), labels, hyperparameters)


def _not_applicable(why: str) -> Row:
    return CHECK, "", why, "", "not applicable"


def _measured(x: np.ndarray, y: np.ndarray) -> dict[str, tuple[np.ndarray, ...]]:
    """Location and spread of the columns of x `(unit, column)`: value, low, high and distance, from y `(draw, unit, column)`."""
    y = np.where(np.isfinite(y), y, np.nan)
    measured = {"location": _placed(np.nanmean(x, 0), y.reshape(-1, y.shape[-1]))}
    whole = all(bool((a[np.isfinite(a)] == np.floor(a[np.isfinite(a)])).all()) for a in (x, y))
    if not whole and len(x) > 1:
        with np.errstate(divide="ignore"), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Degrees of freedom", RuntimeWarning)  # draws without any finite value
            value, low, high, distance = _placed(np.log(np.nanstd(x, 0)), np.log(np.nanstd(y, 1)), least=LEAST_WIDTH)
        narrow = np.where(value < low, distance, 0.0)
        measured["spread"] = value, low, high, np.where(value < low, np.minimum(narrow, np.median(narrow)), distance)
    return measured


def _placed(value: np.ndarray, draws: np.ndarray, least: float = 0.0) -> tuple[np.ndarray, ...]:
    """Values `(column,)`, the interval of draws `(draw, column)`, and the distance outside; 0 where either is constant."""
    draws = np.where(np.isnan(draws).all(0), 0.0, draws)
    low, high = np.nanquantile(draws, [LOW, HIGH], axis=0, method="inverted_cdf")
    with np.errstate(invalid="ignore", divide="ignore"):
        distance = np.maximum(np.maximum(low - value, value - high), 0.0) / np.maximum(high - low, least)
    sound = np.isfinite(value) & np.isfinite(low) & np.isfinite(high)
    return value, low, high, np.where(sound, np.nan_to_num(distance, nan=0.0, posinf=math.inf), 0.0)


def _row(measured: Mapping[str, tuple[np.ndarray, ...]], labels: list[str], hyperparameters: Sequence[str]) -> Row:
    what = max(measured, key=lambda name: float(measured[name][3].max()))
    value, low, high, distance = measured[what]
    column, worst = int(distance.argmax()), float(distance.max())
    place, ends = (value[column], (low[column], high[column])) if what == "location" else (
        math.exp(value[column]), (math.exp(low[column]), math.exp(high[column]))
    )  # fmt: skip
    name = "data mean" if what == "location" else "data standard deviation"
    where = f" of column {labels[column]!r}" if len(labels) > 1 else ""
    text = f"{name}{where} {place:.3g}; central 50% of the prior predictive {ends[0]:.3g} to {ends[1]:.3g}"
    if worst < LIMIT:
        return CHECK, text, worst, f"< {LIMIT:g}", "pass"
    return CHECK, f"{text}; {_advice(measured, hyperparameters)}", worst, f"< {LIMIT:g}", "warn"


def _advice(measured: Mapping[str, tuple[np.ndarray, ...]], hyperparameters: Sequence[str]) -> str:
    location = measured["location"][0]
    middle, largest = float(np.median(location)), float(np.abs(location).max())
    if "spread" not in measured:
        settings = {"rate_mean": max(middle, 1.0)}
    else:
        spread = float(np.exp(np.median(measured["spread"][0])))
        means = {"mu_loc": middle, "mu_scale": spread} if "mu_loc" in hyperparameters else {"mu_scale": max(largest, spread)}
        settings = {**means, **dict.fromkeys(("W_scale", "C_scale", "sigma_scale", "psi_scale"), spread)}
    values = [f"{name}={value:.2g}" for name, value in settings.items() if name in hyperparameters]
    standardise = ["standardise the data (`standardize: true`)"] if "spread" in measured else []
    named = [f"set approximately {', '.join(values)}"] if values else ["choose priors on the scale of the data"]
    return ", or ".join([*standardise, *named])
