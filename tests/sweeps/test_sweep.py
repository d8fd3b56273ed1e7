"""Sweeps: the same table by every executor, after kills and second calls; directories and failures."""

import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import psutil
import pytest
import yaml

import latentlab.study.run  # noqa: F401
from latentlab.cli import main
from latentlab.errors import ConfigError, InferenceError, StoreError
from latentlab.sweeps.sweep import load_sweep, sweep

pytestmark = [pytest.mark.fixed, pytest.mark.filterwarnings("ignore")]

BASE = {
    "name": "toy",
    "dataset": {"name": "linear_gaussian", "n_units": 20, "n_features": 3, "n_latent": 1},
    "model": {"name": "ppca", "n_latent": 1},
    "inference": {"name": "exact", "n_draws": 40},
    "embeddings": [{"name": "pca"}],
    "compare": {"metrics": ["cka"], "n_draws": 10, "n_pairs": 5, "n_permutations": 3},
}
MODELS = [{"name": "ppca", "n_latent": 1}, {"name": "gaussian_mixture", "n_components": 2}]
GRID = {"grid": {"model": MODELS}, "seeds": 2}
PLUGIN = """
import os, signal, warnings
from pathlib import Path
import latentlab as ll
from latentlab.study import stages

stages.write_page = lambda run, **_: run.path  # pages take longer than such fits

class Fragile(ll.models.PPCA):
    '''PPCA whose first fit kills its process, or fails, as the file beside this one says.'''

    name = "fragile"

    def check(self, dataset):
        flag = Path(__file__).with_name(f"flag-{self.n_latent}")
        if flag.is_file():
            text = flag.read_text()
            if text == "warn":
                warnings.warn("unusual at n_latent 1")
                return
            if text != "always":
                flag.unlink()
            if text == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            raise ll.errors.DataError(f"refused at n_latent {self.n_latent}")
        super().check(dataset)
"""


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """The config without `sweep`, with the plugin."""
    path = tmp_path_factory.mktemp("plugin") / "plugin.py"
    path.write_text(PLUGIN)
    return {**BASE, "plugins": [str(path)]}


@pytest.fixture(scope="module")
def serial(base, tmp_path_factory):
    """The sweep by `serial`."""
    folder = tmp_path_factory.mktemp("serial") / "toy"
    return sweep({**base, "sweep": GRID}, executor="serial", out=folder, progress=False)


def run_again(serial, folder, *points):
    """A copy of the sweep in which these points have not been run, and the tables have not been written."""
    shutil.copytree(serial.path, folder, ignore=shutil.ignore_patterns("sweep.csv", "sweep.parquet", "times.csv", *points))


def files(folder):
    return {name: (folder / name).read_bytes() for name in ("sweep.csv", "sweep.parquet", "sweep.json")}


def test_the_table_has_a_row_for_each_run(serial):
    table = serial.to_dataframe()
    assert list(table["point"]) == [f"point-000{i}" for i in range(4)]
    assert list(table["model"]) == ["ppca(n_latent=1)", "gaussian_mixture(n_components=2)"] * 2
    assert list(table["seed"]) == [0, 0, 1, 1]
    assert set(table["status"]) == {"done"}
    run = serial.run(2)
    verdicts = run.verdicts.query("map == 'raw' and alignment == 'similarity'")
    assert table.loc[2, "pca.similarity.verdict"] == verdicts["verdict"].item()
    assert table.loc[2, "pca.similarity.delta"] == verdicts["delta"].item()
    assert table.loc[2, "pca.cka.q95"] == run.scores.query("map == 'raw'")["q95"].item()
    assert run.info["sweep"] == {"name": "toy", "point": "point-0002", "values": serial.points["point-0002"]}
    times = serial.times()
    assert (times["seconds"] > 0).all()
    assert not {"seconds", "ess_per_second"} & set(table)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["process", "dask:local", "ray:local", "submitit:local"])
def test_every_executor_gives_the_same_bytes(engine, base, serial, tmp_path):
    """All points by two workers of `process`; one point by one worker of the others."""
    every = engine == "process"
    run_again(serial, tmp_path / "toy", *(["point-000?"] if every else ["point-0002"]))
    found = sweep({**base, "sweep": GRID}, executor=engine, n_workers=1 + every, out=tmp_path / "toy", progress=False)
    assert files(found.path) == files(serial.path)
    for number in range(len(found.points)):
        one, other = (s.run(number).posterior for s in (found, serial))
        for group, node in other.children.items():
            for variable, array in node.data_vars.items():
                same = np.array_equal(one[group][variable].values, array.values, equal_nan=array.dtype.kind == "f")
                assert same, (number, group, variable)


