"""The canaries, and that extractors that cannot judge are found unfit: made-up ones, a CLIP that learned one caption, SqueezeNet not."""

import io
from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter

from darkroom.demo.toy_cats import toy_cat
from darkroom.evaluation.canaries import (
    FRESH_PHOTOS,
    MEAN_COLOUR,
    TiledImages,
    blurred,
    canary_images,
    check_extractor,
    mean_colour,
    too_few_references,
    upside_down,
)
from darkroom.evaluation.distribution import distance_metrics
from darkroom.evaluation.extractors import make_extractor
from darkroom.evaluation.features import ArrayImages, Extractor, FeatureSets, clip_features
from darkroom.models.clip import ClipTowers
from darkroom.param_groups import FeatureParams
from darkroom.pixels import to_float
from darkroom.training.losses import contrastive_loss
from tests.models.tiny_clip import TINY

NOISE = np.random.default_rng(0).integers(0, 256, (6, 18, 18, 3), dtype=np.uint8)


def toys(count: int, seed: int = 0) -> np.ndarray:
    return np.stack([np.asarray(Image.open(io.BytesIO(toy_cat(index, size=32, seed=seed)[0]))) for index in range(count)])


@pytest.fixture(scope="module")
def cats() -> np.ndarray:
    return toys(150)


@pytest.fixture(scope="module")
def squeezenet() -> Extractor:
    return make_extractor(FeatureParams(kind="squeezenet"), None, "", torch.device("cpu"))


def features_of(extractor: Extractor, images: np.ndarray) -> np.ndarray:
    return extractor.of(ArrayImages(images), limit=None, batch_size=64, desc="cats")


def check(extractor: Extractor, held_out: np.ndarray, train: np.ndarray):
    return check_extractor(extractor, ArrayImages(held_out), features_of(extractor, held_out), features_of(extractor, train), batch_size=64)


def made_up(extract: Callable[[np.ndarray], np.ndarray]) -> Extractor:
    return Extractor("torchvision", "made-up", lambda images: extract(images).astype(np.float32))


def small_pixels(images: np.ndarray) -> np.ndarray:
    """Sees colours and coarse shapes: 8 x 8 px, about 1 in size."""
    return images.reshape(len(images), 8, 4, 8, 4, 3).mean(axis=(2, 4)).reshape(len(images), 192) / 128 - 1


def edges(images: np.ndarray) -> np.ndarray:
    """Sees sharpness, too: `small_pixels` of the picture and of its differences."""
    x = images.astype(np.float64)
    return np.concatenate([small_pixels(x), small_pixels(4 * np.abs(x - np.roll(x, 1, axis=2)))], axis=1)


def test_blur_is_a_gaussian_of_one_pixel_on_each_channel():
    image = np.zeros((1, 9, 9, 3), np.uint8)
    image[0, 4, 4, 1] = 200
    offsets = np.arange(-4, 5)
    weights = np.exp(-(offsets**2) / 2)
    weights /= weights.sum()
    expected = np.zeros((9, 9, 3))
    expected[:, :, 1] = 200 * np.outer(weights, weights)
    assert np.abs(blurred(image)[0] - expected).max() <= 0.51


def test_upside_down_and_mean_colour_are_what_they_are_called():
    np.testing.assert_array_equal(upside_down(NOISE)[:, 3], NOISE[:, -4])
    np.testing.assert_array_equal(mean_colour(NOISE)[2, 5, 7], NOISE[2].mean(axis=(0, 1)).round())
    assert mean_colour(NOISE).shape == NOISE.shape


def test_shuffled_tiles_are_the_tiles_of_the_photo_in_an_order_of_its_index_alone():
    tiled = TiledImages(ArrayImages(NOISE))
    everything = tiled.images(range(6))
    assert len(tiled) == 6
    np.testing.assert_array_equal(tiled.images([4, 1]), everything[[4, 1]])  # in any batch

    def tiles(image):
        return [image[row : row + 4, column : column + 4].tobytes() for row in range(0, 16, 4) for column in range(0, 16, 4)]

    for photo, shuffled in zip(NOISE, everything, strict=True):
        assert sorted(tiles(photo)) == sorted(tiles(shuffled))
        assert tiles(photo) != tiles(shuffled)
        np.testing.assert_array_equal(photo[16:], shuffled[16:])  # 18 px: the rest stays
        np.testing.assert_array_equal(photo[:, 16:], shuffled[:, 16:])
    orders = [tuple(tiles(photo).index(tile) for tile in tiles(shuffled)) for photo, shuffled in zip(NOISE, everything, strict=True)]
    assert len(set(orders)) == 6


