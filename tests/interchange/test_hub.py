"""Models of the hub, with huggingface_hub's download in the place where the network would be."""

import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from huggingface_hub.utils import filter_repo_objects
from safetensors.torch import load_file

from darkroom.interchange.exchange import import_model
from darkroom.interchange.pipeline_folder import fetch_pipeline
from tests.interchange.conftest import Imported


def test_a_hub_name_is_downloaded_and_imported(sd1: Imported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, Any]] = []

    def download(repo_id: str, *, allow_patterns: list[str], **_: Any) -> str:
        asked.append((repo_id, allow_patterns))
        return str(sd1.source)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    import_model("someone/a-model.v1", tmp_path / "out")
    assert [name for name, _ in asked] == ["someone/a-model.v1"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["clip", "unet", "vae"]


class Hub:
    """A repository on the hub: files come into the cache when a pattern asks for them."""

    def __init__(self, files: Path, cache: Path) -> None:
        self.files = files
        self.cache = cache
        self.calls = 0

    def download(self, repo_id: str, *, allow_patterns: list[str], **_: Any) -> str:
        self.calls += 1
        theirs = [str(path.relative_to(self.files)) for path in self.files.rglob("*") if path.is_file()]
        for name in filter_repo_objects(theirs, allow_patterns=allow_patterns):
            (self.cache / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(self.files / name, self.cache / name)
        return str(self.cache)


def test_only_what_is_needed_is_asked_for(sd1: Imported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = Path(shutil.copytree(sd1.source, tmp_path / "files"))
    needed = {path.relative_to(files) for path in files.rglob("*") if path.is_file()}
    for other in ("v1-5-pruned.ckpt", "unet/diffusion_pytorch_model.bin", "vae/diffusion_pytorch_model.fp16.safetensors", "safety/x.json"):
        (files / other).parent.mkdir(exist_ok=True)
        (files / other).write_bytes(b"")
    theirs = Hub(files, tmp_path / "cache")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", theirs.download)
    assert {path.relative_to(theirs.cache) for path in fetch_pipeline("someone/model").rglob("*") if path.is_file()} == needed
    assert theirs.calls == 1


def test_a_model_in_half_precision_or_pickles_alone_is_downloaded_too(
    sd1: Imported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = Path(shutil.copytree(sd1.source, tmp_path / "files"))
    (files / "unet" / "diffusion_pytorch_model.safetensors").rename(files / "unet" / "diffusion_pytorch_model.fp16.safetensors")
    text = files / "text_encoder" / "model.safetensors"
    torch.save(load_file(text), files / "text_encoder" / "pytorch_model.bin")
    text.unlink()
    monkeypatch.setattr(huggingface_hub, "snapshot_download", Hub(files, tmp_path / "cache").download)
    import_model("someone/model", tmp_path / "out")
    for part, name in (("unet", "diffusion_pytorch_model.safetensors"), ("clip", "open_clip_model.safetensors")):
        ours, whole = load_file(tmp_path / "out" / part / name), load_file(sd1.folder / part / name)
        assert ours.keys() == whole.keys()
        assert all(torch.equal(ours[key], whole[key]) for key in whole)


def test_a_hub_without_network_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(repo_id: str, **_: Any) -> str:
        raise LocalEntryNotFoundError("Cannot find an appropriate cached snapshot folder\nand no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(
        ValueError,
        match=r"someone/model is not a local path, and could not be downloaded from .* hub: Cannot find .* network",
    ):
        import_model("someone/model", tmp_path / "out")


def test_the_real_download_without_network_is_told_too(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nobody/nothing is not a local path, and could not be downloaded from the Hugging Face hub"):
        import_model("nobody/nothing", tmp_path / "out")
