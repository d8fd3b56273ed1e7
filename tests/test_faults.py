"""Lists the test of each fault of configuration, paths, data and inference, and tests the remaining ones.

`TESTED` names a test for each fault; `ABSENT` states why a fault has none.
"""

import ast
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

import latentlab as ll
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
    "YAML syntax": "study/test_config_yaml.py::test_syntax_errors_state_line_and_column",
    "unknown key": "study/test_config.py::test_unknown_keys_are_named_with_path_and_suggestion",
    "duplicate key": "study/test_config_yaml.py::test_duplicate_keys_are_refused_with_position",
    "1e-3 is a number": "study/test_config_yaml.py::test_plain_values_are_read_as_expected",
    "dates, octals, no": "study/test_config_yaml.py::test_ambiguous_values_are_refused_with_their_yaml_reading",
    "wrong type or range": "study/test_config.py::test_values_that_are_not_integers_are_refused",
    "top level no mapping": "study/test_config.py::test_the_top_level_must_be_a_mapping",
    "tags that build objects": "study/test_config_yaml.py::test_tags_are_refused_and_not_executed",
    "bombs, depth, size": "study/test_config_yaml.py::test_yaml_bombs_and_unusual_syntax_are_refused",
    "encodings": "study/test_config_yaml.py::test_non_utf8_files_are_refused_with_encoding_and_offset",
    "no such file": "study/test_config_yaml.py::test_unreadable_files_are_refused_by_path",
    "missing key": "study/test_config.py::test_a_missing_key_is_named",
    "unknown name": "study/test_config.py::test_unknown_names_list_the_valid_ones",
    "incompatible pair": "study/test_config.py::test_an_unsupported_method_is_refused_with_other_problems",
    "malformed override": "study/test_config_overrides.py::test_malformed_overrides_are_refused_and_quoted",
    "variables and ~ in paths": "study/test_config.py::test_home_is_expanded_in_paths_and_variables_are_not",
    # paths and the run directory
    "names of runs": "study/test_config.py::test_unsafe_run_names_are_refused",
    "the directory holds a run": "test_store.py::test_a_run_is_neither_replaced_nor_resumed_without_request",
    "two processes, kill -9": "study/test_run.py::test_a_killed_run_resumes_to_the_same_result",
    "read-only directory": "study/test_run.py::test_an_unwritable_directory_is_reported_before_the_fit",
    "directory deleted": "study/test_run.py::test_a_directory_deleted_during_the_run_is_named",
    "planted links": "test_files.py::test_a_planted_link_is_replaced_and_not_followed",
    "folders of others": "test_faults.py::test_foreign_files_near_a_run_are_not_changed",
    # data
    "too few units or columns": "inference/test_density.py::test_too_few_units_or_features_for_ppca_are_refused",
    "NaN": "inference/test_density.py::test_missing_entries_in_a_model_without_a_mask_are_refused",
    "infinities": "data/test_file.py::test_unreadable_entries_are_refused_with_their_position",
    "constant column": "data/test_dataset.py::test_constant_and_empty_columns_are_reported_or_dropped",
    "constant psi": "inference/test_density.py::test_constant_columns_are_refused_by_factor_analysis_only",
    "duplicated columns and rows": "test_faults.py::test_duplicate_columns_and_rows_give_finite_results_or_are_refused",
    "identical rows, one class": "data/test_dataset.py::test_unusual_data_are_noted",
    "labels of other units": "embeddings/test_file.py",
    "wrong rank": "inference/test_methods.py::test_columns_that_broadcast_in_a_plate_are_refused_by_every_method",
    "wrong rank, log joint": "test_faults.py::test_log_joint_refuses_invalid_values",
    "types": "data/test_dataset.py::test_invalid_arrays_and_options_are_refused",
    "CSV dialects": "data/test_file.py::test_csv_dialects_are_read",
    "files beyond memory": "data/test_file.py::test_a_table_too_large_for_memory_is_refused_unread",
    "bombs": "data/test_file.py::test_an_array_with_a_false_declared_size_is_refused",
    "pickles": "data/test_file.py::test_pickles_are_refused_and_not_executed",
    "links in HDF5": "test_posterior.py",
    "zip-slip": "data/test_file.py::test_archive_members_outside_the_folder_are_not_written",
    "other columns in new data": "data/test_dataset.py::test_columns_are_matched_by_name_not_by_position",
    "scales": "models/test_linear_gaussian_optimum.py::test_only_factor_analysis_is_equivariant_to_column_scales",
    "offset far beyond the spread": "test_faults.py::test_a_large_offset_changes_only_the_mean",
    # inference
    "a scale that runs to 0": "test_faults.py::test_a_mode_at_the_boundary_of_the_support_is_flagged",
    "ruined draws": "test_faults.py::test_a_run_with_constant_draws_has_a_report",
    "NaN while fitting": "inference/test_methods.py::test_failing_fits_leave_no_global_state",
    "learning rate": "inference/test_methods.py::test_a_diverging_fit_stops_and_names_step_and_site",
    "start without density": "inference/test_density.py::test_a_start_without_density_names_the_site",
    "guide with other sites": "models/test_contract.py::test_a_guide_with_other_sites_is_detected",
    "discrete sites": "inference/test_methods.py::test_discrete_sites_are_refused_by_every_method",
    "chains that did not mix": "test_diagnostics.py::test_each_planted_fault_fails_its_check",
    "several modes": "test_known_answers.py::test_three_modes_are_flagged_and_not_averaged",
    "few draws": "inference/test_methods.py::test_few_draws_give_a_result_without_convergence",
    "minibatches": "inference/test_methods.py::test_the_minibatch_log_joint_is_unbiased",
    "random programs": "test_faults.py::test_programs_with_undeclared_randomness_are_refused",
    "parameter store": "inference/test_methods.py::test_a_parameter_store_with_the_same_names_does_not_leak",
    "global state": "inference/test_methods.py::test_failing_fits_leave_no_global_state",
    # mixtures and series
    "more components than units": "models/test_mixtures.py::test_invalid_data_are_refused_by_mixtures",
    "an empty component": "models/test_mixtures.py::test_an_empty_component_is_flagged",
    "a component on one datum": "models/test_mixtures.py::test_a_component_on_one_unit_is_flagged",
    "equal units under a density without bound": "models/test_mixtures.py::"
    "test_log_normal_prior_prevents_collapse_and_half_normal_does_not",
    "label switching": "models/test_mixtures.py::test_switched_labels_are_aligned_across_chains",
    "restarts in other names of the labels": "test_modes.py::test_restarts_with_permuted_labels_are_one_mode",
    "counts": "models/test_mixtures.py::test_invalid_data_are_refused_by_mixtures",
    "standardised counts": "models/test_mixtures.py::test_standardised_counts_are_refused_by_mixtures_with_advice",
    "categories outside 0..C-1": "models/test_hidden_markov_models.py::test_invalid_series_are_refused_by_hidden_markov_models",
    "constant columns and empty rows in a mixture": "models/test_mixtures.py::test_degenerate_data_give_finite_results",
    "forbidden transitions": "models/test_hidden_markov_models.py::"
    "test_forbidden_transitions_stay_forbidden_with_finite_gradients",
    "sequences of one step": "models/test_hidden_markov_models.py::test_sequences_of_one_step_can_be_fitted",
    "long sequences": "models/test_hidden_markov_models.py::test_100000_steps_are_finite_and_take_linear_time",
    "sequences that do not add up": "data/test_series.py::test_invalid_series_are_refused_with_the_sequence",
    "the first state's convention": "models/test_hidden_markov_models.py::test_joint_of_path_and_data_and_its_sum_match_scipy",
    "chains of a series in wrong modes": "models/test_hidden_markov_models.py::"
    "test_chains_in_different_modes_are_flagged_and_not_averaged",
    "a state never visited": "models/test_hidden_markov_models.py::test_an_unvisited_state_is_flagged",
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


