"""Tests of the proposed roles of the columns of a text table."""

import pytest

from latentlab.data.roles import edge_roles, rating_roles, table_roles
from latentlab.errors import DataError


@pytest.fixture
def written(tmp_path):
    def write(text, name="mine.csv"):
        path = tmp_path / name
        path.write_text(text)
        return str(path)

    return write


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("a,b\n1.5,2\n3,4\n", {}),
        ("id,a\n17,2\n12,4\n", {"unit": "id"}),
        ("year,a\n1990,2\n1991,4\n", {"unit": "year"}),
        ("id,a\n17,2\n17,4\n", {}),  # repeated numbers are no names
        ("n,a\n1,5\n2,4\n3,5\n", {"unit": "n"}),  # counts the rows
        ("a,target\n1.5,0\n2,1\n3,0\n", {"label": "target"}),
        ("a,b\n1.5,0\n2,1\n3,0\n", {}),  # few numbers are a feature, unless the name is that of a label
        ("x;y\n1,5;2,5\n2,25;3\n", {"decimal": ","}),
        (",a\n0,1.5\n1,2\n", {}),  # an index written by pandas
        ("a,b\n1.5,NA\n2,\n3,4\n", {}),
    ],
)
def test_roles_of_a_table(text, options, written):
    assert dict(table_roles(written(text), is_series=False).options) == options


def test_a_text_among_numbers_is_named(written):
    roles = table_roles(written("a,b\n1,2\nn.a.,3\nn.a.,4\n"), is_series=False)
    assert dict(roles.options) == {"columns": ["b"]}
    assert roles.remarks == ["column 'a' is left out: it has text between numbers, such as 'n.a.'"]


def test_a_series_needs_no_time(written):
    assert dict(table_roles(written("a\n3\n1\n"), is_series=True).options) == {}
    roles = table_roles(written("Date,a\n2020-01,3\n2020-02,1\n"), is_series=True)
    assert dict(roles.options) == {"time": "Date"}


def test_ratings_without_known_names_are_taken_by_place(written):
    assert dict(rating_roles(written("p,q,r\nx,y,3\nx,z,4\n")).options) == {"user": "p", "item": "q", "rating": "r"}
    assert dict(rating_roles(written("rating,userId,movieId\n3,1,2\n4,1,3\n")).options) == {
        "user": "userId", "item": "movieId", "rating": "rating",
    }  # fmt: skip
    with pytest.raises(DataError, match="there are no ratings"):
        rating_roles(written("p,q,r\nx,y,u\nx,z,v\n"))


def test_edges_without_known_names_are_the_first_two_columns(written):
    roles = edge_roles(written("p,q,w\nx,y,3\ny,z,4\n"))
    assert (dict(roles.options), roles.remarks) == ({"source": "p", "target": "q"}, ["column 'w' is left out"])


def test_a_file_without_rows_is_refused(written):
    with pytest.raises(DataError, match="has a header, but no rows"):
        table_roles(written("a,b\n"), is_series=False)
