"""latentlab: inference of latent positions, embeddings, and comparison of both with uncertainty.

Importing this package is quick and changes nothing: each public name is loaded when it is first used.
"""

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from latentlab.registry import METHODS

if TYPE_CHECKING:
    from latentlab.comparison.compare import compare
    from latentlab.comparison.result import Comparison
    from latentlab.comparison.selection import loo_table
    from latentlab.data.dataset import Dataset
    from latentlab.data.load import load_dataset
    from latentlab.embeddings.embed import embed
    from latentlab.embeddings.embedding import Embedding
    from latentlab.fit import Fit, fit
    from latentlab.inference.chees import ChEES
    from latentlab.inference.exact import Exact
    from latentlab.inference.joint import log_joint
    from latentlab.inference.map import MAP
    from latentlab.inference.nuts import NUTS
    from latentlab.inference.svi import SVI
    from latentlab.models.base import LatentModel, MaximumLikelihood, Position
    from latentlab.study.run import load_run, run
    from latentlab.study.select import select
    from latentlab.study.several import RunComparison, compare_runs
    from latentlab.sweeps.sweep import Sweep, load_sweep, sweep

__version__ = "0.1.0"

_PUBLIC = {
    "Comparison": "latentlab.comparison.result",
    "Dataset": "latentlab.data.dataset",
    "Embedding": "latentlab.embeddings.embedding",
    "Fit": "latentlab.fit",
    "LatentModel": "latentlab.models.base",
    "MaximumLikelihood": "latentlab.models.base",
    "Position": "latentlab.models.base",
    "RunComparison": "latentlab.study.several",
    "compare": "latentlab.comparison.compare",
    "compare_runs": "latentlab.study.several",
    "embed": "latentlab.embeddings.embed",
    "fit": "latentlab.fit",
    "load_dataset": "latentlab.data.load",
    "load_run": "latentlab.study.run",
    "load_sweep": "latentlab.sweeps.sweep",
    "log_joint": "latentlab.inference.joint",
    "loo_table": "latentlab.comparison.selection",
    "run": "latentlab.study.run",
    "select": "latentlab.study.select",
    "sweep": "latentlab.sweeps.sweep",
    "Sweep": "latentlab.sweeps.sweep",
} | METHODS.classes()

__all__ = [*sorted(_PUBLIC), "models"]


class _Package(ModuleType):
    """The package, whose functions `fit` and `compare` are not hidden by the modules of the same name."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _PUBLIC and isinstance(value, ModuleType)):
            super().__setattr__(name, value)

    def __getattr__(self, name: str) -> Any:
        if name in _PUBLIC:
            return getattr(importlib.import_module(_PUBLIC[name]), name)
        if name == "models":
            return importlib.import_module("latentlab.models")
        raise AttributeError(f"module 'latentlab' has no attribute {name!r}")

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *_PUBLIC, "models"})


sys.modules[__name__].__class__ = _Package
