"""`darkroom import` and `darkroom export`, as a person types them."""

from pathlib import Path

import pytest

from darkroom.cli import main
from darkroom.tracking import registry
from tests.interchange.conftest import Imported
from tests.interchange.own_model import write_model


def test_a_model_goes_out_and_comes_in(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_model(tmp_path / "model")
    main(["export", str(tmp_path / "model"), str(tmp_path / "cats.safetensors"), "--format", "single-file"])
    assert capsys.readouterr().out == f"Written: {tmp_path / 'cats.safetensors'}, {tmp_path / 'cats.md'}\n"
    main(["import", str(tmp_path / "cats.safetensors"), str(tmp_path / "again")])
    assert f"darkroom sample --model {tmp_path / 'again'}" in capsys.readouterr().out
    main(["export", str(tmp_path / "again"), str(tmp_path / "folder"), "--format", "diffusers"])
    assert (tmp_path / "folder" / "model_index.json").is_file()


def test_a_registered_model_is_exported_by_its_alias(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_model(tmp_path / "fetched")
    monkeypatch.setattr(registry, "download", lambda uri: tmp_path / "fetched" if uri == "models:/cats@champion" else None)
    main(["export", "models:/cats@champion", str(tmp_path / "out"), "--format", "diffusers"])
    assert (tmp_path / "out" / "README.md").is_file()


def test_a_refusal_is_one_line_and_exit_status_1(sd1: Imported, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"^darkroom import: .*source already defines its prediction; remove --prediction\.$"):
        main(["import", str(sd1.source), str(tmp_path / "out"), "--prediction", "epsilon"])
