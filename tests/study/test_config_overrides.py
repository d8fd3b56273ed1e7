"""Tests of dotted overrides of configs."""

import pytest

from latentlab.errors import ConfigError
from latentlab.study.config import load_config
from latentlab.study.overrides import override

FILE = {
    "name": "toy",
    "dataset": {"name": "iris"},
    "model": {"name": "ppca", "n_latent": 2, "W_scale": 3.0},
    "inference": {"name": "nuts", "n_draws": 50, "n_chains": 2},
    "embeddings": [{"name": "isomap", "n_neighbors": 7, "label": "iso"}, {"name": "pca"}],
}


def test_an_override_replaces_a_single_value():
    config = load_config(FILE, ["inference.n_draws=500", "embeddings.0.n_neighbors=12", "seed=4", "compare.n_neighbors=9"])
    assert (config.inference.n_draws, config.inference.n_chains, config.seed) == (500, 2, 4)
    assert (config.embeddings[0].n_neighbors, config.embeddings[0].label) == (12, "iso")
    assert config.compare.n_neighbors == 9
    assert FILE["inference"]["n_draws"] == 50


def test_the_last_override_wins():
    assert load_config(FILE, ["seed=1", "seed=2"]).seed == 2


def test_a_new_name_drops_the_other_options_of_its_section():
    config = load_config(FILE, ["inference.name=svi", "inference.n_steps=10"])
    assert config.inference.options() == {
        **load_config({**FILE, "inference": {"name": "svi"}}).inference.options(),
        "n_steps": 10,
    }
    assert override(FILE, ["embeddings.0.name=umap"])["embeddings"] == [{"name": "umap"}, {"name": "pca"}]
    assert override(FILE, ["dataset.name=wine", "name=other"])["model"] == FILE["model"]


def test_a_new_name_keeps_other_overrides_in_any_order():
    expected = {"name": "svi", "n_steps": 10}
    assert override(FILE, ["inference.n_steps=10", "inference.name=svi"])["inference"] == expected
    assert override(FILE, ["inference.name=svi", "inference.n_steps=10"])["inference"] == expected


def test_override_values_are_yaml():
    config = override(FILE, ["a=1e-3", "b=[1, x]", "c={d: null}", "e='no'", "f=a=b", "g=~"])
    assert [config[key] for key in "abcefg"] == [0.001, [1, "x"], {"d": None}, "no", "a=b", None]


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("inference.n_draws", "expected KEY=VALUE"),
        ("=5", "expected KEY=VALUE"),
        ("a..b=5", "expected KEY=VALUE"),
        (".a=5", "expected KEY=VALUE"),
        ("", "expected KEY=VALUE"),
        ("inference.n_draws=", "the value is missing"),
        ("inference.n_draws=  ", "the value is missing"),
        ("inference.n_draws=[1,2", "not valid YAML"),
        ("inference.n_draws=010", "as 8"),
        ("inference.n_draws=no", "as False"),
        ("inference.n_draws=!!int 3", "tag"),
        ("embeddings.2.label=x", "embeddings has 2 items, numbered from 0; got '2'"),
        ("embeddings.-1.label=x", "got '-1'"),
        ("embeddings.x=1", "got 'x'"),
        ("embeddings.٣.label=1", "got '٣'"),
        ("seed.x=1", "seed is"),
        ("inference.n_draws.x=1", "inference.n_draws is 50 and has no keys"),
    ],
)
def test_malformed_overrides_are_refused_and_quoted(text, part):
    with pytest.raises(ConfigError) as caught:
        load_config({**FILE, "seed": 3}, [text])
    assert f"override {text!r}" in str(caught.value)
    assert part in str(caught.value)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("inference.n_drws=5", "inference.n_drws: unknown option of the method 'nuts' 'n_drws'; did you mean 'n_draws'?"),
        ("inferense.n_draws=5", "inferense: unknown key 'inferense'; did you mean 'inference'?"),
        ("inference.n_draws=many", "inference.n_draws: must be a whole number of at least 1; got 'many'"),
        ("inference.name=vi", "inference.name: unknown method 'vi'"),
        ("embeddings.0.n_neighbours=5", "embeddings.0.n_neighbours: unknown option of the embedding 'isomap'"),
    ],
)
def test_overrides_of_unknown_paths_are_refused(text, part):
    with pytest.raises(ConfigError) as caught:
        load_config(FILE, [text])
    assert part in str(caught.value)
