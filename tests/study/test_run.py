"""Tests of runs that are interrupted, killed, changed or damaged, and resumed.

The comparison and the page are stand-ins here; `test_run_whole.py` runs the real ones.
"""

import io
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from patching import everywhere

from latentlab.embeddings.embedding import Embedding
from latentlab.errors import ConfigError, DataError, InferenceError, MissingDependencyError, ModelError, StoreError
from latentlab.files import sha256
from latentlab.fit import Fit
from latentlab.inference.map import MAP
from latentlab.store.directory import RunDirectory
from latentlab.store.read import Run, read
from latentlab.study import job, stages
from latentlab.study.config import load_config
from latentlab.study.run import load_fit, load_run, report, run
from latentlab.study.written import embeddings_tree

TOY = {
    "name": "toy",
    "dataset": {"name": "linear_gaussian", "n_units": 30, "n_features": 4, "n_latent": 2},
    "model": {"name": "ppca", "n_latent": 2},
    "inference": {"name": "exact", "n_draws": 12},
    "embeddings": [{"name": "pca"}],
}
RESTARTS = {**TOY, "inference": {"name": "map", "n_restarts": 2, "n_draws": 12}}
ARRAYS = ("data.nc", "posterior.nc", "embeddings.nc", "comparison.nc", "comparison.csv", "verdicts.csv", "diagnostics.json")


@dataclass
class Correlation:
    """Replaces a comparison; its value depends on the posterior and the embedding."""

    value: float

    @property
    def verdicts(self) -> pd.DataFrame:
        columns = {"embedding": "pca", "map": "raw", "alignment": "orthogonal", "verdict": "distinct", "delta": self.value}
        return pd.DataFrame([columns])

    def to_dataframe(self) -> pd.DataFrame:
        return pd.DataFrame([{"metric": "correlation", "embedding": "pca", "mean": self.value}])

    @property
    def parts(self) -> dict[str, xr.Dataset]:
        return {"unit": xr.Dataset({"scores": ("metric", [self.value])}, coords={"metric": ["correlation"]})}

    def to_tree(self) -> xr.DataTree:
        return xr.DataTree(self.parts["unit"])


def correlation(fit: Fit, embeddings: list[Embedding], **_: Any) -> Correlation:
    positions = fit.latents().values.mean(axis=(0, 1)).ravel()
    return Correlation(float(np.corrcoef(positions, embeddings[0].values.ravel())[0, 1]))


def page(found: Run, **_: Any) -> Path:
    (found.path / "report.html").write_text(f"{found.info['status']} {found.scores['mean'][0]}")
    (found.path / "report.json").write_text("{}")
    return found.path / "report.html"


@pytest.fixture(autouse=True)
def _stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    everywhere(monkeypatch, "latentlab.study", "compare", correlation)
    everywhere(monkeypatch, "latentlab.study", "write_page", page)


def go(config: dict[str, Any], out: Path, *overrides: str, **options: Any) -> Run:
    return run(config, overrides, out=out, progress=False, **options)


