"""`darkroom demo-data` and `darkroom doctor`."""

import json
import re
from pathlib import Path

import pytest
from PIL import Image

from darkroom.cli import main
from tests.cli.test_main import fails

ROOT = Path(__file__).parents[2]


def test_demo_data_draws_as_many_cats_as_asked_for_by_their_seed(tmp_path: Path) -> None:
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        main(["demo-data", str(tmp_path / name), "--num-cats", "3", "--size", "24", "--seed", seed])
    sets = {name: {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in "abc"}
    assert sets["a"] == sets["b"] != sets["c"]
    assert len(sets["a"]) == 4
    assert Image.open(tmp_path / "a" / "cat-000000.png").size == (24, 24)


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


def test_the_doctor_says_that_it_does_not_look_for_the_subject(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = params_file(tmp_path, max_rejected_fraction=0.5)
    main(["doctor", str(photos(tmp_path / "photos")), "--params", str(file)])
    assert "subject" not in capsys.readouterr().out
    file.write_text(file.read_text(encoding="utf-8").replace("crop: centre", "crop: subject"), encoding="utf-8")
    main(["doctor", str(tmp_path / "photos"), "--params", str(file)])
    assert "the subject is not looked for here; `ingest` does it" in capsys.readouterr().out


def test_the_doctor_fails_where_ingest_would(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["doctor", str(photos(tmp_path / "photos")), "--params", str(params_file(tmp_path, max_rejected_fraction=0.1))]
    assert "1 of 4 photos" in fails(capsys, *arguments)
    assert "broken.jpg" in capsys.readouterr().out


def test_the_doctor_says_that_a_folder_is_empty_or_its_parameters_are_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "There are no photos in" in fails(capsys, "doctor", str(tmp_path), "--params", str(ROOT / "params.yaml"))
    (tmp_path / "params.yaml").write_text(json.dumps({"ingesd": {}}))
    assert "did you mean `ingest`?" in fails(capsys, "doctor", str(tmp_path), "--params", str(tmp_path / "params.yaml"))
