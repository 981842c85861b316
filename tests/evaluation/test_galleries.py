import numpy as np
from PIL import Image

from darkroom.evaluation.copies import Copies
from darkroom.evaluation.features import ArrayImages
from darkroom.evaluation.galleries import (
    Gallery,
    Tile,
    comparison_gallery,
    nearest_gallery,
    reconstruction_gallery,
    sample_gallery,
    worst_gallery,
    worst_samples,
    write_gallery,
)
from darkroom.pixels import GAP, picture_grid

IMAGES = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), dtype=np.uint8)


def test_samples_are_shown_in_their_order_with_their_prompts():
    gallery = sample_gallery(ArrayImages(IMAGES), [f"cat {index}" for index in range(12)], 3)
    assert [tile.label for tile in gallery.tiles] == ["cat 0", "cat 1", "cat 2"]
    np.testing.assert_array_equal(np.concatenate([tile.images for tile in gallery.tiles]), IMAGES[:3])
    assert "first 3 of 12" in gallery.note


def test_the_worst_prompts_have_the_lowest_mean_and_show_their_worst_samples_first():
    prompts = ["good", "bad", "good", "middling", "bad", "good", "bad", "bad"]
    fit = np.array([9.0, 2.0, 8.0, 5.0, 1.0, -8.0, 3.0, 4.0])  # one failure does not make a prompt bad
    gallery = worst_gallery(ArrayImages(IMAGES[:8]), prompts, fit, "CLIP score", 2)
    assert gallery.title == "Worst prompts"
    assert [tile.label for tile in gallery.tiles] == ["2.5 · bad", "3.0 · good"]
    np.testing.assert_array_equal(gallery.tiles[0].images, IMAGES[[4, 1, 6]])
    assert gallery.note == "The 2 that fit worst of 3, by their CLIP score."


def test_samples_of_one_prompt_are_ranked_one_by_one():
    gallery = worst_gallery(ArrayImages(IMAGES[:3]), ["a cat"] * 3, np.array([3.0, 1.0, 2.0]), "nearness", 2)
    assert gallery.title == "Worst samples"
    assert [tile.label for tile in gallery.tiles] == ["1.0 · a cat", "2.0 · a cat"]
    np.testing.assert_array_equal(gallery.tiles[0].images, IMAGES[[1]])


def test_clip_names_the_worst_prompts_or_else_the_distance_from_the_photos_does():
    def worst(scores, distances):
        found = worst_samples(ArrayImages(IMAGES[:2]), ["a", "b"], scores, distances)
        return found and (found.tiles[0].label, found.note.split("their ")[1])

    scores, distances = np.array([20.0, 10.0]), np.array([7.0, 3.0])
    assert worst(scores, distances) == ("10.0 · b", "CLIP score.")
    assert worst(None, distances) == ("-7.0 · a", "nearness to the photos (minus the distance).")
    assert worst(None, None) is None


def test_the_champion_stands_beside_this_model_sample_by_sample():
    gallery = comparison_gallery(ArrayImages(IMAGES[:4]), ArrayImages(IMAGES[4:7]), list("abcd"), 9)
    assert [tile.label for tile in gallery.tiles] == ["a", "b", "c"]
    np.testing.assert_array_equal(gallery.tiles[1].images, IMAGES[[1, 5]])


def test_reconstructions_stand_beside_their_photos_with_their_psnr():
    worse = IMAGES // 2 + 10
    gallery = reconstruction_gallery(IMAGES, worse, 2)
    np.testing.assert_array_equal(gallery.tiles[1].images, [IMAGES[1], worse[1]])
    error = np.square(IMAGES[1] - worse[1].astype(float)).mean()
    assert gallery.tiles[1].label == f"{10 * np.log10(255**2 / error):.1f} dB"


def test_the_samples_most_like_a_copy_stand_beside_their_photos_and_then_what_held_out_photos_reach():
    copies = Copies(
        copied_fraction=1 / 3, low=0.01, high=0.9, photos=0.0,
        ratio=np.array([0.9, 0.1, 0.5]), nearest_photo=np.array([4, 5, 6]),
        photo_ratio=np.array([0.8, 0.7]), photo_nearest=np.array([0, 3]),
    )  # fmt: skip
    sources = [ArrayImages(IMAGES[rows]) for rows in (slice(0, 3), slice(3, 10), slice(10, 12))]
    gallery = nearest_gallery(sources[0], ["a", "b", "c"], *sources[1:], copies, 2)
    assert [tile.label for tile in gallery.tiles] == ["b · ratio 0.10", "c · ratio 0.50", "held-out photo · ratio 0.70"]
    np.testing.assert_array_equal([tile.images for tile in gallery.tiles], IMAGES[[[1, 8], [2, 9], [11, 6]]])
    assert "33.3% of the samples do, 0.0% of the held-out photos" in gallery.note


def test_a_gallery_is_stored_eight_pictures_wide_and_pairs_are_not_cut(tmp_path):
    def stored(*counts):
        grid = write_gallery(tmp_path / "grid.png", Gallery("", "", [Tile(IMAGES[:count], "") for count in counts]))
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "grid.png")), grid)
        return grid

    assert stored(*[1] * 10).shape == (2 * 8 + GAP, 8 * 8 + 7 * GAP, 3)
    assert stored(2, 2, 2).shape == (8, 6 * 8 + 5 * GAP, 3)
    assert stored(3, 3, 3).shape == (2 * 8 + GAP, 6 * 8 + 5 * GAP, 3)
    np.testing.assert_array_equal(stored(8, 5)[8 + GAP :, : 5 * (8 + GAP) - GAP], picture_grid(IMAGES[:5], 5))
    assert np.all(stored(8, 5)[8 + GAP :, 5 * (8 + GAP) :] == 255)
