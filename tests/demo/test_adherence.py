import numpy as np
import pytest

from darkroom.demo.adherence import coat_colour, coat_gallery, measure_adherence, prompt_adherence
from darkroom.demo.toy_cats import COATS
from darkroom.evaluation.features import ArrayImages

PALETTE = {"black": (40, 40, 40), "orange": (240, 130, 30), "white": (250, 250, 250)}
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
    return coat_colour(picture(**kind)[None], PALETTE, OTHERS)[0]


@pytest.mark.parametrize("coat", PALETTE)
@pytest.mark.parametrize("size", [16, 32, 64])
def test_the_coat_is_the_colour_in_the_middle(coat, size):
    assert seen(body=PALETTE[coat], size=size) == coat


def test_the_coat_is_seen_through_noise_and_shades():
    noisy = picture(body=(200, 110, 40)).astype(float) + np.random.default_rng(0).normal(0, 15, (32, 32, 3))
    assert coat_colour(noisy.clip(0, 255).astype(np.uint8)[None], PALETTE, OTHERS) == ["orange"]


@pytest.mark.parametrize("coat", ["black", "orange"])
def test_an_accessory_does_not_change_the_answer(coat):
    assert seen(body=PALETTE[coat], scarf=OTHERS[1]) == coat


def test_an_accessory_in_the_colour_of_another_coat_does_not_change_the_answer():
    assert seen(body=PALETTE["black"], scarf=PALETTE["white"]) == "black"


def test_a_background_in_the_colour_of_another_coat_does_not_change_the_answer():
    assert seen(background=PALETTE["white"], body=PALETTE["orange"]) == "orange"


@pytest.mark.parametrize("background", [*PALETTE.values(), *OTHERS])
def test_an_empty_picture_has_no_coat_whatever_its_colour(background):
    assert seen(background=background) is None


def test_a_white_cloud_in_one_corner_leaves_a_white_cat_white():
    image = picture(body=PALETTE["white"])
    image[:8, :8] = PALETTE["white"]
    assert coat_colour(image[None], PALETTE, OTHERS) == ["white"]


def test_a_spot_smaller_than_the_least_share_is_no_cat():
    image = picture()
    image[18:22, 15:18] = PALETTE["orange"]
    assert coat_colour(image[None], PALETTE, OTHERS) == [None]
    assert coat_colour(image[None], PALETTE, OTHERS, min_share=0.01) == ["orange"]


def test_a_colour_far_from_all_coats_is_no_coat():
    red = picture(body=(230, 90, 90))
    assert coat_colour(red[None], {"orange": PALETTE["orange"]}, []) == [None]
    assert coat_colour(red[None], {"orange": PALETTE["orange"]}, [], max_distance=100) == ["orange"]


def test_noise_has_no_coat():
    noise = np.random.default_rng(0).integers(0, 256, (50, 32, 32, 3), dtype=np.uint8)
    assert coat_colour(noise, PALETTE, OTHERS) == [None] * 50


def test_prompt_adherence_counts_what_is_not_recognised_as_wrong():
    assert prompt_adherence(["black", None, "white", "white"], ["black", "black", "black", "white"]) == 0.5


IMAGES = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), dtype=np.uint8)


def test_coats_are_rows_that_say_how_many_are_right():
    found = ["grey", "grey", None, "pink"]
    gallery = coat_gallery(ArrayImages(IMAGES[:4]), ["grey", "pink", "grey", "pink"], found, ["pink", "blue", "grey"])
    assert [tile.label for tile in gallery.tiles] == ["pink: 1 of 2 are pink", "grey: 1 of 2 are grey"]
    np.testing.assert_array_equal(gallery.tiles[0].images, IMAGES[[1, 3]])


def test_a_row_of_coats_has_eight_pictures_at_most():
    gallery = coat_gallery(ArrayImages(IMAGES), ["grey"] * 12, ["grey"] * 12, ["grey"])
    assert gallery.tiles[0].images.shape[0] == 8
    assert gallery.tiles[0].label == "grey: 12 of 12 are grey"


def cat(coat):
    return f"a sitting {coat} cat with green eyes, in a meadow"


def drawn(*coats):
    return ArrayImages(np.stack([picture(body=COATS[coat]) for coat in coats]))


def test_samples_and_photos_are_compared_with_the_coats_that_their_texts_name():
    found = measure_adherence([cat("pink"), cat("grey")], drawn("pink", "blue"), [cat("blue")], drawn("blue"))
    (metric,) = found.metrics
    assert (metric.key, metric.value, metric.photos, metric.chance) == ("prompt_adherence", 0.5, 1.0, 1 / len(COATS))
    assert list(found.galleries) == ["coats"]
    assert [tile.label for tile in found.galleries["coats"].tiles] == ["grey: 0 of 1 are grey", "pink: 1 of 1 are pink"]


def test_of_other_prompts_the_demo_has_nothing_to_say():
    found = measure_adherence([cat("pink"), "my dog"], drawn("pink", "blue"), [cat("blue")], drawn("blue"))
    assert (found.metrics, found.galleries) == ([], {})


def test_other_photos_leave_the_gallery_alone_and_no_metric():
    found = measure_adherence([cat("pink")], drawn("pink"), ["my dog"], drawn("blue"))
    assert found.metrics == []
    assert list(found.galleries) == ["coats"]
