"""Model, method and data of a config, built and checked."""

import contextlib
import hashlib
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
from latentlab.models.networks import start_hashes
from latentlab.processes import current
from latentlab.results.assemble import outline
from latentlab.results.netcdf import save
from latentlab.results.new_points import classes_of, density_of_new
from latentlab.results.parts import check_executor
from latentlab.results.prepare import prepared
from latentlab.results.sizes import Sizes
from latentlab.seeds import Seeds
from latentlab.study.config import Config

PACKAGES = ("latentlab", "torch", "pyro-ppl", "numpy", "scipy", "scikit-learn", "pandas", "xarray", "arviz", "h5netcdf")
POSTERIOR, EMBEDDINGS = "posterior.nc", "embeddings.nc"
PAGE_BYTES = 2_000_000
"""Approximate size of the page and the tables."""


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
        problem = prepared(self.model, self.training, self.method, seed=config.seed, memory=config.memory)
        outlined = outline(problem, self.training.sample)
        _check_storable(outlined, self.dataset.name)
        self.sizes = Sizes.of(self.model, self.method, self.training.sample, outlined)
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
            **({"start": _digest(hashes)} if (hashes := start_hashes(self.model)) else {}),
            "plugins": {path: sha256(Path(path)) for path in self.config.plugins},
            "notes": self.training.notes(),
            "warnings": [],
            "seconds": {},
        }

    def identity(self, description: Mapping[str, Any]) -> dict[str, str]:
        """Returns what must be equal in all processes of a fit."""
        settings = {"model": repr(self.model), "inference": repr(self.method)}
        return settings | {name: json.dumps(description[name]) for name in ("seed", "data", "versions", "plugins")}

    def n_bytes(self) -> int:
        """Estimates the largest size of the run's directory in bytes: result, checkpoints, temporary files and page."""
        temporary = self.sizes.files() if self.config.memory is not None else 0
        return self.sizes.disk() + temporary + PAGE_BYTES


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


def _digest(hashes: Mapping[str, str]) -> str:
    """Return one hash of the starting weights of a model."""
    return hashlib.sha256(json.dumps(hashes).encode()).hexdigest()[:16]


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
