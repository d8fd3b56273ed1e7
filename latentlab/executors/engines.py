"""Executors, chosen by name; each has the interface of `concurrent.futures.Executor`.

| name | engine |
|---|---|
| `serial` | this process |
| `process` | processes on this machine (joblib's loky) |
| `dask:local`, `dask:ADDRESS` | processes on this machine; a Dask cluster, such as `dask:tcp://host:8786` |
| `ray:local`, `ray:ADDRESS` | processes on this machine; a Ray cluster, such as `ray:auto` or `ray:ray://host:10001` |
| `submitit:local`, `submitit` | processes on this machine; jobs of a Slurm cluster |

Only small arguments and results are transmitted. Workers write files, so the machines of a cluster must share the file system.
"""

import contextlib
import importlib.util
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latentlab.errors import ConfigError, MissingDependencyError

NAMES = ("serial", "process", "dask", "ray", "submitit")
EXAMPLES = "serial, process, dask:local, dask:ADDRESS, ray:local, ray:ADDRESS, submitit, submitit:local"
SECONDS_TO_CONNECT = 20
AT_ONCE = 1000
"""Number of tasks that a cluster is given at once."""
POLL = 0.2
"""Seconds between two checks of a submitit job, or of the parent of a worker."""


@dataclass(frozen=True)
class Engine:
    """An open executor.

    Attributes:
        executor: The executor.
        at_once: Number of tasks that are submitted before the first has ended; on this machine, the number of workers.
        text: Description for the log.
        interrupt: Function that raises KeyboardInterrupt in the running tasks, so that they save their state; None if the
            engine cannot.
    """

    executor: Executor
    at_once: int
    text: str
    interrupt: Callable[[], None] | None = None


def parsed(name: str, n_workers: int | None = None) -> tuple[str, str]:
    """Split an executor's name into engine and address, and check both and the number of workers.

    Raises:
        ConfigError: The name is unknown, an address is missing, or `n_workers` is not at least 1.
        MissingDependencyError: The engine is not installed.
    """
    engine, colon, address = name.partition(":")
    of_cluster = engine in ("dask", "ray")
    if engine not in NAMES or bool(address) < of_cluster or (colon and not of_cluster and name != "submitit:local"):
        raise ConfigError(f"executor: must be one of {EXAMPLES}; got {name!r}.")
    if n_workers is not None and n_workers < 1:
        raise ConfigError(f"n_workers: must be at least 1; got {n_workers}.")
    package = {"dask": ("distributed", "dask"), "ray": ("ray", "ray"), "submitit": ("submitit", "slurm")}.get(engine)
    if package is not None and importlib.util.find_spec(package[0]) is None:
        raise MissingDependencyError(f"executor {name!r}", *package)
    if name == "submitit" and shutil.which("sbatch") is None:
        raise ConfigError("executor: submitit requires Slurm, but the command sbatch was not found; use submitit:local instead.")
    return engine, address


