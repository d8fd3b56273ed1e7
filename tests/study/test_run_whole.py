"""Tests of the whole pipeline at a small size, by function and by command."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xarray as xr
import yaml
from patching import everywhere

from latentlab.cli import main
from latentlab.data import stored
from latentlab.data.dataset import Dataset
from latentlab.errors import DataError, LatentLabError
from latentlab.fit import Fit
from latentlab.store.read import Run
from latentlab.study import stages
from latentlab.study.run import load_fit, load_run, run

IRIS = {
    "name": "iris",
    "dataset": {"name": "iris"},
    "model": {"name": "ppca", "n_latent": 2},
    "inference": {"name": "nuts", "n_chains": 2, "n_warmup": 60, "n_draws": 40},
    "embeddings": [{"name": "pca"}, {"name": "isomap", "n_neighbors": 12, "n_latent": 3, "label": "isomap-3"}],
    "compare": {"n_draws": 20, "n_pairs": 20, "n_permutations": 5},
}


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run(IRIS, out=tmp_path_factory.mktemp("runs") / "iris", progress=False)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "iris.yaml"
    path.write_text(yaml.safe_dump({**IRIS, "inference": {"name": "exact", "n_draws": 20}}))
    return path


def test_a_real_run_has_every_part(whole_run: Run):
    assert whole_run.posterior["posterior"]["W"].shape == (2, 40, 4, 2)
    assert whole_run.posterior["latents"]["z"].shape == (2, 40, 150, 2)
    assert whole_run.embeddings["pca"].dims == ("unit", "latent")
    assert whole_run.embeddings["isomap-3"].dims == ("unit", "latent_isomap-3")
    assert set(whole_run.scores["embedding"]) == set(whole_run.verdicts["embedding"]) == {"pca", "isomap-3"}
    assert whole_run.comparison["scores"].dims == ("metric", "embedding", "chain", "draw")
    assert whole_run.info["status"] == "not_converged", "80 draws are too few"
    assert {"R-hat", "bulk ESS"} <= set(whole_run.diagnostics.query("verdict == 'fail'")["check"])
    assert whole_run.path.joinpath("report.html").stat().st_size > 1000
    json.loads((whole_run.path / "report.json").read_text())


def test_written_tables_agree_with_the_arrays(whole_run: Run):
    raw = whole_run.scores.query("embedding == 'pca' and map == 'raw'").set_index("metric")["mean"]
    arrays = whole_run.comparison["scores"].sel(embedding="pca").mean(("chain", "draw"))
    assert np.allclose([arrays.sel(metric=metric) for metric in raw.index], raw, rtol=1e-12)


def test_a_loaded_fit_accepts_new_units(whole_run: Run):
    fit = load_fit(load_run(whole_run.path))
    assert fit.latents(fit.dataset.subset([0, 1])).shape == (2, 40, 2, 2)
    assert fit.diagnostics()["verdict"].tolist() == whole_run.diagnostics["verdict"].tolist()


PLUGIN = """
from latentlab.models.ppca import PPCA
class Mine(PPCA):
    "A model of one's own."
    name = "mine"
    def __init__(self, n_latent: int) -> None:
        super().__init__(n_latent)
