"""A run: fit, embeddings, comparison and report of a config, and the directory with the results.

The results of a stage are written before the next stage begins, so that a later failure does not lose them.
"""

import contextlib
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from latentlab.errors import ConfigError, InferenceError, StoreError
from latentlab.files import sha256
from latentlab.fit import Fit
from latentlab.processes import current
from latentlab.registry import plugins as plugged
from latentlab.store.directory import CONFIG, REPORT, RunDirectory, place, read_info
from latentlab.store.read import Run, differences, read, read_config
from latentlab.study.config import Config, load_config
from latentlab.study.job import Job
from latentlab.study.joint import jointly
from latentlab.study.stages import StageBar, ending_with, run_stages, write_page

ORIGIN = ("versions", "threads", "hardware", "commit", "started")
"""Entries of `run.json` on the origin of a fit."""


@jointly
def run(  # one keyword for each user option
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
    sweep: Mapping[str, Any] | None = None,
) -> "FittedRun":
    """Run a config from data to report.

    Args:
        config: A YAML file, a mapping, or a `Config`.
        overrides: Dotted overrides, such as `inference.n_draws=500`.
        out: The run directory; `runs/NAME` if None.
        overwrite: Replace an existing run, which is restored if the new one fails.
        resume: Resume an existing run; a complete one is left unchanged.
        force: Resume despite other versions, another number of threads, or a changed plugin.
        strict: Raise an error if a diagnostic failed, after all results are written.
        plugins: Files that define models, datasets, embeddings, metrics or trackers.
        progress: Whether to show progress bars on a terminal, and a summary of a few lines at the end.
        sweep: For a point of a sweep: the entry `sweep` of `run.json`, with the values of the swept keys.

    Returns:
        The run, read from its directory.

    Raises:
        ConfigError, DataError, ModelError: The config or the data is wrong; nothing was started.
        StoreError: The directory contains a run, is being written by another process, or cannot be written.
        InferenceError: Inference failed; `run.json` has the stage, and finished files are kept. Or a diagnostic failed, with
            `strict`.
        KeyboardInterrupt: On SIGINT or SIGTERM; the run can be resumed.
    """
    if force and not resume:
        raise ConfigError("--force requires --resume: it resumes a run despite a changed version or thread count.")
    if overwrite and resume:
        raise ConfigError("--overwrite and --resume must not be combined: one replaces an existing run, the other continues it.")
    resolved = load_config(config, overrides, plugins)
    path = place(resolved.name) if out is None else Path(out)
    with plugged(resolved.plugins), RunDirectory(path) as directory, StageBar(progress=progress) as bar:
        old = directory.existing(overwrite=overwrite, resume=resume)
        bar.stage("data")
        job = Job(resolved)
        described = job.description()
        current().meet(job.identity(described))
        info = described | ({"sweep": dict(sweep)} if sweep is not None else {})
        info |= {"memory": resolved.memory} if resolved.memory is not None else {}
        intact = old is not None and directory.is_intact(old)
        if old is not None:
            _check_same(directory.path, old, info, resolved, force=force, intact=intact)
            info["resumed"] = info["started"]
            info.update({key: old[key] for key in ("started", "warnings", "notes", "seconds") if key in old})
        if not intact:
            _check_room(directory.path, job)
            directory.begin(info, resolved.to_yaml(), old=old)
            run_stages(job, directory, bar, progress=progress, fresh=old is None)
        done = load_run(path)
    if progress:
        print("\n".join([*done.summary(), *done.info["warnings"][-1:]]) if not _has_page(done) else done)
    if strict and done.info["status"] == "not_converged":
        failed = done.diagnostics.query("verdict == 'fail'")
        what = ", ".join(f"{check} of {quantity}" for check, quantity in zip(failed["check"], failed["quantity"], strict=True))
        raise ending_with(InferenceError(f"{path}: not converged ({what}); all results were written."), 3)
    return done


class FittedRun(Run):
    """A run read from its directory, with its fit."""

    @cached_property
    def fit(self) -> Fit:
        """Fit of the run, with the same arrays and functions as the original fit, such as positions of new units and scores.

        Raises:
            StoreError: A plugin was changed since the run, or the data set of an older run without data.nc was changed.
        """
        return load_fit(self)


