"""Stages of a run, each written before the next begins."""

import contextlib
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from latentlab.comparison.compare import compare
from latentlab.comparison.rows import joined
from latentlab.data.memory import memory_bytes
from latentlab.embeddings.embed import embed
from latentlab.embeddings.embedding import Embedding
from latentlab.errors import LatentLabError, MissingDependencyError, StoreError
from latentlab.fit import Fit, fit
from latentlab.processes import current
from latentlab.progress import tqdm
from latentlab.results.netcdf import load
from latentlab.results.new_points import summed
from latentlab.store.data import DATA, data_tree
from latentlab.store.directory import CHECKPOINTS, HELD_OUT, RunDirectory
from latentlab.store.read import Run, read
from latentlab.study.job import EMBEDDINGS, POSTERIOR, Job
from latentlab.study.tracked import Trackers
from latentlab.study.written import COMPARISON, bar_lines, embeddings_of, embeddings_tree, write_comparison, write_diagnostics

PLAIN_HANDLERS = (signal.SIG_DFL, signal.SIG_IGN, signal.default_int_handler)
N_STAGES = 6
"""Number of stages: data, embeddings, fit, diagnostics, comparison, report."""
BAR = "{desc}: {n_fmt}/{total_fmt} stages [{elapsed}]"


class StageBar:
    """Progress bar on a terminal with the current stage and the number of finished ones; a stage may have its own bars."""

    def __init__(self, *, progress: bool) -> None:
        self._bar = tqdm(desc="data", total=N_STAGES, disable=None if progress else True, leave=False, bar_format=BAR)
        self._begun = False

    def __enter__(self) -> "StageBar":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def stage(self, name: str) -> None:
        """Counts the previous stage as finished, and shows the next."""
        self._bar.set_description_str(name, refresh=False)
        self._bar.update(self._begun)
        self._bar.refresh()
        self._begun = True


def run_stages(job: Job, directory: RunDirectory, bar: StageBar, *, progress: bool, fresh: bool) -> None:
    """Runs all stages, and records an error before it is raised.

    A new run is removed if an embedding raises an error of usage.
    """
    trackers = Trackers(job.config, directory)
    try:
        with _interrupts_as_errors(), _recorded_warnings(directory):
            trackers.begin()
            status = _stages(job, directory, bar, trackers, progress=progress)
    except KeyboardInterrupt as error:
        with contextlib.suppress(StoreError):
            directory.stop("interrupted", error)
        trackers.end("interrupted", error)
        raise
    except Exception as error:
        usage = isinstance(error, LatentLabError) and error.exit_code == 2 and not isinstance(error, StoreError)
        if fresh and usage and directory.info["stage"] == "embeddings":
            directory.discard()
            trackers.end("failed", error)
            raise
        with contextlib.suppress(StoreError):
            kept = directory.stop("failed", error)
            if kept != directory.path:
                error.add_note(f"The previous run was restored in {directory.path}.")
            error.add_note(f"Finished results are kept in {kept}; --resume continues the run.")
        trackers.end("failed", error)
        raise ending_with(error, 1) from error.__cause__
    trackers.end(status)


def _stages(job: Job, directory: RunDirectory, bar: StageBar, trackers: Trackers, *, progress: bool) -> str:
    def timed(stage: str, act: Callable[[], Any]) -> Any:
        bar.stage(stage)
        directory.stage(stage)
        begin, seconds = time.monotonic(), directory.info["seconds"]
        result = act()
        seconds[stage] = round(seconds.get(stage, 0.0) + time.monotonic() - begin, 3)
        return result

    if not directory.has(DATA):
        directory.write_tree(DATA, data_tree(job.training.sample))
    for note in job.training.notes():
        directory.logger.info("data: %s", note)
    compared = all(map(directory.has, (POSTERIOR, *COMPARISON)))
    # Embeddings come first: they are quick, and their errors should not appear after an hour of sampling.
    embeddings = timed("embeddings", lambda: _embed(job, directory, progress=progress)) if job.config.embeddings else []
    fitted = timed("fit", lambda: _fit(job, directory, trackers, progress=progress))
    timed("diagnostics", lambda: _diagnose(job, directory, fitted))
    if embeddings and not compared:
        timed("comparison", lambda: _compare(job, directory, fitted, embeddings, progress=progress))
    status = "done" if fitted.converged else "not_converged"
    timed("report", lambda: _report(directory, status, progress=progress))
    directory.finish(status)
    return status