"""


def all_outputs(fit: Fit, new: Dataset) -> dict[str, Any]:
    """Returns all outputs of a fit; for refused ones the message."""
    asked = {
        "repr": lambda: repr(fit),
        "diagnostics": fit.diagnostics,
        "latents": fit.latents,
        "latents of new": lambda: fit.latents(new),
        "likelihood of new": lambda: fit.log_likelihood(new),
        "held-out score": lambda: fit.held_out_score(new),
        "loo": lambda: fit.loo().pointwise if hasattr(fit.loo(), "pointwise") else repr(fit.loo()),
        "modes": fit.modes,
        "sensitivity": fit.sensitivity,
        "imputations": fit.imputations,
        "parameters": lambda: fit.parameters,
        "activity": fit.activity,
        "probabilities": fit.probabilities,
        "probabilities of new": lambda: fit.probabilities(new),
        "frozen": lambda: repr(fit.frozen()),
        "sites": fit.sites,
    }
    found: dict[str, Any] = {}
    for name, ask in asked.items():
        try:
            found[name] = ask()
        except LatentLabError as error:
            found[name] = f"{type(error).__name__}: {error}"
    return found


def equal(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(value, other[key]) for key, value in one.items())
    if isinstance(one, pd.DataFrame):
        pd.testing.assert_frame_equal(one, other, check_exact=True)
        return True
    if isinstance(one, xr.DataArray):
        return bool(one.identical(other))
    return bool(np.array_equal(one, other, equal_nan=isinstance(one, np.ndarray) and one.dtype.kind == "f"))


SVI = {"name": "svi", "n_steps": 30, "n_draws": 40, "n_restarts": 2}
NUTS = {"name": "nuts", "n_chains": 2, "n_warmup": 20, "n_draws": 20, "max_tree_depth": 3}


@pytest.mark.parametrize(
    "change",
    [
        {
            "inference": NUTS,
            "dataset": {"name": "iris", "missing": 0.05},
            "held_out": 0.1,
            "model": {"name": "mine", "n_latent": 2},
        },
        {"inference": SVI, "model": {"name": "gaussian_mixture", "n_components": 2}},
        {"inference": {**SVI, "guide": "model"}, "model": {"name": "vae", "n_latent": 2}, "held_out": 0.1},
        {"inference": {**SVI, "batch_size": 50}, "dataset": {"name": "file", "path": "large.npy", "in_memory": False}},
    ],
    ids=["plugin, missing and held out", "labels", "encoder", "stored"],
)
def test_a_loaded_fit_equals_the_original_fit(change: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(stored, "N_SAMPLE", 60)
    Path("mine.py").write_text(PLUGIN)
    np.save("large.npy", np.random.default_rng(0).standard_normal((200, 4)).astype(np.float32))
    firsts, real = [], stages.fit
    everywhere(monkeypatch, "latentlab.study", "fit", lambda *args, **options: firsts.append(real(*args, **options)) or firsts[0])
    everywhere(monkeypatch, "latentlab.study", "write_page", lambda found, **_: found.path)
    done = run({**IRIS, "embeddings": [], **change}, out=tmp_path / "iris", progress=False, plugins=["mine.py"])
    rows = {name: np.random.default_rng(1).standard_normal((3, 4)) for name in [firsts[0].dataset.observed]}
    new = Dataset(rows, dims={name: ("unit", "feature") for name in rows}, coords={"feature": firsts[0].dataset.features})
    wanted = all_outputs(firsts[0], new)
    assert sum(isinstance(value, str) and "Error: " in value for value in wanted.values()) < 7
    for again in (done.fit, load_run(done.path).fit):
        found = all_outputs(again, new)
        for name, value in wanted.items():
            assert equal(value, found[name]), name
    assert type(done.fit.to_arviz()) is type(firsts[0].to_arviz())
    assert done.fit.seed == firsts[0].seed
    assert done.fit.method == firsts[0].method
    assert 1 < len(repr(done).splitlines()) < 20


def test_exit_codes_of_the_command(config: Path, capsys: pytest.CaptureFixture):
    out = config.with_name("out")
    assert main(["run", str(config), "--out", str(out)]) == 0
    assert f"report: {out}/report.html" in capsys.readouterr().out
    assert main(["run", str(config), "--out", str(out)]) == 2
    assert "--overwrite replaces it, --resume continues it" in capsys.readouterr().err
    assert main(["run", str(config), "--out", str(out), "--resume", "--strict"]) == 0
    assert main(["run", str(config), "seed=-1", "--out", str(out), "--overwrite"]) == 2
    nuts = ["inference.name=nuts", "inference.n_chains=2", "inference.n_warmup=5", "inference.n_draws=5"]
    assert main(["run", str(config), *nuts, "--out", str(out), "--overwrite", "--strict"]) == 3
    assert load_run(out).info["status"] == "not_converged"
    assert main(["report", str(out)]) == 0


def test_control_c_ends_with_130_and_leaves_a_resumable_run(config: Path):
    out = config.with_name("out")
    long = ["inference.name=nuts", "inference.n_draws=20000"]
    process = subprocess.Popen(
        [sys.executable, "-m", "latentlab", "run", str(config), *long, "--out", str(out)], stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 120
    while not ((out / "events.jsonl").exists() and '"fit"' in (out / "events.jsonl").read_text()):
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert "--resume" in said
    found = load_run(out)
    assert (found.info["status"], found.info["stage"]) == ("interrupted", "fit")
    assert found.info["error"]["type"] == "KeyboardInterrupt"


def test_the_page_of_a_table_on_disk_states_its_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(stored, "N_SAMPLE", 60)
    x = np.random.default_rng(0).standard_normal((500, 2)) @ np.ones((2, 5)) + np.random.default_rng(1).standard_normal((500, 5))
    np.save(tmp_path / "large.npy", x.astype(np.float32))
    config = {
        "name": "large",
        "dataset": {"name": "file", "path": str(tmp_path / "large.npy"), "in_memory": False},
        "model": {"name": "ppca", "n_latent": 1},
        "inference": {"name": "svi", "batch_size": 50, "n_steps": 60, "n_draws": 40},
        "embeddings": [{"name": "pca"}],
        "compare": {"n_draws": 10, "n_pairs": 10, "n_permutations": 3},
    }
    done = run(config, out=tmp_path / "large", progress=False)
    assert done.info["data"]["unit"] == 500
    assert done.posterior["latents"].sizes["unit"] == done.embeddings.sizes["unit"] == 60
    said = "Positions, log likelihood, predictions and embeddings refer to 60 of the 500 units, drawn at random"
    page = (done.path / "report.html").read_text()
    assert said in page
    assert said in (done.path / "run.log").read_text()
    assert "no longer those that were fitted" not in page
    again = load_fit(load_run(done.path))
    np.testing.assert_array_equal(again.dataset.units, done.posterior["latents"]["unit"])
    np.save(tmp_path / "large.npy", x[::-1].astype(np.float32))
    assert load_fit(load_run(done.path)).dataset.digest() == again.dataset.digest()
    with pytest.raises(DataError, match="`split` requires data in memory"):
        run({**config, "held_out": 0.1}, out=tmp_path / "other", progress=False)
    assert not (tmp_path / "other").exists()
