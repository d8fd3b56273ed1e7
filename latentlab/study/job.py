"""Model, method and data of a config, built and checked."""

import contextlib
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import xarray as xr

from latentlab.comparison.choice import check_spread
from latentlab.data.dataset import Dataset
from latentlab.errors import ConfigError, DataError, StoreError
from latentlab.files import now, sha256
from latentlab.fit import Fit
from latentlab.processes import current
from latentlab.results.assemble import N_PREDICTIVE, outline
from latentlab.results.netcdf import save
from latentlab.results.new_points import classes_of, density_of_new
from latentlab.results.parts import check_executor
from latentlab.results.prepare import prepared
from latentlab.seeds import Seeds
from latentlab.study.config import Config

PACKAGES = ("latentlab", "torch", "pyro-ppl", "numpy", "scipy", "scikit-learn", "pandas", "xarray", "arviz", "h5netcdf")
POSTERIOR, EMBEDDINGS = "posterior.nc", "embeddings.nc"
PAGE_BYTES = 2_000_000
"""Approximate size of the page and the tables."""
LABEL_BYTES = 0.5
"""Approximate size of a drawn label, compressed."""
N_STATISTICS = 7
"""Sampler statistics of a draw."""


class Job:
    """Model, method and data of a config; raises an error if they are incompatible."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.model = config.build_model()
        self.method = config.build_method()
        if config.executor is not None:
            check_executor(config.executor, self.method)
        self.dataset = config.build_dataset()
        self.whole = self.dataset.complete() if isinstance(self.dataset, Dataset) else self.dataset
        self.training, self.held_out = self.whole, None
        if config.held_out:
            rng = Seeds(config.seed).child("held_out").numpy()
            self.training, self.held_out = self.whole.split(config.held_out, rng)
        for i, one in enumerate(config.embeddings):
            if one.label in self.training.sizes:  # type: ignore[attr-defined]
                raise ConfigError(f"embeddings.{i}.label: {one.label!r} is a dim of the data; set a different label.")  # type: ignore[attr-defined]
        problem = prepared(self.model, self.training, self.method, seed=config.seed)
        self.outline = outline(problem, self.training.sample)
        _check_storable(self.outline, self.dataset.name)
        if config.embeddings:
            check_spread(self.model, self.method)
        if self.held_out is not None:
            density_of_new(self.model, self.held_out, classes=classes_of(self.model, self.training.sample))

    def fit(self, posterior: xr.DataTree) -> Fit:
        """Returns the fit with the result `posterior`."""
        return Fit(self.model, self.training.sample, self.method, self.config.seed, posterior)

    def description(self) -> dict[str, Any]:
        """Returns the first entries of `run.json`."""
        return {
            "name": self.config.name,
            "seed": self.config.seed,
            **circumstances(),
            "command": list(sys.argv),
            "started": now(),
            "data": {"name": self.dataset.name, "sha256": self.dataset.digest(), **self.whole.sizes},
            "plugins": {path: sha256(Path(path)) for path in self.config.plugins},
            "notes": self.training.notes(),
            "warnings": [],
            "seconds": {},
        }

    def identity(self, description: Mapping[str, Any]) -> dict[str, str]:
        """Returns what must be equal in all processes of a fit."""
        settings = {"model": repr(self.model), "inference": repr(self.method)}
        return settings | {name: json.dumps(description[name]) for name in ("seed", "data", "versions")}

    def n_bytes(self) -> int:
        """Estimates the largest size of the run's directory in bytes: result, checkpoints and page."""
        model, sample, point = self.model, self.training.sample, self.method.kind == "point"
        sites = {str(name): array.size for name, array in self.outline["posterior"].data_vars.items()}
        columns = 1 if model.is_discrete else model.position_columns() or 1
        position = sum(sites.pop(one.site, sample.sizes[kind] * columns) for kind, one in model.kinds.items() if kind)
        acted = sum(size for name, size in sites.items() if model.exchanges.dim in model.dims[name])
        n_draws = getattr(self.method, "n_chains", 1) * self.method.n_draws
        has_positions = model.position.site in self.outline["posterior"]
        each = 2 * position * (LABEL_BYTES / 8 if model.is_discrete else 1)
        if not point:  # the constant draws of a point estimate compress to almost nothing
            pointwise = sample.n_points * ("bound" not in model.offers) * (1 + ("leave_one_out" in model.offers))
            checkpoints = 2 * (sum(sites.values()) + position * has_positions)
            each += sum(sites.values()) + acted + pointwise + checkpoints + len(sites) + N_STATISTICS
        predictive = 2 * min(N_PREDICTIVE, n_draws) * sample.x.size
        data = sum(array.size for array in (*sample.arrays.values(), *sample.truth.values()))
        return int(8 * (n_draws * each + predictive + 2 * sample.x.size + data)) + PAGE_BYTES


def circumstances() -> dict[str, Any]:
    """Returns versions, threads, hardware and commit of this process."""
    return {
        "versions": _versions(),
        "threads": {
            "torch": torch.get_num_threads(),
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS"),
            **({"processes": n} if (n := current().size) > 1 else {}),
        },
        "hardware": _hardware(),
        "commit": _commit(),
    }


def _check_storable(tree: xr.DataTree, name: str) -> None:
    """Writes a result's names and coordinates to a temporary file, to detect before the fit whether netCDF can store them.

    Raises:
        DataError: They are not read back unchanged.
    """
    with tempfile.TemporaryDirectory() as folder:
        try:
            save(tree, Path(folder) / POSTERIOR)
        except StoreError as error:
            why = str(error).partition(f"{POSTERIOR}")[2].lstrip(":, ")
            raise DataError(f"{name}: units, times or names cannot be stored in netCDF: {why}") from error


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def _hardware() -> dict[str, Any]:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {"machine": platform.machine(), "system": platform.platform(), "cpus": os.cpu_count(), "memory_bytes": memory}


def _commit() -> str | None:
    """Returns the commit of the working directory's git repository; None outside of one."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        found = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=True)
        return found.stdout.strip()
    return None