def test_every_listed_fault_has_its_test():
    for fault, where in TESTED.items():
        file, _, name = where.partition("::")
        tree = ast.parse((HERE / file).read_text(encoding="utf-8"))
        found = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
        assert not name or name in found, f"{fault}: {where}"
    assert not set(TESTED) & set(ABSENT)


# -- what has no other home


@pytest.mark.parametrize("place", ["failed", "in place", "previous"])
def test_foreign_files_near_a_run_are_not_changed(place, tmp_path):
    folder = tmp_path / {"failed": "x.failed", "in place": "x", "previous": ".x.previous"}[place]
    thesis = folder / "thesis.tex"
    folder.mkdir()
    thesis.write_text("years of work")
    config = {"name": "x", "dataset": {"name": "iris"}, "model": {"name": "ppca", "n_latent": 2}, "inference": {"name": "exact"}}
    if place == "failed":
        run(config, out=tmp_path / "x", progress=False)
        with RunDirectory(tmp_path / "x") as directory:
            assert directory.existing(overwrite=True) is None
            directory.begin({"name": "x"}, "name: x\n")
            kept = directory.stop("failed", RuntimeError("no good"))
        assert kept.name == "x.failed-2"
        assert (tmp_path / "x" / "posterior.nc").is_file()
    else:
        if place == "in place":
            (tmp_path / "x" / "run.json").write_text('{"my": "tool"}')
        with pytest.raises(StoreError, match=r"run.json not written by latentlab|\.x\.previous is not a run of latentlab"):
            run(config, out=tmp_path / "x", overwrite=True, progress=False)
    assert thesis.read_text() == "years of work"


