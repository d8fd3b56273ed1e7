"""Tests of the command line: exit codes, one-line errors and speed."""

import json
import os
import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from types import SimpleNamespace

import pytest

from latentlab import cli
from latentlab.errors import ConfigError, DataError, InferenceError, MissingDependencyError, ModelError, StoreError
from latentlab.registry import KINDS
from latentlab.study import doctor
from latentlab.study.config import load_config

pytestmark = pytest.mark.fixed

CONFIG = """\
name: toy
dataset: {name: iris}
model: {name: ppca, n_latent: 2}
inference: {name: nuts, n_draws: 5}
embeddings: [{name: pca, label: é}]
"""


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "toy.yaml"
    path.write_text(CONFIG)
    return str(path)


def command(*arguments, **environment):
    """Runs `latentlab` in a process of its own: (exit code, output, errors, modules imported)."""
    program = (
        "import sys, runpy, atexit\n"
        "atexit.register(lambda: print('MODULES', *sorted(m for m in sys.modules if '.' not in m), file=sys.stderr))\n"
        "from latentlab.cli import main\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, encoding="utf-8", env={**os.environ, **environment}
    )
    errors, _, modules = done.stderr.rpartition("MODULES ")
    return done.returncode, done.stdout, errors, set(modules.split())


# -- quick answers


@pytest.mark.parametrize("arguments", [("--help",), ("list",), ("doctor",), ("run", "--help"), ("--version",)])
def test_help_list_and_doctor_are_fast(arguments):
    """No library is imported that takes seconds to load."""
    code, output, errors, modules = command(*arguments)
    assert (code, errors) == (0, "")
    assert output
    assert not modules & {"torch", "pyro", "pandas", "sklearn", "arviz", "numba", "matplotlib"}


def test_config_errors_are_reported_before_data_are_loaded(config):
    code, output, errors, modules = command("run", config, "inference.n_drws=3")
    assert (code, output) == (2, "")
    assert errors.startswith(
        f"latentlab: error: {config}: inference.n_drws: unknown option of the method 'nuts' 'n_drws'; did you mean"
    )
    assert errors.count("\n") == 1
    assert not modules & {"sklearn", "pandas", "xarray", "arviz", "matplotlib", "umap", "openTSNE"}


@pytest.mark.parametrize("text", ["a: [1", "- 1", "a: no", "a: 1\na: 2"])
def test_unreadable_files_are_refused_without_importing_torch(text, config):
    with open(config, "w") as stream:
        stream.write(text)
    code, output, errors, modules = command("run", config)
    assert (code, output) == (2, "")
    assert errors.startswith(f"latentlab: error: {config}")
    assert "torch" not in modules


# -- exit codes and errors


@pytest.fixture
def fake_runner(monkeypatch):
    """Replaces the runner: stores its arguments and raises a given error."""
    calls = SimpleNamespace(error=None, config=None, options=None)

    def run(config, **options):
        calls.config, calls.options = config, options
        if calls.error is not None:
            raise calls.error

    monkeypatch.setitem(sys.modules, "latentlab.study.run", SimpleNamespace(run=run, report=run))
    return calls


def raise_strict_failure():
    error = InferenceError("not converged")
    error.exit_code = 3
    return error


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (None, 0, ""),
        (ConfigError("a"), 2, "latentlab: error: a\n"),
        (DataError("a"), 2, "latentlab: error: a\n"),
        (ModelError("a"), 2, "latentlab: error: a\n"),
        (StoreError("a"), 2, "latentlab: error: a\n"),
        (InferenceError("site 'W', step 3"), 1, "latentlab: error: site 'W', step 3\n"),
        (raise_strict_failure(), 3, "latentlab: error: not converged\n"),
        (ZeroDivisionError("x"), 1, "latentlab: error: ZeroDivisionError: x (unexpected error; --debug shows the traceback)\n"),
        (KeyboardInterrupt(), 130, "latentlab: interrupted; repeat the command with --resume to continue.\n"),
        (
            MissingDependencyError("the embedding 'umap'", "umap-learn", "embed"),
            2,
            "latentlab: error: the embedding 'umap' needs the package 'umap-learn': "
            "install it with `pip install 'latentlab[embed]'`.\n",
        ),
    ],
)
def test_errors_have_their_exit_code_and_one_line(error, code, text, fake_runner, config, capsys):
    fake_runner.error = error
    assert cli.main(["run", config]) == code
    assert capsys.readouterr().err == text


