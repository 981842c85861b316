"""The flow on a toy DVC project, with Prefect's own temporary server."""

import asyncio
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from dvc.repo import Repo
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey
from prefect.logging import disable_run_logger
from prefect.testing.utilities import prefect_test_harness
from pydantic import ValidationError

from flows import pipeline as module
from flows.artifacts import markdown
from flows.pipeline import RunParams, pipeline, reproduce

REPOSITORY = Path(__file__).parents[2]
GRAPH = """
stages:
  first:
    desc: The first
    cmd: python first.py
    deps: [raw, first.py]
    outs: [first.txt]
    meta: {prefect: {retries: 1, retry_delay: 0, timeout: 60, grace: 10, tags: [cpu]}}
  second:
    cmd: python -c "open('second.txt', 'w').write(open('first.txt').read())"
    deps: [first.txt]
    outs: [second.txt]
  aside:
    cmd: python -c "open('aside.txt', 'w').write('x')"
    outs: [aside.txt]
"""
GOOD = "open('first.txt', 'w').write(open('raw').read())\n"
COUNT = "import pathlib; log = pathlib.Path('attempts'); log.write_text((log.read_text() if log.exists() else '') + 'x')\n"


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """raw.dvc -> first -> second, and `aside`; the current folder is the project."""
    Repo.init(str(tmp_path), no_scm=True)
    (tmp_path / "dvc.yaml").write_text(GRAPH)
    (tmp_path / "first.py").write_text(GOOD)
    (tmp_path / "raw").write_text("photo")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    with Repo(str(tmp_path)) as repo:
        repo.add("raw")
    return tmp_path


def reproduce_once(toy: Path, name: str) -> Any:
    with disable_run_logger():
        return asyncio.run(reproduce.fn(name, toy, [], 10.0))


def test_a_stage_is_run_then_cached_then_restored(toy: Path) -> None:
    states = [reproduce_once(toy, "raw.dvc").name, reproduce_once(toy, "first").name, reproduce_once(toy, "first").name]
    (toy / "raw").write_text("another photo")
    states += [reproduce_once(toy, "raw.dvc").name, reproduce_once(toy, "first").name]
    (toy / "raw").write_text("photo")
    states += [reproduce_once(toy, "raw.dvc").name, reproduce_once(toy, "first").name]
    assert states == ["Cached", "Completed", "Cached", "Completed", "Completed", "Completed", "Restored"]
    assert (toy / "first.txt").read_text() == "photo"


def test_a_failing_stage_fails_in_its_own_words(toy: Path) -> None:
    (toy / "first.py").write_text("import sys; sys.exit('first: the photos are blurred')\n")
    state = reproduce_once(toy, "first")
    assert state.is_failed()
    assert state.message == "first: the photos are blurred"


def test_a_stage_that_says_nothing_fails_in_dvcs_words(toy: Path) -> None:
    (toy / "first.py").write_text("import sys; sys.exit(3)\n")
    assert reproduce_once(toy, "first").message == "ERROR: failed to reproduce 'first': failed to run: python first.py, exited with 3"


@pytest.mark.parametrize(("field", "value"), [("jobs", 0), ("jobs", 9), ("targets", "first"), ("colour", "red")])
def test_the_form_refuses_what_makes_no_sense(field: str, value: Any) -> None:
    with pytest.raises(ValidationError):
        RunParams(**{field: value})


def test_the_report_has_the_story_the_metrics_and_with_git_their_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "metrics.json").write_text('{"kid": 2.0}')
    (tmp_path / "dvc.yaml").write_text("stages: {bake: {cmd: 'true', outs: [bread]}}\nmetrics: [metrics.json]\n")
    Repo.init(str(tmp_path), no_scm=True)
    without_git = markdown(tmp_path)
    assert without_git.startswith("## Metrics\n")  # no stage has told anything yet
    (tmp_path / "data" / "report").mkdir(parents=True)
    (tmp_path / "data" / "report" / "report.md").write_text("# Evaluation\n\n**Cats, all of them.**\n")
    without_git = markdown(tmp_path)
    assert without_git.startswith("# Evaluation\n\n**Cats, all of them.**\n")
    assert f"The folder: `{tmp_path / 'data' / 'report'}`" in without_git
    assert "## Metrics\n" in without_git
    assert "| metrics.json | 2.0   |" in without_git
    assert '["bake"]' in without_git
    for arguments in (["init", "-q"], ["add", "-f", "metrics.json", "dvc.yaml"], ["commit", "-qm", "first"]):
        subprocess.run(["git", "-c", "user.name=Cat", "-c", "user.email=cat@example.org", *arguments], check=True)
    (tmp_path / ".dvc" / "config").write_text("")
    (tmp_path / "metrics.json").write_text('{"kid": 1.5}')
    with_git = markdown(tmp_path)
    assert "## Metrics since the last commit" in with_git
    assert "-0.5" in with_git


