"""Tests of configs: sections, resolved values and errors with their path."""

import inspect
import json
import math
from pathlib import Path

import numpy as np
import pydantic
import pytest

from latentlab.data.load import dataset_options, load_dataset
from latentlab.embeddings.embed import embed, embedding_options
from latentlab.errors import ConfigError
from latentlab.inference.nuts import NUTS
from latentlab.inference.svi import SVI
from latentlab.models.ppca import PPCA
from latentlab.registry import DATASETS, EMBEDDINGS, METHODS, MODELS, resolve
from latentlab.study.config import json_schema, load_config, run_name
from latentlab.study.schema import COMMON, section
from latentlab.study.signature import keyword_only
from latentlab.study.yaml import parse
from latentlab.sweeps.points import PARTS

CONFIGS = sorted((Path(__file__).resolve().parents[2] / "configs").glob("*.yaml"))
PLUGIN = '''
import torch
from latentlab.models.base import LatentModel, Position
from latentlab.symmetry.groups import Identity


class Toy(LatentModel):
    """A toy."""

    name = "toy"
    dims = {"z": ("unit", "latent")}
    position = Position("z")
    symmetry = Identity()
    methods = ("svi",)

    def __init__(self, width: int, *, sizes: tuple[int, ...] = (3, 4), prior: object = torch.ones(1), copy: bool = False):
        if width > 9:
            raise ValueError("width is too large")
        self.width, self.sizes, self.copy = width, sizes, copy

    def model(self, x):
        raise RuntimeError("not to be run")
'''


def mapping(**sections):
    base = {
        "name": "toy",
        "dataset": {"name": "iris"},
        "model": {"name": "ppca", "n_latent": 2},
        "inference": {"name": "nuts"},
        "embeddings": [{"name": "pca"}],
    }
    return {key: value for key, value in {**base, **sections}.items() if value is not ...}


def problems(source, overrides=(), plugins=()):
    with pytest.raises(ConfigError) as caught:
        load_config(source, overrides, plugins)
    assert caught.value.exit_code == 2
    return str(caught.value)


@pytest.fixture
def plugin(tmp_path):
    path = tmp_path / "toy_models.py"
    path.write_text(PLUGIN)
    return str(path)


@pytest.fixture(autouse=True)
def no_data_loading(monkeypatch):
    """Loading a data set fails: checking a config reads none."""
    for name in ("wine", "iris", "breast_cancer", "digits"):
        monkeypatch.setattr(f"sklearn.datasets.load_{name}", lambda **_: pytest.fail("a data set was read"))


# -- what is derived


@pytest.mark.parametrize("name", list(METHODS))
def test_method_sections_match_constructor_arguments_and_defaults(name):
    expected = {p.name: p.default for p in inspect.signature(METHODS.load(name)).parameters.values()}
    assert {k: f.default for k, f in section("inference", name).model_fields.items() if k != "name"} == expected


@pytest.mark.parametrize("name", list(MODELS))
def test_model_sections_match_constructor_arguments(name):
    expected = set(inspect.signature(MODELS.load(name)).parameters)
    assert set(section("model", name).model_fields) == {"name", *expected}


def test_dataset_sections_have_own_and_common_options():
    shared = {p.name for p in inspect.signature(load_dataset).parameters.values() if p.kind is inspect.Parameter.KEYWORD_ONLY}
    for name in DATASETS:
        assert set(section("dataset", name).model_fields) == {"name", *shared, *dataset_options(name)}


@pytest.mark.parametrize(
    ("name", "common"),
    [
        ("pca", {"n_latent", "impute", "label"}),
        ("isomap", {"n_latent", "impute", "label"}),
        ("tsne", {"n_latent", "impute", "label", "seed", "n_seeds"}),
        ("umap", {"n_latent", "impute", "label", "seed", "n_seeds"}),
        ("kmeans", {"n_latent", "impute", "label", "seed", "n_seeds"}),
        ("agglomerative", {"n_latent", "impute", "label"}),
        ("window_pca", {"n_latent", "impute", "label"}),
        ("autoencoder", {"n_latent", "impute", "label", "seed", "n_seeds"}),
        ("file", {"label"}),
    ],
)
def test_embedding_sections_have_own_and_used_common_options(name, common):
    fields = section("embeddings", name).model_fields
    assert set(fields) == {"name", *common, *embedding_options(name)}
    every = {p.name for p in inspect.signature(embed).parameters.values() if p.kind is inspect.Parameter.KEYWORD_ONLY}
    assert every == {"n_latent", "impute", "label", "seed", "n_seeds"}


