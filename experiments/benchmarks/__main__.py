"""Benchmarks of latentlab against other packages, with a table, a CSV and a plot of the results.

    python -m experiments.benchmarks                          # all, at full size: about an hour
    python -m experiments.benchmarks --size small             # a few minutes: shows that everything runs
    python -m experiments.benchmarks --only svi_vae startup

Each benchmark runs in a separate process, in which torch, numpy and JAX have one thread each. Operations are small, and a
second thread would mostly measure other work on the machine. Whole processes are measured with the defaults of each library. A
package that is not installed has a row with a note; `pip install -c constraints.txt -e '.[bench]'` installs all of them.
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
    "sweeps",
    "ppca_many_rows",
    "ppca_missing",
    "minibatches_on_disk",
    "draws_on_disk",
    "svi_mixture",
    "svi_vae",
    "svi_gplvm",
    "svi_networks",
    "svi_processes",
    "hmm_point_fit",
    "hmm_sampling",
    "mixture_sampling",
    "ppca_sampling",
    "ppca_converged",
)
SIZES = ("tiny", "small", "full")


def measured(name: str, size: str) -> list[Row]:
    """Return the rows of a benchmark, run in a separate process; if it fails, one row with the error."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "rows.json"
        command = [sys.executable, "-m", "experiments.benchmarks", "--here", name, "--size", size, "--out", str(out)]
        done = subprocess.run(command, env={**os.environ, **ONE_THREAD}, cwd=ROOT, stderr=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no output"])[-1]
            print(done.stderr, file=sys.stderr)
            return [Row(name, "", f"failed: {last[:300]}", math.nan, "")]
        return [Row(*values) for values in json.loads(out.read_text())]


def main(arguments: list[str] | None = None) -> None:
    """Print the table and write `results.csv`, `results.md` and `results.png`; exit with 1 if a benchmark failed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", choices=SIZES, default="full")
    parser.add_argument("--only", nargs="+", choices=BENCHMARKS, default=list(BENCHMARKS))
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "benchmarks")
    parser.add_argument("--here", choices=BENCHMARKS, help="run one benchmark in this process and write its rows as JSON")
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
        write(rows, options.out, about)  # after each benchmark, so that an interrupted run leaves its rows
    print(markdown(rows, about))
    print(f"results: {options.out}")
    if any(row.what.startswith("failed") for row in rows):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
