"""Trace, rank and energy plots of chains, drawn by ArviZ."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import xarray as xr

from latentlab.report.figure import HEAVY, style, svg
from latentlab.report.items import Figure, Item, Text, listed, mathematics
from latentlab.report.source import Source
from latentlab.results.arviz import installed_arviz, to_arviz
from latentlab.results.convergence import rhat
from latentlab.results.quantities import Labels, entries, identified, labels_of
from latentlab.results.tree import build

MOST_INVARIANTS = 4
"""Largest number of invariants whose chains are drawn."""
MANY_CHAINS = 8
"""Largest number of chains with a legend entry each."""


def invariants(source: Source) -> dict[str, np.ndarray]:
    """Return the quantities that are comparable across chains, `(chain, draw, ...)` by name; none without the model."""
    model = source.model
    if model is None:
        return {}
    values = {str(n): a.values for n, a in source.tree["posterior"].data_vars.items() if n in model.dims}
    return identified(values, {n: tuple(model.dims[n]) for n in values}, model.exchanges, source.site)


def row_labels(source: Source) -> Labels:
    """Return the labels of the rows of the model's sites; none without the model."""
    return {} if source.model is None else labels_of(source.tree, source.model.dims, source.model.exchanges)


def _plotted_series(source: Source) -> dict[str, np.ndarray]:
    """Return the log density, and the entry with the largest R-hat of each of the `MOST_INVARIANTS` invariants that mix worst."""
    stats = source.group("sample_stats")
    series = {} if stats is None or "lp" not in stats else {"log density": stats["lp"].values}
    found = {}
    for quantity, array in invariants(source).items():
        names, flat = entries({quantity: array}, row_labels(source), source.tree["posterior"].sizes)
        if names:
            mixing = np.nan_to_num(rhat(flat))
            worst = int(np.argmax(mixing))
            found[names[worst]] = (float(mixing[worst]), flat[..., worst])
    for name in sorted(found, key=lambda n: -found[n][0])[:MOST_INVARIANTS]:
        series[name] = found[name][1]
    return series


def chain_items(source: Source) -> list[Item]:
    series = _plotted_series(source)
    if not series:
        return [Text(("No quantity is available for trace and rank plots.",))]
    names = listed([mathematics(name) for name in series], most=9)
    n = source.tree["posterior"].sizes["chain"]
    n_superchains = int(source.tree.attrs.get("n_superchains", 1))
    grouped = 1 < n_superchains < n
    n_shown = n_superchains if grouped else n
    chains = f"of the first chain of each of {n_superchains} superchains" if grouped else "of each chain"
    by = f"superchain ({n // n_superchains} of the {n} chains each)" if grouped else "chain"
    noun = "superchain" if grouped else "chain"
    items: list[Item] = [
        arviz_figure(
            *("trace", "plot_trace", _tree({name: x[:: n // n_shown] for name, x in series.items()})),
            label=_label_trace,
            caption=f"Trace plots {chains}, with density estimates, for {names}. Of each invariant quantity, the entry with the largest "
            "R-hat is plotted. The traces of converged chains overlap and have no trend.",
            alt=f"Trace plots of {n_shown} chains for {names}.",
        ),
        arviz_figure(
            *("rank", "plot_rank", _tree({name: x.reshape(n_shown, -1) for name, x in series.items()})),
            label=lambda axes: _label_rank(axes, noun),
            caption=f"Rank plots of the draws by {by}. The ranks of converged chains are uniform: bars of equal height, or curves "
            "inside the envelope.",
            alt=f"Rank plots of {n_shown} {noun}s for {names}.",
        ),
    ]
    stats = source.group("sample_stats")
    if stats is not None and "energy" in stats:
        items.append(
            arviz_figure(
                *("energy", "plot_energy", source.tree),
                label=_label_energy,
                caption="Distributions of the energy of the Hamiltonian and of its change between consecutive draws. If the distribution of "
                "the change is much narrower, the tails are explored slowly (E-BFMI below 0.3).",
                alt="Distributions of the energy and of its change between draws.",
                most=3.2,
            )
        )
    return items


def _tree(series: Mapping[str, np.ndarray]) -> xr.DataTree:
    """Build a tree of scalar quantities `(chain, draw)` by name."""
    names = {f"q{i}": name for i, name in enumerate(series)}
    tree = build({"posterior": {k: series[v] for k, v in names.items()}}, dims={k: () for k in names})
    tree["posterior"] = xr.DataTree(tree["posterior"].to_dataset().rename({k: _variable(v) for k, v in names.items()}))
    return tree


def _variable(name: str) -> str:
    """Return a valid name for a variable of a tree: neither a dim's name nor a path."""
    return "dim " + name if name in ("chain", "draw") else mathematics(name).replace("/", "\u2215")


def _without_long_legend(axes: Any) -> None:
    """Remove the entries of single chains from a legend with more than `MANY_CHAINS` of them."""
    handles, names = axes.get_legend_handles_labels()
    kept = [(handle, name) for handle, name in zip(handles, names, strict=True) if not name.startswith("chain ")]
    if axes.get_legend() is not None and len(names) - len(kept) > MANY_CHAINS:
        axes.legend(*zip(*kept, strict=True))


def _label_trace(axes: Any) -> None:
    """Label a panel of a trace plot, or of a density estimate, whose vertical axis has no ticks."""
    _label(axes, *(("draw", "value") if len(axes.get_yticks()) else ("value", "density")))


def _label_energy(axes: Any) -> None:
    _label(axes, "energy minus its mean, and change of the energy between draws", "density")


def _label_rank(axes: Any, noun: str) -> None:
    """Label a panel of rank histograms by chain or superchain; panels of curves keep the labels of ArviZ."""
    if axes.get_ylabel() == "Chain":
        axes.set(xlabel="rank among all draws", ylabel=noun)


def _label(axes: Any, x: str, y: str) -> None:
    """Label the axes of a panel that are not labelled by ArviZ."""
    if axes.axison and axes.has_data():
        axes.set(xlabel=axes.get_xlabel() or x, ylabel=axes.get_ylabel() or y)


def arviz_figure(
    name: str,
    function: str,
    tree: xr.DataTree,
    *,
    caption: str,
    alt: str,
    most: float = 9.0,
    label: Callable[[Any], None] = lambda axes: None,
) -> Figure:
    """Draw a figure by an ArviZ function, with any supported ArviZ.

    Args:
        name: Name of the figure.
        function: Name of the function.
        tree: Its argument.
        caption: Caption below the figure.
        alt: Text alternative for screen readers.
        most: Largest height in inches.
        label: Labels the axes of a panel.
    """
    from matplotlib import pyplot

    before = pyplot.get_fignums()
    with style(), pyplot.ioff():
        try:
            made: Any = getattr(installed_arviz(), function)(to_arviz(tree))
            canvas = made.viz["figure"].item() if hasattr(made, "viz") else np.ravel(made)[0].figure
            width, height = canvas.get_size_inches()
            canvas.set_size_inches(10, min(most, max(2.5, 10 * height / width)))
            if canvas.get_layout_engine() is None:
                canvas.set_layout_engine("constrained")
            for axes in canvas.axes:
                _without_long_legend(axes)
                label(axes)
                for mark in (*axes.lines, *axes.collections):
                    mark.set_rasterized(_heavy(mark))
            return Figure(name, caption, alt, svg(canvas, name, alt))
        finally:
            for number in set(pyplot.get_fignums()) - set(before):
                pyplot.close(number)


def _heavy(mark: Any) -> bool:
    return len(mark.get_xdata() if hasattr(mark, "get_xdata") else mark.get_offsets()) > HEAVY // 2
