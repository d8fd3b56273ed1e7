"""Tests of the result tree, its file, and diagnostic statistics against independent formulas."""

import math
import os
import subprocess
import sys
from pathlib import Path

import h5py
import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr
from scipy import integrate, stats
from scipy.special import ndtri
from scipy.stats import rankdata

from latentlab.errors import DataError, InferenceError, ModelError, StoreError
from latentlab.results import arviz as arviz_module
from latentlab.results import convergence, netcdf
from latentlab.results import loo as loo_module
from latentlab.results.convergence import nested_rhat, rhat
from latentlab.results.loo import khat, loo
from latentlab.results.netcdf import load, save
from latentlab.results.sensitivity import power_sensitivity
from latentlab.results.tree import build

DIMS = {"W": ("feature", "latent"), "z": ("unit", "latent"), "sigma": (), "x": ("unit", "feature"), "log_likelihood": ("unit",)}


def groups(rng, n_chains=2, n_draws=30):
    lead = (n_chains, n_draws)
    return {
        "posterior": {"W": rng.normal(size=(*lead, 3, 2)), "z": rng.normal(size=(*lead, 5, 2)), "sigma": rng.gamma(2, size=lead)},
        "latents": {"W": rng.normal(size=(*lead, 3, 2))},
        "log_likelihood": {"log_likelihood": rng.normal(size=(*lead, 5))},
        "log_prior": {"W": rng.normal(size=lead), "sigma": rng.normal(size=lead)},
        "sample_stats": {"lp": rng.normal(size=lead), "diverging": rng.random(lead) < 0.1, "n_steps": rng.integers(1, 9, lead)},
        "posterior_predictive": {"x": rng.normal(size=(n_chains, 7, 5, 3))},
        "observed_data": {"x": np.where(rng.random((5, 3)) < 0.2, np.nan, rng.normal(size=(5, 3)))},
        "constant_data": {"kind": np.array(["a", "", "c", "naïve", "e"], dtype=object)},
        "optimization": {"loss": rng.normal(size=(2, 11)), "elbo": rng.normal(size=2)},
    }


def tree_of(rng, **options):
    coords = {"feature": ["alcohol", "größe", "hue"], "unit": [f"u{i}" for i in range(5)], "time": np.arange(5) * 0.5}
    attrs = {"method": "nuts", "seed": 3, "point_estimate": False, "grid": np.array([1.0, 2.5])}
    return build(groups(rng, **options), dims={**DIMS, "kind": ("unit",)}, coords=coords, attrs=attrs)


# -- building


def test_all_dims_have_coordinates_and_groups_keep_their_draws(rng):
    tree = tree_of(rng)
    for name, node in tree.children.items():
        dataset = node.to_dataset(inherit=False)
        assert set(dataset.dims) <= set(dataset.coords), name
        for site, array in dataset.data_vars.items():
            assert site not in dataset.dims
            leads = name not in ("observed_data", "constant_data", "optimization")
            assert (array.dims[:2] == ("chain", "draw")) == leads
    assert tree["posterior"]["W"].dims == ("chain", "draw", "feature", "latent")
    assert tree["posterior"]["feature"].values.tolist() == ["alcohol", "größe", "hue"]
    assert tree["posterior"]["time"].dims == ("unit",)
    assert tree["posterior"].sizes["draw"] == 30
    assert tree["posterior_predictive"]["draw"].values.tolist() == list(range(7))
    assert tree["log_prior"]["W"].dims == ("chain", "draw")
    assert tree["optimization"]["loss"].dims == ("restart", "step")
    assert tree.attrs["point_estimate"] == 0
    assert tree["posterior"].attrs["method"] == "nuts"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"posterior": {"W": np.zeros((4, 9, 3))}}, ["'posterior'", "'W'", "(4, 9, 3)", "latent"]),
        ({"posterior": {"W": np.zeros((4, 9, 3, 2)), "sigma": np.zeros((4, 8))}}, ["'sigma'", "(4, 8)", "'draw'", "'W'"]),
        ({"posterior": {"psi": np.zeros((4, 9))}}, ["'psi'", "no dims"]),
        ({"posterior": {"latent": np.zeros((4, 9))}}, ["'latent'"]),
        ({"sample_stats": {"lp": np.zeros((4, 9, 1))}}, ["'sample_stats'", "'lp'", "(4, 9, 1)"]),
        ({"observed_data": {"x": np.zeros((1, 4, 5, 3))}}, ["'observed_data'", "'x'", "(1, 4, 5, 3)"]),
        ({"optimization": {"speed": np.zeros(3)}}, ["'optimization'", "'speed'"]),
        ({"posterior": {"sigma": np.full((2, 2), object())}}, ["'sigma'", "object"]),
        ({"posterior": {"z": np.zeros((4, 9, 6, 2))}}, ["'unit'", "6 labels", "'z'", "(5,)"]),
    ],
)
def test_a_shape_that_does_not_match_its_dims_is_named(change, words):
    with pytest.raises(ModelError) as caught:
        build(change, dims=DIMS | {"latent": ()}, coords={"unit": list("abcde")})
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_attributes_are_text_numbers_or_arrays():
    with pytest.raises(ModelError, match="'when'"):
        build({"posterior": {"sigma": np.zeros((1, 4))}}, dims=DIMS, attrs={"when": None})


