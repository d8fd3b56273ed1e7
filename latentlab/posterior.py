r"""The result of a fit as one `xarray.DataTree` in ArviZ's schema: built, stored, read back, and summarised.

Nothing else in latentlab knows which line of ArviZ is installed. What the statistics are:

* R-hat: rank-normalised, split, the larger of the bulk's and the folded draws' (Vehtari et al. 2021).
* ESS: of the rank-normalised draws (bulk), and the smaller one of the indicators of the two 5 % tails.
* MCSE: of the mean $s / \sqrt{\mathrm{ESS}}$; of the sd, by the delta method, that of the mean of $(x - \bar x)^2$ over $2 s$.
* k-hat: shape of the generalised Pareto distribution fitted to the largest importance ratios (Vehtari et al. 2024).
* LOO: $\sum_i \log p(x_i \mid x_{-i})$ by importance sampling with Pareto-smoothed weights (Vehtari, Gelman & Gabry 2017).

A statistic that a series does not determine (constant, not finite, too short, R-hat of one chain) is NaN.

References:
    Vehtari, Gelman, Simpson, Carpenter & Buerkner (2021), Rank-normalization, folding, and localization, Bayesian Analysis
    16:667. Vehtari, Simpson, Gelman, Yao & Gabry (2024), Pareto smoothed importance sampling, JMLR 25(72). Vehtari, Gelman &
    Gabry (2017), Practical Bayesian model evaluation using leave-one-out cross-validation and WAIC, Statistics and Computing
    27:1413. Kallioinen, Paananen, Buerkner & Vehtari (2023), Detecting and diagnosing prior and likelihood sensitivity with
    power-scaling, Statistics and Computing 34:57.
"""

import contextlib
import importlib.util
import io
import math
import os
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import h5netcdf
import h5py
import numpy as np
import pandas as pd
import scipy
import xarray as xr

from latentlab.data.memory import SMALL, Budget, size
from latentlab.errors import DataError, InferenceError, ModelError, StoreError

LEAD = ("chain", "draw")
LEFT_OUT = "log_p_left_out"
"""In the group `leave_one_out`: log p(unit | all others) of a series, or of each of several sequences."""
FIXED = ("observed_data", "constant_data", "parameters")
"""Groups whose arrays have no draws."""
RESTARTS = "restarts"
"""Where each restart of an optimiser ended: a value of each site."""
SCALARS = ("sample_stats", "log_prior")
"""Groups with one number a draw, whatever the dims of the site that the number is about."""
OPTIMIZATION = {
    "loss": ("restart", "step"),
    "elbo": ("restart",),
    "log_joint": ("restart",),
    "gradient": ("restart",),
    "log_likelihood": ("step",),
    "maxima": ("restart",),
}
"""Dims of what the optimisers leave in the group `optimization`."""

DEFLATE = 1100
"""Deflate packs at most 1032 to 1: a file that declares more for what it holds has holes, or lies."""
FILTERS = {h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_FLETCHER32}
"""What is undone on reading; any other filter would be a library that HDF5 loads by name."""

MOST_GROUPS, MOST_ITEMS = 100, 10_000
"""Groups of a file, and arrays and groups in one of them: a result has a dozen groups, each with an array for every site."""

MIN_DRAWS = 4
MIN_RATIOS = 25
"""With fewer importance ratios the tail holds fewer than the 5 that a fit needs."""
EQUAL = 1e-9
"""Log ratios (nats) that differ by no more than this are equal up to rounding."""
CONSTANT = 1e-12
"""A series whose range is below this share of its largest magnitude holds rounding noise, not variation."""


# -- building


