"""Tests that the shipped configs run from data to report at a small size."""

import functools
from pathlib import Path

import numpy as np
import pytest
import yaml
from patching import everywhere

import latentlab.study.run  # noqa: F401
from latentlab.data import tables
from latentlab.registry import EMBEDDINGS, MODELS
from latentlab.study.config import load_config
from latentlab.study.run import run

CONFIGS = sorted((Path(__file__).resolve().parents[1] / "configs").glob("*.yaml"))
SMALL = {
    "nuts": ["inference.name=nuts", *(f"inference.{k}" for k in ("n_chains=2", "n_warmup=20", "n_draws=20", "max_tree_depth=6"))],
    "chees": [
        "inference.name=chees",
        *(f"inference.{k}" for k in ("n_chains=8", "n_superchains=2", "n_warmup=20", "n_draws=10")),
    ],
    "svi": ["inference.name=svi", "inference.n_steps=60", "inference.n_draws=60"],
    "exact": ["inference.n_draws=60"],
}
FEWER = {"gaussian_mixture_digits": ["model.n_components=3", "inference.batch_size=150"]}
"""The curvature of a guide is looked at in each of its coordinates, 660 of them with ten components of 64 pixels."""
EVERY = {"digits": 4, "breast_cancer": 3}
"""Only every n-th row of a large table is used."""
COMPARE = ["compare.n_draws=6", "compare.n_pairs=6", "compare.n_permutations=2"]


RANDOM = ("tsne", "umap", "kmeans", "spectral_clustering", "window_kmeans", "viterbi", "autoencoder")
DISCRETE = ("mixture", "hmm")


def one_seed_overrides(path):
    """Overrides that run each randomised embedding with one seed."""
    sections = load_config(path).embeddings
    return [f"embeddings.{i}.n_seeds=1" for i, section in enumerate(sections) if dict(section)["name"] in RANDOM]


def are_labels(config):
    """Returns whether the positions of the model are labels."""
    return dict(config.model)["name"].endswith(DISCRETE)


def test_the_documented_configs_exist():
    names = {path.stem for path in CONFIGS}
    assert {"ppca_wine", "ppca_digits", "ppca_breast_cancer", "factor_analysis_wine", "ppca_wine_missing"} <= names
    models = {dict(load_config(path).model)["name"] for path in CONFIGS}
    assert {"gaussian_mixture", "dp_mixture", "bernoulli_mixture", "poisson_mixture"} <= models
    assert {"gaussian_hmm", "categorical_hmm", "poisson_hmm", "state_space"} <= models
    assert models == set(MODELS)
    assert {dict(section)["name"] for path in CONFIGS for section in load_config(path).embeddings} == set(EMBEDDINGS) - {"file"}


PAGES = ("ppca_wine", "gaussian_mixture_wine", "gaussian_hmm_macrodata", "state_space_macrodata", "vae_digits")
"""A config of each kind of page, with all metrics. The others are compared by two."""


def described(path):
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    return config["model"]["name"], config["inference"]["name"]


def configs_with_other_methods():
    """The first config of each model with the kind of method (sampling, variational) that no config of the model uses."""
    kinds = {"nuts": "sampling", "chees": "sampling", "svi": "variational"}
    known = {(model, kinds.get(method)) for model, method in map(described, CONFIGS)}
    for path in CONFIGS:
        model, _ = described(path)
        for method in ("nuts", "svi"):
            if (model, kinds[method]) not in known and method in MODELS.load(model).methods:
                known.add((model, kinds[method]))
                yield pytest.param(path, method, id=f"{path.stem}-{method}")


def small(path, method):
    shipped = load_config(path)
    guide = ["inference.guide=model"] if shipped.build_model().parameters and method == "svi" else []
    return [*SMALL[method], *FEWER.get(path.stem, []), *guide]


def thinned(load, step):
    @functools.wraps(load)
    def some(*args, **options):
        whole = load(*args, **options)
        return whole.subset(range(0, whole.n_units, step))

    return some


@pytest.mark.slow
@pytest.mark.fixed
@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_runs_from_data_to_report(path, tmp_path, monkeypatch):
    for name, step in EVERY.items():
        monkeypatch.setattr(tables, name, thinned(getattr(tables, name), step))
    shipped = load_config(path)
    overrides = [*small(path, described(path)[1]), *COMPARE, *one_seed_overrides(path)]
    if path.stem not in PAGES:
        overrides.append(f"compare.metrics=[{'adjusted_rand' if are_labels(shipped) else 'displacement'}, cka]")
    done = run(path, overrides, out=tmp_path / "run", progress=False)
    assert done.info["status"] in ("done", "not_converged")
    assert (tmp_path / "run" / "report.html").stat().st_size > 10_000
    compared = {dict(s)["label"] for s in load_config(path, overrides).embeddings}
    assert set(done.scores["embedding"]) == compared
    judged = set(done.verdicts["embedding"])
    assert judged <= compared if are_labels(shipped) else judged == compared
    assert judged
    assert np.isfinite(done.scores["mean"]).all()


@pytest.mark.slow
@pytest.mark.fixed
@pytest.mark.parametrize(("path", "method"), list(configs_with_other_methods()))
def test_models_run_with_the_other_kind_of_method(path, method, tmp_path, monkeypatch):
    """Comparison and page depend on the method only for chains of state-space models, which no config has."""
    whole = method == "nuts"
    if not whole:
        everywhere(monkeypatch, "latentlab.study", "write_page", lambda found, **_: found.path)
    overrides = [*small(path, method), *COMPARE, f"embeddings=[{'{name: pca}' if whole else ''}]"]
    done = run(path, overrides, out=tmp_path / "run", progress=False)
    assert done.info["status"] in ("done", "not_converged")
    assert np.isfinite(done.posterior["sample_stats"]["lp"]).all()
    assert (tmp_path / "run" / "report.html").is_file() is whole
