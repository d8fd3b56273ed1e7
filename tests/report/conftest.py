"""Fixtures: small real runs with different content."""

import numpy as np
import pytest

from latentlab.store.read import Run
from latentlab.study.run import run

LABELS = ("<script>alert(1)</script>", "a & b", "$x_{")
UNIT = '"><img src=x onerror=alert({})>'
FEATURES = ("<b>bold</b>", "it's", "c\\d", "e")
SMALL = {"n_draws": 12, "n_pairs": 10, "n_permutations": 4, "n_neighbors": 4}


@pytest.fixture(scope="session")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """NUTS with HTML in names, missing entries, held-out units, user vectors and an embedding with seeds."""
    rng = np.random.default_rng(7)
    folder = tmp_path_factory.mktemp("hostile")
    codes = np.arange(33) % 3
    x = 2 * np.eye(3)[codes] @ rng.normal(size=(3, 4)) + rng.normal(size=(33, 4))
    x[2, 1] = np.nan
    quoted = [UNIT.format(i).replace('"', '""') for i in range(33)]
    header = ",".join(["id", *(f'"{name}"' for name in FEATURES), "kind"])
    cells = [["NA" if np.isnan(v) else repr(float(v)) for v in row] for row in x]
    rows = [f'"{u}",{",".join(r)},"{LABELS[c]}"' for u, r, c in zip(quoted, cells, codes, strict=True)]
    (folder / "x.csv").write_text("\n".join([header, *rows]) + "\n")
    own = [f'"{u}",{a!r},{b!r},{c!r}' for u, (a, b, c) in zip(quoted, rng.normal(size=(33, 3)).tolist(), strict=True)]
    (folder / "own.csv").write_text("\n".join(["id,p,q,r", *own]) + "\n")
    config = {
        "name": "hostile",
        "dataset": {"name": "file", "path": str(folder / "x.csv"), "unit": "id", "label": "kind"},
        "model": {"name": "ppca", "n_latent": 2},
        "inference": {"name": "nuts", "n_chains": 2, "n_warmup": 80, "n_draws": 60},
        "embeddings": [
            {"name": "pca"},
            {"name": "file", "path": str(folder / "own.csv"), "unit": "id", "label": "<i>own"},
            {"name": "tsne", "n_seeds": 2, "perplexity": 5.0},
        ],
        "held_out": 0.1,
        "compare": SMALL,
    }
    return run(config, out=folder / "run", progress=False)


@pytest.fixture(scope="session")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A point estimate with one latent dimension and missing entries with known truth; no labels or comparison."""
    config = {
        "name": "bare",
        "dataset": {"name": "linear_gaussian", "n_units": 40, "n_features": 5, "n_latent": 1, "missing": 0.1},
        "model": {"name": "factor_analysis", "n_latent": 1},
        "inference": {"name": "exact", "n_draws": 400},
    }
    return run(config, out=tmp_path_factory.mktemp("bare") / "run", progress=False)


@pytest.fixture(scope="session")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A variational approximation with three latent dimensions."""
    config = {
        "name": "wide",
        "dataset": {"name": "linear_gaussian", "n_units": 40, "n_features": 6, "n_latent": 3},
        "model": {"name": "ppca", "n_latent": 3},
        "inference": {"name": "svi", "n_steps": 60, "n_draws": 60},
        "embeddings": [{"name": "pca"}, {"name": "isomap", "n_neighbors": 12, "n_latent": 1}],
        "compare": SMALL,
    }
    return run(config, out=tmp_path_factory.mktemp("wide") / "run", progress=False)


@pytest.fixture(scope="session")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A mixture by NUTS, compared with clusterings (with seeds, with extra clusters) and other embeddings.

    The groups are 4 standard deviations apart; for closer groups the estimate would depend on rounding.
    """
    config = {
        "name": "mixture",
        "dataset": {"name": "gaussian_mixture", "n_units": 45, "n_features": 3, "separation": 4.0, "missing": 0.05},
        "model": {"name": "gaussian_mixture", "n_components": 3, "covariance": "full"},
        "inference": {"name": "nuts", "n_chains": 2, "n_warmup": 60, "n_draws": 60},
        "embeddings": [
            {"name": "kmeans", "n_seeds": 2},
            {"name": "kmeans", "label": "distances", "output": "distances", "n_seeds": 2},
            {"name": "agglomerative", "n_latent": 5},
            {"name": "pca", "n_latent": 1},
        ],
        "held_out": 0.1,
        "compare": SMALL,
    }
    return run(config, out=tmp_path_factory.mktemp("mixture") / "run", progress=False)


@pytest.fixture(scope="session")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A point estimate of a mixture of binary answers with missing entries; no labels or comparison."""
    rng = np.random.default_rng(3)
    folder = tmp_path_factory.mktemp("answers")
    x = (rng.random((60, 5)) < np.array([[0.9, 0.8, 0.9, 0.2, 0.1], [0.1, 0.3, 0.2, 0.9, 0.8]])[np.arange(60) % 2]).astype(int)
    cells = [["" if rng.random() < 0.05 else str(v) for v in row] for row in x]
    lines = [",".join(["who", *"abcde"]), *(",".join([f"p{i}", *row]) for i, row in enumerate(cells))]
    (folder / "x.csv").write_text("\n".join(lines) + "\n")
    config = {
        "name": "answers",
        "dataset": {"name": "file", "path": str(folder / "x.csv"), "unit": "who", "standardize": False},
        "model": {"name": "bernoulli_mixture", "n_components": 2},
        "inference": {"name": "exact", "n_draws": 200},
    }
    return run(config, out=folder / "run", progress=False)


@pytest.fixture(scope="session")
def sequences(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A point estimate of a hidden Markov model for six sequences of two features with missing entries."""
    config = {
        "name": "sequences",
        "dataset": {"name": "hidden_markov", "n_sequences": 6, "n_steps": 30, "n_features": 2, "missing": 0.05},
        "model": {"name": "gaussian_hmm", "n_states": 3},
        "inference": {"name": "exact", "n_draws": 200},
        "embeddings": [{"name": "kmeans", "n_seeds": 1}, {"name": "window_pca", "n_latent": 2}],
        "compare": SMALL,
    }
    return run(config, out=tmp_path_factory.mktemp("sequences") / "run", progress=False)


@pytest.fixture(params=["hostile", "bare", "wide", "mixture", "answers", "sequences"])
def any_run(request: pytest.FixtureRequest) -> Run:
    return request.getfixturevalue(request.param)