@pytest.mark.long
@pytest.mark.parametrize("case", ["process", "dask:local", "ray:local", "submitit:local", "driver killed", "worker killed"])
def test_24_points_give_the_same_bytes(case, tmp_path, tmp_path_factory):
    """Two models, two methods, three sizes and two seeds, by each executor and after SIGKILL half-way."""
    methods = [{"name": "svi", "n_steps": 100}, {"name": "nuts", "n_chains": 2, "n_warmup": 50, "n_draws": 100}]
    sizes = {"model.name": ["ppca", "factor_analysis"], "inference": methods, "model.n_latent": [1, 2, 3]}
    config = {**BASE, "dataset": {"name": "wine"}, "sweep": {"grid": sizes, "seeds": 2}}
    expected = tmp_path_factory.getbasetemp() / "24-points"
    if not (expected / "sweep.csv").exists():
        sweep(config, executor="serial", out=expected, progress=False)
    if case.endswith("killed"):
        (tmp_path / "toy.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
        code = "import sys; from latentlab.cli import main; sys.exit(main(sys.argv[1:]))"
        arguments = ["sweep", str(tmp_path / "toy.yaml"), "--out", str(tmp_path / "s"), "--workers", "2"]
        driver = psutil.Popen([sys.executable, "-W", "ignore", "-c", code, *arguments], stderr=subprocess.DEVNULL)
        while len(list((tmp_path / "s").glob("point-*/summary.json"))) < 12:
            assert driver.poll() is None
            time.sleep(0.05)
        workers = [one for one in driver.children() if "LokyProcess" in " ".join(one.cmdline())]
        (driver if case == "driver killed" else workers[0]).kill()
        assert (driver.wait() == 0) == (case == "worker killed")
    engine = "process" if case.endswith("killed") else case
    assert files(sweep(config, executor=engine, n_workers=2, out=tmp_path / "s", progress=False).path) == files(expected)


def test_a_second_call_runs_nothing_and_more_seeds_extend_the_sweep(base, serial, tmp_path):
    folder = tmp_path / "toy"
    shutil.copytree(serial.path, folder)
    before = {path: path.stat().st_mtime_ns for path in folder.glob("point-*/run.json")}
    sweep({**base, "sweep": GRID}, executor="serial", out=folder, progress=False)
    assert {path: path.stat().st_mtime_ns for path in folder.glob("point-*/run.json")} == before
    assert files(folder) == files(serial.path)
    more = sweep({**base, "sweep": {**GRID, "seeds": 3}}, executor="serial", out=folder, progress=False)
    assert len(more.points) == 6
    pd.testing.assert_frame_equal(more.to_dataframe()[:4], serial.to_dataframe())
    with pytest.raises(StoreError, match="contains a sweep of 6 points, and now there are 4"):
        sweep({**base, "sweep": GRID}, executor="serial", out=folder, progress=False)
    other = {**base, "sweep": {"grid": {"model": MODELS[:1]}, "seeds": 6}}
    with pytest.raises(StoreError, match=r"another sweep: point 1 has model=gaussian_mixture\(n_components=2\), seed=0, and now"):
        sweep(other, executor="serial", out=folder, progress=False)
    other = {**base, "inference": {"name": "exact", "n_draws": 41}, "sweep": {**GRID, "seeds": 3}}
    with pytest.raises(StoreError, match=r"settings differ: inference.n_draws: 40 -> 41. Choose another --out"):
        sweep(other, executor="serial", out=folder, progress=False)


@pytest.fixture
def fragile(tmp_path):
    (tmp_path / "fragile.py").write_text(PLUGIN)

    def config(n_points=2, **flags):
        for n, text in flags.items():
            (tmp_path / f"flag-{n.removeprefix('n')}").write_text(text)
        values = {**BASE, "embeddings": [], "model": {"name": "fragile", "n_latent": 1}}
        grid = {"model.n_latent": list(range(1, n_points + 1))}
        return {**values, "plugins": [str(tmp_path / "fragile.py")], "sweep": {"grid": grid}}

    return config


@pytest.mark.slow
def test_a_point_whose_worker_is_killed_is_started_once_more_and_warnings_are_kept(fragile, tmp_path, capsys):
    found = sweep(fragile(n1="warn", n2="kill"), executor="process", n_workers=1, out=tmp_path / "s")
    assert found.is_complete()
    assert "point-0001: its worker died; it is started once more" in capsys.readouterr().out
    assert "unusual at n_latent 1" in " ".join(found.run(0).info["warnings"])


def test_a_failed_point_leaves_the_others_and_is_retried_when_asked(fragile, tmp_path):
    config = fragile(n2="fail")
    found = sweep(config, executor="serial", out=tmp_path / "s", progress=False)
    for _ in range(2):
        table = found.to_dataframe()
        assert list(table["status"]) == ["done", "failed"]
        assert table["error"][1] == "refused at n_latent 2"
        assert not found.is_complete()
        found = sweep(config, executor="serial", out=tmp_path / "s", progress=False)
    again = sweep(config, executor="serial", out=tmp_path / "s", retry_failed=True, progress=False)
    assert list(again.to_dataframe()["status"]) == ["done", "done"]
    assert again.is_complete()


def test_too_many_failures_end_the_sweep(fragile, tmp_path):
    config = fragile(3, n1="always", n2="always")
    with pytest.raises(InferenceError, match=r"2 points failed, as many as .* 1 points are unfinished.*point-0001: refused"):
        sweep(config, executor="serial", out=tmp_path / "s", max_failures=2, progress=False)
    assert list(load_sweep(tmp_path / "s").to_dataframe()["status"])[2] == "not run"


@pytest.mark.slow
def test_a_killed_driver_loses_nothing(base, serial, tmp_path):
    """The driver is killed while points run; workers end with it, and the same sweep is completed, by another executor."""
    config = {**base, "sweep": GRID}
    (tmp_path / "toy.yaml").write_text(yaml.safe_dump(sort_keys=False, data=config))
    code = "import sys; from latentlab.cli import main; sys.exit(main(sys.argv[1:]))"
    arguments = ["sweep", str(tmp_path / "toy.yaml"), "--out", str(tmp_path / "s"), "--workers", "1"]
    command = [sys.executable, "-W", "ignore", "-c", code, *arguments]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    begin = time.monotonic()
    while not list((tmp_path / "s").glob("point-*/posterior.nc")) and time.monotonic() - begin < 240:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    found = sweep(config, executor="serial", out=tmp_path / "s", progress=False)
    assert files(found.path) == files(serial.path)


def test_a_damaged_point_is_shown_and_harms_no_other(serial, tmp_path):
    shutil.copytree(serial.path, tmp_path / "toy")
    (tmp_path / "toy" / "point-0001" / "run.json").write_text("{")
    content = tmp_path / "toy" / "point-0002" / "posterior.nc"
    content.write_bytes(content.read_bytes()[:-1] + b"x")
    (tmp_path / "toy" / "point-0002" / "summary.json").unlink()
    table = load_sweep(tmp_path / "toy").to_dataframe()
    assert list(table["status"]) == ["done", "damaged", "damaged", "done"]
    assert "run.json is damaged" in table["error"][1]
    assert "posterior.nc is damaged" in table["error"][2]


def test_directories_that_cannot_take_a_sweep_are_refused(tmp_path):
    config = {**BASE, "sweep": GRID}
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("x")
    with pytest.raises(StoreError, match=r"is not empty and contains no sweep \('mine.txt' is there\)"):
        sweep(config, executor="serial", out=tmp_path / "full", progress=False)
    with pytest.raises(StoreError, match="is a file, and a folder is needed"):
        sweep(config, executor="serial", out=tmp_path / "full" / "mine.txt", progress=False)
    with pytest.raises(StoreError, match="contains no sweep"):
        load_sweep(tmp_path / "full")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "sweep.json").write_text("{")
    with pytest.raises(StoreError, match=r"sweep\.json is damaged"):
        load_sweep(tmp_path / "bad")
    with pytest.raises(ConfigError, match="max_failures: must be at least 1; got 0"):
        sweep(config, out=tmp_path / "x", max_failures=0)
    assert not (tmp_path / "x").exists()