def build(
    groups: Mapping[str, Mapping[str, Any]],
    *,
    dims: Mapping[str, Sequence[str]],
    coords: Mapping[str, Any] | None = None,
    along: Mapping[str, Mapping[str, Any]] | None = None,
    attrs: Mapping[str, Any] | None = None,
) -> xr.DataTree:
    """Draws, data and statistics by group -> a DataTree, every shape checked against its dims.

    Arrays are `(chain, draw, *site's own)`; in `sample_stats` and `log_prior` `(chain, draw)`; in `observed_data`,
    `constant_data` and `parameters` without chain and draw; in `restarts` `(restart, *site's own)`; in `optimization` as
    `OPTIMIZATION` says. Every dim of every group gets explicit coordinates, counting from 0 where `coords` has none.

    Args:
        groups: Group -> name -> array.
        dims: Own dims of each name.
        coords: Dim -> labels, or a further coordinate along `unit` (`time`) -> labels.
        along: Dim -> name -> labels: further coordinates along it, where the name is no dim of the group.
        attrs: Text, numbers and arrays; kept at the root and in `posterior`.

    Raises:
        ModelError: A shape that does not go with its dims, a name without dims or named like a dim, a type that netCDF
            does not hold; names group, site and shape.

    Example:
        >>> tree = build({"posterior": {"W": np.zeros((4, 10, 3, 2))}}, dims={"W": ("feature", "latent")},
        ...              coords={"feature": ["a", "b", "c"]}, attrs={"method": "nuts"})
        >>> tree["posterior"]["W"].dims, tree["posterior"]["feature"].values.tolist()
        (('chain', 'draw', 'feature', 'latent'), ['a', 'b', 'c'])
    """
    plain = {name: _attribute(name, value) for name, value in (attrs or {}).items()}
    nodes = {"/": xr.Dataset(attrs=plain)}
    for group, arrays in groups.items():
        if arrays:
            nodes[group] = _group(group, arrays, dims, coords or {}, along or {})
    if "posterior" in nodes:
        nodes["posterior"] = nodes["posterior"].assign_attrs(plain)
    return xr.DataTree.from_dict(nodes)


def _group(
    group: str,
    arrays: Mapping[str, Any],
    dims: Mapping[str, Sequence[str]],
    coords: Mapping[str, Any],
    along: Mapping[str, Mapping[str, Any]],
) -> xr.Dataset:
    variables: dict[str, tuple[tuple[str, ...], np.ndarray]] = {}
    sizes: dict[str, tuple[int, str]] = {}
    for site, given in arrays.items():
        where = f"group {group!r}, site {site!r}"
        array, named = _plain(given, where), _own_dims(group, site, dims, where)
        if array.ndim != len(named):
            raise ModelError(f"{where}: expected dims ({', '.join(named)}); got shape {array.shape}.")
        for dim, n in zip(named, array.shape, strict=True):
            if sizes.setdefault(dim, (n, site))[0] != n:
                raise ModelError(f"{where}: shape {array.shape} has {n} along {dim!r}; {sizes[dim][1]!r} has {sizes[dim][0]}.")
        variables[site] = (named, array)
    every = {dim for named in dims.values() for dim in named} | set(sizes) | set(LEAD)
    labels: dict[str, tuple[tuple[str, ...], np.ndarray]] = {dim: ((dim,), np.arange(n)) for dim, (n, _) in sizes.items()}
    placed = [(key if key in every else "unit", key, values) for key, values in coords.items()]
    placed += [(dim, key, values) for dim, named in along.items() for key, values in named.items() if key not in sizes]
    for dim, key, values in placed:
        if dim in sizes:
            labels[key] = ((dim,), _plain(values, f"coordinate {key!r}"))
            if labels[key][1].shape != (sizes[dim][0],):
                raise ModelError(
                    f"group {group!r}, coordinate {key!r}: expected {sizes[dim][0]} labels along {dim!r}, as in "
                    f"{sizes[dim][1]!r}; got shape {labels[key][1].shape}."
                )
    clash = next((name for name in variables if name in every or name in labels), None)
    if clash is not None:
        raise ModelError(f"group {group!r}: a site cannot be called {clash!r}, like a dim or a coordinate.")
    return xr.Dataset(variables, coords=labels)


def _own_dims(group: str, site: str, dims: Mapping[str, Sequence[str]], where: str) -> tuple[str, ...]:
    if group == "optimization":
        if site not in OPTIMIZATION:
            raise ModelError(f"{where}: its dims are not known; those of {', '.join(OPTIMIZATION)} are.")
        return OPTIMIZATION[site]
    if group in SCALARS:
        return LEAD
    if site not in dims:
        raise ModelError(f"{where}: no dims are declared; those of {', '.join(sorted(dims)) or 'nothing'} are.")
    if group == RESTARTS:
        return ("restart", *dims[site])
    return tuple(dims[site]) if group in FIXED else (*LEAD, *dims[site])


def _plain(value: Any, where: str) -> np.ndarray:
    array = np.asarray(value)
    if array.dtype.kind == "O" and all(isinstance(item, str) for item in array.flat):
        array = array.astype(str)
    if array.dtype.kind not in "biufU":
        raise ModelError(f"{where}: expected numbers, truth values or text; got {array.dtype}.")
    return array


def _attribute(name: str, value: Any) -> Any:
    if isinstance(value, bool | np.bool_):
        return int(value)
    if isinstance(value, str | int | float | np.integer | np.floating):
        return value
    if isinstance(value, list | tuple | np.ndarray) and np.asarray(value).dtype.kind in "iuf":
        return np.asarray(value)
    raise ModelError(f"attribute {name!r} must be text, a number or an array of numbers; got {type(value).__name__}.")


