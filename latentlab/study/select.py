"""Selection of the number of components, states or latent dimensions, by leave-one-out comparison of a run for each value."""

import io
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from latentlab.comparison.selection import Candidate, lenient_table
from latentlab.errors import ConfigError, LatentLabError, ModelError, StoreError
from latentlab.files import write
from latentlab.registry import plugins as plugged
from latentlab.report.figure import BLUE, GREY, shortened, style
from latentlab.store.directory import place
from latentlab.study.config import NAME_LENGTH, Config, load_config
from latentlab.study.rows import candidate
from latentlab.study.run import run
from latentlab.study.yaml import parse

TABLE, PLOT = "selection.csv", "selection.png"
VARIED = ("model", "inference", "seed")
"""Sections of a config whose values can be compared; other sections change the data, or do not affect the scores."""


def select(  # one keyword for each user option
    config: str | Path | Mapping[str, Any] | Config,
    key: str,
    values: Sequence[Any],
    *,
    overrides: Sequence[str] = (),
    out: str | Path | None = None,
    plugins: Sequence[str | Path] = (),
    overwrite: bool = False,
    resume: bool = False,
    with_embeddings: bool = False,
    progress: bool = True,
) -> pd.DataFrame:
    """Run a config once for each value of a key, and compare the runs by leave-one-out predictive accuracy.

    Each run has its own directory `DIR/NAME-KEY-VALUE`. The table is also written to `DIR/selection.csv`, and plotted in
    `DIR/selection.png`. The row of a failed run has the error, and the other runs continue. For PPCA on standardised columns, too
    many latent dimensions score best, for the reason in `latentlab.comparison.selection`; the rows have a note about this.

    Args:
        config: A YAML file, a mapping, or a `Config`.
        key: Varied key, such as `model.n_components`.
        values: Values of the key, at least two.
        overrides: Further overrides for all runs, such as `inference.n_draws=500`.
        out: The directory DIR; `runs/NAME-select` if None.
        plugins: Files that define models, datasets, embeddings, metrics or trackers.
        overwrite: Replace existing runs.
        resume: Resume existing runs; complete runs are left unchanged.
        with_embeddings: Compute and compare the config's embeddings in every run; the selection does not need them.
        progress: Whether to show progress bars on a terminal, and a line for each run.

    Returns:
        The table of `loo_table`, with `value` instead of `model`, and `run`, the name of the run's folder. If no model has LOO,
        the best held-out score is first. `attrs["written"]` contains the paths of the table and the plot.

    Raises:
        ConfigError, DataError, ModelError: Fewer than two values can be run and compared; nothing was started.
        StoreError: A run exists already.
    """
    values = list(values)
    texts = [_formatted(value) for value in values]
    _check(key, texts)
    problems: dict[str, str] = {}
    configs: dict[str, Config] = {}
    first: LatentLabError | None = None
    names: dict[str, str] = {}
    for text, value in zip(texts, values, strict=True):
        try:
            configs[text] = _config(config, key, value, text, names, overrides, plugins, with_embeddings=with_embeddings)
        except LatentLabError as error:
            problems[text], first = _one_line(error), first or error
    if len(configs) < 2:
        raise first if first is not None else ConfigError(f"select: {key} has fewer than two values that can be compared.")
    folder = place(f"{_base(config, overrides, plugins)}-select") if out is None else Path(out)
    _check_free(folder, configs, overwrite=overwrite, resume=resume)
    if progress and not with_embeddings and _has_embeddings(config, overrides, plugins):
        print("The embeddings are not computed, since the selection does not require them; --with-embeddings computes them.")
    candidates: dict[str, Candidate] = {}
    for text, one in configs.items():
        try:
            done = run(one, out=folder / one.name, overwrite=overwrite, resume=resume, progress=progress)
            candidates[text] = candidate(done)
        except Exception as error:  # the row of this value has the error, and the others continue
            problems[text] = _one_line(error)
            if progress:
                print(f"{folder / one.name}: {problems[text]}")
    table = lenient_table(candidates, problems).rename(columns={"model": "value"})
    table.insert(1, "run", [configs[text].name if text in configs else "" for text in table["value"]])
    folder.mkdir(parents=True, exist_ok=True)
    write(folder / TABLE, table.to_csv(index=False, lineterminator="\n").encode())
    written = [TABLE]
    if table["elpd_diff"].notna().sum() > 1:
        write(folder / PLOT, plotted(table, key, texts))
        written.append(PLOT)
    table.attrs["written"] = [str(folder / name) for name in written]
    return table


def n_compared(table: pd.DataFrame) -> int:
    """Count the rows of the table with a score, by leave-one-out or on held-out units."""
    scored = table["elpd_loo"].notna()
    return int((scored | table["held_out"].notna() if "held_out" in table else scored).sum())


def values_of(text: str) -> tuple[str, list[Any]]:
    """Parse `KEY=V1,V2,V3`, `KEY=[V1, V2]`, or a range of whole numbers with both ends, `KEY=1:6`, into key and values.

    Raises:
        ConfigError: The key or the values are missing, the values are not valid YAML, or a range does not increase.

    Example:
        >>> values_of("model.n_components=1:4")
        ('model.n_components', [1, 2, 3, 4])
        >>> values_of("model.covariance=full,tied"), values_of("model.mu_loc=[0, 1],[0, 2]")
        (('model.covariance', ['full', 'tied']), ('model.mu_loc', [[0, 1], [0, 2]]))
    """
    key, equals, given = (part.strip() for part in text.partition("="))
    if not key or not equals or not given:
        raise ConfigError(f"{text!r}: expected KEY=VALUES, such as model.n_components=1,2,3 or model.n_components=1:6.")
    ends = re.fullmatch(r"(-?\d+):(-?\d+)", given)
    if ends:
        low, high = (int(end) for end in ends.groups())
        if low >= high:
            raise ConfigError(f"{text!r}: the range {given} must increase.")
        return key, list(range(low, high + 1))
    values = parse(f"[{given}]", repr(text))
    return key, values[0] if len(values) == 1 and isinstance(values[0], list) else values


