"""Batches of tensors: pictures in and out, and a set cut into parts."""

import numpy as np
import torch
from torch import Tensor

Batch = dict[str, Tensor]

VAL_BATCH = 64  # samples a validation forward
VAL_SAMPLES = 256  # held-out samples that validation looks at, at most


def to_float(images: np.ndarray) -> Tensor:
    """uint8 (B, H, W, 3) -> float (B, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1


def to_uint8(images: Tensor) -> np.ndarray:
    """float (B, 3, H, W) in [-1, 1] -> uint8 (B, H, W, 3)."""
    return ((images.float().clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()


def chunks(num: int, size: int = VAL_BATCH) -> list[range]:
    """0 .. num - 1 in ranges of `size`, the last one shorter."""
    return [range(start, min(start + size, num)) for start in range(0, num, size)]


def mirrored(images: Tensor, flips: Tensor) -> Tensor:
    """images (B, 3, H, W), those with a flip (B,) bool left to right"""
    return torch.where(flips[:, None, None, None], images.flip(-1), images)