@pytest.mark.parametrize("entry", [*COMMON.values(), "latentlab.fit:fit", "latentlab.results.tree:build"])
def test_keyword_arguments_read_from_source_match_python(entry):
    found = inspect.signature(resolve(entry), eval_str=True).parameters
    assert keyword_only(entry) == {p.name: p for p in found.values() if p.kind is inspect.Parameter.KEYWORD_ONLY}


def test_new_constructor_arguments_become_options(monkeypatch):
    class More(PPCA):
        def __init__(self, n_latent: int, depth: int = 3) -> None:
            super().__init__(n_latent)
            self.depth = depth

    monkeypatch.setitem(MODELS._entries, "more", More)
    config = load_config(mapping(model={"name": "more", "n_latent": 2, "depth": 5}))
    assert config.model.depth == 5
    assert config.build_model().depth == 5


def test_built_objects_match_the_config():
    config = load_config(
        mapping(model={"name": "ppca", "n_latent": 3, "W_scale": 2}, inference={"name": "svi", "learning_rate": 1})
    )
    assert repr(config.build_model()) == repr(PPCA(n_latent=3, W_scale=2.0))
    assert config.build_method() == SVI(learning_rate=1.0)
    assert load_config(mapping()).build_method() == NUTS()


def test_the_dataset_is_loaded_with_its_options(monkeypatch):
    monkeypatch.undo()
    config = load_config(
        mapping(dataset={"name": "iris", "columns": ["petal length (cm)"], "standardize": False, "missing": 0.1})
    )
    dataset = config.build_dataset()
    assert dataset.sizes == {"unit": 150, "feature": 1}
    assert dataset.transform is None
    assert np.isnan(dataset.x).sum() == 15


# -- what is resolved


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_config_loads_and_has_the_name_of_its_file(path):
    config = load_config(path)
    assert config.name == path.stem.replace("_", "-")
    assert config.build_method().name in config.build_model().methods


def test_at_least_five_configs_are_shipped():
    assert len(CONFIGS) >= 5


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_resolving_a_config_is_idempotent(path, tmp_path):
    config = load_config(path, ["seed=7"])
    resolved = tmp_path / "config.yaml"
    resolved.write_text(config.to_yaml())
    again = load_config(resolved)
    assert again == config
    assert again.to_yaml() == config.to_yaml()
    assert load_config(config) == load_config(config.to_dict()) == config
    assert load_config(path) != config


def test_dependent_defaults_are_resolved():
    config = load_config(
        mapping(
            seed=3,
            model={"name": "ppca", "n_latent": 3},
            embeddings=[{"name": "umap"}, {"name": "tsne", "label": "t", "seed": 9, "n_latent": 2}],
        )
    )
    umap, tsne = config.embeddings
    assert (umap.label, umap.n_latent, umap.seed) == ("umap", 3, 3)
    assert (tsne.label, tsne.n_latent, tsne.seed) == ("t", 2, 9)
    assert config.to_dict()["embeddings"][0]["label"] == "umap"


def test_a_config_is_frozen():
    config = load_config(mapping())
    for one in (config, config.inference):
        with pytest.raises(pydantic.ValidationError, match="frozen"):
            one.name = "other"


def test_python_values_equal_yaml_values():
    config = load_config(mapping(seed=np.int64(4), dataset={"name": "iris", "columns": ("petal length (cm)",)}))
    assert (config.seed, config.dataset.columns) == (4, ["petal length (cm)"])
    assert "cannot be serialised to YAML" in problems(mapping(dataset={"name": "iris", "columns": {1, 2}}))
    loop = mapping()
    loop["model"]["loop"] = loop
    assert "Circular" in problems(loop)


# -- unknown, missing and misplaced keys


