"""Dependencies and environment of a run, determined without importing the dependencies."""

import os
import platform
import re
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
DEVELOPMENT = ("test",)
"""Extras that are not required for a run."""

_REQUIREMENT = re.compile(r"(?P<name>[\w.-]+)(\[.*?\])?\s*(?P<bounds>[^;]*?)\s*(;\s*(?P<marker>.*))?")
_EXTRA = re.compile(r"extra == ['\"]([\w-]+)['\"]")
_PYTHON = re.compile(r"python_version (<|>=) ['\"](\d+)\.(\d+)['\"]")


def findings() -> tuple[list[tuple[str, str, str]], bool]:
    """Return rows (subject, value, remark), and whether all requirements are fulfilled."""
    rows = [
        ("python", platform.python_version(), platform.platform()),
        ("cores", str(_cores()), f"available of {os.cpu_count()}"),
        *((name, os.environ.get(name, "not set"), "threads of numerical libraries") for name in THREADS),
        ("device", *_device()),
        (
            "LATENTLAB_CACHE",
            os.environ.get("LATENTLAB_CACHE", "not set"),
            "folder of compiled code; default: latentlab in the user's cache folder",
        ),
        ("latentlab", *_own_version()),
    ]
    sound = True
    for name, bounds, extra in _requirements():
        found = _version(name)
        fits = found is not None and _within(found, bounds)
        if extra is None:
            sound = sound and fits
            remark = f"requires {bounds}{'' if fits else ': NOT SATISFIED'}"
        else:
            remark = f"optional, {bounds}" if fits else f"optional, {bounds}: pip install 'latentlab[{extra}]'"
        rows.append((name, found or "not installed", remark))
    return rows, sound


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _device() -> tuple[str, str]:
    torch = _version("torch")
    if torch is not None and torch.endswith("+cpu"):
        return "cpu", "this build of torch has no GPU support"
    if Path("/proc/driver/nvidia/version").exists():
        return "cpu", "NVIDIA driver found; inference.device=cuda runs the steps of svi on the GPU"
    return "cpu", "no NVIDIA driver found"


def _own_version() -> tuple[str, str]:
    found = _version("latentlab")
    return (found, "") if found else ("not installed", "run from source; requirements unknown")


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _requirements() -> list[tuple[str, str, str | None]]:
    """Return the installed package's requirements (name, bounds, extra) for this version of Python, without development tools."""
    try:
        lines = requires("latentlab") or []
    except PackageNotFoundError:
        return []
    found = []
    for line in lines:
        match = _REQUIREMENT.fullmatch(line)
        marker = (match["marker"] or "") if match else ""
        extra = _EXTRA.search(marker)
        if match and _for_this_python(marker) and not (extra and extra[1] in DEVELOPMENT):
            found.append((match["name"], match["bounds"], extra[1] if extra else None))
    return sorted(found, key=lambda one: (one[2] or "", one[0]))


def _for_this_python(marker: str) -> bool:
    current = tuple(map(int, platform.python_version_tuple()[:2]))
    tests = [(operator, (int(major), int(minor))) for operator, major, minor in _PYTHON.findall(marker)]
    return all(current < limit if operator == "<" else current >= limit for operator, limit in tests)


def _within(found: str, bounds: str) -> bool:
    """Whether a version is within bounds such as `<1,>=0.22`, by its leading numbers."""
    for bound in filter(None, bounds.split(",")):
        operator, limit = re.fullmatch(r"(<|>=)(.*)", bound.strip()).groups()  # type: ignore[union-attr]
        if (_numbers(found) < _numbers(limit)) != (operator == "<"):
            return False
    return True


def _numbers(text: str) -> tuple[int, ...]:
    leading = re.match(r"\d+(\.\d+)*", text)
    numbers = [int(part) for part in leading[0].split(".")] if leading else []
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)
