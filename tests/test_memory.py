"""Tests of a limited memory: equal results, bounded peaks, and refusals before the start."""

import json
import tempfile
import tracemalloc
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
import yaml
from patching import everywhere

import latentlab as ll
from latentlab.cli import main
from latentlab.compare.align import mean_of
from latentlab.compare.chains import joined, split
from latentlab.compare.clustering import credible_ball, minimum_binder, n_clusters, unsettled
from latentlab.compare.co_assignment import co_assignment
from latentlab.compare.label_units import UnitsOfLabels
from latentlab.compare.partition import partitions
from latentlab.compare.partition_verdict import PartitionReference
from latentlab.compare.verdict import Reference
from latentlab.data import memory
from latentlab.data.memory import MEMORY, Place, by_draw, by_quantity, is_mapped, memory_bytes, n_not_finite, parts, place_of
from latentlab.errors import ConfigError, DataError, StoreError
from latentlab.inference import advi
from latentlab.inference.draws import Draws, Problem, read_checkpoint, write_checkpoint
from latentlab.inference.guides import GUIDES
from latentlab.inference.lift import draws_at_once
from latentlab.registry import MODELS
from latentlab.report.series import interval
from latentlab.report.source import Source
from latentlab.results.convergence import ess_bulk, ess_tail, mcse_sd, nested_rhat, rhat
from latentlab.results.loo import loo
from latentlab.results.netcdf import load, save
from latentlab.results.prepare import prepared
from latentlab.results.sizes import Sizes
from latentlab.results.tree import build, mean_of_draws
from latentlab.seeds import Seeds, isolated
from latentlab.store.read import Run
from latentlab.study import run as study
from latentlab.study.config import load_config
from latentlab.symmetry import average

