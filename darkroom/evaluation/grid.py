"""Pictures side by side."""

import numpy as np

GAP = 2  # px of white between pictures


def picture_grid(images: np.ndarray, columns: int) -> np.ndarray:
    """uint8 (B, H, W, 3) -> one picture (rows, row by row), uint8; the last row is filled up with white."""
    num, height, width, _ = images.shape
    rows = -(-num // columns)
    grid = np.full((rows * (height + GAP) - GAP, columns * (width + GAP) - GAP, 3), 255, np.uint8)
    for index, image in enumerate(images):
        top, left = (index // columns) * (height + GAP), (index % columns) * (width + GAP)
        grid[top : top + height, left : left + width] = image
    return grid
