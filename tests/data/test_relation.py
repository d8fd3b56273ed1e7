"""Tests of relational data, whose points refer to units."""

import networkx as nx
import numpy as np
import pandas as pd
import pytest

from latentlab.data.dataset import Dataset
from latentlab.data.load import load_dataset
from latentlab.data.missing import hide
from latentlab.data.points import edges, grunfeld, karate, ratings
from latentlab.errors import DataError

RATINGS = {
    "arrays": {"rating": [5, 3, 1]},
    "dims": {"rating": ("cell",)},
    "units": {"user": ["ann", "bob"], "item": ["alien", "brazil"]},
    "index": {"user": ("cell", [0, 1, 1]), "item": ("cell", [0, 0, 1])},
    "name": "films",
}
GRAPH = {
    "arrays": {"edge": [1, 1]},
    "dims": {"edge": ("pair",)},
    "units": {"node": ["a", "b", "c", "d"]},
    "index": {"source": ("pair", [0, 2], "node"), "target": ("pair", [1, 1], "node")},
    "absent": "zero",
    "name": "friends",
}


def made(base, **changes):
    given = {**base, **changes}
    return Dataset(given.pop("arrays"), **given)


def test_points_and_kinds_of_units_are_distinguished():
    films = made(RATINGS)
    assert (films.points, films.n_points, films.sizes) == ("cell", 3, {"cell": 3, "user": 2, "item": 2})
    assert {kind: names.tolist() for kind, names in films.kinds.items()} == RATINGS["units"]
    assert {name: names.tolist() for name, names in films.point_names().items()} == {
        "user": ["ann", "bob", "bob"],
        "item": ["alien", "alien", "brazil"],
    }
    with pytest.raises(DataError, match=r"films: `n_units` is defined only for tables; .*\(user, item\)"):
        _ = films.n_units


def test_the_points_of_a_table_are_its_units(rng):
    table = Dataset({"x": rng.normal(size=(3, 2))}, dims={"x": ("unit", "feature")}, units=["u", "v", "w"])
    assert (table.points, table.n_points, table.n_units, list(table.kinds)) == ("unit", 3, 3, ["unit"])
    by_coordinate = Dataset(table.arrays, dims=table.dims, coords={"unit": ["u", "v", "w"]})
    assert table.digest() == by_coordinate.digest()
    numbered = Dataset(table.arrays, dims=table.dims, units=np.arange(3))
    assert numbered.digest() == Dataset(table.arrays, dims=table.dims).digest()


