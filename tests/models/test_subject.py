"""The subject is found where its classes score high: on maps of a known shape, with the network itself, and on photos."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from darkroom.data.picture import read_whole
from darkroom.demo.toy_cats import draw_toy_cats
from darkroom.models.classifier import SHIPPED_PIXELS, classifier_pixels, load_shipped
from darkroom.models.subject import ENLARGED, LEAST_SIDE, Found, SubjectFinder, class_map, locate

CATS = tuple(range(281, 286))
NOISE = np.random.default_rng(0).integers(0, 256, (227, 300, 3), dtype=np.uint8)


def scores(*parts: tuple[slice, slice, int], grid: tuple[int, int] = (20, 20), height: float = 2000.0) -> np.ndarray:
    """A class map of 1000 classes that is 0 but for parts of a class: rows, columns, number."""
    made = np.zeros((1000, *grid), np.float32)
    for rows, columns, number in parts:
        made[number, rows, columns] = height
    return made


def found(made: np.ndarray, classes: tuple[int, ...] = CATS, size: tuple[int, int] = (200, 200)) -> Found:
    result = locate(made, classes, size)
    assert result is not None
    return result


def sides(result: Found, size: tuple[int, int]) -> tuple[float, float]:
    """Width and height of the box in px."""
    left, top, right, bottom = result.box
    return (right - left) * size[1], (bottom - top) * size[0]


# ---- on maps


def test_the_box_lies_around_the_places_that_show_the_subject_and_is_a_square():
    result = found(scores((slice(4, 12), slice(10, 16), 283)))  # places of 10 px: rows 40 to 120, columns 100 to 160
    side = 80 * ENLARGED
    np.testing.assert_allclose(np.array(result.box) * 200, [130 - side / 2, 80 - side / 2, 130 + side / 2, 80 + side / 2], rtol=1e-6)
    assert result.certainty == 1.0
    assert result.word == "Persian cat"


def test_it_is_a_square_of_the_picture_whatever_the_shape_of_that():
    result = found(scores((slice(4, 12), slice(20, 26), 283), grid=(20, 40)), size=(300, 700))
    width, height = sides(result, (300, 700))
    assert width == pytest.approx(height) == pytest.approx(ENLARGED * 8 * 15)


def test_several_classes_of_the_subject_are_one_part():
    both = scores((slice(4, 12), slice(4, 8), 281), (slice(4, 12), slice(8, 12), 285))
    np.testing.assert_allclose(found(both).box, found(scores((slice(4, 12), slice(4, 12), 283))).box)


def test_of_two_parts_the_larger_one_counts():
    large = (slice(2, 10), slice(2, 10), 281)
    np.testing.assert_allclose(found(scores(large, (slice(15, 18), slice(15, 18), 281))).box, found(scores(large)).box)


def test_parts_that_touch_by_a_corner_are_one():
    result = found(scores((slice(4, 8), slice(4, 8), 281), (slice(8, 12), slice(8, 12), 281)))
    assert sides(result, (200, 200))[0] == pytest.approx(ENLARGED * 80)


@pytest.mark.parametrize(("rows", "columns"), [(slice(0, 8), slice(0, 8)), (slice(12, 20), slice(12, 20)), (slice(0, 8), slice(12, 20))])
def test_a_square_at_the_border_is_moved_into_the_picture(rows, columns):
    left, top, right, bottom = found(scores((rows, columns, 283))).box
    assert min(left, top) >= 0
    assert max(right, bottom) <= 1
    assert (right - left) * 200 == pytest.approx(ENLARGED * 80)
    assert (left == 0) == (columns.start == 0)
    assert (bottom == 1) == (rows.stop == 20)


def test_a_small_part_gets_a_third_of_the_shorter_side():
    result = found(scores((slice(9, 10), slice(9, 10), 283), height=3000.0))
    assert sides(result, (200, 200))[0] == pytest.approx(200 * LEAST_SIDE)


def test_a_subject_that_fills_the_picture_gets_the_largest_square():
    result = found(scores((slice(0, 20), slice(0, 40), 283), grid=(20, 40)), size=(200, 400))
    np.testing.assert_allclose(result.box, (0.25, 0, 0.75, 1))


def test_a_picture_without_the_subject_has_none():
    assert locate(scores(), CATS, (200, 200)) is None  # all scores are equal: the subject has its chance, and no more
    assert locate(scores((slice(0, 20), slice(0, 20), 7)), CATS, (200, 200)) is None
    assert locate(scores((slice(4, 12), slice(4, 12), 7)), (7,), (200, 200)) is not None


def test_certainty_is_the_share_of_the_classes_in_the_square():
    equal = scores((slice(0, 20), slice(0, 20), 283), (slice(0, 20), slice(0, 20), 7))
    assert found(equal).certainty == 0.5


# ---- with the network


@torch.inference_mode()
def test_the_average_of_the_class_map_is_what_the_classifier_says_of_the_picture():
    x = classifier_pixels(torch.tensor(NOISE).permute(2, 0, 1)[None].float() / 255, SHIPPED_PIXELS)
    expected = load_shipped()(x)[0].numpy()
    np.testing.assert_allclose(np.maximum(class_map(NOISE), 0).mean(axis=(1, 2)), expected, rtol=1e-4, atol=1e-3)


def test_a_finder_in_another_process_is_the_same_and_threads_change_nothing():
    finder = SubjectFinder(tuple(range(1000)))
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append(class_map(NOISE))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    np.testing.assert_array_equal(*results)
    assert pickle.loads(pickle.dumps(finder)) == finder


def test_a_drawn_picture_is_found_where_it_was_pasted(tmp_path: Path):
    draw_toy_cats(tmp_path, num_cats=1, size=96, seed=0)
    with Image.open(next(tmp_path.glob("*.png"))) as image:
        cat = np.asarray(image.convert("RGB"))
    for left, top in ((10, 10), (310, 110)):
        picture = np.full((227, 420, 3), 128, np.uint8)
        picture[top : top + 96, left : left + 96] = cat
        seen = np.maximum(class_map(picture), 0).max(axis=(1, 2)) - np.maximum(class_map(np.full_like(picture, 128)), 0).max(axis=(1, 2))
        result = locate(class_map(picture), [int(seen.argmax())], (227, 420))  # the class that the cat adds to the picture
        assert result is not None
        middle = (result.box[0] + result.box[2]) * 210, (result.box[1] + result.box[3]) * 113.5
        assert left - 16 < middle[0] < left + 112
        assert top - 16 < middle[1] < top + 112


def test_real_cats_are_found_and_nothing_is_found_in_noise_or_one_colour(shared):
    finder = SubjectFinder(CATS)
    photos = sorted((shared / "data/cats").glob("*.jpg"))[::50]
    results = [finder(read_whole(path, 100.0)) for path in photos]
    assert sum(result is not None for result in results) >= 8
    assert finder(NOISE) is None
    assert finder(np.full((227, 300, 3), 90, np.uint8)) is None


def test_a_real_cat_is_found_where_it_was_pasted(shared):
    finder = SubjectFinder(CATS)
    with Image.open(shared / "data/cats/Abyssinian_100.jpg") as image:
        cat = np.asarray(image.convert("RGB").resize((130, 130)))
    picture = np.full((227, 440, 3), 128, np.uint8)
    picture[80:210, 290:420] = cat
    result = finder(picture)
    assert result is not None
    assert result.box[0] * 440 > 220
    assert 290 < (result.box[0] + result.box[2]) * 220 < 420
