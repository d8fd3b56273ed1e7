"""Page of a fit or comparison of a Python session, made from a temporary run directory."""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, fields
from html import escape
from pathlib import Path
from typing import Any

from latentlab.comparison.result import Comparison
from latentlab.errors import ConfigError
from latentlab.files import write as write_file
from latentlab.fit import Fit
from latentlab.report.page import template, write
from latentlab.store.data import DATA, data_tree
from latentlab.store.directory import RunDirectory, plain
from latentlab.store.read import read
from latentlab.study.job import EMBEDDINGS, POSTERIOR, circumstances
from latentlab.study.written import embeddings_tree, write_comparison, write_diagnostics
from latentlab.study.yaml import dump

FRAME = '<iframe srcdoc="{page}" style="width: 100%; height: 80vh; border: 1px solid #888"></iframe>'


@dataclass(frozen=True, repr=False)
class Page:
    """A self-contained page, which a notebook displays in a frame.

    Args:
        html: The page.
    """

    html: str

    def __repr__(self) -> str:
        return f"Page({len(self.html) / 1e6:.1f} MB; `save(path)` writes it)"

    def _repr_html_(self) -> str:
        return FRAME.format(page=escape(self.html))

    def save(self, path: str | Path) -> Path:
        """Write the page to a file, and return the file's path.

        Raises:
            StoreError: The file cannot be written.
        """
        write_file(Path(path), self.html.encode(errors="replace"))
        return Path(path)


def page_of(result: Fit | Comparison) -> Page:
    """Return the page of a fit, or of a comparison with its fit and embeddings.

    Raises:
        ConfigError: The comparison was not made by `compare`, and has no fit.
        MissingDependencyError: jinja2 is not installed.
    """
    fit = result if isinstance(result, Fit) else result.fit
    if fit is None:
        raise ConfigError("report: the comparison must have its `fit`, as a result of `compare` has; got none.")
    template()
    comparison = result if isinstance(result, Comparison) else None
    with tempfile.TemporaryDirectory() as folder, RunDirectory(Path(folder) / "run") as directory:
        directory.begin(_info(fit, comparison), dump(plain(_config(fit, comparison))))
        directory.write_tree(DATA, data_tree(fit.dataset))
        directory.write_tree(POSTERIOR, fit.data)
        write_diagnostics(directory, fit, fit.diagnostics())
        if comparison is not None:
            kinds = {kind: names for kind, names in fit.dataset.kinds.items() if kind in fit.model.kinds}
            directory.write_tree(EMBEDDINGS, embeddings_tree(comparison.embeddings, kinds, fit.model.position_columns()))
            write_comparison(directory, comparison)
        directory.finish("done" if fit.converged else "not_converged")
        return Page(write(read(directory.path), model=fit.model).read_text(encoding="utf-8"))


def _info(fit: Fit, comparison: Comparison | None) -> dict[str, Any]:
    """Return the entries of `run.json`; without `command`, since no command repeats a fit of a session."""
    embeddings = comparison.embeddings if comparison is not None else ()
    return {
        "name": f"{fit.model.name}, {fit.dataset.name}",
        "seed": fit.seed,
        **(fit.origin or circumstances()),
        "data": {"name": fit.dataset.name, "sha256": fit.dataset.digest(), **fit.dataset.sizes},
        "notes": [*fit.dataset.notes(), *(f"{one.label}: {note}" for one in embeddings for note in one.notes)],
        "warnings": [],
        "seconds": {},
    }


def _config(fit: Fit, comparison: Comparison | None) -> Mapping[str, Any]:
    """Return a config that describes the fit on the page; it is not complete."""
    method: Any = fit.method
    embeddings = comparison.embeddings if comparison is not None else ()
    return {
        "seed": fit.seed,
        "dataset": {"name": fit.dataset.name, "standardize": fit.dataset.transform is not None},
        "model": {"name": fit.model.name, **fit.model.hyperparameters()},
        "inference": {"name": method.name, **{one.name: getattr(method, one.name) for one in fields(method)}},
        "embeddings": [{"name": one.name, "label": one.label, **one.options} for one in embeddings],
    }