def _fit(job: Job, directory: RunDirectory, trackers: Trackers, *, progress: bool) -> Fit:
    if directory.has(POSTERIOR):
        return job.fit(load(directory.path / POSTERIOR, memory=memory_bytes(job.config.memory)))

    def log(line: str) -> None:
        directory.logger.info("%s: %s", job.method.name, line)

    if (processes := current()).size > 1:
        log(str(processes))
    options: dict[str, Any] = {"seed": job.config.seed, "executor": job.config.executor, "progress": progress, "log": log}
    options |= {"monitor": trackers.log if trackers else None, "memory": job.config.memory}
    fitted = fit(job.model, job.training, job.method, checkpoint=directory.path / CHECKPOINTS, **options)
    for line in bar_lines(fitted.data):
        log(line)
    directory.write_tree(POSTERIOR, fitted.data)
    return fitted


def _diagnose(job: Job, directory: RunDirectory, fitted: Fit) -> None:
    table = fitted.diagnostics()
    if job.held_out is not None:
        terms = fitted.held_out_terms(job.held_out)
        directory.write_table(HELD_OUT, terms)
        score = summed(terms, "n_points" if fitted.dataset.index else "n_units")
        directory.info["held_out"] = score
        rows = [
            ("held_out_score", name, value, "", "not applicable") for name, value in score.items() if not name.startswith("n_")
        ]
        table = pd.concat([table, pd.DataFrame(rows, columns=table.columns)], ignore_index=True)
    write_diagnostics(directory, fitted, table)
    for row in table[table["verdict"].isin(["fail", "warn"])].itertuples():
        directory.logger.warning("%s: %s, %s: %s (%s)", row.verdict, row.check, row.quantity, row.value, row.threshold)


def _embed(job: Job, directory: RunDirectory, *, progress: bool) -> list[Embedding]:
    sample = job.training.sample
    placed = {kind: names for kind, names in sample.kinds.items() if kind in job.model.kinds}
    stored = embeddings_of(load(directory.path / EMBEDDINGS, groups=()), placed) if directory.has(EMBEDDINGS) else {}
    made: list[Embedding] = []
    bar = tqdm(job.config.embeddings, disable=None if progress else True, leave=False)
    for i, section in enumerate(bar):
        options = dict(section)
        label = options.get("label") or options["name"]
        bar.set_description(f"embedding {label}")
        if label in stored:
            made.append(stored[label])
            continue
        try:
            embedding = embed(options.pop("name"), sample, **options)
            joined(embedding, placed, job.model)
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
    """Adds a note to `run.json`, once."""
    if note not in directory.info["notes"]:
        directory.info["notes"].append(note)


def _compare(job: Job, directory: RunDirectory, fitted: Fit, embeddings: list[Embedding], *, progress: bool) -> None:
    comparison = compare(fitted, embeddings, **job.config.compare.options(), progress=progress)
    requested = int(job.config.compare.options().get("n_neighbors", 0))
    for kind, part in comparison.parts.items():
        used = int(part.attrs.get("n_neighbors", requested))
        if used < requested:
            note = f"n_neighbors was reduced from {requested} to {used}, since it must be less than half of the number of {kind}s"
            directory.logger.info("%s", note)
            _note(directory, note)
    for row in comparison.verdicts.itertuples():
        seed = str(getattr(row, "seed", ""))
        name = f"{row.embedding} #{seed}" if seed else str(row.embedding)
        name += f", {row.units}s" if len(comparison.parts) > 1 else ""
        directory.logger.info("%s, %s, %s: %s", name, row.map, row.alignment, row.verdict)
    write_comparison(directory, comparison)


def _report(directory: RunDirectory, status: str, *, progress: bool) -> None:
    run = read(directory.path)
    try:
        write_page(replace(run, info={**run.info, "status": status}), progress=progress)
    except MissingDependencyError as error:
        directory.info["warnings"].append(f"no report: {error} `latentlab report {directory.path}` then writes it.")
        directory.logger.warning("no report: %s", error)


def write_page(run: Run, *, progress: bool = False) -> Path:
    from latentlab.report.page import write

    return write(run, progress=progress)


@contextlib.contextmanager
def _interrupts_as_errors() -> Iterator[None]:
    """Raises KeyboardInterrupt on SIGTERM, which clusters send, as on SIGINT; the user's own handlers are kept."""
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
def _recorded_warnings(directory: RunDirectory) -> Iterator[None]:
    """Records warnings in the log and in `run.json`; they are shown as well."""
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


def ending_with(error: Exception, exit_code: int) -> Exception:
    """Sets the exit code of the command line in a latentlab error, since an error after the start is not an error of usage."""
    if isinstance(error, LatentLabError):
        error.exit_code = exit_code
    return error
