"""Commands that compute, or begin a run: init, run, select, sweep, calibrate, report."""

import argparse

from latentlab.errors import ConfigError
from latentlab.processes import together
from latentlab.registry import plugins
from latentlab.study.console import print_table


def init_command(arguments: argparse.Namespace) -> int:
    from latentlab.study.starter_file import write_starter

    path, remarks = write_starter(
        arguments.name,
        arguments.model,
        data=arguments.data,
        method=arguments.method,
        embeddings=arguments.embedding,
        plugin_files=arguments.plugin,
        overwrite=arguments.overwrite,
    )
    for remark in remarks:
        print(f"note: {remark}.")
    print(f"Written: {path}. Check it, and run it by `latentlab run {path}`.")
    return 0


def run_command(arguments: argparse.Namespace) -> int:
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


def select_command(arguments: argparse.Namespace) -> int:
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


def sweep_command(arguments: argparse.Namespace) -> int:
    from latentlab.sweeps.points import plan_of
    from latentlab.sweeps.sweep import dry_run, folder_of, sweep

    plan = plan_of(arguments.config, arguments.overrides, arguments.plugin)
    if arguments.dry_run:
        table, cost = dry_run(plan, folder_of(plan, arguments.out))
        print_table(table)
        print(f"\n{cost}")
        return 0
    swept = sweep(
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
        print(f"{swept}\nWritten: {', '.join(str(path) for path in swept.written())}")
    return 0 if swept.is_complete() else 1


def calibrate_command(arguments: argparse.Namespace) -> int:
    from latentlab.study.config import load_config

    config = load_config(arguments.config, arguments.overrides, arguments.plugin)
    for key in ("executor", "memory"):
        if (value := getattr(config, key)) is not None:
            raise ConfigError(f"{key}: must be null for calibrate, which fits in one process; got {value!r}; append {key}=null.")

    from latentlab.calibration.calibrate import calibrate

    with plugins(config.plugins):
        calibration = calibrate(
            config.build_model(),
            config.build_method(),
            n_replications=arguments.n_replications,
            n_units=arguments.n_units,
            seed=config.seed,
            progress=not arguments.quiet,
        )
    print(calibration)
    if arguments.out is not None:
        calibration.save(arguments.out)
    return 0 if calibration.passed else 1


def report_command(arguments: argparse.Namespace) -> int:
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
