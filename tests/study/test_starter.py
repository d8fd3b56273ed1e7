"""Tests of `latentlab init`: the proposed config runs for every model, and suits the columns of a user's file."""

from pathlib import Path

import pytest
import yaml

from latentlab import cli
from latentlab.data.roles import table_roles
from latentlab.registry import MODELS
from latentlab.study import stages
from latentlab.study.config import load_config
from latentlab.study.starter import proposal
from latentlab.study.starter_file import starter_text

SMALL = {
    "nuts": ["inference.n_warmup=10", "inference.n_draws=20", "inference.n_chains=2", "inference.max_tree_depth=3"],
    "svi": ["inference.n_steps=20", "inference.n_draws=40"],
    "exact": ["inference.n_draws=40", "inference.n_restarts=1"],
}
FEW = ["compare.n_draws=6", "compare.n_pairs=4", "compare.n_permutations=3"]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(stages, "_report", lambda *_, **__: None)
    return tmp_path


def write(path, header, rows):
    with open(path, "w") as stream:
        stream.write("\n".join([header, *rows]) + "\n")
    return path


@pytest.fixture
def table(rng):
    rows = [f"u{i},{a:.3f},{b:.3f},n{i % 3},{'xy'[i % 2]}" for i, (a, b) in enumerate(rng.standard_normal((30, 2)))]
    return write("mine.csv", "who,a,b,note,kind", rows)


def init(*arguments):
    assert cli.main(["init", "first", *arguments]) == 0
    return load_config("first.yaml")


def run_small(config):
    """Runs the file at a small size, without the page."""
    metric = "adjusted_rand" if config.build_model().is_discrete else "cka"
    assert cli.main(["run", "first.yaml", "--quiet", *SMALL[config.inference.name], *FEW, f"compare.metrics=[{metric}]"]) == 0


@pytest.mark.slow
@pytest.mark.fixed
@pytest.mark.parametrize("model", [*MODELS])
def test_the_first_config_of_a_model_runs_and_is_the_example_of_its_help(model, capsys):
    config = init("--model", model)
    capsys.readouterr()
    assert cli.main(["list", "models", model]) == 0
    example = yaml.safe_load(capsys.readouterr().out.partition("for `latentlab run`\n")[2])
    assert load_config({**example, "name": "first"}) == config
    run_small(config)


def test_a_table_becomes_names_labels_and_features(table, capsys):
    config = init("--model", "gaussian_mixture", "--data", table)
    assert "note: column 'note' is left out: it has text, such as 'n0'.\n" in capsys.readouterr().out
    assert (config.dataset.unit, config.dataset.label, config.dataset.columns) == ("who", "kind", ["a", "b"])
    assert config.build_dataset().units[:2].tolist() == ["u0", "u1"]
    assert config.model.n_components == 2
    assert [one.name for one in config.embeddings] == ["kmeans", "agglomerative"]


def test_the_file_explains_its_values_and_offers_the_defaults(table):
    init("--model", "ppca", "--data", table, "--method", "svi", "--embedding", "umap")
    text = Path("first.yaml").read_text()
    assert max(map(len, text.splitlines())) <= 100
    assert "  unit: who                       # text, and all values differ\n" in text
    assert "  n_latent: 1                     # Latent dimensions q, fewer than features" in text
    assert "  # W_scale: 1.0  " in text
    active = text.replace("\n  # W_scale: 1.0  ", "\n  W_scale: 1.0  ")
    assert load_config(yaml.safe_load(active)) == load_config("first.yaml")
    config = load_config("first.yaml")
    assert (config.inference.name, [one.name for one in config.embeddings]) == ("svi", ["umap"])


def test_counts_are_not_standardised_and_their_mean_is_proposed(rng):
    counts = write("counts.csv", "a,b", [f"{a},{b}" for a, b in rng.poisson(40.0, (30, 2))])
    config = init("--model", "poisson_mixture", "--data", counts)
    assert not config.dataset.standardize
    assert 30 < config.model.rate_mean < 50


def test_one_factor_is_proposed_where_two_are_not_identified(rng):
    path = write("four.csv", "a,b,c,d", [",".join(f"{a:.3f}" for a in row) for row in rng.standard_normal((30, 4))])
    assert init("--model", "factor_analysis", "--data", path).model.n_latent == 1
    assert init("--model", "ppca", "--data", path, "--overwrite").model.n_latent == 2


def test_constant_columns_are_dropped(rng):
    path = write("flat.csv", "a,b,c,d", [f"{a},{b},{c},7" for a, b, c in rng.standard_normal((30, 3))])
    assert init("--model", "ppca", "--data", path).dataset.drop_constant


def write_points(kind, rng):
    """A file of a kind of data: model, path, and options that are expected."""
    if kind == "table":
        rows = [f"u{i},{a:.3f},{b:.3f},{'xy'[i % 2]}" for i, (a, b) in enumerate(rng.standard_normal((30, 2)))]
        return "gaussian_mixture", write("mine.csv", "who,a,b,kind", rows), {"name": "file", "unit": "who", "label": "kind"}
    if kind == "ratings":
        rows = [f"r{i},b{j},{rng.integers(1, 6)},{i + j}" for i in range(8) for j in range(5)]
        expected = {"name": "ratings", "user": "reader", "item": "book", "rating": "stars"}
        return "matrix_factorization", write("stars.csv", "reader,book,stars,when", rows), expected
    if kind == "edges":
        rows = [f"n{i},n{(i + k) % 20}" for i in range(20) for k in (1, 2)]
        expected = {"name": "edges", "source": "from", "target": "to", "directed": False}
        return "random_dot_product", write("links.csv", "from,to", rows), expected
    rows = [f"s{k},{2000 + t},{rng.standard_normal():.3f}" for k in range(2) for t in range(15)]
    expected = {"name": "file", "sequence": "series", "time": "year", "unit": None}
    return "gaussian_hmm", write("series.csv", "series,year,flow", rows), expected