@pytest.mark.parametrize(
    ("base", "changes", "message"),
    [
        (
            RATINGS,
            {"index": {"user": ("cell", [0, 1, 2]), "item": ("cell", [0, 0, 1])}},
            "index 'user' is 2 at cell 2, .* numbered 0 to 1",
        ),
        (RATINGS, {"index": {"user": ("cell", [0, 1, -1]), "item": ("cell", [0, 0, 1])}}, "index 'user' is -1 at cell 2"),
        (
            RATINGS,
            {"index": {"user": ("cell", [0, 1, 1]), "item": ("cell", [0, 0, 0])}},
            r"the cell \(user 'bob', item 'alien'\) is listed more than once, at 1 and 2",
        ),
        (RATINGS, {"units": {"user": ["ann", "ann"], "item": 2}}, "units of the kind 'user': 'ann' occurs more than once"),
        (RATINGS, {"units": {"user": 2}}, "refers to units of the kind 'item', but `units` has only 'user'"),
        (RATINGS, {"units": {"user": 2, "item": 2, "film": 3}}, "no index refers to the kind 'film' in `units`"),
        (
            RATINGS,
            {"units": None},
            "`units` must be a dict of the names, or the number, of the units of each kind, .*; got NoneType",
        ),
        (RATINGS, {"units": {"user": 2, "item": []}}, "the list of names is empty"),
        (RATINGS, {"coords": {"time": ("cell", [1, 2, 3])}}, "'time'.* must be one-dimensional; got"),
        (
            RATINGS,
            {"units": {"latent": 2, "item": 2}, "index": {"latent": ("cell", [0, 1, 1]), "item": ("cell", [0, 0, 1])}},
            "'latent' is not a valid name of a kind of units",
        ),
        (
            RATINGS,
            {"units": {kind: 10**4 for kind in "abcde"}, "index": {kind: ("cell", [0, 1, 1]) for kind in "abcde"}},
            r"the number of possible cells is 1e\+20, which exceeds",
        ),
        (RATINGS, {"arrays": {"rating": [5, np.nan, 1]}}, "cell 1 has no value; list only observed cells"),
        (
            RATINGS,
            {"index": {"user": ("cell", [0, 1, 0.5]), "item": ("cell", [0, 0, 1])}},
            "must be integers, the positions of units",
        ),
        (RATINGS, {"index": {"user": ("cell", [0, 1]), "item": ("cell", [0, 0, 1])}}, r"must have shape \(3,\)"),
        (
            RATINGS,
            {"index": {"user": ("row", [0, 1, 1]), "item": ("cell", [0, 0, 1])}},
            "must have the dim of the points, 'cell'; got 'row'",
        ),
        (RATINGS, {"index": {"user": [0, 1, 1], "item": ("cell", [0, 0, 1])}}, r"must be \(dim, numbers\)"),
        (
            RATINGS,
            {"index": {"rating": ("cell", [0, 1, 1], "user"), "item": ("cell", [0, 0, 1])}},
            "'rating' is not a valid name of an index",
        ),
        (RATINGS, {"dims": {"rating": ("unit",)}}, "no dim may have the name 'unit'"),
        (RATINGS, {"coords": {"user": ["x", "y"]}}, "pass the names of its units as `units`"),
        (RATINGS, {"labels": [0, 1]}, r"`labels` must be a dict with a label for each unit, by kind \(user, item\); got a list"),
        (RATINGS, {"labels": {"film": [0, 1]}}, "`labels` has the unknown kind 'film'"),
        (RATINGS, {"absent": "nothing"}, "`absent` must be 'unobserved' or 'zero'"),
        (RATINGS, {"directed": 1}, "`directed` must be true or false"),
        (GRAPH, {"index": {"source": ("pair", [0, 1], "node"), "target": ("pair", [1, 1], "node")}}, "connects 'b' with itself"),
        (GRAPH, {"index": {"source": ("pair", [0, 1], "node"), "target": ("pair", [1, 0], "node")}}, "listed more than once"),
    ],
)
def test_invalid_relational_data_are_refused(base, changes, message):
    with pytest.raises(DataError, match=message):
        made(base, **changes)


def test_options_of_relational_data_are_refused_for_a_table():
    x = {"x": [[1.0], [2.0]]}
    with pytest.raises(DataError, match="a table has no index"):
        Dataset(x, dims={"x": ("unit", "feature")}, absent="zero")
    with pytest.raises(DataError, match="no index refers to the kind 'user' in `units`"):
        Dataset(x, dims={"x": ("unit", "feature")}, units={"user": ["a", "b"]})
    with pytest.raises(DataError, match="`units` and the coordinate 'unit' have different names"):
        Dataset(x, dims={"x": ("unit", "feature")}, units=["a", "b"], coords={"unit": ["b", "a"]})


def test_matrix_and_adjacency_are_sparse_and_hold_the_listed_values():
    np.testing.assert_array_equal(made(RATINGS).matrix("user", "item").toarray(), [[5, 0], [3, 1]])
    np.testing.assert_array_equal(made(RATINGS).matrix("item", "user").toarray(), [[5, 3], [0, 1]])
    expected = np.zeros((4, 4))
    expected[[0, 1, 2, 1], [1, 0, 1, 2]] = 1
    np.testing.assert_array_equal(made(GRAPH).adjacency().toarray(), expected)
    one_way = made(GRAPH, directed=True).adjacency().toarray()
    np.testing.assert_array_equal(one_way, [[0, 1, 0, 0], [0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]])
    with pytest.raises(DataError, match="unknown index 'film'"):
        made(RATINGS).matrix("user", "film")
    with pytest.raises(DataError, match="no adjacency matrix"):
        made(RATINGS).adjacency()


def test_a_graph_is_completed_by_zeros_for_any_order_of_edges():
    graph, other = (
        made(GRAPH),
        made(GRAPH, index={"source": ("pair", [1, 1], "node"), "target": ("pair", [2, 0], "node")}),
    )
    whole = graph.complete()
    assert whole.digest() == other.complete().digest()
    assert (whole.n_points, whole.x.sum(), whole.absent) == (6, 2, "unobserved")
    np.testing.assert_array_equal(whole.adjacency().toarray(), graph.adjacency().toarray())
    assert made(GRAPH, directed=True).complete().n_points == 12
    films = made(RATINGS, absent="zero").complete()
    np.testing.assert_array_equal(films.matrix("user", "item").toarray(), [[5, 0], [3, 1]])
    assert made(RATINGS).complete().n_points == 3


