"""Tests of the page and report.json: self-contained, escaped, complete and consistent."""

import json
import re
import shutil
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import matplotlib
import numpy as np
import pytest
import xarray as xr
from helpers import items, table, words
from matplotlib import pyplot

from latentlab.data.load import load_dataset
from latentlab.errors import MissingDependencyError, StoreError
from latentlab.report import positions, scores
from latentlab.report.items import MARKS, mathematics, shown
from latentlab.report.page import embedded, write
from latentlab.report.source import Source
from latentlab.store.read import Run, read
from latentlab.study.run import run

FETCHING = ("src", "srcset", "href", "xlink:href", "action", "formaction", "poster", "data", "background", "manifest", "ping")
HEAD = ("!DOCTYPE", "html", "head", "meta", "title", "style", "body")


class Page(HTMLParser):
    """Parses a page into tags with attributes and text of tables, paragraphs, script and style."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self.tables: dict[str, list[list[str]]] = {}
        self._open: list[str] = []
        self._table = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "br", "input", "path", "use", "image", "rect"):
            self._open.append(tag)
        if tag == "table":
            self._table = str(dict(attrs)["id"]).removeprefix("table-")
            self.tables[self._table] = []
        if tag == "tr" and self._table:
            self.tables[self._table].append([])
        if tag in ("td", "th"):
            self.tables[self._table][-1].append("")

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop() != tag:
            pass
        if tag == "table":
            self._table = ""

    def handle_data(self, data: str) -> None:
        self.texts.setdefault(self._open[-1] if self._open else "", []).append(data)
        if self._table and self._open and {"td", "th"} & set(self._open):
            self.tables[self._table][-1][-1] += data


def taken_apart(found: Run) -> Page:
    return Page((found.path / "report.html").read_text(encoding="utf-8"))


def record(found: Run) -> dict[str, Any]:
    return json.loads((found.path / "report.json").read_text(encoding="utf-8"))


def test_the_page_fetches_nothing(any_run: Run):
    page = taken_apart(any_run)
    for tag, attributes in page.tags:
        assert tag not in ("link", "iframe", "object", "embed", "base", "form"), tag
        for name in FETCHING:
            value = attributes.get(name)
            assert value is None or value.startswith(("#", "data:image/png")), (tag, name, value)
        assert not any(name.startswith("on") for name in attributes), (tag, attributes)
    assert all("src" not in attributes for tag, attributes in page.tags if tag == "script")
    assert not re.search(r"@import|url\((?!#|\"#)", "".join(page.texts["style"]))
    script = "".join(page.texts["script"])
    assert not re.search(r"fetch\(|XMLHttpRequest|WebSocket|import\(|sendBeacon|https?://", script)
    policy = next(a["content"] for t, a in page.tags if t == "meta" and a.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in str(policy)


def test_user_text_is_escaped(hostile: Run):
    page = taken_apart(hostile)
    tags = [tag for tag, _ in page.tags]
    assert tags.count("script") == 2, "the panels' data and the page's own script"
    assert not {"img", "b", "i"} & set(tags)
    cells = {cell for rows in page.tables.values() for row in rows for cell in row}
    assert {"<script>alert(1)</script>", "<i>own", "<b>bold</b>"} <= cells
    assert any(cell.startswith('"><img src=x onerror=alert(') for cell in cells)
    drawn = page.texts["text"]
    assert {"<script>alert(1)</script>", "a & b", "$x_{"} <= set(drawn), "labels are legends as they are, formulas too"


def test_the_panels_data_cannot_end_its_script(hostile: Run):
    text = (hostile.path / "report.html").read_text(encoding="utf-8")
    inside = text.split('<script type="application/json" id="brush-data">')[1].split("</script>")[0]
    assert "<" not in inside
    given = json.loads(inside)
    assert {"kind": "panels", **given} == items(hostile, "panels")[0]
    assert given["labels"][0] in ("<script>alert(1)</script>", "a & b", "$x_{")
    assert json.loads(embedded({"a": "</script><!--", "b": [1.5, float("nan")]})) == {"a": "</script><!--", "b": [1.5, None]}


def test_the_json_contains_the_numbers_of_the_page(any_run: Run):
    page = taken_apart(any_run)
    found = items(any_run, "table")
    assert len(found) > 4
    assert {item["name"] for item in found if item["rows"]} == set(page.tables)
    for item in found:
        digits = 4 if item["name"] in ("diagnostics", "modes") else 3
        for record_row, row in zip(item["rows"], page.tables.get(item["name"], [[]])[1:], strict=True):
            for (column, value), cell in zip(record_row.items(), row, strict=True):
                infinite = {"inf": "∞", "-inf": "−∞"}
                expected = infinite.get(value) if isinstance(value, str) and value in infinite else shown(value, digits)
                expected = mathematics(value) if column == "quantity" and isinstance(value, str) else expected
                marked = column.startswith("verdict") and value in MARKS
                assert " ".join(cell.split()) == (f"{MARKS[value]} {value}" if marked else " ".join(str(expected).split())), (
                    column
                )


def test_page_numbers_match_the_run(hostile: Run):
    data = hostile.comparison
    for alignment in data["alignment"].values.astype(str):
        rows = table(hostile, f"verdicts-{alignment}")
        taken = data.sel(alignment=alignment, embedding=data["verdict"].sel(alignment=alignment) != "")
        assert [row["delta"] for row in rows] == pytest.approx(taken["delta"].values, rel=1e-12)
        assert [row["verdict"] for row in rows] == taken["verdict"].values.tolist()
    assert [row["embedding"] for row in table(hostile, "verdicts-affine")] == ["<i>own"], "three columns meet two by a linear map"
    told = {(row["check"], row["quantity"]): row["verdict"] for row in table(hostile, "diagnostics")}
    counted = hostile.diagnostics.query("verdict != 'not applicable'")
    assert told == {(row.check, row.quantity): row.verdict for row in counted.itertuples()}
    scores = {(r["metric"], r["embedding"], str(r["seed"]), r["map"]): r["mean"] for r in table(hostile, "scores")}
    assert scores == {(r.metric, r.embedding, str(r.seed), r.map): r.mean for r in hostile.scores.itertuples()}
    worst = table(hostile, "units-by-embedding")[0]
    distances = data["mahalanobis"].sel(embedding="pca")
    assert worst["unit"] == str(distances["unit"].values[int(np.argmax(distances.values))])
    assert worst["disagreement"] == pytest.approx(float(distances.max()), rel=1e-12)


def test_the_summary_lists_the_verdict_of_each_embedding(hostile: Run):
    told = {row["embedding"]: row for row in table(hostile, "verdicts")}
    assert {"pca", "pca (mapped)", "<i>own", "tsne, 2 seeds"} == set(told)
    first = hostile.comparison.sel(embedding="pca").isel(alignment=0)
    assert told["pca"]["verdict, orthogonal"] == str(first["verdict"].values)
    assert told["pca"]["delta, orthogonal"] == shown(float(first["delta"]))
    seeds = hostile.comparison.sel(embedding=hostile.comparison["name"] == "tsne").isel(alignment=0)["delta"].values
    low, high = shown(float(seeds.min())), shown(float(seeds.max()))
    assert told["tsne, 2 seeds"]["delta, orthogonal"] == (low if low == high else f"{low} to {high}")
    assert "Interpret all results with caution" in words(hostile), "120 draws are too few"


def test_all_figures_tables_and_texts_are_present(hostile: Run):
    figures = {item["name"] for item in items(hostile, "figure")}
    assert figures == {
        *("trace", "rank", "energy", "khat", "positions", "loadings", "predictive"),
        *("deltas", "scores", "labels", "disagreement"),
    }
    said = words(hostile)
    for phrase in ("held out of the fit", "1 entry is missing", "The prior sensitivity", "predicting the largest class"):
        assert phrase in said
    assert table(hostile, "worst-units-values")[0].keys() >= {"<b>bold</b>", "it's", "c\\d", "e"}
    assert [row["seeds"] for row in table(hostile, "seeds")] == [2]


def test_missing_parts_of_a_run_are_explained(bare: Run, wide: Run):
    said = words(bare)
    for phrase in (
        "Intervals are too narrow",
        "The configuration contains no embedding",
        "No embedding was compared",
        "R-hat, effective sample sizes, LOO and prior sensitivity require a full posterior",
    ):
        assert phrase in said
    assert "energy" not in {item["name"] for item in items(bare, "figure")}
    assert record(bare)["verdicts"] == []
    assert "The units have no known labels" in words(wide)
    assert "elbo" in {item["name"] for item in items(wide, "figure")}


def test_verdicts_carry_a_note_if_the_fit_did_not_converge(hostile: Run, mixture: Run):
    remark = "the fit did not converge"
    failed = "fail" in set(hostile.diagnostics["verdict"])
    assert failed, "80 steps of warm-up and 60 draws"
    for name in ("verdicts", "verdicts-orthogonal"):
        assert {row["remark"] for row in table(hostile, name)} == {remark}
    lines = [line for line in record(hostile)["summary"]["items"][1]["lines"] if "(delta" in line]
    assert lines
    assert all(remark in line for line in lines)
    sound = replace(mixture, info=mixture.info)
    vars(sound)["diagnostics"] = mixture.diagnostics.assign(verdict="pass")
    assert Source(sound).unconverged == ""
    assert Source(hostile).unconverged == remark


def test_the_glossary_states_how_draws_were_split(hostile: Run, wide: Run):
    verdict = {run.path: table(run, "terms")[0]["meaning"] for run in (hostile, wide)}
    assert verdict[hostile.path].startswith("Every second chain is held out; the other chains are the reference half")
    assert verdict[wide.path].startswith("The first draws are the reference half and the last draws are held out")


def test_descriptions_of_hyperparameters_have_no_code_marks(any_run: Run):
    rows = [row for item in items(any_run, "table") if item["name"] in ("hyperparameters", "embeddings") for row in item["rows"]]
    assert rows
    assert not [row for row in rows if "`" in str(row)]


def test_every_check_has_a_meaning_and_a_remedy(any_run: Run):
    """The folded table has one row for each check in the diagnostics of the run."""
    rows = table(any_run, "check-meanings")
    assert {row["check"] for row in rows} == set(any_run.diagnostics["check"])
    assert len({row["check"] for row in rows}) == len(rows)
    assert all(row["meaning"] and row["if it fails or warns"] for row in rows)


def test_held_out_sequences_are_named_as_sequences():
    info = {"held_out": {"elpd": -30.0, "se": 1.0, "n_units": 3.0}}
    source: Any = SimpleNamespace(run=SimpleNamespace(info=info), model=SimpleNamespace(offers={"leave_one_out"}))
    assert positions._held_out(source)[0].record()["lines"][0].startswith("3 sequences were held out of the fit")
    info["held_out"]["n_units"] = 1.0
    assert positions._held_out(source)[0].record()["lines"][0].startswith("1 sequence was held out of the fit")


def test_the_page_is_valid_html_with_resolved_links(any_run: Run):
    page = taken_apart(any_run)
    ids = [attributes["id"] for _, attributes in page.tags if attributes.get("id")]
    assert len(ids) == len(set(ids)), "each id once"
    links = [str(value)[1:] for _, a in page.tags for n in ("href", "xlink:href") if (value := a.get(n)) and str(value)[0] == "#"]
    assert set(links) <= set(ids)
    clips = re.findall(r"url\(#([^)]+)\)", (any_run.path / "report.html").read_text(encoding="utf-8"))
    assert clips
    assert set(clips) <= set(ids)
    pictures = [a for tag, a in page.tags if tag == "svg"]
    assert all(a.get("role") == "img" and a.get("aria-label") for a in pictures)
    tags = [tag for tag, _ in page.tags]
    assert tags.count("caption") == tags.count("table") > 3
    assert tags.count("h2") == 8
    assert "@media print" in "".join(page.texts["style"])


def test_pages_are_reproducible_and_leave_no_global_state(any_run: Run):
    paths = [any_run.path / name for name in ("report.html", "report.json")]
    settings, figures = dict(matplotlib.rcParams), pyplot.get_fignums()
    state = np.random.get_state()[1].tolist()
    write(read(any_run.path))
    before = [path.read_bytes() for path in paths]
    assert write(read(any_run.path)) == paths[0]
    assert [path.read_bytes() for path in paths] == before
    assert dict(matplotlib.rcParams) == settings
    assert pyplot.get_fignums() == figures
    assert np.random.get_state()[1].tolist() == state


def test_a_page_needs_only_the_files_of_its_run(hostile: Run, tmp_path: Path):
    """Data files may be missing, since a run stores the fitted data. Older runs load their data or lack labels."""
    moved = copy_of_run(hostile, tmp_path)
    before = (hostile.path / "report.html").read_text(encoding="utf-8")
    gone = {**moved.config, "dataset": {**moved.config["dataset"], "path": str(tmp_path / "gone.csv")}}
    write(replace(moved, config=gone))
    assert "label" in table(moved, "positions")[0]
    assert table(moved, "positions") == table(hostile, "positions")
    assert len((moved.path / "report.html").read_text(encoding="utf-8")) > 0.9 * len(before)
    files = {name: entry for name, entry in moved.info["files"].items() if name != "data.nc"}
    older = {**moved.info, "files": files}
    write(Run(moved.path, hostile.config, older))
    assert table(moved, "positions") == table(hostile, "positions")
    write(Run(moved.path, gone, older))
    assert "The run has no data.nc, and its data set could not be loaded or has changed" in words(moved)
    assert "label" not in table(moved, "positions")[0]


def test_older_runs_with_dropped_columns_have_a_page(hostile: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A column that is constant in the training units only is in the data set but not in the fit."""
    moved = copy_of_run(hostile, tmp_path)
    dataset = load_dataset(**hostile.config["dataset"]).raw()
    names = [*dataset.features.astype(str), "one more"]
    x = np.column_stack([dataset.x, np.arange(len(dataset.x)) == 0])
    wider = replace(dataset, arrays={"x": x}, mask=None, truth={}, truth_dims={}, coords={**dataset.coords, "feature": names})
    monkeypatch.setattr("latentlab.report.reload.load_dataset", lambda **_: wider)
    files = {name: entry for name, entry in moved.info["files"].items() if name != "data.nc"}
    write(
        Run(moved.path, hostile.config, {**moved.info, "files": files, "data": {**moved.info["data"], "sha256": wider.digest()}})
    )
    assert table(moved, "positions") == table(hostile, "positions")


