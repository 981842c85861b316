"""Folders of a hub on this machine, downloaded by huggingface_hub itself."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants
from huggingface_hub.errors import HTTPError

from darkroom.hub import download_folder, is_hub_folder, is_hub_id
from darkroom.models.autoencoder import STORED_AS
from darkroom.models.weights import CONFIG_FILE, WEIGHTS_FILE
from tests.loopback_hub import LoopbackHub, serve

ID = "some-one/a_model.v1"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackHub]:
    with serve(tmp_path, monkeypatch) as hub:
        yield hub


def write(folder: Path, *names: str, text: str = "") -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text or name)
    return folder


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


PIPELINE = ("model_index.json", "unet/config.json", f"unet/{WEIGHTS_FILE}", "text_encoder/model.safetensors")
MORE = ("vae/diffusion_pytorch_model.bin", "vae/diffusion_pytorch_model.fp16.safetensors", f"vae/old/{WEIGHTS_FILE}")


def test_only_the_files_of_the_folder_are_downloaded_and_its_commit_is_told(hub: LoopbackHub, tmp_path: Path) -> None:
    commit = hub.add(ID, write(tmp_path / "files", *PIPELINE, *MORE, "vae/config.json", f"vae/{WEIGHTS_FILE}"))
    folder, version = download_folder(f"hf-hub:{ID}/vae", STORED_AS)
    assert version == f"hf-hub:{ID}/vae@{commit}"
    assert names(folder) == {CONFIG_FILE, WEIGHTS_FILE}
    assert (folder / CONFIG_FILE).read_text() == "vae/config.json"
    assert sorted(hub.downloaded) == ["vae/config.json", f"vae/{WEIGHTS_FILE}"]


@pytest.mark.parametrize("folder", ["", "tiny", "tiny/er"])
def test_the_two_files_of_a_tiny_autoencoder_are_found_but_no_text_encoder(folder: str, hub: LoopbackHub, tmp_path: Path) -> None:
    hub.add(ID, write(tmp_path / "files", *PIPELINE))
    hub.add(ID, write(tmp_path / "tiny", "taef2_encoder.safetensors", "taef2_decoder.safetensors", "taef2_encoder.pth"), folder=folder)
    found, _ = download_folder(f"hf-hub:{ID}/{folder}".rstrip("/"), STORED_AS)
    assert names(found) == {"taef2_encoder.safetensors", "taef2_decoder.safetensors"}
    assert len(hub.downloaded) == 2


def test_files_of_diffusers_are_preferred(hub: LoopbackHub, tmp_path: Path) -> None:
    hub.add(ID, write(tmp_path / "files", CONFIG_FILE, WEIGHTS_FILE, "taesd_encoder.safetensors", "taesd_decoder.safetensors"))
    folder, _ = download_folder(f"hf-hub:{ID}", STORED_AS)
    assert names(folder) == {CONFIG_FILE, WEIGHTS_FILE}


def test_a_branch_moves_but_a_revision_stays(hub: LoopbackHub, tmp_path: Path) -> None:
    first = hub.add(ID, write(tmp_path / "files", CONFIG_FILE, WEIGHTS_FILE, text="old"))
    hub.add(ID, tmp_path / "files", revision="v1")
    assert download_folder(f"hf-hub:{ID}", STORED_AS)[1] == f"hf-hub:{ID}@{first}"
    second = hub.add(ID, write(tmp_path / "files", CONFIG_FILE, WEIGHTS_FILE, text="new"))
    for named, commit, text in (("", second, "new"), ("@v1", first, "old"), (f"@{first}", first, "old"), (f"@{second}", second, "new")):
        folder, version = download_folder(f"hf-hub:{ID}{named}", STORED_AS)
        assert version == f"hf-hub:{ID}@{commit}"
        assert (folder / WEIGHTS_FILE).read_text() == text


def test_what_was_downloaded_before_is_found_without_network(hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add(ID, write(tmp_path / "files", "vae/config.json", f"vae/{WEIGHTS_FILE}"))
    found = download_folder(f"hf-hub:{ID}/vae", STORED_AS)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    asked = hub.num_requests
    assert download_folder(f"hf-hub:{ID}/vae", STORED_AS) == found
    assert hub.num_requests == asked


NO_FOLDER = "Correct the name, connect, or give a local folder with its files in its place"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("hf-hub:some-one/else", r"^some-one/else is not a local path, and could not be downloaded from the Hugging Face hub: .*not found"),
        (f"hf-hub:{ID}@v9", rf"^{ID}@v9 is not a local path, and could not be downloaded from the Hugging Face hub: "),
        ("hf-hub:-x-/--y", r"^-x-/--y is not a local path, and could not be downloaded from the Hugging Face hub: Repo id must"),
    ],
)
def test_a_name_that_the_hub_does_not_have_is_told(source: str, message: str, hub: LoopbackHub, tmp_path: Path) -> None:
    hub.add(ID, write(tmp_path / "files", CONFIG_FILE, WEIGHTS_FILE))
    with pytest.raises(ValueError, match=f"(?i){message}.*{NO_FOLDER}"):
        download_folder(source, STORED_AS)


def test_a_connection_that_breaks_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(*_: Any, **__: Any) -> str:
        raise HTTPError("Server disconnected")  # of the HTTP client, and not an OSError

    monkeypatch.setattr(huggingface_hub, "snapshot_download", breaks)
    with pytest.raises(ValueError, match=rf"{ID} is not a local path, and could not be downloaded.*Server disconnected {NO_FOLDER}"):
        download_folder(f"hf-hub:{ID}", STORED_AS)


def test_a_hub_that_cannot_be_reached_is_told(hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ValueError, match=rf"{ID} is not a local path, and could not be downloaded.*ConnectError.*{NO_FOLDER}"):
        download_folder(f"hf-hub:{ID}", STORED_AS)


@pytest.mark.parametrize("ending", ["/unet2", "", "/vae/old", "/vae"])
def test_a_folder_without_an_autoencoder_in_safetensors_is_told(ending: str, hub: LoopbackHub, tmp_path: Path) -> None:
    hub.add(ID, write(tmp_path / "files", *PIPELINE, *MORE, "vae/config.json"))
    message = f"hf-hub:{ID}{ending} has none of `config.json` with `diffusion_pytorch_model.safetensors`, and none of `*encoder*.safetens"
    with pytest.raises(ValueError, match=re.escape(message)):
        download_folder(f"hf-hub:{ID}{ending}", STORED_AS)


def test_names_on_the_hub() -> None:
    good = ("a/b", "a/b/vae", "a/b@main", "a/b/vae/old@refs/pr/1", f"{ID}@{'0' * 40}")
    assert all(is_hub_folder(f"hf-hub:{name}") for name in good)
    bad = ("a", "a/", "/b", "a/b/", "a/b/../c", "a/b//c", "a/b@", "a/b@x@y", "a/b/*", "a/b c", "")
    assert not [name for name in bad if is_hub_folder(f"hf-hub:{name}")]
    assert not is_hub_folder("a/b")
    assert is_hub_id(ID)
    assert not is_hub_id("a/b/c")
