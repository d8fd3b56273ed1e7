"""Where each fault of configuration, paths, data and inference is tested, which do not apply, and those with no other home.

A row is a fault of the list that this project holds itself to; `TESTED` names a test for it, `ABSENT` says why there is none.
"""

import ast
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import torch

import latentlab as ll
import pytest
from latentlab.comparison.compare import compare
from latentlab.data.dataset import Dataset
from latentlab.data.load import load_dataset
from latentlab.embeddings.embed import embed
from latentlab.errors import ConfigError, DataError, InferenceError, LatentLabError, ModelError, StoreError
from latentlab.fit import fit
from latentlab.inference.joint import log_joint
from latentlab.registry import MODELS, plugins
from latentlab.store.directory import RunDirectory
from latentlab.study.config import load_config
from latentlab.study.run import run
from latentlab.symmetry.groups import Identity, Orthogonal

HERE = Path(__file__).parent

TESTED = {
    # configuration
    "YAML syntax": "study/test_config_yaml.py::test_a_syntax_error_has_its_line_and_column",
    "unknown key": "study/test_config.py::test_unknown_keys_are_named_with_path_and_the_closest_valid_one",
    "duplicate key": "study/test_config_yaml.py::test_a_duplicate_key_is_refused_at_its_place",
    "1e-3 is a number": "study/test_config_yaml.py::test_a_plain_value_is_what_people_read",
    "dates, octals, no": "study/test_config_yaml.py::test_a_value_that_is_read_in_two_ways_is_refused_with_what_it_would_be",
    "wrong type or range": "study/test_config.py::test_what_is_no_whole_number_is_refused",
    "top level no mapping": "study/test_config.py::test_the_top_level_must_be_a_mapping",
    "tags that build objects": "study/test_config_yaml.py::test_a_tag_is_refused_and_runs_nothing",
    "bombs, depth, size": "study/test_config_yaml.py::test_a_bomb_or_an_oddity_is_refused_at_once",
    "encodings": "study/test_config_yaml.py::test_a_file_that_is_not_utf8_is_refused_with_encoding_and_offset",
    "no such file": "study/test_config_yaml.py::test_what_is_no_readable_file_is_refused_by_its_path",
    "missing key": "study/test_config.py::test_a_missing_key_is_named",
    "unknown name": "study/test_config.py::test_an_unknown_name_lists_the_valid_ones",
    "incompatible pair": "study/test_config.py::test_a_method_that_is_none_of_the_models_is_refused_beside_other_problems",
    "malformed override": "study/test_config_overrides.py::test_a_malformed_override_is_refused_by_its_text",
    "variables and ~ in paths": "study/test_config.py::test_home_is_replaced_in_a_path_and_a_variable_is_not",
    # paths and the run directory
    "names of runs": "study/test_config.py::test_a_name_that_is_no_safe_folder_is_refused",
    "the directory holds a run": "test_store.py::test_a_run_is_neither_replaced_nor_resumed_unasked",
    "two processes, kill -9": "study/test_run.py::test_a_killed_run_is_recognised_and_resumes_to_equal_bytes",
    "read-only directory": "study/test_run.py::test_a_place_that_cannot_be_written_is_said_before_anything_is_computed",
    "directory deleted": "study/test_run.py::test_a_directory_deleted_meanwhile_fails_with_its_name",
    "planted links": "test_files.py::test_a_planted_link_is_replaced_and_not_followed",
    "folders of others": "test_faults.py::test_what_others_keep_beside_or_in_place_of_a_run_is_not_touched",
    # data
    "too few units or columns": "inference/test_density.py::test_data_that_ppca_cannot_take_are_refused",
    "NaN": "inference/test_density.py::test_missing_entries_in_a_model_without_a_mask_are_refused",
    "infinities": "data/test_file.py::test_what_cannot_be_read_is_refused_by_place",
    "constant column": "data/test_dataset.py::test_constant_and_empty_columns_are_named_or_left_out",
    "constant psi": "inference/test_density.py::test_a_constant_column_is_fine_for_ppca_and_refused_by_factor_analysis",
    "duplicated columns and rows": "test_faults.py::test_repeated_columns_and_rows_give_a_finite_answer_or_a_refusal",
    "identical rows, one class": "data/test_dataset.py::test_what_is_odd_is_said",
    "labels of other units": "embeddings/test_file.py",
    "wrong rank": "inference/test_methods.py::test_a_column_in_a_plate_is_refused_by_every_method",
    "wrong rank, log joint": "test_faults.py::test_a_log_joint_of_what_cannot_be_is_refused",
    "types": "data/test_dataset.py::test_what_cannot_be_used_is_refused",
    "CSV dialects": "data/test_file.py::test_dialects_are_read",
    "files beyond memory": "data/test_file.py::test_a_table_that_takes_too_much_memory_is_refused_before_it_is_read",
    "bombs": "data/test_file.py::test_a_packed_array_that_declares_more_than_it_holds_is_refused",
    "pickles": "data/test_file.py::test_pickles_are_refused_and_not_run",
    "links in HDF5": "test_posterior.py",
    "zip-slip": "data/test_file.py::test_members_that_would_leave_the_folder_are_nowhere_written",
    "other columns in new data": "data/test_dataset.py::test_columns_are_matched_by_name_never_by_position",
    "scales": "models/test_linear_gaussian_optimum.py::test_factor_analysis_follows_the_scale_of_a_column_and_ppca_does_not",
    "offset far beyond the spread": "test_faults.py::test_an_offset_far_beyond_the_spread_changes_nothing_but_the_mean",
    # inference
    "a scale that runs to 0": "test_faults.py::test_a_mode_at_the_edge_of_a_support_is_flagged",
    "ruined draws": "test_faults.py::test_ruined_draws_still_have_a_report",
    "NaN while fitting": "inference/test_methods.py::test_no_state_is_left_behind",
    "learning rate": "inference/test_methods.py::test_a_learning_rate_that_explodes_stops_with_step_and_site",
    "start without density": "inference/test_density.py::test_a_start_with_no_density_names_the_site",
    "guide with other sites": "models/test_contract.py::test_a_guide_with_other_sites_is_caught",
    "discrete sites": "inference/test_methods.py::test_a_discrete_site_that_is_not_summed_out_is_refused_by_every_method",
    "chains that did not mix": "test_diagnostics.py::test_an_unsound_fit_fails_by_the_check_that_is_there_for_it",
    "several modes": "test_known_answers.py::test_three_modes_are_flagged_and_never_averaged",
    "few draws": "inference/test_methods.py::test_few_draws_have_defined_behaviour",
    "minibatches": "inference/test_methods.py::test_the_minibatch_elbo_is_the_full_one_on_average",
    "random programs": "test_faults.py::test_a_program_that_is_random_beyond_its_sites_is_refused",
    "parameter store": "inference/test_methods.py::test_a_parameter_store_with_the_same_names_does_not_leak",
    "global state": "inference/test_methods.py::test_no_state_is_left_behind",
    # mixtures and series
    "more components than units": "models/test_mixtures.py::test_data_that_a_mixture_cannot_take_are_refused",
    "an empty component": "models/test_mixtures.py::test_an_empty_component_is_flagged",
    "a component on one datum": "models/test_mixtures.py::test_a_component_on_one_datum_is_flagged",
    "equal units under a density without bound": "models/test_mixtures.py::"
    "test_the_log_normal_prior_keeps_equal_units_from_collapse_and_the_half_normal_does_not",
    "label switching": "models/test_mixtures.py::test_switched_labels_are_aligned_across_chains",
    "restarts in other names of the labels": "test_modes.py::test_restarts_that_end_in_other_names_of_the_labels_are_one_mode",
    "counts": "models/test_mixtures.py::test_data_that_a_mixture_cannot_take_are_refused",
    "standardised counts": "models/test_mixtures.py::test_standardised_counts_are_refused_with_what_to_do",
    "categories outside 0..C-1": "models/test_hidden_markov_models.py::test_series_that_a_model_cannot_take_are_refused",
    "constant columns and empty rows in a mixture": "models/test_mixtures.py::test_odd_data_have_finite_answers",
    "forbidden transitions": "models/test_hidden_markov_models.py::"
    "test_what_is_forbidden_stays_so_in_every_draw_and_derivatives_are_finite",
    "sequences of one step": "models/test_hidden_markov_models.py::test_sequences_of_one_step",
    "long sequences": "models/test_hidden_markov_models.py::test_a_hundred_thousand_steps_are_finite_and_take_linear_time",
    "sequences that do not add up": "data/test_series.py::test_what_is_no_series_is_refused_by_the_sequence",
    "the first state's convention": "models/test_hidden_markov_models.py::"
    "test_joint_of_path_and_data_by_hand_and_its_sum_over_paths",
    "chains of a series in wrong modes": "models/test_hidden_markov_models.py::"
    "test_chains_in_different_modes_are_flagged_by_name_and_not_averaged",
    "a state never visited": "models/test_hidden_markov_models.py::test_a_state_that_is_never_visited_is_flagged",
    "damaged runs in a report": "test_store.py::test_a_posterior_without_a_group_names_it",
}

