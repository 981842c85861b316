import importlib.resources
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from safetensors.torch import save_file
from torch import nn
from torchvision import models

from darkroom.config import EvaluateParams, IngestParams
from darkroom.models.classifier import (
    CHUNK,
    SHIPPED_PIXELS,
    SHIPPED_SIDE,
    Classifier,
    class_numbers,
    classifier_pixels,
    last_layer,
    load_classifier,
    load_shipped,
    resized,
)
from darkroom.models.weights import read_weights
from darkroom.param_groups import ClassifierPixels

PLAIN = ClassifierPixels(mean=[0.0] * 3, std=[1.0] * 3)  # pixels as they are
NOISE = np.random.default_rng(0).integers(0, 256, (5, 48, 48, 3), dtype=np.uint8)
CATS = range(281, 286)  # tabby, tiger cat, Persian, Siamese, Egyptian


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
    x = classifier_pixels(red, ClassifierPixels(channels="rgb", scale=1.0, mean=[0.5, 0.25, 0.0], std=[0.5, 0.5, 2.0]))
    assert x.flatten().tolist() == [1.0, -0.5, 0.0]
    x = classifier_pixels(red, ClassifierPixels(channels="bgr", scale=255.0, mean=[104, 117, 123], std=[1, 1, 1]))
    assert x.flatten().tolist() == [-104, -117, 132]


def test_images_are_resized_as_pillow_does():
    soft = 64 + NOISE[:1] // 2  # Pillow clips and rounds between its two passes
    for size in (20, 100):
        expected = np.asarray(Image.fromarray(soft[0]).resize((size, size), Image.Resampling.BICUBIC))
        x = 255 * resized(soft, size)
        assert np.abs(x[0].permute(1, 2, 0).numpy() - expected).max() < 1.5


@pytest.mark.parametrize(
    ("arch", "dim"), [("squeezenet1_1", 512), ("resnet18", 512), ("mobilenet_v3_small", 1024), ("shufflenet_v2_x0_5", 1024)]
)
def test_features_are_what_enters_the_last_layer(tmp_path, arch, dim):
    network = load(arch, saved(tmp_path, arch, num_classes=7))
    features, scores = (torch.from_numpy(x) for x in Classifier(network, PLAIN, arch=arch, side=64).features_and_scores(NOISE))
    assert features.shape == (5, dim)
    with torch.inference_mode():
        torch.testing.assert_close(scores, network(resized(NOISE, 64)))
        _, layer = last_layer(network)
        if isinstance(layer, torch.nn.Linear):
            torch.testing.assert_close(layer(features), scores)
        else:  # squeezenet scores every place before it averages
            torch.testing.assert_close(network.features(resized(NOISE, 64)).mean(dim=(2, 3)), features)


def test_images_reach_the_network_resized_and_in_its_own_pixels_and_features_are_scaled(tmp_path):
    pixels = ClassifierPixels(channels="bgr", scale=255.0, mean=[104.0, 117.0, 123.0], std=[1.0, 2.0, 4.0])
    network = load("squeezenet1_1", saved(tmp_path, "squeezenet1_1"))
    x = (255 * resized(NOISE, 64).flip(1) - torch.tensor(pixels.mean)[:, None, None]) / torch.tensor(pixels.std)[:, None, None]
    with torch.inference_mode():
        expected = network.features(x).mean(dim=(2, 3)) / 8
    found, _ = Classifier(network, pixels, arch="", side=64, feature_scale=1 / 8).features_and_scores(NOISE)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("batch", [1, 3, 64])
def test_features_and_scores_have_the_same_bits_for_any_batch_size(batch):
    images = np.random.default_rng(1).integers(0, 256, (2 * CHUNK + 2, 32, 32, 3), dtype=np.uint8)
    classifier = Classifier(load_shipped(), SHIPPED_PIXELS, arch="", side=64)  # a smaller side than its own, for time
    whole = classifier.features_and_scores(images)
    parts = [classifier.features_and_scores(images[start : start + batch]) for start in range(0, len(images), batch)]
    for expected, found in zip(whole, zip(*parts, strict=True), strict=True):
        np.testing.assert_array_equal(np.concatenate(found), expected)


def test_the_name_and_the_identity_tell_the_weights_and_the_pixels(tmp_path):
    path = saved(tmp_path, "squeezenet1_1")

    def of(path, pixels=PLAIN, **options):
        return Classifier(load("squeezenet1_1", path), pixels, arch="squeezenet1_1", **{"side": 64} | options)

    first = of(path)
    assert first.name.startswith("squeezenet1_1-")
    renamed = path.rename(tmp_path / "other.safetensors")
    assert (of(renamed).name, of(renamed).identity) == (first.name, first.identity)
    identities = [
        first.identity,
        of(renamed, side=32).identity,
        of(renamed, feature_scale=2.0).identity,
        of(renamed, SHIPPED_PIXELS).identity,
    ]
    assert all(a != b for i, a in enumerate(identities) for b in identities[:i])
    save_file({name: tensor + 1 for name, tensor in read_weights(renamed).items()}, renamed)
    assert of(renamed).name != first.name
    assert of(renamed).identity["weights"] != first.identity["weights"]


