"""Storage of the fitted data in a run directory, with labels and hidden truth, as `data.nc`."""

import json
from typing import Any

import numpy as np
import xarray as xr

from latentlab.data.dataset import Dataset
from latentlab.data.transform import Transform

DATA = "data.nc"
ATTRIBUTES = ("name", "absent", "directed", "dropped", "preparation")


def data_tree(dataset: Dataset) -> xr.DataTree:
    """Convert a dataset to a tree with the groups `arrays`, `units`, `index`, `coords`, `labels`, `truth` and `transform`.

    Values are stored as fitted; `transform` has the location and scale of the standardisation.
    """
    labels = {kind: values for kind in dataset.kinds if (values := dataset.labels_of(kind)) is not None}
    transform = dataset.transform
    dims = {*dataset.sizes, *(dim for named in dataset.truth_dims.values() for dim in named)}
    scale = {} if transform is None else {"loc": np.asarray(transform.loc), "scale": np.asarray(transform.scale)}
    groups: dict[str, dict[str, tuple[tuple[str, ...], Any]]] = {
        "arrays": {name: (dataset.dims[name], array) for name, array in dataset.arrays.items()},
        "units": {kind: ((kind,), names) for kind, names in dataset.kinds.items()} if dataset.index else {},
        "index": {name: ((one.dim,), one.values) for name, one in dataset.index.items()},
        "coords": {name: ((name if name in dims else dataset.points,), values) for name, values in dataset.coords.items()},
        "labels": {kind: ((kind,), values) for kind, values in labels.items()},
        "truth": {name: (_axes(name, v), v) for name, v in dataset.truth.items()},
        "transform": {name: (_axes(name, array), array) for name, array in scale.items()},
    }
    attrs = {name: json.dumps(getattr(dataset, name)) for name in ATTRIBUTES}
    attrs["kinds"] = json.dumps({name: one.kind for name, one in dataset.index.items()})
    attrs["ddof"] = json.dumps(None if transform is None else transform.ddof)
    attrs["truth_dims"] = json.dumps(dict(dataset.truth_dims))
    attrs["order"] = json.dumps(list(dataset.arrays))
    tree = {name: xr.Dataset(variables) for name, variables in groups.items()}
    return xr.DataTree.from_dict({"/": xr.Dataset(attrs=attrs), **tree})


def dataset_of(tree: xr.DataTree) -> Dataset:
    """Restore the dataset from a tree made by `data_tree`."""
    attributes = {name: json.loads(str(text)) for name, text in tree.attrs.items()}
    groups = {str(name): node.to_dataset(inherit=False) for name, node in tree.children.items()}
    values = {group: {str(name): variable.values for name, variable in data.variables.items()} for group, data in groups.items()}
    dims = {str(name): tuple(map(str, variable.dims)) for name, variable in groups["arrays"].variables.items()}
    scale, points = values["transform"], dims[attributes["order"][0]][0]
    index = {name: (points, values["index"][name], kind) for name, kind in attributes["kinds"].items()}
    return Dataset(
        {name: values["arrays"][name] for name in attributes["order"]},
        dims={name: dims[name] for name in attributes["order"]},
        units=values["units"] if index else None,
        index=index,
        coords=values["coords"],
        labels=values["labels"] or None if index else values["labels"].get("unit"),
        truth=values["truth"],
        truth_dims=attributes["truth_dims"],
        name=attributes["name"],
        transform=None if attributes["ddof"] is None else Transform(scale["loc"], scale["scale"], attributes["ddof"]),
        dropped=tuple(attributes["dropped"]),
        preparation=tuple(attributes["preparation"]),
        absent=attributes["absent"],
        directed=attributes["directed"],
    )


def _axes(name: str, array: np.ndarray) -> tuple[str, ...]:
    """Return generated dims, since the dims of a true value may contain one twice; `truth_dims` has the actual dims."""
    return tuple(f"{name}_axis_{i}" for i in range(array.ndim))
