"""Tests that all commands and code in the documents run, long ones at a small size."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from patching import everywhere
from PIL import Image

import latentlab.study.run  # noqa: F401
from experiments.report_picture import sections
from latentlab import cli
from latentlab.calibration.geweke import geweke
from latentlab.correspondences import registry
from latentlab.registry import EMBEDDINGS, METHODS, MODELS
from latentlab.study.config import load_config
from latentlab.sweeps.points import plan_of

pytestmark = pytest.mark.fixed

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
NAMES = ("fit", "models", "data", "command_line", "verdicts", "plugins", "sweeps", "parallel", "tracking")
DOCUMENTS = [README, *(ROOT / "docs" / f"{name}.md" for name in NAMES)]
ALL = [*DOCUMENTS, *(ROOT / name for name in ("CONTRIBUTING.md", "experiments/README.md", "experiments/benchmarks/README.md"))]
TEXT = "\n".join(path.read_text(encoding="utf-8") for path in DOCUMENTS)
MOST_LINES = 150
"""Largest number of lines of the README."""
SMALL = {
    "nuts": ["inference.n_warmup=30", "inference.n_draws=40", "inference.n_chains=2"],
    "chees": ["inference.n_warmup=30", "inference.n_draws=10", "inference.n_chains=8", "inference.n_superchains=2"],
    "svi": ["inference.n_steps=100", "inference.n_draws=60"],
}
FEW = ["embeddings=[{name: pca}, {name: lle}]", "compare.n_draws=10", "compare.n_pairs=5", "compare.n_permutations=3"]


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", TEXT, flags=re.DOTALL)


def commands():
    lines = [line.split("#")[0].strip() for block in blocks("bash") for line in block.splitlines()]
    return [line for line in lines if line]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("readme")
    (path / "configs").symlink_to(ROOT / "configs")
    for name in ("my_model.py", "my_network.py", "my_decoder.py", "my_parts.py"):
        (path / name).write_text(next(block for block in blocks("python") if block.startswith(f"# {name}")))
    x = np.random.default_rng(0).standard_normal((60, 6))
    x[:, :3] += x[:, 5:] * [1.0, 2.0, 3.0]
    table = pd.DataFrame(x, columns=[*"abcdef"]).assign(id=[f"u{i}" for i in range(60)], kind=["x", "y"] * 30)
    table.to_csv(path / "my.csv", index=False)
    config = {"name": "mine", "dataset": {"name": "iris"}, "model": {"name": "trait"}, "inference": {"name": "nuts"}}
    (path / "my_config.yaml").write_text(yaml.safe_dump({**config, "embeddings": [{"name": "pca", "n_latent": 1}]}))
    return path


def method_of(folder, words):
    """The method of the config that a command names; None where it names none."""
    config = next((folder / word for word in words if word.endswith(".yaml")), None)
    return config and yaml.safe_load(config.read_text())["inference"]["name"]


def arguments_of(command, folder):
    words = shlex.split(command)
    assert words[0] == "latentlab"
    chosen = [word.partition("=")[2] for word in words if word.startswith("inference.name=")]
    method = chosen[0] if chosen else method_of(folder, words)
    if words[1] == "run":
        own = any(name in command for name in ("my_config.yaml", "karate", "grunfeld"))  # embeddings of their own
        words += [*SMALL[method], *(FEW[1:] if own else FEW)]
    if words[1] == "sweep" and "--dry-run" not in words:
        words += [*SMALL[method], *FEW[1:], "sweep.grid={model.n_latent: [1]}"]
        words += [] if "--retry-failed" not in words else ["--executor", "serial"]
    if words[1] == "select":
        words = [word.replace("=1,2,3,4", "=1,2") for word in words] + SMALL[method]
    if words[1] == "calibrate":
        words += ["--n-replications=20", "--n-units=6", "inference.n_warmup=60", "inference.max_tree_depth=4"]
    return words[1:]


@pytest.mark.slow
def test_every_documented_command_runs(folder, monkeypatch, capsys):
    """Commands run in order, since some depend on others; in this process, and the first also in a separate one.

    Of the registry one claim is measured: `test_correspondence` measures all. Geweke's test has few chains and sweeps:
    `test_self_consistency` has enough of them.
    """
    monkeypatch.chdir(folder)
    for name, few in (("n_chains", 20), ("n_sweeps", 10)):
        monkeypatch.setitem(geweke.__kwdefaults__, name, few)
    everywhere(monkeypatch, "latentlab.correspondences", "CORRESPONDENCES", registry.CORRESPONDENCES[:1])
    own = [c for c in commands() if c.startswith("latentlab")]
    assert len(own) >= 8
    script = Path(sys.executable).parent / "latentlab"
    done = subprocess.run([script, *arguments_of(own[0], folder)], cwd=folder, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, f"{own[0]}\n{done.stdout}\n{done.stderr}"
    for command in own[1:]:
        code = cli.main(arguments_of(command, folder))
        said = capsys.readouterr()
        assert code == 0, f"{command}\n{said.out}\n{said.err}"
    for name in ("ppca-wine", "ppca-wine-svi", "mine", "my-table", "curve", "ring"):
        page = folder / "runs" / name / "report.html"
        assert page.stat().st_size > 10_000
    shown = Image.open(ROOT / "docs" / "report.png").text["sections"].splitlines()
    page = (folder / "runs" / "ppca-wine" / "report.html").read_text(encoding="utf-8")
    assert sections(page) == shown, "run `make run` and `python experiments/report_picture.py runs/ppca-wine`"


@pytest.mark.slow
def test_the_documented_command_of_several_processes_runs(folder):
    words = shlex.split(next(command for command in commands() if command.startswith("torchrun")))
    small = ["model.hidden=[8]", "inference.n_steps=50", "inference.n_draws=20", "embeddings=[]", "--out", "runs/two"]
    command = [sys.executable, "-m", "torch.distributed.run", *words[1:], *small]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert done.stdout.count("report: ") == 1
    assert "2 processes, 2 of them on this machine" in (folder / "runs" / "two" / "run.log").read_text()


def test_make_targets_run_the_documented_tools():
    makes = [c for c in commands() if c.startswith("make")]
    assert makes == ["make run", "make test"]
    shown = subprocess.run(["make", "-n", "run", "test"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "latentlab run configs/ppca_wine.yaml" in shown
    assert "ruff check" in shown
    assert "mypy" in shown
    assert "pytest" in shown


@pytest.mark.slow
def test_the_python_examples_run(capsys):
    code = next(block for block in blocks("python") if block.startswith("import latentlab"))
    small = code.replace("ll.ChEES()", "ll.ChEES(n_warmup=150, n_draws=50)")
    assert small != code
    exec(small, {})
    assert "summary-like" in capsys.readouterr().out


@pytest.mark.slow
def test_the_example_with_data_on_disk_runs(tmp_path, monkeypatch):
    code = next(block for block in blocks("python") if "in_memory=False" in block)
    small = code.replace("batch_size=256,", "batch_size=256, n_steps=100,")
    assert small != code
    rng = np.random.default_rng(0)
    monkeypatch.chdir(tmp_path)
    np.save("large.npy", (rng.standard_normal((130_000, 3)) + rng.standard_normal((130_000, 1))).astype(np.float32))
    exec(small, {})


def test_the_example_of_a_sweep_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    everywhere(monkeypatch, "latentlab.study", "write_page", lambda run, **_: run.path)
    exec(next(block for block in blocks("python") if "ll.sweep(" in block), {})
    assert (tmp_path / "runs" / "iris-sweep" / "sweep.csv").is_file()
    exec(next(block for block in blocks("python") if "ll.compare_runs(" in block), {})
    assert (tmp_path / "runs" / "both" / "runs.csv").is_file()


def test_the_example_of_a_page_runs_and_the_documented_trackers_are_valid(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(next(block for block in blocks("python") if ".report()" in block), {})
    assert (tmp_path / "page.html").stat().st_size > 10_000
    assert len(load_config(yaml.safe_load(next(block for block in blocks("yaml") if "tracking:" in block))).tracking) == 2


def test_the_documented_and_the_shipped_sweep_have_valid_points():
    assert len(plan_of(yaml.safe_load(next(block for block in blocks("yaml") if "sweep:" in block))).points) == 12
    assert len(plan_of(ROOT / "configs" / "sweeps" / "wine.yaml").points) == 12
    assert plan_of(yaml.safe_load(next(block for block in blocks("yaml") if "search:" in block))).n_points == 20


def test_the_documented_config_loads(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("my.csv", "mine.csv"):
        Path(name).write_text("id,a,b,c,kind\nu,1,2,3,x\nv,2,1,5,y\n")
    assert load_config(yaml.safe_load(blocks("yaml")[0])).name == "my-table"


def test_documented_tables_list_every_entry():
    for table in (MODELS, METHODS, EMBEDDINGS):
        for name in table:
            assert f"`{name}`" in TEXT, name


@pytest.mark.parametrize("path", ALL, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_and_images_exist(path):
    targets = re.findall(r"\]\(([^)#:]+)\)", path.read_text(encoding="utf-8"))
    assert [target for target in targets if not (path.parent / target).is_file()] == []


def test_every_document_is_checked_and_the_readme_is_short():
    known = {path.resolve() for path in ALL}
    assert {path.resolve() for path in ROOT.glob("docs/**/*.md")} <= known
    assert len(README.read_text(encoding="utf-8").splitlines()) <= MOST_LINES


def test_documented_experiments_and_make_targets_exist():
    """They take minutes to hours and are not run; their output is in the document."""
    said = "\n".join(path.read_text(encoding="utf-8") for path in ALL)
    scripts = set(re.findall(r"experiments/\w+\.py", said))
    assert {path for path in scripts if not (ROOT / path).is_file()} == set()
    targets = set(re.findall(r"`make\s+([\w-]+)", said))
    rules = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
    assert len(targets) > 3
    assert targets <= rules
