"""A run: a config becomes a fit, embeddings, a comparison, a report, and a directory that keeps them.

What is finished is written before the next stage begins, so that nothing that took long is lost to what comes after it.
"""

import contextlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import safetensors.numpy
import torch
import xarray as xr
import yaml
from tqdm.auto import tqdm

from latentlab.comparison.choice import check_spread
from latentlab.comparison.compare import compare
from latentlab.comparison.rows import joined
from latentlab.data.dataset import Dataset
from latentlab.embeddings.embed import embed
from latentlab.embeddings.embedding import Embedding
from latentlab.errors import ConfigError, DataError, InferenceError, LatentLabError, MissingDependencyError, StoreError
from latentlab.files import now, sha256
from latentlab.fit import Fit, fit, prepared
from latentlab.registry import plugins as plugged
from latentlab.results.assemble import N_PREDICTIVE, outline
from latentlab.results.netcdf import load, save
from latentlab.results.new_points import classes_of, density_of_new
from latentlab.seeds import Seeds
from latentlab.store.directory import CHECKPOINTS, CONFIG, REPORT, RunDirectory, place, read_info
from latentlab.store.read import Run, differences, read, read_config
from latentlab.study.config import Config, load_config

PACKAGES = ("latentlab", "torch", "pyro-ppl", "numpy", "scipy", "scikit-learn", "pandas", "xarray", "arviz", "h5netcdf")
POSTERIOR, EMBEDDINGS = "posterior.nc", "embeddings.nc"
COMPARISON = ("comparison.nc", "comparison.csv", "verdicts.csv")
PLAIN_HANDLERS = (signal.SIG_DFL, signal.SIG_IGN, signal.default_int_handler)
N_STAGES = 6
"""Data, embeddings, fit, diagnostics, comparison, report."""
BAR = "{desc}: {n_fmt}/{total_fmt} stages [{elapsed}]"
PAGE_BYTES = 2_000_000
"""About the size of the page and the tables."""
LABEL_BYTES = 0.5
"""Of a drawn label, packed."""
N_STATISTICS = 7
"""Numbers that a sampler tells of a draw."""


def run(
    config: str | Path | Mapping[str, Any] | Config,
    overrides: Sequence[str] = (),
    *,
    out: str | Path | None = None,
    overwrite: bool = False,
    resume: bool = False,
    force: bool = False,
    strict: bool = False,
    plugins: Sequence[str | Path] = (),
    progress: bool = True,
) -> "FittedRun":
    """Runs a config from data to report.

    Args:
        config: A YAML file, a mapping, or a `Config`.
        overrides: Dotted changes, `inference.n_draws=500`.
        out: The run directory; `runs/NAME` where None.
        overwrite: Replace the run that is there; it comes back if this one fails.
        resume: Go on with the run that is there; a complete one is left as it is.
        force: Resume despite other versions, another number of threads, or a changed plugin.
        strict: Raise an error where a diagnostic failed, once everything is written.
        plugins: Files that define models, datasets, embeddings or metrics.
        progress: Bars on a terminal, and a summary of a few lines at the end.

    Returns:
        The run, as its directory holds it.

    Raises:
        ConfigError, DataError, ModelError: The config or the data is wrong; nothing was started.
        StoreError: The directory holds a run, is being written by another process, or cannot be written.
        InferenceError: Inference could not go on; `run.json` says where, and what was finished is kept. Or `strict`.
        KeyboardInterrupt: By SIGINT or SIGTERM; `resume=True` goes on.
    """
    if force and not resume:
        raise ConfigError("--force goes with --resume: it goes on despite a changed version or thread count.")
    if overwrite and resume:
        raise ConfigError("--overwrite drops the run that is there and --resume goes on with it: say one of the two.")
    resolved = load_config(config, overrides, plugins)
    path = place(resolved.name) if out is None else Path(out)
    with plugged(resolved.plugins), RunDirectory(path) as directory, _StageBar(progress=progress) as bar:
        old = directory.found(overwrite=overwrite, resume=resume)
        bar.stage("data")
        job = _Job(resolved)
        info = job.description()
        whole = old is not None and directory.is_whole(old)
        if old is not None:
            _check_same(directory.path, old, info, resolved, force=force, whole=whole)
            info["resumed"] = info["started"]
            info.update({key: old[key] for key in ("started", "warnings", "notes", "seconds") if key in old})
        if not whole:
            _check_room(directory.path, job)
            directory.begin(info, resolved.to_yaml(), old=old)
            _carry_out(job, directory, bar, progress=progress, fresh=old is None)
        done = load_run(path)
    if progress:
        print("\n".join([*done.summary(), *done.info["warnings"][-1:]]) if not _has_page(done) else done)
    if strict and done.info["status"] == "not_converged":
        failed = done.diagnostics.query("verdict == 'fail'")
        what = ", ".join(f"{check} of {quantity}" for check, quantity in zip(failed["check"], failed["quantity"], strict=True))
        raise _ending_with(InferenceError(f"{path}: not converged ({what}); everything was written."), 3)
    return done


