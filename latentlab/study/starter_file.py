"""The file that `latentlab init` writes: a proposed config, with a comment on each value and each default."""

import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from latentlab import files
from latentlab.errors import ConfigError
from latentlab.registry import DATASETS, EMBEDDINGS, METHODS, MODELS, Table, plugins
from latentlab.study.commented import WIDTH, Keys, Line, layout, lines_of
from latentlab.study.config import load_config
from latentlab.study.entries import REQUIRED, Argument, arguments, compare_arguments
from latentlab.study.formulas import plain
from latentlab.study.starter import Proposal, proposal

SECTIONS: Mapping[str, Table] = {"dataset": DATASETS, "model": MODELS, "inference": METHODS}


def write_starter(  # one argument for each option of the command
    name: str,
    model: str,
    *,
    data: str | None = None,
    method: str | None = None,
    embeddings: Sequence[str] = (),
    plugin_files: Sequence[str] = (),
    overwrite: bool = False,
) -> tuple[Path, Sequence[str]]:
    """Write a commented config `NAME.yaml`, which runs, to the working directory; return its path and remarks on the data.

    Raises:
        ConfigError: The file exists, a name does not exist, or the model does not support the method.
        DataError: The data are invalid, or the model cannot be fitted to them.
    """
    path = Path(f"{name}.yaml")
    if path.exists() and not overwrite:
        raise ConfigError(f"{path}: the file exists; choose another name, or replace it by --overwrite.")
    with plugins(plugin_files):
        found = proposal(name, model, data=data, method=method, embeddings=embeddings)
        if plugin_files:
            found.config["plugins"] = list(plugin_files)
        text = starter_text(found)
    load_config(found.config)
    files.write(path, text.encode())
    return path, found.remarks


def starter_text(found: Proposal) -> str:
    """Format a proposed config as YAML with comments; options with their defaults are commented out."""
    config = found.config
    model = config["model"]["name"]
    head = [
        *(f"# {line}" for line in textwrap.wrap(plain(MODELS.describe(model)), WIDTH - 2)),
        f"# Run it by `latentlab run {config['name']}.yaml`; `latentlab help {model}` explains the model.",
        "# A line that begins with # has a default; remove the # to change it.",
    ]
    return "\n".join([*head, *(f"# Note: {remark}." for remark in found.remarks)]) + "\n" + layout(_lines(found))


def _lines(found: Proposal) -> Iterator[Line]:
    config = found.config
    for key, value in config.items():
        yield from lines_of({key: value}, lambda keys: _comment(found, keys))
        if key in SECTIONS:
            known = arguments(SECTIONS[key], value["name"])
            chosen = [one for one in known if key != "dataset" or one.is_shared or config["dataset"]["name"] != "file"]
            yield from _defaults(chosen, value)
        elif key == "compare":
            yield from _defaults(compare_arguments(), value)
    yield Line("# held_out: 0.1", "Fraction of the points that are held out of the fit and scored")


def _defaults(known: Iterable[Argument], given: Mapping[str, Any]) -> Iterator[Line]:
    for one in known:
        if one.name not in given and one.default != REQUIRED:
            yield Line(f"  # {one.name}: {one.default}", _explained(one))


def _comment(found: Proposal, keys: Keys) -> str:
    """Reason for the value of a proposed option, or else its sentence."""
    if tuple(map(str, keys)) in found.reasons:
        return found.reasons[tuple(map(str, keys))]
    value = found.config[str(keys[0])]
    if keys == ("embeddings",):
        return "None with a known correspondence accepts these data"
    if keys[0] == "embeddings":
        table, entry = EMBEDDINGS, value[keys[1]]["name"]
    elif keys[0] in SECTIONS:
        table, entry = SECTIONS[str(keys[0])], value["name"]
    elif keys[0] == "compare":
        return next(_explained(one) for one in compare_arguments() if one.name == keys[-1])
    else:
        return {"name": "Name of the run; its directory is runs/NAME", "seed": "Seed of all random numbers"}.get(str(keys[0]), "")
    if keys[-1] == "name":
        return plain(table.describe(entry))
    if keys[-1] == "path":
        return "Path of the file, relative to the folder of this config"
    return next((_explained(one) for one in arguments(table, entry) if one.name == keys[-1]), "")


def _explained(one: Argument) -> str:
    """First sentence about an argument, and its values."""
    sentence = re.split(r"(?<=[.;]) ", plain(one.sentence))[0].rstrip(".;")
    values = "" if sentence and one.values in ("true or false", "text") else one.values
    return f"{sentence} ({values})" if sentence and values else sentence or values
