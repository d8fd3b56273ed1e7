"""A loaded fit works as the original one, for each kind of data; tables and encoders are in test_run_whole.py."""

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from patching import everywhere

import latentlab.study.run  # noqa: F401
from latentlab.study import stages
from latentlab.study.run import load_run, run

pytestmark = [pytest.mark.fixed, pytest.mark.filterwarnings("ignore")]

SVI = {"name": "svi", "n_steps": 20, "n_draws": 30, "compiled": False}
KINDS = {
    "series": ({"name": "nile"}, {"name": "gaussian_hmm", "n_states": 2}, False),
    "ratings": ({"name": "grunfeld"}, {"name": "matrix_factorization", "n_latent": 1}, True),
    "graph": ({"name": "karate", "standardize": False}, {"name": "random_dot_product", "n_latent": 2}, True),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_loaded_fit_equals_the_original_fit(kind, tmp_path, monkeypatch):
    dataset, model, scores_points = KINDS[kind]
    first, real = [], stages.fit
    everywhere(monkeypatch, "latentlab.study", "fit", lambda *args, **options: first.append(real(*args, **options)) or first[0])
    everywhere(monkeypatch, "latentlab.study", "write_page", lambda found, **_: found.path)
    config = {"name": kind, "dataset": dataset, "model": model, "inference": SVI}
    done = run({**config, **({"held_out": 0.1} if scores_points else {})}, out=tmp_path / kind, progress=False)
    fit, loaded = first[0], load_run(done.path)
    again = loaded.fit
    xr.testing.assert_identical(again.latents(), fit.latents())
    pd.testing.assert_frame_equal(again.diagnostics(), fit.diagnostics(), check_exact=True)
    np.testing.assert_array_equal(again.loo().pointwise, fit.loo().pointwise)
    np.testing.assert_equal(again.held_out_score(fit.dataset), fit.held_out_score(fit.dataset))
    if kind == "series":
        xr.testing.assert_identical(again.latents(fit.dataset), fit.latents(fit.dataset))
    else:
        score = loaded.info["held_out"]
        assert loaded.held_out["elpd"].sum() == pytest.approx(score["elpd"])
        assert len(loaded.held_out) == score["n_points"]
        assert list(loaded.held_out.columns[:-1]) == list(fit.dataset.index)
