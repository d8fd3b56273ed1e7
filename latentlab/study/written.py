"""Contents of a run's files: embeddings, parameters, and the last values of progress bars."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from latentlab.embeddings.embedding import Embedding
from latentlab.fit import Fit
from latentlab.results.tree import mean_of_draws
from latentlab.study.job import Job


def embeddings_tree(embeddings: Sequence[Embedding], kinds: Mapping[str, np.ndarray], n_latent: int | None) -> xr.DataTree:
    """Converts embeddings to variables by label: `(unit, latent)`, or `(unit, latent_LABEL)` if the size differs.

    Several seeds have the first dim `seed_LABEL`, whose coordinate holds them. Several kinds of units have a group each; the
    kind replaces `unit` in the dims.
    """
    if len(kinds) == 1:
        (kind,) = kinds
        only = _of_kind([embedding.of(kind) for embedding in embeddings], kind, kinds[kind], n_latent)
        return xr.DataTree(only.assign_attrs(units=kind))
    placing = {kind: [e.of(kind) for e in embeddings if kind in e.kinds] for kind in kinds}
    return xr.DataTree.from_dict({kind: _of_kind(of, kind, kinds[kind], n_latent) for kind, of in placing.items() if of})


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
    """Restores the embeddings of `embeddings_tree` by label; those without stored notes are left out."""
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


def parameter_arrays(job: Job, fitted: Fit) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Returns each site's mean, the parameters and the data's transform, with a description of them.

    A point estimate is a single element of its orbit; draws are averaged with the symmetry removed.
    """
    point = bool(fitted.data.attrs["point_estimate"])
    groups = ("posterior",) if point else ("posterior", "latents")
    sites = {name: array for group in groups for name, array in fitted.data[group].data_vars.items()}
    averaged = {str(name): array for name, array in sites.items() if array.dtype.kind == "f"}
    dims = {name: list(map(str, array.dims[2:])) for name, array in averaged.items()}
    means = {name: mean_of_draws(array) for name, array in averaged.items()}
    if fitted.parameters:
        estimates = fitted.data["parameters"].data_vars
        means |= {str(name): array.values for name, array in estimates.items()}
        dims |= {str(name): list(map(str, array.dims)) for name, array in estimates.items()}
    arrays = {name: np.ascontiguousarray(mean, dtype=np.float64) for name, mean in means.items()}
    transform = job.training.transform
    if transform is not None:
        arrays |= {"transform.loc": np.ascontiguousarray(transform.loc), "transform.scale": np.ascontiguousarray(transform.scale)}
    meaning = {
        "model": job.model.name,
        "hyperparameters": job.model.hyperparameters(),
        "values": "point estimate" if point else "posterior mean, symmetry removed",
        "dims": dims,
        "parameters": sorted(fitted.parameters),
        "features": job.training.features if job.training.sample.x.ndim == 2 else None,
    }
    return arrays, meaning


def bar_lines(tree: xr.DataTree) -> list[str]:
    """Returns the final values of progress bars: a line for each chain, and the last ten values of an optimiser."""
    lines = []
    stats = tree["sample_stats"].data_vars if "sample_stats" in tree.children else {}
    if "diverging" in stats:
        for chain in stats["diverging"]["chain"].values:
            of = {name: array.sel(chain=chain).values for name, array in stats.items()}
            lines.append(
                f"chain {chain}: {of['diverging'].size} draws, {int(of['diverging'].sum())} divergent, step size "
                f"{of['step_size'][-1]:.4g}, acceptance {of['acceptance_rate'].mean():.3f}, steps {of['n_steps'].mean():.1f}"
            )
    optimization = tree["optimization"].data_vars if "optimization" in tree.children else {}
    for name in ("log_joint", "log_likelihood"):
        if name in optimization:
            lines += [f"{name} {i}: {value:.6g}" for i, value in enumerate(optimization[name].values[-10:])]
    return lines
