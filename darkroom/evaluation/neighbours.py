"""Nearest neighbours in feature space.

Rows may belong to groups: a photo and a sample of its caption are not independent, so distances within a group are left out.
Without groups every row is a group of its own. Distances are Euclidean and computed in blocks, so that memory stays small.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

Features = NDArray[np.floating]  # (N, D)
Groups = NDArray[np.intp]  # (N,)
BLOCK = 1024  # rows at a time


def distance_blocks(
    x: Features, y: Features, x_groups: Groups | None = None, y_groups: Groups | None = None
) -> Iterator[tuple[slice, NDArray[np.float64]]]:
    """Rows of `x`, and their distances (rows, len(y)) to all of `y`; inf within a group."""
    centre = y.mean(axis=0, dtype=np.float64)  # subtracted from both: |a|² + |b|² - 2ab then loses fewer digits
    y = y - centre
    y_squared = np.square(y).sum(axis=1)
    for start in range(0, len(x), BLOCK):
        rows = slice(start, min(start + BLOCK, len(x)))
        block = x[rows] - centre
        distances = np.sqrt(np.maximum(np.square(block).sum(axis=1)[:, None] + y_squared - 2 * block @ y.T, 0))
        if x_groups is not None and y_groups is not None:
            distances[x_groups[rows, None] == y_groups] = np.inf
        yield rows, distances


def nearest(
    x: Features, y: Features, x_groups: Groups | None = None, y_groups: Groups | None = None
) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Index in `y` of the nearest row (of another group) to each row of `x`, and its distance."""
    blocks = distance_blocks(x, y, x_groups, y_groups)
    index = np.concatenate([distances.argmin(axis=1) for _, distances in blocks])
    return index, np.linalg.norm(x.astype(np.float64) - y[index], axis=1)


def radius(x: Features, k: int, groups: Groups | None = None) -> NDArray[np.float64]:
    """Distance of each row to its k-th nearest row of another group: (N,)."""
    groups = np.arange(len(x)) if groups is None else groups
    blocks = distance_blocks(x, x, groups, groups)
    return np.concatenate([np.partition(distances, k - 1, axis=1)[:, k - 1] for _, distances in blocks])
