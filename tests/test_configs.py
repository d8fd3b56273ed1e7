"""The shipped configs run from data to report at small size."""

from pathlib import Path

import numpy as np
import pytest
import yaml

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
FEWER = {"gaussian_mixture_digits": ["model.n_components=3"]}
"""The curvature of a guide is looked at in each of its coordinates, 660 of them with ten components of 64 pixels."""
COMPARE = ["compare.n_draws=6", "compare.n_pairs=6", "compare.n_permutations=2"]


RANDOM = ("tsne", "umap", "kmeans", "spectral_clustering", "window_kmeans", "viterbi", "autoencoder")
DISCRETE = ("mixture", "hmm")


def once(path):
    """Overrides that run each algorithm that starts at random once."""
    sections = load_config(path).embeddings
    return [f"embeddings.{i}.n_seeds=1" for i, section in enumerate(sections) if dict(section)["name"] in RANDOM]


def are_labels(config):
    """Whether the model's positions are labels, of which clusterings alone get a verdict."""
    return dict(config.model)["name"].endswith(DISCRETE)


def test_there_are_the_promised_configs():
    names = {path.stem for path in CONFIGS}
    assert {"ppca_wine", "ppca_digits", "ppca_breast_cancer", "factor_analysis_wine", "ppca_wine_missing"} <= names
    models = {dict(load_config(path).model)["name"] for path in CONFIGS}
    assert {"gaussian_mixture", "dp_mixture", "bernoulli_mixture", "poisson_mixture"} <= models
    assert {"gaussian_hmm", "categorical_hmm", "poisson_hmm", "state_space"} <= models
    assert models == set(MODELS)
    assert {dict(section)["name"] for path in CONFIGS for section in load_config(path).embeddings} == set(EMBEDDINGS) - {"file"}


PAGES = ("ppca_wine", "gaussian_mixture_wine", "gaussian_hmm_macrodata", "state_space_macrodata", "vae_digits")
"""A config of each kind of page, with all metrics. The others are compared by two."""


def cases():
    """Each config by its own method; the first of each model also by one of the other kind, sampling or variational."""
    models = set()
    for path in CONFIGS:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
        model, method = config["model"]["name"], config["inference"]["name"]
        yield pytest.param(path, method, id=f"{path.stem}-{method}")
        other = "nuts" if method == "svi" else "svi"
        if model not in models and other in MODELS.load(model).methods:
            yield pytest.param(path, other, id=f"{path.stem}-{other}")
        models.add(model)


@pytest.mark.slow
@pytest.mark.fixed
@pytest.mark.parametrize(("path", "method"), list(cases()))
def test_a_config_runs_from_data_to_report(path, method, tmp_path):
    shipped = load_config(path)
    model = shipped.build_model()
    small = [
        *SMALL[method],
        *FEWER.get(path.stem, []),
        *(["inference.guide=model"] if model.parameters and method == "svi" else []),
    ]
    overrides = [*small, *COMPARE, *once(path)]
    if dict(shipped.inference)["name"] != method:  # the embeddings do not depend on the method: all of them once
        one = "kmeans, n_seeds: 1" if are_labels(shipped) else "pca"
        overrides = [*small, *COMPARE, f"embeddings=[{{name: {one}}}]"]
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