def test_canaries_are_made_as_they_are_read_and_leave_the_photos_alone():
    photos = NOISE.copy()
    for images in canary_images(ArrayImages(photos)).values():
        assert images.images([0, 3]).shape == (2, 18, 18, 3)
    np.testing.assert_array_equal(photos, NOISE)


def test_an_extractor_that_sees_the_differences_is_fit(cats):
    found = check(made_up(edges), cats[:110], cats[110:])
    assert found.unfit_because == ""
    assert all(canary.z > 5 for canary in found.canaries[:-1])
    assert found.canaries[-1].name == FRESH_PHOTOS
    assert abs(found.canaries[-1].z) < 4
    assert found.canaries[-1].p > 0.001
    np.testing.assert_allclose(found.mean_colours, edges(mean_colour(cats[:110])), rtol=1e-6)


def collapsed(images: np.ndarray) -> np.ndarray:
    """Nearly the same features for every picture, cosine 0.998, and what differs has little to do with the picture."""
    seeds = np.abs(np.diff(images.reshape(len(images), -1).astype(np.int64), axis=1)).sum(axis=1) % 9973
    return np.stack([1 + 0.045 * np.random.default_rng(seed).normal(size=64) for seed in seeds])


def test_an_extractor_for_which_all_pictures_are_nearly_alike_is_unfit(cats):
    features = collapsed(cats[:110])
    cosines = features @ features.T / np.outer(*[np.linalg.norm(features, axis=1)] * 2)
    assert cosines.mean() == pytest.approx(0.998, abs=0.001)
    found = check(made_up(collapsed), cats[:110], cats[110:])
    assert "does not tell held-out photos from blurred photos (z = " in found.unfit_because
    assert "photos upside down (z = " in found.unfit_because
    assert found.unfit_because.endswith("every z must be at least 5.")


def test_an_extractor_that_misses_one_canary_is_unfit_and_the_sentence_names_that_one(cats):
    found = check(
        made_up(lambda images: edges(images).reshape(len(images), 2, 8, 8, 3).mean(axis=2).reshape(len(images), 48)), cats[:110], cats[110:]
    )
    assert found.unfit_because.startswith("The extractor does not tell held-out photos from photos upside down (z = ")
    assert "blurred" not in found.unfit_because
    assert "mean colour" not in found.unfit_because


@pytest.mark.parametrize("kind", ["constant", "nan"])
def test_an_extractor_that_is_constant_or_gives_no_numbers_is_unfit(cats, kind):
    value = 0.3 if kind == "constant" else np.nan
    found = check(made_up(lambda images: np.full((len(images), 8), value)), cats[:110], cats[110:])
    assert ("does not tell held-out photos from blurred photos (z = 0.0)" if kind == "constant" else "not finite") in found.unfit_because


def test_training_photos_that_differ_from_held_out_photos_leave_no_floor(cats):
    found = check(made_up(edges), cats[:110], 255 - cats[110:])
    assert "Training photos and held-out photos differ" in found.unfit_because
    assert "(p = 0.001)" in found.unfit_because


def train_on_one_caption(photos: np.ndarray, steps: int) -> ClipTowers:
    clip = ClipTowers.build(TINY | {"image_size": 32, "vision_layers": 2, "vision_width": 64}, seed=0)
    optimizer = torch.optim.AdamW(clip.parameters(), lr=2e-3, weight_decay=0.1)
    same = torch.ones(16, 16, dtype=torch.bool)
    for step in range(steps):
        picked = to_float(photos[[(16 * step + index) % len(photos) for index in range(16)]])
        loss = contrastive_loss(*clip(picked, clip.tokenize(["a cat"] * 16)), same)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return clip.eval()


