"""Tests of plugins with models, datasets, embeddings and metrics, and of their errors."""

import re
from pathlib import Path

import numpy as np
import pytest
import yaml

from latentlab import cli
from latentlab.errors import ConfigError
from latentlab.inference.exact import Exact
from latentlab.registry import EMBEDDINGS, PLUGIN_TABLES, plugins
from latentlab.study.config import load_config
from latentlab.study.run import load_run

PLUGINS = (Path(__file__).resolve().parents[1] / "docs" / "plugins.md").read_text(encoding="utf-8")
PARTS = next(block for block in re.findall(r"```python\n(.*?)```", PLUGINS, flags=re.DOTALL) if block.startswith("# my_parts.py"))
CONFIG = {
    "name": "ring",
    "dataset": {"name": "ring", "n_units": 20, "noise": 0.3},
    "model": {"name": "ppca", "n_latent": 2},
    "inference": {"name": "exact", "n_draws": 12},
    "embeddings": [{"name": "log_sizes"}],
    "compare": {"metrics": ["spread_ratio"], "n_draws": 4, "n_pairs": 3, "n_permutations": 2},
}


@pytest.fixture
def run(tmp_path, capsys):
    """Runs the command with the given plugin code; returns exit code, output and path of the run."""
    (tmp_path / "ring.yaml").write_text(yaml.safe_dump(CONFIG))

    def go(parts, *arguments):
        (tmp_path / "my_parts.py").write_text(parts)
        out = tmp_path / "ring"
        words = ["run", str(tmp_path / "ring.yaml"), "--plugin", str(tmp_path / "my_parts.py"), "--out", str(out), *arguments]
        code = cli.main(words)
        printed = capsys.readouterr()
        return code, printed.out + printed.err, out

    return go


def line_of(text):
    return next(i for i, line in enumerate(PARTS.splitlines(), 1) if text in line)


def test_plugins_can_add_data_embeddings_and_metrics(run):
    code, said, out = run(PARTS)
    assert code == 0, said
    assert "log_sizes: " in said
    found = load_run(out)
    assert found.scores["metric"].unique().tolist() == ["spread_ratio"]
    fit = found.fit
    with plugins([out.parent / "my_parts.py"]):
        dataset = load_config(found.config).build_dataset()
        assert [name for table in PLUGIN_TABLES.values() for name in table if name in ("ring", "log_sizes", "spread_ratio")] == [
            "ring", "log_sizes", "spread_ratio",
        ]  # fmt: skip
    np.testing.assert_array_equal(fit.dataset.x, dataset.x)
    np.testing.assert_array_equal(found.embeddings["log_sizes"].values, np.log1p(np.abs(dataset.x[:, :2])))
    assert "log_sizes" not in EMBEDDINGS
    assert cli.main(["report", str(out)]) == 0


def test_a_failing_metric_is_named_and_needs_no_second_fit(run, monkeypatch):
    broken = PARTS.replace("abs(np.log(x.size / y.size))", 'x.sizes["unit"]')
    code, said, out = run(broken)
    assert code == 1
    assert f"metric 'spread_ratio' failed: AttributeError: 'Positions' object has no attribute 'sizes' ({out.parent}" in said
    assert f"my_parts.py, line {line_of('abs(np.log')})" in said
    assert "Traceback" not in said
    monkeypatch.setattr(Exact, "run", lambda *_: pytest.fail("fitted twice"))
    assert run(PARTS, "--resume")[0] == 2, "the plugin was changed"
    code, said, out = run(PARTS, "--resume", "--force")
    assert code == 0, said
    assert load_run(out).info["status"] == "done"


@pytest.mark.parametrize(
    ("was", "is_now", "message"),
    [
        ("np.log1p(np.abs(x[:, :n_latent]))", '{}["a"]', "embeddings.0: embedding 'log_sizes' failed: KeyError: 'a'"),
        ("np.cos(angle)", "np.cosinus(angle)", "dataset 'ring' cannot be loaded: AttributeError"),
        ('datasets = {"ring": ring}', "datasets = {rings}", "cannot be imported: NameError: name 'rings' is not defined"),
    ],
    ids=["embedding", "dataset", "import"],
)
def test_errors_in_a_plugin_state_file_and_line(was, is_now, message, run):
    code, said, out = run(PARTS.replace(was, is_now))
    assert code in (1, 2)
    assert message in said
    assert f"({out.parent}/my_parts.py, line {line_of(was)})" in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", r"defines no subclass of latentlab\.LatentModel, and none of the dicts `datasets`"),
        ("embeddings = [len]", "`embeddings` must be a dict from names to functions; got list"),
        ("embeddings = {1: len}", "must be a dict from names to functions; got 1"),
        ("datasets = {'a': 3}", "must be a dict from names to functions; got 'a': 3"),
        ("metrics = {'len': len}", "'len' must be a function with this name and the decorator"),
        ("embeddings = {'pca': len}", "'pca' is the name of a built-in embedding; rename"),
    ],
)
def test_invalid_plugin_files_are_refused(content, message, tmp_path):
    path = tmp_path / "parts.py"
    path.write_text(content)
    with pytest.raises(ConfigError, match=message), plugins([path]):
        pass


def test_options_belong_to_the_loaded_plugin(tmp_path):
    """Two plugin files in one process use the same name for functions with different options."""
    for name, option in (("one", "width"), ("two", "height")):
        (tmp_path / f"{name}.py").write_text(f"def mine(x, n_latent, {option}: int = 1): ...\nembeddings = {{'mine': mine}}\n")
        embeddings = [{"name": "mine", option: 2}]
        config = {**CONFIG, "dataset": {"name": "iris"}, "embeddings": embeddings, "compare": {}}
        found = load_config(config, plugins=[tmp_path / f"{name}.py"])
        assert getattr(found.embeddings[0], option) == 2
        with pytest.raises(ConfigError, match=f"{option}: must be a whole number"):
            load_config({**config, "embeddings": [{"name": "mine", option: "x"}]}, plugins=[tmp_path / f"{name}.py"])
