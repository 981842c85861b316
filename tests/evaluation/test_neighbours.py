import numpy as np
import pytest
from scipy.spatial.distance import cdist

from darkroom.evaluation.neighbours import nearest, radius, unit

random = np.random.default_rng(0)
HELD_OUT, FRESH = (random.normal(size=(count, 6)) for count in (100, 400))


@pytest.mark.parametrize("block_bytes", [1, 700, 2**25])
def test_neighbours_are_those_of_all_distances_whatever_the_block(monkeypatch, block_bytes):
    monkeypatch.setattr("darkroom.evaluation.neighbours.BLOCK_BYTES", block_bytes)
    x, y = FRESH[:20], HELD_OUT[:30]
    index, distance = nearest(x, y)
    np.testing.assert_array_equal(index, cdist(x, y).argmin(1))
    np.testing.assert_allclose(distance, cdist(x, y).min(1))
    others = cdist(x, x) + np.diag(np.full(20, np.inf))
    np.testing.assert_allclose(radius(x, 4), np.sort(others, axis=1)[:, 3])


@pytest.mark.parametrize("block_bytes", [1, 700, 2**25])
def test_rows_of_one_group_are_no_neighbours(monkeypatch, block_bytes):
    monkeypatch.setattr("darkroom.evaluation.neighbours.BLOCK_BYTES", block_bytes)
    x, y = FRESH[:20], HELD_OUT[:30]
    of_x, of_y = np.arange(20) % 5, np.arange(30) % 7
    distances = np.where(of_x[:, None] == of_y, np.inf, cdist(x, y))
    index, distance = nearest(x, y, of_x, of_y)
    np.testing.assert_array_equal(index, distances.argmin(1))
    np.testing.assert_allclose(distance, distances.min(1))
    others = np.where(of_x[:, None] == of_x, np.inf, cdist(x, x))
    np.testing.assert_allclose(radius(x, 4, of_x), np.sort(others, axis=1)[:, 3])


def test_equal_rows_are_no_distance_apart_although_distances_are_rounded():
    rows = 1000 + random.normal(size=(40, 300)).astype(np.float32)
    np.testing.assert_array_equal(radius(np.concatenate([rows, rows]), 1), 0)
    _, distance = nearest(rows, rows[::-1])
    np.testing.assert_array_equal(distance, 0)


def test_rows_brought_to_length_one_keep_their_direction_and_rows_of_zeros_stay():
    np.testing.assert_allclose(unit(np.array([[3.0, 4.0], [0.0, 0.0]], np.float32)), [[0.6, 0.8], [0, 0]])
