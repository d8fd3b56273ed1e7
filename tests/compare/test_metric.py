"""Tests that each metric has the invariances it declares and no others.

The fixture `each` runs over metrics of positions, `any_metric` over all metrics.
"""

import numpy as np
import pytest

from latentlab.compare.metric import TRANSFORMATIONS, metric, missing_invariances, required_invariances
from latentlab.compare.partition import Labels
from latentlab.compare.positions import Positions
from latentlab.errors import ConfigError, DataError, InferenceError
from latentlab.registry import METRICS
from latentlab.symmetry.groups import GROUPS, Euclidean, GeneralLinear, Identity, Orthogonal, Permutation

WHOLE_TABLE = {name: METRICS.load(name) for name in METRICS}
TABLE = {name: m for name, m in WHOLE_TABLE.items() if m.of == "positions"}
SAME, CHANGED = 1e-7, 1e-3


@pytest.fixture(params=sorted(TABLE))
def each(request):
    return TABLE[request.param]


@pytest.fixture(params=sorted(WHOLE_TABLE))
def any_metric(request):
    return WHOLE_TABLE[request.param]


def related_arguments(rng, m, n=60):
    """Creates two strongly related arguments of a metric."""
    if m.of == "positions":
        return related_positions(rng, n)
    y = rng.integers(4, size=n)
    return np.where(rng.random(n) < 0.3, rng.integers(6, size=n), y), y


def related_positions(rng, n=60, p=3, q=3, noise=0.7):
    """Creates a strongly related embedding and draw; neither is centred or isotropic, and scales differ."""
    z = rng.standard_t(5, size=(n, max(p, q))) * np.linspace(2.0, 0.6, max(p, q)) + 1.0
    return 1.3 * (z + noise * rng.normal(size=z.shape))[:, :p] - 0.5, z[:, :q]


def transformed(x, name, rng):
    if name == "relabelling":
        return rng.permutation(9)[x] * 7 - 20
    q = x.shape[1]
    if name == "rotation":
        return x @ Orthogonal().random(rng, q)
    if name == "translation":
        return x + rng.normal(size=q) * 3
    if name == "scale":
        return x * 2.5
    return x @ (Orthogonal().random(rng, q) * np.geomspace(0.4, 4.0, q)) @ Orthogonal().random(rng, q)


def largest_change(m, name, rng):
    """Largest change of the value over transforming x, y, and both, for five pairs."""
    found = 0.0
    for _ in range(5):
        x, y = related_arguments(rng, m)
        before = m(x, y)
        for left, right in [
            (transformed(x, name, rng), y),
            (x, transformed(y, name, rng)),
            (transformed(x, name, rng), transformed(y, name, rng)),
        ]:
            found = max(found, abs(m(left, right) - before) / max(1.0, abs(before)))
    return found


def false_claims(m, rng):
    """Returns the transformations whose declaration is wrong."""
    return {name for name in TRANSFORMATIONS[m.of] if (largest_change(m, name, rng) < CHANGED) != (name in m.ignores)}


def test_declared_invariances_hold(any_metric, rng):
    for name in any_metric.ignores:
        assert largest_change(any_metric, name, rng) < SAME, name


def test_undeclared_transformations_change_the_value(any_metric, rng):
    for name in TRANSFORMATIONS[any_metric.of] - any_metric.ignores:
        assert largest_change(any_metric, name, rng) > CHANGED, name


def test_a_wrong_invariance_declaration_is_detected(rng):
    @metric(direction="lower", range=(0.0, 1.0), ignores={"linear"}, void=1.0)
    def declares_too_many(x, y):
        return TABLE["procrustes_similarity"].function(x, y)

    @metric(direction="lower", range=(0.0, 1.0), ignores={"rotation", "scale"}, void=1.0)
    def declares_too_few(x, y):
        return TABLE["procrustes_similarity"].function(x, y)

    assert false_claims(declares_too_many, rng) == {"linear", "translation"}
    assert false_claims(declares_too_few, rng) == {"translation"}
    assert false_claims(TABLE["procrustes_similarity"], rng) == set()

    @metric(of="labels", direction="higher", range=(0.0, 1.0), ignores={"relabelling"})
    def names_matter(x, y):
        return (x.values == y.values).mean()

    assert false_claims(names_matter, rng) == {"relabelling"}
    assert false_claims(WHOLE_TABLE["adjusted_rand"], rng) == set()


def test_identical_positions_give_the_best_value(each, rng):
    for n, q in [(4, 1), (40, 1), (40, 3)]:
        x = rng.normal(size=(n, q))
        options = {"n_neighbors": 1} if "n_neighbors" in each.options else {}
        assert each(x, x, **options) == pytest.approx(each.best, abs=1e-7), (n, q)


