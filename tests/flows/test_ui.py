"""The pages of MLflow and Prefect as real servers on loopback ports, started and stopped by the tests."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from flows import servers, ui
from flows.processes import Running
from flows.servers import Server, choose_port, start, start_prefect, wait_until_up
from flows.ui import serve

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def no_servers_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_TRACKING_URI", "PREFECT_API_URL", "DVC_ROOT"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        probe.listen()
        yield int(probe.getsockname()[1])


def test_the_usual_port_is_taken_if_it_is_free_and_another_one_if_not(taken: int) -> None:
    free = choose_port(None, taken)
    assert free != taken
    assert choose_port(None, free) == free
    assert choose_port(free, taken) == free


def test_a_port_that_was_asked_for_and_is_taken_is_an_error(taken: int) -> None:
    with pytest.raises(ValueError, match=f"Port {taken} is in use; give another port"):
        choose_port(taken, 5000)


def test_a_server_that_does_not_start_is_reported_with_the_end_of_its_log(tmp_path: Path) -> None:
    argv = [sys.executable, "-c", "import sys; print('no such database'); sys.exit(1)"]
    server = start("MLflow", argv, port=1, health="/health", running=Running(), logs=tmp_path / "logs")
    with pytest.raises(ValueError, match=r"MLflow did not start on http://127.0.0.1:1. The end of .*mlflow-1.log:\nno such database"):
        wait_until_up(server)


def test_a_server_that_never_answers_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servers, "SECONDS_TO_START", 0.5)
    running = Running()
    server = start("MLflow", ["sleep", "60"], port=1, health="/health", running=running, logs=tmp_path)
    with pytest.raises(ValueError, match="did not start"):
        wait_until_up(server)
    running.interrupt_all()
    assert server.process.wait(timeout=5) != 0


def test_a_server_that_ends_by_itself_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def start_briefly(port: int, running: Running) -> Server:
        return Server("MLflow", subprocess.Popen(["true"]), "", "", "", tmp_path / "mlflow.log")

    monkeypatch.setattr(ui, "start_mlflow", start_briefly)
    monkeypatch.setattr(ui, "start_prefect", start_briefly)
    monkeypatch.setattr(ui, "wait_until_up", lambda server: None)
    with pytest.raises(ValueError, match=r"MLflow has ended unexpectedly; see .*mlflow.log"):
        serve(None, None, Running())


def test_servers_that_are_elsewhere_are_named_and_not_started(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow.example:5000")
    monkeypatch.setenv("PREFECT_API_URL", "http://prefect.example:4200/api")
    serve(None, None, Running())
    assert capsys.readouterr().out == (
        "MLflow   http://mlflow.example:5000 (MLFLOW_TRACKING_URI)\nPrefect  http://prefect.example:4200 (PREFECT_API_URL)\n"
    )


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "params.yaml").write_text("a: 1\n")
    prefect = {"PREFECT_HOME": str(tmp_path / ".prefect"), "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
    return {**os.environ, **prefect, "PYTHONPATH": str(REPOSITORY)}


@pytest.mark.slow
def test_both_pages_answer_and_ctrl_c_leaves_no_process(tmp_path: Path, environment: dict[str, str], taken: int) -> None:
    mlflow, prefect = choose_port(None, taken), choose_port(None, taken)
    command = [sys.executable, "-m", "flows.ui", "--mlflow-port", str(mlflow), "--prefect-port", str(prefect)]
    program = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert program.stdout is not None
        printed = ""
        while "Ctrl-C" not in printed:
            line = program.stdout.readline()
            assert line, program.stderr.read() if program.stderr else ""
            printed += line
        assert f"http://127.0.0.1:{mlflow}" in printed
        assert f"PREFECT_API_URL=http://127.0.0.1:{prefect}/api" in printed
        for address in (f"http://127.0.0.1:{mlflow}/", f"http://127.0.0.1:{prefect}/"):
            assert b"<html" in urllib.request.urlopen(address).read()
        settings = json.load(urllib.request.urlopen(f"http://127.0.0.1:{prefect}/ui-settings"))
        assert settings["api_url"] == f"http://127.0.0.1:{prefect}/api"
        assert (tmp_path / "mlflow.db").is_file()
        children = psutil.Process(program.pid).children(recursive=True)
        assert len(children) >= 2
    finally:
        program.send_signal(signal.SIGINT)
        out, err = program.communicate(timeout=60)
    assert program.returncode == 0, err
    assert out.endswith("Stopping.\n")
    assert psutil.wait_procs(children, timeout=5)[1] == []


@pytest.mark.slow
def test_a_scheduled_run_appears(tmp_path: Path, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Prefect 3.8 with SQLAlchemy 2.1 serves its pages, runs flows, and silently never schedules one; hence the pins."""
    running = Running()
    monkeypatch.chdir(tmp_path)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    try:
        server = start_prefect(choose_port(), running)
        wait_until_up(server)
        api = f"{server.address}/api"
        flow = _post(f"{api}/flows/", {"name": "pipeline"})
        schedule = {"active": True, "schedule": {"interval": 3600}}
        _post(f"{api}/deployments/", {"name": "nightly", "flow_id": flow["id"], "schedules": [schedule]})
        deadline = time.monotonic() + 90
        while not (runs := _post(f"{api}/flow_runs/filter", {})):
            assert time.monotonic() < deadline, server.log.read_text()
            time.sleep(0.5)
        assert {run["state_type"] for run in runs} == {"SCHEDULED"}
        _post(f"{api}/work_pools/filter", {"work_pools": None})  # null for a field with a default: fastapi 0.151 refuses it
    finally:
        running.interrupt_all()


def _post(url: str, body: dict[str, object]) -> list[dict[str, str]] | dict[str, str]:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    for _ in range(50):
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return json.load(answer)  # type: ignore[no-any-return]
        except urllib.error.HTTPError as error:
            if error.code != 503:  # the database is busy just after the start; Prefect's own client waits too
                raise
            time.sleep(0.3)
    raise AssertionError(f"{url} stays unavailable")


def test_help_names_the_ports() -> None:
    done = subprocess.run([sys.executable, "-m", "flows.ui", "--help"], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert "--mlflow-port" in done.stdout
    assert "--prefect-port" in done.stdout