def test_a_pair_with_a_missing_value_is_left_out():
    whole = made(GRAPH, arrays={"edge": [1, np.nan]}).complete()
    assert (whole.n_points, whole.x.sum()) == (5, 1)
    assert (1, 2) not in set(zip(*(one.values.tolist() for one in whole.index.values()), strict=True))


def test_all_pairs_of_held_out_nodes_are_held_out(rng):
    """All pairs of a held-out node are held out, whether it is source or target."""
    training, held_out = karate().split(0.2, rng, along="node")
    left = {int(i) for one in training.index.values() for i in one.values}
    assert len(left) == 34 - 7
    assert training.n_points == 27 * 26 / 2
    assert held_out.n_points == 34 * 33 / 2 - training.n_points


def test_holding_out_points_keeps_all_units(rng):
    films = grunfeld().standardize()
    training, held_out = films.split(0.25, rng)
    assert (training.n_points, held_out.n_points) == (165, 55)
    assert training.kinds.keys() == films.kinds.keys()
    assert training.sizes["user"] == held_out.sizes["user"] == 11
    assert abs(training.x.mean()) < 1e-12
    np.testing.assert_allclose(sorted(np.concatenate([training.raw().x, held_out.raw().x])), sorted(films.raw().x), rtol=1e-12)
    training, held_out = films.split(0.2, rng, along="user")
    firms = [set(part.index["user"].values.tolist()) for part in (training, held_out)]
    assert (len(firms[0]), len(firms[1]), firms[0] & firms[1]) == (9, 2, set())
    with pytest.raises(DataError, match=r"`along` must be a kind of units \('user', 'item'\) or 'cell'; got 'film'"):
        films.split(0.2, rng, along="film")
    graph, pairs = karate().split(0.1, rng)
    assert (graph.n_points + pairs.n_points, graph.sizes["node"]) == (34 * 33 // 2, 34)


def test_units_of_new_points_are_matched_by_name():
    films = made(RATINGS)
    new = made(
        RATINGS,
        arrays={"rating": [4]},
        units={"user": ["bob"], "item": ["brazil", "alien"]},
        index={
            "user": ("cell", [0]),
            "item": ("cell", [1]),
        },
    )
    found = films.conform(new)
    assert (found.index["user"].values.tolist(), found.index["item"].values.tolist()) == ([1], [0])
    strange = made(RATINGS, units={"user": ["ann", "eve"], "item": ["alien", "brazil"]})
    with pytest.raises(DataError, match="1 units of the kind 'user' were not in the fit and have no positions: 'eve'"):
        films.conform(strange)
    with pytest.raises(DataError, match="must have the indices 'user', 'item'; got 'source', 'target'"):
        films.conform(made(GRAPH))
    with pytest.raises(DataError, match=r"must be a `Dataset` with the arrays rating, user \(an index\), item \(an index\)"):
        films.conform([1.0, 2.0])


def test_indices_of_new_points_are_matched_by_name_not_order():
    films = made(RATINGS)
    swapped = made(RATINGS, index={name: RATINGS["index"][name] for name in ("item", "user")})
    found = films.align_features(swapped)
    assert list(found.index) == ["user", "item"]
    assert {name: names.tolist() for name, names in found.point_names().items()} == {
        name: names.tolist() for name, names in films.point_names().items()
    }


def test_new_pairs_must_be_directed_as_in_the_fit():
    with pytest.raises(DataError, match="friends: its pairs are directed, but those of the fit are undirected; set `directed`"):
        made(GRAPH).align_features(made(GRAPH, directed=True))


@pytest.mark.parametrize("number", [0, -1])
def test_a_kind_without_units_is_refused(number):
    with pytest.raises(DataError, match=f"'item': their number must be at least 1; got {number}"):
        made(RATINGS, units={"user": ["ann", "bob"], "item": number})


def test_units_without_points_and_classes_are_noted():
    assert made(GRAPH).notes() == ["1 of 4 nodes has only pairs with the value 0 ('d')."]
    assert made(GRAPH, absent="unobserved").notes() == [
        "1 of 4 nodes has no observed pairs, so only the prior determines the position ('d')."
    ]
    assert "so there is only one class" in made(GRAPH, labels=["x"] * 4).notes()[1]
    assert made(GRAPH, labels=["x", "x", "y", "y"]).labels_of("node").tolist() == ["x", "x", "y", "y"]
    assert made(RATINGS).labels_of("user") is None


def test_the_digest_covers_every_part_of_relational_data():
    changed = [
        made(RATINGS),
        made(RATINGS, arrays={"rating": [5, 3, 2]}),
        made(RATINGS, units={"user": ["ann", "eve"], "item": ["alien", "brazil"]}),
        made(RATINGS, index={"user": ("cell", [0, 1, 0]), "item": ("cell", [0, 0, 1])}),
        made(RATINGS, absent="zero"),
        made(RATINGS, labels={"user": [0, 1]}),
    ]
    assert len({dataset.digest() for dataset in changed}) == len(changed)
    assert made(RATINGS).digest() == made(RATINGS).digest()


def test_the_karate_graph_equals_that_of_networkx():
    graph = nx.karate_club_graph()
    np.testing.assert_array_equal(karate().adjacency().toarray(), nx.to_numpy_array(graph, weight=None))
    assert karate().labels["node"].tolist() == [graph.nodes[i]["club"] for i in graph]


def test_ratings_and_edges_are_read_by_name(tmp_path):
    films = tmp_path / "films.csv"
    films.write_text("item,when,rating,user\nalien,1,5,ann\nbrazil,2,NA,ann\nalien,3,4,bob\n")
    found = ratings(str(films))
    assert (found.x.tolist(), found.units["user"].tolist(), found.units["item"].tolist()) == ([5, 4], ["ann", "bob"], ["alien"])
    assert found.notes()[0] == "1 row without a rating was removed."
    network = tmp_path / "friends.tsv"
    network.write_text("from\tto\tstrength\nb\ta\t2.5\na\tc\t1\n")
    found = edges(str(network), "from", "to", "strength")
    assert (found.units["node"].tolist(), found.adjacency().toarray()[0].tolist()) == (["b", "a", "c"], [0, 2.5, 0])
    assert edges(str(network), "from", "to").x.tolist() == [1, 1]
    with pytest.raises(DataError, match="unknown column 'source'"):
        edges(str(network))
    films.write_text("user,item,rating\nann,alien,5\nann,alien,4\n")
    with pytest.raises(DataError, match=r"the cell \(user 'ann', item 'alien'\) is listed more than once, at 0 and 1"):
        ratings(str(films))
    films.write_text("user,item,rating\nann,alien,good\n")
    with pytest.raises(DataError, match="line 2, column 'rating': 'good' is neither a number"):
        ratings(str(films))


@pytest.mark.parametrize("suffix", ["parquet", "npz"])
def test_edges_without_weights_are_read_from_binary_files(tmp_path, suffix):
    ends = {"source": np.array(["a", "b"]), "target": np.array(["b", "c"])}
    path = tmp_path / f"friends.{suffix}"
    np.savez(path, **ends) if suffix == "npz" else pd.DataFrame(ends).to_parquet(path)
    found = edges(str(path))
    assert (found.x.tolist(), found.units["node"].tolist()) == ([1, 1], ["a", "b", "c"])


def test_unlisted_points_remain_zero():
    """Standardising and subsetting are refused: unlisted points would become the mean, and omitted points zeros."""
    for graph in (made(GRAPH), made(RATINGS, absent="zero")):
        with pytest.raises(DataError, match=r"cannot be standardised, because (pairs|cells) that are not listed are 0"):
            graph.standardize()
        with pytest.raises(DataError, match=r"left out would count as 0; list all .* by `complete"):
            graph.subset([0])
    assert made(GRAPH).complete().subset([0, 1]).n_points == 2
    with pytest.raises(DataError, match="friends: `missing` applies only to tables; hold out pairs"):
        hide(made(GRAPH), 0.5, np.random.default_rng(0))


def test_constant_ratings_are_not_standardised():
    with pytest.raises(
        DataError, match="films: the array is constant over the observed cells, so it cannot be standardised; keep"
    ):
        made(RATINGS, arrays={"rating": [3, 3, 3]}).standardize()


def test_a_split_needs_a_generator():
    with pytest.raises(DataError, match=r"`rng` must be a numpy Generator, .*; got 0"):
        made(RATINGS).split(0.4, 0)


def test_a_graph_is_not_standardised():
    with pytest.raises(DataError, match=r"karate: a graph or counts cannot be standardised, .* `standardize: false`"):
        load_dataset("karate")
    assert load_dataset("karate", standardize=False).n_points == 78
    with pytest.raises(DataError, match="`column` must be 'invest', 'value' or 'capital'"):
        grunfeld("profit")
    with pytest.raises(DataError, match="`log` must be true or false; got 'no'"):
        grunfeld(log="no")
