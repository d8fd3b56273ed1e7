"""Data of runs that were written without data.nc."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from latentlab.data.dataset import Dataset
from latentlab.data.load import load_dataset
from latentlab.data.transform import Transform
from latentlab.errors import LatentLabError


def reloaded(source: Mapping[str, Any], digest: str, observed: xr.DataArray, params: Mapping[str, np.ndarray]) -> Dataset | None:
    """Load the data set of a run again, and return its fitted units and features as they were fitted.

    Args:
        source: Section `dataset` of the config.
        digest: Hash of the data set in `run.json`.
        observed: Fitted values, with the names of units and features.
        params: Parameters of the run, with the transform of the data.

    Returns:
        The data set with labels and truth; None if it cannot be loaded, or has another hash.
    """
    try:
        dataset = load_dataset(**source)
    except LatentLabError:
        return None
    if dataset.digest() != digest:
        return None
    kept = dataset.sample.raw()
    if kept.index:
        return kept
    units = pd.Index(kept.units.astype(str)).get_indexer(observed["unit"].values.astype(str))
    if (units < 0).any():
        return None
    kept = kept.subset(units)
    if "feature" in observed.dims:  # columns that are constant in the training data were dropped
        kept = kept.select_features(observed["feature"].values.tolist())
    return kept.transformed(Transform(params["transform.loc"], params["transform.scale"])) if "transform.loc" in params else kept
