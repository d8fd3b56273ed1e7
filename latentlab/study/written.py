"""Files of a run: embeddings, diagnostics with parameters, comparison, and the last values of progress bars."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import safetensors.numpy
import xarray as xr

from latentlab.comparison.result import Comparison
from latentlab.embeddings.embedding import Embedding
from latentlab.fit import Fit
from latentlab.results.tree import GUIDE_PARAMETERS, mean_of_draws
from latentlab.store.directory import RunDirectory

COMPARISON = ("comparison.nc", "comparison.csv", "verdicts.csv")


def embeddings_tree(embeddings: Sequence[Embedding], kinds: Mapping[str, np.ndarray], n_latent: int | None) -> xr.DataTree:
    """Converts embeddings to variables by label: `(unit, latent)`, or `(unit, latent_LABEL)` if the size differs.

    An embedding with several seeds has the first dim `seed_LABEL`, whose coordinate contains the seeds. If there are several
    kinds of units, each kind has a group, and its name replaces `unit` in the dims.
    """
    if len(kinds) == 1:
        (kind,) = kinds
        only = _of_kind([embedding.of(kind) for embedding in embeddings], kind, kinds[kind], n_latent)
        return xr.DataTree(only.assign_attrs(units=kind))
    by_kind = {kind: [e.of(kind) for e in embeddings if kind in e.kinds] for kind in kinds}
    return xr.DataTree.from_dict({kind: _of_kind(some, kind, kinds[kind], n_latent) for kind, some in by_kind.items() if some})


def _of_kind(embeddings: Sequence[Embedding], kind: str, units: np.ndarray, n_latent: int | None) -> xr.Dataset:
    variables, coords = {}, {kind: units}
    for original in embeddings:
        embedding = original.reindexed(units)
        label, size = embedding.label, embedding.values.shape[-1]
        dims: tuple[str, ...] = (kind, "latent" if size == n_latent else f"latent_{label}")
        coords[dims[-1]] = np.arange(size)
        if embedding.values.ndim == 3:
            dims = (f"seed_{label}", *dims)
            coords[dims[0]] = np.asarray(embedding.seeds)
        attrs = {
            "name": embedding.name,
            "options": json.dumps(dict(embedding.options), default=str),
            "notes": json.dumps(list(embedding.notes)),
        }
        variables[label] = (dims, embedding.values, attrs)
    return xr.Dataset(variables, coords=coords)


def embeddings_of(tree: xr.DataTree, kinds: Iterable[str]) -> dict[str, Embedding]:
    """Restores the embeddings of `embeddings_tree` by label; embeddings without stored notes are left out."""
    several = len(list(kinds)) > 1
    nodes = {str(kind): node.to_dataset(inherit=False) for kind, node in tree.children.items()} if several else {}
    nodes = nodes or {next(iter(kinds)): tree.to_dataset()}
    parts: dict[str, dict[str, xr.DataArray]] = {}
    for kind, dataset in nodes.items():
        for label, array in dataset.data_vars.items():
            if "notes" in array.attrs:
                parts.setdefault(str(label), {})[kind] = array
    found = {}
    for label, arrays in parts.items():
        first = next(iter(arrays.values()))
        values, units = ({k: a.values for k, a in arrays.items()}, {k: a[k].values for k, a in arrays.items()})
        found[label] = Embedding(
            str(first.attrs["name"]),
            values if several else first.values,
            units if several else next(iter(units.values())),
            label,
            json.loads(first.attrs["options"]),
            tuple(first[f"seed_{label}"].values.tolist()) if first.ndim == 3 else (),
            tuple(json.loads(first.attrs["notes"])),
        )
    return found


def parameter_arrays(fitted: Fit) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Returns each site's mean, the parameters and the data's transform, with their description.

    Draws are aligned before they are averaged. A point estimate is not aligned.
    """
    point = bool(fitted.data.attrs["point_estimate"])
    groups = ("posterior",) if point else ("posterior", "latents")
    sites = {name: array for group in groups for name, array in fitted.data[group].data_vars.items()}
    averaged = {str(name): array for name, array in sites.items() if array.dtype.kind == "f"}
    dims = {name: list(map(str, array.dims[2:])) for name, array in averaged.items()}
    means = {name: mean_of_draws(array) for name, array in averaged.items()}
    if fitted.parameters:
        means |= fitted.parameters
        groups_of_parameters = (fitted.data[group] for group in ("parameters", GUIDE_PARAMETERS) if group in fitted.data.children)
        dims |= {str(n): list(map(str, array.dims)) for group in groups_of_parameters for n, array in group.data_vars.items()}
    arrays = {name: np.ascontiguousarray(mean, dtype=np.float64) for name, mean in means.items()}
    transform = fitted.dataset.transform
    if transform is not None:
        arrays |= {"transform.loc": np.ascontiguousarray(transform.loc), "transform.scale": np.ascontiguousarray(transform.scale)}
    meaning = {
        "model": fitted.model.name,
        "hyperparameters": fitted.model.hyperparameters(),
        "values": "point estimate" if point else "posterior mean, symmetry removed",
        "dims": dims,
        "parameters": sorted(fitted.parameters),
        "features": fitted.dataset.features if fitted.dataset.x.ndim == 2 else None,
    }
    return arrays, meaning


def write_diagnostics(directory: RunDirectory, fitted: Fit, table: pd.DataFrame) -> None:
    """Writes the table of diagnostics, and the parameters with their description."""
    directory.write_json("diagnostics.json", table.to_dict("records"))
    arrays, meaning = parameter_arrays(fitted)
    directory.write("params/params.safetensors", safetensors.numpy.save(arrays))
    directory.write_json("params/params.json", meaning)


def write_comparison(directory: RunDirectory, comparison: Comparison) -> None:
    """Writes the files of a comparison."""
    tree, scores, verdicts = COMPARISON
    directory.write_tree(tree, comparison.to_tree())
    directory.write_table(scores, comparison.to_dataframe())
    directory.write_table(verdicts, comparison.verdicts)


def bar_lines(tree: xr.DataTree) -> list[str]:
    """Returns the final values of progress bars: a line for each chain, and the last ten values of an optimiser."""
    lines = []
    stats = tree["sample_stats"].data_vars if "sample_stats" in tree.children else {}
    if "diverging" in stats:
        for chain in stats["diverging"]["chain"].values:
            values = {name: array.sel(chain=chain).values for name, array in stats.items()}
            lines.append(
                f"chain {chain}: {values['diverging'].size} draws, {int(values['diverging'].sum())} divergent, step size "
                f"{values['step_size'][-1]:.4g}, acceptance {values['acceptance_rate'].mean():.3f}, steps "
                f"{values['n_steps'].mean():.1f}"
            )
    optimization = tree["optimization"].data_vars if "optimization" in tree.children else {}
    for name in ("log_joint", "log_likelihood"):
        if name in optimization:
            lines += [f"{name} {i}: {value:.6g}" for i, value in enumerate(optimization[name].values[-10:])]
    return lines