def test_a_missing_plugin_leaves_the_page_without_its_description(hostile: Run, tmp_path: Path):
    moved = copy_of_run(hostile, tmp_path)
    changed = {**moved.config, "model": {"name": "elsewhere", "n_latent": 2}}
    write(replace(moved, config=changed))
    assert "“elsewhere” is from a plugin" in words(moved)
    assert "pca (mapped)" not in [panel["title"] for panel in items(moved, "panels")[0]["panels"]]


def test_missing_jinja2_is_reported_with_its_extra(bare: Run, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(MissingDependencyError, match=r"the report needs the package 'jinja2'.*latentlab\[report\]"):
        write(bare)


def test_an_unfinished_run_has_no_page(bare: Run):
    files = {name: entry for name, entry in bare.info["files"].items() if name != "diagnostics.json"}
    with pytest.raises(StoreError, match=r"no diagnostics.json: there is nothing to report yet"):
        write(replace(bare, info={**bare.info, "files": files}))


@pytest.mark.slow
def test_the_page_of_1797_units_has_a_few_megabytes(tmp_path: Path):
    config = {
        "name": "digits",
        "dataset": {"name": "digits", "drop_constant": True},
        "model": {"name": "ppca", "n_latent": 2},
        "inference": {"name": "exact", "n_draws": 100},
        "embeddings": [{"name": "pca"}, {"name": "factor_analysis"}, {"name": "kernel_pca"}],
        "compare": {"n_draws": 4, "n_pairs": 2, "n_permutations": 1},
    }
    found = run(config, out=tmp_path / "digits", progress=False)
    assert (found.path / "report.html").stat().st_size < 3_000_000
    assert len(items(found, "panels")[0]["units"]) == 1797


def copy_of_run(found: Run, folder: Path) -> Run:
    shutil.copytree(found.path, folder / "run")
    return read(folder / "run")


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        ("none", "The model has no symmetry."),
        ("nothing", "The model has no symmetry."),  # as in files of earlier versions
        ("rotation, translation", "The model is invariant under rotation and translation of the positions."),
        ("linear", "The model is invariant under linear transformation of the positions."),
    ],
)
def test_the_symmetry_is_named_above_the_verdicts(stored, expected, monkeypatch):
    data = xr.Dataset(coords={"alignment": ["fixed"], "embedding": ["pca"]}, attrs={"ignores": stored, "alpha": 0.05})
    source = Source(None)
    for name, value in (("compared", True), ("comparison", data), ("is_discrete", False)):
        monkeypatch.setattr(Source, name, value)
    assert expected in scores._alignment_text(source)[0]


@pytest.mark.parametrize(("stored", "is_changed"), [("none", False), ("nothing", False), ("rotation", True)])
def test_positions_without_a_symmetry_are_not_aligned(stored, is_changed, monkeypatch, rng):
    """The attribute was `nothing` in earlier versions."""
    mean = rng.normal(size=(8, 2))
    for name, value in (("compared", True), ("comparison", xr.Dataset(attrs={"ignores": stored})), ("mean", mean)):
        monkeypatch.setattr(Source, name, value)
    found = Source(None).aligned(3 * mean)
    assert np.allclose(found, 3 * mean) is not is_changed