# -- the values and their configs


def _check(key: str, texts: Sequence[str]) -> None:
    section = key.split(".")[0]
    if section not in VARIED:
        why = "changes the data, and fits to different data cannot be compared" if section in ("dataset", "held_out") else (
            "changes neither the model nor the inference"
        )  # fmt: skip
        raise ConfigError(f"select: {key!r} {why}; vary a key of {', '.join(VARIED)}.")
    duplicate = next((text for text in texts if texts.count(text) > 1), None)
    if duplicate is not None:
        raise ConfigError(f"select: {key} must have different values; got {duplicate} twice.")
    if len(texts) < 2:
        raise ConfigError(f"select: {key} must have at least two values; got {', '.join(texts) or 'none'}.")


def _config(  # one argument for each user option
    source: Any,
    key: str,
    value: Any,
    text: str,
    names: dict[str, str],
    overrides: Sequence[str],
    plugins: Sequence[str | Path],
    *,
    with_embeddings: bool,
) -> Config:
    """Return the config of one value, after a check that its method allows LOO or held-out scores.

    Raises:
        LatentLabError: The config cannot be run, or its run cannot be compared.
    """
    without = [] if with_embeddings else ["embeddings=[]"]
    found = load_config(source, [*overrides, f"{key}={json.dumps(_plain(value))}", *without], plugins)
    if key == "seed" and found.held_out:
        raise ConfigError("select: the seed also determines the held-out units, and fits to different data cannot be compared.")
    with plugged(found.plugins):
        method = found.build_method()
    if method.kind == "point" and not found.held_out:
        raise ModelError(
            f"inference: {method.name!r} gives a point estimate, for which LOO is not available; use nuts or svi, "
            "or held-out units (`held_out=0.2`)."
        )
    name = _slug(f"{found.name}-{key.split('.')[-1]}-{text}")
    while name in names.values():
        name = f"{name[: NAME_LENGTH - 2]}-x"
    names[text] = name
    return found.model_copy(update={"name": name})


def _slug(text: str) -> str:
    """Convert a text to a valid name of a run."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text)[:NAME_LENGTH].strip("-._")


def _base(source: Any, overrides: Sequence[str], plugins: Sequence[str | Path]) -> str:
    return load_config(source, overrides, plugins).name


def _has_embeddings(source: Any, overrides: Sequence[str], plugins: Sequence[str | Path]) -> bool:
    return bool(load_config(source, overrides, plugins).embeddings)


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _formatted(value: Any) -> str:
    """Format a value for tables."""
    value = _plain(value)
    try:
        return value if isinstance(value, str) else json.dumps(value)
    except TypeError as error:
        raise ConfigError(f"select: {value!r} cannot be serialised to YAML.") from error


def _one_line(error: Exception) -> str:
    known = isinstance(error, LatentLabError)
    return " ".join(f"failed: {'' if known else type(error).__name__ + ': '}{error}".split())


def _check_free(folder: Path, configs: Mapping[str, Config], *, overwrite: bool, resume: bool) -> None:
    if overwrite and resume:
        raise ConfigError("--overwrite and --resume must not be combined: one replaces existing runs, the other continues them.")
    existing = [folder / one.name for one in configs.values() if (folder / one.name).exists()]
    if existing and not (overwrite or resume):
        raise StoreError(f"{existing[0]} exists already; --resume continues existing runs, --overwrite replaces them.")


# -- plot


def plotted(table: pd.DataFrame, key: str, texts: Sequence[str]) -> bytes:
    """Plot differences from the best by value with 1 and 2 standard errors, as PNG; hollow: not converged, cross: failed."""
    places = {text: i for i, text in enumerate(texts)}
    with style():
        canvas = Figure(figsize=(6.4, 4.0), layout="constrained")
        FigureCanvasAgg(canvas)
        axes = canvas.subplots()
        axes.axhline(0, color=GREY, linewidth=0.8, linestyle=":")
        for row in table.to_dict("records"):
            x, y = places[row["value"]], row["elpd_diff"]
            if np.isnan(y):
                axes.plot(x, 0.03, "x", color=GREY, transform=axes.get_xaxis_transform(), clip_on=False)
                axes.annotate("failed", (x, 0.05), xycoords=axes.get_xaxis_transform(), ha="center", color=GREY, fontsize=8)
                continue
            for n_se, width in ((2, 1.2), (1, 3.5)):
                axes.plot([x, x], [y - n_se * row["se_diff"], y + n_se * row["se_diff"]], color=BLUE, linewidth=width, alpha=0.6)
            axes.plot(x, y, "o", color=BLUE, markerfacecolor=BLUE if row["converged"] else "white", markersize=7, zorder=3)
        axes.set_xticks([*places.values()], [shortened(text) for text in texts])
        axes.set_xlim(-0.5, len(texts) - 0.5)
        axes.set_xlabel(key)
        axes.set_ylabel("elpd difference from the best")
        axes.set_title("Leave-one-out elpd. Bars: 1 and 2 standard errors of the difference. Hollow: not converged", fontsize=8.5)
        stream = io.BytesIO()
        canvas.savefig(stream, format="png", metadata={"Software": None})
        return stream.getvalue()
