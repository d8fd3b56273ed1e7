"""Compilation of recorded graphs to machine code by Inductor, with a cache folder for later processes."""

import contextlib
import hashlib
import inspect
import logging
import os
import platform
import tempfile
import time
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from latentlab.distributions.kernels import FORMULAS
from latentlab.inference.graph import RecordedGraph, constants_as_arguments
from latentlab.inference.recorder import Function, graph_operations
from latentlab.seeds import double, forked

logger = logging.getLogger(__name__)

CACHE = "LATENTLAB_CACHE"
"""Environment variable with the folder for machine code."""
COMPILER = r"torch\.(_inductor|_dynamo|_functorch|_decomp|_refs|fx)\."
KNOWN = (
    (DeprecationWarning, "`torch.jit.script_method` is deprecated", ""),
    (FutureWarning, r"`isinstance\(treespec, LeafSpec\)` is deprecated", ""),
    (DeprecationWarning, "", COMPILER),
    (FutureWarning, "", COMPILER),
)
"""Category, message and module of the warnings that torch's compiler raises about its own code. Others are shown, since they may
concern the calls made here."""


def machine_code(recorded: RecordedGraph, example: tuple[torch.Tensor, ...]) -> Function:
    """Return the graph as machine code, compiled now or read from the cache; the time taken is logged.

    Constant tensors are passed as arguments, so that the code also serves other data of the same shapes.

    Raises:
        ValueError: The graph draws random numbers that are not standard normal, or has a constant that is not a dense
            tensor, or the code cannot be loaded.
    """
    begin = time.perf_counter()
    if any(torch.Tag.nondeterministic_seeded in node.target.tags for node in graph_operations(recorded.graph)):
        raise ValueError("it draws random numbers that are not standard normal")
    if any(getattr(recorded.root, n.target).layout is not torch.strided for n in recorded.graph.nodes if n.op == "get_attr"):
        raise ValueError("it has a constant that is not a dense tensor, such as a sparse matrix")
    graph, constants = constants_as_arguments(recorded.root, recorded.graph, numbers=True)
    module = torch.fx.GraphModule(recorded.root, graph)
    with forked(recorded.device):
        arguments = tuple(argument.contiguous() for argument in (*example, *recorded.noise_tensors(), *constants))
    path = folder() / f"{graph_key(module, arguments)}.pt2"
    loaded = load_code(path) if path.is_file() else None
    is_cached = loaded is not None
    if loaded is None:
        compile_graph(module, arguments, path)
        loaded = load_code(path)
    if loaded is None:
        raise ValueError(f"the compiled code cannot be loaded ({path})")
    spent = time.perf_counter() - begin
    logger.info("machine code of %d operations %s in %.1f s", recorded.n_operations, "read" if is_cached else "compiled", spent)
    run_all = loaded.run
    expected = [(argument.shape, argument.dtype) for argument in example]
    is_enabled, enable = torch.is_grad_enabled, torch._C._set_grad_enabled

    def run(*arguments: torch.Tensor) -> Any:
        for argument, (shape, dtype) in zip(arguments, expected, strict=True):
            if argument.shape != shape or argument.dtype != dtype:  # compiled code does not check it
                found = [(a.shape, a.dtype) for a in arguments]
                raise ValueError(f"the arguments of the machine code must be {expected}; got {found}")
        before = is_enabled()
        enable(False)  # `torch.no_grad` does the same in ten times the time
        try:
            return tuple(run_all([*(a.contiguous() for a in arguments), *recorded.noise_tensors(), *constants]))
        finally:
            enable(before)

    return run


def folder() -> Path:
    """Return the cache folder for machine code, and create it if needed.

    It is `LATENTLAB_CACHE`, or else `latentlab` in the user's cache folder. If it cannot be created, it is a folder among the
    temporary files. Anyone can create that one, so it must belong to the user and be writable by nobody else.

    Raises:
        PermissionError: The folder among the temporary files belongs to another user, or others can write to it.
    """
    folder_name = os.environ.get(CACHE)
    try:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        path = Path(folder_name) if folder_name else home / "latentlab"
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # no home directory, or no permission to create the folder
        path = Path(tempfile.gettempdir()) / f"latentlab-{os.getuid() if hasattr(os, 'getuid') else 'cache'}"
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = path.lstat()
        if hasattr(os, "getuid") and (status.st_uid != os.getuid() or status.st_mode & 0o022 or path.is_symlink()):
            raise PermissionError(
                f"other users can write to {path}; set {CACHE} to a folder that only you can write to"
            ) from None
    return path


def graph_key(module: Any, arguments: tuple[torch.Tensor, ...]) -> str:
    """Return a hash of what the code depends on: operations, formulas, shapes, torch version, threads and processor."""
    single = [(name, value.dtype, value.item()) for name, value in module.named_buffers() if not value.dim()]
    attributes = [(n.target, getattr(module, n.target)) for n in module.graph.nodes if n.op == "get_attr"]
    single += [(name, value.dtype, value.item()) for name, value in attributes]
    shapes = [(a.shape, a.stride(), a.dtype) for a in arguments]
    used = {FORMULAS[node.target] for node in module.graph.nodes if node.target in FORMULAS}
    formulas = sorted(Path(inspect.getfile(formula)).read_text(encoding="utf-8") for formula in used)
    where = (torch.__version__, torch.get_num_threads(), torch.backends.cpu.get_cpu_capability(), _processor())
    return hashlib.sha256(repr((module.code, formulas, single, shapes, where)).encode()).hexdigest()


def _processor() -> str:
    """Return the processor's name and, if available, its instruction sets, for which the code is compiled."""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")[0].splitlines()
        relevant = [line for line in lines if line.startswith(("model name", "flags", "CPU", "Features"))]
        return "\n".join([platform.machine(), *relevant])
    return f"{platform.machine()} {platform.processor()}"


def compile_graph(module: Any, arguments: tuple[torch.Tensor, ...], path: Path) -> None:
    """Compile the graph into a package at `path`, which is written atomically."""
    import torch._inductor

    with tempfile.TemporaryDirectory(dir=path.parent) as work, _quiet("torch._inductor"):
        package = Path(work) / "made.pt2"
        with torch.no_grad(), double(), forked():
            program = torch.export.export(module, tuple(arguments))
            if any(node.target in FORMULAS for node in module.graph.nodes):
                program = program.run_decompositions({**torch.export.default_decompositions(), **FORMULAS})
            torch._inductor.aoti_compile_and_package(program, package_path=str(package))
        os.replace(package, path)


@contextlib.contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Limit a logger to errors, and ignore `KNOWN` warnings, within a `with` block."""
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            for category, message, module in KNOWN:
                warnings.filterwarnings("ignore", message, category, module)
            yield
    finally:
        logger.setLevel(before)


def load_code(path: Path) -> Any:
    """Load the code in a package; a damaged package is deleted, and the result is None.

    The loader is that of `torch._inductor.aoti_load_package`, without the two seconds in which that imports the compiler.
    """
    try:
        with zipfile.ZipFile(path) as package:
            if package.testzip():  # torch does not verify checksums, and would run damaged code
                raise ValueError("the checksum of a part is wrong")
        return torch._C._aoti.AOTIModelPackageLoader(str(path), "model", False, 1, -1)  # one runner; the code's own device
    except Exception:  # a truncated file can raise any exception
        path.unlink(missing_ok=True)
        return None