@pytest.fixture(scope="module")
def prefect() -> Iterator[None]:
    with prefect_test_harness(server_startup_timeout=120):
        yield


@pytest.fixture
def slow_pipeline(prefect: None, toy: Path) -> Path:
    return toy


def run(**params: Any) -> tuple[Any, dict[str, dict[str, str]]]:
    """The final state of a flow run, and the rows of its table by stage."""
    state = pipeline(RunParams(**params), return_state=True)
    table = next(item for item in artifacts(state) if item.key == "stages")
    return state, {row["stage"]: row for row in json.loads(table.data)}


def artifacts(state: Any) -> list[Any]:
    with get_client(sync_client=True) as client:
        kept = client.read_artifacts(artifact_filter=ArtifactFilter(key=ArtifactFilterKey(exists_=True)), limit=200)
        return [item for item in kept if item.flow_run_id == state.state_details.flow_run_id]


@pytest.mark.slow
class TestPipeline:
    def test_what_ran_and_what_was_cached_is_seen_in_the_states(self, slow_pipeline: Path) -> None:
        state, rows = run()
        assert state.is_completed()
        assert {name: row["state"] for name, row in rows.items()} == {
            "raw.dvc": "Cached",
            "first": "Completed",
            "second": "Completed",
            "aside": "Completed",
        }
        assert rows["first"]["what"] == "The first"
        assert rows["first"]["time"].endswith(" s")
        assert {row["state"] for row in run()[1].values()} == {"Cached"}
        forced = {name: row["state"] for name, row in run(targets=["first"], force=True)[1].items()}
        assert forced == {"raw.dvc": "Cached", "first": "Completed"}

    def test_the_flow_gives_the_same_lock_file_as_dvc_repro(self, slow_pipeline: Path) -> None:
        run(jobs=3)
        lock = (slow_pipeline / "dvc.lock").read_text()
        (slow_pipeline / "dvc.lock").unlink()
        subprocess.run([sys.executable, "-m", "dvc", "repro", "-q"], check=True)
        assert sorted(lock.splitlines()) == sorted((slow_pipeline / "dvc.lock").read_text().splitlines())

    def test_a_new_photo_is_recorded_by_its_data_source(self, slow_pipeline: Path) -> None:
        run()
        before = (slow_pipeline / "raw.dvc").read_text()
        (slow_pipeline / "raw").write_text("another photo")
        _, rows = run()
        assert rows["first"]["state"] == rows["second"]["state"] == "Completed"
        assert rows["aside"]["state"] == "Cached"
        assert (slow_pipeline / "raw.dvc").read_text() != before

    def test_after_a_failure_nothing_downstream_runs_and_the_rest_does(self, slow_pipeline: Path) -> None:
        (slow_pipeline / "first.py").write_text(COUNT + "import sys; sys.exit('the photos are blurred')\n")
        state, rows = run()
        assert state.is_failed()
        assert state.message == "first: the photos are blurred"
        assert rows["first"]["state"] == "Failed"
        assert rows["second"]["state"] == "Not run"
        assert rows["aside"]["state"] == "Completed"
        assert not (slow_pipeline / "second.txt").exists()
        assert (slow_pipeline / "attempts").read_text() == "xx"  # one retry, as its policy says

    def test_a_stage_over_its_time_is_interrupted_and_the_retry_starts_after_its_end(self, slow_pipeline: Path) -> None:
        (slow_pipeline / "dvc.yaml").write_text(GRAPH.replace("timeout: 60", "timeout: 6"))
        slow_once = (
            "import os, sys, time\n"
            "if os.path.exists('checkpoint'): open('first.txt', 'w').write('resumed'); sys.exit()\n"
            "try: time.sleep(50)\n"
            "except KeyboardInterrupt: time.sleep(1); open('checkpoint', 'w').write('x'); sys.exit(1)\n"
        )
        (slow_pipeline / "first.py").write_text(slow_once)
        state, rows = run(targets=["first"])
        assert state.is_completed(), state.message
        assert (slow_pipeline / "first.txt").read_text() == "resumed"
        assert rows["first"]["state"] == "Completed"

    def test_the_page_shows_graph_metrics_and_progress(self, slow_pipeline: Path) -> None:
        lines = "".join(f'print(\'::progress {{"step": {step}, "total": 4}}\')\n' for step in (1, 3))
        (slow_pipeline / "first.py").write_text(GOOD + lines)
        state, _ = run(targets=["first"])
        found = {item.key: item for item in artifacts(state)}
        assert "```mermaid" in found["report"].data
        assert "first" in found["report"].data
        assert "## Metrics\n" in found["report"].data
        assert float(found["progress-first"].data) == 75.0

    def test_the_arrows_and_tags_of_the_tasks_are_those_of_dvc_yaml(self, slow_pipeline: Path) -> None:
        state, _ = run(targets=["second"])
        with get_client(sync_client=True) as client:
            tasks = {task.name: task for task in client.read_task_runs(limit=200) if task.flow_run_id == state.state_details.flow_run_id}
        ids = {str(task.id): name for name, task in tasks.items()}
        waits = {
            name: {ids[str(item.id)] for item in task.task_inputs["wait_for"]}
            for name, task in tasks.items()
            if "wait_for" in task.task_inputs
        }
        assert waits["first"] == {"raw.dvc"}
        assert waits["second"] == {"first"}
        assert "cpu" in tasks["first"].tags

    def test_stages_that_do_not_need_each_other_can_run_at_a_time(self, slow_pipeline: Path) -> None:
        meet = "import os, time\nopen({mine!r}, 'w').close()\nwhile not os.path.exists({other!r}): time.sleep(0.1)\n"
        (slow_pipeline / "a.py").write_text(meet.format(mine="a.here", other="b.here"))
        (slow_pipeline / "b.py").write_text(meet.format(mine="b.here", other="a.here"))
        timely = "meta: {prefect: {timeout: 30, grace: 5}}"
        (slow_pipeline / "dvc.yaml").write_text(f"stages:\n  a: {{cmd: python a.py, {timely}}}\n  b: {{cmd: python b.py, {timely}}}\n")
        state, _ = run(targets=["a", "b"], jobs=2)
        assert state.is_completed(), state.message


