"""The page of a run: report.html, a self-contained file, and report.json with the same numbers."""

import json
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from latentlab.errors import MissingDependencyError, StoreError
from latentlab.files import write as write_file
from latentlab.models.base import LatentModel
from latentlab.progress import tqdm
from latentlab.report import inference, linked_panels, overview, positions, provenance, scores, summary, units
from latentlab.report.formula import typeset
from latentlab.report.items import MARKS, Section, mathematics, shown
from latentlab.report.source import Source
from latentlab.store.directory import REPORT, plain
from latentlab.store.read import Run

SECTIONS = (overview, inference, positions, linked_panels, scores, units, provenance)
"""Modules of the sections, in the order of the page."""
BY_KIND = (positions, linked_panels, scores, units)
"""Sections that the page repeats for each kind of units."""

FORMAT = 1
"""Version of report.json."""


MOST_PRINTED = 60
"""Largest number of rows of a table that is printed."""


def write(run: Run, *, model: LatentModel | None = None, progress: bool = False) -> Path:
    """Write report.html and report.json into the run's directory.

    A sentence replaces each part that a run lacks (labels, embeddings, a posterior's spread, predictive draws). The same run
    gives the same page, byte by byte.

    Args:
        run: A run with posterior and diagnostics.
        model: Its model, if it is not to be built from the config.
        progress: Whether to show a progress bar on a terminal.

    Returns:
        Path of the page.

    Raises:
        MissingDependencyError: jinja2 is not installed.
        StoreError: Posterior or diagnostics are missing, or the directory cannot be written.
    """
    source_of_page = template()
    for name in ("posterior.nc", "diagnostics.json"):
        if name not in run.info["files"]:
            raise StoreError(f"{run.path} has no {name}: there is nothing to report yet.")
    source = Source(run, given=model)
    top = summary.section(source)
    bar = tqdm(SECTIONS, desc="report", disable=None if progress else True, leave=False)
    sections = [section for module in bar for section in _sections(module, source)]
    page = source_of_page.render(
        name=run.info.get("name", run.path.name),
        status=str(run.info["status"]).replace("_", " "),
        converged=run.info["status"] != "not_converged",
        top=top,
        sections=sections,
        css=text("page.css"),
        script=text("brush.js"),
    )
    record = {"format": FORMAT, "name": run.info.get("name", run.path.name), **_record(source, top, sections)}
    write_file(run.path / REPORT[1], (json.dumps(record, indent=1, allow_nan=False) + "\n").encode())
    write_file(run.path / REPORT[0], page.encode(errors="replace"))
    return run.path / REPORT[0]


def _sections(module: Any, source: Source) -> list[Section]:
    """Return the module's section; or several, one for each kind of units and named after it."""
    if module not in BY_KIND or len(source.kinds) == 1:
        return [module.section(source)]
    found = []
    for kind in source.kinds:
        section = module.section(source.of(kind))
        items = tuple(replace(i, name=f"{i.name}-{kind}") if hasattr(i, "name") else i for i in section.items)
        found.append(Section(f"{section.name}-{kind}", f"{section.title} ({kind}s)", items))
    return found


def _record(source: Source, top: Section, sections: list[Section]) -> dict[str, Any]:
    return plain(
        {
            "status": source.run.info["status"],
            "diagnostics": source.run.diagnostics.to_dict("records"),
            "verdicts": summary.every_verdict(source),
            "summary": top.record(),
            "sections": [section.record() for section in sections],
        }
    )


def template(name: str = "page.html") -> Any:
    """Return a page's template; jinja2 escapes all text that is not marked as HTML."""
    try:
        import jinja2
        from markupsafe import Markup
    except ImportError as error:
        raise MissingDependencyError("the report", "jinja2", "report") from error
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    environment.filters["shown"] = shown
    environment.filters["mathematics"] = mathematics
    environment.filters["typeset"] = lambda text: Markup(typeset(text))
    environment.filters["embedded"] = lambda data: Markup(embedded(data))
    environment.filters["raw"] = Markup
    environment.globals.update(MARKS=MARKS, MOST_PRINTED=MOST_PRINTED)
    return environment.from_string(text(name))


def embedded(data: Any) -> str:
    r"""Convert data to JSON for a `<script>` element, with characters escaped that could end the element or begin a comment.

    Example:
        >>> embedded({"unit": "</script>"})
        '{"unit":"\\u003c/script\\u003e"}'
    """
    text = json.dumps(plain(data), separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def text(name: str) -> str:
    return files("latentlab.report").joinpath("templates", name).read_text(encoding="utf-8")