def test_unknown_keys_are_named_with_path_and_suggestion():
    text = problems(mapping(inference={"name": "svi", "lerning_rate": 0.1}, modle=1))
    assert "config: 2 problems." in text
    assert "inference.lerning_rate: unknown option of the method 'svi' 'lerning_rate'; did you mean 'learning_rate'?" in text
    assert "modle: unknown key 'modle'; did you mean 'model'?" in text


def test_a_misplaced_key_is_reported_with_its_section():
    text = problems(mapping(dataset={"name": "wine", "held_out": 0.2}))
    assert "dataset.held_out: unknown option of the dataset 'wine' 'held_out'; move it to the top level of the config" in text
    assert "beside `dataset`." in text
    text = problems(mapping(model={"name": "ppca", "n_latent": 2, "standardize": False}))
    assert "model.standardize: unknown option of the model 'ppca' 'standardize'; move it to `dataset`." in text
    text = problems(mapping(n_draws=10))
    assert "n_draws: unknown key 'n_draws'; move it to `inference`." in text


@pytest.mark.parametrize(
    ("where", "given"),
    [
        ("dataset.standardise", {"dataset": {"name": "iris", "standardise": True}}),
        ("model.n_latents", {"model": {"name": "ppca", "n_latent": 2, "n_latents": 3}}),
        ("embeddings.1.n_neighbours", {"embeddings": [{"name": "pca"}, {"name": "isomap", "n_neighbours": 3}]}),
        ("compare.n_neighbours", {"compare": {"n_neighbours": 3}}),
        ("dataset.path", {"dataset": {"name": "iris", "path": str(CONFIGS[0])}}),
        ("inference.n_warmup", {"inference": {"name": "svi", "n_warmup": 5}}),
        ("device", {"device": "cuda"}),
    ],
)
def test_options_of_another_entry_are_unknown(where, given):
    assert f"{where}: unknown " in problems(mapping(**given))


@pytest.mark.parametrize("key", ["name", "dataset", "model", "inference"])
def test_a_missing_key_is_named(key):
    assert problems(mapping(**{key: ...})) == f"config: {key}: the key is missing."


def test_a_missing_option_is_named():
    assert problems(mapping(model={"name": "ppca"})) == "config: model.n_latent: the key is missing."
    assert problems(mapping(dataset={"name": "file"})) == "config: dataset.path: the key is missing."
    assert f"model.name: the key is missing. Valid: {', '.join(MODELS)}" in problems(mapping(model={"n_latent": 2}))


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"model": {"name": "pca", "n_latent": 2}}, "model.name: unknown model 'pca'; did you mean 'ppca'? Valid: "),
        (
            {"inference": {"name": "nutz"}},
            "inference.name: unknown method 'nutz'; did you mean 'nuts'? Valid: chees, exact, map, nuts, svi",
        ),
        (
            {"dataset": {"name": "vine"}},
            "dataset.name: unknown dataset 'vine'; did you mean 'wine'? Valid: breast_cancer, digits",
        ),
        ({"embeddings": [{"name": "umapp"}]}, "embeddings.0.name: unknown embedding 'umapp'; did you mean 'umap'? Valid: "),
        ({"model": {"name": False, "n_latent": 2}}, "model.name: must be the name of a model; got False. Valid: "),
        ({"model": {"name": ["ppca"]}}, "model.name: must be the name of a model; got ['ppca']. Valid: "),
    ],
)
def test_unknown_names_list_the_valid_ones(given, text):
    assert text in problems(mapping(**given))


def test_a_problem_with_a_name_is_reported_once():
    assert "\n" not in problems(mapping(model={"n_latent": 2}))
    assert "\n" not in problems(mapping(embeddings=[{"name": "pca"}, {"name": "isomap"}, {"name": "umapp"}]))
    assert "\n" not in problems(mapping(embeddings=[{"name": "pca"}, {"name": "isomap"}, {"n_latent": 2}]))


def test_a_wrong_name_does_not_hide_other_problems():
    text = problems(mapping(model={"name": "pppca", "n_latent": "x"}, inference={"name": "nuts", "n_draws": 0}, seed=-1))
    assert [line.split(":")[0].strip() for line in text.split("\n")[1:]] == ["seed", "model.name", "inference.n_draws"]


