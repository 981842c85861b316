from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torchvision import models

from darkroom.evaluation.features import Extractor, clip_features, last_layer, load_classifier, prepare, torchvision_features

PLAIN = {"size": 64, "channels": "rgb", "scale": 1.0, "mean": [0.0, 0.0, 0.0], "std": [1.0, 1.0, 1.0]}
IMAGES = np.random.default_rng(0).integers(0, 256, (5, 48, 48, 3), dtype=np.uint8)


def features_of(extractor: Extractor, *, batch_size: int = 8) -> np.ndarray:
    return extractor(lambda rows: IMAGES[rows], len(IMAGES), batch_size=batch_size, desc="noise")


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
    classifier = load_classifier(arch, path)
    _, layer = last_layer(classifier)
    with torch.inference_mode():
        scores = classifier(prepare(IMAGES, **PLAIN))
        found = torch.from_numpy(features)
        if isinstance(layer, torch.nn.Linear):
            torch.testing.assert_close(layer(found), scores)
        else:  # squeezenet scores every place before it averages
            torch.testing.assert_close(classifier.features(prepare(IMAGES, **PLAIN)).mean(dim=(2, 3)), found)


def test_features_do_not_depend_on_the_batch_and_the_name_tells_the_weights(tmp_path):
    path = saved(tmp_path, "squeezenet1_1")
    extractor = torchvision_features("squeezenet1_1", path, **PLAIN)
    np.testing.assert_allclose(features_of(extractor, batch_size=2), features_of(extractor), rtol=1e-4, atol=1e-5)
    renamed = path.rename(tmp_path / "other.safetensors")
    assert torchvision_features("squeezenet1_1", renamed, **PLAIN).name == extractor.name
    save_file({name: tensor + 1 for name, tensor in load_classifier("squeezenet1_1", renamed).state_dict().items()}, renamed)
    assert torchvision_features("squeezenet1_1", renamed, **PLAIN).name != extractor.name
    assert extractor.name.startswith("squeezenet1_1-")


def test_loading_a_classifier_draws_no_random_number(tmp_path):
    path = saved(tmp_path, "squeezenet1_1")
    before = torch.random.get_rng_state()
    load_classifier("squeezenet1_1", path)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_preparing_orders_scales_and_normalises_channels():
    red = np.zeros((1, 8, 8, 3), np.uint8)
    red[..., 0] = 255
    x = prepare(red, size=8, channels="rgb", scale=1.0, mean=[0.5, 0.25, 0.0], std=[0.5, 0.5, 2.0])
    assert x[0, :, 0, 0].tolist() == [1.0, -0.5, 0.0]
    x = prepare(red, size=8, channels="bgr", scale=255.0, mean=[104, 117, 123], std=[1, 1, 1])
    assert x[0, :, 0, 0].tolist() == [-104, -117, 132]


def test_preparing_resizes_as_pillow_does():
    soft = 64 + IMAGES[:1] // 2  # Pillow clips and rounds between its two passes
    for size in (20, 100):
        expected = np.asarray(Image.fromarray(soft[0]).resize((size, size), Image.Resampling.BICUBIC))
        x = prepare(soft, **PLAIN | {"size": size, "scale": 255.0})
        assert np.abs(x[0].permute(1, 2, 0).numpy() - expected).max() < 1.5


def test_clip_features_have_the_cosine_as_their_kernels_product():
    embeddings = torch.nn.functional.normalize(torch.randn(5, 16, generator=torch.Generator().manual_seed(0)), dim=1)
    extractor = clip_features(lambda images: embeddings[: len(images)], "0123456789abcdef")
    features = features_of(extractor)
    np.testing.assert_allclose(features @ features.T / 16, (embeddings @ embeddings.T).numpy(), rtol=1e-5, atol=1e-6)
    assert extractor.name == "clip-0123456789ab"


def test_an_unknown_architecture_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"evaluate\.features\.arch: torchvision has no classifier 'squeezenet'"):
        load_classifier("squeezenet", tmp_path / "weights.safetensors")


def test_a_detector_is_no_classifier(tmp_path):
    with pytest.raises(ValueError, match="no classifier 'fcn_resnet50'"):
        load_classifier("fcn_resnet50", tmp_path / "weights.safetensors")


@pytest.mark.parametrize("content", [None, b"no tensors"])
def test_weights_that_are_missing_or_damaged_are_refused(tmp_path, content):
    path = tmp_path / "weights.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=r"evaluate\.features\.weights: .*cannot be read as \.safetensors"):
        load_classifier("squeezenet1_1", path)


def test_weights_of_another_architecture_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"does not fit squeezenet1_0 with torchvision's names: .*features\.5"):
        load_classifier("squeezenet1_0", saved(tmp_path, "squeezenet1_1"))


def test_real_weights_see_cats_in_three_of_four_cat_photos(shared):
    classifier = load_classifier("squeezenet1_0", shared / "weights" / "squeezenet1_0.safetensors")
    paths = sorted((shared / "data" / "cats").glob("*.jpg"))[::10]
    photos = [Image.open(path).convert("RGB").resize((227, 227), Image.Resampling.BICUBIC) for path in paths]
    caffe = {"size": 227, "channels": "bgr", "scale": 255.0, "mean": [104, 117, 123], "std": [1, 1, 1]}
    with torch.inference_mode():
        classes = classifier(prepare(np.stack(photos), **caffe)).argmax(1)
    assert ((classes >= 281) & (classes <= 285)).float().mean() > 0.7