INTERRUPTED = """
import sys
from latentlab import cli
from latentlab.cli import inspection
def interrupted(_):
    exec("raise KeyboardInterrupt")
inspection.doctor_command = interrupted
sys.exit(cli.main(["doctor"]))
"""


def test_an_interrupt_in_library_code_ends_with_130():
    """Libraries run generated code, in which Python would end by the signal regardless of the exit code."""
    done = subprocess.run([sys.executable, "-c", INTERRUPTED], capture_output=True, text=True, timeout=60)
    assert done.returncode == 130, done
    assert "interrupted; repeat the command to continue" in done.stderr


def test_notes_of_an_error_are_printed(fake_runner, config, capsys):
    fake_runner.error = InferenceError("stopped")
    fake_runner.error.add_note("the old run is back")
    cli.main(["run", config])
    assert capsys.readouterr().err == "latentlab: error: stopped\nthe old run is back\n"


def test_debug_shows_the_traceback(fake_runner, config, capsys):
    fake_runner.error = InferenceError("stopped")
    assert cli.main(["run", config, "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["walk"],
        ["run"],
        ["run", "a.yaml", "--fast"],
        ["run", "a.yaml", "--over"],
        ["list", "modles"],
        ["init", "first"],
        ["config"],
        ["report"],
        ["doctor", "a=1"],
    ],
)
def test_wrong_usage_ends_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2
    assert "latentlab" in capsys.readouterr().err


def test_a_missing_config_or_run_ends_with_2(capsys, tmp_path):
    assert cli.main(["run", str(tmp_path / "none.yaml")]) == 2
    assert "none.yaml: no such file" in capsys.readouterr().err
    assert cli.main(["config", "show", str(tmp_path)]) == 2
    assert "is a directory" in capsys.readouterr().err


# -- run


def test_run_passes_all_options_to_the_runner(fake_runner, config):
    assert cli.main(["run", config, "inference.n_draws=7", "--out", "x", "--overwrite", "seed=3", "--strict", "--quiet"]) == 0
    assert (fake_runner.config.inference.n_draws, fake_runner.config.seed) == (7, 3)
    assert fake_runner.options == {
        "out": "x", "overwrite": True, "resume": False, "force": False, "strict": True, "progress": False,
    }  # fmt: skip
    assert cli.main(["run", "--resume", "--force", config]) == 0
    assert fake_runner.options == {
        "out": None, "overwrite": False, "resume": True, "force": True, "strict": False, "progress": True,
    }  # fmt: skip


def test_a_config_error_starts_no_run(fake_runner, config, capsys):
    assert cli.main(["run", config, "inference.n_draws=0", "model.n_latent=x"]) == 2
    assert fake_runner.config is None
    lines = capsys.readouterr().err.split("\n")
    assert lines[0] == f"latentlab: error: {config}: 2 problems."
    assert [line.split(":")[0] for line in lines[1:3]] == ["  model.n_latent", "  inference.n_draws"]


# -- the other commands


def test_list_describes_every_entry(capsys):
    assert cli.main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if line.startswith("  ")] == [name for table in KINDS.values() for name in table]
    assert [line for line in lines[:-2] if not line.startswith("  ")] == list(KINDS)
    assert any(line.endswith("Chemical analysis of 178 wines of three cultivars: 13 columns.") for line in lines)


def test_every_command_accepts_plugins(tmp_path, capsys):
    path = tmp_path / "mine.py"
    path.write_text(
        "from latentlab.models.base import LatentModel\n"
        'class Mine(LatentModel):\n    """A model of my own."""\n    name = "mine"\n    def model(self, x): ...\n'
    )
    assert cli.main(["list", "models", "--plugin", str(path)]) == 0
    assert "mine: A model of my own." in capsys.readouterr().out.splitlines()
    assert cli.main(["config", "schema", "--plugin", str(path)]) == 0
    assert "ModelMine" in json.loads(capsys.readouterr().out)["$defs"]
    for arguments in (["list"], ["doctor"], ["correspondences"], ["config", "schema"]):
        assert cli.main([*arguments, "--plugin", str(tmp_path / "none.py")]) == 2
        assert "none.py': no such file" in capsys.readouterr().err


def test_config_show_prints_an_equivalent_config(config, capsys, tmp_path):
    assert cli.main(["config", "show", config, "seed=5"]) == 0
    resolved = tmp_path / "resolved.yaml"
    resolved.write_text(capsys.readouterr().out)
    assert load_config(resolved) == load_config(config, ["seed=5"])


