"""The extractors that `evaluate.features` names: networks that the run never trained, by name or from a file, and its own CLIP."""

import io
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from darkroom.choices import FeatureKind
from darkroom.evaluation.features import Extractor, Images, clip_features, embeddings_of
from darkroom.models.classifier import Classifier, in_chunks, load_classifier
from darkroom.models.clip import ClipTowers
from darkroom.models.weights import hash_weights, read_weights
from darkroom.param_groups import FeatureParams

SECTION = "evaluate.features"
TORCHVISION_SIDE = 224  # px, at which most classifiers of torchvision were measured


def make_extractor(params: FeatureParams, clip: ClipTowers, clip_fingerprint: str, device: torch.device) -> Extractor:
    """The extractor that `params` name, on `device`; the run's own CLIP stays where it is.

    Raises:
        ValueError: this CLIP has no image encoder, an unknown architecture, or weights that are missing, cannot be downloaded or do
            not fit.
    """
    match params.kind:
        case "squeezenet":
            return of_classifier(Classifier.shipped(device), params)
        case "torchvision":
            network = load_classifier(params.arch, params.weights, section=SECTION)
            side = params.side or TORCHVISION_SIDE
            return of_classifier(Classifier(network, params, arch=params.arch, side=side, device=device), params)
        case "timm":
            return timm_features(params.arch, params.weights, side=params.side, device=device)
        case "inception":
            return inception_features(params.weights, device=device)
        case "open_clip":
            return open_clip_features(params.arch, device=device)
        case "clip":
            clip.check_image_encoder()
            return clip_features(clip.encode_images, clip_fingerprint)


def of_classifier(classifier: Classifier, params: FeatureParams) -> Extractor:
    """What enters the last layer of a classifier."""
    identity = {"kind": params.kind, **classifier.identity}
    return Extractor(params.kind, classifier.name, lambda images: classifier.features_and_scores(images)[0], identity)


def timm_features(arch: str, weights: str, *, side: int = 0, device: torch.device) -> Extractor:
    """The pooled features of a network of timm, e.g. DINOv2 as `vit_small_patch14_dinov2.lvd142m`.

    Images are resized and normalised as timm's configuration of these weights says, but the whole image is seen: no border is cut off.

    Args:
        arch: a name in `timm.list_pretrained()`.
        weights: a .safetensors file with timm's or the authors' names; "" = timm's own, downloaded once into the hub's cache.
        side: px, to which images are resized; 0 = that of the configuration. Position embeddings are interpolated.
        device: where the network runs.

    Raises:
        ValueError: an unknown name, or weights that are missing, cannot be downloaded or do not fit.
    """
    import timm

    if arch not in timm.list_pretrained():
        raise ValueError(f"{SECTION}.arch: timm has no weights of a network {arch!r}; see `timm.list_pretrained()`.")
    known = timm.get_pretrained_cfg(arch)
    assert known is not None, "it is listed"
    resizable: dict[str, Any] = {"img_size": side} if side and known.fixed_input_size else {}
    try:
        overlay: dict[str, Any] = {"state_dict": read_weights(Path(weights))} if weights else {}
        with torch.random.fork_rng(devices=[]):  # initial weights are drawn before they are replaced
            network: Any = timm.create_model(arch, pretrained=True, pretrained_cfg_overlay=overlay, **resizable)
    except (ValueError, RuntimeError, OSError) as error:
        raise ValueError(
            f"{SECTION}: {weights or 'the weights'} of timm's {arch} could not be loaded: {' '.join(str(error).split())[:500]} "
            f"Name a local .safetensors file in {SECTION}.weights, or set {SECTION}.kind: squeezenet, which comes with Darkroom."
        ) from error
    network.reset_classifier(0)  # now: timm accepts any weights for a network that is made without classes
    config = timm.data.resolve_model_data_config(network) | {"crop_pct": 1.0}
    config |= {"input_size": (3, side, side)} if side else {}
    prepare = timm.data.create_transform(**config)
    network = network.eval().to(device).to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def forward(images: Images) -> tuple[Tensor]:
        return (network(torch.stack([prepare(Image.fromarray(image)) for image in images]).to(device)),)

    return _of_network("timm", arch, network, forward, {**config, "layer": "pooled features"})


def inception_features(weights: str, *, device: torch.device) -> Extractor:
    """The 2048 pooled features of the Inception of FID (Heusel et al. 2017), by torch-fidelity: its weights, resizing and arithmetic.

    Args:
        weights: torch-fidelity's .pth file, or the same tensors as .safetensors; "" = downloaded once into torch's hub folder.
        device: where the network runs.

    Raises:
        ValueError: the weights are missing, cannot be downloaded or do not fit.
    """
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3, FeatureExtractorInceptionV3

    file = io.BytesIO()
    try:
        torch.save(_inception_weights(weights, URL_INCEPTION_V3), file)
        file.seek(0)
        with torch.random.fork_rng(devices=[]):  # initial weights are drawn before they are replaced
            # it unpickles the file without a check: so it gets one that was read with a check and written here
            network = FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path=file).to(device)
    except (ValueError, RuntimeError, OSError, EOFError, pickle.UnpicklingError) as error:
        raise ValueError(
            f"{SECTION}: {weights or 'the weights'} of FID's Inception could not be loaded: {' '.join(str(error).split())[:500]} "
            f"Name a local file in {SECTION}.weights, or set {SECTION}.kind: squeezenet, which comes with Darkroom."
        ) from error

    @torch.inference_mode()
    def forward(images: Images) -> tuple[Tensor]:
        return (network(torch.tensor(images, device=device).permute(0, 3, 1, 2))[0],)

    return _of_network("inception", "inception", network, forward, {"side": network.INPUT_IMAGE_SIZE, "layer": "2048"})


def _inception_weights(weights: str, url: str) -> dict[str, Tensor]:
    if not weights:
        return torch.hub.load_state_dict_from_url(url, progress=False, weights_only=True, map_location="cpu")
    if Path(weights).suffix == ".pth":
        return torch.load(weights, weights_only=True, map_location="cpu")
    return read_weights(Path(weights))


def open_clip_features(source: str, *, device: torch.device) -> Extractor:
    """The image embeddings of a pretrained CLIP, for CMMD (Jayasumana et al. 2024); `source` as in `ClipTowers.load`.

    Raises:
        ValueError: it is not found, cannot be downloaded, or has no image encoder.
    """
    try:
        clip = ClipTowers.load(source)
        clip.check_image_encoder()
    except ValueError as error:
        raise ValueError(f"{SECTION}.arch: {error}") from error
    clip = clip.eval().to(device)
    weights = clip.fingerprint()
    identity = {"kind": "open_clip", "weights": weights, "side": clip.image_size, "preprocessing": dict(clip.preprocess_cfg)}
    return Extractor("open_clip", f"open_clip-{weights[:12]}", embeddings_of(clip.encode_images), identity, kernel="gaussian")


def _of_network(
    kind: FeatureKind, arch: str, network: nn.Module, forward: Callable[[Images], tuple[Tensor]], identity: Mapping[str, Any]
) -> Extractor:
    weights = hash_weights(network)
    return Extractor(
        kind,
        f"{arch}-{weights[:12]}",
        lambda images: in_chunks(images, forward)[0],
        {"kind": kind, "arch": arch, "weights": weights, **identity},
    )
