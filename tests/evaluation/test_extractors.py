from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from pydantic import ValidationError
from safetensors.torch import save_file
from timm.data import create_transform, resolve_model_data_config
from torch import nn
from torchvision import models

from darkroom.evaluation.extractors import make_extractor
from darkroom.evaluation.features import ArrayImages, Extractor
from darkroom.models.classifier import CHUNK, Classifier, load_classifier
from darkroom.models.clip import ClipTowers
from darkroom.param_groups import FeatureParams
from tests.models.tiny_clip import TINY

CPU = torch.device("cpu")
IMAGES = np.random.default_rng(0).integers(0, 256, (3, 40, 40, 3), dtype=np.uint8)
RESNET, VIT, DINO = "test_resnet.r160_in1k", "test_vit.r160_in1k", "vit_small_patch14_dinov2.lvd142m"


def extractor_of(**params: object) -> Extractor:
    return make_extractor(FeatureParams.model_validate(params), ClipTowers.build(TINY, seed=0).eval(), "fingerprint", CPU)


def features_of(extractor: Extractor, images: np.ndarray = IMAGES) -> np.ndarray:
    return extractor.of(ArrayImages(images), batch_size=8, desc="noise")


def saved(folder: Path, network: nn.Module) -> str:
    path = folder / "weights.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in network.state_dict().items()}, path)
    return str(path)


def new(arch: str, **options: object) -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(arch, pretrained=False, **options).eval()


def test_the_default_is_the_shipped_classifier() -> None:
    extractor = extractor_of()
    classifier = Classifier.shipped()
    np.testing.assert_array_equal(features_of(extractor), classifier.features_and_scores(IMAGES)[0])
    assert (extractor.kind, extractor.kernel, extractor.name) == ("squeezenet", "cubic", classifier.name)
    assert extractor.identity == {"kind": "squeezenet", **classifier.identity}


def test_a_classifier_of_torchvision_sees_what_the_parameters_say(tmp_path: Path) -> None:
    torch.manual_seed(0)
    weights = saved(tmp_path, models.squeezenet1_1(num_classes=7))
    pixels = {"channels": "bgr", "scale": 255.0, "mean": [104.0, 117.0, 123.0], "std": [1.0, 2.0, 4.0]}
    params = FeatureParams.model_validate({"kind": "torchvision", "arch": "squeezenet1_1", "weights": weights, "side": 64, **pixels})
    network = load_classifier("squeezenet1_1", weights, section="here")
    expected = Classifier(network, params, arch="squeezenet1_1", side=64).features_and_scores(IMAGES)[0]
    extractor = make_extractor(params, ClipTowers.build(TINY, seed=0), "", CPU)
    np.testing.assert_array_equal(features_of(extractor), expected)
    assert extractor.name.startswith("squeezenet1_1-")
    identities = [extractor.identity, *(extractor_of(**params.model_dump() | changes).identity for changes in OTHER_PIXELS)]
    assert all(a != b for i, a in enumerate(identities) for b in identities[:i])
    assert {"side": 227, "channels": "bgr"}.items() <= extractor_of(**params.model_dump() | {"side": 227}).identity.items()


OTHER_PIXELS = ({"side": 227}, {"channels": "rgb"}, {"scale": 1.0}, {"mean": [0.0] * 3}, {"std": [1.0] * 3})


