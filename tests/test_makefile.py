"""`make` with an environment of pretended commands: what is installed, drawn and copied, and what is left alone."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
COPIED = ("darkroom", "stages", "flows", "presets")
FILES = ("Makefile", "dvc.yaml", "params.yaml", "prefect.toml", "pyproject.toml", "constraints.txt", ".dvcignore")

PRETENDED_DARKROOM = """
case "$1" in
  params) case "$2" in *toy-quick*) echo "parameters of $2" ;; *) exit 1 ;; esac ;;
  demo-data) mkdir -p "$2" && touch "$2/cat.png" ;;
esac
"""

pytestmark = pytest.mark.skipif(not shutil.which("make"), reason="there is no make")


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """The project with an environment in which `dvc` and `darkroom` only write down how they were called."""
    root = tmp_path / "my photos" / "darkroom"
    for name in COPIED:
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in FILES:
        shutil.copy(ROOT / name, root / name)
    pretend(root, "dvc", 'if [ "$1" = init ]; then mkdir .dvc; fi')
    pretend(root, "darkroom", PRETENDED_DARKROOM)
    (root / ".venv" / ".installed").touch()
    return root


def pretend(root: Path, name: str, script: str) -> None:
    command = root / ".venv" / "bin" / name
    command.parent.mkdir(parents=True, exist_ok=True)
    command.write_text(f'#!/bin/sh\necho "{name} $*" >> "$PWD/calls"\n{script}\n')
    command.chmod(0o755)


def make(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """make as from a terminal: nothing of a `make test VENV=...` that these tests may run in reaches it."""
    outer = ("MAKEFLAGS", "MFLAGS", "MAKEOVERRIDES", "MAKELEVEL", "VENV", "PYTHON", "WORKERS", "ARGS", "PRESET", "CATS")
    environment = {name: value for name, value in os.environ.items() if name not in outer}
    return subprocess.run(["make", *arguments], cwd=root, env=environment, capture_output=True, text=True, check=False)


def calls(folder: Path) -> list[str]:
    return (folder / "calls").read_text().splitlines()


def test_help_is_the_default_and_lists_every_target() -> None:
    text = make(ROOT).stdout
    assert text == make(ROOT, "help").stdout
    for target in ("install", "demo", "test", "lint", "ui", "bench"):
        assert f"make {target} " in text


@pytest.mark.parametrize("python", ["too-old", "not-there"])
def test_a_python_that_is_too_old_or_not_there_is_told(clone: Path, python: str) -> None:
    pretend(clone, "too-old", "exit 1")
    ended = make(clone, "install", f"PYTHON={python}", "VENV=another")
    assert ended.returncode != 0
    assert "Darkroom requires Python 3.11 or newer" in ended.stdout
    assert not (clone / "another").exists()


def test_demo_draws_cats_when_there_are_no_photos(clone: Path) -> None:
    ended = make(clone, "demo", "CATS=7")
    assert ended.returncode == 0, ended.stderr
    assert "darkroom demo-data data/raw.new --num-cats 7" in calls(clone)
    assert calls(clone)[-1] == "dvc repro"
    assert [path.name for path in (clone / "data").iterdir()] == ["raw"]
    assert [path.name for path in (clone / "data" / "raw").iterdir()] == ["cat.png"]
    for line in ("./data/report/pictures", "./data/report/report.html", "make ui"):
        assert line in ended.stdout


def test_demo_takes_the_photos_that_are_there(clone: Path) -> None:
    (clone / "data" / "raw").mkdir(parents=True)
    (clone / "data" / "raw" / "mine.jpg").touch()
    ended = make(clone, "demo")
    assert "data/raw is not empty: training on its photos." in ended.stdout
    assert not [call for call in calls(clone) if call.startswith("darkroom")]
    assert [path.name for path in (clone / "data" / "raw").iterdir()] == ["mine.jpg"]


@pytest.mark.parametrize("target", ["install", "demo", "test"])
def test_dvc_is_prepared_where_it_must(clone: Path, target: str) -> None:
    pretend(clone, "pytest", "")
    make(clone, target)
    assert calls(clone)[:2] == ["dvc init --quiet --no-scm", "dvc config --quiet --local core.no_scm true"]


def test_dvc_is_prepared_in_the_copy_too(clone: Path) -> None:
    make(clone, "demo", "PRESET=toy-quick")
    run = clone / ".scratch" / "demo-toy-quick"
    assert (run / ".dvc").is_dir()
    assert calls(run)[:2] == ["dvc init --quiet --no-scm", "dvc config --quiet --local core.no_scm true"]


@pytest.mark.slow
def test_an_unzipped_download_needs_no_git(tmp_path: Path) -> None:
    """With the real DVC, on a machine without git: `make install`, photos, `dvc repro`, as the README says."""
    root, commands = tmp_path / "darkroom", tmp_path / "commands"
    commands.mkdir()
    found = {command.name: command for folder in ("/usr/bin", "/bin") for command in Path(folder).iterdir() if command.is_file()}
    for name, command in found.items():
        if not name.startswith("git"):
            (commands / name).symlink_to(command)
    for name in COPIED:
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in FILES:
        shutil.copy(ROOT / name, root / name)
    environment = {"PATH": f"{Path(sys.executable).parent}:{commands}", "HOME": str(tmp_path), "PYTHONPATH": str(root)}
    environment |= {"DARKROOM_TRACKING": "off", "DVC_NO_ANALYTICS": "1"}
    assert shutil.which("git", path=environment["PATH"]) is None
    venv = root / ".venv"  # what `make install` has made
    (venv / "bin").mkdir(parents=True)
    (venv / ".installed").touch()
    for words in (["make", "install"], ["darkroom", "demo-data", "data/raw", "--num-cats", "12"], ["dvc", "repro", "ingest"]):
        ended = subprocess.run(words, cwd=root, env=environment, capture_output=True, text=True, check=False)
        assert ended.returncode == 0, ended.stdout + ended.stderr
    assert (root / "data" / "shards" / "index.json").is_file()


def test_demo_leaves_dvc_as_it_is_in_a_git_checkout(clone: Path) -> None:
    (clone / ".dvc").mkdir()
    (clone / ".git").mkdir()
    make(clone, "demo")
    assert [call for call in calls(clone) if call.startswith("dvc")] == ["dvc repro"]


@pytest.mark.parametrize("preset", ["toy-quick", "presets/toy-quick.yaml"])
def test_demo_of_a_preset_touches_neither_parameters_nor_data(clone: Path, preset: str) -> None:
    before = (clone / "params.yaml").read_bytes()
    ended = make(clone, "demo", f"PRESET={preset}")
    assert ended.returncode == 0, ended.stderr
    run = clone / ".scratch" / "demo-toy-quick"
    assert (clone / "params.yaml").read_bytes() == before
    assert not (clone / "data").exists()
    assert (run / "params.yaml").read_text() == f"parameters of {preset}\n"
    assert not list(run.glob("*.tmp"))
    assert (run / "data" / "raw" / "cat.png").is_file()
    assert calls(run)[-1] == "dvc repro"
    assert f"make ui PRESET={preset}" in ended.stdout


def test_demo_of_a_preset_runs_the_code_of_today_on_the_data_of_before(clone: Path) -> None:
    make(clone, "demo", "PRESET=toy-quick")
    run = clone / ".scratch" / "demo-toy-quick"
    (clone / "stages" / "ingest.py").unlink()
    (run / "data" / "shards").mkdir()
    make(clone, "demo", "PRESET=toy-quick")
    assert not (run / "stages" / "ingest.py").exists()
    assert (run / "data" / "shards").is_dir()


def test_test_hands_its_arguments_on(clone: Path) -> None:
    pretend(clone, "pytest", "exit 3")
    ended = make(clone, "test", "WORKERS=5", "ARGS=--run-slow -k heun")
    assert calls(clone)[-1] == "pytest -n 5 --run-slow -k heun"
    assert ended.returncode != 0


def test_a_demo_that_fails_fails(clone: Path) -> None:
    pretend(clone, "dvc", '[ "$1" != repro ]')
    assert make(clone, "demo").returncode != 0
    pretend(clone, "dvc", "true")
    assert make(clone, "demo", "PRESET=not-there").returncode != 0
    assert not (clone / ".scratch" / "demo-not-there" / "params.yaml").exists()
