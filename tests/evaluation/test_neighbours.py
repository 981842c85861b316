import numpy as np
import pytest
from scipy.spatial.distance import cdist

from darkroom.evaluation.neighbours import memorization, nearest, radius, unit

random = np.random.default_rng(0)
TRAIN, HELD_OUT, FRESH = (random.normal(size=(count, 6)) for count in (900, 100, 400))


def test_copies_of_training_photos_are_all_found_and_named():
    picks = random.permutation(900)[:50]
    found = memorization(TRAIN[picks], TRAIN, HELD_OUT)
    assert found.copied_fraction == 1
    np.testing.assert_array_equal(found.nearest_photo, picks)
    np.testing.assert_array_equal(found.ratio, 0)


def test_a_copy_of_a_photo_that_is_in_both_splits_is_a_copy():
    held_out = np.concatenate([HELD_OUT, TRAIN[:1]])
    assert memorization(TRAIN[:1], TRAIN, held_out).ratio == [0]


def test_slightly_changed_copies_are_found_too():
    picks = random.permutation(900)[:50]
    found = memorization(TRAIN[picks] + random.normal(0, 0.05, (50, 6)), TRAIN, HELD_OUT)
    assert found.copied_fraction == 1


def test_fresh_pictures_are_copied_by_half_although_training_photos_are_nine_times_as_many():
    sets = [[random.normal(size=(count, 6)) for count in (400, 900, 100)] for _ in range(20)]
    found = [memorization(*arrays) for arrays in sets]
    assert abs(np.mean([each.copied_fraction for each in found]) - 0.5) < 0.05  # each is within 0.5 ± 0.06
    assert np.mean([each.ratio < 1 for each in found]) > 0.8  # uncalibrated, they look like copies


def test_blurred_samples_near_the_mean_are_not_taken_for_copies():
    sets = [[random.normal(size=(count, 6)) for count in (400, 900, 100)] for _ in range(20)]
    nearest_only = [np.mean(nearest(0.2 * s, t)[1] < np.median(nearest(h, t)[1])) for s, t, h in sets]
    assert np.mean(nearest_only) > 0.95  # nearer to training photos than held-out photos are, and yet no copies
    assert np.mean([memorization(0.2 * s, t, h).copied_fraction for s, t, h in sets]) < 0.65


def test_samples_that_are_the_held_out_photos_are_no_copies():
    assert memorization(HELD_OUT, TRAIN, HELD_OUT).copied_fraction == 0
    # and they are as the held-out photos are, when none is compared with itself
    np.testing.assert_allclose(memorization(HELD_OUT, TRAIN, HELD_OUT, np.arange(100)).copied_fraction, 0.5)


def test_being_near_to_the_photo_whose_caption_was_the_prompt_does_not_hide_copies():
    train = np.concatenate([TRAIN, HELD_OUT + random.normal(0, 0.2, HELD_OUT.shape)])  # each held-out photo has a near twin
    copies = train[900:] + random.normal(0, 0.05, HELD_OUT.shape)
    sources = np.arange(100)
    assert memorization(copies, train, HELD_OUT, sources).copied_fraction > 0.9


def test_the_closest_samples_come_first_in_the_picture_grid():
    samples = np.concatenate([FRESH[:5], TRAIN[7:8], FRESH[5:9], TRAIN[3:4] + 1e-4])
    assert list(memorization(samples, TRAIN, HELD_OUT).closest(2)) == [5, 10]


@pytest.mark.parametrize(("num_train", "num_held_out"), [(0, 2), (1, 1)])
def test_too_few_photos_to_compare_with_are_refused(num_train, num_held_out):
    with pytest.raises(ValueError, match=rf"there are {num_train} and {num_held_out}\..*ingest\.val_fraction"):
        memorization(FRESH, TRAIN[:num_train], HELD_OUT[:num_held_out])
    memorization(FRESH, TRAIN[:1], HELD_OUT[:2])


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
