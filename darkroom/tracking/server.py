"""`python -m darkroom.tracking.server --port 5000`: MLflow's pages for the store of this project."""

import argparse
import os
import sys

from darkroom.tracking.store import ARTIFACTS, open_store, project_root, tracking_uri


def command(host: str, port: int) -> list[str]:
    """The command line of MLflow's server. The server reads files in place, as stages write them in place."""
    root = project_root()
    store = ["--backend-store-uri", tracking_uri(root), "--no-serve-artifacts", "--default-artifact-root", (root / ARTIFACTS).as_uri()]
    return [sys.executable, "-m", "mlflow", "server", *store, "--host", host, "--port", str(port), "--workers", "1"]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m darkroom.tracking.server", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=5000, help="default: %(default)s")
    arguments = parser.parse_args()
    open_store(project_root())  # creates the database if it is missing, under the lock
    os.environ.setdefault("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")  # on, it starts eight processes for features that we do not use
    words = command(arguments.host, arguments.port)
    os.execv(words[0], words)


if __name__ == "__main__":
    main()
