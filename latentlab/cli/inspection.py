"""Commands that describe or check runs, entries of the tables, configs and the installation."""

import argparse

from latentlab.errors import ConfigError, unknown
from latentlab.registry import KINDS, plugins
from latentlab.study.console import print_rows


def compare_command(arguments: argparse.Namespace) -> int:
    from latentlab.study.several import compare_runs

    with plugins(arguments.plugin):
        found = compare_runs(arguments.runs)
    print(found)
    if arguments.out is not None:
        print(f"\nWritten: {', '.join(map(str, found.save(arguments.out)))}")
    return 0


def list_command(arguments: argparse.Namespace) -> int:
    with plugins(arguments.plugin):
        if arguments.kind is None:
            for kind, table in KINDS.items():
                print(kind)
                print_rows([(name, table.describe(name)) for name in table], indent="  ")
            print("\nThe arguments of these entries: latentlab list KIND. One entry in full: latentlab help NAME.")
            return 0

        from latentlab.study.entry_text import entry_text, table_text

        table = KINDS[arguments.kind]
        print("\n\n\n".join(entry_text(table, name) for name in arguments.names) or table_text(table))
    return 0


def help_command(arguments: argparse.Namespace) -> int:
    """Print the help of a command, or all entries of a name in full."""
    if arguments.name is None or arguments.name in arguments.commands:
        arguments.commands.get(arguments.name, arguments.parser).print_help()
        return 0
    with plugins(arguments.plugin):
        found = [table for table in KINDS.values() if arguments.name in table]
        if not found:
            names = {*arguments.commands, *(name for table in KINDS.values() for name in table)}
            closest = unknown("command or entry", arguments.name, names).partition(" Valid:")[0]
            raise ConfigError(f"{closest} `latentlab list` has all entries.")

        from latentlab.study.entry_text import entry_text

        print("\n\n\n".join(entry_text(table, arguments.name) for table in found))
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
    from latentlab.study.origins import with_origins

    options = arguments.config, arguments.overrides, arguments.plugin
    print(load_config(*options).to_yaml() if arguments.plain else with_origins(*options), end="")
    return 0


def config_schema_command(arguments: argparse.Namespace) -> int:
    import json

    from latentlab.study.config import content, json_schema

    files = [*arguments.plugin]
    if arguments.config is not None:
        files += content(arguments.config)[0].get("plugins", [])
    print(json.dumps(json_schema(files), indent=2))
    return 0


def doctor_command(arguments: argparse.Namespace) -> int:
    from latentlab.study.doctor import findings

    with plugins(arguments.plugin):
        rows, satisfied = findings()
    print_rows(rows)
    return 0 if satisfied else 1
