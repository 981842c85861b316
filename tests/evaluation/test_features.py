from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torchvision import models

from darkroom.evaluation.features import ArrayImages, Extractor, MappedImages, clip_features, resized, torchvision_features
from darkroom.models.classifier import last_layer, load_classifier
from darkroom.models.weights import read_weights

PLAIN = {"size": 64, "channels": "rgb", "scale": 1.0, "mean": [0.0, 0.0, 0.0], "std": [1.0, 1.0, 1.0]}  # pixels as they are
IMAGES = np.random.default_rng(0).integers(0, 256, (5, 48, 48, 3), dtype=np.uint8)


def features_of(extractor: Extractor, *, batch_size: int = 8) -> np.ndarray:
    return extractor.of_images(IMAGES, batch_size=batch_size, desc="noise")


def saved(folder: Path, arch: str, **options) -> Path:
    torch.manual_seed(0)
    path = folder / f"{arch}.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in models.get_model(arch, weights=None, **options).state_dict().items()}, path)
    return path


@pytest.mark.parametrize(
    ("arch", "dim"), [("squeezenet1_1", 512), ("resnet18", 512), ("mobilenet_v3_small", 1024), ("shufflenet_v2_x0_5", 1024)]
)
def test_features_are_what_enters_the_last_layer(tmp_path, arch, dim):
    path = saved(tmp_path, arch, num_classes=7)
    features = features_of(torchvision_features(arch, path, **PLAIN))
    assert features.shape == (5, dim)
    classifier = load_classifier(arch, path, section="here")
    _, layer = last_layer(classifier)
    with torch.inference_mode():
        scores = classifier(resized(IMAGES, 64))
        found = torch.from_numpy(features)
        if isinstance(layer, torch.nn.Linear):
            torch.testing.assert_close(layer(found), scores)
        else:  # squeezenet scores every place before it averages
            torch.testing.assert_close(classifier.features(resized(IMAGES, 64)).mean(dim=(2, 3)), found)


def test_features_do_not_depend_on_the_batch_and_the_name_tells_the_weights(tmp_path):
    path = saved(tmp_path, "squeezenet1_1")
    extractor = torchvision_features("squeezenet1_1", path, **PLAIN)
    np.testing.assert_allclose(features_of(extractor, batch_size=2), features_of(extractor), rtol=1e-4, atol=1e-5)
    renamed = path.rename(tmp_path / "other.safetensors")
    assert torchvision_features("squeezenet1_1", renamed, **PLAIN).name == extractor.name
    save_file({name: tensor + 1 for name, tensor in read_weights(renamed).items()}, renamed)
    assert torchvision_features("squeezenet1_1", renamed, **PLAIN).name != extractor.name
    assert extractor.name.startswith("squeezenet1_1-")


def test_images_are_resized_as_pillow_does():
    soft = 64 + IMAGES[:1] // 2  # Pillow clips and rounds between its two passes
    for size in (20, 100):
        expected = np.asarray(Image.fromarray(soft[0]).resize((size, size), Image.Resampling.BICUBIC))
        x = 255 * resized(soft, size)
        assert np.abs(x[0].permute(1, 2, 0).numpy() - expected).max() < 1.5


def test_clip_features_have_the_cosine_as_their_kernels_product():
    embeddings = torch.nn.functional.normalize(torch.randn(5, 16, generator=torch.Generator().manual_seed(0)), dim=1)
    extractor = clip_features(lambda images: embeddings[: len(images)], "0123456789abcdef")
    features = features_of(extractor)
    np.testing.assert_allclose(features @ features.T / 16, (embeddings @ embeddings.T).numpy(), rtol=1e-5, atol=1e-6)
    assert extractor.name == "clip-0123456789ab"


def test_images_reach_the_classifier_resized_and_in_its_own_pixels(tmp_path):
    caffe = {"channels": "bgr", "scale": 255.0, "mean": [104.0, 117.0, 123.0], "std": [1.0, 2.0, 4.0]}
    path = saved(tmp_path, "squeezenet1_1")
    pixels = (255 * resized(IMAGES, 64).flip(1) - torch.tensor(caffe["mean"])[:, None, None]) / torch.tensor(caffe["std"])[:, None, None]
    with torch.inference_mode():
        expected = load_classifier("squeezenet1_1", path, section="here").features(pixels).mean(dim=(2, 3))
    np.testing.assert_allclose(features_of(torchvision_features("squeezenet1_1", path, size=64, **caffe)), expected, rtol=1e-4, atol=1e-4)


def test_sources_read_and_change_single_batches():
    images = np.random.default_rng(0).integers(0, 256, (5, 4, 4, 3), dtype=np.uint8)
    source = ArrayImages(images)
    mirrored = MappedImages(source, lambda batch: batch[:, :, ::-1])
    assert len(source) == len(mirrored) == 5
    np.testing.assert_array_equal(mirrored.images([4, 1]), images[[4, 1], :, ::-1])
    np.testing.assert_array_equal(source.images(range(1, 3)), images[1:3])
