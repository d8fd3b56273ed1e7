"""Common parts of the benchmarks: rows, alternating timing, whole processes, the machine, and the table, CSV and plot of a run.

A benchmark first checks that both sides compute the same quantity, and stops if they do not. The sides are then measured
alternately over several rounds, which a busy machine slows equally. The value of a row is the median over rounds, and its
spread is the smallest and the largest value. The ratio is the median over rounds of the advantage of the fastest latentlab
side; above 1, latentlab is faster. Rows of latentlab have no ratio.

Warm code is timed in CPU seconds of its process, which has one thread. These exclude the time that other processes use on a
busy machine. Whole processes are timed in wall-clock seconds.
"""

import importlib.metadata
import importlib.util
import math
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

OURS = "latentlab"
COLUMNS = ("benchmark", "side", "what", "value", "unit", "spread", "ratio")
ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "NPROC": "1",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false",
}
"""One thread for torch, numpy and JAX (which sizes its pool by `NPROC`); set before any of them is imported."""
PACKAGES = (
    "latentlab",
    "torch",
    "pyro-ppl",
    "numpy",
    "scikit-learn",
    "hmmlearn",
    "numpyro",
    "jax",
    "dynamax",
    "pymc",
    "nutpie",
    "gpytorch",
)
ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Row:
    """Row of the table; `spread` is a text, and `ratio` is NaN without a comparison."""

    benchmark: str
    side: str
    what: str
    value: float
    unit: str
    spread: str = ""
    ratio: float = math.nan


class DisagreementError(RuntimeError):
    """The two sides of a benchmark do not compute the same quantity."""


def is_here(*modules: str) -> bool:
    """Return whether all modules can be imported."""
    return all(importlib.util.find_spec(module) is not None for module in modules)


def absent(benchmark: str, side: str, *modules: str) -> Row:
    """Return the row of a package that is not installed."""
    missing = ", ".join(module for module in modules if not is_here(module))
    return Row(benchmark, side, f"not measured: {missing} is not installed", math.nan, "")


def same_up_to_a_constant(
    benchmark: str, side: str, ours: Sequence[float], theirs: Sequence[float], *, tolerance: float = 1e-10
) -> Row:
    """Return the row of a check that two log densities differ by a constant: range of their differences at the same points.

    Raises:
        DisagreementError: The range exceeds `tolerance`, relative to the largest absolute log density if that is above 1.
    """
    ours, theirs = np.asarray(ours, float), np.asarray(theirs, float)
    gap = float(np.ptp(ours - theirs)) / max(1.0, float(np.abs(ours).max()))
    return agreed(benchmark, side, f"check: log densities at {len(ours)} points, relative", gap, tolerance, "nats")


def agreed(benchmark: str, side: str, what: str, gap: float, tolerance: float, unit: str) -> Row:
    """Return the row of a check.

    Raises:
        DisagreementError: The difference is above `tolerance`, or NaN.
    """
    if not gap <= tolerance:
        raise DisagreementError(
            f"{benchmark}, {side}: {what}: the difference must be at most {tolerance:.3g} {unit}; got {gap:.3g}."
        )
    return Row(benchmark, side, what, gap, unit, f"at most {tolerance:.3g}")


def same_means(benchmark: str, side: str, ours: np.ndarray, theirs: np.ndarray, *, most: float = 5.0) -> Row:
    """Return the row of a check of posterior means `(chain, draw, quantity)`: largest difference in units of its MCSE.

    For q quantities with equal means, a difference above 5 has probability at most q * 6e-7.

    Raises:
        DisagreementError: The largest difference is above `most`.
    """
    from latentlab.results.convergence import mcse_mean

    error = np.hypot(mcse_mean(ours), mcse_mean(theirs))
    gap = float(np.max(np.abs(ours.mean((0, 1)) - theirs.mean((0, 1))) / error))
    return agreed(benchmark, side, f"check: posterior means of {ours.shape[-1]} quantities", gap, most, "MCSE")


def in_turn(
    benchmark: str,
    what: str,
    unit: str,
    sides: Mapping[str, Callable[[int], float]],
    *,
    n_rounds: int,
    better: Literal["less", "more"] = "less",
) -> list[Row]:
    """Measure all sides alternately, `n_rounds` times; each takes the number of the round and returns its value."""
    found = {side: np.full(n_rounds, np.nan) for side in sides}
    for i in range(n_rounds):
        for side, measure in sides.items():
            found[side][i] = measure(i)
    return compared(benchmark, what, unit, found, better=better)


