"""Tests of the origins of values that `latentlab config show` prints."""

import pytest

from latentlab import cli
from latentlab.study.config import load_config
from latentlab.study.origins import with_origins

CONFIG = """\
name: toy
dataset: {name: iris, missing: 0.1}
model: {name: ppca, n_latent: 2}
inference: {name: nuts, n_draws: 5}
embeddings: [{name: pca, label: null}, {name: tsne, label: "a # b"}]
"""


@pytest.fixture
def path(tmp_path):
    (tmp_path / "toy.yaml").write_text(CONFIG)
    return tmp_path / "toy.yaml"


def origins(text):
    """Origin by key and place, such as `n_draws`."""
    lines = [line for line in text.splitlines() if "  # " in line]
    return [(line.partition(":")[0].strip(" -"), line.rpartition("  # ")[2]) for line in lines]


def test_each_value_has_its_origin(path):
    found = origins(with_origins(path, ["inference.name=svi", "model.n_latent=1", "compare={n_draws: 7}", "seed=3"]))
    assert found[:2] == [("name", "file"), ("seed", "override")]
    assert {("missing", "file"), ("standardize", "default"), ("n_latent", "override"), ("W_scale", "default")} <= set(found)
    after = dict(found[found.index(("guide", "default")) :])
    assert after["n_draws"] == "override"  # of `compare`
    assert dict(found[: found.index(("n_particles", "default")) + 6])["n_draws"] != "file"  # removed with `inference.name`
    assert [origin for key, origin in found if key == "label"] == ["default", "file"]


def test_every_line_has_an_origin_and_the_output_resolves_to_the_same(path, tmp_path):
    overrides = ["embeddings.0.label=axes", "inference.n_draws=9"]
    text = with_origins(path, overrides)
    assert all("  # " in line or line.rstrip().endswith(":") for line in text.splitlines())
    (tmp_path / "shown.yaml").write_text(text)
    assert load_config(tmp_path / "shown.yaml") == load_config(path, overrides)
    assert ("label", "override") in origins(text)


def test_a_plugin_of_the_command_line_is_named(path, tmp_path):
    plugin = tmp_path / "mine.py"
    plugin.write_text('def zero(x, n_latent):\n    """Zeros."""\nembeddings = {"zero": zero}\n')
    assert ("plugins", "--plugin") in origins(with_origins(path, (), [str(plugin)]))
    assert ("plugins", "default") in origins(with_origins(path))


def test_the_plain_output_is_that_of_a_run(path, capsys):
    assert cli.main(["config", "show", str(path), "--plain"]) == 0
    assert capsys.readouterr().out == load_config(path).to_yaml()