def test_duplicate_columns_and_rows_give_finite_results_or_are_refused(rng):
    x = rng.standard_normal((40, 2)) @ rng.standard_normal((2, 5)) + 0.3 * rng.standard_normal((40, 5))
    twice = Dataset({"x": np.vstack([x, x[:20]])[:, [0, 0, 1, 2, 3, 4]]}, dims={"x": ("unit", "feature")}).standardize()
    assert any("identical" in note for note in twice.notes())
    found = fit(ll.models.PPCA(2), twice, ll.Exact(n_draws=5), seed=0, progress=False)
    assert all(np.isfinite(array).all() for array in found.sites().values())
    try:  # the likelihood of a column that is there twice has no maximum: its noise falls to the floor, or nothing is reached
        floored = fit(ll.models.FactorAnalysis(2), twice, ll.Exact(n_draws=5), seed=0, progress=False)
    except InferenceError as error:
        assert "maximum likelihood did not converge" in str(error)  # noqa: PT017
    else:
        said = floored.diagnostics().query("verdict == 'warn'")["quantity"]
        assert said.str.contains("Heywood case: the noise variance of feature 0, 1 is at its lower bound").any()


def test_a_large_offset_changes_only_the_mean():
    """Factor analysis with an offset of 1e8 and sd 1: loadings match those of centred data up to lost digits."""
    x = load_dataset("wine").x
    near, far = (Dataset({"x": x + offset}, dims={"x": ("unit", "feature")}) for offset in (0.0, 1e8))
    one, two = (fit(ll.models.FactorAnalysis(2), data, ll.Exact(n_draws=2), seed=0).sites() for data in (near, far))
    np.testing.assert_allclose(two["mu"] - 1e8, one["mu"], atol=1e-6)
    np.testing.assert_allclose(two["psi"], one["psi"], atol=1e-6)


GOOD = {"W": np.zeros((4, 2)), "mu": np.zeros(4), "sigma": 1.0}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({**GOOD, "sigma": -1.0}, "'sigma' has a value that is not finite, or not in the interior"),
        ({**GOOD, "mu": np.full(4, np.nan)}, "'mu' has a value that is not finite"),
        ({**GOOD, "sgma": 1.0}, "unknown site of 'ppca' 'sgma'; did you mean 'sigma'"),
        ({**GOOD, "z": np.zeros((1, 1))}, r"'z' must have shape \(150, 2\); got \(1, 1\)"),
        ({**GOOD, "W": "abc"}, "the value of a site must be numeric; got 'abc'"),
    ],
)
def test_log_joint_refuses_invalid_values(values, message):
    with pytest.raises(ModelError, match=message):
        log_joint(ll.models.PPCA(2), load_dataset("iris"), values)
    with pytest.raises(DataError, match="below the number of features, 2; got 2"):
        log_joint(ll.models.PPCA(2), Dataset({"x": np.eye(2)}, dims={"x": ("unit", "feature")}), GOOD)


class FaultyModel(ll.LatentModel):
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
        ("noise", "the log density of 'odd' is random: .* at the same values"),
        ("plate", "has no observed site in a plate named 'unit'"),
        ("unseen", "'x' is not declared|has no observed site"),
        ("error", "fails on these data: KeyError: 'weights'"),
        ("start", "`initialize` of 'odd': unknown site 'zz'; did you mean 'z'"),
    ],
)
def test_programs_with_undeclared_randomness_are_refused(fault, message):
    """Further faults: units without likelihood, a failing program, and a start for an unknown site."""
    with pytest.raises(ModelError, match=message):
        fit(FaultyModel(fault), ODD_DATA, ll.NUTS(n_chains=2, n_warmup=5, n_draws=5), seed=0, progress=False)


def test_a_position_that_is_not_a_site_is_refused():
    model = FaultyModel()
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
def test_wrong_declarations_are_refused_before_the_fit(attribute, value, message):
    model = FaultyModel("error")
    setattr(model, attribute, value)
    with pytest.raises(ModelError, match=message):
        fit(model, ODD_DATA, ll.MAP(), seed=0, progress=False)


