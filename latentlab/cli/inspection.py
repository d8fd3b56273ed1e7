"""Commands that describe or check runs, entries of the tables, configs and the installation."""

import argparse

from latentlab.registry import DATASETS, EMBEDDINGS, METHODS, METRICS, MODELS, plugins
from latentlab.study.console import print_rows, table_lines

KINDS = {"models": MODELS, "datasets": DATASETS, "embeddings": EMBEDDINGS, "metrics": METRICS, "methods": METHODS}


def compare_command(arguments: argparse.Namespace) -> int:
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


def list_command(arguments: argparse.Namespace) -> int:
    with plugins(arguments.plugin):
        for kind in [arguments.kind] if arguments.kind else KINDS:
            table = KINDS[kind]
            if not arguments.kind:
                print(kind)
            print_rows([(name, table.describe(name)) for name in table], indent="" if arguments.kind else "  ")
    return 0


def correspondences_command(arguments: argparse.Namespace) -> int:
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


def config_show_command(arguments: argparse.Namespace) -> int:
    from latentlab.study.config import load_config

    print(load_config(arguments.config, arguments.overrides, arguments.plugin).to_yaml(), end="")
    return 0


def config_schema_command(arguments: argparse.Namespace) -> int:
    import json

    from latentlab.study.config import json_schema, load_config

    files = arguments.plugin
    if arguments.config is not None:
        files = load_config(arguments.config, (), files).plugins
    print(json.dumps(json_schema(files), indent=2))
    return 0


def doctor_command(arguments: argparse.Namespace) -> int:
    from latentlab.study.doctor import findings

    with plugins(arguments.plugin):
        rows, satisfied = findings()
    print_rows(rows)
    return 0 if satisfied else 1
