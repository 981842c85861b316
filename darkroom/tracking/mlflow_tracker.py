"""Tracker that writes to MLflow in a background thread, so that training never waits for a database or the network."""

import logging
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from darkroom.tracking.store import Store
from darkroom.tracking.tracker import Record

if TYPE_CHECKING:
    from mlflow.entities import Metric

logger = logging.getLogger(__name__)
SECONDS_BETWEEN_FLUSHES = 5.0
SECONDS_TO_CLOSE = 60.0
ATTEMPTS = 3
METRICS_PER_BATCH = 1000  # MLflow's limit
PARAMS_PER_BATCH = 100
CHARACTERS_OF_A_TAG = 5000  # MLflow's limit in its older versions, and of some servers
DESCRIPTION = "mlflow.note.content"  # the tag that the page of a run shows as its description


class MlflowTracker:
    """Writes to one existing run. After three failures of one write it stops writing, with a warning; the stage continues."""

    def __init__(self, store: Store, *, run_id: str, parent_run_id: str) -> None:
        self.parent_run_id = parent_run_id
        self.record: Record = {"experiment": store.experiment, "parent_run_id": parent_run_id, "run_id": run_id}
        self._client = store.client
        self._run_id = run_id
        self._metrics: list[Metric] = []
        self._last_flush = time.monotonic()
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="mlflow")
        self._waiting: list[Future[None]] = []
        self._given_up = False

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now = time.time_ns() // 1_000_000  # ms
        self._metrics += [Metric(name, float(value), now, step) for name, value in metrics.items()]
        if time.monotonic() - self._last_flush > SECONDS_BETWEEN_FLUSHES:
            self._flush()

    def log_image(self, name: str, image: np.ndarray, step: int | None = None) -> None:
        picture = image.copy()  # the caller may overwrite its array
        if step is None:
            self._submit(lambda: self._client.log_image(self._run_id, picture, artifact_file=f"pictures/{name}.png"))
        else:
            self._submit(lambda: self._client.log_image(self._run_id, picture, key=name, step=step, synchronous=True))

    def log_artifact(self, path: Path, folder: str = "") -> None:
        """Waits until the file is copied, because a stage soon renames its temporary outputs."""
        self._submit(lambda: self._client.log_artifact(self._run_id, str(path), folder or None))
        wait(self._waiting, timeout=SECONDS_TO_CLOSE)

    def log_params(self, params: dict[str, str]) -> None:
        """`params` has flat names. A resumed run may log the same values again."""
        from mlflow.entities import Param

        items = [Param(name, value) for name, value in params.items()]
        for start in range(0, len(items), PARAMS_PER_BATCH):
            batch = items[start : start + PARAMS_PER_BATCH]
            self._submit(lambda batch=batch: self._client.log_batch(self._run_id, params=batch))  # type: ignore[misc]

    def describe(self, text: str) -> None:
        """A text that is longer than MLflow takes loses its last lines."""
        lines = text[:CHARACTERS_OF_A_TAG].splitlines(keepends=True)
        self.set_tags({DESCRIPTION: "".join(lines if len(text) <= CHARACTERS_OF_A_TAG else lines[:-1])})

    def set_tags(self, tags: dict[str, str]) -> None:
        from mlflow.entities import RunTag

        self._submit(lambda: self._client.log_batch(self._run_id, tags=[RunTag(name, value) for name, value in tags.items()]))

    def close(self, status: str) -> None:
        """Finish all writes and end the run with `status`: FINISHED, FAILED or KILLED."""
        self._flush()
        self._submit(lambda: self._client.set_terminated(self._run_id, status))
        late = wait(self._waiting, timeout=SECONDS_TO_CLOSE).not_done
        if late:
            logger.warning("%d writes to MLflow did not finish within %.0f s; metrics.jsonl has all metrics", len(late), SECONDS_TO_CLOSE)
        self._worker.shutdown(wait=False, cancel_futures=True)

    def _flush(self) -> None:
        metrics, self._metrics, self._last_flush = self._metrics, [], time.monotonic()
        for start in range(0, len(metrics), METRICS_PER_BATCH):
            batch = metrics[start : start + METRICS_PER_BATCH]
            self._submit(lambda batch=batch: self._client.log_batch(self._run_id, metrics=batch))  # type: ignore[misc]

    def _submit(self, write: Callable[[], object]) -> None:
        self._waiting = [future for future in self._waiting if not future.done()]
        self._waiting.append(self._worker.submit(self._try, write))

    def _try(self, write: Callable[[], object]) -> None:
        for attempt in range(ATTEMPTS):
            if self._given_up:
                return
            try:
                write()
                return
            except Exception as error:  # any error of MLflow, its database or the network; none may stop the stage
                cause = error
                time.sleep(attempt)
        self._given_up = True
        logger.warning("MLflow failed (%s). The stage continues without it; metrics.jsonl has all metrics", " ".join(str(cause).split()))
