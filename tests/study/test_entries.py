"""Tests of `latentlab list` and `latentlab help`: every argument and default is that of the constructor."""

import inspect
import re

import pytest
import yaml

from latentlab import cli
from latentlab.registry import KINDS, METRICS, MODELS
from latentlab.report.docstrings import docs
from latentlab.settings import described, field_types
from latentlab.study.entries import REQUIRED, arguments
from latentlab.study.entry_text import WIDTH, entry_text, table_text
from latentlab.study.formulas import plain
from latentlab.study.starter import proposal

PLUGIN = '''
import pyro
import pyro.distributions as dist
import latentlab as ll
from latentlab.settings import Count, Positive, settings
from latentlab.symmetry.groups import Identity


@settings
class Mine(ll.LatentModel):
    """A model of my own.

    $$ z_n \\\\sim N(0, \\\\text{width}) $$

    Args:
        width: Prior width of the trait.
    """

    name = "mine"
    dims = {"z": ("unit",)}
    position = ll.Position("z")
    symmetry = Identity()
    methods = ("nuts", "map")
    n_parts: Count
    width: Positive = 2.5

    def model(self, x):
        with pyro.plate("unit", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, self.width))
            pyro.sample("x", dist.Normal(z[:, None], 1.0).expand(x.shape).to_event(1), obs=x)
'''


@pytest.fixture
def plugin(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(PLUGIN)
    return str(path)


@pytest.mark.parametrize("name", [*MODELS])
def test_the_arguments_of_a_model_are_those_of_its_constructor(name):
    entry = MODELS.load(name)
    parameters = inspect.signature(entry).parameters
    found = {one.name: one for one in arguments(MODELS, name)}
    assert list(found) == list(parameters)
    for option, parameter in parameters.items():
        required = parameter.default is inspect.Parameter.empty
        assert (found[option].default == REQUIRED) is required
        if not required:
            default = yaml.safe_load(found[option].default)
            assert default == (list(parameter.default) if isinstance(parameter.default, tuple) else parameter.default)
        assert found[option].values == described(field_types(entry)[option])
        assert found[option].sentence == docs(entry).arguments[option]


@pytest.mark.parametrize("kind", [*KINDS])
def test_a_list_has_each_entry_with_its_own_arguments_within_the_width(kind):
    table = KINDS[kind]
    lines = table_text(table).splitlines()
    assert max(map(len, lines)) <= WIDTH
    assert [line.split(":")[0] for line in lines if re.match(r"\w+: ", line) and line.split(":")[0] in table] == list(table)
    assert all(name in "\n".join(lines) for entry in table for name in (one.name for one in arguments(table, entry)))


def test_shared_arguments_are_listed_once():
    text = table_text(KINDS["datasets"])
    assert text.count("standardize") == 1
    assert "Further arguments of datasets:\n    " in text


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "models"])
def test_every_entry_can_be_shown_in_full(kind):
    for name in KINDS[kind]:
        text = entry_text(KINDS[kind], name)
        assert all(one.sentence.split()[0] in text for one in arguments(KINDS[kind], name) if one.sentence)
        assert "$" not in text.replace("$HOME", "")
        assert "\\" not in text


def test_a_model_in_full_has_formulas_relations_and_its_example(capsys):
    assert cli.main(["list", "models", "gaussian_mixture"]) == 0
    text = capsys.readouterr().out
    assert "    w ~ Dirichlet(weights_concentration), mu_kd ~ N(mu_loc, mu_scale^2)\n" in text
    for part in ("positions   z (unit), labels", "symmetry    Permutation: ", "methods     nuts, chees, svi, map, exact"):
        assert part in text
    assert "kmeans, output: distances (exact): " in text
    assert "whole number of at least 1\n" in text
    assert "one of spherical, diagonal, full, tied; default full\n" in text
    example = yaml.safe_load(text.partition("`latentlab run`\n")[2])
    assert example == proposal("gaussian-mixture", "gaussian_mixture").config
    assert cli.main(["help", "gaussian_mixture"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(text.rstrip("\n"))
    assert "gaussian_mixture (dataset)" in shown


def test_a_metric_in_full_has_its_declared_properties():
    text = entry_text(METRICS, "trustworthiness")
    assert "better      higher" in text
    assert "n_neighbors  a whole number; default 15" in text


@pytest.mark.parametrize("command", [("list", "models"), ("help",)])
def test_an_unknown_name_is_refused_with_the_closest(command, capsys):
    assert cli.main([*command, "gausian_mixture"]) == 2
    assert "'gausian_mixture'; did you mean 'gaussian_mixture'?" in capsys.readouterr().err


def test_help_of_a_command_is_its_help(capsys):
    assert cli.main(["help", "select"]) == 0
    assert capsys.readouterr().out.startswith("usage: latentlab select ")
    assert cli.main(["help"]) == 0
    assert "exit codes: 0 success" in capsys.readouterr().out


def test_an_entry_of_a_plugin_is_listed_and_shown(plugin, capsys):
    assert cli.main(["list", "models", "--plugin", plugin]) == 0
    lines = capsys.readouterr().out.splitlines()
    start = lines.index("mine: A model of my own.")
    assert [line.split()[:2] for line in lines[start + 1 : start + 3]] == [["n_parts", "required"], ["width", "2.5"]]
    assert cli.main(["help", "mine", "--plugin", plugin]) == 0
    text = capsys.readouterr().out
    assert "    z_n ~ N(0, width)\n" in text
    assert "a finite number above 0; default 2.5\n" in text
    assert "Prior width of the trait." in text


@pytest.mark.parametrize(
    ("formula", "text"),
    [
        (r"$A_{z_{t-1}}$", "A_(z_(t-1))"),
        (r"$\mathrm{KL}(P \| Q)$ of `x`", "KL(P | Q) of x"),
        (r"$\frac{a}{b} \propto \Sigma^{-1}$", "(a) / (b) is proportional to Sigma^-1"),
        (r"costs nothing", "costs nothing"),
    ],
)
def test_formulas_become_plain_text(formula, text):
    assert plain(formula) == text
