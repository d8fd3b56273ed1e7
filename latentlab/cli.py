"""Command line: `latentlab COMMAND`. Libraries are imported when a command runs, so that help and lists are fast."""

import argparse
import contextlib
import io
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from typing import Any

from latentlab.errors import LatentLabError
from latentlab.processes import refuse_several, together
from latentlab.registry import DATASETS, EMBEDDINGS, METHODS, METRICS, MODELS, plugin_line, plugins
from latentlab.study.console import print_rows, print_table, table_lines

KINDS = {"models": MODELS, "datasets": DATASETS, "embeddings": EMBEDDINGS, "metrics": METRICS, "methods": METHODS}
INTERRUPTED = 130
INTERRUPTED_TWICE = "interrupted twice and stopped immediately; repeat the command with --resume to continue."
EXIT_CODES = """\
exit codes: 0 success; 1 the run or a check failed; 2 invalid config, data or usage, nothing was started;
            3 success, but a diagnostic failed and --strict was given; 130 interrupted, --resume continues"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code; an error is printed in one line (a config can have several)."""
    arguments = _parsed(sys.argv[1:] if argv is None else argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    with _interruptible():
        return _code(arguments)


def _code(arguments: argparse.Namespace) -> int:
    try:
        refuse_several(unless=arguments.command is _run)
        code: int = arguments.command(arguments)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        exec("")  # clears the flag of an interrupt in code that libraries execute from text, which would end Python by the signal
        print("latentlab: interrupted; repeat the command with --resume to continue.", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if arguments.debug:
            traceback.print_exc()
        print(f"latentlab: error: {_message(error)}", file=sys.stderr)
        return int(getattr(error, "exit_code", 1))


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Convert SIGINT and SIGTERM to KeyboardInterrupt within a `with` block; a second signal ends the process at once.

    Files are written atomically, so that a run can be resumed after either.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received: list[int] = []

    def stop(number: int, _: Any) -> None:
        received.append(number)
        if len(received) > 1:
            os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, f"\nlatentlab: {INTERRUPTED_TWICE}\n".encode())
            os._exit(INTERRUPTED)
        raise KeyboardInterrupt(signal.Signals(number).name)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _message(error: Exception) -> str:
    expected, line = isinstance(error, LatentLabError), plugin_line(error)
    text = str(error) if expected else f"{type(error).__name__}: {error}"
    if line and line not in text:
        text += f" ({line})"
    elif not expected:
        text += " (unexpected error; --debug shows the traceback)"
    return "\n".join([text, *getattr(error, "__notes__", [])])


# -- commands


def _run(arguments: argparse.Namespace) -> int:
    from latentlab.study.config import load_config

    with together():
        config = load_config(arguments.config, arguments.overrides, arguments.plugin)

        from latentlab.study.run import run

        run(
            config,
            out=arguments.out,
            overwrite=arguments.overwrite,
            resume=arguments.resume,
            force=arguments.force,
            strict=arguments.strict,
            progress=not arguments.quiet,
        )
    return 0


def _select(arguments: argparse.Namespace) -> int:
    from latentlab.study.select import n_compared, select, values_of

    key, values = values_of(arguments.values)
    table = select(
        arguments.config,
        key,
        values,
        overrides=arguments.overrides,
        out=arguments.out,
        plugins=arguments.plugin,
        overwrite=arguments.overwrite,
        resume=arguments.resume,
        with_embeddings=arguments.with_embeddings,
        progress=not arguments.quiet,
    )
    print_table(table)
    if not arguments.quiet:
        print("\nelpd_diff is the difference from the best row; se_diff is its standard error.")
        print(f"Written: {', '.join(table.attrs['written'])}, and the run directories.")
    return 0 if n_compared(table) > 1 else 1


def _sweep(arguments: argparse.Namespace) -> int:
    from latentlab.sweeps.points import plan_of
    from latentlab.sweeps.sweep import dry_run, folder_of, sweep

    plan = plan_of(arguments.config, arguments.overrides, arguments.plugin)
    if arguments.dry_run:
        table, cost = dry_run(plan, folder_of(plan, arguments.out))
        print_table(table)
        print(f"\n{cost}")
        return 0
    found = sweep(
        plan,
        executor=arguments.executor,
        n_workers=arguments.workers,
        n_threads=arguments.threads,
        out=arguments.out,
        retry_failed=arguments.retry_failed,
        max_failures=arguments.max_failures,
        progress=not arguments.quiet,
    )
    if not arguments.quiet:
        print(f"{found}\nWritten: {', '.join(str(path) for path in found.written())}")
    return 0 if found.is_complete() else 1


def _compare(arguments: argparse.Namespace) -> int:
    from latentlab.study.several import compare_runs

    with plugins(arguments.plugin):
        found = compare_runs(arguments.runs)
    tables = [("runs", found.runs), *(("leave-one-out", table) for table in found.loo)]
    tables += [("agreement of positions", found.positions), ("verdicts on embeddings", found.verdicts)]
    print("\n\n".join("\n".join([title, *table_lines(table)]) for title, table in tables if len(table)))
    if found.notes:
        print("\nnotes")
        print("\n".join(f"  {note}" for note in found.notes))
    return 0


def _calibrate(arguments: argparse.Namespace) -> int:
    from latentlab.study.config import load_config

    config = load_config(arguments.config, arguments.overrides, arguments.plugin)

    from latentlab.calibration.calibrate import calibrate

    with plugins(config.plugins):
        found = calibrate(
            config.build_model(),
            config.build_method(),
            n_replications=arguments.n_replications,
            n_units=arguments.n_units,
            seed=config.seed,
            progress=not arguments.quiet,
        )
    print(found)
    if arguments.out is not None:
        found.save(arguments.out)
    return 0 if found.passed else 1


def _report(arguments: argparse.Namespace) -> int:
    from pathlib import Path

    from latentlab.sweeps.sweep import is_sweep, load_sweep

    with plugins(arguments.plugin):
        if is_sweep(arguments.run):
            from latentlab.sweeps.page import write

            print(write(load_sweep(Path(arguments.run))))
        else:
            from latentlab.study.run import report

            print(report(arguments.run))
    return 0


def _list(arguments: argparse.Namespace) -> int:
    with plugins(arguments.plugin):
        for kind in [arguments.kind] if arguments.kind else KINDS:
            table = KINDS[kind]
            if not arguments.kind:
                print(kind)
            print_rows([(name, table.describe(name)) for name in table], indent="" if arguments.kind else "  ")
    return 0


def _correspondences(arguments: argparse.Namespace) -> int:
    from latentlab.correspondences.registry import CORRESPONDENCES

    with plugins(arguments.plugin):
        if not arguments.check:
            for entry in CORRESPONDENCES:
                print(f"{entry.embedding} ~ {entry.model}: {entry.grade}\n  {entry.claim}")
                print(f"  conditions: {entry.conditions}\n  fails with: {entry.breaks}\n  source: {entry.citation}")
            return 0
        results = [(entry, entry.check()) for entry in CORRESPONDENCES]
        verdict = {True: "holds", False: "FAILS"}
        print_rows([(verdict[bool(r.passed)], e.embedding, e.model, e.grade, r.text) for e, r in results])
    return 0 if all(result.passed for _, result in results) else 1


def _config_show(arguments: argparse.Namespace) -> int:
    from latentlab.study.config import load_config

    print(load_config(arguments.config, arguments.overrides, arguments.plugin).to_yaml(), end="")
    return 0


def _config_schema(arguments: argparse.Namespace) -> int:
    import json

    from latentlab.study.config import json_schema, load_config

    files = arguments.plugin
    if arguments.config is not None:
        files = load_config(arguments.config, (), files).plugins
    print(json.dumps(json_schema(files), indent=2))
    return 0


def _doctor(arguments: argparse.Namespace) -> int:
    from latentlab.study.doctor import findings

    with plugins(arguments.plugin):
        rows, satisfied = findings()
    print_rows(rows)
    return 0 if satisfied else 1


# -- arguments


def _parsed(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the arguments; overrides may appear between options."""
    parser = _parser()
    arguments, rest = parser.parse_known_args(argv)
    options = [text for text in rest if text.startswith("-") or not hasattr(arguments, "overrides")]
    if options:
        parser.error(f"unrecognized arguments: {' '.join(options)}")
    if rest:
        arguments.overrides = [*arguments.overrides, *rest]
    return arguments


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="latentlab",
        description="Infer latent positions, compute embeddings, and compare both with uncertainty.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"latentlab {version('latentlab')}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    run = _command(commands, "run", _run, "fit a model, compute embeddings, compare both, and write a run directory")
    _takes_config(run)
    run.add_argument("--out", metavar="DIR", help="the run directory (default: runs/NAME)")
    run.add_argument("--overwrite", action="store_true", help="replace an existing run")
    run.add_argument("--resume", action="store_true", help="continue an existing run")
    run.add_argument("--force", action="store_true", help="with --resume: ignore a changed version, thread count or plugin")
    run.add_argument("--strict", action="store_true", help="exit code 3 if a diagnostic fails")
    run.add_argument("--quiet", action="store_true", help="no progress bars and no summary")

    select = _command(
        commands,
        "select",
        _select,
        "run a config for several values of a key, and compare the runs by leave-one-out",
    )
    select.add_argument("config", metavar="CONFIG", help="a YAML file")
    select.add_argument(
        "values",
        metavar="KEY=VALUES",
        help="such as model.n_components=1,2,3 or model.n_components=1:6 (with both ends)",
    )
    select.add_argument("overrides", metavar="KEY=VALUE", nargs="*", help="overrides for all runs")
    select.add_argument("--out", metavar="DIR", help="folder of the runs, table and plot (default: runs/NAME-select)")
    select.add_argument("--overwrite", action="store_true", help="replace existing runs")
    select.add_argument("--resume", action="store_true", help="continue existing runs")
    select.add_argument("--with-embeddings", action="store_true", help="compute and compare the embeddings too")
    select.add_argument("--quiet", action="store_true", help="no progress bars, only the table")

    _add_sweep(commands)
    _add_inspection(commands)
    return parser


def _add_sweep(commands: Any) -> None:
    sweep = _command(commands, "sweep", _sweep, "run a config at every point of its `sweep` block, in parallel")
    _takes_config(sweep)
    sweep.add_argument("--executor", metavar="NAME", help="serial, process, dask:ADDRESS, ray:ADDRESS, submitit (process)")
    sweep.add_argument("--workers", metavar="N", type=int, help="workers on this machine (the number of CPUs)")
    sweep.add_argument("--threads", metavar="N", type=int, default=1, help="threads of each worker (1)")
    sweep.add_argument("--out", metavar="DIR", help="the sweep's directory (runs/NAME)")
    sweep.add_argument("--retry-failed", action="store_true", help="run points again that failed in an earlier call")
    sweep.add_argument("--max-failures", metavar="N", type=int, help="stop after this number of failed points")
    sweep.add_argument("--dry-run", action="store_true", help="print the points and the estimated cost, and run nothing")
    sweep.add_argument("--quiet", action="store_true", help="print errors only")


def _add_inspection(commands: Any) -> None:
    """Add the commands that compare, check or describe runs, configs and entries."""
    compare = _command(commands, "compare", _compare, "compare several runs: leave-one-out, positions and verdicts")
    compare.add_argument("runs", metavar="RUN", nargs="+", help="run directories, at least two")

    calibrate = _command(
        commands,
        "calibrate",
        _calibrate,
        "simulation-based calibration and Geweke's test of model and method",
    )
    _takes_config(calibrate)
    calibrate.add_argument(
        "--n-replications", metavar="N", type=int, help="simulated data sets (default: 200 with nuts, else 40)"
    )
    calibrate.add_argument("--n-units", metavar="N", type=int, default=10, help="units of each data set (default: 10)")
    calibrate.add_argument("--out", metavar="DIR", help="folder for calibration.csv and calibration.png")
    calibrate.add_argument("--quiet", action="store_true", help="no progress bars")

    report = _command(commands, "report", _report, "rebuild the report of a run or of a sweep")
    report.add_argument("run", metavar="RUN", help="the directory of a run or of a sweep")

    lists = _command(commands, "list", _list, "list models, datasets, embeddings, metrics and methods")
    lists.add_argument("kind", metavar="KIND", nargs="?", choices=[*KINDS], help=", ".join(KINDS) + " (default: all)")

    claims = _command(commands, "correspondences", _correspondences, "list the embeddings that estimate the positions of a model")
    claims.add_argument("--check", action="store_true", help="check each claim numerically; exit code 1 if one fails")

    config = commands.add_parser("config", help="show a config, or the schema of configs", allow_abbrev=False)
    views = config.add_subparsers(required=True, metavar="show|schema")
    _takes_config(_command(views, "show", _config_show, "show the resolved config with all defaults"))
    schema = _command(views, "schema", _config_schema, "print the JSON schema of configs, for editors")
    schema.add_argument("config", metavar="CONFIG", nargs="?", help="include the entries of this config's plugins")

    _command(commands, "doctor", _doctor, "show versions, threads, device and optional packages")


def _command(commands: Any, name: str, function: Callable[[argparse.Namespace], int], what: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=what, description=what, allow_abbrev=False)
    parser.set_defaults(command=function)
    plugin = "a Python file that defines models, datasets, embeddings or metrics"
    parser.add_argument("--plugin", metavar="FILE", action="append", default=[], help=plugin)
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def _takes_config(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "Values of overrides are YAML; if a key is overridden more than once, the last value applies. "
        "An override of the name of a section removes the other keys of that section in the file. "
        "A path in the file is relative to the file; in an override, to the working directory. ~ is expanded, $HOME is not."
    )
    parser.add_argument("config", metavar="CONFIG", help="a YAML file")
    parser.add_argument("overrides", metavar="KEY=VALUE", nargs="*", help="overrides, such as inference.n_draws=500")


if __name__ == "__main__":
    sys.exit(main())