def test_the_shipped_classifier_comes_with_the_package_and_its_licence():
    files = importlib.resources.files("darkroom.models")
    assert "Redistribution and use in source and binary forms" in (files / "squeezenet1_0.LICENCE").read_text(encoding="utf-8")
    assert len((files / "squeezenet1_0.safetensors").read_bytes()) < 2.6e6  # half precision
    settings = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))
    shipped = settings["tool"]["setuptools"]["package-data"]["darkroom"]
    for ending in ("safetensors", "LICENCE"):
        assert any(fnmatch(f"models/squeezenet1_0.{ending}", pattern) for pattern in shipped)
    assert "darkroom/models/squeezenet1_0.LICENCE" in settings["project"]["license-files"]


@pytest.mark.parametrize(("content", "message"), [(None, "is missing"), (b"other weights", r"is damaged or of .* Install Darkroom again")])
def test_a_damaged_installation_is_named(tmp_path, monkeypatch, content, message):
    monkeypatch.setattr("darkroom.models.classifier.SHIPPED_FOLDER", tmp_path)
    if content is not None:
        (tmp_path / "squeezenet1_0.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=rf"squeezenet1_0\.safetensors {message}"):
        load_shipped()


def test_the_shipped_classifier_pools_upwards_as_caffe_does():
    network = load_shipped()
    assert all(module.ceil_mode for module in network.modules() if isinstance(module, nn.MaxPool2d))
    assert all(parameter.dtype == torch.float32 for parameter in network.parameters())


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


def cat_photos(shared: Path, step: int) -> np.ndarray:
    """Squares of the shipped classifier's side from the middle of photos."""
    paths = sorted((shared / "data" / "cats").glob("*.jpg"))[::step]
    size = (SHIPPED_SIDE, SHIPPED_SIDE)
    return np.stack([ImageOps.fit(Image.open(path).convert("RGB"), size, Image.Resampling.BICUBIC) for path in paths])


def test_the_shipped_classifier_sees_cats_in_three_of_four_cat_photos_and_its_features_have_mean_square_one(shared):
    features, scores = Classifier.shipped().features_and_scores(cat_photos(shared, 10))
    assert features.shape == (50, 512)
    assert np.isin(scores.argmax(1), CATS).mean() > 0.7
    assert 0.8 < np.square(features).mean() < 1.25


def test_half_precision_changes_neither_classes_nor_features(shared):
    images = cat_photos(shared, 25)
    exact = load_classifier("squeezenet1_0", shared / "weights" / "squeezenet1_0.safetensors", section="here")
    rounded = Classifier.shipped()
    expected, expected_scores = Classifier(exact, SHIPPED_PIXELS, arch="", side=SHIPPED_SIDE, feature_scale=1 / 16).features_and_scores(
        images
    )
    found, scores = rounded.features_and_scores(images)
    assert np.square(found - expected).mean() < 1e-5 * np.square(expected).mean()
    assert (scores.argmax(1) == expected_scores.argmax(1)).all()


def test_the_shipped_classifier_is_read_in_its_own_channel_order(shared):
    images = cat_photos(shared, 10)
    right, wrong = (Classifier.shipped().features_and_scores(x)[1].argmax(1) for x in (images, images[..., ::-1]))
    assert np.isin(wrong, CATS).mean() < np.isin(right, CATS).mean()


def numbers(classes: list[int | str]) -> tuple[int, ...]:
    return class_numbers(classes, parameter="ingest.subject")


def test_classes_are_named_or_numbered():
    assert numbers(["tabby", 285, "egyptian CAT", "Siamese cat"]) == (281, 285, 284)
    assert numbers([]) == ()
    assert IngestParams(crop="subject", subject=["tabby", 285]).subject == ["tabby", 285]
    assert EvaluateParams.model_validate({"recognised": {"classes": ["tabby", 285]}}).recognised.classes == ["tabby", 285]


def test_an_unknown_class_is_an_error_that_proposes_others():
    with pytest.raises(ValueError, match=r"ingest\.subject: ImageNet has no class 'taby'; did you mean tabby"):
        numbers(["taby"])
    with pytest.raises(ValueError, match=r"no class 'cat'; did you mean "):
        numbers(["cat"])
    with pytest.raises(ValueError, match=r"no class 'xyzzyq'; write its name as torchvision does"):
        numbers(["xyzzyq"])
    for number in (-1, 1000):
        with pytest.raises(ValueError, match=rf"{number} is no class of ImageNet; they have the numbers 0 to 999"):
            numbers([number])
