"""Tracker that writes to an MLflow store."""

import contextlib
import fcntl
import os
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from latentlab.settings import settings
from latentlab.tracking.tracker import Tracker, flat, numbers, require

ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
}
"""Variables for MLflow, unless the user has set them: no telemetry, no printed lines, and few attempts at an address."""
SQLITE = "sqlite:///"
MOST_PARAMETERS = 100
"""Largest number of parameters in one call."""
MAY_CHANGE = ("tracking", "memory", "executor")
"""Keys of a config that can change when a run is resumed; MLflow does not allow a parameter to change."""
LONGEST = 5000
"""Largest number of characters of a value."""


@settings
class MLflow(Tracker):
    """A run in an MLflow store, with the config as parameters, results as metrics, and tags such as the path of the directory.

    Args:
        uri: Address of a tracking server, or of a SQLite file; a relative path begins at the working directory.
        experiment: Name of the experiment, which is created if it does not exist.
    """

    uri: str = "sqlite:///runs/mlflow.db"
    experiment: str = "latentlab"

    def __post_init__(self) -> None:
        require("the tracker 'mlflow'", "mlflow", "mlflow", "sqlalchemy", "alembic")

    def begin(self, folder: Path, config: Mapping[str, Any], info: Mapping[str, Any]) -> None:
        _prepare_environment()
        from mlflow.entities import Param, RunTag
        from mlflow.tracking import MlflowClient

        with _alone(self.uri):
            self._client = MlflowClient(tracking_uri=self.uri)
            experiment = self._experiment_id()
        self._run = (
            self._resumed(experiment, folder, info) or self._client.create_run(experiment, run_name=info["name"]).info.run_id
        )
        tags = {"status": "running", "path": folder, "report": folder / "report.html", "started": info["started"]}
        tags |= {"seed": info["seed"], "data.sha256": info["data"]["sha256"], "commit": info.get("commit")}
        tags |= dict(flat({"versions": info["versions"], "sweep": info.get("sweep") or {}}))
        self._client.log_batch(
            self._run, tags=[RunTag(_key(key), str(tag)[:LONGEST]) for key, tag in tags.items() if tag is not None]
        )
        fixed = {key: value for key, value in config.items() if key not in MAY_CHANGE}
        parameters = [Param(_key(key), str(value)[:LONGEST]) for key, value in flat(fixed)]
        for first in range(0, len(parameters), MOST_PARAMETERS):
            self._client.log_batch(self._run, params=parameters[first : first + MOST_PARAMETERS])

    def _experiment_id(self) -> str:
        """Return the number of the experiment; another process may create it at the same time."""
        from mlflow.exceptions import MlflowException

        found = self._client.get_experiment_by_name(self.experiment)
        if found is None:
            try:
                return str(self._client.create_experiment(self.experiment))
            except MlflowException:
                found = self._client.get_experiment_by_name(self.experiment)
                if found is None:
                    raise
        return str(found.experiment_id)

    def _resumed(self, experiment: str, folder: Path, info: Mapping[str, Any]) -> str | None:
        """Return the record of the interrupted run; None for a new run."""
        if "resumed" not in info:
            return None
        found = self._client.search_runs([experiment], filter_string=f"tags.started = '{info['started']}'")
        runs = [str(run.info.run_id) for run in found if run.data.tags.get("path") == str(folder)]
        if not runs:
            return None
        self._client.update_run(runs[0], status="RUNNING")
        return runs[0]

    def log(self, step: int, values: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        _prepare_environment()
        now = int(time.time() * 1000)
        self._client.log_batch(self._run, metrics=[Metric(_key(name), value, now, step) for name, value in values.items()])

    def end(self, results: Mapping[str, Any]) -> None:
        from mlflow.entities import Metric, RunTag

        _prepare_environment()
        now = int(time.time() * 1000)
        metrics = [Metric(_key(name), value, now, 0) for name, value in numbers(results).items()]
        tags = [RunTag(_key(name), value[:LONGEST]) for name, value in results.items() if isinstance(value, str)]
        self._client.log_batch(self._run, metrics=metrics, tags=tags)
        ended = {"failed": "FAILED", "interrupted": "KILLED"}.get(str(results["status"]), "FINISHED")
        self._client.set_terminated(self._run, ended)


@contextlib.contextmanager
def _alone(uri: str) -> Iterator[None]:
    """Let one process at a time create the tables of a SQLite file, and its folder; MLflow itself has no such lock."""
    if not uri.startswith(SQLITE):
        yield
        return
    path = Path(uri.removeprefix(SQLITE)).absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f".{path.name}.lock").open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _prepare_environment() -> None:
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def _key(name: str) -> str:
    """Return a name without the characters that MLflow does not allow.

    Example:
        >>> _key("pca (mapped).orthogonal.delta")
        'pca mapped.orthogonal.delta'
    """
    return re.sub(r"[^\w./ :-]", "", name)[:250]