class FittedRun(Run):
    """A run directory as it was read, with its fit."""

    @cached_property
    def fit(self) -> Fit:
        """The fit, which does all that it did before it was written: the same arrays, places for new units, scores.

        Raises:
            StoreError: The data or a plugin are no longer those of the run.
        """
        return load_fit(self)


def load_run(path: str | Path) -> FittedRun:
    """Reads a run directory, and checks every file that it lists.

    Raises:
        StoreError: No run is there, a newer latentlab wrote it, or a file is missing or damaged; names it.
    """
    found = read(path)
    return FittedRun(found.path, found.config, found.info)


def load_fit(run: Run) -> Fit:
    """The fit of a run, as it was before it was written: `load_fit(run).latents(new)` places new units.

    Raises:
        StoreError: The data or a plugin are no longer those of the run.
    """
    for path, digest in run.info.get("plugins", {}).items():
        if not Path(path).is_file() or sha256(Path(path)) != digest:
            raise StoreError(f"{run.path}: the plugin {path} is gone or was changed since the run; bring it back, or run again.")
    config = load_config(run.config)
    with plugged(config.plugins):
        job = _Job(config)
    if job.dataset.digest() != run.info["data"]["sha256"]:
        raise StoreError(f"{run.path}: the data set {job.dataset.name!r} is no longer the one that was fitted; its hash differs.")
    return job.fit(run.posterior)


def report(path: str | Path) -> Path:
    """Builds the page of a run anew.

    Raises:
        StoreError: The run cannot be read, is being written, or has no comparison yet.
        MissingDependencyError: jinja2 is not installed.
    """
    read_info(Path(path))
    with RunDirectory(path) as directory, contextlib.ExitStack() as stack:
        directory.info = read_info(directory.path)
        found = read(path)
        with contextlib.suppress(ConfigError):  # a plugin that is gone: the page has what needs none
            stack.enter_context(plugged(found.config.get("plugins", [])))
        page = _write_page(found)
        directory.list(*REPORT)
    return page