@pytest.mark.parametrize("found", ["ppca", 3, None, ["ppca"]])
def test_sections_must_be_mappings(found):
    assert f"model: must be a mapping with a `name`; got {found!r}" in problems(mapping(model=found))


def test_embeddings_must_be_a_list_of_mappings():
    assert "embeddings: must be a list; got {'name': 'pca'}" in problems(mapping(embeddings={"name": "pca"}))
    assert "embeddings.0: must be a mapping with a `name`; got 'pca'" in problems(mapping(embeddings=["pca"]))
    assert load_config(mapping(embeddings=[])).embeddings == load_config(mapping(embeddings=...)).embeddings == ()


@pytest.mark.parametrize(
    ("text", "found"), [("", "no content"), ("- 1", "a list"), ("ppca", "'ppca'"), ("3", "3"), ("# only", "no content")]
)
def test_the_top_level_must_be_a_mapping(text, found, tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text(text)
    assert f"{path}: must be a mapping with the keys name, seed" in problems(path)
    assert problems(path).endswith(f"got {found}.")


# -- types and ranges


@pytest.mark.parametrize("wrong", [True, 2.5, 2.0, "5", "1e3", None, [5], math.nan, math.inf])
def test_values_that_are_not_integers_are_refused(wrong):
    text = problems(mapping(inference={"name": "nuts", "n_draws": wrong}))
    assert text.startswith("config: inference.n_draws: must be a whole number of at least 1; got ")


@pytest.mark.parametrize("wrong", [True, "0.8", None, [0.8], math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_numbers_are_refused(wrong):
    text = problems(mapping(inference={"name": "nuts", "target_accept": wrong}))
    assert text == f"config: inference.target_accept: must be a finite number above 0 and below 1; got {wrong!r}."


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (
            {"inference": {"name": "nuts", "n_draws": 0}},
            "inference.n_draws: must be a whole number of at least 1; got 0",
        ),
        (
            {"inference": {"name": "nuts", "n_chains": -4}},
            "inference.n_chains: must be a whole number of at least 1",
        ),
        (
            {"inference": {"name": "nuts", "target_accept": 1}},
            "inference.target_accept: must be a finite number above 0 and below 1; got 1",
        ),
        (
            {"inference": {"name": "svi", "learning_rate": 0}},
            "inference.learning_rate: must be a finite number above 0; got 0",
        ),
        ({"model": {"name": "ppca", "n_latent": 0}}, "model.n_latent: must be a whole number of at least 1; got 0"),
        (
            {"model": {"name": "ppca", "n_latent": 2, "W_scale": -1}},
            "model.W_scale: must be a finite number of at least 0; got -1",
        ),
        ({"held_out": 1}, "held_out: must be a finite number of at least 0 and below 1; got 1"),
        ({"held_out": -0.1}, "held_out: must be a finite number of at least 0 and below 1; got -0.1"),
        (
            {"inference": {"name": "svi", "guide": "fullrank"}},
            "inference.guide: must be one of model, mean_field, full_rank, low_rank; got 'fullrank'",
        ),
        ({"dataset": {"name": "iris", "standardize": 1}}, "dataset.standardize: must be true or false; got 1"),
        ({"dataset": {"name": "iris", "columns": ["a", 1]}}, "dataset.columns: must be a list of text, or null; got ['a', 1]"),
        ({"dataset": {"name": "iris", "columns": "a"}}, "dataset.columns: must be a list of text, or null; got 'a'"),
        (
            {"embeddings": [{"name": "pca", "n_seeds": 3}]},
            "embeddings.0.n_seeds: unknown option of the embedding 'pca' 'n_seeds'",
        ),
        ({"embeddings": [{"name": "pca", "label": 3}]}, "embeddings.0.label: must be text, or null; got 3"),
        ({"compare": {"metrics": ["cca", "rsaa"]}}, "compare.metrics.1: unknown metric 'rsaa'; did you mean 'rsa'? Valid: "),
        ({"compare": {"metrics": "cca"}}, "compare.metrics: must be a list of text, or null; got 'cca'"),
        ({"compare": None}, "compare: must be a mapping; got None"),
        ({"compare": [1]}, "compare: must be a mapping; got [1]"),
    ],
)
def test_values_out_of_range_are_refused_with_the_range(given, text):
    assert text in problems(mapping(**given))


def test_all_problems_of_a_section_are_reported_together():
    text = problems(mapping(inference={"name": "nuts", "n_draws": 0, "n_chains": -1, "target_accept": 3, "n_warmup": 5}))
    assert [line.split(":")[0].strip() for line in text.split("\n")[1:]] == [
        "inference.n_chains", "inference.n_draws", "inference.target_accept",
    ]  # fmt: skip


@pytest.mark.parametrize("seed", [0, 1, 2**32 - 1, 2**63, 2**64 - 1])
def test_a_seed_may_be_any_number_of_64_bits(seed, tmp_path):
    config = load_config(mapping(seed=seed))
    assert config.seed == seed
    assert parse(config.to_yaml(), "resolved")["seed"] == seed


@pytest.mark.parametrize("seed", [-1, 2**64, 1.5, True, "0"])
def test_seeds_out_of_range_are_refused(seed):
    assert problems(mapping(seed=seed)).startswith("config: seed: ")


def test_duplicate_embedding_labels_are_refused_in_configs():
    text = problems(mapping(embeddings=[{"name": "pca"}, {"name": "mds", "label": "pca"}, {"name": "pca"}]))
    assert "embeddings.1.label: 'pca' is also the label of embeddings.0" in text
    assert "embeddings.2.label: 'pca' is also the label of embeddings.0" in text


# -- what does not go together


def test_an_unsupported_method_is_refused_with_other_problems(plugin):
    text = problems(mapping(model={"name": "toy", "width": 2}, seed=-1), plugins=[plugin])
    assert "inference.name: the model 'toy' does not support 'nuts'; supported: svi." in text
    assert "seed: " in text
    assert load_config(mapping(model={"name": "toy", "width": 2}, inference={"name": "svi"}), plugins=[plugin]).model.width == 2


# -- plugins


def test_plugin_models_work_in_configs_like_built_in_ones(plugin, tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text(
        json.dumps(mapping(model={"name": "toy", "width": 2, "sizes": [5]}, inference={"name": "svi"}, plugins=["toy_models.py"]))
    )
    config = load_config(path)
    assert config.plugins == (plugin,)
    assert (config.build_model().sizes, config.build_model().copy) == ((5,), False)
    assert load_config(config) == config
    assert "toy" not in MODELS
    schema = json_schema([plugin])["$defs"]["ModelToy"]["properties"]
    assert sorted(schema) == ["copy", "name", "sizes", "width"]


def test_errors_of_a_plugin_constructor_name_its_section(plugin):
    text = problems(mapping(model={"name": "toy", "width": 10}, inference={"name": "svi"}), plugins=[plugin])
    assert text == f"config: model.width: ValueError: width is too large ({plugin}, line 18)"


@pytest.mark.parametrize(
    ("plugins", "text"), [(["none.py"], "no such file"), ("none.py", "must be a list of files"), ([3], "must be a list of files")]
)
def test_files_that_are_not_plugins_are_refused(plugins, text):
    assert text in problems(mapping(plugins=plugins))


# -- paths


def test_paths_are_relative_to_file_or_working_directory(tmp_path, monkeypatch):
    (tmp_path / "configs").mkdir()
    (tmp_path / "here").mkdir()
    for place in ("configs", "here"):
        (tmp_path / place / "mine.csv").write_text("a,b\n1,2\n")
    path = tmp_path / "configs" / "a.yaml"
    path.write_text(
        json.dumps(
            mapping(dataset={"name": "file", "path": "mine.csv"}, embeddings=[{"name": "file", "path": "../here/mine.csv"}])
        )
    )
    monkeypatch.chdir(tmp_path / "here")
    config = load_config(path)
    assert config.dataset.path == str(tmp_path / "configs" / "mine.csv")
    assert Path(config.embeddings[0].path).samefile(tmp_path / "here" / "mine.csv")
    assert load_config(path, ["dataset.path=mine.csv"]).dataset.path == str(tmp_path / "here" / "mine.csv")
    assert load_config("../configs/a.yaml").dataset.path.endswith("configs/mine.csv")
    assert load_config(mapping(dataset={"name": "file", "path": "mine.csv"})).dataset.path == str(tmp_path / "here" / "mine.csv")
    assert load_config(mapping(dataset={"name": "file", "path": Path("mine.csv")})).dataset.path == str(
        tmp_path / "here" / "mine.csv"
    )


def test_home_is_expanded_in_paths_and_variables_are_not(tmp_path, monkeypatch):
    (tmp_path / "mine.csv").write_text("a,b\n1,2\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load_config(mapping(dataset={"name": "file", "path": "~/mine.csv"})).dataset.path == str(tmp_path / "mine.csv")
    text = problems(mapping(dataset={"name": "file", "path": "$HOME/mine.csv"}))
    assert "dataset.path: " in text
    assert "$HOME/mine.csv': no such file; `~` is expanded, but variables such as $HOME are not." in text


@pytest.mark.parametrize(
    ("path", "text"), [("none.csv", "none.csv': no such"), (".", "is a directory"), ("a\0b", "no such"), ("", "no such")]
)
def test_missing_files_are_refused_before_the_fit(path, text):
    found = problems(mapping(dataset={"name": "file", "path": path}, embeddings=[{"name": "file", "path": path}]))
    for line, where in zip(found.split("\n")[1:], ("dataset.path", "embeddings.0.path"), strict=True):
        assert line.startswith(f"  {where}: ")
        assert text in line


def test_an_empty_config_path_is_refused():
    assert "empty" in problems("")
    assert "no such file" in problems("none.yaml")


# -- names


NOT_NAMES = [
    "../../etc/x",
    "/etc/x",
    "a/b",
    "a\\b",
    "..",
    ".",
    "",
    " ",
    "a\0",
    "x" * 101,
    "x" * 300,
    "-a",
    "a\n",
    "a b",
    "CON",
    "con.txt",
]
NOT_NAMES += ["Lpt1", "a.", "a ", ".a", "~", "caf\u00e9", "cafe\u0301", "a:b", "$HOME"]


@pytest.mark.parametrize("name", NOT_NAMES)
def test_unsafe_run_names_are_refused(name):
    text = problems(mapping(name=name))
    assert text.startswith("config: name: a run")
    assert "\n" not in text


@pytest.mark.parametrize("name", ["a", "ppca-wine", "A.b_c-9", "x" * 100, "console", "2024"])
def test_ordinary_run_names_are_accepted(name):
    assert run_name(name) == name


# -- the schema for editors


def test_the_json_schema_covers_every_entry_and_forbids_other_keys():
    schema = json_schema()
    definitions = schema["$defs"]
    for key, table in (("Dataset", DATASETS), ("Model", MODELS), ("Inference", METHODS), ("Embeddings", EMBEDDINGS)):
        names = {d["properties"]["name"]["const"] for title, d in definitions.items() if title.startswith(key)}
        assert names == set(table)
    assert all(definition["additionalProperties"] is False for definition in definitions.values())
    assert set(schema["required"]) == {"name", "dataset", "model", "inference"}
    assert definitions["InferenceNuts"]["properties"]["n_draws"] == {
        "default": NUTS().n_draws,
        "minimum": 1,
        "title": "N Draws",
        "type": "integer",
    }


def test_the_json_schema_allows_the_blocks_of_a_sweep():
    block = json_schema()["properties"]["sweep"]
    assert set(block["properties"]) == {*PARTS, "search"}
    assert block["additionalProperties"] is False


@pytest.mark.parametrize("label", ["a/b", "unit", "latent", " "])
def test_labels_that_cannot_name_arrays_are_refused_early(label: str):
    config = {"name": "x", "dataset": {"name": "iris"}, "model": {"name": "ppca", "n_latent": 2}, "inference": {"name": "exact"}}
    with pytest.raises(ConfigError, match=r"embeddings\.0\.label.*must not be blank, contain '/', or be one of"):
        load_config({**config, "embeddings": [{"name": "pca", "label": label}]})