def compared(
    benchmark: str, what: str, unit: str, found: Mapping[str, np.ndarray], *, better: Literal["less", "more"] = "less"
) -> list[Row]:
    """Return rows of alternating measurements, `(round,)` for each side."""
    own = [values for side, values in found.items() if side.startswith(OURS)]
    best = (np.nanmin if better == "less" else np.nanmax)(own, axis=0) if np.isfinite(own).all(1).any() else None
    rows = []
    for side, values in found.items():
        ratio = math.nan
        if best is not None and not side.startswith(OURS):
            ratio = float(np.median(values / best if better == "less" else best / values))
        spread = f"{values.min():.3g} to {values.max():.3g}"
        rows.append(Row(benchmark, side, what, float(np.median(values)), unit, spread, ratio))
    return rows


def seconds(function: Callable[[], object], *, least: float = 0.1) -> float:
    """Measure the mean CPU seconds of one call, over as many calls as take `least` seconds; the first call is not counted."""
    function()
    begin, calls = time.process_time(), 0
    while calls == 0 or time.process_time() - begin < least:
        function()
        calls += 1
    return (time.process_time() - begin) / calls


def timed(function: Callable[[], object]) -> float:
    """Measure the CPU seconds of one call."""
    begin = time.process_time()
    function()
    return time.process_time() - begin


def process(code: str, *arguments: str) -> float:
    """Measure the seconds of a whole Python process that runs `code`, with the default number of threads of each library.

    Raises:
        RuntimeError: The process failed; the message has the end of its output.
    """
    environment = {name: value for name, value in os.environ.items() if name not in ONE_THREAD}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), environment.get("PYTHONPATH", "")]))
    begin = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code, *arguments], env=environment, capture_output=True, text=True, check=False)
    spent = time.perf_counter() - begin
    if done.returncode:
        raise RuntimeError(f"A benchmark process failed: {done.stderr[-2000:]}")
    return spent


# -- the result


def machine() -> dict[str, str]:
    """Return processor, cores, memory, system, versions and date."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "processor": model or "unknown",
        "cores": str(os.cpu_count()),
        "memory": f"{memory:.0f} GiB",
        "load": ", ".join(f"{load:.1f}" for load in os.getloadavg()) + " (before, over 1, 5 and 15 minutes)",
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
    }


def table(rows: Sequence[Row]) -> pd.DataFrame:
    """Return the rows as a DataFrame."""
    return pd.DataFrame([[getattr(row, column) for column in COLUMNS] for row in rows], columns=list(COLUMNS))


def markdown(rows: Sequence[Row], about: Mapping[str, str]) -> str:
    """Format the machine and the rows in Markdown."""

    def text(value: object) -> str:
        return ("" if math.isnan(value) else f"{value:.3g}") if isinstance(value, float) else str(value).replace("|", "\\|")

    lines = [f"* {name}: {value}" for name, value in about.items()]
    lines += ["", f"| {' | '.join(COLUMNS)} |", "|" + "---|" * len(COLUMNS)]
    lines += [f"| {' | '.join(text(getattr(row, column)) for column in COLUMNS)} |" for row in rows]
    return "\n".join(lines) + "\n"


def figure(rows: Sequence[Row], path: Path) -> None:
    """Plot the ratio of latentlab to each other package, one dot per row."""
    import matplotlib

    with matplotlib.rc_context({"backend": "Agg", "font.size": 8, "axes.spines.top": False, "axes.spines.right": False}):
        from matplotlib.figure import Figure

        shown = [row for row in rows if math.isfinite(row.ratio) and row.ratio > 0][::-1]
        picture = Figure(figsize=(9, 1.2 + 0.33 * len(shown)), layout="constrained")
        axis = picture.subplots()
        at = np.arange(len(shown))
        colours = ["#0072B2" if row.ratio >= 1 else "#D55E00" for row in shown]
        axis.hlines(at, 1, [row.ratio for row in shown], color=colours, lw=1)
        axis.scatter([row.ratio for row in shown], at, c=colours, s=18, zorder=3)
        axis.axvline(1, color="black", lw=0.8)
        axis.set_yticks(at, [f"{row.benchmark}; {row.side}\n{row.what}" for row in shown])
        axis.set(xscale="log", xlabel="ratio (above 1: latentlab is faster)")
        axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        picture.savefig(path, dpi=150)


def write(rows: Sequence[Row], folder: Path, about: Mapping[str, str]) -> None:
    """Write `results.csv`, `results.md` and `results.png`."""
    folder.mkdir(parents=True, exist_ok=True)
    table(rows).to_csv(folder / "results.csv", index=False, float_format="%.6g")
    (folder / "results.md").write_text(markdown(rows, about), encoding="utf-8")
    figure(rows, folder / "results.png")
