"""The errors that latentlab raises: one line saying what, where, what was expected and what was found."""

import difflib
from collections.abc import Iterable


class LatentLabError(Exception):
    """Base of every error that latentlab raises on purpose; `exit_code` is what the command line ends with."""

    exit_code = 1


class ConfigError(LatentLabError, ValueError):
    """A config, an override or a command that cannot be understood; nothing was started."""

    exit_code = 2


class DataError(LatentLabError, ValueError):
    """Data that a loader or a model cannot take; the message names the file, column or unit."""

    exit_code = 2


class ModelError(LatentLabError, ValueError):
    """A model, guide or declaration that contradicts itself or its data; the message names the site."""

    exit_code = 2


class StoreError(LatentLabError, OSError):
    """A run directory or file that cannot be read, or must not be written; the message names the path."""

    exit_code = 2


class InferenceError(LatentLabError, RuntimeError):
    """Inference that cannot go on; the message names site and step."""

    exit_code = 1


class MissingDependencyError(LatentLabError, ImportError):
    """An optional library that is not installed; the message names the library and the extra that brings it."""

    exit_code = 2

    def __init__(self, what: str, package: str, extra: str) -> None:
        super().__init__(f"{what} needs the package '{package}': install it with `pip install 'latentlab[{extra}]'`.")


def unknown(kind: str, name: object, valid: Iterable[str]) -> str:
    """Message for a name that is not in a table: the closest valid one, and all of them.

    Example:
        >>> unknown("model", "pca", ["ppca", "factor_analysis"])
        "unknown model 'pca'; did you mean 'ppca'? Valid: factor_analysis, ppca."
    """
    names = sorted(valid)
    alike = [one for one in names if one.lower() == str(name).lower()]
    close = alike or difflib.get_close_matches(str(name), names, n=1)
    hint = f"; did you mean '{close[0]}'?" if close else "."
    return f"unknown {kind} {name!r}{hint} Valid: {', '.join(names) or 'none'}."