class _Job:
    """What a config asks for, built: model, method and data, refused here if they do not go together."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.model = config.build_model()
        self.method = config.build_method()
        self.dataset = config.build_dataset()
        self.training, self.held_out = self.dataset, None
        if config.held_out:
            rng = Seeds(config.seed).child("held_out").numpy()
            self.training, self.held_out = self.dataset.split(config.held_out, rng)
        if isinstance(self.training, Dataset):
            self.training = self.training.complete()
        for i, one in enumerate(config.embeddings):
            if one.label in self.training.sizes:  # type: ignore[attr-defined]
                raise ConfigError(f"embeddings.{i}.label: {one.label!r} is a dim of the data; choose another label.")  # type: ignore[attr-defined]
        problem = prepared(self.model, self.training, self.method, seed=config.seed)
        self.outline = outline(problem, self.training.sample)
        _check_storable(self.outline, self.dataset.name)
        if config.embeddings:
            check_spread(self.model, self.method)
        if self.held_out is not None:
            density_of_new(self.model, self.held_out, classes=classes_of(self.model, self.training.sample))

    def fit(self, posterior: xr.DataTree) -> Fit:
        """The fit whose result is `posterior`."""
        return Fit(self.model, self.training.sample, self.method, self.config.seed, posterior)

    def description(self) -> dict[str, Any]:
        """What `run.json` says from the start."""
        return {
            "name": self.config.name,
            "seed": self.config.seed,
            "versions": _versions(),
            "threads": {"torch": torch.get_num_threads(), "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS")},
            "hardware": _hardware(),
            "commit": _commit(),
            "command": list(sys.argv),
            "started": now(),
            "data": {"name": self.dataset.name, "sha256": self.dataset.digest(), **self.dataset.sizes},
            "plugins": {path: sha256(Path(path)) for path in self.config.plugins},
            "notes": self.training.notes(),
            "warnings": [],
            "seconds": {},
        }

    def n_bytes(self) -> int:
        """About what the run's directory takes at most: result, checkpoints and page."""
        model, sample, point = self.model, self.training.sample, self.method.kind == "point"
        sites = {str(name): array.size for name, array in self.outline["posterior"].data_vars.items()}
        columns = 1 if model.position.kind == "discrete" else model.position_columns() or 1
        position = sum(sites.pop(one.site, sample.sizes[kind] * columns) for kind, one in model.kinds.items() if kind)
        acted = sum(size for name, size in sites.items() if model.exchanges.dim in model.dims[name])
        n_draws = getattr(self.method, "n_chains", 1) * self.method.n_draws
        drawn = model.position.site in self.outline["posterior"]
        each = 2 * position * (LABEL_BYTES / 8 if model.position.kind == "discrete" else 1)
        if not point:  # of a point estimate what does not vary between draws is packed to nothing
            pointwise = sample.n_points * (not model.has_bound()) * (1 + model.is_series())
            checkpoints = 2 * (sum(sites.values()) + position * drawn)
            each += sum(sites.values()) + acted + pointwise + checkpoints + len(sites) + N_STATISTICS
        predictive = 2 * min(N_PREDICTIVE, n_draws) * sample.x.size
        return int(8 * (n_draws * each + predictive + 2 * sample.x.size)) + PAGE_BYTES


# -- the stages


class _StageBar:
    """A bar on a terminal that names the stage of a run and counts those that are done; each stage may have bars of its own."""

    def __init__(self, *, progress: bool) -> None:
        self._bar = tqdm(desc="data", total=N_STAGES, disable=None if progress else True, leave=False, bar_format=BAR)
        self._begun = False

    def __enter__(self) -> "_StageBar":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def stage(self, name: str) -> None:
        """The stage before is done, and this one begins."""
        self._bar.set_description_str(name, refresh=False)
        self._bar.update(self._begun)
        self._bar.refresh()
        self._begun = True


def _carry_out(job: _Job, directory: RunDirectory, bar: _StageBar, *, progress: bool, fresh: bool) -> None:
    """All stages; whatever stops them is written down first. Embeddings that cannot be made leave no new run behind."""
    try:
        with _stoppable(), _warnings_kept(directory):
            _stages(job, directory, bar, progress=progress)
    except KeyboardInterrupt as error:
        with contextlib.suppress(StoreError):
            directory.stop("interrupted", error)
        raise
    except Exception as error:
        usage = isinstance(error, LatentLabError) and error.exit_code == 2 and not isinstance(error, StoreError)
        if fresh and usage and directory.info["stage"] == "embeddings":
            directory.discard()
            raise
        with contextlib.suppress(StoreError):
            kept = directory.stop("failed", error)
            if kept != directory.path:
                error.add_note(f"The run before it is back in {directory.path}.")
            error.add_note(f"What was finished is kept in {kept}; --resume goes on with it.")
        raise _ending_with(error, 1) from error.__cause__