ABSENT = {
    "both of two exclusive keys": "no two keys of a config exclude each other",
    "a guide that a model requires": "a model names its methods, not its guides",
    "two sweeps in one root": "there are no sweeps yet",
    "labels outside 0..K-1": "labels are names, never numbers of classes of a model",
    "graphs": "there is no graph model yet",
    "ratings": "there is no model of ratings yet",
    "unseen categories": "no data have named categories: symbols are whole numbers, and one beyond the last is refused",
}


def test_every_fault_is_tested_where_it_is_said_to_be():
    for fault, where in TESTED.items():
        file, _, name = where.partition("::")
        tree = ast.parse((HERE / file).read_text(encoding="utf-8"))
        found = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
        assert not name or name in found, f"{fault}: {where}"
    assert not set(TESTED) & set(ABSENT)


# -- what has no other home


@pytest.mark.parametrize("place", ["failed", "in place", "previous"])
def test_what_others_keep_beside_or_in_place_of_a_run_is_not_touched(place, tmp_path):
    folder = tmp_path / {"failed": "x.failed", "in place": "x", "previous": ".x.previous"}[place]
    thesis = folder / "thesis.tex"
    folder.mkdir()
    thesis.write_text("years of work")
    config = {"name": "x", "dataset": {"name": "iris"}, "model": {"name": "ppca", "n_latent": 2}, "inference": {"name": "exact"}}
    if place == "failed":
        run(config, out=tmp_path / "x", progress=False)
        with RunDirectory(tmp_path / "x") as directory:
            assert directory.found(overwrite=True) is None
            directory.begin({"name": "x"}, "name: x\n")
            kept = directory.stop("failed", RuntimeError("no good"))
        assert kept.name == "x.failed-2"
        assert (tmp_path / "x" / "posterior.nc").is_file()
    else:
        if place == "in place":
            (tmp_path / "x" / "run.json").write_text('{"my": "tool"}')
        with pytest.raises(StoreError, match=r"run.json that no run of latentlab wrote|\.x\.previous is in the way"):
            run(config, out=tmp_path / "x", overwrite=True, progress=False)
    assert thesis.read_text() == "years of work"


