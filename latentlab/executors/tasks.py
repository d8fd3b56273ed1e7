"""Named tasks of an executor: submission, retries after the death of a worker, and interrupts.

A task is a function of small arguments that returns a mapping with the entry `status`. It returns errors as such results, with
the status `failed` or `interrupted`; an exception means that its worker died.
"""

import contextlib
import io
import os
import pickle
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, wait
from types import FunctionType
from typing import Any, Protocol

from latentlab.errors import InferenceError, LatentLabError
from latentlab.executors.engines import Engine
from latentlab.registry import PLUGIN, plugins

THREADS = "OMP_NUM_THREADS"
TRIES = 2
"""Number of times that a task is started whose worker dies."""


class Listener(Protocol):
    """Receiver of the progress of tasks."""

    @property
    def interval(self) -> float:
        """Seconds between two calls of `refresh`."""
        ...

    def start(self, name: str) -> None: ...

    def finish(self, name: str, result: Mapping[str, Any]) -> None:
        """Receives a result; an error that it raises ends the work."""
        ...

    def refresh(self) -> None: ...

    def log(self, line: str) -> None: ...


def work(engine: Engine, function: Callable[..., Any], tasks: Mapping[str, Sequence[Any]], listener: Listener) -> None:
    """Run tasks, given by name with their arguments, a limited number at once.

    Raises:
        InferenceError: The executor cancelled a task, as after the loss of its scheduler.
        KeyboardInterrupt: On an interrupt of this process or of a task. Running tasks save their state first, if the engine can
            interrupt them; a second interrupt ends them at once.
    """
    waiting, tries = list(tasks), Counter[str]()
    active: dict[Future, str] = {}
    try:
        while waiting or active:
            while waiting and len(active) < engine.at_once:
                name = waiting.pop(0)
                tries[name] += 1
                listener.start(name)
                active[engine.executor.submit(function, *tasks[name])] = name
            done, _ = wait(active, timeout=listener.interval, return_when=FIRST_COMPLETED)
            listener.refresh()
            for future in done:
                name = active.pop(future)
                result = _result(future, name, tries[name])
                if result is None:
                    listener.log(f"{name}: its worker died; it is started once more")
                    waiting.insert(0, name)
                    continue
                listener.finish(name, result)
                if result["status"] == "interrupted":
                    raise KeyboardInterrupt(name)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt) and engine.interrupt is not None:
            listener.log(f"interrupted: {len(active)} running tasks save their state; a second interrupt ends them at once")
            with contextlib.suppress(KeyboardInterrupt):
                engine.interrupt()
                while wait(active, timeout=1.0).not_done:
                    engine.interrupt()  # a worker that was just starting had no task to interrupt
        for future in active:
            future.cancel()
        engine.executor.shutdown(wait=False)  # Dask's has no `cancel_futures`
        raise


def _result(future: Future, name: str, tries: int) -> dict[str, Any] | None:
    """Result of a task; None if its worker died and it is to be started once more."""
    try:
        return dict(future.result())
    except CancelledError as error:
        raise InferenceError(
            f"{name}: the executor cancelled it, and its scheduler may be lost. Finished results are kept; the same call "
            "continues the work."
        ) from error
    except LatentLabError:
        raise
    except Exception as error:
        if tries < TRIES:
            return None
        text = f"the worker died {tries} times: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
        return {"status": "failed", "error": text, "headline": ""}


class Carried:
    """Values for a task; in a worker, the plugins of their classes and functions are imported before they are unpickled.

    Args:
        values: The values.
    """

    def __init__(self, *values: Any) -> None:
        self.values = values

    def __reduce__(self) -> tuple[Any, ...]:
        found = _Modules(io.BytesIO(), protocol=5, buffer_callback=lambda _: None)  # large arrays are not copied
        with contextlib.suppress(Exception):  # the executor's own error names what cannot be pickled
            found.dump(self.values)
        files = sorted({str(sys.modules[name].__file__) for name in found.names if name.startswith(PLUGIN)})
        return _unpickled, (_Plugins(files), *self.values)


class _Modules(pickle.Pickler):
    """Pickler that collects the names of the modules of classes and functions."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.names: set[str] = set()

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, type | FunctionType):
            self.names.add(value.__module__)
        return NotImplemented


class _Plugins:
    """Plugin files, which are imported when this is unpickled."""

    def __init__(self, files: Sequence[str]) -> None:
        self.files = files

    def __reduce__(self) -> tuple[Any, ...]:
        return _imported, (self.files,)


def _imported(files: Sequence[str]) -> None:
    with plugins(files):
        pass


def _unpickled(_: None, *values: Any) -> Carried:
    return Carried(*values)


@contextlib.contextmanager
def limited_threads(n: int) -> Iterator[None]:
    """Run torch and BLAS with `n` threads within a `with` block."""
    import torch
    from threadpoolctl import threadpool_limits

    before, variable = torch.get_num_threads(), os.environ.get(THREADS)
    torch.set_num_threads(n)
    os.environ[THREADS] = str(n)  # `run.json` has it, and a run is resumed with the same number only
    try:
        with threadpool_limits(n):
            yield
    finally:
        torch.set_num_threads(before)
        if variable is None:
            del os.environ[THREADS]
        else:
            os.environ[THREADS] = variable