def _stages(job: _Job, directory: RunDirectory, bar: _StageBar, *, progress: bool) -> None:
    def timed(stage: str, act: Callable[[], Any]) -> Any:
        bar.stage(stage)
        directory.stage(stage)
        begin, seconds = time.monotonic(), directory.info["seconds"]
        result = act()
        seconds[stage] = round(seconds.get(stage, 0.0) + time.monotonic() - begin, 3)
        return result

    for note in job.training.notes():
        directory.logger.info("data: %s", note)
    compared = all(map(directory.has, (POSTERIOR, *COMPARISON)))
    # The embeddings first: they are quick, and what is wrong with one should not show after an hour of sampling.
    embeddings = timed("embeddings", lambda: _embed(job, directory, progress=progress)) if job.config.embeddings else []
    fitted = timed("fit", lambda: _fit(job, directory, progress=progress))
    timed("diagnostics", lambda: _diagnose(job, directory, fitted))
    if embeddings and not compared:
        timed("comparison", lambda: _compare(job, directory, fitted, embeddings, progress=progress))
    status = "done" if fitted.converged else "not_converged"
    timed("report", lambda: _report(directory, status, progress=progress))
    directory.finish(status)


def _fit(job: _Job, directory: RunDirectory, *, progress: bool) -> Fit:
    if directory.has(POSTERIOR):
        return job.fit(load(directory.path / POSTERIOR))

    def log(line: str) -> None:
        directory.logger.info("%s: %s", job.method.name, line)

    seed, checkpoints = job.config.seed, directory.path / CHECKPOINTS
    fitted = fit(job.model, job.training, job.method, seed=seed, progress=progress, checkpoint=checkpoints, log=log)
    for line in _bars(fitted.data):
        log(line)
    directory.write_tree(POSTERIOR, fitted.data)
    return fitted


def _diagnose(job: _Job, directory: RunDirectory, fitted: Fit) -> None:
    table = fitted.diagnostics()
    if job.held_out is not None:
        score = fitted.held_out_score(job.held_out)
        directory.info["held_out"] = score
        rows = [
            ("held_out_score", name, value, "", "not applicable") for name, value in score.items() if not name.startswith("n_")
        ]
        table = pd.concat([table, pd.DataFrame(rows, columns=table.columns)], ignore_index=True)
    directory.write_json("diagnostics.json", table.to_dict("records"))
    for row in table[table["verdict"].isin(["fail", "warn"])].itertuples():
        directory.logger.warning("%s: %s, %s: %s (%s)", row.verdict, row.check, row.quantity, row.value, row.threshold)
    arrays, meaning = _params(job, fitted)
    directory.write("params/params.safetensors", safetensors.numpy.save(arrays))
    directory.write_json("params/params.json", meaning)


def _embed(job: _Job, directory: RunDirectory, *, progress: bool) -> list[Embedding]:
    sample = job.training.sample
    placed = {kind: names for kind, names in sample.kinds.items() if kind in job.model.kinds}
    found = embeddings_of(load(directory.path / EMBEDDINGS, groups=()), placed) if directory.has(EMBEDDINGS) else {}
    made: list[Embedding] = []
    bar = tqdm(job.config.embeddings, disable=None if progress else True, leave=False)
    for i, section in enumerate(bar):
        options = dict(section)
        label = options.get("label") or options["name"]
        bar.set_description(f"embedding {label}")
        if label in found:
            made.append(found[label])
            continue
        try:
            embedding = embed(options.pop("name"), sample, **options)
            joined(embedding, placed, job.model.name)
        except LatentLabError as error:
            error.args = (f"embeddings.{i}: {error}",)
            raise
        made.append(embedding)
        directory.logger.info("embedded: %s", "; ".join([embedding.label, *embedding.notes]))
        for note in embedding.notes:
            _note(directory, f"{embedding.label}: {note}")
        directory.write_tree(EMBEDDINGS, embeddings_tree(made, placed, job.model.position_columns()))
    return made


