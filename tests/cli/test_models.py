"""`darkroom import`, `export`, `promote` and `rollback`."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock, create_autospec

import pytest

from darkroom import open_model
from darkroom.cli import main
from darkroom.tracking import registry
from tests.cli.test_main import fails
from tests.interchange.own_model import write_model


def test_a_model_goes_out_and_comes_in(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_model(tmp_path / "model")
    main(["export", str(tmp_path / "model"), str(tmp_path / "cats.safetensors"), "--format", "single-file"])
    assert capsys.readouterr().out == f"Written: {tmp_path / 'cats.safetensors'}, {tmp_path / 'cats.md'}\n"
    main(["import", str(tmp_path / "cats.safetensors"), str(tmp_path / "again")])
    assert f"darkroom sample --model {tmp_path / 'again'}" in capsys.readouterr().out
    main(["export", str(tmp_path / "again"), str(tmp_path / "folder"), "--format", "diffusers"])
    assert (tmp_path / "folder" / "model_index.json").is_file()


def test_a_model_that_knows_one_caption_says_so_after_its_way_through_a_file(tmp_path: Path) -> None:
    write_model(tmp_path / "model")
    settings = tmp_path / "model" / "unet" / "diffusion.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"only_caption": "a cat"}))
    main(["export", str(tmp_path / "model"), str(tmp_path / "cats.safetensors"), "--format", "single-file"])
    main(["import", str(tmp_path / "cats.safetensors"), str(tmp_path / "again")])
    assert json.loads((tmp_path / "again" / "unet" / "diffusion.json").read_text())["only_caption"] == "a cat"


def test_a_registered_model_is_exported_by_its_alias(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_model(tmp_path / "fetched")
    found = create_autospec(open_model.registered_folder, return_value=tmp_path / "fetched")
    monkeypatch.setattr(open_model, "registered_folder", found)
    main(["export", "models:/cats@champion", str(tmp_path / "out"), "--format", "diffusers"])
    found.assert_called_once_with("models:/cats@champion")
    assert (tmp_path / "out" / "README.md").is_file()


def test_a_refusal_is_one_line_and_exit_status_1(tmp_path: Path) -> None:
    write_model(tmp_path / "model")
    file = str(tmp_path / "cats.safetensors")
    main(["export", str(tmp_path / "model"), file, "--format", "single-file"])
    with pytest.raises(SystemExit, match=r"^darkroom import: .*cats\.safetensors already defines its prediction; remove --prediction\.$"):
        main(["import", file, str(tmp_path / "out"), "--prediction", "epsilon"])


def stand_in(monkeypatch: pytest.MonkeyPatch, function: Callable[..., Any], answer: object) -> Mock:
    """A function of the registry with the same signature and this answer."""
    fake: Mock = create_autospec(function, return_value=answer)
    monkeypatch.setattr(registry, function.__name__, fake)
    return fake


@pytest.mark.parametrize(("argv", "version"), [(["promote", "cats"], None), (["promote", "cats", "3"], 3)])
def test_promote_names_the_new_champion(
    argv: list[str], version: int | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stand_in(monkeypatch, registry.open_registry, "store")
    promote = stand_in(monkeypatch, registry.promote, {"model_name": "cats", "champion": {"before": 2, "after": 3}})
    main(argv)
    promote.assert_called_once_with("store", "cats", version)
    assert capsys.readouterr().out == "The champion of `cats` is version 3 now; it was version 2.\n"


def test_rollback_names_the_new_champion(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    stand_in(monkeypatch, registry.open_registry, "store")
    rollback = stand_in(monkeypatch, registry.rollback, {"model_name": "cats", "champion": {"before": None, "after": 1}})
    main(["rollback", "cats"])
    rollback.assert_called_once_with("store", "cats")
    assert capsys.readouterr().out == "The champion of `cats` is version 1 now.\n"


@pytest.mark.parametrize("command", ["promote", "rollback"])
def test_a_project_without_a_registry_is_told_apart(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    monkeypatch.chdir(tmp_path)
    assert "after `dvc repro`" in fails(capsys, command, "cats")
