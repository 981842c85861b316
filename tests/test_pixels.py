import numpy as np
import torch

from darkroom.pixels import GAP, map_pictures, picture_grid, to_float, to_uint8


def test_pictures_come_back_as_they_went():
    images = np.random.default_rng(0).integers(0, 256, (2, 5, 7, 3)).astype(np.uint8)
    there = to_float(images)
    assert there.shape == (2, 3, 5, 7)
    assert there.min() >= -1
    assert there.max() <= 1
    np.testing.assert_array_equal(to_uint8(there), images)


def test_values_beyond_the_range_are_clamped():
    np.testing.assert_array_equal(to_uint8(torch.tensor([-3.0, 0.0, 3.0]).reshape(1, 3, 1, 1)), [[[[0, 128, 255]]]])


def test_a_map_over_batches_is_the_map_over_all():
    images = np.random.default_rng(0).integers(0, 256, (5, 4, 4, 3)).astype(np.uint8)
    mirrored = map_pictures(lambda pictures: pictures.flip(-1), images, batch_size=2, device=torch.device("cpu"))
    np.testing.assert_array_equal(mirrored, images[:, :, ::-1])


def test_a_grid_holds_every_picture_in_its_place_on_white():
    images = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
    grid = picture_grid(images, columns=3)
    assert grid.shape == (2 * 8 + GAP, 3 * 8 + 2 * GAP, 3)
    for index, image in enumerate(images):
        top, left = index // 3 * (8 + GAP), index % 3 * (8 + GAP)
        np.testing.assert_array_equal(grid[top : top + 8, left : left + 8], image)
    assert np.all(grid[8 + GAP :, 2 * (8 + GAP) :] == 255)
