"""The models, by class name: `latentlab.models.PPCA`. Each is imported on first access."""

import importlib
from typing import Any

from latentlab.registry import MODELS


def __getattr__(name: str) -> Any:
    classes = MODELS.classes()
    if name not in classes:
        raise AttributeError(f"latentlab.models has no model {name!r}; it has {', '.join(sorted(classes))}.")
    return getattr(importlib.import_module(classes[name]), name)
