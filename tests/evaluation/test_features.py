from types import SimpleNamespace

import numpy as np
import pytest
import torch

from darkroom.evaluation.features import (
    MAX_PHOTOS,
    MEASURING,
    SHOWING,
    ArrayImages,
    Extractor,
    FeatureSets,
    MappedImages,
    clip_features,
    eval_key,
)
from darkroom.models.classifier import CHUNK
from darkroom.source_code import code_identity

IMAGES = np.random.default_rng(0).integers(0, 256, (40, 4, 4, 3), dtype=np.uint8)
SOURCE = ArrayImages(IMAGES)


def mean_colours(images: np.ndarray) -> np.ndarray:
    return images.mean(axis=(1, 2), dtype=np.float32)


COLOURS = Extractor("squeezenet", "colours", mean_colours, {"weights": "colours"})


def test_sources_read_and_change_single_batches():
    mirrored = MappedImages(SOURCE, lambda batch: batch[:, :, ::-1])
    assert len(SOURCE) == len(mirrored) == 40
    np.testing.assert_array_equal(mirrored.images([4, 1]), IMAGES[[4, 1], :, ::-1])
    np.testing.assert_array_equal(SOURCE.images(range(1, 3)), IMAGES[1:3])


@pytest.mark.parametrize("batch_size", [1, 3, 16, 17, 64])
def test_features_are_those_of_the_whole_whatever_the_batch_size(batch_size):
    found = COLOURS.of(SOURCE, batch_size=batch_size, desc="noise")
    np.testing.assert_array_equal(found, mean_colours(IMAGES))
    assert found.dtype == np.float32


def test_only_whole_passes_are_read_and_no_more_than_the_limit():
    asked: list[int] = []

    def watching(images: np.ndarray) -> np.ndarray:
        asked.append(len(images))
        return images

    extractor, source = COLOURS, MappedImages(SOURCE, watching)
    assert extractor.of(source, limit=35, batch_size=5, desc="").shape == (35, 3)
    assert asked == [CHUNK, CHUNK, 35 - 2 * CHUNK]
    assert (
        len(extractor.of(source, limit=None, batch_size=64, desc="")) == len(extractor.of(source, limit=50, batch_size=64, desc="")) == 40
    )


def test_photos_are_limited_and_samples_are_not():
    many = ArrayImages(np.zeros((MAX_PHOTOS + 1, 1, 1, 3), np.uint8))
    sets = FeatureSets.extract(COLOURS, many, many, many, batch_size=4096)
    assert (len(sets.samples), len(sets.held_out), len(sets.train)) == (MAX_PHOTOS + 1, MAX_PHOTOS, MAX_PHOTOS)


def test_clip_features_have_the_cosine_as_their_kernels_product_and_the_bits_of_a_pass_of_fixed_length():
    passes: list[int] = []

    def encode_images(images: np.ndarray) -> torch.Tensor:
        passes.append(len(images))
        return torch.nn.functional.normalize(torch.from_numpy(images.reshape(len(images), -1)).float() + 1, dim=1)

    extractor = clip_features(encode_images, "0123456789abcdef")
    features = extractor.of(SOURCE, batch_size=8, desc="noise")
    embeddings = encode_images(IMAGES).numpy()
    np.testing.assert_allclose(features @ features.T / 48, embeddings @ embeddings.T, rtol=1e-5, atol=1e-6)
    assert passes == [CHUNK] * 3 + [40]
    assert (extractor.name, extractor.kernel) == ("clip-0123456789ab", "gaussian")


KEY = {
    "prompts": ["a cat", "a dog"],
    "seeds": [0, 1],
    "sampling": {"sampler": "ddim", "steps": 20},
    "settings": {"num_neighbours": 3, "held_out": 100},
    "code": {"darkroom.evaluation.distribution:kernel_distance": "aa", "darkroom.models.classifier:resized": "bb"},
}
HELD_OUT = SimpleNamespace(keys=["k1", "k2"], size=64)


def key(held_out: SimpleNamespace = HELD_OUT, extractor: Extractor = COLOURS, **changes: object) -> str:
    return eval_key(held_out, extractor, **KEY | changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"prompts": ["a cat", "a cow"]},
        {"seeds": [0, 2]},
        {"sampling": {"sampler": "ddim", "steps": 21}},
        {"settings": {"num_neighbours": 5, "held_out": 100}},
        {"settings": {"num_neighbours": 3, "held_out": 99}},
        {"code": KEY["code"] | {"darkroom.evaluation.distribution:kernel_distance": "changed"}},
        {"code": KEY["code"] | {"darkroom.models.classifier:resized": "changed"}},
        {"held_out": SimpleNamespace(keys=["k1", "k3"], size=64)},
        {"held_out": SimpleNamespace(keys=["k1", "k2"], size=32)},
        {"extractor": Extractor("squeezenet", "colours", mean_colours, {"weights": "others"})},
        {"extractor": Extractor("squeezenet", "colours", mean_colours, {"weights": "colours"}, kernel="gaussian")},
    ],
)
def test_reports_with_another_extractor_photos_prompts_counts_or_code_of_a_metric_do_not_compare(changes):
    assert key(**changes) != key()


@pytest.mark.parametrize(
    "changes",
    [
        {"code": KEY["code"] | {"darkroom.evaluation.report:write_report": "cc"}},
        {"code": KEY["code"] | {"darkroom.diffusion.samplers.ddim:ddim": "cc"}},
        {"extractor": Extractor("squeezenet", "renamed", mean_colours, {"weights": "colours"})},
    ],
)
def test_reports_compare_whatever_shows_them_or_draws_the_samples(changes):
    assert key(**changes) == key()


def test_the_code_that_counts_is_that_of_modules_which_the_stage_runs() -> None:
    names = code_identity("evaluate")
    assert all(any(name.startswith(module) for name in names) for module in (*MEASURING, *SHOWING))