def test_a_symmetry_along_a_dim_missing_from_the_position_is_refused():
    model = FaultyModel()
    model.dims, model.symmetry = {"z": ("unit",), "W": ("feature", "latent")}, Orthogonal()
    with pytest.raises(ModelError, match="which the position 'z' does not have; name another dim"):
        fit(model, ODD_DATA, ll.MAP(), seed=0, progress=False)


def test_positions_without_posterior_spread_are_not_compared():
    point = fit(FaultyModel(), ODD_DATA, ll.MAP(n_draws=20), seed=0, progress=False)
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


def test_a_mode_at_the_boundary_of_the_support_is_flagged():
    """With more features than units the noise of one feature goes to 0 and the density is unbounded."""
    x = np.random.default_rng(0).normal(size=(10, 30))
    few = Dataset({"x": x}, dims={"x": ("unit", "feature")}).standardize()
    table = fit(ll.models.FactorAnalysis(2), few, ll.MAP(), seed=0, progress=False).diagnostics()
    assert table.query("verdict == 'warn'")["quantity"].str.contains("'psi' converged to the boundary of its support").any()
    sound = fit(ll.models.PPCA(2), load_dataset("iris"), ll.MAP(n_restarts=1), seed=0, progress=False).diagnostics()
    assert not (sound["check"] == "estimate").any()


@pytest.mark.slow
def test_a_run_with_constant_draws_has_a_report(tmp_path, monkeypatch):
    """All draws are constant, as after a far too large learning rate: the run has a page and a failed diagnosis."""
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
        (["compare.metrics=[]"], r"compare\.metrics: the list must not be empty"),
        (["compare.metrics=[cca, cca]"], r"compare\.metrics\.1: 'cca' is listed twice"),
        (["compare.alignments=[]"], r"compare\.alignments: the list must not be empty"),
        (["inference={name: nuts, n_chains: 2, n_draws: 1}"], "2 chain\\(s\\) of 1 draws are too few for a comparison"),
        (["inference={name: svi, batch_size: 151}"], "`batch_size` must be at most the 150 units; got 151"),
        (["embeddings=[{name: isomap, n_neighbors: 150}]"], r"embeddings\.0: .*n_neighbors.*150"),
        (["embeddings=[{name: pca, n_latent: 9}]"], r"embeddings\.0: .*n_latent.*9"),
    ],
)
def test_errors_known_before_the_fit_start_no_run(changes, message, tmp_path):
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
        ("name = 'mine'\nclass Other(ll.LatentModel):\n    name = 'mine'", "two models have the name 'mine', Mine and Other"),
    ],
)
def test_invalid_plugins_are_refused(body, message, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(PLUGIN.format(name="Mine", body=body))
    with pytest.raises(ConfigError, match=message), plugins([path]):
        pass
    assert "mine" not in MODELS


def test_two_plugins_with_the_same_name_are_refused(tmp_path):
    paths = [tmp_path / "a.py", tmp_path / "b.py"]
    for path in paths:
        path.write_text(PLUGIN.format(name="Mine", body="name = 'mine'"))
    with pytest.raises(ConfigError, match="another plugin also has a model named 'mine'"), plugins(paths):
        pass


def test_scalar_positions_are_compared_with_one_column_embeddings(tmp_path):
    path = tmp_path / "trait.py"
    path.write_text((HERE / "plugins" / "eight_schools.py").read_text())
    config = {"name": "x", "dataset": {"name": "iris"}, "model": {"name": "eight_schools"}, "inference": {"name": "nuts"}}
    loaded = load_config({**config, "embeddings": [{"name": "pca"}]}, (), [path])
    assert dict(loaded.embeddings[0])["n_latent"] == 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda iris: ll.fit("ppca", iris, ll.Exact()), "`model` must be a `LatentModel`; got 'ppca'"),
        (lambda iris: ll.fit(ll.models.PPCA, iris, ll.Exact()), "got the class PPCA; call it with its arguments"),
        (lambda iris: ll.fit(ll.models.PPCA(2), iris.x, ll.Exact()), "`dataset` must be a `Dataset`"),
        (lambda iris: ll.fit(ll.models.PPCA(2), iris, ll.Exact), "`method` must be an inference method, such as"),
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
def test_arguments_of_the_wrong_kind_are_refused(call, message):
    with pytest.raises(ConfigError, match=message):
        call(load_dataset("iris"))