def _note(directory: RunDirectory, note: str) -> None:
    """What a reader should know, kept once in `run.json`."""
    if note not in directory.info["notes"]:
        directory.info["notes"].append(note)


def _compare(job: _Job, directory: RunDirectory, fitted: Fit, embeddings: list[Embedding], *, progress: bool) -> None:
    comparison = compare(fitted, embeddings, **job.config.compare.options(), progress=progress)
    asked = int(job.config.compare.options().get("n_neighbors", 0))
    taken = min(int(part.attrs.get("n_neighbors", asked)) for part in comparison.parts.values())
    if taken < asked:
        note = f"n_neighbors was lowered from {asked} to {taken}: fewer than half of the units can be neighbours"
        directory.logger.info("%s", note)
        _note(directory, note)
    for row in comparison.verdicts.itertuples():
        seed = str(getattr(row, "seed", ""))
        name = f"{row.embedding} #{seed}" if seed else str(row.embedding)
        name += f", {row.units}s" if len(comparison.parts) > 1 else ""
        directory.logger.info("%s, %s, %s: %s", name, row.map, row.alignment, row.verdict)
    directory.write_tree("comparison.nc", comparison.to_tree())
    directory.write_table("comparison.csv", comparison.to_dataframe())
    directory.write_table("verdicts.csv", comparison.verdicts)


def _report(directory: RunDirectory, status: str, *, progress: bool) -> None:
    run = read(directory.path)
    try:
        _write_page(replace(run, info={**run.info, "status": status}), progress=progress)
    except MissingDependencyError as error:
        directory.info["warnings"].append(f"no report: {error} Then `latentlab report {directory.path}` writes it.")
        directory.logger.warning("no report: %s", error)


def _write_page(run: Run, *, progress: bool = False) -> Path:
    from latentlab.report.page import write

    return write(run, progress=progress)


def _has_page(run: Run) -> bool:
    return (run.path / REPORT[0]).is_file()


# -- what is written


def embeddings_tree(embeddings: Sequence[Embedding], kinds: Mapping[str, np.ndarray], n_latent: int | None) -> xr.DataTree:
    """The embeddings, a variable each by its label: `(unit, latent)`, or `(unit, latent_LABEL)` where its size differs.

    Several seeds lead with `seed_LABEL`, whose coordinate holds them. Where there are several kinds of units, there is a group
    for each; their dims are called like the kinds.
    """
    if len(kinds) == 1:
        (kind,) = kinds
        return xr.DataTree(_of_kind([embedding.of(kind) for embedding in embeddings], kind, kinds[kind], n_latent))
    placing = {kind: [e.of(kind) for e in embeddings if kind in e.kinds] for kind in kinds}
    return xr.DataTree.from_dict({kind: _of_kind(of, kind, kinds[kind], n_latent) for kind, of in placing.items() if of})


def _of_kind(embeddings: Sequence[Embedding], kind: str, units: np.ndarray, n_latent: int | None) -> xr.Dataset:
    variables, coords = {}, {kind: units}
    for given in embeddings:
        embedding = given.reindexed(units)
        label, size = embedding.label, embedding.values.shape[-1]
        dims: tuple[str, ...] = (kind, "latent" if size == n_latent else f"latent_{label}")
        coords[dims[-1]] = np.arange(size)
        if embedding.values.ndim == 3:
            dims = (f"seed_{label}", *dims)
            coords[dims[0]] = np.asarray(embedding.seeds)
        attrs = {
            "name": embedding.name,
            "options": json.dumps(dict(embedding.options), default=str),
            "notes": json.dumps(list(embedding.notes)),
        }
        variables[label] = (dims, embedding.values, attrs)
    return xr.Dataset(variables, coords=coords)


