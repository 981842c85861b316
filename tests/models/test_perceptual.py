from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image, ImageFilter
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision import models

from darkroom.models.classifier import SHIPPED_PIXELS, load_shipped
from darkroom.models.perceptual import SHIPPED_LAYERS, PerceptualDistance
from darkroom.param_groups import ClassifierPixels, PerceptualParams

PLAIN = ClassifierPixels(mean=[0.0] * 3, std=[1.0] * 3)  # pixels as they are


class Layers(nn.Module):
    """Two maps of features whose values are easy to write down."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1, bias=False)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"near": x, "far": F.avg_pool2d(self.conv(x), 2)}


def build(arch: str, weights: str, layers: list[str], *, size: int) -> PerceptualDistance:
    return PerceptualDistance.build(PerceptualParams(weight=0.1, arch=arch, weights=weights, layers=layers), size=size)


@pytest.fixture(scope="module")
def squeezenet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "squeezenet.safetensors"
    torch.manual_seed(0)
    save_file({name: tensor.contiguous() for name, tensor in models.squeezenet1_1(weights=None).state_dict().items()}, path)
    return path


def test_the_distance_is_the_papers_formula_written_out() -> None:
    layers = Layers()
    photos, others = torch.rand(2, 3, 3, 4, 4).mul(2).sub(1).unbind(0)
    expected = torch.zeros(3)
    for name in ("near", "far"):
        a, b = (layers((images + 1) / 2)[name] for images in (photos, others))
        difference = a / a.norm(dim=1, keepdim=True) - b / b.norm(dim=1, keepdim=True)
        expected += difference.square().sum(1).mean((1, 2)).detach() / 2
    torch.testing.assert_close(PerceptualDistance(layers, PLAIN)(photos, others), expected)


def test_equal_pictures_have_distance_zero() -> None:
    photos = torch.rand(2, 3, 4, 4)
    torch.testing.assert_close(PerceptualDistance(Layers(), PLAIN)(photos, photos), torch.zeros(2))


def test_the_gradient_is_that_of_the_distance_and_goes_to_the_reconstruction_alone() -> None:
    distance = PerceptualDistance(Layers().double(), PLAIN)
    photos = torch.rand(1, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    others = torch.rand(1, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    distance(photos, others).sum().backward()
    step = torch.zeros_like(others)
    step[0, 1, 2, 3] = 1e-4
    with torch.no_grad():
        slope = (distance(photos, others + step) - distance(photos, others - step)) / 2e-4
    assert float(slope) == pytest.approx(float(others.grad[0, 1, 2, 3]), rel=1e-2)  # features are rounded to fp32
    assert photos.grad is None
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in distance.network.parameters())


def test_pixels_reach_the_network_in_its_own_order_range_and_mean() -> None:
    seen: list[Tensor] = []

    class Watching(nn.Module):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            seen.append(x)
            return {"x": x}

    red = torch.tensor([1.0, -1.0, -1.0]).reshape(1, 3, 1, 1)
    PerceptualDistance(Watching(), SHIPPED_PIXELS)(red, red)
    assert seen[0].flatten().tolist() == [-104, -117, 132]


def test_layers_are_what_the_classifier_computes_before_later_layers_write_over_it(squeezenet: Path) -> None:
    part = build("squeezenet1_1", str(squeezenet), ["features.0", "features.3"], size=32).network
    torch.manual_seed(0)
    classifier = models.squeezenet1_1(weights=None).eval()  # the weights of the file
    x = torch.randn(1, 3, 32, 32)
    found = part(x)
    assert list(found) == ["features.0", "features.3"]
    with torch.no_grad():
        torch.testing.assert_close(found["features.0"], classifier.features[0](x))
        torch.testing.assert_close(found["features.3"], classifier.features[:4](x))
    assert (found["features.0"] < 0).any()  # the ReLU behind it has not overwritten it


def test_loading_draws_no_random_number(squeezenet: Path) -> None:
    before = torch.random.get_rng_state()
    build("squeezenet1_1", str(squeezenet), ["features.3"], size=32)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize(
    ("arch", "layers", "size", "message"),
    [
        ("squeezenet9", ["features.3"], 32, r"perceptual\.arch: torchvision has no classifier 'squeezenet9'"),
        ("squeezenet1_1", ["features.99"], 32, r"perceptual\.layers: SqueezeNet has no layer 'features\.99'; it has classifier"),
        ("squeezenet1_1", ["features.12"], 8, r"images of 8 px are too small for features\.12"),
        ("squeezenet1_0", ["features.3"], 32, r"squeezenet\.safetensors does not fit SqueezeNet"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(squeezenet: Path, arch: str, layers: list[str], size: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(arch, str(squeezenet), layers, size=size)


def test_a_missing_file_is_named() -> None:
    with pytest.raises(ValueError, match=r"train_vae\.perceptual\.weights: nowhere\.safetensors is missing"):
        build("squeezenet1_1", "nowhere.safetensors", ["features.3"], size=32)


def test_weights_of_the_hub_are_asked_for_without_unpickling_code(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, object] = {}

    def download(url: str, **options: object) -> dict[str, Tensor]:
        asked.update(options, url=url)
        torch.manual_seed(3)
        return models.squeezenet1_1(weights=None).state_dict()

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", download)
    part = build("squeezenet1_1", "", ["features.0"], size=32).network
    assert asked["weights_only"] is True
    assert asked["check_hash"] is True
    torch.manual_seed(3)
    classifier = models.squeezenet1_1(weights=None)
    x = torch.randn(1, 3, 32, 32)
    torch.testing.assert_close(part(x)["features.0"], classifier.features[0](x))


def test_a_download_that_fails_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def download(url: str, **options: object) -> dict[str, Tensor]:
        raise URLError("no route")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", download)
    with pytest.raises(ValueError, match=r"squeezenet1_1 could not be downloaded.*perceptual\.weights, or leave .*perceptual\.arch empty"):
        build("squeezenet1_1", "", ["features.0"], size=32)


def test_a_weight_alone_takes_the_shipped_classifier_its_pixels_and_the_layers_of_lpips() -> None:
    distance = PerceptualDistance.build(PerceptualParams(weight=0.1), size=32)
    assert distance.pixels == SHIPPED_PIXELS
    x = torch.rand(1, 3, 32, 32) * 255
    found, expected, layer = distance.network(x), x, 0
    network = load_shipped()
    assert list(found) == SHIPPED_LAYERS
    for name, features in found.items():
        index = int(name.removeprefix("features."))
        expected, layer = network.features[layer : index + 1](expected), index + 1
        torch.testing.assert_close(features, expected, rtol=1e-3, atol=1e-2)


def test_layers_alone_are_those_of_the_shipped_classifier() -> None:
    distance = PerceptualDistance.build(PerceptualParams(weight=0.1, layers=["features.1"]), size=16)
    assert list(distance.network(torch.zeros(1, 3, 16, 16))) == ["features.1"]


def test_small_pictures_ask_for_fewer_layers_of_the_shipped_classifier() -> None:
    with pytest.raises(ValueError, match=r"images of 16 px are too small for features\.12 of SqueezeNet"):
        PerceptualDistance.build(PerceptualParams(weight=0.1), size=16)


@pytest.mark.parametrize("size", [32, 64])
def test_a_blurred_photo_is_further_away_than_a_brighter_one(shared: Path, size: int) -> None:
    distance = PerceptualDistance.build(PerceptualParams(weight=0.1), size=size)
    paths = sorted((shared / "data" / "cats").glob("Abyss*.jpg"))[:8]
    photos = [Image.open(path).convert("RGB").resize((size, size)) for path in paths]
    blurred = [photo.filter(ImageFilter.GaussianBlur(2)) for photo in photos]

    def tensor(pictures: list[Image.Image]) -> Tensor:
        return torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures])).permute(0, 3, 1, 2) / 127.5 - 1

    sharp, soft = tensor(photos), tensor(blurred)
    error = (soft - sharp).square().mean().sqrt()
    brighter = sharp + error  # the same mean squared error as the blurred ones
    assert (distance(sharp, soft) > 3 * distance(sharp, brighter)).all()
