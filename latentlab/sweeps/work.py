"""The points of a sweep as tasks of an executor."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latentlab.errors import InferenceError
from latentlab.executors.engines import Engine
from latentlab.executors.tasks import work
from latentlab.store.points import record_failure
from latentlab.sweeps.display import Display
from latentlab.sweeps.points import Point
from latentlab.sweeps.worker import run_point


@dataclass
class Work:
    """Runs points on an executor, and shows and records their results.

    Args:
        engine: The open executor.
        folder: The sweep's directory.
        name: Name of the sweep.
        shown: The display of the progress.
        n_threads: Threads of torch and BLAS in each worker.
        max_failures: Number of failed points after which no further point is started.
        n_failed: Number of points that have failed.
        n_open: Number of points of the present call without a result.
    """

    engine: Engine
    folder: Path
    name: str
    shown: Display
    n_threads: int
    max_failures: int | None
    n_failed: int = 0
    n_open: int = 0

    def __post_init__(self) -> None:
        self.interval, self.start = self.shown.interval, self.shown.start
        self.refresh, self.log = self.shown.refresh, self.shown.log

    def run(self, points: Sequence[Point]) -> None:
        """Run the points, a limited number at once; a proposed point without a config fails.

        Raises:
            InferenceError: `max_failures` points failed, or the executor was lost.
            KeyboardInterrupt: This process or a point was interrupted.
        """
        self.n_open = len(points)
        for point in points:
            if point.config is None:
                self.finish(point.name, {"status": "failed", "error": point.error, "headline": ""})
        work(self.engine, run_point, {point.name: self._arguments(point) for point in points if point.config is not None}, self)

    def finish(self, name: str, result: Mapping[str, Any]) -> None:
        """Show and record a result; raise an error after `max_failures` failures."""
        failed = result["status"] == "failed"
        self.shown.finish(name, result)
        record_failure(self.folder, name, result["error"] if failed else None)
        self.n_open -= 1
        self.n_failed += failed
        if failed and self.n_failed == self.max_failures:
            raise InferenceError(
                f"{self.folder}: {self.n_failed} points failed, as many as `max_failures` allows; {self.n_open} points are "
                f"unfinished. The last failure, of {name}: {result['error']}"
            )

    def _arguments(self, point: Point) -> tuple[Any, ...]:
        """Arguments of `run_point`."""
        about = {"name": self.name, "point": point.name, "values": point.values}
        return point.config.to_dict(), str((self.folder / point.name).absolute()), about, self.n_threads  # type: ignore[union-attr]
