import json
import logging
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from darkroom.cli import main
from darkroom.tracking import registry

ROOT = Path(__file__).parents[1]
COMMANDS = ["demo-data", "doctor", "sample", "edit", "interpolate", "import", "export", "promote", "rollback"]


def fails(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    with pytest.raises(SystemExit) as caught:
        main(argv)
    assert caught.value.code not in (0, None)
    return str(caught.value.code) if isinstance(caught.value.code, str) else capsys.readouterr().err


@pytest.mark.parametrize("command", COMMANDS)
def test_help_explains_every_option_and_gives_examples_that_can_be_parsed(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main([command, "--help"])
    text = capsys.readouterr().out
    assert f"\n  darkroom {command} " in text.partition("examples:")[2]
    for option in re.findall(r"^  (--\S+)", text, re.MULTILINE):
        assert re.search(rf"^  {option}.*(  |\n {{10,}})\S", text, re.MULTILINE), f"{option} is not explained"


def test_help_is_there_at_once_and_lists_all_commands() -> None:
    script = "import sys; from darkroom.cli import main\ntry: main(['--help'])\nfinally: print(sorted(sys.modules))"
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=False)
    text, _, modules = ended.stdout.rpartition("\n[")
    assert ended.returncode == 0, ended.stderr
    assert all(f"\n    {command}" in text for command in COMMANDS)
    assert not {"'torch'", "'numpy'", "'pydantic'", "'PIL'"} & set(modules.split(", "))


def test_a_command_is_needed_and_a_wrong_one_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert "COMMAND" in fails(capsys)
    assert "invalid choice: 'samples'" in fails(capsys, "samples")


def test_a_warning_of_the_library_reads_like_a_word_of_the_command(
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


def test_demo_data_draws_as_many_cats_as_asked_for_by_their_seed(tmp_path: Path) -> None:
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        main(["demo-data", str(tmp_path / name), "--num-cats", "3", "--size", "24", "--seed", seed])
    sets = {name: {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in "abc"}
    assert sets["a"] == sets["b"] != sets["c"]
    assert len(sets["a"]) == 4
    assert Image.open(tmp_path / "a" / "cat-000000.png").size == (24, 24)


def test_an_error_of_the_user_is_one_paragraph_without_a_traceback(tmp_path: Path) -> None:
    (tmp_path / "mine.jpg").write_bytes(b"photo")
    command = [sys.executable, "-m", "darkroom.cli", "demo-data", str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert ended.returncode == 1
    assert ended.stderr.startswith("darkroom demo-data: ")
    assert "mine.jpg" in ended.stderr
    assert ended.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["mine.jpg"]


def photos(folder: Path) -> Path:
    """Three good ones, of which two are the same, and one that is none."""
    for index, colour in enumerate(["red", "blue", "blue"]):
        folder.mkdir(exist_ok=True)
        Image.new("RGB", (40, 30), colour).save(folder / f"{index}.png")
    (folder / "broken.jpg").write_bytes(b"not a photo")
    return folder


def params_file(folder: Path, *, max_rejected_fraction: float) -> Path:
    text = (ROOT / "params.yaml").read_text(encoding="utf-8")
    text, count = re.subn(r"max_rejected_fraction: \S+", f"max_rejected_fraction: {max_rejected_fraction}", text)
    assert count == 1
    (folder / "params.yaml").write_text(text, encoding="utf-8")
    return folder / "params.yaml"


def test_the_doctor_names_what_cannot_be_used_and_changes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = photos(tmp_path / "photos")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    main(["doctor", str(folder), "--params", str(params_file(tmp_path, max_rejected_fraction=0.5))])
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("broken.jpg: unreadable: ") for line in lines)
    assert "2.png: the same file as 1.png" in lines
    assert "2 of 4 photos can be used" in lines
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_the_doctor_fails_where_ingest_would(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["doctor", str(photos(tmp_path / "photos")), "--params", str(params_file(tmp_path, max_rejected_fraction=0.1))]
    assert "1 of 4 photos" in fails(capsys, *arguments)
    assert "broken.jpg" in capsys.readouterr().out


def test_the_doctor_says_that_a_folder_is_empty_or_its_parameters_are_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "There are no photos in" in fails(capsys, "doctor", str(tmp_path), "--params", str(ROOT / "params.yaml"))
    (tmp_path / "params.yaml").write_text(json.dumps({"ingesd": {}}))
    assert "did you mean `ingest`?" in fails(capsys, "doctor", str(tmp_path), "--params", str(tmp_path / "params.yaml"))


@pytest.mark.parametrize(("argv", "version"), [(["promote", "cats"], None), (["promote", "cats", "3"], 3)])
def test_promote_names_the_new_champion(
    argv: list[str], version: int | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[tuple[object, ...]] = []

    def promote(*arguments: object) -> dict[str, Any]:
        asked.append(arguments)
        return {"model_name": "cats", "champion": {"before": 2, "after": 3}}

    monkeypatch.setattr(registry, "open_registry", lambda: "store")
    monkeypatch.setattr(registry, "promote", promote)
    main(argv)
    assert asked == [("store", "cats", version)]
    assert capsys.readouterr().out == "The champion of `cats` is version 3 now; it was version 2.\n"


def test_rollback_names_the_new_champion(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    change = {"model_name": "cats", "champion": {"before": None, "after": 1}}
    monkeypatch.setattr(registry, "open_registry", lambda: "store")
    monkeypatch.setattr(registry, "rollback", lambda store, name: change if (store, name) == ("store", "cats") else {})
    main(["rollback", "cats"])
    assert capsys.readouterr().out == "The champion of `cats` is version 1 now.\n"


@pytest.mark.parametrize("command", ["promote", "rollback"])
def test_a_project_without_a_registry_is_told_apart(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    monkeypatch.chdir(tmp_path)
    assert "after `dvc repro`" in fails(capsys, command, "cats")