def test_a_classifier_of_torchvision_without_a_file_is_downloaded_and_sees_224_px(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(3)
    tensors = models.squeezenet1_1().state_dict()
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", lambda *_, **__: tensors)
    assert extractor_of(kind="torchvision", arch="squeezenet1_1").identity["side"] == 224


@pytest.mark.parametrize("arch", [RESNET, VIT])
def test_a_network_of_timm_sees_the_whole_image_as_its_configuration_says(tmp_path: Path, arch: str) -> None:
    network = new(arch)
    extractor = extractor_of(kind="timm", arch=arch, weights=saved(tmp_path, network))
    network.reset_classifier(0)
    prepare = create_transform(**resolve_model_data_config(network) | {"crop_pct": 1.0})
    x = torch.stack([prepare(Image.fromarray(image)) for image in IMAGES])
    assert x.shape[2:] == (160, 160)
    with torch.inference_mode():
        torch.testing.assert_close(torch.from_numpy(features_of(extractor)), network(x), rtol=1e-4, atol=1e-5)
    assert extractor.name.startswith(f"{arch}-")
    assert extractor.identity["interpolation"] == {RESNET: "bilinear", VIT: "bicubic"}[arch]


@pytest.mark.parametrize("arch", [RESNET, VIT])
def test_a_network_of_timm_can_be_given_a_smaller_side(tmp_path: Path, arch: str) -> None:
    weights = saved(tmp_path, new(arch))
    whole, small = (extractor_of(kind="timm", arch=arch, weights=weights, side=side) for side in (0, 96))
    assert (whole.identity["input_size"], small.identity["input_size"]) == ((3, 160, 160), (3, 96, 96))
    found = [features_of(extractor) for extractor in (whole, small)]
    assert found[0].shape == found[1].shape
    assert np.abs(found[0] - found[1]).max() > 1e-3


def test_a_dinov2_with_the_names_of_its_authors_is_read_at_any_side(tmp_path: Path) -> None:
    """Its own file has the mask token of training, which timm leaves out."""
    network = new(DINO, num_classes=0)
    tensors = {name: tensor.contiguous() for name, tensor in network.state_dict().items()} | {"mask_token": torch.zeros(1, 384)}
    save_file(tensors, tmp_path / "dinov2.safetensors")
    extractor = extractor_of(kind="timm", arch=DINO, weights=str(tmp_path / "dinov2.safetensors"), side=28)
    assert features_of(extractor).shape == (3, 384)


def test_loading_draws_no_random_number(tmp_path: Path) -> None:
    weights = saved(tmp_path, new(RESNET))
    before = torch.random.get_rng_state()
    extractor_of(kind="timm", arch=RESNET, weights=weights)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize(
    ("arch", "weights", "message"),
    [
        ("nothing", "", r"evaluate\.features\.arch: timm has no weights of a network 'nothing'"),
        ("test_resnet.nothing", "", r"evaluate\.features\.arch: timm has no weights of a network 'test_resnet\.nothing'"),
        (RESNET, "missing.safetensors", r"missing\.safetensors of timm's test_resnet\.r160_in1k could not be loaded: .* is missing"),
        (RESNET, "", r"the weights of timm's test_resnet\.r160_in1k could not be loaded: .*Name a local \.safetensors file"),
    ],
)
def test_a_network_of_timm_that_is_unknown_missing_or_out_of_reach_is_refused(arch: str, weights: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        extractor_of(kind="timm", arch=arch, weights=weights)


def test_weights_of_another_network_of_timm_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"weights\.safetensors of timm's test_resnet\.r160_in1k could not be loaded: .*Missing key"):
        extractor_of(kind="timm", arch=RESNET, weights=saved(tmp_path, new(VIT)))


@pytest.fixture(scope="module")
def inception() -> nn.Module:
    """FID's network with random weights."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    class Untrained(FeatureExtractorInceptionV3):
        def load_state_dict(self, *_: object) -> None:
            pass

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("torch_fidelity.feature_extractor_inceptionv3.torch.load", lambda *_, **__: {})
        torch.manual_seed(0)
        return Untrained("inception", ["2048"], feature_extractor_weights_path="none")


@pytest.mark.parametrize("ending", ["safetensors", "pth"])
def test_the_features_of_fid_are_those_of_torch_fidelity(
    tmp_path: Path, inception: nn.Module, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    monkeypatch.setattr(f"{type(inception).__mro__[1].__module__}.FeatureExtractorInceptionV3.INPUT_IMAGE_SIZE", 75)  # for time
    path = tmp_path / f"inception.{ending}"
    (save_file if ending == "safetensors" else torch.save)(inception.state_dict(), path)
    extractor = extractor_of(kind="inception", weights=str(path))
    expected = inception(torch.tensor(IMAGES).permute(0, 3, 1, 2))[0]
    torch.testing.assert_close(torch.from_numpy(features_of(extractor)), expected, rtol=1e-4, atol=1e-5)
    assert extractor.name.startswith("inception-")
    assert (extractor.kernel, extractor.identity["side"]) == ("cubic", 75)


def test_the_inception_of_fid_is_downloaded_without_unpickling_code(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, object] = {}

    def download(url: str, **options: object) -> dict[str, torch.Tensor]:
        asked.update(options, url=url)
        raise URLError("no route")

    monkeypatch.setattr("torch.hub.load_state_dict_from_url", download)
    with pytest.raises(ValueError, match=r"the weights of FID's Inception could not be loaded: .*no route.* Name a local file in evaluate"):
        extractor_of(kind="inception")
    assert asked["weights_only"] is True
    assert "weights-inception-2015-12-05" in str(asked["url"])


@pytest.mark.parametrize("name", ["missing.safetensors", "missing.pth", "broken.pth"])
def test_an_inception_that_is_missing_or_broken_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "broken.pth").write_bytes(b"no tensors")
    with pytest.raises(ValueError, match=rf"{name} of FID's Inception could not be loaded"):
        extractor_of(kind="inception", weights=str(tmp_path / name))


def test_weights_of_another_network_are_no_inception(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"weights\.safetensors of FID's Inception could not be loaded: .*Missing key"):
        extractor_of(kind="inception", weights=saved(tmp_path, nn.Linear(2, 2)))


def test_a_pretrained_clip_gives_its_embeddings_in_the_kernel_of_cmmd(tmp_path: Path) -> None:
    clip = ClipTowers.build(TINY, seed=3).eval()
    clip.save(tmp_path / "clip")
    extractor = extractor_of(kind="open_clip", arch=str(tmp_path / "clip"))
    np.testing.assert_allclose(features_of(extractor), 4 * clip.encode_images(IMAGES).numpy(), rtol=1e-4, atol=1e-5)
    assert (extractor.kernel, extractor.name) == ("gaussian", f"open_clip-{clip.fingerprint()[:12]}")
    assert (extractor.identity["side"], extractor.identity["weights"]) == (16, clip.fingerprint())


def test_a_pretrained_clip_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"evaluate\.features\.arch: CLIP `nowhere` not found: give an existing folder"):
        extractor_of(kind="open_clip", arch="nowhere")


def test_the_runs_own_clip_is_an_extractor_by_its_fingerprint() -> None:
    extractor = extractor_of(kind="clip")
    expected = ClipTowers.build(TINY, seed=0).eval().encode_images(IMAGES).numpy()
    np.testing.assert_allclose(features_of(extractor), 4 * expected, rtol=1e-4, atol=1e-5)
    assert (extractor.name, extractor.identity) == ("clip-fingerprint", {"kind": "clip", "weights": "fingerprint"})


@pytest.mark.parametrize("kind", ["timm", "clip"])
def test_features_have_the_same_bits_for_any_batch_size(tmp_path: Path, kind: str) -> None:
    params = {"kind": kind} | ({"arch": VIT, "weights": saved(tmp_path, new(VIT))} if kind == "timm" else {})
    extractor = extractor_of(**params)
    images = np.random.default_rng(1).integers(0, 256, (CHUNK + 2, 24, 24, 3), dtype=np.uint8)
    whole = extractor.extract(images)
    for batch in (1, 3):
        parts = [extractor.extract(images[start : start + batch]) for start in range(0, 4 * batch, batch)]
        np.testing.assert_array_equal(np.concatenate(parts), whole[: 4 * batch])


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"kind": "torchvision"}, r"features\.kind: torchvision needs features\.arch"),
        ({"kind": "timm"}, r"features\.kind: timm needs features\.arch"),
        ({"kind": "open_clip"}, r"features\.kind: open_clip needs features\.arch"),
        ({"kind": "squeezenet", "arch": "resnet18"}, r"features\.arch means nothing with features\.kind: squeezenet"),
        ({"kind": "squeezenet", "side": 64}, r"features\.side means nothing"),
        ({"kind": "clip", "weights": "clip.safetensors"}, r"features\.weights means nothing with features\.kind: clip"),
        ({"kind": "timm", "arch": RESNET, "channels": "bgr"}, r"features\.channels means nothing with features\.kind: timm"),
        ({"kind": "open_clip", "arch": "folder", "weights": "a"}, r"features\.weights means nothing with features\.kind: open_clip"),
        ({"kind": "inception", "mean": [0.0, 0.0, 0.0]}, r"features\.mean means nothing with features\.kind: inception"),
    ],
)
def test_a_parameter_that_is_missing_or_means_nothing_for_the_kind_is_refused(params: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        FeatureParams.model_validate(params)
