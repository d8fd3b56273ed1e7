"""Readers of ratings and of graphs from a file, and one built-in data set of each kind."""

import importlib
from typing import Any

import numpy as np

from latentlab.data.columns import Requested
from latentlab.data.dataset import Dataset
from latentlab.data.file import MISSING, table
from latentlab.errors import DataError, MissingDependencyError


def ratings(  # one keyword for each user option
    path: str,
    user: str = "user",
    item: str = "item",
    rating: str = "rating",
    missing_values: tuple[str, ...] = MISSING,
    delimiter: str | None = None,
    encoding: str = "utf-8",
    max_bytes: int | None = None,
    *,
    decimal: str = ".",
) -> Dataset:
    r"""Ratings of items by users, one in each row of a CSV, TSV or Parquet file; cells that are not listed are unobserved.

    Args:
        path: The file, relative to the working directory.
        user: The column with the names of the users.
        item: The column with the names of the items.
        rating: The column with the ratings, as numbers.
        missing_values: Texts that mark a missing rating; such rows are left out.
        delimiter: Separator of the columns; detected from the first lines if not given.
        encoding: Encoding of the text.
        max_bytes: Largest memory of the table in bytes; half of the free memory if not given.
        decimal: Decimal separator of numbers in text, `.` or `,`.

    Raises:
        DataError: The file is invalid, or a cell is listed twice; names line and column, or user and item.

    Example:
        >>> import tempfile, pathlib
        >>> where = pathlib.Path(tempfile.mkdtemp()) / "mine.csv"
        >>> _ = where.write_text("user,item,rating\nann,alien,5\nann,brazil,2\nbob,alien,4\n")
        >>> ratings(str(where))
        Dataset('mine', cell: 3, user: 2, item: 2)
    """
    requested = Requested([rating], texts={"user": user, "item": item})
    found, name = table(path, requested, missing_values, delimiter, encoding, max_bytes, decimal)
    r = found.x[:, 0]
    observed = ~np.isnan(r)
    if not observed.any():
        raise DataError(f"{name}: the column {rating!r} has no numbers.")
    n_removed = int((~observed).sum())
    users, u = coded(found.others["user"][observed])
    items, i = coded(found.others["item"][observed])
    removed = "1 row without a rating was" if n_removed == 1 else f"{n_removed} rows without a rating were"
    return _cells(r[observed], users, u, items, i, name, [f"{removed} removed."] if n_removed else [])


def edges(  # one keyword for each user option
    path: str,
    source: str = "source",
    target: str = "target",
    weight: str | None = None,
    missing_values: tuple[str, ...] = MISSING,
    delimiter: str | None = None,
    encoding: str = "utf-8",
    max_bytes: int | None = None,
    *,
    directed: bool = False,
    decimal: str = ".",
) -> Dataset:
    r"""A graph from its list of edges, one in each row of a CSV, TSV or Parquet file.

    Pairs of nodes that are not listed are not joined. The nodes are the ends of the listed edges, in order of first appearance.

    Args:
        path: The file, relative to the working directory.
        source: The column with the name of each edge's first node.
        target: The column with the name of each edge's second node.
        weight: The column with the edges' values; all are 1 if not given, and a missing value means an unobserved pair.
        missing_values: Texts that mark a missing weight.
        delimiter: Separator of the columns; detected from the first lines if not given.
        encoding: Encoding of the text.
        max_bytes: Largest memory of the table in bytes; half of the free memory if not given.
        directed: Whether edges have a direction; if not, each pair is listed once, in either order.
        decimal: Decimal separator of numbers in text, `.` or `,`.

    Raises:
        DataError: The file is invalid, or an edge joins a node with itself or is listed twice; names it.

    Example:
        >>> import tempfile, pathlib
        >>> where = pathlib.Path(tempfile.mkdtemp()) / "mine.csv"
        >>> _ = where.write_text("source,target\na,b\nb,c\n")
        >>> edges(str(where)), edges(str(where)).adjacency().toarray().tolist()
        (Dataset('mine', pair: 2, node: 3), [[0.0, 1.0, 0.0], [1.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
    """
    requested = Requested([] if weight is None else [weight], texts={"source": source, "target": target})
    found, name = table(path, requested, missing_values, delimiter, encoding, max_bytes, decimal)
    ends = np.stack([found.others["source"], found.others["target"]], axis=1)
    nodes, codes = coded(ends.ravel())
    values = np.ones(len(ends)) if weight is None else found.x[:, 0]
    return _graph(values, nodes, *codes.reshape(-1, 2).T, name=name, directed=directed)