def test_the_unclipped_formula_stays_within_the_range(each, rng):
    """Calls the formula without the clipping by `Metric`."""
    low, high = each.range
    for n, noise in [(33, 0.0), (33, 0.3), (33, 30.0), (200, 1e4)]:
        for p, q in [(2, 2), (5, 2), (2, 5)]:
            x, y = related_positions(rng, n, p, q, noise)
            for left, right in [(x, y), (x, -y), (rng.permutation(x), y), (1e3 * x, y), (x, y**3)]:
                assert low - 1e-9 <= each.function(Positions(left), Positions(right)) <= high + 1e-9


def test_the_direction_names_the_better_end_of_the_range(each, rng):
    z = rng.normal(size=(120, 2))
    values = [np.mean([each(z + s * rng.normal(size=z.shape), z) for _ in range(10)]) for s in (0.05, 0.3, 1.0)]
    values.append(np.mean([each(rng.permutation(z), z) for _ in range(10)]))
    steps = np.diff(values[:3] if each.name in ("displacement", "gromov_wasserstein") else values)
    assert (steps < 0).all() if each.direction == "higher" else (steps > 0).all()
    assert each.best == each.range[each.direction == "higher"]


def test_symmetry_in_x_and_y_is_as_declared(any_metric, rng):
    differences = []
    for _ in range(5):
        x, y = related_arguments(rng, any_metric)
        differences.append(abs(any_metric(x, y) - any_metric(y, x)))
    assert max(differences) < 1e-9 if any_metric.symmetric else max(differences) > CHANGED


def test_missing_columns_count_as_zeros(each, rng):
    x, y = related_positions(rng, p=2, q=3)
    padded = np.hstack([x, np.zeros((len(x), 1))])
    assert each(x, y) == pytest.approx(each(padded, y), abs=1e-12)
    assert each(y, x) == pytest.approx(each(y, padded), abs=1e-12)


def test_a_missing_latent_dimension_lowers_the_score(each, rng):
    """The dimension with three times the spread is dropped."""
    z = rng.normal(size=(100, 2)) * [1.0, 3.0]
    assert abs(each(z[:, :1], z) - each.best) > 0.1


def test_the_order_of_the_units_does_not_matter(any_metric, rng):
    x, y = related_arguments(rng, any_metric)
    order = rng.permutation(len(x))
    assert any_metric(x[order], y[order]) == pytest.approx(any_metric(x, y), abs=1e-9)


def test_constant_positions_give_the_declared_value(each, rng):
    x, y = related_positions(rng)
    low, high = each.range
    assert low <= each.void <= high
    assert each.void != each.best
    nowhere = np.full_like(x, 0.1) + 1e8
    for left, right in [(nowhere, y), (x, nowhere), (nowhere, nowhere), (np.zeros_like(x), y)]:
        assert each(left, right) == each.void


def test_degenerate_positions_give_finite_values(each):
    """Equidistant units, units at two points and duplicate units give a finite value in the range without warning."""
    line = np.arange(40.0)[:, None]
    for x in (np.eye(40)[:, :20], np.repeat([[0.0, 1.0], [2.0, 0.0]], 20, axis=0), np.repeat(line[:20], 2, axis=0)):
        for left, right in [(x, line), (line, x), (x, x)]:
            assert each.range[0] <= each(left, right) <= each.range[1]


def test_metrics_are_stable_at_extreme_scales(each, rng):
    x, y = related_positions(rng)
    if "scale" not in each.ignores:
        pytest.skip("not scale free")
    for factor in (1e-30, 1e30):
        assert each(x * factor, y / factor) == pytest.approx(each(x, y), abs=1e-7)


def test_inputs_are_not_modified_and_prepared_inputs_agree(any_metric, rng):
    x, y = related_arguments(rng, any_metric)
    before = x.copy(), y.copy()
    left, right = any_metric.kind(x), any_metric.kind(y)
    assert any_metric(x, y) == any_metric(left, right) == any_metric(left, right)
    np.testing.assert_array_equal(x, before[0])
    np.testing.assert_array_equal(y, before[1])


def test_integers_and_lists_are_accepted_as_positions(each):
    x = np.arange(24).reshape(12, 2) ** 2 % 7
    options = {"n_neighbors": 3} if "n_neighbors" in each.options else {}
    assert each(x.tolist(), x, **options) == pytest.approx(each.best, abs=1e-7)


def test_the_registry_describes_each_metric(any_metric):
    assert WHOLE_TABLE[any_metric.name] is any_metric
    assert METRICS.describe(any_metric.name).endswith(".")
    assert METRICS.describe(any_metric.name) == any_metric.__doc__.split("\n")[0]
    assert any_metric.direction in ("higher", "lower")
    assert any_metric.best == any_metric.range[any_metric.direction == "higher"]
    assert any_metric.kind is {"positions": Positions, "labels": Labels}[any_metric.of]