@contextlib.contextmanager
def opened(
    name: str, folder: Path, *, n_workers: int | None = None, n_threads: int = 1, most: int | None = None
) -> Iterator[Engine]:
    """Open an executor inside a `with` block; the processes that it started end with the block.

    Args:
        name: Name of the executor, as in the table above.
        folder: Folder for files of the engine.
        n_workers: Number of workers on this machine; the number of CPUs divided by `n_threads` if None.
        n_threads: Threads of each worker.
        most: Largest useful number of workers, that of the tasks.

    Raises:
        ConfigError: The name is invalid, or no scheduler answers at the address.
        MissingDependencyError: The engine is not installed.
    """
    engine, address = parsed(name, n_workers)
    n_cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = n_workers or max(1, n_cpus // n_threads)
    workers = workers if most is None else min(workers, most)
    own_workers = f"{name}, {workers} worker{'s' * (workers > 1)} with {n_threads} thread{'s' * (n_threads > 1)} each"
    if engine == "serial":
        yield Engine(Serial(), 1, f"serial, {n_threads} thread{'s' * (n_threads > 1)}")
    elif engine == "process":
        with Processes(workers, n_threads) as executor:
            yield Engine(executor, workers, own_workers, executor.interrupt)
    elif engine == "submitit":
        with Jobs(folder, address, workers, n_threads) as executor:
            at_once = workers if address else AT_ONCE
            yield Engine(executor, at_once, own_workers if address else name)
    else:
        open_cluster = _dask if engine == "dask" else _ray
        with open_cluster(address, workers, n_threads) as executor:
            local = address == "local"
            yield Engine(executor, workers if local else AT_ONCE, own_workers if local else name)


class Serial(Executor):
    """Executor that runs each task in this process, when it is submitted."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future:
        future: Future = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


class Processes(Executor):
    """Worker processes, each in a separate loky executor, so that the death of one does not affect the others.

    A task whose worker dies raises `joblib.externals.loky.process_executor.TerminatedWorkerError`; the next task of that slot has
    a new worker. Workers end with their parent. They ignore the SIGINT that a terminal sends to all processes: the parent decides
    whether they are interrupted.
    """

    def __init__(self, n_workers: int, n_threads: int) -> None:
        self._threads = ThreadPoolExecutor(n_workers)
        self._environment = {name: str(n_threads) for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
        self._slot = threading.local()
        self._open: set[Any] = set()
        self._interrupted = False

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future:
        return self._threads.submit(self._run, fn, args, kwargs)

    def _run(self, fn: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        from joblib.externals.loky.process_executor import BrokenProcessPool, ProcessPoolExecutor

        if self._interrupted:
            raise KeyboardInterrupt
        if getattr(self._slot, "pool", None) is None:
            self._slot.pool = ProcessPoolExecutor(
                1, initializer=_begin_worker, initargs=(os.getpid(),), env=self._environment, timeout=None
            )
            self._open.add(self._slot.pool)
        pool = self._slot.pool
        try:
            future = pool.submit(_interruptible, fn, *args, **kwargs)
            if self._interrupted:  # while the worker was started
                _send_sigterm(pool)
            return future.result()
        except BrokenProcessPool:
            self._slot.pool = None
            self._open.discard(pool)
            pool.shutdown(wait=False, kill_workers=True)
            raise

    def interrupt(self) -> None:
        """Raise KeyboardInterrupt in the running tasks, and in those that begin later."""
        self._interrupted = True
        for pool in list(self._open):
            _send_sigterm(pool)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: FBT001, FBT002
        for pool in list(self._open):
            pool.shutdown(wait=False, kill_workers=True)
        self._threads.shutdown(wait=wait, cancel_futures=cancel_futures)


def _send_sigterm(pool: Any) -> None:
    """Send SIGTERM to the worker of an executor, which interrupts its task."""
    for pid in list(pool._processes or ()):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)


def _begin_worker(parent: int) -> None:
    """Prepare a worker process: it ends with its parent, and SIGTERM interrupts its task."""
    from latentlab.progress import tqdm

    end_with_parent(parent)
    tqdm.set_lock(threading.RLock())  # the default is a semaphore, of which a worker that is ended would leave a warning
    signal.signal(signal.SIGINT, lambda *_: None)  # not SIG_IGN, which a run would replace by its own handler
    signal.signal(signal.SIGTERM, _Interrupt.signal)


class _Interrupt:
    """Whether a worker process was interrupted, and whether its task can still be."""

    received = False
    allowed = False

    @classmethod
    def signal(cls, *_: object) -> None:
        cls.received = True
        if cls.allowed:
            cls.allowed = False  # a second KeyboardInterrupt could end the saving of the state
            raise KeyboardInterrupt


def _interruptible(fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    """Run a task of a worker process; SIGTERM raises KeyboardInterrupt in it, once."""
    _Interrupt.allowed = True
    try:
        if _Interrupt.received:
            raise KeyboardInterrupt
        return fn(*args, **kwargs)
    finally:
        _Interrupt.allowed = False


def end_with_parent(parent: int) -> None:
    """End this process soon after its parent has died, so that no orphan holds the lock of a run."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(POLL)
        os._exit(1)

    if os.getppid() == parent:
        threading.Thread(target=watch, daemon=True).start()


class Jobs(Executor):
    """Jobs of submitit: on Slurm, or as processes of this machine if `cluster` is `local`."""

    def __init__(self, folder: Path, cluster: str, n_workers: int, n_threads: int) -> None:
        import submitit

        self._executor = submitit.AutoExecutor(folder / "%j", cluster=cluster or None)
        options = {"timeout_min": 60 * 24 * 7} if cluster else {}
        self._executor.update_parameters(name="latentlab", cpus_per_task=n_threads, **options)
        self._threads = ThreadPoolExecutor(n_workers if cluster else AT_ONCE)
        self._jobs: list[Any] = []

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future:
        return self._threads.submit(self._run, fn, args, kwargs)

    def _run(self, fn: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        job = self._executor.submit(fn, *args, **kwargs)
        self._jobs.append(job)
        while not job.done():
            time.sleep(POLL)
        return job.result()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: FBT001, FBT002
        for job in self._jobs:
            if not job.done():
                job.cancel(check=False)
        self._threads.shutdown(wait=wait, cancel_futures=cancel_futures)


@contextlib.contextmanager
def _dask(address: str, n_workers: int, n_threads: int) -> Iterator[Executor]:
    import dask
    from distributed import Client, LocalCluster

    settings = {"distributed.scheduler.allowed-failures": 1, "distributed.comm.timeouts.connect": f"{SECONDS_TO_CONNECT}s"}
    with dask.config.set(settings), contextlib.ExitStack() as stack:
        if address == "local":
            options: dict[str, Any] = {"threads_per_worker": 1, "dashboard_address": ":0", "silence_logs": 50, "memory_limit": 0}
            environment = {"OMP_NUM_THREADS": str(n_threads)}
            target: Any = stack.enter_context(LocalCluster(n_workers=n_workers, processes=True, env=environment, **options))
        else:
            target = address
        try:
            client = stack.enter_context(Client(target, timeout=SECONDS_TO_CONNECT, set_as_default=False))
        except (OSError, ValueError, TimeoutError) as error:
            raise ConfigError(f"executor dask:{address}: no scheduler answers at {address} ({error}).") from error
        yield client.get_executor(pure=False)


class _Ray(Executor):
    """Executor of Ray tasks; a task whose worker dies is run once more."""

    def __init__(self, n_threads: int) -> None:
        import ray

        self._remote = ray.remote(num_cpus=n_threads, max_retries=1)

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future:
        future: Future = self._remote(fn).remote(*args, **kwargs).future()
        return future


@contextlib.contextmanager
def _ray(address: str, n_workers: int, n_threads: int) -> Iterator[Executor]:
    import ray

    if ray.is_initialized():  # the user's session is not shut down afterwards
        yield _Ray(n_threads)
        return
    options: dict[str, Any] = {"include_dashboard": False, "num_cpus": n_workers * n_threads} if address == "local" else {}
    handler = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address=address, log_to_driver=False, configure_logging=False, **options)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"executor ray:{address}: no cluster answers at {address} ({' '.join(str(error).split())[:200]})."
        ) from error
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)  # Ray has set one that ends the process
    try:
        yield _Ray(n_threads)
    finally:
        ray.shutdown()
