"""Checks before inference, and the problem that a method receives."""

import logging
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from latentlab.data.dataset import Dataset
from latentlab.data.memory import memory_bytes
from latentlab.data.stored import StoredDataset
from latentlab.errors import ConfigError, DataError, ModelError
from latentlab.inference.arrays import tensors
from latentlab.inference.capture import Plan
from latentlab.inference.density import Density
from latentlab.inference.draws import START, Method, Problem, has_checkpoint, read_own, write_checkpoint
from latentlab.inference.encoder import check_encoder, is_amortised
from latentlab.inference.layers import check_forward, check_modules
from latentlab.inference.program import check_declaration
from latentlab.models.base import LatentModel
from latentlab.models.networks import description, start_hashes
from latentlab.processes import current
from latentlab.results.assemble import outline
from latentlab.results.sizes import Sizes
from latentlab.seeds import Seeds

logger = logging.getLogger(__name__)


def prepared(  # one keyword for each option of `fit`
    model: LatentModel,
    dataset: Dataset | StoredDataset,
    method: Method,
    *,
    seed: int = 0,
    progress: bool = True,
    checkpoint: str | Path | None = None,
    log: Callable[[str], object] | None = None,
    separate: bool = False,
    memory: int | str | None = None,
) -> Problem:
    """Check model, data and method, and return the problem that the method receives; arguments and errors as in `fit`.

    If `separate`, chains or restarts are computed one by one, as tasks of an executor.
    """
    for name, value, kinds in (("model", model, (LatentModel,)), ("dataset", dataset, (Dataset, StoredDataset))):
        if not isinstance(value, kinds):
            given = repr(value) if isinstance(value, str) else type(value).__name__
            if isinstance(value, type):
                given = f"the class {value.__name__}; call it with its arguments"
            how = ', such as `Dataset({"x": x}, dims={"x": ("unit", "feature")})`' if name == "dataset" else ""
            raise ConfigError(f"fit: `{name}` must be a `{kinds[0].__name__}`{how}; got {given}.")
    if isinstance(method, type | str) or not hasattr(method, "run"):
        raise ConfigError(f"fit: `method` must be an inference method, such as `NUTS()`; got {method!r:.60}.")
    check_declaration(model)
    check_modules(model)
    if method.name not in model.methods:
        raise ModelError(
            f"model {model.name!r} does not support the method {method.name!r}; supported: {', '.join(model.methods)}."
        )
    if (n := current().size) > 1 and getattr(method, "batch_size", None) is None:
        raise ConfigError(f"the method must be `svi` with a `batch_size` for {n} processes; got {method!r}. Use one process.")
    stored = dataset if isinstance(dataset, StoredDataset) else None
    dataset = dataset.complete() if isinstance(dataset, Dataset) else dataset
    check_kinds(model, dataset.sample)
    arrays = _checked(model, dataset)
    if getattr(method, "maximizes_likelihood", False):
        model.check_maximum(dataset.sample)
    for caution in model.cautions(dataset.sample):
        logger.warning("%s: %s", dataset.name, caution.quantity)
    check_forward(model, "model", arrays)
    plan = method.plan() if hasattr(method, "plan") else Plan()
    try:
        density = Density(model, arrays, dataset.sample.array_dims, plan=plan, n_points=dataset.n_units if stored else None)
    except ModelError as error:
        if dataset.transform is None or "outside of the support" not in str(error):
            raise
        raise ModelError(f"{error} The data are standardised; use raw values by `dataset.standardize=false`.") from error
    if density.own_parameters and method.kind == "mcmc":
        name = next(iter(density.own_parameters))
        raise ModelError(
            f"the parameter {name!r} of {model.name!r} has no prior, so {method.name!r} cannot draw it: "
            "estimate it by `svi` with guide='model' or by `map`, and sample the positions by `fit.frozen()`."
        )
    if stored is not None:
        _check_stored(stored, density, method)
    folder = Path(checkpoint) if checkpoint else None
    identity = f"{model!r} {dataset.digest()} {method!r} {seed}{' separate' * separate}{description(model)}" if folder else ""
    seeds = Seeds(seed).child(method.name)
    problem = Problem(model, arrays, density, seeds, progress, folder, identity, stored, log=log, separate=separate)
    if hasattr(method, "check"):
        method.check(problem)
    check_encoder(density)
    _check_start(problem)
    outlined, limit = outline(problem, dataset.sample), memory_bytes(memory)
    if limit is None:
        return problem
    sizes = Sizes.of(model, method, dataset.sample, outlined)
    return replace(problem, place=sizes.place(folder or Path(tempfile.gettempdir()), limit))


def check_kinds(model: LatentModel, dataset: Dataset) -> None:
    """Raise an error if the data lack a kind of units for which the model has positions.

    Raises:
        DataError: A kind is missing; names the kinds of model and data.
    """
    missing = next((kind for kind in model.kinds if kind and kind not in dataset.sizes), None)
    if missing is not None:
        raise DataError(
            f"{dataset.name}: the model {model.name!r} has positions for units of the kind {missing!r}; the data have units of "
            f"the kind {', '.join(map(repr, dataset.kinds))}."
        )


def _checked(model: LatentModel, dataset: Dataset | StoredDataset) -> dict[str, Any]:
    """Check all of the data against the model, and return them (on disk: their sample) as the program's tensors."""
    if isinstance(dataset, Dataset):
        model.check(dataset)
        return tensors(model, dataset)
    model.check(dataset.extremes)
    tensors(model, dataset.extremes)
    arrays = tensors(model, dataset.sample)
    if "row" in arrays:
        arrays["row"] = torch.from_numpy(dataset.sampled())
    if "n_unit" in arrays:
        arrays["n_unit"] = dataset.n_units
    if dataset.n_missing and arrays["mask"] is None:
        arrays["mask"] = torch.ones(dataset.sample.x.shape, dtype=torch.bool)
    return arrays


def _check_start(problem: Problem) -> None:
    """Warn if results in the folder of checkpoints began at other weights of the modules; record the weights of a new fit."""
    folder, present = problem.checkpoint, start_hashes(problem.model)
    if folder is None or not present or problem.processes.rank:
        return
    is_begun = any(path.stem != START for path in folder.glob("*.safetensors"))
    if is_begun and has_checkpoint(problem, START):
        stored = read_own(problem, START)
        other = next((name for name, one in present.items() if stored[name].tobytes().decode() != one), None)
        if other is not None:
            warnings.warn(
                f"the fit continues from the checkpoints in {folder}, which began at another {other!r} than the model has now. "
                "To begin at the present weights, use another folder.",
                stacklevel=3,
            )
    else:
        write_checkpoint(problem, START, {name: np.frombuffer(one.encode(), np.uint8) for name, one in present.items()})


def _check_stored(dataset: StoredDataset, density: Density, method: Method) -> None:
    """Refuse methods and models that need all units in memory, for data that stay on disk."""
    if getattr(method, "batch_size", None) is None:
        raise ConfigError(
            f"{dataset.name} is on disk, so the method must be `SVI` with a `batch_size`; got {method!r}. "
            "For other methods, set `in_memory: true`, or select units by `subset`."
        )
    if getattr(method, "held_out", None):
        raise ConfigError(f"{dataset.name} is on disk, so `held_out` is not available; keep held-out units in a separate file.")
    if density.point_sites and not is_amortised(density):
        raise ModelError(
            f"{dataset.name} is on disk, and {density.model.name!r} has both global sites and the site "
            f"{density.point_sites[0]!r} of each unit; use a model that marginalises it, or a model with an encoder."
        )
