"""Tests of run directories: exact reading, damaged files, and protection of existing runs."""

import json
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import safetensors.numpy
import xarray as xr

from latentlab.data.load import load_dataset
from latentlab.errors import StoreError
from latentlab.files import sha256
from latentlab.results.netcdf import save
from latentlab.results.tree import build
from latentlab.store import directory as directory_module
from latentlab.store.data import data_tree
from latentlab.store.directory import HELD_OUT, RUN_JSON, RunDirectory, is_run, place
from latentlab.store.read import Run, differences, read

CONFIG = "name: toy\nseed: 0\n"
SCORES = pd.DataFrame(
    {
        "metric": ["knn", "NA", "1e3"],
        "embedding": ["01", "null", "pca"],
        "units": ["unit", "user", "item"],
        "seed": ["0", "", ""],
        "mean": [0.1 + 0.2, np.nan, -np.inf],
        "sd": [1, 2, 3],
    }
)
VERDICTS = pd.DataFrame(
    {"embedding": ["01"], "units": ["unit"], "verdict": ["distinct"], "delta": [np.pi], "worst_units": ["3 17"]}
)
DIAGNOSTICS = [
    {"check": "R-hat", "quantity": "W", "value": math.nan, "threshold": "< 1.01", "verdict": "fail"},
    {"check": "k-hat", "quantity": "q", "value": math.inf, "threshold": "< 0.7", "verdict": "fail"},
    {"check": "LOO", "quantity": "", "value": "a point estimate", "threshold": "", "verdict": "not applicable"},
]
PARAMS = {"W": np.arange(6.0).reshape(3, 2)}


def tree(seed: int = 0) -> xr.DataTree:
    rng = np.random.default_rng(seed)
    raw, aligned = ({"W": rng.normal(size=(2, 5, 3, 2))} for _ in range(2))
    return build({"posterior": raw, "latents": aligned}, dims={"W": ("feature", "latent")}, attrs={"seed": seed})


def embeddings() -> xr.Dataset:
    values = np.random.default_rng(1).normal(size=(4, 2))
    return xr.Dataset({"pca": (("unit", "latent"), values)}, coords={"unit": ["a", "b", "c", "d"], "latent": [0, 1]})


def begun(directory: RunDirectory, seed: int = 0, **options: object) -> None:
    directory.begin({"name": "toy", "seed": seed}, CONFIG, **options)


def fill(directory: RunDirectory, seed: int = 0) -> None:
    directory.stage("fit")
    directory.write_tree("data.nc", data_tree(load_dataset("iris")))
    directory.write_tree("posterior.nc", tree(seed))
    directory.write_json("diagnostics.json", DIAGNOSTICS)
    directory.write("params/params.safetensors", safetensors.numpy.save(PARAMS))
    directory.write_tree("embeddings.nc", embeddings())
    directory.write_tree("comparison.nc", xr.Dataset({"score": ("draw", [0.5, np.nan])}, coords={"draw": [0, 1]}))
    directory.write_table("comparison.csv", SCORES)
    directory.write_table("verdicts.csv", VERDICTS)


def complete_directory(path: Path, seed: int = 0) -> Path:
    with RunDirectory(path) as directory:
        directory.existing()
        begun(directory, seed)
        fill(directory, seed)
        directory.finish("done")
    return path


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return complete_directory(tmp_path_factory.mktemp("runs") / "toy")


@pytest.fixture
def run(original: Path, tmp_path: Path) -> Path:
    """A copy of a complete run."""
    return Path(shutil.copytree(original, tmp_path / "toy"))


