"""Weights in foreign files: safetensors, or pickles, from which torch reads tensors only."""

import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from darkroom.models.weights import read_weights

PICKLES = (".ckpt", ".bin", ".pt", ".pth")
SUFFIXES = (".safetensors", *PICKLES)
DAMAGES = (
    RuntimeError,
    EOFError,
    OSError,
    ValueError,
    LookupError,
    AttributeError,
    TypeError,
)  # for damaged or other files


def read_foreign_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, memory-mapped if the format allows it.

    From a training checkpoint, its `state_dict`, without counters, optimizer and callbacks.

    Raises:
        ValueError: the file is missing, of an unknown kind, unreadable, or a pickle with more than tensors.
    """
    if path.suffix not in SUFFIXES:
        raise ValueError(f"{path} is not a file of weights; expected one of {', '.join(SUFFIXES)}.")
    if not path.is_file():
        raise ValueError(f"{path} is missing.")
    if path.suffix == ".safetensors":
        return read_weights(path)
    content = _unpickle(path)
    weights = content.get("state_dict", content) if isinstance(content, Mapping) else None
    if not isinstance(weights, Mapping):
        raise ValueError(f"{path} contains a {type(content).__name__}, not weights by name.")
    if unexpected := [key for key, value in weights.items() if not isinstance(value, Tensor)]:
        raise ValueError(f"{path}: `{unexpected[0]}` is a {type(weights[unexpected[0]]).__name__}, not a tensor.")
    return dict(weights)


def _unpickle(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (*DAMAGES, pickle.UnpicklingError) as error:
        reason = str(error).rpartition("WeightsUnpickler error:")[2]  # without torch's explanation of its defaults
        if program := re.search(r"GLOBAL (\S+)", reason):
            raise ValueError(
                f"{path} is a pickle with more than weights (`{program[1]}`). Such a file can run any program: it was refused, and nothing "
                "in it was run. Use the .safetensors file of the model."
            ) from error
        raise ValueError(f"{path} is damaged or not a PyTorch file: {' '.join(reason.split())[:200]}") from error


def read_file_metadata(path: Path) -> dict[str, str]:
    """The metadata of a .safetensors file; {} for other files."""
    if path.suffix != ".safetensors":
        return {}
    with safe_open(path, "pt") as file:
        return dict(file.metadata() or {})