def start_flow(toy: Path, *arguments: str) -> "subprocess.Popen[str]":
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "PREFECT_HOME": str(toy / ".prefect")}
    environment |= {"PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120", "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
    command = [sys.executable, "-m", "flows.pipeline", *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    return subprocess.Popen(command, cwd=toy, env=environment, **pipes)  # type: ignore[call-overload, no-any-return]


@pytest.mark.slow
@pytest.mark.parametrize("send", [os.killpg, os.kill], ids=["Ctrl-C in a terminal", "SIGTERM"])
def test_an_interrupted_flow_lets_its_stage_save_and_leaves_no_process(toy: Path, send: Callable[[int, int], None]) -> None:
    """No retry either, although the policy allows one. A terminal signals the whole group, Prefect's server too."""
    patient = (
        "import os, sys, time\n"
        "open('attempts', 'a').write(str(os.getpid()) + ' ')\n"
        "try: time.sleep(100)\n"
        "except KeyboardInterrupt: open('checkpoint', 'w').write('saved'); sys.exit(1)\n"
    )
    (toy / "first.py").write_text(patient)
    flow = start_flow(toy)
    deadline = time.monotonic() + 120
    while not (toy / "attempts").exists():
        assert flow.poll() is None, flow.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    send(flow.pid, signal.SIGINT if send is os.killpg else signal.SIGTERM)
    out, err = flow.communicate(timeout=60)
    assert flow.returncode != 0
    assert "The same command resumes from the last checkpoints." in err, out + err
    assert (toy / "checkpoint").read_text() == "saved"
    (pid,) = (toy / "attempts").read_text().split()
    assert not psutil.pid_exists(int(pid))
    assert not [process for process in psutil.process_iter() if _group_of(process) == flow.pid]
    assert not (toy / "second.txt").exists()


def _group_of(process: psutil.Process) -> int | None:
    try:
        return os.getpgid(process.pid)
    except ProcessLookupError:
        return None


@pytest.mark.slow
def test_the_command_fails_with_the_words_of_the_stage(toy: Path) -> None:
    (toy / "first.py").write_text("import sys; sys.exit('the photos are blurred')\n")
    flow = start_flow(toy, "second")
    out, err = flow.communicate(timeout=180)
    assert flow.returncode == 1
    assert "\n\nfirst: the photos are blurred\n" in err
    assert "Traceback" not in err
    with sqlite3.connect(toy / ".prefect" / "prefect.db") as database:  # what `make ui` shows afterwards
        kept = set(database.execute("SELECT name, state_name FROM task_run"))
    assert kept == {("raw.dvc", "Cached"), ("first", "Failed"), ("second", "NotReady")}
    assert "second" in out
    assert "Not run" in out


def test_a_slip_in_the_arguments_is_found_at_once(toy: Path) -> None:
    flow = start_flow(toy, "frist")
    _, err = flow.communicate(timeout=60)
    assert flow.returncode == 1
    assert err.strip() == "flows.pipeline: 'frist' is not a stage of dvc.yaml; did you mean first?"


def test_help_names_every_option() -> None:
    done = subprocess.run([sys.executable, "-m", "flows.pipeline", "--help"], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    for option in ("targets", "--force", "--pull", "--jobs"):
        assert option in done.stdout
    assert module.__doc__.split(":")[0] in done.stdout
