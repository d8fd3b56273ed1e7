"""Tree of seeds for all random numbers, and contexts that restore random and Pyro states.

Every consumer uses a separate named branch of the tree. A new consumer therefore does not change the draws of others, and the
draws of a chain do not depend on the number of workers.
"""

import contextlib
import random
import zlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from latentlab.errors import ConfigError

if TYPE_CHECKING:
    import torch


class Seeds:
    """Node of the seed tree; `child` returns a named branch.

    Example:
        >>> a, b = Seeds(0).child("chain", 0), Seeds(0).child("chain", 1)
        >>> a.integer() == Seeds(0).child("chain", 0).integer(), a.integer() == b.integer()
        (True, False)
    """

    def __init__(self, seed: int, _path: tuple[int, ...] = ()) -> None:
        if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or not 0 <= seed < 2**64:
            raise ConfigError(f"`seed` must be a whole number from 0 to 2**64 - 1; got {seed!r}.")
        self.seed = int(seed)
        self._path = _path

    def child(self, *names: str | int) -> "Seeds":
        """Return the branch called `names`; equal names give equal branches."""
        keys = tuple(zlib.crc32(f"{type(name).__name__}:{name}".encode()) for name in names)
        return Seeds(self.seed, self._path + keys)

    def _sequence(self) -> np.random.SeedSequence:
        return np.random.SeedSequence(self.seed, spawn_key=self._path)

    def numpy(self) -> np.random.Generator:
        """Return a new NumPy generator of this branch."""
        return np.random.default_rng(self._sequence())

    def torch(self) -> "torch.Generator":
        """Return a new torch generator of this branch."""
        import torch

        return torch.Generator().manual_seed(int(self._sequence().generate_state(1, np.uint64)[0] >> 1))

    def integer(self) -> int:
        """Return a 32-bit seed of this branch, for libraries with integer seeds."""
        return int(self._sequence().generate_state(1, np.uint32)[0])


def double() -> contextlib.AbstractContextManager[None]:
    """Set torch's default dtype to float64 within a `with` block, also for the constants of a model."""
    return _default_dtype("float64")


def single() -> contextlib.AbstractContextManager[None]:
    """Set torch's default dtype to float32 within a `with` block."""
    return _default_dtype("float32")


@contextlib.contextmanager
def _default_dtype(name: str) -> Iterator[None]:
    import torch

    before = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, name))
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Run torch and the BLAS of NumPy with one thread within a `with` block, or as a decorator.

    The operations of these models are small, so that further threads give no speed-up. On a busy machine several threads are 5 to
    50 times slower, and rounding errors would depend on their number.
    """
    import torch
    from threadpoolctl import threadpool_limits

    before = torch.get_num_threads()
    _before.append(before)
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1, user_api="blas"):
            yield
    finally:
        torch.set_num_threads(before)
        _before.pop()


_before: list[int] = []
"""Numbers of torch threads before each open block of `one_thread`, the outermost first."""


def n_threads() -> int:
    """Number of threads for large operations: torch's setting, as it was before any open block of `one_thread`."""
    import torch

    return _before[0] if _before else torch.get_num_threads()


def forked(device: str = "cpu") -> contextlib.AbstractContextManager[None]:
    """Restore torch's random states of the CPU and of this device after a `with` block."""
    import torch

    return torch.random.fork_rng(devices=[] if device == "cpu" else [device])


def reseed(seed: int, device: str = "cpu") -> None:
    """Seed torch on the CPU and on one more device; `torch.manual_seed` would seed all devices."""
    import torch

    torch.default_generator.manual_seed(seed)
    if device != "cpu":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)


@contextlib.contextmanager
def isolated(seeds: Seeds, device: str = "cpu") -> Iterator[None]:
    """Seed torch (CPU and this device), NumPy and `random` within a `with` block, in float64 and with an empty Pyro store.

    After the block the random states, the parameter store, torch's default dtype and validation are restored.
    """
    import pyro
    import torch

    numpy_state, random_state = np.random.get_state(), random.getstate()
    validate = torch.distributions.Distribution._validate_args
    with forked(device), pyro.get_param_store().scope(), double():
        reseed(seeds.child("torch").integer(), device)
        np.random.seed(seeds.child("numpy").integer())
        random.seed(seeds.child("random").integer())
        try:
            yield
        finally:
            np.random.set_state(numpy_state)
            random.setstate(random_state)
            torch.distributions.Distribution.set_default_validate_args(validate)


def for_model(seed: int) -> contextlib.AbstractContextManager[None]:
    """Seed the initial weights of a model that is made within a `with` block from a config with this seed."""
    return isolated(Seeds(seed).child("model"))
