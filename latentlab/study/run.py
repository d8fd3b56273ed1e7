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
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
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

from latentlab.comparison import check_spread, compare
from latentlab.embeddings.embedding import Embedding, embed
from latentlab.errors import ConfigError, InferenceError, LatentLabError, MissingDependencyError, StoreError
from latentlab.files import now, sha256
from latentlab.fit import N_PREDICTIVE, Fit, classes_of, density_of_new, fit, prepared
from latentlab.posterior import load
from latentlab.registry import plugins as plugged
from latentlab.seeds import Seeds
from latentlab.store import (
    CHECKPOINTS,
    COMPLETE,
    CONFIG,
    REPORT,
    Run,
    RunDirectory,
    differences,
    place,
    read,
    read_config,
    read_info,
)
from latentlab.study.config import Config, load_config

PACKAGES = ("latentlab", "torch", "pyro-ppl", "numpy", "scipy", "scikit-learn", "pandas", "xarray", "arviz", "h5netcdf")
POSTERIOR = "posterior.nc"
SPARE_BYTES = 50_000_000
"""Room that a run asks for besides twice its draws."""


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
) -> Run:
    """Runs a config from data to report.

    Args:
        config: A YAML file, a mapping, or a `Config`.
        overrides: Dotted changes, `inference.n_draws=500`.
        out: The run directory; `runs/NAME` where None.
        overwrite: Replace the run that is there; it comes back if this one fails.
        resume: Go on with the run that is there; a complete one is left as it is.
        force: Resume despite other versions or another number of threads.
        strict: Raise an error where a diagnostic failed, once everything is written.
        plugins: Files that define models.
        progress: Bars on a terminal, and where the report is at the end.

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
    with plugged(resolved.plugins), RunDirectory(path) as directory:
        old = directory.found(overwrite=overwrite, resume=resume)
        job = _Job(resolved)
        info = job.description()
        if old is not None:
            _check_same(directory.path, old, info, resolved, force=force)
            info["resumed"] = info["started"]
            info.update({key: old[key] for key in ("started", "warnings", "seconds") if key in old})
        if old is None or old["status"] not in COMPLETE:
            _check_room(directory.path, job)
            directory.begin(info, resolved.to_yaml(), old=old)
            _carry_out(job, directory, progress=progress, fresh=old is None)
        done = read(path)
    if progress:
        print(_told(done))
    if strict and done.info["status"] == "not_converged":
        failed = done.diagnostics.query("verdict == 'fail'")
        what = ", ".join(f"{check} of {quantity}" for check, quantity in zip(failed["check"], failed["quantity"], strict=True))
        raise _ending_with(InferenceError(f"{path}: not converged ({what}); everything was written."), 3)
    return done


def load_run(path: str | Path) -> Run:
    """Reads a run directory, and checks every file that it lists.

    Raises:
        StoreError: No run is there, a newer latentlab wrote it, or a file is missing or damaged; names it.
    """
    return read(path)


def load_fit(run: Run) -> Fit:
    """The fit of a run, as it was before it was written: `load_fit(run).latents(new)` places new units.

    Raises:
        StoreError: The data are no longer those of the run.
    """
    job = _Job(load_config(run.config))
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
    with RunDirectory(path) as directory:
        directory.info = read_info(directory.path)
        page = _write_page(read(path))
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
        prepared(self.model, self.training, self.method, seed=config.seed)
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
        """What the posterior takes, uncompressed, as far as it is known before the fit."""

        sample = self.training.sample

        def size(dim: str) -> int:
            said = (getattr(self.model, name, None) for name in (f"n_{dim}", f"n_{dim}s"))
            return sample.sizes.get(dim) or next((n for n in said if isinstance(n, int)), 1)

        n_draws = getattr(self.method, "n_chains", 1) * self.method.n_draws
        sites = sum(int(np.prod([size(dim) for dim in dims])) for dims in self.model.dims.values())
        return 8 * (n_draws * (2 * sites + size("unit")) + 2 * N_PREDICTIVE * sample.x.size)


# -- the stages


def _carry_out(job: _Job, directory: RunDirectory, *, progress: bool, fresh: bool) -> None:
    """All stages; whatever stops them is written down first. Embeddings that cannot be made leave no new run behind."""
    try:
        with _stoppable(), _warnings_kept(directory):
            _stages(job, directory, progress=progress)
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


def _stages(job: _Job, directory: RunDirectory, *, progress: bool) -> None:
    def timed(stage: str, act: Callable[[], Any]) -> Any:
        directory.stage(stage)
        begin, seconds = time.monotonic(), directory.info["seconds"]
        result = act()
        seconds[stage] = round(seconds.get(stage, 0.0) + time.monotonic() - begin, 3)
        return result

    for note in directory.info["notes"]:
        directory.logger.info("data: %s", note)
    # The embeddings first: they are quick, and what is wrong with one should not show after an hour of sampling.
    embeddings = timed("embeddings", lambda: _embed(job, directory, progress=progress)) if job.config.embeddings else []
    fitted = timed("fit", lambda: _fit(job, directory, progress=progress))
    timed("diagnostics", lambda: _diagnose(job, directory, fitted))
    if embeddings:
        timed("comparison", lambda: _compare(job, directory, fitted, embeddings, progress=progress))
    status = "done" if fitted.converged else "not_converged"
    timed("report", lambda: _report(directory, status))
    directory.finish(status)


def _fit(job: _Job, directory: RunDirectory, *, progress: bool) -> Fit:
    if directory.has(POSTERIOR):
        return job.fit(load(directory.path / POSTERIOR))
    checkpoints = directory.path / CHECKPOINTS
    fitted = fit(job.model, job.training, job.method, seed=job.config.seed, progress=progress, checkpoint=checkpoints)
    for line in _bars(fitted.data):
        directory.logger.info("%s: %s", job.method.name, line)
    directory.write_tree(POSTERIOR, fitted.data)
    return fitted


def _diagnose(job: _Job, directory: RunDirectory, fitted: Fit) -> None:
    table = fitted.diagnostics()
    if job.held_out is not None:
        score = fitted.held_out_score(job.held_out)
        directory.info["held_out"] = score
        rows = [("held_out_score", name, value, "", "not applicable") for name, value in score.items() if name != "n_units"]
        table = pd.concat([table, pd.DataFrame(rows, columns=table.columns)], ignore_index=True)
    directory.write_json("diagnostics.json", table.to_dict("records"))
    for row in table[table["verdict"].isin(["fail", "warn"])].itertuples():
        directory.logger.warning("%s: %s, %s: %s (%s)", row.verdict, row.check, row.quantity, row.value, row.threshold)
    arrays, meaning = _params(job, fitted)
    directory.write("params/params.safetensors", safetensors.numpy.save(arrays))
    directory.write_json("params/params.json", meaning)


def _embed(job: _Job, directory: RunDirectory, *, progress: bool) -> list[Embedding]:
    made = []
    bar = tqdm(job.config.embeddings, desc="embeddings", disable=None if progress else True, leave=False)
    for i, section in enumerate(bar):
        options = dict(section)
        try:
            embedding = embed(options.pop("name"), job.training.sample, **options)
            embedding.reindexed(job.training.sample.units)
        except LatentLabError as error:
            error.args = (f"embeddings.{i}: {error}",)
            raise
        made.append(embedding)
        directory.logger.info("embedded: %s", "; ".join([embedding.label, *embedding.notes]))
        directory.info["notes"] += [f"{embedding.label}: {note}" for note in embedding.notes]
    directory.write_tree("embeddings.nc", embeddings_dataset(made, job.training.sample.units, job.model.position_columns()))
    return made


def _compare(job: _Job, directory: RunDirectory, fitted: Fit, embeddings: list[Embedding], *, progress: bool) -> None:
    comparison = compare(fitted, embeddings, **job.config.compare.options(), progress=progress)
    asked = int(job.config.compare.options().get("n_neighbors", 0))
    taken = int(comparison.to_dataset().attrs.get("n_neighbors", asked))
    if taken < asked:
        note = f"n_neighbors was lowered from {asked} to {taken}: fewer than half of the units can be neighbours"
        directory.logger.info("%s", note)
        directory.info["notes"].append(note)
    for row in comparison.verdicts.itertuples():
        seed = str(getattr(row, "seed", ""))
        name = f"{row.embedding} #{seed}" if seed else row.embedding
        directory.logger.info("%s, %s, %s: %s", name, row.map, row.alignment, row.verdict)
    directory.write_tree("comparison.nc", comparison.to_dataset())
    directory.write_table("comparison.csv", comparison.to_dataframe())
    directory.write_table("verdicts.csv", comparison.verdicts)


def _report(directory: RunDirectory, status: str) -> None:
    run = read(directory.path)
    try:
        _write_page(replace(run, info={**run.info, "status": status}))
    except MissingDependencyError as error:
        directory.info["warnings"].append(f"no report: {error} Then `latentlab report {directory.path}` writes it.")
        directory.logger.warning("no report: %s", error)


def _write_page(run: Run) -> Path:
    from latentlab.report.page import write

    return write(run)


# -- what is written


def embeddings_dataset(embeddings: Sequence[Embedding], units: np.ndarray, n_latent: int | None) -> xr.Dataset:
    """The embeddings, a variable each by its label: `(unit, latent)`, or `(unit, latent_LABEL)` where its size differs.

    Several seeds lead with `seed_LABEL`, whose coordinate holds them.
    """
    variables, coords = {}, {"unit": units}
    for embedding in embeddings:
        label, size = embedding.label, embedding.values.shape[-1]
        dims: tuple[str, ...] = ("unit", "latent" if size == n_latent else f"latent_{label}")
        coords[dims[-1]] = np.arange(size)
        if embedding.values.ndim == 3:
            dims = (f"seed_{label}", *dims)
            coords[dims[0]] = np.asarray(embedding.seeds)
        attrs = {"name": embedding.name, "options": json.dumps(dict(embedding.options), default=str)}
        variables[label] = (dims, embedding.values, attrs)
    return xr.Dataset(variables, coords=coords)


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
    """What the progress bars came to: a chain, or every tenth of a restart, a line."""
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
    if "loss" in optimization:
        for restart, loss in enumerate(optimization["loss"].values):
            for end in np.unique(np.linspace(0, len(loss), 11).astype(int))[1:]:
                elbo = -loss[max(0, end - 50) : end].mean()
                lines.append(f"restart {restart}, step {end} of {len(loss)}: elbo {elbo:.2f}")
    for name in ("log_joint", "log_likelihood"):
        if name in optimization:
            lines += [f"{name} {i}: {value:.6g}" for i, value in enumerate(optimization[name].values[-10:])]
    return lines


def _told(run: Run) -> str:
    page = run.path / "report.html"
    status = run.info["status"].replace("_", " ")
    return f"{run.path}: {status}; " + (f"report: {page}" if page.is_file() else "; ".join(run.info["warnings"][-1:]))


# -- what must be so before a run begins


def _check_same(folder: Path, old: Mapping[str, Any], new: Mapping[str, Any], config: Config, *, force: bool) -> None:
    """Refuses to resume what would not come out as it would have.

    Raises:
        StoreError: Config, data or plugins differ; or, without `force`, versions or threads, where there is more to compute.
    """
    if CONFIG not in old["files"]:
        return
    if not (folder / CONFIG).is_file() or sha256(folder / CONFIG) != old["files"][CONFIG]["sha256"]:
        raise StoreError(f"{folder / CONFIG} is missing or was changed since the run began, so it cannot be resumed.")
    new_config = yaml.safe_load(config.to_yaml())
    inputs = [{"data": {"sha256": info["data"]["sha256"]}, "plugins": info["plugins"]} for info in (old, new)]
    lines = differences(read_config(folder), new_config) + differences(inputs[0], inputs[1])
    if lines:
        raise StoreError(f"{folder} cannot be resumed, it was begun otherwise: {'; '.join(lines)}. --overwrite begins anew.")
    means = [{key: info[key] for key in ("versions", "threads")} for info in (old, new)]
    lines = differences(means[0], means[1])
    if lines and not force and old["status"] not in COMPLETE:
        raise StoreError(
            f"{folder} was begun with {'; '.join(lines)}: the result may differ; --resume --force goes on all the same."
        )


def _check_room(path: Path, job: _Job) -> None:
    needed = 2 * job.n_bytes() + SPARE_BYTES
    free = shutil.disk_usage(path if path.exists() else path.parent).free
    if free < needed:
        sizes = f"about {needed // 10**6} MB of disk, {free // 10**6} MB are free"
        raise StoreError(f"{path}: the run needs {sizes}; choose another --out, or fewer draws.")


# -- the surroundings


@contextlib.contextmanager
def _stoppable() -> Iterator[None]:
    """SIGTERM, which clusters send, ends a run as SIGINT does: by KeyboardInterrupt."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, _: Any) -> None:
        raise KeyboardInterrupt(signal.Signals(number).name)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
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