def test_repeated_columns_and_rows_give_a_finite_answer_or_a_refusal(rng):
    x = rng.standard_normal((40, 2)) @ rng.standard_normal((2, 5)) + 0.3 * rng.standard_normal((40, 5))
    twice = Dataset({"x": np.vstack([x, x[:20]])[:, [0, 0, 1, 2, 3, 4]]}, dims={"x": ("unit", "feature")}).standardize()
    assert any("identical" in note for note in twice.notes())
    found = fit(ll.models.PPCA(2), twice, ll.Exact(n_draws=5), seed=0, progress=False)
    assert all(np.isfinite(array).all() for array in found.sites().values())
    try:  # the likelihood of a column that is there twice has no maximum: its noise falls to the floor, or nothing is reached
        floored = fit(ll.models.FactorAnalysis(2), twice, ll.Exact(n_draws=5), seed=0, progress=False)
    except InferenceError as error:
        assert "maximum likelihood was not reached" in str(error)  # noqa: PT017
    else:
        said = floored.diagnostics().query("verdict == 'warn'")["quantity"]
        assert said.str.contains("Heywood case: the noise of feature 0, 1 fell to its floor").any()


def test_an_offset_far_beyond_the_spread_changes_nothing_but_the_mean():
    """1e8 with sd 1, in factor analysis: the loadings are those of the centred data, to the digits that the offset leaves."""
    x = load_dataset("wine").x
    near, far = (Dataset({"x": x + offset}, dims={"x": ("unit", "feature")}) for offset in (0.0, 1e8))
    one, two = (fit(ll.models.FactorAnalysis(2), data, ll.Exact(n_draws=2), seed=0).sites() for data in (near, far))
    np.testing.assert_allclose(two["mu"] - 1e8, one["mu"], atol=1e-6)
    np.testing.assert_allclose(two["psi"], one["psi"], atol=1e-6)


