"""Models of the hub, with huggingface_hub's download in the place where the network would be."""

from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from darkroom.interchange import hub
from darkroom.interchange.transfer import import_model
from tests.interchange.conftest import Imported


def test_a_hub_name_is_downloaded_and_imported(sd1: Imported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, Any]] = []

    def download(repo_id: str, *, allow_patterns: list[str]) -> str:
        asked.append((repo_id, allow_patterns))
        return str(sd1.source)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    import_model("someone/a-model.v1", tmp_path / "out")
    assert [name for name, _ in asked] == ["someone/a-model.v1"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["clip", "unet", "vae"]


def test_only_what_is_needed_is_asked_for(sd1: Imported) -> None:
    from huggingface_hub.utils import filter_repo_objects

    theirs = [str(path.relative_to(sd1.source)) for path in sd1.source.rglob("*") if path.is_file()]
    others = [
        "v1-5-pruned.ckpt",
        "unet/diffusion_pytorch_model.bin",
        "safety_checker/model.safetensors",
        "unet/diffusion_pytorch_model.fp16.safetensors",
    ]
    assert sorted(filter_repo_objects(theirs + others, allow_patterns=[*hub.PATTERNS, *hub.FULL])) == sorted(theirs)


def test_a_hub_without_network_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(repo_id: str, **_: Any) -> str:
        raise LocalEntryNotFoundError("Cannot find an appropriate cached snapshot folder\nand no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(
        ValueError, match=r"someone/model is no file or folder here, and could not be had from the Hugging Face hub: Cannot find .* network"
    ):
        import_model("someone/model", tmp_path / "out")


def test_the_real_download_without_network_is_told_too(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nobody/nothing is no file or folder here, and could not be had from the Hugging Face hub"):
        import_model("nobody/nothing", tmp_path / "out")