def embeddings_of(tree: xr.DataTree, kinds: Iterable[str]) -> dict[str, Embedding]:
    """The embeddings that `embeddings_tree` put into a file, by label; none of a file without their notes."""
    several = len(list(kinds)) > 1
    nodes = {str(kind): node.to_dataset(inherit=False) for kind, node in tree.children.items()} if several else {}
    nodes = nodes or {next(iter(kinds)): tree.to_dataset()}
    parts: dict[str, dict[str, xr.DataArray]] = {}
    for kind, dataset in nodes.items():
        for label, array in dataset.data_vars.items():
            if "notes" in array.attrs:
                parts.setdefault(str(label), {})[kind] = array
    found = {}
    for label, arrays in parts.items():
        first = next(iter(arrays.values()))
        values, units = ({k: a.values for k, a in arrays.items()}, {k: a[k].values for k, a in arrays.items()})
        found[label] = Embedding(
            str(first.attrs["name"]),
            values if several else first.values,
            units if several else next(iter(units.values())),
            label,
            json.loads(first.attrs["options"]),
            tuple(first[f"seed_{label}"].values.tolist()) if first.ndim == 3 else (),
            tuple(json.loads(first.attrs["notes"])),
        )
    return found


def _params(job: _Job, fitted: Fit) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """What is needed to use the fit without a step: each site's mean, the parameters, and the data's transform.

    A point estimate is one member of its orbit already; draws are averaged with the symmetry removed.
    """
    point = bool(fitted.data.attrs["point_estimate"])
    groups = ("posterior",) if point else ("posterior", "latents")
    sites = {name: array for group in groups for name, array in fitted.data[group].data_vars.items()}
    means = {str(name): array.mean(("chain", "draw")) for name, array in sites.items() if array.dtype.kind == "f"}
    if fitted.parameters:
        means |= {str(name): array for name, array in fitted.data["parameters"].data_vars.items()}
    arrays = {name: np.ascontiguousarray(mean.values, dtype=np.float64) for name, mean in means.items()}
    transform = job.training.transform
    if transform is not None:
        arrays |= {"transform.loc": np.ascontiguousarray(transform.loc), "transform.scale": np.ascontiguousarray(transform.scale)}
    meaning = {
        "model": job.model.name,
        "hyperparameters": job.model.hyperparameters(),
        "values": "point estimate" if point else "posterior mean, symmetry removed",
        "dims": {name: list(mean.dims) for name, mean in means.items()},
        "parameters": sorted(fitted.parameters),
        "features": job.training.features if job.training.sample.x.ndim == 2 else None,
    }
    return arrays, meaning


def _bars(tree: xr.DataTree) -> list[str]:
    """What the progress bars of chains and climbs came to: a line for each chain, and the last values of a climb."""
    lines = []
    stats = tree["sample_stats"].data_vars if "sample_stats" in tree.children else {}
    if "diverging" in stats:
        for chain in stats["diverging"]["chain"].values:
            of = {name: array.sel(chain=chain).values for name, array in stats.items()}
            lines.append(
                f"chain {chain}: {of['diverging'].size} draws, {int(of['diverging'].sum())} divergent, step size "
                f"{of['step_size'][-1]:.4g}, acceptance {of['acceptance_rate'].mean():.3f}, steps {of['n_steps'].mean():.1f}"
            )
    optimization = tree["optimization"].data_vars if "optimization" in tree.children else {}
    for name in ("log_joint", "log_likelihood"):
        if name in optimization:
            lines += [f"{name} {i}: {value:.6g}" for i, value in enumerate(optimization[name].values[-10:])]
    return lines


