"""Euclidean distances between feature vectors, in blocks, so that memory stays small."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

Features = NDArray[np.floating]  # (N, D)
BLOCK = 1024  # rows at a time


def distance_blocks(x: Features, y: Features) -> Iterator[tuple[slice, NDArray[np.float64]]]:
    """Rows of `x`, and their distances (rows, len(y)) to all of `y`."""
    centre = y.mean(axis=0, dtype=np.float64)  # distances do not change, and |a|² + |b|² - 2ab loses fewer digits
    y = y - centre
    y_squared = np.square(y).sum(axis=1)
    for start in range(0, len(x), BLOCK):
        rows = slice(start, min(start + BLOCK, len(x)))
        block = x[rows] - centre
        squared = np.square(block).sum(axis=1)[:, None] + y_squared - 2 * block @ y.T
        yield rows, np.sqrt(np.maximum(squared, 0))


def nearest(x: Features, y: Features, *, skip_self: bool = False) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Index in `y` of the nearest row to each row of `x`, and its distance; with `skip_self` row i of `y` is not taken for row i."""
    assert len(y) > skip_self
    index = np.empty(len(x), dtype=np.intp)
    for rows, distances in distance_blocks(x, y):
        if skip_self:
            np.fill_diagonal(distances[:, rows.start :], np.inf)
        index[rows] = distances.argmin(axis=1)
    return index, np.linalg.norm(x.astype(np.float64) - y[index], axis=1)


def radius(x: Features, k: int) -> NDArray[np.float64]:
    """Distance of each row to its k-th nearest other row: (N,)."""
    assert 0 < k < len(x)
    found = np.empty(len(x))
    for rows, distances in distance_blocks(x, x):
        np.fill_diagonal(distances[:, rows.start :], np.inf)
        found[rows] = np.partition(distances, k - 1, axis=1)[:, k - 1]
    return found