def contents(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


def update_hash(run: Path, name: str) -> None:
    """Updates the stored hash of a file, as after deliberate tampering."""
    info = json.loads((run / "run.json").read_text())
    info["files"][name] = {"sha256": sha256(run / name), "bytes": (run / name).stat().st_size}
    (run / "run.json").write_text(json.dumps(info))


# -- what is written reads back


def test_tables_of_older_runs_have_one_kind_of_units(run: Path):
    """Tables of older runs have no column for the kind of units."""
    info = json.loads((run / RUN_JSON).read_text())
    VERDICTS.drop(columns="units").to_csv(run / "verdicts.csv", index=False)
    info["files"]["verdicts.csv"]["sha256"] = sha256(run / "verdicts.csv")
    (run / RUN_JSON).write_text(json.dumps(info))
    assert read(run).verdicts["units"].tolist() == ["unit"]


def test_former_variable_names_are_read_with_a_warning(run: Path):
    info = json.loads((run / RUN_JSON).read_text())
    data = read(run).comparison.assign(knew=("embedding", [0.5]), knew_p=("embedding", [0.1]))
    save(xr.DataTree(data.isel(embedding=[0]) if data.sizes.get("embedding", 1) > 1 else data), run / "comparison.nc")
    info["files"]["comparison.nc"]["sha256"] = sha256(run / "comparison.nc")
    (run / RUN_JSON).write_text(json.dumps(info))
    with pytest.warns(FutureWarning, match="'knew' is now 'uncertainty_correlation'"):
        found = read(run).comparison
    assert found["uncertainty_correlation"].item() == 0.5
    assert "knew" not in found


def test_every_part_reads_back_exactly(run: Path):
    found = read(run)
    assert found.config == {"name": "toy", "seed": 0}
    for group in ("posterior", "latents"):
        assert np.array_equal(found.posterior[group]["W"].values, tree()[group]["W"].values)
    assert found.posterior.attrs["seed"] == 0
    assert found.embeddings.equals(embeddings())
    assert np.array_equal(found.comparison["score"].values, [0.5, np.nan], equal_nan=True)
    pd.testing.assert_frame_equal(found.scores, SCORES, check_exact=True, check_dtype=False)
    pd.testing.assert_frame_equal(found.verdicts, VERDICTS, check_exact=True, check_dtype=False)
    assert np.array_equal(found.params["W"], PARAMS["W"])


def test_diagnostics_keep_numbers_text_and_non_finite_values(run: Path):
    assert "NaN" not in (run / "diagnostics.json").read_text()
    value = read(run).diagnostics["value"].tolist()
    assert math.isnan(value[0])
    assert value[1:] == [math.inf, "a point estimate"]


def test_run_json_lists_every_file_with_its_hash(run: Path):
    info = json.loads((run / "run.json").read_text())
    assert info["status"] == "done"
    assert set(info["files"]) == set(contents(run)) - {"run.json"}
    assert all(entry["sha256"] == sha256(run / name) for name, entry in info["files"].items())


def test_files_of_a_run_are_reproducible(run: Path, tmp_path: Path):
    again = contents(complete_directory(tmp_path / "again"))
    timed = {"run.json", "run.log", "events.jsonl"}
    assert set(again) == set(contents(run))
    assert {n for n, data in contents(run).items() if again[n] != data} <= timed


def test_checkpoints_are_deleted_when_the_run_is_complete(tmp_path: Path):
    with RunDirectory(tmp_path / "toy") as directory:
        begun(directory)
        (directory.path / "checkpoints" / "chains.safetensors").write_bytes(b"x")
        directory.finish("done")
    assert not (tmp_path / "toy" / "checkpoints").exists()


# -- what is damaged is named

PARTS = [
    "config.yaml",
    "data.nc",
    "posterior.nc",
    "embeddings.nc",
    "comparison.nc",
    "comparison.csv",
    "verdicts.csv",
    "diagnostics.json",
    "params/params.safetensors",
]


def flipped(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


@pytest.mark.parametrize("name", PARTS)
@pytest.mark.parametrize(
    "damage",
    [flipped, lambda data: data[: len(data) // 2], lambda _: b"", lambda data: b"garbage" + data],
    ids=["one bit flipped", "cut short", "emptied", "garbage"],
)
def test_a_damaged_file_of_a_run_is_named(name: str, damage: Callable[[bytes], bytes], run: Path):
    (run / name).write_bytes(damage((run / name).read_bytes()))
    with pytest.raises(StoreError, match=f"{run}/{name} is damaged"):
        read(run)


@pytest.mark.parametrize("name", PARTS)
def test_a_missing_file_of_a_run_is_named(name: str, run: Path):
    (run / name).unlink()
    with pytest.raises(StoreError, match=f"{run}/{name} is missing"):
        read(run)


@pytest.mark.parametrize("name", ["run.log", "events.jsonl"])
def test_a_log_may_be_deleted(name: str, run: Path):
    (run / name).unlink()
    assert read(run).info["status"] == "done"


def test_a_newer_format_is_refused(run: Path):
    info = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({"format": info["format"] + 1, "parts": "of which nothing is known"}))
    with pytest.raises(StoreError, match=r"run\.json has format 2, and this version of latentlab reads up to 1"):
        read(run)


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"format": 1}', '{"format": 1, "files": {"a": 1}, "status": "done", "stage": ""}']
)
def test_a_damaged_run_json_is_named(content: str, run: Path):
    (run / "run.json").write_text(content)
    with pytest.raises(StoreError, match=r"run\.json is damaged"):
        read(run)


def test_folders_that_are_not_runs_are_refused(tmp_path: Path):
    with pytest.raises(StoreError, match=f"{tmp_path} is not a run directory"):
        read(tmp_path)


def test_parts_a_run_lacks_are_reported(tmp_path: Path):
    with RunDirectory(tmp_path / "toy") as directory:
        begun(directory)
        directory.stage("embeddings")
        directory.stop("failed", RuntimeError("no"))
    with pytest.raises(StoreError, match=r"has no comparison\.csv: the run is failed at stage 'embeddings'; --resume"):
        _ = read(tmp_path / "toy").scores


def test_a_posterior_with_nan_names_file_group_and_site(run: Path):
    bad = tree()
    bad["latents"]["W"].values[0, 0] = np.nan
    save(bad, run / "posterior.nc")
    update_hash(run, "posterior.nc")
    with pytest.raises(StoreError, match=r"posterior\.nc, group 'latents': 'W' contains non-finite values"):
        _ = read(run).posterior


def test_invalid_data_files_are_named(run: Path):
    assert read(run).data.digest() == load_dataset("iris").digest()
    for group in ("arrays", "truth"):
        changed = data_tree(load_dataset("iris"))
        del changed[group]
        save(changed, run / "data.nc")
        update_hash(run, "data.nc")
        with pytest.raises(StoreError, match=rf"data\.nc: not the data of a run: KeyError: '{group}'"):
            _ = read(run).data


def test_a_posterior_without_a_group_names_it(run: Path):
    save(xr.DataTree.from_dict({"posterior": tree()["posterior"].to_dataset()}), run / "posterior.nc")
    update_hash(run, "posterior.nc")
    with pytest.raises(StoreError, match=r"posterior\.nc: group 'latents' is missing"):
        _ = read(run).posterior


class Payload:
    """Unpickled, it makes a file."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.canary),)


@pytest.mark.parametrize("name", PARTS)
def test_a_pickle_in_place_of_any_file_is_never_read(name: str, run: Path, tmp_path: Path):
    import pickle

    canary = tmp_path / "canary"
    (run / name).write_bytes(pickle.dumps(Payload(canary)))
    update_hash(run, name)
    part = {"config.yaml": "config", "posterior.nc": "posterior", "embeddings.nc": "embeddings", "comparison.nc": "comparison"}
    part |= {"data.nc": "data", "comparison.csv": "scores", "verdicts.csv": "verdicts", "diagnostics.json": "diagnostics"}
    with pytest.raises(StoreError, match=name):
        getattr(read(run), part.get(name, "params"))
    assert not canary.exists()
    pickle.loads((run / name).read_bytes())
    assert canary.exists(), "the payload works where pickles are read"


# -- a run that was there is never lost


def test_a_run_is_neither_replaced_nor_resumed_without_request(run: Path):
    before = contents(run)
    with RunDirectory(run) as directory, pytest.raises(StoreError, match=r"contains a run \(done\); --overwrite .* --resume"):
        directory.existing()
    assert contents(run) == before


@pytest.mark.parametrize("overwrite", [False, True])
def test_other_directories_are_not_overwritten(overwrite: bool, tmp_path: Path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("all of it")
    with (
        RunDirectory(tmp_path / "mine") as directory,
        pytest.raises(StoreError, match=r"contains 'thesis\.tex' but no run"),
    ):
        directory.existing(overwrite=overwrite)


def test_a_file_is_refused_as_run_directory(tmp_path: Path):
    (tmp_path / "toy").write_text("")
    with RunDirectory(tmp_path / "toy") as directory, pytest.raises(StoreError, match="is a file"):
        directory.existing()


def test_the_old_run_is_kept_until_the_new_one_is_complete(run: Path):
    before = contents(run)
    with RunDirectory(run) as directory:
        assert directory.existing(overwrite=True) is None
        begun(directory, seed=1)
        fill(directory, seed=1)
        assert contents(directory.previous) == before
        directory.finish("done")
    assert read(run).info["seed"] == 1
    assert [path.name for path in run.parent.iterdir()] == ["toy"]


def test_the_old_run_is_restored_if_the_new_one_fails(run: Path):
    before = contents(run)
    with RunDirectory(run) as directory:
        directory.existing(overwrite=True)
        begun(directory, seed=1)
        fill(directory, seed=1)
        kept = directory.stop("failed", RuntimeError("no"))
    assert contents(run) == before
    assert kept == run.with_name("toy.failed")
    assert read(kept).info["error"] == {"type": "RuntimeError", "message": "no", "stage": "fit"}
    assert np.array_equal(read(kept).posterior["posterior"]["W"].values, tree(1)["posterior"]["W"].values)


def test_the_old_run_is_restored_if_the_new_one_cannot_begin(run: Path, monkeypatch: pytest.MonkeyPatch):
    before = contents(run)

    def full(path: Path, _: bytes) -> None:
        raise StoreError(f"{path}: no room")

    monkeypatch.setattr(directory_module, "write", full)
    with RunDirectory(run) as directory:
        directory.existing(overwrite=True)
        with pytest.raises(StoreError, match="no room"):
            begun(directory, seed=1)
    assert contents(run) == before
    assert [path.name for path in run.parent.iterdir()] == ["toy"]


def simulate_kill(directory: RunDirectory) -> None:
    """Simulates a killed process: no cleanup, and the system releases its lock."""
    os.close(directory.lock._descriptor)


def test_an_overwrite_that_was_killed_can_be_resumed_or_repeated(run: Path):
    before = contents(run)
    first = RunDirectory(run).__enter__()
    first.existing(overwrite=True)
    begun(first, seed=1)
    simulate_kill(first)
    with RunDirectory(run) as second:
        with pytest.raises(StoreError, match=r"contains a run \(running, but its process has ended\)"):
            second.existing()
        assert second.existing(overwrite=True) is None
        begun(second, seed=2)
        assert contents(second.previous) == before, "what waits is the complete run, not the attempt that was killed"
        second.stop("interrupted", KeyboardInterrupt())
    with RunDirectory(run) as third:
        begun(third, seed=2, old=third.existing(resume=True))
        fill(third, seed=2)
        third.finish("done")
    assert read(run).info["seed"] == 2
    assert [path.name for path in run.parent.iterdir()] == ["toy"]


def test_a_process_killed_between_two_renames_loses_nothing(run: Path):
    before = contents(run)
    directory = RunDirectory(run).__enter__()
    run.rename(directory.previous)
    simulate_kill(directory)
    with RunDirectory(run):
        assert contents(run) == before


def test_a_process_killed_before_it_removed_the_old_run_leaves_the_new_one(run: Path):
    shutil.copytree(run, run.with_name(".toy.previous"))
    after = contents(run)
    with RunDirectory(run) as directory:
        assert not directory.previous.exists()
    assert contents(run) == after


def test_resuming_keeps_intact_files_and_reports_damaged_ones(tmp_path: Path):
    with RunDirectory(tmp_path / "toy") as directory:
        begun(directory)
        fill(directory)
        directory.stop("interrupted", KeyboardInterrupt())
    (tmp_path / "toy" / "embeddings.nc").write_bytes(b"")
    (tmp_path / "toy" / ".posterior.nc.123.tmp").write_bytes(b"half of it")
    with RunDirectory(tmp_path / "toy") as directory:
        begun(directory, old=directory.existing(resume=True))
        assert directory.has("posterior.nc")
        assert not directory.has("embeddings.nc")
        assert not list(directory.path.glob(".*"))
    assert "embeddings.nc is missing or damaged; it will be recreated" in (tmp_path / "toy" / "run.log").read_text()


# -- links, logs, places


@pytest.mark.parametrize("name", ["run.log", "events.jsonl"])
def test_a_log_that_is_a_link_is_refused(name: str, tmp_path: Path):
    (tmp_path / "elsewhere").write_text("precious")
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy" / name).symlink_to(tmp_path / "elsewhere")
    (tmp_path / "toy" / "run.json").write_text('{"format": 1, "status": "interrupted", "stage": "fit", "files": {}}')
    with RunDirectory(tmp_path / "toy") as directory, pytest.raises(StoreError, match=rf"{name} is a link"):  # noqa: PT012
        begun(directory, old=directory.existing(resume=True))
        directory.logger.info("hello")
    assert (tmp_path / "elsewhere").read_text() == "precious"


@pytest.mark.parametrize("name", ["checkpoints", "params"])
def test_a_folder_that_is_a_link_is_refused(name: str, tmp_path: Path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy" / name).symlink_to(tmp_path / "elsewhere")
    (tmp_path / "toy" / "run.json").write_text('{"format": 1, "status": "interrupted", "stage": "fit", "files": {}}')
    with RunDirectory(tmp_path / "toy") as directory, pytest.raises(StoreError, match=f"{name} is a link"):
        begun(directory, old=directory.existing(resume=True))
    assert not list((tmp_path / "elsewhere").iterdir())


@pytest.mark.parametrize("name", PARTS)
def test_a_file_that_is_a_link_is_replaced(name: str, tmp_path: Path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("precious")
    with RunDirectory(tmp_path / "toy") as directory:
        begun(directory)
        (directory.path / name).unlink(missing_ok=True)
        (directory.path / name).symlink_to(elsewhere)
        directory.write("config.yaml", CONFIG.encode())
        fill(directory)
    assert elsewhere.read_text() == "precious"
    assert not (tmp_path / "toy" / name).is_symlink()


def test_the_log_is_limited_in_size_and_keeps_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(directory_module, "LOG_BYTES", 2000)
    with RunDirectory(tmp_path / "toy") as directory:
        begun(directory)
        for i in range(300):
            directory.logger.info("line %d", i)
        directory.logger.info("x" * 10_000)
        assert all(file.stat().st_size <= 2000 for file in directory.path.glob("run.log*"))
        directory.logger.info("the last line")
    assert "the last line" in (tmp_path / "toy" / "run.log").read_text()
    assert len(list((tmp_path / "toy").glob("run.log*"))) == 2


def test_a_deleted_log_is_started_again(tmp_path: Path):
    with RunDirectory(tmp_path / "toy") as directory:
        begun(directory)
        directory.logger.info("one")
        (directory.path / "run.log").unlink()
        directory.logger.info("two")
        directory.finish("done")
    assert "two" in (tmp_path / "toy" / "run.log").read_text()


def test_a_directory_deleted_while_writing_is_an_error(tmp_path: Path):
    with RunDirectory(tmp_path / "toy") as directory:
        begun(directory)
        shutil.rmtree(directory.path)
        for act in (
            lambda: directory.write_tree("posterior.nc", tree()),
            lambda: directory.write("config.yaml", b""),
            directory.stage,
        ):
            with pytest.raises(StoreError, match=str(directory.path)):
                act() if act != directory.stage else act("fit")


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a/b", "..", ".", ""])
def test_names_outside_the_root_are_refused(name: str, tmp_path: Path):
    with pytest.raises(StoreError, match="must be inside of"):
        place(name, tmp_path / "runs")


def test_links_outside_the_root_are_refused(tmp_path: Path):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "toy").symlink_to(tmp_path)
    with pytest.raises(StoreError, match="must be inside of"):
        place("toy", tmp_path / "runs")


def test_a_second_writer_is_refused(run: Path):
    with RunDirectory(run), pytest.raises(StoreError, match=f"{run} is being written by process {os.getpid()} on"):
        RunDirectory(run).__enter__()
    with RunDirectory(run):
        pass


def test_differences_of_configs_are_named_by_path():
    assert differences({"a": {"b": 1}, "c": None}, {"a": {"b": 1}, "c": None}) == []
    assert differences({"a": {"b": 1}, "c": 1}, {"a": {"b": [2]}, "d": None}) == [
        "a.b: 1 -> [2]",
        "c: 1 -> not set",
        "d: not set -> None",
    ]


def test_reading_does_not_write(run: Path):
    before = {path: path.stat().st_mtime_ns for path in [run, *run.rglob("*")]}
    assert isinstance(read(run).posterior, xr.DataTree)
    assert isinstance(read(run), Run)
    assert {path: path.stat().st_mtime_ns for path in [run, *run.rglob("*")]} == before


def test_a_run_with_held_out_units_and_a_damaged_record_is_a_run(tmp_path: Path):
    """It can therefore be overwritten."""
    (tmp_path / RUN_JSON).write_text("{")
    (tmp_path / HELD_OUT).write_text("unit,elpd\n")
    assert is_run(tmp_path)
    (tmp_path / "thesis.txt").write_text("mine")
    assert not is_run(tmp_path)
