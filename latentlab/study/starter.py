"""A first config for a model, with a user's file or built-in data: proposed values, each with its reason."""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from latentlab.correspondences.claim import Correspondence
from latentlab.correspondences.registry import CORRESPONDENCES, is_about
from latentlab.data.dataset import Dataset
from latentlab.data.load import load_dataset
from latentlab.data.roles import Roles, edge_roles, rating_roles, table_roles
from latentlab.embeddings.embed import embed
from latentlab.embeddings.entry import makes_clusters
from latentlab.errors import ConfigError, DataError
from latentlab.models.base import LatentModel
from latentlab.registry import EMBEDDINGS, METHODS, MODELS
from latentlab.study.config import run_name
from latentlab.study.entries import REQUIRED, arguments

MANY_POINTS = 5000
"""Number of points above which variational inference is proposed instead of MCMC."""
N_LATENT = 2
BUILT_IN: Mapping[str, tuple[dict[str, Any], ...]] = {
    "table": ({"name": "wine"}, {"name": "poisson_mixture"}, {"name": "latent_classes"}),
    "series": (
        {"name": "hidden_markov", "n_features": 3},
        {"name": "sunspots", "whole": True},
        {"name": "sunspots", "n_levels": 4},
    ),
    "ratings": ({"name": "grunfeld"},),
    "edges": ({"name": "karate"},),
}
"""Data sets for each kind of data; the first that the model accepts is proposed."""
OBSERVED = {"rating": "ratings", "edge": "edges", "x": "table"}
"""Kind of data, by the argument of the model's program that has the observations."""
MOST_CATEGORIES = 30
FIRST = 300
"""Number of units on which a proposed embedding is tried."""
FEWEST_FOR_TWO = 3
"""Number of features from which two latent dimensions are proposed."""


@dataclass(frozen=True)
class Proposal:
    """A config, the reason for some of its values by their keys, and remarks on the data."""

    config: dict[str, Any]
    reasons: Mapping[tuple[str, ...], str]
    remarks: Sequence[str]


def built(name: str) -> LatentModel:
    """Build a model with small values of its required arguments.

    Example:
        >>> built("gaussian_mixture").n_components
        2
    """
    model: LatentModel = MODELS.load(name)(**dict.fromkeys(_required(name), N_LATENT))
    return model


