"""Tests of figures, formulas, docstrings and text."""

import re

import numpy as np
import pytest

from latentlab.models.factor_analysis import FactorAnalysis
from latentlab.models.ppca import PPCA
from latentlab.registry import METHODS, METRICS, MODELS
from latentlab.report.docstrings import docs
from latentlab.report.figure import COLORS, MARKERS, MOST_CLASSES, OTHER, Classes, draw_figure, feature
from latentlab.report.formula import typeset
from latentlab.report.inference import places
from latentlab.report.items import Table, shown


def test_classes_differ_in_colour_and_shape():
    classes = Classes(np.array([str(i) for i in range(MOST_CLASSES)]), MOST_CLASSES)
    pairs = {(classes.color(i), classes.marker(i)) for i in range(MOST_CLASSES)}
    assert len(pairs) == MOST_CLASSES
    assert len({classes.marker(i) for i in range(MOST_CLASSES)}) == MOST_CLASSES == len(MARKERS)
    assert classes.names == [str(i) for i in range(MOST_CLASSES)], "numbers in their own order"


def test_too_many_classes_are_combined():
    labels = np.repeat([f"c{i}" for i in range(30)], np.arange(30) + 1)
    classes = Classes(labels, len(labels))
    assert len(classes.names) == MOST_CLASSES
    assert classes.names[-1] == OTHER
    kept = {f"c{i}" for i in range(30 - MOST_CLASSES + 1, 30)}
    assert set(classes.names[:-1]) == kept, "the most frequent ones"
    assert all((classes.names[code] == label) == (label in kept) for code, label in zip(classes.codes, labels, strict=True))


def luminance(color: str) -> float:
    channel = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channel]
    return float(np.dot([0.2126, 0.7152, 0.0722], linear))


def test_colours_are_visible_on_white():
    assert min((1.05) / (luminance(color) + 0.05) for color in COLORS) > 1.8


def test_text_in_figures_is_not_changed():
    label = 'a<b> & "c" $x_{ \\frac'

    def draw(canvas):
        axes = canvas.subplots()
        axes.plot([0, 1], [0, 1], label=label)
        axes.set_title(label)
        axes.set_xlabel("漢字")
        axes.legend()

    svg = draw_figure("one", "", 'alt "quoted" <tag>', (3, 2), draw).svg
    assert svg.startswith('<svg class="drawing" role="img" aria-label="alt &quot;quoted&quot; &lt;tag&gt;" viewBox="0 0 216 144"')
    assert svg.endswith("</svg>")
    assert "<b>" not in svg
    assert svg.count("a&lt;b&gt; &amp;") == 2
    assert "漢字" in svg
    assert "http" not in svg
    assert "<!--" not in svg
    assert set(re.findall(r'\bid="([a-z]+)-', svg)) == {"one"}


def test_formulas_are_rendered_and_text_is_escaped():
    html = typeset(r"Here $x_n \sim N(0, \sigma^2)$ & `a<b` <i>, $$ y = W z $$ end, $\nonsense{$ too.")
    assert html.count('<svg class="formula"') == 2
    assert 'aria-label="x_n \\sim N(0, \\sigma^2)"' in html
    assert "<code>a&lt;b</code> &lt;i&gt;" in html
    assert '<span class="display"><svg' in html
    assert "<code>\\nonsense{</code>" in html
    heights = [float(h) for h in re.findall(r"height:([\d.]+)px", html)]
    assert all(10 < h < 40 for h in heights)


@pytest.mark.parametrize("model", [PPCA, FactorAnalysis])
def test_the_generative_process_is_typeset_completely(model: type):
    said = docs(model)
    html = "".join(map(typeset, said.paragraphs))
    assert html.count('<span class="display">') == 2
    assert "<code>" not in html, "every formula is within what can be drawn"
    assert set(said.arguments) == set(model(2).hyperparameters())
    assert said.references


def test_models_methods_and_metrics_have_summaries():
    for kind in (MODELS, METHODS, METRICS):
        for name in kind:
            assert docs(kind.load(name)).summary.endswith("."), name


def test_numbers_are_formatted_with_significant_digits():
    assert [shown(v) for v in (-0.0123456, 1e-20, 1999.5, -12345.6, 3e9, 1.0, np.int64(12345), np.float64(2.5))] == [
        *("−0.0123", "0", "2\N{NO-BREAK SPACE}000", "−12\N{NO-BREAK SPACE}346", "3e+09", "1", "12\N{NO-BREAK SPACE}345", "2.5"),
    ]
    assert shown(1.00851, 4) == "1.009"
    assert shown([0.1, "a"]) == "0.1, a"


def test_labels_of_neighbouring_lines_do_not_overlap():
    assert len(set(places([258, 259, 260], 300))) == 3
    assert places([10, 150, 290], 300) == [places([0], 300)[0]] * 3


def test_numeric_feature_names_are_prefixed():
    assert [feature(name) for name in ("0", "12", "proline", "1.5")] == ["feature 0", "feature 12", "proline", "1.5"]


def test_numeric_columns_of_a_table_are_recognised():
    table = Table.of("t", "c", [{"a": 1.0, "b": "x", "c": None}, {"a": None, "b": 2, "c": True}])
    assert table.numeric == (True, False, False)
    assert table.record()["rows"] == [{"a": 1.0, "b": "x", "c": None}, {"a": None, "b": 2, "c": True}]
