"""The shipped configs run from data to report at small size, each with sampling and with variational inference."""

from pathlib import Path

import numpy as np
import pytest

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


@pytest.mark.slow
@pytest.mark.parametrize("method", sorted(SMALL))
@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_runs_by_both_methods(path, method, tmp_path):
    shipped = load_config(path)
    if method == "chees" and dict(shipped.inference)["name"] != method:
        pytest.skip("many chains are run where a config asks for them; their program is that of nuts")
    model = shipped.build_model()
    if method not in model.methods:
        pytest.skip(f"{model.name} is not for {method}")
    small = [*SMALL[method], *FEWER.get(path.stem, []), *(["inference.guide=model"] if model.parameters else [])]
    overrides = [*small, *COMPARE, *once(path)]
    if dict(shipped.inference)["name"] != method:  # the embeddings do not depend on the method: all of them once
        one = "kmeans, n_seeds: 1" if are_labels(shipped) else "pca"
        overrides = [*small, *COMPARE, f"embeddings=[{{name: {one}}}]"]
    done = run(path, overrides, out=tmp_path / "run", progress=False)
    assert done.info["status"] in ("done", "not_converged")
    assert (tmp_path / "run" / "report.html").stat().st_size > 10_000
    compared = {dict(s)["label"] for s in load_config(path, overrides).embeddings}
    assert set(done.scores["embedding"]) == compared
    judged = set(done.verdicts["embedding"])
    assert judged <= compared if are_labels(shipped) else judged == compared
    assert judged
    assert np.isfinite(done.scores["mean"]).all()