def test_config_schema_accepts_a_config(config, capsys):
    assert cli.main(["config", "schema", config]) == 0
    assert json.loads(capsys.readouterr().out)["title"] == "Config"


@pytest.mark.parametrize(
    "environment",
    [
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "", "PYTHONHASHSEED": "1"},
        {"LC_ALL": "de_DE.UTF-8", "TZ": "Pacific/Kiritimati", "HOME": "/nonexistent", "PYTHONHASHSEED": "2"},
    ],
)
def test_the_resolved_config_does_not_depend_on_the_machine(environment, config):
    code, output, errors, _ = command("config", "show", "--plain", config, **environment)
    assert (code, errors) == (0, "")
    assert output.replace("\\xe9", "é") == load_config(config).to_yaml()


def test_errors_are_found_with_python_optimised(config):
    code, _, errors, _ = command("run", config, "inference.n_draws=0", "held_out=2", PYTHONOPTIMIZE="1")
    assert code == 2
    assert "2 problems" in errors


def test_a_closed_pipe_is_no_error():
    program = [sys.executable, "-c", "import sys; from latentlab.cli import main; sys.exit(main(['list']))"]
    with subprocess.Popen(
        program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, "PYTHONUNBUFFERED": "1"}
    ) as process:
        process.stdout.close()
        errors = process.stderr.read()
        assert (process.wait(), errors) == (0, b"")


# -- correspondences


@pytest.fixture
def fake_claims(monkeypatch):
    def claim(embedding, *, passed):
        evidence = SimpleNamespace(passed=passed, value=1.0, threshold=2.0, text=f"measured for {embedding}")
        return SimpleNamespace(
            embedding=embedding, model="ppca", grade="exact", claim="it is", conditions="c", breaks="b", citation="s",
            check=lambda: evidence,
        )  # fmt: skip

    def use(*entries):
        registry = SimpleNamespace(CORRESPONDENCES=tuple(claim(name, passed=passed) for name, passed in entries))
        monkeypatch.setitem(sys.modules, "latentlab.correspondences.registry", registry)

    return use


def test_correspondences_are_listed_and_checked(fake_claims, capsys):
    fake_claims(("pca", True), ("umap", True))
    assert cli.main(["correspondences"]) == 0
    assert "pca ~ ppca: exact\n  it is\n  conditions: c\n  fails with: b\n  source: s\n" in capsys.readouterr().out
    assert cli.main(["correspondences", "--check"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "holds  pca   ppca  exact  measured for pca",
        "holds  umap  ppca  exact  measured for umap",
    ]


def test_a_claim_that_fails_ends_with_1(fake_claims, capsys):
    fake_claims(("pca", True), ("umap", False))
    assert cli.main(["correspondences", "--check"]) == 1
    assert "FAILS  umap" in capsys.readouterr().out


# -- doctor


def test_doctor_lists_versions_and_extras_of_missing_packages(monkeypatch, capsys):
    found = doctor.version

    def version(name):
        if name == "umap-learn":
            raise PackageNotFoundError(name)
        return found(name)

    monkeypatch.setattr(doctor, "version", version)
    assert cli.main(["doctor"]) == 0
    rows = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert found("torch") in rows["torch"]
    assert "not installed" in rows["umap-learn"]
    assert "pip install 'latentlab[embed]'" in rows["umap-learn"]
    assert "pytest" not in rows


def test_doctor_fails_if_a_requirement_is_missing_or_too_old(monkeypatch, capsys):
    found = doctor.version
    monkeypatch.setattr(doctor, "version", lambda name: "2.9.1" if name == "torch" else found(name))
    assert cli.main(["doctor"]) == 1
    assert any("torch" in line and "NOT SATISFIED" in line for line in capsys.readouterr().out.splitlines())


@pytest.mark.parametrize(
    ("found", "bounds", "within"),
    [("2.13.0+cpu", ">=2.10", True), ("2.9", ">=2.10", False), ("2.10.0", ">=2.10", True), ("2.10", ">=2.10.0", True),
     ("0.23.4", "<1,>=0.22", True), ("1.0", "<1,>=0.22", False), ("1.2", "", True)],
)  # fmt: skip
def test_versions_are_compared_numerically(found, bounds, within):
    assert doctor._within(found, bounds) is within