# -- the file


def test_saving_and_loading_is_exact(rng, tmp_path):
    tree = tree_of(rng)
    save(tree, tmp_path / "posterior.nc")
    again = load(tmp_path / "posterior.nc")
    assert set(again.children) == set(tree.children)
    assert again.attrs["seed"] == 3
    assert again.attrs["grid"].tolist() == [1.0, 2.5]
    for name, node in tree.children.items():
        for variable, array in node.to_dataset(inherit=False).variables.items():
            found = again[name].to_dataset(inherit=False).variables[variable]
            assert found.dims == array.dims
            assert found.dtype == array.dtype, (name, variable)
            assert found.values.tobytes() == array.values.tobytes(), (name, variable)
    assert again["constant_data"]["kind"].values.tolist() == ["a", "", "c", "naïve", "e"]


def test_files_are_reproducible_and_have_checksums(rng, tmp_path):
    tree = tree_of(rng)
    for name in ("a.nc", "b.nc"):
        save(tree, tmp_path / name)
    assert (tmp_path / "a.nc").read_bytes() == (tmp_path / "b.nc").read_bytes()
    with h5py.File(tmp_path / "a.nc") as file:
        assert all(file[f"posterior/{name}"].fletcher32 for name in ("W", "z", "sigma", "unit"))
        assert file["posterior/W"].compression == "gzip"


def test_a_tree_without_posterior_can_be_saved(tmp_path):
    save(xr.DataTree(xr.Dataset({"pca": (("unit", "latent"), np.eye(3))})), tmp_path / "embeddings.nc")
    assert load(tmp_path / "embeddings.nc", groups=())["pca"].values.tolist() == np.eye(3).tolist()
    with pytest.raises(StoreError, match=r"embeddings\.nc: group 'posterior' is missing"):
        load(tmp_path / "embeddings.nc")


@pytest.mark.filterwarnings("ignore")
def test_arviz_reads_the_file_and_the_tree(rng, tmp_path):
    arviz = arviz_module.installed_arviz()
    tree = tree_of(rng, n_chains=4, n_draws=100)
    save(tree, tmp_path / "posterior.nc")
    with np.errstate(all="ignore"):
        opened = arviz.from_netcdf(str(tmp_path / "posterior.nc"))
        for data in (opened, arviz_module.to_arviz(tree)):
            assert np.array_equal(data["posterior"]["W"].values, tree["posterior"]["W"].values)
            assert arviz.summary(data, var_names=["W"]).shape[0] == 6
            arviz.loo(data, pointwise=True)
            arviz.plot_trace(data, var_names=["sigma"])
    if hasattr(opened, "close"):
        opened.close()
    plt.close("all")


def test_arviz_works_without_a_writable_home():
    nowhere = {"HOME": os.devnull, "XDG_CACHE_HOME": f"{os.devnull}/cache", "MPLCONFIGDIR": f"{os.devnull}/mpl"}
    program = "from latentlab.results.convergence import ess_mean; import numpy as np; ess_mean(np.arange(9.0)[None] % 4)"
    subprocess.run([sys.executable, "-c", program], env=os.environ | nowhere, check=True, capture_output=True)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.9, 0.999])
