"""Tests of the page of series: time courses, transitions and durations of states."""

import numpy as np
import pytest
from helpers import captions, table, words

from latentlab.report import positions, series
from latentlab.report.parts import Parts
from latentlab.report.predictive import autocorrelation
from latentlab.report.source import Source
from latentlab.store.read import Run
from latentlab.study.run import run


@pytest.fixture(scope="module")
def flow(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """One sequence of one feature by NUTS with a left-to-right chain."""
    config = {
        "name": "flow",
        "dataset": {"name": "nile"},
        "model": {"name": "gaussian_hmm", "n_states": 2, "left_to_right": True},
        "inference": {"name": "nuts", "n_chains": 2, "n_warmup": 60, "n_draws": 50},
    }
    return run(config, out=tmp_path_factory.mktemp("flow") / "run", progress=False)


@pytest.fixture(scope="module")
def symbols(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """One sequence of symbols whose times are not numbers."""
    rng = np.random.default_rng(1)
    folder = tmp_path_factory.mktemp("symbols")
    state = np.repeat([0, 1, 0], 20)
    lines = [f"{1990 + t // 4}Q{t % 4 + 1},{rng.choice(3, p=[[0.8, 0.1, 0.1], [0.1, 0.2, 0.7]][k])}" for t, k in enumerate(state)]
    (folder / "x.csv").write_text("\n".join(["when,symbol", *lines]) + "\n")
    config = {
        "name": "symbols",
        "dataset": {"name": "file", "path": str(folder / "x.csv"), "time": "when", "standardize": False},
        "model": {"name": "categorical_hmm", "n_states": 2, "n_categories": 3},
        "inference": {"name": "map", "n_draws": 50, "n_restarts": 2},
    }
    return run(config, out=folder / "run", progress=False)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Real positions of six sequences, from a model without time."""
    config = {
        "name": "path",
        "dataset": {"name": "hidden_markov", "n_sequences": 6, "n_steps": 20, "n_features": 4},
        "model": {"name": "ppca", "n_latent": 2},
        "inference": {"name": "exact", "n_draws": 400},
    }
    return run(config, out=tmp_path_factory.mktemp("path") / "run", progress=False)


def test_sequences_are_read_from_the_data(sequences: Run, flow: Run, mixture: Run):
    source = Source(sequences)
    assert source.sequences is not None
    assert [len(of) for of in source.sequences] == [30, 27, 24, 21, 18, 15]
    for s, of in enumerate(source.sequences):
        assert {source.units[i].split(":")[0] for i in of} == {str(s)}
    assert np.array_equal(np.concatenate(source.sequences), np.arange(len(source.units)))
    assert [len(of) for of in Source(flow).sequences or []] == [100]
    assert Source(mixture).sequences is None


def test_correspondence_maps_receive_sequences_and_times(sequences: Run):
    fitted = Source(sequences).fitted
    assert fitted.coords["sequence"].tolist() == sequences.posterior["observed_data"]["sequence"].values.tolist()
    assert "time" in fitted.coords


def test_the_time_course_notes_omitted_sequences(sequences: Run, flow: Run, monkeypatch: pytest.MonkeyPatch):
    assert "The first 4 of 6 sequences are shown" in captions(sequences)["course"]
    assert "sequences are shown" not in captions(flow)["course"]
    assert "The first" not in captions(flow)["course"]
    monkeypatch.setattr(series, "MOST_FEATURES", 1)
    source = Source(sequences)
    (figure,) = series.course_of_states(source, Parts(source))
    assert "The first 1 of 2 features" in figure.caption
    assert "6 sequences" in words(sequences)
    assert "in 1 sequence" not in words(flow)


def test_stacked_state_probabilities_sum_to_1(sequences: Run):
    """The stacked probabilities of all states sum to 1."""
    source = Source(sequences)
    kept = Parts(source).kept
    assert np.allclose(source.probabilities[:, kept].sum(axis=1), 1, atol=1e-12)


def test_transitions_match_the_aligned_draws(flow: Run, sequences: Run):
    for found in (flow, sequences):
        tree = found.posterior
        group = "latents" if "transition" in tree["latents"] else "posterior"
        a = tree[group]["transition"].values.reshape(-1, *tree[group]["transition"].shape[2:])
        rows = table(found, "transitions")
        assert len(rows) == a.shape[1] ** 2
        for row in rows:
            own = a[:, row["from"], row["to"]]
            assert row["mean"] == pytest.approx(own.mean(), rel=1e-12, abs=1e-15)
            if found is flow:
                assert row["q05"] == pytest.approx(np.quantile(own, 0.05), rel=1e-12, abs=1e-15)
        for k in range(a.shape[1]):
            assert sum(row["mean"] for row in rows if row["from"] == k) == pytest.approx(1, rel=1e-9)
    assert "q05" not in table(sequences, "transitions")[0], "a point estimate has no intervals"


def test_state_durations_match_the_geometric_mean(flow: Run, sequences: Run):
    """The mean of a geometric distribution, by its definition: sum of n a^(n-1) (1 - a)."""
    rows = table(flow, "durations")
    a = flow.posterior["posterior"]["transition"].values.reshape(-1, 2, 2)
    n = np.arange(1, 20_000)
    stay = np.array([(n * p ** (n - 1.0) * (1 - p)).sum() for p in a[:, 0, 0]])
    assert rows[0]["duration in steps, median"] == pytest.approx(np.median(stay), rel=1e-6)
    assert stay.min() <= rows[0]["q05"] <= rows[0]["duration in steps, median"] <= rows[0]["q95"] <= stay.max()
    assert rows[1]["duration in steps, median"] == "inf", "the last state never ends"
    assert "initial, mean" not in rows[0], "the first state is fixed"
    told = table(sequences, "durations")
    initial = sequences.posterior["latents"]["initial"].values[0, 0]
    assert [row["initial, mean"] for row in told] == pytest.approx(initial.tolist(), rel=1e-12)


def test_a_single_feature_is_shown_as_histogram(flow: Run):
    assert captions(flow)["map"].startswith("Histogram")
    assert {"course", "map", "transitions", "co-assignment", "profiles"} <= set(captions(flow))


def test_symbols_have_a_time_course_and_category_profiles(symbols: Run):
    rows = table(symbols, "profiles")
    assert {row["feature"] for row in rows} == {f"symbol = {c}" for c in range(3)}
    for k in range(2):
        assert sum(row["mean"] for row in rows if row["state"] == k) == pytest.approx(1, rel=1e-9)
    assert "black line" not in captions(symbols)["course"], "a symbol has no level"
    source = Source(symbols)
    _, names = series._clock(source, source.sequences[0])
    assert names is not None
    assert names[:2] == ["1990Q1", "1990Q2"]


def test_real_positions_are_plotted_over_time(path: Run, wide: Run):
    assert captions(path)["course"].startswith("Positions over time")
    assert "80%" in captions(path)["course"]
    assert "The first 4 of 6 sequences" in captions(path)["course"]
    assert "course" not in captions(wide), "no series"
    assert "mean 1" in table(path, "positions")[0], "the table of positions is kept"


def test_edges_lie_between_steps():
    assert series._edges(np.array([0.0, 1.0, 3.0])).tolist() == [-0.5, 0.5, 2.0, 4.0]
    assert series._edges(np.array([7.0])).tolist() == [6.5, 7.5]


def test_autocorrelation_is_computed_within_sequences():
    rng = np.random.default_rng(2)
    x = rng.normal(size=(30, 2)).cumsum(axis=0)
    of = [np.arange(18), np.arange(18, 29), np.arange(29, 30)]
    x[4, 1] = np.nan
    before = np.r_[0:17, 18:28]
    expected = np.corrcoef(x[before, 0], x[before + 1, 0])[0, 1]
    kept = np.setdiff1d(before, [3, 4])
    missing = np.corrcoef(x[kept, 1], x[kept + 1, 1])[0, 1]
    assert autocorrelation(x, of).tolist() == pytest.approx([expected, missing], rel=1e-12)
    assert np.isnan(autocorrelation(np.ones((5, 1)), [np.arange(5)])).all()


def test_predictive_checks_of_series_include_autocorrelation(flow: Run, mixture: Run):
    row = next(row for row in table(flow, "predictive") if row["statistic"] == "autocorrelation of each feature")
    x = flow.posterior["observed_data"]["x"].values
    assert row["observed"] == pytest.approx(np.corrcoef(x[:-1, 0], x[1:, 0])[0, 1], rel=1e-10)
    assert not any("autocorrelation" in row["statistic"] for row in table(mixture, "predictive"))
    assert not any(row["statistic"].startswith("correlation") for row in table(flow, "predictive")), (
        "a single feature has no pairs"
    )


def test_the_section_is_named_after_labels_or_positions(flow: Run, path: Run):
    assert positions.section(Source(flow)).title == "Posterior of the labels"
    assert positions.section(Source(path)).title == "Posterior of the positions"
