import importlib.util
from pathlib import Path

import numpy as np
import pytest

import latentlab as ll

SCRIPT = Path(__file__).resolve().parents[2] / "experiments" / "amortisation_gap.py"


@pytest.fixture(scope="module")
def experiment():
    spec = importlib.util.spec_from_file_location("amortisation_gap", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_amortisation_gap_prints_its_result_and_draws_its_figure(experiment, tmp_path, capsys):
    out = tmp_path / "figure.png"
    experiment.STEP = 0.05
    experiment.main(["--n-units", "3", "--n-steps", "300", "--hidden", "8", "--n-draws", "100", "--out", str(out)])
    assert "amortisation_se" in capsys.readouterr().out
    assert out.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    table = np.genfromtxt(out.with_suffix(".csv"), delimiter=",", names=True)
    np.testing.assert_allclose(table["gap"], table["amortisation"] + table["approximation"], atol=1e-2)
    assert (table["gap"] > -1e-2).all()
    assert (table["approximation"] > -1e-2).all()
    agree = table["rhat"] < 1.05
    assert agree.any()
    assert (np.abs(table["mcmc_mean_0"] - table["exact_mean_0"]) < table["exact_sd_0"])[agree].all()


def test_quadrature_is_exact_for_a_linear_decoder(experiment):
    """Evidence, mean and sd of a linear-Gaussian model by the formulas of Gaussians, and the ELBO's gap by their divergence."""
    rng = np.random.default_rng(0)
    W, sigma = rng.normal(size=(2, 5)), 0.8
    dataset = ll.Dataset({"x": rng.normal(size=(40, 5))}, dims={"x": ("unit", "feature")})
    method = ll.SVI(guide="model", n_steps=2, n_particles=1, n_draws=30)
    fit = ll.fit(ll.models.VAE(2, hidden=(), encoder_hidden=()), dataset, method, progress=False)
    decoder = experiment.Decoder(fit)
    decoder.parameters |= {"decoder_1_z": decoder.parameters["decoder_1_b"].new_tensor(W)}
    decoder.sigma, mu = sigma, fit.parameters["decoder_1_b"]
    x = dataset.x[:4]
    covariance = W.T @ W + sigma**2 * np.eye(5)
    residual = x - mu
    solved = np.linalg.solve(covariance, residual.T).T
    evidence = -0.5 * ((residual * solved).sum(1) + np.linalg.slogdet(covariance)[1] + 5 * np.log(2 * np.pi))
    M = W @ W.T / sigma**2 + np.eye(2)
    mean, sd = solved @ W.T, np.sqrt(np.diag(np.linalg.inv(M)))
    found = decoder.posterior(x)
    np.testing.assert_allclose(found[0], evidence, atol=1e-8)
    np.testing.assert_allclose(found[1], mean, atol=1e-8)
    np.testing.assert_allclose(found[2], np.broadcast_to(sd, (4, 2)), rtol=1e-8)
    best = 1 / np.sqrt(np.diag(M))
    gap = 0.5 * (np.log(np.diag(M)).sum() - np.linalg.slogdet(M)[1])
    np.testing.assert_allclose(evidence - decoder.elbo(x, mean, np.broadcast_to(best, (4, 2))), gap, atol=1e-8)
