"""Live table of a sweep."""

import io

from rich.console import Console

from latentlab.sweeps.display import Display
from latentlab.sweeps.points import plan_of

CONFIG = {
    "name": "toy",
    "dataset": {"name": "gaussian_mixture", "n_features": 2},
    "model": {"name": "gaussian_mixture", "n_components": 2},
    "inference": {"name": "exact"},
    "sweep": {"grid": {"model.mu_loc": [[0.0, 1.0], 0.0]}, "seeds": 2},
}


def shown(display):
    console = Console(file=io.StringIO(), width=160)
    console.print(display.table())
    return console.file.getvalue()


def test_the_table_has_states_values_and_the_remaining_time(tmp_path):
    plan = plan_of(CONFIG)
    display = Display(plan, {point.name: "not run" for point in plan.points}, tmp_path, progress=False)
    assert display.remaining() is None
    display.start("point-0000")
    display.start("point-0001")
    display.start("point-0002")
    display.finish("point-0000", {"status": "failed", "headline": "", "error": "no [bold] maximum"})
    display.seconds[:] = [10.0]
    text = shown(display)
    assert "1 failed, 2 running, 1 not run; about 15 s left" in text  # three points of 10 s, two at a time
    assert "model.mu_loc=[0.0, 1.0], seed=0" in text
    assert "no [bold] maximum" in text
    assert "running: start" in text
