"""Errors of latentlab; their one-line messages name the problem, its place, the expected and the actual value."""

import difflib
from collections.abc import Iterable


class LatentLabError(Exception):
    """Base class of all errors that latentlab raises; `exit_code` is the exit code of the command line."""

    exit_code = 1


class ConfigError(LatentLabError, ValueError):
    """Error for an invalid config, override, setting or command; nothing was started."""

    exit_code = 2


class DataError(LatentLabError, ValueError):
    """Error for data that are invalid for a loader or a model; the message names the file, column or unit."""

    exit_code = 2


class ModelError(LatentLabError, ValueError):
    """Error for an inconsistent model, guide or declaration, or one that contradicts its data; the message names the site."""

    exit_code = 2


class StoreError(LatentLabError, OSError):
    """Error for a run directory or file that cannot be read or written; the message names the path."""

    exit_code = 2


class LockError(StoreError):
    """Error for a directory that another process is writing; the message names the process and its host."""


class InferenceError(LatentLabError, RuntimeError):
    """Error for inference that failed; the message names site and step."""

    exit_code = 1


class LostProcessError(InferenceError):
    """Error for a process of the same fit that failed or does not answer; the message has its error."""


class MissingDependencyError(LatentLabError, ImportError):
    """Error for a missing optional library; the message names the library and the extra that installs it."""

    exit_code = 2

    def __init__(self, what: str, package: str, extra: str) -> None:
        super().__init__(f"{what} needs the package '{package}': install it with `pip install 'latentlab[{extra}]'`.")


def unknown(kind: str, name: object, valid: Iterable[str]) -> str:
    """Message for an unknown name, with the closest valid name and all valid names.

    Example:
        >>> unknown("model", "pca", ["ppca", "factor_analysis"])
        "unknown model 'pca'; did you mean 'ppca'? Valid: factor_analysis, ppca."
    """
    names = sorted(valid)
    alike = [one for one in names if one.lower() == str(name).lower()]
    close = alike or difflib.get_close_matches(str(name), names, n=1)
    hint = f"; did you mean '{close[0]}'?" if close else "."
    return f"unknown {kind} {name!r}{hint} Valid: {', '.join(names) or 'none'}."