@pytest.mark.parametrize(
    ("x", "says"),
    [
        (np.full((10, 2), np.nan), "x: positions must be finite"),
        (np.array([[0.0, 1.0]] * 9 + [[2.0, np.inf]]), "got inf for unit 9, column 1"),
        (np.full((10, 2), 1e80), "below 1e\\+70 in absolute value"),
        (np.zeros((3, 2)), "at least 4 units are needed; got 3"),
        (np.zeros((1, 2)), "at least 4 units are needed; got 1"),
        (np.zeros(10), r"shape \(unit, p\)"),
        (np.zeros((10, 0)), r"shape \(unit, p\)"),
        (np.zeros((2, 10, 2)), r"shape \(unit, p\)"),
        ([["a", "b"]] * 10, "must be numbers"),
        (np.zeros((11, 2)), "got 11 units in x and 10 in y"),
    ],
)
def test_invalid_positions_are_refused(each, x, says, rng):
    y = rng.normal(size=(10, 2))
    with pytest.raises(DataError, match=says):
        each(x, y)
    with pytest.raises(DataError):
        each(y, x)


def test_unknown_options_are_refused(any_metric, rng):
    x, y = related_arguments(rng, any_metric)
    with pytest.raises(ConfigError, match=f"metric '{any_metric.name}': unknown option 'k'"):
        any_metric(x, y, k=3)


def test_position_metrics_refuse_labels_and_vice_versa(any_metric, rng):
    of = "labels" if any_metric.of == "positions" else "positions"
    other = next(m for m in WHOLE_TABLE.values() if m.of == of)
    x, y = related_arguments(rng, other)
    for left, right in [(x, y), (other.kind(x), other.kind(y))]:
        with pytest.raises(DataError):
            any_metric(left, right)


def test_options_can_be_bound(rng):
    x, y = related_positions(rng)
    overlap = TABLE["neighbor_overlap"]
    assert overlap.options == {"n_neighbors": 15, "neighbor_search": "exact"}
    bound = overlap.bind(n_neighbors=5)
    assert bound(x, y) == overlap(x, y, n_neighbors=5) != overlap(x, y)
    assert bound.options == {"n_neighbors": 5, "neighbor_search": "exact"}
    assert bound.bind(n_neighbors=15)(x, y) == overlap(x, y)


def test_an_unknown_transformation_cannot_be_declared():
    with pytest.raises(ConfigError, match="unknown transformation 'rotations'; did you mean 'rotation'"):
        metric(direction="lower", range=(0.0, 1.0), ignores={"rotations"}, void=1.0)
    with pytest.raises(ConfigError, match=r"unknown transformation 'rotation'\. Valid: relabelling"):
        metric(of="labels", direction="lower", range=(0.0, 1.0), ignores={"rotation"})


def test_a_position_metric_must_declare_its_void_value():
    with pytest.raises(ConfigError, match="`void` of a metric of positions must be a number"):
        metric(direction="lower", range=(0.0, 1.0), ignores=())


@pytest.mark.parametrize("name", GROUPS)
def test_symmetry_requirements_match_the_effect_of_random_elements(each, name, rng):
    group, dims = GROUPS[name](), {"z": ("unit", "latent")}
    changes = []
    for _ in range(10):
        x, y = related_positions(rng)
        turned = group.act(group.random(rng, 3), {"z": y}, dims)["z"]
        changes.append(abs(each(x, turned) - each(x, y)))
    if missing_invariances(each, group):
        assert max(changes) > CHANGED
    else:
        assert max(changes) < SAME


def test_invariances_required_by_each_symmetry():
    assert {name: set(required_invariances(group())) for name, group in GROUPS.items()} == {
        "identity": set(),
        "permutation": {"rotation"},
        "signed_permutation": {"rotation"},
        "orthogonal": {"rotation"},
        "euclidean": {"rotation", "translation"},
        "general_linear": {"linear"},
    }


def test_a_group_along_another_dim_requires_no_invariance():
    assert required_invariances(Permutation("component")) == frozenset()
    assert required_invariances(Permutation("component"), ("unit", "component")) == {"rotation"}


def test_some_metric_suits_every_symmetry():
    for group in (Identity(), Permutation(), Orthogonal(), Euclidean(), GeneralLinear()):
        assert any(not missing_invariances(m, group) for m in TABLE.values())
    assert {name for name, m in TABLE.items() if missing_invariances(m, Orthogonal())} == {"displacement"}
    assert {name for name, m in TABLE.items() if not missing_invariances(m, GeneralLinear())} == {"cca", "principal_angle"}


@pytest.mark.parametrize("value", [np.nan, -3.0, 1.1, np.inf])
def test_values_outside_the_declared_range_are_refused(value, rng):
    def odd(x, y):
        """Odd."""
        return value

    found = metric(direction="lower", range=(0.0, 1.0), ignores=(), void=1.0)(odd)
    with pytest.raises(InferenceError, match=rf"metric 'odd' must return a number from 0 to 1, its `range`; got {value:g}\."):
        found(*related_positions(rng))


def test_rounding_beyond_the_range_is_clipped(rng):
    def rounded_above_range(x, y):
        """Near the best value."""
        return 1 + 1e-9

    assert metric(direction="higher", range=(0.0, 1.0), ignores=(), void=0.0)(rounded_above_range)(*related_positions(rng)) == 1