def karate() -> Dataset:
    """Friendships among the 34 members of a karate club that split in two; the labels are the members' factions.

    References:
        Zachary (1977), An information flow model for conflict and fission in small groups, J. Anthropological Research 33:452.

    Example:
        >>> dataset = karate()
        >>> dataset, int(dataset.adjacency().sum()) // 2, dataset.labels["node"][:2].tolist()
        (Dataset('karate', pair: 78, node: 34), 78, ['Mr. Hi', 'Mr. Hi'])
    """
    graph = _library("networkx", "graph").karate_club_graph()
    i, j = np.array(sorted(tuple(sorted(edge)) for edge in graph.edges)).T
    clubs = np.array([str(graph.nodes[node]["club"]) for node in sorted(graph.nodes)])
    names = np.array([str(node) for node in sorted(graph.nodes)])
    return _graph(np.ones(len(i)), names, i, j, name="karate", directed=False, labels=clubs)


def grunfeld(column: str = "invest", *, log: bool = True) -> Dataset:
    """Yearly figures of 11 American firms from 1935 to 1954, with firms as users and years as items.

    Args:
        column: `invest`, `value` or `capital`, in millions of dollars.
        log: Take logarithms, so that firms of different size are comparable.

    Raises:
        DataError: The column does not exist, or `log` is not true or false.

    References:
        Grunfeld (1958), The determinants of corporate investment, University of Chicago; Kleiber & Zeileis (2010), The Grunfeld
        data at 50, German Economic Review 11:404.

    Example:
        >>> grunfeld()
        Dataset('grunfeld', cell: 220, user: 11, item: 20)
    """
    if not isinstance(log, bool):
        raise DataError(f"grunfeld: `log` must be true or false; got {log!r}.")
    if column not in ("invest", "value", "capital"):
        raise DataError(f"grunfeld: `column` must be 'invest', 'value' or 'capital'; got {column!r}.")
    rows = _library("statsmodels.datasets", "stats").grunfeld.load_pandas().data
    firms, f = coded(rows["firm"].astype(str).to_numpy())
    years, t = coded(rows["year"].astype(int).astype(str).to_numpy())
    values = rows[column].to_numpy(dtype=np.float64)
    return _cells(np.log(values) if log else values, firms, f, years, t, "grunfeld", [])


def coded(names: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distinct names in order of first appearance, and the code of each entry: the index of its name.

    Example:
        >>> [part.tolist() for part in coded(np.array(["b", "a", "b"]))]
        [['b', 'a'], [0, 1, 0]]
    """
    known, first, codes = np.unique(names, return_index=True, return_inverse=True)
    order = np.argsort(first)
    places = np.empty(len(order), dtype=np.int64)
    places[order] = np.arange(len(order))
    return known[order], places[codes]


def _cells(
    r: np.ndarray, users: np.ndarray, u: np.ndarray, items: np.ndarray, i: np.ndarray, name: str, preparation: list[str]
) -> Dataset:
    return Dataset(
        {"rating": r},
        dims={"rating": ("cell",)},
        units={"user": users, "item": items},
        index={"user": ("cell", u), "item": ("cell", i)},
        name=name,
        preparation=tuple(preparation),
    )


def _graph(
    values: np.ndarray, nodes: np.ndarray, i: np.ndarray, j: np.ndarray, *, name: str, directed: bool, labels: Any = None
) -> Dataset:
    return Dataset(
        {"edge": values},
        dims={"edge": ("pair",)},
        units={"node": nodes},
        index={"source": ("pair", i, "node"), "target": ("pair", j, "node")},
        labels=labels,
        name=name,
        absent="zero",
        directed=directed,
    )


def _library(module: str, extra: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise MissingDependencyError(f"the data set from {package}", package, extra) from error
