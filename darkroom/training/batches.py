"""Batches of tensors, and a set cut into parts."""

import torch
from torch import Tensor

Batch = dict[str, Tensor]

VAL_BATCH = 64  # samples a validation forward
VAL_SAMPLES = 256  # held-out samples that validation looks at, at most


def chunks(num: int, size: int = VAL_BATCH) -> list[range]:
    """0 .. num - 1 in ranges of `size`, the last one shorter."""
    return [range(start, min(start + size, num)) for start in range(0, num, size)]


def mirrored(images: Tensor, flips: Tensor) -> Tensor:
    """images (B, 3, H, W), those with a flip (B,) bool left to right"""
    return torch.where(flips[:, None, None, None], images.flip(-1), images)
