"""MLflow runs: one parent per point of the experiment space, one child per stage. MLFLOW_RUN_ID is not used."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from darkroom.tracking.lineage import git_tags, lock_hashes, pipeline_key, pipeline_name
from darkroom.tracking.mlflow_tracker import MlflowTracker
from darkroom.tracking.store import Store, lock, open_store, project_root, tracking_is_off
from darkroom.tracking.tracker import BothTrackers, JsonlTracker, NullTracker, Tracker

if TYPE_CHECKING:
    from mlflow.entities import Run

logger = logging.getLogger(__name__)
PARENT = "mlflow.parentRunId"  # MLflow's own tag; its pages show runs as a tree by it
RUN_ID_FILE = "mlflow_run_id"  # beside the checkpoints, so that a resumed stage continues its run
MAX_CHILDREN = 1000


@contextmanager
def stage_run(
    name: str,
    *,
    params: dict[str, Any],  # of the stage, nested
    key: str,  # hash of parameters, inputs and code
    inputs: dict[str, str],  # name -> fingerprint
    params_file: Path,
    scratch: Path,  # of this stage and key
    enabled: bool,  # True only in the process that writes
) -> Iterator[Tracker]:
    """Track one run of a stage. It ends as FINISHED, as FAILED if the stage raises, as KILLED if it is interrupted.

    `metrics.jsonl` in `scratch` is always written; MLflow too, unless DARKROOM_TRACKING=off. If MLflow cannot be reached,
    a warning is logged and the stage runs without it.

    Raises:
        ValueError: DARKROOM_TRACKING is neither on nor off.
    """
    if not enabled:
        yield NullTracker()
        return
    jsonl = JsonlTracker(scratch / "metrics.jsonl")
    started = None if tracking_is_off() else _try_start(name, key=key, inputs=inputs, params_file=params_file, scratch=scratch)
    if started is None:
        yield jsonl
        return
    store, tracker = started
    tracker.log_params(flat(params))
    status = "FAILED"
    try:
        yield BothTrackers(jsonl, tracker)
        status = "FINISHED"
    except (KeyboardInterrupt, SystemExit):
        status = "KILLED"
        raise
    finally:
        tracker.close(status)
        _try_settle(store, tracker.parent_run_id)


def flat(params: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """`{"model": {"width": 32}}` to `{"model.width": "32"}`."""
    result: dict[str, str] = {}
    for name, value in params.items():
        result |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": str(value)}
    return result


def _try_start(name: str, *, key: str, inputs: dict[str, str], params_file: Path, scratch: Path) -> tuple[Store, MlflowTracker] | None:
    folder = params_file.resolve().parent
    try:
        store = open_store(project_root(folder))
        with lock(store.root):
            parent_run_id = _find_or_create_parent(store, folder, params_file)
            run_id = _continue_or_create_child(store, name, parent_run_id, scratch)
        tracker = MlflowTracker(store, run_id=run_id, parent_run_id=parent_run_id)
    except Exception as error:  # any error of MLflow, its database, the network or the lock; none may stop the stage
        logger.warning("MLflow is not available (%s). Metrics go to %s only", " ".join(str(error).split()), scratch / "metrics.jsonl")
        return None
    tracker.set_tags({"stage.key": key, **_lineage_tags(folder, inputs)})
    return store, tracker


def _lineage_tags(folder: Path, inputs: dict[str, str]) -> dict[str, str]:
    """The inputs of the run: our fingerprints, DVC's md5s (if they are in dvc.lock), and the commit."""
    hashes = lock_hashes(folder)
    fingerprints = {f"dvc.dep.{name}": fingerprint for name, fingerprint in inputs.items()}
    md5s = {f"dvc.md5.{name}": hashes[f"data/{name}"] for name in inputs if f"data/{name}" in hashes}
    return fingerprints | md5s | git_tags(folder)


def _find_or_create_parent(store: Store, folder: Path, params_file: Path) -> str:
    """The parent only groups its children. Its status is never RUNNING, so a killed stage cannot leave it in that status."""
    key = pipeline_key(folder, params_file)
    found = store.client.search_runs([store.experiment_id], f"tags.`pipeline.key` = '{key}'", max_results=1)
    if found:
        return str(found[0].info.run_id)
    tags = {"pipeline.key": key, **git_tags(folder)}
    parent = store.client.create_run(store.experiment_id, run_name=pipeline_name(folder), tags=tags)
    store.client.set_terminated(parent.info.run_id, "FINISHED")
    return str(parent.info.run_id)


def _continue_or_create_child(store: Store, name: str, parent_run_id: str, scratch: Path) -> str:
    """Continue the run of `scratch`, moved under `parent_run_id`, unless it has finished; else create a new run."""
    _end_killed_runs(store, scratch)
    file = scratch / RUN_ID_FILE
    if (run := _read_run(store, file)) and run.info.status != "FINISHED":
        store.client.set_tag(run.info.run_id, PARENT, parent_run_id)
        store.client.update_run(run.info.run_id, status="RUNNING")
        return str(run.info.run_id)
    run = store.client.create_run(store.experiment_id, run_name=name, tags={PARENT: parent_run_id, "stage": name})
    file.write_text(run.info.run_id, encoding="utf-8")
    return str(run.info.run_id)


def _end_killed_runs(store: Store, scratch: Path) -> None:
    """Set other runs of this stage from RUNNING to KILLED: DVC lets only one process write an output, so they are dead."""
    for file in sorted(scratch.parent.glob(f"*/{RUN_ID_FILE}")):
        if file.parent != scratch and (run := _read_run(store, file)) and run.info.status == "RUNNING":
            store.client.set_terminated(run.info.run_id, "KILLED")


def _read_run(store: Store, file: Path) -> "Run | None":
    """The run named in `file`; None if the file is missing or the store does not have the run (another server, a new database)."""
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST, ErrorCode

    if not file.is_file():
        return None
    try:
        return store.client.get_run(file.read_text(encoding="utf-8").strip())
    except MlflowException as error:
        if error.error_code == ErrorCode.Name(RESOURCE_DOES_NOT_EXIST):
            return None
        raise


def _try_settle(store: Store, parent_run_id: str) -> None:
    """Set the status of the parent: FAILED if the newest run of any of its stages failed or was killed, else FINISHED."""
    query = f"tags.`{PARENT}` = '{parent_run_id}'"
    try:
        with lock(store.root):
            children = store.client.search_runs([store.experiment_id], query, max_results=MAX_CHILDREN)  # newest first
            newest = {child.data.tags["stage"]: child.info.status for child in reversed(children)}
            failed = any(status in ("FAILED", "KILLED") for status in newest.values())
            store.client.set_terminated(parent_run_id, "FAILED" if failed else "FINISHED")
    except Exception as error:  # any error of MLflow; the stage's work is done, and a wrong status must not undo it
        logger.warning("The status of the parent run could not be written to MLflow (%s)", " ".join(str(error).split()))