SMALL_BLOCK = 2**13
FEW = {"n_draws": 8, "n_pairs": 4, "n_permutations": 2}
LINEAR = {"name": "linear_gaussian", "n_units": 40, "n_features": 4, "n_latent": 2}
PPCA = {"name": "ppca", "n_latent": 2}
EXPLICIT = {**PPCA, "marginalize": False}
RUN = {"name": "toy", "dataset": LINEAR, "model": PPCA, "embeddings": [{"name": "pca"}], "compare": FEW}
CHEES = ll.ChEES(n_chains=4, n_superchains=2, n_warmup=20, n_draws=40, compiled=False)
NUTS = ll.NUTS(n_chains=2, n_warmup=40, n_draws=80, max_tree_depth=4, compiled=False)
SVI = ll.SVI(guide="low_rank", n_steps=40, n_draws=200, n_restarts=2, compiled=False)
VAE_SVI = ll.SVI(guide="model", n_steps=20, n_draws=120, n_particles=1, compiled=False)
METHODS = {
    "chees": (PPCA, CHEES),
    "chees, explicit": (EXPLICIT, CHEES),
    "nuts": (PPCA, NUTS),
    "nuts, explicit": (EXPLICIT, NUTS),
    "svi": (PPCA, SVI),
    "svi, explicit": (EXPLICIT, SVI),
    "vae": ({"name": "vae", "n_latent": 2, "hidden": [4]}, VAE_SVI),
}


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks so small that small arrays have several, and files for arrays of any size."""
    everywhere(monkeypatch, "latentlab", "BLOCK", SMALL_BLOCK)
    everywhere(monkeypatch, "latentlab", "LARGE", 1)


@pytest.fixture
def streamed(small_blocks, monkeypatch):
    """Results that never fit into the memory, so that any limit keeps large arrays in files."""
    monkeypatch.setattr(Sizes, "large", lambda _: 10**15)
    monkeypatch.setattr(study, "_check_room", lambda *_: None)


@dataclass(frozen=True)
class Known:
    """A method whose draws are given."""

    values: dict
    n_draws: int

    name: ClassVar[str] = "nuts"
    kind: ClassVar[str] = "mcmc"

    def run(self, problem):
        n_chains = len(next(iter(self.values.values())))
        lp = Seeds(1).numpy().normal(size=(n_chains, self.n_draws))
        return Draws(self.values, {"lp": lp, "energy": lp}, attrs={"n_superchains": 1})


def known_fit(rng, *, n_units, n_draws, limit=None):
    x = rng.normal(size=(n_units, 2)) @ rng.normal(size=(2, 3)) + rng.normal(size=(n_units, 3))
    dataset = ll.Dataset({"x": x}, dims={"x": ("unit", "feature")})
    each = (4, n_draws)
    W = rng.normal(size=(3, 2)) + 0.1 * rng.normal(size=(*each, 3, 2))
    values = {"W": W, "mu": 0.1 * rng.normal(size=(*each, 3)), "sigma": np.exp(0.1 * rng.normal(size=each))}
    return ll.fit(ll.models.PPCA(n_latent=2), dataset, Known(values, n_draws), progress=False, memory=limit)


# -- sizes as text


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        (5, 5),
        ("5", 5),
        ("2 GiB", 2**31),
        ("2GB", 2 * 10**9),
        ("1.5 KiB", 1536),
        ("64 MB", 64 * 10**6),
        ("1 T", 10**12),
    ],
)
def test_a_size_is_a_number_or_text(value, expected):
    assert memory_bytes(value) == expected


@pytest.mark.parametrize("value", [0, -1, True, 1.5, "", "GiB", "2 XB", "-2 GiB", "2 GiB of", "0.1"])
def test_anything_else_is_refused(value):
    with pytest.raises(ConfigError, match=r"memory: must be a number of bytes, or a size such as '2 GiB'; got"):
        memory_bytes(value)


# -- arrays in files


def test_a_large_array_is_kept_in_a_file_without_a_name(tmp_path: Path, small_blocks):
    array = Place(tmp_path).empty((3, 5), np.int64)
    array[...] = 7
    memory.release()
    assert is_mapped(array)
    assert place_of(array[1:].reshape(-1)) == Place(tmp_path)
    assert (array == 7).all()
    assert not list(tmp_path.iterdir())
    del array
    assert not [one for one, folder in memory._folders.items() if folder == tmp_path]


def test_arrays_in_memory_are_aligned():
    for n in range(1, 40):
        assert MEMORY.empty((n,), np.int32).ctypes.data % memory.ALIGNMENT == 0


def test_a_folder_without_room_is_an_error_that_names_it(tmp_path: Path):
    with pytest.raises(StoreError, match=f"{tmp_path}.*needs a temporary file, and"):
        Place(tmp_path).empty((2**60,), np.uint8)


def test_a_folder_that_was_removed_is_replaced_by_that_of_the_system(tmp_path: Path):
    array = Place(tmp_path / "gone").empty((2**21,), np.uint8)
    assert place_of(array).folder == Path(tempfile.gettempdir())


# -- functions by blocks


def test_functions_by_blocks_equal_those_of_the_whole(rng, small_blocks, tmp_path: Path):
    x, y = rng.normal(size=(3, 50, 41, 2)), rng.normal(size=(3, 50, 2, 2))
    in_file = Place(tmp_path).empty(x.shape)
    in_file[...] = x
    for array in (x, in_file):
        found = by_draw(lambda a, b: {"product": a @ b, "norm": (a**2).sum(axis=-1)}, array, y)
        assert np.array_equal(found["product"], x @ y)
        assert np.array_equal(found["norm"], (x**2).sum(axis=-1))
        assert is_mapped(found["product"]) == is_mapped(array)
    assert np.array_equal(np.concatenate([part.ravel() for part in parts(x)]), x.ravel())
    assert max(part.size for part in parts(x)) <= SMALL_BLOCK
    x[1, 2, 3] = np.nan, np.inf
    assert n_not_finite(x) == 2


@pytest.mark.parametrize("n", [1, 2, 3, 97, 400])
def test_statistics_of_quantities_do_not_depend_on_the_blocks(n, rng, monkeypatch):
    x = rng.normal(size=(4, 60, n)).cumsum(axis=1)
    statistics = (
        rhat,
        ess_bulk,
        ess_tail,
        mcse_sd,
        lambda a: nested_rhat(a, 2),
        lambda a: by_quantity(lambda p: p.var(axis=1), a),
    )
    whole = [statistic(x[..., :12]) for statistic in statistics]
    everywhere(monkeypatch, "latentlab", "BLOCK", 1)
    for statistic, expected in zip(statistics, whole, strict=True):
        assert np.array_equal(statistic(x[..., :12]), expected, equal_nan=True)
    blocks = []
    by_quantity(lambda part: blocks.append(part.shape[-1]) or part[0, 0], x)
    assert sum(blocks) == n
    assert min(blocks) >= min(n, 2)


def test_the_mean_of_draws_is_that_of_xarray(rng, small_blocks):
    tree = build({"posterior": {"z": rng.normal(size=(3, 40, 120, 2))}}, dims={"z": ("unit", "latent")})
    assert np.array_equal(mean_of_draws(tree["posterior"]["z"]), tree["posterior"]["z"].mean(("chain", "draw")).values)


def test_fewer_draws_are_evaluated_at_once_if_the_data_are_large():
    assert [draws_at_once(n) for n in (1, 2**17, 2**17 + 1, 2**25, 2**30)] == [256, 256, 128, 1, 1]


# -- files


def test_a_file_is_read_into_files_if_it_exceeds_the_memory(rng, tmp_path: Path, small_blocks):
    groups = {"posterior": {"z": rng.normal(size=(2, 30, 200, 2)), "k": rng.integers(5, size=(2, 30, 200))}}
    tree = build(groups, dims={"z": ("unit", "latent"), "k": ("unit",)})
    save(tree, tmp_path / "a.nc")
    whole, streamed = load(tmp_path / "a.nc", memory=10**9), load(tmp_path / "a.nc", memory=1000)
    assert streamed.identical(whole)
    assert not is_mapped(whole["posterior"]["z"].values)
    assert is_mapped(streamed["posterior"]["z"].values)


def test_a_difference_in_a_large_array_is_noticed(rng, tmp_path: Path, small_blocks, monkeypatch):
    tree = build({"posterior": {"z": rng.normal(size=(2, 30, 200, 2))}}, dims={"z": ("unit", "latent")})
    from latentlab.results import netcdf

    fill = netcdf._fill

    def wrong(tree, target, stream):
        changed = tree.copy(deep=True)
        changed["posterior"]["z"].values[1, 29, 199, 1] += 1.0
        fill(changed, target, stream)

    monkeypatch.setattr(netcdf, "_fill", wrong)
    with pytest.raises(StoreError, match="differ from the data written"):
        save(tree, tmp_path / "a.nc")
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_is_written_and_read_by_blocks(rng, tmp_path: Path, small_blocks):
    problem = Problem(None, {}, None, Seeds(0), checkpoint=tmp_path, identity="a", place=Place(tmp_path))
    arrays = {
        "second": rng.normal(size=(3, 70, 100)).transpose(1, 0, 2),
        "first": np.array(3.5),
        "empty": np.zeros((0, 4)),
        "flags": rng.normal(size=9) > 0,
        "bytes": rng.integers(256, size=33).astype(np.uint8),
    }
    write_checkpoint(problem, "part", arrays)
    found = read_checkpoint(problem, "part")
    assert list(found) == list(arrays)
    assert is_mapped(found["second"])
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype
        assert np.array_equal(found[name], array)


# -- whole runs


@pytest.mark.fixed
@pytest.mark.parametrize("model", [PPCA, {"name": "gaussian_mixture", "n_components": 2}], ids=["positions", "labels"])
def test_a_run_with_little_memory_writes_the_same_files(model, tmp_path: Path, streamed, monkeypatch):
    everywhere(monkeypatch, "latentlab.study", "write_page", lambda *_, **__: None)
    config = {**RUN, "model": model, "inference": {"name": "exact", "n_draws": 60}}
    config["embeddings"] = [{"name": "pca" if model is PPCA else "kmeans"}]
    runs = [
        ll.run({**config, **limit}, out=tmp_path / name, progress=False)
        for name, limit in (("whole", {}), ("limited", {"memory": "100 GiB"}))
    ]
    assert [is_mapped(next(iter(run.posterior["latents"].data_vars.values())).values) for run in runs] == [False, False]
    for name in (
        "posterior.nc",
        "comparison.nc",
        "comparison.csv",
        "verdicts.csv",
        "diagnostics.json",
        "params/params.safetensors",
    ):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "limited" / name).read_bytes(), name
    assert json.loads((tmp_path / "limited" / "run.json").read_text())["status"] == "done"
    assert runs[1].config["memory"] == 100 * 2**30
    assert "memory" not in runs[0].config


@pytest.mark.fixed
@pytest.mark.parametrize("name", METHODS)
def test_draws_are_the_same_in_files(name, streamed, tmp_path: Path):
    dataset, (model, method) = ll.load_dataset("linear_gaussian", n_units=40, n_features=4, n_latent=2), METHODS[name]
    model = MODELS.load(model["name"])(**{key: value for key, value in model.items() if key != "name"})
    whole, limited = (
        ll.fit(model, dataset, method, progress=False, memory=limit, checkpoint=tmp_path / str(limit))
        for limit in (None, "100 GiB")
    )
    assert is_mapped(limited.data["latents"]["z"].values)
    assert limited.data.identical(whole.data)
    assert limited.diagnostics().equals(whole.diagnostics())
    again = ll.fit(model, dataset, method, progress=False, memory="100 GiB", checkpoint=tmp_path / "None")
    assert again.data.identical(whole.data)


def peak(action):
    """Result of a call, and the largest number of bytes that NumPy and Python allocated in it."""
    tracemalloc.start()
    try:
        result = action()
        return result, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.fixed
@pytest.mark.parametrize(
    "method",
    [
        ll.NUTS(n_chains=1, n_warmup=400, n_draws=400, max_tree_depth=1, compiled=False),
        ll.SVI(guide="mean_field", n_steps=20, n_draws=1600, n_particles=1, compiled=False),
    ],
    ids=["nuts", "svi"],
)
def test_no_method_holds_all_draws(method, streamed, monkeypatch):
    monkeypatch.setattr(average, "NUMBERS", SMALL_BLOCK)
    dataset = ll.load_dataset("linear_gaussian", n_units=1000, n_features=3, n_latent=1)
    problem = prepared(ll.models.PPCA(1, marginalize=False), dataset, method, memory="100 GiB", progress=False)
    replace(method, n_draws=8).run(problem)  # graphs and imports
    draws, taken = peak(lambda: method.run(problem))
    assert is_mapped(draws.values["z"])
    assert taken < 0.4 * draws.values["z"].nbytes


@pytest.mark.parametrize("name", GUIDES)
def test_blocks_of_draws_have_the_noise_of_all_draws_at_once(name, rng, small_blocks):
    u, seed = np.empty((900, 50)), int(rng.integers(2**31))
    with isolated(Seeds(seed)):
        guide = GUIDES[name](torch.from_numpy(rng.normal(size=50)))
        log_q = advi._draw(guide, torch.Generator().manual_seed(seed), u)
        whole = guide.sample(900, torch.Generator().manual_seed(seed))
    np.testing.assert_allclose(u, whole.numpy(), rtol=1e-13, atol=1e-13)
    np.testing.assert_allclose(log_q, guide.log_prob(whole).numpy(), rtol=1e-12)


@pytest.mark.fixed
def test_no_step_holds_all_draws(rng, tmp_path: Path, streamed):
    """Each step allocates less than a fraction of the positions' draws, so that a copy of them in any step is noticed."""
    known_fit(rng, n_units=20, n_draws=20).diagnostics()  # imports
    steps = {}
    fit, steps["fit"] = peak(lambda: known_fit(rng, n_units=40, n_draws=1200, limit="100 GiB"))
    n_bytes = fit.data["latents"]["z"].nbytes
    assert is_mapped(fit.data["latents"]["z"].values)
    steps["diagnostics"] = peak(fit.diagnostics)[1]
    steps["loo"] = peak(lambda: loo(fit.data))[1]
    steps["writing"] = peak(lambda: save(fit.data, tmp_path / "posterior.nc"))[1]
    tree, steps["reading"] = peak(lambda: load(tmp_path / "posterior.nc", memory=1000))
    run = Run(tmp_path, {"model": PPCA}, {"files": {"posterior.nc": {}}, "status": "done", "memory": 1000})
    source = Source(run)
    steps["page"] = peak(lambda: (source.mean, source.covariance, interval(source)))[1]
    assert tree.identical(fit.data)
    assert {step: taken for step, taken in steps.items() if taken > 0.8 * n_bytes} == {}


