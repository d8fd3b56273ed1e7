"""Processes that fit one model together, each with a share of every minibatch, as started by `torchrun`.

All processes have the same parameters and random states. In each step they exchange the mean of their gradients, and nothing
else. The first process writes files and messages; the others wait for it without a time limit, since they end with it.
"""

import contextlib
import hashlib
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from latentlab.errors import ConfigError, InferenceError, LatentLabError, LostProcessError

if TYPE_CHECKING:
    import torch

VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""Environment variables with the number of a process, the number of processes, and the address at which they meet."""
TIMEOUT = 300.0
"""Seconds after which a process without an answer counts as lost."""
GRACE = 10.0
"""Seconds in which a failed process waits for the first one, so that the error is reported there."""
POLL = 0.02
"""Seconds between two looks at the messages of other processes."""


def are_several() -> bool:
    """Whether the environment has more than one process, as under `torchrun`."""
    return all(name in os.environ for name in VARIABLES) and int(os.environ["WORLD_SIZE"]) > 1


def refuse_several(*, unless: bool) -> None:
    """Raise an error if there are several processes, in the first one; the others end.

    Raises:
        ConfigError: The command is for one process.
    """
    if are_several() and not unless:
        if os.environ["RANK"] != "0":
            raise SystemExit(2)
        raise ConfigError(
            f"only `latentlab run` can have several processes; got {os.environ['WORLD_SIZE']}. Start it without torchrun."
        )


class Processes:
    """The processes of a fit, of which this one has the number `rank`; by default it is the only one.

    Args:
        rank: Number of this process, from 0.
        size: Number of processes.
        store: Key-value store in which they leave messages.
    """

    def __init__(self, rank: int = 0, size: int = 1, store: Any = None) -> None:
        self.rank, self.size, self.is_broken = rank, size, False
        self._store, self._n_broadcasts, self._has_group = store, 0, False

    def share(self, n: int) -> slice:
        """Return the part of `n` units that belongs to this process.

        Example:
            >>> [Processes(rank, 3).share(8) for rank in range(3)]
            [slice(0, 2, None), slice(2, 5, None), slice(5, 8, None)]
        """
        return slice(n * self.rank // self.size, n * (self.rank + 1) // self.size)

    def weight(self, n: int) -> float:
        """Return the size of this process's share of `n` units, as a fraction."""
        share = self.share(n)
        return (share.stop - share.start) / n

    def mean(self, n: int, *tensors: "torch.Tensor") -> tuple["torch.Tensor", ...]:
        """Compute the means over processes, weighted by their shares of `n` units; all processes get the same bits."""
        if self.size == 1:
            return tensors
        import torch

        flat = torch.cat([tensor.reshape(-1) for tensor in tensors]).mul_(self.weight(n))
        with self._answered():
            torch.distributed.all_reduce(flat)
            if flat.is_cuda:
                torch.cuda.synchronize(flat.device)  # otherwise a lost process is noticed outside of this block
        parts = flat.split([tensor.numel() for tensor in tensors])
        return tuple(part.reshape(tensor.shape) for part, tensor in zip(parts, tensors, strict=True))

    def check_equal(self, parameters: "torch.Tensor") -> None:
        """Raise an error if processes have different parameters or random states, by their SHA-256 digests.

        Raises:
            InferenceError: Names the first process that differs.
        """
        if self.size == 1:
            return
        import torch

        digest = hashlib.sha256(parameters.cpu().numpy().tobytes()).digest()
        own = torch.frombuffer(bytearray(digest), dtype=torch.uint8)
        found = [torch.empty_like(own) for _ in range(self.size)]
        with self._answered():
            torch.distributed.all_gather(found, own)
        other = next((rank for rank in range(self.size) if not torch.equal(found[rank], found[0])), None)
        if other is not None:
            raise InferenceError(
                f"the parameters or random states of process {other} differ from those of process 0; use machines with equal "
                "processors."
            )

    def from_first(self, content: bytes | None) -> bytes | None:
        """Return the content that the first process has; the others wait for it."""
        if self.size == 1:
            return content
        import torch

        self._n_broadcasts += 1
        key = f"broadcast/{self._n_broadcasts}"
        if self.rank == 0:
            self._store.set(key, str(-1 if content is None else len(content)))
        n_bytes = int(self._wait(key))
        if n_bytes <= 0:
            return None if n_bytes < 0 else b""
        data = torch.frombuffer(bytearray(content or n_bytes), dtype=torch.uint8)
        with self._answered():
            torch.distributed.broadcast(data, 0)
        return data.numpy().tobytes()

    def meet(self, facts: Mapping[str, str]) -> None:
        """Wait until all processes are ready for the fit, and connect them.

        Raises:
            ConfigError: The facts of a process differ from those of the first one; names the fact.
            LostProcessError: Another process failed; has its message.
        """
        if self.size == 1:
            return
        import torch

        if self.rank:
            self._store.set(f"ready/{self.rank}", json.dumps(dict(facts)))
        for rank in range(1, self.size) if self.rank == 0 else ():
            other = json.loads(self._wait(f"ready/{rank}", TIMEOUT))
            for name, value in facts.items():
                if other.get(name) != value:
                    raise ConfigError(
                        f"`{name}` must be the same in all processes; got {value} and, in process {rank}, {other.get(name)}."
                    )
        if self.rank == 0:
            self._store.set("go", "")
        self._wait("go")
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        with self._answered():
            torch.distributed.init_process_group(
                backend,
                store=torch.distributed.PrefixStore("group", self._store),
                rank=self.rank,
                world_size=self.size,
                timeout=timedelta(seconds=TIMEOUT),
            )
        self._has_group = True

    def finish(self) -> None:
        """Disconnect the processes."""
        if self._has_group:
            import torch

            self._has_group = False
            torch.distributed.destroy_process_group()

    def leave(self, error: BaseException | None) -> None:
        """End the part of this process; its error is reported by the first one."""
        with contextlib.suppress(RuntimeError):  # the store ends with the first process or with torchrun
            if self.rank == 0:
                self._store.set("ended", "")
            elif error is not None:
                expected = isinstance(error, LatentLabError | KeyboardInterrupt)
                self._store.set(f"error/{self.rank}", str(error) if expected else f"{type(error).__name__}: {error}")
        with contextlib.suppress(RuntimeError):
            self.finish()
        with contextlib.suppress(RuntimeError):
            until = time.monotonic() + GRACE * (error is not None and self.rank > 0)
            while time.monotonic() < until and not self._store.check(["ended"]):
                time.sleep(POLL)

    def __str__(self) -> str:
        n_cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        n_here = int(os.environ.get("LOCAL_WORLD_SIZE", self.size))
        slow = "; with more processes than CPUs a step is slower" if n_here > n_cpus else ""
        return f"{self.size} processes, {n_here} of them on this machine with {n_cpus} CPUs, one thread each{slow}"

    def _wait(self, key: str, timeout: float | None = None) -> bytes:
        """Wait for a message; end this process if the first one has ended.

        Raises:
            LostProcessError: Another process failed or did not answer.
        """
        begin = time.monotonic()
        while not self._store.check([key]):
            if self.rank and self._store.check(["ended"]):
                raise SystemExit(0)
            if self.rank == 0:
                self.check_others()
            if timeout is not None and time.monotonic() - begin > timeout:
                raise LostProcessError(f"process {key.partition('/')[2]} did not answer for {timeout:g} s; start the run again.")
            time.sleep(POLL)
        found: bytes = self._store.get(key)
        return found

    def check_others(self) -> None:
        """Raise the error that another process has left.

        Raises:
            LostProcessError: Has the message.
            KeyboardInterrupt: The other process was interrupted.
        """
        for rank in range(1, self.size):
            if self._store.check([f"error/{rank}"]):
                self.is_broken = True
                text = self._store.get(f"error/{rank}").decode()
                if text == signal.SIGTERM.name:
                    raise KeyboardInterrupt(text)
                raise LostProcessError(f"process {rank} of {self.size} failed: {text}")

    @contextlib.contextmanager
    def _answered(self) -> Iterator[None]:
        """Convert errors of the connection to a `LostProcessError`."""
        import torch

        try:
            yield
        except RuntimeError as error:
            self.is_broken = True
            until = time.monotonic() + 1.0
            while self.rank == 0 and time.monotonic() < until:
                with contextlib.suppress(torch.distributed.DistError):
                    self.check_others()
                time.sleep(POLL)
            raise LostProcessError(
                f"another process of the fit ended, or did not answer for {TIMEOUT:g} s; --resume continues from the last step."
            ) from error


