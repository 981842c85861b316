import numpy as np
from PIL import Image

from darkroom.evaluation.copies import Copies
from darkroom.evaluation.features import ArrayImages
from darkroom.evaluation.galleries import Gallery, Tile, nearest_gallery, reconstruction_gallery, sample_gallery, write_gallery
from darkroom.pixels import GAP, picture_grid

IMAGES = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), dtype=np.uint8)


def test_samples_are_shown_in_their_order_with_their_prompts():
    gallery = sample_gallery(IMAGES, [f"cat {index}" for index in range(12)], 3)
    assert [tile.label for tile in gallery.tiles] == ["cat 0", "cat 1", "cat 2"]
    np.testing.assert_array_equal(np.concatenate([tile.images for tile in gallery.tiles]), IMAGES[:3])
    assert "first 3 of 12" in gallery.note


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