def test_a_truncated_file_is_named(rng, tmp_path, share):
    path = tmp_path / "posterior.nc"
    save(tree_of(rng), path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(StoreError, match=r"posterior\.nc"):
        load(path)


def test_a_flipped_bit_is_detected_and_its_group_named(rng, tmp_path):
    path = tmp_path / "posterior.nc"
    save(tree_of(rng), path)
    content = bytearray(path.read_bytes())
    with h5py.File(path) as file:
        chunk = file["posterior/W"].id.get_chunk_info(0)
    content[chunk.byte_offset + chunk.size // 2] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(StoreError, match=r"posterior\.nc, group 'posterior'"):
        load(path)


def test_lost_blocks_raise_a_store_error_or_are_harmless(rng, tmp_path):
    """Replaces 64 bytes by zeros: only StoreError may be raised, and no draw may change unnoticed."""
    path = tmp_path / "posterior.nc"
    tree = build({"posterior": {"sigma": rng.normal(size=(2, 20))}}, dims=DIMS)
    save(tree, path)
    content = path.read_bytes()
    errors = []
    for start in range(0, len(content), len(content) // 60):
        path.write_bytes(content[:start] + bytes(64) + content[start + 64 :])
        try:
            again = load(path)
        except StoreError as error:
            errors.append(str(error))
        else:
            sigma = again["posterior"].get("sigma")
            assert sigma is None or np.array_equal(sigma.values, tree["posterior"]["sigma"].values)
    assert len(errors) > 10
    assert all(str(path) in error for error in errors)


def with_link(file: h5py.File, other: Path) -> None:
    file["posterior/W"] = h5py.ExternalLink(str(other), "/secret")


def with_soft_loop(file: h5py.File, other: Path) -> None:
    file["posterior/loop"] = h5py.SoftLink("/posterior/loop")


def with_hard_loop(file: h5py.File, other: Path) -> None:
    file["posterior/again"] = file["/"]


def with_virtual_data(file: h5py.File, other: Path) -> None:
    layout = h5py.VirtualLayout(shape=(3,), dtype="f8")
    layout[:] = h5py.VirtualSource(str(other), "secret", shape=(3,))
    file["posterior"].create_virtual_dataset("W", layout)


def with_external_data(file: h5py.File, other: Path) -> None:
    file["posterior"].create_dataset("W", shape=(3,), dtype="f8", external=[(str(other), 0, 24)])


def with_large_claim(file: h5py.File, other: Path) -> None:
    file["posterior"].create_dataset("W", shape=(80_000_000,), dtype="f8", chunks=(1000,), compression="gzip")


def with_objects(file: h5py.File, other: Path) -> None:
    file["posterior"].create_dataset("W", data=["a", "b"], dtype=h5py.string_dtype())


def with_other_filter(file: h5py.File, other: Path) -> None:
    file["posterior"].create_dataset("W", data=np.zeros(100), compression="lzf")


def with_many_groups(file: h5py.File, other: Path) -> None:
    for i in range(120):
        file.create_group(f"posterior/g{i}/h")


def with_many_arrays(file: h5py.File, other: Path) -> None:
    for i in range(20):
        file[f"posterior/a{i}"] = 0.0


FORGERIES = {
    with_link: "'W' is a soft or external link",
    with_soft_loop: "'loop' is a soft or external link",
    with_hard_loop: "'again' is a duplicate, or neither a group nor an array",
    with_virtual_data: "the data are in other files",
    with_external_data: "the data are in other files",
    with_large_claim: "declares 640.0 MB, but the file contains only 0 B",
    with_objects: "the dtype must be numeric or text of fixed length",
    with_other_filter: "unknown filter",
    with_many_arrays: "more than 15 arrays and groups",
}


@pytest.mark.parametrize("forge", FORGERIES, ids=lambda forge: forge.__name__)
def test_links_outside_the_file_and_false_sizes_are_refused(tmp_path, monkeypatch, forge):
    monkeypatch.setattr("latentlab.results.netcdf.MOST_ITEMS", 15)
    path, other = tmp_path / "posterior.nc", tmp_path / "other.h5"
    with h5py.File(other, "w") as file:
        file["secret"] = np.ones(3)
    with h5py.File(path, "w") as file:
        file.create_group("posterior")
        forge(file, other)
    assert path.stat().st_size < 50_000
    with pytest.raises(StoreError, match=r"posterior\.nc, group 'posterior'.*" + FORGERIES[forge]):
        load(path)


def test_a_file_with_too_many_groups_is_refused_early(tmp_path):
    with h5py.File(tmp_path / "a.nc", "w") as file:
        with_many_groups(file, tmp_path)
    with pytest.raises(StoreError, match=r"a\.nc: more than 100 groups; not a result of latentlab"):
        load(tmp_path / "a.nc")


def test_a_posterior_without_chains_is_refused(tmp_path):
    with h5py.File(tmp_path / "a.nc", "w") as file:
        file["posterior/W"] = np.ones(3)
        file["posterior/W"].make_scale("W")
    with pytest.raises(StoreError, match=r"a\.nc, group 'posterior'.*chain, draw"):
        load(tmp_path / "a.nc")


@pytest.mark.parametrize("name", ["missing.nc", "."])
def test_missing_files_and_folders_are_named(tmp_path, name):
    with pytest.raises(StoreError, match=r"no such file|not a regular file"):
        load(tmp_path / name)


def test_a_failed_save_keeps_the_old_file(rng, tmp_path, monkeypatch):
    path = tmp_path / "posterior.nc"
    save(tree_of(rng), path)
    before = path.read_bytes()
    new = tree_of(np.random.default_rng(1))

    def full(descriptor):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(StoreError, match=r"posterior\.nc: there is not enough disk space for \d+ bytes"):
            save(new, path)
    with monkeypatch.context() as patch:
        patch.setattr(netcdf, "_read", lambda *_, **__: xr.Dataset())
        with pytest.raises(StoreError, match="the data read back differ from the data written"):
            save(new, path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["posterior.nc"]
    with pytest.raises(StoreError, match=r"folder\.nc: the folder .* does not exist"):
        save(new, tmp_path / "no" / "folder.nc")


# -- statistics of series

STATISTICS = [
    convergence.rhat,
    convergence.ess_bulk,
    convergence.ess_tail,
    convergence.ess_mean,
    convergence.mcse_mean,
    convergence.mcse_sd,
]


def split_rhat(z):
    """The formula of Gelman et al. on chains split in two."""
    half = z.shape[1] // 2
    parts = np.concatenate([z[:, :half], z[:, -half:]])
    within = parts.var(axis=1, ddof=1).mean()
    return np.sqrt(((half - 1) / half * within + parts.mean(axis=1).var(ddof=1)) / within)


def normal_scores(x):
    """Average ranks to normal quantiles (Blom), written out."""
    order = np.array([np.mean(np.flatnonzero(np.sort(x.ravel()) == value)) + 1 for value in x.ravel()])
    return stats.norm.ppf((order - 3 / 8) / (x.size + 1 / 4)).reshape(x.shape)


def autoregressive(rng, rho, shape):
    x = rng.normal(size=shape)
    for t in range(1, shape[1]):
        x[:, t] = rho * x[:, t - 1] + np.sqrt(1 - rho**2) * x[:, t]
    return x


def test_rhat_matches_the_formula(rng):
    x = rng.standard_t(3, size=(4, 60)) + np.array([0, 0, 0.9, 0])[:, None]
    scale_mixed = rng.normal(size=(4, 60)) * np.array([1, 1, 1, 5.0])[:, None]
    for draws in (x, scale_mixed):
        folded = np.abs(draws - np.median(draws))
        first, second = np.argsort(folded, axis=None)[:2]  # next to the median: they tie, or rounding puts one before the other
        expected = []
        for less in (0.0, 0.1, -0.1):
            folded.flat[[first, second]] = folded.flat[first] * np.array([1 - max(less, 0), 1 - max(-less, 0)])
            expected.append(max(split_rhat(normal_scores(draws)), split_rhat(normal_scores(folded))))
        assert min(abs(convergence.rhat(draws) / one - 1) for one in expected) < 1e-10
    assert convergence.rhat(scale_mixed) > 1.05 > split_rhat(scale_mixed)  # the folding is what sees it


@pytest.mark.parametrize("rho", [0.0, 0.5, 0.9])
def test_ess_of_an_autoregression_matches_theory(rng, rho):
    """Relative standard deviations of 16 series are 0.05 at most: bounds are at 5 of them, and 8 of their mean's."""
    x = autoregressive(rng, rho, (4, 16_000, 16))
    known = 64_000 * (1 - rho) / (1 + rho)
    assert convergence.ess_mean(x) == pytest.approx(np.full(16, known), rel=0.25)
    assert convergence.ess_bulk(x).mean() == pytest.approx(known, rel=0.1)
    sd = convergence.mcse_mean(x) * np.sqrt(known)
    assert sd.mean() == pytest.approx(1.0, rel=0.05)


def test_errors_of_mean_and_sd_match_replications(rng):
    x = np.stack([autoregressive(rng, 0.6, (4, 300)) for _ in range(300)], axis=-1) * 1e-9 + 5
    means, sds = x.mean(axis=(0, 1)), x.std(axis=(0, 1), ddof=1)
    assert convergence.mcse_mean(x).mean() == pytest.approx(means.std(), rel=0.15)
    assert convergence.mcse_sd(x).mean() == pytest.approx(sds.std(), rel=0.15)


def test_tail_ess_detects_clustered_extremes(rng):
    """The log ratio has mean -3.3 and sd 0.3 over data sets; the limit of a quarter is 6 sd away."""
    x = rng.normal(size=(4, 4000)) * np.exp(autoregressive(rng, 0.99, (4, 4000)))
    assert convergence.ess_tail(x) < convergence.ess_bulk(x) / 4


def test_tail_ess_of_discrete_values_is_below_the_number_of_draws(rng):
    events = np.repeat(np.arange(50) == rng.integers(50, size=(4, 1)), 20, axis=1).astype(float)  # one of 20 in each chain
    for x in (events, 1 - events):
        assert convergence.ess_tail(x) < 600


@pytest.mark.parametrize("statistic", STATISTICS)
def test_undefined_statistics_are_nan_and_do_not_affect_others(rng, statistic):
    x = rng.normal(size=(4, 100, 6))
    x[..., 1] = 2.5
    x[2, 7, 2] = np.nan
    x[2, 7, 3] = np.inf
    x[..., 4] = 1 / 3 + rng.integers(0, 2, (4, 100)) * 1e-16
    found = statistic(x)
    assert np.isnan(found[1:5]).all()
    assert np.isfinite(found[[0, 5]]).all()
    assert found[5] == statistic(x[..., 5])
    assert np.isnan(statistic(x[:, :3, 0]))
    assert statistic(x[..., [0, 5]].reshape(4, 100, 2, 1)).shape == (2, 1)


def test_nested_rhat_matches_the_formula_and_detects_differences(rng):
    x = rng.normal(size=(12, 300, 2))
    x[:4, :, 1] += 0.5  # the first superchain is elsewhere
    z = ndtri((rankdata(x[..., 1]).reshape(12, 300) - 0.375) / 3600.25)
    groups = z.reshape(3, 4, 300)
    means = [[np.mean(chain) for chain in group] for group in groups]
    within = np.mean([np.var(m, ddof=1) + np.mean([np.var(c, ddof=1) for c in g]) for m, g in zip(means, groups, strict=True)])
    expected = np.sqrt(1 + np.var([np.mean(m) for m in means], ddof=1) / within)
    found = nested_rhat(x, 3)
    assert found[1] == pytest.approx(expected, rel=1e-10)  # the fold is smaller here
    assert found[0] < 1.01 < found[1]
    wide = rng.normal(size=(12, 300)) * np.repeat([1.0, 1.0, 3.0], 4)[:, None]  # one centre, spreads that differ
    assert nested_rhat(wide, 3) > 1.05
    assert np.isnan(nested_rhat(np.ones((4, 5)), 2))


def test_many_short_chains_pass_nested_but_not_plain_rhat(rng):
    x = rng.normal(size=(512, 8, 400))
    assert rhat(x).max() > 1.01  # 1.02 at least in 12 sets; the other 1.004 at most in 60
    assert nested_rhat(x, 8).max() < 1.01


def test_rhat_needs_two_chains_and_is_large_for_constant_chains(rng):
    assert np.isnan(convergence.rhat(rng.normal(size=(1, 100))))
    assert convergence.rhat(np.arange(4.0)[:, None] * np.ones(100)) > 1000
    with pytest.raises(DataError, match=r"\(100,\)"):
        convergence.rhat(rng.normal(size=100))


def test_hundreds_of_quantities_are_diagnosed_quickly(rng):
    found = convergence.rhat(rng.normal(size=(4, 250, 500)))
    assert found.shape == (500,)
    assert found.max() < 1.1


# -- importance sampling


def log_ratios(rng, rho, n_draws):
    """Log ratios of a normal pair with correlation rho to the independent normals closest in KL(q || p), whose k is rho."""
    u = rng.normal(size=(n_draws, 2)) * np.sqrt(1 - rho**2)
    p = stats.multivariate_normal(cov=[[1, rho], [rho, 1]]).logpdf(u)
    return p - stats.norm(scale=np.sqrt(1 - rho**2)).logpdf(u).sum(axis=1)


@pytest.mark.parametrize(("rho", "error"), [(0.3, 0.1), (0.5, 0.1), (0.99, 0.2)])
def test_khat_of_a_mean_field_normal_is_near_the_correlation(rho, error):
    found = [khat(log_ratios(np.random.default_rng(seed), rho, 20_000)) for seed in range(12)]
    assert np.mean(found) == pytest.approx(rho, abs=error)


@pytest.mark.parametrize("k", [0.2, 0.5, 0.9])
def test_khat_of_pareto_ratios_estimates_the_shape(rng, k):
    """5 standard errors of 100 fits to the 190 largest, (1 + k) / sqrt(190) each, and the prior's pull towards 1/2."""
    found = [khat(np.log(stats.genpareto(k, loc=1).rvs(4000, random_state=rng))) for _ in range(100)]
    assert np.mean(found) == pytest.approx(k, abs=5 * (1 + k) / np.sqrt(190 * 100) + 10 / 200 * abs(k - 0.5))


def test_khat_of_equal_ratios_is_0_and_of_undefined_ones_nan():
    assert khat(log_ratios(np.random.default_rng(0), 0.0, 20_000)) == 0.0
    assert khat(np.full(100, -3.0)) == 0.0
    assert math.isnan(khat(np.r_[np.zeros(99), np.nan]))
    assert math.isnan(khat(np.r_[np.zeros(99), np.inf]))
    assert math.isnan(khat(np.full(100, -np.inf)))
    assert math.isnan(khat(np.arange(24.0)))
    assert math.isfinite(khat(np.r_[np.random.default_rng(0).normal(size=99), -np.inf]))
    assert khat(np.r_[np.zeros(500), np.random.default_rng(0).normal(size=500) - 50]) == np.inf
    assert loo_module.khat_limit(10_000) == 0.7
    assert loo_module.khat_limit(100) == 0.5


def conjugate(rng, x, n_draws=(4, 2000)):
    """Draws of mu for x ~ N(mu, 1), mu ~ N(0, 3), and the exact elpd of leaving one out."""
    precision = len(x) + 1 / 9
    mu = x.sum() / precision + rng.normal(size=n_draws) / np.sqrt(precision)
    rest = precision - 1
    exact = stats.norm((x.sum() - x) / rest, np.sqrt(1 + 1 / rest)).logpdf(x)
    whole = stats.norm(x.sum() / precision, np.sqrt(1 + 1 / precision)).logpdf(x)
    return mu, exact, whole


def scored(mu, x, log_q=None, **attrs):
    values = {"posterior": {"sigma": mu}, "log_likelihood": {"log_likelihood": stats.norm.logpdf(x, mu[..., None])}}
    values["log_prior"] = {"sigma": stats.norm.logpdf(mu, scale=3)}
    if log_q is not None:
        lp = values["log_likelihood"]["log_likelihood"].sum(axis=-1) + values["log_prior"]["sigma"]
        values["sample_stats"] = {"lp": lp, "log_q": log_q, "log_q_averaged": log_q}
    return build(values, dims=DIMS, attrs=attrs)


def test_loo_matches_the_closed_form_of_a_conjugate_model(rng):
    x = stats.norm.ppf((rng.permutation(30) + 0.5) / 30)  # no outlier, of which the errors would be larger
    mu, exact, whole = conjugate(rng, x, (4, 30_000))
    found = loo(scored(mu, x))
    assert found.pointwise == pytest.approx(exact, abs=0.01)
    assert found.elpd == pytest.approx(exact.sum(), abs=0.03)
    assert found.p_loo == pytest.approx((whole - exact).sum(), abs=0.03)
    assert found.se == pytest.approx(np.sqrt(30) * exact.std(ddof=1), rel=0.02)
    assert (found.khat < found.limit).all()
    assert not found.conditional


def test_loo_flags_the_outlier(rng):
    x = np.r_[rng.normal(size=40), 30.0]
    mu, _, _ = conjugate(rng, x, (1, 2000))
    found = loo(scored(mu, x, conditional_log_likelihood=1))
    assert found.khat[-1] > found.limit
    assert (found.khat[:-1] < found.limit).all()
    assert found.conditional


def test_loo_of_an_approximation_is_corrected_to_the_posterior(rng):
    x = rng.normal(size=30) + 1
    _, exact, whole = conjugate(rng, x)
    q = stats.norm(x.mean() + 0.1, 0.25)
    mu = q.rvs(size=(1, 32_000), random_state=rng)
    found = loo(scored(mu, x, log_q=q.logpdf(mu)))
    assert found.elpd == pytest.approx(exact.sum(), abs=0.05)
    assert found.p_loo == pytest.approx((whole - exact).sum(), abs=0.05)
    assert abs(loo(scored(mu, x)).elpd - exact.sum()) > 0.2
    assert (loo(scored(mu, x, log_q=10 * q.logpdf(mu))).khat > 0.7).all()


def smoothed(log_ratios, reff=1.0):
    """Pareto-smoothed log weights, from the paper (Vehtari et al. 2024) and Zhang & Stephens (2009)."""
    order = np.argsort(log_ratios)
    n_tail = math.ceil(min(0.2 * len(order), 3 * math.sqrt(len(order) / reff)))
    ratios = np.exp(log_ratios - log_ratios.max())
    cutoff, tail = ratios[order[-n_tail - 1]], ratios[order[-n_tail:]]
    x, m = tail - cutoff, 30 + int(math.sqrt(n_tail))
    theta = 1 / x[-1] + (1 - np.sqrt(m / (np.arange(1, m + 1) - 0.5))) / (3 * x[int(n_tail / 4 + 0.5) - 1])
    shape = np.log1p(-theta[:, None] * x).mean(axis=1)
    level = n_tail * (np.log(-theta / shape) - shape - 1)
    mean = float(theta @ np.exp(level - level.max()) / np.exp(level - level.max()).sum())
    k = float(np.log1p(-mean * x).mean())
    scale = -k / mean
    k = (k * n_tail + 0.5 * 10) / (n_tail + 10)
    quantiles = cutoff + stats.genpareto(k, scale=scale).ppf((np.arange(1, n_tail + 1) - 0.5) / n_tail)
    ratios[order[-n_tail:]] = np.minimum(quantiles, 1.0)
    return np.log(ratios / ratios.sum())


def test_loo_weights_are_pareto_smoothed():
    """Compares the terms of an outlier and of other units; raw weights would change that of the outlier."""
    rng = np.random.default_rng(20_240_229)
    x = np.r_[4.0, rng.normal(size=4)]
    mu, _, _ = conjugate(rng, x, (1, 400))
    log_q = scored(mu, x)["log_likelihood"]["log_likelihood"].values.sum(axis=-1) + stats.norm.logpdf(mu, scale=3)
    found = loo(scored(mu, x, log_q=log_q))  # lp - log q is 0: draws of the posterior, taken for independent
    each = stats.norm.logpdf(x, mu[0, :, None])
    expected = [np.log(np.exp(smoothed(-one) + one).sum()) for one in each.T]
    assert found.pointwise == pytest.approx(expected, rel=1e-6)
    raw = [-np.log(np.mean(np.exp(-one))) for one in each.T]
    assert abs(found.pointwise[0] - raw[0]) > 0.01


def test_autocorrelation_lengthens_the_smoothed_tail(rng):
    """The tail length uses the relative efficiency, averaged over the likelihoods of units."""
    x = np.r_[4.0, rng.normal(size=4)]
    mu = autoregressive(rng, 0.9, (2, 1000)) / np.sqrt(5) + x.mean()
    each = stats.norm.logpdf(x, mu.reshape(-1, 1))
    reff = np.mean(convergence.ess_mean(np.exp(stats.norm.logpdf(x, mu[..., None])))) / 2000
    found = loo(scored(mu, x)).pointwise
    for part, as_expected in ((reff, True), (1.0, False)):
        expected = [np.log(np.exp(smoothed(-one, part) + one).sum()) for one in each.T]
        assert np.allclose(found, expected, rtol=1e-6, atol=0) == as_expected


def test_loo_reports_why_it_is_unavailable(rng):
    mu = rng.normal(size=(2, 50))
    with pytest.raises(ModelError, match="point estimate"):
        loo(scored(mu, np.zeros(3), point_estimate=1))
    with pytest.raises(ModelError, match="'log_likelihood'"):
        loo(build({"posterior": {"sigma": mu}}, dims=DIMS))
    with pytest.raises(InferenceError, match="at least 25 draws; got 24"):
        loo(scored(mu[:, :12], np.zeros(3)))
    with pytest.raises(InferenceError, match="finite"):
        loo(scored(mu, np.array([0.0, np.inf])))


# -- sensitivity


def exact_sensitivity(prior, likelihood, part, delta=0.01):
    """Exact sensitivity for a normal prior and likelihood (mean, sd), by quadrature."""

    def normal(alpha, beta):
        a, b = alpha / prior[1] ** 2, beta / likelihood[1] ** 2
        return stats.norm((a * prior[0] + b * likelihood[0]) / (a + b), 1 / np.sqrt(a + b))

    base, total = normal(1, 1), 0.0
    grid = np.linspace(base.mean() - 4.2 * base.std(), base.mean() + 4.2 * base.std(), 20_001)
    for power in (1 / (1 + delta), 1 + delta):
        other = normal(power, 1) if part == "prior" else normal(1, power)
        distances = []
        for p, q in ((base.cdf(grid), other.cdf(grid)), (base.sf(grid), other.sf(grid))):
            m = (p + q) / 2
            jensen = p * np.log2(p / m) + q * np.log2(q / m)
            distances.append(np.sqrt(integrate.trapezoid(jensen, grid) / integrate.trapezoid(p + q, grid)))
        total += max(distances)
    return total / (2 * np.log2(1 + delta))


@pytest.mark.parametrize(
    ("prior", "likelihood", "diagnosis"),
    [
        ((0.0, 10.0), (1.0, 0.5), ""),
        ((0.0, 0.5), (0.0, 5.0), "strong prior or weak likelihood"),
        ((-3.0, 1.0), (3.0, 1.0), "prior and data may conflict"),
    ],
)
def test_power_sensitivity_of_two_normals_matches_quadrature(rng, prior, likelihood, diagnosis):
    precision = 1 / prior[1] ** 2 + 1 / likelihood[1] ** 2
    mean = (prior[0] / prior[1] ** 2 + likelihood[0] / likelihood[1] ** 2) / precision
    draws = mean + stats.norm.ppf((rng.permutation(16_000) + 0.5) / 16_000).reshape(4, 4000) / np.sqrt(precision)
    tree = build(
        {
            "posterior": {"sigma": draws, "z": np.zeros((4, 4000, 1, 1))},
            "log_likelihood": {"log_likelihood": stats.norm.logpdf(draws, *likelihood)[..., None]},
            "log_prior": {"sigma": stats.norm.logpdf(draws, *prior), "z": draws * 100},
        },
        dims=DIMS,
    )
    table = power_sensitivity(tree, {"sigma": draws, "pair": np.stack([draws, 0 * draws], axis=-1)})
    assert table["quantity"].tolist() == ["sigma", "pair[0]", "pair[1]"]
    for part in ("prior", "likelihood"):
        assert table[part][0] == pytest.approx(exact_sensitivity(prior, likelihood, part), rel=0.1, abs=0.005)
        assert table[part][1] == table[part][0]
        assert math.isnan(table[part][2])
    assert table["diagnosis"][0] == diagnosis


@pytest.mark.parametrize("sd", [5.0, 20.0])
def test_noisy_weights_do_not_indicate_sensitivity(sd, rng):
    """Densities that are independent of the quantity, with a standard deviation as of 50 or 800 parameters.

    A quantity is diagnosed by chance in less than 1 of 50 cases; of 20, four or more in less than 1 of 10^3.
    """
    mu = rng.normal(size=(4, 250, 20))
    tree = build(
        {
            "posterior": {"mu": mu},
            "log_likelihood": {"log_likelihood": sd * rng.normal(size=(4, 250, 1))},
            "log_prior": {"mu": sd * rng.normal(size=(4, 250))},
        },
        dims={"mu": ("k",), "log_likelihood": ("unit",)},
    )
    assert (power_sensitivity(tree, {"mu": mu})["diagnosis"] != "").sum() < 4


def test_heavy_tailed_weights_are_noted(rng):
    mu = rng.normal(size=(4, 250))
    tree = build(
        {
            "posterior": {"sigma": mu},
            "log_likelihood": {"log_likelihood": rng.normal(size=(4, 250, 1))},
            "log_prior": {"sigma": 100 * rng.exponential(size=(4, 250)) * 4},
        },
        dims=DIMS,
    )
    (said,) = power_sensitivity(tree, {"sigma": mu})["diagnosis"]
    assert said.startswith("unreliable: k-hat of the weights, prior")


def test_power_sensitivity_names_what_is_missing(rng):
    mu = rng.normal(size=(2, 50))
    with pytest.raises(ModelError, match="'log_prior'"):
        power_sensitivity(build({"posterior": {"sigma": mu}}, dims=DIMS), {"sigma": mu})
    with pytest.raises(ModelError, match="'sigma' has 50 draws; the groups have 100"):
        power_sensitivity(scored(mu, np.zeros(3)), {"sigma": mu[:1]})
