"""Servers on loopback ports, each in its own process group, so that Ctrl-C in a terminal reaches only this process."""

import atexit
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from prefect.settings import PREFECT_API_URL, temporary_settings

from flows.processes import Running

HOST = "127.0.0.1"
LOGS = Path(".scratch") / "servers"
SECONDS_TO_START = 180
SECONDS_TO_STOP = 10
SECONDS_BETWEEN_LOOKS = 0.3


@dataclass(frozen=True)
class Server:
    """A server process and its addresses."""

    name: str
    process: subprocess.Popen[bytes]
    address: str
    page: str  # to open in a browser
    health: str  # answers 200 when the server is up
    log: Path


def start(
    name: str,
    argv: list[str],
    *,
    port: int,
    health: str,
    running: Running,
    page: str = "/",
    settings: dict[str, str] | None = None,
    logs: Path = LOGS,
) -> Server:
    """Start a server. `settings` are added to its environment; its output goes to a file in `logs`."""
    logs.mkdir(parents=True, exist_ok=True)
    log, address = logs / f"{name.lower()}-{port}.log", f"http://{HOST}:{port}"
    with log.open("wb") as file:
        process = subprocess.Popen(
            argv,
            env=os.environ | (settings or {}),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    running.add(process.pid, SECONDS_TO_STOP)
    return Server(name, process, address, address + page, address + health, log)


def start_mlflow(port: int, running: Running) -> Server:
    argv = [sys.executable, "-m", "darkroom.tracking.server", "--host", HOST, "--port", str(port)]
    page = "/#/experiments?workflowType=machine_learning"  # else MLflow opens its page of chats and prompts
    return start("MLflow", argv, port=port, health="/health", running=running, page=page)


def start_prefect(port: int, running: Running) -> Server:
    argv = [sys.executable, "-m", "prefect", "server", "start", "--host", HOST, "--port", str(port)]
    settings = {"PREFECT_SERVER_UI_API_URL": f"http://{HOST}:{port}/api"}  # else the page reads its data from port 4200
    return start("Prefect", argv, port=port, health="/api/ready", running=running, settings=settings)


def wait_until_up(server: Server) -> None:
    """Wait until the server answers.

    Raises:
        ValueError: the server ended, or did not answer in time. The message has the end of its log.
    """
    deadline = time.monotonic() + SECONDS_TO_START
    while time.monotonic() < deadline and server.process.poll() is None:
        try:
            with urllib.request.urlopen(server.health, timeout=2):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(SECONDS_BETWEEN_LOOKS)
    last_lines = "\n".join(server.log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:])
    raise ValueError(f"{server.name} did not start on {server.address}. The end of {server.log}:\n{last_lines}")


def choose_port(wanted: int | None = None, usual: int | None = None) -> int:
    """Return `wanted`. Without it return `usual`, or any free port if that is in use.

    Raises:
        ValueError: `wanted` is in use.
    """
    if wanted is not None:
        if not _is_free(wanted):
            raise ValueError(f"Port {wanted} is in use; give another port, or none to use a free one.")
        return wanted
    if usual is not None and _is_free(usual):
        return usual
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port whose last server has just ended is free
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


@contextmanager
def prefect_api() -> Iterator[None]:
    """Prefect's API for one flow run: the server that PREFECT_API_URL names, or our own one until this process ends.

    Prefect would start a server in our process group: Ctrl-C would end it before the flow could report its own end.
    """
    if PREFECT_API_URL.value():
        yield
        return
    running = Running()
    atexit.register(running.interrupt_all)  # runs after Prefect's handlers, which send the last logs and events
    server = start_prefect(choose_port(), running)
    print("Starting a Prefect server for this run. To use a permanent server, run `make ui` and set PREFECT_API_URL.", flush=True)
    wait_until_up(server)
    with temporary_settings({PREFECT_API_URL: f"{server.address}/api"}):
        yield