GOOD = {"W": np.zeros((4, 2)), "mu": np.zeros(4), "sigma": 1.0}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({**GOOD, "sigma": -1.0}, "'sigma' has a value that is not finite, or outside"),
        ({**GOOD, "mu": np.full(4, np.nan)}, "'mu' has a value that is not finite"),
        ({**GOOD, "sgma": 1.0}, "unknown site of 'ppca' 'sgma'; did you mean 'sigma'"),
        ({**GOOD, "z": np.zeros((1, 1))}, r"'z' must have shape \(150, 2\); got \(1, 1\)"),
        ({**GOOD, "W": "abc"}, "a site's value must be numbers; got 'abc'"),
    ],
)
def test_a_log_joint_of_what_cannot_be_is_refused(values, message):
    with pytest.raises(ModelError, match=message):
        log_joint(ll.models.PPCA(2), load_dataset("iris"), values)
    with pytest.raises(DataError, match="2 features"):
        log_joint(ll.models.PPCA(2), Dataset({"x": np.eye(2)}, dims={"x": ("unit", "feature")}), GOOD)


class Odd(ll.LatentModel):
    """Positions z ~ N(0, 1), x ~ N(z, 1), with one thing wrong."""

    name, position, symmetry, methods = "odd", ll.Position("z"), Identity(), ("nuts", "svi", "map")
    dims = {"z": ("unit",)}

    def __init__(self, fault=""):
        self.fault = fault

    def model(self, x):
        if self.fault == "error":
            raise KeyError("weights")
        plate = pyro.plate("rows" if self.fault == "plate" else "unit", len(x))
        noise = torch.randn(()) if self.fault == "noise" else 0.0
        with plate:
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z + noise, 1.0), obs=None if self.fault == "unseen" else x)

    def initialize(self, arrays, rng):
        return {"zz": 0.0} if self.fault == "start" else {}


ODD_DATA = Dataset({"x": np.array([0.3, -1.0, 2.0, 0.4, 1.0])}, dims={"x": ("unit",)})


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("noise", "random beyond its sites: the same values have log densities"),
        ("plate", "observes nothing inside a plate named 'unit'"),
        ("unseen", "'x' is not declared|observes nothing"),
        ("error", "does not run on this data: KeyError: 'weights'"),
        ("start", "`initialize` of 'odd': unknown site 'zz'; did you mean 'z'"),
    ],
)
def test_a_program_that_is_random_beyond_its_sites_is_refused(fault, message):
    """And one whose units have no likelihood, that fails, or that starts at a site it has not."""
    with pytest.raises(ModelError, match=message):
        fit(Odd(fault), ODD_DATA, ll.NUTS(n_chains=2, n_warmup=5, n_draws=5), seed=0, progress=False)


def test_a_position_that_is_no_site_is_refused():
    model = Odd()
    model.positions = (ll.Position("zz"),)
    with pytest.raises(ModelError, match="'odd': the position 'zz' must be one of the sites in `dims`: z"):
        fit(model, ODD_DATA, ll.MAP(), seed=0, progress=False)