def load_run(path: str | Path) -> FittedRun:
    """Read a run directory, and check every file that it lists.

    Raises:
        StoreError: There is no run, a newer latentlab wrote it, or a file is missing or damaged; the message names it.
    """
    found = read(path)
    return FittedRun(found.path, found.config, found.info)


def load_fit(run: Run) -> Fit:
    """Restore the fit of a run; for example, `load_fit(run).latents(new)` gives positions of new units.

    Raises:
        StoreError: A plugin was changed since the run, or the data set of an older run without data.nc was changed.
    """
    for path, digest in run.info.get("plugins", {}).items():
        if not Path(path).is_file() or sha256(Path(path)) != digest:
            raise StoreError(f"{run.path}: the plugin {path} is missing or was changed since the run; restore it or rerun.")
    config = load_config({**run.config, "tracking": []}, files=run.data is None)  # a fit does not need the trackers' packages
    origin = {key: run.info[key] for key in ORIGIN if key in run.info}
    with plugged(config.plugins):
        if run.data is not None:
            return Fit(config.build_model(), run.data, config.build_method(), config.seed, run.posterior, origin)
        job = Job(config)
    if job.dataset.digest() != run.info["data"]["sha256"]:
        raise StoreError(f"{run.path}: the data set {job.dataset.name!r} was changed since the fit; its hash differs.")
    return replace(job.fit(run.posterior), origin=origin)


def report(path: str | Path) -> Path:
    """Build the page of a run again.

    Raises:
        StoreError: The run cannot be read, is being written, or has no comparison yet.
        MissingDependencyError: jinja2 is not installed.
    """
    read_info(Path(path))
    with RunDirectory(path) as directory, contextlib.ExitStack() as stack:
        directory.info = read_info(directory.path)
        found = read(path)
        with contextlib.suppress(ConfigError):  # if a plugin is missing, the page has all parts that do not require it
            stack.enter_context(plugged(found.config.get("plugins", [])))
        page = write_page(found)
        directory.list(*REPORT)
    return page


def _has_page(run: Run) -> bool:
    return (run.path / REPORT[0]).is_file()


def _check_same(
    folder: Path, old: Mapping[str, Any], new: Mapping[str, Any], config: Config, *, force: bool, intact: bool
) -> None:
    """Raise an error if the result of a resumed run could differ from the result of an uninterrupted run.

    Raises:
        StoreError: Config or data differ; or, without `force`, plugins, or for a run that is not `intact`, versions, threads or
            starting weights.
    """
    if CONFIG not in old["files"]:
        return
    if not (folder / CONFIG).is_file() or sha256(folder / CONFIG) != old["files"][CONFIG]["sha256"]:
        raise StoreError(f"{folder / CONFIG} is missing or was changed, so the run cannot be resumed; --overwrite replaces it.")
    old_config, new_config = read_config(folder), yaml.safe_load(config.to_yaml())
    for one in (old_config, new_config):  # results do not depend on these keys
        for key in ("memory", "tracking"):
            one.pop(key, None)
    if {"executor"} <= {*old_config} & {*new_config}:  # with any executor, the results are the same
        old_config["executor"] = new_config["executor"]
    lines = differences(old_config, new_config)
    lines += differences({"data": {"sha256": old["data"]["sha256"]}}, {"data": {"sha256": new["data"]["sha256"]}})
    if lines:
        raise StoreError(f"{folder} cannot be resumed, since settings differ: {'; '.join(lines)}. --overwrite replaces the run.")
    dependencies = ("plugins",) if intact else ("versions", "threads", "plugins", "start")
    keys = [key for key in dependencies if key in old and key in new]  # older runs have no hash of their starting weights
    lines = differences({key: old[key] for key in keys}, {key: new[key] for key in keys})
    if lines and not force:
        raise StoreError(
            f"{folder}: the result may differ, since these have changed: {'; '.join(lines)}. --resume --force continues anyway, "
            "--overwrite replaces the run."
        )


def _check_room(path: Path, job: Job) -> None:
    needed = job.n_bytes()
    free = shutil.disk_usage(path if path.exists() else path.parent).free
    if free < needed:
        sizes = f"about {needed / 1e6:.1f} MB of disk space; {free / 1e6:.1f} MB are free"
        raise StoreError(f"{path}: the run requires {sizes}. Choose another directory by --out, or fewer draws.")
