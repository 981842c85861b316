"""Nearest neighbours in feature space.

Rows may belong to groups: a photo and a sample of its caption are not independent, so distances within a group are left out.
Without groups every row is a group of its own. Distances are Euclidean and computed in blocks of a fixed number of bytes: no matrix
of all pairs and no copy of all rows is ever in memory.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

Features = NDArray[np.floating]  # (N, D)
Groups = NDArray[np.intp]  # (N,)
BLOCK_BYTES = 8 * 2**20  # of one block of float64
EQUAL = 1e-14  # rows whose squared distance is below this part of their squared lengths are equal, but for rounding


def row_blocks(rows: slice, num_columns: int) -> Iterator[slice]:
    """Parts of `rows` such that a float64 array of one part by `num_columns` has at most `BLOCK_BYTES`."""
    step = max(1, BLOCK_BYTES // (8 * num_columns))
    for start in range(rows.start, rows.stop, step):
        yield slice(start, min(start + step, rows.stop))


def distance_blocks(
    x: Features, y: Features, x_groups: Groups | None = None, y_groups: Groups | None = None
) -> Iterator[tuple[slice, NDArray[np.float64]]]:
    """Rows of `x`, and their distances (rows, len(y)) to all of `y`; inf within a group, 0 between equal rows."""
    centre = y.mean(axis=0, dtype=np.float64)  # subtracted from both: |a|² + |b|² - 2ab then loses fewer digits
    for rows in row_blocks(slice(0, len(x)), max(len(y), x.shape[1])):
        block = x[rows] - centre
        distances = np.empty((len(block), len(y)))
        for columns in row_blocks(slice(0, len(y)), max(len(block), x.shape[1])):
            others = y[columns] - centre
            lengths = np.square(block).sum(axis=1)[:, None] + np.square(others).sum(axis=1)
            squared = lengths - 2 * block @ others.T
            squared[squared <= EQUAL * lengths] = 0
            distances[:, columns] = np.sqrt(squared)
        if x_groups is not None and y_groups is not None:
            distances[x_groups[rows, None] == y_groups] = np.inf
        yield rows, distances


def nearest(
    x: Features, y: Features, x_groups: Groups | None = None, y_groups: Groups | None = None
) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Index in `y` of the nearest row (of another group) to each row of `x`, and its distance."""
    index, distance = np.empty(len(x), np.intp), np.empty(len(x))
    for rows, distances in distance_blocks(x, y, x_groups, y_groups):
        index[rows] = distances.argmin(axis=1)
        distance[rows] = np.linalg.norm(x[rows].astype(np.float64) - y[index[rows]], axis=1)
    return index, distance


def radius(x: Features, k: int, groups: Groups | None = None) -> NDArray[np.float64]:
    """Distance of each row to its k-th nearest row of another group: (N,)."""
    groups = np.arange(len(x)) if groups is None else groups
    kth = np.empty(len(x))
    for rows, distances in distance_blocks(x, x, groups, groups):
        kth[rows] = np.partition(distances, k - 1, axis=1)[:, k - 1]
    return kth


def unit(x: Features) -> NDArray[np.float64]:
    """Rows of length 1; a row of zeros stays as it is."""
    wide = x.astype(np.float64)
    return wide / np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), np.finfo(np.float64).tiny)


def check_features(features: Features, num: int, *, at_least: int) -> None:
    """Refuse features (N, D) of too few images, of which `num` are independent, or that are not finite.

    Raises:
        ValueError: either of them.
    """
    if num < at_least:
        raise ValueError(
            f"This distance needs at least {at_least} independent images on each side, but there are {num}. "
            "Hold out more photos (ingest.val_fraction) or draw more samples (evaluate.num_samples)."
        )
    if not all(np.isfinite(features[rows]).all() for rows in row_blocks(slice(0, len(features)), features.shape[1])):
        raise ValueError("An image has features that are not finite: the extractor overflows on it, or its weights are damaged.")
