"""Real time series of the package statsmodels, as raw values; the units are time steps."""

import importlib
from typing import Any

import numpy as np

from latentlab.data.dataset import Dataset
from latentlab.data.series import assemble
from latentlab.data.simulators import counts, number
from latentlab.errors import DataError, MissingDependencyError

LEVELS = ("realgdp", "realcons", "realinv", "realgovt", "realdpi", "cpi", "m1", "pop")
"""Columns of `macrodata` that are levels."""
RATES = ("tbilrate", "unemp", "infl", "realint")
"""Columns of `macrodata` that are rates, in percent."""
DEFAULT_COLUMNS = ("realgdp", "realcons", "realinv", "realgovt", "realdpi", "m1", "tbilrate", "unemp", "infl")
"""Default columns of `macrodata`, without redundant ones: the growth of `cpi` is `infl`; `realint` is `tbilrate` minus `infl`."""


def sunspots(*, whole: bool = False, n_levels: int | None = None) -> Dataset:
    """Yearly numbers of sunspots from 1700 to 2008: one series of 309 steps.

    Args:
        whole: Round the numbers, which are means of daily numbers, to counts.
        n_levels: Replace the numbers by symbols of about equal frequency, from 0 (fewest spots) to `n_levels` - 1 (most).

    Raises:
        DataError: `n_levels` is not from 2 to 20, or `whole` is set too.

    References:
        National Geophysical Data Center; in the public domain.

    Example:
        >>> sunspots().units[:2].tolist(), sunspots().x[:2, 0].tolist()
        (['1700', '1701'], [5.0, 11.0])
        >>> sunspots(n_levels=4).x[:7, 0].tolist()
        [0.0, 0.0, 1.0, 1.0, 1.0, 2.0, 1.0]
    """
    table = _load("sunspots")
    numbers = _columns(table, ["SUNACTIVITY"])
    if n_levels is not None:
        number("sunspots", "n_levels", n_levels, 2, 20)
        counts("sunspots", n_levels=n_levels)
        if whole:
            raise DataError("sunspots: `whole` and `n_levels` cannot be combined; leave one of them out.")
        inner = np.quantile(numbers, np.arange(1, n_levels) / n_levels)
        numbers = np.searchsorted(inner, numbers, side="right").astype(np.float64)
    return assemble(np.round(numbers) if whole else numbers, ["sunspots"], name="sunspots", time=_whole(table["YEAR"]))


def nile() -> Dataset:
    """Yearly flow of the Nile at Aswan from 1871 to 1970, in 10^8 cubic metres: one series of 100 steps.

    The level drops once, in about 1899.

    References:
        Cobb (1978), The problem of the Nile, Biometrika 65:243; Durbin & Koopman (2012), Time Series Analysis by State Space
        Methods, Oxford.

    Example:
        >>> nile().units[[0, -1]].tolist(), nile().x[[0, -1], 0].tolist()
        (['1871', '1970'], [1120.0, 740.0])
    """
    table = _load("nile")
    return assemble(_columns(table, ["volume"]), ["volume"], name="nile", time=_whole(table["year"]))


def macrodata(columns: list[str] | None = None, *, growth: bool = True) -> Dataset:
    r"""Quarterly macroeconomic data of the United States from 1959 to 2009: one series with times `1959Q1` to `2009Q3`.

    With `growth`, levels (real GDP, consumption, investment, government spending and disposable income, the consumer price
    index, money and population) become growth rates in percent per year, $400 (\log x_t - \log x_{t-1})$. The first quarter has
    no growth rate and is removed: 202 steps. Rates (of Treasury bills, unemployment, inflation and real interest) are unchanged.
    Without `growth` all columns are as published: 203 steps, with mostly increasing levels.

    Args:
        columns: Some of `realgdp`, `realcons`, `realinv`, `realgovt`, `realdpi`, `cpi`, `m1`, `pop` and `tbilrate`, `unemp`,
            `infl`, `realint`; all except `cpi`, `pop` and `realint` if not given (the growth of `cpi` is `infl`).
        growth: Whether levels become growth rates.

    References:
        Federal Reserve Bank of St. Louis, FRED; in the public domain.

    Example:
        >>> dataset = macrodata(columns=["realgdp", "unemp"])
        >>> dataset.sizes, dataset.units[0].item(), dataset.x[0].round(2).tolist()
        ({'unit': 202, 'feature': 2}, '1959Q2', [9.98, 5.1])
    """
    if not isinstance(growth, bool):
        raise DataError(f"macrodata: `growth` must be true or false; got {growth!r}.")
    table = _load("macrodata")
    names = [*LEVELS, *RATES]
    x = _columns(table, names)
    time = np.array([f"{year}Q{quarter}" for year, quarter in zip(_whole(table["year"]), _whole(table["quarter"]), strict=True)])
    if growth:
        rates = 400 * np.diff(np.log(x[:, : len(LEVELS)]), axis=0)
        x, time = np.column_stack([rates, x[1:, len(LEVELS) :]]), time[1:]
    dataset = assemble(x, names, name="macrodata", time=time)
    return dataset.select_features(DEFAULT_COLUMNS if columns is None else columns)


def _load(name: str) -> Any:
    try:
        module = importlib.import_module(f"statsmodels.datasets.{name}")
    except ImportError as error:
        raise MissingDependencyError(f"the dataset {name!r}", "statsmodels", "stats") from error
    return module.load_pandas().data


def _columns(table: Any, names: list[str]) -> np.ndarray:
    return np.column_stack([table[name].to_numpy(dtype=np.float64) for name in names])


def _whole(column: Any) -> np.ndarray:
    return column.to_numpy().astype(np.int64)