@pytest.mark.parametrize(
    ("attribute", "value", "message"),
    [
        ("symmetry", Identity, "'odd': `symmetry` must be a group, such as Identity.*; got <class"),
        ("symmetry", "identity", "`symmetry` must be a group.*; got 'identity'"),
        ("symmetry", Orthogonal(), r"Orthogonal\('latent'\) acts on the dim 'latent', which no site has; name another dim"),
        ("methods", "svi", "`methods` must be a tuple of names.*; got 'svi'"),
        ("position", "z", "`position` must be a `Position`.*; got 'z'"),
        ("dims", {"z": "unit"}, "the dims of 'z' must be a tuple of names, such as .*; got 'unit'"),
        ("dims", None, "`dims` must be a dict of site and dims.*; got nothing"),
    ],
)
def test_a_wrong_declaration_is_refused_before_anything_is_computed(attribute, value, message):
    model = Odd("error")
    setattr(model, attribute, value)
    with pytest.raises(ModelError, match=message):
        fit(model, ODD_DATA, ll.MAP(), seed=0, progress=False)


def test_a_symmetry_along_a_dim_that_the_position_lacks_is_refused():
    model = Odd()
    model.dims, model.symmetry = {"z": ("unit",), "W": ("feature", "latent")}, Orthogonal()
    with pytest.raises(ModelError, match="which the position 'z' does not have; name another dim"):
        fit(model, ODD_DATA, ll.MAP(), seed=0, progress=False)


def test_positions_without_a_spread_are_not_compared():
    point = fit(Odd(), ODD_DATA, ll.MAP(n_draws=20), seed=0, progress=False)
    mine = ll.Embedding("mine", np.arange(5.0)[:, None], units=ODD_DATA.units)
    with pytest.raises(
        ModelError, match=r"'map' gives point estimates of the positions of 'odd'.*methods that give it: nuts, svi"
    ):
        compare(point, [mine], progress=False)


def test_a_point_estimate_of_the_explicit_form_draws_its_positions():
    iris = load_dataset("iris")
    found = fit(ll.models.PPCA(2, marginalize=False), iris, ll.MAP(n_restarts=1, n_draws=300), seed=0, progress=False)
    z = found.sites()["z"][0]
    assert 0.05 < z.std(0).mean() < 1
    assert np.ptp(found.sites()["W"], axis=1).max() == 0


def test_a_mode_at_the_edge_of_a_support_is_flagged():
    """More features than units: the noise of one feature runs to 0, and the density with it without bound."""
    x = np.random.default_rng(0).normal(size=(10, 30))
    few = Dataset({"x": x}, dims={"x": ("unit", "feature")}).standardize()
    table = fit(ll.models.FactorAnalysis(2), few, ll.MAP(), seed=0, progress=False).diagnostics()
    assert table.query("verdict == 'warn'")["quantity"].str.contains("'psi' ran to the edge of its support").any()
    sound = fit(ll.models.PPCA(2), load_dataset("iris"), ll.MAP(n_restarts=1), seed=0, progress=False).diagnostics()
    assert not (sound["check"] == "estimate").any()


