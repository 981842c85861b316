"""Where towers come from and go to: open_clip reads what we save, we read what it names, and every bad source is told."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from darkroom.models.clip import CONFIG_FILE, WEIGHTS_FILE, ClipTowers
from tests.models.tiny_clip import CAPTIONS, TINY


@pytest.fixture(scope="module")
def folder(towers: ClipTowers, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clip")
    towers.save(path)
    return path


@pytest.fixture
def tiny_arch(folder: Path, tmp_path: Path) -> str:
    """A name that open_clip knows as an architecture."""
    config = tmp_path / "darkroom-tiny.json"
    config.write_text(json.dumps(json.loads((folder / CONFIG_FILE).read_text())["model_cfg"]))
    open_clip.add_model_config(config)
    return "darkroom-tiny"


def pictures(size: int = 16, count: int = 2) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def assert_same_towers(first: ClipTowers, second: ClipTowers) -> None:
    torch.testing.assert_close(first.state_dict(), second.state_dict(), rtol=0, atol=0)
    assert torch.equal(first.tokenize(CAPTIONS), second.tokenize(CAPTIONS))
    torch.testing.assert_close(first.encode_images(pictures()), second.encode_images(pictures()))


@torch.no_grad()
def test_open_clip_alone_loads_model_tokenizer_and_preprocessing_from_our_folder(towers: ClipTowers, folder: Path) -> None:
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    tokens = tokenizer(CAPTIONS)
    assert torch.equal(tokens, towers.tokenize(CAPTIONS))
    assert tokens.shape == (2, TINY["context_length"])
    images = torch.stack([preprocess(Image.fromarray(picture)) for picture in pictures()])
    image_features, text_features, scale = model.eval()(images, tokens)
    ours = towers(torch.from_numpy(pictures()), tokens)
    torch.testing.assert_close(ours, (image_features, text_features, scale))


def test_our_folder_loads_again_as_it_was(towers: ClipTowers, folder: Path) -> None:
    loaded = ClipTowers.load(folder)
    assert_same_towers(loaded, towers)
    assert not loaded.training


def test_saving_a_loaded_model_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    ClipTowers.load(folder).save(tmp_path / "once")
    ClipTowers.load(tmp_path / "once").save(tmp_path / "twice")
    assert (tmp_path / "once" / WEIGHTS_FILE).read_bytes() == (folder / WEIGHTS_FILE).read_bytes()
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        assert (tmp_path / "once" / name).read_bytes() == (tmp_path / "twice" / name).read_bytes()


def test_an_architecture_with_a_local_file_loads(towers: ClipTowers, folder: Path, tiny_arch: str) -> None:
    loaded = ClipTowers.load(f"{tiny_arch}::{folder / WEIGHTS_FILE}")
    torch.testing.assert_close(loaded.state_dict()["model.visual.proj"], towers.model.visual.proj.detach(), rtol=0, atol=0)
    assert tuple(loaded.preprocess_cfg["mean"]) == open_clip.OPENAI_DATASET_MEAN  # a bare file says nothing about pixels


def test_a_hub_name_goes_through_open_clips_own_download(towers: ClipTowers, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def download(model_id: str, filename: str | None = None, **_: Any) -> str:
        asked.append(model_id)
        return str(folder / (filename or WEIGHTS_FILE))

    monkeypatch.setattr(open_clip.factory, "download_pretrained_from_hf", download)
    assert_same_towers(ClipTowers.load("hf-hub:someone/something"), towers)
    assert set(asked) == {"someone/something"}


def test_loading_and_building_leave_the_global_generator_alone(folder: Path) -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    ClipTowers.load(folder)
    ClipTowers.build(TINY, seed=5)
    torch.testing.assert_close(torch.rand(1), expected, rtol=0, atol=0)


def test_initial_weights_depend_on_the_seed_alone(towers: ClipTowers) -> None:
    torch.testing.assert_close(ClipTowers.build(TINY, seed=0).state_dict(), towers.state_dict(), rtol=0, atol=0)
    assert not torch.equal(ClipTowers.build(TINY, seed=1).model.visual.proj, towers.model.visual.proj)


@pytest.mark.parametrize("name", ["vision_width", "text_width"])
def test_a_width_that_heads_do_not_divide_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=rf"model\.{name} is 40; it must be a multiple of 32"):
        ClipTowers.build(TINY | {name: 40}, seed=0)


def test_pictures_that_patches_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match=r"model\.image_size \(18\) must be a multiple of model\.patch_size \(8\)"):
        ClipTowers.build(TINY | {"image_size": 18}, seed=0)


@pytest.mark.parametrize("source", ["", "ViT-B-32", "ViT-B-32::", "no/such/folder", "a::b::c"])
def test_a_source_of_no_known_form_is_refused(source: str) -> None:
    with pytest.raises(ValueError, match="not found: give an existing folder, ARCH::TAG"):
        ClipTowers.load(source)


def test_an_unknown_tag_is_refused_with_the_source(tiny_arch: str) -> None:
    with pytest.raises(ValueError, match=rf"CLIP `{tiny_arch}::nowhere` could not be loaded: .*'nowhere' is not a known tag"):
        ClipTowers.load(f"{tiny_arch}::nowhere")


def test_a_folder_without_weights_is_refused_rather_than_left_random(folder: Path, tmp_path: Path) -> None:
    (tmp_path / CONFIG_FILE).write_bytes((folder / CONFIG_FILE).read_bytes())
    with pytest.raises(ValueError, match="could not be loaded: Required pretrained weights"):
        ClipTowers.load(tmp_path)


def test_weights_of_another_size_are_refused(folder: Path, tmp_path: Path) -> None:
    ClipTowers.build(TINY | {"text_layers": 1}, seed=0).save(tmp_path)
    (tmp_path / CONFIG_FILE).write_bytes((folder / CONFIG_FILE).read_bytes())
    with pytest.raises(ValueError, match=r"could not be loaded: .*Missing key.*resblocks\.1"):
        ClipTowers.load(tmp_path)


def test_a_damaged_weights_file_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / CONFIG_FILE).write_bytes((folder / CONFIG_FILE).read_bytes())
    (tmp_path / WEIGHTS_FILE).write_bytes(b"no safetensors")
    with pytest.raises(ValueError, match="could not be loaded"):
        ClipTowers.load(tmp_path)


def test_a_pickle_with_code_in_it_is_refused_and_not_run(folder: Path, tiny_arch: str, tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "exploded"),)

    torch.save(load_file(folder / WEIGHTS_FILE) | {"bomb": Bomb()}, tmp_path / "weights.pt")
    with pytest.raises(ValueError, match=r"could not be loaded: .*[Ww]eights_only"):
        ClipTowers.load(f"{tiny_arch}::{tmp_path / 'weights.pt'}")
    assert not (tmp_path / "exploded").exists()


def test_another_kind_of_text_encoder_is_refused(folder: Path, tmp_path: Path) -> None:
    config = json.loads((folder / CONFIG_FILE).read_text())
    model = open_clip.CustomTextCLIP(**config["model_cfg"])
    config["model_cfg"]["custom_text"] = True
    (tmp_path / CONFIG_FILE).write_text(json.dumps(config))
    torch.save(model.state_dict(), tmp_path / "open_clip_pytorch_model.bin")
    with pytest.raises(ValueError, match="has a text encoder or tokenizer other than CLIP's own"):
        ClipTowers.load(tmp_path)


def test_a_tokenizer_that_is_not_clips_own_is_refused(folder: Path, tmp_path: Path) -> None:
    config = json.loads((folder / CONFIG_FILE).read_text())
    config["model_cfg"]["text_cfg"]["hf_tokenizer_name"] = "someone/tokenizer"
    (tmp_path / CONFIG_FILE).write_text(json.dumps(config))
    (tmp_path / WEIGHTS_FILE).write_bytes((folder / WEIGHTS_FILE).read_bytes())
    with pytest.raises(ValueError, match="has a text encoder or tokenizer other than CLIP's own"):
        ClipTowers.load(tmp_path)


def test_the_tokenizer_is_set_up_as_open_clip_would(folder: Path, tmp_path: Path) -> None:
    config = json.loads((folder / CONFIG_FILE).read_text())
    config["model_cfg"]["text_cfg"]["tokenizer_kwargs"] = {"clean": "whitespace"}  # keeps capitals
    (tmp_path / CONFIG_FILE).write_text(json.dumps(config))
    (tmp_path / WEIGHTS_FILE).write_bytes((folder / WEIGHTS_FILE).read_bytes())
    tokens = ClipTowers.load(tmp_path).tokenize(["A Black Cat"])
    assert torch.equal(tokens, open_clip.get_tokenizer(f"local-dir:{tmp_path}")(["A Black Cat"]))
    assert not torch.equal(tokens, ClipTowers.load(folder).tokenize(["A Black Cat"]))
