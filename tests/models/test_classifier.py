from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from torchvision import models

from darkroom.models.classifier import classifier_pixels, load_classifier


def load(arch: str, weights: Path) -> nn.Module:
    return load_classifier(arch, weights, section="evaluate.features")


def saved(folder: Path, arch: str, **options) -> Path:
    torch.manual_seed(0)
    path = folder / f"{arch}.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in models.get_model(arch, weights=None, **options).state_dict().items()}, path)
    return path


@pytest.mark.parametrize("num_classes", [7, 1000])
def test_a_classifier_has_the_weights_and_the_classes_of_its_file(tmp_path, num_classes):
    path = saved(tmp_path, "resnet18", num_classes=num_classes)
    torch.manual_seed(0)
    expected = models.resnet18(weights=None, num_classes=num_classes).eval()
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        scores = load("resnet18", path)(x)
        torch.testing.assert_close(scores, expected(x))
    assert scores.shape == (2, num_classes)


def test_loading_a_classifier_draws_no_random_number(tmp_path):
    path = saved(tmp_path, "squeezenet1_1")
    before = torch.random.get_rng_state()
    load("squeezenet1_1", path)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_pixels_are_put_in_order_scaled_and_normalised():
    red = torch.tensor([1.0, 0.0, 0.0]).reshape(1, 3, 1, 1)
    x = classifier_pixels(red, channels="rgb", scale=1.0, mean=[0.5, 0.25, 0.0], std=[0.5, 0.5, 2.0])
    assert x.flatten().tolist() == [1.0, -0.5, 0.0]
    x = classifier_pixels(red, channels="bgr", scale=255.0, mean=[104, 117, 123], std=[1, 1, 1])
    assert x.flatten().tolist() == [-104, -117, 132]


def test_an_unknown_architecture_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"evaluate\.features\.arch: torchvision has no classifier 'squeezenet'"):
        load("squeezenet", tmp_path / "weights.safetensors")


def test_a_detector_is_no_classifier(tmp_path):
    with pytest.raises(ValueError, match="no classifier 'fcn_resnet50'"):
        load("fcn_resnet50", tmp_path / "weights.safetensors")


@pytest.mark.parametrize(("content", "message"), [(None, r"is missing.*safetensors only"), (b"no tensors", r"not a readable safetensors")])
def test_weights_that_are_missing_or_damaged_are_refused(tmp_path, content, message):
    path = tmp_path / "weights.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"evaluate\.features\.weights: .*weights\.safetensors .*{message}"):
        load("squeezenet1_1", path)


def test_weights_of_another_architecture_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"evaluate\.features\.weights: .*does not fit SqueezeNet.*`features\.5"):
        load("squeezenet1_0", saved(tmp_path, "squeezenet1_1"))


def test_real_weights_see_cats_in_three_of_four_cat_photos(shared):
    classifier = load("squeezenet1_0", shared / "weights" / "squeezenet1_0.safetensors")
    paths = sorted((shared / "data" / "cats").glob("*.jpg"))[::10]
    photos = [Image.open(path).convert("RGB").resize((227, 227), Image.Resampling.BICUBIC) for path in paths]
    caffe = {"channels": "bgr", "scale": 255.0, "mean": [104, 117, 123], "std": [1, 1, 1]}
    with torch.inference_mode():
        images = torch.from_numpy(np.stack(photos)).permute(0, 3, 1, 2) / 255
        classes = classifier(classifier_pixels(images, **caffe)).argmax(1)
    assert ((classes >= 281) & (classes <= 285)).float().mean() > 0.7
