import json
import logging
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from darkroom.tracking import mlflow_tracker
from darkroom.tracking.mlflow_tracker import MlflowTracker
from darkroom.tracking.store import Store
from darkroom.tracking.tracker import BothTrackers, JsonlTracker, NullTracker

PICTURE = np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3)


class Client:
    """Remembers what it is told; sleeps or raises when asked to."""

    def __init__(self, *, seconds: float = 0.0, failures: int = 0) -> None:
        self.seconds, self.failures = seconds, failures
        self.metrics: list[tuple[str, float, int]] = []
        self.tags: list[tuple[str, str]] = []
        self.status: str | None = None
        self.images: list[np.ndarray] = []
        self.copies: list[str] = []

    def _work(self) -> None:
        time.sleep(self.seconds)
        if self.failures:
            self.failures -= 1
            raise RuntimeError("database is locked")

    def log_batch(self, run_id: str, metrics: Any = (), params: Any = (), tags: Any = ()) -> None:
        self._work()
        self.tags += [(tag.key, tag.value) for tag in tags]
        self.metrics += [(metric.key, metric.value, metric.step) for metric in metrics]

    def log_image(self, run_id: str, image: np.ndarray, **_: Any) -> None:
        self._work()
        self.images.append(image)

    def log_artifact(self, run_id: str, path: str, folder: str | None) -> None:
        self._work()
        self.copies.append(Path(path).read_text())

    def set_terminated(self, run_id: str, status: str) -> None:
        self._work()
        self.status = status


def tracker_on(client: Client) -> MlflowTracker:
    store = Store(client, "test", "1", "sqlite://", Path())  # type: ignore[arg-type]
    return MlflowTracker(store, run_id="run", parent_run_id="parent")


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mlflow_tracker, "time", SimpleNamespace(monotonic=time.monotonic, time_ns=time.time_ns, sleep=lambda _: None))


def test_every_line_of_the_jsonl_tracker_is_on_disk_when_the_call_returns(tmp_path: Path) -> None:
    tracker = JsonlTracker(tmp_path / "run" / "metrics.jsonl")
    tracker.log_metrics({"train/loss": np.float32(0.5)}, 3)  # type: ignore[dict-item]
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert lines[0]["train/loss"] == 0.5
    assert lines[0]["step"] == 3


def test_the_jsonl_tracker_appends_to_what_an_interrupted_run_left(tmp_path: Path) -> None:
    for step in (1, 2):
        JsonlTracker(tmp_path / "metrics.jsonl").log_metrics({"loss": 1.0}, step)
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2


def test_the_jsonl_tracker_keeps_pictures_files_and_tags(tmp_path: Path) -> None:
    tracker = JsonlTracker(tmp_path / "metrics.jsonl")
    tracker.log_image("samples", PICTURE, 7)
    tracker.log_image("grid", PICTURE)
    tracker.log_artifact(tmp_path / "report.html")
    tracker.set_tags({"colour": "black"})
    tracker.describe("# Cats")
    assert np.array_equal(np.asarray(Image.open(tmp_path / "pictures" / "samples-00000007.png")), PICTURE)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "pictures" / "grid.png")), PICTURE)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines[2:] == [{"artifact": "report.html"}, {"tags": {"colour": "black"}}, {"description": "# Cats"}]


def test_both_trackers_hear_everything_and_the_second_gives_the_record(tmp_path: Path) -> None:
    client = Client()
    second = tracker_on(client)
    both = BothTrackers(JsonlTracker(tmp_path / "metrics.jsonl"), second)
    (tmp_path / "file").write_text("hello")
    both.log_metrics({"loss": 2.0}, 1)
    both.log_image("a", PICTURE, 1)
    both.log_artifact(tmp_path / "file")
    both.set_tags({"a": "b"})
    both.describe("# Cats")
    second.close("FINISHED")
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 5
    assert client.tags == [("a", "b"), ("mlflow.note.content", "# Cats")]
    assert client.metrics == [("loss", 2.0, 1)]
    assert len(client.images) == 1
    assert client.copies == ["hello"]
    assert both.record == {"experiment": "test", "parent_run_id": "parent", "run_id": "run"}


def test_the_null_tracker_keeps_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tracker = NullTracker()
    tracker.log_metrics({"loss": 1.0}, 1)
    tracker.log_image("a", PICTURE)
    tracker.log_artifact(tmp_path)
    tracker.set_tags({})
    tracker.describe("# Cats")
    assert list(tmp_path.iterdir()) == []
    assert tracker.record["run_id"] is None


