"""Tests of the display in notebooks: summaries, the page of a session's results, and progress bars."""

import json
import os
import re
import subprocess
import sys
import tempfile
from html import unescape
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch

from latentlab.comparison.compare import compare
from latentlab.comparison.result import Comparison
from latentlab.data.dataset import Dataset
from latentlab.embeddings.embed import embed
from latentlab.embeddings.embedding import Embedding
from latentlab.errors import ConfigError
from latentlab.fit import fit
from latentlab.inference.exact import Exact
from latentlab.inference.nuts import NUTS
from latentlab.models.base import LatentModel, Position
from latentlab.models.count_hmms import CategoricalHMM
from latentlab.models.gaussian_mixture import GaussianMixture
from latentlab.models.linear_vae import LinearVAE
from latentlab.models.ppca import PPCA
from latentlab.models.random_dot_product import RandomDotProduct
from latentlab.report import cards
from latentlab.study import pages
from latentlab.study.run import run
from latentlab.sweeps.sweep import sweep
from latentlab.symmetry.groups import Identity

FEW = {"metrics": ("cka",), "n_draws": 10, "n_pairs": 5, "n_permutations": 3, "progress": False}


class _Tags(HTMLParser):
    """Checks that all tags are closed, and collects the texts and the attributes that load something."""

    def __init__(self):
        super().__init__()
        self.open, self.texts, self.loaded = [], [], []

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)
        self.loaded += [value for name, value in attrs if name in ("src", "href")]

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def texts(one):
    """Texts of a summary, which must be well-formed HTML without external resources."""
    parser = _Tags()
    parser.feed(one._repr_html_())
    parser.close()
    assert (parser.open, parser.loaded) == ([], [])
    return parser.texts


@pytest.fixture(scope="module")
def fitted(iris):
    return fit(PPCA(1), iris, Exact(n_draws=200), progress=False)


@pytest.fixture(scope="module")
def compared(fitted, iris):
    return compare(fitted, [embed("pca", iris, n_latent=1), Embedding("mine", iris.x[:, :2], iris.units)], **FEW)


# -- summaries


def test_a_dataset_is_displayed_with_sizes_missing_entries_and_first_rows():
    x = np.arange(60.0).reshape(10, 6)
    x[0, 0] = np.nan
    units = [f"<b>{i}" for i in range(10)]
    dataset = Dataset({"x": x}, dims={"x": ("unit", "feature")}, units=units, labels=["a", "b"] * 5, name="<script>")
    found = texts(dataset)
    assert found[:2] == ["Dataset <script>", "10 units and 6 features; 1.7% of the entries are missing."]
    assert "Labels of the units: a and b." in found
    at = found.index("<b>0")
    assert found[at : at + 7] == ["<b>0", "–", "1", "2", "3", "4", "…"]
    assert "<b>5" not in found
    assert "The columns are standardised." in texts(dataset.standardize())
    ratings = Dataset(
        {"rating": [5, 3, 1]}, dims={"rating": ("cell",)}, units={"user": 2, "item": 2},
        index={"user": ("cell", [0, 1, 1]), "item": ("cell", [0, 0, 1])},
    )  # fmt: skip
    assert texts(ratings)[1] == "3 cells, 2 users and 2 items; no entry is missing."


def test_a_model_is_displayed_with_its_generative_process():
    html, found = PPCA(2)._repr_html_(), texts(PPCA(2))
    assert html.count('<svg class="formula"') >= 3
    assert found[:2] == ["Model ppca", PPCA.__doc__.partition("\n\n")[0].replace("\n", " ").strip()]
    at = found.index("n_latent")
    assert found[at + 1] == "2"
    assert texts(PPCA(2).frozen({}))


@pytest.mark.parametrize("model", [GaussianMixture(2), LinearVAE(1), RandomDotProduct(2), CategoricalHMM(2, 3)])
def test_models_of_all_kinds_are_displayed(model):
    assert texts(model)[0] == f"Model {model.name}"


