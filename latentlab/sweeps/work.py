"""The points of a sweep as tasks of an executor: submitted, started again if a worker died, and collected."""

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latentlab.errors import InferenceError, LatentLabError
from latentlab.store.points import record_failure
from latentlab.sweeps.display import Display
from latentlab.sweeps.executors import Engine
from latentlab.sweeps.points import Point
from latentlab.sweeps.worker import run_point

TRIES = 2
"""Number of times that a point is started whose worker dies."""


@dataclass
class Work:
    """Runs points on an executor.

    Args:
        engine: The open executor.
        folder: The sweep's directory.
        name: Name of the sweep.
        shown: The display of the progress.
        n_threads: Threads of torch and BLAS in each worker.
        max_failures: Number of failed points after which no further point is started.
        n_failed: Number of points that have failed.
    """

    engine: Engine
    folder: Path
    name: str
    shown: Display
    n_threads: int
    max_failures: int | None
    n_failed: int = 0

    def run(self, points: Sequence[Point]) -> None:
        """Submit the points, a limited number at once, and collect their results.

        Raises:
            InferenceError: `max_failures` points failed, or the executor was lost.
            KeyboardInterrupt: A point was interrupted.
        """
        waiting, tries = list(points), Counter[str]()
        active: dict[Future, Point] = {}
        try:
            while waiting or active:
                while waiting and len(active) < self.engine.at_once:
                    point = waiting.pop(0)
                    tries[point.name] += 1
                    self.shown.start(point.name)
                    active[self._submitted(point)] = point
                done, _ = wait(active, timeout=self.shown.interval, return_when=FIRST_COMPLETED)
                self.shown.refresh()
                for future in done:
                    point = active.pop(future)
                    result = _result(future, point, tries[point.name])
                    if result is None:
                        self.shown.log(f"{point.name}: its worker died; it is started once more")
                        waiting.insert(0, point)
                        continue
                    self.shown.finish(point.name, result)
                    record_failure(self.folder, point.name, result["error"] if result["status"] == "failed" else None)
                    if result["status"] == "interrupted":
                        raise KeyboardInterrupt(point.name)
                    self.n_failed += result["status"] == "failed"
                    if self.n_failed == self.max_failures:
                        n_open = len(waiting) + len(active)
                        raise InferenceError(
                            f"{self.folder}: {self.n_failed} points failed, as many as `max_failures` allows; {n_open} points "
                            f"are unfinished. The last failure, of {point.name}: {result['error']}"
                        )
        except BaseException:
            for future in active:
                future.cancel()
            self.engine.executor.shutdown(wait=False)  # Dask's has no `cancel_futures`
            raise

    def _submitted(self, point: Point) -> Future:
        if point.config is None:
            future: Future = Future()
            future.set_result({"status": "failed", "error": point.error, "headline": ""})
            return future
        about = {"name": self.name, "point": point.name, "values": point.values}
        arguments = (point.config.to_dict(), str((self.folder / point.name).absolute()), about, self.n_threads)
        return self.engine.executor.submit(run_point, *arguments)


def _result(future: Future, point: Point, tries: int) -> dict[str, Any] | None:
    """Result of a point; None if its worker died and it is to be started once more.

    Raises:
        InferenceError: The executor cancelled the point, as after the loss of its scheduler.
    """
    try:
        return dict(future.result())
    except CancelledError as error:
        raise InferenceError(
            f"{point.name}: the executor cancelled it, and its scheduler may be lost. Finished points are kept; the same call "
            "resumes the sweep."
        ) from error
    except LatentLabError:
        raise
    except Exception as error:
        if tries < TRIES:
            return None
        text = f"the worker died {tries} times: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
        return {"status": "failed", "error": text, "headline": ""}
