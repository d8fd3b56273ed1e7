"""Parser of the arguments of all commands."""

import argparse
import os
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any

from latentlab.cli import completion, inspection, runs
from latentlab.registry import KINDS

EXIT_CODES = """\
exit codes: 0 success; 1 the run or a check failed; 2 invalid config, data or usage, nothing was started;
            3 success, but a diagnostic failed and --strict was given; 130 interrupted, --resume continues"""


def parsed(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the arguments; overrides may appear between options."""
    parser = _parser()
    if "_ARGCOMPLETE" in os.environ:
        import argcomplete

        argcomplete.autocomplete(parser)
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

    _add_init(commands)

    run = _command(commands, "run", runs.run_command, "fit a model, compute embeddings, compare both, and write a run directory")
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
        runs.select_command,
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
    _add_help(commands, parser)
    return parser


def _add_init(commands: Any) -> None:
    init = _command(commands, "init", runs.init_command, "write a commented config for a model, with your data or built-in data")
    init.add_argument("name", metavar="NAME", help="name of the run; the file is NAME.yaml")
    _names(init.add_argument("--model", metavar="MODEL", required=True, help="a model of `latentlab list models`"), "models")
    init.add_argument("--data", metavar="FILE", help="a table, a series, ratings or edges; see `latentlab help file`")
    _names(init.add_argument("--method", metavar="METHOD", help="a method of `latentlab list methods`"), "methods")
    _names(
        init.add_argument(
            "--embedding",
            metavar="EMBEDDING",
            action="append",
            default=[],
            help="an embedding of `latentlab list embeddings`, repeatable (default: those that correspond to the model)",
        ),
        "embeddings",
    )
    init.add_argument("--overwrite", action="store_true", help="replace an existing file")


def _add_help(commands: Any, parser: argparse.ArgumentParser) -> None:
    shown = _command(commands, "help", inspection.help_command, "show the help of a command, or an entry in full")
    _names(shown.add_argument("name", metavar="NAME", nargs="?", help="a command, model, dataset, embedding, metric or method"))
    shown.set_defaults(commands=commands.choices, parser=parser)


def _add_sweep(commands: Any) -> None:
    sweep = _command(commands, "sweep", runs.sweep_command, "run a config at every point of its `sweep` block, in parallel")
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
    compare = _command(
        commands, "compare", inspection.compare_command, "compare several runs: leave-one-out, positions and verdicts"
    )
    compare.add_argument("runs", metavar="RUN", nargs="+", help="directories of runs or sweeps, with at least two runs in all")
    compare.add_argument("--out", metavar="DIR", help="folder for runs.csv and further tables")

    calibrate = _command(
        commands,
        "calibrate",
        runs.calibrate_command,
        "simulation-based calibration and Geweke's test of model and method",
    )
    _takes_config(calibrate)
    calibrate.add_argument(
        "--n-replications", metavar="N", type=int, help="simulated data sets (default: 200 with nuts, else 40)"
    )
    calibrate.add_argument("--n-units", metavar="N", type=int, default=10, help="units of each data set (default: 10)")
    calibrate.add_argument("--out", metavar="DIR", help="folder for calibration.csv and calibration.png")
    calibrate.add_argument("--quiet", action="store_true", help="no progress bars")

    report = _command(commands, "report", runs.report_command, "rebuild the report of a run or of a sweep")
    report.add_argument("run", metavar="RUN", help="the directory of a run or of a sweep")

    lists = _command(
        commands,
        "list",
        inspection.list_command,
        "list models, datasets, embeddings, metrics, methods and trackers, with their arguments",
    )
    lists.add_argument("kind", metavar="KIND", nargs="?", choices=[*KINDS], help=", ".join(KINDS) + " (default: all)")
    _names(lists.add_argument("names", metavar="NAME", nargs="*", help="entries that are shown in full"))

    claims = _command(
        commands,
        "correspondences",
        inspection.correspondences_command,
        "list the embeddings that estimate the positions of a model",
    )
    claims.add_argument("--check", action="store_true", help="check each claim numerically; exit code 1 if one fails")

    config = commands.add_parser("config", help="show a config, or the schema of configs", allow_abbrev=False)
    views = config.add_subparsers(required=True, metavar="show|schema")
    show = _command(views, "show", inspection.config_show_command, "show the resolved config, and the origin of each value")
    _takes_config(show)
    show.add_argument("--plain", action="store_true", help="without origins, as in config.yaml of a run")
    schema = _command(views, "schema", inspection.config_schema_command, "print the JSON schema of configs, for editors")
    schema.add_argument("config", metavar="CONFIG", nargs="?", help="include the entries of this config's plugins")

    _command(commands, "doctor", inspection.doctor_command, "show versions, threads, device and optional packages")


def _command(commands: Any, name: str, function: Callable[[argparse.Namespace], int], what: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=what, description=what, allow_abbrev=False)
    parser.set_defaults(command=function)
    plugin = "a Python file that defines models, datasets, embeddings, metrics or trackers"
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
    overrides = parser.add_argument("overrides", metavar="KEY=VALUE", nargs="*", help="overrides, such as inference.n_draws=500")
    overrides.completer = completion.overrides  # type: ignore[attr-defined]


def _names(argument: argparse.Action, kind: str | None = None) -> None:
    """Complete an argument by the names of the entries of a kind, or of the kind that another argument names."""
    argument.completer = completion.names(kind)  # type: ignore[attr-defined]