def kinds(tree: xr.DataTree) -> tuple[str, ...]:
    """The kinds of units that the result is about."""
    return tuple(str(tree.attrs.get("units", "unit")).split(", "))


def arrays(tree: xr.DataTree, group: str) -> dict[str, np.ndarray]:
    """The arrays of a group by name; none where there is no such group."""
    return {str(name): array.values for name, array in tree[group].data_vars.items()} if group in tree.children else {}


# -- ArviZ, whichever line


@cache
def installed_arviz() -> Any:
    """ArviZ, of whichever line; importing it has no effect on the user's folders and gives no warning."""
    with warnings.catch_warnings(), _own_cache_folder():
        warnings.simplefilter("ignore")  # the last line before 1.0 announces its successor
        import arviz
    return arviz


@contextlib.contextmanager
def _own_cache_folder() -> Iterator[None]:
    """ArviZ 0.23 notes the day in the user's cache folder when it is imported, and fails where nobody may write there or
    another process is just doing the same."""
    if importlib.util.find_spec("platformdirs") is None:
        yield
        return
    platformdirs = importlib.import_module("platformdirs")
    before = platformdirs.user_cache_dir
    with tempfile.TemporaryDirectory() as folder:
        platformdirs.user_cache_dir = lambda *_, **__: folder  # type: ignore[attr-defined]
        try:
            yield
        finally:
            platformdirs.user_cache_dir = before  # type: ignore[attr-defined]


def _is_old() -> bool:
    return int(installed_arviz().__version__.split(".")[0]) < 1


def to_arviz(tree: xr.DataTree) -> Any:
    """The tree as the installed ArviZ takes it: `InferenceData` before 1.0, the tree itself from then on."""
    if not _is_old():
        return tree
    groups = {str(name): node.to_dataset(inherit=False) for name, node in tree.children.items()}
    return installed_arviz().InferenceData(attrs=dict(tree.attrs), **groups)


def _smoothed(log_ratios: np.ndarray, reff: float) -> tuple[np.ndarray, np.ndarray]:
    """Pareto-smoothed, normalised log weights and k-hat of each row `(n, draw)`: `(n, draw)`, `(n,)`.

    Equal ratios need no smoothing and have k-hat 0; a tail of equal ratios below others has none that can be fitted: infinity.
    """
    weights, khats = log_ratios - log_ratios.max(axis=1, keepdims=True), np.zeros(len(log_ratios))
    for i in np.flatnonzero(weights.min(axis=1) < -EQUAL):
        try:
            weights[i], khats[i] = _psis(weights[i], reff)
        except ValueError:
            khats[i] = np.inf
    return weights - scipy.special.logsumexp(weights, axis=1, keepdims=True), khats


def _psis(log_ratios: np.ndarray, reff: float) -> tuple[np.ndarray, float]:
    with np.errstate(all="ignore"):
        if _is_old():
            weights, k = installed_arviz().psislw(log_ratios, reff=reff)
        else:
            from arviz_stats.base import array_stats  # type: ignore[import-not-found, unused-ignore]

            weights, k = array_stats.psislw(-log_ratios, r_eff=reff)
    return weights, float(k)


# -- storing


