"""Between uint8 pictures (B, H, W, 3), as files and metrics have them, and float pictures (B, 3, H, W) in [-1, 1], as networks do."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor


def to_float(images: np.ndarray) -> Tensor:
    """uint8 (B, H, W, 3) -> float (B, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1


def to_uint8(images: Tensor) -> np.ndarray:
    """float (B, 3, H, W), clamped to [-1, 1] -> uint8 (B, H, W, 3)."""
    return ((images.float().clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()


@torch.no_grad()
def map_pictures(change: Callable[[Tensor], Tensor], images: np.ndarray, *, batch_size: int, device: torch.device) -> np.ndarray:
    """uint8 (N, H, W, 3) through `change` on float pictures, a batch at a time, to uint8 (N, H', W', 3)."""
    starts = range(0, len(images), batch_size)
    return np.concatenate([to_uint8(change(to_float(images[start : start + batch_size]).to(device))) for start in starts])