def test_a_clip_that_was_trained_on_one_caption_collapses_and_is_unfit(cats):
    clip = train_on_one_caption(cats[110:], steps=60)
    extractor = clip_features(clip.encode_images, "0" * 12)
    features = features_of(extractor, cats[:110])
    assert (features @ features.T / features.shape[1]).mean() > 0.99
    found = check(extractor, cats[:110], cats[110:])
    assert "blurred photos" in found.unfit_because
    assert "photos upside down" in found.unfit_because


@pytest.mark.slow
@pytest.mark.parametrize("kind", [pytest.param("toys", marks=pytest.mark.huge), "photos"])
def test_squeezenet_is_fit_for_toys_and_photos(cats, squeezenet, kind, request):
    images = np.concatenate([cats, toys(58, seed=1)]) if kind == "toys" else photos_at(request.getfixturevalue("shared"), 64, 220)
    found = check(squeezenet, images[:104], images[104:208])
    assert found.unfit_because == ""
    assert [canary.name for canary in found.canaries][-2:] == [MEAN_COLOUR, FRESH_PHOTOS]


def photos_at(shared, side: int, count: int) -> np.ndarray:
    files = sorted((shared / "data" / "cats").rglob("*.jpg"))
    picked = np.random.default_rng(0).permutation(len(files))[:count]
    return np.stack(
        [np.asarray(Image.open(files[index]).convert("RGB").resize((side, side), Image.Resampling.BICUBIC)) for index in picked]
    )


@pytest.mark.slow
def test_worse_pictures_move_the_metrics_the_right_way(cats, squeezenet):
    held_out, fresh, train = np.split(np.concatenate([cats, toys(90, seed=1)]), 3)
    noise = np.random.default_rng(0).normal(0, 20, fresh.shape)
    worse = {
        "fresh": fresh,
        "blur": gaussian_filter(fresh.astype(float), (0, 0.7, 0.7, 0)).round().astype(np.uint8),
        "more blur": gaussian_filter(fresh.astype(float), (0, 1.5, 1.5, 0)).round().astype(np.uint8),
        "noise": np.clip(fresh + noise, 0, 255).round().astype(np.uint8),
        "few modes": np.tile(fresh[:8], (10, 1, 1, 1)),
        "copies of the held-out photos": np.roll(held_out, 1, axis=0),
    }
    of_held_out, of_train = features_of(squeezenet, held_out), features_of(squeezenet, train)
    of_mean_colour = features_of(squeezenet, mean_colour(held_out))
    found = {
        name: distance_metrics(
            FeatureSets(features_of(squeezenet, images), of_held_out, of_train), of_mean_colour, sources=np.arange(80), num_neighbours=3
        )
        for name, images in worse.items()
    }

    def of(key):
        return {name: metrics[key] for name, metrics in found.items()}

    kid, frechet, coverage = of("kid"), of("frechet_distance"), of("coverage")
    assert kid["fresh"] < kid["blur"] < kid["more blur"] < found["fresh"]["kid_chance"]
    assert frechet["fresh"] < frechet["blur"] < frechet["more blur"] < found["fresh"]["frechet_distance_chance"]
    assert kid["noise"] > 10 * abs(kid["fresh"])
    assert of("precision")["more blur"] < 0.2 < of("precision")["fresh"]
    assert of("precision")["noise"] < 0.2
    assert max(coverage["few modes"], of("recall")["few modes"]) < 0.7 * coverage["fresh"]
    assert frechet["few modes"] > 1.2 * frechet["fresh"]
    assert found["fresh"]["kid_p"] > 0.01
    assert all(found[name]["kid_p"] <= 0.01 for name in ("blur", "more blur", "noise"))
    assert (
        of("precision")["copies of the held-out photos"] == coverage["copies of the held-out photos"] == 1
    )  # why copies have a measure of their own


def test_few_held_out_photos_are_named():
    assert too_few_references(100) == ""
    assert "There are 99 held-out photos" in too_few_references(99)
    assert "fewer than 100" in too_few_references(99)
