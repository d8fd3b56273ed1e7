"""Kill runs at random moments, resume them, and compare all results with those of an uninterrupted run, byte by byte.

For each method a small run is repeated. It is killed (SIGKILL) four times and resumed each time. The moment is drawn uniformly
from the duration of the run, or, in three of four cases, from that of its fit. The state of chains and optimisers is saved after
each step, so that a kill often meets the writing of a checkpoint.

    python experiments/kills.py                    # 20 kills for each of svi, nuts and chees, about five minutes
    python experiments/kills.py --n-kills 2 --methods svi
"""

import argparse
import contextlib
import itertools
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

METHODS: dict[str, dict[str, Any]] = {
    "svi": {"n_steps": 200, "n_restarts": 2, "n_draws": 50},
    "nuts": {"n_chains": 2, "n_warmup": 40, "n_draws": 40, "max_tree_depth": 5},
    "chees": {"n_chains": 8, "n_superchains": 2, "n_warmup": 40, "n_draws": 40},
}
KILLS_PER_RUN = 4
SHARE_IN_FIT = 0.75
"""Share of the kills whose moment is drawn from the duration of the fit."""
POLL = 0.005
"""Seconds between looks at the stage of a run."""
COMPARED = ("data.nc", "posterior.nc", "embeddings.nc", "comparison.nc", "comparison.csv", "verdicts.csv", "diagnostics.json")
PRELOADED = ["latentlab.study.run", "latentlab.inference.chees", "latentlab.inference.svi", "latentlab.embeddings.linear"]
PRELOADED += ["arviz", "sklearn.decomposition", "latentlab.compare.kernel"]
"""Modules that are imported once, in the process from which the runs are forked."""


def config_of(method: str) -> dict[str, Any]:
    """Return the config of a run."""
    return {
        "name": f"kills-{method}",
        "dataset": {"name": "iris"},
        "model": {"name": "ppca", "n_latent": 1},
        "inference": {"name": method, **METHODS[method]},
        "embeddings": [{"name": "pca"}],
        "compare": {"metrics": ["cka"]},
    }


def run(config: Mapping[str, Any], out: Path, before: Callable[[], None] | None = None) -> None:
    """Run a config in this process, or resume it, with a checkpoint after each step and without a page.

    `before` is called first.
    """
    import latentlab as ll
    from latentlab.inference import advi, chees, model_guide, nuts
    from latentlab.study import stages

    for module in (advi, chees, model_guide, nuts):
        module.CHECKPOINT_SECONDS = -1.0
    stages.write_page = lambda *_, **__: None
    if before is not None:
        before()
    with open(os.devnull, "w") as nothing, contextlib.redirect_stderr(nothing), contextlib.redirect_stdout(nothing):
        ll.run(config, out=out, resume=out.exists(), progress=False)


def start(config: Mapping[str, Any], out: Path, before: Callable[[], None] | None = None) -> ForkServerProcess:
    """Start `run` in a process of its own, which is forked from one that has loaded all libraries."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    process = context.Process(target=run, args=(config, out, before))
    process.start()
    return process


def results(out: Path) -> dict[str, bytes]:
    """Return the content of the files with results."""
    return {name: (out / name).read_bytes() for name in COMPARED} | {
        f"params/{file.name}": file.read_bytes() for file in sorted((out / "params").iterdir())
    }


def stage_of(out: Path) -> str:
    """Return the stage at which a run was killed, and whether a temporary file was left in the middle of its writing."""
    from latentlab.errors import StoreError
    from latentlab.store.directory import read_info

    try:
        stage = str(read_info(out)["stage"])
    except StoreError:
        return "before the run"
    return f"{stage}, writing" if list(out.glob(".*.tmp")) + list(out.glob("checkpoints/.*.tmp")) else stage


def kills(method: str, n_kills: int, seed: int, folder: Path) -> pd.DataFrame:
    """Kill runs of a method, each several times, and resume them; return a row for each kill."""
    from latentlab.store.directory import read_info

    config, rng = config_of(method), np.random.default_rng(seed)
    whole, rows = folder / "whole", []
    start(config, folder / "first").join()  # loads the libraries
    begin = time.monotonic()
    start(config, whole).join()
    duration, expected = time.monotonic() - begin, results(whole)
    fit_duration = float(read_info(whole)["seconds"]["fit"])
    for number in itertools.count():
        if len(rows) >= n_kills:
            return pd.DataFrame(rows)
        out, stages = folder / f"run-{number}", list[str]()
        while len(stages) < min(KILLS_PER_RUN, n_kills - len(rows)):
            process, in_fit = start(config, out), rng.random() < SHARE_IN_FIT
            while in_fit and process.is_alive() and not stage_of(out).startswith("fit"):
                time.sleep(POLL)
            process.join(float(rng.uniform(0, fit_duration if in_fit else duration)))
            process.kill()
            process.join()
            if process.exitcode == 0:
                break  # it ended before it was killed
            stages.append(stage_of(out))
        process = start(config, out)
        process.join()
        equal = process.exitcode == 0 and results(out) == expected
        for stage in stages:
            rows.append({"method": method, "stage": stage, "equal": equal})
            print(method, stage, equal, sep=", ", flush=True)


def main(argv: list[str] | None = None) -> pd.DataFrame:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", choices=[*METHODS], default=[*METHODS])
    parser.add_argument("--n-kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)
    tables = []
    print("method, stage, equal")
    for method in arguments.methods:
        with tempfile.TemporaryDirectory() as folder:
            tables.append(kills(method, arguments.n_kills, arguments.seed, Path(folder)))
    table = pd.concat(tables, ignore_index=True)
    counts = table.groupby(["method", "stage"], sort=False).agg(kills=("equal", "size"), equal=("equal", "sum"))
    print(f"\n{counts.to_string()}\n\nAfter {int(table['equal'].sum())} of {len(table)} kills the run ends with the same bytes.")
    return table


if __name__ == "__main__":
    main()
