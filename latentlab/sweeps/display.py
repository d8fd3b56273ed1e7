"""Progress of a sweep: a live table on a terminal, a line for each finished point elsewhere."""

import contextlib
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from latentlab.store.directory import read_info
from latentlab.study.rows import text_of
from latentlab.sweeps.points import Plan, Point

MOST_ROWS = 20
"""Largest number of points in the live table: running points, and points that finished last."""


class Display:
    """Collects the states of the points, and shows them."""

    def __init__(self, plan: Plan, states: Mapping[str, str], folder: Path, *, progress: bool) -> None:
        self.values = {point.name: text_of(point.values) for point in plan.points}
        self.states, self.folder, self.progress, self.n_points = dict(states), folder, progress, plan.n_points
        self.headlines: dict[str, str] = {}
        self.begun: dict[str, float] = {}
        self.seconds: list[float] = []
        self.finished: list[str] = []
        self.live: Any = None
        self.interval = 1.0
        """Seconds between two updates of the live table."""

    def log(self, line: str) -> None:
        if self.progress:
            if self.live:
                self.live.console.print(line, markup=False, highlight=False)
            else:
                print(line)

    def add(self, point: Point) -> str:
        """Add a point that was not known before; return its state."""
        self.values.setdefault(point.name, text_of(point.values))
        return self.states.setdefault(point.name, "not run")

    def start(self, name: str) -> None:
        self.states[name] = "running"
        self.begun[name] = time.monotonic()

    def finish(self, name: str, result: Mapping[str, Any]) -> None:
        elapsed = time.monotonic() - self.begun[name] if name in self.begun else 0.0  # an invalid point never starts
        self.states[name], self.headlines[name] = result["status"], result["headline"] or result["error"]
        self.finished.append(name)
        if name in self.begun:
            self.seconds.append(elapsed)
        if not self.live:
            n_ended = sum(state not in ("running", "not run") for state in self.states.values())
            state = result["status"].replace("_", " ")
            self.log(
                f"[{n_ended}/{self.n_points}] {name} ({self.values[name]}): {state} in {elapsed:.1f} s"
                + (f"; {self.headlines[name]}" if self.headlines[name] else "")
            )
        self.refresh()

    def refresh(self) -> None:
        if self.live:
            self.live.update(self.table(), refresh=True)

    def remaining(self) -> float | None:
        """Estimated seconds until the end; None before the first point has finished."""
        n_open = sum(state in ("running", "not run", "interrupted") for state in self.states.values())
        n_open += self.n_points - len(self.states)
        n_running = sum(state == "running" for state in self.states.values())
        return sum(self.seconds) / len(self.seconds) * n_open / max(1, n_running) if self.seconds else None

    def table(self) -> Any:
        """The live table: state, elapsed time, stage and headline of the running and the last finished points."""
        from rich.table import Table
        from rich.text import Text

        seconds_left = self.remaining()
        counts = Counter(self.states.values())
        text = ", ".join(f"{n} {state.replace('_', ' ')}" for state, n in counts.items())
        table = Table(title=f"{text}; about {seconds_left:.0f} s left" if seconds_left is not None else text)
        for column in ("point", "values", "state", "elapsed", "result"):
            table.add_column(column)
        running = [name for name, state in self.states.items() if state == "running"]
        for name in [*running, *self.finished[::-1]][:MOST_ROWS]:
            is_running = self.states[name] == "running"
            elapsed = f"{time.monotonic() - self.begun[name]:.0f} s" if is_running else ""
            state = f"running: {self._stage(name)}" if is_running else self.states[name].replace("_", " ")
            cells = (name, self.values[name], state, elapsed, self.headlines.get(name, ""))
            table.add_row(*map(Text, cells))  # rich would interpret `[full]` in a plain string as a style
        return table

    def _stage(self, name: str) -> str:
        with contextlib.suppress(Exception):  # a file that is just being replaced
            return str(read_info(self.folder / name)["stage"])
        return "start"


@contextlib.contextmanager
def display(plan: Plan, states: Mapping[str, str], folder: Path, *, progress: bool) -> Iterator[Display]:
    """Show the progress of a sweep inside a `with` block."""
    shown = Display(plan, states, folder, progress=progress)
    if not progress or not sys.stdout.isatty():
        yield shown
        return
    from rich.live import Live

    with Live(auto_refresh=False) as live:
        shown.live = live
        yield shown
        shown.refresh()
