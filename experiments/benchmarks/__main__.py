"""Latentlab against its peers: every benchmark, or some, with a table, a CSV and a plot of what was found.

    python -m experiments.benchmarks                          # all, at full size: an hour or so
    python -m experiments.benchmarks --size small             # a few minutes: proves that all of it runs
    python -m experiments.benchmarks --only svi_vae startup

Each benchmark runs in a process of its own, in which torch, numpy and JAX have one thread each: operations are small, and a
second thread would mostly measure the machine's other work. Whole processes are measured with each library's own defaults. A
peer that is not installed has a row that says so; `pip install -c constraints.txt -e '.[bench]'` installs them all.
"""

import argparse
import importlib
import json
import math
import os
import subprocess
import sys
import tempfile
from dataclasses import astuple
from pathlib import Path

from experiments.benchmarks.harness import ONE_THREAD, ROOT, Row, machine, markdown, write

BENCHMARKS = (
    "startup",
    "ppca_many_rows",
    "ppca_missing",
    "minibatches_on_disk",
    "svi_mixture",
    "svi_vae",
    "hmm_point_fit",
    "hmm_sampling",
    "mixture_sampling",
    "ppca_sampling",
    "ppca_converged",
)
SIZES = ("tiny", "small", "full")


def measured(name: str, size: str) -> list[Row]:
    """A benchmark's rows, from a process of its own; a row that says why, where it fails."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "rows.json"
        command = [sys.executable, "-m", "experiments.benchmarks", "--here", name, "--size", size, "--out", str(out)]
        done = subprocess.run(command, env={**os.environ, **ONE_THREAD}, cwd=ROOT, stderr=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no word"])[-1]
            print(done.stderr, file=sys.stderr)
            return [Row(name, "", f"failed: {last[:300]}", math.nan, "")]
        return [Row(*values) for values in json.loads(out.read_text())]


def main(arguments: list[str] | None = None) -> None:
    """Prints the table and writes `results.csv`, `results.md` and `results.png`; exits with 1 where a benchmark failed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", choices=SIZES, default="full")
    parser.add_argument("--only", nargs="+", choices=BENCHMARKS, default=list(BENCHMARKS))
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "benchmarks")
    parser.add_argument("--here", choices=BENCHMARKS, help="one benchmark, in this process; its rows are written as JSON")
    options = parser.parse_args(arguments)
    if options.here:
        rows = importlib.import_module(f"experiments.benchmarks.{options.here}").rows(options.size)
        options.out.write_text(json.dumps([astuple(row) for row in rows]))
        return
    about = machine() | {"size": options.size}
    rows = []
    for name in options.only:
        print(f"{name} ...", file=sys.stderr, flush=True)
        rows += measured(name, options.size)
        write(rows, options.out, about)  # after each, so that an interrupted run leaves what it has
    print(markdown(rows, about))
    print(f"written to {options.out}")
    if any(row.what.startswith("failed") for row in rows):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
