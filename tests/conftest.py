"""What all tests share: the flags `--run-slow` and `--run-huge`, few threads, no network, no telemetry, and the optional photos."""

import os
import signal
from pathlib import Path

import pytest

os.environ |= {
    "OMP_NUM_THREADS": "1",  # before torch is imported: processes of pytest-xdist share the cores, and threads would wait for each other
    "DO_NOT_TRACK": "true",
    "DVC_NO_ANALYTICS": "1",
    "HF_HUB_OFFLINE": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
}

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell in the background did it, and programs that tests start and stop inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--run-slow", action="store_true", help="run the tests marked `slow` too")
    parser.addoption("--run-huge", action="store_true", help="run the tests marked `huge` too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for mark in ("slow", "huge"):
        if not config.getoption(f"--run-{mark}"):
            skip = pytest.mark.skip(reason=f"{mark}: give --run-{mark} to run it")
            for item in items:
                if mark in item.keywords:
                    item.add_marker(skip)


@pytest.fixture
def project() -> Path:
    """The folder of the project."""
    return Path(__file__).parents[1]


@pytest.fixture
def shared(project: Path) -> Path:
    """A folder of real photos and weights beside the project, which not everybody has."""
    folder = project.parent / "shared"
    if not folder.is_dir():
        pytest.skip("there is no folder ../shared with real photos")
    return folder


@pytest.fixture(scope="session")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty MLflow database to copy; making one takes seconds."""
    from mlflow import MlflowClient

    file = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(f"sqlite:///{file}").search_experiments()
    return file
