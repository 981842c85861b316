"""Weights that others wrote: safetensors, or pickles that torch reads as tensors and nothing else."""

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
DAMAGES = (RuntimeError, EOFError, OSError, ValueError, LookupError, AttributeError, TypeError)  # what bytes of another kind lead to


def read_foreign_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, mapped from the disk rather than copied where the format allows it.

    A training checkpoint gives its `state_dict`; counters, optimizer and callbacks beside it are left.

    Raises:
        ValueError: it is missing, of an unknown kind, unreadable, or a pickle with more than tensors in it.
    """
    if path.suffix not in SUFFIXES:
        raise ValueError(f"{path} should be a file of weights: {', '.join(SUFFIXES)}.")
    if not path.is_file():
        raise ValueError(f"{path} is missing.")
    if path.suffix == ".safetensors":
        return read_weights(path)
    content = _unpickle(path)
    weights = content.get("state_dict", content) if isinstance(content, Mapping) else None
    if not isinstance(weights, Mapping):
        raise ValueError(f"{path} holds a {type(content).__name__}, not a table of weights.")
    if strange := [key for key, value in weights.items() if not isinstance(value, Tensor)]:
        raise ValueError(f"{path}: `{strange[0]}` is a {type(weights[strange[0]]).__name__}, not a tensor.")
    return dict(weights)


def _unpickle(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (*DAMAGES, pickle.UnpicklingError) as error:
        said = str(error).rpartition("WeightsUnpickler error:")[2]  # before it torch explains its own defaults
        if program := re.search(r"GLOBAL (\S+)", said):
            raise ValueError(
                f"{path} is a pickle that holds more than weights (`{program[1]}`), and such a file can run any program: it was refused "
                "and nothing in it was run. Take the model's .safetensors file."
            ) from error
        raise ValueError(f"{path} is damaged or no file of torch: {' '.join(said.split())[:200]}") from error


def read_metadata(path: Path) -> dict[str, str]:
    """The free text in the head of a .safetensors file; {} for other files."""
    if path.suffix != ".safetensors":
        return {}
    with safe_open(path, "pt") as file:
        return dict(file.metadata() or {})
