"""`python -m flows.ui`: MLflow's and Prefect's pages for this project on this machine, until Ctrl-C."""

import argparse
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from flows.processes import Running

HOST = "127.0.0.1"
SECONDS_TO_START = 120
SECONDS_TO_STOP = 10
SECONDS_BETWEEN_LOOKS = 0.3


@dataclass(frozen=True)
class Server:
    """A server process and where it answers."""

    name: str
    process: subprocess.Popen[bytes]
    address: str
    health: str  # what answers 200 when it is up
    log: Path


def start(name: str, argv: list[str], *, port: int, health: str, log: Path, running: Running) -> Server:
    """Starts a server in a process group of its own; what it writes goes to `log`."""
    log.parent.mkdir(parents=True, exist_ok=True)
    address = f"http://{HOST}:{port}"
    with log.open("wb") as file:
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)
    running.add(process.pid, SECONDS_TO_STOP)
    return Server(name, process, address, address + health, log)


def wait_until_up(server: Server) -> None:
    """Returns when the server answers.

    Raises:
        ValueError: it ended, or did not answer in time; the end of its log is in the message.
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


def choose_port(wanted: int | None, usual: int) -> int:
    """`wanted`; without it the usual one, or any free one if that is taken.

    Raises:
        ValueError: `wanted` is taken.
    """
    if wanted is not None and not _is_free(wanted):
        raise ValueError(f"Port {wanted} is taken by another program; give another one, or none to let me choose.")
    if wanted is not None or _is_free(usual):
        return wanted or usual
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port whose last user has just ended is free
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def serve(mlflow_port: int | None, prefect_port: int | None, running: Running) -> None:
    """Starts the servers that the environment does not name already, prints their addresses, and watches them.

    Raises:
        ValueError: a port is taken, or a server did not start or has ended.
    """
    logs = Path(".scratch") / "ui"
    servers = []
    if (address := os.environ.get("MLFLOW_TRACKING_URI", "")).startswith("http"):
        print(f"MLflow   {address} (MLFLOW_TRACKING_URI)", flush=True)
    else:
        port = choose_port(mlflow_port, 5000)
        argv = [sys.executable, "-m", "darkroom.tracking.server", "--host", HOST, "--port", str(port)]
        servers.append(start("MLflow", argv, port=port, health="/health", log=logs / "mlflow.log", running=running))
    if address := os.environ.get("PREFECT_API_URL", ""):
        print(f"Prefect  {address.removesuffix('/api')} (PREFECT_API_URL)", flush=True)
    else:
        port = choose_port(prefect_port, 4200)
        argv = [sys.executable, "-m", "prefect", "server", "start", "--host", HOST, "--port", str(port)]
        servers.append(start("Prefect", argv, port=port, health="/api/health", log=logs / "prefect.log", running=running))
    _watch(servers)


def _watch(servers: list[Server]) -> None:
    for server in servers:
        wait_until_up(server)
        print(f"{server.name:<8} {server.address}", flush=True)
        if server.name == "Prefect":
            print(f"         to see a run as it goes: PREFECT_API_URL={server.address}/api python -m flows.pipeline", flush=True)
    if servers:
        print("Ctrl-C stops them.", flush=True)
    while servers:
        for server in servers:
            if server.process.poll() is not None:
                raise ValueError(f"{server.name} has ended by itself; see {server.log}.")
        time.sleep(SECONDS_BETWEEN_LOOKS)


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m flows.ui", description=__doc__)
    parser.add_argument("--mlflow-port", type=int, metavar="PORT", help="(default: 5000, or a free one if that is taken)")
    parser.add_argument("--prefect-port", type=int, metavar="PORT", help="(default: 4200, or a free one if that is taken)")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, _interrupt)
    running = Running()
    try:
        serve(arguments.mlflow_port, arguments.prefect_port, running)
    except KeyboardInterrupt:
        print("Stopping.")
    except ValueError as error:
        sys.exit(f"flows.ui: {error}")
    finally:
        running.interrupt_all()


if __name__ == "__main__":
    main()
