"""Graphs compiled to machine code, kept in a folder for the next process."""

import contextlib
import hashlib
import logging
import os
import platform
import tempfile
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from latentlab.seeds import double, forked

CACHE = "LATENTLAB_CACHE"
"""Environment variable with the folder for machine code."""


def folder() -> Path:
    """Where machine code is kept: `LATENTLAB_CACHE`, or `latentlab` in the user's folder for caches; made if it is not there.

    Where there is no such folder, one among the temporary files, which anyone can have made: it must be the user's alone.

    Raises:
        PermissionError: It is not.
    """
    given = os.environ.get(CACHE)
    try:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        path = Path(given) if given else home / "latentlab"
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # no home, or one that cannot be written to
        path = Path(tempfile.gettempdir()) / f"latentlab-{os.getuid() if hasattr(os, 'getuid') else 'cache'}"
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = path.lstat()
        if hasattr(os, "getuid") and (found.st_uid != os.getuid() or found.st_mode & 0o022 or path.is_symlink()):
            raise PermissionError(f"{path} can be written to by others; set {CACHE} to a folder of your own") from None
    return path


def graph_key(module: Any, arguments: tuple[torch.Tensor, ...]) -> str:
    """Of what the code depends on: the operations, the arguments' shapes, torch, the threads, and the processor."""
    single = [(name, value.dtype, value.item()) for name, value in module.named_buffers() if not value.dim()]
    attributes = [(n.target, getattr(module, n.target)) for n in module.graph.nodes if n.op == "get_attr"]
    single += [(name, value.dtype, value.item()) for name, value in attributes]
    shapes = [(a.shape, a.stride(), a.dtype) for a in arguments]
    where = (torch.__version__, torch.get_num_threads(), torch.backends.cpu.get_cpu_capability(), _processor())
    return hashlib.sha256(repr((module.code, single, shapes, where)).encode()).hexdigest()


def _processor() -> str:
    """The processor's name, and the instructions that it knows where they are told: the code is made for it."""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")[0].splitlines()
        told = [line for line in lines if line.startswith(("model name", "flags", "CPU", "Features"))]
        return "\n".join([platform.machine(), *told])
    return f"{platform.machine()} {platform.processor()}"


def compile_graph(module: Any, arguments: tuple[torch.Tensor, ...], path: Path) -> None:
    """Compiles the graph into a package; it is there whole or not at all."""
    import torch._inductor

    with tempfile.TemporaryDirectory(dir=path.parent) as work, _quiet("torch._inductor"):
        made = Path(work) / "made.pt2"
        with torch.no_grad(), double(), forked():
            program = torch.export.export(module, tuple(arguments))
            torch._inductor.aoti_compile_and_package(program, package_path=str(made))
        os.replace(made, path)


@contextlib.contextmanager
def _quiet(name: str) -> Iterator[None]:
    """A logger says errors only inside the block, and nothing warns."""
    own = logging.getLogger(name)
    before = own.level
    own.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        own.setLevel(before)


def load_code(path: Path) -> Any:
    """The code in a package; None, and no package, where it is damaged."""
    import torch._inductor

    try:
        with zipfile.ZipFile(path) as package:
            if package.testzip():  # torch does not look, and would run what is there
                raise ValueError("a part is not what was written")
        return torch._inductor.aoti_load_package(str(path))
    except Exception:  # whatever a truncated file leads to
        path.unlink(missing_ok=True)
        return None
