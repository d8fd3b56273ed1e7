"""Loading of datasets by name: check of options, simulated missing entries, and standardisation."""

import inspect
from typing import Any, Literal, overload

from latentlab.data.dataset import Dataset
from latentlab.data.missing import hide
from latentlab.data.stored import StoredDataset
from latentlab.errors import ConfigError, DataError, LatentLabError, unknown
from latentlab.registry import DATASETS, plugin_line
from latentlab.seeds import Seeds


@overload
def load_dataset(
    name: str,
    *,
    in_memory: Literal[False],
    standardize: bool = True,
    drop_constant: bool = False,
    missing: float = 0.0,
    missing_seed: int = 0,
    **options: Any,
) -> StoredDataset: ...


@overload
def load_dataset(
    name: str,
    *,
    standardize: bool = True,
    drop_constant: bool = False,
    missing: float = 0.0,
    missing_seed: int = 0,
    **options: Any,
) -> Dataset: ...


def load_dataset(
    name: str,
    *,
    standardize: bool = True,
    drop_constant: bool = False,
    missing: float = 0.0,
    missing_seed: int = 0,
    **options: Any,
) -> Dataset | StoredDataset:
    """Load the dataset called `name`, standardised (ddof 0) unless `standardize=False`.

    Args:
        name: Name of a dataset in `latentlab list datasets`; `file` reads a user's file.
        standardize: Centre each column and scale it to standard deviation 1 over its observed entries. A single unit keeps its
            raw values, so that the transform of a fit to other units can be applied.
        drop_constant: Remove constant columns, which cannot be standardised and raise an error otherwise.
        missing: Share of the entries that are hidden at random; their values are kept in `truth`.
        missing_seed: Seed of the choice of hidden entries.
        options: Options of the dataset, such as `columns`.

    Raises:
        ConfigError: The dataset or option does not exist; names the closest one.
        DataError: The data are invalid.

    Example:
        >>> load_dataset("wine")
        Dataset('wine', unit: 178, feature: 13, standardised)
        >>> load_dataset("iris", columns=["petal length (cm)"], standardize=False).x[:3].tolist()
        [[1.4], [1.4], [1.3]]
    """
    if not isinstance(name, str):
        raise ConfigError(
            f"`name` must be a dataset's name; got {type(name).__name__}. Convert a DataFrame or an array by "
            '`Dataset({"x": x}, dims={"x": ("unit", "feature")})`, and standardise it by `.standardize()`.'
        )
    entry = DATASETS.load(name)
    _check_options(name, options)
    try:
        dataset = entry(**options)
    except LatentLabError:
        raise
    except Exception as error:
        line = plugin_line(error)
        if not line:
            raise
        raise DataError(f"dataset {name!r} cannot be loaded: {type(error).__name__}: {error} ({line})") from error
    if not isinstance(dataset, Dataset | StoredDataset):
        raise DataError(f"the function of dataset {name!r} must return a Dataset; it returned {type(dataset).__name__}.")
    if missing:
        if isinstance(dataset, StoredDataset):
            raise DataError(f"{dataset.name} stays on disk, but `missing` requires data in memory; set `in_memory: true`.")
        dataset = hide(dataset, missing, Seeds(missing_seed).child("missing").numpy())
    if standardize and (dataset.n_points > 1 or getattr(dataset, "absent", "") == "zero"):
        return dataset.standardize(drop_constant=drop_constant)
    return dataset.drop_constant() if drop_constant else dataset


def dataset_options(name: str) -> dict[str, inspect.Parameter]:
    """Options of the dataset `name`, from its signature.

    Example:
        >>> sorted(dataset_options("linear_gaussian"))
        ['n_features', 'n_latent', 'n_units', 'noise', 'seed']
    """
    return dict(inspect.signature(DATASETS.load(name)).parameters)


def _check_options(name: str, options: dict[str, Any]) -> None:
    valid = dataset_options(name)
    kinds = {parameter.kind for parameter in valid.values()}
    for option in options:
        if option not in valid and inspect.Parameter.VAR_KEYWORD not in kinds:
            common = set(inspect.signature(load_dataset).parameters) - {"name", "options"}
            raise ConfigError(unknown(f"option of the dataset {name!r}", option, {*valid, *common}))
    for option, parameter in valid.items():
        optional = parameter.kind in (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
        if not optional and parameter.default is inspect.Parameter.empty and option not in options:
            raise ConfigError(f"dataset {name!r} requires the option {option!r}.")
