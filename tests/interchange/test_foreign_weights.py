"""Files of weights that others wrote: tensors are read, programs are not run."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from darkroom.interchange.exchange import import_model
from darkroom.interchange.foreign_weights import read_foreign_weights

WEIGHTS = {"a.weight": torch.arange(6.0).reshape(2, 3), "b.bias": torch.ones(2, dtype=torch.float16)}


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before torch 1.6"])
@pytest.mark.parametrize("nested", [True, False])
def test_a_pickle_of_tensors_is_read(tmp_path: Path, zipped: bool, nested: bool) -> None:
    content = {"state_dict": WEIGHTS, "epoch": 3} if nested else WEIGHTS
    torch.save(content, tmp_path / "model.ckpt", _use_new_zipfile_serialization=zipped)
    torch.testing.assert_close(read_foreign_weights(tmp_path / "model.ckpt"), WEIGHTS, rtol=0, atol=0)


def test_a_pickle_with_code_in_it_is_refused_and_not_run(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "exploded"),)

    torch.save({"state_dict": WEIGHTS, "callbacks": Bomb()}, tmp_path / "model.ckpt")
    with pytest.raises(
        ValueError, match=r"more than weights \(`\w+\.mkdir`\)\. .* it was refused, and nothing in it was run\. Use the \.safetensors"
    ):
        import_model(str(tmp_path / "model.ckpt"), tmp_path / "out")
    assert not (tmp_path / "exploded").exists()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], r"contains a list, not weights by name"),
        ({"state_dict": [1]}, r"contains a dict, not weights by name"),
        (WEIGHTS | {"name": "cat"}, r"`name` is a str, not a tensor"),
    ],
)
def test_a_pickle_of_something_else_is_told(tmp_path: Path, content: Any, message: str) -> None:
    torch.save(content, tmp_path / "model.bin")
    with pytest.raises(ValueError, match=message):
        read_foreign_weights(tmp_path / "model.bin")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"PK\x03\x04 half a zip",
        b"<!DOCTYPE html>",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 4265380512\n",
        b"0",  # takes from an empty stack
    ],
    ids=["empty", "half a zip", "a page", "a pointer of git-lfs", "a pickle of nothing"],
)
def test_a_damaged_file_is_told(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.ckpt").write_bytes(content)
    with pytest.raises(ValueError, match=r"model\.ckpt is damaged or not a PyTorch file"):
        read_foreign_weights(tmp_path / "model.ckpt")


def test_half_of_a_checkpoint_is_told(tmp_path: Path) -> None:
    torch.save(WEIGHTS, tmp_path / "model.ckpt")
    whole = (tmp_path / "model.ckpt").read_bytes()
    (tmp_path / "model.ckpt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"model\.ckpt is damaged or not a PyTorch file"):
        read_foreign_weights(tmp_path / "model.ckpt")


@pytest.mark.parametrize("name", ["model.ckpt", "model.safetensors"])
def test_a_file_that_is_missing_is_told(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=rf"{name} is missing\.$"):
        import_model(str(tmp_path / name), tmp_path / "out")


def test_a_file_of_another_kind_is_told(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(ValueError, match=r"gguf is not a file of weights; expected one of \.safetensors, \.ckpt, \.bin, \.pt, \.pth"):
        import_model(str(tmp_path / "model.gguf"), tmp_path / "out")