def test_the_command_line_prints_points_costs_and_the_page(base, serial, tmp_path, capsys):
    (tmp_path / "toy.yaml").write_text(yaml.safe_dump(sort_keys=False, data={**base, "sweep": {**GRID, "seeds": 3}}))
    assert main(["sweep", str(tmp_path / "toy.yaml"), "--dry-run", "--out", str(serial.path)]) == 0
    out = capsys.readouterr().out
    assert "point-0005" in out
    assert "6 points, of which 4 are complete (" in out
    assert "The other 2 need about" in out
    shutil.copytree(serial.path, tmp_path / "toy")
    (tmp_path / "toy" / "point-0003" / "report.html").write_text("")
    assert main(["report", str(tmp_path / "toy")]) == 0
    page = (tmp_path / "toy" / "sweep.html").read_text(encoding="utf-8")
    assert 'href="point-0003/report.html"' in page
    assert "://" not in page.replace("http://www.w3.org/2000/svg", "")
    assert main(["sweep", str(tmp_path / "toy.yaml"), "--executor", "procces"]) == 2
    assert "executor: must be one of" in capsys.readouterr().err


def test_a_thousand_points_are_checked_and_a_table_of_many_is_read_quickly(serial, tmp_path):
    """The row of a complete run is read from its summary, without its arrays."""
    for name in ("point-0000", "point-0001"):
        target = tmp_path / "s" / name
        target.mkdir(parents=True)
        for file in ("run.json", "summary.json"):
            (target / file).write_bytes((serial.path / name / file).read_bytes())
    (tmp_path / "s" / "sweep.json").write_bytes((serial.path / "sweep.json").read_bytes())
    table = load_sweep(tmp_path / "s").to_dataframe()
    pd.testing.assert_frame_equal(table[:2], serial.to_dataframe()[:2], check_dtype=False)
    assert list(table["status"])[2:] == ["not run", "not run"]
