"""Calls of a run's trackers, none of which can stop the run or change its results."""

import contextlib
import logging
import os
import random
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from latentlab.seeds import forked
from latentlab.store.directory import LOG, RunDirectory
from latentlab.study.config import Config
from latentlab.study.rows import row_of

logger = logging.getLogger(__name__)


class Trackers:
    """Trackers of a run. One that raises an error is left out from then on, with one warning.

    Args:
        config: The config.
        directory: Directory of the run, which has begun.
    """

    def __init__(self, config: Config, directory: RunDirectory) -> None:
        self._config, self._directory = config, directory
        self._trackers: dict[str, Any] = {}
        for i, section in enumerate(config.tracking):
            where, build = f"tracking.{i}", type(section).build
            if build is not None and (made := self._tried(where, build, **section.options())) is not None:
                self._trackers[where] = made

    def __bool__(self) -> bool:
        return bool(self._trackers)

    def begin(self) -> None:
        """Begin all trackers."""
        self._call("begin", self._directory.path, self._config.to_dict(), self._directory.info)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Pass on live values."""
        self._call("log", step, values)

    def end(self, status: str, error: BaseException | None = None) -> None:
        """End with the row of the run in a table of runs, or with the error that has ended the run."""
        if not self:
            return
        results: dict[str, Any] = {"status": status, "error": str(error or "")}
        if error is None and (row := self._tried("tracking", row_of, self._directory.path)) is not None:
            results = {**row.results, **row.times}
        self._call("end", results)

    def _call(self, method: str, *arguments: Any) -> None:
        for where, tracker in list(self._trackers.items()):
            self._tried(where, getattr(tracker, method), *arguments)

    def _tried(self, where: str, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """Return the result of a function; after an error None, and the tracker of the section `where` is left out."""
        try:
            with _unchanged():
                return function(*arguments, **options)
        except (Exception, SystemExit) as error:
            self._trackers.pop(where, None)
            self._warn(where, error)
        return None

    def _warn(self, where: str, error: BaseException) -> None:
        text = f"{where}: the run is not tracked there from now on: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
        logger.warning("%s", text)
        with contextlib.suppress(OSError):
            self._directory.logger.warning("%s", text)
            self._directory.info["warnings"].append(text)
            self._directory.list(LOG)


@contextlib.contextmanager
def _unchanged() -> Iterator[None]:
    """Restore random states, environment, filters of warnings and level of logging; hide the library's warnings and messages."""
    numpy_state, random_state, environment, level = (
        np.random.get_state(),
        random.getstate(),
        dict(os.environ),
        logging.root.manager.disable,
    )
    with forked(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(max(level, logging.WARNING))
        try:
            yield
        finally:
            logging.disable(level)
            np.random.set_state(numpy_state)
            random.setstate(random_state)
            for name in set(os.environ) - set(environment):
                del os.environ[name]
            os.environ.update(environment)
