"""MLflow's store: one sqlite file in the project, or the server that MLFLOW_TRACKING_URI names."""

import logging
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

if TYPE_CHECKING:
    from mlflow import MlflowClient

EXPERIMENT = "darkroom"
DATABASE = "mlflow.db"
ARTIFACTS = "mlartifacts"
SECONDS_TO_WAIT_FOR_LOCK = 120  # the first process creates the database, which takes about ten seconds


@dataclass(frozen=True)
class Store:
    """An open MLflow store and this project's experiment in it."""

    client: "MlflowClient"
    experiment: str
    experiment_id: str
    uri: str
    root: Path  # of the project


def tracking_is_off() -> bool:
    """Whether DARKROOM_TRACKING=off.

    Raises:
        ValueError: the variable is neither on nor off.
    """
    setting = os.environ.get("DARKROOM_TRACKING", "on").lower()
    if setting not in ("on", "off"):
        raise ValueError(f"Environment variable DARKROOM_TRACKING is {setting!r}; must be `on` (the default) or `off`.")
    return setting == "off"


def project_root(start: Path | None = None) -> Path:
    """The folder of mlflow.db: DVC_ROOT if DVC sets it (also in `dvc exp run --temp`), else the nearest folder at or above
    `start` (default: the current one) that has a dvc.yaml or params.yaml, else `start` itself."""
    if root := os.environ.get("DVC_ROOT"):
        return Path(root).resolve()
    here = (start or Path.cwd()).resolve()
    marked = (folder for folder in [here, *here.parents] if any((folder / name).is_file() for name in ("dvc.yaml", "params.yaml")))
    return next(marked, here)


def tracking_uri(root: Path) -> str:
    """MLFLOW_TRACKING_URI, or the project's sqlite file as an absolute path, because stages may run in another folder."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{root / DATABASE}"


def lock(root: Path) -> FileLock:
    """Lock for creating the database and for finding the parent run: two processes that create one sqlite file break it."""
    folder = root / ".dvc" / "tmp" if (root / ".dvc").is_dir() else root / ".scratch"
    folder.mkdir(parents=True, exist_ok=True)
    return FileLock(folder / "mlflow.lock", timeout=SECONDS_TO_WAIT_FOR_LOCK)


def open_store(root: Path) -> Store:
    """Connect to the store; create the database and the experiment if they are missing.

    The experiment is `darkroom`, or the one that MLFLOW_EXPERIMENT_NAME names. Raises the errors of MLflow, and
    `filelock.Timeout`.
    """
    _quiet()
    from mlflow import MlflowClient
    from mlflow.entities import ViewType

    uri = tracking_uri(root)
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME", EXPERIMENT)
    location = (root / ARTIFACTS).as_uri() if uri.startswith("sqlite:") else None  # a server chooses its own
    with lock(root):
        client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        found = client.search_experiments(view_type=ViewType.ALL, filter_string=f"name = '{name}'")
        if found and found[0].lifecycle_stage == "deleted":
            client.restore_experiment(found[0].experiment_id)
        experiment_id = found[0].experiment_id if found else client.create_experiment(name, artifact_location=location)
    return Store(client, name, experiment_id, uri, root)


def _quiet() -> None:
    """Switch off telemetry and chatter, and shorten timeouts. MLflow reads these variables once, when it is imported."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    if not sys.stderr.isatty():
        os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    for name in ("alembic", "mlflow.store.db.utils"):
        logging.getLogger(name).setLevel(logging.WARNING)