def test_the_mean_position_does_not_need_all_draws_in_memory(rng, tmp_path: Path, small_blocks):
    draws = Place(tmp_path).empty((4, 100, 500, 2))
    draws[...] = rng.normal(size=(500, 2)) + rng.normal(size=draws.shape)
    whole = np.array(draws)
    found, taken = peak(lambda: mean_of(joined(split(draws)[0]), "orthogonal"))
    assert np.array_equal(found, mean_of(joined(split(whole)[0]), "orthogonal"))
    assert taken < 0.3 * draws.nbytes
    verdicts = [Reference(x, "orthogonal", np.random.default_rng(0)).judge(whole[0, 0]) for x in (draws, whole)]
    assert verdicts[0] == verdicts[1]


def of_labels(draws, peak=peak):
    """Peak of each step of a comparison of labels, and all its results."""
    steps = {}
    pairs, steps["co-assignment"] = peak(lambda: co_assignment(draws))
    units, steps["units"] = peak(lambda: UnitsOfLabels(draws, pairs.mean, 4))
    centre, steps["estimate"] = peak(lambda: minimum_binder(draws))
    ball, steps["ball"] = peak(lambda: credible_ball(draws, centre))
    tied, steps["ties"] = peak(lambda: unsettled(draws, centre))
    sizes, steps["sizes"] = peak(lambda: n_clusters(draws))
    reference, steps["verdict"] = peak(lambda: PartitionReference(draws, np.random.default_rng(0)))
    found = {"centre": centre, "tied": tied, "sizes": sizes, "mean": pairs.mean, "error": pairs.standard_error, **vars(ball)}
    found |= {name: value for one in (units, reference) for name, value in vars(one).items() if name not in HALVES}
    return steps, found


