"""Tests of the linked panels: their data and their script."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from latentlab.report.linked_panels import panels, rounded, section
from latentlab.report.source import Source
from latentlab.store.read import Run

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
BRUSH = """<script>
const out = {}, root = document.getElementById("brush"), canvas = [...root.querySelectorAll(".panel canvas")];
const told = () => root.querySelector(".message").textContent, n = () => +root.dataset.marked;
const listed = () => [...root.querySelectorAll(".marked li")].map(item => item.textContent);
const at = (k, x, y, type, shiftKey) => {
  const r = canvas[k].getBoundingClientRect();
  const place = { clientX: r.left + x * r.width, clientY: r.top + y * r.height };
  canvas[k].dispatchEvent(new PointerEvent(type, { ...place, bubbles: true, pointerId: 1, shiftKey: !!shiftKey }));
};
const drag = (k, a, b, shift) => {
  at(k, ...a, "pointerdown", shift);
  at(k, ...b, "pointermove", shift);
  at(k, ...b, "pointerup", shift);
};
const key = (k, name) => canvas[k].dispatchEvent(new KeyboardEvent("keydown", { key: name }));
const pictures = () => canvas.map(c => c.toDataURL());
const until = (test, then, tries) => test() || !tries ? then() : setTimeout(until, 100, test, then, tries - 1);
const tell = text => document.body.append(Object.assign(document.createElement("pre"), { id: "result", textContent: text }));
addEventListener("error", e => tell(JSON.stringify({ error: e.message })));
const blank = canvas[0].toDataURL();
until(() => canvas[0].toDataURL() !== blank, () => {
  const before = pictures();
  const changed = () => pictures().map((picture, k) => picture !== before[k]);
  drag(0, [0, 0], [0.5, 1]);
  out.half = n();
  out.listed = listed();
  until(() => changed().every(Boolean), () => {
    out.changed = changed();
    drag(0, [0.5, 0], [1, 1], true);
    out.all = n();
    key(1, "Escape");
    out.cleared = [n(), told()];
    key(1, "ArrowRight");
    out.named = told();
    key(1, "Enter");
    out.one = n();
    root.querySelector(".clear").click();
    out.after = n();
    const chip = root.querySelector(".legend button");
    if (chip) { chip.click(); out.label = n(); }
    const find = root.querySelector("input");
    find.value = JSON.parse(document.getElementById("brush-data").textContent).units[4];
    find.dispatchEvent(new Event("input"));
    out.found = listed();
    tell(JSON.stringify(out));
  }, 60);
}, 60);
</script></body>"""


def panel_data(found: Run) -> dict:
    return section(Source(found)).items[-1].data


def test_every_panel_contains_every_unit(any_run: Run):
    source = Source(any_run)
    data = panel_data(any_run)
    n = len(data["units"])
    assert data["units"] == [str(unit) for unit in any_run.posterior["latents"]["unit"].values]
    for panel in data["panels"]:
        for way in ("aligned", "raw"):
            assert {len(column) for column in panel[way]} == {n}
            assert np.isfinite(panel[way]).all()
        assert source.is_discrete or len(panel["aligned"]) == len(data["panels"][0]["aligned"])
        assert len(panel.get("codes", panel["aligned"][0])) == n
    classes = data["classes"]
    assert len(classes["codes"]) == n
    assert max(classes["codes"]) < len(classes["colors"]) == len(classes["markers"])
    if source.is_discrete:
        assert data["covariance"] is None
        return
    if data["labels"] is not None:
        assert [classes["names"][code] for code in classes["codes"]] == data["labels"]
    q = len(data["panels"][0]["aligned"])
    assert np.shape(data["covariance"]) == (q, q, n)


def test_panels_are_aligned_to_the_posterior_mean(hostile: Run):
    """The alignment is optimal: the cross-product of the aligned panel and the posterior mean is symmetric."""
    source = Source(hostile)
    data = panels(source)
    mean = source.mean - source.mean.mean(axis=0)
    titles = [panel["title"] for panel in data["panels"]]
    assert titles == ["posterior mean", "pca", "pca (mapped)", "<i>own", "tsne, seed 1"]
    for panel in data["panels"][1:3]:
        aligned = np.array(panel["aligned"]).T
        cross = (aligned - aligned.mean(axis=0)).T @ mean
        assert np.allclose(cross, cross.T, atol=2e-3 * np.abs(cross).max())
        assert np.linalg.eigvalsh((cross + cross.T) / 2).min() > 0
        assert np.allclose(aligned.mean(axis=0), source.mean.mean(axis=0), atol=1e-3)
        size = (mean**2).sum() / np.trace(cross)
        assert size == pytest.approx(1, abs=2e-3), "scaled so that the mean's regression on it has slope 1"


def test_a_rotated_posterior_mean_is_aligned_back(wide: Run):
    source = Source(wide)
    turn, _ = np.linalg.qr(np.random.default_rng(3).normal(size=(3, 3)))
    assert np.allclose(source.aligned(-2.5 * source.mean @ turn + 7), source.mean, atol=1e-9)


def test_rounding_keeps_three_digits():
    values = np.random.default_rng(0).normal(size=500) * 1e-7
    assert np.abs(np.array(rounded(values)) - values).max() < 1e-3 * np.abs(values).max()
    assert rounded(np.zeros(2)) == [0.0, 0.0]


@pytest.mark.skipif(BROWSER is None, reason="needs Chromium")
@pytest.mark.parametrize("fixture", ["hostile", "wide", "mixture"])
def test_selection_in_one_panel_is_linked_to_all_panels(fixture: str, request: pytest.FixtureRequest, tmp_path: Path):
    found: Run = request.getfixturevalue(fixture)
    data = panel_data(found)
    n, x = len(data["units"]), np.array(data["panels"][0]["aligned"][0])
    page = tmp_path / "page.html"
    page.write_text((found.path / "report.html").read_text(encoding="utf-8").replace("</body>", BRUSH), encoding="utf-8")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-quic"]
    time = ["--window-size=1100,2500", "--run-all-compositor-stages-before-draw", "--virtual-time-budget=20000", "--dump-dom"]
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    done = subprocess.run([str(BROWSER), *flags, profile, *time, page.as_uri()], capture_output=True, text=True, timeout=120)
    shown = re.search(r'<pre id="result">(.*?)</pre>', done.stdout, re.DOTALL)
    assert shown, done.stderr[-500:]
    out = json.loads(html.unescape(shown.group(1)))
    left = x <= (x.min() + x.max()) / 2
    assert out["half"] == left.sum()
    names = [data["units"][i] + (f" · {data['labels'][i]}" if data["labels"] else "") for i in range(n)]
    assert out["listed"] == [names[i] for i in np.flatnonzero(left)]
    assert all(out["changed"])
    assert out["all"] == n
    assert out["cleared"] == [0, "No unit is marked."]
    assert re.sub(r" · (disagreement|posterior standard deviation|probability of the \w+) \S+$", "", out["named"]) in names
    assert (out["one"], out["after"]) == (1, 0)
    assert out["found"] == [names[4]]
    if data["classes"]["names"]:
        assert out["label"] == data["classes"]["codes"].count(0)
