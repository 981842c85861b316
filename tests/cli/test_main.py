"""The command `darkroom`: its help, its errors, and what it costs to ask for help."""

import logging
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from typer.main import get_group

from darkroom.cli import COMMANDS, build_app, main

ROOT = Path(__file__).parents[2]
HELP = "import sys; from darkroom.cli import main; main({argv}); print('\\n' + '\\n'.join(sys.modules))"


def fails(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    with pytest.raises(SystemExit) as caught:
        main(argv)
    assert caught.value.code not in (0, None)
    return str(caught.value.code) if isinstance(caught.value.code, str) else capsys.readouterr().err


@pytest.mark.parametrize("command", COMMANDS)
def test_help_explains_every_option_and_gives_examples_that_can_be_parsed(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    main([command, "--help"])
    text = capsys.readouterr().out
    examples = [shlex.split(line.partition(" > ")[0]) for line in text.partition("\nExamples:\n")[2].splitlines()]
    assert examples
    for words in examples:
        assert words[:2] == ["darkroom", command]
        get_group(build_app()).commands[command].make_context(command, words[2:])  # raises what a wrong use would
    for option in re.findall(r"^  (--\S+)", text, re.MULTILINE):
        assert re.search(rf"^  {option}.*(  |\n {{10,}})\S", text, re.MULTILINE), f"{option} is not explained"


@pytest.mark.parametrize("command", [None, *COMMANDS])
def test_help_is_there_at_once_because_nothing_heavy_is_imported(command: str | None) -> None:
    script = HELP.format(argv=[*([] if command is None else [command]), "--help"])
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
    modules = set(ended.stdout.splitlines())
    assert "typer" in modules
    assert not {"torch", "numpy", "mlflow", "pydantic", "PIL", "rich"} & modules


def test_help_lists_all_commands(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--help"])
    text = capsys.readouterr().out
    assert list(COMMANDS) == [
        *("demo-data", "params", "plan", "tune", "doctor", "sample", "edit", "interpolate", "import", "export", "promote", "rollback")
    ]
    assert all(f"\n  {command} " in text for command in COMMANDS)


def test_a_command_is_needed_and_a_wrong_one_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert "COMMAND" in fails(capsys)
    assert "No such command 'samples'" in fails(capsys, "samples")


def test_a_wrong_use_has_exit_status_2_and_names_the_choices(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["export", "data", "out", "--format", "onnx"])
    assert "'onnx' is not one of 'diffusers', 'single-file'" in capsys.readouterr().err


def test_a_warning_of_the_library_names_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    main(["demo-data", str(tmp_path / "cats"), "--num-cats", "1", "--size", "16"])
    logging.getLogger("darkroom.sampling").warning("The prompt is too long.")
    assert capsys.readouterr().err == "darkroom demo-data: The prompt is too long.\n"


def test_the_module_can_be_run(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "darkroom.cli", "demo-data", str(tmp_path / "cats"), "--num-cats", "2", "--size", "16"]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert ended.returncode == 0, ended.stderr
    assert "2 captioned cats of 16 px are in" in ended.stdout
    assert len(list((tmp_path / "cats").glob("*.png"))) == 2


def test_an_error_of_the_user_is_one_paragraph_without_a_traceback(tmp_path: Path) -> None:
    (tmp_path / "mine.jpg").write_bytes(b"photo")
    command = [sys.executable, "-m", "darkroom.cli", "demo-data", str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert ended.returncode == 1
    assert ended.stderr.startswith("darkroom demo-data: ")
    assert "mine.jpg" in ended.stderr
    assert ended.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["mine.jpg"]
