"""Chains or restarts of a fit as tasks of an executor.

Each task computes one chain or restart, and writes it to the folder of checkpoints. The fit then reads them there, as it does
when it is resumed. A task gets the model, the data and the method, and returns a status and messages only.
"""

import contextlib
import io
import logging
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from latentlab import errors
from latentlab.data.dataset import Dataset
from latentlab.data.stored import StoredDataset
from latentlab.errors import ConfigError, InferenceError, LatentLabError, StoreError
from latentlab.executors.engines import opened, parsed
from latentlab.executors.tasks import Carried, limited_threads, work
from latentlab.inference.draws import DRAWS, Method, Problem, has_checkpoint
from latentlab.processes import current
from latentlab.results.prepare import prepared
from latentlab.seeds import one_thread

logger = logging.getLogger(__name__)

SECONDS_TO_APPEAR = 30.0
"""Seconds in which a file written by another machine must appear."""


def check_executor(name: str, method: Method, n_workers: int | None = None) -> bool:
    """Whether the tasks of an executor run on this machine only; checks its name, and that the method has independent parts.

    Raises:
        ConfigError: The name or the number of workers is invalid, or the method has no independent chains or restarts.
        MissingDependencyError: The engine is not installed.
    """
    engine, address = parsed(name, n_workers)
    if (n := current().size) > 1:
        raise ConfigError(f"executor: {n} processes of torchrun already share the fit; got {name!r}. Leave `executor` out.")
    if not hasattr(method, "parts"):
        why = ", whose chains are adapted jointly" if method.kind == "mcmc" else ""
        raise ConfigError(
            f"executor: the method must be nuts, svi or map, which have independent chains or restarts; got {method.name}{why}."
        )
    return engine in ("serial", "process") or address == "local"


@contextlib.contextmanager
def shared_folder(checkpoint: str | Path | None, executor: str, method: Method, n_workers: int | None) -> Iterator[Path]:
    """Folder of checkpoints of a fit with an executor: the given one, or a temporary one if all tasks run on this machine.

    Raises:
        ConfigError: The executor is invalid, or its tasks run on other machines and there is no folder.
    """
    on_this_machine = check_executor(executor, method, n_workers)
    if checkpoint:
        yield Path(checkpoint).absolute()
    elif on_this_machine:
        with tempfile.TemporaryDirectory(prefix="latentlab-") as folder:
            yield Path(folder)
    else:
        raise ConfigError(f"executor {executor}: set `checkpoint` to a folder that all machines share.")


def compute_parts(problem: Problem, dataset: Dataset | StoredDataset, method: Any, executor: str, n_workers: int | None) -> None:
    """Compute the chains or restarts that are not in the folder of checkpoints yet, each as a task of the executor.

    Args:
        problem: The problem, with a folder of checkpoints.
        dataset: The data.
        method: The method.
        executor: Name of the executor.
        n_workers: Number of workers on this machine; if None, the number of CPUs, and at most that of the tasks.

    Raises:
        LatentLabError: A task failed, with its error.
        KeyboardInterrupt: On an interrupt; the same call resumes the fit.
    """
    if has_checkpoint(problem, DRAWS):
        return
    folder = problem.checkpoint or Path()
    arguments = Carried(problem.model, dataset, method), problem.seeds.seed, str(folder)
    tasks = {name: (*arguments, i) for i, name in enumerate(method.parts()) if not has_checkpoint(problem, name)}
    if not tasks:
        return
    folder.mkdir(parents=True, exist_ok=True)
    with (
        opened(executor, folder / ".jobs", n_workers=n_workers, most=len(tasks)) as engine,
        tqdm(total=len(tasks), desc=method.name, disable=None if problem.progress else True, leave=False) as bar,
    ):
        work(engine, compute_part, tasks, _Progress(problem, bar))
    _await_files(problem, list(tasks))


def _await_files(problem: Problem, names: Sequence[str]) -> None:
    """Wait until the checkpoints of finished tasks are visible here; a network file system can show them late.

    Raises:
        StoreError: One is not visible after `SECONDS_TO_APPEAR`.
    """
    until = time.monotonic() + SECONDS_TO_APPEAR
    for name in names:
        while not has_checkpoint(problem, name):
            if time.monotonic() > until:
                raise StoreError(
                    f"{problem.checkpoint}: the task {name} has ended, but its result is not there; set `checkpoint` to a folder "
                    "that all machines share."
                )
            list(problem.checkpoint.iterdir() if problem.checkpoint else ())
            time.sleep(0.2)


class _Progress:
    """Shows and logs the progress of tasks, and raises their errors."""

    interval = 1.0

    def __init__(self, problem: Problem, bar: tqdm) -> None:
        self._problem, self._bar, self._shown, self._n_done = problem, bar, set[str](), 0

    def start(self, name: str) -> None:
        self.log(f"{name} starts")

    def refresh(self) -> None:
        self._bar.refresh()

    def log(self, line: str) -> None:
        if self._problem.log is not None:
            self._problem.log(line)

    def finish(self, name: str, result: Mapping[str, Any]) -> None:
        for line in result.get("log", ()):
            self.log(f"{name}: {line}")
        for kind, text in result.get("messages", ()):
            if text not in self._shown:
                self._shown.add(text)
                logger.warning("%s", text) if kind == "log" else warnings.warn(text, stacklevel=2)
        if result["status"] == "failed":
            kind = getattr(errors, result.get("type", ""), InferenceError)
            error = kind.__new__(kind)  # constructors differ in their arguments
            error.args = (f"{name}: {result['error']}",)
            raise error
        self._bar.update()
        self._n_done += 1
        if self._problem.monitor is not None:
            self._problem.monitor(lambda: (self._n_done, {"finished_tasks": float(self._n_done)}), last=True)


def compute_part(carried: Carried, seed: int, folder: str, number: int) -> dict[str, Any]:
    """Compute a chain or restart, and write its checkpoint; resume it if it was begun.

    Returns:
        `status` (`done`, `failed` or `interrupted`), `error` (one line) and its `type`, lines of the `log`, and `messages`.
    """
    model, dataset, method = carried.values
    log: list[str] = []
    messages: list[tuple[str, str]] = []
    try:
        with limited_threads(1), contextlib.redirect_stderr(io.StringIO()), _recorded(messages):
            options: dict[str, Any] = {"progress": False, "checkpoint": folder, "log": log.append, "separate": True}
            problem = prepared(model, dataset, method, seed=seed, **options)
            messages.clear()  # the caller has these
            with problem.resources, one_thread():
                method.part(problem, number)
        return {"status": "done", "error": "", "log": log, "messages": messages}
    except KeyboardInterrupt:
        return {"status": "interrupted", "error": "interrupted", "log": log, "messages": messages}
    except LatentLabError as error:
        return {"status": "failed", "error": str(error), "type": type(error).__name__}
    except Exception as error:
        return {"status": "failed", "error": f"{type(error).__name__}: {error}"}


@contextlib.contextmanager
def _recorded(messages: list[tuple[str, str]]) -> Iterator[None]:
    """Record warnings and logged warnings of this package within a `with` block."""

    class Recorder(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            messages.append(("log", record.getMessage()))

    root, handler = logging.getLogger("latentlab"), Recorder(logging.WARNING)
    root.addHandler(handler)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_, **__: messages.append(("warning", " ".join(str(message).split())))
            yield
    finally:
        root.removeHandler(handler)