def save(tree: xr.DataTree, path: str | Path) -> None:
    """Write a netCDF file, whole or not at all: compressed, with a checksum on every chunk.

    The file is made in memory, written beside `path` under another name, read back and compared, and only then given its name.
    (The HDF5 library can bring the process down when the disk fills under it.)

    Raises:
        StoreError: It cannot be written, or did not read back as it was; names the path and the bytes needed. What was at
            `path` before is then still there.
    """
    target = Path(path)
    content = _bytes(tree, target)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        temporary.unlink(missing_ok=True)
        with temporary.open("xb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        _verify(temporary, tree, target)
        temporary.replace(target)
        _sync(target.parent)
    except StoreError:
        raise
    except OSError as error:
        raise StoreError(f"{target}: cannot be written ({size(len(content))} needed): {error.strerror or error}.") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def load(path: str | Path, *, groups: Sequence[str] = ("posterior",)) -> xr.DataTree:
    """Read a netCDF file written by `save`, all of it into memory.

    Links, other files' data, and sizes that memory or the file itself cannot hold are refused before any array is read.

    Args:
        path: The file.
        groups: Groups that must be there.

    Raises:
        StoreError: The file is missing, damaged, or not such a file; names file and group.
    """
    source = Path(path)
    if not source.is_file():
        raise StoreError(f"{source}: no such file." if not source.exists() else f"{source}: is not a regular file.")
    found = _inspect(source)
    missing = next((group for group in groups if group not in found), None)
    if missing is not None:
        raise StoreError(f"{source}: has no group {missing!r}; it has {', '.join(filter(None, found)) or 'none'}.")
    with _opened(source) as file:
        return xr.DataTree.from_dict({name or "/": _read(file, source, name, drawn="posterior" in found) for name in found})


def _bytes(tree: xr.DataTree, target: Path) -> memoryview:
    buffer = io.BytesIO()
    try:
        with h5py.File(buffer, "w", track_order=True) as root, h5netcdf.File(root, "w") as file:
            for node in tree.subtree:
                dataset = node.to_dataset(inherit=False)
                store = xr.backends.H5NetCDFStore(file, group=node.path, mode="w")
                dataset.dump_to_store(store, encoding={str(n): _encoding(v) for n, v in dataset.variables.items()})
    except (ValueError, TypeError, RuntimeError, OSError) as error:
        raise StoreError(f"{target}: cannot be put into netCDF: {error}") from error
    return buffer.getbuffer()


def _encoding(variable: xr.Variable) -> dict[str, Any]:
    """Text as characters of fixed length: those are compressed and checked like numbers, others are not."""
    packed = {"zlib": True, "complevel": 1, "shuffle": True, "fletcher32": True} if variable.ndim and variable.size else {}
    kind = {"dtype": "S1"} if variable.dtype.kind in "UO" else {}
    return {**packed, **kind, **({"_FillValue": None} if variable.dtype.kind == "f" else {})}


def _verify(written: Path, tree: xr.DataTree, target: Path) -> None:
    groups = _inspect(written)
    with _opened(written) as file:
        for node in tree.subtree:
            name = node.path.strip("/")
            if name in groups and _read(file, written, name, drawn="posterior" in groups).equals(node.to_dataset(inherit=False)):
                continue
            raise StoreError(f"{target}, group {name!r}: what was written does not read back as it was; nothing was replaced.")


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _inspect(path: Path) -> list[str]:
    """Names of the groups, the root being '', once everything in the file was found to be plain, local and of honest size."""
    try:
        with h5py.File(path, "r") as file:
            names, declared = [""], 0
            for group, what, item in _items(file, path):
                if isinstance(item, h5py.Group):
                    names.append(item.name.strip("/"))
                else:
                    declared += _declared(item, f"{path}, group {group!r}, {what!r}")
            Budget.of(None).need(declared, str(path))
    except StoreError:
        raise
    except DataError as error:
        raise StoreError(f"{path}: declares {size(declared)}, more than half of the free memory.") from error
    except Exception as error:  # whatever a damaged file makes h5py raise
        raise StoreError(f"{path}: not a readable netCDF (HDF5) file, or cut short: {_line(error)}") from error
    return names


def _items(group: h5py.Group, path: Path) -> Iterator[tuple[str, str, Any]]:
    """Everything in the file as (group, name, group or dataset), no link followed, nothing met twice."""
    seen = {h5py.h5o.get_info(group.id).addr}
    waiting, n_groups = [group], 0
    while waiting:
        parent = waiting.pop(0)
        inside = parent.name.strip("/")
        if len(seen) > MOST_ITEMS or len(parent) > MOST_ITEMS:
            raise StoreError(
                f"{path}, group {inside!r}: holds more than {MOST_ITEMS} arrays and groups, as no result does; not read."
            )
        for name in parent:
            if not isinstance(parent.get(name, getlink=True), h5py.HardLink):
                raise StoreError(f"{path}, group {inside!r}: {name!r} is a link to somewhere else; not followed.")
            item = parent[name]
            address = h5py.h5o.get_info(item.id).addr
            if address in seen or not isinstance(item, h5py.Group | h5py.Dataset):
                raise StoreError(f"{path}, group {inside!r}: {name!r} is neither a group nor an array of its own; not read.")
            seen.add(address)
            if isinstance(item, h5py.Group):
                waiting.append(item)
                n_groups += 1
                if n_groups > MOST_GROUPS:
                    raise StoreError(f"{path}: holds more than {MOST_GROUPS} groups, as no result does; not read.")
            yield inside, name, item


def _declared(array: h5py.Dataset, where: str) -> int:
    """Bytes that an array says it has."""
    if array.is_virtual or array.external:
        raise StoreError(f"{where}: takes its data from other files; not followed.")
    if array.dtype.kind not in "biufS":
        raise StoreError(f"{where}: holds {array.dtype}; only numbers and text of fixed length are read.")
    properties = array.id.get_create_plist()
    if not {properties.get_filter(i)[0] for i in range(properties.get_nfilters())} <= FILTERS:
        raise StoreError(f"{where}: is packed by an unknown filter; not read.")
    declared, held = math.prod(array.shape) * array.dtype.itemsize, array.id.get_storage_size()
    if declared > SMALL and declared > DEFLATE * held:
        raise StoreError(f"{where}: declares {size(declared)}, but the file holds only {size(held)} for it.")
    return declared


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[h5netcdf.File]:
    try:
        file = h5netcdf.File(path, "r")
    except Exception as error:  # whatever a damaged file makes the libraries raise
        raise StoreError(f"{path}: damaged, cannot be read: {_line(error)}") from error
    with file:
        yield file


def _read(file: h5netcdf.File, path: Path, group: str, *, drawn: bool) -> xr.Dataset:
    """A group as `xr.open_dataset` reads it, without the chunks and filters that it looks up of every array.

    Where the file holds a posterior (`drawn`), arrays with draws must lead with them.
    """
    try:
        node = file[group] if group else file
        arrays = {n: xr.Variable(v.dimensions, v._h5ds[()], dict(v.attrs)) for n, v in node.variables.items()}
        with warnings.catch_warnings():  # xarray adds a filter of its own
            dataset = xr.decode_cf(xr.Dataset(arrays, attrs=dict(node.attrs)))
    except Exception as error:  # whatever a damaged file makes the libraries raise
        raise StoreError(f"{path}, group {group!r}: damaged, cannot be read: {_line(error)}") from error
    draws = drawn and group not in (*FIXED, "optimization", "") and "chain" in dataset.dims
    odd = next((n for n, v in dataset.data_vars.items() if draws and v.dims[:2] != LEAD), None)
    if odd is not None or (group == "posterior" and not draws):
        what = f"{odd!r} has dims {dataset[odd].dims}" if odd is not None else f"dims are {tuple(dataset.dims)}"
        raise StoreError(f"{path}, group {group!r}: {what}; expected (chain, draw, ...).")
    text = {name: variable.astype(str) for name, variable in dataset.variables.items() if variable.dtype.kind == "O"}
    return dataset.assign_coords({n: v for n, v in text.items() if n in dataset.coords}).assign(
        {n: v for n, v in text.items() if n not in dataset.coords}
    ).drop_encoding()  # fmt: skip


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


# -- statistics of series


def rhat(x: np.ndarray) -> np.ndarray:
    """R-hat of each quantity, 1 at best; `(chain, draw, *shape)` -> `shape`.

    NaN with one chain, infinite up to rounding where every chain is constant and they differ.
    """
    return _each(x, lambda flat: _per_quantity(installed_arviz().rhat, flat), n_chains=2)


def nested_rhat(x: np.ndarray, n_superchains: int) -> np.ndarray:
    r"""Nested R-hat of each quantity, 1 at best, for many short chains; `(chain, draw, *shape)` -> `shape`.

    With the variance B of the means of K superchains, and W the mean over them of the variance of their chains' means plus the
    mean variance within their chains, $\sqrt{1 + B / W}$: of ranks made normal, and of the distances to the median so treated,
    whichever is larger. Chains of a superchain, next to each other, have started at one point.

    References:
        Margossian et al. 2024, Nested R-hat, Bayesian Analysis. Vehtari et al. 2021, Rank-normalization, folding, and
        localization, Bayesian Analysis 16:667.
    """

    def nested(flat: np.ndarray) -> np.ndarray:
        ranks = scipy.stats.rankdata(flat.reshape(-1, flat.shape[-1]), axis=0).reshape(flat.shape)
        z = scipy.special.ndtri((ranks - 0.375) / (flat.shape[0] * flat.shape[1] + 0.25))
        of_chains = z.mean(axis=1).reshape(n_superchains, -1, flat.shape[-1])
        within = z.var(axis=1, ddof=1).reshape(of_chains.shape) if flat.shape[1] > 1 else np.zeros_like(of_chains)
        between = of_chains.var(axis=1, ddof=1) if of_chains.shape[1] > 1 else np.zeros_like(of_chains[:, 0])
        apart = of_chains.mean(axis=1).var(axis=0, ddof=1)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.sqrt(1 + apart / (between + within.mean(axis=1)).mean(axis=0))

    def larger(flat: np.ndarray) -> np.ndarray:
        return np.maximum(nested(flat), nested(np.abs(flat - np.median(flat, axis=(0, 1)))))

    return _each(x, larger, n_chains=2)


def ess_bulk(x: np.ndarray) -> np.ndarray:
    """Effective number of draws for the centre of each quantity's distribution; `(chain, draw, *shape)` -> `shape`."""
    return _each(x, lambda flat: _per_quantity(installed_arviz().ess, flat, method="bulk"))


def ess_tail(x: np.ndarray) -> np.ndarray:
    """Effective number of draws for the 5 % and 95 % quantiles, the smaller; `(chain, draw, *shape)` -> `shape`."""

    def tails(flat: np.ndarray) -> np.ndarray:
        low, high = np.quantile(flat, [0.05, 0.95], axis=(0, 1))
        return np.fmin(_each(flat <= low, _ess_mean), _each(flat >= high, _ess_mean))

    return _each(x, tails)


def ess_mean(x: np.ndarray) -> np.ndarray:
    """Effective number of draws for the mean; `(chain, draw, *shape)` -> `shape`."""
    return _each(x, _ess_mean)


def mcse_mean(x: np.ndarray) -> np.ndarray:
    """Monte Carlo standard error of the mean of each quantity; `(chain, draw, *shape)` -> `shape`."""
    return _each(x, lambda flat: flat.std(axis=(0, 1), ddof=1) / np.sqrt(_ess_mean(flat)), scaled=True)


def mcse_sd(x: np.ndarray) -> np.ndarray:
    """Monte Carlo standard error of the standard deviation of each quantity; `(chain, draw, *shape)` -> `shape`."""

    def error(flat: np.ndarray) -> np.ndarray:
        squares = (flat - flat.mean(axis=(0, 1))) ** 2
        variance = squares.mean(axis=(0, 1))
        return np.sqrt(squares.var(axis=(0, 1)) / _each(squares, _ess_mean) / variance) / 2

    return _each(x, error, scaled=True)


def is_constant(x: np.ndarray) -> np.ndarray:
    """Whether a quantity keeps one value, up to rounding, over all chains and draws; `(chain, draw, *shape)` -> `shape`."""
    spread = x.max(axis=(0, 1)) - x.min(axis=(0, 1))
    return np.asarray(spread <= CONSTANT * np.abs(x).max(axis=(0, 1)))


def _each(x: np.ndarray, statistic: Any, *, n_chains: int = 1, scaled: bool = False) -> np.ndarray:
    """A statistic of those quantities that determine it, NaN for the others; it is given them shifted and scaled to [0, 1]."""
    values = np.asarray(x, dtype=np.float64)
    if values.ndim < 2:
        raise DataError(f"draws must have shape (chain, draw, ...); got {values.shape}.")
    flat = values.reshape(*values.shape[:2], -1)
    found = np.full(flat.shape[-1], np.nan)
    if flat.shape[0] >= n_chains and flat.shape[1] >= MIN_DRAWS:
        good = np.flatnonzero(np.isfinite(flat).all(axis=(0, 1)))
        good = good[~is_constant(flat[..., good])] if len(good) else good
        if len(good):
            low, high = flat[..., good].min(axis=(0, 1)), flat[..., good].max(axis=(0, 1))
            with np.errstate(divide="ignore", invalid="ignore"):
                found[good] = statistic((flat[..., good] - low) / (high - low)) * ((high - low) if scaled else 1.0)
    return found.reshape(values.shape[2:])


def _per_quantity(function: Any, flat: np.ndarray, **options: Any) -> np.ndarray:
    dataset = xr.Dataset({"x": ((*LEAD, "quantity"), flat)})
    return np.asarray(function(dataset, **options)["x"].values, dtype=np.float64)


def _ess_mean(flat: np.ndarray) -> np.ndarray:
    return _per_quantity(installed_arviz().ess, flat, method="mean")


# -- importance sampling


def khat(log_ratios: np.ndarray, *, reff: float = 1.0) -> float:
    r"""Pareto k-hat of importance ratios $\log p - \log q$ at draws of q; below `khat_limit` the two are close enough.

    0 where all ratios are equal up to rounding (q is the posterior); NaN where they are not finite or fewer than 25.

    Args:
        log_ratios: `(draw,)`, or with chains; minus infinity is a draw that the posterior excludes.
        reff: Share of the draws that is effective, for draws that are not independent.

    Example:
        >>> normal = np.random.default_rng(0).normal(size=4000)
        >>> narrow = -normal**2 / 2 / 4 + normal**2 / 2       # p has sd 2, q has sd 1: k is 1 - 1/4
        >>> 0.6 < khat(narrow) < 0.9, khat(-narrow) < 0.5
        (True, True)
    """
    ratios = np.asarray(log_ratios, dtype=np.float64).ravel()
    if ratios.size < MIN_RATIOS or np.isnan(ratios).any() or not np.isfinite(ratios.max()):
        return math.nan
    return float(_smoothed(ratios[None], reff)[1][0])


def khat_limit(n_draws: int) -> float:
    """The k-hat up to which `n_draws` draws give estimates with the usual error: min(1 - 1 / log10 S, 0.7)."""
    return min(1 - 1 / math.log10(n_draws), 0.7) if n_draws > 10 else 0.0


@dataclass(frozen=True)
class Loo:
    """Leave-one-out predictive accuracy.

    Attributes:
        elpd: Sum over units of log p(unit | the others); larger is better.
        se: Its standard error over units.
        p_loo: Effective number of parameters: log density of the data less `elpd`.
        pointwise: Each unit's term, `(unit,)`.
        khat: Each unit's Pareto k-hat, `(unit,)`; above `limit` its term is not to be relied on.
        limit: The largest k-hat that this number of draws can do with.
        conditional: Whether units were scored given their own positions: then `khat` is large and `elpd` too high.
    """

    elpd: float
    se: float
    p_loo: float
    pointwise: np.ndarray
    khat: np.ndarray
    limit: float
    conditional: bool


def loo(tree: xr.DataTree) -> Loo:
    r"""Leave-one-out over units by Pareto-smoothed importance sampling; over sequences where there are several series.

    Draws of the posterior are weighted by $1 / p(x_i \mid \theta)$; draws of a variational approximation also by
    $p(\theta, x) / q(\theta)$, so that what is estimated is the same, and k-hat sees a bad approximation too. In a series the
    units depend on each other, and $p(x_i \mid x_{-i}, \theta)$ stands in place of $p(x_i \mid \theta)$.

    Raises:
        ModelError: No log likelihood, or a point estimate.
        InferenceError: A density is not finite, or there are too few draws.

    References:
        Magnusson, Andersen, Jonasson & Vehtari (2019), Bayesian leave-one-out cross-validation for large data, ICML.
    """
    if tree.attrs.get("point_estimate"):
        raise ModelError("a point estimate has no LOO: there is no posterior to leave a unit out of.")
    if "parameters" in tree.children:
        raise ModelError("parameters that are points have no LOO: there is no posterior to leave a unit out of; hold units out.")
    left_out = arrays(tree, "leave_one_out")
    draws = next(iter((left_out or arrays(tree, "log_likelihood")).values()), None)
    if draws is None:
        raise ModelError("LOO needs the group 'log_likelihood'.")
    log_likelihood = draws.reshape(*draws.shape[:2], -1)
    flat = np.ascontiguousarray(log_likelihood.reshape(-1, log_likelihood.shape[-1]).T)
    base = _approximation(tree)
    if flat.shape[1] < MIN_RATIOS:
        raise InferenceError(f"LOO needs at least {MIN_RATIOS} draws; there are {flat.shape[1]}.")
    if not (np.isfinite(flat).all() and (base is None or np.isfinite(base).all())):
        raise InferenceError("LOO needs a finite log likelihood (and densities of p and q): some draws have none.")
    if base is None:
        base, reff = np.zeros(flat.shape[1]), _efficiency(log_likelihood)
    else:
        reff = 1.0
    weights, khats = _smoothed(base - flat, reff)
    pointwise = scipy.special.logsumexp(weights + flat, axis=-1)
    whole = scipy.special.logsumexp(flat + _normalized(base), axis=-1)
    n_units = len(pointwise)
    return Loo(
        elpd=float(pointwise.sum()),
        se=float(np.sqrt(n_units) * pointwise.std(ddof=1)) if n_units > 1 else math.nan,
        p_loo=float((whole - pointwise).sum()),
        pointwise=pointwise,
        khat=khats,
        limit=khat_limit(flat.shape[1]),
        conditional=bool(tree.attrs.get("conditional_log_likelihood", 0)),
    )


def _approximation(tree: xr.DataTree) -> np.ndarray | None:
    """log p - log q of a variational approximation's draws, q averaged over the symmetry; None for other draws."""
    stats = arrays(tree, "sample_stats")
    return (stats["lp"] - stats["log_q_averaged"]).ravel() if "log_q_averaged" in stats else None


def _normalized(log_weights: np.ndarray) -> np.ndarray:
    return log_weights - scipy.special.logsumexp(log_weights)


def _efficiency(log_likelihood: np.ndarray) -> float:
    """ESS of the likelihood over its draws, the mean over units; 1 where it cannot be told."""
    likelihood = np.exp(log_likelihood - log_likelihood.max(axis=(0, 1)))
    found = ess_mean(likelihood) / math.prod(log_likelihood.shape[:2])
    return float(np.nanmean(found)) if np.isfinite(found).any() else 1.0


# -- sensitivity to prior and likelihood

SENSITIVE = 0.05
"""Above this a quantity counts as sensitive to a power of the prior or the likelihood (Kallioinen et al.)."""


def power_sensitivity(tree: xr.DataTree, quantities: Mapping[str, np.ndarray], *, delta: float = 0.01) -> pd.DataFrame:
    r"""How much each quantity's posterior changes when prior or likelihood is raised to a power near 1.

    The draws are weighted by $p^{\alpha - 1}$, $\alpha = 1 + \delta$ and $1 / (1 + \delta)$, the weights Pareto-smoothed, and
    the sensitivity is the cumulative Jensen-Shannon distance of the weighted from the unweighted distribution per
    $\log_2 \alpha$, the mean over both. Priors of the positions (sites with a dim of units) are part of the model, not of what
    is believed beforehand, and keep their power.

    Args:
        tree: With the groups `log_prior` and `log_likelihood`.
        quantities: `(chain, draw, ...)` by name: those that the symmetry leaves identified.
        delta: Relative change of the power.

    Returns:
        A row for each entry: quantity, prior, likelihood (NaN where it is constant), diagnosis.

    Raises:
        ModelError: A group is missing, or draws do not match.
    """
    weights = {part: _powered(_component(tree, part), delta) for part in ("prior", "likelihood")}
    names, columns = [], []
    for name, values in quantities.items():
        flat = np.asarray(values, dtype=np.float64)
        entries = [""] if flat.ndim == 2 else [f"[{', '.join(map(str, i))}]" for i in np.ndindex(flat.shape[2:])]
        flat = flat.reshape(math.prod(flat.shape[:2]), -1)
        if len(flat) != weights["prior"].shape[1]:
            raise ModelError(f"quantity {name!r}: {len(flat)} draws; the groups have {weights['prior'].shape[1]}.")
        names += [name + entry for entry in entries]
        columns.append(flat)
    x = np.concatenate(columns, axis=1)
    table = {part: _sensitivity(x, both, delta) for part, both in weights.items()}
    diagnosis = np.select(
        [(table["prior"] >= SENSITIVE) & (table["likelihood"] >= SENSITIVE), table["prior"] >= SENSITIVE],
        ["prior and data may conflict", "strong prior or weak likelihood"],
        default="",
    )
    return pd.DataFrame({"quantity": names, **table, "diagnosis": diagnosis})


def _component(tree: xr.DataTree, part: str) -> np.ndarray:
    group = f"log_{part}"
    if group not in tree.children:
        raise ModelError(f"power-scaling needs the group {group!r}.")
    own = tree["posterior"].data_vars
    units = set(kinds(tree)) if part == "prior" else set()
    positions = {str(name) for name, site in own.items() if not units.isdisjoint(map(str, site.dims))}
    terms = [array for name, array in arrays(tree, group).items() if name not in positions]
    return np.asarray(sum(term.reshape(math.prod(term.shape[:2]), -1).sum(axis=1) for term in terms))


def _powered(component: np.ndarray, delta: float) -> np.ndarray:
    """Weights `(2, draw)` for the lower and the upper power."""
    alphas = np.array([1 / (1 + delta), 1 + delta])[:, None]
    return np.exp(_smoothed((alphas - 1) * component, 1.0)[0])


def _sensitivity(x: np.ndarray, weights: np.ndarray, delta: float) -> np.ndarray:
    constant = is_constant(x[None])
    found = [np.maximum(_cjs(x, w), _cjs(-x, w)) for w in weights]
    return np.where(constant, np.nan, (found[0] + found[1]) / (2 * np.log2(1 + delta)))


def _cjs(x: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Cumulative Jensen-Shannon distance of draws `(draw, n)` under weights from the same draws unweighted, `(n,)`."""
    order = np.argsort(x, axis=0)
    width = np.diff(np.take_along_axis(x, order, axis=0), axis=0)
    p = (np.arange(1, len(x)) / len(x))[:, None]
    q = np.clip(np.cumsum(weights[order], axis=0)[:-1], np.finfo(float).tiny, 1.0)
    middle = np.log2((p + q) / 2)
    half = 0.5 / np.log(2) * (q - p)
    pq = (width * (p * (np.log2(p) - middle) + half)).sum(axis=0)
    qp = (width * (q * (np.log2(q) - middle) - half)).sum(axis=0)
    bound = (width * (p + q)).sum(axis=0)
    with np.errstate(invalid="ignore"):
        return np.asarray(np.sqrt((np.maximum(pq, 0) + np.maximum(qp, 0)) / bound))
