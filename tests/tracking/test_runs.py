"""A stage's run against a real MLflow store in a temporary folder."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from darkroom.tracking import stage_run
from darkroom.tracking.lineage import lock_hashes, pipeline_key
from darkroom.tracking.store import Store, open_store, project_root
from darkroom.tracking.tracker import NullTracker

REPOSITORY = Path(__file__).parents[2]
VARIABLES = ("MLFLOW_RUN_ID", "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "DARKROOM_TRACKING")
DVC_VARIABLES = ("DVC_ROOT", "DVC_EXP_NAME", "DVC_EXP_BASELINE_REV")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, database: Path) -> Path:
    for name in VARIABLES + DVC_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    shutil.copy(database, tmp_path)
    (tmp_path / "params.yaml").write_text("a: 1\n")
    (tmp_path / "dvc.yaml").write_text("stages: {}\n")
    return tmp_path


def run_of(project: Path, name: str = "train_vae", *, key: str = "k1", **changes: Any) -> Any:
    arguments: dict[str, Any] = {
        "params": {"lr": 1e-3, "model": {"width": [32, 64]}},
        "key": key,
        "inputs": {"shards": "abc123"},
        "params_file": project / "params.yaml",
        "scratch": project / ".scratch" / name / key,
        "enabled": True,
    }
    return stage_run(name, **arguments | changes)


def run_info(project: Path, run_id: str) -> Any:
    return open_store(project).client.get_run(run_id)


def children(store: Store, parent_run_id: str) -> list[Any]:
    return list(store.client.search_runs([store.experiment_id], f"tags.`mlflow.parentRunId` = '{parent_run_id}'"))


def git(project: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=Cat", "-c", "user.email=cat@example.org"]
    return subprocess.run(["git", *identity, *arguments], cwd=project, check=True, capture_output=True, text=True).stdout.strip()


def test_a_stage_that_ends_well_is_a_finished_child_of_a_finished_parent(project: Path) -> None:
    with run_of(project) as tracker:
        tracker.log_metrics({"train/loss": 0.5}, 10)
        tracker.log_image("samples", np.zeros((8, 8, 3), np.uint8), 10)
        tracker.describe("| KID | 0.1 |")
        record = tracker.record
    child = run_info(project, record["run_id"])
    assert child.data.tags["mlflow.note.content"] == "| KID | 0.1 |"  # what the page of a run shows first
    assert child.info.status == "FINISHED"
    assert child.info.run_name == "train_vae"
    assert child.data.metrics == {"train/loss": 0.5}
    assert child.data.params == {"lr": "0.001", "model.width": "[32, 64]"}
    assert child.data.tags["stage.key"] == "k1"
    assert child.data.tags["dvc.dep.shards"] == "abc123"
    assert child.data.tags["mlflow.parentRunId"] == record["parent_run_id"]
    assert run_info(project, record["parent_run_id"]).info.status == "FINISHED"
    assert any(path.suffix == ".png" for path in (project / "mlartifacts").rglob("*"))
    assert record["experiment"] == "darkroom"


def test_a_parent_never_reads_running_not_even_while_a_stage_does(project: Path) -> None:
    with run_of(project) as tracker:
        assert run_info(project, tracker.record["run_id"]).info.status == "RUNNING"
        assert run_info(project, tracker.record["parent_run_id"]).info.status == "FINISHED"


@pytest.mark.parametrize(
    ("error", "status"), [(RuntimeError("no"), "FAILED"), (KeyboardInterrupt(), "KILLED"), (SystemExit(1), "KILLED")], ids=lambda x: repr(x)
)
def test_a_stage_that_raises_marks_its_run_and_the_parent(project: Path, error: BaseException, status: str) -> None:
    with pytest.raises(type(error)), run_of(project) as tracker:
        raise error
    assert run_info(project, tracker.record["run_id"]).info.status == status
    assert run_info(project, tracker.record["parent_run_id"]).info.status == "FAILED"


@pytest.mark.parametrize(("ends", "status"), [("good bad", "FAILED"), ("bad good", "FINISHED")])
def test_the_newest_run_of_a_stage_decides_about_the_parent(project: Path, ends: str, status: str) -> None:
    for end in ends.split():
        with contextlib.suppress(RuntimeError), run_of(project, key=end) as tracker:
            if end == "bad":
                raise RuntimeError("no")
    assert run_info(project, tracker.record["parent_run_id"]).info.status == status


def test_stages_of_one_point_share_a_parent_and_a_changed_parameter_makes_another(project: Path) -> None:
    parents = []
    for name, params in [("train_clip", "a: 1\n"), ("train_vae", "a: 1\n"), ("train_vae", "a: 2\n")]:
        (project / "params.yaml").write_text(params)
        with run_of(project, name) as tracker:
            parents.append(tracker.record["parent_run_id"])
    assert parents[0] == parents[1] != parents[2]


def test_a_resumed_stage_continues_its_run_and_heals_the_parent(project: Path) -> None:
    with pytest.raises(RuntimeError), run_of(project) as first:
        raise RuntimeError("no")
    with run_of(project) as second:
        second.log_metrics({"loss": 1.0}, 1)
    assert second.record == first.record
    assert run_info(project, first.record["run_id"]).info.status == "FINISHED"
    assert run_info(project, first.record["parent_run_id"]).info.status == "FINISHED"


def test_a_resumed_stage_moves_to_the_point_where_it_ends(project: Path) -> None:
    with pytest.raises(RuntimeError), run_of(project) as first:
        raise RuntimeError("no")
    (project / "params.yaml").write_text("a: 1  # a comment that changes nothing of this stage\n")
    with run_of(project) as second:
        pass
    assert second.record["run_id"] == first.record["run_id"]
    assert second.record["parent_run_id"] != first.record["parent_run_id"]
    assert [run.info.run_id for run in children(open_store(project), second.record["parent_run_id"])] == [first.record["run_id"]]


def test_a_forced_repetition_of_a_finished_stage_is_a_new_run(project: Path) -> None:
    with run_of(project) as first:
        pass
    with run_of(project) as second:
        pass
    assert second.record["run_id"] != first.record["run_id"]
    assert second.record["parent_run_id"] == first.record["parent_run_id"]


def test_a_run_of_another_store_is_not_continued(project: Path, database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RuntimeError), run_of(project) as first:
        raise RuntimeError("no")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{shutil.copy(database, project / 'other.db')}")
    with run_of(project) as second:
        pass
    assert second.record["run_id"] not in (None, first.record["run_id"])


def start_and_die(project: Path) -> str:
    code = f"""
