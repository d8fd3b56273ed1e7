"""Tracker that writes event files for TensorBoard."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from latentlab.settings import settings
from latentlab.store.directory import TENSORBOARD
from latentlab.tracking.tracker import Tracker, flat, numbers, require


@settings
class TensorBoard(Tracker):
    """Event files for TensorBoard in the folder `tensorboard` of the run directory."""

    def __post_init__(self) -> None:
        require("the tracker 'tensorboard'", "tensorboard", "tensorboard")

    def begin(self, folder: Path, config: Mapping[str, Any], info: Mapping[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder / TENSORBOARD))
        self._writer.add_text("config", "\n".join(f"    {key}: {value}" for key, value in flat(config)))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def end(self, results: Mapping[str, Any]) -> None:
        for name, value in numbers(results).items():
            self._writer.add_scalar(f"results/{name}", value)
        self._writer.close()
