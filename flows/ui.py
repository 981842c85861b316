"""`python -m flows.ui`: MLflow's and Prefect's pages for this project on this machine, until Ctrl-C."""

import argparse
import os
import signal
import sys
import time
from typing import NoReturn

from flows.processes import Running
from flows.servers import SECONDS_BETWEEN_LOOKS, Server, choose_port, start_mlflow, start_prefect, wait_until_up


def serve(mlflow_port: int | None, prefect_port: int | None, running: Running) -> None:
    """Start the servers that the environment does not name, print their addresses, and watch them.

    Raises:
        ValueError: a port is in use, or a server did not start or has ended.
    """
    servers = []
    if (address := os.environ.get("MLFLOW_TRACKING_URI", "")).startswith("http"):
        print(f"MLflow   {address} (MLFLOW_TRACKING_URI)", flush=True)
    else:
        servers.append(start_mlflow(choose_port(mlflow_port, 5000), running))
    if address := os.environ.get("PREFECT_API_URL", ""):
        print(f"Prefect  {address.removesuffix('/api')} (PREFECT_API_URL)", flush=True)
    else:
        servers.append(start_prefect(choose_port(prefect_port, 4200), running))
    _watch(servers)


def _watch(servers: list[Server]) -> None:
    for server in servers:
        wait_until_up(server)
        print(f"{server.name:<8} {server.page}", flush=True)
        if server.name == "Prefect":
            print(f"         to show a run here: PREFECT_API_URL={server.address}/api python -m flows.pipeline", flush=True)
    if servers:
        print("Ctrl-C stops the servers.", flush=True)
    while servers:
        for server in servers:
            if server.process.poll() is not None:
                raise ValueError(f"{server.name} has ended unexpectedly; see {server.log}.")
        time.sleep(SECONDS_BETWEEN_LOOKS)


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m flows.ui", description=__doc__)
    parser.add_argument("--mlflow-port", type=int, metavar="PORT", help="default: 5000, or a free port if that is in use")
    parser.add_argument("--prefect-port", type=int, metavar="PORT", help="default: 4200, or a free port if that is in use")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, _interrupt)
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, _interrupt)
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