def test_a_fit_is_displayed_with_failed_checks(fitted, iris):
    found = texts(fitted)
    assert found[0] == "Fit of ppca to iris"
    n_passed = int((fitted.diagnostics()["verdict"] == "pass").sum())
    assert f"Converged; {n_passed} checks passed." in found or f"Converged; {n_passed} check passed." in found
    short = fit(PPCA(1), iris, NUTS(n_chains=2, n_warmup=0, n_draws=4, compiled=False), progress=False)
    table = short.diagnostics()
    failed = table[table["verdict"] == "fail"]
    assert len(failed)
    found = texts(short)
    doubtful = table[table["verdict"].isin(["fail", "warn"])]
    assert any(text.startswith(f"Not converged: {len(failed)} check") for text in found)
    assert found.count("fail") == (doubtful.head(cards.MOST_ROWS)["verdict"] == "fail").sum()
    assert f'<td style="color: {cards.COLORS["fail"]}">fail</td>' in short._repr_html_()
    assert type(table) is pd.DataFrame


def test_a_comparison_is_displayed_with_verdicts_and_sentences(compared):
    found = texts(compared)
    row = compared.verdicts.iloc[0]
    at = found.index("pca")
    assert found[at : at + 4] == ["pca", row["map"], row["alignment"], row["verdict"]]
    for label, sentence in compared.sentences().items():
        assert f"{label}: {sentence}" in found
    assert set(compared.notes) <= set(found)


def test_embeddings_are_displayed_with_their_first_rows(iris):
    found = texts(embed("pca", iris))
    assert found[:3] == ["Embedding pca", "Embedding('pca', unit: 150, latent: 2)", "Options: whiten = no."]
    assert found[found.index("unit") + 3] == "0"
    several = Embedding("svd", {"user": [[1.0], [2.0]], "item": [[3.0]]}, {"user": ["ann", "bob"], "item": ["alien"]})
    assert {"ann", "bob", "alien"} <= set(texts(several))
    assert "0.5" in texts(Embedding("seeds", np.full((2, 3, 1), 0.5), units=["a", "b", "c"]))


def test_a_sweep_is_displayed_with_swept_values_and_scores(tmp_path, monkeypatch):
    monkeypatch.setattr("latentlab.study.stages.write_page", lambda run, progress: run.path)
    config = {
        "name": "toy",
        "dataset": {"name": "linear_gaussian", "n_units": 20, "n_features": 3, "n_latent": 1},
        "model": {"name": "ppca", "n_latent": 1},
        "inference": {"name": "exact", "n_draws": 12},
        "sweep": {"grid": {"model.n_latent": [1, 2]}},
    }
    found = texts(sweep(config, executor="serial", out=tmp_path / "sweep", progress=False))
    assert found[0] == "Sweep toy"
    at = found.index("point-0001")
    assert found[at : at + 3] == ["point-0001", "2", "done"]


def test_long_tables_are_cut():
    frame = pd.DataFrame({"a": range(30)})
    html = cards._table(frame)
    assert html.count("<tr>") == 21
    assert "and 10 more rows" in html
    assert cards._table(frame[:0]) == ""


# -- pages


class Trait(LatentModel):
    """One trait that is defined in a session."""

    name = "session_trait"
    dims = {"z": ("unit",)}
    position = Position("z")
    symmetry = Identity()
    methods = ("nuts", "map")

    def model(self, x):
        with pyro.plate("unit", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z[:, None].expand(x.shape), 1.0).to_event(1), obs=x)