@pytest.fixture(scope="module")
def complete(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete run of TOY without interruption."""
    with pytest.MonkeyPatch.context() as patch:
        everywhere(patch, "latentlab.study", "compare", correlation)
        everywhere(patch, "latentlab.study", "write_page", page)
        return go(TOY, tmp_path_factory.mktemp("runs") / "toy").path


def arrays(path: Path) -> dict[str, bytes]:
    params = {str(file.relative_to(path)): file.read_bytes() for file in (path / "params").iterdir()}
    return {name: (path / name).read_bytes() for name in ARRAYS} | params


def info(path: Path) -> dict[str, Any]:
    return json.loads((path / "run.json").read_text())


def failing(error: BaseException) -> Callable[..., Any]:
    def fail(*_: Any, **__: Any) -> Any:
        raise error

    return fail


def interrupted_run(out: Path, monkeypatch: pytest.MonkeyPatch, config: dict[str, Any] = TOY, **options: Any) -> None:
    """Makes a run that is interrupted after its posterior is written."""
    with monkeypatch.context() as patch:
        everywhere(patch, "latentlab.study", "compare", failing(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            go(config, out, **options)


# -- what a run leaves


def test_a_run_stores_results_versions_and_data_hash(complete: Path):
    found = load_run(complete)
    assert found.info["status"] == "done"
    assert found.info["seed"] == 0
    assert found.info["versions"]["torch"] == torch.__version__
    assert found.info["threads"]["torch"] == torch.get_num_threads()
    assert found.info["data"]["sha256"] == load_config(TOY).build_dataset().digest()
    assert set(found.info["seconds"]) == {"fit", "diagnostics", "embeddings", "comparison", "report"}
    assert found.posterior["latents"]["z"].dims == ("chain", "draw", "unit", "latent")
    assert found.embeddings["pca"].dims == ("unit", "latent")
    assert found.config["inference"] == {"name": "exact", "n_restarts": 10, "n_draws": 12}
    assert (complete / "report.html").read_text() == f"done {found.scores['mean'][0]}"
    events = [json.loads(line) for line in (complete / "events.jsonl").read_text().splitlines()]
    assert [e.get("stage", e["event"]) for e in events] == ["start", *found.info["seconds"], "end"]


def test_rerunning_the_resolved_config_reproduces_the_run(complete: Path, tmp_path: Path):
    again = run(complete / "config.yaml", out=tmp_path / "again", progress=False)
    assert arrays(again.path) == arrays(complete)


def test_params_store_the_estimate_and_the_transform(complete: Path):
    found, fit = load_run(complete), load_fit(load_run(complete))
    meaning = json.loads((complete / "params" / "params.json").read_text())
    assert meaning["values"] == "point estimate"
    assert meaning["dims"]["W"] == ["feature", "latent"]
    W, sigma = found.params["W"], found.params["sigma"]
    top = np.linalg.svd(fit.dataset.x, compute_uv=False)[:2] ** 2 / fit.dataset.n_units
    # Tipping & Bishop 1999, eq. 15: W W^T has the largest eigenvalues of the covariance, less sigma^2
    assert np.linalg.svd(W, compute_uv=False) ** 2 == pytest.approx(top - sigma**2)
    assert np.allclose(fit.dataset.raw().x, fit.dataset.x * found.params["transform.scale"] + found.params["transform.loc"])


def test_a_loaded_fit_places_new_units_as_before(complete: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    kept, real = [], stages.fit
    everywhere(monkeypatch, "latentlab.study", "fit", lambda *args, **options: kept.append(real(*args, **options)) or kept[0])
    go(TOY, tmp_path / "toy")
    new = kept[0].dataset.subset([3, 1])
    assert np.array_equal(load_fit(read(complete)).latents(new).values, kept[0].latents(new).values)


def test_loading_a_fit_on_changed_data_is_refused(complete: Path, tmp_path: Path):
    path = Path(shutil.copytree(complete, tmp_path / "toy"))
    content = info(path)
    content["data"]["sha256"] = "0" * 64
    (path / "run.json").write_text(json.dumps(content))
    load_fit(load_run(path))  # the run has its data
    del content["files"]["data.nc"]  # as in a run that was written before runs kept them
    (path / "run.json").write_text(json.dumps(content))
    with pytest.raises(StoreError, match="was changed since the fit"):
        load_fit(load_run(path))
    content["data"] = info(complete)["data"]
    (path / "run.json").write_text(json.dumps(content))
    before, after = load_fit(load_run(complete)), load_fit(load_run(path))
    assert before.dataset.digest() == after.dataset.digest()


def test_a_fit_is_loaded_without_its_source_files(tmp_path: Path):
    rng = np.random.default_rng(0)
    for name, columns in (("data", 4), ("vectors", 2)):
        table = pd.DataFrame(rng.normal(size=(30, columns)), index=[f"u{i}" for i in range(30)])
        table.to_csv(tmp_path / f"{name}.csv", index_label="id")
    dataset = {"name": "file", "path": str(tmp_path / "data.csv"), "unit": "id"}
    mine = {"name": "file", "path": str(tmp_path / "vectors.csv"), "unit": "id"}
    done = go({**TOY, "dataset": dataset, "embeddings": [mine]}, tmp_path / "run")
    before = load_fit(done)
    for name in ("data", "vectors"):
        (tmp_path / f"{name}.csv").unlink()
    after = load_run(done.path).fit
    assert after.dataset.digest() == before.dataset.digest()
    assert np.array_equal(after.latents().values, before.latents().values)


def test_held_out_units_of_a_run_are_scored_and_not_fitted(tmp_path: Path):
    found = go(TOY, tmp_path / "toy", "held_out=0.2")
    assert found.posterior["latents"]["z"].sizes["unit"] == 24
    assert found.info["held_out"]["n_units"] == 6
    fit = load_fit(found)
    left = [unit for unit in range(30) if unit not in fit.dataset.units]
    score = fit.held_out_score(load_config(TOY).build_dataset().subset(left))
    assert found.info["held_out"]["elpd"] == pytest.approx(score["elpd"])
    table = found.diagnostics.set_index(["check", "quantity"])
    assert table.loc[("held_out_score", "elpd"), "value"] == pytest.approx(score["elpd"])
    assert found.info["status"] == "done"


def test_notes_of_an_embedding_are_stored(tmp_path: Path):
    found = go(TOY, tmp_path / "toy", "dataset.missing=0.1")
    assert any(note.startswith("pca: ") for note in found.info["notes"])


def test_a_run_without_embeddings_has_no_comparison(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    everywhere(monkeypatch, "latentlab.study", "write_page", lambda found, **_: found.path)
    found = go({**TOY, "embeddings": []}, tmp_path / "toy")
    assert found.info["status"] == "done"
    with pytest.raises(StoreError, match=r"no comparison\.csv: the config has no embeddings"):
        _ = found.scores


def embedding(label: str, shape: tuple[int, ...]) -> Embedding:
    seeds = tuple(range(5, 5 + shape[0])) if len(shape) == 3 else ()
    return Embedding("pca", np.arange(np.prod(shape), dtype=float).reshape(shape), np.arange(shape[-2]), label=label, seeds=seeds)


def test_embeddings_of_different_sizes_have_separate_dims():
    made = [embedding("a", (4, 2)), embedding("b", (4, 3)), embedding("c", (2, 4, 2)), embedding("d", (2, 4, 3))]
    dataset = embeddings_tree(made, {"unit": np.arange(4)}, 2).to_dataset()
    assert {name: dataset[name].dims for name in dataset} == {
        "a": ("unit", "latent"),
        "b": ("unit", "latent_b"),
        "c": ("seed_c", "unit", "latent"),
        "d": ("seed_d", "unit", "latent_d"),
    }
    assert dataset["seed_c"].values.tolist() == [5, 6]
    assert np.array_equal(dataset["d"].values, made[3].values)


# -- nothing is started


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"inference": {"name": "exact", "n_drws": 1}}, ConfigError),
        ({"model": {"name": "ppca", "n_latent": 40}}, DataError),
        ({"dataset": {"name": "digits"}}, DataError),
    ],
    ids=["config", "model", "data"],
)
def test_an_invalid_config_starts_no_run(change: dict, error: type[Exception], tmp_path: Path):
    with pytest.raises(error) as caught:
        go({**TOY, **change}, tmp_path / "toy")
    assert caught.value.exit_code == 2
    assert not list(tmp_path.iterdir())


def test_overwrite_and_resume_together_are_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"--overwrite .* --resume"):
        go(TOY, tmp_path / "toy", overwrite=True, resume=True)


def test_an_existing_run_is_not_changed_without_request(complete: Path):
    before = arrays(complete)
    with pytest.raises(StoreError, match=r"contains a run \(done\); --overwrite replaces it, --resume continues it") as caught:
        go(TOY, complete)
    assert caught.value.exit_code == 2
    assert arrays(complete) == before


def test_a_full_disk_is_reported_before_the_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=1_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    everywhere(monkeypatch, "latentlab.study", "fit", failing(AssertionError("computed")))
    with pytest.raises(StoreError, match=r"requires about 2\.\d MB of disk space; 1\.0 MB are free") as caught:
        go(TOY, tmp_path / "toy")
    assert caught.value.exit_code == 2
    assert not list(tmp_path.iterdir())


NUTS = {"name": "nuts", "n_chains": 2, "n_warmup": 10, "n_draws": 150, "max_tree_depth": 2}


@pytest.mark.parametrize(
    ("model", "inference"),
    [
        ({"name": "ppca", "n_latent": 2}, {"name": "exact", "n_draws": 500}),
        ({"name": "ppca", "n_latent": 2, "marginalize": False}, NUTS),
        ({"name": "vae", "n_latent": 2}, {"name": "svi", "guide": "model", "n_steps": 10, "n_draws": 300}),
    ],
    ids=["exact", "explicit", "encoder"],
)
def test_the_estimated_disk_space_matches_the_used_space(model: dict, inference: dict, tmp_path: Path, monkeypatch: Any):
    """The estimate is within a factor of two, apart from the constant size of the page."""
    dataset = {"name": "linear_gaussian", "n_units": 150, "n_features": 5, "n_latent": 2}
    config = {**TOY, "dataset": dataset, "model": model, "inference": inference, "embeddings": []}
    everywhere(monkeypatch, "latentlab.study", "write_page", failing(RuntimeError("stops before the checkpoints go")))
    with pytest.raises(RuntimeError):
        go(config, tmp_path / "toy")
    taken = sum(file.stat().st_size for file in (tmp_path / "toy").rglob("*") if file.is_file())
    assert taken / 2 < job.Job(load_config(config)).n_bytes() - job.PAGE_BYTES < 2 * taken


def test_an_unwritable_directory_is_reported_before_the_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    everywhere(monkeypatch, "latentlab.study", "fit", failing(AssertionError("computed")))
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file" / "toy", Path("/proc/toy")):
        with pytest.raises(StoreError, match=f"{place.parent}.* cannot be written") as caught:
            go(TOY, place)
        assert caught.value.exit_code == 2


def test_runs_are_written_to_a_directory_of_their_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert run(TOY, progress=False).path.resolve() == tmp_path / "runs" / "toy"
    shutil.rmtree(tmp_path / "runs" / "toy")
    (tmp_path / "runs" / "toy").symlink_to(tmp_path)
    with pytest.raises(StoreError, match="must be inside of runs/"):
        run(TOY, progress=False)


# -- stopped and resumed


def test_a_run_interrupted_after_the_fit_resumes_exactly(complete: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    interrupted_run(tmp_path / "toy", monkeypatch)
    assert info(tmp_path / "toy")["status"] == "interrupted"
    everywhere(monkeypatch, "latentlab.study", "fit", failing(AssertionError("fitted twice")))
    assert go(TOY, tmp_path / "toy", resume=True).info["status"] == "done"
    assert arrays(tmp_path / "toy") == arrays(complete)
    assert not (tmp_path / "toy" / "checkpoints").exists()


def test_a_run_interrupted_during_the_fit_resumes_from_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    restart, computed = MAP._restart, []

    def counted(method: MAP, problem: Any, i: int) -> Any:
        computed.append(i)
        return restart(method, problem, i)

    def interrupted(method: MAP, problem: Any, i: int) -> Any:
        if i == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return restart(method, problem, i)

    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    whole = go(RESTARTS, tmp_path / "whole").path
    monkeypatch.setattr(MAP, "_restart", interrupted)
    with pytest.raises(KeyboardInterrupt, match="SIGTERM"):
        go(RESTARTS, tmp_path / "toy")
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert info(tmp_path / "toy")["status"] == "interrupted"
    assert info(tmp_path / "toy")["stage"] == "fit"
    monkeypatch.setattr(MAP, "_restart", counted)
    go(RESTARTS, tmp_path / "toy", resume=True)
    assert computed == [1]
    assert arrays(tmp_path / "toy") == arrays(whole)


HANG = """
import json, sys, time
from latentlab.inference.map import MAP
from latentlab.study.run import run
restart = MAP._restart
def hang(self, problem, i):
    if i == 1:
        print("here", flush=True)
        time.sleep(600)
    return restart(self, problem, i)
MAP._restart = hang
run(json.loads(sys.argv[1]), out=sys.argv[2], progress=False)
"""


def test_a_killed_run_resumes_to_the_same_result(tmp_path: Path):
    path = tmp_path / "toy"
    arguments = [sys.executable, "-c", HANG, json.dumps(RESTARTS), str(path)]
    first = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)
    assert first.stdout.readline() == "here\n"
    try:
        for options in ({}, {"resume": True}, {"overwrite": True}):
            with pytest.raises(StoreError, match=f"is being written by process {first.pid} on ") as caught:
                go(RESTARTS, path, **options)
            assert caught.value.exit_code == 2
        assert info(path)["status"] == "running"
    finally:
        first.kill()
        first.communicate()
    assert go(RESTARTS, path, resume=True).info["status"] == "done"
    assert f"took over the lock of process {first.pid}" in (path / "run.log").read_text()
    assert arrays(path) == arrays(go(RESTARTS, tmp_path / "whole").path)


STOPPED = """
import json, os, signal, sys, time
from latentlab.inference.map import MAP
from latentlab.store.directory import RunDirectory
from latentlab import cli
config, out = sys.argv[1:]
restart, stop = MAP._restart, RunDirectory.stop
def interrupted(self, problem, i):
    if i == 1:
        os.kill(os.getpid(), signal.SIGINT)
    return restart(self, problem, i)
def while_it_is_written_down(self, *arguments):
    os.kill(os.getpid(), signal.SIGTERM)
    return stop(self, *arguments)
MAP._restart, RunDirectory.stop = interrupted, while_it_is_written_down
sys.exit(cli.main(["run", config, "--out", out, "--quiet"]))
"""


def test_two_signals_end_the_command_with_130_and_leave_a_resumable_run(tmp_path: Path):
    """The second signal arrives while the first is handled: the process ends at once and files are complete."""
    path, config = tmp_path / "toy", tmp_path / "toy.yaml"
    config.write_text(json.dumps(RESTARTS))
    done = subprocess.run([sys.executable, "-c", STOPPED, str(config), str(path)], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout) == (130, ""), done
    assert "interrupted twice" in done.stderr
    assert "repeat the command (a run: with --resume) to continue" in done.stderr
    assert info(path)["status"] == "running"
    computed = []
    with pytest.MonkeyPatch.context() as patch:
        restart = MAP._restart
        patch.setattr(MAP, "_restart", lambda method, problem, i: computed.append(i) or restart(method, problem, i))
        assert go(RESTARTS, path, resume=True).info["status"] == "done"
    assert computed == [1]
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["toy", "toy.yaml"]


def test_resuming_a_complete_run_changes_nothing(complete: Path, monkeypatch: pytest.MonkeyPatch):
    before = {path: path.stat().st_mtime_ns for path in complete.rglob("*")}
    everywhere(monkeypatch, "latentlab.study", "fit", failing(AssertionError("fitted")))
    everywhere(monkeypatch, "latentlab.study", "_versions", lambda: {"python": "2.7"})
    assert go(TOY, complete, resume=True).info["status"] == "done"
    assert {path: path.stat().st_mtime_ns for path in complete.rglob("*")} == before


def test_resuming_without_a_run_starts_one(complete: Path, tmp_path: Path):
    assert arrays(go(TOY, tmp_path / "toy", resume=True).path) == arrays(complete)


@pytest.mark.parametrize("force", [False, True])
def test_runs_with_a_changed_config_are_not_resumed(force: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    interrupted_run(tmp_path / "toy", monkeypatch)
    with pytest.raises(
        StoreError, match=r"inference\.n_draws: 12 -> 13; seed: 0 -> 1|seed: 0 -> 1.*inference\.n_draws: 12 -> 13"
    ):
        go(TOY, tmp_path / "toy", "inference.n_draws=13", "seed=1", resume=True, force=force)


@pytest.mark.parametrize("force", [False, True])
def test_runs_with_changed_data_are_not_resumed(force: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    data = tmp_path / "data.csv"
    rng = np.random.default_rng(0)
    pd.DataFrame(rng.normal(size=(20, 3)), columns=["a", "b", "c"]).to_csv(data, index=False)
    config = {**TOY, "dataset": {"name": "file", "path": str(data)}}
    interrupted_run(tmp_path / "toy", monkeypatch, config)
    pd.DataFrame(rng.normal(size=(20, 3)), columns=["a", "b", "c"]).to_csv(data, index=False)
    with pytest.raises(StoreError, match=r"data\.sha256: .* -> "):
        go(config, tmp_path / "toy", resume=True, force=force)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda patch: everywhere(patch, "latentlab.study", "_versions", lambda: {"python": "2.7"}),
            "versions.python: .* -> '2.7'",
        ),
        (lambda patch: patch.setattr(torch, "get_num_threads", lambda: 64), "threads.torch: 1 -> 64"),
    ],
    ids=["version", "threads"],
)
def test_other_versions_or_threads_need_force(change: Callable, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    interrupted_run(tmp_path / "toy", monkeypatch)
    change(monkeypatch)
    with pytest.raises(StoreError, match=rf"{said}.*--resume --force"):
        go(TOY, tmp_path / "toy", resume=True)
    assert go(TOY, tmp_path / "toy", resume=True, force=True).info["status"] == "done"


def test_runs_with_an_edited_stored_config_are_not_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    interrupted_run(tmp_path / "toy", monkeypatch)
    with (tmp_path / "toy" / "config.yaml").open("a") as stream:
        stream.write("# harmless\n")
    with pytest.raises(StoreError, match=r"config\.yaml is missing or was changed.*--overwrite replaces it"):
        go(TOY, tmp_path / "toy", resume=True)


def test_a_damaged_posterior_is_recomputed_on_resuming(complete: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    interrupted_run(tmp_path / "toy", monkeypatch)
    (tmp_path / "toy" / "posterior.nc").write_bytes((complete / "posterior.nc").read_bytes()[:-1])
    go(TOY, tmp_path / "toy", resume=True)
    assert arrays(tmp_path / "toy") == arrays(complete)
    assert "posterior.nc is missing or damaged; it will be recreated" in (tmp_path / "toy" / "run.log").read_text()


PLUGIN = """
from latentlab.models.ppca import PPCA
class Mine(PPCA):
    "A model of one's own."
    name = "mine"
    def __init__(self, n_latent: int) -> None:
        super().__init__(n_latent)
"""


def test_plugins_are_stored_with_a_hash_and_must_not_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    plugin = tmp_path / "mine.py"
    plugin.write_text(PLUGIN)
    config = {**TOY, "model": {"name": "mine", "n_latent": 2}}
    interrupted_run(tmp_path / "toy", monkeypatch, config, plugins=[plugin])
    assert info(tmp_path / "toy")["plugins"] == {str(plugin): sha256(plugin)}
    plugin.write_text(PLUGIN + "\n")
    with pytest.raises(StoreError, match=r"plugins\..*mine\.py: "):
        go(config, tmp_path / "toy", resume=True, plugins=[plugin])
    go(config, tmp_path / "toy", resume=True, force=True, plugins=[plugin])
    fit = load_run(tmp_path / "toy").fit
    assert fit.latents(fit.dataset.subset([0])).sizes["unit"] == 1
    plugin.write_text(PLUGIN)
    with pytest.raises(StoreError, match=r"the plugin .*mine\.py is missing or was changed since the run"):
        _ = load_run(tmp_path / "toy").fit


# -- failed


@pytest.mark.parametrize(
    ("part", "stage", "kept"),
    [
        ("fit", "fit", ["embeddings.nc"]),
        ("compare", "comparison", ["posterior.nc", "diagnostics.json", "embeddings.nc"]),
        ("write_page", "report", [*ARRAYS]),
    ],
)
def test_a_failed_run_keeps_finished_parts_and_can_be_resumed(
    part: str, stage: str, kept: list[str], complete: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "toy"
    with monkeypatch.context() as patch:
        everywhere(patch, "latentlab.study", part, failing(ModelError("no good")))
        with pytest.raises(ModelError, match="no good") as caught:
            go(TOY, path)
    assert caught.value.exit_code == 1, "it had started"
    assert caught.value.__notes__ == [f"Finished results are kept in {path}; --resume continues the run."]
    found = load_run(path)
    assert found.info["status"] == "failed"
    assert found.info["error"] == {"type": "ModelError", "message": "no good", "stage": stage}
    assert {name for name in ARRAYS if name in found.info["files"]} == {"data.nc", *kept}
    assert "failed at stage" in (path / "run.log").read_text()
    assert go(TOY, path, resume=True).info["error"] is None
    assert arrays(path) == arrays(complete)


ASSEMBLE = sys.modules["latentlab.results.assemble"]
SVI = {**TOY, "inference": {"name": "svi", "n_steps": 20, "n_draws": 12}}


@pytest.mark.parametrize(("config", "part"), [(TOY, "_predictives"), (SVI, "build")], ids=["exact", "svi"])
def test_a_failure_while_assembling_needs_no_second_fit(part: str, config: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    real = getattr(ASSEMBLE, part)

    def fails_at_the_end(*arguments: Any, **options: Any) -> Any:
        if part == "build" and "log_likelihood" not in arguments[0]:
            return real(*arguments, **options)  # the check before the fit
        raise ModelError("no good")

    with monkeypatch.context() as patch:
        patch.setattr(ASSEMBLE, part, fails_at_the_end)
        with pytest.raises(ModelError, match="no good"):
            go(config, tmp_path / "toy")
    method = type(load_config(config).build_method())
    with monkeypatch.context() as patch:
        patch.setattr(method, "run", failing(AssertionError("fitted twice")))
        assert go(config, tmp_path / "toy", resume=True).info["error"] is None
    assert arrays(tmp_path / "toy") == arrays(go(config, tmp_path / "whole").path)


def test_a_failing_embedding_keeps_the_earlier_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    config = {**TOY, "embeddings": [{"name": "pca"}, {"name": "kmeans", "n_seeds": 2, "n_latent": 3}, {"name": "mds"}]}
    real, made = stages.embed, []

    def third_fails(name: str, *arguments: Any, **options: Any) -> Embedding:
        made.append(name)
        if name == "mds" and made.count("mds") == 1:
            raise RuntimeError("no good")
        return real(name, *arguments, **options)

    everywhere(monkeypatch, "latentlab.study", "embed", third_fails)
    with pytest.raises(RuntimeError):
        go(config, tmp_path / "toy")
    go(config, tmp_path / "toy", resume=True)
    assert made == ["pca", "kmeans", "mds", "mds"]
    assert arrays(tmp_path / "toy") == arrays(go(config, tmp_path / "whole").path)
    assert info(tmp_path / "toy")["notes"] == info(tmp_path / "whole")["notes"]


def test_a_failing_page_keeps_the_comparison(complete: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with monkeypatch.context() as patch:
        everywhere(patch, "latentlab.study", "write_page", failing(RuntimeError("no good")))
        with pytest.raises(RuntimeError):
            go(TOY, tmp_path / "toy")
    everywhere(monkeypatch, "latentlab.study", "compare", failing(AssertionError("compared twice")))
    assert go(TOY, tmp_path / "toy", resume=True).info["status"] == "done"
    assert arrays(tmp_path / "toy") == arrays(complete)


@pytest.mark.parametrize("name", ["verdicts.csv", "posterior.nc", "embeddings.nc"])
def test_a_damaged_complete_run_is_repaired_on_resuming(name: str, complete: Path, tmp_path: Path):
    path = Path(shutil.copytree(complete, tmp_path / "toy"))
    content = bytearray((path / name).read_bytes())
    content[-1] ^= 1
    (path / name).write_bytes(content)
    with pytest.raises(
        StoreError,
        match=rf"{name} is damaged: its SHA-256 is [0-9a-f]{{12}}.*recreates it with --resume, and the whole run with",
    ):
        load_run(path)
    assert go(TOY, path, resume=True).info["status"] == "done"
    assert arrays(path) == arrays(complete)


def test_an_invalid_embedding_leaves_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    everywhere(monkeypatch, "latentlab.study", "embed", failing(ConfigError("no good")))
    with pytest.raises(ConfigError, match=r"^embeddings\.0: no good$") as caught:
        go(TOY, tmp_path / "toy")
    assert caught.value.exit_code == 2
    assert not (tmp_path / "toy").exists()


def test_a_library_failure_in_an_embedding_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    everywhere(monkeypatch, "latentlab.study", "embed", failing(RuntimeError("no good")))
    with pytest.raises(RuntimeError):
        go(TOY, tmp_path / "toy")
    assert info(tmp_path / "toy")["error"] == {"type": "RuntimeError", "message": "no good", "stage": "embeddings"}


def test_a_failed_overwrite_restores_the_old_run(complete: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = Path(shutil.copytree(complete, tmp_path / "toy"))
    with monkeypatch.context() as patch:
        everywhere(patch, "latentlab.study", "compare", failing(RuntimeError("no good")))
        with pytest.raises(RuntimeError) as caught:
            go(TOY, path, "seed=1", overwrite=True)
    assert caught.value.__notes__[0] == f"The previous run was restored in {path}."
    assert arrays(path) == arrays(complete)
    assert go(TOY, tmp_path / "toy.failed", "seed=1", resume=True).info["seed"] == 1
    assert go(TOY, path, "seed=1", overwrite=True).info["seed"] == 1
    assert arrays(path) == arrays(tmp_path / "toy.failed")


def test_an_interrupted_overwrite_can_be_resumed(complete: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = Path(shutil.copytree(complete, tmp_path / "toy"))
    interrupted_run(path, monkeypatch, {**TOY, "seed": 1}, overwrite=True)
    assert arrays(tmp_path / ".toy.previous") == arrays(complete)
    assert go(TOY, path, "seed=1", resume=True).info["seed"] == 1
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["toy"]


def test_a_directory_deleted_during_the_run_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def delete(*arguments: Any, **options: Any) -> Correlation:
        shutil.rmtree(tmp_path / "toy")
        return correlation(*arguments, **options)

    everywhere(monkeypatch, "latentlab.study", "compare", delete)
    with pytest.raises(StoreError, match=f"{tmp_path}/toy") as caught:
        go(TOY, tmp_path / "toy")
    assert caught.value.exit_code == 1
    assert not list(tmp_path.iterdir())


def test_a_run_succeeds_without_the_library_for_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any):
    everywhere(monkeypatch, "latentlab.study", "write_page", failing(MissingDependencyError("the report", "jinja2", "report")))
    found = run(TOY, out=tmp_path / "toy", progress=True)
    assert found.info["status"] == "done"
    said = capsys.readouterr().out
    assert "pip install 'latentlab[report]'" in said
    assert f"latentlab report {tmp_path / 'toy'}" in said
    everywhere(monkeypatch, "latentlab.study", "write_page", page)
    assert report(tmp_path / "toy").read_text().startswith("done")
    assert load_run(tmp_path / "toy").info["files"]["report.html"]["sha256"] == sha256(tmp_path / "toy" / "report.html")


def test_a_run_prints_a_short_summary(tmp_path: Path, capsys: Any):
    run(TOY, out=tmp_path / "toy")
    assert capsys.readouterr().out.splitlines() == [
        f"{tmp_path}/toy: done, converged",
        f"  pca: distinct, delta {float(read(tmp_path / 'toy').verdicts['delta'][0]):.3g}",
        f"  report: {tmp_path}/toy/report.html",
    ]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("kind", [Terminal, io.StringIO])
def test_progress_bars_appear_on_terminals_only(kind: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    stream = kind()
    monkeypatch.setattr(sys, "stderr", stream)
    run(TOY, out=tmp_path / "toy")
    stages = re.findall(r"(\w+): (\d)/6 stages", stream.getvalue())
    expected = ["data", "embeddings", "fit", "diagnostics", "comparison", "report"] if kind is Terminal else []
    assert list(dict.fromkeys(stages)) == [(stage, str(i)) for i, stage in enumerate(expected)]
    assert ("embedding pca" in stream.getvalue()) == (kind is Terminal)
    assert kind is Terminal or not stream.getvalue()


def test_failed_convergence_is_reported_and_fails_only_when_strict(tmp_path: Path):
    inference = {"name": "nuts", "n_chains": 2, "n_warmup": 5, "n_draws": 5, "max_tree_depth": 2}
    found = go({**TOY, "inference": inference}, tmp_path / "toy")
    assert found.info["status"] == "not_converged"
    log = (tmp_path / "toy" / "run.log").read_text()
    assert "chain 1: 5 draws, " in log
    assert "fail: R-hat" in log
    lines = repr(found).splitlines()
    assert lines[0] == f"{tmp_path}/toy: done, not converged"
    failed = found.diagnostics.query("verdict == 'fail'")
    assert [line.split(" (")[0] for line in lines[1:-2]] == [f"  failed check: {check}" for check in failed["check"].unique()]
    assert all(len(line) < 200 for line in lines)
    with pytest.raises(InferenceError, match=r"not converged .*R-hat") as caught:
        go({**TOY, "inference": inference}, tmp_path / "toy", resume=True, strict=True)
    assert caught.value.exit_code == 3


def test_variational_runs_store_means_and_log_the_elbo(tmp_path: Path):
    found = go({**TOY, "inference": {"name": "svi", "n_steps": 100, "n_draws": 30}}, tmp_path / "toy")
    lines = [line for line in (tmp_path / "toy" / "run.log").read_text().splitlines() if "elbo" in line]
    assert len(lines) == 10
    loss = found.posterior["optimization"]["loss"].values[0]
    assert lines[-1].endswith(f"step 100 of 100: elbo {-loss[50:].mean():.2f}")
    assert np.allclose(found.params["W"], found.posterior["latents"]["W"].mean(("chain", "draw")))
    assert np.allclose(found.params["sigma"], found.posterior["posterior"]["sigma"].mean())


# -- nothing is left behind


def test_a_run_changes_no_global_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    before = (
        list(warnings.filters),
        warnings.showwarning,
        signal.getsignal(signal.SIGINT),
        signal.getsignal(signal.SIGTERM),
        torch.get_default_dtype(),
        torch.get_rng_state().tolist(),
        np.random.get_state()[1].tolist(),
        dict(os.environ),
        Path.cwd(),
        logging.getLogger().handlers[:],
        logging.getLogger().level,
        {name for name in logging.root.manager.loggerDict if name.startswith("latentlab")},
    )
    go(TOY, tmp_path / "toy")
    after = (
        list(warnings.filters),
        warnings.showwarning,
        signal.getsignal(signal.SIGINT),
        signal.getsignal(signal.SIGTERM),
        torch.get_default_dtype(),
        torch.get_rng_state().tolist(),
        np.random.get_state()[1].tolist(),
        dict(os.environ),
        Path.cwd(),
        logging.getLogger().handlers[:],
        logging.getLogger().level,
        {name for name in logging.root.manager.loggerDict if name.startswith("latentlab")},
    )
    assert after == before


def test_warnings_are_shown_and_logged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def warning(*arguments: Any, **options: Any) -> Correlation:
        warnings.warn("rather few units", stacklevel=2)
        return correlation(*arguments, **options)

    everywhere(monkeypatch, "latentlab.study", "compare", warning)
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        found = go(TOY, tmp_path / "toy")
    assert "rather few units" in [str(w.message) for w in shown]
    assert "rather few units" in found.info["warnings"]
    assert "UserWarning: rather few units" in (tmp_path / "toy" / "run.log").read_text()


def test_a_run_can_be_started_from_a_thread(complete: Path, tmp_path: Path):
    thread = threading.Thread(target=go, args=(TOY, tmp_path / "toy"))
    thread.start()
    thread.join()
    assert arrays(tmp_path / "toy") == arrays(complete)


def test_the_lock_is_removed_after_an_interrupt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    interrupted_run(tmp_path / "toy", monkeypatch)
    with RunDirectory(tmp_path / "toy"):
        pass
    assert [entry.name for entry in tmp_path.iterdir()] == ["toy"]