# -- what must be so before a run begins


def _check_same(
    folder: Path, old: Mapping[str, Any], new: Mapping[str, Any], config: Config, *, force: bool, whole: bool
) -> None:
    """Refuses to resume what would not come out as it would have.

    Raises:
        StoreError: Config or data differ; or, without `force`, plugins, and where the run is not `whole`, versions or threads.
    """
    if CONFIG not in old["files"]:
        return
    if not (folder / CONFIG).is_file() or sha256(folder / CONFIG) != old["files"][CONFIG]["sha256"]:
        raise StoreError(
            f"{folder / CONFIG} is missing or was changed since the run began, so it cannot be resumed; --overwrite begins anew."
        )
    new_config = yaml.safe_load(config.to_yaml())
    lines = differences(read_config(folder), new_config)
    lines += differences({"data": {"sha256": old["data"]["sha256"]}}, {"data": {"sha256": new["data"]["sha256"]}})
    if lines:
        raise StoreError(f"{folder} cannot be resumed, it was begun otherwise: {'; '.join(lines)}. --overwrite begins anew.")
    keys = ("plugins",) if whole else ("versions", "threads", "plugins")
    lines = differences({key: old[key] for key in keys}, {key: new[key] for key in keys})
    if lines and not force:
        raise StoreError(
            f"{folder} was begun with {'; '.join(lines)}: the result may differ; --resume --force goes on all the same, "
            "--overwrite begins anew."
        )


def _check_room(path: Path, job: _Job) -> None:
    needed = job.n_bytes()
    free = shutil.disk_usage(path if path.exists() else path.parent).free
    if free < needed:
        sizes = f"about {needed / 1e6:.1f} MB of disk, {free / 1e6:.1f} MB are free"
        raise StoreError(f"{path}: the run needs {sizes}; choose another --out, or fewer draws.")


def _check_storable(tree: xr.DataTree, name: str) -> None:
    """Writes a result's names and coordinates to a temporary file: what netCDF cannot hold is refused before the fit.

    Raises:
        DataError: They do not read back as they are.
    """
    with tempfile.TemporaryDirectory() as folder:
        try:
            save(tree, Path(folder) / POSTERIOR)
        except StoreError as error:
            why = str(error).partition(f"{POSTERIOR}")[2].lstrip(":, ")
            raise DataError(f"{name}: units, times or names cannot be stored in netCDF: {why}") from error


# -- the surroundings


@contextlib.contextmanager
def _stoppable() -> Iterator[None]:
    """SIGTERM, which clusters send, ends a run as SIGINT does: by KeyboardInterrupt. Handlers of one's own are left."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, _: Any) -> None:
        raise KeyboardInterrupt(signal.Signals(number).name)

    found = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    before = {number: handler for number, handler in found.items() if handler in PLAIN_HANDLERS}
    for number in before:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _warnings_kept(directory: RunDirectory) -> Iterator[None]:
    """Warnings are shown as ever, and kept in the log and in `run.json`."""
    with warnings.catch_warnings():
        shown = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *rest: Any, **options: Any) -> None:
            text = " ".join(str(message).split())
            directory.logger.warning("%s: %s", category.__name__, text)
            if text not in directory.info["warnings"]:
                directory.info["warnings"].append(text)
            shown(message, category, *rest, **options)

        warnings.showwarning = show
        yield


def _ending_with(error: Exception, exit_code: int) -> Exception:
    """The error, with the code that the command line ends with: what has started is no longer a matter of usage."""
    if isinstance(error, LatentLabError):
        error.exit_code = exit_code
    return error


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def _hardware() -> dict[str, Any]:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {"machine": platform.machine(), "system": platform.platform(), "cpus": os.cpu_count(), "memory_bytes": memory}


def _commit() -> str | None:
    """The commit of the repository that the working directory is in, if it is in one."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        found = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=True)
        return found.stdout.strip()
    return None
