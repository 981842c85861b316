"""A command that is stopped or cannot start ends in one line: tried in processes of their own, with real signals."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.tiny_run import make_project

ROOT = Path(__file__).parents[1]
INTERRUPTED = 130
STAGES = ("ingest", "train_clip", "train_vae", "cache_latents", "train_unet", "evaluate", "register")
COMMANDS = [["-m", f"stages.{name}"] for name in STAGES] + [
    ["-m", "darkroom.training.launch", "stages.train_unet"],
    ["-m", "darkroom.cli", "plan"],
    ["-m", "darkroom.source_code", "code"],
    ["-m", "flows.pipeline"],
]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("project")
    make_project(root, num_cats=40, ingest={"num_workers": 2}, train_unet={"steps": 100_000})
    return root


def started(arguments: list[str], cwd: Path, **changes: str) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "DARKROOM_TRACKING": "off"} | changes
    return subprocess.Popen(
        [sys.executable, *arguments], cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip


def interrupt(process: subprocess.Popen[str]) -> str:
    """Ctrl-C reaches the whole group, as from a terminal. What the command has written; its status must be that of Ctrl-C."""
    os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == INTERRUPTED, output
    assert "Traceback" not in output, output
    assert "Error" not in output, output
    return output


def wait_for_import(pid: int, library: str) -> None:
    """Until the process has mapped a file of this library: it is in the middle of its imports."""
    maps, deadline = Path(f"/proc/{pid}/maps"), time.monotonic() + 120
    while time.monotonic() < deadline:
        if library in maps.read_text():
            return
        time.sleep(0.02)
    pytest.fail(f"{library} was not imported")


needs_proc = pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="there is no /proc to see what a process has loaded")


@needs_proc
@pytest.mark.parametrize("arguments", COMMANDS, ids=lambda words: " ".join(words))
def test_ctrl_c_in_the_middle_of_the_imports_ends_in_one_line(project: Path, arguments: list[str]) -> None:
    process = started(arguments, project)
    wait_for_import(process.pid, "_hashlib" if arguments[1] == "darkroom.source_code" else "pydantic_core")
    assert len(interrupt(process).strip().splitlines()) == 1


@needs_proc
def test_ctrl_c_at_the_workers_of_ingest_ends_in_one_line_and_leaves_nothing(project: Path) -> None:
    process = started(["-m", "stages.ingest"], project)
    deadline = time.monotonic() + 120
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    while time.monotonic() < deadline and len(children.read_text().split()) < 2:  # the workers begin to import
        time.sleep(0.01)
    time.sleep(0.5)
    output = interrupt(process)
    assert output.strip().splitlines()[-1].startswith("ingest: interrupted. No incomplete output was left")
    assert [line for line in output.splitlines() if "INFO" not in line and line.strip()] == [output.strip().splitlines()[-1]]
    assert not list((project / "data").glob("*.tmp"))
    assert not (project / "data" / "shards").exists()


def test_work_that_is_stopped_cleans_up_and_says_what_was_kept() -> None:
    script = (
        "import time\nfrom darkroom.ending import end_in_one_line, stoppable\nend_in_one_line()\n"
        "with stoppable('kept'):\n"
        "  try: print('ready', flush=True); time.sleep(60)\n"
        "  except KeyboardInterrupt as error: ANSWER\n"
        "  finally: print('clean', flush=True)\n"
    )
    of_library, of_training = "raise ImportError('not an interrupt') from error", "raise KeyboardInterrupt('step 3') from error"
    for answer, line in {"raise": "kept", of_library: "kept", of_training: "step 3"}.items():
        process = started(["-c", script.replace("ANSWER", answer)], ROOT)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        assert interrupt(process).split() == ["clean", *line.split()]


def test_what_a_shell_starts_in_the_background_ignores_ctrl_c() -> None:
    script = "import signal; from darkroom.ending import *; end_in_one_line()\nwith stoppable(''): print(signal.getsignal(2).name)"
    command = ["sh", "-c", 'trap "" INT; exec "$0" "$@"', sys.executable, "-c", script]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert ended.stdout == "SIG_IGN\n"


def test_a_python_without_our_packages_says_what_to_do() -> None:
    for arguments in COMMANDS:
        if arguments[1] in ("darkroom.source_code", "darkroom.training.launch"):
            continue  # they need no package
        ended = subprocess.run(
            [sys.executable, "-S", *arguments], cwd=ROOT, env={"PATH": os.environ["PATH"]}, capture_output=True, text=True, check=False
        )
        assert ended.returncode == 1, arguments
        assert ended.stderr.count("\n") == 1, ended.stderr
        assert " has no package `" in ended.stderr
        assert ended.stderr.endswith("Run `make install`, then `source .venv/bin/activate`.\n")


def test_a_python_that_is_too_old_says_what_to_do() -> None:
    script = "import sys; sys.version_info = (3, 9, 1); sys.argv[0] = '-m'; import stages"
    ended = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert ended.stderr.startswith("Darkroom requires Python 3.11 or newer, but ")
    assert ended.stderr.endswith("is 3.9. Run `make install`, then `source .venv/bin/activate`.\n")


def test_a_mistake_of_ours_keeps_its_traceback_also_in_a_command(tmp_path: Path) -> None:
    (tmp_path / "stages").mkdir()
    shutil.copy(ROOT / "stages" / "__init__.py", tmp_path / "stages")
    for name, line in {"broken": "1 / 0", "misspelt": "import darkroom.provenanse"}.items():
        (tmp_path / "stages" / f"{name}.py").write_text(line)
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        ended = subprocess.run(
            [sys.executable, "-m", f"stages.{name}"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert ended.stderr.startswith("Traceback"), ended.stderr


def test_importing_the_packages_changes_nothing_in_another_program() -> None:
    script = "import sys; before = sys.excepthook; import darkroom, stages, flows; assert sys.excepthook is before"
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True)
