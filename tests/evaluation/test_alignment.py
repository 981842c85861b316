import numpy as np
import pytest

from darkroom.evaluation.alignment import chance_clip_score, clip_score, coat_colour, prompt_adherence, retrieval_accuracy

COATS = {"black": (40, 40, 40), "orange": (240, 130, 30), "white": (250, 250, 250)}
OTHERS = [(150, 210, 110), (210, 40, 60)]  # grass, scarf


def picture(*, background=OTHERS[0], body=None, scarf=None, size=32):
    image = np.empty((size, size, 3), np.uint8)
    image[:] = background
    if body is not None:
        image[size // 4 :, size // 4 : -size // 4] = body
    if scarf is not None:
        image[size // 2 : size // 2 + size // 6, size // 4 : -size // 4] = scarf
    return image


def seen(**kind):
    return coat_colour(picture(**kind)[None], COATS, OTHERS)[0]


@pytest.mark.parametrize("coat", COATS)
@pytest.mark.parametrize("size", [16, 32, 64])
def test_the_coat_is_the_colour_in_the_middle(coat, size):
    assert seen(body=COATS[coat], size=size) == coat


def test_the_coat_is_seen_through_noise_and_shades():
    noisy = picture(body=(200, 110, 40)).astype(float) + np.random.default_rng(0).normal(0, 15, (32, 32, 3))
    assert coat_colour(noisy.clip(0, 255).astype(np.uint8)[None], COATS, OTHERS) == ["orange"]


@pytest.mark.parametrize("coat", ["black", "orange"])
def test_an_accessory_does_not_change_the_answer(coat):
    assert seen(body=COATS[coat], scarf=OTHERS[1]) == coat


def test_an_accessory_in_the_colour_of_another_coat_does_not_change_the_answer():
    assert seen(body=COATS["black"], scarf=COATS["white"]) == "black"


def test_a_background_in_the_colour_of_another_coat_does_not_change_the_answer():
    assert seen(background=COATS["white"], body=COATS["orange"]) == "orange"


@pytest.mark.parametrize("background", [*COATS.values(), *OTHERS])
def test_an_empty_picture_has_no_coat_whatever_its_colour(background):
    assert seen(background=background) is None


def test_a_white_cloud_in_one_corner_leaves_a_white_cat_white():
    image = picture(body=COATS["white"])
    image[:8, :8] = COATS["white"]
    assert coat_colour(image[None], COATS, OTHERS) == ["white"]


def test_a_spot_smaller_than_the_least_share_is_no_cat():
    image = picture()
    image[18:22, 15:18] = COATS["orange"]
    assert coat_colour(image[None], COATS, OTHERS) == [None]
    assert coat_colour(image[None], COATS, OTHERS, min_share=0.01) == ["orange"]


def test_a_colour_far_from_all_coats_is_no_coat():
    red = picture(body=(230, 90, 90))
    assert coat_colour(red[None], {"orange": COATS["orange"]}, []) == [None]
    assert coat_colour(red[None], {"orange": COATS["orange"]}, [], max_distance=100) == ["orange"]


def test_noise_has_no_coat():
    noise = np.random.default_rng(0).integers(0, 256, (50, 32, 32, 3), dtype=np.uint8)
    assert coat_colour(noise, COATS, OTHERS) == [None] * 50


def test_prompt_adherence_counts_what_is_not_recognised_as_wrong():
    assert prompt_adherence(["black", None, "white", "white"], ["black", "black", "black", "white"]) == 0.5


def unit(*rows):
    array = np.array(rows, dtype=np.float64)
    return array / np.linalg.norm(array, axis=1, keepdims=True)


def test_the_clip_score_is_a_hundred_times_the_cosine():
    images, texts = unit([1, 0], [1, 0], [1, 0]), unit([1, 0], [1, 1], [-1, 0])
    np.testing.assert_allclose(clip_score(images, texts), [100, 100 / np.sqrt(2), -100])
    np.testing.assert_allclose(clip_score(3 * images, 0.5 * texts), [100, 100 / np.sqrt(2), -100])


def test_chance_is_the_score_with_all_texts_that_differ():
    images, texts = unit([1, 0], [1, 0], [0, 1]), unit([1, 0], [1, 0], [0, 1])
    # rows 0 and 1 share a text: their only mismatch is row 2's, at cosine 0; row 2 mismatches both, at 0
    assert chance_clip_score(images, texts, ["cat", "cat", "dog"]) == 0
    assert chance_clip_score(images, texts, ["cat", "kitten", "dog"]) == pytest.approx(200 / 6)


def test_chance_is_not_a_number_when_all_texts_are_equal():
    assert np.isnan(chance_clip_score(unit([1, 0]), unit([1, 0]), ["cat"]))


def test_retrieval_counts_pictures_whose_own_text_is_nearest_with_equal_texts_as_one():
    images = unit([1, 0.1], [0.1, 1], [0.1, 1])
    texts = unit([1, 0], [0, 1], [1, 0])
    assert retrieval_accuracy(images, texts, ["a", "b", "a"]) == pytest.approx(2 / 3)
    assert retrieval_accuracy(images[[0, 1, 0]], texts, ["a", "b", "a"]) == 1
    assert retrieval_accuracy(images[:2], texts[:2], ["a", "b"]) == 1
    assert retrieval_accuracy(images[:2], texts[:2] * [[0.01], [1]], ["a", "b"]) == 1  # the angle counts, not the length
