import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from darkroom.cli import main
from darkroom.sampling import TextToImage
from darkroom.tracking import registry

ROOT = Path(__file__).parents[1]
COMMANDS = ["demo-data", "doctor", "sample", "promote", "rollback"]
SIDE = 8


class FakeModel:
    """Draws every picture in the colour (length of the prompt, seed, length of the negative prompt)."""

    loaded: list[str]
    settings: list[dict[str, Any]]

    def __init__(self) -> None:
        self.loaded, self.settings = [], []

    def load(self, source: str) -> "FakeModel":
        self.loaded.append(source)
        return self

    def sample(
        self, prompts: Sequence[str], *, seeds: Sequence[int], negative_prompts: Sequence[str] | None, **settings: object
    ) -> np.ndarray:
        self.settings.append(settings)
        negatives = negative_prompts or [""] * len(prompts)
        colours = [(len(prompt), seed, len(negative)) for prompt, seed, negative in zip(prompts, seeds, negatives, strict=True)]
        return np.stack([np.full((SIDE, SIDE, 3), colour, np.uint8) for colour in colours])


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> FakeModel:
    fake = FakeModel()
    monkeypatch.setattr(TextToImage, "load", fake.load)
    return fake


def colours(path: Path) -> list[tuple[int, ...]]:
    """Those of the picture file that the fake has drawn, row by row, without the lines of a grid."""
    pixels = np.asarray(Image.open(path).convert("RGB")).reshape(-1, 3)
    found = dict.fromkeys(tuple(int(value) for value in pixel) for pixel in pixels)
    return [colour for colour in found if colour[0] < 200]


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


def test_sample_draws_one_picture(tmp_path: Path, model: FakeModel, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "cat.png"
    main(["sample", "--model", "models:/cats@champion", "--prompt", "a cat", "--seed", "7", "--out", str(out)])
    assert model.loaded == ["models:/cats@champion"]
    assert Image.open(out).size == (SIDE, SIDE)
    assert colours(out) == [(5, 7, 0)]
    assert f"{out}: 1 picture(s) of 8 x 8 px." in capsys.readouterr().out
    assert model.settings == [{"steps": None, "sampler": None, "guidance_scale": None, "show_progress": True}]


def test_sample_draws_a_row_a_prompt_and_a_column_a_seed(tmp_path: Path, model: FakeModel) -> None:
    out = tmp_path / "cats.png"
    main(["sample", "--prompt", "a", "--prompt", "bb", "--seed", "1", "--seed", "2", "--seed", "3", "--out", str(out)])
    assert colours(out) == [(1, 1, 0), (1, 2, 0), (1, 3, 0), (2, 1, 0), (2, 2, 0), (2, 3, 0)]
    width, height = Image.open(out).size
    assert (width >= 3 * SIDE, height >= 2 * SIDE, width > height) == (True, True, True)
    assert model.loaded == ["data"]


def test_sample_hands_its_options_to_the_model(tmp_path: Path, model: FakeModel) -> None:
    options = ["--steps", "9", "--sampler", "heun", "--guidance-scale", "2.5", "--negative-prompt", "dog"]
    main(["sample", "--prompt", "a", "--prompt", "b", "--out", str(tmp_path / "a.png"), *options])
    assert model.settings == [{"steps": 9, "sampler": "heun", "guidance_scale": 2.5, "show_progress": True}]
    assert colours(tmp_path / "a.png") == [(1, 0, 3)]


@pytest.mark.parametrize(("suffix", "kind"), [(".png", "PNG"), (".jpg", "JPEG"), (".JPEG", "JPEG"), (".webp", "WEBP")])
def test_sample_writes_what_the_name_says(tmp_path: Path, model: FakeModel, suffix: str, kind: str) -> None:
    main(["sample", "--prompt", "a", "--out", str(tmp_path / f"a{suffix}")])
    assert Image.open(tmp_path / f"a{suffix}").format == kind
    assert [path.name for path in tmp_path.iterdir()] == [f"a{suffix}"]


def test_sample_replaces_a_file_only_when_told_to(tmp_path: Path, model: FakeModel, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "cat.png"
    out.write_bytes(b"precious")
    assert "is already there. Name another file, or give --force" in fails(capsys, "sample", "--prompt", "a", "--out", str(out))
    assert out.read_bytes() == b"precious"
    assert not model.loaded
    main(["sample", "--prompt", "a", "--out", str(out), "--force"])
    assert Image.open(out).format == "PNG"


def test_sample_refuses_a_file_that_is_no_picture_before_it_loads_the_model(
    tmp_path: Path, model: FakeModel, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "folder.png").mkdir()
    assert "cat.gif should end in one of .jpeg, .jpg, .png, .webp." in fails(capsys, "sample", "--prompt", "a", "--out", "cat.gif")
    assert "is a folder; name a file" in fails(capsys, "sample", "--prompt", "a", "--out", str(tmp_path / "folder.png"), "--force")
    assert not model.loaded


def test_sample_needs_a_prompt_and_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--prompt" in fails(capsys, "sample", "--out", "a.png")
    assert "--out" in fails(capsys, "sample", "--prompt", "a")


def test_sample_says_what_a_model_is_when_there_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = fails(capsys, "sample", "--model", str(tmp_path), "--prompt", "a", "--out", str(tmp_path / "a.png"))
    assert message.startswith("darkroom sample: ")
    assert "clip/, vae/ and unet/" in message
    assert not (tmp_path / "a.png").exists()


def test_the_help_of_sample_names_the_samplers(capsys: pytest.CaptureFixture[str]) -> None:
    from darkroom.diffusion.samplers import SAMPLERS

    with pytest.raises(SystemExit, match="0"):
        main(["sample", "--help"])
    text = capsys.readouterr().out
    assert all(name in text for name in SAMPLERS)


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