@pytest.mark.slow
def test_ruined_draws_still_have_a_report(tmp_path, monkeypatch):
    """Nothing varies, as after a learning rate that is far too large: the run says that it did not converge, on a page."""
    sound = ll.SVI.run

    def ruined(self, problem):
        draws = sound(self, problem)
        return replace(draws, values={name: np.repeat(array[:, :1], array.shape[1], 1) for name, array in draws.values.items()})

    monkeypatch.setattr(ll.SVI, "run", ruined)
    config = {"name": "x", "dataset": {"name": "wine"}, "model": {"name": "ppca", "n_latent": 2}}
    config["inference"] = {"name": "svi", "guide": "model", "n_steps": 20}
    done = run(config, out=tmp_path / "x", progress=False)
    assert done.info["status"] == "not_converged"
    assert "no quantity varies" in (tmp_path / "x" / "report.html").read_text()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["compare.metrics=[]"], r"compare\.metrics: the list is empty"),
        (["compare.metrics=[cca, cca]"], r"compare\.metrics\.1: 'cca' is named twice"),
        (["compare.alignments=[]"], r"compare\.alignments: the list is empty"),
        (["inference={name: nuts, n_chains: 2, n_draws: 1}"], "2 chain\\(s\\) of 1 draws are too few for a comparison"),
        (["inference={name: svi, batch_size: 151}"], "`batch_size` must be at most the 150 units; got 151"),
        (["embeddings=[{name: isomap, n_neighbors: 150}]"], r"embeddings\.0: .*n_neighbors.*150"),
        (["embeddings=[{name: pca, n_latent: 9}]"], r"embeddings\.0: .*n_latent.*9"),
    ],
)
def test_what_is_known_before_the_fit_starts_nothing(changes, message, tmp_path):
    config = {"name": "x", "dataset": {"name": "iris"}, "model": {"name": "ppca", "n_latent": 2}, "embeddings": [{"name": "pca"}]}
    config["inference"] = {"name": "exact"}
    with pytest.raises(LatentLabError, match=message) as caught:
        run(config, changes, out=tmp_path / "x", progress=False)
    assert caught.value.exit_code == 2
    assert os.listdir(tmp_path) in ([], [".x.lock"])


PLUGIN = """
import sys
import latentlab as ll
class {name}(ll.LatentModel):
    {body}
"""


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("pass", "the model Mine has no `name`"),
        ("sys.exit(3)", "cannot be imported: SystemExit: 3"),
        ("name = 'mine'\nclass Other(ll.LatentModel):\n    name = 'mine'", "two models are named 'mine', Mine and Other"),
    ],
)
def test_a_plugin_that_is_not_in_order_is_refused(body, message, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(PLUGIN.format(name="Mine", body=body))
    with pytest.raises(ConfigError, match=message), plugins([path]):
        pass
    assert "mine" not in MODELS


def test_two_plugins_of_one_name_are_refused(tmp_path):
    paths = [tmp_path / "a.py", tmp_path / "b.py"]
    for path in paths:
        path.write_text(PLUGIN.format(name="Mine", body="name = 'mine'"))
    with pytest.raises(ConfigError, match="another plugin has a model named 'mine' too"), plugins(paths):
        pass


def test_positions_of_one_number_are_compared_with_embeddings_of_one_column(tmp_path):
    path = tmp_path / "trait.py"
    path.write_text((HERE / "plugins" / "eight_schools.py").read_text())
    config = {"name": "x", "dataset": {"name": "iris"}, "model": {"name": "eight_schools"}, "inference": {"name": "nuts"}}
    loaded = load_config({**config, "embeddings": [{"name": "pca"}]}, (), [path])
    assert dict(loaded.embeddings[0])["n_latent"] == 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda iris: ll.fit("ppca", iris, ll.Exact()), "`model` must be a `LatentModel`; got 'ppca'"),
        (lambda iris: ll.fit(ll.models.PPCA, iris, ll.Exact()), "got the class PPCA: call it, with its arguments"),
        (lambda iris: ll.fit(ll.models.PPCA(2), iris.x, ll.Exact()), "`dataset` must be a `Dataset`"),
        (lambda iris: ll.fit(ll.models.PPCA(2), iris, ll.Exact), "`method` must be a method with its settings"),
        (
            lambda iris: ll.compare(ll.fit(ll.models.PPCA(2), iris, ll.Exact(n_draws=30)), embed("pca", iris)),
            "`embeddings` must be a list of `Embedding`s, .*; got Embedding",
        ),
        (
            lambda iris: ll.compare(ll.fit(ll.models.PPCA(2), iris, ll.Exact(n_draws=30)), [embed("pca", iris), iris.x]),
            "`embeddings` must be a list of `Embedding`s, .*; got a list with ndarray",
        ),
        (lambda iris: ll.embed("PCA", iris), "unknown embedding 'PCA'; did you mean 'pca'"),
    ],
)
def test_what_is_no_model_dataset_method_or_embedding_is_refused(call, message):
    with pytest.raises(ConfigError, match=message):
        call(load_dataset("iris"))
