"""Images as arrays: uint8 (B, H, W, 3) in files and metrics, float (B, 3, H, W) in [-1, 1] in networks; grids of images."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

GAP = 2  # px of white between the images of a grid


def to_float(images: np.ndarray) -> Tensor:
    """uint8 (B, H, W, 3) -> float (B, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1


def to_uint8(images: Tensor) -> np.ndarray:
    """float (B, 3, H, W), clamped to [-1, 1] -> uint8 (B, H, W, 3)."""
    return ((images.float().clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()


@torch.no_grad()
def map_pictures(change: Callable[[Tensor], Tensor], images: np.ndarray, *, batch_size: int, device: torch.device) -> np.ndarray:
    """Apply `change` to float images in batches: uint8 (N, H, W, 3) -> uint8 (N, H', W', 3)."""
    starts = range(0, len(images), batch_size)
    return np.concatenate([to_uint8(change(to_float(images[start : start + batch_size]).to(device))) for start in starts])


def picture_grid(images: np.ndarray, columns: int) -> np.ndarray:
    """uint8 (B, H, W, 3) -> one uint8 image with `columns` columns, filled row by row; empty cells are white."""
    num, height, width, _ = images.shape
    rows = -(-num // columns)
    grid = np.full((rows * (height + GAP) - GAP, columns * (width + GAP) - GAP, 3), 255, np.uint8)
    for index, image in enumerate(images):
        top, left = (index // columns) * (height + GAP), (index % columns) * (width + GAP)
        grid[top : top + height, left : left + width] = image
    return grid