import os, signal
from pathlib import Path
from darkroom.tracking import stage_run
project = Path({str(project)!r})
with stage_run("train_vae", params={{}}, key="killed", inputs={{}}, params_file=project / "params.yaml",
               scratch=project / ".scratch/train_vae/killed", enabled=True) as tracker:
    print(tracker.record["run_id"], flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    return done.stdout.strip()


def test_a_run_whose_process_was_killed_is_ended_by_the_next_run_of_the_stage(project: Path) -> None:
    abandoned = run_of(project, key="killed")
    killed = abandoned.__enter__().record["run_id"]
    with run_of(project, key="another"):
        assert run_info(project, killed).info.status == "KILLED"


def test_a_run_whose_process_was_killed_is_continued_when_the_same_work_starts_again(project: Path) -> None:
    killed = start_and_die(project)
    assert run_info(project, killed).info.status == "RUNNING"
    with run_of(project, key="killed") as tracker:
        assert tracker.record["run_id"] == killed
    assert run_info(project, killed).info.status == "FINISHED"


def test_the_run_id_of_the_environment_is_not_taken(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_RUN_ID", "0123456789abcdef0123456789abcdef")
    with run_of(project) as tracker:
        pass
    assert run_info(project, tracker.record["run_id"]).info.status == "FINISHED"
    assert os.environ["MLFLOW_RUN_ID"] == "0123456789abcdef0123456789abcdef"


def test_an_unreachable_server_is_a_warning_and_the_numbers_are_kept(
    project: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")  # the discard port: nobody listens
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with run_of(project) as tracker:
        tracker.log_metrics({"loss": 1.5}, 1)
    assert tracker.record == {"experiment": None, "parent_run_id": None, "run_id": None}
    assert "MLflow is not available" in caplog.text
    assert json.loads((project / ".scratch/train_vae/k1/metrics.jsonl").read_text())["loss"] == 1.5


def test_tracking_can_be_switched_off(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DARKROOM_TRACKING", "off")
    (project / "mlflow.db").unlink()
    with run_of(project) as tracker:
        tracker.log_metrics({"loss": 1.5}, 1)
    assert tracker.record["run_id"] is None
    assert not (project / "mlflow.db").exists()
    assert (project / ".scratch/train_vae/k1/metrics.jsonl").is_file()


def test_another_word_than_on_or_off_is_refused(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DARKROOM_TRACKING", "no")
    with pytest.raises(ValueError, match="DARKROOM_TRACKING is 'no'; must be `on`"), run_of(project):
        pass


def test_the_processes_that_do_not_write_leave_nothing(project: Path) -> None:
    with run_of(project, enabled=False) as tracker:
        assert isinstance(tracker, NullTracker)
    assert not (project / ".scratch").exists()


def test_a_deleted_experiment_is_restored(project: Path) -> None:
    store = open_store(project)
    store.client.delete_experiment(store.experiment_id)
    with run_of(project) as tracker:
        assert tracker.record["run_id"]


def test_the_experiment_can_be_named_by_the_environment(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "kittens")
    with run_of(project) as tracker:
        assert tracker.record["experiment"] == "kittens"


def test_inside_a_dvc_experiment_the_run_goes_to_the_main_checkout_under_its_name(
    project: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkout = tmp_path_factory.mktemp("checkout")
    (checkout / "params.yaml").write_text("a: 1\n")
    monkeypatch.setenv("DVC_ROOT", str(project))
    monkeypatch.setenv("DVC_EXP_NAME", "furry-tail")
    with run_of(checkout) as tracker:
        pass
    assert not (checkout / "mlflow.db").exists()
    assert run_info(project, tracker.record["parent_run_id"]).info.run_name == "furry-tail"


def test_commit_and_uncommitted_changes_are_tagged(project: Path) -> None:
    git(project, "init", "-q")
    with run_of(project) as before_the_first_commit:
        pass
    assert "git.commit" not in run_info(project, before_the_first_commit.record["run_id"]).data.tags
    git(project, "add", "params.yaml", "dvc.yaml")
    git(project, "commit", "-qm", "first")
    tags = []
    for params in ("a: 1\n", "a: 2\n"):
        (project / "params.yaml").write_text(params)
        with run_of(project) as tracker:
            pass
        tags.append(run_info(project, tracker.record["run_id"]).data.tags)
    assert [tag["git.commit"] for tag in tags] == [git(project, "rev-parse", "HEAD")] * 2
    assert [tag["git.dirty"] for tag in tags] == ["false", "true"]
    assert run_info(project, tracker.record["parent_run_id"]).info.run_name == git(project, "rev-parse", "HEAD")[:7]


def test_it_works_on_a_machine_without_git(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with run_of(project) as tracker:
        pass
    assert run_info(project, tracker.record["run_id"]).info.status == "FINISHED"


def test_the_md5s_of_dvc_lock_are_tagged(project: Path) -> None:
    lock = "schema: '2.0'\nstages:\n  ingest:\n    deps: [{path: data/raw, md5: r1.dir}]\n    outs: [{path: data/shards, md5: s1.dir}]\n"
    (project / "dvc.lock").write_text(lock)
    assert lock_hashes(project) == {"data/raw": "r1.dir", "data/shards": "s1.dir"}
    with run_of(project) as tracker:
        pass
    assert run_info(project, tracker.record["run_id"]).data.tags["dvc.md5.shards"] == "s1.dir"


def test_the_key_of_a_point_changes_with_each_thing_that_defines_it(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def key() -> str:
        return pipeline_key(project, project / "params.yaml")

    keys = [key(), key()]
    (project / "params.yaml").write_text("a: 3\n")
    keys.append(key())
    (project / "dvc.yaml").write_text("stages: {a: {cmd: b}}\n")
    keys.append(key())
    git(project, "init", "-q")
    git(project, "commit", "-q", "--allow-empty", "-m", "first")
    keys.append(key())
    monkeypatch.setenv("DVC_EXP_NAME", "furry-tail")
    keys.append(key())
    monkeypatch.setenv("DVC_EXP_BASELINE_REV", "f00")
    keys.append(key())
    assert keys[0] == keys[1]
    assert len(set(keys)) == 6


def test_the_root_is_the_nearest_folder_that_looks_like_a_project(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (project / "data" / "vae").mkdir(parents=True)
    assert project_root(project / "data" / "vae") == project
    monkeypatch.chdir(project / "data")
    assert project_root() == project


@pytest.mark.slow
def test_four_first_users_at_once_make_one_database_and_one_parent(project: Path) -> None:
    code = f"""
import sys
from pathlib import Path
from darkroom.tracking import stage_run
project = Path({str(project)!r})
with stage_run(sys.argv[1], params={{}}, key="k", inputs={{}}, params_file=project / "params.yaml",
               scratch=project / ".scratch" / sys.argv[1] / "k", enabled=True) as tracker:
    print(tracker.record["parent_run_id"], flush=True)
"""
    (project / "mlflow.db").unlink()
    commands = [[sys.executable, "-c", code, f"stage_{number}"] for number in range(4)]
    processes = [subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) for command in commands]
    parents = [process.communicate()[0].strip() for process in processes]
    assert len(set(parents)) == 1
    assert [run.info.status for run in children(open_store(project), parents[0])] == ["FINISHED"] * 4