def test_training_does_not_wait_for_a_slow_mlflow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mlflow_tracker, "SECONDS_BETWEEN_FLUSHES", 0.0)
    client = Client(seconds=0.1)
    tracker = tracker_on(client)
    started = time.monotonic()
    for step in range(5):
        tracker.log_metrics({"loss": 1.0}, step)
        tracker.log_image("samples", PICTURE, step)
    assert time.monotonic() - started < 0.1
    tracker.close("FINISHED")
    assert [step for _, _, step in client.metrics] == list(range(5))
    assert len(client.images) == 5


def test_metrics_are_sent_while_the_run_goes_on_not_only_at_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mlflow_tracker, "SECONDS_BETWEEN_FLUSHES", 0.0)
    client = Client()
    tracker = tracker_on(client)
    tracker.log_metrics({"loss": 1.0}, 1)
    deadline = time.monotonic() + 5
    while not client.metrics and time.monotonic() < deadline:
        time.sleep(0.01)
    assert client.metrics
    tracker.close("FINISHED")


def test_a_batch_is_never_larger_than_mlflow_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    client = Client()
    monkeypatch.setattr(client, "log_batch", lambda run_id, metrics=(), params=(), tags=(): sizes.append(len(metrics) + len(params)))
    tracker = tracker_on(client)
    for step in range(1500):
        tracker.log_metrics({"loss": 1.0}, step)
    tracker.log_params({f"p{i}": "1" for i in range(150)})
    tracker.close("FINISHED")
    assert sorted(sizes) == [50, 100, 500, 1000]


def test_a_description_loses_the_lines_that_mlflow_would_refuse() -> None:
    client = Client()
    tracker = tracker_on(client)
    tracker.describe("x" * 4990 + "\nlast words\nlost")
    tracker.describe("x" * 4990 + "\nend words")
    tracker.close("FINISHED")
    assert [text for _, text in client.tags] == ["x" * 4990 + "\n", "x" * 4990 + "\nend words"]


def test_a_picture_may_be_overwritten_after_it_was_logged() -> None:
    client = Client(seconds=0.05)
    tracker = tracker_on(client)
    picture = PICTURE.copy()
    tracker.log_image("samples", picture, 1)
    picture[:] = 0
    tracker.close("FINISHED")
    assert np.array_equal(client.images[0], PICTURE)


def test_a_file_is_copied_before_it_takes_its_real_name(tmp_path: Path) -> None:
    client = Client(seconds=0.05)
    tracker = tracker_on(client)
    (tmp_path / "report.tmp").write_text("hello")
    tracker.log_artifact(tmp_path / "report.tmp")
    (tmp_path / "report.tmp").rename(tmp_path / "report")
    tracker.close("FINISHED")
    assert client.copies == ["hello"]


def test_a_write_that_fails_twice_is_made_the_third_time(caplog: pytest.LogCaptureFixture) -> None:
    client = Client(failures=2)
    tracker = tracker_on(client)
    tracker.log_metrics({"loss": 1.0}, 1)
    tracker.close("FINISHED")
    assert client.metrics == [("loss", 1.0, 1)]
    assert client.status == "FINISHED"
    assert not caplog.records


def test_a_write_that_fails_for_good_is_one_warning_and_no_error(caplog: pytest.LogCaptureFixture) -> None:
    client = Client(failures=100)
    tracker = tracker_on(client)
    for step in range(3):
        tracker.log_metrics({"loss": 1.0}, step)
        tracker.log_image("samples", PICTURE, step)
    with caplog.at_level(logging.WARNING):
        tracker.close("FINISHED")
    assert [record.getMessage() for record in caplog.records] == [
        "MLflow failed (database is locked). The stage continues without it; metrics.jsonl has all metrics"
    ]
    assert client.failures == 97


def test_a_hanging_mlflow_delays_the_end_of_a_stage_by_a_limited_time(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(mlflow_tracker, "SECONDS_TO_CLOSE", 0.1)
    tracker = tracker_on(Client(seconds=1.0))
    tracker.log_metrics({"loss": 1.0}, 1)
    started = time.monotonic()
    tracker.close("FINISHED")
    assert time.monotonic() - started < 0.8
    assert "2 writes to MLflow did not finish" in caplog.text


def test_importing_the_package_does_not_load_mlflow() -> None:
    code = "import sys, darkroom.tracking, darkroom.tracking.registry, darkroom.tracking.bundle; sys.exit('mlflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=Path(__file__).parents[2]).returncode == 0