@pytest.mark.parametrize(
    ("model", "embeddings"),
    [
        ("ppca", ["pca", "mds", "kernel_pca", "isomap", "autoencoder"]),
        ("factor_analysis", ["factor_analysis", "pca"]),
        ("gaussian_hmm", ["viterbi", "kmeans"]),
        ("bernoulli_mixture", ["kmeans", "agglomerative"]),
        ("random_dot_product", ["adjacency_spectral"]),
    ],
)
def test_embeddings_with_a_correspondence_are_proposed(model, embeddings):
    assert [one["name"] for one in proposal("first", model).config["embeddings"]] == embeddings


def test_embeddings_that_refuse_the_data_are_left_out(rng):
    path = write("one.csv", "flow", [f"{a:.3f}" for a in rng.standard_normal(30)])
    assert [one.name for one in init("--model", "state_space", "--data", path).embeddings] == ["window_pca"]
    found = proposal("first", "ppca")
    found.config["embeddings"] = []
    assert "embeddings: []                    # None with a known correspondence accepts these data" in starter_text(found)


@pytest.mark.parametrize("kind", ["table", "ratings", "edges", "series"])
def test_points_are_read_by_the_reader_of_their_kind(kind, rng):
    model, path, expected = write_points(kind, rng)
    dataset = init("--model", model, "--data", path).dataset
    assert {option: getattr(dataset, option) for option in expected} == expected


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["table", "ratings", "edges", "series"])
def test_the_first_config_of_points_runs(kind, rng):
    model, path, _ = write_points(kind, rng)
    run_small(init("--model", model, "--data", path))


def test_edges_in_both_orders_are_directed(rng):
    model, path, _ = write_points("edges", rng)
    with open(path, "a") as stream:
        stream.write("n1,n0\n")
    assert init("--model", model, "--data", path).dataset.directed


def test_an_existing_file_is_kept_unless_overwritten(table, capsys):
    write("first.yaml", "mine", [])
    assert cli.main(["init", "first", "--model", "ppca", "--data", table]) == 2
    assert "first.yaml: the file exists; choose another name, or replace it by --overwrite." in capsys.readouterr().err
    assert Path("first.yaml").read_text() == "mine\n"
    assert init("--model", "ppca", "--data", table, "--overwrite").model.name == "ppca"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "pppca"], "unknown model 'pppca'; did you mean 'ppca'?"),
        (["--model", "vae", "--method", "nuts"], "the model 'vae' does not support 'nuts'; supported: svi."),
        (["--model", "ppca", "--embedding", "tsn"], "unknown embedding 'tsn'; did you mean 'tsne'?"),
        (["--model", "ppca", "--data", "none.csv"], "none.csv: no such file"),
        (["--model", "ppca", "--data", "words.csv"], "words.csv: no column has only numbers, so there are no features"),
        (["--model", "matrix_factorization", "--data", "words.csv"], "ratings need three columns (user, item, rating)"),
        (["--model", "bernoulli_mixture", "--data", "mine.csv"], "0 or 1"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line_and_nothing_is_written(arguments, message, table, folder, capsys):
    write("words.csv", "a,b", ["x,y", "y,z"])
    assert cli.main(["init", "first", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (folder / "first.yaml").exists()


def test_missing_entries_are_refused_for_a_model_without_a_mask(tmp_path, capsys):
    plugin = "import latentlab as ll\nclass Mine(ll.LatentModel):\n    name = 'mine'\n    def model(self, x): ...\n"
    plugin += "    dims = {'z': ('unit',)}\n    position = ll.Position('z')\n    methods = ('nuts',)\n"
    (tmp_path / "mine.py").write_text(plugin)
    gaps = write("gaps.csv", "a,b", ["1,2", "3,NA", "2,5", "4,4"])
    assert cli.main(["init", "first", "--model", "mine", "--plugin", "mine.py", "--data", gaps]) == 2
    assert "gaps has missing entries, which the model 'mine' does not accept" in capsys.readouterr().err


def test_a_name_that_is_no_run_name_is_refused(folder, capsys):
    assert cli.main(["init", "../first", "--model", "ppca"]) == 2
    assert "a run's name must consist of" in capsys.readouterr().err
    assert not (folder.parent / "first.yaml").exists()


def test_thousands_in_quotes_are_no_decimal_comma(tmp_path):
    path = tmp_path / "sales.csv"
    path.write_text("shop,a,b\n" + "".join(f'u{i},"1,{200 + i}",{i}\n' for i in range(9)))
    assert "decimal" not in table_roles(str(path), is_series=False).options


def test_the_comment_on_a_path_says_where_it_begins(table):
    init("--model", "ppca", "--data", table)
    assert "relative to the folder of this config" in " ".join(Path("first.yaml").read_text().replace("#", " ").split())
