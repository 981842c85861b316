"""The tracker that a stage logs to, and the implementations that need no MLflow."""

import json
import time
from pathlib import Path
from typing import Any, Protocol

import numpy as np

Record = dict[str, str | None]


class Tracker(Protocol):
    """Metrics, images and files of one run of a stage. Calls return at once, so that training does not wait for them."""

    @property
    def record(self) -> Record:
        """The ids of the run that makes the outputs; written to data/runs/<stage>.json."""

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        """Add a point to the curve of each metric."""

    def log_image(self, name: str, image: np.ndarray, step: int | None = None) -> None:
        """`image` is uint8 (H, W, 3). With `step` it is one image of the series `name`."""

    def log_artifact(self, path: Path, folder: str = "") -> None:
        """Store a file or a folder in `folder` of the run."""

    def describe(self, text: str) -> None:
        """The description of the run, in Markdown: what its page shows first."""

    def set_tags(self, tags: dict[str, str]) -> None:
        """Tags can be searched for."""


NO_RUN: Record = {"experiment": None, "parent_run_id": None, "run_id": None}


class NullTracker:
    """Stores nothing: for the processes that do not write."""

    record: Record = NO_RUN

    def log_metrics(self, metrics: dict[str, float], step: int) -> None: ...

    def log_image(self, name: str, image: np.ndarray, step: int | None = None) -> None: ...

    def log_artifact(self, path: Path, folder: str = "") -> None: ...

    def describe(self, text: str) -> None: ...

    def set_tags(self, tags: dict[str, str]) -> None: ...


class JsonlTracker:
    """Appends one JSON line per call to `path`. Images are written as PNG to `pictures/` beside it.

    The file is closed after each line. A resumed run appends: if two lines have the same step, the later one counts.
    """

    record: Record = NO_RUN

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        self._append({"step": step, "time": round(time.time(), 3), **{name: float(value) for name, value in metrics.items()}})

    def log_image(self, name: str, image: np.ndarray, step: int | None = None) -> None:
        from PIL import Image

        suffix = "" if step is None else f"-{step:08d}"
        picture = self.path.parent / "pictures" / f"{name}{suffix}.png"
        picture.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(picture)
        self._append({"image": str(picture.relative_to(self.path.parent))})

    def log_artifact(self, path: Path, folder: str = "") -> None:
        """Only noted: the file is already in its place."""
        self._append({"artifact": path.name})

    def describe(self, text: str) -> None:
        self._append({"description": text})

    def set_tags(self, tags: dict[str, str]) -> None:
        self._append({"tags": tags})

    def _append(self, line: dict[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


class BothTrackers:
    """Passes each call to `first`, then to `second`. The record is that of `second`."""

    def __init__(self, first: Tracker, second: Tracker) -> None:
        self._trackers = (first, second)

    @property
    def record(self) -> Record:
        return self._trackers[1].record

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        for tracker in self._trackers:
            tracker.log_metrics(metrics, step)

    def log_image(self, name: str, image: np.ndarray, step: int | None = None) -> None:
        for tracker in self._trackers:
            tracker.log_image(name, image, step)

    def log_artifact(self, path: Path, folder: str = "") -> None:
        for tracker in self._trackers:
            tracker.log_artifact(path, folder)

    def describe(self, text: str) -> None:
        for tracker in self._trackers:
            tracker.describe(text)

    def set_tags(self, tags: dict[str, str]) -> None:
        for tracker in self._trackers:
            tracker.set_tags(tags)