ALONE = Processes()
_current: ContextVar[Processes] = ContextVar("processes", default=ALONE)


current: Callable[[], Processes] = _current.get
"""Return the processes of the present block of `together`; outside of one, this process alone."""


@contextlib.contextmanager
def together() -> Iterator[Processes]:
    """Join the processes that the environment names, for a `with` block; without such processes, do nothing.

    An error in a process other than the first one ends it silently, and is raised in the first one.

    Raises:
        ConfigError: The processes have had such a block before.
    """
    if not are_several() or current() is not ALONE:
        yield current()
        return
    import torch

    store, rank, size = next(torch.distributed.rendezvous("env://", timeout=timedelta(seconds=TIMEOUT)))
    restarts = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    store = torch.distributed.PrefixStore(f"latentlab/{restarts}", store)
    if rank == 0 and store.check(["ended"]):
        raise ConfigError("processes started by torchrun must have one run; got a second one. Start torchrun for each run.")
    processes = Processes(rank, size, store)
    error: BaseException | None = None
    token = _current.set(processes)
    try:
        with _placed(), _stopped_by_sigterm(processes), _silent() if rank else contextlib.nullcontext():
            try:
                yield processes
            except BaseException as caught:
                error = None if isinstance(caught, SystemExit) else caught
                raise
            finally:
                processes.leave(error)
    except BaseException as caught:
        if rank and not isinstance(caught, SystemExit):
            raise SystemExit(getattr(caught, "exit_code", 1)) from None
        raise
    finally:
        _current.reset(token)


@contextlib.contextmanager
def _placed() -> Iterator[None]:
    """Make the GPU with the local number of this process the current one, if there is such a GPU."""
    import torch

    local = int(os.environ.get("LOCAL_RANK", 0))
    if not torch.cuda.is_available() or local >= torch.cuda.device_count():
        yield
        return
    with torch.cuda.device(local):
        yield


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        yield


@contextlib.contextmanager
def _stopped_by_sigterm(processes: Processes) -> Iterator[None]:
    """Convert SIGTERM, by which torchrun ends all processes, to KeyboardInterrupt; ignore it once another process is lost.

    The first process then has the time to save its results.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    from torch.distributed import DistError

    def stop(number: int, _: Any) -> None:
        if processes.is_broken:
            return
        if processes.rank == 0:
            with contextlib.suppress(DistError):  # the store may have ended
                processes.check_others()
        raise KeyboardInterrupt(signal.Signals(number).name)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
