"""Kill runs at random moments, resume them, and compare all results with those of an uninterrupted run, byte by byte.

For each method a small run is repeated: it is killed (SIGKILL) at a moment drawn uniformly from its duration, and resumed. The
state of chains and optimisers is saved after each step, so that a kill often meets the writing of a checkpoint.

    python experiments/kills.py                    # 20 kills for each of svi, nuts and chees, about five minutes
    python experiments/kills.py --n-kills 2 --methods svi
"""

import argparse
import contextlib
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
    from latentlab.inference import advi, chees, nuts, svi
    from latentlab.study import stages

    for module in (advi, chees, nuts, svi):
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
    """Kill and resume runs of a method; return a row for each kill."""
    config, rng = config_of(method), np.random.default_rng(seed)
    whole = folder / "whole"
    durations = []
    for out in (folder / "first", whole):  # the first also loads code into the caches
        begin = time.monotonic()
        start(config, out).join()
        durations.append(time.monotonic() - begin)
    expected = results(whole)
    rows = []
    for number in range(n_kills):
        out = folder / f"run-{number}"
        moment = float(rng.uniform(0, durations[1]))
        process = start(config, out)
        process.join(moment)
        process.kill()
        process.join()
        killed, stage = process.exitcode == -9, stage_of(out)
        resumed = start(config, out)
        resumed.join()
        found = results(out) if resumed.exitcode == 0 else {}
        equal = found == expected
        rows.append({"method": method, "seconds": moment, "killed": killed, "stage": stage, "equal": equal})
    return pd.DataFrame(rows)


def main(argv: list[str] | None = None) -> pd.DataFrame:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", choices=[*METHODS], default=[*METHODS])
    parser.add_argument("--n-kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)
    tables = []
    for method in arguments.methods:
        with tempfile.TemporaryDirectory() as folder:
            tables.append(kills(method, arguments.n_kills, arguments.seed, Path(folder)))
    table = pd.concat(tables, ignore_index=True)
    print(table.to_string(float_format="%.2f"))
    counts = table.groupby(["method", "stage"], sort=False).agg(kills=("killed", "sum"), equal=("equal", "sum"))
    print(f"\n{counts.to_string()}\n\n{int(table['equal'].sum())} of {len(table)} runs end with the same bytes.")
    return table


if __name__ == "__main__":
    main()