def proposal(
    name: str,
    model: str,
    *,
    data: str | None = None,
    method: str | None = None,
    embeddings: Sequence[str] = (),
) -> Proposal:
    """Propose a config for a model.

    Args:
        name: Name of the run.
        model: Name of the model.
        data: A file; by default a built-in data set that the model accepts.
        method: Name of the method; by default one that suits the model and the size of the data.
        embeddings: Names of embeddings; by default those with a known correspondence to the model.

    Raises:
        ConfigError: A name does not exist, or the model does not support the method.
        DataError: The file is invalid, or the model cannot be fitted to it; names the column, unit or line.

    Example:
        >>> proposal("first", "ppca").config["dataset"]
        {'name': 'wine'}
    """
    entry = MODELS.load(model)
    kind = data_kind(model, entry)
    roles = Roles({}, {}) if data is None else _roles(data, kind)
    candidates = BUILT_IN[kind] if data is None else ({"name": _reader(kind), "path": data, **roles.options},)
    options, dataset, settings = _fitting(model, candidates)
    chosen, (chosen_method, why) = entry(**settings), _method(entry, method, dataset)
    reasons: dict[tuple[str, ...], str] = {("dataset", option): reason for option, reason in roles.reasons.items()}
    reasons |= {("inference", "name"): why} if why else {}
    proposed = [_embedding(one, chosen, dataset) for one in embeddings or _embeddings(model, chosen, dataset)]
    sections = [one for one in proposed if embeddings or _is_possible(one, chosen, dataset)]
    config = {
        "name": run_name(name),
        "seed": 0,
        "dataset": options,
        "model": {"name": model, **settings},
        "inference": chosen_method,
        "embeddings": sections,
        "compare": {"n_neighbors": min(15, max(1, (_fewest(chosen, dataset) - 1) // 2))},
    }
    return Proposal(config, reasons, roles.remarks)


def data_kind(name: str, entry: Any) -> str:
    """Kind of data of a model: `table`, `series`, `ratings` or `edges`.

    Raises:
        ConfigError: The model's program has none of the arguments in `OBSERVED`.

    Example:
        >>> data_kind("ppca", MODELS.load("ppca")), data_kind("gaussian_hmm", MODELS.load("gaussian_hmm"))
        ('table', 'series')
    """
    takes = inspect.signature(entry.model).parameters
    kind = next((kind for argument, kind in OBSERVED.items() if argument in takes), None)
    if kind is None:
        raise ConfigError(
            f"the program of the model {name!r} must have an argument {' or '.join(map(repr, OBSERVED))} for a config."
        )
    return "series" if kind == "table" and entry.leave_one_out is not LatentModel.leave_one_out else kind


def _roles(path: str, kind: str) -> Roles:
    if kind in ("ratings", "edges"):
        return rating_roles(path) if kind == "ratings" else edge_roles(path)
    return table_roles(path, is_series=kind == "series")


def _reader(kind: str) -> str:
    return kind if kind in ("ratings", "edges") else "file"


def _required(name: str) -> list[str]:
    return [one.name for one in arguments(MODELS, name) if one.default == REQUIRED]


def _fitting(model: str, candidates: Sequence[dict[str, Any]]) -> tuple[dict[str, Any], Dataset, dict[str, Any]]:
    """First data set that the model accepts, with its preparation and the model's settings."""
    refusals: list[DataError] = []
    for candidate in candidates:
        for preparation in ({}, {"drop_constant": True}, {"standardize": False}):
            options = {**candidate, **preparation}
            try:
                dataset = load_dataset(**options)
                return options, dataset, _settings(model, dataset)
            except DataError as error:
                refusals.append(error)
    raise refusals[-1]


def _settings(name: str, dataset: Dataset) -> dict[str, Any]:
    """Settings of a model that accepts the data: as many components as labels, or two, or one if only then it is identified."""
    required, is_discrete = _required(name), built(name).is_discrete
    n_labels = 0 if not isinstance(dataset.labels, np.ndarray) else len(np.unique(dataset.labels))
    n_features = dataset.sizes.get("feature", FEWEST_FOR_TWO)
    usual = n_labels if 1 < n_labels <= MOST_CATEGORIES and is_discrete else N_LATENT
    refusal: DataError | None = None
    accepted: dict[str, Any] | None = None
    if dataset.x.dtype.kind == "f" and np.isnan(dataset.x).any() and not built(name).takes("mask"):
        raise DataError(
            f"{dataset.name} has missing entries, which the model {name!r} does not accept; leave out these {dataset.points}s."
        )
    for size in [1] if n_features < FEWEST_FOR_TWO and not is_discrete else [usual, 1]:
        options = {**dict.fromkeys(required, size), **_by_data(name, dataset)}
        model = MODELS.load(name)(**options)
        try:
            model.check(dataset)
        except DataError as error:
            refusal = refusal or error
            continue
        if not any(caution.check == "identification" for caution in model.cautions(dataset)):
            return options
        accepted = accepted or options
    if accepted is None:
        raise refusal or AssertionError
    return accepted


def _by_data(name: str, dataset: Dataset) -> dict[str, Any]:
    """Settings on the scale of the data: the number of categories, and the mean of counts."""
    names = {one.name for one in arguments(MODELS, name)}
    options: dict[str, Any] = {}
    if "n_categories" in _required(name):
        options["n_categories"] = int(np.nanmax(dataset.x)) + 1
        if options["n_categories"] > MOST_CATEGORIES:
            raise DataError(
                f"{dataset.name}: categories must be whole numbers from 0 to at most {MOST_CATEGORIES - 1}; got "
                f"{np.nanmax(dataset.x):g}; group the values into fewer categories."
            )
    if "rate_mean" in names and np.nanmin(dataset.x) >= 0 < np.nanmean(dataset.x):
        options["rate_mean"] = float(f"{np.nanmean(dataset.x):.2g}")
    return options


def _method(entry: Any, name: str | None, dataset: Dataset) -> tuple[dict[str, Any], str]:
    """Section `inference` and the reason for its method."""
    supported, why = entry.methods, ""
    if name is not None:
        METHODS.load(name)
        if name not in supported:
            raise ConfigError(f"the model {entry.name!r} does not support {name!r}; supported: {', '.join(supported)}.")
    elif dataset.n_points > MANY_POINTS and "svi" in supported:
        name, why = "svi", f"variational, as there are {dataset.n_points} {dataset.points}s"
    else:
        name = next((one for one in ("nuts", "exact") if one in supported), supported[0])
    has_guide = name == "svi" and hasattr(entry, "guide")
    return {"name": name, **({"guide": "model"} if has_guide else {})}, why


def _embeddings(name: str, model: LatentModel, dataset: Dataset) -> list[str]:
    """Embeddings with a known correspondence to the model, or else those of the model's kind of data."""
    claimed = dict.fromkeys(one.embedding for one in _about(name, model) if one.grade != "none")
    form = {"cell": "matrix", "pair": "adjacency"}.get(dataset.points)
    if form is not None:
        return [one for one in EMBEDDINGS if form in inspect.signature(EMBEDDINGS.load(one)).parameters]
    return list(claimed) or (["kmeans", "agglomerative"] if model.is_discrete else ["pca"])


def _about(name: str, model: LatentModel) -> list[Correspondence]:
    """Claims about a model with these settings."""
    settings = model.hyperparameters()
    return [one for one in CORRESPONDENCES if one.model == name and is_about(one, settings)]


def _embedding(name: str, model: LatentModel, dataset: Dataset) -> dict[str, Any]:
    """Section of an embedding, with the options that its correspondence requires and the number of columns that exist."""
    EMBEDDINGS.load(name)
    claims = [one for one in _about(model.name, model) if one.embedding == name]
    claim = next((one for one in claims if one.grade != "none"), None)
    plain = any(not one.options for one in claims)
    options = {} if claim is None or plain else {key: list(v) if isinstance(v, tuple) else v for key, v in claim.options}
    few = model.is_discrete and dataset.sizes.get("feature", FEWEST_FOR_TWO) < N_LATENT and not makes_clusters(name)
    return {"name": name, **options, **({"n_latent": 1} if few else {})}


def _is_possible(section: Mapping[str, Any], model: LatentModel, dataset: Dataset) -> bool:
    """Whether the embedding accepts the data, or their first units if there are many."""
    if dataset.points != "unit":
        return True
    columns = model.position_columns() if makes_clusters(section["name"]) or not model.is_discrete else None
    has_seed = "seed" in inspect.signature(EMBEDDINGS.load(section["name"])).parameters
    options = {**({"n_latent": columns} if columns else {}), **({"n_seeds": 1} if has_seed else {}), **section}
    try:
        embed(options.pop("name"), dataset.subset(range(min(dataset.n_units, FIRST))), **options)
    except (ConfigError, DataError):
        return False
    return True


def _fewest(model: LatentModel, dataset: Dataset) -> int:
    """Number of units of the smallest kind."""
    return min(len(dataset.units[kind]) if isinstance(dataset.units, Mapping) else len(dataset.units) for kind in model.kinds)