@pytest.mark.fixed
def test_the_page_of_a_comparison_has_all_sections_and_leaves_no_file(compared, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    page = compared.report()
    assert list(tmp_path.iterdir()) == []
    headings = [unescape(text) for text in re.findall(r"<h2[^>]*>(.*?)</h2>", page.html)]
    assert len(headings) >= 7
    assert "ppca, iris" in page.html
    assert "no run directory" in page.html
    assert str(tmp_path) not in page.html
    assert "latentlab run" not in page.html
    rows = [unescape(re.sub("<[^>]*>", " ", row)).split() for row in re.findall(r"<tr>.*?</tr>", page.html, flags=re.DOTALL)]
    for label in ("pca", "mine"):
        verdicts = compared.verdicts.query("embedding == @label and map == 'raw'")["verdict"]
        assert any(row[:1] == [label] and set(verdicts) <= set(row) for row in rows), label
    path = page.save(tmp_path / "page.html")
    assert path.read_text(encoding="utf-8") == page.html
    frame = page._repr_html_()
    assert frame.startswith("<iframe srcdoc=")
    assert unescape(frame).count(page.html) == 1
    assert '"' not in frame.partition('srcdoc="')[2].partition('"')[0]


@pytest.mark.fixed
def test_the_page_of_a_fit_describes_a_model_of_the_session(iris):
    found = fit(Trait(), iris, NUTS(n_chains=2, n_warmup=40, n_draws=20, compiled=False), progress=False)
    page = found.report()
    assert "One trait that is defined in a session" in page.html or "one trait that is defined in a session" in page.html
    assert "No embedding was compared." in page.html


def test_a_comparison_without_its_fit_has_no_page(compared):
    with pytest.raises(ConfigError, match="report: the comparison must have its `fit`"):
        Comparison(compared.scores, compared.verdicts, compared.parts).report()


# -- a session of IPython


def test_the_page_of_a_loaded_fit_has_the_origin_of_its_run(tmp_path):
    config = {"name": "toy", "dataset": {"name": "iris"}, "model": {"name": "ppca", "n_latent": 1}}
    loaded = run({**config, "inference": {"name": "exact", "n_draws": 10}}, out=tmp_path / "run", progress=False)
    origin = pages._info(loaded.fit, None)
    for key in ("started", "versions", "hardware", "commit", "threads"):
        assert origin[key] == loaded.info[key], key
    assert "started" not in pages._info(fit(PPCA(1), loaded.data, Exact(n_draws=10), progress=False), None)


SESSION = """
import json, sys
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance()
shell.config.IPKernelApp.name = "kernel"  # as in the kernel of a notebook
cells = '''
import latentlab as ll
dataset = ll.load_dataset("iris")
model = ll.models.PPCA(1)
fitted = ll.fit(model, dataset, ll.NUTS(n_chains=2, n_warmup=20, n_draws=20, compiled=False))
pca = ll.embed("pca", dataset, n_latent=1)
comparison = ll.compare(fitted, [pca], metrics=("cka",), n_draws=10, n_pairs=5, n_permutations=3)
'''
assert shell.run_cell(cells).success
found = {}
for name in ("dataset", "model", "fitted", "pca", "comparison", "fitted.diagnostics()"):
    result = shell.run_cell(name)
    assert result.success, name
    found[name] = shell.display_formatter.format(result.result)[0]
print("\\n" + json.dumps(found))
"""


@pytest.mark.fixed
def test_a_session_of_ipython_displays_summaries_and_progress_without_warnings(tmp_path):
    """In the kernel of a notebook without ipywidgets, tqdm alone would warn, and hide its bars."""
    environment = {**os.environ, "IPYTHONDIR": str(tmp_path / "ipython"), "PYTHONWARNINGS": ""}
    done = subprocess.run(
        [sys.executable, "-W", "error::FutureWarning", "-c", SESSION],
        capture_output=True,
        text=True,
        env=environment,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    titles = {name: re.search("<b>(.*?)</b>", data["text/html"]) for name, data in found.items()}
    assert {name: title.group(1) for name, title in titles.items() if title} == {
        "dataset": "Dataset iris",
        "model": "Model ppca",
        "fitted": "Fit of ppca to iris",
        "pca": "Embedding pca",
        "comparison": "Comparison",
    }
    assert 'class="dataframe"' in found["fitted.diagnostics()"]["text/html"]
    assert "NUTS, 2 chains" in done.stderr
    assert "Warning" not in done.stderr