HALVES = ("_reference", "notes")
"""Attributes that hold draws or text."""


def test_labels_are_compared_by_blocks(rng, tmp_path: Path, monkeypatch):
    truth, shape = rng.integers(3, size=50), (2, 1200, 50)
    labels = np.where(rng.random(shape) < 0.95, truth, rng.integers(4, size=shape))
    _, expected = of_labels(labels, lambda action: (action(), 0))
    for name, size in (("BLOCK", SMALL_BLOCK // 2), ("CELLS", SMALL_BLOCK // 2), ("LARGE", 1)):
        everywhere(monkeypatch, "latentlab", name, size)
    draws = Place(tmp_path).empty(labels.shape, np.int64)
    draws[...] = labels
    steps, found = of_labels(draws)
    assert {step: taken for step, taken in steps.items() if taken > 0.6 * draws.nbytes} == {}
    for name, value in expected.items():
        assert np.array_equal(found[name], value), name


def test_the_place_of_an_invalid_label_does_not_depend_on_blocks(small_blocks):
    labels = np.zeros((2, 300, 50))
    labels[1, 280, 7] = 0.5
    with pytest.raises(DataError, match=r"got 0.5 for \(1, 280, 7\)"):
        partitions(labels)


# -- refusals and estimates


def test_a_run_that_cannot_keep_its_memory_is_refused_before_it_starts(tmp_path: Path, capsys):
    config = {**RUN, "inference": {"name": "exact"}, "memory": "64 MB"}
    with pytest.raises(
        ConfigError, match=r"memory: must be at least \d+\.\d MB for this fit \(.*libraries.*\); got 64\.0 MB"
    ) as error:
        ll.run(config, out=tmp_path / "run", progress=False)
    assert error.value.exit_code == 2
    assert not (tmp_path / "run").exists()
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    assert main(["run", str(tmp_path / "config.yaml"), "--out", str(tmp_path / "run")]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
    with pytest.raises(ConfigError, match="memory: must be at least"):
        ll.fit(ll.models.PPCA(n_latent=2), ll.load_dataset("iris"), ll.Exact(), memory=10**6)


def test_an_invalid_memory_is_a_problem_of_the_config():
    with pytest.raises(ConfigError, match=r"memory: must be a number of bytes, or a size such as '2 GiB'; got 'much'"):
        load_config({**RUN, "inference": {"name": "exact"}, "memory": "much"})


def sizes(**changes):
    numbers = dict.fromkeys(Sizes.__dataclass_fields__, 1) | {"labels": False, "constant": False}
    return Sizes(**{**numbers, **changes})


@pytest.mark.parametrize(
    ("changes", "remedy"),
    [
        ({"observed": 10**9, "data": 10**9}, "fewer units or chains, or minibatches"),
        ({"position": 10**8, "n_units": 10**8, "n_draws": 500}, "fewer units"),
        ({"held": 10**10}, "fewer draws"),
    ],
)
def test_a_refusal_names_what_needs_the_memory(changes, remedy):
    with pytest.raises(ConfigError, match=rf"must be at least .*; got 2\.0 GB\. Increase it, or use {remedy}"):
        sizes(**changes).place(Path(), 2 * 10**9)


def test_arrays_are_in_files_only_if_they_do_not_fit(tmp_path: Path):
    few, many = sizes(n_draws=10, position=1000), sizes(n_draws=10**6, position=1000)
    assert [one.place(tmp_path / "a", 2**30) for one in (few, many)] == [MEMORY, Place(tmp_path / "a")]
    assert (tmp_path / "a").is_dir()
    assert many.parts()["one block of draws"] == few.parts()["one block of draws"]


def test_a_run_is_resumed_with_another_memory(tmp_path: Path, monkeypatch):
    config = {**RUN, "inference": {"name": "exact", "n_draws": 30}, "embeddings": []}
    with monkeypatch.context() as patch:
        patch.setattr("latentlab.study.stages._diagnose", failing)
        with pytest.raises(MemoryError):
            ll.run(config, out=tmp_path / "run", progress=False)
    everywhere(monkeypatch, "latentlab.study", "write_page", lambda *_, **__: None)
    assert ll.run({**config, "memory": "2 GiB"}, out=tmp_path / "run", resume=True, progress=False).info["status"] == "done"


def test_a_resumed_run_is_read_with_its_new_memory(tmp_path: Path, monkeypatch):
    config, limits = {**RUN, "inference": {"name": "exact", "n_draws": 30}, "embeddings": []}, []
    with monkeypatch.context() as patch:
        patch.setattr("latentlab.study.stages._diagnose", failing)
        with pytest.raises(MemoryError):
            ll.run(config, out=tmp_path / "run", progress=False)
    everywhere(monkeypatch, "latentlab.study", "write_page", lambda *_, **__: None)
    done = ll.run({**config, "memory": "2 GiB"}, out=tmp_path / "run", resume=True, progress=False)
    monkeypatch.setattr("latentlab.store.read.load", lambda *_, memory=None, **__: limits.append(memory))
    with pytest.raises(TypeError):
        _ = ll.load_run(done.path).posterior
    assert limits == [2**31]


def test_a_full_disk_while_a_file_is_read_is_not_called_damage(rng, tmp_path: Path, small_blocks, monkeypatch):
    tree = build({"posterior": {"z": rng.normal(size=(4, 300, 70))}}, dims={"z": ("unit",)})
    save(tree, tmp_path / "posterior.nc")

    def full(*_):
        raise StoreError("the disk is full")

    monkeypatch.setattr("latentlab.data.memory._mapped", full)
    with pytest.raises(StoreError, match=r"^the disk is full$"):
        load(tmp_path / "posterior.nc", memory=1000)


def failing(*_):
    raise MemoryError
